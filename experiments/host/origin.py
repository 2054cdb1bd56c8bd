"""How a figure was made: the command, the machine, versions and the commit."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.host.outputs import write_json


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
    variables = {
        name: value for name, value in sorted(os.environ.items())
        if value and name.startswith(_OF_JAX) and "CACHE" not in name
    }  # fmt: skip
    return {"device": device, "versions": versions, "variables": variables, "git": _commit()}


_OF_JAX = ("JAX_", "XLA_", "NVIDIA_TF32_OVERRIDE")
# By which JAX draws, multiplies and rounds, and its defaults.
_DECIDES = {
    "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None, "jax_enable_x64": False,
}  # fmt: skip


def jax_settings() -> dict[str, Any]:
    """{"jax": those settings that make other numbers and are not its defaults}, or nothing."""
    import jax

    found = {name: getattr(jax.config, name) for name in _DECIDES}
    others = {name: value for name, value in found.items() if value != _DECIDES[name]}
    return {"jax": others} if others else {}


def command_line() -> str:
    """The command as typed, the script by its module; what is to be kept takes relative paths."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":  # a package of its own
        script = script.parent.with_suffix(".py")
    parts = script.with_suffix("").parts[-2:] if script.suffix == ".py" else script.parts[-1:]
    return f"python -m {shlex.join(['.'.join(parts), *sys.argv[1:]])}"


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
