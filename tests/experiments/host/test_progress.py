"""What is shown while one waits: time left, never counting what was compiled."""

import io

import pytest
from rich.console import Console

from experiments.host import progress
from experiments.host.stopping import StopNow


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def line(epoch):
    return {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 50.0}


def test_the_first_estimate_of_a_run_leaves_compilation_out(clock, capsys):
    with progress.Progress(epochs=11) as shown:
        shown.start_epoch(0, 0, rows=40)
        clock[0] += 60  # compiling, and the first ten rows
        shown.update(10, 1.0, 1.0)
        clock[0] += 3
        shown.update(40, 1.0, 1.0)
        clock[0] += 30  # compiling the evaluation
        shown.epoch_done(line(1))
        assert "  0:00:40 left" in capsys.readouterr().out  # 4 s an epoch
        shown.start_epoch(1, 0, rows=40)
        clock[0] += 5
        shown.update(40, 1.0, 1.0)
        shown.epoch_done(line(2))
        assert "  0:00:45 left" in capsys.readouterr().out


def test_an_epoch_of_one_compiled_call_tells_nothing_yet(clock, capsys):
    with progress.Progress(epochs=3) as shown:
        for epoch, said in ((1, None), (2, "0:00:05"), (3, "0:00:00")):
            shown.start_epoch(epoch - 1, 0, rows=40)
            clock[0] += 60 if epoch == 1 else 5
            shown.update(40, 1.0, 1.0)
            shown.epoch_done(line(epoch))
            out = capsys.readouterr().out
            assert ("left" not in out) if said is None else f"{said} left" in out


@pytest.mark.parametrize(
    "make", [lambda: progress.Progress(epochs=2), lambda: progress.Counted(2, "epochs")]
)
def test_a_live_bar_is_there_as_long_as_the_work(monkeypatch, make):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    with make() as shown:
        assert shown._bar.live.is_started
    assert not shown._bar.live.is_started


@pytest.mark.parametrize("quiet", [True, False])
def test_a_warning_is_said_of_a_quiet_run_too(quiet, capsys):
    with progress.Progress(epochs=2, quiet=quiet) as shown:
        shown.say("as expected")
        shown.warn("two files [are] damaged")
    out, err = capsys.readouterr()
    warning = "two files [are] damaged\n"
    assert (out, err) == (("", warning) if quiet else ("as expected\n" + warning, ""))


@pytest.mark.parametrize("terminal", [True, False])
def test_counted_work_shows_time_left_and_is_never_silent_for_long(clock, monkeypatch, terminal):
    out = io.StringIO()
    monkeypatch.setattr(
        progress, "Console",
        lambda **_: Console(file=out, force_terminal=terminal, width=100, soft_wrap=True),
    )  # fmt: skip
    with progress.Counted(20, "epochs", "sweep") as shown:
        for number in (1, 2, 3):
            clock[0] += 11
            shown.compiling(number, 3)
        for _ in range(3):
            clock[0] += 6
            shown.advance(5, 5.0)
        shown._bar.refresh()
    said = out.getvalue()
    if terminal:
        assert "sweep" in said and "15 of 20 epochs, 0:00:05 left" in said
    else:
        assert said.splitlines() == [
            *(f"sweep compiling {number} of 3" for number in (1, 2, 3)),
            "sweep 10 of 20 epochs, 0:00:10 left",
        ]


@pytest.mark.parametrize(
    ("error", "why"),
    [(BrokenPipeError(), "nobody reads it"), (OSError(28, "No space left"), "No space left")],
)
def test_a_run_that_cannot_be_heard_stops_and_is_saved(error, why, monkeypatch, capsys):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(progress.sys, "stdout", Gone())
    monkeypatch.setattr(Console, "on_broken_pipe", lambda self: exit(1))  # without its dup2
    with progress.Progress(epochs=2) as shown, pytest.raises(StopNow):
        shown.epoch_done(line(1))
    assert capsys.readouterr().err == f"what this run says cannot be printed: {why}\n"
