"""What is measured of a subject: by `imbsam_jax`, in programs compiled once for a model.

Each item is a call of its own, whose result is kept in a file: a stopped analysis goes on.
Costs are counted in passes over all training rows: a product with the Hessian of a group counts for
its share of the rows.

The trace is Hutchinson's, as `curvature.trace` has it, with the same signs for every group: v^T H v
is taken once for each part of the rows in which no group ends (an atom), and added up over the
atoms of a group. So all groups cost what one over all rows does.
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

from experiments.analysis.subjects import Rows, Subject
from experiments.data import filled
from imbsam_jax import curvature, landscape, metrics, rules, sharpness

RISES = ("sam", "imbsam", "random", "worst")
Placed = tuple[Any, Any, Any]


class How(NamedTuple):
    """How much is measured; all of it decides the figures.

    Attributes:
      loss: loss(logits, labels) -> float[b].
      eta: the largest count of a tail class.
      rho: length of the perturbations.
      iterations: products for the ends of a spectrum.
      probes: products for the trace.
      directions: random directions of the average rise.
      steps: of ascent, for the worst rise.
      density: probes of the spectral densities of head and tail; 0 leaves them out.
      surface: points of a side of the surfaces of head and tail; 0 leaves them out.
      batch_size: rows of a micro-batch.
    """

    loss: Callable[[Any, Any], Any]
    eta: float
    rho: float
    iterations: int
    probes: int
    directions: int
    steps: int
    density: int
    surface: int
    batch_size: int


class Item(NamedTuple):
    """One call: its name, cost in passes over the rows, products with a Hessian, and the call."""

    name: str
    passes: float
    products: int
    call: Callable[[], dict[str, Any]]


# How many passes a gradient and a forward pass cost, beside a product with a Hessian.
_GRADIENT, FORWARD = 0.6, 0.2


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
        for name, group in self.groups.items():
            share = self.share(group)
            yield Item(
                f"ends of {name}", how.iterations * share, how.iterations,
                functools.partial(self.ends, group),
            )  # fmt: skip
        yield Item("traces", how.probes, how.probes, self.traces)
        worst = sum(group[self._labels].sum() for group in self.groups.values()) / rows
        passes = 2 * _GRADIENT + (3 + how.directions) * FORWARD
        yield Item("rises", passes, 0, self.rises)
        if how.steps:
            yield Item("worst", float((how.steps + 1) * _GRADIENT * worst), 0, self.worst)

    def share(self, group: np.ndarray) -> float:
        """Of its rows in all rows."""
        return float(group[self._labels].mean())

    # ---- what is measured --------------------------------------------------------------------

    def levels(self) -> dict[str, Any]:
        """Mean loss of each group, and correct and all rows of each class, in training and test."""
        found = {}
        for part in ("train", "test"):
            rows = getattr(self.subject, part)
            call = _program(_levels, self._how(), self._one())
            correct, total, loss = call(self._variables, self._place(rows, None))
            found[part] = {
                "correct": _listed(correct),
                "total": _listed(total),
                "loss": _listed(loss),
            }
        return found

    def ends(self, group: np.ndarray) -> dict[str, Any]:
        call = _program(_ends, self._how(), self._one())
        low, high = call(self._variables, self._place(self.subject.train, group))
        return {"smallest": _listed(low), "largest": _listed(high)}

    def traces(self) -> dict[str, Any]:
        """By group: [S, probes] of v^T H v, whose mean is the trace."""
        atoms = _atoms(self._labels, list(self.groups.values()))
        call = _program(_forms, self._how(), self._one())
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
        call = _program(_rises, self._how(), self._one())
        found = call(self._variables, self._place(self.subject.train, None), self._tables())
        return {name: np.asarray(x, float).reshape(-1, len(self.groups)).tolist()
                for name, x in found.items()}  # fmt: skip

    def worst(self) -> dict[str, Any]:
        call = _program(_worst, self._how(), self._one())
        return {
            name: _listed(call(self._variables, self._place(self.subject.train, group)))
            for name, group in self.groups.items()
        }

    def density(self, group: np.ndarray, grid: np.ndarray) -> dict[str, Any]:
        call = _program(_density, self._how(), self._one())
        found = call(self._variables, self._place(self.subject.train, group), jnp.asarray(grid))
        return {"density": np.asarray(found, float).reshape(-1, len(grid)).tolist()}

    def surface(self, points: np.ndarray) -> dict[str, Any]:
        """Losses of head and tail of the first seed in one plane, of one draw for all subjects."""
        first = jax.tree.map(lambda x: x[:1], (self.subject.variables, self.subject.train))
        one = Measure(
            self.subject._replace(
                variables=first[0], train=first[1], seeds=self.subject.seeds[:1]
            ),
            self.groups, self.how, list(self._mesh.devices.ravel()),
        )  # fmt: skip
        call = _program(_surface, one._how(), True)
        tables = one._tables()[[list(self.groups).index(name) for name in ("head", "tail")]]
        axis = jnp.asarray(points)
        found = call(one._variables, one._place(one.subject.train, None), tables, axis)
        return {"losses": np.asarray(found, float).reshape(len(points), len(points), 2).tolist()}

    # ---- rows on the devices -------------------------------------------------------------------

    def _one(self) -> bool:
        return len(self.subject.seeds) == 1

    def _squeezed(self, tree: Any) -> Any:
        """Without the axis of a single seed: mapped over it, convolutions would be slow."""
        return jax.tree.map(lambda x: x[0], tree) if len(self.subject.seeds) == 1 else tree

    def _how(self) -> Any:
        how = self.how
        return (
            self.subject.apply, how.loss, how.rho, how.iterations, how.probes, how.directions,
            how.steps, how.density, self._each, how.eta,
            tuple(filled(self.subject.counts).tolist()),
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

    def _tables(self) -> np.ndarray:
        """float[K, C]: with these weights, a loss over all rows is the mean over a group's."""
        rows = np.bincount(self._labels, minlength=len(self.subject.counts))
        return np.stack(
            [group * (rows.sum() / rows[group].sum()) for group in self.groups.values()]
        ).astype(np.float32)


def _listed(x: Any) -> Any:
    return np.atleast_1d(np.asarray(x, float)).tolist()


def _atoms(labels: np.ndarray, groups: list[np.ndarray]) -> list[np.ndarray]:
    """The classes that belong to the same groups, each set of them once; bool[C]."""
    signature = np.stack(groups, axis=1)
    present = np.bincount(labels, minlength=len(signature)) > 0
    found = [(signature == one).all(axis=1) & present for one in np.unique(signature, axis=0)]
    return [classes for classes in found if classes.any()]


# ---- the programs -----------------------------------------------------------------------------
# Each takes variables and rows of one seed; `settings` is what `Measure._how` makes. KEY is the
# same for every subject: what is random is shared by what is compared.

KEY = 0


@functools.cache
def _program(of: Any, settings: Any, one: bool) -> Any:
    """The function, compiled for one seed or mapped over the seeds of variables and rows."""
    f = functools.partial(of, settings)
    if one:
        return jax.jit(f)

    def mapped(variables: Any, placed: Any, *more: Any) -> Any:
        return jax.vmap(f, in_axes=(0, 0, *(None,) * len(more)))(variables, placed, *more)

    return jax.jit(mapped)


def _losses(settings: Any, variables: Any) -> Any:
    apply, loss = settings[:2]
    rest = {name: value for name, value in variables.items() if name != "params"}

    def losses_fn(params: Any, images: Any, labels: Any) -> Any:
        logits = apply({"params": params, **rest}, images)
        return loss(logits, labels), logits

    return losses_fn


def _matvec(settings: Any, variables: Any, placed: Placed) -> Any:
    images, labels, mask = placed
    return curvature.hvp(
        _losses(settings, variables), variables["params"], labels, images, labels, mask=mask,
        batch_size=settings[8],
    )  # fmt: skip


def _levels(settings: Any, variables: Any, placed: Placed) -> Any:
    """(correct int[C], total int[C], sum of the loss [C]) of the rows, in micro-batches."""
    images, labels, mask = placed
    losses_fn, each = _losses(settings, variables), settings[8]

    def part(rows: Any) -> Any:
        images, labels, mask = rows
        losses, logits = losses_fn(variables["params"], images, labels)
        correct, total = metrics.class_hits(logits, labels, mask)
        at = jnp.zeros(logits.shape[1]).at[labels].add(jnp.where(mask, losses, 0))
        return correct, total, at

    cut = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(each, -1, *x.shape[1:]), 1, 0), (images, labels, mask)
    )
    return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(part, cut))


def _ends(settings: Any, variables: Any, placed: Placed) -> Any:
    return curvature.extreme_eigenvalues(
        _matvec(settings, variables, placed), variables["params"], key=jax.random.key(KEY),
        iterations=settings[3],
    )  # fmt: skip


def _forms(settings: Any, variables: Any, placed: Placed) -> jax.Array:
    """[probes] of v^T H v for random signs v."""
    matvec, params = _matvec(settings, variables, placed), variables["params"]

    def one(key: jax.Array) -> jax.Array:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
        ]
        v = jax.tree.unflatten(structure, signs)
        products = jax.tree.map(lambda a, b: (a * b).sum(), v, matvec(v))
        return jnp.asarray(sum(jax.tree.leaves(products)))

    return jax.lax.map(one, jax.random.split(jax.random.key(KEY + 1), settings[4]))


def _rises(settings: Any, variables: Any, placed: Placed, tables: Any) -> Any:
    images, labels, mask = placed
    rho, directions, eta, counts = (settings[k] for k in (2, 5, 9, 10))
    of = _losses(settings, variables), variables["params"], labels, images, labels
    options = {"class_weights": tables, "mask": mask, "batch_size": settings[8]}

    def along(rule: Any) -> Any:
        losses_fn, *rest = of
        return sharpness.of_rule(losses_fn, rule, *rest, **options)[0]

    mean, error = sharpness.average(
        *of, radius=rho, key=jax.random.key(KEY + 2), directions=directions, **options
    )
    return {
        "sam": along(rules.sam(len(counts), rho=rho)),
        "imbsam": along(rules.imbsam(counts, rho=rho, eta=eta)),
        "random": mean,
        "random_error": error,
    }


def _worst(settings: Any, variables: Any, placed: Placed) -> jax.Array:
    images, labels, mask = placed
    return sharpness.worst(
        _losses(settings, variables), variables["params"], labels, images, labels,
        radius=settings[2], steps=settings[6], key=jax.random.key(KEY + 3), mask=mask,
        batch_size=settings[8],
    )  # fmt: skip


def _density(settings: Any, variables: Any, placed: Placed, grid: jax.Array) -> jax.Array:
    return curvature.spectral_density(
        _matvec(settings, variables, placed), variables["params"], grid,
        key=jax.random.key(KEY + 4), iterations=settings[3], probes=settings[7],
    )  # fmt: skip


def _surface(settings: Any, variables: Any, placed: Placed, tables: Any, axis: Any) -> jax.Array:
    images, labels, mask = placed
    params = variables["params"]
    directions = [
        landscape.filter_normalised(
            landscape.random_direction(params, key=jax.random.key(KEY + 5 + k)), params
        )
        for k in range(2)
    ]
    return landscape.losses(
        _losses(settings, variables), params, directions, landscape.grid(axis, axis), labels,
        images, labels, class_weights=tables, mask=mask, batch_size=settings[8],
    )  # fmt: skip
