"""Which sets a study runs `compare` over, with which of its flags, and in which order."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.data import table
from experiments.data.set_lists import column_of, cuts_of, entries, name_of
from experiments.host import cli
from experiments.host.errors import DataError, RunError
from experiments.reports import compare_folder

# Of a finished set, what is summed up.
SUMMED = (compare_folder.SUMMARY, compare_folder.RUNS)
# Of the flags of `compare`, those that say how its table is read.
_READ = ("label", "text", "test", "group", "id")
# Of the flags of `compare`, those that are not handed on to it, and where they belong.
_OF_A_SET = "a list says it of each set"
_MINE = {
    **dict.fromkeys(("--splits", "--seed", "--cut", "--no-tune", "--out"), "give it before --"),
    **{f"--{name}": _OF_A_SET for name in ("data", *_READ)},
    **dict.fromkeys(
        ("--resume", "--overwrite"), "the study goes on by itself; else delete its folder"
    ),
    **dict.fromkeys(("--predict", "--help", "-h"), "call compare alone"),
}
# Of a set in a list, what is no flag of `compare` as it stands.
_OURS = ("name", "cut", "family")
# What compiling and the fewest steps take beside the rows, in rows.
_ANY = 3000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A set to compare on.

    Attributes:
      name: of its folder, of letters, digits and . _ - + = , alone.
      flags: of `compare`, but for --out.
      cost: by which sets are ordered and the time left is told: rows, and a share that any set has.
      about: in words, how large it is.
      family: sets of one are of one source.
    """

    name: str
    flags: tuple[str, ...]
    cost: int
    about: str
    family: str


def plan(
    args: argparse.Namespace, more: Sequence[str]
) -> tuple[list[Planned], list[dict[str, str]]]:
    """(sets to run, the smallest first; those that cannot be, each with why)."""
    handed_on = ["--no-tune"] * args.no_tune + _handed_on(more)
    planned: list[Planned] = []
    failed: list[dict[str, str]] = []
    families: dict[str, str | None] = {}
    for each in entries(args.sets):
        name, cuts = name_of(each), cuts_of(each.get("cut", 0))
        families[name] = each.get("family")
        try:
            rows, about, more_cuts = _looked_at(each, args.cut)
        except DataError as error:
            # To sum up what is finished, no rows are needed.
            rows, about, more_cuts = 0, "", _finished_cuts(args, name, cuts)
            if not more_cuts:
                failed.append({"name": name, "why": str(error)})
                continue
        planned += [
            Planned(name=_full(name, cut), flags=_flags(args, each, cut, handed_on),
                    cost=rows + _ANY, about=about, family=each.get("family", name))
            for cut in dict.fromkeys([*cuts, *more_cuts])
        ]  # fmt: skip
    _check_names([each["name"] for each in failed] + [each.name for each in planned], families)
    return sorted(planned, key=lambda each: (each.cost, each.name)), failed


def _handed_on(more: Sequence[str]) -> list[str]:
    """What follows --, all of which compare takes for every set."""
    for word in more:
        if (flag := word.partition("=")[0]) in _MINE:
            raise RunError(f"{flag} behind -- would be heeded of no set, or of all: {_MINE[flag]}")
    return list(more)


def _looked_at(each: dict[str, Any], cuts: Sequence[float]) -> tuple[int, str, list[float]]:
    """(its rows, how large it is in words, those of the cuts that it can be cut to).

    Raises:
      DataError: it cannot be compared on.
    """
    found = table.read(each["data"], **{k: column_of(k, each[k]) for k in _READ if k in each})
    counts = found.class_counts()
    rows = len(found.labels)
    about = (
        f"{cli.noun(rows, 'row')}, {cli.noun(len(found.columns.columns), 'column')}, "
        f"{found.num_classes} classes"
    )
    factor, most = counts.max() / counts.min(), 0.7 * counts.max()
    return rows, about, [cut for cut in cuts if factor < cut <= most]


def _finished_cuts(args: argparse.Namespace, name: str, cuts: Sequence[float]) -> list[float]:
    """Of a set whose rows cannot be read, what is finished and only to be summed up."""
    return [
        cut for cut in (*cuts, *args.cut)
        if args.only_sum_up and has(Path(args.out, "sets", _full(name, cut)), SUMMED)
    ]  # fmt: skip


def _check_names(names: Sequence[str], families: dict[str, str | None]) -> None:
    """No two sets have one name, and a set that a family is named after is of it."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RunError(f"two sets are named {twice}: give one another name in a list (name = ...)")
    for name, family in families.items():
        if family in families and families[family] != family:
            raise RunError(
                f"{name} is of the family {family}, and the set {family} is not: give the family "
                "another name"
            )


def _flags(
    args: argparse.Namespace, each: dict[str, Any], cut: float, handed_on: Sequence[str]
) -> tuple[str, ...]:
    """Of compare: what a list says of the set, its cut, and of this command line the rest."""
    said = [word for k, v in each.items() if k not in _OURS for word in _flag(k, v)]
    own = ["--cut", f"{cut:g}"] if cut else []
    shared = [
        word
        for flag, value in (("splits", args.splits), ("seed", args.seed))
        if flag not in each
        for word in _flag(flag, value)
    ]
    return (*said, *own, *shared, *_but(handed_on, each))


def _full(name: str, cut: float) -> str:
    return f"{name}_cut{cut:g}" if cut else name


def _but(words: Sequence[str], each: Mapping[str, Any]) -> list[str]:
    """The flags with their values, but for those that a list says of the set."""
    own, found, kept = {name.removeprefix("no_") for name in each}, [], True
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0].removeprefix("--").removeprefix("no-")
            kept = name.replace("-", "_") not in own
        found += [word] * kept
    return found


def _flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [] if value is True else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)]


def has(folder: Path, names: Iterable[str]) -> bool:
    """Whether all these files are there."""
    return all((folder / name).exists() for name in names)
