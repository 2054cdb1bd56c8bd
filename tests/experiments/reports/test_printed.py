"""The tables on the terminal: a heading over every column, a cell under each in every row."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import recorded
from experiments.anomaly import report as anomaly_report
from experiments.bench import grid
from experiments.bench import tables as bench_tables
from experiments.bench.tables import SPLITS as SHOTS
from experiments.reports import compare_page, compare_table, grouping, tables, writing
from made_comparisons import folder_of
from made_reports import IMBSAM, make
from places import ROOT


def of_reports(folder):
    found = [make(seed, *of) for seed in (0, 1) for of in (("sgd",), ("imbsam", 51.0, IMBSAM))]
    tables.show(found)
    tables.console().print(tables.published_table(tables.grouped(found)))


def of_the_bench(folder):
    found = json.loads((ROOT / "results" / "digits_lt" / "summary.json").read_text())
    bench_tables.show([line | {"diverged": None} for line in found], "here")


def of_a_comparison(folder):
    folder_of(folder)
    compare_table.show(json.loads((folder / "summary.json").read_text()))


def of_anomalies(folder):
    file = ROOT / "results" / "anomaly" / "protocol" / "summary.json"
    found = json.loads(file.read_text())
    anomaly_report.show(found["groups"], found["paper_table_4"], "title")


SPLITS = ["many", "medium", "few", "all"]
HEADS = {
    of_reports: {
        "accuracy (%), mean over classes": [
            "run", "", *SPLITS, "all-SGD", "few-SGD", "ms/step", "FLOPs",
        ],
        "published, same data and method": [
            "run", *SPLITS, "source", "protocol", "the run differs in",
        ],
    },
    of_the_bench: {
        "accuracy (%), here": ["rule", "Many", "Medium", "Few", "All", "All-SGD", "Few-SGD", "cost"]
    },
    of_a_comparison: {
        "made: 272 rows, 3 classes, imbalance factor 17.5 in training": [
            "row", "bal. acc.", "- SGD", "95% interval", "p", "AUROC", "avg. prec.", "log-loss",
        ],
    },
    of_anomalies: {
        **{
            f"{protocol}% of the training anomalies labelled": [
                "method", "rule", "", "AUROC", "AP anomaly", "AP normal",
            ]
            for protocol in ("clean protocol, 25", "nodup protocol, 25", "full protocol, 100")
        },
        "Table 4 of the paper (AUROC %, 25% labels): as quoted, below it the subsets here": [
            "method", "rule", "protocol", "CIFAR10", "Fashion-\nMNIST", "MNIST-\nC", "MVTec-\nAD",
            "SVHN", "average",
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("show", HEADS)
def test_every_column_has_its_heading_and_every_row_its_cells(show, tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(Console, "print", lambda self, *what, **more: printed.extend(what))
    show(tmp_path)
    found = {str(one.title): one for one in printed if isinstance(one, Table)}
    heads = {title: [str(column.header) for column in one.columns] for title, one in found.items()}
    assert heads == HEADS[show]
    for one in found.values():
        # rich adds a column for a cell without one, and cells for a row without.
        assert one.row_count and {len(list(column.cells)) for column in one.columns} == {
            one.row_count
        }


# ---- as they are printed, word by word: printed/NAME ------------------------------------------

LONG = "a name that leaves no room for [what] stands in the other columns of the same long row"
SECOND = {"stage2": "crt", "stage2_args": {"lr": 0.1, "epochs": 10, "rule": "sgd"}, "epochs": 10}


def line(rule, mean, gain, why=None, stage2=None, cost=1.0):
    """Of a table of the bench."""
    found = {"rule": rule, "loss": "cross_entropy", "stage2": stage2, "seeds": [0, 1]}
    for name, value in {"many": 90.0, "medium": 80.0, "few": 70.25, "all": mean}.items():
        found |= {name: None if why else value, f"{name}_sd": None if why else value / 100}
    for name in ("paired_all", "paired_few"):
        found |= {name: None if why else gain, f"{name}_se": None if why else 0.25}
    return {**found, "step_cost_ratio": None if why else cost, "diverged": why}


LINES = [
    line("sgd", 81.0, 0.0), line("imbsam", 84.25, 3.25, stage2="crt", cost=2.345),
    line("sam", 1, 1, "the loss [late] is not finite"),
]  # fmt: skip


def bench_table(folder):
    bench_tables.show(LINES, "10 digits")
    bench_tables.show([*LINES, line(LONG, 1.0, -80.0)], "10 digits")


def sweeps(folder):
    """One point diverged; all did; one seed."""

    def at(value, seeds=2):
        found = dict.fromkeys(SHOTS, np.array([value - 1.0, value + 1.0][:seeds]))
        return found | {"medium": np.full(seeds, np.nan)}

    lost, names = at(np.nan), {"eta": [5.0, 30.0, 100.0], "rho": [0.1]}
    points = grid.points_of(names)
    tried = [
        grid.Tried({}, at(50.0), at(50.0)), grid.Tried(points[0], at(51.25), at(57.0)),
        grid.Tried(points[1], lost, lost, "the loss is nan"),
        grid.Tried(points[2], at(55.0), at(49.5)),
    ]  # fmt: skip
    none = [tried[0], *(grid.Tried(point, lost, lost, "nan") for point in points[:2])]
    alone = [grid.Tried(p, at(v, 1), at(v, 1)) for p, v in (({}, 51.0), ({"rho": 0.1}, 53.0))]
    for found, axes, seeds in ((tried, names, 2), (none, names, 2), (alone, {"rho": [0.1]}, 1)):
        summary = grid.summarise(found, list(range(seeds)))
        print(grid.table(summary, axes), grid.verdict(summary), sep="\n")
        print([[of["best_val"], of["best_test"]] for of in summary])


def a_comparison(folder, name="made", gain=1.0):
    """Made up, of two splits; of the rows one has no figures, and one a long name."""
    held = folder_of(folder, splits=2, groups=2, name=name, gain=gain)
    held["rows"][2] |= dict.fromkeys(("auroc", "log_loss", "balanced_accuracy", "worst_group"))
    held["rows"][2]["difference"] = dict.fromkeys(held["rows"][2]["difference"], [None] * 3)
    held["rows"][3] |= {"p_holm": 0.0004}
    return held


def comparison(folder):
    held = a_comparison(folder)
    compare_table.show(held)
    held["rows"][1]["row"] = LONG
    held["verdict"] = "Use [sam]: it is good. " * 6
    held["splits"] |= {"own_test": True}
    compare_table.show(held)


def page(folder):
    held = a_comparison(folder, name="<made>")
    print(compare_page.page(held, 12, {"recall.png": b"abc"}))
    held["splits"] |= {"own_test": True}
    held["about"] |= {"cut": 20.0, "of": [1, 0.25, {"a": True}]}
    held["data"] |= {"group": None, "notes": []}
    print(compare_page.page(held, 12, {}).split("<h2>By class")[0])


def runs():
    """Three seeds of two rules beside papers, a second stage, runs of another set and of crops."""
    found = []
    for seed in range(3):
        first = make(seed, all=40.0 + seed)
        found += [first, make(seed, "imbsam", 43.0 + 2 * seed, IMBSAM),
                  make(seed, "imbsam", 44.5 + seed, IMBSAM, **SECOND)]  # fmt: skip
    crops = {"many": 9.0, "medium": 8.0, "few": 7.0, "all": 8.5}
    other = {"dataset": "digits", "imbalance_factor": 50.0, "step_ms": None}
    found += [make(s, r, 30.0 + s, last_epoch_ensembled=crops, **other)
              for s in (0, 1) for r in ("sgd", "sam")][1:]  # fmt: skip
    return found


def reports(folder):
    tables.show(runs())
    tables.console().print(tables.published_table(grouping.grouped(runs())))


def report_md(folder):
    groups = grouping.grouped(runs())
    print(writing.markdown(groups, True), writing.markdown(groups[-1:], False), sep="\n")


def report_csv(folder):
    for record in writing.csv_records(grouping.grouped(runs())):
        print(json.dumps(record))


KEPT = Path(__file__).with_name("printed")


@pytest.mark.parametrize(
    "show", [bench_table, sweeps, comparison, page, reports, report_md, report_csv]
)
def test_what_is_printed_is_what_was_read_once(show, tmp_path, capsys):
    show(tmp_path)
    said = "".join(f"{text.rstrip()}\n" for text in capsys.readouterr().out.splitlines())
    recorded.check(KEPT / f"{show.__name__}.txt", said, tmp_path)
