"""What is random in an analysis: recorded keys, of which no two programs share one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.analysis import programs
from imbsam_jax import curvature, landscape, sharpness

SETTINGS = programs.Settings(
    lambda v, x: x, lambda z, y: y, counted=True, tail=(False, True), each=4, rho=0.5,
    iterations=6, probes=7, directions=8, steps=9, density=3,
)  # fmt: skip
PLACED: Any = (jnp.zeros((8, 1)), jnp.zeros(8, int), jnp.ones(8, bool))
VARIABLES: Any = {"params": {"a": jnp.ones(2), "b": jnp.ones(3)}}


def number(key: Any) -> int:
    """Of a key made of a number below 2^32."""
    return int(jax.random.key_data(key)[1])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library is asked for; it computes nothing."""
    seen: list[Any] = []

    def noted(module: Any, name: str, answer: Any) -> None:
        def call(*given: Any, **how: Any) -> Any:
            seen.append((name, {**how, "key": number(how["key"])} if "key" in how else how))
            return answer

        monkeypatch.setattr(module, name, call)

    noted(curvature, "extreme_eigenvalues", "ends")
    noted(curvature, "spectral_density", "density")
    noted(sharpness, "average", ("mean", "error"))
    noted(sharpness, "worst", "worst")
    noted(sharpness, "of_rule", ("rise", "aux"))
    noted(landscape, "random_direction", "direction")
    monkeypatch.setattr(landscape, "filter_normalised", lambda direction, params: direction)
    monkeypatch.setattr(landscape, "losses", lambda *given, **how: (given[2], given[3]))
    return seen


def test_every_program_draws_by_its_own_key(asked: list[Any]) -> None:
    """Those of results/sharpness: figures of other keys would not stand beside them."""
    assert programs.ends(SETTINGS, VARIABLES, PLACED) == "ends"
    assert programs.worst(SETTINGS, VARIABLES, PLACED) == "worst"
    assert programs.density(SETTINGS, VARIABLES, PLACED, jnp.zeros(5)) == "density"
    rises = programs.rises(SETTINGS, VARIABLES, PLACED, jnp.ones((2, 2)))
    assert rises == {"sam": "rise", "imbsam": "rise", "random": "mean", "random_error": "error"}
    axis = jnp.array([-1.0, 1.0])
    directions, points = programs.surface(SETTINGS, VARIABLES, PLACED, jnp.ones((2, 2)), axis)
    assert directions == ["direction"] * 2 and points.shape == (4, 2)
    keys = {}
    for name, how in asked:
        if "key" in how:
            keys.setdefault(name, []).append(how["key"])
    assert keys == {"extreme_eigenvalues": [0], "worst": [3], "spectral_density": [4],
                    "average": [2], "random_direction": [5, 6]}  # fmt: skip
    given = dict(asked)
    assert given["extreme_eigenvalues"]["iterations"] == 6
    assert {k: given["spectral_density"][k] for k in ("iterations", "probes")} == {
        "iterations": 6, "probes": 3
    }  # fmt: skip
    assert {k: given["average"][k] for k in ("radius", "directions", "batch_size")} == {
        "radius": 0.5, "directions": 8, "batch_size": 4
    }  # fmt: skip
    assert {k: given["worst"][k] for k in ("radius", "steps", "batch_size")} == {
        "radius": 0.5, "steps": 9, "batch_size": 4
    }  # fmt: skip


def test_probes_of_traces_have_a_key_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.lax, "map", lambda f, keys: keys)
    monkeypatch.setattr(curvature, "hvp", lambda *given, **how: None)
    found = programs.forms(SETTINGS, VARIABLES, PLACED)
    keys = jax.random.split(jax.random.key(1), 7)
    np.testing.assert_array_equal(*(jax.random.key_data(of) for of in (found, keys)))


def test_outputs_that_are_no_logits_have_their_rows_counted() -> None:
    """Of two micro-batches, the last row padded: losses by class, and no hit."""
    settings = SETTINGS._replace(
        apply=lambda v, x: (v, x), loss=lambda out, y: out[1][:, 0], counted=False
    )
    images = jnp.arange(1.0, 9.0)[:, None]
    labels, mask = jnp.array([0, 1] * 4), jnp.arange(8) < 7
    correct, total, losses = programs.levels(settings, VARIABLES, (images, labels, mask))
    assert total.tolist() == [4, 3] and losses.tolist() == [1 + 3 + 5 + 7, 2 + 4 + 6]
    assert correct.sum() == 4  # as if each were of the first class
