"""How a pass over a batch is run: the whole batch at once, or in micro-batches one after the other.

A pass is `pass_over(point, table) -> (gradients, losses, aux)`: the gradients at the point of
`(1/B) sum_i w[y_i] loss_i`, one for each row of class weights in the table. They share one forward
pass, which is what makes several of them cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax import collectives
from imbsam_jax.rows import (
    at_least_float32,
    check_losses,
    check_pair,
    part_of_batch,
    row_weights,
)

LossesFn = Callable[..., tuple[jax.Array, Any]]


class Rows(NamedTuple):
    """Rows of a batch, some or all; `weights` divides by those of the whole batch."""

    args: tuple[Any, ...]
    labels: jax.Array
    mask: Any
    of: int  # rows of the whole batch of this device

    def weights(self, class_weights: Any, dtype: Any) -> jax.Array:
        # Wide, and narrow at last: 1/65536 is 0 where it is divided in float16.
        wide = at_least_float32(dtype)
        weights = row_weights(class_weights, self.labels, self.mask, wide) / self.of
        return weights.astype(dtype)


def at_once(
    losses_fn: LossesFn,
    point: Any,
    table: list[Any],
    rows: Rows,
    axis_name: Any,
    part: str | None = None,
) -> tuple[list[Any], jax.Array, Any]:
    """One forward pass, one backward pass for each row of the table.

    `part` is None where the rows are the whole batch, else what makes a part of it.
    """

    def run(p: Any) -> tuple[jax.Array, Any]:
        with part_of_batch(part or part_of_batch.value):
            losses, aux = check_pair(losses_fn(p, *rows.args))
        return check_losses(losses, rows.labels), aux

    losses, pullback, aux = jax.vjp(run, point, has_aux=True)

    grads = []
    for number, class_weights in enumerate(table):
        # Otherwise XLA keeps what the backward passes have in common from one to the next, which
        # is little to compute and much to store: a third more memory than one of them needs.
        back = pullback if number == 0 else lax.optimization_barrier(pullback)
        weights = rows.weights(class_weights, losses.dtype)
        grads.append(back(collectives.varying(weights, axis_name))[0])
    return grads, losses, aux


def in_micro_batches(
    losses_fn: LossesFn,
    point: Any,
    table: list[Any],
    rows: Rows,
    axis_name: Any,
    batched: tuple[bool, ...] | None,
    number: int,
) -> tuple[list[Any], jax.Array, Any]:
    """The same of the same batch, B/A rows at a time; aux has a new leading axis A."""
    size = rows.labels.shape[0]
    if size % number:
        raise ValueError(
            f"a batch of {size} rows is not divisible into micro_batches={number} of one size: "
            "pad it, with mask= for the padding"
        )
    which = check_batched(batched, rows.args, size)

    # Row i goes to micro-batch i % A, not to i // (B/A): where a jitted batch is sharded over
    # devices, each of them has rows of its own in every micro-batch and nothing is sent.
    def split(leaf: Any) -> jax.Array:
        leaf = jnp.reshape(leaf, (size // number, number, *jnp.shape(leaf)[1:]))
        return jnp.moveaxis(leaf, 1, 0)

    whole = rows.args
    chosen = [arg for arg, has_rows in zip(whole, which, strict=True) if has_rows]
    parts = jax.tree.map(split, (chosen, rows.labels, rows.mask))

    def one(total: Any, part: Any) -> Any:
        args, labels, mask = part
        own = iter(args)
        args = tuple(
            next(own) if has_rows else arg for arg, has_rows in zip(whole, which, strict=True)
        )
        part = Rows(args, labels, mask, rows.of)
        grads, losses, aux = at_once(losses_fn, point, table, part, axis_name, "micro_batches")
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads), (losses, aux)

    def zeros(leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf, at_least_float32(leaf.dtype))

    total, (losses, aux) = lax.scan(one, [jax.tree.map(zeros, point) for _ in table], parts)
    grads = [jax.tree.map(lambda t, p: t.astype(p.dtype), part, point) for part in total]
    return grads, jnp.reshape(losses.T, (size,)), aux


def check_batched(
    batched: tuple[bool, ...] | None, args: tuple[Any, ...], size: int
) -> tuple[bool, ...]:
    """Which args have the batch axis, after a look at all of their leaves."""
    which = (True,) * len(args) if batched is None else tuple(batched)
    if len(which) != len(args):
        raise ValueError(f"batched has {len(which)} entries for {len(args)} args of losses_fn")
    for number, (arg, has_rows) in enumerate(zip(args, which, strict=True)):
        for leaf in jax.tree.leaves(arg) if has_rows else []:
            if jnp.shape(leaf)[:1] != (size,):
                raise ValueError(
                    f"args[{number}] has a leaf of shape {list(jnp.shape(leaf))} for {size} "
                    "labels: say by batched=(True, False, ...) which args have the batch axis"
                )
    return which


def carried(carry: Callable[[tuple[Any, ...], Any], tuple[Any, ...]], rows: Rows, aux: Any) -> Rows:
    """The rows with the args that carry makes of theirs and of a pass's aux."""
    args = carry(rows.args, aux)
    if not (isinstance(args, tuple) and len(args) == len(rows.args)):
        kind = type(args).__name__
        raise TypeError(
            f"carry must return the args of the next pass, a tuple of {len(rows.args)} like the "
            f"one it was given; got {f'a tuple of {len(args)}' if kind == 'tuple' else kind}"
        )
    return rows._replace(args=args)
