"""Features that a frozen model made of a data set's images, in place of the images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import DataError, Dataset
from experiments.data.identity import rows_sha256
from experiments.host import inputs
from experiments.host.errors import RunError, reason
from experiments.host.folders import same_source

_PARTS = ("train", "test", "val")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Features(Dataset):
    """A `Dataset` whose images are float32[N, 1, 2, D]: an image's features, and its mirror's.

    Mirroring such an image changes one for the other. It has no mean and std: nothing is
    normalised. What describes its classes is of a data set that was checked when it was made.

    Attributes:
      rows_sha256: of the images that they were made of.
    """

    rows_sha256: dict[str, str]

    def __post_init__(self) -> None:
        for part in _PARTS:
            labels = getattr(self, f"{part}_labels")
            images = getattr(self, f"{part}_images")
            if (labels is None) != (images is None):
                raise DataError(f"{self.name}: {part} lacks features or labels")
            if labels is None:
                continue
            sides = (images.shape[:3], images.dtype)
            if images.ndim != 4 or sides != ((len(labels), 1, 2), np.float32):
                raise DataError(
                    f"{self.name}: features of {part} are {images.dtype}{list(images.shape)}, not "
                    f"float32[{len(labels)}, 1, 2, D]"
                )
            channels = self.train_images.shape[-1]
            if not images.shape[-1] == channels > 0:
                raise DataError(
                    f"{self.name}: an image of {part} has {images.shape[-1]} features, one of "
                    f"train {channels}"
                )
            if not np.isfinite(images).all():
                raise DataError(f"{self.name}: features of {part} are not finite")


def of(dataset: Any, found: dict[str, np.ndarray]) -> Features:
    """The features of each part of a data set (in memory or not) in the place of its images."""
    fields = {
        field.name: getattr(dataset, field.name)
        for field in dataclasses.fields(Dataset)
        if hasattr(dataset, field.name)
    }
    images = {f"{part}_images": found.get(part) for part in _PARTS}
    labels = {f"{part}_labels": getattr(dataset, f"{part}_labels") for part in _PARTS}
    made = {"mean": (), "std": (), "rows_sha256": rows_sha256(dataset)}
    return Features(**{**fields, **images, **labels, **made})


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuses a path that `save` could not write, before what it is to hold is computed."""
    with _beside(Path(path)) as partial:
        partial.touch()


def save(path: str | os.PathLike[str], found: dict[str, np.ndarray], made: dict[str, Any]) -> None:
    """Writes features by part as .npz, with what decided them.

    Raises:
      RunError: the system does not let us.
    """
    arrays: dict[str, Any] = {"made": np.asarray(json.dumps(made)), **found}
    with _beside(Path(path)) as partial:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Where to write what is to become that file; nothing of it stays there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except OSError as error:
        raise RunError(f"cannot keep features in {path}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load(path: str | os.PathLike[str], made: dict[str, Any], dataset: Any) -> Features:
    """What `save` wrote, in the place of the data set's images.

    Raises:
      DataError: it cannot be read, other things decided its features, or they do not fit.
    """
    arrays = inputs.read_npz(path)
    try:
        theirs = dict(json.loads(str(arrays.pop("made"))))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no features: nothing in it says how they were made"
        ) from error
    for name, value in made.items():
        same = same_source if name == "source" else operator.eq
        if not same(theirs.get(name), value):
            raise DataError(
                f"{path} holds other features: {name} is {theirs.get(name)!r:.80}, not "
                f"{value!r:.80}; name another file"
            )
    try:
        return of(dataset, arrays)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
