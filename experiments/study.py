r"""Runs `compare` over many data sets and sums up what helps, where, and how sure that is.

    python -m experiments.study FOLDER_OF_NPZ sklearn:wine --out results/study --splits 10

    python -m experiments.study sets.toml --out results/study -- --settings 4 --rule sgd imbsam

What follows `--` is handed on to compare. A list in TOML names sets with the flags that compare
takes for them, which hold in place of those of the command line:

    [[set]]
    data = "$TEXT_DIR/banking77/train.csv"
    label = "category"
    text = ["text"]
    cut = [0, 20, 100]      # as it is, and cut to these imbalance factors
    splits = 5              # in place of --splits

    [families]              # sets of one source, which are not independent; cuts of a set are one
    yeast = ["yeast", "yeast4"]

A list of lines (.txt) has a path and flags on each. Sets are run from the smallest to the largest;
one that is finished is kept, so the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.command.study_plan import SUMMED, Planned, has, plan
from experiments.data import files
from experiments.host import cli, folders, locks, origin, outputs
from experiments.host.errors import DataError, RunError
from experiments.host.needs import always
from experiments.host.progress import clock
from experiments.reports import compare_page, study_figures, study_folder, study_tables

TABLES = "tables.md"
_FILES = ("--data", "--test")
# Of runs, tables and analyses, the files by which `redraw` and `report` know them.
_OTHERS = ("config.json", "summary.json", "report.json", "analysis.json", "gains.json")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Run compare over many data sets and sum up what helps. What follows -- is for compare.",
        always("sets", "out", "cut", "splits", "seed", "no_tune", "only_sum_up"),
    )
    parser.add_argument(
        "sets", nargs="+", type=cli.text,
        help="a folder (every .npz in it), a list (.toml, .txt), a file, or sklearn:digits, "
        "sklearn:wine, sklearn:breast_cancer",
    )  # fmt: skip
    parser.add_argument("--out", type=cli.text, required=True, help="folder of the study")
    parser.add_argument(
        "--cut", type=cli.number(least=1, most=1000), nargs="+", default=[],
        help="every set also cut to these imbalance factors, where it is less imbalanced and has "
        "the rows for it",
    )  # fmt: skip
    parser.add_argument("--splits", type=cli.counted(1000), default=10, help="of each set")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of splits and training")
    parser.add_argument(
        "--no-tune", action="store_true", help="take compare's defaults as they are"
    )
    parser.add_argument(
        "--only-sum-up", action="store_true", help="of the sets that are finished, and run no other"
    )
    return parser


# ---- running --------------------------------------------------------------------------------


def run(planned: Sequence[Planned], out: Path, only_sum_up: bool) -> Iterator[dict[str, str]]:
    """Runs what is not finished; yields what could not be run, with why."""
    done = {each.name: _finished(out, each, whole=not only_sum_up) for each in planned}
    left = [each for each in planned if not done[each.name]]
    if len(left) < len(planned):
        print(f"kept as finished before: {cli.noun(len(planned) - len(left), 'set')}", flush=True)
    if only_sum_up:
        yield from ({"name": each.name, "why": "not finished"} for each in left)
        return
    began, cost = time.monotonic(), 0
    for number, each in enumerate(left, start=1):
        rest = sum(one.cost for one in left[number - 1 :])
        ahead = "" if cost == 0 else f"; {clock((time.monotonic() - began) / cost * rest)} left"
        print(f"[{number}/{len(left)}] {each.name}: {each.about}{ahead}", flush=True)
        outputs.write_json(_kept(out, each), list(each.flags))
        try:
            _compare().main(_arguments(out, each))
        except (DataError, RunError) as error:
            print(f"{each.name} is left out: {error}", flush=True)
            yield {"name": each.name, "why": str(error)}
        cost += each.cost


def _arguments(out: Path, each: Planned) -> argparse.Namespace:
    """Of compare, which refuses what it does not take."""
    flags = [*each.flags, "--out", str(_folder(out, each)), "--resume"]
    parsed: argparse.Namespace = _compare().arguments().parse_args(flags)
    return parsed


def _compare() -> Any:
    """The entry of that name, which brings JAX along: --help and --only-sum-up need none."""
    return importlib.import_module("experiments.compare")


def _folder(out: Path, each: Planned) -> Path:
    return out / "sets" / each.name


def _kept(out: Path, each: Planned) -> Path:
    """Where a set's flags are written when it is begun."""
    return out / "sets" / f"{each.name}.json"


def _finished(out: Path, each: Planned, whole: bool = True) -> bool:
    """Whether all that is summed up is there; the whole has the page, which is written last.

    And whether it is of these flags; of the whole, of these rows, too.
    """
    kept, folder = _kept(out, each), _folder(out, each)
    if not kept.exists() or not locks.holds_something(folder):
        return False
    try:
        before = outputs.read_json(kept)
    except RunError as error:
        raise RunError(f"{error}: remove it, and the same command goes on") from error
    if _placed(before) != _placed([*each.flags]):
        raise RunError(
            f"{folder} was begun with other flags ({_changed(before, each.flags)}): choose "
            "another --out, or delete it"
        )
    config = folder / "config.json"
    held = outputs.read_object(config).get("data_sha256") if whole and config.exists() else None
    paths = (each.flags[each.flags.index(f) + 1] if f in each.flags else None for f in _FILES)
    if held is not None and held != files.digests(*paths):
        raise RunError(
            f"{folder} was begun with other rows than its file holds now: choose another --out, or "
            "delete it"
        )
    return has(folder, [*SUMMED, *[compare_page.PAGE] * whole])


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _placed(flags: Any) -> Any:
    """The flags, with the files where they are, however the way there was written."""
    if not _are_words(flags):
        return flags
    of = ["", *flags]
    return [os.path.realpath(b) if a in _FILES else b for a, b in zip(of, flags, strict=False)]


def _changed(before: Any, now: Sequence[str]) -> str:
    """What differs, flag by flag; all that is there of what no study wrote, or of their order."""
    if not _are_words(before):
        return outputs.same_text(before)
    return folders.different(_by_flag(before), _by_flag(now)) or outputs.same_text(before)


def _by_flag(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") or not found:
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return {flag: " ".join(values) for flag, values in found.items()}


def _check_own(out: Path) -> None:
    """Refuses the folder of another experiment: among its files those of a study would be lost."""
    there = next((name for name in _OTHERS if (out / name).exists()), None)
    if there is not None:
        raise RunError(f"{out} holds {there}, which no study writes: choose another --out")


def main(args: argparse.Namespace, more: Sequence[str] = ()) -> dict[str, Any]:
    out = Path(args.out)
    locks.check_out(out)
    _check_own(out)
    planned, failed = plan(args, more)
    for each in failed:
        print(f"{each['name']} is left out: {each['why']}", flush=True)
    if not planned:
        raise DataError("no set is left to compare on")
    for one in [] if args.only_sum_up else planned:  # before anything is run
        try:
            _arguments(out, one)
        except SystemExit:
            print(f"so compare refuses the flags of {one.name}", file=sys.stderr, flush=True)
            raise
    with locks.Lock(out):
        with outputs.writing(out):
            (out / "sets").mkdir(exist_ok=True)
        failed += run(planned, out, args.only_sum_up)
        names = {each["name"] for each in failed}
        finished = [
            study_folder.read_set(each.name, _folder(out, each), each.family)
            for each in planned
            if each.name not in names
        ]
        # Rules with a tail have no row there, and would be left out of all sets.
        sets = [one for one in finished if one.summary["data"]["train_imbalance_factor"] > 1]
        failed += [
            {"name": one.name, "why": "its classes have equally many rows"}
            for one in finished
            if one not in sets
        ]
        about = {"command": origin.command_line(), "splits": args.splits, "seed": args.seed,
                 "tuned": not args.no_tune, **origin.environment()}  # fmt: skip
        found = study_folder.write(out, sets, failed=failed, about=about)
        with outputs.writing(out):
            outputs.replace_text(out / TABLES, study_tables.markdown(found))
        for sentence in study_tables.easier(found):
            print(f"note: {sentence}", flush=True)
        for sentence in study_tables.left_out(found):
            print(f"left out: {sentence}", flush=True)
        outputs.clear_plots(out, study_figures.PLOTS)
        drawn = [path.name for path in study_figures.draw(out)]
    made = ", ".join([TABLES, study_folder.STUDY, study_folder.SETS, *drawn])
    print(f"{cli.noun(len(sets), 'set')} summed up in {out}: {made}")
    return found


def divided(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(this command's flags, what follows -- for compare)."""
    words = sys.argv[1:] if argv is None else list(argv)
    mine, theirs = words, []
    if "--" in words:
        at = words.index("--")
        mine, theirs = words[:at], words[at + 1 :]
    return arguments().parse_args(mine), theirs


if __name__ == "__main__":
    _args, _more = divided()
    cli.run(lambda args: main(args, _more), _args)
