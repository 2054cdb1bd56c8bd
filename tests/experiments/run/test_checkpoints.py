"""What is said and done around orbax's manager; what it wrote is damaged in test_folders.py"""

import errno
import hashlib
import logging
import os
import re
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.host.errors import RunError
from experiments.run import checkpoints as module
from experiments.run.checkpoints import Checkpoints

CONFIG = {"seed": 3}


class Manager:
    """Stands for orbax's: notes what it is asked, and fails where it is told to."""

    def __init__(self, path, options=None):
        self.path, self.options, self.done, self.fails, self.held = path, options, [], {}, [5]

    def __getattr__(self, name):
        def do(*args, **more):
            self.done.append(name)
            if name in self.fails:
                raise self.fails[name]

        return do

    def all_steps(self):
        return self.held

    def latest_step(self):
        return self.held[-1] if self.held else None


@pytest.fixture
def managed(tmp_path, monkeypatch):
    monkeypatch.setattr(module.ocp, "CheckpointManager", Manager)
    held = Checkpoints(tmp_path / "checkpoints", config=CONFIG)
    return held, held._manager


@pytest.fixture
def folder(tmp_path):
    """Of steps that hold nothing, and of what is no step."""
    for name in ("5", "10", "7", "07", "5.tmp", "x", "٣", "-1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return tmp_path / "checkpoints"


def test_so_many_are_kept_and_two_unless_asked(tmp_path):
    """The last ones, by orbax itself."""
    for keep in (None, 3):
        path = tmp_path / str(keep)
        held = Checkpoints(path, **({"keep": keep} if keep else {}))
        for step in range(1, 5):
            held.save(step, {"a": jnp.ones(2)}, {"n": step})
        held.close()
        assert held.steps() == [4, 3, 2][: keep or 2]


def test_who_reads_makes_no_folder(tmp_path):
    held = Checkpoints(tmp_path / "none", reading=True)
    assert held.steps() == [] and held.restore({}) is None and not list(tmp_path.iterdir())
    with pytest.raises(RunError, match=r"none holds no checkpoint$"):
        held.check_config(tmp_path / "config.json", CONFIG)
    held.close()
    Checkpoints(tmp_path / "made").close()
    assert (tmp_path / "made").is_dir()


def test_what_orbax_is_asked_for(managed, monkeypatch, tmp_path):
    held, manager = managed
    options = manager.options
    assert (options.max_to_keep, options.create, options.read_only) == (2, True, False)
    assert manager.path == tmp_path / "checkpoints"
    read = Checkpoints(tmp_path / "checkpoints", keep=7, reading=True)._manager.options
    assert (read.max_to_keep, read.create, read.read_only) == (None, False, True)
    held.save(5, {}, {})  # there already
    assert manager.done == []
    held.close()
    assert manager.done == ["close"]


@pytest.mark.parametrize("last", [None, 5])
@pytest.mark.parametrize(
    ("error", "why", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left", "make room in"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied", "see to it that"),
    ],
)
def test_a_failed_save_is_told_once_with_what_is_left(managed, last, error, why, remedy):
    held, manager = managed
    manager.held, manager.fails = [] if last is None else [last], {"save": error}
    whole = "none is whole yet" if last is None else "the last whole one is step 5"
    words = rf"could not be written \({why}.*\); {whole}: {remedy} .*checkpoints.*with --resume$"
    with pytest.raises(RunError, match=words):
        held.save(10, {}, {})
    manager.fails["close"] = error
    held.close()  # not said again
    assert manager.done == ["save"]
    other = Checkpoints(held.path)
    other._manager.fails = {"close": error}
    with pytest.raises(RunError, match=f"could not be written .{why}"):
        other.close()


def test_a_save_that_does_not_end_well_is_found_by_who_waits(managed):
    held, manager = managed
    assert held.latest_step() == 5 and manager.done == ["wait_until_finished"]
    manager.fails["wait_until_finished"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(RunError, match=r"could not be written .Input/output error"):
        held.latest_step()


def test_what_cannot_be_read_back_is_not_waited_for_again(managed, monkeypatch):
    """The first save alone is looked at, once it is whole."""
    held, manager = managed

    def verified(step, state, check):
        manager.done.append(f"verified {step}")
        raise ValueError("other bytes")

    monkeypatch.setattr(held, "_verified", verified)
    with pytest.raises(RunError, match=r"cannot be read back \(ValueError: other bytes\): choose"):
        held.save(10, {}, {})
    held.close()
    assert manager.done == ["save", "wait_until_finished", "verified 10"]


@pytest.mark.parametrize(
    ("step", "kept", "moved"),
    [
        (10, [10, 7, 5], []),
        (7, [7, 5], ["10"]),
        (6, [5], ["10", "7"]),
        (None, [], ["10", "5", "7"]),
    ],
)
def test_only_newer_ones_are_set_aside(folder, step, kept, moved):
    held = Checkpoints(folder)
    held.set_aside_after(step)
    held.close()
    assert held.steps() == kept
    aside = folder.parent / "aside"
    assert aside.exists() == bool(moved)
    assert sorted(os.listdir(aside)) == moved if moved else True


@pytest.mark.parametrize(
    ("process", "processes", "moved"), [(0, 1, True), (0, 2, True), (1, 2, False), (0, 3, True)]
)
def test_the_first_process_sets_aside_and_all_wait_for_it(
    folder, process, processes, moved, managed, monkeypatch
):
    held, manager = managed
    met = []
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(
        module.multihost_utils, "sync_global_devices", lambda name: met.append(held.steps())
    )
    held.set_aside_after(5)
    steps = [5] if moved else [10, 7, 5]
    assert held.steps() == steps and met == ([steps] if processes > 1 else [])
    assert manager.done == ["reload"]


def test_the_newest_is_read_first_and_the_last_has_none_before_it(folder, monkeypatch):
    """Damaged all of them; each is left alone for a moment, for what it left under way."""
    rests = []
    monkeypatch.setattr(module.time, "sleep", rests.append)
    monkeypatch.setattr(module.gc, "collect", lambda: rests.append("collected"))
    held = Checkpoints(folder, reading=True)
    assert held.steps() == [10, 7, 5]
    for read in (
        lambda say: held.restore({}, say),
        lambda say: held.check_config(folder / "config.json", CONFIG, say),
    ):
        said = []
        with pytest.raises(RunError, match=r"none of the 3 checkpoints in .* can be read: start a"):
            read(said.append)
        steps = [re.match(r"checkpoint of step (\d+) is damaged \(its", line) for line in said]
        assert [int(step[1]) for step in steps] == [10, 7, 5]
        ends = [line.rsplit("; ", 1)[1] for line in said]
        assert ends == ["trying the one before it"] * 2 + ["there is none before it"]
    assert held.read(5, {}, said.append) is None and said[-1].endswith("trying the one before it")
    rests.clear()
    assert held._tried(lambda: 1 / 0)[1] == "ZeroDivisionError: division by zero"
    assert rests == [0.1, "collected"]
    held.close()


def test_a_digest_is_of_every_leaf_its_place_type_and_shape():
    """Written out again; on the host or on a device."""
    state = {"b": np.float32([[1, 2], [3, 4]]), "a": np.int32(7)}
    digest = hashlib.sha256(b'12 {"x": 1, "y": 2}\n')
    digest.update(b"['a'] int32 ()\n" + np.int32(7).tobytes())
    digest.update(b"['b'] float32 (2, 2)\n" + state["b"].tobytes())
    note = {"y": 2, "x": 1}
    assert module._sha256(12, state, note) == digest.hexdigest()
    assert module._sha256(12, jax.tree.map(jnp.asarray, state), note) == digest.hexdigest()


# ---- what fails in another thread -------------------------------------------------------------


def failing(file):
    """An exception from a function of that file, as a thread's excepthook is given it."""
    names = {}
    exec(compile("def fail():\n    raise ValueError('x')\n", file, "exec"), names)
    try:
        names["fail"]()
    except ValueError as error:
        return SimpleNamespace(exc_traceback=error.__traceback__)


def test_of_orbaxs_threads_nothing_is_printed(managed, monkeypatch):
    """Of others as before; however many folders there are."""
    names, told = ("absl", "asyncio", "concurrent.futures"), []
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)
    monkeypatch.setattr(threading, "excepthook", told.append)
    module._hush()
    hook = threading.excepthook
    assert hook is not told.append
    module._hush()
    assert threading.excepthook is hook
    mine, theirs = failing("/x/mine.py"), failing("/x/orbax/checkpoint.py")
    hook(theirs)
    hook(mine)
    assert told == [mine]
    assert {logging.getLogger(name).level for name in names} == {logging.CRITICAL}


def test_whoever_opens_a_folder_hushes_them(tmp_path, monkeypatch):
    logging.getLogger("absl").setLevel(logging.NOTSET)
    monkeypatch.setattr(module.ocp, "CheckpointManager", Manager)
    Checkpoints(tmp_path / "checkpoints")
    assert logging.getLogger("absl").level == logging.CRITICAL
