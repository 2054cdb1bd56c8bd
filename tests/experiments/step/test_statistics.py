"""A batch's own statistics, from layers that give only running ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.step.statistics import OF_BATCH, noting_its_own, renormalised, shared

pytestmark = pytest.mark.allow_rank_promotion  # Flax's batch normalisation


class Block(nn.Module):
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="norm")
        return jnp.tanh(norm(x))


class Two(nn.Module):
    """Two layers of different momentum, one of them computed again in the backward pass."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Block(0.9, name="first")(x, train)
        return nn.remat(Block, static_argnums=2)(0.25, name="second")(x, train)


def test_each_layer_notes_its_own_whatever_its_momentum():
    draw = np.random.default_rng(0)
    x = draw.normal(2, 3, (16, 4)).astype(np.float32)
    variables = jax.jit(lambda key: Two().init(key, x, train=False))(jax.random.key(0))
    running = jax.tree.map(lambda v: v + 0.5, variables["batch_stats"])
    given = {"params": variables["params"], "batch_stats": running}

    def loss(params, x):
        with nn.intercept_methods(noting_its_own):
            y, after = Two().apply(
                {**given, "params": params}, x, train=True, mutable=["batch_stats", OF_BATCH]
            )
        return y.sum(), (y, after)

    @jax.jit
    def passes(given, x):
        noted = jax.value_and_grad(loss, has_aux=True)(given["params"], x)[0][1]
        first = {collection: tree["first"] for collection, tree in given.items()}
        return (
            noted,
            Two().apply(given, x, train=True, mutable=["batch_stats"]),
            Block(0.9).apply(first, x, True, mutable=["batch_stats"])[0],
        )

    (y, after), (plain, expected), after_first = jax.device_get(passes(given, x))
    np.testing.assert_array_equal(y, plain)
    for name, hidden in (("first", x), ("second", after_first)):
        own, moved = after[OF_BATCH][name]["norm"], after["batch_stats"][name]["norm"]
        np.testing.assert_allclose(own["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own["var"], hidden.var(0), rtol=1e-4, atol=1e-6)
        for key, value in expected["batch_stats"][name]["norm"].items():
            np.testing.assert_allclose(moved[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("how", "running"), [(shared, False), (renormalised, True)])
def test_a_layer_with_numbers_of_its_own_is_flaxs(how, running, affine):
    """Of one whole batch: by its own statistics, or by the running ones; each number heeded."""
    draw = np.random.default_rng(1)
    x = jnp.asarray(draw.normal(1, 0.5, (8, 3)), jnp.float32)
    layer = nn.BatchNorm(momentum=0.7, epsilon=0.3, use_scale=affine, use_bias=affine)

    @jax.jit
    def passes(key):
        given = layer.init(key, x, use_running_average=True)
        given = jax.tree.map(lambda v: v + jnp.arange(1.0, 4.0), given)
        expected = layer.apply(given, x, use_running_average=running, mutable=["batch_stats"])
        with nn.intercept_methods(how):
            return (
                expected,
                layer.apply(given, x, mutable=["batch_stats"]),
                layer.clone(dtype=jnp.bfloat16).apply(given, x, mutable=["batch_stats"])[0],
            )

    (y, expected), (found, after), low = passes(jax.random.key(0))
    np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-6)
    assert (found.dtype, low.dtype) == (jnp.float32, jnp.bfloat16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, expected)
