"""The trainer: method- and data-agnostic. An entry point makes the parts and calls `fit`.

An epoch is a sequence of compiled calls of `steps_per_call` steps; the last, smaller batch is a
call of its own at its true size. A stop (SIGTERM, Ctrl-C, a deadline) is answered between calls:
the state is saved and the run ends with 143, 130 or 75; `resume` goes on from there, bitwise.
The test set is looked at each epoch, because the papers report its best epoch; it chooses
nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cost, folders, plots
from experiments.checkpoints import Checkpoints
from experiments.data import Dataset
from experiments.errors import RunError, Stopped
from experiments.evaluation import Evaluator, Hits
from experiments.execution import EXECUTIONS, Jit, use_devices
from experiments.models import create_model
from experiments.progress import Progress
from experiments.steps import (
    Inputs,
    Loss,
    TrainState,
    create_state,
    crop_and_flip,
    learning_rate,
    normalise,
    optimizer,
)
from experiments.stopping import StopNow, StopRequest
from imbsam_jax import rules
from imbsam_jax.rules import Rule


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train; all of it decides the result, except eval_batch and checkpoint_every."""

    epochs: int = 200
    batch_size: int = 64
    lr: float = 0.01
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-3
    seed: int = 0
    precision: str = "float32"
    parallel: str = "jit"
    devices: int = 1
    steps_per_call: int = 0  # 0: one on a CPU, where scanned convolutions are slow, else 50
    augment: bool = True
    eval_every: int = 1
    eval_batch: int = 500
    checkpoint_every: int = 10

    def check(self) -> None:
        """Refuses settings with which no step could be made."""
        for name in ("epochs", "batch_size", "eval_every", "eval_batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise RunError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RunError(f"--lr must be finite and positive, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise RunError(f"--weight-decay must be finite and at least 0, got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise RunError(f"--momentum must lie in [0, 1), got {self.momentum}")
        if self.seed < 0:
            raise RunError(f"--seed must be at least 0, got {self.seed}")
        if self.steps_per_call < 0:
            raise RunError(f"--steps-per-call must be at least 0, got {self.steps_per_call}")


@dataclasses.dataclass
class Note:
    """What a checkpoint holds beside the state: where the run is and what it has seen."""

    epoch: int = 0  # whole epochs done
    calls: int = 0  # calls of the next epoch done
    loss_sum: float = 0.0  # over the rows of the epoch so far
    hit_sum: float = 0.0
    rows: int = 0
    seconds_train: float = 0.0
    seconds_compile: float = 0.0
    best: dict[str, Any] | None = None
    best_val: dict[str, Any] | None = None


def fit(
    dataset: Dataset,
    model_name: str,
    rule: Rule,
    loss: Loss,
    settings: Settings,
    out: str | Path,
    *,
    description: dict[str, Any],
    resume: bool = False,
    deadline: float | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains one run into its folder and returns its report.

    Args:
      dataset: training and test images, and perhaps held-out ones.
      model_name: a name that `create_model` knows.
      rule: how the gradient is taken.
      loss: (logits, labels) -> float[B].
      settings: how to train.
      out: the run folder.
      description: the report's fields "experiment", "rule", "rule_args", "loss",
        "imbalance_factor" and whatever else names the run; also kept in config.json.
      resume: continue the run in `out` where there is one.
      deadline: time.monotonic() after which to stop as if by SIGTERM, with exit code 75.

    Raises:
      RunError: bad settings, a folder in use, a loss that is not finite.
      Stopped: asked to stop; the state is saved.
    """
    settings.check()
    if settings.steps_per_call == 0:
        platform = use_devices(settings.devices)[0].platform
        settings = dataclasses.replace(settings, steps_per_call=1 if platform == "cpu" else 50)
    trainer = _Trainer(dataset, model_name, rule, loss, settings)
    decides = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _FREE}
    config = {
        **description,
        "dataset": dataset.name,
        "source": dataset.source,
        "model": model_name,
        **decides,
        "class_counts_sha256": class_counts_sha256(dataset.class_counts()),
    }
    folder = folders.RunFolder(out, config, resume)
    try:
        finished = folder.path / "report.json"
        if finished.exists():
            return folders.read_json(finished)
        with StopRequest(deadline) as stop, Progress(settings.epochs, quiet) as progress:
            return trainer.run(folder, config, stop, progress)
    finally:
        folder.close()


_FREE = ("checkpoint_every", "eval_batch")


def class_counts_sha256(counts: np.ndarray) -> str:
    """SHA-256 of the counts as little-endian int64: two runs with equal ones had equal tails."""
    return hashlib.sha256(np.ascontiguousarray(counts, "<i8").tobytes()).hexdigest()


class Parts:
    """What a run is made of, from its data set, model, loss and settings; nothing written yet.

    Attributes:
      run_on: where training steps run.
      initial: the state before the first step, decided by the seed.
      evaluator: how states are evaluated, always under jit over the same devices.
      schedule: learning rate by step.
      steps_per_epoch: the partial last batch included.
    """

    def __init__(self, dataset: Dataset, model_name: str, loss: Loss, settings: Settings):
        settings.check()
        devices = use_devices(settings.devices)
        init_key, step_key = jax.random.split(jax.random.key(settings.seed))

        def prepare(
            images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array
        ) -> jax.Array:
            if settings.augment:
                images = crop_and_flip(images, positions, batch_size, key)
            return normalise(images, dataset.mean, dataset.std)

        self.run_on = EXECUTIONS[settings.parallel](devices, loss, prepare, step_key)
        self.steps_per_epoch = -(-len(dataset.train_labels) // settings.batch_size)
        dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[settings.precision]
        try:
            model = create_model(
                model_name, dataset.num_classes, dtype=dtype, axis_name=self.run_on.axis_name
            )
            self.schedule = learning_rate(
                settings.schedule, settings.lr, settings.epochs, self.steps_per_epoch
            )
        except ValueError as error:
            raise RunError(str(error)) from error
        tx = optimizer(self.schedule, settings.momentum, settings.weight_decay)
        example = jnp.zeros((1, *dataset.train_images.shape[1:]), jnp.float32)
        self.initial: TrainState = jax.jit(lambda key: create_state(model, tx, example, key))(
            init_key
        )
        evaluate_on = Jit(devices, loss, prepare, step_key)
        self.evaluator = Evaluator(dataset, loss, evaluate_on, settings.eval_batch)


class _Trainer:
    def __init__(
        self, dataset: Dataset, model_name: str, rule: Rule, loss: Loss, settings: Settings
    ):
        parts = Parts(dataset, model_name, loss, settings)
        self.dataset, self.settings = dataset, settings
        self.run_on, self.evaluator = parts.run_on, parts.evaluator
        self.initial, self.schedule = parts.initial, parts.schedule
        self.steps_per_epoch = parts.steps_per_epoch
        self.rows = len(dataset.train_labels)
        self.stages = stages(rule)
        self._compiled: dict[tuple[int, int, int], Any] = {}

    def run(
        self,
        folder: folders.RunFolder,
        config: dict[str, Any],
        stop: StopRequest,
        progress: Progress,
    ) -> dict[str, Any]:
        settings = self.settings
        checkpoints = Checkpoints(folder.path / "checkpoints")
        try:
            found = checkpoints.restore(self.initial, say=progress.say)
            initial, note = self.initial, Note()
            if found is not None:
                initial, note = found[0], Note(**found[1])
                progress.say(f"resuming {folder.path} after epoch {note.epoch}, call {note.calls}")
            folder.keep_metrics(note.epoch)
            self.inputs = self.run_on.put_inputs(
                Inputs(self.dataset.train_images, self.dataset.train_labels)
            )
            self.state = self.run_on.put_state(initial)
            hits = None
            try:
                while note.epoch < settings.epochs:
                    self._epoch(note, stop, progress, checkpoints)
                    hits = self._after_epoch(note, folder, stop, progress)
                    last = note.epoch == settings.epochs
                    if last or note.epoch % settings.checkpoint_every == 0:
                        self._save(checkpoints, note)
                plain = self.run_on.get_state(self.state)
                if hits is None:  # a run resumed after its last epoch
                    hits = self.evaluator.hits(plain, "test", stop)
                flipped = self.evaluator.hits(plain, "test", stop, flip=True)
            except StopNow:
                step = self._save(checkpoints, note)
                checkpoints.close()
                raise Stopped(
                    f"stopped at step {step}, epoch {note.epoch + 1}: saved. Continue with "
                    f"the same command and --resume",
                    stop.exit_code or 1,
                ) from None
        finally:
            checkpoints.close()
        report = self._report(config, note, plain, hits, flipped)
        self._write(folder, report, hits)
        return report

    # ---- one epoch -------------------------------------------------------------------------

    def _epoch(
        self, note: Note, stop: StopRequest, progress: Progress, checkpoints: Checkpoints
    ) -> None:
        settings = self.settings
        order = np.random.default_rng([settings.seed, note.epoch]).permutation(self.rows)
        order = order.astype(np.int32)
        calls = self._calls(note.epoch)
        # With emulated devices an un-blocked queue of collectives aborts the process.
        lag = 0 if self.run_on.devices[0].platform == "cpu" else 1
        waiting: list[tuple[int, int, Any]] = []
        progress.start_epoch(note.epoch, note.rows, self.rows)

        def settle(keep: int) -> None:
            while len(waiting) > keep:
                first_step, rows, seen = waiting.pop(0)
                losses, accuracies = np.asarray(seen.loss), np.asarray(seen.accuracy)
                bad = np.flatnonzero(~np.isfinite(losses))
                if bad.size:
                    last = checkpoints.latest_step()
                    good = (
                        "no checkpoint was saved yet"
                        if last is None
                        else f"the last good checkpoint is step {last}"
                    )
                    raise RunError(
                        f"the loss is {losses[bad[0]]} at step {first_step + bad[0]} (epoch "
                        f"{note.epoch + 1}): {good}; lower --lr or --rho"
                    )
                note.loss_sum += rows * float(losses.sum(dtype=np.float64))
                note.hit_sum += rows * float(accuracies.sum(dtype=np.float64))
                note.rows += rows * len(losses)

        while note.calls < len(calls):
            start, steps, rows, stage = calls[note.calls]
            index = order[start : start + steps * rows].reshape(steps, rows)
            call = self._compile(stage, index, note)
            began = time.perf_counter()
            self.state, seen = call(self.state, self.inputs, self.run_on.place(index))
            waiting.append(
                (note.epoch * self.steps_per_epoch + start // settings.batch_size, rows, seen)
            )
            note.calls += 1
            stopping = stop.exit_code is not None
            settle(0 if stopping or note.calls == len(calls) else lag)
            note.seconds_train += time.perf_counter() - began
            progress.update(note.rows, note.loss_sum, note.hit_sum)
            if stopping:
                raise StopNow

    def _calls(self, epoch: int) -> list[tuple[int, int, int, int]]:
        """(first row, steps, rows of a step, stage) of each call; none straddles two stages."""
        batch, most = self.settings.batch_size, self.settings.steps_per_call
        full, rest = divmod(self.rows, batch)
        first = epoch * self.steps_per_epoch
        calls, step = [], 0
        while step < full:
            steps = min(most, full - step)
            stage, until = self._stage(first + step)
            steps = min(steps, until - (first + step))
            calls.append((step * batch, steps, batch, stage))
            step += steps
        if rest:
            calls.append((full * batch, 1, rest, self._stage(first + full)[0]))
        return calls

    def _stage(self, step: int) -> tuple[int, int]:
        """(which stage the step is in, first step of the next)."""
        starts = [start for start, _ in self.stages]
        stage = sum(start <= step for start in starts) - 1
        return stage, starts[stage + 1] if stage + 1 < len(starts) else sys.maxsize

    def _position(self, note: Note) -> int:
        calls = self._calls(note.epoch)[: note.calls] if note.epoch < self.settings.epochs else []
        return note.epoch * self.steps_per_epoch + sum(steps for _, steps, _, _ in calls)

    def _compile(self, stage: int, index: np.ndarray, note: Note) -> Any:
        key = (stage, *index.shape)
        if key not in self._compiled:
            began = time.perf_counter()
            rule = self.stages[stage][1]
            self._compiled[key] = self.run_on.compile_steps(rule, self.state, self.inputs, index)
            note.seconds_compile += time.perf_counter() - began
        return self._compiled[key]

    def _save(self, checkpoints: Checkpoints, note: Note) -> int:
        step = self._position(note)
        plain = self.run_on.get_state(self.state)
        if not bool(all_finite((plain.params, plain.batch_stats))):
            raise RunError(
                f"the parameters are not finite at step {step}: not saved; the last good "
                f"checkpoint is step {checkpoints.latest_step()}; lower --lr or --rho"
            )
        checkpoints.save(step, plain, dataclasses.asdict(note))
        return step

    # ---- what is seen ----------------------------------------------------------------------

    def _after_epoch(
        self, note: Note, folder: folders.RunFolder, stop: StopRequest, progress: Progress
    ) -> Hits | None:
        """Evaluates where due, then closes the epoch in the note. A stop leaves the note open."""
        settings, epoch, accuracies = self.settings, note.epoch + 1, self.evaluator.accuracies
        plain = self.run_on.get_state(self.state)
        step = epoch * self.steps_per_epoch
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "lr": float(self.schedule(step - 1)),
            "train_loss": note.loss_sum / note.rows,
            "train_accuracy": 100 * note.hit_sum / note.rows,
            "seconds_train": note.seconds_train,
        }
        best, best_val, hits = note.best, note.best_val, None
        if epoch % settings.eval_every == 0 or epoch == settings.epochs:
            hits = self.evaluator.hits(plain, "test", stop)
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
        note.loss_sum, note.hit_sum, note.rows = 0.0, 0.0, 0
        folder.append_metrics(line)
        progress.epoch_done(line)
        return hits

    # ---- the report ------------------------------------------------------------------------

    def _report(
        self, config: dict[str, Any], note: Note, plain: TrainState, hits: Hits, flipped: Hits
    ) -> dict[str, Any]:
        batch = min(self.settings.batch_size, self.rows)

        def of(rule: Rule, seconds: float) -> tuple[float, float]:
            return cost.lone_step(self.run_on, rule, plain, self.inputs, batch, seconds)

        # A staged rule's step costs the mean over the run of its stages' steps.
        steps = self.settings.epochs * self.steps_per_epoch
        starts = [min(start, steps) for start, _ in self.stages] + [steps]
        shares = np.diff(starts) / steps
        flops, step_ms = shares @ [of(stage, 3.0) for _, stage in self.stages]
        of_sgd, _ = of(rules.sgd(self.dataset.num_classes), 0.0)
        accuracies = self.evaluator.accuracies
        described = {k: v for k, v in config.items() if k not in dataclasses.asdict(self.settings)}
        best = note.best or {}
        return {
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
            "settings": dataclasses.asdict(self.settings),
            "train_examples": self.rows,
            "params_sha256": params_sha256(plain.params),
            "seconds_train": round(note.seconds_train, 3),
            "seconds_compile": round(note.seconds_compile, 3),
            "step_ms": round(float(step_ms), 3),
            "flops_per_step": float(flops),
            "flops_ratio_to_sgd": float(flops / of_sgd),
            "command": folders.command_line(),
            **folders.environment(),
        }

    def _write(self, folder: folders.RunFolder, report: dict[str, Any], hits: Hits) -> None:
        counts = self.dataset.class_counts()
        folder.write_per_class(counts, hits.correct, hits.total, self.dataset.class_names)
        lines = folder.keep_metrics(self.settings.epochs)
        title = f"{report['rule']} on {report['dataset']}, {report['model']}"
        plots.per_class(folder.path / "per_class.png", title, counts, hits.correct, hits.total)
        plots.learning_curves(folder.path / "curves.png", title, lines)
        # Last: a report means a whole run folder.
        folders.write_json(folder.path / "report.json", report)


def stages(rule: Rule) -> list[tuple[int, Rule]]:
    """(first step, rule) of each stage; one for a rule without stages."""
    if not isinstance(rule, rules.stagewise):
        return [(0, rule)]
    (first, second), (_, switch) = rule.stages, rule.starts
    switch = int(switch)
    before = [(start, stage) for start, stage in stages(first) if start < switch]
    after = [(max(start, switch), stage) for start, stage in stages(second)]
    # Of stages that would start at once, the last holds.
    return before + [
        after[i] for i in range(len(after)) if i + 1 == len(after) or after[i][0] != after[i + 1][0]
    ]


def params_sha256(params: Any) -> str:
    """SHA-256 of all parameters' bytes: equal only where two runs ended bitwise the same."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
