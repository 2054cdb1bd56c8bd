"""Which columns of a file features can be made of: numbers and words, and no more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.host.cli import noun
from experiments.host.errors import DataError
from experiments.host.inputs import ascii_safe

# Numbers beyond this have no float64 variance.
_LARGEST = 1e100
# A column of words with more values than this, and than half its rows, is a name or a number.
_MANY_VALUES = 20


def is_number(column: pd.Series) -> bool:
    """Whether it holds numbers or booleans, by its type alone."""
    kind = pd.api.types
    return (
        kind.is_numeric_dtype(column.dtype) or kind.is_bool_dtype(column.dtype)
    ) and not isinstance(column.dtype, pd.CategoricalDtype)


def holds_numbers(column: pd.Series) -> bool:
    """As `is_number`, and also where booleans with one missing have no type of their own."""
    return is_number(column) or (len(column) > 0 and kind_of(column) == "number")


def usable(
    frame: pd.DataFrame,
    text: tuple[str, ...],
    notes: list[str],
    like: pd.DataFrame | None = None,
    judged: int | None = None,
) -> pd.DataFrame:
    """The columns that features can be made of; of the others a note.

    Args:
      frame: as a file has them, without labels.
      text: columns of sentences, which may all differ.
      notes: to which a sentence is added for each kind of column that is left out.
      like: a frame that was made so, whose columns these are to be: nothing is left out then.
      judged: by how many of the first rows columns of words are judged; None is all.

    Returns:
      Numbers as floats, NaN where one is missing, words as objects, None where one is missing.

    Raises:
      DataError: infinite or absurd numbers, or no column that can be used.
    """
    kept: dict[str, pd.Series] = {}
    dropped: dict[str, list[str]] = {}
    for name in frame.columns:
        column = frame[name]
        kind = "number" if like is not None and is_number(like[name]) else kind_of(column)
        if kind == "number":
            kept[name] = _numbers(column)
            if like is None and _are_row_numbers(kept[name].to_numpy()[:judged]):
                notes.append(
                    f"column {name!r} holds the numbers of the rows, and is learned from as any "
                    "other: leave it out, unless it measures something"
                )
        elif like is not None and kind != "words" and not column.isna().all():
            raise DataError(f"column {name!r} is one {kind}, where there were words")
        elif kind == "words" or like is not None:
            seen = column.iloc[:judged]
            distinct = seen.nunique()
            judge = like is None and name not in text
            if judge and not _tell_of_commas(column, notes) and distinct > _MANY_VALUES:
                _tell_of_words(column, notes)
            if judge and distinct > max(_MANY_VALUES, len(seen) / 2):
                dropped.setdefault(
                    "whose values nearly all differ (--text, were it sentences)", []
                ).append(str(name))
            else:
                kept[name] = column.astype(object).where(column.notna(), None)
        else:
            dropped.setdefault(kind, []).append(str(name))
    notes += [told(names, f"{why} left out") for why, names in dropped.items()]
    if not kept:
        raise DataError("; ".join(["no column is left to learn from", *notes]))
    return pd.DataFrame(kept)


def told(names: Sequence[str], what: str) -> str:
    """A note of several columns, the first of them by name."""
    shown = ", ".join(map(ascii_safe, names[:5])) + ", ..." * (len(names) > 5)
    return f"{noun(len(names), 'column')} {what}: {shown}"


def _are_row_numbers(values: np.ndarray) -> bool:
    """Whether they are whole numbers without a gap, each once, in any order."""
    if len(values) <= _MANY_VALUES or values.max() - values.min() != len(values) - 1:
        return False
    return bool((np.sort(values) == values.min() + np.arange(len(values))).all())


def _tell_of_commas(column: pd.Series, notes: list[str]) -> bool:
    """A note, and True, where the words are numbers but for commas or signs of money or percent."""
    there = pd.Series(column.dropna().unique(), dtype=str)
    plain = there.str.replace(r"[%$€£\s]", "", regex=True).str.replace(",", ".")
    odd = there[plain != there]
    if odd.empty or pd.to_numeric(plain.str.replace(".", "", n=1), errors="coerce").isna().any():
        return False
    notes.append(
        f"column {column.name!r} is taken for one of words, for {odd.iloc[0]!r} and the like: were "
        "these numbers, write them with a point and without other signs"
    )
    return True


def _tell_of_words(column: pd.Series, notes: list[str]) -> None:
    """A note where a few words make one of words of a column of numbers."""
    there = column[column.notna()]
    words = there[pd.to_numeric(there, errors="coerce").isna()]
    if 0 < len(words) <= len(there) / 10:
        notes.append(
            f"column {column.name!r} is taken for one of words, for {words.iloc[0]!r} and the like "
            f"in {noun(len(words), 'row')}: leave these empty where they stand for no number"
        )


def kind_of(column: pd.Series) -> str:
    """ "number", "words", or what it is that cannot be used."""
    if is_number(column):
        return "number" if column.dtype.kind != "c" else "of complex numbers"
    kind = pd.api.types
    if kind.is_datetime64_any_dtype(column.dtype) or kind.is_timedelta64_dtype(column.dtype):
        return "of dates or times"
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype):
        return "words"
    held = kind.infer_dtype(column)
    if held in ("boolean", "empty"):
        return "number"
    if held in ("date", "datetime", "time", "timedelta"):
        return "of dates or times"
    return "words" if held in ("string", "categorical") else "of neither numbers nor words"


def _numbers(column: pd.Series) -> pd.Series:
    dtype = np.float32 if column.dtype in (np.float32, np.float16) else np.float64
    try:
        values = column.to_numpy(dtype, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {column.name!r} holds words, where there were numbers") from error
    if np.isinf(values).any():
        raise DataError(
            f"column {column.name!r} holds infinite values: leave them empty (missing), or cap them"
        )
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    if largest > _LARGEST:
        raise DataError(
            f"column {column.name!r} holds {largest:.3g}, too large to standardise: take its "
            "logarithm, or cap it"
        )
    return pd.Series(values, index=column.index)
