"""Parameters as other frameworks keep them: Equinox's modules, Haiku's pairs of functions.

test_nnx.py has Flax NNX, test_wrappers.py the links of Optax and Flax's train states.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import imbsam_jax as ij
from imbsam_jax.passes import split_norm
from rule_table import (
    BY_ID,
    CLASSES,
    FEATURES,
    HIDDEN,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    to_library,
)

NAMES = ("imbsam", "sse_sam", "imbsam-asam")


def close(got: Any, want: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13, rtol=1e-11)


# ---- Equinox ------------------------------------------------------------------------------------


def mlp() -> Any:
    """The model of the table, as Equinox has it: kernels transposed, called on one example."""
    model = eqx.nn.MLP(FEATURES, CLASSES, HIDDEN, 1, activation=jnp.tanh, key=jax.random.key(0))
    params = to_library(init_params())
    parts = [params[layer][part].T for layer in ("hidden", "head") for part in ("kernel", "bias")]
    return eqx.tree_at(
        lambda m: [part for layer in m.layers for part in (layer.weight, layer.bias)], model, parts
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("door", "names"),
    [
        ("value_and_grad", NAMES),
        ("sharpness_aware", ("imbsam-asam",)),
        pytest.param("sharpness_aware", NAMES, marks=pytest.mark.slow),
    ],
)
def test_a_partitioned_module_of_equinox(door: str, names: tuple[str, ...]) -> None:
    x, y = one_batch()
    params, static = eqx.partition(mlp(), eqx.is_inexact_array)
    plain = to_library(init_params())

    def of_module(params: Any, x: Any, y: Any) -> Any:
        logits = jax.vmap(eqx.combine(params, static))(x)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y], None

    @quick_jit
    def both() -> Any:
        pairs = []
        for name in names:
            row = BY_ID[name]
            want = row.value_and_grad(losses_fn)(plain, y, x, y, step=0)[1]
            if door == "value_and_grad":
                got = row.value_and_grad(of_module)(params, y, x, y, step=0)[1]
            else:
                tx = row.transform()
                fn = ij.class_weighted_grad(of_module, y, x, y)
                got, _ = tx.update(fn, tx.init(params), params)
            layers = [{"bias": layer.bias, "kernel": layer.weight.T} for layer in got.layers]
            pairs.append((layers, [want["hidden"], want["head"]]))
        return pairs

    for got, want in both():
        close(got, want)


def test_a_whole_module_of_equinox_is_refused_by_its_leaf() -> None:
    """Its activation is a leaf, and no array."""
    x, y = one_batch()
    says = r"parameter \.activation is .*, and only real arrays.*eqx\.partition\(model, "
    with pytest.raises(TypeError, match=says + r"eqx\.is_inexact_array\)"):
        ij.value_and_grad(losses_fn, BY_ID["imbsam"].rule(0.1))(mlp(), y, x, y)


class Normed(eqx.Module):
    """A layer that is normalised by its batch, or by given statistics, under vmap."""

    layer: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, x: Any, held: Any) -> Any:
        x = self.layer(x)
        mean, square = jax.lax.pmean((x, x**2), "batch")
        own = mean, square - mean**2
        x = ij.batch_renorm(x, *(own if held is None else held), axis=0, axis_name="batch")
        return self.head(jnp.tanh(x)), own


@pytest.mark.usefixtures("x64")
def test_equinox_renormalises_under_split_norm() -> None:
    """An example at a time, as over the whole batch at once."""
    x, y = one_batch(2, size=8)
    keys = jax.random.split(jax.random.key(0))
    model = Normed(eqx.nn.Linear(FEATURES, 6, key=keys[0]), eqx.nn.Linear(6, CLASSES, key=keys[1]))

    def by_example(model: Any, x: Any, y: Any, held: Any) -> Any:
        run = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
        logits, own = run(x, held)
        return ij.losses.cross_entropy(logits, y), own

    def at_once(model: Any, x: Any, y: Any, held: Any) -> Any:
        x = x @ model.layer.weight.T + model.layer.bias[None]
        own = x.mean(0), (x**2).mean(0) - x.mean(0) ** 2
        x = jnp.tanh(ij.batch_renorm(x, *(own if held is None else held)))
        return ij.losses.cross_entropy(x @ model.head.weight.T + model.head.bias[None], y), own

    passes = split_norm(
        lambda classes: (6,), (True, True, False), carry=lambda args, own: (*args[:2], own)
    )

    def gradient(losses: Any) -> Any:
        f = ij.value_and_grad(losses, BY_ID["imbsam"].rule(0.3), passes=passes)
        return f(model, y, x, y, None)

    got, want = quick_jit(lambda: (gradient(by_example), gradient(at_once)))()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))  # the tail fits
    close(got, want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_features_may_lie_on_any_axis(axis: int) -> None:
    draw = np.random.default_rng(0)
    x, mean, var = draw.normal(size=(4, 3, 5)), draw.normal(size=5), draw.uniform(1, 2, 5)
    want = ij.batch_renorm(jnp.asarray(x), mean, var)
    got = ij.batch_renorm(jnp.moveaxis(x, -1, axis), mean, var, axis=axis)
    close(jnp.moveaxis(got, axis, -1), want)


# ---- functions in the way of Haiku --------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_an_apply_function_with_state_and_a_key() -> None:
    """`apply(params, state, key, x) -> (output, state)`: both are args, the new state is aux."""
    x, y = one_batch()
    params = {f"net/~/{name}": leaf for name, leaf in to_library(init_params()).items()}

    def apply(params: Any, state: Any, key: Any, x: Any) -> Any:
        keep = jax.random.bernoulli(key, 0.5, (len(x), HIDDEN))
        hidden, head = params["net/~/hidden"], params["net/~/head"]
        x = jnp.tanh(x @ hidden["kernel"] + hidden["bias"][None]) * keep
        return x @ head["kernel"] + head["bias"][None], {"mean": 0.9 * state["mean"] + x.mean(0)}

    def losses(params: Any, state: Any, key: Any, x: Any, y: Any) -> Any:
        logits, state = apply(params, state, key, x)
        return ij.losses.cross_entropy(logits, y), state

    state, key = {"mean": jnp.ones(HIDDEN)}, jax.random.key(3)
    rule = ij.rules.sam(CLASSES, rho=0.1)

    def mean(p: Any) -> Any:
        return losses(p, state, key, x, y)[0].mean()

    @quick_jit
    def both() -> Any:
        (_, aux), grads = ij.value_and_grad(losses, rule)(params, y, state, key, x, y)
        d = jax.grad(mean)(params)
        moved = jax.tree.map(lambda p, g: p + 0.1 * g / optax.tree.norm(d), params, d)
        return (grads, aux), (jax.grad(mean)(moved), apply(params, state, key, x)[1])

    close(*both())


# ---- linen --------------------------------------------------------------------------------------


def test_a_module_of_linen_is_refused_with_the_way_out() -> None:
    x, y = one_batch()
    says = r'is a Dense, a module of flax\.linen, .* model\.init\(key, x\)\["params"\]'
    with pytest.raises(TypeError, match=says):
        ij.value_and_grad(losses_fn, BY_ID["imbsam"].rule(0.1))(linen.Dense(3), y, x, y)


def test_a_key_among_parameters_is_named() -> None:
    x, y = one_batch()
    with pytest.raises(TypeError, match=r"parameter \['key'\] is key<fry>, and only real arrays"):
        ij.value_and_grad(losses_fn, BY_ID["imbsam"].rule(0.1))({"key": jax.random.key(0)}, y, x, y)
