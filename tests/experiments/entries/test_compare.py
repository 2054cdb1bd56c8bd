"""`compare` on a small table: what is written, stopping and going on, what is chosen and kept."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import os
import runpy
import shutil
import signal
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import compare
from experiments.analysis import results
from experiments.analysis.tables import of_comparison
from experiments.bench import compare_kept
from experiments.bench.comparison import Engine, Part, Recipe
from experiments.bench.lanes import Net
from experiments.command.candidates import candidates
from experiments.data import columns
from experiments.data.splits import training_rows
from experiments.data.table import read
from experiments.host import inputs, locks, outputs
from experiments.host.errors import DataError, RunError, Stopped
from experiments.reports import compare_figures, compare_page, drawing
from experiments.reports.scores import METRICS

QUICK = (
    "--splits", "2", "--settings", "3", "--folds", "2", "--epochs", "10", "--width", "8",
    "--rule", "sgd", "imbsam", "--loss", "cross_entropy", "logit_adjusted",
    "--sampling", "shuffled", "--reference", "logistic",
)  # fmt: skip
UNTUNED = ("--splits", "2", "--no-tune", *QUICK[QUICK.index("--epochs") :])
LEAST = ("--rule", "sgd", "--loss", "cross_entropy")
ROWS = [
    "sgd, cross_entropy", "sgd, logit_adjusted", "imbsam, cross_entropy", "imbsam, logit_adjusted",
    "logistic regression, balanced weights",
]  # fmt: skip


def frame(rows: int = 90) -> pd.DataFrame:
    """Numbers, words, gaps; a class of a sixth of the rows."""
    draw = np.random.default_rng(0)
    rare = np.arange(rows) % 6 == 0
    found = pd.DataFrame({"a": draw.normal(size=rows) + 2 * rare, "b": draw.normal(size=rows)})
    found["c"] = np.where(draw.random(rows) < 0.5, "x", "y")
    found.loc[:3, "b"] = np.nan
    found["kind"] = np.where(rare, "rare", "usual")
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small.csv"
    frame().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module", autouse=True)
def programs_are_compiled_once() -> Iterator[None]:
    """For every comparison of this file: by all that they are made of, and the engine's own key."""
    made: dict[Any, Any] = {}
    begin = Engine.__init__

    def sharing(self: Engine, *args: Any, **more: Any) -> None:
        begin(self, *args, **more)
        self.compiled = made.setdefault((self.recipe.net, self.label_of, self._keep), {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "__init__", sharing)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is without figures."""
    monkeypatch.setattr(compare_figures, "draw", lambda out, summary: [])


def run(data: Any, out: Path, *flags: str, label: str = "kind") -> Any:
    args = ["--data", str(data), "--label", label, "--out", str(out), *QUICK, *flags]
    return compare.main(compare.arguments().parse_args(args))


@pytest.fixture(scope="module")
def finished(
    programs_are_compiled_once: None, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    with jax.numpy_rank_promotion("raise"), contextlib.redirect_stdout(io.StringIO()) as said:
        run(data, out, "--save")
    (out.parent / "said").write_text(said.getvalue())
    return out


def lines(out: Path) -> list[dict[str, str]]:
    with open(out / "runs.csv", newline="") as file:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in csv.DictReader(file)]


def test_the_summary_is_as_the_design_has_it(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    of_data = {"rows", "features", "classes", "class_counts", "imbalance_factor"}
    assert of_data <= set(summary["data"])
    assert summary["data"]["class_counts"] == [75, 15] and summary["data"]["rows"] == 90
    assert isinstance(summary["verdict"], str) and len(summary["verdict"]) > 20
    assert [row["row"] for row in summary["rows"]] == ROWS
    for row in summary["rows"]:
        assert {"rule", "loss", *METRICS} <= set(row)
        assert ("p_holm" in row) or row["reference"] or row["row"] == ROWS[0]
        assert 0 <= row["balanced_accuracy"] <= 100 and 0 <= row["auroc"] <= 1
        if row["row"] != ROWS[0]:
            mean, low, high = row["difference"]["balanced_accuracy"]
            assert low <= mean <= high
            want = row["balanced_accuracy"] - summary["rows"][0]["balanced_accuracy"]
            assert mean == pytest.approx(want)
    about = summary["about"]
    assert about["settings"] == 3 and about["folds"] == 2 and about["tuned"] is True
    assert {len(points) for points in about["grid"].values()} == {3}
    assert list(about["grid"]) == ROWS[:-1] and about["seconds"] > 0 < about["cpu_seconds"]
    told = {
        "seed": 0, "splits": 2, "model": {"name": "mlp", "width": 8, "depth": 2}, "steps": 10,
        "batch_size": 62, "cut": None, "perturb": "all", "confidence": 0.95, "notes": [],
    }  # fmt: skip
    assert {name: about[name] for name in told} == told
    for name in ("report.html", "snippet.py", "differences.png"):
        assert (finished / name).stat().st_size > 500, name
    said = (finished.parent / "said").read_text()
    told = "report.html, summary.json, runs.csv, figures, and snippet.py, which trains it"
    assert said.endswith(f"\nin {finished}: {told}\n")
    assert summary["verdict"] in " ".join(said.split())


def test_runs_have_a_line_for_each_split_and_row(finished: Path) -> None:
    found = lines(finished)
    assert [(line["row"], line["split"]) for line in found] == [
        (row, split) for row in ROWS for split in ("0", "1")
    ]
    summary = json.loads((finished / "summary.json").read_text())
    for row in summary["rows"]:
        mine = [line for line in found if line["row"] == row["row"]]
        assert {(line["train"], line["test"]) for line in mine} == {("62", "28")}
        values = [float(line["balanced_accuracy"]) for line in mine]
        assert row["balanced_accuracy"] == pytest.approx(np.mean(values))
        if not row["reference"]:
            tried = summary["about"]["grid"][row["row"]]
            for line in mine:  # what was chosen is a setting that was tried
                assert float(line["chosen_lr"]) in [point["lr"] for point in tried]
    # Of two classes the smaller is the tail, whatever share the head is to hold: 15 less 5 tested.
    assert {line["chosen_eta"] for line in found if line["rule"] == "imbsam"} == {"10.0"}


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_goes_on_by_another_way_to_its_rows(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, link = tmp_path / "out", tmp_path / "link.csv"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    link.symlink_to(data)
    monkeypatch.chdir(data.parent)
    before = (out / "config.json").read_bytes()
    assert run(link, out, "--resume", "--save")["rows"]
    assert (out / "config.json").read_bytes() == before
    assert run(data.name, out, "--resume", "--save")["rows"]
    copy = tmp_path / "copy.csv"
    copy.write_bytes(data.read_bytes())
    with pytest.raises(RunError, match=r"another comparison \(data "):
        run(copy, out, "--resume", "--save")


def test_a_killed_comparison_counts_its_seconds_up_to_the_last_kept_job(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves is what is in the folder when the next program begins."""
    calls, call, held = 0, Engine._call, {}
    out = tmp_path / "out"

    def killed(self: Engine, *args: Any) -> Any:
        nonlocal calls, held
        calls += 1
        if calls == 9:
            held = json.loads((out / "spent.json").read_text())
            raise RunError("the ninth")
        return call(self, *args)

    monkeypatch.setattr(Engine, "_call", killed)
    with pytest.raises(RunError, match="the ninth"):
        run(data, out)
    assert (out / "jobs/split_0_0.json").exists()
    at_last = json.loads((out / "spent.json").read_text())
    assert 0 < held["seconds"] < at_last["seconds"]
    assert 0 < held["cpu_seconds"] < at_last["cpu_seconds"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("undrawn")
def test_a_comparison_that_is_stopped_goes_on(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int,
    code: int,
) -> None:  # fmt: skip
    """The signal comes in the ninth program; finished jobs are not trained again."""
    calls, call = [], Engine._call

    def counted(self: Engine, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 9 and number is not None:
            os.kill(os.getpid(), number)
        return call(self, *args)

    monkeypatch.setattr(Engine, "_call", counted)
    out = tmp_path / "out"
    with pytest.raises(Stopped, match="--resume") as stopped:
        run(data, out)
    assert stopped.value.exit_code == code
    kept = sorted(path.name for path in (out / "jobs").glob("*"))
    assert kept == ["split_0_0.json"] and not (out / "summary.json").exists()
    with pytest.raises(RunError, match="not empty"):
        run(data, out)
    with pytest.raises(RunError, match=r"another comparison \(seed 0 -> 1\)"):
        run(data, out, "--resume", "--seed", "1")
    calls.clear()
    number = None  # type: ignore[assignment]
    (out / "spent.json").write_text('{"seconds": 1000.0, "cpu_seconds": 2000.0}')
    about = run(data, out, "--resume")["about"]
    assert json.loads((out / "spent.json").read_text())["seconds"] > about["seconds"]
    assert 1000 < about["seconds"] < 1900 and 2000 < about["cpu_seconds"] < 2900
    # Two families on two splits, two rows of two folds and a last call each, one job was finished.
    assert len(calls) == 3 * 5 + 2
    assert lines(out) == lines(finished)
    calls.clear()
    before = (out / "summary.json").read_text()
    assert run(data, out, "--resume")["verdict"] and not calls
    assert (out / "summary.json").read_text() == before


def test_a_page_that_a_kill_prevented_is_written_by_going_on(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is the last file, and gone while anything else of the folder is not yet new."""
    out, drawn = tmp_path / "out", []
    shutil.copytree(finished, out)

    def draw(out: Path, summary: Any) -> list[Path]:
        drawn.append((out / "report.html").exists())
        return []

    monkeypatch.setattr(compare_figures, "draw", draw)
    monkeypatch.setattr(compare, "_compare", lambda *args: pytest.fail("trained again"))
    run(data, out, "--resume", "--save")
    assert not drawn
    (out / "report.html").unlink()
    run(data, out, "--resume", "--save")
    assert drawn == [False] and (out / "report.html").exists()
    compare_page.draw(out)
    assert drawn == [False, False]
    outputs.clear_tables(out)
    assert not (out / "report.html").exists()


def test_what_is_kept_predicts_other_rows(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = frame(20).drop(columns="kind")
    new.to_csv(tmp_path / "new.csv", index=False)
    flags = ["--out", str(finished), "--predict", str(tmp_path / "new.csv")]
    assert compare.main(compare.arguments().parse_args(flags)) is None
    assert capsys.readouterr().out == f"20 rows predicted in {finished / 'predictions.csv'}\n"
    found = pd.read_csv(finished / "predictions.csv")
    assert list(found) == ["predicted", "p_usual", "p_rare"] and len(found) == 20
    np.testing.assert_allclose(found["p_usual"] + found["p_rare"], 1, rtol=1e-6)
    want = np.where(found["p_rare"] > found["p_usual"], "rare", "usual")
    assert found["predicted"].tolist() == want.tolist()
    # By hand: the same pipeline, two layers more than the last.
    table = read(data, "kind")
    x = columns.fit(table, np.arange(90))(new)
    p = inputs.read_npz(finished / "model" / "params.npz")
    for layer in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ p[f"{layer}/kernel"] + p[f"{layer}/bias"], 0)
    z = x @ p["head/kernel"] + p["head/bias"]
    odds = np.log(found["p_rare"] / found["p_usual"])
    np.testing.assert_allclose(odds, z[:, 1] - z[:, 0], rtol=1e-3, atol=1e-4)


def _rewritten(name: str, change: Any) -> Any:
    """Of a folder with a model, one file of it changed."""

    def damage(folder: Path) -> None:
        path = folder / "model" / name
        if change is None:
            path.unlink()
        elif change is os.mkfifo:
            path.unlink()
            os.mkfifo(path)
        else:
            path.write_bytes(change(path.read_bytes()))

    return damage


def _about(*path: str, new: Any) -> Any:
    def change(data: bytes) -> bytes:
        value = json.loads(data)
        here = value
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = new
        return json.dumps(value).encode()

    return _rewritten("model.json", change)


MODEL_FAULTS = {
    f"{name} {what}": _rewritten(name, change)
    for name in ("model.json", "pipeline.joblib", "params.npz")
    for what, change in {
        "gone": None,
        "a pipe": os.mkfifo,
        "empty": lambda data: b"",
        "half": lambda data: data[: len(data) // 2],
        "a bit": lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:],
        "garbage": lambda data: b"\x80" + data,
    }.items()
} | {
    "classes turned round": _about("class_names", new=["rare", "usual"]),
    "a class less": _about("class_names", new=["usual"]),
    "another width": _about("net", "width", new=5),
    "no network": _about("net", new=None),
    "no sums": _about("sha256", new=None),
}  # fmt: skip


@pytest.mark.parametrize("what", MODEL_FAULTS)
def test_what_is_kept_is_as_it_was_written(finished: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(finished / "model", tmp_path / "o" / "model")
    MODEL_FAULTS[what](tmp_path / "o")
    frame(20).to_csv(tmp_path / "new.csv", index=False)
    flags = ["--out", str(tmp_path / "o"), "--predict", str(tmp_path / "new.csv")]
    with pytest.raises((RunError, DataError), match=r"model|holds no network"):
        compare.main(compare.arguments().parse_args(flags))


def test_a_model_of_other_versions_is_told(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_kept.sklearn, "__version__", "0.1")
    with pytest.raises(
        DataError, match=r"written by scikit-learn .*, and this is scikit-learn 0\.1"
    ):
        compare_kept.predict(finished, "x.csv")


@pytest.mark.parametrize("file", ["data", "test"])
def test_other_rows_are_not_gone_on_with(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Jobs of the rows before would stand beside those of the rows now."""
    mine, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    shutil.copy(data, mine)
    frame(30).to_csv(other, index=False)
    monkeypatch.setattr(compare, "_compare", lambda *_: {})
    flags = ["--test", str(other)]
    run(mine, tmp_path / "out", *flags)
    run(mine, tmp_path / "out", "--resume", *flags)
    changed = {"data": mine, "test": other}[file]
    changed.write_text(changed.read_text() + changed.read_text().splitlines()[-1] + "\n")
    with pytest.raises(RunError, match="was begun with other rows than are in"):
        run(mine, tmp_path / "out", "--resume", *flags)


def subjects(out: Path, data: Any = None) -> Any:
    return of_comparison(out, outputs.read_object(out / "config.json"), data)


def test_the_network_of_every_split_and_row_is_kept(finished: Path, tmp_path: Path) -> None:
    """Read again, they predict what was told of them, and are perturbed as they were trained."""
    found = subjects(finished)
    assert [results.name_of(one.description) for one in found] == ROWS[:-1]  # none of references
    told = {(line["row"], line["split"]): line for line in lines(finished)}
    for one, row in zip(found, ROWS, strict=False):
        assert one.seeds == [0, 1] and one.counts.tolist() == [52, 10]
        for k in one.seeds:
            variables = jax.tree.map(lambda x, k=k: x[k], one.variables)
            guess = np.asarray(one.apply(variables, one.test.images[k])).argmax(axis=1)
            right = guess == one.test.labels[k]
            recalls = [right[one.test.labels[k] == c].mean() for c in (0, 1)]
            line = told[row, str(k)]
            assert float(line["balanced_accuracy"]) == pytest.approx(100 * np.mean(recalls))
            assert (one.own is None) == (line["rule"] == "sgd")
            if one.own is not None:
                assert one.own.groups[k].tolist() == [[0, 1]]
                assert one.own.radii[k] == pytest.approx(float(line["chosen_rho"]))
    written(tmp_path / "x.csv", frame().assign(a=0.5))
    with pytest.raises(RunError, match="other rows than this table has"):
        subjects(finished, str(tmp_path / "x.csv"))


def of_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: (out / "params" / "split_0_0.npz").unlink(),
         "lacks the network of 'sgd, cross_entropy' in split 0: --save --resume"),
        (lambda out: of_json(out / "config.json", width=10**9), "tells .width 8 -> 1000000000"),
        (lambda out: of_json(out / "config.json", model="linear"), "model 'mlp' -> 'linear'"),
        (lambda out: of_json(out / "config.json", seed=5), "tells .seed 0 -> 5"),
        (lambda out: shutil.copy(out / "params" / "split_0_0.npz", out / "params/split_1_0.npz"),
         "split_1_0.npz is of something else than summary.json tells"),
        (lambda out: shutil.copy(out / "params" / "split_0_0.npz", out / "params/split_9_0.npz"),
         "has no place in split 9"),
        (lambda out: shutil.copy(out / "params" / "split_0_0.npz", out / "params/split_0_9.npz"),
         "has no place in split 0 of summary.json, or another already"),
    ],
)  # fmt: skip
def test_networks_of_another_comparison_or_split_are_refused(
    finished: Path, tmp_path: Path, damage: Any, words: str
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(RunError, match=words):
        subjects(tmp_path / "out")


@pytest.mark.slow  # that they are those that were trained, the test before this one shows
def test_networks_that_are_missing_are_trained_again(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    """As those of a comparison that was made without --save."""
    shutil.copytree(finished, tmp_path / "out")
    path = tmp_path / "out" / "params" / "split_1_0.npz"
    path.unlink()
    run(data, tmp_path / "out", "--save", "--resume")
    before = inputs.read_npz(finished / "params" / path.name)
    after = inputs.read_npz(path)
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[name])
    assert lines(tmp_path / "out") == lines(finished)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match=r"is not an .npz file.*: remove it, and --save --resume"):
        subjects(tmp_path / "out")
    shutil.rmtree(path.parent)
    with pytest.raises(RunError, match="compare again with --save"):
        subjects(tmp_path / "out")


def test_the_snippet_trains_what_was_kept(data: Path, finished: Path) -> None:
    """From the same weights and batches it ends where the comparison's network did."""
    made = runpy.run_path(str(finished / "snippet.py"))
    table = read(data, "kind")
    features = columns.fit(table, np.arange(90))(table.columns)
    kept = inputs.read_npz(finished / "model" / "params.npz")
    net = Net(**json.loads((finished / "model" / "model.json").read_text())["net"])
    key = jax.random.fold_in(jax.random.key(0), 2)
    fresh = net.module().init(key, features[:1], train=False)["params"]
    layers = ("hidden_0", "hidden_1", "head")
    part, _ = compare_kept.all_rows(table, 2, made["SEED"], None)
    np.testing.assert_array_equal(part.features, features)
    order = made["batches"](table.weighed, made["SEED"])
    recipe = compare.Recipe(net, *order.shape, 0, 0)
    engine = Engine(table.labels, table.weighed, recipe, [])
    order = engine._order(part.train, "shuffled", engine._draw(part, 0))
    found = made["train"](
        features, table.labels, table.weighed, [dict(fresh[layer]) for layer in layers], order
    )
    for layer, mine in zip(layers, found, strict=True):
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(mine[name], kept[f"{layer}/{name}"], rtol=2e-3, atol=2e-5)
    assert np.abs(found[-1]["kernel"] - fresh["head"]["kernel"]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    ("--rule", "sam", "--loss", "cross_entropy"), ("--rule", "focal_sam"), ("--rule", "gsa"),
    ("--loss", "class_balanced"), ("--loss", "focal"), ("--sampling", "balanced"),
    ("--model", "linear"),
], ids=lambda flags: " ".join(flags))  # fmt: skip
def test_every_snippet_runs(
    data: Path, tmp_path: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of the last row, whichever is best."""
    hand_on = compare._hand_on

    def last(args: Any, out: Any, table: Any, recipe: Any, rows: Any, best: str, cut: Any) -> None:
        hand_on(args, out, table, recipe, rows, rows[-1].name, cut)

    monkeypatch.setattr(compare, "_hand_on", last)
    base = [x for x in QUICK if x not in ("--width", "8")] if "linear" in flags else [*QUICK]
    args = ["--data", str(data), "--label", "kind", "--out", str(tmp_path / "out"), *base, *flags]
    compare.main(compare.arguments().parse_args(args))
    runpy.run_path(str(tmp_path / "out" / "snippet.py"), run_name="__main__")
    assert "balanced accuracy on the rows trained on" in capsys.readouterr().out


# Flags, and the numbers of the rows that are trained on at last.
TRAINED: dict[str, tuple[tuple[str, ...], Any]] = {
    "beside a file of test rows": (("--test", "other.csv"), lambda table: np.arange(90)),
    "cut": (("--cut", "20", "--seed", "3"), lambda table: training_rows(table, cut=20.0, seed=3)),
}


@pytest.mark.slow  # of uncut rows, the snippet's test above is quick
@pytest.mark.parametrize("way", TRAINED)
def test_what_is_handed_on_is_of_the_rows_that_are_trained_on(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of rows that are never tested, and cut as they were compared; also of equal classes."""
    monkeypatch.chdir(tmp_path)
    halves = frame().assign(kind=["rare", "usual"] * 45)  # nothing is imbalanced before the cut
    written(Path("x.csv"), halves if way == "cut" else frame())
    written(Path("other.csv"), frame()[30:].assign(a=7.0))
    flags, rows_of = TRAINED[way]
    seen: list[Any] = []
    kept = compare_kept.save
    monkeypatch.setattr(compare_kept, "save", lambda *a: (seen.append(a), kept(*a)))
    hand_on = compare._hand_on

    def imbsam(*given: Any) -> None:
        *before, _, cut = given
        hand_on(*before, "imbsam, logit_adjusted", cut)

    monkeypatch.setattr(compare, "_hand_on", imbsam)
    untuned(Path("x.csv"), Path("out"), "--loss", "logit_adjusted", *flags, "--save")
    ((_, table, part, *_),) = seen
    np.testing.assert_array_equal(part.train, rows_of(table))
    if way == "cut":  # as the splits are: the largest whole, the other a twentieth
        assert np.bincount(table.labels[part.train]).tolist() == [45, 2]
    made = runpy.run_path("out/snippet.py", run_name="__main__")
    assert "balanced accuracy on the rows trained on" in capsys.readouterr().out
    np.testing.assert_array_equal(made["rows"], part.train)
    np.testing.assert_allclose(made["x"], part.features[part.train])


@pytest.mark.slow
def test_a_row_that_all_rows_refuse_is_compared_and_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """15 rare rows, 10 of them trained on in a split: an eta of 12 leaves no tail of all rows."""
    hand_on = compare._hand_on

    def imbsam(*given: Any) -> None:
        *before, _, cut = given
        hand_on(*before, "imbsam, logit_adjusted", cut)

    monkeypatch.setattr(compare, "_hand_on", imbsam)
    out = tmp_path / "out"
    untuned(written(tmp_path / "x.csv", frame()), out, "--eta", "12", "--save")
    assert [row["row"] for row in json.loads((out / "summary.json").read_text())["rows"]] == ROWS
    said = " ".join(capsys.readouterr().out.split())
    assert "note: sgd, cross_entropy is handed on, for imbsam, logit_adjusted was of other" in said
    assert json.loads((out / "model" / "model.json").read_text())["row"] == ROWS[0]
    runpy.run_path(str(out / "snippet.py"), run_name="__main__")


@pytest.mark.parametrize(("rare", "name"), [(12, "imbsam, cross_entropy"), (13, ROWS[0])])
def test_a_row_whose_rule_all_rows_have_no_tail_for_gives_way_to_the_baseline(
    rare: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tail is of classes of at most eta = 12 rows."""
    rows = candidates(("sgd", "imbsam"), ("cross_entropy",), settings=1, fixed={"eta": 12})
    assert compare._allowed(rows, rows[1].name, np.array([50, rare])).name == name
    assert ("is handed on" in capsys.readouterr().out) == (name == ROWS[0])


@pytest.mark.parametrize("folds", [0, 2])
def test_without_folds_the_default_settings_are_handed_on(
    folds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those that the folds of all rows choose."""
    part, table = Part(0, np.zeros((4, 1)), np.arange(4), np.arange(4)), Namespace(
        labels=np.array([0, 0, 0, 1]), weighed=np.array([0, 0, 0, 1]), weighed_names="ab", ids=None
    )  # fmt: skip
    monkeypatch.setattr(compare_kept, "all_rows", lambda *_: (part, None))
    monkeypatch.setattr(compare, "_snippet", lambda args, table, recipe, row, *_: str(row.points))
    monkeypatch.setattr(Engine, "choose", lambda self, part, rows: ((rows[0].points[1],), None))
    rows = candidates(("sgd",), ("cross_entropy",), settings=3, fixed={})
    recipe = Recipe(Net(4, 1, 2), 3, 4, folds, 0)
    args = Namespace(splits=2, seed=0, save=False)
    compare._hand_on(args, tmp_path, table, recipe, rows, ROWS[0], None)
    handed = (tmp_path / "snippet.py").read_text()
    assert handed == str([rows[0].points[1 if folds else 0]])


@pytest.mark.usefixtures("undrawn")
def test_a_network_that_cannot_be_handed_on_costs_no_page(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise RunError("diverged on all rows together")

    monkeypatch.setattr(compare_kept, "save", refuses)
    with pytest.raises(RunError, match="on all rows"):
        untuned(data, tmp_path / "out", *LEAST, "--save")
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_classes_that_choose_nothing_or_are_never_tested_are_told(tmp_path: Path) -> None:
    """Of ids, the one of the rarest class can be on one side alone."""
    rows = 120
    kinds = np.array(["a"] * 80 + ["b"] * 30 + ["c"] * 10)
    whole = pd.DataFrame({"x": np.arange(rows) % 7, "kind": kinds, "who": np.arange(rows) // 10})
    run(written(tmp_path / "x.csv", whole), tmp_path / "out", "--id", "who")
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["about"]["notes"]
    assert "never tested, for it is in no test part: class 'c'" in notes
    (chosen,) = (note for note in notes if "chosen without" in note)
    assert chosen.startswith("in some split too few ids to be held out") and "'c'" in chosen
    few = whole[whole["who"] >= 10].assign(kind=["b", "c"] * 10, who=np.arange(20) // 5)
    few["kind"] = np.where(few["who"] < 2, "b", "c")
    with pytest.raises(RunError, match="no row can be held out to choose settings by"):
        run(written(tmp_path / "y.csv", few), tmp_path / "few", "--id", "who")


def test_columns_whose_features_have_one_name_are_told_apart(tmp_path: Path) -> None:
    """A column beside its own dummies, two categories that make one name, an indicator's name."""
    made = frame().assign(c_x=1.0 * (frame()["c"] == "x"), missingindicator_b=np.arange(90) % 5)
    made["p"], made["p_q"] = ["q_r", "s"] * 45, ["r", "t", "u"] * 30
    table = read(written(tmp_path / "x.csv", made), "kind")
    names = columns.fit(table, np.arange(90)).names
    assert (
        len(set(names)) == len(names) == columns.fit(table, np.arange(90))(table.columns).shape[1]
    )
    assert {"a", "words__c_x", "numbers__c_x", "words__p_q_r", "words__p_q_r (2)", "c_y"} <= set(
        names
    )


@pytest.mark.parametrize("name", [
    "$1 # $2", *(pytest.param(x, marks=pytest.mark.slow) for x in ("$5_ to $10", "$", "a\\\\x")),
])  # fmt: skip
def test_a_name_with_a_dollar_is_drawn_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class, and the file itself; the snippet is Python, whatever the file is called."""
    save = drawing.save

    def saved(figure: Any, path: Path) -> None:
        if path.stem == "recall":
            save(figure, path)
        else:  # nobody reads it
            path.touch()

    monkeypatch.setattr(drawing, "save", saved)
    made = frame()
    made["kind"] = made["kind"].where(made["kind"] == "rare", name)
    file = written(tmp_path / f"{name.replace('/', '')}.csv", made)
    untuned(file, tmp_path / "out", *LEAST)
    drawn = (tmp_path / "out" / "recall.svg").read_text()
    assert f">{html.escape(name)} (" in drawn
    compile((tmp_path / "out" / "snippet.py").read_text(), "snippet.py", "exec")


def untuned(data: Path, out: Path, *flags: str) -> None:
    args = ["--data", str(data), "--label", "kind", "--out", str(out), *UNTUNED, *flags]
    compare.main(compare.arguments().parse_args(args))


def written(path: Path, found: pd.DataFrame) -> Path:
    found.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(("change", "flags", "label", "words"), [
    ({}, (), "sort", "no column 'sort'"),
    ({"kind": "one"}, (), "kind", "one class"),
    ({"a": np.inf}, (), "kind", "infinite"),
    ({"kind": np.arange(90)}, (), "kind", "all different"),
    ({}, ("--cut", "900"), "kind", "without a row"),
], ids=["no column", "one class", "infinite", "all different", "cut too far"])  # fmt: skip
def test_data_that_cannot_be_compared_on_is_refused(
    tmp_path: Path, change: dict[str, Any], flags: tuple[str, ...], label: str, words: str
) -> None:
    path = written(tmp_path / "x.csv", frame().assign(**change))
    with pytest.raises((DataError, RunError), match=words):
        run(path, tmp_path / "out", *flags, label=label)
    assert not (tmp_path / "out" / "summary.json").exists()


# ---- real data --------------------------------------------------------------------------------


def real(variable: str, name: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: no {name} to read")
    return Path(os.environ[variable]) / name


def learnt(out: Path, *flags: str) -> Any:
    """SGD with cross-entropy alone, not tuned; the summary."""
    given = [*UNTUNED, *LEAST, "--reference", "--out", str(out), *flags]
    return compare.main(compare.arguments().parse_args(given))


@pytest.mark.usefixtures("undrawn")
def test_a_public_table(tmp_path: Path) -> None:
    summary = learnt(tmp_path / "out", "--data", str(real("TABULAR_DIR", "glass.npz")))
    assert summary["data"]["class_counts"] == [76, 70, 29, 17, 13, 9]
    assert summary["rows"][0]["auroc"] > 0.7


@pytest.mark.usefixtures("undrawn")
def test_sentences(tmp_path: Path) -> None:
    """The four largest intents of Banking77, the last three cut: 260 questions."""
    held = pd.read_csv(real("TEXT_DIR", "banking77/train.csv"))
    names = held["category"].value_counts().index[:4]
    parts = [held[held["category"] == n][: 140 if n == names[0] else 40] for n in names]
    path = written(tmp_path / "few.csv", pd.concat(parts))
    flags = "--data", str(path), "--label", "category", "--text", "text"
    summary = learnt(tmp_path / "out", *flags)
    assert summary["data"]["class_counts"] == [140, 40, 40, 40]
    assert summary["data"]["text"] == ["text"] and summary["rows"][0]["auroc"] > 0.9


@pytest.mark.usefixtures("undrawn")
def test_equal_classes_are_compared_without_a_tail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is imbalanced: it says so, and goes on with what needs no tail."""
    path = written(tmp_path / "x.csv", frame().assign(kind=np.tile(["p", "q"], 45)))
    untuned(path, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["row"] for row in summary["rows"]] == [*ROWS[:2], ROWS[-1]]
    assert "without imbsam: every class has" in capsys.readouterr().out
    assert any("nothing is imbalanced" in note for note in summary["about"]["notes"])


@pytest.fixture
def again(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Any]:
    """A finished folder, and a call that goes on with it; anything made anew is a RunError."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)

    def makes(*_: Any) -> None:
        raise RunError("made anew")

    monkeypatch.setattr(compare, "_compare", makes)
    return out, lambda: run(data, out, "--save", "--resume")


def test_a_finished_one_is_told_by_its_verdict(
    again: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out, resume = again
    summary = json.loads((out / "summary.json").read_text())
    assert resume() == summary
    assert capsys.readouterr().out == f"{out} is finished: {summary['verdict']}\n"


MADE = (
    "summary.json", "runs.csv", "model/model.json", "model/params.npz", "model/pipeline.joblib",
    "params/split_1_0.npz",
)  # fmt: skip


@pytest.mark.parametrize("name", [*MADE, "snippet.py"])
def test_what_is_missing_of_a_finished_one_is_made_anew(again: tuple[Path, Any], name: str) -> None:
    out, resume = again
    (out / name).unlink()
    with pytest.raises(RunError, match="made anew"):
        resume()


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    "damage", [b"junk", b'{"rows": 3}', None], ids=["junk", "other JSON", "cut short"]
)
def test_what_is_damaged_of_a_finished_one_is_named_and_made_anew_once_removed(
    again: tuple[Path, Any], name: str, damage: bytes | None
) -> None:
    out, resume = again
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises((RunError, DataError), match=f"{name}.*remove it, and .*makes it anew"):
        resume()
    (out / name).unlink()
    with pytest.raises(RunError, match="made anew"):
        resume()


@pytest.mark.slow  # that it is the one that was trained, the snippet's test shows
def test_a_model_that_is_missing_a_file_is_made_as_it_was(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "model" / "params.npz").unlink()
    run(data, out, "--save", "--resume")
    before, after = (inputs.read_npz(at / "model" / "params.npz") for at in (finished, out))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[name])


@pytest.mark.parametrize("flags", [["--resume"], []])
def test_a_kill_within_the_first_write_leaves_nothing_to_go_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    for name in (".lock", "config.json.partial"):
        (tmp_path / name).touch()
    monkeypatch.setattr(compare, "_compare", lambda *_: {"verdict": "begun"})
    assert run(data, tmp_path, *flags) == {"verdict": "begun"}


def test_only_a_comparison_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="holds no comparison to go on with: choose another --out"):
        run(data, tmp_path, "--resume")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"is not JSON .*: pass --overwrite, or choose another"):
        run(data, tmp_path, "--resume")


def test_a_folder_is_locked_while_rows_are_predicted(finished: Path, tmp_path: Path) -> None:
    frame(20).to_csv(tmp_path / "new.csv", index=False)
    flags = ["--out", str(finished), "--predict", str(tmp_path / "new.csv")]
    before = (finished / "predictions.csv").exists()
    with locks.Lock(finished), pytest.raises(RunError, match="is in use by another process"):
        compare.main(compare.arguments().parse_args(flags))
    assert (finished / "predictions.csv").exists() == before


@pytest.mark.parametrize("flags", [
    ["--predict", "out/predictions.csv"], ["--predict", "link.csv"],
    ["--predict", "out/predictions.csv", "--save", "--data", "x.csv", "--overwrite"],
    ["--data", "out/runs.csv", "--overwrite"],
    ["--data", "x.csv", "--test", "out/runs.csv", "--overwrite"],
], ids=" ".join)  # fmt: skip
def test_no_file_is_read_that_is_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    for name in ("x.csv", "out/runs.csv", "out/predictions.csv"):
        written(Path(name), frame())
    Path("link.csv").symlink_to("out/predictions.csv")
    before = {path: path.read_bytes() for path in sorted(Path("out").iterdir())}
    with pytest.raises(RunError, match="is what a comparison in out writes: name another file"):
        compare.main(compare.arguments().parse_args(["--out", "out", *flags]))
    assert {path: path.read_bytes() for path in sorted(Path("out").iterdir())} == before


def test_nothing_is_predicted_without_a_network(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path / "o"), "--predict", "x.csv"]
    with pytest.raises(RunError, match="holds no network to predict with"):
        compare.main(compare.arguments().parse_args(flags))
    assert not (tmp_path / "o").exists()
