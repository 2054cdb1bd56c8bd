"""What the tests stand on where JAX is another than the one they were written with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jax._src.interpreters import mlir
from jax._src.lru_cache import LRUCache

import compile_cache
import ir_context
import xla_flags


def test_flags_that_a_jaxlib_does_not_know_are_left_out(tmp_path: Path) -> None:
    """Each is tried alone where they do not start together, and none a second time."""
    tried = []

    def starts(flags: Sequence[str]) -> bool:
        tried.append(tuple(flags))
        return "--gone=1" not in flags

    for _ in range(2):
        assert xla_flags.known(("--here=1", "--gone=1"), tmp_path, starts) == ["--here=1"]
    assert tried == [("--here=1", "--gone=1"), ("--here=1",), ("--gone=1",)]
    assert xla_flags.known(("--gone=1",), tmp_path, starts) == []
    assert xla_flags.known(("--there=1",), tmp_path, starts) == ["--there=1"]


@pytest.mark.slow
def test_jax_starts_with_flags_that_it_knows_alone() -> None:
    assert xla_flags._jax_starts(["--xla_backend_optimization_level=0"])
    assert not xla_flags._jax_starts(["--xla_no_such_flag=1"])


def _other(self: Any, key: str, value: bytes, time: int) -> None: ...


@pytest.mark.parametrize("put", [None, _other])
def test_a_cache_that_jax_keeps_another_way_is_not_shared(put: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(LRUCache, "put", put)
    assert not compile_cache.is_shared_safely()
    assert LRUCache.put is put
    monkeypatch.setitem(sys.modules, "jax._src.lru_cache", None)
    assert not compile_cache.is_shared_safely()


def test_entries_are_put_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(LRUCache, "put", LRUCache.put)  # put back at the end
    assert compile_cache.is_shared_safely()
    cache = LRUCache(str(tmp_path), max_size=-1)
    cache.put("key", b"program")
    cache.put("key", b"another")
    assert cache.get("key") == b"program"
    assert [path.name for path in tmp_path.iterdir()] == ["key-cache"]


def test_programs_share_a_context_for_a_while(monkeypatch: Any) -> None:
    made: list[object] = []
    monkeypatch.setattr(mlir, "make_ir_context", lambda: made.append(object()) or made[-1])
    assert ir_context.share()
    given = [mlir.make_ir_context() for _ in range(ir_context.PROGRAMS + 1)]
    assert given == [made[0]] * ir_context.PROGRAMS + [made[1]] and len(made) == 2


def test_a_jax_without_such_a_context_is_left_as_it_is(monkeypatch: Any) -> None:
    monkeypatch.delattr(mlir, "make_ir_context")
    assert not ir_context.share()
