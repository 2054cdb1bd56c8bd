"""The exceptions whose message an entry point prints as its last line, without a traceback."""

from __future__ import annotations


class DataError(Exception):
    """Data that is absent, unreadable or contradicts itself; the message says what to do."""


class RunError(Exception):
    """Something the person who started the run can put right; the message says how."""


class Diverged(RunError):
    """The loss or the parameters are not finite; the same run would do so again."""


class Stopped(Exception):
    """The run was asked to stop, has saved its state, and can be resumed."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
