r"""Does it help on my data? Methods for imbalanced classes side by side, tuned alike.

    python -m experiments.compare --data mine.csv --label species --out runs/mine

    python -m experiments.compare --out runs/digits        # scikit-learn's digits, long-tailed

A small network is trained under every rule and loss on repeated splits of a table (.csv, .tsv,
.parquet, .npz). Learning rate, weight decay and what each method has of its own are chosen inside
each split, by folds of the rows that are not tested, equally many settings for every method.
Figures are of test rows; differences are paired by split, with intervals that account for
overlapping training sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench import compare_kept, compare_read, snippet, unseen
from experiments.bench.compare_jobs import Jobs
from experiments.bench.comparison import Engine, Recipe, steps_for
from experiments.bench.references import REFERENCES
from experiments.command import candidates as offered
from experiments.data import files
from experiments.host import cli, folders, locks, origin, outputs
from experiments.host.errors import RunError, Stopped, flag
from experiments.host.needs import Need, Needs, always, beside, one_of
from experiments.host.spent import Spent
from experiments.host.stopping import StopNow, StopRequest
from experiments.reports import compare_folder, compare_page, compare_table


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Compare methods for imbalanced classes on a table, tuned alike.", needs())
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
        "--reference", nargs="*", choices=[*REFERENCES], default=["trees", "logistic"],
        help="scikit-learn's models, not tuned, beside them",
    )  # fmt: skip
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
    net = parser.add_argument_group("network and training")
    net.add_argument("--model", choices=["mlp", "linear"], default="mlp", help="what is trained")
    net.add_argument("--width", type=cli.counted(4096), default=64, help="of a hidden layer, units")
    net.add_argument("--depth", type=cli.counted(16), default=2, help="hidden layers")
    net.add_argument(
        "--epochs", type=cli.counted(),
        help="default: 15, at least 400 steps and at most 1000",
    )  # fmt: skip
    net.add_argument("--batch-size", type=cli.counted(), default=64, help="rows")
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
    return parser


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


def needs() -> Needs:
    """When each flag is heeded."""
    compared = Need(
        lambda args: args.save or not args.predict,
        "--save beside --predict, which alone compares nothing",
    )
    tuned = Need(_is_tuned, "--tune")
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


# What decides no figure.
_NOT_COMPARED = ("out", "overwrite", "resume", "save", "predict")
# Of the files, that a comparison is gone on with on the rows that it was begun with.
CONFIG, DIGESTS = "config.json", "data_sha256"


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """What stands in summary.json; None where rows are only predicted."""
    out = Path(args.out)
    locks.check_out(out)
    _check_inputs(out, args)
    if args.predict and not args.save:
        compare_kept.check_there(out)
        with locks.Lock(out):
            _predict(args, out)
        return None
    args.tune = _is_tuned(args)
    config = {key: value for key, value in vars(args).items() if key not in _NOT_COMPARED}
    config[DIGESTS] = files.digests(args.data, args.test)
    _check(out, config, args)
    summary = _finished(out, args) if args.resume else None
    if summary is not None:
        if not (out / compare_page.PAGE).exists():  # stopped while it was drawn
            with locks.Lock(out):
                compare_page.draw(out)
        print(f"{out} is finished: {summary['verdict']}")
        return summary
    cli.use_compilation_cache()
    with StopRequest() as stop, locks.Lock(out):
        if not args.resume:
            outputs.clear_tables(out)
        outputs.write_json(out / CONFIG, config)
        spent = Spent(out / SPENT)
        try:
            summary = _compare(args, config, out, stop, spent)
        except StopNow:
            raise Stopped(
                f"stopped; finished jobs are kept in {out}: the same command with --resume goes on",
                stop.exit_code or 130,
            ) from None
        finally:
            outputs.write_json(out / SPENT, spent.now())
        if args.predict:
            _predict(args, out)
    return summary


def _is_tuned(args: argparse.Namespace) -> bool:
    """Unless said otherwise: a first look, without data, is to take less than a minute."""
    return bool(args.data) if args.tune is None else bool(args.tune)


def _finished(out: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """summary.json where nothing is left to make; what is there and damaged is refused."""
    wanted = (compare_folder.SUMMARY, compare_folder.RUNS, SNIPPET)
    if args.predict or not all((out / name).exists() for name in wanted):
        return None
    summary, _ = compare_folder.read(out)
    return summary if not args.save or compare_kept.is_whole(out) else None


def _check_inputs(out: Path, args: argparse.Namespace) -> None:
    """Refuses to read what is written, or cleared, before or after it is read."""
    for name in ("data", "test", "predict"):
        path = getattr(args, name)
        if path and outputs.is_of_table(out, Path(path)):
            raise RunError(
                f"{flag(name)} {path} is what a comparison in {out} writes: name another file, or "
                "choose another --out"
            )


def _predict(args: argparse.Namespace, out: Path) -> None:
    found = compare_kept.predict(out, args.predict)
    outputs.replace_text(out / PREDICTIONS, found.to_csv(index=False))
    print(f"{cli.noun(len(found), 'row')} predicted in {out / PREDICTIONS}")


SNIPPET, PREDICTIONS, SPENT = "snippet.py", "predictions.csv", "spent.json"


def _check(out: Path, config: dict[str, Any], args: argparse.Namespace) -> None:
    if not locks.holds_something(out) or args.overwrite:
        return
    if not args.resume:
        raise RunError(
            f"{out} is not empty: pass --resume to go on, --overwrite, or choose another --out"
        )
    if not (out / CONFIG).exists():
        raise RunError(f"{out} holds no comparison to go on with: choose another --out")
    try:
        before = outputs.read_object(out / CONFIG)
    except RunError as error:
        raise RunError(f"{error}: pass --overwrite, or choose another --out") from error
    if before.get(DIGESTS) not in (None, config[DIGESTS]):
        raise RunError(
            f"{out} was begun with other rows than are in {args.data or args.test} now: choose "
            "another --out"
        )
    what = folders.different({**before, DIGESTS: None}, {**config, DIGESTS: None})
    if what:
        raise RunError(f"{out} holds another comparison ({what}): choose another --out")


def _compare(
    args: argparse.Namespace, config: dict[str, Any], out: Path, stop: StopRequest, spent: Spent
) -> dict[str, Any]:
    table, splits, cut = compare_read.read(vars(args))
    notes = list(table.notes)
    rows = _rows(args, table, splits, notes)
    train = len(splits[0].train)
    net = compare_read.net(vars(args), table)
    steps = steps_for(train, args.batch_size, args.epochs)
    recipe = Recipe(net, steps, args.batch_size, args.folds if args.tune else 0, args.seed)
    notes += unseen.notes(table, splits, recipe)
    for note in notes:
        print(f"note: {note}")
    keep = config if args.save else None
    jobs = Jobs(table, splits, recipe, rows, args.reference, out, keep=keep)
    records, diverged = jobs.run(stop.check)
    about = {
        "seed": args.seed, "splits": args.splits, "tuned": args.tune,
        "settings": args.settings if args.tune else 1, "folds": recipe.folds,
        "model": {"name": args.model, "width": args.width, "depth": net.depth},
        "steps": steps, "batch_size": min(args.batch_size, train), "cut": cut,
        "perturb": args.perturb, "grid": {row.name: row.points for row in rows},
        "confidence": compare_folder.CONFIDENCE, "notes": notes + diverged,
        **spent.now(), "command": origin.command_line(), **origin.environment(),
    }  # fmt: skip
    summary = compare_folder.write(
        out, records, table, train_counts=jobs.scale.counts.tolist(),
        thresholds=jobs.scale.thresholds, about=about,
    )  # fmt: skip
    try:
        _hand_on(args, out, table, recipe, rows, summary["best"] or compare_folder.BASELINE, cut)
    finally:  # what is measured is shown, also where no network can be handed on
        compare_page.draw(out)
    compare_table.show(summary)
    print(f"in {out}: report.html, summary.json, runs.csv, figures, and {SNIPPET}, which trains it")
    return summary


def _hand_on(
    args: argparse.Namespace,
    out: Path,
    table: Any,
    recipe: Recipe,
    rows: list[Any],
    best: str,
    cut: float | None,
) -> None:
    """The row that is to be used, with settings chosen by all rows: as Python, and kept."""
    part, fitted = compare_kept.all_rows(table, args.splits, args.seed, cut)
    row = _allowed(rows, best, _weighed_counts(table, part.train))
    point = row.points[0]
    if recipe.folds:
        engine = Engine(table.labels, table.weighed, recipe, [row], ids=table.ids)
        ((point,), _) = engine.choose(part, [row])
    row = row._replace(points=[point])
    counts = _weighed_counts(table, part.train)
    given = {"text": args.text, "group": args.group, "id": args.id, "test": args.test}
    read = [repr(args.data or compare_read.BUNDLED)] + [repr(args.label)] * (args.label is not None)
    read += [f"{name}={value!r}" for name, value in given.items() if value]
    text = snippet.program(
        row, row.described(counts, point), recipe, source=table.name, read=", ".join(read),
        groups=offered.gsa_groups(counts),
        cut="" if cut is None else f", cut={cut!r}, seed={args.seed}",
    )  # fmt: skip
    outputs.replace_text(out / SNIPPET, text)
    if args.save:
        compare_kept.save(out, table, part, fitted, recipe, row)


def _allowed(rows: list[Any], best: str, counts: Any) -> Any:
    """The row of that name; the baseline where the rule is none of the counts of all rows."""
    (row,) = (row for row in rows if row.name == best)
    try:
        for point in row.points:
            row.method(counts, point)
    except (RunError, ValueError) as error:
        print(
            f"note: {compare_folder.BASELINE} is handed on, for {best} was of other counts: {error}"
        )
        (row,) = (row for row in rows if row.name == compare_folder.BASELINE)
    return row


def _weighed_counts(table: Any, rows: Any) -> Any:
    """int[G], at least 1: with ids a split may lack a class."""
    return np.maximum(np.bincount(table.weighed[rows], minlength=len(table.weighed_names)), 1)


def _rows(args: argparse.Namespace, table: Any, splits: list[Any], notes: list[str]) -> list[Any]:
    """The rows that can be trained on these counts; of the others a note."""
    fixed = {name: getattr(args, name) for name in _HELP if getattr(args, name) is not None}
    asked = list(dict.fromkeys(["sgd", *args.rule]))
    losses = list(dict.fromkeys(["cross_entropy", *args.loss]))
    found = offered.candidates(
        asked, losses, settings=args.settings if args.tune else 1, fixed=fixed,
        samplings=args.sampling, perturb=args.perturb,
    )  # fmt: skip
    rows = []
    refused: dict[str, str] = {}
    for row in found:
        try:
            for split in splits:
                counts = _weighed_counts(table, split.train)
                for point in row.points:
                    row.method(counts, point)
        except (RunError, ValueError) as error:
            refused[row.rule] = str(error)
            continue
        rows.append(row)
    notes += [f"without {rule}: {why}" for rule, why in refused.items()]
    return rows


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
