"""Sharpness as the methods define it: how much a class-weighted loss rises near theta.

    S(e) = L[w](theta + e) - L[w](theta),    L[w](theta) = (1/B) sum_i w[y_i] loss_i(theta)

for e the perturbations of a rule (`of_rule`), random directions (`average`) and the worst direction
that some steps of ascent find (`worst`). All three are over a whole data set, for any number of
tables of class weights at once, and take what `curvature.hvp` takes: there it says how, and what
batch normalisation does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from imbsam_jax import checks
from imbsam_jax.ascent import Ascent, check_ascent, moved_points, norm
from imbsam_jax.checks import at_least_float32
from imbsam_jax.rows import check_leaves
from imbsam_jax.table import Rule, check_rule, stagewise, table_of
from imbsam_jax.totals import (
    Data,
    Part,
    data_of,
    scaled_sum,
    tables,
    unscaled,
    weighted_sum,
)

__all__ = ["average", "of_rule", "worst"]

LossesFn = Callable[..., tuple[jax.Array, Any]]


def of_rule(
    losses_fn: LossesFn,
    rule: Rule,
    params: Any,
    labels: Any,
    *args: Any,
    class_weights: Any = None,
    ascent: Ascent = Ascent(),
    step: Any = None,
    mask: Any = None,
    batch_size: int | None = None,
    axis_name: Any = None,
) -> jax.Array:
    """How much the loss rises under the rule's own perturbations, of the whole data set.

        S_k = L[w](theta + e_k) - L[w](theta),    e_k = radius_k d_k / ||d_k||_2

    with `d_k = grad L[group_k](theta)` of the whole data set, not of a batch. For ImbSAM with w the
    tail it is what the method keeps small; with w the head, what its perturbation does to that.

    Args:
      losses_fn, params, labels, *args, mask, batch_size, axis_name: as for `curvature.hvp`.
      rule: a row of the table; of a staged one the stage of `step`.
      step: number of updates made so far, where the rule depends on it; for its stage concrete.
      class_weights: w, float[C] or float[K, C]; None: ones. `in_group * B / rows_of_group` makes
        the mean loss of a group.
      ascent: how the perturbation is taken; without group_mean and weight_decay.

    Returns:
      float[G], or [G, K] for K tables; G groups of the rule, none of `rules.sgd`.

    Raises:
      ValueError: as for `curvature.hvp`, and an ascent that has more than the perturbation.

    >>> def losses_fn(w, x):
    ...     return (x * w) ** 2, None
    >>> x, y = jnp.array([1.0, 2.0]), jnp.array([0, 1])
    >>> of_rule(losses_fn, rules.sam(2, rho=0.1), jnp.array(1.0), y, x).round(3).tolist()
    [0.525]
    """
    check_rule(rule)
    while isinstance(rule, stagewise):
        if step is None or not (checks.is_concrete(step) and checks.is_concrete(rule.starts[1])):
            raise ValueError(
                "of a staged rule, step and its switch_step must be numbers, not traced under jit: "
                "which stage is meant"
            )
        checks.steps("step", step)
        rule = rule.stages[int(checks.reached(step, rule.starts[1]))]
    ascent = check_ascent(ascent, rule)
    if ascent.group_mean or not (
        checks.is_concrete(ascent.weight_decay) and not ascent.weight_decay
    ):
        raise ValueError(
            "sharpness is that of the perturbation alone: leave group_mean and weight_decay out of "
            "the ascent"
        )
    data = data_of(losses_fn, labels, args, mask, batch_size, axis_name)
    theta, w = data.varying(check_leaves(params)), tables(class_weights)
    table = table_of(rule, step)
    if w is not None and w.shape[-1] != table.groups.shape[1]:
        raise ValueError(
            f"class_weights are of {w.shape[-1]} classes, the rule is of {table.groups.shape[1]}"
        )
    d = [_gradient(data, losses_fn, theta, group) for group in table.groups]
    points = moved_points(theta, d, table.radii, ascent.of(rule))
    here = _loss(data, losses_fn, theta, w)
    return _stacked([_loss(data, losses_fn, data.varying(p), w) - here for p in points], here)


def average(
    losses_fn: LossesFn,
    params: Any,
    labels: Any,
    *args: Any,
    radius: Any,
    key: jax.Array,
    directions: int = 20,
    class_weights: Any = None,
    mask: Any = None,
    batch_size: int | None = None,
    axis_name: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """How much the loss rises in random directions of one length, with its standard error.

        mean over e uniform on ||e||_2 = radius of L[w](theta + e) - L[w](theta)

    which for a short radius is `radius^2 tr H / (2 P)`, of P parameters.

    Args:
      losses_fn, params, labels, *args, mask, batch_size, axis_name: as for `curvature.hvp`.
      radius: length of e over all parameters, at least 0.
      key: of the directions; equal keys are equal directions for every model of these shapes.
      directions: how many, at least 2.
      class_weights: float[C] or float[K, C]; all tables see the same directions.

    Returns:
      (mean, standard error), scalars, or [K] for K tables.

    Raises:
      ValueError: as for `curvature.hvp`, and a radius or number out of range.

    >>> def losses_fn(w, x):
    ...     return x * (w**2).sum(), None
    >>> mean, error = average(
    ...     losses_fn,
    ...     jnp.zeros(3),
    ...     jnp.array([0]),
    ...     jnp.array([1.0]),
    ...     radius=0.5,
    ...     key=jax.random.key(0),
    ... )
    >>> round(float(mean), 4), round(float(error), 4)
    (0.25, 0.0)
    """
    radius, key = checks.number("radius", radius, least=0), checks.one_key("key", key)
    directions = checks.whole("directions", directions, 2)
    data = data_of(losses_fn, labels, args, mask, batch_size, axis_name)
    theta, w = check_leaves(params), tables(class_weights)
    here = _loss(data, losses_fn, data.varying(theta), w)

    def one(key: jax.Array) -> jax.Array:
        point = _moved(theta, _random(theta, key), radius)
        return _loss(data, losses_fn, data.varying(point), w) - here

    rises = lax.map(one, jax.random.split(key, directions))
    root = np.sqrt(directions).astype(rises.dtype)
    return rises.mean(axis=0), rises.std(axis=0, ddof=1) / root


def worst(
    losses_fn: LossesFn,
    params: Any,
    labels: Any,
    *args: Any,
    radius: Any,
    key: jax.Array,
    steps: int = 10,
    class_weights: Any = None,
    mask: Any = None,
    batch_size: int | None = None,
    axis_name: Any = None,
) -> jax.Array:
    """The largest rise that projected ascent finds within a radius: a lower bound of the worst.

        e <- project(e + radius grad L[w](theta + e) / ||grad L[w](theta + e)||_2)

    onto ||e||_2 <= radius, from a random e of a hundredth of it, which leaves a point without
    gradient; its first step is SAM's perturbation where there is one. The best of all is returned,
    and e = 0 is one of them.

    Args:
      losses_fn, params, labels, *args, mask, batch_size, axis_name: as for `curvature.hvp`.
      radius: of the ball over all parameters, at least 0.
      key: of the start.
      steps: of ascent, at least 1; each is a gradient over the data set.
      class_weights: float[C] or float[K, C]; each table has an ascent of its own.

    Returns:
      A scalar, or [K] for K tables; at least 0.

    Raises:
      ValueError: as for `curvature.hvp`, and a radius or number out of range.

    >>> def losses_fn(w, x):
    ...     return x * (jnp.array([1.0, 4.0]) * w**2).sum(), None
    >>> rise = worst(
    ...     losses_fn,
    ...     jnp.zeros(2),
    ...     jnp.array([0]),
    ...     jnp.array([1.0]),
    ...     radius=0.5,
    ...     key=jax.random.key(0),
    ... )
    >>> round(float(rise), 3)
    1.0
    """
    radius, key = checks.number("radius", radius, least=0), checks.one_key("key", key)
    steps = checks.whole("steps", steps, 1)
    data = data_of(losses_fn, labels, args, mask, batch_size, axis_name)
    theta, w = check_leaves(params), tables(class_weights)
    several = w is not None and w.ndim == 2
    found = []
    for table in w if several else [w]:
        start = data.varying(theta)
        here = _loss(data, losses_fn, start, table)
        rise = partial(_risen, data, losses_fn, theta, here, table)
        first = _moved(jax.tree.map(jnp.zeros_like, theta), _random(theta, key), radius / 100)

        def one(e: Any, _: Any, rise: Any = rise) -> tuple[Any, jax.Array]:
            value, d = rise(e)
            e = _projected(_moved(e, d, radius), radius)
            return e, value

        last, rises = lax.scan(one, first, length=steps)
        found.append(jnp.maximum(jnp.maximum(rises.max(), rise(last)[0]), 0))
    return jnp.stack(found) if several else found[0]


# ----------------------------------------------------------------------------- losses and gradients


def _loss(data: Data, losses_fn: LossesFn, theta: Any, table: Any) -> jax.Array:
    """L[w](theta), a scalar or [K]."""

    def of(part: Part) -> jax.Array:
        return weighted_sum(losses_fn, theta, table, part)

    return data.mean(of)


def _gradient(data: Data, losses_fn: LossesFn, theta: Any, table: Any) -> Any:
    def of(part: Part) -> Any:
        return unscaled(jax.grad(lambda p: scaled_sum(losses_fn, p, table, part))(theta), part)

    return data.mean(of)


def _risen(
    data: Data, losses_fn: LossesFn, theta: Any, here: jax.Array, table: Any, e: Any
) -> tuple[jax.Array, Any]:
    """(L[w](theta + e) - L[w](theta), its gradient), of one pass."""
    point = data.varying(jax.tree.map(lambda p, x: (p + x).astype(p.dtype), theta, e))

    def of(part: Part) -> Any:
        both = jax.value_and_grad(lambda p: scaled_sum(losses_fn, p, table, part))(point)
        return unscaled(both, part)

    loss, d = data.mean(of)
    return loss - here, d


# --------------------------------------------------------------------------------------- directions


def _random(like: Any, key: jax.Array) -> Any:
    """A normally distributed tree, whose direction is uniform."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jax.random.normal(k, leaf.shape, at_least_float32(leaf.dtype))
            for k, leaf in zip(keys, leaves, strict=True)
        ],
    )


def _moved(point: Any, direction: Any, radius: Any) -> Any:
    """point + radius * direction / ||direction||; the point where the direction is 0."""
    return moved_points(point, [direction], [jnp.asarray(radius, float)], Ascent())[0]


def _projected(e: Any, radius: Any) -> Any:
    length = norm(e)
    radius = checks.like(radius, length)
    factor = jnp.where(length > radius, radius / jnp.where(length == 0, 1, length), 1)
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), e)


def _stacked(rises: list[jax.Array], here: jax.Array) -> jax.Array:
    return jnp.stack(rises) if rises else jnp.zeros((0, *here.shape), here.dtype)
