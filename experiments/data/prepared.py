"""TensorFlow Datasets on disk, found and opened without TensorFlow; imported only when called."""

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.data import DataError
from experiments.host.inputs import open_regular, read_bytes, said_by

__all__ = ["check_shards", "check_split", "from_directory", "prepared_builder", "reading"]


def prepared_builder(
    name: str, data_dir: str | None, features: Collection[str], *, prepare: bool
) -> Any:
    """The TFDS builder of data that is on disk.

    Args:
      name: of the data set in TFDS.
      data_dir: folder of prepared data sets; None means the environment variable TFDS_DATA_DIR,
        or else the default of TensorFlow Datasets.
      features: that the data must have.
      prepare: whether to download and prepare what is not there, where TensorFlow is installed.

    Raises:
      DataError: packages, the data or a feature of it are absent, or it cannot be prepared.
    """
    needed = {
        "tensorflow_datasets": "tensorflow-datasets",
        "importlib_resources": "importlib-resources",  # TFDS imports it without requiring it
        "PIL": "pillow",
    }
    absent = [package for module, package in needed.items() if find_spec(module) is None]
    if absent:
        raise DataError(
            f"reading {name} needs packages that are not installed: pip install {' '.join(absent)}"
        )
    import tensorflow_datasets as tfds

    if data_dir is not None:
        origin = "--data-dir"
    elif data_dir := os.environ.get("TFDS_DATA_DIR"):
        origin = "TFDS_DATA_DIR"
    else:
        origin = "the default of TensorFlow Datasets"
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
    folder = Path(data_dir or "~/tensorflow_datasets").expanduser() / name
    for path in [*folder.glob("*/*.json"), *folder.glob("*/*.txt")]:
        if path.exists() and not path.is_file():  # a pipe would hang TFDS
            raise DataError(f"{path} is no regular file: {name} is damaged, prepare it again")
    with _opening(folder.glob("*/*"), f"{name} in {folder}"):
        builder: Any = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        if not prepare:
            raise DataError(
                f"{name} is not prepared in {builder.data_dir} (from {origin}): point --data-dir "
                f"or TFDS_DATA_DIR at a folder that holds {name} in array_record format, or make "
                f"it with the `prepare` extra (TensorFlow): tfds build {name} "
                "--file_format=array_record"
            )
        if find_spec("tensorflow") is None:
            raise DataError(
                f"{name} is not prepared in {builder.data_dir} (from {origin}): point --data-dir "
                f"or TFDS_DATA_DIR at a folder that holds {name} in array_record format, or "
                "install the `prepare` extra (TensorFlow) to have it downloaded there"
            )
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        print(f"{name} is not there yet: downloading and preparing it in {builder.data_dir}")
        try:
            builder.download_and_prepare()
        except Exception as error:  # network, disk and checksum errors have no common type
            raise DataError(f"{name} could not be prepared: {error}") from error
    found = builder.info.features
    named = isinstance(found, tfds.features.FeaturesDict)
    lacking = set(features) - set(found if named else ())
    if lacking:
        raise DataError(f"{builder.data_dir} has no feature {', '.join(sorted(lacking))}")
    return builder


def from_directory(directory: str) -> Any:
    """The TFDS builder of one version's folder, as the files there describe it.

    Raises:
      DataError: those files are damaged.
    """
    import tensorflow_datasets as tfds

    with _opening(Path(directory).glob("*"), directory):
        return tfds.builder_from_directory(directory)


def check_split(builder: Any, split: str) -> int:
    """The number of classes of a split whose records are as many as dataset_info.json says.

    Raises:
      DataError: there is no such split, or what the files say of it contradicts itself.
    """
    import tensorflow_datasets as tfds

    where = builder.data_dir
    if split not in builder.info.splits:
        raise DataError(f"{where} has no split {split}, only {', '.join(builder.info.splits)}")
    info, features = builder.info.splits[split], builder.info.features
    for name, kind in (("label", tfds.features.ClassLabel), ("image", tfds.features.Image)):
        known = isinstance(features, tfds.features.FeaturesDict) and name in features
        if not known or not isinstance(features[name], kind):
            raise DataError(f"{where}: features.json is damaged: {name} is no {kind.__name__}")
    label = features["label"]
    if not label.num_classes:
        raise DataError(f"{where}: features.json is damaged: label has no classes")
    if info.num_examples < 1 or min(info.shard_lengths) < 1:
        raise DataError(
            f"{where}: dataset_info.json is damaged: the {split} split has shards of "
            f"{info.shard_lengths} records"
        )
    # So many class names would not fit into memory.
    if label.num_classes > info.num_examples:
        raise DataError(
            f"{where}: features.json has {label.num_classes} classes, but the {split} split only "
            f"{info.num_examples} images"
        )
    # TFDS goes on without names where it cannot read them, and says nothing.
    names = Path(where) / "label.labels.txt"
    if names.exists():
        try:
            found = len({*filter(None, map(str.strip, read_bytes(names).decode().split("\n")))})
        except UnicodeDecodeError as error:
            raise DataError(f"{names} is damaged, prepare the data again: no UTF-8") from error
        if found != label.num_classes:
            raise DataError(
                f"{names} is damaged, prepare the data again: {found} different names for "
                f"{label.num_classes} classes"
            )
    return int(label.num_classes)


def check_shards(builder: Any, split: str) -> None:
    """Stops where a file of the split holds another number of records than dataset_info.json says.

    TFDS reads as many as that says, and of some truncated files empty ones.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    info = builder.info.splits[split]
    with reading(builder, split):
        if builder.info.file_format.value != "array_record":
            raise _needs_tensorflow(builder)
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            open_regular(path).close()
            try:
                reader = ArrayRecordReader(str(path))
                found = reader.num_records()
                reader.close()
            except Exception as error:  # often without a word
                raise ValueError(f"{path.name} is no whole array_record file") from error
            if found != length:
                raise DataError(
                    f"{path} holds {found} records, and dataset_info.json says {length}: the "
                    f"{split} split is damaged, prepare it again"
                )


@contextlib.contextmanager
def _opening(files: Iterable[Path], what: str) -> Iterator[None]:
    """Turns what TFDS raises on damaged descriptions into a DataError that names them."""
    try:
        yield
    except Exception as error:  # TFDS, protobuf and json raise a dozen kinds
        for file in sorted(files):
            if file.suffix == ".json":
                try:
                    whole = isinstance(json.loads(file.read_text("utf-8")), dict)
                except (OSError, ValueError, RecursionError):
                    whole = False
                if not whole:
                    raise DataError(f"{file} is damaged, prepare the data again") from error
        raise DataError(
            f"{what}: dataset_info.json, features.json or a .txt beside them is damaged, prepare "
            f"the data again: {said_by(error)}"
        ) from error


def _needs_tensorflow(builder: Any) -> DataError:
    return DataError(
        f"{builder.data_dir} is prepared in {builder.info.file_format.value} format, which "
        "cannot be read without TensorFlow: choose another --data-dir, for data in "
        "array_record format"
    )


@contextlib.contextmanager
def reading(builder: Any, split: str) -> Iterator[None]:
    """Turns what reading a split raises into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except NotImplementedError as error:  # TFDS's word for a format that it reads otherwise
        raise _needs_tensorflow(builder) from error
    except Exception as error:  # whatever damaged records make their readers raise
        raise DataError(
            f"the {split} split in {builder.data_dir} is unreadable: {said_by(error)}"
        ) from error
