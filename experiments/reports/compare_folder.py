"""The folder of a comparison: runs.csv, a line for each row and split, and summary.json.

A *row* is one way of training, as a table shows it. Rows are compared with `BASELINE`, paired by
split. How the rows were trained is not known here: whoever did hands a `Record` over for each row
and split.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from experiments.host import inputs, outputs
from experiments.host.errors import RunError
from experiments.reports import compare_shape, scores
from experiments.reports.paired import Interval, holm, interval
from experiments.reports.scores import METRICS, Bins
from experiments.reports.verdict import verdict

BASELINE = "sgd, cross_entropy"
CONFIDENCE = 0.95
RUNS, SUMMARY = "runs.csv", "summary.json"
_SIZES = ("train", "val", "test")
AGAIN = "remove it, and compare --resume makes it anew"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """One row on one split.

    Attributes:
      row: its name, the same on every split: "imbsam, logit_adjusted".
      rule: its rule's name; None for a reference line.
      loss: its loss's name; None for a reference line.
      sampling: "shuffled" or "balanced"; "" for a reference line.
      reference: trained by other means (trees, logistic regression): shown and compared, but
        neither among the methods that Holm's correction counts nor among those to choose from.
      split: 0, 1, ...
      sizes: rows of train, val and test.
      scores: METRICS, of two classes TWO, and worst_group where there are groups.
      recall: [C], percent; NaN of a class that is not tested.
      bins: of the reliability diagram.
      chosen: the settings it was trained with, by name; {} for a reference line.
      seconds: of training, what was tried before it included.
      group_accuracy: [G], percent, or None.
    """

    row: str
    rule: str | None
    loss: str | None
    sampling: str
    reference: bool
    split: int
    sizes: tuple[int, int, int]
    scores: Mapping[str, float]
    recall: Sequence[float]
    bins: Bins
    chosen: Mapping[str, Any]
    seconds: float
    group_accuracy: Sequence[float] | None = None


class TableLike(Protocol):
    """What is told of the data: a `data.table.Table`."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def columns(self) -> pd.DataFrame: ...
    @property
    def labels(self) -> Any: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def text(self) -> tuple[str, ...]: ...
    @property
    def groups(self) -> Any: ...
    @property
    def group_names(self) -> tuple[str, ...] | None: ...
    @property
    def first_test_row(self) -> int | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def write(
    out: Path,
    records: Sequence[Record],
    table: TableLike,
    *,
    train_counts: Sequence[int],
    thresholds: tuple[int, int],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes runs.csv and summary.json; returns what stands in the latter.

    Args:
      out: the folder.
      records: every row on every split, `BASELINE` among them.
      table: the data.
      train_counts: int[C], rows of each class that the first split trains on or chooses by.
      thresholds: `scores.shots` of them.
      about: goes into summary.json as it is: how the rows were trained, seed, machine, versions.

    Raises:
      RunError: a row lacks a split, or the baseline is not among them.
    """
    found = summarise(records, table, train_counts=train_counts, thresholds=thresholds, about=about)
    with outputs.writing(out):
        outputs.replace_text(out / RUNS, runs(records).to_csv(index=False))
        outputs.replace_text(out / SUMMARY, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def read(out: Path, again: str = AGAIN) -> tuple[dict[str, Any], pd.DataFrame]:
    """(summary.json, runs.csv) of a finished folder; RunError, with what makes them `again`."""
    try:
        summary = outputs.read_object(out / SUMMARY)
    except RunError as error:
        raise RunError(f"{error}: {again}") from error
    try:
        lines = pd.read_csv(out / RUNS, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {out / RUNS}: {inputs.said_by(error)}: {again}") from error
    wanted = {
        SUMMARY: (summary, ("data", "rows", "splits", "about", "verdict")),
        RUNS: (lines, ("row", "split", *_SIZES, *METRICS)),
    }
    for name, (found, keys) in wanted.items():
        if lacks := [key for key in keys if key not in found]:
            raise RunError(f"{out / name} is not whole, it lacks {', '.join(lacks)}: {again}")
    wrong = compare_shape.of_summary(summary)
    if wrong is not None:
        raise RunError(
            f"{out / SUMMARY} is damaged: its {wrong} is not what a comparison writes; {again}"
        )
    wrong = _misfit(summary, lines)
    if wrong is not None:
        raise RunError(f"{out / RUNS} {wrong}: {again}")
    return summary, lines


def _misfit(summary: Mapping[str, Any], lines: pd.DataFrame) -> str | None:
    """What runs.csv has that does not go with summary.json."""
    splits, rows = summary["splits"], {row["row"]: row for row in summary["rows"]}
    if BASELINE not in rows:
        return f"has no lines of {BASELINE!r} to compare with"
    for name in ("split", *_SIZES, *METRICS):
        held = lines[name]
        if held.notna().any() and (held.dtype.kind not in "iuf" or np.isinf(held).any()):
            return f"has other than numbers in its {name}"
    wanted = {(name, split) for name in rows for split in range(splits["count"])}
    found = list(zip(lines["row"], lines["split"], strict=True))
    if len(found) != len(wanted) or set(found) != wanted:
        return f"has not one line for each row of {SUMMARY} and each split"
    for name in _SIZES:
        if [splits[name][int(split)] for split in lines["split"]] != lines[name].tolist():
            return f"has another {name} than {SUMMARY}"
    for name, of_row in lines.groupby("row")[[*METRICS]].mean().iterrows():
        for metric, mean in of_row.items():
            told = rows[name][metric]
            if not np.isclose(mean, np.nan if told is None else told, 1e-9, 1e-9, equal_nan=True):
                return f"has another {metric} of {name} than {SUMMARY}"
    return None


def runs(records: Iterable[Record]) -> pd.DataFrame:
    """A line for each row and split; what is undefined is empty."""
    lines = []
    chosen = list(dict.fromkeys(name for record in records for name in record.chosen))
    for record in records:
        train, val, test = record.sizes
        line: dict[str, Any] = {
            "row": record.row, "rule": record.rule, "loss": record.loss,
            "sampling": record.sampling, "reference": record.reference, "split": record.split,
            "train": train, "val": val, "test": test, "seconds": round(record.seconds, 3),
            **{name: record.scores[name] for name in METRICS},
        }  # fmt: skip
        line |= {name: value for name, value in record.scores.items() if name not in METRICS}
        line |= {f"chosen_{name}": record.chosen.get(name) for name in chosen}
        line |= {f"recall_{c}": value for c, value in enumerate(record.recall)}
        line |= {f"group_{g}": value for g, value in enumerate(record.group_accuracy or ())}
        lines.append(line)
    return pd.DataFrame(lines)


def summarise(
    records: Sequence[Record],
    table: TableLike,
    *,
    train_counts: Sequence[int],
    thresholds: tuple[int, int],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What `write` writes."""
    by_row: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.split):
        by_row.setdefault(record.row, []).append(record)
    _check_whole(by_row)
    base, own_test = by_row[BASELINE], table.first_test_row is not None
    metrics = [*base[0].scores]
    rows = [
        _row(by_row[name], None if name == BASELINE else base, metrics, own_test)
        for name in dict.fromkeys(record.row for record in records)
    ]
    _correct(rows, metrics)
    counts = np.bincount(table.labels, minlength=len(table.class_names))
    data = {
        "name": table.name, "source": table.source, "rows": len(table.labels),
        "features": len(table.columns.columns), "classes": len(counts),
        "class_names": list(table.class_names), "class_counts": counts.tolist(),
        "imbalance_factor": _factor(counts), "train_counts": [int(n) for n in train_counts],
        "train_imbalance_factor": _factor(train_counts), "text": list(table.text),
        "group": _groups(table), "notes": list(table.notes),
    }  # fmt: skip
    sizes = [record.sizes for record in base]
    splits = {name: [size[k] for size in sizes] for k, name in enumerate(_SIZES)}
    said, best = verdict(rows, len(base))
    return {
        "data": data,
        "thresholds": {"many_above": thresholds[0], "few_below": thresholds[1]},
        "splits": {"count": len(base), **splits, "own_test": own_test},
        "about": dict(about), "verdict": said, "best": best, "rows": rows,
    }  # fmt: skip


def of_intervals(summary: Mapping[str, Any]) -> str:
    """What the intervals of differences are of, in a sentence."""
    if summary["splits"]["own_test"]:
        cut = ", which rows the cut leaves" * bool(summary["about"].get("cut"))
        return (
            "Every training is tested on the same rows: intervals are of training noise alone "
            f"(initial weights, batches, settings chosen{cut}), not of which rows were drawn."
        )
    return "Intervals are Nadeau and Bengio's, for splits that overlap."


def _check_whole(by_row: Mapping[str, Sequence[Record]]) -> None:
    if BASELINE not in by_row:
        raise RunError(f"nothing can be compared without {BASELINE!r}")
    splits = [record.split for record in by_row[BASELINE]]
    for name, found in by_row.items():
        if [record.split for record in found] != splits:
            raise RunError(f"{name} was not trained on each split once, as {BASELINE} was")


def _row(
    mine: Sequence[Record], base: Sequence[Record] | None, metrics: Sequence[str], own_test: bool
) -> dict[str, Any]:
    first = mine[0]
    names = dict.fromkeys(name for record in mine for name in record.chosen)
    found: dict[str, Any] = {
        "row": first.row, "rule": first.rule, "loss": first.loss, "sampling": first.sampling,
        "reference": first.reference,
        **{name: _mean([record.scores[name] for record in mine]) for name in metrics},
        "spread": {name: _spread([record.scores[name] for record in mine]) for name in metrics},
    }  # fmt: skip
    if base is not None:
        found["difference"], found["p"] = {}, {}
        for name in metrics:
            each = _paired(mine, base, lambda record, name=name: record.scores[name], own_test)
            found["difference"][name] = [each.mean, each.low, each.high]
            found["p"][name] = each.p
        found["recall_difference"] = [
            list(_paired(mine, base, lambda record, c=c: record.recall[c], own_test)[:3])
            for c in range(len(first.recall))
        ]
    bins = scores.pooled([record.bins for record in mine])
    found["recall"] = [_mean(values) for values in zip(*(r.recall for r in mine), strict=True)]
    found["calibration"] = {
        "count": [int(n) for n in bins.count],
        "confidence": [_or_none(x) for x in bins.confidence],
        "accuracy": [_or_none(x) for x in bins.accuracy],
    }
    found["chosen"] = {name: [_plain(record.chosen.get(name)) for record in mine] for name in names}
    found["seconds"] = round(float(np.mean([record.seconds for record in mine])), 3)
    if first.group_accuracy is not None:
        groups = zip(*(record.group_accuracy or () for record in mine), strict=True)
        found["group_accuracy"] = [_mean(values) for values in groups]
    return found


def _paired(mine: Sequence[Record], base: Sequence[Record], of: Any, own_test: bool) -> Interval:
    """Everything but the test rows counts as seen: settings were chosen by part of it."""
    differences = [of(a) - of(b) for a, b in zip(mine, base, strict=True)]
    seen = [record.sizes[0] + record.sizes[1] for record in mine]
    tested = 0 if own_test else [record.sizes[2] for record in mine]
    return interval(differences, seen, tested, confidence=CONFIDENCE)


def _correct(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Holm's p-values over the methods; a reference line has its own, uncorrected, in p."""
    family = [row for row in rows if "p" in row and not row["reference"]]
    adjusted = {name: holm([row["p"][name] for row in family]) for name in metrics}
    for k, row in enumerate(family):
        row["p_holm_by"] = {name: adjusted[name][k] for name in metrics}
        row["p_holm"] = adjusted["balanced_accuracy"][k]
    for row in rows:
        row.setdefault("p_holm", None)


def _groups(table: TableLike) -> dict[str, Any] | None:
    if table.group_names is None:
        return None
    return {"names": list(table.group_names), "counts": np.bincount(table.groups).tolist()}


def _factor(counts: Any) -> float:
    counts = np.asarray(counts)
    return round(float(counts.max() / max(counts.min(), 1)), 4)


def _mean(values: Sequence[float]) -> float | None:
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else None


def _spread(values: Sequence[float]) -> float | None:
    there = [value for value in values if not math.isnan(value)]
    return float(np.std(there, ddof=1)) if len(there) > 1 else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
