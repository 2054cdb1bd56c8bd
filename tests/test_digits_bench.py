"""The digits bench against a loop over epochs and batches, written out for one seed at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import digits_training
from experiments.data.digits import load_digits_lt
from experiments.digits_training import Bench, Job
from experiments.methods import Tabled
from experiments.objectives import Objective
from experiments.settings import Settings
from imbsam_jax import losses, rules

SEEDS = [3, 8]
# Two whole batches and a smaller one an epoch; nothing but the gradient moves the parameters.
SETTINGS = Settings(
    epochs=3, batch_size=120, lr=0.05, schedule="constant", momentum=0.0, weight_decay=0.0
)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench([load_digits_lt(50, seed) for seed in SEEDS], SEEDS)


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_each_seed_and_epoch_has_an_order_of_its_own(bench: Bench, sampling: str) -> None:
    orders = np.asarray(bench.orders(sampling, 0, 3))
    assert orders.shape == (2, 3, bench.rows) and orders.dtype == np.int32
    flat = orders.reshape(6, -1)
    assert len({row.tobytes() for row in flat}) == 6
    # Wherever a call begins.
    np.testing.assert_array_equal(bench.orders(sampling, 1, 4)[:, :2], orders[:, 1:])
    if sampling == "natural":
        np.testing.assert_array_equal(np.sort(flat, axis=1), [np.arange(bench.rows)] * 6)
    else:
        for seed in range(2):
            labels = np.asarray(bench.train_set.labels)[seed]
            for order in orders[seed]:
                drawn = np.bincount(labels[order], minlength=10)
                assert drawn.max() - drawn.min() <= 1


def logits_of(params: Any, images: Any) -> Any:
    x = images.reshape(len(images), -1) / 16
    for layer in ("hidden_0", "hidden_1"):
        x = jnp.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def cross_entropy(params: Any, images: Any, labels: Any) -> Any:
    logits = logits_of(params, images)
    return (jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(labels)), labels]).mean()


@pytest.mark.allow_rank_promotion
def test_a_job_is_a_loop_over_epochs_and_batches(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, counts and parameters; evaluated after every epoch, so in calls of one."""
    monkeypatch.setattr(digits_training, "EPOCHS_PER_CALL", 1)
    objective = Objective(losses.cross_entropy, 10)
    job = Job("sgd", Tabled(rules.sgd(10)), objective, SETTINGS)
    curve, found = bench.train([job])["sgd"]
    assert curve.epochs == [1, 2, 3] and (curve.seconds > 0).all()
    step = jax.jit(jax.value_and_grad(cross_entropy))
    fresh = jax.device_get(bench.fresh())
    train, test = jax.device_get((bench.train_set, bench.test_set))
    for number, seed in enumerate(SEEDS):
        params = jax.tree.map(lambda leaf, k=number: leaf[k], fresh)
        for epoch in range(3):
            order = np.random.default_rng([seed, epoch]).permutation(bench.rows)
            total = 0.0
            for start in range(0, bench.rows, 120):
                rows = order[start : start + 120]
                images = np.float32(train.images[number][rows])
                loss, grads = step(params, images, train.labels[number][rows])
                params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
                total += len(rows) * float(loss)
            np.testing.assert_allclose(curve.loss[epoch, number], total / bench.rows, rtol=1e-4)
            labels = test.labels[number]
            right = logits_of(params, np.float32(test.images[number])).argmax(-1) == labels
            counts = np.bincount(labels, minlength=10)
            hits = np.bincount(labels[right], minlength=10)
            share = 100 * (hits / counts).mean()
            np.testing.assert_allclose(curve.splits["all"][epoch, number], share, atol=0.5)
        # A prediction or two may hang on rounding.
        np.testing.assert_array_equal(curve.total[number], counts)
        assert np.abs(curve.correct[number] - hits).sum() <= 2
        first = curve.splits["all"][0, number]
        assert abs(first - share) > 2, "the first evaluation cannot be told from the last"
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(got[number], want, rtol=1e-3, atol=1e-5)
