"""Lengths whose squares may leave the range of floats, and roots that have a slope everywhere.

`ascent` takes its norms over a whole tree; those of columns, filters and vectors are here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax.checks import at_least_float32


def lengths(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """||.||_2 along the axes, which stay as ones; at least float32, and flat where it is 0."""
    near, scale = near_one(x, axis)
    return scale * root(jnp.sum(jnp.square(near), axis=axis, keepdims=True))


def near_one(x: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(x / s, s) for a power of 2 along the axes, so that no square over- or underflows.

    At least float32. What is made of both does not depend on s, of which no derivative is taken,
    and a power of 2 rounds nothing.
    """
    wide = x.astype(at_least_float32(x.dtype))
    peak = jnp.max(jnp.abs(wide), axis=axis, keepdims=True, initial=0.0)
    scale = power_of_2(lax.stop_gradient(peak))
    return wide / scale, scale


def power_of_2(size: jax.Array) -> jax.Array:
    """The largest that is no larger; 1 of what is 0 or not finite."""
    usable = jnp.isfinite(size) & (size > 0)
    _, exponent = jnp.frexp(jnp.where(usable, size, 1))
    return jnp.ldexp(jnp.ones_like(size), exponent - 1)


def or_one(x: jax.Array) -> jax.Array:
    """x, 1 where it is 0: what may be divided by."""
    return jnp.where(x == 0, 1, x)


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """sqrt(x), flat where x is 0, so that a step that moves nothing has a derivative."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    return root(x), jnp.where(x == 0, 0, 0.5 / root(or_one(x))) * t
