"""Accuracies as long-tailed recognition reports them: per class, then many, medium, few.

And rankings as anomaly detection reports them: AUROC and average precision, exact with ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from imbsam_jax import arrays, checks, collectives

__all__ = ["auroc", "average_precision", "class_hits", "group_accuracy", "shot_accuracies"]


def class_hits(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Correct predictions and examples of each class; sums over batches give the whole set's.

        total_c = sum_i 1[y_i = c],   correct_c = sum_i 1[y_i = c] 1[argmax_j z_ij = c]

    Args:
      logits: real[B, C]; the prediction is the first largest entry, of NumPy's in all of their
        digits. A row with a NaN predicts no class.
      labels: int[B]; a label outside [0, C) counts nowhere.
      mask: bool[B], False for padding.

    Returns:
      (correct int32[C], total int32[C]).

    Raises:
      ValueError: logits, labels or a mask of another shape or type.

    >>> hits, total = class_hits(jnp.eye(3)[jnp.array([0, 0, 2])], jnp.array([0, 1, 2]))
    >>> hits.tolist(), total.tolist()
    ([1, 0, 1], [1, 1, 1])
    """
    logits, labels = arrays.real_as_given("logits", logits), arrays.as_labels(labels)
    if logits.ndim < 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"class_hits takes logits float[B, C] and labels int[B], got {logits.dtype}"
            f"{list(logits.shape)} and {labels.dtype}{list(labels.shape)}"
        )
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} are not of the same rows"
        )
    num_classes = logits.shape[-1]
    if num_classes == 0:
        raise ValueError(f"logits must have a class or more, got shape {list(logits.shape)}")
    counted = (labels >= 0) & (labels < num_classes)
    if mask is not None:
        counted &= arrays.as_mask(mask, labels.shape)
    where = jnp.where(counted, labels, num_classes)
    # Of NumPy's on the host: JAX would cut the digits that tell two entries apart.
    xp = jnp if isinstance(logits, jax.Array) else np
    hit = counted & (xp.argmax(logits, axis=-1).astype(labels.dtype) == labels)
    if jnp.issubdtype(logits.dtype, jnp.floating):  # of which the first NaN is the largest
        hit &= ~xp.isnan(logits).any(axis=-1)
    zeros = jnp.zeros(num_classes, jnp.int32)
    whole = collectives.everywhere(where)
    correct, total = (
        zeros.at[where].add(each.astype(jnp.int32), mode="drop", out_sharding=whole)
        for each in (hit, counted)
    )
    return correct, total


def group_accuracy(correct: ArrayLike, total: ArrayLike, members: ArrayLike) -> jax.Array:
    """Mean over the member classes of their accuracy, in percent.

        100 * mean_{c in members, total_c > 0} correct_c / total_c

    Args:
      correct, total: number[C], as `class_hits` counts them.
      members: bool[C].

    Returns:
      float[], at least float32; NaN where no member class has an example, never 0, and where
        traced counts of one are no counts.

    Raises:
      ValueError: members that are not bool, arrays that are not of one length; counts that are not
        finite, or of which not 0 <= correct <= total.

    >>> float(group_accuracy(jnp.array([1, 9]), jnp.array([2, 10]), jnp.array([True, True])))
    70.0
    """
    correct, total = checks.alike(_counted("correct", correct), _counted("total", total))
    if correct.ndim != 1 or correct.shape != total.shape:
        raise ValueError(
            "correct and total must be vectors with one number per class, got shapes "
            f"{list(correct.shape)} and {list(total.shape)}"
        )
    those = arrays.as_mask(arrays.in_class_order("members", members), total.shape, "members")
    possible = _possible(correct, total)
    used = those & (total > 0)
    rate = jnp.where(used, correct / jnp.where(used, total, 1), 0)
    mean = 100 * rate.sum() / used.sum(dtype=rate.dtype)
    return checks.nan_unless(None if possible is None else jnp.all(possible | ~those), mean)


def shot_accuracies(
    correct: ArrayLike, total: ArrayLike, splits: dict[str, Any]
) -> dict[str, jax.Array]:
    """Accuracy over all classes and over each split, in percent.

    Args:
      correct, total: number[C], as `class_hits` counts them.
      splits: name -> bool[C], as `shot_splits` makes them from the training counts.

    Returns:
      {"all", and each split's name}: float[] each, as `group_accuracy` has it (on a balanced test
      set "all" is plain accuracy); NaN for a split without classes.

    Raises:
      ValueError: as `group_accuracy`; a split of the name "all".
      TypeError: splits without names.

    >>> splits = {"many": jnp.array([True, False]), "few": jnp.array([False, True])}
    >>> result = shot_accuracies(jnp.array([9, 1]), jnp.array([10, 10]), splits)
    >>> {name: round(float(value)) for name, value in result.items()}
    {'all': 50, 'many': 90, 'few': 10}
    """
    if not isinstance(splits, Mapping):
        raise TypeError(
            "splits must be a mapping from names to bool[C], as shot_splits makes it, got "
            f"{checks.short(splits)}"
        )
    if "all" in splits:
        raise ValueError('a split named "all" would hide the accuracy over all: rename it')
    correct, total = _counted("correct", correct), _counted("total", total)
    groups = {"all": jnp.ones(total.shape, bool), **splits}
    return {name: group_accuracy(correct, total, members) for name, members in groups.items()}


def auroc(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Area under the ROC curve: how often an anomaly scores above a normal example.

        (1 / PN) sum_{i: y_i = 1} sum_{j: y_j = 0} ( 1[s_i > s_j] + 1[s_i = s_j] / 2 )

    with P anomalies and N normals. Exact with ties; O(n log n), usable under jit and vmap.

    Args:
      labels: number[n], 1 for an anomaly and 0 for a normal example.
      scores: real[n], larger is more anomalous; float64 gives a float64 result, float32 and
        what is coarser a float32 one. Infinities rank as numbers do. NumPy's are ranked on the
        host, in all of their digits; of JAX's own, numbers below the least normal one (1e-38) may
        tie with 0, which XLA takes them for.
      mask: bool[n], False for padding.

    Returns:
      float[], from 0 to 1. NaN where a real score is NaN, where a real label is neither 0 nor 1,
      or where one of the two classes has no example.

    Raises:
      ValueError: labels, scores and mask that are not vectors of one length.

    >>> round(float(auroc(jnp.array([0, 1, 0, 1]), jnp.array([0.1, 0.4, 0.4, 0.8]))), 4)
    0.875

    Source: Hanley and McNeil, Radiology 1982; equal to scikit-learn's roc_auc_score.
    """
    curve = _thresholds(labels, scores, mask)
    positives, negatives = curve.positives, curve.negatives
    # A trapezoid at each threshold; ratios first, so that no product of counts over- or underflows.
    widths = curve.false_found.astype(curve.dtype) / jnp.maximum(negatives, 1).astype(curve.dtype)
    heights = (curve.true + curve.true_before).astype(curve.dtype) / jnp.maximum(
        positives, 1
    ).astype(curve.dtype)
    area = (widths * heights / 2).sum()
    return jnp.where(curve.bad | (positives == 0) | (negatives == 0), jnp.nan, area)


def average_precision(
    labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None
) -> jax.Array:
    """Average precision, the area under the precision-recall curve as a sum of steps.

        sum_t (R_t - R_{t-1}) P_t        over the distinct scores t, from the largest down,

    with R_t the part of the anomalies that score at least t, and P_t the part of the examples
    scoring at least t that are anomalies. Exact with ties, usable under jit and vmap. Of the
    anomalies it is `average_precision(y, s)`, of the normals `average_precision(1 - y, -s)`.

    Args:
      labels: number[n], 1 for an example that is to be found and 0 for another.
      scores: real[n], larger is more likely 1; the dtype as in `auroc`.
      mask: bool[n], False for padding.

    Returns:
      float[], from 0 to 1. NaN where a real score is NaN, where a real label is neither 0 nor 1,
      or where there is no example with label 1 (scikit-learn gives 0 there, and warns).

    Raises:
      ValueError: labels, scores and mask that are not vectors of one length.

    >>> y, s = jnp.array([0, 1, 0, 1]), jnp.array([0.1, 0.4, 0.4, 0.8])
    >>> round(float(average_precision(y, s)), 4), round(float(average_precision(1 - y, -s)), 4)
    (0.8333, 0.8333)

    Source: equal to scikit-learn's average_precision_score, which does not interpolate.
    """
    curve = _thresholds(labels, scores, mask)
    recall = curve.true_found.astype(curve.dtype) / jnp.maximum(curve.positives, 1).astype(
        curve.dtype
    )
    found = jnp.maximum(curve.true + curve.false, 1)
    area = (recall * curve.true.astype(curve.dtype) / found.astype(curve.dtype)).sum()
    return jnp.where(curve.bad | (curve.positives == 0), jnp.nan, area)


class _Curve(NamedTuple):
    """Counts at every distinct score, from the largest down; entries in between hold 0 found."""

    true: jax.Array  # int32[n], anomalies that score at least this
    false: jax.Array  # int32[n], normals that score at least this
    true_before: jax.Array  # int32[n], anomalies that score more
    true_found: jax.Array  # int32[n], anomalies that score exactly this
    false_found: jax.Array  # int32[n], normals that score exactly this
    positives: jax.Array  # int32[]
    negatives: jax.Array  # int32[]
    bad: jax.Array  # bool[], the ranking is undefined
    dtype: Any  # of the result


def _thresholds(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None) -> _Curve:
    labels, (scores, undefined, dtype) = arrays.as_marks(labels), _ranked(scores)
    shapes = (labels.shape, scores.shape, labels.shape if mask is None else np.shape(mask))
    if labels.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(
            "labels, scores and mask must be vectors of one length, got shapes "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    real = jnp.ones(labels.shape, bool) if mask is None else arrays.as_mask(mask, labels.shape)
    positive, negative = real & (labels == 1), real & (labels == 0)
    bad = jnp.any(real & ~positive & ~negative) | jnp.any(real & undefined)
    marks = (positive.astype(jnp.int32), negative.astype(jnp.int32))
    # Sorted up and turned round: negating would not do for unsigned scores.
    ordered = [x[::-1] for x in lax.sort(collectives.gathered((scores, *marks)), num_keys=1)]
    last = jnp.concatenate([ordered[0][1:] != ordered[0][:-1], jnp.ones(scores.shape, bool)[:1]])
    true, false = (jnp.cumsum(x, dtype=jnp.int32) for x in ordered[1:])

    def before(total: jax.Array) -> jax.Array:
        # Totals only grow, so the largest total at an earlier end of a tie is the latest one.
        reached = lax.cummax(jnp.where(last, total, 0))
        return jnp.concatenate([jnp.zeros_like(reached)[:1], reached[:-1]])

    true_before = before(true)
    return _Curve(
        true, false, true_before,
        jnp.where(last, true - true_before, 0), jnp.where(last, false - before(false), 0),
        positive.sum(dtype=jnp.int32), negative.sum(dtype=jnp.int32), bad,
        dtype,
    )  # fmt: skip


def _ranked(scores: ArrayLike) -> tuple[jax.Array, jax.Array, Any]:
    """JAX's scores, the ranks of NumPy's; which are NaN; a result's dtype."""
    given = arrays.real_as_given("scores", scores)
    dtype = jax.dtypes.canonicalize_dtype(checks.at_least_float32(given.dtype))
    if isinstance(given, jax.Array):
        return given, jnp.isnan(given), dtype
    ranks = np.unique(given, return_inverse=True)[1].reshape(given.shape).astype(np.int32)
    return jnp.asarray(ranks), jnp.asarray(np.isnan(given)), dtype


def _possible(correct: jax.Array, total: jax.Array) -> jax.Array | None:
    """Of each class, whether they are counts; None where that is known, and refused if not."""
    known = checks.can_be_read(correct) and checks.can_be_read(total)
    xp: Any = np if known else jnp
    c, t = (np.asarray(x) for x in (correct, total)) if known else (correct, total)
    possible = xp.isfinite(t) & (c >= 0) & (c <= t)
    if not known:
        return possible
    if not possible.all():
        first = int(np.argmin(possible))
        raise ValueError(
            f"correct must be from 0 to total in each class, and class {first} has {c[first]} of "
            f"{t[first]}: give both as class_hits counts them, correct first"
        )
    return None


def _counted(name: str, counts: ArrayLike) -> jax.Array:
    """In at least float32, whatever the width of the counts."""
    if not isinstance(counts, jax.Array):
        counts = arrays.per_class(name, counts)
    if not checks.is_real(counts.dtype):
        raise ValueError(f"{name} must be numbers of examples, got {counts.dtype}")
    if isinstance(counts, np.ndarray):
        return jnp.asarray(counts.astype(np.float64), float)
    return counts.astype(checks.at_least_float32(counts.dtype))
