"""The sweep: its points are the runs of digits_lt alone; nothing is chosen on the test set."""

import csv
import json

import numpy as np
import pytest

from experiments import digits_lt, sweep
from experiments.data.digits import load_digits_lt
from experiments.errors import RunError

SMALL = ["--num-seeds", "2", "--epochs", "2", "--batch-size", "92"]


def test_validation_images_are_neither_trained_on_nor_tested_on():
    sizes = set()
    for seed in range(3):
        data = load_digits_lt(50, seed)
        seen = {image.tobytes() for image in (*data.train_images, *data.test_images)}
        assert not seen & {image.tobytes() for image in data.val_images}
        sizes.add(tuple(np.bincount(data.val_labels)))
    assert sizes == {(4, *[40] * 9)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    grid = ["--grid", "eta", "20", "40", "--grid", "rho", "0.1", "0.4"]
    args = sweep.arguments().parse_args([*SMALL, *grid, "--out", str(out / "grid")])
    with pytest.MonkeyPatch.context() as patch:
        compiled = count_compilations(patch)
        sweep.main(args)
    return out, json.loads((out / "grid" / "summary.json").read_text()), compiled


def count_compilations(patch):
    from experiments.digits_training import Bench

    benches = []
    start = Bench.__init__

    def seen(self, *args):
        start(self, *args)
        benches.append(self)

    patch.setattr(Bench, "__init__", seen)
    return benches


@pytest.mark.allow_rank_promotion
def test_one_program_serves_every_point(swept):
    _, summary, (bench,) = swept
    assert len(summary) == 1 + 2 * 2
    assert len(bench.compiled) == 2  # SGD's and that of the grid


@pytest.mark.slow
@pytest.mark.allow_rank_promotion
def test_a_point_is_what_digits_lt_trains(swept, tmp_path):
    _, summary, _ = swept
    flags = ["--rule", "sgd", "imbsam", "--eta", "40", "--rho", "0.4", "--memory", "0.5"]
    flags += ["--out", str(tmp_path / "x")]
    digits_lt.main(digits_lt.arguments().parse_args([*SMALL, *flags]))
    rows = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert digits_lt.names(rows) == ["sgd", "imbsam", "imbsam m0.5"]
    sgd, imbsam, remembered = rows
    assert len({row["all"] for row in rows}) == 3 and remembered["memory"] == 0.5
    assert summary[-1]["point"] == {"eta": 40, "rho": 0.4}
    for split in sweep.SPLITS:
        # Rounding may move a prediction or two.
        assert summary[0][f"test_{split}"] == pytest.approx(sgd[split], abs=0.5)
        assert summary[-1][f"test_{split}"] == pytest.approx(imbsam[split], abs=0.5)
    for key, name in (("paired_all", "test_all_sgd"), ("paired_all_se", "test_all_sgd_se")):
        assert summary[-1][name] == pytest.approx(imbsam[key], abs=0.5)


def made_up(*values):
    """Rows of two seeds: SGD at 50, then points with these (test, validation) accuracies."""

    def of(value):
        return dict.fromkeys(sweep.SPLITS, np.array([value - 1.0, value + 1.0]))

    points = [
        sweep.Row({"rho": 0.1 * k}, of(test), of(val)) for k, (test, val) in enumerate(values)
    ]
    return [sweep.Row({}, of(50.0), of(50.0)), *points]


def test_the_choice_is_validations():
    summary = sweep.summarise(made_up((51, 57), (55, 52)), [0, 1])
    assert [row["best_val"] for row in summary] == [False, True, False]
    assert [row["best_test"] for row in summary] == [False, False, True]
    assert summary[2]["test_all_sgd"] == 5 and summary[2]["test_all_sgd_se"] == 0
    lines = sweep.table(summary, {"rho": [0.0, 0.1]}).splitlines()
    assert [line.startswith("| **") for line in lines] == [False, False, False, True, False]
    assert "rho 0, All - SGD +1.0" in sweep.verdict(summary).splitlines()[0]
    assert "no result" in sweep.verdict(summary).splitlines()[1]


@pytest.mark.allow_rank_promotion
def test_what_is_written(swept):
    out, summary, _ = swept
    assert (out / "grid" / "sweep.png").stat().st_size > 10000
    with open(out / "grid" / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["sgd"] + ["imbsam"] * 4
    assert float(rows[3]["test_few"]) == summary[3]["test_few"]
    assert "Chosen by validation" in (out / "grid" / "table.md").read_text()
    assert json.loads((out / "grid" / "config.json").read_text())["rule"] == "imbsam"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "rho", "a"], "could not convert"),
        (["--grid", "rho"], "has no values"),
        (["--grid", "gamma", "1"], "gamma is no numeric flag of imbsam; it has eta, memory, rho"),
        (["--grid", "lr", "1"], "lr is no numeric flag"),
        (["--grid", "rho", "1", "--grid", "rho", "2"], "is given twice"),
        (["--rho-schedule", "late"], "leave --rho-schedule out"),
        (["--grid", "eta", "0"], "leaves no tail class"),
        (["--grid", "memory", "1"], "--memory: decay must be"),
        (["--rule", "sse_sam", "--memory", "0.5"], "--memory: a staged rule"),
    ],
)
def test_bad_grids_write_nothing(tmp_path, flags, message):
    args = sweep.arguments().parse_args([*SMALL, *flags, "--out", str(tmp_path / "x")])
    with pytest.raises(RunError, match=message):
        sweep.main(args)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.allow_rank_promotion
@pytest.mark.parametrize(
    ("rule", "grid"),
    [
        ("sam", ["memory", "0", "0.9"]),
        ("focal_sam", ["strength", "0.2", "0.8"]),
        ("sse_sam", ["head-rho", "0", "0.2"]),
        ("reweighted_sam", ["tail-weight", "1", "3"]),
    ],
)
def test_other_rules_and_flags_can_be_swept(tmp_path, rule, grid):
    flags = [*SMALL, "--epochs", "6", "--rule", rule, "--grid", *grid, "--out", str(tmp_path / "x")]
    sweep.main(sweep.arguments().parse_args(flags))
    _, first, second = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert first["val_all"] != second["val_all"]
