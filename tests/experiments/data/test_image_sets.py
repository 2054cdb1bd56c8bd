"""The large image sets from folders: what each is called and normalised by, and what is refused."""

import pytest

from experiments.data.image_sets import load_imagenet_lt, load_inaturalist
from experiments.host.errors import DataError

# As published: of ImageNet, with every network that is trained on it; of iNaturalist 2018 with the
# decoupling paper's code.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INATURALIST = {"mean": (0.466, 0.471, 0.380), "std": (0.195, 0.194, 0.192)}


@pytest.fixture
def folder(tmp_path):
    """Four training images of three classes, two to tune on, three to test."""
    parts = {"train": (0, 1, 2, 2), "val": (1, 0), "test": (2, 1, 0)}
    for part, labels in parts.items():
        lines = []
        for number, label in enumerate(labels):
            (tmp_path / f"{part}{number}.jpg").write_bytes(f"{part}{number}".encode())
            lines.append(f"{part}{number}.jpg {label}\n")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    return tmp_path


def lists(folder, *parts):
    return {f"{part}_list": folder / f"{part}.txt" for part in parts}


@pytest.mark.parametrize("dataset", ["imagenet_lt", "imagenet2012", "places365_small"])
def test_images_of_a_folder_that_lists_choose(folder, dataset):
    name = "places_lt" if dataset == "places365_small" else "imagenet_lt"
    data = load_imagenet_lt(dataset, image_dir=folder, **lists(folder, "train", "val", "test"))
    assert (data.name, data.num_classes, data.size, data.resize) == (name, 3, 224, 256)
    assert {"mean": data.mean, "std": data.std} == IMAGENET
    assert data.source == f"images in {folder}, chosen and labelled by lists"
    assert data.class_counts().tolist() == [1, 1, 2] and data.val_labels.tolist() == [1, 0]
    assert data.test.read([2, 0]) == [b"test2", b"test0"] and data.val.read([1]) == [b"val1"]
    smaller = load_imagenet_lt(
        dataset, image_dir=folder, size=16, resize=20, **lists(folder, "train", "test")
    )
    assert (smaller.size, smaller.resize, smaller.val) == (16, 20, None)


def test_species_of_a_folder(folder):
    given = {"image_dir": folder, **lists(folder, "train", "test")}
    data = load_inaturalist(**given)
    assert (data.name, data.num_classes, data.size, data.resize) == (
        "i_naturalist2018",
        3,
        224,
        256,
    )
    assert {"mean": data.mean, "std": data.std} == INATURALIST
    assert data.source == f"images in {folder}, chosen and labelled by lists"
    smaller = load_inaturalist(**given, size=16, resize=20)
    assert (smaller.size, smaller.resize) == (16, 20)


def test_an_image_is_in_one_list_alone(folder):
    """Each pair of them; what is learnt from says nothing as a test."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        path = folder / f"{other}.txt"
        own = path.read_text()
        path.write_text(f"{own}{one}1.jpg 0\n{one}0.jpg 0\n")
        shared = rf"the {one} and the {other} list share 2 images \({one}0.jpg\): nothing may"
        with pytest.raises(DataError, match=shared):
            load_imagenet_lt(image_dir=folder, **lists(folder, "train", "val", "test"))
        path.write_text(own)


@pytest.mark.parametrize("part", ["train", "test"])
def test_lists_come_together_and_with_a_place_of_the_images(folder, part):
    given = lists(folder, part)
    with pytest.raises(DataError, match="lists choose among the images of --image-dir"):
        load_inaturalist(**given)
    with pytest.raises(DataError, match="--image-dir needs --train-list and --test-list"):
        load_inaturalist(image_dir=folder, **given)
    for dataset in ("imagenet2012", "places365_small"):
        with pytest.raises(DataError, match=f"{dataset} is the whole set: give --train-list and"):
            load_imagenet_lt(dataset, str(folder), **given)
    with pytest.raises(DataError, match="imagenet_lt is chosen already: lists go with"):
        load_imagenet_lt(data_dir=str(folder), **given)


@pytest.mark.parametrize("dataset", ["imagenet2012", "places365_small"])
def test_whole_sets_are_not_downloaded(folder, dataset):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match=rf"{dataset} is not prepared in .*tfds build {dataset} "):
        load_imagenet_lt(dataset, str(folder), **lists(folder, "train", "test"))
