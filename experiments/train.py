"""The trainer: method- and data-agnostic. An entry point makes the parts and calls `fit`.

An epoch is a sequence of compiled calls of `steps_per_call` steps; the last, smaller batch is a
call of its own at its true size. A stop (SIGTERM, Ctrl-C, a deadline) is answered between calls:
the state is saved and the run ends with 143, 130 or 75; `resume` goes on from there, bitwise.
The test set is looked at each epoch, because the papers report its best epoch; it chooses
nothing.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import folders, plots
from experiments.checkpoints import Checkpoints
from experiments.data import Dataset
from experiments.errors import RunError, Stopped
from experiments.execution import EXECUTIONS, use_devices
from experiments.models import create_model
from experiments.progress import Progress
from experiments.steps import (
    Inputs,
    Loss,
    TrainState,
    count_hits,
    create_state,
    crop_and_flip,
    learning_rate,
    normalise,
    optimizer,
)
from imbsam_jax import metrics, rules, shot_splits
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


class StopRequest:
    """Set by SIGTERM, Ctrl-C or a deadline, read between calls; a second Ctrl-C ends at once."""

    def __init__(self, deadline: float | None = None):
        self._deadline, self._signal, self._old = deadline, None, {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        # Only a flag: a call in flight has donated its state, so nothing can be saved here.
        self._signal = number
        signal.signal(number, self._old[number])

    @property
    def exit_code(self) -> int | None:
        if self._signal is not None:
            return 128 + self._signal
        if self._deadline is not None and time.monotonic() > self._deadline:
            return 75
        return None

    def check(self) -> None:
        if self.exit_code is not None:
            raise _StopNow


class _StopNow(Exception):
    pass


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
    devices = use_devices(settings.devices)
    if settings.parallel not in EXECUTIONS:
        raise RunError(
            f"--parallel must be one of {', '.join(EXECUTIONS)}, got {settings.parallel!r}"
        )
    if settings.steps_per_call == 0:
        lone = devices[0].platform == "cpu"
        settings = dataclasses.replace(settings, steps_per_call=1 if lone else 50)
    trainer = _Trainer(dataset, model_name, rule, loss, settings, devices)
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
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(counts, "<i8").tobytes()).hexdigest()


class _Trainer:
    def __init__(
        self,
        dataset: Dataset,
        model_name: str,
        rule: Rule,
        loss: Loss,
        settings: Settings,
        devices: list[jax.Device],
    ):
        self.dataset, self.settings, self.loss = dataset, settings, loss
        self.stages = _stages(rule)
        self.rows = len(dataset.train_labels)
        self.steps_per_epoch = -(-self.rows // settings.batch_size)
        self.splits = shot_splits(dataset.class_counts(), dataset.many_above, dataset.few_below)
        dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[settings.precision]
        key = jax.random.key(settings.seed)
        init_key, step_key = jax.random.split(key)

        def prepare_test(images: jax.Array) -> jax.Array:
            return normalise(images, dataset.mean, dataset.std)

        def prepare(
            images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array
        ) -> jax.Array:
            if settings.augment:
                images = crop_and_flip(images, positions, batch_size, key)
            return prepare_test(images)

        self.run_on = EXECUTIONS[settings.parallel](devices, loss, prepare, step_key)
        try:
            model = create_model(
                model_name, dataset.num_classes, dtype=dtype, axis_name=self.run_on.axis_name
            )
            self.schedule = learning_rate(
                settings.schedule, settings.lr, settings.epochs, self.steps_per_epoch
            )
        except ValueError as error:
            raise RunError(str(error)) from error
        self.initial = _initial_state(model, dataset, settings, self.schedule, init_key)
        # Evaluation runs under jit over the same devices, whatever training runs under.
        self.evaluate_on = EXECUTIONS["jit"](devices, loss, prepare, step_key)
        self._hits = jax.jit(
            lambda state, inputs, index, mask, flip: count_hits(
                state, loss, prepare_test, inputs, index, mask, flip
            ),
            static_argnums=4,
        )
        self._finite = jax.jit(
            lambda tree: jnp.all(
                jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
            )
        )
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
                    hits = self._evaluate(plain, "test", False, stop)
                flipped = self._evaluate(plain, "test", True, stop)
            except _StopNow:
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
                raise _StopNow

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
        if not bool(self._finite((plain.params, plain.batch_stats))):
            raise RunError(
                f"the parameters are not finite at step {step}: not saved; the last good "
                f"checkpoint is step {checkpoints.latest_step()}; lower --lr or --rho"
            )
        checkpoints.save(step, plain, dataclasses.asdict(note))
        return step

    # ---- what is seen ----------------------------------------------------------------------

    def _after_epoch(
        self, note: Note, folder: folders.RunFolder, stop: StopRequest, progress: Progress
    ) -> Any:
        """Evaluates where due, then closes the epoch in the note. A stop leaves the note open."""
        settings, epoch = self.settings, note.epoch + 1
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
            hits = self._evaluate(plain, "test", False, stop)
            test = self._accuracies(hits)
            line |= {"test_loss": hits[2], **{f"test_{k}": v for k, v in test.items()}}
            if best is None or test["all"] > best["all"]:
                flipped = self._accuracies(self._evaluate(plain, "test", True, stop))
                best = {**test, "epoch": epoch, "flip": flipped}
            if self.dataset.val_labels is not None:
                val = self._accuracies(self._evaluate(plain, "val", False, stop))
                line |= {f"val_{k}": v for k, v in val.items()}
                if best_val is None or val["all"] > best_val["val"]["all"]:
                    best_val = {**test, "epoch": epoch, "val": val}
        note.best, note.best_val = best, best_val
        note.epoch, note.calls = epoch, 0
        note.loss_sum, note.hit_sum, note.rows = 0.0, 0.0, 0
        folder.append_metrics(line)
        progress.epoch_done(line)
        return hits

    def _evaluate(self, plain: TrainState, part: str, flip: bool, stop: StopRequest) -> Any:
        """(correct int64[C], total int64[C], mean loss) over every image of the part, once each."""
        labels = getattr(self.dataset, f"{part}_labels")
        inputs = self._part(part)
        count, devices = len(labels), len(self.run_on.devices)
        size = -(-min(self.settings.eval_batch, count) // devices) * devices
        correct = np.zeros(self.dataset.num_classes, np.int64)
        total, loss_sum = np.zeros_like(correct), 0.0
        for start in range(0, count, size):
            stop.check()
            index = np.arange(start, start + size, dtype=np.int32)
            mask = index < count
            placed, shown = (
                self.evaluate_on.place(x[None])[0] for x in (np.minimum(index, count - 1), mask)
            )
            found = jax.device_get(self._hits(plain, inputs, placed, shown, flip))
            correct, total, loss_sum = (
                correct + found[0],
                total + found[1],
                loss_sum + float(found[2]),
            )
        return correct, total, loss_sum / count

    def _part(self, part: str) -> Inputs:
        if not hasattr(self, f"_{part}_inputs"):
            arrays = (getattr(self.dataset, f"{part}_{what}") for what in ("images", "labels"))
            setattr(self, f"_{part}_inputs", self.evaluate_on.put_inputs(Inputs(*arrays)))
        return getattr(self, f"_{part}_inputs")

    def _accuracies(self, hits: Any) -> dict[str, float | None]:
        found = metrics.shot_accuracies(hits[0], hits[1], self.splits)
        return {k: None if math.isnan(float(v)) else float(v) for k, v in found.items()}

    # ---- the report ------------------------------------------------------------------------

    def _report(
        self, config: dict[str, Any], note: Note, plain: TrainState, hits: Any, flipped: Any
    ) -> dict[str, Any]:
        costs = [self._cost(stage, plain) for stage in range(len(self.stages))]
        of_sgd = self._flops(rules.sgd(self.dataset.num_classes), plain)
        steps = self.settings.epochs * self.steps_per_epoch
        starts = [min(start, steps) for start, _ in self.stages] + [steps]
        shares = np.diff(starts) / steps
        flops = float(sum(s * c["flops"] for s, c in zip(shares, costs, strict=True)))
        step_ms = float(sum(s * c["ms"] for s, c in zip(shares, costs, strict=True)))
        described = {k: v for k, v in config.items() if k not in dataclasses.asdict(self.settings)}
        best = note.best or {}
        return {
            **described,
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            **self._accuracies(hits),
            "last_epoch_flip": self._accuracies(flipped),
            "best_epoch": {k: v for k, v in best.items() if k != "flip"},
            "best_epoch_flip": {**best.get("flip", {}), "epoch": best.get("epoch")},
            "best_val_epoch": note.best_val,
            "thresholds": {
                "many_above": self.dataset.many_above,
                "few_below": self.dataset.few_below,
            },
            "settings": dataclasses.asdict(self.settings),
            "train_examples": self.rows,
            "seconds_train": round(note.seconds_train, 3),
            "seconds_compile": round(note.seconds_compile, 3),
            "step_ms": round(step_ms, 3),
            "flops_per_step": flops,
            "flops_ratio_to_sgd": flops / of_sgd,
            "command": folders.command_line(),
            **folders.environment(),
        }

    def _lone(self) -> np.ndarray:
        batch = min(self.settings.batch_size, self.rows)
        return np.arange(batch, dtype=np.int32)[None]

    def _flops(self, rule: Rule, plain: TrainState) -> float:
        index, state = self._lone(), self.run_on.put_state(plain)
        return _flops(self.run_on.compile_steps(rule, state, self.inputs, index))

    def _cost(self, stage: int, plain: TrainState) -> dict[str, float]:
        """FLOPs by XLA's count and median time of one lone compiled step."""
        index, state = self._lone(), self.run_on.put_state(plain)
        call = self.run_on.compile_steps(self.stages[stage][1], state, self.inputs, index)
        times: list[float] = []
        while len(times) < 3 or (sum(times) < 3.0 and len(times) < 50):
            placed = self.run_on.place(index)
            began = time.perf_counter()
            state, seen = call(state, self.inputs, placed)
            jax.block_until_ready((state, seen))
            times.append(time.perf_counter() - began)
        return {"flops": _flops(call), "ms": 1000 * float(np.median(times[1:]))}

    def _write(self, folder: folders.RunFolder, report: dict[str, Any], hits: Any) -> None:
        counts = self.dataset.class_counts()
        folder.write_per_class(counts, hits[0], hits[1], self.dataset.class_names)
        lines = folder.keep_metrics(self.settings.epochs)
        title = f"{report['rule']} on {report['dataset']}, {report['model']}"
        plots.per_class(folder.path / "per_class.png", title, counts, hits[0], hits[1])
        plots.learning_curves(folder.path / "curves.png", title, lines)
        # Last: a report means a whole run folder.
        folders.write_json(folder.path / "report.json", report)


def _stages(rule: Rule) -> list[tuple[int, Rule]]:
    """(first step, rule) of each stage; one for a rule without stages."""
    if not hasattr(rule, "stages"):
        return [(0, rule)]
    (first, second), (_, switch) = rule.stages, rule.starts
    switch = int(switch)
    before = [(start, stage) for start, stage in _stages(first) if start < switch]
    after = [(max(start, switch), stage) for start, stage in _stages(second)]
    # Of stages that would start at once, the last holds.
    return before + [
        after[i] for i in range(len(after)) if i + 1 == len(after) or after[i][0] != after[i + 1][0]
    ]


def _initial_state(
    model: nn.Module,
    dataset: Dataset,
    settings: Settings,
    schedule: Callable[[Any], Any],
    key: jax.Array,
) -> TrainState:
    tx = optimizer(schedule, settings.momentum, settings.weight_decay)
    example = jnp.zeros((1, *dataset.train_images.shape[1:]), jnp.float32)
    return jax.jit(lambda k: create_state(model, tx, example, k))(key)


def _flops(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0]
    return float((analysis or {}).get("flops", float("nan")))
