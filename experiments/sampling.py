"""Which rows an epoch visits, in which order; decided by seed and epoch."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
