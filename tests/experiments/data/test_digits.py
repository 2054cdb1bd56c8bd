"""The digits made long-tailed, against a loop over what scikit-learn ships."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data.digits import load_digits_lt
from experiments.host.errors import DataError, RunError

# 100 * 50^(-i / 9), rounded down; of a digit there are 174 to 183 images.
COUNTS = [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]


def test_every_part_is_of_images_of_its_own():
    images, digits = load_digits(return_X_y=True)
    data = load_digits_lt(50, 3)
    draw = np.random.default_rng(3)
    ranked = draw.permutation(10).tolist()
    train, test, val = ({rank: None for rank in range(10)} for _ in range(3))
    for digit in range(10):
        rank = ranked.index(digit)
        rows = draw.permutation([row for row, other in enumerate(digits) if other == digit])
        tested = round(0.4 * len(rows))  # 40%
        test[rank], rest = rows[:tested], rows[tested:]
        train[rank], rest = rest[: COUNTS[rank]], rest[COUNTS[rank] :]
        val[rank] = rest[: 4 if rank == 0 else 40]  # of the largest no more are left
    for part, rows in (("train", train), ("test", test), ("val", val)):
        found = getattr(data, f"{part}_images")
        whole = np.concatenate(list(rows.values()))
        np.testing.assert_array_equal(found.reshape(-1, 64), images[whole])
        assert found.shape[1:] == (8, 8, 1) and found.dtype == np.uint8
        labels = [rank for rank, of_class in rows.items() for _ in of_class]
        assert getattr(data, f"{part}_labels").tolist() == labels
    assert data.class_names == tuple(f"digit {digit}" for digit in ranked)


def test_what_is_said_of_the_digits():
    data = load_digits_lt(50, 3)
    assert (data.name, data.num_classes) == ("digits", 10)
    # Many over 40 images, few 8 or fewer; pixels of 0 to 16 become 0 to 1.
    assert (data.many_above, data.few_below) == (40, 9)
    assert data.mean == (0.0,) and data.std == (16 / 255,) and data.train_images.max() == 16
    assert data.source == "scikit-learn digits, long-tailed (exp, imbalance factor 50, seed 3)"


@pytest.mark.parametrize("factor", [1, 100])
def test_imbalance_factors_from_1_to_100(factor):
    counts = load_digits_lt(factor, 0).class_counts()
    assert counts[0] == 100 and counts[9] == 100 // factor
    for beyond in (0.99, 101):
        with pytest.raises(DataError, match="imbalance_factor"):
            load_digits_lt(beyond, 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_of_32_bits(seed):
    with pytest.raises(RunError, match="a seed must be"):
        load_digits_lt(50, seed)
