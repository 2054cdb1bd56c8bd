"""DevNet and DeepSAD under SGD, SAM and ImbSAM, slowly: float64 NumPy, gradients by hand.

Written from the protocol of the measured baseline, not from the code under test: the random
streams, the order of the batches, the networks and the optimizer step are all spelled out here
again. `trajectory` gives the loss and the norm of every tensor, step by step.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Params = dict[str, Array]


@dataclasses.dataclass
class Path:
    """What a run passed through."""

    losses: list[float]  # of each batch, at the unperturbed weights
    norms: dict[str, list[float]]  # of each tensor, after each step
    params: Params  # after the last step


# --------------------------------------------------------------------------------- DevNet, 512-20-1


class DevNet:
    decay: ClassVar = {"w1": 0.02}  # from 0.01 * ||W1||^2

    def __init__(self, x: Array, seed: int):
        del x
        self.reference = np.random.RandomState(seed).normal(size=5000).astype(np.float32)
        self.mean = float(self.reference.astype(np.float64).mean())
        self.std = float(self.reference.astype(np.float64).std())

    def start(self, width: int, seed: int) -> Params:
        r = np.random.RandomState(10000 + seed)
        first, second = np.sqrt(6 / (width + 20)), np.sqrt(6 / 21)
        w1 = r.uniform(-first, first, (20, width)).astype(np.float32)
        w2 = r.uniform(-second, second, (1, 20)).astype(np.float32)
        return {
            "w1": w1.astype(np.float64),
            "b1": np.zeros(20),
            "w2": w2.astype(np.float64),
            "b2": np.zeros(1),
        }

    def batches(self, labels: NDArray[Any], seed: int, steps: int) -> list[NDArray[Any]]:
        b = np.random.RandomState(20000 + seed)
        rows_0, rows_1 = np.where(labels == 0)[0], np.where(labels == 1)[0]
        result = []
        for _ in range(steps):
            unlabelled = rows_0[b.randint(0, len(rows_0), 64)]
            labelled = rows_1[b.randint(0, len(rows_1), 64)]
            result.append(np.concatenate([unlabelled, labelled]))
        return result

    def losses(self, p: Params, x: Array, y: NDArray[Any]) -> tuple[Array, Any]:
        before = x @ p["w1"].T + p["b1"]
        hidden = np.where(before > 0, before, 0.0)
        score = hidden @ p["w2"][0] + p["b2"][0]
        dev = (score - self.mean) / self.std
        losses = np.where(y == 1, np.maximum(5 - dev, 0), np.abs(dev))
        return losses, (x, y, before, hidden, dev)

    def backward(self, p: Params, kept: Any, weights: Array) -> Params:
        """Gradient of sum_i weights_i loss_i."""
        x, y, before, hidden, dev = kept
        by_dev = np.where(y == 1, np.where(dev < 5, -1.0, 0.0), np.sign(dev))
        d_score = weights * by_dev / self.std
        d_before = np.outer(d_score, p["w2"][0]) * (before > 0)
        return {
            "w1": d_before.T @ x,
            "b1": d_before.sum(axis=0),
            "w2": (d_score @ hidden)[None, :],
            "b2": np.array([d_score.sum()]),
        }


# --------------------------------------------------------------------- DeepSAD, 512-100-BN-20-BN-10


class DeepSAD:
    decay: ClassVar = {"w1": 1e-6, "w2": 1e-6, "w3": 1e-6}

    def __init__(self, x: Array, seed: int):
        p = self.start(x.shape[1], seed)
        h = x
        for name in ("w1", "w2"):  # evaluation mode: running mean 0, running variance 1
            h = h @ p[name].T / np.sqrt(1 + 1e-4)
            h = np.where(h > 0, h, 0.01 * h)
        centre = (h @ p["w3"].T).mean(axis=0)
        for i, c in enumerate(centre):
            if -0.1 < c < 0:
                centre[i] = -0.1
            elif 0 < c < 0.1:
                centre[i] = 0.1
        self.centre = centre

    def start(self, width: int, seed: int) -> Params:
        r = np.random.RandomState(10000 + seed)
        sizes = {"w1": (100, width), "w2": (20, 100), "w3": (10, 20)}
        return {
            name: r.uniform(-1 / np.sqrt(shape[1]), 1 / np.sqrt(shape[1]), shape)
            .astype(np.float32)
            .astype(np.float64)
            for name, shape in sizes.items()
        }

    def batches(self, labels: NDArray[Any], seed: int, steps: int) -> list[NDArray[Any]]:
        b = np.random.RandomState(20000 + seed)
        n = len(labels)
        size = min(128, n)
        result: list[NDArray[Any]] = []
        while len(result) < steps:
            order = b.permutation(n)
            result += [order[i : i + size] for i in range(0, n - size + 1, size)]
        return result[:steps]

    def losses(self, p: Params, x: Array, y: NDArray[Any]) -> tuple[Array, Any]:
        kept, h = [], x
        for name in ("w1", "w2"):
            before = h @ p[name].T
            mean, var = before.mean(axis=0), before.var(axis=0)
            normal = (before - mean) / np.sqrt(var + 1e-4)
            kept.append((h, normal, np.sqrt(var + 1e-4)))
            h = np.where(normal > 0, normal, 0.01 * normal)
        away = h @ p["w3"].T - self.centre
        dist = (away**2).sum(axis=1)
        return np.where(y == 1, 1 / (dist + 1e-6), dist), (kept, h, away, dist, y)

    def backward(self, p: Params, kept: Any, weights: Array) -> Params:
        layers, h, away, dist, y = kept
        d_dist = weights * np.where(y == 1, -1 / (dist + 1e-6) ** 2, 1.0)
        d = 2 * d_dist[:, None] * away
        grads = {"w3": d.T @ h}
        d = d @ p["w3"]
        for name, (below, normal, deviation) in zip(("w2", "w1"), layers[::-1], strict=True):
            d = np.where(normal > 0, d, 0.01 * d)
            # Batch normalisation: the mean and the spread of the column move with every row.
            d = (d - d.mean(axis=0) - normal * (d * normal).mean(axis=0)) / deviation
            grads[name] = d.T @ below
            d = d @ p[name]
        return grads


# -------------------------------------------------------------------------------- one training step


def perturbed(p: Params, gradient: Params, rho: float) -> Params:
    """p + rho g / ||g||, the norm over all tensors; p itself where g is zero."""
    length = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    if length == 0:
        return p
    return {name: p[name] + rho * gradient[name] / length for name in p}


def sharpness_aware(
    net: Any, rule: str, p: Params, x: Array, y: NDArray[Any], rho: float
) -> tuple[float, Params]:
    """Mean loss at p, and the rule's gradient: all weights are divided by the batch size."""
    rows = len(y)
    losses, kept = net.losses(p, x, y)
    everything = np.full(rows, 1 / rows)
    head, tail = everything * (y == 0), everything * (y == 1)
    if rule == "sgd":
        return losses.mean(), net.backward(p, kept, everything)
    moved_by = everything if rule == "sam" else tail
    there = perturbed(p, net.backward(p, kept, moved_by), rho)
    _, kept_there = net.losses(there, x, y)
    gradient = net.backward(there, kept_there, moved_by)
    if rule == "imbsam":
        at_p = net.backward(p, kept, head)
        gradient = {name: gradient[name] + at_p[name] for name in p}
    return losses.mean(), gradient


NETS = {"devnet": DevNet, "deepsad": DeepSAD}


def trajectory(
    method: str, rule: str, x: NDArray[Any], labels: NDArray[Any], *, seed: int, steps: int,
    lr: float = 1e-3, rho: float = 0.05,
) -> Path:  # fmt: skip
    """The first steps of a run: SGD, momentum 0.9, weight decay at the unperturbed weights."""
    x = x.astype(np.float64)
    net = NETS[method](x, seed)
    p = net.start(x.shape[1], seed)
    momentum = {name: np.zeros_like(value) for name, value in p.items()}
    path = Path([], {name: [] for name in p}, p)
    for rows in net.batches(labels, seed, steps):
        loss, gradient = sharpness_aware(net, rule, p, x[rows], labels[rows], rho)
        for name in p:
            step = gradient[name] + net.decay.get(name, 0.0) * p[name]
            momentum[name] = 0.9 * momentum[name] + step
        p = {name: p[name] - lr * momentum[name] for name in p}
        path.losses.append(float(loss))
        for name in p:
            path.norms[name].append(float(np.linalg.norm(p[name])))
    path.params = p
    return path
