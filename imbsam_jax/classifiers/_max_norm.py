"""Max-norm: no column of a kernel is longer than a radius, after each update of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from numpy.typing import ArrayLike

from imbsam_jax import checks
from imbsam_jax.classifiers._kernels import checked_kernel, with_norms
from imbsam_jax.norms import lengths
from imbsam_jax.rows import marked

PyTree = Any


def max_norm_radius(kernel: jax.Array, fraction: float = 0.1) -> jax.Array:
    """The radius that weight balancing takes from a first stage's classifier.

        radius = min_c ||W_c||_2 + fraction * (max_c ||W_c||_2 - min_c ||W_c||_2)

    Args:
      kernel: float[F, C] as the first stage left it; take the radius once, before fine-tuning.
      fraction: between 0 and 1.

    Returns:
      float[], at least float32.

    Raises:
      ValueError: a kernel that is no matrix of real numbers, a fraction out of its range.

    Source: the release of Alshammari et al., CVPR 2022.

    >>> round(float(max_norm_radius(jnp.array([[1.0, 3.0]]))), 4)
    1.2
    """
    kernel = checked_kernel(kernel)
    fraction = checks.number("fraction", fraction, least=0, most=1)
    if kernel.shape[1] == 0:
        raise ValueError(f"kernel must have a class or more, got shape {list(kernel.shape)}")
    norms = lengths(kernel, axis=0)
    return norms.min() + checks.like(fraction, norms) * (norms.max() - norms.min())


def max_norm_project(kernel: jax.Array, radius: ArrayLike) -> jax.Array:
    """Every column pulled back into a ball, `W_c * min(1, radius / ||W_c||_2)`.

    Args:
      kernel: float[F, C].
      radius: finite and positive, for example `max_norm_radius` of the first stage.

    Returns:
      float[F, C], the kernel's dtype.

    Raises:
      ValueError: a kernel that is no matrix of real numbers, a bad radius.

    Source: Alshammari et al., CVPR 2022.

    >>> max_norm_project(jnp.array([[1.0, 3.0]]), 2.0).tolist()
    [[1.0, 2.0]]
    """
    return _projected(checked_kernel(kernel), _checked_radius(radius))


def _projected(kernel: jax.Array, radius: Any) -> jax.Array:
    near, norms, scales = with_norms(kernel)
    scale = jnp.asarray(radius, near.dtype) / scales / norms
    # So that a scale of NaN is not lost.
    return (jnp.where(scale >= 1, near, near * scale) * scales).astype(kernel.dtype)


class MaxNormState(NamedTuple):
    """Updates made so far, and the radius of each projected kernel, in the order of the leaves."""

    step: jax.Array
    radii: tuple[jax.Array, ...]


def max_norm(
    mask: PyTree | Callable[[PyTree], PyTree],
    radius: ArrayLike | None = None,
    *,
    fraction: float = 0.1,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Max-norm projection after each update; the last link of a chain.

        W_c <- W_c * min(1, radius / ||W_c||_2),   after W <- W + update

    Args:
      mask: which parameters are classifiers: a tree of bools like the parameters (or a prefix of
        it), or a function that makes one. Of these, vectors (biases) are left alone.
      radius: finite and positive, for all of them, or None: each kernel's `max_norm_radius` in the
        parameters given to `init`, which are those of the first stage.
      fraction: between 0 and 1, for radius None.
      every: project after every so many updates, at least 1; 1 as in the paper. The release
        projects once an epoch: pass the number of steps per epoch.

    Returns:
      An Optax transformation with state `MaxNormState`; the updates that come out of it lead to
      the projected kernels up to rounding.

    Raises:
      ValueError: a number out of its range; when called, a mask without a kernel, with one that is
        no matrix, or of another structure, params missing, updates of other shapes.
      TypeError: when called, a mask of anything but bools, a state of another transformation.

    Source: Alshammari et al., CVPR 2022. Their kernels are [classes, features]; here a class is a
    column.

    >>> params = {"head": jnp.array([[1.0, 3.0]])}
    >>> tx = optax.chain(optax.sgd(1.0), max_norm({"head": True}, 2.0))
    >>> updates, _ = tx.update({"head": jnp.array([[-4.0, 0.0]])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["head"].tolist()
    [[2.0, 2.0]]
    """
    if radius is not None:
        radius = _checked_radius(radius)
    checks.number("fraction", fraction, least=0, most=1)
    is_period = checks.steps("every", every, 1, "at least 1 update, a whole number")

    def chosen(params: PyTree) -> list[bool]:
        pairs = zip(marked(mask, params, "max_norm's mask"), jax.tree.leaves(params), strict=True)
        picks = [keep and jnp.ndim(leaf) > 1 for keep, leaf in pairs]
        for pick, leaf in zip(picks, jax.tree.leaves(params), strict=True):
            if pick and jnp.ndim(leaf) > 2:
                raise ValueError(
                    f"max_norm projects kernels float[F, C], and one is float{list(leaf.shape)}: "
                    "leave it out of the mask, or reshape it"
                )
        if not any(picks):
            raise ValueError("the mask of max_norm marks no kernel (no matrix): mark the head's")
        return picks

    def init(params: PyTree) -> MaxNormState:
        kernels = [
            p for p, pick in zip(jax.tree.leaves(params), chosen(params), strict=True) if pick
        ]
        radii = tuple(
            max_norm_radius(kernel, fraction)
            if radius is None
            else jnp.asarray(radius, checks.at_least_float32(kernel.dtype))
            for kernel in kernels
        )
        return MaxNormState(jnp.zeros((), jnp.int32), radii)

    def update(
        updates: PyTree, state: MaxNormState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, MaxNormState]:
        del extra_args
        if params is None:
            raise ValueError("max_norm needs params: call update(updates, state, params)")
        if not isinstance(state, MaxNormState):
            raise TypeError(
                "max_norm needs its own state, that init or the last update returned: of a chain "
                f"that of the whole chain. Got a {type(state).__name__}"
            )
        step = optax.safe_increment(state.step)
        number, period = checks.as_steps(step, every)
        now = number % period == 0
        radii = iter(state.radii)

        def moved(pick: bool, change: jax.Array, kernel: jax.Array) -> jax.Array:
            if not pick:
                return change
            change = jnp.asarray(change)
            target = _projected(kernel + change, next(radii))
            return jnp.where(now, (target - kernel).astype(change.dtype), change)

        leaves, structure = jax.tree.flatten(updates)
        kernels = jax.tree.leaves(params)
        if list(map(jnp.shape, leaves)) != list(map(jnp.shape, kernels)):
            raise ValueError(
                "max_norm needs an update for each parameter, of its shape; give both without "
                "what is not trained"
            )
        projected = [moved(*each) for each in zip(chosen(params), leaves, kernels, strict=True)]
        projected = checks.nan_unless(is_period, projected)
        return jax.tree.unflatten(structure, projected), MaxNormState(step, state.radii)

    return optax.GradientTransformationExtraArgs(init, update)


def _checked_radius(radius: ArrayLike) -> Any:
    return checks.number("radius", radius, above=0, wanted="positive and finite")
