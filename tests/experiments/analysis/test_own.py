"""The perturbations of a run's own rule, read from its description and taken by hand."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from experiments.analysis import own
from experiments.analysis.measure import Measure
from experiments.analysis.subjects import Own, alike, groups_of, rows_by_class
from experiments.command import finished, method_flags
from made_subjects import COUNTS, ETA, SEEDS, how, mean_loss, subject

OPTIONS = {"rho": 0.1, "eta": ETA, "epochs": 3, "weight_decay": 1e-3, "switch_fraction": 0.5,
           "head_rho": 0.05, "tail_rho": 0.2, "strength": 0.8, "gamma": 2.0, "noise_ratio": 1e-2,
           "gsa_scale": 1e-2}  # fmt: skip


def own_of(rule: str, step: int = 2, counts: Any = COUNTS, **options: Any) -> Own | None:
    """As a run's config.json says it: built from flags, described, and read again."""
    given = {**OPTIONS, **options}
    _, described = method_flags.build_method(rule, counts, given, steps_per_epoch=1)
    method = finished.method_of_run(described, counts, given, steps_per_epoch=1)
    return own.of_method(method, step, described)


def risen(rule: str, **options: Any) -> dict[str, np.ndarray]:
    one = subject()
    found = own_of(rule, **options)
    assert found is not None
    one = one._replace(own=found.of_seeds(SEEDS))
    groups = groups_of(one, ETA, per_class=False)
    assert one.own is not None
    rises = Measure(one, groups, how(), jax.devices()[:1]).own(one.own)["own"]
    return dict(zip(groups, np.array(rises).T, strict=True))


HEAD, TAIL, ALL = [True, True, False, False], [False, False, True, True], [True] * 4


def by_hand(seed: int, ascent: Any, seen: Any, length: Any) -> float:
    """Of the classes `seen`, the rise `length` (of the gradient) along the gradient of `ascent`."""
    flat, f = mean_loss(subject(), seed, ascent)
    _, g = mean_loss(subject(), seed, seen)
    d = f.gradient(flat)
    return float(g(flat + length * d / np.linalg.norm(d)) - g(flat))


@pytest.mark.parametrize(
    ("rule", "of_head", "of_tail"),
    [
        ("sam", (ALL, 0.1), (ALL, 0.1)),
        ("imbsam", (TAIL, 0.1), (TAIL, 0.1)),  # of the head, what its perturbation does to that
        pytest.param("reweighted_sam", None, None, marks=pytest.mark.slow),
    ],
)
def test_own_rises_of_one_perturbation(rule: str, of_head: Any, of_tail: Any) -> None:
    found = risen(rule, **({"tail_weight": 1.0} if of_head is None else {}))
    for side, group, of in (("head", HEAD, of_head), ("tail", TAIL, of_tail)):
        ascent, length = of or (ALL, 0.1)
        want = [by_hand(seed, ascent, group, length) for seed in range(SEEDS)]
        np.testing.assert_allclose(found[side], want, rtol=2e-3, atol=1e-6)


def test_own_rises_of_several_perturbations_are_each_class_under_its_own() -> None:
    early = own_of("sse_sam", step=1)
    assert early is not None and early.groups.shape == (1, 2, 4)  # before its switch
    late = own_of("sse_sam", step=2)
    assert late is not None and late.groups.shape == (1, 1, 4)  # then ImbSAM
    found = risen("sse_sam", step=1)
    for side, group, length in (("head", HEAD, 0.05), ("tail", TAIL, 0.2)):
        want = [by_hand(seed, group, group, length) for seed in range(SEEDS)]
        np.testing.assert_allclose(found[side], want, rtol=2e-3, atol=1e-6)
    both = (15 * found["head"] + 5 * found["tail"]) / 20
    np.testing.assert_allclose(found["all"], both, rtol=1e-4)


def test_own_rises_of_class_conditional_sam() -> None:
    """Against METHODS' formula: each class along its own gradient, as far as the bound says."""
    found = risen("cc_sam", cc_perturb="all")
    for seed in range(SEEDS):
        total = 0.0
        for c in (2, 3):
            alone = np.arange(4) == c
            flat, f = mean_loss(subject(), seed, alone)
            d = f.gradient(flat) * (COUNTS[c] / 20)  # divided by all rows
            bound = np.sqrt(np.linalg.norm(flat) / (2 * np.linalg.norm(d)))
            length = 1e-2 * bound * (len(flat) / (COUNTS[c] - 1)) ** 0.25
            total += COUNTS[c] * by_hand(seed, alone, alone, length)
        np.testing.assert_allclose(found["tail"][seed], total / 5, rtol=2e-3)


def test_which_parameters_class_conditional_sam_moves() -> None:
    found = own_of("cc_sam")
    assert found is not None and found.by_class
    marks = found.ascent.perturb({"body": {"w": 1.0}, "head": {"kernel": 1.0}})
    assert marks == {"body": {"w": False}, "head": {"kernel": True}}


def test_rules_whose_own_rise_is_not_measured() -> None:
    assert own_of("sgd") is None
    assert own_of("cc_sam", cc_variant="release") is None  # each tensor has a length of its own
    assert own_of("sam", weight_decay_inside=True) is None  # e is not of the loss alone
    old = {"rule": "sam", "rule_args": {"rho": "step(0.1, 0.2)"}, "ascent": {}}
    assert finished.method_of_run(old, COUNTS, OPTIONS, steps_per_epoch=1) is None  # from when on?
    step = own_of("sam", rho_schedule="step", rho_values=[0.1, 0.2, 0.4], rho_boundaries=[1, 2])
    assert step is not None and step.radii.tolist() == pytest.approx(np.array([[0.4]]))
    late = own_of("sam", rho_schedule="late", rho_values=[0.1, 0.3])
    assert late is not None and late.radii.tolist() == pytest.approx(np.array([[0.3]]))
    gsa = own_of("gsa", counts=20 * COUNTS)
    assert gsa is not None and gsa.ascent.bound and gsa.ascent.direction == "orthogonal"


def test_what_a_batch_has_more_of_weighs_more() -> None:
    method = finished.method_of_run(
        {"rule": "sam", "rule_args": {"rho": 0.1}, "ascent": {}}, COUNTS, OPTIONS, steps_per_epoch=1
    )
    found = own.of_method(method, 0, None, seen=np.array([1.0, 1.0, 2.0, 3.0]))
    assert found is not None and found.groups.tolist() == [[[1, 1, 2, 3]]]


# ---- subjects of one seed put together ----------------------------------------------------------


def test_rows_of_a_class_stay_in_their_order() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 300)
    rows = rows_by_class(np.arange(300), labels)
    wanted = [row for c in range(3) for row in range(300) if labels[row] == c]
    assert rows.images.tolist() == [wanted] and rows.labels.tolist() == [sorted(labels.tolist())]


def test_subjects_whose_labels_agree_are_put_together() -> None:
    labels = np.array([1, 0, 1, 2])
    rows = [rows_by_class(np.arange(4.0)[:, None] + k, np.roll(labels, k)) for k in range(2)]
    assert rows[1].labels.tolist() == [[0, 1, 1, 2]] and rows[1].images[0, 0, 0] == 3  # row 2
    other = rows_by_class(np.zeros((4, 1)), np.array([0, 0, 1, 2]))
    found = own_of("sam")
    ones = [
        subject(1)._replace(seeds=[k], train=train, test=rows[0], own=found)
        for k, train in enumerate((*rows, other))
    ]
    both, alone = alike(ones)
    assert both.seeds == [0, 1] and alone.seeds == [2]
    assert both.train.images.shape == (2, 4, 1) and both.variables["params"]["w"].shape[0] == 2
    assert both.own is not None and both.own.radii.shape == (2, 1)
