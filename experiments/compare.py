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
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.bench import compare_kept, compare_read, snippet, unseen
from experiments.bench.compare_jobs import Jobs
from experiments.bench.comparison import Engine, Recipe, steps_for
from experiments.bench.references import REFERENCES
from experiments.command import candidates as offered
from experiments.command import compare_flags
from experiments.data import files, leakage
from experiments.data.table import Table
from experiments.host import cli, folders, locks, origin, outputs
from experiments.host.errors import RunError, Stopped, flag
from experiments.host.spent import Spent
from experiments.host.stopping import StopNow, StopRequest
from experiments.reports import compare_folder, compare_page, compare_table


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Compare methods for imbalanced classes on a table, tuned alike.", compare_flags.needs()
    )
    compare_flags.add_data(parser)
    compare_flags.add_rows(parser, REFERENCES)
    compare_flags.add_settings(parser)
    compare_flags.add_training(parser)
    compare_flags.add_output(parser)
    return parser


# What decides no figure.
_NOT_COMPARED = ("out", "overwrite", "resume", "save", "predict")
# Of the files, that a comparison is gone on with on the rows that it was begun with.
CONFIG, DIGESTS = "config.json", "data_sha256"
SNIPPET, PREDICTIONS, SPENT = "snippet.py", "predictions.csv", "spent.json"


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
    args.tune = compare_flags.is_tuned(args)
    config = {key: value for key, value in vars(args).items() if key not in _NOT_COMPARED}
    config |= {DIGESTS: files.digests(args.data, args.test), **origin.jax_settings()}
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
        spent = Spent(out / SPENT, before=args.resume)
        made = _prepared(args, config, out)  # what is refused is refused before all is cleared
        if not args.resume:
            outputs.clear_tables(out)
        outputs.write_json(out / CONFIG, config)
        try:
            summary = _compare(args, made, out, stop, spent)
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
    for name in ("data", "test"):  # one file, however the way there is written
        old, new = before.get(name), config[name]
        if isinstance(old, str) and new and os.path.realpath(old) == os.path.realpath(new):
            config[name] = old
    what = folders.different({**before, DIGESTS: None}, {**config, DIGESTS: None})
    if what:
        raise RunError(f"{out} holds another comparison ({what}): choose another --out")


def _finished(out: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """summary.json where nothing is left to make; what is there and damaged is refused."""
    wanted = (compare_folder.SUMMARY, compare_folder.RUNS, SNIPPET)
    if args.predict or not all((out / name).exists() for name in wanted):
        return None
    summary, _ = compare_folder.read(out)
    return summary if not args.save or compare_kept.is_whole(out) else None


class _Prepared(NamedTuple):
    """A comparison that can be made, and of which nothing is made or written."""

    table: Table
    trained: int  # rows, of the first split
    cut: float | None
    recipe: Recipe
    rows: list[Any]
    jobs: Jobs
    notes: list[str]
    easier: list[str]  # of the notes, what makes the table easier than it will be


def _prepared(args: argparse.Namespace, config: dict[str, Any], out: Path) -> _Prepared:
    table, splits, cut = compare_read.read(vars(args))
    rows, refused = _rows(args, table, splits)
    net = compare_read.net(vars(args), table)
    trained = len(splits[0].train)
    steps = steps_for(trained, args.batch_size, args.epochs)
    recipe = Recipe(net, steps, args.batch_size, args.folds if args.tune else 0, args.seed)
    untested = unseen.notes(table, splits, recipe)
    keep = config if args.save else None
    jobs = Jobs(table, splits, recipe, rows, args.reference, out, keep=keep)
    easier = leakage.notes(table)
    notes = [*table.notes, *easier, *jobs.parts.notes(), *refused, *untested]
    return _Prepared(table, trained, cut, recipe, rows, jobs, notes, easier)


def _compare(
    args: argparse.Namespace, made: _Prepared, out: Path, stop: StopRequest, spent: Spent
) -> dict[str, Any]:
    table, trained, cut, recipe, rows, jobs, notes, easier = made
    for note in notes:
        print(f"note: {note}")
    # At every kept job: a try that is killed took its seconds, too.
    records, diverged = jobs.run(stop.check, lambda: outputs.write_json(out / SPENT, spent.now()))
    about = {
        "seed": args.seed, "splits": args.splits, "tuned": args.tune,
        "settings": args.settings if args.tune else 1, "folds": recipe.folds,
        "model": {"name": args.model, "width": args.width, "depth": recipe.net.depth},
        "steps": recipe.steps, "batch_size": min(args.batch_size, trained), "cut": cut,
        "perturb": args.perturb, "grid": {row.name: row.points for row in rows},
        "confidence": compare_folder.CONFIDENCE, "notes": notes + diverged,
        "easier": easier,
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


def _rows(args: argparse.Namespace, table: Any, splits: list[Any]) -> tuple[list[Any], list[str]]:
    """(the rows that can be trained on these counts, a note for each rule that cannot)."""
    rows = []
    refused: dict[str, str] = {}
    for row in compare_flags.candidates_of(args):
        try:
            for split in splits:
                counts = _weighed_counts(table, split.train)
                for point in row.points:
                    row.method(counts, point)
        except (RunError, ValueError) as error:
            refused[row.rule] = str(error)
            continue
        rows.append(row)
    return rows, [f"without {rule}: {why}" for rule, why in refused.items()]


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
    counts = _weighed_counts(table, part.train)
    row = _allowed(rows, best, counts)
    point = row.points[0]
    if recipe.folds:
        engine = Engine(table.labels, table.weighed, recipe, [row], ids=table.ids)
        ((point,), _) = engine.choose(part, [row])
    row = row._replace(points=[point])
    outputs.replace_text(out / SNIPPET, _snippet(args, table, recipe, row, counts, cut))
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


def _snippet(
    args: argparse.Namespace, table: Any, recipe: Recipe, row: Any, counts: Any, cut: float | None
) -> str:
    """A program that reads the same table and trains this row at its first point."""
    given = {"text": args.text, "group": args.group, "id": args.id, "test": args.test}
    read = [repr(args.data or compare_read.BUNDLED)] + [repr(args.label)] * (args.label is not None)
    read += [f"{name}={value!r}" for name, value in given.items() if value]
    return snippet.program(
        row, row.described(counts, row.points[0]), recipe, source=table.name, read=", ".join(read),
        groups=offered.gsa_groups(counts),
        cut="" if cut is None else f", cut={cut!r}, seed={args.seed}",
    )  # fmt: skip


def _weighed_counts(table: Any, rows: Any) -> Any:
    """int[G], at least 1: with ids a split may lack a class."""
    return np.maximum(np.bincount(table.weighed[rows], minlength=len(table.weighed_names)), 1)


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
