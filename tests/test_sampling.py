"""Class-aware sampling: every class alike, rows of the right class, decided by the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sampling import balanced_order, epoch_order

COUNTS = [40, 20, 10, 5, 3]
LABELS = np.repeat(np.arange(5), COUNTS)


@pytest.mark.parametrize("per_visit", [1, 4])
def test_classes_are_visited_in_cycles(per_visit):
    shuffled = np.random.default_rng(0).permutation(LABELS)
    order = balanced_order(jnp.asarray(shuffled), jax.random.key(0), 5, 78, per_visit)
    found = shuffled[np.asarray(order)]
    classes = found[::per_visit]
    np.testing.assert_array_equal(found, np.repeat(classes, per_visit)[:78])
    for start in range(0, len(classes) - 4, 5):
        assert sorted(classes[start : start + 5]) == [0, 1, 2, 3, 4]
    cycles = {tuple(classes[start : start + 5]) for start in range(0, len(classes) - 4, 5)}
    assert len(cycles) > 2


def test_rows_of_a_class_are_drawn_alike():
    order = np.asarray(balanced_order(jnp.asarray(LABELS), jax.random.key(1), 5, 50_000))
    drawn = np.bincount(order, minlength=78)
    for mine in np.split(drawn, np.cumsum(COUNTS)[:-1]):
        mean = 10_000 / len(mine)
        assert mine.sum() == 10_000
        # Five deviations of a binomial.
        assert np.abs(mine - mean).max() < 5 * np.sqrt(mean)


def test_seed_and_epoch_decide_an_order():
    for kind in ("natural", "balanced"):
        first = epoch_order(kind, LABELS, 0, 3)
        assert first.dtype == np.int32 and first.shape == (78,)
        np.testing.assert_array_equal(first, epoch_order(kind, LABELS, 0, 3))
        assert (first != epoch_order(kind, LABELS, 0, 4)).any()
        assert (first != epoch_order(kind, LABELS, 1, 3)).any()
    np.testing.assert_array_equal(np.sort(epoch_order("natural", LABELS, 0, 0)), np.arange(78))


def test_a_class_without_a_row_is_not_visited():
    labels = np.where(LABELS == 2, 0, LABELS)
    counts = np.bincount(labels[epoch_order("balanced", labels, 0, 0)], minlength=5)
    assert counts[2] == 0 and counts[[0, 1, 3, 4]].min() >= 19
