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
import csv
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command import loss_flags, method_flags, stage2
from experiments.command.method_flags import REMEMBERED
from experiments.host import cli
from experiments.host.errors import Diverged, RunError, check_seed
from experiments.host.needs import Need, Needs, always, one_of
from experiments.reports.figures import number
from experiments.run.settings import Settings

SPLITS = ("all", "many", "medium", "few")
# A class of the digits is Many above the first, Few below the second.
SHOTS = (40, 9)


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Train an MLP on long-tailed 8x8 digits under several rules.",
        {**needs(), **stage2.needs(), **dict.fromkeys(_OF_STATISTICS, (_STATISTICAL,))},
    )
    parser.add_argument(
        "--rule", nargs="+", default=["sgd", "sam", "imbsam"], choices=method_flags.rule_names(),
        help="how gradients are taken, a row each",
    )  # fmt: skip
    add_method_arguments(parser).add_argument(
        "--memory", type=cli.number(least=0, below=1), nargs="+", default=[],
        help="sam, reweighted_sam, imbsam, focal_sam: train also with a remembered ascent "
        "direction (imbsam_jax.remembered), a row for each of these decays",
    )  # fmt: skip
    loss_flags.add_arguments(parser.add_argument_group("loss"), several=True)
    stage2.add_arguments(parser.add_argument_group("second stage"))
    add_training_arguments(parser)
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
        "memory": (one_of("rule", REMEMBERED),),
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
    from experiments.host.folders import holds_something

    out = Path(args.out)
    if holds_something(out) and not args.overwrite:
        raise RunError(f"{out} is not empty: pass --overwrite, or choose another --out")
    seeds = args.seeds or list(range(args.num_seeds))
    check_seed(*seeds)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"--seeds must be different numbers; got {seeds}")
    return out, seeds


def settings_of(args: argparse.Namespace, loss_name: str) -> Settings:
    settings = Settings(
        epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, schedule="cosine",
        momentum=args.momentum, weight_decay=args.weight_decay, mixup=args.mixup,
        weight_decay_inside=args.weight_decay_inside,
        classifier=loss_flags.classifier_for(loss_name, vars(args)),
    )  # fmt: skip
    settings.check()
    return settings


def build_method(
    rule: str, memory: float | None, counts: np.ndarray, options: dict[str, Any], **steps: int
) -> tuple[Any, dict[str, Any]]:
    """`method_flags.build_method`, remembered where there is a decay for the memory."""
    method, described = method_flags.build_method(rule, counts, options, **steps)
    if memory is not None:
        method = method_flags.remembering(method, memory)
    return method, {**described, "memory": memory}


def train(args: argparse.Namespace, datasets: list[Any], seeds: list[int]) -> list[Row]:
    """Trains every rule with every loss side by side, then each second stage of each."""
    import jax

    from experiments.bench.training import Bench, Job
    from experiments.step.objectives import Objective

    options = vars(args)
    bench = Bench(datasets, seeds)
    steps_per_epoch = -(-bench.rows // args.batch_size)
    jobs, described = [], {}
    for loss_name in args.loss:
        loss, of_loss = loss_flags.build_loss(
            loss_name, bench.class_counts, options, steps_per_epoch=steps_per_epoch
        )
        settings = settings_of(args, loss_name)
        for rule, memory in itertools.product(args.rule, [None, *args.memory]):
            if memory is not None and rule not in REMEMBERED:
                continue
            method, of_method = build_method(
                rule, memory, bench.class_counts, options, steps_per_epoch=steps_per_epoch
            )
            objective = Objective(loss, len(bench.class_counts), args.mixup)
            name = rule if memory is None else f"{rule} with memory {memory:g}"
            job = Job(f"{name}, {loss_name}", method, objective, settings)
            jobs.append(job)
            described[job.name] = {**of_method, **of_loss, "stage2": None, "stage2_args": {}}
    stages = {
        (job.name, name): stage2.make(
            name, {**options, "rule": described[job.name]["rule"]},
            class_counts=bench.class_counts, first=job.settings, steps_per_epoch=steps_per_epoch,
        )
        for job in jobs
        for name in dict.fromkeys(args.stage2)
    }  # fmt: skip
    found = bench.train(jobs, "training")
    lost = [one for one in found.values() if isinstance(one, Diverged)]
    if len(lost) == len(found):
        raise RunError(f"{lost[0]}; no row was trained to its end, and nothing was written")
    rows = [_row(described[name], one) for name, one in found.items()]
    fresh = bench.fresh(draw=1)
    for (name, stage_name), stage in stages.items():
        first = found[name]
        if isinstance(first, Diverged):
            rows.append(_row(described[name] | stage.description, first))
            continue
        job = Job(
            f"{name}, then {stage_name}",
            stage.method,
            Objective(
                stage.loss, len(bench.class_counts), 0.0,
                train_statistics=stage.settings.statistics == "updated", adversary=stage.adversary,
            ),
            stage.settings,
            jax.vmap(stage.start)(first[1], fresh),
        )  # fmt: skip
        rows.append(
            _row(described[name] | stage.description, bench.train([job], job.name)[job.name])
        )
    return rows


class Row(NamedTuple):
    """A line of the table: what was run, and what it did."""

    # rule, rule_args, ascent, memory, loss, loss_args, stage2, stage2_args
    description: dict[str, Any]
    curve: Any  # None where it diverged
    diverged: str | None = None


def _row(description: dict[str, Any], found: Any) -> Row:
    if isinstance(found, Diverged):
        return Row(description, None, str(found))
    return Row(description, found[0])


def names(descriptions: list[dict[str, Any]]) -> list[str]:
    """Each row's rule, the decay of its memory, its loss where there are several, its stage 2."""
    several = len({row["loss"] for row in descriptions}) > 1
    return [
        row["rule"]
        + (f" m{row['memory']:g}" if row.get("memory") is not None else "")
        + (f" {row['loss']}" if several else "")
        + (f" > {row['stage2']}" if row["stage2"] else "")
        for row in descriptions
    ]


def is_base(row: dict[str, Any], descriptions: list[dict[str, Any]]) -> bool:
    """What differences are taken to: SGD with the first loss named, without a second stage."""
    return (row["rule"], row["loss"], row["stage2"]) == ("sgd", descriptions[0]["loss"], None)


def summarise(rows: list[Row], seeds: list[int]) -> list[dict[str, Any]]:
    """One object a row; figures are of the last epoch, means over seeds, in percent."""
    described = [row.description for row in rows]
    sgd = next((row.curve for row in rows if is_base(row.description, described)), None)
    result = []
    nothing = dict.fromkeys(("all", "many", "medium", "few"), np.full(len(seeds), np.nan))
    for description, curve, diverged in rows:
        last = nothing
        if curve is not None:
            last = {split: values[-1] for split, values in curve.splits.items()}
        row: dict[str, Any] = {**description, "seeds": seeds, "diverged": diverged}
        for split, values in last.items():
            row[split], row[f"{split}_sd"] = _mean(values), _deviation(values)
            row[f"{split}_by_seed"] = None if np.isnan(values).any() else values.tolist()
        for split in ("all", "few"):
            paired = None if sgd is None else last[split] - sgd.splits[split][-1]
            row[f"paired_{split}"] = _mean(paired)
            deviation = _deviation(paired)
            row[f"paired_{split}_se"] = (
                None if deviation is None else deviation / float(np.sqrt(len(seeds)))
            )
        row["epoch_seconds"] = None if curve is None else float(np.median(curve.seconds))
        row["step_cost_ratio"] = None
        if sgd is not None and curve is not None and description["stage2"] is None:
            row["step_cost_ratio"] = float(np.median(curve.seconds / sgd.seconds))
        result.append(row)
    return result


def _mean(values: np.ndarray | None) -> float | None:
    if values is None or np.isnan(values).any():
        return None
    return float(np.mean(values, dtype=np.float64))


def _deviation(values: np.ndarray | None) -> float | None:
    """Sample standard deviation over seeds; none for a single seed."""
    if values is None or len(values) < 2 or np.isnan(values).any():
        return None
    return float(np.std(values, ddof=1, dtype=np.float64))


def show(summary: list[dict[str, Any]], args: argparse.Namespace) -> None:
    title = f"accuracy (%), long-tailed digits, imbalance factor {args.imbalance_factor:g}"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))  # fits in 80 columns
    table.add_column("rule", no_wrap=True)
    for name in ("Many", "Medium", "Few", "All", "All-SGD", "Few-SGD", "cost"):
        table.add_column(name, justify="right", no_wrap=True)

    def pm(value: float | None, spread: float | None, sign: str = "") -> str:
        if value is None:
            return "-"
        return f"{value:{sign}.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    for name, row in zip(names(summary), summary, strict=True):
        splits = [pm(row[s], row[f"{s}_sd"]) for s in ("many", "medium", "few", "all")]
        paired = [
            "" if is_base(row, summary) else pm(row[f"paired_{s}"], row[f"paired_{s}_se"], "+")
            for s in ("all", "few")
        ]
        table.add_row(name, *splits, *paired, number(row["step_cost_ratio"], 2))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    for name, row in zip(names(summary), summary, strict=True):
        if row["diverged"] is not None:
            console.print(f"{name} diverged: {row['diverged']}", style="bold", markup=False)
    console.print(
        f"{cli.noun(len(summary[0]['seeds']), 'seed')}, last epoch; mean ± standard deviation over "
        "seeds.\n"
        f"Differences to SGD with {summary[0]['loss']} are paired by seed, mean ± standard error.\n"
        "Cost: time of a step over SGD's, median of interleaved calls.",
        style="dim",
    )


def write(
    out: Path, rows: list[Row], summary: list[dict[str, Any]], counts: np.ndarray,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    from experiments.host import folders

    folders.write_flags(out, args)
    named = names([row.description for row in rows])
    curves = {
        name: row.curve for name, row in zip(named, rows, strict=True) if row.curve is not None
    }
    with open(out / "per_class.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "class", "train_examples", "accuracy"])
        for name, curve in curves.items():
            accuracy = 100 * (curve.correct / curve.total).mean(axis=0)
            for c, n in enumerate(counts):
                writer.writerow([name, c, int(n), f"{accuracy[c]:.4f}"])
    write_curves(out / "curves.csv", curves)
    folders.write_json(out / "summary.json", summary)
    redraw(out)


def write_curves(path: Path, curves: dict[str, Any]) -> None:
    """Test accuracies by epoch, means over seeds, of each row of the table."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "epoch", *SPLITS])
        for name, curve in curves.items():
            means = [curve.splits[split].mean(axis=1) for split in SPLITS]
            for epoch, *values in zip(curve.epochs, *means, strict=True):
                writer.writerow([name, epoch, *(f"{value:.4f}" for value in values)])


def redraw(out: Path) -> list[Path]:
    """The plots of a folder from its files; which were made."""
    from experiments.reports import plots

    summary = json.loads((out / "summary.json").read_text())
    named = dict(zip(names(summary), summary, strict=True))
    rows = {name: (_panel(row), _line(row)) for name, row in named.items()}
    one = len({panel for panel, _ in rows.values()}) == 1
    seeds, made = len(summary[0]["seeds"]), []

    def panels(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, (panel, line) in rows.items():
            if name in values:
                found.setdefault("" if one else panel, {})[line] = values[name]
        return found

    classes = _by_rule(out / "per_class.csv")
    counts = [int(row["train_examples"]) for row in next(iter(classes.values()))]
    by_class = {n: [float(row["accuracy"]) for row in of] for n, of in classes.items()}
    made.append(out / "per_class.png")
    plots.classes_by_rule(made[-1], counts, panels(by_class), SHOTS, seeds)
    if (out / "curves.csv").exists():
        by_epoch = {
            name: (
                [int(row["epoch"]) for row in of],
                {split: [float(row[split]) for row in of] for split in ("all", "few")},
            )
            for name, of in _by_rule(out / "curves.csv").items()
        }
        made.append(out / "curves.png")
        plots.curves_by_rule(made[-1], panels(by_epoch), seeds)
    against = [row for row in summary if is_base(row, summary)]
    if against and len(summary) > 1:
        gains = {
            split: {
                name: (row[f"paired_{split}"], row[f"paired_{split}_se"])
                for name, row in named.items()
                if not is_base(row, summary)
            }
            for split in ("all", "few")
        }
        made.append(out / "gains.png")
        plots.gains_by_rule(made[-1], gains, f"SGD's with {summary[0]['loss']}", seeds)
    return made


def _by_rule(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["rule"], []).append(row)
    return found


def _panel(row: dict[str, Any]) -> str:
    """What its plots share with others: the loss, and a second stage."""
    return row["loss"] + (f", then {row['stage2']}" if row["stage2"] else "")


def _line(row: dict[str, Any]) -> str:
    memory = row.get("memory")
    return row["rule"] + (f" m{memory:g}" if memory is not None else "")


def main(args: argparse.Namespace) -> None:
    out, seeds = checked(args)
    args.rule, args.loss, args.memory = (
        list(dict.fromkeys(names)) for names in (args.rule, args.loss, args.memory)
    )
    cli.use_compilation_cache()
    from experiments.data.digits import load_digits_lt
    from experiments.host import folders

    datasets = [load_digits_lt(args.imbalance_factor, seed) for seed in seeds]
    with folders.Lock(out):
        rows = train(args, datasets, seeds)
        summary = summarise(rows, seeds)
        with folders.writing(out):
            write(out, rows, summary, datasets[0].class_counts(), args)
    show(summary, args)
    print(f"summary, tables and plots are in {out}: summary.json, per_class.png, curves.png")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
