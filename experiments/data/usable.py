"""Which columns of a file features can be made of: numbers and words, and no more."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.host.cli import noun
from experiments.host.errors import DataError

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


def usable(
    frame: pd.DataFrame, text: tuple[str, ...], notes: list[str], like: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The columns that features can be made of; of the others a note.

    Args:
      frame: as a file has them, without labels.
      text: columns of sentences, which may all differ.
      notes: to which a sentence is added for each kind of column that is left out.
      like: a frame that was made so, whose columns these are to be: nothing is left out then.

    Returns:
      Numbers as floats, NaN where one is missing, words as objects, None where one is missing.

    Raises:
      DataError: infinite or absurd numbers, or no column that can be used.
    """
    kept: dict[str, pd.Series] = {}
    dropped: dict[str, list[str]] = {}
    for name in frame.columns:
        column = frame[name]
        kind = "number" if like is not None and is_number(like[name]) else _kind(column)
        if kind == "number":
            kept[name] = _numbers(column)
        elif kind == "words" or like is not None:
            distinct = column.nunique()
            if like is None and name not in text and distinct > max(_MANY_VALUES, len(frame) / 2):
                dropped.setdefault(
                    "whose values nearly all differ (--text, were it sentences)", []
                ).append(str(name))
            else:
                kept[name] = column.astype(object).where(column.notna(), None)
        else:
            dropped.setdefault(kind, []).append(str(name))
    for why, names in dropped.items():
        shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        notes.append(f"{noun(len(names), 'column')} {why} left out: {shown}")
    if not kept:
        raise DataError("; ".join(["no column is left to learn from", *notes]))
    return pd.DataFrame(kept)


def _kind(column: pd.Series) -> str:
    if is_number(column):
        return "number" if column.dtype.kind != "c" else "of complex numbers"
    kind = pd.api.types
    if kind.is_datetime64_any_dtype(column.dtype) or kind.is_timedelta64_dtype(column.dtype):
        return "of dates or times"
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype):
        return "words"
    held = kind.infer_dtype(column, skipna=True)
    if held in ("boolean", "empty"):
        return "number"
    if held in ("date", "datetime", "time", "timedelta"):
        return "of dates or times"
    return "words" if held in ("string", "categorical") else "that are neither numbers nor words"


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
