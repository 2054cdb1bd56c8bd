"""Files that a run writes and reads again: JSON and text, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.host.errors import RunError, cannot_write, reason


def same_text(value: Any) -> str:
    """A value for a sentence: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(path: Path) -> Any:
    """The value in a file; RunError, naming it, where there is none."""
    text = _text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: it is not JSON ({error})") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a table, by the heads of its columns; RunError, naming it, for anything else."""
    text = _text(path)
    try:
        heads, *lines = csv.reader(io.StringIO(text), strict=True)
        return [dict(zip(heads, line, strict=True)) for line in lines if line]
    except (ValueError, csv.Error) as error:
        raise RunError(f"cannot read {path}: it is no whole table") from error


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"cannot read {path}: it is no file")
        return path.read_bytes().decode()
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read {path}: it is not UTF-8 text ({error.reason})") from error


def read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"cannot read {path}: it holds {same_text(value)}, where an object belongs")
    return value


SEAL = "sha256"


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """An object with the SHA-256 of what it says: figures that are taken from it later on."""
    held = json.loads(json.dumps(value))
    replace_text(path, json.dumps({**held, SEAL: _seal(held)}) + "\n")


def read_sealed(path: Path, again: str) -> dict[str, Any]:
    """What `write_sealed` wrote; RunError for anything else, with how it is made `again`.

    Files of before there were seals have none, and are read as they are.
    """
    try:
        held = read_object(path)
    except RunError as error:
        raise RunError(f"{error}: remove it, and {again}") from error
    if SEAL in held and held.pop(SEAL) != _seal(held):
        raise RunError(f"{path} is damaged: remove it, and {again}")
    return held


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_number(value: Any) -> bool:
    """A finite number of JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all: a reader or a kill never sees half a file."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """As `replace_text`."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # of a kill; never written through a link
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file in its place
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of what is written to this file or folder, as a sentence that names it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


# Whatever would be taken for a part of the next table. The first says that a table is whole.
_OF_TABLES = (
    "summary.json", "report.html", "jobs/split_*.json", "spent.json", "model/model.json",
    "model/params.npz", "model/pipeline.joblib", "params/[0-9]*.npz", "params/split_*.npz",
    "runs.csv", "sweep.csv", "per_class.csv", "curves.csv", "table.md", "snippet.py",
    "predictions.csv",
)  # fmt: skip
_PLOTS = (
    "sweep", "per_class", "curves", "curves_*", "gains", "differences", "recall", "reliability",
    "chosen",
)  # fmt: skip


def clear_tables(out: Path) -> None:
    """Removes an earlier table of any kind from a folder, and nothing else.

    Its summary.json goes first and that of the next table comes last, so that a kill in between
    leaves no parts of two that pass for a whole one.
    """
    _clear(out, _OF_TABLES)
    clear_plots(out, _PLOTS)


def is_of_table(out: Path, path: Path) -> bool:
    """Whether a file is, by whatever name, one that `clear_tables` would remove."""
    there = (found for pattern in _OF_TABLES for found in out.glob(pattern))
    return os.path.exists(path) and any(
        os.path.exists(found) and os.path.samefile(found, path) for found in there
    )


def clear_plots(out: Path, names: Iterable[str]) -> None:
    """Removes plots of these names: of what is drawn next, not all need be drawn again."""
    _clear(out, (f"{name}.{kind}" for name in names for kind in ("png", "svg")))


def _clear(out: Path, patterns: Iterable[str]) -> None:
    with writing(out):
        for pattern in patterns:
            for path in list(out.glob(pattern)):
                path.unlink()
