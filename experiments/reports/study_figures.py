"""The figures of a study, drawn from its study.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.reports import drawing, study_folder
from experiments.reports.compare_folder import BASELINE
from experiments.reports.study_tables import added

Study = Mapping[str, Any]
_RANKED = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
_GAINS = (("balanced_accuracy", "points"), ("auroc", "0 to 1"))
PLOTS = (*(f"ranks_{name}" for name in _RANKED), *(f"gain_{name}" for name, _ in _GAINS), "forest")
_MOST_PANELS = 6


def draw(out: Path) -> list[Path]:
    """Every figure of the study in a folder; which were drawn."""
    study = study_folder.read(out)
    made = []
    for metric in _RANKED:
        found = study["ranks"][metric]
        if found is not None and len(found["rank"]) > 2:
            made.append(out / f"ranks_{metric}.png")
            ranks(made[-1], found, _RANKED[metric])
    found = panels(study)
    if found:
        for metric, unit in _GAINS:
            made.append(out / f"gain_{metric}.png")
            gains(made[-1], study, found, metric, unit)
        made.append(out / "forest.png")
        forest(made[-1], study, found)
    return made


def panels(study: Study) -> list[Mapping[str, Any]]:
    """Logit adjustment over the baseline, then what ImbSAM and SAM add to SGD with each loss."""
    rules = {row["row"]: row for row in study["rows"]}
    first = [
        each
        for each in study["contrasts"]
        if each["against"] == BASELINE
        and rules[each["row"]]["rule"] == "sgd"
        and rules[each["row"]]["loss"] == "logit_adjusted"
        and rules[each["row"]]["sampling"] == rules[BASELINE]["sampling"]
    ]
    order = {"imbsam": 0, "sam": 1}
    rest = sorted(added(study), key=lambda each: order.get(rules[each["row"]]["rule"], 2))
    return [*first, *rest]


def _of_all(found: Sequence[Any]) -> str:
    """How many comparisons are drawn, where not all are."""
    if len(found) <= _MOST_PANELS:
        return ""
    return f"; {_MOST_PANELS} of {len(found)} comparisons, the others are in tables.md"


def ranks(path: Path, found: Mapping[str, Any], name: str) -> None:
    """Demsar's diagram: average ranks, and bars over those that are not told apart."""
    import scikit_posthocs

    rank = pd.Series(found["rank"])
    near = (rank.to_numpy()[:, None] - rank.to_numpy()).__abs__() <= found["cd"]
    figure = Figure(figsize=(10, 1.8 + 0.26 * len(rank)), layout="constrained")
    axis = figure.subplots()
    scikit_posthocs.critical_difference_diagram(
        rank, pd.DataFrame(near.astype(float), rank.index, rank.index), ax=axis,
        label_fmt_left="{label}  {rank:.2f}",
        label_fmt_right="{rank:.2f}  {label}", label_props={"fontsize": "small", "va": "center"},
        text_h_margin=0.2,
        crossbar_props={"color": "black", "linewidth": 4, "marker": None},
        marker_props={"marker": "o", "s": 18, "color": "black"},
        elbow_props={"color": "black", "linewidth": 0.7},
    )  # fmt: skip
    p = "" if found["p"] is None else f"; Friedman's p {found['p']:.2g}"
    axis.set_title(
        f"average rank by {name} over {found['sets']} sets, 1 the best; bars join what is within "
        f"the critical difference, {found['cd']:.2f}{p}",
        fontsize="small",
    )
    drawing.save(figure, path)


def gains(
    path: Path, study: Study, found: Sequence[Mapping[str, Any]], metric: str, unit: str
) -> None:
    """The gain of each set by its imbalance factor, a panel for each of the first comparisons."""
    shown = found[:_MOST_PANELS]
    columns = len(shown) if len(shown) < 4 else -(-len(shown) // 2)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    factor = np.array([one["imbalance_factor"] for one in study["sets"]])
    for axis, each in zip(axes, shown, strict=False):
        for k, (mean, low, high) in enumerate(each["metrics"][metric]["by_set"]):
            if mean is None:
                continue
            two = study["sets"][k]["classes"] == 2
            if low is not None:
                axis.plot([factor[k]] * 2, [low, high], color="grey", linewidth=0.9)
            axis.plot(factor[k], mean, "s" if two else "o", color="black", markersize=4.5,
                      markerfacecolor="white" if two else "black")  # fmt: skip
            if low is not None and (low > 0 or high < 0):
                axis.annotate(study["sets"][k]["name"], (factor[k], mean), xytext=(4, 2),
                              textcoords="offset points", fontsize="xx-small")  # fmt: skip
        axis.axhline(0, color="black", linewidth=0.7)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(f"{each['row']}\n− {each['against']}", fontsize="small")
        axis.grid(linewidth=0.3)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.supxlabel("imbalance factor of the training rows, largest over smallest class "
                     "(filled: several classes, open: two; named: 0 outside the interval)"
                     + _of_all(found), fontsize="small")  # fmt: skip
    figure.supylabel(f"gain in {_RANKED[metric]} ({unit})", fontsize="small")
    drawing.save(figure, path)


def forest(path: Path, study: Study, found: Sequence[Mapping[str, Any]]) -> None:
    """A line for each set, a column for each of the first comparisons, and their mean below."""
    shown = found[:_MOST_PANELS]
    order = sorted(range(len(study["sets"])), key=lambda k: -study["sets"][k]["imbalance_factor"])
    size = (3.2 + 2.6 * len(shown), 1.6 + 0.21 * len(order))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, each in zip(axes, shown, strict=True):
        gain = each["metrics"]["balanced_accuracy"]
        for at, k in enumerate(order, start=1):
            mean, low, high = gain["by_set"][k]
            if mean is None:
                continue
            if low is not None:
                axis.plot([low, high], [at, at], color="black", linewidth=1)
            sure = low is not None and (low > 0 or high < 0)
            axis.plot(mean, at, "o", color="black", markersize=4,
                      markerfacecolor="black" if sure else "white")  # fmt: skip
        if gain["gain"] is not None:
            se = gain["se"] or 0.0
            axis.plot([gain["gain"] - 2 * se, gain["gain"] + 2 * se], [0, 0], color="black",
                      linewidth=3, solid_capstyle="butt")  # fmt: skip
            axis.plot(gain["gain"], 0, "D", color="white", markeredgecolor="black")
        axis.axvline(0, color="black", linewidth=0.7)
        axis.set_title(f"{each['row']}\n− {each['against']}", fontsize="x-small")
        axis.grid(axis="x", linewidth=0.3)
        _robust_limits(axis, gain["by_set"])
    names = [
        f"{study['sets'][k]['name']} ({study['sets'][k]['classes']} classes, "
        f"{study['sets'][k]['imbalance_factor']:.3g})"
        for k in order
    ]
    axes[0].set_yticks(
        range(len(order) + 1), ["mean of the sets ± 2 se", *names], fontsize="x-small"
    )
    axes[0].set_ylim(-0.8, len(order) + 0.8)
    figure.supxlabel("gain in balanced accuracy (points), 95% intervals (filled: 0 outside); sets "
                     "with their classes and imbalance factor" + _of_all(found),
                     fontsize="small")  # fmt: skip
    drawing.save(figure, path)


def _robust_limits(axis: Any, found: Sequence[Sequence[float | None]]) -> None:
    """Of few tested rows an interval may be as wide as the scale: it is cut, not the others."""
    ends = [abs(value) for _, *both in found for value in both if value is not None]
    means = [abs(mean) for mean, _, _ in found if mean is not None]
    if ends and means:
        limit = max(1.25 * max(means), float(np.quantile(ends, 0.9)))
        limit = limit if math.isfinite(limit) and limit > 0 else 1.0
        axis.set_xlim(-limit, limit)
