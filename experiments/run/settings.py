"""How to train, as one value: what a run folder's config.json and --resume compare."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from experiments.host.errors import RunError, check_seed
from experiments.models import CLASSIFIERS
from experiments.step.methods import TAIL_STATISTICS
from experiments.step.state import TRAINED

SAMPLING = ("natural", "balanced", "stratified")
EXAMPLES = ("dependent", "independent", "split_norm")
MAX_NORM = ("none", "step", "epoch")
LOADERS = ("grain", "tf.data")
# What may change when a run is resumed.
FREE = ("checkpoint_every", "eval_batch", "workers", "max_corrupt")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train; all of it decides the result, except what is named FREE."""

    epochs: int = 200
    batch_size: int = 64
    lr: float = 0.01
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-3
    seed: int = 0
    precision: str = "float32"
    parallel: str = "jit"
    devices: int = 1  # 0: all there are
    accumulate: int = 1  # micro-batches a batch is cut into
    remat: bool = False  # compute activations again in the backward pass
    steps_per_call: int = 0  # 0: one on a CPU, else 50
    augment: bool = True
    jitter: float = 0.0  # of brightness, contrast and saturation; for streamed images
    eval_every: int = 1
    eval_batch: int = 500
    checkpoint_every: int = 10
    loader: str = "grain"  # of streamed images
    workers: int = 0  # processes that decode; 0 decodes in threads of this one
    max_corrupt: float = 0.001  # share of images that may be unreadable
    classifier: str = "linear"
    mixup: float = 0.0  # alpha; 0 is none
    weight_decay_inside: bool = False  # in the perturbed loss, by the method, not in Optax
    sampling: str = "natural"
    per_visit: int = 1  # rows of a class at each of balanced sampling's visits
    eta: float = 100.0  # of stratified sampling: the largest count of a tail class
    strict: bool = False  # of stratified sampling: the tail is n < eta
    # "independent" and "split_norm": passes leave out rows without weight.
    examples: str = "dependent"
    tail_statistics: str = "renorm"  # of split_norm: what normalises a pass over a group's rows
    trained: str = "all"
    statistics: str = "updated"  # or "frozen": normalise by the running ones, and leave them
    max_norm: str = "none"  # projection of the classifier after each step, or each epoch

    def check(self, least_epochs: int = 1) -> None:
        """Refuses settings with which no step could be made."""
        least: dict[str, int] = {"epochs": least_epochs}
        counted = (
            "batch_size", "eval_every", "eval_batch", "checkpoint_every", "per_visit", "accumulate",
        )  # fmt: skip
        for name in ("epochs", *counted):
            if getattr(self, name) < least.get(name, 1):
                raise RunError(
                    f"--{name.replace('_', '-')} must be at least {least.get(name, 1)}, got "
                    f"{getattr(self, name)}"
                )
        if self.schedule == "cosine-prestep" and self.epochs == 1:
            raise RunError(
                "schedule cosine-prestep has learning rate 0 in its last epoch: one epoch would "
                "train nothing; use more, or --schedule cosine"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RunError(f"--lr must be finite and positive, got {self.lr}")
        for name in ("weight_decay", "mixup"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RunError(
                    f"--{name.replace('_', '-')} must be finite and at least 0, got {value}"
                )
        if not 0 <= self.momentum < 1:
            raise RunError(f"--momentum must lie in [0, 1), got {self.momentum}")
        check_seed(self.seed)
        for name in ("steps_per_call", "devices", "workers"):
            if getattr(self, name) < 0:
                flag = f"--{name.replace('_', '-')}"
                raise RunError(f"{flag} must be at least 0, got {getattr(self, name)}")
        for name in ("jitter", "max_corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise RunError(f"{flag} must lie in [0, 1], got {getattr(self, name)}")
        choices = {
            "classifier": CLASSIFIERS, "sampling": SAMPLING, "trained": TRAINED,
            "statistics": ("updated", "frozen"), "max_norm": MAX_NORM, "loader": LOADERS,
            "examples": EXAMPLES, "tail_statistics": TAIL_STATISTICS,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise RunError(
                    f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(known)}"
                )
        if self.examples != "dependent" and self.mixup:
            raise RunError(
                f"--examples {self.examples} leaves out rows whose class has no weight, but with "
                f"--mixup {self.mixup:g} every row is of two classes: use --examples dependent"
            )
        if self.examples != "dependent" and self.accumulate > 1:
            raise RunError(
                f"--examples {self.examples} takes of a batch the rows that carry weight, and does "
                f"not cut it up: use --accumulate 1, not {self.accumulate}"
            )

    def decisive(self) -> dict[str, Any]:
        """What decides the result, as in config.json."""
        free = FREE if self.sampling == "stratified" else (*FREE, "eta", "strict")
        if self.examples != "split_norm":
            free = (*free, "tail_statistics")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


@dataclasses.dataclass
class Note:
    """What a checkpoint holds beside the state: where the run is and what it has seen."""

    epoch: int = 0  # whole epochs done
    calls: int = 0  # calls of the next epoch done
    loss_sum: float = 0.0  # over the rows of the epoch so far
    hit_sum: float = 0.0
    rows: int = 0
    skipped: int = 0  # images of the epoch so far that could not be read
    seconds_train: float = 0.0
    seconds_waiting: float = 0.0  # of seconds_train, for images; a device may be busy meanwhile
    seconds_compile: float = 0.0
    best: dict[str, Any] | None = None
    best_val: dict[str, Any] | None = None

    @classmethod
    def read(cls, value: dict[str, Any]) -> Note:
        """From JSON; RunError for what no run has written."""
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if value.keys() != kinds.keys():
            odd = sorted(value.keys() ^ kinds.keys())
            raise RunError(f"its note has too much or too little: {', '.join(odd)}")
        for name, kind in kinds.items():
            found = value[name]
            whole = type(found) is int and 0 <= found < 2**63
            right = {
                "int": whole,
                "float": whole or (isinstance(found, float) and math.isfinite(found)),
            }.get(str(kind), found is None or isinstance(found, dict))
            if not right:
                raise RunError(f"{name} of its note is {found!r:.80}")
        return cls(**value)
