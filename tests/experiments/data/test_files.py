"""Files as frames: bounds, damage that only a checksum tells, and what a file says of itself."""

import hashlib
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from experiments.data.files import digests, frame, has_labels, with_leading_zeros
from experiments.host.errors import DataError


def text(folder, *lines, name="x.csv"):
    (folder / name).write_text("\n".join(lines))
    return folder / name


def test_ten_thousand_columns_can_be_taken(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, X=np.ones((1, 10_000)), y=[0])
    assert frame(path).shape == (1, 10_001)
    np.savez(path, X=np.ones((1, 10_001)), y=[0])
    names = [f"c{k}" for k in range(10_001)]
    pa.parquet.write_table(pa.table({name: [1] for name in names}), tmp_path / "x.parquet")
    # Of text the first line tells, before any other is looked at.
    csv = text(tmp_path, ",".join(names), "1,2")
    for wide in (path, tmp_path / "x.parquet", csv):
        with pytest.raises(DataError, match="has 10001 columns, over the 10000 that can be"):
            frame(wide)
    with pytest.raises(DataError, match="is not a table of rows as long as its first"):
        frame(text(tmp_path, ",".join(names[1:]), "1,2"))


def test_the_kind_of_a_column_is_judged_by_its_last_row_too(tmp_path):
    found = frame(text(tmp_path, "x,y", *["1,2"] * 5000, "a,2.5"))
    assert found["x"].tolist()[-2:] == ["1", "a"] and found["y"].tolist()[-2:] == [2.0, 2.5]


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        (["a,k", "1,x", '2,"y', 'z"'], "y\nz"),
        (["a,k", '"p",x', '"q","y', 'z"'], "y\nz"),
        (["a,k", '1,"x"'], "x"),
    ],
)
def test_a_cell_of_several_lines_is_a_cell(tmp_path, lines, last):
    assert frame(text(tmp_path, *lines))["k"].tolist()[-1] == last


@pytest.mark.parametrize("before", [[], ['"p",x'], ['"p","q"']])
def test_a_quotation_mark_that_is_not_closed_is_told(tmp_path, before):
    said = f"not closed: the last row, {len(before) + 1}, has all lines after it in its column 'k'"
    with pytest.raises(DataError, match=said):
        frame(text(tmp_path, "a,k", *before, '1,"x', "2,y"))


def test_a_page_of_another_checksum_is_damage(tmp_path):
    """Its bytes would be other numbers, and nothing else tells."""
    path = tmp_path / "x.parquet"
    table = pa.table({"x": np.arange(1000.0), "y": ["a", "b"] * 500})
    pa.parquet.write_table(
        table, path, write_page_checksum=True, compression="none", use_dictionary=False
    )
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.float64(500).tobytes()) + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"x.parquet is not a whole .parquet file: "):
        frame(path)


def test_an_index_that_pandas_wrote_is_a_column(tmp_path):
    rows = pd.DataFrame({"x": [1, 2]}, index=pd.Index([7, 8], name="row"))
    rows.to_parquet(tmp_path / "x.parquet")
    found = frame(tmp_path / "x.parquet")
    assert found.index.tolist() == [0, 1] and found["row"].tolist() == [7, 8]


def test_semicolons_are_told_where_commas_are_in_numbers(tmp_path):
    said = r"x.csv is not .* as its first: its first line is one name, with ';' in it; save it with"
    with pytest.raises(DataError, match=said):
        frame(text(tmp_path, "a;b", "0,5;1,5"))
    with pytest.raises(DataError, match="as its first: CSV parse error: Expected 2 columns, got 3"):
        frame(text(tmp_path, "a;b,c", "1,2,3"))


def test_cells_of_a_whole_file_that_cannot_be_read_are_told_by_their_column(tmp_path):
    path, ends = tmp_path / "x.parquet", pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes())
    words = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"a\xff")])
    zone, fine = pa.timestamp("s", tz="No/Where"), pa.time64("ns")
    for cells in (words, pa.array([1, 2], zone), pa.array([0, 1], fine)):
        pa.parquet.write_table(pa.table({"x": [1, 2], "k": cells}), path)
        with pytest.raises(DataError, match=r"x.parquet: column 'k' cannot be read \("):
            frame(path)


def test_days_after_the_year_9999_are_days(tmp_path):
    days = pa.array([0, 10_000_000], pa.date32())
    pa.parquet.write_table(pa.table({"day": days}), tmp_path / "x.parquet")
    found = frame(tmp_path / "x.parquet")["day"].to_numpy()
    assert found.astype("datetime64[D]").astype(int).tolist() == [0, 10_000_000]


def test_names_of_arrays(tmp_path):
    X = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "x.npz", X=X, y=["a", "", "b"], feature_names=["p", "q"])
    found = frame(tmp_path / "x.npz")
    assert list(found.columns) == ["p", "q", "y"] and found["y"].isna().tolist() == [
        False,
        True,
        False,
    ]
    np.savez(tmp_path / "x.npz", X=X, feature_names=["p", "q"])
    assert list(frame(tmp_path / "x.npz", labelled=False).columns) == ["p", "q"]
    np.savez(tmp_path / "x.npz", X=X, y=[True, False, True])
    assert list(frame(tmp_path / "x.npz").columns) == ["x0", "x1", "y"]
    np.savez(tmp_path / "x.npz", X=X, y=[0, 1, 2], feature_names=["p", "y"])
    with pytest.raises(DataError, match="two columns named 'y': rename one"):
        frame(tmp_path / "x.npz")


def test_what_a_file_says_of_itself(tmp_path):
    path = text(tmp_path, "x", "1")
    digest = hashlib.sha256(b"x\n1").hexdigest()
    assert digests(str(path), None, "sklearn:wine") == [digest, None, None] and digests() == []
    for name, own in (("a.npz", True), ("a.NPZ", True), ("sklearn:wine", True), ("a.csv", False)):
        assert has_labels(name) == own
    wine = frame("sklearn:wine")
    assert wine.columns[0] == "alcohol" and set(wine["y"]) == {"class_0", "class_1", "class_2"}


def test_names_with_zeros_in_front_in_any_of_the_files(tmp_path):
    one = text(tmp_path, "i,x", "007,1", "8,2")
    other = text(tmp_path, "i\tx", "9\t1", name="y.tsv")
    frames = [frame(one), frame(other)]
    found = with_leading_zeros([one, other], frames, ["i", "absent"])
    assert [part["i"].tolist() for part in found] == [["007", "8"], ["9"]]
    assert [part["x"].tolist() for part in found] == [[1, 2], [1]]
    # Of arrays and of columns of words nothing is read again.
    same = with_leading_zeros(["no.npz", "no.parquet"], frames, ["i"])
    assert [part["i"].tolist() for part in same] == [[7, 8], [9]]
    with pytest.raises(ValueError, match="longer than argument 1"):
        with_leading_zeros([one], frames, ["i"])


def _zipped(path, found):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.csv", found.to_csv(index=False))


OTHERWISE = {
    "gzip": (lambda path, found: found.to_csv(path, compression="gzip"), "by gzip: unpack it"),
    "zip": (_zipped, "a zip archive, as those of spreadsheets are: unpack it, or save it as"),
    "parquet": (lambda path, found: found.to_parquet(path), "a .parquet file: name it so"),
    "xls": (
        lambda path, _: path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1")), "of Excel's: save it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_is_no_text_is_told_as_what_it_is(tmp_path, kind, ending):
    write, says = OTHERWISE[kind]
    write(tmp_path / f"x{ending}", pd.DataFrame({"a": [1, 2], "kind": ["p", "q"]}))
    with pytest.raises(DataError, match=f"x{ending} is no text: it is .*{says}"):
        frame(tmp_path / f"x{ending}")


@pytest.mark.parametrize("name", ["PAR1", "PK", "PAR10"])
def test_a_column_may_be_named_as_other_files_begin(tmp_path, name):
    assert frame(text(tmp_path, f"{name},kind", "1,p")).columns.tolist() == [name, "kind"]
