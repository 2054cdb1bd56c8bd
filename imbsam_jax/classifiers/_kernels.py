"""What every method takes of a kernel: that it is one, and the norms of its columns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from imbsam_jax import arrays
from imbsam_jax.norms import near_one


def checked_kernel(kernel: Any) -> jax.Array:
    kernel = arrays.floating("kernel", kernel)
    if kernel.ndim != 2:
        raise ValueError(f"kernel must be float[F, C], got shape {list(kernel.shape)}")
    return kernel


def unit(kernel: jax.Array) -> jax.Array:
    """The kernel with columns of norm 1, at least float32; a zero column stays zero."""
    near, norms, _ = with_norms(kernel)
    return near / norms


def with_norms(kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel over scales [1, C], near 1 and at least float32, its norms so, and the scales.

    Both are 1 for a zero column: the root is taken where it has a slope only, so that the gradient
    of one is zero.
    """
    near, scales = near_one(kernel, axis=0)
    squares = jnp.sum(jnp.square(near), axis=0, keepdims=True)
    return near, jnp.sqrt(jnp.where(squares == 0, 1, squares)), scales
