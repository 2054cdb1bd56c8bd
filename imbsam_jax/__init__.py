"""Sharpness-aware training for imbalanced classes, in JAX and Optax.

    import imbsam_jax as ij

    rule = ij.rules.imbsam(class_counts, rho=0.05, eta=100)
    (loss, aux), grads = ij.value_and_grad(losses_fn, rule)(params, labels, images, labels)

The first labels are for the rule, what follows them is for `losses_fn(params, images, labels)`.
`rules` holds the methods as tables, `value_and_grad` and `sharpness_aware` are the two front
doors, core.py is the file to read first. `imbsam_jax.nnx` is the first door for Flax NNX; it is
imported when it is asked for, since Flax is no requirement.

A number out of the range that its docstring states is refused. One that is traced, and cannot be
looked at, makes what is computed with it NaN instead, as a label that is no class does.
"""

import importlib as _importlib
import typing as _typing

from imbsam_jax import (
    cc_sam,
    classifiers,
    curvature,
    experimental,
    landscape,
    losses,
    metrics,
    passes,
    rules,
    schedules,
    sharpness,
)
from imbsam_jax.ascent import Ascent, asam_scale, magnitude_scale
from imbsam_jax.gradient import SharpnessInfo, value_and_grad
from imbsam_jax.passes import batch_norm, batch_renorm, binomial_buffers, stratified_buffers
from imbsam_jax.priors import (
    class_counts,
    imbalance_factor,
    long_tail_counts,
    shot_splits,
    tail_classes,
    tail_threshold,
)
from imbsam_jax.rules import ClassWeights
from imbsam_jax.transform import SharpnessAwareState, class_weighted_grad, sharpness_aware

if _typing.TYPE_CHECKING:
    from imbsam_jax import nnx as nnx
else:

    def __getattr__(name: str) -> _typing.Any:
        if name == "nnx":
            return _importlib.import_module("imbsam_jax.nnx")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*__all__, "nnx", *(name for name in globals() if name.startswith("__"))})


__version__ = "0.1.0"

__all__ = [
    "Ascent",
    "ClassWeights",
    "SharpnessAwareState",
    "SharpnessInfo",
    "asam_scale",
    "batch_norm",
    "batch_renorm",
    "binomial_buffers",
    "cc_sam",
    "class_counts",
    "class_weighted_grad",
    "classifiers",
    "curvature",
    "experimental",
    "imbalance_factor",
    "landscape",
    "long_tail_counts",
    "losses",
    "magnitude_scale",
    "metrics",
    "passes",
    "rules",
    "schedules",
    "sharpness",
    "sharpness_aware",
    "shot_splits",
    "stratified_buffers",
    "tail_classes",
    "tail_threshold",
    "value_and_grad",
]
