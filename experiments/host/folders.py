"""A run folder: config.json, metrics.jsonl, checkpoints/, aside/, report.json, plots."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host.errors import RunError, cannot_write, reason
from experiments.host.locks import Lock, check_out, holds_something
from experiments.host.outputs import is_number, read_object, replace_text, same_text, write_json


def check_run(path: Path) -> None:
    """As `check_out`, and for a path under which checkpoints could be written and not read.

    Orbax looks for their parts with the path as part of a pattern, and what writes the arrays
    takes a backslash for a slash.
    """
    check_out(path)
    found = [c for c in "[]*?\\" if c in str(path.absolute())]
    if found:
        raise RunError(
            f"checkpoints cannot be kept under {path.absolute()}, because of the "
            f"{' and '.join(found)} in it: choose another --out, or a symbolic link to this one"
        )


def begun(path: Path) -> dict[str, Any]:
    """config.json of a run that may be resumed, as far as it says how the run is shared out."""
    config = read_object(path)
    together, devices = config.get("together"), config.get("devices")
    seeds = together if isinstance(together, list) else []
    if not (together is None or (seeds and all(type(seed) is int for seed in seeds))):
        raise RunError(f"cannot read {path}: together is {same_text(together)}, no list of seeds")
    if devices is not None and (type(devices) is not int or devices < 1):
        raise RunError(f"cannot read {path}: devices is {same_text(devices)}, no number of them")
    return config


class RunFolder:
    """Owns a folder for the length of a run, so that no two runs write the same one.

    Args:
      path: the folder; made if it is not there.
      config: what decides the result. A resumed run must have the same.
      resume: continue the run in the folder, or start one where there is none.
      owner: False on the other processes of a run: they look, and write nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        resume: bool,
        owner: bool = True,
    ):
        self.path, self._lock = Path(path), None
        if not owner:
            return
        self.check(self.path, config, resume)
        self._lock = Lock(self.path)
        try:
            write_json(self.path / "config.json", config)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def check(path: Path, config: dict[str, Any], resume: bool) -> None:
        """Refuses what a RunFolder there would refuse, and writes nothing."""
        check_run(path)
        something, old = holds_something(path), path / "config.json"
        if old.exists() and not resume:
            raise RunError(
                f"{path} already holds a run: continue it with --resume, or choose another --out"
            )
        if old.exists():
            what = different(read_object(old), config)
            if what:
                raise RunError(
                    f"{path} holds a run with other settings ({what}): choose another --out"
                )
        elif something:
            raise RunError(f"{path} is not empty and holds no run: choose another --out")

    @property
    def owned(self) -> bool:
        return self._lock is not None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def finished(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The report, where there is one; RunError for one that is not of this run."""
        path = self.path / "report.json"
        if not path.exists():
            return None
        report = read_object(path)
        settings = report.get("settings")
        known = {**(settings if isinstance(settings, dict) else {}), **report}
        what = different({key: known.get(key) for key in config}, config)
        lacks = [name for name in _REPORTED if name not in report]
        if what or lacks:
            why = f"is of a run with other settings ({what})" if what else "is no whole report"
            raise RunError(
                f"{path} {why}: remove it, and --resume writes it anew from the last checkpoint"
            )
        return report

    def append_metrics(self, line: dict[str, Any]) -> None:
        if not self.owned:
            return
        path = self.path / METRICS
        try:
            with open(path, "a+b") as file:
                if file.tell() and _last_byte(file) != b"\n":
                    file.write(b"\n")  # a line that was cut short stays by itself
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def keep_metrics(self, epochs: int, say: Any = print) -> list[dict[str, Any]]:
        """Drops lines past that many epochs: those a killed run wrote after its last checkpoint."""
        path = self.path / METRICS
        lines = [line for line in read_metrics(path, say, EVERY) if line["epoch"] <= epochs]
        if self.owned and path.exists():
            replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        return lines

    def write_per_class(
        self, counts: np.ndarray, correct: np.ndarray, total: np.ndarray, names: Any
    ) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["class", "name", "train_examples", "test_examples", "correct", "accuracy"])
        for c, (n, hits, of) in enumerate(zip(counts, correct, total, strict=True)):
            accuracy = "" if of == 0 else f"{100 * hits / of:.4f}"
            writer.writerow([c, names[c] if names else "", int(n), int(of), int(hits), accuracy])
        replace_text(self.path / "per_class.csv", text.getvalue())


_IMAGES_IN = re.compile("images in (.+), chosen and labelled by lists(.*)", re.DOTALL)


def place_of(source: str) -> str:
    """What a data set says of its place, the folder of images as it is without links."""
    found = _IMAGES_IN.fullmatch(source)
    if found is None:
        return source
    folder = os.path.realpath(os.path.expanduser(found[1]))
    return f"images in {folder}, chosen and labelled by lists{found[2]}"


def same_source(one: Any, other: Any) -> bool:
    """Whether two data sets say that they are of one place, however the way there is written."""
    return bool(one == other) or place_of(str(one)) == place_of(str(other))


def as_begun(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config, with the folder of its images written as in the run that `path` holds, if any."""
    check_run(path)
    old = path / "config.json"
    source = read_object(old).get("source") if old.exists() else None
    known = source is not None and same_source(source, config.get("source"))
    return {**config, "source": source} if known else config


METRICS = "metrics.jsonl"
# Of a report: what the table of finished runs is made of.
_REPORTED = (
    "rule", "rule_args", "loss", "seed", "settings", "best_epoch_flip", "params_sha256",
    "many", "medium", "few", "all",
)  # fmt: skip
EVERY = ("epoch", "step", "lr", "train_loss", "train_accuracy")


# Of a config: what runs begun before it was written down do not say, and may be resumed without.
SINCE = {"image_shape", "image_mean", "image_std", "texts_sha256", "rows_sha256"}


def different(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two configs differ, as "lr 0.05 -> 0.01, seed 0 -> 1"; None is as good as nothing.

    What the old one does not say of SINCE is not known, and no difference.
    """
    new = json.loads(json.dumps(new))
    found = [
        f"{key} {same_text(old.get(key))} -> {same_text(new.get(key))}"
        for key in sorted({*old, *new})
        if not (_same(old.get(key), new.get(key)) or (key in SINCE and old.get(key) is None))
    ]
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _same(a: Any, b: Any) -> bool:
    """Equal, and of one kind: True is not 1, but 1.0 is."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def read_metrics(
    path: Path, say: Any = print, needed: tuple[str, ...] = ("epoch",)
) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, of one epoch each; those that are damaged are said and left.

    The first line of an epoch counts. One that lacks what is needed is damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"cannot read {path}: it is no file")
        raw = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error
    lines: dict[int, dict[str, Any]] = {}
    damaged = []
    for number, text in enumerate(raw.split(b"\n"), start=1):
        if not text.strip():
            continue
        line = _metrics_line(text, needed)
        if line is None or line["epoch"] in lines:
            damaged.append(number)
        else:
            lines[line["epoch"]] = line
    if damaged:
        which = f"line{'s' * (len(damaged) > 1)} {', '.join(map(str, damaged[:20]))}"
        say(f"note: {path} is damaged in {which}: left out")
    return [lines[epoch] for epoch in sorted(lines)]


def _metrics_line(text: bytes, needed: tuple[str, ...]) -> dict[str, Any] | None:
    """None unless it is an object of numbers, those that every epoch has finite."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    others = [value for name, value in line.items() if name not in EVERY]
    if not all(is_number(line.get(name)) for name in EVERY if name in line or name in needed):
        return None
    if not all(value is None or isinstance(value, float) or is_number(value) for value in others):
        return None
    epoch, step = line["epoch"], line.get("step", 0)
    whole = isinstance(epoch, int) and isinstance(step, int) and epoch > 0
    return line if whole and step % epoch == 0 else None  # every epoch has as many steps


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read())
