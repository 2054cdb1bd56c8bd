"""The tf.data stream against the grain stream; where there is no TensorFlow, on a stand-in."""

import dataclasses
import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import tiny_records
from experiments.data import DataError
from experiments.data.decode import crop_box
from experiments.data.stream import StepRows, stream
from experiments.data.stream_tf import stream_tf

pil_image: Any = pytest.importorskip("PIL.Image")
_HAVE = importlib.util.find_spec("tensorflow") is not None


class _Elements:
    """tf.data.Dataset, as far as it is used: elements of a stated kind, mapped one by one."""

    def __init__(self, elements: Callable[[], Iterator[Any]], said: dict[str, Any]):
        self.elements, self.said = elements, said

    def map(self, f: Callable[..., Any], num_parallel_calls: int, deterministic: bool) -> Any:
        def mapped() -> Iterator[Any]:
            found = [(f, element) for element in self.elements()]
            # Not in order, where none is asked for.
            yield from found if deterministic else reversed(found)

        return _Elements(mapped, {**self.said, "calls": num_parallel_calls})

    def ignore_errors(self) -> Any:
        def good() -> Iterator[Any]:
            for f, element in self.elements():
                try:
                    yield f(*element)
                except OSError:
                    continue

        return _Elements(good, self.said)

    def prefetch(self, elements: int) -> Any:
        self.said["prefetch"] = elements
        return self

    def as_numpy_iterator(self) -> Iterator[Any]:
        _STAND_IN.said = self.said
        return self.elements()


def _from_generator(generator: Callable[[], Iterator[Any]], output_signature: Any) -> Any:
    def checked() -> Iterator[Any]:
        for element in generator():
            for part, (shape, kind) in zip(element, output_signature, strict=True):
                if kind is bytes:
                    assert isinstance(part, bytes) and shape == ()
                    continue
                part = np.asarray(part)
                assert np.can_cast(part.dtype, kind, "same_kind") and part.ndim == len(shape)
                assert all(want in (None, is_) for want, is_ in zip(shape, part.shape, strict=True))
            yield element

    return _Elements(checked, {})


def _decode_and_crop_jpeg(data: bytes, box: Sequence[int], channels: int = 0) -> np.ndarray:
    top, left, height, width = box
    image = pil_image.open(io.BytesIO(data), formats=("JPEG",))
    image = image.convert({0: image.mode, 3: "RGB"}[channels])
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _resize(image: np.ndarray, size: tuple[int, int], antialias: bool = False) -> np.ndarray:
    kind = pil_image.Resampling.BILINEAR if antialias else pil_image.Resampling.NEAREST
    return np.asarray(pil_image.fromarray(image).resize(size, kind)).astype(np.float32)


def _module(**members: Any) -> Any:
    return types.SimpleNamespace(**members)


_STAND_IN: Any = types.ModuleType("tensorflow")
_STAND_IN.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
_STAND_IN.hidden = []
vars(_STAND_IN).update(
    int64=np.int64, int32=np.int32, uint8=np.uint8, string=bytes, round=np.round,
    TensorSpec=lambda shape, dtype: (shape, dtype),
    cast=lambda x, dtype: x.astype(dtype), equal=lambda a, b: a == b,
    cond=lambda test, yes, no: yes() if test else no(),
    config=_module(set_visible_devices=lambda *args: _STAND_IN.hidden.append(args)),
    data=_module(Dataset=_module(from_generator=_from_generator)),
    io=_module(decode_and_crop_jpeg=_decode_and_crop_jpeg), image=_module(resize=_resize),
)  # fmt: skip


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _HAVE:
        monkeypatch.setitem(sys.modules, "tensorflow", _STAND_IN)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What of it was asked for; also where TensorFlow is installed."""
    monkeypatch.setitem(sys.modules, "tensorflow", _STAND_IN)
    return _STAND_IN


@dataclasses.dataclass(frozen=True)
class _Files:
    files: list[bytes]
    labels: np.ndarray

    def read(self, rows: Sequence[int]) -> list[bytes]:
        return [self.files[row] for row in rows]


def _split() -> _Files:
    """Smooth pictures, a grey one, one in CMYK, a PNG, and two bad files."""
    files = []
    for number in range(10):
        coarse = pil_image.fromarray(tiny_records.prototype(number))
        image = coarse.resize((90 + number, 70), pil_image.Resampling.BICUBIC)
        image = image.convert({3: "L", 4: "CMYK"}.get(number, "RGB"))
        file = io.BytesIO()
        image.save(file, "PNG" if number == 5 else "JPEG", quality=95)
        files.append(file.getvalue())
    files[6] = b"junk"
    files[7] = files[7][:-600]
    return _Files(files, np.arange(10, dtype=np.int32))


def _rows(step: int) -> StepRows:
    at = 4 * step + np.arange(4)
    return StepRows(np.where(at < 10, at, -1), np.arange(4) + 4)


_OPTIONS: dict[str, Any] = {"size": 32, "resize": 40, "seed": 3}


@pytest.mark.skipif(_HAVE, reason="TensorFlow is installed")
def test_without_tensorflow() -> None:
    with pytest.raises(DataError, match=r"TensorFlow, which is not installed.*`prepare` extra"):
        stream_tf(_split(), _rows, 0, 3, train=True, **_OPTIONS)


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("first", [0, 2])
def test_batches_of_tf_are_the_same_but_for_rounding(train: bool, first: int) -> None:
    got = list(stream_tf(_split(), _rows, first, 3, train=train, **_OPTIONS))
    with stream(_split(), _rows, first, 3, train=train, threads=0, **_OPTIONS) as batches:
        expected = list(batches)
    assert len(got) == len(expected) == 3 - first
    assert [batch.corrupt for batch in got] == [0, 2, 0][first:]
    for one, other in zip(got, expected, strict=True):
        assert one.images.dtype == np.uint8 and one.labels.dtype == np.int32
        np.testing.assert_array_equal(one.ok, other.ok)
        np.testing.assert_array_equal(one.labels, other.labels)
        difference = np.abs(one.images.astype(int) - other.images)
        assert difference.mean() < 2 and difference.max() <= (25 if train else 0)


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize(
    ("steps", "changes", "message"),
    [
        ((3, 1), {}, "steps 3 to 1"),
        ((-1, 1), {}, "steps -1 to 1"),
        ((0, 1), {"size": 41}, "size is 41 and resize 40"),
        ((0, 1), {"size": 0}, "size is 0 and resize 40"),
        ((0, 1), {"threads": 0}, "threads is 0 and prefetch 2"),
        ((0, 1), {"prefetch": 0}, "threads is 8 and prefetch 0"),
    ],
)
def test_arguments_of_tf_out_of_their_range(
    steps: tuple[int, int], changes: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_tf(_split(), _rows, *steps, train=True, **{**_OPTIONS, **changes})


@pytest.mark.usefixtures("tensorflow")
def test_the_least_of_every_argument_of_tf() -> None:
    assert list(stream_tf(_split(), _rows, 1, 1, train=True, **_OPTIONS)) == []
    least = {"size": 1, "resize": 1, "seed": 0, "threads": 1, "prefetch": 1}
    (batch,) = stream_tf(_split(), _rows, 0, 1, train=False, **least)
    assert batch.images.shape == (4, 1, 1, 3) and batch.ok.all()


def test_a_training_crop_of_tf_is_cut_out_and_resized_by_itself(stand_in: Any) -> None:
    """Row 3 is grey in its file; row 4, in CMYK, and row 5, a PNG, are decoded as by `stream`."""
    made = list(stream_tf(_split(), _rows, 0, 2, train=True, **_OPTIONS))
    for row in (0, 1, 2, 3):
        file = _split().files[row]
        image = pil_image.open(io.BytesIO(file))
        box = crop_box(*image.size, np.random.default_rng((3, 0, row + 4)))
        cut = (box.left, box.top, box.left + box.width, box.top + box.height)
        small = image.convert("RGB").crop(cut).resize((32, 32), pil_image.Resampling.BILINEAR)
        np.testing.assert_array_equal(made[0].images[row], np.asarray(small))
    with stream(_split(), _rows, 1, 2, train=True, threads=0, **_OPTIONS) as batches:
        np.testing.assert_array_equal(made[1].images, next(batches).images)
    assert [batch.corrupt for batch in made] == [0, 2]
    # Two batches of four ahead, eight images at a time, and JAX's devices are left to JAX.
    assert stand_in.said == {"calls": 8, "prefetch": 8}
    assert stand_in.hidden[-1] == ([], "GPU")


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize("lost", ["the disk is gone", "a file"])
def test_what_fails_beside_an_image_is_raised(lost: str) -> None:
    class Failing(_Files):
        def read(self, rows: Sequence[int]) -> list[bytes]:
            if lost == "a file":
                return super().read(rows)[:-1]
            raise DataError(lost)

    split = Failing(_split().files, _split().labels)
    kind, said = (ValueError, "shorter") if lost == "a file" else (DataError, lost)
    with pytest.raises(kind, match=said):
        list(stream_tf(split, _rows, 0, 1, train=True, **_OPTIONS))
