"""Cosine classifiers: columns of norm 1 while they are trained, and where they start."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from imbsam_jax import arrays, checks
from imbsam_jax.classifiers._kernels import checked_kernel, unit


def normalised_linear(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cosine logits: rows of the features and columns of the kernel have norm 1; no bias.

        z_c = <x, W_c> / (||x||_2 ||W_c||_2)

    Args:
      features: float[B, F].
      kernel: float[F, C]; see `normalised_init`.

    Returns:
      float[B, C], in [-1, 1] and at least float32; 0, with a zero gradient, for a zero row or
      column.

    Raises:
      ValueError: shapes that do not fit, features or a kernel that are not real numbers.

    Source: the normalised head of Cao et al., NeurIPS 2019, that `losses.ldam` expects.

    >>> round(float(normalised_linear(jnp.array([[3.0, 4.0]]), jnp.array([[2.0], [0.0]]))[0, 0]), 4)
    0.6
    """
    kernel = checked_kernel(kernel)
    features = arrays.real("features", features)
    if features.ndim != 2 or features.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"features must be float[B, {kernel.shape[0]}], got shape {list(features.shape)}"
        )
    left, right = checks.alike(unit(features.T).T, unit(kernel))
    return left @ right


def normalised_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """An initialiser for `normalised_linear`: uniform in [-1, 1], each column scaled to norm 1.

    Args:
      key: a random key.
      shape: (F, C).
      dtype: of the result, a floating one.

    Returns:
      float[F, C].

    Raises:
      ValueError: a shape that is not (F, C), a dtype that is not floating, a key that is none.

    Source: the initialisation of the normalised head in the release of Cao et al., NeurIPS 2019.

    >>> kernel = normalised_init(jax.random.key(0), (3, 2))
    >>> [round(float(norm), 4) for norm in jnp.linalg.norm(kernel, axis=0)]
    [1.0, 1.0]
    """
    checks.one_key("key", key)
    dtype = _floating_dtype(dtype)
    if not (isinstance(shape, tuple | list) and len(shape) == 2):
        raise ValueError(f"shape must be (F, C), got {checks.short(shape)}")
    shape = tuple(checks.whole("each number of shape", size, 0) for size in shape)
    kernel = jax.random.uniform(key, shape, checks.at_least_float32(dtype), -1.0, 1.0)
    return unit(kernel).astype(dtype)


def _floating_dtype(dtype: Any) -> Any:
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:  # of what is no type
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        given = checks.short(dtype if found is None else found, str)
        raise ValueError(f"dtype must be a floating one, got {given}")
    return found
