"""Hits by class, AUROC, average precision, and the two losses of anomaly detection."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from imbsam_jax import losses, metrics

# Compiled whole: operation by operation each of these tests would compile a dozen programs.
_auroc, _average_precision = jax.jit(metrics.auroc), jax.jit(metrics.average_precision)


def _data(n: int, levels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both labels, and scores with about n / levels ties each."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(np.int64)
    y[:2] = 0, 1
    return y, rng.integers(0, levels, n) / levels + 0.2 * y * (rng.random(n) < 0.5)


def _of_sklearn(y: np.ndarray, s: np.ndarray) -> list[float]:
    return [
        roc_auc_score(y, s),
        average_precision_score(y, s),
        average_precision_score(1 - y, -s),
    ]


@jax.jit
def _ours(y: jax.Array, s: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
    return (
        metrics.auroc(y, s, mask),
        metrics.average_precision(y, s, mask),
        metrics.average_precision(1 - y, -s, mask),
    )


@pytest.mark.parametrize("levels", [1, 3, 50, 10**9])
@pytest.mark.parametrize("n", [7, 1579])
@pytest.mark.usefixtures("x64")
def test_equal_to_scikit_learn_in_float64(n: int, levels: int) -> None:
    y, s = _data(n, levels, seed=n)
    found = _ours(jnp.asarray(y), jnp.asarray(s))
    assert all(value.dtype == jnp.float64 for value in found)
    np.testing.assert_allclose(found, _of_sklearn(y, s), rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [3, 10**9])
@pytest.mark.parametrize("n", [1579, 100_000])
def test_equal_to_scikit_learn_in_float32(n: int, levels: int) -> None:
    y, s = _data(n, levels, seed=n)
    s = s.astype(np.float32)
    found = _ours(jnp.asarray(y), jnp.asarray(s))
    assert all(value.dtype == jnp.float32 for value in found)
    np.testing.assert_allclose(found, _of_sklearn(y, s), rtol=0, atol=1e-6)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    st.lists(st.tuples(st.booleans(), st.integers(-2, 2)), min_size=12, max_size=12).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    )
)
def test_every_small_ranking_with_ties(rows: list[tuple[bool, int]]) -> None:
    y, s = (np.array(column) for column in zip(*rows, strict=True))
    found = _ours(jnp.asarray(y, jnp.int32), jnp.asarray(s))
    np.testing.assert_allclose(found, _of_sklearn(y.astype(int), s.astype(float)), atol=1e-6)


def test_vmapped_rows_and_padding_are_those_alone() -> None:
    y, s = zip(*(_data(40, 6, seed) for seed in range(3)), strict=True)
    lengths = (40, 25, 33)
    mask = np.arange(40) < np.array(lengths)[:, None]
    padded = np.where(mask, np.stack(s), np.nan).astype(np.float32)
    labels = np.where(mask, np.stack(y), 7)
    found = np.stack(jax.vmap(_ours)(labels, padded, mask), axis=1)
    for row, length in enumerate(lengths):
        alone = _of_sklearn(y[row][:length], s[row][:length].astype(np.float32))
        np.testing.assert_allclose(found[row], alone, rtol=0, atol=1e-6)


def test_scores_may_be_whole_numbers_bools_and_infinite() -> None:
    y = jnp.array([0, 1, 0, 1])
    assert float(_auroc(y, jnp.array([0, 3, 200, 250], jnp.uint8))) == 0.75
    assert float(_auroc(y, jnp.array([False, True, False, True]))) == 1.0
    assert float(_auroc(y, jnp.array([-jnp.inf, jnp.inf, 0.0, jnp.inf]))) == 1.0
    assert float(_auroc(y == 1, jnp.array([0.0, 1.0, 0.0, 1.0]))) == 1.0


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([0, 1, 1], [0.0, math.nan, 1.0]),  # an unranked example
        ([0, 1, 2], [0.0, 0.5, 1.0]),  # a label that is none
        ([0, -1, 1], [0.0, 0.5, 1.0]),
        ([0, 0, 0], [0.0, 0.5, 1.0]),  # nothing to find
    ],
)
def test_undefined_rankings_are_nan(labels: list[int], scores: list[float]) -> None:
    y, s = jnp.array(labels), jnp.array(scores)
    assert math.isnan(_auroc(y, s))
    assert math.isnan(_average_precision(y, s))


def test_without_normals_only_the_roc_curve_is_undefined() -> None:
    y, s = jnp.array([1, 1]), jnp.array([0.1, 0.2])
    assert math.isnan(_auroc(y, s))
    assert float(_average_precision(y, s)) == 1.0
    assert np.isnan(_ours(jnp.zeros(0), jnp.zeros(0))).all()


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision])
def test_shapes_that_do_not_fit_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="vectors of one length"):
        metric(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(ValueError, match="vectors of one length"):
        metric(jnp.zeros((3, 1)), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="vectors of one length"):
        metric(jnp.zeros(3), jnp.zeros(3), jnp.ones(2, bool))


# ------------------------------------------------------------------------------------------ losses


@pytest.mark.usefixtures("x64")
def test_deviation_loss_and_its_gradient() -> None:
    scores = jnp.array([-1.0, 2.0, -3.0, 2.0, 30.0])
    labels = jnp.array([0, 0, 1, 1, 1])

    def loss(s: jax.Array) -> jax.Array:
        return losses.deviation_loss(s, labels, reference_mean=0.5, reference_std=2.0)

    # dev = (s - 0.5) / 2; |dev| where 0, max(0, 5 - dev) where 1
    np.testing.assert_allclose(loss(scores), [0.75, 0.75, 6.75, 4.25, 0.0], rtol=1e-15)
    slopes = jax.grad(lambda s: loss(s).sum())(scores)
    np.testing.assert_allclose(slopes, [-0.5, 0.5, -0.5, -0.5, 0.0], rtol=1e-15)


@pytest.mark.usefixtures("x64")
def test_deep_sad_loss_and_its_gradient() -> None:
    centre = jnp.array([1.0, 0.0])
    points = jnp.array([[1.0, 2.0], [4.0, 4.0], [1.0, 0.0]])
    labels = jnp.array([0, 1, 1])

    def loss(f: jax.Array) -> jax.Array:
        return losses.deep_sad_loss(f, labels, centre, eta=3.0, eps=0.5)

    np.testing.assert_allclose(loss(points), [4.0, 3 / 25.5, 6.0], rtol=1e-15)
    np.testing.assert_array_equal(loss(points.astype(np.float32)), loss(points))  # by the centre
    slopes = jax.grad(lambda f: loss(f).sum())(points)
    outwards = -3 * 2 / 25.5**2
    np.testing.assert_allclose(slopes, [[0, 4], [3 * outwards, 4 * outwards], [0, 0]], rtol=1e-14)


def test_a_label_that_is_neither_0_nor_1_gives_nan() -> None:
    labels = jnp.array([0, 1, 2, -1])
    for found in (
        losses.deviation_loss(jnp.zeros(4), labels),
        losses.deep_sad_loss(jnp.ones((4, 3)), labels, jnp.zeros(3)),
    ):
        assert jnp.isnan(found).tolist() == [False, False, True, True]


def test_coarse_inputs_are_widened() -> None:
    labels = jnp.array([0, 1])
    assert losses.deviation_loss(jnp.zeros(2, jnp.bfloat16), labels).dtype == jnp.float32
    embeddings = jnp.ones((2, 3), jnp.float16)
    assert losses.deep_sad_loss(embeddings, labels, jnp.zeros(3)).dtype == jnp.float32


def test_bad_arguments_are_refused_by_name() -> None:
    labels = jnp.array([0, 1])
    with pytest.raises(ValueError, match=r"output\[:, 0\]"):
        losses.deviation_loss(jnp.zeros((2, 1)), labels)
    with pytest.raises(ValueError, match="reference_std"):
        losses.deviation_loss(jnp.zeros(2), labels, reference_std=0.0)
    with pytest.raises(ValueError, match="one label each"):
        losses.deep_sad_loss(jnp.zeros((3, 4)), labels, jnp.zeros(4))
    with pytest.raises(ValueError, match="4 wide"):
        losses.deep_sad_loss(jnp.zeros((2, 4)), labels, jnp.zeros(3))
    with pytest.raises(ValueError, match="eps"):
        losses.deep_sad_loss(jnp.zeros((2, 4)), labels, jnp.zeros(4), eps=0.0)


def test_hits_are_counted_by_class_of_real_rows() -> None:
    """The first largest logit predicts; padding and labels of no class count nowhere."""
    draw = np.random.default_rng(0)
    logits = draw.integers(0, 3, (40, 4)).astype(np.float32)  # many are equal
    labels, mask = draw.integers(-2, 6, 40), draw.random(40) < 0.7
    for real in (np.ones(40, bool), mask):
        used = real & (labels >= 0) & (labels < 4)
        hit = used & (logits.argmax(axis=1) == labels)
        found = metrics.class_hits(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(real))
        for got, rows in zip(found, (hit, used), strict=True):
            assert got.dtype == jnp.int32
            np.testing.assert_array_equal(got, np.bincount(labels[rows], minlength=4))
    plain = metrics.class_hits(jnp.asarray(logits), jnp.asarray(labels))
    assert int(plain[1].sum()) == ((labels >= 0) & (labels < 4)).sum()
