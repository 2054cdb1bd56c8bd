"""Columns with a role: labels, groups and ids, which rows they leave, and what they cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.data.classes import classes, plain
from experiments.data.files import otherwise_divided
from experiments.data.usable import holds_numbers, is_number
from experiments.host.cli import noun
from experiments.host.errors import DataError

# Labels with a fraction and more values than this are measured, not classes.
_MOST_FRACTIONS = 20


def check_roles(
    frame: pd.DataFrame,
    path: str,
    label: str,
    text: Sequence[str],
    group: str | None,
    id: str | None,
) -> None:
    roles = {"--label": [label], "--text": text, "--group": [group], "--id": [id]}
    used: dict[str, str] = {}
    for flag, names in roles.items():
        for name in names:
            if name is None:
                continue
            if name not in frame.columns:
                raise DataError(f"{path} has no column {name!r} ({flag}){_others(frame, name)}")
            if name in used:
                twice = f"{used[name]} and {flag}" if used[name] != flag else f"{flag} twice"
                raise DataError(f"column {name!r} is given as {twice}: it can be one of them")
            used[name] = flag
    for name in text:
        if holds_numbers(frame[name]) and not frame[name].isna().all():
            raise DataError(f"column {name!r} (--text) holds numbers, no text: leave it out there")


def _others(frame: pd.DataFrame, name: str) -> str:
    lone = otherwise_divided(frame.columns[0]) if len(frame.columns) == 1 else ""
    if lone:
        return f": {lone}"
    near = difflib.get_close_matches(name, list(frame.columns))
    if near:
        return f": did you mean {near[0]!r}?"
    shown = ", ".join(map(repr, frame.columns[:8]))
    return f": it has {shown}{', ...' * (len(frame.columns) > 8)}"


def with_labels(
    frame: pd.DataFrame, label: str, first_test: int | None, notes: list[str]
) -> tuple[pd.DataFrame, int | None]:
    there = ~_is_empty(frame[label])
    if there.all():
        return frame, first_test
    if not there.any():
        raise DataError(f"column {label!r} (--label) is empty in every row")
    notes.append(f"{noun(int((~there).sum()), 'row')} without a label left out")
    return kept(frame, there, first_test)


def kept(
    frame: pd.DataFrame, keep: np.ndarray, first_test: int | None
) -> tuple[pd.DataFrame, int | None]:
    if first_test is not None:
        first_test = int(keep[:first_test].sum())
    return frame[keep].reset_index(drop=True), first_test


def check_classes(
    values: pd.Series,
    codes: np.ndarray,
    names: tuple[str, ...],
    label: str,
    first_test: int | None,
) -> None:
    rows = len(codes[:first_test])
    if len(np.unique(codes[:first_test])) < 2:
        raise DataError(
            f"column {label!r} (--label) has the one class {names[0]!r}: two or more are needed"
        )
    if len(names) > max(rows / 2, 2):
        each = "all different" if len(names) == rows else f"{len(names)} values in {rows} rows"
        what = "; this looks like a number to predict, not a class" * is_number(values)
        raise DataError(f"the labels in column {label!r} are {each}{what}: classes with several "
                        "rows each are needed")  # fmt: skip
    fractions = pd.api.types.is_float_dtype(values.dtype) and any("." in name for name in names)
    if fractions and len(names) > _MOST_FRACTIONS:
        raise DataError(
            f"the labels in column {label!r} are {len(names)} fractional numbers; this looks like "
            "a number to predict, not a class: divide it into classes first"
        )
    if first_test is not None:
        if first_test == len(codes):
            raise DataError("the file of --test holds no row with a label")
        unknown = np.setdiff1d(codes, codes[:first_test])
        if len(unknown):
            raise DataError(
                f"the file of --test holds class {names[unknown[0]]!r}, which no training row has"
            )


def testable(
    codes: np.ndarray, names: tuple[str, ...], first_test: int | None, notes: list[str]
) -> NDArray[np.bool_]:
    """Rows of classes that can be both trained on and tested."""
    counts = np.bincount(codes)
    single = np.flatnonzero(counts < 2)
    if first_test is not None or not len(single):
        return np.ones(len(codes), bool)
    shown = ", ".join(names[c] for c in single[:5]) + ", ..." * (len(single) > 5)
    if len(names) - len(single) < 2:
        raise DataError(
            f"only class {names[0]!r} has more than one row: of each class one is needed to train "
            "on and one to test"
        )
    which = "class" if len(single) == 1 else "classes"
    notes.append(
        f"{noun(len(single), 'class', 'classes')} with a single row left out, which cannot be both "
        f"trained on and tested: {which} {shown}"
    )
    return np.asarray(counts[codes] >= 2)


def groups(
    frame: pd.DataFrame, group: str, first_test: int | None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    _check_whole(frame[group], "--group")
    codes, names = classes(frame[group], first_test)
    rows = len(codes[:first_test])
    if len(np.unique(codes[:first_test])) < 2:
        raise DataError(f"column {group!r} (--group) has one value, {names[0]!r}: leave it out")
    if len(names) > rows / 2:
        raise DataError(
            f"column {group!r} (--group) has {len(names)} values in {rows} rows: groups of several "
            "rows are needed; rows of one value are kept on one side by --id"
        )
    if np.setdiff1d(codes, codes[:first_test]).size:
        raise DataError(f"the file of --test holds a {group!r} (--group) that no training row has")
    return codes, names


def ids(frame: pd.DataFrame, id: str, first_test: int | None) -> NDArray[np.int64]:
    _check_whole(frame[id], "--id")
    codes = pd.factorize(plain(frame[id]))[0].astype(np.int64)
    if first_test is not None:
        both = np.intersect1d(codes[:first_test], codes[first_test:])
        if len(both):
            raise DataError(
                f"{noun(len(both), 'value')} of column {id!r} (--id) stand in both the training "
                "file and that of --test"
            )
    elif codes.max() < 3:
        raise DataError(
            f"column {id!r} (--id) has {noun(int(codes.max()) + 1, 'value')}: four or more are "
            "needed to split by"
        )
    return codes


def _check_whole(column: pd.Series, flag: str) -> None:
    empty = int(_is_empty(column).sum())
    if empty:
        raise DataError(
            f"column {column.name!r} ({flag}) is empty in {noun(empty, 'row')}: fill it, or leave "
            "them out"
        )


def _is_empty(column: pd.Series) -> NDArray[np.bool_]:
    """Also of spaces alone, which databases of fixed widths write: no class has such a name."""
    empty = column.isna().to_numpy()
    if is_number(column):
        return empty
    blank = [isinstance(cell, str) and not cell.strip() for cell in column]
    return empty | np.array(blank, bool)
