"""The programs of an analysis: what is measured of the rows of one seed, by `imbsam_jax`.

Each takes what it is compiled for, then variables and rows of one seed; `program` compiles it for
one seed, or mapped over several. KEY is the same for every subject: what is random is shared by
what is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imbsam_jax import curvature, landscape, metrics, sharpness
from imbsam_jax.rules import ClassWeights

KEY = 0
# (images, labels, mask) of some rows.
Placed = tuple[Any, Any, Any]


class Settings(NamedTuple):
    """What a program is compiled for, beside shapes.

    Attributes:
      apply: (variables, images) -> outputs.
      loss: (outputs, labels) -> float[b].
      counted: whether the outputs are logits, whose hits are counted.
      tail: which classes are the tail.
      each: rows of a micro-batch.
      rho, iterations, probes, directions, steps, density: as `How` has them.
    """

    apply: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any]
    counted: bool
    tail: tuple[bool, ...]
    each: int
    rho: float
    iterations: int
    probes: int
    directions: int
    steps: int
    density: int


@functools.cache
def program(of: Any, settings: Any, one: bool) -> Any:
    """The function, compiled for one seed or mapped over the seeds of variables and rows."""
    f = functools.partial(of, settings)
    if one:
        return jax.jit(f)

    def mapped(variables: Any, placed: Any, *more: Any) -> Any:
        return jax.vmap(f, in_axes=(0, 0, *(None,) * len(more)))(variables, placed, *more)

    return jax.jit(mapped)


def levels(settings: Settings, variables: Any, placed: Placed) -> Any:
    """(correct int[C], total int[C], sum of the loss [C]) of the rows, in micro-batches."""
    images, labels, mask = placed
    losses_fn, each, classes = _losses(settings, variables), settings.each, len(settings.tail)

    def part(rows: Any) -> Any:
        images, labels, mask = rows
        losses, outputs = losses_fn(variables["params"], images, labels)
        if not settings.counted:  # only the rows are
            outputs = jnp.zeros((len(labels), classes))
        correct, total = metrics.class_hits(outputs, labels, mask)
        at = jnp.zeros(classes).at[labels].add(jnp.where(mask, losses, 0))
        return correct, total, at

    cut = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(each, -1, *x.shape[1:]), 1, 0), (images, labels, mask)
    )
    return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(part, cut))


def ends(settings: Settings, variables: Any, placed: Placed) -> Any:
    return curvature.extreme_eigenvalues(
        _matvec(settings, variables, placed), variables["params"], key=jax.random.key(KEY),
        iterations=settings.iterations,
    )  # fmt: skip


def forms(settings: Settings, variables: Any, placed: Placed) -> jax.Array:
    """[probes] of v^T H v for random signs v."""
    matvec, params = _matvec(settings, variables, placed), variables["params"]

    def one(key: jax.Array) -> jax.Array:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
        ]
        v = jax.tree.unflatten(structure, signs)
        products = jax.tree.map(lambda a, b: (a * b).sum(), v, matvec(v))
        return jnp.asarray(sum(jax.tree.leaves(products)))

    return jax.lax.map(one, jax.random.split(jax.random.key(KEY + 1), settings.probes))


def rises(settings: Settings, variables: Any, placed: Placed, tables: Any) -> Any:
    images, labels, mask = placed
    of = _losses(settings, variables), variables["params"], labels, images, labels
    options = {"class_weights": tables, "mask": mask, "batch_size": settings.each}

    def along(group: Any) -> Any:
        losses_fn, *rest = of
        table = ClassWeights(None, jnp.asarray([group], float), jnp.array([settings.rho]))
        return sharpness.of_rule(losses_fn, lambda step: table, *rest, **options)[0]

    mean, error = sharpness.average(
        *of, radius=settings.rho, key=jax.random.key(KEY + 2), directions=settings.directions,
        **options,
    )  # fmt: skip
    return {
        "sam": along([True] * len(settings.tail)),
        "imbsam": along(settings.tail),
        "random": mean,
        "random_error": error,
    }


def own(given: tuple[Settings, Any], moved: Any, placed: Placed, tables: Any) -> jax.Array:
    """[K] of the tables: how much they rise where the rule takes its gradients.

        sum_k L[w m_k](theta + e_k) - L[w m_k](theta),   m_k[c] = 1 where group k weighs c most

    so that a class is moved with its own group; all of them where there is one group.

    Args:
      given: the settings, and the rule's Ascent.
      moved: (variables, groups float[G, C], radii float[G]) of a seed.
    """
    settings, ascent = given
    variables, groups, radii = moved
    images, labels, mask = placed
    number, classes = groups.shape
    member = jnp.arange(number)[:, None] == jnp.argmax(groups, axis=0)[None]
    weights = (member[:, None] * tables[None]).reshape(-1, classes)
    found = sharpness.of_rule(
        _losses(settings, variables), lambda step: ClassWeights(None, groups, radii),
        variables["params"], labels, images, labels, class_weights=weights, ascent=ascent,
        mask=mask, batch_size=settings.each,
    )  # fmt: skip
    at = jnp.arange(number)
    return found.reshape(number, number, -1)[at, at].sum(axis=0)


def worst(settings: Settings, variables: Any, placed: Placed) -> jax.Array:
    images, labels, mask = placed
    return sharpness.worst(
        _losses(settings, variables), variables["params"], labels, images, labels,
        radius=settings.rho, steps=settings.steps, key=jax.random.key(KEY + 3), mask=mask,
        batch_size=settings.each,
    )  # fmt: skip


def density(settings: Settings, variables: Any, placed: Placed, grid: jax.Array) -> jax.Array:
    return curvature.spectral_density(
        _matvec(settings, variables, placed), variables["params"], grid,
        key=jax.random.key(KEY + 4), iterations=settings.iterations, probes=settings.density,
    )  # fmt: skip


def surface(settings: Settings, variables: Any, placed: Placed, tables: Any, axis: Any) -> Any:
    images, labels, mask = placed
    params = variables["params"]
    directions = [
        landscape.filter_normalised(
            landscape.random_direction(params, key=jax.random.key(KEY + 5 + k)), params
        )
        for k in range(2)
    ]
    return landscape.losses(
        _losses(settings, variables), params, directions, landscape.grid(axis, axis), labels,
        images, labels, class_weights=tables, mask=mask, batch_size=settings.each,
    )  # fmt: skip


def between(
    given: tuple[Settings, Any], variables: Any, placed: Placed, tables: Any, directions: Any,
    coordinates: Any,
) -> jax.Array:  # fmt: skip
    """[P, K] of losses at points of a line or plane through models.

    Running statistics belong to one model each: between models each point has its own, the mean
    over micro-batches of what these rows have there.

    Args:
      given: the settings, and what makes statistics of (variables, images), or None without.
      variables: of the model at the origin.
    """
    settings, statistics = given
    images, labels, mask = placed
    number, each = len(labels) // settings.each, settings.each

    def at(t: jax.Array) -> jax.Array:
        params = jax.tree.map(
            lambda p, *along: p + sum(t[k] * d for k, d in enumerate(along)),
            variables["params"], *directions,
        )  # fmt: skip
        here = {**variables, "params": params}
        if statistics is not None:
            cut = jnp.moveaxis(images.reshape(each, number, *images.shape[1:]), 1, 0)
            of_parts = jax.lax.map(lambda part: statistics(here, part), cut)
            here |= jax.tree.map(lambda x: x.mean(axis=0), of_parts)
        return landscape.losses(
            _losses(settings, here), params, [], jnp.zeros((1, 0)), labels, images, labels,
            class_weights=tables, mask=mask, batch_size=each,
        )[0]  # fmt: skip

    return jax.lax.map(at, coordinates)


def _losses(settings: Settings, variables: Any) -> Any:
    rest = {name: value for name, value in variables.items() if name != "params"}

    def losses_fn(params: Any, images: Any, labels: Any) -> Any:
        outputs = settings.apply({"params": params, **rest}, images)
        return settings.loss(outputs, labels), outputs

    return losses_fn


def _matvec(settings: Settings, variables: Any, placed: Placed) -> Any:
    images, labels, mask = placed
    return curvature.hvp(
        _losses(settings, variables), variables["params"], labels, images, labels, mask=mask,
        batch_size=settings.each,
    )  # fmt: skip
