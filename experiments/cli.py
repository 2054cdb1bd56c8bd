"""What the entry points share: flags, and errors as one clear last line with an exit code."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from experiments.errors import RunError, Stopped


def parser(description: str) -> argparse.ArgumentParser:
    """Flags are spelled out in full, shown with their defaults; an unknown one is an error."""
    return argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def given(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> list[str]:
    """The flags on a command line without mistakes, whatever their values: ["--data", ...]."""
    left_out: list[Any] = []  # a list, for flags that append to theirs
    nothing = dict.fromkeys(vars(parser.parse_args(argv)), left_out)
    found = vars(parser.parse_args(argv, argparse.Namespace(**nothing)))
    return [f"--{name.replace('_', '-')}" for name, value in found.items() if value is not left_out]


def is_plain_name(text: str) -> bool:
    """Whether a flag's value may become part of the name of a file: it leads nowhere else.

    >>> [is_plain_name(text) for text in ("tau_1.9", "é", "", "..", "a/b", "-x", "a*")]
    [True, True, False, False, False, False, False]
    """
    return bool(re.fullmatch(r"[\w+=,][\w.+=,-]*", text)) and len(text.encode()) <= 100


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs main(args); exits 1 on what the user can mend, 143, 130 or 75 after a stop."""
    from experiments.data import DataError
    from experiments.stopping import StopNow

    try:
        main(args)
    except (RunError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _leave_the_others(1)
        sys.exit(1)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except StopNow:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        _leave_the_others(130)
        print("interrupted before training began: nothing to save", file=sys.stderr)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        _leave_the_others(1)
        sys.exit(1)


def _leave_the_others(code: int) -> None:
    """Ends one process of several at once: leaving in order would wait for the others."""
    import os

    import jax

    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs, in the user's cache folder unless set elsewhere."""
    import os
    from pathlib import Path

    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "imbsam_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
