"""The stream of `experiments.data.stream` by tf.data: one process, TensorFlow's threads.

For machines with TensorFlow where worker processes are unwelcome. Rows, crop boxes, order and gaps
are those of `stream`; pixels differ by little, for TensorFlow decodes the crop alone, always at
full scale, and resizes it without seeing the pixels beside it.
"""

import io
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from experiments.data import DataError
from experiments.data.decode import crop_box, decode_eval, decode_train
from experiments.data.encoded import Split
from experiments.data.stream import HostBatch, StepRows, fill_gaps, real_rows

__all__ = ["check_installed", "stream_tf"]


def stream_tf(
    split: Split,
    rows_of_step: Callable[[int], StepRows],
    first_step: int,
    last_step: int,
    *,
    size: int,
    resize: int,
    train: bool,
    seed: int,
    threads: int = 8,
    prefetch: int = 2,
) -> Iterator[HostBatch]:
    """As `stream`; to begin elsewhere, give another first_step.

    Args:
      threads: images decoded at the same time.
      prefetch: batches decoded ahead.

    Raises:
      DataError: TensorFlow is not installed.
      ValueError: an argument is out of its range.
    """
    check_installed()
    if not 0 <= first_step <= last_step:
        raise ValueError(f"steps {first_step} to {last_step}: 0 <= first_step <= last_step")
    if not 1 <= size <= resize:
        raise ValueError(f"size is {size} and resize {resize}: 1 <= size <= resize")
    if min(threads, prefetch) < 1:
        raise ValueError(f"threads is {threads} and prefetch {prefetch}: at least 1")
    return _batches(
        split, rows_of_step, range(first_step, last_step), size, resize, train, seed, threads,
        prefetch,
    )  # fmt: skip


def check_installed() -> None:
    """DataError where TensorFlow is not."""
    if find_spec("tensorflow") is None:
        raise DataError(
            "tf.data needs TensorFlow, which is not installed: install the `prepare` extra, or use "
            "the grain stream"
        )


def _batches(
    split: Split, rows_of_step: Callable[[int], StepRows], steps: range, size: int, resize: int,
    train: bool, seed: int, threads: int, prefetch: int,
) -> Iterator[HostBatch]:  # fmt: skip
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # they are JAX's

    failed: list[Exception] = []

    def images() -> Iterator[tuple[int, int, bytes, Any, Any]]:
        # What fails here is no damaged image, and ignore_errors would take it for the end.
        try:
            yield from encoded()
        except Exception as error:
            failed.append(error)

    def encoded() -> Iterator[tuple[int, int, bytes, Any, Any]]:
        nothing, no_box = np.zeros((0, 0, 3), np.uint8), np.zeros(4, np.int32)
        for step in steps:
            rows, positions = rows_of_step(step)
            real = real_rows(rows, positions, len(split.labels), step)
            files = split.read(rows[real].tolist())
            for at, data in zip(real.tolist(), files, strict=True):
                shape = _jpeg_shape(data) if train else None
                rng = np.random.default_rng((seed, step, int(positions[at])))
                if shape is not None:
                    box = crop_box(*shape, rng)
                    cut = [int(box.top), int(box.left), int(box.height), int(box.width)]
                    yield step, at, data, cut, nothing
                    continue
                # Evaluation has one definition, and of training files these are few.
                done = decode_train(data, size, rng) if train else decode_eval(data, size, resize)
                yield step, at, b"", no_box, nothing if done is None else done

    def decode(step: Any, at: Any, data: Any, box: Any, done: Any) -> Any:
        def crop() -> Any:
            image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
            image = tf.image.resize(image, (size, size), antialias=True)
            return tf.cast(tf.round(image), tf.uint8)  # means of pixels: none leaves 0 to 255

        return step, at, tf.cond(tf.equal(data, b""), lambda: done, crop)

    wholes = tf.TensorSpec((), tf.int64)
    signature = (
        wholes,
        wholes,
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((4,), tf.int32),
        tf.TensorSpec((None, None, 3), tf.uint8),
    )
    # A file that cannot be decoded is left out here and counted below.
    decoded = (
        tf.data.Dataset.from_generator(images, output_signature=signature)
        .map(decode, num_parallel_calls=threads, deterministic=True)
        .ignore_errors()
        .prefetch(prefetch * len(rows_of_step(steps[0]).rows) if steps else 1)
        .as_numpy_iterator()
    )
    following = next(decoded, None)
    for step in steps:
        rows, positions = rows_of_step(step)
        real = real_rows(rows, positions, len(split.labels), step)
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        labels = np.empty(len(rows), np.int32)
        labels[real] = split.labels[rows[real]]
        ok = np.zeros(len(rows), bool)
        while following is not None and following[0] == step:
            _, at, image = following
            if image.size:
                pixels[at], ok[at] = image, True
            following = next(decoded, None)
        if failed:
            raise failed[0]
        fill_gaps(pixels, labels, ok)
        yield HostBatch(pixels, labels, ok, corrupt=len(real) - int(ok.sum()))


def _jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that TensorFlow decodes to the colours that Pillow does."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    except Exception:  # as in decode: damaged files raise nearly anything
        return None
    return image.size if image.mode in ("RGB", "L") else None
