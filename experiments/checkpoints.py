"""Checkpoints by orbax: asynchronous saves, and the last whole one found again after any crash."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.errors import RunError


class Checkpoints:
    """The last few checkpoints of a run: a state (arrays) and a note (JSON) each.

    Args:
      path: their folder.
      keep: how many to keep; at least 2, so that a damaged one has a predecessor.
    """

    def __init__(self, path: Path, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._failed = False
        self._manager = ocp.CheckpointManager(
            path.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        )

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        """Begins to save; that it failed may be found out by the next call only."""
        with self._writing():
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note)
                ),
            )

    def latest_step(self) -> int | None:
        with self._writing():
            self._manager.wait_until_finished()
        return self._manager.latest_step()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk makes orbax and its writers raise many types
            self._failed = True
            last = self._manager.latest_step()
            whole = "none is whole yet" if last is None else f"the last whole one is step {last}"
            raise RunError(
                f"a checkpoint could not be written ({_reason(error)}); {whole}: make room in "
                f"{self._manager.directory}, and start again with --resume"
            ) from error

    def restore(self, like: Any, say: Any = print) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None where there is none.

        Damaged ones are reported by `say`, and removed once an older one was read: the run will
        write them again.
        """
        steps = self.steps()
        for step in steps:
            found = self.read(step, like, say)
            if found is not None:
                self.drop_after(step)
                return found
        if steps:
            raise RunError(
                f"none of the {len(steps)} checkpoints in {self._manager.directory} can be read: "
                "start again in another --out"
            )
        return None

    def steps(self) -> list[int]:
        """The newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def read(self, step: int, like: Any, say: Any = print) -> tuple[Any, dict[str, Any]] | None:
        """(state, note) of that step; None where it is damaged, which is said."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), note=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # whatever a damaged file makes orbax or its codecs raise
            say(
                f"checkpoint of step {step} is damaged ({_reason(error)}); trying the one before it"
            )
            return None
        return found["state"], found["note"]

    def drop_after(self, step: int) -> None:
        """Removes what is newer: a run that goes on from that step will write it again."""
        for newer in self.steps():
            if newer > step:
                self._manager.delete(newer)

    def close(self) -> None:
        """Waits for what is being saved; RunError where that failed and no call has said so yet."""
        if self._failed:
            return
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:400] if lines else 'no message'}"
