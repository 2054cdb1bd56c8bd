"""Prepared TensorFlow data sets: where they are looked for, and what their files must agree on."""

import types
from pathlib import Path

import numpy as np
import pytest

from experiments.data.prepared import check_split, from_directory, prepared_builder, reading
from experiments.host.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")


def builder_of(folder, classes=10, rows=10, shards=(10,), **features):
    kinds = {
        "label": tfds.features.ClassLabel(num_classes=classes), "image": tfds.features.Image(),
        **features,
    }  # fmt: skip
    info = types.SimpleNamespace(
        features=tfds.features.FeaturesDict({k: v for k, v in kinds.items() if v is not None}),
        splits={"train": types.SimpleNamespace(num_examples=rows, shard_lengths=list(shards))},
    )
    return types.SimpleNamespace(info=info, data_dir=str(folder))


@pytest.mark.parametrize(
    ("classes", "rows", "shards"), [(10, 10, (10,)), (1, 1, (1,)), (9, 10, (9, 1)), (2, 3, (1, 2))]
)
def test_a_split_has_so_many_classes(tmp_path, classes, rows, shards):
    assert check_split(builder_of(tmp_path, classes, rows, shards), "train") == classes
    (tmp_path / "label.labels.txt").write_text("".join(f" class {k}\n" for k in range(classes)))
    assert check_split(builder_of(tmp_path, classes, rows, shards), "train") == classes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": 11}, "features.json has 11 classes, but the train split only 10 images"),
        ({"classes": 0}, "features.json is damaged: label has no classes"),
        ({"rows": 0, "shards": (10,)}, r"the train split has shards of \[10\] records"),
        ({"shards": (10, 0)}, r"the train split has shards of \[10, 0\] records"),
        ({"image": None}, "features.json is damaged: image is no Image"),
        ({"label": None}, "features.json is damaged: label is no ClassLabel"),
        ({"image": tfds.features.Scalar(np.int64)}, "image is no Image"),
        ({"label": tfds.features.Scalar(np.int64)}, "label is no ClassLabel"),
    ],
)
def test_what_the_files_say_of_a_split_contradicts_itself(tmp_path, changes, says):
    with pytest.raises(DataError, match=f"{tmp_path}: .*{says}|{tmp_path}: {says}"):
        check_split(builder_of(tmp_path, **changes), "train")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (b"a\nb\n", "2 different names for 3"), (b"a\nb\nb\n", "2 different names for 3"),
        (b"a\nb\nc\nd", "4 different names for 3"), (b"a\n\xff\nc", "no UTF-8"),
    ],
)  # fmt: skip
def test_names_are_one_a_class(tmp_path, names, says):
    (tmp_path / "label.labels.txt").write_bytes(names)
    with pytest.raises(DataError, match=f"label.labels.txt is damaged, prepare .* again: {says}"):
        check_split(builder_of(tmp_path, 3), "train")


def test_where_nothing_is_said_the_folder_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"\(from the default of TensorFlow Datasets\)"):
        prepared_builder("cifar10", None, (), prepare=False)
    for folder, given in (("tensorflow_datasets", None), ("mine", "~/mine")):
        wrong = tmp_path / folder / "cifar10" / "3.0.2" / "features.json"
        wrong.mkdir(parents=True)  # no file to read
        with pytest.raises(DataError, match=f"{wrong} is no regular file: cifar10 is damaged"):
            prepared_builder("cifar10", given, (), prepare=False)


@pytest.mark.parametrize("first", ["dataset_info.json", "features.json"])
def test_of_two_damaged_files_the_first_by_its_name_is_told(tmp_path, first):
    """In whichever order the folder has them; lists are no descriptions, too."""
    for name, text in ((first, "[]"), ("dataset_info.json", "{"), ("features.json", "[]")):
        (tmp_path / name).write_text(text)
    (tmp_path / "a.txt").write_text("[")
    with pytest.raises(DataError, match=r"/dataset_info.json is damaged, prepare the data again$"):
        from_directory(str(tmp_path))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"/features.json is damaged, prepare the data again$"):
        from_directory(str(tmp_path))
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(DataError, match=r"dataset_info.json, features.json or a .txt beside them"):
        from_directory(str(tmp_path))


def test_what_a_reader_raises_names_the_split(tmp_path):
    builder = builder_of(tmp_path)
    builder.info.file_format = types.SimpleNamespace(value="riegeli")
    for error, says in (
        (OSError("gone"), f"the train split in {tmp_path} is unreadable: gone"),
        (NotImplementedError(), f"{tmp_path} is prepared in riegeli format, which cannot be read"),
        (DataError("as it is"), "^as it is$"),
    ):
        with pytest.raises(DataError, match=says), reading(builder, "train"):
            raise error
    assert Path(builder.data_dir) == tmp_path
