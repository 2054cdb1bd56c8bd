"""A stop that is asked for: noticed by a signal handler, answered between compiled calls."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

DEADLINE_EXIT_CODE = 75  # "try again": the run was cut short by its own time limit


class StopNow(Exception):
    """Raised between calls, where the state is whole and can be saved.

    Attributes:
      exit_code: of a process that saves nothing and ends.
    """

    def __init__(self, exit_code: int = 128 + signal.SIGTERM):
        self.exit_code = exit_code


class StopRequest:
    """Set by SIGTERM, Ctrl-C or a deadline; a second Ctrl-C ends the process at once."""

    def __init__(self, deadline: float | None = None):
        self._deadline = deadline
        self._signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python gives signals to the main thread alone; a deadline still holds
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
        """143 after SIGTERM, 130 after Ctrl-C, 75 past the deadline, None to go on."""
        if self._signal is not None:
            return 128 + self._signal
        if self._deadline is not None and time.monotonic() > self._deadline:
            return DEADLINE_EXIT_CODE
        return None

    @property
    def signalled(self) -> int:
        """128 + the signal that came, 0 without one."""
        return 0 if self._signal is None else 128 + self._signal

    def signalled_anywhere(self) -> int:
        """The largest `signalled` of all processes, who ask each other."""
        import jax
        import numpy as np
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return self.signalled
        return int(multihost_utils.process_allgather(np.int32(self.signalled)).max())

    def check(self) -> None:
        if self.exit_code is not None:
            raise StopNow(self.exit_code)
