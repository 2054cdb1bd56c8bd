"""From a plan to runs, without training: what is asked of the plan."""

import argparse
import json

import pytest

from experiments.command import launch
from experiments.command.plan import Plan
from experiments.command.seeds import SeedGroup
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
