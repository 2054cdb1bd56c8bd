"""The methods as tables: each is a function of the step that returns `ClassWeights`.

    g(theta) = grad L[base](theta) + sum_k grad L[group_k](theta + e_k)
    e_k = radius_k * d_k / ||d_k||_2,   d_k = grad L[group_k](theta)
    L[w](theta) = (1/B) sum_i w[y_i] loss_i(theta)

A method is three choices: the weight of each class in the part taken at theta (`base`), the
weight of each class in each perturbed part (`groups`), and how far each part is perturbed
(`radii`).

| rule                | base[c]    | groups               | radii             |
|---------------------|------------|----------------------|-------------------|
| sgd                 | 1          | none                 |                   |
| sam                 | none       | 1                    | rho               |
| reweighted_sam      | none       | head + weight * tail | rho               |
| imbsam              | head(c)    | tail_scale * tail(c) | rho               |
| focal_sam           | 1 - s(c)   | s(c)                 | rho               |
| sse_sam, then       | none       | head(c); tail(c)     | head_rho; tail_rho|
| sse_sam, from switch| head(c)    | tail(c)              | tail_rho          |
| gsa                 | none       | one per group        | by a bound        |

A new method is one more function here. Which parts exist is fixed when a rule is built; the
numbers may be traced, so a radius may be a float, a scalar array or a schedule of the step. With
numbers that are known a table is of float64[...] of NumPy, else of JAX's default float. A schedule
is checked when it is called: without a step, or with a radius out of range, a ValueError.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from imbsam_jax import arrays, checks
from imbsam_jax.priors import shot_splits, tail_classes
from imbsam_jax.table import (
    Bringing,
    ClassWeights,
    Rule,
    Scalar,
    ScalarOrSchedule,
    checked_radius,
    radii_at,
    stagewise,
)

__all__ = [
    "ClassWeights",
    "Rule",
    "focal_sam",
    "gsa",
    "imbsam",
    "reweighted_sam",
    "sam",
    "sgd",
    "sse_sam",
    "stagewise",
]


def sgd(num_classes: int) -> Rule:
    """Plain gradient: base 1, nothing perturbed.

        g = grad L(theta)

    Args:
      num_classes: C, at least 1.

    Returns:
      A rule: base float[C], groups float[0, C], radii float[0].

    Raises:
      ValueError: num_classes that is no whole number from 1 on.

    >>> sgd(3)(None).base.tolist()
    [1.0, 1.0, 1.0]
    """
    ones = _ones(num_classes)
    table = ClassWeights(ones, np.zeros((0, ones.size)), np.zeros(0))
    return lambda step: table


def sam(num_classes: int, *, rho: ScalarOrSchedule) -> Rule:
    """Sharpness-aware minimization: every class in one perturbed group.

        g = grad L(theta + rho * d / ||d||_2),  d = grad L(theta)     (ImbSAM, Eq. 7 to 9)

    Args:
      num_classes: C, at least 1.
      rho: radius, finite and at least 0; a number, a scalar array or a schedule of the step.

    Returns:
      A rule: base None, groups float[1, C], radii float[1].

    Raises:
      ValueError: num_classes that is no whole number from 1 on, a bad rho.

    Source: Foret et al., ICLR 2021. The official JAX release puts weight decay inside the
    perturbed loss; here it stays outside, in Optax.

    >>> sam(2, rho=0.05)(None).radii.tolist()
    [0.05]
    """
    ones = _ones(num_classes)
    rho = checked_radius("rho", rho)
    return lambda step: ClassWeights(None, ones[None], radii_at(step, rho=rho))


def reweighted_sam(
    class_counts: ArrayLike,
    *,
    rho: ScalarOrSchedule,
    eta: float,
    tail_weight: Scalar,
    strict: bool = False,
) -> Rule:
    """SAM on a loss that weighs the tail more: the control of the ImbSAM paper's Table 3.

        g = grad L[w](theta + rho * d / ||d||_2),   d = grad L[w](theta)
        w(c) = tail_weight where n_c <= eta, else 1

    Args:
      class_counts: int[C], training examples of each class, each at least 1.
      rho: radius, finite and at least 0; a number, a scalar array or a schedule.
      eta: largest count of a tail class; must leave at least one head and one tail class.
      tail_weight: finite and positive; 1 is SAM. The table has 2, 3, 5, 10 and 20.
      strict: tail is `n_c < eta`.

    Returns:
      A rule: base None, groups float[1, C], radii float[1].

    Raises:
      ValueError: counts that are not positive, an eta without head or tail, a bad rho or weight.

    Source: Zhou et al., ICCV 2023, Table 3. The paper does not say whether the ascent is weighted
    too; here it is, as when a weighted loss is given to SAM.

    >>> reweighted_sam([500, 80, 5], rho=0.05, eta=100, tail_weight=3.0)(None).groups.tolist()
    [[1.0, 3.0, 3.0]]
    """
    head, tail = _head_and_tail(class_counts, eta, strict)
    rho = checked_radius("rho", rho)
    tail_weight = checks.number("tail_weight", tail_weight, above=0)
    groups = (head + tail_weight * tail)[None]
    return lambda step: ClassWeights(None, groups, radii_at(step, rho=rho))


def imbsam(
    class_counts: ArrayLike,
    *,
    rho: ScalarOrSchedule = 0.05,
    eta: float,
    tail_scale: Scalar = 1.0,
    strict: bool = False,
) -> Rule:
    """Imbalanced SAM: the head at theta, the tail at theta + e.

        g = grad L[head](theta) + tail_scale * grad L[tail](theta + e)    (ImbSAM, Eq. 16 to 19)
        e = rho * d / ||d||_2,  d = grad L[tail](theta),  tail(c) = n_c <= eta

    Args:
      class_counts: int[C], training examples of each class, each at least 1.
      rho: radius, finite and at least 0; a number, a scalar array or a schedule.
      eta: largest count of a tail class; must leave at least one head and one tail class.
      tail_scale: factor on the tail loss, finite and positive. The paper has 1; the released
        code multiplies by 2 since September 2023, half a year after publication.
      strict: tail is `n_c < eta`, as in the released code.

    Returns:
      A rule: base float[C], groups float[1, C], radii float[1].

    Raises:
      ValueError: counts that are not positive, an eta without head or tail, a bad rho or scale.

    Source: Zhou et al., ICCV 2023. The paper sums losses, its code divides by the batch size;
    here it is the batch size, which differs from the paper by the scale of the learning rate.

    >>> table = imbsam([500, 80, 5], rho=0.05, eta=100)(None)
    >>> table.base.tolist(), table.groups.tolist()
    ([1.0, 0.0, 0.0], [[0.0, 1.0, 1.0]])
    """
    head, tail = _head_and_tail(class_counts, eta, strict)
    rho = checked_radius("rho", rho)
    tail_scale = checks.number("tail_scale", tail_scale, above=0)
    groups = (tail * tail_scale)[None]
    return lambda step: ClassWeights(head, groups, radii_at(step, rho=rho))


def focal_sam(
    class_counts: ArrayLike, *, rho: ScalarOrSchedule, gamma: float, strength: float
) -> Rule:
    """Focal-SAM: each class is perturbed in the measure that it is rare.

        g = grad L[1 - s](theta) + grad L[s](theta + e),  e along grad L[s](theta)
        s(c) = strength * (1 - n_c / N)^gamma

    Args:
      class_counts: int[C], each at least 1; N is their sum.
      rho: radius, finite and at least 0; a number, a scalar array or a schedule.
      gamma: focus on rare classes, finite and at least 0; 0 treats all alike.
      strength: weight of the perturbed part, finite and at least 0. Above 1 the unperturbed
        weight of rare classes is negative, which the paper intends (1.1 on iNaturalist).

    strength 0 is SGD; strength 1 with gamma 0 is SAM.

    Returns:
      A rule: base float[C], groups float[1, C], radii float[1].

    Raises:
      ValueError: counts that are not positive, a bad rho, gamma or strength.

    Source: Focal-SAM, ICML 2025, where strength is called lambda and "sharpness".

    >>> focal_sam([90, 10], rho=0.1, gamma=1.0, strength=0.8)(None).groups.round(2).tolist()
    [[0.08, 0.72]]
    """
    counts = arrays.counts(class_counts)
    gamma = checks.number("gamma", gamma, least=0)
    strength = checks.number("strength", strength, least=0)
    rho = checked_radius("rho", rho)
    share = strength * (1.0 - counts / counts.sum()) ** gamma
    return lambda step: ClassWeights(1.0 - share, share[None], radii_at(step, rho=rho))


def sse_sam(
    class_counts: ArrayLike,
    *,
    head_rho: ScalarOrSchedule,
    tail_rho: ScalarOrSchedule,
    eta: float,
    switch_step: Any,
    strict: bool = False,
) -> Rule:
    """Stage-wise saddle-escaping SAM: head and tail perturbed apart, then ImbSAM.

        step <  switch_step:  g = grad L[head](theta + e_head) + grad L[tail](theta + e_tail)
        step >= switch_step:  g = grad L[head](theta)          + grad L[tail](theta + e_tail)

    Args:
      class_counts: int[C], each at least 1.
      head_rho: radius of the head in the first stage, finite and at least 0.
      tail_rho: radius of the tail in both; each a number, a scalar array or a schedule.
      eta: largest count of a tail class; must leave at least one head and one tail class.
      switch_step: first step of the second stage, at least 0.
      strict: tail is `n_c < eta`.

    Returns:
      `stagewise` of two rules: base None, groups float[2, C], radii float[2], head first; then
      base float[C], groups float[1, C], radii float[1].

    Raises:
      ValueError: counts that are not positive, an eta without head or tail, a bad radius or step.
      TypeError: called with a traced step, at which it has no table; the doors take one.

    The second stage costs what ImbSAM costs: the rule is `stagewise`, and the core puts the
    whole gradient under a branch. The release runs four forward passes in both stages.

    Source: SSE-SAM, AAAI 2025.

    >>> rule = sse_sam([90, 10], head_rho=0.05, tail_rho=0.1, eta=20, switch_step=100)
    >>> rule(0).radii.tolist(), rule(100).radii.tolist()
    ([0.05, 0.1], [0.1])
    """
    head, tail = _head_and_tail(class_counts, eta, strict)
    head_rho = checked_radius("head_rho", head_rho)
    tail_rho = checked_radius("tail_rho", tail_rho)
    both = np.stack([head, tail])

    def first(step: Any) -> ClassWeights:
        return ClassWeights(None, both, radii_at(step, head_rho=head_rho, tail_rho=tail_rho))

    def second(step: Any) -> ClassWeights:
        return ClassWeights(head, tail[None], radii_at(step, tail_rho=tail_rho))

    return stagewise(first, second, switch_step=switch_step)


def gsa(
    class_counts: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    scale: ScalarOrSchedule = 1e-2,
    direction: Literal["orthogonal", "plain", "projection"] = "orthogonal",
) -> Rule:
    """Grouped sharpness-aware minimization: each group along what the others do not dominate.

        g = sum_k grad L[k](theta + e_k),   e_k = scale * r_k * h_k / ||h_k||_2    (Eq. 11 to 15)
        h_k = d_k - <d_k, d> / <d, d> * d,   d_k = grad L[k](theta),   d = sum_j d_j
        r_k = sqrt(||theta||_2 / (2 ||h_k||_2)) * (P / (N_k - 1))^(1/4)

    for P parameters and N_k training examples in group k. A group that is absent from a batch, or
    alone in one (h_k = 0), is not perturbed. It brings its own direction and radius: give it to
    either door as it is.

    Args:
      class_counts: int[C], training examples of each class, each at least 1.
      groups: int[C], which group each class is in, any partition of the classes into two groups or
        more; None is many, medium and few of `shot_splits`, without those that are empty. The
        paper clusters classes into 4 groups (6 on ImageNet-LT).
      scale: Z, finite and at least 0; a number, a scalar array or a schedule of the step. Printed
        is 1, which is too long; the supplement finds 1e-2 best, which broke training on the digits
        (1e-5 does not) and on a table: choose it on validation data.
      direction: "orthogonal" is h_k. The controls of the paper's Table 5: "plain" is d_k itself,
        "projection" the part of d_k that h_k leaves out.

    Returns:
      A rule: base None, groups float[G, C], radii float[G], `scale / (N_k - 1)^(1/4)`, to which
      the doors give the rest of r_k, that is of the parameters and gradients.

    Raises:
      ValueError: counts that are not positive, groups that are not int[C], fewer than two, or one
        with one example; a bad scale, another direction.

    The regulariser of Eq. 15 is left out: its printed form is ambiguous, and nothing is said of a
    gradient through the radius. The paper's other half, GKP, is a penalty and no gradient.

    Source: GKP+GSA, CVPR 2026, whose code is not public; the formulas are transcribed from the
    paper. The radius is CC-SAM's with a group for a class.

    >>> rule = gsa([500, 80, 5], scale=0.01)
    >>> rule(None).groups.tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    >>> rule(None).radii.round(4).tolist()
    [0.0021, 0.0034, 0.0071]
    """
    counts = arrays.counts(class_counts)
    parts = _partition(counts, groups)
    sizes = parts @ counts
    if sizes.min() < 2:
        raise ValueError(
            "a group of a single training example has no radius: put its class into another group"
        )
    if direction not in ("orthogonal", "plain", "projection"):
        raise ValueError(
            f"direction must be 'orthogonal', 'plain' or 'projection', got {direction!r}"
        )
    scale = checked_radius("scale", scale)
    roots = (sizes - 1.0) ** -0.25

    def rule(step: Any) -> ClassWeights:
        return ClassWeights(None, parts, radii_at(step, scale=scale)[0] * roots)

    return Bringing(rule, direction=direction, bound=True)


def _partition(counts: np.ndarray, groups: ArrayLike | None) -> np.ndarray:
    """float64[G, C], ones where a class is in the group; no empty group."""
    if groups is None:
        parts = np.stack(list(shot_splits(counts).values()))
        parts, hint = parts[parts.any(axis=1)], " of many, medium and few"
    else:
        of_class, hint = arrays.per_class("groups", groups), ""
        if of_class.shape != counts.shape or not jnp.issubdtype(of_class.dtype, jnp.integer):
            raise ValueError(
                f"groups must be int[{counts.size}], the group of each class; got "
                f"{of_class.dtype}{list(of_class.shape)}"
            )
        parts = of_class[None] == np.unique(of_class)[:, None]
    if len(parts) < 2:
        raise ValueError(
            f"all classes are in one group{hint}, and nothing of its gradient is left beside its "
            "own: give groups=, two or more"
        )
    return parts.astype(np.float64)


def _ones(num_classes: int) -> np.ndarray:
    return np.ones(checks.whole("num_classes", num_classes, 1))


def _head_and_tail(
    class_counts: ArrayLike, eta: float, strict: bool
) -> tuple[np.ndarray, np.ndarray]:
    tail = tail_classes(class_counts, eta, strict=strict)
    if tail.all() or not tail.any():
        counts = arrays.counts(class_counts)
        raise ValueError(
            f"eta={eta} leaves no {'head' if tail.all() else 'tail'} class: the counts range from "
            f"{counts.min()} to {counts.max()}, so choose eta between them"
        )
    return (~tail).astype(np.float64), tail.astype(np.float64)
