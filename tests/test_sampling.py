"""Orders of an epoch: class-aware ones, and those that give each batch its share of the tail."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sampling import Order, balanced_order, epoch_order, most_rows

COUNTS = [40, 20, 10, 5, 3]
LABELS = np.repeat(np.arange(5), COUNTS)
TAIL = np.array(COUNTS) <= 10  # 18 of 78 rows


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
    for kind in ("natural", "balanced", "stratified"):
        order = partial(epoch_order, kind, LABELS, tail=TAIL)
        first = order(0, 3)
        assert first.dtype == np.int32 and first.shape == (78,)
        np.testing.assert_array_equal(first, order(0, 3))
        assert (first != order(0, 4)).any()
        assert (first != order(1, 3)).any()
    np.testing.assert_array_equal(np.sort(epoch_order("natural", LABELS, 0, 0)), np.arange(78))


def test_a_class_without_a_row_is_not_visited():
    labels = np.where(LABELS == 2, 0, LABELS)
    counts = np.bincount(labels[epoch_order("balanced", labels, 0, 0)], minlength=5)
    assert counts[2] == 0 and counts[[0, 1, 3, 4]].min() >= 19


@pytest.mark.parametrize("batch", [16, 13, 78, 1])
def test_stratified_batches_have_the_same_share_of_the_tail(batch):
    """Every row once; each batch, and each half of it, has its share rounded up or down."""
    shuffled = np.random.default_rng(0).permutation(LABELS)
    order = Order("stratified", shuffled, 0, batch, tail=TAIL)
    for epoch in range(20):
        first = epoch * order.steps_per_epoch
        batches = [order.of_step(first + k) for k in range(order.steps_per_epoch)]
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(78))
        for rows in batches:
            for part in (rows, rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                found = int(TAIL[shuffled[part]].sum())
                assert found in (len(part) * 18 // 78, -(-len(part) * 18 // 78))
                most = most_rows(TAIL[shuffled], len(part))
                assert most[0] >= len(part) - found and most[1] >= found
                assert sum(most) <= len(part) + 1


def test_stratified_batches_are_drawn_alike():
    """Over epochs, no batch has more of the tail than another, and no row prefers a batch."""
    order = Order("stratified", LABELS, 0, 16, tail=TAIL)
    epochs, steps = 800, order.steps_per_epoch
    where = np.zeros((78, steps))
    for step in range(epochs * steps):
        where[order.of_step(step), step % steps] += 1
    for k, rows in enumerate((16, 16, 16, 16, 14)):
        share = rows / 78
        spread = np.sqrt(epochs * share * (1 - share))
        assert np.abs(where[:, k] - epochs * share).max() < 5 * spread
        # The rounding of one batch alone varies, by less than half a row.
        assert abs(where[TAIL[LABELS], k].sum() / epochs - 18 * share) < 5 * 0.5 / np.sqrt(epochs)


def test_a_stratified_order_without_a_tail_or_a_head_is_a_permutation():
    for tail in (np.zeros(5, bool), np.ones(5, bool)):
        order = epoch_order("stratified", LABELS, 0, 0, tail=tail)
        np.testing.assert_array_equal(np.sort(order), np.arange(78))
        assert most_rows(tail[LABELS], 16) == (0 if tail[0] else 16, 16 if tail[0] else 0)
