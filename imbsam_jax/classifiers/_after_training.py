"""What evens out a classifier that is trained: norms of columns, scales of logits, priors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from imbsam_jax import arrays, checks
from imbsam_jax.classifiers._kernels import checked_kernel, with_norms


def tau_normalise(kernel: jax.Array, tau: float = 1.0) -> jax.Array:
    """Columns divided by a power of their norm, `W_c / ||W_c||_2^tau`.

    Args:
      kernel: float[F, C] of a trained classifier.
      tau: finite; 0 leaves the kernel as it is, 1 makes every norm 1. Choose it on held-out data.

    Returns:
      float[F, C], the kernel's dtype; a zero column stays zero. Logits are
      `x @ tau_normalise(kernel, tau)` WITHOUT a bias: the method drops it.

    Raises:
      ValueError: a kernel that is no matrix of real numbers, a tau that is not finite.

    Source: Kang et al., ICLR 2020 (tau swept from 0 to 2); weight balancing uses 1.9.

    >>> tau_normalise(jnp.array([[0.0, 0.0], [4.0, 2.0]]), 2.0).tolist()
    [[0.0, 0.0], [0.25, 0.5]]
    """
    kernel = checked_kernel(kernel)
    tau = checks.number("tau", tau)
    near, norms, scales = with_norms(kernel)
    tau = checks.like(tau, near)
    # A power of the scale for itself: that of the norm may leave the range where the column does
    # not. The scale is one of 2, and a kernel at tau 0 stays as it is.
    scaled = near / norms**tau * scales ** (1 - tau)
    return checks.nan_with(tau, scaled.astype(kernel.dtype))


def lws_logits(logits: jax.Array, scales: jax.Array) -> jax.Array:
    """Learnable weight scaling: logits of a frozen classifier, one learnt factor per class.

        z_c = f_c (W_c x + b_c)

    Args:
      logits: float[B, C], `x @ kernel + bias` of the frozen classifier; the bias is scaled too.
      scales: float[C], the only parameters trained; start from ones.

    Returns:
      float[B, C], the wider dtype of the two.

    Raises:
      ValueError: scales that are not one for each class.

    Source: Kang et al., ICLR 2020; five epochs with class-balanced sampling.

    >>> lws_logits(jnp.array([[1.0, 2.0]]), jnp.array([1.0, 3.0])).tolist()
    [[1.0, 6.0]]
    """
    logits, scales = _checked_logits(logits), arrays.floating("scales", scales)
    if scales.shape != logits.shape[-1:]:
        raise ValueError(
            f"scales must be float[{logits.shape[-1]}], one per class, got {scales.shape}"
        )
    logits, scales = checks.alike(logits, scales)
    return logits * jnp.reshape(scales, (1,) * (logits.ndim - 1) + (-1,))


def fold_scales(
    kernel: jax.Array, bias: jax.Array, scales: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The plain classifier whose logits are `lws_logits`, once the scales are learnt.

        W'_c = f_c W_c,   b'_c = f_c b_c

    Args:
      kernel: float[F, C].
      bias: float[C].
      scales: float[C].

    Returns:
      (kernel float[F, C], bias float[C]), each the wider dtype of it and the scales.

    Raises:
      ValueError: shapes that do not fit.

    Source: Kang et al., ICLR 2020.

    >>> fold_scales(jnp.ones((1, 2)), jnp.ones(2), jnp.array([1.0, 3.0]))[0].tolist()
    [[1.0, 3.0]]
    """
    kernel = checked_kernel(kernel)
    bias, factors = arrays.floating("bias", bias), arrays.floating("scales", scales)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must be float{list(kernel.shape[1:])}, got shape {bias.shape}")
    scaled = lws_logits(kernel, scales)
    bias, factors = checks.alike(bias, factors)
    return scaled, bias * factors


def adjust_logits(logits: jax.Array, class_counts: ArrayLike, *, tau: float = 1.0) -> jax.Array:
    """Post-hoc logit adjustment, `z_c - tau log pi_c` with `pi_c = n_c / N`: predict its argmax.

    Args:
      logits: float[B, C] of a model trained with plain cross-entropy.
      class_counts: int[C], training examples of each class, each at least 1.
      tau: finite; 1 aims at the balanced error.

    Returns:
      float[B, C], like logits.

    Raises:
      ValueError: counts that are not positive or not one for each logit, a tau that is not finite.

    Source: Menon et al., ICLR 2021. To train with the adjustment instead, see
    `losses.logit_adjusted`.

    >>> int(adjust_logits(jnp.array([[1.0, 0.0]]), [90, 10])[0].argmax())
    1
    """
    counts, logits = arrays.counts(class_counts), _checked_logits(logits)
    if logits.shape[-1] != counts.size:
        raise ValueError(f"there are {counts.size} class counts but {logits.shape[-1]} logits")
    tau = checks.number("tau", tau)
    shifts = jnp.asarray(tau * np.log(counts / counts.sum()), logits.dtype)
    return logits - jnp.reshape(shifts, (1,) * (logits.ndim - 1) + (-1,))


def _checked_logits(logits: Any) -> jax.Array:
    logits = arrays.floating("logits", logits)
    if logits.ndim < 1:
        raise ValueError(f"logits must be float[B, C], got shape {list(logits.shape)}")
    return logits
