"""What a comparison says, in a sentence: which row to use, or that none is better beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports.figures import p_value

LEVEL = 0.05


def verdict(rows: Sequence[Mapping[str, Any]], splits: int) -> tuple[str, str | None]:
    """(the sentences, the row to use or None).

    The row to use has the highest balanced accuracy of those whose difference to the baseline is
    positive with a Holm-corrected p of 0.05 at most. Rows beside it that are as good within their
    intervals are not told apart: a simpler one may do.
    """
    base = next(row for row in rows if "difference" not in row)
    methods = [row for row in rows if not row["reference"]]
    if splits < 2:
        said = "One split shows nothing beyond chance: use at least 10 (--splits 10)."
        return said, None
    better = [row for row in methods if _surely_better(row)]
    if better:
        best = max(better, key=lambda row: row["balanced_accuracy"])
        mean, low, high = best["difference"]["balanced_accuracy"]
        said = (
            f"Use {best['row']}: balanced accuracy {best['balanced_accuracy']:.1f}%, "
            f"{mean:+.1f} points to {base['row']} (95% interval {low:+.1f} to {high:+.1f}, Holm's "
            f"p {p_value(best['p_holm'], 'below ')})."
        )
        said += _ranking(best)
        name = best["row"]
    else:
        tried = max(
            (row for row in methods if row is not base),
            key=lambda row: _number(row["balanced_accuracy"]),
            default=None,
        )
        said = f"Nothing here is better than {base['row']} beyond chance"
        if tried is not None and None not in tried["difference"]["balanced_accuracy"]:
            mean, low, high = tried["difference"]["balanced_accuracy"]
            said += (
                f": the highest balanced accuracy of the others, {tried['row']}, is {mean:+.1f} "
                f"points (95% interval {low:+.1f} to {high:+.1f})"
            )
        said, name = said + ".", None
    return said + _outside(rows, base if name is None else best), name


def _surely_better(row: Mapping[str, Any]) -> bool:
    if "difference" not in row or row["p_holm"] is None:
        return False
    return bool(row["p_holm"] <= LEVEL and row["difference"]["balanced_accuracy"][0] > 0)


def _ranking(best: Mapping[str, Any]) -> str:
    """Whether it also ranks better, or moves the threshold alone."""
    mean, low, high = best["difference"]["auroc"]
    if low is None:
        return ""
    if low > 0:
        return f" It ranks better, too (AUROC {mean:+.3f})."
    if high < 0:
        return f" But it ranks worse (AUROC {mean:+.3f}): what it gains is by its threshold."
    return f" It does not rank better (AUROC {mean:+.3f}): what it gains is by its threshold."


def _outside(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """Names a reference line with the higher mean."""
    others = [row for row in rows if row["reference"]]
    top = max(others, key=lambda row: _number(row["balanced_accuracy"]), default=None)
    if top is None or _number(top["balanced_accuracy"]) <= _number(best["balanced_accuracy"]):
        return ""
    return (
        f" Outside this family {top['row']} has {top['balanced_accuracy']:.1f}%, more than "
        f"{best['row']} ({best['balanced_accuracy']:.1f}%)."
    )


def _number(value: float | None) -> float:
    return -1.0 if value is None else value
