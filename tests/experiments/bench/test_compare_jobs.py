"""The jobs of a comparison: what is trained when, and what is kept of it; nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from damage import damaged_json
from experiments.bench import compare_jobs, references
from experiments.bench.compare_jobs import Jobs, Parts, scale_of
from experiments.bench.comparison import Engine, Found, Recipe
from experiments.bench.lanes import Net
from experiments.command.candidates import Candidate
from experiments.data.splits import Split
from experiments.data.table import Table
from experiments.data.usable import usable
from experiments.host.errors import RunError

LABELS = np.array([0, 0, 0, 1, 1, 0, 1, 0], np.int32)
# Of "c" the first split trains on three words, the second on two.
WORDS = np.array(["a", "b", "d", "a", "b", "a", "b", "a"], object)
SPLITS = [
    Split(np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])),
    Split(np.array([4, 5, 6]), np.array([0, 1, 2, 3])),
]
POINT = {"lr": 0.1, "weight_decay": 0.01, "rho": 0.3, "head_share": 0.6}
ROWS = [
    Candidate(name, rule, "cross_entropy", "shuffled", [POINT])
    for name, rule in (("one", "imbsam"), ("two", "sgd"), ("three", "imbsam"))
]


def table(groups: bool = False) -> Table:
    more: dict[str, Any] = {}
    if groups:
        more = {"groups": np.array([0, 1, 0, 0, 0, 1, 0, 1], np.int32), "group_names": ("g", "h")}
    frame = usable(pd.DataFrame({"x": np.arange(8.0), "c": WORDS}), (), [])
    return Table(name="made", columns=frame, labels=LABELS, class_names=("p", "q"), **more)


def sure(labels: Any) -> Any:
    return np.eye(2)[labels] * 0.8 + 0.1


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Row one is right, row two has diverged, row three is wrong; a reference is undecided."""
    done: list[Any] = []

    def run(self: Engine, part: Any, family: Any) -> Any:
        done.append((part.number, [row.name for row in family]))
        self.seconds += 3.0
        labels = LABELS[part.test]
        of = {"one": sure(labels), "two": None, "three": sure(1 - labels)}
        return [Found(row.name, POINT, of[row.name], []) for row in family]

    def half(name: str, features: Any, labels: Any, train: Any, test: Any, *more: Any) -> Any:
        done.append((name, features.shape, labels.tolist(), train.tolist(), test.tolist(), *more))
        return np.full((len(test), 2), 0.5)

    monkeypatch.setattr(Engine, "run", run)
    monkeypatch.setattr(references, "probabilities", half)
    return done


def jobs(out: Path, **more: Any) -> Jobs:
    recipe = Recipe(Net(5, 1, 2), steps=6, batch_size=16, folds=0, seed=7)
    return Jobs(table(**more), SPLITS, recipe, ROWS, ["logistic"], out)


def never() -> None:
    """No stop is asked for."""


REFERENCE = references.REFERENCES["logistic"][0]


def test_rows_by_split_in_the_order_they_were_asked_for(tmp_path: Path, trained: Any) -> None:
    began = time.perf_counter()
    records, notes = jobs(tmp_path).run(never)
    reference = [
        ("logistic", (8, 4), LABELS.tolist(), rows, tests, 2, 7)
        for rows, tests in (([0, 1, 2, 3], [4, 5, 6, 7]), ([4, 5, 6], [0, 1, 2, 3]))
    ]
    assert trained == [
        (0, ["one", "three"]), (0, ["two"]), reference[0],
        (1, ["one", "three"]), (1, ["two"]), reference[1],
    ]  # fmt: skip
    names = ["one", "two", "three", REFERENCE]
    assert [(r.row, r.split) for r in records] == [(name, k) for name in names for k in (0, 1)]
    assert [r.sizes for r in records[:2]] == [(4, 0, 4), (3, 0, 4)]
    assert [r.seconds for r in records[:6]] == [1.5, 1.5, 3, 3, 1.5, 1.5]
    assert all(0 < r.seconds < time.perf_counter() - began for r in records[6:])
    assert notes == [
        f"two diverged in split {k}: it counts there as a network that always says the largest "
        "class"
        for k in (0, 1)
    ]
    one, two, three, other = records[::2]
    assert [r.scores["balanced_accuracy"] for r in (one, two, three)] == [100, 50, 0]
    assert one.scores["log_loss"] == pytest.approx(-np.log(0.9))
    # In the first split three of four rows are of class 0; of the tested ones half.
    assert two.scores["log_loss"] == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    assert two.recall == [100, 0] and one.bins.count.sum() == 4
    # Two classes of 3 rows and 1: 60% are held by the first.
    assert one.chosen == {"lr": 0.1, "weight_decay": 0.01, "rho": 0.3, "eta": one.chosen["eta"]}
    assert 1 <= one.chosen["eta"] < 3 and other.chosen == {}
    assert (one.rule, one.loss, one.sampling, one.reference) == (
        "imbsam", "cross_entropy", "shuffled", False
    )  # fmt: skip
    assert (other.rule, other.loss, other.sampling, other.reference) == (None, None, "", True)
    assert {r.group_accuracy is None for r in records} == {True}


def test_what_is_finished_is_not_trained_again(tmp_path: Path, trained: Any) -> None:
    before = jobs(tmp_path).run(never)
    trained.clear()
    (tmp_path / "jobs" / "split_0_references.json").unlink()
    (tmp_path / "jobs" / "split_1_1.json").unlink()
    again = jobs(tmp_path).run(never)
    assert [one[:2] for one in trained] == [("logistic", (8, 4)), (1, ["two"])]
    assert again[1] == before[1]
    for old, new in zip(before[0], again[0], strict=True):
        assert (old.row, old.scores, old.chosen) == (new.row, new.scores, new.chosen)
    trained.clear()
    jobs(tmp_path).run(never)
    assert not trained


def test_a_stop_is_answered_before_a_reference(tmp_path: Path, trained: Any) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs(tmp_path).run(stop)
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == [
        "split_0_0.json", "split_0_1.json"
    ]  # fmt: skip


def test_a_damaged_job_is_named(tmp_path: Path) -> None:
    """Not taken for another figure, either."""
    begun, path = jobs(tmp_path), tmp_path / "jobs" / "split_1_0.json"
    want = repr(begun.run(never))
    # One in 40: of every place and every kind, test_outputs.py.
    for what, data in list(damaged_json(path.read_text()))[::40]:
        path.write_bytes(data)
        try:
            assert repr(begun._collected(2)) == want, what
        except RunError as error:
            assert re.search(r"split_1_0\.json.*: remove it, and --resume makes", str(error)), what
    for old in ({"records": [{}], "notes": []}, {"records": [3], "notes": []}, {"records": 3}):
        path.write_text(json.dumps(old))  # of before there were seals
        with pytest.raises(RunError, match=r"split_1_0.json is damaged: remove it, and --resume"):
            begun._collected(2)


def test_groups_have_accuracies(tmp_path: Path) -> None:
    records, _ = jobs(tmp_path, groups=True).run(never)
    one, two = records[0], records[2]
    assert one.group_accuracy == [100, 100]
    # Rows 4 to 7 are of classes 1, 0, 1, 0 and groups 0, 1, 0, 1: two says 0 throughout.
    assert two.group_accuracy == [0, 100] and two.scores["worst_group"] == 0


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    record = jobs(tmp_path, groups=True).run(never)[0][0]
    third = 1 / 3
    odd = compare_jobs.dataclasses.replace(
        record, recall=[third, np.nan], group_accuracy=[np.nan, third],
        scores={"auroc": np.nan, "few": third}, chosen={"lr": third, "rho": None},
    )  # fmt: skip
    compare_jobs._write(tmp_path / "x.json", [odd], ["said"])
    held = json.loads((tmp_path / "x.json").read_text())
    assert held["notes"] == ["said"] and "NaN" not in (tmp_path / "x.json").read_text()
    again = compare_jobs._of_json(held["records"][0])
    for name in ("recall", "group_accuracy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(odd, name))
    assert np.isnan(again.scores["auroc"]) and again.scores["few"] == third
    assert again.chosen == odd.chosen and again.sizes == odd.sizes
    for name, values in odd.bins._asdict().items():
        np.testing.assert_array_equal(getattr(again.bins, name), values)
    assert np.isnan(odd.bins.confidence).any()  # of bins without rows
    assert {k: v for k, v in vars(again).items() if isinstance(v, str | bool | int | float)} == {
        k: v for k, v in vars(odd).items() if isinstance(v, str | bool | int | float)
    }


def test_all_splits_have_equally_many_columns() -> None:
    parts = Parts(table(), SPLITS)
    assert len(parts) == 2 and parts.width == 4  # x, and of c three words
    first, second = parts[0], parts[1]
    assert (first.number, second.number) == (0, 1)
    assert first.features.shape == second.features.shape == (8, 4)
    assert not second.features[:, 3].any() and first.features.any(axis=0).all()
    assert [part.train.tolist() for part in (first, second)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [part.test.tolist() for part in (first, second)] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    np.testing.assert_allclose(second.features[4:7, 0], [-(1.5**0.5), 0, 1.5**0.5], atol=1e-6)


def test_columns_that_are_left_out_of_all_splits_or_of_some_are_told() -> None:
    """Of "late" the second split trains on rows 4 to 6 alone, which are the same."""
    late = [0.0, 1, 2, 3, 5, 5, 5, 5]
    frame = table().columns.assign(late=late, **{f"same{k}": 1.0 for k in range(6)})
    of = "the same in all training rows"
    assert Parts(dataclasses.replace(table(), columns=frame), SPLITS).notes() == [
        f"6 columns {of} left out: same0, same1, same2, same3, same4, ...",
        f"1 column {of} of some split left out there: late",
    ]
    assert Parts(table(), SPLITS).notes() == []


def test_many_and_few_are_those_of_the_first_split() -> None:
    scale = scale_of(table(), SPLITS[0])
    assert scale.counts.tolist() == [3, 1] and scale.thresholds == (2, 2)
    empty = scale_of(table(), SPLITS[0]._replace(train=np.array([0, 1])))
    assert empty.counts.tolist() == [2, 0]


def test_each_split_draws_what_it_draws_for_its_columns_by_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of text, of which words are kept by a random projection."""
    seen: list[Any] = []
    fit = compare_jobs.columns.fit

    def noted(table: Any, rows: Any, seed: int = -1) -> Any:
        seen.append((rows.tolist(), seed))
        return fit(table, rows, seed=seed)

    monkeypatch.setattr(compare_jobs.columns, "fit", noted)
    Parts(table(), SPLITS)
    assert seen == [([0, 1, 2, 3], 0), ([4, 5, 6], 1)]


def test_jobs_are_scored_by_the_first_split_and_priors_have_every_class(tmp_path: Path) -> None:
    begun = jobs(tmp_path)
    assert begun.scale.counts.tolist() == [3, 1] and begun.scale.thresholds == (2, 2)
    part = begun.parts[0]._replace(train=np.array([0, 1]))  # none of the last class
    np.testing.assert_array_equal(begun._priors(part), [[1, 0]] * 4)
