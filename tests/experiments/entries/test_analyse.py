"""The command on run folders of both kinds, its refusals, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import analyse, digits_lt
from experiments.analysis.measure import Measure

QUICK = (
    "--iterations", "2", "--probes", "2", "--directions", "2", "--steps", "1", "--rho", "0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("digits") / "run"
    flags = ["--rule", "sgd", "imbsam", "--epochs", "1", "--num-seeds", "2", "--save"]
    digits_lt.main(digits_lt.arguments().parse_args([*flags, "--out", str(out)]))
    return out


def run(*flags: Any) -> None:
    analyse.main(analyse.arguments().parse_args([*map(str, flags)]))


@pytest.mark.slow  # what is measured, tests/experiments/analysis shows
def test_digits_and_again(digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    more = ("--eta", 20, "--density", 1, "--surface", 2, "--out", out)
    run(digits, *QUICK, *more)
    records = json.loads((out / "records.json").read_text())
    assert [(one["rule"], one["seed"]) for one in records] == [
        (rule, seed) for rule in ("sgd", "imbsam") for seed in (0, 1)
    ]
    assert list(records[0]["groups"]) == ["all", "head", "tail", "many", "medium", "few"]
    # The accuracies are those of the run: all of them are of the last epoch.
    summary = json.loads((digits / "summary.json").read_text())
    for one in records:
        line = summary[0 if one["rule"] == "sgd" else 1]
        rows = one["groups"]["all"]["test_accuracy"]
        assert rows == pytest.approx(line["all_by_seed"][one["seed"]], abs=0.7)  # of rows, classes
    held = {"groups.png", "densities.png", "surfaces.png", "table.md", "analysis.json"}
    assert held <= {path.name for path in out.iterdir()}

    def refuse(*args: Any) -> None:
        raise AssertionError("measured again")

    for name in ("levels", "ends", "traces", "rises", "worst", "density", "surface"):
        monkeypatch.setattr(Measure, name, refuse)
    before = (out / "analysis.json").read_text()
    run(digits, *QUICK, *more)
    assert (out / "analysis.json").read_text() == before
    with pytest.raises(AssertionError, match="measured again"):
        run(digits, *QUICK, *more[:-2], "--out", out, "--loss", "logit_adjusted")


def test_refusals(digits: Path, tmp_path: Path, refuse: Any) -> None:
    command = "experiments.analyse"
    out = ("--out", tmp_path / "out")
    assert "is no run folder" in refuse(command, tmp_path / "none", *out, code=1)
    none = refuse(command, digits, "--eta", 1, *out, code=1)
    assert "leaves no tail" in none
    (tmp_path / "bare").mkdir()
    for name in ("summary.json", "config.json"):
        (tmp_path / "bare" / name).write_text((digits / name).read_text())
    assert "train it again with --save" in refuse(command, tmp_path / "bare", *out, code=1)
    (tmp_path / "bare" / "config.json").write_text('{"grid": [], "epochs": 1}')
    assert "is no folder of models" in refuse(command, tmp_path / "bare", *out, code=1)
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "config.json").write_text("{}")
    assert "it names no experiment" in refuse(command, tmp_path / "half", *out, code=1)
    assert "--reach needs --surface" in refuse(command, digits, "--reach", 2, *out, code=2)
