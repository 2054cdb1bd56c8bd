"""How passes are run must not show in the gradient: micro-batches, and rows chosen by weight."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache, partial
from itertools import pairwise
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpu_program
import imbsam_jax as ij
from imbsam_jax import collectives, passes, rules
from imbsam_jax.passes._chosen_rows import by_size
from rule_table import (
    BY_ID,
    CLASSES,
    COUNTS,
    ETA,
    RHO,
    ROWS,
    SWITCH,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    to_library,
)

# CC-SAM has a door of its own, which runs its passes itself.
BY_TABLE = [row for row in ROWS if row.rule is not None]
SIZE = 8
IMBSAM = BY_ID["imbsam"]


def assert_trees(got: Any, want: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


# --------------------------------------------------------------------------------- micro-batches


def in_turn(leaf: Any, number: int) -> Any:
    """[A, B/A, ...]: row i of a batch in part i % A."""
    return np.stack([leaf[part::number] for part in range(number)])


@cache
def whole_and_in_parts(soft: bool, ids: tuple[str, ...]) -> Any:
    """Of each rule, for A = 1, 2 and 4: one program, traced once; of soft labels a smaller one."""

    @quick_jit
    def all_of_them(params: Any, labels: Any, x: Any, mask: Any, step: Any) -> Any:
        return {
            row.id: {
                number: row.value_and_grad(losses_fn, info=True, passes=passes.whole(number))(
                    params, labels, x, labels, step=step, mask=mask
                )
                for number in ((1, 4) if soft else (1, 2, 4))
            }
            for row in map(BY_ID.get, ids)
        }

    return all_of_them


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [pytest.param(SWITCH - 1, marks=pytest.mark.slow), SWITCH])
@pytest.mark.parametrize(
    "batch",
    [
        "soft",
        *(
            pytest.param(b, marks=pytest.mark.slow)
            for b in ("padded", "whole", "no_tail", "only_tail")
        ),
    ],
)
def test_micro_batches_change_nothing(batch: str, step: int) -> None:
    """Gradient, loss and info to rounding; the aux is theirs in turn."""
    kind: Any = batch if batch.endswith("tail") else "mixed"
    x, labels = one_batch(size=SIZE, kind=kind)
    mask = np.arange(SIZE) % 5 != 1 if batch == "padded" else np.ones(SIZE, bool)
    if batch == "soft":
        labels = 0.7 * np.eye(CLASSES)[labels] + 0.3 * np.eye(CLASSES)[labels[::-1]]
    params = to_library(init_params())
    ids = [row.id for row in BY_TABLE]
    if batch == "soft":  # SSE-SAM from its switch on is ImbSAM
        ids = ["imbsam"] if step == SWITCH else ["imbsam", "sse_sam"]
    results = whole_and_in_parts(batch == "soft", tuple(ids))(params, labels, x, mask, step)
    for by_number in results.values():
        (loss, logits, info), grads = by_number[1]
        for number in by_number.keys() - {1}:
            (got_loss, got_logits, got_info), got = by_number[number]
            assert_trees(got, grads, rtol=0, atol=1e-12)
            assert_trees((got_loss, got_info), (loss, info), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(got_logits, in_turn(np.asarray(logits), number), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_an_arg_without_rows_goes_whole_to_every_micro_batch() -> None:
    """A tree with rows, a key of each row, and a tree without: temperatures of all sizes."""
    x, y = one_batch(size=SIZE)
    keys = jax.random.split(jax.random.key(0), SIZE)
    params = to_library(init_params())

    def noisy(params: Any, inputs: Any, keys: Any, scales: Any) -> Any:
        noise = jnp.cos(jax.random.key_data(keys)[:, -1:].astype(float))  # of each row's key
        losses, _ = losses_fn(params, inputs["x"] + noise, inputs["y"])
        return losses * scales["loss"], {"of rows": losses, "of parts": losses.sum()}

    def by(number: int) -> Any:
        f = IMBSAM.value_and_grad(noisy, passes=passes.whole(number, (True, True, False)))
        return quick_jit(f)(params, y, {"x": x, "y": y}, keys, {"loss": jnp.float64(2), "other": x})

    (loss, aux), grads = by(1)
    (got_loss, got_aux), got = by(2)
    assert_trees((got_loss, got), (loss, grads), rtol=0, atol=1e-12)
    np.testing.assert_allclose(got_aux["of rows"], in_turn(np.asarray(aux["of rows"]), 2))
    np.testing.assert_allclose(got_aux["of parts"], got_aux["of rows"].sum(axis=1))


@pytest.mark.usefixtures("x64")
def test_micro_batches_carry_what_all_of_them_returned() -> None:
    x, y = one_batch(size=SIZE)
    params = to_library(init_params())

    def with_mean(params: Any, x: Any, y: Any, stats: Any) -> Any:
        losses, logits = losses_fn(params, x, y)
        return losses, stats + logits.mean(axis=0)

    def by(number: int, carry: Any) -> Any:
        f = IMBSAM.value_and_grad(
            with_mean, passes=passes.whole(number, (True, True, False), carry)
        )
        return quick_jit(f)(params, y, x, y, jnp.zeros(CLASSES))

    (loss, stats), grads = by(1, lambda args, stats: (*args[:2], stats))
    (got_loss, parts), got = by(4, lambda args, parts: (*args[:2], parts.mean(axis=0)))
    assert parts.shape == (4, CLASSES)
    np.testing.assert_allclose(parts.mean(axis=0), stats, rtol=1e-12)
    assert_trees((got_loss, got), (loss, grads), rtol=0, atol=1e-12)


def wide(hidden: int = 128, layers: int = 2, rows: int = 256) -> Any:
    """(losses_fn, parameters, x, labels) of a network whose matrix products are all it costs."""
    rng = np.random.default_rng(0)
    sizes = (*[hidden] * (layers + 1), CLASSES)
    weights = [
        jnp.asarray(rng.normal(size=pair) / np.sqrt(pair[0]), jnp.float32)
        for pair in pairwise(sizes)
    ]

    def losses(weights: Any, x: Any, y: Any) -> Any:
        for w in weights[:-1]:
            x = x @ w
            x = x - x.mean(axis=-1, keepdims=True)
            x = jax.nn.relu(x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5))
        return ij.losses.cross_entropy(x @ weights[-1], y), x

    return losses, weights, jnp.zeros((rows, hidden), jnp.float32), jnp.zeros(rows, int)


def program(rule: Any, size: Any, **options: Any) -> Any:
    losses, weights, x, y = wide(**size)
    f = ij.value_and_grad(losses, rule, **options)
    return jax.jit(lambda w, y, x: f(w, y, x, y, step=0)), weights, y, x


def flops(rule: Any, **options: Any) -> float:
    """As XLA counts them before it drops what nothing needs."""
    call, *args = program(rule, {}, **options)
    return call.lower(*args).cost_analysis()["flops"]


def memory(rule: Any, layers: int = 8, **options: Any) -> int:
    made = program(rule, {"layers": layers, "rows": 4096}, **options)
    return cpu_program.compiled(*made).memory_analysis().temp_size_in_bytes


def test_backward_passes_at_theta_keep_little_for_each_other(monkeypatch: Any) -> None:
    """ImbSAM takes two of one forward pass. Over SGD's memory, apart and together: 0.18 and 0.47
    on JAX 0.10, 0.03 and 0.47 on 0.11, 0.30 and 0.72 on 0.12.
    """
    sgd = memory(rules.sgd(CLASSES), layers=4)
    more = memory(IMBSAM.rule(RHO), layers=4) - sgd
    monkeypatch.setattr(collectives, "apart", lambda pullback, done: (pullback, done))
    assert more < 0.45 * (memory(IMBSAM.rule(RHO), layers=4) - sgd)


@pytest.mark.parametrize("last", [False, True])
def test_what_is_kept_apart_is_what_it_was(last: bool, monkeypatch: Any) -> None:
    """Of every kind that a pullback may hold, under the JAX that is installed and the others."""
    monkeypatch.setattr(collectives, "_BARRIERS_LAST", last)
    held = {
        "float": jnp.array([1.5, -0.0, np.inf, np.nan]), "narrow": jnp.array([3e4], jnp.bfloat16),
        "bool": jnp.array([True, False]), "whole": jnp.array([2**31 - 1, -1]),
        "complex": jnp.array([complex(np.inf, 1)]), "key": jax.random.key(3),
    }  # fmt: skip
    done = [jnp.arange(3.0)]
    got, after = jax.jit(lambda *given: collectives.apart(*given))(held, done)  # traced anew
    got["key"], held["key"] = map(jax.random.key_data, (got["key"], held["key"]))
    for name, leaf in held.items():
        assert got[name].dtype == leaf.dtype
        np.testing.assert_array_equal(got[name], leaf)
    assert np.signbit(got["float"][1]) and after[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("last", [False, True])
def test_a_step_is_the_same_however_its_passes_are_kept_apart(last: bool, monkeypatch: Any) -> None:
    x, y = one_batch(size=SIZE)
    params = to_library(init_params(), jnp.float32)
    want = quick_jit(IMBSAM.value_and_grad(losses_fn))(params, y, x, y)
    monkeypatch.setattr(collectives, "_BARRIERS_LAST", last)
    got = quick_jit(IMBSAM.value_and_grad(losses_fn))(params, y, x, y)
    assert_trees(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="XLA schedules the groups at once")
def test_passes_of_groups_keep_nothing_for_each_other() -> None:
    """On JAX 0.12 SSE-SAM's two took 1.87 times SGD's memory, as it is 1.31 times: ImbSAM's."""
    assert memory(BY_ID["sse_sam"].rule(RHO), layers=4) < 1.05 * memory(IMBSAM.rule(RHO), layers=4)


@pytest.mark.slow
def test_memory_where_activations_are_most_of_it() -> None:
    """A second pass needs hardly more than the first; a quarter of the rows, a third."""
    sgd = memory(rules.sgd(CLASSES))
    for name in ("sam", "imbsam"):
        rule = BY_ID[name].rule(RHO)
        assert memory(rule) < 1.1 * sgd, name
        assert memory(rule, passes=passes.whole(4)) < 0.35 * sgd, name


@pytest.mark.parametrize("name", ["imbsam", pytest.param("sse_sam", marks=pytest.mark.slow)])
def test_micro_batches_share_the_forward_pass_at_theta(name: str) -> None:
    """XLA counts the body of a loop once: a quarter of the whole."""
    rule = BY_ID[name].rule(RHO)
    whole = flops(rule)
    np.testing.assert_allclose(4 * flops(rule, passes=passes.whole(4)), whole, rtol=0.02)
    # In thirds of what SGD pays: one forward pass for all parts at theta, two for each backward.
    groups, base = len(rule(0).radii), rule(0).base is not None
    thirds = 1 + 2 * (groups + base) + 3 * groups
    np.testing.assert_allclose(whole / flops(rules.sgd(CLASSES)), thirds / 3, rtol=0.03)


def test_micro_batches_in_coarse_parameters_add_up_in_float32() -> None:
    """bfloat16 holds 256 + 1 as 256: gradients of 1 from 512 parts would add up to 256."""

    def linear(w: Any, x: Any) -> Any:
        return (w * x).astype(jnp.float32), None

    x = jnp.ones(512, jnp.bfloat16)
    f = ij.value_and_grad(
        linear,
        lambda _: ij.ClassWeights(512 * np.ones(1), np.zeros((0, 1)), np.zeros(0)),
        passes=passes.whole(512),
    )
    with pytest.warns(UserWarning, match="bfloat16"):
        _, grad = f(jnp.bfloat16(0), np.zeros(512, int), x)
    assert grad.dtype == jnp.bfloat16 and float(grad) == 512


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_of_no_class_shows_in_any_micro_batch(label: int) -> None:
    x, y = one_batch(size=SIZE)
    params = to_library(init_params(), jnp.float32)
    f = IMBSAM.value_and_grad(losses_fn, passes=passes.whole(4))
    _, grads = quick_jit(f)(params, np.where(np.arange(SIZE) == 5, label, y), x, y)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def test_bad_micro_batches_are_refused() -> None:
    x, y = map(jnp.asarray, one_batch(size=SIZE))
    params = to_library(init_params(), jnp.float32)

    def by(number: Any = 2, *args: Any, **options: Any) -> Any:
        f = IMBSAM.value_and_grad(losses_fn, passes=passes.whole(number, **options))
        return f(params, y, *(args or (x, y)))

    for bad in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match=f"a whole number, at least 1, got {bad}"):
            by(bad)
    with pytest.raises(ValueError, match=r"8 rows is not divisible into micro_batches=3 .*pad"):
        by(3)
    with pytest.raises(ValueError, match=r"batched has 3 entries for 2 args"):
        by(batched=(True, True, False))
    for args, shape in (((x, y[:5]), r"\[5\]"), ((x, {"y": y, "n": 1.0}), r"\[\]")):
        with pytest.raises(ValueError, match=rf"args\[1\] .* shape {shape} for 8 labels.*batched="):
            by(2, *args)


# -------------------------------------------------------------------- rows that carry weight alone


@cache
def all_and_chosen() -> Any:
    """Of each rule, over all rows and over chosen ones, 3 of 7 at most or all: traced once."""

    @quick_jit
    @chex.assert_max_traces(n=1)
    def all_of_them(params: Any, labels: Any, x: Any, mask: Any, step: Any) -> Any:
        chosen = {"passes": passes.own_rows(lambda classes: (3, 7))}
        return {
            row.id: [
                row.value_and_grad(losses_fn, info=True, **options)(
                    params, labels, x, labels, step=step, mask=mask
                )
                for options in ({}, chosen)
            ]
            for row in BY_TABLE
        }

    return all_of_them


def assert_same(labels: Any, mask: Any, step: int = SWITCH, seed: int = 0) -> None:
    mask = np.asarray(mask)
    x = np.random.default_rng(seed).normal(size=(7, 5))
    with jax.enable_x64(True):
        results = all_and_chosen()(to_library(init_params()), np.asarray(labels), x, mask, step)
        for name, (whole, chosen) in results.items():
            (loss, logits, info), grads = whole
            (got_loss, got_logits, got_info), got = chosen
            assert_trees(got, grads, rtol=0, atol=1e-12, err_msg=name)
            assert_trees((got_loss, got_info), (loss, info), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(got_logits[mask], logits[mask], rtol=1e-12)
            assert np.isfinite(got_logits).all()


CLASS, REAL = st.integers(0, CLASSES - 1), st.booleans()


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.lists(CLASS, min_size=7, max_size=7),
    st.one_of(st.just([True] * 7), st.lists(REAL, min_size=7, max_size=7)),
    st.integers(0, 2 * SWITCH),
    st.integers(0, 2**16),
)
def test_rows_without_weight_change_nothing(labels: Any, mask: Any, step: int, seed: int) -> None:
    assert_same(labels, mask, step, seed)


@pytest.mark.slow
@pytest.mark.parametrize("tail_rows", [0, 1, 3, 4, 6, 7])
def test_no_number_of_tail_rows_is_too_large(tail_rows: int) -> None:
    """Buffers of 3 rows: for no tail, for as many as fit, one more, and a tail alone."""
    labels = np.where(np.arange(7) < tail_rows, 4, 1)[::-1]
    for step in (SWITCH - 1, SWITCH):
        assert_same(labels, np.ones(7, bool), step)
    assert_same(labels, np.arange(7) % 3 != 0)
    assert_same(labels, np.zeros(7, bool))


def chosen(name: str, buffers: Any, losses: Any = losses_fn, **options: Any) -> Any:
    return BY_ID[name].value_and_grad(losses, passes=passes.own_rows(buffers), info=True, **options)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["imbsam", pytest.param("sse_sam", marks=pytest.mark.slow)])
def test_one_size_needs_no_branch_and_drops_no_row_in_silence(name: str) -> None:
    """Four rows of the head and three of the tail; with another row of either, NaN."""
    buffers = ij.stratified_buffers(ij.tail_classes(COUNTS, ETA), rows=(4, 3))
    f, whole = chosen(name, buffers), BY_ID[name].value_and_grad(losses_fn, info=True)
    x, _ = one_batch()
    params = to_library(init_params())
    jaxpr = str(jax.make_jaxpr(lambda y, x: f(params, y, x, y, step=0))(np.ones(7, int), x))
    assert "cond[" not in jaxpr
    f, whole = (quick_jit(partial(g, step=0)) for g in (f, whole))
    full = {"mask": np.ones(7, bool)}
    for labels in ([0, 1, 2, 0, 3, 1, 4], [4, 2, 2, 1, 1, 1, 1]):
        y = np.array(labels)
        assert_trees(f(params, y, x, y, **full), whole(params, y, x, y, **full), rtol=0, atol=1e-12)
    for labels in ([0, 1, 2, 0, 0, 1, 4], [4, 3, 2, 4, 1, 0, 1]):
        y = np.array(labels)
        (loss, _, _), grads = f(params, y, x, y, **full)
        assert np.isnan(loss) and all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))
        # As padding, the row too many is none.
        mask = np.arange(7) != 0
        padded = (g(params, y, x, y, mask=mask) for g in (f, whole))
        (got, _, got_info), got_grads = next(padded)
        (loss, _, info), grads = next(padded)
        assert_trees((got, got_info, got_grads), (loss, info, grads), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_soft_labels_and_weights_of_every_class_take_the_whole_batch() -> None:
    """The same program, number by number: no branch, no row moved."""
    x, y = one_batch()
    soft = 0.9 * np.eye(CLASSES)[y] + 0.1 / CLASSES
    params = to_library(init_params())
    buffers = ij.binomial_buffers(COUNTS, 7)
    cases = [("sam", y), ("focal_sam", y), ("sgd", y), ("imbsam", soft), ("focal_sam", soft)]
    for name, labels in cases:
        row = BY_ID[name]
        programs = [
            jax.make_jaxpr(f)(params, labels, x, labels).jaxpr
            for f in (row.value_and_grad(losses_fn, info=True), chosen(name, buffers))
        ]
        kinds = [[e.primitive.name for e in jaxpr.eqns] for jaxpr in programs]
        assert not {"cond", "scatter"} & set(kinds[1])
        assert kinds[0].count("dot_general") == kinds[1].count("dot_general"), name
    doors = chosen("imbsam", buffers), IMBSAM.value_and_grad(losses_fn, info=True)
    got, want = quick_jit(lambda: [f(params, soft, x, soft) for f in doors])()
    assert_trees(got, want, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_weights_that_are_traced_take_the_whole_batch() -> None:
    x, y = one_batch()
    params = to_library(init_params())

    def by(scale: Any, **options: Any) -> Any:
        rule = rules.imbsam(COUNTS, rho=RHO, eta=ETA, tail_scale=scale)
        return ij.value_and_grad(losses_fn, rule, **options)(params, y, x, y)

    options = {"passes": passes.own_rows(lambda classes: (3, 7))}
    got, want = jax.jit(lambda scale: (by(scale, **options), by(scale)))(2.5)
    assert_trees(got, want, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [3, 7])
def test_a_class_without_weight_shows_in_loss_and_aux(size: int) -> None:
    """Class 1 is in no part; class 3 in both; the base weighs nothing but 0."""
    x, y = one_batch()
    y = np.array([1, 0, 3, 1, 0, 1, 3])
    params = to_library(init_params())
    base, group = np.array([1.0, 0, 0, 2, 0]), np.array([0.0, 0, 0, 1, 1])
    for table in (
        ij.ClassWeights(base, group[None], np.array([RHO])),
        ij.ClassWeights(None, np.stack([group, base]), np.array([RHO, 0.1])),
        ij.ClassWeights(0 * base, group[None], np.array([RHO])),
        ij.ClassWeights(base, 0 * group[None], np.array([RHO])),
        ij.ClassWeights(base, base[None], np.array([RHO])),
    ):
        rule = lambda step, table=table: table  # noqa: E731
        results = [
            quick_jit(ij.value_and_grad(losses_fn, rule, info=True, **options))(params, y, x, y)
            for options in ({}, {"passes": passes.own_rows(lambda classes: (size, 7))})
        ]
        assert_trees(results[1], results[0], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_args_with_rows_are_chosen_from_and_others_are_not() -> None:
    x, y = one_batch()
    params = to_library(init_params())
    keys = jax.random.split(jax.random.key(0), 7)

    def noisy(params: Any, inputs: Any, keys: Any, scales: Any) -> Any:
        noise = jnp.cos(jax.random.key_data(keys)[:, -1:].astype(float))  # of each row's key
        losses, logits = losses_fn(params, inputs["x"] + noise, inputs["y"])
        return losses * scales[0], {"losses": losses, "right": logits.argmax(1) == inputs["y"]}

    def by(**options: Any) -> Any:
        f = IMBSAM.value_and_grad(noisy, **options)
        return quick_jit(f)(params, y, {"x": x, "y": y}, keys, jnp.array([2.0, 3.0]))

    want = by()
    for buffers in (lambda classes: (4,), lambda classes: (2, 7)):
        own = passes.own_rows(buffers, batched=(True, True, False))
        assert_trees(by(passes=own), want, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_chosen_rows_under_vmap_over_seeds() -> None:
    """With one batch of all seeds branches stay branches; with their own, one size has none."""
    x, y = one_batch()
    params = [to_library(init_params(seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    ys = np.stack([y, np.roll(y, 2), y[::-1]])
    tail = int((y >= 2).sum())
    fixed = ij.stratified_buffers(ij.tail_classes(COUNTS, ETA), rows=(7 - tail, tail))
    whole = quick_jit(IMBSAM.value_and_grad(losses_fn, info=True))

    def by(buffers: Any, axis: int | None) -> Any:
        f = chosen("imbsam", buffers)
        return quick_jit(jax.vmap(lambda p, y: f(p, y, x, y), in_axes=(0, axis)))

    shared, own = by(lambda classes: (tail, 7), None), by(fixed, 0)
    assert "cond[" in str(shared.trace(stacked, y).jaxpr)
    assert "cond[" not in str(own.trace(stacked, ys).jaxpr)
    for f, labels in ((shared, [y] * 3), (own, ys), (by(lambda classes: (tail, 7), 0), ys)):
        got = jax.device_get(f(stacked, y if f is shared else ys))
        for seed in range(3):
            one = jax.tree.map(lambda leaf, seed=seed: leaf[seed], got)
            want = whole(params[seed], labels[seed], x, labels[seed])
            assert_trees(one, want, rtol=0, atol=1e-12)


# 20 % of the rows drawn are of the tail, whose classes are the last three.
DRAWN = np.array([50, 30, 10, 7, 3])


def test_cost_with_a_fixed_number_of_tail_rows() -> None:
    """1 + f at most 0.02 more, in SGD's FLOPs, by XLA's count; SSE-SAM's first stage 2."""
    sgd = flops(rules.sgd(CLASSES))
    buffers = ij.stratified_buffers(ij.tail_classes(COUNTS, ETA), rows=(205, 51))
    options = {"passes": passes.own_rows(buffers)}
    assert flops(IMBSAM.rule(RHO), **options) / sgd < 1 + 0.2 + 0.02
    assert flops(BY_ID["sse_sam"].rule(RHO), **options) / sgd < 2 + 0.03
    assert flops(IMBSAM.rule(RHO)) / sgd > 2.6


@pytest.mark.slow
def test_cost_with_tail_rows_drawn_at_random() -> None:
    """1000 batches: each takes the branches that it takes, of which each is compiled alone."""
    sgd = flops(rules.sgd(CLASSES))
    buffers = ij.binomial_buffers(DRAWN, 256)
    tail = ij.tail_classes(COUNTS, ETA)
    drawn = np.random.default_rng(0).binomial(256, 0.2, size=1000)

    def taken(classes: Any, rows: int) -> int:
        return min(size for size in buffers(classes) if size >= rows)

    branches = Counter((taken(tail, rows), taken(~tail, 256 - rows)) for rows in drawn)
    expected = 0.0
    for (of_tail, of_head), times in branches.items():
        alone = {
            "passes": passes.own_rows(
                lambda classes, sizes=(of_tail, of_head): (sizes[int(classes[0])],)
            )
        }
        expected += times / 1000 * flops(IMBSAM.rule(RHO), **alone) / sgd
    assert expected < 1.40


def test_the_least_buffer_that_holds_the_rows_is_taken() -> None:
    """Three rows are held by a buffer of three; more than any holds go into the last."""
    taken = [int(by_size((1, 3, 7), jnp.int32(rows), jnp.asarray)) for rows in range(9)]
    assert taken == [1, 1, 3, 3, 7, 7, 7, 7, 7]


def test_sizes_of_buffers() -> None:
    tail = np.array([False, False, True, True, True])
    sizes = ij.binomial_buffers(DRAWN, 256)(tail)
    mean, spread = 256 * 0.2, np.sqrt(256 * 0.2 * 0.8)
    assert sizes == (math.ceil(mean + 0.5 * spread), math.ceil(mean + 2.5 * spread), 256)
    assert ij.binomial_buffers(np.ones(5), 10, deviations=(0.0,))(tail) == (6, 10)
    assert ij.binomial_buffers(np.ones(5), 10, deviations=(-9.0,))(tail) == (0, 10)
    everything = np.ones(5, bool)
    assert ij.binomial_buffers(DRAWN, 256)(everything) == (256, 256, 256)
    assert ij.stratified_buffers([0, 0, 1, 2, 2], (10, 5, 1))(tail) == (6,)
    assert ij.stratified_buffers([0, 0, 1, 2, 2], (10, 5, 1))(everything) == (16,)
    for bad in ([], [[1.0, 2.0]], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="class_frequencies must "):
            ij.binomial_buffers(bad, 8)
    with pytest.raises(ValueError, match="deviations must be finite"):
        ij.binomial_buffers(DRAWN, 8, deviations=(0.5, math.nan))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ij.binomial_buffers(DRAWN, 0)
    for strata in ([0, 2], [-1, 0], [[0], [1]], [0.5, 1.0], ["a", "b"]):
        with pytest.raises(ValueError, match="from 0 to 1, as there are 2 numbers in rows"):
            ij.stratified_buffers(strata, (3, 4))
    for rows in ((3, -1), (3, 2.5), (3, "4"), (True, 3)):
        with pytest.raises(ValueError, match="rows must be a whole number, at least 0"):
            ij.stratified_buffers([0, 1], rows)


def test_what_is_no_rule_and_no_passes_is_refused() -> None:
    with pytest.raises(TypeError, match="ClassWeights"):
        ij.value_and_grad(losses_fn, IMBSAM.rule(RHO)(None))
    for bad in ("whole", 4, None, passes.own_rows):
        with pytest.raises(TypeError, match=r"passes must be passes\.whole\(\.\.\.\)"):
            ij.value_and_grad(losses_fn, IMBSAM.rule(RHO), passes=bad)


def test_what_the_passes_cannot_be_over_is_refused() -> None:
    buffers = ij.binomial_buffers(DRAWN, 7)
    for kind in (passes.own_rows, passes.split_norm):
        with pytest.raises(ValueError, match=r"a function of classes: for example"):
            kind((3, 7))
    x, y = map(jnp.asarray, one_batch())
    params = to_library(init_params(), jnp.float32)
    with pytest.raises(ValueError, match=r"args\[1\] .* shape \[2\] for 7 labels"):
        IMBSAM.value_and_grad(losses_fn, passes=passes.own_rows(buffers))(
            params, y, x, jnp.zeros(2)
        )

    def with_mean(params: Any, x: Any, y: Any) -> Any:
        losses, logits = losses_fn(params, x, y)
        return losses, {"mean": logits.mean(axis=0)}

    f = chosen("imbsam", lambda classes: (3, 7), with_mean)
    with pytest.raises(ValueError, match=r"aux\['mean'\] has shape \[5\] for 3 rows"):
        f(params, y, x, y)


BUFFERS = {
    "binomial": lambda: ij.binomial_buffers([5, 3, 1], 6),
    "stratified": lambda: ij.stratified_buffers([False, True, True], (4, 2)),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_other_classes_are_refused(kind: str) -> None:
    rule = rules.imbsam([60, 30, 9, 2], rho=0.1, eta=10)
    f = ij.value_and_grad(lambda w, x: (w * x, None), rule, passes=passes.own_rows(BUFFERS[kind]()))
    with pytest.raises(ValueError, match=r"the rule has 4 classes, and class_\w+ of the buffers 3"):
        f(jnp.float32(1), jnp.arange(4), jnp.ones(4))


def test_how_a_batch_is_cut_is_given_in_any_whole_number_and_by_a_tuple() -> None:
    def found(how: Any) -> Any:
        f = ij.value_and_grad(lambda w, x: (w * x, None), rules.sam(4, rho=0.1), passes=how)
        return f(jnp.float32(1), jnp.arange(4), jnp.arange(4.0))[1]

    np.testing.assert_allclose(found(passes.whole(np.int64(2))), found(passes.whole()), rtol=1e-6)


OF_BUFFERS: dict[str, Any] = {
    name: lambda buffers, make=make: ij.value_and_grad(
        lambda w, x: (w * ij.batch_norm(x[:, None])[0][:, 0], None),
        rules.imbsam([60, 9], rho=0.1, eta=10),
        passes=make(buffers),
    )(jnp.float32(1), jnp.array([0, 1, 0, 1]), jnp.arange(4.0))
    for name, make in {
        "own_rows": passes.own_rows, "split_norm": passes.split_norm,
        "shared_norm": passes.shared_norm,
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_BUFFERS)
def test_buffers_that_return_no_numbers_of_rows_are_refused(kind: str) -> None:
    OF_BUFFERS[kind](lambda classes: [np.int8(4)])
    for bad in (3, (), (3.7, 4), (True,), (-1, 4), "34", None, np.ones(2), {3: 4}):
        with pytest.raises(ValueError, match=r"buffers (must )?returns? (must be|one number|as)"):
            OF_BUFFERS[kind](lambda classes, bad=bad: bad)


def test_what_buffers_are_made_of_is_a_list_of_numbers() -> None:
    for bad in (205, None, "205"):
        with pytest.raises(ValueError, match=r"^rows must be a list of numbers, got "):
            ij.stratified_buffers([0, 1], rows=bad)
        with pytest.raises(ValueError, match=r"^deviations must be a list of numbers, got "):
            ij.binomial_buffers([8, 2], 256, deviations=bad)
    for named in ({1: 51, 0: 205}, pd.Series([51, 205], index=[1, 0])):
        assert ij.stratified_buffers([0, 1], rows=named)(np.array([False, True])) == (51,)


MADE: dict[str, Any] = {
    "whole": lambda **options: passes.whole(2, **options),
    "own_rows": lambda **options: passes.own_rows(lambda classes: (4,), **options),
    "split_norm": lambda **options: passes.split_norm(lambda classes: (4,), **options),
    "shared_norm": lambda **options: passes.shared_norm(lambda classes: (4,), **options),
}


@pytest.mark.parametrize("kind", MADE)
def test_options_of_another_kind_are_refused_as_the_passes_are_made(kind: str) -> None:
    """The word "no" would count as True, and a carry be called at the first step."""
    for bad in (True, "yes", 1):
        with pytest.raises(ValueError, match=r"^batched must be a tuple of truths"):
            MADE[kind](batched=bad)
    for mark in ("no", 1, None):
        with pytest.raises(TypeError, match=r"^each entry of batched must be True or False"):
            MADE[kind](batched=(True, mark))
    for carry in ("stats", True, ()):
        if kind in ("whole", "split_norm"):
            with pytest.raises(
                TypeError, match=r"^carry must be a function, \(args, aux\) -> args"
            ):
                MADE[kind](carry=carry)


def test_own_rows_takes_an_aux_of_numpy() -> None:
    """Of 64 bits, which JAX warns of where it cuts them unasked."""

    def with_aux(w: Any, x: Any) -> Any:
        return w * x, {"ones": np.ones(len(x)), "whole": np.arange(len(x))}

    rule, how = rules.imbsam([8, 2], rho=0.1, eta=4), passes.own_rows(lambda classes: (2, 3))
    f = ij.value_and_grad(with_aux, rule, passes=how)
    (_, aux), _ = f(jnp.array(2.0), jnp.array([0, 1, 0]), jnp.arange(3.0))
    assert aux["ones"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [jnp.int4, jnp.uint2, np.int8, bool])
def test_strata_of_any_whole_type(kind: Any) -> None:
    strata = np.array([0, 1, 1]).astype(kind)
    assert passes.stratified_buffers(strata, (5, 3))(np.array([False, True, True])) == (3,)


# ------------------------------------------------------------------------ labels of no class


@pytest.mark.parametrize("label", [-1, 9])
def test_a_row_of_no_class_counts_in_the_loss_of_chosen_rows_too(label: int) -> None:
    """The mean is over it as well, and its gradient is none."""
    x = np.array([[1.0, 0.0], [0.5, 2.0], [0.0, 1.0], [1.0, 1.0]], np.float32)
    labels, w = np.array([0, 0, 0, label]), jnp.array([1.0, -0.5])
    rule = rules.imbsam([90, 10], rho=0.1, eta=20)
    room = passes.own_rows(lambda classes: (1, 4))  # for the bad row alone, or for all
    f = ij.value_and_grad(lambda w, x: ((x @ w) ** 2, None), rule, passes=room)
    (loss, _), gradient = quick_jit(f)(w, labels, x)
    np.testing.assert_allclose(loss, (1 + 0.25 + 0.25 + 0.25) / 4, rtol=1e-6)
    assert np.isnan(gradient).all()
