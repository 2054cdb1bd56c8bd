"""Checkpoints by orbax: asynchronous saves, and the last whole one found again after any crash."""

from __future__ import annotations

import logging
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
        self._manager = ocp.CheckpointManager(
            path.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        )

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note)
            ),
        )

    def latest_step(self) -> int | None:
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def restore(self, like: Any, say: Any = print) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None where there is none.

        Damaged ones are reported by `say`, and removed once an older one was read: the run will
        write them again.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in steps:
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), note=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:  # whatever a damaged file makes orbax or its codecs raise
                reason = str(error).strip().splitlines()
                say(
                    f"checkpoint of step {step} is damaged ({type(error).__name__}: "
                    f"{reason[0][:120] if reason else 'no message'}); trying the one before it"
                )
                damaged.append(step)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            return found["state"], found["note"]
        if steps:
            raise RunError(
                f"none of the {len(steps)} checkpoints in {self._manager.directory} can be read: "
                "start again in another --out"
            )
        return None

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
