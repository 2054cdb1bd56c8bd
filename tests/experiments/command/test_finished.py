"""The method of a finished run, made again from what its config.json says."""

import json

import numpy as np
import pytest

from experiments import cifar_lt
from experiments.command import method_flags
from experiments.command.finished import method_of_run
from experiments.step.methods import ClassConditional
from tiny import COUNTS

OPTIONS = vars(cifar_lt.arguments().parse_args(["--eta", "10", "--epochs", "10"]))


def built(name, **options):
    """(the method, what config.json says of it) of a run of five steps an epoch."""
    method, described = method_flags.build_method(
        name, np.array(COUNTS), {**OPTIONS, **options}, steps_per_epoch=5
    )
    return method, json.loads(json.dumps(described))


def again(described, **options):
    run = {"epochs": 10, "weight_decay": 0.02, **options}
    return method_of_run(described, np.array(COUNTS), run, steps_per_epoch=5)


def assert_same(one, other):
    for step in (0, 4, 5, 34, 35, 44, 45, 49):
        for a, b in zip(one.rule(step), other.rule(step), strict=True):
            np.testing.assert_array_equal(a, b)
    assert one.ascent == other.ascent and one.running_statistics == other.running_statistics


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in method_flags.rule_names() if name != "cc_sam"),
        ("sam", {"rho_schedule": "late", "rho_values": [0.1, 0.2]}),
        ("sam", {"rho_schedule": "linear"}),
        ("sam", {"rho_schedule": "step", "rho_values": [0.1, 0.2], "rho_boundaries": [9]}),
        ("sam", {"rho_schedule": "step"}),
        ("sam", {"p_norm": 3.0, "group_mean": True, "running_statistics": "every"}),
        ("sgd", {"weight_decay_inside": True, "weight_decay": 0.02}),
        ("imbsam", {"weight_decay_inside": True, "weight_decay": 0.02, "strict": True}),
    ],
)  # fmt: skip
def test_a_method_is_made_again(name, options):
    method, described = built(name, **options)
    assert_same(again(described), method)


def test_class_conditional_perturbations_are_made_again():
    for variant in ("paper", "release"):
        method, described = built("cc_sam", cc_variant=variant, noise_ratio=0.1)
        found = again(described)
        assert isinstance(found, ClassConditional)
        assert (found.variant, found.options) == (variant, method.options)
        assert found.options["noise_ratio"] == 0.1


def test_what_an_early_run_did_not_write_down():
    """Neither arguments nor an ascent; the boundaries of a step nobody knows then."""
    assert_same(again({"rule": "sgd", "rule_args": None, "ascent": None}), built("sgd")[0])
    run = {"rule": "sam", "ascent": {}}
    assert again({**run, "rule_args": {"rho": "step(0.1, 0.2)"}}) is None
    assert again({**run, "rule_args": {"rho": "step"}}) is None
    for rho in ("late", "late(0.1, 0.2)", "step(0.1, 0.2 from 9)"):
        assert again({**run, "rule_args": {"rho": rho}}) is not None
