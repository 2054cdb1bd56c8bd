"""Which flags of XLA this jaxlib knows: a name that it does not know aborts the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path


def known(
    flags: Sequence[str], cache: Path, starts: Callable[[Sequence[str]], bool] | None = None
) -> list[str]:
    """Those of the flags with which JAX starts; tried once for each jaxlib and kept in a file."""
    starts = starts or _jax_starts
    kept = cache / f"xla_flags-{version('jaxlib')}.json"
    try:
        answers = json.loads(kept.read_text())
    except (OSError, ValueError):
        answers = {}
    new = [flag for flag in flags if flag not in answers]
    if new:
        together = starts(new)
        answers |= {flag: together or (len(new) > 1 and starts([flag])) for flag in new}
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(answers))
        part.replace(kept)
    return [flag for flag in flags if answers[flag]]


def _jax_starts(flags: Sequence[str]) -> bool:
    env = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=env, capture_output=True
    )
    return done.returncode == 0
