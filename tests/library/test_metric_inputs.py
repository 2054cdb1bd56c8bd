"""Labels, masks, counts and logits of every type, given to losses, metrics and classifiers.

What is new is one more line of LOSSES or of RESULTS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import classifiers, curvature, landscape, losses, metrics, rules

MANY = 300  # classes, more than an int8 or uint8 can count
COUNTS = np.arange(MANY, 0, -1)
ROWS = np.arange(0, 128, 9)  # labels that every integer type can hold
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": losses.cross_entropy,
    "weighted": losses.weighted(losses.cross_entropy, COUNTS / 50),
    "class_balanced": losses.class_balanced(COUNTS, normalise="weights"),
    "focal": losses.focal(2.0),
    "ldam": losses.ldam(COUNTS),
    "logit_adjusted": losses.logit_adjusted(COUNTS),
    "vs": losses.vs(COUNTS),
    "softmax_binary": losses.softmax_binary(COUNTS),
    "smoothed": losses.smoothed(losses.cross_entropy, 0.1),
    "deferred": losses.deferred(losses.cross_entropy, losses.focal(), switch_step=1),
}


def logits(rows: int = len(ROWS)) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (rows, MANY))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_any_width_are_the_same_labels(dtype: Any) -> None:
    """In all losses and in the hits: 300 does not fit into eight bits, the classes must."""
    labels = ROWS.astype(dtype)
    z = logits().at[np.arange(len(ROWS)), ROWS].set(9.0)
    for given in (labels, jnp.asarray(labels)):
        hits, total = metrics.class_hits(z, given)
        np.testing.assert_array_equal(hits, np.bincount(ROWS, minlength=MANY))
        np.testing.assert_array_equal(total, hits)
        got = losses.cross_entropy(z, given)
        np.testing.assert_array_equal(got, losses.cross_entropy(z, ROWS.astype(np.int32)))


def test_hits_of_more_classes_than_a_label_can_count() -> None:
    hits = metrics.class_hits(50 * jnp.eye(300)[:256], jnp.arange(256).astype(jnp.uint8))
    assert [int(part.sum()) for part in hits] == [256, 256]


NO_CLASS = [2**32, 2**32 + 1, 2**31, 2**40, -1, -(2**32), MANY]


@pytest.mark.parametrize("name", LOSSES)
def test_a_label_that_is_no_class_gives_nan(name: str) -> None:
    labels = np.array([1, *NO_CLASS])
    values = LOSSES[name](logits(len(labels)), labels, 0)
    if name == "class_balanced":  # one factor on all rows
        assert np.isnan(values).all()
        return
    assert np.isnan(values).tolist() == [False] + [True] * len(NO_CLASS)


def test_a_label_that_is_no_class_counts_nowhere() -> None:
    labels = np.array([1, *NO_CLASS])
    assert metrics.class_hits(logits(len(labels)), labels)[1].sum() == 1
    y, s = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    for wrong in (2**32, 2**32 + 1, -1, 2):
        for metric in (metrics.auroc, metrics.average_precision):
            assert np.isnan(metric(np.array([0, 1, wrong]), s)) and not np.isnan(metric(y, s))
        given = np.array([0, 1, wrong])
        assert np.isnan(losses.deviation_loss(s, given)).tolist() == [False, False, True]
        of_sad = losses.deep_sad_loss(jnp.ones((3, 2)), given, jnp.zeros(2))
        assert np.isnan(of_sad).tolist() == [False, False, True]


def test_wide_scores_rank_as_they_are() -> None:
    y = np.array([0, 1, 1])
    for scores in (
        np.array([2**40, 2**41, 2**32 + 5]),
        np.array([2**63, 2**63 + 2**12, 7], np.uint64),
        np.array([1.0, 1.0 + 1e-12, 0.5]),
        np.array([1e300, 1e305, -1e300]),
    ):
        assert metrics.auroc(y, scores) == 0.5
        np.testing.assert_allclose(metrics.average_precision(y, scores), 5 / 6, rtol=1e-6)
    wild = np.array([np.nan, 1e300, 0.0])
    assert np.isnan(metrics.auroc(y, wild))
    assert metrics.average_precision(y, wild, np.array([False, True, True])) == 1


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        (np.array([[2**32, 5]]), 0),
        (np.array([[2**33, 5]], np.uint64), 0),
        (np.array([[2**40, 2**40 + 1]]), 1),
        ([[2**40, 2**40 + 1]], 1),
        (np.array([[1.0, 1.0 + 1e-9]]), 1),
        (np.array([[1e300, 1e301]]), 1),
        (np.array([[1e-40, 3e-40]], np.float32), 1),
    ],
)
def test_wide_logits_predict_as_they_are(rows: Any, label: int) -> None:
    assert metrics.class_hits(rows, [label])[0].tolist() == [1 - label, label]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_below_the_least_normal_number_rank_as_they_are(dtype: Any) -> None:
    scores = np.array([3, 1, 2]).astype(dtype) * np.finfo(dtype).smallest_subnormal
    for metric in (metrics.auroc, metrics.average_precision):
        assert metric(np.array([1, 0, 0]), scores) == 1
        with jax.enable_x64(True):
            assert metric(np.array([1, 0, 0]), scores) == 1


WIDE = np.array([[2**33, 2**32 + 5], [2**40, 0]])  # whose lowest 32 bits are other numbers
OF_WHOLE: dict[str, Callable[[Any], Any]] = {
    "cross_entropy": lambda x: losses.cross_entropy(x, [0, 0]),
    "deviation_loss": lambda x: losses.deviation_loss(x[:, 0], [0, 1], reference_std=2.0**33),
    "deep_sad_loss": lambda x: losses.deep_sad_loss(x, [0, 1], x[0]),
    "tau_normalise": classifiers.tau_normalise,
    "lws_logits": lambda x: classifiers.lws_logits(x, x[0]),
    "max_norm_radius": classifiers.max_norm_radius,
    "max_norm_project": lambda x: classifiers.max_norm_project(x, 2.0**34),
    "normalised_linear": lambda x: classifiers.normalised_linear(x, x),
    "adjust_logits": lambda x: classifiers.adjust_logits(x, [5, 5]),
    "batch_norm": lambda x: ij.batch_norm(x, x[0])[:2],
    "batch_renorm": lambda x: ij.batch_renorm(x, x[0], x[1]),
    "grid": lambda x: landscape.grid(x[0], x[1]),
    "coordinates": lambda x: landscape.losses(
        lambda w, row: (w * row, None), 0.0, [1.0], x[:, :1], [0], jnp.ones(1)
    ),
    "directions": lambda x: landscape.losses(
        lambda w, row: (w.sum() * row, None), jnp.zeros((2, 2)), [x], [[1.0]], [0], jnp.ones(1)
    ),
    "filter_normalised": lambda x: landscape.filter_normalised(x, jnp.ones((2, 2))),
    "matvec": lambda x: curvature.hvp(lambda w, row: ((w**2).sum() * row, None), jnp.ones((2, 2)),
                                      [0], jnp.ones(1))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_WHOLE)
def test_whole_numbers_that_jax_does_not_hold_keep_their_size(name: str) -> None:
    of = OF_WHOLE[name]
    want = of(WIDE.astype(np.float64))
    for dtype in (np.int64, np.uint64):
        jax.tree.map(np.testing.assert_array_equal, of(WIDE.astype(dtype)), want)


HIDDEN = {
    "labels": (lambda x: losses.cross_entropy(jnp.zeros((2, 3)), x), [0, 1]),
    "labels of a step": (
        lambda x: ij.value_and_grad(lambda w, row: (w * row, None), rules.sgd(2))(
            jnp.array(1.0), x, jnp.ones(2)
        ),
        [0, 1],
    ),
    "mask": (lambda x: losses.cross_entropy(jnp.zeros((2, 3)), [0, 1], mask=x), [True, False]),
    "mask of a step": (
        lambda x: ij.class_weighted_grad(
            lambda w, row: (w * row, None), [0, 1], jnp.ones(2), mask=x
        ),
        [True, False],
    ),
    "logits": (lambda x: losses.cross_entropy(x, [0, 1]), np.eye(2)),
    "logits of hits": (lambda x: metrics.class_hits(x, [0, 1]), np.eye(2)),
    "mask of hits": (lambda x: metrics.class_hits(np.eye(2), [0, 1], x), [True, False]),
    "scores": (lambda x: metrics.auroc([0, 1], x), [0.5, 1.0]),
    "marks": (lambda x: metrics.auroc(x, [0.5, 1.0]), [0, 1]),
    "counts": (lambda x: metrics.group_accuracy(x, [3, 4], [True, True]), [1, 2]),
    "members": (lambda x: metrics.group_accuracy([1, 2], [3, 4], x), [True, False]),
    "kernel": (classifiers.tau_normalise, np.eye(2)),
    "scale": (lambda x: ij.batch_norm(np.eye(2), x), [1.0, 2.0]),
    "coordinates": (
        lambda x: landscape.losses(
            lambda w, row: (w * row, None), 0.0, [1.0, 1.0], x, [0], jnp.ones(1)
        ),
        np.eye(2),
    ),
    "axis": (landscape.grid, [0.0, 1.0]),
    "direction": (lambda x: landscape.filter_normalised(x, jnp.eye(2)), np.eye(2)),
    "radius": (lambda x: rules.sam(2, rho=x)(None).radii, 0.1),
    "step": (lambda x: ij.schedules.ramp(epochs=3, steps_per_epoch=1)(x), 1),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_entries_that_numpy_hides_are_refused(name: str) -> None:
    """JAX would take what lies under the mask; where nothing is hidden nothing is lost."""
    of, given = HIDDEN[name]
    want = of(np.array(given))
    if name != "mask of a step":
        jax.tree.map(np.testing.assert_array_equal, of(np.ma.array(given)), want)
    hidden = np.ma.array(given, mask=np.ones(np.shape(given), bool))
    with pytest.raises(ValueError, match=r" must have no masked entries: leave them out, or fill"):
        of(hidden)


def test_counts_of_any_width() -> None:
    members = np.array([True, True, False])
    for dtype in (np.uint8, np.int16, np.float16, np.int64, np.float64, jnp.bfloat16):
        correct, total = np.array([1, 6, 0]).astype(dtype), np.array([2, 8, 1]).astype(dtype)
        for xp in (np, jnp):
            got = metrics.group_accuracy(xp.asarray(correct), xp.asarray(total), members)
            assert got == 62.5 and got.dtype == jnp.float32
    large = metrics.group_accuracy(np.array([2**40, 2**39]), np.array([2**41] * 2), [True, True])
    assert large == 37.5


def test_a_class_without_examples_is_in_no_mean() -> None:
    correct, total = np.array([1, 0, 9]), np.array([2, 0, 10])
    found = metrics.shot_accuracies(correct, total, {"none": [False, True, False]})
    assert found["all"] == 70 and np.isnan(found["none"])


NO_COUNTS = [([5, 1], [2, 3]), ([-1, 1], [2, 3]), ([math.nan, 1], [math.nan, 2]),
             ([0, 1], [math.nan, 2]), ([1, 1], [math.inf, 3]), ([math.inf, 1], [math.inf, 2]),
             ([1, 0], [0, 3])]  # fmt: skip


@pytest.mark.parametrize(("correct", "total"), NO_COUNTS)
def test_what_counts_nothing_is_refused(correct: Any, total: Any) -> None:
    """Swapped, they gave 250 per cent; where they are traced the group's accuracy is NaN."""
    members, splits = np.array([True, False]), {"few": np.array([False, True])}
    for of in (np.array, jnp.array):
        for call in (
            lambda c, t: metrics.group_accuracy(c, t, ~members),
            lambda c, t: metrics.shot_accuracies(c, t, splits),
        ):
            with pytest.raises(ValueError, match=r"^correct must be from 0 to total in each class"):
                call(of(correct), of(total))
    got = jax.jit(lambda *counts: metrics.shot_accuracies(*counts, splits))(
        *(np.array(each, np.float32) for each in (correct, total))
    )
    assert np.isnan(got["all"])
    np.testing.assert_allclose(got["few"], 100 * correct[1] / total[1], rtol=1e-6)


def test_splits_have_names_and_none_is_that_of_all() -> None:
    for bad in ([[True, False]], None, np.array([[True, False]]), "few"):
        with pytest.raises(TypeError, match=r"^splits must be a mapping from names to bool\[C\]"):
            metrics.shot_accuracies([1, 2], [3, 4], bad)
    with pytest.raises(ValueError, match='split named "all" would hide'):
        metrics.shot_accuracies([1, 2], [3, 4], {"all": [True, False]})


# ------------------------------------------------------------------------------------------ masks

OF_MASKS: dict[str, Callable[[Any], Any]] = {
    "cross_entropy": lambda mask: losses.cross_entropy(jnp.zeros((2, 3)), MARKS, mask=mask),
    "weighted": lambda mask: losses.class_balanced([9, 3, 1], normalise="weights")(
        jnp.zeros((2, 3)), MARKS, mask=mask
    ),
    "class_hits": lambda mask: metrics.class_hits(jnp.zeros((2, 3)), MARKS, mask),
    "auroc": lambda mask: metrics.auroc(MARKS, jnp.zeros(2), mask),
    "average_precision": lambda mask: metrics.average_precision(MARKS, jnp.zeros(2), mask),
    "group_accuracy": lambda mask: metrics.group_accuracy([1, 2], [3, 4], mask),
    "shot_accuracies": lambda mask: metrics.shot_accuracies([1, 2], [3, 4], {"few": mask}),
}
MARKS = jnp.array([0, 1])


@pytest.mark.parametrize("name", OF_MASKS)
def test_masks_are_bool(name: str) -> None:
    of = OF_MASKS[name]
    want = of(np.array([True, False]))
    for good in ([True, False], (True, False), jnp.array([True, False])):
        jax.tree.map(np.testing.assert_array_equal, of(good), want)
    for bad in ([0.5, 0.5], [1, 0], np.array([255, 0], np.uint8), ["a", "b"], [None, True], "ab"):
        with pytest.raises(ValueError, match=r"^(mask|members|labels, scores) .*must be"):
            of(bad)
    with pytest.raises(ValueError, match="must be bool"):
        jax.jit(of)(jnp.array([0.5, 0.5]))
    for shape in ((), (3,), (2, 1)):
        with pytest.raises(
            ValueError, match=r"must be (bool\[2\], got shape|vectors of one length)"
        ):
            of(np.ones(shape, bool))


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.0, 1.0]), np.array([True, False]), np.array(["a", "b"]), [[0], [1, 2]], 1,
        np.array([0j, 1j]), None, np.zeros((2, 1, 1)), jax.random.split(jax.random.key(0)),
    ],
)  # fmt: skip
def test_labels_of_another_kind_are_refused(labels: Any) -> None:
    for loss in LOSSES.values():
        with pytest.raises(ValueError, match=r"^labels must be "):
            loss(jnp.zeros((2, MANY)), labels, 0)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    for loss in LOSSES.values():
        with pytest.raises(ValueError, match="there are 3 labels for 2 rows"):
            loss(logits(2), np.array([0, 1, 2]), 0)
        with pytest.raises(ValueError, match="logits must be"):
            loss(logits(2) + 0j, np.array([0, 1]), 0)
    with pytest.raises(ValueError, match="not of the same rows"):
        metrics.class_hits(logits(2), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="labels int"):
        metrics.class_hits(logits(2), np.ones((2, MANY)))


# ------------------------------------------------------------- JAX's own switches, on good data

Z, HALF = logits(4)[:, :3], jnp.ones((4, 2), jnp.float16)
Y = jnp.array([0, 1, 2, 1])
SCORES = jnp.array([0.1, 0.4, 0.35, 0.8])
KERNEL = jnp.array([[1.0, 2.0, 0.5], [0.0, 2.0, 1.0]], jnp.bfloat16)
N = [9, 3, 1]
RESULTS: dict[str, Callable[[], Any]] = {
    "class_hits": lambda: metrics.class_hits(Z, Y, jnp.array([True, True, False, True])),
    "group_accuracy": lambda: metrics.group_accuracy(
        jnp.array([1, 2]), jnp.array([2, 4]), jnp.array([True, False])
    ),
    "shot_accuracies": lambda: metrics.shot_accuracies(
        jnp.array([1, 2]), jnp.array([2, 4]), {"few": jnp.array([True, False])}
    ),
    "auroc": lambda: metrics.auroc(Y % 2, SCORES),
    "auroc in half": lambda: metrics.auroc(Y % 2, SCORES.astype(jnp.float16), Y < 3),
    "average_precision": lambda: metrics.average_precision(Y % 2, SCORES),
    "average_precision of integers": lambda: metrics.average_precision(Y % 2, Y),
    "deviation_loss": lambda: losses.deviation_loss(SCORES, Y % 2),
    "deviation_loss in half": lambda: losses.deviation_loss(
        SCORES.astype(jnp.bfloat16), Y % 2, reference_std=np.float64(2), margin=jnp.float32(3)
    ),
    "deep_sad_loss": lambda: losses.deep_sad_loss(HALF, Y % 2, jnp.zeros(2)),
    "feature_adversary": lambda: losses.feature_adversary(
        lambda w, z: (losses.cross_entropy(z * w[None], Y), None), N,
        variant="release", strength=0.5,
    )(jnp.ones(3), Y, Z, share=0.5)[0],
    "tau_normalise": lambda: classifiers.tau_normalise(KERNEL, np.float64(0.5)),
    "lws_logits": lambda: classifiers.lws_logits(Z.astype(jnp.float16), jnp.ones(3)),
    "fold_scales": lambda: classifiers.fold_scales(KERNEL, jnp.ones(3), jnp.ones(3, jnp.float16)),
    "max_norm_radius": lambda: classifiers.max_norm_radius(KERNEL),
    "max_norm_project": lambda: classifiers.max_norm_project(KERNEL, jnp.float32(1.5)),
    "normalised_linear": lambda: classifiers.normalised_linear(HALF, KERNEL),
    "normalised_init": lambda: classifiers.normalised_init(
        jax.random.key(0), (2, 3), jnp.bfloat16
    ),
    "adjust_logits": lambda: classifiers.adjust_logits(Z.astype(jnp.float16), N),
    "class_balanced_weights": lambda: losses.class_balanced_weights(N),
    **{
        f"{name} of {kind}": lambda make=make, y=y: jax.value_and_grad(
            lambda z: make()(z, y, 0, jnp.array([True, True, True, False])).mean()
        )(Z)
        for kind, y in {"labels": Y, "soft labels": jnp.full((4, 3), 1 / 3, jnp.float16)}.items()
        for name, make in {
            "cross_entropy": lambda: losses.cross_entropy,
            "weighted": lambda: losses.class_balanced(N, normalise="weights"),
            "class_balanced": lambda: losses.class_balanced(N),
            "focal": lambda: losses.focal(np.float64(2.0)),
            "ldam": lambda: losses.ldam(N, scale=jnp.float32(30)),
            "logit_adjusted": lambda: losses.logit_adjusted(N),
            "vs": lambda: losses.vs(N),
            "softmax_binary": lambda: losses.softmax_binary(N),
            "smoothed": lambda: losses.smoothed(losses.cross_entropy, np.float32(0.1)),
            "deferred": lambda: losses.deferred(
                losses.cross_entropy, losses.focal(), switch_step=1
            ),
        }.items()
    },
}  # fmt: skip


# What a soft label is multiplied with is the same in all losses: quickly of those that have more.
OF_SOFT = tuple(f"{name} of soft labels" for name in ("cross_entropy", "weighted", "smoothed"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow] * (name.endswith("of soft labels") and name not in OF_SOFT),
        )
        for name in RESULTS
    ],
)
def test_strict_promotion_and_debug_nans_change_nothing(name: str) -> None:
    plain = RESULTS[name]()
    with jax.debug_nans(True):
        jax.tree.map(np.testing.assert_array_equal, RESULTS[name](), plain)
    with jax.numpy_dtype_promotion("strict"):  # which fails in tracing, and is compiled anew
        strict = jax.eval_shape(RESULTS[name])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), strict) == jax.tree.map(
        lambda x: (np.shape(x), jnp.asarray(x).dtype), plain
    )


def test_every_public_function_is_tried_so() -> None:
    tried = {word for name in RESULTS for word in name.split()}
    for module in (metrics, losses, classifiers):
        others = {"Loss", "MaxNormState", "max_norm"}  # max_norm: its project and its radius
        assert set(module.__all__) - others <= tried
    assert {name for name in ij.losses.__all__ if name[0].islower()} - {
        "class_balanced_weights", "deviation_loss", "deep_sad_loss", "feature_adversary",
    } == set(LOSSES)  # fmt: skip


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("module", [np, jnp])
def test_a_row_with_nan_predicts_no_class(module: Any, kind: Any) -> None:
    """Its first NaN is the largest entry: a network that diverged had all of class 0 right."""
    given = np.array([[math.nan] * 3, [0.0, math.nan, 9.0], [1.0, 0.0, 0.0]], np.float32)
    correct, total = metrics.class_hits(
        module.asarray(given.astype(kind)), jnp.array([0, 1, 0]), jnp.array([True, True, True])
    )
    assert correct.tolist() == [1, 0, 0] and total.tolist() == [2, 1, 0]


NO_CLASSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": lambda: losses.cross_entropy(jnp.zeros((2, 0)), jnp.zeros(2, int)),
    "focal": lambda: losses.focal()(jnp.zeros((2, 0)), jnp.zeros(2, int)),
    "class_hits": lambda: metrics.class_hits(jnp.zeros((2, 0)), jnp.zeros(2, int)),
    "max_norm_radius": lambda: classifiers.max_norm_radius(jnp.zeros((2, 0))),
}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_no_class_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"(logits|kernel) must have a class or more"):
        NO_CLASSES[name]()
