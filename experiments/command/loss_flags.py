"""Losses by name: from the flags that describe one to what is minimised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.host import cli
from experiments.host.errors import RunError
from experiments.host.needs import Need, Needs, always, either, one_of
from experiments.step.objectives import LossFn
from imbsam_jax import losses


class Offered(NamedTuple):
    """A loss that may be chosen.

    Attributes:
      taken: the flags that it takes.
      make: it, of class counts, the pmap axis (or None) and what these flags say.
      weighted: whether it weighs classes, as --drw-epoch would once more.
      takes_priors: whether it takes class sizes off the logits, as --stage2 logit-adjustment would.
    """

    taken: tuple[str, ...]
    make: Callable[..., LossFn]
    weighted: bool = False
    takes_priors: bool = False


LOSSES: dict[str, Offered] = {
    "cross_entropy": Offered((), lambda counts, axis: losses.cross_entropy),
    "class_balanced": Offered(
        ("beta", "normalise"),
        lambda counts, axis, beta, normalise: losses.class_balanced(
            counts, beta, normalise=normalise, axis_name=axis
        ),
        weighted=True,
    ),
    "focal": Offered(("focal_gamma",), lambda counts, axis, focal_gamma: losses.focal(focal_gamma)),
    "ldam": Offered(
        ("max_margin", "scale", "scale_logits"),
        lambda counts, axis, **options: losses.ldam(counts, **options),
    ),
    "logit_adjusted": Offered(
        ("tau",),
        lambda counts, axis, tau: losses.logit_adjusted(counts, tau=tau),
        takes_priors=True,
    ),
    "vs": Offered(
        ("vs_gamma", "tau"),
        lambda counts, axis, vs_gamma, tau: losses.vs(counts, gamma=vs_gamma, tau=tau),
        takes_priors=True,
    ),
    "softmax_binary": Offered(
        ("beta",),
        lambda counts, axis, beta: losses.softmax_binary(counts, beta=beta),
        weighted=True,
    ),
}


def priors_of(name: str) -> str:
    """The loss's name where it takes class sizes off the logits, else ""."""
    return name if LOSSES[name].takes_priors else ""


def build_loss(
    name: str,
    class_counts: np.ndarray,
    options: dict[str, Any],
    *,
    steps_per_epoch: int,
    axis_name: str | None = None,
) -> tuple[LossFn, dict[str, Any]]:
    """(the loss of that name, the report's fields "loss" and "loss_args").

    Args:
      name: one of LOSSES.
      class_counts: int[C].
      options: the flags of `add_arguments`, and "epochs".
      steps_per_epoch: what --drw-epoch is counted in.
      axis_name: the pmap axis, where there is one.
    """
    if name not in LOSSES:
        raise RunError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    offered = LOSSES[name]
    arguments = {key: options[key] for key in offered.taken}
    described = dict(arguments)
    try:
        loss = offered.make(class_counts, axis_name, **arguments)
        if options.get("drw_epoch") is not None:
            epoch = options["drw_epoch"]
            if epoch < 0:
                raise RunError(f"--drw-epoch must be at least 0, got {epoch}")
            if epoch >= options["epochs"]:
                raise RunError(
                    f"--drw-epoch {epoch} is past the last of {options['epochs']} epochs (from 0): "
                    "nothing would be re-weighted"
                )
            if offered.weighted:
                raise RunError(
                    f"--drw-epoch re-weights a loss, and {name} is weighted from the start: use "
                    "--loss cross_entropy"
                )
            weights = losses.class_balanced_weights(class_counts, options["beta"])
            later = losses.weighted(
                loss, weights, normalise=options["normalise"], axis_name=axis_name
            )
            loss = losses.deferred(loss, later, switch_step=epoch * steps_per_epoch)
            described |= {"drw_epoch": epoch, "beta": options["beta"]}
            described["normalise"] = options["normalise"]
        if options.get("smoothing"):
            loss = losses.smoothed(loss, options["smoothing"])
            described["smoothing"] = options["smoothing"]
    except ValueError as error:
        raise RunError(f"--loss {name}: {error}") from error
    return loss, {"loss": name, "loss_args": described}


def classifier_for(loss: str, options: dict[str, Any]) -> str:
    """The kind of classifier: --classifier, or what the loss expects."""
    chosen = options.get("classifier") or "auto"
    if chosen == "cosine" and loss == "ldam" and options["scale_logits"]:
        raise RunError(
            "--loss ldam scales cosines itself, which --classifier cosine has done already: use "
            "--classifier normalised"
        )
    if chosen != "auto":
        return str(chosen)
    return "normalised" if loss == "ldam" and options["scale_logits"] else "linear"


def add_arguments(group: Any, *, several: bool = False) -> None:
    """The flags of every loss."""
    more: dict[str, Any] = {"nargs": "+"} if several else {}
    group.add_argument(
        "--loss", default=["cross_entropy"] if several else "cross_entropy",
        choices=sorted(LOSSES), help="what is minimised",
        **more,
    )  # fmt: skip
    group.add_argument(
        "--drw-epoch", type=cli.number(least=0, most=10**6, whole=True),
        help="deferred re-weighting: class-balanced weights from this epoch (from 0) on",
    )  # fmt: skip
    group.add_argument(
        "--mixup", type=cli.number(least=0), default=0.0,
        help="alpha of mixup's Beta distribution; 0 is none",
    )  # fmt: skip
    group.add_argument(
        "--smoothing", type=cli.number(least=0, most=1), default=0.0, help="label smoothing"
    )
    group.add_argument(
        "--classifier", default="auto", choices=["auto", "linear", "normalised", "cosine"],
        help="normalised: cosines; cosine: 25 times these, as in LIFT; auto is normalised for "
        "ldam, else linear",
    )  # fmt: skip
    group.add_argument(
        "--beta", type=cli.number(least=0, below=1), default=0.9999,
        help="of class-balanced weights",
    )  # fmt: skip
    group.add_argument(
        "--normalise", default="weights", choices=["weights", "batch"],
        help="divide re-weighted losses by the sum of the weights (LDAM, VS, Saddle), or by the "
        "batch size (Cui et al., Focal-SAM)",
    )  # fmt: skip
    group.add_argument(
        "--focal-gamma", type=cli.number(least=0), default=1.0, help="focal: focus on hard examples"
    )
    group.add_argument(
        "--max-margin", type=cli.number(least=0, most=10**6), default=0.5,
        help="ldam: margin of the rarest class",
    )  # fmt: skip
    group.add_argument(
        "--scale",
        type=cli.number(over=0, most=10**6),
        default=30.0,
        help="ldam: factor on the logits",
    )
    group.add_argument(
        "--margin-alone", dest="scale_logits", action="store_false",
        help="ldam as in SSE-SAM's release: a linear classifier, logits not scaled",
    )  # fmt: skip
    group.add_argument(
        "--tau",
        type=cli.number(least=0, most=1000),
        default=1.0,
        help="logit_adjusted, vs: factor on the log priors",
    )
    group.add_argument(
        "--vs-gamma",
        type=cli.number(least=0, most=8),
        default=0.3,
        help="vs: power of the class sizes",
    )


def needs() -> Needs:
    """When each of these flags is heeded."""

    def of_losses(option: str) -> Need:
        taken = (name for name, loss in LOSSES.items() if option in loss.taken)
        return one_of("loss", taken)

    deferred = Need(lambda args: args.drw_epoch is not None, "--drw-epoch")
    options = {name for loss in LOSSES.values() for name in loss.taken} - {"scale_logits"}
    return {
        **always("loss", "drw_epoch", "mixup", "smoothing", "classifier"),
        **{name: (of_losses(name),) for name in options},
        "beta": (either(of_losses("beta"), deferred),),
        "normalise": (either(of_losses("normalise"), deferred),),
        "margin_alone": (of_losses("scale_logits"),),
    }
