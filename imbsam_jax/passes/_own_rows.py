"""`own_rows`: passes over the rows that carry weight, where examples do not see each other.

    cost / SGD's = sum_p (rows of part p) / B  +  sum_k (rows of group k) / B

where the parts of a table are its groups and its base. ImbSAM so costs 1 + f with a share f of tail
rows, where passes over the whole batch cost 8/3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from imbsam_jax.passes._batch import LossesFn, OverRows, Rows, check_options
from imbsam_jax.passes._buffers import Buffers
from imbsam_jax.passes._chosen_rows import check_buffers, over_chosen_rows
from imbsam_jax.table import ClassWeights

__all__ = ["own_rows"]


@dataclass(frozen=True)
class own_rows:
    """Passes over the rows that have weight in them: 1 + f of SGD's cost for ImbSAM.

    A pass sees the rows that have weight in it (and that at theta all rows, in several parts). It
    is exact to rounding where the loss of an example depends on no other one: layer and group
    normalisation, frozen batch normalisation. Randomness is then an arg with the batch axis, a key
    for each example. On several devices it belongs inside shard_map or pmap: every device chooses
    among its own rows.

    Args:
      buffers: how many rows there is room for: `buffers(classes bool[C]) -> sizes`, for a part of
        the table that weighs these classes. The least size that holds the part's rows is taken;
        let the last be the batch size, or no batch exceed it: the gradient is NaN otherwise. See
        `binomial_buffers` and `stratified_buffers`. The whole batch is always taken with soft
        labels, and where the weights of the rule are traced, no NumPy arrays.
      batched: which of the args of losses_fn have the batch axis; see `whole`.

    The aux is None or has the batch as leading axis in every leaf; its rows where the mask is
    False mean nothing.

    >>> passes = own_rows(lambda classes: (1, 2))
    >>> f = ij.value_and_grad(lambda w, x: (w * x, None), rules.sgd(2), passes=passes)
    >>> (loss, _), grads = f(jnp.array(3.0), jnp.array([0, 1]), jnp.array([1.0, 2.0]))
    >>> float(loss), float(grads)
    (4.5, 1.5)
    """

    buffers: Buffers
    batched: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        check_buffers(self.buffers)
        check_options(self.batched)

    def over(
        self, losses_fn: LossesFn, params: Any, rows: Rows, table: ClassWeights, axis_name: Any
    ) -> _OwnRows:
        """See `Passes.over`."""
        return _OwnRows(self, losses_fn, params, rows, axis_name)


class _OwnRows(OverRows):
    def __init__(self, how: own_rows, losses_fn: LossesFn, params: Any, rows: Rows, axis_name: Any):
        super().__init__(losses_fn, params, rows, axis_name)
        self._how = how

    def clean(self, table: list[Any]) -> list[Any]:
        grads, self.losses, self.aux = self._pass(self._params, table, every_row=True)
        return grads

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, jax.Array]:
        (grads,), losses, _ = self._pass(point, [class_weights], every_row=False)
        return grads, losses

    def _pass(self, point: Any, table: list[Any], every_row: bool) -> Any:
        how = self._how
        return over_chosen_rows(
            self._losses_fn, point, table, self._rows, self._axis_name, how.batched, how.buffers,
            every_row,
        )  # fmt: skip
