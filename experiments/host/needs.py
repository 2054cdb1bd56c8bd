"""When a flag is heeded beside which others: a table beside each parser, asked by `cli.Parser`.

A flag that was typed and that nothing heeds is refused. () is: always heeded. Which values go
together, run/compatible.py says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Need(NamedTuple):
    """When a flag is heeded.

    Attributes:
      met: of the parsed flags.
      words: what it needs, after "needs": "--rho-schedule step".
    """

    met: Callable[[argparse.Namespace], bool]
    words: str


Needs = Mapping[str, tuple[Need, ...]]


def always(*names: str) -> Needs:
    """Flags, with _ for -, that are heeded whatever the others are."""
    return dict.fromkeys(names, ())


def one_of(flag: str, wanted: Iterable[str]) -> Need:
    """Needs --flag with one of these values."""
    wanted = list(wanted)
    return Need(
        lambda args: not set(wanted).isdisjoint(values_of(args, flag)),
        f"--{flag} {' or '.join(wanted)}",
    )


def either(one: Need, other: Need) -> Need:
    return Need(lambda args: one.met(args) or other.met(args), f"{one.words}, or {other.words}")


def without(flag: str) -> Need:
    """Needs that another flag is left out."""
    return Need(lambda args: not getattr(args, _name(flag)), f"--{flag} left out")


def beside(*flags: str) -> Need:
    """Needs one of these flags."""
    return Need(
        lambda args: any(getattr(args, _name(flag)) not in (None, False, []) for flag in flags),
        " or ".join(f"--{flag}" for flag in flags),
    )


def values_of(args: argparse.Namespace, flag: str) -> list[Any]:
    """The values of a flag, which in some entries takes one and in others a list."""
    value = getattr(args, _name(flag), [])
    return value if isinstance(value, list) else [value]


def _name(flag: str) -> str:
    return flag.replace("-", "_")
