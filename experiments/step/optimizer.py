"""The optimizer of runs on images and of the bench, SGD as in PyTorch; learning rates by epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from imbsam_jax import classifiers

SCHEDULES = ("cosine", "cosine-prestep", "steps", "warmup-steps", "constant")


def learning_rate(
    kind: str, base: float, epochs: int, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """Learning rate by step; constant within an epoch, as every released recipe has it.

    Epoch j counts from 0, T is the number of epochs:
      cosine: `base/2 (1 + cos(pi j / T))`, the scheduler stepped after each epoch.
      cosine-prestep: j + 1 in place of j, as the ImbSAM and weight balancing releases do; the
        last epoch then has learning rate 0.
      steps: LDAM's, `base * (j + 1) / 5` in the first five epochs, then base, a hundredth of it
        from 80% of the epochs, a ten-thousandth from 90%.
      warmup-steps: CC-SAM's, `base * (1/3 + 2/3 (j + 1) / 5)` up to base, a tenth of it from the
        epoch that ends at 80% of them, a hundredth from 90%.
      constant: base.
    """

    def at(step: Any) -> Any:
        epoch = jnp.minimum(step // steps_per_epoch, epochs - 1)
        if kind == "constant":
            return jnp.full((), base, jnp.float32)
        if kind == "steps":
            late = jnp.where(epoch >= round(0.9 * epochs), 1e-4, 1e-2)
            decayed = base * jnp.where(epoch >= round(0.8 * epochs), late, 1.0)
            return jnp.where(epoch < 5, base * (epoch + 1) / 5, decayed)
        if kind == "warmup-steps":
            rise = jnp.minimum(1 / 3 + 2 / 3 * (epoch + 1) / 5, 1)
            fall = 0.1 ** sum(epoch + 1 >= round(at * epochs) for at in (0.8, 0.9))
            return base * rise * fall
        passed = epoch + (kind == "cosine-prestep")
        return base / 2 * (1 + jnp.cos(jnp.pi * passed / epochs))

    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}; choose from {', '.join(SCHEDULES)}")
    return at


def optimizer(
    schedule: Callable[[Any], Any], momentum: float, weight_decay: float, *, max_norm_every: int = 0
) -> optax.GradientTransformation:
    """SGD as in PyTorch: `v = mu v + g + wd theta; theta -= lr v`, decay on every parameter.

    With max_norm_every the classifier is projected after every so many steps, with weight
    balancing's radius of the parameters given to `init`.
    """
    links = [optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=momentum)]
    if max_norm_every:
        links.append(
            classifiers.max_norm(
                lambda params: {name: name == "head" for name in params}, every=max_norm_every
            )
        )
    return optax.chain(*links)
