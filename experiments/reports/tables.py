"""The table of finished runs on the terminal, and beside it what was published."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.host import cli
from experiments.reports import matching
from experiments.reports.figures import COLUMNS, number, plus_minus
from experiments.reports.grouping import Group, grouped
from experiments.reports.naming import (
    data,
    differs,
    method,
    protocol,
    seed_list,
    setting,
    source,
)

NOTE = (
    "last: the last epoch, no test-time augmentation. best*: what most papers report, the best "
    "epoch on the test set, flip-averaged; chosen on the test set, it is optimistic. Published "
    "figures compare with best*, never with last (but LIFT's, of CLIP: of the last epoch, or of "
    "crops, five of each test image averaged)."
)


def table(groups: list[Group]) -> Table:
    """A row a group, of two lines: last epoch, and what the papers report."""
    result = Table(title="accuracy (%), mean over classes", box=None, padding=(0, 1, 0, 0))
    result.add_column("run")
    gains = ("all", "few") if any(group.sgd for group in groups) else ()
    for name in ("", *COLUMNS, *(f"{split}-SGD" for split in gains), "ms/step", "FLOPs"):
        result.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        lines = [
            [
                kind + "*" * (kind == "best"),
                *(plus_minus(group.figure(kind, split)) for split in COLUMNS),
                *(plus_minus(group.gain(kind, split), "+") if group.sgd else "" for split in gains),
            ]
            for kind in group.kinds
        ]
        label = f"{group.number}. {method(group)}"
        if 1 < len(group.seeds) <= 5:
            label += f"\nall: {' '.join(number(report['all']) for report in group.reports)}"
        if group.sgd and len(group.pairs()) < len(group.seeds):
            label += f"\n{cli.noun(len(group.pairs()), 'seed')} in common with SGD"
        result.add_row(label, *map("\n".join, zip(*lines, strict=True)), *costs(group))
    return result


def costs(group: Group) -> list[str]:
    return [number(group.median("step_ms")), number(group.median("flops_ratio_to_sgd"), 2)]


def seeds_of(group: Group) -> str:
    return f"{'seed' if len(group.seeds) == 1 else 'seeds'} {seed_list(group)}"


def settings(groups: list[Group]) -> str:
    """A line for each setting of these groups, with their numbers."""
    numbers: dict[str, list[str]] = {}
    for group in groups:
        shown = f"{data(group)}, {setting(group)}, {seeds_of(group)}; protocol: {protocol(group)}"
        numbers.setdefault(shown, []).append(str(group.number))
    return "\n".join(f"{', '.join(each)}: {shown}" for shown, each in numbers.items())


def published_table(groups: list[Group]) -> Table:
    """The published results of the same data, rule, loss and second stage, beside each group."""
    result = Table(title="published, same data and method", box=None, padding=(0, 1, 0, 0))
    result.add_column("run")
    for name in COLUMNS:
        result.add_column(name, justify="right", no_wrap=True)
    for name in ("source", "protocol", "the run differs in"):
        result.add_column(name)
    for group in groups:
        for theirs in matching.beside(group.facts):
            figures = (number(getattr(theirs, split)) for split in COLUMNS)
            names = ", ".join(map(_short, differs(group, theirs)))
            result.add_row(
                f"{group.number}.", *figures, source(theirs), theirs.protocol, names or "-"
            )
    return result


def few_seeds(groups: list[Group]) -> str:
    """How much wider than a standard error the 95% t intervals of so few differences are."""
    wider = {2: "12.7", 3: "4.3", 4: "3.2"}  # quantiles of t with n - 1 degrees of freedom
    found = sorted({len(group.pairs()) for group in groups} & wider.keys())
    each = ", ".join(f"{wider[n]} of them for {n} seeds" for n in found)
    return f" (a 95% interval is {each}, to either side)" if each else ""


def _short(difference: str) -> str:
    """The name alone of "lr 0.1, not 0.01"."""
    both = ", not " in difference or ", theirs " in difference
    return difference.split()[0] if both else difference


def console() -> Console:
    width = None if Console().is_terminal else 100
    return Console(markup=False, highlight=False, width=width)


def show(reports: list[dict[str, Any]]) -> None:
    """Prints the table of these runs."""
    terminal, groups = console(), grouped(reports)
    terminal.print(table(groups))
    terminal.print(settings(groups))
    terminal.print(
        NOTE + " ± is the deviation over seeds; of a difference to SGD, paired by seed, the "
        "standard error" + few_seeds(groups) + ". FLOPs: a step's over SGD's.",
        style="dim",
    )
