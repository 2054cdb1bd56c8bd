"""A weight for each class, and the two averages of weighted losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import arrays, checks, collectives
from imbsam_jax.losses._loss import Loss, as_loss, as_row, cross_entropy, refuse_part_of_batch
from imbsam_jax.rows import row_weights

__all__ = ["class_balanced", "class_balanced_weights", "weighted"]


def class_balanced_weights(class_counts: ArrayLike, beta: float = 0.9999) -> NDArray[np.float64]:
    """Weights by the effective number of examples, normalised to sum C.

        w_c = C v_c / sum_j v_j,   v_c = (1 - beta) / (1 - beta^n_c)

    Args:
      class_counts: int[C], each at least 1.
      beta: in [0, 1); 0 weights all classes alike, towards 1 it is inverse frequency.

    Returns:
      float64[C], their mean 1 over classes; over naturally sampled rows it is less.

    Raises:
      ValueError: counts that are not positive, a beta outside [0, 1).

    Source: Cui et al., CVPR 2019.

    >>> class_balanced_weights([50, 5]).round(3).tolist()
    [0.182, 1.818]
    """
    counts = arrays.counts(class_counts)
    beta = checks.number("beta", beta, least=0, below=1, concrete=True)
    # 1 - beta^n without cancellation, which matters for the rarest classes.
    effective = -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones(counts.shape)
    weights = 1.0 / effective
    return np.asarray(weights * (counts.size / weights.sum()))


def weighted(
    loss: Callable[..., jax.Array],
    class_weights: ArrayLike,
    *,
    normalise: Literal["batch", "weights"] = "batch",
    axis_name: Any = None,
) -> Loss:
    """A loss with one weight per class: its mean over the batch is one of two averages.

        "batch":    (1/B) sum_i w[y_i] loss_i
        "weights":  sum_i w[y_i] loss_i / sum_i w[y_i]

    Under natural sampling of a long tail the first is the smaller by the mean weight of a row: by
    0.20 with class-balanced weights on CIFAR100-LT of imbalance factor 100.

    Args:
      loss: a loss of this module.
      class_weights: float[C], finite and at least 0.
      normalise: "batch" divides by the batch size: rows stay independent. "weights" divides by
        the sum of the weights of the real rows, as the weight of a PyTorch loss with its mean
        reduction does: pass the mask, too, where rows are padding.
      axis_name: the device axis over which "weights" sums, inside pmap or shard_map; None sums
        over this device's rows (under plain jit these are all rows).

    "weights" is of a whole batch. A pass of `value_and_grad` over a part of it (micro_batches,
    own_rows, split_norm, shared_norm) refuses such a loss; there take the factor beforehand and
    hand it on:

        factor = loss.factor(labels, step, mask)
        plain = Loss(loss.per_class)
        losses_fn = lambda params, x, y, factor: (plain(model(params, x), y) * factor, None)
        f = value_and_grad(losses_fn, rule, passes=passes.whole(4, (True, True, False)))

    Returns:
      A `Loss`: `loss(logits float[B, C], labels, step, mask) -> float[B]`.

    Raises:
      ValueError: weights that are negative or not finite, an unknown normalisation, a loss that has
        one already; a call with "weights" in a pass over a part of the batch.
      TypeError: a loss that is none of this module.

    Source: "batch" is Cui et al., CVPR 2019, and the Focal-SAM release; "weights" is the LDAM,
    VS-loss and Saddle-LongTail releases. For soft labels a row weighs `sum_c y_c w_c`.

    >>> logits, labels = jnp.zeros((2, 2)), jnp.array([0, 1])
    >>> round(float(weighted(cross_entropy, [0.5, 1.0])(logits, labels).mean()), 3)
    0.52
    >>> loss = weighted(cross_entropy, [0.5, 1.0], normalise="weights")
    >>> round(float(loss(logits, labels).mean()), 3)
    0.693
    """
    inner = as_loss(loss)
    if inner.factor is not None:
        raise ValueError(
            "the loss is already divided by its weights: multiply the two tables of weights and "
            "call weighted once"
        )
    if normalise not in ("batch", "weights"):
        raise ValueError(f"normalise must be 'batch' or 'weights', got {normalise!r}")
    table = arrays.weights("class_weights", class_weights)
    some_zero = not checks.is_concrete(table) or bool(np.any(np.asarray(table) == 0))

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        row, plain = as_row(table, logits), inner.per_class(logits, step)
        # No part of the loss, also where the loss is infinite.
        return jnp.where(row == 0, 0, row * plain) if some_zero else row * plain

    def factor(labels: jax.Array, step: Any, mask: Any) -> jax.Array:
        del step
        refuse_part_of_batch()
        total = row_weights(table, labels, mask, jnp.result_type(float)).mean()
        real = jnp.ones(()) if mask is None else jnp.mean(mask, dtype=total.dtype)
        total, real = collectives.mean((total, real.astype(total.dtype)), axis_name)
        return real / jnp.where(total == 0, 1, total)

    return Loss(per_class, factor if normalise == "weights" else None)


def class_balanced(
    class_counts: ArrayLike,
    beta: float = 0.9999,
    *,
    loss: Callable[..., jax.Array] = cross_entropy,
    normalise: Literal["batch", "weights"] = "batch",
    axis_name: Any = None,
) -> Loss:
    """A loss weighted by `class_balanced_weights`: `weighted(loss, weights, normalise=...)`.

    Args:
      class_counts: int[C], each at least 1.
      beta: in [0, 1).
      loss: the loss that is weighted.
      normalise, axis_name: see `weighted`.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels, step, mask) -> float[B]`.

    Raises:
      ValueError: counts that are not positive, a beta outside [0, 1); and as `weighted`.
      TypeError: a loss that is none of this module.

    Source: Cui et al., CVPR 2019.

    >>> loss = class_balanced([90, 10], beta=0.99)
    >>> [round(float(x), 3) for x in loss(jnp.zeros((2, 2)), jnp.array([0, 1]))]
    [0.192, 1.194]
    """
    weights = class_balanced_weights(class_counts, beta)
    return weighted(loss, weights, normalise=normalise, axis_name=axis_name)
