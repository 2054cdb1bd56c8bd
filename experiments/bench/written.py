"""The files of a table and of a sweep, read again: each is held against the others."""

from __future__ import annotations

import csv
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench import grid as grids
from experiments.bench.tables import SPLITS, is_base, names
from experiments.bench.training import EPOCHS_PER_CALL
from experiments.host import outputs
from experiments.host.errors import SEEDS, UNFIT, RunError
from experiments.reports.compare_shape import is_bool, misfit
from experiments.reports.reading import is_accuracy, is_number, is_text, or_none

PER_CLASS, CURVES, SWEEP, SUMMARY = "per_class.csv", "curves.csv", "sweep.csv", "summary.json"
# Of figures that were rounded to four digits, or summed in another order.
_NEAR = 1e-3
Records = dict[str, list[dict[str, str]]]


def table(out: Path) -> tuple[list[dict[str, Any]], Records, Records | None]:
    """(summary.json, per_class.csv, curves.csv where there is one), the latter by rule.

    Raises:
      RunError: one is damaged, or not of the same runs as the others.
    """
    summary = outputs.read_json(out / SUMMARY)
    _refuse(out / SUMMARY, _of_table(summary))
    lines = {
        name: line
        for name, line in zip(names(summary), summary, strict=True)
        if line.get("diverged") is None
    }
    classes = _by_rule(out / PER_CLASS)
    _refuse(out / PER_CLASS, _of_classes(classes, lines))
    curves = _by_rule(out / CURVES) if (out / CURVES).exists() else None
    if curves is not None:
        _refuse(out / CURVES, _of_curves(curves, lines))
    return summary, classes, curves


def sweep(out: Path, rule: str) -> list[dict[str, Any]]:
    """summary.json of a sweep; RunError where it is damaged, or says else than sweep.csv."""
    summary = outputs.read_json(out / SUMMARY)
    _refuse(out / SUMMARY, _of_sweep(summary))
    outputs.read_csv(out / SWEEP)
    if (out / SWEEP).read_bytes() != as_csv(sweep_records(summary, rule)).encode():
        raise RunError(f"{out / SWEEP} is damaged: it says else than {SUMMARY}; run it again")
    return summary


def sweep_records(summary: list[dict[str, Any]], rule: str) -> list[list[Any]]:
    """The cells of sweep.csv; `rule` is whose grid it is."""
    flags = list(summary[-1]["point"])
    figures = [key for key, value in summary[0].items() if not isinstance(value, dict | list)]
    return [
        ["rule", *flags, *figures],
        *(
            [
                rule if line["point"] else "sgd",
                *(line["point"].get(name, "") for name in flags),
                *(line[key] for key in figures),
            ]
            for line in summary
        ),
    ]


def as_csv(records: list[list[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(records)
    return text.getvalue()


def _by_rule(path: Path) -> Records:
    found: Records = {}
    for record in outputs.read_csv(path):
        found.setdefault(record.get("rule", ""), []).append(record)
    return found


def _refuse(path: Path, wrong: str | None) -> None:
    if wrong is not None:
        raise RunError(f"{path} is damaged: {wrong}; run it again")


# ---- a table ------------------------------------------------------------------------------------


def _are_seeds(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(seed) is int and seed in SEEDS for seed in value)
    return whole and 0 < len(value) == len(set(value))


def _is_difference(value: Any) -> bool:
    return is_number(value) and abs(value) <= 100.001


def _is_error(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100.001


_LINE: dict[str, Any] = {
    **dict.fromkeys(("rule", "loss"), is_text), "stage2": or_none(is_text), "seeds": _are_seeds,
    **dict.fromkeys(SPLITS, or_none(is_accuracy)),
    **dict.fromkeys((f"{split}_by_seed" for split in SPLITS), or_none(lambda value: True)),
    **dict.fromkeys(("paired_all", "paired_few"), or_none(_is_difference)),
    **dict.fromkeys(("paired_all_se", "paired_few_se"), or_none(_is_error)),
}  # fmt: skip
# Of all lines, that older ones lack.
_MAY_HAVE: dict[str, Any] = {"diverged": or_none(is_text), "memory": or_none(is_number)}


def _misfit(summary: Any, shape: dict[str, Any]) -> str | None:
    """Where one of the lines is not of this shape; there is one at least."""
    wrong = misfit(summary, [shape], "lines") if summary else "lines"
    for at, line in enumerate(summary if wrong is None else ()):
        inside = misfit(line, {name: of for name, of in _MAY_HAVE.items() if name in line})
        wrong = wrong or (inside and f"lines.{at}.{inside}")
    return wrong


def _of_table(summary: Any) -> str | None:
    wrong = _misfit(summary, _LINE)
    if wrong is not None:
        return f"its {wrong} is not what a table writes"
    named = names(summary)
    if len(set(named)) < len(named):
        return "a line is there twice"
    base = next((line for line in summary if is_base(line, summary)), None)
    for name, line in zip(named, summary, strict=True):
        if line["seeds"] != summary[0]["seeds"]:
            return f"{name} has other seeds than {named[0]}"
        for split in SPLITS:
            if not _adds_up(line, base, split):
                return f"{split} of {name} is not what its seeds add up to"
    return None


def _adds_up(line: dict[str, Any], base: dict[str, Any] | None, split: str) -> bool:
    """Whether a mean, and the difference to SGD where there is one, are those of the seeds."""
    mine, number = line[f"{split}_by_seed"], len(line["seeds"])
    theirs = None if base is None else base[f"{split}_by_seed"]
    if (mine is None) != (line[split] is None):
        return False
    if mine is not None and not (
        len(mine) == number and all(map(is_accuracy, mine)) and _near(np.mean(mine), line[split])
    ):
        return False
    if f"paired_{split}" not in line:
        return True
    paired = None
    if mine is not None and theirs is not None and len(theirs) == number:
        paired = np.subtract(mine, theirs)
    error = np.std(paired, ddof=1) / number**0.5 if paired is not None and number > 1 else None
    found = None if paired is None else np.mean(paired)
    return _near(found, line[f"paired_{split}"]) and _near(error, line[f"paired_{split}_se"])


def _near(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, abs_tol=_NEAR)


def _of_classes(found: Records, lines: dict[str, Any]) -> str | None:
    if list(found) != list(lines):
        return f"it has not the lines of each rule of {SUMMARY}"
    counts = [record.get("train_examples") for record in next(iter(found.values()), [])]
    for name, records in found.items():
        try:
            sizes = [int(record["train_examples"]) for record in records]
            accuracies = [float(record["accuracy"]) for record in records]
            fits = [record["class"] for record in records] == [*map(str, range(len(sizes)))]
            fits &= counts == [record["train_examples"] for record in records]
            fits &= min(sizes) >= 0 and all(map(is_accuracy, accuracies))
            fits &= _near(np.mean(accuracies), lines[name]["all"]) and _have_errors(records)
        except UNFIT:
            fits = False
        if not fits:
            return f"its classes of {name} are not those of {SUMMARY}"
    return None


def _of_curves(found: Records, lines: dict[str, Any]) -> str | None:
    if list(found) != list(lines):
        return f"it has not the lines of each rule of {SUMMARY}"
    ends: dict[Any, list[int]] = {}
    for name, records in found.items():
        line = lines[name]
        try:
            epochs = [int(record["epoch"]) for record in records]
            steps = [b - a for a, b in itertools.pairwise([0, *epochs])]
            fits = epochs == [0] or (min(steps) > 0 and max(steps) <= EPOCHS_PER_CALL)
            fits &= ends.setdefault(line["stage2"], epochs) == epochs
            for split in SPLITS:
                values = [_known(record[split]) for record in records]
                fits &= _near(values[-1], line[split])
                fits &= all(value is None or is_accuracy(value) for value in values)
                fits &= len({value is None for value in values}) == 1
            fits &= _have_errors(records)
        except UNFIT:
            fits = False
        if not fits:
            return f"its epochs of {name} are not those of {SUMMARY}"
    return None


def _known(cell: str) -> float | None:
    """None for the NaN of a shot group without classes."""
    return None if cell == "nan" else float(cell)


def _have_errors(records: list[dict[str, str]]) -> bool:
    """Errors that can be, in every line of a column or in none."""
    for name in (name for name in records[0] if name.endswith("_se")):
        cells = [record[name] for record in records]
        if any(cells) and not all(cell == "nan" or _is_error(float(cell)) for cell in cells):
            return False
    return True


# ---- a sweep ------------------------------------------------------------------------------------


def _is_point(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


_POINT: dict[str, Any] = {
    "point": _is_point, "seeds": _are_seeds, "best_val": is_bool,
    **dict.fromkeys((f"test_{split}" for split in SPLITS), or_none(is_accuracy)),
    **dict.fromkeys((f"test_{split}_sgd_se" for split in SPLITS), or_none(_is_error)),
}  # fmt: skip


def _of_sweep(summary: Any) -> str | None:
    wrong = _misfit(summary, _POINT)
    if wrong is not None:
        return f"its {wrong} is not what a sweep writes"
    first, *points = (line["point"] for line in summary)
    flags = list(points[-1]) if points else []
    if first or not flags or any(list(point) != flags for point in points):
        return "its points are not SGD and a grid"
    grid = {name: sorted({point[name] for point in points}) for name in flags}
    if points != grids.points_of(grid):
        return "its points are not SGD and a grid"
    if any(line["seeds"] != summary[0]["seeds"] for line in summary):
        return "its points have different seeds"
    whole = [line for line in summary if line.get("diverged") is None]
    chosen = [line for line in summary if line["best_val"]]
    if len(chosen) != (len(whole) > 1) or not all(line in whole for line in chosen):
        return "validation has not chosen one point"
    return None
