"""Networks as they are kept, and what they predict, of parameters made by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.bench import compare_kept
from experiments.bench.compare_kept import is_whole, read_params, save_params
from experiments.bench.comparison import Engine, Found, Part, Recipe
from experiments.bench.lanes import Net
from experiments.command.candidates import Candidate
from experiments.data.table import read
from experiments.host.errors import DataError, RunError

RECIPE = Recipe(Net(2, 1, 2), steps=3, batch_size=4, folds=5, seed=9)
POINT, OTHER = {"lr": 0.1, "weight_decay": 0.01}, {"lr": 0.2, "weight_decay": 0.02}
ROW = Candidate("sgd, cross_entropy", "sgd", "cross_entropy", "shuffled", [POINT, OTHER])
PARAMS = {
    "hidden_0": {"kernel": np.array([[1.0, -1.0], [0.5, 2.0]]), "bias": np.array([0.25, 0.0])},
    "head": {"kernel": np.array([[1.0, 0.0], [0.0, 1.5]]), "bias": np.array([0.0, -0.5])},
}  # fmt: skip
FRAME = pd.DataFrame({
    "a": [0.0, 1, 2, 3, 4, 5], "b": [5.0, 3, 1, 1, 3, 5], "kind": [*"xxxyxy"],
})  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Any:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    return read(tmp_path / "t.csv", "kind")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What an engine was made with and asked to train; it has learned PARAMS."""
    seen: list[Any] = []

    def run(self: Engine, part: Part, family: Any) -> Any:
        seen.append((self.recipe, self._keep, self.rows, part.number, family))
        return [Found(row.name, row.points[0], None, [], PARAMS) for row in family]

    monkeypatch.setattr(Engine, "run", run)
    return seen


def saved(out: Path, table: Any) -> Any:
    part, fitted = compare_kept.all_rows(table, 7, 9, None)
    compare_kept.save(out, table, part, fitted, RECIPE, ROW)
    return part, fitted


def test_a_network_is_trained_at_one_point_and_kept_with_its_sums(
    table: Any, asked: list[Any], tmp_path: Path
) -> None:
    saved(tmp_path, table)
    # Without folds: its settings were chosen before.
    assert asked == [(RECIPE._replace(folds=0), True, [ROW], 7, [ROW])]
    folder = tmp_path / "model"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json", "params.npz", "pipeline.joblib"
    ]  # fmt: skip
    about = json.loads((folder / "model.json").read_text())
    assert about["net"] == {"width": 2, "depth": 1, "classes": 2}
    assert about["class_names"] == ["x", "y"] and about["row"] == "sgd, cross_entropy"
    assert about["settings"] == POINT and about["versions"].keys() == {"scikit-learn", "pandas"}
    sums = about.pop("sha256")
    told = json.dumps(about, sort_keys=True).encode()
    assert sums.pop("model.json") == hashlib.sha256(told).hexdigest()
    assert sums == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("params.npz", "pipeline.joblib")
    }
    with np.load(folder / "params.npz") as held:
        assert sorted(held) == ["head/bias", "head/kernel", "hidden_0/bias", "hidden_0/kernel"]
        np.testing.assert_array_equal(held["head/kernel"], PARAMS["head"]["kernel"])
    saved(tmp_path, table)  # over what is there


def test_what_it_says_of_other_rows_is_by_hand(
    table: Any, asked: list[Any], tmp_path: Path
) -> None:
    saved(tmp_path, table)
    FRAME[["b", "a"]][::-1].to_csv(tmp_path / "new.csv", index=False)
    found = compare_kept.predict(tmp_path, str(tmp_path / "new.csv"))
    a, b = ((of - of.mean()) / of.std(ddof=0) for of in (FRAME["a"], FRAME["b"]))
    x = np.stack([a, b], axis=1)[::-1]
    hidden = np.maximum(x @ PARAMS["hidden_0"]["kernel"] + PARAMS["hidden_0"]["bias"], 0)
    logits = hidden @ PARAMS["head"]["kernel"] + PARAMS["head"]["bias"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert list(found) == ["predicted", "p_x", "p_y"]
    np.testing.assert_allclose(found[["p_x", "p_y"]], p, rtol=1e-5)
    assert found["predicted"].tolist() == ["xy"[k] for k in p.argmax(axis=1)]
    assert set(found["predicted"]) == {"x", "y"}


def test_all_rows_are_cut_and_drawn_as_the_splits_were(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    rows, fit = np.array([1, 3, 5]), compare_kept.columns.fit

    def fitted(table: Any, train: Any, seed: int = -1) -> Any:
        seen.append((train.tolist(), seed))
        return fit(table, train, seed=seed)

    def cut(table: Any, **more: Any) -> Any:
        seen.append(more)
        return rows

    monkeypatch.setattr(compare_kept, "training_rows", cut)
    monkeypatch.setattr(compare_kept.columns, "fit", fitted)
    part, _ = compare_kept.all_rows(table, 7, 9, 20.0)
    assert seen == [{"cut": 20.0, "seed": 9}, ([1, 3, 5], 9)]
    assert (part.number, part.features.shape, len(part.test)) == (7, (6, 2), 0)
    assert part.train is rows and part.test.dtype == rows.dtype


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_that_diverged_is_not_saved(
    bad: float, table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it in one number of one layer."""
    params = {"head": {"bias": np.array([0.0, bad])}, "hidden_0": {"bias": np.zeros(2)}}
    found = [Found("a", POINT, None, [], params)]
    monkeypatch.setattr(Engine, "run", lambda self, part, family: found)
    with pytest.raises(RunError, match="diverged on all rows together, and was not saved: lower"):
        saved(tmp_path, table)
    assert not (tmp_path / "model").exists()


# ---- of every split and row ---------------------------------------------------------------------

PART = Part(2, np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(4), np.arange(4, 6))
LABELS = np.array([0, 0, 1, 0, 1, 1], np.int32)


class Record:
    def __init__(self, row: str):
        self.row, self.rule, self.loss, self.sampling = row, "sgd", "ce", "shuffled"
        self.chosen, self.more = {"lr": 0.1}, "not kept"


def test_networks_of_a_family_come_back_as_trees(tmp_path: Path) -> None:
    path = compare_kept.params_path(tmp_path, 2, 1)
    assert path == tmp_path / "params" / "split_2_1.npz"
    other = {"head": {"bias": np.array([3.0, 4.0])}}
    found = [Found("a", POINT, None, [], PARAMS), Found("b", POINT, None, [], other)]
    for _ in range(2):  # and over what is there
        save_params(path, PART, LABELS, [Record("a"), Record("b")], found, {"lr": 0.1})
    about, trees = read_params(path)
    told = {"rule": "sgd", "loss": "ce", "sampling": "shuffled", "chosen": {"lr": 0.1}}
    assert about["rows"] == [{"row": "a", **told}, {"row": "b", **told}]
    assert about["config"] == {"lr": 0.1}
    whole = hashlib.sha256()
    for array in (PART.features, LABELS, PART.train, PART.test):
        whole.update(array.tobytes())
    assert about["sha256"] == whole.hexdigest()
    assert [tree.keys() for tree in trees] == [PARAMS.keys(), {"head"}]
    np.testing.assert_array_equal(trees[0]["hidden_0"]["kernel"], PARAMS["hidden_0"]["kernel"])
    np.testing.assert_array_equal(trees[1]["head"]["bias"], [3, 4])


def test_all_that_is_saved_is_there_or_is_made_anew(
    table: Any, asked: list[Any], tmp_path: Path
) -> None:
    """The networks of every finished job; of references there are none."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for name in ("split_0_0", "split_1_0", "split_0_references"):
        (jobs / f"{name}.json").touch()
    found, paths = [Found("a", POINT, None, [], PARAMS)], []
    assert not is_whole(tmp_path)
    for split in (0, 1):
        paths.append(compare_kept.params_path(tmp_path, split, 0))
        save_params(paths[-1], PART, LABELS, [Record("a")], found, {})
        assert not is_whole(tmp_path)
    saved(tmp_path, table)
    assert is_whole(tmp_path)
    for path in (paths[1], paths[0], *(tmp_path / "model").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((RunError, DataError), match="remove it, and"):
            is_whole(tmp_path)
        path.unlink()
        assert not is_whole(tmp_path)
        path.write_bytes(whole)
    assert is_whole(tmp_path)
