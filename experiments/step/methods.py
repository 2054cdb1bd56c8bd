"""How a gradient is taken, by name: every method of the family behind one call.

A method works on a model in two halves, `Halves`, so that class-conditional SAM, which treats the
classifier apart, is called like the rules. `fit` and `make_step` take a method, or a rule of
imbsam_jax alone. Which flags a method takes is read off its signature, so none is listed twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.host import cli
from experiments.host.errors import RunError
from imbsam_jax import (
    Ascent,
    asam_scale,
    cc_sam,
    magnitude_scale,
    passes,
    rules,
    schedules,
    value_and_grad,
)
from imbsam_jax.rules import Rule

# Of the running statistics of batch normalisation.
STATISTICS = ("first", "every")


class Halves(NamedTuple):
    """A model and its loss on one batch of b rows.

    Attributes:
      features: (params, stats, images) -> (features float[b, D], stats after this pass).
      losses_for: target of the whole batch -> (params, features, target) -> (losses float[b],
        logits float[b, C]), of some of its rows.
      images: [b, H, W, channels], as the model sees them.
      labels: int[b]; of rows that mixup mixed of two, the first.
      target: what is learnt, the labels or float[b, C] of mixed ones.
      mask: bool[b], False for rows that do not count, or None.
      stats: running statistics of batch normalisation before this batch.
      passes: how the passes over the batch are run; args that they choose rows of, or hand on, are
        (images, target, stats, logits).
    """

    features: Callable[..., Any]
    losses_for: Callable[[Any], Callable[..., Any]]
    images: jax.Array
    labels: jax.Array
    target: jax.Array
    mask: jax.Array | None
    stats: Any
    passes: passes.Passes


class Gradient(NamedTuple):
    """What a method makes of a batch; loss and grads are means over the device axis.

    Attributes:
      loss: mean loss at theta.
      logits: float[b, C] at theta.
      stats: what `Halves.features` made of the running statistics.
      grads: like the parameters.
      extra: the method's own state after the step.
    """

    loss: jax.Array
    logits: jax.Array
    stats: Any
    grads: Any
    extra: Any


class Method(Protocol):
    """How a gradient is taken."""

    # Whether it must be given every batch whole: no row left out, no micro-batches.
    whole_batches: bool
    # Of the running statistics: whether each pass hands them on to the next.
    hands_on: bool

    def stages(self) -> list[tuple[int, Method]]:
        """(first step, method) of each stage; one for a method without stages."""

    def initial_extra(self, params: Any) -> Any:
        """State of its own before the first step, which its stages share; {} for none."""

    def gradient(self, halves: Halves, params: Any, extra: Any, step: Any, axis: Any) -> Gradient:
        """The gradient of a batch at `params`, in step `step`, over the device axis or None."""


class Tabled:
    """A rule of imbsam_jax.rules.

    Args:
      rule: a row of the table.
      ascent: how the perturbation is taken.
      statistics: "first", running statistics are those of the pass at theta, or "every", each
        pass updates them in turn, as the released PyTorch code does.
    """

    whole_batches = False

    def __init__(self, rule: Rule, ascent: Ascent = Ascent(), statistics: str = "first"):
        self.rule, self.ascent, self.statistics = rule, ascent, statistics
        self.hands_on = statistics == "every"

    def stages(self) -> list[tuple[int, Method]]:
        return [
            (start, Tabled(rule, self.ascent, self.statistics))
            for start, rule in rule_stages(self.rule)
        ]

    def numbers(self) -> Any:
        """What two methods of this structure differ in, where the rule is none of the step."""
        return self.rule(0)

    def given(self, numbers: Any) -> Tabled:
        """This method with other numbers, which may be traced."""
        return Tabled(lambda step: numbers, self.ascent, self.statistics)

    def initial_extra(self, params: Any) -> Any:
        return {}

    def gradient(self, halves: Halves, params: Any, extra: Any, step: Any, axis: Any) -> Gradient:
        images, target, losses_of = halves.images, halves.target, halves.losses_for(halves.target)
        how: Any = halves.passes
        parts = how.micro_batches if isinstance(how, passes.whole) else 1
        if self.hands_on:
            how = dataclasses.replace(
                how, carry=lambda args, aux: (*args[:2], *_joined(aux, parts))
            )

        def losses_fn(params: Any, images: Any, target: Any, stats: Any, logits: Any) -> Any:
            features, after = halves.features(params, stats, images)
            losses, here = losses_of(params, features, target)
            # Where passes hand their statistics on, the logits stay those of the first.
            return losses, (after, here if logits is None else logits)

        f = value_and_grad(losses_fn, self.rule, passes=how, ascent=self.ascent, axis_name=axis)
        (loss, aux), grads = f(
            params, target, images, target, halves.stats, None, step=step, mask=halves.mask
        )
        after, logits = _joined(aux, parts)
        return Gradient(loss, logits, after, grads, extra)


def _joined(aux: Any, parts: int) -> Any:
    """(stats, logits) of a batch from those of its micro-batches, stacked.

    Each micro-batch normalises itself and would move the running statistics from where they were:
    their mean is one move by the mean of what the micro-batches saw.
    """
    if parts == 1:
        return aux
    stats, logits = aux
    # Row i of the batch is row i // parts of micro-batch i % parts.
    rows = jnp.moveaxis(logits, 0, 1).reshape(-1, *logits.shape[2:])
    return jax.tree.map(lambda x: x.mean(axis=0), stats), rows


class ClassConditional:
    """CC-SAM; the arguments are those of `cc_sam.value_and_grad`."""

    whole_batches = True
    hands_on = False

    def __init__(self, class_counts: Any, *, variant: Any = "paper", **options: Any):
        self._counts, self._variant, self._options = class_counts, variant, options
        # Refuses bad options now, not in the first step.
        cc_sam.value_and_grad(_unused, _unused, class_counts, variant=variant, **options)

    def stages(self) -> list[tuple[int, Method]]:
        return [(0, self)]

    def initial_extra(self, params: Any) -> Any:
        return {}

    def gradient(self, halves: Halves, params: Any, extra: Any, step: Any, axis: Any) -> Gradient:
        def losses_for(target: Any) -> Callable[..., Any]:
            losses_of = halves.losses_for(target)
            return lambda params, features, stats: losses_of(params, features, target)

        # The release perturbs for the first labels of mixed rows.
        release = self._variant == "release"
        f = cc_sam.value_and_grad(
            lambda params, stats: halves.features(params, stats, halves.images),
            losses_for(halves.target),
            self._counts,
            variant=self._variant,
            perturbed_losses_fn=losses_for(halves.labels) if release else None,
            axis_name=axis,
            **self._options,
        )
        labels = halves.labels if release else halves.target
        (loss, (after, logits)), grads = f(
            params, labels, halves.stats, step=step, mask=halves.mask
        )
        return Gradient(loss, logits, after, grads, extra)


def _unused(*_: Any) -> Any:
    raise AssertionError("only built, never called")


def as_method(method: Method | Rule) -> Method:
    """A rule alone is a method with the paper's options."""
    return cast(Method, method) if hasattr(method, "gradient") else Tabled(method)


def rule_stages(rule: Rule) -> list[tuple[int, Rule]]:
    """(first step, rule) of each stage; one for a rule without stages."""
    if not isinstance(rule, rules.stagewise):
        return [(0, rule)]
    (first, second), (_, switch) = rule.stages, rule.starts
    switch = int(switch)
    before = [(start, stage) for start, stage in rule_stages(first) if start < switch]
    after = [(max(start, switch), stage) for start, stage in rule_stages(second)]
    # Of stages that would start at once, the last holds.
    return before + [
        after[i] for i in range(len(after)) if i + 1 == len(after) or after[i][0] != after[i + 1][0]
    ]


# ---- by name -------------------------------------------------------------------------------


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
