"""Orders of an epoch: class-aware ones, and those that give each batch its share of the tail."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.sampling import Order, balanced_order, epoch_order, most_rows

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
    order = np.asarray(balanced_order(jnp.asarray(LABELS), jax.random.key(1), 5, 50_000, 1))
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


def test_the_last_batch_of_an_epoch_is_padded():
    order = Order("natural", LABELS, 0, 16, multiple=4)
    assert [order.rows_of(step) for step in range(6)] == [16, 16, 16, 16, 14, 16]
    assert [order.padded(rows) for rows in (1, 4, 14, 16)] == [4, 4, 16, 16]
    for step in range(10):
        rows = order.of_step(step)
        assert rows.dtype == np.int64 and len(rows) == 16
        np.testing.assert_array_equal(rows == -1, np.arange(16) >= order.rows_of(step))


def test_labels_of_whole_batches_come_in_parts_of_one_size():
    """Eight of ten batches are whole; of 16 rows three devices have five each."""
    order = Order("natural", LABELS, 0, 16)
    whole = [step for step in range(10) if step % 5 != 4]
    found = list(order.labels_of(10, 3))
    want = [LABELS[order.of_step(step)[5 * k : 5 * k + 5]] for step in whole for k in range(3)]
    np.testing.assert_array_equal(found, want)
    # A batch larger than the data is all there is: the first step's.
    large = Order("natural", LABELS, 0, 100)
    (alone,) = large.labels_of(10)
    np.testing.assert_array_equal(alone, LABELS[large.of_step(0)])
    assert sorted(alone) == LABELS.tolist()


def test_an_order_is_that_of_its_epochs():
    """One row a visit, as CC-SAM's code has it, unless more are asked for; -1 is padding alone."""
    for kind, asked in (("balanced", {}), ("balanced", {"per_visit": 4}), ("natural", {})):
        order = Order(kind, LABELS, 7, 20, **asked)
        assert order.steps_per_epoch == 4
        for epoch in (0, 2, 1):
            found = [order.of_step(4 * epoch + step) for step in range(4)]
            assert [len(rows) for rows in found] == [20, 20, 20, 18]
            of_epoch = epoch_order(kind, LABELS, 7, epoch, asked.get("per_visit", 1))
            np.testing.assert_array_equal(np.concatenate(found), of_epoch)


def test_buffers_have_room_for_what_each_order_draws():
    classes = np.array([False, False, True, True, True])  # 18 of 78 rows; 3 of 5 classes
    share = {"natural": 18 / 78, "balanced": 3 / 5}
    for kind, f in share.items():
        sizes = Order(kind, LABELS, 0, 40).buffers(5, 40)(classes)
        spread = np.sqrt(40 * f * (1 - f))
        assert sizes == (*np.ceil(40 * f + np.array([0.5, 2.5]) * spread), 40)
    stratified = Order("stratified", LABELS, 0, 40, tail=TAIL)
    assert stratified.buffers(5, 40)(classes) == (most_rows(TAIL[LABELS], 40)[1],)
    # A class that is drawn from no row of its own has no part in balanced draws.
    absent = np.where(LABELS == 2, 0, LABELS)
    sizes = Order("balanced", absent, 0, 40).buffers(5, 40)(classes)
    assert sizes[0] == np.ceil(20 + 0.5 * np.sqrt(10))
    # But one with a single row is a class, and one that is none of the labels' has no rows.
    single = np.repeat(np.arange(5), [40, 20, 10, 1, 7])
    sizes = Order("balanced", single, 0, 40).buffers(6, 40)(np.append(classes, True))
    assert sizes[0] == np.ceil(40 * 3 / 5 + 0.5 * np.sqrt(40 * 6 / 25))
    sizes = Order("natural", LABELS, 0, 40).buffers(6, 40)(np.append(classes, True))
    assert sizes[0] == np.ceil(40 * 18 / 78 + 0.5 * np.sqrt(40 * 18 * 60 / 78**2))


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
