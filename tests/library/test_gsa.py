"""Grouped sharpness: what the rows of rule_table.py do not show.

`points` tells where each pass of a compiled step was: the losses are linear in the parameters, so
that directions can be written down, and each pass notes its point in the aux that it hands on.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
import reference
from imbsam_jax import cc_sam, passes, rules
from imbsam_jax.experimental import remembered
from rule_table import (
    CLASSES,
    COUNTS,
    ETA,
    GROUPS,
    SWITCH,
    features_fn,
    head_losses_fn,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    to_library,
    to_reference,
)

DIRECTIONS = ("orthogonal", "plain", "projection")


def slowly(*cases: str) -> list[Any]:
    """Cases that `make test-all` alone repeats."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def assert_trees(got: Any, want: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def linear(theta: Any, slopes: Any, seen: Any) -> tuple[Any, Any]:
    """<a_i, theta>, and the points of the passes so far."""
    return slopes @ theta, jnp.concatenate([seen[1:], theta[None]])


HANDED_ON = passes.whole(carry=lambda args, seen: (args[0], seen))


@cache
def step_of(rule: Any) -> Any:
    return quick_jit(ij.value_and_grad(linear, rule, passes=HANDED_ON))


def points(rule: Any, theta: Any, slopes: Any, labels: Any, **options: Any) -> Any:
    """(point of each group's second pass float[G, P], gradient); float32 in, float32 out."""
    options = {"step": 0, **options}
    groups = len(rule(0).radii)
    seen = np.full((1 + groups, theta.size), np.nan, theta.dtype)
    (_, seen), grads = step_of(rule)(theta, labels, slopes, seen, **options)
    np.testing.assert_array_equal(seen[0], theta)
    return np.asarray(seen[1:]), np.asarray(grads)


# -------------------------------------------------------------------------------- by hand, in 2-D

# Of 82 and 17 examples, whose (N - 1)^(-1/4) are 1/3 and 1/2; the gradients are (2, 0) and (0, 1).
TWO = [82, 17]
OF_TWO = {direction: rules.gsa(TWO, scale=0.6, direction=direction) for direction in DIRECTIONS}
THETA = np.array([3.0, 4.0])  # of length 5
SLOPES = np.array([[4.0, 0.0], [0.0, 2.0]])
LABELS = np.array([0, 1])
# Of each group: h_k of length 2 / sqrt(5), opposite; d_k; its projection on (2, 1).
BY_HAND = {
    "orthogonal": ([[0.4, -0.8], [-0.4, 0.8]], [2 / math.sqrt(5), 2 / math.sqrt(5)]),
    "plain": ([[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0]),
    "projection": ([[1.6, 0.8], [0.4, 0.2]], [4 / math.sqrt(5), 1 / math.sqrt(5)]),
}


def steps_by_hand(direction: str, scale: float) -> np.ndarray:
    h, lengths = map(np.array, BY_HAND[direction])
    radii = np.sqrt(5 / (2 * lengths)) * 2**0.25 * np.array([1 / 3, 1 / 2])
    return scale * (radii / lengths)[:, None] * h


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_groups_in_two_dimensions(direction: Any) -> None:
    rule, seen = OF_TWO[direction], np.zeros((3, 2))
    found, grads = points(rule, THETA, SLOPES, LABELS)
    np.testing.assert_allclose(found, THETA + steps_by_hand(direction, 0.6), rtol=1e-14)
    np.testing.assert_allclose(grads, [2.0, 1.0], rtol=1e-15)
    program = str(step_of(rule).trace(THETA, LABELS, SLOPES, seen, step=0).jaxpr)
    for groups in ([0, 1], np.array([3, 8], np.uint8)):
        same = rules.gsa(TWO, scale=0.6, direction=direction, groups=groups)
        jax.tree.map(np.testing.assert_array_equal, same(0), rule(0))
        assert str(step_of(same).trace(THETA, LABELS, SLOPES, seen, step=0).jaxpr) == program


@pytest.mark.usefixtures("x64")
def test_head_and_tail_move_apart_by_a_hundredth() -> None:
    """Groups of `tail_classes`; with two, h of one is -h of the other."""
    counts = [60, 22, 17]
    groups = ij.tail_classes(counts, 20).astype(int)
    found, _ = points(rules.gsa(counts, groups=groups), THETA, SLOPES, np.array([1, 2]))
    np.testing.assert_allclose(found, THETA + steps_by_hand("orthogonal", 0.01), rtol=1e-14)
    assert (found[0] - THETA) @ (found[1] - THETA) < 0


@pytest.mark.usefixtures("x64")
def test_info_tells_the_length_of_each_gradient() -> None:
    f = ij.value_and_grad(lambda theta, a: (a @ theta, None), rules.gsa(TWO, scale=0.6), info=True)
    (_, _, info), _ = quick_jit(f)(THETA, LABELS, SLOPES)
    np.testing.assert_allclose(info.ascent_norm, [2.0, 1.0])
    np.testing.assert_array_equal(info.rows, [1, 1])
    moved = THETA + steps_by_hand("orthogonal", 0.6)
    np.testing.assert_allclose(info.perturbed_loss, (SLOPES * moved).sum(1), rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_devices_average_directions_before_they_are_projected() -> None:
    """Each device has one group alone: by itself it moves nothing, together they are the batch."""
    rule = rules.gsa(TWO, scale=0.6)

    def on_device(sync: bool, slopes: Any, labels: Any) -> Any:
        f = ij.value_and_grad(linear, rule, passes=HANDED_ON, axis_name="devices", sync_ascent=sync)
        (_, seen), _ = f(jnp.asarray(THETA), labels, slopes, jnp.zeros((3, 2)))
        return seen[1:]

    for sync, step in ((True, steps_by_hand("orthogonal", 0.6)), (False, np.zeros((2, 2)))):
        mapped = jax.vmap(partial(on_device, sync), axis_name="devices")
        found = quick_jit(mapped)(SLOPES[:, None], LABELS[:, None])
        for device in range(2):
            np.testing.assert_allclose(found[device], THETA + step, rtol=1e-14)


# ------------------------------------------------------------------ where there is no direction

MANY = 10_007  # parameters: enough for a sum to be rounded in more ways than one


def many(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


OF_THREE = {
    direction: rules.gsa([500, 80, 5], direction=direction, scale=lambda step: 0.01 * (1.0 - step))
    for direction in DIRECTIONS
}
THREE = rules.gsa([500, 80, 5])
PLAIN = rules.gsa([500, 80, 5], direction="plain")


@pytest.mark.parametrize("group", [0, 1, 2])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_group_alone_in_the_batch_is_not_perturbed(group: int, size: float) -> None:
    """Exactly: what is left of d - <d, d> / <d, d> d by rounding is no direction."""
    theta, slopes = many(0, MANY), np.float32(size) * many(1, 5, MANY)
    alone = np.full(5, group)
    for labels, options in (
        (alone, {}),
        (np.array([group, -1, group, (group + 1) % 3, group]), {"mask": np.arange(5) % 2 == 0}),
        (np.eye(3, dtype=np.float32)[alone], {}),
    ):
        found, grads = points(THREE, theta, slopes, labels, **options)
        np.testing.assert_array_equal(found, [theta] * 3)
        rows = slopes[options.get("mask", slice(None))]
        np.testing.assert_allclose(grads, rows.mean(0), rtol=1e-5, atol=1e-6 * size)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", ["plain", "projection"])
def test_a_group_alone_is_its_own_projection(direction: Any) -> None:
    """The controls have a direction there: d_k itself."""
    found, _ = points(OF_TWO[direction], THETA, SLOPES[[0, 0]] / 2, np.zeros(2, int))
    np.testing.assert_allclose(found[0], THETA + steps_by_hand("plain", 0.6)[0], rtol=1e-14)
    np.testing.assert_array_equal(found[1], THETA)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
def test_an_absent_group_takes_no_part(direction: Any) -> None:
    """The others move as if there were none but them."""
    found, grads = points(
        rules.gsa([82, 17, 9], groups=[0, 2, 1], scale=0.6, direction=direction),
        THETA, SLOPES, LABELS,
    )  # fmt: skip
    np.testing.assert_array_equal(found[1], THETA)
    np.testing.assert_allclose(found[[0, 2]], THETA + steps_by_hand(direction, 0.6), rtol=1e-14)
    np.testing.assert_allclose(grads, [2.0, 1.0], rtol=1e-15)


@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
def test_parameters_at_0_do_not_move(direction: Any) -> None:
    """Nor where the gradient is 0, nor by a scale of 0."""
    theta, slopes = many(0, 7), many(1, 3, 7)
    rule = OF_THREE[direction]  # of scale 0 in step 1
    for step, at, a in ((0, 0 * theta, slopes), (0, theta, 0 * slopes), (1, theta, slopes)):
        found, grads = points(rule, at, a, np.arange(3), step=step)
        np.testing.assert_array_equal(found, [at] * 3)
        np.testing.assert_allclose(grads, a.mean(0), rtol=1e-6)
    assert (points(rule, theta, slopes, np.arange(3))[0] != theta).any(axis=1).all()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(
    "factors", [(1, 1, 1), (3, 1 / 3, 0.7), (1, -0.25, 0.1), (1, 1e-6, 1e-3), (1, -0.999, 0.3)]
)
def test_gradients_on_one_line_leave_no_direction(factors: Any, size: float) -> None:
    """h is 0 up to rounding, and its radius, 1 / sqrt(||h||), would be longer than any other."""
    theta, along = many(0, MANY), np.float32(size) * many(1, MANY)
    slopes = np.float32(factors)[:, None] * along
    found, _ = points(THREE, theta, slopes, np.arange(3))
    plain, _ = points(PLAIN, theta, slopes, np.arange(3))
    moved, full = (np.linalg.norm(p - theta, axis=1) for p in (found, plain))
    assert np.isfinite(found).all() and (full > 0).all()
    assert (moved <= 1e-3 * full).all(), moved / full


def test_one_parameter_has_no_direction() -> None:
    found, _ = points(THREE, np.float32([2.0]), np.float32([[0.1], [0.7], [-0.3]]), np.arange(3))
    np.testing.assert_array_equal(found, np.full((3, 1), 2.0))


@pytest.mark.usefixtures("x64")
def test_gradients_that_cancel_are_finite() -> None:
    """d is 0, and there is nothing to project on: each group moves along its own gradient."""
    slopes = np.array([[4.0, 0.0], [-4.0, 0.0]])
    found, grads = points(OF_TWO["orthogonal"], THETA, slopes, LABELS)
    radii = math.sqrt(5 / 4) * 2**0.25 * np.array([1 / 3, -1 / 2])
    np.testing.assert_allclose(found - THETA, 0.6 * radii[:, None] * [1, 0], rtol=1e-13)
    np.testing.assert_array_equal(grads, [0, 0])


@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
@pytest.mark.parametrize("size", [1e-25, 1e-10, 1e10, 1e25])
def test_the_radius_is_exact_at_any_scale_of_the_loss(direction: Any, size: float) -> None:
    """Squares of these over- and underflow in float32; the step is as long as 1 / sqrt(size)."""
    theta, rule = THETA.astype(np.float32), OF_TWO[direction]
    # A loss at theta + e of a large e: slopes of theta far away keep digits of the step.
    found, _ = points(rule, theta, np.float32(size) * SLOPES.astype(np.float32), LABELS)
    want = THETA + steps_by_hand(direction, 0.6) / math.sqrt(size)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_large_and_small_parameters_have_a_length() -> None:
    """Its square over- and underflows."""
    for size in (1e-30, 1e30):
        theta = np.float32(size) * THETA.astype(np.float32)
        found, _ = points(OF_TWO["orthogonal"], theta, SLOPES.astype(np.float32), LABELS)
        step = steps_by_hand("orthogonal", 0.6) * math.sqrt(size)
        np.testing.assert_allclose(found, size * THETA + step, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
def test_what_is_not_finite_shows_in_every_group(bad: float, direction: Any) -> None:
    slopes = many(1, 3, 7)
    slopes[1, 2] = bad
    found, grads = points(OF_THREE[direction], many(0, 7), slopes, np.arange(3))
    assert not np.isfinite(grads).all() and not np.isfinite(found[1]).all()
    if direction != "plain":  # through d, which all of them are projected on
        assert not np.isfinite(found).all(axis=1).any()


# ----------------------------------------------------------------------- beside other methods


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("perturb", ["all", *slowly("classifier")])
def test_with_a_class_for_a_group_its_radius_is_that_of_cc_sam(perturb: Any) -> None:
    x, y = one_batch()
    params = to_library(init_params())
    plain = rules.gsa(COUNTS, groups=np.arange(CLASSES), scale=0.3, direction="plain")
    marks = None if perturb == "all" else {"hidden": False, "head": True}

    @quick_jit
    def pair(params: Any) -> Any:
        ascent = ij.Ascent(perturb=marks)
        return (
            ij.value_and_grad(losses_fn, plain, ascent=ascent)(params, y, x, y)[1],
            cc_sam.value_and_grad(
                features_fn, head_losses_fn, COUNTS, perturb=perturb, noise_ratio=0.3
            )(params, y, x, y)[1],
        )

    assert_trees(*pair(params), atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
@pytest.mark.parametrize("door", ["value_and_grad", "sharpness_aware"])
def test_only_the_parameters_that_perturb_marks_move(door: str, direction: Any) -> None:
    """theta, the directions, their projections and the number of parameters are theirs."""
    x, y = one_batch()
    params = to_library(init_params())
    rule = rules.gsa(COUNTS, groups=GROUPS, scale=0.3, direction=direction)
    ascent = ij.Ascent(perturb={"hidden": False, "head": True})
    if door == "value_and_grad":
        f = ij.value_and_grad(losses_fn, rule, ascent=ascent)
        grads = quick_jit(lambda params: f(params, y, x, y)[1])(params)
    else:
        tx = ij.sharpness_aware(rule, ascent=ascent)
        fn = ij.class_weighted_grad(losses_fn, y, x, y)
        grads, _ = quick_jit(lambda params: tx.update(fn, tx.init(params), params))(params)
    want = reference.gsa_gradient(
        init_params(), x, y, class_counts=COUNTS, groups=GROUPS, z=0.3, direction=direction,
        perturb="classifier",
    )  # fmt: skip
    assert_trees(to_reference(grads), want, atol=1e-13)


def _by_stage(first: Any, second: Any, x: Any, y: Any, door: str) -> Any:
    """The gradient of each step about the switch, at traced and at concrete steps."""
    rule = rules.stagewise(first, second, switch_step=SWITCH)
    params = to_library(init_params())

    def gradient(step: Any) -> Any:
        if door == "value_and_grad":
            return ij.value_and_grad(losses_fn, rule)(params, y, x, y, step=step)[1]
        fn = ij.class_weighted_grad(losses_fn, y, x, y)
        return ij.sharpness_aware(rule).update(fn, ij.SharpnessAwareState(step), params)[0]

    about = (SWITCH - 1, SWITCH)
    both = quick_jit(lambda step: (gradient(step), [gradient(np.int32(known)) for known in about]))
    for place, step in enumerate(about):
        traced, known = both(step)
        yield step, to_reference(traced)
        yield step, to_reference(known[place])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("door", ["value_and_grad", "sharpness_aware"])
@pytest.mark.parametrize(
    "order", ["gsa, sgd", *slowly("sgd, gsa", "gsa, sam", "gsa, gsa", "imbsam, gsa")]
)
def test_a_stage_has_the_direction_of_its_own_rule(order: str, door: str) -> None:
    x, y = one_batch()
    params, grouped = init_params(), {"class_counts": COUNTS, "groups": GROUPS, "z": 0.3}
    made = {
        "gsa": (
            rules.gsa(COUNTS, groups=GROUPS, scale=0.3),
            reference.gsa_gradient(params, x, y, **grouped),
        ),
        "plain": (
            rules.gsa(COUNTS, groups=GROUPS, scale=0.3, direction="plain"),
            reference.gsa_gradient(params, x, y, **grouped, direction="plain"),
        ),
        "sgd": (rules.sgd(CLASSES), reference.sgd_gradient(params, x, y)),
        "sam": (rules.sam(CLASSES, rho=0.3), reference.sam_gradient(params, x, y, rho=0.3)),
        "imbsam": (
            rules.imbsam(COUNTS, rho=0.3, eta=ETA),
            reference.imbsam_gradient(params, x, y, class_counts=COUNTS, rho=0.3, eta=ETA),
        ),
    }
    first, second = order.split(", ")
    second = "plain" if first == second else second
    for step, got in _by_stage(made[first][0], made[second][0], x, y, door):
        want = made[first if step < SWITCH else second][1]
        assert_trees(got, want, atol=1e-13)


# -------------------------------------------------------------- differentiating through the step


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
def test_the_step_may_be_differentiated(direction: Any) -> None:
    """By theta and by the scale, against differences of the transcription."""
    x, y = one_batch()
    rng = np.random.default_rng(4)
    push = {name: rng.normal(size=value.shape) for name, value in init_params().items()}
    ahead = {name: rng.normal(size=value.shape) for name, value in init_params().items()}

    def pushed(params: Any, scale: Any) -> Any:
        rule = rules.gsa(COUNTS, groups=GROUPS, scale=scale, direction=direction)
        grads = ij.value_and_grad(losses_fn, rule)(params, y, x, y)[1]
        leaves = jax.tree.leaves(jax.tree.map(jnp.vdot, grads, to_library(push)))
        return sum(leaves)

    by_theta, by_scale = quick_jit(jax.grad(pushed, (0, 1)))(to_library(init_params()), 0.3)

    def by_reference(along: float, more: float) -> float:
        moved = reference.add(init_params(), reference.scale(along, ahead))
        g = reference.gsa_gradient(
            moved, x, y, class_counts=COUNTS, groups=GROUPS, z=0.3 + more, direction=direction
        )
        return float(sum((g[name] * push[name]).sum() for name in g))

    small = 1e-5
    got = sum((to_reference(by_theta)[name] * ahead[name]).sum() for name in ahead)
    want = (by_reference(small, 0) - by_reference(-small, 0)) / (2 * small)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    want = (by_reference(0, small) - by_reference(0, -small)) / (2 * small)
    np.testing.assert_allclose(by_scale, want, rtol=1e-6)


@cache
def slopes_after(direction: Any) -> Any:
    """(theta, scale, x, labels, slope) -> by theta and by scale, of a loss after a step."""

    def after(theta: Any, scale: Any, x: Any, labels: Any, slope: Any) -> Any:
        bent = lambda theta, x: (slope * jnp.tanh(x @ theta), None)  # noqa: E731
        rule = rules.gsa([500, 80, 5], scale=scale, direction=direction)
        grads = ij.value_and_grad(bent, rule)(theta, labels, x)[1]
        return bent(theta - 0.1 * grads, x)[0].sum()

    return quick_jit(jax.grad(after, (0, 1)))


@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
@pytest.mark.parametrize(
    ("at", "labels", "slope"),
    [
        (1.0, [0, 1, 2], 1.0),
        (1.0, [0, 1, 1], 1.0),
        (1.0, [2, 2, 2], 1.0),
        (1.0, [0, 1, 2], 0.0),
        (0.0, [0, 1, 2], 1.0),
        (0.0, [1, 1, 1], 0.0),
    ],
    ids=["all groups", "one absent", "one alone", "no gradient", "theta 0", "nothing"],
)
def test_derivatives_of_the_step_are_finite(
    at: float, labels: Any, slope: float, direction: Any
) -> None:
    x, theta = many(1, 3, 7), np.float32(at) * many(0, 7)
    scale, slope = np.float32(0.3), np.float32(slope)
    for derivative in slopes_after(direction)(theta, scale, x, np.array(labels), slope):
        assert np.isfinite(derivative).all()


def test_collinear_gradients_have_finite_derivatives() -> None:
    x, theta = many(1, 1, 7).repeat(3, 0), many(0, 7)
    scale, slope = np.float32(0.3), np.float32(1)
    for derivative in slopes_after("orthogonal")(theta, scale, x, np.arange(3), slope):
        assert np.isfinite(derivative).all()


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([9, 3], {"groups": [1, 1]}, "all classes are in one group"),
        ([9, 3], {}, "all classes are in one group of many, medium and few"),
        ([500, 400], {}, "all classes are in one group of many, medium and few"),
        ([9, 3, 1], {"groups": [0, 0, 1]}, "a group of a single training example"),
        ([500, 1], {}, "a group of a single training example"),
        ([9, 3], {"groups": [0, 1, 1]}, r"groups must be int\[2\], .*; got int64\[3\]"),
        ([9, 3], {"groups": [[0, 1]]}, r"groups must be int\[2\], .*; got int64\[1, 2\]"),
        ([9, 3], {"groups": 1}, r"groups must be int\[2\]"),
        ([9, 3], {"groups": [0.0, 1.0]}, r"groups must be int\[2\], .*; got float64\[2\]"),
        ([9, 3], {"groups": [0.0, np.nan]}, r"groups must be int\[2\]"),
        ([9, 3], {"groups": ["head", "tail"]}, r"groups must be int\[2\]"),
        ([9, 3], {"groups": [None, 1]}, r"groups must be int\[2\]"),
        ([9, 3], {"groups": [0, 1], "direction": "h"}, "'orthogonal', 'plain' or 'projection'"),
        ([9, 3], {"groups": [0, 1], "direction": None}, "'orthogonal', 'plain' or 'projection'"),
        ([9, 3], {"groups": [0, 1], "scale": math.nan}, "scale must be finite and at least 0"),
        ([9, 0], {"groups": [0, 1]}, "class 1 has count 0"),
    ],
)
def test_bad_arguments_are_refused(counts: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules.gsa(counts, **options)


def test_groups_are_kept_as_they_were_given() -> None:
    counts, groups = COUNTS.copy(), GROUPS.copy()
    rule = rules.gsa(counts, groups=groups)
    before = jax.tree.map(np.copy, rule(None))
    counts[:], groups[:] = 7, 0
    jax.tree.map(np.testing.assert_array_equal, rule(None), before)


@pytest.mark.parametrize("door", ["value_and_grad", "sharpness_aware"])
@pytest.mark.parametrize(
    "ascent",
    [
        ij.Ascent(p=3.0),
        ij.Ascent(p=math.inf),
        ij.Ascent(adaptive=ij.magnitude_scale),
        ij.Ascent(group_mean=True),
    ],
    ids=["p", "pinf", "adaptive", "group_mean"],
)
def test_another_ball_or_another_length_of_gradients_is_refused(ascent: Any, door: str) -> None:
    x, y = one_batch()
    params = to_library(init_params(), jnp.float32)
    rule = rules.gsa(COUNTS, groups=GROUPS)
    with pytest.raises(ValueError, match=r"\(rules.gsa\) .*: leave .* out"):
        if door == "value_and_grad":
            ij.value_and_grad(losses_fn, rule, ascent=ascent)(params, y, x, y)
        else:
            tx = ij.sharpness_aware(rule, ascent=ascent)
            tx.update(ij.class_weighted_grad(losses_fn, y, x, y), tx.init(params), params)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_directions_are_not_remembered(direction: Any) -> None:
    """The mean of a memory that began at 0 has another length: another radius, in silence."""
    rule = rules.gsa(COUNTS, groups=GROUPS, direction=direction)
    with pytest.raises(ValueError, match="remember the directions of another rule"):
        remembered.value_and_grad(losses_fn, rule, decay=0.9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("direction", ["orthogonal", *slowly("plain", "projection")])
@pytest.mark.parametrize("labels", [LABELS, np.array([0, 0])], ids=["both groups", "one"])
def test_weight_decay_in_the_loss_is_shared_by_the_groups(labels: Any, direction: Any) -> None:
    """d_k and the gradient at theta + e_k have its half each; a group without a row, too."""
    decay, masks = 0.1, (np.array([True, True]), np.array([True, False]))
    rule = rules.gsa(TWO, scale=0.6, direction=direction)
    ascent = ij.Ascent(weight_decay=decay)
    for mask in masks:
        f = ij.value_and_grad(linear, rule, passes=HANDED_ON, ascent=ascent)
        seen = jnp.zeros((3, 2))
        (_, seen), grads = quick_jit(f)(jnp.asarray(THETA), labels, SLOPES, seen, mask=mask)
        of_rows = [(mask & (labels == k)) @ SLOPES / mask.sum() for k in range(2)]
        d = [g + decay / 2 * THETA for g in of_rows]
        total, step, want = d[0] + d[1], [], of_rows[0] + of_rows[1]
        for k, inverse in enumerate((1 / 3, 1 / 2)):
            along = (d[k] @ total) / (total @ total) * total
            h = {"orthogonal": d[k] - along, "plain": d[k], "projection": along}[direction]
            length = np.linalg.norm(h)
            step.append(0.6 * np.sqrt(5 / (2 * length)) * 2**0.25 * inverse * h / length)
            want = want + decay / 2 * (THETA + step[k])
        np.testing.assert_allclose(seen[1:], THETA + np.array(step), rtol=1e-12)
        np.testing.assert_allclose(grads, want, rtol=1e-12)
