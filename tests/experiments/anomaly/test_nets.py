"""What the detectors keep and how they score, in NumPy; their steps are in test_program.py"""

import jax
import numpy as np
import pytest

from experiments.anomaly.nets import deep_sad, devnet

ROWS, WIDTH = 12, 5
LABELS = np.arange(ROWS) % 3 == 0


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def test_devnet_scores_and_settled_losses(rows):
    """The score is what its one output unit says; a row's loss does not depend on the others."""
    draw = np.random.default_rng(1)
    params, fixed, state = devnet().init(3, rows)
    params = {name: draw.normal(size=w.shape).astype(np.float32) for name, w in params.items()}
    score = np.maximum(rows @ params["w1"].T + params["b1"], 0) @ params["w2"][0] + params["b2"]
    found = jax.jit(devnet().scores)(params, rows, fixed, state)
    np.testing.assert_allclose(found, score, rtol=1e-4, atol=1e-5)
    deviation = (score - fixed["mean"]) / fixed["std"]
    losses = np.where(LABELS, np.maximum(5 - deviation, 0), np.abs(deviation))
    settled = jax.jit(devnet().settled)(params, rows, LABELS.astype(np.int32), fixed, state)
    np.testing.assert_allclose(settled, losses, rtol=1e-4, atol=1e-5)
    assert state == {}


def layer(x, w, mean, var):
    """A layer of ADBench's DeepSAD: batch normalisation without scale and offset, leaky ReLU"""
    hidden = (x @ w.T - mean) / np.sqrt(var + 1e-4)
    return np.where(hidden > 0, hidden, 0.01 * hidden)


def test_deep_sad_scores_by_its_running_statistics(rows):
    """Squared distances to the centre, summed; labelled anomalies' losses are their inverses."""
    draw = np.random.default_rng(1)
    params, fixed, state = deep_sad().init(3, rows)
    state = {name: draw.uniform(0.5, 1.5, x.shape).astype(np.float32) for name, x in state.items()}
    x = rows
    for k in (1, 2):
        x = layer(x, params[f"w{k}"], state[f"mean{k}"], state[f"var{k}"])
    distances = ((x @ params["w3"].T - fixed["centre"]) ** 2).sum(axis=1)
    found = jax.jit(deep_sad().scores)(params, rows, fixed, state)
    np.testing.assert_allclose(found, distances, rtol=1e-4)
    settled = jax.jit(deep_sad().settled)(params, rows, LABELS.astype(np.int32), fixed, state)
    expected = np.where(LABELS, 1 / (distances + 1e-6), distances)
    np.testing.assert_allclose(settled, expected, rtol=1e-4)


def test_running_statistics_of_deep_sad_are_pytorchs(rows):
    """A tenth of the batch's mean and of its unbiased variance; normalised by the biased one."""
    params, fixed, state = deep_sad().init(3, rows)
    before = {name: x + np.float32(0.25) for name, x in state.items()}
    _, after = jax.jit(deep_sad().losses)(params, rows, LABELS.astype(np.int32), fixed, before)
    x = rows.astype(np.float64)
    for k in (1, 2):
        hidden = x @ params[f"w{k}"].T
        mean, var = hidden.mean(axis=0), hidden.var(axis=0, ddof=1)
        np.testing.assert_allclose(after[f"mean{k}"], 0.9 * 0.25 + 0.1 * mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after[f"var{k}"], 0.9 * 1.25 + 0.1 * var, rtol=1e-4)
        x = layer(x, params[f"w{k}"], mean, hidden.var(axis=0))
    assert after.keys() == before.keys()


def test_a_centre_at_zero_stays_there():
    """As in ADBench, which pushes what is near zero away by its sign; zero has none."""
    _, fixed, _ = deep_sad().init(0, np.zeros((4, WIDTH), np.float32))
    assert fixed["centre"].tolist() == [0] * 10


def test_batches_are_of_streams_of_their_own():
    """Of RandomState(20000 + seed): DevNet's two halves in turn, DeepSAD's rows permuted."""
    draw = np.random.RandomState(20003)
    normal, anomaly = np.flatnonzero(~LABELS), np.flatnonzero(LABELS)
    rows = devnet().batches(3, LABELS.astype(int), 1)
    assert rows.shape == (20, 128) and devnet().steps_per_epoch(ROWS) == 20
    for row in rows[:2]:
        np.testing.assert_array_equal(row[:64], normal[draw.randint(0, len(normal), 64)])
        np.testing.assert_array_equal(row[64:], anomaly[draw.randint(0, len(anomaly), 64)])
    draw = np.random.RandomState(20003)
    for row in deep_sad().batches(3, LABELS.astype(int), 2):
        np.testing.assert_array_equal(row, draw.permutation(ROWS))
