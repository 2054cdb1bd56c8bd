"""Finished runs read, grouped over seeds and named, for `experiments.report`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.host.errors import RunError
from experiments.reports import published
from experiments.reports.published import text

COLUMNS = ("many", "medium", "few", "all")
# Two kinds of figures that must not be compared with each other.
KINDS = {"last": "last epoch", "best": "best*"}
# What runs had before a report said so, and what goes without saying.
_DEFAULTS: dict[str, Any] = {
    "subset": "first", "val_per_class": 0, "mixup": 0.0, "classifier": "linear", "momentum": 0.9,
    "precision": "float32", "augment": True, "eval_every": 1, "sampling": "natural", "per_visit": 1,
    "trained": "all", "statistics": "updated", "max_norm": "none", "weight_decay_inside": False,
    "strict": False, "running_statistics": "first", "group_mean": False, "accumulate": 1,
    "remat": False, "jitter": 0.0, "loader": "grain", "examples": "dependent",
    "memory": None, "shrink": 1,
}  # fmt: skip
# Of the settings: what does not decide a result, or only its rounding.
_FREE = (
    "seed", "eval_batch", "checkpoint_every", "steps_per_call", "parallel", "devices", "workers",
    "max_corrupt",
)  # fmt: skip
_DECIDES = (
    "dataset", "imbalance_factor", "source", "class_counts_sha256", "thresholds", "subset",
    "val_per_class", "model", "classifier", "epochs", "batch_size", "rule", "rule_args", "ascent",
    "loss", "loss_args", "mixup", "stage2", "stage2_args", "init", "image_size", "resize", "memory",
    "shrink",
)  # fmt: skip
# SGD is the same whichever rows the passes of other rules see.
_METHOD = ("rule", "rule_args", "ascent", "memory", "examples", "tail_statistics")
_NEEDED = (
    "dataset", "imbalance_factor", "model", "rule", "rule_args", "loss", "epochs", "batch_size",
    "seed", "settings", "best_epoch_flip", *COLUMNS,
)  # fmt: skip


def number(value: float | None, digits: int = 1) -> str:
    """'-' for a figure that does not exist, never 0."""
    return "-" if value is None else f"{value:.{digits}f}"


# ---- reading --------------------------------------------------------------------------------


def find(paths: list[str]) -> list[dict[str, Any]]:
    """The reports in these folders at any depth, or report files; `passed_over` is the rest.

    Each has its "path"; that of a second stage has its first stage's report as "first".
    """
    reports: dict[Path, dict[str, Any]] = {}
    for file in (file for path in paths for file in files(Path(path))):
        report = _checked(file)
        above = file.resolve().parent.parent / "report.json"
        if report.get("stage2") and above.exists():
            report["first"] = _checked(above)
        if report:
            reports.setdefault(file.resolve(), {**report, "path": str(file)})
    if not reports:
        raise RunError(f"no finished run (report.json) in {', '.join(paths)}")
    return list(reports.values())


def files(path: Path) -> Iterator[Path]:
    """The report files in a folder at any depth, or the one file named; not all are of runs."""
    if not path.is_dir():
        if path.suffix == ".json" or not path.exists():
            yield path
        return
    for folder in folders_in(path):
        report = folder / "report.json"
        yield from [report] if report.is_file() else _other_reports(folder)[0]


def folders_in(path: Path) -> Iterator[Path]:
    """It and all folders in it, sorted; each once, though links may lead in circles."""
    seen: set[str] = set()
    for name, below, _ in os.walk(path, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(x for x in below if not x.startswith(".") and x != "checkpoints")
        yield Path(name)


def _other_reports(folder: Path) -> tuple[list[Path], list[Path]]:
    """(reports kept under another name, JSON files that nobody named and that cannot be read)."""
    reports, unreadable = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            reports += [file] if "best_epoch_flip" in _read(file) else []
        except RunError:
            unreadable.append(file)
    return reports, unreadable


def passed_over(paths: list[str]) -> list[str]:
    """What `find` makes nothing of in these paths, each with why."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            if path.suffix != ".json":
                found.append(f"{path} (no report)")
            elif not _checked(path):
                found.append(f"{path} (no training run)")
            continue
        runs = {file.parent: file for file in files(path)}
        for folder, file in runs.items():
            if not _checked(file):
                found.append(f"{folder} (no training run)")
        alone = [folder for folder in folders_in(path) if folder not in runs]
        unreadable = [file for folder in alone for file in _other_reports(folder)[1]]
        found += [f"{file} (unreadable)" for file in unreadable]
        unfinished = [
            folder
            for folder in alone
            if (folder / "config.json").exists() and not _above_a_run(folder, runs)
        ]
        for folder in unfinished:
            other = (folder / "summary.json").exists()
            found.append(f"{folder} ({'no training run' if other else 'not finished'})")
        if not (runs or unfinished or unreadable):
            found.append(f"{path} (no run)")
    return found


def _above_a_run(folder: Path, runs: Iterable[Path]) -> bool:
    return any(folder in (run, *run.parents) for run in runs)


def _checked(file: Path) -> dict[str, Any]:
    """The report of a training run; {} for that of another experiment."""
    report = _read(file)
    if "rule" not in report:
        return {}
    lacks = [name for name in _NEEDED if name not in report]
    if lacks:
        raise RunError(f"{file} is no report of a training run: it lacks {', '.join(lacks)}")
    wrong = [name for name, fits in _FITS.items() if not fits(report.get(name))]
    if wrong:
        raise RunError(
            f"{file} is damaged: its {wrong[0]} is {str(report.get(wrong[0]))[:60]!r}, which no "
            "run writes; evaluate or repeat the run, or leave its report out"
        )
    return report


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def _is_accuracy(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 100.001)


def _are_options(value: Any) -> bool:
    """By name: numbers, words, lists of them; options within options too."""
    return isinstance(value, dict) and all(_is_option(x) for x in value.values())


def _is_option(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(_is_option(x) for x in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, bool | str) or is_number(value)


def _are_accuracies(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_accuracy(value.get(split)) for split in COLUMNS)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


# What a field of a report can be.
_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("dataset", "model", "rule", "loss"), _is_text),
    **dict.fromkeys(("imbalance_factor", "batch_size"), _is_positive),
    **dict.fromkeys(("epochs", "seed"), _is_count),
    **dict.fromkeys(COLUMNS, _is_accuracy),
    "best_epoch_flip": _are_accuracies,
    **dict.fromkeys(("rule_args", "settings"), _are_options),
    **dict.fromkeys(("ascent", "loss_args", "stage2_args", "thresholds"), _or_none(_are_options)),
    **dict.fromkeys(("stage2", "subset", "source", "classifier"), _or_none(_is_text)),
    **dict.fromkeys(("step_ms", "flops_ratio_to_sgd", "shrink", "train_examples"),
                    _or_none(_is_positive)),
    **dict.fromkeys(("mixup", "memory", "val_per_class", "subset_seed"), _or_none(is_number)),
}  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.exists() and not file.is_file():
            raise RunError(f"{file} is no file to read a report from")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {file}: {error}") from error
    return value if isinstance(value, dict) else {}


# ---- grouping -------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A mean over n seeds, and its sample deviation or standard error (None for one seed)."""

    mean: float
    spread: float | None
    n: int


@dataclasses.dataclass
class Group:
    """Runs that differ in the seed alone, by seed.

    Attributes:
      number: from 1, as shown in tables.
      identity: what decides their results, defaults left out.
      facts: what `published` wants to know of them; of a second stage, those of the first.
      sgd: the group of the same setting under SGD, if there is one other than this.
    """

    number: int
    identity: dict[str, Any]
    reports: list[dict[str, Any]]
    facts: dict[str, Any]
    sgd: Group | None = None

    @property
    def seeds(self) -> list[int]:
        return [report["seed"] for report in self.reports]

    def figure(self, kind: str, split: str) -> Figure | None:
        """Mean ± deviation of one accuracy, of a kind of KINDS."""
        return _figure([_accuracy(report, kind, split) for report in self.reports])

    def gain(self, kind: str, split: str) -> Figure | None:
        """The same minus SGD's over common seeds, mean ± standard error."""
        pairs = [(_accuracy(a, kind, split), _accuracy(b, kind, split)) for a, b in self.pairs()]
        found = _figure([None if None in pair else pair[0] - pair[1] for pair in pairs])
        if found is None or found.spread is None:
            return found
        return found._replace(spread=found.spread / found.n**0.5)

    def pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(run, SGD's run) of each common seed."""
        of_sgd = {report["seed"]: report for report in self.sgd.reports} if self.sgd else {}
        return [(run, of_sgd[run["seed"]]) for run in self.reports if run["seed"] in of_sgd]

    def median(self, name: str) -> float | None:
        values = [report[name] for report in self.reports if report.get(name) is not None]
        return statistics.median(values) if values else None


def _accuracy(report: dict[str, Any], kind: str, split: str) -> Any:
    return (report if kind == "last" else report["best_epoch_flip"]).get(split)


def _figure(values: list[Any]) -> Figure | None:
    if not values or None in values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Figure(statistics.fmean(values), spread, len(values))


def grouped(reports: Iterable[dict[str, Any]]) -> list[Group]:
    """Groups in the order of their first run; two runs of one seed in a group are an error."""
    groups: dict[str, Group] = {}
    for report in _with_first(reports):
        identity = _identity(report)
        new = Group(len(groups) + 1, identity, [], _facts(report))
        runs = groups.setdefault(_key(identity), new).reports
        for other in runs:
            if other["seed"] == report["seed"]:
                raise RunError(
                    f"{_folder(other)} and {_folder(report)} have the same setting and the same "
                    f"seed {report['seed']}: leave one of them out"
                )
        runs.append(report)
        runs.sort(key=lambda run: run["seed"])
    of_sgd = {_key(_setting(g.identity)): g for g in groups.values() if rules_of(g) == {"sgd"}}
    for group in groups.values():
        sgd = of_sgd.get(_key(_setting(group.identity)))
        group.sgd = None if sgd is group else sgd
    return list(groups.values())


def _with_first(reports: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Second stages that were not read from a folder follow their first stage, seed by seed."""
    last: dict[str, Any] = {}
    for report in reports:
        if not report.get("stage2"):
            last = report
        same = all(report.get(k) == last.get(k) for k in ("seed", "rule", "rule_args", "loss"))
        alone = report.get("stage2") and not {"first", "path"} & report.keys()
        yield {**report, "first": last} if alone and same else report


def _folder(report: dict[str, Any]) -> Path | str:
    return Path(report["path"]).parent if "path" in report else f"a run of {report['rule']}"


def _identity(report: dict[str, Any]) -> dict[str, Any]:
    # The tail of stratified sampling; without that, what rules take stands in rule_args.
    unused = [] if report["settings"].get("sampling") == "stratified" else ["eta", "strict"]
    if report["settings"].get("examples") != "split_norm":
        unused.append("tail_statistics")
    settings = {k: v for k, v in report["settings"].items() if k not in (*_FREE, *unused)}
    found = settings | {k: report[k] for k in _DECIDES if report.get(k) is not None}
    found |= _of_source(report)
    if found.get("subset", "first") != "first":
        found.setdefault("subset_seed", report.get("subset_seed") or 0)
    if "first" in report:
        found["first"] = _identity(report["first"])
    return {k: v for k, v in _plain(found).items() if v != {}}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without defaults, and with whole numbers as floats: 100 and 100.0 are one eta."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _plain(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if name not in _DEFAULTS or value != _DEFAULTS[name]:
            found[name] = value
    return found


def _setting(identity: dict[str, Any]) -> dict[str, Any]:
    """What a run shares with its SGD partner, in its second stage too."""
    found = {k: v for k, v in identity.items() if k not in _METHOD}
    if "stage2_args" in found:
        found["stage2_args"] = {k: v for k, v in found["stage2_args"].items() if k != "rule"}
    return found | {"first": _setting(found["first"])} if "first" in found else found


def _key(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)


def rules_of(group: Group) -> set[str]:
    return {group.identity["rule"], group.facts["rule"]}


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    first = report.get("first", report)
    args, ascent = first["rule_args"], first.get("ascent") or {}
    found = {**_DEFAULTS, **first["settings"], **args, **ascent}
    found |= {k: first[k] for k in _DECIDES if first.get(k) is not None}
    if "subset" in first:  # None where the data came from a file
        found["subset"] = first["subset"]
    found |= _of_source(first)
    if is_number(args.get("switch_step")) and first.get("train_examples"):
        found["switch_epoch"] = args["switch_step"] / -(
            -first["train_examples"] // first["batch_size"]
        )
    if found["subset"] != "first":
        found.setdefault("subset_seed", first.get("subset_seed", 0))
    drw = "+drw" if "drw_epoch" in (first.get("loss_args") or {}) else ""
    return found | {"loss": first["loss"] + drw, "ascent": ascent, "stage2": report.get("stage2")}


def _of_source(report: dict[str, Any]) -> dict[str, Any]:
    """What an exported file says of its images, where the run's flags left that to the file."""
    source = str(report.get("source"))
    found: dict[str, Any] = {}
    factors = map(int, re.findall(r"every (\d+)x\1 pixels averaged", source))
    shrink = math.prod(factors)
    if report.get("shrink") is None and shrink > 1:
        found["shrink"] = shrink
    subset = re.search(r"of each class (first n_i by id|shuffled, seed (\d+))", source)
    if report.get("subset") is None and subset:
        found["subset"] = "shuffled" if subset[2] else "first"
        if subset[2]:
            found["subset_seed"] = int(subset[2])
    return found


# ---- naming ---------------------------------------------------------------------------------


def method(group: Group) -> str:
    """Its rule with arguments, and its loss where that is not cross-entropy."""
    first = group.identity.get("first", group.identity)
    words = [group.facts["rule"]]
    for name in ("rule_args", "ascent", "loss_args"):
        if name == "loss_args" and first["loss"] != "cross_entropy":
            words.append(first["loss"])
        words += _words(first.get(name, {}))
    passes = ("memory", "examples", "tail_statistics")
    words += _words({name: first[name] for name in passes if name in first})
    if "stage2" in group.identity:
        own = group.identity.get("stage2_args", {})
        words += ["then", group.identity["stage2"]]
        words += _words({k: v for k, v in own.items() if k not in _TRAINING})
        words += [] if "first" in group.identity else ["(first stage not found)"]
    return " ".join(words)


# Of the arguments of a second stage, how it is trained.
_TRAINING = (
    "epochs",
    "lr",
    "weight_decay",
    "schedule",
    "sampling",
    "statistics",
    "max_norm",
    "rule",
)


def setting(group: Group) -> str:
    """Model, length, learning rate, what else is not as usual, and how a second stage trains."""
    facts, first = group.facts, group.identity.get("first", group.identity)
    shown = f"{facts['model']}, {facts['epochs']:g} epochs, batch {facts['batch_size']:g}"
    shown += f", lr {text(facts.get('lr'))} {facts.get('schedule')}"
    shown += f", weight decay {text(facts.get('weight_decay'))}"
    hidden = {"lr", "schedule", "weight_decay", "epochs", "batch_size", "model", "dataset",
              "imbalance_factor", "class_counts_sha256", "source", "thresholds", "loss",
              "loss_args", "stage2", "stage2_args", "first", "shrink", *_METHOD}  # fmt: skip
    shown = ", ".join([shown, *_words({k: v for k, v in first.items() if k not in hidden})])
    second = group.identity.get("stage2_args", {})
    words = _words({k: second[k] for k in _TRAINING if k in second})
    return shown + (f"; then {', '.join(words)}" if words else "")


def _words(values: dict[str, Any]) -> list[str]:
    return [f"{name} {text(value)}" for name, value in values.items()]


def data(group: Group) -> str:
    """Data set and imbalance factor, and what was done to the images where that is known."""
    facts, shrink = group.facts, group.facts["shrink"]
    found = f"{facts['dataset']} IF {round(facts['imbalance_factor'], 1):g}"
    if shrink != 1:
        found += f", every {shrink:g}x{shrink:g} pixels averaged (not the papers' data)"
    elif facts["subset"] is None:
        found += " of a file (not known to be the papers' data)"
    return found


def protocol(group: Group) -> str:
    """The names of the protocols it follows, or "own"; a second stage's is that of its first."""
    return ", ".join(published.marks(group.facts)) or "own"


def source(row: published.Row) -> str:
    table = "" if row.table == "-" else f", {row.table}"
    return published.SOURCES[row.source] + table + ("" if row.verified else " (unverified)")


def differs(group: Group, row: published.Row) -> list[str]:
    """In what a group differs from the protocol of a published row: "lr 0.1, not 0.01"."""
    found = published.differences(group.facts, row.protocol, row.overrides)
    seed = published.PROTOCOLS[row.protocol].seed
    known = seed is not None and group.seeds != [seed]
    own = "seed" if len(group.seeds) == 1 else "seeds"
    return found + [f"{own} {seed_list(group)}, not {seed}"] * known


def seed_list(group: Group) -> str:
    seeds = group.seeds
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def plus_minus(figure: Figure | None, sign: str = "") -> str:
    if figure is None:
        return "-"
    return f"{figure.mean:{sign}.1f}" + ("" if figure.spread is None else f"±{figure.spread:.1f}")
