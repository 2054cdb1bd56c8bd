"""Every number that a public function takes, times every kind of value that is none in its range.

A new function is one more line of CALLS, with numbers that are right; its parameters are read off.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import cc_sam, classifiers, losses, rules, schedules
from imbsam_jax.experimental import remembered

COUNTS = [9, 3]
KERNEL = jnp.array([[1.0, 3.0]])
VECTOR, MARKS = jnp.zeros(2), jnp.array([0, 1])
PLAIN = losses.cross_entropy
STEPS = {"steps_per_epoch": 7}


def losses_fn(w: Any, x: Any) -> Any:
    return (x @ w) ** 2, None


def features_fn(w: Any, x: Any) -> Any:
    return x, None


def head_losses_fn(w: Any, x: Any, *_: Any) -> Any:
    return (x @ w) ** 2, None


WEIGHTS, ROWS = jnp.array([0.5, -1.0]), jnp.array([[1.0, 2.0], [3.0, 0.5]])


def gradient_with(*, weight_decay: Any) -> Any:
    ascent = ij.Ascent(weight_decay=weight_decay)
    f = ij.value_and_grad(losses_fn, rules.sam(2, rho=0.1), ascent=ascent)
    return f(WEIGHTS, MARKS, ROWS)[1]


def adversarial_losses(*, share: Any) -> Any:
    return losses.feature_adversary(head_losses_fn)(WEIGHTS, MARKS, ROWS, share=share)[0]


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rules.sgd": (rules.sgd, {"num_classes": 2}),
    "rules.sam": (rules.sam, {"num_classes": 2, "rho": 0.1}),
    "rules.reweighted_sam": (
        rules.reweighted_sam, {"class_counts": COUNTS, "rho": 0.1, "eta": 4, "tail_weight": 2.0},
    ),
    "rules.imbsam": (
        rules.imbsam, {"class_counts": COUNTS, "rho": 0.1, "eta": 4, "tail_scale": 2.0},
    ),
    "rules.focal_sam": (
        rules.focal_sam, {"class_counts": COUNTS, "rho": 0.1, "gamma": 1.0, "strength": 0.5},
    ),
    "rules.gsa": (rules.gsa, {"class_counts": COUNTS, "groups": [0, 1], "scale": 0.01}),
    "rules.sse_sam": (
        rules.sse_sam,
        {"class_counts": COUNTS, "head_rho": 0.1, "tail_rho": 0.2, "eta": 4, "switch_step": 3},
    ),
    "rules.stagewise": (
        rules.stagewise, {"first": rules.sgd(2), "second": rules.sgd(2), "switch_step": 3},
    ),
    "schedules.step_radius": (
        schedules.step_radius, {"values": (0.1, 0.2), "boundaries": (3,), **STEPS},
    ),
    "schedules.late_radius": (
        schedules.late_radius, {"first": 0.1, "second": 0.2, "epochs": 9, "fraction": 0.5, **STEPS},
    ),
    "schedules.linear_radius": (
        schedules.linear_radius, {"low": 0.1, "high": 0.2, "epochs": 9, **STEPS},
    ),
    "schedules.ramp": (schedules.ramp, {"epochs": 9, "limit": 0.5, **STEPS}),
    "losses.class_balanced_weights": (
        losses.class_balanced_weights, {"class_counts": COUNTS, "beta": 0.9},
    ),
    "losses.weighted": (losses.weighted, {"loss": PLAIN, "class_weights": [1.0, 2.0]}),
    "losses.class_balanced": (losses.class_balanced, {"class_counts": COUNTS, "beta": 0.9}),
    "losses.focal": (losses.focal, {"gamma": 2.0}),
    "losses.ldam": (losses.ldam, {"class_counts": COUNTS, "max_margin": 0.5, "scale": 30.0}),
    "losses.logit_adjusted": (losses.logit_adjusted, {"class_counts": COUNTS, "tau": 1.0}),
    "losses.vs": (losses.vs, {"class_counts": COUNTS, "gamma": 0.3, "tau": 1.0}),
    "losses.softmax_binary": (losses.softmax_binary, {"class_counts": COUNTS, "beta": 0.9}),
    "losses.smoothed": (losses.smoothed, {"loss": PLAIN, "amount": 0.1}),
    "losses.deferred": (losses.deferred, {"first": PLAIN, "second": PLAIN, "switch_step": 3}),
    "losses.deviation_loss": (
        losses.deviation_loss,
        {
            "scores": VECTOR, "labels": MARKS, "reference_mean": 0.0, "reference_std": 1.0,
            "margin": 5.0,
        },
    ),
    "losses.deep_sad_loss": (
        losses.deep_sad_loss,
        {"embeddings": jnp.ones((2, 3)), "labels": MARKS, "centre": jnp.zeros(3), "eta": 1.0,
         "eps": 1e-6},
    ),
    "losses.feature_adversary": (
        losses.feature_adversary,
        {"head_losses_fn": lambda w, z: (z[:, 0] * w, None), "strength": 0.5, "divisor": 2.0},
    ),
    "classifiers.tau_normalise": (classifiers.tau_normalise, {"kernel": KERNEL, "tau": 1.0}),
    "classifiers.max_norm_radius": (
        classifiers.max_norm_radius, {"kernel": KERNEL, "fraction": 0.1},
    ),
    "classifiers.max_norm_project": (
        classifiers.max_norm_project, {"kernel": KERNEL, "radius": 2.0},
    ),
    "classifiers.max_norm": (
        classifiers.max_norm, {"mask": True, "radius": 2.0, "fraction": 0.1, "every": 3},
    ),
    "classifiers.adjust_logits": (
        classifiers.adjust_logits, {"logits": KERNEL, "class_counts": COUNTS, "tau": 1.0},
    ),
    "cc_sam.value_and_grad": (
        cc_sam.value_and_grad,
        {"features_fn": features_fn, "head_losses_fn": head_losses_fn, "class_counts": COUNTS,
         "classifier": None, "noise_ratio": 0.1, "flat_ratio": 0.5, "classes_at_once": 2},
    ),
    "asam_scale": (ij.asam_scale, {"eta": 0.01}),
    "Ascent": (gradient_with, {"weight_decay": 0.1}),
    "share of an adversary": (adversarial_losses, {"share": 0.5}),
    "batch_norm": (ij.batch_norm, {"x": KERNEL.T, "epsilon": 1e-5}),
    "batch_renorm": (
        ij.batch_renorm,
        {"x": KERNEL.T, "mean": jnp.zeros(1), "var": jnp.ones(1), "epsilon": 1e-5},
    ),
    "binomial_buffers": (ij.binomial_buffers, {"class_frequencies": COUNTS, "batch_size": 8}),
    "remembered.value_and_grad": (
        remembered.value_and_grad,
        {"losses_fn": losses_fn, "rule": rules.sam(2, rho=0.1), "decay": 0.5},
    ),
    "class_counts": (ij.class_counts, {"labels": [0, 1, 1], "num_classes": 2}),
    "tail_classes": (ij.tail_classes, {"class_counts": COUNTS, "eta": 4}),
    "tail_threshold": (ij.tail_threshold, {"class_counts": COUNTS, "head_share": 0.8}),
    "long_tail_counts": (
        ij.long_tail_counts, {"num_classes": 3, "max_count": 90, "imbalance_factor": 9.0},
    ),
    "shot_splits": (ij.shot_splits, {"class_counts": COUNTS, "many_above": 5, "few_below": 4}),
}  # fmt: skip

# Public names without a number among their parameters.
NO_NUMBER = {
    "rules": {"ClassWeights", "Rule"},
    "schedules": set(),
    "losses": {"Loss", "cross_entropy"},
    "classifiers": {
        "MaxNormState", "fold_scales", "lws_logits", "normalised_init", "normalised_linear",
    },
}  # fmt: skip
MAY_BE_NEGATIVE = {
    "losses.deviation_loss-reference_mean", "classifiers.tau_normalise-tau", "tail_classes-eta",
    "classifiers.adjust_logits-tau", "shot_splits-many_above",
}  # fmt: skip
MAY_BE_NONE = {
    "classifiers.max_norm-radius",
    "cc_sam.value_and_grad-flat_ratio",
    "cc_sam.value_and_grad-classes_at_once",
}

BAD: dict[str, Any] = {
    "none": None, "string": "0.05", "bytes": b"1", "truth": True, "numpy truth": np.True_,
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "numpy nan": np.float32(math.nan),
    "jax nan": jnp.asarray(math.nan), "complex": 1 + 0j, "numpy complex": np.complex64(1),
    "list": [0.1], "tuple": (0.1,), "vector": np.array([0.1, 0.2]), "jax vector": jnp.ones(1),
    "matrix": np.ones((1, 1)), "empty": np.zeros(0), "dict": {"rho": 0.1}, "object": object(),
    "huge": 10**400, "date": np.datetime64("2020-01-01"), "key": jax.random.key(0),
    "array of a string": np.array("0.1"), "array of a truth": np.array(True),
    "negative": -1, "negative array": jnp.asarray(-1.5),
}  # fmt: skip


def numbers() -> Iterator[Any]:
    for name, (function, good) in CALLS.items():
        for parameter, value in good.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield pytest.param(function, good, parameter, id=f"{name}-{parameter}")


def refused(function: Any, arguments: dict[str, Any]) -> str:
    """The message; of one line, and none of NumPy's or JAX's."""
    with pytest.raises(ValueError) as error:
        function(**arguments)
    assert type(error.value) is ValueError and error.traceback[-1].path.parent.name == "imbsam_jax"
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(("function", "good", "parameter"), list(numbers()))
def test_what_is_no_number_in_range_is_refused_by_name(
    function: Any, good: dict[str, Any], parameter: str, request: pytest.FixtureRequest
) -> None:
    function(**good)
    name = request.node.callspec.id
    for kind, value in BAD.items():
        if kind == "none" and name in MAY_BE_NONE:
            continue
        if kind.startswith("negative") and name in MAY_BE_NEGATIVE:
            continue
        message = refused(function, {**good, parameter: value})
        # An eta of -1 is a number that leaves no tail.
        named = (f"{parameter} must be ", f"{parameter}=-1", "a radius must be ")
        assert message.startswith(named), (kind, message)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("schedules.step_radius", "values"),
        ("schedules.step_radius", "boundaries"),
        ("losses.weighted", "class_weights"),
    ],
)
def test_bad_numbers_in_a_list_are_refused(name: str, parameter: str) -> None:
    function, good = CALLS[name]
    for kind, value in BAD.items():
        several = [value] * len(good[parameter])
        refused(function, {**good, parameter: several})
        if kind not in ("list", "tuple", "vector", "jax vector"):
            refused(function, {**good, parameter: value})


@pytest.mark.parametrize("module", NO_NUMBER)
def test_every_public_function_is_tried(module: str) -> None:
    tried = {name.split(".")[1] for name in CALLS if name.startswith(f"{module}.")}
    assert tried | NO_NUMBER[module] == set(vars(ij)[module].__all__)


@pytest.mark.parametrize("name", CALLS)
def test_every_number_of_a_function_is_tried(name: str) -> None:
    function, good = CALLS[name]
    numeric = {"float", "int", "Scalar", "ScalarOrSchedule"}
    for parameter in inspect.signature(function).parameters.values():
        is_number = parameter.annotation in numeric or type(parameter.default) in (int, float)
        if is_number and parameter.name != "axis":  # a place, which has no range of its own
            assert parameter.name in good, parameter


TRACED = {
    "rules.sam": {"rho"},
    "rules.reweighted_sam": {"rho", "tail_weight"},
    "rules.imbsam": {"rho", "tail_scale"},
    "rules.focal_sam": {"rho", "gamma", "strength"},
    "rules.gsa": {"scale"},
    "losses.focal": {"gamma"},
    "losses.ldam": {"max_margin", "scale"},
    "losses.logit_adjusted": {"tau"},
    "losses.vs": {"gamma", "tau"},
    "losses.smoothed": {"amount"},
    "losses.deviation_loss": {"reference_mean", "reference_std", "margin"},
    "losses.deep_sad_loss": {"eta", "eps"},
    "losses.feature_adversary": {"strength"},
    "classifiers.tau_normalise": {"tau"},
    "classifiers.max_norm_radius": {"fraction"},
    "classifiers.max_norm_project": {"radius"},
    "classifiers.adjust_logits": {"tau"},
}


def result(made: Any) -> Any:
    if isinstance(made, losses.Loss):
        return made(jnp.array([[0.5, -0.25]], jnp.float32), jnp.array([1]))
    if getattr(made, "__qualname__", "").startswith("feature_adversary"):
        return made(jnp.float32(2.0), jnp.array([0]), KERNEL.astype(jnp.float32), share=1.0)
    return made(0) if callable(made) else made


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_number_is_the_same_number(name: str) -> None:
    """Under strict promotion for what computes in JAX; a tracer that is no scalar is refused."""
    function, good = CALLS[name]
    traced = {key: jnp.asarray(good[key], jnp.float32) for key in TRACED[name]}
    mode = "standard" if name.startswith("rules.") else "strict"
    with jax.numpy_dtype_promotion(mode):
        got = jax.jit(lambda values: result(function(**{**good, **values})))(traced)
    want = result(function(**good))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    for key in TRACED[name]:
        with pytest.raises(ValueError, match=f"^{key} must be a scalar"):
            jax.jit(lambda value, key=key: result(function(**{**good, key: value})))(jnp.ones(2))


def computed(name: str, made: Any) -> Any:
    """What the numbers of a function go into, as arrays; where no row is an exception to it."""
    if name.startswith("rules."):
        f = ij.value_and_grad(losses_fn, made)
        labels = np.array([[0, 1], [0, 0]])
        return jax.vmap(lambda labels: f(WEIGHTS, labels, ROWS, step=2)[1])(labels)
    if isinstance(made, losses.Loss):  # of the second row cross-entropy is 0
        return made(jnp.array([[0.5, -0.25], [99.0, -99.0]]), jnp.array([1, 0]), 2)
    if name == "batch_norm":
        return made[0]  # statistics do not depend on it
    if name == "cc_sam.value_and_grad":
        return jax.vmap(lambda rows: made(WEIGHTS, MARKS, rows)[1])(jnp.stack([ROWS, 0 * ROWS]))
    if name == "losses.feature_adversary":
        return result(made)[0]
    if name == "remembered.value_and_grad":
        return made(WEIGHTS, (WEIGHTS,), MARKS, ROWS)[2]
    if name == "classifiers.max_norm":
        state = made.init(KERNEL)
        for _ in range(3):
            updates, state = made.update(KERNEL, state, KERNEL)
        return updates
    if name == "asam_scale":
        return made(KERNEL)
    if name in ("losses.deviation_loss", "losses.deep_sad_loss"):
        return made[1]  # that of the anomaly: each has numbers of its own
    return made


@pytest.mark.parametrize(("function", "good", "parameter"), list(numbers()))
def test_a_traced_number_out_of_its_range_gives_nan(
    function: Any, good: dict[str, Any], parameter: str, request: pytest.FixtureRequest
) -> None:
    """Out of its range is what is refused of a concrete one; it is known, or may be traced."""
    name = request.node.callspec.id.rpartition("-")[0]
    if name == "classifiers.max_norm" and parameter == "fraction":
        good = {**good, "radius": None}  # or nothing heeds it
    program = jax.jit(lambda value: computed(name, function(**{**good, parameter: value})))
    if parameter not in MAY_BE_TRACED.get(name, set()):
        message = refused(program, {"value": 1.0})
        assert message.startswith((f"{parameter} must be ", "a radius must be known")), message
        return
    for value in (good[parameter], math.nan, math.inf, -math.inf, -1.5, -1.0, 0.0, 0.5, 1.0, 1.5):
        try:
            function(**{**good, parameter: value})
            in_range = True
        except ValueError:
            in_range = False
        for leaf in jax.tree.leaves(program(np.float32(value))):
            assert (np.isfinite if in_range else np.isnan)(leaf).all(), (value, leaf)


MAY_BE_TRACED = TRACED | {
    "rules.sse_sam": {"head_rho", "tail_rho", "switch_step"},
    "rules.stagewise": {"switch_step"},
    "losses.deferred": {"switch_step"},
    "classifiers.max_norm": {"radius", "fraction", "every"},
    "cc_sam.value_and_grad": {"noise_ratio", "flat_ratio"},
    "share of an adversary": {"share"},
    "asam_scale": {"eta"},
    "batch_norm": {"epsilon"},
    "batch_renorm": {"epsilon"},
    "Ascent": {"weight_decay"},
    "remembered.value_and_grad": {"decay"},
}


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("schedules.")])
def test_a_traced_step_that_is_none_gives_nan(name: str) -> None:
    """Of a schedule; and a schedule of ours or another's gives a rule what is no radius."""
    function, good = CALLS[name]
    schedule = function(**good)
    for kind in (np.int32, np.float32):
        traced = jax.jit(schedule)
        assert traced(kind(8)) == pytest.approx(schedule(8)) and schedule(kind(8)) == schedule(8)
        assert np.isnan(traced(kind(-1)))
    assert np.isnan([traced(np.float32(step)) for step in (1.5, math.nan, math.inf)]).all()


@pytest.mark.parametrize(
    "rule",
    [
        lambda rho: rules.sam(2, rho=rho),
        lambda rho: rules.gsa(COUNTS, groups=[0, 1], scale=rho),
        lambda rho: rules.sse_sam(COUNTS, head_rho=0.1, tail_rho=rho, eta=4, switch_step=1),
    ],
)
def test_a_schedule_that_gives_no_radius_gives_nan(rule: Any) -> None:
    f = ij.value_and_grad(losses_fn, rule(lambda step: 1.0 - step))
    at = jax.jit(lambda step: f(WEIGHTS, MARKS, ROWS, step=step)[1])
    assert np.isfinite(at(1)).all() and np.isnan(at(2)).all()


def test_a_schedule_that_gives_no_ratio_gives_nan() -> None:
    cc = cc_sam.value_and_grad(
        features_fn, head_losses_fn, COUNTS, classifier=None, noise_ratio=lambda step: 1.0 - step
    )
    at = jax.jit(lambda step: cc(WEIGHTS, MARKS, ROWS, step=step)[1])
    assert np.isfinite(at(1)).all() and np.isnan(at(2)).all()


def test_traced_class_weights_that_are_none_give_nan() -> None:
    program = jax.jit(lambda table: computed("", losses.weighted(PLAIN, table)))
    assert np.isfinite(program(np.array([0.0, 2.0]))).all()
    for bad in (-1.0, math.nan, math.inf):
        assert np.isnan(program(np.array([2.0, bad])))[0]  # the row of class 1


@pytest.mark.parametrize("name", ["rules.focal_sam", "losses.focal", "classifiers.tau_normalise"])
def test_looking_at_traced_numbers_makes_no_nan_of_its_own(name: str) -> None:
    """Under jax_debug_nans, which looks at every operation that is not under jit."""
    function, good = CALLS[name]
    keys = sorted(TRACED[name])
    with jax.debug_nans(True):
        jax.jvp(
            lambda *values: computed(
                name, function(**{**good, **dict(zip(keys, values, strict=True))})
            ),
            [jnp.float32(good[key]) for key in keys],
            [jnp.float32(1.0)] * len(keys),
        )


def test_a_concrete_number_costs_nothing() -> None:
    """Nothing of the checks is in the program of numbers that were looked at."""

    def text(rho: Any) -> str:
        f = ij.value_and_grad(losses_fn, rules.sam(2, rho=rho))
        return str(jax.make_jaxpr(f)(WEIGHTS, MARKS, ROWS))

    plain = text(0.1)
    assert "is_finite" not in plain
    for rho in (np.float64(0.1), np.array(0.1)):
        assert text(rho) == plain
    traced = jax.make_jaxpr(
        lambda rho: ij.value_and_grad(losses_fn, rules.sam(2, rho=rho))(WEIGHTS, MARKS, ROWS)
    )(0.1)
    assert "is_finite" in str(traced)


def test_numbers_known_on_the_host_are_not_traced() -> None:
    for name, parameter in (("tail_classes", "eta"), ("losses.class_balanced_weights", "beta")):
        function, good = CALLS[name]
        with pytest.raises(ValueError, match=f"{parameter} must be known .* not traced"):
            jax.jit(lambda v, f=function, g=good, p=parameter: result(f(**{**g, p: v})))(0.5)
    for counts in (jnp.array([9, 3]), [9, 3]):
        with pytest.raises(ValueError, match=r"class_counts must be known .* not traced"):
            jax.jit(lambda counts: rules.imbsam(counts, eta=4)(0).base)(counts)


@pytest.mark.parametrize(
    "kind", ["none", "string", "truth", "nan", "inf", "negative", "complex", "vector", "object"]
)
def test_a_bad_step_is_refused(kind: str) -> None:
    for name in (name for name in CALLS if name.startswith("schedules.")):
        function, good = CALLS[name]
        message = refused(function(**good), {"step": BAD[kind]})
        assert message.startswith("step must be a step number"), message
