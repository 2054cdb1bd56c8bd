"""Models, by name, under one contract.

`create_model(name, num_classes)` returns a Flax linen module that is called as

    variables = model.init(rng, images, train=False)
    logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    logits = model.apply(variables, images, train=False)

with `images` float[B, H, W, C], already normalised, and `logits` float32[B, num_classes]. Batch
statistics, where a model has them, are the collection "batch_stats", of which a step keeps the
share BATCH_NORM_MOMENTUM. With `dtype=jnp.bfloat16` the layers compute in bfloat16; parameters,
statistics and logits stay float32.

Every model is a classifier on top of features, and both halves can be called alone, for methods
that treat them differently:

    features = model.apply(variables, images, train=False, method="embed")      # float[B, D]
    logits = model.apply(variables, features, method="classify")

The classifier's parameters are `params["head"]`, by `classifier=`:

    linear       kernel [D, num_classes], bias [num_classes]
    normalised   kernel alone; logits are cosines
    scaled       kernel, bias and scales [num_classes], one factor per class on the logits
    cosine       kernel alone; logits are 25 times the cosines

PRETRAINED names transformers that are made to start from weights (clip.py), of which an `adapter=`
says what is added to their blocks (adapters.py).
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from experiments.host.errors import flag
from experiments.models.adapters import ADAPTERS
from experiments.models.bottleneck import (
    BottleneckResNet,
    resnet14_bottleneck,
    resnet50,
    resnet152,
    resnext50_32x4d,
)
from experiments.models.clip import SIZES, ImageTower, image_tower
from experiments.models.heads import CLASSIFIERS
from experiments.models.mlp import MLP, mlp
from experiments.models.resnet import (
    BATCH_NORM_MOMENTUM,
    ResNet,
    resnet8,
    resnet20,
    resnet32,
    resnet32_gn,
    resnet34_3x3,
)
from experiments.models.vit import ViT, vit_ti4

__all__ = [
    "ADAPTERS", "BATCH_NORM_MOMENTUM", "CLASSIFIERS", "CONVOLUTIONAL", "MLP", "MODELS",
    "PRETRAINED", "WITHOUT_BATCH_NORM", "WITHOUT_CONVOLUTIONS", "BottleneckResNet", "ImageTower",
    "ResNet", "ViT", "create_model",
]  # fmt: skip

# Each value is called as factory(num_classes, dtype=..., axis_name=..., classifier=...).
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet34_3x3": resnet34_3x3,
    "mlp": mlp,
    "resnet32_gn": resnet32_gn,
    "vit_ti4": vit_ti4,
    "resnet14_bottleneck": resnet14_bottleneck,
    "resnet50": resnet50,
    "resnet152": resnet152,
    "resnext50_32x4d": resnext50_32x4d,
}
# The same, with adapter= and adapter_size=; none of them normalises by statistics of a batch.
PRETRAINED: dict[str, Callable[..., nn.Module]] = {name: image_tower(name) for name in SIZES}
# Models that normalise by no statistics of a batch.
WITHOUT_BATCH_NORM = ("mlp", "resnet32_gn", "vit_ti4")
# Models of matrix products; of convolutions XLA:CPU runs each on one core, however many there are.
WITHOUT_CONVOLUTIONS = ("mlp", "vit_ti4")
CONVOLUTIONAL = frozenset(MODELS) - {*WITHOUT_CONVOLUTIONS}


def create_model(
    name: str,
    num_classes: int,
    *,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    classifier: str = "linear",
    remat: bool = False,
    adapter: str = "full",
    adapter_size: int = 0,
) -> nn.Module:
    """Build the model called `name` (a key of MODELS or PRETRAINED).

    Args:
      name: one of MODELS or PRETRAINED.
      num_classes: number of logits, at least 1.
      dtype: what the layers compute in; parameters, statistics and logits stay float32.
      axis_name: the pmap or shard_map axis over which BatchNorm takes its statistics. None is
        right for one device and for jit with a sharded batch (there they are global already).
      classifier: kind of the last layer, one of CLASSIFIERS.
      remat: keep only what enters a block and compute the rest again in the backward pass. Less
        memory for one more forward pass; variables, outputs and gradients stay the same.
      adapter: what is added to the blocks of a model of PRETRAINED, a key of ADAPTERS; "full" and
        "linear" add nothing.
      adapter_size: its width; 0 is LIFT's for so many classes.

    Returns:
      An unbound linen module that keeps the contract above.

    Raises:
      ValueError: the name or the classifier is not known, num_classes < 1, or remat for a model
        that has no blocks, or an adapter for one that takes none.

    Example:
      >>> create_model("mlp", 10).num_classes
      10
    """
    known = {**MODELS, **PRETRAINED}
    if name not in known:
        raise ValueError(f"unknown model {name!r}: the known ones are {', '.join(known)}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least 1 class")
    if classifier not in CLASSIFIERS:
        raise ValueError(
            f"unknown classifier {classifier!r}: the known ones are {', '.join(CLASSIFIERS)}"
        )
    more = {}
    if name in PRETRAINED:
        if adapter not in ADAPTERS:
            raise ValueError(
                f"unknown adapter {adapter!r}: the known ones are {', '.join(ADAPTERS)}"
            )
        more = {"adapter": adapter, "adapter_size": adapter_size}
    elif adapter != "full":
        raise ValueError(f"model {name!r} takes no adapter, and {adapter!r} was asked for")
    model = known[name](
        num_classes, dtype=dtype, axis_name=axis_name, classifier=classifier, **more
    )
    if not remat:
        return model
    if not hasattr(model, "remat"):
        raise ValueError(
            f"model {name!r} has no blocks to compute again: leave {flag('remat')} out"
        )
    return model.clone(remat=True)
