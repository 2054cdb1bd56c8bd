"""From flags and a data set to a plan: what can be refused before parts are made, is, here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.command import loss_flags, method_flags, stage2
from experiments.command.seeds import devices_of
from experiments.host.errors import RunError
from experiments.step import methods, objectives


class Plan(NamedTuple):
    """What the flags ask for, made for one data set; nothing trained or written yet.

    Attributes:
      start: settings of a seed -> the variables it starts from; None where --init alone says it.
      init: a line that says what those are, for every seed.
    """

    settings: Any
    method: methods.Method
    loss: objectives.LossFn
    description: dict[str, Any]
    second: dict[str, stage2.Stage]
    start: Callable[[Any], Any] | None = None
    init: str | None = None


def make_plan(args: argparse.Namespace, dataset: Any, about_data: dict[str, Any]) -> Plan:
    """The plan; RunError for what can be refused without a model and its batches.

    Args:
      about_data: the description's fields that say how the data was made.
    """
    from experiments.data import filled
    from experiments.run import compatible
    from experiments.run.compatible import Asked
    from experiments.run.parts import tail_of
    from experiments.run.settings import Settings
    from experiments.step.execution import EXECUTIONS
    from imbsam_jax import imbalance_factor

    options, counts = vars(args), filled(dataset.class_counts())
    settings = Settings(
        **{name: options[name] for name in Settings.__dataclass_fields__ if name in options}
        | {
            "classifier": loss_flags.classifier_for(args.loss, options),
            "devices": devices_of(args),
        }
    )
    settings.check()
    if args.val_per_class and dataset.val_labels is None:
        raise RunError("--val-per-class holds images out, and this data set was read without any")
    steps_per_epoch = -(-len(dataset.train_labels) // args.batch_size)
    method, of_method = method_flags.build_method(
        args.rule, counts, options, steps_per_epoch=steps_per_epoch
    )
    asked = Asked(
        settings, method, args.rule, loss_flags.priors_of(args.loss),
        steps_per_epoch=steps_per_epoch,
    )  # fmt: skip
    compatible.check(asked)
    loss, of_loss = loss_flags.build_loss(
        args.loss, counts, options, steps_per_epoch=steps_per_epoch,
        axis_name=EXECUTIONS[args.parallel].axis_name,
    )  # fmt: skip
    description = {
        "experiment": args.experiment,
        **of_method,
        **of_loss,
        "imbalance_factor": imbalance_factor(counts),
        "val_per_class": args.val_per_class,
        **about_data,
        "preset": args.preset,
        "stage2": None,
        "stage2_args": {},
    }
    second = {
        name: stage2.make(
            name, options, class_counts=counts, first=settings, steps_per_epoch=steps_per_epoch
        )
        for name in args.stage2
    }
    tail_of(dataset, settings)  # refuses stratified sampling without one
    for name, stage in second.items():
        tail_of(dataset, stage.settings)
        compatible.check(stage2.asked(name, stage, after=asked))
    return Plan(settings, method, loss, description, second)
