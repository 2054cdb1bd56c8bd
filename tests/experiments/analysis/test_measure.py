"""What is measured of subjects: against dense Hessians, of one seed and several, on any devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.analysis import results
from experiments.analysis.measure import How, Measure, _atoms
from experiments.analysis.subjects import Rows, Subject, groups_of
from imbsam_jax import losses

COUNTS = np.array([9, 6, 3, 2])
ETA = 3.0
SEEDS = 2


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
    params = {"w": rng.normal(size=(SEEDS, 4, 3)), "v": rng.normal(size=(SEEDS, 3, 4))}
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
        "loss": _loss, "eta": ETA, "rho": 0.1, "iterations": 24, "probes": 60, "directions": 3,
        "steps": 2, "density": 2, "surface": 3, "batch_size": 10,
    }  # fmt: skip
    return How(**{**given, **changes})


def mean_loss(one: Subject, seed: int, group: np.ndarray) -> Any:
    """(flat parameters, the mean loss over a group's rows) of a seed."""
    variables = jax.tree.map(lambda x: jnp.asarray(x[seed]), one.variables)
    rows = group[one.train.labels[seed]]
    images, labels = one.train.images[seed][rows], one.train.labels[seed][rows]
    flat, unravel = ravel_pytree(variables["params"])

    def f(v: Any) -> Any:
        logits = apply({**variables, "params": unravel(v)}, images)
        return _loss(logits, labels).mean()

    return flat, f


@functools.cache
def measured(seeds: int) -> tuple[Subject, dict[str, Any], dict[str, Any]]:
    one = subject(seeds)
    groups = groups_of(one, ETA, per_class=True)
    measure = Measure(one, groups, how(), jax.devices()[:1])
    return one, groups, {item.name: item.call() for item in measure.items()}


@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), SEEDS])
def test_figures_are_those_of_dense_hessians(seeds: int) -> None:
    one, groups, found = measured(seeds)
    assert list(groups)[:6] == ["all", "head", "tail", "many", "medium", "few"]
    for seed in range(seeds):
        lines = results.figures(one, groups, found, seed)
        for name in ("all", "tail", "class 3"):
            flat, f = mean_loss(one, seed, groups[name])
            h = np.asarray(jax.hessian(f)(flat), np.float64)
            values, line = np.linalg.eigvalsh(h), lines[name]
            np.testing.assert_allclose(line["largest"], values[-1], rtol=1e-4)
            np.testing.assert_allclose(line["smallest"], values[0], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(line["ratio"], -values[0] / values[-1], rtol=2e-3)
            assert abs(line["trace"] - np.trace(h)) < 4 * line["trace_error"]
            np.testing.assert_allclose(line["train_loss"], f(flat), rtol=1e-5)
            d = jax.grad(mean_loss(one, seed, groups["all"])[1])(flat)
            rise = f(flat + 0.1 * d / jnp.linalg.norm(d)) - f(flat)
            np.testing.assert_allclose(line["sam"], rise, rtol=1e-3, atol=1e-6)
            d = jax.grad(mean_loss(one, seed, groups["tail"])[1])(flat)
            rise = f(flat + 0.1 * d / jnp.linalg.norm(d)) - f(flat)
            np.testing.assert_allclose(line["imbsam"], rise, rtol=1e-3, atol=1e-6)
            assert line["worst"] is not None and line["worst"] >= line["random"]
        assert lines["all"]["examples"] == COUNTS.sum()


def test_traces_add_up_over_classes_probe_by_probe() -> None:
    _, _, found = measured(SEEDS)
    parts = [np.array(found["traces"][f"class {c}"]) * n for c, n in enumerate(COUNTS)]
    np.testing.assert_allclose(sum(parts) / COUNTS.sum(), found["traces"]["all"], rtol=1e-4)
    assert np.array(found["traces"]["all"]).shape == (SEEDS, 60)


def test_atoms_are_the_classes_in_the_same_groups() -> None:
    groups = [np.array(g, bool) for g in ([1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0])]
    atoms = _atoms(np.array([0, 0, 1, 2, 3]), groups)
    assert sorted(a.astype(int).tolist() for a in atoms) == [
        [0, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0],
    ]  # fmt: skip
    assert len(_atoms(np.array([0, 1]), groups)) == 2  # no atom without a row


def test_densities_and_surfaces() -> None:
    one, groups, _ = measured(SEEDS)
    measure = Measure(one, groups, how(), jax.devices()[:1])
    grid = np.linspace(-20, 20, 50)
    density = np.array(measure.density(groups["tail"], grid)["density"])
    np.testing.assert_allclose(density.sum(axis=1) * (grid[1] - grid[0]), 1, rtol=1e-4)
    surface = np.array(measure.surface(np.linspace(-1, 1, 3))["losses"])
    for k, name in enumerate(("head", "tail")):
        flat, f = mean_loss(one, 0, groups[name])
        np.testing.assert_allclose(surface[1, 1, k], f(flat), rtol=1e-5)


def record_of(rule: str, seed: int, tail: float, gain: float) -> dict[str, Any]:
    one = subject(SEEDS, rule)
    names = (*results.MEASURES, *results.LEVELS)
    line = dict.fromkeys(names, 2.0)
    lines = {g: {**line, "examples": 1} for g in ("all", "head", "tail")}
    lines["tail"] |= {"trace": tail, "test_accuracy": 50 + gain}
    return results.record(one, seed, lines)


def test_differences_are_paired_and_what_flattening_explains() -> None:
    records = [
        *(record_of("sgd", s, 4.0 + s, s) for s in range(SEEDS)),
        *(record_of("sam", s, (4.0 + s) / 2, s + 1.0 + s) for s in range(SEEDS)),
        *(record_of("imbsam", s, (4.0 + s) / 4, s + 3.0) for s in range(SEEDS)),
        *(record_of("focal_sam", s, (4.0 + s) / 8, s + 5.0) for s in range(SEEDS)),
    ]
    lines = {line["rule"]: line for line in results.summarise(records)}
    assert lines["sgd"]["groups"]["tail"]["to_sgd"] is None
    to_sgd = lines["imbsam"]["groups"]["tail"]["to_sgd"]
    assert to_sgd["trace"]["mean"] == pytest.approx(-0.75 * 4.5)
    assert to_sgd["test_accuracy"] == {"mean": 3.0, "error": 0.0, "n": 2}
    ratio = lines["sam"]["tail_to_head"]["trace"]
    assert ratio["ratio"] == pytest.approx(np.sqrt(2.0 * 2.5) / 2)
    found = results.explained(records)["trace"]
    assert found["lines"]["rho"] == pytest.approx(-1.0) and found["lines"]["n"] == 3
    assert found["seeds"] is None  # the same flattening in every seed explains nothing
    table, less = results.table(list(lines.values())), results.differences(list(lines.values()))
    assert table.count("\n") == 1 + 4 * 3 and less.count("\n") == 1 + 3 * 3
    assert "| imbsam rho=0.5, cross_entropy | 3 | tail |" in less
