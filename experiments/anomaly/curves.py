"""The curves of the anomaly runs: AUROC and average precisions over the label ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.reports import drawing

_METRICS = {
    "auroc": "AUROC (%)",
    "ap_anomaly": "average precision of anomalies (%)",
    "ap_normal": "average precision of normals (%)",
}


def draw(path: Path, summary: Sequence[Mapping[str, Any]], protocol: str) -> Figure:
    """A panel a metric, a line a method and rule, over the label ratio if it varies.

    Bars are the deviation over seeds of the mean over data sets (the ImbSAM paper's Fig. 5).

    Args:
      path: the PNG.
      summary: of `report.summarise`.
      protocol: whose groups are drawn.
    """
    rows = [row for row in summary if row["protocol"] == protocol]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    ratios = sorted({100 * row["label_ratio"] for row in rows})
    looks = drawing.styles(f"{method} {rule}" for method in methods for rule in rules)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, len(_METRICS))
    for axis, (metric, words) in zip(axes, _METRICS.items(), strict=True):
        for k, name in enumerate(looks):
            mine = [row for row in rows if f"{row['method']} {row['rule']}" == name]
            mine = sorted(mine, key=lambda row: row["label_ratio"])
            level = [np.nan if row[metric] is None else row[metric] for row in mine]
            spread = [row[f"{metric}_sd"] or 0 for row in mine]
            if len(ratios) > 1:
                beside = 1.03 ** (k - (len(looks) - 1) / 2)  # so that bars do not hide each other
                x = [100 * row["label_ratio"] * beside for row in mine]
                look = looks[name]
            else:
                x = [methods.index(row["method"]) + (k % len(rules) - (len(rules) - 1) / 2) * 0.2
                     for row in mine]  # fmt: skip
                look = {**looks[name], "linestyle": "none"}
            axis.errorbar(x, level, spread, capsize=3, label=name, **look)
        if len(ratios) > 1:
            axis.set_xscale("log")
            axis.set_xlim(ratios[0] / 1.3, ratios[-1] * 1.3)
            axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
            axis.minorticks_off()
            axis.set_xlabel("labelled part of the training anomalies (%)")
        else:
            axis.set_xlim(-0.6, len(methods) - 0.4)
            axis.set_xticks(range(len(methods)), methods)
            axis.set_xlabel(f"method; {ratios[0]:g}% of the training anomalies labelled")
        axis.set_ylabel(words)
        axis.grid(axis="y", linewidth=0.3)
    seeds, sets = rows[0]["seeds"], rows[0]["datasets"]
    over = f"mean over {sets} data set{'s' * (sets != 1)}"
    bars = f"; bars: standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    figure.suptitle(f"{rows[0]['protocol']} protocol, {over}{bars}", fontsize="medium")
    drawing.legend(figure, axes)
    return drawing.save(figure, path)
