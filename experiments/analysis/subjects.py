"""What is analysed: models of finished runs, with the rows and groups they are seen on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from imbsam_jax import shot_splits, tail_classes

# What a run is called by, and what its difference to SGD is taken over.
DESCRIBED = ("rule", "rule_args", "ascent", "loss", "loss_args", "stage2", "stage2_args")


class Rows(NamedTuple):
    """Rows of S seeds: images [S, N, ...], as stored, and labels int[S, N]."""

    images: np.ndarray
    labels: np.ndarray


class Own(NamedTuple):
    """The perturbations of a run's own rule, in its last step: L[group_k] moves by radius_k.

    Attributes:
      groups: float[S, G, C], of `imbsam_jax.rules.ClassWeights`.
      radii: float[S, G].
      ascent: how they are taken; of the perturbation alone.
      by_class: every group is a class of its own, which sees its own rows alone (CC-SAM).
      about: of a description, what of it decides the ascent.
    """

    groups: np.ndarray
    radii: np.ndarray
    ascent: Any
    by_class: bool = False
    about: Any = None

    def key(self) -> list[Any]:
        """What tells it from others, for JSON."""
        digest = hashlib.sha256(self.groups.tobytes() + self.radii.tobytes()).hexdigest()
        return [digest, self.by_class, self.about]

    def of_seeds(self, number: int) -> Own:
        """The same for so many seeds, of one."""
        groups, radii = (np.repeat(x, number, axis=0) for x in (self.groups, self.radii))
        return self._replace(groups=groups, radii=radii)


class Subject(NamedTuple):
    """The models of S seeds, trained alike; S is 1 for a run folder of one seed.

    Attributes:
      run: its folder, as named on the command line.
      description: the fields DESCRIBED, and under "setting" what must agree to be compared.
      seeds: S of them.
      epoch: after which the parameters are.
      variables: {"params", "batch_stats"}, [S, ...] each.
      apply: (variables, images as stored) -> logits; one object for all subjects of one model.
      train, test: their rows; the labels are the same for every seed.
      counts: int[C], training examples of each class.
      thresholds: (Many above, Few below); None where there are no such groups.
      own: the perturbations of its own rule, or None.
      loss: (outputs, labels) -> float[b] in place of --loss, for outputs that are no logits; its
        accuracies are not measured.
      tail: which classes are the tail, bool[C], whatever --eta says; or None.
      statistics: (variables, images) -> running statistics of these rows alone, or None without.
    """

    run: str
    description: dict[str, Any]
    seeds: list[int]
    epoch: int
    variables: Any
    apply: Callable[[Any, Any], Any]
    train: Rows
    test: Rows
    counts: np.ndarray
    thresholds: tuple[int, int] | None
    own: Own | None = None
    loss: Callable[[Any, Any], Any] | None = None
    tail: np.ndarray | None = None
    statistics: Callable[[Any, Any], Any] | None = None


def groups_of(subject: Subject, eta: float, per_class: bool) -> dict[str, np.ndarray]:
    """bool[C] by name: all, head, tail, many, medium, few, and each class; without empty ones."""
    counts = subject.counts
    tail = subject.tail if subject.tail is not None else np.asarray(tail_classes(counts, eta))
    found = {"all": np.ones(len(counts), bool), "head": ~tail, "tail": tail}
    if subject.thresholds is not None:
        found |= {k: np.asarray(v) for k, v in shot_splits(counts, *subject.thresholds).items()}
    if per_class:
        found |= {f"class {c}": np.arange(len(counts)) == c for c in range(len(counts))}
    present = np.bincount(subject.train.labels[0], minlength=len(counts)) > 0
    return {name: group for name, group in found.items() if (group & present).any()}


# ---- models of one seed, together where they can be ---------------------------------------------


def rows_by_class(features: np.ndarray, labels: np.ndarray) -> Rows:
    """Rows of one seed, class by class: of splits with equal counts all labels are then equal."""
    order = np.argsort(labels, kind="stable")
    return Rows(features[order][None], labels[order][None])


def alike(ones: list[Subject]) -> list[Subject]:
    """Subjects of one seed each as one of several; those whose labels differ apart."""
    found: dict[Any, list[Subject]] = {}
    for one in ones:
        key = tuple(rows.labels.tobytes() for rows in (one.train, one.test))
        found.setdefault((*key, one.own is None), []).append(one)
    return [_together(same) for same in found.values()]


def _together(ones: list[Subject]) -> Subject:
    first = ones[0]
    moved = first.own
    if moved is not None:
        each = [one.own for one in ones if one.own is not None]
        moved = moved._replace(
            groups=np.concatenate([own.groups for own in each]),
            radii=np.concatenate([own.radii for own in each]),
            about=[own.about for own in each],
        )
    variables, train, test = (
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
        for trees in zip(*((one.variables, one.train, one.test) for one in ones), strict=True)
    )
    seeds = [seed for one in ones for seed in one.seeds]
    return first._replace(seeds=seeds, variables=variables, train=train, test=test, own=moved)
