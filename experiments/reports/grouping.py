"""Finished runs grouped over their seeds, each beside SGD of the same setting."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.host.errors import RunError
from experiments.host.folders import place_of
from experiments.reports.figures import Figure
from experiments.reports.reading import is_first, is_number

# Two kinds of figures that must not be compared with each other.
KINDS = {"last": "last epoch", "best": "best*"}
# Of runs that averaged five crops of each test image.
_CROPS = {"crops": "last epoch, five crops"}
# What runs had before a report said so, and what goes without saying.
_DEFAULTS: dict[str, Any] = {
    "subset": "first", "val_per_class": 0, "mixup": 0.0, "classifier": "linear", "momentum": 0.9,
    "precision": "float32", "augment": True, "eval_every": 1, "sampling": "natural", "per_visit": 1,
    "trained": "all", "statistics": "updated", "max_norm": "none", "weight_decay_inside": False,
    "strict": False, "running_statistics": "first", "group_mean": False, "accumulate": 1,
    "remat": False, "jitter": 0.0, "loader": "grain", "examples": "dependent",
    "memory": None, "shrink": 1, "adapter": "full", "adapter_size": 0, "enlarged": 0,
    "enlarged_eval": 0, "features": False, "ensemble": False,
    "tail_statistics": "renorm",  # there were others
}  # fmt: skip
# Of the settings: what does not decide a result, or only its rounding.
DECIDES_NOTHING = (
    "seed", "eval_batch", "checkpoint_every", "keep_checkpoints", "steps_per_call", "parallel",
    "devices", "workers", "max_corrupt", "ensemble",
)  # fmt: skip
_DECIDES = (
    "dataset", "imbalance_factor", "source", "class_counts_sha256", "thresholds", "subset",
    "val_per_class", "model", "classifier", "epochs", "batch_size", "rule", "rule_args", "ascent",
    "loss", "loss_args", "mixup", "stage2", "stage2_args", "init", "image_size", "resize", "memory",
    "shrink", "classifier_start", "texts_sha256", "features", "rows_sha256",
    "jax",
)  # fmt: skip
# What tells the data of one run from another's, where neither says which images it saw.
_OF_DATA = ("dataset", "source", "class_counts_sha256", "val_per_class", "shrink")
# SGD is the same whichever rows the passes of other rules see.
METHOD = ("rule", "rule_args", "ascent", "memory", "examples", "tail_statistics")


@dataclasses.dataclass
class Group:
    """Runs that differ in the seed alone, by seed.

    Attributes:
      number: from 1, as shown in tables.
      identity: what decides their results, defaults left out.
      facts: what `matching` wants to know of them; of a second stage, those of the first.
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

    @property
    def kinds(self) -> dict[str, str]:
        """What its figures are, by kind, in words."""
        cropped = all(report.get("last_epoch_ensembled") for report in self.reports)
        return {**KINDS, **_CROPS} if cropped else KINDS

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
    of_kind = {"best": "best_epoch_flip", "crops": "last_epoch_ensembled"}
    found = report if kind == "last" else report.get(of_kind[kind], {})
    return found.get(split)


def _figure(values: list[Any]) -> Figure | None:
    if not values or None in values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Figure(statistics.fmean(values), spread, len(values))


def grouped(reports: Iterable[dict[str, Any]]) -> list[Group]:
    """Groups in the order of their first run; two runs of one seed in a group are an error."""
    groups: dict[str, Group] = {}
    for report in _with_rows(list(_with_first(reports))):
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
    of_sgd: dict[str, list[Group]] = {}
    for group in groups.values():
        if rules_of(group) == {"sgd"}:
            of_sgd.setdefault(_key(_setting(group.identity)), []).append(group)
    for group in groups.values():
        found = of_sgd.get(_key(_setting(group.identity)), [])
        group.sgd = None if group in found else _nearest(group, found)
    return list(groups.values())


def _nearest(group: Group, found: list[Group]) -> Group | None:
    """Of SGD's groups of one setting that with most seeds in common, then of the same passes."""

    def rank(sgd: Group) -> tuple[int, bool]:
        same = sgd.identity.get("examples") == group.identity.get("examples")
        return len({*sgd.seeds} & {*group.seeds}), same

    return max(found, key=rank, default=None)


def _with_first(reports: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Second stages that were not read from a folder follow their first stage, seed by seed."""
    last: dict[str, Any] = {}
    for report in reports:
        if not report.get("stage2"):
            last = report
        same = is_first(last, report)
        alone = report.get("stage2") and not {"first", "path"} & report.keys()
        yield {**report, "first": last} if alone and same else report


def _with_rows(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that do not say which images they saw (once none did), with those of their data."""

    def data(report: dict[str, Any]) -> str:
        return _key({name: report.get(name) for name in _OF_DATA})

    known: dict[str, dict[str, Any]] = {}
    for report in reports:
        if rows := report.get("rows_sha256"):
            known.setdefault(data(report), {})[_key(rows)] = rows

    def told(report: dict[str, Any]) -> dict[str, Any]:
        if "first" in report:
            report = {**report, "first": told(report["first"])}
        rows = list(known.get(data(report), {}).values())
        alone = report.get("rows_sha256") is None and len(rows) == 1
        return {**report, "rows_sha256": rows[0]} if alone else report

    return [told(report) for report in reports]


def _folder(report: dict[str, Any]) -> Path | str:
    return Path(report["path"]).parent if "path" in report else f"a run of {report['rule']}"


def _identity(report: dict[str, Any]) -> dict[str, Any]:
    # The tail of stratified sampling; without that, what rules take stands in rule_args.
    unused = [] if report["settings"].get("sampling") == "stratified" else ["eta", "strict"]
    if report["settings"].get("examples") != "split_norm":
        unused.append("tail_statistics")
    settings = {k: v for k, v in report["settings"].items() if k not in (*DECIDES_NOTHING, *unused)}
    found = settings | {k: report[k] for k in _DECIDES if report.get(k) is not None}
    found |= _of_source(report)
    if "source" in found:
        found["source"] = place_of(str(found["source"]))
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
    found = {k: v for k, v in identity.items() if k not in METHOD}
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
    start = first.get("init")
    found["pretrained"] = start is not None and not str(start).startswith("random weights")
    if not is_number(found["shrink"]):  # a damaged option of that name: no run writes one
        found["shrink"] = _DEFAULTS["shrink"]
    if is_number(args.get("switch_step")) and first.get("train_examples"):
        found["switch_epoch"] = args["switch_step"] / -(
            -first["train_examples"] // first["batch_size"]
        )
    if found["subset"] != "first":
        found.setdefault("subset_seed", first.get("subset_seed", 0))
    drw = "+drw" if "drw_epoch" in (first.get("loss_args") or {}) else ""
    recipe = report.get("stage2")
    if recipe is None and first.get("experiment") == "finetune":
        recipe = found["adapter"]  # published figures name theirs so
    return found | {"loss": first["loss"] + drw, "ascent": ascent, "stage2": recipe}


def _of_source(report: dict[str, Any]) -> dict[str, Any]:
    """What an exported file says of its images, where the run's flags left that to the file."""
    source = str(report.get("source"))
    found: dict[str, Any] = {}
    factors = map(int, re.findall(r"every (\d+)x\1 pixels averaged", source))
    if report.get("shrink") is None:
        found["shrink"] = math.prod(factors)
    subset = re.search(r"of each class (first n_i by id|shuffled, seed (\d+))", source)
    if report.get("subset") is None and subset:
        found["subset"] = "shuffled" if subset[2] else "first"
        if subset[2]:
            found["subset_seed"] = int(subset[2])
    return found
