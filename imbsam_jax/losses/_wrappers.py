"""Losses made of other losses: modulated, smoothed, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax import checks
from imbsam_jax.losses._loss import Loss, as_loss, cross_entropy, mixed

__all__ = ["deferred", "focal", "smoothed"]


def focal(gamma: float = 1.0, *, loss: Callable[..., jax.Array] = cross_entropy) -> Loss:
    """Focal loss: easy examples count less.

        loss_c = (1 - exp(-l_c))^gamma l_c        (for cross-entropy exp(-l_c) is softmax(z)_c)

    Args:
      gamma: finite and at least 0; 0 is the loss itself.
      loss: the loss l that is modulated, at least 0: of one below 0, which only a `Loss` of one's
        own can be, the formula has a value where gamma is a whole number, and else is NaN.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels) -> float[B]`.

    Raises:
      ValueError: a bad gamma; a loss normalised by its weights.
      TypeError: a loss that is none of this module.

    Source: Lin et al., ICCV 2017 (gamma 2); the LDAM and Saddle-LongTail releases use 1. Those
    put class weights inside the exponential, `p = exp(-w_y l)`: that is
    `focal(loss=weighted(cross_entropy, w))`, while the usual `w_y (1 - p)^gamma l` is
    `weighted(focal(), w)`.

    >>> round(float(focal(2.0)(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
    0.1733
    """
    gamma = checks.number("gamma", gamma, least=0)
    inner = as_loss(loss)
    if inner.factor is not None:
        raise ValueError("normalise after modulating: weighted(focal(gamma), weights, ...)")

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        plain = inner.per_class(logits, step)
        if checks.is_concrete(gamma) and gamma == 0:
            return plain
        # Below gamma 1 the power has no finite slope at 0: such an entry is 0, flat. At infinity
        # the factor is 1, and its slope 0.
        certain, hopeless = plain == 0, plain == jnp.inf
        safe = jnp.where(certain | hopeless, 1, plain)
        modulated = (-jnp.expm1(-safe)) ** checks.like(gamma, safe) * safe
        found = jnp.where(certain, 0, jnp.where(hopeless, plain, modulated))
        return checks.nan_with(gamma, found)

    return Loss(per_class)


def smoothed(loss: Callable[..., jax.Array], amount: float) -> Loss:
    """Label smoothing of any loss: part of the label is spread over all classes.

        loss'_c = (1 - amount) loss_c + (amount / C) sum_j loss_j

    Args:
      loss: a loss of this module; a table of weights in it weighs each term by its own class.
      amount: between 0 and 1; 0 is the loss itself.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels) -> float[B]`.

    Raises:
      ValueError: an amount out of its range.
      TypeError: a loss that is none of this module.

    Source: Szegedy et al., CVPR 2016; the convention is that of PyTorch's `label_smoothing`.

    >>> loss = smoothed(cross_entropy, 0.2)
    >>> round(float(loss(jnp.array([[0.0, 2.0]]), jnp.array([1]))[0]), 4)
    0.3269
    """
    inner = as_loss(loss)
    amount = checks.number("amount", amount, least=0, most=1)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        plain = inner.per_class(logits, step)
        mean = jnp.broadcast_to(plain.mean(axis=-1, keepdims=True), plain.shape)
        return mixed(plain, mean, amount)

    return Loss(per_class, inner.factor)


def deferred(
    first: Callable[..., jax.Array], second: Callable[..., jax.Array], *, switch_step: Any
) -> Loss:
    """One loss before `switch_step`, another from it on: deferred re-weighting (DRW) and its like.

        loss_c(z) = first_c(z) where step < switch_step, else second_c(z)

    Args:
      first: loss for step < switch_step.
      second: loss for step >= switch_step.
      switch_step: first step of the second loss, at least 0: epochs times steps per epoch.

    Calls need `step`. A Python int chooses while tracing, a traced step under `lax.cond`.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels, step, mask) -> float[B]`.

    Raises:
      ValueError: a negative switch_step; a call without step.
      TypeError: a loss that is none of this module.

    Source: Cao et al., NeurIPS 2019: LDAM, from epoch 160 of 200 (60 of 90) on weighted by
    `class_balanced_weights`. There the mean is over the weights: `normalise="weights"`.

    >>> losses = ij.losses
    >>> plain = losses.ldam([90, 10])
    >>> drw = losses.deferred(plain, losses.weighted(plain, [0.2, 1.8]), switch_step=100)
    >>> logits, labels = jnp.zeros((1, 2)), jnp.array([1])
    >>> [round(float(drw(logits, labels, step)[0]), 3) for step in (99, 100)]
    [15.0, 27.0]
    """
    is_step = checks.steps("switch_step", switch_step)
    before, after = as_loss(first), as_loss(second)

    def is_later(step: Any) -> Any:
        if step is None:
            raise ValueError(
                "this loss depends on the step: call loss(logits, labels, step), with the number "
                "of updates made so far"
            )
        checks.steps("step", step)
        return checks.reached(step, switch_step)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        later = is_later(step)
        if isinstance(later, bool):
            return (after if later else before).per_class(logits, step)
        losses = lax.cond(
            later,
            lambda z: after.per_class(z, step),
            lambda z: before.per_class(z, step),
            logits,
        )
        return checks.nan_unless(is_step, losses)

    def factor(labels: jax.Array, step: Any, mask: Any) -> jax.Array:
        factors = [
            1.0 if loss.factor is None else loss.factor(labels, step, mask)
            for loss in (before, after)
        ]
        return jnp.where(is_later(step), factors[1], factors[0])

    plain = before.factor is None and after.factor is None
    return Loss(per_class, None if plain else factor)
