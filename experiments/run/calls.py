"""Of which compiled calls a training consists: where a run is, is an epoch and a call in it."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Call(NamedTuple):
    """Some steps in one compiled program."""

    first_step: int
    steps: int
    stage: int  # of the method


class Calls:
    """The calls of every epoch; none straddles two stages, a smaller last batch is its own.

    Args:
      epochs: of the training.
      steps_per_epoch: the partial last batch included.
      full_steps: those of an epoch with whole batches.
      steps_per_call: at most so many in one call.
      starts: first step of each stage of the method, from 0 on.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        full_steps: int,
        steps_per_call: int,
        starts: list[int],
    ):
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self._full_steps, self._most, self._starts = full_steps, steps_per_call, starts

    def of_epoch(self, epoch: int) -> list[Call]:
        first = epoch * self.steps_per_epoch
        full = first + self._full_steps
        calls, step = [], first
        while step < full:
            stage, until = self._stage(step)
            steps = min(self._most, full - step, until - step)
            calls.append(Call(step, steps, stage))
            step += steps
        if full < first + self.steps_per_epoch:
            calls.append(Call(full, 1, self._stage(full)[0]))
        return calls

    def in_epoch(self, epoch: int) -> int:
        """How many calls it consists of; none after the last epoch."""
        return len(self.of_epoch(epoch)) if epoch < self.epochs else 0

    def left(self, epoch: int, calls: int) -> list[tuple[int, int]]:
        """(first step, steps) of every call after so many of this epoch."""
        ahead = [call for later in range(epoch, self.epochs) for call in self.of_epoch(later)]
        return [(call.first_step, call.steps) for call in ahead[calls:]]

    def step_after(self, epoch: int, calls: int) -> int:
        """The step reached after so many calls of this epoch."""
        made = sum(call.steps for call in self.of_epoch(epoch)[:calls])
        return epoch * self.steps_per_epoch + made

    def _stage(self, step: int) -> tuple[int, int]:
        """(which stage the step is in, first step of the next)."""
        stage = sum(start <= step for start in self._starts) - 1
        later = self._starts[stage + 1 :]
        return stage, later[0] if later else sys.maxsize
