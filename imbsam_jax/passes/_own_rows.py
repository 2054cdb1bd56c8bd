"""`own_rows`: passes over the rows that carry weight, where examples do not see each other.

    cost / SGD's = sum_p (rows of part p) / B  +  sum_k (rows of group k) / B

where the parts of a table are its groups and its base. ImbSAM so costs 1 + f with a share f of tail
rows, where passes over the whole batch cost 8/3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from imbsam_jax import collectives
from imbsam_jax.checks import is_concrete
from imbsam_jax.passes._batch import LossesFn, OverRows, Rows, at_once, check_batched
from imbsam_jax.passes._buffers import Buffers
from imbsam_jax.rows import nan_where
from imbsam_jax.rules import ClassWeights

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


def check_buffers(buffers: Any) -> None:
    """Refuses what is no function of classes."""
    if not callable(buffers):
        raise ValueError(
            "buffers says how many rows to make room for, a function of classes: for example "
            f"binomial_buffers(class_counts, batch_size); got {buffers!r}"
        )


def over_chosen_rows(
    losses_fn: LossesFn,
    point: Any,
    table: list[Any],
    rows: Rows,
    axis_name: Any,
    batched: tuple[bool, ...] | None,
    buffers: Buffers,
    every_row: bool,
) -> tuple[list[Any], jax.Array, Any]:
    """`at_once` of the rows that the table weighs; of every row's loss and aux, where asked for.

    Of a row that is in no buffer loss and aux are 0; where the largest buffer does not hold the
    rows, gradients and losses are NaN.
    """
    size = rows.labels.shape[0]
    which = check_batched(batched, rows.args, size)
    grads: list[Any] = [None] * len(table)
    outcome: Any = None
    for numbers, classes, sizes in plan(table, rows.labels, buffers, every_row):
        touched = touched_rows(classes, rows) if sizes[0] < size else jnp.ones(size, bool)
        in_buffer = partial(
            _in_buffer, losses_fn, point, [table[number] for number in numbers], rows, axis_name,
            which, jnp.argsort(~touched, stable=True),
        )  # fmt: skip
        found, losses, aux = by_size(sizes, touched.sum(), in_buffer)
        if sizes[-1] < size:
            found, losses = nan_where(touched.sum() > sizes[-1], (found, losses))
        seen = losses, aux
        for number, grad in zip(numbers, found, strict=True):
            grads[number] = grad
        outcome = seen if outcome is None else rows_of_either(touched, seen, outcome)
    losses, aux = outcome
    return grads, losses, aux


def _in_buffer(
    losses_fn: LossesFn,
    point: Any,
    table: list[Any],
    rows: Rows,
    axis_name: Any,
    which: tuple[bool, ...],
    order: jax.Array,
    number: int,
) -> tuple[list[Any], jax.Array, Any]:
    """`at_once` of the first rows in an order; losses and aux at their places in the batch."""
    size = rows.labels.shape[0]
    index = order[:number]
    if number < size:
        rows = chosen(rows, which, index)
    part = "own_rows" if number < size else None
    grads, losses, aux = at_once(losses_fn, point, table, rows, axis_name, part)
    _check_aux(aux, number)
    if number < size:

        def back(leaf: jax.Array) -> jax.Array:
            blank = jnp.zeros((size, *leaf.shape[1:]), leaf.dtype)
            return blank.at[index].set(leaf, unique_indices=True)

        losses, aux = jax.tree.map(back, (losses, aux))
    # The sides of a branch must agree in what varies over devices.
    return collectives.varying((grads, losses, aux), axis_name)


def rows_of_either(first: jax.Array, a: Any, b: Any) -> Any:
    """The first rows of a, the others of b."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(leaf, a, b)


def plan(
    table: list[Any], labels: jax.Array, buffers: Buffers, every_row: bool
) -> list[tuple[list[int], NDArray[np.bool_], tuple[int, ...]]]:
    """(rows of the table, classes, sizes) of each buffer: rows of the same classes share one."""
    size = labels.shape[0]
    # Soft labels touch most classes, and what a traced weight touches is not known.
    of_rows = [
        np.asarray(w) != 0 if is_concrete(w) and labels.ndim == 1 else np.ones(len(w), bool)
        for w in table
    ]
    if every_row:
        # The loss of a class that nothing weighs is reported, too.
        most = max(range(len(table)), key=lambda number: of_rows[number].sum())
        of_rows[most] = of_rows[most] | ~np.any(of_rows, axis=0)
    plan: dict[bytes, tuple[list[int], NDArray[np.bool_], tuple[int, ...]]] = {}
    for number, classes in enumerate(of_rows):
        sizes: tuple[int, ...] = (size,)
        if labels.ndim == 1:
            sizes = tuple(sorted({min(max(int(k), 1), size) for k in buffers(classes)}))
        key = b"whole" if sizes == (size,) else classes.tobytes()
        plan.setdefault(key, ([], classes, sizes))[0].append(number)
    return list(plan.values())


def touched_rows(classes: NDArray[np.bool_], rows: Rows) -> jax.Array:
    """bool[B]: rows of these classes; a label of no class is one of any."""
    touched = (
        jnp.asarray(classes)
        .at[rows.labels]
        .get(mode="fill", fill_value=True, wrap_negative_indices=False)
    )
    return touched if rows.mask is None else touched & rows.mask


def chosen(rows: Rows, which: tuple[bool, ...], index: jax.Array) -> Rows:
    def take(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tree)

    args = tuple(
        take(arg) if has_rows else arg for arg, has_rows in zip(rows.args, which, strict=True)
    )
    return rows._replace(args=args, labels=take(rows.labels), mask=take(rows.mask))


def by_size(sizes: tuple[int, ...], number: jax.Array, of_buffer: Callable[[int], Any]) -> Any:
    """The first buffer that holds so many rows, or the last."""
    if len(sizes) == 1:
        return of_buffer(sizes[0])
    place = (number > jnp.asarray(sizes[:-1])).sum()
    return lax.switch(place, [lambda k=k: of_buffer(k) for k in sizes])


def _check_aux(aux: Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                "own_rows puts the rows of aux back in their order: each leaf needs "
                f"the batch as its leading axis, but aux{jax.tree_util.keystr(path)} has shape "
                f"{list(jnp.shape(leaf))} for {size} rows"
            )
