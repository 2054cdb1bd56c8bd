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
from imbsam_jax import classifiers, losses, rules, schedules

COUNTS = [9, 3]
KERNEL = jnp.array([[1.0, 3.0]])
VECTOR, MARKS = jnp.zeros(2), jnp.array([0, 1])
PLAIN = losses.cross_entropy
STEPS = {"steps_per_epoch": 7}

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
MAY_BE_NONE = {"classifiers.max_norm-radius"}

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
        if parameter.annotation in numeric or type(parameter.default) in (int, float):
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
