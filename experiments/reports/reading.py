"""Finished runs read from their folders; what no run has written is refused."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.host import outputs
from experiments.host.errors import RunError
from experiments.host.folders import read_metrics
from experiments.host.sealed import class_counts_sha256
from experiments.reports.figures import COLUMNS

_NEEDED = (
    "dataset", "imbalance_factor", "model", "rule", "rule_args", "loss", "epochs", "batch_size",
    "seed", "settings", "best_epoch_flip", *COLUMNS,
)  # fmt: skip


def find(paths: list[str]) -> list[dict[str, Any]]:
    """The reports in these folders at any depth, or report files; `passed_over` is the rest.

    Each has its "path"; that of a second stage has its first stage's report as "first".
    """
    reports: dict[Path, dict[str, Any]] = {}
    for file in (file for path in paths for file in files(Path(path))):
        report = _checked(file)
        above = file.resolve().parent.parent / "report.json"
        if report.get("stage2") and above.exists():
            first = _checked(above)
            if is_first(first, report):
                report["first"] = first
        if report:
            reports.setdefault(file.resolve(), {**report, "path": str(file)})
    if not reports:
        raise RunError(f"no finished run (report.json) in {', '.join(paths)}")
    return list(reports.values())


def is_first(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether a second stage can be one of this run."""
    same = ("seed", "rule", "rule_args", "loss")
    return bool(first) and all(first.get(name) == second.get(name) for name in same)


class Classes(NamedTuple):
    """per_class.csv of a run: of each class training examples, tested ones, and how many right."""

    counts: list[int]
    tested: list[int]
    correct: list[int]

    def accuracies(self) -> list[float]:
        """In percent; NaN where none was tested."""
        return [
            100 * hits / of if of else math.nan
            for hits, of in zip(self.correct, self.tested, strict=True)
        ]


def classes(file: Path, report: dict[str, Any]) -> Classes:
    """The table of classes beside a report; RunError where it is damaged, or of another run."""
    rows = outputs.read_csv(file)
    try:
        numbers = ("train_examples", "test_examples", "correct")
        found = Classes(*([int(row[name]) for row in rows] for name in numbers))
        wrong = _misfit(found, rows, report)
    except (KeyError, ValueError):
        wrong = "a class lacks a number"
    if wrong:
        raise RunError(f"{file} is damaged: {wrong}; remove it, or repeat the run")
    return found


def _misfit(found: Classes, rows: list[dict[str, str]], report: dict[str, Any]) -> str | None:
    if [row["class"] for row in rows] != [str(c) for c in range(len(rows))]:
        return "its classes are not each there once, in order"
    if min(found.counts, default=0) < 0 or not all(
        0 <= hits <= of for hits, of in zip(found.correct, found.tested, strict=True)
    ):
        return "more or fewer images are right than were tested"
    accuracies = found.accuracies()
    for row, accuracy in zip(rows, accuracies, strict=True):
        if row["accuracy"] != ("" if math.isnan(accuracy) else f"{accuracy:.4f}"):
            return f"the accuracy of class {row['class']} is not that of its images"
    if not _has_counts(found.counts, report):
        return "its training examples are not those of report.json"
    known = [accuracy for accuracy in accuracies if not math.isnan(accuracy)]
    if (report["all"] is None) == bool(known) or (
        known and abs(statistics.fmean(known) - report["all"]) > 1e-2
    ):
        return "its accuracies are not those of report.json"
    return None


def _has_counts(counts: list[int], report: dict[str, Any]) -> bool:
    digest = report.get("class_counts_sha256")
    if digest is not None:
        return bool(digest == class_counts_sha256(counts))
    return report.get("train_examples") in (None, sum(counts))


def epochs(file: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; RunError where they are not each epoch of the report."""
    lines = read_metrics(file, needed=("epoch", "train_loss"))
    told = {line["epoch"] for line in lines}
    lacks = [epoch for epoch in range(1, int(report["epochs"]) + 1) if epoch not in told]
    wrong = None
    if lacks or len(lines) != report["epochs"]:
        wrong = f"it has {len(lines)} epochs, and report.json tells of {report['epochs']}"
    for line in lines:
        odd = [split for split in COLUMNS if not is_accuracy(line.get(f"test_{split}"))]
        if odd:
            wrong = wrong or f"test_{odd[0]} of epoch {line['epoch']} is no accuracy"
    if wrong:
        raise RunError(f"{file} is damaged: {wrong}; remove it, or repeat the run")
    return lines


def files(path: Path) -> Iterator[Path]:
    """The report files in a folder at any depth, or the one file named; not all are of runs."""
    if not path.is_dir():
        if path.suffix == ".json" or not path.exists():
            yield path
        return
    for folder in folders_in(path):
        report = folder / "report.json"
        yield from [report] if report.is_file() else _other_reports(folder)[0]


def folders_in(path: Path) -> Iterator[Path]:
    """It and all folders in it, sorted; each once, though links may lead in circles."""
    seen: set[str] = set()
    for name, below, _ in os.walk(path, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(x for x in below if not x.startswith(".") and x != "checkpoints")
        yield Path(name)


def _other_reports(folder: Path) -> tuple[list[Path], list[Path]]:
    """(reports kept under another name, JSON files that nobody named and that cannot be read)."""
    reports, unreadable = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            reports += [file] if "best_epoch_flip" in _read(file) else []
        except RunError:
            unreadable.append(file)
    return reports, unreadable


def passed_over(paths: list[str]) -> list[str]:
    """What `find` makes nothing of in these paths, each with why."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            if path.suffix != ".json":
                found.append(f"{path} (no report)")
            elif not _checked(path):
                found.append(f"{path} (no training run)")
            continue
        runs = {file.parent: file for file in files(path)}
        for folder, file in runs.items():
            if not _checked(file):
                found.append(f"{folder} (no training run)")
        alone = [folder for folder in folders_in(path) if folder not in runs]
        unreadable = [file for folder in alone for file in _other_reports(folder)[1]]
        found += [f"{file} (unreadable)" for file in unreadable]
        unfinished = [
            folder
            for folder in alone
            if (folder / "config.json").exists() and not _above_a_run(folder, runs)
        ]
        for folder in unfinished:
            other = (folder / "summary.json").exists()
            found.append(f"{folder} ({'no training run' if other else 'not finished'})")
        if not (runs or unfinished or unreadable):
            found.append(f"{path} (no run)")
    return found


def _above_a_run(folder: Path, runs: Iterable[Path]) -> bool:
    return any(folder in (run, *run.parents) for run in runs)


def read_report(file: Path) -> dict[str, Any]:
    """The report of a training run; RunError for anything else."""
    report = _checked(file)
    if not report:
        raise RunError(f"{file} is no report of a training run: it lacks rule")
    return report


def _checked(file: Path) -> dict[str, Any]:
    """The report of a training run; {} for that of another experiment."""
    report = _read(file)
    if "rule" not in report:
        return {}
    lacks = [name for name in _NEEDED if name not in report]
    if lacks:
        raise RunError(f"{file} is no report of a training run: it lacks {', '.join(lacks)}")
    wrong = [name for name, fits in _FITS.items() if not fits(report.get(name))]
    if wrong:
        raise RunError(
            f"{file} is damaged: its {wrong[0]} is {str(report.get(wrong[0]))[:60]!r}, which no "
            "run writes; evaluate or repeat the run, or leave its report out"
        )
    return report


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def is_accuracy(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 100.001)


def _are_options(value: Any) -> bool:
    """By name: numbers, words, lists of them; options within options too."""
    return isinstance(value, dict) and all(_is_option(x) for x in value.values())


def _is_option(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(_is_option(x) for x in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, bool | str) or is_number(value)


def _are_accuracies(value: Any) -> bool:
    return isinstance(value, dict) and all(is_accuracy(value.get(split)) for split in COLUMNS)


def or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


# What a field of a report can be.
_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("dataset", "model", "rule", "loss"), is_text),
    **dict.fromkeys(("imbalance_factor", "batch_size"), is_positive),
    **dict.fromkeys(("epochs", "seed"), is_count),
    **dict.fromkeys(COLUMNS, is_accuracy),
    "best_epoch_flip": _are_accuracies,
    "last_epoch_ensembled": lambda value: value is None or _are_accuracies(value),
    **dict.fromkeys(("rule_args", "settings"), _are_options),
    **dict.fromkeys(("ascent", "loss_args", "stage2_args", "thresholds", "jax"),
                    or_none(_are_options)),
    **dict.fromkeys(("stage2", "subset", "source", "classifier"), or_none(is_text)),
    **dict.fromkeys(("step_ms", "flops_ratio_to_sgd", "shrink", "train_examples"),
                    or_none(is_positive)),
    **dict.fromkeys(("mixup", "memory", "val_per_class", "subset_seed"), or_none(is_number)),
    "rows_sha256": or_none(lambda of: isinstance(of, dict) and all(map(is_text, of.values()))),
}  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    """The object in a file; {} for JSON of another kind, which no run writes."""
    value = outputs.read_json(file)
    return value if isinstance(value, dict) else {}
