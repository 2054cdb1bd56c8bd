"""Which rows an epoch visits, in which order; decided by seed and epoch."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Order:
    """The rows of every step of a run; worker processes are given one.

    Args:
      kind, labels, seed, per_visit: see epoch_order.
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
        multiple: int = 1,
    ):
        self.rows, self.batch_size = len(labels), batch_size
        self.steps_per_epoch = -(-self.rows // batch_size)
        self._of_epoch = (kind, labels, seed)
        self._per_visit, self._multiple = per_visit, multiple
        self._drawn: tuple[int, np.ndarray] | None = None

    def real(self, step: int) -> int:
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
            drawn = (epoch, epoch_order(kind, labels, seed, epoch, self._per_visit))
            self._drawn = drawn
        start = within * self.batch_size
        rows = drawn[1][start : start + self.batch_size]
        found = np.full(self.padded(len(rows)), -1, np.int64)
        found[: len(rows)] = rows
        return found


def epoch_order(
    kind: str, labels: np.ndarray, seed: int, epoch: int, per_visit: int = 1
) -> np.ndarray:
    """int32[N]: "natural", every row once; "balanced", every class alike."""
    if kind == "natural":
        rows = np.random.default_rng([seed, epoch]).permutation(len(labels))
        return rows.astype(np.int32)
    present, labels = np.unique(labels, return_inverse=True)
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    order = balanced_order(
        jnp.asarray(labels, jnp.int32), key, len(present), len(labels), per_visit
    )
    return np.asarray(order)


@partial(jax.jit, static_argnums=(2, 3, 4))
def balanced_order(
    labels: Any, key: jax.Array, num_classes: int, size: int, per_visit: int = 1
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
    by_class = jnp.argsort(labels, stable=True)
    starts = jnp.cumsum(counts) - counts
    visits = -(-size // per_visit)
    draws = jax.random.uniform(cycle_key, (-(-visits // num_classes), num_classes))
    cycles = jnp.argsort(draws, axis=1)
    classes = jnp.repeat(cycles.reshape(-1)[:visits], per_visit)[:size]
    within = (jax.random.uniform(row_key, (size,)) * counts[classes]).astype(jnp.int32)
    # Rounding must not reach the next class.
    within = jnp.minimum(within, counts[classes] - 1)
    return by_class[starts[classes] + within].astype(jnp.int32)
