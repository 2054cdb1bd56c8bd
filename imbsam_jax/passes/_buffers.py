"""How many rows own_rows, split_norm and shared_norm make room for.

The rows of a part are gathered into a buffer of static size; a `Buffers` says which sizes there
are. In a batch that no smaller one holds, the last one is used: the whole batch, which is always
right, or the largest where the sampler lets no batch have more rows. Rows that it does not hold
make the gradient NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import arrays, checks

__all__ = ["Buffers", "binomial_buffers", "stratified_buffers"]

Buffers = Callable[[NDArray[np.bool_]], Sequence[int]]
"""`buffers(classes bool[C]) -> sizes`: the rows that a pass over those classes has room for."""


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
      `buffers(classes bool[C]) -> sizes`, as `own_rows` and `split_norm` take it.

    Raises:
      ValueError: frequencies that are negative, not finite or all zero, a batch without rows,
        deviations that are no list of numbers.

    >>> buffers = binomial_buffers([800, 150, 50], batch_size=256)
    >>> buffers(np.array([False, True, True])), buffers(np.array([True, False, False]))
    ((55, 68, 256), (208, 221, 256))
    """
    name = "class_frequencies"
    given = arrays.per_class(name, class_frequencies)
    given = given.astype(np.int64) if given.dtype == bool else given  # drawn, or not
    drawn = np.asarray(arrays.weights(name, given), np.float64)
    if not drawn.any():
        raise ValueError(f"{name} must not be all 0; got {drawn}")
    batch_size = checks.whole("batch_size", batch_size, 1, "at least 1")
    deviations = [
        checks.number("deviations", z, concrete=True)
        for z in arrays.listed("deviations", deviations)
    ]
    drawn = drawn / drawn.sum()

    def buffers(classes: NDArray[np.bool_]) -> tuple[int, ...]:
        _check_classes(classes, len(drawn), name)
        share = float(drawn[classes].sum())
        mean, spread = batch_size * share, math.sqrt(batch_size * share * max(1 - share, 0))
        # Sums of shares are rounded: a mean of 51 that came out as 51 + 1e-14 needs no 52nd row.
        sizes = (math.ceil(mean + z * spread - 1e-6) for z in deviations)
        return (*(max(size, 0) for size in sizes), batch_size)

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
      `buffers(classes bool[C]) -> (size,)`, as `own_rows`, `split_norm` and `shared_norm` take it.

    Raises:
      ValueError: a stratum without a number of rows, rows that are no list of whole numbers.

    >>> buffers = stratified_buffers([False, True, True], rows=(205, 51))
    >>> buffers(np.array([False, True, True])), buffers(np.array([True, False, False]))
    ((51,), (205,))
    """
    strata = arrays.per_class("class_strata", class_strata)
    given = arrays.listed("rows", arrays.in_class_order("rows", rows))
    sizes = [checks.whole("rows", size, 0) for size in given]
    kind = bool(strata.dtype == bool) or bool(jnp.issubdtype(strata.dtype, jnp.integer))
    whole = strata.ndim == 1 and kind
    if not whole or strata.min(initial=0) < 0 or strata.max(initial=0) >= len(sizes):
        raise ValueError(
            f"class_strata must be int[C] from 0 to {len(sizes) - 1}, as there are {len(sizes)} "
            f"numbers in rows; got {checks.short(strata, str)}"
        )

    def buffers(classes: NDArray[np.bool_]) -> tuple[int, ...]:
        _check_classes(classes, len(strata), "class_strata")
        return (sum(sizes[int(k)] for k in set(strata[classes].tolist())),)

    return buffers


def sizes_of(buffers: Buffers, classes: NDArray[np.bool_], batch_size: int) -> tuple[int, ...]:
    """What buffers returns for these classes, rising, from 1 to the batch size."""
    given = arrays.listed("what buffers returns", buffers(classes))
    if not given:
        raise ValueError("buffers must return one number of rows or more, such as (64, 256)")
    sizes = [checks.whole("a number of rows that buffers returns", size, 0) for size in given]
    return tuple(sorted({min(max(size, 1), batch_size) for size in sizes}))


def _check_classes(classes: NDArray[np.bool_], mine: int, name: str) -> None:
    if len(classes) != mine:
        raise ValueError(f"the rule has {len(classes)} classes, and {name} of the buffers {mine}")
