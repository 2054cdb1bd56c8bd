"""From a data set to folders: what is asked before, opened, closed and said, without training"""

import inspect
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from experiments.host.errors import RunError, Stopped
from experiments.run import fit as fitting
from experiments.run.fit import fit, fit_together, several
from experiments.run.settings import Settings
from experiments.step.methods import Tabled
from experiments.step.objectives import Adversary
from imbsam_jax import rules
from tiny import tiny_dataset

DATA, RULE = tiny_dataset(), rules.sgd(5)
ABOUT = {"rule": "sgd", "rule_args": {}}


@pytest.mark.parametrize("function", [fit, fit_together])
def test_a_run_is_new_loud_and_not_measured_unless_asked(function):
    defaults = {
        name: given.default
        for name, given in inspect.signature(function).parameters.items()
        if given.default is not inspect.Parameter.empty
    }
    told = {"resume": False, "deadline": None, "quiet": False, "measure": False, "draw": None}
    more = {"start": None, "adversary": None} if function is fit else {"starts": None}
    assert defaults == told | more


class Asked(Exception):
    """What `compatible.check` was given."""


@pytest.fixture
def parts(monkeypatch):
    """Parts that note what they are made of; the first of them answers for all."""
    made = []

    def parts(dataset, model, loss, settings, start, *more, **own):
        number = len(made)
        made.append((settings.seed, start, *more, *own.items()))
        return SimpleNamespace(
            steps_per_epoch=5 + number, feed=SimpleNamespace(multiple=2 + number),
            batch_norm=number == 0,
        )  # fmt: skip

    def check(asked):
        raise Asked(asked)

    monkeypatch.setattr(fitting, "Parts", parts)
    monkeypatch.setattr(fitting, "check", check)
    return made


def test_a_run_asks_whether_its_options_go_together(parts, tmp_path):
    adversary = Adversary(lambda fn: fn, lambda step: 1.0)
    settings, start = Settings(epochs=0, seed=4, steps_per_call=1), {"params": {}}
    with pytest.raises(Asked) as told:
        fit(DATA, "mlp", RULE, None, settings, tmp_path, description=ABOUT, start=start,
            adversary=adversary)  # fmt: skip
    (asked,) = told.value.args
    assert parts == [(4, start, adversary)] and isinstance(asked.method, Tabled)
    assert (asked.settings, asked.rule, asked.adversary) == (settings, "sgd", adversary)
    assert (asked.steps_per_epoch, asked.multiple, asked.batch_norm) == (5, 2, True)
    assert (asked.streamed, asked.processes, asked.together) == (False, 1, None)
    with pytest.raises(Asked) as told:
        fit("streamed", "mlp", RULE, None, Settings(epochs=1), tmp_path, description={})
    assert told.value.args[0].streamed and told.value.args[0].rule == ""


def test_seeds_ask_for_all_of_them_with_batches_of_their_own(parts, tmp_path):
    outs = {3: tmp_path / "a", 0: tmp_path / "b"}
    for starts, expected in (({0: "zero"}, [None, "zero"]), (None, [None, None])):
        parts.clear()
        with pytest.raises(Asked) as told:
            fit_together(
                DATA, "mlp", RULE, None, Settings(), outs, description=ABOUT, starts=starts
            )
        (asked,) = told.value.args
        assert parts == [(3, expected[0], ("own_batches", True)),
                         (0, expected[1], ("own_batches", True))]  # fmt: skip
        assert asked.together == [3, 0] and asked.steps_per_epoch == 5 and asked.multiple == 2


def test_settings_out_of_their_range_are_refused_before_parts_are_made(parts, tmp_path):
    for epochs, start in ((0, None), (-1, {"params": {}})):
        with pytest.raises(RunError, match=f"--epochs must be at least {1 + epochs}, got"):
            fit(DATA, "mlp", RULE, None, Settings(epochs=epochs), tmp_path, description=ABOUT,
                start=start)  # fmt: skip
    with pytest.raises(RunError, match="--epochs must be at least 1, got 0"):
        fit_together(DATA, "mlp", RULE, None, Settings(epochs=0), {0: tmp_path}, description=ABOUT)
    assert parts == []


@pytest.mark.parametrize(("platform", "model", "in_turn"), [
    ("cpu", "resnet8", True), ("cpu", "mlp", False), ("gpu", "resnet8", False),
    ("gpu", "mlp", False),
])  # fmt: skip
def test_several_runs_share_what_they_do_not_differ_in(platform, model, in_turn, monkeypatch):
    """Convolutions of several seeds at once are slow on a CPU alone: there they are in turn."""
    monkeypatch.setattr(fitting, "Seeds", lambda *what: ("seeds", *what))
    monkeypatch.setattr(fitting, "Trainer", lambda *what: what)
    devices = [SimpleNamespace(platform=platform), SimpleNamespace(platform="other")]
    parts = [
        SimpleNamespace(
            initial=jax.tree_util.Partial([min, max][k], k), feed=f"feed {k}",
            evaluator=f"evaluator {k}", run_on=SimpleNamespace(devices=devices, number=k),
        )
        for k in range(2)
    ]  # fmt: skip
    runs_on = [part.run_on for part in parts]
    found = several(DATA, model, RULE, parts, ["settings 0", "settings 1"])
    assert found[:4] == (DATA, RULE, parts, ["settings 0", "settings 1"])
    assert found[4] == ("seeds", runs_on, in_turn)
    assert [(part.feed, part.evaluator) for part in parts] == [("feed 0", "evaluator 0")] * 2
    # Whatever belongs to a state's structure, model and optimizer, is the first's.
    assert [(part.initial.func, part.initial.args) for part in parts] == [(min, (0,)), (min, (1,))]


# ---- folders ----------------------------------------------------------------------------------


class Folders:
    """Stands for `host.folders.RunFolder`, the runs and their trainer: notes who does what."""

    def __init__(self, monkeypatch, number, reports=(), code=0, refused=None, failing=False):
        self.log, self.reports, self.code, self.refused = [], dict(reports), code, refused
        self.failing, folders = failing, self

        class RunFolder:
            def __init__(self, out, config, resume, owner):
                self.out = out
                folders.log.append(f"opened {out} {config} {resume} {owner}")

            @staticmethod
            def check(out, config, resume):
                folders.log.append(f"checked {out} {config} {resume}")
                if out == folders.refused:
                    raise RunError("refused")

            def close(self):
                folders.log.append(f"closed folder {self.out}")

            def finished(self, config):
                return folders.reports.get(self.out)

        class Stop:
            def __init__(self, deadline):
                folders.log.append(f"deadline {deadline}")

            def __enter__(self):
                return self

            def __exit__(self, *_):
                folders.log.append("stop over")

            def signalled_anywhere(self):
                return folders.code

        class Progress(Stop):
            def __init__(self, *what):
                folders.log.append(f"progress {what}")

            def __exit__(self, *_):
                folders.log.append("progress over")

        monkeypatch.setattr(fitting.folders, "RunFolder", RunFolder)
        monkeypatch.setattr(fitting, "StopRequest", Stop)
        monkeypatch.setattr(fitting, "Progress", Progress)
        self.settings = SimpleNamespace(epochs=7)
        self.runs = [
            SimpleNamespace(
                open=lambda folder, *what, k=k: self.log.append(f"run {k}: {folder.out} {what}"),
                close=lambda k=k: self.log.append(f"closed run {k}"),
            )
            for k in range(number)
        ]

    def train(self, stop, progress):
        self.log.append("trained")
        if self.failing:
            raise RunError("failed")

    def reports_of(self, measure, draw):
        self.log.append(f"reports {measure} {draw}")
        return ["report"] * len(self.runs)


def into_folders(monkeypatch, number=2, processes=1, process=0, quiet=False, **more):
    """(log, what came of it): reports, or what was raised"""
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    found = Folders(monkeypatch, number, **more)
    monkeypatch.setattr(
        fitting.multihost_utils, "sync_global_devices", lambda name: found.log.append(f"met {name}")
    )
    trainer = SimpleNamespace(
        settings=found.settings, runs=found.runs, train=found.train, reports=found.reports_of
    )
    outs, configs = [Path("a"), Path("b")][:number], [("A", "pa"), ("B", "pb")][:number]
    try:
        ended = fitting._into_folders(trainer, outs, configs, True, 9.5, quiet, "measure", "draw")
    except (RunError, Stopped) as error:
        ended = error
    return found.log, ended


def test_several_folders_from_the_first_look_to_the_last_close(monkeypatch):
    """All are looked at before one is written; what was opened last is closed first."""
    log, found = into_folders(monkeypatch)
    assert found == ["report", "report"]
    assert log == [
        "checked a A True", "checked b B True", "opened a A True True", "opened b B True True",
        "deadline 9.5", "progress (7, False)", "run 0: a ('A', 'pa')", "run 1: b ('B', 'pb')",
        "trained", "reports measure draw", "closed run 1", "closed run 0", "progress over",
        "stop over", "closed folder b", "closed folder a",
    ]  # fmt: skip


def test_one_folder_is_looked_at_as_it_is_opened(monkeypatch):
    log, found = into_folders(monkeypatch, number=1)
    assert found == ["report"] and log[0] == "opened a A True True"
    log, found = into_folders(monkeypatch, number=1, failing=True)
    assert str(found) == "failed"
    assert log[-5:] == ["trained", "closed run 0", "progress over", "stop over", "closed folder a"]


def test_nothing_is_opened_where_one_is_refused(monkeypatch):
    log, found = into_folders(monkeypatch, refused=Path("b"))
    assert str(found) == "refused" and log == ["checked a A True", "checked b B True"]


def test_runs_that_are_finished_are_not_trained_again(monkeypatch):
    """All of them: where one is not, all are trained."""
    reports = {Path("a"): "old a", Path("b"): "old b"}
    log, found = into_folders(monkeypatch, reports=reports)
    assert found == ["old a", "old b"] and log[-2:] == ["closed folder b", "closed folder a"]
    assert not any(line.startswith(("deadline", "run", "trained")) for line in log)
    log, found = into_folders(monkeypatch, reports={Path("a"): "old a"})
    assert found == ["report", "report"] and "trained" in log


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "a is finished; stopped before anything else"), (2, "all seeds are finished; stopped")],
)
def test_a_stop_that_came_too_late_stops_what_would_follow(number, words, monkeypatch):
    log, found = into_folders(monkeypatch, number=number, code=143)
    assert isinstance(found, Stopped) and found.exit_code == 143 and words in str(found)
    assert "reports measure draw" in log


@pytest.mark.parametrize(("processes", "process", "quiet", "owner", "silent"), [
    (1, 0, False, True, False), (1, 0, True, True, True), (2, 0, False, True, False),
    (2, 1, False, False, True), (2, 1, True, False, True),
])  # fmt: skip
def test_the_first_process_owns_the_folder_and_alone_is_loud(
    processes, process, quiet, owner, silent, monkeypatch
):
    """The others begin once it does."""
    log, _ = into_folders(monkeypatch, 1, processes, process, quiet)
    assert log[0] == f"opened a A True {owner}" and f"progress (7, {silent})" in log
    assert (log[1] == "met run folder") == (processes == 2)
