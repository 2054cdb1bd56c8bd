"""The trainer: of one run, or of several that make the same steps; method- and data-agnostic.

An epoch is a sequence of compiled calls of `steps_per_call` steps; the last, smaller batch is a
call of its own at its true size. A stop (SIGTERM, Ctrl-C, a deadline) is answered between calls:
the state is saved and the run ends with 143, 130 or 75; `resume` goes on from there, bitwise.
The test set is looked at each epoch, because the papers report its best epoch; it chooses
nothing.

Of several seeds in one program every one keeps what a lone run has: its folder, its initial
parameters, its order of rows, its randomness. Alone on its device it ends bitwise where a lone run
on one device ends (split_norm: to rounding); else numbers agree to rounding, so config.json says
which seeds were together. They are saved one after the other: a stop leaves all folders at one
step, and after a kill the newest step that all of them hold is gone on from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.data import Dataset
from experiments.data.encoded import EncodedDataset
from experiments.host import folders
from experiments.host.errors import RunError, Stopped
from experiments.host.progress import Progress
from experiments.host.stopping import StopNow, StopRequest
from experiments.models import CONVOLUTIONAL
from experiments.run import cost
from experiments.run.calls import Calls
from experiments.run.one import Cost, Draw, Run
from experiments.run.parts import Parts, resolved, run_config
from experiments.run.settings import Settings
from experiments.step.execution import Jit
from experiments.step.methods import Method, as_method
from experiments.step.objectives import Adversary, Loss
from experiments.step.seeds import Seeds
from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows
from imbsam_jax import rules
from imbsam_jax.rules import Rule


def fit(
    dataset: Dataset | EncodedDataset,
    model_name: str,
    method: Method | Rule,
    loss: Loss,
    settings: Settings,
    out: str | Path,
    *,
    description: dict[str, Any],
    start: Any = None,
    adversary: Adversary | None = None,
    resume: bool = False,
    deadline: float | None = None,
    quiet: bool = False,
    measure: bool = False,
    draw: Draw | None = None,
) -> dict[str, Any]:
    """Trains one run into its folder and returns its report.

    Args:
      dataset: training and test images, and perhaps held-out ones.
      model_name: a name that `create_model` knows.
      method: how the gradient is taken.
      loss: (logits, labels, step) -> float[B].
      settings: how to train.
      out: the run folder.
      description: the report's fields "experiment", "rule", "rule_args", "loss",
        "imbalance_factor" and whatever else names the run; also kept in config.json.
      start: {"params", "batch_stats"} to start from instead of fresh ones; epochs may then be 0.
      adversary: see Objective.
      resume: continue the run in `out` where there is one.
      deadline: time.monotonic() after which to stop as if by SIGTERM, with exit code 75.
      measure: compile a step and SGD's alone, for the report's FLOPs and milliseconds; else None.
      draw: makes the folder's pictures, None none.

    Raises:
      RunError: bad settings, a folder in use; Diverged: a loss that is not finite.
      Stopped: asked to stop; the state is saved.
    """
    settings.check(least_epochs=1 if start is None else 0)
    settings = resolved(settings)
    parts = Parts(dataset, model_name, loss, settings, start, adversary)
    trainer = Trainer(dataset, method, [parts], [settings], parts.run_on)
    config, preset = run_config(dataset, model_name, settings, description)
    first = jax.process_index() == 0
    folder = folders.RunFolder(out, config, resume, owner=first)
    quiet = quiet or not first
    try:
        if jax.process_count() > 1:  # the others begin once the first owns the folder
            multihost_utils.sync_global_devices("run folder")
        finished = folder.finished(config)
        if finished is not None:
            return finished
        with StopRequest(deadline) as stop, Progress(settings.epochs, quiet) as progress:
            trainer.runs[0].open(folder, config, preset)
            trainer.train(stop, progress)
            (report,) = trainer.reports(measure, draw)
            code = stop.signalled
            if jax.process_count() > 1:
                code = int(np.max(multihost_utils.process_allgather(np.int32(code))))
            if code:  # it came too late to stop this run, but not what may follow
                raise Stopped(f"{folder.path} is finished; stopped before anything else", code)
            return report
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"a step across processes failed, as it does where one of them has ended ({reason}): "
            "start all of them again with --resume"
        ) from error
    finally:
        folder.close()


def fit_together(
    dataset: Dataset,
    model_name: str,
    method: Method | Rule,
    loss: Loss,
    settings: Settings,
    outs: Mapping[int, Path],
    *,
    description: dict[str, Any],
    starts: Mapping[int, Any] | None = None,
    resume: bool = False,
    deadline: float | None = None,
    quiet: bool = False,
    measure: bool = False,
    draw: Draw | None = None,
) -> list[dict[str, Any]]:
    """Trains one run of each seed in one program, shared among the devices; their reports.

    In the reports "together" lists the seeds, and seconds_train, seconds_waiting and
    seconds_compile are those of all of them; what a step costs is that of a lone one of one seed.

    Args:
      settings: of all; their seed is not used.
      outs: the run folder of each seed.
      starts: of each seed, as `start` of `fit`.

    The rest is as in `fit`.

    Raises:
      RunError: as `fit`; what cannot be trained together; folders that do not go on from one step.
      Stopped: asked to stop; the states of all seeds are saved, at one step.
    """
    settings.check()
    settings, seeds = resolved(settings), list(outs)
    check_together(dataset, settings, seeds)
    each = [dataclasses.replace(settings, seed=seed) for seed in seeds]
    trainer = several(dataset, model_name, method, loss, each, starts or {})
    configs = [run_config(dataset, model_name, mine, description) for mine in each]
    for seed, (config, _) in zip(seeds, configs, strict=True):
        config["together"] = seeds
        folders.RunFolder.check(outs[seed], config, resume)  # all, before any is written
    with contextlib.ExitStack() as opened:
        for run, seed, (config, preset) in zip(trainer.runs, seeds, configs, strict=True):
            folder = folders.RunFolder(outs[seed], config, resume)
            opened.callback(folder.close)
            run.open(folder, config, preset)
            opened.callback(run.close)
        finished = [
            run.folder.finished(config)
            for run, (config, _) in zip(trainer.runs, configs, strict=True)
        ]
        whole = [report for report in finished if report is not None]
        if len(whole) == len(finished):
            return whole
        stop = opened.enter_context(StopRequest(deadline))
        progress = opened.enter_context(Progress(settings.epochs, quiet))
        trainer.train(stop, progress)
        reports = trainer.reports(measure, draw)
        if stop.signalled:  # too late to stop these runs, but not what may follow
            raise Stopped("all seeds are finished; stopped before anything else", stop.signalled)
        return reports


def several(
    dataset: Dataset,
    model_name: str,
    method: Method | Rule,
    loss: Loss,
    settings: list[Settings],
    starts: Mapping[int, Any],
) -> Trainer:
    """The trainer of one run of each settings, which differ in their seed alone."""
    parts = [
        Parts(dataset, model_name, loss, mine, starts.get(mine.seed), whole_batches=True)
        for mine in settings
    ]
    # Model and optimizer are part of a state's structure: by one, all states are one program's.
    structure = jax.tree.structure(parts[0].initial)
    for part in parts:
        part.initial = jax.tree.unflatten(structure, jax.tree.leaves(part.initial))
        part.feed, part.evaluator = parts[0].feed, parts[0].evaluator
    # Of several seeds at once convolutions would be grouped ones, which XLA:CPU runs slowly.
    on_cpu = parts[0].run_on.devices[0].platform == "cpu"
    run_on = Seeds([part.run_on for part in parts], model_name in CONVOLUTIONAL and on_cpu)
    return Trainer(dataset, method, parts, settings, run_on)


def check_together(dataset: Any, settings: Settings, seeds: list[int]) -> None:
    """Refuses what cannot be trained together, before anything is written."""
    refused = {
        f"--together trains several seeds, and there is one, {seeds}: use --seeds or "
        "--num-seeds, or leave it out": len(seeds) < 2,
        "--together maps plain jit over seeds: use --parallel jit": settings.parallel != "jit",
        f"--together gives each device the same number of seeds, but {len(seeds)} seeds cannot be "
        f"divided among {settings.devices}: leave --devices out": len(seeds) % settings.devices,
        "--together trains in one process: leave it out": jax.process_count() > 1,
        "--together needs the data set on the device, but this one is streamed: leave it "
        "out": not isinstance(dataset, Dataset),
        f"--together with --examples {settings.examples} would compute all sizes of buffers for "
        "every batch: use --sampling stratified, which has one, or leave --together "
        "out": settings.examples != "dependent" and settings.sampling != "stratified",
    }
    for message, cannot in refused.items():
        if cannot:
            raise RunError(message)


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
        self.stages = as_method(method).stages()
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
        self._agreed_stop = 0
        self._began: float = first.began
        self._first_step: float | None = None
        self._compiled: dict[Any, Any] = {}
        self._state: Any = None
        self._inputs: Inputs | None = None

    def train(self, stop: StopRequest, progress: Progress) -> None:
        """Trains to the last epoch and evaluates; a stop saves, and raises Stopped."""
        settings, first = self.settings, self.runs[0]
        try:
            self.begin(progress)
            note = first.note
            try:
                if settings.epochs == 0:  # what it starts from is what it ends with
                    self._save()
                with self.batches(self.calls.left(note.epoch, note.calls)) as batches:
                    ready = self._placed(batches, stop)
                    while note.epoch < settings.epochs:
                        self._epoch(ready, stop, progress)
                        self._close_epoch(stop, progress)
                        last = note.epoch == settings.epochs
                        if last or note.epoch % settings.checkpoint_every == 0:
                            self._save()
                self._close_training(stop)
            except StopNow:
                self._save()
                step = first.step
                self.close()
                raise Stopped(
                    f"stopped at step {step}, epoch {note.epoch + 1}: saved. Continue with "
                    f"the same command and --resume",
                    stop.exit_code or self._agreed_stop or 1,
                ) from None
        finally:
            self.close()

    def reports(self, measure: bool, draw: Draw | None) -> list[dict[str, Any]]:
        """Writes what is left of the run folders; the cost is of one run's lone step."""
        cost = self._cost() if measure else (None, None, None)
        return [run.report(state, cost, self._first_step, draw) for run, state in self._each()]

    # ---- begin, save -----------------------------------------------------------------------

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
        without = [str(path) for path, of_it in held.items() if not of_it]
        if without and any(held.values()):  # a kill between their first saves
            say(f"no checkpoint in {', '.join(without)}: all seeds start afresh")
        elif any(held.values()):
            steps = ", ".join(f"{path}: {of_it or 'none'}" for path, of_it in held.items())
            raise RunError(
                f"no step has a checkpoint that can be read in all folders ({steps}): remove their "
                "checkpoints/ to start again with --resume, or choose another --out"
            )
        return [None] * len(self.runs)

    def _each(self) -> list[tuple[Run, TrainState]]:
        """The runs, each with its plain state."""
        return list(zip(self.runs, self.run_on.split(self._state), strict=True))

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

    # ---- one epoch -------------------------------------------------------------------------

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

    def _epoch(
        self, ready: Iterator[tuple[Rows, Any]], stop: StopRequest, progress: Progress
    ) -> None:
        note = self.runs[0].note  # what is shown while an epoch goes on is the first run's
        calls = self.calls.of_epoch(note.epoch)
        alone = self.run_on.processes == 1
        # With emulated devices an un-blocked queue of collectives aborts the process.
        lag = 0 if self.run_on.devices[0].platform == "cpu" else 1
        waiting: list[tuple[int, int, Any]] = []
        progress.start_epoch(note.epoch, note.rows, self.order.rows)

        def settle(keep: int) -> None:
            while len(waiting) > keep:
                self._see(*waiting.pop(0))

        while note.calls < len(calls):
            first_step, steps, stage = calls[note.calls]
            began, compiled = time.perf_counter(), note.seconds_compile
            rows, placed = next(ready)
            call = self._compile(stage, rows)
            self._state, seen = call(self._state, self._inputs, placed)
            waiting.append((first_step, steps, seen))
            for run in self.runs:
                run.note.calls += 1
            stopping = alone and stop.exit_code is not None
            settle(0 if stopping or note.calls == len(calls) else lag)
            if self._agreed_stop:
                settle(0)
            passed = time.perf_counter() - began
            self._spend("seconds_train", passed - (note.seconds_compile - compiled))
            progress.update(note.rows, note.loss_sum, note.hit_sum)
            if stopping or self._agreed_stop:
                raise StopNow

    def _see(self, first_step: int, steps: int, seen: Any) -> None:
        if self._first_step is None:
            jax.block_until_ready(seen)
            self._first_step = round(time.perf_counter() - self._began, 3)
        for run, mine in zip(self.runs, self.run_on.split_seen(seen), strict=True):
            run.see(first_step, steps, mine)
        stop = getattr(seen, "stop", None)
        if stop is not None:
            self._agreed_stop = max(self._agreed_stop, int(np.max(stop)))

    def _spend(self, what: str, seconds: float) -> None:
        """Time is all runs' together."""
        for run in self.runs:
            setattr(run.note, what, getattr(run.note, what) + seconds)

    def _compile(self, stage: int, rows: Rows) -> Any:
        key = (stage, jax.tree.structure(rows), *(x.shape for x in jax.tree.leaves(rows)))
        if key not in self._compiled:
            began = time.perf_counter()
            method = self.stages[stage][1]
            self._compiled[key] = self.run_on.compile_steps(method, self._state, self._inputs, rows)
            self._spend("seconds_compile", time.perf_counter() - began)
        return self._compiled[key]

    def _close_epoch(self, stop: StopRequest, progress: Progress) -> None:
        before = [vars(run.note).copy() for run in self.runs]
        try:
            for run, state in self._each():
                run.close_epoch(state, stop, progress)
        except StopNow:
            # Closed for all or for none; lines written already go when the runs are resumed.
            for run, note in zip(self.runs, before, strict=True):
                vars(run.note).update(note)
            raise

    def _close_training(self, stop: StopRequest) -> None:
        for run, state in self._each():
            run.close_training(state, stop)

    # ---- what a step costs -----------------------------------------------------------------

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
