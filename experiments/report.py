"""Finished runs beside published figures: `python -m experiments.report runs/* [--out DIR]`.

Runs that differ in nothing but the seed are one row: mean ± sample deviation over seeds, and the
difference to SGD in the same setting, paired by seed, mean ± standard error. With --out, Markdown,
CSV and the accuracy gain of each class over SGD (the ImbSAM paper's Fig. 2) are written.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.host import cli
from experiments.host.errors import RunError
from experiments.host.needs import beside
from experiments.reports import published
from experiments.reports.grouping import (
    COLUMNS,
    KINDS,
    Figure,
    Group,
    data,
    differs,
    find,
    grouped,
    is_number,
    method,
    number,
    passed_over,
    plus_minus,
    protocol,
    rules_of,
    seed_list,
    setting,
    source,
)

__all__ = ["COLUMNS", "find", "number", "show"]

NOTE = (
    "last: the last epoch, no test-time augmentation. best*: what most papers report, the best "
    "epoch on the test set, flip-averaged; chosen on the test set, it is optimistic. Published "
    "figures compare with best*, never with last."
)


_SHOWN = 12  # paths that were passed over


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
            label += f"\n{cli.noun(len(group.pairs()), 'seed')} in common with SGD"
        result.add_row(label, *map("\n".join, zip(*lines, strict=True)), *_costs(group))
    return result


def _costs(group: Group) -> list[str]:
    return [number(group.median("step_ms")), number(group.median("flops_ratio_to_sgd"), 2)]


def _seeds(group: Group) -> str:
    return f"{'seed' if len(group.seeds) == 1 else 'seeds'} {seed_list(group)}"


def settings(groups: list[Group]) -> str:
    """A line for each setting of these groups, with their numbers."""
    numbers: dict[str, list[str]] = {}
    for group in groups:
        shown = f"{data(group)}, {setting(group)}, {_seeds(group)}; protocol: {protocol(group)}"
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
            names = ", ".join(map(_short, differs(group, row)))
            result.add_row(f"{group.number}.", *figures, source(row), row.protocol, names or "-")
    return result


def _few_seeds(groups: list[Group]) -> str:
    """How much wider than a standard error the 95% t intervals of so few differences are."""
    wider = {2: "12.7", 3: "4.3", 4: "3.2"}  # quantiles of t with n - 1 degrees of freedom
    found = sorted({len(group.pairs()) for group in groups} & wider.keys())
    each = ", ".join(f"{wider[n]} of them for {n} seeds" for n in found)
    return f" (a 95% interval is {each}, to either side)" if each else ""


def _short(difference: str) -> str:
    """The name alone of "lr 0.1, not 0.01"."""
    both = ", not " in difference or ", theirs " in difference
    return difference.split()[0] if both else difference


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
        "standard error" + _few_seeds(groups) + ". FLOPs: a step's over SGD's.",
        style="dim",
    )


# ---- files ----------------------------------------------------------------------------------


def write(out: Path, groups: list[Group]) -> list[str]:
    """Writes report.md, report.csv and gain_per_class.png; returns why a gain is not plotted."""
    from experiments.reports import plots

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
             f"SGD, paired by seed, the standard error{_few_seeds(groups)}."]  # fmt: skip
    used: dict[str, None] = {}
    for name in dict.fromkeys(map(data, groups)):
        head = ["", "figures", "n", *COLUMNS, "all - SGD", "few - SGD", "ms/step", "FLOPs",
                "protocol", "source; in what the run differs from its protocol"]  # fmt: skip
        lines += ["", f"## {name}", "", _cells(head), _cells(["---"] * len(head))]
        for group in (group for group in groups if data(group) == name):
            title = {"last": f"**{group.number}. {method(group)}**", "best": f"{group.number}."}
            about = f"{setting(group)}; {_seeds(group)}"
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
            counts = read[0][1][0]
            if any(table[0] != counts for both in read for table in both):
                raise RunError(f"the runs of {method(group)} and of SGD differ in class sizes")
            seeds = [[a - b for a, b in zip(x[1], y[1], strict=True)] for x, y in read]
            mean = [statistics.fmean(values) for values in zip(*seeds, strict=True)]
            title = f"{method(group)}; {data(group)}; {cli.noun(len(pairs), 'seed')}"
            eta, shots = group.facts.get("eta"), pairs[0][0].get("thresholds")
            panel: dict[str, Any] = {"title": title, "counts": counts, "gain": mean}
            panel["eta"] = eta if is_number(eta) else None
            if len(pairs) > 1:
                panel["se"] = [
                    statistics.stdev(values) / len(values) ** 0.5
                    for values in zip(*seeds, strict=True)
                ]
            named = [(shots or {}).get(name) for name in ("many_above", "few_below")]
            if all(map(is_number, named)):
                panel["thresholds"] = tuple(named)
            panels.append(panel)
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
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise RunError(f"cannot read {file}: {error!r}") from error


# ---- the command ----------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Group finished runs over seeds and set published figures beside them.",
        {"out": (), "overwrite": (beside("out"),)},
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=cli.text,
        help="run folders, folders with runs in them at any depth, or report files",
    )
    parser.add_argument(
        "--out", type=cli.text, help="folder for report.md, report.csv and gain_per_class.png"
    )
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
    passed = passed_over(args.runs)
    if passed:
        more = f" and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
        console.print(f"passed over, no finished run in: {', '.join(passed[:_SHOWN])}{more}")
    if out:
        missing = write(out, groups)
        console.print(f"report.md and report.csv are in {out}")
        plot = (out / "gain_per_class.png").exists()
        console.print(*(["gain_per_class.png too"] * plot), *missing, sep="\n")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
