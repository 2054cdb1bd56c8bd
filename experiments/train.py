"""The trainer: method- and data-agnostic. An entry point makes the parts and calls `fit`.

An epoch is a sequence of compiled calls of `steps_per_call` steps; the last, smaller batch is a
call of its own at its true size. A stop (SIGTERM, Ctrl-C, a deadline) is answered between calls:
the state is saved and the run ends with 143, 130 or 75; `resume` goes on from there, bitwise.
The test set is looked at each epoch, because the papers report its best epoch; it chooses
nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments import cost, folders, plots
from experiments.checkpoints import Checkpoints
from experiments.data import Dataset
from experiments.data.encoded import EncodedDataset
from experiments.errors import Diverged, RunError, Stopped
from experiments.evaluation import Hits
from experiments.methods import Method, Remembered, as_method
from experiments.objectives import Adversary, Loss
from experiments.parts import Parts, resolved, run_config
from experiments.progress import Progress
from experiments.settings import Note, Settings
from experiments.steps import Inputs, Rows, TrainState
from experiments.stopping import StopNow, StopRequest
from imbsam_jax import rules
from imbsam_jax.rules import Rule

Cost = tuple[float | None, float | None, float | None]


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

    Raises:
      RunError: bad settings, a folder in use; Diverged: a loss that is not finite.
      Stopped: asked to stop; the state is saved.
    """
    settings.check(least_epochs=1 if start is None else 0)
    settings = resolved(settings)
    parts = Parts(dataset, model_name, loss, settings, start, adversary)
    trainer = _Trainer(dataset, parts, method, settings)
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
            trainer.open(folder, config, preset)
            trainer.run(stop, progress)
            report = trainer.report()
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


class _Trainer:
    """One run: `open` its folder, then `run`, then `report`.

    Args:
      name: what its messages begin with, where there are several.
    """

    # Set by open, restore and the evaluation of the last epoch.
    folder: folders.RunFolder
    config: dict[str, Any]
    checkpoints: Checkpoints
    note: Note
    state: TrainState
    inputs: Inputs | None
    hits: Hits
    flipped: Hits
    first_step: float | None

    def __init__(
        self,
        dataset: Dataset | EncodedDataset,
        parts: Parts,
        method: Method | Rule,
        settings: Settings,
        name: str = "",
    ):
        self.dataset, self.settings, self.name = dataset, settings, name
        self.feed, self.order = parts.feed, parts.order
        self.run_on, self.evaluator = parts.run_on, parts.evaluator
        self.initial, self.schedule = parts.initial, parts.schedule
        self.steps_per_epoch = parts.steps_per_epoch
        self.stages = as_method(method).stages()
        if isinstance(method, Remembered):
            stats = method.with_memory(self.initial.params, self.initial.batch_stats)
            with_memory = self.initial.replace(batch_stats=stats)
            self.initial = self.evaluator.put_state(with_memory)
        self.agreed_stop = 0
        self._began, self.first_step = parts.began, None
        self._compiled: dict[Any, Any] = {}

    def open(self, folder: folders.RunFolder, config: dict[str, Any], preset: Any = None) -> None:
        self.folder, self.config = folder, {**config, "preset": preset}
        self.checkpoints = Checkpoints(folder.path / "checkpoints", config=config)

    def run(self, stop: StopRequest, progress: Progress) -> None:
        """Trains to the last epoch and evaluates; a stop saves, and raises Stopped."""
        settings = self.settings
        try:
            self.restore(progress)
            note = self.note
            try:
                if settings.epochs == 0:  # what it starts from is what it ends with
                    self.save()
                with self.batches(self._calls_from(note)) as batches:
                    ready = self._placed(batches, stop)
                    while note.epoch < settings.epochs:
                        self._epoch(ready, stop, progress)
                        self.after_epoch(stop, progress)
                        last = note.epoch == settings.epochs
                        if last or note.epoch % settings.checkpoint_every == 0:
                            self.save()
                self.after_training(stop)
            except StopNow:
                step = self.save()
                self.close()
                raise Stopped(
                    f"stopped at step {step}, epoch {note.epoch + 1}: saved. Continue with "
                    f"the same command and --resume",
                    stop.exit_code or self.agreed_stop or 1,
                ) from None
        finally:
            self.close()

    def restore(self, progress: Progress) -> None:
        found = self.checkpoints.restore(self.initial, progress.warn, self.contradiction)
        self.begin(found, progress)
        self.inputs = self.run_on.put_inputs(self.feed.inputs("train"))

    def begin(self, found: tuple[TrainState, dict[str, Any]] | None, progress: Progress) -> None:
        """From this checkpoint, or afresh where there is none; newer ones are set aside."""
        initial, self.note = self.initial, Note()
        if found is not None:
            initial, self.note = found[0], Note.read(found[1])
        self.checkpoints.set_aside_after(None if found is None else int(initial.step))
        if found is not None:
            progress.say(
                f"resuming {self.folder.path} after epoch {self.note.epoch}, call {self.note.calls}"
            )
        self.folder.keep_metrics(self.note.epoch, progress.warn)
        self.state = self.run_on.put_state(initial)

    def contradiction(self, state: TrainState, note: dict[str, Any]) -> str | None:
        """Why the note of a checkpoint cannot be of its state; None where it can."""
        try:
            read = Note.read(note)
        except RunError as error:
            return str(error)
        position = self._position(read) if read.epoch <= self.settings.epochs else None
        if position == int(state.step):
            return None
        return (
            f"its note is of epoch {read.epoch}, call {read.calls}, but its state of step "
            f"{int(state.step)}"
        )

    def close(self) -> None:
        self.checkpoints.close()

    def batches(
        self, calls: list[tuple[int, int]]
    ) -> contextlib.AbstractContextManager[Iterator[Rows]]:
        return self.feed.training(self.order, calls)

    # ---- one epoch -------------------------------------------------------------------------

    def _placed(self, batches: Iterator[Rows], stop: StopRequest) -> Iterator[tuple[Rows, Any]]:
        """Each call's rows, on the host and as the call takes them.

        Streamed rows are sent one call ahead, so that a step never waits for its copy.
        """
        ahead = 0 if self.feed.most_steps is None else 1
        waiting: deque[tuple[Rows, Any]] = deque()
        while True:
            began = time.perf_counter()
            rows = next(batches, None)
            self.note.seconds_waiting += time.perf_counter() - began
            if rows is None:
                yield from waiting
                return
            waiting.append((rows, self.run_on.place(rows, stop.exit_code)))
            if len(waiting) > ahead:
                yield waiting.popleft()

    def _epoch(
        self, ready: Iterator[tuple[Rows, Any]], stop: StopRequest, progress: Progress
    ) -> None:
        note, calls = self.note, self._calls(self.note.epoch)
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
            self.state, seen = call(self.state, self.inputs, placed)
            waiting.append((first_step, steps, seen))
            note.calls += 1
            stopping = alone and stop.exit_code is not None
            settle(0 if stopping or note.calls == len(calls) else lag)
            if self.agreed_stop:
                settle(0)
            passed = time.perf_counter() - began
            note.seconds_train += passed - (note.seconds_compile - compiled)
            progress.update(note.rows, note.loss_sum, note.hit_sum)
            if stopping or self.agreed_stop:
                raise StopNow

    def _see(self, first_step: int, steps: int, seen: Any) -> None:
        """Counts what a call of some steps saw into the note."""
        if self.first_step is None:
            self.first_step = round(time.perf_counter() - self._began, 3)
        note = self.note
        losses, accuracies, real = (
            np.asarray(x, np.float64) for x in (seen.loss, seen.accuracy, seen.real)
        )
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            last = self.checkpoints.latest_step()
            good = (
                "no checkpoint was saved yet"
                if last is None
                else f"the last good checkpoint is step {last}"
            )
            raise Diverged(
                f"{self.name}the loss is {losses[bad[0]]} at step {first_step + bad[0]} (epoch "
                f"{note.epoch + 1}): {good}; lower --lr or --rho"
            )
        meant = self.order.real(first_step)  # all steps of a call have as many
        rows = np.rint(real * self.order.padded(meant))
        note.loss_sum += float(rows @ losses)
        note.hit_sum += float(rows @ accuracies)
        note.rows += int(rows.sum())
        note.skipped += int(meant * steps - rows.sum())
        if note.skipped > self.settings.max_corrupt * self.order.rows:
            raise RunError(
                f"{note.skipped} training images of epoch {note.epoch + 1} could not be read, more "
                f"than the share --max-corrupt {self.settings.max_corrupt:g} of "
                f"{self.order.rows} allows"
            )
        if seen.stop is not None:
            self.agreed_stop = max(self.agreed_stop, int(np.max(seen.stop)))

    def _calls(self, epoch: int) -> list[tuple[int, int, int]]:
        """(first step, steps, stage) of each call of an epoch; none straddles two stages."""
        most = min(self.settings.steps_per_call, self.feed.most_steps or sys.maxsize)
        first = epoch * self.steps_per_epoch
        full = first + self.order.rows // self.settings.batch_size
        calls, step = [], first
        while step < full:
            stage, until = self._stage(step)
            steps = min(most, full - step, until - step)
            calls.append((step, steps, stage))
            step += steps
        if full < first + self.steps_per_epoch:
            calls.append((full, 1, self._stage(full)[0]))
        return calls

    def _calls_from(self, note: Note) -> list[tuple[int, int]]:
        """(first step, steps) of every call that is left to make."""
        left = [c for epoch in range(note.epoch, self.settings.epochs) for c in self._calls(epoch)]
        return [(first, steps) for first, steps, _ in left[note.calls :]]

    def _stage(self, step: int) -> tuple[int, int]:
        """(which stage the step is in, first step of the next)."""
        starts = [start for start, _ in self.stages]
        stage = sum(start <= step for start in starts) - 1
        return stage, starts[stage + 1] if stage + 1 < len(starts) else sys.maxsize

    def _position(self, note: Note | None = None) -> int:
        note = note or self.note
        calls = self._calls(note.epoch)[: note.calls] if note.epoch < self.settings.epochs else []
        return note.epoch * self.steps_per_epoch + sum(steps for _, steps, _ in calls)

    def _compile(self, stage: int, rows: Rows) -> Any:
        key = (stage, jax.tree.structure(rows), *(x.shape for x in jax.tree.leaves(rows)))
        if key not in self._compiled:
            began = time.perf_counter()
            method = self.stages[stage][1]
            self._compiled[key] = self.run_on.compile_steps(method, self.state, self.inputs, rows)
            self.note.seconds_compile += time.perf_counter() - began
        return self._compiled[key]

    def save(self) -> int:
        """Begins to save, and returns the step."""
        step = self._position()
        plain = self.run_on.get_state(self.state)
        if not bool(all_finite((plain.params, plain.batch_stats))):
            raise Diverged(
                f"{self.name}the parameters are not finite at step {step}: not saved; the last "
                f"good checkpoint is step {self.checkpoints.latest_step()}; lower --lr or --rho"
            )
        self.checkpoints.save(step, plain, dataclasses.asdict(self.note))
        return step

    # ---- what is seen ----------------------------------------------------------------------

    def after_epoch(self, stop: StopRequest, progress: Progress) -> None:
        """Evaluates where due, then closes the epoch in the note. A stop leaves the note open."""
        settings, note, accuracies = self.settings, self.note, self.evaluator.accuracies
        epoch = note.epoch + 1
        plain = self.run_on.get_state(self.state)
        step = epoch * self.steps_per_epoch
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "lr": float(self.schedule(step - 1)),
            "train_loss": note.loss_sum / max(note.rows, 1),
            "train_accuracy": 100 * note.hit_sum / max(note.rows, 1),
            "seconds_train": note.seconds_train,
            "seconds_waiting": note.seconds_waiting,
            "skipped": note.skipped,
        }
        best, best_val = note.best, note.best_val
        if epoch % settings.eval_every == 0 or epoch == settings.epochs:
            hits = self.hits = self.evaluator.hits(plain, "test", stop)
            test = accuracies(hits)
            line |= {"test_loss": hits.loss, **{f"test_{k}": v for k, v in test.items()}}
            if best is None or test["all"] > best["all"]:
                flipped = accuracies(self.evaluator.hits(plain, "test", stop, flip=True))
                best = {**test, "epoch": epoch, "flip": flipped}
            if self.dataset.val_labels is not None:
                val = accuracies(self.evaluator.hits(plain, "val", stop))
                line |= {f"val_{k}": v for k, v in val.items()}
                if best_val is None or val["all"] > best_val["val"]["all"]:
                    best_val = {**test, "epoch": epoch, "val": val}
        note.best, note.best_val = best, best_val
        note.epoch, note.calls = epoch, 0
        note.loss_sum, note.hit_sum, note.rows, note.skipped = 0.0, 0.0, 0, 0
        self.folder.append_metrics(line)
        progress.epoch_done(line, self.name)

    def after_training(self, stop: StopRequest) -> None:
        """Evaluates the last state, as far as that was not done."""
        note, plain = self.note, self.run_on.get_state(self.state)
        if not hasattr(self, "hits"):  # a run resumed after its last epoch, or without any
            self.hits = self.evaluator.hits(plain, "test", stop)
        self.flipped = self.evaluator.hits(plain, "test", stop, flip=True)
        if self.settings.epochs == 0 and self.dataset.val_labels is not None:
            val = self.evaluator.accuracies(self.evaluator.hits(plain, "val", stop))
            test = self.evaluator.accuracies(self.hits)
            note.best_val = {**test, "epoch": 0, "val": val}

    # ---- the report ------------------------------------------------------------------------

    def report(self, cost: Cost | None = None) -> dict[str, Any]:
        """Writes what is left of the run folder; a cost measured already is not measured again."""
        note, hits, flipped = self.note, self.hits, self.flipped
        plain, accuracies = self.run_on.get_state(self.state), self.evaluator.accuracies
        flops, of_sgd, step_ms = cost or self.step_cost()
        decided = dataclasses.asdict(self.settings)
        described = {k: v for k, v in self.config.items() if k not in decided}
        best = note.best or {**accuracies(hits), "flip": accuracies(flipped), "epoch": 0}
        report = {
            **described,
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            **accuracies(hits),
            "last_epoch_flip": accuracies(flipped),
            "best_epoch": {k: v for k, v in best.items() if k != "flip"},
            "best_epoch_flip": {**best.get("flip", {}), "epoch": best.get("epoch")},
            "best_val_epoch": note.best_val,
            "thresholds": {
                "many_above": self.dataset.many_above,
                "few_below": self.dataset.few_below,
            },
            "classifier": self.settings.classifier,
            "mixup": self.settings.mixup,
            "examples": self.settings.examples,
            "settings": dataclasses.asdict(self.settings),
            "train_examples": self.order.rows,
            "params_sha256": params_sha256(plain.variables()["params"]),
            "skipped_test_images": len(self.dataset.test_labels) - int(hits.total.sum()),
            "seconds_train": round(note.seconds_train, 3),
            "seconds_waiting": round(note.seconds_waiting, 3),
            "seconds_compile": round(note.seconds_compile, 3),
            # Of the last process, from the data set in memory; None where it made no step.
            "seconds_to_first_step": self.first_step,
            "step_ms": None if step_ms is None else round(step_ms, 3),
            "flops_per_step": flops,
            "flops_ratio_to_sgd": None if flops is None or of_sgd is None else flops / of_sgd,
            "command": folders.command_line(),
            **folders.environment(),
        }
        if self.folder.owned:
            self._write(report)
        return report

    def step_cost(self) -> Cost:
        """(FLOPs of a step, of SGD's, milliseconds of a step); None where no step was made."""
        plain = self.run_on.get_state(self.state)
        steps = self.settings.epochs * self.steps_per_epoch
        if steps == 0:
            return None, None, None
        with self.feed.training(self.order, [(0, 1)]) as batches:
            rows = next(batches)

        def of(method: Method | Rule, seconds: float) -> tuple[float, float]:
            return cost.lone_step(
                self.run_on, method, plain, self.inputs, rows, self.order, seconds
            )

        # A staged rule's step costs the mean over the run of its stages' steps.
        starts = [min(start, steps) for start, _ in self.stages] + [steps]
        shares = np.diff(starts) / steps
        flops, step_ms = shares @ [of(stage, 3.0) for _, stage in self.stages]
        plain = plain.replace(batch_stats=Remembered.without_memory(plain.batch_stats))
        of_sgd, _ = of(rules.sgd(self.dataset.num_classes), 0.0)
        return float(flops), of_sgd, float(step_ms)

    def _write(self, report: dict[str, Any]) -> None:
        folder, hits, counts = self.folder, self.hits, self.dataset.class_counts()
        folder.write_per_class(counts, hits.correct, hits.total, self.dataset.class_names)
        lines = folder.keep_metrics(self.settings.epochs)
        with folders.writing(folder.path):
            self._draw(f"{report['rule']} on {report['dataset']}, {report['model']}", lines)
        # Last: a report means a whole run folder.
        folders.write_json(folder.path / "report.json", report)

    def _draw(self, title: str, lines: list[dict[str, Any]]) -> None:
        at, hits, counts = self.folder.path, self.hits, self.dataset.class_counts()
        shots = (self.dataset.many_above, self.dataset.few_below)
        plots.per_class(at / "per_class.png", title, counts, hits.correct, hits.total, shots)
        plots.learning_curves(at / "curves.png", title, lines, shots)


def params_sha256(params: Any) -> str:
    """SHA-256 of all parameters' bytes: equal only where two runs ended bitwise the same."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
