"""Plots are drawn again from files that fit together, or are left as they are."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import redraw
from experiments.anomaly import report as anomaly_report
from experiments.anomaly.training import Result
from experiments.bench import folder, grid, tables
from experiments.bench.jobs import Line
from experiments.bench.training import Curve
from experiments.host.errors import RunError
from experiments.reports import drawing
from made_reports import make, save

Damage = Callable[[Path], Any]


def of_json(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(at: Path) -> None:
        (at / name).write_text(json.dumps(change(json.loads((at / name).read_text()))))

    return damage


def of_lines(name: str, change: Callable[[list[str]], list[str]]) -> Damage:
    """Of a file's lines but the first, its heads."""

    def damage(at: Path) -> None:
        first, *lines = (at / name).read_text().splitlines()
        (at / name).write_text("\n".join([first, *change(lines), ""]))

    return damage


def of_cell(name: str, column: str, value: str, line: int = 0) -> Damage:
    def damage(at: Path) -> None:
        rows = [*csv.DictReader((at / name).read_text().splitlines())]
        rows[line][column] = value
        with open(at / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    return damage


def within(value: Any, *path: Any) -> Callable[[Any], Any]:
    """A change: another value at a path."""

    def change(whole: Any) -> Any:
        at = whole
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        return whole

    return change


# ---- a folder of each kind ----------------------------------------------------------------------


def a_run(at: Path) -> None:
    save(at, 0, epochs=3)
    lines = [
        {"epoch": e, "step": 4 * e, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 50.0,
         **{f"test_{split}": 10.0 * e for split in ("many", "medium", "few", "all")}}
        for e in (1, 2, 3)
    ]  # fmt: skip
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def a_table(at: Path) -> None:
    def line(rule: str, right: int) -> Line:
        described = {"rule": rule, "loss": "cross_entropy", "stage2": None}
        splits = {s: np.array([[5.0, 6.0], [10.0 * right, 10.0 * right]]) for s in tables.SPLITS}
        correct, total = np.full((2, 3), right), np.full((2, 3), 10)
        return Line(described, Curve([5, 8], None, splits, correct, total, np.ones(2)))  # type: ignore[arg-type]

    at.mkdir()
    lines = [line("sgd", 4), line("sam", 5), line("imbsam", 6)]
    folder.write_table(at, lines, tables.summarise(lines, [0, 1]), np.array([40, 9, 3]))


def a_sweep(at: Path) -> None:
    at.mkdir()
    values = {"eta": [5.0, 30.0], "rho": [0.1, 0.2]}
    of_point = {s: np.array([50.0, 52.0]) for s in tables.SPLITS}
    tried = [grid.Tried(point, of_point, of_point) for point in [{}, *grid.points_of(values)]]
    (at / "config.json").write_text(json.dumps({"rule": "imbsam"}))
    folder.write_sweep(at, grid.summarise(tried, [0, 1]), values, "imbsam")


def an_anomaly(at: Path) -> None:
    at.mkdir()
    config = {"datasets": ["a", "b"], "seeds": [0, 1], "rule": ["sgd", "sam"], "method": ["devnet"],
              "label_ratio": [0.05, 0.25], "protocol": ["adbench", "full"]}  # fmt: skip
    results = [
        Result(dataset, "devnet", rule, seed, ratio, protocol, 90.0 + seed, 50.0, 80.0, 1.0)
        for protocol, ratio in (("adbench", 0.05), ("adbench", 0.25), ("full", 1.0))
        for dataset in "ab" for rule in ("sgd", "sam") for seed in (0, 1)
    ]  # fmt: skip
    anomaly_report.write_runs(at / "runs.csv", results)
    (at / "config.json").write_text(json.dumps(config))
    groups = anomaly_report.summarise(results, config["rule"])
    (at / "summary.json").write_text(json.dumps({"groups": groups}))


def some_gains(at: Path) -> None:
    at.mkdir()
    panel = {"title": "x", "counts": [9, 3], "gain": [1.0, None], "se": [0.5, None], "eta": 3.0,
             "thresholds": [5, 4]}  # fmt: skip
    (at / "gains.json").write_text(json.dumps([panel, {**panel, "eta": None}]))


MADE = {
    "run": (a_run, ["per_class", "curves"]),
    "table": (a_table, ["per_class", "curves", "gains"]),
    "sweep": (a_sweep, ["sweep"]),
    "anomaly": (an_anomaly, ["curves_adbench", "curves_full"]),
    "gains": (some_gains, ["gain_per_class"]),
}


def drop(*places: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line for k, line in enumerate(lines) if k not in places]


NO_SEEDS: tuple[Any, ...] = ([0, -1], [0, 1.0], [0, 2**32], [False, True])
DAMAGED: dict[str, list[Damage]] = {
    "run": [
        of_lines("per_class.csv", drop(2)), of_lines("per_class.csv", drop(0, 1, 2)),
        of_lines("per_class.csv", lambda x: [*x, x[0]]),
        of_lines("per_class.csv", lambda x: [x[0], x[0], x[2]]),
        lambda at: (at / "per_class.csv").write_text(""),
        lambda at: (at / "per_class.csv").write_bytes(b"class\xff\n"),
        lambda at: (at / "per_class.csv").write_text((at / "per_class.csv").read_text()[:-9]),
        *(of_cell("per_class.csv", "correct", value) for value in ("-1", "1001", "x", "699")),
        of_cell("per_class.csv", "train_examples", "501"),
        lambda at: (at / "metrics.jsonl").write_text(""),
        of_lines("metrics.jsonl", drop(0, 1)), of_lines("metrics.jsonl", drop(0)),
        of_json("report.json", within(2, "epochs")), of_json("report.json", within(4, "epochs")),
        of_json("report.json", within(49.0, "all")), of_json("report.json", lambda x: {"a": 1}),
        of_lines("metrics.jsonl", lambda x: [x[0].replace("20.0", "200.0"), x[1]]),
    ],
    "table": [
        *(of_lines(name, drop(*places)) for name in ("per_class.csv", "curves.csv")
          for places in ((0,), (1,), (2, 3), range(6), range(9))),
        *(of_lines(name, lambda x: [*x, x[0]]) for name in ("per_class.csv", "curves.csv")),
        of_lines("per_class.csv", lambda x: [x[0], *x[:2], *x[3:]]),
        of_lines("curves.csv", drop(0, 2, 4)), of_lines("curves.csv", drop(1, 3, 5)),
        *(of_cell("per_class.csv", "accuracy", v) for v in ("500", "-3", "nan", "inf", "", "39")),
        *(of_cell("per_class.csv", "accuracy_se", value) for value in ("-1", "", "1e308")),
        *(of_cell("curves.csv", "few", value) for value in ("500", "-3", "nan", "inf", "")),
        of_cell("curves.csv", "epoch", "0"), of_cell("per_class.csv", "train_examples", "41"),
        of_json("summary.json", lambda x: []), of_json("summary.json", lambda x: x[:2]),
        of_json("summary.json", lambda x: [*x, x[0]]), of_json("summary.json", lambda x: x[::-1]),
        *(of_json("summary.json", lambda x, v=v: [{**y, "seeds": v} for y in x])
          for v in ([], [0], [0, 0], 3, [0, 1, 2], *NO_SEEDS)),
        *(of_json("summary.json", within(value, 1, name)) for value in (1e308, "x", None, 5.0)
          for name in ("all", "paired_all", "paired_few_se", "all_by_seed", "rule")),
        of_json("summary.json", within("lost", 1, "diverged")),
    ],
    "sweep": [
        of_json("summary.json", drop(2)), of_json("summary.json", drop(4)),
        of_json("summary.json", lambda x: [*x, x[1]]), of_json("summary.json", lambda x: x[:1]),
        of_json("summary.json", lambda x: []), of_json("summary.json", lambda x: x[1:]),
        of_lines("sweep.csv", drop(1)), of_lines("sweep.csv", lambda x: [*x, x[-1]]),
        of_cell("sweep.csv", "test_few", "51.5"),
        *(of_json("summary.json", within(value, 2, "test_few"))
          for value in (float("inf"), "x", 1e308, -1, 51.5, None, [1])),
        *(of_json("summary.json", within(value, 2, "point"))
          for value in ({}, {"rho": 0.2}, {"eta": "x", "rho": 0.2}, 3, {"eta": 5.0, "rho": 0.3})),
        of_json("summary.json", within([], 2, "seeds")),
        *(of_json("summary.json", lambda x, v=v: [{**y, "seeds": v} for y in x]) for v in NO_SEEDS),
        of_json("summary.json", within(True, 2, "best_val")),
        of_json("config.json", within("sam", "rule")), of_json("config.json", lambda x: {}),
    ],
    "anomaly": [
        *(of_json("summary.json", lambda x, k=k: {"groups": drop(k)(x["groups"])}) for k in (0, 5)),
        of_json("summary.json", lambda x: {"groups": [*x["groups"], x["groups"][0]]}),
        of_json("summary.json", within([], "groups")),
        *(of_json("summary.json", within(value, "groups", 1, name)) for name, value in (
            ("auroc", 9999), ("auroc", 91.0), ("auroc", None), ("ap_normal", "x"), ("auroc_sd", -1),
            ("label_ratio", 0), ("protocol", 5), ("protocol", "../../evil"), ("method", "x"),
            ("seeds", 3), ("datasets", True),
        )),
        of_lines("runs.csv", drop(3)), of_lines("runs.csv", drop(*range(24))),
        of_cell("runs.csv", "auroc", "9999"), of_cell("runs.csv", "auroc", "nan"),
        of_cell("runs.csv", "protocol", "../../evil"), of_cell("runs.csv", "seed", "x"),
        of_json("config.json", within(["adbench"], "protocol")),
        of_json("config.json", lambda x: {}),
    ],
    "gains": [
        of_json("gains.json", lambda x: []), of_json("gains.json", lambda x: {"a": 1}),
        *(of_json("gains.json", within(value, 1, name)) for name, value in (
            ("counts", [9]), ("counts", [9, -1]), ("gain", [1.0]), ("gain", [500.0, 1.0]),
            ("gain", [float("nan"), 1.0]), ("se", [-1.0, 0.0]), ("title", 3), ("eta", "x"),
            ("thresholds", [1]),
        )),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "save", lambda figure, path, dpi=0: path.write_text("drawn"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of each kind."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save", lambda figure, path, dpi=0: path.write_text("drawn"))
        for kind, (made, _) in MADE.items():
            made(out / kind)
    return out


@pytest.mark.parametrize("kind", MADE)
def test_whole_folders_are_drawn(kind: str, whole: Path) -> None:
    made = redraw.redraw(whole / kind)
    assert made == [whole / kind / f"{name}.png" for name in MADE[kind][1]]


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, k) for kind, found in DAMAGED.items() for k in range(len(found))]
)
def test_plots_of_damaged_files_stay_as_they_are(
    kind: str, number: int, whole: Path, tmp_path: Path
) -> None:
    at = tmp_path / "folder" / kind
    shutil.copytree(whole / kind, at)
    plots = [at / f"{name}.png" for name in MADE[kind][1]]
    for path in plots:
        path.write_text("of whole files")
    DAMAGED[kind][number](at)
    with pytest.raises(RunError) as refused:
        redraw.redraw(at)
    assert kind in str(refused.value) and "\n" not in str(refused.value)
    assert all(path.read_text() == "of whole files" for path in plots)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_run_without_epochs_or_tables_is_drawn_as_far_as_there_is_something(
    tmp_path: Path,
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(make(epochs=0)))
    assert redraw.redraw(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text("")
    assert redraw.redraw(tmp_path) == [tmp_path / "curves.png"]


def test_every_picture_that_was_made_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of folders at any depth, in order."""
    shutil.copytree(whole, tmp_path / "of")
    redraw.main(redraw.arguments().parse_args([str(tmp_path / "of"), str(tmp_path / "of/gains")]))
    made = [f"{tmp_path}/of/{kind}/{name}.png" for kind in sorted(MADE) for name in MADE[kind][1]]
    assert capsys.readouterr().out.splitlines() == [
        *made,
        f"{tmp_path}/of/gains/gain_per_class.png",
    ]


@pytest.mark.parametrize(("thresholds", "shots"), [
    (None, None), ({"many_above": 100, "few_below": 20}, (100, 20)),
])  # fmt: skip
def test_the_pictures_of_a_run_tell_its_rule_and_its_shots(
    thresholds: Any, shots: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.reports import plots

    drawn: list[Any] = []
    monkeypatch.setattr(plots, "per_class", lambda *of: drawn.append(of))
    monkeypatch.setattr(plots, "learning_curves", lambda *of: drawn.append(of))
    a_run(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (tmp_path / "run" / "report.json").write_text(json.dumps(report | {"thresholds": thresholds}))
    at = tmp_path / "run"
    assert redraw.redraw(at) == [at / "per_class.png", at / "curves.png"]
    (path, title, *numbers, told), (curves, same, lines, again) = drawn
    assert (path, curves) == (at / "per_class.png", at / "curves.png") and told == again == shots
    assert title == same == "sgd on cifar100, resnet34_3x3"
    assert numbers == [[500, 100, 5], [700, 500, 300], [1000] * 3]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


def test_the_command_ends_with_a_sentence(refuse: Any, tmp_path: Path) -> None:
    said = refuse("experiments.redraw", tmp_path / "nowhere", code=1)
    assert said == f"error: {tmp_path}/nowhere is no folder: name folders of results"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (os.fsdecode(b"a\xff"), "a\\udcff' is not UTF-8 text: rename it, or redraw a copy"),
        ("closed", "closed may not be written: redraw a copy of it"),
    ],
)
def test_a_folder_that_no_plot_can_be_written_to_is_told_what_may_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any, name: str, says: str
) -> None:
    """redraw has no --out to choose."""
    save(tmp_path / name)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("closed") and access(path, mode)
    )
    before = sorted(os.listdir(tmp_path / name))
    said = refuse("experiments.redraw", tmp_path, code=1)
    assert said.endswith(says) and "--out" not in said
    assert sorted(os.listdir(tmp_path / name)) == before
