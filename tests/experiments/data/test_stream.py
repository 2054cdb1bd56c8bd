"""The input stream: the same batches however they are made, states, bad files, dying workers."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_records
from experiments.data import DataError
from experiments.data.decode import decode_eval, decode_train
from experiments.data.image_sets import load_inaturalist
from experiments.data.stream import (
    HostBatch,
    StepRows,
    Stream,
    _begin_worker,
    _end_with_parent,
    stream,
)
from fresh_imports import imported

pytest.importorskip("grain")
pytest.importorskip("tensorflow_datasets")

_BATCH, _STEPS, _SIZE, _RESIZE = 6, 8, 16, 20


@dataclasses.dataclass(frozen=True)
class Rows:
    """Host `host` of `hosts` takes every hosts-th position of a shuffled epoch, then padding."""

    total: int
    host: int = 0
    hosts: int = 1

    def __call__(self, step: int) -> StepRows:
        order = np.random.RandomState(11).permutation(self.total)
        positions = np.arange(self.host, _BATCH, self.hosts)
        at = step * _BATCH + positions
        rows = np.where(at < self.total, order[np.minimum(at, self.total - 1)], -1)
        return StepRows(rows, positions)


@dataclasses.dataclass(frozen=True)
class Changed:
    """A split, some of whose files read as given."""

    split: Any
    files: dict[int, bytes]

    @property
    def labels(self) -> np.ndarray:
        return self.split.labels

    def read(self, rows: Sequence[int]) -> list[bytes]:
        files = self.split.read(rows)
        return [self.files.get(row, file) for row, file in zip(rows, files, strict=True)]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tfds")
    tiny_records.make(folder, num_classes=4, largest=20, smallest=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train = load_inaturalist(str(folder)).train
    assert len(train.labels) == 44  # so the last of eight batches of six is mostly padding
    return train


def _stream(split: Any, rows: Any = None, first: int = 0, **changes: Any) -> Stream:
    arguments = {"size": _SIZE, "resize": _RESIZE, "train": True, "seed": 3, "threads": 0}
    rows = rows or Rows(len(split.labels))
    return stream(split, rows, first, _STEPS, **{**arguments, **changes})


def _all(batches: Any) -> list[HostBatch]:
    with batches:
        return list(batches)


def _assert_same(got: Sequence[HostBatch], expected: Sequence[HostBatch]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        for part, other_part in zip(one, other, strict=True):
            assert type(part) is type(other_part)
            np.testing.assert_array_equal(part, other_part)


@pytest.mark.parametrize("train", [True, False])
def test_batches_are_the_rows_decoded(split: Any, train: bool) -> None:
    batches = _all(_stream(split, train=train))
    assert len(batches) == _STEPS
    rows_of = Rows(len(split.labels))
    for step, batch in enumerate(batches):
        rows, positions = rows_of(step)
        assert batch.images.dtype == np.uint8 and batch.images.shape == (6, _SIZE, _SIZE, 3)
        assert batch.labels.dtype == np.int32 and type(batch.images) is np.ndarray
        assert batch.ok.tolist() == (rows >= 0).tolist() and batch.corrupt == 0
        for image, label, row, position in zip(
            batch.images, batch.labels, rows, positions, strict=True
        ):
            # Padding is the first row again, its label too.
            data = split.read([row if row >= 0 else rows[0]])[0]
            at = position if row >= 0 else 0
            rng = np.random.default_rng((3, step, at))
            expected = (
                decode_train(data, _SIZE, rng) if train else decode_eval(data, _SIZE, _RESIZE)
            )
            np.testing.assert_array_equal(image, expected)
            assert label == split.labels[row if row >= 0 else rows[0]]
    assert batches[-1].ok.tolist() == [True] * 2 + [False] * 4


def test_seed_and_step_decide_the_crops(split: Any) -> None:
    first, again, other = (_all(_stream(split, seed=seed)) for seed in (3, 3, 4))
    _assert_same(first, again)
    assert not np.array_equal(first[0].images, other[0].images)
    assert np.array_equal(first[0].labels, other[0].labels)
    # Evaluation draws nothing.
    _assert_same(_all(_stream(split, train=False, seed=1)), _all(_stream(split, train=False)))

    def same_rows(step: int) -> StepRows:
        return Rows(len(split.labels))(0)

    batches = _all(_stream(split, same_rows))
    assert not np.array_equal(batches[0].images, batches[1].images)


def test_threads_change_nothing(split: Any) -> None:
    for threads, prefetch in ((1, 1), (3, 2)):
        _assert_same(_all(_stream(split, threads=threads, prefetch=prefetch)), _all(_stream(split)))


@pytest.mark.parametrize(
    ("workers", "threads", "prefetch", "reading"),
    [
        # (threads, batches made ahead) within a process
        (0, 0, 2, (0, 0)), (0, 1, 2, (1, 2)), (0, 5, 2, (5, 5)), (0, 2, 7, (2, 7)),
        (2, 1, 3, (0, 0)), (1, 4, 6, (4, 4)),
    ],
)  # fmt: skip
def test_how_much_is_made_ahead(
    workers: int, threads: int, prefetch: int, reading: tuple[int, int], monkeypatch: Any
) -> None:
    import grain

    seen: dict[str, Any] = {}

    class Steps:
        def map(self, make: Any) -> Any:
            return self

        def to_iter_dataset(self, options: Any) -> Any:
            seen["reading"] = (options.num_threads, options.prefetch_buffer_size)
            return self

        def mp_prefetch(self, options: Any, worker_init_fn: Any) -> Any:
            seen["workers"] = (options.num_workers, options.per_worker_buffer_size)
            return self

        def __iter__(self) -> Any:
            yield  # a generator can be closed

    monkeypatch.setattr(grain.MapDataset, "range", lambda first, last: Steps())
    made = types.SimpleNamespace(labels=[])
    _stream(made, workers=workers, threads=threads, prefetch=prefetch).close()
    assert seen == {"reading": reading, **({"workers": (workers, prefetch)} if workers else {})}


def test_of_a_stream_nothing_is_asked_but_what_is_said(split: Any, monkeypatch: Any) -> None:
    """One thread of this process, two batches ahead."""
    import grain

    made, real = [], grain.ReadOptions

    def options(**given: int) -> Any:
        made.append(given)
        return real(**given)

    monkeypatch.setattr(grain, "ReadOptions", options)
    rows = Rows(len(split.labels))
    with stream(split, rows, 0, 1, size=1, resize=1, train=True, seed=0) as batches:
        assert next(batches).images.shape == (_BATCH, 1, 1, 3)
    assert made == [{"num_threads": 1, "prefetch_buffer_size": 2}]


def test_flags_that_nobody_has_parsed_are_none(split: Any) -> None:
    """grain reads those of absl, which fail until they are parsed."""
    from absl import flags

    flags.FLAGS.unparse_flags()
    assert len(_all(_stream(split))) == _STEPS and flags.FLAGS.is_parsed()


def test_a_stream_is_closed_when_it_is_left_and_when_it_is_lost(split: Any) -> None:
    with _stream(split) as batches:
        next(batches)
    for call in (lambda: next(batches), batches.get_state, lambda: batches.set_state({})):
        with pytest.raises(ValueError, match="the stream is closed"):
            call()
    batches.close()  # without effect
    closed = []
    lost = Stream(types.SimpleNamespace(close=lambda: closed.append(True)))
    assert iter(lost) is lost and not closed
    del lost
    assert closed == [True]


def test_a_file_too_few_is_not_passed_over(split: Any) -> None:
    class Short(Changed):
        def read(self, rows: Sequence[int]) -> list[bytes]:
            return super().read(rows)[:-1]

    with _stream(Short(split, {})) as batches, pytest.raises(ValueError, match="shorter"):
        next(batches)


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_change_nothing(split: Any, hosts: int) -> None:
    whole = _all(_stream(split))
    total = len(split.labels)
    parts = [_all(_stream(split, Rows(total, host, hosts))) for host in range(hosts)]
    for step, batch in enumerate(whole):
        for host in range(hosts):
            part, real = parts[host][step], batch.ok[host::hosts]
            assert part.ok.tolist() == real.tolist()
            np.testing.assert_array_equal(part.images[real], batch.images[host::hosts][real])
            np.testing.assert_array_equal(part.labels[real], batch.labels[host::hosts][real])


@pytest.mark.parametrize("threads", [0, 2])
def test_start_anywhere(split: Any, threads: int) -> None:
    whole = _all(_stream(split))
    for first in (0, 3, _STEPS):
        _assert_same(_all(_stream(split, first=first, threads=threads)), whole[first:])


@pytest.mark.parametrize("threads", [0, 2])
def test_state_is_saved_and_restored(split: Any, threads: int) -> None:
    whole = _all(_stream(split))
    with _stream(split, threads=threads) as batches:
        states = [json.loads(json.dumps(batches.get_state()))]
        for _ in batches:
            states.append(json.loads(json.dumps(batches.get_state())))
        for step in (5, 0, _STEPS, 2):  # in the same stream, forward and back, and at the end
            batches.set_state(states[step])
            _assert_same(list(batches), whole[step:])
    with _stream(split, threads=threads) as batches:
        batches.set_state(states[4])
        _assert_same(list(batches), whole[4:])


def test_damaged_files(split: Any) -> None:
    total = len(split.labels)
    rows = Rows(total)(0).rows
    whole = _all(_stream(split))
    cut = split.read([rows[3]])[0][:-200]
    batches = _all(_stream(Changed(split, {int(rows[0]): b"", int(rows[3]): cut})))
    bad = batches[0]
    assert (bad.ok.tolist(), bad.corrupt) == ([False, True, True, False, True, True], 2)
    for at in range(6):
        same = at if bad.ok[at] else 1
        np.testing.assert_array_equal(bad.images[at], whole[0].images[same])
        assert bad.labels[at] == whole[0].labels[same]
    _assert_same(batches[1:], whole[1:])
    last = Rows(total)(_STEPS - 1).rows
    batches = _all(_stream(Changed(split, {int(last[0]): b"junk"})))
    assert (batches[-1].ok.tolist(), batches[-1].corrupt) == ([False, True] + [False] * 4, 1)
    np.testing.assert_array_equal(batches[-1].images[5], whole[-1].images[1])


def test_no_good_row(split: Any) -> None:
    def padding(step: int) -> StepRows:
        return StepRows(np.full(4, -1), np.arange(4))

    batches = _all(_stream(split, padding))
    assert len(batches) == _STEPS and batches[0].corrupt == 0
    assert not batches[0].images.any() and not batches[0].labels.any() and not batches[0].ok.any()
    nothing = Changed(split, {row: b"" for row in range(len(split.labels))})
    batches = _all(_stream(nothing))
    assert [batch.corrupt for batch in batches] == [6] * 7 + [2]
    assert not batches[0].images.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 9}, "steps 9 to 8"),
        ({"first": -1}, "steps -1 to 8"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 1}, "threads is 0, but must be at least 1"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"size": 30}, "size is 30 and resize 20"),
    ],
)
def test_bad_arguments(split: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _stream(split, **changes)


def test_bad_rows(split: Any) -> None:
    for rows, positions, message in (
        ([0, 44], [0, 1], r"step 0: rows lie in \[0, 44\], outside \[-1, 44\)"),
        ([0, -2], [0, 1], r"rows lie in \[-2, 0\]"),
        ([0, 1], [0], r"rows have shape \(2,\) and positions \(1,\)"),
        ([[0, 1]], [[0, 1]], r"rows have shape \(1, 2\) and positions \(1, 2\), not both \(b,\)"),
    ):
        made = StepRows(np.array(rows), np.array(positions))
        batches = _stream(split, lambda _, made=made: made)
        with pytest.raises(ValueError, match=message):
            next(batches)


# --- Worker processes ------------------------------------------------------------------------


def _children() -> set[int]:
    """Ids of the workers of this process, of `multiprocessing` and not its resource tracker."""
    import multiprocessing

    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@pytest.mark.slow  # test_streamed compares the path with a plain loop
def test_workers_change_nothing(split: Any) -> None:
    """Two workers: the same batches, from any step and any state; they end with the stream."""
    whole = _all(_stream(split))
    with _stream(split, workers=2, threads=1) as batches:
        states = [json.loads(json.dumps(batches.get_state()))]
        got = []
        for batch in batches:
            got.append(batch)
            states.append(json.loads(json.dumps(batches.get_state())))
        _assert_same(got, whole)
    assert not _children()
    with _stream(split, workers=2, threads=2, prefetch=1) as batches:
        batches.set_state(states[3])
        _assert_same([next(batches), next(batches)], whole[3:5])
        assert len(_children()) == 2
        batches.set_state(states[1])
        _assert_same([next(batches)], whole[1:2])
    assert not _children()  # left in the middle
    with pytest.raises(ValueError, match="the stream is closed"):
        next(batches)


@pytest.mark.slow  # processes of its own
def test_an_abandoned_stream_ends_its_workers(split: Any) -> None:
    batches = _stream(split, first=2, workers=1, threads=1)
    _assert_same([next(batches)], _all(_stream(split))[2:3])
    assert len(_children()) == 1
    del batches
    assert not _children()


@dataclasses.dataclass(frozen=True)
class Failing:
    """Rows whose maker does something bad at step 2."""

    how: str
    total: int

    def __call__(self, step: int) -> StepRows:
        if step == 2 and self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and self.how == "raise":
            raise DataError("the disk is gone")
        if step == 2 and self.how == "ignored":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return Rows(self.total)(step)


@pytest.mark.parametrize(
    ("how", "workers", "error", "message"),
    [
        pytest.param("die", 2, RuntimeError, "terminated unexpectedly", marks=pytest.mark.slow),
        ("raise", 1, DataError, "the disk is gone"),
    ],
)
def test_a_failing_worker_raises(
    split: Any, how: str, workers: int, error: Any, message: str
) -> None:
    batches = _stream(split, Failing(how, len(split.labels)), workers=workers, threads=1)
    got = []
    with pytest.raises(error, match=message):
        for batch in batches:
            got.append(batch)
    assert len(got) <= 2 and not _children()


@pytest.mark.slow
def test_workers_leave_signals_to_the_trainer(split: Any) -> None:
    failing = Failing("ignored", len(split.labels))
    _assert_same(_all(_stream(split, failing, workers=1, threads=1)), _all(_stream(split)))


def test_workers_are_born_without_the_trainers_signals() -> None:
    """A process has the signal mask of the thread that starts it; grain's threads start workers."""
    seen: list[set[int]] = []

    def batches() -> Iterator[HostBatch]:
        def look() -> None:
            seen.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

        while True:
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            yield HostBatch(*(np.empty(0),) * 3, 0)

    found = Stream(batches(), workers=1)
    for _ in range(2):
        next(found)
    stops = {signal.SIGINT, signal.SIGTERM}
    assert [held & stops for held in seen] == [stops, set()]


def test_a_worker_ends_when_its_parent_has(monkeypatch: Any) -> None:
    """In this process: the parent's sentinel is a pipe, and what would end it is noted."""
    ended: list[int] = []
    reader, writer = multiprocessing.Pipe(duplex=False)
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    others = set(threading.enumerate())
    monkeypatch.setattr(os, "_exit", ended.append)
    _end_with_parent()  # of no other process: nothing to wait for
    parent = types.SimpleNamespace(sentinel=reader)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    try:
        _begin_worker(0, 1)
        assert {signal.getsignal(kind) for kind in before} == {signal.SIG_IGN}
        (thread,) = set(threading.enumerate()) - others
        assert thread.daemon  # or else it would keep the worker
        thread.join(0.05)
        assert thread.is_alive() and not ended
        writer.close()
        thread.join(10)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    assert ended == [1]


def _streaming(split: Any, folder: Path, *lines: str) -> str:
    """A program that has `batches` of a worker and does these lines with them."""
    (folder / "split").write_bytes(pickle.dumps(split))
    begun = f"""
        import multiprocessing, os, pickle, signal
        import numpy as np
        from experiments.data.stream import StepRows, stream

        if __name__ == "__main__":
            split = pickle.loads(open({str(folder / "split")!r}, "rb").read())
            rows = StepRows(np.arange(4), np.arange(4))
            batches = stream(
                split, lambda _: rows, 0, 10**6, size=16, resize=16, train=True, seed=0, workers=1
            )
    """
    return "\n".join([textwrap.dedent(begun).rstrip(), *(f"    {line}" for line in lines)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_parent(split: Any, tmp_path: Path, run_python: Any) -> None:
    code = _streaming(
        split, tmp_path, "next(batches)",
        "print(multiprocessing.active_children()[0].pid, flush=True)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )  # fmt: skip
    worker = int(run_python(code, expect=-signal.SIGKILL).stdout)
    for _ in range(100):
        if not _runs(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by ten seconds")


class Shared(np.ndarray):
    """As grain hands on what a worker has made: the name of its memory is to go with it."""

    shm: shared_memory.SharedMemory
    _unlink_on_del = True


def test_shared_memory_is_without_a_name_once_it_is_handed_on() -> None:
    """Else it is left over where a process ends before grain's thread has come to it."""
    made = shared_memory.SharedMemory(create=True, size=12)
    images = np.ndarray((1, 2, 2, 3), np.uint8, made.buf).view(Shared)
    images.shm, images[:] = made, 7
    plain = np.zeros(1, np.int32)
    given = HostBatch(images, plain, plain == 0, 0)
    (batch,) = _all(Stream(one for one in [given]))
    assert type(batch.images) is np.ndarray and batch.images.min() == batch.images.max() == 7
    assert not images._unlink_on_del
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(made.name)
    del images, given, batch
    made.close()


@pytest.mark.slow  # processes of its own
def test_a_process_that_ends_with_a_batch_in_hand_leaks_none(
    split: Any, tmp_path: Path, run_python: Any
) -> None:
    code = _streaming(
        split, tmp_path, "held = [next(batches), next(batches)]",
        "print(type(held[0].images.base).__name__)", "batches.close()",
    )  # fmt: skip
    done = run_python(code)
    assert done.stdout == "SharedMemoryArray\n" and "leaked" not in done.stderr


def _runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_what_reads_data_needs_none_of_what_it_reads_by() -> None:
    """Before it does: in one process, of cifar, decode, image_sets and stream."""
    assert not {"grain", "PIL", "rich", "tensorflow", "tensorflow_datasets"} & imported()


def test_the_benchmark_reports_both_loops_and_the_waiting(tmp_path):
    from benchmarks import input_pipeline

    flags = "--workers 0 --threads 0 --rounds 2 --seconds 0.05 --images 4 --batch-size 4 --size 32"
    args = [*flags.split(), "--out", str(tmp_path)]
    input_pipeline.main(input_pipeline.arguments().parse_args(args))
    found = json.loads((tmp_path / "input_pipeline.json").read_text())
    assert found["ratio_per_core"]["low"] <= found["ratio_per_core"]["median"]
    assert found["cores_used"] == 1 and found["rounds"] == 2
    waiting = found["waiting"]
    expected = 1.25 * 4 / found["stream_images_per_second"]
    assert waiting["step_seconds"] == pytest.approx(expected)
    assert 0 <= waiting["share_of_time_waited"] < 1 and waiting["steps"] == 20
    assert "waited" in (tmp_path / "input_pipeline.md").read_text()
