"""How long something took that was stopped and gone on with."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.host import outputs
from experiments.host.errors import RunError


class Spent:
    """Seconds and CPU seconds since it was made, and `before`, which a stop left in its file."""

    def __init__(self, file: Path, before: bool = True):
        self._before = outputs.read_object(file) if before and file.exists() else {}
        for name in ("seconds", "cpu_seconds"):
            if not outputs.is_number(self._before.setdefault(name, 0.0)):
                raise RunError(
                    f"{file} is damaged: remove it, and only its seconds are not counted"
                )
        self._began = time.perf_counter(), time.process_time()

    def now(self) -> dict[str, float]:
        wall, cpu = self._began
        return {
            "seconds": self._before["seconds"] + time.perf_counter() - wall,
            "cpu_seconds": self._before["cpu_seconds"] + time.process_time() - cpu,
        }
