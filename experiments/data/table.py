"""A table of rows with one label each, read from a file and checked: what `compare` is given.

`read` decides what each column is for and which rows can be used (roles.py: labels, groups, ids;
usable.py: which features); what is left out is told in a sentence of `Table.notes`. Nothing is
learned from the rows here: columns.py makes numbers of them, fitted on training rows alone, and
splits.py chooses those.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.data import files, roles
from experiments.data.classes import classes, tell_alike
from experiments.data.usable import holds_numbers, is_number, kind_of, told, usable
from experiments.host.cli import noun
from experiments.host.errors import DataError

__all__ = ["Table", "read", "read_rows"]


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
    named = list(dict.fromkeys(name for name in (label, group, id) if name is not None))
    notes: list[str] = []
    width = _width(path, frame)
    frame = _without_index(frame, (*named, *text), notes)
    first_test = None
    if test is not None:
        first_test = len(frame)
        if _are_same(path, test):
            raise DataError(f"{test} is the file that is trained on: --test is for other rows")
        words = [name for name in frame if kind_of(frame[name]) == "words"]
        other, _ = _labelled(test, None if files.has_labels(test) else label, words)
        more = [x for x in other if x not in frame and not _INDEX.fullmatch(x)]
        notes += [told(more, f"of {test} that {path} lacks left out")] if more else []
        frame, other = files.with_leading_zeros((path, test), (frame, other), named)
        frame = _joined(frame, other, str(path), str(test), named)
        _check_width(_width(test, other), width, str(test), str(path))
    else:
        (frame,) = files.with_leading_zeros((path,), (frame,), named)
    roles.check_roles(frame, str(path), label, text, group, id)
    frame, first_test = roles.with_labels(frame, label, first_test, notes)
    codes, names = classes(frame[label], first_test)
    roles.check_classes(frame[label], codes, names, label, first_test)
    keep = roles.testable(codes, names, first_test, notes)
    if not keep.all():
        frame, first_test = roles.kept(frame, keep, first_test)
        codes, names = classes(frame[label], first_test)
    tell_alike(names, label, notes)
    groups, group_names = (None, None) if group is None else roles.groups(frame, group, first_test)
    ids = None if id is None else roles.ids(frame, id, first_test)
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
    frame = files.frame(path, words)  # what cannot be read has no columns to name
    if label is None:
        raise DataError(f"{path} has several columns: name that of the labels with --label")
    return frame, label


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
    frame: pd.DataFrame, test: pd.DataFrame, path: str, other: str, named: Collection[str]
) -> pd.DataFrame:
    _check_same(test, frame, other, path)
    parts = [frame.copy(), test[list(frame.columns)].copy()]
    for name in frame.columns:
        for mine, its in (parts, parts[::-1]):  # a column without a value is of any kind
            if is_number(mine[name]) and not is_number(its[name]) and its[name].isna().all():
                its[name] = np.full(len(its), np.nan)
        # Booleans with one missing have no type of their own, and beside numbers none at all.
        both = [part[name] for part in parts]
        if name not in named and all(map(holds_numbers, both)) and not all(map(is_number, both)):
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
            its, theirs = _held(frame[name]), _held(like[name])
            raise DataError(f"{path}: column {name!r} holds {its}, and in {whose} {theirs}")


def _held(column: pd.Series) -> str:
    if holds_numbers(column):
        return "numbers"
    # Of a schema, which has no rows, all that is no number is words.
    return kind_of(column).removeprefix("of ") if len(column) else "words"


def _width(path: str | os.PathLike[str], frame: pd.DataFrame) -> int | None:
    names = [name for name in frame.columns if name != files.LABELS]
    unnamed = names == [f"x{column}" for column in range(len(names))]
    return len(names) if unnamed and Path(path).suffix.lower() == ".npz" else None


def _check_width(width: int | None, like: int | None, path: str, whose: str) -> None:
    """Columns of an array without names are known by their places: of more, these are others."""
    if width is not None and like is not None and width > like:
        raise DataError(f"{path}: X has {width} columns, and that of {whose} {like}")
