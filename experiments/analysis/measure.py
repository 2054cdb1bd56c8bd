"""What is measured of a subject, in programs compiled once for a model.

Each item is a call of its own, whose result is kept in a file: a stopped analysis goes on.
Costs are counted in passes over all training rows: a product with the Hessian of a group counts for
its share of the rows.

The trace is Hutchinson's, as `curvature.trace` has it, with the same signs for every group: v^T H v
is taken once for each part of the rows in which no group ends (an atom), and added up over the
atoms of a group. So all groups cost what one over all rows does. Groups of the same classes (the
tail may be what is medium and few) are measured once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.analysis import programs
from experiments.analysis.programs import Placed, Settings, program
from experiments.analysis.subjects import Own, Rows, Subject

RISES = ("own", "sam", "imbsam", "random", "worst")
# Of which surfaces are drawn.
SIDES = ("head", "tail")


class How(NamedTuple):
    """How much is measured; all of it decides the figures.

    Attributes:
      loss: loss(logits, labels) -> float[b], where a subject has none of its own.
      rho: length of the perturbations.
      iterations: products for the ends of a spectrum.
      probes: products for the trace.
      directions: random directions of the average rise.
      steps: of ascent, for the worst rise.
      density: probes of the spectral densities of head and tail; 0 leaves them out.
      surface: points of a side of the surfaces of head and tail; 0 leaves them out.
      ends: groups whose ends of the spectrum and worst rise are measured, which cost most, head
        and tail in any case; None is all. Of the same classes one name is as good as another.
      batch_size: rows of a micro-batch.
    """

    loss: Callable[[Any, Any], Any]
    rho: float
    iterations: int
    probes: int
    directions: int
    steps: int
    density: int
    surface: int
    batch_size: int
    ends: tuple[str, ...] | None = None


class Item(NamedTuple):
    """One call: its name, cost in passes over the rows, products with a Hessian, and the call.

    `more` is what decides it beside the subject and `How`.
    """

    name: str
    passes: float
    products: int
    call: Callable[[], dict[str, Any]]
    more: Any = None


# How many passes a gradient and a forward pass cost, beside a product with a Hessian.
_GRADIENT, FORWARD = 0.6, 0.2


def firsts(groups: dict[str, np.ndarray]) -> dict[str, str]:
    """Of each group the first one of the same classes: by that name it is measured.

    >>> firsts(
    ...     {
    ...         "all": np.array([True, True]),
    ...         "tail": np.array([False, True]),
    ...         "few": np.array([False, True]),
    ...     }
    ... )
    {'all': 'all', 'tail': 'tail', 'few': 'tail'}
    """
    seen: dict[bytes, str] = {}
    return {name: seen.setdefault(group.tobytes(), name) for name, group in groups.items()}


class Measure:
    """The items of one subject, in order."""

    def __init__(
        self, subject: Subject, groups: dict[str, np.ndarray], how: How, devices: list[Any]
    ):
        self.subject, self.groups, self.how = subject, groups, how
        self._mesh = jax.make_mesh(
            (len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices
        )
        self._variables = jax.device_put(
            self._squeezed(subject.variables), NamedSharding(self._mesh, P())
        )
        self._labels = subject.train.labels[0]
        # Of one size for every group: a program for some number of them serves many classes.
        size, over = min(how.batch_size, len(self._labels)), len(devices)
        self._each = -(-size // over) * over
        if (subject.train.labels != self._labels).any():
            raise ValueError("the seeds of a subject must have the same labels")

    def items(self) -> Iterator[Item]:
        """Those that need nothing of one another."""
        how, rows = self.how, len(self._labels)
        yield Item("levels", 2 * FORWARD, 0, self.levels)
        for name in self._with_ends():
            group = self.groups[name]
            share = self.share(group)
            yield Item(
                f"ends of {name}", how.iterations * share, how.iterations,
                functools.partial(self.ends, group),
            )  # fmt: skip
        yield Item("traces", how.probes, how.probes, self.traces)
        worst = sum(self.groups[name][self._labels].sum() for name in self._with_ends()) / rows
        passes = 2 * _GRADIENT + (3 + how.directions) * FORWARD
        yield Item("rises", passes, 0, self.rises)
        own = self.subject.own
        if own is not None:
            number = 1 if own.by_class else own.groups.shape[1]
            passes = number * (_GRADIENT + FORWARD) + FORWARD
            yield Item("own", passes, 0, functools.partial(self.own, own), own.key())
        if how.steps:
            passes = float((how.steps + 1) * _GRADIENT * worst)
            yield Item("worst", passes, 0, self.worst, self._with_ends())

    def _with_ends(self) -> list[str]:
        """By first names, in order; head and tail are always among them."""
        first = firsts(self.groups)
        asked = self.groups if self.how.ends is None else {*self.how.ends, *SIDES}
        wanted = {first[name] for name in asked if name in first}
        return [name for name in self.groups if name in wanted]

    def share(self, group: np.ndarray) -> float:
        """Of its rows in all rows."""
        return float(group[self._labels].mean())

    # ---- what is measured --------------------------------------------------------------------

    def levels(self) -> dict[str, Any]:
        """Mean loss of each group, and correct and all rows of each class, in training and test."""
        found = {}
        for part in ("train", "test"):
            rows = getattr(self.subject, part)
            call = program(programs.levels, self._settings(), self._one())
            correct, total, loss = call(self._variables, self._place(rows, None))
            found[part] = {
                "correct": _listed(correct),
                "total": _listed(total),
                "loss": _listed(loss),
            }
        return found

    def ends(self, group: np.ndarray) -> dict[str, Any]:
        call = program(programs.ends, self._settings(), self._one())
        low, high = call(self._variables, self._place(self.subject.train, group))
        return {"smallest": _listed(low), "largest": _listed(high)}

    def traces(self) -> dict[str, Any]:
        """By group: [S, probes] of v^T H v, whose mean is the trace."""
        atoms = _atoms(self._labels, list(self.groups.values()))
        call = program(programs.forms, self._settings(), self._one())
        totals: dict[str, Any] = dict.fromkeys(self.groups, 0.0)
        for classes in atoms:
            size = classes[self._labels].sum()
            forms = np.asarray(
                call(self._variables, self._place(self.subject.train, classes)), float
            )
            for name, group in self.groups.items():
                if (classes & group).any():
                    totals[name] = totals[name] + forms * size / group[self._labels].sum()
        return {name: np.atleast_2d(forms).tolist() for name, forms in totals.items()}

    def rises(self) -> dict[str, Any]:
        """How much each group's loss rises, by the perturbations RISES but the worst."""
        call = program(programs.rises, self._settings(), self._one())
        found = call(self._variables, self._place(self.subject.train, None), self._tables())
        return {name: np.asarray(x, float).reshape(-1, len(self.groups)).tolist()
                for name, x in found.items()}  # fmt: skip

    def own(self, own: Own) -> dict[str, Any]:
        """How much each group's loss rises, by the perturbations of the run's own rule."""
        given = self._settings(), own.ascent
        call = program(programs.own, given, self._one())
        groups, radii = np.asarray(own.groups, np.float32), np.asarray(own.radii, np.float32)

        def rise(groups: Any, radii: Any, placed: Placed, tables: Any) -> np.ndarray:
            moved = self._variables, *self._squeezed((groups, radii))
            found = np.asarray(call(moved, placed, tables), float)
            return found.reshape(len(self.subject.seeds), -1)

        if not own.by_class:
            placed = self._place(self.subject.train, None)
            return {"own": rise(groups, radii, placed, self._tables()).tolist()}
        # As many groups as classes, each of which sees the rows of its own alone.
        rows = np.bincount(self._labels, minlength=len(self.subject.counts))
        ones = np.ones((1, len(rows)), np.float32)
        sums: Any = dict.fromkeys(self.groups, 0.0)
        for c in np.flatnonzero(rows):
            alone = np.arange(len(rows)) == c
            # L^c is divided by all rows, the mean over these by their own.
            weights = groups[:, c : c + 1] * (rows[c] / rows.sum())
            placed = self._place(self.subject.train, alone)
            found = rise(weights, radii[:, c : c + 1], placed, ones)
            for name, group in self.groups.items():
                if group[c]:
                    sums[name] = sums[name] + found * rows[c] / rows[group].sum()
        return {"own": np.concatenate([sums[name] for name in self.groups], axis=1).tolist()}

    def worst(self) -> dict[str, Any]:
        call = program(programs.worst, self._settings(), self._one())
        found = {
            name: _listed(call(self._variables, self._place(self.subject.train, self.groups[name])))
            for name in self._with_ends()
        }
        return {name: found[first] for name, first in firsts(self.groups).items() if first in found}

    def density(self, group: np.ndarray, grid: np.ndarray) -> dict[str, Any]:
        call = program(programs.density, self._settings(), self._one())
        found = call(self._variables, self._place(self.subject.train, group), jnp.asarray(grid))
        return {"density": np.asarray(found, float).reshape(-1, len(grid)).tolist()}

    def surface(self, points: np.ndarray) -> dict[str, Any]:
        """Losses of head and tail of the first seed in one plane, of one draw for all subjects."""
        one = self.alone(0)
        call = program(programs.surface, one._settings(), True)
        axis = jnp.asarray(points)
        placed = one._place(one.subject.train, None)
        found = call(one._variables, placed, one._tables(SIDES), axis)
        return {"losses": np.asarray(found, float).reshape(len(points), len(points), 2).tolist()}

    def between(self, directions: Any, coordinates: np.ndarray) -> np.ndarray:
        """float[P, 2], losses of head and tail at these coordinates from this model of one seed."""
        given = self._settings(), self.subject.statistics
        call = program(programs.between, given, True)
        placed = self._place(self.subject.train, None)
        tables, points = self._tables(SIDES), jnp.asarray(coordinates, float)
        return np.asarray(call(self._variables, placed, tables, directions, points), float)

    def alone(self, seed: int) -> Measure:
        """The same of the seed at this place."""
        cut = functools.partial(jax.tree.map, lambda x: x[seed : seed + 1])
        subject = self.subject._replace(
            variables=cut(self.subject.variables), train=cut(self.subject.train),
            seeds=self.subject.seeds[seed : seed + 1],
        )  # fmt: skip
        return Measure(subject, self.groups, self.how, list(self._mesh.devices.ravel()))

    # ---- rows on the devices -------------------------------------------------------------------

    def _one(self) -> bool:
        return len(self.subject.seeds) == 1

    def _squeezed(self, tree: Any) -> Any:
        """Without the axis of a single seed: mapped over it, convolutions would be slow."""
        return jax.tree.map(lambda x: x[0], tree) if len(self.subject.seeds) == 1 else tree

    def _settings(self) -> Settings:
        subject, how = self.subject, self.how
        return Settings(
            subject.apply, subject.loss or how.loss, subject.loss is None,
            tuple(self.groups["tail"].tolist()), self._each, how.rho, how.iterations, how.probes,
            how.directions, how.steps, how.density,
        )  # fmt: skip

    def _place(self, rows: Rows, group: np.ndarray | None) -> Placed:
        """(images, labels, mask) of the rows of some classes, padded to whole micro-batches."""
        labels = rows.labels[0]
        index = np.arange(len(labels)) if group is None else np.flatnonzero(group[labels])
        padded = np.pad(index, (0, -len(index) % self._each), mode="edge")
        mask = np.broadcast_to(
            np.arange(len(padded)) < len(index), (*rows.labels.shape[:1], len(padded))
        )
        arrays = self._squeezed((rows.images[:, padded], rows.labels[:, padded], mask))
        spec = P("rows") if self._one() else P(None, "rows")
        return jax.device_put(arrays, NamedSharding(self._mesh, spec))

    def _tables(self, names: tuple[str, ...] | None = None) -> np.ndarray:
        """float[K, C]: with these weights, a loss over all rows is the mean over a group's."""
        rows = np.bincount(self._labels, minlength=len(self.subject.counts))
        groups = [self.groups[name] for name in names or tuple(self.groups)]
        found = [group * (rows.sum() / rows[group].sum()) for group in groups]
        return np.stack(found).astype(np.float32)


def _listed(x: Any) -> Any:
    return np.atleast_1d(np.asarray(x, float)).tolist()


def _atoms(labels: np.ndarray, groups: list[np.ndarray]) -> list[np.ndarray]:
    """The classes that belong to the same groups, each set of them once; bool[C]."""
    signature = np.stack(groups, axis=1)
    present = np.bincount(labels, minlength=len(signature)) > 0
    found = [(signature == one).all(axis=1) & present for one in np.unique(signature, axis=0)]
    return [classes for classes in found if classes.any()]
