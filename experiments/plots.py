"""The plots of a run folder, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Above this many classes a bar each is narrower than a pixel: neighbours are drawn together.
_MOST_BARS = 300


def per_class(path: Path, title: str, counts: Any, correct: Any, total: Any) -> None:
    """Accuracy of each class, largest first, with its number of training examples.

    With more than 300 classes, the mean and the middle half of each hundredth of them; classes
    that were not tested are left out.
    """
    counts, correct, total = (np.asarray(x) for x in (counts, correct, total))
    order = np.argsort(-counts, kind="stable")
    accuracy = np.where(total > 0, 100 * correct / np.maximum(total, 1), np.nan)[order]
    figure, left = plt.subplots(figsize=(8, 3.5), layout="constrained")
    if len(counts) <= _MOST_BARS:
        left.bar(np.arange(len(counts)), accuracy, color="tab:blue", width=0.9)
    else:
        centres, means, low, high = hundredths(accuracy)
        left.fill_between(centres, low, high, color="tab:blue", alpha=0.25, linewidth=0, step="mid",
                          label="middle half")  # fmt: skip
        left.plot(centres, means, color="tab:blue", drawstyle="steps-mid",
                  label=f"mean of {len(counts) // 100} classes")  # fmt: skip
        left.legend(loc="lower left")
    left.set(xlabel="class, by training examples", ylabel="test accuracy (%)", title=title)
    left.set_ylim(0, 100)
    _sizes(left, counts[order])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def hundredths(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(centre, mean, lower and upper quartile) of each of 100 parts, NaN left out.

    A part of nothing but NaN is left out.
    """
    parts = [
        (at.mean(), values[at][np.isfinite(values[at])])
        for at in np.array_split(np.arange(len(values)), 100)
    ]
    known = [(centre, part) for centre, part in parts if part.size]
    centres, means = [c for c, _ in known], [part.mean() for _, part in known]
    low, high = zip(*(np.percentile(part, [25, 75]) for _, part in known), strict=True)
    return np.array(centres), np.array(means), np.array(low), np.array(high)


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


def gain_per_class(path: Path, panels: list[dict[str, Any]]) -> None:
    """Accuracy gain of each class over SGD, largest class first, a panel a method.

    Args:
      path: the PNG.
      panels: each with "title", "counts" int[C], "gain" float[C] in points, NaN for a class that
        was not tested, and "eta": where the tail begins, or None.
    """
    size = (8, 2.6 * len(panels) + 0.2)
    figure, axes = plt.subplots(
        len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    for left, panel in zip(axes[:, 0], panels, strict=True):
        counts, gain = np.asarray(panel["counts"]), np.asarray(panel["gain"], float)
        order = np.argsort(-counts, kind="stable")
        counts, gain, places = counts[order], gain[order], np.arange(len(counts))
        colours = np.where(gain < 0, "tab:red", "tab:blue")
        left.bar(places, gain, color=colours, width=0.8, alpha=0.7)
        left.axhline(0, color="grey", linewidth=0.5)
        if len(counts) >= 30:
            window = len(counts) // 10
            left.plot(places, _running_mean(gain, window), color="tab:orange", linewidth=2,
                      label=f"mean of {window} classes")  # fmt: skip
        if panel["eta"] is not None:
            first = np.count_nonzero(counts > panel["eta"]) - 0.5
            left.axvline(first, color="grey", linestyle="--", label=f"η = {panel['eta']:g}")
        left.set(title=panel["title"], ylabel="gain over SGD (points)")
        left.set_xlabel("class, by training examples")
        if left.get_legend_handles_labels()[0]:
            left.legend(loc="lower left", ncols=2, fontsize="small", frameon=False)
        _sizes(left, counts)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the values within window / 2 of each; fewer at the ends, NaN left out."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    sums = np.convolve(np.where(known, values, 0), kernel, "same")
    return sums / np.maximum(np.convolve(known.astype(float), kernel, "same"), 1)


def sweep(path: Path, label: str, lines: dict[str, dict[str, Any]], sgd: dict[str, float]) -> None:
    """Test accuracy over a hyper-parameter, a line a setting of the others, a panel a split.

    Args:
      path: the PNG.
      label: of the hyper-parameter.
      lines: by name, each with "x" and, by split, "mean" and "se" (of the difference to SGD);
        "chosen" is the place in x of what validation chose, or None.
      sgd: accuracy of SGD by split.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained", sharex=True)
    for axis, (split, level) in zip(axes.flat, sgd.items(), strict=True):
        for name, line in lines.items():
            mean, se = (np.asarray(line[key][split]) for key in ("mean", "se"))
            drawn = axis.errorbar(line["x"], mean, se, marker=".", capsize=2, label=name)
            if line["chosen"] is not None:
                at = line["chosen"]
                axis.plot(line["x"][at], mean[at], "o", markersize=12, fillstyle="none",
                          color=drawn[0].get_color(), label="chosen by validation")  # fmt: skip
        axis.axhline(level, color="grey", linestyle="--", label="SGD")
        values = [x for line in lines.values() for x in line["x"]]
        if min(values) > 0 and max(values) >= 10 * min(values):
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(values)), [f"{x:g}" for x in sorted(set(values))])
            axis.minorticks_off()
        axis.set(title=split.capitalize(), ylabel="test accuracy (%), mean of seeds")
    for axis in axes[1]:
        axis.set_xlabel(label)
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run_folder(
    at: Path, title: str, lines: list[dict[str, Any]], counts: np.ndarray, hits: Any
) -> None:
    """The pictures of a run folder: accuracy by class, and by epoch."""
    per_class(at / "per_class.png", title, counts, hits.correct, hits.total)
    learning_curves(at / "curves.png", title, lines)
