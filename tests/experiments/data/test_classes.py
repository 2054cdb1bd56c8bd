"""Classes of a column: numbered by falling rows, and named as their cells are."""

import numpy as np
import pandas as pd
import pytest

from experiments.data.classes import classes, plain, tell_alike
from experiments.host.errors import DataError


def of(*cells, dtype=None):
    return pd.Series(list(cells), dtype=dtype, name="c")


def test_the_most_frequent_is_class_0_and_equal_ones_stand_in_their_order():
    codes, names = classes(of("b", "c", "a", "c"), None)
    assert names == ("c", "a", "b") and codes.tolist() == [2, 0, 1, 0]
    assert codes.dtype == np.int32
    many = [f"{k:02}" for k in range(40)]
    assert classes(of(*many[::-1]), None)[1] == tuple(many)
    some = [name for k, name in enumerate(many * 9) if k % 7]  # seven or eight of each
    by_hand = sorted(many, key=lambda name: (-some.count(name), name))
    assert classes(of(*some[::-1]), None)[1] == tuple(by_hand) != tuple(many)
    # By the rows that are trained on alone; a class of the others is one, too.
    codes, names = classes(of("b", "a", "b", "a", "a", "z"), 3)
    assert names == ("b", "a", "z") and codes.tolist() == [0, 1, 0, 1, 1, 2]


@pytest.mark.parametrize("cell", ["a\nb", "\x1b[0m"])
def test_a_name_is_a_line_of_text(cell):
    with pytest.raises(DataError, match=r"column 'c' holds .*, which is no line of text"):
        classes(of("a", cell, "b"), None)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (of(7.0, -3.0, 7.0), ("7", "-3")),
        (of(0.5, 2.0, 0.5), ("0.5", "2.0")),
        (of(0.1, 0.2, 0.1, dtype="float32"), ("0.1", "0.2")),
        (of(0.1, 0.2, 0.1, dtype="float16"), ("0.1", "0.2")),
        (of(2, 3, 2, dtype="float16"), ("2", "3")),
        (of(True, False, True), ("True", "False")),
        (of(5, 6, 5, dtype="int8"), ("5", "6")),
        (of(5, 6, 5, dtype="Int64"), ("5", "6")),
        (of(2**63 + 1, 2**63, 2**63 + 1, dtype="uint64"), (f"{2**63 + 1}", f"{2**63}")),
        (of(2.0**53 - 1, 1 - 2.0**53, 2.0**53 - 1), (f"{2**53 - 1}", f"{1 - 2**53}")),
        (of("a", "b", "a", dtype="category"), ("a", "b")),
        (of(0.5, 1.5, 0.5, dtype="category"), ("0.5", "1.5")),
        (of([1], [2], [1]), ("[1]", "[2]")),
    ],
)
def test_cells_of_every_kind_are_named_as_they_are(column, names):
    assert classes(column, None)[1] == names
    assert plain(column).name == "c" and plain(column).index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ((1.0, 2.0**53), r"holds numbers of 2\*\*53 and more"),
        ((1.0, -(2.0**53)), r"holds numbers of 2\*\*53 and more"),
        ((0.5, np.inf), "holds infinite labels"),
        ((b"a", b"\xff"), "holds bytes that are no text"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(cells, says):
    with pytest.raises(DataError, match=f"column 'c' {says}"):
        plain(of(*cells))


def test_names_that_differ_by_a_capital_are_told():
    notes = []
    tell_alike(["a", "b", "A", "b ", "c"], "k", notes)
    told = "in column 'k' are taken for different, though but for spaces and capitals they are the"
    assert notes == [f"'a' and 'A' {told} same", f"'b' and 'b ' {told} same"]
