"""Files with rows and columns, as a pandas frame: .csv, .tsv, .parquet, .npz, and bundled sets.

What is damaged, ragged or of another kind than its name says is a `DataError` of one sentence.
Nothing is guessed about what a column is for: table.py does that.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from experiments.host import inputs
from experiments.host.errors import DataError

MOST_COLUMNS = 10_000
BUNDLED = "sklearn:"
KINDS = (".csv", ".tsv", ".parquet", ".npz")

# What an .npz file's y is called in the frame: no column of the others may be.
LABELS = "y"
_SETS = ("digits", "wine", "breast_cancer")


def frame(
    path: str | os.PathLike[str], words: Collection[str] = (), labelled: bool = True
) -> pd.DataFrame:
    """The columns of a file; labels of an .npz file and of a bundled set are its column "y".

    Args:
      path: a .csv, .tsv, .parquet or .npz file, or sklearn:digits, sklearn:wine,
        sklearn:breast_cancer.
      words: columns of text files whose cells are words, also where all of these look like numbers.
      labelled: whether an .npz file needs labels.

    Raises:
      DataError: no such file, no rows, too many or equally named columns, or damage.
    """
    name = os.fspath(path)
    kind = Path(name).suffix.lower()
    if name.startswith(BUNDLED):
        found = _bundled(name.removeprefix(BUNDLED))
    elif kind in (".csv", ".tsv"):
        found = _delimited(name, "," if kind == ".csv" else "\t", words)
    elif kind == ".parquet":
        found = _parquet(name)
    elif kind == ".npz":
        found = _npz(name, labelled)
    else:
        raise DataError(
            f"{inputs.ascii_safe(name)} is named neither {', '.join(KINDS[:-1])} nor {KINDS[-1]}: "
            "convert it, or give it the ending of what it holds"
        )
    if len(found) == 0:
        raise DataError(f"{name} holds no rows")
    return found


def digests(*paths: str | None) -> list[str | None]:
    """The SHA-256 of each file that is one, by which it is known to be the same later."""
    found: list[str | None] = []
    for path in paths:
        if path is None or path.startswith(BUNDLED):
            found.append(None)
            continue
        found.append(hashlib.sha256(inputs.read_bytes(path)).hexdigest())
    return found


def has_labels(path: str | os.PathLike[str]) -> bool:
    """Whether the file says itself which column holds the labels."""
    name = os.fspath(path)
    return name.startswith(BUNDLED) or Path(name).suffix.lower() == ".npz"


def _bundled(name: str) -> pd.DataFrame:
    from sklearn import datasets

    if name not in _SETS:
        raise DataError(
            f"{BUNDLED}{name} is no bundled set: choose {', '.join(BUNDLED + x for x in _SETS)}"
        )
    found = getattr(datasets, f"load_{name}")()
    labels = found.target_names[found.target]
    features = pd.DataFrame(found.data, columns=list(map(str, found.feature_names)))
    return features.assign(**{LABELS: labels})


# ---- text and parquet -----------------------------------------------------------------------


# What is often named .csv, by its first bytes.
_NO_TEXT = {
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"PK\x03\x04": "a zip archive, as those of spreadsheets are: unpack it, or save it as .csv",
    b"\xd0\xcf\x11\xe0": "a spreadsheet of Excel's: save it as .csv",
    b"PAR1\x15": "a .parquet file: name it so",
}


def _delimited(
    name: str, delimiter: str, words: Collection[str], only: list[str] | None = None
) -> pd.DataFrame:
    # Empty lines around a table are no rows.
    data = inputs.read_bytes(name).strip(b"\r\n") + b"\n"
    for begins, what in _NO_TEXT.items():
        if data.startswith(begins):
            raise DataError(f"{name} is no text: it is {what}")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8"
        ) from error
    if not data.strip():
        raise DataError(f"{name} is empty")
    if b"\0" in data:
        raise DataError(f"{name} is no text: it holds a NUL character")
    if len(data) > np.iinfo(np.int32).max:  # of a block
        raise DataError(f"{name} has over 2 GiB of text: convert it to .parquet")
    (first,) = re.findall(rb"\A[^\r\n]*", data)
    _check_width(name, first.count(delimiter.encode()) + 1)
    try:
        # In one block, so that the kind of a column is judged by all its rows.
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            read_options=pyarrow.csv.ReadOptions(block_size=len(data)),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                # Of a lone column an empty line is a row whose cell is missing.
                ignore_empty_lines=delimiter.encode() in first,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                strings_can_be_null=True,
                column_types=dict.fromkeys(words, pa.string()),
                include_columns=only or [],
            ),
        )
    except (pa.ArrowException, ValueError) as error:
        # One name for a first line with semicolons, and commas in the numbers of the others.
        lone = b"" if delimiter.encode() in first else first
        raise DataError(
            f"{name} is not a table of rows as long as its first: "
            f"{otherwise_divided(lone.decode()) or _said(error)}"
        ) from error
    _check_closed(name, data, table)
    return _pandas(name, table)


def otherwise_divided(name: str) -> str:
    """What to do about a file whose first line is this one name; "" where nothing divides that."""
    found = re.search("[;\t,|]", name)
    if not found:
        return ""
    between = "tabs" if found[0] == "\t" else repr(found[0])
    return (
        f"its first line is one name, with {between} in it; save it with commas (.csv) or "
        "tabs (.tsv) between columns"
    )


def with_leading_zeros(
    paths: Sequence[str | os.PathLike[str]], frames: Sequence[pd.DataFrame], names: Collection[str]
) -> list[pd.DataFrame]:
    """The frames, these columns as words where a text file has names in them that are no numbers.

    007 is not 7, nor 0x1F 31. Where 250.1 and 250.10 both stand in a file, or 250.0 and 250.00,
    these are two names: numbers are written alike.
    """
    typed = [(frame, _typed(path, frame, names)) for path, frame in zip(paths, frames, strict=True)]
    coded = {name for _, cells in typed for name in cells if _are_codes(cells[name].dropna())}
    return [
        frame.assign(**{name: cells[name] for name in coded if name in cells})
        for frame, cells in typed
    ]


def _are_codes(cells: pd.Series) -> bool:
    if cells.str.fullmatch(r"[-+]?0([0-9]+|[xX].*)").any():
        return True
    fractions = cells[cells.str.fullmatch(r"[-+]?[0-9]+\.[0-9]+")].drop_duplicates()
    return bool(fractions.str.rstrip("0").duplicated().any())


def _typed(
    path: str | os.PathLike[str], frame: pd.DataFrame, names: Collection[str]
) -> pd.DataFrame:
    """Those of the columns that hold numbers, as a text file has them."""
    name = os.fspath(path)
    kind = Path(name).suffix.lower()
    numbers = [n for n in names if n in frame and pd.api.types.is_numeric_dtype(frame[n].dtype)]
    if not numbers or name.startswith(BUNDLED) or kind not in (".csv", ".tsv"):
        return pd.DataFrame(index=frame.index)
    found = _delimited(name, "," if kind == ".csv" else "\t", numbers, only=numbers)
    return found.apply(lambda cells: cells.str.strip())


def _check_closed(name: str, data: bytes, table: pa.Table) -> None:
    """A quotation mark that is never closed would make one cell of all lines after it."""
    if table.num_rows == 0 or data.count(b'"') % 2 == 0:
        return
    (last,) = table.slice(table.num_rows - 1).to_pylist()
    for column, cell in last.items():
        if isinstance(cell, str) and "\n" in cell:
            raise DataError(
                f"{name}: a quotation mark is not closed: the last row, {table.num_rows}, has all "
                f"lines after it in its column {column!r}"
            )


def _parquet(name: str) -> pd.DataFrame:
    with inputs.open_regular(name) as stream:
        try:
            file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            _check_width(name, len(file.schema_arrow.names))
            table = file.read()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{name} is not a whole .parquet file: {_said(error)}") from error
    found = _pandas(name, table)
    for column in found:  # words of no letter are missing, as in a text file
        if isinstance(found[column].dtype, pd.CategoricalDtype):
            if "" in found[column].cat.categories:
                found[column] = found[column].cat.remove_categories([""])
        elif pd.api.types.is_object_dtype(found[column]) or pd.api.types.is_string_dtype(
            found[column]
        ):
            cells = found[column].to_numpy(object)
            empty = np.array([isinstance(cell, str) and cell == "" for cell in cells], bool)
            if empty.any():
                found[column] = np.where(empty, None, cells)
    return found


def _pandas(name: str, table: pa.Table) -> pd.DataFrame:
    _check_names(name, table.column_names)
    for at, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            table = table.set_column(at, field.name, table.column(at).cast(pa.float64()))
    # An index that pandas once wrote beside the columns is none of the data.
    table = table.replace_schema_metadata(None)
    try:
        return _converted(table)
    except _NO_CELLS:
        for column in table.column_names:
            _check_cells(name, column, table.select([column]))
        raise


# A file may be whole, and hold words that are no UTF-8, or what pandas has no type for.
_NO_CELLS = (pa.ArrowException, ValueError, LookupError)


def _converted(table: pa.Table) -> pd.DataFrame:
    table.validate(full=True)
    return table.to_pandas(date_as_object=False)  # Python's dates end with the year 9999


def _check_cells(name: str, column: str, table: pa.Table) -> None:
    try:
        _converted(table)
    except _NO_CELLS as error:
        raise DataError(
            f"{name}: column {column!r} cannot be read ({_said(error)}): leave it out, or save it "
            "as numbers or UTF-8 text"
        ) from error


def _said(error: Exception) -> str:
    return inputs.said_by(error).rstrip(".")


def _check_width(name: str, columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise DataError(
            f"{name} has {columns} columns, over the {MOST_COLUMNS} that can be taken: choose "
            "some, or give an embedding of the rows"
        )


def _check_names(name: str, names: list[str]) -> None:
    twice = [each for each, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{name} has two columns named {twice[0]!r}: rename one")


# ---- .npz -----------------------------------------------------------------------------------


def _npz(name: str, labelled: bool) -> pd.DataFrame:
    try:
        found = inputs.read_npz(name, ("X", "y", "feature_names"))
    except DataError as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{name} holds an array of Python objects, which is not unpickled: save X as "
                "numbers, y as numbers or text"
            ) from error
        raise
    missing = [key for key in ("X", "y") if key not in found and (key == "X" or labelled)]
    if missing:
        needs = "X[n, d]" + " and y[n]" * labelled
        raise DataError(f"{name} has no array {' and '.join(missing)}: it needs {needs}")
    X = found["X"]
    if X.ndim != 2 or X.dtype.kind not in "biuf":
        raise DataError(f"{name}: X must be numbers [n, d], not {X.dtype}{list(X.shape)}")
    _check_width(name, X.shape[1])
    columns = _feature_names(name, found.get("feature_names"), X)
    if "y" not in found:
        return pd.DataFrame(X, columns=columns)
    y = found["y"]
    if y.ndim != 1 or y.dtype.kind not in "biufU":
        raise DataError(f"{name}: y must be numbers or text [n], not {y.dtype}{list(y.shape)}")
    if len(y) != len(X):
        raise DataError(f"{name}: X has {len(X)} rows and y {len(y)}: one label a row")
    labels = _words(name, y) if y.dtype.kind == "U" else y
    return pd.DataFrame(X, columns=columns).assign(**{LABELS: labels})


def _words(name: str, y: np.ndarray) -> np.ndarray:
    """As objects, None for an empty one, which is missing in other kinds of files, too."""
    try:
        found = y.tolist()
        "".join(found).encode()
    except (ValueError, SystemError) as error:  # numbers beyond Unicode; halves of characters
        raise DataError(f"{name}: y holds what is no text: {inputs.said_by(error)}") from error
    return np.array([each or None for each in found], object)


def _feature_names(name: str, given: Any, X: np.ndarray) -> list[str]:
    if given is None:
        return [f"x{column}" for column in range(X.shape[1])]
    names = list(inputs.lines(given, f"{name}: feature_names"))
    if len(names) != X.shape[1]:
        raise DataError(f"{name}: X has {X.shape[1]} columns and feature_names {len(names)}")
    _check_names(name, [*names, LABELS])
    return names
