"""Which images a data set has: what changes its digest, written out by hand, and what repeats."""

import dataclasses
import hashlib
import types

import numpy as np
import pytest

from experiments.data import hold_out
from experiments.data.encoded import Subset
from experiments.data.identity import images_sha256, repeated, rows_sha256
from experiments.data.lists import FolderSplit
from experiments.data.records import TfdsSplit
from tiny import tiny_dataset


def sha(data):
    return hashlib.sha256(data).digest()


def whole(*told):
    return hashlib.sha256(b"".join(map(sha, told))).hexdigest()


def of_rows(labels, *told):
    """Labels, then a digest of whatever tells the images; its first 16 digits."""
    start = np.asarray(labels, "<i4").tobytes()
    return hashlib.sha256(start + b"".join(map(sha, told))).hexdigest()[:16]


def test_images_in_memory_are_told_by_their_pixels():
    data = hold_out(tiny_dataset(), 1, 0)
    told = {
        part: (f"uint8 ({rows}, 8, 8, 3)".encode(), getattr(data, f"{part}_images").tobytes())
        for part, rows in (("train", 73), ("test", 55), ("val", 5))
    }
    assert images_sha256(data) == whole(
        b"train", *told["train"], b"test", *told["test"], b"val", *told["val"]
    )
    assert rows_sha256(data) == {
        part: of_rows(getattr(data, f"{part}_labels"), *told[part]) for part in told
    }
    assert list(rows_sha256(tiny_dataset())) == ["train", "test"]


def files(*names, root="/images"):
    return FolderSplit(root, np.array(names), np.arange(len(names), dtype=np.int32))


def records(names):
    split = TfdsSplit.__new__(TfdsSplit)
    split.__setstate__({"split": "train", "labels": np.array([0, 1], np.int32)})
    split.names = names
    return split


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (files(b"a", b"b/c"), (b"a\0b/c",)),
        (files(b"a", b"b/c", root="elsewhere"), (b"a\0b/c",)),
        (records(None), (b"train", b"")),
        (records(np.array([b"x", b"y"])), (b"train", b"x\0y")),
    ],
)
def test_files_are_told_by_their_names(split, told):
    """Of a subset the rows, too: int64 in the order of bytes of the smaller end."""
    rows = np.array([1, 0], ">i8")
    part = Subset(split, rows, np.array([5, 6], np.int32))
    data = types.SimpleNamespace(train=part, test=split, val=None, train_labels=part.labels,
                                 test_labels=split.labels, val_labels=None)  # fmt: skip
    chosen = b"\x01" + bytes(15)
    assert images_sha256(data) == whole(b"train", *told, chosen, b"test", *told, b"val")
    assert rows_sha256(data) == {
        "train": of_rows([5, 6], *told, chosen), "test": of_rows([0, 1], *told),
    }  # fmt: skip


def test_images_of_another_kind_of_split_are_not_told_apart():
    data = types.SimpleNamespace(train=3, test=None, val=None)
    with pytest.raises(TypeError, match="what are the images of a int"):
        images_sha256(data)


def test_images_that_are_trained_on_too_are_counted():
    data = tiny_dataset()
    assert repeated(data, "test") == 0
    images = data.test_images.copy()
    images[:4] = data.train_images[[9, 9, 0, 70]]
    assert repeated(dataclasses.replace(data, test_images=images), "test") == 4
