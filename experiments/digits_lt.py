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

from experiments.bench import tables
from experiments.bench.folder import write_params, write_table
from experiments.bench.jobs import Planned, train
from experiments.bench.training import Bench, Job, Setup
from experiments.command import digits_flags, loss_flags, method_flags, stage2
from experiments.data import Dataset
from experiments.data.digits import load_digits_lt
from experiments.host import cli, locks, origin, outputs
from experiments.run import compatible
from experiments.run.compatible import Asked
from experiments.run.parts import tail_of
from experiments.run.settings import Settings
from experiments.step.objectives import Objective


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Train an MLP on long-tailed 8x8 digits under several rules.",
        {
            **digits_flags.needs(),
            **stage2.needs(),
            "save": (),
            "stage2_statistics": (digits_flags.NO_STATISTICS,),
        },
    )
    parser.add_argument(
        "--rule", nargs="+", default=["sgd", "sam", "imbsam"], choices=method_flags.rule_names(),
        help="how gradients are taken, a row each",
    )  # fmt: skip
    digits_flags.add_method(parser)
    loss_flags.add_arguments(parser.add_argument_group("loss"), several=True)
    stage2.add_arguments(parser.add_argument_group("second stage"))
    digits_flags.add_training(parser)
    parser.add_argument(
        "--save", action="store_true",
        help="keep the final parameters of all seeds, for `python -m experiments.analyse`",
    )  # fmt: skip
    return parser


def planned(args: argparse.Namespace, dataset: Dataset) -> list[Planned]:
    """Every rule with every loss, then each second stage of each; refuses what is not for them."""
    firsts: list[Planned] = []
    seconds: list[Planned] = []
    for loss, rule in itertools.product(args.loss, args.rule):
        settings = digits_flags.settings_of(args, loss)
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
    setup = Setup.of(settings, tail_of(dataset, settings))
    job = Job(f"{rule}, {loss_name}", method, objective, setup)
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
    setup = Setup.of(stage.settings, tail_of(dataset, stage.settings))
    job = Job(f"{first.job.name}, then {name}", stage.method, objective, setup)
    return Planned(job, first.description | stage.description, first.job.name, stage.start)


def _steps_per_epoch(args: argparse.Namespace, dataset: Dataset) -> int:
    return -(-len(dataset.train_labels) // args.batch_size)


# Of config.json, what decides no network.
_FREE = ("out", "overwrite", "save")


def main(args: argparse.Namespace) -> None:
    out, seeds = digits_flags.checked(args)
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
