"""Which images a data set has: by their pixels, or by what tells files of one source apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.data.encoded import EncodedDataset, Split, Subset
from experiments.data.lists import FolderSplit
from experiments.data.records import TfdsSplit

__all__ = ["images_sha256", "rows_sha256"]

_PARTS = ("train", "test", "val")


def images_sha256(dataset: Any) -> str:
    """Of the images by part: of their pixels, or of the paths, names and rows that choose files.

    What files hold is not read: of one `source` they are told apart by what they are called.
    """
    whole = hashlib.sha256()
    for part in _PARTS:
        split, images = getattr(dataset, part, None), getattr(dataset, f"{part}_images", None)
        told: list[bytes | memoryview] = [part.encode()]
        if images is not None:
            told += [f"{images.dtype} {images.shape}".encode(), np.ascontiguousarray(images).data]
        elif split is not None:
            told += _chosen(split)
        for each in told:
            whole.update(hashlib.sha256(each).digest())
    return whole.hexdigest()


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


def rows_sha256(dataset: EncodedDataset) -> dict[str, str]:
    """Of each part which images it has, in which order and of which class."""
    found = {}
    for part in _PARTS:
        split = getattr(dataset, part)
        if split is not None:
            whole = hashlib.sha256(np.ascontiguousarray(split.labels, "<i4").data)
            for each in _chosen(split):
                whole.update(hashlib.sha256(each).digest())
            found[part] = whole.hexdigest()[:16]
    return found
