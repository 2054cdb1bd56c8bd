"""Image data too large for memory: an `EncodedDataset` holds labels, and reads image files by row.

The counterpart of `experiments.data.Dataset`. A split knows its labels from the start and gives
back encoded files (JPEG, PNG) on demand; decoding, cropping and batching is `stream`'s work, in
worker processes, and the rest of augmentation the trainer's, on the device.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import imbsam_jax
from experiments.data import DataError, Dataset, check_classes, draw_held_out
from experiments.data.decode import decode_eval
from experiments.host.errors import RunError
from experiments.host.inputs import ascii_safe

__all__ = [
    "EncodedDataset",
    "Split",
    "Subset",
    "check_no_empty_class",
    "empty_classes",
    "finished",
    "hold_out_rows",
    "told_unreadable",
]


class Split(Protocol):
    """Rows of labelled image files, readable in any order.

    A split is pickled to worker processes, so it holds no open file: each process opens its own on
    the first read, and threads of one process may read at the same time.
    """

    @property
    def labels(self) -> NDArray[np.int32]:
        """int32[N], one label per row."""
        ...

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The image files of these rows in [0, N), in this order, still encoded.

        A row whose file is damaged gives what is left of it (b"" at the least), not an error.
        """
        ...

    def name(self, row: int) -> str:
        """What a message calls a row: its file, where it has one."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of another split, in an order of their own.

    Attributes:
      split: to read from.
      rows: int64[n], the rows of `split` that make up this one.
      labels: int32[n], of these rows; they may differ from those of `split`.
    """

    split: Split
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]

    def read(self, rows: Sequence[int]) -> list[bytes]:
        return self.split.read([int(self.rows[row]) for row in rows])

    def name(self, row: int) -> str:
        return self.split.name(int(self.rows[row]))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EncodedDataset:
    """Splits and constants of one classification task, checked when it is made.

    Attributes:
      name: of the data set, as in reports.
      train, test: the splits, none of them empty.
      val: a split to tune on, or None where nothing is held out.
      num_classes: number of classes.
      mean, std: per channel, of images scaled to 0..1; normalised is (x / 255 - mean) / std.
      many_above: a class is many-shot above this many training images.
      few_below: a class is few-shot below this many; at most many_above + 1.
      source: one line saying where it came from.
      class_names: one per class, or None.
      size: pixels of a side of the square that the model sees.
      resize: pixels of the shorter side in evaluation, of which the centre is cut; at least size.

    Raises:
      DataError: when made from parts that break the above.
    """

    name: str
    train: Split
    test: Split
    val: Split | None = None
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    many_above: int = 100
    few_below: int = 20
    source: str
    class_names: tuple[str, ...] | None = None
    size: int = 224
    resize: int = 256

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"{self.name}: num_classes must be 2 or more, not {self.num_classes}")
        self._check_split("train", self.train)
        self._check_split("test", self.test)
        if self.val is not None:
            self._check_split("val", self.val)
        if not len(self.mean) == len(self.std) == 3:
            raise DataError(
                f"{self.name}: mean and std have lengths {len(self.mean)} and {len(self.std)}, "
                "images are decoded to 3 channels"
            )
        check_classes(self)
        if not 1 <= self.size <= self.resize:
            raise DataError(
                f"{self.name}: size {self.size} must lie in [1, resize = {self.resize}]: it is cut "
                "out of the image resized so"
            )

    def _check_split(self, split: str, rows: Split) -> None:
        labels, where = rows.labels, f"{self.name}: the {split} split"
        if labels.dtype != np.int32 or labels.ndim != 1:
            raise DataError(f"{where} has labels {labels.dtype}{list(labels.shape)}, not int32[N]")
        if len(labels) == 0:
            raise DataError(f"{where} has no rows")
        outside = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(outside):
            raise DataError(
                f"{where} has label {labels[outside[0]]} in row {outside[0]}, outside "
                f"[0, {self.num_classes}) ({len(outside)} such rows)"
            )

    @property
    def train_labels(self) -> NDArray[np.int32]:
        return self.train.labels

    @property
    def test_labels(self) -> NDArray[np.int32]:
        return self.test.labels

    @property
    def val_labels(self) -> NDArray[np.int32] | None:
        return None if self.val is None else self.val.labels

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.size, self.size, 3)

    def class_counts(self) -> NDArray[np.int64]:
        """Number of training images of each class, int64[num_classes]."""
        return imbsam_jax.class_counts(self.train_labels, self.num_classes)


def check_no_empty_class(dataset: Dataset | EncodedDataset, allow: bool | None) -> None:
    """Stops where a class has no image to train or to test on: accuracies would leave it out.

    Args:
      dataset: what is checked. Its validation split is not: a class of one image gives it none.
      allow: whether there may be such classes; None where nobody can be asked to allow it.

    Raises:
      DataError: there are such classes and `allow` is not True; it names the first few.
    """
    if allow:
        return
    remedy = "" if allow is None else ", or train without them: --allow-empty-classes"
    both = (("training", dataset.train_labels), ("test", dataset.test_labels))
    if all(labels.min() == 1 for _, labels in both):
        raise DataError(
            f"{dataset.name}: class 0 has no training and no test image. Labels number the classes "
            f"from 0: if these begin at 1, take 1 off each{remedy}"
        )
    for split, labels in both:
        found = empty_classes(dataset, labels)
        if found:
            raise DataError(
                f"{dataset.name}: {found[0]} of {dataset.num_classes} classes have no {split} "
                f"image: {found[1]}. Check the data{remedy}"
            )


def empty_classes(
    dataset: Dataset | EncodedDataset, labels: NDArray[np.int32]
) -> tuple[int, str] | None:
    """How many classes none of these labels has, and the first few; None where there are none."""
    empty = np.flatnonzero(imbsam_jax.class_counts(labels, dataset.num_classes) == 0)
    if not len(empty):
        return None
    names = dataset.class_names
    first = [f"{c} ({names[c]})" if names else f"{c}" for c in empty[:5]]
    more = f" and {len(empty) - len(first)} more" if len(empty) > len(first) else ""
    return len(empty), f"{', '.join(first)}{more}"


def told_unreadable(dataset: Dataset | EncodedDataset, part: str) -> str:
    """ " (the first is NAME)" of the images of a part that cannot be decoded; "" where all can."""
    if isinstance(dataset, EncodedDataset):
        split: Split = getattr(dataset, part)
        for row in range(len(split.labels)):
            if decode_eval(split.read([row])[0], 1, 1) is None:
                return f" (the first is {ascii_safe(split.name(row))})"
    return ""


def hold_out_rows(dataset: EncodedDataset, per_class: int, seed: int) -> EncodedDataset:
    """Move up to `per_class` training images of every class into the validation split.

    The draw is that of `experiments.data.hold_out`: the same labels and seed hold out the same
    rows, and a class always keeps one to learn from.

    Args:
      dataset: one that has no validation split.
      per_class: at least 1.
      seed: of the draw.

    Returns:
      An EncodedDataset whose splits keep the order of the rows.

    Raises:
      ValueError: per_class < 1, or there is a validation split already.
      DataError: no class has two images.
    """
    if dataset.val is not None:
        raise ValueError(f"{dataset.name} has a validation split already")
    labels = dataset.train_labels
    held = draw_held_out(dataset.name, labels, dataset.class_counts(), per_class, seed)
    kept_rows, held_rows = np.flatnonzero(~held), np.flatnonzero(held)
    return dataclasses.replace(
        dataset,
        train=Subset(dataset.train, kept_rows, labels[kept_rows]),
        val=Subset(dataset.train, held_rows, labels[held_rows]),
        source=f"{dataset.source}; up to {per_class} images per class held out, seed {seed}",
    )


def finished(
    dataset: EncodedDataset, val_per_class: int, allow_empty_classes: bool
) -> EncodedDataset:
    """The data set, checked for empty classes and with so many images of a class held out."""
    check_no_empty_class(dataset, allow_empty_classes)
    if not val_per_class:
        return dataset
    if dataset.val is not None:
        raise RunError(f"{dataset.name} has a validation set of its own: leave --val-per-class out")
    return hold_out_rows(dataset, val_per_class, seed=0)
