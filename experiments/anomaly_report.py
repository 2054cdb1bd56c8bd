"""What anomaly runs add up to: paired differences, the paper's table beside them, curves."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.anomaly_training import METHODS, RULES, Result
from experiments.cli import noun

COLUMNS = (
    "dataset", "method", "rule", "seed", "label_ratio", "protocol",
    "auroc", "ap_anomaly", "ap_normal", "seconds",
)  # fmt: skip
_SIDES = {"ap_anomaly": "anomalies", "ap_normal": "normal examples"}
METRICS = {"auroc": "AUROC", "ap_anomaly": "AP anomaly", "ap_normal": "AP normal"}

# Table 4 of the paper, AUROC in percent at 25% labels, and the names its families have in ADBench.
_FAMILIES = ("CIFAR10", "FashionMNIST", "MNIST-C", "MVTec-AD", "SVHN")
_PAPER = {
    ("devnet", "sgd"): (88.4, 96.4, 95.6, 95.6, 82.1, 91.6),
    ("devnet", "sam"): (88.2, 96.2, 95.3, 94.2, 81.0, 91.0),
    ("devnet", "imbsam"): (88.7, 96.7, 96.0, 96.2, 83.7, 92.2),
    ("deepsad", "sgd"): (86.5, 96.3, 96.4, 93.1, 80.9, 90.6),
    ("deepsad", "sam"): (86.9, 96.7, 96.1, 91.3, 81.0, 90.4),
    ("deepsad", "imbsam"): (87.9, 97.0, 96.2, 95.3, 82.4, 91.8),
}
PAPER_RATIO = 0.25


def summarise(results: Sequence[Result], rules: Sequence[str]) -> list[dict[str, Any]]:
    """One object for each protocol, label ratio, method and rule, all figures in percent.

    For each metric: the mean over data sets; its standard deviation over seeds (of the mean over
    data sets); the difference to sgd, paired by data set (each the mean over seeds), its standard
    error over data sets, and on how many it is positive. None where there is nothing to take it
    of; one diverged run leaves its means None too, and is counted.
    """
    datasets = list(dict.fromkeys(r.dataset for r in results))
    seeds = list(dict.fromkeys(r.seed for r in results))
    by_key = {(r.protocol, r.label_ratio, r.method, r.rule, r.dataset, r.seed): r for r in results}
    groups = dict.fromkeys((r.protocol, r.label_ratio, r.method) for r in results)
    summary = []
    for group in groups:
        values = {
            rule: {
                metric: np.array(
                    [[getattr(by_key[*group, rule, d, s], metric) for s in seeds] for d in datasets]
                )
                for metric in METRICS
            }
            for rule in rules
        }
        for rule in rules:
            row: dict[str, Any] = dict(
                zip(("protocol", "label_ratio", "method"), group, strict=True)
            )
            row |= {"rule": rule, "datasets": len(datasets), "seeds": len(seeds)}
            row["diverged"] = int(np.isnan(values[rule]["auroc"]).sum())
            for metric in METRICS:
                table = values[rule][metric]
                row[metric] = _mean(table)
                row[f"{metric}_sd"] = _deviation(table.mean(axis=0))
                if rule != "sgd" and "sgd" in values:
                    paired = (table - values["sgd"][metric]).mean(axis=1)
                    spread = _deviation(paired)
                    row[f"{metric}_minus_sgd"] = _mean(paired)
                    row[f"{metric}_minus_sgd_se"] = (
                        None if spread is None else spread / math.sqrt(len(datasets))
                    )
                    row[f"{metric}_improved"] = int((paired > 0).sum())
            summary.append(row)
    return summary


def _mean(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _deviation(values: NDArray[np.float64]) -> float | None:
    """Sample standard deviation; none for a single value."""
    return None if len(values) < 2 or np.isnan(values).any() else float(values.std(ddof=1))


def families(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Table 4 of the paper as quoted, and this run's mean AUROC of the same families at 25%."""
    rows = []
    for (method, rule), quoted in _PAPER.items():
        mine = [r for r in results if (r.method, r.rule) == (method, rule)]
        for protocol in list(dict.fromkeys(r.protocol for r in mine)) or ["-"]:
            at = [r for r in mine if r.protocol == protocol]
            # The full protocol has one label ratio, 1, and stands beside the paper's too.
            at = [r for r in at if r.label_ratio == PAPER_RATIO or protocol == "full"]
            row: dict[str, Any] = {"method": method, "rule": rule, "protocol": protocol}
            for family, figure in zip(_FAMILIES, quoted, strict=False):
                here = [r for r in at if r.dataset.startswith(family)]
                row[family] = {
                    "paper": figure,
                    "here": _mean(np.array([r.auroc for r in here])) if here else None,
                    "subsets": len({r.dataset for r in here}),
                }
            row["average"] = {"paper": quoted[-1]}
            rows.append(row)
    return rows


def _figure(value: float | None, spread: float | None = None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def show(summary: Sequence[dict[str, Any]], quoted: Sequence[dict[str, Any]], title: str) -> None:
    """Prints both tables; they fit in 80 columns."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=80)
    console.print(_figures(summary, title))
    console.print(
        "Percent, last epoch: mean over data sets ± standard deviation of that mean over seeds. "
        "Differences are paired by data set and seed: mean over data sets ± standard error, and "
        "on how many data sets the difference is above zero.",
        style="dim",
    )
    for row in (row for row in summary if row["diverged"]):
        console.print(
            f"{row['method']} under {row['rule']} ({row['protocol']}, {row['label_ratio']:g}): "
            f"{row['diverged']} of {noun(row['datasets'] * row['seeds'], 'run')} diverged (scores "
            "that are not finite); lower --lr",
            style="bold",
        )
    console.print()
    console.print(_beside_the_paper(quoted))
    console.print(
        "In brackets: subsets trained here. The paper's levels do not come out of ADBench's own "
        "code and protocol either; they are quoted, not a target.",
        style="dim",
    )


def _figures(summary: Sequence[dict[str, Any]], title: str) -> Any:
    """A row a method and rule, and below it what it differs in from SGD."""
    from rich.table import Table as Grid

    grid = Grid(title=title, box=None, padding=(0, 2, 0, 0))
    grid.add_column("")
    for name in METRICS.values():
        grid.add_column(name, justify="right")
    before = None
    for row in summary:
        group = (row["protocol"], row["label_ratio"])
        if group != before:
            grid.add_row()
            grid.add_row(f"{group[0]}, {100 * group[1]:g}%", style="bold")
            before = group
        named = f"{row['method']} {row['rule']}"
        grid.add_row(named, *(_figure(row[m], row[f"{m}_sd"]) for m in METRICS))
        differences = [row.get(f"{m}_minus_sgd") for m in METRICS]
        if any(difference is not None for difference in differences):
            cells = [
                "-" if difference is None
                else f"{_figure(difference, row[f'{m}_minus_sgd_se'], '+')} "
                f"{row[f'{m}_improved']}/{row['datasets']}"
                for m, difference in zip(METRICS, differences, strict=True)
            ]  # fmt: skip
            grid.add_row("  minus SGD", *cells)
    return grid


def _beside_the_paper(quoted: Sequence[dict[str, Any]]) -> Any:
    """A row a method and rule of the paper's table, and below it those trained here."""
    from rich.table import Table as Grid

    title = "Table 4 of the paper (AUROC %, 25% labels), as quoted, and subsets here"
    grid = Grid(title=title, box=None, padding=(0, 1, 0, 0))
    grid.add_column("")
    for name in (*_FAMILIES, "average"):
        grid.add_column(name.replace("MNIST", "\nMNIST").strip(), justify="right")
    shown = None
    for row in quoted:
        named = f"{row['method']} {row['rule']}"
        if named != shown:
            paper = [*(row[family]["paper"] for family in _FAMILIES), row["average"]["paper"]]
            grid.add_row(named, *(f"{figure:.1f}" for figure in paper))
            shown = named
        cells = [row[family] for family in _FAMILIES]
        if any(cell["subsets"] for cell in cells):
            here = (f"{_figure(c['here'])} ({c['subsets']})" if c["subsets"] else "" for c in cells)
            grid.add_row(f"  {row['protocol']}", *here, style="bold")
    return grid


def draw_curves(path: Path, summary: Sequence[dict[str, Any]], protocol: str) -> None:
    """Average precision of anomalies and of normals over the label ratio (the paper's Fig. 5)."""
    from matplotlib.figure import Figure

    rows = [row for row in summary if row["protocol"] == protocol]
    colours = dict(zip(RULES, ("#7f7f7f", "#1f77b4", "#d62728"), strict=True))
    styles = dict(zip(METHODS, (("--", "s"), ("-", "o")), strict=True))
    lines = list(dict.fromkeys((row["method"], row["rule"]) for row in rows))
    ratios = sorted({100 * row["label_ratio"] for row in rows})
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("ap_anomaly", "ap_normal"), strict=True):
        axis.set_xscale("log")
        for k, (method, rule) in enumerate(lines):
            mine = [row for row in rows if (row["method"], row["rule"]) == (method, rule)]
            mine = sorted(mine, key=lambda row: row["label_ratio"])
            line, marker = styles[method]
            beside = 1.03 ** (k - (len(lines) - 1) / 2)  # so that bars do not hide each other
            axis.errorbar(
                [100 * row["label_ratio"] * beside for row in mine],
                [math.nan if row[metric] is None else row[metric] for row in mine],
                yerr=[row[f"{metric}_sd"] or 0 for row in mine],
                linestyle=line, marker=marker, markersize=4, capsize=2, linewidth=1,
                color=colours[rule], label=f"{method} {rule}",
            )  # fmt: skip
        axis.set_xlim(ratios[0] / 1.3, ratios[-1] * 1.3)
        axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axis.minorticks_off()
        axis.set_xlabel("labelled part of the training anomalies (%)")
        axis.set_ylabel(f"average precision of {_SIDES[metric]} (%)")
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"{protocol} protocol, mean over {rows[0]['datasets']} data sets; bars: standard deviation "
        f"over {rows[0]['seeds']} seeds",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def write_runs(path: Path, results: Sequence[Result]) -> None:
    """A row a run, under COLUMNS."""
    from experiments import folders

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in results:
        figures = [f"{getattr(r, name):.4f}" for name in COLUMNS[6:]]
        writer.writerow(
            [r.dataset, r.method, r.rule, r.seed, f"{r.label_ratio:g}", r.protocol, *figures]
        )
    folders.replace_text(path, text.getvalue())
