"""What is shown while one waits: time left, never counting what was compiled."""

import io

import jax
import pytest
from rich.console import Console

from experiments.host import progress
from experiments.host.stopping import StopNow


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; it began long ago."""
    now = [1000.0]
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


@pytest.mark.parametrize(
    ("epochs", "lines"),
    [
        (3, [(1, 60, None), (2, 5, "0:00:05"), (3, 5, "0:00:00")]),
        (9, [(4, 100, None), (5, 10, "0:00:40"), (6, 20, "0:00:45")]),  # gone on with
    ],
)
def test_the_first_epoch_tells_no_time_left(epochs, lines, clock, capsys):
    """It compiles: from the end of it on, by the epochs of this process alone."""
    with progress.Progress(epochs=epochs) as shown:
        for epoch, seconds, left in lines:
            shown.start_epoch(epoch - 1, 0, rows=40)
            clock[0] += seconds
            shown.update(40, 1.0, 1.0)
            shown.epoch_done(line(epoch))
            out = capsys.readouterr().out
            assert ("left" not in out) if left is None else f"{left} left" in out


def test_the_line_of_an_epoch(clock, capsys):
    """Rates count what this process did: of an epoch that was gone on with, not what was before."""
    with progress.Progress(epochs=2) as shown:
        shown.epoch_done({**line(1), "test_all": None, "test_few": 12.34}, "seed 3: ")
        assert capsys.readouterr().out == (
            "seed 3: epoch 1/2  loss 1.0000  train 50.0%  all -  few 12.3  0 images/s\n"
        )
        shown.start_epoch(1, 30, rows=40)
        clock[0] += 2
        shown.update(0, 0.0, 0.0)  # nothing is done, nothing is told
        shown.update(40, 1.0, 1.0)
        shown.epoch_done({**line(2), "test_all": 3.25, "test_many": 4, "test_medium": 5})
        assert capsys.readouterr().out == (
            "epoch 2/2  loss 1.0000  train 50.0%  all 3.2  many 4.0  medium 5.0  5 images/s  "
            "0:00:00 left\n"
        )


def test_an_only_epoch_leaves_nothing_to_do(clock, capsys):
    with progress.Progress(epochs=1) as shown:
        shown.start_epoch(0, 0, rows=40)
        shown.update(40, 1.0, 1.0)
        shown.epoch_done(line(1))
        assert "  0:00:00 left" in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "left"), [(20, "0:02:30"), (30, "0:02:15"), (40, "0:02:00")])
def test_rows_after_the_first_call_tell_the_time_left(clock, capsys, rows, left):
    """The first call compiles: what came after it, ten rows or more, is what an epoch takes."""
    with progress.Progress(epochs=4) as shown:
        shown.start_epoch(0, 0, rows=40)
        clock[0] += 50.0
        shown.update(10, 1.0, 1.0)
        # 1.25, 1.125 and 1 second a row.
        clock[0] += {20: 12.5, 30: 22.5, 40: 30.0}[rows]
        shown.update(rows, 1.0, 1.0)
        shown.epoch_done(line(1))
        assert f"{left} left" in capsys.readouterr().out


def test_clocks_show_hours():
    assert [progress.clock(s) for s in (0, 59.9, 60, 3599, 3600, 86399, 360000)] == [
        "0:00:00", "0:00:59", "0:01:00", "0:59:59", "1:00:00", "23:59:59", "100:00:00"
    ]  # fmt: skip


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and error, taken for terminals that are 100 signs wide."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_bar_shows_the_epoch_and_how_far_it_is(clock, terminal, capsys):
    with progress.Progress(epochs=3) as shown:
        (bar,) = shown._bar.tasks
        assert (bar.total, bar.completed, bar.fields["text"]) == (None, 0, "compiling")
        shown._bar.refresh()
        assert "epoch 0/3" in capsys.readouterr().out
        shown.start_epoch(0, 10, rows=40)
        assert (bar.total, bar.completed) == (120, 10)
        clock[0] += 2
        shown.update(20, 5.0, 15.0)
        assert bar.fields["text"] == "loss 0.250  accuracy 75.0%  5 images/s"
        shown.start_epoch(2, 0, rows=40)
        assert (bar.total, bar.completed) == (120, 80)
        clock[0] += 2
        shown.update(1, 0.5, 1.0)
        assert bar.completed == 81
        assert bar.fields["text"] == "loss 0.500  accuracy 100.0%  0 images/s"
        shown._bar.refresh()
        said = capsys.readouterr().out
        assert "epoch 3/3" in said and bar.fields["text"] in said
        shown.say("a line of [80] signs and more, 1 to 99: " + "x" * 80)  # plain, and whole
        assert "a line of [80] signs and more, 1 to 99: " + "x" * 80 in capsys.readouterr().out


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_run_has_no_bar(terminal, capsys, quiet):
    with progress.Progress(epochs=3, quiet=quiet) as shown:
        assert shown._bar.disable is quiet
    assert (capsys.readouterr().out == "") is quiet


def test_a_call_that_took_no_time_has_a_rate(clock, capsys):
    with progress.Progress(epochs=3) as shown:
        shown.start_epoch(0, 0, rows=40)
        shown.update(3, 1.0, 1.0)
        shown.epoch_done(line(1))
    assert "  3000000000 images/s" in capsys.readouterr().out


def test_of_several_processes_none_stops_alone(monkeypatch):
    for processes, ending in ((1, StopNow), (2, OSError), (3, OSError)):
        with progress.Progress(epochs=3) as shown, monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda n=processes: n)
            patch.setattr(Console, "print", _fails)
            with pytest.raises(ending):
                shown.say("a line")
            assert shown._console.quiet == (processes == 1)


def _fails(*_, **__):
    raise OSError(28, "No space left")


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


def test_counted_work_is_told_on_standard_error(clock, capsys):
    """Every ten seconds, in one line however long, not in colours."""
    with progress.Counted(4, "epochs of [a] job", "x" * 90) as shown:
        for passed, units in ((9.5, 0), (0.5, 1), (9.5, 1), (1, 1)):
            clock[0] += passed
            shown.advance(units, 3.0 * units)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        f"{'x' * 90} 1 of 4 epochs of [a] job, 0:00:09 left",
        f"{'x' * 90} 3 of 4 epochs of [a] job, 0:00:03 left",
    ]


def test_counted_work_has_a_bar_that_goes_away(clock, terminal, capsys):
    with progress.Counted(4, "epochs", "job") as shown:
        (bar,) = shown._bar.tasks
        assert (bar.total, bar.completed, bar.fields["text"]) == (4, 0, "compiling")
        shown.compiling(1, 2)
        assert bar.fields["text"] == "compiling 1 of 2"
        shown.advance(0, 1.0)  # of nothing done so far no time is left that anybody knows
        shown.advance(1, 2.0)
        assert (bar.completed, bar.fields["text"]) == (1, "1 of 4 epochs, 0:00:09 left")
        clock[0] += 60
        shown.advance(1, 2.0)  # a terminal has the bar alone
        shown._bar.refresh()
    out, err = capsys.readouterr()
    assert out == "" and "2 of 4 epochs, 0:00:05 left" in err
    assert shown._bar.live.transient and shown._bar.disable is False


def test_counted_work_without_a_name(clock, capsys):
    with progress.Counted(2, "rows") as shown:
        clock[0] += 10
        shown.advance(1, 1.0)
    assert capsys.readouterr().err == "1 of 2 rows, 0:00:01 left\n"


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
