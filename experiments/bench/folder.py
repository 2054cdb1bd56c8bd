"""What the bench writes of its tables and sweeps, and the plots that are drawn of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.jobs import Line
from experiments.bench.tables import SPLITS, is_base, names
from experiments.host import folders

# A class of the digits is Many above the first, Few below the second.
SHOTS = (40, 9)


def write(
    out: Path, rows: list[Row], summary: list[dict[str, Any]], counts: np.ndarray,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    from experiments.host import folders

    make_folder(out, args)
    named = names([row.description for row in rows])
    curves = {
        name: row.curve for name, row in zip(named, rows, strict=True) if row.curve is not None
    }
    with open(out / "per_class.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "class", "train_examples", "accuracy"])
        for name, curve in curves.items():
            accuracy = 100 * (curve.correct / curve.total).mean(axis=0)
            for c, n in enumerate(counts):
                writer.writerow([name, c, int(n), f"{accuracy[c]:.4f}"])
    write_curves(out / "curves.csv", curves)
    folders.write_json(out / "summary.json", summary)
    redraw(out)


def write_curves(path: Path, curves: dict[str, Any]) -> None:
    """Test accuracies by epoch, means over seeds, of each row of the table."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "epoch", *SPLITS])
        for name, curve in curves.items():
            means = [curve.splits[split].mean(axis=1) for split in SPLITS]
            for epoch, *values in zip(curve.epochs, *means, strict=True):
                writer.writerow([name, epoch, *(f"{value:.4f}" for value in values)])


def redraw(out: Path) -> list[Path]:
    """The plots of a folder from its files; which were made."""
    from experiments.reports import plots

    summary = json.loads((out / "summary.json").read_text())
    named = dict(zip(names(summary), summary, strict=True))
    rows = {name: (_panel(row), _line(row)) for name, row in named.items()}
    one = len({panel for panel, _ in rows.values()}) == 1
    seeds, made = len(summary[0]["seeds"]), []

    def panels(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, (panel, line) in rows.items():
            if name in values:
                found.setdefault("" if one else panel, {})[line] = values[name]
        return found

    classes = _by_rule(out / "per_class.csv")
    counts = [int(row["train_examples"]) for row in next(iter(classes.values()))]
    by_class = {n: [float(row["accuracy"]) for row in of] for n, of in classes.items()}
    made.append(out / "per_class.png")
    plots.classes_by_rule(made[-1], counts, panels(by_class), SHOTS, seeds)
    if (out / "curves.csv").exists():
        by_epoch = {
            name: (
                [int(row["epoch"]) for row in of],
                {split: [float(row[split]) for row in of] for split in ("all", "few")},
            )
            for name, of in _by_rule(out / "curves.csv").items()
        }
        made.append(out / "curves.png")
        plots.curves_by_rule(made[-1], panels(by_epoch), seeds)
    against = [row for row in summary if is_base(row, summary)]
    if against and len(summary) > 1:
        gains = {
            split: {
                name: (row[f"paired_{split}"], row[f"paired_{split}_se"])
                for name, row in named.items()
                if not is_base(row, summary)
            }
            for split in ("all", "few")
        }
        made.append(out / "gains.png")
        plots.gains_by_rule(made[-1], gains, f"SGD's with {summary[0]['loss']}", seeds)
    return made


def _by_rule(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["rule"], []).append(row)
    return found


def _panel(row: dict[str, Any]) -> str:
    """What its plots share with others: the loss, and a second stage."""
    return row["loss"] + (f", then {row['stage2']}" if row["stage2"] else "")


def _line(row: dict[str, Any]) -> str:
    memory = row.get("memory")
    return row["rule"] + (f" m{memory:g}" if memory is not None else "")


def write(
    out: Path, summary: list[dict[str, Any]], grid: dict[str, list[float]], args: argparse.Namespace
) -> None:
    from experiments.host import folders

    make_folder(out, args)
    folders.write_json(out / "summary.json", summary)
    folders.replace_text(out / "table.md", f"{table(summary, grid)}\n\n{verdict(summary)}\n")
    figures = [key for key, value in summary[0].items() if not isinstance(value, dict | list)]
    with open(out / "sweep.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", *grid, *figures])
        for row in summary:
            point = [row["point"].get(name, "") for name in grid]
            rule = args.rule if row["point"] else "sgd"
            writer.writerow([rule, *point, *(row[key] for key in figures)])
    draw(out / "sweep.png", summary, args.rule)


def draw(path: Path, summary: list[dict[str, Any]], rule: str) -> None:
    """The figure, from the objects of summary.json."""
    from experiments.reports import plots

    *others, last = summary[-1]["point"]
    lines: dict[str, Any] = {}
    for row in summary[1:]:
        name = ", ".join(f"{key} {row['point'][key]:g}" for key in others) or rule
        line = lines.setdefault(name, {"x": [], "chosen": None, "mean": {}, "se": {}})
        if row["best_val"]:
            line["chosen"] = len(line["x"])
        line["x"].append(row["point"][last])
        for split in SPLITS:
            for key, figure in (("mean", f"test_{split}"), ("se", f"test_{split}_sgd_se")):
                value = np.nan if row[figure] is None else row[figure]
                line[key].setdefault(split, []).append(value)
    levels = {
        s: np.nan if summary[0][f"test_{s}"] is None else summary[0][f"test_{s}"] for s in SPLITS
    }
    plots.sweep(path, last, lines, levels, sgd_chosen=summary[0]["best_val"])
