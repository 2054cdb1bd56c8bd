"""The gradient that every method of the family shares; the file to read first.

    g(theta) = grad L[base](theta) + sum_k grad L[group_k](theta + e_k)
    e_k = radius_k * d_k / ||d_k||_2,   d_k = grad L[group_k](theta)
    L[w](theta) = (1/B) sum_i w[y_i] * loss_i(theta)

`base`, `group_k` and `radius_k` come from a rule (rules.py), e_k from ascent.py. Both front doors,
gradient.py and transform.py, say how a weighted gradient is computed and call `gradient` here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from imbsam_jax import collectives
from imbsam_jax.ascent import Ascent, decayed, perturbed, scaled, summed
from imbsam_jax.rules import ClassWeights, Rule, check_table, require_step, stagewise


class Batch(NamedTuple):
    """What the core asks of a batch, this device's part alone; `moved` once per group, in order."""

    clean: Callable[[list[Any]], list[Any]]  # class weights [C], several -> gradients at theta
    moved: Callable[[Any, Any], tuple[Any, Any]]  # (point, class weights) -> gradient there, info
    share: Callable[[Any], Any]  # class weights -> rows they touch / rows of this device
    real: Any = None  # real rows / rows, where some rows are padding; None where none are


def gradient(
    batch: Batch, params: Any, table: ClassWeights, *, ascent: Ascent, axis_name: Any, sync: bool
) -> tuple[Any, list[tuple[Any, Any]]]:
    """This device's part of g, and for each group (d_k, info of its pass); average g yourself."""
    groups = [table.groups[k] for k in range(check_table(table).groups.shape[0])]
    # Padding is divided out of the whole gradient later: weight decay counts as the rows do.
    real = 1.0 if batch.real is None else batch.real
    share = batch.share if ascent.group_mean else lambda _: real
    base = [] if table.base is None else [table.base]
    parts = batch.clean(groups + base)
    pairs = zip(parts[: len(groups)], groups, strict=True)
    directions = [decayed(d, [params], ascent, share(w) / len(groups)) for d, w in pairs]
    if sync and directions:
        directions = collectives.mean(directions, axis_name)
    points = [perturbed(params, d, r, ascent) for d, r in zip(directions, table.radii, strict=True)]
    # What the passes at theta kept for their backward passes is given up before the next begins.
    points, parts = lax.optimization_barrier((points, parts)) if points else (points, parts)
    moved = [batch.moved(point, w) for point, w in zip(points, groups, strict=True)]
    parts = parts[len(groups) :] + [part for part, _ in moved]
    if ascent.group_mean:
        parts = _by_group_mean(parts, base + groups, batch, axis_name)
    total = jax.tree.map(summed, *parts)
    total = decayed(total, points or [params], ascent, real / max(len(groups), 1))
    return total, list(zip(directions, [info for _, info in moved], strict=True))


def _by_group_mean(parts: list[Any], touched: list[Any], batch: Batch, axis_name: Any) -> list[Any]:
    shares = collectives.mean([batch.share(weights) for weights in touched], axis_name)
    # Padding is divided out of the whole gradient later, but not of a mean over a group's rows.
    real = 1.0 if batch.real is None else collectives.mean(batch.real, axis_name)
    factors = [jnp.where(share == 0, 0, real / jnp.where(share == 0, 1, share)) for share in shares]
    pairs = zip(parts, factors, strict=True)
    return [jax.tree.map(partial(scaled, factor=f), part) for part, f in pairs]


def by_stage(rule: Rule, step: Any, compute: Callable[[ClassWeights], Any]) -> Any:
    """compute(rule(step)); a staged rule branches over the computation, not over the table."""
    if not isinstance(rule, stagewise):
        return compute(rule(step))
    require_step(step)
    first, second = (partial(by_stage, stage, step, compute) for stage in rule.stages)
    later = step >= rule.starts[1]
    if isinstance(later, bool | np.bool_):
        return second() if later else first()
    return lax.cond(later, second, first)
