"""Methods compared on splits of one table: settings chosen inside each split, then trained again.

For each split, the rows that are not tested are divided into folds, class by class. Every setting
of every row is trained on all folds but one and predicts the one; the setting with the best
balanced accuracy over all of these predictions is chosen (of equals the one with the smaller
log-loss, each class counting alike) and trained on all of them. Only then test rows are predicted.
A test row is read nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.bench.choosing import criterion, folds
from experiments.bench.lanes import (
    Batches,
    Lane,
    Net,
    Structure,
    in_blocks,
    order_of,
    program,
    stacked,
)
from experiments.step.methods import Tabled
from imbsam_jax import losses

Point = dict[str, float]
_BALANCED = "balanced"


class Row(Protocol):
    """A row of the comparison: `command.candidates.Candidate`."""

    name: str
    rule: str
    loss: str
    sampling: str
    points: list[Point]
    perturb: str

    def method(self, counts: np.ndarray, point: Point) -> Tabled: ...

    def described(self, counts: np.ndarray, point: Point) -> Point: ...


class Recipe(NamedTuple):
    """How every lane is trained.

    Attributes:
      net: the network.
      steps: of training: of every lane equally many.
      batch_size: rows of a step.
      folds: of the rows that choose settings; 0 takes the first setting of every row.
      seed: decides folds, batches and initial weights, together with the split.
    """

    net: Net
    steps: int
    batch_size: int
    folds: int
    seed: int


class Part(NamedTuple):
    """The rows of one split, as numbers.

    Attributes:
      number: of the split.
      features: float32[N, d], fitted on `train`.
      train: rows that are trained on, and choose settings by folds.
      test: rows that are tested.
    """

    number: int
    features: NDArray[np.float32]
    train: NDArray[np.int64]
    test: NDArray[np.int64]


class Found(NamedTuple):
    """What a row did in a split.

    Attributes:
      row: its name.
      chosen: the point.
      probabilities: float64[n, C] of the test rows; None where training is not finite.
      validated: balanced accuracy in percent of every point over the folds; [] without tuning.
      params: where they were asked for.
    """

    row: str
    chosen: Point
    probabilities: NDArray[np.float64] | None
    validated: list[float]
    params: Any = None


class Engine:
    """Trains rows on the splits of one table.

    Args:
      labels: int32[N] in [0, C).
      weighed: int32[N], by which rules weigh: labels, or groups.
      recipe: how.
      rows: of different names. Those of one structure run in one program.
      ids: int64[N], rows of one number stay in one fold; or None.
      stop: called between programs; raises to end.
      keep: keep parameters of the final networks.

    Attributes:
      compiling: called with the number of a program before it is compiled.
      advance: called with (units of work, seconds) after each call.
      seconds: in calls so far, compilation left out.
    """

    def __init__(
        self,
        labels: NDArray[np.int32],
        weighed: NDArray[np.int32],
        recipe: Recipe,
        rows: Sequence[Row],
        *,
        ids: NDArray[np.int64] | None = None,
        stop: Callable[[], None] = lambda: None,
        keep: bool = False,
    ):
        self.labels, self.weighed, self.recipe = labels, weighed, recipe
        self.rows, self._ids, self._stop, self._keep = list(rows), ids, stop, keep
        self.compiling: Callable[[int], None] = lambda number: None
        self.advance: Callable[[int, float], None] = lambda units, seconds: None
        self.seconds = 0.0
        classes, groups = recipe.net.classes, int(weighed.max()) + 1
        if weighed is labels or np.array_equal(weighed, labels):
            self.cells = np.asarray(labels, np.int32)
            self.label_of = self.group_of = tuple(range(classes))
        else:
            self.cells = (labels * groups + weighed).astype(np.int32)
            self.label_of = tuple(np.repeat(np.arange(classes), groups).tolist())
            self.group_of = tuple(np.tile(np.arange(groups), classes).tolist())
        self.groups = groups
        self.compiled: dict[Any, Any] = {}
        self._placed: tuple[int, Any] | None = None

    def families(self, part: Part) -> list[list[Row]]:
        """The rows by program and order of batches: what is run together."""
        found: dict[Any, list[Row]] = {}
        for row in self.rows:
            key = self._structure(row, part).key(), row.sampling
            found.setdefault(key, []).append(row)
        return list(found.values())

    def programs(self, part: Part) -> set[Any]:
        """How many different ones the rows need, where folds and test rows are of one shape."""
        return {self._structure(row, part).key() for row in self.rows}

    def lanes_per_call(self, family: list[Row]) -> int:
        """Settings of a row with tuning, the rows of a family without."""
        return max(max(len(row.points) for row in family) if self.recipe.folds else len(family), 1)

    def units(self, family: list[Row], part: Part) -> int:
        """How much work a family is in a split: programs that are run, times their passes."""
        lanes = self.lanes_per_call(family)
        calls = len(family) * self.recipe.folds + -(-len(family) // lanes)
        return calls * lanes * self._passes(family[0], part)

    def _passes(self, row: Row, part: Part) -> int:
        table = self._structure(row, part).method.numbers()
        return (table.base is not None) + 2 * np.shape(table.groups)[0]

    def run(self, part: Part, family: list[Row]) -> list[Found]:
        """Every row of a family on a split."""
        recipe = self.recipe
        chosen = [row.points[0] for row in family]
        validated: list[list[float]] = [[] for _ in family]
        if recipe.folds:
            chosen, validated = self.choose(part, family)
        draw = self._draw(part, 0)
        order = self._order(part.train, family[0].sampling, draw)
        lanes = [self.lane(row, p, part) for row, p in zip(family, chosen, strict=True)]
        logits, params = [], []
        size = self.lanes_per_call(family)
        for start in range(0, len(lanes), size):
            group = lanes[start : start + size]
            found = self._call(part, family[0], group, size, order, part.test)
            logits += list(found[0])
            params += [
                jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), found[1])
                if self._keep
                else None
                for k in range(len(group))
            ]
        return [
            Found(row.name, p, _finite_softmax(z), v, kept)
            for row, p, z, v, kept in zip(family, chosen, logits, validated, params, strict=True)
        ]

    def choose(self, part: Part, family: list[Row]) -> tuple[list[Point], list[list[float]]]:
        """(the best point of each row over the folds, balanced accuracies of all of its points)."""
        scores = self._validated(part, family)
        best = [max(range(len(of_row)), key=of_row.__getitem__) for of_row in scores]
        chosen = [row.points[k] for row, k in zip(family, best, strict=True)]
        return chosen, [[of[0] for of in of_row] for of_row in scores]

    def lane(self, row: Row, point: Point, part: Part) -> Lane:
        """The numbers of a row at a point: of the class sizes in the split, of its folds too."""
        counts = self.weighed_counts(part)
        labels = np.bincount(self.labels[part.train], minlength=self.recipe.net.classes)
        priors = np.maximum(labels, 1) / labels.sum()
        of = np.asarray(self.group_of)
        table = row.method(counts, point).numbers()
        weights = np.ones(self.groups)
        if row.loss == "class_balanced":
            weights = losses.class_balanced_weights(counts, point["beta"])
            weights = weights * (counts.sum() / (counts * weights).sum())
        tau = point["tau"] if row.loss == "logit_adjusted" else 0.0
        return Lane(
            table._replace(
                base=None if table.base is None else np.asarray(table.base)[of],
                groups=np.asarray(table.groups)[:, of],
            ),
            tau * np.log(priors),
            weights[of],
            point["focal_gamma"] if row.loss == "focal" else 0.0,
            point["lr"],
            point["weight_decay"],
        )

    def weighed_counts(self, part: Part) -> NDArray[np.int64]:
        """int64[G], what a rule is made of; at least 1, as with ids a split may lack a class."""
        return np.maximum(np.bincount(self.weighed[part.train], minlength=self.groups), 1)

    def folds(self, part: Part) -> list[NDArray[np.int64]]:
        """The held rows of each fold."""
        draw = self._draw(part, 1)
        return folds(part.train, self.labels, self.recipe.folds, draw, self._ids)

    def _validated(self, part: Part, family: list[Row]) -> list[list[tuple[float, float]]]:
        """Of each row, of each point (balanced accuracy, -log-loss), over all folds."""
        probabilities: list[list[NDArray[np.float64]]] = [[] for _ in family]
        held_labels = []
        for number, held in enumerate(self.folds(part)):
            rows = np.setdiff1d(part.train, held)
            order = self._order(rows, family[0].sampling, self._draw(part, 2 + number))
            held_labels.append(self.labels[held])
            for k, row in enumerate(family):
                lanes = [self.lane(row, point, part) for point in row.points]
                size = self.lanes_per_call(family)
                logits, *_ = self._call(part, row, lanes, size, order, held)
                probabilities[k].append(softmax(logits))
        labels = np.concatenate(held_labels)
        return [
            [criterion(p, labels) for p in np.concatenate(of_row, axis=1)]
            for of_row in probabilities
        ]

    def _call(
        self,
        part: Part,
        row: Row,
        lanes: list[Lane],
        size: int,
        order: NDArray[np.int32],
        held: NDArray[np.int64],
    ) -> Any:
        """(logits of the held rows, parameters) of these lanes; padded to `size`."""
        self._stop()
        structure = self._structure(row, part)
        given = stacked([*lanes, *[lanes[0]] * (size - len(lanes))])
        features, cells = self._on_device(part)
        batches = Batches(
            features, cells, order, in_blocks(held, self._most_held(part)),
            jax.random.fold_in(jax.random.key(self.recipe.seed), part.number),
        )  # fmt: skip
        shapes = tuple((np.shape(x), str(x.dtype)) for x in jax.tree.leaves((given, batches)))
        key = structure.key(), shapes
        if key not in self.compiled:
            self.compiling(len(self.compiled) + 1)
            run = program(self.recipe.net, structure, self.label_of, self._keep)
            self.compiled[key] = jax.jit(run).lower(given, batches).compile()
        began = time.perf_counter()
        logits, params = jax.device_get(self.compiled[key](given, batches))
        took = time.perf_counter() - began
        self.seconds += took
        self.advance(size * self._passes(row, part), took)
        return logits[: len(lanes), : len(held)], params

    def _structure(self, row: Row, part: Part) -> Structure:
        counts = self.weighed_counts(part)
        # A focal loss with exponent 0 is the loss itself: all rows of a rule share a program.
        focal = any(other.loss == "focal" for other in self.rows if other.rule == row.rule)
        return Structure(row.method(counts, row.points[0]), focal)

    def _on_device(self, part: Part) -> tuple[jax.Array, jax.Array]:
        """(features, cells) of a part; those of the last one that was asked for stay there."""
        if self._placed is None or self._placed[0] != part.number:
            self._placed = part.number, jax.device_put((part.features, self.cells))
        return self._placed[1]

    def _most_held(self, part: Part) -> int:
        """One shape for folds and test rows, where they are of about one size."""
        fold = -(-len(part.train) // max(self.recipe.folds, 1)) if self.recipe.folds else 0
        return max(len(part.test), fold + self.recipe.net.classes if fold else 0)

    def _order(
        self, rows: NDArray[np.int64], sampling: str, draw: np.random.Generator
    ) -> NDArray[np.int32]:
        balanced = self.weighed[rows] if sampling == _BALANCED else None
        return order_of(rows, self.recipe.steps, self.recipe.batch_size, draw, balanced)

    def _draw(self, part: Part, what: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, part.number, what])


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in float64; NaN where logits are not finite."""
    with np.errstate(invalid="ignore"):
        wide = logits.astype(np.float64)
        shifted = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _finite_softmax(logits: NDArray[Any]) -> NDArray[np.float64] | None:
    found = softmax(logits)
    return found if np.isfinite(found).all() else None


def steps_for(rows: int, batch_size: int, epochs: int | None) -> int:
    """Steps of training: of so many epochs, or by default 15, at least 400 steps and at most 1000.

    A small set is seen often: what it takes to fit it is steps, not epochs.

    >>> steps_for(100, 64, None), steps_for(3500, 64, None), steps_for(10**6, 64, None)
    (400, 825, 1000)
    >>> steps_for(100, 64, 3)
    6
    """
    of_epoch = -(-rows // batch_size)
    if epochs is not None:
        return epochs * of_epoch
    return min(max(15 * of_epoch, 400), 1000)
