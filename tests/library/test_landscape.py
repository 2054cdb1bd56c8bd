"""Surfaces of a quadratic, and the geometry of directions and planes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbsam_jax import curvature, landscape

Y, X = np.array([0, 1, 1, 1]), np.array([1.0, 2.0, 3.0, 9.0])
TABLES = np.array([[1.0, 0.0], [0.0, 2.0]])


def losses_fn(params: Any, x: Any) -> Any:
    return x * (params["a"].sum() ** 2 + params["b"].sum()), None


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}


@pytest.mark.parametrize("batch_size", [None, 3])
def test_losses_of_groups_on_a_grid(batch_size: Any, x64: None) -> None:
    origin, u, v = tree(0), tree(1), tree(2)
    points = landscape.grid(jnp.linspace(-1, 1, 3), jnp.array([0.0, 2.0]))
    got = landscape.losses(
        losses_fn, origin, [u, v], points, Y, X, class_weights=TABLES, mask=Y + X < 9,
        batch_size=batch_size,
    )  # fmt: skip

    def at(s: float, t: float) -> list[float]:
        a, b = ((origin[k] + s * u[k] + t * v[k]).sum() for k in "ab")
        return [float(x * (a**2 + b)) / 3 for x in (1.0, 2 * (2.0 + 3.0))]

    want = [at(s, t) for s in (-1, 0, 1) for t in (0, 2)]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    one = landscape.losses(losses_fn, origin, [u], points[:, :1], Y, X, class_weights=TABLES[0])
    np.testing.assert_allclose(one[2], origin["a"].sum() ** 2 / 4 + origin["b"].sum() / 4)


def test_padding_alone_has_no_loss() -> None:
    none = np.zeros(len(Y), bool)
    assert landscape.losses(losses_fn, tree(0), [tree(1)], [[1.0]], Y, X, mask=none) == 0


def test_filters_are_as_long_as_the_models(x64: None) -> None:
    params = {
        "conv": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 5))),
        "scale": jnp.ones(5),
    }
    params["conv"] = params["conv"].at[..., 2].set(0)
    draw = landscape.random_direction(params, key=jax.random.key(0))
    found = landscape.filter_normalised(draw, params)
    assert not found["scale"].any()
    for f in range(5):
        ours, theirs, drawn = (np.ravel(t["conv"][..., f]) for t in (found, params, draw))
        np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(theirs))
        np.testing.assert_allclose(ours * np.linalg.norm(drawn), drawn * np.linalg.norm(theirs))
    # A model twice as large moves twice as far: surfaces do not depend on the scale of filters.
    doubled = landscape.filter_normalised(draw, jax.tree.map(lambda p: 2 * p, params))
    np.testing.assert_allclose(doubled["conv"], 2 * found["conv"])
    again = landscape.random_direction(params, key=jax.random.key(0))
    np.testing.assert_array_equal(draw["conv"], again["conv"])


def test_a_plane_holds_its_models_and_keeps_distances(x64: None) -> None:
    models = [tree(k) for k in range(3)]
    plane = landscape.plane(*models)
    for model, (s, t) in zip(models, plane.models, strict=True):
        u, v = plane.directions
        for k in "ab":
            np.testing.assert_allclose(plane.origin[k] + s * u[k] + t * v[k], model[k], atol=1e-12)

    def distance(a: Any, b: Any) -> float:
        return float(np.sqrt(sum(((a[k] - b[k]) ** 2).sum() for k in "ab")))

    for i, j in ((0, 1), (0, 2), (1, 2)):
        np.testing.assert_allclose(
            np.linalg.norm(plane.models[i] - plane.models[j]), distance(models[i], models[j])
        )


def test_a_line_goes_from_one_to_the_other(x64: None) -> None:
    first, second = tree(0), tree(1)
    line = landscape.line(first, second)
    got = landscape.losses(losses_fn, line.origin, line.directions, line.models, Y, X)
    want = [losses_fn(p, X)[0].mean() for p in (first, second)]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_differences_of_narrow_models_are_wide() -> None:
    """float16 holds -40,000 and 40,000, and not what lies between them."""
    first, second, third = (jnp.asarray(m, jnp.float16) for m in ([-4e4, 0], [4e4, 0], [0, 4e4]))
    line = landscape.line(first, second)
    assert line.directions[0].tolist() == [8e4, 0]
    plane = landscape.plane(first, second, third)
    np.testing.assert_allclose(plane.models, [[0, 0], [8e4, 0], [4e4, 4e4]], rtol=1e-6)
    for found, ends in ((line, (first, second)), (plane, (first, second, third))):
        got = landscape.losses(
            lambda w, x: (jnp.abs(w.astype(jnp.float32) - jnp.array([4e4, 0.0])).sum() * x, None),
            found.origin, found.directions, found.models, [0], jnp.ones(1),
        )  # fmt: skip
        want = [abs(np.float32(m) - [4e4, 0]).sum() for m in ends]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=32)


@pytest.mark.parametrize(
    "coordinates", [jnp.zeros((3, 2)), [1.0], [[1j]], [["a"]], [[True]], [[1.0], [1.0, 2.0]]]
)
def test_what_is_no_list_of_points_is_refused(coordinates: Any) -> None:
    with pytest.raises(ValueError, match="one for each direction"):
        landscape.losses(losses_fn, tree(0), [tree(1)], coordinates, Y, X)


# Trees that arithmetic would spread over the parameters, or that it would say little of.
UNLIKE: dict[str, Any] = {
    "numbers": lambda t: {"a": 1.0, "b": 1.0},
    "shorter": lambda t: {**t, "a": t["a"][:1]},
    "longer": lambda t: {**t, "a": jnp.stack([t["a"]] * 2)},
    "another name": lambda t: {"a": t["a"], "c": t["b"]},
    "one leaf": lambda t: {"a": t["a"]},
    "no tree": lambda t: t["a"],
}
TAKES: dict[str, Any] = {
    "filter_normalised": lambda t, other: landscape.filter_normalised(other, t),
    "line": landscape.line,
    "plane second": lambda t, other: landscape.plane(t, other, tree(3)),
    "plane third": lambda t, other: landscape.plane(t, tree(3), other),
    "losses": lambda t, other: landscape.losses(
        losses_fn, t, [tree(3), other], jnp.zeros((1, 2)), Y, X
    ),
    "hvp": lambda t, other: curvature.hvp(losses_fn, t, Y, X)(other),
}


@pytest.mark.parametrize("unlike", UNLIKE)
@pytest.mark.parametrize("takes", TAKES)
def test_a_tree_unlike_the_parameters_is_refused(takes: str, unlike: str) -> None:
    with pytest.raises(ValueError, match="with the structure and shapes of the parameters"):
        TAKES[takes](tree(0), UNLIKE[unlike](tree(1)))


@pytest.mark.parametrize("takes", TAKES)
def test_a_tree_that_is_not_real_is_refused(takes: str) -> None:
    other = {**tree(1), "a": tree(1)["a"] * 1j}
    with pytest.raises(TypeError, match=r"\['a'\] must be real( and floating)?, got complex"):
        TAKES[takes](tree(0), other)


@pytest.mark.parametrize("models", [landscape.line, lambda a, b: landscape.plane(a, b, b)])
def test_models_of_whole_numbers_are_none(models: Any) -> None:
    for dtype in (np.uint8, np.int64):
        whole = jax.tree.map(lambda x: np.asarray(x).astype(dtype), tree(0))  # noqa: B023
        with pytest.raises(TypeError, match=r"only real arrays"):
            models(whole, whole)
        with pytest.raises(TypeError, match=r"every model\['a'\] must be real and floating, got"):
            models(tree(0), whole)


@pytest.mark.parametrize(
    "axes",
    [
        (), (jnp.ones((2, 2)),), (1.0,), ("abc",), (None,), (np.array([1 + 2j]),),
        ([True, False],), ([1.0], ["a"]), ([10**30],), ({0: 1.0},),
    ],
)  # fmt: skip
def test_axes_that_are_none_are_refused(axes: Any) -> None:
    with pytest.raises(ValueError, match="one or more axes"):
        landscape.grid(*axes)
    with pytest.raises(ValueError, match=r"^axes\[1\] must be float\[M\]"):
        landscape.grid([0.0], [[1.0], [1.0, 2.0]])
    assert landscape.grid([0, 1], [5.0]).tolist() == [[0, 5], [1, 5]]


def test_a_grid_of_whole_numbers_is_one_of_floats() -> None:
    assert landscape.grid([10**12, 1]).ravel().tolist() == [np.float32(10**12), 1]
    found = landscape.grid(jnp.arange(2), jnp.arange(2) + 5)
    assert found.dtype == jnp.float32
    assert found.tolist() == [[0, 5], [0, 6], [1, 5], [1, 6]]
