"""What the entry points share: flags and their ranges, and errors as one clear last line."""

from __future__ import annotations

import argparse
import io
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from experiments.host import errors
from experiments.host.errors import SEEDS, DataError, RunError, Stopped, reason
from experiments.host.needs import Needs

_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_OF_TYPE = r"^argument (\S+): (?=must |is |holds |becomes )"
_FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # smallest normal number, and the largest


class number:
    """The type of a numeric flag: what it may be is part of its declaration, and of --help.

    Args:
      least, most: bounds that are allowed; over, below: bounds that are not.
      whole: int, not float.
      infinite: "inf" is allowed, too.

    >>> number(least=0)("0.05"), number(least=1, whole=True)("3"), number(over=1, infinite=True)
    (0.05, 3, number: over 1, or inf)
    """

    def __init__(
        self,
        *,
        least: float | None = None,
        over: float | None = None,
        most: float | None = None,
        below: float | None = None,
        whole: bool = False,
        infinite: bool = False,
    ):
        self.least, self.over, self.most, self.below = least, over, most, below
        self.whole, self.infinite = whole, infinite

    @property
    def range(self) -> str:
        """In words, as --help shows it."""
        bounds = (
            ("at least", self.least), ("over", self.over),
            ("at most", self.most), ("below", self.below),
        )  # fmt: skip
        words = [f"{word} {_plain(bound)}" for word, bound in bounds if bound is not None]
        text = ("whole, " * self.whole + " and ".join(words)) or "any number"
        return text + ", or inf" * self.infinite

    def __repr__(self) -> str:
        return f"number: {self.range}"

    def __call__(self, text: str) -> Any:
        if self.infinite and text.lower() in ("inf", "+inf"):
            return float("inf")
        if not (_WHOLE if self.whole else _REAL).fullmatch(text):
            self._refuse(text)
        try:
            value: Any = int(text) if self.whole else float(text) + 0.0  # no -0.0
        except ValueError:  # more digits than Python converts
            self._refuse(text, " (too long)")
        if not self.holds(value):
            self._refuse(text)
        # What steps and parameters are counted in.
        if abs(value) > (2**32 - 1 if self.whole else _FLOAT32[1]):
            self._refuse(text, ", which 32 bits cannot hold")
        if not self.whole and 0 < abs(value) < _FLOAT32[0]:
            self._refuse(text, ", which is 0 in float32")
        return value

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return (
            (self.least is None or value >= self.least)
            and (self.over is None or value > self.over)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def _refuse(self, text: str, why: str = "") -> NoReturn:
        kind = "a whole number" if self.whole else "finite"
        if self.whole and _WHOLE.fullmatch(text):
            kind = ""  # it is one
        words = self.range.removeprefix("whole, ")
        must = " and ".join(filter(None, (kind, "" if words == "any number" else words)))
        shown = text if re.fullmatch(r"\S{1,40}", text) else repr(text[:40])
        raise argparse.ArgumentTypeError(f"must be {must}, got {shown}{why}")


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def counted(most: int | None = None) -> number:
    """The type of a number of things, at least 1."""
    return number(least=1, most=10**6 if most is None else most, whole=True)


devices = number(least=0, most=4096, whole=True)
seed = number(least=SEEDS.start, most=SEEDS.stop - 1, whole=True)


def text(value: str) -> str:
    """The type of a flag that is a name or a path."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty")
    if "\0" in value:
        raise argparse.ArgumentTypeError("holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"is no UTF-8: {value!r}") from None
    return value


def tag(value: str) -> str:
    """The type of a flag that becomes part of a folder's name, and leads nowhere else; "" is none.

    >>> tag("tau_1.9"), tag("lr=0.1,wd=5e-4"), tag("é")
    ('tau_1.9', 'lr=0.1,wd=5e-4', 'é')
    """
    plain = re.fullmatch(r"[\w+=,][\w.+=,-]*", value) and len(value.encode()) <= 100
    if value and not plain:
        raise argparse.ArgumentTypeError(
            "becomes part of a folder's name: letters, digits and . _ - + = , alone, at most 100 "
            f"bytes and no . or - first, got {value!r}"
        )
    return value


def address(value: str) -> str:
    """The type of a flag that is HOST:PORT."""
    host, _, port = value.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, port 1 to 65535, got {value!r}")
    return text(value)


def noun(count: int, one: str, many: str | None = None) -> str:
    """A number and what it counts.

    >>> noun(1, "seed"), noun(0, "seed"), noun(2, "class", "classes")
    ('1 seed', '0 seeds', '2 classes')
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"


class Parser(argparse.ArgumentParser):
    """Flags are spelled out in full, shown with range and default; an unknown one is an error.

    So is one that nothing would heed beside the others. `parse_args` refuses those that were typed;
    `parse_known_args`, as of every ArgumentParser, does not.

    Args:
      needs: by name, with _ for -, when each flag is heeded.
    """

    def __init__(self, description: str, needs: Needs):
        super().__init__(description=description, allow_abbrev=False, formatter_class=_Formatter)
        self.needs = dict(needs)
        # Also -1e-3 and -inf are values, not flags.
        self._negative_number_matcher = re.compile(rf"-({_REAL.pattern}|inf|nan)$")

    def error(self, message: str) -> NoReturn:
        """One sentence; the usage would bury it."""
        self.exit(2, "error: " + re.sub(_OF_TYPE, r"\1 ", message) + "\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        argv = sys.argv[1:] if args is None else list(args)
        found = super().parse_args(argv, namespace)
        for flag in given(self, argv):
            for need in self.needs[flag.removeprefix("--").replace("-", "_")]:
                if not need.met(found):
                    self.error(f"{flag} needs {need.words}: nothing would heed it")
        return found


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(" (default: %(default)s)")
        if isinstance(action.type, number):
            text += f" [{action.type.range}]"
        default = action.default
        if default is None or default is argparse.SUPPRESS or default in ("", []):
            return text
        if not action.option_strings or isinstance(action, argparse._StoreFalseAction):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


def parser(description: str, needs: Needs) -> Parser:
    """A parser whose flags are checked against their ranges and against each other."""
    return Parser(description, needs)


def given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The flags on a command line without mistakes, whatever their values: ["--data", ...]."""
    left_out: list[Any] = []  # a list, for flags that append to theirs
    nothing = dict.fromkeys(vars(parser.parse_known_args(argv)[0]), left_out)
    found = vars(parser.parse_known_args(argv, argparse.Namespace(**nothing))[0])
    flags = {action.dest: action.option_strings for action in parser._actions}
    return [
        flags[name][0] for name, value in found.items() if value is not left_out and flags.get(name)
    ]


def refuse_twice(args: argparse.Namespace, *names: str) -> None:
    """RunError for a list that names a value twice: it would be done twice."""
    for name in names:
        values = getattr(args, name) or []
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise RunError(f"{errors.flag(name)} names {twice[0]} twice")


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs main(args); exits 1 on what the user can mend, 143, 130 or 75 after a stop."""
    from experiments.host.stopping import StopNow

    _print_anything()
    try:
        main(args)
    except (RunError, DataError, OSError) as error:
        words = _of_the_system(error) if isinstance(error, OSError) else error
        print(f"error: {words}", file=sys.stderr, flush=True)
        _leave_the_others(1)
        sys.exit(1)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except StopNow as stopped:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        _leave_the_others(130)
        print("interrupted before training began: nothing to save", file=sys.stderr)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        _leave_the_others(1)
        sys.exit(1)


def _print_anything() -> None:
    """Output not in UTF-8 escapes what it has no sign for: a finished run would end in a fault."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _of_the_system(error: OSError) -> str:
    """What failed and where, without the number of the error."""
    return reason(error) if error.filename is None else f"{error.filename}: {reason(error)}"


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
