"""The tables on the terminal: a heading over every column, a cell under each in every row."""

import json

import pytest
from rich.console import Console
from rich.table import Table

from experiments.anomaly import report as anomaly_report
from experiments.bench import tables as bench_tables
from experiments.reports import compare_table, tables
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
