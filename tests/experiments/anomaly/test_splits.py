"""ADBench's splits, as its own generator drew them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from experiments.anomaly import command as anomaly
from experiments.anomaly.tables import load_tables, scaled, split
from experiments.host.errors import DataError
from made_tables import made_table


@pytest.mark.parametrize("n", [300, 2000, 10400])
@pytest.mark.parametrize("seed", [0, 7])
def test_split_draws_what_numpys_global_generator_draws(n: int, seed: int) -> None:
    table = made_table(n, n // 9, width=1)
    before = np.random.get_state()
    np.random.seed(seed)  # what ADBench does, in its order
    rows = np.arange(n)
    if n < 1000:
        np.random.seed(seed)
        rows = np.random.choice(n, 1000, replace=True)
    if n > 10000:
        np.random.seed(seed)
        rows = np.random.choice(n, 10000, replace=False)
    x, y = rows[:, None], table.labels[rows]
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.3, shuffle=True, stratify=y
    )
    anomalies = np.where(y_train == 1)[0]
    labelled = np.random.choice(anomalies, math.ceil(0.25 * len(anomalies)), replace=False)
    np.random.set_state(before)

    found = split(table, seed=seed, label_ratio=0.25)
    np.testing.assert_array_equal(found.train_rows, x_train[:, 0])
    np.testing.assert_array_equal(found.test_rows, x_test[:, 0])
    np.testing.assert_array_equal(found.test_labels, y_test)
    np.testing.assert_array_equal(np.flatnonzero(found.train_labels), np.sort(labelled))
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_splits_are_those_adbench_recorded(adbench_dir: str, recorded: Any) -> None:
    compared = 0
    for table in load_tables(adbench_dir):
        for seed in range(3):
            for protocol, tag in (("adbench", ""), ("nodup", "nodup__")):
                key = f"{table.name}__seed{seed}__{tag}"
                if f"{key}train_idx" not in recorded:
                    continue  # of sets that are not resampled there is no second split
                found = split(table, seed=seed, label_ratio=0.25, protocol=protocol)
                names = ("train_idx", "train_y", "test_idx", "test_y")
                for name, values in zip(names, found, strict=True):
                    np.testing.assert_array_equal(values, recorded[key + name])
                compared += 1
    assert compared == 14 * 3 + 12 * 3


def test_protocols_differ_in_what_they_say() -> None:
    table = made_table(400, 60)
    by_protocol = {p: split(table, seed=3, label_ratio=0.1, protocol=p) for p in anomaly.PROTOCOLS}
    adbench, clean, full = (by_protocol[p] for p in ("adbench", "clean", "full"))
    truth = table.labels[adbench.train_rows]
    assert adbench.train_labels.sum() == math.ceil(0.1 * truth.sum())
    assert not np.any(adbench.train_labels > truth)
    assert set(adbench.train_rows) & set(adbench.test_rows)  # copies on both sides

    kept = (truth == 0) | (adbench.train_labels == 1)
    np.testing.assert_array_equal(clean.train_rows, adbench.train_rows[kept])
    np.testing.assert_array_equal(clean.train_labels, table.labels[clean.train_rows])
    np.testing.assert_array_equal(full.train_rows, adbench.train_rows)
    np.testing.assert_array_equal(full.train_labels, truth)
    for other in (clean, full):
        np.testing.assert_array_equal(other.test_rows, adbench.test_rows)

    nodup = by_protocol["nodup"]
    rows = np.concatenate([nodup.train_rows, nodup.test_rows])
    np.testing.assert_array_equal(np.sort(rows), np.arange(400))


@pytest.mark.parametrize("n", [1000, 10000])
def test_at_either_bound_nothing_is_drawn_before_the_split(n: int) -> None:
    """Resampled are fewer than 1000 rows, cut are more than 10000."""
    table = made_table(n, n // 10, width=1)
    drawn = split(table, seed=1)
    train, test = train_test_split(
        np.arange(n), test_size=0.3, stratify=table.labels, random_state=np.random.RandomState(1)
    )
    np.testing.assert_array_equal(drawn.train_rows, train)
    np.testing.assert_array_equal(drawn.test_rows, test)


@pytest.mark.parametrize("value", [0, 1])
def test_two_examples_of_a_kind_are_enough_to_train_and_to_test(value: int) -> None:
    for number in (1, 2):
        table = made_table(1000, number, width=1)
        table = table._replace(labels=table.labels if value else 1 - table.labels)
        if number == 1:
            with pytest.raises(DataError, match=rf"t\.npz: 1 .* \(label {value}\) among the 1000"):
                split(table, seed=0)
            continue
        drawn = split(table, seed=0, label_ratio=1.0)
        truth = table.labels[drawn.train_rows]
        assert (truth == value).sum() == (drawn.test_labels == value).sum() == 1


def test_ratios_and_protocols_that_there_are_not() -> None:
    table = made_table(1000, 100, width=1)
    for ratio in (-0.1, 0, 1.0001, 2):
        with pytest.raises(ValueError, match=rf"label_ratio must lie in \(0, 1\], got {ratio}"):
            split(table, seed=0, label_ratio=ratio)
    with pytest.raises(ValueError, match="one of adbench, clean, full, nodup, got 'dup'"):
        split(table, seed=0, protocol="dup")


def test_a_quarter_is_labelled_unless_another_part_is_asked_for() -> None:
    assert split(made_table(1000, 80, width=1), seed=0).train_labels.sum() == 56 / 4


def test_at_least_one_anomaly_is_labelled() -> None:
    assert split(made_table(2000, 40), seed=0, label_ratio=0.001).train_labels.sum() == 1
    drawn = split(made_table(2000, 40), seed=0, label_ratio=1.0)
    assert drawn.train_labels.sum() == 28


def test_scaled_by_the_training_rows_alone() -> None:
    table = made_table(1200, 100)
    drawn = split(table, seed=0)
    arrays = scaled(table, drawn)
    low, high = (f(table.features[drawn.train_rows], axis=0) for f in (np.min, np.max))
    expected = (table.features[drawn.test_rows] - low) / (high - low)
    assert arrays.train.dtype == arrays.test.dtype == np.float32
    assert arrays.train.min() >= 0 and arrays.train.max() <= 1 + 1e-6
    np.testing.assert_allclose(arrays.test, expected, atol=2e-6)
    assert arrays.test.max() > 1  # not clipped


@pytest.mark.parametrize("number", [1, 1e-7, 1e-12])
@pytest.mark.parametrize("offset", [0, 1.7e9])
def test_columns_in_small_units_or_far_from_zero_are_scaled_like_others(
    tmp_path: Path, number: float, offset: float
) -> None:
    column = np.arange(40) % 7 * 8.0
    x = np.stack([column * number, column + offset, np.full(40, 1.7e9)], axis=1)
    np.savez(tmp_path / "t.npz", X=x, y=np.arange(40) % 4 == 0)
    (table,) = load_tables(tmp_path)
    arrays = scaled(table, split(table, seed=0))
    for part in arrays:
        np.testing.assert_allclose(part[:, :2], np.rint(part[:, :2] * 6) / 6, atol=1e-6)
        np.testing.assert_array_equal(part[:, 2], 0)
        assert part.dtype == np.float32 and part[:, :2].max(0).tolist() == pytest.approx([1, 1])


def test_bundled_data_needs_no_folder() -> None:
    tables = load_tables(None)
    names = [table.name for table in tables]
    assert names == ["breast_cancer", *(f"digits_{k}" for k in range(10))]
    assert [int(t.labels.sum()) for t in tables[:2]] == [212, 178]
    assert load_tables(None, ["digits_3"])[0].features.shape == (1797, 64)
    with pytest.raises(DataError, match=r"^data set digits_3 is named twice$"):
        load_tables(None, ["digits_4", "digits_3", "digits_3"])


def test_data_sets_named_twice_are_told_in_order() -> None:
    names = [f"digits_{k}" for k in range(9, 0, -1)]
    with pytest.raises(DataError, match=r"^data set digits_1 is named twice$"):
        load_tables(None, [*names, *names, "digits_0"])


def test_data_sets_of_a_folder_are_in_order_whatever_the_file_system_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "cadb":
        np.savez(tmp_path / f"{name}.npz", X=np.eye(4), y=np.arange(4) % 2)
    monkeypatch.setattr(Path, "glob", lambda self, _: [self / f"{name}.npz" for name in "cadb"])
    assert [table.name for table in load_tables(tmp_path)] == ["a", "b", "c", "d"]
    assert [table.name for table in load_tables(tmp_path, ["d", "b"])] == ["d", "b"]


def test_a_file_whose_name_no_table_could_hold_is_refused_before_training(tmp_path: Path) -> None:
    for name in ("a", "b\udcff"):
        np.savez(tmp_path / f"{name}.npz", X=np.eye(4), y=np.arange(4) % 2)
    with pytest.raises(DataError, match=r"^'b\\udcff.npz' in .* is no name in UTF-8: rename it"):
        load_tables(tmp_path)
    assert [table.name for table in load_tables(tmp_path, ["a"])] == ["a"]


_X = np.array([[0.0], [2.0], [1.0]])
_WIDE = np.array([[0, 3e38, -1], [0, -3e38, 1], [3e38, 0, 0]])
_HUGE = np.array([[0, 1e39], [0, 0], [np.nan, 0]])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros((3, 0))}, r"matrix of real numbers \[n, d\], not float64\[3, 0\]$"),
        ({"X": np.zeros((0, 3)), "y": np.zeros(0)}, r"not float64\[0, 3\]$"),
        ({"X": _X * 1j}, r"not complex128\[3, 1\]$"),
        ({"X": np.zeros((3, 1, 1))}, r"not float64\[3, 1, 1\]$"),
        ({"y": np.zeros((3, 1))}, r"each of the 3 rows of X, but has shape \[3, 1\]$"),
        ({"y": np.zeros(2)}, r"each of the 3 rows of X, but has shape \[2\]$"),
        ({"y": np.array(["0", "1", "0"])}, r"anomaly\), but holds '0' and 1 other values$"),
        ({"y": np.array([0j, 1, 0])}, r"anomaly\), but holds numbers of type complex128$"),
        ({"y": np.array([0, 1, 2])}, r"anomaly\), but holds 2$"),
        ({"y": np.array([0.5, 7, 2])}, r"anomaly\), but holds 0.5 and 2 other values$"),
        ({"X": _HUGE}, r"X\[0, 1\] is inf in float32 \(2 such features\): fill them in"),
        ({"X": _WIDE}, r"X\[:, 1\] spans more than float32 can hold \(1 such features\), so"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_table_are_told_what_is_wrong(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "t.npz", **{"X": _X, "y": np.array([0, 1, 0]), **arrays})
    with pytest.raises(DataError, match=words) as told:
        load_tables(tmp_path)
    assert str(told.value).startswith(f"{tmp_path / 't.npz'}: ")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64"])
def test_tables_may_be_of_any_real_numbers(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "t.npz", X=_X.astype(dtype), y=np.array([0, 1, 0]).astype(dtype))
    (table,) = load_tables(tmp_path)
    assert table.features.dtype == np.float32 and table.labels.dtype == np.int64
    assert table.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(table.features, _X.astype(dtype))
