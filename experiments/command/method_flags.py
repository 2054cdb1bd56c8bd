"""Methods by name: from the flags that describe one to how a gradient is taken.

Which rules there are, which flags each takes and where a flag is heeded follow from
`imbsam_jax.rules.__all__` and the signatures there: a new rule needs no line here, a parameter of
a new name one in PARAMETERS.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.command import radii
from experiments.host import cli
from experiments.host.errors import RunError
from experiments.host.needs import Need, Needs, either, one_of, values_of
from experiments.models import PRETRAINED, WITHOUT_BATCH_NORM
from experiments.step.methods import RUNNING_STATISTICS, ClassConditional, Method, Tabled
from imbsam_jax import Ascent, asam_scale, magnitude_scale, rules


class Flag(NamedTuple):
    """A flag as it is declared: its default, its help, and what else argparse takes."""

    default: Any
    help: str
    options: dict[str, Any]


def _number(**bounds: Any) -> dict[str, Any]:
    return {"type": cli.number(**bounds)}


_SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}

# ---- what the methods take -----------------------------------------------------------------

# A flag for each parameter of a rule, by its name, whichever rules have it.
PARAMETERS: dict[str, Flag] = {
    "rho": Flag(0.05, "radius, in parameter units", _number(least=0)),
    "eta": Flag(100.0, "largest count of a tail class, in training examples", _number(least=0)),
    "tail_scale": Flag(
        1.0, "factor on the tail loss; 2 in the released code since September 2023",
        _number(over=0),
    ),
    "tail_weight": Flag(2.0, "weight of the tail in SAM's loss", _number(over=0)),
    "gamma": Flag(3.2, "focus on rare classes", _number(least=0)),
    "strength": Flag(0.8, "weight of the perturbed part", _number(least=0)),
    "head_rho": Flag(0.05, "radius of the head in the first stage", _number(least=0)),
    "tail_rho": Flag(0.1, "radius of the tail", _number(least=0)),
    "switch_fraction": Flag(
        0.7, "share of the epochs before the second stage", _number(least=0, most=1)
    ),
    "gsa_scale": Flag(0.01, "factor on the radius of every group", _number(least=0)),
    "gsa_direction": Flag(
        "orthogonal", "what of a group's gradient it is moved along: the part that the others do "
        "not dominate, all of it, or the rest (controls of the paper)",
        {"choices": ["orthogonal", "plain", "projection"]},
    ),
    "cc_variant": Flag(
        "paper", "the paper's radius or the release's", {"choices": ["paper", "release"]}
    ),
    "cc_perturb": Flag("classifier", "what is perturbed", {"choices": ["classifier", "all"]}),
    "noise_ratio": Flag(
        None, "factor on the radius, to be chosen: 1, as printed, breaks training, 1e-6 is "
        "released", _number(least=0),
    ),
    "flat_ratio": Flag(
        None, "weight of the perturbed part; default 1 (paper), 0.5 (release)",
        _number(least=0, most=1),
    ),
    "strict": Flag(False, "the tail is n < eta, as in the ImbSAM release", _SWITCH),
}  # fmt: skip
# Where a flag has not its parameter's name, which another flag has or which says too little
# alone; None where there is none, and the rule's own default holds.
_RENAMED: dict[str, dict[str, str | None]] = {
    "gsa": {"scale": "gsa_scale", "direction": "gsa_direction", "groups": None},
}
# Parameters that `build_method` makes of a flag, in steps.
_MADE_OF = {"switch_step": "switch_fraction"}

# Other radii than a constant --rho.
_RADII: dict[str, Flag] = {
    "rho_schedule": Flag(
        "constant", "radius by epoch: Focal-SAM's step (boundaries at 5/200, 160/200, 180/200 of "
        "the epochs) and linear, or late (from 80%% of the epochs)",
        {"choices": ["constant", "step", "linear", "late"]},
    ),
    "rho_boundaries": Flag(
        None, "--rho-schedule step: first epochs of its later values",
        {**_number(least=1, most=10**6, whole=True), "nargs": "+"},
    ),
    "rho_values": Flag(
        None, "radii of --rho-schedule; default as published", {**_number(least=0), "nargs": "+"}
    ),
}  # fmt: skip
# How a perturbation is made of its direction, and what else passes do.
_ASCENT: dict[str, Flag] = {
    "p_norm": Flag(2.0, "norm of the perturbation's ball", _number(over=1, infinite=True)),
    "adaptive": Flag(
        "none", "scale of the ball: ASAM's (weights, by tensor) or davda54's (all)",
        {"choices": ["none", "asam", "magnitude"]},
    ),
    "asam_eta": Flag(0.01, "--adaptive asam: added to |theta|", _number(least=0)),
    "group_mean": Flag(
        False, "divide each part by its own rows, as SSE-SAM's release does for its ImbSAM", _SWITCH
    ),
    "weight_decay_inside": Flag(
        False, "weight decay inside the perturbed loss, as in the official JAX SAM", _SWITCH
    ),
    "running_statistics": Flag(
        "first", "which passes update those of batch normalisation; every in the released PyTorch "
        "code", {"choices": RUNNING_STATISTICS},
    ),
}  # fmt: skip


def add_arguments(group: Any, **defaults: Any) -> None:
    """The flags of every method; defaults by name replace those of the tables."""
    taken = {name: list(options_of(name)) for name in rule_names()}
    for rule, options in taken.items():
        for option in options:
            if _MADE_OF.get(option, option) not in PARAMETERS:
                raise LookupError(f"{rule} takes {option}: give it a line in PARAMETERS")
    for name, flag in {**PARAMETERS, **_RADII, **_ASCENT}.items():
        text = flag.help
        if name in PARAMETERS:  # whose it is
            text = f"{', '.join(taken_by(name))}: {text}"
        group.add_argument(
            f"--{name.replace('_', '-')}", default=defaults.get(name, flag.default), help=text,
            **flag.options,
        )  # fmt: skip


def needs() -> Needs:
    """When each of these flags is heeded."""
    of_rules = {name: one_of("rule", taken_by(name)) for name in PARAMETERS}
    radius, constant = of_rules["rho"], Need(_has_constant_rho, "--rho-schedule constant")
    moving = {name: rule for name in rule_names() if _perturbs(rule := _example(name))}
    any_ball = one_of("rule", (k for k, rule in moving.items() if not _perturbs_by_itself(rule)))
    return {
        **{name: (need,) for name, need in of_rules.items()},
        "rho": (radius, constant),
        "head_rho": (of_rules["head_rho"], _FIRST_STAGE),
        "eta": (either(of_rules["eta"], _STRATIFIED),),
        "strict": (either(of_rules["strict"], _STRATIFIED),),
        "rho_schedule": (radius,),
        "rho_boundaries": (radius, one_of("rho-schedule", ["step"])),
        "rho_values": (radius, one_of("rho-schedule", ["step", "linear", "late"])),
        "p_norm": (any_ball,),
        "adaptive": (any_ball,),
        "asam_eta": (any_ball, one_of("adaptive", ["asam"])),
        "group_mean": (any_ball,),
        "weight_decay_inside": (),
        "running_statistics": (one_of("rule", moving), STATISTICAL),
    }


def _has_constant_rho(args: argparse.Namespace) -> bool:
    return getattr(args, "rho_schedule", "constant") == "constant"


_STRATIFIED = Need(
    lambda args: (
        any(
            "stratified" in values_of(args, name)
            for name in ("sampling", "stage2-sampling", "mode")
        )
        or bool({"split_norm", "shared_norm"} & set(values_of(args, "mode")))
    ),
    "stratified sampling",
)
_FIRST_STAGE = Need(
    lambda args: args.switch_fraction > 0, "a --switch-fraction over 0, which leaves a first stage"
)
# Of a benchmark of lone steps: a staged rule's stages are measured by themselves.
NO_EPOCHS = Need(lambda args: False, "epochs to be a share of, and a lone step has none")
# Running statistics that a pass could touch.
STATISTICAL = Need(
    lambda args: not set(values_of(args, "model")) <= {*WITHOUT_BATCH_NORM, *PRETRAINED},
    f"a --model with batch normalisation, not {', '.join(WITHOUT_BATCH_NORM)}",
)


# ---- rules by name -------------------------------------------------------------------------


def _cc_sam(
    class_counts: Any,
    *,
    cc_variant: str = "paper",
    cc_perturb: str = "classifier",
    noise_ratio: float | None = None,
    flat_ratio: float | None = None,
) -> ClassConditional:
    return ClassConditional(
        class_counts,
        variant=cc_variant,
        perturb=cc_perturb,
        noise_ratio=noise_ratio,
        flat_ratio=flat_ratio,
    )


def _makers() -> dict[str, Callable[..., Any]]:
    """What makes each rule: the functions of `imbsam_jax.rules`, and CC-SAM beside them."""
    offered = {name: getattr(rules, name) for name in rules.__all__}
    found = {name: make for name, make in offered.items() if inspect.isfunction(make)}
    return {**found, "cc_sam": _cc_sam}


def rule_names() -> list[str]:
    """The values of --rule."""
    return sorted(_makers())


def options_of(name: str) -> dict[str, str]:
    """{option: parameter} of a rule: the options that it takes, in flags spelled with - for _."""
    if name not in _makers():
        raise RunError(f"unknown rule {name!r}; choose from {', '.join(rule_names())}")
    parameters = inspect.signature(_makers()[name]).parameters.values()
    own = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    options = {parameter: _RENAMED.get(name, {}).get(parameter, parameter) for parameter in own}
    return {option: parameter for parameter, option in options.items() if option is not None}


def taken_by(flag: str) -> list[str]:
    """The rules that a flag concerns."""
    options = {flag, *(option for option, made_of in _MADE_OF.items() if made_of == flag)}
    return [name for name in rule_names() if not options.isdisjoint(options_of(name))]


def _example(name: str) -> Any:
    """A rule of that name, to see what kind it is."""
    options = {option: flag.default for option, flag in PARAMETERS.items()}
    return build_rule(
        name, np.array([500, 50, 5]), {**options, "switch_step": 1, "noise_ratio": 1e-6}
    )


def _perturbs_by_itself(rule: Any) -> bool:
    """Whether --p-norm and its like have nothing to say on how it perturbs."""
    return isinstance(rule, ClassConditional) or hasattr(rule, "ascent")


def _perturbs(rule: Any) -> bool:
    return isinstance(rule, ClassConditional) or len(rule(0).groups) > 0


def leaving_rows_out() -> list[str]:
    """The rules that have a pass in which some class has no weight."""
    tables = {name: rule(0) for name in rule_names() if callable(rule := _example(name))}
    return [name for name, table in tables.items() if (table.groups == 0).any()]


def rule_arguments(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this rule takes, None left out; the others do not concern it."""
    taken = options_of(name)
    return {k: v for k, v in options.items() if k in taken and v is not None}


def build_rule(name: str, class_counts: np.ndarray, options: dict[str, Any]) -> Any:
    """The rule of that name for these class counts; a bad hyper-parameter is a RunError."""
    taken = options_of(name)
    arguments = {taken[k]: value for k, value in rule_arguments(name, options).items()}
    make = _makers()[name]
    first = next(iter(inspect.signature(make).parameters))
    counts = class_counts if first == "class_counts" else len(class_counts)
    try:
        return make(counts, **arguments)
    except (TypeError, ValueError) as error:
        raise RunError(f"--rule {name}: {error}") from error


# ---- methods -------------------------------------------------------------------------------


def build_method(
    name: str, class_counts: np.ndarray, options: dict[str, Any], *, steps_per_epoch: int
) -> tuple[Method, dict[str, Any]]:
    """(the method of that name, the report's fields "rule", "rule_args" and "ascent").

    Args:
      name: one of `rule_names()`.
      class_counts: int[C].
      options: the flags of `add_arguments`, and "epochs" and "weight_decay".
      steps_per_epoch: what schedules by epoch and the switch of a staged rule are counted in.
    """
    options = dict(options)
    epochs = options["epochs"]
    if "rho" in options_of(name):
        rho = radii.radius_of(options, steps_per_epoch)
    elif name != "sgd" and options.get("rho_schedule", "constant") != "constant":
        raise RunError(f"--rule {name} has no --rho that --rho-schedule could change")
    else:
        rho = None
    fraction = options["switch_fraction"]
    if not 0 <= fraction <= 1:
        raise RunError(f"--switch-fraction must be between 0 and 1, got {fraction}")
    # In units of 1e-9 epochs: 0.7 * 10 must not become 7.000000000000001.
    options["switch_step"] = math.ceil(round(fraction * epochs, 9)) * steps_per_epoch
    described = rule_arguments(name, options)
    found = build_rule(name, class_counts, {**options, "rho": rho})
    if "rho" in described and callable(rho):
        described["rho"] = radii.name_of(options)
    ascent = ascent_arguments(options)
    if _perturbs_by_itself(found):
        # What passes do to running statistics is no matter of a rule's; CC-SAM's are its own.
        own = {} if isinstance(found, ClassConditional) else {"running_statistics"}
        if refused := sorted(ascent.keys() - own):
            flags = ", ".join(f"--{key.replace('_', '-')}" for key in refused)
            raise RunError(f"--rule {name} has a perturbation of its own, without {flags}")
    elif not _perturbs(found):  # it perturbs nothing, but has a weight decay
        ascent = {k: v for k, v in ascent.items() if k == "weight_decay_inside"}
    method = found
    if not isinstance(found, ClassConditional):
        try:
            method = Tabled(
                found, ascent_of(ascent, options), ascent.get("running_statistics", "first")
            )
        except ValueError as error:
            raise RunError(str(error)) from error
    return method, {"rule": name, "rule_args": described, "ascent": ascent}


def ascent_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the perturbation that differ from the paper's."""
    found = {
        name: options[name]
        for name, flag in _ASCENT.items()
        if name != "asam_eta" and options.get(name, flag.default) != flag.default
    }
    if found.get("adaptive") == "asam":
        found["asam_eta"] = options.get("asam_eta", _ASCENT["asam_eta"].default)
    return found


def ascent_of(arguments: dict[str, Any], options: dict[str, Any]) -> Ascent:
    """How a perturbation is taken, of the options of `ascent_arguments`."""
    adaptive = {
        None: lambda: None,
        "asam": lambda: asam_scale(arguments["asam_eta"]),
        "magnitude": lambda: magnitude_scale,
    }[arguments.get("adaptive")]()
    named = {"p_norm": "p", "group_mean": "group_mean"}
    given = {of: arguments[name] for name, of in named.items() if name in arguments}
    if arguments.get("weight_decay_inside"):
        given["weight_decay"] = options["weight_decay"]
    return Ascent(adaptive=adaptive, **given)
