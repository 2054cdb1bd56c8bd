"""Class counts and what follows from them, against hand-made values; bad ones by their messages."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imbsam_jax as ij
from imbsam_jax import curvature, totals

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
    pytest.param([True, True], r"finite numbers, got \[True, True\]", id="bool"),
    pytest.param([5 + 0j, 3], r"finite numbers, got \[", id="complex"),
    pytest.param([None, 3], r"finite numbers, got \[None, 3\]", id="none"),
    pytest.param([[5], [3, 2]], r"must be a vector of numbers, got \[\[5\]", id="ragged"),
    pytest.param(None, r"one count per class, got shape \(\)", id="nothing"),
    pytest.param("95", r"one count per class, got shape \(\)", id="string"),
    pytest.param({5, 3}, r"one count per class, got shape \(\)", id="set"),
    pytest.param({}, r"one count per class, got shape \(0,\)", id="no keys"),
    pytest.param(Counter([0, 0, 1]).values(), r"got shape \(\)", id="values of a Counter"),
]
OF_COUNTS = {
    "imbalance_factor": ij.imbalance_factor,
    "tail_classes": lambda counts: ij.tail_classes(counts, 4),
    "tail_threshold": ij.tail_threshold,
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


class Series:
    """What a pandas Series is here: an array with an index; `value_counts` sorts it by count."""

    def __init__(self, index: Any, values: Any) -> None:
        self.index, self._values = np.asarray(index), np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self._values, dtype)


IN_ORDER = [10, 500, 60]
NAMED = {
    "series": Series([1, 2, 0], [500, 60, 10]),
    "counter": Counter([1] * 500 + [2] * 60 + [0] * 10),
    "dict": {1: 500, 2: 60, 0: 10},
    "numpy keys": {np.int64(1): np.int64(500), np.uint8(2): 60, 0: 10.0},
    "objects": np.array(IN_ORDER, object),
    "uint16": np.array(IN_ORDER, np.uint16),
    "float16": np.array(IN_ORDER, np.float16),
    "jax": jnp.array(IN_ORDER),
}


@pytest.mark.parametrize("kind", NAMED)
def test_counts_go_to_the_classes_they_are_named_by(kind: str) -> None:
    counts = NAMED[kind]
    assert ij.tail_classes(counts, 100).tolist() == [True, False, True]
    assert ij.shot_splits(counts)["many"].tolist() == [False, True, False]
    assert ij.rules.imbsam(counts, eta=100)(None).base.tolist() == [0, 1, 0]
    want = ij.losses.class_balanced_weights(IN_ORDER)
    np.testing.assert_array_equal(ij.losses.class_balanced_weights(counts), want)
    ours = ij.losses.weighted(ij.losses.cross_entropy, {2: 3.0, 0: 1.0, 1: 2.0})
    logits, labels = jnp.zeros((3, 3)), jnp.arange(3)
    np.testing.assert_allclose(ours(logits, labels), np.log(3) * np.array([1, 2, 3]), rtol=1e-6)


# Whatever takes a number for each class: (what it makes of them, numbers in the order of classes).
PER_CLASS: dict[str, tuple[Any, Any]] = {
    "class_weights": (lambda w: ij.losses.weighted(ij.losses.cross_entropy, w)(*ROWS), IN_ORDER),
    "tables": (lambda w: totals.tables(w), IN_ORDER),
    "hvp": (
        lambda w: curvature.hvp(
            lambda p, x: (p**2 * x, None), jnp.ones(()), ROWS[1], jnp.ones(3), class_weights=w
        )(jnp.ones(())),
        IN_ORDER,
    ),
    "correct": (lambda n: ij.metrics.group_accuracy(n, [500] * 3, MEMBERS), IN_ORDER),
    "total": (lambda n: ij.metrics.group_accuracy([9] * 3, n, MEMBERS), IN_ORDER),
    "shots": (lambda n: ij.metrics.shot_accuracies([9] * 3, n, {"a": MEMBERS})["a"], IN_ORDER),
    "members": (lambda m: ij.metrics.group_accuracy(IN_ORDER, [500] * 3, m), [False, True, True]),
    "groups": (lambda g: ij.rules.gsa([20, 30, 50], groups=g)(None).groups, [1, 0, 1]),
    "frequencies": (lambda n: ij.binomial_buffers(n, 256)(np.array(MEMBERS)), IN_ORDER),
    "strata": (
        lambda s: ij.stratified_buffers(s, (5, 7))(np.array([True, False, True])),
        [1, 0, 1],
    ),
}
ROWS, MEMBERS = (jnp.zeros((3, 3)), jnp.arange(3)), [True, False, False]


@pytest.mark.parametrize("what", PER_CLASS)
def test_whatever_is_given_for_each_class_goes_to_the_class_it_is_named_by(what: str) -> None:
    take, in_order = PER_CLASS[what]
    order, want = [1, 2, 0], take(in_order)
    series = Series(order, [in_order[c] for c in order])
    for named in (series, {c: in_order[c] for c in order}, np.array(in_order)):
        np.testing.assert_array_equal(take(named), want)
    with pytest.raises(ValueError, match=r"has the index .* which is not the classes 0 to 2"):
        take(Series(["a", "b", "c"], in_order))


def test_tables_of_pandas_go_by_their_columns() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([[500, 60, 10], [5, 6, 1]], columns=[1, 2, 0])
    assert totals.tables(table).tolist() == [[10, 500, 60], [1, 5, 6]]


def test_counts_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    counts = pandas.Series(np.repeat([0, 1, 2], IN_ORDER)).value_counts()
    assert counts.tolist() == [500, 60, 10]
    assert ij.tail_classes(counts, 100).tolist() == [True, False, True]
    assert ij.class_counts(pandas.Series([0, 2, 2]), 3).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "names",
    [[1, 2, 3], [0, 2, 3], ["cat", "dog", "eel"], [0, 1, 1], [0.0, 1.5, 2.0], [True, False, 2],
     [(0,), (1,), (2,)], [-1, 0, 1], [None, 0, 1]],
)  # fmt: skip
def test_an_index_that_is_not_the_classes_is_refused(names: Any) -> None:
    index = np.empty(3, object)
    index[:] = names
    tables: list[Any] = [Series(index, [5, 4, 3])]
    if len(set(names)) == 3:
        tables.append(dict(zip(names, [5, 4, 3], strict=True)))
    for counts in tables:
        with pytest.raises(ValueError, match=r"class_counts has the index .* not the classes 0 to"):
            ij.tail_classes(counts, 4)


def test_a_class_missing_among_the_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="not the classes 0 to 1, each once: pass a plain list"):
        ij.tail_classes(Counter([0, 2, 2]), 1)


@pytest.mark.parametrize(
    "counts",
    [[2**63, 5], [2**62, 2**62], [10**30, 5], np.array([2**63, 1], np.uint64), [1e19, 5.0],
     [2**53, 1]],
)  # fmt: skip
def test_counts_that_no_sum_can_hold_are_refused(counts: Any) -> None:
    for function in OF_COUNTS.values():
        with pytest.raises(ValueError, match=r"class_counts add up to \d+, more than 2\*\*53"):
            function(counts)


def test_large_counts_are_right() -> None:
    counts = [2**52, 2**40]
    assert ij.imbalance_factor(counts) == 4096
    assert ij.tail_classes(np.array(counts, np.uint64), 2**41).tolist() == [False, True]
    share = ij.rules.focal_sam(counts, rho=0.1, gamma=1.0, strength=1.0)(0).groups[0]
    np.testing.assert_allclose(share, [2**40 / (2**52 + 2**40), 2**52 / (2**52 + 2**40)])
    assert ij.imbalance_factor(np.array([250, 250], np.uint8)) == 1


def test_labels_in_the_place_of_counts_are_recognised() -> None:
    labels = np.repeat([0, 1, 2], [859, 40, 5])
    for function in OF_COUNTS.values():
        with pytest.raises(ValueError, match=r"859 classes of count 0: are these labels\?"):
            function(labels)
    with pytest.raises(ValueError) as error:  # an empty class among real counts is another matter
        ij.tail_classes([500, 0, 3], 4)
    assert "labels" not in str(error.value)


# -------------------------------------------------------------------------------- class_counts


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
)
def test_class_counts_of_any_width(dtype: Any) -> None:
    labels = np.arange(100, dtype=dtype).repeat(3)
    assert ij.class_counts(labels, 300).tolist() == [3] * 100 + [0] * 200
    assert ij.class_counts(jnp.asarray(labels), 100).tolist() == [3] * 100
    assert ij.class_counts(Series(range(300), labels), 100).tolist() == [3] * 100


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
        ([0, 2**32], 3, r"label 4294967296 lies outside \[0, 3\)"),
        ([0, 10**30], 3, r"whole numbers, got shape \(2,\) of object"),
        (["0", "1"], 3, r"whole numbers, got shape \(2,\) of <U1"),
        (None, 3, r"whole numbers, got shape \(\) of object"),
        ([[0], [1, 2]], 3, r"labels must be a vector of numbers, got"),
        (np.ma.masked_equal([0, 1], 1), 3, r"labels must have no masked entries"),
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
    # A class of 21 would be both; whole numbers lie between 20.5 and 22 and not between 20 and 21.
    for many_above, few_below in ((20, 22), (20.5, 22), (20, 21.5)):
        with pytest.raises(ValueError, match="both many and few"):
            ij.shot_splits([5, 3], many_above, few_below)
    for many_above, few_below in ((20, 21), (20.5, 21), (20.5, 20.7)):
        splits = ij.shot_splits([20, 21, 22], many_above, few_below)
        assert (sum(members.astype(int) for members in splits.values()) == 1).all()


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


@pytest.mark.parametrize(
    ("counts", "share", "eta"),
    [
        ([500, 300, 100, 60, 40], 0.8, 100),  # 80% exactly
        ([500, 300, 100, 60, 40], 0.81, 60),
        ([3, 2, 1, 1, 1, 1, 1], 0.1 + 0.2, 2),  # which is more than 3 of 10 in its last place
        ([60, 40], 0.8, 40),  # of two classes the smaller, whatever they hold
        ([999, 1], 0.1, 1),
        ([10] * 10 + [9], 0.8, 9),  # the largest class is head, and so are its equals
        ([10, 10, 5, 5, 5], 0.8, 5),  # equal classes are treated alike
        ([40, 500, 60, 300, 100], 0.8, 100),
    ],
)
def test_the_head_is_the_fewest_classes_that_hold_most_rows(
    counts: list[int], share: float, eta: int
) -> None:
    assert ij.tail_threshold(counts, head_share=share) == eta
    tail = ij.tail_classes(counts, eta)
    assert tail.any() and not tail.all()


def test_without_imbalance_there_is_no_tail() -> None:
    with pytest.raises(ValueError, match="every class has 7 examples: nothing is imbalanced"):
        ij.tail_threshold([7, 7, 7])
    with pytest.raises(ValueError, match="two classes or more"):
        ij.tail_threshold([7])


@pytest.mark.parametrize("kind", [jnp.int4, jnp.uint2, np.int8])
def test_whole_types_that_numpy_does_not_know(kind: Any) -> None:
    """NumPy has no kind for int4: labels of it "must be whole numbers, got int4"."""
    assert ij.class_counts(np.array([0, 1, 1]).astype(kind), 2).tolist() == [1, 2]
    groups = ij.rules.gsa([5, 4, 3], groups=np.array([0, 1, 1]).astype(kind))(None).groups
    assert groups.tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize("kind", ["exp", "step"])
@pytest.mark.parametrize("largest", [49, 98, 103, 107, 500])
def test_the_largest_imbalance_factor_leaves_one_example(kind: Any, largest: int) -> None:
    """49 * (1 / 49) is 0.99...: "imbalance_factor 49 ...: it can be at most 49"."""
    counts = ij.long_tail_counts(4, largest, largest, kind)
    assert (counts[0], counts[-1]) == (largest, 1)
