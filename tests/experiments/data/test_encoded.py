"""Data sets of encoded images: the contract, rows held out, subsets."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.data import DataError, Dataset, hold_out
from experiments.data.encoded import (
    EncodedDataset,
    Subset,
    check_no_empty_class,
    empty_classes,
    hold_out_rows,
    told_unreadable,
)
from experiments.data.lists import FolderSplit
from tiny import tiny_dataset


@dataclasses.dataclass(frozen=True)
class _Split:
    """Row i of it reads as b"i"."""

    labels: np.ndarray

    def read(self, rows: Sequence[int]) -> list[bytes]:
        return [str(row).encode() for row in rows]


def _encoded(train: Any = (0, 1, 0, 2, 0, 1), **changes: Any) -> EncodedDataset:
    fields: dict[str, Any] = {
        "name": "tiny",
        "train": train if hasattr(train, "read") else _Split(np.array(train, np.int32)),
        "test": _Split(np.array([0, 1, 2], np.int32)),
        "num_classes": 3,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "source": "made here",
        **changes,
    }
    return EncodedDataset(**fields)


def test_encoded_dataset() -> None:
    data = _encoded()
    assert data.train_labels.tolist() == [0, 1, 0, 2, 0, 1]
    assert (data.test_labels.tolist(), data.val_labels) == ([0, 1, 2], None)
    assert data.class_counts().tolist() == [3, 2, 1] and data.class_counts().dtype == np.int64
    assert (data.many_above, data.few_below, data.size, data.resize) == (100, 20, 224, 256)
    assert _encoded(size=256).size == 256 and _encoded(size=1).size == 1
    two = _Split(np.array([0, 1], np.int32))
    assert _encoded(train=[0, 1], test=two, num_classes=2).num_classes == 2


def test_the_first_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """Of files by their path, of rows of another split by that one's; arrays have none."""
    for number, name in enumerate(("0.png", "1.png", "größe.tif", "3.png")):
        Image.new("RGB", (3, 2), (number, 0, 0)).save(tmp_path / name)
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    files = np.array([name.encode() for name in ("0.png", "1.png", "größe.tif", "3.png")])
    split = FolderSplit(str(tmp_path), files, np.array([0, 1, 2, 0], np.int32))
    rows = np.array([1, 3, 0])
    some = Subset(split, rows, split.labels[rows])
    whole_ones = Subset(split, rows[::2], split.labels[rows[::2]])
    data = _encoded(train=split, val=some, test=whole_ones)
    assert told_unreadable(data, "train") == f" (the first is {tmp_path}/größe.tif)"
    assert told_unreadable(data, "val") == f" (the first is {tmp_path}/3.png)"
    assert told_unreadable(data, "test") == ""
    assert told_unreadable(tiny_dataset(), "train") == ""


def test_images_are_squares_of_three_channels() -> None:
    assert _encoded().image_shape == (224, 224, 3) and _encoded(size=9).image_shape == (9, 9, 3)


def test_bounds_of_an_encoded_set() -> None:
    """A row a split, two classes and a pixel are enough; labels from 0 to below the classes."""
    one = _Split(np.zeros(1, np.int32))
    least = _encoded(train=[1], test=one, val=one, num_classes=2, size=1, resize=1)
    assert least.val_labels is not None and least.val_labels.tolist() == [0]
    for changes in (
        {"num_classes": 1, "train": [0], "test": one}, {"size": 0}, {"size": 3, "resize": 2},
        {"train": [0, 3]}, {"val": _Split(np.array([-1], np.int32))}, {"std": (0.2,) * 4},
        {"mean": (0.5,) * 2, "std": (0.2,) * 2}, {"test": _Split(np.zeros((1, 1), np.int32))},
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"^tiny: "):
            _encoded(**changes)


def test_of_empty_classes_the_first_five_are_told() -> None:
    for empty, shown in ((5, "1, 2, 3, 4, 5"), (6, "1, 2, 3, 4, 5 and 1 more")):
        data = _encoded(train=[0] * (empty + 1), num_classes=empty + 1)
        assert empty_classes(data, data.train_labels) == (empty, shown)
    data = _encoded(test=_Split(np.array([0, 2], np.int32)))
    assert empty_classes(data, data.train_labels) is None
    for allow, remedy in ((False, ", or train without them: --allow-empty-classes"), (None, "")):
        with pytest.raises(DataError) as refused:
            check_no_empty_class(data, allow)
        said = f"tiny: 1 of 3 classes have no test image: 1. Check the data{remedy}"
        assert str(refused.value) == said


def test_of_labels_that_begin_at_1_it_is_said() -> None:
    """Whoever allowed an empty class would have one too many in every row of the classifier."""
    data = _encoded(train=[1, 1, 2], test=_Split(np.array([2, 1], np.int32)))
    for allow, remedy in ((False, ", or train without them: --allow-empty-classes"), (None, "")):
        with pytest.raises(DataError) as refused:
            check_no_empty_class(data, allow)
        assert str(refused.value) == (
            "tiny: class 0 has no training and no test image. Labels number the classes from 0: if "
            f"these begin at 1, take 1 off each{remedy}"
        )
    check_no_empty_class(data, allow=True)
    tested = dataclasses.replace(data, test=_Split(np.array([0, 1, 2], np.int32)))
    with pytest.raises(DataError, match=r"1 of 3 classes have no training image: 0\. "):
        check_no_empty_class(tested, allow=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": [0, 1, 3, 5]},
            r"train split has label 3 in row 2, outside \[0, 3\) \(2 such rows\)",
        ),
        ({"test": _Split(np.array([0, -1], np.int32))}, "test split has label -1 in row 1"),
        ({"val": _Split(np.array([9], np.int32))}, "val split has label 9 in row 0"),
        ({"train": []}, "train split has no rows"),
        ({"test": _Split(np.array([0, 1]))}, r"test split has labels int64\[2\], not int32\[N\]"),
        ({"mean": (0.5, 0.5)}, "lengths 2 and 3"),
        ({"few_below": 102}, "few_below 102 is above many_above"),
        ({"class_names": ("a", "b")}, "2 class names for 3 classes"),
        ({"num_classes": 1, "train": [0]}, "num_classes must be 2 or more, not 1"),
        ({"size": 257}, r"size 257 must lie in \[1, resize = 256\]"),
    ],
)
def test_contract_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"tiny: .*{message}"):
        _encoded(**changes)


def test_empty_classes() -> None:
    check_no_empty_class(_encoded(), allow=False)
    data = _encoded(train=[0, 0], num_classes=9)
    check_no_empty_class(data, allow=True)
    expected = (
        r"8 of 9 classes have no training image: 1, 2, 3, 4, 5 and 3 more\. .*--allow-empty-classes"
    )
    with pytest.raises(DataError, match=expected):
        check_no_empty_class(data, allow=False)
    named = _encoded(train=[0, 2], class_names=("ant", "bee", "cow"))
    with pytest.raises(DataError, match=r"1 of 3 classes have no training image: 1 \(bee\)\. "):
        check_no_empty_class(named, allow=False)


@pytest.mark.parametrize("per_class", [1, 2])
def test_rows_are_held_out_by_the_draw_of_hold_out(per_class: int) -> None:
    labels = np.random.RandomState(5).permutation(np.repeat([0, 1, 2], [6, 3, 1])).astype(np.int32)
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    plain = hold_out(
        Dataset(
            name="tiny", train_images=images, train_labels=labels, test_images=images,
            test_labels=labels, num_classes=3, mean=(0.5,) * 3, std=(0.2,) * 3, many_above=100,
            few_below=20, source="made here",
        ),
        per_class,
        seed=3,
    )  # fmt: skip
    held = hold_out_rows(_encoded(train=labels), per_class, seed=3)
    assert plain.val_images is not None and held.val is not None
    for split, rows in ((held.train, plain.train_images), (held.val, plain.val_images)):
        rows = rows[:, 0, 0, 0]
        assert split.read(range(len(rows))) == [str(row).encode() for row in rows]
        assert split.labels.tolist() == labels[rows].tolist()
    assert held.source == plain.source
    assert held.class_counts().tolist() == plain.class_counts().tolist()


def test_holding_out_rows_wrongly() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        hold_out_rows(_encoded(), 0, seed=0)
    with pytest.raises(ValueError, match="validation split already"):
        hold_out_rows(hold_out_rows(_encoded(), 1, seed=0), 1, seed=0)
    with pytest.raises(DataError, match="no class has two images"):
        hold_out_rows(_encoded(train=[0, 1, 2]), 1, seed=0)


def test_subsets_of_subsets() -> None:
    labels = np.arange(10, dtype=np.int32)
    half = Subset(_Split(labels), np.arange(1, 10, 2), labels[1::2])
    one = Subset(half, np.array([4, 0]), half.labels[[4, 0]])
    assert one.read([1, 0]) == [b"1", b"9"] and one.labels.tolist() == [9, 1]
