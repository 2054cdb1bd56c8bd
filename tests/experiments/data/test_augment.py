"""What happens to a batch on the device, image by image in NumPy from the same draws."""

import functools
import math

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data import augment

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), np.uint8)


def test_four_pixels_are_padded_where_nothing_is_said():
    """As He et al. (2016) have it: black, on each side."""
    call = functools.partial(augment.crop_and_flip, batch_size=64)
    found = np.asarray(jax.jit(call)(np.ones((64, 9, 9, 1), np.uint8), np.arange(64), key=KEY))
    black = 9 - found[..., 0].max(axis=2).sum(axis=1), 9 - found[..., 0].max(axis=1).sum(axis=1)
    assert [(side.min(), side.max()) for side in black] == [(0, 4), (0, 4)]


def test_images_are_resized_as_pillow_does():
    """To more pixels and to fewer, with antialiasing; not at all where they have as many."""
    call = jax.jit(augment.resized, static_argnums=1)
    for side in (3, 9):
        found = np.asarray(call(IMAGES, side))
        assert found.shape == (8, side, side, 3) and found.dtype == np.float32
        for image, one in zip(IMAGES, found, strict=True):
            expected = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(one, np.asarray(expected), atol=1.01)
    square = IMAGES[:, :5]
    assert augment.resized(square, 5) is square


@functools.cache
def draws():
    @jax.jit
    def made():
        keys = jax.random.split(KEY, 3)
        limit = math.log(4 / 3)
        return (
            jax.random.uniform(keys[0], (24, 10), minval=0.08),
            jax.random.uniform(keys[1], (24, 10), minval=-limit, maxval=limit),
            jax.random.uniform(keys[2], (24, 2)),
        )

    return jax.device_get(made())


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (12, 4)])
def test_parts_of_small_images_lie_where_a_loop_draws_them(shape):
    """Pixels are 3 y + x; a part has a pixel at least and fits, or it is the whole image."""
    height, width = shape
    down, across = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    images = np.tile((3.0 * down + across)[None, :, :, None], (24, 1, 1, 1)).astype(np.float32)

    backwards = np.arange(24)[::-1]  # of images that are all alike
    call = jax.jit(lambda images: augment.resized_crop(images, backwards, 24, KEY, 16))
    found, (areas, logs, places) = np.asarray(call(images))[::-1], draws()
    at = (np.arange(16) + 0.5) / 16
    for one, area, log, place in zip(found, areas * height * width, logs, places, strict=True):
        sides = [
            (int(np.round(np.sqrt(a / np.exp(r)))), int(np.round(np.sqrt(a * np.exp(r)))))
            for a, r in zip(area, log, strict=True)
        ]
        fits = [side for side in sides if 0 < side[0] <= height and 0 < side[1] <= width]
        high, wide = fits[0] if fits else shape
        top, left = int(place[0] * (height - high + 1)), int(place[1] * (width - wide + 1))
        y = np.clip(top + at * high - 0.5, 0, height - 1)
        x = np.clip(left + at * wide - 0.5, 0, width - 1)
        np.testing.assert_allclose(one[..., 0], 3 * y[:, None] + x[None], atol=1e-3)


def test_corners_and_centre_of_larger_images():
    images = np.arange(2 * 9 * 14).reshape(2, 9, 14, 1)
    found = augment.five_crops(images, 3)
    for seen, (top, left) in zip(found, [(0, 0), (0, 11), (6, 0), (6, 11), (3, 6)], strict=True):
        np.testing.assert_array_equal(seen, images[:, top : top + 3, left : left + 3])
