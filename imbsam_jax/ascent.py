"""How far and along what a group is perturbed: the solution of one small problem.

    e = argmax <d, e>  subject to  ||e / T||_p <= radius          (ImbSAM, Eq. 7; ASAM for T)

for an ascent gradient d. With `1/p + 1/q = 1` and `h = T d`, taken over all parameters at once,

    e = radius * T * sign(h) |h|^(q-1) / (||h||_q^q)^(1/p)

which for p = 2 and T = 1 is `radius * d / ||d||_2`. Of several groups d may be what of each
gradient is orthogonal to their sum, and the radius may come from a bound: `rules.gsa` brings both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from imbsam_jax import checks, collectives
from imbsam_jax.checks import at_least_float32
from imbsam_jax.norms import or_one, root
from imbsam_jax.rows import check_like, marked

__all__ = ["Ascent", "asam_scale", "magnitude_scale"]

PyTree = Any


class Ascent(NamedTuple):
    """How the perturbation is taken, for both front doors.

    Attributes:
      p: the norm of the ball, over 1 (infinity included); 2 in every paper.
      adaptive: `params -> T`, an elementwise scale of the ball (`asam_scale()`,
        `magnitude_scale`), or None for a plain ball.
      perturb: which parameters move: a tree of bools like the parameters (or a prefix of it), or
        a function that makes one; None moves all. Norms are taken over those that move. Anything
        but a bool is refused: a label such as "frozen" would be true.
      group_mean: divide each part by the number of its own rows instead of the batch size, as
        the "imbsam" mode of the SSE-SAM release does. A part without a row contributes nothing.
      weight_decay: puts `0.5 * weight_decay * ||theta||_2^2`, over all parameters, into the
        perturbed loss: it enters the direction, and its gradient is taken at theta + e. With
        `rules.sam` this is the official JAX SAM. Several groups share it evenly; a rule without
        groups has it at theta, as `optax.add_decayed_weights` would. It is no part of the rows:
        tail_scale does not scale it, and a group without a row in the batch still moves by it,
        except under group_mean. Finite and at least 0, a number or a traced scalar. 0, the
        default, leaves weight decay to Optax, outside and at theta, as all released PyTorch code
        has it; with any other value give Optax none.
      direction: what d is of each group's gradient d_k, beside the sum of all of them, over the
        parameters that move: "plain" is d_k, "projection" its part along the sum, "orthogonal"
        the rest. Of a group that is alone in the batch the rest is exactly 0, and so it is where
        it is no more than rounding.
      bound: the radius of a generalisation bound (GSA): times
        `sqrt(||theta|| / (2 ||d||)) P^(1/4)`, for P parameters that move and their norm; 0 where
        either norm is 0. With p = 2 and a plain ball alone.

    Neither a direction nor a bound goes with group_mean.
    """

    p: float = 2.0
    adaptive: Callable[[PyTree], PyTree] | None = None
    perturb: PyTree | Callable[[PyTree], PyTree] | None = None
    group_mean: bool = False
    weight_decay: float | jax.Array = 0.0
    direction: Literal["plain", "orthogonal", "projection"] = "plain"
    bound: bool = False

    def of(self, rule: Any) -> Ascent:
        """This ascent, with the fields that the rule brings as its own (`rules.gsa`)."""
        brought: dict[str, Any] = getattr(rule, "ascent", {})
        for name, value in brought.items():
            own = getattr(self, name)
            if own != value and own != Ascent._field_defaults[name]:
                raise ValueError(
                    f"{name}={own!r} beside a rule that brings {value!r} (rules.gsa): leave it out"
                )
        return self._replace(**brought)


def check_ascent(ascent: Any, rule: Any = None) -> Ascent:
    """Refuses what is no Ascent, fields of it that do not go together, or not with the rule.

    Returns it with p as a number of Python's.
    """
    if not isinstance(ascent, Ascent):
        raise TypeError(
            "ascent must be an imbsam_jax.Ascent(...), left out for a plain ball; got "
            f"{checks.short(ascent)}"
        )
    if ascent.adaptive is not None:
        checks.function("adaptive", ascent.adaptive, "params -> T, such as asam_scale(), or None")
    checks.truth("group_mean", ascent.group_mean)
    checks.truth("bound", ascent.bound)
    ascent = ascent._replace(p=_order(ascent.p))
    _check(ascent.of(rule))
    return ascent


def _order(p: Any) -> float:
    """The p of a norm: it chooses the formula, so it cannot be traced."""
    if not checks.is_concrete(p):
        raise ValueError("p must be known when it is given, not traced under jit")
    if isinstance(p, np.generic | np.ndarray | jax.Array) and p.ndim == 0:
        p = p.item()
    if not (isinstance(p, int | float) and p > 1):
        raise ValueError(
            f"p must be over 1, got {checks.short(p)}: a number, infinity included (the step of "
            "p = 1 is one coordinate)"
        )
    return p


def moved_points(
    params: PyTree, directions: list[PyTree], radii: Any, ascent: Ascent
) -> list[PyTree]:
    """theta + e_k of each group, from the gradients of all of them."""
    _check(ascent)
    if ascent.direction != "plain":
        directions = _beside_the_sum(params, directions, ascent)
    pairs = zip(directions, radii, strict=True)
    return [perturbed(params, direction, radius, ascent) for direction, radius in pairs]


def perturbed(params: PyTree, direction: PyTree, radius: Any, ascent: Ascent) -> PyTree:
    """theta + e in the parameters' dtype; e and its norm are at least float32.

    Zero-safe without an epsilon: where the direction is exactly zero so is e. A direction that is
    not finite gives an e that is not finite.
    """
    _check(ascent)
    params_wide = jax.tree.map(_widened, params)
    scale = None
    if ascent.adaptive is not None:
        scale = check_like("what adaptive returns", ascent.adaptive(params_wide), params)
    h = _moving(params, jax.tree.map(_widened, direction), ascent)
    if scale is not None:
        h = jax.tree.map(jnp.multiply, scale, h)
    if ascent.bound:
        of_moving = _moving(params, params_wide, ascent)
        size = _moving_count(params, ascent)
        radius = bound_radius(radius, norm(of_moving), norm(h), size)

    _, h = _over_peak(h)
    if ascent.p == 2:
        total = _total(jnp.square, h)
        length = root(total)
    else:
        q = 1.0 if math.isinf(ascent.p) else ascent.p / (ascent.p - 1)
        total = _total(lambda x: _power(x, q), h)
        length = _power(total, 1 / ascent.p)
        h = jax.tree.map(lambda x: jnp.sign(x) * _power(x, q - 1), h)
    factor = jnp.asarray(radius, length.dtype) / jnp.where(total == 0, 1, length)
    e = jax.tree.map(lambda x: x * factor.astype(x.dtype), h)
    if scale is not None:
        e = jax.tree.map(jnp.multiply, scale, e)
    return jax.tree.map(lambda p, wide, x: (wide + x).astype(p.dtype), params, params_wide, e)


def bound_radius(factor: Any, length_w: jax.Array, length_d: jax.Array, size: int) -> jax.Array:
    """`factor * size^(1/4) sqrt(||w|| / (2 ||d||))`: of CC-SAM and GSA; 0 where ||d|| is 0."""
    ratio = length_w.astype(length_d.dtype) / (2 * or_one(length_d))
    radius = jnp.asarray(factor, length_d.dtype) * size**0.25 * root(ratio)
    return checks.nan_with(factor, jnp.where(length_d == 0, 0, radius))


def _check(ascent: Ascent) -> None:
    """What an ascent cannot be, alone or of several fields together."""
    if ascent.direction not in ("plain", "orthogonal", "projection"):
        raise ValueError(
            f"direction must be 'plain', 'orthogonal' or 'projection', got {ascent.direction!r}"
        )
    if ascent.bound and (ascent.p != 2 or ascent.adaptive is not None):
        raise ValueError(
            "the radius of a bound (rules.gsa) is that of a plain ball: leave p and adaptive out"
        )
    if ascent.group_mean and (ascent.bound or ascent.direction != "plain"):
        raise ValueError(
            "a direction beside the sum of all groups' and the radius of a bound (rules.gsa) take "
            "gradients divided by the batch size: leave group_mean out"
        )


def _moving(params: PyTree, tree: PyTree, ascent: Ascent) -> PyTree:
    """The tree, 0 where a parameter does not move."""
    if ascent.perturb is None:
        return tree
    keep = iter(marked(ascent.perturb, params, "perturb"))
    return jax.tree.map(lambda x: x if next(keep) else jnp.zeros_like(x), tree)


def _moving_count(params: PyTree, ascent: Ascent) -> int:
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    if ascent.perturb is None:
        return sum(sizes)
    keep = marked(ascent.perturb, params, "perturb")
    return sum(size for size, moves in zip(sizes, keep, strict=True) if moves)


def _beside_the_sum(params: PyTree, directions: list[PyTree], ascent: Ascent) -> list[PyTree]:
    """Of each d_k its part along d = sum_j d_j, or the rest of it; the same lengths, at least f32.

    proj_k = <d_k, d> / <d, d> d,   rest_k = d_k - proj_k
    """
    wide = [_moving(params, jax.tree.map(_widened, d), ascent) for d in directions]
    peak, wide = _over_peak(wide)
    total = jax.tree.map(lambda *leaves: sum(leaves), *wide)
    of_total = _dot(total, total)
    lengths = [_dot(d, d) for d in wide]

    def part(k: int) -> PyTree:
        share = _dot(wide[k], total) / or_one(of_total)
        along = jax.tree.map(lambda x: share.astype(x.dtype) * x, total)
        if ascent.direction == "projection":
            return along
        rest = jax.tree.map(jnp.subtract, wide[k], along)
        others = sum(length for j, length in enumerate(lengths) if j != k)
        # Below, what is left is the rounding of the subtraction, and no direction.
        eps = jnp.finfo(lengths[k].dtype).eps
        nothing = (others == 0) | (_dot(rest, rest) <= (32 * eps) ** 2 * lengths[k])
        return jax.tree.map(lambda x: jnp.where(nothing, 0, x), rest)

    parts = [part(k) for k in range(len(wide))]
    return [jax.tree.map(lambda x: x * peak.astype(x.dtype), one) for one in parts]


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return _once(jnp.asarray(sum(checks.alike(*jax.tree.leaves(products)))))


def _once(x: jax.Array) -> jax.Array:
    """The number itself, by a way that XLA keeps apart from what is made of it.

    What is summed over n leaves it would sum anew in the program of every leaf that reads it: n^2
    instructions, which for a ResNet-20 under `rules.gsa` take a minute to compile. A sort by places
    moves nothing and is never put into another program.
    """
    both = jnp.stack([x, x])
    places = collectives.varying_like(jnp.arange(2), both)
    return lax.sort((places, both), num_keys=1)[1][0]


def decayed(grads: PyTree, points: list[PyTree], ascent: Ascent, part: Any) -> PyTree:
    """grads, and the gradients of `part * 0.5 * weight_decay * ||.||_2^2` at the points."""
    rate = checks.number("weight_decay", ascent.weight_decay, least=0)
    if checks.is_concrete(rate) and rate == 0:
        return grads

    def leaf(g: jax.Array, *at: jax.Array) -> jax.Array:
        wide = _widened(g)
        share = jnp.asarray(part * rate, wide.dtype)
        return (wide + share * sum(_widened(p) for p in at)).astype(g.dtype)

    return jax.tree.map(leaf, grads, *points)


def asam_scale(eta: float = 0.01) -> Callable[[PyTree], PyTree]:
    """ASAM's ball: `T = |theta| + eta` for weights, 1 for biases.

    Args:
      eta: finite and at least 0, in the units of the parameters.

    Returns:
      `scale(params) -> T`, a tree like params, as `Ascent(adaptive=...)` takes it.

    Raises:
      ValueError: an eta out of its range.

    The original chooses tensors named "weight", which in PyTorch includes normalisation scales.
    Here every leaf whose last name does not contain "bias" counts as a weight; the `value` of an
    `nnx.Variable` and places in a list are no names.

    Source: Kwon et al., ICML 2021 (eta 0.01 in its class, 0 in its example script).

    >>> asam_scale(0.5)({"kernel": jnp.array([-2.0]), "bias": jnp.array([3.0])})["kernel"].tolist()
    [2.5]
    """

    least: Any = checks.number("eta", eta, least=0)

    def scale(params: PyTree) -> PyTree:
        def of(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            if "bias" in _last_name(path):
                return jnp.ones_like(leaf)
            return jnp.abs(leaf) + checks.like(least, leaf)

        return jax.tree_util.tree_map_with_path(of, params)

    return scale


def _last_name(path: tuple[Any, ...]) -> str:
    """The last entry that names the parameter: a box around it (nnx.Variable) has a value, too."""
    for key in reversed(path):
        boxed = isinstance(key, jax.tree_util.GetAttrKey) and key.name in ("value", "raw_value")
        number = isinstance(key, jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey)
        if not boxed and not number:
            return jax.tree_util.keystr((key,), simple=True)
    return ""


def magnitude_scale(params: PyTree) -> PyTree:
    """`T = |theta|` for every tensor: the adaptive option of davda54/sam.

    Args:
      params: theta, a tree of arrays.

    Returns:
      T, a tree like params, as `Ascent(adaptive=magnitude_scale)` takes it.

    >>> magnitude_scale({"bias": jnp.array([-3.0])})["bias"].tolist()
    [3.0]
    """
    return jax.tree.map(jnp.abs, params)


def norm(tree: PyTree) -> jax.Array:
    """||.||_2 over all leaves, at least float32 and as `perturbed` takes it."""
    peak, tree = _over_peak(jax.tree.map(_widened, tree))
    return peak * root(_total(jnp.square, tree))


def summed(*leaves: jax.Array) -> jax.Array:
    """Their sum, taken in at least float32, in the type of the first."""
    first, *others = (_widened(leaf) for leaf in leaves)
    return sum(others, start=first).astype(leaves[0].dtype)


def scaled(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """leaf * factor, taken in at least float32, in the type of the leaf."""
    wide = _widened(leaf)
    return (wide * factor.astype(wide.dtype)).astype(leaf.dtype)


def _over_peak(tree: PyTree) -> tuple[jax.Array, PyTree]:
    """max|h| and h / max|h|: the direction is the same, and no square under- or overflows.

    What is made of both does not depend on the peak, so that no derivative is taken of it.
    """
    of_leaves = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]
    peaks = jnp.stack(checks.alike(*of_leaves))
    # Sorted, not .max(): XLA would compute a maximum anew in the program of every leaf, which for
    # n leaves is n^2 instructions and a third of the time that a ResNet-32's step compiles.
    peak = lax.stop_gradient(jnp.sort(peaks)[-1])
    safe = or_one(peak)
    return peak, jax.tree.map(lambda x: x / safe.astype(x.dtype), tree)


def _total(of: Callable[[jax.Array], jax.Array], tree: PyTree) -> jax.Array:
    return jnp.asarray(sum(checks.alike(*(jnp.sum(of(x)) for x in jax.tree.leaves(tree)))))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _power(x: jax.Array, exponent: float) -> jax.Array:
    """|x|^exponent, flat where x is 0."""
    return jnp.abs(x) ** exponent


@_power.defjvp
def _power_jvp(exponent: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    safe = or_one(x)
    slope = exponent * jnp.sign(safe) * _power(safe, exponent - 1)
    return _power(x, exponent), jnp.where(x == 0, 0, slope) * t


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(at_least_float32(leaf.dtype))
