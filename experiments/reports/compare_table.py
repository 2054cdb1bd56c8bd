"""The table of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.host.cli import noun
from experiments.reports.compare_folder import of_intervals
from experiments.reports.figures import number, p_value


def show(summary: Mapping[str, Any]) -> None:
    """Prints every row, references last, and the verdict; it fits in 100 columns."""
    data, splits = summary["data"], summary["splits"]["count"]
    factor = data["train_imbalance_factor"]
    table = Table(
        title=Text(
            f"{data['name']}: {data['rows']} rows, {data['classes']} classes, imbalance factor "
            f"{factor:.3g} in training",
            style="table.title",
        ),
        box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("row", no_wrap=True)
    for head in ("bal. acc.", "- SGD", "95% interval", "p", "AUROC", "avg. prec.", "log-loss"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in sorted(summary["rows"], key=lambda row: bool(row["reference"])):
        mean, low, high = row.get("difference", {}).get("balanced_accuracy", (None,) * 3)
        table.add_row(
            Text(row["row"]), number(row["balanced_accuracy"], 1),
            "" if mean is None else f"{mean:+.1f}",
            "" if low is None else f"{low:+.1f} to {high:+.1f}",
            "" if row.get("p_holm") is None else p_value(row["p_holm"]),
            number(row["auroc"], 3), number(row["average_precision"], 3),
            number(row["log_loss"], 3),
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    console.print(
        f"{noun(splits, 'split')}; differences to SGD with cross-entropy in points of balanced "
        "accuracy, paired by split;\n"
        "p by Holm over the methods, of which reference lines are none.\n" + of_intervals(summary),
        style="dim",
    )
    console.print(summary["verdict"], markup=False)
