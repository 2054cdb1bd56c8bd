"""Tiny TFDS data sets of the schemas of the large ones, prepared as array_record by Pillow alone.

Every class has a prototype (a coarse coloured pattern) and its images are that with noise, so a
model learns them and `nearest_class` tells the class of a decoded picture. Training counts are
long-tailed; test splits are balanced.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import imbsam_jax

_VERSIONS = {
    "i_naturalist2018": "1.0.0",
    "imagenet_lt": "1.0.0",
    "imagenet2012": "5.1.0",
    "places365_small": "2.1.0",
}
_SPLITS = {
    "i_naturalist2018": ("train", "validation"),
    "imagenet_lt": ("train", "validation", "test"),
    "imagenet2012": ("train", "validation"),
    "places365_small": ("train", "validation"),
}
# The feature that names an image; i_naturalist2018 has its id.
_NAMES = {"i_naturalist2018": "id", "places365_small": "filename"}
_GRID = 4


@dataclasses.dataclass(frozen=True)
class Tiny:
    """What was prepared.

    Attributes:
      folder: the --data-dir that holds it.
      counts: int64[C], training images of each class.
      labels: of each split, the label of each image by its name; a prepared set is shuffled.
      corrupt: names of the training images that were cut short.
    """

    folder: Path
    counts: np.ndarray
    labels: dict[str, dict[str, int]]
    corrupt: frozenset[str]


def make(
    folder: Path,
    name: str = "i_naturalist2018",
    *,
    num_classes: int = 8,
    largest: int = 20,
    smallest: int = 2,
    per_class: int = 2,
    sides: tuple[int, int] = (24, 48),
    corrupt: int = 0,
    empty: Sequence[int] = (),
    seed: int = 0,
) -> Tiny:
    """Prepares a data set of that name and schema, without TensorFlow.

    Args:
      folder: becomes the data directory.
      name: "i_naturalist2018", "imagenet_lt", "imagenet2012" or "places365_small".
      num_classes: class i has about largest * (largest / smallest)^(-i / (C - 1)) images.
      largest, smallest: training images of the first and the last class.
      per_class: images of each class in the other splits.
      sides: each image is this many pixels wide and high, drawn anew from lo..hi.
      corrupt: that many training images, of the largest class first, are cut in half.
      empty: classes without a training image.
      seed: of the noise, not of the prototypes.
    """
    counts = imbsam_jax.long_tail_counts(num_classes, largest, largest / smallest)
    counts[list(empty)] = 0
    rng = np.random.default_rng(seed)
    labels: dict[str, dict[str, int]] = {}
    files: dict[str, dict[str, bytes]] = {}
    for split in _SPLITS[name]:
        members = counts if split == "train" else np.full(num_classes, per_class)
        rows = [
            (_name(name, split, c, i), c) for c in range(num_classes) for i in range(members[c])
        ]
        labels[split] = dict(rows)
        files[split] = {row: _jpeg(c, sides, rng) for row, c in rows}
    cut = frozenset(list(labels["train"])[:corrupt])
    for row in cut:
        files["train"][row] = files["train"][row][: len(files["train"][row]) // 2]
    with _builder(name, num_classes) as builder_class:
        builder = builder_class(data_dir=str(folder), file_format="array_record")
        builder.files, builder.labels = files, labels
        builder.download_and_prepare()
    return Tiny(folder, counts, labels, cut)


@functools.cache
def prototype(label: int) -> np.ndarray:
    """uint8[4, 4, 3], the pattern of a class."""
    return np.random.default_rng((7, label)).integers(40, 216, (_GRID, _GRID, 3), np.uint8)


def nearest_class(image: np.ndarray, num_classes: int) -> int:
    """The class whose prototype is nearest to a whole (not a cropped) image."""
    cells = [np.array_split(rows, _GRID, 1) for rows in np.array_split(image, _GRID, 0)]
    means = np.array([[cell.mean((0, 1)) for cell in row] for row in cells])
    return int(np.argmin([np.square(means - prototype(c)).sum() for c in range(num_classes)]))


def _name(name: str, split: str, label: int, index: int) -> str:
    """As the real set names its images; base names of places365_small repeat across classes."""
    if name == "i_naturalist2018":
        return f"{split}{label:05d}x{index:05d}"
    if name == "places365_small":
        if split == "train":
            return f"data_256/{'abc'[label % 3]}/class{label}/{index + 1:08d}.jpg"
        return f"val_256/Places365_val_{1000 * label + index:08d}.jpg"
    wnid = f"n{10000000 + label}"
    if name == "imagenet_lt" and split == "validation":
        return f"{wnid}_{5000 + index}.JPEG"
    return (
        f"{wnid}_{index}.JPEG"
        if split == "train"
        else f"ILSVRC2012_val_{label:04d}{index:04d}.JPEG"
    )


def _jpeg(label: int, sides: tuple[int, int], rng: np.random.Generator) -> bytes:
    from PIL import Image

    width, height = rng.integers(sides[0], sides[1], 2, endpoint=True)
    pixels = prototype(label)[np.arange(height) * _GRID // height][
        :, np.arange(width) * _GRID // width
    ]
    pixels = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


@contextlib.contextmanager
def _builder(name: str, num_classes: int) -> Iterator[Any]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def classes(stem: str, count: int) -> Any:
        return tfds.features.ClassLabel(names=[f"{stem} {i}" for i in range(count)])

    image = {
        "imagenet2012": {"encoding_format": "jpeg"},
        "places365_small": {"shape": (256, 256, 3)},
    }.get(name, {})
    features = {
        "image": tfds.features.Image(**image),
        "label": classes("species", num_classes),
        _NAMES.get(name, "file_name"): tfds.features.Text(),
    }
    if name == "i_naturalist2018":
        features["supercategory"] = classes("kingdom", 14)
    tfds.disable_progress_bar()
    with registered.skip_registration():

        class TinyBuilder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(_VERSIONS[name])
            files: dict[str, dict[str, bytes]]
            labels: dict[str, dict[str, int]]

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: self._generate_examples(split) for split in self.files}

            def _generate_examples(self, split: str) -> Any:
                for row, label in self.labels[split].items():
                    example = {
                        "image": self.files[split][row],
                        "label": label,
                        _NAMES.get(name, "file_name"): row,
                    }
                    if name == "i_naturalist2018":
                        example["supercategory"] = label % 14
                    yield row, example

        TinyBuilder.name = name
        yield TinyBuilder
