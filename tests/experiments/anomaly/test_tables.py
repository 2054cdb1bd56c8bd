"""The table of results: pairs, intervals, what stands after correction."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.anomaly import command as anomaly
from experiments.anomaly import report as anomaly_report
from experiments.host.errors import RunError
from places import ROOT


def _result(dataset: str, rule: str, seed: int, auroc: float, **other: Any) -> anomaly.Result:
    values = {"method": "deepsad", "label_ratio": 0.25, "protocol": "adbench", **other}
    return anomaly.Result(
        dataset=dataset, rule=rule, seed=seed, auroc=auroc, ap_anomaly=50.0, ap_normal=90.0,
        seconds=1.0, **values,
    )  # fmt: skip


@pytest.mark.parametrize("width", [None, "80"])
def test_tables_are_readable_at_80_columns(
    width: str | None, capsys: Any, monkeypatch: Any
) -> None:
    """Nothing is cut, folded or left out; every protocol, method and rule, wide figures."""
    if width is not None:
        monkeypatch.setenv("COLUMNS", width)
    results = [
        _result(name, rule, seed, 10.0 * seed + len(rule), method=method, protocol=protocol)
        for name in ("CIFAR10_0", "FashionMNIST_1", "MNIST-C_2", "MVTec-AD_3", "SVHN_4")
        for method in anomaly.METHODS
        for rule in anomaly.RULES
        for seed in (0, 9)
        for protocol in ("adbench", "clean")
    ]
    summary = anomaly_report.summarise(results, anomaly.RULES)
    anomaly_report.show(summary, anomaly_report.families(results), "title")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    figures = shown.split("Percent, last epoch")[0]
    assert figures.count("- SGD") == 2 * 2 * 2
    for row in summary:
        mean = f"{row['auroc']:.2f} ± {row['auroc_sd']:.2f}"
        assert mean in figures
        if row["rule"] != "sgd":
            assert f"{row['auroc_minus_sgd']:+.2f} ± {row['auroc_minus_sgd_se']:.2f} " in figures
    for name in ("adbench protocol, 25%", "clean protocol, 25%", "AP anomaly", "deepsad"):
        assert name in figures
    assert "  clean" in shown and "(1)" in shown and "92.2" in shown


def test_summary_pairs_by_data_set() -> None:
    sgd = {("a", 0): 70.0, ("a", 1): 72.0, ("b", 0): 90.0, ("b", 1): 94.0}
    sam = {("a", 0): 74.0, ("a", 1): 74.0, ("b", 0): 91.0, ("b", 1): 92.0}
    results = [_result(d, "sgd", s, x) for (d, s), x in sgd.items()]
    results += [_result(d, "sam", s, x) for (d, s), x in sam.items()]
    plain, sharp = anomaly.summarise(results, ["sgd", "sam"])
    assert plain["auroc"] == pytest.approx(81.5)
    assert plain["auroc_sd"] == pytest.approx(np.std([80, 83], ddof=1))
    assert "auroc_minus_sgd" not in plain
    # by data set: (4 + 2) / 2 and (1 - 2) / 2
    assert sharp["auroc_minus_sgd"] == pytest.approx(1.25)
    assert sharp["auroc_minus_sgd_se"] == pytest.approx(np.std([3, -0.5], ddof=1) / math.sqrt(2))
    assert (sharp["auroc_improved"], sharp["datasets"], sharp["seeds"]) == (1, 2, 2)
    assert sharp["ap_anomaly_improved"] == 0


def test_a_tie_within_rounding_is_no_win() -> None:
    """The same ranking, by two programs: their sums differ in the last bit."""
    seeds = dict(enumerate((70.1, 80.2, 90.4)))
    results = [_result("a", "sgd", s, x) for s, x in seeds.items()]
    results += [_result("a", "sam", s, math.nextafter(x, 100)) for s, x in seeds.items()]
    results += [_result("a", "imbsam", s, x + 1.5e-9) for s, x in seeds.items()]
    _, tied, better = anomaly.summarise(results, ["sgd", "sam", "imbsam"])
    assert 0 < tied["auroc_minus_sgd"] < 1e-12  # what a plain comparison counts as higher
    assert (tied["auroc_improved"], better["auroc_improved"]) == (0, 1)


@pytest.mark.parametrize(("name", "told", "value", "same"), [
    ("auroc_minus_sgd", 5e-4, 0.0, True), ("auroc_minus_sgd", 2e-3, 0.0, False),
    ("auroc_minus_sgd", 0.0, 5e-4, True), ("auroc", 90.0002, 90.0, True),
    ("auroc", 90.01, 90.0, False), ("label_ratio", 0.0105, 0.01, False),
    ("label_ratio", 0.01 * (1 + 9e-6), 0.01, True), ("label_ratio", 0.01 * (1 + 2e-5), 0.01, False),
    ("auroc_improved", 3, 4, True),
    ("seeds", 3, 4, False), ("seeds", True, 1, False), ("auroc", True, 1.0, False),
])  # fmt: skip
def test_what_is_read_again_may_differ_by_rounding_alone(
    name: str, told: Any, value: Any, same: bool
) -> None:
    """Scores by a thousandth of a point; the share of labels does not, and no number is a truth."""
    found = anomaly_report._differs({"rule": "sam", name: told}, {"rule": "sam", name: value})
    assert found == (None if same else name)


def test_a_record_of_a_run(tmp_path: Path) -> None:
    """As in the files of `results/`: lines end as in Unix, figures have four decimals."""
    run = _result("a,b", "sam", 3, 70.00004, label_ratio=0.123456789)
    anomaly_report.write_runs(tmp_path / "runs.csv", [run])
    assert (tmp_path / "runs.csv").read_bytes() == (
        b"dataset,method,rule,seed,label_ratio,protocol,auroc,ap_anomaly,ap_normal,seconds\n"
        b'"a,b",deepsad,sam,3,0.123457,adbench,70.0000,50.0000,90.0000,1.0000\n'
    )


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("label_ratio", 1.0, True), ("label_ratio", 1.01, False), ("label_ratio", 0.001, True),
        ("label_ratio", 0, False), ("label_ratio", -0.5, False), ("seed", 7, True),
        ("method", "devnet", True), ("method", "sam", False), ("rule", "imbsam", True),
        ("rule", "adam", False), ("protocol", "nodup", True), ("protocol", "../x", False),
        *((name, value, fits) for name in anomaly_report.METRICS for value, fits in (
            (0.0, True), (0.5, True), (100.0, True), (100.5, False), (-0.5, False),
            (math.nan, True), (math.inf, False),
        )),
        ("seconds", 0.0, True), ("seconds", 1e6, True),
    ],
)  # fmt: skip
def test_runs_are_read_where_each_field_is_in_its_range(
    name: str, value: Any, read: bool, tmp_path: Path
) -> None:
    """Also where config.json says the same: a name is part of a path, a figure a percentage."""
    run = _result("a", "sam", 3, 70.0)._replace(**{name: value})
    anomaly_report.write_runs(tmp_path / "runs.csv", [run])
    fields = {"datasets": "dataset", "seeds": "seed"}
    config = {
        key: [getattr(run, fields.get(key, key))]
        for key in ("datasets", "method", "rule", "seeds", "label_ratio", "protocol")
    }
    if not read:
        with pytest.raises(RunError, match=r"runs.csv is damaged: no run is .*; train again"):
            anomaly_report.read_runs(tmp_path, config)
        return
    (found,) = anomaly_report.read_runs(tmp_path, config)
    np.testing.assert_equal(found, run)


def test_the_last_places_are_no_spread() -> None:
    """A third of ten points on each set, from 80 percent, 250 / 3 and 260 / 3."""
    results = [
        _result(str(d), rule, 0, (240 + 10 * (d + (rule == "sam"))) / 3)
        for rule in ("sgd", "sam")
        for d in range(3)
    ]
    (_, row) = summary = anomaly.summarise(results, ["sgd", "sam"])
    assert row["auroc_minus_sgd"] == pytest.approx(10 / 3) and row["auroc_minus_sgd_se"] > 0
    assert anomaly_report.standing(summary, ["auroc"]) == ([], 0)


def test_what_stands_is_said_with_the_number_of_tests(capsys: pytest.CaptureFixture[str]) -> None:
    from scipy import stats

    gains = np.array([2.0, 3.1, 2.4, 2.9, 2.2, 3.3]), np.array([2.0, -1.1, 1.4, -0.9, 0.2, -1.3])
    results = [
        _result(str(d), rule, 0, 70 + x)
        for rule, values in zip(("sgd", "sam", "imbsam"), (np.zeros(6), *gains), strict=True)
        for d, x in enumerate(values)
    ]
    summary = anomaly.summarise(results, ["sgd", "sam", "imbsam"])
    left, number = anomaly_report.standing(summary, ["auroc"])
    p = [stats.ttest_1samp(x, 0).pvalue for x in gains]
    assert number == 2 and p[0] < 0.01 < 0.1 < p[1]
    ((row, metric, corrected),) = left
    assert (row["rule"], metric) == ("sam", "auroc") and corrected == pytest.approx(2 * p[0])
    # At its own corrected p a difference stands, below it none does.
    assert len(anomaly_report.standing(summary, ["auroc"], level=corrected)[0]) == 1
    assert not anomaly_report.standing(summary, ["auroc"], level=0.999 * corrected)[0]
    # Unless asked otherwise at 5%: twice this p is between that and twice as much.
    weak = np.array([2.0, 3.5, 0.4, 2.9, -0.2, 1.3])
    assert 0.05 < 2 * stats.ttest_1samp(weak, 0).pvalue < 0.1
    results += [_result(str(d), "imbsam", 1, 70 + x) for d, x in enumerate(weak)]
    results += [_result(str(d), "sam", 1, 70 + x) for d, x in enumerate(weak)]
    of_seed = [r for r in results if r.seed == 1]
    of_seed += [_result(str(d), "sgd", 1, 70.0) for d in range(6)]
    equal = anomaly.summarise(of_seed, ["sgd", "sam", "imbsam"])
    assert anomaly_report.standing(equal) == ([], 2)
    # Precisions are all equal here: differences without spread are not tested.
    assert anomaly_report.standing(summary)[1] == 2
    anomaly_report.show(summary, [], "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Of these 2 differences 1 stands at 5%" in shown
    assert "(Holm): deepsad sam AUROC (adbench, 25%)" in shown


# A difference that stands, one that is none, a diverged run, and families of the paper.
SHOWN = """
two data sets
adbench protocol, 25% of the training anomalies labelled
method  rule                    AUROC       AP anomaly        AP normal
deepsad sgd              81.50 ± 2.12     50.00 ± 0.00     90.00 ± 0.00
        sam              85.28 ± 1.81     50.00 ± 0.00     90.00 ± 0.00
               - SGD +3.78 ± 0.28 2/2 +0.00 ± 0.00 0/2 +0.00 ± 0.00 0/2
        imbsam                      -     50.00 ± 0.00     90.00 ± 0.00
               - SGD                - +0.00 ± 0.00 0/2 +0.00 ± 0.00 0/2

Percent, last epoch: mean over data sets ± standard deviation of that mean over
seeds. Differences are paired by data set and seed: mean over data sets ±
standard error, and on how many data sets the difference is above zero.
Of these 1 differences 1 stands at 5% when each is tested (paired t over data
sets) and all are corrected for their number (Holm): deepsad sam AUROC (adbench,
25%).
deepsad under imbsam (adbench, 0.25): 1 of 4 runs diverged (scores that are not
finite); lower --lr

Table 4 of the paper (AUROC %, 25% labels): as quoted, below it the
subsets here
                                 Fashion- MNIST- MVTec-
method  rule   protocol  CIFAR10    MNIST      C     AD     SVHN average
devnet  sgd    -            88.4     96.4   95.6   95.6     82.1    91.6
devnet  sam    -            88.2     96.2   95.3   94.2     81.0    91.0
devnet  imbsam -            88.7     96.7   96.0   96.2     83.7    92.2
deepsad sgd    adbench      86.5     96.3   96.4   93.1     80.9    90.6
                        71.0 (1)                        92.0 (1)
deepsad sam    adbench      86.9     96.7   96.1   91.3     81.0    90.4
                        74.5 (1)                        96.1 (1)
deepsad imbsam adbench      87.9     97.0   96.2   95.3     82.4    91.8
                        70.0 (1)                           - (1)
In brackets: subsets trained here. The paper's levels do not come out of
ADBench's own code and protocol either; they are quoted, not a target.
"""
# What stands out on a terminal (1), and what stands back (2).
STYLES = [(1, "two data sets"), (2, "Percent"), (2, "Of these"), (1, "deepsad under imbsam"),
          (2, "In brackets")]  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_the_whole_report_of_two_data_sets(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a file, 80 columns whatever the terminal has; to a terminal, all that it has."""
    levels = {
        ("sgd", "CIFAR10_0"): (70.0, 72.0), ("sgd", "SVHN_1"): (90.0, 94.0),
        ("sam", "CIFAR10_0"): (74.0, 75.0), ("sam", "SVHN_1"): (94.0, 98.125),
        ("imbsam", "CIFAR10_0"): (71.0, 69.0), ("imbsam", "SVHN_1"): (math.nan, 94.0),
    }  # fmt: skip
    results = [
        _result(dataset, rule, seed, level)
        for (rule, dataset), by_seed in levels.items()
        for seed, level in enumerate(by_seed)
    ]
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    summary = anomaly_report.summarise(results, ["sgd", "sam", "imbsam"])
    anomaly_report.show(summary, anomaly_report.families(results), "two data sets")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    if not terminal:
        assert lines == SHOWN.strip().splitlines()
        anomaly_report.show([], [], f"{'x' * 78} yy")  # a column too many
        assert [line.strip() for line in capsys.readouterr().out.splitlines()][1] == "yy"
        return
    for code, words in STYLES:
        assert any(line.startswith(f"\x1b[{code}m{words}") for line in lines), words
    assert any("mean over data sets ± standard error, and on" in line for line in lines)


def test_the_table_fits_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "results" / "anomaly" / "protocol" / "summary.json"
    found = json.loads(file.read_text())
    anomaly_report.show(found["groups"], found["paper_table_4"], "title")
    shown = capsys.readouterr().out
    # Not the sentences: a file has no edge to wrap them at.
    table = [line.rstrip() for line in shown.splitlines() if "/14" in line or " (12)" in line]
    assert len(table) == 12 + 18 and max(map(len, table)) <= 80
    for part in ("97.59 ± 0.31", "+0.29 ± 0.32 4/14", "91.7 (12)", "MVTec-"):
        assert part in shown


def test_summary_never_hides_a_diverged_run() -> None:
    results = [_result("a", "sgd", 0, 70.0), _result("a", "sam", 0, math.nan)]
    plain, sharp = anomaly.summarise(results, ["sgd", "sam"])
    assert (plain["auroc"], plain["auroc_sd"], plain["diverged"]) == (70.0, None, 0)
    assert (sharp["auroc"], sharp["auroc_minus_sgd"], sharp["diverged"]) == (None, None, 1)
    json.dumps([plain, sharp], allow_nan=False)


def test_table_4_is_quoted_beside_the_families_trained_here() -> None:
    results = [_result("MVTec-AD_x", "sam", s, x) for s, x in ((0, 80.0), (1, 82.0))]
    results += [_result("SVHN_0", "sam", 0, 60.0, label_ratio=0.5)]
    # Of no family that the paper has: another number, another name.
    results += [_result(name, "sam", 0, 1.0) for name in ("CIFAR100_3", "CIFAR10", "CIFAR10_0")]
    rows = {(r["method"], r["rule"]): r for r in anomaly.families(results)}
    assert rows["deepsad", "sam"]["CIFAR10"]["subsets"] == 2
    cell = rows["deepsad", "sam"]["MVTec-AD"]
    assert cell == {"paper": 91.3, "here": 81.0, "subsets": 1}
    assert rows["deepsad", "sam"]["SVHN"]["here"] is None  # not at 25% labels
    assert rows["devnet", "imbsam"]["average"]["paper"] == 92.2


def test_table_4_has_the_printed_figures() -> None:
    """By family, written down apart; the last of each row is the mean of the others."""
    printed = {
        ("devnet", "sgd"): "88.4 96.4 95.6 95.6 82.1 91.6",
        ("devnet", "sam"): "88.2 96.2 95.3 94.2 81.0 91.0",
        ("devnet", "imbsam"): "88.7 96.7 96.0 96.2 83.7 92.2",
        ("deepsad", "sgd"): "86.5 96.3 96.4 93.1 80.9 90.6",
        ("deepsad", "sam"): "86.9 96.7 96.1 91.3 81.0 90.4",
        ("deepsad", "imbsam"): "87.9 97.0 96.2 95.3 82.4 91.8",
    }
    columns = ["CIFAR10", "FashionMNIST", "MNIST-C", "MVTec-AD", "SVHN", "average"]
    results = [_result("SVHN_0", rule, 0, 60.0, method=method) for method, rule in printed]
    for row in anomaly.families(results):
        figures = [float(x) for x in printed.pop((row["method"], row["rule"])).split()]
        assert {name: row[name]["paper"] for name in columns} == dict(
            zip(columns, figures, strict=True)
        )
        assert figures[-1] == pytest.approx(np.mean(figures[:-1]), abs=0.07)
    assert not printed
