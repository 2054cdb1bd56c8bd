"""The exceptions whose message an entry point prints as its last line, without a traceback."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterator
from typing import Any

import numpy as np


class DataError(Exception):
    """Data that is absent, unreadable or contradicts itself; the message says what to do."""


class RunError(Exception):
    """Something the person who started the run can put right; the message says how."""


# What reading files of a folder that are damaged, or of different runs, comes to.
UNFIT = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError, csv.Error,
)  # fmt: skip


def flag(setting: str) -> str:
    """How the command line spells a setting: messages of any room name it so.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{setting.replace('_', '-')}"


class Diverged(RunError):
    """The loss or the parameters are not finite; the same run would do so again."""


class Stopped(Exception):
    """The run was asked to stop, has saved its state, and can be resumed."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


# What a full disk, a used-up quota and a limit on file sizes are called, by their number or by
# libraries that pass on the words alone.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


def is_full(error: BaseException) -> bool:
    """Whether it says, or was caused by one that says, that there is no room left."""
    return any(
        getattr(one, "errno", None) in _FULL or any(words in str(one) for words in _FULL_WORDS)
        for one in _chain(error)
    )


def reason(error: BaseException) -> str:
    """One line that says why: the system's words, or the first line of a library's message."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        if found := [words for words in _FULL_WORDS if words in str(one)]:
            return found[0]
    lines = str(error).strip().splitlines()
    if lines and type(error).__module__.startswith("experiments"):
        return str(error)
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def cannot_write(path: object, error: OSError) -> RunError:
    """The sentence for a file or folder that the system does not let us write."""
    remedy = "make room there" if is_full(error) else "choose another --out"
    return RunError(f"cannot write to {path}: {reason(error)}; {remedy}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """It, what caused it, what caused that, to the first that was met before."""
    one: BaseException | None = error
    met: set[int] = set()
    while one is not None and id(one) not in met:
        yield one
        met.add(id(one))
        one = one.__cause__ or one.__context__


# Of every seed: JAX's keys and NumPy's older generators take 32 bits.
SEEDS = range(2**32)


def check_seed(*seeds: Any) -> None:
    """Refuses a seed out of range: JAX would take the key of a smaller one, in silence."""
    for seed in seeds:
        if not isinstance(seed, int | np.integer) or int(seed) not in SEEDS:
            raise RunError(f"a seed must be from 0 to 2**32 - 1, got {seed!r}")
