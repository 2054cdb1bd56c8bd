"""A grid of hyper-parameters beside SGD, and what validation chooses from it."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.tables import SPLITS

# In percent, of single precision: as many images right, of other classes, may differ by so much.
_ROUNDING = 1e-4


class Tried(NamedTuple):
    """What was seen at a point of the grid; accuracies are float[S] by split, in percent.

    Attributes:
      point: values by flag; {} is SGD.
      test, val: of the last epoch; NaN for a shot group without classes.
      diverged: why there are none at all, or None.
    """

    point: dict[str, float]
    test: dict[str, Any]
    val: dict[str, Any]
    diverged: str | None = None


def points_of(grid: dict[str, list[float]]) -> list[dict[str, float]]:
    """Values by flag of each point; the last flag varies fastest.

    >>> points_of({"eta": [20.0, 60.0], "rho": [0.1]})
    [{'eta': 20.0, 'rho': 0.1}, {'eta': 60.0, 'rho': 0.1}]
    """
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def named(point: dict[str, float]) -> str:
    """As in messages and tables; the point without values is SGD.

    >>> named({"eta": 60.0, "rho": 0.1}), named({})
    ('eta 60, rho 0.1', 'sgd')
    """
    return ", ".join(f"{name} {value:.12g}" for name, value in point.items()) or "sgd"


def summarise(tried: list[Tried], seeds: list[int]) -> list[dict[str, Any]]:
    """One object a point, SGD first, as in summary.json; percent, of the last epoch.

    "test_all" and its like are means over seeds, "_sgd" of the difference to SGD of the same seed
    and "_sgd_se" its standard error. "best_val" and "best_test" mark the best of all, SGD among
    them: a radius that loses to none is not chosen. None where there is nothing to take it of.
    """
    sgd = tried[0]
    summary: list[dict[str, Any]] = []
    for point, test, val, diverged in tried:
        line: dict[str, Any] = {"point": point, "seeds": seeds, "diverged": diverged}
        for name, values, base in (("test", test, sgd.test), ("val", val, sgd.val)):
            for split in SPLITS:
                difference = values[split] - base[split]
                spread = np.std(difference, ddof=1) if len(seeds) > 1 else np.nan
                line[f"{name}_{split}"] = _number(np.mean(values[split], dtype=np.float64))
                line[f"{name}_{split}_sgd"] = _number(np.mean(difference, dtype=np.float64))
                line[f"{name}_{split}_sgd_se"] = _number(spread / np.sqrt(len(seeds)))
            line[f"{name}_all_by_seed"] = [_number(value) for value in values["all"]]
        summary.append(line)
    for name in ("test", "val"):
        # SGD first, the rule with radius 0: of equals it is taken.
        whole = [line for line in summary if line["diverged"] is None]
        best = _first_of_the_best(whole, f"{name}_all") if len(whole) > 1 else None
        for line in summary:
            line[f"best_{name}"] = line is best
    return summary


def _first_of_the_best(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    highest = max(line[name] for line in lines)
    return next(line for line in lines if line[name] >= highest - _ROUNDING)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def table(summary: list[dict[str, Any]], grid: dict[str, list[float]]) -> str:
    """Markdown; what validation chose is bold."""
    heads = [*grid, "Many", "Medium", "Few", "All", "All - SGD", "Few - SGD", "val. All - SGD"]
    text = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in summary:
        cells = [f"{line['point'][name]:g}" for name in grid] if line["point"] else ["SGD"]
        cells += [""] * (len(grid) - len(cells))
        cells += [_plain(line[f"test_{split}"]) for split in ("many", "medium", "few", "all")]
        cells += [
            "" if not line["point"] else _paired(line[f"{key}_sgd"], line[f"{key}_sgd_se"])
            for key in ("test_all", "test_few", "val_all")
        ]
        if line["diverged"] is not None:
            cells[-1] = "diverged"
        mark = "**" if line["best_val"] else ""
        text.append("| " + " | ".join(f"{mark}{c}{mark}" if c else "" for c in cells) + " |")
    return "\n".join(text)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _paired(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.1f}" + ("" if error is None else f" ± {error:.1f}")


def verdict(summary: list[dict[str, Any]]) -> str:
    """What validation chose, and what choosing on the test set would have shown instead."""
    lines = [
        f"Diverged, and not among the choices: {named(line['point'])} ({line['diverged']})."
        for line in summary
        if line["diverged"] is not None
    ]
    if len(lines) == len(summary) - 1:
        return "\n".join(
            [*lines, "No point was trained to its end: none is chosen, SGD alone is left."]
        )
    for name, words in (
        ("val", "Chosen by validation"),
        ("test", "Best on the test set, no result"),
    ):
        line = next(line for line in summary if line[f"best_{name}"])
        if not line["point"]:
            where = "validation" if name == "val" else "the test set"
            lines.append(f"{words}: SGD (rho 0), as no point was better than it on {where}.")
            continue
        gain = _paired(line["test_all_sgd"], line["test_all_sgd_se"])
        lines.append(f"{words}: {named(line['point'])}, All - SGD {gain} on the test set.")
    return "\n".join(lines)
