"""One context of the compiler for many programs, where JAX makes one for each."""

from __future__ import annotations

from typing import Any

PROGRAMS = 500  # What its programs were made of stays in a context: so a new one after these.


def share() -> bool:
    """Half of a small program's time went into its context; False where this JAX has no such one.

    Each context of the thousands that the tests ask for registers the same dialects anew, some 5 ms
    of 15 for a program that XLA has compiled before. The programs are the same.
    """
    try:
        from jax._src.interpreters import mlir

        make = mlir.make_ir_context
    except (ImportError, AttributeError):
        return False
    made: list[Any] = []
    asked = 0

    def shared() -> Any:
        nonlocal asked
        if asked % PROGRAMS == 0:
            made[:] = [make()]
        asked += 1
        return made[0]

    mlir.make_ir_context = shared
    return True
