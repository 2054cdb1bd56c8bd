"""What anomaly runs add up to: paired differences, and the paper's table beside them."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.anomaly.program import RULES
from experiments.anomaly.tables import PROTOCOLS
from experiments.anomaly.training import METHODS, RUN, Result
from experiments.host import outputs
from experiments.host.cli import noun
from experiments.host.errors import RunError
from experiments.host.outputs import is_number, same_text
from experiments.reports.paired import holm

METRICS = {"auroc": "AUROC", "ap_anomaly": "AP anomaly", "ap_normal": "AP normal"}

# Table 4 of the paper, AUROC in percent at 25% labels, and the names its families have in ADBench.
_FAMILIES = ("CIFAR10", "FashionMNIST", "MNIST-C", "MVTec-AD", "SVHN")
_PAPER = {
    ("devnet", "sgd"): (88.4, 96.4, 95.6, 95.6, 82.1, 91.6),
    ("devnet", "sam"): (88.2, 96.2, 95.3, 94.2, 81.0, 91.0),
    ("devnet", "imbsam"): (88.7, 96.7, 96.0, 96.2, 83.7, 92.2),
    ("deepsad", "sgd"): (86.5, 96.3, 96.4, 93.1, 80.9, 90.6),
    ("deepsad", "sam"): (86.9, 96.7, 96.1, 91.3, 81.0, 90.4),
    ("deepsad", "imbsam"): (87.9, 97.0, 96.2, 95.3, 82.4, 91.8),
}
PAPER_RATIO = 0.25

# Percentage points. Equal figures of three seeds in another order differ by 1e-14; one pair of
# test rows that changes places moves AUROC by more than this up to some 10^10 pairs.
_ROUNDING = 1e-9


def summarise(results: Sequence[Result], rules: Sequence[str]) -> list[dict[str, Any]]:
    """One object for each protocol, label ratio, method and rule, all figures in percent.

    For each metric: the mean over data sets; its standard deviation over seeds (of the mean over
    data sets); the difference to sgd, paired by data set (each the mean over seeds), its standard
    error over data sets, and on how many it is positive, where a tie within rounding is none. None
    where there is nothing to take it of; one diverged run leaves its means None too, and is
    counted.
    """
    datasets = list(dict.fromkeys(r.dataset for r in results))
    seeds = list(dict.fromkeys(r.seed for r in results))
    by_key = {(r.protocol, r.label_ratio, r.method, r.rule, r.dataset, r.seed): r for r in results}
    groups = dict.fromkeys((r.protocol, r.label_ratio, r.method) for r in results)
    summary = []
    for protocol, label_ratio, method in groups:
        values = {
            rule: {
                metric: np.array(
                    [
                        [
                            getattr(by_key[protocol, label_ratio, method, rule, d, s], metric)
                            for s in seeds
                        ]
                        for d in datasets
                    ]
                )
                for metric in METRICS
            }
            for rule in rules
        }
        for rule in rules:
            row: dict[str, Any] = {
                "protocol": protocol, "label_ratio": label_ratio, "method": method, "rule": rule,
                "datasets": len(datasets), "seeds": len(seeds),
            }  # fmt: skip
            row["diverged"] = int(np.isnan(values[rule]["auroc"]).sum())
            for metric in METRICS:
                table = values[rule][metric]
                row[metric] = _mean(table)
                row[f"{metric}_sd"] = _deviation(table.mean(axis=0))
                if rule != "sgd" and "sgd" in values:
                    paired = (table - values["sgd"][metric]).mean(axis=1)
                    spread = _deviation(paired)
                    row[f"{metric}_minus_sgd"] = _mean(paired)
                    row[f"{metric}_minus_sgd_se"] = (
                        None if spread is None else spread / math.sqrt(len(datasets))
                    )
                    row[f"{metric}_improved"] = int((paired > _ROUNDING).sum())
            summary.append(row)
    return summary


def _mean(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _deviation(values: NDArray[np.float64]) -> float | None:
    """Sample standard deviation; none for a single value."""
    return None if len(values) < 2 or np.isnan(values).any() else float(values.std(ddof=1))


def standing(
    summaries: Iterable[Mapping[str, Any]],
    metrics: Sequence[str] = tuple(METRICS),
    level: float = 0.05,
) -> tuple[list[tuple[Mapping[str, Any], str, float]], int]:
    """(the differences to sgd that Holm's correction leaves, of how many).

    Each is tested by itself with a two-sided paired t test over data sets; those left are (row of
    `summarise`, metric, corrected p-value). Differences that are all alike are none.
    """
    from scipy import stats

    known = [
        (row, metric, row[f"{metric}_minus_sgd"] / row[f"{metric}_minus_sgd_se"])
        for row in summaries
        for metric in metrics
        if row.get(f"{metric}_minus_sgd") is not None
        and (row[f"{metric}_minus_sgd_se"] or 0) > _ROUNDING
    ]
    p = [2 * stats.t.sf(abs(t), row["datasets"] - 1) for row, _, t in known]
    left = [
        (row, metric, corrected)
        for (row, metric, _), corrected in zip(known, holm(p), strict=True)
        if corrected is not None and corrected <= level
    ]
    return left, len(known)


def families(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Table 4 of the paper as quoted, and this run's mean AUROC of the same families at 25%."""
    rows = []
    for (method, rule), quoted in _PAPER.items():
        mine = [r for r in results if (r.method, r.rule) == (method, rule)]
        for protocol in list(dict.fromkeys(r.protocol for r in mine)) or ["-"]:
            at = [r for r in mine if r.protocol == protocol]
            # The full protocol has one label ratio, 1, and stands beside the paper's too.
            at = [r for r in at if r.label_ratio == PAPER_RATIO or protocol == "full"]
            row: dict[str, Any] = {"method": method, "rule": rule, "protocol": protocol}
            for k, family in enumerate(_FAMILIES):
                here = [r for r in at if re.match(f"{re.escape(family)}(?![0-9])", r.dataset)]
                row[family] = {
                    "paper": quoted[k],
                    "here": _mean(np.array([r.auroc for r in here])) if here else None,
                    "subsets": len({r.dataset for r in here}),
                }
            row["average"] = {"paper": quoted[-1]}
            rows.append(row)
    return rows


def _figure(
    value: float | None, spread: float | None = None, sign: str = "", digits: int = 2
) -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def show(summary: Sequence[dict[str, Any]], quoted: Sequence[dict[str, Any]], title: str) -> None:
    """Prints the tables; they fit in 80 columns."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=80)
    console.print(title, style="bold")
    for group in dict.fromkeys((row["protocol"], row["label_ratio"]) for row in summary):
        rows = [row for row in summary if (row["protocol"], row["label_ratio"]) == group]
        console.print(_of_a_group(*group, rows), "")
    console.print(
        "Percent, last epoch: mean over data sets ± standard deviation of that mean over seeds. "
        "Differences are paired by data set and seed: mean over data sets ± standard error, and "
        "on how many data sets the difference is above zero.",
        style="dim",
    )
    left, number = standing(summary)
    if number:
        console.print(_stands(left, number), style="dim")
    for row in (row for row in summary if row["diverged"]):
        console.print(_diverged(row), style="bold")
    console.print("", _beside_the_paper(quoted))
    console.print(
        "In brackets: subsets trained here. The paper's levels do not come out of ADBench's own "
        "code and protocol either; they are quoted, not a target.",
        style="dim",
    )


def _grid(title: str, *names: str) -> Any:
    """A table, with the columns that name a row."""
    from rich.table import Table as Grid

    grid = Grid(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in names:
        grid.add_column(name)
    return grid


def _of_a_group(protocol: str, label_ratio: float, rows: Sequence[dict[str, Any]]) -> Any:
    """A line for each method and rule, under it what it differs by from SGD."""
    title = f"{protocol} protocol, {100 * label_ratio:g}% of the training anomalies labelled"
    grid = _grid(title, "method", "rule", "")
    for name in METRICS.values():
        grid.add_column(name, justify="right")
    before = None
    for row in rows:
        method = row["method"] if row["method"] != before else ""
        levels = [_figure(row[m], row[f"{m}_sd"]) for m in METRICS]
        grid.add_row(method, row["rule"], "", *levels)
        if all(f"{m}_minus_sgd" in row for m in METRICS):
            grid.add_row("", "", "- SGD", *(_difference(row, m) for m in METRICS))
        before = row["method"]
    return grid


def _beside_the_paper(quoted: Sequence[dict[str, Any]]) -> Any:
    grid = _grid(
        "Table 4 of the paper (AUROC %, 25% labels): as quoted, below it the subsets here",
        "method", "rule", "protocol",
    )  # fmt: skip
    for name in _FAMILIES:
        grid.add_column(name.replace("-", "-\n").replace("Fashion", "Fashion-\n"), justify="right")
    grid.add_column("average", justify="right")
    for row in quoted:
        cells = []
        for family in _FAMILIES:
            cell, here = row[family], ""
            if cell["subsets"]:
                here = f"\n{_figure(cell['here'], digits=1)} ({cell['subsets']})"
            cells.append(f"{cell['paper']:.1f}{here}")
        cells.append(f"{row['average']['paper']:.1f}")
        grid.add_row(row["method"], row["rule"], row["protocol"], *cells)
    return grid


def _diverged(row: Mapping[str, Any]) -> str:
    return (
        f"{row['method']} under {row['rule']} ({row['protocol']}, {row['label_ratio']:g}): "
        f"{row['diverged']} of {noun(row['datasets'] * row['seeds'], 'run')} diverged (scores "
        "that are not finite); lower --lr"
    )


def _difference(row: Mapping[str, Any], metric: str) -> str:
    mean = row[f"{metric}_minus_sgd"]
    shown = _figure(mean, row[f"{metric}_minus_sgd_se"], "+")
    return shown if mean is None else f"{shown} {row[f'{metric}_improved']}/{row['datasets']}"


def _stands(left: Sequence[tuple[Mapping[str, Any], str, float]], number: int) -> str:
    each = "; ".join(
        f"{row['method']} {row['rule']} {METRICS[metric]} "
        f"({row['protocol']}, {100 * row['label_ratio']:g}%)"
        for row, metric, _ in left
    )
    return (
        f"Of these {number} differences {len(left) or 'none'} "
        f"{'stands' if len(left) < 2 else 'stand'} at 5% when each is tested (paired t over data "
        "sets) and all are corrected for their number (Holm)" + (f": {each}." if each else ".")
    )


def write_runs(path: Path, results: Sequence[Result]) -> None:
    """runs.csv: a record a run, its columns the fields of Result."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Result._fields)
    for r in results:
        figures = [f"{getattr(r, name):.4f}" for name in Result._fields[RUN:]]
        writer.writerow([*run_of(r).values(), *figures])
    outputs.replace_text(path, text.getvalue())


def run_of(result: Result) -> dict[str, str]:
    """Which run it is, as runs.csv writes it."""
    told = {**result._asdict(), "label_ratio": f"{result.label_ratio:g}"}
    return {name: str(told[name]) for name in Result._fields[:RUN]}


# ---- read again ---------------------------------------------------------------------------------


def read_runs(out: Path, config: Mapping[str, Any]) -> list[Result]:
    """What `write_runs` wrote; RunError where it is not each run of config.json once."""
    path = out / "runs.csv"
    found = [_result(line, path) for line in outputs.read_csv(path)]
    asked = [
        (dataset, method, rule, str(seed), f"{ratio:g}", protocol)
        for protocol in config["protocol"]
        for ratio in ([1.0] if protocol == "full" else config["label_ratio"])
        for dataset, method, rule, seed in itertools.product(
            config["datasets"], config["method"], config["rule"], config["seeds"]
        )
    ]
    if sorted(asked) != sorted(tuple(run_of(result).values()) for result in found) or not found:
        raise RunError(f"{path} has not one line for each run of config.json: {_AGAIN}")
    return found


_AGAIN = "train again"
_KINDS = {"method": METHODS, "rule": RULES, "protocol": PROTOCOLS}


def _result(line: Mapping[str, str], path: Path) -> Result:
    try:
        numbers = [float(line[name]) for name in Result._fields[RUN:]]
        ratio, seed = float(line["label_ratio"]), int(line["seed"])
        fits = 0 < ratio <= 1 and all(line[name] in known for name, known in _KINDS.items())
        fits &= all(math.isnan(value) or 0 <= value <= 100 for value in numbers[:-1])
    except (KeyError, ValueError):
        fits = False
    if not fits:
        raise RunError(f"{path} is damaged: no run is {same_text(line)}; {_AGAIN}")
    about = line["dataset"], line["method"], line["rule"], seed, ratio, line["protocol"]
    return Result(*about, *numbers)


def read_groups(out: Path) -> list[dict[str, Any]]:
    """The groups of summary.json; RunError where they are not what runs.csv adds up to."""
    groups, config = (outputs.read_object(out / n) for n in ("summary.json", "config.json"))
    held: Any = groups["groups"]
    summed = summarise(read_runs(out, config), config["rule"])
    wrong: str | None = "groups"
    if isinstance(held, list) and len(held) == len(summed):
        differ = (_differs(a, b) for a, b in zip(held, summed, strict=True))
        wrong = next((f"groups.{k}.{name}" for k, name in enumerate(differ) if name), None)
    if wrong:
        raise RunError(
            f"{out / 'summary.json'} is damaged: its {wrong} is not what runs.csv adds up to; "
            f"{_AGAIN}"
        )
    return list(held)


def _differs(group: Any, summed: Mapping[str, Any]) -> str | None:
    """The first field that is another, but for the rounding of runs.csv."""
    if not isinstance(group, dict):
        return "protocol"
    for name, value in summed.items():
        if name.endswith("_improved"):  # a difference near zero may change its sign
            continue
        told: Any = group.get(name)
        if isinstance(value, float) and is_number(told):
            near = 0.0 if name == "label_ratio" else 1e-3
            if not math.isclose(told, value, rel_tol=1e-5, abs_tol=near):
                return name
        elif told != value or isinstance(told, bool):
            return name
    return None
