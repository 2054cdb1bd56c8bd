"""How passes are run must not show in the gradient: micro-batches, and rows chosen by weight."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import rules
from rule_table import (
    BY_ID,
    CLASSES,
    RHO,
    ROWS,
    RULES,
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
def whole_and_in_parts(soft: bool) -> Any:
    """Of each rule, for A = 1, 2 and 4: one program, traced once."""

    @quick_jit
    def all_of_them(params: Any, labels: Any, x: Any, mask: Any, step: Any) -> Any:
        return {
            row.id: {
                number: row.value_and_grad(losses_fn, info=True, micro_batches=number)(
                    params, labels, x, labels, step=step, mask=mask
                )
                for number in (1, 2, 4)
            }
            for row in (RULES if soft else BY_TABLE)
        }

    return all_of_them


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [SWITCH - 1, SWITCH])
@pytest.mark.parametrize("batch", ["whole", "padded", "no_tail", "only_tail", "soft"])
def test_micro_batches_change_nothing(batch: str, step: int) -> None:
    """Gradient, loss and info to rounding; the aux is theirs in turn."""
    kind: Any = batch if batch.endswith("tail") else "mixed"
    x, labels = one_batch(size=SIZE, kind=kind)
    mask = np.arange(SIZE) % 5 != 1 if batch == "padded" else np.ones(SIZE, bool)
    if batch == "soft":
        labels = 0.7 * np.eye(CLASSES)[labels] + 0.3 * np.eye(CLASSES)[labels[::-1]]
    params = to_library(init_params())
    results = whole_and_in_parts(batch == "soft")(params, labels, x, mask, step)
    for by_number in results.values():
        (loss, logits, info), grads = by_number[1]
        for number in (2, 4):
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
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        losses, _ = losses_fn(params, inputs["x"] + noise, inputs["y"])
        return losses * scales["loss"], {"of rows": losses, "of parts": losses.sum()}

    def by(number: int) -> Any:
        f = IMBSAM.value_and_grad(noisy, micro_batches=number, batched=(True, True, False))
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
            with_mean, micro_batches=number, batched=(True, True, False), carry=carry
        )
        return quick_jit(f)(params, y, x, y, jnp.zeros(CLASSES))

    (loss, stats), grads = by(1, lambda args, stats: (*args[:2], stats))
    (got_loss, parts), got = by(4, lambda args, parts: (*args[:2], parts.mean(axis=0)))
    assert parts.shape == (4, CLASSES)
    np.testing.assert_allclose(parts.mean(axis=0), stats, rtol=1e-12)
    assert_trees((got_loss, got), (loss, grads), rtol=0, atol=1e-12)


def wide(hidden: int = 128) -> Any:
    """(losses_fn, parameters, x, labels) of a network whose matrix products are all it costs."""
    rng = np.random.default_rng(0)
    sizes = (hidden, hidden, hidden, CLASSES)
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

    return losses, weights, jnp.zeros((256, hidden), jnp.float32), jnp.zeros(256, int)


def flops(rule: Any, step: int = 0, **options: Any) -> float:
    losses, weights, x, y = wide()
    f = ij.value_and_grad(losses, rule, **options)
    compiled = jax.jit(lambda w, y, x: f(w, y, x, y, step=step)).lower(weights, y, x).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["imbsam", "sse_sam"])
def test_micro_batches_share_the_forward_pass_at_theta(name: str) -> None:
    """XLA counts the body of a loop once: a quarter of the whole."""
    rule = BY_ID[name].rule(RHO)  # type: ignore[misc]
    whole = flops(rule)
    np.testing.assert_allclose(4 * flops(rule, micro_batches=4), whole, rtol=0.02)
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
        micro_batches=512,
    )
    with pytest.warns(UserWarning, match="bfloat16"):
        _, grad = f(jnp.bfloat16(0), np.zeros(512, int), x)
    assert grad.dtype == jnp.bfloat16 and float(grad) == 512


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_of_no_class_shows_in_any_micro_batch(label: int) -> None:
    x, y = one_batch(size=SIZE)
    params = to_library(init_params(), jnp.float32)
    f = IMBSAM.value_and_grad(losses_fn, micro_batches=4)
    _, grads = quick_jit(f)(params, np.where(np.arange(SIZE) == 5, label, y), x, y)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def test_bad_micro_batches_are_refused() -> None:
    x, y = map(jnp.asarray, one_batch(size=SIZE))
    params = to_library(init_params(), jnp.float32)

    def by(number: Any = 2, *args: Any, **options: Any) -> Any:
        f = IMBSAM.value_and_grad(losses_fn, micro_batches=number, **options)
        return f(params, y, *(args or (x, y)))

    for bad in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match=f"whole number from 1 on, got {bad}"):
            by(bad)
    with pytest.raises(ValueError, match=r"8 rows is not divisible into micro_batches=3 .*pad"):
        by(3)
    with pytest.raises(ValueError, match=r"batched has 3 entries for 2 args"):
        by(batched=(True, True, False))
    for args, shape in (((x, y[:5]), r"\[5\]"), ((x, {"y": y, "n": 1.0}), r"\[\]")):
        with pytest.raises(ValueError, match=rf"args\[1\] .* shape {shape} for 8 labels.*batched="):
            by(2, *args)
