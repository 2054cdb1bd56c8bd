"""Every damage to a JSON file that we know, and kills at any file that is written."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.host import outputs


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in a JSON value stands, itself at ()."""
    yield path
    pairs = enumerate(value) if isinstance(value, list) else ()
    for key, child in value.items() if isinstance(value, dict) else pairs:
        yield from _nodes(child, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at a path, or without it for an ellipsis."""
    if not path:
        return new
    value = value.copy()
    if len(path) == 1:
        value[path[0]] = new
        if new is ...:
            del value[path[0]]
    else:
        value[path[0]] = _changed(value[path[0]], path[1:], new)
    return value


def damaged_json(text: str) -> Iterator[tuple[Any, bytes]]:
    """(what was done, the bytes then) of each; some of them still mean the same."""
    whole = text.encode()
    for data in (b"", b"{", b"not JSON", b"[]", b"3", b"null", b'"x"', b"\xff\xfe" + whole,
                 whole[: len(whole) // 2], whole.replace(b"a", b"\xe9", 1), whole + b"}",
                 b"[" * 5000, b"\0" * 50):  # fmt: skip
        yield data[:20], data
    value = json.loads(text)
    for path in _nodes(value):
        here = functools.reduce(lambda v, key: v[key], path, value)
        beside = [str(int(here) + d) for d in (-1, 1)] if str(here).isdecimal() else []
        for new in (*beside, ..., None, -1, "x", [], {}, "1000000000", float("nan")):
            if path or new is not ...:
                yield (path, new), json.dumps(_changed(value, path, new)).encode()
        if isinstance(here, dict):
            yield (path, "unknown"), json.dumps(_changed(value, (*path, "unknown"), 1)).encode()


class Killed(BaseException):
    """In the place of a kill: nothing catches it."""


class Kills:
    """Ends a command at a write, as a kill does that comes before it.

    `names` are the files written since `at` was called; at(None) kills nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.names: list[str] = []
        self._last: int | None = None
        self._replace = outputs.replace_bytes
        monkeypatch.setattr(outputs, "replace_bytes", self._written)

    def at(self, write: int | None) -> None:
        self.names, self._last = [], write

    def _written(self, path: Path, content: bytes) -> None:
        if len(self.names) == self._last:
            raise Killed
        self.names.append(path.name)
        self._replace(path, content)
