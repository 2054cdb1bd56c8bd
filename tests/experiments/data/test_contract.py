"""Both kinds of data set keep the contract that the package states."""

import re
from typing import NamedTuple

import numpy as np
import pytest

from experiments import data
from experiments.data.encoded import EncodedDataset, finished
from experiments.host.errors import DataError, RunError
from imbsam_jax import class_counts
from tiny import COUNTS, tiny_dataset


class Rows(NamedTuple):
    """A split of no images."""

    labels: np.ndarray

    def read(self, rows):
        return [b""] * len(rows)


def encoded(counts=COUNTS):
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return EncodedDataset(
        name="files", train=Rows(labels), test=Rows(np.arange(len(counts), dtype=np.int32)),
        num_classes=len(counts), mean=(0.5,) * 3, std=(0.2,) * 3, source="made by the tests",
    )  # fmt: skip


STATED = [
    name.strip().removesuffix("()")
    for line in re.findall(r"^    (\w.*?)  ", data.__doc__, re.MULTILINE)
    for name in line.split(",")
]


@pytest.mark.parametrize("dataset", [tiny_dataset(), encoded()], ids=["memory", "files"])
def test_what_the_package_states_is_there(dataset):
    assert {"name", "train_labels", "class_counts", "mean", "many_above"} <= set(STATED)
    assert [name for name in STATED if not hasattr(dataset, name)] == []
    counts = dataset.class_counts()
    np.testing.assert_array_equal(counts, class_counts(dataset.train_labels, dataset.num_classes))
    assert counts.tolist() == list(COUNTS) and dataset.train_labels.dtype == np.int32
    assert dataset.val_labels is None and len(dataset.mean) == len(dataset.std) == 3


def test_a_streamed_set_is_finished_as_the_flags_say():
    held = finished(encoded(), 2, False)
    assert class_counts(held.val_labels, 5).tolist() == [2] * 5
    np.testing.assert_array_equal(held.class_counts() + 2, COUNTS)
    with pytest.raises(RunError, match="a validation set of its own: leave --val-per-class out"):
        finished(held, 2, False)
    with pytest.raises(DataError, match="1 of 3 classes have no training image"):
        finished(encoded((5, 0, 2)), 0, False)
    assert finished(encoded((5, 0, 2)), 0, True).class_counts().tolist() == [5, 0, 2]
