"""Which rows of a table are trained on, and which are tested.

Every split has the same number of rows of each class in each part, so that arrays of several
splits stack; with ids it has the same number of ids instead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import imbsam_jax
from experiments.data.table import Table
from experiments.host.errors import DataError, check_seed

__all__ = ["Split", "splits", "training_rows"]

_TRIES = 20


class Split(NamedTuple):
    """Row numbers, rising, no row in two parts.

    Attributes:
      train: trained on.
      test: tested.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def splits(
    table: Table,
    count: int,
    *,
    seed: int = 0,
    test_share: float = 0.3,
    cut: float | None = None,
) -> list[Split]:
    """Repeated random splits, stratified by label (by label and group, where there are groups).

    Of a class with m rows, round(test_share m) are tested, at least one and at most m - 1. Rows of
    one id stay in one part: an id counts for the rarest class among its rows, and ids are divided
    as rows are otherwise. Where the table has a test file, that is the test part of every split.

    Args:
      table: the rows.
      count: how many splits.
      seed: decides all of them; split k is the same however many there are.
      test_share: in (0, 1).
      cut: a long-tail cut of train: of class c stay floor(n_max cut^(-c / (C - 1))) rows at most,
        n_max those of the largest. Test is not cut.

    Returns:
      One Split for each.

    Raises:
      DataError: the cut would leave a class without a row.
    """
    check_seed(seed)
    strata = _strata(table)
    found = []
    for key in np.random.SeedSequence(seed).spawn(count):
        draw = np.random.default_rng(key)
        train, test = _tested(table, strata, test_share, draw)
        train = train if cut is None else _cut(table, train, cut, draw)
        found.append(Split(np.sort(train), np.sort(test)))
    return found


def training_rows(table: Table, *, cut: float | None = None, seed: int = 0) -> NDArray[np.int64]:
    """All rows that are not of a test file, cut as those of a split are; rising."""
    rows = np.arange(len(table.labels))[: table.first_test_row]
    return rows if cut is None else _cut(table, rows, cut, np.random.default_rng(seed))


def _strata(table: Table) -> NDArray[np.int64]:
    labels = table.labels.astype(np.int64)
    if table.groups is None:
        return labels
    return labels + table.num_classes * table.groups.astype(np.int64)


def _tested(
    table: Table, strata: np.ndarray, share: float, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(table.labels))
    if table.first_test_row is not None:
        return rows[: table.first_test_row], rows[table.first_test_row :]
    best = None
    # With rows alone the first draw holds every class; ids may have to be drawn again.
    for _ in range(1 if table.ids is None else _TRIES):
        rest, test = _divided(table, strata, rows, share, draw)
        absent = sum(
            table.num_classes - len(np.unique(table.labels[part])) for part in (rest, test)
        )
        if best is None or absent < best[0]:
            best = absent, rest, test
        if not absent:
            break
    assert best is not None
    return best[1:]


def _divided(
    table: Table, strata: np.ndarray, rows: np.ndarray, share: float, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, taken) of these rows; from two units on a stratum gives one at least."""
    if table.ids is None:
        units, of_row = strata[rows], np.arange(len(rows))
    else:
        units, of_row = _units(table, strata, rows)
    taken = np.zeros(len(units), bool)
    order = draw.permutation(len(units))
    order = order[np.argsort(units[order], kind="stable")]
    starts = np.flatnonzero(np.diff(units[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        size = len(members)
        many = max(int(share * size + 0.5), 1)
        taken[members[: min(many, size - 1)]] = True
    if table.ids is None:
        _one_of_each(table.labels[rows], taken)
    return rows[~taken[of_row]], rows[taken[of_row]]


def _one_of_each(labels: np.ndarray, taken: np.ndarray) -> None:
    """Of a class whose strata were too small to give a row, the first is taken."""
    for label in np.setdiff1d(labels, labels[taken]):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            taken[members[0]] = True


def _units(
    table: Table, strata: np.ndarray, rows: np.ndarray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the rarest stratum of each id among these rows, the id of each row)."""
    assert table.ids is not None
    names, of_row = np.unique(table.ids[rows], return_inverse=True)
    sizes = np.bincount(strata)
    by_size = np.argsort(np.argsort(-sizes, kind="stable"))  # the higher, the rarer
    rarest = np.full(len(names), -1)
    np.maximum.at(rarest, of_row, by_size[strata[rows]])
    return rarest, of_row


def _cut(
    table: Table, rows: np.ndarray, factor: float, draw: np.random.Generator
) -> NDArray[np.int64]:
    counts = np.bincount(table.labels[rows])
    try:
        profile = imbsam_jax.long_tail_counts(table.num_classes, int(counts.max()), factor)
    except ValueError as error:
        raise DataError(
            f"--cut {factor:g} leaves a class of {table.name} without a row: its largest has "
            f"{counts.max()} rows to train on"
        ) from error
    mixed = draw.permutation(rows)
    kept = [mixed[table.labels[mixed] == c][:most] for c, most in enumerate(profile)]
    return np.sort(np.concatenate(kept))
