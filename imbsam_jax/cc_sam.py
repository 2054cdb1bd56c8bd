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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import arrays, checks, collectives
from imbsam_jax.ascent import bound_radius, norm
from imbsam_jax.class_rows import ClassRows, over_classes
from imbsam_jax.rows import (
    check_distributions,
    check_labels,
    check_losses,
    check_mask,
    check_pair,
    check_params,
    marked,
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
    checks.function("features_fn", features_fn, "(params, *args) -> (features, aux)")
    checks.function(
        "head_losses_fn", head_losses_fn, "(params, features, *args) -> (losses float[B], aux)"
    )
    if perturbed_losses_fn is not None:
        checks.function("perturbed_losses_fn", perturbed_losses_fn, "as head_losses_fn, or None")
    checks.truth("sync_ascent", sync_ascent)
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
    there_fn = head_losses_fn if perturbed_losses_fn is None else perturbed_losses_fn

    def f(params: Any, labels: Any, *args: Any, step: Any = None, mask: Any = None) -> Any:
        check_step(step)
        labels = check_labels(labels)
        mask = check_mask(mask, labels.shape[0])
        _check_classes(labels, counts.size, variant)
        check_distributions(labels, mask)
        ratio = noise_ratio
        if callable(ratio):
            require_step(step)
            ratio = checks.number("noise_ratio", ratio(step), least=0)
        local = collectives.varying(check_params(params), axis_name)
        moving, fixed, join = _split(local, None if perturb == "all" else classifier)

        if perturb == "classifier":
            features, pull_features, features_aux = jax.vjp(
                lambda p: _check_features(features_fn(p, *args)), local, has_aux=True
            )
        else:
            features, features_aux = (), None

        def run(fn: Any, moving: Any, fixed: Any, features: Any) -> tuple[jax.Array, Any]:
            p, aux = join(moving, fixed), features_aux
            if perturb == "all":
                features, aux = _check_features(features_fn(p, *args))
            losses, head_aux = check_pair(fn(p, features, *args))
            return check_losses(losses, labels), (aux, head_aux)

        losses, pull, aux = jax.vjp(
            lambda *parts: run(head_losses_fn, *parts), moving, fixed, features, has_aux=True
        )
        wide = checks.at_least_float32(losses.dtype)
        rows = ClassRows(labels, mask, counts.size, wide, axis_name, sync_ascent)
        flat = checks.like(flat_ratio, rows.scale)
        length_w = norm(moving)
        size = sum(leaf.size for leaf in moving)

        def of_classes(classes: jax.Array) -> tuple[Any, Any, Any]:
            """Sum over these classes of the gradient at theta + e_c; nothing for class C."""
            parts = rows.parts(classes)
            scales = rows.class_scales(classes) if variant == "release" else rows.scale_of_ascent
            ascent = jnp.broadcast_to(scales, classes.shape)[:, None] * parts
            directions = _each(
                lambda weights: pull(weights)[0], rows.varying(ascent.astype(losses.dtype))
            )
            if sync_ascent:
                directions = collectives.mean(directions, axis_name)
            root = jnp.asarray(roots, wide).at[classes].get(mode="fill", fill_value=0)
            factors = checks.like(ratio, root) * root
            points = _each(
                lambda pair: _moved(
                    moving, pair[0], length_w, size, pair[1], joint=variant == "paper"
                ),
                (directions, factors),
            )
            there, pull_there = jax.vjp(
                lambda points, fixed, features: _each(
                    lambda point: run(there_fn, point, fixed, features)[0], points
                ),
                points,
                fixed,
                features,
            )
            descent = (flat * rows.scale * parts).astype(there.dtype)
            of_points, *others = pull_there(rows.varying(descent))
            of_points = jax.tree.map(lambda x: _widened(x).sum(axis=0), of_points)
            return (of_points, *jax.tree.map(_widened, others))

        if checks.is_concrete(flat_ratio) and flat_ratio == 1:
            start = rows.varying(jax.tree.map(jnp.zeros_like, (moving, fixed, features)))
        else:
            clean = ((1 - flat) * rows.scale * rows.real).astype(losses.dtype)
            start = pull(rows.varying(clean))
        start = jax.tree.map(_widened, start)
        at_once = classes_at_once or (1 if perturb == "all" else max(1, 2**24 // size))
        total = over_classes(of_classes, start, rows, at_once)
        total = jax.tree.map(lambda x, like: x.astype(like.dtype), total, (moving, fixed, features))

        grads = join(total[0], total[1])
        if perturb == "classifier":
            grads = jax.tree.map(jnp.add, grads, pull_features(total[2])[0])
        grads = jax.tree.map(lambda x: x * rows.valid.astype(x.dtype), grads)
        mean_loss = jnp.where(rows.real == 0, 0, losses).sum(dtype=wide) * rows.scale
        mean_loss, grads = collectives.mean((mean_loss, grads), axis_name)
        return (mean_loss, aux), grads

    return f


def _moved(
    moving: list[jax.Array],
    direction: list[jax.Array],
    length_w: jax.Array,
    size: int,
    ratio: Any,
    joint: bool,
) -> list[jax.Array]:
    """w + e_c; e_c is zero where d_c is. `ratio` is noise_ratio * (n_c - 1)^(-1/4)."""
    whole = norm(direction)

    def one(leaf: jax.Array, d: jax.Array) -> jax.Array:
        length = whole if joint else norm([d])
        safe = jnp.where(length == 0, 1, length)
        radius = bound_radius(ratio, length_w, length, size)
        wide = _widened(leaf)
        step = _widened(d) / safe.astype(wide.dtype) * radius.astype(wide.dtype)
        return (wide + step).astype(leaf.dtype)

    return [one(leaf, d) for leaf, d in zip(moving, direction, strict=True)]


def _each(fn: Callable[[Any], Any], tree: Any) -> Any:
    """fn of each entry along the leading axis: vmapped, or called as it is where there is one."""
    if jax.tree.leaves(tree)[0].shape[0] == 1:
        result = fn(jax.tree.map(lambda x: x[0], tree))
        return jax.tree.map(lambda x: x[None], result)
    return jax.vmap(fn)(tree)


def _split(params: Any, classifier: Any) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """Leaves that move, leaves that do not, and how to put them together again."""
    leaves, structure = jax.tree.flatten(params)
    marks = [True] * len(leaves)
    if isinstance(classifier, str):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        names = [[jax.tree_util.keystr((key,), simple=True) for key in path] for path in paths]
        marks = [classifier in entries for entries in names]
        if not any(marks):
            known = sorted({entries[0] for entries in names if entries})
            raise ValueError(
                f"no parameter lies under {classifier!r}: name the classifier by classifier=; "
                f"the top level has {', '.join(known) or 'no names'}"
            )
    elif classifier is not None:
        marks = marked(classifier, params, "classifier")
        if not any(marks):
            raise ValueError("the mask given as classifier marks no parameter")

    def join(moving: list[Any], fixed: list[Any]) -> Any:
        first, second = iter(moving), iter(fixed)
        return jax.tree.unflatten(structure, [next(first if m else second) for m in marks])

    moving = [leaf for leaf, mark in zip(leaves, marks, strict=True) if mark]
    fixed = [leaf for leaf, mark in zip(leaves, marks, strict=True) if not mark]
    return moving, fixed, join


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(checks.at_least_float32(leaf.dtype))


def _checked_counts(class_counts: ArrayLike) -> NDArray[np.int64]:
    counts = arrays.counts(class_counts)
    single = np.flatnonzero(counts == 1)
    if single.size:
        raise ValueError(
            f"class {single[0]} has 1 example ({single.size} such classes): its radius divides by "
            "(n_c - 1)^(1/4); CC-SAM needs at least 2 examples of every class"
        )
    return counts


def _check_features(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "features_fn must return a pair (features, aux); return (features, None) where there "
            f"is nothing else to return. Got {type(result).__name__}"
        )
    return result


def _check_classes(labels: jax.Array, num_classes: int, variant: str) -> None:
    if labels.ndim == 2:
        if variant == "release":
            raise ValueError(
                "the release groups rows by one class: pass int[B] labels (the first label of a "
                "mixed pair) and mix inside the losses"
            )
        if labels.shape[1] != num_classes:
            raise ValueError(
                f"soft labels have {labels.shape[1]} classes, class_counts has {num_classes}"
            )
