"""Sums over a data set in micro-batches: what curvature, sharpness and landscapes are made of.

    (1/B) sum_i of(row i),   B the number of real rows, over all devices

A data set is what a batch is to the doors, only larger: labels [B], an optional mask, and args
whose every leaf has the B rows in front. What the losses need besides, such as running statistics
of batch normalisation, they close over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax import arrays, checks, collectives
from imbsam_jax.checks import at_least_float32
from imbsam_jax.rows import (
    check_labels,
    check_losses,
    check_mask,
    check_pair,
    part_of_batch,
    row_weights,
)


class Part(NamedTuple):
    """Rows of a data set, some or all."""

    args: tuple[Any, ...]
    labels: jax.Array
    mask: Any


class Data(NamedTuple):
    """The rows of a data set on this device, and how they are worked off.

    Attributes:
      rows: all of them.
      batch_size: rows of a micro-batch; None takes all at once.
      axis_name: the device axis, or None.
    """

    rows: Part
    batch_size: int | None
    axis_name: Any

    def varying(self, tree: Any) -> Any:
        return collectives.varying(tree, self.axis_name)

    def mean(self, of: Callable[[Part], Any]) -> Any:
        """`(1/B) sum over micro-batches of of(part)`, at least float32, over the devices.

        `of` returns a tree of sums over the rows of its part, 0 of those that are masked.
        """
        mask = self.rows.mask
        real = jnp.asarray(self.rows.labels.shape[0], float)
        if mask is not None:
            real = jnp.asarray(mask).sum(dtype=float)
        total, real = self.varying((self._summed(of), real))
        # Of sums: what all devices have in common is their number, which divides out.
        total, real = collectives.mean((total, real), self.axis_name)
        real = jnp.where(real == 0, 1, real)
        return jax.tree.map(lambda x: x / real.astype(x.dtype), total)

    def _summed(self, of: Callable[[Part], Any]) -> Any:
        def wide(part: Part) -> Any:
            return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), of(part))

        size, each = self.rows.labels.shape[0], self.batch_size
        if each is None or each >= size:
            return wide(self.rows)
        number = -(-size // each)

        # Row i goes to part i % number, not to i // each: where a jitted data set is sharded over
        # devices, each of them has rows of its own in every part. What is missing in the last is
        # the first row again, masked.
        def split(leaf: Any) -> jax.Array:
            leaf = jnp.asarray(leaf)
            missing = number * each - size
            if missing:
                leaf = jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)])
            return jnp.moveaxis(leaf.reshape(each, number, *leaf.shape[1:]), 1, 0)

        args, labels, mask = self.rows
        parts = jax.tree.map(split, Part(args, labels, mask))
        if number * each > size:
            real = jnp.arange(number * each) < size
            real = jnp.moveaxis(real.reshape(each, number), 1, 0)
            parts = parts._replace(mask=real if mask is None else parts.mask & real)

        def one(total: Any, part: Part) -> tuple[Any, None]:
            with part_of_batch("batch_size"):
                return jax.tree.map(jnp.add, total, wide(part)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(wide, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(one, self.varying(zeros), parts)[0]


def data_of(
    losses_fn: Any,
    labels: Any,
    args: tuple[Any, ...],
    mask: Any,
    batch_size: int | None,
    axis_name: Any,
) -> Data:
    """The data set, after a look at its rows, and at what is to be computed of them."""
    checks.function("losses_fn", losses_fn, "(params, *args) -> (losses float[B], aux)")
    labels = check_labels(labels)
    size = labels.shape[0]
    if size == 0:
        raise ValueError("labels are empty: a mean over no rows is no number")
    if batch_size is not None:
        batch_size = checks.whole("batch_size", batch_size, 1)
        if collectives.is_spread(labels):
            raise ValueError(
                "batch_size cuts rows out of the data set, which JAX does not do over explicit "
                "axes of a mesh: leave it out, make the mesh with axis_types=(AxisType.Auto,), or "
                "call this inside shard_map with axis_name="
            )
    for number, arg in enumerate(args):
        for leaf in jax.tree.leaves(arg):
            if jnp.shape(leaf)[:1] != (size,):
                raise ValueError(
                    f"args[{number}] has a leaf of shape {list(jnp.shape(leaf))} for {size} "
                    "labels: every leaf has the rows in front, and losses_fn closes over the rest"
                )
    return Data(Part(args, labels, check_mask(mask, size)), batch_size, axis_name)


def tables(class_weights: Any) -> Any:
    """float[K, C] of class weights; None: a single table of ones, which need not know C."""
    if class_weights is None:
        return None
    table = class_weights
    if checks.is_concrete(table):
        table = arrays.per_class("class_weights", table)
    if table.ndim not in (1, 2) or table.size == 0 or not checks.is_real(table.dtype):
        raise ValueError(
            f"class_weights must be float[C] or float[K, C], got {table.dtype}{list(table.shape)}"
        )
    return table


def weights_of(class_weights: Any, part: Part, dtype: Any) -> jax.Array:
    """float[B] of class_weights float[C]; float[K, B] of float[K, C]; 0 in masked rows."""
    wide = at_least_float32(dtype)
    labels, mask = part.labels, part.mask
    if class_weights is None:
        ones = jnp.ones(labels.shape[0], wide)
        return ones if mask is None else jnp.where(mask, ones, 0)
    if class_weights.ndim == 1:
        return row_weights(class_weights, labels, mask, wide)
    return jnp.stack([row_weights(table, labels, mask, wide) for table in class_weights])


def losses_of(losses_fn: Any, params: Any, part: Part) -> jax.Array:
    """float[B], at least float32; 0 in masked rows, whose losses may be anything."""
    checks.function("losses_fn", losses_fn, "(params, *args) -> (losses float[B], aux)")
    losses = check_losses(check_pair(losses_fn(params, *part.args))[0], part.labels)
    losses = losses.astype(at_least_float32(losses.dtype))
    return losses if part.mask is None else jnp.where(part.mask, losses, 0)


def weighted_sum(losses_fn: Any, params: Any, class_weights: Any, part: Part) -> jax.Array:
    """`sum_i w[y_i] loss_i`: a scalar, or [K] for K tables."""
    losses = losses_of(losses_fn, params, part)
    weights = weights_of(class_weights, part, losses.dtype)
    if weights.ndim == 1:
        return (weights * losses).sum()
    # As weighted losses, not as a product of matrices: a row of weight 0 counts for nothing even
    # where a matrix unit would round.
    return (weights * losses[None]).sum(axis=1)


def scaled_sum(losses_fn: Any, params: Any, class_weights: Any, part: Part) -> jax.Array:
    """`weighted_sum` about as large as a mean over the part: what derivatives are taken of.

    They are summed over the rows in the type of losses and parameters: of 100,000 rows that is
    infinite in float16.
    """
    return _scale(part) * weighted_sum(losses_fn, params, class_weights, part)


def unscaled(tree: Any, part: Part) -> Any:
    """Derivatives of `scaled_sum` as those of `weighted_sum`, at least float32."""
    whole = 1 / _scale(part)
    return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)) * whole, tree)


def _scale(part: Part) -> float:
    """The largest power of 2 that is at most 1 / rows: it rounds nothing."""
    return 0.5 ** (part.labels.shape[0] - 1).bit_length()
