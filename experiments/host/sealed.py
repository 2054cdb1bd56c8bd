"""Networks that --save keeps: arrays, and with them what they are of, under one digest."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host import folders, inputs, outputs
from experiments.host.errors import UNFIT, DataError, RunError

_ABOUT, _SEAL = "about", "seal"


def write(path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """An .npz file of the arrays; `about` is JSON, and no array is called so."""
    held: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    told = json.loads(json.dumps(about))
    told[_SEAL] = _seal(held, told)
    whole = io.BytesIO()
    np.savez(whole, about=np.array(json.dumps(told)), **held)
    outputs.replace_bytes(path, whole.getvalue())


def read(path: Path, again: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(about, arrays) as `write` wrote them; RunError for anything else, with how they are made."""
    try:
        held = inputs.read_npz(path)
        told = json.loads(str(held.pop(_ABOUT)))
        seal = told.pop(_SEAL)
    except DataError as error:
        raise RunError(f"{error}: {again}") from error
    except UNFIT as error:
        raise RunError(f"{path} does not say what it is of: {again}") from error
    if seal != _seal(held, told):
        raise RunError(f"{path} is not what --save wrote: {again}")
    return told, held


def refuse_others(
    path: Path, told: Mapping[str, Any], now: Mapping[str, Any], where: str, again: str
) -> None:
    """RunError where, of what it was told that a file is of, something is another now."""
    what = folders.different(dict(told), {name: now.get(name) for name in told})
    if what:
        raise RunError(f"{path} is of something else than {where} tells ({what}): {again}")


def digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of arrays: of their types, shapes and numbers."""
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def class_counts_sha256(counts: Any) -> str:
    """SHA-256 of the counts as little-endian int64: two runs with equal ones had equal tails."""
    return hashlib.sha256(np.ascontiguousarray(counts, "<i8").tobytes()).hexdigest()


def _seal(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    whole = json.dumps([sorted(arrays), about], sort_keys=True) + digest(
        arrays[name] for name in sorted(arrays)
    )
    return hashlib.sha256(whole.encode()).hexdigest()
