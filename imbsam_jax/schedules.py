"""Schedules published by epoch, as functions of the step: for radii and for the like.

Learning rates are Optax's; those of the experiments are in experiments/step/optimizer.py.

A schedule is called with the number of updates made so far, a Python int or a traced scalar, and
goes wherever a rule takes a number. Of a known step it returns a Python float, of a traced one a
scalar of JAX's default float, NaN where that is no step; a known one that is none is a ValueError:

    rho = schedules.step_radius(steps_per_epoch=170)
    rule = rules.focal_sam(class_counts, rho=rho, gamma=3.2, strength=0.8)

Papers count epochs from 1; here epochs, like steps, count from 0: epoch e is the steps
[e * steps_per_epoch, (e + 1) * steps_per_epoch). A value holds for a whole epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from imbsam_jax import arrays, checks

__all__ = ["late_radius", "linear_radius", "ramp", "step_radius"]

Schedule = Callable[[Any], Any]


def step_radius(
    values: Sequence[float] = (0.05, 0.1, 0.5, 0.6),
    boundaries: Sequence[int] = (5, 160, 180),
    *,
    steps_per_epoch: int,
) -> Schedule:
    """A radius constant between boundaries: Focal-SAM's "step" schedule.

        rho(step) = values[k],   boundaries[k-1] <= step // steps_per_epoch < boundaries[k]

    Args:
      values: the radii, each finite and at least 0.
      boundaries: first epoch (from 0) of each value but the first, increasing; one fewer.
      steps_per_epoch: updates per epoch, at least 1.

    Returns:
      `rho(step)`, a float or float[].

    Raises:
      ValueError: a bad radius, boundaries that do not increase or are not one fewer.

    Source: the Focal-SAM and Saddle-LongTail releases on CIFAR (the defaults, for 200 epochs); on
    ImageNet-LT the latter has 0.05, 0.1, 0.5, 0.5 from epochs 0, 5, 60, 75.

    >>> rho = step_radius(steps_per_epoch=10)
    >>> rho(49), rho(50), rho(1999)
    (0.05, 0.1, 0.6)
    """
    steps_per_epoch = checks.whole("steps_per_epoch", steps_per_epoch, 1)
    values = [_radius(value) for value in arrays.listed("values", values)]
    boundaries = arrays.listed("boundaries", boundaries)
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"{len(values)} values need {len(values) - 1} boundaries, got {len(boundaries)}"
        )
    wanted = "increasing epochs, whole and at least 0"
    boundaries = [checks.whole("boundaries", boundary, 0, wanted) for boundary in boundaries]
    if boundaries != sorted(set(boundaries)):
        raise ValueError(f"boundaries must be increasing epochs, at least 0, got {boundaries}")

    def at(epoch: Any, xp: Any) -> Any:
        return xp.asarray(values, float)[(epoch >= xp.asarray(boundaries, int)).sum()]

    return _by_epoch(at, steps_per_epoch)


def late_radius(
    first: float, second: float, *, epochs: int, steps_per_epoch: int, fraction: float = 0.8
) -> Schedule:
    """One radius, then another for the last part of the training.

        rho(step) = first where e + 1 < fraction * epochs, else second,  e = step // steps_per_epoch

    Args:
      first, second: the radii, finite and at least 0.
      epochs: of the whole training, at least 1.
      steps_per_epoch: updates per epoch, at least 1.
      fraction: between 0 and 1. The release counts epochs from 1, whence e + 1.

    Returns:
      `rho(step)`, a float or float[].

    Raises:
      ValueError: a bad radius, a number out of its range.

    Source: the Focal-SAM release on ImageNet-LT (0.1, then 0.2) and iNaturalist (0.2 twice).

    >>> rho = late_radius(0.1, 0.2, epochs=200, steps_per_epoch=1)
    >>> rho(158), rho(159)
    (0.1, 0.2)
    """
    first, second = _radius(first), _radius(second)
    epochs = checks.whole("epochs", epochs, 1)
    fraction = checks.number("fraction", fraction, least=0, most=1, concrete=True)
    # In units of 1e-9 epochs: 0.8 * 200 must not become 160.00000000000003.
    switch = max(math.ceil(round(fraction * epochs, 9)) - 1, 0)
    return step_radius((first, second), (switch,), steps_per_epoch=steps_per_epoch)


def linear_radius(
    low: float = 0.05,
    high: float = 0.8,
    *,
    epochs: int,
    steps_per_epoch: int,
    float16: bool = False,
) -> Schedule:
    """A radius that goes linearly from `low` in the first epoch to `high` in the last.

        rho(step) = low + (high - low) * e / (epochs - 1),   e = step // steps_per_epoch

    Args:
      low, high: the radii, finite and at least 0.
      epochs: of the whole training, at least 2; later steps keep `high`.
      steps_per_epoch: updates per epoch, at least 1.
      float16: round each value to float16, as the release does; radii up to 65504.

    Returns:
      `rho(step)`, a float or float[].

    Raises:
      ValueError: a bad radius, a number out of its range.

    Source: the Focal-SAM release's "linear" schedule, with its defaults.

    >>> rho = linear_radius(0.0, 0.4, epochs=5, steps_per_epoch=10)
    >>> rho(9), rho(10), rho(49)
    (0.0, 0.1, 0.4)
    """
    epochs = checks.whole("epochs", epochs, 2)
    steps_per_epoch = checks.whole("steps_per_epoch", steps_per_epoch, 1)
    checks.truth("float16", float16)
    low, high = _radius(low), _radius(high)
    values = low + (high - low) * (np.arange(epochs) / (epochs - 1))
    if float16:
        for name, radius in (("low", low), ("high", high)):
            checks.number(name, radius, most=65504.0, wanted="at most 65504 in float16")
        values = values.astype(np.float16).astype(np.float64)

    def at(epoch: Any, xp: Any) -> Any:
        return xp.asarray(values, float)[xp.clip(epoch, 0, epochs - 1)]

    return _by_epoch(at, steps_per_epoch)


def ramp(*, epochs: int, steps_per_epoch: int, limit: float = 1.0) -> Schedule:
    """A share that grows by epoch: CC-SAM's second stage.

        share(step) = min((e + 1) / epochs, limit),   e = step // steps_per_epoch

    Args:
      epochs: of the stage, at least 1 (30 in the release).
      steps_per_epoch: updates per epoch, at least 1.
      limit: between 0 and 1. The release has 1.0 on CIFAR-10 and 0.3 on CIFAR-100.

    Returns:
      `share(step)`, a float or float[], between 0 and 1.

    Raises:
      ValueError: a number out of its range.

    Source: CC-SAM, CVPR 2023: t / epochs with t counted from 1.

    >>> share = ramp(epochs=4, steps_per_epoch=10, limit=0.6)
    >>> share(0), share(10), share(39)
    (0.25, 0.5, 0.6)
    """
    epochs = checks.whole("epochs", epochs, 1)
    steps_per_epoch = checks.whole("steps_per_epoch", steps_per_epoch, 1)
    limit = checks.number("limit", limit, least=0, most=1, concrete=True)

    def at(epoch: Any, xp: Any) -> Any:
        # Epochs after the last are as the last: one more than the largest int32 is its smallest.
        return xp.minimum((xp.minimum(epoch, epochs - 1) + 1) / epochs, limit)

    return _by_epoch(at, steps_per_epoch)


def _by_epoch(at: Callable[[Any, Any], Any], steps_per_epoch: int) -> Schedule:
    """Of a concrete step a Python float, so that rules can check it; of a traced one a scalar."""

    def schedule(step: Any) -> Any:
        is_step = checks.steps("step", step)
        if checks.is_concrete(step):
            return float(at(int(step) // steps_per_epoch, np))
        epoch = checks.as_step(step) // steps_per_epoch
        return checks.nan_unless(is_step, at(epoch.astype(int), jnp))

    return schedule


def _radius(value: Any) -> Any:
    return checks.number("a radius", value, least=0, concrete=True)
