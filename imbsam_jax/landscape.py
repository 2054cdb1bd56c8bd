"""Loss surfaces of groups of classes, around and between models.

    L[w_k](origin + sum_d t_d direction_d)    for coordinates t of a grid, tables w_k

Directions are trees like the parameters: random and filter-normalised (`random_direction`,
`filter_normalised`), through given models (`plane`, `line`), or what else is of interest, such as
the d_k of a step. `losses` takes the losses of all groups at all points in one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from imbsam_jax import arrays, checks
from imbsam_jax.ascent import norm
from imbsam_jax.checks import at_least_float32
from imbsam_jax.norms import lengths
from imbsam_jax.rows import check_floats_like, check_leaves, check_like
from imbsam_jax.totals import Part, data_of, tables, weighted_sum

__all__ = ["Plane", "filter_normalised", "grid", "line", "losses", "plane", "random_direction"]


class Plane(NamedTuple):
    """An origin, directions, and where the models it was made of lie.

    Attributes:
      origin: a tree of parameters.
      directions: D trees like it, at least float32.
      models: float[M, D], the coordinates of the models.
    """

    origin: Any
    directions: tuple[Any, ...]
    models: jax.Array


def random_direction(like: Any, *, key: jax.Array) -> Any:
    """A standard normal tree: drawn once, and shared by all models that are compared.

    Args:
      like: a tree of real floating arrays.
      key: a random key.

    Returns:
      A tree like it, the same dtypes.

    Raises:
      TypeError: leaves that are not real and floating.
      ValueError: a tree without leaves, a key that is none.

    >>> random_direction({"w": jnp.zeros((2, 3))}, key=jax.random.key(0))["w"].shape
    (2, 3)
    """
    leaves, structure = jax.tree.flatten(check_leaves(like))
    keys = jax.random.split(checks.one_key("key", key), len(leaves))
    draws = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def filter_normalised(direction: Any, params: Any) -> Any:
    """The direction with each filter as long as the model's own: surfaces then compare by shape.

        d_f <- d_f / ||d_f||_2 * ||theta_f||_2

    A filter is a slice along the last axis, as Flax has its kernels: what makes one output channel
    or one unit. Leaves of fewer than two axes (biases, scales of normalisation) do not move.

    Args:
      direction: a tree like params, from `random_direction`.
      params: theta.

    Returns:
      A tree like params, the same dtypes.

    Raises:
      TypeError: params that are not real and floating.
      ValueError: params without leaves; a direction of another structure.

    >>> found = filter_normalised({"w": jnp.ones((4, 1))}, {"w": jnp.full((4, 1), 3.0)})
    >>> found["w"].ravel().tolist()
    [3.0, 3.0, 3.0, 3.0]

    Source: Li et al., NeurIPS 2018. The ImbSAM paper does not say how its Figure 1 is made.
    """

    def leaf(d: jax.Array, p: jax.Array) -> jax.Array:
        if p.ndim < 2:
            return jnp.zeros_like(p)
        axes = tuple(range(p.ndim - 1))
        wide = d.astype(at_least_float32(p.dtype))
        of_draw = lengths(d, axes)
        factor = lengths(p, axes) / jnp.where(of_draw == 0, 1, of_draw)
        return (wide * factor).astype(p.dtype)

    params = check_leaves(params)
    return jax.tree.map(leaf, check_like("direction", direction, params), params)


def line(first: Any, second: Any) -> Plane:
    """From one model, at 0, to another, at 1.

    Args:
      first, second: trees of equal shapes.

    Returns:
      A Plane of one direction, `second - first`.

    Raises:
      ValueError: models of several shapes, or without leaves.
      TypeError: leaves that are not real and floating.

    >>> line({"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}).directions[0]["w"].tolist()
    [3.0]
    """
    first, second = _models(first, second)
    ends = jnp.array([[0.0], [1.0]])
    return Plane(first, (_difference(second, first),), ends)


def plane(first: Any, second: Any, third: Any) -> Plane:
    """Through three models: the first is the origin, the directions have length 1, at right angles.

        u = (b - a) / ||b - a||,   v = (c - a - <c - a, u> u) / ||.||

    so that distances in the plane are those between the models.

    Args:
      first, second, third: trees of equal shapes, such as the end points of SGD, SAM and ImbSAM.
        They must not lie on one line: the second direction would be rounding, and is NaN where it
        is nothing.

    Returns:
      A Plane of two directions.

    Raises:
      ValueError: models of several shapes, or without leaves.
      TypeError: leaves that are not real and floating.

    >>> found = plane(jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0]), jnp.array([1.0, 3.0]))
    >>> found.models.tolist()
    [[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]

    Source: Garipov et al., NeurIPS 2018.
    """
    first, second, third = _models(first, second, third)
    to_second, to_third = _difference(second, first), _difference(third, first)
    along = norm(to_second)
    u = jax.tree.map(lambda x: x / along.astype(x.dtype), to_second)
    x = _dot(to_third, u)
    rest = jax.tree.map(lambda t, d: t - x.astype(d.dtype) * d, to_third, u)
    y = norm(rest)
    v = jax.tree.map(lambda r: r / y.astype(r.dtype), rest)
    zero = jnp.zeros_like(along)
    models = jnp.stack([jnp.stack(p) for p in ((zero, zero), (along, zero), (x, y))])
    return Plane(first, (u, v), models)


def grid(*axes: Any) -> jax.Array:
    """Every combination of coordinates, the last axis fastest.

    Args:
      axes: D vectors, the coordinates along each direction.

    Returns:
      float[product of lengths, D], for `losses`.

    Raises:
      ValueError: no axis, or one that is no vector of real numbers.

    >>> grid(jnp.array([0.0, 1.0]), jnp.array([5.0, 6.0])).tolist()
    [[0.0, 5.0], [0.0, 6.0], [1.0, 5.0], [1.0, 6.0]]
    """
    if not axes:
        raise ValueError("grid takes one or more axes, float[M] each")
    same = checks.alike(*(_axis(f"axes[{d}]", axis) for d, axis in enumerate(axes)))
    return jnp.stack([x.ravel() for x in jnp.meshgrid(*same, indexing="ij")], axis=-1)


def _axis(name: str, axis: Any) -> jax.Array:
    axis = arrays.as_array(name, "float[M]", axis)
    if axis.ndim != 1 or not checks.is_real(axis.dtype):
        raise ValueError(
            f"grid takes one or more axes, float[M] each, and {name} is {axis.dtype}"
            f"{list(axis.shape)}"
        )
    floats = jnp.issubdtype(axis.dtype, jnp.floating)
    return jnp.asarray(axis) if floats else jnp.asarray(axis, float)


def losses(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    origin: Any,
    directions: Sequence[Any],
    coordinates: Any,
    labels: Any,
    *args: Any,
    class_weights: Any = None,
    mask: Any = None,
    batch_size: int | None = None,
    axis_name: Any = None,
) -> jax.Array:
    """The losses of all groups of classes at all points, a forward pass over the data for each.

        L[w_k](origin + sum_d coordinates[p, d] * direction_d)

    Args:
      losses_fn, labels, *args, mask, batch_size, axis_name: as for `curvature.hvp`.
      origin: a tree of parameters.
      directions: D trees like it.
      coordinates: float[P, D]; see `grid`.
      class_weights: float[C] or float[K, C], such as head, tail and each shot group, each
        `in_group * B / rows_of_group` for the mean loss of its rows; None: ones.

    Returns:
      float[P], or [P, K] for K tables.

    Raises:
      ValueError: as for `curvature.hvp`, coordinates that are not [P, D], and directions that are
        not of the shapes of origin.

    >>> def losses_fn(w, x):
    ...     return (x * w) ** 2, None
    >>> losses(
    ...     losses_fn,
    ...     jnp.array(1.0),
    ...     [jnp.array(1.0)],
    ...     [[-1.0], [0.0], [1.0]],
    ...     jnp.array([0, 1]),
    ...     jnp.array([1.0, 2.0]),
    ...     class_weights=[[2, 0], [0, 2]],
    ... ).tolist()
    [[0.0, 0.0], [1.0, 4.0], [4.0, 16.0]]
    """
    origin = check_leaves(origin)
    data = data_of(losses_fn, labels, args, mask, batch_size, axis_name)
    directions = [
        check_like(f"directions[{d}]", direction, origin) for d, direction in enumerate(directions)
    ]
    wanted = f"float[P, {len(directions)}], one for each direction"
    coordinates = arrays.as_array("coordinates", wanted, coordinates)
    fits = coordinates.ndim == 2 and coordinates.shape[1] == len(directions)
    if not (fits and checks.is_real(coordinates.dtype)):
        raise ValueError(
            f"coordinates must be {wanted}, got {coordinates.dtype}{list(coordinates.shape)}"
        )
    coordinates, table = jnp.asarray(coordinates, float), tables(class_weights)

    def at(t: jax.Array) -> jax.Array:
        def moved(p: jax.Array, *along: jax.Array) -> jax.Array:
            wide = p.astype(at_least_float32(p.dtype))
            steps = (t[k].astype(wide.dtype) * d.astype(wide.dtype) for k, d in enumerate(along))
            return sum(steps, start=wide).astype(p.dtype)

        point = data.varying(jax.tree.map(moved, origin, *directions))

        def of(part: Part) -> jax.Array:
            return weighted_sum(losses_fn, point, table, part)

        return data.mean(of)

    return lax.map(at, coordinates)


def _models(first: Any, *others: Any) -> Any:
    """All as trees of real floating arrays, of the same shapes."""
    first = check_leaves(first)
    return first, *(check_floats_like("every model", other, first) for other in others)


def _difference(a: Any, b: Any) -> Any:
    """a - b, at least float32: float16 holds models whose difference it does not hold."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = at_least_float32(x.dtype)
        return x.astype(wide) - y.astype(wide)

    return jax.tree.map(leaf, a, b)


def _dot(a: Any, b: Any) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.asarray(sum(checks.alike(*jax.tree.leaves(products))))
