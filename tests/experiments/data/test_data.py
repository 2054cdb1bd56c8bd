"""Data: published class counts, the two subset rules, holding out, the .npz file, the errors."""

import dataclasses
import importlib.util
import io
import os
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imbsam_jax
from damage import damaged_json
from experiments.data import (
    DataError,
    Dataset,
    cifar,
    draw_held_out,
    filled,
    hold_out,
    load_npz,
    save_npz,
    shrunk,
)  # fmt: skip
from experiments.data.cifar import load_cifar_lt
from experiments.data.prepared import check_split, prepared_builder

# The lists every public code base arrives at, class 0 first.
_CIFAR100_IF100 = (
    "500 477 455 434 415 396 378 361 344 328 314 299 286 273 260 248 237 226 216 206 197 188 179 "
    "171 163 156 149 142 135 129 123 118 112 107 102 98 93 89 85 81 77 74 70 67 64 61 58 56 53 51 "
    "48 46 44 42 40 38 36 35 33 32 30 29 27 26 25 24 23 22 21 20 19 18 17 16 15 15 14 13 13 12 12 "
    "11 11 10 10 9 9 8 8 7 7 7 6 6 6 6 5 5 5 5"
)
_CIFAR100_IF50 = (
    "500 480 462 444 426 410 394 379 364 350 336 323 311 299 287 276 265 255 245 235 226 218 209 "
    "201 193 186 178 172 165 158 152 146 141 135 130 125 120 115 111 107 102 98 95 91 87 84 81 78 "
    "75 72 69 66 64 61 59 56 54 52 50 48 46 44 43 41 39 38 36 35 34 32 31 30 29 27 26 25 24 23 22 "
    "22 21 20 19 18 18 17 16 16 15 14 14 13 13 12 12 11 11 10 10 10"
)
_CIFAR100_IF10 = (
    "500 488 477 466 455 445 434 424 415 405 396 387 378 369 361 352 344 336 328 321 314 306 299 "
    "292 286 279 273 266 260 254 248 243 237 232 226 221 216 211 206 201 197 192 188 183 179 175 "
    "171 167 163 159 156 152 149 145 142 139 135 132 129 126 123 121 118 115 112 110 107 105 102 "
    "100 98 95 93 91 89 87 85 83 81 79 77 75 74 72 70 69 67 66 64 63 61 60 58 57 56 54 53 52 51 50"
)
_CIFAR10_IF100 = "5000 2997 1796 1077 645 387 232 139 83 50"
_CIFAR10_IF50 = "5000 3237 2096 1357 878 568 368 238 154 100"
_CIFAR10_IF10 = "5000 3871 2997 2320 1796 1391 1077 834 645 500"


@pytest.mark.parametrize(
    ("max_count", "factor", "expected", "total"),
    [
        (500, 100, _CIFAR100_IF100, 10847),
        (500, 50, _CIFAR100_IF50, 12608),
        (500, 10, _CIFAR100_IF10, 19573),
        (5000, 100, _CIFAR10_IF100, 12406),
        (5000, 50, _CIFAR10_IF50, 13996),
        (5000, 10, _CIFAR10_IF10, 20431),
    ],
)
def test_published_counts(max_count: int, factor: float, expected: str, total: int) -> None:
    counts = [int(count) for count in expected.split()]
    got = imbsam_jax.long_tail_counts(len(counts), max_count, factor)
    assert got.tolist() == counts
    assert got.sum() == total


# --- CIFAR, from a small prepared data set of the same schema ---------------------------------

_CLASSES, _PER_CLASS, _TEST_SIZE = 10, 12, 30


def _label(split: str, index: int) -> int:
    """Classes interleaved irregularly, _PER_CLASS images each, as in the real file order."""
    return int(np.random.RandomState(7).permutation(_CLASSES * _PER_CLASS)[index]) % _CLASSES


def _image(split: str, index: int) -> np.ndarray:
    """An image that tells which one it is: every pixel is (split, index high, index low)."""
    pixel = np.array([split == "test", index // 256, index % 256], np.uint8)
    return np.broadcast_to(pixel, (32, 32, 3))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding a tiny "cifar10" as array_record, prepared without TensorFlow."""
    tfds: Any = pytest.importorskip("tensorflow_datasets")
    pil_image = pytest.importorskip("PIL.Image")
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("3.0.2")

            def _info(self) -> Any:
                features = {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=_CLASSES),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                sizes = {"train": _CLASSES * _PER_CLASS, "test": _TEST_SIZE}
                return {split: self._generate_examples(split, n) for split, n in sizes.items()}

            def _generate_examples(self, split: str, size: int) -> Any:
                for index in range(size):
                    png = io.BytesIO()
                    pil_image.fromarray(np.ascontiguousarray(_image(split, index))).save(png, "PNG")
                    # Not zero-padded: train_9 must come before train_10.
                    yield (
                        index,
                        {
                            "id": f"{split}_{index}",
                            "image": png.getvalue(),
                            "label": _label(split, index),
                        },
                    )

    folder = tmp_path_factory.mktemp("tfds")
    Cifar10(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def _ids(images: np.ndarray) -> list[int]:
    return [int(high) * 256 + int(low) for high, low in images[:, 0, 0, 1:]]


def test_first_images_of_each_class(prepared: Path) -> None:
    data = load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(prepared))
    counts = [12, 10, 8, 7, 6, 5, 4, 4, 3, 3]
    labels = [_label("train", i) for i in range(_CLASSES * _PER_CLASS)]
    expected = []
    for label, count in enumerate(counts):
        expected += [i for i, other in enumerate(labels) if other == label][:count]
    assert data.class_counts().tolist() == counts
    assert _ids(data.train_images) == expected
    assert data.train_labels.tolist() == [labels[i] for i in expected]
    assert _ids(data.test_images) == list(range(_TEST_SIZE))
    assert data.test_images[..., 0].all() and not data.train_images[..., 0].any()
    assert data.test_labels.tolist() == [_label("test", i) for i in range(_TEST_SIZE)]
    assert (data.name, data.num_classes, data.val_images) == ("cifar10", 10, None)
    assert (data.many_above, data.few_below) == (1000, 200)
    # As published with every long-tailed CIFAR, of pixels from 0 to 1.
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)
    assert "imbalance factor 4; of each class first n_i by id" in data.source


@pytest.mark.parametrize("seed", [0, 3])
def test_shuffled_images_of_each_class(prepared: Path, seed: int) -> None:
    data = load_cifar_lt(
        "cifar10",
        imbalance_factor=4,
        data_dir=str(prepared),
        subset="shuffled",
        subset_seed=seed,
        kind="step",
    )
    labels = np.array([_label("train", i) for i in range(_CLASSES * _PER_CLASS)])
    state = np.random.get_state()  # the rule as published, on NumPy's global generator
    np.random.seed(seed)
    expected: list[int] = []
    for label in range(_CLASSES):
        indices = np.where(labels == label)[0]
        np.random.shuffle(indices)
        expected += indices[: 12 if label < 5 else 3].tolist()
    np.random.set_state(state)
    assert _ids(data.train_images) == expected
    assert f"shuffled, seed {seed}" in data.source


def test_what_is_said_of_the_images_that_stayed(prepared: Path) -> None:
    """In fields, too, which `matching` compares; of the other kind there is no flag."""
    folder = str(prepared)
    first = load_cifar_lt("cifar10", imbalance_factor=4, data_dir=folder)
    assert (first.imbalance_factor, first.subset, first.subset_seed) == (4, "first", 0)
    step = load_cifar_lt("cifar10", imbalance_factor=4, data_dir=folder, kind="step")
    assert (step.subset, step.subset_seed) == (None, None) and "(step, imb" in step.source
    shuffled = load_cifar_lt("cifar10", imbalance_factor=4, data_dir=folder, subset="shuffled")
    assert shuffled.subset_seed == 0 and shuffled.source.endswith("shuffled, seed 0)")
    seeded = load_cifar_lt(
        "cifar10", imbalance_factor=4, data_dir=folder, subset="shuffled", subset_seed=0
    )
    assert _ids(seeded.train_images) == _ids(shuffled.train_images)


@pytest.mark.parametrize("missing", ["id", "label", "image"])
def test_an_empty_record_among_others_is_damage(missing: str) -> None:
    """Of some truncated shards array_record reads such."""
    pytest.importorskip("tensorflow_datasets")
    records = [{"id": b"train_0", "label": 0, "image": b"png"} for _ in range(3)]
    records[1][missing] = None

    class Source(list):
        def __getitems__(self, rows: list[int]) -> Any:
            return [self[row] for row in rows]

    builder = types.SimpleNamespace(
        as_data_source=lambda split, decoders: Source(records), data_dir="/tfds"
    )
    with pytest.raises(DataError, match="the train split in /tfds holds empty records"):
        cifar._read(builder, "train")


def test_folder_from_the_environment(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert load_cifar_lt("cifar10", imbalance_factor=1).class_counts().tolist() == [12] * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "cifar20"},
            "unknown data set 'cifar20': the known ones are cifar10, cifar100",
        ),
        ({"subset": "last"}, "unknown subset 'last'"),
        ({"imbalance_factor": 0.01}, "imbalance_factor"),
        ({"kind": "linear"}, "kind"),
    ],
)
def test_bad_arguments(prepared: Path, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"dataset": "cifar10", "imbalance_factor": 4, **changes}
    with pytest.raises(ValueError, match=message):
        load_cifar_lt(arguments.pop("dataset"), data_dir=str(prepared), **arguments)


@pytest.mark.parametrize("origin", ["--data-dir", "TFDS_DATA_DIR"])
def test_absent_data(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow_datasets")
    _pretend_installed(monkeypatch, tensorflow=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError) as caught:
        given = str(tmp_path) if origin == "--data-dir" else None
        load_cifar_lt("cifar10", imbalance_factor=10, data_dir=given)
    message = str(caught.value)
    assert f"{tmp_path}/cifar10/" in message and f"(from {origin})" in message
    assert "TFDS_DATA_DIR" in message and "`prepare` extra" in message and "\n" not in message


def test_absent_data_is_prepared_where_tensorflow_is(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import tensorflow_datasets as tfds

    _pretend_installed(monkeypatch, tensorflow=True)
    real_builder = tfds.builder

    class Unprepared:
        """Stands in for a builder whose data can be downloaded: it is `prepared` already."""

        def __init__(self, name: str, data_dir: str, file_format: str | None = None) -> None:
            self.inner = real_builder(name, data_dir=str(prepared))
            self.data_dir, self.file_format, self.done = data_dir, file_format, False
            self.info = self.inner.info

        def is_prepared(self) -> bool:
            return False

        def download_and_prepare(self) -> None:
            assert self.file_format == "array_record"
            self.done = True

        def as_data_source(self, *args: Any, **kwargs: Any) -> Any:
            assert self.done
            return self.inner.as_data_source(*args, **kwargs)

    monkeypatch.setattr(tfds, "builder", Unprepared)
    data = load_cifar_lt("cifar10", imbalance_factor=1, data_dir=str(tmp_path))
    assert len(data.train_labels) == 120
    assert f"downloading and preparing it in {tmp_path}" in capsys.readouterr().out

    def unreachable(self: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Unprepared, "download_and_prepare", unreachable)
    with pytest.raises(DataError, match="could not be prepared: no route to host"):
        load_cifar_lt("cifar10", imbalance_factor=1, data_dir=str(tmp_path))


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, **modules: bool) -> None:
    def find_spec(name: str) -> object | None:
        if name in modules:
            return object() if modules[name] else None
        return importlib.util.find_spec(name)

    monkeypatch.setattr("experiments.data.prepared.find_spec", find_spec)


def test_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_installed(monkeypatch, tensorflow_datasets=False, importlib_resources=False, PIL=True)
    with pytest.raises(DataError, match=r"pip install tensorflow-datasets importlib-resources$"):
        load_cifar_lt("cifar10", imbalance_factor=10)


@pytest.mark.parametrize(("kept", "message"), [(0.0, "is unreadable"), (0.5, "is unreadable")])
def test_damaged_shard(prepared: Path, tmp_path: Path, kept: float, message: str) -> None:
    original = prepared / "cifar10" / "3.0.2"
    copy = tmp_path / "cifar10" / "3.0.2"
    copy.mkdir(parents=True)
    for file in original.iterdir():
        content = file.read_bytes()
        size = int(kept * len(content)) if "-train." in file.name else len(content)
        (copy / file.name).write_bytes(content[:size])
    with pytest.raises(DataError, match=f"the train split in .* {message}"):
        load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(tmp_path))


def test_format_without_random_access(prepared: Path, tmp_path: Path) -> None:
    original = prepared / "cifar10" / "3.0.2"
    copy = tmp_path / "cifar10" / "3.0.2"
    copy.mkdir(parents=True)
    for file in original.glob("*.json"):
        text = file.read_text().replace('"array_record"', '"tfrecord"')
        (copy / file.name).write_text(text)
    with pytest.raises(DataError, match="in tfrecord format"):
        load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(tmp_path))


def test_damaged_image() -> None:
    pytest.importorskip("PIL")
    with pytest.raises(DataError, match="cannot be decoded"):
        cifar._decode([b"not a PNG"], (32, 32, 3))


def test_the_real_test_split_of_cifar100(cifar_dir: str) -> None:
    """Of the test set alone; the next test reads all."""
    pytest.importorskip("tensorflow_datasets")
    builder = prepared_builder("cifar100", cifar_dir, {"id", "image", "label"}, prepare=False)
    assert (
        check_split(builder, "test") == 100 and builder.info.splits["train"].num_examples == 50000
    )
    test = cifar._read(builder, "test")
    assert np.bincount(test.labels).tolist() == [100] * 100
    assert builder.info.features["label"].names[0] == "apple"
    images = cifar._decode(test.images[::20], (32, 32, 3), builder.data_dir)
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), atol=0.03)


@pytest.mark.slow
def test_real_cifar100_lt(cifar_dir: str) -> None:
    pytest.importorskip("tensorflow_datasets")
    data = load_cifar_lt("cifar100", imbalance_factor=100, data_dir=cifar_dir)
    assert data.train_images.shape == (10847, 32, 32, 3)
    assert data.test_images.shape == (10000, 32, 32, 3)
    assert data.class_counts().tolist() == [int(count) for count in _CIFAR100_IF100.split()]
    assert np.bincount(data.test_labels).tolist() == [100] * 100
    assert (data.many_above, data.few_below) == (100, 20)
    assert data.class_names is not None and data.class_names[0] == "apple"
    # The images are CIFAR's own: their mean is near that of the constants (CIFAR-10's).
    mean = data.test_images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, data.mean, atol=0.03)
    splits = imbsam_jax.shot_splits(data.class_counts(), data.many_above, data.few_below)
    assert [int(splits[shot].sum()) for shot in ("many", "medium", "few")] == [35, 35, 30]


# --- The contract ----------------------------------------------------------------------------


def _dataset(counts: tuple[int, ...] = (6, 3, 2, 1), **changes: Any) -> Dataset:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    labels = np.random.RandomState(5).permutation(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    fields: dict[str, Any] = {
        "name": "tiny",
        "train_images": np.broadcast_to(images, (len(labels), 4, 4, 3)),
        "train_labels": labels,
        "test_images": np.zeros((2, 4, 4, 3), np.uint8),
        "test_labels": np.array([0, 3], np.int32),
        "num_classes": len(counts),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "many_above": 4,
        "few_below": 2,
        "source": "made here",
    }
    return Dataset(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": np.zeros((12, 4, 4, 3), np.float32)},
            r"train_images must be uint8.*float32",
        ),
        ({"test_images": np.zeros((2, 5, 4, 3), np.uint8)}, r"test_images are \(5, 4, 3\)"),
        ({"test_images": np.zeros((0, 4, 4, 3), np.uint8)}, "N > 0"),
        ({"train_labels": np.zeros(12, np.int64)}, "train_labels must be int32"),
        ({"train_labels": np.zeros(11, np.int32)}, r"int32\[12\]"),
        ({"test_labels": np.array([0, 4], np.int32)}, r"outside \[0, 4\)"),
        ({"test_labels": np.array([0, -1], np.int32)}, r"outside \[0, 4\)"),
        ({"val_labels": np.zeros(1, np.int32)}, "must come together"),
        ({"val_images": np.zeros((1, 4, 4, 3), np.uint8)}, "must come together"),
        (
            {
                "val_images": np.zeros((1, 4, 4, 3), np.uint8),
                "val_labels": np.array([4], np.int32),
            },
            r"val_labels lie in \[4, 4\], outside \[0, 4\)",
        ),
        ({"test_images": np.zeros((2, 4, 0, 3), np.uint8)}, "no other 0"),
        ({"test_images": np.zeros((2, 4, 4), np.uint8)}, r"not uint8\[2, 4, 4\]"),
        ({"test_images": np.zeros((2, 4, 5, 3), np.uint8)}, r"test_images are \(4, 5, 3\)"),
        ({"mean": (0.5,) * 4}, "lengths 4 and 3, the images have 3 channels"),
        ({"std": (0.5,) * 2}, "lengths 3 and 2, the images have 3 channels"),
        ({"subset": "last"}, "subset must be first or shuffled, not 'last'"),
        ({"mean": (0.5,)}, "3 channels"),
        ({"few_below": 6}, "both many and few"),
        ({"class_names": ("a", "b")}, "2 class names for 4 classes"),
    ],
)
def test_dataset_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"tiny: .*{message}"):
        _dataset(**changes)


_VAL = {"val_images": np.zeros((1, 4, 4, 3), np.uint8), "val_labels": np.zeros(1, np.int32)}


@pytest.mark.parametrize(
    ("taken", "refused"),
    [
        # Twelve training images, of which the tiny set's four classes are the first four.
        ({"num_classes": 12}, {"num_classes": 13}),
        ({"imbalance_factor": 1.0}, {"imbalance_factor": 0.99}),
        ({"imbalance_factor": 1e9}, {"imbalance_factor": 1.01e9}),
        ({"subset_seed": 0}, {"subset_seed": -1}),
        ({"subset_seed": 2**32 - 1}, {"subset_seed": 2**32}),
        ({"shrink": 1}, {"shrink": 0}), ({"shrink": 2**31 - 1}, {"shrink": 2**31}),
        ({"val_per_class": 0}, {"val_per_class": -1}),
        ({"val_per_class": 2**31 - 1, **_VAL}, {"val_per_class": 2**31, **_VAL}),
        ({"val_per_class": 1, **_VAL}, {"val_per_class": -1, **_VAL}),
        ({"subset": "first"}, {"subset": "First"}), ({"subset": "shuffled"}, {"subset": ""}),
        ({"val_per_class": 0}, {"val_per_class": 1}),  # without an image held out
    ],
)  # fmt: skip
def test_what_a_dataset_says_of_its_making_has_a_range(
    taken: dict[str, Any], refused: dict[str, Any]
) -> None:
    name, value = next(iter(taken.items()))
    assert getattr(_dataset(**taken), name) == value
    with pytest.raises(DataError, match=name):
        _dataset(**refused)


def test_two_classes_are_enough() -> None:
    labels = np.array([0, 1], np.int32)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    two = {"train_images": images, "train_labels": labels, "test_labels": labels}
    assert _dataset(**two, num_classes=2).num_classes == 2


def test_class_counts() -> None:
    counts = _dataset().class_counts()
    assert counts.dtype == np.int64 and counts.tolist() == [6, 3, 2, 1]


@pytest.mark.parametrize(
    ("per_class", "left"), [(1, [5, 2, 1, 1]), (2, [4, 1, 1, 1]), (9, [1, 1, 1, 1])]
)
def test_hold_out_never_empties_a_class(per_class: int, left: list[int]) -> None:
    whole = _dataset()
    held = hold_out(whole, per_class, seed=0)
    assert held.class_counts().tolist() == left
    assert held.val_images is not None and held.val_labels is not None
    train_ids, val_ids = held.train_images[:, 0, 0, 0], held.val_images[:, 0, 0, 0]
    assert sorted([*train_ids, *val_ids]) == list(range(12))
    assert np.all(np.diff(train_ids.astype(int)) > 0), "the order changed"
    # Every image kept its own label.
    assert np.array_equal(whole.train_labels[train_ids], held.train_labels)
    assert np.array_equal(whole.train_labels[val_ids], held.val_labels)
    assert held.source == f"made here; up to {per_class} images per class held out, seed 0"


def test_hold_out_follows_its_seed() -> None:
    draws = [hold_out(_dataset(), 2, seed).train_images[:, 0, 0, 0].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_draw_is_one_permutation_a_class() -> None:
    """Of MT19937 seeded so, class by class in the order of the labels, each's rows in theirs."""
    labels = np.random.RandomState(1).randint(0, 5, 400).astype(np.int32)
    draw, expected = np.random.RandomState(7), set()
    for label in range(5):
        members = [row for row, other in enumerate(labels) if other == label]
        expected |= {members[k] for k in draw.permutation(len(members))[:30]}
    held = draw_held_out("tiny", labels, np.bincount(labels), 30, 7)
    assert set(np.flatnonzero(held)) == expected and len(expected) == 150


def test_a_class_without_an_image_counts_as_the_smallest() -> None:
    assert filled(np.array([5, 0, 1, 3, 0])).tolist() == [5, 1, 1, 3, 1]
    assert filled(np.array([5, 2, 0])).tolist() == [5, 2, 2]
    assert filled(np.array([5, 1])).tolist() == [5, 1]


def test_hold_out_with_an_absent_class() -> None:
    data = _dataset((3, 0, 2), test_labels=np.array([0, 2], np.int32))
    assert hold_out(data, 1, seed=0).class_counts().tolist() == [2, 0, 1]


def test_shrunk_averages_squares() -> None:
    images = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    labels = np.array([0, 1], np.int32)
    whole = _dataset((1, 1), train_images=images, test_images=images, test_labels=labels)
    small = shrunk(whole, 2)
    for n, i, j, c in np.ndindex(small.train_images.shape):
        square = images[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        assert small.train_images[n, i, j, c] == round(square.mean())
    assert small.train_images.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(small.test_images, small.train_images)
    assert "2x2 pixels" in small.source
    assert shrunk(whole, 1) is whole and whole.shrink == 1 and small.shrink == 2
    for factor in (4, 3):  # of the width, of the height
        with pytest.raises(DataError, match=f"4 x 6 cannot be cut into squares of {factor}"):
            shrunk(whole, factor)
    with pytest.raises(DataError, match=r"every 2 x 2 pixels averaged already.*leave --shrink out"):
        shrunk(small, 2)
    with pytest.raises(ValueError, match="at least 1"):
        shrunk(whole, 0)


def test_hold_out_errors() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        hold_out(_dataset(), 0, seed=0)
    with pytest.raises(ValueError, match="validation split already"):
        hold_out(hold_out(_dataset(), 1, seed=0), 1, seed=0)
    with pytest.raises(DataError, match="no class has two images"):
        hold_out(_dataset((1, 1, 1, 1)), 1, seed=0)


@pytest.mark.parametrize("full", [False, True])
def test_npz_round_trip(tmp_path: Path, full: bool) -> None:
    data = _dataset()
    if full:
        data = hold_out(dataclasses.replace(data, class_names=("a", "b", "ç", "d")), 1, seed=0)
    path = tmp_path / "new folder" / "data.cache"  # the name is kept as given
    save_npz(data, path)
    assert [file.name for file in path.parent.iterdir()] == ["data.cache"]
    loaded = load_npz(path)
    for field in dataclasses.fields(Dataset):
        before, after = getattr(data, field.name), getattr(loaded, field.name)
        assert type(before) is type(after), field.name
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Over one that is there; where a folder of its name is, nothing is left beside it."""
    for many_above in (4, 5):
        save_npz(_dataset(many_above=many_above), tmp_path / "data.npz")
        assert load_npz(tmp_path / "data.npz").many_above == many_above
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_npz(_dataset(), tmp_path / "folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.npz", "folder"]


def _saved(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path / "new" / "folders" / "data.npz"
    save_npz(_dataset(), path)
    with np.load(path) as file:
        return path, dict(file)


@pytest.mark.parametrize("key", ["train_labels", "mean", "source"])
def test_npz_without_a_key(tmp_path: Path, key: str) -> None:
    path, arrays = _saved(tmp_path)
    del arrays[key]
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=f"data.npz lacks the key {key}"):
        load_npz(path)


def test_npz_of_something_else(tmp_path: Path) -> None:
    path, arrays = _saved(tmp_path)
    np.savez(path, **arrays, **{f"more_{name}": np.zeros(1) for name in "hbdafceg"})
    named = ", ".join(f"more_{name}" for name in "abcdefgh")
    with pytest.raises(DataError, match=f"data.npz holds the unknown key {named}: write it"):
        load_npz(path)
    np.savez(path, x=np.zeros(1))
    with pytest.raises(DataError, match="lacks the key name, train_images, train_labels, test"):
        load_npz(path)


def test_npz_that_breaks_the_contract(tmp_path: Path) -> None:
    path, arrays = _saved(tmp_path)
    arrays["num_classes"] = np.asarray(3)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"data.npz: tiny: .*outside \[0, 3\)"):
        load_npz(path)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_npz(tmp_path / "absent.npz")
    whole, arrays = _saved(tmp_path)
    truncated = whole.read_bytes()[:-100]
    np.savez(tmp_path / "pickled.npz", **{**arrays, "name": np.array({}, dtype=object)})
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "truncated.npz").write_bytes(truncated)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match=r"folder.npz is a folder, not a file to read"):
        load_npz(tmp_path / "folder.npz")
    for name in ("pickled", "single.npy", "empty", "text", "truncated"):
        path = tmp_path / (name if "." in name else f"{name}.npz")
        with pytest.raises(DataError, match=f"{path.name} is not an .npz file"):
            load_npz(path)


# --- TFDS's own files, damaged ----------------------------------------------------------------


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """The folder of the prepared version, to be damaged."""
    return shutil.copytree(prepared / "cifar10" / "3.0.2", tmp_path / "cifar10" / "3.0.2")


def _digest(data: Dataset) -> tuple[Any, ...]:
    parts = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    return (*(part.tobytes() for part in parts), data.class_names)


def test_damaged_description(prepared: Path, copied: Path) -> None:
    """One sentence, or the very same data where nothing reads what was damaged."""
    right = _digest(load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(prepared)))
    file = copied / "dataset_info.json"
    refused = 0
    for what, data in damaged_json(file.read_text()):
        file.write_bytes(data)
        try:
            loaded = load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(copied.parents[1]))
        except DataError as error:
            refused += 1
            assert str(error).isprintable() and str(copied.parent) in str(error), what
        else:
            assert _digest(loaded) == right, what
    assert refused > 50


def test_damaged_class_names(copied: Path) -> None:
    file = copied / "label.labels.txt"
    for data in (b"\xff\xfe", b"a\n" * 10, b"a\nb\n"):
        file.write_bytes(data)
        with pytest.raises(DataError, match="is damaged, prepare the data again"):
            load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(copied.parents[1]))


def test_a_pipe_among_the_prepared_files(copied: Path) -> None:
    for file in (*copied.glob("*.json"), *copied.glob("*.array_record*")):
        content = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(DataError, match=f"{file.name} is (no regular file|a pipe)"):
            load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(copied.parents[1]))
        file.unlink()
        file.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_records(prepared: Path, copied: Path, split: str) -> None:
    right = _digest(load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(prepared)))
    file = next(copied.glob(f"*-{split}.array_record*"))
    whole = file.read_bytes()
    cuts = [whole[: len(whole) * part // 7] for part in range(7)]
    flips = []
    for at in range(7, len(whole), len(whole) // 23):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        flips.append(bytes(flipped))
    other = next(copied.glob("*-test.*" if split == "train" else "*-train.*")).read_bytes()
    refused = 0
    for data in (*cuts, whole[:-1], whole + b"\0" * 9, b"junk" * 999, other, *flips):
        file.write_bytes(data)
        try:
            loaded = load_cifar_lt("cifar10", imbalance_factor=4, data_dir=str(copied.parents[1]))
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert _digest(loaded) == right
    assert refused > 10
