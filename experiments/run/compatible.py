"""Which options go together: one table, asked before anything is written.

`fit` asks it, the only way to train a run folder, so that none is forgotten, and so do digits_lt
and sweep, whose runs the bench trains. Who plans several runs asks of each what is known by then: a
second stage is refused before its first is trained.

That a setting lies in its own range is said beside it (settings.py); what a command line heeds
beside what, by host/needs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.host.cli import noun
from experiments.host.errors import RunError, flag
from experiments.models import WITHOUT_BATCH_NORM
from experiments.run.settings import Settings
from experiments.step.methods import Method
from experiments.step.objectives import Adversary


@dataclass(frozen=True)
class Asked:
    """What a run is asked to do. What is None is not known yet: rows about it refuse nothing.

    Attributes:
      settings: with the number of devices that there are, where it is known.
      method: how the gradient is taken.
      rule: its name.
      priors: the name of a loss that takes class sizes off the logits, of a second stage that of
        the first; "" where it takes none.
      adversary: of a second stage.
      stage2, first: of a second stage that starts from a trained classifier, its name and the
        first stage's settings.
      steps_per_epoch: the partial last batch included.
      multiple: what the number of rows of a batch must be a multiple of.
      batch_norm: whether the model has statistics of a batch to normalise by.
      together: the seeds that are trained in one program; None for a run by itself.
      streamed: whether images are read while it trains.
      processes: how many take part.
    """

    settings: Settings
    method: Method
    rule: str = ""
    priors: str = ""
    adversary: Adversary | None = None
    stage2: str | None = None
    first: Settings | None = None
    steps_per_epoch: int | None = None
    multiple: int | None = None
    batch_norm: bool | None = None
    together: Sequence[int] | None = None
    streamed: bool = False
    processes: int = 1

    @property
    def leaves_rows_out(self) -> bool:
        """Whether passes are over some rows of a batch."""
        return self.settings.examples != "dependent"

    @property
    def couples(self) -> bool | None:
        """Whether examples see each other in the model."""
        return self.batch_norm and self.settings.statistics == "updated"

    @property
    def shares_a_batch(self) -> bool:
        """Whether several devices have a part of each batch."""
        return self.together is None and self.settings.devices > 1


class Row(NamedTuple):
    """What does not go together, and the sentence that says so and what to do."""

    cannot: Callable[[Asked], Any]
    because: Callable[[Asked], str]


def check(asked: Asked) -> None:
    """RunError with the sentence of the first row that refuses this."""
    for row in ROWS:
        if row.cannot(asked):
            raise RunError(row.because(asked))


def _examples(asked: Asked) -> str:
    return f"{flag('examples')} {asked.settings.examples}"


def _knows_priors(asked: Asked) -> str:
    """What of a first stage takes class sizes off its logits, if anything."""
    if asked.priors:
        return f"{flag('loss')} {asked.priors}"
    balanced = asked.first is not None and asked.first.sampling == "balanced"
    return f"{flag('sampling')} balanced" if balanced else ""


# Of passes over some rows, those for models that normalise by the batch.
_OF_BATCH_NORM = ("split_norm", "shared_norm")
_DEPENDENT = f"use {flag('examples')} dependent"

ROWS = (
    # ---- the schedule, and how far steps are counted -----------------------------------------
    Row(
        lambda a: a.settings.schedule == "cosine-prestep" and a.settings.epochs == 1,
        lambda a: (
            "schedule cosine-prestep has learning rate 0 in its last epoch: one epoch would train "
            f"nothing; use more, or {flag('schedule')} cosine"
        ),
    ),
    Row(
        lambda a: a.steps_per_epoch and a.settings.epochs * a.steps_per_epoch >= 2**31,
        lambda a: (
            f"{a.settings.epochs} epochs of {a.steps_per_epoch} steps are more than steps are "
            "counted to, 2**31: use fewer"
        ),
    ),
    # ---- seeds in one program ----------------------------------------------------------------
    Row(
        lambda a: a.together is not None and len(a.together) < 2,
        lambda a: (
            f"{flag('together')} trains several seeds, and there is one, {a.together}: use "
            f"{flag('seeds')} or {flag('num_seeds')}, or leave it out"
        ),
    ),
    Row(
        lambda a: a.together is not None and a.settings.parallel != "jit",
        lambda a: f"{flag('together')} maps plain jit over seeds: use {flag('parallel')} jit",
    ),
    Row(
        lambda a: a.together is not None and len(a.together) % a.settings.devices,
        lambda a: (
            f"{flag('together')} gives each device the same number of seeds, but "
            f"{len(a.together or ())} seeds cannot be divided among {a.settings.devices}: leave "
            f"{flag('devices')} out"
        ),
    ),
    Row(
        lambda a: a.together is not None and a.processes > 1,
        lambda a: f"{flag('together')} trains in one process: leave it out",
    ),
    Row(
        lambda a: a.together is not None and a.streamed,
        lambda a: (
            f"{flag('together')} needs the data set on the device, but this one is streamed: leave "
            "it out"
        ),
    ),
    Row(
        lambda a: (
            a.together is not None and a.leaves_rows_out and a.settings.sampling != "stratified"
        ),
        lambda a: (
            f"{flag('together')} with {_examples(a)} would compute all sizes of buffers for every "
            f"batch: use {flag('sampling')} stratified, which has one, or leave "
            f"{flag('together')} out"
        ),
    ),
    # ---- methods that need a batch as it is --------------------------------------------------
    Row(
        lambda a: a.method.whole_batches and a.settings.accumulate > 1,
        lambda a: f"{flag('rule')} {a.rule} takes a batch whole: use {flag('accumulate')} 1",
    ),
    Row(
        lambda a: a.method.whole_batches and a.leaves_rows_out,
        lambda a: f"{flag('rule')} {a.rule} takes a batch whole: {_DEPENDENT}",
    ),
    Row(
        lambda a: a.method.hands_on and a.leaves_rows_out,
        lambda a: (
            f"{flag('running_statistics')} every hands those of a whole batch from pass to pass, "
            f"of which {_examples(a)} leaves rows out: use "
            f"{flag('running_statistics')} first"
        ),
    ),
    # ---- passes over some rows ---------------------------------------------------------------
    Row(
        lambda a: a.leaves_rows_out and a.settings.mixup,
        lambda a: (
            f"{_examples(a)} leaves out rows whose class has no weight, but with {flag('mixup')} "
            f"{a.settings.mixup:g} every row is of two classes: {_DEPENDENT}"
        ),
    ),
    Row(
        lambda a: a.leaves_rows_out and a.settings.accumulate > 1,
        lambda a: (
            f"{_examples(a)} takes of a batch the rows that carry weight, and does not cut it up: "
            f"use {flag('accumulate')} 1, not {a.settings.accumulate}"
        ),
    ),
    Row(
        lambda a: a.leaves_rows_out and a.settings.parallel == "jit" and a.shares_a_batch,
        lambda a: (
            f"{_examples(a)} with {flag('parallel')} jit would choose rows over all "
            f"{a.settings.devices} devices, and send them about: use {flag('parallel')} pmap, "
            "where each device chooses among its own"
        ),
    ),
    Row(
        lambda a: a.leaves_rows_out and a.adversary is not None,
        lambda a: (
            f"{_examples(a)} leaves rows out, but the adversary of this second stage averages over "
            f"all rows of a class: {_DEPENDENT}"
        ),
    ),
    Row(
        lambda a: a.settings.examples == "independent" and a.couples,
        lambda a: (
            f"{_examples(a)} leaves rows out of a pass, but this model normalises by the "
            "statistics of the whole batch, and updates the running ones: use a model without "
            f"batch statistics ({', '.join(WITHOUT_BATCH_NORM)}), {flag('examples')} dependent, or "
            "split_norm or shared_norm, which are other gradients"
        ),
    ),
    Row(
        lambda a: a.settings.examples in _OF_BATCH_NORM and a.couples is False,
        lambda a: (
            f"{_examples(a)} is for models that normalise by the batch: {flag('examples')} "
            "independent is as cheap for this one, and exact"
        ),
    ),
    Row(  # else devices would be in different branches, and wait for each other's statistics
        lambda a: (
            a.settings.examples in _OF_BATCH_NORM
            and a.shares_a_batch
            and a.settings.sampling != "stratified"
        ),
        lambda a: (
            f"{_examples(a)} over several devices needs batches of which every device has the same "
            f"number of tail rows: use {flag('sampling')} stratified"
        ),
    ),
    Row(
        lambda a: a.settings.examples == "shared_norm" and a.settings.sampling != "stratified",
        lambda a: (
            f"{_examples(a)} passes over head and tail side by side, in buffers of one size each: "
            f"use {flag('sampling')} stratified, not {a.settings.sampling}"
        ),
    ),
    Row(
        lambda a: a.settings.examples == "shared_norm" and a.settings.remat,
        lambda a: (
            f"{_examples(a)} stops between the layers of a block, which {flag('remat')} computes "
            f"again as one: leave {flag('remat')} out, or {_DEPENDENT}"
        ),
    ),
    # ---- second stages -----------------------------------------------------------------------
    Row(
        lambda a: a.first is not None and a.first.classifier != "linear",
        lambda a: (
            f"{flag('stage2')} {a.stage2} starts from a linear classifier, this run has a "
            f"{a.first and a.first.classifier} one: use crt, or {flag('classifier')} linear"
        ),
    ),
    Row(
        lambda a: a.stage2 == "logit-adjustment" and _knows_priors(a),
        lambda a: (
            f"{flag('stage2')} logit-adjustment takes the log priors off what plain training has "
            f"learnt, and with {_knows_priors(a)} they are off already: leave one of them out"
        ),
    ),
    Row(
        lambda a: a.adversary is not None and a.settings.accumulate > 1,
        lambda a: f"{flag('stage2')} cc-sam takes a batch whole: use {flag('accumulate')} 1",
    ),
    Row(
        lambda a: (
            a.adversary is not None
            and a.adversary.over_the_batch
            and a.settings.parallel == "pmap"
            and a.settings.devices != 1
        ),
        lambda a: (
            f"{flag('stage2_variant')} release takes norms over the batch, which pmap would take "
            f"over each device's rows: use {flag('parallel')} jit"
        ),
    ),
    # ---- batches and devices -----------------------------------------------------------------
    Row(
        lambda a: a.multiple and a.settings.batch_size % a.multiple,
        lambda a: (
            f"{flag('batch_size')} {a.settings.batch_size} cannot be divided among "
            f"{noun(a.settings.devices, 'device')} and {flag('accumulate')} "
            f"{a.settings.accumulate}: use a multiple of {a.multiple}"
        ),
    ),
)
