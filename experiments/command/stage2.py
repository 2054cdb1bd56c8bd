"""Second stages on a trained run: the classifier is changed or trained again, the features stay.

| name             | trained      | sampling | what                                              |
|------------------|--------------|----------|---------------------------------------------------|
| tau-norm         | nothing      |          | columns over a power of their norm, no bias       |
| logit-adjustment | nothing      |          | log priors off the bias                           |
| crt              | fresh head   | balanced | classifier re-training, 4 rows of a class a visit |
| lws              | scales       | balanced | one learnt factor per class on frozen logits; 4   |
| weight-balancing | head         | natural  | class-balanced loss, decay 0.1, MaxNorm           |
| cc-sam           | head         | balanced | adversarial features, their share growing by epoch|

A stage starts from the last epoch of the run (the releases of CC-SAM and weight balancing take the
best one on the test set), and is a run of its own in RUN/stage2_NAME.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.command.method_flags import STATISTICAL, build_method
from experiments.host import cli
from experiments.host.errors import RunError
from experiments.host.needs import Need, Needs, one_of
from experiments.run.compatible import Asked
from experiments.run.settings import MAX_NORM, SAMPLING, Settings
from experiments.step.methods import Method
from experiments.step.objectives import Adversary, LossFn
from imbsam_jax import classifiers, losses, schedules

# (params, fresh params) -> params to start from; pure, so that it may be mapped over seeds.
Start = Callable[[Any, Any], Any]


class Stage(NamedTuple):
    """A second stage, made for one run.

    Attributes:
      settings: how it is trained; epochs is 0 where it is not.
      loss: what is minimised.
      start: makes its first parameters.
      method: how the gradient is taken.
      adversary: see Objective.
      keeps_head: whether it starts from the first stage's classifier.
      description: the report's fields "stage2" and "stage2_args"; the others are the first stage's.
    """

    settings: Settings
    loss: LossFn
    start: Start
    method: Method
    adversary: Adversary | None
    keeps_head: bool
    description: dict[str, Any]


class Recipe(NamedTuple):
    """What the sources say of a second stage; None where the first stage's value is kept."""

    epochs: int
    trained: str = "head"
    lr: float | None = None
    lr_factor: float = 1.0
    weight_decay: float | None = None
    schedule: str = "cosine-prestep"
    sampling: str = "balanced"
    loss: str = "cross_entropy"
    classifier: str = "linear"
    max_norm: str = "none"
    per_visit: int = 1
    start: str = "as it is"
    takes: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "tau-norm": Recipe(0, start="tau-norm", takes=("tau",)),
    "logit-adjustment": Recipe(0, start="logit-adjustment", takes=("tau",)),
    "crt": Recipe(10, start="fresh head", per_visit=4),
    "lws": Recipe(5, trained="scales", classifier="scaled", start="unit scales", per_visit=4),
    "weight-balancing": Recipe(
        10, lr=0.01, weight_decay=0.1, sampling="natural", loss="softmax_binary", max_norm="step",
    ),
    "cc-sam": Recipe(30, lr_factor=0.1, schedule="constant", takes=("variant", "limit")),
}  # fmt: skip


def make(
    name: str,
    options: dict[str, Any],
    *,
    class_counts: np.ndarray,
    first: Settings,
    steps_per_epoch: int,
) -> Stage:
    """The second stage of that name after a run with the settings `first`.

    Args:
      name: one of RECIPES.
      options: the flags of `add_arguments`, and those of the method for --stage2-rule same.
      class_counts: int[C].
      steps_per_epoch: of this data and batch size.
    """
    recipe = RECIPES[name]

    def flag(key: str, default: Any) -> Any:
        value = options.get(f"stage2_{key}")
        heeded = recipe.epochs or key in recipe.takes  # else it is for the other stages
        return default if value is None or not heeded else value

    epochs = flag("epochs", recipe.epochs) if recipe.epochs else 0
    if recipe.epochs and epochs < 1:
        raise RunError(f"--stage2-epochs must be at least 1, got {epochs}")
    decay = first.weight_decay if recipe.weight_decay is None else recipe.weight_decay
    lr = first.lr * recipe.lr_factor if recipe.lr is None else recipe.lr
    settings = dataclasses.replace(
        first,
        epochs=epochs,
        lr=flag("lr", lr),
        weight_decay=flag("weight_decay", decay),
        schedule=recipe.schedule,
        sampling=flag("sampling", recipe.sampling),
        per_visit=recipe.per_visit,
        examples="dependent",
        statistics=flag("statistics", "frozen"),
        trained=recipe.trained if epochs else "all",
        classifier=recipe.classifier,
        max_norm=flag("max_norm", recipe.max_norm) if recipe.max_norm != "none" else "none",
        mixup=0.0,
    )
    settings.check(least_epochs=0)
    taken = {key: flag(key, _DEFAULTS[key]) for key in recipe.takes}
    tau = taken.get("tau")
    if tau is not None and not np.isfinite(tau):
        raise RunError(f"--stage2-tau must be finite, got {tau}")
    described: dict[str, Any] = {"stage2": name, "stage2_args": dict(taken)}
    rule = "sgd"
    if epochs:
        rule = options["rule"] if flag("rule", "sgd") == "same" else "sgd"
        keys = ("lr", "weight_decay", "schedule", "sampling", "statistics", "max_norm")
        described["stage2_args"] |= {key: getattr(settings, key) for key in keys}
        described["stage2_args"] |= {"epochs": epochs, "rule": rule, "loss": recipe.loss}
    inside = first.weight_decay_inside and rule != "sgd"
    settings = dataclasses.replace(settings, weight_decay_inside=inside)
    own = {
        "epochs": epochs, "first_epochs": first.epochs, "weight_decay": settings.weight_decay
    }  # fmt: skip
    method, _ = build_method(
        rule,
        class_counts,
        {**options, **own, "weight_decay_inside": inside},
        steps_per_epoch=steps_per_epoch,
    )
    return Stage(
        settings,
        _LOSSES[recipe.loss](class_counts),
        partial(_STARTS[recipe.start], class_counts=class_counts, tau=tau),
        method,
        _adversary(taken, class_counts, epochs, steps_per_epoch) if name == "cc-sam" else None,
        recipe.start != "fresh head",
        described,
    )


def asked(name: str, stage: Stage, after: Asked) -> Asked:
    """What a second stage is asked to do, after a first one of what it was asked."""
    return dataclasses.replace(
        after,
        settings=stage.settings,
        method=stage.method,
        adversary=stage.adversary,
        stage2=name,
        first=after.settings if stage.keeps_head else None,
    )


_DEFAULTS = {"tau": 1.0, "variant": "paper", "limit": 1.0}


_LOSSES: dict[str, Callable[[np.ndarray], LossFn]] = {
    "cross_entropy": lambda class_counts: losses.cross_entropy,
    "softmax_binary": losses.softmax_binary,
}


def _adversary(
    taken: dict[str, Any], class_counts: np.ndarray, epochs: int, steps_per_epoch: int
) -> Adversary:
    try:
        share = schedules.ramp(epochs=epochs, steps_per_epoch=steps_per_epoch, limit=taken["limit"])
    except ValueError as error:
        raise RunError(f"--stage2-limit: {error}") from error
    return Adversary(
        lambda fn: losses.feature_adversary(fn, class_counts, variant=taken["variant"]),
        share,
        over_the_batch=taken["variant"] == "release",
    )


# ---- what each stage starts from -----------------------------------------------------------


def _head(params: Any, head: Any) -> Any:
    return {**params, "head": head}


def _as_it_is(params: Any, fresh: Any, **_: Any) -> Any:
    return params


def _fresh_head(params: Any, fresh: Any, **_: Any) -> Any:
    return _head(params, fresh["head"])


def _unit_scales(params: Any, fresh: Any, **_: Any) -> Any:
    head = params["head"]
    return _head(params, {**head, "scales": jnp.ones_like(head["bias"])})


def _tau_normalised(params: Any, fresh: Any, *, tau: float, **_: Any) -> Any:
    head = params["head"]
    kernel = classifiers.tau_normalise(head["kernel"], tau)
    return _head(params, {"kernel": kernel, "bias": jnp.zeros_like(head["bias"])})


def _adjusted(params: Any, fresh: Any, *, class_counts: np.ndarray, tau: float, **_: Any) -> Any:
    head = params["head"]
    bias = classifiers.adjust_logits(head["bias"], class_counts, tau=tau)
    return _head(params, {**head, "bias": bias})


_STARTS: dict[str, Callable[..., Any]] = {
    "as it is": _as_it_is,
    "fresh head": _fresh_head,
    "unit scales": _unit_scales,
    "tau-norm": _tau_normalised,
    "logit-adjustment": _adjusted,
}


def add_arguments(group: Any) -> None:
    """The flags of every second stage; None keeps what its source, or the first stage, has."""
    group.add_argument(
        "--stage2", nargs="*", default=[], choices=sorted(RECIPES),
        help="second stages, each from the end of the first, in OUT/stage2_NAME",
    )  # fmt: skip
    group.add_argument(
        "--stage2-tag", default="", type=cli.tag,
        help="in OUT/stage2_NAME_TAG instead: another setting on the same first stage (--resume)",
    )  # fmt: skip
    group.add_argument(
        "--stage2-epochs", type=cli.counted(),
        help="crt 10, lws 5, weight-balancing 10, cc-sam 30",
    )  # fmt: skip
    group.add_argument(
        "--stage2-lr", type=cli.number(over=0),
        help="the first stage's for crt and lws, a tenth of it for cc-sam, 0.01 for "
        "weight-balancing",
    )  # fmt: skip
    group.add_argument(
        "--stage2-weight-decay", type=cli.number(least=0),
        help="the first stage's, 0.1 for weight-balancing",
    )  # fmt: skip
    group.add_argument(
        "--stage2-statistics", default="frozen", choices=["frozen", "updated"],
        help="running statistics of the frozen features; updated by the batch in the releases",
    )  # fmt: skip
    group.add_argument("--stage2-sampling", choices=SAMPLING, help="balanced, natural for "
        "weight-balancing")  # fmt: skip
    group.add_argument(
        "--stage2-rule", default="sgd", choices=["sgd", "same"],
        help="how the second stage takes its gradient: plainly, or by --rule",
    )  # fmt: skip
    group.add_argument(
        "--stage2-tau", type=cli.number(least=-1000, most=1000), default=1.0,
        help="of tau-norm (1.9 in weight balancing) and logit-adjustment",
    )  # fmt: skip
    group.add_argument(
        "--stage2-max-norm", choices=MAX_NORM,
        help="weight-balancing: project after each step (paper) or each epoch (release)",
    )  # fmt: skip
    group.add_argument(
        "--stage2-variant", default="paper", choices=["paper", "release"], help="of cc-sam"
    )
    group.add_argument(
        "--stage2-limit", type=cli.number(least=0, most=1), default=1.0,
        help="cc-sam: largest share of adversarial features; the release has 0.3 on CIFAR-100",
    )  # fmt: skip


def needs() -> Needs:
    """When each of these flags is heeded."""

    def of_stages(wanted: Callable[[Recipe], Any]) -> Need:
        return one_of(
            "stage2", (name for name, recipe in sorted(RECIPES.items()) if wanted(recipe))
        )

    trained = of_stages(lambda recipe: recipe.epochs)
    return {
        "stage2": (),
        "stage2_tag": (of_stages(lambda recipe: True),),
        **dict.fromkeys(
            ("stage2_epochs", "stage2_lr", "stage2_weight_decay", "stage2_sampling", "stage2_rule"),
            (trained,),
        ),
        "stage2_statistics": (trained, STATISTICAL),
        "stage2_max_norm": (of_stages(lambda recipe: recipe.max_norm != "none"),),
        **{f"stage2_{option}": (of_stages(partial(_takes, option)),) for option in _DEFAULTS},
    }


def _takes(option: str, recipe: Recipe) -> bool:
    return option in recipe.takes
