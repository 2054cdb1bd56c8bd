"""Reference lines from outside the family: scikit-learn's models, with their defaults."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits


def _trees(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=seed)


def _balanced_trees(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(class_weight="balanced", random_state=seed)


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=1000)


# By the value of --reference: what it is called in tables, and what makes it.
REFERENCES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "trees": ("gradient boosting", _trees),
    "balanced_trees": ("gradient boosting, balanced weights", _balanced_trees),
    "logistic": ("logistic regression, balanced weights", _logistic),
}


def probabilities(
    name: str,
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    classes: int,
    seed: int,
) -> NDArray[np.float64]:
    """float64[n, C] of the test rows; 0 for a class without a training row.

    Args:
      name: a key of REFERENCES.
      features: float32[N, d]; labels: int32[N].
      train, test: row numbers.
      classes: C.
      seed: of what the model draws.
    """
    model = REFERENCES[name][1](seed)
    # On a small table, and more so beside other work, threads wait for each other far longer than
    # they work.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a solver that has not converged: it is a reference
        model.fit(features[train], labels[train])
    found = np.zeros((len(test), classes))
    found[:, model.classes_] = model.predict_proba(features[test])
    return found
