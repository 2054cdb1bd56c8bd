"""The perturbation: it solves its stated problem, exactly, at every size of gradient and dtype."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imbsam_jax as ij
from imbsam_jax import nnx
from imbsam_jax.ascent import check_ascent, norm, perturbed
from rule_table import quick_jit

NORMS = [1.25, 1.5, 2, 3, math.inf]
PARAMS = {"kernel": np.array([[0.5, -1.0], [2.0, 0.0]]), "bias": np.array([3.0, -0.25, 1.0])}
DIRECTION = {"kernel": np.array([[3.0, 0.0], [-1.0, 2.0]]), "bias": np.array([1.0, -4.0, 0.5])}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def step_from_zero(direction: Any, radius: float, ascent: ij.Ascent = ij.Ascent()) -> np.ndarray:
    zeros = jax.tree.map(jnp.zeros_like, direction)
    return flat(perturbed(zeros, direction, radius, ascent))


# ------------------------------------------------------------------------------------- the problem


@cache
def jitted_step(p: float, adaptive: Any) -> Any:
    def step(params: Any, direction: Any, radius: Any) -> Any:
        moved = perturbed(params, direction, radius, ij.Ascent(p=p, adaptive=adaptive))
        return jax.tree.map(jnp.subtract, moved, params)

    return jax.jit(step)


_SCALES = (None, ij.magnitude_scale, ij.asam_scale(0.5))
_NUMBERS = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(_NUMBERS, min_size=7, max_size=7),
    st.floats(0.125, 2, width=32),
    st.sampled_from(NORMS),
    st.sampled_from(_SCALES),
)
def test_it_is_the_furthest_ascent_within_the_ball(
    numbers: list[float], radius: float, p: float, adaptive: Any
) -> None:
    """max <d, e> over ||e / T||_p <= radius is radius ||T d||_q, reached on the sphere."""
    direction = float32({"kernel": np.reshape(numbers[:4], (2, 2)), "bias": np.array(numbers[4:])})
    params = float32(PARAMS)
    e = flat(jitted_step(p, adaptive)(params, direction, radius))
    scale = 1.0 if adaptive is None else flat(adaptive(params))
    d, q = flat(direction), 1.0 if math.isinf(p) else p / (p - 1)
    best = radius * np.linalg.norm(scale * d, q)
    np.testing.assert_allclose(d @ e, best, rtol=1e-4)
    if best > 0:
        inside = np.divide(e, scale, out=np.zeros_like(e), where=scale != 0)
        np.testing.assert_allclose(np.linalg.norm(inside, p), radius, rtol=1e-4)
    else:
        assert not e.any()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-20, 1.0, 1e20, 1e25, 1e37])
def test_the_radius_is_exact_for_gradients_of_any_size(scale: float, p: float) -> None:
    """Squares of these over- and underflow in float32."""
    direction = jax.tree.map(lambda x: jnp.asarray(x * scale, jnp.float32), DIRECTION)
    e = step_from_zero(direction, 0.05, ij.Ascent(p=p))
    np.testing.assert_allclose(e, step_from_zero(float32(DIRECTION), 0.05, ij.Ascent(p=p)), 1e-6)
    np.testing.assert_allclose(np.linalg.norm(e, p), 0.05, rtol=1e-6)
    np.testing.assert_allclose(norm(direction), np.linalg.norm(flat(DIRECTION)) * scale, rtol=1e-6)


@pytest.mark.parametrize("p", NORMS)
def test_nothing_moves_along_a_zero_gradient_or_by_a_zero_radius(p: float) -> None:
    params, ascent = float32(PARAMS), ij.Ascent(p=p)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for direction, radius in ((zeros, 0.1), (float32(DIRECTION), 0.0), (zeros, 0.0)):
        moved = perturbed(params, direction, radius, ascent)
        np.testing.assert_array_equal(flat(moved), flat(params))
    assert norm(zeros) == 0


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(bad: float, p: float) -> None:
    direction = float32(DIRECTION)
    direction["bias"] = direction["bias"].at[1].set(bad)
    assert not np.isfinite(step_from_zero(direction, 0.1, ij.Ascent(p=p))).all()
    assert not np.isfinite(norm(direction))


def test_a_parameter_without_elements_is_no_trouble() -> None:
    direction = {"empty": jnp.zeros((0, 3)), "w": jnp.array([3.0, 4.0])}
    np.testing.assert_allclose(step_from_zero(direction, 0.5), [0.3, 0.4], rtol=1e-6)


# ----------------------------------------------------------------------------------------- dtypes


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_point_has_the_dtype_of_the_parameters(dtype: Any) -> None:
    params = {"w": jnp.zeros(2, dtype), "v": jnp.zeros(1, jnp.float32)}
    direction = {"w": jnp.array([3.0, 4.0], dtype), "v": jnp.zeros(1, jnp.float32)}
    moved = perturbed(params, direction, 0.5, ij.Ascent())
    assert (moved["w"].dtype, moved["v"].dtype) == (dtype, jnp.float32)
    epsilon = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(moved["w"], np.float64), [0.3, 0.4], rtol=epsilon)


def test_norms_are_float32_for_coarser_gradients() -> None:
    """A sum of 2^17 bfloat16 ones in bfloat16 stops at 256; in float16 it is infinite."""
    for dtype in (jnp.bfloat16, jnp.float16):
        ones = {"w": jnp.ones(2**17, dtype)}
        np.testing.assert_allclose(norm(ones), math.sqrt(2**17), rtol=1e-6)
        assert norm(ones).dtype == jnp.float32
        e = step_from_zero(ones, 1.0)
        np.testing.assert_allclose(e, 2**-8.5, rtol=float(jnp.finfo(dtype).eps))


# ---------------------------------------------------------------------------------- what moves, T


def _moves_head(params: Any) -> Any:
    return {name: name == "head" for name in params}


@pytest.mark.parametrize(
    "mask",
    [
        {"body": False, "head": True},
        {"body": {"kernel": False, "bias": False}, "head": {"kernel": True, "bias": True}},
        _moves_head,
    ],
    ids=["prefix", "tree", "function"],
)
def test_only_what_the_mask_names_moves_and_counts_in_the_norm(mask: Any) -> None:
    params = {"body": float32(PARAMS), "head": float32(PARAMS)}
    direction = {"body": float32(DIRECTION), "head": float32(DIRECTION)}
    moved = perturbed(params, direction, 0.1, ij.Ascent(perturb=mask))
    np.testing.assert_array_equal(flat(moved["body"]), flat(params["body"]))
    e = flat(moved["head"]) - flat(params["head"])
    np.testing.assert_allclose(
        e, 0.1 * flat(DIRECTION) / np.linalg.norm(flat(DIRECTION)), atol=1e-6
    )


@pytest.mark.parametrize("p", [1.5, 2, 3])
def test_a_derivative_through_the_step_where_a_parameter_has_no_gradient(p: float) -> None:
    """Of w0^2 / 2 + c w1, rho 0.1, at c = 0: the first gradient is even in c, the second is c."""

    def step(c: jax.Array) -> jax.Array:
        def losses(w: jax.Array, x: jax.Array) -> Any:
            return (w[0] ** 2 / 2 + c * w[1]) * x, None

        door = ij.value_and_grad(losses, ij.rules.sam(1, rho=0.1), ascent=ij.Ascent(p=p))
        return door(jnp.array([1.0, 0.0]), jnp.zeros(2, int), jnp.ones(2))[1]

    at, slope = quick_jit(lambda c: (step(c), jax.jacobian(step)(c)))(0.0)
    np.testing.assert_allclose(at, [1.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(slope, [0.0, 1.0], atol=1e-7)


def test_a_mask_of_another_structure_is_refused() -> None:
    params = {"body": float32(PARAMS), "head": float32(PARAMS)}
    with pytest.raises(ValueError, match="hea"):
        perturbed(params, params, 0.1, ij.Ascent(perturb={"body": False, "heed": True}))


@pytest.mark.parametrize(
    "p", [1, 0.5, -2, math.nan, True, "2", None, np.float32(1), 2j, np.array([2.0])]
)
def test_p_must_be_over_1(p: Any) -> None:
    with pytest.raises(ValueError, match=f"p must be over 1, got .*{re.escape(str(p))}"):
        check_ascent(ij.Ascent(p=p))


@pytest.mark.parametrize("p", [2, 2.0, 3, math.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float64, jnp.float32, np.array])
def test_p_may_be_a_number_of_any_kind(p: float, kind: Any) -> None:
    taken = check_ascent(ij.Ascent(p=kind(p))).p
    assert taken == p and isinstance(taken, int | float)


def test_p_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match="p must be known when it is given"):
        jax.jit(lambda p: check_ascent(ij.Ascent(p=p)).p)(2.0)


@pytest.mark.parametrize(
    "door",
    [
        lambda losses_fn, rule, ascent: ij.value_and_grad(losses_fn, rule, ascent=ascent),
        lambda losses_fn, rule, ascent: nnx.value_and_grad(losses_fn, rule, ascent=ascent),
        lambda losses_fn, rule, ascent: ij.sharpness_aware(rule, ascent=ascent),
        lambda losses_fn, rule, ascent: ij.sharpness.of_rule(
            losses_fn, rule, jnp.ones(2), jnp.array([0, 1]), jnp.ones(2), ascent=ascent
        ),
    ],
    ids=["value_and_grad", "nnx", "sharpness_aware", "sharpness"],
)
def test_every_door_looks_at_p_before_the_first_step(door: Any) -> None:
    rule = ij.rules.sam(2, rho=0.1)
    with pytest.raises(ValueError, match="p must be over 1"):
        door(lambda w, x: (w * x, None), rule, ij.Ascent(p=1))


def test_asam_scales_weights_and_not_biases() -> None:
    params = {
        "norm": {"scale": jnp.array([-2.0]), "bias": jnp.array([5.0])},
        "bias_net": {"kernel": jnp.array([[0.5]])},  # the last name decides
    }
    scale = ij.asam_scale(0.25)(params)
    assert jax.tree.map(float, jax.tree.map(jnp.squeeze, scale)) == {
        "norm": {"scale": 2.25, "bias": 1.0},
        "bias_net": {"kernel": 0.75},
    }
    assert float(ij.asam_scale()(jnp.array(-2.0))) == pytest.approx(2.01)


def test_magnitude_scales_every_parameter() -> None:
    scale = ij.magnitude_scale({"kernel": jnp.array([-2.0]), "bias": jnp.array([-3.0])})
    assert {name: value.tolist() for name, value in scale.items()} == {
        "kernel": [2.0],
        "bias": [3.0],
    }
