"""ImageNet's residual networks of bottleneck blocks: ResNet-50, ResNet-152 and ResNeXt-50 (32x4d).

The arrangement is torchvision's, so that its weights fit (pretrained.py beside this): the stride
lies in the 3x3 convolution, which He et al. (2016) had in the 1x1 before it, and every convolution
is padded alike on all sides. BatchNorm is as in experiments/models/resnet.py.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from experiments.models.heads import make_head
from experiments.models.resnet import (
    KAIMING_FAN_OUT,
    TORCH_DEFAULT,
    batch_norm,
    conv_layer,
    maybe_remat,
    symmetric_uniform,
)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of every 3x3 window, stride 2, padded by 1: [B, H, W, C] to [B, H/2, W/2, C].

    As `nn.max_pool` gives it, gradients too: that of a window goes to the first of its largest.
    XLA's own gradient keeps the four coordinates of every pixel, each as large as x, from the first
    backward pass of a step to the last, and has no deterministic form on a GPU; of this one the
    number of the largest is kept, a byte a window.
    """
    rows, columns = (-(-size // 2) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    window = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    largest, which = jax.lax.stop_gradient(window[0]), jnp.zeros(window[0].shape, jnp.uint8)
    for number, one in enumerate(jax.lax.stop_gradient(window[1:]), start=1):
        # Not a number is larger than any.
        larger = (one > largest) | (jnp.isnan(one) & ~jnp.isnan(largest))
        which = jnp.where(larger, jnp.uint8(number), which)
        largest = jnp.where(larger, one, largest)
    found = window[0]
    for number, one in enumerate(window[1:], start=1):
        found = jnp.where(which == number, one, found)
    return found


class BottleneckBlock(nn.Module):
    """relu(y + shortcut(x)), where y is x through convolutions of 1x1, 3x3 and 1x1.

    BatchNorm follows each of them, ReLU the first two. Where the shape changes, the shortcut is a
    1x1 convolution and BatchNorm.

    Attributes:
      width: output channels.
      inner: channels of the 3x3 convolution.
      stride: 1 or 2, of the 3x3 convolution.
      groups: groups of the 3x3 convolution.
      dtype: what the layers compute in.
      axis_name: the axis over which BatchNorm takes its statistics, or None.
    """

    width: int
    inner: int
    stride: int
    groups: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), width]."""

        def conv(width: int, size: int, stride: int, name: str, groups: int = 1) -> nn.Conv:
            return conv_layer(width, size, stride, KAIMING_FAN_OUT, self.dtype, name, groups)

        def norm(y: jax.Array, name: str) -> jax.Array:
            layer = batch_norm(self.dtype, self.axis_name, name)
            normalised: jax.Array = layer(y, use_running_average=not train)
            return normalised

        y = nn.relu(norm(conv(self.inner, 1, 1, "conv1")(x), "norm1"))
        y = nn.relu(norm(conv(self.inner, 3, self.stride, "conv2", self.groups)(y), "norm2"))
        y = norm(conv(self.width, 1, 1, "conv3")(y), "norm3")
        if self.stride != 1 or x.shape[-1] != self.width:
            x = norm(conv(self.width, 1, self.stride, "conv_shortcut")(x), "norm_shortcut")
        return nn.relu(y + x)


class BottleneckResNet(nn.Module):
    """A 7x7 stem, max-pool, stages of bottleneck blocks, a global mean, a classifier.

    The stem, the pool and every stage but the first halve height and width.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage.
      widths: output channels per stage.
      inner_widths: channels of the 3x3 convolutions per stage.
      stem_width: channels of the stem.
      groups: groups of the 3x3 convolutions.
      dtype: what the layers compute in; the classifier computes in at least float32.
      axis_name: the axis over which BatchNorm takes its statistics, or None.
      classifier: kind of the last layer, one of heads.CLASSIFIERS.
      remat: compute the activations inside a block again in the backward pass: less memory, for
        one more forward pass.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    widths: Sequence[int] = (256, 512, 1024, 2048)
    inner_widths: Sequence[int] = (64, 128, 256, 512)
    stem_width: int = 64
    groups: int = 1
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    classifier: str = "linear"
    remat: bool = False

    def setup(self) -> None:
        self.stem = conv_layer(self.stem_width, 7, 2, KAIMING_FAN_OUT, self.dtype)
        self.stem_norm = batch_norm(self.dtype, self.axis_name)
        block_type = maybe_remat(BottleneckBlock, self, static_argnums=(2,))  # `train`
        stages = zip(self.stage_sizes, self.widths, self.inner_widths, strict=True)
        self.blocks = [
            block_type(
                width,
                inner,
                2 if stage > 0 and block == 0 else 1,
                self.groups,
                self.dtype,
                self.axis_name,
            )
            for stage, (size, width, inner) in enumerate(stages)
            for block in range(size)
        ]
        self.head = make_head(
            self.classifier,
            self.num_classes,
            TORCH_DEFAULT,
            symmetric_uniform(self.widths[-1] ** -0.5),
            self.dtype,
        )

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, C] to features [B, widths[-1]]."""
        x = nn.relu(self.stem_norm(self.stem(images), use_running_average=not train))
        x = max_pool(x)
        for block in self.blocks:
            x = block(x, train)
        return x.mean(axis=(1, 2), dtype=jnp.promote_types(self.dtype, jnp.float32))

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [B, widths[-1]] to logits [B, num_classes]."""
        return self.head(features)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.classify(self.embed(images, train))


def resnet14_bottleneck(num_classes: int, **options: Any) -> BottleneckResNet:
    """One narrow block per stage: a quick stand-in for tests, on images of 32x32 and more."""
    return BottleneckResNet(
        num_classes,
        stage_sizes=(1, 1, 1, 1),
        widths=(32, 64, 128, 256),
        inner_widths=(8, 16, 32, 64),
        stem_width=8,
        **options,
    )


def resnet50(num_classes: int, **options: Any) -> BottleneckResNet:
    """ResNet-50 (He et al. 2016): 25,557,032 parameters at 1000 classes."""
    return BottleneckResNet(num_classes, stage_sizes=(3, 4, 6, 3), **options)


def resnet152(num_classes: int, **options: Any) -> BottleneckResNet:
    """ResNet-152 (He et al. 2016): 60,192,808 parameters at 1000 classes."""
    return BottleneckResNet(num_classes, stage_sizes=(3, 8, 36, 3), **options)


def resnext50_32x4d(num_classes: int, **options: Any) -> BottleneckResNet:
    """ResNeXt-50 (Xie et al. 2017), 32 groups of 4: 25,028,904 parameters at 1000 classes."""
    return BottleneckResNet(
        num_classes,
        stage_sizes=(3, 4, 6, 3),
        inner_widths=(128, 256, 512, 1024),
        groups=32,
        **options,
    )
