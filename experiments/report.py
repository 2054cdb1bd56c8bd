"""Tables of finished runs: `python -m experiments.report runs/*`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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
    result = Table(title="accuracy (%), mean over classes")
    result.add_column("run")
    for name in ("many", "medium", "few", "all"):
        result.add_column(name, justify="right")
    result.add_column("best epoch + flip: all", justify="right")
    result.add_column("ms/step", justify="right")
    result.add_column("FLOPs / SGD", justify="right")
    for r in reports:
        arguments = " ".join(f"{k}={v:g}" for k, v in r["rule_args"].items())
        what = f"{r['rule']} {arguments}".strip()
        result.add_row(
            f"{what}\n{r['dataset']} IF {r['imbalance_factor']:g}, {r['model']}, {r['epochs']} epochs, "
            f"batch {r['batch_size']}, seed {r['seed']}",
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
        "Accuracies are of the last epoch, without test-time augmentation. The best epoch is chosen "
        "on the test set, as the papers do: it is no estimate of anything.",
        style="dim",
    )


def main(args: argparse.Namespace) -> None:
    show(find(args.runs))


if __name__ == "__main__":
    flags = cli.parser(__doc__ or "")
    flags.add_argument("runs", nargs="+", help="run folders, or report.json files")
    cli.run(main, flags.parse_args())
