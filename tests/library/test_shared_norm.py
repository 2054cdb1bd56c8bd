"""`passes.shared_norm` and `batch_norm`: by hand, of every rule; and what a step costs."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import imbsam_jax as ij
import reference
from imbsam_jax import passes
from imbsam_jax.passes import shared_norm, split_norm
from rule_table import (
    ASCENTS,
    BY_ID,
    CLASSES,
    COUNTS,
    ETA,
    RHO,
    RULES,
    SWITCH,
    head_losses_fn,
    init_params,
    one_batch,
    quick_jit,
    row_id,
    to_library,
    to_reference,
)

pytestmark = pytest.mark.usefixtures("x64")
IMBSAM = BY_ID["imbsam"]
# All classes are one part of these: passes over the whole batch.
EXACT = ("sgd", "sam", "focal_sam", "focal_sam_1.1", "sam_tail_weight", "reweighted_sam")
QUICK = ("imbsam", "sse_sam", "sam")
ALL = shared_norm(lambda classes: (7,))


def normed(params: Any, x: Any, y: Any, axis_name: Any = None) -> Any:
    """(cross-entropies, (logits, M, V)) of reference.py's network with batch normalisation."""
    hidden, mean, var = ij.batch_norm(
        x @ params["hidden"]["kernel"], bias=params["hidden"]["bias"], axis_name=axis_name
    )
    losses, logits = head_losses_fn(params, jnp.tanh(hidden), x, y)
    return losses, (logits, mean, var)


# What a test compares with takes as long as the rest, if every operation of it is a program.
clean = quick_jit(normed)


def close(one: Any, other: Any, rtol: float = 1e-10) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


@cache
def step_of(name: str, how: Any) -> Any:
    row = next(row for row in [*RULES, *ASCENTS] if row.id == name)
    f = row.value_and_grad(normed, passes=how)
    return quick_jit(lambda params, x, y, mask, step: f(params, y, x, y, step=step, mask=mask))


def by_hand(row: Any, x: Any, y: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rule's own transcription, of a network with batch normalisation."""
    params = init_params()
    of_part = partial(reference.shared_norm_weighted_gradient, theta=params, batch=x)
    with monkeypatch.context() as patch:
        patch.setattr(reference, "weighted_gradient", of_part)
        return row.gradient(params, x, y, step, RHO)


def batches() -> Any:
    """(x, y, mask): mixed, one tail row, no tail row, tail rows only; with a row of padding."""
    for seed, kind in enumerate(["mixed", "mixed", "no_tail", "only_tail"]):
        x, y = one_batch(seed, kind=kind)
        if seed == 1:
            y = np.array([0, 1, 0, 4, 1, 1, 0])
        yield x, y, np.arange(7) != seed


# ---- the gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row.id in QUICK else pytest.mark.slow)
        for row in [*RULES, *ASCENTS]
        if row.rule is not None and row.id != "imbsam-perturb"  # by hand it is over all rows
    ],
    ids=row_id,
)
def test_each_part_flows_through_its_own_rows(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = to_library(init_params())
    for number, (x, y, mask) in enumerate(batches()):
        # A gradient of 0 but for rounding: norms of p > 2 make a direction of what is left.
        if number == 1 and row.id in ("imbsam-p3", "imbsam-pinf"):
            continue
        for step in (SWITCH - 1, SWITCH) if row.needs_step else (0,):
            (loss, (logits, mean, var)), grads = step_of(row.id, ALL)(params, x, y, mask, step)
            of_sgd = row.id == "sgd_then_imbsam" and step < SWITCH
            if row.id.split("-")[0] in EXACT or of_sgd:
                exact = step_of(row.id, passes.whole())(params, x, y, mask, step)
                close(((loss, (logits, mean, var)), grads), exact, 1e-12)
                continue
            found, want = to_reference(grads), by_hand(row, x[mask], y[mask], step, monkeypatch)
            for name in want:
                np.testing.assert_allclose(found[name], want[name], rtol=1e-9, atol=1e-11)
            # Loss, logits and statistics are the clean ones of all real rows.
            losses, (rows, *statistics) = clean(params, x[mask], y[mask])
            close((loss, logits[mask], mean, var), (losses.mean(), rows, *statistics))
            np.testing.assert_array_equal(logits[~mask], 0)


def test_it_is_neither_the_exact_gradient_nor_that_of_split_norm() -> None:
    params, (x, y) = to_library(init_params()), one_batch(1)
    split = split_norm(lambda classes: (int(classes[y].sum()),))
    found = [step_of("imbsam", how)(params, x, y, None, 0)[1] for how in (ALL, passes.whole())]
    found.append(step_of("imbsam", split)(params, x, y, None, 0)[1])
    kernels = [grads["hidden"]["kernel"] for grads in found]
    for other in kernels[1:]:
        assert 1e-3 < jnp.abs(kernels[0] - other).max() < 0.3


def test_groups_whose_parameters_are_behind_the_norm_are_exact() -> None:
    """Of gsa, whose direction is of all groups together and whose radius of all real rows."""

    def behind(w: Any, x: Any, y: Any) -> Any:
        return (ij.batch_norm(x)[0] @ w) ** 3, None

    w, (x, y), mask = np.arange(1.0, 6), one_batch(1), np.arange(7) != 2

    def gradient(x: Any, y: Any, how: Any, mask: Any = None) -> Any:
        return BY_ID["gsa"].value_and_grad(behind, passes=how)(w, y, x, y, mask=mask)

    of = lambda: (gradient(x, y, ALL, mask), gradient(x[mask], y[mask], passes.whole()))  # noqa: E731
    close(*quick_jit(of)())


def test_of_one_row_nothing_reaches_what_is_normalised() -> None:
    """Its own variance is 0: d_k has the layers after the norm, and the bias in it, alone."""
    params, y = to_library(init_params()), np.array([0, 1, 0, 4, 1, 1, 0])
    x = one_batch(1)[0]
    rule = ij.rules.imbsam(COUNTS, rho=RHO, eta=ETA, tail_scale=1.0)
    # Without a head in the gradient: what is left is the tail's row.
    alone = lambda step: rule(step)._replace(base=np.where(COUNTS > ETA, 1e-30, 0))  # noqa: E731
    f = ij.value_and_grad(normed, alone, passes=ALL)
    _, grads = quick_jit(lambda p: f(p, y, x, y))(params)
    assert jnp.abs(grads["hidden"]["kernel"]).max() < 1e-10
    assert jnp.abs(grads["hidden"]["bias"]).max() > 1e-2


@pytest.mark.parametrize("room", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_buffers_that_fit_or_have_room(room: int) -> None:
    """As those with room for the whole batch."""
    params, (x, y) = to_library(init_params()), one_batch(1)
    want = step_of("imbsam", ALL)(params, x, y, None, 0)
    how = shared_norm(lambda classes: (int(classes[y].sum()) + room,))
    close(step_of("imbsam", how)(params, x, y, None, 0), want)


def test_rows_too_many() -> None:
    params, (x, y) = to_library(init_params()), one_batch(1)
    short = shared_norm(lambda classes: (int(classes[y].sum()) - bool(classes[4]),))  # by one
    assert (COUNTS[y] <= ETA).sum() > 2
    (loss, _), grads = step_of("imbsam", short)(params, x, y, None, 0)
    assert np.isnan(loss) and all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_class_may_be_weighed_twice_and_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts {0}, {1}, {2, 3} and 4: by group 0, by both, by group 1, by nothing (joins a part)."""
    groups = np.array([[1.0, 2, 0, 0, 0], [0, 0.5, 3, 1, 0]])
    table = ij.ClassWeights(None, groups, np.array([0.1, 0.2]))
    params, x = init_params(), one_batch(3)[0]
    y = np.array([0, 1, 2, 4, 3, 1, 0])
    parts = [np.isin(y, classes) for classes in ([0], [1], [2, 3, 4])]
    own = partial(reference.shared_norm_weighted_gradient, theta=params, batch=x)

    def of_parts(point: Any, weights: Any) -> Any:
        found = reference.zeros(params)
        for rows in parts:
            found = reference.add(found, own(point, x[rows], y[rows], weights[y][rows] / 7))
        return found

    want = reference.zeros(params)
    for weights, radius in zip(groups, table.radii, strict=True):
        e = reference.l2_perturbation(of_parts(params, weights), radius)
        want = reference.add(want, of_parts(reference.add(params, e), weights))
    # Under a jit of its own, which the parts step into.
    f = ij.value_and_grad(jax.jit(normed), lambda step: table, passes=ALL, info=True)
    (loss, _, info), grads = quick_jit(lambda p: f(p, y, x, y))(to_library(params))
    for name, value in to_reference(grads).items():
        np.testing.assert_allclose(value, want[name], rtol=1e-9, atol=1e-12)
    losses = np.asarray(clean(to_library(params), x, y)[0])
    close(loss, losses.mean())
    close(info.loss, np.stack([(w[y] * losses).sum() / w[y].sum() for w in groups]))


# ---- what is reported, and several devices ----------------------------------------------------


@pytest.mark.parametrize("size", [3, 4])
def test_aux_of_rows_in_their_order_and_of_the_batch(size: int) -> None:
    """Of parts of one size, too, and where that is the number of channels."""
    params, x = jnp.ones((size, 3)), np.random.default_rng(0).normal(size=(3 + size, size))
    y = np.array([0, 4, 4, 0, 0, 4, 0][: 3 + size])

    def losses_fn(params: Any, x: Any) -> Any:
        hidden, mean, var = ij.batch_norm(x @ params)
        aux = {"x": x, "mean": mean, "var": var, "of": (x**2).mean(), "step": jnp.arange(3)}
        return (hidden**3).sum(1), aux

    how = shared_norm(ij.stratified_buffers(COUNTS <= ETA, rows=(size, 3)))
    f = ij.value_and_grad(losses_fn, IMBSAM.rule(RHO), passes=how)
    (_, aux), _ = quick_jit(lambda params: f(params, y, x))(params)
    close(aux, quick_jit(losses_fn)(params, x)[1])


@pytest.mark.parametrize("synced", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_over_devices(synced: bool) -> None:
    """By statistics of all of them that is one device's gradient, by each one's own it is not."""
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(2, 6, 5)), np.array([[0, 4, 1, 0, 2, 0], [1, 3, 0, 0, 1, 0]])
    params, flat = to_library(init_params()), (x.reshape(12, 5), y.reshape(12))
    name = "devices" if synced else None
    how = shared_norm(ij.stratified_buffers(COUNTS <= ETA, rows=(5, 2)))

    def on_device(x: Any, y: Any) -> Any:
        f = IMBSAM.value_and_grad(partial(normed, axis_name=name), passes=how, axis_name="devices")
        (loss, (_, mean, var)), grads = f(params, y, x, y)
        return loss, mean, var, grads

    mapped = quick_jit(jax.vmap(on_device, axis_name="devices"))(x, y)
    one = shared_norm(ij.stratified_buffers(COUNTS <= ETA, rows=(9, 3)))
    whole = IMBSAM.value_and_grad(normed, passes=one)
    (loss, (_, mean, var)), grads = quick_jit(lambda p: whole(p, flat[1], *flat))(params)
    for device in range(2):
        found = jax.tree.map(lambda leaf, k=device: leaf[k], mapped)
        if synced:
            close(found, (loss, mean, var, grads))
        else:
            assert abs(found[0] - loss) > 1e-4


def test_it_costs_the_rows_of_the_groups() -> None:
    """1 + f of a matmul-bound step, for f = 1/8, and no more layers are asked twice."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(128, 512)), np.arange(128) % 8
    w = {"kernel": draw.normal(size=(512, 512)), "head": np.ones((512, 8))}
    rule = ij.rules.imbsam([9] * 7 + [1], rho=0.1, eta=1)

    def losses_fn(params: Any, x: Any, y: Any) -> Any:
        logits = jnp.tanh(ij.batch_norm(x @ params["kernel"])[0]) @ params["head"]
        return ij.losses.cross_entropy(logits, y), None

    def flops(rule: Any, **options: Any) -> float:
        f = jax.jit(lambda p: ij.value_and_grad(losses_fn, rule, **options)(p, y, x, y)[1])
        return f.lower(jax.tree.map(np.float32, w)).cost_analysis()["flops"]

    how = {"passes": shared_norm(lambda classes: (16 * int(classes.sum()),))}
    assert flops(rule, **how) / flops(ij.rules.sgd(8)) == pytest.approx(1.125, abs=0.03)


# ---- the layer, over the whole batch ----------------------------------------------------------


@pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]
def test_batch_norm_is_flaxs() -> None:
    draw = np.random.default_rng(4)
    x, pull = draw.normal(1, 2, (2, 6, 3, 3, 4))
    params = {"scale": draw.normal(size=4), "bias": draw.normal(size=4)}
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, param_dtype=jnp.float64)
    start = {"mean": np.zeros(4), "var": np.ones(4)}

    def flax(params: Any, x: Any) -> Any:
        y, after = layer.apply({"params": params, "batch_stats": start}, x, mutable=["batch_stats"])
        return y, after["batch_stats"]

    def ours(params: Any, x: Any) -> Any:
        y, mean, var = ij.batch_norm(x, params["scale"], params["bias"])
        return y, {"mean": mean, "var": var}

    def pulled(f: Any) -> Any:
        y, pullback, after = jax.vjp(f, params, x, has_aux=True)
        return y, after, pullback(pull)

    found, want = quick_jit(lambda: (pulled(ours), pulled(flax)))()
    close(found, want, 1e-9)
    bound = quick_jit(jax.jacobian(lambda x: ij.batch_norm(x)[1:]))(x[:1, :1, :1])
    close(bound, jax.tree.map(np.zeros_like, bound))


@pytest.mark.parametrize("far", [0.0, 100.0, 1e4])
def test_what_is_left_of_the_variance_far_from_0(far: float) -> None:
    """1e-7 (M^2 + V) on a CPU, as its docstring says; and never below 0.

    Elsewhere the sums of a tree of 200 numbers, two rounded to 2^-24 of each at every one of its 8
    levels and thrice beside: 2 * 11 roundings at worst.
    """
    bound = 2e-7 if jax.default_backend() == "cpu" else 22 * 2**-24
    x = np.float32(np.random.default_rng(0).normal(far, 1.0, (200, 5)))
    _, mean, var = ij.batch_norm(x)
    exact = np.var(np.float64(x), 0)
    np.testing.assert_array_less(np.abs(var - exact), bound * (far**2 + exact) + 1e-9)
    np.testing.assert_allclose(mean, np.mean(np.float64(x), 0), rtol=1e-6, atol=1e-6)
    assert np.all(np.asarray(var) >= 0)


def test_renormalised_features_that_do_not_vary_are_finite() -> None:
    """E[x^2] - M^2 is below 0 by its rounding for some, by more than epsilon."""
    x = np.tile(np.linspace(1e3, 2e3, 64, dtype=np.float32), (7, 1))
    assert np.isfinite(ij.batch_renorm(x, x[0], np.ones(64))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_batch_norm_of_whole_numbers(dtype: Any) -> None:
    x = np.array([[1], [0], [1], [0]], dtype)
    close(ij.batch_norm(x, epsilon=0.0)[0], x * 2.0 - 1)
    close(ij.batch_renorm(x, np.array([0]), np.array([4]), epsilon=0.0), x / 2.0)


ONE = np.ones(3)
LAYERS: dict[str, tuple[Any, str]] = {
    "a vector": (lambda x: ij.batch_norm(x[0]), "the batch in front"),
    "a number": (lambda x: ij.batch_norm(x[0, 0]), "the batch in front"),
    "complex": (lambda x: ij.batch_norm(x * 1j), "x must be real"),
    "scale": (lambda x: ij.batch_norm(x, ONE[:1]), "scale must be float.3., got shape .1."),
    "a number as scale": (lambda x: ij.batch_norm(x, 2.0), "scale must be float.3."),
    "a batch as bias": (lambda x: ij.batch_norm(x, None, x), "bias must be float.3."),
    "words": (lambda x: ij.batch_norm(x, ["a", "b", "c"]), "scale must be real"),
    "renorm complex": (lambda x: ij.batch_renorm(x * 1j, ONE, ONE), "x must be real"),
    "mean": (lambda x: ij.batch_renorm(x, ONE[:1], ONE), "mean must be float.3."),
    "mean of one feature": (lambda x: ij.batch_renorm(x[:, :1], ONE, ONE), "mean must be float.1."),
    "var": (lambda x: ij.batch_renorm(x, ONE, 1.0), "var must be float.3."),
    "another axis": (lambda x: ij.batch_renorm(x, ONE, ONE, axis=0), "mean must be float.4."),
}


@pytest.mark.parametrize("what", LAYERS)
def test_what_would_be_spread_over_the_features_is_refused(what: str) -> None:
    call, message = LAYERS[what]
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 3)))


# ---- what is refused --------------------------------------------------------------------------


def _in_checkpoint(params: Any, x: Any, y: Any) -> Any:
    return jax.checkpoint(normed)(params, x, y)


def _in_scan(params: Any, x: Any, y: Any) -> Any:
    out = jax.lax.scan(lambda c, _: (c, ij.batch_norm(x)[0]), 0, None, length=1)[1]
    return out[0].sum(1) * params["head"]["bias"].sum(), None


def _of_pixels(params: Any, x: Any, y: Any) -> Any:
    hidden, *_ = ij.batch_norm(x.reshape(-1, 1) * params["head"]["bias"][None, :1])
    return hidden.reshape(x.shape).sum(1), None


def _plain(params: Any, x: Any, y: Any) -> Any:
    return head_losses_fn(params, jnp.tanh(x @ params["hidden"]["kernel"]), x, y)


def _by_size(params: Any, x: Any, y: Any) -> Any:
    found, aux = normed(params, x, y)
    return found + (ij.batch_norm(x)[0].sum(1) if len(x) == 3 else 0), aux


@pytest.mark.parametrize(
    ("losses_fn", "sizes", "message"),
    [
        (normed, (2, 7), r"one size of buffer for each: buffers gave \[2, 7\]"),
        (_plain, (3,), "no layer of losses_fn asks for them: normalise by imbsam_jax.batch_norm"),
        (_in_checkpoint, (3,), "lies inside remat.*, which shared_norm cannot stop in"),
        (_in_scan, (3,), "lies inside scan"),
        (_of_pixels, (3,), "batch_norm was given x of 15 rows in a part of 3"),
        (_by_size, None, "other layers of batch_norm for one number of rows than for another"),
    ],
)
def test_what_it_cannot_be_over_is_refused(losses_fn: Any, sizes: Any, message: str) -> None:
    params, (x, y) = to_library(init_params()), one_batch(1)
    how = shared_norm(lambda classes: sizes or ((3,) if classes[4] else (4,)))
    f = IMBSAM.value_and_grad(losses_fn, passes=how)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params: f(params, y, x, y), params)


def test_soft_labels_are_passed_over_exactly_and_traced_weights_in_parts() -> None:
    """What a traced base weighs is not known: all classes, here with weights of 0 for the tail."""
    params, (x, y) = to_library(init_params()), one_batch(1)
    soft = np.eye(CLASSES)[y] * 0.9 + 0.1 / CLASSES
    found, want = (
        step_of("imbsam", how)(params, x, soft, None, 0) for how in (ALL, passes.whole())
    )
    close(found, want, 1e-12)

    def traced(weights: Any) -> Any:
        rule = lambda step: IMBSAM.rule(RHO)(step)._replace(base=weights)  # noqa: E731
        return ij.value_and_grad(normed, rule, passes=ALL)(params, y, x, y)

    found = quick_jit(traced)(jnp.where(jnp.asarray(COUNTS) > ETA, 1.0, 0.0))
    close(found, step_of("imbsam", ALL)(params, x, y, None, 0))
