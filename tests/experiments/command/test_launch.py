"""From flags and a plan to runs, without training: who is met, and what is asked of the plan."""

import argparse
import json

import jax
import pytest

from experiments import cifar_lt
from experiments.command import launch, stage2
from experiments.command.plan import Plan
from experiments.command.seeds import SeedGroup
from experiments.host.errors import RunError
from experiments.reports import plots, tables
from experiments.run import fit, parts
from experiments.run.settings import Settings


@pytest.mark.parametrize(
    ("resume", "finished", "needed"),
    [(False, [], True), (False, [0, 1], True), (True, [0], True), (True, [0, 1], False)],
)
def test_a_start_is_made_unless_every_run_is_finished(
    tmp_path, monkeypatch, resume, finished, needed
):
    """It may be long; but runs that begin anew, over finished ones too, begin from it."""
    for seed in finished:
        (tmp_path / f"seed_{seed}").mkdir()
        (tmp_path / f"seed_{seed}" / "report.json").write_text(json.dumps({}))
    monkeypatch.setattr(fit, "fit_together", lambda *_, starts, **__: starts)
    plan = Plan(
        Settings(), None, None, {}, {}, start=lambda settings: settings.seed + 10, init="x"
    )  # fmt: skip
    args = argparse.Namespace(
        resume=resume, quiet=True, out=str(tmp_path), seeds=[0, 1], num_seeds=None, model="mlp"
    )
    starts = launch._first_stages(args, None, plan, SeedGroup([0, 1], 1, True))
    assert starts == ({0: 10, 1: 11} if needed else {0: None, 1: None})


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("cluster", [False, True])
def test_other_processes_are_met_by_the_cluster_or_by_name(monkeypatch, cluster, given):
    """Of either alone, and of neither nobody; process 0 is named, too."""
    met = []
    monkeypatch.setattr(launch, "join_processes", lambda *asked: met.append(asked))
    named = [(None, None, None), ("host:1", 2, 0), (None, None, 0)][given]
    flags = dict(zip(("coordinator", "num_processes", "process_id"), named, strict=True))
    args = argparse.Namespace(cluster=cluster, devices=3, heartbeat_seconds=7, **flags)
    if cluster and given:
        with pytest.raises(RunError, match="--cluster finds the other processes by itself"):
            launch.join(args)
    else:
        launch.join(args)
    assert met == ([(*named, 3, 7)] if cluster != bool(given) else [])


@pytest.mark.parametrize("resize", [224, 223])
def test_images_are_cut_from_ones_at_least_as_large(tmp_path, monkeypatch, resize):
    made = []
    begun_by(monkeypatch, made)
    args = argparse.Namespace(
        out=str(tmp_path / "run"), image_size=224, resize=resize, seeds=[0], num_seeds=None,
        preset=None, process_id=None,
    )  # fmt: skip
    if resize < 224:
        with pytest.raises(RunError, match="--image-size 224 cannot be cut from images resized"):
            launch.begin(args)
    else:
        launch.begin(args)
    assert made == (["join", "settle_devices", "cache"] if resize == 224 else [])


def begun_by(monkeypatch, made):
    for name in ("join", "settle_devices"):
        monkeypatch.setattr(launch, name, lambda args, name=name: made.append(name))
    monkeypatch.setattr(launch.cli, "use_compilation_cache", lambda: made.append("cache"))


def flags_of(out, *flags, resume=False):
    line = ["--out", str(out), "--quiet", "--data", "x.npz", "--model", "mlp", *flags]
    return cifar_lt.parse(cifar_lt.arguments(), [*line, *["--resume"] * resume])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds", "3", "3"], "--seeds must be different numbers"),
        (["--out", "gs://x"], "is a URL"), (["--out", "a*"], "checkpoints cannot be kept under"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_begins(tmp_path, monkeypatch, flags, said):
    made = []
    begun_by(monkeypatch, made)
    args = flags_of(tmp_path, *flags)
    with pytest.raises(RunError, match=said):
        launch.begin(args)
    args = flags_of(tmp_path)
    args.out = None
    with pytest.raises(RunError, match="--out is missing"):
        launch.begin(args)
    assert made == []


@pytest.mark.parametrize(
    ("preset", "process", "told"),
    [("saddle", None, True), ("saddle", 0, True), ("saddle", 1, False), (None, None, False),
     (None, 0, False)],
)  # fmt: skip
def test_a_preset_is_explained_once(tmp_path, monkeypatch, capsys, preset, process, told):
    begun_by(monkeypatch, [])
    args = flags_of(tmp_path, *(["--preset", preset] if preset else []))
    args.process_id = process
    launch.begin(args)
    assert capsys.readouterr().out.startswith("preset saddle: Saddle-LongTail") is told


@pytest.mark.parametrize("process", [0, 1])
def test_the_first_process_shows_the_table(monkeypatch, process):
    shown = []
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(tables, "show", shown.append)
    monkeypatch.setattr(launch, "make_plan", lambda *given: [*given, "plan"])
    monkeypatch.setattr(launch, "train", lambda *given: [*given, "trained"])
    launch.run("args", "data", "about")
    plan = ["args", "data", "about", "plan"]
    assert shown == ([["args", "data", plan, "trained"]] if process == 0 else [])


def test_a_run_of_the_command_line_draws_and_measures():
    assert launch.in_full() == {"measure": True, "draw": plots.run_folder}


# ---- what is asked of each run ------------------------------------------------------------------


@pytest.fixture
def fitted(monkeypatch):
    """What `fit` and `fit_together` are asked for, in order."""
    asked = []

    def seen(name):
        def fit(*given, **more):
            asked.append((name, given, more))
            return [] if name == "together" else {"report": len(asked)}

        return fit

    monkeypatch.setattr(fit, "fit", seen("alone"))
    monkeypatch.setattr(fit, "fit_together", seen("together"))
    return asked


MANNER = {"resume": False, "quiet": True, "measure": True, "draw": plots.run_folder}


def a_plan(**changes):
    given = {
        "settings": Settings(lr=0.5), "method": "method", "loss": "loss",
        "description": {"rule": "sam", "stage2": None}, "second": {},
    }  # fmt: skip
    return Plan(**{**given, **changes})


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], ""),
        (["--seed", "7"], ""),
        (["--seeds", "7"], "seed_7"),
        (["--num-seeds", "8"], "seed_7"),
    ],
)
def test_what_a_lone_run_is_asked_to_do(tmp_path, fitted, flags, folder):
    args = flags_of(tmp_path, *flags)
    plan = a_plan(start=lambda settings: ("start", settings.seed), init="from a file")
    assert launch._first_stages(args, "data", plan, SeedGroup([7], 2, False)) == [{"report": 1}]
    ((name, given, more),) = fitted
    assert (name, *given) == (
        "alone", "data", "mlp", "method", "loss", Settings(lr=0.5, seed=7), tmp_path / folder
    )  # fmt: skip
    described = {"rule": "sam", "stage2": None, "init": "from a file"}
    assert more == {"start": ("start", 7), "description": described, **MANNER}


def test_what_seeds_together_are_asked_to_do(tmp_path, fitted):
    plan = a_plan(start=lambda settings: ("start", settings.seed), init="from a file")
    args = flags_of(tmp_path, "--seeds", "7", "3")
    launch._first_stages(args, "data", plan, SeedGroup([7, 3], 2, True))
    ((name, given, more),) = fitted
    outs = {7: tmp_path / "seed_7", 3: tmp_path / "seed_3"}
    shared = Settings(lr=0.5, devices=2)
    assert (name, *given) == ("together", "data", "mlp", "method", "loss", shared, outs)
    assert more == {
        "starts": {7: ("start", 7), 3: ("start", 3)},
        "description": {"rule": "sam", "stage2": None, "init": "from a file"}, **MANNER,
    }  # fmt: skip


@pytest.mark.parametrize(("tag", "folder"), [("", "stage2_crt"), ("a", "stage2_crt_a")])
def test_what_a_second_stage_is_asked_to_do(tmp_path, fitted, monkeypatch, tag, folder):
    """From the end of the first, of which no start is made again; what it has itself is told."""

    def last_variables(out, dataset, model, settings):
        assert (out, dataset, model) == (tmp_path / "seed_7", "data", "mlp")
        assert settings == Settings(lr=0.5, seed=7)
        return {"params": 1, "batch_stats": "kept"}, {"params": 2}

    monkeypatch.setattr(parts, "last_variables", last_variables)
    stage = stage2.Stage(
        Settings(lr=0.1), "its loss", lambda trained, fresh: (trained, fresh), "its method",
        "adversary", False, {"stage2": "crt", "init": "afresh"},
    )  # fmt: skip
    plan = a_plan(second={"crt": stage}, start=lambda _: pytest.fail("made"), init="from a file")
    args = flags_of(tmp_path, "--seeds", "7", "--stage2", "crt", "--stage2-tag", tag)
    assert list(launch._second_stages(args, "data", plan, 7)) == [{"report": 1}]
    ((name, given, more),) = fitted
    assert (name, *given) == (
        "alone", "data", "mlp", "its method", "its loss", Settings(lr=0.1, seed=7),
        tmp_path / "seed_7" / folder,
    )  # fmt: skip
    assert more == {
        "start": {"params": (1, 2), "batch_stats": "kept"}, "adversary": "adversary",
        "description": {"rule": "sam", "stage2": "crt", "init": "afresh"}, **MANNER,
    }  # fmt: skip
    plan = plan._replace(second={"crt": stage._replace(description={"stage2": "crt"})})
    list(launch._second_stages(args, "data", plan, 7))
    assert fitted[1][2]["description"]["init"] == "from a file"


@pytest.mark.parametrize(
    ("init", "start", "needed", "found"),
    [
        (None, False, True, (None, None)), ("a.npz", False, True, ("read", "a.npz of 7")),
        ("a.npz", False, False, ("read", "a.npz of 7")), (None, True, True, (17, "planned")),
        ("a.npz", True, True, (17, "planned")), (None, True, False, (None, "planned")),
    ],
)  # fmt: skip
def test_what_a_seed_starts_from(monkeypatch, init, start, needed, found):
    """A plan's own start is before --init, and made only where it is needed."""
    monkeypatch.setattr(
        parts, "initial_variables",
        lambda init, dataset, model, settings: ("read", f"{init} of {settings.seed}"),
    )  # fmt: skip
    more = {"start": lambda settings: settings.seed + 10, "init": "planned"} if start else {}
    args = argparse.Namespace(init=init, model="mlp")
    made, described = launch._start(args, "data", a_plan(**more), Settings(seed=7), needed)
    assert (made, described.pop("init")) == found
    assert described == {"rule": "sam", "stage2": None}


def held(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


STAGE = stage2.Stage(Settings(), None, None, None, None, True, {"stage2_args": {"tau": 0.5}})


def test_a_folder_of_another_run_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, fitted, capsys
):
    """Whatever the run itself is left to find out: what it starts from, on how many devices."""
    monkeypatch.setattr(
        parts, "run_config",
        lambda dataset, model, settings, described: (
            {"seed": settings.seed, "init": "x", "devices": 1, "steps_per_call": 1, **described},
            None,
        ),
    )  # fmt: skip
    plan = a_plan(description={"rule": "sam"}, second={"tau-norm": STAGE})
    args = flags_of(tmp_path, "--seeds", "7", "3", "--stage2", "tau-norm", resume=True)
    for seed in (7, 3):
        held(tmp_path / f"seed_{seed}", seed=seed, rule="sam", init="y", devices=2, more=1)
        held(tmp_path / f"seed_{seed}" / "stage2_tau-norm", stage2="tau-norm", tau=0.5)
    launch.refuse_others(args, "data", plan)
    first = tmp_path / "seed_3"
    others = [
        (first, {"seed": 3, "rule": "sgd"}, f"{first} holds a run with other settings (rule 'sgd' "
         "-> 'sam'): choose another --out"),
        (first / "stage2_tau-norm", {"stage2": "tau-norm", "stage2_args": {"tau": 2}},
         f"{first}/stage2_tau-norm holds a second stage of other settings (tau 2 -> 0.5): "
         "--stage2-tag NAME gives them their own folder"),
        (first / "stage2_tau-norm", {"stage2": "crt", "tau": 0.5},
         f"{first}/stage2_tau-norm holds a second stage of other settings (stage2 'crt' -> "
         "'tau-norm'): --stage2-tag NAME gives them their own folder"),
    ]  # fmt: skip
    for folder, config, said in others:
        before = json.loads((folder / "config.json").read_text())
        held(folder, **config)
        for call in (launch.refuse_others, launch.train):
            with pytest.raises(RunError) as refused:
                call(args, "data", plan)
            assert str(refused.value) == said
        launch.refuse_others(flags_of(tmp_path, "--seeds", "7", "3"), "data", plan)
        held(folder, **before)
    held(first / "stage2_tau-norm", stage2="tau-norm", stage2_args={"tau": 0.5}, tau=3)
    launch.refuse_others(args, "data", plan)
    held(first, seed=3, rule="sam", together=[3, 9])
    with pytest.raises(RunError, match="trained together with others: name them all"):
        launch.refuse_others(args, "data", plan)
    for seed in (7, 3):  # of what is not begun, nothing is refused, or said
        (tmp_path / f"seed_{seed}" / "config.json").unlink()
    args.quiet = False
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    launch.refuse_others(args, "data", plan)
    assert fitted == [] and capsys.readouterr().out == ""


def test_reports_are_by_seed_each_before_its_second_stages(monkeypatch):
    """In the order in which seeds were asked for, whatever groups they are trained in."""
    found = [SeedGroup([5, 7], 2, True), SeedGroup([3], 1, False)]
    monkeypatch.setattr(launch, "seeds_of", lambda args: [3, 5, 7])
    monkeypatch.setattr(launch, "refuse_others", lambda *_: None)
    monkeypatch.setattr(launch, "groups", lambda args, seeds: found)
    monkeypatch.setattr(
        launch,
        "_first_stages",
        lambda args, dataset, plan, group: [{"first": s} for s in group.seeds],
    )
    monkeypatch.setattr(
        launch, "_second_stages", lambda args, dataset, plan, seed: [{"second": seed}] * (seed > 3)
    )
    assert launch.train(None, None, None) == [
        {"first": 3}, {"first": 5}, {"second": 5}, {"first": 7}, {"second": 7}
    ]  # fmt: skip
