"""Published accuracies and the protocols they were taken under, read from published.toml.

What the file holds and how it is written is said at its head. Nearly all figures were taken at the
best epoch on the test set, so a run's `best*` is what compares with them, not its last epoch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FILE = Path(__file__).with_name("published.toml")
_SPLITS = ("many", "medium", "few", "all")


class Settings(NamedTuple):
    """What a protocol says of some runs.

    Attributes:
      datasets: of which data sets; () of all that some settings of the protocol name.
      rule: of which rule; "perturbed" of every rule but sgd and cc_sam, None of all.
      values: by name, which values are right.
      guesses: names of values that the source does not print.
    """

    datasets: tuple[str, ...]
    rule: str | None
    values: Mapping[str, tuple[Any, ...]]
    guesses: tuple[str, ...]


class Protocol(NamedTuple):
    """How figures were taken.

    Attributes:
      says: where that is stated, and what.
      chosen: how the reported epoch was chosen.
      settings: what a run has to have that follows it.
      seed: of the one run, None where it is not known.
    """

    says: str
    chosen: str
    settings: tuple[Settings, ...]
    seed: int | None


class Result(NamedTuple):
    """One published figure in percent, or the four of its splits; None where not printed.

    The imbalance factor is as the source names it, None where the set is natural. Rule, loss (with
    "+drw" where re-weighting is deferred; None where it is not stated) and recipe (a second stage)
    have this project's names; other methods are sgd with the method's name as recipe. `table` is
    where in the source, "-" if not known; `overrides` what the result has instead of the
    protocol's settings; `chosen` how its epoch was chosen.
    """

    dataset: str
    imbalance_factor: int | None
    rule: str
    loss: str | None
    recipe: str | None
    many: float | None
    medium: float | None
    few: float | None
    all: float
    source: str
    table: str
    protocol: str
    overrides: Mapping[str, Any]
    note: str
    chosen: str

    @property
    def verified(self) -> bool:
        """Read in the source itself."""
        return not self.source.endswith("-2nd")


def read(text: str) -> tuple[dict[str, str], dict[str, Protocol], list[Result]]:
    """(sources, protocols, results) by name, of a text like published.toml.

    Raises:
      ValueError: it is no TOML, or says something that is not explained at the file's head.
    """
    whole = tomllib.loads(text)
    _check(whole, "the file", {"sources": dict, "protocols": dict, "tables": list}, {})
    for key, name in whole["sources"].items():
        _check({"name": name}, f"source {key}", {"name": str}, {})
    protocols = {name: _protocol(name, found) for name, found in whole["protocols"].items()}
    results = []
    for number, table in enumerate(whole["tables"], start=1):
        place = f"table {number}"
        optional = {"where": str, "chosen": str, "note": str}
        _check(table, place, {"source": str, "protocol": str, "results": list}, optional)
        for kind, known in (("source", whole["sources"]), ("protocol", protocols)):
            if table[kind] not in known:
                raise ValueError(f"{place}: there is no {kind} {table[kind]!r}")
        results += [
            _result(f"{place}, result {row}", found, table, protocols[table["protocol"]].chosen)
            for row, found in enumerate(table["results"], start=1)
        ]
    return whole["sources"], protocols, results


def _protocol(name: str, found: Any) -> Protocol:
    place = f"protocol {name}"
    _check(found, place, {"says": str}, {"chosen": str, "seed": int, "settings": list})
    settings = []
    for each in found.get("settings", []):
        optional = {"datasets": list, "rule": str, "guesses": list}
        _check(each, f"settings of {place}", {"values": dict}, optional)
        values = {
            key: tuple(map(_number, value if isinstance(value, list) else [value]))
            for key, value in each["values"].items()
        }
        guesses = tuple(each.get("guesses", ()))
        if not set(guesses) <= values.keys():
            raise ValueError(f"settings of {place}: {guesses} are not all among its values")
        settings.append(
            Settings(tuple(each.get("datasets", ())), each.get("rule"), values, guesses)
        )
    chosen = found.get("chosen", "not stated")
    return Protocol(found["says"], chosen, tuple(settings), found.get("seed"))


def _result(place: str, found: Any, table: Mapping[str, Any], chosen: str) -> Result:
    figure = (int, float)
    optional = {
        "imbalance_factor": int, "loss": str, "recipe": str, "overrides": dict, "note": str,
        **dict.fromkeys(_SPLITS, figure),
    }  # fmt: skip
    _check(found, place, {"dataset": str, "rule": str, "all": figure}, optional)
    figures: dict[str, Any] = {
        split: float(found[split]) if split in found else None for split in _SPLITS
    }
    if not all(value is None or 0 < value < 100 for value in figures.values()):
        raise ValueError(f"{place}: accuracies must lie between 0 and 100 percent, got {figures}")
    if found.get("imbalance_factor", 1) < 1:
        raise ValueError(f"{place}: an imbalance factor is at least 1")
    overrides = {key: _number(value) for key, value in found.get("overrides", {}).items()}
    return Result(
        dataset=found["dataset"],
        imbalance_factor=found.get("imbalance_factor"),
        rule=found["rule"],
        loss=found.get("loss"),
        recipe=found.get("recipe"),
        **figures,
        source=table["source"],
        table=table.get("where", "-"),
        protocol=table["protocol"],
        overrides=overrides,
        note=found.get("note", table.get("note", "")),
        chosen=table.get("chosen", chosen),
    )


def _number(value: Any) -> Any:
    """Whole numbers as floats: 100 and 100.0 are one eta."""
    return float(value) if type(value) is int else value


def _check(found: Any, place: str, needed: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Refuses a table that lacks something, has something unknown, or a value of another kind."""
    kinds = {**needed, **optional}
    if not isinstance(found, dict):
        raise ValueError(f"{place} is {found!r}, not a table")
    wrong = [f"lacks {key}" for key in needed if key not in found]
    wrong += [f"has {key}, which nothing reads" for key in found if key not in kinds]
    wrong += [
        f"has {key} {value!r:.40}, of another kind"
        for key, value in found.items()
        if key in kinds and (not isinstance(value, kinds[key]) or isinstance(value, bool))
    ]
    if wrong:
        raise ValueError(f"{place} {', '.join(wrong)}")


SOURCES, PROTOCOLS, RESULTS = read(_FILE.read_text(encoding="utf-8"))
