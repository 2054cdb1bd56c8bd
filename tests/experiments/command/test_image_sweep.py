"""A grid over runs of images: what it asks of each point, and which accuracies it takes."""

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import sweep
from experiments.bench.tables import SPLITS
from experiments.command import image_sweep, launch
from experiments.host import locks
from experiments.host.errors import Diverged, RunError

GROUPS = ("all", "many", "medium", "few")


def line(epoch, **changes):
    return {"epoch": epoch, **{f"val_{name}": 10.0 * epoch for name in GROUPS}, **changes}


def written(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_a_point_is_chosen_by_the_last_epoch(tmp_path):
    """By nothing where that has not all accuracies, as when it was not evaluated."""
    written(tmp_path, line(1), line(2, val_few=None, val_loss=0.5, test_all=1.0), line(3))
    assert image_sweep._last_validation(tmp_path, 2) == {
        "all": 20.0, "many": 20.0, "medium": 20.0, "few": None, "loss": 0.5
    }  # fmt: skip
    assert image_sweep._last_validation(tmp_path, 3)["all"] == 30.0
    for lines in ([line(1)], [line(1), {"epoch": 2, "val_all": 1.0}], []):
        written(tmp_path, *lines)
        with pytest.raises(RunError, match=r"metrics.jsonl has no validation accuracy of epoch 2$"):
            image_sweep._last_validation(tmp_path, 2)


def asked(out, *flags):
    grid = ["--grid", "eta", "5", "--grid", "rho", "0.1", "--val-per-class", "2"]
    line = ["cifar_lt", "--data", "x.npz", "--model", "mlp", "--epochs", "2", *grid]
    return sweep.parse([*line, "--out", str(out), *flags])


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("seeds", [["--seed", "7"], ["--seeds", "7", "4"]])
def test_what_is_asked_of_each_point(tmp_path, monkeypatch, capsys, quiet, seeds):
    """SGD first; all plans are made, and folders looked at, before the first trains."""
    done, out = [], tmp_path / "out"
    (out / "summary.json").parent.mkdir()
    (out / "summary.json").touch()

    def make_plan(args, dataset):
        done.append(("plan", Path(args.out).name, args.rule, args.eta, args.rho))
        return f"plan of {Path(args.out).name}"

    def train(args, dataset, plan):
        name = Path(args.out).name
        done.append(("train", name, plan, args.seeds))
        assert not (out / "summary.json").exists() and (out / "config.json").exists()
        with pytest.raises(RunError, match="in use by another process"):
            locks.Lock(out)
        if name == "eta_5_rho_0.4":
            raise Diverged("the loss is nan")
        for seed in args.seeds:
            written(Path(args.out) / f"seed_{seed}", line(1), line(2, val_all=seed + args.eta))
        return [{"seed": seed, **dict.fromkeys(GROUPS, float(seed))} for seed in args.seeds]

    monkeypatch.setattr(launch, "begin", lambda args: done.append(("begin",)))
    monkeypatch.setattr(
        launch, "refuse_others", lambda args, data, plan: done.append(("refuse", data, plan))
    )
    monkeypatch.setattr(launch, "train", train)
    args = asked(out, *seeds, *["--quiet"] * quiet)
    given = [7, 4] if "4" in seeds else [7]
    data = argparse.Namespace(val_labels=[1])
    points = {
        "eta 5, rho 0.1": {"eta": 5.0, "rho": 0.1},
        "eta 5, rho 0.4": {"eta": 5.0, "rho": 0.4},
    }
    with contextlib.ExitStack() as opened:
        rows, found = image_sweep.train(
            args, points, SPLITS, opened, load=lambda args: data, make_plan=make_plan
        )
    locks.Lock(out).close()  # it is let go
    names = ["sgd", "eta_5_rho_0.1", "eta_5_rho_0.4"]
    plans = [("sgd", "sgd", 100.0, 0.05), ("eta_5_rho_0.1", "imbsam", 5.0, 0.1),
             ("eta_5_rho_0.4", "imbsam", 5.0, 0.4)]  # fmt: skip
    assert done == [
        ("begin",), *(("plan", *plan) for plan in plans),
        *(("refuse", data, f"plan of {name}") for name in names),
        *(("train", name, f"plan of {name}", given) for name in names),
    ]  # fmt: skip
    assert found == given and [row[0] for row in rows] == [{}, *points.values()]
    for row, eta in zip(rows[:2], (100.0, 5.0), strict=True):
        assert row[1]["all"].tolist() == given and row[3] is None
        assert row[2]["all"].tolist() == [seed + eta for seed in given]
        assert row[2]["few"].tolist() == [20.0] * len(given) and row[1].keys() == set(SPLITS)
    assert rows[2][3] == "the loss is nan"
    assert all(np.isnan(part[s]).all() and len(part[s]) == len(given)
               for part in rows[2][1:3] for s in SPLITS)  # fmt: skip
    told = ["1 of 3: sgd", "2 of 3: eta 5, rho 0.1", "3 of 3: eta 5, rho 0.4"]
    assert capsys.readouterr().out.splitlines() == [
        *([] if quiet else told), "eta 5, rho 0.4 diverged: the loss is nan"
    ]  # fmt: skip


def test_sgd_is_what_all_are_compared_with(tmp_path, monkeypatch):
    def train(*_):
        raise Diverged("the loss is nan")

    for name in ("begin", "refuse_others"):
        monkeypatch.setattr(launch, name, lambda *_: None)
    monkeypatch.setattr(launch, "train", train)
    args, data = asked(tmp_path / "out"), argparse.Namespace(val_labels=[1])
    given = {"load": lambda args: data, "make_plan": lambda *_: "plan"}
    with contextlib.ExitStack() as opened, pytest.raises(RunError, match="SGD, with which every"):
        image_sweep.train(args, {}, SPLITS, opened, **given)
    data.val_labels = None
    with contextlib.ExitStack() as opened, pytest.raises(RunError, match="never on the test set"):
        image_sweep.train(args, {}, SPLITS, opened, **given)


@pytest.mark.parametrize(
    ("flags", "changes", "said"),
    [
        ([], {"out": None}, "--out is missing"), ([], {"export": "x.npz"}, "--export trains noth"),
        ([], {"cluster": True}, "runs in one process"), ([], {"process_id": 0}, "in one process"),
        ([], {"coordinator": "h:1"}, "in one process"), ([], {"num_processes": 2}, "in one proce"),
        (["--stage2", "crt"], {}, "leave --stage2 out, and give it to the run with the chosen poi"),
        (["--preset", "weight-balancing", "--rule", "imbsam"], {},
         "with the chosen point, of --preset weight-balancing: write --stage2 alone"),
    ],
)  # fmt: skip
def test_what_a_sweep_of_runs_cannot_do(tmp_path, flags, changes, said):
    args = asked(tmp_path / "out", *flags)
    vars(args).update(changes)
    with pytest.raises(RunError, match=said):
        image_sweep.checked(args)


def test_a_sweep_is_gone_on_with_where_one_was_begun(tmp_path):
    args = asked(tmp_path)
    assert image_sweep.checked(args) == tmp_path
    (tmp_path / "sgd").mkdir()
    with pytest.raises(RunError, match="is not empty: go on with a sweep in it by --resume"):
        image_sweep.checked(args)
    args.resume = True
    for config in (None, {"grid": []}, {"experiment": "cifar_lt"},
                   {"grid": [], "experiment": "digits"}):  # fmt: skip
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(RunError, match="holds no sweep of cifar_lt to go on with"):
            image_sweep.checked(args)
    (tmp_path / "config.json").write_text('{"grid": null, "experiment": "cifar_lt"}')
    assert image_sweep.checked(args) == tmp_path
