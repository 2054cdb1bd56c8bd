"""Draws the plots of finished folders again, from their files: `python -m experiments.redraw DIR`.

Folders at any depth of training runs, of `digits_lt`, `sweep`, `anomaly`, `compare`, `study`,
`analyse` and `report --out`. Nothing is trained and no other file is changed, and nothing is drawn
in a folder that another process writes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from experiments.host import cli, folders, locks, outputs
from experiments.host.errors import UNFIT, RunError

# Kinds of folder that need no summary.json.
_ALONE = ("report", "study", "analysis", "gains")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Draw the plots of finished folders again, from the files in them.", {})
    parser.add_argument(
        "folders", nargs="+", type=cli.text, help="folders of results, at any depth"
    )
    return parser


def redraw(folder: Path) -> list[Path]:
    """The plots made of one folder; none where it holds nothing that is plotted."""
    summary = folder / "summary.json"
    for kind, named, draw in (
        ("report", folder / "report.json", _run),
        ("study", folder / "study.json", _study),
        ("analysis", folder / "analysis.json", _analysis),
        ("gains", folder / "gains.json", _gains),
        ("runs", folder / "runs.csv", _runs),
        ("sweep", folder / "sweep.csv", _sweep),
        ("digits", folder / "per_class.csv", _digits),
    ):
        if named.is_file() and (kind in _ALONE or summary.is_file()):
            _check_writable(folder)
            with locks.Lock(folder, so="wait for it"):
                return _read(folder, draw)
    return []


def _check_writable(folder: Path) -> None:
    """Before the lock, which would advise another --out: the folder is the one that is drawn."""
    if not locks.is_utf8(os.fspath(folder)):
        raise RunError(f"{os.fspath(folder)!r} is not UTF-8 text: rename it, or redraw a copy")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"{folder} may not be written: redraw a copy of it")


def _read(folder: Path, draw: Callable[[Path], list[Path]]) -> list[Path]:
    try:
        return draw(folder)
    except OSError as error:
        raise RunError(f"cannot read {error.filename}: {error.strerror}") from error
    except UNFIT as error:
        why = f"{type(error).__name__}: {error}"
        raise RunError(f"the files in {folder} do not fit together ({why}): no plot") from error


def _run(folder: Path) -> list[Path]:
    from experiments.reports import plots, reading

    report = reading.read_report(folder / "report.json")
    title = f"{report['rule']} on {report['dataset']}, {report['model']}"
    shots = report.get("thresholds") and (
        report["thresholds"]["many_above"],
        report["thresholds"]["few_below"],
    )
    table, metrics, made = folder / "per_class.csv", folder / folders.METRICS, []
    classes = reading.classes(table, report) if table.exists() else None
    lines = reading.epochs(metrics, report) if metrics.exists() else None
    if classes is not None:
        made.append(folder / "per_class.png")
        plots.per_class(made[-1], title, classes.counts, classes.correct, classes.tested, shots)
    if lines is not None:
        made.append(folder / "curves.png")
        plots.learning_curves(made[-1], title, lines, shots)
    return made


def _runs(folder: Path) -> list[Path]:
    """Of anomaly detection, or of a comparison."""
    found = outputs.read_object(folder / "summary.json")
    if "groups" in found:
        return _anomaly(folder)
    from experiments.reports import compare_page

    return compare_page.draw(folder)


def _study(folder: Path) -> list[Path]:
    from experiments.reports import study_figures

    return study_figures.draw(folder)


def _analysis(folder: Path) -> list[Path]:
    from experiments.analysis import figures

    return figures.draw(folder)


def _gains(folder: Path) -> list[Path]:
    from experiments.reports import writing

    return writing.draw_gains(folder)


def _anomaly(folder: Path) -> list[Path]:
    from experiments.anomaly import curves, report

    groups, made = report.read_groups(folder), []
    for protocol in dict.fromkeys(row["protocol"] for row in groups):
        made.append(folder / f"curves_{protocol}.png")
        curves.draw(made[-1], groups, protocol)
    return made


def _sweep(folder: Path) -> list[Path]:
    from experiments.bench.folder import draw_sweep

    return draw_sweep(folder, outputs.read_object(folder / "config.json")["rule"])


def _digits(folder: Path) -> list[Path]:
    from experiments.bench.folder import draw_table

    return draw_table(folder)


def main(args: argparse.Namespace) -> None:
    from experiments.reports.reading import folders_in

    made = []
    for path in map(Path, args.folders):
        if not path.is_dir():
            raise RunError(f"{path} is no folder: name folders of results")
        for folder in folders_in(path):
            made += redraw(folder)
    if not made:
        raise RunError(f"nothing to draw in {', '.join(args.folders)}: no finished run or table")
    print(*made, sep="\n")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
