"""A table of rows with one label each, read from a file and checked: what `compare` is given.

`read` decides what each column is for and which rows can be used (usable.py: which features); what
is left out is told in a sentence of `Table.notes`. Nothing is learned from the rows here:
columns.py makes numbers of them, fitted on training rows alone, and splits.py chooses those.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.data import files
from experiments.data.classes import classes, plain, tell_alike
from experiments.data.usable import holds_numbers, is_number, kind_of, usable
from experiments.host.cli import noun
from experiments.host.errors import DataError

__all__ = ["Table", "read", "read_rows"]

# Labels with a fraction and more values than this are measured, not classes.
_MOST_FRACTIONS = 20


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """Features and labels of n rows.

    Attributes:
      name: of the file, without its ending.
      columns: features as they were read, n rows: numbers (NaN: missing), categories, text.
      labels: int32[n] in [0, C), 0 the class with the most rows, C - 1 the rarest.
      class_names: [C].
      text: the columns that are text.
      groups: int32[n] in [0, G), 0 the largest, where rows are weighed by another column.
      group_names: [G], or None.
      ids: int64[n], rows of one number stay together; or None.
      first_test_row: rows from here on are of a test file; None where there was none.
      width: columns of an array that has no names for them, of those that are used and not; or
        None.
      notes: sentences, what was left out.
      source: one line on where it came from.
    """

    name: str
    columns: pd.DataFrame
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    text: tuple[str, ...] = ()
    groups: NDArray[np.int32] | None = None
    group_names: tuple[str, ...] | None = None
    ids: NDArray[np.int64] | None = None
    first_test_row: int | None = None
    width: int | None = None
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def class_counts(self) -> NDArray[np.int64]:
        """Rows of each class, int64[C], none larger than the one before unless of a test file."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def weighed(self) -> NDArray[np.int32]:
        """int32[n], the classes of the rule: groups where there are any, else labels."""
        return self.labels if self.groups is None else self.groups

    @property
    def weighed_names(self) -> tuple[str, ...]:
        """Of the classes of the rule."""
        return self.class_names if self.group_names is None else self.group_names


def read(
    path: str | os.PathLike[str],
    label: str | None = None,
    *,
    text: Sequence[str] = (),
    group: str | None = None,
    id: str | None = None,
    test: str | os.PathLike[str] | None = None,
) -> Table:
    """The table in a file.

    A row without a label is left out, and so is a class with a single row, which cannot be both
    trained on and tested; dates, columns whose words nearly all differ, and kinds that are neither
    numbers nor words are left out, too. `notes` says how many of each.

    Args:
      path: .csv, .tsv, .parquet, .npz (`X`, `y`, optional `feature_names`), or a bundled set
        (sklearn:digits, sklearn:wine, sklearn:breast_cancer).
      label: the column to predict; None for .npz files and bundled sets, which say it themselves.
      text: columns of sentences.
      group: the column by whose values rows are weighed and splits are balanced; no feature.
      id: the column whose equal values stay on one side of a split; no feature.
      test: a file of the same columns whose rows are tested, and never trained on.

    Raises:
      DataError: nothing can be learned of it; one sentence that says why.
    """
    frame, label = _labelled(path, label)
    roles = list(dict.fromkeys(name for name in (label, group, id) if name is not None))
    notes: list[str] = []
    width = _width(path, frame)
    frame = _without_index(frame, (*roles, *text), notes)
    first_test = None
    if test is not None:
        first_test = len(frame)
        if _are_same(path, test):
            raise DataError(f"{test} is the file that is trained on: --test is for other rows")
        words = [name for name in frame if kind_of(frame[name]) == "words"]
        other, _ = _labelled(test, None if files.has_labels(test) else label, words)
        frame, other = files.with_leading_zeros((path, test), (frame, other), roles)
        frame = _joined(frame, other, str(path), str(test), roles)
        _check_width(_width(test, other), width, str(test), str(path))
    else:
        (frame,) = files.with_leading_zeros((path,), (frame,), roles)
    _check_roles(frame, str(path), label, text, group, id)
    frame, first_test = _with_labels(frame, label, first_test, notes)
    codes, names = classes(frame[label], first_test)
    _check_classes(frame[label], codes, names, label, first_test)
    keep = _testable(codes, names, first_test, notes)
    if not keep.all():
        frame, first_test = _kept(frame, keep, first_test)
        codes, names = classes(frame[label], first_test)
    tell_alike(names, label, notes)
    groups, group_names = (None, None) if group is None else _groups(frame, group, first_test)
    ids = None if id is None else _ids(frame, id, first_test)
    features = usable(
        frame.drop(columns=[x for x in (label, group, id) if x is not None]), tuple(text), notes,
        judged=first_test,
    )  # fmt: skip
    return Table(
        name=_stem(path), columns=features, labels=codes, class_names=names, text=tuple(text),
        groups=groups, group_names=group_names, ids=ids, first_test_row=first_test,
        width=width, notes=tuple(notes), source=os.fspath(path) + (f" and {test}" if test else ""),
    )  # fmt: skip


def read_rows(
    path: str | os.PathLike[str], like: pd.DataFrame, width: int | None = None
) -> pd.DataFrame:
    """The columns of `like` in another file, which needs no labels.

    Args:
      path: the file.
      like: a frame of the columns that were used.
      width: of the table that they are of.

    Raises:
      DataError: a column is not there, or holds words where there were numbers; an array without
        names has more columns.
    """
    words = [name for name in like if like[name].dtype == object]
    frame = files.frame(path, words, labelled=False)
    _check_same(frame, like, str(path), "the rows trained on")
    _check_width(_width(path, frame), width, str(path), "the rows trained on")
    return usable(frame[list(like.columns)], (), [], like)


def _stem(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    return name.removeprefix(files.BUNDLED) if name.startswith(files.BUNDLED) else Path(name).stem


def _are_same(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # no files, or none that can be read
        return os.fspath(path) == os.fspath(other)


def _labelled(path: Any, label: str | None, words: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    if files.has_labels(path):
        if label is not None:
            raise DataError(f"{path} says itself what its labels are (y): leave out --label")
        return files.frame(path), files.LABELS
    if label is None:
        raise DataError(f"{path} has several columns: name that of the labels with --label")
    return files.frame(path, words), label


# What pandas and R call row numbers that they write beside the columns, or no name at all.
_INDEX = re.compile(r"|Unnamed: 0(\.[0-9]+)?|__index_level_[0-9]+__")


def _without_index(frame: pd.DataFrame, used: Collection[str], notes: list[str]) -> pd.DataFrame:
    """Without row numbers: where rows are sorted by class, they tell it."""
    found = [
        name
        for name in frame
        if _INDEX.fullmatch(name)
        and name not in used
        and pd.api.types.is_integer_dtype(frame[name].dtype)
    ]
    if found:
        shown = ", ".join(map(repr, found))
        notes.append(f"{noun(len(found), 'column')} of row numbers, by the name, left out: {shown}")
    return frame.drop(columns=found)


def _joined(
    frame: pd.DataFrame, test: pd.DataFrame, path: str, other: str, roles: Collection[str]
) -> pd.DataFrame:
    _check_same(test, frame, other, path)
    parts = [frame.copy(), test[list(frame.columns)].copy()]
    for name in frame.columns:
        for mine, its in (parts, parts[::-1]):  # a column without a value is of any kind
            if is_number(mine[name]) and not is_number(its[name]) and its[name].isna().all():
                its[name] = np.full(len(its), np.nan)
        # Booleans with one missing have no type of their own, and beside numbers none at all.
        both = [part[name] for part in parts]
        if name not in roles and all(map(holds_numbers, both)) and not all(map(is_number, both)):
            for part in parts:
                part[name] = part[name].to_numpy(np.float64, na_value=np.nan)
    return pd.concat(parts, ignore_index=True)


def _check_same(frame: pd.DataFrame, like: pd.DataFrame, path: str, whose: str) -> None:
    missing = [name for name in like.columns if name not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}, as there is in {whose}")
    for name in like.columns:
        if holds_numbers(like[name]) != holds_numbers(frame[name]) and not (
            frame[name].isna().all() or (len(like) and like[name].isna().all())
        ):
            kinds = ("words", "numbers") if holds_numbers(like[name]) else ("numbers", "words")
            raise DataError(f"{path}: column {name!r} holds {kinds[0]}, and in {whose} {kinds[1]}")


def _width(path: str | os.PathLike[str], frame: pd.DataFrame) -> int | None:
    names = [name for name in frame.columns if name != files.LABELS]
    unnamed = names == [f"x{column}" for column in range(len(names))]
    return len(names) if unnamed and Path(path).suffix.lower() == ".npz" else None


def _check_width(width: int | None, like: int | None, path: str, whose: str) -> None:
    """Columns of an array without names are known by their places: of more, these are others."""
    if width is not None and like is not None and width > like:
        raise DataError(f"{path}: X has {width} columns, and that of {whose} {like}")


# ---- what each column is for ----------------------------------------------------------------


def _check_roles(
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
    lone = re.search("[;\t,|]", frame.columns[0]) if len(frame.columns) == 1 else None
    if lone:
        between = "tabs" if lone[0] == "\t" else repr(lone[0])
        return (
            f": its first line is one name, with {between} in it; save it with commas (.csv) or "
            "tabs (.tsv) between columns"
        )
    near = difflib.get_close_matches(name, list(frame.columns), 1)
    if near:
        return f": did you mean {near[0]!r}?"
    shown = ", ".join(map(repr, frame.columns[:8]))
    return f": it has {shown}{', ...' * (len(frame.columns) > 8)}"


# ---- labels, groups, ids --------------------------------------------------------------------


def _with_labels(
    frame: pd.DataFrame, label: str, first_test: int | None, notes: list[str]
) -> tuple[pd.DataFrame, int | None]:
    there = frame[label].notna().to_numpy()
    if there.all():
        return frame, first_test
    if not there.any():
        raise DataError(f"column {label!r} (--label) is empty in every row")
    notes.append(f"{noun(int((~there).sum()), 'row')} without a label left out")
    return _kept(frame, there, first_test)


def _kept(
    frame: pd.DataFrame, keep: np.ndarray, first_test: int | None
) -> tuple[pd.DataFrame, int | None]:
    if first_test is not None:
        first_test = int(keep[:first_test].sum())
    return frame[keep].reset_index(drop=True), first_test


def _check_classes(
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
        unknown = np.setdiff1d(codes[first_test:], codes[:first_test])
        if len(unknown):
            raise DataError(
                f"the file of --test holds class {names[unknown[0]]!r}, which no training row has"
            )


def _testable(
    codes: np.ndarray, names: tuple[str, ...], first_test: int | None, notes: list[str]
) -> NDArray[np.bool_]:
    """Rows of classes that can be both trained on and tested."""
    counts = np.bincount(codes, minlength=len(names))
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


def _groups(
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
    if first_test is not None and np.setdiff1d(codes[first_test:], codes[:first_test]).size:
        raise DataError(f"the file of --test holds a {group!r} (--group) that no training row has")
    return codes, names


def _ids(frame: pd.DataFrame, id: str, first_test: int | None) -> NDArray[np.int64]:
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
    empty = int(column.isna().sum())
    if empty:
        raise DataError(
            f"column {column.name!r} ({flag}) is empty in {noun(empty, 'row')}: fill it, or leave "
            "them out"
        )
