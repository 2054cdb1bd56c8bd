"""The command, from data to files, and what it refuses."""

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
import time
import unittest.mock
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from damage import Killed, Kills
from experiments.analysis.anomalies import of_anomalies
from experiments.anomaly import command as anomaly
from experiments.anomaly import report as anomaly_report
from experiments.anomaly.nets import ANOMALY_NETS
from experiments.anomaly.training import RUN, Seconds
from experiments.host import cli, outputs
from experiments.host.errors import RunError
from made_tables import made_table


def _save(folder: Path, name: str, n: int = 1000, anomalies: int = 80, **arrays: Any) -> Path:
    table = made_table(n, anomalies, name=name)
    path = folder / f"{name}.npz"
    np.savez(path, **{"X": table.features, "y": table.labels, **arrays})
    return path


def _run(*args: Any) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch.dict(os.environ),
    ):
        os.environ.pop("ADBENCH_DIR", None)
        try:
            parsed = anomaly.arguments().parse_args([str(arg) for arg in args])
            cli.run(anomaly.main, parsed)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def _rows(out: Path) -> list[dict[str, str]]:
    with open(out / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_command_from_data_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.anomaly import curves

    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for k, name in enumerate(("b_set", "a_set")):
        _save(data, name, n=1000 + 40 * k)
    args = (
        "--data-dir", data, "--method", "devnet", "--rule", "sgd", "imbsam", "--epochs", 1,
        "--seeds", 3, 1, "--label-ratio", 0.5, 0.1, "--protocol", "adbench", "full", "--out", out,
    )  # fmt: skip
    began = time.perf_counter()
    code, shown, _ = _run(*args, "--save")
    took = time.perf_counter() - began
    assert code == 0
    for part in ("adbench", "full", "imbsam", "AUROC", " - SGD ", "Table 4", "88.7", "24 runs in"):
        assert part in shown, part
    rows = _rows(out)
    assert list(rows[0]) == list(anomaly.Result._fields) == [
        "dataset", "method", "rule", "seed", "label_ratio", "protocol",
        "auroc", "ap_anomaly", "ap_normal", "seconds",
    ]  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * (2 + 1)
    assert {(r["protocol"], r["label_ratio"]) for r in rows} == {
        ("adbench", "0.1"), ("adbench", "0.5"), ("full", "1"),
    }  # fmt: skip
    assert all(0 <= float(r[m]) <= 100 for r in rows for m in anomaly_report.METRICS)
    assert all(
        (out / f"curves_{p}.png").read_bytes()[:4] == b"\x89PNG" for p in ("adbench", "full")
    )
    config = json.loads((out / "config.json").read_text())
    assert (config["datasets"], config["rho"]) == (["a_set", "b_set"], 0.05)
    assert config["data_dir"] == "data"
    assert {"command", "device", "versions", "git"} <= config.keys()
    _are_kept(out, data)
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["groups"]) == 3 * 2
    assert 0 < summary["seconds"]["devnet"]["total"] < summary["seconds"]["total"] < took
    assert summary["groups"][1]["auroc_minus_sgd_se"] is not None

    code, _, error = _run(*args)
    assert code == 1 and "is not empty: pass --overwrite" in error.splitlines()[-1]
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    code, _, _ = _run(*args, "--overwrite")
    assert code == 0
    assert not list((out / "params").iterdir())  # those of the runs before are gone
    again = _rows(out)
    for one, other in zip(rows, again, strict=True):  # bitwise the same, but for the clock
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


def test_a_kill_while_another_table_is_replaced_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each file that is written: nothing there is taken for a whole table."""
    from experiments.anomaly import curves

    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    _save(data, "a_set")
    networks = {"params": {"w": np.ones(2)}, "state": {"mean": np.ones(2)}}

    def trained(args: Any, names: list[str], cases: Any, kept: Any) -> Any:
        found = [
            anomaly.Result("a_set", "devnet", rule, seed, 0.1, "adbench", 90.0, 50.0, 99.0, 1.0)
            for rule in ("sgd", "imbsam")
            for seed in (0, 1)
        ]
        if kept is not None:
            kept |= {row[:RUN]: tuple(networks.values()) for row in found}
        return found, {"devnet": {"compiling": 0.0}}

    monkeypatch.setattr(anomaly, "_train", trained)
    monkeypatch.setattr(curves, "draw", lambda path, *_: outputs.replace_bytes(path, b"drawn"))
    flags = ["--data-dir", data, "--method", "devnet", "--rule", "sgd", "imbsam", "--seeds", 0, 1,
             "--label-ratio", 0.1]  # fmt: skip
    args = [str(word) for word in (*flags, "--out", out, "--overwrite")]
    stale = ["params/0.npz", "params/9.npz", "runs.csv", "curves_adbench.png", "curves_full.png"]
    kills = Kills(monkeypatch)

    def start(killed_at: int | None, *more: str) -> None:
        kills.at(killed_at)
        (out / "params").mkdir(parents=True, exist_ok=True)
        for old in (*stale, "summary.json"):
            (out / old).write_text("of an earlier table")
        anomaly.main(anomaly.arguments().parse_args([*args, *more]))

    start(None, "--save")
    names = kills.names
    assert names == [*(f"{k}.npz" for k in range(4)), "runs.csv", "config.json",
                     "curves_adbench.png", "summary.json"]  # fmt: skip
    for write in range(len(names)):
        with pytest.raises(Killed):
            start(write, "--save")
        assert not (out / "summary.json").exists()
        left = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
        assert all(path.read_bytes() != b"of an earlier table" for path in left), write
    start(None)  # networks of before are not those of a table without any
    assert not list((out / "params").iterdir())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of --save, and beside it its data; what is kept is no network."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "data").mkdir()
    _save(folder / "data", "a_set")

    def trained(args: Any, names: list[str], cases: Any, kept: Any) -> Any:
        found = []
        for k, (rule, seed) in enumerate(itertools.product(args.rule, args.seeds)):
            run = "a_set", "devnet", rule, seed, 0.1, "adbench"
            found.append(anomaly.Result(*run, 90.0 + k, 50.0, 99.0, 1.0))
            kept[run] = {"w": np.full(2, float(k))}, {}
        return found, {"devnet": {"compiling": 0.0}}

    flags = ["--data-dir", folder / "data", "--method", "devnet", "--rule", "sgd", "imbsam",
             "--seeds", 0, 1, "--label-ratio", 0.1, "--save", "--out", folder / "out"]  # fmt: skip
    with unittest.mock.patch.object(anomaly, "_train", trained):
        assert _run(*flags)[0] == 0
    return folder


@pytest.mark.parametrize(
    ("rules", "seeds", "more", "title"),
    [
        (["sgd"], [4], ["--epochs", 1], "1 data set, 1 seed, sgd, lr 0.001, 1 epoch"),
        (["sgd", "sam"], [4, 0], ["--rho", 0.25, "--lr", 0.5, "--optimizer", "adam"],
         "1 data set, 2 seeds, adam, lr 0.5, rho 0.25, 50 epochs"),
    ],
)  # fmt: skip
def test_what_was_asked_for_stands_over_the_table(
    rules: list[Any],
    seeds: list[Any],
    more: list[Any],
    title: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A radius where a rule has one; programs are kept for the next time, runs are counted."""
    from experiments.anomaly import curves

    counted, compiled = [], []

    class Counted(contextlib.AbstractContextManager):  # type: ignore[type-arg]
        def __init__(self, *what: Any):
            counted.append(what)
            self.advance = "shown"

        def __exit__(self, *_: Any) -> None:
            pass

    def train(cases: Any, **asked: Any) -> Any:
        assert asked["advance"] == "shown" and asked["kept"] is None
        found = [
            anomaly.Result("a", asked["method"], rule, case.seed, 0.25, "adbench", 90, 50, 99, 1)
            for rule in reversed(asked["rules"]) for case in reversed(cases)
        ]  # fmt: skip
        return found, Seconds(2.0, 3.0, 4.0)

    monkeypatch.setattr(anomaly, "train", train)
    monkeypatch.setattr(anomaly, "Counted", Counted)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: compiled.append(True))
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    _save(tmp_path, "a")
    out = tmp_path / "out"
    flags = ["--rule", *rules, "--seeds", *seeds, *more]
    code, shown, error = _run("--data-dir", tmp_path, *flags, "--out", out)
    assert code == 0, error
    assert shown.splitlines()[0] == title and compiled == [True]
    runs = len(rules) * len(seeds)
    assert counted == [(runs, "runs", "devnet"), (runs, "runs", "deepsad")]
    assert "4.0 s of it waiting for the compiler" in " ".join(shown.split())
    # In the order of the flags' values, whatever the order of training.
    rows = [(row["method"], row["rule"], int(row["seed"])) for row in _rows(out)]
    assert rows == list(itertools.product(["devnet", "deepsad"], rules, seeds))


def test_as_a_module_it_is_the_command(refuse: Any, tmp_path: Path) -> None:
    flags = ("--datasets", "none", "--out", tmp_path / "out")
    assert "'none' is none of" in refuse("experiments.anomaly", *flags, code=1)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _lines(path: Path, change: Any) -> None:
    heads, *lines = path.read_text().splitlines()
    path.write_text("\n".join([heads, *change(lines)]) + "\n")


def _nan(path: Path) -> None:
    with np.load(path) as held:
        np.savez(path, **{**held, "params/w": np.full(2, np.nan)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: shutil.copy(out / "params/0.npz", out / "params/1.npz"),
         r"1\.npz is of something else than line 1 of runs.csv tells \(seed '0' -> '1'\)"),
        (lambda out: _lines(out / "runs.csv", lambda lines: lines[::-1]), "else than line 0 of"),
        (lambda out: _lines(out / "runs.csv", lambda lines: lines[1:]), "has not one line for"),
        (lambda out: _lines(out / "runs.csv", lambda lines: [*lines[:3], lines[0]]),
         "has not one line for"),
        (lambda out: _lines(out / "runs.csv", lambda lines: [lines[0], lines[1][:-9]]),
         "runs.csv is damaged|cannot read"),
        *(
            (lambda out, name=name, new=new: _edit(out / "config.json", **{name: new}), words)
            for name, new, words in (
                ("rho", 0.9, r"config.json tells \(rho 0.05 -> 0.9\)"),
                ("epochs", 1, r"config.json tells \(epochs 50 -> 1\)"),
                ("seeds", [0, 2], "has not one line for each run"),
                ("rule", ["sgd", "sam"], "has not one line for each run"),
            )
        ),
        (lambda out: _nan(out / "params" / "2.npz"), r"2\.npz is not what --save wrote"),
        (lambda out: (out / "params" / "3.npz").unlink(), r"has not one file .*3\.npz"),
        (lambda out: shutil.copy(out / "params/0.npz", out / "params/4.npz"), r"4\.npz"),
        (lambda out: _save(out.parent / "data", "a_set", anomalies=90),
         r"other rows than .*a_set\.npz has: name the folder"),
    ],
)  # fmt: skip
def test_networks_of_another_run_setting_or_data_are_refused(
    kept: Path, tmp_path: Path, damage: Any, words: str
) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    out = tmp_path / "kept" / "out"
    damage(out)
    with pytest.raises(RunError, match=words):
        of_anomalies(out, outputs.read_object(out / "config.json"), str(out.parent / "data"))


def _are_kept(out: Path, data: Path) -> None:
    """What --save kept scores as runs.csv says, and is perturbed as it was trained."""
    config = json.loads((out / "config.json").read_text())
    subjects = of_anomalies(out, config, str(data))
    told = {tuple(list(row.values())[:6]): float(row["auroc"]) for row in _rows(out)}
    seen = 0
    for one in subjects:
        rule, setting = one.description["rule"], one.description["setting"]
        assert (one.own is None) == (rule == "sgd") and one.loss is not None
        assert one.tail is not None and one.tail.tolist() == [False, True]
        for k, seed in enumerate(one.seeds):
            held = jax.tree.map(lambda x, k=k: x[k], one.variables)
            net = ANOMALY_NETS["devnet"]()
            x, labels = one.test.images[k], one.test.labels[k]
            scores = net.scores(held["params"], x, held["fixed"], held["state"])
            ratio, kind = setting["label_ratio"], setting["protocol"]
            run = setting["dataset"], "devnet", rule, str(seed), ratio, kind
            assert 100 * roc_auc_score(labels, scores) == pytest.approx(told[run], abs=2e-3)
            losses = one.loss(one.apply(held, x), labels)
            want = net.losses(held["params"], x, labels, held["fixed"], held["state"])[0]
            np.testing.assert_allclose(losses, want, rtol=1e-6)
            seen += 1
    assert seen == len(told)
    counts = subjects[-1].counts  # batches of DevNet are half anomalies
    assert subjects[-1].own is not None
    np.testing.assert_allclose(
        subjects[-1].own.groups[0], [[0, counts.sum() / (2 * counts[1])]], rtol=1e-6
    )


def _broken(folder: Path) -> dict[str, dict[str, Any]]:
    table = made_table(1000, 80)
    features, labels = table.features.copy(), table.labels
    features[5, 2] = np.nan
    return {
        "lacks X": {"y": labels},
        "lacks y": {"X": table.features},
        "holds 2": {"X": table.features, "y": labels * 2},
        "holds -1": {"X": table.features, "y": np.where(labels == 1, 1, -1)},
        "X[5, 2] is nan": {"X": features, "y": labels},
        "one label for each": {"X": table.features, "y": labels[:-1]},
        "matrix of real numbers": {"X": table.features[:, 0], "y": labels},
        "0 anomalies": {"X": table.features, "y": np.zeros(1000, int)},
        "1 anomalies": {"X": table.features, "y": np.eye(1000, dtype=int)[0]},
        "0 normal": {"X": table.features, "y": np.ones(1000, int)},
    }


@pytest.mark.parametrize("what", list(_broken(Path())))
def test_bad_data_is_named_before_training(what: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    _save(data, "a_good_one")
    np.savez(data / "bad_one.npz", **_broken(tmp_path)[what])
    code, shown, error = _run("--data-dir", data, "--out", out)
    assert code == 1 and not shown
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert str(data / "bad_one.npz") in error and what in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label-ratio", "0"], "--label-ratio must be finite and over 0 and at most 1, got 0"),
        (["--label-ratio", "0.5", "1.5"], "got 1.5"),
        (["--label-ratio", "nan"], "got nan"),
        (["--lr", "0"], "--lr must be finite and over 0, got 0"),
        (["--lr", "inf"], "--lr must be finite and over 0, got inf"),
        (["--rho", "-0.1"], "--rho must be finite and at least 0"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--seeds", "-1"], "--seeds must be at least 0"),
        (["--seeds", "1", "1"], "--seeds names 1 twice"),
        (["--rule", "sam", "sam"], "--rule names sam twice"),
        (["--datasets", "no_such_set"], "'no_such_set' is none of"),
    ],
)
def test_bad_arguments_end_in_one_line(args: list[str], message: str, tmp_path: Path) -> None:
    code, shown, error = _run(*args, "--out", tmp_path / "out")
    assert code in (1, 2) and not shown
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_folders_without_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    for folder, message in (
        (tmp_path, "holds no .npz file"), (tmp_path / "x", "no such folder"),
        (tmp_path / "a.csv", "a.csv is a file: name its folder, and of those in it the data set"),
    ):  # fmt: skip
        code, _, error = _run("--data-dir", folder, "--out", tmp_path / "out")
        assert code == 1 and str(folder) in error and message in error
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    code, _, error = _run("--data-dir", tmp_path, "--out", tmp_path / "out")
    assert code == 1 and "torn.npz is not an .npz file" in error


def test_out_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = _run("--datasets", "digits_0", "--out", tmp_path / "file" / "out")
    assert code == 1 and error.count("\n") == 1 and "cannot write to" in error


def test_unknown_and_shortened_flags_are_errors() -> None:
    assert _run("--no-such-flag")[0] == 2
    assert _run("--seed", "0")[0] == 2
    assert _run("--rule", "adam")[0] == 2


def test_help_has_every_flag_with_its_default() -> None:
    code, shown, _ = _run("--help")
    text = " ".join(shown.split())
    assert code == 0
    for flag in (
        "--method", "--rule", "--data-dir", "--datasets", "--label-ratio", "--protocol", "--seeds",
        "--optimizer", "--lr", "--rho", "--epochs", "--out", "--save", "--overwrite",
    ):  # fmt: skip
        assert flag in text
    assert text.count("(default:") == 12  # all but --data-dir and --datasets


@pytest.mark.slow  # a process of its own
def test_runs_as_a_command_without_tensorflow(tmp_path: Path, run_python: Any) -> None:
    code = f"""
        import sys
        from experiments.anomaly import command as anomaly
        from experiments.host import cli
        args = anomaly.arguments().parse_args(["--datasets", "digits_1", "--rule", "sgd",
            "--method", "deepsad", "--seeds", "0", "1", "2", "--epochs", "1",
            "--out", {str(tmp_path / "out")!r}])
        cli.run(anomaly.main, args)
        heavy = {{"tensorflow", "tensorflow_datasets", "tyro", "grain"}} & set(sys.modules)
        assert not heavy, heavy
    """
    run_python(code, devices=2, env={"ADBENCH_DIR": None})
    assert len(_rows(tmp_path / "out")) == 3
