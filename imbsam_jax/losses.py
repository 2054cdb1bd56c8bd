"""Per-example losses: logits and labels in, one loss per example out, never averaged."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["cross_entropy"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy, `-log softmax(z)_y`, or `-sum_c y_c log softmax(z)_c`.

    Args:
      logits: float[B, C]; computed in at least float32.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.

    Returns:
      float[B].

    >>> round(float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
    1.3863
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    if labels.ndim == 2:
        return -(labels.astype(log_p.dtype) * log_p).sum(axis=-1)
    return -_pick(log_p, labels)


def _pick(values: jax.Array, labels: jax.Array) -> jax.Array:
    """values[i, labels[i]], NaN for a label that is no class (also a negative one)."""
    return values.at[jnp.arange(labels.shape[0]), labels].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
