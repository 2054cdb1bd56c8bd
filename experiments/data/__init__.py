"""Image data under one contract: a `Dataset` holds everything a run needs to know about its data.

Each file here has one loader that returns a `Dataset`; the trainer takes nothing else. Images stay
uint8 and unaugmented: normalising and augmenting is the trainer's work, on the device. `save_npz`
and `load_npz` carry a `Dataset` to machines that cannot read the original files. A loader raises
`DataError` for data that is absent or bad; an entry point prints its message as the one last line
and exits with code 1.
"""

import dataclasses
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import imbsam_jax

__all__ = [
    "DataError", "Dataset", "draw_held_out", "filled", "hold_out", "load_npz", "save_npz", "shrunk",
]  # fmt: skip

# What NumPy raises, by version and kind of damage, on reading a file that is no whole .npz.
_NOT_AN_NPZ = (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


class DataError(Exception):
    """Data that is absent, unreadable or contradicts itself; the message says what to do."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Images and labels of one classification task, checked when it is made.

    Attributes:
      name: of the data set, as in reports.
      train_images: uint8[N, H, W, C].
      train_labels: int32[N] in [0, num_classes).
      test_images: uint8[M, H, W, C], of the same H, W, C.
      test_labels: int32[M].
      val_images, val_labels: as above, or both None where nothing is held out.
      num_classes: number of classes.
      mean, std: per channel, of images scaled to 0..1; normalised is (x / 255 - mean) / std.
      many_above: a class is many-shot above this many training images.
      few_below: a class is few-shot below this many; at most many_above + 1.
      source: one line saying where it came from, the rule that chose the subset included.
      class_names: one per class, or None.

    Raises:
      DataError: when made from arrays that break the above.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    val_images: NDArray[np.uint8] | None = None
    val_labels: NDArray[np.int32] | None = None
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    many_above: int
    few_below: int
    source: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_split("train", self.train_images, self.train_labels)
        self._check_split("test", self.test_images, self.test_labels)
        if self.val_images is not None and self.val_labels is not None:
            self._check_split("val", self.val_images, self.val_labels)
        elif self.val_images is not None or self.val_labels is not None:
            raise DataError(f"{self.name}: val_images and val_labels must come together")
        channels = self.train_images.shape[-1]
        if not len(self.mean) == len(self.std) == channels:
            raise DataError(
                f"{self.name}: mean and std have lengths {len(self.mean)} and {len(self.std)}, "
                f"the images have {channels} channels"
            )
        check_classes(self)

    def _check_split(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        where = f"{self.name}: {split}"
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise DataError(
                f"{where}_images must be uint8[N, H, W, C] with N > 0, not "
                f"{images.dtype}{list(images.shape)}"
            )
        if images.shape[1:] != self.train_images.shape[1:]:
            raise DataError(
                f"{where}_images are {images.shape[1:]}, but train_images are "
                f"{self.train_images.shape[1:]}"
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{where}_labels must be int32[{len(images)}], not "
                f"{labels.dtype}{list(labels.shape)}"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise DataError(
                f"{where}_labels lie in [{labels.min()}, {labels.max()}], outside "
                f"[0, {self.num_classes})"
            )

    def class_counts(self) -> NDArray[np.int64]:
        """Number of training images of each class, int64[num_classes]."""
        return imbsam_jax.class_counts(self.train_labels, self.num_classes)


def check_classes(dataset: Any) -> None:
    """DataError where the shot thresholds overlap or the class names are not one a class."""
    name, above = dataset.name, dataset.many_above + 1
    if dataset.few_below > above:
        raise DataError(
            f"{name}: few_below {dataset.few_below} is above many_above + 1 = {above}, so a class "
            "could be both many and few"
        )
    names = dataset.class_names
    if names is not None and len(names) != dataset.num_classes:
        raise DataError(f"{name}: {len(names)} class names for {dataset.num_classes} classes")


def filled(class_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts, with that of the smallest class for one that has no image at all.

    No row ever has such a class, so that what it is given does not matter; but it must not become
    the rarest, to which margins and weights are scaled.
    """
    smallest = class_counts[class_counts > 0].min()
    return np.where(class_counts == 0, smallest, class_counts)


def hold_out(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    """Move up to `per_class` training images of every class into the validation split.

    A class of n images gives min(per_class, n - 1): it always keeps one to learn from, so the
    smallest classes give fewer, and a class of one image gives none. `class_counts()` of the
    result counts what is left, and so do rules and shot splits built from it.

    Args:
      dataset: one that holds nothing out yet.
      per_class: at least 1.
      seed: the draw is the same for the same seed.

    Returns:
      A Dataset whose remaining training images keep their order.

    Raises:
      ValueError: per_class < 1, or something is held out already.
      DataError: no class has two images.
    """
    if dataset.val_labels is not None:
        raise ValueError(f"{dataset.name} has a validation split already")
    held = draw_held_out(
        dataset.name, dataset.train_labels, dataset.class_counts(), per_class, seed
    )
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[~held],
        train_labels=dataset.train_labels[~held],
        val_images=dataset.train_images[held],
        val_labels=dataset.train_labels[held],
        source=f"{dataset.source}; up to {per_class} images per class held out, seed {seed}",
    )


def draw_held_out(
    name: str, labels: NDArray[np.int32], counts: NDArray[np.int64], per_class: int, seed: int
) -> NDArray[np.bool_]:
    """Which training rows `hold_out` moves, bool[N]; the rule and the errors are told there."""
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}, but holding out takes at least 1")
    # RandomState's stream is frozen for good; Generator's may change with a NumPy release.
    rng = np.random.RandomState(seed)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    held = np.zeros(len(labels), bool)
    for members in by_class:
        held[rng.permutation(members)[: min(per_class, max(len(members) - 1, 0))]] = True
    if not held.any():
        raise DataError(f"{name}: no class has two images, so none can be held out")
    return held


def shrunk(dataset: Dataset, factor: int) -> Dataset:
    """The data set with every factor x factor pixels averaged: cheap to train on, for a CPU.

    Raises:
      ValueError: factor < 1.
      DataError: the images cannot be divided so.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}, but shrinking takes at least 1")
    if factor == 1:
        return dataset
    height, width = dataset.train_images.shape[1:3]
    if height % factor or width % factor:
        raise DataError(
            f"{dataset.name}: images of {height} x {width} cannot be cut into squares of {factor}"
        )

    def small(images: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        if images is None:
            return None
        n, _, _, channels = images.shape
        squares = images.reshape(n, height // factor, factor, width // factor, factor, channels)
        return np.rint(squares.mean((2, 4), np.float32)).astype(np.uint8)

    parts = ("train_images", "test_images", "val_images")
    images: dict[str, Any] = {part: small(getattr(dataset, part)) for part in parts}
    return dataclasses.replace(
        dataset, **images, source=f"{dataset.source}; every {factor}x{factor} pixels averaged"
    )


def save_npz(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a Dataset as one .npz file (fields that are None are left out)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
    arrays: dict[str, Any] = {
        key: np.asarray(value) for key, value in fields.items() if value is not None
    }
    # Written beside the target and renamed, so that a killed export leaves no half file behind.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_npz(path: str | os.PathLike[str]) -> Dataset:
    """Read what `save_npz` wrote; nothing in the file is unpickled.

    Raises:
      DataError: there is no such file, it is no .npz, a key is missing, or the arrays break the
        contract of Dataset.
    """
    try:
        # Opened here: of a damaged file NumPy would leave its own handle open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: write it with save_npz") from error
    except _NOT_AN_NPZ as error:
        raise DataError(f"{path} is not an .npz file written by save_npz: {error}") from error
    missing = [
        field.name
        for field in dataclasses.fields(Dataset)
        if field.default is dataclasses.MISSING and field.name not in arrays
    ]
    if missing:
        raise DataError(f"{path} lacks the key {', '.join(missing)}: write it with save_npz")
    names = arrays.get("class_names")
    try:
        return Dataset(
            name=str(arrays["name"]),
            train_images=arrays["train_images"],
            train_labels=arrays["train_labels"],
            test_images=arrays["test_images"],
            test_labels=arrays["test_labels"],
            val_images=arrays.get("val_images"),
            val_labels=arrays.get("val_labels"),
            num_classes=int(arrays["num_classes"]),
            mean=tuple(arrays["mean"].tolist()),
            std=tuple(arrays["std"].tolist()),
            many_above=int(arrays["many_above"]),
            few_below=int(arrays["few_below"]),
            source=str(arrays["source"]),
            class_names=None if names is None else tuple(names.tolist()),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
