"""The command on run folders of both kinds, its refusals, and that it goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damage import damaged_json
from experiments import analyse, digits_lt
from experiments.analysis.measure import Measure
from experiments.host.errors import DataError, RunError, Stopped
from experiments.host.stopping import StopRequest
from experiments.reports import drawing
from imbsam_jax import tail_threshold
from made_subjects import COUNTS, subject
from tiny import tiny_dataset

QUICK = (
    "--iterations", "2", "--probes", "2", "--directions", "2", "--steps", "1", "--rho", "0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("digits") / "run"
    flags = ["--rule", "sgd", "imbsam", "--epochs", "1", "--num-seeds", "2", "--save"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save", lambda figure, path, dpi=0: figure)  # no test looks at one
        digits_lt.main(digits_lt.arguments().parse_args([*flags, "--out", str(out)]))
    return out


def run(*flags: Any) -> None:
    analyse.main(analyse.arguments().parse_args([*map(str, flags)]))


@pytest.mark.slow  # what is measured, tests/experiments/analysis shows
def test_digits_and_again(digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    more = ("--eta", 20, "--density", 1, "--surface", 2, "--out", out)
    run(digits, *QUICK, *more)
    records = json.loads((out / "records.json").read_text())
    assert [(one["rule"], one["seed"]) for one in records] == [
        (rule, seed) for rule in ("sgd", "imbsam") for seed in (0, 1)
    ]
    assert list(records[0]["groups"]) == ["all", "head", "tail", "many", "medium", "few"]
    # The accuracies are those of the run: all of them are of the last epoch.
    summary = json.loads((digits / "summary.json").read_text())
    for one in records:
        line = summary[0 if one["rule"] == "sgd" else 1]
        rows = one["groups"]["all"]["test_accuracy"]
        assert rows == pytest.approx(line["all_by_seed"][one["seed"]], abs=0.7)  # of rows, classes
    held = {"groups.png", "densities.png", "surfaces.png", "table.md", "analysis.json"}
    assert held <= {path.name for path in out.iterdir()}

    def refuse(*args: Any) -> None:
        raise AssertionError("measured again")

    for name in ("levels", "ends", "traces", "rises", "worst", "density", "surface"):
        monkeypatch.setattr(Measure, name, refuse)
    before = (out / "analysis.json").read_text()
    run(digits, *QUICK, *more)
    assert (out / "analysis.json").read_text() == before
    with pytest.raises(AssertionError, match="measured again"):
        run(digits, *QUICK, *more[:-2], "--out", out, "--loss", "logit_adjusted")


def test_refusals(digits: Path, tmp_path: Path, refuse: Any) -> None:
    command = "experiments.analyse"
    out = ("--out", tmp_path / "out")
    assert "is no run folder" in refuse(command, tmp_path / "none", *out, code=1)
    none = refuse(command, digits, "--eta", 1, *out, code=1)
    assert "leaves no tail" in none
    (tmp_path / "bare").mkdir()
    for name in ("summary.json", "config.json"):
        (tmp_path / "bare" / name).write_text((digits / name).read_text())
    assert "train it again with --save" in refuse(command, tmp_path / "bare", *out, code=1)
    (tmp_path / "bare" / "config.json").write_text('{"grid": [], "epochs": 1}')
    assert "is no folder of models" in refuse(command, tmp_path / "bare", *out, code=1)
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "config.json").write_text("{}")
    assert "it names no experiment" in refuse(command, tmp_path / "half", *out, code=1)
    assert "--reach needs --surface" in refuse(command, digits, "--reach", 2, *out, code=2)


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("every", [37, pytest.param(5, marks=pytest.mark.slow)])
def test_a_folder_of_tables_damaged_in_any_field_is_told_in_a_sentence(
    digits: Path, tmp_path: Path, name: str, every: int
) -> None:
    out = tmp_path / "run"
    shutil.copytree(digits, out)
    args = analyse.arguments().parse_args([str(out), "--out", str(tmp_path / "out")])
    told = set()
    for _, data in list(damaged_json((digits / name).read_text()))[::every]:
        (out / name).write_bytes(data)
        with contextlib.suppress(RunError, DataError), StopRequest() as stop:
            analyse._subjects(out, analyse._config(out), args, stop)
            told.add("read")
    (out / name).write_text('[{"seeds": 0}]' if name == "summary.json" else '{"epochs": 1}')
    words = {"summary.json": r"do not fit together \(.*Error:", "config.json": "config.json tells"}
    with pytest.raises(RunError, match=words[name]), StopRequest() as stop:
        analyse._subjects(out, analyse._config(out), args, stop)
    assert told == {"read"}  # what nothing hangs on does no harm


def swap(out: Path, one: str, other: str) -> None:
    aside = out / "aside"
    (out / one).rename(aside)
    (out / other).rename(out / one)
    aside.rename(out / other)


def edit(path: Path, change: Any) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: swap(out, "params/0.npz", "params/1.npz"), "else than line 0 of summary.json"),
        (lambda out: edit(out / "summary.json", lambda x: x[::-1]), "else than line 0 of summary"),
        (lambda out: edit(out / "summary.json", lambda x: x[:1]), r"has not one file .*1\.npz"),
        (lambda out: edit(out / "summary.json", lambda x: [x[0], {**x[1], "diverged": "no"}]),
         r"has not one file .*1\.npz"),
        (lambda out: edit(out / "summary.json", lambda x: [x[0], {**x[1], "stage2": "crt"}]),
         "stage2 None -> 'crt'"),
        (lambda out: edit(out / "summary.json", lambda x: [{**y, "seeds": [0, 7]} for y in x]),
         r"seeds \[0, 1\] -> \[0, 7\]"),
        *(
            (lambda out, name=name, new=new: edit(
                out / "config.json", lambda x: {**x, name: new}
            ), f"config.json tells .{name} ")
            for name, new in (
                ("imbalance_factor", 20.0), ("seeds", [5, 6]), ("rho", 0.9), ("epochs", 7),
                ("lr", 10**9), ("rule", ["sam"]),
            )
        ),
        (lambda out: (out / "params" / "1.npz").unlink(), r"has not one file .*1\.npz"),
        (lambda out: shutil.copy(out / "params" / "1.npz", out / "params" / "2.npz"),
         r"has not one file .*2\.npz"),
        (lambda out: flip(out / "params" / "1.npz"), r"1\.npz is not"),
        (lambda out: (out / "params" / "0.npz").write_bytes(b"PK"), r"0\.npz is not an .npz"),
        (lambda out: (out / "params" / "0.npz").write_text("text"), r"0\.npz is not an .npz"),
        (lambda out: np.savez(out / "params" / "0.npz", **{"head/kernel": np.ones((2, 32, 10))}),
         "does not say what it is of"),
    ],
)  # fmt: skip
def test_networks_of_another_line_setting_or_data_are_refused(
    digits: Path, tmp_path: Path, damage: Any, words: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(digits, out)
    damage(out)
    args = analyse.arguments().parse_args([str(out), "--out", str(tmp_path / "out")])
    with pytest.raises(RunError, match=words) as refused, StopRequest() as stop:
        analyse._subjects(out, analyse._config(out), args, stop)
    assert "--save" in str(refused.value) and "\n" not in str(refused.value)


def test_networks_of_other_digits_are_refused(digits: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("experiments.analysis.runs.load_digits_lt", lambda *_: tiny_dataset())
    args = analyse.arguments().parse_args([str(digits), "--out", "out"])
    with pytest.raises(RunError, match="other digits than"), StopRequest() as stop:
        analyse._subjects(digits, analyse._config(digits), args, stop)


# ---- what is analysed together ------------------------------------------------------------------


def told(eta: Any = None, scale: float = 1.0, **setting: Any) -> Any:
    """A subject whose rule has that eta, of a setting."""
    one = subject(scale=scale)
    args = {} if eta is None else {"eta": eta}
    described = {**one.description, "rule_args": args, "setting": {"experiment": "x", **setting}}
    return one._replace(description=described)


def test_the_tail_is_that_of_the_runs() -> None:
    assert analyse._eta([told(), told(20), told(20.0)]) == 20
    sgd = told()
    nothing = sgd._replace(description={**sgd.description, "rule_args": None})
    assert analyse._eta([nothing, told(20)]) == 20
    with pytest.raises(RunError, match=r"name it, since the runs have several: \[10.0, 20.0\]"):
        analyse._eta([told(20), told(10)])
    tables = [told(experiment="compare"), told(experiment="anomaly")]
    with pytest.raises(RunError, match="name it, since no run has one"):
        analyse._eta([*tables, told()])
    empty = tables[0]._replace(counts=COUNTS * [1, 1, 1, 0])
    assert analyse._eta([empty, tables[1]]) == tail_threshold([9, 6, 3, 1])


def test_what_is_compared_has_the_same_classes() -> None:
    one = told()
    other = one._replace(counts=COUNTS + 1, run="there")
    analyse._check([one, one])
    with pytest.raises(RunError, match="there was trained with other class counts than run"):
        analyse._check([one, one, other])
    for setting, fits in (
        ({"experiment": "anomaly"}, True), ({"experiment": "compare", "data": "glass"}, True),
        ({"experiment": "compare"}, False),
    ):  # fmt: skip
        both = [told(**setting), told(**setting)._replace(counts=COUNTS + 1)]
        if fits:  # seeds of a table may differ by a row
            analyse._check(both)
        else:
            with pytest.raises(RunError, match="other class counts"):
                analyse._check(both)
    glass, wine = (told(experiment="compare", data=name) for name in ("glass", "wine"))
    with pytest.raises(RunError, match="other class counts"):
        analyse._check([glass, wine._replace(counts=COUNTS + 1)])


def test_the_same_model_of_two_folders_is_one() -> None:
    first, again = told(), told()._replace(run="again")
    others = [told(scale=2.0), told()._replace(epoch=4), told()._replace(seeds=[5, 6]),
              told(on="x")._replace(description={**told().description, "rule": "sam"})]  # fmt: skip
    found = analyse._distinct([first, again, *others])
    assert [id(one) for one in found] == [id(one) for one in (first, *others)]


def test_devices_are_emulated_for_convolutions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "cores", lambda: 7)
    assert analyse._emulated([{"model": "mlp"}, {"model": "resnet32"}]) == 7
    assert analyse._emulated([{"model": "mlp"}, {}]) == 0


@pytest.mark.parametrize(
    ("summary", "config", "kind"),
    [
        ({"rows": [], "verdict": ""}, {}, "compare"), ({"paper_table_4": {}}, {}, "anomaly"),
        ([{"seeds": [0]}], {"epochs": 1}, "digits_lt"), ([{"seeds": [0]}], {}, None),
        ([{}], {"epochs": 1}, None), ([{"seeds": [0]}, {}], {"epochs": 1}, None),
        ([["seeds"]], {"epochs": 1}, None), ([{"seeds": [0]}], {"epochs": 1, "grid": []}, None),
        ({"rows": []}, {}, None),
    ],
)  # fmt: skip
def test_a_folder_is_known_by_its_files(
    summary: Any, config: Any, kind: str | None, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps(config))
    if kind is None:
        with pytest.raises(RunError, match="is no folder of models"):
            analyse._config(tmp_path)
    else:
        assert analyse._config(tmp_path) == {**config, "experiment": kind}


@pytest.mark.parametrize("there", ["config.json", "checkpoints", "summary.json"])
def test_half_a_run_folder_is_none(there: str, tmp_path: Path) -> None:
    (tmp_path / there).mkdir() if there == "checkpoints" else (tmp_path / there).write_text("{}")
    with pytest.raises(RunError, match="is no run folder"):
        analyse._config(tmp_path)


def test_folders_of_tables_are_read_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets of anomaly detection where the flag says, or the environment, if it had files."""
    run = Path("run")
    monkeypatch.setattr(analyse, "of_digits", lambda run, config: ["digits", run])
    monkeypatch.setattr(analyse, "of_comparison", lambda run, config, data: ["compare", data])
    monkeypatch.setattr(analyse, "of_anomalies", lambda run, config, where: ["anomaly", where])

    def found(kind: str, *flags: str, data_dir: str | None = "then") -> Any:
        args = analyse.arguments().parse_args(["run", "--out", "x", *flags])
        with StopRequest() as stop:
            return analyse._subjects(run, {"experiment": kind, "data_dir": data_dir}, args, stop)

    assert found("digits_lt") == ["digits", run]
    assert found("compare", "--data", "t.csv") == ["compare", "t.csv"]
    monkeypatch.setenv("ADBENCH_DIR", "env")
    assert found("anomaly", "--data-dir", "flag") == ["anomaly", "flag"]
    assert found("anomaly") == ["anomaly", "env"]
    assert found("anomaly", data_dir=None) == ["anomaly", None]
    for unset in ("", None):
        monkeypatch.delenv("ADBENCH_DIR") if unset is None else monkeypatch.setenv(
            "ADBENCH_DIR", unset
        )
        assert found("anomaly") == ["anomaly", None]


def test_checkpoints_of_a_run_the_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last that can be read, or all of these; the folder is closed behind them."""
    seen: list[Any] = []
    readable = {2: "two", 5: "five"}

    def read(step: int, initial: Any, check: Any) -> Any:
        assert (initial, check) == ("initial", "contradiction")
        if step not in readable:
            return None
        return types.SimpleNamespace(variables=lambda: readable[step]), {"epoch": step}

    kept = types.SimpleNamespace(
        steps=lambda: [9, 5, 2], read=read, close=lambda: seen.append("closed")
    )
    opened = types.SimpleNamespace(
        dataset="data", parts=types.SimpleNamespace(feed="feed", initial="initial"),
        config="config", checkpoints=kept, contradiction="contradiction",
    )  # fmt: skip
    monkeypatch.setattr(analyse.evaluate, "open_run", lambda run, args: opened)
    monkeypatch.setattr(
        analyse, "rows_of", lambda data, feed, most, stop: f"{most} rows of {data} by {feed}"
    )
    monkeypatch.setattr(analyse, "of_checkpoint", lambda *given: given)

    def found(*flags: str) -> Any:
        args = analyse.arguments().parse_args(["run", "--out", "x", *flags])
        with StopRequest() as stop:
            return analyse._subjects(Path("run"), {"experiment": "cifar_lt"}, args, stop)

    rows = "3 rows of data by feed"
    first, second = ((Path("run"), "config", "data", readable[k], k, rows) for k in (5, 2))
    assert found("--images-per-class", "3") == [first]
    assert found("--images-per-class", "3", "--all-checkpoints") == [first, second]
    assert seen == ["closed"] * 2
    readable.clear()
    with pytest.raises(RunError, match="none of the checkpoints of run can be read"):
        found()
    assert seen == ["closed"] * 3


def test_networks_with_adapters_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "finetune"}))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="is a run of finetune, which trains adapters"):
        analyse._config(tmp_path)


@pytest.fixture
def analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`analysed(subjects by folder, *flags)`: what is handed on to be measured; nothing is."""
    handed: dict[str, Any] = {"opened": []}

    def start(subjects: dict[str, list[Any]], *flags: Any) -> dict[str, Any]:
        def opened(run: Path, config: Any, args: Any, stop: Any) -> list[Any]:
            handed["opened"].append(run.name)
            return subjects[run.name]

        def measured(work: Any, args: Any, stop: Any, out: Path) -> None:
            assert (out / "parts").is_dir()
            handed["work"] = work
            if handed.get("stopped"):
                os.kill(os.getpid(), handed["stopped"])
                stop.check()

        monkeypatch.setattr(
            analyse.cli, "use_compilation_cache", lambda: handed["opened"].append("cache")
        )
        monkeypatch.setattr(analyse, "_config", lambda run: {"model": f"that of {run.name}"})
        monkeypatch.setattr(analyse, "_emulated", lambda configs: len(configs) + 4)
        monkeypatch.setattr(analyse, "use_devices", lambda count: handed.update(devices=count))
        monkeypatch.setattr(analyse, "_subjects", opened)
        monkeypatch.setattr(analyse, "measured", measured)
        monkeypatch.setattr(analyse, "Work", lambda *given: given)
        run(*subjects, *flags, "--out", tmp_path / "out")
        return handed

    return start, handed


def test_what_is_handed_on_to_be_measured(analysed: Any) -> None:
    """Each folder once and each model once; the tail of the flag, or of the runs."""
    start, _ = analysed
    first, other = told(20), told(20, scale=2.0)
    found = start({"a": [first], "b": [first, other]}, "a")
    assert found["opened"] == ["cache", "a", "b"] and found["devices"] == 2 + 4
    assert [(one is first, eta) for one, _, eta, *_ in found["work"]] == [(True, 20), (False, 20)]
    tail = other._replace(tail=np.array([False, True]))
    found = start({"a": [first, tail]}, "--eta", 7, "--devices", 1)
    assert found["devices"] == 1 and [eta for _, _, eta, *_ in found["work"]] == [7, 7]


@pytest.mark.parametrize(
    ("fields", "flags", "words"),
    [
        ({"counts": COUNTS + 1}, (), "there was trained with other class counts than run"),
        ({"tail": np.array([False, True])}, ("--eta", 7), "the tail is the labelled anomalies"),
        ({"epoch": 4}, (), "--eta says which classes are the tail: name it"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_measured(
    fields: Any, flags: Any, words: str, analysed: Any
) -> None:
    start, handed = analysed
    first, other = (told(scale=k)._replace(tail=fields.get("tail")) for k in (1.0, 2.0))
    with pytest.raises(RunError, match=words):
        start({"a": [first], "b": [other._replace(**fields, run="there")]}, *flags)
    assert "work" not in handed


def test_a_stopped_analysis_is_gone_on_with(analysed: Any) -> None:
    start, handed = analysed
    handed["stopped"] = signal.SIGTERM
    with pytest.raises(Stopped, match="what is measured is kept; the same command") as stopped:
        start({"a": [told(20)]})
    assert stopped.value.exit_code == 143
