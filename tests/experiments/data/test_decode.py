"""Decoding: crops against their formula, pixels of predictable pictures, odd and bad files."""

import io
import math
from typing import Any

import numpy as np
import pytest

from experiments.data import decode
from experiments.data.decode import Box, crop_box, decode_eval, decode_train, eval_box

pil_image: Any = pytest.importorskip("PIL.Image")


def _gradient(width: int, height: int) -> np.ndarray:
    """Red counts columns and green rows, 0..255 across the image; blue is constant."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    channels = np.broadcast_arrays(255 * x, 255 * y[:, None], 128.0)
    return np.stack(channels, -1).round().astype(np.uint8)


def _noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes under some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    shapes = pil_image.fromarray(coarse).resize((width, height), pil_image.Resampling.BICUBIC)
    return (np.asarray(shapes) + rng.normal(0, 8, (height, width, 1))).clip(0, 255).astype(np.uint8)


def _encode(pixels: Any, kind: str = "JPEG", **options: Any) -> bytes:
    image = pil_image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def _published(width: int, height: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The rule as torchvision's documentation states it, on uniform() and plain arithmetic."""
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(rng.uniform(0, height - h + 1))
            return math.floor(rng.uniform(0, width - w + 1)), top, w, h
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * 4 / 3), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize(
    "shape",
    [
        (500, 375),
        (375, 500),
        (224, 224),
        (2000, 90),
        (40, 900),
        (1, 1),
        (3, 2),
        (40, 1),
        (1, 41),
        (91, 20),
    ],
)
def test_crop_box_is_the_published_rule(shape: tuple[int, int]) -> None:
    for seed in range(200):
        box = crop_box(*shape, np.random.default_rng(seed))
        assert box == _published(*shape, np.random.default_rng(seed))
        assert box.left >= 0 and box.left + box.width <= shape[0] and box.width > 0
        assert box.top >= 0 and box.top + box.height <= shape[1] and box.height > 0


def test_crop_boxes_are_spread_as_the_rule_says() -> None:
    boxes = [crop_box(1000, 1000, np.random.default_rng(seed)) for seed in range(4000)]
    areas = np.array([box.width * box.height for box in boxes]) / 1e6
    aspects = np.log([box.width / box.height for box in boxes])
    assert areas.min() < 0.1 and areas.max() > 0.95
    # Area a fits with probability min(1, -ln a / ln(4/3)): integrated, a mean of 0.4778.
    assert abs(areas.mean() - 0.4778) < 0.012  # three standard errors
    assert abs(aspects.mean()) < 0.01 and abs(aspects).max() <= math.log(4 / 3) + 0.01


def test_a_crop_that_never_fits_is_the_largest_central_one() -> None:
    assert crop_box(4000, 90, np.random.default_rng(0)) == Box(1940, 0, 120, 90)
    assert crop_box(30, 4000, np.random.default_rng(0)) == Box(0, 1980, 30, 40)


@pytest.mark.parametrize("shape", [(500, 375), (300, 700), (60, 40)])
@pytest.mark.parametrize("seed", range(5))
def test_training_pixels_are_those_of_the_box(shape: tuple[int, int], seed: int) -> None:
    """On a gradient every pixel tells where in the image it was taken from."""
    size = 32
    pixels = decode_train(_encode(_gradient(*shape), "PNG"), size, np.random.default_rng(seed))
    assert pixels is not None and pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    box = crop_box(*shape, np.random.default_rng(seed))
    at = (np.arange(size) + 0.5) / size
    expected_x = 255 * (box.left + box.width * at) / shape[0]
    expected_y = 255 * (box.top + box.height * at) / shape[1]
    # The rim may be a level or two off: an antialiasing filter is cut at the image's edge.
    np.testing.assert_allclose(pixels[size // 2, :, 0], expected_x, atol=2.5)
    np.testing.assert_allclose(pixels[:, size // 2, 1], expected_y, atol=2.5)
    np.testing.assert_allclose(pixels[2:-2, 2:-2, 0], np.tile(expected_x[2:-2], (28, 1)), atol=1.6)
    assert np.all(pixels[..., 2] == 128)


def test_same_generator_same_crop() -> None:
    data = _encode(_noise(300, 200))
    first, again, other = (decode_train(data, 64, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("odd", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_reduced_decoding_changes_little(odd: int, seed: int, monkeypatch: Any) -> None:
    """Draft against full decoding: the mean difference stays below 1.5 of 255 levels."""
    data = _encode(_noise(1600 + odd, 1200 + odd, seed), quality=90)
    from PIL.JpegImagePlugin import JpegImageFile

    scales, draft = [], JpegImageFile.draft

    def watched(image: Any, mode: Any, size: Any) -> Any:
        found = draft(image, mode, size)
        assert found is not None
        scales.append(round((1600 + odd) / found[1][2]))
        return found

    monkeypatch.setattr(JpegImageFile, "draft", watched)
    fast = decode_train(data, 64, np.random.default_rng(seed))
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    full = decode_train(data, 64, np.random.default_rng(seed))
    box = crop_box(1600 + odd, 1200 + odd, np.random.default_rng(seed))
    fits = [f for f in (1, 2, 4, 8) if min(box.width, box.height) / f >= 64]
    assert scales == [max(fits)] and max(fits) > 1
    assert fast is not None and full is not None
    assert np.abs(fast.astype(int) - full).mean() < 1.5


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_crop_of_just_so_many_pixels_is_reduced(factor: int, monkeypatch: Any) -> None:
    """By what leaves it `size` pixels a side, and not by more where one is missing."""
    from PIL.JpegImagePlugin import JpegImageFile

    seed = next(s for s in range(99) if min(_crop(s)[2:]) % 8 == 0)
    size = min(_crop(seed)[2:]) // factor
    data, asked, draft = _encode(_noise(320, 240)), [], JpegImageFile.draft

    def watched(image: Any, mode: Any, wanted: Any) -> Any:
        asked.append(wanted)
        return draft(image, mode, wanted)

    monkeypatch.setattr(JpegImageFile, "draft", watched)
    for pixels, expected in ((size, factor), (size + 1, factor // 2)):
        pixels_of = decode_train(data, pixels, np.random.default_rng(seed))
        assert pixels_of is not None and pixels_of.shape == (pixels, pixels, 3)
        assert asked == ([(320 // expected, 240 // expected)] if expected > 1 else [])
        asked.clear()


def _crop(seed: int) -> tuple[int, int, int, int]:
    return crop_box(320, 240, np.random.default_rng(seed))  # type: ignore[return-value]


def test_images_of_one_pixel_and_other_formats() -> None:
    for shape in ((1, 40), (40, 1), (1, 1)):
        pixels = decode_eval(_encode(_gradient(*shape), "PNG"), 4, 4)
        assert pixels is not None and pixels.shape == (4, 4, 3)
        assert decode_train(_encode(_gradient(*shape)), 4, np.random.default_rng(0)) is not None
    for kind in ("TIFF", "PPM", "TGA"):  # readable, but of no format that is taken
        assert decode_eval(_encode(_gradient(8, 8), kind), 4, 4) is None


@pytest.mark.parametrize("shape", [(500, 375), (333, 512), (256, 256), (40, 30)])
def test_evaluation_is_a_resize_and_a_central_crop(shape: tuple[int, int]) -> None:
    image = pil_image.fromarray(_noise(*shape))
    scale = 256 / min(shape)
    wide, high = (256 if side == min(shape) else int(side * scale + 1e-9) for side in shape)
    resized = image.resize((wide, high), pil_image.Resampling.BILINEAR)
    left, top = round((wide - 224) / 2), round((high - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    pixels = decode_eval(_encode(image, "PNG"), 224, 256)
    assert pixels is not None
    # In one pass or two, a pixel may round the other way.
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_evaluation_of_a_jpeg_is_at_full_scale() -> None:
    data = _encode(_noise(1600, 1200))
    again = _encode(pil_image.open(io.BytesIO(data)).convert("RGB"), "PNG")
    assert np.array_equal(decode_eval(data, 64, 72), decode_eval(again, 64, 72))


def test_eval_box_wants_a_crop_that_fits() -> None:
    assert eval_box(300, 400, 100, 100) == Box(0, 16 * 400 / 133, 300, 100 * 400 / 133)
    assert eval_box(2, 2, 1, 1) == Box(0, 0, 2, 2)
    for size in (256, 0):
        with pytest.raises(ValueError, match=f"size is {size} and resize 224"):
            eval_box(300, 400, size, 224)


def _sixteen_bit(grey: np.ndarray) -> Any:
    return pil_image.fromarray((grey.astype(np.uint16) << 8) + 77)


def test_every_kind_of_pixel_becomes_rgb() -> None:
    colour = _gradient(80, 60)
    grey = colour[..., 0]
    rgba = pil_image.fromarray(np.dstack([colour, np.full((60, 80), 9, np.uint8)]))
    exif = pil_image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    palette = pil_image.fromarray(colour).quantize(256)
    greys = [
        _encode(grey, "PNG"),
        _encode(grey),
        _encode(_sixteen_bit(grey), "PNG"),
        _encode(pil_image.fromarray(np.dstack([grey, grey])), "PNG"),
    ]
    for data in greys:
        pixels = decode_eval(data, 32, 32)
        assert pixels is not None and pixels.shape == (32, 32, 3)
        np.testing.assert_allclose(pixels[16, :, 1], _seen(32), atol=4)
    for data in (
        _encode(rgba, "PNG"),
        _encode(colour, exif=exif),
        _encode(colour, progressive=True),
        _encode(pil_image.fromarray(colour).convert("CMYK")),
        _encode(palette, "PNG"),
        _encode(palette, "PNG", transparency=bytes([0, 128] * 128)),
        _encode(palette, "GIF"),
        _encode(colour, "BMP"),
    ):
        pixels = decode_eval(data, 32, 32)
        assert pixels is not None and pixels.shape == (32, 32, 3)
        np.testing.assert_allclose(pixels[16, :, 0], _seen(32), atol=12)
        assert decode_train(data, 16, np.random.default_rng(0)) is not None


def _seen(size: int) -> np.ndarray:
    """Red of `_gradient(80, 60)` in the centre of a resize to 42 x 32."""
    return 255 * (5 + np.arange(size) + 0.5) / 42


def test_one_bit_images() -> None:
    black = pil_image.new("1", (20, 20), 1)
    pixels = decode_eval(_encode(black, "PNG"), 8, 8)
    assert pixels is not None and np.all(pixels == 255)


def test_damaged_files_give_none() -> None:
    jpeg, png = _encode(_noise(200, 150)), _encode(_noise(200, 150), "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    bad = [b"", b"not an image", jpeg[: len(jpeg) // 2], jpeg[:20], png[:-200], png[:40]]
    bad += [png[:60] + bytes(300) + png[360:], postscript]
    for data in bad:
        assert decode_train(data, 32, np.random.default_rng(0)) is None
        assert decode_eval(data, 32, 40) is None


def test_junk_never_raises() -> None:
    rng = np.random.default_rng(0)
    whole = [_encode(_noise(60, 50)), _encode(_noise(60, 50), "PNG")]
    for number in range(200):
        data = bytearray(whole[number % 2])
        for at in rng.integers(0, len(data), 5):
            data[at] = rng.integers(256)
        pixels = decode.decode_eval(bytes(data), 16, 16)
        assert pixels is None or pixels.shape == (16, 16, 3)
