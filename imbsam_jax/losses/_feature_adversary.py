"""Losses at features that were moved against the classifier: CC-SAM's second stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import arrays, checks, collectives
from imbsam_jax.losses._loss import mixed
from imbsam_jax.rows import (
    check_distributions,
    check_labels,
    check_losses,
    check_mask,
    check_pair,
    check_whole_batch,
    nan_where,
    no_distribution,
)

__all__ = ["feature_adversary"]


def feature_adversary(
    head_losses_fn: Callable[..., tuple[jax.Array, Any]],
    class_counts: ArrayLike | None = None,
    *,
    variant: Literal["paper", "release"] = "paper",
    strength: Any = 1.0,
    divisor: float = 2.0,
) -> Callable[..., tuple[jax.Array, Any]]:
    """Per-example losses of the second stage: a classifier trained on adversarial features.

        loss'_i = (1 - share) loss(z_i) + share * u_i * loss(z_i + e_i)

    with, for d_i the gradient of loss_i at the features z_i,

        "paper":    e_i = strength * d_i / ||d_i||_2,                          u_i = 1
        "release":  e_i = strength * u_i * d_i / sqrt(sum_{y_j = y_i} ||d_j||_2^2),
                    u_i = log(n_max / n_{y_i} + 0.01) / divisor

    The release so divides the step of an example by the rows of its class in the batch, and
    weighs the adversarial loss by class, too: by 0.005 for the largest. No gradient flows through
    e_i. The backbone is frozen, batches are class-balanced, `share` grows by epoch
    (`schedules.ramp`).

    Args:
      head_losses_fn: `head_losses_fn(params, features, *args) -> (losses float[B], aux)`, as for
        `cc_sam.value_and_grad`, with features float[B, ...] and each loss of its own row alone.
      class_counts: int[C], each at least 1; needed by "release".
      variant: "paper" or "release".
      strength: length of e_i, finite and at least 0 (the paper's value is not known; the release
        has 1).
      divisor: of the release's class weights, positive.

    Returns:
      `losses_fn(params, labels, features, *args, share, mask=None) -> (losses float[B], aux)`,
      to be averaged or given to `imbsam_jax.value_and_grad` with any rule; aux is that of the
      pass at z.
        labels: int[B]; soft labels float[B, C] with "paper".
        share: between 0 and 1, a number or a traced scalar.
        mask: bool[B], False for padding; such a row counts in no norm.

    Inside pmap or shard_map the release's norms are over this device's rows.

    Raises:
      ValueError: "release" without class_counts or with soft labels, options out of range,
        features that are no real array with a row for each label.

    Source: Zhou et al., CVPR 2023, and its release. The per-example norm of "paper" is how we
    read `z + lambda g_z / ||g_z||`.

    >>> def head_losses_fn(w, z):
    ...     return (z @ w) ** 2, None
    >>> adversarial = feature_adversary(head_losses_fn, strength=0.5)
    >>> z, w, labels = jnp.array([[1.0, 0.0]]), jnp.array([2.0, 0.0]), jnp.array([0])
    >>> adversarial(w, labels, z, share=0.25)[0].tolist()
    [5.25]
    """
    if variant not in ("paper", "release"):
        raise ValueError(f"variant must be 'paper' or 'release', got {variant!r}")
    checks.function(
        "head_losses_fn", head_losses_fn, "(params, features, *args) -> (losses float[B], aux)"
    )
    strength = checks.number("strength", strength, least=0)
    divisor = checks.number("divisor", divisor, above=0, concrete=True)
    table: NDArray[np.float64] | None = None
    if variant == "release":
        if class_counts is None:
            raise ValueError("variant='release' weighs classes: give class_counts")
        counts = arrays.counts(class_counts)
        table = np.log(counts.max() / counts + 0.01) / divisor

    def losses_fn(
        params: Any, labels: Any, features: jax.Array, *args: Any, share: Any, mask: Any = None
    ) -> tuple[jax.Array, Any]:
        labels = check_labels(labels)
        mask = check_mask(mask, labels.shape[0])
        check_distributions(labels, mask)
        share = checks.number("share", share, least=0, most=1)
        features = arrays.floating("features", features)
        if features.shape[:1] != labels.shape[:1]:
            raise ValueError(
                f"features must be float[{labels.shape[0]}, ...], a row for each label, got shape "
                f"{list(features.shape)}"
            )
        if table is not None:
            if labels.ndim == 2:
                raise ValueError(
                    "the release groups rows by one class: pass int[B] labels (the first label of "
                    "a mixed pair) and mix inside the losses"
                )
            # Rows with other rows of their class: own_rows keeps all of a class together.
            check_whole_batch(
                "variant='release' divides by the rows of a class in the batch",
                "take the batch whole, or variant='paper'",
                but=("own_rows",),
            )

        def run(params: Any, z: jax.Array) -> tuple[jax.Array, Any]:
            losses, aux = check_pair(head_losses_fn(params, z, *args))
            return check_losses(losses, labels), aux

        losses, aux = run(params, features)
        still = lax.stop_gradient(params)
        seen, pull = jax.vjp(lambda z: run(still, z)[0], lax.stop_gradient(features))
        real = jnp.ones_like(seen) if mask is None else mask.astype(seen.dtype)
        (d,) = pull(real)
        flat = _widened(d).reshape(d.shape[0], math.prod(d.shape[1:]))
        length = checks.like(strength, flat)
        if table is None:
            u = jnp.ones((), flat.dtype)
            noise = length * _over_norm(flat, jnp.arange(flat.shape[0]), flat.shape[0])
        else:
            u = (
                jnp.asarray(table, flat.dtype)
                .at[labels]
                .get(
                    mode="fill", fill_value=jnp.nan, wrap_negative_indices=False,
                    out_sharding=collectives.along(labels),
                )
            )  # fmt: skip
            u = jnp.where(real == 0, 1, u)  # of padding, whatever its label
            noise = length * u[:, None] * _over_norm(flat, labels, table.size)
        noise = lax.stop_gradient(noise).reshape(features.shape)
        there, _ = run(params, (_widened(features) + noise).astype(features.dtype))
        u, there = checks.alike(u, there)
        losses = mixed(losses, (u * there).astype(losses.dtype), share)
        if labels.ndim == 2:
            losses = nan_where(no_distribution(labels) & (real != 0), losses)
        return losses, aux

    return losses_fn


def _over_norm(rows: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """float[B, D]: each row over the l2 norm of all rows of its group; 0 where that is 0."""
    outside = (groups < 0) | (groups >= num_groups)
    at = jnp.where(outside, num_groups, groups)

    def back(values: jax.Array) -> jax.Array:
        values = values.at[at].get(mode="fill", fill_value=1, out_sharding=collectives.along(at))
        return jnp.where(values == 0, 1, values)[:, None]

    # JAX 0.10 has out_sharding in `.max`, but not in its type.
    by_group: Any = jnp.zeros(num_groups, rows.dtype).at[at]
    how = {"mode": "drop", "out_sharding": collectives.everywhere(at)}
    over_peak = rows / back(by_group.max(jnp.abs(rows).max(axis=1), **how))
    squares = by_group.add(jnp.square(over_peak).sum(axis=1), **how)
    return over_peak / jnp.sqrt(back(squares))


def _widened(values: jax.Array) -> jax.Array:
    return values.astype(checks.at_least_float32(values.dtype))
