"""Batches of decoded images in step order, read ahead by worker processes or threads (grain).

A training crop depends on the seed, the step and the row's position in the global batch alone, so
the images are the same whatever the number of workers, threads or hosts, and wherever the stream
begins.
"""

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.decode import decode_eval, decode_train
from experiments.data.encoded import Split

__all__ = ["HostBatch", "StepRows", "Stream", "fill_gaps", "stream"]

# A trainer saves its state on these, and needs the stream until it has.
_STOPS = (signal.SIGINT, signal.SIGTERM)


class StepRows(NamedTuple):
    """What one host reads in one step.

    Attributes:
      rows: int64[b], rows of the split; -1 is padding.
      positions: int64[b], where each stands in the global batch.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]


class HostBatch(NamedTuple):
    """What one host has of one step's batch.

    A padding row, or one whose file is damaged, holds a copy of the first good row of this host's
    part, label and all: batch normalisation then sees no picture that is not in the data. Without
    any good row images and labels are zeros.

    Attributes:
      images: uint8[b, S, S, 3].
      labels: int32[b].
      ok: bool[b], False for padding and damaged rows.
      corrupt: number of damaged rows; the others that are not ok are padding.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    ok: NDArray[np.bool_]
    corrupt: int


class Stream:
    """Iterates over HostBatches and can be closed; made by `stream`."""

    def __init__(self, iterator: Any, workers: int = 0):
        self._iterator: Any | None = iterator
        self._to_start = workers > 0

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> HostBatch:
        try:
            # Workers start when the first batch is asked for.
            with _held_back() if self._to_start else contextlib.nullcontext():
                batch = next(self._opened())
            self._to_start = False
        except StopIteration:
            raise
        except BaseException:
            # One worker has failed: the others would wait for ever to hand on their batches.
            self.close()
            raise
        # Plain views: what comes from a worker is a subclass of ndarray in shared memory.
        images, labels, ok = (_unnamed(part).view(np.ndarray) for part in batch[:3])
        return HostBatch(images, labels, ok, batch.corrupt)

    def get_state(self) -> dict[str, Any]:
        """Which batch is next, as JSON can hold it; for a stream of the same arguments."""
        return self._opened().get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._opened().set_state(state)

    def close(self) -> None:
        """Ends the workers; without effect the second time."""
        if self._iterator is not None:
            self._iterator.close()
            # Kept until the interpreter ends, grain's iterator fails in its __del__.
            self._iterator = None

    def _opened(self) -> Any:
        if self._iterator is None:
            raise ValueError("the stream is closed")
        return self._iterator

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def stream(
    split: Split,
    rows_of_step: Callable[[int], StepRows],
    first_step: int,
    last_step: int,
    *,
    size: int,
    resize: int,
    train: bool,
    seed: int,
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 2,
) -> Stream:
    """The batches of steps first_step to last_step - 1, in order.

    Each worker makes whole batches, every workers-th of them. Use it as a context manager, or close
    it: workers that are left waiting hold memory. A worker ignores Ctrl-C and SIGTERM, which are
    for the trainer to act on, and ends with its parent however that ends.

    Args:
      split: to read from; pickled to the workers.
      rows_of_step: of a step, which rows and where in the global batch; pickled to the workers,
        and called there.
      first_step, last_step: the range of steps; empty where they are equal.
      size, resize: see `decode_train` and `decode_eval`.
      train: whether to take random crops (without a flip) or the centre.
      seed: of the crops, not negative; without effect in evaluation.
      workers: processes; 0 works in this one.
      threads: in each process; without workers, 0 makes a batch only when it is asked for.
      prefetch: batches that each worker, or this process without workers, makes ahead.

    Returns:
      A Stream of HostBatches. It raises what a worker raises (DataError where files cannot be
      read), and RuntimeError where a worker dies.

    Raises:
      ValueError: an argument is out of its range.
    """
    if not 0 <= first_step <= last_step:
        raise ValueError(f"steps {first_step} to {last_step}: 0 <= first_step <= last_step")
    for name, value, least in (
        ("seed", seed, 0), ("workers", workers, 0), ("threads", threads, 0 if workers == 0 else 1),
        ("prefetch", prefetch, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}")
    if not 1 <= size <= resize:
        raise ValueError(f"size is {size} and resize {resize}: 1 <= size <= resize")
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # grain reads absl flags, which only an absl main would parse.
        flags.FLAGS.mark_as_parsed()
    make = _MakeBatch(split, rows_of_step, size, resize, train, seed)
    if workers == 0:
        ahead = max(prefetch, threads) if threads else 0
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    elif threads == 1:
        # The worker's own thread makes batches; the queue to this process is its buffer.
        reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    else:
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    steps = grain.MapDataset.range(first_step, last_step).map(make).to_iter_dataset(reading)
    if workers:
        steps = steps.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
            worker_init_fn=_begin_worker,
        )
    return Stream(iter(steps), workers)


@dataclasses.dataclass
class _MakeBatch:
    split: Split
    rows_of_step: Callable[[int], StepRows]
    size: int
    resize: int
    train: bool
    seed: int

    def __call__(self, step: int) -> HostBatch:
        rows, positions = self.rows_of_step(int(step))
        real = real_rows(rows, positions, len(self.split.labels), int(step))
        images = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        labels = np.empty(len(rows), np.int32)
        labels[real] = self.split.labels[rows[real]]
        ok = np.zeros(len(rows), bool)
        files = self.split.read(rows[real].tolist())
        for at, data in zip(real.tolist(), files, strict=True):
            if self.train:
                rng = np.random.default_rng((self.seed, int(step), int(positions[at])))
                pixels = decode_train(data, self.size, rng)
            else:
                pixels = decode_eval(data, self.size, self.resize)
            if pixels is not None:
                images[at], ok[at] = pixels, True
        fill_gaps(images, labels, ok)
        return HostBatch(images, labels, ok, corrupt=len(real) - int(ok.sum()))


def real_rows(
    rows: NDArray[np.int64], positions: NDArray[np.int64], total: int, step: int
) -> NDArray[np.int64]:
    """Where in the batch there is no padding; ValueError where a row is not in the split."""
    if rows.ndim != 1 or rows.shape != positions.shape:
        raise ValueError(
            f"step {step}: rows have shape {rows.shape} and positions {positions.shape}, not both "
            "(b,)"
        )
    if len(rows) and not -1 <= rows.min() <= rows.max() < total:
        raise ValueError(
            f"step {step}: rows lie in [{rows.min()}, {rows.max()}], outside [-1, {total})"
        )
    return np.flatnonzero(rows >= 0)


def fill_gaps(images: NDArray[np.uint8], labels: NDArray[np.int32], ok: NDArray[np.bool_]) -> None:
    """Rows that are not ok become copies of the first that is, or zeros, in place."""
    if ok.all():
        return
    good = int(ok.argmax())
    images[~ok] = images[good] if ok.any() else 0
    labels[~ok] = labels[good] if ok.any() else 0


def _unnamed(part: Any) -> Any:
    """Itself; shared memory without a name goes with who holds it, however the process ends.

    grain takes the name away in a thread once the array is gone, which the end of a process is not.
    """
    if getattr(part, "_unlink_on_del", False):
        part._unlink_on_del = False
        part.shm.unlink()
    return part


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Processes that start meanwhile, of this thread or of one that it starts, are not stopped.

    A worker imports for seconds before it can ignore anything; Ctrl-C and what sends SIGTERM to a
    whole job reach it then, too.
    """
    resource_tracker.ensure_running()  # where it starts, it lets them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(index: int, count: int) -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot close its workers: they would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
