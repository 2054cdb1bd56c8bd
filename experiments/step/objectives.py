"""What is minimised, apart from how its gradient is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# loss(logits, labels, step) -> float[b]: a `Loss` of imbsam_jax, or any function like one.
LossFn = Callable[..., jax.Array]


class Adversary(NamedTuple):
    """CC-SAM's second stage: the classifier also sees features moved against it.

    Attributes:
      wrap: `losses.feature_adversary` with its options, of a function (params, features) ->
        (losses, logits).
      share: step -> weight of the losses at the moved features.
      over_the_batch: whether it takes norms over the batch, so that a device needs all of it.
    """

    wrap: Callable[..., Any]
    share: Callable[[Any], Any]
    over_the_batch: bool = False


class Objective(NamedTuple):
    """What a step minimises, apart from how its gradient is taken.

    Attributes:
      loss: `loss(logits, labels, step) -> float[b]`, labels int[b] or soft.
      num_classes: C.
      mixup: alpha of the Beta(alpha, alpha) from which each batch draws its share; 0 mixes nothing.
      train_statistics: normalise by the batch and update the running statistics; False normalises
        by the running ones and leaves them.
      adversary: for the classifier's second stage in CC-SAM.
    """

    loss: LossFn
    num_classes: int
    mixup: float = 0.0
    train_statistics: bool = True
    adversary: Adversary | None = None
