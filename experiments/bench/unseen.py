"""Classes that no split tests, or that no fold holds and that choose no setting for that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from experiments.bench.comparison import Engine, Part, Recipe
from experiments.data.splits import Split
from experiments.data.table import Table
from experiments.host.errors import RunError


def notes(table: Table, splits: Sequence[Split], recipe: Recipe) -> list[str]:
    """A sentence for each of the two, where there is such a class.

    Raises:
      RunError: in some split there is nothing that settings could be chosen by.
    """
    tested = set(np.concatenate([table.labels[split.test] for split in splits]).tolist())
    untested = set(range(table.num_classes)) - tested
    unheld = _in_no_fold(table, splits, recipe) if recipe.folds else set()
    of = "rows" if table.ids is None else "ids"
    return [
        *_told(table, untested, "never tested, for it is in no test part"),
        *_told(table, unheld, f"in some split too few {of} to be held out, so that settings are "
               "chosen without"),
    ]  # fmt: skip


def _in_no_fold(table: Table, splits: Sequence[Split], recipe: Recipe) -> set[int]:
    """Classes of which, in some split, rows are trained on and none is held by any fold."""
    engine = Engine(table.labels, table.weighed, recipe, [], ids=table.ids)
    found: set[int] = set()
    for number, split in enumerate(splits):
        held = engine.folds(Part(number, np.zeros((0, 0), np.float32), split.train, split.test))
        seen = set(table.labels[np.concatenate(held)].tolist())
        if not seen:
            raise RunError(
                "no row can be held out to choose settings by: of each class one row alone (with "
                "--id one id) is trained on; give --no-tune"
            )
        found |= set(table.labels[split.train].tolist()) - seen
    return found


def _told(table: Table, classes: Iterable[int], what: str) -> list[str]:
    names = [repr(table.class_names[c]) for c in sorted(classes)]
    if not names:
        return []
    shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
    return [f"{what}: {'class' if len(names) == 1 else 'classes'} {shown}"]
