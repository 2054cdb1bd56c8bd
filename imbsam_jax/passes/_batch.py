"""What the core asks of a batch, and what every kind of passes is made of: one pass, `at_once`.

A pass is at one point and for a table of class weights: the gradients at the point of
`(1/B) sum_i w[y_i] loss_i`, one for each row of the table. They share one forward pass, which is
what makes several of them cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from imbsam_jax import checks, collectives
from imbsam_jax.checks import at_least_float32
from imbsam_jax.rows import check_losses, check_pair, part_of_batch, row_weights, share_of_rows
from imbsam_jax.table import ClassWeights

LossesFn = Callable[..., tuple[jax.Array, Any]]
Carry = Callable[[tuple[Any, ...], Any], tuple[Any, ...]]


class Batch(Protocol):
    """The passes over one batch at one table's points; of this device's rows alone."""

    def clean(self, table: list[Any]) -> list[Any]:
        """Gradients at theta, one for each row of class weights: the groups', then the base's."""

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, Any]:
        """(the group's gradient at its point, losses float[B] there); groups in their order."""

    def share(self, class_weights: Any) -> jax.Array:
        """Rows that these weights touch, over all rows, padding included."""

    @property
    def real(self) -> jax.Array | None:
        """Rows that are no padding, over all rows; None where none is padding."""


class Seen(Batch, Protocol):
    """A batch that also knows what its pass at theta saw, once `clean` was called."""

    losses: jax.Array  # float[B]
    aux: Any


class Passes(Protocol):
    """A way to run the passes over a batch, as `value_and_grad` takes it."""

    def over(
        self, losses_fn: LossesFn, params: Any, rows: Rows, table: ClassWeights, axis_name: Any
    ) -> Seen:
        """The batch of these rows, for one table; each branch of a staged rule has its own."""


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

    def share(self, class_weights: Any) -> jax.Array:
        return share_of_rows(class_weights, self.labels, self.mask)

    @property
    def real(self) -> jax.Array | None:
        return None if self.mask is None else jnp.mean(self.mask, dtype=float)


class OverRows:
    """What every `Seen` has of its rows."""

    losses: jax.Array
    aux: Any

    def __init__(self, losses_fn: LossesFn, params: Any, rows: Rows, axis_name: Any):
        self._losses_fn, self._params, self._axis_name = losses_fn, params, axis_name
        self._rows = rows
        self.share, self._real = rows.share, rows.real

    @property
    def real(self) -> jax.Array | None:
        return self._real


def at_once(
    losses_fn: LossesFn,
    point: Any,
    table: list[Any],
    rows: Rows,
    axis_name: Any,
    part: str | None = None,
) -> tuple[list[Any], jax.Array, Any]:
    """(gradients, losses, aux): one forward pass, one backward pass for each row of the table.

    `part` is None where the rows are the whole batch, else what makes a part of it.
    """

    def run(p: Any) -> tuple[jax.Array, Any]:
        with part_of_batch(part or part_of_batch.value):
            losses, aux = check_pair(losses_fn(p, *rows.args))
        return check_losses(losses, rows.labels), aux

    losses, pullback, aux = jax.vjp(run, point, has_aux=True)

    grads: list[Any] = []
    for number, class_weights in enumerate(table):
        # Otherwise XLA keeps what the backward passes have in common from one to the next, which
        # is little to compute and much to store: a third more memory than one of them needs.
        back, grads = (pullback, grads) if number == 0 else collectives.apart(pullback, grads)
        weights = rows.weights(class_weights, losses.dtype)
        grads.append(back(collectives.varying(weights, axis_name))[0])
    return grads, losses, aux


def check_options(batched: Any, carry: Any = None) -> None:
    """Refuses marks that are no truths and a carry that is no function, as the passes are made."""
    if not (batched is None or isinstance(batched, tuple | list)):
        raise ValueError(f"batched must be a tuple of truths, one for each arg, got {batched!r}")
    for mark in batched or ():
        checks.truth("each entry of batched", mark)
    if carry is not None:
        checks.function("carry", carry, "(args, aux) -> args, or None")


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


def carried(carry: Carry, rows: Rows, aux: Any) -> Rows:
    """The rows with the args that carry makes of theirs and of a pass's aux."""
    args = carry(rows.args, aux)
    if not (isinstance(args, tuple) and len(args) == len(rows.args)):
        kind = type(args).__name__
        raise TypeError(
            f"carry must return the args of the next pass, a tuple of {len(rows.args)} like the "
            f"one it was given; got {f'a tuple of {len(args)}' if kind == 'tuple' else kind}"
        )
    return rows._replace(args=args)
