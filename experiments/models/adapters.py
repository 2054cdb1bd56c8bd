"""What is added to the blocks of a frozen transformer, and which of its leaves are trained.

    adaptformer  beside the MLP of each block a narrow one, of the same input
    lora         a product of two narrow matrices added to those of query and value
    vpt-deep     tokens of its own beside the others of each block
    bias         nothing added: the biases of the blocks are trained
    layernorm    nothing added: the LayerNorms of the blocks
    linear       nothing added: the classifier alone
    full         nothing added: everything is trained

The classifier is always trained. What is added lies in modules whose names begin with "adapter".
As LIFT's code has it (Shi et al., ICML 2024), but for `full`, which there is the blocks alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


class Adapter(NamedTuple):
    """One way to train less than everything.

    Attributes:
      trained: which leaves are, a key of `step.state.TRAINED`.
      sized: whether it has a width (the rank of lora, the tokens of vpt-deep).
    """

    trained: str
    sized: bool = False


ADAPTERS = {
    "adaptformer": Adapter("adapter", sized=True),
    "lora": Adapter("adapter", sized=True),
    "vpt-deep": Adapter("adapter", sized=True),
    "bias": Adapter("bias"),
    "layernorm": Adapter("norm"),
    "linear": Adapter("head"),
    "full": Adapter("all"),
}
_PROMPTS = 10


def default_size(adapter: str, num_classes: int, depth: int) -> int:
    """LIFT's width: `2^max(0, floor(log2(C / (2 depth))))`, and ten tokens for vpt-deep.

    >>> [default_size("adaptformer", classes, 12) for classes in (10, 100, 365, 1000, 8142)]
    [1, 4, 8, 32, 256]
    """
    if adapter == "vpt-deep":
        return _PROMPTS
    return int(2 ** max(0, math.floor(math.log2(num_classes / (2 * depth)))))


def _kaiming(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Kaiming normal with a = sqrt(5): deviation 1 / sqrt(3 fan-in)."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(3 * shape[0])


class AdaptFormer(nn.Module):
    """`s up(relu(down(LN(x))))`: 0 at first, as up is; one learnt factor s, 1 at first.

    By LIFT's code, and its count of parameters: down is drawn normally and s is learnt. Where the
    method is told, down is drawn uniformly and s is fixed.

    Attributes:
      size: channels in the middle.
      epsilon: of the LayerNorm.
      dtype: what it computes in.
    """

    size: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] to [B, T, D]."""
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        y = nn.relu(nn.Dense(self.size, kernel_init=_kaiming, dtype=self.dtype, name="down")(y))
        zeros = nn.initializers.zeros
        y = nn.Dense(x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="up")(y)
        scale = self.param("scale", nn.initializers.ones, (1,))
        return y * scale.astype(y.dtype)[None, None]


class LowRank(nn.Module):
    """`x A B / r` of rank r: 0 at first, as B is.

    Attributes:
      size: the rank.
      dtype: what it computes in.
    """

    size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] to [B, T, D]."""
        width, bound = x.shape[-1], 1 / math.sqrt(self.size)

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        down = self.param("down", uniform, (width, self.size)).astype(self.dtype)
        up = self.param("up", nn.initializers.zeros, (self.size, width)).astype(self.dtype)
        return (x @ down) @ up / self.size


class Prompts(nn.Module):
    """Learnt tokens after those of x.

    Attributes:
      size: how many.
      patch: side of a patch in pixels; with the width it bounds what is drawn.
      dtype: what it computes in.
    """

    size: int
    patch: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] to [B, T + size, D]."""
        bound = math.sqrt(6 / (3 * self.patch**2 + x.shape[-1]))

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        tokens = self.param("tokens", uniform, (self.size, x.shape[-1])).astype(x.dtype)
        tokens = jnp.broadcast_to(tokens[None], (x.shape[0], *tokens.shape))
        return jnp.concatenate([x, tokens], axis=1)
