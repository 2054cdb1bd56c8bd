"""Batch normalisation in passes over some rows of a batch: by the whole batch's own statistics.

For `nn.intercept_methods`, over any model with `nn.BatchNorm`, whatever its layers' momentum.
Flax's layer gives no batch's statistics, only running ones moved on by them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from imbsam_jax import batch_norm, batch_renorm

# The collection of what `noting_its_own` notes.
OF_BATCH = "statistics_of_batch"


class Noted(NamedTuple):
    """Running statistics as a batch moved them on, and that batch's own; two trees alike."""

    running: Any
    of_batch: Any


def noting_its_own(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes `nn.BatchNorm` put the batch's own statistics into the collection OF_BATCH, too."""
    layer = context.module
    if not _is_batch_norm(context):
        return call(*args, **kwargs)
    running, keep = dict(layer.variables["batch_stats"]), layer.momentum
    # Of running statistics that were zero, what is new is the batch's share.
    for name, value in running.items():
        layer.put_variable("batch_stats", name, jnp.zeros_like(value))
    y = call(*args, **kwargs)
    for name, value in running.items():
        own = layer.get_variable("batch_stats", name) / (1 - keep)
        layer.put_variable(OF_BATCH, name, own)
        layer.put_variable("batch_stats", name, keep * value + (1 - keep) * own)
    return y


def renormalised(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes `nn.BatchNorm` renormalise by its running statistics; see imbsam_jax.batch_renorm."""
    layer = context.module
    if not _is_batch_norm(context):
        return call(*args, **kwargs)
    (x,), given = args, layer.variables["batch_stats"]
    y = batch_renorm(
        x, given["mean"], given["var"], epsilon=layer.epsilon, axis_name=layer.axis_name
    )
    params = layer.variables.get("params", {})
    y = y * params.get("scale", 1) + params.get("bias", 0)
    return y.astype(layer.dtype or x.dtype)


def shared(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes `nn.BatchNorm` ask for the statistics of all parts; see imbsam_jax.batch_norm."""
    layer = context.module
    if not _is_batch_norm(context):
        return call(*args, **kwargs)
    (x,), running, keep = args, dict(layer.variables["batch_stats"]), layer.momentum
    params = layer.variables.get("params", {})
    y, mean, var = batch_norm(
        x, params.get("scale"), params.get("bias"), epsilon=layer.epsilon,
        axis_name=layer.axis_name,
    )  # fmt: skip
    for name, own in (("mean", mean), ("var", var)):
        layer.put_variable("batch_stats", name, keep * running[name] + (1 - keep) * own)
    return y.astype(layer.dtype or x.dtype)


def _is_batch_norm(context: Any) -> bool:
    return isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__"
