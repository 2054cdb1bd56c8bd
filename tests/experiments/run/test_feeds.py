"""Which rows a feed gives, and what it asks a loader for; images are decoded in data/'s tests"""

import dataclasses
import itertools
import multiprocessing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import DataError
from experiments.data.augment import normalise
from experiments.data.encoded import EncodedDataset
from experiments.data.sampling import Order
from experiments.data.stream import HostBatch
from experiments.run import feeds
from experiments.run.settings import Settings
from tiny import tiny_dataset

DATA = tiny_dataset()
SETTINGS = Settings(batch_size=16)
ORDER = Order("natural", DATA.train_labels, 3, 16)
IMAGES = jnp.asarray(DATA.train_images[:6])


def made(dataset=DATA, place=None, **settings):
    settings = dataclasses.replace(SETTINGS, **settings)
    return feeds.make_feed(dataset, settings, place or feeds.Place())


class Part:
    def __init__(self, name, rows):
        self.name, self.labels = name, np.arange(rows, dtype=np.int32) % 5

    def read(self, rows):
        raise AssertionError("read by the loader alone")


ENCODED = EncodedDataset(
    name="none", train=Part("train", 78), test=Part("test", 23), num_classes=5, mean=DATA.mean,
    std=DATA.std, source="made by the tests", size=16, resize=18,
)  # fmt: skip


# ---- a data set on the device -----------------------------------------------------------------


def test_rows_of_a_call_are_those_of_its_steps():
    """In a call as many rows each, and all of them real; padded ones repeat the first."""
    feed = made()
    with feed.training(ORDER, [(0, 2), (3, 1), (4, 1)]) as batches:
        two, one, last = batches
    np.testing.assert_array_equal(two.index, [ORDER.of_step(0), ORDER.of_step(1)])
    np.testing.assert_array_equal(one.index, [ORDER.of_step(3)])
    np.testing.assert_array_equal(last.index, [ORDER.of_step(4)])
    assert two.mask is one.mask is last.mask is None and last.index.shape == (1, 14)
    assert two.index.dtype == np.int32
    padded = Order("natural", DATA.train_labels, 3, 16, multiple=8)
    with feed.training(padded, [(4, 1)]) as batches:
        (last,) = batches
    assert last.mask.tolist() == [[True] * 14 + [False] * 2]
    assert last.index[0, 14:].tolist() == [last.index[0, 0]] * 2


def test_rows_of_a_part_are_in_order_and_every_batch_has_a_mask():
    with made().evaluation("test", 20) as batches:
        found = list(batches)
    assert [rows.index.shape for rows in found] == [(1, 20)] * 3
    seen = np.concatenate([rows.index[rows.mask] for rows in found])
    np.testing.assert_array_equal(seen, np.arange(55))
    assert found[2].index[0, 15:].tolist() == [40] * 5


@pytest.mark.parametrize(("rows", "size", "steps"), [(55, 20, 3), (60, 20, 3), (1, 20, 1)])
def test_rows_in_turn_are_padded_once_they_are_out(rows, size, steps):
    turn = feeds.InTurn(rows, size)
    found = [turn.of_step(step) for step in range(turn.steps)]
    assert len(found) == steps and {len(x) for x in found} == {size}
    padding = steps * size - rows
    assert np.concatenate(found).tolist() == [*range(rows), *[-1] * padding]


def test_arrays_of_a_part_and_the_size_of_an_image():
    inputs = made().inputs("test")
    assert inputs.images is DATA.test_images and inputs.labels is DATA.test_labels
    assert made().image_shape == (8, 8, 3) and made().most_steps is None
    assert made(enlarged=24).image_shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("devices", "accumulate", "multiple"), [(1, 1, 1), (4, 1, 1), (1, 2, 2), (4, 2, 8)]
)
def test_only_micro_batches_must_be_of_one_size(devices, accumulate, multiple):
    """A batch that devices cannot share is computed whole by each of them."""
    found = made(place=feeds.Place(devices), accumulate=accumulate)
    assert found.multiple == multiple
    assert feeds.Place() == (1, 1, 0)


@pytest.fixture
def done(monkeypatch):
    """What is done to images, each with what it depends on: the last is the key, or a side."""
    steps = []

    def note(name):
        def do(images, positions, batch_size, key, *more):
            assert positions == "positions" and batch_size == 6
            steps.append((name, *(key if isinstance(key, tuple) else (key,)), *more))
            return images

        return do

    for name in ("crop_and_flip", "flip", "resized_crop", "colour_jitter"):
        monkeypatch.setattr(feeds, name, note(name))
    monkeypatch.setattr(feeds, "normalise", lambda images, *by: steps.append(("normalise", *by)))
    monkeypatch.setattr(feeds, "resized", lambda images, side: images)
    monkeypatch.setattr(jax.random, "split", lambda key: ((key, 0), (key, 1)))
    return steps


NORMALISED = ("normalise", DATA.mean, DATA.std)


@pytest.mark.parametrize(
    ("settings", "dtype", "expected"),
    [
        ({"augment": False}, np.uint8, []),
        ({"augment": False, "enlarged": 8}, np.uint8, []),
        ({}, np.uint8, [("crop_and_flip", "key")]),
        ({}, np.float32, [("flip", "key")]),  # features, of an image and of its mirror image
        ({"enlarged": 12}, np.uint8, [("resized_crop", "key", 0, 12), ("flip", "key", 1)]),
    ],
)
def test_what_becomes_of_an_image(settings, dtype, expected, done):
    images = DATA.train_images[:6].astype(dtype)
    made(**settings).prepare(images, "positions", 6, "key")
    assert done == [*expected, NORMALISED]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"augment": False, "jitter": 0.4}, []),
        ({}, [("flip", "key", 0)]),
        ({"jitter": 0.4}, [("flip", "key", 0), ("colour_jitter", "key", 1, 0.4)]),
    ],
)
def test_what_becomes_of_a_streamed_image(settings, expected, done):
    made(ENCODED, **settings).prepare(DATA.train_images[:6], "positions", 6, "key")
    assert done == [*expected, NORMALISED]


def test_features_are_not_normalised(done):
    """Of pretrained models: a data set of them has no mean."""
    features = SimpleNamespace(mean=(), std=(), image_shape=(1, 2, 5))
    feed = feeds.Resident(features, SETTINGS, feeds.Place())
    images = np.ones((6, 1, 2, 5), np.float32)
    assert feed.prepare(images, "positions", 6, "key") is images and done == [("flip", "key")]


@pytest.mark.parametrize(("around", "edge"), [(0, 0), (21, 4)])
def test_what_is_evaluated_is_the_centre_of_a_larger_image(around, edge):
    """12 pixels of as many as are asked for, with as many left as right of them."""
    feed = made(enlarged=12, enlarged_eval=around)
    side = around or 12

    def resized(images):
        return jax.image.resize(images.astype(jnp.float32), (6, side, side, 3), "linear")

    whole = jax.jit(resized)(IMAGES)
    found = jax.jit(feed.plain)(IMAGES)
    centre = normalise(whole[:, edge : edge + 12, edge : edge + 12], DATA.mean, DATA.std)
    np.testing.assert_allclose(found, centre, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "around"), [(224, 248), (48, 53), (8, 9), (336, 372)])
def test_views_are_cut_of_an_image_as_much_larger_as_in_lift(side, around):
    """LIFT's 248 for 224, and at least a pixel."""
    assert feeds._around(side) == around and isinstance(feeds._around(side), int)


# ---- images that are read while it trains -----------------------------------------------------


@pytest.fixture
def loader(monkeypatch):
    """What a loader was asked for; it gives batches whose rows, all but the second, are good."""
    asked = []

    def load(part, mine, first, last, **more):
        asked.append((part.name, mine, first, last, more))
        for step in range(first, last):
            rows = mine(step).rows
            ok = np.arange(len(rows)) != 1
            yield HostBatch(np.full((len(rows), 2), step), rows.astype(np.int32), ok, 1)

    monkeypatch.setattr(feeds, "cores", lambda: 6)
    for name in ("grain", "tf.data"):
        monkeypatch.setitem(feeds._LOADERS, name, lambda: load)
    return asked


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {"train": True, "workers": 0, "threads": 6}),
        ({"augment": False, "seed": 7, "workers": 3}, {"train": False, "workers": 3, "threads": 1}),
        ({"loader": "tf.data"}, {"train": True}),
    ],
)
def test_a_loader_reads_the_steps_of_the_calls(settings, more, loader):
    """From the first to the last; by workers with a thread each, or by this process's threads."""
    place = feeds.Place(4, 2, 1)
    feed = made(ENCODED, place, **settings)
    assert feed.most_steps == 1 and feed.inputs("train") is None
    with feed.training(ORDER, [(2, 1), (3, 1), (4, 1)]) as batches:
        found = list(batches)
    ((name, mine, first, last, given),) = loader
    assert (name, mine, first, last) == ("train", feeds.Mine(ORDER, place), 2, 5)
    seed = settings.get("seed", 0)
    assert given == {"size": 16, "resize": 18, "seed": seed, **more}
    assert [rows.images[0, 0, 0] for rows in found] == [2, 3, 4]
    for step, rows in zip((2, 3, 4), found, strict=True):
        np.testing.assert_array_equal(rows.labels[0], mine(step).rows)
    loader.clear()
    with feed.training(ORDER, []) as batches:  # of a run that is finished
        assert list(batches) == []
    assert loader[0][2:4] == (0, 0)


@pytest.mark.parametrize(("crops", "sides"), [(False, (16, 18)), (True, (17, 17))])
def test_a_part_is_read_once_and_rows_that_are_none_are_masked(crops, sides, loader):
    """Padding of the last batch, and what could not be read; views are cut of a square."""
    feed = made(ENCODED)
    with feed.evaluation("test", 8, **({"crops": True} if crops else {})) as batches:
        found = list(batches)
    ((name, mine, first, last, given),) = loader
    assert (name, first, last, mine.order) == ("test", 0, 3, feeds.InTurn(23, 8))
    assert ((given["size"], given["resize"]), given["train"]) == (sides, False)
    good = np.arange(8) != 1
    expected = [good, good, good & (np.arange(8) < 7)]
    for rows, mask in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows.mask, mask[None])


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (4, 1), (4, 2)])
def test_streamed_batches_are_shared_by_all_devices(devices, accumulate, loader):
    feed = made(ENCODED, feeds.Place(devices), accumulate=accumulate)
    assert feed.multiple == devices * accumulate


def test_what_cannot_be_read_on_is_told_with_what_to_look_at(monkeypatch):
    def load(*_, **__):
        raise RuntimeError("a worker is gone")
        yield

    monkeypatch.setitem(feeds._LOADERS, "grain", lambda: load)
    told = r"can no longer be read: a worker is gone \(each of --workers keeps three batches in"
    with (
        made(ENCODED).training(ORDER, [(0, 1)]) as batches,
        pytest.raises(DataError, match=told),
    ):
        next(batches)


def test_a_loader_that_is_not_installed_is_refused_at_once(monkeypatch):
    def missing():
        raise DataError("no TensorFlow")

    monkeypatch.setattr("experiments.data.stream_tf.check_installed", missing)
    with pytest.raises(DataError, match="no TensorFlow"):
        made(ENCODED, loader="tf.data")


@pytest.mark.parametrize("worker", [False, True])
def test_a_worker_leaves_the_accelerator_alone(worker, monkeypatch):
    """Balanced orders are drawn by JAX, which would take hold of it."""
    asked = []
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "parent" if worker else None)
    monkeypatch.setattr(jax.config, "update", lambda *what: asked.append(what))
    rows, positions = feeds.Mine(feeds.InTurn(23, 8), feeds.Place(2, 2, 1))(2)
    assert asked == ([("jax_platforms", "cpu")] if worker else [])
    assert rows.dtype == positions.dtype == np.int64
    for step in range(5):  # the very first image is as real as another, wherever it stands
        np.testing.assert_array_equal(
            feeds.Mine(ORDER, feeds.Place())(step).rows, ORDER.of_step(step)
        )
    assert (rows.tolist(), positions.tolist()) == ([20, 21, 22, 16], [4, 5, 6, 7])
    first = feeds.Mine(feeds.InTurn(23, 8), feeds.Place(2, 2, 0))
    assert first(0).rows.tolist() == [0, 1, 2, 3] and first.real(0).all()
    assert list(itertools.chain(*(feeds.Mine(feeds.InTurn(3, 4), feeds.Place(2, 2, k)).real(0)
                                  for k in (0, 1)))) == [True] * 3 + [False]  # fmt: skip
