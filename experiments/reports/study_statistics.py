"""Statistics over data sets: ranks, signed ranks, and what a gain goes with (Demsar, 2006)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Means of equal figures, summed in another order, differ in the last places: they are ties.
_PLACES = 9


def _told_apart(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).round(_PLACES)


def ranks(values: ArrayLike, *, falling: bool = False, level: float = 0.05) -> dict[str, Any]:
    """Average ranks, Friedman's test, and Nemenyi's critical difference.

        CD = q sqrt(k (k + 1) / (6 N)),   q the studentized range's upper `level` over sqrt(2)

    Args:
      values: float[N, k], of N sets under k methods; equal to nine places is tied.
      falling: the smallest is the best.
      level: of the critical difference.

    Returns:
      {"rank": [k], 1 the best, ties shared; "statistic", "p": Friedman's, None for fewer than three
      methods or two sets, or where all are equal; "cd"; "sets": N}.
    """
    from scipy import stats

    held = _told_apart(values)
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

    Exact at any number: over all signs of the gains that are not 0, their ranks as they are, ties
    shared; equal to nine places is tied. 1 where every gain is 0, None where there is none.
    """
    from scipy import stats

    held = _told_apart(gains)
    if not len(held):
        return None
    # Shared ranks are halves, twice a rank is whole.
    twice = np.rint(2 * stats.rankdata(np.abs(held))).astype(int)
    positive = int(twice[held > 0].sum())
    share = np.ones(1)  # of the signs, by twice the sum of the positive ranks
    for rank in twice[held != 0]:
        share = (np.pad(share, (0, rank)) + np.pad(share, (rank, 0))) / 2
    fewer = min(positive, len(share) - 1 - positive)
    return min(1.0, 2 * float(share[: fewer + 1].sum()))


def regression(
    outcome: ArrayLike, predictors: Mapping[str, Sequence[float]]
) -> dict[str, Any] | None:
    """Least squares with an intercept; predictors centred, so that it is the mean outcome.

    Standard errors allow for variances that differ by set (HC3, MacKinnon and White, 1985):

        V = (X'X)^-1 X' diag(e_i^2 / (1 - h_i)^2) X (X'X)^-1,   h_i the leverage

    A set of leverage 1, as one that alone has a predictor's value, is fitted whatever its outcome
    is: how far that varies is not known, and the terms that hang on it have no se and no p.

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
    alone = leverage > 1 - 1e-9
    weights = np.where(alone, 0.0, residuals / np.where(alone, 1.0, 1 - leverage))
    spread = inverse @ (design.T * weights**2) @ design @ inverse
    total = float(((y - y.mean()) ** 2).sum())
    moved = np.abs(inverse @ design[alone].T) * np.linalg.norm(design, axis=0)[:, None]
    known = (moved < 1e-9).all(axis=1)
    found = {}
    for k, name in enumerate(["mean", *use]):
        value, se = float(coefficients[k]), math.sqrt(spread[k, k]) if known[k] else None
        p = 2 * float(stats.t.sf(abs(value) / se, sets - terms)) if se else None
        found[name] = {"coefficient": value, "se": se, "p": p}
    r2 = None if total == 0 else 1 - float((residuals**2).sum()) / total
    return {"terms": found, "r2": r2, "sets": sets}
