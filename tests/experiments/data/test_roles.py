"""Labels, groups and ids: which rows they leave, and both sides of every bound of theirs."""

import numpy as np
import pandas as pd
import pytest

from experiments.data import roles
from experiments.data.roles import check_classes, check_roles, groups, ids, kept, with_labels
from experiments.host.errors import DataError


def checked(frame, label="y", text=(), group=None, id=None):
    check_roles(pd.DataFrame(frame), "t.csv", label, text, group, id)


def test_a_column_of_text_holds_words_or_nothing():
    checked({"y": ["a"], "said": ["b"], "none": [None]}, text=["said", "none"])
    for cells in ([1.5, None], [True, None], [1, 2]):
        with pytest.raises(DataError, match=r"'said' \(--text\) holds numbers, no text"):
            checked({"y": ["a", "b"], "said": cells}, text=["said"])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["a;b"], ": its first line is one name, with ';' in it; save it with commas"),
        (["a\tb"], ": its first line is one name, with tabs in it; save it with commas"),
        (["a,b"], ": its first line is one name, with ',' in it; save it with commas"),
        (["ab"], ": it has 'ab'"),
        (["a;b", "c"], ": it has 'a;b', 'c'"),
        (["labels", "label"], ": did you mean 'label'?"),
        (list("abcdefgh"), ": it has 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'"),
        (list("abcdefghi"), ": it has 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', ..."),
    ],
)
def test_what_is_told_of_a_column_that_is_not_there(columns, says):
    with pytest.raises(DataError) as refused:
        checked(pd.DataFrame(columns=columns), "labell")
    assert str(refused.value).startswith(f"t.csv has no column 'labell' (--label){says}")


def test_a_column_has_one_role():
    frame = {"y": ["a", "b"], "g": ["a", "b"], "i": [1, 2], "s": ["x", "y"]}
    checked(frame, "y", ["s"], "g", "i")
    for given, twice in (
        (("y", ["y"]), "'y' is given as --label and --text"), (("y", ["s", "s"]), "--text twice"),
        (("y", [], "y"), "--label and --group"), (("y", [], "g", "g"), "--group and --id"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=twice):
            checked(frame, *given)


def test_rows_without_a_label_are_left_out_on_both_sides_of_a_test_file():
    frame, notes = pd.DataFrame({"y": ["a", None, "b", None, None], "x": range(5)}), []
    found, first = with_labels(frame, "y", 3, notes)
    assert found["x"].tolist() == [0, 2] and found.index.tolist() == [0, 1]
    assert list(found.columns) == ["y", "x"] and first == 2
    assert notes == ["3 rows without a label left out"]
    assert with_labels(frame, "y", None, [])[1] is None
    whole = frame.assign(y="a")
    assert with_labels(whole, "y", 3, notes)[0] is whole and len(notes) == 1
    with pytest.raises(DataError, match=r"'y' \(--label\) is empty in every row"):
        with_labels(frame.assign(y=None), "y", None, [])
    blank = frame.assign(y=["a", " ", "b", "\t ", "c"])  # of widths that are fixed
    assert with_labels(blank, "y", None, [])[0]["y"].tolist() == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"'y' \(--group\) is empty in 2 rows"):
        groups(blank, "y", None)
    rows, first = kept(frame, np.array([False, True, True, False, True]), 2)
    assert rows["x"].tolist() == [1, 2, 4] and first == 1


def classes_of(codes, first_test=None, values=None, names=None):
    names = names or tuple(f"c{k}" for k in range(max(codes) + 1))
    values = pd.Series([names[c] for c in codes] if values is None else values)
    check_classes(values, np.array(codes), names, "y", first_test)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        # Two rows a class of those that are trained on, on average; but two classes always may be.
        (([0, 1],), None),
        (([0, 1, 1, 1],), None),
        (([0, 1, 2, 0, 1, 2],), None),
        (([0, 1, 2, 0, 1],), "are 3 values in 5 rows: classes with several"),
        (([0, 1, 2],), "are all different: classes with several"),
        (([0, 1, 2, 0, 1, 0, 1, 2], 5), "are 3 values in 5 rows: classes with several"),
        (([0, 0, 0],), r"'y' \(--label\) has the one class 'c0': two or more are needed"),
        (([0, 0, 0, 1], 3), "has the one class 'c0'"),
        (([0, 1, 0, 1, 1], 4), None),
        (([0, 1, 0, 1], 4), "the file of --test holds no row with a label"),
        (([0, 1, 0, 1, 0, 1, 0, 2], 6), "of --test holds class 'c2', which no training row has"),
    ],
)
def test_labels_are_classes_of_several_rows(codes, says):
    if says is None:
        classes_of(*codes)
        return
    with pytest.raises(DataError, match=says):
        classes_of(*codes)


def test_fractions_of_up_to_twenty_values_are_classes():
    def fractions(many, step=0.5):
        names = tuple(str(step * k + 0.25) for k in range(many))
        return list(range(many)) * 2, None, [float(x) for x in names] * 2, names

    classes_of(*fractions(20))
    with pytest.raises(DataError, match="are 21 fractional numbers; this looks like a number"):
        classes_of(*fractions(21))
    codes, _, values, names = fractions(21)
    classes_of(codes, None, [f"{x}" for x in values], names)  # words with a point
    small = ("1e-07", *names[1:])  # str() writes no point in it
    with pytest.raises(DataError, match="21 fractional numbers"):
        classes_of(codes, None, values, small)
    whole = tuple(map(str, range(21)))
    classes_of(codes, None, [float(x) for x in whole] * 2, whole)
    with pytest.raises(DataError, match="all different; this looks like a number to predict"):
        classes_of(list(range(5)), None, [0.5 * k for k in range(5)])


def test_a_class_of_one_row_cannot_be_tested():
    names = tuple("abcdefghi")
    notes = []
    codes = np.array([0, 0, 1, 1, 2, 3])
    found = roles.testable(codes, names[:4], None, notes)
    assert found.tolist() == [True] * 4 + [False] * 2
    assert notes.pop() == (
        "2 classes with a single row left out, which cannot be both trained on and tested: "
        "classes c, d"
    )
    roles.testable(np.array([0, 0, 1, 1, 2]), names[:3], None, notes)
    assert notes.pop().endswith("trained on and tested: class c")
    for single, shown in ((5, "c, d, e, f, g"), (6, "c, d, e, f, g, ...")):
        roles.testable(
            np.array([0, 0, 1, 1, *range(2, 2 + single)]), names[: 2 + single], None, notes
        )
        assert notes.pop().endswith(f"tested: classes {shown}")
    with pytest.raises(DataError, match="only class 'a' has more than one row"):
        roles.testable(np.array([0, 0, 1, 2]), names[:3], None, notes)
    for codes, first in (([0, 0, 1, 1], None), ([0, 0, 1, 2], 3)):  # a file of its own tests it
        found = roles.testable(np.array(codes), names[: max(codes) + 1], first, notes)
        assert found.dtype == bool and found.all() and not notes


def test_groups_are_of_several_rows_of_those_that_are_trained_on():
    def of(cells, first_test=None):
        return groups(pd.DataFrame({"g": list(cells)}), "g", first_test)

    codes, names = of("aabbbc")
    assert names == ("b", "a", "c") and codes.tolist() == [1, 1, 0, 0, 0, 2]
    assert of("aabbab", 4)[1] == ("a", "b")
    for cells, first, says in (
        ("abcab", None, r"'g' \(--group\) has 3 values in 5 rows: groups of several"),
        ("abcabaaaaa", 5, "has 3 values in 5 rows"),
        ("aaaa", None, "has one value, 'a': leave it out"),
        ("aaaab", 4, "has one value, 'a'"),
        ("aabbabac", 6, r"--test holds a 'g' \(--group\) that no training row has"),
        (["a", "a", "b", None, None], None, r"'g' \(--group\) is empty in 2 rows: fill it"),
    ):
        with pytest.raises(DataError, match=says):
            of(cells, first)


def test_ids_are_four_or_more_and_of_one_file_each():
    def of(cells, first_test=None):
        return ids(pd.DataFrame({"i": cells}), "i", first_test)

    found = of([7, 7, 9, 3, 5])
    assert found.tolist() == [0, 0, 1, 2, 3] and found.dtype == np.int64
    assert of(["a", "b", "c"], 2).tolist() == [0, 1, 2]
    for cells, first, says in (
        ([7, 9, 7, 3], None, r"'i' \(--id\) has 3 values: four or more are needed"),
        ([7, 7], None, "has 1 value: four"),
        (["a", "b", "c", "b", "a"], 3, r"2 values of column 'i' \(--id\) stand in both"),
        (["a", "b", "c", "b"], 3, r"1 value of column 'i' \(--id\) stand in both"),
        ([1, 2, None, 3, 4], None, r"'i' \(--id\) is empty in 1 row: fill it"),
    ):
        with pytest.raises(DataError, match=says):
            of(cells, first)
