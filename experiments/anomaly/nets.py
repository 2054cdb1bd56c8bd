"""The two anomaly detectors of ADBench as plain functions, under one contract.

An `AnomalyNet` is what training.py needs to know of a method. What is
drawn once a run (initial weights, reference scores, order of the batches) is drawn on the host
from NumPy's RandomState, whose streams are frozen for good, so that runs can be compared one by
one with other implementations:

    10000 + seed   initial weights          seed   reference scores of DevNet
    20000 + seed   order of the batches

Weights are [out, in]: `x @ w.T` and its gradient are then the two products that XLA's CPU backend
runs fastest, and tensors are drawn in the same shapes as elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from imbsam_jax import losses

__all__ = ["ANOMALY_NETS", "AnomalyNet", "deep_sad", "devnet"]

Params = dict[str, Any]

_BN_EPS, _BN_MOMENTUM = 1e-4, 0.1
_LEAK = 0.01


class AnomalyNet(NamedTuple):
    """One method: its network, its loss, and what is drawn for a run.

    Attributes:
      init: `(seed, x float32[n, d]) -> (params, fixed, state)` in NumPy; `x` is the scaled
        training set, `fixed` is what training never changes, `state` what it changes without a
        gradient (batch statistics).
      batches: `(seed, labels int[n], epochs) -> int32[steps, B]`, rows of every step.
      steps_per_epoch: `(n) -> int`.
      losses: `(params, x float[B, d], labels int[B], fixed, state) -> (losses float[B], state)`.
      scores: `(params, x float[n, d], fixed, state) -> float[n]`, larger is more anomalous.
      settled: as `losses`, but (losses float[B]) alone, of rows that do not see each other:
        batch normalisation takes the running statistics of `state`.
      decay: parameter -> coefficient of its weight decay (the gradient gets coefficient * w).
    """

    init: Callable[[int, NDArray[np.float32]], tuple[Params, Params, Params]]
    batches: Callable[[int, NDArray[Any], int], NDArray[np.int32]]
    steps_per_epoch: Callable[[int], int]
    losses: Callable[..., tuple[jax.Array, Params]]
    scores: Callable[..., jax.Array]
    settled: Callable[..., jax.Array]
    decay: dict[str, float]


# ------------------------------------------------------------------------------------------- DevNet


def devnet() -> AnomalyNet:
    """DevNet: d - 20 - ReLU - 1, scores measured against 5000 draws from a standard normal.

    20 steps an epoch, each of 64 rows without label and 64 labelled anomalies, drawn with
    replacement. L2 of 0.01 on the first kernel is a decay of 0.02.

    >>> x = np.zeros((4, 512), np.float32)
    >>> params, fixed, _ = devnet().init(0, x)
    >>> {name: value.shape for name, value in params.items()}
    {'w1': (20, 512), 'b1': (20,), 'w2': (1, 20), 'b2': (1,)}
    >>> round(float(fixed["mean"]), 4)
    -0.0147
    """
    half, steps, hidden = 64, 20, 20

    def init(seed: int, x: NDArray[np.float32]) -> tuple[Params, Params, Params]:
        draw = np.random.RandomState(10000 + seed)
        width = x.shape[1]
        params = {
            "w1": _uniform(draw, math.sqrt(6 / (width + hidden)), (hidden, width)),
            "b1": np.zeros(hidden, np.float32),
            "w2": _uniform(draw, math.sqrt(6 / (hidden + 1)), (1, hidden)),
            "b2": np.zeros(1, np.float32),
        }
        reference = np.random.RandomState(seed).normal(size=5000).astype(np.float32)
        return params, {"mean": reference.mean(), "std": reference.std()}, {}

    def batches(seed: int, labels: NDArray[Any], epochs: int) -> NDArray[np.int32]:
        draw = np.random.RandomState(20000 + seed)
        normal, anomaly = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        rows = np.empty((epochs * steps, 2 * half), np.int32)
        for row in rows:
            row[:half] = normal[draw.randint(0, len(normal), half)]
            row[half:] = anomaly[draw.randint(0, len(anomaly), half)]
        return rows

    def score(params: Params, x: jax.Array, fixed: Params, state: Params) -> jax.Array:
        del fixed, state
        hidden = jax.nn.relu(x @ params["w1"].T + params["b1"][None])
        return (hidden @ params["w2"].T)[:, 0] + params["b2"]

    def loss(
        params: Params, x: jax.Array, labels: jax.Array, fixed: Params, state: Params
    ) -> tuple[jax.Array, Params]:
        per_example = losses.deviation_loss(
            score(params, x, fixed, state),
            labels,
            reference_mean=fixed["mean"],
            reference_std=fixed["std"],
        )
        return per_example, state

    def settled(*args: Any) -> jax.Array:
        return loss(*args)[0]

    return AnomalyNet(init, batches, lambda n: steps, loss, score, settled, {"w1": 0.02})


# ------------------------------------------------------------------------------------------ DeepSAD


def deep_sad() -> AnomalyNet:
    """DeepSAD: d - 100 - 20 - 10 without biases, batch normalisation without scale and offset.

    An epoch is a permutation of the rows in batches of 128, the last partial one dropped; fewer
    rows are one batch. The centre is the mean output of the untrained network in evaluation mode,
    pushed at least 0.1 from zero in every coordinate. No autoencoder is trained before: in
    ADBench it hands over no weight. Running statistics are those of the clean pass alone.

    >>> x = np.zeros((4, 512), np.float32)
    >>> params, fixed, state = deep_sad().init(0, x)
    >>> {name: value.shape for name, value in params.items()}
    {'w1': (100, 512), 'w2': (20, 100), 'w3': (10, 20)}
    """
    widths, most = (100, 20, 10), 128

    def init(seed: int, x: NDArray[np.float32]) -> tuple[Params, Params, Params]:
        draw = np.random.RandomState(10000 + seed)
        fan_in = (x.shape[1], *widths[:-1])
        params = {
            f"w{k}": _uniform(draw, 1 / math.sqrt(before), (after, before))
            for k, (before, after) in enumerate(zip(fan_in, widths, strict=True), start=1)
        }
        state = {}
        for k, width in enumerate(widths[:-1], start=1):
            state[f"mean{k}"] = np.zeros(width, np.float32)
            state[f"var{k}"] = np.ones(width, np.float32)
        # On the host, where x has its own number of rows: in a compiled program it is padded.
        hidden = x.astype(np.float64)
        for k in range(1, len(widths)):
            hidden = hidden @ params[f"w{k}"].T / math.sqrt(1 + _BN_EPS)
            hidden = np.where(hidden > 0, hidden, _LEAK * hidden)
        centre = (hidden @ params["w3"].T).mean(axis=0)
        near = np.abs(centre) < 0.1
        centre[near] = 0.1 * np.sign(centre[near])  # exactly zero stays, as in the original
        return params, {"centre": centre.astype(np.float32)}, state

    def batches(seed: int, labels: NDArray[Any], epochs: int) -> NDArray[np.int32]:
        draw = np.random.RandomState(20000 + seed)
        n = len(labels)
        size = min(most, n)
        rows = np.empty((epochs, n // size, size), np.int32)
        for epoch in rows:
            epoch[:] = draw.permutation(n)[: epoch.size].reshape(epoch.shape)
        return rows.reshape(-1, size)

    def embed(params: Params, x: jax.Array, state: Params, train: bool) -> tuple[jax.Array, Params]:
        new = dict(state)
        for k in range(1, len(widths)):
            x = x @ params[f"w{k}"].T
            mean, var = state[f"mean{k}"], state[f"var{k}"]
            if train:
                rows = x.shape[0]
                batch_mean = x.mean(axis=0)
                batch_var = jnp.square(x - batch_mean[None]).mean(axis=0)
                new[f"mean{k}"] = mean + _BN_MOMENTUM * (batch_mean - mean)
                new[f"var{k}"] = var + _BN_MOMENTUM * (batch_var * (rows / (rows - 1)) - var)
                mean, var = batch_mean, batch_var
            x = jax.nn.leaky_relu((x - mean[None]) * jax.lax.rsqrt(var + _BN_EPS)[None], _LEAK)
        return x @ params["w3"].T, new

    def loss(
        params: Params, x: jax.Array, labels: jax.Array, fixed: Params, state: Params
    ) -> tuple[jax.Array, Params]:
        embeddings, state = embed(params, x, state, train=True)
        return losses.deep_sad_loss(embeddings, labels, fixed["centre"]), state

    def score(params: Params, x: jax.Array, fixed: Params, state: Params) -> jax.Array:
        embeddings, _ = embed(params, x, state, train=False)
        return jnp.square(embeddings - fixed["centre"][None]).sum(axis=-1)

    def settled(
        params: Params, x: jax.Array, labels: jax.Array, fixed: Params, state: Params
    ) -> jax.Array:
        embeddings, _ = embed(params, x, state, train=False)
        return losses.deep_sad_loss(embeddings, labels, fixed["centre"])

    def steps_per_epoch(n: int) -> int:
        return n // min(most, n)

    decay = {f"w{k}": 1e-6 for k in (1, 2, 3)}
    return AnomalyNet(init, batches, steps_per_epoch, loss, score, settled, decay)


def _uniform(draw: np.random.RandomState, bound: float, shape: tuple[int, ...]) -> NDArray[Any]:
    return draw.uniform(-bound, bound, shape).astype(np.float32)


ANOMALY_NETS: dict[str, Callable[[], AnomalyNet]] = {"devnet": devnet, "deepsad": deep_sad}
