"""Where a run's rows come from: arrays on the device, or image files read while it trains.

Two implementations of one small contract. Either gives the rows of a batch as `Rows` whose leaves
are [K, b, ...], K steps of a call; which rows, an `Order` decides.

    image_shape                 (H, W, channels) of a raw image
    most_steps                  of a call, or None for any number
    multiple                    batches are padded to a multiple of this
    prepare(images, positions, batch_size, key)      augmented and normalised, on the device
    plain(images)                                    normalised alone
    inputs(part)                what every call gets besides its rows, or None
    training(order, calls)      a context: Rows of each call, (first step, steps)
    evaluation(part, size, crops=False)      a context: Rows of each batch of a part, in its order
    crops(images)               of rows with crops=True: five views of each, normalised, in a list
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from experiments.data import DataError, Dataset
from experiments.data.augment import (
    colour_jitter,
    crop_and_flip,
    five_crops,
    flip,
    normalise,
    resized,
    resized_crop,
)
from experiments.data.encoded import EncodedDataset
from experiments.data.sampling import Order
from experiments.data.stream import HostBatch, StepRows, stream
from experiments.host.devices import cores
from experiments.host.errors import flag
from experiments.run.settings import Settings
from experiments.step.step import Inputs, Rows

Calls = Iterable[tuple[int, int]]


class Feed(Protocol):
    """See the head of this file."""

    @property
    def image_shape(self) -> tuple[int, ...]: ...
    @property
    def most_steps(self) -> int | None: ...
    @property
    def multiple(self) -> int: ...
    def prepare(
        self, images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array
    ) -> jax.Array: ...
    def plain(self, images: jax.Array) -> jax.Array: ...
    def inputs(self, part: str) -> Inputs | None: ...
    def training(
        self, order: Order, calls: Calls
    ) -> contextlib.AbstractContextManager[Iterator[Rows]]: ...
    def evaluation(
        self, part: str, size: int, crops: bool = False
    ) -> contextlib.AbstractContextManager[Iterator[Rows]]: ...
    def crops(self, images: jax.Array) -> list[jax.Array]: ...


class Place(NamedTuple):
    """Which part of every batch this process reads: one of `processes`, over `devices` in all."""

    devices: int = 1
    processes: int = 1
    process: int = 0


def make_feed(dataset: Dataset | EncodedDataset, settings: Settings, place: Place) -> Feed:
    if isinstance(dataset, EncodedDataset):
        return Streamed(dataset, settings, place)
    return Resident(dataset, settings, place)


class _Images:
    """What both feeds do with a batch on the device."""

    def __init__(self, dataset: Any, settings: Settings):
        self._dataset, self._settings = dataset, settings

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self._dataset.image_shape

    def plain(self, images: jax.Array) -> jax.Array:
        return self._normalised(images)

    def crops(self, images: jax.Array) -> list[jax.Array]:
        side = self.image_shape[0]
        return [self._normalised(x) for x in five_crops(resized(images, _around(side)), side)]

    def _normalised(self, images: jax.Array) -> jax.Array:
        mean, std = self._dataset.mean, self._dataset.std
        return normalise(images, mean, std) if mean else images


def _around(side: int) -> int:
    """Of what five views are cut, as LIFT does: 248 for 224."""
    return side + max(side * 24 // 224, 1)


class Resident(_Images):
    """A data set whole on every device; a batch is an index into it."""

    most_steps: int | None = None

    def __init__(self, dataset: Dataset, settings: Settings, place: Place):
        super().__init__(dataset, settings)
        # A batch that cannot be divided among devices is computed whole by each of them, but
        # micro-batches must be of one size.
        self.multiple = 1 if settings.accumulate == 1 else place.devices * settings.accumulate

    def prepare(
        self, images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array
    ) -> jax.Array:
        side = self._settings.enlarged
        if not self._settings.augment:
            return self.plain(images)
        if side:
            crop_key, flip_key = jax.random.split(key)
            images = resized_crop(images, positions, batch_size, crop_key, side)
            images = flip(images, positions, batch_size, flip_key)
        elif images.dtype == np.uint8:
            images = crop_and_flip(images, positions, batch_size, key)
        else:  # features, of an image and of its mirror image
            images = flip(images, positions, batch_size, key)
        return self._normalised(images)

    def plain(self, images: jax.Array) -> jax.Array:
        side = self._settings.enlarged
        if side:
            around = self._settings.enlarged_eval or side
            edge = round((around - side) / 2)
            images = resized(images, around)[:, edge : edge + side, edge : edge + side]
        return self._normalised(images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        side, shape = self._settings.enlarged, super().image_shape
        return (side, side, *shape[2:]) if side else shape

    def inputs(self, part: str) -> Inputs | None:
        return Inputs(*(getattr(self._dataset, f"{part}_{what}") for what in Inputs._fields))

    @contextlib.contextmanager
    def training(self, order: Order, calls: Calls) -> Iterator[Iterator[Rows]]:
        yield (
            _indexed(np.stack([order.of_step(first + k) for k in range(steps)]))
            for first, steps in calls
        )

    @contextlib.contextmanager
    def evaluation(self, part: str, size: int, crops: bool = False) -> Iterator[Iterator[Rows]]:
        batches = InTurn(len(getattr(self._dataset, f"{part}_labels")), size)
        # Every batch has a mask, so that all of them are one program.
        yield (_indexed(batches.of_step(k)[None], masked=True) for k in range(batches.steps))


def _indexed(index: np.ndarray, masked: bool = False) -> Rows:
    real = index >= 0
    mask = real if masked or not real.all() else None
    # Padding repeats the first row: batch normalisation sees no image that is not there.
    return Rows(index=np.where(real, index, index[:, :1]).astype(np.int32), mask=mask)


class InTurn(NamedTuple):
    """The given number of rows in their own order, in batches of one size; -1 pads the last."""

    rows: int
    size: int

    @property
    def steps(self) -> int:
        return -(-self.rows // self.size)

    def of_step(self, step: int) -> np.ndarray:
        rows = np.arange(step * self.size, (step + 1) * self.size)
        return np.where(rows < self.rows, rows, -1)


class Mine(NamedTuple):
    """One process's part of each step: called in worker processes."""

    order: Order | InTurn
    place: Place

    def __call__(self, step: int) -> StepRows:
        if multiprocessing.parent_process() is not None:
            # Balanced orders are drawn by JAX; a worker must not take the accelerator for it.
            jax.config.update("jax_platforms", "cpu")
        rows, mine = self._part(step)
        # Padding repeats the first row of the whole batch, whichever process has it.
        real = np.where(rows >= 0, rows, rows[0])
        return StepRows(real[mine], np.arange(len(rows))[mine])

    def real(self, step: int) -> np.ndarray:
        """bool[b]: which of the rows are no padding."""
        rows, mine = self._part(step)
        return rows[mine] >= 0

    def _part(self, step: int) -> tuple[np.ndarray, slice]:
        rows = self.order.of_step(step)
        each = len(rows) // self.place.processes
        return rows, slice(self.place.process * each, (self.place.process + 1) * each)


class Streamed(_Images):
    """Image files, decoded and cropped by worker processes; a batch brings its images along."""

    most_steps: int | None = 1

    def __init__(self, dataset: EncodedDataset, settings: Settings, place: Place):
        super().__init__(dataset, settings)
        _LOADERS[settings.loader]()  # refuses what is not installed, before anything is written
        self._place = place
        self.multiple = place.devices * settings.accumulate

    def prepare(
        self, images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array
    ) -> jax.Array:
        if self._settings.augment:
            flip_key, jitter_key = jax.random.split(key)
            images = flip(images, positions, batch_size, flip_key)
            if self._settings.jitter:
                strength = self._settings.jitter
                images = colour_jitter(images, positions, batch_size, jitter_key, strength)
        return self.plain(images)

    def inputs(self, part: str) -> Inputs | None:
        return None

    @contextlib.contextmanager
    def training(self, order: Order, calls: Calls) -> Iterator[Iterator[Rows]]:
        steps = [first for first, _ in calls]
        first, last = (steps[0], steps[-1] + 1) if steps else (0, 0)
        with self._stream("train", order, first, last, self._settings.augment) as batches:
            yield batches

    @contextlib.contextmanager
    def evaluation(self, part: str, size: int, crops: bool = False) -> Iterator[Iterator[Rows]]:
        order = InTurn(len(getattr(self._dataset, f"{part}_labels")), size)
        sides = (self._dataset.size, self._dataset.resize)
        if crops:  # views are cut of the central square
            sides = (_around(sides[0]),) * 2
        with self._stream(part, order, 0, order.steps, train=False, sides=sides) as batches:
            yield batches

    @contextlib.contextmanager
    def _stream(
        self,
        part: str,
        order: Order | InTurn,
        first: int,
        last: int,
        train: bool,
        sides: tuple[int, int] | None = None,
    ) -> Iterator[Iterator[Rows]]:
        settings, mine = self._settings, Mine(order, self._place)
        side, resize = sides or (self._dataset.size, self._dataset.resize)
        more: dict[str, Any] = {}
        if settings.loader == "grain":
            more = {"workers": settings.workers, "threads": 1 if settings.workers else cores()}
        batches = _LOADERS[settings.loader]()(
            getattr(self._dataset, part),
            mine,
            first,
            last,
            size=side,
            resize=resize,
            train=train,
            seed=settings.seed,
            **more,
        )
        with contextlib.closing(batches):
            yield _with_masks(batches, mine, first)


def _with_masks(batches: Iterator[HostBatch], mine: Mine, step: int) -> Iterator[Rows]:
    while True:
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            raise DataError(
                f"images can no longer be read: {error} (each of {flag('workers')} keeps three "
                "batches in shared memory: is /dev/shm large enough?)"
            ) from error
        if batch is None:
            return
        mask = batch.ok & mine.real(step)
        yield Rows(images=batch.images[None], labels=batch.labels[None], mask=mask[None])
        step += 1


def _tf_stream() -> Any:
    from experiments.data.stream_tf import check_installed, stream_tf

    check_installed()
    return stream_tf


_LOADERS: dict[str, Any] = {"grain": lambda: stream, "tf.data": _tf_stream}
