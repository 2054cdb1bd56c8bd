"""Differences paired by split: how large, how sure, and how many were looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Equal differences of figures up to 100, each rounded in its last place, are alike to this.
_ROUNDING = 1e-9


class Interval(NamedTuple):
    """A mean difference, its confidence interval, and what is behind it.

    Attributes:
      mean: of the differences; None where there is none.
      low, high: the interval's ends; None of a single split, and where all differ by the same.
      p: two-sided, of no difference; not corrected for other comparisons.
      se: the corrected standard error.
      n: number of splits.
    """

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    se: float | None
    n: int


def interval(
    differences: ArrayLike,
    n_train: ArrayLike,
    n_test: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Interval:
    """The corrected resampled t interval of Nadeau and Bengio (2003).

        se^2 = s^2 (1/J + n_test / n_train)

    with s^2 the sample variance of J differences and J - 1 degrees of freedom: training sets of
    random splits overlap, so that s^2 / J alone is far too small. Sizes that differ by split enter
    by their mean ratio. Differences that are all alike have no variance to judge by: of zeros the
    interval is 0 and p 1, of others there is none. Without a test part of its own (n_test = 0:
    every split is tested on the same file) it is the usual t interval, of the training alone.

    Args:
      differences: float[J]; NaN, where a split has no such figure, is left out with its sizes.
      n_train: rows that a method saw, of each split or of all.
      n_test: rows it was tested on.
      confidence: in (0, 1).

    Returns:
      An Interval.

    >>> found = interval([1.0, 2.0, 3.0], 70, 30)
    >>> round(found.mean, 3), round(found.se, 3), round(found.low, 3), round(found.high, 3)
    (2.0, 0.873, -1.756, 5.756)
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    ratio = np.broadcast_to(np.asarray(n_test) / np.asarray(n_train), values.shape)
    there = ~np.isnan(values)
    values, ratio = values[there], ratio[there]
    number = len(values)
    if number == 0:
        return Interval(None, None, None, None, None, 0)
    mean = float(values.mean())
    if number == 1:
        return Interval(mean, None, None, None, None, 1)
    if np.ptp(values) <= _ROUNDING:
        if abs(mean) <= _ROUNDING:
            return Interval(0.0, 0.0, 0.0, 1.0, 0.0, number)
        return Interval(mean, None, None, None, 0.0, number)
    se = float(values.std(ddof=1)) * math.sqrt(1 / number + float(ratio.mean()))
    wide = float(stats.t.ppf((1 + confidence) / 2, number - 1)) * se
    p = 2 * float(stats.t.sf(abs(mean) / se, number - 1))
    return Interval(mean, mean - wide, mean + wide, p, se, number)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values; None, of what could not be tested, stays and counts not.

        adjusted of the k-th smallest of m: the largest of (m - j + 1) p_j over j <= k, at most 1

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, k) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p))
        adjusted[k] = highest
    return adjusted
