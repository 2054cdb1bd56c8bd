"""The jobs of a comparison: a family of rows on a split each, kept as soon as it is finished."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.bench import compare_kept, references
from experiments.bench.comparison import Engine, Part, Recipe, Row
from experiments.data import columns, usable
from experiments.data.splits import Split
from experiments.data.table import Table
from experiments.host import outputs
from experiments.host.errors import RunError
from experiments.host.progress import Counted
from experiments.reports import scores
from experiments.reports.compare_folder import Record
from experiments.reports.scores import Bins

FOLDER = "jobs"
_AGAIN = "--resume makes it anew"


class Scale(NamedTuple):
    """By what classes are many, medium and few: as `scores.shots` has it.

    Attributes:
      counts: int[C], rows of each class that the first split trains on.
      thresholds: (many_above, few_below).
    """

    counts: NDArray[np.int64]
    thresholds: tuple[int, int]


def scale_of(table: Table, split: Split) -> Scale:
    counts = np.bincount(table.labels[split.train], minlength=table.num_classes)
    return Scale(counts, scores.shots(counts))


class Parts:
    """The splits of a table as numbers, fitted on the rows of each that are not tested.

    All have equally many columns: where some lack a category, columns of zeros stand for it.
    """

    def __init__(self, table: Table, splits: Sequence[Split]):
        self._table, self._splits = table, list(splits)
        self.fitted = [columns.fit(table, split.train, seed=k) for k, split in enumerate(splits)]
        self.width = max(len(fitted.names) for fitted in self.fitted)

    def notes(self) -> list[str]:
        """A sentence where columns are left out of all splits, and where of some."""
        times = Counter(name for fitted in self.fitted for name in fitted.constant)
        everywhere = [name for name, many in times.items() if many == len(self)]
        somewhere = [name for name in times if times[name] < len(self)]
        same = "the same in all training rows"
        both = ((everywhere, "left out"), (somewhere, "of some split left out there"))
        return [usable.told(names, f"{same} {what}") for names, what in both if names]

    def __len__(self) -> int:
        return len(self._splits)

    def __getitem__(self, number: int) -> Part:
        found = self.fitted[number](self._table.columns)
        features = np.pad(found, ((0, 0), (0, self.width - found.shape[1])))
        split = self._splits[number]
        return Part(number, features, split.train, split.test)


class Jobs:
    """Everything that is to be trained, and what of it is finished.

    Args:
      table, splits: the data.
      recipe: how rows are trained.
      rows: of the family.
      others: reference lines, keys of REFERENCES.
      out: finished jobs are kept in a folder under it.
      keep: the networks, too, by `compare_kept`, as of this config.json; None: none.
    """

    def __init__(
        self,
        table: Table,
        splits: Sequence[Split],
        recipe: Recipe,
        rows: Sequence[Row],
        others: Sequence[str],
        out: Path,
        *,
        keep: dict[str, Any] | None = None,
    ):
        self.table, self.recipe, self.rows, self.others = table, recipe, list(rows), list(others)
        self.scale = scale_of(table, splits[0])
        self.parts = Parts(table, splits)
        self._out, self._folder, self._keep = out, out / FOLDER, keep

    def run(
        self, stop: Callable[[], None], kept: Callable[[], None] = lambda: None
    ) -> tuple[list[Record], list[str]]:
        """(a Record for each row and split, notes).

        `stop` raises to end between programs; `kept` is called after each job that is kept.
        """
        with outputs.writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        part = self.parts[0]
        engine = self.engine = Engine(
            self.table.labels, self.table.weighed, self.recipe, self.rows, ids=self.table.ids,
            stop=stop, keep=self._keep is not None,
        )  # fmt: skip
        families = engine.families(part)
        todo = [
            (number, k)
            for number in range(len(self.parts))
            for k in range(len(families))
            if not self._is_done(number, k)
        ]
        units = sum(engine.units(families[k], part) for _, k in todo)
        with Counted(units, "units of work", "comparing") as shown:
            engine.compiling = lambda number: shown.compiling(number, len(engine.programs(part)))
            engine.advance = shown.advance
            for number in range(len(self.parts)):
                mine = [k for at, k in todo if at == number]
                if not mine and self._path(number, "references").exists():
                    continue
                part = part if part.number == number else self.parts[number]
                for k in mine:
                    self._train(engine, part, families[k], k)
                    kept()
                if not self._path(number, "references").exists():
                    stop()
                    self._refer(part, self._path(number, "references"))
                    kept()
        return self._collected(len(families))

    def _path(self, number: int, what: int | str) -> Path:
        return self._folder / f"split_{number}_{what}.json"

    def _is_done(self, number: int, k: int) -> bool:
        kept = self._keep is None or compare_kept.params_path(self._out, number, k).exists()
        return kept and self._path(number, k).exists()

    def _train(self, engine: Engine, part: Part, family: list[Row], k: int) -> None:
        before = engine.seconds
        found = engine.run(part, family)
        seconds = (engine.seconds - before) / len(family)
        records, notes = [], []
        counts = engine.weighed_counts(part)
        for row, one in zip(family, found, strict=True):
            probabilities = one.probabilities
            if probabilities is None:
                probabilities = self._priors(part)
                notes.append(
                    f"{row.name} diverged in split {part.number}: it counts there as a network "
                    "that always says the largest class"
                )
            described = row.described(counts, one.chosen)
            records.append(self._record(part, probabilities, row.name, row, described, seconds))
        if self._keep is not None:
            path = compare_kept.params_path(self._out, part.number, k)
            compare_kept.save_params(path, part, self.table.labels, records, found, self._keep)
        _write(self._path(part.number, k), records, notes)

    def _refer(self, part: Part, path: Path) -> None:
        records = []
        for name in self.others:
            began = time.perf_counter()
            found = references.probabilities(
                name, part.features, self.table.labels, part.train, part.test,
                self.table.num_classes, self.recipe.seed,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            shown = references.REFERENCES[name][0]
            records.append(self._record(part, found, shown, None, {}, seconds))
        _write(path, records, [])

    def _priors(self, part: Part) -> NDArray[np.float64]:
        counts = np.bincount(self.table.labels[part.train], minlength=self.table.num_classes)
        return np.tile(counts / counts.sum(), (len(part.test), 1))

    def _record(
        self,
        part: Part,
        probabilities: NDArray[np.float64],
        name: str,
        row: Row | None,
        chosen: dict[str, Any],
        seconds: float,
    ) -> Record:
        labels = self.table.labels[part.test]
        groups = None if self.table.groups is None else self.table.groups[part.test]
        found = scores.scores(
            probabilities, labels, thresholds=self.scale.thresholds, counts=self.scale.counts,
            groups=groups,
        )  # fmt: skip
        by_group = None
        if groups is not None:
            number = len(self.table.weighed_names)
            by_group = scores.group_accuracy(probabilities, labels, groups, number).tolist()
        return Record(
            row=name, rule=row.rule if row else None, loss=row.loss if row else None,
            sampling=row.sampling if row else "", reference=row is None, split=part.number,
            sizes=(len(part.train), 0, len(part.test)),
            scores={metric: float(value) for metric, value in found.items()},
            recall=scores.recalls(probabilities, labels).tolist(),
            bins=scores.calibration(probabilities, labels), chosen=chosen, seconds=seconds,
            group_accuracy=by_group,
        )  # fmt: skip

    def _collected(self, families: int) -> tuple[list[Record], list[str]]:
        """All records, rows in the order in which they were asked for."""
        records: list[Record] = []
        notes: list[str] = []
        for number in range(len(self.parts)):
            for what in (*range(families), "references"):
                held = outputs.read_sealed(self._path(number, what), _AGAIN)
                try:
                    records += [_of_json(one) for one in held["records"]]
                    notes += held["notes"]
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise RunError(
                        f"{self._path(number, what)} is damaged: remove it, and {_AGAIN}"
                    ) from error
        names = [row.name for row in self.rows]
        names += [references.REFERENCES[name][0] for name in self.others]
        return sorted(records, key=lambda record: (names.index(record.row), record.split)), notes


def _write(path: Path, records: list[Record], notes: list[str]) -> None:
    outputs.write_sealed(path, {"records": [_to_json(one) for one in records], "notes": notes})


def _to_json(record: Record) -> dict[str, Any]:
    """Of a record; None for what is undefined. Numbers come back as they were, to the last bit."""
    found = dataclasses.asdict(record)
    found["bins"] = {name: np.asarray(of).tolist() for name, of in record.bins._asdict().items()}
    return _mapped(found, lambda x: None if isinstance(x, float) and math.isnan(x) else x)


def _of_json(held: dict[str, Any]) -> Record:
    def number(x: Any) -> Any:
        return math.nan if x is None else x

    bins = Bins(**{name: np.array(_mapped(of, number)) for name, of in held["bins"].items()})
    groups = held["group_accuracy"]
    return Record(
        **{
            **held,
            "bins": bins,
            "sizes": tuple(held["sizes"]),
            "scores": _mapped(held["scores"], number),
            "recall": _mapped(held["recall"], number),
            "group_accuracy": None if groups is None else _mapped(groups, number),
        }
    )


def _mapped(value: Any, of: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(one, of) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, of) for one in value]
    return of(value)
