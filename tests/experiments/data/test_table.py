"""A file becomes a table: every kind of file with every fault, and what is made of the rest."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from experiments.data.files import MOST_COLUMNS
from experiments.data.table import Table, read, read_rows
from experiments.host.errors import DataError


def good(n=12):
    """A table of three classes, 6, 4 and 2 rows, with every kind of column."""
    at = np.arange(n)
    return pd.DataFrame(
        {
            "size": at * 0.5,
            "count": at % 3,
            "colour": np.array(["red", "blue", "grey"])[at % 3],
            "said": [f"word{k} and word{k + 1} again" for k in at],
            "open": at % 2 == 0,
            "who": [f"p{k // 2}" for k in at],
            "kind": np.array(["a"] * 6 + ["b"] * 4 + ["c"] * 2)[at % 12],
        }
    )


def write(folder, frame, kind):
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    elif kind == "npz":
        numbers = frame.select_dtypes(["number", "bool"])
        numbers = numbers.drop(columns=["kind"], errors="ignore")
        labels = np.array(frame["kind"].tolist())
        names = np.array(list(numbers.columns), str)
        np.savez(path, X=numbers.to_numpy(np.float64), y=labels, feature_names=names)
    else:
        frame.to_csv(path, index=False, sep={"csv": ",", "tsv": "\t"}[kind])
    return path


COLUMNS_OF = {kind: "kind" for kind in ("csv", "tsv", "parquet")} | {"npz": None}
TEXTS = ("csv", "tsv", "parquet")


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path, kind):
    path = write(tmp_path, good()[["kind", "size"]], kind)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read(path, "kind").columns) == ["size"]


@pytest.mark.parametrize("kind", COLUMNS_OF)
def test_every_kind_of_file_gives_the_same_table(tmp_path, kind):
    table = read(write(tmp_path, good(), kind), COLUMNS_OF[kind])
    assert table.class_names == ("a", "b", "c")
    assert table.class_counts().tolist() == [6, 4, 2]
    assert table.labels.dtype == np.int32
    np.testing.assert_array_equal(table.columns["size"], np.arange(12) * 0.5)
    np.testing.assert_array_equal(table.columns["open"], np.arange(12) % 2 == 0)
    assert table.name == "rows"
    if kind != "npz":
        assert list(table.columns) == ["size", "count", "colour", "said", "open", "who"]
        assert table.columns["colour"].tolist() == ["red", "blue", "grey"] * 4


def changed(**columns):
    return lambda frame: frame.assign(**columns)


def renamed(frame):
    return frame.rename(columns={"size": "count2", "count": "count2"})


def wide(frame):
    numbers = pd.DataFrame(np.zeros((12, MOST_COLUMNS + 1)))
    return pd.concat([frame[["kind"]], numbers.rename(columns=str)], axis=1)


# (fault, kinds of file that can have it, what the one sentence says)
FAULTS = {
    "one class": (changed(kind="a"), COLUMNS_OF, "one class 'a'"),
    "single rows": (changed(kind=["a"] * 10 + ["b", "c"]), COLUMNS_OF, "only class 'a'"),
    "all different": (changed(kind=[f"k{x}" for x in range(12)]), COLUMNS_OF, "all different"),
    "nearly": (changed(kind=[f"k{x % 8}" for x in range(12)]), COLUMNS_OF, "8 values in 12 rows"),
    "a number": (changed(kind=np.arange(12) / 7), COLUMNS_OF, "a number to predict"),
    "no label": (changed(kind=None), TEXTS, "is empty in every row"),
    "infinite": (changed(size=[np.inf, *range(11)]), COLUMNS_OF, "'size' holds infinite"),
    "too large": (changed(size=[1e200, *range(11)]), COLUMNS_OF, "too large to standardise"),
    "infinite label": (changed(kind=[np.inf] * 6 + [1.5] * 6), COLUMNS_OF, "infinite labels"),
    "no rows": (lambda frame: frame[:0], COLUMNS_OF, "holds no rows"),
    "wide": (wide, ("csv",), f"over the {MOST_COLUMNS}"),
    "two names": (renamed, ("csv", "tsv", "npz"), "two columns named 'count2'"),
    "label alone": (lambda frame: frame[["kind"]], TEXTS, "no column is left"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "kind"), [(fault, kind) for fault, (_, kinds, _) in FAULTS.items() for kind in kinds]
)
def test_a_fault_is_one_sentence(tmp_path, fault, kind):
    change, _, says = FAULTS[fault]
    path = write(tmp_path, change(good()), kind)
    with pytest.raises(DataError) as refused:
        read(path, COLUMNS_OF[kind])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", COLUMNS_OF)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "does not exist"),
        (b"", ""),
        (b"\x00\xff\xfe", ""),
        (b"PK\x03\x04 no archive", ""),
        ("half", ""),
    ],
)
def test_damaged_bytes(tmp_path, kind, data, says):
    path = write(tmp_path, good(), kind)
    whole = path.read_bytes()
    path.unlink()
    if data == "half" and kind in ("csv", "tsv"):
        whole = whole[: len(whole) // 2].rpartition(b"," if kind == "csv" else b"\t")[0] + b"x"
    if data is not None:
        path.write_bytes(whole[: len(whole) // 2] if data == "half" else data)
    with pytest.raises(DataError, match=f"rows.{kind}.*{says}"):
        read(path, COLUMNS_OF[kind])


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"a,kind\n1,x\n2,y,3\n", "Expected 2 columns, got 3"),
        (b"a,kind\n1,x\n2\n", "Expected 2 columns, got 1"),
        ("a,kind\n1,\u00e9\n".encode("latin1"), "byte 10.*save it as UTF-8"),
        (b"a,a,kind\n1,2,x\n", "two columns named 'a'"),
        (b"a,kind\n1,x\0\n", "NUL"),
        (b"a,kind\n", "no rows"),
        (b'a,kind\n1,"x\n2,y\n3,x\n', "quotation mark is not closed: the last row, 1,"),
        (b'a,kind\n1,x\n2,"y\nz"\n', "holds .y.nz., which is no line of text"),
        (b"a,kind\n1,x\n2,\x1b[2J\n", "which is no line of text"),
        (b"  \n", "is empty"),
    ],
)
def test_text_that_is_no_table(tmp_path, lines, says):
    (tmp_path / "rows.csv").write_bytes(lines)
    with pytest.raises(DataError, match=says):
        read(tmp_path / "rows.csv", "kind")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"X": np.ones((3, 2))}, "no array y"),
        ({"y": np.ones(3)}, "no array X"),
        ({"X": np.ones((3, 2)), "y": np.ones(4)}, "X has 3 rows and y 4"),
        ({"X": np.ones(3), "y": np.ones(3)}, r"must be numbers \[n, d\]"),
        ({"X": np.ones((3, 2, 2)), "y": np.ones(3)}, r"must be numbers \[n, d\]"),
        ({"X": np.ones((3, 2), complex), "y": np.ones(3)}, "must be numbers"),
        ({"X": np.ones((3, 2)), "y": np.ones((3, 2))}, "y must be numbers or text"),
        ({"X": np.full((3, 2), None), "y": np.ones(3)}, "Python objects.*not unpickled"),
        ({"X": np.ones((3, 2)), "y": np.full(3, None)}, "Python objects.*not unpickled"),
        ({"X": np.ones((3, 2)), "y": np.ones(3), "feature_names": np.array(["a"])}, "names 1"),
        ({"X": np.ones((3, 2)), "y": np.ones(3), "feature_names": np.array(["a", "a"])}, "'a'"),
        ({"X": np.ones((3, MOST_COLUMNS + 1)), "y": np.ones(3)}, "10001 columns"),
        ({"X": np.ones((3, 2)), "y": np.array(["a", "b", "\udc80"])}, "y holds what is no text"),
        (
            {"X": np.ones((2, 2)), "y": np.array([97, 2**31 - 1], np.uint32).view("<U1")},
            "y holds what is no text",
        ),
    ],
)
def test_arrays_that_are_no_table(tmp_path, arrays, says):
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(DataError, match=says):
        read(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"label": "knd"}, "no column 'knd'.*did you mean 'kind'"),
        ({"label": None}, "name that of the labels with --label"),
        ({"text": ["zzz"]}, "no column 'zzz'.*--text.*it has 'size', 'count'"),
        ({"text": ["kind"]}, "'kind' is given as --label and --text"),
        ({"text": ["said", "said"]}, "--text twice"),
        ({"text": ["size"]}, "'size'.*holds numbers, no text"),
        ({"group": "kind"}, "--label and --group"),
        ({"group": "said"}, "12 values in 12 rows"),
        ({"id": "nobody"}, "no column 'nobody'.*--id"),
        ({"id": "open"}, "2 values: four or more"),
    ],
)
def test_columns_that_are_given_wrongly(tmp_path, given, says):
    with pytest.raises(DataError, match=says):
        read(write(tmp_path, good(), "csv"), **{"label": "kind", **given})


def test_a_file_of_no_kind_is_told_before_its_label_is_asked_for(tmp_path):
    for name in ("rows.npy", "rows.npz.gz"):
        with pytest.raises(DataError, match=r"is named neither \.csv, \.tsv, \.parquet nor \.npz"):
            read(tmp_path / name)


@pytest.mark.parametrize("columns", [7, 8, 9])
def test_of_many_columns_the_first_eight_are_named(tmp_path, columns):
    frame = good().assign(kind2=1, kind3=2).iloc[:, -columns:]
    with pytest.raises(DataError) as refused:
        read(write(tmp_path, frame, "csv"), "zzz")
    named = ", ".join(map(repr, frame.columns[:8])) + ", ..." * (columns == 9)
    assert str(refused.value).endswith(f"no column 'zzz' (--label): it has {named}")


@pytest.mark.parametrize("path", ["rows.xls", "rows", "sklearn:iris2"])
def test_no_kind_of_file(tmp_path, path):
    with pytest.raises(DataError, match=r"named neither|no bundled set"):
        read(path, None if ":" in path else "kind")


def test_a_label_for_a_file_that_says_its_own(tmp_path):
    with pytest.raises(DataError, match="leave out --label"):
        read(write(tmp_path, good(), "npz"), "kind")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([7] * 6 + [-3] * 4 + [10] * 2, ("7", "-3", "10")),
        ([7.0] * 6 + [-3.0] * 4 + [10.0] * 2, ("7", "-3", "10")),
        ([0.5] * 2 + [1.5] * 6 + [2.0] * 4, ("1.5", "2.0", "0.5")),
        ([True] * 5 + [False] * 7, ("False", "True")),
        (["n"] * 2 + ["10"] * 5 + ["9"] * 5, ("10", "9", "n")),
    ],
)
@pytest.mark.parametrize("kind", COLUMNS_OF)
def test_labels_of_any_kind_by_falling_count(tmp_path, kind, labels, names):
    table = read(write(tmp_path, good().assign(kind=labels), kind), COLUMNS_OF[kind])
    assert table.class_names == names
    assert (np.diff(table.class_counts()) <= 0).all()
    plain = {str(x).removesuffix(".0") for x in labels}
    for label, code in zip(labels, table.labels, strict=True):
        assert table.class_names[code] in (str(label), str(label).removesuffix(".0"))
    assert len(plain) == len(names)


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_left_out_is_told(tmp_path, kind):
    frame = good(40).assign(
        day=pd.date_range("2024-01-01", periods=40),
        name=[f"n{x}" for x in range(40)],
        kind=["a"] * 20 + ["b"] * 18 + ["rare", None],
    )
    frame.loc[3, "size"] = None
    frame.loc[4, "colour"] = None
    table = read(write(tmp_path, frame, kind), "kind", text=["said"])
    assert table.notes == (
        "1 row without a label left out",
        "1 class with a single row left out, which cannot be both trained on and tested: "
        "class rare",
        "1 column of dates or times left out: day",
        "1 column whose values nearly all differ (--text, were it sentences) left out: name",
    )
    assert len(table.labels) == len(table.columns) == 38
    assert np.isnan(table.columns["size"][3]) and table.columns["colour"][4] is None


# Numbers that float64, which some are read as, does not tell apart.
ROUNDED = {
    "beyond 64 bits": [10**30, 10**30 + 1, 5],
    "with one missing": [2**53, 2**53 + 1, None],
    "decimal": [Decimal(2**60), Decimal(2**60 + 1), Decimal(5)],
}


@pytest.mark.parametrize(
    ("what", "role"),
    [
        (what, role)
        for what, values in ROUNDED.items()
        for role in ("label", "group", "id")
        if role == "label" or None not in values  # rows without the others are refused before
    ],
)
def test_numbers_that_would_fall_together(tmp_path, what, role):
    kind = "csv" if what == "beyond 64 bits" else "parquet"
    values = ROUNDED[what] * 4
    path = write(tmp_path, good().assign(of=pd.array(values, object)), kind)
    with pytest.raises(DataError, match=r"'of' holds numbers of 2\*\*53 and more"):
        read(path, **{"label": "kind", role: "of"})


def test_whole_numbers_of_64_bits_are_told_apart(tmp_path):
    large = good().assign(kind=[2**62] * 6 + [2**62 + 1] * 4 + [2**62 + 2] * 2)
    assert read(write(tmp_path, large, "csv"), "kind").num_classes == 3


@pytest.mark.parametrize("role", ["label", "group", "id"])
def test_cells_of_any_kind_are_told_apart_by_their_words(tmp_path, role):
    for cells in ([[k % 3] for k in range(12)], [{"u": k % 3} for k in range(12)]):
        path = write(tmp_path, good().assign(of=cells), "parquet")
        if role == "id":
            with pytest.raises(DataError, match="3 values: four or more"):
                read(path, "kind", id="of")
            continue
        table = read(path, **{"label": "kind", role: "of"})
        assert len(table.weighed_names) == 3
    path = write(tmp_path, good().assign(of=[b"a", b"\xff"] * 6), "parquet")
    with pytest.raises(DataError, match="'of' holds bytes that are no text"):
        read(path, **{"label": "kind", role: "of"})


def test_an_empty_word_is_no_class(tmp_path):
    frame = good().assign(kind=["a"] * 6 + [""] * 2 + ["b"] * 4)
    for kind, label in COLUMNS_OF.items():
        table = read(write(tmp_path, frame, kind), label)
        if kind != "parquet":  # which has a word for nothing
            assert table.class_names == ("a", "b")


@pytest.mark.parametrize("other", ["a ", "A", "\uff41"])
def test_names_that_are_nearly_the_same_are_told(tmp_path, other):
    frame = good().assign(kind=["a"] * 7 + [other] * 5)
    notes = read(write(tmp_path, frame, "csv"), "kind").notes
    assert notes == (
        f"'a' and {other!r} in column 'kind' are taken for different, though but for spaces and "
        "capitals they are the same",
    )


def test_a_word_among_numbers_is_told(tmp_path):
    path = write(tmp_path, good(40).assign(age=[*range(39), "?"], kind=["a", "b"] * 20), "csv")
    notes = read(path, "kind", text=["said"]).notes
    assert notes[0] == (
        "column 'age' is taken for one of words, for '?' and the like in 1 row: leave these empty "
        "where they stand for no number"
    )


@pytest.mark.parametrize("kind", COLUMNS_OF)
def test_measured_labels_that_repeat_are_no_classes(tmp_path, kind):
    path = write(tmp_path, good(90).assign(kind=np.arange(90) % 30 + 0.5), kind)
    with pytest.raises(DataError, match="30 fractional numbers; this looks like a number"):
        read(path, COLUMNS_OF[kind])


def test_groups_and_ids_are_no_features(tmp_path):
    table = read(write(tmp_path, good(), "csv"), "kind", group="colour", id="who")
    assert list(table.columns) == ["size", "count", "said", "open"]
    assert table.group_names == table.weighed_names == ("blue", "grey", "red")
    assert [table.group_names[g] for g in table.weighed[:3]] == ["red", "blue", "grey"]
    assert table.ids.tolist() == [k // 2 for k in range(12)]


def test_a_test_file_of_ones_own(tmp_path):
    path = write(tmp_path, good(), "csv")
    other = tmp_path / "other.tsv"
    good()[[*good().columns[::-1]]][6:].to_csv(other, index=False, sep="\t")
    table = read(path, "kind", test=other)
    assert table.first_test_row == 12 and len(table.labels) == 18
    assert table.labels[12:].tolist() == table.labels[6:12].tolist()


@pytest.mark.parametrize("more", [["note"], ["note", "score"], ["Unnamed: 0"], ["Unnamed: 0", "b"]])
def test_columns_that_only_a_test_file_has_are_named(tmp_path, more):
    """But row numbers, which are left out of either."""
    path, other = write(tmp_path, good(), "csv"), tmp_path / "other.csv"
    good().assign(**{name: range(12) for name in more}).to_csv(other, index=False)
    named = [name for name in more if name != "Unnamed: 0"]
    notes, plain = (read(path, "kind", test=at).notes for at in (other, write_twin(tmp_path)))
    told = f"of {other} that {path} lacks left out: {', '.join(named)}"
    many = "1 column" if len(named) == 1 else f"{len(named)} columns"
    assert [x for x in notes if x not in plain] == ([f"{many} {told}"] if named else [])


def write_twin(tmp_path):
    good().to_csv(tmp_path / "twin.csv", index=False)
    return tmp_path / "twin.csv"


@pytest.mark.parametrize(
    ("change", "given", "says"),
    [
        (lambda f: f.drop(columns="size"), {}, "no column 'size', as there is in .*rows.csv$"),
        (lambda f: f.assign(size="x"), {}, "'size' holds words"),
        (lambda f: f.assign(kind="d"), {}, "class 'd', which no training row has"),
        (lambda f: f.assign(kind=None), {}, "no row with a label"),
        (lambda f: f, {"id": "who"}, "stand in both"),
        (lambda f: f.assign(colour="pink"), {"group": "colour"}, "no training row has"),
    ],
)
def test_a_test_file_that_does_not_fit(tmp_path, change, given, says):
    path = write(tmp_path, good(), "csv")
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", change(good()), "csv")
    with pytest.raises(DataError, match=says):
        read(path, "kind", test=other, **given)


def test_rows_without_labels(tmp_path):
    table = read(write(tmp_path, good(), "csv"), "kind")
    frame = good()[["open", "who", "said", "colour", "count", "size"]].assign(more=1)
    rows = read_rows(write(tmp_path, frame, "parquet"), table.columns.iloc[:0])
    pd.testing.assert_frame_equal(rows, table.columns)
    with pytest.raises(DataError, match="'size' holds words"):
        read_rows(write(tmp_path, frame.assign(size="x"), "csv"), table.columns.iloc[:0])


# Of words that are trained on, what another file may hold there: (cells, kind of file, what then).
WORDS_LATER = {
    "numbers in text": ([1] * 12, "csv", "1"),
    "with zeros in front": (["01"] * 12, "csv", "01"),
    "dates in text": (["2020-01-01"] * 12, "csv", "2020-01-01"),
    "truth in text": ([True] * 12, "csv", "True"),
    "nothing": ([None] * 12, "csv", None),
    "numbers": ([1] * 12, "parquet", "holds numbers, and in"),
    "truth": ([True] * 12, "parquet", "holds numbers, and in"),
    "dates": (pd.date_range("2024-01-01", periods=12), "parquet", "one of dates or times"),
    "lists": ([["red"]] * 12, "parquet", "one of neither numbers nor words"),
}


@pytest.mark.parametrize("what", WORDS_LATER)
def test_words_stay_words_in_another_file(tmp_path, what):
    """A category of which the rows at hand have numbers alone would else be one never seen."""
    cells, kind, then = WORDS_LATER[what]
    first = write(tmp_path, good().assign(colour=["1", "red", "01"] * 4), "csv")
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", good().assign(colour=cells), kind)
    like = read(first, "kind").columns.iloc[:0]
    if then is not None and " " in then:
        with pytest.raises(DataError, match=then):
            read_rows(other, like)
        return
    assert read_rows(other, like)["colour"].tolist() == [then] * 12
    if then is not None:
        assert read(first, "kind", test=other).columns["colour"].tolist()[12:] == [then] * 12


def test_days_beside_numbers_are_told_as_days(tmp_path):
    days = pd.date_range("2024-01-01", periods=12)
    first = write(tmp_path, good().assign(day=days), "csv")
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", good().assign(day=1), "csv")
    with pytest.raises(DataError, match=r"'day' holds numbers, and in .* dates or times$"):
        read(first, "kind", test=other)
    with pytest.raises(DataError, match=r"'day' holds dates or times, and in .* numbers$"):
        read(other, "kind", test=first)


def test_truths_with_one_missing_are_truths_in_another_file(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [write(tmp_path, good(), "csv")]
    paths += [write(tmp_path / "other", good().assign(open=[None, *[True] * 11]), "csv")]
    for path, other in (paths, paths[::-1]):
        assert read(path, "kind", test=other).columns["open"].dtype == np.float64


def test_the_file_that_is_trained_on_is_no_test(tmp_path):
    path = write(tmp_path, good(), "csv")
    (tmp_path / "link.csv").symlink_to(path)
    for other in (path, tmp_path / "link.csv"):
        with pytest.raises(DataError, match="is the file that is trained on"):
            read(path, "kind", test=other)
    with pytest.raises(DataError, match="is the file that is trained on"):
        read("sklearn:wine", test="sklearn:wine")


@pytest.mark.parametrize(
    ("name", "rows", "classes"), [("digits", 1797, 10), ("wine", 178, 3), ("breast_cancer", 569, 2)]
)
def test_bundled_sets(name, rows, classes):
    table = read(f"sklearn:{name}")
    assert (len(table.labels), table.num_classes, table.name) == (rows, classes, name)


def test_two_files_are_one_table(tmp_path):
    path, other = write(tmp_path, good(), "csv"), tmp_path / "other.csv"
    rows = good()[::-1].iloc[:6].assign(size=range(6))
    rows.loc[rows.index[0], "colour"] = None
    rows.to_csv(other, index=False)
    table = read(path, "kind", test=other)
    assert table.source == f"{path} and {other}" and table.name == "rows"
    assert table.columns.index.tolist() == list(range(18))
    assert table.columns["size"].tolist() == [*good()["size"], *range(6)]
    assert table.columns["colour"].isna().sum() == 1
    alone = read(path, "kind")
    assert alone.source == str(path) and alone.columns.index.tolist() == list(range(12))
    assert table.groups is None and table.ids is None and table.weighed is table.labels
    assert table.weighed_names is table.class_names


def test_a_class_without_a_row_is_counted_as_none(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2]})
    table = Table(name="t", columns=frame, labels=np.zeros(2, np.int32), class_names=("a", "b"))
    assert table.class_counts().tolist() == [2, 0]


@pytest.mark.parametrize("swap", [False, True])
def test_words_of_which_some_are_missing_are_no_numbers(tmp_path, swap):
    """Of the one file numbers, of the other words: a column that is empty alone is of any kind."""
    numbers, words = [1.5, None, 2.5] * 4, ["a", None, "b"] * 4
    for path, cells in zip(("1.csv", "2.csv"), (words, numbers) if swap else (numbers, words),
                           strict=True):  # fmt: skip
        good()[["kind", "count"]].assign(x=cells).to_csv(tmp_path / path, index=False)
    if swap:  # words are read as such in the other file
        table = read(tmp_path / "1.csv", "kind", test=tmp_path / "2.csv")
        assert table.columns["x"].tolist()[12:14] == ["1.5", None]
        return
    with pytest.raises(DataError, match=r"2.csv: column 'x' holds words, and in .*1.csv numbers"):
        read(tmp_path / "1.csv", "kind", test=tmp_path / "2.csv")


# ---- what a review with tables of its own found ---------------------------------------------


def test_a_column_that_one_file_leaves_empty_is_of_the_others_kind(tmp_path):
    """Numbers stay numbers, whichever of the two files has them, and words words."""
    whole = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0), "c": list("xyxyxyxy"),
                          "kind": list("uvuvuvuv")})  # fmt: skip
    for name in ("b", "c"):
        for which in ("train", "test"):
            empty = whole.assign(**{name: None})
            files = {"train": whole, "test": whole, which: empty}
            for key, frame in files.items():
                frame.to_csv(tmp_path / f"{key}.csv", index=False)
            table = read(tmp_path / "train.csv", "kind", test=tmp_path / "test.csv")
            there = table.columns[name].notna().to_numpy()
            assert there.tolist() == [which == "test"] * 8 + [which == "train"] * 8
            assert (table.columns[name].dtype == np.float64) == (name == "b")
            assert table.notes == ()


def test_columns_of_words_are_judged_by_the_rows_trained_on(tmp_path):
    """30 names in 40 rows are no categories, however large the file of test rows is."""
    frame = pd.DataFrame({"name": [f"n{k % 30}" for k in range(40)], "x": np.arange(40.0),
                          "kind": ["u", "v"] * 20})  # fmt: skip
    frame.to_csv(tmp_path / "train.csv", index=False)
    pd.concat([frame] * 4).to_csv(tmp_path / "test.csv", index=False)
    alone, beside = (
        read(tmp_path / "train.csv", "kind", test=test) for test in (None, tmp_path / "test.csv")
    )
    assert list(alone.columns) == list(beside.columns) == ["x"]
    assert alone.notes == beside.notes and "nearly all differ" in alone.notes[-1]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("role", ["label", "group", "id"])
def test_a_leading_zero_is_a_part_of_a_name(tmp_path, kind, role):
    """007 is not 7; without any such cell numbers are numbers, as before."""
    cells = {"label": ["u", "v"] * 8, "group": ["p", "q"] * 8, "id": list(map(str, range(16)))}
    path = tmp_path / f"x.{kind}"
    values = ["007", "7", "08", "9"] * 4

    def found(values):
        frame = pd.DataFrame({**cells, role: values, "x": np.arange(16.0)})
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
        return read(path, "label", group="group", id="id")

    def told(table):
        names = {"label": table.class_names, "group": table.group_names}
        return sorted(names[role]) if role in names else len(np.unique(table.ids))

    assert told(found(values)) == (sorted(set(values)) if role != "id" else 4)
    plain = ["10", "7", "8", "9"] * 4
    assert told(found(plain)) == (sorted(set(plain)) if role != "id" else 4)
    missing = ["007", "7", " 08", None] * 4  # an empty cell makes floats of whole numbers
    if role == "label":
        assert told(found(missing)) == ["007", "08", "7"]
    zero = ["0", "-1", "-2", "10"] * 4
    assert told(found(zero)) == (sorted(set(zero)) if role != "id" else 4)


def test_an_empty_line_of_a_lone_column_is_a_row(tmp_path):
    like = pd.DataFrame({"x": [0.5]})
    for text, want in (("x\n0.1\n\n2.5\n", [0.1, np.nan, 2.5]), ("x\n1\n2", [1, 2])):
        (tmp_path / "p.csv").write_text(text)
        np.testing.assert_array_equal(read_rows(tmp_path / "p.csv", like)["x"], want)
    (tmp_path / "p.csv").write_text("x,z\n0.1,1\n\n2.5,2\n")  # of several columns it is none
    np.testing.assert_array_equal(read_rows(tmp_path / "p.csv", like)["x"], [0.1, 2.5])


def test_arrays_to_be_predicted_need_no_labels(tmp_path):
    path, like = tmp_path / "p.npz", pd.DataFrame({"x0": [0.5], "x1": [0.5]})
    np.savez(path, X=np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(read_rows(path, like), np.arange(6.0).reshape(3, 2))
    with pytest.raises(DataError, match=r"no array y: it needs X\[n, d\] and y\[n\]"):
        read(path)
    np.savez(path, y=np.arange(3))
    with pytest.raises(DataError, match=r"no array X: it needs X\[n, d\]$"):
        read_rows(path, like)


def test_words_without_a_letter_are_missing_in_every_kind_of_file(tmp_path):
    words = ["a", "", "b", None] * 4
    frame = pd.DataFrame({"w": words, "x": np.arange(16.0), "kind": ["u", "v"] * 8})
    found = []
    for kind, dtype in (("csv", object), ("parquet", object), ("parquet", "category")):
        path = tmp_path / f"x.{kind}"
        held = frame.astype({"w": dtype})
        held.to_csv(path, index=False) if kind == "csv" else held.to_parquet(path)
        found.append(read(path, "kind").columns["w"].tolist())
    assert found == [["a", None, "b", None] * 4] * 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fractions_as_labels_have_their_own_digits(tmp_path, dtype):
    kinds = np.array([0.2, 0.1, 0.2, 0.1, 0.2, 0.3, 0.3], dtype)
    pd.DataFrame({"x": np.arange(7.0), "kind": kinds}).to_parquet(tmp_path / "x.parquet")
    table = read(tmp_path / "x.parquet", "kind")
    assert table.class_names == ("0.2", "0.1", "0.3")


def test_zeros_in_front_in_one_of_two_files(tmp_path):
    """Ids 100 to 107 and 000 to 003 are all words; labels 0 and 00 are two classes."""
    frame = pd.DataFrame({"id": np.arange(100, 108), "x": np.arange(8.0), "y": [0, 1] * 4})
    frame.to_csv(tmp_path / "train.csv", index=False)
    test = frame[:4].assign(id=["000", "001", "002", "003"])
    test.to_csv(tmp_path / "test.csv", index=False)
    table = read(tmp_path / "train.csv", "y", id="id", test=tmp_path / "test.csv")
    assert len(np.unique(table.ids)) == 12
    frame[:4].assign(id=range(4), y=["0", "01", "0", "01"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="class '01', which no training row has"):
        read(tmp_path / "train.csv", "y", id="id", test=tmp_path / "t.csv")


def test_empty_lines_around_a_table_are_no_rows(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\n\ny,a\nu,1\nv,2\nu,3\nv,4\n\n")
    assert read(path, "y").columns["a"].tolist() == [1, 2, 3, 4]
    path.write_text("\nx\n1\n\n2\n\n\n")
    rows = read_rows(path, pd.DataFrame({"x": [0.5]}))["x"]
    np.testing.assert_array_equal(rows, [1, np.nan, 2])


def test_a_role_given_twice_is_told_as_that(tmp_path):
    path = write(tmp_path, good().assign(kind=np.arange(12) % 3), "csv")
    with pytest.raises(DataError, match="is given as --label and --id"):
        read(path, "kind", id="kind")


def test_a_truth_with_one_missing_beside_numbers_of_the_other_file_is_a_number(tmp_path):
    """Side by side they are of no one type: the column was left out."""
    paths = [tmp_path / "train.csv", tmp_path / "test.csv"]
    cells = ["true", "", "false", "true"], ["1", "0", "0", "1"]
    for path, values in zip(paths, cells, strict=True):
        lines = [f"{x},{y},{k}" for k, (x, y) in enumerate(zip(values, "uvuv", strict=True))]
        path.write_text("\n".join(["x,kind,k", *lines]) + "\n")
    for path, other, want in (
        (*paths, [1, np.nan, 0, 1, 1, 0, 0, 1]), (*paths[::-1], [1, 0, 0, 1, 1, np.nan, 0, 1]),
    ):  # fmt: skip
        table = read(path, "kind", test=other)
        np.testing.assert_array_equal(table.columns["x"], want)
        assert table.notes == ()


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1", "__index_level_0__"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_row_numbers_beside_the_columns_are_no_feature(tmp_path, kind, name):
    """Of rows that are sorted by class they tell it; a file of other rows may lack them."""
    frame = good()[["kind", "size"]]
    numbered = frame.assign(**{name: [*range(10), 0, 1]})  # of two frames one after the other
    path = write(tmp_path, numbered, kind)
    write(tmp_path, frame, "tsv")
    for table in (read(path, "kind"), read(path, "kind", test=tmp_path / "rows.tsv")):
        assert list(table.columns) == ["size"]
        assert table.notes == (f"1 column of row numbers, by the name, left out: {name!r}",)
    assert len(np.unique(read(path, "kind", id=name).ids)) == 10
    words = read(write(tmp_path, frame.assign(**{name: list("uvwx") * 3}), kind), "kind")
    assert list(words.columns) == ["size", name]


@pytest.mark.parametrize("kind", COLUMNS_OF)
def test_numbers_of_the_rows_are_told(tmp_path, kind):
    says = (
        "column 'size' holds the numbers of the rows, and is learned from as any other: leave it "
        "out, unless it measures something"
    )
    frame = good(24).drop(columns="said")
    for values, told in (
        (np.random.default_rng(0).permutation(24) + 5, True),
        ([*range(23), 24], False), ([*range(23), 0], False), (np.arange(24) / 2, False),
    ):  # fmt: skip
        table = read(write(tmp_path, frame.assign(size=values), kind), COLUMNS_OF[kind])
        assert (says in table.notes) == told and "size" in table.columns


def test_lines_that_end_in_a_carriage_return_alone(tmp_path):
    rows = "\r".join(f"{k % 7},{'uv'[k % 2]}" for k in range(MOST_COLUMNS + 2))
    (tmp_path / "x.csv").write_bytes(f"x,kind\r{rows}\r".encode())
    table = read(tmp_path / "x.csv", "kind")
    assert (len(table.labels), list(table.columns)) == (MOST_COLUMNS + 2, ["x"])


@pytest.mark.parametrize("role", ["label", "group", "id"])
@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["250.1", "250.10", "250.0", "250.00"], 4),
        (["0x1F", "31", "0x20", "33"], 4),
        (["1.0", "2.0", "1", "2"], 2),  # of two files one after the other
        (["1.50", "2.25", "3.00", "4.10"], 4),
    ],
)
def test_names_that_read_as_numbers_would_fall_together(tmp_path, cells, names, role):
    frame = pd.DataFrame({"kind": ["u", "v"] * 8, "x": np.arange(16.0), "of": cells * 4})
    frame.to_csv(tmp_path / "x.csv", index=False)
    given = {"label": "kind", role: "of"}
    if role == "id" and names < 4:
        with pytest.raises(DataError, match=f"{names} values: four or more"):
            read(tmp_path / "x.csv", **given)
        return
    table = read(tmp_path / "x.csv", **given)
    held = table.ids if role == "id" else table.weighed
    assert len(np.unique(held)) == names
    if names == 4 and role != "id" and "1.50" not in cells:
        assert sorted(table.weighed_names) == sorted(cells)


@pytest.mark.parametrize("between", [";", "\t", "|"])
def test_columns_between_which_is_something_else_are_told(tmp_path, between):
    (tmp_path / "x.csv").write_text(f"kind{between}x\nu{between}1\n")
    with pytest.raises(DataError, match="its first line is one name, with "):
        read(tmp_path / "x.csv", "kind")


@pytest.mark.parametrize("cells", [["1,5", "2"], ["1.234,5", "7"], ["12%", "3%"], ["$1", "€2"]])
def test_numbers_that_are_written_as_words_are_told(tmp_path, cells):
    path = write(tmp_path, good()[["kind", "size"]].assign(cost=cells * 6), "tsv")
    assert read(path, "kind").notes == (
        f"column 'cost' is taken for one of words, for {cells[0]!r} and the like: were these "
        "numbers, write them with a point and without other signs",
    )
    for words in (["1,5", "a"], ["u,v", "w"], ["1", "x"]):
        path = write(tmp_path, good()[["kind", "size"]].assign(cost=words * 6), "tsv")
        assert read(path, "kind").notes == ()


def test_wider_arrays_without_names_are_of_something_else(tmp_path):
    """Their first columns were taken for those that are trained on."""
    draw = np.random.default_rng(0)
    for name, width in (("train", 3), ("test", 4)):
        np.savez(tmp_path / f"{name}.npz", X=draw.normal(size=(8, width)), y=[0, 1] * 4)
    train, test = tmp_path / "train.npz", tmp_path / "test.npz"
    with pytest.raises(DataError, match=r"test.npz: X has 4 columns, and that of .*train.npz 3$"):
        read(train, test=test)
    used = read(train)
    like = used.columns[["x0", "x1"]].iloc[:0]  # x2 may have been the same in all rows
    assert read_rows(train, like, used.width).shape == (8, 2)
    with pytest.raises(DataError, match=r"X has 4 columns, and that of the rows trained on 3$"):
        read_rows(test, like, used.width)
    with pytest.raises(DataError, match="no column 'x3'"):
        read_rows(train, read(test).columns.iloc[:0], 4)
    for path, width in ((train, 3), (test, 4)):
        names = np.array(["a", "b", "c", "d"][:width])
        np.savez(path, X=draw.normal(size=(8, width)), y=[0, 1] * 4, feature_names=names)
    named = read(train, test=test)
    assert list(named.columns) == ["a", "b", "c"] and named.width is None
