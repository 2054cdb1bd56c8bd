"""What `compare` hands to its parts and keeps of them; nothing is trained."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import compare
from experiments.bench import compare_kept
from experiments.bench.comparison import Engine, Part, Recipe
from experiments.bench.lanes import Net
from experiments.command.candidates import Candidate, candidates
from experiments.data.splits import Split
from experiments.host import locks, outputs
from experiments.host.errors import DataError, RunError, Stopped
from experiments.host.stopping import StopNow
from experiments.reports import compare_folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=48), "kind": np.tile([*"ppppqr"], 8)})
    frame.to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


def parsed(*words: Any) -> Any:
    return compare.arguments().parse_args([str(word) for word in words])


def test_every_kind_of_flag_is_taken() -> None:
    args = parsed(
        "--data", "x.csv", "--cut", "20", "--splits", "3", "--rule", "sgd", "--loss", "focal",
        "--reference", "trees", "--settings", "2", "--folds", "4", "--epochs", "5",
        "--width", "7", "--seed", "9", "--out", "o", "--save", "--resume",
    )  # fmt: skip
    assert (args.data, args.cut, args.splits, args.seed) == ("x.csv", 20, 3, 9)
    assert (args.rule, args.loss, args.reference) == (["sgd"], ["focal"], ["trees"])
    assert (args.settings, args.folds, args.epochs, args.width) == (2, 4, 5, 7)
    assert (args.out, args.save, args.resume, args.overwrite) == ("o", True, True, False)


# ---- what is done in which order --------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    done: list[Any] = []
    monkeypatch.setattr(compare.cli, "use_compilation_cache", lambda: done.append("cache"))
    monkeypatch.setattr(compare.outputs, "clear_tables", lambda out: done.append("clear"))
    monkeypatch.setattr(compare, "_compare", lambda *_: done.append("compare") or {"verdict": "x"})
    monkeypatch.setattr(compare, "_predict", lambda *_: done.append("predict"))
    return done


def test_a_comparison_begins_anew_and_goes_on(
    data: Path, tmp_path: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled programs are kept, and what stood there before is not, unless it goes on."""
    words = ("--data", data, "--label", "kind", "--out", tmp_path / "out", "--seed", 3)
    assert compare.main(parsed(*words)) == {"verdict": "x"}
    assert steps == ["cache", "clear", "compare"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["seed"] == 3 and config["tune"] is True and len(config["data_sha256"]) == 2
    assert "jax" not in config
    assert not {"out", "overwrite", "resume", "save", "predict"} & config.keys()
    assert json.loads((tmp_path / "out" / "spent.json").read_text()).keys() == {
        "seconds", "cpu_seconds"
    }  # fmt: skip
    steps.clear()
    compare.main(parsed(*words, "--resume", "--save", "--predict", data))
    assert steps == ["cache", "compare", "predict"]
    with pytest.raises(RunError, match="is not empty: pass --resume to go on, --overwrite, or"):
        compare.main(parsed(*words))
    with monkeypatch.context() as other:  # numbers that are drawn otherwise
        other.setattr(compare.origin, "jax_settings", lambda: {"jax": {"generator": "rbg"}})
        with pytest.raises(RunError, match=r"holds another comparison .jax None -> .*generator"):
            compare.main(parsed(*words, "--resume"))
    steps.clear()
    compare.main(parsed(*words, "--overwrite", "--no-tune"))
    assert steps == ["cache", "clear", "compare"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tune"] is False


def test_rows_are_predicted_alone_with_what_was_saved(
    data: Path, tmp_path: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--out", tmp_path / "out", "--predict", data)
    with pytest.raises(RunError, match="holds no network to predict with"):
        compare.main(parsed(*words))
    monkeypatch.setattr(compare_kept, "check_there", lambda out: None)
    assert compare.main(parsed(*words)) is None and steps == ["predict"]
    steps.clear()
    words = ("--data", data, "--label", "kind", "--out", tmp_path / "new", "--save", *words[2:])
    assert compare.main(parsed(*words)) == {"verdict": "x"}
    assert steps == ["cache", "clear", "compare", "predict"]


@pytest.mark.parametrize(("code", "exit_code"), [(0, 130), (143, 143)])
def test_a_stop_is_told_with_its_code_and_what_was_spent_is_kept(
    code: int, exit_code: int, data: Path, tmp_path: Path, steps: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stopped(args: Any, config: Any, out: Any, stop: Any, spent: Any) -> None:
        monkeypatch.setattr(type(stop), "exit_code", property(lambda self: code))
        raise StopNow

    monkeypatch.setattr(compare, "_compare", stopped)
    with pytest.raises(Stopped, match=r"^stopped; finished jobs are kept in .*out: the") as raised:
        compare.main(parsed("--data", data, "--label", "kind", "--out", tmp_path / "out"))
    assert raised.value.exit_code == exit_code and (tmp_path / "out" / "spent.json").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_table_leaves_nothing_that_keeps_a_mended_one_from_being_compared(
    data: Path, tmp_path: Path, there: bool
) -> None:
    (tmp_path / "bad.csv").write_bytes("größe,kind\n1,a\n".encode("latin-1"))
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(DataError, match=r"bad.csv is not UTF-8 text"):
        compare.main(parsed("--data", tmp_path / "bad.csv", "--label", "kind", "--out", out))
    assert out.exists() == there and not locks.holds_something(out)


@pytest.mark.parametrize(("cells", "flags"), [
    ("kind\n1,p\n", ()), ("x,kind\n1,p\n2,p\n", ()), ("x,kind\n1,p\n1,p\n1,q\n1,q\n", ()),
    ("x,kind\n1,p\n2,p\n3,p\n4,q\n5,q\n", ("--cut", "90")),
    ("x,kind\n1,p\n2,p\n3,q\n4,q\n", ()),
], ids=["no table", "one class", "nothing varies", "cut too far", "no folds"])  # fmt: skip
def test_an_earlier_comparison_stays_where_that_in_its_place_is_refused(
    tmp_path: Path, cells: str, flags: tuple[Any, ...]
) -> None:
    (tmp_path / "x.csv").write_text(cells)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("summary.json", "runs.csv", "config.json", "spent.json", "report.html"):
        (out / name).write_text(name)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises((DataError, RunError)):
        compare.main(parsed("--data", tmp_path / "x.csv", "--label", "kind", "--out", out,
                            "--overwrite", *flags))  # fmt: skip
    assert {path: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == before


def test_what_is_trained_stays_where_the_rest_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(args: Any, config: Any, out: Path, *_: Any) -> None:
        (out / "jobs").mkdir()
        raise RunError("no network is left")

    monkeypatch.setattr(compare, "_compare", refused)
    with pytest.raises(RunError, match="no network is left"):
        compare.main(parsed("--data", data, "--label", "kind", "--out", tmp_path / "out"))
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".lock", "config.json", "jobs", "spent.json"}


def test_predictions_are_written_without_row_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pd.DataFrame({"predicted": ["p"], "p_p": [0.75]})
    monkeypatch.setattr(compare_kept, "predict", lambda out, path: found)
    compare._predict(Namespace(predict="y.csv"), tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == "predicted,p_p\np,0.75\n"
    assert capsys.readouterr().out == f"1 row predicted in {tmp_path / 'predictions.csv'}\n"


def test_nothing_is_written_where_no_folder_can_be(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is no folder: choose another --out"):
        compare.main(parsed("--out", tmp_path / "file", "--predict", data))


# ---- what a comparison is told and tells --------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was handed to the parts of a comparison, by name."""
    seen: dict[str, Any] = {"drawn": 0}

    class Jobs:
        scale = Namespace(counts=np.array([3, 2, 1]), thresholds=(2, 2))
        parts = Namespace(notes=lambda: ["constant"])

        def __init__(self, table: Any, splits: Any, recipe: Any, *rest: Any, keep: Any):
            seen.update(table=table, splits=splits, recipe=recipe, rest=rest, keep=keep)

        def run(self, stop: Any, kept: Any) -> Any:
            kept()
            return ["records"], ["a row diverged"]

    def write(out: Any, records: Any, table: Any, **more: Any) -> Any:
        seen.update(records=records, **more)
        return {"best": seen.get("best"), "verdict": "x"}

    monkeypatch.setattr(compare, "Jobs", Jobs)
    monkeypatch.setattr(compare_folder, "write", write)
    monkeypatch.setattr(compare.unseen, "notes", lambda *of: ["unseen"])
    monkeypatch.setattr(
        compare.compare_page, "draw", lambda out: seen.update(drawn=seen["drawn"] + 1)
    )
    monkeypatch.setattr(compare.compare_table, "show", lambda summary: print("TABLE"))
    monkeypatch.setattr(
        compare, "_hand_on", lambda *of: seen.update(handed=[of[4:], seen["drawn"]])
    )
    return seen


SPENT = Namespace(now=lambda: {"seconds": 5.0})
STOP = Namespace(check=None)


def compared(tmp_path: Path, data: Path, *words: Any) -> Any:
    args = parsed("--data", data, "--label", "kind", "--out", tmp_path, "--splits", 3,
                  "--rule", "sgd", "sam", "--loss", "cross_entropy",
                  "--sampling", "shuffled", *words)  # fmt: skip
    args.tune = compare.compare_flags.is_tuned(args)
    made = compare._prepared(args, {"of": "config"}, tmp_path)
    return compare._compare(args, made, tmp_path, STOP, SPENT)


@pytest.mark.parametrize(
    ("words", "folds", "settings"),
    [(("--settings", 5, "--folds", 4), 4, 5), (("--no-tune",), 0, 1)],
)
def test_how_a_comparison_was_made_is_told(
    words: Any, folds: int, settings: int, data: Path, tmp_path: Path, told: dict[str, Any],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A third of 48 rows is tested or less; batches are no larger than what is trained on."""
    monkeypatch.setattr(compare.leakage, "notes", lambda table: ["a copy"])
    more = ("--epochs", 2, "--batch-size", 999, "--width", 6, "--seed", 7)
    compared(tmp_path, data, *words, *more)
    trained = len(told["splits"][0].train)
    assert 24 <= trained < 48 and len(told["splits"]) == 3
    assert told["recipe"] == Recipe(Net(6, 2, 3), 2, 999, folds, seed=7)
    about = told["about"]
    assert about["folds"] == folds and about["settings"] == settings
    assert about["tuned"] is (folds > 0) and about["batch_size"] == trained and about["steps"] == 2
    assert (
        about["notes"][-4:] == ["a copy", "constant", "unseen", "a row diverged"]
        and about["easier"] == ["a copy"] and about["seconds"] == 5.0
    )  # fmt: skip
    assert about["model"] == {"name": "mlp", "width": 6, "depth": 2} and about["cut"] is None
    assert {name: len(points) for name, points in about["grid"].items()} == {
        "sgd, cross_entropy": settings, "sam, cross_entropy": settings
    }  # fmt: skip
    assert json.loads((tmp_path / "spent.json").read_text()) == {"seconds": 5.0}
    assert told["records"] == ["records"] and told["train_counts"] == [3, 2, 1]
    assert told["thresholds"] == (2, 2) and told["keep"] is None and told["drawn"] == 1
    ((rows, best, cut), before) = told["handed"]
    assert (len(rows), best, cut, before) == (2, "sgd, cross_entropy", None, 0)
    said = capsys.readouterr().out
    assert "note: unseen\n" in said and "TABLE\n" in said
    assert said.endswith(
        f"in {tmp_path}: report.html, summary.json, runs.csv, figures, and snippet.py, which "
        "trains it\n"
    )


def test_steps_and_batches_are_of_the_rows_of_the_first_split(
    data: Path, tmp_path: Path, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ids splits have different numbers of rows."""
    read = compare.compare_read.read

    def uneven(config: Any) -> Any:
        table, splits, cut = read(config)
        return table, [splits[0], splits[1]._replace(train=splits[1].train[:9])], cut

    monkeypatch.setattr(compare.compare_read, "read", uneven)
    compared(tmp_path, data, "--epochs", 3, "--batch-size", 20)
    trained = len(told["splits"][0].train)
    assert told["recipe"].steps == 3 * -(-trained // 20) == told["about"]["steps"]
    assert trained >= 20 == told["about"]["batch_size"]


def test_the_best_row_is_handed_on_and_what_is_saved_is_of_this_setting(
    data: Path, tmp_path: Path, told: dict[str, Any]
) -> None:
    told["best"] = "sam, cross_entropy"
    compared(tmp_path, data, "--save", "--batch-size", 4)
    assert told["handed"][0][1] == "sam, cross_entropy" and told["keep"] == {"of": "config"}
    assert told["about"]["batch_size"] == 4


def test_rules_that_some_split_refuses_are_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At any point, in any split; each rule once."""

    class Row:
        def __init__(self, name: str, rule: str, *wrong: Any):
            self.name, self.rule, self.points, self.wrong = name, rule, [1, 2], wrong

        def method(self, counts: Any, point: int) -> None:
            if (counts.tolist(), point) in self.wrong:
                raise ValueError(f"no {self.name}")

    rows = [
        Row("good", "sgd"), Row("first", "a", ([2, 1, 1], 1)), Row("second", "b", ([1, 2, 1], 2)),
        Row("also", "b", ([2, 1, 1], 2)),
    ]  # fmt: skip
    monkeypatch.setattr(compare.compare_flags, "candidates_of", lambda args: rows)
    table = Namespace(weighed=np.array([0, 0, 1, 1]), weighed_names=("p", "q", "r"))
    splits = [Split(np.array(of), np.array([])) for of in ([0, 1, 2], [0, 2, 3])]
    found, notes = compare._rows(Namespace(), table, splits)
    assert [row.name for row in found] == ["good"]
    assert notes == ["without a: no first", "without b: no also"]


def test_a_class_without_a_row_counts_as_one() -> None:
    table = Namespace(weighed=np.array([0, 0, 0, 1]), weighed_names=("p", "q", "r", "s"))
    assert compare._weighed_counts(table, np.array([0, 1, 2, 3])).tolist() == [3, 1, 1, 1]
    assert compare._weighed_counts(table, np.array([0, 1])).tolist() == [2, 1, 1, 1]


def test_settings_are_chosen_by_folds_that_keep_ids_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is saved is the row at the point that they chose."""
    table = Namespace(
        labels=np.array([0, 0, 0, 1]), weighed=np.array([0, 0, 0, 1]), weighed_names="ab",
        ids=np.array([5, 5, 6, 6]),
    )  # fmt: skip
    part, seen = Part(7, np.zeros((4, 1)), np.arange(4), np.arange(4)), []
    monkeypatch.setattr(compare_kept, "all_rows", lambda *of: seen.append(of) or (part, "fitted"))
    monkeypatch.setattr(compare_kept, "save", lambda *of: seen.append(of))
    monkeypatch.setattr(compare, "_snippet", lambda *of: "snippet")

    def choose(self: Any, part: Any, rows: Any) -> Any:
        seen.append((self._ids, self.recipe, self.rows))
        return ([rows[0].points[1]], None)

    monkeypatch.setattr(Engine, "choose", choose)
    rows = candidates(("sgd", "sam"), ("cross_entropy",), settings=3, fixed={})
    recipe = Recipe(Net(4, 1, 2), 3, 4, 2, 0)
    args = Namespace(splits=7, seed=3, save=True)
    compare._hand_on(args, tmp_path, table, recipe, rows, rows[1].name, 20.0)
    of_all, (ids, *chosen), saved = seen
    assert of_all == (table, 7, 3, 20.0) and ids is table.ids and chosen == [recipe, [rows[1]]]
    assert saved[0] == tmp_path and saved[2:5] == (part, "fitted", recipe)
    assert saved[5].points == [rows[1].points[1]] and saved[5].name == rows[1].name
    assert (tmp_path / "snippet.py").read_text() == "snippet"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, "'sklearn:digits'"), ({"data": "x.csv", "label": "k"}, "'x.csv', 'k'"),
        ({"data": "x.csv", "label": "k", "text": ["a", "b"], "group": "g", "id": "i",
          "test": "t.csv"},
         "'x.csv', 'k', text=['a', 'b'], group='g', id='i', test='t.csv'"),
        ({"label": ""}, "'sklearn:digits', ''"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("cut", "rest"), [(None, ""), (20.0, ", cut=20.0, seed=3")])
def test_a_snippet_reads_the_table_as_it_was_read(
    given: Any, read: str, cut: Any, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(compare.snippet, "program", lambda *of, **more: seen.append((of, more)))
    none = dict.fromkeys(("data", "label", "text", "group", "id", "test"))
    point = {"lr": 0.1, "weight_decay": 0.01, "rho": 0.3, "head_share": 0.6}
    row = Candidate("a", "imbsam", "cross_entropy", "shuffled", [point, {}])
    counts = np.array([6, 3, 1])
    args = Namespace(**{**none, **given}, seed=3)
    compare._snippet(args, Namespace(name="made"), "recipe", row, counts, cut)
    (((of, described, recipe), more),) = seen
    assert of is row and recipe == "recipe" and described == row.described(counts, point)
    assert (more["source"], more["read"], more["cut"]) == ("made", read, rest)
    assert len(more["groups"]) == 3


def test_what_is_finished_has_all_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [True]
    monkeypatch.setattr(compare_folder, "read", lambda out: ({"a": 1}, None))
    monkeypatch.setattr(compare_kept, "is_whole", lambda out: whole[0])

    def finished(**flags: Any) -> Any:
        return compare._finished(tmp_path, Namespace(**{"predict": None, "save": False, **flags}))

    for name in ("summary.json", "runs.csv", "snippet.py"):
        assert finished() is None
        outputs.replace_text(tmp_path / name, "x")
    assert finished() == finished(save=True) == {"a": 1}
    assert finished(predict="y.csv") is None
    whole[0] = False
    assert finished() == {"a": 1} and finished(save=True) is None
