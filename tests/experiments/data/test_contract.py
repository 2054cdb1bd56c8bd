"""Both kinds of data set keep the contract that the package states."""

import dataclasses
import inspect
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from experiments import data
from experiments.data import features
from experiments.data.encoded import EncodedDataset, Subset, finished, hold_out_rows
from experiments.data.lists import FolderSplit
from experiments.data.table import Table
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


def featured():
    dataset = tiny_dataset()
    found = {
        part: np.ones((len(getattr(dataset, f"{part}_labels")), 1, 2, 3), np.float32)
        for part in ("train", "test")
    }
    return features.of(dataset, found)


def subset():
    return Subset(Rows(np.arange(3, dtype=np.int32)), np.arange(2), np.arange(2, dtype=np.int32))


def folder():
    return FolderSplit("/images", np.array([b"a.jpg", b"b.jpg"]), np.arange(2, dtype=np.int32))


def table():
    columns = pd.DataFrame({"x": [0.5, 1.5]})
    return Table(name="t", columns=columns, labels=np.array([0, 1]), class_names=("a", "b"))


@pytest.mark.parametrize("make", [tiny_dataset, encoded, featured, subset, folder, table])
def test_what_was_checked_when_it_was_made_stays_so(make):
    """No field is set anew; and two of the same fields are two, for arrays have no one answer."""
    one, other = make(), make()
    name = dataclasses.fields(one)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, name, getattr(one, name))
    assert one != other and len({one, other}) == 2


@pytest.mark.parametrize("make", [tiny_dataset, encoded, featured, table])
def test_fields_are_given_by_name(make):
    kinds = {each.kind for each in inspect.signature(type(make())).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("dataset", [tiny_dataset(), encoded()], ids=["memory", "files"])
@pytest.mark.parametrize(
    ("taken", "refused"),
    [
        ({"many_above": 2**31 - 1}, {"many_above": 2**31}),
        ({"many_above": 0, "few_below": 0}, {"many_above": -1}),
        ({"few_below": 2**31 - 1, "many_above": 2**31 - 1}, {"few_below": 2**31}),
        ({"few_below": 0}, {"few_below": -1}),
        # Of a class of n images few is n < few_below, many n > many_above: never both.
        ({"many_above": 9, "few_below": 10}, {"many_above": 9, "few_below": 11}),
        ({"mean": (0, 0.5, 1)}, {"mean": (0.5, 0.5, 1.001)}),
        ({"mean": (0, 0, 0)}, {"mean": (-0.001, 0.5, 0.5)}),
        # A hundredth of 1 / 255, the step between two values of a pixel.
        ({"std": (4e-5, 0.5, 1)}, {"std": (0.5, 3.9e-5, 0.5)}),
        ({"std": (1, 1, 1)}, {"std": (0.5, 0.5, 1.001)}),
        ({"class_names": tuple("abcde")}, {"class_names": tuple("abcdef")}),
        ({"class_names": None}, {"class_names": tuple("abcd")}),
    ],
)
def test_both_kinds_have_one_range_of_what_describes_classes_and_pixels(dataset, taken, refused):
    found = dataclasses.replace(dataset, **taken)
    assert {name: getattr(found, name) for name in taken} == taken
    with pytest.raises(DataError, match=f"{dataset.name}: .*{list(refused)[-1]}"):
        dataclasses.replace(dataset, **refused)


def test_a_streamed_set_holds_out_by_seed_0():
    held, other = finished(encoded(), 2, False), hold_out_rows(encoded(), 2, 0)
    np.testing.assert_array_equal(held.val.rows, other.val.rows)
    assert held.source == "made by the tests; up to 2 images per class held out, seed 0"
    assert held.train.rows.tolist() == sorted(set(range(78)) - set(held.val.rows.tolist()))
    whole = encoded()
    assert finished(whole, 0, False) is whole


def test_a_streamed_set_is_finished_as_the_flags_say():
    held = finished(encoded(), 2, False)
    assert class_counts(held.val_labels, 5).tolist() == [2] * 5
    np.testing.assert_array_equal(held.class_counts() + 2, COUNTS)
    with pytest.raises(RunError, match="a validation set of its own: leave --val-per-class out"):
        finished(held, 2, False)
    with pytest.raises(DataError, match="1 of 3 classes have no training image"):
        finished(encoded((5, 0, 2)), 0, False)
    assert finished(encoded((5, 0, 2)), 0, True).class_counts().tolist() == [5, 0, 2]
