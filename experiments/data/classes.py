"""Classes of a column: its values as they are, each under one name, the most frequent first."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.host import inputs
from experiments.host.errors import DataError

__all__ = ["classes", "plain", "tell_alike"]


def classes(values: pd.Series, first_test: int | None) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """(class of each row, names), the classes by falling number of rows that are trained on."""
    values = plain(values)
    codes, distinct = pd.factorize(values, sort=True)
    counts = np.bincount(codes[:first_test], minlength=len(distinct))
    order = np.argsort(-counts, kind="stable")
    names = tuple(map(str, distinct[order]))
    for name in names:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise DataError(
                f"column {values.name!r} holds {inputs.said_by(ValueError(ascii(name)))}, which is "
                "no line of text: is a quotation mark missing there?"
            )
    return np.argsort(order).astype(np.int32)[codes], names


def plain(values: pd.Series) -> pd.Series:
    """Whole numbers without their .0, whatever is neither number nor word as its words."""
    kind = pd.api.types
    if kind.is_bool_dtype(values.dtype):
        return values.astype(bool)
    if kind.is_float_dtype(values.dtype) and not isinstance(values.dtype, pd.CategoricalDtype):
        held = values.to_numpy(np.float64)
        if not np.isfinite(held).all():
            raise DataError(f"column {values.name!r} holds infinite labels")
        if (np.abs(held) >= 2**53).any():
            raise DataError(
                f"column {values.name!r} holds numbers of 2**53 and more, which are read rounded "
                "and would fall together: put a letter in front of each"
            )
        if (held == np.round(held)).all():
            return values.astype(np.int64)
        if values.dtype not in (np.float32, np.float16):
            return values
        digits = [float(str(x)) for x in values.to_numpy()]  # 0.2, not 0.20000000298
        return pd.Series(digits, values.index, name=values.name)
    if kind.is_integer_dtype(values.dtype):
        return values.astype(np.int64) if values.dtype != np.uint64 else values
    try:
        return values.astype(str)
    except UnicodeDecodeError as error:
        raise DataError(f"column {values.name!r} holds bytes that are no text") from error


def tell_alike(names: Sequence[str], column: str, notes: list[str]) -> None:
    """A note where names differ by what is easily mistyped."""
    seen: dict[str, str] = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        other = seen.setdefault(plain, name)
        if other != name:
            notes.append(
                f"{other!r} and {name!r} in column {column!r} are taken for different, though but "
                "for spaces and capitals they are the same"
            )
