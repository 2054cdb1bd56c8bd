"""Numbers of columns, fitted on training rows alone, and the rows that those are."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from experiments.data.columns import _Text, fit
from experiments.data.splits import splits
from experiments.data.table import Table
from experiments.data.usable import usable
from experiments.host.errors import DataError, RunError


def table_of(columns, labels=None, **more):
    frame = usable(pd.DataFrame(columns), more.get("text", ()), [])
    labels = np.arange(len(frame)) % 2 if labels is None else np.asarray(labels)
    names = tuple(f"c{k}" for k in range(labels.max() + 1))
    return Table(
        name="made", columns=frame, labels=labels.astype(np.int32), class_names=names, **more
    )


def objects(*values):
    return np.array(values, dtype=object)


def test_numbers_are_standardised_by_training_rows():
    table = table_of({"x": [1.0, 2, 3, 4, 1000, -1000]})
    found = fit(table, np.arange(4))(table.columns)
    expected = (table.columns[["x"]].to_numpy() - 2.5) / np.sqrt(1.25)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_missing_numbers_become_the_median_and_are_flagged():
    table = table_of({"x": [1.0, 3, np.nan, 11, np.nan], "z": [1.0, 2, 3, 4, np.nan]})
    fitted = fit(table, np.arange(4))
    found = fitted(table.columns)
    assert fitted.names == ("x", "z", "missingindicator_x")
    x = np.array([1, 3, 3, 11.0])
    np.testing.assert_allclose(found[:4, 0], (x - x.mean()) / x.std(), rtol=1e-6)
    assert found[4, 0] == found[2, 0]
    np.testing.assert_allclose(found[4, 1], 0, atol=1e-7)  # the median, which is the mean, too
    flag = np.array([0, 0, 1, 0.0])
    np.testing.assert_allclose(found[:4, 2], (flag - 0.25) / flag.std(), rtol=1e-6)


def test_categories_with_missing_and_unseen_ones():
    table = table_of({"c": objects("a", "b", None, "a", "new", None)})
    fitted = fit(table, np.arange(4))
    assert fitted.names == ("c_(missing)", "c_a", "c_b")
    found = fitted(table.columns)
    np.testing.assert_array_equal(
        found, [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    )


def test_the_rarest_categories_share_a_column():
    values = ["a"] * 9 + ["b"] * 5 + [f"rare{k}" for k in range(12)]
    table = table_of({"c": objects(*values, "unseen")})
    fitted = fit(table, np.arange(26), max_categories=3)
    assert fitted.names == ("c_a", "c_b", "c_infrequent_sklearn")
    np.testing.assert_array_equal(fitted(table.columns)[[0, 9, 20, 26]], np.eye(3)[[0, 1, 2, 2]])


def test_constant_columns_are_left_out():
    table = table_of({"x": [1.0, 2, 3, 4], "same": 1.0, "gone": np.nan, "later": [0, 0, 0, 9.0]})
    fitted = fit(table, np.arange(3))
    assert fitted.names == ("x",)
    assert fitted.constant == ("same", "gone", "later")
    with pytest.raises(DataError, match="every column is the same"):
        fit(table, np.arange(1))


def test_rows_that_were_not_trained_on_change_nothing():
    rows = np.arange(30)
    columns = {
        "x": rows / 7,
        "c": objects(*np.array(["a", "b", "d"])[rows % 3]),
        "said": objects(*(f"word{k % 5} of words{k % 4} again" for k in rows)),
    }
    table = table_of(columns, text=("said",))
    other = pd.DataFrame(columns)
    other.loc[20:, "x"] = 1e9
    other.loc[20:, "c"] = "never"
    other.loc[20:, "said"] = "seen in no training row"
    train = rows[:20]
    changed = table_of(other, text=("said",))
    found = fit(table, train)(table.columns)
    np.testing.assert_array_equal(found[:20], fit(changed, train)(changed.columns)[:20])
    far = fit(table, train)(changed.columns)
    assert np.isfinite(far).all() and far.max() <= 1e6


def test_text_is_scaled_by_row_and_survives_being_saved():
    texts = objects(*(f"card lost number {k % 7} please help{k % 3}" for k in range(40)), "", None)
    table = table_of({"said": texts}, text=("said",))
    fitted = fit(table, np.arange(40), text_dims=4)
    found = fitted(table.columns)
    assert found.shape == (42, 4) and fitted.names[0] == "said 0"
    np.testing.assert_allclose((found[:40] ** 2).mean(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[40:], 0)  # no word, no direction
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted))(table.columns), found)


def test_how_many_columns_words_and_texts_become():
    """128 of a text and 32 of a category, where nothing else is asked for; or fewer rows."""
    rows = np.arange(264)
    table = table_of(
        {
            "c": objects(*(f"c{k % 40}" for k in rows)),
            "said": objects(*(f"w{k % 132} v{k % 131}" for k in rows)),
        },
        text=("said",),
    )
    names = fit(table, rows).names
    assert [sum(name.startswith(of) for name in names) for of in ("c_", "said ")] == [32, 128]
    few = fit(table, rows[:20]).names
    assert [sum(name.startswith(of) for name in few) for of in ("c_", "said ")] == [20, 20]


def test_of_a_text_words_and_pairs_of_words_of_several_rows_count():
    """By the logarithm of how often they stand there; where no row shares a word, any does."""
    made = _Text(64, 0).fit(pd.Series(["card was lost", "card was lost", "once"], name="said"))
    assert made.words_.get_feature_names_out().tolist() == [
        "card", "card was", "lost", "was", "was lost"
    ]  # fmt: skip
    weights = made.words_.transform(["lost lost card"]).toarray()[0]
    assert weights[2] / weights[0] == pytest.approx(1 + np.log(2))  # both of as many rows
    assert np.flatnonzero(weights).tolist() == [0, 2]
    alone = _Text(64, 0).fit(pd.Series(["card was", "lost"], name="said"))
    assert alone.words_.get_feature_names_out().tolist() == ["card", "card was", "lost", "was"]


def test_of_the_words_of_a_text_twenty_thousand_count():
    texts = pd.Series([" ".join(f"w{k}" for k in range(10_050))] * 2, name="said")
    assert len(_Text(1, 0).fit(texts).words_.get_feature_names_out()) == 20_000


def test_text_is_the_truncated_svd_of_its_words():
    """By scikit-learn's parts, called one after the other; by seed 0 where none is given."""
    texts = [f"card lost number {k % 7} please help{k % 3} w{k % 11}" for k in range(60)]
    table = table_of({"said": objects(*texts)}, text=("said",))
    weights = TfidfVectorizer(
        sublinear_tf=True, min_df=2, ngram_range=(1, 2), dtype=np.float32
    ).fit_transform(texts)
    for seed, given in ((0, {}), (3, {"seed": 3})):
        svd = TruncatedSVD(5, n_iter=2, random_state=seed).fit(weights)
        found = svd.transform(weights)
        expected = found / np.linalg.norm(found, axis=1, keepdims=True) * np.sqrt(5)
        made = fit(table, np.arange(60), text_dims=5, **given)(table.columns)
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


def test_names_of_columns_are_told_apart():
    table = table_of(
        {
            "a": objects("b_c", "x", "b_c", "x"), "a_b": objects("c", "y", "c", "y"),
            "said 0": [1.0, 2, 3, 4], "said": objects("one word", "a word", "word", "no word"),
            "p__q": [1.0, 2, 3, 5], "some": [1.0, np.nan, 1, 1],
        },
        text=("said",),
    )  # fmt: skip
    fitted = fit(table, np.arange(4), text_dims=1)
    assert fitted.names == (
        "numbers__said 0", "p__q", "some", "missingindicator_some", "words__a_b_c", "a_x",
        "words__a_b_c (2)", "a_b_y", "text 0__said 0",
    )  # fmt: skip
    assert fitted.constant == () and len(fitted.schema) == 0
    assert list(fitted.schema.columns) == list(table.columns.columns)
    one = table_of({"x": [1.0, 2, 3, 4], "same": 1.0})
    assert fit(one, np.arange(4)).constant == ("same",)


def test_a_text_without_words_beside_a_number_is_no_number():
    table = table_of({"x": [1.0, 2, 3, 4], "said": objects("!", "?", "!!", "??")}, text=("said",))
    fitted = fit(table, np.arange(4))
    assert fitted.names == ("x",) and fitted(table.columns).shape == (4, 1)


def test_texts_of_the_same_words_are_no_error():
    """They have no variance to explain, which scikit-learn warns of; of one word it has no SVD."""
    for words in ("two words", "word"):
        texts = (words, f"  {words}", words.upper(), f"{words}!", "other")
        table = table_of({"said": objects(*texts)}, text=("said",))
        found = fit(table, np.arange(4))(table.columns)
        assert found.shape == (5, 1 if words == "word" else 3)
        np.testing.assert_allclose((found[:4] ** 2).mean(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(found[4], 0)


def test_text_without_words():
    table = table_of({"said": objects("!", "?", "!!", "??")}, text=("said",))
    with pytest.raises(DataError, match="no text has a word"):
        fit(table, np.arange(4))


# ---- splits ---------------------------------------------------------------------------------


def labelled(counts, **more):
    labels = np.repeat(np.arange(len(counts)), counts)
    return table_of({"x": np.arange(len(labels), dtype=float)}, labels, **more)


COUNTS = (40, 11, 4, 3, 2)


def by_class(table, rows):
    return np.bincount(table.labels[rows], minlength=table.num_classes).tolist()


def test_each_class_in_each_part_by_its_share():
    table = labelled(COUNTS)
    found = splits(table, 5, seed=3)
    for split in found:
        # round(0.3 n) tested, at least one
        assert by_class(table, split.test) == [12, 3, 1, 1, 1]
        assert by_class(table, split.train) == [28, 8, 3, 2, 1]
        assert np.array_equal(np.sort(np.concatenate(split)), np.arange(60))
        assert all((np.diff(part) > 0).all() for part in split)
    assert len({split.test.tobytes() for split in found}) == 5


def test_however_large_the_share_a_row_of_each_class_is_trained_on():
    table = labelled(COUNTS)
    for split in splits(table, 2, test_share=0.98):
        assert by_class(table, split.test) == [39, 10, 3, 2, 1]
        assert by_class(table, split.train) == [1, 1, 1, 1, 1]


def test_seeds_decide_and_more_splits_change_none():
    table = labelled(COUNTS)
    few, many, other = splits(table, 2, seed=1), splits(table, 4, seed=1), splits(table, 2, seed=2)
    for a, b, c in zip(few, many, other, strict=False):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert not np.array_equal(a.test, c.test)
    with pytest.raises(RunError, match="a seed must be"):
        splits(table, 1, seed=-1)


def test_rows_of_one_id_stay_on_one_side():
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 60, 300)
    labels = (draw.random(300) < 0.15).astype(int) + 0
    table = table_of({"x": np.arange(300.0)}, labels, ids=ids)
    for split in splits(table, 5):
        parts = [set(ids[rows]) for rows in split]
        assert not parts[0] & parts[1]
        assert sum(map(len, parts)) == len(set(ids))
        assert all(min(by_class(table, rows)) > 0 for rows in split)
        assert 0.2 < len(split.test) / 300 < 0.4


def test_groups_are_stratified_within_labels():
    labels, groups = (
        np.repeat([0, 0, 1, 1], [20, 20, 10, 10]),
        np.repeat([0, 1, 0, 1], [20, 20, 10, 10]),
    )
    table = table_of({"x": np.arange(60.0)}, labels, groups=groups.astype(np.int32))
    for split in splits(table, 3):
        assert np.bincount(labels[split.test] + 2 * groups[split.test]).tolist() == [6, 3, 6, 3]


def test_a_class_of_single_cells_is_still_tested():
    groups = np.array([*[0] * 10, *range(4)], np.int32)
    table = table_of({"x": np.arange(14.0)}, [0] * 10 + [1] * 4, groups=groups)
    for split in splits(table, 3):
        assert by_class(table, split.test) == [3, 1] and by_class(table, split.train)[1] >= 1


def test_a_test_file_is_tested_in_every_split():
    table = labelled((20, 10), first_test_row=25)
    for split in splits(table, 3):
        assert split.test.tolist() == [25, 26, 27, 28, 29]
        assert by_class(table, split.train) == [20, 5]


def test_a_long_tail_is_cut_of_what_is_not_tested():
    table = labelled((100, 100, 90, 80))
    for split in splits(table, 3, cut=8):
        assert by_class(table, split.test) == [30, 30, 27, 24]
        assert by_class(table, split.train) == [70, 35, 17, 8]  # floor(70 * 8 ** (-c / 3))
    with pytest.raises(DataError, match=r"--cut 100 leaves a class of made without a row"):
        splits(table, 1, cut=100)


def test_a_large_table_takes_no_more_than_its_numbers():
    table = table_of({f"x{k}": np.arange(50_000.0) for k in range(4)}, np.arange(50_000) % 5)
    split = splits(table, 1)[0]
    found = fit(table, split.train)(table.columns)
    assert found.nbytes == 50_000 * 4 * 4
