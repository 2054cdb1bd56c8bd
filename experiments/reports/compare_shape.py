"""What the fields of a comparison's summary.json can be, so that a damaged one is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.reports.reading import is_count, is_number, is_text, or_none
from experiments.reports.scores import BINS, METRICS, TWO

Shape = Callable[[Any], bool] | dict[str, Any] | list[Any]


def misfit(value: Any, shape: Shape, place: str = "") -> str | None:
    """Where a value is not as its shape, as "rows.3.recall"; None where it is.

    Args:
      value: of JSON.
      shape: a function that says whether a value fits; by name the shape of each entry of an
        object, which may hold others; or a list of one shape, that of every entry.
      place: where the value itself stands.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return place
        inside = [(name, value[name], of) for name, of in shape.items() if name in value]
        lacks = [name for name in shape if name not in value]
        if lacks:
            return f"{place}.{lacks[0]}".lstrip(".")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return place
        inside = [(str(at), each, shape[0]) for at, each in enumerate(value)]
    else:
        return None if shape(value) else place
    found = (misfit(each, of, f"{place}.{name}".lstrip(".")) for name, each, of in inside)
    return next((where for where in found if where is not None), None)


def of_summary(summary: Mapping[str, Any]) -> str | None:
    """Where a summary.json is not as `compare_folder` writes it; None where it is."""
    wrong = misfit(summary, _SUMMARY)
    if wrong is not None:
        return wrong
    data, rows, splits = summary["data"], summary["rows"], summary["splits"]
    classes, number = data["classes"], splits["count"]
    for name in ("class_names", "class_counts", "train_counts"):
        if len(data[name]) != classes:
            return f"data.{name}"
    if max(data["train_counts"]) == 0:
        return "data.train_counts"
    for name in ("train", "val", "test"):
        if len(splits[name]) != number:
            return f"splits.{name}"
    if 0 in map(sum, zip(splits["train"], splits["val"], strict=True)):
        return "splits.train"
    groups = None if data["group"] is None else len(data["group"]["names"])
    if groups is not None and len(data["group"]["counts"]) != groups:
        return "data.group.counts"
    names = [row["row"] for row in rows]
    if sum("difference" not in row for row in rows) != 1 or len(set(names)) < len(names):
        return "rows"
    if summary["best"] not in (None, *names):
        return "best"
    more = [name for name in ("worst_group", *TWO) if any(name in row for row in rows)]
    for at, row in enumerate(rows):
        wrong = misfit(row, dict.fromkeys(more, _NUMBER))
        wrong = wrong or _of_row(row, classes, number, groups)
        if wrong is not None:
            return f"rows.{at}.{wrong}"
    return None


def _of_row(row: Mapping[str, Any], classes: int, splits: int, groups: int | None) -> str | None:
    if len(row["recall"]) != classes:
        return "recall"
    bins = [row["calibration"][name] for name in ("count", "confidence", "accuracy")]
    if any(len(values) != BINS for values in bins):
        return "calibration"
    if any((None in share) == (count > 0) for count, *share in zip(*bins, strict=True)):
        return "calibration"
    if any(len(values) != splits for values in row["chosen"].values()):
        return "chosen"
    if groups is not None:
        wrong = misfit(row, {"group_accuracy": [_NUMBER]})
        if wrong is not None or len(row["group_accuracy"]) != groups:
            return wrong or "group_accuracy"
    if "difference" in row:
        return misfit(row, _COMPARED)
    return None


def is_whole(value: Any) -> bool:
    """A count that can number entries: 3, but not 3.0."""
    return isinstance(value, int) and is_count(value)


def is_some(value: Any) -> bool:
    return is_whole(value) and value > 0


def is_factor(value: Any) -> bool:
    """Of imbalance: the largest class over the smallest."""
    return is_number(value) and value >= 1


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_interval(value: Any) -> bool:
    """[mean, low, high], the mean in the middle; without ends, or without any."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    if not all(each is None or is_number(each) for each in value):
        return False
    mean, low, high = value
    if None in value:
        return low is None and high is None
    near = 1e-9 * max(1.0, abs(low), abs(high))
    return low <= high and abs((mean - low) - (high - mean)) <= near


def are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _are_chosen(value: Any) -> bool:
    """By name, a setting of each split."""
    return isinstance(value, dict) and all(
        isinstance(of_splits, list)
        and all(each is None or isinstance(each, str) or is_number(each) for each in of_splits)
        for of_splits in value.values()
    )


_NUMBER = or_none(is_number)
_ROW: dict[str, Any] = {
    "row": is_text, "rule": or_none(is_text), "loss": or_none(is_text), "sampling": is_text,
    "reference": is_bool, **dict.fromkeys(METRICS, _NUMBER),
    "recall": [_NUMBER], "chosen": _are_chosen, "seconds": is_number, "p_holm": _NUMBER,
    "calibration": {"count": [is_whole], "confidence": [_NUMBER], "accuracy": [_NUMBER]},
}  # fmt: skip
# Of every row but the baseline.
_COMPARED: dict[str, Any] = {
    "difference": dict.fromkeys(METRICS, is_interval),
    "p": dict.fromkeys(METRICS, _NUMBER), "recall_difference": [is_interval],
}  # fmt: skip
_GROUP: dict[str, Any] = {"names": [is_text], "counts": [is_whole]}
_SUMMARY: dict[str, Any] = {
    "data": {
        **dict.fromkeys(("name", "source"), is_text),
        **dict.fromkeys(("rows", "features", "classes"), is_some),
        "class_names": [is_text], "text": [is_text], "notes": [is_text],
        "class_counts": [is_whole], "train_counts": [is_whole],
        **dict.fromkeys(("imbalance_factor", "train_imbalance_factor"), is_factor),
        "group": lambda value: value is None or misfit(value, _GROUP) is None,
    },
    "thresholds": {"many_above": is_whole, "few_below": is_whole},
    "splits": {
        "count": is_some, "own_test": is_bool,
        "train": [is_whole], "val": [is_whole], "test": [is_some],
    },
    "about": lambda value: isinstance(value, dict) and are_texts(value.get("easier", [])),
    "verdict": is_text, "best": or_none(is_text), "rows": [_ROW],
}  # fmt: skip
