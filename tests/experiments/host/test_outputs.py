"""Files that are written whole, and the sentences in which one that cannot be is told."""

import argparse
import errno
import fcntl
import itertools
import json
import os
import re
import signal

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from damage import damaged_json
from experiments.host import devices, locks, needs, outputs, spent, stopping
from experiments.host.errors import DataError, RunError, cannot_write, is_full, reason


def test_values_in_sentences_are_short():
    assert outputs.same_text(["a", 1]) == "['a', 1]"
    assert outputs.same_text("a" * 78) == f"'{'a' * 78}'"
    assert outputs.same_text("a" * 79) == f"'{'a' * 76}..."


@pytest.mark.parametrize(
    ("value", "is_one"),
    [(1, True), (-0.5, True), (True, False), ("1", False), (None, False), (float("nan"), False),
     (float("inf"), False), (10**400, False)],
)  # fmt: skip
def test_numbers_of_json(value, is_one):
    assert outputs.is_number(value) is is_one


def test_what_is_written_is_read_and_what_is_not_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / "x.json.partial").write_text("of a kill")
    outputs.write_json(path, {"a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n' and outputs.read_object(path) == {
        "a": [1]
    }
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    for content, said in (
        (b"[1]", r"it holds \[1\], where an object belongs"), (b"\xff", "it is not UTF-8 text"),
        (b"{", "it is not JSON"), (b"[" * 10**5, "it is not JSON"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"^cannot read .*x\.json: {said}"):
            outputs.read_object(path)
    for name, said in ((".", "it is no file"), ("none", "No such file or directory")):
        with pytest.raises(RunError, match=f": {said}$"):
            outputs.read_json(tmp_path / name)
    with pytest.raises(RunError, match=r"^cannot write to .*none/y: No such .*another --out$"):
        outputs.replace_text(tmp_path / "none" / "y", "")
    with pytest.raises(RunError, match=r"^cannot write to here: "), outputs.writing("here"):
        (tmp_path / "none" / "z").touch()


def test_a_sealed_file_says_what_was_written_or_is_named(tmp_path):
    path, value = tmp_path / "x.json", {"found": {"a": [1.5, None, 2], "b": "x"}, "seconds": 0.25}
    outputs.write_sealed(path, value)
    assert outputs.read_sealed(path, "start anew") == value
    for what, data in damaged_json(path.read_text()):
        path.write_bytes(data)
        try:
            found = outputs.read_sealed(path, "start anew")
        except RunError as error:
            assert re.search(
                r"x\.json( is damaged|: it ).*: remove it, and start anew$", str(error)
            )
        else:  # one without a seal may be of before there were any: {}, and what is whole
            assert found in (value, {}), what


def test_the_order_of_its_keys_is_no_part_of_what_a_sealed_file_says(tmp_path):
    path = tmp_path / "x.json"
    outputs.write_sealed(path, {"b": 1, "a": {"d": 2, "c": 3}})
    held = outputs.read_object(path)
    held["a"] = dict(reversed(held["a"].items()))
    path.write_text(json.dumps(dict(reversed(held.items()))))
    assert outputs.read_sealed(path, "start anew") == {"a": {"c": 3, "d": 2}, "b": 1}


def test_a_table_is_read_by_the_heads_of_its_columns(tmp_path):
    path = tmp_path / "x.csv"
    for end in ("\r\n", "\n"):
        path.write_bytes(f'a,b{end}1,"x, ""y"""{end}{end}2,"two\r\nlines"{end}'.encode())
        assert outputs.read_csv(path) == [
            {"a": "1", "b": 'x, "y"'}, {"a": "2", "b": "two\r\nlines"}
        ]  # fmt: skip
    for damaged in ("", "a,b\n1\n", "a,b\n1,2,3\n", 'a,b\n1,"2\n', 'a,b\n1,"2"x\n'):
        path.write_text(damaged)
        with pytest.raises(RunError, match=r"^cannot read .*x\.csv: it is no whole table$"):
            outputs.read_csv(path)


def test_a_file_is_of_a_table_by_whatever_name(tmp_path):
    for name in ("runs.csv", "table.md", "mine.csv"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("runs.csv")
    (tmp_path / "snippet.py").symlink_to("nowhere")
    (tmp_path / "sub").mkdir()
    for name, is_one in (
        ("runs.csv", True), ("table.md", True), ("link", True), ("sub/../runs.csv", True),
        ("mine.csv", False), ("none.csv", False), ("snippet.py", False), ("sweep.csv", False),
    ):  # fmt: skip
        assert outputs.is_of_table(tmp_path, tmp_path / name) is is_one, name
    assert not outputs.is_of_table(tmp_path / "sub", tmp_path / "runs.csv")


def test_an_earlier_table_is_cleared_and_nothing_else(tmp_path, monkeypatch):
    """First what says that it is whole."""
    mine = ["mine.txt", "report.json", "config.json", "checkpoints/5", "seed_0/per_class.csv",
            "model/mine.bin", "params/mine.npz", "jobs/mine.json"]  # fmt: skip
    theirs = ["runs.csv", "params/0.npz", "params/split_0_imbsam.npz", "jobs/split_0_sam.json",
              "curves_full.svg", "sweep.csv", "summary.json", "model/model.json", "report.html",
              "model/pipeline.joblib", "model/params.npz"]  # fmt: skip
    for name in (*mine, *theirs):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    gone, unlink = [], type(tmp_path).unlink
    monkeypatch.setattr(
        type(tmp_path), "unlink", lambda path, **more: (gone.append(path.name), unlink(path))
    )
    outputs.clear_tables(tmp_path)
    assert gone[0] == "summary.json"
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(mine)
    (tmp_path / "params" / "3.npz").mkdir()
    with pytest.raises(RunError, match=r"^cannot write to .*Is a directory"):
        outputs.clear_tables(tmp_path)


def test_a_folder_with_something_in_it_is_not_filled(tmp_path):
    locks.refuse_to_fill(tmp_path / "none", overwrite=False)
    for left in (locks.LOCK, "config.json.partial"):  # by a kill within the first write
        (tmp_path / left).touch()
        locks.refuse_to_fill(tmp_path, overwrite=False)
    (tmp_path / "mine.txt").touch()
    locks.refuse_to_fill(tmp_path, overwrite=True)
    with pytest.raises(RunError, match="is not empty: pass --overwrite, or choose another --out"):
        locks.refuse_to_fill(tmp_path, overwrite=False)


def caused(error, cause):
    error.__cause__ = cause
    return error


FULL = OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize(
    ("error", "why", "full"),
    [
        (FULL, "Disk quota exceeded", True),
        (caused(ValueError("x"), caused(KeyError("y"), FULL)), "Disk quota exceeded", True),
        (ValueError("inside: No space left on device (28)"), "No space left on device", True),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied", False),
        (ValueError("first\nsecond"), "ValueError: first", False),
        (ValueError("a" * 201), f"ValueError: {'a' * 200}", False),
        (ValueError(), "ValueError: no message", False),
        (DataError("ours\nwhole"), "ours\nwhole", False),
    ],
)
def test_why_in_a_line(error, why, full):
    assert (reason(error), is_full(error)) == (why, full)
    remedy = "make room there" if full else "choose another --out"
    assert str(cannot_write("p", error)) == f"cannot write to p: {why}; {remedy}"


def test_an_error_that_caused_itself_ends():
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert reason(one) == "ValueError: a" and not is_full(one)


def test_an_error_is_told_by_what_it_came_of():
    """Of however many; also where nobody said that one caused the other."""
    last: BaseException = FULL
    for cause, context in itertools.islice(itertools.cycle(((1, 0), (0, 1), (1, 1))), 30):
        error = ValueError("x")
        error.__cause__ = last if cause else None
        error.__context__ = last if context else None
        last = error
    assert reason(last) == "Disk quota exceeded" and is_full(last)


# ---- locks, stops, devices, needs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [("a\0b", "is not UTF-8 text"), ("\udcff", "is not UTF-8 text"), ("gs://x", "is a URL"),
     ("s3+a.b-c:/x", "is a URL"), ("FILE", "is no folder"), ("FILE/x", "cannot write to"),
     ("x" * 300, "cannot write to")],
)  # fmt: skip
def test_where_no_folder_can_be(tmp_path, path, said):
    (tmp_path / "FILE").touch()
    os.chdir(tmp_path)
    with pytest.raises(RunError, match=said):
        locks.Lock(type(tmp_path)(path))
    assert [file.name for file in tmp_path.iterdir()] == ["FILE"]


@pytest.fixture(autouse=True)
def _here():
    before = os.getcwd()
    yield
    os.chdir(before)


def test_where_something_is_held(tmp_path):
    (tmp_path / "FILE").touch()
    with pytest.raises(RunError, match="FILE is no folder"):
        locks.holds_something(tmp_path / "FILE")
    assert locks.holds_something(tmp_path)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_what_is_not_locked_is_let_go(tmp_path):
    """No file stays open of a folder that another owns, or whose lock is none."""
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / locks.LOCK)
    before = open_files()
    with pytest.raises(RunError, match="is no file: remove it"):
        locks.Lock(tmp_path / "odd")
    assert open_files() == before
    with locks.Lock(tmp_path / "mine"):
        held = open_files()
        with pytest.raises(RunError, match=r"is in use by another process: come back$"):
            locks.Lock(tmp_path / "mine", "come back")
        assert open_files() == held == before + 1
    assert open_files() == before
    locks.Lock(tmp_path / "mine").close()


def test_whoever_may_write_a_folder_may_lock_it(tmp_path):
    before = os.umask(0)
    try:
        locks.Lock(tmp_path).close()
    finally:
        os.umask(before)
    assert (tmp_path / locks.LOCK).stat().st_mode & 0o777 == 0o666


def test_a_loop_of_links_is_no_folder(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(RunError, match=r"^cannot write to .*a/run: Too many levels of symbolic"):
        locks.Lock(tmp_path / "a" / "run")
    (tmp_path / locks.LOCK).symlink_to("elsewhere")
    with pytest.raises(RunError, match=r"\.lock is a symbolic link: remove it$"):
        locks.Lock(tmp_path)


def test_a_lock_that_the_system_does_not_give_is_told(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    before = open_files()
    with pytest.raises(RunError, match=r"^cannot lock .*: No locks available$"):
        locks.Lock(tmp_path)
    assert open_files() == before


def test_a_folder_of_which_nothing_came_is_removed(tmp_path):
    path = tmp_path / "a" / "out"
    for kept in (False, True):
        with pytest.raises(ValueError), locks.Lock(path):
            assert not locks.holds_something(path)
            if kept:
                (path / "x").touch()
            raise ValueError
        assert path.exists() is kept
    assert locks.holds_something(path) and not locks.holds_something(tmp_path / "none")
    (path / "x").unlink()
    with pytest.raises(ValueError), locks.Lock(path):
        raise ValueError
    assert path.exists()  # it was there before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop(number):
    before, both = signal.getsignal(number), (signal.SIGTERM, signal.SIGINT)
    others = [signal.getsignal(each) for each in both]
    with stopping.StopRequest() as stop:
        stop.check()
        assert (stop.exit_code, stop.signalled) == (None, 0)
        signal.raise_signal(number)
        assert stop.exit_code == stop.signalled == 128 + number
        with pytest.raises(stopping.StopNow):
            stop.check()
        assert signal.getsignal(number) == before  # the next one ends the process
    assert [signal.getsignal(each) for each in both] == others


def test_without_a_signal_a_stop_is_that_of_sigterm():
    assert stopping.StopNow().exit_code == 143


@pytest.mark.parametrize(("processes", "code"), [(1, 0), (2, 130)])
def test_every_process_learns_of_a_stop_of_one(processes, code, monkeypatch):
    asked = []

    def allgather(mine):
        asked.append(mine)
        return np.array([mine, 130, 0])

    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    assert stopping.StopRequest().signalled_anywhere() == code
    assert asked == [0] * (processes - 1)


def test_seconds_go_on_after_a_stop(tmp_path, monkeypatch):
    wall, cpu = [100.0], [10.0]
    monkeypatch.setattr(spent.time, "perf_counter", lambda: wall[0])
    monkeypatch.setattr(spent.time, "process_time", lambda: cpu[0])
    path = tmp_path / "spent.json"
    first = spent.Spent(path)
    assert first.now() == {"seconds": 0, "cpu_seconds": 0}
    wall[0], cpu[0] = 103.0, 12.0
    assert first.now() == {"seconds": 3, "cpu_seconds": 2}
    outputs.write_json(path, first.now())
    second = spent.Spent(path)
    wall[0], cpu[0] = 104.0, 12.5
    assert second.now() == {"seconds": 4, "cpu_seconds": 2.5}
    path.write_text('{"cpu_seconds": 7}')
    assert spent.Spent(path).now() == {"seconds": 0, "cpu_seconds": 7}
    for damaged in ('{"seconds": "x"}', '{"cpu_seconds": null}'):
        path.write_text(damaged)
        with pytest.raises(RunError, match="is damaged: remove it, and only its seconds are not"):
            spent.Spent(path)


def test_a_deadline_asks_for_a_stop(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = stopping.StopRequest(deadline=10.0)
    assert stop.exit_code is None
    now[0] = 10.5
    assert (stop.exit_code, stop.signalled) == (75, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("h:1", None, 0, 0), "belong together"), ((None, 2, 1, 0), "belong together"),
        (("h:1", 2, 2, 0), "between 0 and --num-processes - 1 = 1, got 2"),
        (("h:1", 2, -1, 0), "between 0 and --num-processes - 1 = 1, got -1"),
        (("h:1", 2, 1, 3), "--devices 3 is the number over all processes"),
    ],
)  # fmt: skip
def test_processes_that_cannot_come_together(given, said):
    with pytest.raises(RunError, match=said):
        devices.join_processes(*given, 100)


def test_devices_that_there_are_not():
    with pytest.raises(RunError, match="--devices must be at least 0, got -1"):
        devices.use_devices(-1)
    assert len(devices.use_devices(0)) >= 1 == len(devices.use_devices(1))


def test_needs_are_met_by_values_and_by_flags():
    def args(**given):
        return argparse.Namespace(**{"rule": "sam", "loss": ["a", "b"], "out": None, **given})

    one, other = needs.one_of("rule", ["sgd", "gsa"]), needs.one_of("loss", ["b"])
    assert (one.words, other.words) == ("--rule sgd or gsa", "--loss b")
    assert not one.met(args()) and one.met(args(rule="gsa")) and other.met(args())
    assert not needs.one_of("not-there", ["x"]).met(args())
    both = needs.either(one, other)
    assert both.words == "--rule sgd or gsa, or --loss b"
    assert [both.met(args(**x)) for x in ({}, {"loss": ["a"]}, {"loss": [], "rule": "sgd"})] == [
        True, False, True
    ]  # fmt: skip
    out, without = needs.beside("out", "rule"), needs.without("out")
    assert (out.words, without.words) == ("--out or --rule", "--out left out")
    for value, there in ((None, False), (False, False), ([], False), (0, False), ("x", True)):
        assert out.met(args(out=value, rule=None)) is there
    assert without.met(args()) and not without.met(args(out="x"))
    assert needs.always("a", "b_c") == {"a": (), "b_c": ()}


def test_what_takes_a_files_place_is_on_the_disk_before(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: done.append(os.fstat(file).st_size) or fsync(file)
    )
    monkeypatch.setattr(os, "replace", lambda *paths: done.append(paths) or replace(*paths))
    outputs.replace_text(tmp_path / "x", "four")
    assert done == [4, (tmp_path / "x.partial", tmp_path / "x")]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["four"]
