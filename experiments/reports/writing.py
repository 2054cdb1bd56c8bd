"""The files of a report: Markdown, CSV, and the gain of each class over SGD."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host import cli, outputs
from experiments.host.errors import RunError
from experiments.reports import matching, published
from experiments.reports.compare_shape import is_whole, misfit
from experiments.reports.figures import COLUMNS, Figure, number, plus_minus
from experiments.reports.grouping import Group, rules_of
from experiments.reports.naming import (
    data,
    differs,
    method,
    protocol,
    setting,
    source,
)
from experiments.reports.reading import (
    Classes,
    classes,
    is_accuracy,
    is_number,
    is_text,
    or_none,
)
from experiments.reports.tables import NOTE, costs, few_seeds, seeds_of


def write(out: Path, groups: list[Group], panels: list[dict[str, Any]]) -> None:
    """Writes report.md, report.csv, gains.json and what draws it; panels are of `gains`."""
    records = list(csv_records(groups))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(dict.fromkeys(name for r in records for name in r)))
    writer.writeheader()
    writer.writerows(records)
    outputs.replace_text(out / "report.md", markdown(groups, bool(panels)))
    outputs.replace_text(out / "report.csv", table.getvalue())
    outputs.clear_plots(out, ["gain_per_class"])
    with outputs.writing(out):
        (out / GAINS).unlink(missing_ok=True)
    if panels:
        held = [
            {**panel, **{k: _known(panel[k]) for k in ("gain", "se") if k in panel}}
            for panel in panels
        ]
        outputs.replace_text(out / GAINS, json.dumps(held) + "\n")
        draw_gains(out)


GAINS = "gains.json"


def draw_gains(out: Path) -> list[Path]:
    """The plot of a folder's gains.json."""
    from experiments.reports import plots

    panels = outputs.read_json(out / GAINS)
    wrong = _misfit(panels)
    if wrong is not None:
        raise RunError(
            f"{out / GAINS} is damaged: its {wrong} is not what a report writes; write it again"
        )
    for panel in panels:
        for name in {"gain", "se"} & panel.keys():
            panel[name] = [math.nan if value is None else value for value in panel[name]]
    plots.gain_per_class(out / "gain_per_class.png", panels)
    return [out / "gain_per_class.png"]


def _misfit(panels: Any) -> str | None:
    wrong = "panels" if not panels else misfit(panels, [_PANEL], "panels")
    if wrong is not None:
        return wrong
    for at, panel in enumerate(panels):
        wrong = misfit(panel, {name: of for name, of in _MAY_HAVE.items() if name in panel})
        lists = [name for name in ("gain", "se") if name in panel]
        odd = [name for name in lists if wrong or len(panel[name]) != len(panel["counts"])]
        if wrong is not None or odd:
            return f"panels.{at}.{wrong or odd[0]}"
    return None


def _is_gain(value: Any) -> bool:
    return is_number(value) and abs(value) <= 100.001


_PANEL: dict[str, Any] = {
    "title": is_text, "counts": [is_whole], "gain": [or_none(_is_gain)], "eta": or_none(is_number),
}  # fmt: skip
_MAY_HAVE: dict[str, Any] = {
    "se": [or_none(is_accuracy)],
    "thresholds": lambda value: isinstance(value, list) and [*map(is_number, value)] == [True] * 2,
}


def _known(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def markdown(groups: list[Group], plot: bool) -> str:
    """A section for each data set: each group, and beside it what was published."""
    lines = ["# Runs beside published figures", "", NOTE, "", "Accuracy in percent, mean over "
             "classes. n: number of seeds. ± is the sample deviation over seeds; of differences to "
             f"SGD, paired by seed, the standard error{few_seeds(groups)}."]  # fmt: skip
    used: dict[str, None] = {}
    for name in dict.fromkeys(map(data, groups)):
        head = ["", "figures", "n", *COLUMNS, "all - SGD", "few - SGD", "ms/step", "FLOPs",
                "protocol", "source; in what the run differs from its protocol"]  # fmt: skip
        lines += ["", f"## {name}", "", _cells(head), _cells(["---"] * len(head))]
        for group in (group for group in groups if data(group) == name):
            title = dict.fromkeys(group.kinds, f"{group.number}.")
            title["last"] = f"**{group.number}. {method(group)}**"
            about = f"{setting(group)}; {seeds_of(group)}"
            if group.sgd and len(group.pairs()) < len(group.seeds):
                about += f", {len(group.pairs())} of them in common with SGD"
            for kind, shown in group.kinds.items():
                figures = [plus_minus(group.figure(kind, split)) for split in COLUMNS]
                figures += [plus_minus(group.gain(kind, split), "+") for split in ("all", "few")]
                rest = [*costs(group), protocol(group), about] if kind == "last" else [""] * 4
                lines.append(_cells([title[kind], shown, len(group.seeds), *figures, *rest]))
            found = matching.beside(group.facts)
            if not found:
                lines.append(_cells(["no published figure of this setting", *[""] * 12]))
            for theirs in found:
                used[theirs.protocol] = None
                figures = [number(getattr(theirs, split)) for split in COLUMNS]
                about_theirs = [source(theirs), theirs.note, "; ".join(differs(group, theirs))]
                cells = ["published", f"epoch: {theirs.chosen}", "", *figures, *[""] * 4]
                mark = f"{theirs.protocol}[^{theirs.protocol}]"
                lines.append(_cells([*cells, mark, "; ".join(filter(None, about_theirs))]))
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
    """A record a group, kind "run", and one for each published result beside it."""
    for group in groups:
        facts = group.facts
        names = ("dataset", "imbalance_factor", "rule", "loss", "stage2", "model", "epochs")
        shared = {"run": group.number, **{name: facts[name] for name in names}}
        found: dict[str, Any] = {"kind": "run", **shared, "protocol": protocol(group)}
        found |= {"method": method(group), "setting": setting(group), "n": len(group.seeds),
                  "seeds": " ".join(map(str, group.seeds))}  # fmt: skip
        for kind in group.kinds:
            for split in COLUMNS:
                name = f"{kind}_{split}"
                mean, gain = group.figure(kind, split), group.gain(kind, split)
                found |= _columns(name, "sd", mean)
                found |= _columns(f"{name}_minus_sgd", "se", gain)
        costs = ("step_ms", "flops_ratio_to_sgd")
        found["n_in_common_with_sgd"] = len(group.pairs()) if group.sgd else None
        yield found | {name: group.median(name) for name in costs}
        for theirs in matching.beside(facts):
            yield {
                "kind": "published", **shared, "protocol": theirs.protocol,
                "loss": theirs.loss, "model": theirs.overrides.get("model"), "epochs": None,
                **{f"published_{split}": getattr(theirs, split) for split in COLUMNS},
                "chosen": theirs.chosen, "source": source(theirs),
                "note": theirs.note, "run_differs": "; ".join(differs(group, theirs)),
            }  # fmt: skip


def _columns(name: str, spread: str, figure: Figure | None) -> dict[str, float | None]:
    mean, width, *_ = figure or (None, None)
    values = {name: mean, f"{name}_{spread}": width}
    return {key: None if value is None else round(value, 4) for key, value in values.items()}


def gains(groups: list[Group]) -> tuple[list[dict[str, Any]], list[str]]:
    """(panels for `plots.gain_per_class`, why there is none for the other groups); writes nothing.

    The gain of a class is its last-epoch accuracy minus that of SGD's run of the same seed, mean
    and standard error over the common seeds.
    """
    panels, missing = [], []
    for group in groups:
        pairs = [
            (run, sgd) for run, sgd in group.pairs() if _has_classes(run) and _has_classes(sgd)
        ]
        if not pairs and rules_of(group) != {"sgd"}:
            why = "no per_class.csv beside its reports" if group.pairs() else "no SGD run"
            why += "" if group.pairs() else " of the same setting and seed"
            missing.append(f"no gain per class of {group.number}. {method(group)}: {why}")
        if pairs:
            read = [(_classes(run), _classes(sgd)) for run, sgd in pairs]
            counts = read[0][1].counts
            if any(table.counts != counts for both in read for table in both):
                raise RunError(f"the runs of {method(group)} and of SGD differ in class sizes")
            accuracies = [(run.accuracies(), sgd.accuracies()) for run, sgd in read]
            seeds = [[a - b for a, b in zip(*both, strict=True)] for both in accuracies]
            mean = [statistics.fmean(values) for values in zip(*seeds, strict=True)]
            title = f"{method(group)}; {data(group)}; {cli.noun(len(pairs), 'seed')}"
            eta, shots = group.facts.get("eta"), pairs[0][0].get("thresholds")
            panel: dict[str, Any] = {"title": title, "counts": counts, "gain": mean}
            panel["eta"] = eta if is_number(eta) else None
            if len(pairs) > 1:
                # Of a class without a test image NaN, at which statistics.stdev would raise.
                panel["se"] = (np.std(seeds, axis=0, ddof=1) / len(seeds) ** 0.5).tolist()
            named = [(shots or {}).get(name) for name in ("many_above", "few_below")]
            if all(map(is_number, named)):
                panel["thresholds"] = tuple(named)
            panels.append(panel)
    return panels, missing


def _has_classes(report: dict[str, Any]) -> bool:
    # Beside a report of another name may lie the table of another run.
    file = Path(report["path"])
    return file.name == "report.json" and (file.parent / "per_class.csv").exists()


def _classes(report: dict[str, Any]) -> Classes:
    return classes(Path(report["path"]).parent / "per_class.csv", report)
