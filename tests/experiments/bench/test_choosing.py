"""Folds by hand, and what a prediction is judged by at its ends."""

import numpy as np
import pytest

from experiments.bench.choosing import criterion, folds


def sizes(counts, number, ids=None):
    """Of each fold the rows of each class, of so many rows a class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    held = folds(np.arange(len(labels)), labels, number, np.random.default_rng(0), ids)
    return [np.bincount(labels[fold], minlength=len(counts)).tolist() for fold in held]


@pytest.mark.parametrize(
    ("counts", "number", "expected"),
    [
        # In turn, and each class begins behind the last of the one before.
        ([3], 2, [[2], [1]]), ([4, 2], 3, [[2, 0], [1, 1], [1, 1]]),
        ([3, 3], 2, [[2, 1], [1, 2]]), ([2, 3], 5, [[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]),
        ([1, 2, 2], 2, [[0, 1, 1], [0, 1, 1]]),
        # With one fold a fifth, of two rows or more at least one.
        ([2, 1], 1, [[1, 0]]), ([7, 8], 1, [[1, 2]]), ([12, 13], 1, [[2, 3]]),
        ([3, 20], 1, [[1, 4]]),
    ],
)  # fmt: skip
def test_the_rows_of_each_class_in_each_fold(counts, number, expected):
    assert sizes(counts, number) == expected


def test_rows_are_drawn_and_told_in_order():
    rows, labels, seen = np.arange(30, 42), np.zeros(50, int), set()
    for seed in range(4):
        held = folds(rows, labels, 3, np.random.default_rng(seed))
        assert all((np.diff(fold) > 0).all() and fold.dtype == np.int64 for fold in held)
        np.testing.assert_array_equal(np.sort(np.concatenate(held)), rows)
        seen.add(tuple(held[0].tolist()))
    assert len(seen) == 4


def test_an_id_is_of_the_rarest_class_among_its_rows():
    """The class, not the row: of ids with both classes each fold has equally many."""
    ids = np.repeat(np.arange(6), 2)
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0])  # two of six ids have the rare class
    for seed in range(4):
        held = folds(np.arange(12), labels, 2, np.random.default_rng(seed), ids)
        assert [int(labels[fold].sum()) for fold in held] == [1, 1]
        assert [len(set(ids[fold])) for fold in held] == [3, 3]


def test_a_certain_mistake_has_a_loss_and_what_is_not_finite_none():
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    accuracy, loss = criterion(np.array([right, right, wrong, right]), np.array([0, 0, 0, 1]))
    assert accuracy == 33.333333333  # of two of three rows and none of one
    # A probability counts as 1e-12 at least: ln of that is -27.63...
    assert loss == pytest.approx((np.log(1e-12) / 3 + np.log(1e-12)) / 2)
    worst = (-np.inf, -np.inf)
    assert criterion(np.zeros((0, 2)), np.zeros(0, int)) == worst
    for bad in (np.nan, np.inf):
        assert criterion(np.array([[1.0, 0.0], [bad, 0.5]]), np.array([0, 1])) == worst
