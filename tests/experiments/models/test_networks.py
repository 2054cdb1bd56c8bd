"""Whole networks against NumPy: what their layers do, and in which order."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf, softmax

from experiments.models import create_model

_IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
_TWO_STAGES = {"stage_sizes": (1, 2), "widths": (8, 16)}


def _dense(x: Any, p: Any) -> Any:
    return x @ p["kernel"] + p["bias"]


def _layer_norm(x: Any, p: Any) -> Any:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def _group_norm(x: Any, p: Any) -> Any:
    """Eight groups of neighbouring channels."""
    grouped = x.reshape(*x.shape[:3], 8, -1)
    axes = (1, 2, 4)
    grouped = grouped - grouped.mean(axes, keepdims=True)
    grouped = grouped / np.sqrt(grouped.var(axes, keepdims=True) + 1e-5)
    return grouped.reshape(x.shape) * p["scale"] + p["bias"]


def _convolve(x: Any, kernel: Any, stride: int) -> Any:
    """Padded alike on all sides."""
    size = len(kernel)
    side = (size // 2, size // 2)
    padded = np.pad(x, ((0, 0), side, side, (0, 0)))
    windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel)


def _mlp(params: Any, statistics: Any, x: Any) -> Any:
    x = x.reshape(len(x), -1)
    for k in range(2):
        x = np.maximum(_dense(x, params[f"hidden_{k}"]), 0)
    return _dense(x, params["head"])


def _vit(params: Any, statistics: Any, x: Any) -> Any:
    """Two blocks of three heads; patches of 4x4 from left to right, then down."""
    rows = x.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48)
    tokens = params["tokens"]
    kernel = tokens["projection"]["kernel"].reshape(48, -1)
    x = rows @ kernel + tokens["projection"]["bias"] + tokens["positions"]
    for k in range(2):
        p = params[f"blocks_{k}"]
        y, a = _layer_norm(x, p["norm1"]), p["attention"]
        query, key, value = (
            np.einsum("btd,dhe->bhte", y, a[name]["kernel"]) + a[name]["bias"][:, None]
            for name in ("query", "key", "value")
        )
        weights = softmax(query @ key.swapaxes(2, 3) / math.sqrt(query.shape[-1]), axis=-1)
        x = x + np.einsum("bhte,hed->btd", weights @ value, a["out"]["kernel"]) + a["out"]["bias"]
        y = _dense(_layer_norm(x, p["norm2"]), p["hidden"])
        x = x + _dense(y * (1 + erf(y / math.sqrt(2))) / 2, p["out"])
    return _dense(_layer_norm(x, params["norm"]).mean(1), params["head"])


def _resnet(params: Any, statistics: Any, x: Any) -> Any:
    """A block of the first stage, two of the second, the first of which halves both sides."""

    def norm(x: Any, p: Any, s: Any) -> Any:
        if s is None:
            return _group_norm(x, p)
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    s = statistics.get("stem_norm")
    x = np.maximum(norm(_convolve(x, params["stem"]["kernel"], 1), params["stem_norm"], s), 0)
    for k, stride in enumerate((1, 2, 1)):
        p, s = params[f"blocks_{k}"], statistics.get(f"blocks_{k}", {})
        y = norm(_convolve(x, p["conv1"]["kernel"], stride), p["norm1"], s.get("norm1"))
        y = _convolve(np.maximum(y, 0), p["conv2"]["kernel"], 1)
        y = norm(y, p["norm2"], s.get("norm2"))
        if "conv_shortcut" in p:
            x = _convolve(x, p["conv_shortcut"]["kernel"], stride)
            x = norm(x, p["norm_shortcut"], s.get("norm_shortcut"))
        elif stride == 2:
            x = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (4, 4)))
        x = np.maximum(y + x, 0)
    return _dense(x.mean((1, 2)), params["head"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "changes", "by_hand"),
    [
        ("mlp", {"features": (6, 5)}, _mlp),
        ("vit_ti4", {"depth": 2, "width": 12}, _vit),
        ("resnet32", _TWO_STAGES, _resnet),
        ("resnet32_gn", _TWO_STAGES, _resnet),
        ("resnet34_3x3", _TWO_STAGES, _resnet),
    ],
)
def test_logits_are_those_of_a_transcription(name: str, changes: Any, by_hand: Any) -> None:
    model: Any = create_model(name, 4, dtype=jnp.float64).clone(**changes)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), _IMAGES)
    draw = np.random.default_rng(2)
    # Vectors are positive, as there are variances among them.
    variables = jax.tree.map(
        lambda x: (x.ndim == 1) * 1.0 + draw.uniform(-0.4, 0.4, x.shape), shapes
    )
    double = jax.tree.map(jnp.float64, variables)
    found = jax.jit(functools.partial(model.apply, train=False))(double, _IMAGES)
    expected = by_hand(variables["params"], variables.get("batch_stats", {}), _IMAGES)
    # The softmax of attention is of float32 whatever the rest is.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
