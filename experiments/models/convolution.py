"""A convolution whose gradients XLA:CPU does not compute slowly inside loops and branches.

XLA:CPU has fast code for convolutions of NHWC images by HWIO kernels alone. JAX writes both
gradients as convolutions of other layouts, which XLA puts right in a program's outermost
computation and nowhere else (jaxlib 0.10.2): in a scan or a side of a branch those of a layer took
40 to 57 times longer (results/cpu_cores). Here they are NHWC by HWIO from the start:

    dx = (g, stride - 1 zeros between its pixels) * (w turned by 180 degrees, channels exchanged)
    dw = (x, images and channels exchanged) * (g, images as channels, dilated by the stride)

Outside of loops and branches this is what XLA makes of JAX's own, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`; see the module.

        y[b, i, j, o] = sum_{u, v, c} x[b, s i + u - p, s j + v - p, c] w[u, v, c, o]

    Only the gradients of plain convolutions of images are other ones, and only where JAX's default
    backend is a CPU: not of groups, dilations, other layouts or precisions. There is no
    forward-mode derivative of those, but one of their gradients: Hessians are forward over reverse.

    Args:
      lhs: x [B, H, W, C].
      rhs: w [h, w, C, O].
      window_strides: s, of height and width.
      padding: (low, high) pixels of zeros for height and width; p is the low one.
      **options: of `lax.conv_general_dilated`; dimension_numbers too, which NCHW would be without.

    Returns:
      y [B, H', W', O].
    """
    plain = (
        jax.default_backend() == "cpu"
        and not isinstance(padding, str)
        and "dimension_numbers" in options
        and all(_is_plain(name, value, lhs.ndim) for name, value in options.items())
    )
    if not plain:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    (top, bottom), (left, right) = padding
    return _conv(lhs, rhs, tuple(window_strides), ((top, bottom), (left, right)))


def _is_plain(name: str, value: Any, ndim: int) -> bool:
    if name == "dimension_numbers":
        like = (1,) * ndim
        return (
            ndim == 4
            and value is not None
            and lax.conv_dimension_numbers(like, like, value)
            == lax.conv_dimension_numbers(like, like, _LAYOUT)
        )
    if name.endswith("dilation"):
        return value is None or set(value) == {1}
    return value is None or (name.endswith("group_count") and value == 1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, w: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=_LAYOUT)


def _forward(x: jax.Array, w: jax.Array, strides: tuple[int, int], pads: Pads) -> Any:
    # Not _conv itself: a derivative of this pass, as of a product with a Hessian, would need its
    # forward-mode derivative.
    y = lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=_LAYOUT)
    return y, (x, w)


def _backward(
    strides: tuple[int, int], pads: Pads, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    for_x, for_w = [], []
    for size, kernel, out, stride, (low, _) in zip(
        x.shape[1:3], w.shape[:2], g.shape[1:3], strides, pads, strict=True
    ):
        spread = (out - 1) * stride + 1
        for_x.append((kernel - 1 - low, size - spread + low))
        for_w.append((low, spread + kernel - 1 - size - low))
    turned = jnp.flip(w, (0, 1)).transpose(0, 1, 3, 2)
    dx = lax.conv_general_dilated(
        g, turned, (1, 1), for_x, lhs_dilation=strides, dimension_numbers=_LAYOUT
    )
    dw = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), for_w, rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )  # fmt: skip
    return dx, dw.transpose(1, 2, 0, 3)


_conv.defvjp(_forward, _backward)
