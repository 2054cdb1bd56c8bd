"""How settings are chosen: rows held out of those trained on, and how well they are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def folds(
    rows: NDArray[np.int64],
    labels: NDArray[Any],
    count: int,
    draw: np.random.Generator,
    ids: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """The held rows of each of so many folds: every class is spread over them evenly.

    A class with a single row is in none; every other class has rows left in the rest of each fold.
    With count 1 a fifth of the rows is held, of every class with two rows or more at least one.
    With ids the same is done with ids, each of the rarest class among its rows.
    """
    if ids is not None:
        names, of_row = np.unique(ids[rows], return_inverse=True)
        rarity = np.argsort(np.argsort(-np.bincount(labels[rows]), kind="stable"))
        rarest = np.full(len(names), -1)
        np.maximum.at(rarest, of_row, rarity[labels[rows]])
        held_ids = folds(np.arange(len(names)), rarest, count, draw)
        return [rows[np.isin(of_row, units)] for units in held_ids]
    held: list[list[int]] = [[] for _ in range(count)]
    start = 0
    for c in np.unique(labels[rows]):
        members = draw.permutation(rows[labels[rows] == c])
        if len(members) < 2:
            continue
        if count == 1:
            held[0] += members[: max(1, round(len(members) / 5))].tolist()
            continue
        for k, member in enumerate(members):
            held[(start + k) % count].append(int(member))
        start += len(members)
    return [np.sort(np.asarray(fold, np.int64)) for fold in held]


def criterion(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> tuple[float, float]:
    """(balanced accuracy in percent, minus the log-loss with each class counting alike).

    What is not finite is worse than anything, and so is no row at all.

    >>> criterion(np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]), np.array([0, 1, 1]))
    (75.0, -0.978...)
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return -np.inf, -np.inf
    right = probabilities.argmax(axis=1) == labels
    of_label = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(of_label, 1e-12))
    present = np.unique(labels)
    accuracy = np.mean([right[labels == c].mean() for c in present])
    return (
        round(100 * float(accuracy), 9),
        -float(np.mean([loss[labels == c].mean() for c in present])),
    )
