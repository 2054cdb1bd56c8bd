"""Sharpness of a quadratic, whose rises are known; the same of the shared network by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import rules, sharpness
from rule_table import COUNTS, ETA, init_params, losses_fn, to_library

# Two classes, a quadratic each: loss_i = x_i * (theta^T A_c theta / 2 + b_c^T theta).
A = np.array([np.diag([1.0, 3.0, -2.0]), [[2.0, 1.0, 0.0], [1.0, 5.0, 0.0], [0.0, 0.0, 1.0]]])
SLOPES = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
Y = np.array([0, 0, 0, 1])
X = np.array([1.0, 2.0, 3.0, 4.0])
SHARES = np.array([6 / 4, 4 / 4])  # of L = (1/B) sum_i x_i q_c
TABLES = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.5, 2.0]])
THETA = np.array([0.3, -0.2, 0.1])


def quadratic(theta: Any, x: Any, y: Any) -> Any:
    a, b = jnp.asarray(A)[y], jnp.asarray(SLOPES)[y]
    return x * (jnp.einsum("p,bpq,q->b", theta, a, theta) / 2 + b @ theta), None


def of_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, b) of L[w] = theta^T H theta / 2 + b^T theta."""
    w = table * SHARES
    return np.einsum("c,cpq->pq", w, A), w @ SLOPES


def rise(table: np.ndarray, theta: np.ndarray, e: np.ndarray) -> float:
    h, b = of_table(table)
    return float((h @ theta + b) @ e + e @ h @ e / 2)


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        (rules.sam(2, rho=0.2), [[1.0, 1.0]]),
        (rules.imbsam([3, 1], rho=0.2, eta=1), [[0.0, 1.0]]),
        (rules.sse_sam([3, 1], head_rho=0.2, tail_rho=0.2, eta=1, switch_step=5), np.eye(2)),
        (rules.sgd(2), []),
    ],
    ids=["sam", "imbsam", "sse_sam", "sgd"],
)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_rise_under_a_rules_own_perturbation(
    rule: Any, groups: Any, batch_size: Any, x64: None
) -> None:
    got = jax.jit(
        lambda theta: sharpness.of_rule(
            quadratic, rule, theta, Y, X, Y, class_weights=TABLES, step=0, batch_size=batch_size
        )
    )(THETA)
    want = np.zeros((len(groups), len(TABLES)))
    for k, group in enumerate(groups):
        h, b = of_table(np.asarray(group))
        d = h @ THETA + b
        want[k] = [rise(table, THETA, 0.2 * d / np.linalg.norm(d)) for table in TABLES]
    np.testing.assert_allclose(got, want, atol=1e-13)


def test_the_stage_of_a_staged_rule_and_gsa(x64: None) -> None:
    rule = rules.sse_sam([3, 1], head_rho=0.1, tail_rho=0.2, eta=1, switch_step=5)
    as_imbsam = rules.imbsam([3, 1], rho=0.2, eta=1)
    gsa = rules.gsa([3, 2], groups=[0, 1], scale=0.3)

    @jax.jit
    def of_each(theta: Any) -> Any:
        return [
            sharpness.of_rule(quadratic, of, theta, Y, X, Y, step=step)
            for of, step in ((rule, 5), (as_imbsam, None), (gsa, None))
        ]

    later, imbsam, got = of_each(THETA)
    np.testing.assert_allclose(later, imbsam)
    with pytest.raises(ValueError, match="which stage is meant"):
        sharpness.of_rule(quadratic, rule, THETA, Y, X, Y)
    # GSA brings its own ascent: theta + e is what its gradient is taken at.
    points: list[Any] = []

    def seen(theta: Any, x: Any, y: Any) -> Any:
        jax.debug.callback(lambda t: points.append(np.asarray(t)), theta)
        return quadratic(theta, x, y)

    jax.jit(ij.value_and_grad(seen, gsa))(THETA, Y, X, Y)
    jax.effects_barrier()
    moved = {tuple(p.round(12)) for p in points} - {tuple(THETA.round(12))}
    want = sorted(rise(TABLES[0], THETA, np.array(p) - THETA) for p in moved)
    np.testing.assert_allclose(sorted(got.tolist()), want, atol=1e-10)


def test_average_over_a_sphere(x64: None) -> None:
    average = partial(sharpness.average, quadratic, THETA, Y, X, Y)

    @jax.jit
    def found(key: Any) -> Any:
        options = {"key": key, "directions": 4000, "radius": 0.5}
        return (
            average(class_weights=TABLES, **options),
            average(class_weights=TABLES[2], **options),
            average(radius=0, key=key, directions=2),
        )

    (mean, error), (one, _), nothing = found(jax.random.key(0))
    want = [0.25 * np.trace(of_table(table)[0]) / (2 * 3) for table in TABLES]
    assert (abs(mean - np.array(want)) < 3 * error).all()
    # <g, e> has variance r^2 |g|^2 / P, which here is most of it.
    h, b = of_table(TABLES[1])
    g = np.linalg.norm(h @ THETA + b)
    np.testing.assert_allclose(error[1], 0.5 * g / np.sqrt(3 * 4000), rtol=0.1)
    np.testing.assert_allclose(one, mean[2], rtol=1e-12)
    assert [float(x) for x in nothing] == [0, 0]


@pytest.mark.parametrize("theta", [THETA, np.zeros(3)], ids=["slope", "origin"])
def test_worst_case_in_a_ball(theta: np.ndarray, x64: None) -> None:
    """By eigenvalues: maximise over |e| <= r with the multiplier that makes |e| = r."""
    r = 0.3

    @jax.jit
    def found(key: Any) -> Any:
        of = partial(sharpness.worst, quadratic, theta, Y, X, Y, radius=r, key=key)
        return of(steps=60, class_weights=TABLES), of(steps=1)

    got, first = found(jax.random.key(0))
    want = []
    for table in TABLES:
        h, b = of_table(table)
        values, vectors = np.linalg.eigh(h)
        g = vectors.T @ (h @ theta + b)
        if np.allclose(g, 0):
            want.append(r**2 * values[-1] / 2)
            continue
        low, high = values[-1] + 1e-12, values[-1] + np.linalg.norm(g) / r + 1
        for _ in range(200):
            middle = (low + high) / 2
            longer = np.linalg.norm(g / (middle - values)) > r
            low, high = (middle, high) if longer else (low, middle)
        want.append(rise(table, theta, vectors @ (g / (high - values))))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert got[0] / 4 < first <= got[0] * (1 + 1e-9)  # where the one step leads


def test_nothing_rises_above_a_maximum(x64: None) -> None:
    found = sharpness.worst(
        lambda w, x: (-x * (w**2).sum(), None), jnp.zeros(3), Y, X, radius=1.0,
        key=jax.random.key(0),
    )  # fmt: skip
    assert float(found) == 0


def test_masked_rows_and_a_tree_of_parameters(x64: None) -> None:
    """The shared network: theta + e by a gradient of JAX's own."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.integers(5, size=9)
    y[0] = 4
    params, mask = to_library(init_params()), np.arange(9) < 6
    rule = rules.imbsam(COUNTS, rho=0.3, eta=ETA)

    def tail(p: Any) -> Any:
        return (losses_fn(p, x[:6], y[:6])[0] * (COUNTS <= ETA)[y[:6]]).sum() / 6

    @jax.jit
    def both(params: Any) -> Any:
        d = jax.grad(tail)(params)
        length = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(d)))
        moved = jax.tree.map(lambda p, g: p + 0.3 * g / length, params, d)
        got = sharpness.of_rule(
            losses_fn, rule, params, y, x, y, class_weights=1.0 * (COUNTS <= ETA), mask=mask
        )
        return got, [tail(moved) - tail(params)]

    np.testing.assert_allclose(*both(params), rtol=1e-12)


@pytest.mark.parametrize("step", [-1, 2.5, np.nan, "5", [1, 2]])
def test_what_is_no_step_is_refused(step: Any) -> None:
    rule = ij.rules.stagewise(ij.rules.sgd(2), ij.rules.sam(2, rho=0.1), switch_step=3)
    with pytest.raises(ValueError, match="step must be a step number, at least 0"):
        sharpness.of_rule(lambda p, x: (x * p, None), rule, 1.0, [0, 1], jnp.ones(2), step=step)


def test_a_rule_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="class_weights are of 3 classes, the rule is of 2"):
        sharpness.of_rule(
            lambda p, x: (x * p, None), ij.rules.sam(2, rho=0.1), 1.0, [0, 1], jnp.ones(2),
            class_weights=np.ones(3),
        )  # fmt: skip


@pytest.mark.parametrize("ascent", [ij.Ascent(group_mean=True), ij.Ascent(weight_decay=0.1)])
def test_what_is_more_than_the_perturbation_is_refused(ascent: Any) -> None:
    with pytest.raises(ValueError, match="perturbation alone"):
        sharpness.of_rule(quadratic, rules.sam(2, rho=0.1), THETA, Y, X, Y, ascent=ascent)


def test_a_switch_that_is_traced_is_no_stage() -> None:
    def of(switch: Any) -> Any:
        rule = rules.sse_sam([9, 1], head_rho=0.1, tail_rho=0.1, eta=1, switch_step=switch)
        return sharpness.of_rule(quadratic, rule, THETA, Y, X, Y, step=5)

    with pytest.raises(ValueError, match="step and its switch_step must be numbers, not traced"):
        jax.jit(of)(3)
