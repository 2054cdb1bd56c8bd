"""The flags that the entries on long-tailed digits share, and the settings that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.command import loss_flags, method_flags
from experiments.command.seeds import seeds_of
from experiments.host import cli, locks
from experiments.host.needs import Need, Needs, always
from experiments.run.settings import Settings

# What the flags of statistics need, which is never met here.
NO_STATISTICS = Need(
    lambda args: False, "a model with batch normalisation, and the digits' MLP has none"
)


def needs() -> Needs:
    """When each flag is heeded."""
    return {
        **always(
            "imbalance_factor", "epochs", "batch_size", "lr", "momentum", "weight_decay",
            "num_seeds", "seeds", "out", "overwrite", "rule",
        ),
        **method_flags.needs(),
        **loss_flags.needs(),
        "running_statistics": (NO_STATISTICS,),
    }  # fmt: skip


def add_method(parser: argparse.ArgumentParser) -> None:
    """The flags of every method."""
    # gamma and strength are Focal-SAM's for ten classes, the noise ratio is CC-SAM's as shipped: a
    # larger one breaks training here (results/digits_lt/README.md). Radii and eta are a guess.
    group = parser.add_argument_group("method")
    method_flags.add_arguments(
        group,
        rho=0.2, eta=20.0, gamma=3.0, strength=0.5, head_rho=0.1, tail_rho=0.2, noise_ratio=1e-6,
    )  # fmt: skip


def add_training(parser: argparse.ArgumentParser) -> None:
    """Data, recipe, seeds and output."""
    parser.add_argument(
        "--imbalance-factor", type=cli.number(least=1, most=100), default=50.0,
        help="largest over smallest class",
    )  # fmt: skip
    parser.add_argument("--epochs", type=cli.counted(), default=100, help="of the first stage")
    parser.add_argument("--batch-size", type=cli.counted(), default=32, help="images")
    parser.add_argument(
        "--lr", type=cli.number(over=0), default=0.1, help="initial learning rate; cosine"
    )
    parser.add_argument("--momentum", type=cli.number(least=0, below=1), default=0.9, help="of SGD")
    parser.add_argument(
        "--weight-decay", type=cli.number(least=0), default=5e-4, help="coupled, at theta"
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--num-seeds", type=cli.counted(10**4), default=20, help="seeds 0 to N-1")
    seeds.add_argument("--seeds", type=cli.seed, nargs="+", help="these seeds instead")
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for summary.json, tables and plots"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")


def checked(args: argparse.Namespace) -> tuple[Path, list[int]]:
    """(where to write, the seeds); refuses what nothing can be done with."""
    out = Path(args.out)
    locks.refuse_to_fill(out, args.overwrite)
    return out, seeds_of(args)


def settings_of(args: argparse.Namespace, loss_name: str) -> Settings:
    """Of the first stage under this loss; refuses what no step could be made with."""
    settings = Settings(
        epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, schedule="cosine",
        momentum=args.momentum, weight_decay=args.weight_decay, mixup=args.mixup,
        weight_decay_inside=args.weight_decay_inside, eta=args.eta, strict=args.strict,
        classifier=loss_flags.classifier_for(loss_name, vars(args)),
    )  # fmt: skip
    settings.check()
    return settings
