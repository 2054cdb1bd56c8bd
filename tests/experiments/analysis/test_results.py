"""What measurements add up to, by hand: figures of a seed, lines, ratios, correlations, tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.analysis import results
from experiments.host.errors import RunError
from made_subjects import COUNTS, subject

GROUPS = {name: np.array(of, bool) for name, of in (
    ("all", [1, 1, 1, 1]), ("tail", [0, 0, 1, 1]), ("few", [0, 0, 1, 1]), ("last", [0, 0, 0, 1]),
)}  # fmt: skip


def found(seeds: int = 2) -> dict[str, Any]:
    """Of seed k the numbers of seed 0, times 1 + k; of the class without test rows no accuracy."""

    def each(x: Any) -> Any:
        return (np.asarray(x, float)[None] * np.arange(1.0, 1 + seeds)[:, None]).tolist()

    def level(total: Any) -> dict[str, Any]:
        of = {"correct": each([6, 3, 1, 0]), "total": [total] * seeds, "loss": each([3, 2, 4, 5])}
        return of if seeds > 1 else {name: x[0] for name, x in of.items()}

    return {
        "levels": {"train": level(COUNTS.tolist()), "test": level([10, 10, 5, 0])},
        "ends of all": {"smallest": [-1.0, -2.0], "largest": [4.0, 8.0]},
        "ends of tail": {"smallest": [-3.0, 0.5], "largest": [6.0, -1.0]},
        "traces": {name: each([1, 3, 8]) for name in GROUPS},
        "rises": {rise: each(np.arange(4.0) + k) for k, rise in enumerate(
            ("sam", "imbsam", "random", "random_error"))},
        "worst": {"all": [0.5, 0.6], "tail": [0.7, 0.8], "few": [0.9, 1.0]},
    }  # fmt: skip


def test_the_figures_of_a_seed() -> None:
    tail = results.figures(subject(), GROUPS, found(), 1)["tail"]
    assert tail == {
        "examples": 5, "largest": -1, "smallest": 0.5, "ratio": None,  # no largest one over 0
        "trace": 8, "trace_error": pytest.approx(2 * math.sqrt((9 + 1 + 16) / 2 / 3)),
        "sam": 2, "imbsam": 4, "random": 6, "random_error": 8, "own": None, "worst": 0.8,
        "train_loss": 2 * 9 / 5, "train_accuracy": 100 * 2 / 5,
        "test_loss": 2 * 9 / 5, "test_accuracy": 100 * 2 / 5,
    }  # fmt: skip
    first = results.figures(subject(), GROUPS, found() | {"own": {"own": [[1, 2, 3, 4]] * 2}}, 0)
    assert first["tail"]["ratio"] == 3 / 6 and first["all"]["ratio"] == 1 / 4
    assert first["few"]["largest"] == 6 and first["few"]["worst"] == 0.9  # by its first name
    assert [line["own"] for line in first.values()] == [1, 2, 3, 4]
    last = first["last"]
    assert last["largest"] is last["smallest"] is last["ratio"] is last["worst"] is None
    assert (last["train_loss"], last["train_accuracy"]) == (2.5, 0)
    assert last["test_loss"] is last["test_accuracy"] is None  # no such row is tested


def test_figures_of_one_seed_and_of_outputs_that_are_no_logits() -> None:
    one = subject(1)
    lines = results.figures(one, GROUPS, found(1), 0)
    assert lines["all"]["test_accuracy"] == 100 * 10 / 25 and lines["all"]["test_loss"] == 14 / 25
    scored = results.figures(one._replace(loss=lambda *_: 0), GROUPS, found(1), 0)["all"]
    assert scored["train_accuracy"] is None and scored["train_loss"] == 14 / 20


# ---- lines --------------------------------------------------------------------------------------


def record(rule: str, seed: int, epoch: int = 3, **tail: Any) -> dict[str, Any]:
    one = subject(2, rule)._replace(epoch=epoch)
    line = dict.fromkeys((*results.MEASURES, *results.LEVELS), 2.0)
    groups = {"all": line, "head": line, "tail": line | tail}
    return results.record(one, seed, groups)


def test_a_record_says_what_it_is_of() -> None:
    found = record("sam", 1)
    told = {
        "run": "run",
        "name": "sam rho=0.5, cross_entropy",
        "rule": "sam",
        "seed": 1,
        "epoch": 3,
    }
    assert {name: found[name] for name in told} == told and set(found["groups"]) == {
        "all", "head", "tail"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ({"rule_args": {"rho": 0.1, "eta": 5}}, "sam rho=0.1, ce"),
        ({"rule_args": {"head_rho": 1, "rho": "late(1)"}}, "sam head_rho=1, ce"),
        ({"rule_args": None, "stage2": "crt"}, "sam, ce > crt"),
        ({"rule_args": {}, "on": "glass"}, "sam, ce, glass"),
    ],
)
def test_what_a_line_is_called(described: dict[str, Any], name: str) -> None:
    assert results.name_of({"rule": "sam", "loss": "ce", **described}) == name


def test_means_errors_and_ratios_of_a_line() -> None:
    records = [
        record("sgd", 0, trace=4.0), record("sgd", 1, trace=8.0),
        record("sam", 0, trace=2.0, train_loss=0.5), record("sam", 1, trace=8.0, train_loss=0.0),
        record("sam", 1, trace=32.0, own=None),
    ]  # fmt: skip
    records[-1]["seed"] = 7  # without an SGD
    sgd, sam = results.summarise(records)
    assert (sam["seeds"], sam["rule_args"], sam["epoch"]) == ([0, 1, 7], {"rho": 0.5}, 3)
    tail = sam["groups"]["tail"]
    error = pytest.approx(np.std([2, 8, 32], ddof=1) / math.sqrt(3))
    assert tail["trace"] == {"mean": 14, "error": error, "n": 3} and tail["own"]["n"] == 2
    assert tail["to_sgd"]["trace"] == {"mean": -1, "error": 1, "n": 2}  # of -2 and 0
    assert sgd["groups"]["tail"]["to_sgd"] is None
    ratio = sam["tail_to_head"]["trace"]  # of 1, 4 and 16 to 1
    spread = 2 * math.log(4) / math.sqrt(3)
    assert ratio["ratio"] == pytest.approx(4) and ratio["n"] == 3
    assert (ratio["low"], ratio["high"]) == pytest.approx(
        (4 * math.exp(-spread), 4 * math.exp(spread))
    )
    per_loss = sam["tail_to_head"]["trace_per_loss"]  # 2 / 0.5 and 32 / 2, to 1; of no loss none
    assert per_loss["ratio"] == pytest.approx(8) and per_loss["n"] == 2


def test_what_has_no_mean_and_no_ratio() -> None:
    assert results._mean([None, None]) is None
    assert results._mean([3.0, None]) == {"mean": 3, "error": None, "n": 1}
    assert results._log_ratio([(None, 1.0), (1.0, 0.0), (-1.0, 1.0), (0.0, 2.0)]) is None
    alone = results._log_ratio([(6.0, 3.0)])
    assert alone is not None
    assert (alone["low"], alone["ratio"], alone["high"]) == pytest.approx((2, 2, 2))


def test_differences_are_to_the_same_setting() -> None:
    base = record("sgd", 0, trace=1.0)
    for name, value in (("setting", {"lr": 1}), ("loss", "other"), ("loss_args", {"tau": 1}),
                        ("stage2", "crt"), ("stage2_args", {"epochs": 1})):  # fmt: skip
        other = {**record("sam", 0), name: value}
        assert results.summarise([base, other])[1]["groups"]["tail"]["to_sgd"] is None, name
    assert results.summarise([base, record("sam", 0)])[1]["groups"]["tail"]["to_sgd"]


def test_lines_are_of_models_that_differ_in_the_seed_alone() -> None:
    """Two etas, two ascents, two kinds of passes: two lines, told apart by what differs."""
    for name, values in (("rule_args", ({"rho": 0.1, "eta": 20}, {"rho": 0.1, "eta": 8})),
                         ("ascent", ({}, {"p": 1.0})), ("passes", ({}, {"examples": "x"})),
                         ("setting", ({"lr": 1}, {"lr": 2}))):  # fmt: skip
        records = [{**record("imbsam", s), name: value} for value in values for s in (0, 1)]
        lines = results.summarise(records)
        assert [line["seeds"] for line in lines] == [[0, 1], [0, 1]], name
        assert len({line["name"] for line in lines}) == 2, name
        assert all(line["name"].startswith(records[0]["name"]) for line in lines)
    assert lines[1]["name"].endswith("(lr=2)")
    subjects = [
        subject(2, "sam")._replace(description={**subject(2, "sam").description, "ascent": ascent})
        for ascent in ({}, {"p": 1.0}, {})
    ]
    names = results.line_names(subjects)
    assert names[0] == names[2] != names[1] and names[1].endswith("(p=1.0)")
    # Of one rule at one epoch alone its name is the same as at the others.
    at = [
        {**record("imbsam", 0, epoch=e), "setting": {"lr": lr}}
        for lr, e in ((1, 3), (1, 9), (2, 9))
    ]
    assert [x["name"][-6:] for x in results.summarise(at)] == ["(lr=1)", "(lr=1)", "(lr=2)"]


def test_a_seed_that_is_there_twice_is_refused_before_anything_is_measured() -> None:
    one, other = subject(2, "sam"), subject(2, "imbsam")
    results.refuse_twice([one, other, one._replace(epoch=9)])
    with pytest.raises(RunError, match="run and again are of one setting and seed"):
        results.refuse_twice([one, other, one._replace(run="again")])


def test_lines_without_their_sgd_are_named() -> None:
    sgd, other = record("sgd", 0), {**record("sam", 0), "setting": {"lr": 9}}
    lines = results.summarise([sgd, record("imbsam", 0), other, record("sam", 1)])
    names = results.without_sgd(lines)
    assert names == [lines[2]["name"], lines[3]["name"]] and len(set(names)) == 2
    assert results.without_sgd(results.summarise([other])) == []  # nothing to be compared with


# ---- what flattening explains -------------------------------------------------------------------


def test_correlations_over_lines_and_within_them() -> None:
    """Of three rules and two seeds; what is not over 0, or not measured, is left out."""
    gains = {"sam": (1.0, 2.0), "imbsam": (5.0, 3.0), "focal_sam": (2.0, 9.0)}
    traces = {"sam": (4.0, 2.0), "imbsam": (2.0, 0.5), "focal_sam": (1.0, 0.0625)}
    records = [record("sgd", s, trace=8.0, test_accuracy=50.0, own=None) for s in (0, 1)]
    for rule, of in gains.items():
        records += [
            record(rule, s, trace=traces[rule][s], test_accuracy=50 + of[s],
                   largest=-1.0 if rule == "sam" else 2.0, own=1.0)
            for s in (0, 1)
        ]  # fmt: skip
    found = results.explained(records)
    # Means of the logarithm: -1.5, -3 and -5 of log 2; gains 1.5, 4 and 5.5.
    assert found["trace"]["lines"]["rho"] == pytest.approx(-1)
    assert found["trace"]["lines"]["n"] == 3
    # Less the means: 0.5, 1 and 2 of log 2 to both sides, and the gains.
    x, y = [0.5, -0.5, 1, -1, 2, -2], [-0.5, 0.5, 1, -1, -3.5, 3.5]
    want = stats.spearmanr(x, y)
    inside = found["trace"]["seeds"]
    assert (inside["rho"], inside["p"], inside["n"]) == pytest.approx((*want, 6))
    assert "own" not in found  # SGD has none
    assert found["largest"]["lines"] is None  # two lines are left
    assert found["sam"]["lines"] is None  # all flatten alike


# ---- tables -------------------------------------------------------------------------------------


def test_the_cells_of_the_tables() -> None:
    sgd, sam = results.summarise(
        [record("sgd", s, trace=1.0) for s in (0, 1)]
        + [record("sam", s, trace=3.0 + s, own=None, test_accuracy=62.5) for s in (0, 1)]
    )
    lines = results.table([sgd, sam], ("trace", "own")).splitlines()
    assert lines[:2] == [
        "| run | epoch | group | trace | rise, own e | train % | test % |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    name = "sam rho=0.5, cross_entropy"
    assert lines[-1] == f"| {name} | 3 | tail | 3.5 ± 0.5 | - | 2 ± 0 | 62.5 ± 0 |"
    assert len(lines) == 2 + 2 * 3
    less = results.differences([sgd, sam], ("trace", "own")).splitlines()
    assert less[0] == "| less SGD | epoch | group | trace | rise, own e | train % | test % |"
    assert less[1] == lines[1] and len(less) == 2 + 3
    assert less[-1] == f"| {name} | 3 | tail | 2.5 ± 0.5 | - | 0 ± 0 | 60.5 ± 0 |"
    assert results.differences([sgd]) == ""
    assert results._cell({"mean": 1234.5, "error": None}) == "1.23e+03"


# ---- at the edges -------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "ratio"), [(0.0, None), (0.5, 4), (-1.0, None)])
def test_a_saddle_has_a_largest_eigenvalue_over_nothing(largest: float, ratio: Any) -> None:
    told = found() | {"ends of all": {"smallest": [-2.0] * 2, "largest": [largest] * 2}}
    assert results.figures(subject(), GROUPS, told, 0)["all"]["ratio"] == ratio


def test_measures_at_zero_explain_nothing_and_below_one_do() -> None:
    records = [record("sgd", 0, trace=0.5, largest=0.0, test_accuracy=50.0)]
    for k, rule in enumerate(("sam", "imbsam", "gsa"), start=1):
        records.append(record(rule, 0, trace=0.5 / 2**k, largest=1.0 * k, test_accuracy=50.0 + k))
    records.append(record("focal_sam", 0, trace=0.1, test_accuracy=None))
    explained = results.explained(records)
    assert explained["trace"]["lines"] == {"rho": pytest.approx(-1), "p": pytest.approx(0), "n": 3}
    assert "largest" not in explained  # SGD's is 0
    # Of ranks that are as they should be, or turned in one place.
    turned = [record(rule, 0, trace=t, test_accuracy=50.0 + t) for rule, t in (
        ("sam", 0.25), ("imbsam", 0.375), ("gsa", 1.0))]  # fmt: skip
    assert results.explained([records[0], *turned])["trace"]["lines"]["rho"] == pytest.approx(1)


def test_ratios_of_numbers_below_one() -> None:
    one = results._log_ratio([(0.5, 2.0)])
    assert one is not None and one["ratio"] == pytest.approx(0.25)
    assert results._log_ratio([(None, None), (2.0, None)]) is None


def test_a_setting_is_the_same_in_whatever_order_it_stands() -> None:
    """And what differs stands in the order of the alphabet."""
    one = {**record("sam", 0), "setting": {"lr": 1, "m": 2}, "rule_args": {"rho": 1, "eta": 2}}
    other = {**record("sam", 1), "setting": {"m": 2, "lr": 1}, "rule_args": {"eta": 2, "rho": 1}}
    (line,) = results.summarise([one, other])
    assert line["seeds"] == [0, 1]
    names = "gbfadceh"
    both = [{**one, "setting": dict.fromkeys(names, value)} for value in (1, 2)]
    told = [line["name"] for line in results.summarise(both)]
    assert told[1] == f"{one['name']} ({', '.join(f'{name}=2' for name in sorted(names))})"
