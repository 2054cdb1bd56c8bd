"""Files that somebody gives: opened, and read or refused in one sentence that names them.

What is opened is a regular file, so that a pipe or a device in its place cannot hang a run, and
whatever damaged bytes make a decoder raise becomes a DataError.
"""

from __future__ import annotations

import os
import stat
import warnings
import zipfile
from collections.abc import Collection
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from experiments.host.errors import DataError

__all__ = [
    "array", "ascii_safe", "line", "lines", "numbers", "open_regular", "read_bytes", "read_npz",
    "real", "said_by", "whole",
]  # fmt: skip

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_LONGEST = 10_000


def said_by(error: BaseException) -> str:
    """What an error says, in one short line."""
    strerror = error.strerror if isinstance(error, OSError) else None
    said = " ".join((strerror or str(error) or type(error).__name__).split())
    return said if len(said) <= 200 else said[:197] + "..."


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """The file, open for reading.

    Raises:
      DataError: it is not there, may not be read, or is no regular file.
    """
    shown = ascii_safe(os.fspath(path))
    try:
        # Without waiting for a writer, were it a pipe; of no effect on regular files.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DataError(f"{shown} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in a name
        raise DataError(f"{shown} is unreadable: {said_by(error)}") from error
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise DataError(f"{shown} is {kind}, not a file to read")
    return os.fdopen(number, "rb")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; DataError as of `open_regular`."""
    with open_regular(path) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise DataError(f"{path} is unreadable: {said_by(error)}") from error


def ascii_safe(text: str) -> str:
    """The text where it can be printed, else with escapes."""
    return text if text.isprintable() else ascii(text)


# ---- .npz -----------------------------------------------------------------------------------


def read_npz(
    path: str | os.PathLike[str], wanted: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by key, each whole and of the checksum it was written with.

    Args:
      path: the file; nothing in it is unpickled.
      wanted: keys to read, where they are there; None reads all.

    Raises:
      DataError: it is no .npz file, or an array in it is damaged; the message names the key.
    """
    with open_regular(path) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except Exception as error:  # zipfile raises half a dozen kinds, by version and damage
            raise DataError(f"{path} is not an .npz file: {said_by(error)}") from error
        with archive:
            members = archive.infolist()
            # A length that is damaged makes one entry swallow those after it, in silence.
            stream.seek(-12 - len(archive.comment), os.SEEK_END)
            told = int.from_bytes(stream.read(2), "little")
            if told not in (len(members), 2**16 - 1):
                raise DataError(
                    f"{path} is not an .npz file of whole arrays: it lists {len(members)} of {told}"
                )
            found = {}
            for member in members:
                key = ascii_safe(member.filename).removesuffix(".npy")
                if key in found:
                    raise DataError(f"{path} holds {key} more than once")
                found[key] = member
            if wanted is not None:
                found = {key: member for key, member in found.items() if key in wanted}
            size, memory = sum(m.file_size for m in found.values()), _memory()
            if size > memory:
                raise DataError(
                    f"{path} unpacks to {size / 2**30:.1f} GiB, and this machine has "
                    f"{memory / 2**30:.1f} GiB of memory"
                )
            return {key: _member(archive, member, path, key) for key, member in found.items()}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _member(archive: zipfile.ZipFile, member: Any, path: Any, key: str) -> NDArray[Any]:
    try:
        with warnings.catch_warnings(), archive.open(member) as stream:
            warnings.simplefilter("error")
            found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            # To the end: there the checksum is compared.
            surplus = len(stream.read(1))
    except Exception as error:  # as above, and NumPy's own; of absurd shapes MemoryError
        raise DataError(
            f"{path} is not an .npz file of whole arrays: {key}: {said_by(error)}"
        ) from error
    if surplus:
        raise DataError(f"{path}: {key}: there are more bytes than its shape {found.shape} takes")
    return found


# Of the arrays of an .npz file, those that stand for something else; `where` begins the message.


def array(value: NDArray[Any], where: str) -> NDArray[Any]:
    """Itself: a Dataset checks its images and labels."""
    return value


def whole(value: NDArray[Any], where: str) -> int:
    """One integer, of an array without dimensions."""
    if value.ndim or value.dtype.kind not in "iu":
        raise DataError(f"{where} must be one whole number, not {_shown(value)}")
    return int(value)


def numbers(value: NDArray[Any], where: str) -> tuple[float, ...]:
    """Real numbers, of an array with one dimension."""
    if value.ndim != 1 or value.dtype.kind not in "fiu":
        raise DataError(f"{where} must be a list of real numbers, not {_shown(value)}")
    return tuple(float(x) for x in value)


def real(value: NDArray[Any], where: str) -> float:
    """One real number, of an array without dimensions."""
    if value.ndim or value.dtype.kind not in "fiu":
        raise DataError(f"{where} must be one real number, not {_shown(value)}")
    return float(value)


def line(value: NDArray[Any], where: str) -> str:
    """One line of text, of an array without dimensions."""
    if value.ndim or value.dtype.kind != "U":
        raise DataError(f"{where} must be one line of text, not {_shown(value)}")
    return _text(value, where)


def lines(value: NDArray[Any], where: str) -> tuple[str, ...]:
    """Lines of text, of an array with one dimension."""
    if value.ndim != 1 or value.dtype.kind != "U":
        raise DataError(f"{where} must be a list of lines of text, not {_shown(value)}")
    return tuple(_text(each, where) for each in value)


def _text(value: Any, where: str) -> str:
    try:
        found = str(value)
    except ValueError as error:  # numbers beyond Unicode
        raise DataError(f"{where} is no text: {said_by(error)}") from error
    if not found.isprintable() or len(found) > _LONGEST:
        raise DataError(f"{where} must be one line of printable text, not {ascii(found)[:60]}")
    return found


def _shown(value: NDArray[Any]) -> str:
    kind = f"{value.dtype}{list(value.shape) if value.ndim else ''}"
    return f"{kind} {value}" if value.ndim == 0 and value.dtype.kind in "biuf" else kind
