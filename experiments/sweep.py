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
import csv
import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import cifar_lt
from experiments.command import loss_flags, method_flags
from experiments.command.method_flags import REMEMBERED
from experiments.digits_lt import (
    add_method_arguments,
    add_training_arguments,
    build_method,
    checked,
    needs,
    settings_of,
)
from experiments.host import cli
from experiments.host.errors import Diverged, RunError
from experiments.step import objectives

SPLITS = ("all", "many", "medium", "few")
# Few, half of Medium and all of it are in the tail: the paper's 20, 60 and 100 of CIFAR100-LT.
GRIDS = {
    "digits": {"eta": [8.0, 20.0, 40.0], "rho": [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]},
    "cifar_lt": {"eta": [20.0, 60.0, 100.0], "rho": [0.01, 0.05, 0.1]},
}


class Row(NamedTuple):
    """What a point of the grid did; accuracies are float[S] by split, in percent.

    Attributes:
      point: values by flag; {} is SGD.
      test, val: of the last epoch; NaN for a shot group without classes.
      diverged: why there are none at all, or None.
    """

    point: dict[str, float]
    test: dict[str, Any]
    val: dict[str, Any]
    diverged: str | None = None


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


def arguments() -> argparse.ArgumentParser:
    """Those of the digits."""
    parser = cli.parser(
        "Train an MLP on long-tailed 8x8 digits at each point of a grid.", {**needs(), "grid": ()}
    )
    parser.add_argument(
        "--rule", default="imbsam",
        choices=sorted({*method_flags.rule_names()} - {"sgd", "cc_sam"}),
        help="whose grid; SGD is trained beside it",
    )  # fmt: skip
    _add_grid(parser, "digits")
    add_method_arguments(parser).add_argument(
        "--memory", type=cli.number(least=0, below=1),
        help="remember ascent directions, with this decay",
    )  # fmt: skip
    loss_flags.add_arguments(parser.add_argument_group("loss"))
    add_training_arguments(parser)
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
    parser = arguments() if args.experiment == "digits" else image_arguments()
    types = {
        action.dest: action.type
        for action in parser._actions
        if isinstance(action.type, cli.number) and not (action.type.whole or action.nargs)
    }
    of_rule = method_flags.options_of(args.rule)
    known = {name for name in types if name in of_rule}
    if args.rule in REMEMBERED:
        known.add("memory")
    defaults = [
        [name, *map(str, values)]
        for name, values in GRIDS[args.experiment].items()
        if name in known
    ]
    grid: dict[str, list[float]] = {}
    for name, *values in args.grid or defaults:
        name = name.lstrip("-").replace("-", "_")
        if name not in known or name in grid:
            what = "is given twice" if name in grid else f"is no numeric flag of {args.rule}"
            raise RunError(f"--grid {name} {what}; it has {', '.join(sorted(known))}")
        try:
            grid[name] = sorted({types[name](value) for value in values})
        except argparse.ArgumentTypeError as error:
            raise RunError(f"--grid {name} {error}") from error
        if not values:
            raise RunError(f"--grid {name} has no values: write --grid {name} 0.1 0.2")
    return grid


def points_of(grid: dict[str, list[float]]) -> list[dict[str, float]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def named(point: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.12g}" for name, value in point.items()) or "sgd"


def train(args: argparse.Namespace, seeds: list[int], points: list[dict[str, float]]) -> list[Row]:
    """A row of SGD, then one of each point, of the digits."""
    from experiments.bench.training import Bench, Job
    from experiments.data.digits import load_digits_lt

    bench = Bench([load_digits_lt(args.imbalance_factor, seed) for seed in seeds], seeds)
    steps = {"steps_per_epoch": -(-bench.rows // args.batch_size)}
    loss, _ = loss_flags.build_loss(args.loss, bench.class_counts, vars(args), **steps)
    objective = objectives.Objective(loss, len(bench.class_counts), args.mixup)
    settings = settings_of(args, args.loss)
    sgd, _ = build_method("sgd", None, bench.class_counts, vars(args), **steps)
    found: list[Any] = []
    for point in points:
        options = {**vars(args), **point}
        found.append(
            build_method(args.rule, options["memory"], bench.class_counts, options, **steps)[0]
        )
    # One method, and so one program: the others are its numbers.
    jobs = [Job("sgd", sgd, objective, settings)] + [
        Job(
            named(point), found[0], objective, settings,
            numbers=[stage.numbers() for _, stage in method.stages()],
        )
        for point, method in zip(points, found, strict=True)
    ]  # fmt: skip
    result = bench.train(jobs, "sweep")
    rows = []
    for point, job in zip([{}, *points], jobs, strict=True):
        one = result[job.name]
        if isinstance(one, Diverged):
            if not point:
                raise RunError(f"SGD, with which every point is compared: {one}")
            nothing = dict.fromkeys(SPLITS, np.full(len(seeds), np.nan))
            rows.append(Row(point, nothing, nothing, str(one)))
            continue
        curve, params = one
        test = {split: curve.splits[split][-1] for split in SPLITS}
        rows.append(Row(point, test, bench.validate(params, settings.classifier)))
    return rows


def summarise(rows: list[Row], seeds: list[int]) -> list[dict[str, Any]]:
    """One object a point, SGD first; percent, means over seeds, differences paired with SGD.

    "best_val" and "best_test" mark the best row, SGD among them: a radius that loses to none is
    not chosen.
    """
    sgd = rows[0]
    summary: list[dict[str, Any]] = []
    for point, test, val, diverged in rows:
        row: dict[str, Any] = {"point": point, "seeds": seeds, "diverged": diverged}
        for name, values, base in (("test", test, sgd.test), ("val", val, sgd.val)):
            for split in SPLITS:
                difference = values[split] - base[split]
                spread = np.std(difference, ddof=1) if len(seeds) > 1 else np.nan
                row[f"{name}_{split}"] = _number(np.mean(values[split], dtype=np.float64))
                row[f"{name}_{split}_sgd"] = _number(np.mean(difference, dtype=np.float64))
                row[f"{name}_{split}_sgd_se"] = _number(spread / np.sqrt(len(seeds)))
            row[f"{name}_all_by_seed"] = [_number(value) for value in values["all"]]
        summary.append(row)
    for name in ("test", "val"):
        # SGD first, the rule with radius 0: of equals it is taken.
        whole = [row for row in summary if row["diverged"] is None]
        best = max(whole, key=lambda row: row[f"{name}_all"]) if len(whole) > 1 else None
        for row in summary:
            row[f"best_{name}"] = row is best
    return summary


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def table(summary: list[dict[str, Any]], grid: dict[str, list[float]]) -> str:
    """Markdown; what validation chose is bold."""
    heads = [*grid, "Many", "Medium", "Few", "All", "All - SGD", "Few - SGD", "val. All - SGD"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in summary:
        cells = [f"{row['point'][name]:g}" for name in grid] if row["point"] else ["SGD"]
        cells += [""] * (len(grid) - len(cells))
        cells += [_plain(row[f"test_{split}"]) for split in ("many", "medium", "few", "all")]
        cells += [
            "" if not row["point"] else _paired(row[f"{key}_sgd"], row[f"{key}_sgd_se"])
            for key in ("test_all", "test_few", "val_all")
        ]
        if row["diverged"] is not None:
            cells[-1] = "diverged"
        mark = "**" if row["best_val"] else ""
        lines.append("| " + " | ".join(f"{mark}{c}{mark}" if c else "" for c in cells) + " |")
    return "\n".join(lines)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _paired(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.1f}" + ("" if error is None else f" ± {error:.1f}")


def verdict(summary: list[dict[str, Any]]) -> str:
    """What validation chose, and what choosing on the test set would have shown instead."""
    lines = [
        f"Diverged, and not among the choices: {named(row['point'])} ({row['diverged']})."
        for row in summary
        if row["diverged"] is not None
    ]
    if len(lines) == len(summary) - 1:
        return "\n".join(
            [*lines, "No point was trained to its end: none is chosen, SGD alone is left."]
        )
    for name, words in (
        ("val", "Chosen by validation"),
        ("test", "Best on the test set, no result"),
    ):
        row = next(row for row in summary if row[f"best_{name}"])
        if not row["point"]:
            where = "validation" if name == "val" else "the test set"
            lines.append(f"{words}: SGD (rho 0), as no point was better than it on {where}.")
            continue
        gain = _paired(row["test_all_sgd"], row["test_all_sgd_se"])
        lines.append(f"{words}: {named(row['point'])}, All - SGD {gain} on the test set.")
    return "\n".join(lines)


def write(
    out: Path, summary: list[dict[str, Any]], grid: dict[str, list[float]], args: argparse.Namespace
) -> None:
    from experiments.host import folders

    folders.write_flags(out, args)
    folders.write_json(out / "summary.json", summary)
    folders.replace_text(out / "table.md", f"{table(summary, grid)}\n\n{verdict(summary)}\n")
    figures = [key for key, value in summary[0].items() if not isinstance(value, dict | list)]
    with open(out / "sweep.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", *grid, *figures])
        for row in summary:
            point = [row["point"].get(name, "") for name in grid]
            rule = args.rule if row["point"] else "sgd"
            writer.writerow([rule, *point, *(row[key] for key in figures)])
    draw(out / "sweep.png", summary, args.rule)


def draw(path: Path, summary: list[dict[str, Any]], rule: str) -> None:
    """The figure, from the objects of summary.json."""
    from experiments.reports import plots

    *others, last = summary[-1]["point"]
    lines: dict[str, Any] = {}
    for row in summary[1:]:
        name = ", ".join(f"{key} {row['point'][key]:g}" for key in others) or rule
        line = lines.setdefault(name, {"x": [], "chosen": None, "mean": {}, "se": {}})
        if row["best_val"]:
            line["chosen"] = len(line["x"])
        line["x"].append(row["point"][last])
        for split in SPLITS:
            for key, figure in (("mean", f"test_{split}"), ("se", f"test_{split}_sgd_se")):
                value = np.nan if row[figure] is None else row[figure]
                line[key].setdefault(split, []).append(value)
    levels = {
        s: np.nan if summary[0][f"test_{s}"] is None else summary[0][f"test_{s}"] for s in SPLITS
    }
    plots.sweep(path, last, lines, levels, sgd_chosen=summary[0]["best_val"])


def main(args: argparse.Namespace) -> None:
    from experiments.command import image_sweep as sweep_images
    from experiments.host import folders

    with contextlib.ExitStack() as opened:
        if args.experiment == "digits":
            out, seeds = checked(args)
            grid = grid_of(args)
            cli.use_compilation_cache()
            opened.enter_context(folders.Lock(out))
            rows = train(args, seeds, points_of(grid))
        else:
            out, grid = sweep_images.checked(args), grid_of(args)
            points = {named(point): point for point in points_of(grid)}
            found, seeds = sweep_images.train(
                args, points, SPLITS, opened, load=cifar_lt.load, make_plan=cifar_lt.make_plan
            )
            rows = [Row(*values) for values in found]
        summary = summarise(rows, seeds)
        with folders.writing(out):
            write(out, summary, grid, args)
    print(table(summary, grid))
    print(verdict(summary))
    print(
        f"{cli.noun(len(seeds), 'seed')}; figure and tables are in {out}: sweep.png, sweep.csv, "
        "table.md"
    )


if __name__ == "__main__":
    cli.run(main, parse())
