"""Class counts and what follows from them, against hand-made values; bad ones by their messages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imbsam_jax as ij

CLASS_COUNTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=12)

# Counts that every function of class counts refuses: (counts, what the message must say).
BAD_COUNTS = [
    pytest.param([5, 0, 3], r"class 1 has count 0 .*drop the class or merge", id="zero"),
    pytest.param(
        [5, 3, -2], r"class 2 has count -2 .*at least one training example", id="negative"
    ),
    pytest.param([5.0, math.nan], r"finite numbers, got \[5\.0, nan\]", id="nan"),
    pytest.param([5.0, math.inf], r"finite numbers, got \[5\.0, inf\]", id="inf"),
    pytest.param([5.0, 2.5], r"whole numbers, got \[5\.0, 2\.5\]", id="fraction"),
    pytest.param([], r"one count per class, got shape \(0,\)", id="empty"),
    pytest.param([[5, 3]], r"one count per class, got shape \(1, 2\)", id="matrix"),
    pytest.param(["a", "b"], r"finite numbers, got \['a', 'b'\]", id="strings"),
]
OF_COUNTS = {
    "imbalance_factor": ij.imbalance_factor,
    "tail_classes": lambda counts: ij.tail_classes(counts, 4),
    "shot_splits": ij.shot_splits,
    "imbsam": lambda counts: ij.rules.imbsam(counts, eta=4),
    "focal_sam": lambda counts: ij.rules.focal_sam(counts, rho=0.1, gamma=1.0, strength=0.5),
    "sse_sam": lambda counts: ij.rules.sse_sam(
        counts, head_rho=0.1, tail_rho=0.1, eta=4, switch_step=1
    ),
}


@pytest.mark.parametrize("function", OF_COUNTS.values(), ids=OF_COUNTS)
@pytest.mark.parametrize(("counts", "message"), BAD_COUNTS)
def test_bad_counts_are_refused_by_name(function: Any, counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(counts)


# -------------------------------------------------------------------------------- class_counts


@given(st.lists(st.integers(0, 4), max_size=30))
def test_class_counts_counts(labels: list[int]) -> None:
    counts = ij.class_counts(labels, 5)
    assert counts.dtype == np.int64
    assert counts.tolist() == [labels.count(c) for c in range(5)]


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 3, 5, 7], 3, r"label 3 lies outside \[0, 3\) \(3 such labels\): drop .* or raise"),
        ([0, -1], 3, r"label -1 lies outside \[0, 3\) \(1 such labels\)"),
        ([0.0, 1.0], 3, r"whole numbers, got shape \(2,\) of float64: pass the class index"),
        ([[0, 1]], 3, r"whole numbers, got shape \(1, 2\)"),
        ([True, False], 3, r"whole numbers, got shape \(2,\) of bool"),
        ([0], 0, r"num_classes must be at least 1, got 0"),
    ],
)
def test_bad_labels_are_refused_by_name(labels: Any, num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ij.class_counts(labels, num_classes)


# -------------------------------------------------------------- imbalance factor, tail, splits


@given(CLASS_COUNTS)
def test_imbalance_factor_is_max_over_min(counts: list[int]) -> None:
    factor = ij.imbalance_factor(counts)
    assert isinstance(factor, float) and factor >= 1
    assert factor == max(counts) / min(counts)


@given(CLASS_COUNTS, st.integers(0, 10_001))
def test_tail_is_at_most_eta_or_strictly_below(counts: list[int], eta: int) -> None:
    assert ij.tail_classes(counts, eta).tolist() == [n <= eta for n in counts]
    assert ij.tail_classes(counts, eta, strict=True).tolist() == [n < eta for n in counts]


@pytest.mark.parametrize("eta", [math.nan, math.inf, -math.inf])
def test_tail_needs_a_finite_eta(eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta must be a finite number of examples, got {eta}"):
        ij.tail_classes([5, 3], eta)


@given(CLASS_COUNTS, st.integers(0, 200), st.integers(0, 200))
def test_shot_splits_part_the_classes(counts: list[int], few_below: int, more: int) -> None:
    many_above = few_below - 1 + more
    splits = ij.shot_splits(counts, many_above, few_below)
    assert list(splits) == ["many", "medium", "few"]
    assert (sum(members.astype(int) for members in splits.values()) == 1).all()
    assert splits["many"].tolist() == [n > many_above for n in counts]
    assert splits["few"].tolist() == [n < few_below for n in counts]


def test_shot_splits_of_the_papers_and_of_cc_sam() -> None:
    counts = [101, 100, 21, 20, 19]
    papers = {k: np.flatnonzero(v).tolist() for k, v in ij.shot_splits(counts).items()}
    assert papers == {"many": [0], "medium": [1, 2, 3], "few": [4]}
    cc_sam = {k: np.flatnonzero(v).tolist() for k, v in ij.shot_splits(counts, 99, 21).items()}
    assert cc_sam == {"many": [0, 1], "medium": [2], "few": [3, 4]}


@pytest.mark.parametrize("few_below", [22, 30])
def test_overlapping_splits_are_refused(few_below: int) -> None:
    """Also by one: a class of 21 would be both."""
    with pytest.raises(
        ValueError, match=rf"few_below \({few_below}\) must be at most many_above \+ 1 \(21\)"
    ):
        ij.shot_splits([21, 3], 20, few_below)


# ------------------------------------------------------------------------------ long-tail sets


def test_exponential_counts_of_the_published_sets() -> None:
    cifar10 = ij.long_tail_counts(10, 5000, 100)
    assert cifar10.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    cifar100 = ij.long_tail_counts(100, 500, 100)
    assert (cifar100.dtype, cifar100.sum(), cifar100[0], cifar100[-1]) == (np.int64, 10847, 500, 5)
    assert ij.long_tail_counts(100, 500, 50).sum() == 12608
    assert ij.long_tail_counts(100, 500, 10).sum() == 19573


def test_step_counts() -> None:
    assert ij.long_tail_counts(4, 500, 100, "step").tolist() == [500, 500, 5, 5]
    assert ij.long_tail_counts(5, 500, 100, "step").tolist() == [500, 500, 5, 5, 5]


@given(
    st.integers(2, 50),
    st.integers(100, 5000),
    st.floats(1, 100),
    st.sampled_from(["exp", "step"]),
)
def test_long_tail_counts_fall_from_max_to_max_over_factor(
    num_classes: int, max_count: int, factor: float, kind: Any
) -> None:
    counts = ij.long_tail_counts(num_classes, max_count, factor, kind)
    assert counts.shape == (num_classes,) and counts[0] == max_count
    assert (np.diff(counts) <= 0).all()
    assert abs(counts[-1] - max_count / factor) <= 1 + 1e-9 * max_count


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((10, 500, 0.01), r"at least 1, got 0\.01: for a published imb_factor of 0\.01 pass 100"),
        ((10, 500, math.nan), r"at least 1, got nan"),
        ((10, 500, math.inf), r"at least 1, got inf"),
        ((1, 500, 10), r"at least 2 classes, got 1"),
        ((10, 500, 1000), r"leaves class 9 without an example .* it can be at most 500"),
        ((10, 500, 10, "linear"), r"kind must be 'exp' or 'step', got 'linear'"),
    ],
)
def test_impossible_long_tails_are_refused_by_name(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ij.long_tail_counts(*args)
