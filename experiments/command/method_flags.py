"""Methods by name: from the flags that describe one to how a gradient is taken."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.host import cli
from experiments.host.errors import RunError
from experiments.step.methods import STATISTICS, ClassConditional, Method, Remembered, Tabled
from imbsam_jax import Ascent, asam_scale, magnitude_scale, rules, schedules


def _cc_sam(
    class_counts: Any,
    *,
    cc_variant: str = "paper",
    cc_perturb: str = "classifier",
    noise_ratio: float = 1.0,
    flat_ratio: float | None = None,
) -> ClassConditional:
    return ClassConditional(
        class_counts,
        variant=cc_variant,
        perturb=cc_perturb,
        noise_ratio=noise_ratio,
        flat_ratio=flat_ratio,
    )


RULES: dict[str, Callable[..., Any]] = {
    "sgd": rules.sgd,
    "sam": rules.sam,
    "reweighted_sam": rules.reweighted_sam,
    "imbsam": rules.imbsam,
    "focal_sam": rules.focal_sam,
    "sse_sam": rules.sse_sam,
    "cc_sam": _cc_sam,
}


def rule_arguments(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this rule takes, None left out; the others do not concern it."""
    if name not in RULES:
        raise RunError(f"unknown rule {name!r}; choose from {', '.join(RULES)}")
    parameters = inspect.signature(RULES[name]).parameters.values()
    taken = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {k: v for k, v in options.items() if k in taken and v is not None}


def build_rule(name: str, class_counts: np.ndarray, options: dict[str, Any]) -> Any:
    """The rule of that name for these class counts; a bad hyper-parameter is a RunError."""
    arguments = rule_arguments(name, options)
    first = next(iter(inspect.signature(RULES[name]).parameters))
    counts = class_counts if first == "class_counts" else len(class_counts)
    try:
        return RULES[name](counts, **arguments)
    except (TypeError, ValueError) as error:
        raise RunError(f"--rule {name}: {error}") from error


def build_method(
    name: str, class_counts: np.ndarray, options: dict[str, Any], *, steps_per_epoch: int
) -> tuple[Method, dict[str, Any]]:
    """(the method of that name, the report's fields "rule", "rule_args" and "ascent").

    Args:
      name: one of RULES.
      class_counts: int[C].
      options: the flags of `add_arguments`, and "epochs" and "weight_decay".
      steps_per_epoch: what schedules by epoch and the switch of a staged rule are counted in.
    """
    options = dict(options)
    epochs = options["epochs"]
    if "rho" in rule_arguments(name, {"rho": 0.0}):
        rho = _radius(options, steps_per_epoch)
    elif name != "sgd" and options.get("rho_schedule", "constant") != "constant":
        raise RunError(f"--rule {name} has no --rho that --rho-schedule could change")
    else:
        rho = None
    fraction = options.get("switch_fraction", 0.7)
    if not 0 <= fraction <= 1:
        raise RunError(f"--switch-fraction must be between 0 and 1, got {fraction}")
    # In units of 1e-9 epochs: 0.7 * 10 must not become 7.000000000000001.
    options["switch_step"] = math.ceil(round(fraction * epochs, 9)) * steps_per_epoch
    described = rule_arguments(name, options)
    found = build_rule(name, class_counts, {**options, "rho": rho})
    if "rho" in described and callable(rho):
        described["rho"] = _schedule_name(options)
    ascent = ascent_arguments(options)
    if name == "sgd":  # it perturbs nothing, but has a weight decay
        ascent = {k: v for k, v in ascent.items() if k == "weight_decay_inside"}
    if name == "cc_sam" and ascent:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in sorted(ascent))
        raise RunError(f"--rule cc_sam has a perturbation of its own, without {flags}")
    method = found
    if name != "cc_sam":
        try:
            method = Tabled(
                found, _ascent(ascent, options), ascent.get("running_statistics", "first")
            )
        except ValueError as error:
            raise RunError(str(error)) from error
    return method, {"rule": name, "rule_args": described, "ascent": ascent}


def remembering(method: Method, decay: float) -> Method:
    """The method with its ascent directions remembered; a RunError where it has none."""
    try:
        if not isinstance(method, Tabled) or method.rule(0).groups.shape[0] == 0:
            raise ValueError("this rule takes no ascent direction from the table: none to remember")
        return Remembered(method.rule, decay, method.ascent)
    except ValueError as error:
        raise RunError(f"--memory: {error}") from error


def ascent_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the perturbation that differ from the paper's."""
    defaults: dict[str, Any] = {
        "p_norm": 2.0,
        "adaptive": "none",
        "group_mean": False,
        "weight_decay_inside": False,
        "running_statistics": "first",
    }
    found = {k: options[k] for k in defaults if k in options and options[k] != defaults[k]}
    if found.get("adaptive") == "asam":
        found["asam_eta"] = options.get("asam_eta", 0.01)
    return found


def _ascent(arguments: dict[str, Any], options: dict[str, Any]) -> Ascent:
    adaptive = {
        None: lambda: None,
        "asam": lambda: asam_scale(arguments["asam_eta"]),
        "magnitude": lambda: magnitude_scale,
    }[arguments.get("adaptive")]()
    more: dict[str, Any] = {}
    if arguments.get("weight_decay_inside"):
        more["weight_decay"] = options["weight_decay"]
    return Ascent(
        p=arguments.get("p_norm", 2.0),
        adaptive=adaptive,
        group_mean=arguments.get("group_mean", False),
        **more,
    )


def _radius(options: dict[str, Any], steps_per_epoch: int) -> Any:
    """--rho, or the schedule that --rho-schedule makes of --rho-values."""
    kind, values = options.get("rho_schedule", "constant"), options.get("rho_values")
    if kind == "constant":
        if values:
            raise RunError("--rho-values belong to a --rho-schedule: name one")
        return options.get("rho")
    try:
        if kind == "step":
            given = {} if values is None else {"values": values}
            last = options["epochs"] / 200  # published for 200 epochs
            published = [round(e * last) for e in (5, 160, 180)]
            boundaries = options.get("rho_boundaries") or published
            return schedules.step_radius(
                **given, boundaries=boundaries, steps_per_epoch=steps_per_epoch
            )
        low, high = _pair(kind, values)
        make: Any = {"linear": schedules.linear_radius, "late": schedules.late_radius}[kind]
        return make(low, high, epochs=options["epochs"], steps_per_epoch=steps_per_epoch)
    except ValueError as error:
        raise RunError(f"--rho-schedule {kind}: {error}") from error


def _pair(kind: str, values: Sequence[float] | None) -> Sequence[float]:
    if values is None:
        return {"linear": (0.05, 0.8), "late": (0.1, 0.2)}[kind]
    if len(values) != 2:
        raise RunError(f"--rho-schedule {kind} takes two --rho-values, got {len(values)}")
    return values


def _schedule_name(options: dict[str, Any]) -> str:
    values = options.get("rho_values")
    return options["rho_schedule"] + (
        "" if values is None else f"({', '.join(f'{v:g}' for v in values)})"
    )


def add_arguments(group: Any, **defaults: Any) -> None:
    """The flags of every method; defaults by name replace those here."""
    at_least_0, share = cli.number(least=0), cli.number(least=0, most=1)

    def add(flag: str, default: Any, text: str, **more: Any) -> None:
        value = defaults.get(flag.replace("-", "_"), default)
        group.add_argument(f"--{flag}", default=value, help=text, **more)

    add("rho", 0.05, "radius, in parameter units", type=at_least_0)
    add("rho-schedule", "constant", "radius by epoch: Focal-SAM's step (boundaries at 5/200, "
        "160/200, 180/200 of the epochs) and linear, or late (from 80%% of the epochs)",
        choices=["constant", "step", "linear", "late"])  # fmt: skip
    add("rho-boundaries", None, "--rho-schedule step: first epochs of its later values",
        type=cli.number(least=0, most=10**6, whole=True), nargs="+")  # fmt: skip
    add("rho-values", None, "radii of --rho-schedule; default as published", type=at_least_0,
        nargs="+")  # fmt: skip
    add("eta", 100.0, "largest count of a tail class, in training examples", type=at_least_0)
    add("tail-scale", 1.0, "imbsam: factor on the tail loss; 2 in the released code since "
        "September 2023", type=cli.number(over=0))  # fmt: skip
    add("tail-weight", 2.0, "reweighted_sam: weight of the tail in SAM's loss",
        type=cli.number(over=0))  # fmt: skip
    add("gamma", 3.2, "focal_sam: focus on rare classes", type=at_least_0)
    add("strength", 0.8, "focal_sam: weight of the perturbed part", type=at_least_0)
    add("head-rho", 0.05, "sse_sam: radius of the head in the first stage", type=at_least_0)
    add("tail-rho", 0.1, "sse_sam: radius of the tail", type=at_least_0)
    add("switch-fraction", 0.7, "sse_sam: share of the epochs before its second stage", type=share)
    add(
        "cc-variant",
        "paper",
        "cc_sam: the paper's radius or the release's",
        choices=["paper", "release"],
    )
    add("cc-perturb", "classifier", "cc_sam: what is perturbed", choices=["classifier", "all"])
    add("noise-ratio", 1.0, "cc_sam: factor on the radius; 1e-6 in the released code",
        type=at_least_0)  # fmt: skip
    add("flat-ratio", None, "cc_sam: weight of the perturbed part; default 1 (paper), 0.5 "
        "(release)", type=share)  # fmt: skip
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": False}
    group.add_argument("--strict", help="the tail is n < eta, as in the ImbSAM release", **switch)
    add("p-norm", 2.0, "norm of the perturbation's ball",
        type=cli.number(over=1, infinite=True))  # fmt: skip
    add("adaptive", "none", "scale of the ball: ASAM's (weights, by tensor) or davda54's (all)",
        choices=["none", "asam", "magnitude"])  # fmt: skip
    add("asam-eta", 0.01, "--adaptive asam: added to |theta|", type=at_least_0)
    group.add_argument(
        "--group-mean",
        help="divide each part by its own rows, as SSE-SAM's release does for its ImbSAM", **switch,
    )  # fmt: skip
    group.add_argument(
        "--weight-decay-inside",
        help="weight decay inside the perturbed loss, as in the official JAX SAM", **switch,
    )  # fmt: skip
    add("running-statistics", "first", "which passes update those of batch normalisation; every "
        "in the released PyTorch code", choices=STATISTICS)  # fmt: skip
