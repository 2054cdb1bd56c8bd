"""The figures of a comparison, drawn from its summary.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.host.cli import noun
from experiments.reports import drawing

# More rows than these would hide one another in one panel.
SHOWN = 5
MOST_NAMED = 30

Row = Mapping[str, Any]


def shown_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The baseline, then the rows that it is read beside, at most five.

    The row to use; without a rule's perturbation the best loss; the best row that has one with the
    baseline's loss; the best reference line.
    """
    rows = summary["rows"]
    base = baseline(summary)
    kinds = (
        [row for row in rows if row["row"] == summary["best"]],
        [row for row in rows if row["rule"] == "sgd" and row is not base],
        [row for row in rows if row["rule"] != "sgd" and row["loss"] == base["loss"]],
        [row for row in rows if row["reference"]],
        rows,
    )
    found = [base]
    for kind in kinds:
        left = [row for row in kind if row not in found and row["balanced_accuracy"] is not None]
        if left and len(found) < SHOWN:
            found.append(max(left, key=lambda row: row["balanced_accuracy"]))
    return found


def baseline(summary: Mapping[str, Any]) -> Row:
    return next(row for row in summary["rows"] if "difference" not in row)


def differences(path: Path, summary: Mapping[str, Any]) -> None:
    """A line for each row: its difference to the baseline, by threshold and by rank."""
    base = baseline(summary)
    rows = [row for row in summary["rows"] if row is not base][::-1]
    panels = (
        ("balanced_accuracy", "balanced accuracy", "points"),
        ("auroc", "AUROC", "0 to 1"),
    )
    figure = Figure(figsize=(9.5, 1.6 + 0.32 * max(len(rows), 3)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (metric, name, unit) in zip(axes, panels, strict=True):
        digits = 1 if unit == "points" else 3
        for at, row in enumerate(rows):
            _interval(axis, at, row["difference"][metric], row["reference"], digits)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{name} ({unit})")
        axis.grid(axis="x", linewidth=0.4)
        axis.margins(x=0.12)
    axes[0].set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes[0].set_ylim(-0.7, len(rows) - 0.3)
    figure.suptitle(drawing.wrapped(
        f"{summary['data']['name']}: difference to {base['row']}, paired over "
        f"{noun(summary['splits']['count'], 'split')}, with 95% intervals (open: outside the "
        "family)"
    ), fontsize="medium")  # fmt: skip
    drawing.save(figure, path)


def _interval(
    axis: Axes, at: float, found: Sequence[float | None], hollow: bool, digits: int
) -> None:
    mean, low, high = found
    if mean is None:
        axis.text(0, at, " undefined", va="center", fontsize="small")
        return
    if low is not None and high is not None:
        axis.plot([low, high], [at, at], color="black", linewidth=1.4, solid_capstyle="butt")
    colour = "white" if hollow else "black"
    axis.plot(mean, at, "s" if hollow else "o", color="black", markerfacecolor=colour, markersize=5)
    shown = f"{round(mean, digits) + 0.0:+.{digits}f}"  # no -0.0
    axis.annotate(shown, (mean, at), xytext=(0, 5), textcoords="offset points", ha="center",
                  fontsize="x-small")  # fmt: skip


def _label(row: Row) -> str:
    return row["row"] + (" *" if row["p_holm"] is not None and row["p_holm"] <= 0.05 else "")


def recall(path: Path, summary: Mapping[str, Any]) -> None:
    """Recall of each class, from the largest to the rarest, of the rows that are shown."""
    rows, data = shown_rows(summary), summary["data"]
    classes = np.arange(data["classes"])
    figure = Figure(figsize=(max(9.0, min(15, 4.5 + 0.35 * len(classes))), 4.6))
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    for number, row in enumerate(rows):
        values = np.array([np.nan if x is None else x for x in row["recall"]])
        near = 0.06 * (number - (len(rows) - 1) / 2)  # side by side where they are equal
        line = drawing.style(number) | {"linewidth": 0.9}
        axis.plot(classes + near, values, label=row["row"], **line)
    named = len(classes) <= MOST_NAMED
    counts = data["train_counts"]
    step = 1 if named else -(-len(classes) // MOST_NAMED)
    at = classes[::step]
    axis.set_xticks(at, [
        f"{_short(data['class_names'][c])} ({counts[c]})" if named else f"{c} ({counts[c]})"
        for c in at
    ], rotation=40 if len(at) > 3 else 0, ha="right" if len(at) > 3 else "center",
       fontsize="small")  # fmt: skip
    limits = summary["thresholds"]["many_above"], summary["thresholds"]["few_below"]
    drawing.shots(axis, np.array(counts), limits)
    axis.set_xlabel(f"{'class' if named else 'number of the class'} (training rows), rarest last")
    axis.set_ylabel("recall (%), mean over splits")
    axis.set_ylim(-3, 103)
    axis.grid(axis="y", linewidth=0.4)
    drawing.legend(figure, [axis])
    drawing.save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:14] + "…"


def reliability(path: Path, summary: Mapping[str, Any]) -> None:
    """Accuracy by confidence, and how many rows have it, of the rows that are shown."""
    rows = shown_rows(summary)
    figure = Figure(figsize=(9.2, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    above.annotate("as right as it is sure", (0.06, 0.075), rotation=31, fontsize="x-small",
                   color="dimgrey")  # fmt: skip
    for number, row in enumerate(rows):
        bins = row["calibration"]
        count = np.array(bins["count"])
        use = count > 0
        sure, right = (np.array(bins[name], float)[use] for name in ("confidence", "accuracy"))
        error = row["calibration_error"]
        label = row["row"] + ("" if error is None else f"\n(error {error:.3f})")
        above.plot(sure, right, label=label, **drawing.style(number))
        share = 100 * count[use] / count.sum()
        below.plot(sure, share, **drawing.style(number) | {"markersize": 3, "linewidth": 0.9})
    above.set_ylabel("accuracy of the rows in a bin (0 to 1)")
    below.set_ylabel("rows (%)")
    below.set_yscale("log")
    below.set_xlabel("largest probability (0 to 1), test rows of all splits")
    for axis in (above, below):
        axis.grid(linewidth=0.4)
    above.set_ylim(-0.02, 1.02)
    drawing.legend(figure, [above])
    drawing.save(figure, path)


CHOSEN = ("rho", "eta", "tau", "lr", "weight_decay")


def chosen(path: Path, summary: Mapping[str, Any]) -> bool:
    """Which radius, eta, tau, learning rate and decay each split chose; False: nothing to show."""
    names = [name for name in CHOSEN if any(_values(row, name) for row in summary["rows"])]
    rows = [row for row in summary["rows"] if any(_values(row, name) for name in names)][::-1]
    if not rows:
        return False
    size = (2.6 + 2.1 * len(names), 1.5 + 0.32 * max(len(rows), 3))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        tried = sorted({value for row in rows for value in _values(row, name)})
        for at, row in enumerate(rows):
            mine = _values(row, name)
            for value in sorted(set(mine)):
                times = mine.count(value)
                axis.scatter(tried.index(value), at, s=80 + 180 * times / len(mine), color="white",
                             edgecolor="black", linewidth=0.9)  # fmt: skip
                axis.annotate(str(times), (tried.index(value), at), ha="center", va="center",
                              fontsize=6.5)  # fmt: skip
        axis.set_xticks(range(len(tried)), [f"{value:g}" for value in tried], rotation=60,
                        fontsize="x-small")  # fmt: skip
        axis.set_xlim(-0.6, len(tried) - 0.4)
        unit = {"eta": " (rows)", "lr": " (learning rate)"}.get(name, "")
        axis.set_xlabel(name.replace("_", " ") + unit)
    axes[0].set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes[0].set_ylim(-0.7, len(rows) - 0.3)
    how = "chosen on validation rows" if summary["about"].get("tuned") else "as given"
    figure.suptitle(f"settings {how}: how many splits took which", fontsize="medium")
    drawing.save(figure, path)
    return True


def _values(row: Row, name: str) -> list[float]:
    found = row["chosen"].get(name, [])
    return [value for value in found if isinstance(value, int | float)]


FIGURES = {
    "differences.png": differences, "recall.png": recall, "reliability.png": reliability,
    "chosen.png": chosen,
}  # fmt: skip


def draw(out: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Every figure in the folder; which were drawn."""
    return [out / name for name, plot in FIGURES.items() if plot(out / name, summary) is not False]
