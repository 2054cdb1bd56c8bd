"""Finished runs beside published figures: `python -m experiments.report runs/* [--out DIR]`.

Runs that differ in nothing but the seed are one row: mean ± sample deviation over seeds, and the
difference to SGD in the same setting, paired by seed, mean ± standard error. With --out, Markdown,
CSV and the accuracy gain of each class over SGD (the ImbSAM paper's Fig. 2) are written.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments import cli, published
from experiments.errors import RunError
from experiments.published import text

COLUMNS = ("many", "medium", "few", "all")
# Two kinds of figures that must not be compared with each other.
KINDS = {"last": "last epoch", "best": "best*"}
NOTE = (
    "last: the last epoch, no test-time augmentation. best*: what most papers report, the best "
    "epoch on the test set, flip-averaged; chosen on the test set, it is optimistic. Published "
    "figures compare with best*, never with last."
)

# What runs had before a report said so, and what goes without saying.
_DEFAULTS: dict[str, Any] = {
    "subset": "first", "val_per_class": 0, "mixup": 0.0, "classifier": "linear", "momentum": 0.9,
    "precision": "float32", "augment": True, "eval_every": 1, "sampling": "natural",
    "trained": "all", "statistics": "updated", "max_norm": "none", "weight_decay_inside": False,
    "strict": False, "running_statistics": "first", "group_mean": False,
}  # fmt: skip
# Of the settings: what does not decide a result, or only its rounding.
_FREE = ("seed", "eval_batch", "checkpoint_every", "steps_per_call", "parallel", "devices")
_DECIDES = (
    "dataset", "imbalance_factor", "source", "class_counts_sha256", "thresholds", "subset",
    "val_per_class", "model", "classifier", "epochs", "batch_size", "rule", "rule_args", "ascent",
    "loss", "loss_args", "mixup", "stage2", "stage2_args",
)  # fmt: skip
_METHOD = ("rule", "rule_args", "ascent")
_NEEDED = (
    "dataset", "imbalance_factor", "model", "rule", "rule_args", "loss", "epochs", "batch_size",
    "seed", "settings", "best_epoch_flip", *COLUMNS,
)  # fmt: skip


def number(value: float | None, digits: int = 1) -> str:
    """'-' for a figure that does not exist, never 0."""
    return "-" if value is None else f"{value:.{digits}f}"


# ---- reading --------------------------------------------------------------------------------


def find(paths: list[str]) -> list[dict[str, Any]]:
    """The reports in these run folders, folders of runs or seeds, or report files.

    Each has its "path"; that of a second stage has its first stage's report as "first".
    """
    reports: dict[Path, dict[str, Any]] = {}
    for file in (file for path in paths for file in _files(Path(path))):
        report = _checked(file)
        above = file.resolve().parent.parent / "report.json"
        if report.get("stage2") and above.exists():
            report["first"] = _checked(above)
        if report:
            reports.setdefault(file.resolve(), {**report, "path": str(file)})
    if not reports:
        raise RunError(f"no finished run (report.json) in {', '.join(paths)}")
    return list(reports.values())


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder in [path, *sorted(child for child in path.iterdir() if child.is_dir())]:
        for run in (folder, *sorted(folder.glob("stage2_*"))):
            if (run / "report.json").exists():
                yield run / "report.json"
    if not (path / "report.json").exists():
        yield from (
            file for file in sorted(path.glob("*.json")) if "best_epoch_flip" in _read(file)
        )


def _checked(file: Path) -> dict[str, Any]:
    """The report of a training run; {} for that of another experiment."""
    report = _read(file)
    if "rule" not in report:
        return {}
    objects = ("rule_args", "settings", "best_epoch_flip")
    lacks = [
        name
        for name in _NEEDED
        if name not in report or (name in objects and not isinstance(report[name], dict))
    ]
    if lacks:
        raise RunError(f"{file} is no report of a training run: it lacks {', '.join(lacks)}")
    return report


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
    of_sgd = {_key(_setting(g.identity)): g for g in groups.values() if _rules(g) == {"sgd"}}
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
    settings = {k: v for k, v in report["settings"].items() if k not in _FREE}
    found = settings | {k: report[k] for k in _DECIDES if report.get(k) is not None}
    if found.get("subset", "first") != "first":
        found["subset_seed"] = report.get("subset_seed", 0)
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


def _rules(group: Group) -> set[str]:
    return {group.identity["rule"], group.facts["rule"]}


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    first = report.get("first", report)
    args, ascent = first["rule_args"], first.get("ascent") or {}
    found = {**_DEFAULTS, **first["settings"], **args, **ascent}
    found |= {k: first[k] for k in _DECIDES if first.get(k) is not None}
    if "switch_step" in args and first.get("train_examples"):
        found["switch_epoch"] = args["switch_step"] / -(
            -first["train_examples"] // first["batch_size"]
        )
    if found["subset"] != "first":
        found["subset_seed"] = first.get("subset_seed", 0)
    drw = "+drw" if "drw_epoch" in (first.get("loss_args") or {}) else ""
    return found | {"loss": first["loss"] + drw, "ascent": ascent, "stage2": report.get("stage2")}


# ---- naming ---------------------------------------------------------------------------------


def method(group: Group) -> str:
    """Its rule with arguments, and its loss where that is not cross-entropy."""
    first = group.identity.get("first", group.identity)
    words = [group.facts["rule"]]
    for name in ("rule_args", "ascent", "loss_args"):
        if name == "loss_args" and first["loss"] != "cross_entropy":
            words.append(first["loss"])
        words += _words(first.get(name, {}))
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
              "loss_args", "stage2", "stage2_args", "first", *_METHOD}  # fmt: skip
    shown = ", ".join([shown, *_words({k: v for k, v in first.items() if k not in hidden})])
    second = group.identity.get("stage2_args", {})
    words = _words({k: second[k] for k in _TRAINING if k in second})
    return shown + (f"; then {', '.join(words)}" if words else "")


def _words(values: dict[str, Any]) -> list[str]:
    return [f"{name} {text(value)}" for name, value in values.items()]


def data(group: Group) -> str:
    return f"{group.facts['dataset']} IF {round(group.facts['imbalance_factor'], 1):g}"


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
    return found + [f"seeds {_seeds(group)}, not {seed}"] * known


def _seeds(group: Group) -> str:
    seeds = group.seeds
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def plus_minus(figure: Figure | None, sign: str = "") -> str:
    if figure is None:
        return "-"
    return f"{figure.mean:{sign}.1f}" + ("" if figure.spread is None else f"±{figure.spread:.1f}")


# ---- on the terminal ------------------------------------------------------------------------


def table(groups: list[Group]) -> Table:
    """A row a group, of two lines: last epoch, and what the papers report."""
    result = Table(title="accuracy (%), mean over classes", box=None, padding=(0, 1, 0, 0))
    result.add_column("run")
    gains = ("all", "few") if any(group.sgd for group in groups) else ()
    for name in ("", *COLUMNS, *(f"{split}-SGD" for split in gains), "ms/step", "FLOPs"):
        result.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        lines = [
            [
                kind + "*" * (kind == "best"),
                *(plus_minus(group.figure(kind, split)) for split in COLUMNS),
                *(plus_minus(group.gain(kind, split), "+") if group.sgd else "" for split in gains),
            ]
            for kind in KINDS
        ]
        label = f"{group.number}. {method(group)}"
        if 1 < len(group.seeds) <= 5:
            label += f"\nall: {' '.join(number(report['all']) for report in group.reports)}"
        if group.sgd and len(group.pairs()) < len(group.seeds):
            label += f"\n{len(group.pairs())} seeds in common with SGD"
        result.add_row(label, *map("\n".join, zip(*lines, strict=True)), *_costs(group))
    return result


def _costs(group: Group) -> list[str]:
    return [number(group.median("step_ms")), number(group.median("flops_ratio_to_sgd"), 2)]


def settings(groups: list[Group]) -> str:
    """A line for each setting of these groups, with their numbers."""
    numbers: dict[str, list[str]] = {}
    for group in groups:
        seeds = f"{'seed' if len(group.seeds) == 1 else 'seeds'} {_seeds(group)}"
        shown = f"{data(group)}, {setting(group)}, {seeds}; protocol: {protocol(group)}"
        numbers.setdefault(shown, []).append(str(group.number))
    return "\n".join(f"{', '.join(each)}: {shown}" for shown, each in numbers.items())


def published_table(groups: list[Group]) -> Table:
    """The published rows of the same data, rule, loss and second stage, beside each group."""
    result = Table(title="published, same data and method", box=None, padding=(0, 1, 0, 0))
    result.add_column("run")
    for name in COLUMNS:
        result.add_column(name, justify="right", no_wrap=True)
    for name in ("source", "protocol", "the run differs in"):
        result.add_column(name)
    for group in groups:
        for row in published.beside(group.facts):
            figures = (number(getattr(row, split)) for split in COLUMNS)
            names = ", ".join(x.split()[0] if ", not " in x else x for x in differs(group, row))
            result.add_row(f"{group.number}.", *figures, source(row), row.protocol, names or "-")
    return result


def _console() -> Console:
    width = None if Console().is_terminal else 100
    return Console(markup=False, highlight=False, width=width)


def show(reports: list[dict[str, Any]]) -> None:
    """Prints the table of these runs."""
    console, groups = _console(), grouped(reports)
    console.print(table(groups))
    console.print(settings(groups))
    console.print(
        NOTE + " ± is the deviation over seeds; of a difference to SGD, paired by seed, the "
        "standard error. FLOPs: a step's over SGD's.",
        style="dim",
    )


# ---- files ----------------------------------------------------------------------------------


def write(out: Path, groups: list[Group]) -> list[str]:
    """Writes report.md, report.csv and gain_per_class.png; returns why a gain is not plotted."""
    from experiments import plots

    panels, missing = gains(groups)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(markdown(groups, bool(panels)))
        with open(out / "report.csv", "w", newline="") as file:
            records = list(csv_records(groups))
            writer = csv.DictWriter(file, list(dict.fromkeys(k for r in records for k in r)))
            writer.writeheader()
            writer.writerows(records)
        (out / "gain_per_class.png").unlink(missing_ok=True)  # of an earlier report
        if panels:
            plots.gain_per_class(out / "gain_per_class.png", panels)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}") from error
    return missing


def markdown(groups: list[Group], plot: bool) -> str:
    """A section for each data set: each group, and beside it what was published."""
    lines = ["# Runs beside published figures", "", NOTE, "", "Accuracy in percent, mean over "
             "classes. n: number of seeds. ± is the sample deviation over seeds; of differences to "
             "SGD, paired by seed, the standard error."]  # fmt: skip
    used: dict[str, None] = {}
    for name in dict.fromkeys(map(data, groups)):
        head = ["", "figures", "n", *COLUMNS, "all - SGD", "few - SGD", "ms/step", "FLOPs",
                "protocol", "source; in what the run differs from its protocol"]  # fmt: skip
        lines += ["", f"## {name}", "", _cells(head), _cells(["---"] * len(head))]
        for group in (group for group in groups if data(group) == name):
            title = {"last": f"**{group.number}. {method(group)}**", "best": f"{group.number}."}
            about = f"{setting(group)}; seeds {_seeds(group)}"
            if group.sgd and len(group.pairs()) < len(group.seeds):
                about += f", {len(group.pairs())} of them in common with SGD"
            for kind, shown in KINDS.items():
                figures = [plus_minus(group.figure(kind, split)) for split in COLUMNS]
                figures += [plus_minus(group.gain(kind, split), "+") for split in ("all", "few")]
                rest = [*_costs(group), protocol(group), about] if kind == "last" else [""] * 4
                lines.append(_cells([title[kind], shown, len(group.seeds), *figures, *rest]))
            found = published.beside(group.facts)
            if not found:
                lines.append(_cells(["no published figure of this setting", *[""] * 12]))
            for row in found:
                used[row.protocol] = None
                figures = [number(getattr(row, split)) for split in COLUMNS]
                about_row = [source(row), row.note, "; ".join(differs(group, row))]
                cells = ["published", f"epoch: {row.chosen}", "", *figures, *[""] * 4]
                mark = f"{row.protocol}[^{row.protocol}]"
                lines.append(_cells([*cells, mark, "; ".join(filter(None, about_row))]))
    if plot:
        lines += ["", "![accuracy gain of each class over SGD](gain_per_class.png)"]
    lines += ["", *(f"[^{key}]: {_footnote(key)}" for key in used)]
    return "\n".join(lines) + "\n"


def _cells(values: Iterable[Any]) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"


def _footnote(key: str) -> str:
    stated = published.PROTOCOLS[key]
    return f"{key}: {stated.says}. Reported epoch: {stated.chosen}."


def csv_records(groups: list[Group]) -> Iterator[dict[str, Any]]:
    """A record a group, kind "run", and one for each published row beside it."""
    for group in groups:
        facts = group.facts
        names = ("dataset", "imbalance_factor", "rule", "loss", "stage2", "model", "epochs")
        shared = {"run": group.number, **{name: facts[name] for name in names}}
        found: dict[str, Any] = {"kind": "run", **shared, "protocol": protocol(group)}
        found |= {"method": method(group), "setting": setting(group), "n": len(group.seeds),
                  "seeds": " ".join(map(str, group.seeds))}  # fmt: skip
        for kind in KINDS:
            for split in COLUMNS:
                name = f"{kind}_{split}"
                mean, gain = group.figure(kind, split), group.gain(kind, split)
                found |= _columns(name, "sd", mean)
                found |= _columns(f"{name}_minus_sgd", "se", gain)
        costs = ("step_ms", "flops_ratio_to_sgd")
        found["n_in_common_with_sgd"] = len(group.pairs()) if group.sgd else None
        yield found | {name: group.median(name) for name in costs}
        for row in published.beside(facts):
            yield {
                "kind": "published", **shared, "protocol": row.protocol,
                "loss": row.loss, "model": row.overrides.get("model"), "epochs": None,
                **{f"published_{split}": getattr(row, split) for split in COLUMNS},
                "chosen": row.chosen, "source": source(row),
                "note": row.note, "run_differs": "; ".join(differs(group, row)),
            }  # fmt: skip


def _columns(name: str, spread: str, figure: Figure | None) -> dict[str, float | None]:
    mean, width, _ = figure or (None, None, 0)
    values = {name: mean, f"{name}_{spread}": width}
    return {key: None if value is None else round(value, 4) for key, value in values.items()}


def gains(groups: list[Group]) -> tuple[list[dict[str, Any]], list[str]]:
    """(panels for `plots.gain_per_class`, why there is none for the other groups).

    The gain of a class is its last-epoch accuracy minus that of SGD's run of the same seed, mean
    over the common seeds.
    """
    panels, missing = [], []
    for group in groups:
        pairs = [
            (run, sgd) for run, sgd in group.pairs() if _has_classes(run) and _has_classes(sgd)
        ]
        if not pairs and _rules(group) != {"sgd"}:
            why = "no per_class.csv beside its reports" if group.pairs() else "no SGD run"
            why += "" if group.pairs() else " of the same setting and seed"
            missing.append(f"no gain per class of {group.number}. {method(group)}: {why}")
        if pairs:
            read = [(_classes(run), _classes(sgd)) for run, sgd in pairs]
            counts = read[0][1][0]
            if any(table[0] != counts for both in read for table in both):
                raise RunError(f"the runs of {method(group)} and of SGD differ in class sizes")
            seeds = [[a - b for a, b in zip(x[1], y[1], strict=True)] for x, y in read]
            mean = [statistics.fmean(values) for values in zip(*seeds, strict=True)]
            title = f"{method(group)}; {data(group)}; n = {len(pairs)}"
            eta = group.facts.get("eta")
            panels.append({"title": title, "counts": counts, "gain": mean, "eta": eta})
    return panels, missing


def _has_classes(report: dict[str, Any]) -> bool:
    # Beside a report of another name may lie the table of another run.
    file = Path(report["path"])
    return file.name == "report.json" and (file.parent / "per_class.csv").exists()


def _classes(report: dict[str, Any]) -> tuple[list[int], list[float]]:
    """(training examples, accuracy) of each class; NaN where none was tested."""
    file = Path(report["path"]).parent / "per_class.csv"
    try:
        with open(file, newline="") as stream:
            rows = list(csv.DictReader(stream))
        counts = [int(row["train_examples"]) for row in rows]
        return counts, [float(row["accuracy"] or "nan") for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error!r}") from error


# ---- the command ----------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Group finished runs over seeds and set published figures beside them.")
    parser.add_argument(
        "runs", nargs="+", help="run folders, folders of seeds or runs, or report.json files"
    )
    parser.add_argument("--out", help="folder for report.md, report.csv and gain_per_class.png")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    return parser


def main(args: argparse.Namespace) -> None:
    out = Path(args.out) if args.out else None
    if out and out.exists() and not out.is_dir():
        raise RunError(f"{out} is no folder: choose another --out")
    if out and out.exists() and any(out.iterdir()) and not args.overwrite:
        raise RunError(f"{out} is not empty: pass --overwrite, or choose another --out")
    reports = find(args.runs)
    groups = grouped(reports)
    show(reports)
    console = _console()
    beside = published_table(groups)
    console.print(beside if beside.row_count else "No published figure of these settings.")
    without = [path for path in args.runs if not any(_files(Path(path)))]
    if without:
        console.print(f"no finished run in {', '.join(without)}")
    if out:
        missing = write(out, groups)
        console.print(f"report.md and report.csv are in {out}")
        plot = (out / "gain_per_class.png").exists()
        console.print(*(["gain_per_class.png too"] * plot), *missing, sep="\n")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
