"""Linear classifiers of long-tailed recognition: balanced in their norms, during or after training.

Pure functions on arrays: a kernel is float[F, C] (F features, C classes), so a class is a column.
Frequent classes get long columns; each method here evens them out in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from imbsam_jax import arrays, checks
from imbsam_jax.norms import lengths, near_one
from imbsam_jax.rows import marked

__all__ = [
    "MaxNormState",
    "adjust_logits",
    "fold_scales",
    "lws_logits",
    "max_norm",
    "max_norm_project",
    "max_norm_radius",
    "normalised_init",
    "normalised_linear",
    "tau_normalise",
]

PyTree = Any


def tau_normalise(kernel: jax.Array, tau: float = 1.0) -> jax.Array:
    """Columns divided by a power of their norm, `W_c / ||W_c||_2^tau`.

    Args:
      kernel: float[F, C] of a trained classifier.
      tau: finite; 0 leaves the kernel as it is, 1 makes every norm 1. Choose it on held-out data.

    Returns:
      float[F, C], the kernel's dtype; a zero column stays zero. Logits are
      `x @ tau_normalise(kernel, tau)` WITHOUT a bias: the method drops it.

    Raises:
      ValueError: a kernel that is no matrix of real numbers, a tau that is not finite.

    Source: Kang et al., ICLR 2020 (tau swept from 0 to 2); weight balancing uses 1.9.

    >>> tau_normalise(jnp.array([[0.0, 0.0], [4.0, 2.0]]), 2.0).tolist()
    [[0.0, 0.0], [0.25, 0.5]]
    """
    kernel = _checked_kernel(kernel)
    tau = checks.number("tau", tau)
    near, norms, scales = _with_norms(kernel)
    tau = checks.like(tau, near)
    # A power of the scale for itself: that of the norm may leave the range where the column does
    # not. The scale is one of 2, and a kernel at tau 0 stays as it is.
    scaled = near / norms**tau * scales ** (1 - tau)
    return checks.nan_with(tau, scaled.astype(kernel.dtype))


def lws_logits(logits: jax.Array, scales: jax.Array) -> jax.Array:
    """Learnable weight scaling: logits of a frozen classifier, one learnt factor per class.

        z_c = f_c (W_c x + b_c)

    Args:
      logits: float[B, C], `x @ kernel + bias` of the frozen classifier; the bias is scaled too.
      scales: float[C], the only parameters trained; start from ones.

    Returns:
      float[B, C], the wider dtype of the two.

    Raises:
      ValueError: scales that are not one for each class.

    Source: Kang et al., ICLR 2020; five epochs with class-balanced sampling.

    >>> lws_logits(jnp.array([[1.0, 2.0]]), jnp.array([1.0, 3.0])).tolist()
    [[1.0, 6.0]]
    """
    logits, scales = _checked_logits(logits), arrays.floating("scales", scales)
    if scales.shape != logits.shape[-1:]:
        raise ValueError(
            f"scales must be float[{logits.shape[-1]}], one per class, got {scales.shape}"
        )
    logits, scales = checks.alike(logits, scales)
    return logits * jnp.reshape(scales, (1,) * (logits.ndim - 1) + (-1,))


def fold_scales(
    kernel: jax.Array, bias: jax.Array, scales: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The plain classifier whose logits are `lws_logits`, once the scales are learnt.

        W'_c = f_c W_c,   b'_c = f_c b_c

    Args:
      kernel: float[F, C].
      bias: float[C].
      scales: float[C].

    Returns:
      (kernel float[F, C], bias float[C]), each the wider dtype of it and the scales.

    Raises:
      ValueError: shapes that do not fit.

    Source: Kang et al., ICLR 2020.

    >>> fold_scales(jnp.ones((1, 2)), jnp.ones(2), jnp.array([1.0, 3.0]))[0].tolist()
    [[1.0, 3.0]]
    """
    kernel = _checked_kernel(kernel)
    bias, factors = arrays.floating("bias", bias), arrays.floating("scales", scales)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must be float{list(kernel.shape[1:])}, got shape {bias.shape}")
    scaled = lws_logits(kernel, scales)
    bias, factors = checks.alike(bias, factors)
    return scaled, bias * factors


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
    kernel = _checked_kernel(kernel)
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
    return _projected(_checked_kernel(kernel), _checked_radius(radius))


def _projected(kernel: jax.Array, radius: Any) -> jax.Array:
    near, norms, scales = _with_norms(kernel)
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
            else jnp.asarray(radius, _wide_dtype(kernel))
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


def normalised_linear(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cosine logits: rows of the features and columns of the kernel have norm 1; no bias.

        z_c = <x, W_c> / (||x||_2 ||W_c||_2)

    Args:
      features: float[B, F].
      kernel: float[F, C]; see `normalised_init`.

    Returns:
      float[B, C], in [-1, 1] and at least float32; 0, with a zero gradient, for a zero row or
      column.

    Raises:
      ValueError: shapes that do not fit, features or a kernel that are not real numbers.

    Source: the normalised head of Cao et al., NeurIPS 2019, that `losses.ldam` expects.

    >>> round(float(normalised_linear(jnp.array([[3.0, 4.0]]), jnp.array([[2.0], [0.0]]))[0, 0]), 4)
    0.6
    """
    kernel = _checked_kernel(kernel)
    features = arrays.real("features", features)
    if features.ndim != 2 or features.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"features must be float[B, {kernel.shape[0]}], got shape {list(features.shape)}"
        )
    left, right = checks.alike(_unit(features.T).T, _unit(kernel))
    return left @ right


def normalised_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """An initialiser for `normalised_linear`: uniform in [-1, 1], each column scaled to norm 1.

    Args:
      key: a random key.
      shape: (F, C).
      dtype: of the result, a floating one.

    Returns:
      float[F, C].

    Raises:
      ValueError: a shape that is not (F, C), a dtype that is not floating, a key that is none.

    Source: the initialisation of the normalised head in the release of Cao et al., NeurIPS 2019.

    >>> kernel = normalised_init(jax.random.key(0), (3, 2))
    >>> [round(float(norm), 4) for norm in jnp.linalg.norm(kernel, axis=0)]
    [1.0, 1.0]
    """
    checks.one_key("key", key)
    dtype = _floating_dtype(dtype)
    if not (isinstance(shape, tuple | list) and len(shape) == 2):
        raise ValueError(f"shape must be (F, C), got {checks.short(shape)}")
    shape = tuple(checks.whole("each number of shape", size, 0) for size in shape)
    kernel = jax.random.uniform(key, shape, checks.at_least_float32(dtype), -1.0, 1.0)
    return _unit(kernel).astype(dtype)


def adjust_logits(logits: jax.Array, class_counts: ArrayLike, *, tau: float = 1.0) -> jax.Array:
    """Post-hoc logit adjustment, `z_c - tau log pi_c` with `pi_c = n_c / N`: predict its argmax.

    Args:
      logits: float[B, C] of a model trained with plain cross-entropy.
      class_counts: int[C], training examples of each class, each at least 1.
      tau: finite; 1 aims at the balanced error.

    Returns:
      float[B, C], like logits.

    Raises:
      ValueError: counts that are not positive or not one for each logit, a tau that is not finite.

    Source: Menon et al., ICLR 2021. To train with the adjustment instead, see
    `losses.logit_adjusted`.

    >>> int(adjust_logits(jnp.array([[1.0, 0.0]]), [90, 10])[0].argmax())
    1
    """
    counts, logits = arrays.counts(class_counts), _checked_logits(logits)
    if logits.shape[-1] != counts.size:
        raise ValueError(f"there are {counts.size} class counts but {logits.shape[-1]} logits")
    tau = checks.number("tau", tau)
    shifts = jnp.asarray(tau * np.log(counts / counts.sum()), logits.dtype)
    return logits - jnp.reshape(shifts, (1,) * (logits.ndim - 1) + (-1,))


def _checked_kernel(kernel: Any) -> jax.Array:
    kernel = arrays.floating("kernel", kernel)
    if kernel.ndim != 2:
        raise ValueError(f"kernel must be float[F, C], got shape {list(kernel.shape)}")
    return kernel


def _checked_logits(logits: Any) -> jax.Array:
    logits = arrays.floating("logits", logits)
    if logits.ndim < 1:
        raise ValueError(f"logits must be float[B, C], got shape {list(logits.shape)}")
    return logits


def _floating_dtype(dtype: Any) -> Any:
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:  # of what is no type
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        given = checks.short(dtype if found is None else found, str)
        raise ValueError(f"dtype must be a floating one, got {given}")
    return found


def _checked_radius(radius: ArrayLike) -> Any:
    return checks.number("radius", radius, above=0, wanted="positive and finite")


def _wide_dtype(array: jax.Array) -> Any:
    return checks.at_least_float32(array.dtype)


def _unit(kernel: jax.Array) -> jax.Array:
    """The kernel with columns of norm 1, at least float32; a zero column stays zero."""
    near, norms, _ = _with_norms(kernel)
    return near / norms


def _with_norms(kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel over scales [1, C], near 1 and at least float32, its norms so, and the scales.

    Both are 1 for a zero column: the root is taken where it has a slope only, so that the gradient
    of one is zero.
    """
    near, scales = near_one(kernel, axis=0)
    squares = jnp.sum(jnp.square(near), axis=0, keepdims=True)
    return near, jnp.sqrt(jnp.where(squares == 0, 1, squares)), scales
