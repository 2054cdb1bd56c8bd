"""Classes that no split tests or no fold holds, in a sentence."""

import numpy as np
import pandas as pd
import pytest

from experiments.bench.comparison import Recipe
from experiments.bench.lanes import Net
from experiments.bench.unseen import notes
from experiments.data.splits import Split
from experiments.data.table import Table
from experiments.host.errors import RunError


def table(labels, ids=None):
    labels = np.asarray(labels, np.int32)
    return Table(
        name="made", columns=pd.DataFrame({"x": np.zeros(len(labels))}), labels=labels,
        class_names=tuple(f"c{k}" for k in range(labels.max() + 1)),
        ids=None if ids is None else np.asarray(ids),
    )  # fmt: skip


def said(held, splits, folds=2):
    recipe = Recipe(Net(4, 1, len(held.class_names)), 1, 1, folds, 0)
    return notes(held, [Split(np.asarray(a), np.asarray(b)) for a, b in splits], recipe)


NEVER = "never tested, for it is in no test part: "
UNHELD = "in some split too few {} to be held out, so that settings are chosen without: "


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        (1, "class 'c0'"), (2, "classes 'c0', 'c1'"), (5, "classes 'c0', 'c1', 'c2', 'c3', 'c4'"),
        (6, "classes 'c0', 'c1', 'c2', 'c3', 'c4', ..."),
        (11, "classes 'c0', 'c1', 'c2', 'c3', 'c4', ..."),
    ],
)  # fmt: skip
def test_up_to_five_classes_are_named(classes, shown):
    """In order of their numbers; one more is tested."""
    held = table(np.tile(np.arange(classes + 1), 3)[::-1])
    train, test = np.arange(len(held.labels)), np.flatnonzero(held.labels == classes)
    assert said(held, [(train, test)]) == [NEVER + shown]


def test_a_class_with_one_row_to_train_on_is_in_no_fold():
    held = table([0, 0, 0, 1, 1, 2, 2, 2])
    whole, few = ([0, 1, 3, 4, 5, 6], [2, 7]), ([0, 1, 3, 5, 6], [2, 4, 7])
    assert said(held, [whole]) == [NEVER + "class 'c1'"]
    assert said(held, [few]) == [UNHELD.format("rows") + "class 'c1'"]
    assert said(held, [whole, few]) == [UNHELD.format("rows") + "class 'c1'"]  # in either split
    assert said(held, [few], folds=0) == []
    # With ids a split may train on no row of a class: that none is held out is no matter then.
    assert said(held, [([0, 1, 5, 6], [2, 3, 4, 7])]) == []


def test_of_ids_it_is_ids_that_are_held_out():
    held = table([0, 0, 0, 0, 1, 1], ids=[5, 5, 6, 6, 7, 7])
    split = (np.arange(6), np.arange(6))
    assert said(held, [split]) == [UNHELD.format("ids") + "class 'c1'"]
    assert said(table(held.labels), [split]) == []


def test_where_no_row_can_be_held_out_tuning_is_refused():
    with pytest.raises(
        RunError, match=r"no row can be held out to choose settings by: .*--no-tune"
    ):
        said(table([0, 1, 0, 1]), [([0, 1], [2, 3])])
    assert said(table([0, 1, 0, 1]), [([0, 1], [2, 3])], folds=0) == []
