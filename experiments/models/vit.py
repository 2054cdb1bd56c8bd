"""A Vision Transformer for small images: LayerNorm alone, so that no row depends on another."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from experiments.models.convolution import conv_general_dilated
from experiments.models.heads import make_head
from experiments.models.resnet import maybe_remat

_NORMAL = nn.initializers.normal(0.02)


def patches(
    images: jax.Array, width: int, side: int, dtype: DTypeLike, *, bias: bool = True
) -> jax.Array:
    """Images [B, H, W, C] to [B, (H / side) * (W / side), width]: inside a module's call."""
    x = nn.Conv(
        width,
        (side, side),
        (side, side),
        padding=((0, 0), (0, 0)),
        use_bias=bias,
        kernel_init=_NORMAL,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name="projection",
    )(images)
    return x.reshape(x.shape[0], -1, width)


class Tokens(nn.Module):
    """Each patch a linear map of its pixels, plus a learnt vector for where it lies.

    Attributes:
      width: channels of a token.
      patch: side of a patch in pixels.
      dtype: what the layers compute in.
    """

    width: int
    patch: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] to tokens [B, (H / patch) * (W / patch), width]."""
        x = patches(images, self.width, self.patch, self.dtype)
        return x + self.param("positions", _NORMAL, x.shape[1:]).astype(x.dtype)[None]


class EncoderBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)) with GELU between its two layers.

    Attributes:
      heads: attention heads, a divisor of the width.
      mlp_ratio: hidden width of the MLP over the width.
      dtype: what the layers compute in.
    """

    heads: int
    mlp_ratio: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] to [B, T, D]."""
        width = x.shape[-1]

        def dense(size: int, name: str) -> nn.Dense:
            return nn.Dense(size, kernel_init=_NORMAL, dtype=self.dtype, name=name)

        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            dtype=self.dtype,
            kernel_init=_NORMAL,
            force_fp32_for_softmax=True,
            name="attention",
        )
        x = x + attention(y)
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(dense(self.mlp_ratio * width, "hidden")(y), approximate=False)
        return x + dense(width, "out")(y)


class ViT(nn.Module):
    """Patches as tokens, learnt positions, encoder blocks, LayerNorm, mean over tokens, classifier.

    No class token and no dropout. Kernels and positions are normal with deviation 0.02, biases
    zero (Touvron et al. 2021).

    Attributes:
      num_classes: number of logits.
      depth: number of blocks.
      width: channels of a token.
      heads: attention heads of a block.
      patch: side of a patch in pixels, a divisor of the images' sides.
      mlp_ratio: see EncoderBlock.
      dtype: what the layers compute in; the classifier computes in at least float32.
      classifier: kind of the last layer, one of heads.CLASSIFIERS.
      remat: compute the activations inside a block again in the backward pass.
    """

    num_classes: int
    depth: int
    width: int
    heads: int
    patch: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    classifier: str = "linear"
    remat: bool = False

    def setup(self) -> None:
        self.tokens = Tokens(self.width, self.patch, self.dtype)
        block_type = maybe_remat(EncoderBlock, self)
        self.blocks = [
            block_type(self.heads, self.mlp_ratio, self.dtype) for _ in range(self.depth)
        ]
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.head = make_head(
            self.classifier, self.num_classes, _NORMAL, nn.initializers.zeros, self.dtype
        )

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, C] to features [B, width]."""
        del train  # nothing here behaves differently in training
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(axis=1, dtype=jnp.promote_types(self.dtype, jnp.float32))

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [B, width] to logits [B, num_classes]."""
        return self.head(features)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.classify(self.embed(images, train))


def vit_ti4(
    num_classes: int,
    *,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    classifier: str = "linear",
) -> ViT:
    """ViT-Tiny with patches of 4x4: 5,362,378 parameters at 32x32 pixels and 10 classes.

    `axis_name` is ignored, as there is no BatchNorm.
    """
    del axis_name
    return ViT(
        num_classes, depth=12, width=192, heads=3, patch=4, dtype=dtype, classifier=classifier
    )
