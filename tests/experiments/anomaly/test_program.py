"""Steps follow a transcription in NumPy; rules and optimizers are those of the protocol."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_anomaly
from experiments.anomaly import command as anomaly
from experiments.anomaly import program
from experiments.anomaly.nets import ANOMALY_NETS
from experiments.anomaly.tables import Split, load_tables, scaled, split

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


def test_runs_are_spread_over_these_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that there are, and by no rule of sharding but the program's own."""
    monkeypatch.setattr(jax, "make_mesh", lambda *what, **more: (what, more))
    kinds = (jax.sharding.AxisType.Auto,)
    asked = {"axis_types": kinds, "devices": ["a", "b"]}
    assert program.mesh(["a", "b"]) == (((2,), ("runs",)), asked)
