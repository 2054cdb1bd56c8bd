r"""Grids of a rule's hyper-parameters, as the ImbSAM paper's Figure 4: on digits or CIFAR-LT.

    python -m experiments.sweep --rule imbsam --grid eta 8 20 40 --grid rho 0.05 0.1 0.2 0.4 \
        --out runs/sweep

    python -m experiments.sweep cifar_lt --grid eta 20 60 100 --grid rho 0.01 0.05 0.1 \
        --val-per-class 5 --num-seeds 3 --model resnet32 --out runs/sweep_cifar

On the digits all seeds of a point run in one compiled program, and all points in the same one:
radii and class weights are its data. With `cifar_lt` all flags of that command are taken, and each
point and seed is a run folder, as OUT/eta_60_rho_0.05/seed_0; --resume goes on with a sweep that
was stopped, or with more values or seeds. A point whose loss is not finite is told and left out.
A setting, or SGD, is chosen by the accuracy, in the last epoch, on validation images that are
neither trained on nor tested on (class sizes are those of what is left); what the test set would
have chosen is shown beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

import numpy as np

from experiments import cifar_lt
from experiments.bench.folder import write_sweep
from experiments.bench.grid import Tried, named, points_of, summarise, table, verdict
from experiments.bench.tables import SPLITS
from experiments.bench.training import Bench, Job, Setup
from experiments.command import digits_flags, image_sweep, loss_flags, method_flags
from experiments.data.digits import load_digits_lt
from experiments.host import cli, locks, origin, outputs
from experiments.host.errors import Diverged, RunError
from experiments.run import compatible
from experiments.run.compatible import Asked
from experiments.run.parts import tail_of
from experiments.step.objectives import Objective

# Few, half of Medium and all of it are in the tail: the paper's 20, 60 and 100 of CIFAR100-LT.
GRIDS = {
    "digits": {"eta": [8.0, 20.0, 40.0], "rho": [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]},
    "cifar_lt": {"eta": [20.0, 60.0, 100.0], "rho": [0.01, 0.05, 0.1]},
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the experiment that the first word names, or of the digits."""
    argv = sys.argv[1:] if argv is None else argv
    experiment = argv[0] if argv and argv[0] in GRIDS else "digits"
    parser = arguments() if experiment == "digits" else image_arguments()
    args = cifar_lt.parse(parser, argv) if experiment != "digits" else parser.parse_args(argv)
    if args.experiment != experiment:
        what = "must be" if args.experiment in GRIDS else f"is not {' or '.join(GRIDS)},"
        parser.error(f"{args.experiment} {what} the first word")
    try:
        grid = grid_of(args)
    except RunError as error:
        parser.error(str(error))
    for name in grid if args.grid else ():
        for need in parser.needs[name]:
            if not need.met(args):
                parser.error(f"--grid {name} needs {need.words}: nothing would heed it")
    for flag in cli.given(parser, argv):
        name = flag.removeprefix("--").replace("-", "_")
        if name in grid:
            parser.error(f"{flag} beside --grid {name}, which gives its values")
    return args


def image_arguments() -> cli.Parser:
    """Those of cifar_lt, and the grid."""
    parser = cifar_lt.arguments()
    parser.description = "Train on long-tailed CIFAR at each point of a grid."
    parser.needs["grid"] = ()
    _add_grid(parser, "cifar_lt")
    return parser


def arguments() -> cli.Parser:
    """Those of the digits."""
    parser = cli.parser(
        "Train an MLP on long-tailed 8x8 digits at each point of a grid.",
        {**digits_flags.needs(), "grid": ()},
    )
    parser.add_argument(
        "--rule", default="imbsam",
        choices=sorted({*method_flags.rule_names()} - {"sgd", "cc_sam"}),
        help="whose grid; SGD is trained beside it",
    )  # fmt: skip
    _add_grid(parser, "digits")
    digits_flags.add_method(parser)
    loss_flags.add_arguments(parser.add_argument_group("loss"))
    digits_flags.add_training(parser)
    return parser


def _add_grid(parser: argparse.ArgumentParser, experiment: str) -> None:
    parser.add_argument(
        "experiment", nargs="?", default=experiment, type=cli.text,
        help=f"the first word, {' or '.join(GRIDS)}: what is trained; each has its own flags",
    )  # fmt: skip
    parser.add_argument(
        "--grid", action="append", nargs="+", metavar=("NAME", "VALUE"),
        help="a numeric flag of the rule and its values; give it once for each flag. The last is "
        "the figure's axis. Default, of what the rule takes: "
        + ", ".join(f"{name} {_shown(values)}" for name, values in GRIDS[experiment].items()),
    )  # fmt: skip


def _shown(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def grid_of(args: argparse.Namespace) -> dict[str, list[float]]:
    """Values by flag; a flag that the rule does not take, or that is no number, is refused."""
    if args.rule in ("sgd", "cc_sam"):
        raise RunError(
            f"--rule {args.rule} has no grid: SGD is trained beside any other rule, and cc_sam's "
            "radius comes from the class sizes"
        )
    if args.rho_schedule != "constant":
        raise RunError("a grid is of constant radii: leave --rho-schedule out")
    known, usual = _numeric_flags(args), GRIDS[args.experiment]
    defaults = [[name, *map(str, values)] for name, values in usual.items() if name in known]
    grid: dict[str, list[float]] = {}
    for name, *values in args.grid or defaults:
        name = name.lstrip("-").replace("-", "_")
        if name not in known or name in grid:
            what = "is given twice" if name in grid else f"is no numeric flag of {args.rule}"
            raise RunError(f"--grid {name} {what}; it has {', '.join(sorted(known))}")
        grid[name] = _values(name, values, known[name])
    if "eta" in grid and getattr(args, "sampling", None) == "stratified":
        raise RunError(
            "--grid eta with --sampling stratified would change how batches are drawn as well, "
            "and SGD's have no one eta: use --sampling natural, or one --eta a sweep"
        )
    if not grid:
        raise RunError(
            f"--rule {args.rule} takes neither {' nor '.join(usual)}, which have values of their "
            f"own: give --grid, of {', '.join(sorted(known))}"
        )
    return grid


def _numeric_flags(args: argparse.Namespace) -> dict[str, cli.number]:
    """Of the rule, those of a number: what each takes, by name."""
    types = {
        action.dest: action.type
        for action in image_arguments()._actions  # the digits' of a rule take the same
        if isinstance(action.type, cli.number)
    }
    known = {*method_flags.options_of(args.rule)}
    if args.experiment != "digits":  # there every point has a method of its own
        known |= {name for name in types if args.rule in method_flags.taken_by(name)}
    return {name: of for name, of in types.items() if name in known}


def _values(name: str, values: list[str], of: cli.number) -> list[float]:
    try:
        found = sorted({of(value) for value in values})
    except argparse.ArgumentTypeError as error:
        raise RunError(f"--grid {name} {error}") from error
    if not found:
        raise RunError(f"--grid {name} has no values: write --grid {name} 0.1 0.2")
    return found


def train(
    args: argparse.Namespace, seeds: list[int], points: list[dict[str, float]]
) -> list[Tried]:
    """SGD, then each point, on the digits."""
    bench = Bench([load_digits_lt(args.imbalance_factor, seed) for seed in seeds], seeds)
    counts, options = bench.class_counts, vars(args)
    steps = bench.steps_per_epoch(args.batch_size)
    loss, _ = loss_flags.build_loss(args.loss, counts, options, steps_per_epoch=steps)
    objective = Objective(loss, len(counts), args.mixup)
    settings = digits_flags.settings_of(args, args.loss)
    setup = Setup.of(settings, tail_of(bench.first, settings))
    sgd, _ = method_flags.build_method("sgd", counts, options, steps_per_epoch=steps)
    methods: list[Any] = [
        method_flags.build_method(args.rule, counts, {**options, **point}, steps_per_epoch=steps)[0]
        for point in points
    ]
    compatible.check(Asked(settings, methods[0], args.rule, steps_per_epoch=steps))
    # One method, and so one program: the others are its numbers.
    jobs = [
        Job(
            named(point), methods[0], objective, setup,
            numbers=[stage.numbers() for _, stage in method.stages()],
        )
        for point, method in zip(points, methods, strict=True)
    ]  # fmt: skip
    found = bench.train([Job(named({}), sgd, objective, setup), *jobs], "sweep")
    tried = []
    for point in ({}, *points):
        one = found[named(point)]
        if isinstance(one, Diverged):
            if not point:
                raise RunError(f"SGD, with which every point is compared: {one}")
            nothing = dict.fromkeys(SPLITS, np.full(len(seeds), np.nan))
            tried.append(Tried(point, nothing, nothing, str(one)))
            continue
        curve, params = one
        test = {split: curve.splits[split][-1] for split in SPLITS}
        tried.append(Tried(point, test, bench.validate(params, setup.classifier)))
    return tried


def main(args: argparse.Namespace) -> None:
    with contextlib.ExitStack() as opened:
        if args.experiment == "digits":
            out, seeds = digits_flags.checked(args)
            grid = grid_of(args)
            cli.use_compilation_cache()
            opened.enter_context(locks.Lock(out))
            tried = train(args, seeds, points_of(grid))
            outputs.clear_tables(out)
            origin.write_flags(out, args)
        else:
            out, grid = image_sweep.checked(args), grid_of(args)
            points = {named(point): point for point in points_of(grid)}
            found, seeds = image_sweep.train(
                args, points, SPLITS, opened, load=cifar_lt.load, make_plan=cifar_lt.make_plan
            )
            tried = [Tried(*values) for values in found]
        summary = summarise(tried, seeds)
        with outputs.writing(out):
            write_sweep(out, summary, grid, args.rule)
    print(table(summary, grid))
    print(verdict(summary))
    print(
        f"{cli.noun(len(seeds), 'seed')}; figure and tables are in {out}: sweep.png, sweep.csv, "
        "table.md"
    )


if __name__ == "__main__":
    cli.run(main, parse())
