"""The kept networks of detectors: read again as they were written, or refused by what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.anomaly import networks
from experiments.anomaly.tables import Split, Table
from experiments.anomaly.training import RUN, Case, Result
from experiments.host.errors import RunError

TABLE = Table("t", "t.npz", np.arange(12.0, dtype=np.float32).reshape(6, 2), np.zeros(6, int))
DRAWN = Split(np.array([0, 1, 2, 4]), np.array([0, 0, 1, 0]), np.array([3, 5]), np.array([1, 0]))
CASE = Case(TABLE, 3, 0.5, "clean", DRAWN)
RUNS = [Result("t", "devnet", rule, 3, 0.5, "clean", 1, 1, 1, 1) for rule in ("sgd", "sam")]
CONFIG = {"lr": 0.5, "epochs": 7}
OTHER_TABLE = TABLE._replace(features=TABLE.features + np.eye(6, 2, -3, np.float32))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    held = {
        run[:RUN]: ({"w": np.full(2, k), "b": np.ones(1)}, {"mean": np.full(3, 10 + k)})
        for k, run in enumerate(RUNS)
    }
    networks.save(tmp_path, RUNS, held, [CASE], CONFIG)
    return tmp_path


def test_what_is_read_is_what_was_kept(out: Path) -> None:
    networks.check(out, 2)
    for k, run in enumerate(RUNS):
        found = networks.read(out, k, run, CONFIG, CASE)
        assert {name: sorted(held) for name, held in found.items()} == {
            "params": ["b", "w"], "state": ["mean"]
        }  # fmt: skip
        assert found["params"]["w"].tolist() == [k, k] and found["params"]["b"].tolist() == [1]
        assert found["state"]["mean"].tolist() == [10 + k] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": RUNS[1]}, "line 0 of runs.csv tells (rule"),
        ({"run": RUNS[0]._replace(label_ratio=0.25)}, "line 0 of runs.csv tells (label_ratio"),
        ({"config": {**CONFIG, "epochs": 8}}, "config.json tells (epochs"),
        ({"config": {"lr": 0.5}}, "config.json tells (epochs"),
        ({"case": CASE._replace(table=OTHER_TABLE)}, "trained on other rows than t.npz has"),
        ({"case": CASE._replace(drawn=DRAWN._replace(test_labels=np.array([0, 0])))}, "other rows"),
    ],
)
def test_a_network_of_another_run_is_refused(out: Path, changes: Any, words: str) -> None:
    given = {"run": RUNS[0], "config": CONFIG, "case": CASE, **changes}
    with pytest.raises(RunError) as refused:
        networks.read(out, 0, **given)
    assert words in str(refused.value)


@pytest.mark.parametrize("number", [1, 3])
def test_a_network_is_needed_for_each_line(out: Path, number: int) -> None:
    with pytest.raises(RunError, match=r"has not one file for each line of runs.csv .*[12]\.npz"):
        networks.check(out, number)
