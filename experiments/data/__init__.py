"""Image data under one contract, which two kinds of data set keep.

A loader returns a `Dataset`, whole in memory, or an `EncodedDataset` (encoded.py), whose image
files are read while a run trains. Of either a run knows

    name, source                            what it is called, and one line on where it came from
    num_classes, class_names                C; names are one per class, or None
    train_labels, test_labels, val_labels   int32[N] in [0, C); None where no image is held out
    class_counts()                          int64[C] training images of each class
    image_shape                             (H, W, channels) of an image as a model is given it
    mean, std                               per channel, of images scaled to 0..1
    many_above, few_below                   a class is many-shot above, few-shot below so many

and takes nothing else, but for the images: uint8[N, H, W, C] as `train_images` and the like, or
`train`, `test` and `val` that read encoded files by row, with `size` and `resize`, what they are
cut and scaled to. Images stay unaugmented: which rows a step
has is decided here (sampling.py), what happens to them too (augment.py), and both are called by
the run, on the device where they can be.

`save_npz` and `load_npz` carry a `Dataset` to machines that cannot read the original files. A
loader raises `DataError` for data that is absent or bad; an entry point prints its message as the
one last line and exits with code 1.

Tables are not images, and go another way: files.py (a file as a frame), roles.py and usable.py with
table.py (columns and classes, checked), splits.py (which rows are trained on), columns.py (their
numbers).
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import imbsam_jax
from experiments.host import inputs
from experiments.host.errors import DataError

__all__ = [
    "DataError", "Dataset", "draw_held_out", "filled", "hold_out", "load_npz", "save_npz", "shrunk",
]  # fmt: skip

# A hundredth of the step between two values of a pixel.
_LEAST_STD = 4e-5
_SUBSETS = ("first", "shuffled")


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
      imbalance_factor, subset, subset_seed: of a set cut out of a whole one what was asked for,
        largest over smallest class, and which images of a class stayed (see `load_cifar_lt`); None
        where nothing was cut out, or where that is not known.
      shrink: pixels of a side that were averaged into one.
      val_per_class: training images of a class that were held out as val at most, 0 where none
        were or that is not known.

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
    imbalance_factor: float | None = None
    subset: str | None = None
    subset_seed: int | None = None
    shrink: int = 1
    val_per_class: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"{self.name}: num_classes must be 2 or more, not {self.num_classes}")
        self._check_split("train", self.train_images, self.train_labels)
        # A class has an image or two somewhere; so many counts would not fit into memory.
        if self.num_classes > len(self.train_labels):
            raise DataError(
                f"{self.name}: num_classes is {self.num_classes}, but there are only "
                f"{len(self.train_labels)} training images to learn them from"
            )
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
        self._check_making()

    def _check_making(self) -> None:
        """How the set was made, as far as it is known."""
        factor, subset, seed = self.imbalance_factor, self.subset, self.subset_seed
        for name, wrong, right in (
            ("imbalance_factor", factor is not None and not 1 <= factor <= 1e9, "in [1, 1e9]"),
            ("subset", subset is not None and subset not in _SUBSETS, " or ".join(_SUBSETS)),
            ("subset_seed", seed is not None and not 0 <= seed < 2**32, "in [0, 2**32)"),
            ("shrink", not 1 <= self.shrink < 2**31, "in [1, 2**31)"),
            ("val_per_class", not 0 <= self.val_per_class < 2**31, "in [0, 2**31)"),
            (
                "val_per_class",
                self.val_per_class > 0 and self.val_labels is None,
                "0 without val_images",
            ),
        ):
            if wrong:
                value = getattr(self, name)
                raise DataError(f"{self.name}: {name} must be {right}, not {value!r}")

    def _check_split(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        where = f"{self.name}: {split}"
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise DataError(
                f"{where}_images must be uint8[N, H, W, C] with N > 0 and no other 0, not "
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

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.train_images.shape[1:]

    def class_counts(self) -> NDArray[np.int64]:
        """Number of training images of each class, int64[num_classes]."""
        return imbsam_jax.class_counts(self.train_labels, self.num_classes)


def check_classes(dataset: Any) -> None:
    """DataError where the fields of both kinds of data set that describe classes and pixels are
    out of their range or contradict one another.
    """
    name = dataset.name
    for field in ("many_above", "few_below"):
        if not 0 <= getattr(dataset, field) < 2**31:
            raise DataError(
                f"{name}: {field} must lie in [0, 2**31), not {getattr(dataset, field)}"
            )
    if dataset.few_below > dataset.many_above + 1:
        raise DataError(
            f"{name}: few_below {dataset.few_below} is above many_above + 1 = "
            f"{dataset.many_above + 1}, so a class could be both many and few"
        )
    if not all(0 <= mean <= 1 for mean in dataset.mean):
        raise DataError(
            f"{name}: mean must lie in [0, 1], of images scaled so, not {list(dataset.mean)}"
        )
    if not all(_LEAST_STD <= std <= 1 for std in dataset.std):
        raise DataError(
            f"{name}: std must lie in [{_LEAST_STD:g}, 1], of images scaled to [0, 1], not "
            f"{list(dataset.std)}"
        )
    names = dataset.class_names
    if names is not None and len(names) != dataset.num_classes:
        raise DataError(
            f"{name}: class_names: {len(names)} class names for {dataset.num_classes} classes"
        )


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
        val_per_class=per_class,
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
      DataError: the images cannot be divided so, or have been shrunk already.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}, but shrinking takes at least 1")
    if factor == 1:
        return dataset
    if dataset.shrink > 1:
        raise DataError(
            f"{dataset.name} has every {dataset.shrink} x {dataset.shrink} pixels averaged "
            f"already, and would be shrunk by {factor} once more: leave --shrink out"
        )
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
        dataset,
        **images,
        source=f"{dataset.source}; every {factor}x{factor} pixels averaged",
        shrink=factor,
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


# How each field is read from the array of its key.
_READ: dict[str, Callable[[NDArray[Any], str], Any]] = {
    "name": inputs.line, "source": inputs.line, "class_names": inputs.lines,
    "train_images": inputs.array, "train_labels": inputs.array, "test_images": inputs.array,
    "test_labels": inputs.array, "val_images": inputs.array, "val_labels": inputs.array,
    "num_classes": inputs.whole, "many_above": inputs.whole, "few_below": inputs.whole,
    "mean": inputs.numbers, "std": inputs.numbers, "imbalance_factor": inputs.real,
    "subset": inputs.line, "subset_seed": inputs.whole, "shrink": inputs.whole,
    "val_per_class": inputs.whole,
}  # fmt: skip


def load_npz(path: str | os.PathLike[str]) -> Dataset:
    """Read what `save_npz` wrote; nothing in the file is unpickled.

    Raises:
      DataError: there is no such file, it is no .npz, a key is missing or unknown, or the arrays
        break the contract of Dataset; the message names the file, and the key where there is one.
    """
    arrays = inputs.read_npz(path)
    fields = dataclasses.fields(Dataset)
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in arrays]
    if missing:
        raise DataError(f"{path} lacks the key {', '.join(missing)}: write it with save_npz")
    unknown = sorted(arrays.keys() - _READ.keys())
    if unknown:
        raise DataError(
            f"{path} holds the unknown key {', '.join(unknown)}: write it with save_npz"
        )
    read = {key: _READ[key](value, f"{path}: {key}") for key, value in arrays.items()}
    try:
        return Dataset(**read)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
