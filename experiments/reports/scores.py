"""How good probabilities are: by threshold, by rank and by value, many lanes at once.

A lane is one prediction of n rows: a method, a split, a seed. scikit-learn scores one lane a call;
here the leading axes are lanes, and the figures are those of scikit-learn (the tests compare).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = (
    "balanced_accuracy", "macro_f1", "worst_recall", "auroc", "average_precision", "log_loss",
    "calibration_error", "few", "medium", "many",
)  # fmt: skip
# Of two classes alone: where the log odds of the rare one lie, and how far apart.
TWO = ("logit_middle", "logit_gap")
PERCENT = ("balanced_accuracy", "worst_recall", "few", "medium", "many", "worst_group")
# Of these a smaller one is better.
FALLING = ("log_loss", "calibration_error")
BINS = 15

Floats = NDArray[np.float64]


class Bins(NamedTuple):
    """Rows by their largest probability, in bins of equal width, (k/bins, (k+1)/bins].

    Attributes:
      count: [..., bins], rows.
      confidence: [..., bins], their mean largest probability; NaN without rows.
      accuracy: [..., bins], their share that was right; NaN without rows.
    """

    count: Any
    confidence: Any
    accuracy: Any


def shots(counts: ArrayLike) -> tuple[int, int]:
    """Where Many ends and Few begins, from the sizes of the classes: a third of them each.

    Few are the round(C / 3) smallest classes, at least one, and those as small; Many as many of
    the largest, and those as large; of two classes one each. Where all are as large, all are
    Medium.

    Args:
      counts: int[C], training rows of each class.

    Returns:
      (many_above, few_below): a class is Many above the first, Few below the second.

    >>> shots([100, 50, 20, 10, 5, 2]), shots([90, 7]), shots([30, 30, 30]), shots([9, 9, 9, 1])
    ((49, 6), (89, 8), (30, 30), (8, 2))
    """
    rising = np.sort(np.asarray(counts))
    if rising[0] == rising[-1]:
        return int(rising[0]), int(rising[0])
    third = max(1, round(len(rising) / 3))
    few = rising[third - 1]
    if few == rising[-1]:  # so many are as large: only those below
        few = rising[rising < few][-1]
    many = max(rising[-third], few + 1)
    return int(many) - 1, int(few) + 1


def splits_of(counts: ArrayLike, thresholds: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
    """Which classes are "many", "medium" and "few", bool[C] each."""
    counts = np.asarray(counts)
    many, few = counts > thresholds[0], counts < thresholds[1]
    return {"many": many, "medium": ~many & ~few, "few": few}


def scores(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    thresholds: tuple[int, int],
    counts: ArrayLike,
    mask: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Floats]:
    """Every metric of every lane; NaN where it is undefined or a probability is not finite.

    Accuracies and recalls are in percent, log-loss in nats, the rest from 0 to 1. AUROC and average
    precision are of the rare class (1) where there are two, else one against the rest, mean over
    the classes with a row and without all of them. A probability is at least 2.2e-16 in the
    log-loss, as scikit-learn has it. The calibration error is the mean gap between largest
    probability and accuracy over 15 bins, weighed by rows.

    Args:
      probabilities: [..., n, C], rows that sum to 1.
      labels: int[..., n] or int[n].
      thresholds: `shots` of the classes.
      counts: int[C], training rows of each class, for Many, Medium and Few.
      mask: bool[..., n], rows that count; None: all.
      groups: int[..., n] or int[n]: `worst_group` is the accuracy of the worst of them.

    Of two classes z = log p(rare) - log p(large) is looked at, too, m_c its mean over the rows of
    class c: "logit_middle" is (m_0 + m_1) / 2, negative where the network leans to the large class,
    and "logit_gap" m_1 - m_0, how far it tells them apart; both in nats.

    Returns:
      METRICS (of two classes TWO, with groups worst_group): float64[...].
    """
    p, y, real, lanes = _lanes(probabilities, labels, mask)
    table = _confusion(p, y, real)
    recall = _recalls(table)
    hits = np.diagonal(table, axis1=1, axis2=2)
    support, said = table.sum(axis=2), table.sum(axis=1)
    f1 = np.where(support + said > 0, 2 * hits / np.maximum(support + said, 1), np.nan)
    ranking = np.array([_ranking(*lane) for lane in zip(p, y, real, strict=True)])
    own = np.take_along_axis(p, y[..., None], axis=2)[..., 0]
    logs = -np.log(np.maximum(own, np.finfo(np.float64).eps))
    bins = calibration(p, y, mask=real)
    gaps = np.abs(np.nan_to_num(bins.confidence) - np.nan_to_num(bins.accuracy))
    total = np.maximum(real.sum(axis=1), 1)
    found = {
        "balanced_accuracy": _mean(recall),
        "macro_f1": _mean(f1),
        "worst_recall": np.nanmin(recall, axis=1, initial=np.inf),
        "auroc": ranking[:, 0],
        "average_precision": ranking[:, 1],
        "log_loss": np.where(real, logs, 0).sum(axis=1) / total,
        "calibration_error": (bins.count * gaps).sum(axis=1) / total,
        **{name: _mean(recall[:, of]) for name, of in splits_of(counts, thresholds).items()},
    }
    if p.shape[-1] == 2:
        rare, large = _log_odds(p, y, real)
        found |= {"logit_middle": (rare + large) / 2, "logit_gap": rare - large}
    if groups is not None:
        of = np.broadcast_to(np.asarray(groups), (*lanes, y.shape[-1])).reshape(y.shape)
        each = _group_accuracy(p, y, real, of, int(of.max()) + 1)
        found["worst_group"] = np.nanmin(each, axis=1, initial=np.inf)
    broken = ~np.isfinite(np.where(real[..., None], p, 0)).all(axis=(1, 2)) | ~real.any(axis=1)
    return {
        name: np.where(broken, np.nan, found[name]).reshape(lanes)
        for name in (*METRICS, *(name for name in found if name not in METRICS))
    }


def _log_odds(p: Floats, y: np.ndarray, real: np.ndarray) -> tuple[Floats, Floats]:
    """Mean log odds of class 1 over the rows of class 1 and of class 0, [L] each."""
    z = np.diff(np.log(np.maximum(p, np.finfo(np.float64).tiny)), axis=-1)[..., 0]
    one, zero = (_mean(np.where(real & (y == c), z, np.nan)) for c in (1, 0))
    return one, zero


def recalls(
    probabilities: ArrayLike, labels: ArrayLike, *, mask: ArrayLike | None = None
) -> Floats:
    """Recall of each class in percent, [..., C]; NaN of a class without a row."""
    p, y, real, lanes = _lanes(probabilities, labels, mask)
    return _recalls(_confusion(p, y, real)).reshape(*lanes, p.shape[-1])


def group_accuracy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    num_groups: int,
    *,
    mask: ArrayLike | None = None,
) -> Floats:
    """Accuracy in each group of rows in percent, [..., G]; NaN of a group without a row."""
    p, y, real, lanes = _lanes(probabilities, labels, mask)
    of = np.broadcast_to(np.asarray(groups), (*lanes, y.shape[-1])).reshape(y.shape)
    return _group_accuracy(p, y, real, of, num_groups).reshape(*lanes, num_groups)


def calibration(
    probabilities: ArrayLike, labels: ArrayLike, *, mask: ArrayLike | None = None, bins: int = BINS
) -> Bins:
    """Confidence and accuracy of the rows in each bin; of a reliability diagram."""
    p, y, real, lanes = _lanes(probabilities, labels, mask)
    largest = np.nan_to_num(p.max(axis=-1))
    right = p.argmax(axis=-1) == y
    at = np.clip(np.ceil(largest * bins).astype(np.int64) - 1, 0, bins - 1)
    at += bins * np.arange(len(p))[:, None]
    size = bins * len(p)
    count = np.bincount(at[real], minlength=size)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(at[real], largest[real], minlength=size) / count
        accuracy = np.bincount(at[real], right[real], minlength=size) / count
    return Bins(*(x.reshape(*lanes, bins) for x in (count, confidence, accuracy)))


def pooled(several: Sequence[Bins]) -> Bins:
    """The bins of all their rows together."""
    count = np.sum([each.count for each in several], axis=0)
    with np.errstate(invalid="ignore"):
        mean = [
            np.sum([np.nan_to_num(each[k]) * each.count for each in several], axis=0) / count
            for k in (1, 2)
        ]
    return Bins(count, *mean)


def _lanes(
    probabilities: ArrayLike, labels: ArrayLike, mask: ArrayLike | None
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_], tuple[int, ...]]:
    """(p[L, n, C], y[L, n], mask[L, n], the shape of the lanes)."""
    p = np.asarray(probabilities, np.float64)
    lanes, rows = p.shape[:-2], p.shape[-2]
    p = p.reshape(-1, *p.shape[-2:])
    y = np.broadcast_to(np.asarray(labels, np.int64), (*lanes, rows)).reshape(-1, rows)
    real = np.ones((*lanes, rows), bool) if mask is None else np.asarray(mask, bool)
    return p, y, np.broadcast_to(real, (*lanes, rows)).reshape(-1, rows), lanes


def _confusion(p: Floats, y: np.ndarray, real: np.ndarray) -> NDArray[np.int64]:
    """Rows of each class (first) that were taken for each class, int[L, C, C]."""
    lanes, _, classes = p.shape
    at = (np.arange(lanes)[:, None] * classes + y) * classes + p.argmax(axis=-1)
    return np.bincount(at[real], minlength=lanes * classes**2).reshape(lanes, classes, classes)


def _recalls(table: np.ndarray) -> Floats:
    support = table.sum(axis=2)
    hits = np.diagonal(table, axis1=1, axis2=2)
    return np.where(support > 0, 100 * hits / np.maximum(support, 1), np.nan)


def _mean(values: Floats) -> Floats:
    """Over the last axis, of those that are there."""
    there = ~np.isnan(values)
    total, number = np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _group_accuracy(
    p: Floats, y: np.ndarray, real: np.ndarray, groups: np.ndarray, num_groups: int
) -> Floats:
    at = num_groups * np.arange(len(p))[:, None] + groups
    size = num_groups * len(p)
    count = np.bincount(at[real], minlength=size)
    right = np.bincount(at[real], (p.argmax(axis=-1) == y)[real], minlength=size)
    share = np.where(count > 0, 100 * right / np.maximum(count, 1), np.nan)
    return share.reshape(len(p), num_groups)


def _ranking(p: Floats, y: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """(AUROC, average precision) of one lane, rows of equal probability as one threshold."""
    p, y = p[real], y[real]
    classes = [1] if p.shape[1] == 2 else np.arange(p.shape[1])
    held = p[:, classes].T
    order = np.argsort(-held, axis=1, kind="stable")
    falling = np.take_along_axis(held, order, axis=1)
    hit = y[order] == np.asarray(classes)[:, None]
    found, missed = np.cumsum(hit, axis=1), np.cumsum(~hit, axis=1)
    positive, negative = hit.sum(axis=1), (~hit).sum(axis=1)
    rows = hit.shape[1]
    # The last row of each threshold, and the row before its first.
    change = falling[:, 1:] != falling[:, :-1]
    ends = np.where(np.pad(change, ((0, 0), (0, 1)), constant_values=True), np.arange(rows), rows)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    starts = np.where(np.pad(change, ((0, 0), (1, 0))), np.arange(rows), 0)
    starts = np.maximum.accumulate(starts, axis=1)
    false_last = np.take_along_axis(missed, ends, axis=1)
    false_first = np.take_along_axis(np.pad(missed, ((0, 0), (1, 0))), starts, axis=1)
    true_last = np.take_along_axis(found, ends, axis=1)
    below = negative[:, None] - (false_last + false_first) / 2
    use = (positive > 0) & (negative > 0)
    if not use.any():
        return np.nan, np.nan
    area = (below * hit).sum(axis=1)[use] / (positive * negative)[use]
    precision = (true_last / (ends + 1) * hit).sum(axis=1)[use] / positive[use]
    return float(area.mean()), float(precision.mean())
