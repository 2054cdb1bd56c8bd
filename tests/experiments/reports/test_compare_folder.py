"""The files of a comparison, its page and its figures, of made-up predictions."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from damage import damaged_json
from experiments import redraw
from experiments.host import locks
from experiments.host.errors import RunError
from experiments.reports import (
    compare_figures,
    compare_page,
    compare_shape,
    compare_table,
    study_folder,
)
from experiments.reports.compare_folder import BASELINE, read, summarise
from experiments.reports.paired import holm, interval
from experiments.reports.scores import METRICS
from experiments.reports.verdict import verdict
from made_comparisons import ABOUT, ROWS, folder_of, records_of, table_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, folder_of(out, splits=5, groups=3)


@pytest.fixture(scope="module")
def drawn(finished):
    return compare_page.draw(finished[0])


def test_the_promised_fields(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    promised = {"rows", "features", "classes", "class_counts", "imbalance_factor"}
    assert promised <= summary["data"].keys()
    assert summary["data"]["class_counts"] == [200, 60, 12]
    assert summary["data"]["imbalance_factor"] == pytest.approx(200 / 12, abs=1e-4)
    assert [row["row"] for row in summary["rows"]] == [row[0] for row in ROWS]
    for row in summary["rows"]:
        fields = {"rule", "loss", "p_holm", *METRICS, "worst_group", "recall", "calibration"}
        assert fields <= row.keys()
        assert ("difference" in row) == (row["row"] != BASELINE)


def test_means_differences_and_corrections_are_those_of_the_lines(finished):
    out, summary = finished
    _, lines = read(out)
    by_row = {name: lines[lines["row"] == name] for name, *_ in ROWS}
    base = by_row[BASELINE]
    family = []
    for row in summary["rows"]:
        mine = by_row[row["row"]]
        for metric in (*METRICS, "worst_group"):
            assert row[metric] == pytest.approx(mine[metric].mean())
            if "difference" in row:
                differences = mine[metric].to_numpy() - base[metric].to_numpy()
                found = interval(differences, mine["train"] + mine["val"], mine["test"])
                assert row["difference"][metric] == pytest.approx(found[:3])
                assert row["p"][metric] == pytest.approx(found.p)
        recall = [mine[f"recall_{c}"].mean() for c in range(3)]
        assert row["recall"] == pytest.approx(recall)
        if "difference" in row and not row["reference"]:
            family.append(row)
    assert [row["p_holm"] for row in family] == holm(
        [row["p"]["balanced_accuracy"] for row in family]
    )
    assert summary["rows"][-1]["reference"] and summary["rows"][-1]["p_holm"] is None


def test_a_line_for_each_row_and_split(finished):
    out, _ = finished
    with open(out / "runs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * len(ROWS)
    assert list(lines[0])[:10] == [
        "row", "rule", "loss", "sampling", "reference", "split", "train", "val", "test", "seconds",
    ]  # fmt: skip
    assert lines[0]["chosen_rho"] == "" and float(lines[2]["chosen_rho"]) in (0.05, 0.1, 0.2)
    assert lines[5]["rule"] == "" and lines[5]["reference"] == "True"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: [x for x in r if x.row != BASELINE], "without 'sgd, cross_entropy'"),
        (lambda r: r[:-1], "gradient boosting was not trained on each split"),
        (lambda r: [*r, r[-1]], "gradient boosting was not trained on each split"),
    ],
)
def test_what_cannot_be_summed_up(change, says):
    table = table_of((30, 10))
    with pytest.raises(RunError, match=says):
        summarise(
            change(records_of(table, 2)), table, train_counts=(21, 7), thresholds=(20, 8), about={}
        )


def test_a_class_that_is_never_tested_is_null():
    table = table_of((30, 10))
    records = [
        dataclasses.replace(
            r, recall=[r.recall[0], np.nan], scores={**r.scores, "few": np.nan, "auroc": np.nan}
        )
        for r in records_of(table, 2)
    ]
    found = summarise(records, table, train_counts=(21, 7), thresholds=(20, 8), about=ABOUT)
    row = found["rows"][1]
    assert row["recall"][1] is None and row["few"] is None and row["auroc"] is None
    assert row["recall_difference"][1] == [None, None, None]
    assert row["difference"]["auroc"] == [None, None, None]
    json.dumps(found, allow_nan=False)


def test_what_intervals_are_of_is_said(finished, capsys):
    """With a test file of training alone: on the page, and on the terminal."""
    summary = finished[1]
    own = {**summary, "splits": {**summary["splits"], "own_test": True}}
    for one, words in ((own, "training noise alone"), (summary, "Nadeau and Bengio")):
        compare_table.show(one)
        said = " ".join(capsys.readouterr().out.split())
        shown = compare_page.page(one, 1, {})
        assert words in said and words in shown
        assert (
            ("which rows were drawn" in said) == ("which rows were drawn" in shown) == (one is own)
        )


def row(name, accuracy, mean=None, p=None, *, reference=False, auroc=(0.0, -0.1, 0.1)):
    found = {"row": name, "balanced_accuracy": accuracy, "reference": reference, "p_holm": p}
    if mean is not None:
        found["difference"] = {
            "balanced_accuracy": [mean, mean - 1, mean + 1], "auroc": list(auroc),
        }  # fmt: skip
    return found


BASE = row(BASELINE, 60.0)


@pytest.mark.parametrize(
    ("rows", "best", "says"),
    [
        ([BASE, row("a", 63, 3, 0.04), row("b", 64, 4, 0.06)], "a", r"^Use a: .*63.0%, \+3.0"),
        ([BASE, row("a", 63, 3, 0.04), row("b", 65, 5, 0.0001)], "b", "p below 0.001"),
        ([BASE, row("a", 63, 3, 0.001)], "a", "p 0.001"),
        ([BASE, row("a", 63, 3, 0.2)], None, r"^Nothing .*of the others, a, is \+3.0 points"),
        ([BASE, row("a", 57, -3, 0.01)], None, "^Nothing here is better than sgd, cross_entropy"),
        ([BASE, row("t", 90, 30, None, reference=True), row("a", 61, 1, 0.9)], None,
         "Outside this family t has 90.0%, more than sgd, cross_entropy"),
        ([BASE, row("a", 63, 3, 0.01, auroc=(0.02, 0.01, 0.03))], "a", "ranks better, too"),
        ([BASE, row("a", 63, 3, 0.01, auroc=(-0.02, -0.03, -0.01))], "a", "But it ranks worse"),
        ([BASE, row("a", 63, 3, 0.01)], "a", "does not rank better"),
        ([BASE], None, r"^Nothing here is better than sgd, cross_entropy beyond chance\.$"),
    ],
)  # fmt: skip
def test_the_sentence(rows, best, says):
    said, name = verdict(rows, 10)
    assert name == best and re.search(says, said)


def test_one_split_says_nothing():
    said, name = verdict([BASE, row("a", 99, 39, None)], 1)
    assert name is None and said.startswith("One split shows nothing")


def test_the_page_stands_alone(finished, drawn):
    out, summary = finished
    page = (out / "report.html").read_text()
    assert {path.name for path in drawn} == {*compare_figures.FIGURES, "report.html"}
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"<script|https?://|<link|src=\"(?!data:)", page)
    for row in summary["rows"]:
        assert f"<td>{row['balanced_accuracy']:.1f}</td>" in page
    assert "<h2>By group</h2>" in page and summary["verdict"].split(".")[0] in page
    assert "3 rows without a label left out" in page


def test_names_of_data_are_no_html(tmp_path):
    page = compare_page.page(folder_of(tmp_path, (30, 10), name="<b>&co", splits=1), 6, {})
    assert "<b>" not in page and "&lt;b&gt;&amp;co" in page


@pytest.mark.slow
def test_redraw_draws_it_again(finished, drawn):
    out, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "report.html").unlink()
    (out / "recall.png").write_bytes(b"")
    redraw.redraw(out)
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
    assert after == before


def test_a_folder_that_another_process_writes_is_not_drawn(tmp_path, monkeypatch):
    out = tmp_path
    folder_of(out, (30, 10), splits=1)

    def draw(out, summary):
        (out / "recall.png").write_bytes(b"drawn")
        return []

    monkeypatch.setattr(compare_figures, "draw", draw)
    (out / "recall.png").write_bytes(b"")
    args = redraw.arguments().parse_args([str(out)])
    with locks.Lock(out), pytest.raises(RunError, match=r"in use by another process: wait for it$"):
        redraw.main(args)
    assert (out / "recall.png").read_bytes() == b""
    redraw.main(args)
    assert (out / "recall.png").read_bytes() == b"drawn"


def edited(change):
    """Of a folder, runs.csv with other lines."""

    def damage(out):
        lines = (out / "runs.csv").read_text().splitlines()
        (out / "runs.csv").write_text("\n".join(change(lines)) + "\n")

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda out: (out / "runs.csv").unlink(), "cannot read .*runs.csv"),
        (lambda out: (out / "runs.csv").write_text("a,b\n1,2\n"), "lacks row, split"),
        (lambda out: (out / "summary.json").write_text("{}"), "lacks data, rows"),
        (lambda out: (out / "summary.json").write_text("[]"), "where an object belongs"),
        (lambda out: (out / "runs.csv").write_text("a\n1\n1,2,3\n"), "cannot read .*runs.csv"),
        *[
            (edited(change), "has not one line for each row of summary.json and each split")
            for change in (
                lambda lines: lines[:1],
                lambda lines: lines[:-1],
                lambda lines: [lines[0], *lines[2:]],
                lambda lines: [*lines, lines[1]],
                lambda lines: [lines[0], lines[1].replace("sgd", "gone", 1), *lines[2:]],
                lambda lines: lines[: 1 + len(ROWS)],  # the second split is missing
            )
        ],
    ],
)
def test_damaged_folders(tmp_path, damage, says):
    folder_of(tmp_path, (30, 10), splits=2)
    damage(tmp_path)
    with pytest.raises(RunError, match=says) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def two_splits(tmp_path_factory):
    out = tmp_path_factory.mktemp("two_splits")
    summary = folder_of(out, splits=2)
    assert not [name for name in METRICS if summary["rows"][0][name] is None]
    return out


AGAIN = "remove it, and compare --resume makes it anew$"
WORDS = "other than numbers in its {}: " + AGAIN
NEEDED = ("row", "split", "train", "val", "test", *METRICS)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *[(name, None, f"lacks {name}: {AGAIN}") for name in NEEDED],
        *[(name, [np.nan] * 12, "runs.csv has ") for name in NEEDED],
        *[(name, [np.nan] + [1] * 11, "runs.csv has ") for name in NEEDED],
        *[(name, ["word"] * 12, WORDS.format(name)) for name in NEEDED[1:]],
        *[(name, ["word"] + [1] * 11, WORDS.format(name)) for name in NEEDED[1:]],
        *[(name, [True] * 12, WORDS.format(name)) for name in NEEDED[1:]],
        *[(name, [np.inf] * 12, WORDS.format(name)) for name in NEEDED[1:]],
        *[
            (name, [value] * 12, f"another {name} than summary.json: {AGAIN}")
            for name in ("train", "val", "test")
            for value in (0, -1, 1000, 2.5)
        ],
        *[
            (name, [0.123] * 12, f"another {name} of .* than summary.json: {AGAIN}")
            for name in METRICS
        ],
        ("split", [1, 2] * 6, "has not one line for each row"),
        ("split", [0.5, 1] * 6, "has not one line for each row"),
    ],
)
def test_a_damaged_column_of_runs_is_told(two_splits, tmp_path, name, value, says):
    shutil.copy(two_splits / "summary.json", tmp_path)
    lines = pd.read_csv(two_splits / "runs.csv")
    lines = lines.drop(columns=name) if value is None else lines.assign(**{name: value})
    lines.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(RunError, match=says) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def everything(summary, lines):
    """All that is made of a finished folder, but for the figures' files."""
    compare_page.page(summary, len(lines), {})
    compare_table.show(summary)
    assert all(row in summary["rows"] for row in compare_figures.shown_rows(summary))
    study_folder.summarise([study_folder.Set("one", summary, lines, "one")])


@pytest.mark.parametrize("every", [59, pytest.param(1, marks=pytest.mark.slow)])
def test_a_summary_damaged_in_any_field_is_named_or_does_no_harm(tmp_path, every):
    good = folder_of(tmp_path, (30, 10), splits=2, groups=2, rows=[ROWS[0], ROWS[-2]])
    _, lines = read(tmp_path)
    harmless, named = set(), set()
    for (path, _), data in list(damaged_json(json.dumps(good)))[13::every]:
        summary = json.loads(data)
        if not path or (path[0] == "rows" and path[2:] == ("row",)):
            continue  # no object; a row that runs.csv has no lines of
        place = compare_shape.of_summary(summary)
        if place is None:
            harmless.add(path[0])
            everything(summary, lines)
        else:
            named.add(path[0])
            # There, within it, or where it no longer goes with another field.
            pairs = zip(place.split("."), map(str, path), strict=False)
            together = path[0] in ("data", "splits", "rows")
            assert all(a == b for a, b in pairs) or together, (path, place)
    assert {"data", "rows"} <= harmless & named and (every > 1 or named == good.keys())


def test_a_damaged_field_is_told_with_its_place(tmp_path):
    good = folder_of(tmp_path, (30, 10), splits=2)
    for name, value, place in (
        ("best", "none of them", "best"),
        ("splits", {**good["splits"], "own_test": 1}, "splits.own_test"),
        ("splits", {**good["splits"], "train": [0, 28], "val": [0, 3]}, "splits.train"),
        ("splits", {**good["splits"], "test": [12, 0]}, "splits.test.1"),
        ("data", {**good["data"], "train_imbalance_factor": 0.5}, "data.train_imbalance_factor"),
        ("data", {**good["data"], "features": 0}, "data.features"),
        ("rows", [*good["rows"][:2], {**good["rows"][2], "auroc": "x"}, *good["rows"][3:]],
         "rows.2.auroc"),
    ):  # fmt: skip
        (tmp_path / "summary.json").write_text(json.dumps({**good, name: value}))
        with pytest.raises(RunError, match=f"summary.json is damaged: its {place} is not"):
            read(tmp_path)
