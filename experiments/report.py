"""Tables of finished runs: `python -m experiments.report runs/*`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.errors import RunError

COLUMNS = ("many", "medium", "few", "all")


def number(value: float | None, digits: int = 1) -> str:
    """'-' for a figure that does not exist, never 0."""
    return "-" if value is None else f"{value:.{digits}f}"


def find(paths: list[str]) -> list[dict[str, Any]]:
    """The reports in these run folders, seed folders within them, or report files."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
        elif (path / "report.json").exists():
            files.append(path / "report.json")
        else:
            files += sorted(path.glob("*/report.json")) + sorted(path.glob("*.json"))
    reports = []
    for file in files:
        try:
            value = json.loads(file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(f"cannot read {file}: {error}") from error
        if isinstance(value, dict) and "rule" in value:
            reports.append({**value, "path": str(file)})
    if not reports:
        raise RunError(f"no finished run (report.json) in {', '.join(paths)}")
    return reports


def table(reports: list[dict[str, Any]]) -> Table:
    """A row a run: last-epoch figures, and the papers' best test epoch with flips beside them."""
    result = Table(title="accuracy (%), mean over classes", box=box.SIMPLE_HEAD, padding=(0, 1))
    result.add_column("run")
    for name in ("many", "medium", "few", "all"):
        result.add_column(name, justify="right")
    for name in ("best*", "ms/step", "FLOPs"):
        result.add_column(name, justify="right")
    for r in reports:
        arguments = " ".join(f"{name} {value:g}" for name, value in r["rule_args"].items())
        data = f"{r['dataset']} IF {r['imbalance_factor']:g}, {r['model']}"
        result.add_row(
            f"{r['rule']} {arguments}\n{data}\n{r['epochs']} epochs, seed {r['seed']}",
            *(number(r[name]) for name in COLUMNS),
            number(r["best_epoch_flip"].get("all")),
            number(r["step_ms"]),
            number(r["flops_ratio_to_sgd"], 2),
        )
    return result


def show(reports: list[dict[str, Any]]) -> None:
    console = Console()
    console.print(table(reports))
    console.print(
        "Last epoch, no test-time augmentation. FLOPs: a step's over SGD's.\n"
        "* what the papers report: the best epoch on the test set, flip-averaged.",
        style="dim",
    )


def main(args: argparse.Namespace) -> None:
    show(find(args.runs))


if __name__ == "__main__":
    flags = cli.parser(__doc__ or "")
    flags.add_argument("runs", nargs="+", help="run folders, or report.json files")
    cli.run(main, flags.parse_args())
