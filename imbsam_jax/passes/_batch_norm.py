"""Batch normalisation of a batch that passes see in parts, and what a part leaves open of it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from imbsam_jax import collectives
from imbsam_jax.arrays import floating, of_features
from imbsam_jax.checks import at_least_float32, like, number

__all__ = ["batch_norm"]

# What a layer that sees a part of the batch does not know. Where a pass is over the whole batch it
# is what it is here; over a part of it, `_lockstep` puts something else in its place.
ROWS = "imbsam_jax.rows"  # float[b], 1 for each row that is one of the batch
OVER_ROWS = "imbsam_jax.sum_over_rows"  # a sum over the rows of the pass: over all rows


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float = 1e-5,
    axis_name: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the whole batch, of whatever part of it a pass is over.

        y = scale ((x - m) / s * r + d) + bias,   r = s / S,  d = (m - M) / S

    with m and s = sqrt(v + epsilon) the mean and deviation of the rows of the pass, M and
    S = sqrt(V + epsilon) those of the whole batch, r and d held fixed. Where a pass is over the
    whole batch this is batch normalisation (r = 1, d = 0). Of a part of it, `passes.shared_norm`,
    it is batch renormalisation: y is what the whole batch makes of it, scale (x - M) / S + bias,
    and its gradient by x that of the part's own normalisation, over S instead of s:

        dL/dx_i = scale / S (g_i - mean_j g_j - z_i mean_j g_j z_j),  z = (x - m) / s,  g = dL/dy

    Args:
      x: float[B, ..., C], of one layer; the batch is the leading axis.
      scale, bias: float[C], the layer's; None for 1 and 0.
      epsilon: added to both variances; at least 0, but a part of one row has none of its own.
      axis_name: the device axis over which statistics are taken, or None: of each device's rows.

    Returns:
      (y, M, V): y like x, at least float32; M and V float[C], for running statistics; no gradient
      flows through these two. V is divided by the number of what is averaged, and taken as
      E[x^2] - M^2, as Flax does: in float32 to about 1e-7 (M^2 + V) on a CPU, to more where a GPU
      sums in another order, so that of features whose mean is thousands of deviations from 0 little
      is left of it.

    Raises:
      ValueError: an x without a batch, a scale, bias or epsilon that does not fit.

    Source: Ioffe, Batch Renormalization, NIPS 2017, Algorithm 1, without its clipping of r and d,
    and with the whole batch's statistics where it has the running ones.

    >>> y, mean, var = batch_norm(jnp.array([[1.0], [3.0]]), epsilon=0.0)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    """
    return normalised(x, scale, bias, epsilon=epsilon, axis_name=axis_name)


def normalised(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    axis_name: Any,
    held: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm`, in value by the (mean, variance) of `held` where its first, bool[], is True."""
    x = floating("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must be float[B, ..., C], the batch in front, got {list(x.shape)}")
    x = x.astype(at_least_float32(x.dtype))
    scale, bias = (
        each if each is None else of_features(name, each, x.shape[-1]).astype(x.dtype)
        for name, each in (("scale", scale), ("bias", bias))
    )
    epsilon = like(number("epsilon", epsilon, least=0), x)
    rows = checkpoint_name(collectives.varying_like(jnp.ones(x.shape[:1], x.dtype), x), ROWS)
    own = collectives.mean(_sums(x, rows), axis_name)
    mean, var = _moments(*own)
    of_all = [lax.stop_gradient(checkpoint_name(total, OVER_ROWS)) for total in own]
    of_batch = given_mean, given_var = _moments(*of_all)
    if held is not None:
        given_mean, given_var = (
            jnp.where(held[0], noted.astype(own.dtype), own)
            for noted, own in zip(held[1:], of_batch, strict=True)
        )
    one_over, one_over_given = lax.rsqrt(var + epsilon), lax.rsqrt(given_var + epsilon)
    r, d = lax.stop_gradient((one_over_given / one_over, (mean - given_mean) * one_over_given))
    factor, shift = r * one_over, d
    if scale is not None:
        factor, shift = factor * scale, shift * scale
    if bias is not None:
        shift = shift + bias
    return _affine(x, mean, factor, shift), *of_batch


# Neither keeps anything for its backward pass but x, which is there already.
@jax.checkpoint
def _sums(x: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(number, sum, sum of squares) of the values of a channel, over some rows."""
    axes = tuple(range(x.ndim - 1))
    weighed = jnp.expand_dims(rows, (*axes[1:], -1)) * x
    return rows.sum() * math.prod(x.shape[1:-1]), weighed.sum(axes), (weighed * x).sum(axes)


@jax.checkpoint
def _affine(x: jax.Array, mean: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
    mean, factor, shift = (jnp.expand_dims(a, range(x.ndim - 1)) for a in (mean, factor, shift))
    return (x - mean) * factor + shift


def _moments(count: jax.Array, total: jax.Array, squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, variance) of what these are sums over; 0 of nothing."""
    one_over = 1 / jnp.where(count == 0, 1, count)
    mean = total * one_over
    return mean, jnp.maximum(squares * one_over - jnp.square(mean), 0)
