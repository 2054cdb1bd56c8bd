"""Class counts and what follows from them: imbalance factor, tail classes, shot splits.

Everything here is concrete NumPy on the host: counts are known before training starts, so bad
ones are refused here, by name, and never reach a compiled step. Counts with an index (a pandas
Series, as `value_counts` sorts it by count) or with keys (a Counter) go to the classes they name.
"""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import arrays, checks

__all__ = [
    "class_counts",
    "imbalance_factor",
    "long_tail_counts",
    "shot_splits",
    "tail_classes",
    "tail_threshold",
]


def class_counts(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Number of examples of each class, `n_c = sum_i 1[y_i = c]`.

    Args:
      labels: int[N], each in [0, num_classes).
      num_classes: C, at least 1.

    Returns:
      int64[C]. A class without an example counts 0 here; the rules refuse such counts.

    Raises:
      ValueError: labels that are not whole numbers, or that lie outside [0, C).

    >>> class_counts([0, 0, 2], 3).tolist()
    [2, 0, 1]
    """
    array = arrays.on_host("labels", labels)
    if array.ndim != 1 or (array.size and not jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(
            f"labels must be a vector of whole numbers, got shape {array.shape} of "
            f"{array.dtype}: pass the class index of each example"
        )
    num_classes = checks.whole("num_classes", num_classes, 1, "at least 1")
    outside = array[(array < 0) | (array >= num_classes)]
    if outside.size:
        raise ValueError(
            f"label {outside[0]} lies outside [0, {num_classes}) ({outside.size} such labels): "
            "drop these examples or raise num_classes"
        )
    return np.bincount(array.astype(np.int64), minlength=num_classes).astype(np.int64)


def imbalance_factor(class_counts: ArrayLike) -> float:
    """Imbalance factor `max_c n_c / min_c n_c`, always at least 1.

    Some code bases call the reciprocal "imb_factor"; here a larger number is more imbalanced.

    Args:
      class_counts: int[C], each at least 1.

    Returns:
      A float.

    Raises:
      ValueError: counts that are not positive.

    >>> imbalance_factor([500, 50, 5])
    100.0
    """
    counts = arrays.counts(class_counts)
    return float(counts.max() / counts.min())


def tail_classes(class_counts: ArrayLike, eta: float, *, strict: bool = False) -> NDArray[np.bool_]:
    """Which classes are tail: `n_c <= eta` (ImbSAM, Eq. 15).

    Args:
      class_counts: int[C], each at least 1.
      eta: the largest count of a tail class, a finite number.
      strict: take `n_c < eta` instead, as the released ImbSAM code does. On CIFAR100-LT with
        imbalance factor 100 the two agree at eta 60 and 100 and differ by one class at 20.

    Returns:
      bool[C].

    Raises:
      ValueError: counts that are not positive, an eta that is not finite.

    >>> tail_classes([500, 100, 5], eta=100).tolist()
    [False, True, True]
    """
    counts = arrays.counts(class_counts)
    checks.truth("strict", strict)
    eta = checks.number("eta", eta, wanted="a finite number of examples", concrete=True)
    return np.asarray(counts < eta if strict else counts <= eta)


def tail_threshold(class_counts: ArrayLike, *, head_share: float = 0.8) -> float:
    """An eta from the counts alone: the head is the fewest classes that hold most of the rows.

        n_(1) >= n_(2) >= ... sorted;  h = min {k: n_(1) + ... + n_(k) >= head_share * N}
        eta = n_(h + 1), at most the largest count that is less than n_(1)

    A class as large as the largest of the tail is tail, too (`n_c <= eta`), so that equal classes
    are treated alike; the largest class is always head and the smallest always tail. It is where to
    begin, not where to end: no paper has such a rule, each of them chooses eta by hand.

    Args:
      class_counts: int[C], training examples of each class, each at least 1; C at least 2.
      head_share: least share of the rows that the head holds, over 0 and below 1.

    Returns:
      eta, the largest count of a tail class, for `tail_classes`, `rules.imbsam`, `rules.sse_sam`.

    Raises:
      ValueError: a single class; equal counts, of which none is the tail.

    >>> tail_threshold([500, 300, 100, 60, 40])
    100.0
    >>> tail_threshold([60, 40]), tail_threshold([990, 10])
    (40.0, 10.0)
    """
    counts = np.sort(arrays.counts(class_counts))[::-1]
    head_share = checks.number(
        "head_share", head_share, above=0, below=1, wanted="over 0 and below 1", concrete=True
    )
    if counts[0] == counts[-1]:
        raise ValueError(
            f"every class has {counts[0]} examples: nothing is imbalanced and no class is the tail"
            if counts.size > 1
            else "there is one class, and a tail needs a head beside it: two classes or more"
        )
    share = np.cumsum(counts) / counts.sum()
    # Rounded: 3 rows of 10 are a share of 0.1 + 0.2, whose last place is above 0.3.
    head = int(np.searchsorted(share.round(12), round(head_share, 12))) + 1
    rest = counts[min(head, counts.size - 1)]
    return float(min(rest, counts[counts < counts[0]][0]))


def long_tail_counts(
    num_classes: int,
    max_count: int,
    imbalance_factor: float,
    kind: Literal["exp", "step"] = "exp",
) -> NDArray[np.int64]:
    """Counts of an artificial long-tailed set, class 0 the largest.

    `exp`: `n_i = floor(max_count * IF^(-i / (C - 1)))`, the rule of every CIFAR-LT set.
    `step`: the first half of the classes has max_count, the rest `floor(max_count / IF)`.
    Both in doubles by way of 1 / IF, as every public construction has them, which may round below
    a whole number (98 over 49 is 1 there), but never to a class without an example.

    Args:
      num_classes: C, at least 2.
      max_count: examples of the largest class.
      imbalance_factor: IF = max / min, at least 1.
      kind: "exp" or "step".

    Returns:
      int64[C], non-increasing.

    Raises:
      ValueError: an IF below 1, or one so large that a class would be empty.

    >>> long_tail_counts(10, 5000, 100).tolist()
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    wanted = "over 1: a long tail needs at least 2 classes"
    num_classes = checks.whole("num_classes", num_classes, 2, wanted)
    max_count = checks.whole("max_count", max_count, 1, most=2**53)
    hint = ": for a published imb_factor of 0.01 pass 100"
    imbalance_factor = checks.number(
        "imbalance_factor", imbalance_factor, least=1, hint=hint, concrete=True
    )
    # Python doubles and truncation, as every public construction does: the lists then agree.
    mu = 1.0 / imbalance_factor
    if kind == "exp":
        counts = [int(max_count * mu ** (i / (num_classes - 1.0))) for i in range(num_classes)]
    elif kind == "step":
        half = num_classes // 2
        counts = [max_count] * half + [int(max_count * mu)] * (num_classes - half)
    else:
        raise ValueError(f"kind must be 'exp' or 'step', got {kind!r}")
    if imbalance_factor <= max_count:  # no class is empty: 49 * (1 / 49) is 0.99...
        counts = [max(count, 1) for count in counts]
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance_factor {imbalance_factor} leaves class {num_classes - 1} without an "
            f"example (largest class {max_count}): it can be at most {max_count}"
        )
    return np.asarray(counts, np.int64)


def shot_splits(
    class_counts: ArrayLike, many_above: int = 100, few_below: int = 20
) -> dict[str, NDArray[np.bool_]]:
    """Many, medium and few shot classes: `n > many_above`, the rest, `n < few_below`.

    The convention of the ImbSAM paper, SSE-SAM, weight balancing and the decoupling papers.
    CC-SAM's code uses `>= 100` and `<= 20` instead: pass 99 and 21.

    Args:
      class_counts: int[C], counts of the *training* set, each at least 1.
      many_above: largest count that is not yet many, at least -1.
      few_below: smallest count that is no longer few, at least 0; at most many_above + 1.

    Returns:
      {"many", "medium", "few"}: bool[C] each; every class is in exactly one.

    Raises:
      ValueError: counts that are not positive, thresholds that leave a class both many and few.

    >>> {k: v.tolist() for k, v in shot_splits([500, 100, 5]).items()}
    {'many': [True, False, False], 'medium': [False, True, False], 'few': [False, False, True]}
    """
    counts = arrays.counts(class_counts)
    many_above = checks.number("many_above", many_above, least=-1, concrete=True)
    few_below = checks.number("few_below", few_below, least=0, concrete=True)
    if math.ceil(few_below) > math.floor(many_above) + 1:
        raise ValueError(
            f"few_below ({few_below}) must be at most many_above + 1 ({many_above + 1}), "
            "else a class would be both many and few"
        )
    many = counts > many_above
    few = counts < few_below
    return {"many": many, "medium": ~many & ~few, "few": few}
