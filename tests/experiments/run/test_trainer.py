"""In which order the trainer does what, of runs and devices that note what is asked of them"""

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.host.errors import RunError, Stopped
from experiments.host.stopping import StopNow
from experiments.run import trainer as trainer_module
from experiments.run.settings import Note, Settings
from experiments.run.trainer import Trainer
from imbsam_jax import rules


class Clock:
    """Seconds go by where somebody works."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Seen:
    """What a call saw, once it is done."""

    def __init__(self, world, stop=None):
        self.world, self.stop = world, stop

    def block_until_ready(self):
        self.world.clock.now += 2
        self.world.log.append("waited")


class World:
    """A feed, devices and progress in one: four rows a step, of which the last has two."""

    most_steps, processes = None, 1

    def __init__(self, log, clock, runs=1):
        self.log, self.clock, self.number, self.shown = log, clock, runs, []
        self.devices = [SimpleNamespace(platform="cpu")]

    def inputs(self, part):
        return f"{part} images"

    @contextlib.contextmanager
    def training(self, order, calls):
        def rows():
            for first, steps in calls:
                self.clock.now += 1
                yield np.zeros((steps, 2 if first % 5 == 4 else 4))

        try:
            yield rows()
        finally:
            self.log.append("feed closed")

    def put_inputs(self, inputs):
        return inputs

    def join(self, states):
        return list(states)

    def split(self, state):
        return list(state)

    def join_rows(self, rows):
        assert len(rows) == self.number
        return rows[0]

    def split_seen(self, seen):
        return [seen] * self.number

    def place(self, rows, stop):
        self.log.append(f"placed {len(rows)}" + (f" {stop}" if stop else ""))
        return rows

    def compile_steps(self, method, state, inputs, rows):
        assert inputs == "train images"
        self.clock.now += 10
        self.log.append(f"compiled {method} {rows.shape}")

        def call(state, inputs, placed):
            self.clock.now += 4
            self.log.append(f"made {len(placed)}")
            return [one + len(placed) for one in state], Seen(self)

        return call

    def start_epoch(self, *what):
        self.log.append(f"epoch {what}")

    def update(self, *what):
        self.shown.append(what)

    def warn(self, words):
        self.log.append(words)


class OneRun:
    """A run that counts calls, and does with a checkpoint what it is asked to."""

    def __init__(self, log, number=0, steps=(), damaged=()):
        self.note, self.log, self.number, self.order = Note(), log, number, f"order {number}"
        self.initial, self.folder = 0, SimpleNamespace(path=Path(f"seed_{number}"))
        self.checkpoints, self.kept, self.damaged = self, list(steps), damaged

    def say(self, words):
        self.log.append(f"{self.number}: {words}" if self.number else words)

    def begin(self, found, progress):
        self.say(f"begin {found}")
        return 0 if found is None else found

    def contradiction(self, state, note):
        raise AssertionError("asked by the checkpoints alone")

    def see(self, first, steps, seen):
        self.say(f"saw {first} {steps}")

    def close_epoch(self, state, stop, progress):
        self.note.epoch, self.note.calls = self.note.epoch + 1, 0
        self.say(f"closed epoch {self.note.epoch} at {state}")
        if stop.exit_code is not None:
            raise StopNow(stop.exit_code)

    def close_training(self, state, stop):
        self.say(f"closed training at {state}")

    def save(self, state):
        self.say(f"saved {state}")

    def report(self, *what):
        return (self.number, *what)

    def close(self):
        self.say("closed")

    # Its checkpoints.

    @property
    def step(self):
        return "the step"

    def latest_step(self):
        self.say("whole")

    def steps(self):
        return self.kept

    def restore(self, like, say, check):
        assert check == self.contradiction
        return "restored"

    def read(self, step, like, say, check):
        assert like == 0 and check == self.contradiction
        return None if step in self.damaged else f"{self.number} at {step}"


def made(monkeypatch, epochs=2, runs=1, every=1, **more):
    log, clock = [], Clock()
    monkeypatch.setattr(trainer_module.time, "perf_counter", clock)
    world = World(log, clock, runs)
    for name, value in more.items():
        setattr(world, name, value)
    settings = [
        Settings(epochs=epochs, batch_size=4, steps_per_call=2, seed=seed, checkpoint_every=every)
        for seed in range(runs)
    ]
    initial = SimpleNamespace(params={}, replace=lambda extra: ("initial", extra))
    parts = [
        SimpleNamespace(
            feed=world, order=SimpleNamespace(rows=18), steps_per_epoch=5, began=89.99956,
            initial=initial, evaluator=None, schedule=None,
        )
        for _ in range(runs)
    ]  # fmt: skip
    trainer = Trainer("data", rules.sgd(5), parts, settings, world)
    trainer.stages = [(0, "sgd")]
    return trainer, world, log


def with_runs(trainer, log, *runs):
    trainer.runs = list(runs) or [OneRun(log)]
    return trainer.runs


class Stop:
    """A stop that is asked for with the first call, or so many calls later."""

    def __init__(self, log, after=None):
        self.log, self.after = log, after

    @property
    def exit_code(self):
        made = sum(line.startswith("made") for line in self.log)
        return 143 if self.after is not None and made >= self.after else None


# ---- what it is made of -----------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(("most", "steps"), [(None, [2, 2, 1]), (1, [1] * 5)])
def test_a_trainer_of_runs_that_make_the_same_calls(runs, most, steps, monkeypatch):
    trainer, *_ = made(monkeypatch, runs=runs, most_steps=most)
    assert [call.steps for call in trainer.calls.of_epoch(0)] == steps
    assert [run.name for run in trainer.runs] == ([""] if runs == 1 else ["seed 0: ", "seed 1: "])
    assert [run.initial for run in trainer.runs] == [("initial", {})] * runs
    assert [run.settings.seed for run in trainer.runs] == list(range(runs))
    assert trainer.calls.left(0, 0)[-1] == (9, 1)


# ---- a training -------------------------------------------------------------------------------

EPOCH = ["placed 2", "compiled sgd (2, 4)", "made 2", "waited", "saw 0 2", "placed 2", "made 2",
         "saw 2 2", "placed 1", "compiled sgd (1, 2)", "made 1", "saw 4 1"]  # fmt: skip
AGAIN = ["placed 2", "made 2", "saw 5 2", "placed 2", "made 2", "saw 7 2", "placed 1", "made 1",
         "saw 9 1"]  # fmt: skip


def test_a_training_from_its_first_step_to_its_last(monkeypatch):
    """Each kind of call is compiled once; saved is every second epoch, and the last."""
    trainer, world, log = made(monkeypatch, epochs=3, every=2)
    (run,) = with_runs(trainer, log)
    run.restore = lambda *_: None
    trainer.train(Stop(log), world)
    third = [line.replace("saw 5", "saw 10").replace("saw 7", "saw 12").replace("saw 9", "saw 14")
             for line in AGAIN]  # fmt: skip
    assert log == [
        "begin None", "epoch (0, 0, 18)", *EPOCH, "closed epoch 1 at 5",
        "epoch (1, 0, 18)", *AGAIN, "closed epoch 2 at 10", "saved 10",
        "epoch (2, 0, 18)", *third, "closed epoch 3 at 15", "saved 15",
        "feed closed", "closed training at 15", "closed",
    ]  # fmt: skip
    note = run.note
    # Nine calls of four seconds each that first rows were waited for, one more for the end.
    assert (note.seconds_waiting, note.seconds_compile) == (9, 20)
    assert note.seconds_train == 9 * (1 + 4) + 2 and world.shown == [(0, 0, 0)] * 9
    # From before its parts were made, at 90, to the first call, waited for and done.
    assert trainer.reports(False, "draw") == [(0, 15, (None, None, None), 27.0, "draw")]
    monkeypatch.setattr(trainer, "_cost", lambda: "cost")
    assert trainer.reports(True, None) == [(0, 15, "cost", 27.0, None)]


def test_without_an_epoch_what_it_starts_from_is_saved(monkeypatch):
    trainer, world, log = made(monkeypatch, epochs=0)
    with_runs(trainer, log)[0].restore = lambda *_: 7
    trainer.train(Stop(log), world)
    assert log == ["begin 7", "saved 7", "feed closed", "closed training at 7", "closed"]
    assert trainer.reports(False, None) == [(0, 7, (None, None, None), None, None)]


def test_streamed_rows_are_placed_a_call_ahead(monkeypatch):
    """And none is lost at the end."""
    trainer, world, log = made(monkeypatch, epochs=1, most_steps=2)
    with_runs(trainer, log)[0].restore = lambda *_: None
    trainer.train(Stop(log), world)
    short = [line for line in log if line.split()[0] in ("placed", "made")]
    assert short == ["placed 2", "placed 2", "made 2", "placed 1", "made 2", "made 1"]


@pytest.mark.parametrize(("after", "first"), [(1, 2), (2, 4)])
def test_a_stop_saves_where_it_was_seen_and_is_told(after, first, monkeypatch):
    trainer, world, log = made(monkeypatch)
    with_runs(trainer, log)[0].restore = lambda *_: None
    words = "stopped at step the step, epoch 1: saved. Continue with the same command and --resume"
    with pytest.raises(Stopped, match=f"^{words}$") as stopped:
        trainer.train(Stop(log, after), world)
    assert stopped.value.exit_code == 143
    assert log[-3:] == ["feed closed", f"saved {first}", "closed"]
    assert log.count("closed") == 1 and trainer.runs[0].note.calls == after


def test_a_stop_of_the_last_call_is_answered_by_the_evaluation(monkeypatch):
    """The epoch is not closed: its line is written again by the resumed run."""
    trainer, world, log = made(monkeypatch, epochs=1)
    (run,) = with_runs(trainer, log)
    run.restore = lambda *_: None
    stop = Stop(log)
    plain = run.see

    def see(*what):
        plain(*what)
        stop.after = 3 if what[0] == 4 else None

    run.see = see
    with pytest.raises(Stopped, match="epoch 1: saved"):
        trainer.train(stop, world)
    assert (run.note.epoch, run.note.calls) == (0, 3) and log[-2:] == ["saved 5", "closed"]


# ---- several runs -----------------------------------------------------------------------------


def test_of_several_runs_all_are_whole_before_any_is_saved_again(monkeypatch):
    trainer, world, log = made(monkeypatch, epochs=1, runs=2)
    with_runs(trainer, log, OneRun(log, 1), OneRun(log, 2))
    trainer.train(Stop(log), world)
    assert log[:2] == ["1: begin None", "2: begin None"]
    assert [line for line in log if "saw" in line][:2] == ["1: saw 0 2", "2: saw 0 2"]
    assert log[-12:] == [
        "1: closed epoch 1 at 5", "2: closed epoch 1 at 5", "1: whole", "2: whole", "1: saved 5",
        "2: saved 5", "feed closed", "feed closed", "1: closed training at 5",
        "2: closed training at 5", "1: closed", "2: closed",
    ]  # fmt: skip
    notes = [run.note for run in trainer.runs]
    assert notes[0] == notes[1] and notes[0].seconds_compile == 20
    assert [what[:2] for what in trainer.reports(False, None)] == [(1, 5), (2, 5)]


AFRESH = "all seeds start afresh"


def test_a_stop_between_two_evaluations_leaves_all_epochs_open(monkeypatch):
    """In place: who shows an epoch holds the first run's note."""
    trainer, world, log = made(monkeypatch, runs=2)
    runs = with_runs(trainer, log, OneRun(log, 1), OneRun(log, 2))
    notes = [run.note for run in runs]
    trainer._state = [5, 5]
    for note in notes:
        note.calls = 3
    with pytest.raises(StopNow):
        trainer._close_epoch(SimpleNamespace(exit_code=143), world)
    assert [(run.note.epoch, run.note.calls) for run in runs] == [(0, 3)] * 2
    assert all(run.note is note for run, note in zip(runs, notes, strict=True))
    assert log == ["1: closed epoch 1 at 5"]


@pytest.mark.parametrize(
    ("steps", "damaged", "expected", "said"),
    [
        (([10, 5], [10, 5]), ((), ()), ["1 at 10", "2 at 10"], []),
        (([10, 5], [5]), ((), ()), ["1 at 5", "2 at 5"], []),
        (([9, 10, 5], [5, 10, 9]), ((10,), ()), ["1 at 9", "2 at 9"], []),
        (([10, 5], [10, 5]), ((), (10,)), ["1 at 5", "2 at 5"], []),
        (([10, 5], []), ((), ()), [None, None], ["no checkpoint in seed_2: " + AFRESH]),
        (([], [5]), ((), ()), [None, None], ["no checkpoint in seed_1: " + AFRESH]),
        (([], []), ((), ()), [None, None], []),
        (([10], [5]), ((), ()), r"in all folders (seed_1: [10], seed_2: [5]): remove their", []),
        (([5], [5]), ((5,), ()), r"in all folders (seed_1: [5], seed_2: [5]): remove their", []),
    ],
)  # fmt: skip
def test_runs_go_on_from_the_newest_step_that_all_can_read(
    steps, damaged, expected, said, monkeypatch
):
    trainer, _, log = made(monkeypatch, runs=2)
    with_runs(trainer, log, *(OneRun(log, k + 1, steps[k], damaged[k]) for k in (0, 1)))
    told = []
    if isinstance(expected, str):
        with pytest.raises(RunError, match=re.escape(expected)):
            trainer._found(told.append)
    else:
        assert trainer._found(told.append) == expected
    assert told == said


def test_a_lone_run_goes_on_from_what_it_can_read(monkeypatch):
    trainer, _, log = made(monkeypatch)
    with_runs(trainer, log)
    assert trainer._found(print) == ["restored"]
    trainer, _, log = made(monkeypatch, runs=3)
    with_runs(trainer, log, *(OneRun(log, k, [4]) for k in (1, 2, 3)))
    assert trainer._found(print) == ["1 at 4", "2 at 4", "3 at 4"]
