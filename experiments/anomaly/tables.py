"""Anomaly detection data: a folder of .npz files or scikit-learn's own sets, split as ADBench does.

A `Table` is one data set: features and 0/1 labels (1 is an anomaly). `split` draws from it, for a
seed, what ADBench draws, in its order, so that the same seed gives the same rows:

1. seed; a table of fewer than 1000 rows is resampled to 1000 *with replacement* (seeded again),
   one of more than 10000 is cut to 10000 without (seeded again);
2. 70% train, 30% test, stratified;
3. of the A training anomalies, ceil(label_ratio * A) keep their label; the rest get label 0.

| protocol | what differs |
|---|---|
| adbench | nothing; copies of one row fall on both sides of the split where step 1 resampled |
| nodup | no resampling with replacement: no row is in train and in test |
| clean | as adbench, then anomalies without a label leave the training set |
| full | as adbench, but every training anomaly keeps its label, whatever the label ratio |

Source: ADBench's data generator (NeurIPS 2022), `at_least_one_labeled=True`; nodup, clean and full
are ours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.host.errors import DataError
from experiments.host.inputs import read_npz
from experiments.host.locks import is_utf8

__all__ = [
    "PROTOCOLS",
    "Arrays",
    "Split",
    "Table",
    "load_tables",
    "scaled",
    "split",
]

PROTOCOLS = ("adbench", "clean", "full", "nodup")
_FEWEST, _MOST = 1000, 10000
# A range that is a smaller part of a column's largest number loses half of float32's digits.
_FAR = 2.0**-12
_T = TypeVar("_T")
_TEST_PART = 0.3


class Table(NamedTuple):
    """One data set.

    Attributes:
      name: of the data set.
      source: the file, or the function that made it; error messages begin with it.
      features: float32[n, d], finite; of a column far from zero, by how much it exceeds its least.
      labels: int64[n], 1 for an anomaly, else 0.
    """

    name: str
    source: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64]


class Split(NamedTuple):
    """Which rows of a Table a run sees, and what it is told of them.

    Attributes:
      train_rows, test_rows: int64[...], indices of the Table's rows; copies are repeated.
      train_labels: int64[...], 1 for an anomaly that keeps its label, else 0.
      test_labels: int64[...], the truth.
    """

    train_rows: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    test_labels: NDArray[np.int64]


class Arrays(NamedTuple):
    """Scaled features of a Split: float32[n, d] and float32[m, d]."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


def split(
    table: Table, *, seed: int, label_ratio: float = 0.25, protocol: str = "adbench"
) -> Split:
    """Draw training and test rows as ADBench does for this seed.

    Args:
      table: the data set.
      seed: from 0 to 2**32 - 1; the same seed gives the same split as ADBench itself.
      label_ratio: part of the training anomalies that keep their label, over 0 and up to 1.
      protocol: one of PROTOCOLS.

    Raises:
      DataError: the split cannot be made, or leaves no anomaly to train on or to test on; the
        message names the file.
      ValueError: a label ratio or a protocol that does not exist.

    >>> labels = np.arange(2000) % 10 == 0
    >>> table = Table("t", "t.npz", np.zeros((2000, 1), np.float32), labels.astype(np.int64))
    >>> drawn = split(table, seed=0)
    >>> len(drawn.train_rows), int(drawn.train_labels.sum()), int(drawn.test_labels.sum())
    (1400, 35, 60)
    """
    from sklearn.model_selection import train_test_split

    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if not 0 < label_ratio <= 1:
        raise ValueError(f"label_ratio must lie in (0, 1], got {label_ratio}")
    n = len(table.labels)
    # ADBench seeds NumPy's global generator; an own one in the same state draws the same.
    draw = np.random.RandomState(seed)
    if n < _FEWEST and protocol != "nodup":
        rows = draw.choice(n, _FEWEST, replace=True)
    elif n > _MOST:
        rows = draw.choice(n, _MOST, replace=False)
    else:
        rows = np.arange(n)
    labels = table.labels[rows]
    for value, what in ((1, "anomalies (label 1)"), (0, "normal examples (label 0)")):
        count = int((labels == value).sum())
        if count < 2:  # a stratified split gives two or more to both parts
            raise DataError(
                f"{table.source}: {count} {what} among the {len(rows)} rows of seed {seed}, but "
                "training and testing need at least one each"
            )
    try:
        train, test = train_test_split(
            np.arange(len(rows)), test_size=_TEST_PART, stratify=labels, random_state=draw
        )
    except ValueError as error:
        raise DataError(f"{table.source}: cannot be split 70 to 30: {error}") from error
    truth = labels[train]
    anomalies = np.flatnonzero(truth == 1)
    kept = draw.choice(anomalies, math.ceil(label_ratio * len(anomalies)), replace=False)
    train_labels = np.zeros(len(train), np.int64)
    train_labels[kept] = 1
    if protocol == "full":
        train_labels = truth
    elif protocol == "clean":
        stays = (truth == 0) | (train_labels == 1)
        train, train_labels = train[stays], train_labels[stays]
    return Split(rows[train], train_labels, rows[test], labels[test])


def scaled(table: Table, drawn: Split) -> Arrays:
    """Features mapped to [0, 1] by the range of the training rows; test rows are not clipped.

    Under the clean protocol the range is that of the rows that are left.

    >>> table = Table("t", "t.npz", np.float32([[0], [2], [4]]), np.array([0, 1, 1]))
    >>> drawn = Split(np.array([0, 1]), np.array([0, 1]), np.array([2]), np.array([1]))
    >>> scaled(table, drawn).test.tolist()
    [[2.0]]
    """
    from sklearn.preprocessing import MinMaxScaler

    train, test = table.features[drawn.train_rows], table.features[drawn.test_rows]
    scaler = MinMaxScaler().fit(train)
    arrays = Arrays(scaler.transform(train), scaler.transform(test))
    # scikit-learn takes a range under 10 epsilons of the type for none: in ADBench's, float64,
    # columns in small units have one.
    narrow = (scaler.data_range_ > 0) & (scaler.data_range_ < 10 * np.finfo(np.float32).eps)
    if narrow.any():
        scaler = MinMaxScaler().fit(train[:, narrow].astype(np.float64))
        arrays.train[:, narrow] = scaler.transform(train[:, narrow].astype(np.float64))
        arrays.test[:, narrow] = scaler.transform(test[:, narrow].astype(np.float64))
    return arrays


# ----------------------------------------------------------------------------- where rows come from


def load_tables(
    data_dir: str | os.PathLike[str] | None, names: Sequence[str] | None = None
) -> list[Table]:
    """The named data sets, or all, in order: of a folder, or scikit-learn's own without one.

    Args:
      data_dir: a folder of NAME.npz files, each with `X` real[n, d] and `y` [n] of 0 and 1, or
        None for scikit-learn's: `digits_0` to `digits_9` (one digit is the anomaly, the nine
        others are normal) and `breast_cancer` (malignant is the anomaly).
      names: data sets without ".npz"; None takes all, sorted by name.

    Raises:
      DataError: a folder or file that is not there or not usable; the message names it.
    """
    if names is not None:
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise DataError(f"data set {twice[0]} is named twice")
    if data_dir is None:
        return _chosen(_sklearn_tables(), names, "scikit-learn's data sets here")
    folder = Path(data_dir)
    if folder.is_file():
        raise DataError(f"{folder} is a file: name its folder, and of those in it the data set")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    files = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not files:
        raise DataError(f"{folder}: holds no .npz file")
    return [_read(path) for path in _chosen(files, names, f"the .npz files in {folder}")]


def _chosen(known: dict[str, _T], names: Sequence[str] | None, where: str) -> list[_T]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise DataError(f"{unknown[0]!r} is none of {where}: {', '.join(known)}")
    return [known[name] for name in (known if names is None else names)]


def _read(path: Path) -> Table:
    if not is_utf8(path.stem):
        # Linux allows any bytes, and runs.csv could not be written once all is trained.
        raise DataError(f"{path.name!a} in {path.parent} is no name in UTF-8: rename it")
    arrays = read_npz(path, ("X", "y"))
    missing = [key for key in ("X", "y") if key not in arrays]
    if missing:
        raise DataError(
            f"{path}: lacks {' and '.join(missing)} among its keys; X are features, y are labels"
        )
    return _checked(path.stem, str(path), arrays["X"], arrays["y"])


def _checked(name: str, source: str, features: NDArray[Any], labels: NDArray[Any]) -> Table:
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiub":
        raise DataError(
            f"{source}: X must be a matrix of real numbers [n, d], not "
            f"{features.dtype}{list(features.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise DataError(
            f"{source}: y must hold one label for each of the {len(features)} rows of X, but has "
            f"shape {list(labels.shape)}"
        )
    if labels.dtype.kind not in "fiub" or not np.isin(labels, (0, 1)).all():
        odd = [value for value in np.unique(labels).tolist() if value not in (0, 1)]
        found = repr(odd[0]) if odd else f"numbers of type {labels.dtype}"
        others = f" and {len(odd) - 1} other values" if len(odd) > 1 else ""
        raise DataError(f"{source}: y must be 0 (normal) or 1 (anomaly), but holds {found}{others}")
    given = features
    with np.errstate(over="ignore"):
        features = features.astype(np.float32)
    bad = np.argwhere(~np.isfinite(features))
    if bad.size:
        row, column = bad[0].tolist()
        raise DataError(
            f"{source}: X[{row}, {column}] is {features[row, column]} in float32 "
            f"({len(bad)} such features): fill them in or drop the rows"
        )
    with np.errstate(over="ignore"):
        wide = np.flatnonzero(~np.isfinite(features.max(0) - features.min(0)))
    if wide.size:
        raise DataError(
            f"{source}: X[:, {wide[0]}] spans more than float32 can hold ({wide.size} such "
            "features), so it cannot be scaled to [0, 1]: rescale it or drop it"
        )
    return Table(name, source, _near_zero(features, given), labels.astype(np.int64))


def _near_zero(features: NDArray[np.float32], given: NDArray[Any]) -> NDArray[np.float32]:
    """The features; of a column far from zero (seconds since 1970), float32 keeps too few digits.

    Scaling takes its least off anyway, so that is done here, in the digits that were given.
    """
    low, high = given.min(0).astype(np.float64), given.max(0).astype(np.float64)
    far = (high > low) & (high - low < _FAR * np.maximum(abs(low), abs(high)))
    features[:, far] = given[:, far].astype(np.float64) - low[far]
    return features


def _sklearn_tables() -> dict[str, Table]:
    from sklearn.datasets import load_breast_cancer, load_digits

    digits, digit = load_digits(return_X_y=True)
    cells, benign = load_breast_cancer(return_X_y=True)
    tables = {"breast_cancer": _checked("breast_cancer", "load_breast_cancer()", cells, 1 - benign)}
    for k in range(10):
        name = f"digits_{k}"
        tables[name] = _checked(name, "load_digits()", digits, (digit == k).astype(np.int64))
    return tables
