"""What is minimised, by name: losses, deferred re-weighting, mixup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Loss = Callable[..., jax.Array]


class Adversary(NamedTuple):
    """CC-SAM's second stage: the classifier also sees features moved against it.

    Attributes:
      wrap: `cc_sam.feature_adversary` with its options, of a function (params, features) ->
        (losses, logits).
      share: step -> weight of the losses at the moved features.
    """

    wrap: Callable[..., Any]
    share: Callable[[Any], Any]


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

    loss: Loss
    num_classes: int
    mixup: float = 0.0
    train_statistics: bool = True
    adversary: Adversary | None = None
