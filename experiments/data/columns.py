"""Numbers for a network, made of a table's columns by what its training rows say."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, OneHotEncoder, StandardScaler

from experiments.data.table import Table
from experiments.host.errors import DataError

__all__ = ["Fitted", "fit"]

MISSING = "(missing)"
# In deviations: no row that was not trained on leaves the range of float32.
_FARTHEST = 1e6
_MOST_WORDS = 20_000


class Fitted:
    """What was fitted on training rows; called with any rows, it makes float32[n, d] of them.

    Attributes:
      names: [d], of the numbers.
      schema: a frame without rows, the columns that it takes.
      width: of the table that they are of.
      constant: the columns that it leaves out, the same in all rows that it was fitted on.
    """

    def __init__(
        self,
        pipeline: ColumnTransformer,
        schema: pd.DataFrame,
        width: int | None,
        constant: tuple[str, ...],
    ):
        self.pipeline, self.schema, self.width, self.constant = pipeline, schema, width, constant
        self.names: tuple[str, ...] = _names(pipeline)

    def __call__(self, columns: pd.DataFrame) -> NDArray[np.float32]:
        found = np.asarray(self.pipeline.transform(columns[list(self.schema.columns)]))
        return np.clip(found, -_FARTHEST, _FARTHEST).astype(np.float32)


def fit(
    table: Table,
    rows: NDArray[np.int64],
    *,
    text_dims: int = 128,
    max_categories: int = 32,
    seed: int = 0,
) -> Fitted:
    """The pipeline of a table, fitted on these rows alone.

    Numbers: missing ones become the median, with a column that flags them, then mean 0, deviation
    1. Categories: one column each, a missing one its own, the rarest together in one "infrequent",
    to which values never seen belong, too. Text: TF-IDF of words and pairs of words, truncated SVD
    to text_dims, each row scaled to a root mean square of 1. Columns that are the same in all
    these rows are left out. No number is beyond 1e6 deviations.

    Args:
      table: whose columns.
      rows: row numbers to fit on, those that are trained on.
      text_dims: numbers a column of text becomes, at most.
      max_categories: columns a category becomes, at most.
      seed: of the truncated SVD.

    Raises:
      DataError: no column differs between these rows.
    """
    train = table.columns.iloc[rows]
    varying = [name for name in train.columns if train[name].nunique(dropna=False) > 1]
    text = [name for name in varying if name in table.text]
    words = [name for name in varying if name not in text and train[name].dtype == object]
    numbers = [name for name in varying if train[name].dtype != object]
    pipeline = ColumnTransformer(
        [
            ("numbers", _of_numbers(), numbers),
            ("words", _of_words(max_categories), words),
            *((f"text {k}", _Text(text_dims, seed), name) for k, name in enumerate(text)),
        ],
        verbose_feature_names_out=True,  # a number "a_b" beside the category b of "a"
    )
    if not varying:
        raise DataError(f"{table.name}: every column is the same in all training rows")
    pipeline.fit(train[varying])
    if not len(pipeline.get_feature_names_out()):
        raise DataError(f"{table.name}: no text has a word in it")
    constant = tuple(name for name in train.columns if name not in set(varying))
    return Fitted(pipeline, table.columns[varying].iloc[:0], table.width, constant)


def _names(pipeline: ColumnTransformer) -> tuple[str, ...]:
    """Of the features, without that of their kind where it is not needed to tell them apart."""
    whole = [str(name) for name in pipeline.get_feature_names_out()]
    plain = [name.split("__", 1)[1] for name in whole]
    times = Counter(plain)
    told = [full if times[short] > 1 else short for full, short in zip(whole, plain, strict=True)]
    seen: Counter[str] = Counter()
    found = []
    for name in told:  # two categories may still make one name: "b_c" of "a", "c" of "a_b"
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def _of_numbers() -> Any:
    return make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())


def _of_words(most: int) -> Any:
    return make_pipeline(
        SimpleImputer(strategy="constant", fill_value=MISSING, missing_values=None),
        OneHotEncoder(
            handle_unknown="infrequent_if_exist", max_categories=most, sparse_output=False,
            dtype=np.float32,
        ),
    )  # fmt: skip


class _Text(TransformerMixin, BaseEstimator):
    """One column of text as `dims` numbers at most; none where it has no words."""

    def __init__(self, dims: int, seed: int):
        self.dims, self.seed = dims, seed

    def fit(self, texts: pd.Series, y: Any = None) -> _Text:
        self.name_ = str(texts.name)
        held = self._plain(texts)
        for least in (2, 1):  # words of several rows; of a few rows, any
            self.words_ = TfidfVectorizer(
                sublinear_tf=True, min_df=least, ngram_range=(1, 2), max_features=_MOST_WORDS,
                dtype=np.float32,
            )  # fmt: skip
            try:
                weights = self.words_.fit_transform(held)
                break
            except ValueError:  # no word is left
                self.dims_ = 0
        else:
            return self
        self.dims_ = min(self.dims, *weights.shape)
        svd = TruncatedSVD(self.dims_, n_iter=2, random_state=self.seed)
        lone = weights.shape[1] == 1  # one word is one number as it is, which the SVD refuses
        self.svd_ = make_pipeline(*([] if lone else [svd]), Normalizer())
        with warnings.catch_warnings():  # texts all alike have no variance to explain
            warnings.simplefilter("ignore", RuntimeWarning)
            self.svd_.fit(weights)
        return self

    def transform(self, texts: pd.Series) -> NDArray[np.float32]:
        if self.dims_ == 0:
            return np.zeros((len(texts), 0), np.float32)
        found = self.svd_.transform(self.words_.transform(self._plain(texts)))
        found = found.toarray() if issparse(found) else found
        return np.asarray(found * np.sqrt(self.dims_), np.float32)

    def get_feature_names_out(self, names: Any = None) -> NDArray[Any]:
        return np.array([f"{self.name_} {k}" for k in range(self.dims_)])

    @staticmethod
    def _plain(texts: pd.Series) -> list[str]:
        return [text if isinstance(text, str) else "" for text in texts]
