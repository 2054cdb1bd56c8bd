"""Which rows an epoch visits, in which order; decided by seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.host.errors import check_seed
from imbsam_jax import binomial_buffers, stratified_buffers


class Order:
    """The rows of every step of a run; worker processes are given one.

    Args:
      kind, labels, seed, per_visit, tail: see epoch_order.
      batch_size: the last batch of an epoch is smaller.
      multiple: every batch is padded to a multiple of it.
    """

    def __init__(
        self,
        kind: str,
        labels: np.ndarray,
        seed: int,
        batch_size: int,
        *,
        per_visit: int = 1,
        tail: np.ndarray | None = None,
        multiple: int = 1,
    ):
        self.rows, self.batch_size = len(labels), batch_size
        self.steps_per_epoch = -(-self.rows // batch_size)
        self._of_epoch = (kind, labels, seed)
        self._per_visit, self._tail, self._multiple = per_visit, tail, multiple
        self._drawn: tuple[int, np.ndarray] | None = None

    def rows_of(self, step: int) -> int:
        """Rows of that step, padding left out."""
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.rows - start)

    def padded(self, rows: int) -> int:
        return -(-rows // self._multiple) * self._multiple

    def of_step(self, step: int) -> np.ndarray:
        """int64[b]; -1 is padding."""
        epoch, within = divmod(step, self.steps_per_epoch)
        drawn = self._drawn  # threads share an order: each looks at what it has checked
        if drawn is None or drawn[0] != epoch:
            kind, labels, seed = self._of_epoch
            order = epoch_order(kind, labels, seed, epoch, self._per_visit, self._tail)
            drawn = (epoch, order)
            self._drawn = drawn
        start = within * self.batch_size
        rows = drawn[1][start : start + self.batch_size]
        found = np.full(self.padded(len(rows)), -1, np.int64)
        found[: len(rows)] = rows
        return found

    def labels_of(self, steps: int, parts: int = 1) -> Iterator[np.ndarray]:
        """int[b / parts] of each part of the first whole batches, at most so many."""
        labels = self._of_epoch[1]
        whole = [k for k in range(steps) if self.rows_of(k) == self.batch_size] or [0]
        for step in whole:
            rows = self.of_step(step)
            yield from np.split(labels[rows[: len(rows) // parts * parts]], parts)

    def buffers(self, num_classes: int, rows: int) -> Callable[[Any], Sequence[int]]:
        """How many rows of some classes to make room for, as `value_and_grad` takes it.

        Args:
          num_classes: C.
          rows: of one device: its part of a batch, side by side in the order.
        """
        kind, labels, _ = self._of_epoch
        if kind == "stratified":
            assert self._tail is not None
            return stratified_buffers(self._tail, most_rows(self._tail[labels], rows))
        counts = np.bincount(labels, minlength=num_classes)
        return binomial_buffers(counts > 0 if kind == "balanced" else counts, rows)


def epoch_order(
    kind: str,
    labels: np.ndarray,
    seed: int,
    epoch: int,
    per_visit: int = 1,
    tail: np.ndarray | None = None,
) -> np.ndarray:
    """int32[N]: "natural" and "stratified", every row once; "balanced", every class alike.

    Args:
      labels: int[N].
      seed, epoch: decide the order; a seed is from 0 to 2**32 - 1.
      per_visit: of "balanced", see balanced_order.
      tail: bool[C], the tail classes of "stratified": see stratified_order.
    """
    check_seed(seed)
    if kind == "natural":
        rows = np.random.default_rng([seed, epoch]).permutation(len(labels))
        return rows.astype(np.int32)
    if kind == "stratified":
        assert tail is not None
        return stratified_order(np.asarray(tail)[labels], np.random.default_rng([seed, epoch]))
    present, labels = np.unique(labels, return_inverse=True)
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    order = balanced_order(
        jnp.asarray(labels, jnp.int32), key, len(present), len(labels), per_visit
    )
    return np.asarray(order)


def stratified_order(in_tail: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """int32[N]: every row once, the tail's T rows as evenly as can be.

        tail rows among the first p = floor((p T + u) / N),   u uniform in 0 .. N - 1

    Any L rows in a row, so each batch and each device's part of it, hold floor(L T / N) or
    ceil(L T / N) rows of the tail, and L T / N on average over u: see `most_rows`.

    Args:
      in_tail: bool[N], which rows are the tail's.
      draw: decides the order.
    """
    size, tail = len(in_tail), int(in_tail.sum())
    before = (np.arange(size + 1) * tail + draw.integers(size)) // size
    place = np.diff(before) > 0
    order = np.empty(size, np.int32)
    order[place] = draw.permutation(np.flatnonzero(in_tail))
    order[~place] = draw.permutation(np.flatnonzero(~in_tail))
    return order


def most_rows(in_tail: np.ndarray, length: int) -> tuple[int, int]:
    """Rows of the head and of the tail that `length` rows of a stratified order hold at most."""
    size, tail = len(in_tail), int(in_tail.sum())
    return -(-length * (size - tail) // size), -(-length * tail // size)


@partial(jax.jit, static_argnums=(2, 3, 4))
def balanced_order(
    labels: Any, key: jax.Array, num_classes: int, size: int, per_visit: int
) -> jax.Array:
    """int32[size]: rows by class-aware sampling, computed on the device.

    Classes are visited in random cycles, each class once a cycle; a visit draws `per_visit` rows
    of its class, uniformly and with replacement. (The releases draw them without replacement
    until a class is used up; with a handful of rows per class and hundreds of visits the two
    differ by less than the order does.)

    Args:
      labels: int[N], with at least one row of every class.
      key: decides the order.
      num_classes, size, per_visit: C, how many rows, 4 in the decoupling release, 1 in CC-SAM's.
    """
    cycle_key, row_key = jax.random.split(key)
    counts = jnp.zeros(num_classes, jnp.int32).at[labels].add(1)
    by_class = jnp.argsort(labels)
    starts = jnp.cumsum(counts) - counts
    visits = -(-size // per_visit)
    draws = jax.random.uniform(cycle_key, (-(-visits // num_classes), num_classes))
    cycles = jnp.argsort(draws)
    classes = jnp.repeat(cycles.reshape(-1), per_visit)[:size]
    # Below the count, rounded too: what is drawn is 1 - 2^-23 at most.
    within = (jax.random.uniform(row_key, (size,)) * counts[classes]).astype(jnp.int32)
    return by_class[starts[classes] + within].astype(jnp.int32)
