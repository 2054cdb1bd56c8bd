"""A run folder: config.json, metrics.jsonl, checkpoints/, report.json, per_class.csv, plots."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import RunError


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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until close()
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunError(
                f"{self.path} is in use by another process: wait for it, or choose another --out"
            ) from error
        write_json(self.path / "config.json", config)

    @staticmethod
    def check(path: Path, config: dict[str, Any], resume: bool) -> None:
        """Refuses what a RunFolder there would refuse, and writes nothing."""
        old = path / "config.json"
        if old.exists() and not resume:
            raise RunError(
                f"{path} already holds a run: continue it with --resume, or choose another --out"
            )
        if old.exists():
            _check_same(read_json(old), config, path)
        elif path.exists() and any(p.name != ".lock" for p in path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run: choose another --out")

    @property
    def owned(self) -> bool:
        return self._lock is not None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def append_metrics(self, line: dict[str, Any]) -> None:
        if not self.owned:
            return
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Drops lines past that many epochs: those a killed run wrote after its last checkpoint."""
        path = self.path / "metrics.jsonl"
        lines = []
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    break  # cut short by the kill
                if line["epoch"] <= epochs:
                    lines.append(line)
            if self.owned:
                replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        return lines

    def write_per_class(
        self, counts: np.ndarray, correct: np.ndarray, total: np.ndarray, names: Any
    ) -> None:
        with open(self.path / "per_class.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["class", "name", "train_examples", "test_examples", "correct", "accuracy"]
            )
            for c, (n, hits, of) in enumerate(zip(counts, correct, total, strict=True)):
                accuracy = "" if of == 0 else f"{100 * hits / of:.4f}"
                writer.writerow(
                    [c, names[c] if names else "", int(n), int(of), int(hits), accuracy]
                )


def _check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    new = json.loads(json.dumps(new))
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if different:
        what = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in different)
        raise RunError(f"{path} holds a run with other settings ({what}): choose another --out")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all: a reader or a kill never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


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
