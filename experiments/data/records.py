"""ImageNet-LT, Places-LT and iNaturalist 2018, still encoded, from TFDS or from folders of images.

Prepared TensorFlow Datasets (array_record) are read without TensorFlow. The subsets that OLTR and
classifier-balancing publish as list files are cut out of the whole sets by file name, or read from
folders by path.
"""

import contextlib
import dataclasses
import hashlib
import os
import posixpath
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data import DataError
from experiments.data.encoded import EncodedDataset, Split, Subset
from experiments.data.prepared import (
    check_shards,
    check_split,
    from_directory,
    prepared_builder,
    reading,
)  # fmt: skip
from experiments.host.inputs import ascii_safe, read_bytes, read_npz, reason

__all__ = [
    "FolderSplit",
    "TfdsSplit",
    "folder_split",
    "load_imagenet_lt",
    "load_inaturalist",
    "read_list",
    "select",
]

PathLike = str | os.PathLike[str]

_INATURALIST = ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The splits that the lists choose from: validation images of the -LT sets were training images.
_LISTED_IN = {"train": "train", "val": "train", "test": "validation"}
_CHUNK = 256
_READERS = 8
_LONG_SCAN = 20_000
_MANY_CLASSES = 100_000


class TfdsSplit:
    """A split of a prepared TFDS data set; its images are read one by one, as they are needed.

    Labels and file names stand in the records, beside the images. They are read once, which takes
    as long as reading the whole split, and kept under XDG_CACHE_HOME (or else ~/.cache), in
    imbsam_jax/labels; files that change are read anew.

    Args:
      directory: the folder of one version, as in `builder.data_dir`.
      split: its name in TFDS.

    Attributes:
      labels: int32[N].
      names: bytes[N], the file names in the records (None where they have none); only where the
        split was made, not in the processes that it is pickled to.
      class_names: one per class.

    Raises:
      DataError: there is no such split, or it is unreadable.
    """

    labels: NDArray[np.int32]
    names: NDArray[np.bytes_] | None
    _source: Any
    _lock: threading.Lock

    def __init__(self, directory: PathLike, split: str):
        self.directory, self.split = os.fspath(directory), split
        self._forget()
        builder = self._builder()
        check_split(builder, split)
        self.class_names = tuple(builder.info.features["label"].names)
        self.labels, self.names = _labels_and_names(builder, split)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        with self._lock:
            if self._source is None:
                import tensorflow_datasets as tfds

                builder = self._builder()
                with reading(builder, self.split):
                    self._source = builder.as_data_source(
                        self.split, decoders={"image": tfds.decode.SkipDecoding()}
                    )
        try:
            records = self._source.__getitems__([int(row) for row in rows])
        except Exception as error:  # as in `reading`, for which there is no builder here
            raise DataError(
                f"the {self.split} split in {self.directory} is unreadable: {reason(error)}"
            ) from error
        return [record["image"] or b"" for record in records]

    def _builder(self) -> Any:
        # From the folder, not by name: its features are those it was prepared with.
        return from_directory(self.directory)

    def _forget(self) -> None:
        self.names, self._source, self._lock = None, None, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("directory", "split", "class_names", "labels")
        return {key: getattr(self, key) for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()
        self.__dict__.update(state)


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
        return [read_bytes(os.path.join(self.root, self.files[row].decode())) for row in rows]


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
        twice = [name for name, row in zip(names, rows.tolist(), strict=True) if counts[row] > 1]
        raise DataError(
            f"{listed.place(twice[0])}: lists {_some(twice)} that mean the same records"
        )
    return Subset(split, rows, labels)


def folder_split(
    root: PathLike, list_file: PathLike, num_classes: int | None = None
) -> FolderSplit:
    """The files below a folder that a list file names; num_classes as of `read_list`.

    Raises:
      DataError: files are not there, or are folders or pipes; it counts and names them.
    """
    root = os.path.expanduser(os.fspath(root))
    listed = _read_list(list_file, num_classes)
    names, labels = listed.names, listed.labels
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


def load_inaturalist(
    data_dir: str | None = None,
    *,
    image_dir: PathLike | None = None,
    train_list: PathLike | None = None,
    test_list: PathLike | None = None,
    size: int = 224,
    resize: int = 256,
) -> EncodedDataset:
    """iNaturalist 2018: 437,513 training images of 8,142 species.

    The test split is the labelled validation set of the competition (24,426 images), on which the
    papers report; the competition's test set has no public labels.

    Args:
      data_dir: folder of prepared TensorFlow Datasets that holds i_naturalist2018; None means
        TFDS_DATA_DIR, or else the default of TensorFlow Datasets.
      image_dir: in place of it, the folder of the extracted images, with both lists.
      train_list, test_list: see `read_list`; as published, iNaturalist18_train.txt and
        iNaturalist18_val.txt.
      size, resize: see `EncodedDataset`.

    Raises:
      DataError: the data is not there or cannot be read, or arguments contradict each other.
    """
    mean, std = _INATURALIST
    if image_dir is not None:
        splits = _from_folder(data_dir, image_dir, train_list, None, test_list)
        return _of_lists(
            "i_naturalist2018", splits, mean, std, f"images in {image_dir}", size, resize
        )
    if train_list is not None or test_list is not None:
        raise DataError("lists choose among the images of --image-dir: give it, or no lists")
    builder = prepared_builder("i_naturalist2018", data_dir, {"image", "label"}, prepare=False)
    train = TfdsSplit(builder.data_dir, "train")
    test = TfdsSplit(builder.data_dir, "validation")
    return EncodedDataset(
        name="i_naturalist2018",
        train=train,
        test=test,
        num_classes=len(train.class_names),
        mean=mean,
        std=std,
        source=f"TensorFlow Datasets {builder.info.full_name}, tested on its validation split",
        class_names=train.class_names,
        size=size,
        resize=resize,
    )


def load_imagenet_lt(
    dataset: Literal["imagenet_lt", "imagenet2012", "places365_small"] = "imagenet_lt",
    data_dir: str | None = None,
    *,
    train_list: PathLike | None = None,
    val_list: PathLike | None = None,
    test_list: PathLike | None = None,
    image_dir: PathLike | None = None,
    size: int = 224,
    resize: int = 256,
) -> EncodedDataset:
    """ImageNet-LT (115,846 training images, 1,000 classes) or Places-LT (62,500 and 365).

    Args:
      dataset: where the images come from in TFDS: "imagenet_lt", which is the subset already, or
        "imagenet2012" (ImageNet-LT) or "places365_small" (Places-LT) with list files.
      data_dir: folder of prepared TensorFlow Datasets; None means TFDS_DATA_DIR, or else the
        default of TensorFlow Datasets.
      train_list, val_list, test_list: see `read_list`. Training and validation images are chosen
        from the training split, test images from the validation split. Without val_list nothing
        is held out.
      image_dir: in place of data_dir, the folder that the paths in the lists begin in.
      size, resize: see `EncodedDataset`.

    Raises:
      ValueError: no such dataset.
      DataError: the data is not there or cannot be read, or arguments contradict each other.
    """
    if dataset not in ("imagenet_lt", "imagenet2012", "places365_small"):
        raise ValueError(
            f"unknown data set {dataset!r}: the known ones are imagenet_lt, imagenet2012, "
            "places365_small"
        )
    name = "places_lt" if dataset == "places365_small" else "imagenet_lt"
    mean, std = _IMAGENET
    if image_dir is not None:
        folder_splits = _from_folder(data_dir, image_dir, train_list, val_list, test_list)
        return _of_lists(name, folder_splits, mean, std, f"images in {image_dir}", size, resize)
    lists = {"train": train_list, "val": val_list, "test": test_list}
    if dataset == "imagenet_lt":
        if any(path is not None for path in lists.values()):
            raise DataError(
                "imagenet_lt is chosen already: lists go with imagenet2012, places365_small or "
                "--image-dir"
            )
        return _imagenet_lt(data_dir, size, resize)
    if train_list is None or test_list is None:
        raise DataError(
            f"{dataset} is the whole set: give --train-list and --test-list to choose from it"
        )
    file_name = "filename" if dataset == "places365_small" else "file_name"
    features = {"image", "label", file_name}
    builder = prepared_builder(dataset, data_dir, features, prepare=False)
    wholes: dict[str, TfdsSplit] = {}
    chosen: dict[str, Subset] = {}
    for split, path in lists.items():
        if path is not None:
            whole = _LISTED_IN[split]
            if whole not in wholes:
                wholes[whole] = TfdsSplit(builder.data_dir, whole)
            chosen[split] = select(wholes[whole], path, _classes(chosen.get("train")))
    source = f"TensorFlow Datasets {builder.info.full_name}"
    names = wholes["train"].class_names
    # Lists may number the classes in another way than TFDS.
    same = all(
        np.array_equal(part.labels, part.split.labels[part.rows]) for part in chosen.values()
    )
    data = _of_lists(name, chosen, mean, std, source, size, resize)
    if same and data.num_classes == len(names):
        data = dataclasses.replace(data, class_names=names)
    return data


def _imagenet_lt(data_dir: str | None, size: int, resize: int) -> EncodedDataset:
    builder = prepared_builder("imagenet_lt", data_dir, {"image", "label"}, prepare=False)
    train, val, test = (TfdsSplit(builder.data_dir, s) for s in ("train", "validation", "test"))
    mean, std = _IMAGENET
    return EncodedDataset(
        name="imagenet_lt",
        train=train,
        val=val,
        test=test,
        num_classes=len(train.class_names),
        mean=mean,
        std=std,
        source=f"TensorFlow Datasets {builder.info.full_name}",
        class_names=train.class_names,
        size=size,
        resize=resize,
    )


def _from_folder(
    data_dir: str | None,
    image_dir: PathLike,
    train_list: PathLike | None,
    val_list: PathLike | None,
    test_list: PathLike | None,
) -> dict[str, FolderSplit]:
    if data_dir is not None:
        raise DataError("--data-dir and --image-dir are two places for the images: give one")
    if train_list is None or test_list is None:
        raise DataError("--image-dir needs --train-list and --test-list: they hold the labels")
    lists = {"train": train_list, "val": val_list, "test": test_list}
    splits: dict[str, FolderSplit] = {}
    for split, path in lists.items():
        if path is not None:
            splits[split] = folder_split(image_dir, path, _classes(splits.get("train")))
    return splits


def _classes(train: Split | None) -> int | None:
    """How many classes a training list numbers, once it is read."""
    return None if train is None else 1 + int(train.labels.max())


def _of_lists(
    name: str,
    splits: dict[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    source: str,
    size: int,
    resize: int,
) -> EncodedDataset:
    """A data set whose classes are those that its training list numbers."""
    parts: dict[str, Split] = splits
    return EncodedDataset(
        name=name,
        train=parts["train"],
        val=parts.get("val"),
        test=parts["test"],
        num_classes=_classes(parts["train"]) or 0,
        mean=mean,
        std=std,
        source=f"{source}, chosen and labelled by lists",
        size=size,
        resize=resize,
    )


def _labels_and_names(
    builder: Any, split: str
) -> tuple[NDArray[np.int32], NDArray[np.bytes_] | None]:
    """From the cache, or else from the records."""
    with reading(builder, split):
        digest = hashlib.sha256()
        info = builder.info.splits[split]
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            found = os.stat(path)
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns} {length}\n".encode())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    stem = f"{builder.info.full_name.replace('/', '-')}-{split}-{digest.hexdigest()[:16]}"
    cache = Path(home) / "imbsam_jax" / "labels" / f"{stem}.npz"
    classes = builder.info.features["label"].num_classes
    with contextlib.suppress(DataError, KeyError):
        kept = read_npz(cache)
        labels, names = kept["labels"], kept["names"]
        whole = labels.dtype == np.int32 and labels.shape == (info.num_examples,)
        named = names.dtype.kind == "S" and names.shape in ((0,), labels.shape)
        if whole and named and 0 <= labels.min() <= labels.max() < classes:
            return labels, names if len(names) else None
    labels, names = _scan(builder, split, cache)
    with contextlib.suppress(OSError):  # without a cache the next run scans again
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as stream:
                np.savez(stream, labels=labels, names=names)
            partial.replace(cache)
        finally:
            partial.unlink(missing_ok=True)
    return labels, names if len(names) else None


def _scan(builder: Any, split: str, cache: Path) -> tuple[NDArray[np.int32], NDArray[np.bytes_]]:
    """Labels and names of all records, and nothing else of them decoded."""
    import tensorflow_datasets as tfds
    from rich.console import Console
    from rich.progress import Progress

    check_shards(builder, split)
    features = builder.info.features
    name = next((key for key in ("file_name", "filename") if key in features), None)
    wanted = ["label", name] if name else ["label"]
    # TFDS's own PartialDecoding needs TensorFlow.
    partial = tfds.features.FeaturesDict({key: features[key] for key in wanted})
    with reading(builder, split):
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def read(rows: range) -> list[tuple[int, bytes]]:
        with reading(builder, split):
            examples = [partial.deserialize_example_np(raw) for raw in source.__getitems__(rows)]
        # Of some truncated shards array_record reads empty records instead of raising.
        if any(example.get(key) is None for example in examples for key in wanted):
            raise DataError(
                f"the {split} split in {builder.data_dir} holds empty records: the files are "
                "damaged, prepare them again"
            )
        return [(example["label"], example[name] if name else b"") for example in examples]

    total = len(source)
    console = Console(stderr=True, quiet=total < _LONG_SCAN, soft_wrap=True, highlight=False)
    console.print(
        f"Reading the labels of {builder.info.full_name} {split} once, {total:,} records; they "
        f"are kept in {cache.parent}"
    )
    found: list[tuple[int, bytes]] = []
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    with Progress(console=console, transient=True) as bar, ThreadPoolExecutor(_READERS) as pool:
        task = bar.add_task("labels", total=total)
        for part in _in_order(pool, read, chunks):
            found += part
            bar.update(task, advance=len(part))
    with reading(builder, split):
        labels = np.array([label for label, _ in found], np.int32)
    return labels, np.array([row for _, row in found] if name else [], np.bytes_)


def _in_order(pool: ThreadPoolExecutor, function: Any, items: Sequence[Any]) -> Iterator[Any]:
    """Results in order; at the first error what has not begun is given up."""
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
