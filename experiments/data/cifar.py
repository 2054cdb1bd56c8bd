"""CIFAR-10-LT and CIFAR-100-LT, cut out of TensorFlow Datasets' CIFAR without TensorFlow.

Reading prepared data needs tensorflow-datasets and pillow only; preparing (downloading) it needs
TensorFlow too. Neither is imported before `load_cifar_lt` is called.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import imbsam_jax
from experiments.data import DataError, Dataset
from experiments.data.prepared import check_shards, check_split, prepared_builder, reading
from experiments.host.inputs import said_by

__all__ = ["load_cifar_lt"]

# The constants every long-tail code base uses, for both sets (they were measured on CIFAR-10).
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2023, 0.1994, 0.2010)
# Shot thresholds (many above, few below) of the papers that report each set.
_SHOTS = {"cifar10": (1000, 200), "cifar100": (100, 20)}
_CLASSES = {"cifar10": 10, "cifar100": 100}
_CHUNK = 5000


class _Split(NamedTuple):
    """One split in the order of its ids, images still encoded."""

    labels: NDArray[np.int32]
    images: list[bytes]


def load_cifar_lt(
    dataset: Literal["cifar100", "cifar10"],
    *,
    imbalance_factor: float,
    data_dir: str | None = None,
    subset: Literal["first", "shuffled"] = "first",
    subset_seed: int = 0,
    kind: Literal["exp", "step"] = "exp",
) -> Dataset:
    """Training images thinned out to n_i = int(n_0 * IF^(-i / (K - 1))), the test set whole.

    Class i keeps n_i images of the original training set, put in the order of their ids first
    (prepared data is shuffled):

    * subset "first": the first n_i, as the ImbSAM, SSE-SAM and weight-balancing code does;
    * subset "shuffled": class by class in label order, shuffle the class's indices with
      `np.random.RandomState(subset_seed)` and take the first n_i, as LDAM and its successors do.

    The two give different images: results on them are not on the same data.

    Args:
      dataset: "cifar100" or "cifar10".
      imbalance_factor: largest over smallest class, at least 1 (100, not 0.01).
      data_dir: folder of prepared TensorFlow Datasets; None means the environment variable
        TFDS_DATA_DIR, or else the default of TensorFlow Datasets.
      subset: which images, see above.
      subset_seed: for "shuffled" only; the published code uses 0.
      kind: "exp" as above, or "step" (half of the classes full, the others n_0 / IF).

    Returns:
      A Dataset, training images class by class, test images by id.

    Raises:
      ValueError: an argument is out of its range.
      DataError: the data is not there and cannot be prepared, or cannot be read.
    """
    if dataset not in _SHOTS:
        raise ValueError(f"unknown data set {dataset!r}: the known ones are {', '.join(_SHOTS)}")
    if subset not in ("first", "shuffled"):
        raise ValueError(f"unknown subset {subset!r}: the known ones are first, shuffled")
    builder = prepared_builder(dataset, data_dir, {"id", "image", "label"}, prepare=True)
    for split in ("train", "test"):
        found = check_split(builder, split)
        if found != _CLASSES[dataset]:
            raise DataError(
                f"{builder.data_dir} has {found} classes, {dataset} {_CLASSES[dataset]}"
            )
        check_shards(builder, split)
    classes = builder.info.features["label"]
    largest = builder.info.splits["train"].num_examples // classes.num_classes
    counts = imbsam_jax.long_tail_counts(classes.num_classes, largest, imbalance_factor, kind=kind)
    train = _read(builder, "train")
    test = _read(builder, "test")
    chosen = _choose(train.labels, counts, subset, subset_seed)
    shape = builder.info.features["image"].shape
    rule = "first n_i by id" if subset == "first" else f"shuffled, seed {subset_seed}"
    many_above, few_below = _SHOTS[dataset]
    return Dataset(
        name=dataset,
        train_images=_decode([train.images[i] for i in chosen], shape, builder.data_dir),
        train_labels=train.labels[chosen],
        test_images=_decode(test.images, shape, builder.data_dir),
        test_labels=test.labels,
        num_classes=classes.num_classes,
        mean=_MEAN,
        std=_STD,
        many_above=many_above,
        few_below=few_below,
        source=f"TensorFlow Datasets {builder.info.full_name}, long-tailed ({kind}, imbalance "
        f"factor {imbalance_factor:g}; of each class {rule})",
        class_names=tuple(classes.names),
        imbalance_factor=imbalance_factor,
        # Of the other kind there is no flag, and no published result on the same images.
        subset=subset if kind == "exp" else None,
        subset_seed=subset_seed if kind == "exp" else None,
    )


def _choose(
    labels: NDArray[np.int32], counts: NDArray[np.int64], subset: str, seed: int
) -> NDArray[np.int64]:
    """Indices of the kept examples, class by class; labels are in id order."""
    rng = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise DataError(
                f"class {label} has {len(members)} training images, {count} are needed: "
                "the prepared data is incomplete"
            )
        if subset == "shuffled":
            # One generator for all classes: what class i keeps depends on the sizes before it.
            rng.shuffle(members)
        chosen.append(members[:count])
    return np.concatenate(chosen)


def _read(builder: Any, split: str) -> _Split:
    """Every example of a split, in id order; nothing is decoded yet."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    records: list[dict[str, Any]] = []
    with reading(builder, split):
        source = builder.as_data_source(split, decoders=decoders)
        # In chunks: one record at a time takes three times as long.
        for start in range(0, len(source), _CHUNK):
            stop = min(start + _CHUNK, len(source))
            records += source.__getitems__(list(range(start, stop)))
    # Of some truncated shards array_record reads empty records instead of raising.
    if any(record[key] is None for record in records for key in ("id", "label", "image")):
        raise DataError(
            f"the {split} split in {builder.data_dir} holds empty records: the files "
            "are damaged, prepare them again"
        )
    records.sort(key=lambda record: _natural(record["id"]))
    labels = np.array([record["label"] for record in records], np.int32)
    return _Split(labels, [record["image"] for record in records])


def _natural(name: bytes) -> list[bytes | int]:
    """Sort key under which train_9 comes before train_10."""
    return [int(part) if part.isdigit() else part for part in re.split(rb"(\d+)", name)]


def _decode(
    encoded: Sequence[bytes], shape: tuple[int, ...], where: Any = "the data"
) -> NDArray[np.uint8]:
    """PNG or JPEG files to uint8[N, H, W, 3]."""
    from PIL import Image

    images = np.empty((len(encoded), *shape), np.uint8)
    for i, data in enumerate(encoded):
        try:
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # on damaged files Pillow's readers raise nearly anything
            raise DataError(f"{where}: an image cannot be decoded: {said_by(error)}") from error
        if pixels.shape != shape:
            raise DataError(f"{where}: an image has shape {pixels.shape} instead of {shape}")
        images[i] = pixels
    return images
