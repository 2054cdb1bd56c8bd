"""Losses of head and tail between models of one seed: on lines, and on the plane through three.

Between models neither has running statistics of batch normalisation: each point takes those that
the training rows have there.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.measure import FORWARD, SIDES, Item, Measure
from experiments.host.errors import RunError
from imbsam_jax import landscape

# How far beyond the models lines and planes go, in their extent.
_BEYOND = 0.2


class Between:
    """Models of one seed, by the names of their lines.

    Args:
      measures: by name, of the last epoch, in order.
      args: `--plane`, `--line`, `--between`.

    Raises:
      RunError: a name that is not there, too few models, none of one seed, of other shapes, or
        trained on other rows.
    """

    def __init__(self, measures: dict[str, Measure], args: argparse.Namespace):
        named = list(args.between or measures)
        if not args.between:
            named = named[:3] if args.plane else named
        unknown = [name for name in named if name not in measures]
        if unknown:
            raise RunError(f"--between: {unknown[0]!r} is none of the lines: {'; '.join(measures)}")
        if args.plane and len(named) != 3:
            raise RunError(f"--plane goes through three models, and there are {len(named)}")
        if len(named) < 2:
            raise RunError("--line goes from one model to others, and there is only one")
        seeds = [measures[name].subject.seeds for name in named]
        common = [seed for seed in seeds[0] if all(seed in of for of in seeds)]
        if not common:
            raise RunError("--plane and --line are of models of one seed, and these have none")
        self.names, self.seed, self._args = named, common[0], args
        self._alone = [
            measures[name].alone(of.index(self.seed)) for name, of in zip(named, seeds, strict=True)
        ]
        self._params = [
            jax.tree.map(lambda x: jnp.asarray(x[0]), one.subject.variables["params"])
            for one in self._alone
        ]
        shapes = [jax.tree.map(jnp.shape, params) for params in self._params]
        if any(shape != shapes[0] for shape in shapes):
            raise RunError("--plane and --line are of models of one shape")
        rows = [jax.tree.leaves(one.subject.train) for one in self._alone]
        if not all(all(map(np.array_equal, rows[0], other)) for other in rows):
            raise RunError("--plane and --line are of models of the same training rows")

    def passes(self) -> float:
        """What it costs, in passes over the rows."""
        points = self._args.plane**2 + self._args.line * (len(self.names) - 1)
        twice = 2 if self._alone[0].subject.statistics is not None else 1
        return FORWARD * twice * points

    def item(self) -> Item:
        more = [self._args.plane, self._args.line, self.names, self.seed]
        return Item("between", self.passes(), 0, self.measured, more)

    def measured(self) -> dict[str, Any]:
        found: dict[str, Any] = {"names": self.names, "seed": self.seed}
        if self._args.line:
            t = np.linspace(-_BEYOND, 1 + _BEYOND, self._args.line)
            found["line"] = {"t": t.tolist(), "to": {}}
            for name, params in list(zip(self.names, self._params, strict=True))[1:]:
                way = landscape.line(self._params[0], params)
                losses = self._alone[0].between(way.directions, t[:, None])
                found["line"]["to"][name] = losses.tolist()
        if self._args.plane:
            plane = landscape.plane(*self._params)
            models = np.asarray(plane.models, float)
            axes = [_axis(models[:, k], self._args.plane) for k in range(2)]
            points = np.asarray(landscape.grid(*map(jnp.asarray, axes)))
            losses = self._alone[0].between(plane.directions, points)
            found["plane"] = {
                "models": models.tolist(),
                "axes": [axis.tolist() for axis in axes],
                "losses": losses.reshape(*map(len, axes), 2).tolist(),
            }
        return found


def _axis(places: np.ndarray, number: int) -> np.ndarray:
    low, high = places.min(), places.max()
    room = _BEYOND * (high - low)
    return np.linspace(low - room, high + room, number)


def barriers(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each line and side, how far the loss rises above the straight line between its ends.

    >>> line = {"t": [0, 0.5, 1], "to": {"sam": [[1.0, 1.0], [3.0, 0.5], [2.0, 1.0]]}}
    >>> barriers({"line": line})
    {'sam': {'head': 1.5, 'tail': 0.0}}
    """
    t = np.asarray(found["line"]["t"])
    inside = (t >= 0) & (t <= 1)
    heights = {}
    for name, values in found["line"]["to"].items():
        losses = np.asarray(values)
        ends = [np.stack([np.interp(x, t, side) for side in losses.T]) for x in (0, 1)]
        straight = (1 - t[:, None]) * ends[0] + t[:, None] * ends[1]
        above = (losses - straight)[inside].max(axis=0, initial=0)
        heights[name] = {side: float(x) for side, x in zip(SIDES, above, strict=True)}
    return heights


def of_lines(lines: dict[str, Any], args: argparse.Namespace) -> Between | None:
    """Between the models of `{name: Work}`, where it was asked for."""
    if not (args.plane or args.line):
        return None
    return Between({name: one.measure for name, one in lines.items()}, args)
