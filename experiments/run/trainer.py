"""The trainer: makes the steps of one run, or of several that make the same; whatever their method.

    train           begin, from checkpoints where there are some; then each epoch, below
      _epoch        makes its calls (calls.py): compiled programs of `steps_per_call` steps
      _close_epoch  each run evaluates and writes a line (one.py)
      _save         each run's checkpoint, at one step
    reports         each run writes its report

A stop (SIGTERM, Ctrl-C, a deadline) is answered between calls: the state is saved and the run ends
with 143, 130 or 75; resumed it goes on from there, bitwise. The test set is looked at each epoch,
because the papers report its best epoch; it chooses nothing.

Several runs are saved one after the other: a stop leaves all folders at one step, and after a kill
the newest step that all of them hold is gone on from.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.data import Dataset
from experiments.data.encoded import EncodedDataset
from experiments.host.errors import RunError, Stopped, flag
from experiments.host.progress import Progress
from experiments.host.stopping import StopNow, StopRequest
from experiments.run import cost
from experiments.run.calls import Call, Calls
from experiments.run.one import Cost, Draw, Run
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from experiments.step.execution import Jit
from experiments.step.methods import Method, as_method
from experiments.step.seeds import Seeds
from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows
from imbsam_jax import rules
from imbsam_jax.rules import Rule


class Trainer:
    """Makes the steps of runs that make the same calls: open the runs, `train`, then `reports`.

    Args:
      dataset: of all runs.
      method: how the gradient is taken.
      parts: of each run; but for what runs differ in, those of the first serve all.
      settings: of each run; they differ in the seed alone.
      run_on: where the steps of all runs are made, in one call.

    Attributes:
      runs: one for each of the parts.
    """

    def __init__(
        self,
        dataset: Dataset | EncodedDataset,
        method: Method | Rule,
        parts: list[Parts],
        settings: list[Settings],
        run_on: Jit | Seeds,
    ):
        first, how = parts[0], settings[0]
        self.dataset, self.settings, self.run_on = dataset, how, run_on
        self.feed, self.order = first.feed, first.order
        whole = as_method(method)
        self.stages = whole.stages()
        self.calls = Calls(
            how.epochs,
            first.steps_per_epoch,
            first.order.rows // how.batch_size,
            min(how.steps_per_call, first.feed.most_steps or sys.maxsize),
            [start for start, _ in self.stages],
        )
        several = len(parts) > 1
        self.runs = [
            Run(dataset, part, self.calls, mine, f"seed {mine.seed}: " if several else "")
            for part, mine in zip(parts, settings, strict=True)
        ]
        for run in self.runs:
            extra = jax.jit(whole.initial_extra)(run.initial.params)
            run.initial = run.initial.replace(extra=extra)
        self._agreed_stop = 0
        self._began: float = first.began
        self._seconds_to_first_step: float | None = None
        self._compiled: dict[Any, Any] = {}
        self._state: Any = None
        self._inputs: Inputs | None = None

    def train(self, stop: StopRequest, progress: Progress) -> None:
        """Trains to the last epoch and evaluates; a stop saves, and raises Stopped."""
        try:
            self.begin(progress)
            try:
                self._train(stop, progress)
            except StopNow:
                self._save()
                run = self.runs[0]
                raise Stopped(
                    f"stopped at step {run.step}, epoch {run.note.epoch + 1}: saved. Continue with "
                    f"the same command and {flag('resume')}",
                    stop.exit_code or self._agreed_stop or 1,
                ) from None
        finally:
            self.close()

    def _train(self, stop: StopRequest, progress: Progress) -> None:
        note, epochs = self.runs[0].note, self.settings.epochs
        if epochs == 0:  # what it starts from is what it ends with
            self._save()
        with self.batches(self.calls.left(note.epoch, note.calls)) as batches:
            ready = self._placed(batches, stop)
            while note.epoch < epochs:
                self._epoch(ready, stop, progress)
                self._close_epoch(stop, progress)
                if note.epoch == epochs or note.epoch % self.settings.checkpoint_every == 0:
                    self._save()
        self._close_training(stop)

    # ---- one epoch -------------------------------------------------------------------------

    def _epoch(
        self, ready: Iterator[tuple[Rows, Any]], stop: StopRequest, progress: Progress
    ) -> None:
        """Makes what is left of its calls; StopNow after one that a stop was asked for in."""
        note = self.runs[0].note  # what is shown while an epoch goes on is the first run's
        calls = self.calls.of_epoch(note.epoch)
        # Alone, a process knows of its stop at once; of several, all learn of it by their call.
        alone = self.run_on.processes == 1
        # What a call saw is fetched while the next one runs. With emulated devices an un-blocked
        # queue of collectives aborts the process.
        lag = 0 if self.run_on.devices[0].platform == "cpu" else 1
        unseen: deque[tuple[Call, Any]] = deque()
        progress.start_epoch(note.epoch, note.rows, self.order.rows)
        while note.calls < len(calls):
            began, compiled = time.perf_counter(), note.seconds_compile
            call = calls[note.calls]
            unseen.append((call, self._make(call, *next(ready))))
            stopping = alone and stop.exit_code is not None
            keep = 0 if stopping or note.calls == len(calls) else lag
            while len(unseen) > keep or (unseen and self._agreed_stop):
                self._see(*unseen.popleft())
            passed = time.perf_counter() - began
            self._spend("seconds_train", passed - (note.seconds_compile - compiled))
            progress.update(note.rows, note.loss_sum, note.hit_sum)
            if stopping or self._agreed_stop:
                raise StopNow

    def _make(self, call: Call, rows: Rows, placed: Any) -> Any:
        """Makes a call's steps; what they saw, on the device."""
        compiled = self._compile(call.stage, rows)
        self._state, seen = compiled(self._state, self._inputs, placed)
        for run in self.runs:
            run.note.calls += 1
        return seen

    def _compile(self, stage: int, rows: Rows) -> Any:
        """The program of these many rows, of each kind once."""
        key = (stage, jax.tree.structure(rows), *(x.shape for x in jax.tree.leaves(rows)))
        if key not in self._compiled:
            began = time.perf_counter()
            method = self.stages[stage][1]
            self._compiled[key] = self.run_on.compile_steps(method, self._state, self._inputs, rows)
            self._spend("seconds_compile", time.perf_counter() - began)
        return self._compiled[key]

    def _see(self, call: Call, seen: Any) -> None:
        """Counts what a call saw into each run's note, and learns of a stop."""
        if self._seconds_to_first_step is None:
            jax.block_until_ready(seen)
            self._seconds_to_first_step = round(time.perf_counter() - self._began, 3)
        for run, mine in zip(self.runs, self.run_on.split_seen(seen), strict=True):
            run.see(call.first_step, call.steps, mine)
        if seen.stop is not None:
            self._agreed_stop = max(self._agreed_stop, int(np.max(seen.stop)))

    def _spend(self, what: str, seconds: float) -> None:
        """Time is all runs' together."""
        for run in self.runs:
            setattr(run.note, what, getattr(run.note, what) + seconds)

    @contextlib.contextmanager
    def batches(self, calls: list[tuple[int, int]]) -> Iterator[Iterator[Any]]:
        """The rows of these calls, of all runs as one."""
        with contextlib.ExitStack() as opened:
            each = [opened.enter_context(self.feed.training(run.order, calls)) for run in self.runs]
            yield map(self.run_on.join_rows, zip(*each, strict=True))

    def _placed(self, batches: Iterator[Rows], stop: StopRequest) -> Iterator[tuple[Rows, Any]]:
        """Each call's rows, on the host and as the call takes them.

        Streamed rows are sent one call ahead, so that a step never waits for its copy.
        """
        ahead = 0 if self.feed.most_steps is None else 1
        waiting: deque[tuple[Rows, Any]] = deque()
        while True:
            began = time.perf_counter()
            rows = next(batches, None)
            self._spend("seconds_waiting", time.perf_counter() - began)
            if rows is None:
                yield from waiting
                return
            waiting.append((rows, self.run_on.place(rows, stop.exit_code)))
            if len(waiting) > ahead:
                yield waiting.popleft()

    def _close_epoch(self, stop: StopRequest, progress: Progress) -> None:
        """Each run evaluates, where that is due, and writes its line."""
        before = [vars(run.note).copy() for run in self.runs]
        try:
            for run, state in self._each():
                run.close_epoch(state, stop, progress)
        except StopNow:
            # Closed for all or for none; lines written already go when the runs are resumed. In
            # place: `_train` and `_epoch` hold these notes.
            for run, values in zip(self.runs, before, strict=True):
                vars(run.note).update(values)
            raise

    def _close_training(self, stop: StopRequest) -> None:
        for run, state in self._each():
            run.close_training(state, stop)

    # ---- where it begins, and checkpoints ---------------------------------------------------

    def begin(self, progress: Progress) -> None:
        """From the newest checkpoint of all runs, or from the first step."""
        found = self._found(progress.warn)
        states = [run.begin(one, progress) for run, one in zip(self.runs, found, strict=True)]
        self._inputs = self.run_on.put_inputs(self.feed.inputs("train"))
        self._state = self.run_on.join(states)

    def _found(self, say: Any) -> list[Any]:
        """Of each run, its checkpoint of the newest step that all of them can read, or None."""
        if len(self.runs) == 1:
            (run,) = self.runs
            return [run.checkpoints.restore(run.initial, say, run.contradiction)]
        held = {run.folder.path: run.checkpoints.steps() for run in self.runs}
        for step in sorted(set.intersection(*map(set, held.values())), reverse=True):
            found = [
                run.checkpoints.read(step, run.initial, say, run.contradiction) for run in self.runs
            ]
            if all(one is not None for one in found):
                return found
        if any(held.values()):
            without = [str(path) for path, of_it in held.items() if not of_it]
            if not without:
                steps = ", ".join(f"{path}: {of_it}" for path, of_it in held.items())
                raise RunError(
                    f"no step has a checkpoint that can be read in all folders ({steps}): remove "
                    f"their checkpoints/ to start again with {flag('resume')}, or choose another "
                    f"{flag('out')}"
                )
            # A kill between their first saves.
            say(f"no checkpoint in {', '.join(without)}: all seeds start afresh")
        return [None for _ in self.runs]

    def _save(self) -> None:
        if len(self.runs) > 1:
            # No save begins before all runs' last is whole: what two folders keep overlaps.
            for run in self.runs:
                run.checkpoints.latest_step()
        for run, state in self._each():
            run.save(state)

    def close(self) -> None:
        for run in self.runs:
            run.close()

    def _each(self) -> list[tuple[Run, TrainState]]:
        """The runs, each with its plain state."""
        return list(zip(self.runs, self.run_on.split(self._state), strict=True))

    # ---- what is left to write, and what a step costs ----------------------------------------

    def reports(self, measure: bool, draw: Draw | None) -> list[dict[str, Any]]:
        """Writes what is left of the run folders; the cost is of one run's lone step."""
        cost = self._cost() if measure else (None, None, None)
        first = self._seconds_to_first_step
        return [run.report(state, cost, first, draw) for run, state in self._each()]

    def _cost(self) -> Cost:
        """(FLOPs of a step, of SGD's, milliseconds of a step); None where no step was made."""
        steps = self.settings.epochs * self.calls.steps_per_epoch
        if steps == 0:
            return None, None, None
        run_on, (run, state) = self.run_on.alone(), self._each()[0]
        inputs = (
            self._inputs if run_on is self.run_on else run_on.put_inputs(self.feed.inputs("train"))
        )
        with self.feed.training(run.order, [(0, 1)]) as batches:
            rows = next(batches)

        def of(method: Method | Rule, seconds: float) -> tuple[float, float]:
            return cost.lone_step(run_on, method, state, inputs, rows, run.order, seconds)

        # A staged rule's step costs the mean over the run of its stages' steps.
        starts = [min(start, steps) for start, _ in self.stages] + [steps]
        shares = np.diff(starts) / steps
        flops, step_ms = shares @ [of(stage, 3.0) for _, stage in self.stages]
        of_sgd, _ = of(rules.sgd(self.dataset.num_classes), 0.0)
        return float(flops), of_sgd, float(step_ms)
