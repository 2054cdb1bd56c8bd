"""The records of a prepared TensorFlow data set (array_record), read without TensorFlow.

Their labels and file names stand beside the images: they are scanned once and kept.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.data import DataError
from experiments.data.prepared import check_shards, check_split, from_directory, reading
from experiments.host.inputs import read_npz, said_by

__all__ = ["TfdsSplit"]

_CHUNK = 256
_READERS = 8
_LONG_SCAN = 20_000


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

    def __init__(self, directory: str | os.PathLike[str], split: str):
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
                f"the {self.split} split in {self.directory} is unreadable: {said_by(error)}"
            ) from error
        return [record["image"] or b"" for record in records]

    def name(self, row: int) -> str:
        file = "" if self.names is None else f" ({self.names[row].decode(errors='replace')})"
        return f"record {row} of {self.split}{file}"

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
        pool.shutdown(cancel_futures=True)
