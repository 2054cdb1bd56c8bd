"""The perturbations of a run's own rule, as they were in a step of it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments.analysis.subjects import Own
from experiments.step.methods import ClassConditional, Method
from imbsam_jax import Ascent


def of_method(
    method: Method | None, step: int, about: Any, *, seen: np.ndarray | None = None
) -> Own | None:
    """The perturbations of a method in a step, of one seed; None where it has none to be seen.

    None is SGD's, and that of a method whose e is not the perturbation of a loss alone (weight
    decay inside) or not one length over all parameters (the release of CC-SAM).

    Args:
      about: for JSON, what was said of the method: it tells its ascent from others.
      seen: float[C], how often a batch has a row of each class beside all rows; None: as often.
    """
    if method is None:
        return None
    found: Any = [stage for start, stage in method.stages() if start <= step][-1]
    if isinstance(found, ClassConditional):
        return _of_classes(found, about)
    ascent, table = found.ascent.of(found.rule), found.rule(step)
    if not len(table.groups) or ascent.weight_decay != 0:
        return None
    groups, radii = (np.asarray(x, np.float64)[None] for x in (table.groups, table.radii))
    groups = groups if seen is None else groups * seen
    # Of one direction it is no matter what its gradient was divided by.
    return Own(groups, radii, ascent._replace(group_mean=False), about=about)


def _of_classes(method: ClassConditional, about: Any) -> Own | None:
    """CC-SAM's: radius_c = noise_ratio (n_c - 1)^(-1/4), times what the bound makes of it."""
    if method.variant == "release":
        return None
    counts = np.asarray(method.class_counts, np.float64)
    radii = method.options["noise_ratio"] * (counts - 1) ** -0.25
    perturb = None if method.options.get("perturb") == "all" else _classifier
    ascent = Ascent(perturb=perturb, bound=True)
    return Own(np.eye(len(counts))[None], radii[None], ascent, by_class=True, about=about)


def _classifier(params: Any) -> Any:
    """Which parameters are the classifier: those with an entry "head" in their paths."""

    def marked(path: Any, _: Any) -> bool:
        return any(jax.tree_util.keystr((key,), simple=True) == "head" for key in path)

    return jax.tree_util.tree_map_with_path(marked, params)
