"""Progress of a run: a live bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from experiments.host.errors import reason
from experiments.host.stopping import StopNow


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
        # (time, rows of the epoch) after the first call of the first epoch, which is compiled, and
        # (time, epochs done) at its end.
        self._warm: tuple[float, int] | None = None
        self._first: tuple[float, int] | None = None

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
        now = time.monotonic()
        if self._warm is None:
            self._warm = now, rows_done
        self._seen = now, rows_done
        passed = max(now - self._began, 1e-9)
        rate = (rows_done - self._rows_before) / passed
        text = (
            f"loss {loss_sum / rows_done:.3f}  accuracy {100 * hit_sum / rows_done:.1f}%  "
            f"{rate:.0f} images/s"
        )
        self._bar.update(self._task, completed=self._epoch * self._rows + rows_done, text=text)
        self._rate = rate

    def epoch_done(self, line: dict[str, Any], name: str = "") -> None:
        """Says the epoch's line; `name` is of the run, where there are several."""
        done = line["epoch"]
        left = self._left(done)
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
        parts += [f"{rate:.0f} images/s", *([] if left is None else [f"{clock(left)} left"])]
        self.say("  ".join(parts))

    def _left(self, done: int) -> float | None:
        """Seconds, without what was compiled in the first epoch; None while nothing is known."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if done > self._first[1]:
            return (now - self._first[0]) / (done - self._first[1]) * (self._epochs - done)
        if done >= self._epochs:
            return 0.0
        if self._warm is None or self._seen[1] <= self._warm[1]:
            return None
        row = (self._seen[0] - self._warm[0]) / (self._seen[1] - self._warm[1])
        return row * self._rows * (self._epochs - done)

    def say(self, text: str) -> None:
        """Prints; where nobody reads it any more, or a log's disk is full, StopNow, so as to save.

        Of several processes one alone cannot stop: it ends, and the others find it gone.
        """
        try:
            self._console.print(text, markup=False)
        except (OSError, SystemExit) as error:  # rich leaves where a reader has gone
            import jax

            if jax.process_count() > 1:
                raise
            why = reason(error) if isinstance(error, OSError) else "nobody reads it"
            print(f"what this run says cannot be printed: {why}", file=sys.stderr, flush=True)
            self._console.quiet = True
            raise StopNow(1) from None

    def warn(self, text: str) -> None:
        """What a quiet run says too, on stderr."""
        if self._console.quiet:
            print(text, file=sys.stderr, flush=True)
        else:
            self.say(text)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Counted:
    """Progress of work that is counted and timed by whoever does it, compilation left out.

    A live bar on a terminal, else a line every ten seconds; both on standard error.

    Args:
      total: how many units there are.
      unit: their name, in the plural.
      what: of which work.
    """

    EVERY = 10.0  # seconds

    def __init__(self, total: int, unit: str, what: str = ""):
        self._total, self._unit, self._what = total, unit, what
        self._done, self._seconds, self._said = 0, 0.0, time.monotonic()
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total, text="compiling")

    def __enter__(self) -> Counted:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def compiling(self, number: int, of: int) -> None:
        """Program `number` is being compiled, of so many."""
        self._show(f"compiling {number} of {of}")

    def advance(self, units: int, seconds: float) -> None:
        """So many more are done, in so many seconds without compilation."""
        self._done += units
        self._seconds += seconds
        left = self._seconds / max(self._done, 1) * (self._total - self._done)
        self._bar.update(self._task, completed=self._done)
        self._show(f"{self._done} of {self._total} {self._unit}, {clock(left)} left")

    def _show(self, text: str) -> None:
        self._bar.update(self._task, text=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= self.EVERY:
            self._said = now
            self._console.print(" ".join(filter(None, (self._what, text))), markup=False)
