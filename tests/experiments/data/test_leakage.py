"""Columns that tell the label and rows that are copies, against loops over values and pairs."""

import numpy as np
import pandas as pd
import pytest

from experiments.data import leakage
from experiments.data.table import Table


def table_of(columns, labels, **more):
    labels = np.asarray(labels, np.int32)
    names = tuple(f"c{k}" for k in range(labels.max() + 1))
    return Table(
        name="made", columns=pd.DataFrame(columns), labels=labels, class_names=names, **more
    )


def distinct(rows):
    """A column of numbers by which no row equals another, and which tells nothing."""
    return np.arange(rows, dtype=float)


KINDS = {
    "numbers": lambda k: np.where(k == 0, np.nan, k / 8),
    "words": lambda k: np.array([None, "a", "b", "c", "d"], object)[k],
    "signs of zero": lambda k: np.where(k == 0, np.where(np.arange(len(k)) % 2, 0.0, -0.0), k),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_test_row", [None, 60])
def test_a_column_of_which_each_value_has_one_class(kind, first_test_row):
    """Five values of two classes; one row of the other class, and it is one as any."""
    values = np.arange(80) % 5
    labels = (values % 3 == 0).astype(int)
    column = {"told": KINDS[kind](values), "row": distinct(80)}
    (said,) = leakage.notes(table_of(column, labels, first_test_row=first_test_row))
    assert said.startswith("1 column alone tells the label of every training row (leave it out")
    assert said.endswith(": told")
    labels[7] = 1 - labels[7]
    assert leakage.notes(table_of(column, labels, first_test_row=first_test_row)) == []


def test_several_columns_are_told_at_once_and_sentences_are_not_judged():
    values = np.arange(80) % 5
    columns = {"a": values / 2, "b": -values.astype(float), "row": distinct(80)}
    columns["text"] = np.array(list("vwxyz"), object)[values]
    (said,) = leakage.notes(table_of(columns, values, text=("text",)))
    assert said.startswith("2 columns each alone tell the label of") and said.endswith(": a, b")


@pytest.mark.parametrize("rows", [18, 19, 20, 21, 22, 23, 24])
def test_what_chance_may_do_is_not_told(rows):
    """Two classes of equal size: r rows of two values agree by chance in 2^(2 - r) of cases."""
    values = np.arange(rows) % 2
    found = leakage.notes(table_of({"told": values / 1, "row": distinct(rows)}, values))
    share = np.mean(values)
    by_chance = (share**2 + (1 - share) ** 2) ** (rows - 2)
    assert bool(found) == (by_chance < 1e-6)


@pytest.mark.parametrize("first_test_row", [None, 90])
def test_a_column_does_not_tell_the_label_by_copies(first_test_row):
    """Numbers that no two rows share but copies: they agree whatever the column is worth."""
    once = np.random.default_rng(0).normal(size=60)
    taken = np.r_[:60, :40]
    columns, labels = {"a": once[taken], "b": -2 * once[taken]}, (np.arange(60) % 2)[taken]
    found = leakage.notes(table_of(columns, labels, first_test_row=first_test_row))
    assert len(found) == 1 and "tell" not in found[0] and "cop" in found[0]
    told = table_of({**columns, "told": labels.astype(float)}, labels)
    assert leakage.notes(told)[0].endswith("known before): told")


def test_only_training_rows_are_asked_what_a_column_tells():
    values = np.arange(80) % 5
    labels = np.where(np.arange(80) < 60, values % 2, 1)
    columns = {"told": values / 1, "row": distinct(80)}
    assert len(leakage.notes(table_of(columns, labels, first_test_row=60))) == 1
    assert leakage.notes(table_of(columns, labels, first_test_row=61)) == []


def drawn(seed, rows=40):
    draw = np.random.default_rng(seed)
    columns = {
        name: KINDS[kind](draw.integers(0, 5, rows))
        for name, kind in zip("ab", KINDS, strict=False)
    }
    return columns, draw.integers(0, 2, rows), draw.integers(0, 12, rows)


def are_equal(columns, labels, one, other):
    both = [(values[one], values[other]) for values in (*columns.values(), labels)]
    return all(a == b or (a != a and b != b) for a, b in both)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_id", [False, True])
def test_copies_that_a_split_may_divide(seed, by_id):
    """Rows with an equal, of another id where there are ids; or one of a third that equals both."""
    columns, labels, ids = drawn(seed)
    ids = ids if by_id else np.arange(40)
    equal = [[j for j in range(40) if are_equal(columns, labels, i, j)] for i in range(40)]
    many = sum(len({ids[j] for j in of}) > 1 for of in equal)
    assert 0 < many < 40
    (said,) = leakage.notes(table_of(columns, labels, ids=ids if by_id else None))
    whose = "others of another id" if by_id else "others"
    assert said.startswith(f"{many} of 40 rows equal {whose} in all that is learned from: where")
    assert said.endswith(
        "a copy may be trained on" if by_id else "(--id keeps together what belongs together)"
    )


@pytest.mark.parametrize("seed", range(3))
def test_tested_rows_that_are_trained_on(seed):
    columns, labels, ids = drawn(seed)
    copied = [i for i in range(25, 40) if any(are_equal(columns, labels, i, j) for j in range(25))]
    (said,) = leakage.notes(table_of(columns, labels, first_test_row=25, ids=ids))
    are = "is a copy" if len(copied) == 1 else "are copies"
    assert copied and said == f"{len(copied)} of 15 tested rows {are} of what is trained on"


def test_no_row_alike_none_told():
    assert leakage.notes(table_of({"row": distinct(9)}, np.arange(9) % 2)) == []
    assert leakage.notes(table_of({"row": distinct(9)}, np.arange(9) % 2, first_test_row=5)) == []
