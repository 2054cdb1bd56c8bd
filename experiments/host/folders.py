"""A run folder: config.json, metrics.jsonl, checkpoints/, aside/, report.json, plots."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import fcntl
import io
import json
import math
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host.errors import RunError, cannot_write, reason


class Lock:
    """Owns a folder until closed, so that no two processes write the same one; makes it.

    Raises:
      RunError: it cannot be made or written, or another process owns it.
    """

    def __init__(self, path: Path):
        check_out(path)
        self._path, self._fresh = path, not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Not through a link, whose target would be taken for ours; not waiting for a pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.open(path / LOCK, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP and (path / LOCK).is_symlink():
                raise RunError(f"{path / LOCK} is a symbolic link: remove it") from error
            raise cannot_write(path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise RunError(f"{path / LOCK} is no file: remove it")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(f"cannot lock {path}: {reason(error)}") from error
            raise RunError(
                f"{path} is in use by another process: wait for it, or choose another --out"
            ) from error
        except RunError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        if failed and self._fresh and os.listdir(self._path) == [LOCK]:  # nothing came of it
            (self._path / LOCK).unlink()
            self._path.rmdir()
        self.close()


LOCK = ".lock"


def check_out(path: Path) -> None:
    """RunError for a path at which no folder could be made, written and named."""
    text = os.fspath(path)
    if not _is_utf8(text) or "\0" in text:
        raise RunError(f"{text!r} is not UTF-8 text: choose another --out")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise RunError(f"{path} is a URL, but only folders can be written: choose another --out")
    try:
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is no folder: choose another --out")
    except OSError as error:  # a name that is too long, a folder above that is closed to us
        raise cannot_write(path, error) from error


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
    together, devices = config.get("together"), config.get("devices", 1)
    seeds = together if isinstance(together, list) else []
    if not (together is None or (seeds and all(type(seed) is int for seed in seeds))):
        raise RunError(f"cannot read {path}: together is {same_text(together)}, no list of seeds")
    if type(devices) is not int or devices < 1:
        raise RunError(f"cannot read {path}: devices is {same_text(devices)}, no number of them")
    return config


def holds_something(path: Path) -> bool:
    """Whether there is a folder, with more in it than its lock."""
    check_out(path)
    try:
        return path.exists() and any(name != LOCK for name in os.listdir(path))
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error


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
        elif set(os.listdir(path) if something else []) - {LOCK, "config.json.partial"}:
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


METRICS = "metrics.jsonl"
# Of a report: what the table of finished runs is made of.
_REPORTED = (
    "rule", "rule_args", "loss", "seed", "settings", "best_epoch_flip", "params_sha256",
    "many", "medium", "few", "all",
)  # fmt: skip
EVERY = ("epoch", "step", "lr", "train_loss", "train_accuracy")


def different(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In what two configs differ, as "lr 0.05 -> 0.01, seed 0 -> 1"; None is as good as nothing."""
    new = json.loads(json.dumps(new))
    found = [
        f"{key} {same_text(old.get(key))} -> {same_text(new.get(key))}"
        for key in sorted({*old, *new})
        if not _same(old.get(key), new.get(key))
    ]
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _same(a: Any, b: Any) -> bool:
    """Equal, and of one kind: True is not 1, but 1.0 is."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def same_text(value: Any) -> str:
    """A value for a sentence: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(path: Path) -> Any:
    """The value in a file; RunError, naming it, where there is none."""
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"cannot read {path}: it is no file")
        return json.loads(path.read_bytes().decode())
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read {path}: it is not UTF-8 text ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: it is not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"cannot read {path}: it holds {same_text(value)}, where an object belongs")
    return value


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


def is_number(value: Any) -> bool:
    """A finite number of JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all: a reader or a kill never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # of a kill; never written through a link
        with open(partial, "x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file in its place
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of what is written to this file or folder, as a sentence that names it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_flags(out: Path, args: argparse.Namespace) -> None:
    """The config.json of a folder of several runs: how it was asked for, and on what machine."""
    flags = {key: value for key, value in vars(args).items() if key != "overwrite"}
    write_json(out / "config.json", {**flags, "command": command_line(), **environment()})


def environment() -> dict[str, Any]:
    """Device, versions and commit: what a figure needs beside its command to be repeated."""
    import jax

    devices = jax.devices()
    kind = devices[0].device_kind
    host = f"{_processor()}, {os.cpu_count()} cores"
    device = f"{len(devices)} x {kind}" + (f" ({host})" if devices[0].platform == "cpu" else "")
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    import imbsam_jax

    versions["imbsam_jax"] = imbsam_jax.__version__
    return {"device": device, "versions": versions, "git": _commit()}


def command_line() -> str:
    """The command as typed, the script by its module; what is to be kept takes relative paths."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":  # a package of its own
        script = script.parent.with_suffix(".py")
    parts = script.with_suffix("").parts[-2:] if script.suffix == ".py" else script.parts[-1:]
    return " ".join(["python -m", ".".join(parts), *sys.argv[1:]])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        dirty = git(
            "status", "--porcelain", "--untracked-files=no", "--", "imbsam_jax", "experiments"
        )
        return git("rev-parse", "HEAD") + ("+changes" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
