"""One run, of one seed: its folder, what it has seen, and what it writes.

The trainer makes the steps, of one run or of several at once; a run never asks which.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from experiments.data.encoded import EncodedDataset, told_unreadable
from experiments.host import folders, origin, outputs
from experiments.host.cli import noun
from experiments.host.errors import Diverged, RunError, flag
from experiments.host.progress import Progress
from experiments.host.stopping import StopRequest
from experiments.run.calls import Calls
from experiments.run.checkpoints import Checkpoints
from experiments.run.evaluation import Hits
from experiments.run.parts import Parts
from experiments.run.settings import Note, Settings
from experiments.step.state import TrainState

Cost = tuple[float | None, float | None, float | None]
# (folder, title, lines of metrics.jsonl, class counts, hits of the last epoch, shot thresholds)
Draw = Callable[[Path, str, list[dict[str, Any]], np.ndarray, Hits, tuple[int, int]], None]


class Run:
    """`open` its folder, `begin`, then what the trainer asks for in each epoch, then `report`.

    Args:
      dataset: training and test images, and perhaps held-out ones.
      parts: what the run is made of.
      calls: of which calls its training consists.
      settings: how to train.
      name: what its messages begin with, where there are several.

    Attributes:
      note: where the run is and what it has seen.
      initial: the state before the first step.
    """

    # Set by open, begin and the evaluation of the last epoch.
    folder: folders.RunFolder
    config: dict[str, Any]
    checkpoints: Checkpoints
    note: Note
    hits: Hits
    flipped: Hits
    ensembled: Hits

    def __init__(
        self,
        dataset: Dataset | EncodedDataset,
        parts: Parts,
        calls: Calls,
        settings: Settings,
        name: str = "",
    ):
        self.dataset, self.settings, self.name, self._calls = dataset, settings, name, calls
        self.order, self.initial = parts.order, parts.initial
        self._evaluator, self._schedule = parts.evaluator, parts.schedule

    def open(self, folder: folders.RunFolder, config: dict[str, Any], preset: Any = None) -> None:
        self.folder, self.config = folder, {**config, "preset": preset}
        self.checkpoints = Checkpoints(
            folder.path / "checkpoints", self.settings.keep_checkpoints, config=config
        )

    def close(self) -> None:
        self.checkpoints.close()

    # ---- where it begins -------------------------------------------------------------------

    def begin(
        self, found: tuple[TrainState, dict[str, Any]] | None, progress: Progress
    ) -> TrainState:
        """The state of this checkpoint, or the first where there is none; newer ones set aside."""
        state, self.note = self.initial, Note()
        if found is not None:
            state, self.note = found[0], Note.read(found[1])
        self.checkpoints.set_aside_after(None if found is None else int(state.step))
        if found is not None:
            progress.say(
                f"resuming {self.folder.path} after epoch {self.note.epoch}, call {self.note.calls}"
            )
        self.folder.keep_metrics(self.note.epoch, progress.warn)
        return state

    def contradiction(self, state: TrainState, note: dict[str, Any]) -> str | None:
        """Why the note of a checkpoint cannot be of its state; None where it can."""
        try:
            read = Note.read(note)
        except RunError as error:
            return str(error)
        most = self._calls.in_epoch(read.epoch)
        inside = read.epoch <= self.settings.epochs and read.calls <= most
        if inside and self._calls.step_after(read.epoch, read.calls) == int(state.step):
            return None
        return (
            f"its note is of epoch {read.epoch}, call {read.calls}, but its state of step "
            f"{int(state.step)}"
        )

    @property
    def step(self) -> int:
        return self._calls.step_after(self.note.epoch, self.note.calls)

    # ---- what it sees ----------------------------------------------------------------------

    def see(self, first_step: int, steps: int, seen: Any) -> None:
        """Counts what a call of some steps saw into the note."""
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
                f"{note.epoch + 1}): {good}; lower {flag('lr')} or {flag('rho')}"
            )
        meant = self.order.rows_of(first_step)  # all steps of a call have as many
        rows = np.rint(real * self.order.padded(meant))
        note.loss_sum += float(rows @ losses)
        note.hit_sum += float(rows @ accuracies)
        note.rows += int(rows.sum())
        note.skipped += int(meant * steps - rows.sum())
        if note.skipped > self.settings.max_corrupt * self.order.rows:
            of = "draw" if self.settings.sampling == "balanced" else "training image"
            raise RunError(
                f"{noun(note.skipped, of)} of epoch {note.epoch + 1} could not be read"
                f"{told_unreadable(self.dataset, 'train')}, more than the share "
                f"{flag('max_corrupt')} {self.settings.max_corrupt:g} of {self.order.rows} allows"
            )

    def close_epoch(self, state: TrainState, stop: StopRequest, progress: Progress) -> None:
        """Evaluates where due, then closes the epoch in the note. A stop leaves the note open."""
        settings, note, accuracies = self.settings, self.note, self._evaluator.accuracies
        epoch = note.epoch + 1
        step = epoch * self._calls.steps_per_epoch
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "lr": float(self._schedule(step - 1)),
            "train_loss": note.loss_sum / max(note.rows, 1),
            "train_accuracy": 100 * note.hit_sum / max(note.rows, 1),
            "seconds_train": note.seconds_train,
            "seconds_waiting": note.seconds_waiting,
            "skipped": note.skipped,
        }
        best, best_val = note.best, note.best_val
        if epoch % settings.eval_every == 0 or epoch == settings.epochs:
            hits = self.hits = self._evaluator.hits(state, "test", stop)
            test = accuracies(hits)
            line |= {"test_loss": hits.loss, **{f"test_{k}": v for k, v in test.items()}}
            if best is None or _over(test, best):
                flipped = accuracies(self._evaluator.hits(state, "test", stop, flip=True))
                best = {**test, "epoch": epoch, "flip": flipped}
            if self.dataset.val_labels is not None:
                val = accuracies(self._evaluator.hits(state, "val", stop))
                line |= {f"val_{k}": v for k, v in val.items()}
                if best_val is None or _over(val, best_val["val"]):
                    best_val = {**test, "epoch": epoch, "val": val}
        note.best, note.best_val = best, best_val
        note.epoch, note.calls = epoch, 0
        note.loss_sum, note.hit_sum, note.rows, note.skipped = 0.0, 0.0, 0, 0
        self.folder.append_metrics(line)
        progress.epoch_done(line, self.name)

    def close_training(self, state: TrainState, stop: StopRequest) -> None:
        """Evaluates the last state, as far as that was not done."""
        if not hasattr(self, "hits"):  # a run resumed after its last epoch, or without any
            self.hits = self._evaluator.hits(state, "test", stop)
        self.flipped = self._evaluator.hits(state, "test", stop, flip=True)
        if self.settings.ensemble:
            self.ensembled = self._evaluator.hits(state, "test", stop, crops=True)
        if self.settings.epochs == 0 and self.dataset.val_labels is not None:
            val = self._evaluator.accuracies(self._evaluator.hits(state, "val", stop))
            test = self._evaluator.accuracies(self.hits)
            self.note.best_val = {**test, "epoch": 0, "val": val}

    # ---- what it writes --------------------------------------------------------------------

    def save(self, state: TrainState) -> None:
        """Begins to save a plain state."""
        if not bool(all_finite((state.params, state.batch_stats, state.extra))):
            raise Diverged(
                f"{self.name}the parameters are not finite at step {self.step}: not saved; the "
                f"last good checkpoint is step {self.checkpoints.latest_step()}; lower "
                f"{flag('lr')} or {flag('rho')}"
            )
        self.checkpoints.save(self.step, state, dataclasses.asdict(self.note))

    def report(
        self, state: TrainState, cost: Cost, first_step: float | None, draw: Draw | None
    ) -> dict[str, Any]:
        """Writes what is left of the run folder."""
        note, hits, flipped = self.note, self.hits, self.flipped
        accuracies = self._evaluator.accuracies
        flops, of_sgd, step_ms = cost
        decided, ensemble = dataclasses.asdict(self.settings), self.settings.ensemble
        described = {k: v for k, v in self.config.items() if k not in decided}
        best = note.best or {**accuracies(hits), "flip": accuracies(flipped), "epoch": 0}
        report = {
            **described,
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            **accuracies(hits),
            "last_epoch_flip": accuracies(flipped),
            **({"last_epoch_ensembled": accuracies(self.ensembled)} if ensemble else {}),
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
            "settings": decided,
            "train_examples": self.order.rows,
            "parameters": {"trained": count(state.params), "frozen": count(state.frozen)},
            "params_sha256": params_sha256(state.variables()["params"]),
            "skipped_test_images": len(self.dataset.test_labels) - int(hits.total.sum()),
            "seconds_train": round(note.seconds_train, 3),
            "seconds_waiting": round(note.seconds_waiting, 3),
            "seconds_compile": round(note.seconds_compile, 3),
            # Of the last process, from the data set in memory; None where it made no step.
            "seconds_to_first_step": first_step,
            "step_ms": None if step_ms is None else round(step_ms, 3),
            "flops_per_step": flops,
            "flops_ratio_to_sgd": None if flops is None or of_sgd is None else flops / of_sgd,
            "command": origin.command_line(),
            **origin.environment(),
        }
        if self.folder.owned:
            self._write(report, draw)
        return report

    def _write(self, report: dict[str, Any], draw: Draw | None) -> None:
        folder, hits, counts = self.folder, self.hits, self.dataset.class_counts()
        folder.write_per_class(counts, hits.correct, hits.total, self.dataset.class_names)
        lines = folder.keep_metrics(self.settings.epochs)
        if draw is not None:
            title = f"{report['rule']} on {report['dataset']}, {report['model']}"
            with outputs.writing(folder.path):
                shots = self.dataset.many_above, self.dataset.few_below
                draw(folder.path, title, lines, counts, hits, shots)
        # Last: a report means a whole run folder.
        outputs.write_json(folder.path / "report.json", report)


def params_sha256(params: Any) -> str:
    """SHA-256 of all parameters' bytes: equal only where two runs ended bitwise the same."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def count(params: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


# In percent, of single precision: as many images right, of other classes, may differ by so much.
_ROUNDING = 1e-4


def _over(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether its accuracy is higher; None, where no class counts, is under every other."""
    if one["all"] is None or other["all"] is None:
        return one["all"] is not None and other["all"] is None
    return bool(one["all"] > other["all"] + _ROUNDING)
