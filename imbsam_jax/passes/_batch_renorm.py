"""Batch renormalisation, by which split_norm's passes see the values of the whole batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpy.typing import ArrayLike

from imbsam_jax import collectives
from imbsam_jax.arrays import floating, of_features
from imbsam_jax.checks import at_least_float32, like, number

__all__ = ["batch_renorm"]


def batch_renorm(
    x: jax.Array,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    axis_name: Any = None,
) -> jax.Array:
    """Normalises by given statistics in value, and by the batch's own in gradient.

        (x - m) / s * r + d,   r = s / sqrt(var + epsilon),  d = (m - mean) / sqrt(var + epsilon)

    with m and s = sqrt(v + epsilon) the batch's mean and deviation, r and d held fixed. So a pass
    over a group's rows alone sees the values that the whole batch would give it, while scale and
    shift of what is normalised still do not change the loss, as in batch normalisation.

    Args:
      x: float[..., C], a batch; or one example inside `vmap(axis_name=...)`, as in Equinox.
      mean, var: float[C], the statistics to normalise by; no gradient reaches them.
      axis: that of the C features: -1 in Flax, 0 for an example in Equinox.
      epsilon: added to both variances, finite and at least 0.
      axis_name: the axis over which m and v are taken, too: of devices, or of a vmap; or None.

    Returns:
      Like x, at least float32; without a scale and a bias, which are the layer's. v is taken as
      E[x^2] - m^2, as in `batch_norm`, with the same loss of digits far from 0.

    Raises:
      ValueError: an epsilon that is negative or not finite.

    Source: Ioffe, Batch Renormalization, NIPS 2017, Algorithm 1, without its clipping of r and d,
    and with the whole batch's statistics where it has the running ones.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> batch_renorm(x, mean=jnp.array([0.0]), var=jnp.array([4.0]), epsilon=0.0).tolist()
    [[0.5], [1.5]]
    >>> jax.grad(lambda x: batch_renorm(x, jnp.zeros(1), jnp.ones(1)).sum())(x).round(5).tolist()
    [[0.0], [0.0]]
    """
    x = floating("x", x)
    features = x.shape[axis]
    mean, var = of_features("mean", mean, features), of_features("var", var, features)
    wide = x.astype(at_least_float32(x.dtype))
    epsilon = like(number("epsilon", epsilon, least=0), wide)
    axes = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    m, square = collectives.mean((wide.mean(axes), jnp.square(wide).mean(axes)), axis_name)
    shape = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
    s = jnp.sqrt(jnp.maximum(square - jnp.square(m), 0) + epsilon).reshape(shape)
    m, mean, var = (jnp.asarray(each, wide.dtype).reshape(shape) for each in (m, mean, var))
    s_given = jnp.sqrt(var + epsilon)
    r, d = lax.stop_gradient((s / s_given, (m - mean) / s_given))
    return (wide - m) / s * r + d
