"""The --out of a benchmark: looked at, made and locked before anything is measured."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

from experiments.host import locks

Main = Callable[[argparse.Namespace], None]


def owning_out(main: Main) -> Main:
    """A `main` that owns --out while it runs; where nothing came of it, no folder is left."""

    @functools.wraps(main)
    def owning(args: argparse.Namespace) -> None:
        with locks.Lock(Path(args.out)):
            main(args)

    return owning
