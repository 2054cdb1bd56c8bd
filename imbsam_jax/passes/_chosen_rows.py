"""Rows chosen by what has weight in them: what `own_rows`, `split_norm` and `shared_norm` share.

The rows of a part of the table lie, with as many others as there is room for, in a buffer whose
size is known before the program is compiled: the least of some sizes that holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from imbsam_jax import collectives
from imbsam_jax.checks import is_concrete
from imbsam_jax.passes._batch import LossesFn, Rows, at_once, check_batched
from imbsam_jax.passes._buffers import Buffers, sizes_of
from imbsam_jax.rows import nan_where


def check_buffers(buffers: Any) -> None:
    """Refuses what is no function of classes."""
    if not callable(buffers):
        raise ValueError(
            "buffers says how many rows to make room for, a function of classes: for example "
            f"binomial_buffers(class_counts, batch_size); got {buffers!r}"
        )


def buffers_of(
    table: list[Any], labels: jax.Array, buffers: Buffers, every_row: bool
) -> list[tuple[list[int], NDArray[np.bool_], tuple[int, ...]]]:
    """(places in the table, classes, sizes) of each buffer, one for each set of classes."""
    size = labels.shape[0]
    # Soft labels touch most classes, and what a traced weight touches is not known.
    touches = [
        np.asarray(w) != 0 if is_concrete(w) and labels.ndim == 1 else np.ones(len(w), bool)
        for w in table
    ]
    if every_row:
        # The loss of a class that nothing weighs is reported, too.
        most = max(range(len(table)), key=lambda place: touches[place].sum())
        touches[most] = touches[most] | ~np.any(touches, axis=0)
    found: dict[bytes, tuple[list[int], NDArray[np.bool_], tuple[int, ...]]] = {}
    for place, classes in enumerate(touches):
        sizes: tuple[int, ...] = (size,)
        if labels.ndim == 1:
            sizes = sizes_of(buffers, classes, size)
        key = b"whole" if sizes == (size,) else classes.tobytes()
        found.setdefault(key, ([], classes, sizes))[0].append(place)
    return list(found.values())


def touched_rows(classes: NDArray[np.bool_], rows: Rows) -> jax.Array:
    """bool[B]: rows of these classes; a label of no class is one of any."""
    if collectives.is_spread(rows.labels):
        raise ValueError(
            "own_rows, split_norm and shared_norm take rows out of the batch, which JAX does not "
            "do over explicit axes of a mesh: make it with axis_types=(AxisType.Auto,), take the "
            "step inside shard_map with axis_name=, or use passes.whole"
        )
    touched = (
        jnp.asarray(classes)
        .at[rows.labels]
        .get(mode="fill", fill_value=True, wrap_negative_indices=False)
    )
    return touched if rows.mask is None else touched & rows.mask


def chosen(rows: Rows, which: tuple[bool, ...], index: jax.Array) -> Rows:
    """These rows alone; weights still divide by the whole batch."""

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
    for places, classes, sizes in buffers_of(table, rows.labels, buffers, every_row):
        touched = touched_rows(classes, rows) if sizes[0] < size else jnp.ones(size, bool)
        in_buffer = partial(
            _in_buffer, losses_fn, point, [table[place] for place in places], rows, axis_name,
            which, jnp.argsort(~touched, stable=True),
        )  # fmt: skip
        found, losses, aux = by_size(sizes, touched.sum(), in_buffer)
        if sizes[-1] < size:
            found, losses = nan_where(touched.sum() > sizes[-1], (found, losses))
        seen = losses, aux
        for place, grad in zip(places, found, strict=True):
            grads[place] = grad
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
    room: int,
) -> tuple[list[Any], jax.Array, Any]:
    """`at_once` of the first rows in an order; losses and aux at their places in the batch."""
    size = rows.labels.shape[0]
    index = order[:room]
    if room < size:
        rows = chosen(rows, which, index)
    part = "own_rows" if room < size else None
    grads, losses, aux = at_once(losses_fn, point, table, rows, axis_name, part)
    _check_aux(aux, room)
    if room < size:

        def back(leaf: Any) -> jax.Array:
            leaf = jnp.asarray(leaf)  # of aux, which may be NumPy's and of 64 bits
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


def _check_aux(aux: Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                "own_rows puts the rows of aux back in their order: each leaf needs "
                f"the batch as its leading axis, but aux{jax.tree_util.keystr(path)} has shape "
                f"{list(jnp.shape(leaf))} for {size} rows"
            )
