"""What records of a comparison add up to, of two rows on three splits, by hand."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest

from experiments.host.errors import RunError
from experiments.reports import compare_folder
from experiments.reports.compare_folder import BASELINE, Record, read, runs, summarise, write
from experiments.reports.paired import interval
from experiments.reports.scores import BINS, METRICS, Bins
from made_comparisons import table_of


def bins(right):
    """Two rows: in the sixth bin one that is right, in the last one that is right or not."""
    count, sure, accuracy = np.zeros(BINS, int), np.full(BINS, np.nan), np.full(BINS, np.nan)
    count[[5, BINS - 1]], sure[[5, BINS - 1]], accuracy[[5, BINS - 1]] = 1, (0.375, 1), (1, right)
    return Bins(count, sure, accuracy)


def record(row, split, value, **more):
    given = {
        "rule": row.split(",")[0], "loss": "cross_entropy", "sampling": "shuffled",
        "reference": False, "sizes": (40 + split, 10, 20 - split),
        "scores": {**dict.fromkeys(METRICS, value), "auroc": math.nan if split == 1 else value},
        "recall": [value, math.nan], "bins": bins(split % 2), "seconds": 1.23456,
        "chosen": {"lr": np.float64(0.5), "rho": None},
    }  # fmt: skip
    return Record(row=row, split=split, **{**given, **more})


VALUES = {BASELINE: (50.0, 60.0, 70.0), "sam, cross_entropy": (54.0, 61.0, 76.0)}
RECORDS = [record(row, k, of[k]) for row, of in VALUES.items() for k in (2, 0, 1)]
REFERENCE = [
    record("trees", k, 80.0, rule=None, loss=None, sampling="", reference=True, chosen={})
    for k in range(3)
]
ABOUT = {"train_counts": (30, 10), "thresholds": (20, 8), "about": {"seed": 0}}


def summed(records=(*RECORDS, *REFERENCE), table=None, **more):
    return summarise(records, table or table_of((40, 20)), **{**ABOUT, **more})


def test_means_spreads_and_settings_are_by_split():
    base, sam, trees = summed()["rows"]
    assert [row["row"] for row in (base, sam, trees)] == [*VALUES, "trees"]
    for row, of in zip((base, sam), VALUES.values(), strict=True):
        assert row["few"] == np.mean(of) and row["spread"]["few"] == np.std(of, ddof=1)
        # Of the second split no AUROC is known.
        assert row["auroc"] == np.mean([of[0], of[2]])
        assert row["spread"]["auroc"] == pytest.approx(abs(of[0] - of[2]) / math.sqrt(2))
        assert row["recall"] == [np.mean(of), None]
        assert row["chosen"] == {"lr": [0.5] * 3, "rho": [None] * 3}
        assert all(type(value) is float for value in row["chosen"]["lr"])
        assert row["seconds"] == 1.235 and (row["rule"], row["sampling"]) == (
            row["row"].split(",")[0], "shuffled"
        )  # fmt: skip
    assert trees["chosen"] == {} and (trees["rule"], trees["reference"]) == (None, True)
    # Six rows are in two bins: of the latter, those of the second split alone are right.
    told = base["calibration"]
    assert told["count"] == [0] * 5 + [3] + [0] * (BINS - 7) + [3]
    assert told["confidence"][5] == 0.375 and told["confidence"][-1] == 1
    assert told["accuracy"][5] == 1 and told["accuracy"][-1] == pytest.approx(1 / 3)
    assert told["confidence"][0] is None and told["accuracy"][4] is None
    json.dumps(summed(), allow_nan=False)


def test_differences_are_paired_and_all_rows_but_the_tested_are_seen():
    base, sam, trees = summed()["rows"]
    assert not {"difference", "p", "recall_difference"} & base.keys()
    seen, tested = [50, 51, 52], [20, 19, 18]
    found = interval([4, 1, 6], seen, tested, confidence=0.95)
    assert sam["difference"]["few"] == [found.mean, found.low, found.high]
    assert sam["p"]["few"] == found.p == sam["p_holm"] == sam["p_holm_by"]["few"]
    assert sam["recall_difference"] == [[found.mean, found.low, found.high], [None] * 3]
    both = interval([4, 6], [50, 52], [20, 18])
    assert sam["difference"]["auroc"] == [both.mean, both.low, both.high]
    assert trees["p"]["few"] is not None and trees["p_holm"] is None is base["p_holm"]
    assert "p_holm_by" not in trees
    # With a file of test rows of its own, of the training alone.
    own = dataclasses.replace(table_of((40, 20)), first_test_row=50)
    found = interval([4, 1, 6], seen, 0)
    assert summed(table=own)["rows"][1]["difference"]["few"] == [found.mean, found.low, found.high]


def test_holm_counts_the_methods_alone():
    second = [dataclasses.replace(one, row="imbsam, cross_entropy") for one in RECORDS[3:]]
    _, sam, imbsam, trees = summed([*RECORDS, *second, *REFERENCE])["rows"]
    assert sam["p_holm"] == imbsam["p_holm"] == pytest.approx(2 * sam["p"]["few"])
    assert trees["p_holm"] is None


def test_what_is_told_of_the_data_and_the_splits():
    found = summed(about={"seed": 3, "cut": 20.0})
    assert found["data"] == {
        "name": "made", "source": "made.csv", "rows": 60, "features": 2, "classes": 2,
        "class_names": ["class 0", "class 1"], "class_counts": [40, 20], "imbalance_factor": 2.0,
        "train_counts": [30, 10], "train_imbalance_factor": 3.0, "text": [], "group": None,
        "notes": ["3 rows without a label left out"],
    }  # fmt: skip
    assert found["thresholds"] == {"many_above": 20, "few_below": 8}
    assert found["splits"] == {
        "count": 3, "train": [40, 41, 42], "val": [10, 10, 10], "test": [20, 19, 18],
        "own_test": False,
    }  # fmt: skip
    assert found["about"] == {"seed": 3, "cut": 20.0} and found["best"] is None
    assert [*found] == ["data", "thresholds", "splits", "about", "verdict", "best", "rows"]


@pytest.mark.parametrize(
    ("counts", "factor"), [((40, 0), 40.0), ((7, 3), 2.3333), ((5, 5), 1.0), ((200, 30), 6.6667)]
)
def test_the_imbalance_is_of_the_largest_over_the_smallest_that_has_a_row(counts, factor):
    """To four digits; a class without a row counts as one."""
    assert summed(train_counts=counts)["data"]["train_imbalance_factor"] == factor


def test_classes_without_a_row_are_counted_too():
    table = dataclasses.replace(table_of((40, 20)), class_names=("p", "q", "r"))
    data = summed(table=table)["data"]
    assert (data["classes"], data["class_counts"]) == (3, [40, 20, 0])


def test_groups_are_told_and_their_accuracies_are_means():
    grouped = [
        dataclasses.replace(one, group_accuracy=[10.0 * one.split, math.nan]) for one in RECORDS
    ]
    found = summed(grouped, table_of((3, 2), groups=2))
    assert found["data"]["group"] == {"names": ["group 0", "group 1"], "counts": [3, 2]}
    assert [row["group_accuracy"] for row in found["rows"]] == [[10.0, None]] * 2
    assert "group_accuracy" not in summed()["rows"][0]
    assert [*runs(grouped)][-2:] == ["group_0", "group_1"]


def test_a_line_has_all_that_is_known_of_a_row_on_a_split():
    more = dataclasses.replace(RECORDS[0], scores={**RECORDS[0].scores, "worst_group": 5.0},
                               chosen={"eta": 3})  # fmt: skip
    lines = runs([more, RECORDS[1], REFERENCE[0]])
    assert [*lines] == [
        "row", "rule", "loss", "sampling", "reference", "split", "train", "val", "test", "seconds",
        *METRICS, "worst_group", "chosen_eta", "chosen_lr", "chosen_rho", "recall_0", "recall_1",
    ]  # fmt: skip
    first, second, third = lines.to_dict("records")
    assert (first["split"], first["train"], first["val"], first["test"]) == (2, 42, 10, 18)
    assert first["seconds"] == 1.235 and first["worst_group"] == 5 and first["chosen_eta"] == 3
    assert second["chosen_lr"] == 0.5 and math.isnan(second["worst_group"])
    assert pd.isna(third["rule"]) and third["recall_0"] == 80 and math.isnan(third["recall_1"])


@pytest.mark.parametrize("name", ["NA", "nan", "null", "", "a,b"])
def test_names_are_read_as_they_were_written(name, tmp_path):
    """Those that pandas takes for none among them; but for no name at all."""
    mine = [dataclasses.replace(one, row=name) for one in RECORDS[3:]]
    told = write(tmp_path, [*RECORDS[:3], *mine], table_of((40, 20)), **ABOUT)
    if not name:
        with pytest.raises(RunError, match="has not one line for each row"):
            read(tmp_path)
        return
    summary, lines = read(tmp_path)
    assert summary == told and lines["row"].tolist() == [BASELINE] * 3 + [name] * 3
    text = (tmp_path / "summary.json").read_text()
    assert text == json.dumps(told, indent=1) + "\n"
    assert (tmp_path / "runs.csv").read_text().startswith("row,rule,loss,")


OF_ZERO = [record(one.row, one.split, 0.0) for one in RECORDS]


@pytest.mark.parametrize(
    ("records", "off", "good"),
    [
        *((RECORDS, off, True) for off in (0, 5e-8, -5e-8)),
        *((RECORDS, off, False) for off in (7e-8, -7e-8)),
        (OF_ZERO, 9e-10, True),
        *((OF_ZERO, off, False) for off in (1.1e-9, 1.9e-9)),
    ],
)
def test_means_may_differ_in_the_last_digits_alone(records, off, good, tmp_path):
    """By a thousand-millionth of themselves, and as much beside: of 60 up to 6.1e-8, of 0 1e-9."""
    write(tmp_path, records, table_of((40, 20)), **ABOUT)
    lines = pd.read_csv(tmp_path / "runs.csv")
    lines.loc[lines["row"] == BASELINE, "few"] += off
    lines.to_csv(tmp_path / "runs.csv", index=False)
    if good:
        read(tmp_path)
        return
    with pytest.raises(RunError, match=r"has another few of sgd, cross_entropy than summary.json"):
        read(tmp_path)


def test_a_baseline_that_is_missing_is_told(tmp_path):
    write(tmp_path, RECORDS, table_of((40, 20)), **ABOUT)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["rows"][0]["row"] = "sgd"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match="has no lines of 'sgd, cross_entropy' to compare with"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("own", "cut", "words"),
    [
        (False, 20.0, "Intervals are Nadeau and Bengio's, for splits that overlap."),
        (True, None, "(initial weights, batches, settings chosen), not of which rows were drawn."),
        (True, 20.0, "settings chosen, which rows the cut leaves), not of which rows were drawn."),
    ],
)
def test_what_intervals_are_of(own, cut, words):
    said = compare_folder.of_intervals({"splits": {"own_test": own}, "about": {"cut": cut}})
    assert said.endswith(words) and said.startswith("Every training" if own else "Intervals are")


def test_a_record_is_made_by_name_stays_and_is_itself():
    one = RECORDS[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.split = 3
    with pytest.raises(TypeError):
        Record(*(getattr(one, field.name) for field in dataclasses.fields(one)))
    assert one == one and one != dataclasses.replace(one) and len({one, one}) == 1


def test_what_json_has_no_word_for_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write(tmp_path, RECORDS, table_of((40, 20)), **{**ABOUT, "about": {"x": math.nan}})
    assert not (tmp_path / "summary.json").exists()


def test_a_metric_that_no_split_has_is_null_and_goes_with_empty_cells(tmp_path):
    lost = [dataclasses.replace(one, scores={**one.scores, "few": math.nan}) for one in RECORDS]
    write(tmp_path, lost, table_of((40, 20)), **ABOUT)
    summary, lines = read(tmp_path)
    assert [row["few"] for row in summary["rows"]] == [None] * 2 and lines["few"].isna().all()
    assert summary["rows"][1]["difference"]["few"] == [None] * 3


@pytest.mark.parametrize(
    ("name", "values"),
    [("few", ["x"] * 6), ("few", [math.inf] * 6), ("few", [True] * 6), ("test", ["x"] * 6)],
)
def test_a_column_of_other_than_numbers_is_told(name, values, tmp_path):
    write(tmp_path, RECORDS, table_of((40, 20)), **ABOUT)
    pd.read_csv(tmp_path / "runs.csv").assign(**{name: values}).to_csv(
        tmp_path / "runs.csv", index=False
    )
    with pytest.raises(RunError, match=f"has other than numbers in its {name}: remove it, and"):
        read(tmp_path)
