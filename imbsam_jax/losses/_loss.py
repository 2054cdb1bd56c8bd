"""What a loss is here: a table `loss_c(z)`, of which each example takes what its label says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imbsam_jax import arrays, checks, collectives
from imbsam_jax.rows import check_whole_batch

__all__ = ["Loss", "cross_entropy"]


class Loss:
    """A table of losses, `loss_c(z)` for each label c, called as a per-example loss.

        loss(z, y) = factor * sum_c y_c loss_c(z)

    Args:
      per_class: `per_class(logits float[B, C], step) -> float[B, C]`, row i the loss of example i
        for each label it could have. The functions below make them.
      factor: None, or `factor(labels, step, mask) -> float[]`, one factor on every row that is
        constant in the logits: what turns a mean over rows into another average.

    Called as `loss(logits, labels, step=None, mask=None) -> float[B]`:
      logits: float[B, C]; computed in at least float32.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.
      step: number of updates made so far; required by `deferred`, ignored by the others.
      mask: bool[B], False for padding; needed only by `weighted(..., normalise="weights")`.

    Returns, when called:
      float[B], at least float32.

    Raises, when called:
      ValueError: logits, labels or a mask of another shape or type; without a step, where it needs
        one; with a factor, a pass of `value_and_grad` that sees a part of the batch.

    >>> brier = Loss(lambda z, step: jnp.sum(z**2, -1, keepdims=True) - 2 * z + 1)
    >>> brier(jnp.array([[0.5, 0.5]]), jnp.array([1])).tolist()
    [0.5]
    """

    def __init__(
        self,
        per_class: Callable[[jax.Array, Any], jax.Array],
        factor: Callable[[jax.Array, Any, Any], Any] | None = None,
    ) -> None:
        self._per_class = per_class
        self.factor = factor

    def per_class(self, logits: jax.Array, step: Any = None) -> jax.Array:
        """float[B, C]: the loss of each example for each label, without the factor."""
        return self._per_class(_widened(logits), step)

    def __call__(
        self, logits: jax.Array, labels: jax.Array, step: Any = None, mask: Any = None
    ) -> jax.Array:
        labels = arrays.as_labels(labels)
        if mask is not None:
            mask = arrays.as_mask(mask, labels.shape[:1])
        losses = _mean_over_label(self.per_class(logits, step), labels)
        if self.factor is None:
            return losses
        refuse_part_of_batch()
        return losses * jnp.asarray(self.factor(labels, step, mask), losses.dtype)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, step: Any = None, mask: Any = None
) -> jax.Array:
    """Softmax cross-entropy, `-log softmax(z)_y`, or `-sum_c y_c log softmax(z)_c`.

    Args:
      logits: float[B, C]; computed in at least float32.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.
      step, mask: ignored; every loss of this module can be called alike.

    Returns:
      float[B], at least float32.

    Raises:
      ValueError: logits, labels or a mask of another shape or type.

    >>> round(float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
    1.3863
    """
    del step
    labels = arrays.as_labels(labels)
    if mask is not None:
        arrays.as_mask(mask, labels.shape[:1])
    return _mean_over_label(-jax.nn.log_softmax(_widened(logits)), labels)


def as_loss(loss: Callable[..., jax.Array]) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if loss is cross_entropy:
        return Loss(lambda logits, step: -jax.nn.log_softmax(logits))
    raise TypeError(
        "this needs the loss of every label, not only of the given one: pass a loss made by "
        f"imbsam_jax.losses, or Loss(per_class); got {getattr(loss, '__name__', loss)!r}"
    )


def refuse_part_of_batch() -> None:
    check_whole_batch(
        "this loss is divided by a sum over the rows of the batch (normalise='weights')",
        "take factor = loss.factor(labels, step, mask) of the whole batch before the passes, give "
        "it to losses_fn as an arg without the batch axis (batched=), and return "
        "Loss(loss.per_class)(logits, labels, step) * factor",
    )


def _widened(logits: jax.Array) -> jax.Array:
    logits = arrays.real("logits", logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must be float[B, C], got shape {list(logits.shape)}")
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have a class or more, got shape {list(logits.shape)}")
    return logits.astype(checks.at_least_float32(logits.dtype))


def as_row(table: Any, logits: jax.Array) -> jax.Array:
    """A number per class as [1, C], in the dtype of the logits."""
    if table.shape[0] != logits.shape[1]:
        raise ValueError(
            f"the loss was made for {table.shape[0]} classes, the logits have {logits.shape[1]}"
        )
    return jnp.asarray(table, logits.dtype)[None, :]


def mixed(first: jax.Array, second: jax.Array, share: Any) -> jax.Array:
    """(1 - share) * first + share * second; nothing of an infinite loss is nothing, not NaN."""
    if checks.is_concrete(share):
        if share in (0, 1):
            return first if share == 0 else second
        return (1 - share) * first + share * second
    share = checks.like(share, first)
    part = jnp.where(share == 1, 0, (1 - share) * first)
    return part + jnp.where(share == 0, 0, share * second)


def _mean_over_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """float[B]: values[i, labels[i]], or sum_c labels[i, c] values[i, c] for soft labels."""
    if labels.ndim == 2:
        if labels.shape != values.shape:
            raise ValueError(
                f"soft labels have shape {list(labels.shape)}, the logits {list(values.shape)}"
            )
        # A class that is no part of the label adds 0, also where its loss is infinite.
        values = jnp.where(labels == 0, 0, values)
        return (labels.astype(values.dtype) * values).sum(axis=-1)
    if labels.shape != values.shape[:1]:
        raise ValueError(f"there are {labels.shape[0]} labels for {values.shape[0]} rows of logits")
    return _pick(values, labels)


def _pick(values: jax.Array, labels: jax.Array) -> jax.Array:
    """values[i, labels[i]], NaN for a label that is no class (also a negative one)."""
    if collectives.along(values) is None and collectives.along(labels) is None:
        # XLA has the labels of all devices for it. A process whose peer is gone learns of that
        # there at once; in a sum over emulated devices it would wait until JAX aborts it.
        return values.at[jnp.arange(labels.shape[0]), labels].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )

    # Row by row: with two indices JAX would not know how the result is spread over explicit axes.
    def of_row(row: jax.Array, label: jax.Array) -> jax.Array:
        found: jax.Array = row.at[label].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        return found

    return jax.vmap(of_row)(values, labels)
