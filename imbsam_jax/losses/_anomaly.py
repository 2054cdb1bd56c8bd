"""Losses of anomaly detection: of a score or an embedding, with labels 0 and 1."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from imbsam_jax import arrays, checks

__all__ = ["deep_sad_loss", "deviation_loss"]


def deviation_loss(
    scores: jax.Array,
    labels: jax.Array,
    *,
    reference_mean: Any = 0.0,
    reference_std: Any = 1.0,
    margin: float = 5.0,
) -> jax.Array:
    """Deviation loss of DevNet: normal scores near a reference, anomalies far above it.

        loss_i = (1 - y_i) |dev_i| + y_i max(0, margin - dev_i)
        dev_i = (score_i - reference_mean) / reference_std

    Args:
      scores: float[B], larger is more anomalous; computed in at least float32.
      labels: int[B], 1 for a labelled anomaly and 0 for every other example; anything else
        gives NaN.
      reference_mean: mean of the reference scores, usually of draws from a standard normal.
      reference_std: their standard deviation, positive.
      margin: how many standard deviations above the reference an anomaly should score.

    Returns:
      float[B], at least float32.

    Raises:
      ValueError: scores and labels that are not vectors of one length, a concrete reference_std
        or margin that is not positive.

    >>> deviation_loss(jnp.array([-0.5, 2.0, 7.0]), jnp.array([0, 1, 1])).tolist()
    [0.5, 3.0, 0.0]

    Source: Pang et al., KDD 2019. The margin is theirs, and ADBench's.
    """
    scores, labels = arrays.real("scores", scores), arrays.as_marks(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be vectors of one length, got shapes {scores.shape} and "
            f"{labels.shape}: a network with one output gives [B, 1], so pass output[:, 0]"
        )
    reference_mean = checks.number("reference_mean", reference_mean)
    reference_std = checks.number("reference_std", reference_std, above=0)
    margin = checks.number("margin", margin, above=0)
    scores = scores.astype(checks.at_least_float32(scores.dtype))
    mean, std = (checks.like(x, scores) for x in (reference_mean, reference_std))
    margin, deviation = checks.like(margin, scores), (scores - mean) / std
    return _by_anomaly(labels, jnp.abs(deviation), jax.nn.relu(margin - deviation))


def deep_sad_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    centre: jax.Array,
    *,
    eta: float = 1.0,
    eps: float = 1e-6,
) -> jax.Array:
    """DeepSAD loss: normal embeddings near a centre, labelled anomalies pushed away from it.

        loss_i = dist_i  where y_i = 0,   eta / (dist_i + eps)  where y_i = 1
        dist_i = || f_i - centre ||_2^2

    Args:
      embeddings: float[B, D]; computed in at least float32.
      labels: int[B], 1 for a labelled anomaly and 0 for every other example; anything else
        gives NaN. (The original marks anomalies -1 and has labelled normals too.)
      centre: float[D], fixed during training.
      eta: weight of labelled anomalies, positive.
      eps: added to the squared distance before it is inverted, positive.

    Returns:
      float[B], at least float32.

    Raises:
      ValueError: shapes that do not fit, a concrete eta or eps that is not positive.

    >>> f = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> deep_sad_loss(f, jnp.array([0, 1]), jnp.zeros(2)).round(4).tolist()
    [1.0, 0.25]

    Source: Ruff et al., ICLR 2020, with eta and eps as in its code and ADBench's.
    """
    embeddings, centre = arrays.real("embeddings", embeddings), arrays.real("centre", centre)
    labels = arrays.as_marks(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be float[B, D] with one label each, got shapes "
            f"{embeddings.shape} and {labels.shape}"
        )
    if centre.shape != embeddings.shape[1:]:
        raise ValueError(
            f"centre has shape {centre.shape}, but embeddings are {embeddings.shape[1]} wide"
        )
    eta, eps = checks.number("eta", eta, above=0), checks.number("eps", eps, above=0)
    embeddings = embeddings.astype(checks.at_least_float32(embeddings.dtype))
    # A centre in float64 makes the distance float64, too, as JAX's own promotion would.
    centre = centre.astype(max(checks.at_least_float32(centre.dtype), embeddings.dtype))
    distance = jnp.square(embeddings.astype(centre.dtype) - centre[None, :]).sum(axis=-1)
    eta, eps = checks.like(eta, distance), checks.like(eps, distance)
    return _by_anomaly(labels, distance, eta / (distance + eps))


def _by_anomaly(labels: jax.Array, normal: jax.Array, anomaly: jax.Array) -> jax.Array:
    # No NaN on the way to a result without one, for those who debug with jax_debug_nans.
    values = jnp.where(labels == 1, anomaly, normal)
    return jnp.where((labels == 0) | (labels == 1), values, jnp.nan)
