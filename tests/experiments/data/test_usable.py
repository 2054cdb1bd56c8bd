"""Which columns are numbers, which words, and which are left out: every kind, on both sides."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from experiments.data.usable import holds_numbers, is_number, kind_of, usable
from experiments.host.errors import DataError

DAY, TIME = datetime.date(2024, 1, 2), datetime.time(3, 4)
DATES = "of dates or times"
NEITHER = "of neither numbers nor words"
# (cells, their type, what kind_of says)
KINDS = {
    "whole": ([1, 2], "int64", "number"),
    "fractions": ([0.5, np.nan], "float32", "number"),
    "truths": ([True, False], "bool", "number"),
    "nullable": ([1, None], "Int64", "number"),
    "nullable truths": ([True, None], "boolean", "number"),
    "truths with one missing": ([True, None], object, "number"),
    "truths with one not available": ([True, pd.NA], object, "number"),
    "nothing": ([None, None], object, "number"),
    "no row": ([], object, "number"),
    "complex": ([1j, 2], complex, "of complex numbers"),
    "days": (["2024-01-01", "2024-01-02"], "datetime64[ns]", DATES),
    "days of a place": (["2024-01-01", "2024-01-02"], "datetime64[ns, UTC]", DATES),
    "spans": ([1, 2], "timedelta64[ns]", DATES),
    "dates": ([DAY, None], object, DATES),
    "times": ([TIME, TIME], object, DATES),
    "moments": ([datetime.datetime(2024, 1, 2), DAY], object, DATES),
    "words": (["a", None], object, "words"),
    "a type of words": (["a", None], "string", "words"),
    "categories": (["a", "b"], "category", "words"),
    "categories of numbers": ([1, 2], "category", "words"),
    "categories of truths": ([True, False], "category", "words"),
    "lists": ([["a"], ["b"]], object, NEITHER),
    "words and numbers": (["a", 3], object, NEITHER),
    "decimals": ([Decimal(1), Decimal(2)], object, NEITHER),
    "bytes": ([b"a", b"b"], object, NEITHER),
}  # fmt: skip


def of(name):
    cells, dtype, _ = KINDS[name]
    return pd.Series(cells, dtype=dtype, name="c")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_column(name):
    column, kind = of(name), KINDS[name][2]
    assert kind_of(column) == kind
    typed = name in ("whole", "fractions", "truths", "nullable", "nullable truths", "complex")
    assert is_number(column) == typed
    assert holds_numbers(column) == (typed or (kind == "number" and name != "no row"))
    notes = []
    frame = pd.DataFrame({"x": np.arange(len(column)) / 2, "c": column})
    found = usable(frame, (), notes)
    assert list(found.columns) == (["x", "c"] if kind in ("number", "words") else ["x"])
    assert notes == ([] if "c" in found else [f"1 column {kind} left out: c"])
    if "c" in found:
        missing = [x is None or x is pd.NA or x != x for x in column]
        assert found["c"].isna().tolist() == missing
        assert (found["c"].dtype == object) == (kind == "words")
    if kind == "words":
        assert found["c"].dropna().tolist() == column.dropna().tolist()
        assert all(x is None for x in found["c"][column.isna()])


def test_one_truth_without_a_type_is_a_number():
    assert holds_numbers(pd.Series([True], dtype=object))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "Int64", "bool"])
def test_numbers_keep_their_width_and_their_rows(dtype):
    frame = pd.DataFrame({"x": [0, 1, 1], "w": ["a", None, "b"]}, index=[7, 5, 9])
    found = usable(frame.astype({"x": dtype}), (), [])
    assert found["x"].dtype == (np.float32 if dtype in ("float16", "float32") else np.float64)
    assert found["x"].tolist() == [0, 1, 1] and found["w"].tolist() == ["a", None, "b"]
    assert found.index.tolist() == [7, 5, 9]


def test_numbers_have_a_variance():
    frame = pd.DataFrame({"x": [1e100, np.nan, -1e100], "none": [np.nan] * 3})
    assert usable(frame, (), [])["x"].tolist()[::2] == [1e100, -1e100]
    for cells, says in (
        ([1.0, -1.1e100, 2.0], "'x' holds 1.1e.100, too large to standardise"),
        ([1.5e100, 2e100, np.nan], "'x' holds 2e.100"),
        ([1.0, -np.inf, np.nan], "'x' holds infinite values"),
    ):
        with pytest.raises(DataError, match=says):
            usable(pd.DataFrame({"x": cells}), (), [])


def words(distinct, rows):
    return pd.DataFrame({"w": [f"w{k % distinct}" for k in range(rows)], "x": np.arange(rows) / 2})


@pytest.mark.parametrize(
    ("distinct", "rows", "stays"),
    [(20, 20, True), (21, 21, False), (21, 41, False), (21, 42, True), (30, 60, True)],
)
def test_words_of_many_values_are_half_the_rows_at_most(distinct, rows, stays):
    notes, frame = [], words(distinct, rows)
    assert ("w" in usable(frame, (), notes)) == stays
    why = "whose values nearly all differ (--text, were it sentences)"
    assert notes == ([] if stays else [f"1 column {why} left out: w"])
    assert "w" in usable(frame, ("w",), []) and "w" in usable(frame, (), [], like=frame)
    # By the rows that are trained on, whatever the others hold.
    more = pd.concat([frame, words(1, 99)], ignore_index=True)
    assert ("w" in usable(more, (), [], judged=rows)) == stays


def test_of_what_is_left_out_five_names_are_told():
    for many, shown in ((5, "a, b, c, d, e"), (6, "a, b, c, d, e, ...")):
        notes = []
        frame = pd.DataFrame({name: [1j, 2] for name in "abcdef"[:many]}).assign(x=[0.5, 1])
        usable(frame, (), notes)
        assert notes == [f"{many} columns of complex numbers left out: {shown}"]
    notes = []
    usable(pd.DataFrame({"a\nb": [1j, 2], "x": [0.5, 1]}), (), notes)
    assert notes == [r"1 column of complex numbers left out: 'a\nb'"]
    with pytest.raises(DataError, match=r"^no column is left to learn from; 1 column of dates"):
        usable(pd.DataFrame({"d": of("days")}), (), [])


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (range(21), True), (range(-7, 14), True), ([*range(20, 10, -1), *range(11)], True),
        (range(20), False), ([*range(20), 19], False), ([*range(20), 21], False),
        ([*range(20), 19.5], False), ([0.5 * k for k in range(41)], False),
        ([*range(20), np.nan], False), ([0, *range(19), 20], False),
    ],
)  # fmt: skip
def test_numbers_of_the_rows(cells, told):
    """Whole ones without a gap, each once, of more than twenty rows."""
    notes, frame = [], pd.DataFrame({"n": list(cells)})
    usable(frame, (), notes)
    says = (
        "column 'n' holds the numbers of the rows, and is learned from as any other: leave it out, "
        "unless it measures something"
    )
    assert notes == [says] * told
    usable(frame, (), notes, like=frame)
    assert len(notes) == told
    more = pd.concat([frame, pd.DataFrame({"n": [3.5, 1e9]})], ignore_index=True)
    usable(more, (), notes, judged=len(frame))
    assert notes == [says] * 2 * told


@pytest.mark.parametrize(
    ("numbers", "others", "told"), [(36, 4, True), (35, 5, False), (39, 1, True), (40, 0, False)]
)
def test_a_few_words_among_numbers_are_told(numbers, others, told):
    """A tenth of the cells at most; a column of at most twenty values has categories."""
    notes, cells = [], [*(f"{k}.5" for k in range(numbers)), *["?"] * others, None]
    usable(pd.DataFrame({"n": cells, "x": np.arange(len(cells)) / 2}), (), notes)
    rows = "1 row" if others == 1 else f"{others} rows"
    says = f"column 'n' is taken for one of words, for '?' and the like in {rows}: leave these"
    assert [note.startswith(says) for note in notes[:-1]] == [True] * told
    for values, note in ((19, 0), (20, 1)):  # and "?"
        cells = [*(f"{k % values}" for k in range(60)), "?"]
        notes = []
        usable(pd.DataFrame({"n": cells, "x": np.arange(61) / 2}), (), notes)
        assert len(notes) == note
        usable(pd.DataFrame({"n": cells}), ("n",), notes)
        assert len(notes) == note


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["1,5", "2"], "1,5"), (["1.234.567,5", "2"], None), (["1.234,5", "2"], "1.234,5"),
        (["1.2.3,4", "2"], None), (["7", "$8"], "$8"), (["7", "8 %"], "8 %"), (["a,b", "2"], None),
        (["1,5", "a"], None), (["1", "2"], None),
    ],
)  # fmt: skip
def test_numbers_with_signs_are_told(cells, told):
    for dtype in (object, "category"):
        notes, column = [], pd.Series([*cells, None], dtype=dtype)
        usable(pd.DataFrame({"c": column, "x": [0.5, 1, 2]}), (), notes)
        says = (
            f"column 'c' is taken for one of words, for {told!r} and the like: were these numbers"
        )
        assert [note.startswith(says) for note in notes] == [True] * (told is not None)
    notes, many = [], [*(f"{k}" for k in range(40)), "1,5"]  # and of words nothing more
    usable(pd.DataFrame({"c": many, "x": np.arange(41) / 2}), (), notes)
    assert [" and the like: were these" in note for note in notes] == [True, False]
    notes = []
    usable(
        pd.DataFrame({"c": pd.Series([1, 2, None], dtype="category"), "x": [0.5, 1, 2]}), (), notes
    )
    assert notes == []


def test_a_frame_is_as_another_was():
    like = pd.DataFrame({"x": [0.5], "w": ["a"]})
    frame = pd.DataFrame({"x": [None, None], "w": ["b", None]})
    found = usable(frame, (), [], like)
    assert found["x"].isna().all() and found["x"].dtype == np.float64
    assert found["w"].tolist() == ["b", None]
    nothing = usable(pd.DataFrame({"x": [1], "w": pd.to_datetime([None])}), (), [], like)
    assert nothing["w"].tolist() == [None]
    for columns, says in (
        ({"x": ["a", "b"], "w": ["b", "c"]}, "'x' holds words, where there were numbers"),
        (
            {"x": [1, 2], "w": pd.to_datetime(["2024-01-01", None])},
            "'w' is one of dates or times, w",
        ),
        ({"x": [1, 2], "w": [["a"], None]}, "'w' is one of neither numbers nor words, where there"),
    ):
        with pytest.raises(DataError, match=says):
            usable(pd.DataFrame(columns), (), [], like)
