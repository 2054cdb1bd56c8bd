"""Random splits against a loop that takes them row by row, with groups, with ids, and cut."""

import numpy as np
import pandas as pd
import pytest

from experiments.data.splits import splits, training_rows
from experiments.data.table import Table
from experiments.host.errors import DataError


def table_of(labels, **more):
    labels = np.asarray(labels, np.int32)
    names = tuple(f"c{k}" for k in range(labels.max() + 1))
    columns = pd.DataFrame({"x": np.arange(len(labels), dtype=float)})
    return Table(name="made", columns=columns, labels=labels, class_names=names, **more)


def mixed(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(5).permutation(labels)


def taken_of(strata, share, draw):
    """Of each stratum the first units of one order of all: its share, all but one at most."""
    order, tested = draw.permutation(len(strata)).tolist(), set()
    for stratum in sorted(set(strata)):
        members = [unit for unit in order if strata[unit] == stratum]
        many = max(int(share * len(members) + 0.5), 1)
        tested |= set(members[: min(many, len(members) - 1)])
    return tested


def parts(tested, rows):
    return [row for row in range(rows) if row not in tested], sorted(tested)


def assert_splits(found, expected):
    assert len(found) == len(expected)
    for split, (train, test) in zip(found, expected, strict=True):
        assert (split.train.tolist(), split.test.tolist()) == (train, test)


def draws(count, seed):
    return map(np.random.default_rng, np.random.SeedSequence(seed).spawn(count))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.95])
def test_rows_by_their_labels(share):
    labels = mixed(40, 11, 4, 3, 2)
    expected = [parts(taken_of(labels, share, draw), 60) for draw in draws(3, 7)]
    assert_splits(splits(table_of(labels), 3, seed=7, test_share=share), expected)


def test_three_tenths_by_seed_0_where_nothing_is_said():
    table = table_of(mixed(40, 11, 4))
    assert_splits(splits(table, 2), [(s.train.tolist(), s.test.tolist()) for s in splits(
        table, 2, seed=0, test_share=0.3
    )])  # fmt: skip
    assert len(splits(table, 1)[0].test) == 12 + 3 + 1


def test_rows_by_their_labels_and_groups():
    """And of a class that no cell of two rows is of, the first row."""
    labels = np.append(mixed(40, 12), [2, 2, 2])
    groups = np.append(np.random.default_rng(6).integers(0, 3, 52), [0, 1, 2]).astype(np.int32)
    strata = [f"{g} {c}" for g, c in zip(groups, labels, strict=True)]
    expected = [parts(taken_of(strata, 0.3, draw) | {52}, 55) for draw in draws(3, 7)]
    assert_splits(splits(table_of(labels, groups=groups), 3, seed=7), expected)
    two = table_of([*labels[:52], 2, 2], groups=groups[:54])
    assert all((52 in split.test) and (53 in split.train) for split in splits(two, 3, seed=7))
    ids = splits(table_of(labels, groups=groups, ids=np.arange(55)), 3, seed=7)
    for split in ids:  # each row an id of its own: in groups, too
        taken = np.isin(np.arange(55), split.test)
        for stratum in set(strata[:52]):
            rows = np.array([other == stratum for other in strata])
            assert taken[rows].sum() == max(int(0.3 * rows.sum() + 0.5), 1)
    single = table_of([*labels, 3], groups=np.append(groups, 0).astype(np.int32))
    assert all(55 in split.train for split in splits(single, 3, seed=7))


DRAWN = np.random.default_rng(8).integers(100, 118, 90)


@pytest.mark.parametrize(
    ("labels", "ids", "again"),
    [
        (mixed(60, 24, 6), DRAWN, False),
        (mixed(42, 42, 6), DRAWN, False),
        # No id has rows of class 0 alone.
        ([0, 0, 0, 1] * 6 + [0, 2] * 5, [*np.arange(24) // 4, *10 + np.arange(10) // 2], False),
        # Class 1 is in two of the three ids of class 2, of which one is tested.
        ([0] * 20 + [1, 1, 1, 2] * 2 + [2], [*np.arange(20) // 2, *[20] * 4, *[21] * 4, 22], True),
    ],
)
def test_ids_by_the_rarest_class_among_their_rows(labels, ids, again):
    """Of classes of as many rows the later is the rarer; drawn until each is in both parts."""
    labels, ids = np.array(labels), np.array(ids)
    counts = np.bincount(labels)
    rank = sorted(range(3), key=lambda c: (-counts[c], c))
    units = sorted(set(ids))
    strata = [max(rank.index(c) for c in labels[ids == unit]) for unit in units]
    expected, tries = [], []
    for draw in draws(8, 3):
        for number in range(20):
            taken = {units[k] for k in taken_of(strata, 0.3, draw)}
            split = parts({row for row, unit in enumerate(ids) if unit in taken}, len(labels))
            tries.append(number)
            if all(set(labels[part]) == {0, 1, 2} for part in split):
                break
        expected.append(split)
    assert_splits(splits(table_of(labels, ids=ids), 8, seed=3), expected)
    assert (max(tries) > 0) == again


def test_of_draws_that_all_lack_a_class_the_first_of_the_least_is_taken():
    """Class 2 is of one id: whichever side it is on, the other lacks it."""
    labels = np.array([0, 1] * 20 + [2, 2])
    ids = np.append(np.arange(40) // 4, [99, 99])
    best = None
    (draw,) = draws(1, 0)
    strata = [*[1] * 10, 2]
    for _ in range(20):
        taken = {[*range(10), 99][k] for k in taken_of(strata, 0.3, draw)}
        split = parts({row for row, unit in enumerate(ids) if unit in taken}, 42)
        absent = sum(len({0, 1, 2} - set(labels[part])) for part in split)
        if best is None or absent < best[0]:
            best = absent, split
    assert best[0] == 1
    assert_splits(splits(table_of(labels, ids=ids), 1), [best[1]])


def cut_of(labels, rows, factor, draw):
    """The first floor(n_max factor^(-c / (C - 1))) rows of each class in one order of all."""
    counts, order = np.bincount(labels[rows]), draw.permutation(rows)
    kept = []
    for c in range(len(counts)):
        most = int(counts.max() * factor ** (-c / (len(counts) - 1)))
        kept += [row for row in order if labels[row] == c][:most]
    return sorted(kept)


def test_a_cut_is_of_what_is_trained_on():
    labels = mixed(50, 48, 30)
    expected = []
    for draw in draws(2, 7):
        train, test = parts(taken_of(labels, 0.3, draw), 128)
        expected.append((cut_of(labels, train, 4, draw), test))
    assert_splits(splits(table_of(labels), 2, seed=7, cut=4), expected)
    table = table_of(labels, first_test_row=100)
    rows = cut_of(labels, np.arange(100), 4, np.random.default_rng(0))
    assert training_rows(table, cut=4).tolist() == rows
    assert training_rows(table, cut=4, seed=1).tolist() != rows
    assert training_rows(table).tolist() == list(range(100))
    assert training_rows(table_of(labels)).tolist() == list(range(128))
    (split,) = splits(table, 1)
    assert split.train.tolist() == list(range(100)) and split.test.tolist() == list(range(100, 128))
    with pytest.raises(DataError, match=r"--cut 200 leaves a class of made .* largest has 50 rows"):
        training_rows(table_of(labels), cut=200)
