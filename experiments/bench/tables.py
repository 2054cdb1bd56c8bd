"""What lines of a table add up to over seeds, and the table on the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.bench.jobs import Line
from experiments.host import cli
from experiments.reports.figures import number

SPLITS = ("all", "many", "medium", "few")


def names(descriptions: list[dict[str, Any]]) -> list[str]:
    """Each row's rule, the decay of its memory, its loss where there are several, its stage 2."""
    several = len({row["loss"] for row in descriptions}) > 1
    return [
        row["rule"]
        + (f" m{row['memory']:g}" if row.get("memory") is not None else "")
        + (f" {row['loss']}" if several else "")
        + (f" > {row['stage2']}" if row["stage2"] else "")
        for row in descriptions
    ]


def is_base(row: dict[str, Any], descriptions: list[dict[str, Any]]) -> bool:
    """What differences are taken to: SGD with the first loss named, without a second stage."""
    return (row["rule"], row["loss"], row["stage2"]) == ("sgd", descriptions[0]["loss"], None)


def summarise(rows: list[Row], seeds: list[int]) -> list[dict[str, Any]]:
    """One object a row; figures are of the last epoch, means over seeds, in percent."""
    described = [row.description for row in rows]
    sgd = next((row.curve for row in rows if is_base(row.description, described)), None)
    result = []
    nothing = dict.fromkeys(("all", "many", "medium", "few"), np.full(len(seeds), np.nan))
    for description, curve, diverged in rows:
        last = nothing
        if curve is not None:
            last = {split: values[-1] for split, values in curve.splits.items()}
        row: dict[str, Any] = {**description, "seeds": seeds, "diverged": diverged}
        for split, values in last.items():
            row[split], row[f"{split}_sd"] = _mean(values), _deviation(values)
            row[f"{split}_by_seed"] = None if np.isnan(values).any() else values.tolist()
        for split in ("all", "few"):
            paired = None if sgd is None else last[split] - sgd.splits[split][-1]
            row[f"paired_{split}"] = _mean(paired)
            deviation = _deviation(paired)
            row[f"paired_{split}_se"] = (
                None if deviation is None else deviation / float(np.sqrt(len(seeds)))
            )
        row["epoch_seconds"] = None if curve is None else float(np.median(curve.seconds))
        row["step_cost_ratio"] = None
        if sgd is not None and curve is not None and description["stage2"] is None:
            row["step_cost_ratio"] = float(np.median(curve.seconds / sgd.seconds))
        result.append(row)
    return result


def _mean(values: np.ndarray | None) -> float | None:
    if values is None or np.isnan(values).any():
        return None
    return float(np.mean(values, dtype=np.float64))


def _deviation(values: np.ndarray | None) -> float | None:
    """Sample standard deviation over seeds; none for a single seed."""
    if values is None or len(values) < 2 or np.isnan(values).any():
        return None
    return float(np.std(values, ddof=1, dtype=np.float64))


def show(summary: list[dict[str, Any]], args: argparse.Namespace) -> None:
    title = f"accuracy (%), long-tailed digits, imbalance factor {args.imbalance_factor:g}"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))  # fits in 80 columns
    table.add_column("rule", no_wrap=True)
    for name in ("Many", "Medium", "Few", "All", "All-SGD", "Few-SGD", "cost"):
        table.add_column(name, justify="right", no_wrap=True)

    def pm(value: float | None, spread: float | None, sign: str = "") -> str:
        if value is None:
            return "-"
        return f"{value:{sign}.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    for name, row in zip(names(summary), summary, strict=True):
        splits = [pm(row[s], row[f"{s}_sd"]) for s in ("many", "medium", "few", "all")]
        paired = [
            "" if is_base(row, summary) else pm(row[f"paired_{s}"], row[f"paired_{s}_se"], "+")
            for s in ("all", "few")
        ]
        table.add_row(name, *splits, *paired, number(row["step_cost_ratio"], 2))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    for name, row in zip(names(summary), summary, strict=True):
        if row["diverged"] is not None:
            console.print(f"{name} diverged: {row['diverged']}", style="bold", markup=False)
    console.print(
        f"{cli.noun(len(summary[0]['seeds']), 'seed')}, last epoch; mean ± standard deviation over "
        "seeds.\n"
        f"Differences to SGD with {summary[0]['loss']} are paired by seed, mean ± standard error.\n"
        "Cost: time of a step over SGD's, median of interleaved calls.",
        style="dim",
    )
