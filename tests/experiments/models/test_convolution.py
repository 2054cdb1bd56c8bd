"""Our convolution against JAX's: values and gradients, and the layouts its gradients have."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from experiments.models import CONVOLUTIONAL, convolution, create_model, resnet
from experiments.models.convolution import conv_general_dilated

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]

NHWC = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def both_ways(x: Any, w: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """((y, dx, dw) by lax, the same by ours) for one cotangent."""

    def way(conv: Any, x: Any, w: Any) -> Any:
        y, pull = jax.vjp(lambda x, w: conv(x, w, *args, **options), x, w)
        g = np.random.default_rng(2).normal(size=y.shape)
        return y, *pull(jnp.asarray(g, y.dtype))

    ways = lax.conv_general_dilated, conv_general_dilated
    return jax.jit(lambda x, w: tuple(way(conv, x, w) for conv in ways))(x, w)


def drawn(x: tuple[int, ...], w: tuple[int, ...], dtype: Any = float) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.normal(size=x).astype(dtype), rng.normal(size=w).astype(dtype)


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "pads"),
    [
        ((8, 8), (3, 3), (1, 1), SAME),
        ((8, 8), (3, 3), (2, 2), SAME),
        ((7, 9), (3, 3), (2, 2), SAME),
        ((8, 8), (1, 1), (2, 2), ((0, 0), (0, 0))),  # the last row and column are never seen
        ((9, 9), (7, 7), (2, 2), ((3, 3), (3, 3))),
        ((8, 8), (4, 4), (4, 4), ((0, 0), (0, 0))),
        ((7, 5), (2, 3), (2, 1), ((2, 0), (0, 1))),
        ((5, 6), (3, 2), (1, 3), ((4, 3), (2, 2))),  # more zeros than the kernel is high
        ((6, 6), (3, 3), (2, 2), ((-1, 1), (1, -2))),  # negative: rows and columns cut off
    ],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_gradients_are_jaxs(size: Any, kernel: Any, strides: Any, pads: Any) -> None:
    x, w = drawn((3, *size, 4), (*kernel, 4, 5))
    for theirs, ours in zip(*both_ways(x, w, strides, pads, dimension_numbers=NHWC), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"dimension_numbers": NHWC, "lhs_dilation": (1, 1), "feature_group_count": 1},
        {"dimension_numbers": lax.conv_dimension_numbers((1,) * 4, (1,) * 4, NHWC)},
        {"dimension_numbers": NHWC, "feature_group_count": 2},
        {"dimension_numbers": NHWC, "rhs_dilation": (2, 1)},
        {"dimension_numbers": NHWC, "lhs_dilation": (1, 2)},
        {"dimension_numbers": ("NHWC", "HWOI", "NHWC")},
        {"dimension_numbers": NHWC, "precision": "highest"},
        {"dimension_numbers": NHWC, "preferred_element_type": jnp.float64},
    ],
    ids=str,
)
@pytest.mark.usefixtures("x64")
def test_options_mean_what_they_mean_to_lax(options: dict[str, Any]) -> None:
    channels = {1: 4, 2: 2}[options.get("feature_group_count", 1)]
    x, w = drawn((4, 8, 8, 4), (3, 3, channels, 4))
    # lax has no "SAME" for a dilated image.
    for padding in (SAME, "SAME")[: 1 if "lhs_dilation" in options else 2]:
        for theirs, ours in zip(*both_ways(x, w, (2, 1), padding, **options), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_other_images_are_left_to_lax() -> None:
    """Of one dimension, and NCHW by OIHW, which is meant where no layout is named."""
    x, w = drawn((2, 8, 3), (3, 3, 4), jnp.float32)
    options = {"dimension_numbers": ("NHC", "HIO", "NHC")}
    for theirs, ours in zip(*both_ways(x, w, (1,), ((1, 1),), **options), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x, w = drawn((2, 3, 8, 8), (4, 3, 3, 3), jnp.float32)
    for options in ({}, {"dimension_numbers": None}):
        for theirs, ours in zip(*both_ways(x, w, (1, 1), SAME, **options), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_bfloat16_stays() -> None:
    x, w = drawn((2, 8, 8, 3), (3, 3, 3, 4), jnp.bfloat16)
    options = {"dimension_numbers": NHWC}
    for theirs, ours in zip(*both_ways(x, w, (1, 1), SAME, **options), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.astype(jnp.float32))


# Every kind of block, once with a stride.
SHALLOW: dict[str, dict[str, Any]] = {
    "resnet8": {"stage_sizes": (1, 1), "widths": (8, 16)},
    "resnet32_gn": {"stage_sizes": (1, 1), "widths": (8, 16)},
    "resnet14_bottleneck": {"stage_sizes": (1, 1), "widths": (16, 32), "inner_widths": (4, 8)},
    "vit_ti4": {},
}


def gradient_of(name: str) -> tuple[Any, Any, Any]:
    """(the gradient of a model, its variables and images, as shapes)."""
    model = create_model(name, 7).clone(**SHALLOW[name])
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda key, images: model.init(key, images, train=False), jax.random.key(0), images
    )

    def loss(params: Any, others: Any, images: Any) -> Any:
        found, _ = model.apply(
            {**others, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (found**2).mean()

    def gradient(variables: Any, images: Any) -> Any:
        others = {k: v for k, v in variables.items() if k != "params"}
        return jax.grad(loss)(variables["params"], others, images)

    return gradient, variables, images


def convolutions(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        if equation.primitive is lax.conv_general_dilated_p:
            yield equation.params
        for inner in jaxprs_in_params(equation.params):
            yield from convolutions(inner)


@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        "resnet32_gn",
        "resnet14_bottleneck",
        pytest.param("vit_ti4", marks=pytest.mark.slow),
    ],
)
def test_every_convolution_of_a_models_gradient_is_nhwc_by_hwio(name: str) -> None:
    assert (name == "vit_ti4") != (name in CONVOLUTIONAL)
    gradient, *shapes = gradient_of(name)
    found = list(convolutions(jax.make_jaxpr(gradient)(*shapes).jaxpr))
    like = (1,) * 4
    assert {one["dimension_numbers"] for one in found} == {
        lax.conv_dimension_numbers(like, like, NHWC)
    }
    layers = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(shapes[0]["params"]))
    assert len(found) == 3 * layers


def test_a_networks_gradient_is_bitwise_jaxs(monkeypatch: Any) -> None:
    """Outside of loops and branches, where XLA puts JAX's layouts right."""
    gradient, *shapes = gradient_of("resnet8")
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    values[0]["batch_stats"] = jax.tree.map(np.ones_like, values[0]["batch_stats"])
    ours = jax.jit(gradient)(*values)
    monkeypatch.setattr(resnet, "conv_general_dilated", lax.conv_general_dilated)
    theirs = jax.jit(lambda *args: gradient(*args))(*values)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_other_platforms_have_laxs(monkeypatch: Any) -> None:
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
    x, w = ((2, 8, 8, 3), jnp.float32), ((3, 3, 3, 4), jnp.float32)
    shapes = itertools.starmap(jax.ShapeDtypeStruct, [x, w])
    text = str(
        jax.make_jaxpr(
            lambda x, w: conv_general_dilated(x, w, (1, 1), SAME, dimension_numbers=NHWC)
        )(*shapes)
    )
    assert "custom_vjp" not in text
