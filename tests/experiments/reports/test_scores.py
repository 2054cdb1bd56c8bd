"""Scores of many lanes against scikit-learn's of one."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.preprocessing import label_binarize

from experiments.reports.scores import (
    METRICS,
    TWO,
    calibration,
    group_accuracy,
    pooled,
    recalls,
    scores,
    shots,
    splits_of,
)  # fmt: skip


def made(classes, lanes=3, rows=60, seed=0, rounded=False):
    draw = np.random.default_rng(seed)
    labels = draw.choice(
        classes, (lanes, rows), p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2)
    )
    logits = draw.normal(size=(lanes, rows, classes)) + 1.5 * (
        labels[..., None] == np.arange(classes)
    )
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    if rounded:  # ties
        p = np.round(8 * p) + 0.25
        p /= p.sum(axis=-1, keepdims=True)
    return p, labels


def counts_of(classes):
    return np.arange(classes, 0, -1) * 10


def expected(p, y, counts):
    """Of one lane, by scikit-learn."""
    classes = p.shape[1]
    said = p.argmax(axis=1)
    present = np.unique(y)
    recall = {c: 100 * np.mean(said[y == c] == c) for c in present}
    if classes == 2:
        auroc, precision = (
            metrics.roc_auc_score(y, p[:, 1]),
            metrics.average_precision_score(y, p[:, 1]),
        )
    else:
        hot = label_binarize(y, classes=range(classes))
        auroc = np.mean([metrics.roc_auc_score(hot[:, c], p[:, c]) for c in present])
        precision = np.mean([metrics.average_precision_score(hot[:, c], p[:, c]) for c in present])
    found = {
        "balanced_accuracy": np.mean(list(recall.values())),
        "macro_f1": metrics.f1_score(y, said, average="macro"),
        "worst_recall": min(recall.values()),
        "auroc": auroc,
        "average_precision": precision,
        "log_loss": metrics.log_loss(y, p, labels=range(classes)),
        "calibration_error": gap(p, y),
    }
    for name, of in splits_of(counts, shots(counts)).items():
        mine = [recall[c] for c in present if of[c]]
        found[name] = np.mean(mine) if mine else np.nan
    if classes == 2:
        z = np.log(p[:, 1] / p[:, 0])
        rare, large = z[y == 1].mean(), z[y == 0].mean()
        found |= {"logit_middle": (rare + large) / 2, "logit_gap": rare - large}
    return found


def gap(p, y, bins=15):
    largest, right, total = p.max(axis=1), p.argmax(axis=1) == y, 0.0
    for k in range(bins):
        mine = (largest > k / bins) & (largest <= (k + 1) / bins)
        if mine.any():
            total += mine.mean() * abs(largest[mine].mean() - right[mine].mean())
    return total


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_every_metric_is_scikit_learns(classes, rounded):
    p, labels = made(classes, rounded=rounded)
    counts = counts_of(classes)
    found = scores(p, labels, thresholds=shots(counts), counts=counts)
    assert tuple(found) == METRICS + TWO * (classes == 2)
    for lane in range(len(p)):
        for name, value in expected(p[lane], labels[lane], counts).items():
            np.testing.assert_allclose(found[name][lane], value, rtol=1e-12, err_msg=name)
        by_class = metrics.recall_score(labels[lane], p[lane].argmax(axis=1), average=None)
        np.testing.assert_allclose(recalls(p, labels)[lane], 100 * by_class, rtol=1e-12)


@pytest.mark.parametrize("filler", [np.nan, 0.75])
@pytest.mark.parametrize("classes", [2, 5])
def test_masked_rows_change_nothing(classes, filler):
    p, labels = made(classes)
    counts = counts_of(classes)
    padded = np.concatenate([p, np.full((3, 9, classes), filler)], axis=1)
    more = np.concatenate([labels, np.full((3, 9), classes - 1)], axis=1)
    mask = np.arange(69) < 60
    alone = scores(p, labels, thresholds=shots(counts), counts=counts)
    found = scores(padded, more, mask=mask, thresholds=shots(counts), counts=counts)
    for name in alone:
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-14)
    np.testing.assert_array_equal(recalls(padded, more, mask=mask), recalls(p, labels))
    for a, b in zip(calibration(padded, more, mask=mask), calibration(p, labels), strict=True):
        np.testing.assert_array_equal(a, b)


def test_absent_classes_are_left_out_and_broken_lanes_are_nan():
    p, labels = made(4, lanes=2)
    labels = labels[0] % 3  # one vector for both lanes, class 3 in none
    p[1, 5, 0] = np.nan
    counts = counts_of(4)
    found = scores(p, labels, thresholds=shots(counts), counts=counts)
    assert np.isnan(found["few"]).all()  # class 3 alone is few
    for name, value in expected(p[0], labels, counts).items():
        np.testing.assert_allclose(found[name][0], value, rtol=1e-12, err_msg=name)
        assert np.isnan(found[name][1])


def test_a_class_of_one_row_is_recalled_or_not():
    p = np.array([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.1, 0.3], [0.9, 0.1, 0.0]]])
    found = scores(p, np.array([0, 1, 2, 0]), thresholds=(2, 1), counts=np.array([3, 2, 1]))
    assert found["balanced_accuracy"][0] == pytest.approx(200 / 3)


def test_a_single_class_has_no_ranking():
    p, _ = made(2, lanes=1)
    found = scores(p, np.zeros(60, int), thresholds=(89, 8), counts=[90, 7])
    assert np.isnan(found["auroc"]) and np.isnan(found["average_precision"])
    assert found["balanced_accuracy"] == found["many"] and np.isnan(found["few"])


def test_a_class_that_is_said_alone_has_an_f1_of_0_and_one_that_is_nowhere_none():
    p = np.eye(4)[[0, 0, 1, 2]] * 0.6 + 0.1  # classes 0, 0, 1 and 2 are said
    y = np.array([0, 0, 1, 1])
    found = scores(p, y, thresholds=(2, 1), counts=np.array([3, 2, 1, 1]))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["macro_f1"] == metrics.f1_score(y, [0, 0, 1, 2], average="macro")


@pytest.mark.parametrize("rare", [1, 2])
def test_ranking_where_a_class_has_one_row_or_all_but_one(rare):
    y = np.array([0, 1, 1, 1, 1]) if rare == 1 else np.array([1, 0, 0, 0, 0])
    p1 = np.array([0.4, 0.3, 0.6, 0.2, 0.9])
    found = scores(np.stack([1 - p1, p1], 1), y, thresholds=(2, 1), counts=[3, 1])
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(y, p1))
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(y, p1))


def test_one_row():
    """Of the rare class alone, so nothing is ranked."""
    found = scores([[0.2, 0.8]], [1], thresholds=(2, 1), counts=[3, 1])
    assert found["log_loss"] == pytest.approx(-np.log(0.8))
    assert found["calibration_error"] == pytest.approx(0.2)
    assert np.isnan(found["auroc"]) and np.isnan(found["average_precision"])
    assert scores([[0.0, 1.0]], [0], thresholds=(2, 1), counts=[3, 1])["log_loss"] == (
        -np.log(np.finfo(float).eps)
    )


def test_groups_of_one_row_and_of_none():
    p, y, of = np.eye(2)[[0, 1, 1]], [0, 0, 1], [0, 0, 2]
    np.testing.assert_array_equal(group_accuracy(p, y, of, 5), [50, np.nan, 100, np.nan, np.nan])
    wrong = np.eye(2)[[0, 0, 0]]
    np.testing.assert_array_equal(group_accuracy(wrong, y, of, 3), [100, np.nan, 0])
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(group_accuracy(p, y, of, 3, mask=mask), [100, np.nan, 100])


def test_a_probability_that_rounding_left_above_1_is_in_the_last_bin():
    found = calibration([[1 + 2e-15, 0.0], [0.0, 0.0]], [0, 0])
    assert found.count.tolist() == [1, *[0] * 13, 1] and found.accuracy[-1] == 1


def test_groups():
    p, labels = made(3)
    groups = np.arange(60) % 4
    found = scores(p, labels, thresholds=(19, 11), counts=[30, 20, 10], groups=groups)
    right = p.argmax(axis=-1) == labels
    by_hand = [[100 * right[lane][groups == g].mean() for g in range(4)] for lane in range(3)]
    np.testing.assert_allclose(group_accuracy(p, labels, groups, 4), by_hand)
    np.testing.assert_allclose(found["worst_group"], np.min(by_hand, axis=1))


def test_bins_pool_as_their_rows_do():
    p, labels = made(3)
    whole = calibration(p.reshape(-1, 3), labels.ravel())
    parts = pooled([calibration(p[k], labels[k]) for k in range(3)])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b)
    assert whole.count.sum() == 180
    edge = calibration(np.array([[1.0, 0], [0.5, 0.5]]), [0, 0], bins=2)
    assert edge.count.tolist() == [1, 1]  # 1/2 is in the first bin, 1 in the last


@pytest.mark.parametrize(
    ("counts", "few", "many"),
    [
        ([5, 5, 5, 100], [5, 5, 5], [100]),
        ([100, 100, 100, 5], [5], [100, 100, 100]),
        ([9, 5, 5, 5, 1], [5, 5, 5, 1], [9]),
        ([9, 9, 9, 9, 9, 1], [1], [9] * 5),
        ([4, 4], [], []),
        ([5, 5, 5, 5, 5, 6], [5] * 5, [6]),
        ([3, 2, 1], [1], [3]),
        ([7, 6, 5, 4, 3, 2, 1], [2, 1], [7, 6]),
    ],
)
def test_thirds_of_the_classes(counts, few, many):
    found = splits_of(counts, shots(counts))
    assert np.array(counts)[found["few"]].tolist() == few
    assert np.array(counts)[found["many"]].tolist() == many
    assert not (found["few"] & found["many"]).any()
    above, below = shots(counts)
    assert below <= above + 1  # as imbsam_jax.shot_splits has it
