"""What a weight of 0, and one below 0, says of a row: in every way to run passes, by hand.

The loss of a row is half its squared distance to the parameters, so that a part of the gradient is
`(1/B) sum_i w[y_i] (theta - x_i)`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import imbsam_jax as ij
from imbsam_jax import passes
from imbsam_jax.experimental import remembered
from rule_table import quick_jit

RHO = 0.3
THETA = np.array([0.5, -1.0, 2.0])
LABELS = np.array([3, 1, 0, 3, 1, 2, 0, 0])
X = np.random.default_rng(0).normal(size=(8, 3))
MASK = np.arange(8) != 6

# Every way to run the passes. Buffers hold all rows of a part, and are smaller than the batch
# where it does not weigh every class.
ROOM = lambda classes: (max(int(classes[LABELS].sum()), 1),)  # noqa: E731
PASSES: dict[str, dict[str, Any]] = {
    "whole": {},
    "micro_batches": {"passes": passes.whole(2)},
    "own_rows": {"passes": passes.own_rows(ROOM)},
    "own_rows, several sizes": {"passes": passes.own_rows(lambda classes: (3, 8))},
    "split_norm": {"passes": passes.split_norm(ROOM)},
}
# Of two sizes, beside all cases of one: those that differ in kind.
OF_SEVERAL = ("class 1 in no part", "a group of nothing", "a negative base")
OF_REMEMBERED = [name for name, options in PASSES.items() if name in ("whole", "own_rows")]


def table(base: Any, *groups: Any) -> ij.ClassWeights:
    base = None if base is None else np.array(base, float)
    return ij.ClassWeights(base, np.array(groups, float), np.full(len(groups), RHO))


# Class 1 has two rows, and is the one that no part weighs.
TABLES = {
    "class 1 in no part": table([1, 0, 0, 2], [0, 0, 1.5, 1]),
    "class 1 in no group": table(None, [1, 0, 0, 2], [0, 0, 1.5, 1]),
    "a base of nothing": table([0, 0, 0, 0], [0, 0, 1.5, 1]),
    "a group of nothing": table([1, 0, 0, 2], [0, 0, 0, 0]),
    "a group of an absent weight": table([1, 0, 0, 2], [1, 0, 0, 2]),
    "a negative base": table([1, 0.9, -0.1, -0.5], [0, 0.1, 1.1, 1.5]),
    "a negative group": table([1, 1, 0, 0], [0, 0, -1, -2]),
}


def distances(theta: Any, x: Any) -> Any:
    """Half the squared distance to each row; the aux is the row."""
    return 0.5 * ((theta[None] - x) ** 2).sum(axis=-1), x


def by_hand(rows: ij.ClassWeights, mask: Any, group_mean: bool) -> Any:
    """Gradient of the real rows, one part after the other."""
    x, y = X[mask], LABELS[mask]

    def part(point: Any, weights: Any) -> Any:
        w = weights[y]
        whole = (w[:, None] * (point - x)).sum(axis=0)
        touched = np.count_nonzero(w)
        return whole / (max(touched, 1) if group_mean else len(y))

    total = 0 if rows.base is None else part(THETA, rows.base)
    for weights in rows.groups:
        d = part(THETA, weights)
        length = np.linalg.norm(d)
        total = total + part(THETA + (RHO * d / length if length else 0), weights)
    return total


# What is divided by the rows of a part: every case in which a weight is negative.
FOCAL = ij.rules.focal_sam([90, 10, 6, 4], rho=RHO, gamma=0.5, strength=1.1)
MEANS = {case: rows for case, rows in TABLES.items() if "negative" in case}
MEANS |= {"focal_sam": FOCAL(None)}


@cache
def door_of(door: str, name: str, slow: bool) -> Any:
    """(mask) -> (sums, means): what a door makes of the tables; one program."""
    options = PASSES[name]

    def one(rows: Any, ascent: Any, mask: Any) -> Any:
        rule, theta = (lambda step: rows), jnp.asarray(THETA)
        if door == "value_and_grad":
            f = ij.value_and_grad(distances, rule, ascent=ascent, info=True, **options)
            return f(theta, LABELS, X, mask=mask)
        if door == "remembered":
            f = remembered.value_and_grad(distances, rule, decay=0.0, ascent=ascent, **options)
            _, _, memory = f(theta, remembered.init(theta, rule), LABELS, X, mask=mask)
            return None, f(theta, memory, LABELS, X, mask=mask)[1]
        fn = ij.class_weighted_grad(distances, LABELS, X, mask=mask)
        tx = ij.sharpness_aware(rule, ascent=ascent)
        return None, tx.update(None, tx.init(theta), theta, weighted_grad_fn=fn)[0]

    @quick_jit
    def run(mask: Any) -> Any:
        mean = ij.Ascent(group_mean=True)
        sums = TABLES.items() if door == "value_and_grad" else ()
        quick = TABLES if name != "own_rows, several sizes" else OF_SEVERAL
        return (
            {case: one(rows, ij.Ascent(), mask) for case, rows in sums if (case in quick) != slow},
            {case: one(rows, mean, mask) for case, rows in MEANS.items() if not slow},
        )

    return run


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "slow"),
    [
        *((name, False) for name in PASSES),
        pytest.param("own_rows, several sizes", True, marks=pytest.mark.slow),
    ],
)
def test_rows_of_a_class_without_weight_show_in_loss_and_aux_alone(name: str, slow: bool) -> None:
    found, _ = door_of("value_and_grad", name, slow)(MASK)
    assert found
    losses = 0.5 * ((THETA - X) ** 2).sum(axis=1)
    for case, ((loss, aux, info), grads) in found.items():
        rows = TABLES[case]
        np.testing.assert_allclose(grads, by_hand(rows, MASK, False), atol=1e-12, err_msg=case)
        np.testing.assert_allclose(loss, losses[MASK].mean(), rtol=1e-12, err_msg=case)
        aux = np.concatenate(aux.transpose(1, 0, 2)) if name == "micro_batches" else aux
        np.testing.assert_array_equal(aux[MASK], X[MASK], err_msg=case)
        touched = [np.count_nonzero(weights[LABELS[MASK]]) for weights in rows.groups]
        np.testing.assert_allclose(info.rows, touched, rtol=1e-12, err_msg=case)


WAYS = [
    *(("value_and_grad", name) for name in PASSES),
    *(("remembered", name) for name in OF_REMEMBERED),
    ("sharpness_aware", "whole"),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("door", "name"), WAYS)
def test_a_mean_over_a_groups_rows_is_over_all_that_have_weight(door: str, name: str) -> None:
    """A weight below 0 is one: Focal-SAM's plain part of rare classes, above strength 1."""
    base = MEANS["focal_sam"].base
    assert (base[:2] > 0).any() and (base[2:] < 0).all()
    for mask in (np.ones(8, bool), MASK):
        _, found = door_of(door, name, False)(mask)
        for case, (_, grads) in found.items():
            want = by_hand(MEANS[case], mask, True)
            np.testing.assert_allclose(grads, want, atol=1e-12, err_msg=case)


def test_a_table_of_lists_is_one_of_arrays() -> None:
    """Made by hand; with info, too, which counts its groups."""

    def found(table: Any) -> Any:
        f = ij.value_and_grad(lambda w, x: ((w * x) ** 2, None), lambda step: table, info=True)
        ((_, _, info), grad) = f(jnp.float32(2), jnp.arange(4), jnp.arange(4.0))
        return grad, info.rows

    lists = found(ij.ClassWeights(None, [[1.0] * 4], [0.1]))  # type: ignore[arg-type]
    arrays = found(ij.ClassWeights(None, np.ones((1, 4)), np.array([0.1])))
    np.testing.assert_allclose(lists[0], arrays[0], rtol=1e-6)
    assert lists[1].tolist() == arrays[1].tolist() == [4]


def test_a_table_goes_to_the_classes_that_its_index_names() -> None:
    def found(*table: Any) -> Any:
        f = ij.value_and_grad(lambda w, x: (w * x, None), lambda step: ij.ClassWeights(*table))
        return f(jnp.float32(2), jnp.arange(2), jnp.array([1.0, 10.0]))[1]

    base, groups = pd.Series([1.0, 2.0], index=[1, 0]), pd.DataFrame([[3.0, 4.0]], columns=[1, 0])
    assert found(base, np.zeros((0, 2)), []) == (2 * 1 + 1 * 10) / 2
    assert found(None, groups, [0.1]) == (4 * 1 + 3 * 10) / 2
    with pytest.raises(ValueError, match=r"^base has the index .*not the classes 0 to 1"):
        found(base.set_axis([1, 2]), groups, [0.1])
