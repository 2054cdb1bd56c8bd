"""`passes.split_norm`: exact without batch coupling, a loop over rows where there is one."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import imbsam_jax as ij
from experiments import cifar_lt
from experiments.command.plan import make_plan
from experiments.host.errors import RunError
from experiments.models import MODELS
from experiments.run.compatible import Asked, check
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from experiments.step.methods import Tabled
from experiments.step.statistics import renormalised
from imbsam_jax.passes import split_norm
from rule_table import (
    ASCENTS,
    BY_ID,
    CLASSES,
    COUNTS,
    ETA,
    RHO,
    RULES,
    SWITCH,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    row_id,
    to_library,
)
from tiny import COUNTS as TINY_COUNTS
from tiny import TinyNet, tiny_dataset

SIZES = lambda classes: (2, 5, 7)  # noqa: E731
ROWS = [*RULES, *(row for row in ASCENTS if row.id in ("imbsam-perturb", "imbsam-asam"))]
QUICK = ("imbsam", "sse_sam")


def close(one: Any, other: Any, rtol: float = 1e-11) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13)


# ---- rows that do not see each other: the same gradient ---------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=[] if r.id in QUICK else pytest.mark.slow) for r in ROWS],
    ids=[row_id(r) for r in ROWS],
)
def test_without_batch_coupling_it_is_exact(row: Any) -> None:
    params = to_library(init_params())
    # Three batches with padding, and more and fewer tail rows than the buffers hold.
    # A choice of three for one group, of two for each of two.
    sizes = (lambda classes: (3, 7)) if row.id == "sse_sam" else SIZES
    exact = quick_jit(row.value_and_grad(losses_fn, info=True))
    split = quick_jit(row.value_and_grad(losses_fn, info=True, passes=split_norm(sizes)))
    for seed, kind in enumerate(["mixed", "no_tail", "only_tail"]):
        x, y = one_batch(seed, kind=kind)
        real = np.arange(7) != seed
        for step in (SWITCH - 1, SWITCH) if row.needs_step else (0,):
            close(*(f(params, y, x, y, step=jnp.asarray(step), mask=real) for f in (exact, split)))


# ---- batch normalisation: a loop over rows ----------------------------------------------------


def normed(params: Any, x: Any, y: Any, held: Any = None) -> Any:
    """(cross-entropies of a linear model of normalised features, (mean, variance))."""
    hidden = x @ params["kernel"]
    mean, var = (hidden.mean(0), hidden.var(0)) if held is None else held
    hidden = (hidden - mean[None]) / jnp.sqrt(var[None] + 1e-5)
    logits = jnp.tanh(hidden * params["scale"][None]) @ params["head"]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]
    return losses, (mean, var)


def normed_params() -> Any:
    draw = np.random.default_rng(3)
    shapes = {"kernel": (5, 6), "scale": (6,), "head": (6, CLASSES)}
    return {name: jnp.asarray(draw.normal(size=shape)) for name, shape in shapes.items()}


def by_hand(params: Any, x: Any, y: Any, table: Any, kind: str, repeats: int = 0) -> Any:
    """The gradient of one table, every group's rows picked out with NumPy; one program."""
    return jax.jit(lambda params: _by_hand(params, x, y, table, kind, repeats))(params)


def _by_hand(params: Any, x: Any, y: Any, table: Any, kind: str, repeats: int) -> Any:
    weights = np.zeros((len(y), 0)) if table.base is None else np.asarray(table.base)[y][:, None]

    def whole(point: Any, w: Any) -> Any:
        return jax.grad(lambda p: (w * normed(p, x, y)[0]).sum() / len(y))(point)

    total = jax.tree.map(jnp.zeros_like, params)
    if weights.size:
        total = whole(params, weights[:, 0])
    held = normed(params, x, y)[1] if kind == "held" else None
    for row, radius in zip(table.groups, table.radii, strict=True):
        w = np.asarray(row)[y]
        at = np.flatnonzero(w)
        at = np.concatenate([at, at[:repeats]])  # rows that fill a buffer up
        w = np.where(np.arange(len(at)) < len(at) - repeats, w[at], 0)

        def part(point: Any, at: Any = at, w: Any = w) -> Any:
            def loss(p: Any) -> Any:
                return (w * normed(p, x[at], y[at], held)[0]).sum() / len(y)

            return jax.grad(loss)(point)

        d = part(params)
        length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(d)))
        length = jnp.where(length > 0, length, 1.0)  # no gradient, no ascent
        point = jax.tree.map(lambda p, g, r=radius, n=length: p + r * g / n, params, d)
        total = jax.tree.map(jnp.add, total, part(point))
    return total


def carry(args: Any, aux: Any) -> Any:
    return (*args[:2], aux)


KINDS = {
    "own": {"batched": (True, True)},
    "held": {"batched": (True, True, False), "carry": carry},
}


def split_door(rule: Any, kind: str, buffers: Any, **options: Any) -> Any:
    passes = split_norm(buffers, **{**KINDS[kind], **options})
    f = ij.value_and_grad(normed, rule, passes=passes)
    more = (None,) if kind == "held" else ()
    return jax.jit(lambda params, x, y, step: f(params, y, x, y, *more, step=step))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        ("imbsam", 1),
        pytest.param("imbsam", 0, marks=pytest.mark.slow),
        pytest.param("imbsam_release", 1, marks=pytest.mark.slow),
        pytest.param("sse_sam", 0, marks=pytest.mark.slow),
    ],
)
def test_groups_see_their_own_rows(name: str, kind: str, repeats: int) -> None:
    """Of 12 rows 5 are tail and 7 head; a buffer of one more has a row of its own twice."""
    params, draw = normed_params(), np.random.default_rng(5)
    y = np.array([0, 3, 1, 4, 0, 1, 2, 0, 3, 1, 2, 0]) if name != "imbsam_release" else (
        np.array([0, 3, 1, 4, 0, 1, 4, 0, 3, 1, 3, 0])
    )  # fmt: skip
    x = draw.normal(size=(12, 5))
    rule = BY_ID[name].rule(RHO)
    f = split_door(rule, kind, lambda classes: (classes[y].sum() + repeats,))
    losses, statistics = jax.jit(normed)(params, x, y)
    for step in (0, SWITCH) if BY_ID[name].needs_step else (0,):
        (loss, aux), grads = f(params, x, y, step)
        close(grads, by_hand(params, x, y, rule(step), kind, repeats))
        close((loss, aux), (losses.mean(), statistics))


@cache
def over_all_classes() -> Any:
    """Of each rule the exact gradient, and that of each kind: one program."""
    x, y = one_batch(2)
    rules = {name: BY_ID[name].rule(RHO) for name in ("sam", "focal_sam", "sgd")}

    @quick_jit
    def each(params: Any) -> Any:
        exact = {
            name: ij.value_and_grad(normed, rule)(params, y, x, y) for name, rule in rules.items()
        }
        split = {
            kind: {
                name: split_door(rule, kind, lambda classes: (len(y),))(params, x, y, 0)
                for name, rule in rules.items()
            }
            for kind in KINDS
        }
        return exact, split

    return each(normed_params())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_all_classes_is_passed_over_exactly(kind: str) -> None:
    exact, split = over_all_classes()
    assert exact.keys() == split[kind].keys() == {"sam", "focal_sam", "sgd"}
    for name, want in exact.items():
        close(want, split[kind][name])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_many_rows_and_none(kind: str) -> None:
    params, x = normed_params(), np.random.default_rng(6).normal(size=(6, 5))
    rule = BY_ID["imbsam"].rule(RHO)
    f = split_door(rule, kind, lambda classes: (2, 3))
    head = np.zeros(6, int)
    # No tail row: the head's gradient alone, finite.
    _, grads = f(params, x, head, 0)
    close(grads, jax.jit(jax.grad(lambda p: normed(p, x, head)[0].mean()))(params))
    one = np.array([0, 0, 4, 0, 0, 0])
    close(f(params, x, one, 0)[1], by_hand(params, x, one, rule(0), kind, repeats=1))
    # More rows than the largest buffer holds are never left out in silence.
    _, grads = f(params, x, np.array([0, 4, 4, 4, 4, 0]), 0)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def test_it_costs_less() -> None:
    """1 + 2f of a matmul-bound step, for f = 1/8; the whole batch costs 8/3."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(128, 512)), np.arange(128) % 8
    w = {"kernel": draw.normal(size=(512, 512)), "scale": np.ones(512), "head": np.ones((512, 8))}
    rule = ij.rules.imbsam([9] * 7 + [1], rho=0.1, eta=1)

    def flops(rule: Any, **options: Any) -> float:
        f = jax.jit(lambda p: ij.value_and_grad(normed, rule, **options)(p, y, x, y)[1])
        return f.lower(jax.tree.map(np.float32, w)).cost_analysis()["flops"]

    sgd = flops(ij.rules.sgd(8))
    split = {"passes": split_norm(lambda classes: (16 * classes.sum(),))}
    assert flops(rule, **split) / sgd == pytest.approx(1.25, abs=0.05)


# ---- the trainer ------------------------------------------------------------------------------

BASE = Settings(
    epochs=2, batch_size=16, lr=0.05, eta=10, eval_batch=20, sampling="stratified",
    examples="split_norm", weight_decay=0.0, augment=False,
)  # fmt: skip
RULE = ij.rules.imbsam(TINY_COUNTS, rho=0.3, eta=10)
flax = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]


def first_step(**changes: Any) -> Any:
    """(state before, labels, images, state after, metrics) of a step of TinyNet."""
    settings = dataclasses.replace(BASE, **changes)
    parts = Parts(tiny_dataset(), "tiny", ij.losses.cross_entropy, settings)
    inputs, state = parts.run_on.put_inputs(parts.feed.inputs("train")), parts.initial
    with parts.feed.training(parts.order, [(0, 1)]) as batches:
        rows = next(batches)
    stage = Tabled(RULE).stages()[0][1]
    call = parts.run_on.compile_steps(stage, parts.run_on.put_state(state), inputs, rows)
    after, seen = call(parts.run_on.put_state(state), inputs, parts.run_on.place(rows))
    index = rows.index[0]
    return state, np.asarray(inputs.labels)[index], np.asarray(inputs.images)[index], after, seen


@flax
@pytest.mark.parametrize(
    ("examples", "keep"),
    [
        pytest.param("split_norm", 0.9, marks=pytest.mark.slow),
        pytest.param("split_norm", 0.6, marks=pytest.mark.slow),
        ("shared_norm", 0.6),
    ],
)
def test_a_step_of_the_trainer(examples: str, keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the momentum of our models, and with another."""
    monkeypatch.setitem(MODELS, "tiny", partial(TinyNet, momentum=keep))
    state, y, raw, after, seen = first_step(examples=examples)
    data = tiny_dataset()
    x = (raw / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)

    def losses(params: Any, at: Any, statistics: Any) -> Any:
        """Cross-entropies of some rows by given statistics, or by their own."""
        kernel = params["conv"]
        hidden = jax.lax.conv_general_dilated(
            x[at], kernel["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) + kernel["bias"]  # fmt: skip
        own = mean, var = hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))
        hidden = (hidden - mean) / jnp.sqrt(var + 1e-5)
        if statistics is not None:  # batch renormalisation, Algorithm 1
            sigma, of_all = jnp.sqrt(var + 1e-5), jnp.sqrt(statistics[1] + 1e-5)
            r = jax.lax.stop_gradient(sigma / of_all)
            d = jax.lax.stop_gradient((mean - statistics[0]) / of_all)
            hidden = hidden * r + d
        hidden = jax.nn.relu(hidden * params["norm"]["scale"] + params["norm"]["bias"])
        logits = hidden.reshape(len(at), -1) @ params["head"]["kernel"] + params["head"]["bias"]
        found = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[at][:, None], 1)[:, 0]
        return found, own

    everyone, in_tail = np.arange(16), np.array(TINY_COUNTS)[y] <= 10
    tail = np.flatnonzero(in_tail)
    fill = 4 - len(tail)  # 18 of 78 rows: three or four of a batch of 16
    assert fill in (0, 1)
    if examples == "shared_norm":  # what fills a buffer up has no part in statistics
        fill = 0
    tail, w = np.concatenate([tail, tail[:fill]]), np.r_[np.ones(len(tail)), np.zeros(fill)]

    @jax.jit
    def by_hand(params: Any) -> Any:
        """(losses and statistics of the clean pass, the step's gradient)."""
        clean, statistics = losses(params, everyone, None)

        def tail_loss(params: Any) -> Any:
            return (w * losses(params, tail, statistics)[0]).sum() / 16

        def head_loss(params: Any) -> Any:
            if examples == "shared_norm":
                return losses(params, np.flatnonzero(~in_tail), statistics)[0].sum() / 16
            return (~in_tail * losses(params, everyone, None)[0]).sum() / 16

        d = jax.grad(tail_loss)(params)
        length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(d)))
        point = jax.tree.map(lambda p, g: p + 0.3 * g / length, params, d)
        head = jax.grad(head_loss)(params)
        return clean, statistics, jax.tree.map(jnp.add, head, jax.grad(tail_loss)(point))

    clean, statistics, g = by_hand(state.params)
    moved = jax.tree.map(lambda a, b: (a - b) / 0.05, state.params, after.params)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(seen.loss[0], clean.mean(), rtol=1e-5)
    for name, batch in zip(("mean", "var"), statistics, strict=True):
        before, now = (s.batch_stats["norm"][name] for s in (state, after))
        np.testing.assert_allclose(now, keep * before + (1 - keep) * batch, rtol=1e-5, atol=1e-6)


@flax
@pytest.mark.usefixtures("x64")
def test_renormalised_values_are_those_of_the_running_statistics() -> None:
    """And of equal statistics the gradient is batch normalisation's."""
    draw = np.random.default_rng(4)
    x = draw.normal(1, 2, (6, 3, 3, 4))
    layer = nn.BatchNorm(use_running_average=True, epsilon=1e-5, param_dtype=jnp.float64)
    params = {"scale": jnp.asarray(draw.normal(size=4)), "bias": jnp.asarray(draw.normal(size=4))}
    own = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}

    @jax.jit
    def renormed(x: Any, statistics: Any) -> Any:
        with nn.intercept_methods(renormalised):
            return layer.apply({"params": params, "batch_stats": statistics}, x)

    @jax.jit
    def batch_norm(x: Any) -> Any:
        hidden = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
        return hidden * params["scale"] + params["bias"]

    other = {"mean": own["mean"] + 0.3, "var": own["var"] * 1.7}
    plain = jax.jit(layer.apply)({"params": params, "batch_stats": other}, x)
    np.testing.assert_allclose(renormed(x, other), plain, rtol=1e-12, atol=1e-12)
    pull = jnp.asarray(draw.normal(size=x.shape))
    (got,) = jax.vjp(lambda x: renormed(x, own), x)[1](pull)
    (expected,) = jax.vjp(batch_norm, x)[1](pull)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-13)


@cache
def exact_step() -> Any:
    return first_step(examples="dependent")


@flax
@pytest.mark.parametrize("examples", ["split_norm", "shared_norm"])
def test_statistics_and_loss_are_those_of_exact_passes(
    examples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", TinyNet)
    *_, exact, seen = exact_step()
    *_, split, also = first_step(examples=examples)
    close(exact.batch_stats, split.batch_stats, 1e-6)
    close((seen.loss, seen.accuracy), (also.loss, also.accuracy), 1e-6)


@flax
def test_what_is_refused() -> None:
    asked = Asked(BASE, Tabled(RULE), batch_norm=True)
    for changes, message in (
        ({"batch_norm": False}, "--examples independent is as cheap for this one"),
        ({"settings": dataclasses.replace(BASE, mixup=1.0)}, "--mixup 1 every row is of two"),
        (
            {"settings": dataclasses.replace(BASE, devices=2, parallel="pmap", sampling="natural")},
            "several devices needs .* use --sampling stratified",
        ),
    ):
        with pytest.raises(RunError, match=message):
            check(dataclasses.replace(asked, **changes))
    check(asked)
    flags = ["--eta", "10", "--examples", "split_norm", "--running-statistics", "every"]
    args = cifar_lt.arguments().parse_args(flags)
    args.experiment, args.preset, args.stage2 = "test", None, []
    with pytest.raises(RunError, match="use --running-statistics first"):
        make_plan(args, tiny_dataset(), {})


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(TypeError, match="carry must return the args of the next pass"):
        split_door(
            ij.rules.imbsam(COUNTS, rho=RHO, eta=ETA),
            "own",
            SIZES,
            carry=lambda args, aux: args[:1],
        )(normed_params(), *one_batch(1), 0)
