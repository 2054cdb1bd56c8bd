"""Checkpoints by orbax: asynchronous saves, and the last whole one found again after any crash.

Each holds a SHA-256 of its state and its note, which reading verifies, and the config.json of its
run: one that a disk, a copy or a hand has changed, or that another run left, is named and passed
over, never gone on from. None is deleted but those that newer whole ones replace.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import itertools
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments.host.errors import RunError, flag, is_full, reason
from experiments.host.folders import check_run, different
from experiments.host.outputs import same_text

# (state, note) -> why the two contradict one another; None where they do not.
Check = Callable[[Any, dict[str, Any]], str | None]


class Checkpoints:
    """The last few checkpoints of a run: a state (arrays) and a note (JSON) each.

    Args:
      path: their folder.
      keep: how many to keep; at least 2, so that a damaged one has a predecessor.
      config: the run's config.json, kept in each; one that holds another is of another run. None:
        whichever.
      reading: nothing is to be written.
    """

    def __init__(
        self,
        path: Path,
        keep: int = 2,
        *,
        config: dict[str, Any] | None = None,
        reading: bool = False,
    ):
        _hush()
        self.path, self._failed, self._read_back = path.absolute(), False, reading
        self._config = None if config is None else json.loads(json.dumps(config))
        check_run(path)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if reading else keep, create=not reading, read_only=reading
        )
        try:
            self._manager = ocp.CheckpointManager(self.path, options=options)
        except Exception as error:  # a file in its place, a folder that must not be written
            raise RunError(f"cannot use {self.path}: {reason(error)}") from error

    # ---- writing ---------------------------------------------------------------------------

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        """Begins to save; that it failed may be found out by the next call only.

        The first is waited for and read back: a folder that gives back other bytes than were
        written is known at once, not when the run is lost.
        """
        with self._writing():
            if step in self._manager.all_steps():
                return
            held = {"note": note, "config": self._config, "sha256": _sha256(step, state, note)}
            if jax.config.read("jax_enable_x64"):
                held["x64"] = True
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(held)
                ),
            )
        if not self._read_back:
            self._read_back = True
            self.latest_step()
            _, why = self._tried(lambda: self._verified(step, state, None))
            if why is not None:
                self._failed = True
                raise RunError(
                    f"what was written to {self.path} cannot be read back ({why}): choose another "
                    f"{flag('out')}"
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
            remedy = f"make room in {self.path}"
            if not is_full(error):
                remedy = f"see to it that {self.path} can be written"
            raise RunError(
                f"a checkpoint could not be written ({reason(error)}); {whole}: {remedy}, and "
                f"start again with {flag('resume')}"
            ) from error

    def set_aside_after(self, step: int | None) -> None:
        """Moves what is newer to a folder "aside": a run that goes on from there saves it again.

        None: all of them.
        """
        newer = [other for other in self.steps() if step is None or other > step]
        if newer and jax.process_index() == 0:
            aside = self.path.with_name("aside")
            try:
                aside.mkdir(exist_ok=True)
                for other in newer:
                    free = (aside / f"{other}{'_' * n}" for n in itertools.count())
                    os.rename(self.path / str(other), next(p for p in free if not p.exists()))
            except OSError as error:
                raise RunError(f"cannot write to {aside}: {reason(error)}") from error
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for what is being saved; RunError where that failed and no call has said so yet."""
        if self._failed:
            return
        with self._writing():
            self._manager.close()

    # ---- reading ---------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The newest first, with those that are damaged."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        return sorted((int(name) for name in names if _is_step(name)), reverse=True)

    def restore(
        self, like: Any, say: Any = print, check: Check | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None where there is none.

        Damaged ones are reported by `say`, and stay where they are.
        """
        steps = self.steps()
        for k, step in enumerate(steps):
            found = self.read(step, like, say, check, last=k == len(steps) - 1)
            if found is not None:
                return found
        if steps:
            raise self._none_can_be_read()
        return None

    def read(
        self,
        step: int,
        like: Any,
        say: Any = print,
        check: Check | None = None,
        last: bool = False,
    ) -> tuple[Any, dict[str, Any]] | None:
        """(state, note) of that step; None where it is damaged, which is said."""
        found, why = self._tried(lambda: self._verified(step, like, check))
        if why is not None:
            self._say_damaged(step, why, say, last)
        return found

    def check_config(self, file: Path, config: dict[str, Any], say: Any = print) -> None:
        """RunError unless the newest note that can be read says the same as this config.json."""
        steps = self.steps()
        for k, step in enumerate(steps):
            held, why = self._tried(lambda step=step: self._held(step))
            if why is not None:
                self._say_damaged(step, why, say, last=k == len(steps) - 1)
                continue
            if differs := different(held["config"] or {}, config):
                raise RunError(
                    f"{file} is not as the run was trained ({differs}): put back what it was, it "
                    "stands in the checkpoints' notes"
                )
            return
        raise self._none_can_be_read() if steps else RunError(f"{self.path} holds no checkpoint")

    def _verified(self, step: int, like: Any, check: Check | None) -> tuple[Any, dict[str, Any]]:
        held = self._held(step)
        note, config = held["note"], held["config"]
        if self._config is not None and (differs := different(config or {}, self._config)):
            raise _Damage(f"it is of a run with other settings: {differs}")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        state = self._manager.restore(step, args=args)["state"]
        if _sha256(step, state, note) != held["sha256"]:
            raise _Damage("its bytes are not those that were saved at this step")
        why = None if check is None else check(state, note)
        if why is not None:
            raise _Damage(why)
        return state, note

    def _held(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(note=ocp.args.JsonRestore())
        try:
            held = self._manager.restore(step, args=args)["note"]
        except Exception as error:
            raise _Damage(f"its note cannot be read: {reason(error)}") from error
        if not isinstance(held, dict) or not {"note", "config", "sha256"} <= held.keys():
            raise _Damage("its note has no digest to verify it by")
        for name, kinds in {"note": dict, "config": dict | None, "sha256": str}.items():
            if not isinstance(held[name], kinds):
                raise _Damage(f"{name} of its note is {same_text(held[name])}")
        if bool(held.get("x64")) != jax.config.read("jax_enable_x64"):
            written, so = ("with", "set") if held.get("x64") else ("without", "unset")
            raise _OtherNumbers(
                f"{self.path} was written {written} JAX_ENABLE_X64=1, and numbers of another "
                f"width are others: {so} it"
            )
        return held

    @staticmethod
    def _tried(read: Callable[..., Any]) -> tuple[Any, str | None]:
        """(what was read, None), or (None, why it cannot be)."""
        with _quietly():
            try:
                return read(), None
            except _OtherNumbers:
                raise
            except _Damage as error:
                return None, str(error)
            except Exception as error:  # whatever a damaged file makes orbax or its codecs raise
                why = reason(error)
            _settle()
        return None, why

    def _say_damaged(self, step: int, why: str, say: Any, last: bool) -> None:
        then = "there is none before it" if last else "trying the one before it"
        say(f"checkpoint of step {step} is damaged ({why}), in {self.path}; {then}")

    def _none_can_be_read(self) -> RunError:
        return RunError(
            f"none of the {len(self.steps())} checkpoints in {self.path} can be read: "
            f"start again in another {flag('out')}"
        )


class _Damage(Exception):
    """What is wrong with a checkpoint that its files alone do not show."""


class _OtherNumbers(RunError):
    """It is whole, but JAX now computes in numbers of another width."""


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _sha256(step: int, state: Any, note: dict[str, Any]) -> str:
    """Of every leaf's path, dtype, shape and bytes, of the step and of the note."""
    digest = hashlib.sha256(f"{step} {json.dumps(note, sort_keys=True)}\n".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
            # Another view of the buffer: the array itself would keep its copy on the host.
            leaf = leaf.addressable_shards[0].data
        host = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {host.dtype} {np.shape(leaf)}\n".encode())
        digest.update(host.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _hush() -> None:
    """What fails in orbax's threads is raised to who waits for them: no traceback beside that."""
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not isinstance(threading.excepthook, _Hook):
        threading.excepthook = _Hook(threading.excepthook)


class _Hook:
    """threading.excepthook, for the exceptions of all threads but orbax's."""

    def __init__(self, plain: Callable[[Any], Any]):
        self._plain = plain

    def __call__(self, args: Any) -> None:
        frames = traceback.extract_tb(args.exc_traceback)
        if not any("orbax" in Path(frame.filename).parts for frame in frames):
            self._plain(args)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Of several reads that fail one is raised; nothing is printed of the others."""
    plain = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.unraisablehook = plain


def _settle() -> None:
    """Lets what a failed call left under way end, and lets go of it."""
    time.sleep(0.1)
    gc.collect()
