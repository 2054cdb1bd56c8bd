"""The ways to take ImbSAM's step, of a layer whose batch's mean is taken off."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import exact_batch_norm
from experiments.models import BATCH_NORM_MOMENTUM


class Centred:
    """x w without its mean over the batch; a running mean of it otherwise."""

    def apply(self, variables, x, *, train, mutable=()):
        z = x @ variables["params"]["w"]
        if not train:
            return z - variables["batch_stats"]["mean"][None]
        old, mean = variables["batch_stats"]["mean"], z.mean(axis=0)
        kept = BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * mean
        return z - mean[None], {"batch_stats": {"mean": kept}}


def test_the_ways_are_one_gradient_but_where_statistics_are_held():
    """By the softmax's formula; the last two of five rows are the tail, rho is 0.05."""
    draw = np.random.default_rng(0)
    w, x = draw.normal(size=(3, 4)), draw.normal(size=(5, 3))
    y = np.array([0, 1, 1, 2, 3])
    tail = np.array([0, 0, 0, 1, 1]) / 5

    def gradient(w, rows, held=False):
        z = x @ w - (x @ w).mean(axis=0)
        found = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(4)[y]
        found = rows[:, None] * found
        return x.T @ found - (0 if held else x.mean(axis=0)[:, None] * found.sum(axis=0))

    d = gradient(w, tail)
    point = w + 0.05 * d / np.linalg.norm(d)
    head = gradient(w, 0.2 - tail)
    given = {"w": jnp.float32(w)}, {"mean": jnp.ones(4)}, jnp.float32(x), jnp.array(y)
    ways = exact_batch_norm.ways(Centred(), 2)
    assert list(ways) == ["sgd", "exact", "batched", "stopped", "remat"]
    every = jax.jit(lambda *given: {name: way(*given) for name, way in ways.items()})(*given)
    for name, (found, new) in every.items():
        want = gradient(w, np.full(5, 0.2)) if name == "sgd" else head + gradient(
            point, tail, held=name == "stopped"
        )  # fmt: skip
        np.testing.assert_allclose(found["w"], want, atol=2e-6, err_msg=name)
        kept = BATCH_NORM_MOMENTUM + (1 - BATCH_NORM_MOMENTUM) * (x @ w).mean(axis=0)
        np.testing.assert_allclose(new["mean"], kept, atol=1e-6, err_msg=name)
