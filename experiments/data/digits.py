"""scikit-learn's 8x8 digits, made long-tailed: real images that come with an installed package."""

from __future__ import annotations

import numpy as np

import imbsam_jax
from experiments.data import DataError, Dataset
from experiments.host.errors import check_seed

MAX_PER_CLASS = 100
TEST_SHARE = 0.4
VAL_PER_CLASS = 40


def load_digits_lt(imbalance_factor: float, seed: int) -> Dataset:
    """A long-tailed training set, a 40% test set and a validation set; the seed decides all three.

    Class 0 is always the largest: which digit it is, which images are trained on and which are
    tested on are drawn by the seed. Sizes are the same for every seed, so that runs can be mapped
    over seeds. The validation set is of images that are neither trained on nor tested on: 40 of a
    class, and 4 of the largest, which leaves no more. A long-tailed task has no such images to
    spare; they are here so that a radius need not be chosen on the test set.

    Args:
      imbalance_factor: largest (100 images) over smallest class, 1 to 100.
      seed: from 0 to 2**32 - 1.

    Returns:
      Dataset of images uint8[n, 8, 8, 1] with values 0 to 16; many is n > 40, few is n <= 8.
    """
    from sklearn.datasets import load_digits

    check_seed(seed)
    images, digits = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    try:
        counts = imbsam_jax.long_tail_counts(10, MAX_PER_CLASS, imbalance_factor)
    except ValueError as error:
        raise DataError(str(error)) from error
    draw = np.random.default_rng(seed)
    ranked = draw.permutation(10)
    # In the order of the digits, not of their ranks: then each seed's test set is as large.
    train: dict[int, np.ndarray] = {}
    test: dict[int, np.ndarray] = {}
    val: dict[int, np.ndarray] = {}
    sizes = np.bincount(digits)
    untested = min(int(size) - round(TEST_SHARE * size) for size in sizes)
    for digit in range(10):
        rank = int(np.flatnonzero(ranked == digit)[0])
        rows = draw.permutation(np.flatnonzero(digits == digit))
        held = round(TEST_SHARE * len(rows))
        used = held + counts[rank]
        test[rank], train[rank] = rows[:held], rows[held:used]
        val[rank] = rows[used : used + min(VAL_PER_CLASS, untested - counts[rank])]
    parts = {}
    for part, of_rank in (("train", train), ("test", test), ("val", val)):
        of_class = [of_rank[rank] for rank in sorted(of_rank)]
        parts[f"{part}_images"] = images[np.concatenate(of_class)]
        labels = np.repeat(np.arange(len(of_class)), [len(rows) for rows in of_class])
        parts[f"{part}_labels"] = labels.astype(np.int32)
    return Dataset(
        name="digits",
        **parts,
        num_classes=10,
        mean=(0.0,),
        std=(16 / 255,),
        many_above=40,
        few_below=9,
        source=(
            f"scikit-learn digits, long-tailed (exp, imbalance factor {imbalance_factor:g}, "
            f"seed {seed})"
        ),
        class_names=tuple(f"digit {digit}" for digit in ranked),
    )
