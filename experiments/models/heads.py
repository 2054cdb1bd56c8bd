"""Linear classifiers on features, the last layer of every model: always in at least float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from imbsam_jax import classifiers


class NormalisedLinear(nn.Module):
    """Cosines of features and kernel columns, no bias: the head that LDAM expects."""

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        *_, width = features.shape
        kernel = self.param("kernel", classifiers.normalised_init, (width, self.num_classes))
        return classifiers.normalised_linear(features.astype(self.dtype), kernel)


class CosineLinear(nn.Module):
    """25 times the cosines of features and kernel columns, no bias: the head of LIFT."""

    num_classes: int
    dtype: DTypeLike = jnp.float32
    scale: float = 25.0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        *_, width = features.shape
        kernel = self.param("kernel", classifiers.normalised_init, (width, self.num_classes))
        return self.scale * classifiers.normalised_linear(features.astype(self.dtype), kernel)


class ScaledLinear(nn.Module):
    """A linear classifier and one factor per class on its logits (learnable weight scaling)."""

    num_classes: int
    kernel_init: Initializer
    bias_init: Initializer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        *_, width = features.shape
        kernel = self.param("kernel", self.kernel_init, (width, self.num_classes))
        bias = self.param("bias", self.bias_init, (self.num_classes,))
        scales = self.param("scales", nn.initializers.ones, (self.num_classes,))
        logits = features.astype(self.dtype) @ kernel + bias[None]
        return classifiers.lws_logits(logits, scales)


def make_head(
    classifier: str,
    num_classes: int,
    kernel_init: Initializer,
    bias_init: Initializer,
    dtype: DTypeLike,
) -> Callable[[jax.Array], jax.Array]:
    """The classifier of that kind, one of CLASSIFIERS.

    Raises:
      ValueError: an unknown kind.
    """
    # The classifier never computes below float32: rounded logits are rounded losses.
    dtype = jnp.promote_types(dtype, jnp.float32)
    if classifier == "linear":
        return nn.Dense(num_classes, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype)
    if classifier == "normalised":
        return NormalisedLinear(num_classes, dtype)
    if classifier == "cosine":
        return CosineLinear(num_classes, dtype)
    if classifier == "scaled":
        return ScaledLinear(num_classes, kernel_init, bias_init, dtype)
    raise ValueError(f"unknown classifier {classifier!r}: choose from {', '.join(CLASSIFIERS)}")


CLASSIFIERS = ("linear", "normalised", "scaled", "cosine")
