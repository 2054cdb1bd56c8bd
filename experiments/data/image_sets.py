"""ImageNet-LT, Places-LT, iNaturalist 2018, still encoded, from TFDS or folders of images."""

import dataclasses
import itertools
import os
from typing import Any, Literal, cast

import numpy as np

from experiments.data import DataError
from experiments.data.encoded import EncodedDataset, Split, Subset
from experiments.data.lists import FolderSplit, folder_split, select
from experiments.data.prepared import prepared_builder
from experiments.data.records import TfdsSplit
from experiments.host.cli import noun

__all__ = ["load_imagenet_lt", "load_inaturalist"]

PathLike = str | os.PathLike[str]

_INATURALIST = ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The splits that the lists choose from: validation images of the -LT sets were training images.
_LISTED_IN = {"train": "train", "val": "train", "test": "validation"}


def load_inaturalist(
    data_dir: str | None = None,
    *,
    image_dir: PathLike | None = None,
    train_list: PathLike | None = None,
    test_list: PathLike | None = None,
    size: int = 224,
    resize: int = 256,
) -> EncodedDataset:
    """iNaturalist 2018: 437,513 training images of 8,142 species.

    The test split is the labelled validation set of the competition (24,426 images), on which the
    papers report; the competition's test set has no public labels.

    Args:
      data_dir: folder of prepared TensorFlow Datasets that holds i_naturalist2018; None means
        TFDS_DATA_DIR, or else the default of TensorFlow Datasets.
      image_dir: in place of it, the folder of the extracted images, with both lists.
      train_list, test_list: see `read_list`; as published, iNaturalist18_train.txt and
        iNaturalist18_val.txt.
      size, resize: see `EncodedDataset`.

    Raises:
      DataError: the data is not there or cannot be read, or arguments contradict each other.
    """
    mean, std = _INATURALIST
    if image_dir is not None:
        splits = _from_folder(data_dir, image_dir, train_list, None, test_list)
        return _of_lists(
            "i_naturalist2018", splits, mean, std, f"images in {image_dir}", size, resize
        )
    if train_list is not None or test_list is not None:
        raise DataError("lists choose among the images of --image-dir: give it, or no lists")
    builder = prepared_builder("i_naturalist2018", data_dir, {"image", "label"}, prepare=False)
    train = TfdsSplit(builder.data_dir, "train")
    test = TfdsSplit(builder.data_dir, "validation")
    return EncodedDataset(
        name="i_naturalist2018",
        train=train,
        test=test,
        num_classes=len(train.class_names),
        mean=mean,
        std=std,
        source=f"TensorFlow Datasets {builder.info.full_name}, tested on its validation split",
        class_names=train.class_names,
        size=size,
        resize=resize,
    )


def load_imagenet_lt(
    dataset: Literal["imagenet_lt", "imagenet2012", "places365_small"] = "imagenet_lt",
    data_dir: str | None = None,
    *,
    train_list: PathLike | None = None,
    val_list: PathLike | None = None,
    test_list: PathLike | None = None,
    image_dir: PathLike | None = None,
    size: int = 224,
    resize: int = 256,
) -> EncodedDataset:
    """ImageNet-LT (115,846 training images, 1,000 classes) or Places-LT (62,500 and 365).

    Args:
      dataset: where the images come from in TFDS: "imagenet_lt", which is the subset already, or
        "imagenet2012" (ImageNet-LT) or "places365_small" (Places-LT) with list files.
      data_dir: folder of prepared TensorFlow Datasets; None means TFDS_DATA_DIR, or else the
        default of TensorFlow Datasets.
      train_list, val_list, test_list: see `read_list`. Training and validation images are chosen
        from the training split, test images from the validation split. Without val_list nothing
        is held out.
      image_dir: in place of data_dir, the folder that the paths in the lists begin in.
      size, resize: see `EncodedDataset`.

    Raises:
      ValueError: no such dataset.
      DataError: the data is not there or cannot be read, or arguments contradict each other.
    """
    if dataset not in ("imagenet_lt", "imagenet2012", "places365_small"):
        raise ValueError(
            f"unknown data set {dataset!r}: the known ones are imagenet_lt, imagenet2012, "
            "places365_small"
        )
    name = "places_lt" if dataset == "places365_small" else "imagenet_lt"
    mean, std = _IMAGENET
    if image_dir is not None:
        folder_splits = _from_folder(data_dir, image_dir, train_list, val_list, test_list)
        return _of_lists(name, folder_splits, mean, std, f"images in {image_dir}", size, resize)
    lists = {"train": train_list, "val": val_list, "test": test_list}
    if dataset == "imagenet_lt":
        if any(path is not None for path in lists.values()):
            raise DataError(
                "imagenet_lt is chosen already: lists go with imagenet2012, places365_small or "
                "--image-dir"
            )
        return _imagenet_lt(data_dir, size, resize)
    if train_list is None or test_list is None:
        raise DataError(
            f"{dataset} is the whole set: give --train-list and --test-list to choose from it"
        )
    file_name = "filename" if dataset == "places365_small" else "file_name"
    features = {"image", "label", file_name}
    builder = prepared_builder(dataset, data_dir, features, prepare=False)
    wholes: dict[str, TfdsSplit] = {}
    chosen: dict[str, Subset] = {}
    for split, path in lists.items():
        if path is not None:
            whole = _LISTED_IN[split]
            if whole not in wholes:
                wholes[whole] = TfdsSplit(builder.data_dir, whole)
            chosen[split] = select(wholes[whole], path, _classes(chosen.get("train")))
    source = f"TensorFlow Datasets {builder.info.full_name}"
    names = wholes["train"].class_names
    # Lists may number the classes in another way than TFDS.
    same = all(
        np.array_equal(part.labels, part.split.labels[part.rows]) for part in chosen.values()
    )
    data = _of_lists(name, chosen, mean, std, source, size, resize)
    if same and data.num_classes == len(names):
        data = dataclasses.replace(data, class_names=names)
    return data


def _imagenet_lt(data_dir: str | None, size: int, resize: int) -> EncodedDataset:
    builder = prepared_builder("imagenet_lt", data_dir, {"image", "label"}, prepare=False)
    train, val, test = (TfdsSplit(builder.data_dir, s) for s in ("train", "validation", "test"))
    mean, std = _IMAGENET
    return EncodedDataset(
        name="imagenet_lt",
        train=train,
        val=val,
        test=test,
        num_classes=len(train.class_names),
        mean=mean,
        std=std,
        source=f"TensorFlow Datasets {builder.info.full_name}",
        class_names=train.class_names,
        size=size,
        resize=resize,
    )


def _from_folder(
    data_dir: str | None,
    image_dir: PathLike,
    train_list: PathLike | None,
    val_list: PathLike | None,
    test_list: PathLike | None,
) -> dict[str, FolderSplit]:
    if data_dir is not None:
        raise DataError("--data-dir and --image-dir are two places for the images: give one")
    if train_list is None or test_list is None:
        raise DataError("--image-dir needs --train-list and --test-list: they hold the labels")
    lists = {"train": train_list, "val": val_list, "test": test_list}
    splits: dict[str, FolderSplit] = {}
    for split, path in lists.items():
        if path is not None:
            splits[split] = folder_split(image_dir, path, _classes(splits.get("train")))
    return splits


def _classes(train: Split | None) -> int | None:
    """How many classes a training list numbers, once it is read."""
    return None if train is None else 1 + int(train.labels.max())


def _refuse_shared(splits: dict[str, Any]) -> None:
    """DataError for an image that two lists name: what is learnt from says nothing as a test."""
    for (one, a), (other, b) in itertools.combinations(splits.items(), 2):
        if isinstance(a, FolderSplit):
            both = np.intersect1d(a.files, b.files)
        else:
            both = np.intersect1d(a.rows, b.rows) if a.split is b.split else np.array([])
        if len(both):
            first = (both[0] if isinstance(a, FolderSplit) else a.split.names[both[0]]).decode()
            raise DataError(
                f"the {one} and the {other} list share {noun(len(both), 'image')} ({first}): "
                "nothing may be in two of them"
            )


def _of_lists(
    name: str,
    splits: dict[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    source: str,
    size: int,
    resize: int,
) -> EncodedDataset:
    """A data set whose classes are those that its training list numbers."""
    parts: dict[str, Split] = splits
    _refuse_shared(splits)
    return EncodedDataset(
        name=name,
        train=parts["train"],
        val=parts.get("val"),
        test=parts["test"],
        num_classes=cast(int, _classes(parts["train"])),
        mean=mean,
        std=std,
        source=f"{source}, chosen and labelled by lists",
        size=size,
        resize=resize,
    )
