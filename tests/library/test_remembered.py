"""The remembered ascent direction against a transcription of its own, and what it costs."""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu_program
import imbsam_jax as ij
import reference
from imbsam_jax import passes, rules
from imbsam_jax.experimental import remembered
from rule_table import (
    CLASSES,
    COUNTS,
    ETA,
    RHO,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    to_library,
    to_reference,
)

TAIL = COUNTS <= ETA
SIZE, DECAY, LR = 8, 0.6, 0.5
TAIL_SCALE = 2.0
# With tail rows and without, only tail rows, and padding of both kinds.
STEPS = [
    ("mixed", [1, 1, 1, 1, 1, 1, 1, 1]),
    ("no_tail", [1, 1, 1, 1, 1, 1, 1, 1]),
    ("mixed", [1, 0, 1, 1, 0, 1, 1, 1]),
    ("only_tail", [1, 1, 1, 1, 1, 1, 1, 1]),
    ("only_tail", [0, 0, 0, 0, 0, 0, 0, 0]),
    ("mixed", [0, 1, 1, 0, 1, 1, 1, 0]),
]
RULES = {
    "imbsam": rules.imbsam(COUNTS, rho=RHO, eta=ETA, tail_scale=TAIL_SCALE),
    "sam": rules.sam(CLASSES, rho=RHO),
    "focal_sam": rules.focal_sam(COUNTS, rho=RHO, gamma=1.3, strength=0.8),
    "sse_sam": rules.sse_sam(COUNTS, head_rho=0.1, tail_rho=RHO, eta=ETA, switch_step=9).stages[0],
}
QUICK_CASES = [("imbsam", "independent"), ("sse_sam", "dependent")]
BUFFERS = {"passes": passes.own_rows(lambda classes: (2, 5, SIZE))}


def batches() -> list[Any]:
    return [
        (*one_batch(seed, SIZE, kind), np.array(mask, bool))
        for seed, (kind, mask) in enumerate(STEPS)
    ]


def by_hand(rule: Any) -> list[Any]:
    """(params, memory, loss at theta, loss where each row was seen) of each step, in float64."""
    base, groups, radii = rule(0)
    params = init_params()
    memory = [reference.zeros(params) for _ in groups]
    found = []
    for x, y, mask in batches():
        x, y = x[mask], y[mask]
        real = max(len(x), 1)

        def part(point: Any, weights: Any, x: Any = x, y: Any = y, real: int = real) -> Any:
            return reference.weighted_gradient(point, x, y, weights[y] / real)

        at_theta = reference.per_example_losses(params, x, y)
        seen = np.full(len(x), np.nan) if base is None else np.where(base[y] != 0, at_theta, np.nan)
        g = reference.zeros(params) if base is None else part(params, base)
        for k, (weights, radius) in enumerate(zip(groups, radii, strict=True)):
            length = reference.norm(memory[k])
            e = reference.scale(radius / length if length > 0 else 0.0, memory[k])
            point = reference.add(params, e)
            own = part(point, weights)
            there = reference.per_example_losses(point, x, y)
            seen = np.where(np.isnan(seen) & (weights[y] != 0), there, seen)
            g = reference.add(g, own)
            if (weights[y] != 0).any():
                memory[k] = reference.add(
                    reference.scale(DECAY, memory[k]), reference.scale(1 - DECAY, own)
                )
        found.append((params, g, list(memory), at_theta.sum() / real, seen.sum() / real))
        params = reference.add(params, reference.scale(-LR, g))
    return found


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "examples"),
    [
        pytest.param(
            name, examples, marks=[pytest.mark.slow] * ((name, examples) not in QUICK_CASES)
        )
        for name in RULES
        for examples in ("dependent", "independent")
    ],
)
def test_steps_are_those_of_the_transcription(name: str, examples: str) -> None:
    rule = RULES[name]
    options: Any = BUFFERS if examples == "independent" else {}
    f = quick_jit(remembered.value_and_grad(losses_fn, rule, decay=DECAY, **options))
    params = to_library(init_params())
    memory = remembered.init(params, rule)
    for (x, y, mask), want in zip(batches(), by_hand(rule), strict=True):
        (loss, logits), grads, memory = f(params, memory, y, x, y, mask=mask)
        np.testing.assert_equal(logits.shape, (SIZE, CLASSES))
        pairs = zip((params, grads, *memory), (*want[:2], *want[2]), strict=True)
        for got, expected in pairs:
            for key, value in to_reference(got).items():
                np.testing.assert_allclose(value, expected[key], rtol=1e-9, atol=1e-13)
        at_theta = examples == "dependent" and rule(0).base is not None
        np.testing.assert_allclose(loss, want[3] if at_theta else want[4], rtol=1e-9)
        params = jax.tree.map(lambda p, g: p - LR * g, params, grads)


def test_the_first_step_is_that_of_sgd_and_decay_0_keeps_the_last_batch() -> None:
    rule, params = RULES["focal_sam"], to_library(init_params(), jnp.float32)
    x, y = one_batch(2, SIZE)
    f = quick_jit(remembered.value_and_grad(losses_fn, rule, decay=0.0))
    (_, _), grads, memory = f(params, remembered.init(params, rule), y, x, y)
    (_, _), plain = quick_jit(ij.value_and_grad(losses_fn, rules.sgd(CLASSES)))(params, y, x, y)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), grads, plain)
    # A memory of the tail's gradient at theta itself is the exact gradient, at any scale of it.
    exact = quick_jit(ij.value_and_grad(losses_fn, rule))(params, y, x, y)[1]
    again = f(params, jax.tree.map(lambda m: 1e-25 * m, memory), y, x, y)[1]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), again, exact)


def test_rows_of_three_parts_are_each_reported_by_their_own() -> None:
    table = ij.ClassWeights(np.eye(3)[0], np.eye(3)[1:], np.zeros(2))
    f = remembered.value_and_grad(
        lambda w, x: (w * x, x), lambda step: table, decay=0.5,
        passes=passes.own_rows(lambda classes: (int(classes.sum()),)),
    )  # fmt: skip
    x, w = jnp.array([1.0, 2.0, 6.0]), jnp.ones(())
    (loss, aux), _, _ = quick_jit(f)(w, (w, w), np.arange(3), x)
    assert loss == 3 and aux.tolist() == x.tolist()


def test_the_memory_is_wide_and_a_donated_step_works() -> None:
    rule = RULES["imbsam"]
    params = {"w": jnp.ones(3, jnp.bfloat16)}

    def losses(params: Any, x: Any) -> Any:
        return (x @ params["w"]).astype(jnp.float32) ** 2, None

    f = remembered.value_and_grad(losses, rule, decay=jnp.asarray(0.9))
    memory = remembered.init(params, rule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that bfloat16 is too coarse to be perturbed
        step = jax.jit(f, donate_argnums=1)
        _, grads, memory = step(params, memory, jnp.array([0, 4]), jnp.ones((2, 3), jnp.bfloat16))
    assert grads["w"].dtype == jnp.bfloat16 and memory[0]["w"].dtype == jnp.float32
    assert memory[0]["w"][0] > 0


def test_what_does_not_fit_is_refused() -> None:
    rule, (x, y) = RULES["imbsam"], one_batch(2, SIZE)
    params = to_library(init_params(), jnp.float32)
    door = partial(remembered.value_and_grad, losses_fn)
    staged = rules.stagewise(RULES["sam"], rule, switch_step=3)
    for call in (lambda: remembered.init(params, staged), lambda: door(staged, decay=0.9)):
        with pytest.raises(ValueError, match=r"memory for each of rule\.stages"):
            call()
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"below 1, got {decay}"):
            door(rule, decay=decay)
    for bad in (passes.whole(2), passes.split_norm(lambda classes: (SIZE,))):
        with pytest.raises(ValueError, match=r"takes passes\.whole"):
            door(rule, decay=0.9, passes=bad)
    with pytest.raises(ValueError, match="memory is of 2 groups and the rule has 1"):
        door(rule, decay=0.9)(params, remembered.init(params, RULES["sse_sam"]), y, x, y)
    hand_made = ij.ClassWeights(np.array([1.0, 1, 0, 0, 0]), np.eye(5)[3:4], np.array([RHO]))
    with pytest.raises(ValueError, match=r"no pass over classes \[2, 4\]"):
        door(lambda step: hand_made, decay=0.9, **BUFFERS)(params, (params,), y, x, y)
    scheduled = rules.imbsam(COUNTS, rho=lambda step: 0.1 * step, eta=ETA)
    with pytest.raises(ValueError, match="step"):
        door(scheduled, decay=0.9)(params, remembered.init(params, scheduled), y, x, y)


def doubled(w: Any, x: Any) -> Any:
    """Of ones in x: 2 w, in each of three parameters."""
    return (w["a"] ** 2).sum() * x, None


UNLIKE: dict[str, Any] = {
    "shorter": ({"a": jnp.ones(1)}, ValueError, "structure and shapes of the parameters"),
    "a number": ({"a": jnp.ones(())}, ValueError, "structure and shapes of the parameters"),
    "longer": ({"a": jnp.ones((2, 3))}, ValueError, "structure and shapes of the parameters"),
    "another name": ({"b": jnp.ones(3)}, ValueError, "structure and shapes of the parameters"),
    "no tree": (jnp.ones(3), ValueError, "structure and shapes of the parameters"),
    "whole numbers": ({"a": np.ones(3, int)}, TypeError, "real and floating, got int64"),
    "complex": ({"a": np.ones(3, complex)}, TypeError, "real and floating, got complex128"),
}


@pytest.mark.parametrize("unlike", UNLIKE)
@pytest.mark.parametrize("how", [passes.whole(), passes.own_rows(lambda classes: (1, 2))])
def test_a_memory_unlike_the_parameters_is_refused(how: Any, unlike: str) -> None:
    """It would be spread over them, or cut to whole numbers."""
    f = remembered.value_and_grad(
        doubled, rules.imbsam([8, 2], rho=1.0, eta=4), decay=0.5, passes=how
    )
    params, rows = {"a": jnp.ones(3)}, (jnp.array([0, 1]), jnp.ones(2))
    _, _, (memory,) = f(params, ({"a": np.ones(3)},), *rows)
    np.testing.assert_allclose(memory["a"], 0.5 + 0.5 * (1 + 3**-0.5), rtol=1e-6)
    tree, error, words = UNLIKE[unlike]
    with pytest.raises(error, match=rf"^memory\[0\].* must be .*{words}"):
        jax.eval_shape(lambda: f(params, (tree,), *rows))


def test_no_class_and_what_is_not_finite_are_not_hidden() -> None:
    rule, params = RULES["imbsam"], to_library(init_params(), jnp.float32)
    x, y = one_batch(2, SIZE)
    f = quick_jit(remembered.value_and_grad(losses_fn, rule, decay=0.9))
    memory = remembered.init(params, rule)
    for bad in ((x, np.where(np.arange(SIZE) == 3, CLASSES, y)), (np.full_like(x, np.nan), y)):
        _, grads, after = f(params, memory, bad[1], *bad)
        for tree in (grads, after):
            assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@cache
def flops(name: str, own_rows: bool) -> float:
    """Of one step of a wide layer, 25 rows of 128 in the tail."""
    weights, x = jnp.ones((256, 64)), jnp.ones((128, 256))
    y = jnp.asarray(np.arange(128) % 5)
    rule = rules.sgd(CLASSES) if name == "sgd" else rules.imbsam(COUNTS, rho=RHO, eta=2)

    def losses(w: Any, x: Any, y: Any) -> Any:
        return jax.nn.logsumexp(jnp.tanh(x @ w), axis=-1), None

    options: dict[str, Any] = {}
    if own_rows:
        buffers = ij.stratified_buffers(ij.tail_classes(COUNTS, 2), (128 - 25, 25))
        options["passes"] = passes.own_rows(buffers)
    if name == "remembered":
        f: Any = remembered.value_and_grad(losses, rule, decay=0.9, **options)
        args: Any = (weights, remembered.init(weights, rule), y, x, y)
    else:
        f, args = ij.value_and_grad(losses, rule, **options), (weights, y, x, y)
    return cpu_program.compiled(quick_jit(f), *args).cost_analysis()["flops"]


def test_a_step_costs_what_is_promised() -> None:
    sgd = flops("sgd", own_rows=False)
    assert flops("remembered", own_rows=True) / sgd == pytest.approx(1, abs=0.08)
    assert flops("imbsam", own_rows=True) / sgd == pytest.approx(1 + 25 / 128, abs=0.08)
    # Of one layer a backward pass costs what a forward pass does: 4 passes and 5, over SGD's 2.
    assert flops("remembered", own_rows=False) / sgd == pytest.approx(2, abs=0.08)
    assert flops("imbsam", own_rows=False) / sgd == pytest.approx(2.5, abs=0.08)


@pytest.mark.slow
def test_on_eight_devices(run_python: Any) -> None:
    run_python(["-W", "error", "tests/on_devices.py", "remembered"], devices=8, timeout=900)
