"""Which data sets a study is over: named one by one, by folder, or in a list with their flags."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.host import inputs, outputs
from experiments.host.errors import DataError

__all__ = ["column_of", "cuts_of", "entries", "name_of"]

_LISTS = (".toml", ".txt")
_PARTS = ("set", "families")
# Of a name in bytes: with a cut and .json.partial it is that of a file, of 255 at most.
_LONGEST = 200
_NOT_OF_A_SET = ("out", "resume", "overwrite", "predict", "help")


def entries(given: Sequence[str]) -> Iterator[dict[str, Any]]:
    """{"data", other flags by name} of each set that is named on the command line.

    Of a list, "name", "cut" and "family" are as `name_of`, `cuts_of` and the study take them.
    """
    for name in given:
        path = Path(name)
        if path.is_dir():
            yield from ({"data": file} for file in _inside(path))
        elif path.suffix in _LISTS:
            yield from _listed(path)
        else:
            yield {"data": name}


def _listed(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = inputs.read_bytes(path).decode("utf-8-sig")
        held = tomllib.loads(text) if path.suffix == ".toml" else {"set": _lines(path, text)}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is no list of sets: {inputs.said_by(error)}") from error
    unknown = next((name for name in held if name not in _PARTS), None)
    if unknown is not None:
        raise DataError(f"{path}: {unknown} is no part of a list: it has [[set]] and [families]")
    found, families = held.get("set"), _families(path, held.get("families", {}))
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DataError(f"{path} is no list of sets: it needs a [[set]] for each")
    if not found:
        raise DataError(f"{path} names no set")
    names = []
    for each in found:
        data = each.get("data")
        if not isinstance(data, str) or not data:
            raise DataError(f'{path}: a set has no data = "PATH": {outputs.same_text(each)}')
        _check(path, each)
        each = {name.replace("-", "_"): value for name, value in each.items() if value is not False}
        for name in ("data", "test"):
            if name in each:
                each = {**each, name: _place(path, str(each[name]))}
        folder = Path(each["data"])
        inside = [each]
        if folder.is_dir():
            if "name" in each:
                raise DataError(f"{path}: name is said of a set, and {folder} is a folder of them")
            rest = {name: value for name, value in each.items() if name != "data"}
            inside = [{**rest, "data": file} for file in _inside(folder)]
        for one in inside:
            one = _settled(path, one, families)
            names.append(one["name"])
            yield one
    for name, family in families.items():
        if name not in names:
            raise DataError(
                f"{path}: {name} of the family {family} is no set of this list (cuts are of their "
                "set's family)"
            )


def _inside(folder: Path) -> list[str]:
    found = sorted(map(str, folder.glob("*.npz")))
    if not found:
        raise DataError(f"{folder} holds no .npz file: name sets of other kinds in a list")
    return found


def _settled(path: Path, one: dict[str, Any], families: dict[str, str]) -> dict[str, Any]:
    """With its name and cuts, and its family where one is said; DataError that names them."""
    where = f"{path}"
    try:
        name = name_of(one)
        where = f"{path}: {name}"
        found = {**one, "name": name, "cut": cuts_of(one.get("cut", 0))}
        both = ((one, "family"), (families, name))
        said = [_family(of[key]) for of, key in both if key in of]
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if len(set(said)) > 1:
        raise DataError(f"{where}: it is of the family {said[0]}, and in [families] of {said[1]}")
    return {**found, "family": said[0]} if said else found


def _family(value: Any) -> str:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, str) or not value:
        raise DataError(f"family = {outputs.same_text(value)} must be one word")
    return value


def _families(path: Path, found: Any) -> dict[str, str]:
    """The family of each set that is in one."""
    if not isinstance(found, dict) or not all(isinstance(of, list) for of in found.values()):
        raise DataError(f"{path}: [families] needs a list of names of sets for each")
    families: dict[str, str] = {}
    for family, names in found.items():
        for name in map(str, names):
            if families.setdefault(name, family) != family:
                raise DataError(
                    f"{path}: {name} is in two [families], {families[name]} and {family}"
                )
    return families


def _check(path: Path, each: dict[str, Any]) -> None:
    for name, value in each.items():
        if name in _NOT_OF_A_SET:
            raise DataError(f"{path}: {name} is said of the whole study, not of a set")
        if name == "tune" and value is False:
            raise DataError(f"{path}: tune = false is said as no_tune = true")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) for one in values):
            raise DataError(
                f"{path}: {name} = {outputs.same_text(value)} is no word, number or list of these"
            )


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise DataError(f"{path}: {error} in {line!r}") from error
        if not words:
            continue
        each: dict[str, Any] = {"data": words[0]}
        for word in words[1:]:
            if word.startswith("--"):
                name = word.removeprefix("--").replace("-", "_")
                each[name] = []
            elif len(each) == 1:
                raise DataError(f"{path}: {word!r} in {line!r} is the value of no flag")
            else:
                each[name].append(word)
        found.append({k: v if k == "data" or v else True for k, v in each.items()})
    return found


def _place(path: Path, name: str) -> str:
    """With variables of the environment; relative to the list."""
    found = os.path.expandvars(name)
    if "$" in found:
        variable = re.search(r"\$\{?(\w+)", found)
        if variable is None:
            raise DataError(f"{path}: {name} has a $ that begins no variable")
        raise DataError(f"{path}: {name} needs the variable {variable[1]} to be set")
    return found if ":" in found else str(path.parent / found)


def column_of(name: str, value: Any) -> Any:
    """A flag's value as `table.read` takes it: text is a list, the others are one word."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values) or (name != "text" and len(values) != 1):
        what = "a list of columns" if name == "text" else "one word"
        raise DataError(f"{name} = {outputs.same_text(value)} must be {what}")
    return values if name == "text" else values[0]


def name_of(each: dict[str, Any]) -> str:
    """Of a set: its own, or that of its file; its folder is named so."""
    stem = Path(each["data"].partition(":")[2] or each["data"]).stem
    name = each.get("name", re.sub(r"[^\w.+=,-]", "_", stem))
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    if isinstance(name, str) and name.endswith(".json"):  # as files beside the sets' folders are
        raise DataError(
            f"name = {outputs.same_text(name)} of a set must not end in .json: give it another one "
            "in a list"
        )
    plain = isinstance(name, str) and re.fullmatch(r"[\w.+=,-]{1,100}", name) and name.strip(".")
    if not plain or len(name.encode()) > _LONGEST:
        raise DataError(
            f"name = {outputs.same_text(name)} of a set must be up to 100 letters, digits and "
            f". _ - + = , of {_LONGEST} bytes at most, and not dots alone: "
            "give it another one in a list"
        )
    return name


def cuts_of(value: Any) -> list[float]:
    """The imbalance factors that a set is cut to, 0 for as it is."""
    values = value if isinstance(value, list) else [value]
    said = f"cut = {outputs.same_text(value)}"
    try:
        if not values or any(isinstance(each, bool) for each in values):
            raise TypeError("no number")
        found = [float(each) for each in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"{said} is no list of numbers: 0 for none, or a factor") from error
    if any(not (each == 0 or 1 <= each <= 1000) for each in found):
        raise DataError(f"{said} must be 0 for none, or from 1 to 1000")
    if len(set(found)) < len(found):
        raise DataError(f"{said} has one of them twice")
    return found
