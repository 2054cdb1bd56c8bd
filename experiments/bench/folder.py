"""What the bench writes of its tables and sweeps, and the plots that are drawn of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench import grid as grids
from experiments.bench import written
from experiments.bench.jobs import Line
from experiments.bench.tables import SPLITS, is_base, names, rule_name
from experiments.host import outputs, sealed
from experiments.host.errors import RunError

# A class of the digits is Many above the first, Few below the second.
SHOTS = (40, 9)


def write_table(
    out: Path, lines: list[Line], summary: list[dict[str, Any]], counts: np.ndarray
) -> None:
    """Writes per_class.csv, curves.csv and then summary.json, and draws them.

    Args:
      summary: of these lines, as `tables.summarise` makes it.
      counts: int[C], training examples of each class.
    """
    named = names([line.description for line in lines])
    curves = {
        name: line.curve for name, line in zip(named, lines, strict=True) if line.curve is not None
    }
    classes = [
        [name, c, int(n), *_over_seeds(of_seeds)]
        for name, curve in curves.items()
        for c, (n, of_seeds) in enumerate(
            zip(counts, 100 * (curve.correct / curve.total).T, strict=True)
        )
    ]
    heads = ["rule", "class", "train_examples", "accuracy", "accuracy_se"]
    outputs.replace_text(out / written.PER_CLASS, written.as_csv([heads, *classes]))
    epochs = [
        [name, epoch, *(cell for split in SPLITS for cell in _over_seeds(curve.splits[split][k]))]
        for name, curve in curves.items()
        for k, epoch in enumerate(curve.epochs)
    ]
    heads = ["rule", "epoch", *(head for split in SPLITS for head in (split, f"{split}_se"))]
    outputs.replace_text(out / written.CURVES, written.as_csv([heads, *epochs]))
    outputs.write_json(out / written.SUMMARY, summary)
    draw_table(out)


PARAMS = "params"
_KEPT_AGAIN = "train again with --save"


def write_params(
    out: Path, lines: list[Line], *, seeds: list[int], datasets: Sequence[Any],
    config: dict[str, Any],
) -> None:  # fmt: skip
    """Writes params/K.npz, what line K of summary.json ended with: [S, ...] by names with /.

    Args:
      datasets: one a seed.
      config: of config.json, what decides the networks.
    """
    from flax.traverse_util import flatten_dict

    about = {"config": config, "sha256": rows_sha256(datasets)}
    (out / PARAMS).mkdir(exist_ok=True)
    for number, line in enumerate(lines):
        if line.params is None:
            continue
        flat = jax.device_get(flatten_dict(line.params, sep="/"))
        told = {**about, "line": {**line.description, "seeds": seeds}}
        sealed.write(out / PARAMS / f"{number}.npz", flat, told)


def read_params(
    out: Path, summary: list[dict[str, Any]], config: dict[str, Any]
) -> tuple[dict[int, Any], str]:
    """(what `write_params` wrote, as trees by line, `rows_sha256` of what it was trained on).

    Raises:
      RunError: a file is damaged or missing, or of another line or setting than the folder tells.
    """
    from flax.traverse_util import unflatten_dict

    wanted = [k for k, line in enumerate(summary) if line["diverged"] is None]
    there = {path.name for path in (out / PARAMS).glob("*.npz")}
    odd = there ^ {f"{number}.npz" for number in wanted}
    if odd or not wanted:
        raise RunError(
            f"{out / PARAMS} has not one file for each line of summary.json that was trained to "
            f"its end ({', '.join(sorted(odd)) or 'there is none'}): {_KEPT_AGAIN}"
        )
    found, digests = {}, set()
    for number in wanted:
        path = out / PARAMS / f"{number}.npz"
        about, flat = sealed.read(path, _KEPT_AGAIN)
        line = f"line {number} of summary.json"
        sealed.refuse_others(path, about["line"], summary[number], line, _KEPT_AGAIN)
        sealed.refuse_others(path, about["config"], config, "config.json", _KEPT_AGAIN)
        found[number] = unflatten_dict(flat, sep="/")
        digests.add(about["sha256"])
    if len(digests) > 1:
        raise RunError(f"the files of {out / PARAMS} are of different data: {_KEPT_AGAIN}")
    return found, digests.pop()


def rows_sha256(datasets: Sequence[Any]) -> str:
    """Of the rows that were trained and tested on, one data set a seed."""
    fields = ("train_images", "train_labels", "test_images", "test_labels")
    return sealed.digest(getattr(dataset, name) for dataset in datasets for name in fields)


def _over_seeds(values: np.ndarray) -> list[str]:
    """The mean and its standard error, which one seed has not."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return [f"{values.mean():.4f}", "" if error is None else f"{error:.4f}"]


def draw_table(out: Path) -> list[Path]:
    """The plots of a table's folder, of the files in it; which were made."""
    from experiments.reports import plots

    summary, classes, curves = written.table(out)
    named = dict(zip(names(summary), summary, strict=True))
    places = {name: (_panel(line), rule_name(line)) for name, line in named.items()}
    one = len({panel for panel, _ in places.values()}) == 1
    seeds, made = len(summary[0]["seeds"]), []

    def panels(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, (panel, rule) in places.items():
            if name in values:
                found.setdefault("" if one else panel, {})[rule] = values[name]
        return found

    counts = [int(record["train_examples"]) for record in next(iter(classes.values()))]
    by_class = {n: [float(record["accuracy"]) for record in of] for n, of in classes.items()}
    # Folders written before there were errors, and those of one seed, have none.
    errors = {
        name: [float(record["accuracy_se"]) for record in of]
        for name, of in classes.items()
        if all(record.get("accuracy_se") for record in of)
    }
    made.append(out / "per_class.png")
    plots.classes_by_rule(made[-1], counts, panels(by_class), SHOTS, seeds, panels(errors))
    if curves is not None:
        by_epoch = {
            name: (
                [int(record["epoch"]) for record in of],
                {
                    key: [float(record[key]) for record in of]
                    for split in ("all", "few")
                    for key in (split, f"{split}_se")
                    if all(record.get(key) for record in of)
                },
            )
            for name, of in curves.items()
        }
        made.append(out / "curves.png")
        plots.curves_by_rule(made[-1], panels(by_epoch), seeds)
    against = [line for line in summary if is_base(line, summary)]
    if against and len(summary) > 1:
        gains = {
            split: {
                name: (line[f"paired_{split}"], line[f"paired_{split}_se"])
                for name, line in named.items()
                if not is_base(line, summary)
            }
            for split in ("all", "few")
        }
        made.append(out / "gains.png")
        plots.gains_by_rule(made[-1], gains, f"SGD's with {summary[0]['loss']}", seeds)
    return made


def _panel(line: dict[str, Any]) -> str:
    """What its plots share with others: the loss, and a second stage."""
    return line["loss"] + (f", then {line['stage2']}" if line["stage2"] else "")


def write_sweep(
    out: Path, summary: list[dict[str, Any]], grid: dict[str, list[float]], rule: str
) -> None:
    """Writes table.md, sweep.csv and summary.json, and draws them; `rule` is whose grid it is."""
    shown = f"{grids.table(summary, grid)}\n\n{grids.verdict(summary)}\n"
    outputs.replace_text(out / "table.md", shown)
    records = written.sweep_records(summary, rule)
    outputs.replace_text(out / written.SWEEP, written.as_csv(records))
    outputs.write_json(out / written.SUMMARY, summary)
    draw_sweep(out, rule)


def draw_sweep(out: Path, rule: str) -> list[Path]:
    """The plot of a sweep's folder, of its summary.json; which was made."""
    from experiments.reports import plots

    summary = written.sweep(out, rule)
    *others, last = summary[-1]["point"]
    curves: dict[str, Any] = {}
    for line in summary[1:]:
        name = ", ".join(f"{key} {line['point'][key]:g}" for key in others) or rule
        curve = curves.setdefault(name, {"x": [], "chosen": None, "mean": {}, "se": {}})
        if line["best_val"]:
            curve["chosen"] = len(curve["x"])
        curve["x"].append(line["point"][last])
        for split in SPLITS:
            for key, figure in (("mean", f"test_{split}"), ("se", f"test_{split}_sgd_se")):
                value = np.nan if line[figure] is None else line[figure]
                curve[key].setdefault(split, []).append(value)
    levels = {
        s: np.nan if summary[0][f"test_{s}"] is None else summary[0][f"test_{s}"] for s in SPLITS
    }
    plots.sweep(out / "sweep.png", last, curves, levels, sgd_chosen=summary[0]["best_val"])
    return [out / "sweep.png"]
