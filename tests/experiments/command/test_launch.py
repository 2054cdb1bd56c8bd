"""From flags and a plan to runs, without training: who is met, and what is asked of the plan."""

import argparse
import json

import pytest

from experiments.command import launch
from experiments.command.plan import Plan
from experiments.command.seeds import SeedGroup
from experiments.host.errors import RunError
from experiments.run import fit
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
    for name in ("join", "settle_devices"):
        monkeypatch.setattr(launch, name, lambda args: made.append(args))
    monkeypatch.setattr(launch.cli, "use_compilation_cache", lambda: None)
    args = argparse.Namespace(
        out=str(tmp_path / "run"), image_size=224, resize=resize, seeds=[0], num_seeds=None,
        preset=None, process_id=None,
    )  # fmt: skip
    if resize < 224:
        with pytest.raises(RunError, match="--image-size 224 cannot be cut from images resized"):
            launch.begin(args)
    else:
        launch.begin(args)
    assert made == ([args] * 2 if resize == 224 else [])


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
