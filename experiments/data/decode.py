"""Encoded image files to uint8 squares, as training and evaluation see them.

Pillow alone, on the host, in whatever process calls it; it is not imported before the first call.
The flip, colour jitter and normalising are the device's work.
"""

import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "crop_box", "decode_eval", "decode_train", "eval_box"]

# Of the formats Pillow reads, those with pixels: some of the others start programs (EPS).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10


class Box(NamedTuple):
    """A part of an image, in its pixels."""

    left: float
    top: float
    width: float
    height: float


def crop_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """The crop of torchvision's RandomResizedCrop: area in 0.08..1, aspect in 3/4..4/3.

    The area (of the whole) is drawn uniformly and the aspect (width over height) log-uniformly,
    and together anew until the box fits; after ten tries it is the largest central box whose
    aspect lies in the range.

    Args:
      width, height: of the image, in pixels.
      rng: two numbers are drawn for each try, then two for the place.

    Returns:
      A Box of whole pixels inside the image.

    Example:
      >>> crop_box(500, 375, np.random.default_rng(0))
      Box(left=339, top=166, width=129, height=171)
    """
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for _ in range(_TRIES):
        area = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            # random() alone of all methods: its stream has never changed between NumPy releases.
            top = int(rng.random() * (height - h + 1))
            left = int(rng.random() * (width - w + 1))
            return Box(left, top, w, h)
    w = min(width, max(round(height * _ASPECT[1]), 1))
    h = min(height, max(round(width / _ASPECT[0]), 1))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def eval_box(width: int, height: int, size: int, resize: int) -> Box:
    """The central part that a resize of the shorter side and a crop of `size` would leave.

    Args:
      width, height: of the image, in pixels.
      size: side of the crop, at most resize.
      resize: the shorter side after resizing; the longer is rounded down to whole pixels.

    Returns:
      A Box in pixels of the image as it was, with fractions.
    """
    if not 1 <= size <= resize:
        raise ValueError(f"size is {size} and resize {resize}: the crop must fit, 1 <= size")
    shorter = min(width, height)
    wide, high = resize * width // shorter, resize * height // shorter
    across, down = width / wide, height / high
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return Box(left * across, top * down, size * across, size * down)


def decode_train(data: bytes, size: int, rng: np.random.Generator) -> NDArray[np.uint8] | None:
    """A random crop (see `crop_box`) resized to a square; no flip.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where the crop keeps at least `size` pixels a side, which
    saves most of the time and changes the pixels by little. Bilinear with antialiasing; at its
    edges the filter sees the pixels beside the crop, where cropping first would not.

    Args:
      data: a JPEG, PNG, GIF, BMP or WebP file; grey, CMYK, palette and 16-bit become RGB, and
        transparency and the orientation in EXIF are ignored, as in the papers' pipelines.
      size: side of the result, in pixels.
      rng: decides the crop.

    Returns:
      uint8[size, size, 3], or None where the file is damaged or cut short.
    """
    image = _open(data)
    if image is None:
        return None
    width, height = image.size
    box = crop_box(width, height, rng)
    factor = next((f for f in (8, 4, 2) if min(box.width, box.height) >= f * size), 1)
    return _cut(image, box, size, factor)


def decode_eval(data: bytes, size: int, resize: int) -> NDArray[np.uint8] | None:
    """The shorter side resized to `resize`, and the centre cut out: bilinear with antialiasing.

    Always decoded at full scale, so that accuracies compare with those of other code.

    Args:
      data: as for `decode_train`.
      size: side of the result, in pixels.
      resize: of the shorter side, in pixels, at least size.

    Returns:
      uint8[size, size, 3], or None where the file is damaged or cut short.
    """
    image = _open(data)
    if image is None:
        return None
    width, height = image.size
    return _cut(image, eval_box(width, height, size, resize), size, factor=1)


def _open(data: bytes) -> Any:
    """The image with its header read, or None."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception:  # on damaged files Pillow's readers raise nearly anything
        return None
    return image if min(image.size) > 0 else None


def _cut(image: Any, box: Box, size: int, factor: int) -> NDArray[np.uint8] | None:
    from PIL import Image

    width, height = image.size
    try:
        # Formats other than JPEG stay at full scale.
        drafted = factor > 1 and image.draft(None, (width // factor, height // factor))
        scale = width / drafted[1][2] if drafted else 1.0
        image = _rgb(image)
    except Exception:  # as in _open
        return None
    left, top = box.left / scale, box.top / scale
    right = min(left + box.width / scale, image.width)
    bottom = min(top + box.height / scale, image.height)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(square)


def _rgb(image: Any) -> Any:
    """Decoded, with three channels of 8 bits."""
    from PIL import Image

    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # convert() would clip 16 bits at 255: white nearly everywhere.
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB warns where the palette has transparency
    return image.convert("RGB")
