"""A ReLU multi-layer perceptron on flattened inputs: no batch statistics, rows stay independent."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from experiments.models.heads import make_head

_KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class MLP(nn.Module):
    """Linear-ReLU for each width in `features`, then a linear classifier.

    Kernels are Kaiming normal (fan in), biases zero.

    Attributes:
      num_classes: number of logits.
      features: widths of the hidden layers; () is logistic regression.
      dtype: what the layers compute in.
      classifier: kind of the last layer, one of heads.CLASSIFIERS.
    """

    num_classes: int
    features: Sequence[int] = (128, 128)
    dtype: DTypeLike = jnp.float32
    classifier: str = "linear"

    def setup(self) -> None:
        self.hidden = [
            nn.Dense(width, kernel_init=_KAIMING, dtype=self.dtype) for width in self.features
        ]
        self.head = make_head(
            self.classifier, self.num_classes, _KAIMING, nn.initializers.zeros, self.dtype
        )

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        """Input [B, ...] to the last hidden activations [B, D]."""
        del train  # nothing here behaves differently in training
        x = images.reshape(images.shape[0], -1)
        for layer in self.hidden:
            x = nn.relu(layer(x))
        return x

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [B, D] to logits [B, num_classes]."""
        return self.head(features)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.classify(self.embed(images, train))


def mlp(
    num_classes: int,
    *,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    classifier: str = "linear",
) -> MLP:
    """MLP with two hidden layers of 128; `axis_name` is ignored, as there is no BatchNorm."""
    del axis_name
    return MLP(num_classes, dtype=dtype, classifier=classifier)
