"""Accuracies as long-tailed recognition reports them: per class, then many, medium, few."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

__all__ = ["class_hits", "group_accuracy", "shot_accuracies"]


def class_hits(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Correct predictions and examples of each class; sums over batches give the whole set's.

    Args:
      logits: float[B, C]; the prediction is the first largest entry.
      labels: int[B]; a label outside [0, C) counts nowhere.
      mask: bool[B], False for padding.

    Returns:
      (correct int32[C], total int32[C]).

    >>> hits, total = class_hits(jnp.eye(3)[jnp.array([0, 0, 2])], jnp.array([0, 1, 2]))
    >>> hits.tolist(), total.tolist()
    ([1, 0, 1], [1, 1, 1])
    """
    num_classes = logits.shape[-1]
    counted = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask)
    counted &= (labels >= 0) & (labels < num_classes)
    where = jnp.where(counted, labels, num_classes)
    hit = counted & (jnp.argmax(logits, axis=-1) == labels)
    zeros = jnp.zeros(num_classes, jnp.int32)
    correct = zeros.at[where].add(hit.astype(jnp.int32), mode="drop")
    total = zeros.at[where].add(counted.astype(jnp.int32), mode="drop")
    return correct, total


def group_accuracy(correct: ArrayLike, total: ArrayLike, members: ArrayLike) -> jax.Array:
    """Mean over the member classes of their accuracy, in percent.

        100 * mean_{c in members, total_c > 0} correct_c / total_c

    Args:
      correct, total: number[C], as `class_hits` counts them.
      members: bool[C].

    Returns:
      float[]; NaN where no member class has an example, never 0.

    >>> float(group_accuracy(jnp.array([1, 9]), jnp.array([2, 10]), jnp.array([True, True])))
    70.0
    """
    correct, total = jnp.asarray(correct), jnp.asarray(total)
    used = jnp.asarray(members) & (total > 0)
    rate = jnp.where(used, correct / jnp.where(used, total, 1), 0)
    return 100 * rate.sum() / used.sum()


def shot_accuracies(
    correct: ArrayLike, total: ArrayLike, splits: dict[str, Any]
) -> dict[str, jax.Array]:
    """Accuracy over all classes and over each split, in percent.

    Args:
      correct, total: number[C], as `class_hits` counts them.
      splits: name -> bool[C], as `shot_splits` makes them from the training counts.

    Returns:
      {"all", and each split's name}: float[], the mean of per-class accuracies (on a balanced
      test set "all" is plain accuracy); NaN for a split without classes.

    >>> splits = {"many": jnp.array([True, False]), "few": jnp.array([False, True])}
    >>> result = shot_accuracies(jnp.array([9, 1]), jnp.array([10, 10]), splits)
    >>> {name: round(float(value)) for name, value in result.items()}
    {'all': 50, 'many': 90, 'few': 10}
    """
    everyone = jnp.ones(jnp.shape(total), bool)
    groups = {"all": everyone, **splits}
    return {name: group_accuracy(correct, total, members) for name, members in groups.items()}
