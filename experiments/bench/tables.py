"""What lines of a table add up to over seeds, and the table on the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.bench.jobs import Line
from experiments.host import cli
from experiments.reports.figures import number

SPLITS = ("all", "many", "medium", "few")


def names(descriptions: list[dict[str, Any]]) -> list[str]:
    """What each line is called: its rule, its loss where there are several, its second stage.

    Tables of earlier versions may have a "memory", the decay of remembered directions.
    """
    several = len({line["loss"] for line in descriptions}) > 1
    return [
        rule_name(line)
        + (f" {line['loss']}" if several else "")
        + (f" > {line['stage2']}" if line["stage2"] else "")
        for line in descriptions
    ]


def rule_name(line: dict[str, Any]) -> str:
    """Its rule, with the decay of its memory where it has one."""
    memory = line.get("memory")
    return line["rule"] + (f" m{memory:g}" if memory is not None else "")


def is_base(line: dict[str, Any], descriptions: list[dict[str, Any]]) -> bool:
    """What differences are taken to: SGD with the first loss named, without a second stage."""
    return (line["rule"], line["loss"], line["stage2"]) == ("sgd", descriptions[0]["loss"], None)


def summarise(lines: list[Line], seeds: list[int]) -> list[dict[str, Any]]:
    """One object a line, as in summary.json; accuracies in percent, of the last epoch.

    Each split has its mean over seeds, "_sd" the sample deviation, "_by_seed" each; "paired_all"
    and "paired_few" are the mean difference to SGD of the same seed, "_se" its standard error.
    "epoch_seconds" is the median over calls, "step_cost_ratio" that of its ratio to SGD's. None
    where there is nothing to take it of.
    """
    described = [line.description for line in lines]
    sgd = next((line.curve for line in lines if is_base(line.description, described)), None)
    result = []
    nothing = dict.fromkeys(SPLITS, np.full(len(seeds), np.nan))
    for description, curve, diverged, _ in lines:
        last = nothing
        if curve is not None:
            last = {split: values[-1] for split, values in curve.splits.items()}
        found: dict[str, Any] = {**description, "seeds": seeds, "diverged": diverged}
        for split, values in last.items():
            found[split], found[f"{split}_sd"] = _mean(values), _deviation(values)
            found[f"{split}_by_seed"] = None if np.isnan(values).any() else values.tolist()
        for split in ("all", "few"):
            paired = None if sgd is None else last[split] - sgd.splits[split][-1]
            found[f"paired_{split}"] = _mean(paired)
            deviation = _deviation(paired)
            found[f"paired_{split}_se"] = (
                None if deviation is None else deviation / float(np.sqrt(len(seeds)))
            )
        found["epoch_seconds"] = None if curve is None else float(np.median(curve.seconds))
        found["step_cost_ratio"] = None
        if sgd is not None and curve is not None and description["stage2"] is None:
            found["step_cost_ratio"] = float(np.median(curve.seconds / sgd.seconds))
        result.append(found)
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


def show(summary: list[dict[str, Any]], what: str) -> None:
    """Prints the table, of this data; it fits in 80 columns."""
    table = Table(title=f"accuracy (%), {what}", box=None, padding=(0, 1, 0, 0))
    table.add_column("rule", no_wrap=True)
    for head in ("Many", "Medium", "Few", "All", "All-SGD", "Few-SGD", "cost"):
        table.add_column(head, justify="right", no_wrap=True)

    def pm(value: float | None, spread: float | None, sign: str = "") -> str:
        if value is None:
            return "-"
        return f"{value:{sign}.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    for name, line in zip(names(summary), summary, strict=True):
        splits = [pm(line[s], line[f"{s}_sd"]) for s in ("many", "medium", "few", "all")]
        paired = [
            "" if is_base(line, summary) else pm(line[f"paired_{s}"], line[f"paired_{s}_se"], "+")
            for s in ("all", "few")
        ]
        table.add_row(Text(name), *splits, *paired, number(line["step_cost_ratio"], 2))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    for name, line in zip(names(summary), summary, strict=True):
        if line["diverged"] is not None:
            console.print(f"{name} diverged: {line['diverged']}", style="bold", markup=False)
    console.print(
        f"{cli.noun(len(summary[0]['seeds']), 'seed')}, last epoch; mean ± standard deviation over "
        "seeds.\n"
        f"Differences to SGD with {summary[0]['loss']} are paired by seed, mean ± standard error.\n"
        "Cost: time of a step over SGD's, median of interleaved calls.",
        style="dim",
    )
