"""Passes over the rows that carry weight, for models whose examples do not see each other.

    cost / SGD's = sum_p (rows of part p) / B  +  sum_k (rows of group k) / B

where the parts of a table are its groups and its base. ImbSAM so costs 1 + f with a share f of tail
rows, where passes over the whole batch cost 8/3. The rows of a part are gathered into a buffer of
static size; `buffers` says which sizes there are. In a batch that no smaller one holds, the last
one is used: the whole batch, which is always right, or the largest where the sampler lets no
batch have more rows. Rows that it does not hold make the gradient NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import collectives
from imbsam_jax.passes import LossesFn, Rows, at_once, check_batched
from imbsam_jax.priors import _is_concrete
from imbsam_jax.rows import nan_where

__all__ = ["binomial_buffers", "stratified_buffers"]

Buffers = Callable[[NDArray[np.bool_]], Sequence[int]]


def binomial_buffers(
    class_frequencies: ArrayLike, batch_size: int, *, deviations: Sequence[float] = (0.5, 2.5)
) -> Buffers:
    """Sizes for batches drawn at random, row by row: a few buffers, then the whole batch.

        sizes of a part = ceil(B f + z sqrt(B f (1 - f))) for z in deviations, then B

    with f the share of the part's classes: the number of its rows is Binomial(B, f).

    Args:
      class_frequencies: float[C], how often each class is drawn, up to a factor: the class counts
        of uniform draws, ones of class-balanced ones.
      batch_size: B, rows of one device.
      deviations: how many standard deviations over the mean each buffer reaches. Every size is a
        pass of its own in the compiled program: more sizes waste fewer rows and compile longer.

    Returns:
      `buffers(classes bool[C]) -> sizes`, as `value_and_grad` takes it.

    Raises:
      ValueError: frequencies that are negative, not finite or all zero, a batch without rows.

    >>> buffers = binomial_buffers([800, 150, 50], batch_size=256)
    >>> buffers(np.array([False, True, True])), buffers(np.array([True, False, False]))
    ((55, 68, 256), (208, 221, 256))
    """
    drawn = np.asarray(class_frequencies, np.float64)
    if drawn.ndim != 1 or not (np.isfinite(drawn).all() and (drawn >= 0).all() and drawn.any()):
        raise ValueError(
            f"class_frequencies must be float[C], finite, at least 0 and not all 0; got {drawn}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    drawn = drawn / drawn.sum()

    def buffers(classes: NDArray[np.bool_]) -> tuple[int, ...]:
        share = float(drawn[classes].sum())
        mean, spread = batch_size * share, math.sqrt(batch_size * share * max(1 - share, 0))
        # Sums of shares are rounded: a mean of 51 that came out as 51 + 1e-14 needs no 52nd row.
        return (*(math.ceil(mean + z * spread - 1e-6) for z in deviations), batch_size)

    return buffers


def stratified_buffers(class_strata: ArrayLike, rows: Sequence[int]) -> Buffers:
    """The one size for batches with the same number of rows of each stratum of classes.

        size of a part = sum of the rows of the strata that its classes lie in

    There is no branch and no whole batch to fall back on: a batch with more rows than it should
    have gives a gradient of NaN. Right under vmap over seeds with batches of their own, too, where
    a branch would run all of its sides.

    Args:
      class_strata: int[C], the stratum of each class, from 0 on. `tail_classes(class_counts, eta)`
        is two: 0, the head, and 1, the tail.
      rows: how many rows of each stratum every batch of one device has (at most, with padding).

    Returns:
      `buffers(classes bool[C]) -> (size,)`, as `value_and_grad` takes it.

    Raises:
      ValueError: a stratum without a number of rows.

    >>> buffers = stratified_buffers([False, True, True], rows=(205, 51))
    >>> buffers(np.array([False, True, True])), buffers(np.array([True, False, False]))
    ((51,), (205,))
    """
    strata = np.asarray(class_strata).astype(np.int64)
    if strata.ndim != 1 or strata.min(initial=0) < 0 or strata.max(initial=0) >= len(rows):
        raise ValueError(
            f"class_strata must be int[C] from 0 to {len(rows) - 1}, as there are {len(rows)} "
            f"numbers in rows; got {strata}"
        )
    return lambda classes: (sum(rows[stratum] for stratum in set(strata[classes].tolist())),)


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
    for numbers, classes, sizes in _plan(table, rows.labels, buffers, every_row):
        touched = _touched(classes, rows) if sizes[0] < size else jnp.ones(size, bool)
        in_buffer = partial(
            _in_buffer, losses_fn, point, [table[number] for number in numbers], rows, axis_name,
            which, jnp.argsort(~touched, stable=True),
        )  # fmt: skip
        found, losses, aux = _by_size(sizes, touched.sum(), in_buffer)
        if sizes[-1] < size:
            found, losses = nan_where(touched.sum() > sizes[-1], (found, losses))
        seen = losses, aux
        for number, grad in zip(numbers, found, strict=True):
            grads[number] = grad
        outcome = seen if outcome is None else _rows_of_either(touched, seen, outcome)
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
        rows = _chosen(rows, which, index)
    part = "examples='independent'" if number < size else None
    grads, losses, aux = at_once(losses_fn, point, table, rows, axis_name, part)
    _check_aux(aux, number)
    if number < size:

        def back(leaf: jax.Array) -> jax.Array:
            blank = jnp.zeros((size, *leaf.shape[1:]), leaf.dtype)
            return blank.at[index].set(leaf, unique_indices=True)

        losses, aux = jax.tree.map(back, (losses, aux))
    # The sides of a branch must agree in what varies over devices.
    return collectives.varying((grads, losses, aux), axis_name)


def _rows_of_either(first: jax.Array, a: Any, b: Any) -> Any:
    """The first rows of a, the others of b."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(leaf, a, b)


def _plan(
    table: list[Any], labels: jax.Array, buffers: Buffers, every_row: bool
) -> list[tuple[list[int], NDArray[np.bool_], tuple[int, ...]]]:
    """(rows of the table, classes, sizes) of each buffer: rows of the same classes share one."""
    size = labels.shape[0]
    # Soft labels touch most classes, and what a traced weight touches is not known.
    of_rows = [
        np.asarray(w) != 0 if _is_concrete(w) and labels.ndim == 1 else np.ones(len(w), bool)
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


def _touched(classes: NDArray[np.bool_], rows: Rows) -> jax.Array:
    """bool[B]: rows of these classes; a label of no class is one of any."""
    touched = (
        jnp.asarray(classes)
        .at[rows.labels]
        .get(mode="fill", fill_value=True, wrap_negative_indices=False)
    )
    return touched if rows.mask is None else touched & rows.mask


def _chosen(rows: Rows, which: tuple[bool, ...], index: jax.Array) -> Rows:
    def take(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tree)

    args = tuple(
        take(arg) if has_rows else arg for arg, has_rows in zip(rows.args, which, strict=True)
    )
    return rows._replace(args=args, labels=take(rows.labels), mask=take(rows.mask))


def _by_size(sizes: tuple[int, ...], number: jax.Array, of_buffer: Callable[[int], Any]) -> Any:
    """The first buffer that holds so many rows, or the last."""
    if len(sizes) == 1:
        return of_buffer(sizes[0])
    place = (number > jnp.asarray(sizes[:-1])).sum()
    return lax.switch(place, [lambda k=k: of_buffer(k) for k in sizes])


def _check_aux(aux: Any, size: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                "examples='independent' puts the rows of aux back in their order: each leaf needs "
                f"the batch as its leading axis, but aux{jax.tree_util.keystr(path)} has shape "
                f"{list(jnp.shape(leaf))} for {size} rows"
            )
