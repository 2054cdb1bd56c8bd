"""Every loss where a logit is -inf, huge or equal to the others: values and slopes in closed form.

The formulas are written out in NumPy's float64, the slopes by hand. A new loss is one more line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbsam_jax import losses
from rule_table import quick_jit

COUNTS = np.array([90, 10, 5])
CLASSES = len(COUNTS)
PI = COUNTS / COUNTS.sum()
W = np.array([0.5, 1.0, 2.0])
INF = np.inf

LOGITS = {
    "one at -inf": [0.3, -INF, -0.2],
    "two at -inf": [0.3, -INF, -INF],
    "equal": [0.5, 0.5, 0.5],
    "equal and large": [64.0, 64.0, 64.0],
    "certain": [40.0, -40.0, 0.0],
    "huge": [1e4, -1e4, 3e3],
    "huger": [1e30, -1e30, 1e29],
    "ordinary": [0.3, -1.2, 0.7],
}
Z = np.array(list(LOGITS.values()))

Formula = Callable[[np.ndarray, int], tuple[Any, Any]]  # (z, label) -> value, slope


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def ce(z: np.ndarray, c: int) -> tuple[Any, Any]:
    top = z.max()
    value = top - z[c] + np.log(np.exp(z - top).sum())
    return value, softmax(z) - np.eye(CLASSES)[c]


def times(weights: np.ndarray, formula: Formula = ce) -> Formula:
    def of(z: np.ndarray, c: int) -> tuple[Any, Any]:
        if weights[c] == 0:  # no part of the loss, also where it is infinite
            return 0.0, np.zeros(CLASSES)
        value, slope = formula(z, c)
        return weights[c] * value, weights[c] * slope

    return of


def focal(gamma: float, formula: Formula = ce) -> Formula:
    def of(z: np.ndarray, c: int) -> tuple[Any, Any]:
        value, slope = formula(z, c)
        if value <= 0:
            return 0.0, 0 * slope
        if value == INF:
            return value, slope
        miss = -np.expm1(-value)
        rate = miss**gamma + gamma * value * np.exp(-value) * miss ** (gamma - 1)
        return miss**gamma * value, rate * slope

    return of


def affine(factor: Any, shift: Any) -> Formula:
    """CE(factor * z + shift[c], c), with a shift for each label."""

    def of(z: np.ndarray, c: int) -> tuple[Any, Any]:
        value, slope = ce(factor * z + shift(c), c)
        return value, factor * slope

    return of


def ldam(scale: float, scale_logits: bool) -> Formula:
    margins = scale * 0.5 * (COUNTS / COUNTS.min()) ** -0.25
    return affine(scale if scale_logits else 1.0, lambda c: -margins * np.eye(CLASSES)[c])


def softmax_binary(z: np.ndarray, c: int) -> tuple[Any, Any]:
    p, total, slope = softmax(z), 0.0, np.zeros(CLASSES)
    for j in range(CLASSES):
        others = np.delete(z, j)
        with np.errstate(divide="ignore"):
            rest = np.log(np.exp(others - z.max()).sum()) - np.log(np.exp(z - z.max()).sum())
        clamped = min(ce(z, j)[0] if j == c else -rest, 100.0)
        total += clamped
        if clamped == 100:
            continue
        if j == c:
            slope += p - np.eye(CLASSES)[c]
        else:  # p_j (1[j = k] - p_k) / (1 - p_j), where 1 - p_j is the sum of the others
            slope += np.where(np.arange(CLASSES) == j, p[j], -p[j] * p / np.delete(p, j).sum())
    weight = losses.class_balanced_weights(COUNTS)[c] / CLASSES
    return weight * total, weight * slope


def smoothed(formula: Formula, amount: float) -> Formula:
    def of(z: np.ndarray, c: int) -> tuple[Any, Any]:
        parts = [formula(z, j) for j in range(CLASSES)]
        shares = (1 - amount) * np.eye(CLASSES)[c] + amount / CLASSES
        pairs = [(s * v, s * g) for s, (v, g) in zip(shares, parts, strict=True) if s > 0]
        return sum(v for v, _ in pairs), sum(g for _, g in pairs)

    return of


CE = losses.cross_entropy
NONE_OF_1 = np.array([0.5, 0.0, 2.0])
LOSSES: dict[str, tuple[Any, Formula]] = {
    "cross_entropy": (CE, ce),
    "weighted": (losses.weighted(CE, W), times(W)),
    "weighted, a class without": (losses.weighted(CE, NONE_OF_1), times(NONE_OF_1)),
    "class_balanced": (
        losses.class_balanced(COUNTS),
        times(losses.class_balanced_weights(COUNTS)),
    ),
    "focal": (losses.focal(2.0), focal(2.0)),
    "focal below 1": (losses.focal(0.5), focal(0.5)),
    "focal of weighted": (losses.focal(1.0, loss=losses.weighted(CE, W)), focal(1.0, times(W))),
    "focal of weighted, a class without": (
        losses.focal(1.5, loss=losses.weighted(CE, NONE_OF_1)),
        focal(1.5, times(NONE_OF_1)),
    ),
    "ldam": (losses.ldam(COUNTS, scale=2.0), ldam(2.0, True)),
    "ldam, unscaled": (losses.ldam(COUNTS, scale=2.0, scale_logits=False), ldam(2.0, False)),
    "logit_adjusted": (losses.logit_adjusted(COUNTS), affine(1.0, lambda c: np.log(PI))),
    "vs": (
        losses.vs(COUNTS, gamma=0.3, tau=0.75),
        affine((COUNTS / COUNTS.max()) ** 0.3, lambda c: 0.75 * np.log(PI)),
    ),
    "softmax_binary": (losses.softmax_binary(COUNTS), softmax_binary),
    "smoothed": (losses.smoothed(CE, 0.1), smoothed(ce, 0.1)),
    "smoothed by nothing": (losses.smoothed(CE, 0.0), smoothed(ce, 0.0)),
    "smoothed wholly": (losses.smoothed(losses.focal(1.0), 1.0), smoothed(focal(1.0), 1.0)),
    "deferred": (
        losses.deferred(CE, losses.focal(2.0), switch_step=3),
        focal(2.0),
    ),
}


def run(loss: Any, z: np.ndarray, labels: Any, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Losses of each row for the labels, and their slopes in its logits."""

    @quick_jit
    def both(z: Any, labels: Any) -> Any:
        values, pullback = jax.vjp(lambda z: loss(z, labels, 3), z)
        return values, pullback(jnp.ones_like(values))[0]

    values, slopes = both(jnp.asarray(z, dtype), labels)
    assert values.dtype == jnp.float32 and slopes.dtype == dtype
    return np.asarray(values, np.float64), np.asarray(slopes, np.float64)


# What is narrow is widened at the door of them all: quickly one such type of each.
NARROW = (jnp.float16, jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype, id=f"{dtype.__name__}-{name}",
            marks=[pytest.mark.slow] * (dtype == NARROW[place % 2]),
        )
        for dtype in (jnp.float32, *NARROW)
        for place, name in enumerate(LOSSES)
    ],
)  # fmt: skip
def test_values_and_slopes_in_closed_form(name: str, dtype: Any) -> None:
    loss, formula = LOSSES[name]
    narrow = dtype != jnp.float32
    z = Z[np.abs(np.where(np.isinf(Z), 0, Z)).max(axis=1) < 6e4] if narrow else Z
    rows = np.repeat(np.arange(len(z)), CLASSES)
    labels = np.tile(np.arange(CLASSES), len(z))
    z = np.asarray(jnp.asarray(z, dtype), np.float64)[rows]
    values, slopes = run(loss, z, labels, dtype)
    if not narrow:
        soft_values, soft_slopes = run(loss, z, jnp.asarray(np.eye(CLASSES)[labels], dtype), dtype)
        np.testing.assert_allclose(soft_values, values, rtol=1e-6)
        np.testing.assert_allclose(soft_slopes, slopes, rtol=1e-6, atol=1e-7)
    with np.errstate(invalid="raise"):
        want = [formula(row, label) for row, label in zip(z, labels, strict=True)]
    # float32 resolves a difference of logits as finely as the logits themselves.
    size = np.where(np.isinf(z), 0, np.abs(z)).max(axis=1)
    resolution = np.minimum(4e-7 * (1 + size), 1)
    slope_error = 2 ** -(10 if dtype == jnp.float16 else 7) if narrow else 1e-5
    for i, (value, slope) in enumerate(want):
        np.testing.assert_allclose(values[i], value, rtol=2e-5, atol=3 * resolution[i])
        np.testing.assert_allclose(slopes[i], slope, rtol=slope_error, atol=3 * resolution[i])


def test_one_class_alone() -> None:
    for loss in (CE, losses.focal(), losses.ldam([9]), losses.vs([9]), losses.softmax_binary([9])):
        values, slopes = run(loss, np.array([[0.7]]), np.array([0]), jnp.float32)
        assert values.tolist() == [0] and slopes.tolist() == [[0]]


def test_smoothing_keeps_the_factor_of_the_loss_inside() -> None:
    """Of two rows, normalised by the weights of their labels: written out, not by `smoothed`."""
    loss = losses.smoothed(losses.weighted(CE, W, normalise="weights"), 0.3)
    z, labels = np.array([[0.3, -1.2, 0.7], [1.0, 0.0, -1.0]]), np.array([0, 2])
    want = [
        smoothed(times(W), 0.3)(*row)[0] / W[labels].mean() for row in zip(z, labels, strict=True)
    ]
    np.testing.assert_allclose(loss(jnp.asarray(z), labels), want, rtol=1e-6)


@pytest.mark.parametrize("amount", [0.0, 1.0])
def test_nothing_of_an_infinite_loss_is_nothing(amount: float) -> None:
    """Whether the amount is known or traced: of one row, its loss for each label."""
    z = jnp.array([[0.0, -np.inf, -np.inf]])

    def per_class(amount: Any) -> Any:
        return losses.smoothed(CE, amount).per_class(z)[0]

    want = [0, np.inf, np.inf] if amount == 0 else [np.inf] * 3
    np.testing.assert_array_equal(per_class(amount), want)
    np.testing.assert_array_equal(jax.jit(per_class)(amount), want)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.0, 0.5])
def test_focal_of_a_loss_below_0_is_its_formula(gamma: float, traced: bool) -> None:
    """(1 - e^-l)^gamma l, and its slope; of a power that is no whole number NaN."""
    l = np.array([-1.0, -0.25, 2.0])  # noqa: E741
    base = 1 - np.exp(-l)
    with np.errstate(invalid="ignore"):
        value = base**gamma * l
        slope = base**gamma + gamma * base ** (gamma - 1) * np.exp(-l) * l

    def total(z: Any, gamma: Any) -> Any:
        found = losses.focal(gamma, loss=losses.Loss(lambda z, step: z))(z, jnp.zeros(3, int))
        return found.sum(), found

    both = jax.grad(total, has_aux=True)
    z = jnp.asarray(l[:, None], jnp.float32)
    got = jax.jit(both)(z, gamma) if traced else both(z, gamma)
    np.testing.assert_allclose(got[1], value, rtol=1e-5)
    np.testing.assert_allclose(got[0][:, 0], slope, rtol=1e-5)
