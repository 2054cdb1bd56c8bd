"""Class-conditional SAM: every class of the batch is perturbed on its own, rare ones further.

    g = (1 - flat_ratio) grad L(theta) + flat_ratio * sum_c grad L^c(theta + e_c)
    e_c = radius_c * d_c / ||d_c||_2,   d_c = grad_w L^c(theta),   L^c = (1/B) sum_{y_i = c} loss_i
    radius_c = noise_ratio * sqrt(||w||_2 / (2 ||d_c||_2)) * (k / (n_c - 1))^(1/4)

where w are the k perturbed parameters, by default the classifier alone. This does not fit the
table of rules.py (one group per class in the batch, a radius that depends on the gradient), so it
has a door of its own, of the same shape. The paper and its released code differ:

|                           | variant="paper"          | variant="release"                    |
|---------------------------|--------------------------|--------------------------------------|
| loss whose gradient is d_c| rows of c, divided by B  | mean over the rows of c              |
| norm of d_c               | joint over w             | of each tensor of w apart            |
| flat_ratio                | 1                        | 0.5 (CIFAR-100), 0.3 (CIFAR-10)      |
| noise_ratio               | 1 (there is none)        | 1e-6 as shipped: next to no movement |
| with mixup                | one soft label           | classes are those of the first label |

The release moves only the classifier, but differentiates the features through the moved one, as
both variants do here; its 1e-12 beside ||w|| is left out. Both divide by ||d_c||^(1/2): the
smaller a class's gradient, the *longer* its step, without a bound. The second stage trains the
classifier on `losses.feature_adversary`.

Source: Zhou et al., CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import arrays, checks, collectives
from imbsam_jax.ascent import bound_radius, norm
from imbsam_jax.class_rows import ClassRows, over_classes
from imbsam_jax.model_parts import ModelParts
from imbsam_jax.rows import (
    check_distributions,
    check_labels,
    check_mask,
    check_params,
)
from imbsam_jax.table import check_step, require_step

__all__ = ["value_and_grad"]


_NO_RATIO = (
    "noise_ratio must be chosen: the printed formula has 1, the release 1e-6; on long-tailed "
    "digits 1e-2 diverged and 1e-3 lost 62.6 +- 5.0 points to SGD (results/digits_lt), so start "
    "from 1e-6 and go up on held-out data"
)


def value_and_grad(
    features_fn: Callable[..., tuple[Any, Any]],
    head_losses_fn: Callable[..., tuple[jax.Array, Any]],
    class_counts: ArrayLike,
    *,
    variant: Literal["paper", "release"] = "paper",
    perturb: Literal["classifier", "all"] = "classifier",
    classifier: Any = "head",
    noise_ratio: Any = None,
    flat_ratio: Any = None,
    perturbed_losses_fn: Callable[..., tuple[jax.Array, Any]] | None = None,
    classes_at_once: int | None = None,
    axis_name: Any = None,
    sync_ascent: bool = True,
) -> Callable[..., Any]:
    """Mean loss and class-conditional sharpness-aware gradient; the formulas are the module's.

    Args:
      features_fn: `features_fn(params, *args) -> (features, aux)`: all but the classifier, as an
        array or a tree of arrays with leading axis B. With perturb="classifier" it runs once.
      head_losses_fn: `head_losses_fn(params, features, *args) -> (losses float[B], aux)`, one
        loss per example, not averaged. It runs once at theta and once per class in the batch.
      class_counts: int[C], training examples of each class, each at least 2.
      variant: "paper" or "release", see the table.
      perturb: "classifier" moves the classifier and shares one pass over the features. "all"
        moves every parameter, with a forward and two backward passes of the whole model per
        class in the batch.
      classifier: which parameters are the classifier: the name of an entry of their paths, a
        tree of bools like the parameters (or a prefix of it), or a function that makes one.
      noise_ratio: factor on every radius, finite and at least 0; a number, a scalar array or a
        schedule of the step. It has no default: 1, the printed formula, and what is near it break
        training, the released 1e-6 moves next to nothing (figures in the error that its absence
        raises).
      flat_ratio: weight of the perturbed part, between 0 and 1; None is 1 ("paper") or 0.5
        ("release").
      perturbed_losses_fn: the losses at theta + e, where they differ from head_losses_fn; the
        same signature, its aux is dropped. The release mixes inputs, takes d_c and L of the
        mixed losses, and at theta + e the plain loss of the first label.
      classes_at_once: how many classes are computed side by side; more is faster and takes
        so many copies of w. None chooses up to 2^24 numbers for the classifier, and 1 for "all".
        A derivative of the gradient by reverse mode needs all classes at once.
      axis_name: the device axis, inside pmap, shard_map or vmap; None under plain jit.
      sync_ascent: average d_c over the devices before it is used. False gives every device its
        own perturbations from its own rows.

    Returns:
      `f(params, labels, *args, step=None, mask=None) -> ((mean_loss, aux), grads)`.
        labels: int[B], or float[B, C] for soft labels ("paper" only): a row then belongs to a
          class with that part of its loss. A label outside [0, C) makes the gradient NaN.
        step: only for a noise_ratio that is a schedule.
        mask: bool[B], False for padding. B is then the number of True rows, over all devices.
        mean_loss: scalar, `(1/B) sum_i loss_i(theta)`, over all devices.
        aux: the pair of what features_fn and head_losses_fn returned at theta, of this device.
        grads: like params, the same dtypes, averaged over the devices.

    At most min(B, C) classes (C for soft labels) are visited, those in the batch; shapes do not
    depend on the labels.

    Raises:
      ValueError: a class with a single example, whose radius would be infinite; no parameter of
        that classifier; averaged losses; labels of another shape; options out of range.
      TypeError: losses or parameters that are not real arrays, marks that are not bools.

    Source: Zhou et al., CVPR 2023. Papers and digests do not say whether L^c is a sum or a mean
    over the batch; here it is divided by B, so that all d_c add up to the gradient.

    >>> def features_fn(params, x, y):
    ...     return x * params["scale"], None
    >>> def head_losses_fn(params, features, x, y):
    ...     return (features @ params["head"] - y) ** 2, None
    >>> f = jax.jit(value_and_grad(features_fn, head_losses_fn, [17, 2], noise_ratio=1.0))
    >>> params = {"scale": jnp.array(1.0), "head": jnp.array([1.0])}
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([0.0, 1.0])
    >>> (loss, _), grads = f(params, jnp.array([0, 1]), x, y)
    >>> float(loss), round(float(grads["head"][0]), 4)
    (1.0, 5.3536)
    """
    _check_functions(features_fn, head_losses_fn, perturbed_losses_fn)
    checks.truth("sync_ascent", sync_ascent)
    method = _method(
        class_counts, variant, perturb, flat_ratio, noise_ratio, classes_at_once, sync_ascent
    )
    there_fn = head_losses_fn if perturbed_losses_fn is None else perturbed_losses_fn

    def f(params: Any, labels: Any, *args: Any, step: Any = None, mask: Any = None) -> Any:
        labels, mask = _checked_rows(labels, mask, step, method)
        ratio = method.ratio_at(step)
        params = collectives.varying(check_params(params), axis_name)
        model = ModelParts(features_fn, params, args, labels, classifier, shared=method.shared)

        losses, pull, aux = jax.vjp(
            partial(model.losses, head_losses_fn), *model.parts, has_aux=True
        )
        wide = checks.at_least_float32(losses.dtype)
        rows = ClassRows(labels, mask, method.roots.size, wide, axis_name, sync_ascent)
        grads = model.joined(_gradient(method, ratio, model, there_fn, rows, losses, pull))

        grads = jax.tree.map(lambda x: x * rows.valid.astype(x.dtype), grads)
        mean_loss = jnp.where(rows.real == 0, 0, losses).sum(dtype=wide) * rows.scale
        mean_loss, grads = collectives.mean((mean_loss, grads), axis_name)
        return (mean_loss, aux), grads

    return f


def _gradient(
    method: _Method,
    ratio: Any,
    model: ModelParts,
    there_fn: Any,
    rows: ClassRows,
    losses: jax.Array,
    pull: Callable[[jax.Array], Any],
) -> Any:
    """This device's part of g, for each part of the model; L^c, d_c and e_c are the module's.

    Args:
      ratio: noise_ratio at this step.
      there_fn: the head's losses at theta + e_c.
      losses: float[B] at theta; pull: weights of them -> gradients of the parts.
    """
    w, *others = model.parts
    flat_ratio = checks.like(method.flat_ratio, rows.scale)
    radius = _Radius(method, ratio, w)

    def of_classes(classes: jax.Array) -> Any:
        """flat_ratio * grad L^c(theta + e_c), summed over these classes; nothing for class C."""
        of_class = rows.parts(classes)
        in_ascent = rows.of_ascent(classes, of_class, mean=method.release)
        d = _each(lambda weights: pull(weights)[0], rows.weights(in_ascent, losses))
        if method.sync:
            d = collectives.mean(d, rows.axis)
        points = _each(partial(_moved, w, radius), (d, radius.factors(classes, rows.scale.dtype)))
        there, pull_there = jax.vjp(partial(_losses_there, model, there_fn), points, *others)
        return _summed(*pull_there(rows.weights(flat_ratio * rows.scale * of_class, there)))

    if checks.is_concrete(method.flat_ratio) and method.flat_ratio == 1:
        at_theta = rows.varying(jax.tree.map(jnp.zeros_like, model.parts))
    else:
        at_theta = pull(rows.weights((1 - flat_ratio) * rows.scale * rows.real, losses))
    at_once = method.at_once(radius.size)
    return over_classes(of_classes, jax.tree.map(_widened, at_theta), rows, at_once)


def _losses_there(model: ModelParts, there_fn: Any, points: Any, fixed: Any, features: Any) -> Any:
    """float[K, B], the losses at each point."""
    return _each(lambda w: model.losses(there_fn, w, fixed, features)[0], points)


def _summed(of_points: Any, *others: Any) -> Any:
    of_w = jax.tree.map(lambda x: _widened(x).sum(axis=0), of_points)
    return (of_w, *jax.tree.map(_widened, others))


class _Radius:
    """noise_ratio * sqrt(||w|| / (2 ||d_c||)) * (k / (n_c - 1))^(1/4), but for what is of d_c.

    Attributes:
      length: ||w||_2.
      size: k, the number of perturbed parameters.
      joint: one norm of d_c for all of w, or one for each tensor.
    """

    def __init__(self, method: _Method, ratio: Any, w: list[jax.Array]) -> None:
        self._roots, self._ratio = method.roots, ratio
        self.length, self.size = norm(w), sum(leaf.size for leaf in w)
        self.joint = not method.release

    def factors(self, classes: jax.Array, dtype: Any) -> jax.Array:
        """float[K]: noise_ratio * (n_c - 1)^(-1/4) of each class; 0 for class C."""
        roots = jnp.asarray(self._roots, dtype).at[classes].get(mode="fill", fill_value=0)
        return checks.like(self._ratio, roots) * roots


def _moved(w: list[jax.Array], radius: _Radius, of_class: tuple[Any, Any]) -> list[jax.Array]:
    """w + e_c, of (d_c, the factor of c); e_c is zero where d_c is."""
    direction, factor = of_class
    whole = norm(direction)

    def one(leaf: jax.Array, d: jax.Array) -> jax.Array:
        length = whole if radius.joint else norm([d])
        safe = jnp.where(length == 0, 1, length)
        own = bound_radius(factor, radius.length, length, radius.size)
        wide = _widened(leaf)
        step = _widened(d) / safe.astype(wide.dtype) * own.astype(wide.dtype)
        return (wide + step).astype(leaf.dtype)

    return [one(leaf, d) for leaf, d in zip(w, direction, strict=True)]


def _each(fn: Callable[[Any], Any], tree: Any) -> Any:
    """fn of each entry along the leading axis: vmapped, or called as it is where there is one."""
    if jax.tree.leaves(tree)[0].shape[0] == 1:
        result = fn(jax.tree.map(lambda x: x[0], tree))
        return jax.tree.map(lambda x: x[None], result)
    return jax.vmap(fn)(tree)


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(checks.at_least_float32(leaf.dtype))


# ---- what may be given --------------------------------------------------------------------------


class _Method(NamedTuple):
    """The options of the door, checked.

    Attributes:
      roots: float[C], (n_c - 1)^(-1/4).
      release: whether as released; else as in the paper.
      shared: whether the classifier alone moves, over features that all points share.
      flat_ratio, noise_ratio: the latter a number or a schedule.
      classes_at_once: as it was given.
      sync: whether the devices' d_c are averaged.
    """

    roots: NDArray[np.floating[Any]]
    release: bool
    shared: bool
    flat_ratio: Any
    noise_ratio: Any
    classes_at_once: int | None
    sync: bool

    def at_once(self, size: int) -> int:
        """How many classes are computed side by side, of a w of this size."""
        return self.classes_at_once or (max(1, 2**24 // size) if self.shared else 1)

    def ratio_at(self, step: Any) -> Any:
        if not callable(self.noise_ratio):
            return self.noise_ratio
        require_step(step)
        return checks.number("noise_ratio", self.noise_ratio(step), least=0)


def _method(
    class_counts: ArrayLike,
    variant: str,
    perturb: str,
    flat_ratio: Any,
    noise_ratio: Any,
    classes_at_once: int | None,
    sync_ascent: bool,
) -> _Method:
    counts = _checked_counts(class_counts)
    roots = (counts - 1.0) ** -0.25
    if variant not in ("paper", "release"):
        raise ValueError(f"variant must be 'paper' or 'release', got {variant!r}")
    if perturb not in ("classifier", "all"):
        raise ValueError(f"perturb must be 'classifier' or 'all', got {perturb!r}")
    if flat_ratio is None:
        flat_ratio = 1.0 if variant == "paper" else 0.5
    flat_ratio = checks.number("flat_ratio", flat_ratio, least=0, most=1)
    if noise_ratio is None:
        raise ValueError(_NO_RATIO)
    if not callable(noise_ratio):
        noise_ratio = checks.number("noise_ratio", noise_ratio, least=0)
    if classes_at_once is not None:
        classes_at_once = checks.whole("classes_at_once", classes_at_once, 1)
    return _Method(
        roots=roots,
        release=variant == "release",
        shared=perturb == "classifier",
        flat_ratio=flat_ratio,
        noise_ratio=noise_ratio,
        classes_at_once=classes_at_once,
        sync=sync_ascent,
    )


def _check_functions(features_fn: Any, head_losses_fn: Any, perturbed_losses_fn: Any) -> None:
    checks.function("features_fn", features_fn, "(params, *args) -> (features, aux)")
    checks.function(
        "head_losses_fn", head_losses_fn, "(params, features, *args) -> (losses float[B], aux)"
    )
    if perturbed_losses_fn is not None:
        checks.function("perturbed_losses_fn", perturbed_losses_fn, "as head_losses_fn, or None")


def _checked_rows(labels: Any, mask: Any, step: Any, method: _Method) -> tuple[jax.Array, Any]:
    check_step(step)
    labels = check_labels(labels)
    mask = check_mask(mask, labels.shape[0])
    _check_classes(labels, method.roots.size, method.release)
    check_distributions(labels, mask)
    return labels, mask


def _checked_counts(class_counts: ArrayLike) -> NDArray[np.int64]:
    counts = arrays.counts(class_counts)
    single = np.flatnonzero(counts == 1)
    if single.size:
        raise ValueError(
            f"class {single[0]} has 1 example ({single.size} such classes): its radius divides by "
            "(n_c - 1)^(1/4); CC-SAM needs at least 2 examples of every class"
        )
    return counts


def _check_classes(labels: jax.Array, num_classes: int, release: bool) -> None:
    if labels.ndim == 2:
        if release:
            raise ValueError(
                "the release groups rows by one class: pass int[B] labels (the first label of a "
                "mixed pair) and mix inside the losses"
            )
        if labels.shape[1] != num_classes:
            raise ValueError(
                f"soft labels have {labels.shape[1]} classes, class_counts has {num_classes}"
            )
