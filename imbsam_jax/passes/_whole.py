"""`whole`: every pass sees the whole batch, at once or in micro-batches one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax import checks
from imbsam_jax.checks import at_least_float32
from imbsam_jax.passes._batch import (
    Carry,
    LossesFn,
    OverRows,
    Rows,
    at_once,
    carried,
    check_batched,
    check_options,
)
from imbsam_jax.table import ClassWeights

__all__ = ["whole"]


@dataclass(frozen=True)
class whole:
    """Passes over the whole batch: exact for every model, batch normalisation included.

    ImbSAM costs 8/3 of SGD: two forward and three backward passes.

    Args:
      micro_batches: A, how many parts of B/A rows the batch is worked off in, one after the other,
        for less memory: row i in part i % A. The gradient is that of the whole batch, since d_k is
        normalised when all parts are in it. Models that look across rows (batch normalisation)
        look across those of a part; a loss that is divided by a sum over the batch is refused in
        such a part (`losses.weighted` says how to give it the whole batch's). The sum over devices
        is taken once per ascent and once for the result inside shard_map and pmap; under plain jit
        XLA may take it for every part.
      batched: which of the args of losses_fn have the batch axis, `(True, False, ...)`, where
        micro-batches are cut; an arg that is a tree has it in all of its leaves or in none. None:
        all of them. An arg without it is given whole to every pass, a random key as well.
      carry: None, or `carry(args, aux) -> args`, which makes of the args and the aux of one pass
        the args of the next: first the pass at theta, then that of each group in the rule's
        order. The aux reported is then that of the last pass. Running statistics updated by
        every pass, as in the released PyTorch code, need this: once a step with SGD, twice with
        SAM, ImbSAM and Focal-SAM, three times in SSE-SAM's first stage (its release makes four
        passes, one of them a second one at theta). Loss and gradient do not use the aux, so
        batch normalisation in batch mode trains the same either way.

    With several micro-batches the aux is theirs in turn, stacked, each leaf with a new leading
    axis A; `carry` is given that, too.

    Raises:
      ValueError: micro_batches that is no whole number from 1 on, batched that is no tuple; when
        called, a batch that is not divisible by it.
      TypeError: a mark in batched that is no truth, a carry that is no function.

    >>> f = ij.value_and_grad(
    ...     lambda w, x: (w * x, None), rules.sgd(2), passes=whole(micro_batches=2)
    ... )
    >>> (loss, _), grads = f(jnp.array(3.0), jnp.array([0, 1]), jnp.array([1.0, 2.0]))
    >>> float(loss), float(grads)
    (4.5, 1.5)
    """

    micro_batches: int = 1
    batched: tuple[bool, ...] | None = None
    carry: Carry | None = None

    def __post_init__(self) -> None:
        number = checks.whole("micro_batches", self.micro_batches, 1)
        object.__setattr__(self, "micro_batches", number)
        check_options(self.batched, self.carry)

    def over(
        self, losses_fn: LossesFn, params: Any, rows: Rows, table: ClassWeights, axis_name: Any
    ) -> _Whole:
        """See `Passes.over`."""
        return _Whole(self, losses_fn, params, rows, axis_name)


class _Whole(OverRows):
    """Attributes: losses, of the pass at theta; aux, with `carry` that of the last pass."""

    def __init__(self, how: whole, losses_fn: LossesFn, params: Any, rows: Rows, axis_name: Any):
        super().__init__(losses_fn, params, rows, axis_name)
        self._how = how

    def clean(self, table: list[Any]) -> list[Any]:
        grads, self.losses, self.aux = self._pass(self._params, table)
        return grads

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, jax.Array]:
        carry = self._how.carry
        if carry is not None:
            self._rows = carried(carry, self._rows, self.aux)
        (grads,), losses, aux = self._pass(point, [class_weights])
        self.aux = self.aux if carry is None else aux
        return grads, losses

    def _pass(self, point: Any, table: list[Any]) -> tuple[list[Any], jax.Array, Any]:
        how, given = self._how, (self._losses_fn, point, table, self._rows, self._axis_name)
        if how.micro_batches == 1:
            return at_once(*given)
        return _in_micro_batches(*given, how.batched, how.micro_batches)


def _in_micro_batches(
    losses_fn: LossesFn,
    point: Any,
    table: list[Any],
    rows: Rows,
    axis_name: Any,
    batched: tuple[bool, ...] | None,
    number: int,
) -> tuple[list[Any], jax.Array, Any]:
    """`at_once` of B/A rows at a time; aux has a new leading axis A."""
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
