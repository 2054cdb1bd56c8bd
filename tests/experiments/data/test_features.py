"""Features in the place of images: their shape, and the file that keeps them."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.data import features
from experiments.data.identity import rows_sha256
from experiments.host.errors import DataError, RunError
from tiny import tiny_dataset

DATASET = tiny_dataset()  # 78 training and 55 test images
MADE = {"model": "vit_tiny", "side": 32}


def made(width=3, **changes):
    draw = np.random.default_rng(0)
    found = {
        part: draw.normal(size=(rows, 1, 2, width)).astype(np.float32)
        for part, rows in (("train", 78), ("test", 55))
    }
    return {name: x for name, x in {**found, **changes}.items() if x is not None}


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def one_infinite():
    x = zeros(55, 1, 2, 3)
    x[7, 0, 1, 2] = np.inf
    return x


def test_features_describe_the_classes_as_their_data_set_does():
    found = features.of(DATASET, made())
    same = ("name", "num_classes", "many_above", "few_below", "source", "class_names", "shrink")
    assert [getattr(found, name) for name in same] == [getattr(DATASET, name) for name in same]
    assert (found.mean, found.std, found.image_shape) == ((), (), (1, 2, 3))
    assert found.rows_sha256 == rows_sha256(DATASET)
    np.testing.assert_array_equal(found.train_images, made()["train"])
    np.testing.assert_array_equal(found.test_labels, DATASET.test_labels)
    assert found.val_images is None and found.val_labels is None
    assert features.of(DATASET, made(1)).image_shape == (1, 2, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": zeros(77, 1, 2, 3)}, r"of train are float32\[77, 1, 2, 3\], not float32\[78, 1"),
        ({"test": zeros(55, 2, 2, 3)}, r"of test are float32\[55, 2, 2, 3\], not"),
        ({"test": zeros(55, 1, 1, 3)}, "of test are"),
        ({"test": zeros(55, 1, 2)}, "of test are"),
        ({"test": zeros(55, 1, 2, 3, 1)}, "of test are"),
        ({"test": zeros(55, 1, 2, 3, dtype=np.float64)}, r"of test are float64\[55, 1, 2, 3\]"),
        ({"test": zeros(55, 1, 2, 4)}, "an image of test has 4 features, one of train 3"),
        ({"train": zeros(78, 1, 2, 0)}, "an image of train has 0 features, one of train 0"),
        ({"train": np.full((78, 1, 2, 3), np.nan, np.float32)}, "of train are not finite"),
        ({"test": one_infinite()}, "of test are not finite"),
        ({"test": None}, "test lacks features or labels"),
        ({"val": zeros(2, 1, 2, 3)}, "val lacks features or labels"),
    ],
)
def test_features_of_another_shape_are_refused(changes, says):
    with pytest.raises(DataError, match=f"^tiny: .*{says}"):
        features.of(DATASET, made(**changes))


def test_a_file_keeps_them_with_what_decided_them(tmp_path):
    path = tmp_path / "new" / "folders" / "kept.npz"
    for width in (3, 4):  # over one that is there
        features.check_writable(path)
        assert width == 4 or list(path.parent.iterdir()) == []
        features.save(path, made(width), MADE)
        assert [file.name for file in path.parent.iterdir()] == ["kept.npz"]
        found = features.load(path, MADE, DATASET)
        np.testing.assert_array_equal(found.test_images, made(width)["test"])
    with np.load(path) as file:
        assert json.loads(str(file["made"])) == MADE and sorted(file) == ["made", "test", "train"]


def test_the_same_folder_of_images_has_the_same_features(tmp_path):
    path = tmp_path / "kept.npz"
    (tmp_path / "link").symlink_to(tmp_path)

    def of(folder):
        return {**MADE, "source": f"images in {folder}, chosen and labelled by lists"}

    features.save(path, made(), of(tmp_path))
    features.load(path, of(tmp_path / "link"), DATASET)
    with pytest.raises(DataError, match="holds other features: source is"):
        features.load(path, of(tmp_path / "other"), DATASET)


def test_other_features_and_other_files_are_refused(tmp_path):
    path = tmp_path / "kept.npz"
    features.save(path, made(), MADE)
    for other, says in (
        ({"model": "vit_tiny", "side": 64}, "side is 32, not 64; name another file"),
        ({**MADE, "more": "x"}, "more is None, not 'x'"),
    ):
        with pytest.raises(DataError, match=f"kept.npz holds other features: {says}"):
            features.load(path, other, DATASET)
    fewer = dataclasses.replace(
        DATASET, test_images=DATASET.test_images[:9], test_labels=DATASET.test_labels[:9]
    )
    with pytest.raises(DataError, match=r"kept.npz is damaged: tiny: features of test are"):
        features.load(path, MADE, fewer)
    for arrays in ({}, {"made": np.array("3")}, {"made": np.array("{")}):
        np.savez(path, **made(), **arrays)
        with pytest.raises(DataError, match=r"kept.npz holds no features: nothing in it says how"):
            features.load(path, MADE, DATASET)


def test_where_they_cannot_be_kept_is_told_before(tmp_path):
    (tmp_path / "file").touch()
    for call in (
        lambda path: features.check_writable(path), lambda path: features.save(path, made(), MADE),
    ):  # fmt: skip
        with pytest.raises(RunError, match=r"cannot keep features in .*file/kept.npz: "):
            call(tmp_path / "file" / "kept.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"cannot keep features in .*folder: "):
        features.save(tmp_path / "folder", made(), MADE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
    long = tmp_path / ("x" * 250)  # a name that is too long only with what is put behind it
    with pytest.raises(RunError, match=r"cannot keep features in"):
        features.check_writable(long)
