"""The rows of a comparison, and the settings that are tried for each: equally many for all.

Every setting is a point by flag: `lr` and `weight_decay` of all rows, and what the row's rule and
loss take. Point k has the same learning rate and weight decay in every row, so that no row is lucky
in them; the first has the defaults, and the second, with more weight decay, takes away what the row
adds to SGD with cross-entropy (rho 0, tau 0, ...), which is thereby among the candidates and may
win.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.command import method_flags
from experiments.step.methods import Tabled
from imbsam_jax import Ascent, rules, tail_threshold

Point = dict[str, float]

RULES = ("sgd", "sam", "imbsam", "focal_sam", "gsa", "reweighted_sam")
LOSSES = ("cross_entropy", "logit_adjusted", "class_balanced", "focal")
DEFAULT_RULES = ("sgd", "sam", "imbsam", "focal_sam", "gsa")
UNDER_EVERY_RULE = ("cross_entropy", "logit_adjusted")


def _is_last_bias(params: Any) -> Any:
    """A tree of bools: the bias of the classifier, which moves thresholds and no ranking of two."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _keys(path) == ("head", "bias"), params)


def _is_no_last_bias(params: Any) -> Any:
    return jax.tree.map(lambda is_it: not is_it, _is_last_bias(params))


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


# Which parameters a sharpness rule moves, by name.
PERTURB: dict[str, Any] = {
    "all": None, "without-last-bias": _is_no_last_bias, "last-bias": _is_last_bias,
}  # fmt: skip


class Range(NamedTuple):
    """Of a setting: its default, its value in the second point, and where it is sought.

    Attributes:
      default: of the first point, and without tuning.
      second: of the second point: what takes the setting's effect away; None where nothing does.
      low, high: bounds of the search.
      log: whether it is sought evenly in its logarithm.
    """

    default: float
    second: float | None
    low: float
    high: float
    log: bool = False


# A learning rate of 0.3 made one in forty trainings of the study fail (results/study).
# head_share stands for eta, which depends on the counts: see imbsam_jax.tail_threshold.
SETTINGS: dict[str, Range] = {
    "lr": Range(0.1, 0.05, 0.01, 0.2, log=True),
    "weight_decay": Range(1e-3, 5e-3, 1e-5, 3e-2, log=True),
    "rho": Range(0.1, 0.0, 0.02, 0.5, log=True),
    "gsa_scale": Range(0.01, 0.0, 1e-3, 1e-1, log=True),
    "head_share": Range(0.8, None, 0.5, 0.95),
    "strength": Range(0.8, None, 0.5, 1.0),
    "gamma": Range(3.0, None, 1.0, 4.0),
    "tail_weight": Range(2.0, 1.0, 1.0, 10.0, log=True),
    "tau": Range(1.0, 0.0, 0.5, 1.5),
    "beta": Range(0.999, 0.0, 0.9, 0.9999),
    "focal_gamma": Range(1.0, 0.0, 0.5, 3.0),
}
# Of each loss, beside lr and weight decay.
_OF_LOSS = {"logit_adjusted": ("tau",), "class_balanced": ("beta",), "focal": ("focal_gamma",)}


class Candidate(NamedTuple):
    """A row of the comparison.

    Attributes:
      name: as it is shown, "imbsam, logit_adjusted".
      rule, loss: their names.
      sampling: "shuffled", every row once an epoch, or "balanced", every class alike.
      points: the settings that are tried; the first is the default.
      perturb: which parameters the rule moves, a key of PERTURB.
    """

    name: str
    rule: str
    loss: str
    sampling: str
    points: list[Point]
    perturb: str = "all"

    def method(self, counts: np.ndarray, point: Point) -> Tabled:
        """Its method at a point, for classes of these sizes."""
        return method_of(self.rule, counts, point, self.perturb)

    def described(self, counts: np.ndarray, point: Point) -> Point:
        """A point for a reader: eta in place of the share that it follows from."""
        found = dict(point)
        if "head_share" in found:
            found["eta"] = tail_threshold(counts, head_share=found.pop("head_share"))
        return found


def method_of(rule: str, counts: np.ndarray, point: Point, perturb: str = "all") -> Tabled:
    """The method of a rule at a point; eta is the point's, or follows from its head_share."""
    ascent = Ascent(perturb=None if rule == "sgd" else PERTURB[perturb])
    options: dict[str, Any] = dict(point)
    if "head_share" in options:
        options["eta"] = tail_threshold(counts, head_share=options["head_share"])
    if rule == "gsa":
        gsa = rules.gsa(counts, groups=gsa_groups(counts), scale=options["gsa_scale"])
        return Tabled(gsa, ascent)
    return Tabled(method_flags.build_rule(rule, counts, options), ascent)


def gsa_groups(counts: np.ndarray) -> list[int]:
    """Of each class its group: by the number of rows, as many groups as classes, at most three.

    >>> gsa_groups(np.array([90, 40, 30, 9, 5, 2])), gsa_groups(np.array([90, 5]))
    ([0, 0, 1, 1, 2, 2], [0, 1])
    """
    ranks: list[int] = np.argsort(np.argsort(-counts, kind="stable")).tolist()
    groups = min(3, len(counts))
    return [rank * groups // len(counts) for rank in ranks]


def candidates(
    rule_names: Sequence[str],
    losses: Sequence[str],
    *,
    settings: int,
    fixed: Point,
    samplings: Sequence[str] = ("shuffled",),
    perturb: str = "all",
) -> list[Candidate]:
    """Every rule with every loss; what people use now with SGD alone.

    Args:
      rule_names: of RULES; losses: of LOSSES. Class-balanced weights, focal loss and balanced
        sampling stand beside SGD only.
      settings: how many points a row has; 1 is the defaults alone.
      fixed: settings that are given, and not sought.
      samplings: "balanced" beside "shuffled" adds SGD with cross-entropy under it.
      perturb: which parameters the rules move, a key of PERTURB.
    """
    drawn = _drawn(settings)
    found = []
    for rule in rule_names:
        for loss in losses:
            if rule != "sgd" and loss not in UNDER_EVERY_RULE:
                continue
            found.append(_candidate(rule, loss, "shuffled", drawn, fixed))
    if "balanced" in samplings and "sgd" in rule_names:
        found.append(_candidate("sgd", "cross_entropy", "balanced", drawn, fixed))
    return [row._replace(perturb=perturb) for row in found]


def _candidate(rule: str, loss: str, sampling: str, drawn: list[Point], fixed: Point) -> Candidate:
    taken = method_flags.options_of(rule)
    own = [name for name in SETTINGS if name in taken]
    if "eta" in taken and "eta" not in fixed:
        own.append("head_share")
    names = ["lr", "weight_decay", *own, *_OF_LOSS.get(loss, ())]
    points = []
    for k, point in enumerate(drawn):
        values = {name: point[name] for name in names}
        if k == 1:
            second = {name: SETTINGS[name].second for name in names}
            values |= {name: value for name, value in second.items() if value is not None}
        given = {name: fixed[name] for name in (*names, "eta") if name in fixed}
        points.append(values | {k: v for k, v in given.items() if k in values or k in taken})
    name = f"{rule}, {loss}" + (f", {sampling} sampling" if sampling != "shuffled" else "")
    return Candidate(name, rule, loss, sampling, points)


def _drawn(settings: int) -> list[Point]:
    """Points with a value for every setting: the defaults, then a Latin hypercube of the ranges."""
    from scipy.stats import qmc

    found = [{name: of.default for name, of in SETTINGS.items()}]
    if settings == 1:
        return found
    unit = qmc.LatinHypercube(d=len(SETTINGS), rng=np.random.default_rng(0)).random(settings - 1)
    for row in unit:
        found.append(
            {name: _within(of, u) for (name, of), u in zip(SETTINGS.items(), row, strict=True)}
        )
    return found


def _within(of: Range, u: float) -> float:
    if of.log:
        value = np.exp(np.log(of.low) + u * (np.log(of.high) - np.log(of.low)))
    else:
        value = of.low + u * (of.high - of.low)
    return float(f"{value:.3g}")
