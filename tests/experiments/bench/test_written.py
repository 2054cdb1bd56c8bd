"""How far the files of a table and of a sweep may be off, at both sides of each bound."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.bench import written
from experiments.host.errors import RunError

SPLITS = ("all", "many", "medium", "few")


def line(rule: str, values: list[float], base: list[float] | None, **more: Any) -> dict[str, Any]:
    """Of a table, with the same figures in every split; medium has no classes."""
    found: dict[str, Any] = {"rule": rule, "loss": "ce", "stage2": None}
    found |= {"seeds": list(range(len(values)))}
    for split in SPLITS:
        there = split != "medium"
        found[split] = float(np.mean(values)) if there else None
        found[f"{split}_by_seed"] = values if there else None
    for split in ("all", "few"):
        gains = None if base is None else np.subtract(values, base)
        found[f"paired_{split}"] = None if gains is None else float(gains.mean())
        found[f"paired_{split}_se"] = (
            float(gains.std(ddof=1) / len(gains) ** 0.5) if gains is not None and len(gains) > 1
            else None
        )  # fmt: skip
    return found | more


def csv_of(heads: str, rows: list[list[Any]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in [heads.split(), *rows])


CLASSES = "rule class train_examples accuracy accuracy_se"
CURVES = "rule epoch all all_se many many_se medium medium_se few few_se"


def of_epochs(rule: str, epochs: list[Any], last: Any, before: Any = 10.0) -> list[list[Any]]:
    found = []
    for epoch in epochs:
        value = last if epoch == epochs[-1] else before
        found.append([rule, epoch, value, 1, value, 1, "nan", "nan", value, 1])
    return found


def write(
    out: Path,
    lines: list[dict[str, Any]],
    classes: list[list[Any]] | None = None,
    curves: list[list[Any]] | None = None,
) -> None:
    """A folder of these lines: two classes of each accuracy, two epochs, unless given."""
    whole = [of for of in lines if not of.get("diverged")]
    named = [(of["rule"], of["all"]) for of in whole]
    if classes is None:
        classes = [[name, c, 9 - c, mean, 1] for name, mean in named for c in (0, 1)]
    if curves is None:
        curves = [row for name, mean in named for row in of_epochs(name, [5, 10], mean)]
    (out / "summary.json").write_text(json.dumps(lines))
    (out / "per_class.csv").write_text(csv_of(CLASSES, classes))
    (out / "curves.csv").write_text(csv_of(CURVES, curves))


def said_of(out: Path) -> str:
    """Why a table is damaged; "" where it is none."""
    try:
        written.table(out)
    except RunError as error:
        return str(error).removeprefix(f"{out}/")
    return ""


SGD = line("sgd", [40.0, 50.0], [40.0, 50.0])
SAM = line("sam", [50.0, 66.0], [40.0, 50.0])
LOST = line("gsa", [1.0, 2.0], None, diverged="the loss is nan")
LOST |= {name: None for name in LOST if name.split("_")[0] in (*SPLITS, "paired")}
LINES = "lines.1.{} is not what a table writes"


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path, [SGD, SAM, LOST])
    summary, classes, curves = written.table(tmp_path)
    assert summary == [SGD, SAM, LOST]
    assert list(classes) == ["sgd", "sam"] and curves is not None and list(curves) == list(classes)
    assert [row["accuracy"] for row in classes["sam"]] == ["58.0"] * 2
    assert [row["epoch"] for row in curves["sgd"]] == ["5", "10"]
    (tmp_path / "curves.csv").unlink()
    assert written.table(tmp_path)[2] is None
    write(tmp_path, [line("sgd", [40.0], [40.0]), line("sam", [50.0], [40.0])])
    assert said_of(tmp_path) == ""  # one seed has no error
    sam = line("sam", [50.0, 66.0], None)
    write(tmp_path, [sam | {"memory": 0.5}, sam], [], [])
    assert "is damaged: it has not the lines of each rule" in said_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # Four digits are written, and sums differ by their order: up to a thousandth.
        ({"all": 58.0009}, ""), ({"all": 58.0011}, "all of sam is not what its seeds add up to"),
        ({"paired_few": 13.0009}, ""), ({"paired_few": 12.9989}, "few of sam is not"),
        ({"paired_all_se": 3.0009}, ""), ({"paired_all_se": 3.0011}, "all of sam is not"),
        ({"paired_all_se": None}, "all of sam is not"), ({"paired_few": None}, "few of sam is not"),
        ({"many_by_seed": None}, "many of sam is not"), ({"medium": 58.0}, "medium of sam is not"),
        ({"few_by_seed": [58.0, 58.0, 58.0]}, "few of sam is not"),
        ({"few_by_seed": [15.0, 101.0]}, "few of sam is not"),
        ({"few_by_seed": [101.0, 15.0]}, "few of sam is not"),
        ({"many": 58, "many_by_seed": [15.999, 100.001]}, ""),
        ({"many_by_seed": [15.998, 100.002]}, "many of sam is not"),
        ({"few": 100.002}, LINES.format("few")), ({"few": -0.001}, LINES.format("few")),
        ({"rule": 3}, LINES.format("rule")), ({"loss": None}, LINES.format("loss")),
        ({"stage2": 3}, LINES.format("stage2")), ({"diverged": 3}, LINES.format("diverged")),
        ({"memory": "x"}, LINES.format("memory")), ({"memory": None}, ""),
        ({"seeds": [1, 0]}, "sam has other seeds than sgd"), ({"seeds": []}, LINES.format("seeds")),
        ({"rule": "sgd"}, "a line is there twice"), ({"diverged": None}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_a_line_of_a_table(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path, [SGD, {**SAM, **changes}])
    found = said_of(tmp_path)
    assert (said in found and found.startswith("summary.json is damaged")) if said else not found


def test_sgd_of_other_seeds_after_a_line_is_damage_too(tmp_path: Path) -> None:
    for values in ([40.0, 45.0, 50.0], [45.0], []):
        write(tmp_path, [SAM, {**SGD, "few_by_seed": values}])
        assert "few of sam is not what its seeds add up to" in said_of(tmp_path)


@pytest.mark.parametrize("lines", [[], {}, 3, [3], [SGD, 3], [{**SGD, "all_by_seed": ...}]])
def test_what_is_no_list_of_lines(lines: Any, tmp_path: Path) -> None:
    held = [
        {k: v for k, v in of.items() if v is not ...} if isinstance(of, dict) else of
        for of in lines
    ] if isinstance(lines, list) else lines  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(held))
    assert said_of(tmp_path).startswith("summary.json is damaged: its lines")


# Differences and errors of up to 100 points, which figures of 100.001 in percent may be.
FAR = [[100.001, 0.0], [0.0, 100.001]]


@pytest.mark.parametrize(
    ("values", "base", "changes", "good"),
    [
        ([100.001] * 2, [0.0] * 2, {}, True),
        ([100.001] * 2, [0.0] * 2, {"paired_all": 100.0015}, False),
        ([0.0] * 2, [100.001] * 2, {"paired_all": -100.0005}, True),
        ([0.0] * 2, [100.001] * 2, {"paired_all": -100.0015}, False),
        (*FAR, {}, True), (*FAR, {"paired_few_se": 100.0015}, False),
        ([50.0] * 2, [50.0] * 2, {"paired_few_se": -0.0005}, False),
        ([50.0] * 2, [50.0] * 2, {"paired_few_se": 0.0005}, True),
    ],
)  # fmt: skip
def test_how_large_a_difference_can_be(
    values: list[float], base: list[float], changes: dict[str, Any], good: bool, tmp_path: Path
) -> None:
    write(tmp_path, [line("sgd", base, base), line("sam", values, base, **changes)])
    assert said_of(tmp_path) == "" if good else "is not what a table writes" in said_of(tmp_path)


def test_without_sgd_there_is_nothing_to_differ_from(tmp_path: Path) -> None:
    sam = line("sam", [50.0, 66.0], None)
    write(tmp_path, [sam])
    assert said_of(tmp_path) == ""
    write(tmp_path, [sam | {"paired_all": 0.0}])
    assert "all of sam is not" in said_of(tmp_path)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        # [class, training examples, accuracy, its error] of SAM, whose mean is 58.
        ([[0, 9, 50, 1], [1, 8, 66, 1]], True), ([[0, 9, 50.0017, 1], [1, 8, 66, 1]], True),
        ([[0, 9, 50.0023, 1], [1, 8, 66, 1]], False), ([[0, 8, 50, 1], [1, 9, 66, 1]], False),
        ([[0, 9, 58, 1]], False), ([[1, 9, 50, 1], [0, 8, 66, 1]], False),
        ([[0, 9, 15.999, 1], [1, 8, 100.001, 1]], True),
        ([[0, 9, 15.998, 1], [1, 8, 100.002, 1]], False),
        ([[0, 9, 117, 1], [1, 8, -1, 1]], False),
        ([[0, 9, 50, "nan"], [1, 8, 66, 100.001]], True), ([[0, 9, 50, 0], [1, 8, 66, 0]], True),
        ([[0, 9, 50, 1], [1, 8, 66, 100.002]], False), ([[0, 9, 50, 1], [1, 8, 66, -1]], False),
        ([[0, 9, 50, ""], [1, 8, 66, ""]], True), ([[0, 9, 50, ""], [1, 8, 66, 1]], False),
        ([[0, 9, 50, 1], [1, 8, 66, ""]], False), ([[0, 9, 50, "x"], [1, 8, 66, 1]], False),
    ],
)  # fmt: skip
def test_the_classes_of_a_rule(rows: list[list[Any]], good: bool, tmp_path: Path) -> None:
    base = [["sgd", c, 9 - c, 45, 1] for c in (0, 1)]
    write(tmp_path, [SGD, SAM], [*base, *(["sam", *row] for row in rows)])
    said = "" if good else "per_class.csv is damaged: its classes of sam are not those of summary"
    assert said_of(tmp_path).startswith(said) and bool(said_of(tmp_path)) != good


@pytest.mark.parametrize(("size", "good"), [(0, True), (-1, False), ("x", False), (1.5, False)])
def test_how_few_examples_a_class_can_have(size: Any, good: bool, tmp_path: Path) -> None:
    classes = [[name, c, (9, size)[c], mean, 1] for name, mean in (("sgd", 45), ("sam", 58))
               for c in (0, 1)]  # fmt: skip
    write(tmp_path, [SGD, SAM], classes)
    assert (said_of(tmp_path) == "") == good


@pytest.mark.parametrize(
    ("epochs", "good"),
    [
        ([0], True), ([1], True), ([5], True), ([5, 6], True), ([5, 10, 15], True), ([1, 2], True),
        ([6], False), ([5, 11], False), ([0, 5], False), ([5, 5], False), ([5, 4], False),
        ([-1], False), (["x"], False), ([-1, 0], False),
    ],
)  # fmt: skip
def test_epochs_follow_one_another_by_at_most_five(
    epochs: list[Any], good: bool, tmp_path: Path
) -> None:
    """As many as are run at a time; of none at all there is the start alone."""
    named = (("sgd", 45.0), ("sam", 58.0))
    curves = [row for name, mean in named for row in of_epochs(name, epochs, mean)]
    write(tmp_path, [SGD, SAM], curves=curves)
    assert said_of(tmp_path).startswith("" if good else "curves.csv is damaged: its epochs of sgd")
    assert (said_of(tmp_path) == "") == good


def test_rules_of_one_stage_have_equally_many_epochs(tmp_path: Path) -> None:
    curves = of_epochs("sgd", [5, 10], 45.0) + of_epochs("sam", [5], 58.0)
    write(tmp_path, [SGD, SAM], curves=curves)
    assert "its epochs of sam are not those" in said_of(tmp_path)
    then = SAM | {"stage2": "crt"}
    curves = [[row[0].replace("sam", "sam > crt"), *row[1:]] for row in curves]
    classes = [[n, c, 9 - c, m, 1] for n, m in (("sgd", 45), ("sam > crt", 58)) for c in (0, 1)]
    write(tmp_path, [SGD, then], classes, curves)
    assert said_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("last", "before", "good"),
    [
        (58.0009, 10, True), (58.0011, 10, False), (58, 100.001, True), (58, 100.002, False),
        (58, -1, False), (58, 0, True), (58, "nan", False), (58, "", False),
    ],
)  # fmt: skip
def test_the_last_epoch_is_what_the_summary_has(
    last: Any, before: Any, good: bool, tmp_path: Path
) -> None:
    curves = of_epochs("sgd", [5, 10], 45.0) + of_epochs("sam", [5, 10], last, before)
    write(tmp_path, [SGD, SAM], curves=curves)
    assert (said_of(tmp_path) == "") == good
    assert said_of(tmp_path).startswith("" if good else "curves.csv is damaged: its epochs of sam")


def test_an_error_of_an_epoch_may_not_be_missing(tmp_path: Path) -> None:
    curves = of_epochs("sgd", [5, 10], 45.0)
    curves[1][3] = ""
    write(tmp_path, [SGD], curves=curves)
    assert "its epochs of sgd are not those" in said_of(tmp_path)


# ---- a sweep ------------------------------------------------------------------------------------


def point(at: dict[str, float], chosen: bool = False, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"point": at, "seeds": [0, 1], "diverged": None, "best_val": chosen}
    for split in SPLITS:
        found |= {f"test_{split}": 50.0, f"test_{split}_sgd_se": 1.0}
    return found | more


GRID = [{"eta": e, "rho": r} for e, r in itertools.product((5.0, 30.0), (0.1, 0.2))]


def swept(chosen: int, **lost: Any) -> list[dict[str, Any]]:
    """SGD and the grid; which of them was chosen; by number, why a point diverged."""
    return [
        point(at, k == chosen, diverged=lost.get(f"at_{k}")) for k, at in enumerate([{}, *GRID])
    ]


def of_sweep(out: Path, lines: Any, rule: str = "imbsam") -> str:
    (out / "summary.json").write_text(json.dumps(lines))
    (out / "sweep.csv").write_text("rule\n")
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):
        (out / "sweep.csv").write_bytes(written.as_csv(written.sweep_records(lines, rule)).encode())
    try:
        assert written.sweep(out, rule) == lines
    except RunError as error:
        return str(error)
    return ""


ONE = [point({}, True), point({"rho": 0.1})]


@pytest.mark.parametrize("lines", [
    swept(0), swept(4), swept(1, at_2="nan"), ONE,
    # Where SGD alone was trained to its end nothing is chosen.
    swept(-1, at_1="nan", at_2="nan", at_3="nan", at_4="nan"),
    [point({}), point({"rho": 0.1}, diverged="nan")],
    [point({}, True, test_few=None, test_few_sgd_se=None), point({"rho": 0.1})],
    [point({}, True), point({"rho": 0.1}, test_all=100.001, test_all_sgd_se=100.001)],
    [{k: v for k, v in of.items() if k != "diverged"} for of in ONE],
    [point({}, True), point({"rho": 0.1}), point({"rho": 0.5})],
    [point({}, True), point({"rho": 1.0}), point({"rho": 8.0}), point({"rho": 32.0})],
])  # fmt: skip
def test_a_sweep_is_read_as_it_was_written(lines: list[Any], tmp_path: Path) -> None:
    assert of_sweep(tmp_path, lines) == ""
    if all("diverged" in of for of in lines):
        (tmp_path / "sweep.csv").write_text("rule,rho\r\nsgd,1\r\n")
        with pytest.raises(RunError, match=r"says else than summary.json"):
            written.sweep(tmp_path, "imbsam")


def test_a_sweep_without_its_lines_is_a_sentence(tmp_path: Path) -> None:
    assert of_sweep(tmp_path, ONE) == ""
    (tmp_path / "sweep.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"cannot read .*sweep.csv: it is not UTF-8 text"):
        written.sweep(tmp_path, "imbsam")
    (tmp_path / "sweep.csv").unlink()
    with pytest.raises(RunError, match=r"cannot read .*sweep.csv"):
        written.sweep(tmp_path, "imbsam")


GRID_SAID, SEEDS_SAID = "its points are not SGD and a grid", "its points have different seeds"
CHOSEN_SAID = "validation has not chosen one point"


@pytest.mark.parametrize(("lines", "said"), [
    (swept(-1), CHOSEN_SAID), (swept(1, at_1="nan"), CHOSEN_SAID),
    (swept(0, at_1="nan", at_2="nan", at_3="nan", at_4="nan"), CHOSEN_SAID),
    ([point({}, True), point({"rho": 0.1}, True)], CHOSEN_SAID),
    (swept(-1, at_1="nan", at_2="nan", at_3="nan"), CHOSEN_SAID),
    (swept(0)[:-1], GRID_SAID), (swept(0)[1:], GRID_SAID), (swept(0)[:1], GRID_SAID),
    ([swept(0)[k] for k in (0, 2, 1, 3, 4)], GRID_SAID),
    ([point({}, True), point({})], GRID_SAID),
    ([point({}, True), point({"rho": 0.1}), point({"eta": 0.1})], GRID_SAID),
    ([*swept(0)[:4], point({"rho": 0.2, "eta": 30.0})], GRID_SAID),
    ([point({"rho": 0.0}, True), point({"rho": 0.1})], GRID_SAID),
    ([*swept(0)[:4], point(GRID[3], seeds=[1, 0])], SEEDS_SAID),
    ([point({}, True), point({"rho": 0.1}, seeds=[0])], SEEDS_SAID),
    ([point({}, True), point({"rho": "x"})], "its lines.1.point is"),
    ([point({}, True), point({"rho": 0.1, "eta": "x"})], "its lines.1.point is"),
    ([point({}, True), point({"rho": 0.1}, best_val=1)], "its lines.1.best_val is"),
    ([point({}, True), point({"rho": 0.1}, test_few=100.002)], "its lines.1.test_few is"),
    ([point({}, True), point({"rho": 0.1}, test_few_sgd_se=-1)], "its lines.1.test_few_sgd_se is"),
    ([point({}, True), point({"rho": 0.1}, diverged=1)], "its lines.1.diverged is"),
    ([], "its lines is"), (3, "its lines is"),
])  # fmt: skip
def test_a_sweep_that_is_none(lines: Any, said: str, tmp_path: Path) -> None:
    assert f"summary.json is damaged: {said}" in of_sweep(tmp_path, lines)


@pytest.mark.parametrize(
    ("seeds", "good"),
    [
        ([0], True), ([2**32 - 1], True), ([3, 1], True), ([2**32], False), ([-1], False),
        ([0, 0], False), ([0.0], False), ([True], False), ([], False), ({}, False),
        ([0, "1"], False),
    ],
)  # fmt: skip
def test_seeds_are_different_whole_numbers_of_32_bits(
    seeds: Any, good: bool, tmp_path: Path
) -> None:
    lines = [{**of, "seeds": seeds} for of in swept(0)]
    said = of_sweep(tmp_path, lines)
    assert said == "" if good else "its lines.0.seeds is not what a sweep writes" in said
