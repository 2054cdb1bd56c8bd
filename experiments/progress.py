"""Progress of a run: a live bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows loss, accuracy, images a second and time left; says lines above the bar."""

    def __init__(self, epochs: int, quiet: bool = False):
        self._console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._epochs = epochs
        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", epoch=0, epochs=epochs, text="compiling", total=None)
        self._first: tuple[float, float] | None = None  # (time, epochs done) when stepping began

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, rows_done: int, rows: int) -> None:
        self._epoch, self._rows, self._began = epoch, rows, time.monotonic()
        self._rows_before = rows_done
        total = self._epochs * rows
        self._bar.update(
            self._task, epoch=epoch + 1, total=total, completed=epoch * rows + rows_done
        )

    def update(self, rows_done: int, loss_sum: float, hit_sum: float) -> None:
        if rows_done == 0:
            return
        passed = max(time.monotonic() - self._began, 1e-9)
        rate = (rows_done - self._rows_before) / passed
        text = (
            f"loss {loss_sum / rows_done:.3f}  accuracy {100 * hit_sum / rows_done:.1f}%  "
            f"{rate:.0f} images/s"
        )
        self._bar.update(self._task, completed=self._epoch * self._rows + rows_done, text=text)
        self._rate = rate

    def epoch_done(self, line: dict[str, Any], name: str = "") -> None:
        """Says the epoch's line; `name` is of the run, where there are several."""
        now = time.monotonic()
        done = line["epoch"]
        if self._first is None:
            self._first = (self._began, done - 1)
        each = (now - self._first[0]) / (done - self._first[1])
        parts = [
            f"{name}epoch {done}/{self._epochs}",
            f"loss {line['train_loss']:.4f}",
            f"train {line['train_accuracy']:.1f}%",
        ]
        for name in ("all", "many", "medium", "few"):
            value = line.get(f"test_{name}")
            if f"test_{name}" in line:
                parts.append(f"{name} {'-' if value is None else f'{value:.1f}'}")
        rate = getattr(self, "_rate", 0.0)
        parts += [f"{rate:.0f} images/s", f"{_clock(each * (self._epochs - done))} left"]
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """What a quiet run says too, on stderr."""
        if self._console.quiet:
            print(text, file=sys.stderr, flush=True)
        else:
            self.say(text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
