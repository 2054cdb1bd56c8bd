"""What may be given to a step, over every way to take a gradient: done right, or refused by name.

A new door, or a new kind of passes, is one more row in `WAYS`; every test below then goes over it.
The model has closed forms: the loss of a row is `(x_i . head)^2`, or `head x_i`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import imbsam_jax as ij
from imbsam_jax import cc_sam, checks, classifiers, passes, rules, sharpness
from imbsam_jax.arrays import as_labels
from imbsam_jax.experimental import remembered
from imbsam_jax.rows import class_index, no_distribution
from rule_table import quick_jit

COUNTS, ETA, RHO = [90, 10], 20, 0.1  # class 0 is head, class 1 tail

# ------------------------------------------------------------------- ways to take a gradient


class Way(NamedTuple):
    """One way to a step's gradient.

    Attributes:
      take: `(losses_fn, params, labels, *args, mask, counts, ascent) -> grads` like the params,
        a dictionary with a "head".
      soft: takes soft labels.
      partial: some pass sees a part of the batch.
    """

    id: str
    take: Callable[..., Any]
    soft: bool = True
    partial: bool = False


def _rule(counts: Any) -> Any:
    return rules.imbsam(counts, rho=RHO, eta=np.mean([min(counts), max(counts)]))


def _passes(kind: str, size: int, batched: Any) -> Any:
    """By name; in buffers there is room for half the rows, then for all of them."""
    room = lambda classes: (max(size // 2, 1), size)  # noqa: E731
    return {
        "whole": lambda: passes.whole(),
        "micro_batches": lambda: passes.whole(2, batched),
        "own_rows": lambda: passes.own_rows(room, batched),
        "split_norm": lambda: passes.split_norm(room, batched),
    }[kind]()


def _value_and_grad(
    losses_fn: Any, params: Any, labels: Any, *args: Any,
    mask: Any = None, counts: Any = COUNTS, ascent: Any = ij.Ascent(), kind: str = "whole",
    batched: Any = None,
) -> Any:  # fmt: skip
    how = _passes(kind, np.shape(labels)[0], batched)
    f = ij.value_and_grad(losses_fn, _rule(counts), ascent=ascent, passes=how)
    _, grads = f(params, labels, *args, mask=mask)
    return grads


def _transform(
    losses_fn: Any, params: Any, labels: Any, *args: Any,
    mask: Any = None, counts: Any = COUNTS, ascent: Any = ij.Ascent(),
) -> Any:  # fmt: skip
    fn = ij.class_weighted_grad(losses_fn, labels, *args, mask=mask)
    tx = ij.sharpness_aware(_rule(counts), ascent=ascent)
    return tx.update(fn, tx.init(params), params)[0]


def _cc_sam(
    losses_fn: Any, params: Any, labels: Any, *args: Any,
    mask: Any = None, counts: Any = COUNTS, ascent: Any = None, **options: Any,
) -> Any:  # fmt: skip
    def rest(params: Any, *args: Any) -> Any:
        return {name: part for name, part in params.items() if name != "head"}, None

    def with_head(params: Any, features: Any, *args: Any) -> Any:
        return losses_fn({**features, "head": params["head"]}, *args)

    f = cc_sam.value_and_grad(rest, with_head, np.maximum(counts, 2), noise_ratio=RHO, **options)
    return f(params, labels, *args, mask=mask)[1]


def _remembered(
    losses_fn: Any, params: Any, labels: Any, *args: Any,
    mask: Any = None, counts: Any = COUNTS, ascent: Any = ij.Ascent(), kind: str = "whole",
    batched: Any = None,
) -> Any:  # fmt: skip
    rule, how = _rule(counts), _passes(kind, np.shape(labels)[0], batched)
    f = remembered.value_and_grad(losses_fn, rule, decay=0.5, ascent=ascent, passes=how)
    memory = remembered.init(params, rule)
    for _ in range(2):  # the first perturbs nothing
        _, grads, memory = f(params, memory, labels, *args, mask=mask)
    return grads


WAYS = [
    Way("whole", _value_and_grad),
    Way("micro_batches", partial(_value_and_grad, kind="micro_batches"), partial=True),
    Way("own rows", partial(_value_and_grad, kind="own_rows"), partial=True),
    Way("split_norm", partial(_value_and_grad, kind="split_norm"), partial=True),
    Way("transform", _transform),
    Way("cc_sam", _cc_sam),
    Way("cc_sam all", partial(_cc_sam, perturb="all")),
    Way("cc_sam release", partial(_cc_sam, variant="release"), soft=False),
    Way("remembered", _remembered),
    Way("remembered own rows", partial(_remembered, kind="own_rows"), partial=True),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)


def slow_but(ids: tuple[str, ...], ways: list[Way] = WAYS) -> Any:
    """The ways, of which `make test` takes these alone."""
    some = [pytest.param(w, id=w.id, marks=[pytest.mark.slow] * (w.id not in ids)) for w in ways]
    return pytest.mark.parametrize("way", some)


# What is read at the door, whatever the passes are.
every_door = slow_but(("whole", "transform", "cc_sam", "remembered"))
# Without those that are two of the others at once.
KINDS = (
    "whole", "own rows", "split_norm", "transform", "cc_sam", "cc_sam release", "remembered",
)  # fmt: skip
every_kind = slow_but(KINDS)


def squares(params: Any, x: Any) -> Any:
    return (x @ params["head"]) ** 2, None


def lines(params: Any, x: Any) -> Any:
    return params["head"] * x, None


def bad_scale(params: Any, x: Any) -> Any:
    """A loss of whatever else the parameters hold."""
    return squares(params, x)[0] * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), None


PARAMS = {"head": jnp.array([1.0, -0.5])}
X = np.array([[1.0, 0.0], [0.5, 2.0], [0.0, 1.0], [1.0, 1.0]], np.float32)
LABELS = np.array([0, 1, 0, 1])
W, KEY = np.ones(2, np.float32), jax.random.key(0)


ALL = np.ones(4, bool)


@cache
def stepped(way: Way, losses: Any = squares, **options: Any) -> Any:
    """(params, labels, x, mask) -> grads, compiled once for all tests."""
    return quick_jit(
        lambda params, labels, x, mask: way.take(losses, params, labels, x, mask=mask, **options)
    )


def traced(way: Way, losses: Any, params: Any, *args: Any, **options: Any) -> None:
    """Traces a step, which refuses what it refuses; labels and the rest stay what they are."""
    jax.eval_shape(lambda params: way.take(losses, params, *args, **options), params)


def same(a: Any, b: Any, **tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def all_nan(tree: Any) -> bool:
    return all(np.isnan(leaf).all() for leaf in jax.tree.leaves(tree))


# ------------------------------------------------------------------------------- narrow types


NARROW = [(jnp.float16, 65_536), (jnp.float16, 90_000), (jnp.bfloat16, 65_536)]


@pytest.mark.parametrize(
    ("way", "dtype", "size"),
    [
        pytest.param(
            way, *case, id=f"{way.id}-{case[0].__name__}-{case[1]}",
            marks=[pytest.mark.slow]
            * (way.id != "whole" and not (way.id in KINDS and case == NARROW[0])),
        )
        for way in WAYS
        for case in NARROW
    ],
)  # fmt: skip
def test_a_large_batch_of_narrow_losses(way: Way, dtype: Any, size: int) -> None:
    """1/B is nothing in float16, and a sum of so many ones is infinite."""
    x, labels = jnp.ones(size, dtype), np.arange(size) % 2
    params = {"head": jnp.asarray(1.0)}  # of a weak type: the losses are as narrow as x
    assert lines(params, x)[0].dtype == dtype
    for real in (size, size - 10):
        grads = stepped(way, lines)(params, labels, x, np.arange(size) < real)
        np.testing.assert_allclose(grads["head"], 1.0, rtol=0.01)


def test_losses_and_counts_reported_of_narrow_losses() -> None:
    x, labels = jnp.full(70_000, 2, jnp.float16), np.arange(70_000) % 4 == 3
    f = ij.value_and_grad(lines, _rule(COUNTS), info=True, ascent=ij.Ascent(group_mean=True))
    (loss, _, info), grads = quick_jit(f)({"head": jnp.asarray(1.0)}, labels.astype(np.int8), x)
    assert loss == 2 and loss.dtype == jnp.float32
    assert info.rows.tolist() == [17_500] and info.loss.tolist() == [2]
    np.testing.assert_allclose(grads["head"], 4, rtol=0.01)  # 2 of each part
    f = cc_sam.value_and_grad(
        lambda p, x: (x, None), lambda p, z, x: lines(p, z), [90, 10], noise_ratio=RHO
    )
    (loss, _), _ = quick_jit(f)({"head": jnp.asarray(1.0)}, labels.astype(np.int8), x)
    assert loss == 2 and loss.dtype == jnp.float32
    g = remembered.value_and_grad(lines, _rule(COUNTS), decay=0.5)
    params = {"head": jnp.asarray(1.0)}
    memory = remembered.init(params, _rule(COUNTS))
    (loss, _), _, _ = quick_jit(g)(params, memory, labels.astype(np.int8), x)
    assert loss == 2 and loss.dtype == jnp.float32


def test_sums_over_devices_of_narrow_gradients_are_wide() -> None:
    """In float16 four gradients of 30,000 have an infinite sum."""
    params, x = {"head": jnp.asarray(1, jnp.float16)}, jnp.full((4, 2), 30_000, jnp.float16)
    f = ij.value_and_grad(lines, rules.sgd(2), axis_name="devices")
    with pytest.warns(UserWarning, match="float16"):
        _, grads = jax.vmap(f, (None, None, 0), axis_name="devices")(params, LABELS[:2], x)
    assert grads["head"].tolist() == [30_000] * 4


def test_padding_is_divided_out_of_narrow_gradients_wide() -> None:
    """One real row of 98,304: float16 has its share only to 0.2%, and the gradient exactly."""
    size, params = 98_304, {"head": jnp.asarray(1, jnp.float16)}
    f = quick_jit(ij.value_and_grad(lines, rules.sgd(2)))
    with pytest.warns(UserWarning, match="float16"):
        labels, mask = np.zeros(size, int), np.arange(size) < 1
        _, grads = f(params, labels, jnp.full(size, 49_152, jnp.float32), mask=mask)
    assert grads["head"] == 49_152


def test_parts_of_narrow_gradients_are_added_and_averaged_wide() -> None:
    """40,000 + 40,000 - 40,000 is infinite on its way in float16, as is 98,304 times the mean."""
    params, zero = {"head": jnp.asarray(1, jnp.float16)}, np.zeros(2)
    three = lambda step: ij.ClassWeights(np.eye(3)[0], np.eye(3)[1:], zero)  # noqa: E731
    mean = ij.Ascent(group_mean=True)
    one, f = np.arange(98_304) == 0, quick_jit(ij.value_and_grad(lines, three))
    g = quick_jit(ij.value_and_grad(lines, _rule(COUNTS), ascent=mean))
    with pytest.warns(UserWarning, match="float16"):
        _, grads = f(params, np.arange(3), jnp.array([120_000.0, 120_000, -120_000]))
        _, means = g(params, one.astype(int), np.where(one, 49_152, 0).astype(np.float32))
    assert grads["head"] == 40_000 and means["head"] == 49_152


MANY = np.r_[np.full(150, 40), np.full(150, 4)]


WHOLE_TYPES = ["int8", "uint8", "int16", "uint16", "int64", "uint32", "uint64"]


@every_kind
@pytest.mark.parametrize("types", [["uint8"], pytest.param(["uint32"], marks=pytest.mark.slow)])
def test_labels_of_every_whole_type(way: Way, types: list[str]) -> None:
    """Of 300 classes: int8 does not hold their number, nor uint8 the class after the last."""
    f = stepped(way, counts=tuple(MANY))
    for dtype in types if way.id != "whole" else WHOLE_TYPES:
        labels = np.array([3, 100, 60, 127] if dtype == "int8" else [3, 200, 60, 255])
        if dtype == "int8" or "cc_sam" in way.id:  # no tail, or a radius for each class
            want = f(PARAMS, labels.astype(np.int32), X, ALL)
        else:  # head and tail, as of two classes
            want = stepped(way)(PARAMS, LABELS, X, ALL)
        same(f(PARAMS, labels.astype(dtype), X, ALL), want, rtol=1e-6)


TOO_WIDE = [
    2**32, 2**32 + 1, -(2**32), 2**31, np.uint64(2**63), np.uint32(2**32 - 1), np.int8(-1), -1
]  # fmt: skip


@every_kind
def test_a_label_too_wide_for_int32_is_no_class(way: Way) -> None:
    """Of NumPy's types: of a jitted step's own arguments JAX cuts off the upper half before."""
    labels, mask = np.array([0, 1, 0, 2**32]), np.array([True, True, True, False])
    f = quick_jit(lambda params, mask: way.take(squares, params, labels, X, mask=mask))
    same(f(PARAMS, mask), stepped(way)(PARAMS, LABELS, X, mask), rtol=1e-5)
    assert all_nan(f(PARAMS, ALL))


def test_class_index_holds_what_int32_holds() -> None:
    for label in TOO_WIDE:
        given = np.array([label, np.asarray(label).dtype.type(1)])
        assert class_index(given).tolist() == [-1, 1]
        assert class_index(given).dtype == jnp.int32
    largest = np.array([2**31 - 1, 2**31])
    assert as_labels(largest).tolist() == class_index(largest).tolist() == [2**31 - 1, -1]
    assert jax.jit(class_index)(np.array([2**32 - 1, 5], np.uint32)).tolist() == [-1, 5]
    with jax.enable_x64(True):
        for label in (2**40, 2**63):
            given = np.array([label, 1], np.uint64)
            want = [-1 if label == 2**63 else label, 1]
            assert class_index(given).tolist() == jax.jit(class_index)(given).tolist() == want


# -------------------------------------------------------------------------------------- masks

BAD_MASKS = {
    "halves": [0.5, 0.5, 1.0, 1.0],
    "float": np.ones(4, np.float32),
    "uint8": np.full(4, 255, np.uint8),
    "int list": [1, 1, 0, 1],
    "strings": ["yes", "no", "yes", "no"],
    "none inside": [True, None, True, True],
    "short": [True, True],
    "column": np.ones((4, 1), bool),
    "scalar": True,
    "ragged": [[True], [True, False], [], []],
    "complex": np.ones(4, complex),
}


def _adversary(losses_fn: Any, params: Any, labels: Any, *args: Any, mask: Any) -> Any:
    wrapped = ij.losses.feature_adversary(lambda p, z, *args: losses_fn(p, z), COUNTS)
    return wrapped(params, labels, *args, share=0.5, mask=mask)


@every_way
def test_a_mask_that_is_no_vector_of_bools_is_refused(way: Way) -> None:
    for mask in BAD_MASKS.values():
        with pytest.raises(ValueError, match="mask must be bool"):
            traced(way, squares, PARAMS, LABELS, X, mask=mask)
        if isinstance(mask, np.ndarray):
            with pytest.raises(ValueError, match="mask must be bool"):
                stepped(way)(PARAMS, LABELS, X, mask)


def test_an_adversary_refuses_such_masks() -> None:
    for mask in BAD_MASKS.values():
        with pytest.raises(ValueError, match="mask must be bool"):
            _adversary(squares, PARAMS, LABELS, X, mask=mask)


@every_door
def test_a_mask_may_be_a_list_of_bools(way: Way) -> None:
    want = stepped(way)(PARAMS, LABELS, X, np.array([True, False, True, True]))
    f = quick_jit(lambda real: way.take(squares, PARAMS, LABELS, X, mask=[True, real, True, True]))
    same(f(False), want, rtol=1e-5)
    traced(way, squares, PARAMS, LABELS, X, mask=[True, False, True, True])


# ------------------------------------------------------------------------------- soft labels

SOFT = np.array([[1.0, 0.0], [0.25, 0.75], [0.9, 0.1], [0.0, 1.0]], np.float32)
BAD_ROWS = {
    "multi-hot": [1, 1],
    "none": [0, 0],
    "too little": [0.5, 0.4],
    "negative": [-0.5, 1.5],
    "nan": [math.nan, 1],
    "inf": [math.inf, 0],
    "huge": [1e30, -1e30],
}
soft_ways = slow_but(KINDS, [way for way in WAYS if way.soft])


@soft_ways
def test_a_soft_label_that_is_no_distribution(way: Way) -> None:
    mask, f = np.array([True, False, True, True]), stepped(way)
    want = f(PARAMS, SOFT, X, mask)
    assert np.isfinite(want["head"]).all()
    for row in BAD_ROWS.values():
        bad = SOFT.copy()
        bad[1] = row
        for given in (bad, jnp.asarray(bad), bad.tolist()):
            with pytest.raises(ValueError, match=r"sum to 1 in each row.*row 1 .*\(1 such rows\)"):
                traced(way, squares, PARAMS, given, X)
        assert all_nan(f(PARAMS, bad, X, ALL))
        same(f(PARAMS, bad, X, mask), want, rtol=1e-6)
    masked = np.r_[[*BAD_ROWS.values()], SOFT[:3]].astype(np.float32)
    traced(way, squares, PARAMS, masked, np.resize(X, (10, 2)), mask=np.arange(10) > 6)


def test_an_adversary_gives_nan_for_a_traced_soft_label_that_is_no_distribution() -> None:
    bad = SOFT.copy()
    bad[1] = [1, 1]
    with pytest.raises(ValueError, match="sum to 1"):
        _adversary(squares, PARAMS, bad, X, mask=None)
    losses, _ = jax.jit(partial(_adversary, squares))(PARAMS, bad, X, mask=np.ones(4, bool))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False, False])


def _mixed(lams: Any, classes: int, dtype: Any) -> Any:
    """mixup of two smoothed labels for each number, every operation in that type."""
    first, second = (
        jax.nn.one_hot(np.array(y), classes, dtype=dtype) * jnp.asarray(0.9, dtype)
        + jnp.asarray(0.1 / classes, dtype)
        for y in ([0, 1], [1, 0])
    )
    lams = jnp.asarray(lams, dtype)[:, None, None]
    return (lams * first[None] + (1 - lams) * second[None]).reshape(-1, classes)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("classes", [2, 1000, 8142])
def test_mixed_and_smoothed_labels_are_taken_in_every_type(dtype: Any, classes: int) -> None:
    counts = np.r_[np.full(classes // 2, 9), np.full(classes - classes // 2, 2)]
    f = ij.value_and_grad(squares, rules.imbsam(counts, rho=0.1, eta=4))
    labels = _mixed((0.0, 0.3, 0.77, 0.999), classes, dtype)
    for given in (labels, labels.astype(jnp.float32), np.asarray(labels)):
        assert not no_distribution(given).any()
        jax.eval_shape(lambda p, given=given: f(p, given, np.resize(X, (8, 2))), PARAMS)


# ----------------------------------------------------------------------- losses and parameters

BAD_LOSSES = {
    "int32": (lambda x: x.astype(jnp.int32), TypeError, "int32 losses"),
    "bool": (lambda x: x > 0, TypeError, "bool losses"),
    "complex": (lambda x: x + 0j, TypeError, "complex64 losses"),
    "None": (lambda x: None, TypeError, "NoneType for its losses"),
    "dict": (lambda x: {"loss": x}, TypeError, "dict for its losses"),
    "mean": (lambda x: x.mean(), ValueError, "already averaged"),
    "rows and one": (lambda x: x[:, None], ValueError, r"shape \[\d, 1\]"),
}


@every_way
def test_losses_that_are_no_vector_of_real_numbers(way: Way) -> None:
    for change, error, message in BAD_LOSSES.values():
        losses = lambda params, x, change=change: (change(squares(params, x)[0]), None)  # noqa: E731
        with pytest.raises(error, match=message):
            traced(way, losses, PARAMS, LABELS, X)


class Tower(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer, self.dropout = nnx.Linear(2, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)


def _closed(x: Any) -> Any:
    return x


BAD_LEAVES = {
    "int": (jnp.arange(3), r"\['other'\] is int32"),
    "python int": (1, r"\['other'\] is int32"),
    "bool": (np.ones(2, bool), r"\['other'\] is bool"),
    "key": (jax.random.key(0), r"\['other'\] is key"),
    "old key": (jax.random.PRNGKey(0), r"\['other'\] is uint32"),
    "complex": (jnp.ones(2, jnp.complex64), r"\['other'\] is complex64.*real and imaginary"),
    "string": ("kernel", r"\['other'\] is a str"),
    "function": (_closed, r"\['other'\] is a function"),
    "object": (SimpleNamespace(), r"\['other'\] is a SimpleNamespace"),
    "nested": ({"step": [1.0, jnp.array(3)]}, r"\['other'\]\['step'\]\[1\] is int32"),
    "nnx module": (
        Tower(nnx.Rngs(0)),
        r"\['other'\] is a Tower, a module of flax\.nnx.*nnx\.split",
    ),
    "linen module": (linen.Dense(2), r"\['other'\] is a Dense"),
}


@every_way
def test_a_parameter_that_is_no_real_array_is_named(way: Way) -> None:
    for leaf, message in BAD_LEAVES.values():
        with pytest.raises(TypeError, match=message) as refusal:
            way.take(squares, {**PARAMS, "other": leaf}, LABELS, X)
        assert "\n" not in str(refusal.value)


def test_a_memory_and_a_plain_gradient_refuse_them_too() -> None:
    for leaf, message in BAD_LEAVES.values():
        params = {**PARAMS, "other": leaf}
        with pytest.raises(TypeError, match=message):
            remembered.init(params, _rule(COUNTS))
        with pytest.raises(TypeError, match=message):
            ij.class_weighted_grad(squares, LABELS, X)(params, np.ones(2))


@pytest.mark.parametrize("way", [way for way in WAYS if "cc_sam" not in way.id], ids=lambda w: w.id)
@pytest.mark.parametrize("params", [{}, (), [], {"head": {}}], ids=repr)
def test_no_parameters_at_all(way: Way, params: Any) -> None:
    with pytest.raises(ValueError, match="there are no parameters in"):
        way.take(squares, params, LABELS, X)


def test_no_parameters_in_the_other_doors() -> None:
    f = cc_sam.value_and_grad(
        lambda p, x: (x, None), lambda p, z, x: squares(p, z), COUNTS, noise_ratio=RHO
    )
    for params in (None, {}):
        with pytest.raises(ValueError, match="there are no parameters in"):
            f(params, LABELS, X)
    with pytest.raises(ValueError, match="there are no parameters in NoneType None"):
        ij.value_and_grad(squares, _rule(COUNTS))(None, LABELS, X)


def test_places_left_open_are_no_parameters() -> None:
    """As equinox.partition leaves them."""
    params = {**PARAMS, "static": None}
    want = stepped(WAYS[0])(PARAMS, LABELS, X, ALL)["head"]
    for perturb in (None, {"head": True, "static": None}, {"head": True, "static": False}):
        f = quick_jit(ij.value_and_grad(squares, _rule(COUNTS), ascent=ij.Ascent(perturb=perturb)))
        grads = f(params, LABELS, X)[1]
        assert grads["static"] is None
        np.testing.assert_allclose(grads["head"], want, rtol=1e-6)


# ------------------------------------------------------------------------------ trees of bools

TWO = {"body": jnp.array([[0.5, 0.0], [0.0, 2.0]]), "head": jnp.array([[1.0], [-0.5]])}
BAD_MARKS = {
    "strings": {"body": "frozen", "head": "train"},
    "string": "train",
    "ints": {"body": 0, "head": 1},
    "floats": {"body": 0.0, "head": 1.0},
    "bool array": {"body": np.zeros((2, 2), bool), "head": True},
    "numbers": {"body": jnp.zeros(()), "head": True},
    "None": {"body": None, "head": True},
    "a key missing": {"head": True},
    "a key too many": {"body": False, "head": True, "tail": True},
    "list": [False, True],
    "deeper": {"body": {"kernel": False}, "head": True},
}


def through_ascent(mask: Any) -> Any:
    losses = lambda params, x: (((x @ params["body"]) @ params["head"])[:, 0] ** 2, None)  # noqa: E731
    f = ij.value_and_grad(losses, _rule(COUNTS), ascent=ij.Ascent(perturb=mask))
    return f(TWO, LABELS, X)[1]


def through_cc_sam(mask: Any) -> Any:
    f = cc_sam.value_and_grad(
        lambda params, x: (x @ params["body"], None),
        lambda params, z, x: ((z @ params["head"])[:, 0] ** 2, None),
        COUNTS,
        classifier=mask,
        noise_ratio=RHO,
    )
    return f(TWO, LABELS, X)[1]


def through_max_norm(mask: Any) -> Any:
    return classifiers.max_norm(mask, 1.0).init(TWO)


MASKED = [through_ascent, through_cc_sam, through_max_norm]


@pytest.mark.parametrize("through", MASKED)
@pytest.mark.parametrize("marks", BAD_MARKS.values(), ids=BAD_MARKS)
def test_a_tree_of_anything_but_bools_is_refused(through: Any, marks: Any) -> None:
    if marks == "train" and through is through_cc_sam:
        pytest.skip("a string is the classifier's name there")
    for given in (marks, lambda params: marks):
        with pytest.raises(
            (TypeError, ValueError), match=r"True or False|tree of bools"
        ) as refusal:
            jax.eval_shape(lambda: through(given))  # noqa: B023
        assert "\n" not in str(refusal.value)


def test_of_a_large_tree_that_does_not_fit_the_first_six_are_named() -> None:
    many = {str(k): jnp.ones(2) for k in range(8)}
    with pytest.raises(ValueError) as refusal:
        through_ascent(dict.fromkeys(many, True))
    first = ", ".join(f"['{k}']" for k in range(6))
    assert f"it has {first}, ..., the parameters have ['" in str(refusal.value)
    assert "['6']" not in str(refusal.value)


@pytest.mark.parametrize("through", MASKED)
def test_every_bool_is_one(through: Any) -> None:
    want = quick_jit(lambda: through({"body": False, "head": True}))()
    true, false = np.array(True), jnp.array(False)
    same(quick_jit(lambda: through({"body": false, "head": true}))(), want, rtol=0)
    same(quick_jit(lambda: through({"body": np.False_, "head": np.True_}))(), want, rtol=0)


@pytest.mark.parametrize("through", MASKED)
def test_a_traced_mark_is_refused(through: Any) -> None:
    with pytest.raises(TypeError, match=r"\['head'\] is bool\[\]: give True or False"):
        jax.jit(lambda keep: through({"body": False, "head": keep}))(True)


def test_max_norm_refuses_a_complex_kernel() -> None:
    with pytest.raises(ValueError, match=r"kernel must be real numbers, got complex64"):
        classifiers.max_norm({"head": True}).init({"head": jnp.ones((2, 2), jnp.complex64)})


# ------------------------------------- what functions return, and arguments of another kind

RETURNED: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda tree: None,
    "a pair": lambda tree: (tree, None),
    "of one part": lambda tree: {"head": tree["head"]},
    "one number": lambda tree: 1.0,
    "a number for each": lambda tree: jax.tree.map(lambda _: 1.0, tree),
    "spread": lambda tree: jax.tree.map(lambda x: jnp.ones((1, *x.shape)), tree),
    "None for a part": lambda tree: {**tree, "body": None},
    "words": lambda tree: jax.tree.map(lambda x: np.full(x.shape, "a"), tree),
}


def returned_by_fn(change: Any) -> Any:
    tx = ij.sharpness_aware(_rule(COUNTS))
    return tx.update(lambda params, class_weights: change(params), tx.init(TWO), TWO)


def returned_by_adaptive(change: Any) -> Any:
    ascent = ij.Ascent(adaptive=change)
    return _transform(lambda p, x: (x @ p["body"] @ p["head"][:, 0], None), TWO, LABELS, X,
                      ascent=ascent)  # fmt: skip


def returned_by_matvec(change: Any) -> Any:
    return ij.curvature.trace(change, TWO, key=jax.random.key(0), probes=2)


@pytest.mark.parametrize("by", [returned_by_fn, returned_by_adaptive, returned_by_matvec])
@pytest.mark.parametrize("change", RETURNED.values(), ids=RETURNED)
def test_what_is_returned_in_another_form_is_refused(by: Any, change: Any) -> None:
    """`adaptive` without a return would be a plain ball, of other order another matrix."""
    jax.eval_shape(lambda: by(lambda tree: jax.tree.map(jnp.ones_like, tree)))
    with pytest.raises((TypeError, ValueError), match=r"^what .* returns(\['body'\])? must be"):
        jax.eval_shape(lambda: by(change))


def _door(name: str, **given: Any) -> Any:
    """That door, with all of its arguments but those given as they should be."""
    losses, rule, ascent = lines, _rule(COUNTS), {"ascent": given.pop("ascent", ij.Ascent())}
    if "of_ascent" in given:
        ascent = {"ascent": ij.Ascent(**given.pop("of_ascent"))}
    call = {key: given.pop(key) for key in ("step", "state") if key in given}
    losses = given.pop("losses_fn", losses)
    params, x = {"head": jnp.array(1.0)}, X[:, 0]
    if name == "link":
        tx = ij.sharpness_aware(given.pop("rule", rule), **ascent, **given)
        state = call.get("state", tx.init(params))
        return tx.update(ij.class_weighted_grad(losses, LABELS, x), state, params)
    if name == "cc_sam":
        features = (lambda p, x: (x, None)) if losses is lines else losses
        by_head = lambda p, z, x: lines(p, z)  # noqa: E731
        f = cc_sam.value_and_grad(features, by_head, COUNTS, noise_ratio=lambda step: RHO)
    elif name == "remembered":
        f = remembered.value_and_grad(losses, given.pop("rule", rule), decay=0.5, **ascent)
        return f(params, remembered.init(params, rule), LABELS, x, **call)
    elif name == "sharpness":
        return sharpness.of_rule(losses, given.pop("rule", rule), params, LABELS, x, **ascent)
    else:
        door = {"door": ij.value_and_grad, "nnx": ij.nnx.value_and_grad}[name]
        f = door(losses, given.pop("rule", rule), **ascent, **given)
        params = nnx.Dict(head=nnx.Param(params["head"])) if name == "nnx" else params
    return f(params, LABELS, x, **call)


def _tables(*shapes: Any) -> Any:
    return lambda step: rules.ClassWeights(*(None if s is None else np.ones(s) for s in shapes))


DOORS = ("door", "link", "nnx", "remembered", "sharpness")


def _table(base: Any, groups: Any, radii: Any) -> Any:
    return lambda step: rules.ClassWeights(base, groups, radii)


KINDS: list[tuple[tuple[str, ...], str, tuple[Any, ...], str]] = [
    (DOORS, "ascent", (None, 2.0, {}, (2.0,), ij.Ascent), r"^ascent must be an imbsam_jax.Ascent"),
    (DOORS, "of_ascent", ({"adaptive": True}, {"adaptive": "asam"}), r"^adaptive must be a functi"),
    (DOORS, "of_ascent", ({"group_mean": "no"}, {"group_mean": 1}), r"^group_mean must be True or"),
    (DOORS, "of_ascent", ({"bound": None}, {"bound": "x"}), r"^bound must be True or False"),
    (DOORS, "of_ascent", ({"direction": "up"},), r"^direction must be 'plain', 'orthogonal' or"),
    (DOORS, "of_ascent", ({"bound": True, "p": 3.0}, {"bound": True, "adaptive": lambda p: p}),
     r"^the radius of a bound \(rules.gsa\) is that of a plain ball: leave p and adaptive out"),
    (("door", "link", "nnx"), "sync_ascent", ("no", None, 1), r"^sync_ascent must be True or Fal"),
    (("door", "nnx"), "info", ("no", None, 1), r"^info must be True or False"),
    ((*DOORS, "cc_sam"), "losses_fn", (None, "f", 1.0), r"(losses|features)_fn must be a function"),
    (("door", "nnx", "remembered", "cc_sam"), "step", ("1", -1, 1.5, True, jnp.array([1]), {}),
     r"^step must be the number of updates made so far"),
    (("link",), "state", (None, (), (1,), {}, optax.EmptyState()), r"needs its own state, update"),
    (("door", "link", "remembered", "sharpness"), "rule",
     (lambda step: None, lambda step: (np.ones(2),) * 3), r"^a rule returns ClassWeights"),
    (DOORS, "rule",
     (lines, lambda: None, rules.sam, rules.sgd, rules.imbsam, rules.gsa, rules.stagewise,
      rules.ClassWeights, partial(rules.sam, rho=RHO)),
     r"^the rule must be a function of the step alone, and \S+ takes .*: give what a function of "),
    (("door", "link", "remembered", "sharpness"), "rule",
     (lambda *args: lines(*args), lambda step: step.rho, lambda step: [][0]),
     r"^what was given for the rule cannot be called with a step alone: give what a function of"),
    (("door", "link", "remembered", "sharpness"), "rule",
     (_table(["a", "b"], [[0, 1]], [RHO]), _table(None, [[0, 1j]], [RHO]),
      _table(None, [[0, 1]], ["a"]), _table(None, [[0, 1], [1]], [RHO]),
      _table(None, np.ones((1, 2)), [None]), _table(None, np.ones((1, 2), "M8[s]"), [RHO])),
     r"^the rule's (base|groups|radii) must be real numbers"),
    (("door", "link", "remembered", "sharpness"), "rule",
     (_table(None, [[0, 1]], np.ma.array([RHO], mask=[True])),), r"^the rule's radii must have no"),
    (("door", "link", "remembered", "sharpness"), "rule",
     tuple(_table([1, 0], [[0, 1]], xp.array([bad])) for xp in (np, jnp)
           for bad in (-0.1, math.nan, math.inf)),
     r"^the rule's radii must be finite and at least 0, got \["),
    (("door", "link", "remembered", "sharpness"), "rule",
     (_tables(2, 2, 1), _tables(3, (1, 2), 1), _tables(2, (1, 2), 2), _tables(2, (1, 2), ())),
     r"^the rule's table must have base float\[C\] or None"),
]  # fmt: skip


def test_a_traced_radius_of_a_table_made_by_hand_may_be_anything() -> None:
    def taken(radius: Any) -> Any:
        rule = _table([1.0, 0.0], [[0, 1]], [radius])
        return ij.value_and_grad(squares, rule)(PARAMS, LABELS, X)[1]

    same(quick_jit(taken)(RHO), taken(RHO), rtol=1e-6)
    for bad in (-0.1, math.nan, math.inf, -1):
        assert all_nan(quick_jit(taken)(bad))


def test_makers_and_losses_do_not_stand_for_a_rule_in_a_stage_or_a_memory() -> None:
    for bad in (lines, rules.sam, rules.sgd):
        with pytest.raises(TypeError, match=r"^the rule must be a function of the step alone, and"):
            rules.stagewise(rules.sgd(2), bad, switch_step=1)
        with pytest.raises(TypeError, match=r"^the rule must be a function of the step alone, and"):
            remembered.init(PARAMS, bad)


@pytest.mark.parametrize("door", [*DOORS, "cc_sam"])
def test_each_door_takes_what_it_should(door: str) -> None:
    jax.eval_shape(lambda: _door(door, step=0))


@pytest.mark.parametrize(("doors", "name", "values", "words"), KINDS)
def test_an_argument_of_another_kind_is_refused_by_name(
    doors: Any, name: str, values: Any, words: str
) -> None:
    for door in doors:
        for value in values:
            with pytest.raises((TypeError, ValueError), match=words) as refusal:
                jax.eval_shape(lambda: _door(door, **{"step": 0, name: value}))  # noqa: B023
            assert "\n" not in str(refusal.value)


MADE: dict[str, Callable[[ij.Ascent, Any], Any]] = {
    "door": lambda ascent, rule: ij.value_and_grad(lines, rule, ascent=ascent),
    "nnx": lambda ascent, rule: ij.nnx.value_and_grad(lines, rule, ascent=ascent),
    "link": lambda ascent, rule: ij.sharpness_aware(rule, ascent=ascent),
}


@pytest.mark.parametrize("door", MADE)
def test_what_does_not_go_together_is_refused_as_the_door_is_made(door: str) -> None:
    """Not at its first step; nor does a rule's own direction take the place of another one."""
    gsa, plain = rules.gsa([60, 30, 3]), rules.sgd(3)
    with pytest.raises(ValueError, match=r"^direction must be"):
        MADE[door](ij.Ascent(direction="up"), plain)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^direction='projection' beside a rule that brings 'ort"):
        MADE[door](ij.Ascent(direction="projection"), gsa)
    with pytest.raises(ValueError, match=r"leave group_mean out"):
        MADE[door](ij.Ascent(group_mean=True), gsa)
    MADE[door](ij.Ascent(direction="orthogonal", bound=True), gsa)


@pytest.mark.parametrize("value", ["no", None, 1])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("strict", lambda x: ij.tail_classes(COUNTS, 50, strict=x)),
        ("strict", lambda x: rules.imbsam(COUNTS, rho=RHO, eta=50, strict=x)),
        ("strict", lambda x: rules.reweighted_sam(COUNTS, rho=RHO, eta=50, tail_weight=2.0,
                                                  strict=x)),
        ("strict", lambda x: rules.sse_sam(COUNTS, head_rho=RHO, tail_rho=RHO, eta=50,
                                           switch_step=5, strict=x)),
        ("scale_logits", lambda x: ij.losses.ldam(COUNTS, scale_logits=x)),
        ("float16", lambda x: ij.schedules.linear_radius(epochs=2, steps_per_epoch=1, float16=x)),
        ("sync_ascent", lambda x: cc_sam.value_and_grad(lines, lines, COUNTS, noise_ratio=RHO,
                                                        sync_ascent=x)),
    ],
)  # fmt: skip
def test_a_word_is_no_truth_value(name: str, call: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be True or False"):
        call(value)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("losses_fn", lambda f: ij.curvature.hvp(f, W, LABELS, X)),
        ("outputs_fn", lambda f: ij.curvature.gnvp(f, lines, W, LABELS, X)),
        ("output_losses_fn", lambda f: ij.curvature.gnvp(lines, f, W, LABELS, X)),
        ("losses_fn", lambda f: sharpness.average(f, W, LABELS, X, radius=RHO, directions=2,
                                                  key=KEY)),
        ("losses_fn", lambda f: sharpness.worst(f, W, LABELS, X, radius=RHO, steps=1, key=KEY)),
        ("losses_fn", lambda f: ij.landscape.losses(f, W, [W], [[0.0]], LABELS, X)),
        ("head_losses_fn", ij.losses.feature_adversary),
    ],
)  # fmt: skip
def test_what_is_no_function_is_refused_where_it_is_given(name: str, call: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a function"):
        call(None)


def test_the_door_for_nnx_is_found_by_name() -> None:
    """Without importing Flax: it is a requirement of this door alone."""
    assert {*ij.__all__, "nnx"} <= {*dir(ij)} and "checks" not in dir(ij)


# ------------------------------------------------------- losses that average over the batch

WEIGHTED = ij.losses.class_balanced(COUNTS, normalise="weights")
AVERAGING = {
    "weights": WEIGHTED,
    "smoothed": ij.losses.smoothed(WEIGHTED, 0.1),
    "deferred": ij.losses.deferred(ij.losses.cross_entropy, WEIGHTED, switch_step=0),
    "by hand": ij.losses.Loss(
        lambda z, step: -jax.nn.log_softmax(z), lambda labels, step, mask: 1 / labels.shape[0]
    ),
}
LOGITS = {"head": jnp.array([[0.5, -0.5], [1.0, 0.25]])}


def averaged(loss: Any, jitted: bool = False) -> Any:
    call = jax.jit(lambda z, y: loss(z, y, 0)) if jitted else lambda z, y: loss(z, y, 0)
    return lambda params, x, y: (call(x @ params["head"], y), None)


@every_way
@pytest.mark.parametrize("name", AVERAGING)
def test_a_loss_that_averages_over_the_batch_sees_all_of_it(way: Way, name: str) -> None:
    loss = AVERAGING[name]
    if way.partial:
        with pytest.raises(ValueError, match=r"take factor = loss.factor\(labels"):
            traced(way, averaged(loss), LOGITS, LABELS, X, LABELS)
    else:
        traced(way, averaged(loss), LOGITS, LABELS, X, LABELS)


def test_chosen_rows_with_room_for_the_batch_are_all_of_it() -> None:
    everywhere = passes.own_rows(lambda classes: (4,))
    f = ij.value_and_grad(averaged(WEIGHTED), _rule(COUNTS), passes=everywhere)
    want = _value_and_grad(averaged(WEIGHTED), LOGITS, LABELS, X, LABELS)
    same(f(LOGITS, LABELS, X, LABELS)[1], want, rtol=1e-6)


def test_a_cached_trace_does_not_hide_it() -> None:
    """The loss under a jit of its own was already traced, for as many rows as a part has."""
    losses = averaged(WEIGHTED, jitted=True)
    losses(LOGITS, jnp.asarray(X[:2]), jnp.asarray(LABELS[:2]))
    f = ij.value_and_grad(losses, rules.sgd(2), passes=passes.whole(2))
    with pytest.raises(ValueError, match="with micro_batches a pass sees a part"):
        f(LOGITS, jnp.asarray(LABELS), jnp.asarray(X), jnp.asarray(LABELS))
    # Nor does what was refused leave anything behind.
    assert np.isfinite(losses(LOGITS, jnp.asarray(X), jnp.asarray(LABELS))[0]).all()


@pytest.mark.parametrize("way", [way for way in WAYS if way.partial], ids=lambda way: way.id)
def test_the_factor_taken_beforehand_gives_the_whole_batch(way: Way) -> None:
    plain, factor = (
        ij.losses.Loss(WEIGHTED.per_class),
        WEIGHTED.factor(jnp.asarray(LABELS), 0, None),
    )

    def losses(params: Any, x: Any, y: Any, factor: Any) -> Any:
        return plain(x @ params["head"], y) * factor, None

    def whole(params: Any, x: Any, y: Any) -> Any:
        return WEIGHTED(x @ params["head"], y), None

    take = partial(way.take, batched=(True, True, False))
    got = quick_jit(lambda p: take(losses, p, LABELS, X, LABELS, factor))(LOGITS)
    by = WAYS[-2] if "remembered" in way.id else WAYS[0]
    want = quick_jit(lambda p: by.take(whole, p, LABELS, X, LABELS))(LOGITS)
    same(got, want, rtol=1e-5)


def test_the_loss_of_micro_batches_by_closed_form() -> None:
    """As in the report of this fault: 1.2742, where 1.7875 is right."""
    rows = np.array([0, 0, 1, 0])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    w = ij.losses.class_balanced_weights(COUNTS)[rows]
    each = ij.losses.cross_entropy(logits, rows)
    factor = WEIGHTED.factor(jnp.asarray(rows), None, None)
    plain = ij.losses.Loss(WEIGHTED.per_class)
    f = ij.value_and_grad(
        lambda p, z, y, factor: (plain(z * p, y) * factor, None), rules.sgd(2),
        passes=passes.whole(2, (True, True, False)),
    )  # fmt: skip
    (loss, _), _ = quick_jit(f)(jnp.ones(()), rows, logits, rows, factor)
    np.testing.assert_allclose(loss, (w * each).sum() / w.sum(), rtol=1e-5)


def test_an_adversary_over_the_rows_of_a_class_needs_them_all() -> None:
    release = ij.losses.feature_adversary(lambda p, z: squares(p, z), COUNTS, variant="release")
    paper = ij.losses.feature_adversary(lambda p, z: squares(p, z), COUNTS)
    refused = ("micro_batches", "split_norm")
    for adversary, ways in ((release, refused), (paper, ())):
        for way in WAYS[:4]:
            losses = lambda p, x, y, adversary=adversary: adversary(p, y, x, share=0.5)  # noqa: E731
            if way.id in ways:
                with pytest.raises(ValueError, match="divides by the rows of a class"):
                    traced(way, losses, PARAMS, LABELS, X, LABELS)
            elif way.id == "own rows" and adversary is release:
                got, want = (
                    quick_jit(lambda p, w=w: w.take(losses, p, LABELS, X, LABELS))(PARAMS)  # noqa: B023
                    for w in (way, WAYS[0])
                )
                same(got, want, rtol=1e-5)
            else:
                traced(way, losses, PARAMS, LABELS, X, LABELS)


# ------------------------------------------------------------------------------- ASAM's biases


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    """A module whose parameters are its attributes, as Equinox has them."""

    kernel: Any
    bias: Any


@pytest.mark.parametrize("box", ["state", "module", "pure", "linen", "list", "attribute"])
def test_asam_knows_a_bias_by_its_name(box: str) -> None:
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    kernel, bias = layer.kernel[...], jnp.array([0.0, -3.0])
    layer.bias[...] = bias
    params = {
        "state": nnx.state(layer, nnx.Param),
        "module": layer,
        "pure": nnx.to_pure_dict(nnx.state(layer)),
        "linen": {
            "kernel": linen.Partitioned(kernel, (None, None)),
            "bias": linen.Partitioned(bias, (None,)),
        },
        "list": {"kernel": [kernel], "bias": (bias,)},
        "attribute": Layer(kernel, bias),
    }[box]
    got = [np.asarray(leaf) for leaf in jax.tree.leaves(ij.asam_scale(0.01)(params))]
    shapes = {leaf.ndim: leaf for leaf in got}
    np.testing.assert_array_equal(shapes[1], [1, 1])
    np.testing.assert_allclose(shapes[2], np.abs(kernel) + 0.01, rtol=1e-6)


def test_asam_takes_a_value_that_is_a_name_for_one() -> None:
    scale = ij.asam_scale(0.5)({"value": jnp.array([-2.0]), "bias": {"value": jnp.array([3.0])}})
    assert scale["value"].tolist() == [2.5]
    assert ij.asam_scale(0.5)(jnp.array([-2.0])).tolist() == [2.5]


# ------------------------------------------------------------------------------ jax_debug_nans


@every_kind
def test_good_data_passes_under_debug_nans(way: Way) -> None:
    mask = np.array([True, True, True, False])
    with jax.debug_nans(True):
        eager = way.take(squares, PARAMS, np.zeros(4, int), X, mask=mask)  # no tail row
        assert np.isfinite(eager["head"]).all()
        f = stepped(way)
        for labels in (LABELS, np.zeros(4, int), *([SOFT] if way.soft else [])):
            assert np.isfinite(f(PARAMS, labels, X, mask)["head"]).all()
        with pytest.raises(FloatingPointError):
            f(PARAMS, np.array([0, 1, 2, 7]), X, mask)


def test_info_passes_under_debug_nans() -> None:
    rule = rules.stagewise(_rule(COUNTS), rules.sgd(2), switch_step=5)
    f = ij.value_and_grad(squares, rule, info=True)
    labels = np.zeros(4, int)
    with jax.debug_nans(True):
        for call in (f, jax.jit(f)):
            for step in (0, 9):
                (_, _, info), _ = call(PARAMS, labels, X, step=step)
                assert info.loss.tolist() == info.perturbed_loss.tolist() == [0]
                assert info.rows.tolist() == [0]


# ------------------------------------------------------------------- derivatives of a step

ASCENTS = {
    "2": ij.Ascent(),
    "p1.5": ij.Ascent(p=1.5),
    "p3": ij.Ascent(p=3),
    "pinf": ij.Ascent(p=math.inf),
    "asam": ij.Ascent(adaptive=ij.asam_scale()),
    "magnitude": ij.Ascent(adaptive=ij.magnitude_scale),
    "head": ij.Ascent(perturb={"head": True}),
    "group_mean": ij.Ascent(group_mean=True),
    "decay": ij.Ascent(weight_decay=0.0),
}


def derivatives(way: Way, ascent: Any = ij.Ascent()) -> Any:
    """Of the sum of a step's gradient without a tail row: by reverse and by forward mode."""

    def total(w: Any) -> Any:
        losses = lambda params, x: ((params["head"] @ x.T) ** 2, None)  # noqa: E731
        ones = jnp.ones((2, 2))
        return way.take(losses, {"head": w}, np.zeros(2, int), ones, ascent=ascent)["head"].sum()

    both = lambda w: (jax.grad(total)(w), jax.jacfwd(total)(w))  # noqa: E731
    return quick_jit(jax.vmap(both))(jnp.ones((1, 2)))


@every_kind
def test_a_derivative_through_a_step_without_tail_rows(way: Way) -> None:
    if (
        way.id == "cc_sam all"
    ):  # a loop with as many rounds as there are classes has no reverse mode
        way = way._replace(take=partial(way.take, classes_at_once=2))
    backward, forward = derivatives(way)
    np.testing.assert_allclose(forward, backward, rtol=1e-6)
    if "cc_sam" not in way.id:  # there the head moves, too: along (1, 1) to w + c sqrt(||w||/||d||)
        np.testing.assert_array_equal(backward, [[4, 4]])
    assert np.isfinite(backward).all()


@pytest.mark.parametrize(
    "ascent",
    [  # the plain one is above
        pytest.param(ascent, id=name, marks=[pytest.mark.slow] * (name == "2"))
        for name, ascent in ASCENTS.items()
    ],
)
def test_a_derivative_without_tail_rows_for_every_ascent(ascent: Any) -> None:
    np.testing.assert_array_equal(derivatives(WAYS[0], ascent), np.full((2, 1, 2), 4))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ascent", ASCENTS.values(), ids=ASCENTS)
def test_a_derivative_through_a_step_is_what_differences_say(ascent: Any) -> None:
    """With tail rows, and a coordinate whose ascent gradient is exactly zero."""
    x, labels = np.array([[1.0, 2.0, 0.0], [0.5, 1.0, 0.0], [2.0, 1.0, 1.0]]), np.array([1, 1, 0])

    def grads(w: Any) -> Any:
        losses = lambda params, x: ((x @ params["head"]) ** 2, None)  # noqa: E731
        return WAYS[0].take(losses, {"head": w}, labels, x, ascent=ascent)["head"]

    w, step = jnp.array([1.0, -0.25, 0.5]), 1e-5 * jnp.eye(3)
    around = jnp.concatenate([w[None] + step, w[None] - step])
    every = lambda w: (jax.vmap(grads)(around), jax.jacrev(grads)(w), jax.jacfwd(grads)(w))  # noqa: E731
    beside, *found = quick_jit(every)(w)
    want = (beside[:3] - beside[3:]).T / 2e-5
    for got in found:
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_derivative_where_a_coordinate_of_the_ascent_passes_through_zero() -> None:
    """Near w = (1, 0) e is rho w for p = 2, and rho (1, 0) for others: flat across."""

    def grads(w: Any, ascent: Any) -> Any:
        losses = lambda params, x: (0.5 * (params["head"] ** 2).sum() * x, None)  # noqa: E731
        return WAYS[0].take(losses, {"head": w}, np.ones(1, int), np.ones(1), ascent=ascent)["head"]

    ps = (1.5, 2, 3)
    every = lambda w: [jax.jacrev(partial(grads, ascent=ij.Ascent(p=p)))(w) for p in ps]  # noqa: E731
    for p, found in zip(ps, quick_jit(every)(jnp.array([1.0, 0.0])), strict=True):
        want = np.diag([1.0, 1.0 + RHO * (p == 2)])
        np.testing.assert_allclose(found, want, atol=1e-12, err_msg=str(p))


def test_a_derivative_with_respect_to_the_radius() -> None:
    def total(rho: Any, labels: Any) -> Any:
        f = ij.value_and_grad(squares, rules.imbsam(COUNTS, rho=rho, eta=ETA), info=True)
        return f(PARAMS, labels, X)[1]["head"].sum()

    slope = quick_jit(jax.grad(total))
    assert np.isfinite(slope(0.1, LABELS)) and slope(0.1, LABELS) != 0
    assert slope(0.1, np.zeros(4, int)) == 0


def test_the_step_of_a_classifier_that_is_zero_has_a_derivative() -> None:
    """CC-SAM's radius is a root of ||w||, which has no slope there."""
    take = partial(WAYS[5].take, squares)
    jacobian = quick_jit(jax.jacrev(lambda w: take({"head": w}, LABELS, X + 1)["head"]))(
        jnp.zeros(2)
    )
    assert np.isfinite(jacobian).all()


# ---------------------------------------------------------------------- what refusals are made of


@pytest.mark.parametrize(
    ("bounds", "outside", "wanted"),
    [
        ({"least": 0, "most": 1}, 2, "between 0 and 1"),
        ({"least": 0, "below": 1}, 1, "at least 0 and below 1"),
        ({"least": 2}, 1, "finite and at least 2"),
        ({"above": 0}, 0, "finite and positive"),
        ({}, math.inf, "finite"),
        ({"above": 0, "wanted": "a length"}, 0, "a length"),
    ],
)
def test_a_number_is_refused_with_its_range(bounds: Any, outside: float, wanted: str) -> None:
    for given in (outside, True, "1", np.array("1"), math.nan):
        with pytest.raises(ValueError, match=f"^rho must be {wanted}, got "):
            checks.number("rho", given, **bounds)
    with pytest.raises(ValueError, match=r"^rho must be a scalar, got shape \(1,\)"):
        checks.number("rho", np.ones(1), **bounds)


def test_a_whole_number_is_refused_with_its_range() -> None:
    for given in (2.0, True, "2", 1):
        with pytest.raises(ValueError, match=r"^probes must be a whole number, at least 2"):
            checks.whole("probes", given, 2)
    with pytest.raises(ValueError, match=r"^probes must be two, got 1$"):
        checks.whole("probes", 1, 2, "two")
    for kept in (2, np.int8(2), 2**31 - 1):
        found = checks.whole("probes", kept, 2)
        assert found == kept and type(found) is int
    with pytest.raises(ValueError, match=f"^probes must be at most {2**31 - 1}, got {2**31}$"):
        checks.whole("probes", 2**31, 2)
