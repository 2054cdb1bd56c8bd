"""Losses of classification against their formulas in NumPy, in float64; then their traps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import losses

COUNTS = np.array([500, 60, 9, 1])
CLASSES, ROWS, SWITCH = len(COUNTS), 6, 3

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# ------------------------------------------------------------ the formulas, row by row, one label


def ce(z: Any, y: int) -> float:
    return float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[y])


def cb_weights(beta: float) -> Any:
    w = np.array([(1 - beta) / (1 - beta ** float(n)) for n in COUNTS])
    return w * len(COUNTS) / w.sum()


def focal(z: Any, y: int, gamma: float, w: Any = None) -> float:
    plain = ce(z, y) * (1 if w is None else w[y])
    return float((1 - np.exp(-plain)) ** gamma * plain)


def ldam(z: Any, y: int, max_margin: float, scale: float, scale_logits: bool = True) -> float:
    raw = COUNTS**-0.25
    margin = raw[y] * max_margin / raw.max()
    z = z.copy()
    if not scale_logits:  # the SSE-SAM release
        z[y] -= scale * margin
        return ce(z, y)
    z[y] -= margin
    return ce(scale * z, y)


def vs(z: Any, y: int, gamma: float, tau: float) -> float:
    d = (COUNTS.max() / COUNTS) ** gamma
    return ce(z / d + tau * np.log(COUNTS / COUNTS.sum()), y)


def softmax_binary(z: Any, y: int, beta: float) -> float:
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    t = np.arange(len(z)) == y
    with np.errstate(divide="ignore"):
        terms = np.where(t, np.maximum(np.log(p), -100), np.maximum(np.log(1 - p), -100))
    return float(cb_weights(beta)[y] * -terms.mean())


def smooth(z: Any, y: int, amount: float, w: Any = None) -> float:
    w = np.ones(len(z)) if w is None else w
    target = (1 - amount) * (np.arange(len(z)) == y) + amount / len(z)
    return sum(target[c] * w[c] * ce(z, c) for c in range(len(z)))


W = np.array([0.1, 0.5, 1.4, 2.0])
PLAIN_LDAM = losses.ldam(COUNTS, max_margin=0.5, scale=30.0)

# name -> (loss, the loss of one row and one label)
LOSSES: dict[str, tuple[Callable[..., Any], Callable[[Any, int], float]]] = {
    "cross_entropy": (losses.cross_entropy, ce),
    "class_balanced": (
        losses.class_balanced(COUNTS, 0.99),
        lambda z, y: cb_weights(0.99)[y] * ce(z, y),
    ),
    "focal": (losses.focal(2.0), partial(focal, gamma=2.0)),
    "focal-0.5": (losses.focal(0.5), partial(focal, gamma=0.5)),
    "focal-0": (losses.focal(0.0), ce),
    "focal-weights-inside": (
        losses.focal(1.0, loss=losses.weighted(losses.cross_entropy, W)),
        partial(focal, gamma=1.0, w=W),
    ),
    "focal-weights-outside": (
        losses.weighted(losses.focal(1.0), W),
        lambda z, y: W[y] * focal(z, y, 1.0),
    ),
    "ldam": (PLAIN_LDAM, partial(ldam, max_margin=0.5, scale=30.0)),
    "ldam-release": (
        losses.ldam(COUNTS, max_margin=0.5, scale=30.0, scale_logits=False),
        partial(ldam, max_margin=0.5, scale=30.0, scale_logits=False),
    ),
    "ldam-drw": (
        losses.deferred(PLAIN_LDAM, losses.weighted(PLAIN_LDAM, W), switch_step=SWITCH),
        lambda z, y: W[y] * ldam(z, y, 0.5, 30.0),
    ),
    "logit_adjusted": (losses.logit_adjusted(COUNTS), partial(vs, gamma=0.0, tau=1.0)),
    "logit_adjusted-0.75": (
        losses.logit_adjusted(COUNTS, tau=0.75),
        partial(vs, gamma=0.0, tau=0.75),
    ),
    "vs": (losses.vs(COUNTS), partial(vs, gamma=0.3, tau=1.0)),
    "softmax_binary": (losses.softmax_binary(COUNTS), partial(softmax_binary, beta=0.9999)),
    "smoothed": (losses.smoothed(losses.cross_entropy, 0.1), partial(smooth, amount=0.1)),
    "smoothed-weighted": (
        losses.smoothed(losses.weighted(losses.cross_entropy, W), 0.1),
        partial(smooth, amount=0.1, w=W),
    ),
}
NAMES = sorted(LOSSES)
# Of another's code with other numbers; each equals its formula below.
LIKE_ANOTHER = ("focal-0", "focal-weights-outside", "logit_adjusted-0.75", "smoothed")


def batch(seed: int = 0, scale: float = 1.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(ROWS, CLASSES)), rng.integers(CLASSES, size=ROWS)


def mixed(y: Any) -> Any:
    one_hot = np.eye(CLASSES)[y]
    return 0.6 * one_hot + 0.4 * one_hot[::-1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_each_loss_equals_its_formula(name: str) -> None:
    loss, by_hand = LOSSES[name]
    z, y = batch()
    soft = mixed(y)
    hard_losses, soft_losses = quick(lambda z: (loss(z, y, SWITCH), loss(z, soft, SWITCH)))(z)
    expected = np.array([[by_hand(row, c) for c in range(CLASSES)] for row in z])
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(hard_losses, expected[np.arange(ROWS), y], **tolerance)
    # Mixup: the mean over the label, which is lam loss(a) + (1 - lam) loss(b).
    np.testing.assert_allclose(soft_losses, (soft * expected).sum(axis=1), **tolerance)
    assert hard_losses.dtype == jnp.float64


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["softmax_binary", "focal-0.5", "ldam", "smoothed-weighted"])
def test_gradients_where_there_is_a_trap(name: str) -> None:
    loss, _ = LOSSES[name]
    z, y = batch(seed=1, scale=3.0)
    if name == "ldam":
        z = z / 10

    def mean_loss(z: Any) -> Any:
        return loss(z, y, SWITCH).mean()

    directions = np.random.default_rng(2).normal(size=(3, *z.shape))
    h = 1e-5
    points = np.concatenate([z + h * directions, z - h * directions])
    values, gradient = quick(
        lambda z, points: (jax.lax.map(mean_loss, points), jax.grad(mean_loss)(z))
    )(z, points)
    slopes = (values[:3] - values[3:]) / (2 * h)
    np.testing.assert_allclose(
        [(gradient * d).sum() for d in directions], slopes, rtol=1e-7, atol=1e-9
    )


# ------------------------------------------------------------------- every loss keeps its manners


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in LIKE_ANOTHER)) for x in NAMES]
)
def test_dtypes_strange_labels_and_extreme_logits(name: str) -> None:
    loss, _ = LOSSES[name]
    z, y = batch()
    strange = np.where(np.arange(ROWS) == 2, -1, np.where(np.arange(ROWS) == 4, CLASSES, y))
    with_nan = np.float32(z)
    with_nan[1, 0] = np.nan
    large = np.float32(1e4) * np.eye(CLASSES, dtype=np.float32)
    large = np.concatenate([large, large])
    right_then_wrong = np.arange(2 * CLASSES) % CLASSES
    right_then_wrong[CLASSES:] = (right_then_wrong[CLASSES:] + 1) % CLASSES
    soft = np.float32(0.6) * np.eye(CLASSES, dtype=np.float32)[right_then_wrong] + np.float32(0.1)

    def mean_loss(z: Any, labels: Any) -> Any:
        return loss(z, labels, SWITCH).mean()

    def run(z: Any, large: Any) -> Any:
        low = loss(jnp.asarray(z, jnp.bfloat16), strange, SWITCH)
        at_large = [jax.value_and_grad(mean_loss)(large, y) for y in (right_then_wrong, soft)]
        return loss(z, strange, SWITCH), low, loss(with_nan, y, SWITCH), at_large

    full, low, of_nan, at_large = quick(run)(np.float32(z), large)
    # bfloat16 logits are computed in float32; no label is ever taken for another class.
    for result in (full, low):
        assert (result.shape, result.dtype) == ((ROWS,), jnp.float32)
        np.testing.assert_array_equal(np.isnan(result), (strange < 0) | (strange == CLASSES))
    np.testing.assert_array_equal(np.isnan(of_nan), np.arange(ROWS) == 1)
    chex.assert_tree_all_finite(at_large)


def test_every_loss_goes_with_a_rule() -> None:
    z, y = batch()
    rule = ij.rules.imbsam(COUNTS, rho=0.1, eta=9)
    x = np.float32(z)

    def gradients(params: Any) -> Any:
        found = {}
        for name, (loss, _) in LOSSES.items():
            f = ij.value_and_grad(lambda p, step, loss=loss: (loss(x @ p, y, step), None), rule)
            found[name] = f(params, y, SWITCH)[1]
        return found

    found = jax.eval_shape(gradients, jnp.eye(CLASSES))
    assert {leaf.shape for leaf in jax.tree.leaves(found)} == {(CLASSES, CLASSES)}


# ---------------------------------------------------------------------------------- class weights


def test_class_balanced_weights_of_the_papers() -> None:
    cifar100 = losses.class_balanced_weights(ij.long_tail_counts(100, 500, 100))
    np.testing.assert_allclose(cifar100[[0, 99]], [0.045, 4.378], atol=5e-4)
    cifar10 = losses.class_balanced_weights(ij.long_tail_counts(10, 5000, 100))
    np.testing.assert_allclose(cifar10[[0, 9]], [0.0506, 3.993], atol=5e-4)
    for weights in (cifar100, cifar10):
        np.testing.assert_allclose(weights.sum(), len(weights), rtol=1e-14)


def test_class_balanced_weights_limits() -> None:
    np.testing.assert_allclose(losses.class_balanced_weights(COUNTS, 0.0), 1.0)
    inverse = (1 / COUNTS) * CLASSES / (1 / COUNTS).sum()
    np.testing.assert_allclose(losses.class_balanced_weights(COUNTS, 1 - 1e-12), inverse, rtol=1e-8)
    np.testing.assert_allclose(losses.class_balanced_weights(COUNTS, 0.9), cb_weights(0.9))


@pytest.mark.usefixtures("x64")
def test_the_two_normalisations() -> None:
    z, y = batch()
    plain = np.array([ce(row, c) for row, c in zip(z, y, strict=True)])
    by_batch = quick(losses.weighted(losses.cross_entropy, W))
    by_weights = quick(losses.weighted(losses.cross_entropy, W, normalise="weights"))
    np.testing.assert_allclose(by_batch(z, y).mean(), (W[y] * plain).sum() / ROWS, rtol=1e-12)
    np.testing.assert_allclose(
        by_weights(z, y).mean(), (W[y] * plain).sum() / W[y].sum(), rtol=1e-12
    )
    soft = mixed(y)
    each = np.array([[ce(row, c) for c in range(CLASSES)] for row in z])
    np.testing.assert_allclose(
        by_weights(z, soft).mean(), (soft * W * each).sum() / (soft * W).sum(), rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_what_wraps_a_loss_keeps_its_normalisation() -> None:
    """Smoothed and deferred losses divide by the weights of the batch as the loss in them does."""
    z, y = batch()
    amount = 0.3
    by_weights = losses.weighted(losses.cross_entropy, W, normalise="weights")
    wrapped = {
        "smoothed": (losses.smoothed(by_weights, amount), partial(smooth, amount=amount, w=W)),
        "deferred": (
            losses.deferred(losses.cross_entropy, by_weights, switch_step=SWITCH),
            lambda z, y: W[y] * ce(z, y),
        ),
        "deferred to smoothed": (
            losses.deferred(
                losses.cross_entropy, losses.smoothed(by_weights, amount), switch_step=SWITCH
            ),
            partial(smooth, amount=amount, w=W),
        ),
        "class_balanced": (
            losses.class_balanced(COUNTS, 0.9, normalise="weights"),
            lambda z, y: cb_weights(0.9)[y] * ce(z, y),
        ),
    }
    for name, (loss, by_hand) in wrapped.items():
        w = cb_weights(0.9) if name == "class_balanced" else W
        rows = np.array([by_hand(row, c) for row, c in zip(z, y, strict=True)])
        got = quick(partial(loss, step=SWITCH))(z, y)
        np.testing.assert_allclose(got, rows / w[y].mean(), rtol=1e-12, err_msg=name)


@pytest.mark.usefixtures("x64")
def test_the_sum_of_weights_leaves_out_padding() -> None:
    z, y = batch()
    loss = quick(losses.weighted(losses.cross_entropy, W, normalise="weights"))
    padded_z = np.concatenate([z, np.ones((3, CLASSES))])
    padded_y = np.concatenate([y, [-1, 0, 3]])
    mask = np.arange(ROWS + 3) < ROWS
    padded = loss(padded_z, padded_y, mask=mask)
    np.testing.assert_allclose(padded[:ROWS], loss(z, y), rtol=1e-12)
    # The mean over real rows is what value_and_grad takes with the same mask.
    raw = losses.weighted(losses.cross_entropy, W, normalise="weights")
    f = ij.value_and_grad(lambda p, y, m: (raw(padded_z * p, y, mask=m), None), ij.rules.sgd(4))
    (mean, _), _ = quick(f)(1.0, padded_y, padded_y, mask, mask=mask)
    np.testing.assert_allclose(mean, loss(z, y).mean(), rtol=1e-12)
    assert np.all(np.isfinite(loss(z, y, mask=np.zeros(ROWS, bool))))


@pytest.mark.usefixtures("x64")
def test_the_sum_of_weights_over_devices() -> None:
    z, y = batch()
    loss = losses.weighted(losses.cross_entropy, W, normalise="weights", axis_name="b")
    apart = quick(jax.vmap(loss, axis_name="b"))(z.reshape(2, 3, CLASSES), y.reshape(2, 3))
    whole = quick(losses.weighted(losses.cross_entropy, W, normalise="weights"))
    np.testing.assert_allclose(apart.ravel(), whole(z, y), rtol=1e-12)


# ------------------------------------------------------------------------- deferred re-weighting


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("normalise", ["batch", "weights"])
def test_deferred_switches_at_its_step(normalise: Any) -> None:
    z, y = batch()
    first = losses.ldam(COUNTS)
    second = losses.weighted(first, W, normalise=normalise)
    drw = losses.deferred(first, second, switch_step=SWITCH)
    traces = []

    @quick
    def traced(z: Any, step: Any) -> Any:
        traces.append(step)
        return drw(z, y, step)

    # Python ints choose while tracing.
    *each, before, after = quick(
        lambda z: (first(z, y), second(z, y), drw(z, y, SWITCH - 1), drw(z, y, SWITCH))
    )(z)
    np.testing.assert_array_equal((before, after), each)
    for step in (0, SWITCH - 1, SWITCH, SWITCH + 5):
        np.testing.assert_allclose(traced(z, step), each[step >= SWITCH], rtol=1e-12)
    assert len(traces) == 1


def test_deferred_of_plain_losses_is_a_plain_loss() -> None:
    """It may be weighted, and taken in passes over a part of the batch."""
    plain, weighted = losses.focal(), losses.weighted(losses.focal(), W, normalise="weights")
    assert losses.deferred(plain, plain, switch_step=3).factor is None
    for pair in ((plain, weighted), (weighted, plain)):
        assert losses.deferred(*pair, switch_step=3).factor is not None


def test_deferred_needs_a_step() -> None:
    drw = losses.deferred(losses.cross_entropy, losses.focal(), switch_step=3)
    with pytest.raises(ValueError, match=r"call loss\(logits, labels, step\)"):
        drw(jnp.zeros((1, 2)), jnp.array([0]))
    with pytest.raises(ValueError, match="switch_step"):
        losses.deferred(losses.cross_entropy, losses.focal(), switch_step=-1)
    # A Python int chooses while tracing: one loss is in the program, no branch.
    program = jax.make_jaxpr(lambda z: drw(z, jnp.array([0]), 2))(jnp.zeros((1, 2)))
    assert "cond" not in str(program)


# --------------------------------------------------------------------------------- single traps


@pytest.mark.usefixtures("x64")
def test_ldam_margins_of_the_papers() -> None:
    counts = ij.long_tail_counts(100, 500, 100)
    loss = losses.ldam(counts, max_margin=0.5, scale=1.0)
    # Two equal cosines among others at -inf: the loss is log(1 + exp(margin)).
    z = np.full((2, 100), -1e9)
    z[0, [0, 1]] = z[1, [99, 1]] = 0.0
    margins = np.log(np.expm1(quick(loss)(z, np.array([0, 99]))))
    np.testing.assert_allclose(margins, [0.158, 0.5], atol=2e-4)


def test_ldam_of_soft_labels_keeps_small_losses_in_float32() -> None:
    # p rounds to 1 here: a sum over the others by subtraction would be 0, its logarithm -inf.
    z = np.float32([[1.0, -1.0, -0.9, -0.8]])
    margin = 0.5 * COUNTS[0] ** -0.25
    exact = np.log1p(np.exp(30 * (np.float64(z[0, 1:]) - (z[0, 0] - margin))).sum())
    label = np.array([0])
    for labels in (label, np.float32(np.eye(CLASSES))[label]):
        result = quick(losses.ldam(COUNTS, scale=30.0))(z, labels)
        np.testing.assert_allclose(result, exact, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_softmax_binary_clamps_logarithms_at_minus_100() -> None:
    z = np.array([[500.0, 0.0, 0.0, 0.0]])
    loss = losses.softmax_binary(COUNTS)
    w = losses.class_balanced_weights(COUNTS)
    # Label 1: log p_1 = -500 and log(1 - p_0) = -500 + log 3 count 100 each.
    value, gradient = quick(jax.value_and_grad(lambda z: loss(z, np.array([1])).sum()))(z)
    np.testing.assert_allclose(value, w[1] * 200 / CLASSES, rtol=1e-12)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)  # as flat as the clamp


def test_focal_of_a_certain_example_is_flat() -> None:
    z = np.float32([[200.0, 0.0, 0.0, 0.0]])

    def run(z: Any, gamma: float) -> Any:
        return jax.value_and_grad(lambda z: losses.focal(gamma)(z, np.array([0])).sum())(z)

    for value, gradient in quick(lambda z: [run(z, gamma) for gamma in (0.5, 1.0, 2.0)])(z):
        assert float(value) == 0
        np.testing.assert_array_equal(gradient, 0)


def test_an_infinite_loss_of_a_class_outside_the_label_adds_nothing() -> None:
    z = np.float32([[0.0, 1.0, -np.inf, 0.5]])
    soft = np.float32([[0.5, 0.5, 0.0, 0.0]])
    result = losses.cross_entropy(z, soft)
    np.testing.assert_allclose(result, 0.5 * (ce(z[0], 0) + ce(z[0], 1)), rtol=1e-6)


# ------------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: losses.class_balanced_weights([5, 0]), "class 1 has count 0"),
        (lambda: losses.class_balanced_weights([5, 2], 1.0), "beta must be at least 0 and below 1"),
        (lambda: losses.class_balanced_weights([5, 2], -0.1), "beta"),
        (lambda: losses.weighted(losses.cross_entropy, [1.0, -1.0]), "finite and at least 0"),
        (lambda: losses.weighted(losses.cross_entropy, [1.0, np.nan]), "finite and at least 0"),
        (lambda: losses.weighted(losses.cross_entropy, 1.0), r"float\[C\]"),
        (lambda: losses.weighted(losses.focal(), [1.0], normalise="sum"), "'batch' or 'weights'"),
        (lambda: losses.focal(-1.0), "gamma must be finite"),
        (lambda: losses.ldam([5, 0]), "class 1 has count 0"),
        (lambda: losses.ldam([5, 2], max_margin=-0.5), "max_margin must be finite"),
        (lambda: losses.ldam([5, 2], scale=0.0), "scale must be positive"),
        (lambda: losses.logit_adjusted([5, 2], tau=np.inf), "tau must be finite"),
        (lambda: losses.vs([5, 2], gamma=-0.1), "gamma must be finite"),
        (lambda: losses.vs([-1, 2]), "class 0 has count -1"),
        (lambda: losses.softmax_binary([5, 2], beta=2.0), "beta"),
        (lambda: losses.smoothed(losses.cross_entropy, 1.5), "between 0 and 1"),
    ],
)
def test_bad_numbers_are_refused_when_built(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_calls_are_refused() -> None:
    z, y = jnp.zeros((2, 3)), jnp.array([0, 1])
    with pytest.raises(ValueError, match="made for 4 classes, the logits have 3"):
        losses.ldam(COUNTS)(z, y)
    with pytest.raises(ValueError, match=r"logits must be float\[B, C\]"):
        losses.focal()(jnp.zeros(3), y)
    with pytest.raises(ValueError, match="soft labels have shape"):
        losses.cross_entropy(z, jnp.zeros((2, 4)))
    with pytest.raises(TypeError, match="pass a loss made by"):
        losses.focal(loss=lambda logits, labels: jnp.zeros(2))
    by_weights = losses.weighted(losses.cross_entropy, [1.0, 2.0, 3.0], normalise="weights")
    with pytest.raises(ValueError, match="normalise after modulating"):
        losses.focal(loss=by_weights)
    with pytest.raises(ValueError, match="already divided by its weights"):
        losses.weighted(by_weights, [1.0, 2.0, 3.0])
