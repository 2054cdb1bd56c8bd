r"""The main job for someone with no data and no GPU: long-tailed digits, under two minutes.

    python -m experiments.digits_lt --out runs/digits

    python -m experiments.digits_lt --rule sgd imbsam --loss cross_entropy logit_adjusted \
        --stage2 crt tau-norm --out runs/more

scikit-learn's 8x8 digits are made long-tailed (which digit is rare is drawn by the seed) and a
small MLP is trained under each rule, all seeds in one compiled program. Seed s of one rule has
the same data, initial weights and batches as seed s of another, so differences are paired.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from experiments.bench import tables
from experiments.bench.folder import write_params, write_table
from experiments.bench.jobs import Planned, train
from experiments.bench.training import Bench, Job, Setup
from experiments.command import loss_flags, method_flags, stage2
from experiments.command.seeds import seeds_of
from experiments.data import Dataset
from experiments.data.digits import load_digits_lt
from experiments.host import cli, locks, origin, outputs
from experiments.host.needs import Need, Needs, always
from experiments.run import compatible
from experiments.run.compatible import Asked
from experiments.run.parts import tail_of
from experiments.run.settings import Settings
from experiments.step.objectives import Objective


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Train an MLP on long-tailed 8x8 digits under several rules.",
        {**needs(), **stage2.needs(), "save": (), **dict.fromkeys(_OF_STATISTICS, (_STATISTICAL,))},
    )
    parser.add_argument(
        "--rule", nargs="+", default=["sgd", "sam", "imbsam"], choices=method_flags.rule_names(),
        help="how gradients are taken, a row each",
    )  # fmt: skip
    add_method_arguments(parser)
    loss_flags.add_arguments(parser.add_argument_group("loss"), several=True)
    stage2.add_arguments(parser.add_argument_group("second stage"))
    add_training_arguments(parser)
    parser.add_argument(
        "--save", action="store_true",
        help="keep the final parameters of all seeds, for `python -m experiments.analyse`",
    )  # fmt: skip
    return parser


_OF_STATISTICS = ("running_statistics", "stage2_statistics")
_STATISTICAL = Need(
    lambda args: False, "a model with batch normalisation, and the digits' MLP has none"
)


def needs() -> Needs:
    """When each flag of training is heeded, of the digits' sweep, too."""
    return {
        **always(
            "imbalance_factor", "epochs", "batch_size", "lr", "momentum", "weight_decay",
            "num_seeds", "seeds", "out", "overwrite", "rule",
        ),
        **method_flags.needs(),
        **loss_flags.needs(),
        "running_statistics": (_STATISTICAL,),
    }  # fmt: skip


def add_method_arguments(parser: argparse.ArgumentParser) -> Any:
    """The flags of every method, in the group that is returned."""
    # gamma and strength are Focal-SAM's for ten classes, the noise ratio is CC-SAM's as shipped: a
    # larger one breaks training here (results/digits_lt/README.md). Radii and eta are a guess.
    group = parser.add_argument_group("method")
    method_flags.add_arguments(
        group,
        rho=0.2, eta=20.0, gamma=3.0, strength=0.5, head_rho=0.1, tail_rho=0.2, noise_ratio=1e-6,
    )  # fmt: skip
    return group


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
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


def setup_of(settings: Settings, dataset: Dataset) -> Setup:
    """Those of the settings that the bench has; decay in the perturbed loss is the method's."""
    tail = tail_of(dataset, settings)
    same = {name: getattr(settings, name) for name in Setup._fields if name != "tail"}
    if settings.weight_decay_inside:
        same["weight_decay"] = 0.0
    return Setup(**same, tail=() if tail is None else tuple(tail.tolist()))


def planned(args: argparse.Namespace, dataset: Dataset) -> list[Planned]:
    """Every rule with every loss, then each second stage of each; refuses what is not for them."""
    firsts: list[Planned] = []
    seconds: list[Planned] = []
    for loss, rule in itertools.product(args.loss, args.rule):
        settings = settings_of(args, loss)
        first = first_stage(args, dataset, settings, rule, loss)
        firsts.append(first)
        seconds += [
            second_stage(args, dataset, settings, first, name)
            for name in dict.fromkeys(args.stage2)
        ]
    return firsts + seconds


def first_stage(
    args: argparse.Namespace, dataset: Dataset, settings: Settings, rule: str, loss_name: str
) -> Planned:
    counts, steps = dataset.class_counts(), _steps_per_epoch(args, dataset)
    loss, of_loss = loss_flags.build_loss(loss_name, counts, vars(args), steps_per_epoch=steps)
    method, of_method = method_flags.build_method(rule, counts, vars(args), steps_per_epoch=steps)
    priors = loss_flags.priors_of(loss_name)
    compatible.check(Asked(settings, method, rule, priors, steps_per_epoch=steps))
    objective = Objective(loss, len(counts), args.mixup)
    job = Job(f"{rule}, {loss_name}", method, objective, setup_of(settings, dataset))
    return Planned(job, {**of_method, **of_loss, "stage2": None, "stage2_args": {}})


def second_stage(
    args: argparse.Namespace, dataset: Dataset, settings: Settings, first: Planned, name: str
) -> Planned:
    """That of this name after a first stage with these settings."""
    counts = dataset.class_counts()
    stage = stage2.make(
        name, {**vars(args), "rule": first.description["rule"]}, class_counts=counts,
        first=settings, steps_per_epoch=_steps_per_epoch(args, dataset),
    )  # fmt: skip
    after = Asked(
        settings, first.job.method, first.description["rule"],
        loss_flags.priors_of(first.description["loss"]),
        steps_per_epoch=_steps_per_epoch(args, dataset),
    )  # fmt: skip
    compatible.check(stage2.asked(name, stage, after))
    objective = Objective(
        stage.loss, len(counts), adversary=stage.adversary,
        train_statistics=stage.settings.statistics == "updated",
    )  # fmt: skip
    setup = setup_of(stage.settings, dataset)
    job = Job(f"{first.job.name}, then {name}", stage.method, objective, setup)
    return Planned(job, first.description | stage.description, first.job.name, stage.start)


def _steps_per_epoch(args: argparse.Namespace, dataset: Dataset) -> int:
    return -(-len(dataset.train_labels) // args.batch_size)


# Of config.json, what decides no network.
_FREE = ("out", "overwrite", "save")


def main(args: argparse.Namespace) -> None:
    out, seeds = checked(args)
    args.rule, args.loss = (list(dict.fromkeys(names)) for names in (args.rule, args.loss))
    cli.use_compilation_cache()
    datasets = [load_digits_lt(args.imbalance_factor, seed) for seed in seeds]
    plan = planned(args, datasets[0])
    with locks.Lock(out):
        lines = train(Bench(datasets, seeds), plan)
        summary = tables.summarise(lines, seeds)
        with outputs.writing(out):
            outputs.clear_tables(out)
            origin.write_flags(out, args)
            if args.save:
                write_params(
                    out, lines, seeds=seeds, datasets=datasets,
                    config={k: v for k, v in vars(args).items() if k not in _FREE},
                )  # fmt: skip
            write_table(out, lines, summary, datasets[0].class_counts())
    tables.show(summary, f"long-tailed digits, imbalance factor {args.imbalance_factor:g}")
    print(f"summary, tables and plots are in {out}: summary.json, per_class.png, curves.png")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
