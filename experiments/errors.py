"""The exceptions whose message an entry point prints as its last line, without a traceback."""

from __future__ import annotations

from typing import Any

import numpy as np


class RunError(Exception):
    """Something the person who started the run can put right; the message says how."""


class Diverged(RunError):
    """The loss or the parameters are not finite; the same run would do so again."""


class Stopped(Exception):
    """The run was asked to stop, has saved its state, and can be resumed."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


# Of every seed: JAX's keys and NumPy's older generators take 32 bits.
SEEDS = range(2**32)


def check_seed(*seeds: Any) -> None:
    """Refuses a seed out of range: JAX would take the key of a smaller one, in silence."""
    for seed in seeds:
        if not isinstance(seed, int | np.integer) or int(seed) not in SEEDS:
            raise RunError(f"a seed must be from 0 to 2**32 - 1, got {seed!r}")
