"""What makes a table easier here than it will be: columns that tell the label, and copied rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.data.table import Table
from experiments.data.usable import told
from experiments.host.cli import noun

__all__ = ["notes"]

# A column that tells nothing has one class for each of its values with less than this probability.
_BY_CHANCE = 1e-6


def notes(table: Table) -> list[str]:
    """A sentence on columns that tell the label, and one on copies on both sides of a split."""
    codes = [_codes(table.columns[name]) for name in table.columns]
    rows = _hashes([table.labels, *codes])
    # Of copies one: that they agree is no merit of a column.
    own = np.sort(np.unique(rows[: table.first_test_row], return_index=True)[1])
    telling = [
        name
        for name, values in zip(table.columns, codes, strict=True)
        if name not in table.text and _tells(values[own], table.labels[own])
    ]
    return _of_columns(telling) + _of_copies(table, rows)


def _of_columns(names: list[str]) -> list[str]:
    if not names:
        return []
    tell, them = ("alone tells", "it") if len(names) == 1 else ("each alone tell", "them")
    what = f"{tell} the label of every training row (leave {them} out, unless known before)"
    return [told(names, what)]


def _codes(column: pd.Series) -> NDArray[np.int64]:
    """One number for each value, that of missing ones among them."""
    return pd.factorize(column, use_na_sentinel=False)[0].astype(np.int64)


def _tells(values: NDArray[np.int64], labels: NDArray[np.int32]) -> bool:
    """Whether rows of one value are of one class, and are too many for that to be chance."""
    classes = int(labels.max()) + 1
    distinct = len(np.unique(values))
    shares = np.bincount(labels) / len(labels)
    # Each row but the first of a value has the class of that one with this probability.
    chance = (len(values) - distinct) * np.log(np.sum(shares**2))
    return chance < np.log(_BY_CHANCE) and len(np.unique(values * classes + labels)) == distinct


def _hashes(columns: list[np.ndarray]) -> NDArray[np.uint64]:
    """A number for each row; of two rows that differ, two of 64 random bits."""
    draw = np.random.default_rng(0)
    found = np.zeros(len(columns[0]), np.uint64)
    for values in columns:
        numbers = draw.integers(0, 2**64, int(values.max()) + 1, np.uint64)
        found ^= numbers[values]
    return found


def _of_copies(table: Table, rows: NDArray[np.uint64]) -> list[str]:
    first = table.first_test_row
    if first is not None:
        many = int(np.isin(rows[first:], rows[:first]).sum())
        of, are = noun(len(rows) - first, "tested row"), "is a copy" if many == 1 else "are copies"
        return [f"{many} of {of} {are} of what is trained on"] if many else []
    # Of one id all copies are on one side.
    ids = np.arange(len(rows)) if table.ids is None else table.ids
    copies = pd.DataFrame({"row": rows, "id": ids}).groupby("row")["id"]
    many = int(copies.size()[copies.nunique() > 1].sum())
    others, hint = "others", " (--id keeps together what belongs together)"
    if table.ids is not None:
        others, hint = "others of another id", ""
    sentence = (
        f"{many} of {noun(len(rows), 'row')} equal {others} in all that is learned from: where one "
        f"is tested, a copy may be trained on{hint}"
    )
    return [sentence] if many else []
