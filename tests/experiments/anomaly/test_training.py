"""Training follows a transcription in NumPy, and reaches the levels that were measured."""

import os
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import reference_anomaly
from experiments.anomaly import command as anomaly
from experiments.anomaly import program
from experiments.anomaly import training as anomaly_training
from experiments.anomaly.nets import ANOMALY_NETS
from experiments.anomaly.tables import Split, load_tables, scaled, split
from made_tables import made_table

STEPS = 10  # the ninth is the last of an epoch of digits_8


def _walk(
    method: str, rule: str, x: np.ndarray, labels: np.ndarray, seed: int, fixed: Any = None
) -> Any:
    """Losses, norms and parameters of the first steps, one jitted step at a time."""
    net = ANOMALY_NETS[method]()
    params, own, state = net.init(seed, x.astype(np.float32))
    params, fixed, state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, x.dtype), (params, fixed or own, state)
    )
    optimizer = program.make_optimizer("sgd", 1e-3, net.decay)
    step = jax.jit(program.make_step(net, program.make_rule(rule, 0.05), optimizer))
    opt_state, losses, norms = optimizer.init(params), [], {name: [] for name in params}
    for rows in net.batches(seed, labels, STEPS)[:STEPS]:
        carry = step(params, opt_state, state, x[rows], labels[rows], fixed)
        params, opt_state, state, loss = carry
        losses.append(float(loss))
        for name in params:
            norms[name].append(float(np.linalg.norm(params[name])))
    return losses, norms, params


def _same_path(found: Any, path: reference_anomaly.Path, rtol: float) -> None:
    losses, norms, params = found
    np.testing.assert_allclose(losses, path.losses, rtol=rtol)
    assert norms.keys() == path.norms.keys()
    for name in norms:
        # Exactly zero at first is the bias after DevNet's balanced batches.
        np.testing.assert_allclose(norms[name], path.norms[name], rtol, 1e-9, err_msg=name)
        far = np.linalg.norm(params[name] - path.params[name])
        assert far <= rtol * np.linalg.norm(path.params[name]), name


@pytest.mark.parametrize("rule", anomaly.RULES)
@pytest.mark.parametrize("method", anomaly.METHODS)
def test_first_steps_follow_the_numpy_transcription(method: str, rule: str) -> None:
    table = load_tables(None, ["digits_8"])[0]
    drawn = split(table, seed=1)
    x, y = scaled(table, drawn).train, drawn.train_labels
    path = reference_anomaly.trajectory(method, rule, x, y, seed=1, steps=STEPS)
    _same_path(_walk(method, rule, x, y, 1), path, rtol=1e-4)


@pytest.mark.parametrize(
    "rule",  # the others differ from imbsam in their weights: the test above is of them
    [x if x == "imbsam" else pytest.param(x, marks=pytest.mark.slow) for x in anomaly.RULES],
)
@pytest.mark.parametrize("method", anomaly.METHODS)
def test_first_steps_on_a_shared_subset(
    method: str, rule: str, adbench_dir: str, recorded: Any
) -> None:
    table = load_tables(adbench_dir, ["MVTec-AD_bottle"])[0]
    key = "MVTec-AD_bottle__seed0__"
    drawn = Split(*(recorded[key + k] for k in ("train_idx", "train_y", "test_idx", "test_y")))
    x, y = scaled(table, drawn).train, drawn.train_labels.astype(np.int64)
    path = reference_anomaly.trajectory(method, rule, x, y, seed=0, steps=STEPS)
    _same_path(_walk(method, rule, x, y, 0), path, rtol=1e-4)


@pytest.mark.parametrize("method", anomaly.METHODS)
@pytest.mark.usefixtures("x64")
def test_in_float64_the_paths_are_one(method: str) -> None:
    """What is left in float32 is rounding: leaky units that change side, and 1 / distance."""
    rule = "imbsam"
    table = load_tables(None, ["breast_cancer"])[0]
    drawn = split(table, seed=2)
    x, y = scaled(table, drawn).train.astype(np.float64), drawn.train_labels
    path = reference_anomaly.trajectory(method, rule, x, y, seed=2, steps=STEPS)
    net = reference_anomaly.NETS[method](x, 2)
    same = {"centre": net.centre} if method == "deepsad" else {"mean": net.mean, "std": net.std}
    _, fixed, _ = ANOMALY_NETS[method]().init(2, x.astype(np.float32))
    for name in same:
        np.testing.assert_allclose(fixed[name], same[name], rtol=1e-6)
    _same_path(_walk(method, rule, x, y, 2, same), path, rtol=1e-10)


def test_rules_of_the_transcription_differ() -> None:
    """What the two tests above compare with is not one path three times."""
    table = load_tables(None, ["breast_cancer"])[0]
    drawn = split(table, seed=0)
    x, y = scaled(table, drawn).train, drawn.train_labels
    for method in anomaly.METHODS:
        ends = {
            rule: reference_anomaly.trajectory(method, rule, x, y, seed=0, steps=5).params["w1"]
            for rule in anomaly.RULES
        }
        for one, other in (("sgd", "sam"), ("sgd", "imbsam"), ("sam", "imbsam")):
            apart = np.linalg.norm(ends[one] - ends[other])
            assert apart > 1e-4 * np.linalg.norm(ends[one]), (method, one, other)


def test_imbsam_perturbs_labelled_anomalies_also_where_they_are_many() -> None:
    table = program.make_rule("imbsam", 0.3)(None)
    assert table.base.tolist() == [1, 0]
    assert table.groups.tolist() == [[0, 1]]
    assert table.radii.tolist() == [0.3]


@pytest.mark.parametrize(
    ("name", "base", "groups", "radii"),
    [
        ("sgd", [1, 1], [], []),
        ("sam", None, [[1, 1]], [0.3]),
        ("imbsam", [1, 0], [[0, 1]], [0.3]),
    ],
)
def test_rules_are_of_two_classes(name: str, base: Any, groups: Any, radii: Any) -> None:
    """Rows without a label and labelled anomalies; sam perturbs for both."""
    table = program.make_rule(name, 0.3)(None)
    assert (table.base if base is None else table.base.tolist()) == base
    assert table.groups.tolist() == groups
    assert table.radii.tolist() == radii


@pytest.mark.parametrize(("name", "share"), [("adam", 1 / 2), ("rmsprop", 1 / (0.1**0.5 + 1))])
def test_a_gradient_as_small_as_an_optimizers_epsilon_makes_a_smaller_step(
    name: str, share: float
) -> None:
    """g / (sqrt(v) + eps) where g is eps: of Adam 1e-8, v unbiased; of RMSprop 1e-7, a tenth."""
    grads = {"w": jnp.full(2, {"adam": 1e-8, "rmsprop": 1e-7}[name])}
    tx = program.make_optimizer(name, 0.5, {})
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["w"], [-0.5 * share] * 2, rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_optimizers_are_those_of_the_protocol(name: str) -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(size=(3, 4)).astype(np.float32)
    grads = [scale * rng.normal(size=(3, 4)).astype(np.float32) for scale in (5.0, 0.01, 1.0)]
    tx = program.make_optimizer(name, 0.1, {"w": 0.02})
    params = {"w": jnp.asarray(p)}
    state = tx.init(params)
    m, v, expected = np.zeros_like(p), np.zeros_like(p), p
    for t, grad in enumerate(grads, start=1):
        updates, state = tx.update({"w": jnp.asarray(grad)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = grad + 0.02 * expected
        if name == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            expected = expected - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
        else:
            g = g / max(1.0, float(np.linalg.norm(g)))
            v = 0.9 * v + 0.1 * g**2
            expected = expected - 0.1 * g / (np.sqrt(v) + 1e-7)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=2e-6)


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


def test_runs_are_spread_over_these_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that there are, and by no rule of sharding but the program's own."""
    monkeypatch.setattr(jax, "make_mesh", lambda *what, **more: (what, more))
    kinds = (jax.sharding.AxisType.Auto,)
    asked = {"axis_types": kinds, "devices": ["a", "b"]}
    assert program.mesh(["a", "b"]) == (((2,), ("runs",)), asked)


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
