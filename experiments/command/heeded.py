"""Which flag is heeded beside which others: one table an entry point, asked by cli.Parser.

A flag that was typed and that nothing heeds is refused. What a flag needs is read off the tables
that make rules, losses and second stages, so that it is said once. () is: always heeded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from experiments.command.loss_flags import LOSSES
from experiments.command.method_flags import RULES, rule_arguments
from experiments.command.stage2 import PLANS
from experiments.host.cli import Need

Needs = Mapping[str, tuple[Need, ...]]

# Rules whose ascent directions --memory can remember.
REMEMBERED = ("sam", "reweighted_sam", "imbsam", "focal_sam")
# Models without batch normalisation, whose running statistics nothing could touch.
_NO_STATISTICS = ("mlp", "resnet32_gn", "vit_ti4")
# Rules that perturb as --p-norm and its like say.
_PERTURBING = tuple(sorted(set(RULES) - {"sgd", "cc_sam"}))


def _several(args: argparse.Namespace, name: str) -> list[Any]:
    """The values of a flag, which in some entries takes one and in others a list."""
    value = getattr(args, name, [])
    return value if isinstance(value, list) else [value]


def _any(name: str, wanted: Iterable[str]) -> Callable[[argparse.Namespace], bool]:
    return lambda args: not set(wanted).isdisjoint(_several(args, name))


def _one_of(flag: str, wanted: Iterable[str]) -> Need:
    """Needs --flag with one of these values."""
    wanted = list(wanted)
    return Need(_any(flag.replace("-", "_"), wanted), f"--{flag} {' or '.join(wanted)}")


def _taken_by_rules(option: str) -> list[str]:
    return [name for name in sorted(RULES) if rule_arguments(name, {option: 0.0})]


def _of_rules(option: str) -> Need:
    return _one_of("rule", _taken_by_rules(option))


def _of_losses(option: str) -> Need:
    return _one_of("loss", (name for name, (taken, _) in sorted(LOSSES.items()) if option in taken))


def _or(one: Need, other: Need) -> Need:
    return Need(lambda args: one.met(args) or other.met(args), f"{one.words}, or {other.words}")


def _not(flag: str) -> Need:
    """Needs that another flag is left out."""
    name = flag.replace("-", "_")
    return Need(lambda args: not getattr(args, name), f"--{flag} left out")


def _with(*flags: str) -> Need:
    """Needs one of these flags."""
    names = [flag.replace("-", "_") for flag in flags]
    return Need(
        lambda args: any(getattr(args, name) not in (None, False, []) for name in names),
        " or ".join(f"--{flag}" for flag in flags),
    )


def _always(*names: str) -> Needs:
    return dict.fromkeys(names, ())


_CONSTANT = Need(
    lambda args: getattr(args, "rho_schedule", "constant") == "constant", "--rho-schedule constant"
)
_STRATIFIED = Need(
    lambda args: (
        any(
            "stratified" in _several(args, name) for name in ("sampling", "stage2_sampling", "mode")
        )
        or not {"split_own", "split_renorm"}.isdisjoint(_several(args, "mode"))
    ),
    "stratified sampling",
)
_STATISTICS = Need(
    lambda args: not set(_several(args, "model")) <= {*_NO_STATISTICS},
    f"a --model with batch normalisation, not {', '.join(_NO_STATISTICS)}",
)
_DIGITS_STATISTICS = Need(
    lambda args: False, "a model with batch normalisation, and the digits' MLP has none"
)
_DEFERRED = Need(lambda args: args.drw_epoch is not None, "--drw-epoch")
_TRAINED_STAGE = _one_of("stage2", (name for name, plan in sorted(PLANS.items()) if plan.epochs))

# method_flags.add_arguments
METHOD: Needs = {
    "rho": (_of_rules("rho"), _CONSTANT),
    "rho_schedule": (_of_rules("rho"),),
    "rho_boundaries": (_of_rules("rho"), _one_of("rho-schedule", ["step"])),
    "rho_values": (_of_rules("rho"), _one_of("rho-schedule", ["step", "linear", "late"])),
    "eta": (_or(_of_rules("eta"), _STRATIFIED),),
    "strict": (_or(_of_rules("strict"), _STRATIFIED),),
    **{
        name: (_of_rules(name),)
        for name in (
            "tail_scale", "tail_weight", "gamma", "strength", "head_rho", "tail_rho", "cc_variant",
            "cc_perturb", "noise_ratio", "flat_ratio",
        )
    },
    "switch_fraction": (_of_rules("switch_step"),),
    "p_norm": (_one_of("rule", _PERTURBING),),
    "adaptive": (_one_of("rule", _PERTURBING),),
    "asam_eta": (_one_of("rule", _PERTURBING), _one_of("adaptive", ["asam"])),
    "group_mean": (_one_of("rule", _PERTURBING),),
    "weight_decay_inside": (),
    "running_statistics": (_one_of("rule", sorted(set(RULES) - {"sgd"})), _STATISTICS),
}  # fmt: skip
# loss_flags.add_arguments
LOSS: Needs = {
    **_always("loss", "drw_epoch", "mixup", "smoothing", "classifier"),
    "beta": (_or(_of_losses("beta"), _DEFERRED),),
    "normalise": (_or(_of_losses("normalise"), _DEFERRED),),
    "focal_gamma": (_of_losses("focal_gamma"),),
    "max_margin": (_of_losses("max_margin"),),
    "scale": (_of_losses("scale"),),
    "margin_alone": (_of_losses("scale_logits"),),
    "tau": (_of_losses("tau"),),
    "vs_gamma": (_of_losses("vs_gamma"),),
}
# stage2.add_arguments
STAGE2: Needs = {
    "stage2": (),
    "stage2_tag": (_one_of("stage2", sorted(PLANS)),),
    **dict.fromkeys(
        ("stage2_epochs", "stage2_lr", "stage2_weight_decay", "stage2_sampling", "stage2_rule"),
        (_TRAINED_STAGE,),
    ),
    "stage2_statistics": (_TRAINED_STAGE, _STATISTICS),
    "stage2_max_norm": (
        _one_of("stage2", (name for name, plan in PLANS.items() if plan.max_norm != "none")),
    ),
    **{
        f"stage2_{option}": (
            _one_of("stage2", (name for name, plan in PLANS.items() if option in plan.takes)),
        )
        for option in ("tau", "variant", "limit")
    },
}
_MEMORY: Needs = {"rule": (), "memory": (_one_of("rule", REMEMBERED),)}

# flags.add_training; what the flags for several processes need is `execution.join_processes`'s.
_TRAINING: Needs = {
    **_always(
        "preset", "model", "init", "epochs", "batch_size", "lr", "schedule", "momentum",
        "weight_decay", "sampling", "examples", "precision", "seed", "seeds", "num_seeds", "out",
        "resume", "checkpoint_every", "eval_every", "eval_batch", "parallel", "devices",
        "accumulate", "remat", "steps_per_call", "quiet", "coordinator", "num_processes",
        "process_id", "cluster",
    ),
    "tail_statistics": (_one_of("examples", ["split_norm"]),),
    "together": (_with("seeds", "num-seeds"),),
    "heartbeat_seconds": (_with("cluster", "coordinator"),),
}  # fmt: skip
_IMAGES: Needs = {**_TRAINING, **METHOD, **_MEMORY, **LOSS, **STAGE2}

_CIFAR_DATA: Needs = {
    **_always(
        "dataset", "imbalance_factor", "subset", "data_dir", "data", "export", "shrink",
        "val_per_class", "preset",
    ),
    "subset_seed": (_one_of("subset", ["shuffled"]),),
}  # fmt: skip
_NO_EXPORT = Need(lambda args: not args.export, "--export left out, which trains nothing")
CIFAR: Needs = {
    **{name: (_NO_EXPORT, *needs) for name, needs in _IMAGES.items()},
    **_CIFAR_DATA,
}
STREAMED: Needs = {
    **_IMAGES,
    **_always(
        "dataset", "data_dir", "image_dir", "train_list", "val_list", "test_list", "image_size",
        "resize", "jitter", "loader", "max_corrupt", "allow_empty_classes", "val_per_class",
    ),
    "workers": (_one_of("loader", ["grain"]),),
    "steps_per_call": (
        Need(lambda args: args.steps_per_call < 2, "images in memory: streamed ones have 1 step"),
    ),
}  # fmt: skip

_DIGITS_TRAINING: Needs = {
    **_always(
        "imbalance_factor", "epochs", "batch_size", "lr", "momentum", "weight_decay", "num_seeds",
        "seeds", "out", "overwrite",
    ),
    **METHOD, **_MEMORY, **LOSS,
    "running_statistics": (_DIGITS_STATISTICS,),
}  # fmt: skip
DIGITS: Needs = {**_DIGITS_TRAINING, **STAGE2, "stage2_statistics": (_DIGITS_STATISTICS,)}
DIGITS_SWEEP: Needs = {**_DIGITS_TRAINING, "grid": ()}
IMAGES_SWEEP: Needs = {**CIFAR, "grid": ()}

ANOMALY: Needs = {
    **_always(
        "data_dir", "datasets", "protocol", "method", "rule", "seeds", "optimizer", "lr", "epochs",
        "out", "overwrite",
    ),
    "label_ratio": (_one_of("protocol", ["adbench", "nodup", "clean"]),),
    "rho": (_one_of("rule", ["sam", "imbsam"]),),
}  # fmt: skip
EVALUATE: Needs = {
    **_always("data", "image_dir", "max_corrupt", "train_list", "val_list", "test_list"),
    "data_dir": (_not("data"),),
}
REPORT: Needs = {"out": (), "overwrite": (_with("out"),)}

# ---- benchmarks ----------------------------------------------------------------------------------

_RUNS, _STEPS = _one_of("parts", ["runs"]), _one_of("parts", ["steps"])
ACCELERATOR: Needs = {
    **_always("out", "parts", "quick"),
    **dict.fromkeys(("modes", "rounds"), (_STEPS,)),
    **dict.fromkeys(("minutes", "steps_per_call"), (_or(_STEPS, _RUNS),)),
    **dict.fromkeys(
        (
            "data", "work", "done", "models", "methods", "weight_decays", "seeds", "epochs",
            "batch_size", "lr", "precision", "quiet",
        ),
        (_RUNS,),
    ),
    "eta": (_RUNS, _one_of("methods", ["imbsam", "imbsam_x2"])),
}  # fmt: skip
CONV_PROFILE: Needs = _always("batch_size", "rounds", "out")
CPU_CORES: Needs = _always("model", "batch_size", "devices", "parallel", "rounds", "torch", "out")
EXACT: Needs = {
    **_always("model", "batch_size", "tail_rows", "image_size", "compile_only", "out"),
    "rounds": (_not("compile-only"),),
}
INPUT: Needs = _always(
    "data_dir", "images", "size", "batch_size", "workers", "threads", "rounds", "seconds", "out"
)
SEEDS_TOGETHER: Needs = {
    **METHOD,
    **_always(
        "data", "shrink", "model", "rule", "batch_size", "seeds", "rounds", "devices",
        "steps_per_call", "precision", "out",
    ),
}  # fmt: skip
STEP_COST: Needs = {
    **METHOD,
    **_always(
        "rule", "model", "mode", "batch_size", "data", "precision", "accumulate", "remat",
        "compile_only", "image_size", "out",
    ),
    "steps": (_not("compile-only"),),
    "counts": (_not("data"),),
}  # fmt: skip
