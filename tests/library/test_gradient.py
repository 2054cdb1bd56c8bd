"""What must stay true of the gradient, through `value_and_grad`.

Most tests use a model whose sums can be written down: the loss of an example is half its squared
distance to the parameters, so `grad L[w](theta) = (1/B) sum_i w[y_i] (theta - x_i)`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imbsam_jax as ij
import reference
from imbsam_jax import rules
from rule_table import (
    ASCENTS,
    BY_ID,
    CLASSES,
    COUNTS,
    ETA,
    METHODS,
    RHO,
    RULES,
    SWITCH,
    Row,
    decaying,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    row_id,
    to_library,
    to_reference,
)

TWO = [9, 3]  # class 0 is head, class 1 tail
IMBSAM = rules.imbsam(TWO, rho=0.1, eta=4)
STAGED = rules.stagewise(rules.sgd(2), IMBSAM, switch_step=5)

THETA = np.array([0.5, -1.0, 2.0])
X = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [3.0, -1.0, 0.5], [0.0, 0.0, -2.0], [1.0, 1, 1]])
LABELS = np.array([0, 1, 0, 1, 1])


def distances(theta: Any, x: Any) -> tuple[Any, Any]:
    """Half the squared distance to each row; the aux tells where it was evaluated."""
    return 0.5 * ((theta[None] - x) ** 2).sum(axis=-1), theta


def mean_pull(theta: Any, x: Any, weights: Any) -> Any:
    """grad (1/B) sum_i w_i loss_i(theta)."""
    return (weights[:, None] * (theta - x)).sum(0) / len(x)


def imbsam_by_hand(x: Any = X, labels: Any = LABELS, rho: float = 0.1) -> tuple[Any, Any]:
    """(gradient, point of the tail's second pass)."""
    tail = (labels == 1).astype(float)
    d = mean_pull(THETA, x, tail)
    length = np.linalg.norm(d)
    point = THETA + rho * d / length if length > 0 else THETA
    return mean_pull(THETA, x, 1 - tail) + mean_pull(point, x, tail), point


def by_reference(row: Row, x: Any, y: Any, step: int = SWITCH, rho: float = RHO) -> Any:
    return row.gradient(init_params(), x, y, step, rho)


def assert_trees(got: Any, want: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


@cache
def each_method() -> Any:
    """What every method makes of a batch of 7 rows: one program, traced once, for many tests."""

    @chex.assert_max_traces(n=1)
    def all_of_them(
        params: Any, labels: Any, x: Any, y: Any, mask: Any, rho: Any, step: Any, scale: Any
    ) -> Any:
        def scaled(params: Any, x: Any, y: Any) -> Any:
            losses, logits = losses_fn(params, x, y)
            return scale * losses, logits

        def radius(row: Row) -> Any:
            # Some steps are as long as 1 / sqrt(length of the gradient): made up for, so that the
            # step is that of the loss before it is scaled.
            made_up = jnp.sqrt(jnp.where(scale == 0, 1, scale)) if row.bound else 1.0
            return lambda step: made_up * rho[0] * (1 + rho[1] * step)

        return {
            row.id: row.value_and_grad(scaled, radius(row))(
                params, labels, x, y, step=step, mask=mask
            )
            for row in METHODS
        }

    return quick_jit(all_of_them, donate_argnums=0)


def _arguments(
    x: Any, y: Any, *, labels: Any = None, mask: Any = True, rho: float = RHO, slope: float = 0.0,
    step: int = SWITCH, scale: float = 1.0,
) -> tuple[Any, ...]:  # fmt: skip
    params, mask = to_library(init_params()), np.broadcast_to(mask, len(y))
    labels = y if labels is None else labels
    return params, labels, x, y, mask, np.array([rho, slope]), step, scale


def by_each_method(x: Any, y: Any, **changes: Any) -> list[tuple[Row, Any, Any]]:
    """(row, (mean loss, logits), gradient in the transcription's form) of each, in float64.

    The radius is rho (1 + slope step); the loss is multiplied by scale; the labels that choose the
    weights are the loss's own, if they are not given. The parameters are donated.
    """
    with jax.enable_x64(True):
        args = _arguments(x, y, **changes)
        got = each_method()(*args)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(args[0]))
    got = jax.device_get(got)
    return [(row, got[row.id][0], to_reference(got[row.id][1])) for row in METHODS]


# ------------------------------------------------------------------------------------- the limits


@pytest.mark.usefixtures("x64")
def test_limits_of_the_rules() -> None:
    """Each pair of rules is one method at these numbers."""
    ones = np.ones(CLASSES)
    sse = rules.sse_sam(COUNTS, head_rho=0.2, tail_rho=RHO, eta=ETA, switch_step=3)
    methods = {
        "sgd": rules.sgd(CLASSES),
        "sam": rules.sam(CLASSES, rho=RHO),
        "imbsam": rules.imbsam(COUNTS, rho=RHO, eta=ETA),
    }
    pairs = {
        "focal strength 0": (rules.focal_sam(COUNTS, rho=RHO, gamma=1.3, strength=0.0), "sgd"),
        "focal strength 1, gamma 0": (
            rules.focal_sam(COUNTS, rho=RHO, gamma=0.0, strength=1.0),
            "sam",
        ),
        "ImbSAM with a tail of all classes": (
            lambda step: ij.ClassWeights(0 * ones, ones[None], np.array([RHO])),
            "sam",
        ),
        "SSE-SAM after its switch": (sse, "imbsam"),
        "SSE-SAM without a head radius": (
            rules.sse_sam(COUNTS, head_rho=0.0, tail_rho=RHO, eta=ETA, switch_step=100),
            "imbsam",
        ),
    }
    x, y = one_batch()

    @quick_jit
    def both(params: Any) -> Any:
        return {
            name: ij.value_and_grad(losses_fn, rule)(params, y, x, y, step=3)
            for name, rule in {**methods, **{name: pair[0] for name, pair in pairs.items()}}.items()
        }

    found = both(to_library(init_params()))
    for name, (_, same) in pairs.items():
        (loss, grads), (want_loss, want_grads) = found[name], found[same]
        assert_trees(loss, want_loss, rtol=1e-12)
        assert_trees(grads, want_grads, atol=1e-14)


def test_no_radius_is_weighted_sgd() -> None:
    x, y = one_batch()
    for row, _, grads in by_each_method(x, y, rho=0.0):
        weights = np.ones(CLASSES)
        if row.rule is not None:
            table = row.rule(0.0)(SWITCH)
            weights = table.groups.sum(0) + (0 if table.base is None else table.base)
        want = reference.weighted_gradient(init_params(), x, y, np.asarray(weights)[y] / len(y))
        assert_trees(grads, want, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_weight_decay_without_a_radius_is_that_of_the_optimizer() -> None:
    """g + wd theta: of a rule without groups, with one, with two, and of either stage."""
    without = {
        "sgd": rules.sgd(2),
        "sam": rules.sam(2, rho=0.0),
        "imbsam": rules.imbsam(TWO, rho=0.0, eta=4, tail_scale=2.0),
        "sse_sam": rules.sse_sam(TWO, head_rho=0.0, tail_rho=0.0, eta=4, switch_step=5),
    }

    @quick_jit
    def gradients(step: Any) -> Any:
        return {
            name: [
                ij.value_and_grad(distances, rule, ascent=ascent)(THETA, LABELS, X, step=step)[1]
                for ascent in (ij.Ascent(), ij.Ascent(weight_decay=0.3))
            ]
            for name, rule in without.items()
        }

    for step in (4, 5):
        for plain, decayed in gradients(step).values():
            np.testing.assert_allclose(decayed, plain + 0.3 * THETA, rtol=1e-14)


# --------------------------------------------------------------------- batches that perturb nothing


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
def test_a_batch_without_tail_is_not_perturbed(p: float) -> None:
    f = ij.value_and_grad(distances, IMBSAM, ascent=ij.Ascent(p=p))
    (loss, _), grads = f(THETA, np.zeros(5, int), X)
    np.testing.assert_allclose(grads, mean_pull(THETA, X, np.ones(5)), rtol=1e-14)
    assert np.isfinite(loss)


@pytest.mark.parametrize("label", [0, 2, 4], ids=["largest", "at eta", "smallest"])
def test_one_class_in_the_batch(label: int) -> None:
    x, _ = one_batch()
    y = np.full(len(x), label)
    for row, _, grads in by_each_method(x, y):
        assert_trees(grads, by_reference(row, x, y), atol=1e-12)


def test_a_zero_gradient_perturbs_nothing() -> None:
    x, y = one_batch()
    for row, (loss, _), grads in by_each_method(x, y, scale=0.0):
        assert loss == 0 and not any(leaf.any() for leaf in grads.values()), row.id


@cache
def gradients_at_rest() -> Any:
    def at_rest(params: Any, x: Any) -> Any:
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)]
        return sum(squares) * x, params

    @quick_jit
    def of_each(params: Any) -> Any:
        labels, x = np.array([0, 3, 4]), np.ones(3)
        return {row.id: row.value_and_grad(at_rest)(params, labels, x, step=0) for row in ASCENTS}

    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), to_library(init_params()))
    return params, of_each(params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", ASCENTS, ids=row_id)
def test_a_zero_gradient_stays_finite(row: Row) -> None:
    """Every example sits at the parameters, which are zero: so are directions and scales.

    Of p = inf the length is 1 there, 0^0, and it is the signs of 0 that perturb nothing.
    """
    params, found = gradients_at_rest()
    (loss, _), grads = found[row.id]
    assert loss == 0
    assert_trees(grads, params, atol=0)


@pytest.mark.usefixtures("x64")
def test_group_mean_of_an_absent_group_adds_nothing() -> None:
    f = ij.value_and_grad(distances, IMBSAM, ascent=ij.Ascent(group_mean=True))
    for label in (0, 1):
        _, grads = f(THETA, np.full(5, label), X, mask=np.arange(5) < 3)
        tail_point = imbsam_by_hand(X[:3], np.full(3, label))[1]
        np.testing.assert_allclose(grads, mean_pull(tail_point, X[:3], np.ones(3)), rtol=1e-12)


def test_a_mean_over_a_group_counts_rows_of_negative_weight() -> None:
    """As Focal-SAM's base has them where its strength is above 1."""
    table = ij.ClassWeights(np.array([-1.0, 1, 0]), np.array([[0.0, 0, 1]]), np.zeros(1))
    mean = ij.Ascent(group_mean=True)
    f = ij.value_and_grad(lambda w, x: (w * x, None), lambda step: table, ascent=mean)
    _, grads = quick_jit(f)(jnp.ones(()), np.arange(3), jnp.array([1.0, 5.0, 7.0]))
    assert grads == (5 - 1) / 2 + 7


# ------------------------------------------------------------- weight decay in the perturbed loss


@pytest.mark.usefixtures("x64")
def test_weight_decay_goes_with_every_way_to_ascend() -> None:
    """Norms, scales, masks and means over a group, with padding, against the transcription."""
    x, y = one_batch()
    mask = np.arange(7) != 2
    params = to_library(init_params())
    rows = [decaying(row) for row in ASCENTS if not row.ascent.weight_decay]

    @quick_jit
    def gradients(params: Any) -> Any:
        return {
            row.id: row.value_and_grad(losses_fn)(params, y, x, y, mask=mask)[1] for row in rows
        }

    got = gradients(params)
    for row in rows:
        assert_trees(to_reference(got[row.id]), by_reference(row, x[mask], y[mask]), atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("group_mean", [False, True])
def test_weight_decay_of_a_group_without_rows(group_mean: bool) -> None:
    """The decay is all of the tail's loss; but a mean over no row is none, and nothing moves."""
    ascent = ij.Ascent(weight_decay=0.3, group_mean=group_mean)
    (_, _, info), grads = ij.value_and_grad(distances, IMBSAM, ascent=ascent, info=True)(
        THETA, 0 * LABELS, X
    )
    length = np.linalg.norm(THETA)
    point = THETA if group_mean else THETA + 0.1 * THETA / length
    np.testing.assert_allclose(grads, mean_pull(THETA, X, np.ones(5)) + 0.3 * point, rtol=1e-12)
    np.testing.assert_allclose(info.ascent_norm, [0 if group_mean else 0.3 * length], rtol=1e-12)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, np.float32(-1)])
def test_bad_weight_decay_is_refused(bad: Any) -> None:
    ascent = ij.Ascent(weight_decay=bad)
    theta, x = jnp.asarray(THETA), jnp.asarray(X)
    fn = jax.jit(ij.class_weighted_grad(distances, LABELS, x))
    message = rf"weight_decay must be finite and at least 0, got {bad}"
    for rule in (rules.sgd(2), IMBSAM, STAGED):
        f = ij.value_and_grad(distances, rule, ascent=ascent)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda f=f: f(theta, LABELS, x, step=0))
        tx = ij.sharpness_aware(rule, ascent=ascent)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda tx=tx: tx.update(fn, tx.init(theta), theta))


# ---------------------------------------------------------------------- nothing broken is hidden


def test_no_method_hides_what_is_not_finite() -> None:
    x, y = one_batch()
    x[3, 0] = np.nan
    for row, (loss, _), grads in by_each_method(x, y):
        assert np.isnan(loss), row.id
        assert all(np.isnan(leaf).any() for leaf in grads.values()), row.id


@pytest.mark.parametrize("label", [-1, CLASSES, 99])
def test_no_method_takes_a_label_of_no_class(label: int) -> None:
    """The loss keeps its own labels: a one-hot loss of such a label is 0 under any weight."""
    x, y = one_batch()
    for labels in (np.where(np.arange(len(y)) == 2, label, y), np.full(len(y), label)):
        for row, _, grads in by_each_method(x, y, labels=labels):
            assert all(np.isnan(leaf).all() for leaf in grads.values()), row.id


def test_a_label_of_no_class_shows_where_the_loss_drops_it() -> None:
    """A one-hot loss of such a label is 0 and constant, the library's own is NaN and constant."""
    x, y = X, np.array([0, 1, 1, 7, 0])
    w = np.ones((x.shape[1], 2))

    def one_hot(w: Any, x: Any, y: Any) -> Any:
        return -(jax.nn.one_hot(y, 2) * jax.nn.log_softmax(x @ w)).sum(axis=1), None

    def library(w: Any, x: Any, y: Any) -> Any:
        return ij.losses.cross_entropy(x @ w, y), None

    @quick_jit
    def gradients(w: Any, y: Any, x: Any) -> Any:
        return [
            (
                [
                    ij.value_and_grad(losses, rule)(w, y, x, y)[1]
                    for rule in (rules.sgd(2), rules.sam(2, rho=0.1), IMBSAM)
                ],
                ij.class_weighted_grad(losses, y, x, y)(w, jnp.ones(2)),
            )
            for losses in (one_hot, library)
        ]

    for grads in jax.tree.leaves(gradients(w, y, x)):
        assert np.isnan(grads).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 4], ids=["head row", "tail row"])
def test_numbers_that_are_not_finite_show(where: int, bad: float) -> None:
    x = X.copy()
    x[where, 1] = bad
    for rule in (rules.sgd(2), rules.sam(2, rho=0.1), IMBSAM):
        (loss, _), grads = ij.value_and_grad(distances, rule)(THETA, LABELS, x)
        assert not np.isfinite(loss) and not np.isfinite(grads[1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("label", [-1, -2, 2, 10**6])
def test_a_label_that_is_no_class_makes_the_gradient_nan(label: int) -> None:
    labels = LABELS.copy()
    labels[3] = label
    for rule in (rules.sgd(2), rules.sam(2, rho=0.1), IMBSAM):
        f = ij.value_and_grad(distances, rule)
        _, grads = f(THETA, labels, X)
        assert np.isnan(grads).all()
        assert np.isnan(ij.class_weighted_grad(distances, labels, X)(THETA, np.ones(2))).all()
        # As padding it is nothing.
        mask = np.arange(5) != 3
        masked = f(THETA, labels, X, mask=mask)
        assert_trees(masked, f(THETA, LABELS[mask], X[mask]), rtol=1e-12)


# ---------------------------------------------------------------------- loss, aux and randomness


@pytest.mark.parametrize("step", [0, SWITCH])
def test_loss_and_aux_are_of_the_clean_pass(step: int) -> None:
    x, y = one_batch()
    losses = reference.per_example_losses(init_params(), x, y)
    with jax.enable_x64(True):
        logits = losses_fn(to_library(init_params()), x, y)[1]
    for row, (loss, aux), _ in by_each_method(x, y, step=step):
        np.testing.assert_allclose(loss, losses.mean(), rtol=1e-14, err_msg=row.id)
        np.testing.assert_allclose(aux, logits, rtol=1e-13, err_msg=row.id)


def test_parameters_may_be_numpy_or_python_numbers() -> None:
    """Also without x64, where JAX holds no float64 (warnings are errors here)."""
    f = ij.value_and_grad(lambda theta, x: distances(theta * jnp.ones(3), x), IMBSAM)
    (loss, _), grads = f(0.5, LABELS, X)
    again = f(np.array([0.5]), LABELS.tolist(), X)
    np.testing.assert_allclose([loss, grads], [again[0][0], again[1][0]], rtol=1e-6)
    assert grads.dtype == again[1].dtype == jnp.float32


def test_the_mean_loss_is_unweighted_and_over_real_rows() -> None:
    """Unlike the gradient: tail_scale does not show in it."""
    f = ij.value_and_grad(distances, rules.imbsam(TWO, rho=0.1, eta=4, tail_scale=2.0))
    losses = 0.5 * ((THETA - X) ** 2).sum(-1)
    np.testing.assert_allclose(f(THETA, LABELS, X)[0][0], losses.mean(), rtol=1e-6)
    mask = np.array([True, False, True, True, False])
    np.testing.assert_allclose(f(THETA, LABELS, X, mask=mask)[0][0], losses[mask].mean(), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_both_passes_see_the_same_randomness() -> None:
    """Dropout of inputs by a key among the arguments, against one mask drawn beforehand."""

    def dropped(theta: Any, x: Any, key: Any) -> Any:
        keep = jax.random.bernoulli(key, 0.5, x.shape)
        return distances(theta, jnp.where(keep, x, 0))[0], keep

    key = jax.random.key(7)
    (_, keep), grads = ij.value_and_grad(dropped, IMBSAM)(THETA, LABELS, X, key)
    assert 0 < keep.sum() < keep.size
    np.testing.assert_allclose(grads, imbsam_by_hand(np.where(keep, X, 0))[0], rtol=1e-12)


# ------------------------------------------------------------- running statistics, pass by pass

STATS = np.array([5.0])


def with_running_mean(theta: Any, x: Any, stats: Any) -> tuple[Any, Any]:
    """The loss of `distances`; like a batch normalisation of x theta, the aux is a running mean."""
    return distances(theta, x)[0], 0.9 * stats + 0.1 * (x @ theta).mean()[None]


def next_args(args: Any, stats: Any) -> Any:
    return args[0], stats


def stats_after(*points: Any) -> Any:
    stats = STATS
    for point in points:
        stats = 0.9 * stats + 0.1 * (X @ point).mean()
    return stats


def _towards(weights: Any, rho: float) -> Any:
    d = mean_pull(THETA, X, weights)
    return THETA + rho * d / np.linalg.norm(d)


TAIL = (LABELS == 1).astype(float)
SSE = rules.sse_sam(TWO, head_rho=0.2, tail_rho=0.1, eta=4, switch_step=5)
# rule, step, the points of its passes in their order
PASSES = {
    "sgd": (rules.sgd(2), None, [THETA]),
    "sam": (rules.sam(2, rho=0.1), None, [THETA, _towards(np.ones(5), 0.1)]),
    "imbsam": (IMBSAM, None, [THETA, _towards(TAIL, 0.1)]),
    "sse_sam": (SSE, 4, [THETA, _towards(1 - TAIL, 0.2), _towards(TAIL, 0.1)]),
    "sse_sam, then": (SSE, 5, [THETA, _towards(TAIL, 0.1)]),
    "sgd_then_imbsam": (STAGED, 4, [THETA]),
    "sgd_then_imbsam, then": (STAGED, 5, [THETA, _towards(TAIL, 0.1)]),
}


@pytest.mark.usefixtures("x64")
def test_what_a_pass_returns_may_be_carried_to_the_next() -> None:
    """At theta first, then the groups in order; loss and gradient are as without."""

    def carried(rule: Any, carry: Any, step: Any) -> Any:
        f = ij.value_and_grad(with_running_mean, rule, passes=ij.passes.whole(carry=carry))
        (loss, stats), grads = f(THETA, LABELS, X, STATS, step=step)
        return stats, (loss, grads)

    @quick_jit
    def traced(steps: Any) -> Any:
        found, known = {}, {}
        for name, (rule, step, _) in PASSES.items():
            found[name] = [carried(rule, carry, steps.get(name)) for carry in (next_args, None)]
            if step is not None:
                known[name] = carried(rule, next_args, step)[0]
        return found, known

    steps = {name: step for name, (_, step, _) in PASSES.items() if step is not None}
    by_name, known = traced(steps)
    assert known.keys() == steps.keys()
    for name, (_, _, points) in PASSES.items():
        (got, outcome), (clean, without) = by_name[name]
        np.testing.assert_allclose(got, stats_after(*points), rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(clean, stats_after(THETA), rtol=1e-12, err_msg=name)
        assert_trees(outcome, without, rtol=0)
        # The same at a concrete step, which chooses a stage while tracing.
        np.testing.assert_allclose(known.get(name, got), got, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_next_pass_computes_with_what_was_carried() -> None:
    """Targets that move by one from pass to pass: the tail's second pass sees the second ones."""

    def moving(theta: Any, x: Any) -> Any:
        return distances(theta, x)[0], x + 1

    passes = ij.passes.whole(carry=lambda args, aux: (aux,))
    f = ij.value_and_grad(moving, IMBSAM, passes=passes, info=True)
    (loss, aux, info), grads = f(THETA, LABELS, X)
    point = imbsam_by_hand()[1]
    want = mean_pull(THETA, X, 1 - TAIL) + mean_pull(point, X + 1, TAIL)
    np.testing.assert_allclose(grads, want, rtol=1e-12)
    np.testing.assert_allclose(loss, distances(THETA, X)[0].mean(), rtol=1e-12)
    there = distances(point, X[TAIL == 1] + 1)[0].mean()
    np.testing.assert_allclose(info.perturbed_loss, [there], rtol=1e-12)
    np.testing.assert_allclose(aux, X + 2, rtol=1e-15)


@pytest.mark.parametrize(
    ("carry", "got"),
    [(lambda args, stats: stats, "ArrayImpl"), (lambda args, stats: (stats,), "a tuple of 1")],
)
def test_carry_must_return_the_args(carry: Any, got: str) -> None:
    f = ij.value_and_grad(with_running_mean, IMBSAM, passes=ij.passes.whole(carry=carry))
    with pytest.raises(TypeError, match=rf"args of the next pass, a tuple of 2 .*; got {got}"):
        f(*map(jnp.asarray, (THETA, LABELS, X, STATS)))


# -------------------------------------------------------------------------------------- padding


def test_padding_alone_changes_nothing() -> None:
    x, y = one_batch()
    for row, (loss, _), grads in by_each_method(x, y, mask=False):
        assert loss == 0 and not any(leaf.any() for leaf in grads.values()), row.id


@pytest.mark.usefixtures("x64")
def test_padding_alone_gives_zero() -> None:
    for rule in (rules.sgd(2), IMBSAM, rules.focal_sam(TWO, rho=0.1, gamma=1, strength=0.5)):
        for ascent in (
            ij.Ascent(),
            ij.Ascent(group_mean=True),
            ij.Ascent(weight_decay=0.3),
            ij.Ascent(weight_decay=0.3, group_mean=True),
        ):
            f = ij.value_and_grad(distances, rule, ascent=ascent)
            (loss, _), grads = f(THETA, LABELS, X, mask=np.zeros(5, bool))
            assert loss == 0 and not grads.any()


def test_losses_of_padding_may_be_anything() -> None:
    """A padding row whose loss is NaN, but not its derivative."""

    def nan_in_padding(theta: Any, x: Any, real: Any) -> Any:
        return jnp.where(real, distances(theta, x)[0], jnp.nan), None

    mask = np.arange(5) < 3
    (loss, _, info), grads = ij.value_and_grad(nan_in_padding, IMBSAM, info=True)(
        THETA, LABELS, X, mask, mask=mask
    )
    want = imbsam_by_hand(X[:3], LABELS[:3])[0]
    np.testing.assert_allclose(grads, want, rtol=1e-5)
    fn = ij.class_weighted_grad(nan_in_padding, LABELS, X, mask, mask=mask)
    tx = ij.sharpness_aware(IMBSAM)
    by_optax, _ = tx.update(fn, tx.init(THETA), THETA)
    np.testing.assert_allclose(by_optax, want, rtol=1e-5)
    assert np.isfinite(loss) and all(np.isfinite(value).all() for value in info)


# -------------------------------------------------------------------------------------- dtypes


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", METHODS, ids=row_id)
@pytest.mark.filterwarnings("ignore:parameter .* is bfloat16")
def test_dtypes_of_gradients_are_those_of_the_parameters(row: Row) -> None:
    """Of all three in one network: the losses are of the last."""
    x, y = one_batch()
    hidden = {"kernel": jnp.bfloat16, "bias": jnp.float32}
    dtypes = {"hidden": hidden, "head": {"kernel": jnp.bfloat16, "bias": jnp.float64}}
    params = jax.tree.map(
        lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype),
        to_library(init_params()),
        dtypes,
    )
    f = row.value_and_grad(losses_fn)

    def step(params: Any, x: Any, count: Any) -> Any:
        return f(params, y, x, y, step=count, mask=np.arange(7) > 1)

    (loss, _), grads = jax.eval_shape(step, params, x.astype(jnp.bfloat16), 0)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    assert (loss.shape, loss.dtype) == ((), jnp.float64)  # as the losses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_of_info_are_those_of_the_losses(dtype: Any) -> None:
    params = to_library(init_params(), dtype)
    x, y = one_batch()
    f = BY_ID["imbsam"].value_and_grad(losses_fn, info=True)
    (loss, _, info), _ = jax.eval_shape(lambda p, x: f(p, y, x, y), params, x.astype(dtype))
    assert {value.dtype for value in info} == {loss.dtype} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_coarse_parameters_warn_and_keep_their_dtype(dtype: Any) -> None:
    params = {"w": jnp.zeros(3, dtype), "b": jnp.zeros(1, jnp.float32)}

    def coarse(params: Any, x: Any) -> Any:
        return distances(params["w"], x.astype(dtype))[0], None

    name = jnp.dtype(dtype).name
    for rule in (IMBSAM, STAGED):
        f = jax.jit(ij.value_and_grad(coarse, rule, info=True))
        with pytest.warns(UserWarning, match=rf"\['w'\] is {name}.*keep parameters in float32"):
            (_, _, info), grads = f(params, LABELS, X, step=9)
        chex.assert_trees_all_equal_dtypes(grads, params)
        assert {value.dtype for value in info} == {jnp.dtype(jnp.float32)}
        expected = mean_pull(np.zeros(3), X, (LABELS == 1).astype(float))
        np.testing.assert_allclose(info.ascent_norm[0], np.linalg.norm(expected), rtol=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_radius_is_exact_at_any_scale_of_the_loss(scale: float) -> None:
    """The point of the second pass, told by its own gradient: grad / scale = theta + e - mean x."""

    def scaled(theta: Any, x: Any) -> Any:
        return scale * distances(theta, x)[0], None

    f = ij.value_and_grad(scaled, rules.sam(2, rho=0.5), info=True)
    (_, _, info), grads = f(jnp.asarray(THETA, jnp.float32), LABELS, X)
    e = np.asarray(grads, np.float64) / scale + X.mean(0) - THETA
    np.testing.assert_allclose(np.linalg.norm(e), 0.5, rtol=1e-5)
    clean = np.linalg.norm(THETA - X.mean(0))
    np.testing.assert_allclose(info.ascent_norm, [scale * clean], rtol=1e-5)


# ---------------------------------------------------------------------------------------- info


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("padded", [False, True])
def test_info_of_imbsam(padded: bool) -> None:
    mask = np.array([True, True, True, False, True]) if padded else np.ones(5, bool)
    f = ij.value_and_grad(distances, IMBSAM, info=True)
    (loss, aux, info), grads = f(THETA, LABELS, X, mask=mask if padded else None)
    x, labels = X[mask], LABELS[mask]
    want, point = imbsam_by_hand(x, labels)
    tail = x[labels == 1]
    np.testing.assert_allclose(grads, want, rtol=1e-12)
    d = mean_pull(THETA, x, (labels == 1).astype(float))
    np.testing.assert_allclose(info.ascent_norm, [np.linalg.norm(d)], rtol=1e-12)
    np.testing.assert_allclose(info.rows, [len(tail)], rtol=1e-12)
    np.testing.assert_allclose(info.loss, [distances(THETA, tail)[0].mean()], rtol=1e-12)
    np.testing.assert_allclose(info.perturbed_loss, [distances(point, tail)[0].mean()], rtol=1e-12)
    np.testing.assert_allclose(loss, distances(THETA, x)[0].mean(), rtol=1e-12)
    np.testing.assert_array_equal(aux, THETA)


@pytest.mark.usefixtures("x64")
def test_info_weighs_the_rows_of_a_group() -> None:
    """Focal-SAM: every row is in the group, by the rarity of its class."""
    f = ij.value_and_grad(
        distances, rules.focal_sam(TWO, rho=0.1, gamma=1, strength=0.8), info=True
    )
    (_, _, info), _ = f(THETA, LABELS, X)
    weights = np.where(LABELS == 1, 0.8 * 9 / 12, 0.8 * 3 / 12)
    losses = distances(THETA, X)[0]
    np.testing.assert_allclose(info.rows, [5])
    np.testing.assert_allclose(info.loss, [np.average(losses, weights=weights)], rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_info_of_a_group_without_rows() -> None:
    (_, _, info), _ = ij.value_and_grad(distances, IMBSAM, info=True)(THETA, 0 * LABELS, X)
    np.testing.assert_array_equal(info.rows, [0])
    np.testing.assert_array_equal(info.ascent_norm, [0])
    np.testing.assert_array_equal([info.loss, info.perturbed_loss], [[np.nan], [np.nan]])


def test_info_of_padding_alone_has_no_length() -> None:
    none = jnp.zeros(LABELS.shape, bool)
    f = ij.value_and_grad(distances, IMBSAM, info=True)
    (loss, _, info), _ = f(THETA, LABELS, X, mask=none)
    np.testing.assert_array_equal([loss, info.ascent_norm[0], info.rows[0]], [0, 0, 0])


def test_a_table_that_weighs_nothing_is_refused() -> None:
    empty = ij.ClassWeights(None, np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(ValueError, match="neither a base nor a group"):
        ij.value_and_grad(distances, lambda step: empty)(THETA, LABELS, X)


@pytest.mark.usefixtures("x64")
def test_info_of_stages_of_different_groups_is_padded_with_nan() -> None:
    """SGD (no group), then SSE-SAM (two groups), then ImbSAM (one), at traced steps."""
    sse = rules.sse_sam(TWO, head_rho=0.2, tail_rho=0.1, eta=4, switch_step=10)
    rule = rules.stagewise(rules.sgd(2), sse, switch_step=5)
    f = jax.jit(ij.value_and_grad(distances, rule, info=True))

    def info_at(step: int) -> Any:
        return f(THETA, LABELS, X, step=step)[0][2]

    alone = {
        step: ij.value_and_grad(distances, rule, info=True)(THETA, LABELS, X, step=step)[0][2]
        for step in (4, 5, 9, 10)
    }
    tail = mean_pull(THETA, X, (LABELS == 1).astype(float))
    head = mean_pull(THETA, X, (LABELS == 0).astype(float))
    norms = {
        4: [np.nan, np.nan],
        5: [np.linalg.norm(head), np.linalg.norm(tail)],
        9: [np.linalg.norm(head), np.linalg.norm(tail)],
        10: [np.linalg.norm(tail), np.nan],
    }
    for step, want in norms.items():
        np.testing.assert_allclose(info_at(step).ascent_norm, want, rtol=1e-12)
        assert_trees(info_at(step), alone[step], rtol=1e-12)
        for value in info_at(step):
            np.testing.assert_array_equal(np.isnan(value), np.isnan(want))


def test_info_of_a_rule_without_groups_is_empty() -> None:
    (_, _, info), _ = ij.value_and_grad(distances, rules.sgd(2), info=True)(THETA, LABELS, X)
    assert [value.shape for value in info] == [(0,)] * 4


@pytest.mark.parametrize("row", [BY_ID["imbsam"], BY_ID["sse_sam"]], ids=row_id)
def test_info_changes_nothing_else(row: Row) -> None:
    x, y = one_batch()
    params = to_library(init_params())
    outputs = quick_jit(
        lambda step: (
            row.value_and_grad(losses_fn)(params, y, x, y, step=step),
            row.value_and_grad(losses_fn, info=True)(params, y, x, y, step=step),
        )
    )(0)
    (value, grads), ((loss, aux, _), grads_with_info) = outputs
    assert_trees((value, grads), ((loss, aux), grads_with_info), rtol=1e-6)


# ------------------------------------------------------------------- steps, schedules and stages


@pytest.mark.parametrize("step", [1, SWITCH])
def test_a_radius_may_follow_a_schedule(step: int) -> None:
    """rho(step) at a traced step, every method that takes one, against the transcription."""
    x, y = one_batch()
    for row, _, grads in by_each_method(x, y, rho=0.05, slope=1.0, step=step):
        assert_trees(grads, by_reference(row, x, y, step, 0.05 * (step + 1)), atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", [row for row in RULES if row.needs_step], ids=row_id)
def test_a_traced_step_equals_a_concrete_one(row: Row) -> None:
    x, y = one_batch()
    params = to_library(init_params())
    f = row.value_and_grad(losses_fn)

    @quick_jit
    def known() -> Any:
        return {step: f(params, y, x, y, step=step) for step in (SWITCH - 1, SWITCH)}

    stages = known()
    for step, (value, grads) in stages.items():
        traced = [found for found in by_each_method(x, y, step=step) if found[0] == row]
        assert_trees(traced[0][1:], (value, to_reference(grads)), atol=1e-14)
        assert_trees(to_reference(grads), by_reference(row, x, y, step), atol=1e-12)
    apart = stages[SWITCH][1]["hidden"]["kernel"] - stages[SWITCH - 1][1]["hidden"]["kernel"]
    assert abs(apart).max() > 1e-4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", [STAGED, SSE], ids=["staged", "sse_sam"])
def test_a_traced_step_may_be_of_any_type(rule: Any) -> None:
    def f(step: Any) -> Any:
        return ij.value_and_grad(distances, rule)(THETA, LABELS, X, step=step)

    @quick_jit
    def each(*traced: Any) -> Any:
        return [f(step) for step in traced], {step: f(step) for step in (4, 5)}

    for step in (4, 5):
        traced, known = each(np.int32(step), np.uint8(step), float(step))
        for same in traced:
            assert_trees(same, known[step], atol=1e-14)
    assert abs(known[4][1] - known[5][1]).max() > 1e-4


@pytest.mark.usefixtures("x64")
def test_an_array_step_and_a_traced_switch_need_no_jit() -> None:
    for step, want in ((4, mean_pull(THETA, X, np.ones(5))), (5, imbsam_by_hand()[0])):
        f = ij.value_and_grad(distances, STAGED)
        for same in (step, np.int64(step), np.asarray(step), jnp.asarray(step)):
            np.testing.assert_allclose(f(THETA, LABELS, X, step=same)[1], want, rtol=1e-12)
        late = jax.jit(
            lambda switch, step=step: ij.value_and_grad(
                distances, rules.stagewise(*STAGED.stages, switch_step=switch)
            )(THETA, LABELS, X, step=step)[1]
        )
        np.testing.assert_allclose(late(5), want, rtol=1e-12)


def _flops(rule: Any, step: int | None) -> float:
    x, y = one_batch()
    f = ij.value_and_grad(losses_fn, rule)
    params = to_library(init_params(), jnp.float32)
    traced = quick_jit(lambda params: f(params, y, x, y, step=step)).trace(params)
    assert "cond[" not in str(traced.jaxpr)
    return traced.lower().cost_analysis()["flops"]  # before XLA drops what nothing needs


def test_a_stage_costs_what_it_costs_alone() -> None:
    """A concrete step selects the stage while tracing: the second does not pay for the first."""
    sse, imbsam = BY_ID["sse_sam"].rule(RHO), _flops(BY_ID["imbsam"].rule(RHO), None)
    assert _flops(sse, SWITCH) == imbsam < _flops(sse, SWITCH - 1)
    staged = BY_ID["sgd_then_imbsam"].rule(RHO)
    assert _flops(staged, 10**6) == imbsam
    assert _flops(staged, 0) == _flops(rules.sgd(CLASSES), None) < imbsam


@pytest.mark.parametrize("step", [None])
def test_a_missing_step_is_named(step: Any) -> None:
    for rule in (STAGED, rules.sam(2, rho=lambda step: 0.1)):
        for info in (False, True):
            f = ij.value_and_grad(distances, rule, info=info)
            with pytest.raises(ValueError, match=r"depends on the step .* pass step=, the number"):
                f(THETA, LABELS, X, step=step)


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda theta, x: (jnp.mean(x), None), ValueError, r"already averaged.*float\[5\].*mean"),
        (lambda theta, x: (x, None), ValueError, r"shape \[5, 3\] for 5 labels"),
        (lambda theta, x: (x[:4, 0], None), ValueError, r"shape \[4\] for 5 labels"),
        (
            lambda theta, x: x[:, 0],
            TypeError,
            r"pair \(losses float\[B\], aux\).* \(losses, None\)",
        ),
        (lambda theta, x: [x[:, 0], None], TypeError, r"Got list"),
        (lambda theta, x: (x[:, 0], None, 1), TypeError, r"Got tuple"),
    ],
)
def test_other_losses_are_refused(losses: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ij.value_and_grad(losses, IMBSAM)(THETA, LABELS, X)
    fn = None
    with pytest.raises(error, match=message):
        fn = ij.class_weighted_grad(losses, LABELS, X)
        fn(THETA, np.ones(2))


@pytest.mark.parametrize(
    ("labels", "mask", "message"),
    [
        (np.ones(5), None, r"int\[B\], or float\[B, C\] .*got float32\[5\]"),
        (np.ones((5, 2), int), None, r"got int32\[5, 2\]"),
        (np.ones((5, 1, 2)), None, r"got float32\[5, 1, 2\]"),
        (np.ones(5, bool), None, r"got bool\[5\]"),
        (LABELS, np.ones(4, bool), r"mask must be bool\[5\], got shape \(4,\)"),
        (LABELS, np.ones((5, 1), bool), r"mask must be bool\[5\], got shape \(5, 1\)"),
        (np.ones((5, 3)), None, r"soft labels have 3 classes, the rule has 2"),
    ],
)
def test_other_labels_and_masks_are_refused(labels: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ij.value_and_grad(distances, IMBSAM)(THETA, labels, X, mask=mask)
    with pytest.raises(ValueError, match=message):
        ij.class_weighted_grad(distances, labels, X, mask=mask)(THETA, np.ones(2))


# --------------------------------------------------------------------------- under transformations


def test_a_second_call_does_not_trace_again() -> None:
    """Other classes in the batch, other padding, another step: `each_method` refuses a retrace."""
    for step, kind in enumerate(["mixed", "no_tail", "only_tail", "mixed", "mixed"]):
        x, y = one_batch(step, kind=kind)
        real = np.arange(7) != step
        for row, _, grads in by_each_method(x, y, mask=real, step=step):
            want = by_reference(row, x[real], y[real], step)
            assert_trees(grads, want, atol=1e-12)


def test_every_method_is_lowered_for_gpus_and_tpus() -> None:
    """Without one at hand: to operations of StableHLO alone, no call of a library or the host."""
    with jax.enable_x64(True):
        args = _arguments(*one_batch())
        lowered = each_method().trace(*args).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert lowered.count("stablehlo.dot_general") > len(METHODS)
    assert "custom_call" not in lowered


@pytest.mark.usefixtures("x64")
def test_seeds_may_be_mapped_over() -> None:
    """vmap over parameters, the batch and the step shared: each seed its own perturbation."""
    x, y = one_batch()
    seeds = [init_params(seed) for seed in range(3)]
    stacked = to_library({name: np.stack([seed[name] for seed in seeds]) for name in seeds[0]})
    rows = [BY_ID["sam"], BY_ID["sse_sam"]]

    def one(params: Any, step: Any) -> Any:
        return [row.value_and_grad(losses_fn)(params, y, x, y, step=step) for row in rows]

    mapped = jax.device_get(quick_jit(jax.vmap(one, in_axes=(0, None)))(stacked, 1))
    for seed, params in enumerate(seeds):
        for row, ((loss, _), grads) in zip(rows, mapped, strict=True):
            losses = reference.per_example_losses(params, x, y)
            np.testing.assert_allclose(loss[seed], losses.mean(), atol=1e-13)
            got = to_reference(jax.tree.map(lambda leaf, seed=seed: leaf[seed], grads))
            assert_trees(got, row.gradient(params, x, y, 1, RHO), atol=1e-13)


def test_parameters_may_be_donated() -> None:
    """Of each method once in `by_each_method`; of a training step here, with and without."""
    f = BY_ID["sse_sam"].value_and_grad(losses_fn)
    x, y = one_batch()

    def step(params: Any, count: Any) -> Any:
        (_, _), grads = f(params, y, x, y, step=count)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), count + 1

    kept, donated = quick_jit(step), quick_jit(step, donate_argnums=(0, 1))
    a, b = ((to_library(init_params(), jnp.float32), jnp.int32(3)) for _ in range(2))
    for _ in range(3):
        previous = b
        a, b = kept(*a), donated(*b)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(previous))
    assert_trees(a, b, rtol=0)


# ------------------------------------------------------------------------ properties of all rules

LABEL_LISTS = st.lists(st.integers(0, CLASSES - 1), min_size=7, max_size=7)
SEEDS = st.integers(0, 2**16)


def _inputs(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(7, 5))


@settings(max_examples=15)
@given(LABEL_LISTS, SEEDS, st.permutations(range(7)))
def test_the_order_of_rows_does_not_matter(labels: Any, seed: int, order: Any) -> None:
    x, y, order = _inputs(seed), np.array(labels), np.asarray(order)
    pairs = zip(by_each_method(x[order], y[order]), by_each_method(x, y), strict=True)
    for (_, _, got), (_, _, want) in pairs:
        assert_trees(got, want, atol=1e-12)


NAMES = np.array([3, 0, 4, 1, 2])  # the class that each one was called before
RENAMED = ("sam", "imbsam_release", "focal_sam_1.1", "sse_sam", "cc_sam", "cc_sam_release")


@cache
def with_classes_renamed() -> Any:
    def renamed(row: Row) -> Any:
        if row.rule is None:
            return row.value_and_grad(losses_fn, class_counts=COUNTS[NAMES])
        table = row.rule(RHO)(0 if row.needs_step else None)
        base = None if table.base is None else table.base[NAMES]
        table = ij.ClassWeights(base, table.groups[:, NAMES], table.radii)
        return ij.value_and_grad(losses_fn, lambda step: table)

    return quick_jit(
        lambda params, labels, x, y: {
            name: renamed(BY_ID[name])(params, labels, x, y)[1] for name in RENAMED
        }
    )


@settings(max_examples=15)
@given(LABEL_LISTS, SEEDS)
def test_the_names_of_classes_do_not_matter(labels: Any, seed: int) -> None:
    """Classes renamed with their weights; the labels inside the loss stay."""
    x, y = _inputs(seed), np.array(labels)
    with jax.enable_x64(True):
        params = to_library(init_params())
        got = with_classes_renamed()(params, np.argsort(NAMES)[y], x, y)
    for row, _, want in by_each_method(x, y, step=0):
        if row.id in RENAMED:
            assert_trees(to_reference(got[row.id]), want, atol=1e-12)


@settings(max_examples=15)
@given(LABEL_LISTS, SEEDS, st.floats(2**-13, 2**13))
def test_the_scale_of_the_loss_scales_the_gradient(labels: Any, seed: int, scale: float) -> None:
    """The perturbation has a length of its own, so it does not change."""
    x, y = _inputs(seed), np.array(labels)
    pairs = zip(by_each_method(x, y, scale=scale), by_each_method(x, y), strict=True)
    for (_, _, got), (_, _, want) in pairs:
        assert_trees(reference.scale(1 / scale, got), want, atol=1e-12)


@pytest.mark.parametrize("rows", [7, 13, 26, 100])
def test_rows_of_a_group_are_counted_whole(rows: int) -> None:
    f = jax.jit(
        ij.value_and_grad(
            lambda w, x: (w * x, None), rules.imbsam([100, 1], rho=0.1, eta=1), info=True
        )
    )
    for tail in range(1, rows, max(1, rows // 13)):
        y = np.int32(np.arange(rows) < tail)
        ((_, _, info), _) = f(np.float32(1), y, np.ones(rows, np.float32))
        assert float(info.rows[0]) == tail
