"""The plots of a run folder, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def per_class(path: Path, title: str, counts: Any, correct: Any, total: Any) -> None:
    """Accuracy of each class, largest first, with its number of training examples."""
    counts, correct, total = (np.asarray(x) for x in (counts, correct, total))
    order = np.argsort(-counts, kind="stable")
    accuracy = np.where(total > 0, 100 * correct / np.maximum(total, 1), np.nan)[order]
    figure, left = plt.subplots(figsize=(8, 3.5), layout="constrained")
    left.bar(np.arange(len(counts)), accuracy, color="tab:blue", width=0.9)
    left.set(xlabel="class, by training examples", ylabel="test accuracy (%)", title=title)
    left.set_ylim(0, 100)
    _sizes(left, counts[order])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _sizes(axes: Any, counts: np.ndarray) -> None:
    right = axes.twinx()
    right.plot(np.arange(len(counts)), counts, color="black", linewidth=1)
    right.set_yscale("log")
    right.set_ylabel("training examples")


def learning_curves(path: Path, title: str, lines: list[dict[str, Any]]) -> None:
    """Training loss and test accuracies by epoch, from metrics.jsonl."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot([x["epoch"] for x in lines], [x["train_loss"] for x in lines])
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    for name in ("all", "many", "medium", "few"):
        seen = [(x["epoch"], x[f"test_{name}"]) for x in lines if x.get(f"test_{name}") is not None]
        if seen:
            right.plot(*zip(*seen, strict=True), label=name)
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set_ylim(0, 100)
    if lines:
        right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def classes_by_rule(path: Path, counts: Any, accuracy: dict[str, np.ndarray]) -> None:
    """Accuracy of each class under each rule, with its number of training examples."""
    figure, left = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for name, values in accuracy.items():
        left.plot(np.arange(len(counts)), values, marker="o", label=name)
    left.set(xlabel="class, by training examples", ylabel="test accuracy (%), mean of seeds")
    left.legend(loc="lower left")
    _sizes(left, np.asarray(counts))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves_by_rule(path: Path, curves: dict[str, tuple[list[int], dict[str, np.ndarray]]]) -> None:
    """Mean test accuracy by epoch of each rule, a panel a split."""
    panels = list(next(iter(curves.values()))[1])
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.5), layout="constrained")
    for axis, split in zip(np.atleast_1d(axes), panels, strict=True):
        for name, (epochs, values) in curves.items():
            axis.plot(epochs, values[split], label=name)
        axis.set(xlabel="epoch", ylabel="test accuracy (%), mean of seeds", title=split)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
