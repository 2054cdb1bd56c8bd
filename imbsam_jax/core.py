"""The gradient that every method of the family shares; the file to read first.

    g(theta) = grad L[base](theta) + sum_k grad L[group_k](theta + e_k)
    e_k = radius_k * d_k / ||d_k||_2,   d_k = grad L[group_k](theta)
    L[w](theta) = (1/B) sum_i w[y_i] * loss_i(theta)

`base`, `group_k` and `radius_k` come from a rule (rules.py), e_k from ascent.py, the gradients of
L[w] from a batch (passes/). Three independent choices meet here, and none knows the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax import checks, collectives
from imbsam_jax.ascent import Ascent, decayed, moved_points, scaled, summed
from imbsam_jax.checks import at_least_float32
from imbsam_jax.norms import root
from imbsam_jax.passes import Batch
from imbsam_jax.table import ClassWeights, Rule, require_step, stagewise, table_of


def gradient(
    batch: Batch, params: Any, table: ClassWeights, *, ascent: Ascent, axis_name: Any, sync: bool
) -> tuple[Any, list[tuple[Any, Any]]]:
    """This device's part of g, and for each group (d_k, losses at theta + e_k).

    Where rows are padding, g is over all rows of the device: `mean_over_rows` averages it over
    the devices and divides the padding out.
    """
    groups = [table.groups[k] for k in range(table.groups.shape[0])]
    base = [] if table.base is None else [table.base]

    at_theta = batch.clean(groups + base)
    d = _directions(at_theta[: len(groups)], params, groups, batch, ascent)
    real = batch.real if ascent.bound else None
    if sync and d:
        d, real = collectives.mean((d, real), axis_name)

    points = moved_points(params, d, _of_real_rows(table.radii, real), ascent)
    there: list[Any] = []
    for k, weights in enumerate(groups):
        points, (at_theta, there) = _one_after_the_other(points, (at_theta, there))
        there.append(batch.moved(k, points[k], weights))

    parts = at_theta[len(groups) :] + [grads for grads, _ in there]
    if ascent.group_mean:
        parts = _over_own_rows(parts, base + groups, batch, axis_name)
    total = jax.tree.map(summed, *parts)
    total = decayed(total, points or [params], ascent, _real(batch) / max(len(groups), 1))
    return total, [(d_k, losses) for d_k, (_, losses) in zip(d, there, strict=True)]


def mean_over_rows(tree: Any, batch: Batch, axis_name: Any) -> Any:
    """Mean over devices, then over real rows instead of all rows; one all-reduce."""
    if batch.real is None:
        return collectives.mean(tree, axis_name)
    tree, real = collectives.mean((tree, batch.real), axis_name)
    real = jnp.where(real == 0, 1, real)  # a batch of padding alone changes nothing

    def over_real(x: jax.Array) -> jax.Array:
        wide = at_least_float32(x.dtype)
        return (x.astype(wide) / real.astype(wide)).astype(x.dtype)

    return jax.tree.map(over_real, tree)


def by_stage(
    rule: Rule, step: Any, ascent: Ascent, compute: Callable[[ClassWeights, Ascent], Any]
) -> Any:
    """compute(rule(step), ascent with what the rule brings of its own).

    A staged rule branches over the computation, not over the table.
    """
    if not isinstance(rule, stagewise):
        return compute(table_of(rule, step), ascent.of(rule))
    require_step(step)
    first, second = (partial(by_stage, stage, step, ascent, compute) for stage in rule.stages)
    start = rule.starts[1]
    later = checks.reached(step, start)
    if isinstance(later, bool):
        return second() if later else first()
    is_step = checks.steps("switch_step", start)
    return checks.nan_unless(is_step, lax.cond(later, second, first))


# ---- beside the formula: padding, group means, weight decay ------------------------------------


def _real(batch: Batch) -> Any:
    """The share of real rows: padding is divided out of g later, and weight decay with it."""
    return 1.0 if batch.real is None else batch.real


def _directions(
    grads: list[Any], params: Any, groups: list[Any], batch: Batch, ascent: Ascent
) -> list[Any]:
    """d_k: a group's gradient and its part of a weight decay that lies inside its loss.

    Under group_mean it is of the mean over the group's rows. That changes its length alone, which a
    direction has none of; but not the decay's, so that the decay is scaled by the group's share.
    """
    part = batch.share if ascent.group_mean else lambda _: _real(batch)
    return [
        decayed(grad, [params], ascent, part(weights) / len(groups))
        for grad, weights in zip(grads, groups, strict=True)
    ]


def _of_real_rows(radii: Any, real: Any) -> Any:
    """The radii of a bound as they are over real rows: such a one goes as ||d_k||^(-1/2), and d_k,
    over all rows, is `real` times what it is over real ones.
    """
    return radii if real is None else radii * root(real)


def _one_after_the_other(points: list[Any], done: Any) -> tuple[list[Any], Any]:
    """For memory: what earlier passes kept is freed before the next one begins.

    JAX 0.10 on a CPU drops this between the passes of several groups, and keeps both of SSE-SAM's.
    """
    return lax.optimization_barrier((points, done))


def _over_own_rows(parts: list[Any], touched: list[Any], batch: Batch, axis_name: Any) -> list[Any]:
    """Each part over the number of its own rows, of all devices, instead of all rows."""
    shares = collectives.mean([batch.share(weights) for weights in touched], axis_name)
    # Padding is divided out of the whole gradient later, but not of a mean over a group's rows.
    real = 1.0 if batch.real is None else collectives.mean(batch.real, axis_name)
    factors = [jnp.where(share == 0, 0, real / jnp.where(share == 0, 1, share)) for share in shares]
    pairs = zip(parts, factors, strict=True)
    return [jax.tree.map(partial(scaled, factor=f), part) for part, f in pairs]
