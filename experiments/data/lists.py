"""List files, as OLTR and classifier-balancing publish them: which images, of which class.

They choose among the records of a prepared data set by file name, or among the files of a folder
by path.
"""

import dataclasses
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data import DataError
from experiments.data.encoded import Subset
from experiments.data.records import TfdsSplit
from experiments.host.inputs import ascii_safe, read_bytes

__all__ = ["FolderSplit", "folder_split", "read_list", "select"]

PathLike = str | os.PathLike[str]

_MANY_CLASSES = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
    """Image files in a folder.

    Attributes:
      root: the folder.
      files: bytes[N], paths below it.
      labels: int32[N].
    """

    root: str
    files: NDArray[np.bytes_]
    labels: NDArray[np.int32]

    def read(self, rows: Sequence[int]) -> list[bytes]:
        return [read_bytes(self.name(row)) for row in rows]

    def name(self, row: int) -> str:
        return os.path.join(self.root, self.files[row].decode())


class _List(NamedTuple):
    """A list file: paths without `.` or doubled slashes, labels, and in which line each stands."""

    names: list[str]
    labels: NDArray[np.int32]
    lines: list[int]
    path: PathLike

    def place(self, name: str) -> str:
        """Where a name stands, as error messages begin."""
        return f"{self.path}, line {self.lines[self.names.index(name)]}"


def read_list(
    path: PathLike, num_classes: int | None = None
) -> tuple[list[str], NDArray[np.int32]]:
    """Names and labels of a list file: one `train/n01440764/n01440764_190.JPEG 0` a line.

    UTF-8, with or without a byte-order mark; lines without anything are passed over.

    Args:
      path: of the list.
      num_classes: that the labels stay below; None where the list itself, of the training images,
        says how many there are.

    Raises:
      DataError: there is no such file, a line is not of that form or leads out of the folder that
        paths begin in, a file stands twice, labels are too high, or there are no lines.
    """
    found = _read_list(path, num_classes)
    return found.names, found.labels


def _read_list(path: PathLike, num_classes: int | None) -> _List:
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {number}: is not UTF-8") from error
    line_of: dict[str, int] = {}
    labels = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        parts, where = line.rsplit(None, 1), f"{path}, line {number}"
        if len(parts) < 2 or not re.fullmatch("[0-9]{1,9}", parts[1]) or line.startswith("#"):
            shown = ascii_safe(line.strip()[:100])
            raise DataError(f"{where}: expected a path and a label, not {shown!r}")
        given = parts[0].strip()
        if any(c < " " or c in "\x7f\ufeff" for c in given):
            raise DataError(f"{where}: {given!a} has characters that are in no path")
        name = posixpath.normpath(given)
        if name.startswith(("/", "\\")) or {"..", "."} & set(re.split(r"[/\\]", name)):
            raise DataError(
                f"{where}: {given} leads out of the folder of the images: give a path in it"
            )
        if name in line_of:
            raise DataError(f"{where}: {given} stands in line {line_of[name]} already")
        line_of[name] = number
        labels.append(int(parts[1]))
    if not labels:
        raise DataError(f"the list {path} is empty")
    lines = list(line_of.values())
    # Some classes may have no image, but an absurd number of them fills the memory.
    limit = max(len(labels), _MANY_CLASSES) if num_classes is None else num_classes
    high = next((n for n, label in enumerate(labels) if label >= limit), None)
    if high is not None:
        said = f"{len(labels)} images" if num_classes is None else f"{limit} classes"
        raise DataError(
            f"{path}, line {lines[high]}: label {labels[high]} with {said}: labels number the "
            "classes of the training list from 0"
        )
    return _List(list(line_of), np.array(labels, np.int32), lines, path)


def select(split: TfdsSplit, list_file: PathLike, num_classes: int | None = None) -> Subset:
    """The rows of a split that a list file names, in its order and with its labels.

    Paths in lists and records begin differently, so names are compared from their end: by as many
    parts of the path as it takes to tell all files of the split apart. For imagenet2012 that is
    the base name; for places365_small's training images it is a/airfield/00000001.jpg.

    Args:
      split: one whose records hold file names.
      list_file, num_classes: see `read_list`.

    Raises:
      DataError: the records hold no names, or names of the list are not among them; it counts and
        names them.
    """
    if split.names is None:
        raise DataError(f"{split.directory} has no file names for {list_file} to choose by")
    listed = _read_list(list_file, num_classes)
    names, labels = listed.names, listed.labels
    own = [name.decode(errors="backslashreplace") for name in split.names]
    deepest = max(name.count("/") for name in own) + 1
    for parts in range(1, deepest + 1):
        row_of = {_tail(name, parts): row for row, name in enumerate(own)}
        if len(row_of) == len(own):
            break
    else:
        twice = [name for name, count in Counter(own).items() if count > 1]
        raise DataError(
            f"the {split.split} split in {split.directory} has {_some(twice)} more than once"
        )
    missing = [name for name in names if _tail(name, parts) not in row_of]
    if missing:
        raise DataError(
            f"{listed.place(missing[0])}: lists {_some(missing)} that the {split.split} split in "
            f"{split.directory} lacks; its names are like {own[0]}"
        )
    rows = np.array([row_of[_tail(name, parts)] for name in names], np.int64)
    if len(np.unique(rows)) < len(rows):
        counts = Counter(rows.tolist())
        twice = [name for name in names if counts[row_of[_tail(name, parts)]] > 1]
        raise DataError(
            f"{listed.place(twice[0])}: lists {_some(twice)} that mean the same records"
        )
    return Subset(split, rows, labels)


def folder_split(
    root: PathLike, list_file: PathLike, num_classes: int | None = None
) -> FolderSplit:
    """The files below a folder that a list file names; num_classes as of `read_list`.

    A list all of whose separators are backslashes is one of Windows.

    Raises:
      DataError: the folder is not there, or files are not, or are folders or pipes; it counts and
        names them.
    """
    root = os.path.expanduser(os.fspath(root))
    listed = _read_list(list_file, num_classes)
    if not any("/" in name for name in listed.names):
        listed = listed._replace(names=[name.replace("\\", "/") for name in listed.names])
    names, labels = listed.names, listed.labels
    if not os.path.isdir(root):
        raise DataError(f"{root}, of the images in {list_file}: there is no such folder")
    # One listing a folder: asking for every file takes minutes on a network disk.
    folders = {os.path.dirname(name) for name in names}
    there = {os.path.join(folder, file) for folder in folders for file in _files(root, folder)}
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{listed.place(missing[0])}: lists {_some(missing)} that are not below {root}, or are "
            "no files"
        )
    return FolderSplit(root, np.array([name.encode() for name in names]), labels)


def _files(root: str, folder: str) -> list[str]:
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except OSError:
        return []  # its files are reported as missing


def _tail(name: str, parts: int) -> str:
    return "/".join(name.replace("\\", "/").split("/")[-parts:])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{len(names)} {'file' if len(names) == 1 else 'files'} ({', '.join(names[:2])}{more})"
