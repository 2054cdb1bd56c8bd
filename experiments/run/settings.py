"""How to train, as one value: what a run folder's config.json holds, and a resumed run compares."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from experiments.host.errors import RunError, check_seed, flag
from experiments.models import ADAPTERS, CLASSIFIERS
from experiments.step.execution import EXECUTIONS
from experiments.step.optimizer import SCHEDULES
from experiments.step.passing import EXAMPLES
from experiments.step.state import TRAINED

SAMPLING = ("natural", "balanced", "stratified")
MAX_NORM = ("none", "step", "epoch")
PRECISIONS = ("float32", "bfloat16")
LOADERS = ("grain", "tf.data")
# Of models that start from weights.
_OF_PRETRAINED = ("adapter", "adapter_size", "enlarged", "enlarged_eval", "ensemble")
# What a run may be resumed with another value of: it decides no number of the result.
MAY_CHANGE = ("checkpoint_every", "keep_checkpoints", "eval_batch", "workers", "max_corrupt")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train; all of it decides the result, except what is named MAY_CHANGE."""

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
    keep_checkpoints: int = 2
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
    # "independent", "split_norm", "shared_norm": passes leave out rows without weight.
    examples: str = "dependent"
    trained: str = "all"
    statistics: str = "updated"  # or "frozen": normalise by the running ones, and leave them
    max_norm: str = "none"  # projection of the classifier after each step, or each epoch
    adapter: str = "full"  # what is added to a pretrained model's blocks
    adapter_size: int = 0  # its width; 0 is the published one
    # Images in memory are resized for the model: side of what it sees, 0 as they are; and in
    # evaluation the side of which that is the centre.
    enlarged: int = 0
    enlarged_eval: int = 0
    ensemble: bool = False  # evaluate the last epoch on five crops of each image, too

    def check(self, least_epochs: int = 1) -> None:
        """Refuses a setting that is out of its range; which go together, compatible.py says."""
        least: dict[str, int] = {"epochs": least_epochs}
        counted = (
            "batch_size", "eval_every", "eval_batch", "checkpoint_every", "keep_checkpoints",
            "per_visit", "accumulate",
        )  # fmt: skip
        for name in ("epochs", *counted):
            if getattr(self, name) < least.get(name, 1):
                raise RunError(
                    f"{flag(name)} must be at least {least.get(name, 1)}, got {getattr(self, name)}"
                )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RunError(f"{flag('lr')} must be finite and positive, got {self.lr}")
        for name in ("weight_decay", "mixup", "eta"):
            value = getattr(self, name)
            if value is None:  # eta: no tail is asked for
                continue
            if not (math.isfinite(value) and value >= 0):
                raise RunError(f"{flag(name)} must be finite and at least 0, got {value}")
        if not 0 <= self.momentum < 1:
            raise RunError(f"{flag('momentum')} must lie in [0, 1), got {self.momentum}")
        check_seed(self.seed)
        sizes = ("adapter_size", "enlarged", "enlarged_eval")
        for name in ("steps_per_call", "devices", "workers", *sizes):
            if getattr(self, name) < 0:
                raise RunError(f"{flag(name)} must be at least 0, got {getattr(self, name)}")
        for name in ("jitter", "max_corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise RunError(f"{flag(name)} must lie in [0, 1], got {getattr(self, name)}")
        choices = {
            "classifier": CLASSIFIERS, "sampling": SAMPLING, "trained": TRAINED,
            "statistics": ("updated", "frozen"), "max_norm": MAX_NORM, "loader": LOADERS,
            "examples": EXAMPLES, "precision": PRECISIONS, "adapter": tuple(ADAPTERS),
            "schedule": SCHEDULES, "parallel": tuple(EXECUTIONS),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise RunError(
                    f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(known)}"
                )

    def decisive(self) -> dict[str, Any]:
        """What decides the result, as in config.json."""
        free = MAY_CHANGE if self.sampling == "stratified" else (*MAY_CHANGE, "eta", "strict")
        # Left out where they ask for nothing, so that runs begun without them still resume.
        usual = {name: type(self).__dataclass_fields__[name].default for name in _OF_PRETRAINED}
        return {
            k: v
            for k, v in dataclasses.asdict(self).items()
            if k not in free and not (k in usual and v == usual[k])
        }


@dataclasses.dataclass
class Note:
    """What a checkpoint holds beside the state: where the run is and what it has seen.

    A new field is a break: `read` wants all of them, and a checkpoint from before it is damaged.
    """

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
