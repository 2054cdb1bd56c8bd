"""The method of a row at a point, and which parameters it moves."""

import numpy as np
import pytest

from experiments.command import candidates
from experiments.command.candidates import SETTINGS, Candidate, gsa_groups, method_of
from imbsam_jax import rules, tail_threshold

COUNTS = np.array([90, 40, 30, 9, 5, 2])
POINT = {name: of.default for name, of in SETTINGS.items()}


def test_groups_are_three_of_as_many_classes_each_by_their_size():
    """Of equal ones the first is the larger, of however many."""
    assert gsa_groups(np.full(40, 7)) == [3 * k // 40 for k in range(40)]
    counts = np.random.default_rng(0).integers(1, 4, 60)
    order = sorted(range(60), key=lambda c: -counts[c])  # which keeps equal ones in their order
    assert [gsa_groups(counts)[c] for c in order] == [k // 20 for k in range(60)]
    assert gsa_groups(np.array([5, 7, 6, 8])) == [2, 0, 1, 0]
    assert gsa_groups(np.array([2, 9, 3])) == [2, 0, 1]


@pytest.mark.parametrize(
    ("name", "moved"),
    [("without-last-bias", [True, True, False, True]), ("last-bias", [False, False, True, False])],
)
def test_which_parameters_are_moved(name, moved):
    """The bias of the head stands for the classifier's thresholds; that of a layer does not."""
    params = {"head": {"kernel": 1, "bias": 2}, "hidden_0": {"bias": 3}, "bias": 4}
    found = candidates.PERTURB[name](params)
    assert found == {
        "head": {"kernel": moved[0], "bias": moved[2]}, "hidden_0": {"bias": moved[1]},
        "bias": moved[3],
    }  # fmt: skip


def test_points_are_the_same_in_every_comparison():
    """As recorded when they were first drawn: a Latin hypercube of NumPy's generator of seed 0."""
    (row,) = candidates.candidates(["imbsam"], ["cross_entropy"], settings=4, fixed={})
    assert [[*point.values()] for point in row.points] == [
        [0.1, 1e-3, 0.1, 0.8], [0.05, 5e-3, 0.0, 0.887], [0.0248, 1.83e-4, 0.186, 0.574],
        [0.0459, 4.11e-5, 0.0461, 0.686],
    ]  # fmt: skip
    assert [*row.points[0]] == ["lr", "weight_decay", "rho", "head_share"]


def test_what_is_given_is_given_to_the_rows_that_take_it():
    """In every point, the second too; a given eta takes the place of the head's share."""
    fixed = {"lr": 0.3, "rho": 0.25, "eta": 7.0, "focal_gamma": 2.0, "tau": 0.5}
    rows = candidates.candidates(
        ["sgd", "sam", "imbsam"], ["cross_entropy", "focal"], settings=2, fixed=fixed,
        samplings=("shuffled", "balanced"), perturb="last-bias",
    )  # fmt: skip
    first, second = {"lr": 0.3, "weight_decay": 1e-3}, {"lr": 0.3, "weight_decay": 5e-3}
    own = {
        "sgd, cross_entropy": {}, "sgd, focal": {"focal_gamma": 2.0},
        "sam, cross_entropy": {"rho": 0.25}, "imbsam, cross_entropy": {"rho": 0.25, "eta": 7.0},
        "sgd, cross_entropy, balanced sampling": {},
    }  # fmt: skip
    assert {row.name: row.points for row in rows} == {
        name: [first | more, second | more] for name, more in own.items()
    }
    assert {row.perturb for row in rows} == {"last-bias"}
    assert [row.sampling for row in rows] == [*["shuffled"] * 4, "balanced"]
    alone = candidates.candidates(
        ["sam"], ["cross_entropy"], settings=1, fixed={}, samplings=("balanced",)
    )
    assert [row.name for row in alone] == ["sam, cross_entropy"]


@pytest.mark.parametrize("rule", candidates.RULES)
@pytest.mark.parametrize("perturb", candidates.PERTURB)
def test_the_method_of_a_point(rule, perturb):
    """SGD moves nothing, whatever is asked; eta is the point's or follows from its share."""
    for given, eta in (({}, tail_threshold(COUNTS)), ({"head_share": 0.5}, 40.0), ({"eta": 4}, 4)):
        point = {**POINT, "rho": 0.25, **given}
        if "eta" in given:
            del point["head_share"]
        expected = {
            "sgd": rules.sgd(6), "sam": rules.sam(6, rho=0.25),
            "imbsam": rules.imbsam(COUNTS, rho=0.25, eta=eta),
            "focal_sam": rules.focal_sam(COUNTS, rho=0.25, gamma=3.0, strength=0.8),
            "reweighted_sam": rules.reweighted_sam(COUNTS, rho=0.25, eta=eta, tail_weight=2.0),
            "gsa": rules.gsa(COUNTS, groups=[0, 0, 1, 1, 2, 2], scale=0.01),
        }[rule]  # fmt: skip
        row = Candidate("x", rule, "focal", "shuffled", [point], perturb)
        for method in (method_of(rule, COUNTS, point, perturb), row.method(COUNTS, point)):
            for one, other in zip(method.rule(0), expected(0), strict=True):
                np.testing.assert_array_equal(one, other)
            moved = None if rule == "sgd" else candidates.PERTURB[perturb]
            assert method.ascent.perturb is moved
        told = row.described(COUNTS, point)
        assert told["eta"] == eta and "head_share" not in told
    assert Candidate("x", "sam", "focal", "shuffled", []).described(COUNTS, {"lr": 1}) == {"lr": 1}
