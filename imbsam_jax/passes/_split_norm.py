"""`split_norm`: groups by passes over their own rows, for models with batch normalisation.

    g(theta) = grad L[base](theta) + sum_k grad L'[group_k](theta + e_k)
    e_k = radius_k * d_k / ||d_k||_2,   d_k = grad L'[group_k](theta)

where L is the loss with the statistics of the whole batch, and L' that of a group's rows,
normalised by the statistics of the whole batch at theta in value and by their own in gradient
(`batch_renorm`), which the model does with what `carry` puts into the args. The pass at theta is
over the whole batch and gives loss, aux (so the running statistics) and the gradient of the base,
as ever; a group of a share f of the rows costs 2f more. With rho = 0 this is not SGD's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from imbsam_jax import collectives
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
from imbsam_jax.passes._buffers import Buffers
from imbsam_jax.passes._chosen_rows import buffers_of, by_size, check_buffers, chosen, touched_rows
from imbsam_jax.rows import check_pair, nan_where
from imbsam_jax.table import ClassWeights

__all__ = ["split_norm"]


@dataclass(frozen=True)
class split_norm:
    """The pass at theta over the whole batch, a group's two gradients over its own rows alone.

    Batch normalisation then normalises a group's rows by themselves, or by what `carry` puts into
    the args: give it one, with `batch_renorm` in the model. About 1 + 2f times SGD's cost for
    ImbSAM with a share f of tail rows. **Not the same gradient.** A group with weight on every
    class is passed over exactly.

    Args:
      buffers: how many rows there is room for; see `own_rows`.
      batched: which of the args of losses_fn have the batch axis; see `whole`.
      carry: `carry(args, aux) -> args`, called once, with the aux of the pass at theta; what it
        returns are the args of every pass over a group's rows. None hands on nothing, so that a
        group's rows are normalised by their own statistics.

    The aux reported is that of the pass at theta. Measured (results/split_norm; ResNet-8 on
    CIFAR100-LT of 16 x 16 pixels, against the exact gradient): own statistics lose a point, two of
    the few-shot classes; `batch_renorm` loses 0.8 to 1.5 points of the medium classes, up to 7
    over all on CIFAR10-LT (results/cheaper_passes): not recommended.
    """

    buffers: Buffers
    batched: tuple[bool, ...] | None = None
    carry: Carry | None = None

    def __post_init__(self) -> None:
        check_buffers(self.buffers)
        check_options(self.batched, self.carry)

    def over(
        self, losses_fn: LossesFn, params: Any, rows: Rows, table: ClassWeights, axis_name: Any
    ) -> _SplitNorm:
        """See `Passes.over`."""
        return _SplitNorm(self, losses_fn, params, rows, table, axis_name)


class _SplitNorm(OverRows):
    """Attributes: losses and aux, of the pass at theta."""

    def __init__(
        self,
        how: split_norm,
        losses_fn: LossesFn,
        params: Any,
        rows: Rows,
        table: ClassWeights,
        axis_name: Any,
    ):
        super().__init__(losses_fn, params, rows, axis_name)
        self._carry = how.carry
        self._which = check_batched(how.batched, rows.args, rows.labels.shape[0])
        self._of_groups = rows
        # Of each group the classes and sizes, None where there is nothing to leave out.
        self._plans = [self._plan(w, how.buffers) for w in table.groups]

    def clean(self, table: list[Any]) -> list[Any]:
        plans = [*self._plans, *[None] * (len(table) - len(self._plans))]
        whole = [w for w, own in zip(table, plans, strict=True) if own is None]
        found, self.losses, self.aux = at_once(
            self._losses_fn, self._params, whole, self._rows, self._axis_name
        )
        if self._carry is not None:
            self._of_groups = carried(self._carry, self._rows, self.aux)
        ready = iter(found)
        return [
            next(ready) if own is None else self._own_rows(self._params, w, *own)[0]
            for w, own in zip(table, plans, strict=True)
        ]

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, jax.Array]:
        own = self._plans[group]
        if own is not None:
            return self._own_rows(point, class_weights, *own)
        (grads,), losses, _ = at_once(
            self._losses_fn, point, [class_weights], self._rows, self._axis_name
        )
        return grads, losses

    def _plan(
        self, class_weights: Any, buffers: Buffers
    ) -> tuple[NDArray[np.bool_], tuple[int, ...]] | None:
        labels = self._rows.labels
        ((_, classes, sizes),) = buffers_of([class_weights], labels, buffers, every_row=False)
        return None if sizes == (labels.shape[0],) else (classes, sizes)

    def _own_rows(
        self, point: Any, class_weights: Any, classes: NDArray[np.bool_], sizes: tuple[int, ...]
    ) -> tuple[Any, jax.Array]:
        """(gradient, losses float[B]) of the rows of these classes; 0 for those of others."""
        touched = touched_rows(classes, self._of_groups)
        order, count = jnp.argsort(~touched, stable=True), touched.sum()
        grads, losses = by_size(
            sizes, count, partial(self._in_buffer, point, class_weights, order, count)
        )
        if sizes[-1] < touched.shape[0]:
            grads, losses = nan_where(count > sizes[-1], (grads, losses))
        return grads, losses

    def _in_buffer(
        self, point: Any, class_weights: Any, order: jax.Array, count: jax.Array, number: int
    ) -> tuple[Any, jax.Array]:
        # Filled up with the group's own rows again: no other enters their statistics.
        place = jnp.arange(number)
        index, first = order[place % jnp.maximum(count, 1)], place < count
        part = chosen(self._of_groups, self._which, index)
        part = part._replace(mask=first if part.mask is None else first & part.mask)

        def losses_alone(params: Any, *args: Any) -> tuple[jax.Array, None]:
            return check_pair(self._losses_fn(params, *args))[0], None

        (grads,), losses, _ = at_once(
            losses_alone, point, [class_weights], part, self._axis_name, "split_norm"
        )
        size = order.shape[0]
        losses = (
            jnp.zeros(size, losses.dtype).at[jnp.where(first, index, size)].set(losses, mode="drop")
        )
        # The sides of a branch must agree in what varies over devices.
        varying: tuple[Any, jax.Array] = collectives.varying((grads, losses), self._axis_name)
        return varying
