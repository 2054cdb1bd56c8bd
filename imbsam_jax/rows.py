"""From class weights to rows: one weight per example, and checks of what a user's loss returned."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp


def row_weights(class_weights: Any, labels: jax.Array, mask: Any, dtype: Any) -> jax.Array:
    """float[B]: `table[labels]`, or `soft @ table` for soft labels; 0 where the mask is False.

    A label outside [0, C) gets NaN, never another class's weight.
    """
    table = jnp.asarray(class_weights, dtype)
    if labels.ndim == 2:
        if labels.shape[1] != table.shape[0]:
            raise ValueError(
                f"soft labels have {labels.shape[1]} classes, the rule has {table.shape[0]}"
            )
        weights = labels.astype(dtype) @ table
    else:
        weights = table.at[labels].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return weights if mask is None else jnp.where(mask, weights, 0)


def nan_where_no_class(tree: Any, class_weights: Any, labels: jax.Array, mask: Any) -> Any:
    """The gradients, made NaN by a label outside [0, C).

    A weight of NaN alone may get lost: a loss that is constant there has no gradient to multiply.
    """
    # A sum, not any(): over a sharded batch it rides along with the gradient's all-reduce.
    bad = jnp.isnan(row_weights(class_weights, labels, mask, float)).sum(dtype=float)

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.where(bad > 0, jnp.asarray(jnp.nan, x.dtype), x)

    return jax.tree.map(leaf, tree)


def check_labels(labels: Any, mask: Any) -> jax.Array:
    labels = jnp.asarray(labels)
    kind = jnp.integer if labels.ndim == 1 else jnp.floating
    if labels.ndim not in (1, 2) or not jnp.issubdtype(labels.dtype, kind):
        raise ValueError(
            f"labels must be int[B], or float[B, C] for soft labels; got {labels.dtype}"
            f"{list(labels.shape)}"
        )
    if mask is not None and jnp.shape(mask) != labels.shape[:1]:
        raise ValueError(f"mask must be bool{[labels.shape[0]]}, got shape {jnp.shape(mask)}")
    return labels


def check_losses(losses: Any, labels: jax.Array) -> jax.Array:
    shape = jnp.shape(losses)
    if shape == ():
        raise ValueError(
            "losses_fn returned a scalar: the losses are already averaged, so no class can be "
            f"weighted; return one loss per example, float[{labels.shape[0]}], without .mean()"
        )
    if shape != labels.shape[:1]:
        raise ValueError(
            f"losses_fn returned shape {list(shape)} for {labels.shape[0]} labels: return one "
            "loss per example"
        )
    return jnp.asarray(losses)


def check_pair(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "losses_fn must return a pair (losses float[B], aux); return (losses, None) where "
            f"there is nothing else to return. Got {type(result).__name__}"
        )
    return result


def check_params(params: Any) -> Any:
    """The parameters as JAX arrays, after a warning where they are too coarse to be perturbed."""
    params = jax.tree.map(jnp.asarray, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32:
            warnings.warn(
                f"parameter {jax.tree_util.keystr(path)} is {leaf.dtype}: at usual radii most of "
                "its coordinates do not move, so the realised perturbation is shorter than rho; "
                "keep parameters in float32 and compute in a lower precision",
                stacklevel=3,
            )
            break
    return params


def share_of_rows(class_weights: Any, labels: jax.Array, mask: Any) -> jax.Array:
    """Rows with a non-zero weight, over all rows of this device (padding included)."""
    touched = jnp.asarray(class_weights) != 0
    return row_weights(touched, labels, mask, float).mean()
