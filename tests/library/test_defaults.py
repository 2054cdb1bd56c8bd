"""Numbers that hold where none is given: those of the papers and releases, as docstrings say."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import imbsam_jax as ij
from imbsam_jax import (
    cc_sam,
    classifiers,
    curvature,
    landscape,
    losses,
    passes,
    rules,
    schedules,
    sharpness,
)
from imbsam_jax.experimental import remembered

# Of what goes over rows: all of them, each alike, at once.
_ROWS = {"class_weights": None, "mask": None, "batch_size": None, "axis_name": None}
# eta has no default: it fits one data set.
DEFAULTS: dict[Any, dict[str, Any]] = {
    ij.Ascent: {
        "p": 2.0, "adaptive": None, "perturb": None, "group_mean": False, "weight_decay": 0.0,
    },
    ij.asam_scale: {"eta": 0.01},
    ij.batch_norm: {"scale": None, "bias": None, "epsilon": 1e-5, "axis_name": None},
    ij.batch_renorm: {"epsilon": 1e-5, "axis_name": None, "axis": -1},
    ij.binomial_buffers: {"deviations": (0.5, 2.5)},
    ij.long_tail_counts: {"kind": "exp"},
    ij.sharpness_aware: {"axis_name": None, "sync_ascent": True, "ascent": ij.Ascent()},
    ij.shot_splits: {"many_above": 100, "few_below": 20},
    ij.tail_classes: {"strict": False},
    ij.tail_threshold: {"head_share": 0.8},
    ij.value_and_grad: {
        "axis_name": None, "sync_ascent": True, "ascent": ij.Ascent(), "info": False,
        "passes": passes.whole(),
    },
    passes.whole: {"micro_batches": 1, "batched": None, "carry": None},
    passes.own_rows: {"batched": None},
    passes.shared_norm: {"batched": None},
    passes.split_norm: {"batched": None, "carry": None},
    remembered.value_and_grad: {"axis_name": None, "ascent": ij.Ascent()},
    rules.gsa: {"groups": None, "scale": 1e-2, "direction": "orthogonal"},
    rules.imbsam: {"rho": 0.05, "tail_scale": 1.0, "strict": False},
    rules.reweighted_sam: {"strict": False},
    rules.sse_sam: {"strict": False},
    losses.class_balanced_weights: {"beta": 0.9999},
    losses.class_balanced: {"beta": 0.9999, "normalise": "batch"},
    losses.weighted: {"normalise": "batch"},
    losses.focal: {"gamma": 1.0, "loss": losses.cross_entropy},
    losses.ldam: {"max_margin": 0.5, "scale": 30.0, "scale_logits": True},
    losses.logit_adjusted: {"tau": 1.0},
    losses.vs: {"gamma": 0.3, "tau": 1.0},
    losses.softmax_binary: {"beta": 0.9999},
    losses.deviation_loss: {"reference_mean": 0.0, "reference_std": 1.0, "margin": 5.0},
    losses.deep_sad_loss: {"eta": 1.0, "eps": 1e-6},
    classifiers.tau_normalise: {"tau": 1.0},
    classifiers.max_norm_radius: {"fraction": 0.1},
    classifiers.max_norm: {"radius": None, "fraction": 0.1, "every": 1},
    classifiers.adjust_logits: {"tau": 1.0},
    schedules.step_radius: {"values": (0.05, 0.1, 0.5, 0.6), "boundaries": (5, 160, 180)},
    schedules.late_radius: {"fraction": 0.8},
    schedules.linear_radius: {"low": 0.05, "high": 0.8, "float16": False},
    schedules.ramp: {"limit": 1.0},
    cc_sam.value_and_grad: {
        "variant": "paper", "perturb": "classifier", "classifier": "head", "flat_ratio": None,
        "perturbed_losses_fn": None, "classes_at_once": None, "axis_name": None,
        "sync_ascent": True,
    },
    losses.feature_adversary: {"variant": "paper", "strength": 1.0, "divisor": 2.0},
    # Of no paper: how much is measured where nobody says.
    curvature.hvp: _ROWS,
    curvature.gnvp: _ROWS,
    curvature.extreme_eigenvalues: {"iterations": 64},
    curvature.spectral_density: {"iterations": 64, "probes": 4, "variance": None},
    curvature.trace: {"probes": 100},
    landscape.losses: _ROWS,
    sharpness.average: {"directions": 20, **_ROWS},
    sharpness.of_rule: {"ascent": ij.Ascent(), "step": None, **_ROWS},
    sharpness.worst: {"steps": 10, **_ROWS},
}  # fmt: skip


def _one_row(classes: Any) -> tuple[int, ...]:
    return (1,)


@pytest.mark.parametrize(
    "function", DEFAULTS, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}"
)
def test_a_number_that_is_not_given_is_the_published_one(function: Any) -> None:
    found = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    assert {name: found.get(name) for name in DEFAULTS[function]} == DEFAULTS[function]


def test_every_number_that_need_not_be_given_is_above() -> None:
    modules = [
        ij,
        *(module for name in ij.__all__ if inspect.ismodule(module := getattr(ij, name))),
    ]
    functions = {
        function
        for module in modules
        for name in getattr(module, "__all__", ())
        if inspect.isfunction(function := getattr(module, name))
    }
    for function in functions:
        numbers = {
            name
            for name, of in inspect.signature(function).parameters.items()
            if isinstance(of.default, int | float) and not isinstance(of.default, bool)
        }
        assert numbers <= DEFAULTS.get(function, {}).keys(), function


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (ij.Ascent(), "p"),
        (passes.whole(), "micro_batches"),
        (passes.own_rows(_one_row), "buffers"),
        (passes.shared_norm(_one_row), "buffers"),
        (passes.split_norm(_one_row), "buffers"),
    ],
    ids=["Ascent", "whole", "own_rows", "shared_norm", "split_norm"],
)
def test_a_value_that_may_be_a_default_cannot_be_changed(value: Any, field: str) -> None:
    """It is one for everyone who gives none."""
    with pytest.raises(AttributeError, match=r"cannot assign|can't set"):
        setattr(value, field, getattr(value, field))
