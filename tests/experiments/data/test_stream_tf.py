"""The tf.data stream against the grain stream; all but one test need TensorFlow."""

import dataclasses
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import tiny_records
from experiments.data import DataError
from experiments.data.stream import StepRows, stream
from experiments.data.stream_tf import stream_tf

pil_image: Any = pytest.importorskip("PIL.Image")
_HAVE = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not _HAVE, reason="TensorFlow is not installed")


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


@needs_tensorflow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("first", [0, 2])
def test_the_same_batches_but_for_rounding(train: bool, first: int) -> None:
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


@needs_tensorflow
def test_bad_arguments_of_tf() -> None:
    with pytest.raises(ValueError, match="steps 3 to 1"):
        stream_tf(_split(), _rows, 3, 1, train=True, **_OPTIONS)
    with pytest.raises(ValueError, match="threads is 0"):
        stream_tf(_split(), _rows, 0, 1, train=True, threads=0, **_OPTIONS)
    assert list(stream_tf(_split(), _rows, 1, 1, train=True, **_OPTIONS)) == []
