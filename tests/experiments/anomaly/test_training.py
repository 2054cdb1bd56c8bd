"""Runs side by side are those alone, and reach the levels that were measured."""

import os
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.anomaly import command as anomaly
from experiments.anomaly import program
from experiments.anomaly import training as anomaly_training
from experiments.anomaly.nets import ANOMALY_NETS
from experiments.anomaly.tables import load_tables, scaled, split
from made_tables import made_table


def test_runs_side_by_side_are_those_alone() -> None:
    """Data sets of other lengths, padded into one program, against a plain loop over steps."""
    method = "deepsad"
    tables = [made_table(n, n // 8, name=f"t{n}") for n in (1100, 1500)]
    cases = anomaly.draw_cases(tables, seeds=[4, 5], label_ratios=[0.5], protocols=["adbench"])
    told: list[tuple[int, float]] = []
    kept: dict[tuple[Any, ...], Any] = {}
    found, seconds = anomaly.train(
        cases, method=method, rules=["imbsam"], optimizer="sgd", lr=1e-3, rho=0.05, epochs=2,
        advance=lambda runs, took: told.append((runs, took)), kept=kept,
    )  # fmt: skip
    # Longer runs first; what each batch of runs took is told, and shared among its runs.
    assert [r.dataset for r in found] == ["t1500"] * 2 + ["t1100"] * 2
    assert [runs for runs, _ in told] == [2, 2]
    assert [took / 2 for _, took in told for _ in "ab"] == [r.seconds for r in found]
    assert sorted((r.dataset, r.seed) for r in found) == [
        ("t1100", 4), ("t1100", 5), ("t1500", 4), ("t1500", 5),
    ]  # fmt: skip
    assert seconds.training > 0 and all(r.seconds > 0 for r in found)
    net = ANOMALY_NETS[method]()
    optimizer = program.make_optimizer("sgd", 1e-3, net.decay)
    step = jax.jit(program.make_step(net, program.make_rule("imbsam", 0.05), optimizer))
    scores = jax.jit(net.scores)
    for case in (cases[1], cases[2]):
        result = next(r for r in found if (r.dataset, r.seed) == (case.table.name, case.seed))
        arrays = scaled(case.table, case.drawn)
        params, fixed, state = net.init(case.seed, arrays.train)
        opt_state = optimizer.init(params)
        for rows in net.batches(case.seed, case.drawn.train_labels, 2):
            labels = case.drawn.train_labels[rows]
            carry = step(params, opt_state, state, arrays.train[rows], labels, fixed)
            params, opt_state, state, _ = carry
        ended = kept[case.table.name, method, "imbsam", case.seed, 0.5, "adbench"]
        for one, other in zip(
            jax.tree.leaves(ended), jax.tree.leaves((params, state)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
        y, s = case.drawn.test_labels, np.asarray(scores(params, arrays.test, fixed, state))
        expected = (
            roc_auc_score(y, s),
            average_precision_score(y, s),
            average_precision_score(1 - y, -s),
        )
        ours = (result.auroc, result.ap_anomaly, result.ap_normal)
        np.testing.assert_allclose(ours, 100 * np.array(expected), atol=0.05)


def test_each_case_is_drawn_by_its_own_numbers() -> None:
    """Of 70 anomalies that are trained on a tenth or a half keep their label; of "full" all."""
    tables = [made_table(1000, 100, name="t")]
    cases = anomaly.draw_cases(
        tables, seeds=[4, 5], label_ratios=[0.1, 0.5], protocols=["adbench", "full"]
    )
    about = [(case.protocol, case.label_ratio, case.seed) for case in cases]
    adbench = [("adbench", ratio, seed) for ratio in (0.1, 0.5) for seed in (4, 5)]
    assert about == [*adbench, ("full", 1.0, 4), ("full", 1.0, 5)]
    assert [int(case.drawn.train_labels.sum()) for case in cases[:4]] == [7, 7, 35, 35]
    for case, (protocol, ratio, seed) in zip(cases, about, strict=True):
        drawn = split(tables[0], seed=seed, label_ratio=ratio, protocol=protocol)
        np.testing.assert_array_equal(case.drawn.train_rows, drawn.train_rows)
        np.testing.assert_array_equal(case.drawn.train_labels, drawn.train_labels)


def _device(platform: str) -> Any:
    return SimpleNamespace(platform=platform)


@pytest.mark.parametrize(
    ("platform", "devices", "runs", "expected"),
    [
        ("cpu", 2, 100, 6), ("cpu", 2, 6, 6), ("cpu", 2, 5, 6), ("cpu", 2, 4, 4), ("cpu", 1, 1, 1),
        ("gpu", 1, 1000, 64), ("gpu", 2, 1000, 128), ("gpu", 2, 3, 4),
    ],
)  # fmt: skip
def test_so_many_runs_go_side_by_side(
    platform: str, devices: int, runs: int, expected: int
) -> None:
    """Three on each core, whose caches hold them, 64 on each accelerator; no device with fewer."""
    assert anomaly_training._at_once([_device(platform)] * devices, runs) == expected


@pytest.mark.parametrize(
    ("platform", "there", "cores", "runs", "expected"),
    [
        ("cpu", 4, 4, 9, 4), ("cpu", 4, 2, 9, 2), ("cpu", 4, 4, 3, 3), ("cpu", 4, 4, 0, 1),
        ("cpu", 4, None, 9, 1), ("gpu", 4, 2, 9, 4), ("gpu", 4, 2, 3, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("affinity", [True, False])
def test_no_more_devices_than_cores_and_runs(
    platform: str, there: int, cores: Any, runs: int, expected: int, affinity: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of this process where the system says which those are; JAX is asked for as many."""
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(jax, "local_devices", lambda: [_device(platform)] * there)
    monkeypatch.setattr(jax.config, "update", lambda *what: asked.append(what))
    if affinity and cores is None:
        pytest.skip("a process always has its cores")
    monkeypatch.setattr(os, "cpu_count", lambda: 64 if affinity else cores)
    if affinity:
        own = lambda process: set(range(cores)) if process == 0 else set()  # noqa: E731
        monkeypatch.setattr(os, "sched_getaffinity", own, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert len(anomaly_training._devices(runs)) == expected
    assert asked == [("jax_num_cpu_devices", cores)]


def test_runs_of_equally_many_steps_go_together_the_longest_first() -> None:
    tasks = [SimpleNamespace(name=k, steps=steps) for k, steps in enumerate([5, 20, 5, 7, 5, 5])]
    parts = anomaly_training._parts(tasks, 3)  # type: ignore[arg-type]
    assert [[task.name for task in part] for part in parts] == [[1], [3], [0, 2, 4], [5]]  # type: ignore[attr-defined]


def test_runs_side_by_side_are_padded_with_nothing_and_the_last_is_repeated() -> None:
    """Two data sets of 200 and 150 rows as four runs, for a part that also has longer ones."""
    tables = [made_table(n, n // 5, name=f"t{n}") for n in (200, 150, 300)]
    cases = anomaly.draw_cases(tables, seeds=[4], label_ratios=[0.5], protocols=["nodup"])
    net = ANOMALY_NETS["deepsad"]()
    alike = [anomaly_training._task(net, case, 2) for case in cases]
    # 140, 105 and 210 rows train, of which 128, 105 and 128 are a batch.
    assert [(task.steps, task.shape) for task in alike] == [
        (2, (6, 128)), (2, (6, 105)), (2, (6, 128))
    ]  # fmt: skip
    part = [alike[0], alike[2]]
    runs = anomaly_training._side_by_side(net, part, part, 4, 2)
    for k, task in enumerate([part[0], *[part[1]] * 3]):
        drawn, arrays = task.case.drawn, scaled(task.case.table, task.case.drawn)
        n, m = len(drawn.train_rows), len(drawn.test_rows)
        for padded, own, length in (
            (runs.train, arrays.train, n), (runs.labels, drawn.train_labels, n),
            (runs.test, arrays.test, m), (runs.test_labels, drawn.test_labels, m),
        ):  # fmt: skip
            np.testing.assert_array_equal(padded[k, :length], own)
            assert not padded[k, length:].any()
        assert runs.test_real[k].tolist() == [True] * m + [False] * (90 - m)
        order = net.batches(4, drawn.train_labels, 2)
        np.testing.assert_array_equal(runs.order[k], order)
        params, fixed, state = net.init(4, arrays.train)
        mine = jax.tree.map(lambda x, k=k: x[k], (runs.params, runs.fixed, runs.state))
        jax.tree.map(np.testing.assert_array_equal, mine, (params, fixed, state))
    assert (runs.train.shape, runs.test.shape) == ((4, 210, 6), (4, 90, 6))
    assert runs.labels.dtype == runs.test_labels.dtype == np.int32


def test_seconds_are_summed_by_what_they_went_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own; those of the last piece of work are the runs', each its share."""
    clock = iter([1.0, 3.0, 10.0, 15.0, 20.0, 24.0])
    monkeypatch.setattr(anomaly_training.time, "perf_counter", lambda: next(clock))
    spent = anomaly_training._Spent()
    for what in ("training", "preparing", "training"):
        with spent.on(what):
            pass
    assert spent.seconds == {"compiling": 0, "training": 6, "preparing": 5}
    assert spent.last == 4


def test_figures_of_a_batch_of_runs_are_in_percent_and_in_order() -> None:
    """Four runs of which the last pads: each of the three has its own, and a third of the time."""
    cases = anomaly.draw_cases(
        [made_table(200, 40, name="t")], seeds=[4, 5, 7], label_ratios=[0.5], protocols=["adbench"]
    )
    part = [anomaly_training._Task(case, 9, (3, 8)) for case in cases]
    measured = ([0.5, 0.625, 0.75, 0], [0.125, 0.25, 0.375, 0], [1.0, 0.875, np.nan, 0])
    found = anomaly_training._results(part, "deepsad", "sam", measured, 12.0)
    assert [result[:6] for result in found] == [
        ("t", "deepsad", "sam", seed, 0.5, "adbench") for seed in (4, 5, 7)
    ]
    np.testing.assert_array_equal(
        [result[6:] for result in found],
        [(50, 12.5, 100, 4), (62.5, 25, 87.5, 4), (75, 37.5, np.nan, 4)],
    )


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    net = ANOMALY_NETS["deepsad"]()
    assert net.batches(0, np.zeros(71), 3).shape == (3, 71)
    assert net.steps_per_epoch(71) == 1
    assert net.batches(0, np.zeros(700), 2).shape == (10, 128)
    assert net.steps_per_epoch(700) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "measured"),
    [
        ("devnet", {"sgd": 98.90, "sam": 98.61, "imbsam": 98.73}),
        ("deepsad", {"sgd": 94.14, "sam": 98.05, "imbsam": 97.05}),
    ],
)
def test_levels_of_the_measured_baseline(
    method: str, measured: dict[str, float], adbench_dir: str
) -> None:
    """Three seeds on one subset, against the official PyTorch optimizers on the same splits."""
    tables = load_tables(adbench_dir, ["MVTec-AD_bottle"])
    cases = anomaly.draw_cases(tables, seeds=[0, 1, 2], label_ratios=[0.25], protocols=["adbench"])
    found, _ = anomaly.train(
        cases, method=method, rules=anomaly.RULES, optimizer="sgd", lr=1e-3, rho=0.05, epochs=50
    )
    for rule, level in measured.items():
        mean = np.mean([r.auroc for r in found if r.rule == rule])
        assert mean == pytest.approx(level, abs=1.0), rule
