"""Losses between models: against points by hand, with and without running statistics."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.between import Between, barriers, of_lines
from experiments.analysis.measure import Measure
from experiments.analysis.subjects import groups_of
from experiments.host.errors import RunError
from imbsam_jax import landscape
from made_subjects import ETA, how, mean_loss, subject

HEAD, TAIL = [True, True, False, False], [False, False, True, True]


def _statistics(variables: Any, images: Any) -> Any:
    """Of a batch: here something of parameters and rows, to be seen to be computed anew."""
    mean = images.reshape(len(images), -1).astype(jnp.float32).mean(axis=0)
    return {"batch_stats": {"shift": variables["params"]["w"].sum() * mean}}


@pytest.mark.parametrize("statistics", [None, _statistics])
def test_lines_and_planes_between_models(statistics: Any) -> None:
    three = [subject(1, scale=scale)._replace(statistics=statistics) for scale in (1.0, 0.5)]
    turned = jax.tree.map(lambda x: x[..., ::-1] + 0.1, three[0].variables)
    three.append(three[0]._replace(variables=turned))
    groups = groups_of(three[0], ETA, per_class=False)
    # Half of the rows at once: what is linear in them is the mean over both halves.
    few = how(batch_size=10)
    measures = {
        name: Measure(one, groups, few, jax.devices()[:1])
        for name, one in zip("abc", three, strict=True)
    }
    asked = Namespace(plane=3, line=3, between=None)
    found = Between(measures, asked).measured()
    assert found["names"] == ["a", "b", "c"] and found["line"]["t"] == pytest.approx(
        [-0.2, 0.5, 1.2]
    )

    def loss(params: Any, side: Any) -> float:
        variables = {"params": jax.tree.map(lambda x: x[None], params)}
        variables["batch_stats"] = three[0].variables["batch_stats"]
        if statistics is not None:
            stats = statistics({"params": params}, jnp.asarray(three[0].train.images[0]))
            variables |= jax.tree.map(lambda x: x[None], stats)
        flat, f = mean_loss(three[0]._replace(variables=variables), 0, side)
        return float(f(flat))

    a, b, c = (jax.tree.map(lambda x: jnp.asarray(x[0]), x.variables["params"]) for x in three)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    for side, group in enumerate((HEAD, TAIL)):
        np.testing.assert_allclose(
            found["line"]["to"]["b"][1][side], loss(middle, group), rtol=1e-4
        )
    plane = landscape.plane(a, b, c)
    x, y = (axis[0] for axis in found["plane"]["axes"])
    corner = jax.tree.map(lambda p, u, v: p + x * u + y * v, a, *plane.directions)
    np.testing.assert_allclose(found["plane"]["losses"][0][0][1], loss(corner, TAIL), rtol=1e-4)
    np.testing.assert_allclose(found["plane"]["models"], plane.models, rtol=1e-5)
    assert list(found["line"]["to"]) == ["b", "c"]
    # A fifth of their extent beyond the models to each side.
    for k, axis in enumerate(found["plane"]["axes"]):
        low, high = (float(of(plane.models[:, k])) for of in (np.min, np.max))
        room = 0.2 * (high - low)
        assert axis == pytest.approx([low - room, (low + high) / 2, high + room], abs=1e-6)
    # Nine points and two lines of three; twice, where statistics are taken anew.
    ways = Between(measures, asked)
    assert ways.passes() == pytest.approx(0.2 * (9 + 6) * (1 if statistics is None else 2))
    item = ways.item()
    assert (item.name, item.passes, item.products) == ("between", ways.passes(), 0)
    assert item.more == [3, 3, ["a", "b", "c"], 0]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"between": ["a", "x"]},
            "'x' is none of the lines: a; b; other seed; other rows; other shape",
        ),
        ({"between": ["a", "b"], "plane": 3}, "three models, and there are 2"),
        ({"between": ["a"], "plane": 0}, "there is only one"),
        ({"between": ["a", "other seed"], "plane": 0}, "have none"),
        ({"between": ["a", "other rows"], "plane": 0}, "of models of the same training rows"),
        ({"between": ["a", "other shape"], "plane": 0}, "are of models of one shape"),
    ],
)
def test_what_nothing_can_be_drawn_between(asked: Any, said: str) -> None:
    one = subject(1)
    groups = groups_of(one, ETA, per_class=False)
    rows = one.train._replace(images=one.train.images + 1)
    wide = np.ones((1, 4, 5), np.float32)
    subjects = {
        "a": one, "b": one, "other seed": one._replace(seeds=[7]),
        "other rows": one._replace(train=rows),
        "other shape": one._replace(variables={**one.variables, "params": {"w": wide}}),
    }  # fmt: skip
    measures = {name: Measure(x, groups, how(), jax.devices()[:1]) for name, x in subjects.items()}
    with pytest.raises(RunError, match=said):
        Between(measures, Namespace(**{"plane": 0, "line": 3, **asked}))


def test_which_models_ways_go_between() -> None:
    """Of all that there are; a plane through the first three; of the first seed that all have."""
    one = subject(2)
    images = np.repeat(one.train.images[:1], 2, axis=0)
    one = one._replace(train=one.train._replace(images=images))
    groups = groups_of(one, ETA, per_class=False)
    measures = {
        name: Measure(one._replace(seeds=seeds), groups, how(), jax.devices()[:1])
        for name, seeds in (("a", [5, 3]), ("b", [3, 5]), ("c", [5, 4]), ("d", [5, 6]))
    }
    line = Between(measures, Namespace(plane=0, line=5, between=None))
    assert (line.names, line.seed) == (["a", "b", "c", "d"], 5)
    assert line.passes() == pytest.approx(0.2 * 5 * 3)
    plane = Between(measures, Namespace(plane=4, line=0, between=None))
    assert plane.names == ["a", "b", "c"] and plane.passes() == pytest.approx(0.2 * 16)
    pair = Between(measures, Namespace(plane=0, line=2, between=["b", "a"]))
    assert (pair.names, pair.seed) == (["b", "a"], 3)
    # Seed 3 is the first of b, and the second of a.
    first, second = (part.subject.variables["params"]["w"][0] for part in pair._alone)
    np.testing.assert_array_equal(first, one.variables["params"]["w"][0])
    np.testing.assert_array_equal(second, one.variables["params"]["w"][1])
    works = {name: Namespace(measure=measure) for name, measure in measures.items()}
    assert of_lines(works, Namespace(plane=0, line=0)) is None
    for asked in ({"plane": 0, "line": 3}, {"plane": 3, "line": 0}):
        found = of_lines(works, Namespace(between=["a", "b", "c"], **asked))
        assert found is not None and found.names == ["a", "b", "c"]


def test_a_barrier_is_over_the_straight_line_between_the_ends() -> None:
    """What lies beyond the ends is none; nor is a valley; ends are interpolated."""
    t = [-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]
    head, tail = [9.0, 1.0, 4.0, 2.0, 3.0, 9.0], [0.0, 4.0, 2.0, 1.0, 2.0, 7.0]
    found = {"line": {"t": t, "to": {"sam": np.transpose([head, tail]).tolist()}}}
    assert barriers(found) == {"sam": {"head": 2.5, "tail": 0.0}}  # of 4 over 1.5
    around = {"line": {"t": [-1.0, 0.5, 2.0], "to": {"b": [[1.0, 1.0], [0.0, 4.0], [1.0, 1.0]]}}}
    heights = barriers(around)["b"]  # ends at a third of the way: 1/3 and 3
    assert heights["head"] == 0 and heights["tail"] == pytest.approx(1)
