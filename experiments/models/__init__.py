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
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from experiments.models.bottleneck import (
    BottleneckResNet,
    resnet14_bottleneck,
    resnet50,
    resnet152,
    resnext50_32x4d,
)
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
    "BATCH_NORM_MOMENTUM", "CLASSIFIERS", "CONVOLUTIONAL", "MLP", "MODELS", "WITHOUT_BATCH_NORM",
    "BottleneckResNet", "ResNet", "ViT", "create_model",
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
# Models that normalise by no statistics of a batch.
WITHOUT_BATCH_NORM = ("mlp", "resnet32_gn", "vit_ti4")
# Which XLA:CPU runs on one core, however many there are.
CONVOLUTIONAL = frozenset(MODELS) - {"mlp", "vit_ti4"}


def create_model(
    name: str,
    num_classes: int,
    *,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    classifier: str = "linear",
    remat: bool = False,
) -> nn.Module:
    """Build the model called `name` (a key of MODELS).

    Args:
      name: one of MODELS.
      num_classes: number of logits, at least 1.
      dtype: what the layers compute in; parameters, statistics and logits stay float32.
      axis_name: the pmap or shard_map axis over which BatchNorm takes its statistics. None is
        right for one device and for jit with a sharded batch (there they are global already).
      classifier: kind of the last layer, one of CLASSIFIERS.
      remat: keep only what enters a block and compute the rest again in the backward pass. Less
        memory for one more forward pass; variables, outputs and gradients stay the same.

    Returns:
      An unbound linen module that keeps the contract above.

    Raises:
      ValueError: the name or the classifier is not known, num_classes < 1, or remat for a model
        that has no blocks.

    Example:
      >>> create_model("mlp", 10).num_classes
      10
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: the known ones are {', '.join(MODELS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least 1 class")
    if classifier not in CLASSIFIERS:
        raise ValueError(
            f"unknown classifier {classifier!r}: the known ones are {', '.join(CLASSIFIERS)}"
        )
    model = MODELS[name](num_classes, dtype=dtype, axis_name=axis_name, classifier=classifier)
    if not remat:
        return model
    if not hasattr(model, "remat"):
        raise ValueError(f"model {name!r} has no blocks to compute again: leave remat out")
    return model.clone(remat=True)
