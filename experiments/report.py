"""Finished runs beside published figures: `python -m experiments.report runs/* [--out DIR]`.

Runs that differ in nothing but the seed are one row: mean ± sample deviation over seeds, and the
difference to SGD in the same setting, paired by seed, mean ± standard error. With --out, Markdown,
CSV and the accuracy gain of each class over SGD (the ImbSAM paper's Fig. 2) are written.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from experiments.host import cli, locks
from experiments.host.needs import beside
from experiments.reports.grouping import grouped
from experiments.reports.reading import find, passed_over
from experiments.reports.tables import console, published_table, show
from experiments.reports.writing import gains, write

_SHOWN = 12  # paths that were passed over


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Group finished runs over seeds and set published figures beside them.",
        {"out": (), "overwrite": (beside("out"),)},
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=cli.text,
        help="run folders, folders with runs in them at any depth, or report files",
    )
    parser.add_argument(
        "--out", type=cli.text, help="folder for report.md, report.csv and gain_per_class.png"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    return parser


def main(args: argparse.Namespace) -> None:
    out = Path(args.out) if args.out else None
    if out:
        locks.refuse_to_fill(out, args.overwrite)
    reports = find(args.runs)
    groups = grouped(reports)
    panels, missing = gains(groups) if out else ([], [])
    with locks.Lock(out) if out else contextlib.nullcontext():
        show(reports)
        terminal = console()
        beside = published_table(groups)
        terminal.print(beside if beside.row_count else "No published figure of these settings.")
        passed = passed_over(args.runs)
        if passed:
            more = f" and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
            terminal.print(f"passed over, no finished run in: {', '.join(passed[:_SHOWN])}{more}")
        if out:
            write(out, groups, panels)
            terminal.print(f"report.md and report.csv are in {out}")
            plot = (out / "gain_per_class.png").exists()
            terminal.print(*(["gain_per_class.png too"] * plot), *missing, sep="\n")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
