"""The flags of a comparison: its data, what is compared, which settings are sought, training."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from experiments.command import candidates as offered
from experiments.host import cli
from experiments.host.needs import Need, Needs, always, beside, one_of

_HELP = {
    "lr": "initial learning rate; cosine, momentum 0.9",
    "weight_decay": "coupled, at theta",
    "rho": "radius of SAM, ImbSAM, Focal-SAM and reweighted SAM, in parameter units",
    "eta": "largest count of a tail class, in training rows; default: the classes beside the "
    "fewest that hold 80%% of the rows (imbsam_jax.tail_threshold), sought from 50%% to 95%%",
    "gsa_scale": "factor on GSA's radii",
    "strength": "Focal-SAM: weight of the perturbed part",
    "gamma": "Focal-SAM: focus on rare classes",
    "tail_weight": "reweighted SAM: weight of the tail",
    "tau": "logit_adjusted: factor on the log priors",
    "beta": "class_balanced: of the effective numbers",
    "focal_gamma": "focal: focus on hard examples",
}


def add_data(parser: argparse.ArgumentParser) -> None:
    """What is read, and how it is split."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=cli.text,
        help=".csv, .tsv, .parquet or .npz (X, y); default: scikit-learn's digits, long-tailed",
    )  # fmt: skip
    data.add_argument("--label", type=cli.text, help="the column to predict")
    data.add_argument("--text", type=cli.text, nargs="+", default=[], help="columns of sentences")
    data.add_argument(
        "--group", type=cli.text,
        help="the column by whose values rows are weighed, in place of the label",
    )  # fmt: skip
    data.add_argument(
        "--id", type=cli.text, help="the column whose equal values stay on one side of a split"
    )
    data.add_argument("--test", type=cli.text, help="a file whose rows are tested, and no others")
    data.add_argument(
        "--cut", type=cli.number(least=1, most=1000),
        help="thin the classes that are trained on to this imbalance factor, largest over smallest",
    )  # fmt: skip
    data.add_argument(
        "--splits", type=cli.counted(1000), default=10, help="repeated random splits, stratified"
    )
    data.add_argument(
        "--test-share", type=cli.number(over=0, below=1), default=0.3, help="of the rows of a split"
    )


def add_rows(parser: argparse.ArgumentParser, references: Iterable[str]) -> None:
    """Which methods stand beside each other, and which of other people's models."""
    rows = parser.add_argument_group("what is compared")
    rows.add_argument(
        "--rule", nargs="+", choices=offered.RULES, default=[*offered.DEFAULT_RULES],
        help="how gradients are taken; SGD always",
    )  # fmt: skip
    rows.add_argument(
        "--loss", nargs="+", choices=offered.LOSSES, default=[*offered.LOSSES],
        help="what is minimised: the first two under every rule, the others with SGD",
    )  # fmt: skip
    rows.add_argument(
        "--sampling", nargs="+", choices=["shuffled", "balanced"], default=["shuffled", "balanced"],
        help="balanced adds SGD on batches with every class alike",
    )  # fmt: skip
    rows.add_argument(
        "--perturb", choices=[*offered.PERTURB], default="all",
        help="which parameters a sharpness rule moves: all, all but the classifier's bias, or that "
        "alone, to see what each does",
    )  # fmt: skip
    rows.add_argument(
        "--reference", nargs="*", choices=[*references], default=["trees", "logistic"],
        help="scikit-learn's models, not tuned, beside them",
    )  # fmt: skip


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Settings that are sought, or given."""
    tuning = parser.add_argument_group("settings; one that is given is not sought")
    tuning.add_argument(
        "--tune", action=argparse.BooleanOptionalAction,
        help="choose settings inside each split, or take the defaults; --tune with --data unless "
        "said otherwise, --no-tune without",
    )  # fmt: skip
    tuning.add_argument(
        "--settings", type=cli.number(least=2, most=256, whole=True), default=8,
        help="tried for every row, the defaults and SGD's among them",
    )  # fmt: skip
    tuning.add_argument(
        "--folds", type=cli.number(least=1, most=20, whole=True), default=3,
        help="of the rows that are not tested, by which settings are chosen; 1 holds a fifth out",
    )  # fmt: skip
    bounds: dict[str, dict[str, Any]] = {
        "lr": {"over": 0}, "weight_decay": {"least": 0}, "rho": {"least": 0},
        "eta": {"least": 0}, "gsa_scale": {"least": 0}, "strength": {"least": 0},
        "gamma": {"least": 0}, "tail_weight": {"over": 0}, "tau": {"least": 0},
        "beta": {"least": 0, "below": 1}, "focal_gamma": {"least": 0},
    }  # fmt: skip
    for name, words in _HELP.items():
        of = offered.SETTINGS.get(name)
        sought = f"; default {of.default:g}, sought from {of.low:g} to {of.high:g}" if of else ""
        tuning.add_argument(
            f"--{name.replace('_', '-')}", type=cli.number(**bounds[name]), help=words + sought
        )


def add_training(parser: argparse.ArgumentParser) -> None:
    """The network, and for how long."""
    net = parser.add_argument_group("network and training")
    net.add_argument("--model", choices=["mlp", "linear"], default="mlp", help="what is trained")
    net.add_argument("--width", type=cli.counted(4096), default=64, help="of a hidden layer, units")
    net.add_argument("--depth", type=cli.counted(16), default=2, help="hidden layers")
    net.add_argument(
        "--epochs", type=cli.counted(),
        help="default: 15, at least 400 steps and at most 1000",
    )  # fmt: skip
    net.add_argument("--batch-size", type=cli.counted(), default=64, help="rows")


def add_output(parser: argparse.ArgumentParser) -> None:
    """The seed, where everything is written, and what is kept of it."""
    parser.add_argument("--seed", type=cli.seed, default=0, help="of splits, weights and batches")
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for summary.json, tables and plots"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on with the same comparison, begun in --out",
    )
    parser.add_argument(
        "--save", action="store_true",
        help="train what is to be used here on all rows, and keep it in OUT/model; keep the "
        "network of every split and row, too, in OUT/params, for experiments.analyse",
    )  # fmt: skip
    parser.add_argument(
        "--predict", type=cli.text, metavar="FILE",
        help="apply what --save kept in --out to the rows of this file: OUT/predictions.csv. "
        "Nothing is compared without --save",
    )  # fmt: skip


def needs() -> Needs:
    """When each flag is heeded."""
    compared = Need(
        lambda args: args.save or not args.predict,
        "--save beside --predict, which alone compares nothing",
    )
    tuned = Need(is_tuned, "--tune")
    hidden = one_of("model", ["mlp"])
    data = beside("data")
    of_a_comparison = {
        **always(
            "data", "splits", "test_share", "cut", "rule", "loss", "sampling", "reference", "tune",
            "lr", "weight_decay", "model", "epochs", "batch_size", "seed", "overwrite", "resume",
        ),
        "label": (data,), "text": (data,), "group": (data,), "id": (data,), "test": (data,),
        "settings": (tuned,), "folds": (tuned,),
        "rho": (one_of("rule", ["sam", "imbsam", "focal_sam", "reweighted_sam"]),),
        "perturb": (one_of("rule", [name for name in offered.RULES if name != "sgd"]),),
        "eta": (one_of("rule", ["imbsam", "reweighted_sam"]),),
        "gsa_scale": (one_of("rule", ["gsa"]),),
        "strength": (one_of("rule", ["focal_sam"]),), "gamma": (one_of("rule", ["focal_sam"]),),
        "tail_weight": (one_of("rule", ["reweighted_sam"]),),
        "tau": (one_of("loss", ["logit_adjusted"]),),
        "beta": (one_of("loss", ["class_balanced"]),),
        "focal_gamma": (one_of("loss", ["focal"]),),
        "width": (hidden,), "depth": (hidden,),
    }  # fmt: skip
    return {
        **{name: (compared, *its) for name, its in of_a_comparison.items()},
        **always("out", "save", "predict"),
    }


def is_tuned(args: argparse.Namespace) -> bool:
    """Unless said otherwise: a first look, without data, is to take less than a minute."""
    return bool(args.data) if args.tune is None else bool(args.tune)


def candidates_of(args: argparse.Namespace) -> list[offered.Candidate]:
    """The rows that are asked for, SGD with cross-entropy among them."""
    return offered.candidates(
        list(dict.fromkeys(["sgd", *args.rule])),
        list(dict.fromkeys(["cross_entropy", *args.loss])),
        settings=args.settings if is_tuned(args) else 1,
        fixed={name: getattr(args, name) for name in _HELP if getattr(args, name) is not None},
        samplings=args.sampling,
        perturb=args.perturb,
    )
