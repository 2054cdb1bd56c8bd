"""Residual networks of the long-tail papers: CIFAR type (20, 32) and ResNet-34 with a 3x3 stem.

All of them are one `ResNet`: a 3x3 convolution, stages of basic blocks, a global average and a
linear classifier. They differ in widths, depths, shortcut and initialisation.

Two things follow PyTorch because the published numbers do: padding is one pixel on each side also
where the stride is 2 (Flax's "SAME" would pad only the far side), and BatchNorm keeps 0.9 of the
old statistics (momentum 0.9 here, 0.1 there) with epsilon 1e-5. One thing does not: the running
variance in Flax is the biased one (divided by n), in PyTorch the unbiased one (by n - 1), where
n = B * H * W. It matters in evaluation only, by a factor n / (n - 1): 1.001 for the last stage of
ResNet-34 at batch 64, less elsewhere.

With norm="group" the same networks have GroupNorm (Wu and He 2018) and with it no batch statistics:
no row depends on another.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from experiments.models.convolution import conv_general_dilated
from experiments.models.heads import make_head

# The share of the old running statistics that a step keeps, in every model here.
BATCH_NORM_MOMENTUM = 0.9
_KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for linear and convolution layers, U(-b, b) with b = 1 / sqrt(fan_in).
TORCH_DEFAULT = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def symmetric_uniform(bound: float) -> Callable[..., jax.Array]:
    """U(-bound, bound): PyTorch's bias default, whose bound the bias's own shape cannot tell."""

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)), the first convolution strided.

    Attributes:
      width: output channels.
      stride: 1 or 2.
      shortcut: where the shape changes, "pad" (option A: every stride-th pixel, zero channels on
        both sides) or "project" (option B: 1x1 convolution and BatchNorm).
      kernel_init: initialiser of every convolution.
      dtype: what the layers compute in.
      axis_name: the axis over which BatchNorm takes its statistics, or None.
      norm: "batch", or "group" for groups of an eighth of the channels.
    """

    width: int
    stride: int
    shortcut: Literal["pad", "project"]
    kernel_init: Initializer
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    norm: Literal["batch", "group"] = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), width]."""

        def conv(size: int, stride: int, name: str) -> nn.Conv:
            return conv_layer(self.width, size, stride, self.kernel_init, self.dtype, name)

        def norm(y: jax.Array, name: str) -> jax.Array:
            return _apply_norm(_norm(self.norm, self.dtype, self.axis_name, name), y, train)

        y = nn.relu(norm(conv(3, self.stride, "conv1")(x), "norm1"))
        y = norm(conv(3, 1, "conv2")(y), "norm2")
        if self.stride != 1 or x.shape[-1] != self.width:
            if self.shortcut == "pad":
                x = pad_shortcut(x, self.width, self.stride)
            else:
                x = norm(conv(1, self.stride, "conv_shortcut")(x), "norm_shortcut")
        return nn.relu(y + x)


def pad_shortcut(x: jax.Array, width: int, stride: int) -> jax.Array:
    """Option A: x[:, ::stride, ::stride] with zero channels added on both sides up to `width`."""
    missing = width - x.shape[-1]
    sides = (missing // 2, missing - missing // 2)
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), sides))


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (stride 2 between stages), a global mean, a classifier.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage.
      widths: channels per stage; the stem has widths[0].
      shortcut: see BasicBlock.
      conv_init: initialiser of the blocks' convolutions.
      stem_init: initialiser of the stem's convolution.
      head_init: initialiser of the classifier's kernel; its bias is U(+-1/sqrt(widths[-1])).
      dtype: what the layers compute in; the classifier computes in at least float32.
      axis_name: the axis over which BatchNorm takes its statistics, or None.
      classifier: kind of the last layer, one of heads.CLASSIFIERS.
      norm: see BasicBlock.
      remat: compute the activations inside a block again in the backward pass: less memory, for
        one more forward pass.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    widths: Sequence[int]
    shortcut: Literal["pad", "project"]
    conv_init: Initializer
    stem_init: Initializer
    head_init: Initializer
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    classifier: str = "linear"
    norm: Literal["batch", "group"] = "batch"
    remat: bool = False

    def setup(self) -> None:
        self.stem = conv_layer(self.widths[0], 3, 1, self.stem_init, self.dtype)
        self.stem_norm = _norm(self.norm, self.dtype, self.axis_name)
        block_type = maybe_remat(BasicBlock, self, static_argnums=(2,))  # `train`, after self, x
        self.blocks = [
            block_type(
                width,
                2 if stage > 0 and block == 0 else 1,
                self.shortcut,
                self.conv_init,
                self.dtype,
                self.axis_name,
                self.norm,
            )
            for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True))
            for block in range(size)
        ]
        self.head = make_head(
            self.classifier,
            self.num_classes,
            self.head_init,
            symmetric_uniform(self.widths[-1] ** -0.5),
            self.dtype,
        )

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, C] to features [B, widths[-1]]."""
        x = nn.relu(_apply_norm(self.stem_norm, self.stem(images), train))
        for block in self.blocks:
            x = block(x, train)
        return x.mean(axis=(1, 2), dtype=_at_least_float32(self.dtype))

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [B, widths[-1]] to logits [B, num_classes]."""
        return self.head(features)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.classify(self.embed(images, train))


def maybe_remat(block: type[nn.Module], model: nn.Module, **options: Any) -> Callable[..., Any]:
    """`nn.remat(block, **options)` if `model.remat`; not in `init`, where it would draw anew."""
    again: bool = model.remat and not model.is_initializing()
    return nn.remat(block, **options) if again else block


def _at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def conv_layer(
    width: int,
    size: int,
    stride: int,
    kernel_init: Initializer,
    dtype: DTypeLike,
    name: str | None = None,
    groups: int = 1,
) -> nn.Conv:
    """Convolution without bias; the same padding on all four sides whatever the stride."""
    side = (size // 2, size // 2)
    return nn.Conv(
        width,
        (size, size),
        (stride, stride),
        (side, side),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def batch_norm(dtype: DTypeLike, axis_name: str | None, name: str | None = None) -> nn.BatchNorm:
    return nn.BatchNorm(
        momentum=BATCH_NORM_MOMENTUM, epsilon=1e-5, dtype=dtype, axis_name=axis_name, name=name
    )


def _norm(
    kind: str, dtype: DTypeLike, axis_name: str | None, name: str | None = None
) -> nn.BatchNorm | nn.GroupNorm:
    if kind == "batch":
        return batch_norm(dtype, axis_name, name)
    if kind == "group":
        return nn.GroupNorm(num_groups=8, epsilon=1e-5, dtype=dtype, name=name)
    raise ValueError(f'norm is {kind!r}: choose "batch" or "group"')


def _apply_norm(layer: nn.BatchNorm | nn.GroupNorm, x: jax.Array, train: bool) -> jax.Array:
    if isinstance(layer, nn.BatchNorm):
        return layer(x, use_running_average=not train)
    return layer(x)


def resnet8(num_classes: int, **options: Any) -> ResNet:
    """The CIFAR type with one block per stage: a quick stand-in for tests."""
    return _cifar_type(1, num_classes, **options)


def resnet20(num_classes: int, **options: Any) -> ResNet:
    """ResNet-20, CIFAR type (He et al. 2016, section 4.2)."""
    return _cifar_type(3, num_classes, **options)


def resnet32(num_classes: int, **options: Any) -> ResNet:
    """ResNet-32, CIFAR type, as LDAM and its successors use it: 470,004 parameters at 100 classes.

    Every kernel is Kaiming normal (fan in, gain sqrt 2), the classifier's included.
    """
    return _cifar_type(5, num_classes, **options)


def resnet32_gn(num_classes: int, *, axis_name: str | None = None, **options: Any) -> ResNet:
    """ResNet-32, CIFAR type, with GroupNorm; `axis_name` is ignored, as there is no BatchNorm."""
    del axis_name
    return _cifar_type(5, num_classes, norm="group", **options)


def _cifar_type(blocks: int, num_classes: int, **options: Any) -> ResNet:
    return ResNet(
        num_classes,
        stage_sizes=(blocks,) * 3,
        widths=(16, 32, 64),
        shortcut="pad",
        conv_init=_KAIMING_FAN_IN,
        stem_init=_KAIMING_FAN_IN,
        head_init=_KAIMING_FAN_IN,
        **options,
    )


def resnet34_3x3(num_classes: int, **options: Any) -> ResNet:
    """ResNet-34 for small images: 3x3 stem, no max-pool; 21,328,292 parameters at 100 classes.

    The network of the ImbSAM release, which the paper calls ResNet-32. Blocks are Kaiming normal
    (fan out) as in torchvision; the replaced stem and classifier have PyTorch's defaults.
    """
    return ResNet(
        num_classes,
        stage_sizes=(3, 4, 6, 3),
        widths=(64, 128, 256, 512),
        shortcut="project",
        conv_init=KAIMING_FAN_OUT,
        stem_init=TORCH_DEFAULT,
        head_init=TORCH_DEFAULT,
        **options,
    )
