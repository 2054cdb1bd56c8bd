"""A tiny long-tailed image set, learnable and without a file, for the tests of the experiments."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from experiments.models.heads import make_head
from experiments.reports import plots

COUNTS = (40, 20, 10, 5, 3)

# Of `fit`: with pictures and the cost of a step, as from the command line.
IN_FULL = {"measure": True, "draw": plots.run_folder}


class TinyNet(nn.Module):
    """One convolution with batch normalisation: what couples a batch, and compiles in a moment."""

    num_classes: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    classifier: str = "linear"
    momentum: float = 0.9

    def setup(self) -> None:
        self.conv = nn.Conv(4, (3, 3), strides=2, dtype=self.dtype)
        self.norm = nn.BatchNorm(momentum=self.momentum, axis_name=self.axis_name, dtype=self.dtype)
        init = nn.initializers.lecun_normal()
        zeros = nn.initializers.zeros
        self.head = make_head(self.classifier, self.num_classes, init, zeros, self.dtype)

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        x = self.norm(self.conv(images), use_running_average=not train)
        return nn.relu(x).reshape(x.shape[0], -1)

    def classify(self, features: jax.Array) -> jax.Array:
        return self.head(features)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.classify(self.embed(images, train))


def tiny_dataset(size: int = 8, counts: tuple[int, ...] = COUNTS, seed: int = 0) -> Dataset:
    """78 training and 55 test images of noisy prototypes; many 2, medium 1, few 2 classes."""
    draw = np.random.default_rng(seed)
    classes = np.arange(len(counts), dtype=np.int32)
    prototypes = draw.integers(0, 256, (len(counts), size, size, 3))

    def images(labels: np.ndarray) -> np.ndarray:
        noisy = prototypes[labels] + draw.normal(0, 60, (len(labels), size, size, 3))
        return np.clip(noisy, 0, 255).astype(np.uint8)

    train, test = np.repeat(classes, counts), np.repeat(classes, 11)
    return Dataset(
        name="tiny",
        train_images=images(train),
        train_labels=train,
        test_images=images(test),
        test_labels=test,
        num_classes=len(counts),
        mean=(0.5, 0.4, 0.5),
        std=(0.25, 0.3, 0.25),
        many_above=15,
        few_below=6,
        source="made by the tests",
    )
