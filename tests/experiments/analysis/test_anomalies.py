"""Detectors of anomalies as subjects of an analysis: of runs by hand, whose nets are stand-ins."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.analysis import anomalies
from experiments.anomaly.tables import Split, Table
from experiments.anomaly.training import Case, Result

# Of six rows 4 to train on, the third of them anomalous.
TABLE = Table("t", "t.npz", np.arange(12.0, dtype=np.float32).reshape(6, 2), np.zeros(6, int))
DRAWN = Split(np.array([0, 1, 2, 4]), np.array([0, 0, 1, 0]), np.array([3, 5]), np.array([1, 0]))
CONFIG = {"optimizer": "adam", "lr": 0.5, "epochs": 7, "rho": 0.25, "datasets": ["t"],
          "seeds": [3, 4], "label_ratio": [0.5], "protocol": ["clean"]}  # fmt: skip


class Net:
    def init(self, seed: int, rows: Any) -> Any:
        return None, {"seed": np.full(1, seed), "rows": np.array(rows.shape)}, None

    def settled(self, params: Any, x: Any, labels: Any, fixed: Any, state: Any) -> Any:
        return params, x, labels, fixed, state


@pytest.fixture(autouse=True)
def _nets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("devnet", "deepsad"):
        monkeypatch.setitem(anomalies.ANOMALY_NETS, name, Net)
    anomalies._loss.cache_clear()


def of(rule: str, method: str = "devnet") -> Any:
    line = {"dataset": "t", "method": method, "rule": rule, "seed": "3", "label_ratio": "0.5",
            "protocol": "clean"}  # fmt: skip
    held = {"params": {"w": np.ones(2)}, "state": {}}
    return anomalies._subject("run", line, held, Case(TABLE, 3, 0.5, "clean", DRAWN), CONFIG)


def test_a_detector_is_what_its_run_was() -> None:
    one = of("imbsam")
    assert one.description == {
        "rule": "imbsam", "rule_args": {"rho": 0.25}, "ascent": {}, "loss": "devnet",
        "loss_args": {}, "stage2": None, "stage2_args": {}, "on": "t clean 0.5",
        "setting": {"experiment": "anomaly", "optimizer": "adam", "lr": 0.5, "epochs": 7,
                    "dataset": "t", "protocol": "clean", "label_ratio": "0.5"},
    }  # fmt: skip
    assert (one.run, one.seeds, one.epoch, one.thresholds) == ("run", [3], 7, None)
    assert one.counts.tolist() == [3, 1]
    assert one.tail is not None and one.tail.tolist() == [False, True]
    # Class by class, scaled to the range of the rows to train on, 0 to 8.
    assert one.train.labels.tolist() == [[0, 0, 0, 1]] and one.test.labels.tolist() == [[0, 1]]
    assert one.train.images[0, :, 0].tolist() == [0, 0.25, 1, 0.5]
    assert one.test.images[0, :, 0].tolist() == [1.25, 0.75]
    assert one.variables["fixed"]["seed"].tolist() == [[3]]
    assert one.variables["fixed"]["rows"].tolist() == [[4, 2]]
    held = {"params": 1, "fixed": 2, "state": 3}
    assert one.loss is not None
    assert one.loss(one.apply(held, "x"), "y") == (1, "x", "y", 2, 3)


def test_a_batch_of_devnet_is_half_anomalies() -> None:
    """Of 3 to 1 each anomaly is seen twice as often as rows are on the whole; not of Deep SAD."""
    assert of("sgd").own is None and of("sgd").description["rule_args"] == {}
    devnet, deepsad = (of("imbsam", method).own for method in ("devnet", "deepsad"))
    assert devnet.groups.tolist() == [[[0, 2]]] and deepsad.groups.tolist() == [[[0, 1]]]
    assert devnet.radii.tolist() == [[0.25]]
    assert devnet.about == {"rule": "imbsam", "rule_args": {"rho": 0.25}}
    np.testing.assert_allclose(of("sam").own.groups, [[[4 / 6, 2]]])


def test_runs_of_one_setting_are_together_and_those_that_diverged_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In part is enough."""
    with pytest.raises(anomalies.RunError, match="train it again with --save"):
        anomalies.of_anomalies(tmp_path, CONFIG, None)
    (tmp_path / anomalies.networks.FOLDER).mkdir()
    lines = [(rule, seed) for rule in ("sgd", "sam") for seed in (3, 4)]
    results = [Result("t", "devnet", rule, seed, 0.5, "clean", 1, 1, 1, 1) for rule, seed in lines]
    cases = [Case(TABLE, seed, 0.5, "clean", DRAWN) for seed in (3, 4)]
    checked = []

    def read(path: Path, number: int, result: Result, config: Any, case: Case) -> Any:
        assert (result, case.seed) == (results[number], lines[number][1])
        bad = np.array([1.0, np.inf if number == 1 else 1.0])
        return {"params": {"w": np.ones(2), "v": bad}, "state": {}}

    monkeypatch.setattr(anomalies, "read_runs", lambda path, config: results)
    monkeypatch.setattr(anomalies, "load_tables", lambda folder, names: {("d", "t"): "tables"}[
        folder, *names])  # fmt: skip
    monkeypatch.setattr(anomalies, "draw_cases", lambda tables, **how: cases)
    fake = types.SimpleNamespace(
        FOLDER=anomalies.networks.FOLDER, read=read,
        check=lambda path, number: checked.append((path, number)),
    )  # fmt: skip
    monkeypatch.setattr(anomalies, "networks", fake)
    sgd, sam = anomalies.of_anomalies(tmp_path, CONFIG, "d")
    assert checked == [(tmp_path, 4)]
    assert (sgd.description["rule"], sgd.seeds) == ("sgd", [3])
    assert (sam.description["rule"], sam.seeds) == ("sam", [3, 4])
