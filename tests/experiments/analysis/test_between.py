"""Losses between models: against points by hand, with and without running statistics."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis.between import Between
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
    few = how(batch_size=20)  # all rows at once
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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"between": ["a", "x"]}, "'x' is none of the lines: a; b; other seed; other rows"),
        ({"between": ["a", "b"], "plane": 3}, "three models, and there are 2"),
        ({"between": ["a"], "plane": 0}, "there is only one"),
        ({"between": ["a", "other seed"], "plane": 0}, "have none"),
        ({"between": ["a", "other rows"], "plane": 0}, "of models of the same training rows"),
    ],
)
def test_what_nothing_can_be_drawn_between(asked: Any, said: str) -> None:
    one = subject(1)
    groups = groups_of(one, ETA, per_class=False)
    rows = one.train._replace(images=one.train.images + 1)
    subjects = {
        "a": one, "b": one, "other seed": one._replace(seeds=[7]),
        "other rows": one._replace(train=rows),
    }  # fmt: skip
    measures = {name: Measure(x, groups, how(), jax.devices()[:1]) for name, x in subjects.items()}
    with pytest.raises(RunError, match=said):
        Between(measures, Namespace(**{"plane": 0, "line": 3, **asked}))
