"""Losses that bring class counts into the logits, as margins, shifts, scales, or into sigmoids."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from imbsam_jax import arrays, checks
from imbsam_jax.losses._loss import Loss, as_row
from imbsam_jax.losses._weights import class_balanced_weights

__all__ = ["ldam", "logit_adjusted", "softmax_binary", "vs"]


def ldam(
    class_counts: ArrayLike,
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    scale_logits: bool = True,
) -> Loss:
    """Label-distribution-aware margins: rare classes must win by more.

        loss_c = CE(scale * (z - m_c onehot_c), c),   m_c = max_margin (n_c / min_j n_j)^(-1/4)

    Args:
      class_counts: int[C], each at least 1.
      max_margin: margin of the rarest class, finite and at least 0, in units of a cosine.
      scale: finite and positive.
      scale_logits: False leaves the logits unscaled and subtracts `scale * m_c`, which is what
        the SSE-SAM release has, on a plain linear classifier.

    The logits are cosines: use `classifiers.normalised_linear`, which has no bias.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels) -> float[B]`.

    Raises:
      ValueError: counts that are not positive, a bad margin or scale.

    Source: Cao et al., NeurIPS 2019 (max_margin 0.5 on CIFAR, 0.3 on larger sets).

    >>> loss = ldam([16, 1], max_margin=0.5, scale=2.0)
    >>> [round(float(x), 3) for x in loss(jnp.zeros((2, 2)), jnp.array([0, 1]))]
    [0.974, 1.313]
    """
    counts = arrays.counts(class_counts)
    checks.truth("scale_logits", scale_logits)
    max_margin = checks.number("max_margin", max_margin, least=0)
    scale = checks.number("scale", scale, above=0, wanted="positive and finite")
    margins = scale * (max_margin * (counts / counts.min()) ** -0.25)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        del step
        logits = logits * checks.like(scale, logits) if scale_logits else logits
        return jax.nn.softplus(_of_others(logits) - (logits - as_row(margins, logits)))

    return Loss(per_class)


def logit_adjusted(class_counts: ArrayLike, *, tau: float = 1.0) -> Loss:
    """Logit-adjusted cross-entropy, consistent for the balanced error at tau 1.

        loss_c = CE(z + tau log pi, c),   pi_c = n_c / N

    Args:
      class_counts: int[C], each at least 1.
      tau: finite and at least 0; 0 is cross-entropy. "Balanced softmax" is tau 1.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels) -> float[B]`.

    Raises:
      ValueError: counts that are not positive, a bad tau.

    Predictions are the plain argmax of z. To adjust afterwards a model trained with
    cross-entropy instead, use `classifiers.adjust_logits`.

    Source: Menon et al., ICLR 2021. Releases add 1e-9 or 1e-12 inside the logarithm; counts are at
    least 1 here, so nothing is added. The SSE-SAM release's "LA" has tau 0.75.

    >>> loss = logit_adjusted([3, 1])
    >>> [round(float(x), 4) for x in loss(jnp.zeros((2, 2)), jnp.array([0, 1]))]
    [0.2877, 1.3863]
    """
    return vs(class_counts, gamma=0.0, tau=tau)


def vs(class_counts: ArrayLike, *, gamma: float = 0.3, tau: float = 1.0) -> Loss:
    """Vector-scaling loss: logits are both scaled and shifted by class.

        loss_c = CE(z / D + tau log pi, c),   D_c = (max_j n_j / n_c)^gamma,  pi_c = n_c / N

    Args:
      class_counts: int[C], each at least 1.
      gamma: exponent of the scaling, finite and at least 0; 0 is `logit_adjusted`.
      tau: factor of the shift, finite and at least 0.

    Returns:
      A `Loss`: `loss(logits float[B, C], labels) -> float[B]`.

    Raises:
      ValueError: counts that are not positive, a bad gamma or tau.

    Source: Kini et al., NeurIPS 2021 (0.3 and 1.0); the SSE-SAM release has 0.05 and 0.75.

    >>> loss = vs([16, 1], gamma=0.5, tau=0.0)
    >>> round(float(loss(jnp.array([[0.0, 4.0]]), jnp.array([1]))[0]), 4)
    0.3133
    """
    counts = arrays.counts(class_counts)
    gamma = checks.number("gamma", gamma, least=0)
    tau = checks.number("tau", tau, least=0)
    divisors = checks.nan_with(gamma, (counts.max() / counts) ** gamma)
    shifts = tau * np.log(counts / counts.sum())

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        del step
        logits = logits / as_row(divisors, logits) + as_row(shifts, logits)
        return -jax.nn.log_softmax(logits)

    return Loss(per_class)


def softmax_binary(class_counts: ArrayLike, *, beta: float = 0.9999) -> Loss:
    """Class-balanced binary cross-entropy on softmax outputs: weight balancing's second stage.

        loss_c = (w_c / C) [-log p_c - sum_{j != c} log(1 - p_j)],   p = softmax(z)

    with `w = class_balanced_weights(class_counts, beta)` and logarithms clamped at -100. The mean
    over C makes gradients about C times smaller than those of cross-entropy: published learning
    rates include that.

    Args:
      class_counts: int[C], each at least 1.
      beta: in [0, 1).

    Returns:
      A `Loss`: `loss(logits float[B, C], labels) -> float[B]`.

    Raises:
      ValueError: counts that are not positive, a beta outside [0, 1).

    Source: the release of Alshammari et al., CVPR 2022. Logarithms are taken without rounding p
    first: where p rounds to 1 in float32 the release's log(1 - p) jumps from about -17 to -100.

    >>> round(float(softmax_binary([1, 1])(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
    0.6931
    """
    weights = class_balanced_weights(class_counts, beta)

    def per_class(logits: jax.Array, step: Any) -> jax.Array:
        del step
        margin = logits - _of_others(logits)
        log_p = jnp.maximum(-jax.nn.softplus(-margin), -100)
        log_not_p = jnp.maximum(-jax.nn.softplus(margin), -100)
        total = log_p + _sum_of_others(log_not_p, _is_largest(logits))
        return -(as_row(weights, logits) / logits.shape[-1]) * total

    return Loss(per_class)


def _is_largest(logits: jax.Array) -> jax.Array:
    """bool[B, C], True at one largest entry of each row."""
    largest = jnp.argmax(logits, axis=-1)
    return jnp.arange(logits.shape[-1])[None, :] == largest[:, None]


def _of_others(logits: jax.Array) -> jax.Array:
    """float[B, C]: log sum_{j != c} exp(z_j) for each c, without cancellation."""
    largest = _is_largest(logits)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    others = jnp.where(largest, -jnp.inf, logits)
    # Of nothing but -inf the sum is taken where it has a slope, which is then left out.
    none = jnp.all(others == -jnp.inf, axis=-1, keepdims=True)
    rest = jax.nn.logsumexp(jnp.where(none, 0, others), axis=-1, keepdims=True)
    rest = jnp.where(none, -jnp.inf, rest)
    # Only the largest entry can be nearly all of the sum; it is left out, not subtracted.
    p = jnp.where(largest, 0, jnp.exp(logits - total))
    return jnp.where(largest, rest, total + jnp.log1p(-p))


def _sum_of_others(values: jax.Array, apart: jax.Array) -> jax.Array:
    """float[B, C]: sum_{j != c} values_j; the entry marked in `apart` is left out exactly."""
    rest = jnp.where(apart, 0, values).sum(axis=-1, keepdims=True)
    own = jnp.where(apart, values, 0).sum(axis=-1, keepdims=True)
    return jnp.where(apart, rest, rest - values + own)
