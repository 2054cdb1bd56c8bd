"""Statistics over data sets: ranks, signed ranks, and what a gain goes with (Demsar, 2006)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def ranks(values: ArrayLike, *, falling: bool = False, level: float = 0.05) -> dict[str, Any]:
    """Average ranks, Friedman's test, and Nemenyi's critical difference.

        CD = q sqrt(k (k + 1) / (6 N)),   q the studentized range's upper `level` over sqrt(2)

    Args:
      values: float[N, k], of N sets under k methods.
      falling: the smallest is the best.
      level: of the critical difference.

    Returns:
      {"rank": [k], 1 the best, ties shared; "statistic", "p": Friedman's, None for fewer than three
      methods or two sets, or where all are equal; "cd"; "sets": N}.
    """
    from scipy import stats

    held = np.asarray(values, np.float64)
    sets, methods = held.shape
    found = stats.rankdata(held if falling else -held, axis=1)
    result: dict[str, Any] = {"rank": found.mean(axis=0).tolist(), "sets": sets}
    tested = methods > 2 and sets > 1 and bool((np.ptp(found, axis=1) > 0).any())
    statistic = p = None
    if tested:
        statistic, p = map(float, stats.friedmanchisquare(*found.T))
    q = float(stats.studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    cd = q * math.sqrt(methods * (methods + 1) / (6 * sets))
    return {**result, "statistic": statistic, "p": p, "cd": cd}


def signed_rank(gains: ArrayLike) -> float | None:
    """Wilcoxon's signed-rank p-value, two-sided, zeros ranked with the others (Pratt, 1959).

    1 where every gain is 0, None where there is none.
    """
    from scipy import stats

    held = np.asarray(gains, np.float64)
    if not len(held):
        return None
    if not held.any():
        return 1.0
    with warnings.catch_warnings():  # that few gains make the normal approximation poor
        warnings.simplefilter("ignore", UserWarning)
        return float(stats.wilcoxon(held, zero_method="pratt").pvalue)


def regression(
    outcome: ArrayLike, predictors: Mapping[str, Sequence[float]]
) -> dict[str, Any] | None:
    """Least squares with an intercept; predictors centred, so that it is the mean outcome.

    Standard errors allow for variances that differ by set (HC3, MacKinnon and White, 1985):

        V = (X'X)^-1 X' diag(e_i^2 / (1 - h_i)^2) X (X'X)^-1,   h_i the leverage

    A predictor that does not vary is left out.

    Args:
      outcome: float[N].
      predictors: by name, float[N].

    Returns:
      {"terms": {name: {"coefficient", "se", "p"}}, "r2", "sets"}, "mean" among the terms; None
      with fewer than two sets more than terms, or where predictors determine one another.
    """
    from scipy import stats

    y = np.asarray(outcome, np.float64)
    use = {name: np.asarray(x, np.float64) for name, x in predictors.items() if np.ptp(x) > 0}
    design = np.column_stack([np.ones(len(y)), *(x - x.mean() for x in use.values())])
    sets, terms = design.shape
    if sets < terms + 2 or np.linalg.matrix_rank(design) < terms:
        return None
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    residuals = y - design @ coefficients
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    # A set that alone has a predictor's value is fitted whatever it is: it says nothing.
    weights = np.where(leverage < 1 - 1e-9, residuals / np.maximum(1 - leverage, 1e-9), 0.0)
    spread = inverse @ (design.T * weights**2) @ design @ inverse
    total = float(((y - y.mean()) ** 2).sum())
    found = {}
    for name, value, variance in zip(["mean", *use], coefficients, np.diag(spread), strict=True):
        se = math.sqrt(variance)
        p = 2 * float(stats.t.sf(abs(value) / se, sets - terms)) if se > 0 else None
        found[name] = {"coefficient": float(value), "se": se, "p": p}
    r2 = None if total == 0 else 1 - float((residuals**2).sum()) / total
    return {"terms": found, "r2": r2, "sets": sets}
