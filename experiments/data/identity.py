"""Which images a data set has: by their pixels, or by what tells files of one source apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.data.encoded import Split, Subset
from experiments.data.lists import FolderSplit
from experiments.data.records import TfdsSplit

__all__ = ["images_sha256", "repeated", "rows_sha256"]

_PARTS = ("train", "test", "val")


def images_sha256(dataset: Any) -> str:
    """Of the images by part: of their pixels, or of the paths, names and rows that choose files.

    What files hold is not read: of one `source` they are told apart by what they are called.
    """
    whole = hashlib.sha256()
    for part in _PARTS:
        for each in (part.encode(), *_told(dataset, part)):
            whole.update(hashlib.sha256(each).digest())
    return whole.hexdigest()


def rows_sha256(dataset: Any) -> dict[str, str]:
    """Of each part which images it has, in which order and of which class."""
    found = {}
    for part in _PARTS:
        labels = getattr(dataset, f"{part}_labels")
        if labels is not None:
            whole = hashlib.sha256(np.ascontiguousarray(labels, "<i4").data)
            for each in _told(dataset, part):
                whole.update(hashlib.sha256(each).digest())
            found[part] = whole.hexdigest()[:16]
    return found


def repeated(dataset: Any, part: str) -> int:
    """How many images of a part in memory are, pixel by pixel, among those that are trained on."""
    seen = {image.tobytes() for image in dataset.train_images}
    return sum(image.tobytes() in seen for image in getattr(dataset, f"{part}_images"))


def _told(dataset: Any, part: str) -> Iterator[Any]:
    """What tells the images of a part from others, of a data set in memory or in files."""
    images, split = getattr(dataset, f"{part}_images", None), getattr(dataset, part, None)
    if images is not None:
        yield f"{images.dtype} {images.shape}".encode()
        yield np.ascontiguousarray(images).data
    elif split is not None:
        yield from _chosen(split)


def _chosen(split: Split) -> Iterator[bytes]:
    """What tells the files of a split from others of its source."""
    if isinstance(split, Subset):
        yield from _chosen(split.split)
        yield np.ascontiguousarray(split.rows, "<i8").tobytes()
    elif isinstance(split, FolderSplit):
        yield b"\0".join(split.files.tolist())
    elif isinstance(split, TfdsSplit):
        yield split.split.encode()
        yield b"" if split.names is None else b"\0".join(split.names.tolist())
    else:
        raise TypeError(f"what are the images of a {type(split).__name__}?")
