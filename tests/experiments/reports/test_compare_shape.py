"""Which field of a comparison's summary.json is told as damaged, at both sides of each bound."""

import copy

import pytest

from experiments.reports.compare_shape import (
    is_bool,
    is_factor,
    is_interval,
    is_some,
    is_whole,
    misfit,
    of_summary,
)

NONE, TRUE = [None, "3", [], {}], [True, False]


@pytest.mark.parametrize(
    ("fits", "good", "bad"),
    [
        (is_whole, [0, 1, 10**9], [*NONE, -1, 3.0, 0.5]),
        (is_some, [1, 2], [*NONE, 0, -1, 1.0]),
        (is_factor, [1, 1.0, 1.5, 200], [*NONE, *TRUE, 0.999, -2, float("nan"), 1e301]),
        (is_bool, TRUE, [*NONE, 0, 1]),
        (is_interval, [
            [1, 0, 2], [0.0, 0.0, 0.0], [-1.5, -2.5, -0.5], [None] * 3, [3.0, None, None],
            # To the last digits of its ends, or of 1 where they are smaller.
            [5e-10 - 5e-11, 0.0, 0.0], [2 + 9e-10, 0, 4], [2e6 + 1.9e-3, 0, 4e6],
            [-2e6 - 1.9e-3, -4e6, 0],
        ], [
            *NONE, True, [1, 0], [1, 0, 2, 3], [1, 2, 0], [1.1, 0, 2], [0.9, 0, 2],
            [1, None, 2], [1, 0, None], [None, 0, 2], [None, None, 2], ["1", 0, 2],
            [True, True, True], [6e-10, 0.0, 0.0], [2 + 2.1e-9, 0, 4], [2e6 + 2.1e-3, 0, 4e6],
            [-2e6 - 2.1e-3, -4e6, 0], [float("nan")] * 3, [1, 0, 1e301],
        ]),
    ],
)  # fmt: skip
def test_what_a_value_can_be(fits, good, bad):
    assert [value for value in good if not fits(value)] == []
    assert [value for value in bad if fits(value)] == []


SHAPE = {"a": is_bool, "b": [{"c": is_whole}], "d": {"e": [is_whole]}}
WHOLE = {"a": True, "b": [{"c": 1}, {"c": 2}], "d": {"e": [3, 4]}, "more": "of whatever"}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, None), ({"b": []}, None), ({"d": {"e": [], "f": 1}}, None), ({"a": 1}, "a"),
        ({"b": {}}, "b"), ({"b": [{"c": 1}, 3]}, "b.1"), ({"b": [{"c": 1}, {}]}, "b.1.c"),
        ({"b": [{"c": "x"}, {"c": "x"}]}, "b.0.c"), ({"d": []}, "d"), ({"d": {}}, "d.e"),
        ({"d": {"e": 3}}, "d.e"), ({"d": {"e": [0, -1]}}, "d.e.1"),
        ({"a": 1, "b": 3}, "a"),
    ],
)  # fmt: skip
def test_the_place_of_the_first_misfit(changes, place):
    assert misfit({**WHOLE, **changes}, SHAPE) == place
    at = None if place is None else f"at.{place}"
    assert misfit({**WHOLE, **changes}, SHAPE, "at") == at


def test_what_is_missing_is_told_before_what_is_wrong():
    assert misfit({"b": 3}, SHAPE) == "a" and misfit([], SHAPE) == "" and misfit(3, [1], "x") == "x"


METRICS = (
    "balanced_accuracy", "macro_f1", "worst_recall", "auroc", "average_precision", "log_loss",
    "calibration_error", "few", "medium", "many",
)  # fmt: skip


def row(name, base=False, **more):
    """Of two classes, two splits and two groups."""
    found = {
        "row": name, "rule": "sgd", "loss": "ce", "sampling": "shuffled", "reference": False,
        **dict.fromkeys(METRICS, 0.5), "worst_group": 1.0, "recall": [90.0, None],
        "chosen": {"lr": [0.1, None], "of": ["x", 2]}, "seconds": 1.5, "p_holm": None,
        "calibration": {"count": [0, 1, 2, *[3] * 12], "confidence": [None, *[0.5] * 14],
                        "accuracy": [None, *[0.25] * 14]},
        "group_accuracy": [None, 50],
    }  # fmt: skip
    if not base:
        found["difference"] = {metric: [1, 0, 2] for metric in METRICS}
        found["p"] = dict.fromkeys(METRICS, 0.5)
        found["recall_difference"] = [[1, 0, 2], [None] * 3]
    return found | more


SUMMARY = {
    "data": {
        "name": "a", "source": "a.csv", "rows": 9, "features": 1, "classes": 2,
        "class_names": ["p", "q"], "class_counts": [6, 3], "imbalance_factor": 2.0,
        "train_counts": [4, 0], "train_imbalance_factor": 4.0, "text": [], "notes": ["x"],
        "group": {"names": ["g", "h"], "counts": [9, 0]},
    },
    "thresholds": {"many_above": 3, "few_below": 3},
    "splits": {"count": 2, "train": [4, 0], "val": [0, 1], "test": [1, 2], "own_test": False},
    "about": {}, "verdict": "Use b.", "best": "b", "rows": [row("a", base=True), row("b")],
}  # fmt: skip


def changed(changes):
    """With other values at places; an ellipsis takes the field away."""
    found = copy.deepcopy(SUMMARY)
    for place, value in changes.items():
        *path, last = (int(k) if k.isdecimal() else k for k in place.split("."))
        at = found
        for key in path:
            at = at[key]
        at[last] = value
        if value is ...:
            del at[last]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"rows": [row("a", base=True), row("b"), row("c")]},
        {"best": None}, {"best": "a"}, {"data.train_counts": [1, 1]}, {"data.notes": []},
        {"data.group": None, "rows.1.group_accuracy": ..., "rows.0.group_accuracy": ...},
        {"rows.0.rule": None, "rows.0.loss": None, "rows.1.auroc": None, "rows.1.p_holm": 0.5},
        {"rows.0.worst_group": ..., "rows.1.worst_group": ...}, {"rows.1.chosen": {}},
        {"rows.0.logit_gap": 1.0, "rows.1.logit_gap": None}, {"splits.own_test": True},
        {"rows.1.calibration.count.1": 1, "rows.1.calibration.confidence.1": 0.75},
        {"rows.1.difference.auroc": [None] * 3, "about": {"of": [1]}, "splits.train": [1, 1]},
        {"about": {"easier": []}}, {"about": {"easier": ["x"]}},
    ],
)  # fmt: skip
def test_a_summary_that_may_be(changes):
    assert of_summary(changed(changes)) is None


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("data.class_names", ["p"], None), ("data.class_names", ["p", "q", "r"], None),
        ("data.class_counts", [9], None), ("data.train_counts", [4, 0, 0], None),
        ("data.train_counts", [0, 0], None), ("splits.train", [4], None),
        ("splits.val", [0, 1, 1], None), ("splits.test", [1], None),
        ("splits.val", [0, 0], "splits.train"), ("splits.test", [1, 0], "splits.test.1"),
        ("splits.count", 0, None), ("splits.count", 3, "splits.train"),
        ("data.group.counts", [9], None), ("data.group", {"names": ["g"]}, "data.group"),
        ("data.group", {"names": [1], "counts": [1]}, "data.group"), ("data.group", 3, None),
        ("data.group", {"names": ["g"], "counts": [9]}, "rows.0.group_accuracy"),
        ("rows", [], None), ("rows", [row("a"), row("b")], "rows"),
        ("rows", [row("a", base=True), row("b", base=True)], "rows"),
        ("rows", [row("a", base=True), row("a")], "rows"), ("best", "c", None), ("best", 3, None),
        ("rows.1.worst_group", ..., None), ("rows.0.worst_group", "x", None),
        ("rows.1.logit_middle", 1.0, "rows.0.logit_middle"),
        ("rows.1.logit_gap", "x", "rows.0.logit_gap"),
        ("rows.1.recall", [1.0], None), ("rows.0.recall", [1.0, 2.0, 3.0], None),
        ("rows.1.recall", [1.0, "x"], "rows.1.recall.1"),
        ("rows.1.calibration.count", [1] * 14, "rows.1.calibration"),
        ("rows.1.calibration.accuracy", [0.5] * 16, "rows.1.calibration"),
        ("rows.1.calibration.count.0", 1, "rows.1.calibration"),
        ("rows.1.calibration.count.1", 0, "rows.1.calibration"),
        ("rows.1.calibration.accuracy.1", None, "rows.1.calibration"),
        ("rows.1.calibration.count.1", 1.0, None),
        ("rows.1.chosen.lr", [0.1], "rows.1.chosen"), ("rows.1.chosen.lr", 0.1, "rows.1.chosen"),
        ("rows.1.chosen.lr", [0.1, [1]], "rows.1.chosen"), ("rows.1.chosen", [], None),
        ("rows.1.chosen.lr", [True, 0.1], "rows.1.chosen"),
        ("rows.1.group_accuracy", [1.0], None), ("rows.1.group_accuracy", ..., None),
        ("rows.1.group_accuracy", [1, "x"], "rows.1.group_accuracy.1"),
        ("rows.1.difference.few", [1, 2, 0], None), ("rows.1.p.few", "x", None),
        ("rows.1.p", ..., None), ("rows.1.recall_difference", [3], "rows.1.recall_difference.0"),
        ("rows.1.auroc", "x", None), ("rows.0.seconds", None, None), ("about", [], None),
        ("about", {"easier": "x"}, None), ("about", {"easier": [1]}, None),
        ("data.rows", 0, None), ("data.imbalance_factor", 0.5, None), ("verdict", None, None),
        ("thresholds.few_below", 2.5, None), ("splits.own_test", 1, None),
        ("rows.1.reference", 0, None), ("rows.1.sampling", None, None),
        ("rows.1.p_holm", "x", None), ("rows.1.rule", 3, None), ("rows.0.loss", [], None),
        ("data.text", [1], "data.text.0"), ("data.notes", "x", None), ("data.name", 3, None),
        ("data.source", None, None), ("data.class_names", [1, "q"], "data.class_names.0"),
        ("data.features", 1.5, None), ("data.train_imbalance_factor", 0.5, None),
        ("thresholds.many_above", -1, None), ("splits.val", [-1, 1], "splits.val.0"),
    ],
)  # fmt: skip
def test_a_field_of_a_summary_that_is_damaged(place, value, told):
    assert of_summary(changed({place: value})) == (told or place)
