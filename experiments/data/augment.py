"""What happens to a batch of raw images on the device: normalising, augmenting, mixing.

Draws are made for the whole batch and picked by position, so a row gets the same ones whichever
device holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Pixels in 0..255 to float32 `(x / 255 - mean) / std` per channel."""
    mean = jnp.asarray(mean, jnp.float32).reshape((1,) * (images.ndim - 1) + (-1,))
    std = jnp.asarray(std, jnp.float32).reshape(mean.shape)
    return (images.astype(jnp.float32) / 255 - mean) / std


def crop_and_flip(
    images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array, pad: int = 4
) -> jax.Array:
    """Zero-pads raw pixels, crops the old size at random and flips half of the images.

    Args:
      images: uint8[b, H, W, C], the rows at `positions` (int[b]) of a batch of batch_size.
    """
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (batch_size, 2), 0, 2 * pad + 1)[positions]
    flips = jax.random.bernoulli(flip_key, 0.5, (batch_size,))[positions]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], jnp.zeros((), corner.dtype))
        cropped = jax.lax.dynamic_slice(image, start, images.shape[1:])
        return jnp.where(flip, cropped[:, ::-1], cropped)

    return jax.vmap(one)(padded, corners, flips)


def flip(images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array) -> jax.Array:
    """Mirrors half of the images [b, H, W, C], the rows at `positions` of a batch of batch_size."""
    flips = jax.random.bernoulli(key, 0.5, (batch_size,))[positions]
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def resized(images: jax.Array, side: int) -> jax.Array:
    """Images [b, H, W, C] to [b, side, side, C], bilinear with antialiasing."""
    if images.shape[1:3] == (side, side):
        return images
    shape = (len(images), side, side, images.shape[3])
    return jax.image.resize(images.astype(jnp.float32), shape, "linear", antialias=True)


def resized_crop(
    images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array, side: int
) -> jax.Array:
    """A random part of each image, resized to a square: torchvision's RandomResizedCrop.

    Area in 0.08..1 of the image, aspect in 3/4..4/3, drawn anew until the part fits, ten times at
    most; then it is the whole image. Bilinear with antialiasing; at its edges the filter sees the
    pixels beside the part, where cropping first would not.

    Args:
      images: [b, H, W, C], the rows at `positions` (int[b]) of a batch of batch_size.

    Returns:
      float32[b, side, side, C] in the range of the images.
    """
    height, width, channels = images.shape[1:]
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    tries = (batch_size, 10)
    area = jax.random.uniform(area_key, tries, minval=0.08) * (height * width)
    limit = math.log(4 / 3)
    aspect = jnp.exp(jax.random.uniform(aspect_key, tries, minval=-limit, maxval=limit))
    wide, high = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = jnp.argmax(fits, axis=1)[:, None]

    def chosen(sides: jax.Array, whole: int) -> jax.Array:
        found = jnp.take_along_axis(sides, first, 1)[:, 0]
        return jnp.where(fits.any(axis=1), found, whole)

    wide, high = chosen(wide, width), chosen(high, height)
    free = jnp.stack([height - high, width - wide], 1)
    corners = jnp.floor(jax.random.uniform(place_key, (batch_size, 2)) * (free + 1))
    scales = side / jnp.stack([high, wide], 1)

    def one(image: jax.Array, corner: jax.Array, scale: jax.Array) -> jax.Array:
        return jax.image.scale_and_translate(
            image, (side, side, channels), (0, 1), scale, -corner * scale, "linear"
        )

    return jax.vmap(one)(images.astype(jnp.float32), corners[positions], scales[positions])


def five_crops(images: jax.Array, side: int) -> list[jax.Array]:
    """The four corners of images [b, H, W, C] and their centre, each [b, side, side, C]."""
    height, width = images.shape[1:3]
    down, across = height - side, width - side
    corners = [(0, 0), (0, across), (down, 0), (down, across)]
    centre = (round(down / 2), round(across / 2))
    return [images[:, top : top + side, left : left + side] for top, left in (*corners, centre)]


def colour_jitter(
    images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array, strength: float
) -> jax.Array:
    """Brightness, contrast and saturation changed, each by a factor of its own, in random order.

        x <- clip(f x + (1 - f) other, 0, 255),   f ~ U(1 - strength, 1 + strength)

    `other` is black, the image's mean grey, or its grey pixel by pixel. torchvision's ColorJitter
    without hue, but for its rounding to whole numbers after each of the three.

    Args:
      images: [b, H, W, 3] in 0..255, the rows at `positions` (int[b]) of a batch of batch_size.
      strength: in [0, 1]; 0.4 in the ImageNet-LT recipes.

    Returns:
      float32[b, H, W, 3] in 0..255.
    """
    factor_key, order_key = jax.random.split(key)
    low, high = 1 - strength, 1 + strength
    factors = jax.random.uniform(factor_key, (batch_size, 3), minval=low, maxval=high)[positions]
    orders = jax.vmap(lambda k: jax.random.permutation(k, 3))(
        jax.random.split(order_key, batch_size)
    )[positions]
    grey_of = jnp.array([[[0.299, 0.587, 0.114]]])

    def one(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
        for turn in range(3):
            kind = order[turn]
            grey = (image * grey_of).sum(-1, keepdims=True)
            other = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, grey.mean(), grey))
            image = jnp.clip(factors[kind] * image + (1 - factors[kind]) * other, 0, 255)
        return image

    return jax.vmap(one)(images.astype(jnp.float32), factors, orders)


def mix(
    soft_of: Callable[[jax.Array], jax.Array],
    images: tuple[jax.Array, jax.Array],
    labels: tuple[jax.Array, jax.Array],
    share: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixup: `share` of the first images and labels (made soft), the rest of the second."""
    mixed = share * images[0] + (1 - share) * images[1]
    return mixed, share * soft_of(labels[0]) + (1 - share) * soft_of(labels[1])
