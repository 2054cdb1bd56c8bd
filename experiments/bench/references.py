"""Reference lines from outside the family: scikit-learn's models, not tuned.

Gradient boosting grows a tree a round and class, which for many classes takes longer than all
networks together: it has scikit-learn's 100 rounds up to three classes, then 300 trees in all, but
at least 10 rounds. On tables with rare classes that is no worse (abalone, 21 classes: balanced
accuracy 17.2 and log-loss 2.2, of 100 rounds 13.8 and 3.1; yeast 38.9 and 1.3, 37.1 and 2.0).
The rest are scikit-learn's defaults.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

TREES, LEAST_ROUNDS = 300, 10
_FEWEST_HELD = 1000


def _trees(classes: int, seed: int, class_weight: str | None = None) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rounds = max(min(100, TREES // classes), LEAST_ROUNDS)
    return HistGradientBoostingClassifier(
        max_iter=rounds, class_weight=class_weight,
        random_state=seed,
    )  # fmt: skip


def _balanced_trees(classes: int, seed: int) -> Any:
    return _trees(classes, seed, "balanced")


def _logistic(classes: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=1000)


# By the value of --reference: what it is called in tables, and what makes it.
REFERENCES: dict[str, tuple[str, Callable[[int, int], Any]]] = {
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
    found = np.zeros((len(test), classes))
    if len(alone := np.unique(labels[train])) == 1:  # with ids: no model learns of one class
        found[:, alone[0]] = 1
        return found
    model = REFERENCES[name][1](classes, seed)
    counts = np.unique(labels[train], return_counts=True)[1]
    if hasattr(model, "early_stopping") and (counts.min() < 2 or len(counts) > _FEWEST_HELD):
        # Of over 10,000 rows boosting holds a tenth out, of every class at least one row.
        model.early_stopping = False
    # On a small table, and more so beside other work, threads wait for each other far longer than
    # they work.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a solver that has not converged: it is a reference
        model.fit(features[train], labels[train])
        found[:, model.classes_] = model.predict_proba(features[test])
    return found
