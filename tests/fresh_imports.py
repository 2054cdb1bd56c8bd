"""What reading data brings along, of a process of its own: one for the tests of a worker."""

import functools
import subprocess
import sys

from places import ROOT

READERS = ("cifar", "decode", "image_sets", "stream")


@functools.cache
def imported() -> frozenset[str]:
    """The top-level names of all modules that are there once experiments.data's readers are."""
    names = ", ".join(f"experiments.data.{name}" for name in READERS)
    code = f"import sys, {names}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return frozenset(done.stdout.split())
