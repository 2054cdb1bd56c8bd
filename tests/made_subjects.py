"""Subjects of an analysis, made up: a small network of two seeds, and losses by hand."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis.measure import How
from experiments.analysis.subjects import Rows, Subject
from imbsam_jax import losses

COUNTS = np.array([9, 6, 3, 2])
ETA = 3.0
SEEDS = 2
W = (4, 3)


def apply(variables: Any, images: Any) -> Any:
    p = variables["params"]
    x = images.reshape(len(images), -1).astype(jnp.float32) / 8
    return jnp.tanh(x @ p["w"]) @ p["v"] + variables["batch_stats"]["shift"][None]


def _loss(logits: Any, labels: Any) -> Any:
    return losses.cross_entropy(logits, labels)


def subject(seeds: int = SEEDS, rule: str = "sgd", scale: float = 1.0) -> Subject:
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat(np.arange(4), COUNTS), (SEEDS, 1))
    images = rng.integers(0, 16, (SEEDS, labels.shape[1], 2, 2, 1)).astype(np.uint8)
    params = {"w": rng.normal(size=(SEEDS, *W)), "v": rng.normal(size=(SEEDS, *W[::-1]))}
    stats = {"shift": rng.normal(size=(SEEDS, 4))}
    cut = functools.partial(jax.tree.map, lambda x: np.float32(scale * x[:seeds]))
    rows = Rows(images[:seeds], labels[:seeds])
    description = {
        "rule": rule, "rule_args": {"rho": 0.5} if rule != "sgd" else {}, "ascent": {},
        "loss": "cross_entropy", "loss_args": {}, "stage2": None, "stage2_args": {}, "setting": {},
    }  # fmt: skip
    variables = {"params": cut(params), "batch_stats": cut(stats)}
    return Subject(
        "run", description, list(range(seeds)), 3, variables, apply, rows, rows, COUNTS, (5, 3)
    )


def how(**changes: Any) -> How:
    given = {
        "loss": _loss, "rho": 0.1, "iterations": 24, "probes": 60, "directions": 3,
        "steps": 2, "density": 2, "surface": 3, "batch_size": 10,
    }  # fmt: skip
    return How(**{**given, **changes})


def _mean(v: Any, shift: Any, images: Any, labels: Any, seen: Any) -> Any:
    cut = W[0] * W[1]  # of flat parameters, which are in the order of their names
    params = {"v": v[:-cut].reshape(W[::-1]), "w": v[-cut:].reshape(W)}
    logits = apply({"params": params, "batch_stats": {"shift": shift}}, images)
    return jnp.where(seen, _loss(logits, labels), 0).sum() / seen.sum()


# Of any group and seed: compiled once.
_LOSS, _GRADIENT, _HESSIAN = (jax.jit(f) for f in (_mean, jax.grad(_mean), jax.hessian(_mean)))


class MeanLoss(NamedTuple):
    """Of flat parameters; with its derivatives."""

    rows: tuple[Any, Any, Any, Any]

    def __call__(self, v: Any) -> Any:
        return np.asarray(_LOSS(v, *self.rows))

    def gradient(self, v: Any) -> Any:
        return np.asarray(_GRADIENT(v, *self.rows))

    def hessian(self, v: Any) -> Any:
        return np.asarray(_HESSIAN(v, *self.rows), np.float64)


def mean_loss(one: Subject, seed: int, group: Any) -> tuple[Any, MeanLoss]:
    """(flat parameters, the mean loss over a group's rows) of a seed."""
    labels = one.train.labels[seed]
    params, shift = one.variables["params"], one.variables["batch_stats"]["shift"][seed]
    flat = np.concatenate([np.ravel(params[name][seed]) for name in ("v", "w")])
    seen = np.asarray(group, bool)[labels]
    return flat, MeanLoss((shift, one.train.images[seed], labels, seen))
