"""CLIP's image and text towers, and the ViT of ImageNet-21k: one definition, by size.

The image tower keeps the contract of `experiments.models`: its features are those before CLIP's
projection, and its classifier is `params["head"]`. Adapters (adapters.py) are part of its blocks.
Weights come from files (clip_weights.py).

Radford et al., ICML 2021; Dosovitskiy et al., ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from experiments.models.adapters import AdaptFormer, LowRank, Prompts, default_size
from experiments.models.heads import make_head
from experiments.models.resnet import maybe_remat
from experiments.models.vit import patches

_NORMAL = nn.initializers.normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
    """`x sigmoid(1.702 x)`, of OpenAI's models."""
    return x * nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """`x Phi(x)`."""
    return nn.gelu(x, approximate=False)


class Text(NamedTuple):
    """Of a text tower: vocabulary, tokens of a text, width, heads, blocks, channels of the joint
    space.
    """

    vocabulary: int
    length: int
    width: int
    heads: int
    depth: int
    joint: int


class Size(NamedTuple):
    """Of a model.

    Attributes:
      width, heads, depth, patch: of the image tower.
      image: side of the images that it was trained on, in pixels.
      text: of the text tower beside it; None for a ViT, which has no norm before its blocks and a
        bias in its patches.
      quick: whether its blocks have quick_gelu.
    """

    width: int
    heads: int
    depth: int
    patch: int
    image: int
    text: Text | None
    quick: bool = True

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        return quick_gelu if self.quick else gelu

    @property
    def epsilon(self) -> float:
        return 1e-5 if self.text else 1e-6


_BASE, _LARGE = (49408, 77, 512, 8, 12, 512), (49408, 77, 768, 12, 12, 768)
_OPENAI = {
    "clip_vit_b16": Size(768, 12, 12, 16, 224, Text(*_BASE)),
    "clip_vit_b32": Size(768, 12, 12, 32, 224, Text(*_BASE)),
    "clip_vit_l14": Size(1024, 16, 24, 14, 224, Text(*_LARGE)),
    "clip_vit_tiny": Size(64, 2, 2, 8, 32, Text(49408, 77, 32, 2, 2, 32)),
}
# open_clip's own models have the exact GELU, and nothing in a file says so.
SIZES: dict[str, Size] = {
    **_OPENAI,
    **{f"{name}_gelu": size._replace(quick=False) for name, size in _OPENAI.items()},
    "vit_b16": Size(768, 12, 12, 16, 224, None, quick=False),
    "vit_tiny": Size(64, 2, 2, 8, 32, None, quick=False),
}


class Attention(nn.Module):
    """Attention of several heads, over all tokens or (causal) those up to one's own.

    Attributes:
      heads: a divisor of the width.
      causal: see above.
      rank: of what lora adds to query and value; 0 adds nothing.
      dtype: what it computes in; the softmax in at least float32.
    """

    heads: int
    causal: bool
    rank: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] to [B, T, D]."""
        batch, tokens, width = x.shape

        def part(name: str) -> jax.Array:
            y = nn.Dense(width, kernel_init=_NORMAL, dtype=self.dtype, name=name)(x)
            if self.rank and name != "key":
                y = y + LowRank(self.rank, self.dtype, name=f"adapter_{name}")(x)
            return y.reshape(batch, tokens, self.heads, width // self.heads)

        query, key, value = part("query"), part("key"), part("value")
        scores = jnp.einsum("bthc,bshc->bhts", query, key) / (width // self.heads) ** 0.5
        scores = scores.astype(jnp.promote_types(self.dtype, jnp.float32))
        if self.causal:
            seen = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
            scores = jnp.where(seen, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        y = jnp.einsum("bhts,bshc->bthc", weights, value).reshape(batch, tokens, width)
        return nn.Dense(width, kernel_init=_NORMAL, dtype=self.dtype, name="out")(y)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), with an adapter where there is one.

    Attributes:
      heads: of the attention.
      activation: between the two layers of the MLP, which are four times as wide in the middle.
      epsilon: of the LayerNorms.
      causal: of the attention.
      adapter: a key of adapters.ADAPTERS.
      size: its width.
      patch: see `adapters.Prompts`.
      dtype: what it computes in.
    """

    heads: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float = 1e-5
    causal: bool = False
    adapter: str = "linear"
    size: int = 0
    patch: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] to [B, T, D]."""
        tokens, width = x.shape[1:]

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)

        def dense(size: int, name: str) -> nn.Dense:
            return nn.Dense(size, kernel_init=_NORMAL, dtype=self.dtype, name=name)

        if self.adapter == "vpt-deep":
            x = Prompts(self.size, self.patch, self.dtype, name="adapter_prompts")(x)
        rank = self.size if self.adapter == "lora" else 0
        attention = Attention(self.heads, self.causal, rank, self.dtype, name="attention")
        x = x + attention(norm("norm1")(x))
        y = dense(width, "out")(self.activation(dense(4 * width, "hidden")(norm("norm2")(x))))
        if self.adapter == "adaptformer":
            y = y + AdaptFormer(self.size, self.epsilon, self.dtype, name="adapter")(x)
        return (x + y)[:, :tokens]


class Tokens(nn.Module):
    """A class token, then each patch a linear map of its pixels; plus a vector for each place.

    Attributes:
      width: channels of a token.
      patch: side of a patch in pixels.
      bias: whether the map of the pixels has one.
      dtype: what it computes in.
    """

    width: int
    patch: int
    bias: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] to tokens [B, 1 + (H / patch) * (W / patch), width]."""
        x = patches(images, self.width, self.patch, self.dtype, bias=self.bias)
        first = self.param("class_token", _NORMAL, (self.width,)).astype(x.dtype)[None, None]
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
        return x + self.param("positions", _NORMAL, x.shape[1:]).astype(x.dtype)[None]


class ImageTower(nn.Module):
    """Tokens, LayerNorm (of CLIP), blocks, LayerNorm of the class token, classifier.

    Images of one pixel's height are features that were computed before (data/features.py), of the
    image itself in their first pixel: they go to the classifier as they are.

    Attributes:
      num_classes: number of logits.
      size: of the model.
      adapter: a key of adapters.ADAPTERS.
      adapter_size: its width, 0 for LIFT's.
      dtype: what the layers compute in; the classifier computes in at least float32.
      classifier: kind of the last layer, one of heads.CLASSIFIERS.
      remat: compute the activations inside a block again in the backward pass.
    """

    num_classes: int
    size: Size
    adapter: str = "full"
    adapter_size: int = 0
    dtype: DTypeLike = jnp.float32
    classifier: str = "linear"
    remat: bool = False

    def setup(self) -> None:
        size, of = self.size, self.dtype
        width = self.adapter_size or default_size(self.adapter, self.num_classes, size.depth)
        clip = size.text is not None
        self.tokens = Tokens(size.width, size.patch, not clip, of)
        if clip:
            self.norm_pre = nn.LayerNorm(epsilon=size.epsilon, dtype=of)
        block = maybe_remat(Block, self)
        self.blocks = [
            block(
                size.heads, size.activation, size.epsilon, False, self.adapter, width,
                size.patch, of,
            )
            for _ in range(size.depth)
        ]  # fmt: skip
        self.norm = nn.LayerNorm(epsilon=size.epsilon, dtype=of)
        self.head = make_head(self.classifier, self.num_classes, _NORMAL, nn.initializers.zeros, of)

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, C] to features [B, width]."""
        del train  # nothing here behaves differently in training
        if images.shape[1] == 1:
            return images[:, 0, 0]
        x = self.tokens(images)
        if self.size.text is not None:
            x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0]).astype(jnp.promote_types(self.dtype, jnp.float32))

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [B, width] to logits [B, num_classes]."""
        return self.head(features)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.classify(self.embed(images, train))


class TextTower(nn.Module):
    """Tokens with a vector for each place, causal blocks, LayerNorm of the last token, projection.

    Attributes:
      size: of the model beside which it stands; size.text is its own.
      dtype: what it computes in.
    """

    size: Size
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens int[B, T], of which the largest ends the text, to features [B, joint]."""
        text = self.size.text
        assert text is not None
        table = self.param("embedding", _NORMAL, (text.vocabulary, text.width))
        places = self.param("positions", nn.initializers.normal(0.01), (text.length, text.width))
        x = (table[tokens] + places[None, : tokens.shape[1]]).astype(self.dtype)
        for k in range(text.depth):
            x = Block(
                text.heads, self.size.activation, causal=True, dtype=self.dtype, name=f"blocks_{k}"
            )(x)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        last = x[jnp.arange(x.shape[0]), tokens.argmax(axis=1)]
        joined = nn.Dense(
            text.joint, use_bias=False, kernel_init=_NORMAL, dtype=self.dtype, name="projection"
        )(last)
        return joined.astype(jnp.promote_types(self.dtype, jnp.float32))


def image_tower(name: str) -> Callable[..., ImageTower]:
    """The factory of `experiments.models.PRETRAINED` of that size."""

    def make(num_classes: int, *, axis_name: str | None = None, **options: Any) -> ImageTower:
        del axis_name  # there is no batch normalisation
        return ImageTower(num_classes, SIZES[name], **options)

    return make
