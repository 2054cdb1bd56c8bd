"""TensorFlow Datasets on disk, found and opened without TensorFlow; imported only when called."""

import contextlib
import os
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from typing import Any

from experiments.data import DataError

__all__ = ["prepared_builder", "reading"]


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
    lacking = set(features) - set(builder.info.features)
    if lacking:
        raise DataError(f"{builder.data_dir} has no feature {', '.join(sorted(lacking))}")
    return builder


@contextlib.contextmanager
def reading(builder: Any, split: str) -> Iterator[None]:
    """Turns what reading a split raises into a DataError that names it."""
    try:
        yield
    except NotImplementedError as error:
        raise DataError(
            f"{builder.data_dir} is prepared in {builder.info.file_format.value} format, which "
            "cannot be read without TensorFlow: choose another --data-dir, for data in "
            "array_record format"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the {split} split in {builder.data_dir} is unreadable: {error}"
        ) from error
