"""The plots of run folders and tables, as PNG and SVG.

`experiments.redraw` makes them again of a folder's files.

Lines differ in colour, dashes and marker, so that they can be told apart in grey. Each function
writes its file whole or not at all, and returns the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reports import drawing
from experiments.reports.drawing import Thresholds

# Above this many classes a bar each is narrower than a pixel: neighbours are drawn together.
_MOST_BARS = 300
# Up to this many, the sizes of the classes are written below them.
_MOST_NAMES = 20

_ACCURACY = "test accuracy (%)"
_CLASSES = "class, largest first"
_SIZES = "training examples of the class (bars, right axis)"
# Wide and light below, narrow and dark above: where lines lie on one another each is seen.
_SPLITS: dict[str, dict[str, Any]] = {
    "many": {"color": "#56B4E9", "linestyle": "-", "marker": "s", "linewidth": 4, "markersize": 8},
    "medium": {"color": "#009E73", "linestyle": "-", "marker": "^", "linewidth": 2.5,
               "markersize": 7},
    "few": {"color": "#D55E00", "linestyle": "--", "marker": "o", "linewidth": 1.5,
            "markerfacecolor": "none"},
    "all": {"color": "black", "linestyle": ":", "marker": "x", "linewidth": 1.5},
}  # fmt: skip


# ---- of a run -------------------------------------------------------------------------------


def per_class(
    path: Path, title: str, counts: Any, correct: Any, total: Any,
    thresholds: Thresholds | None = None,
) -> Figure:  # fmt: skip
    """Accuracy of each class, largest first, with its number of training examples.

    With more than 300 classes, the mean and the middle half of each hundredth of them; classes
    that were not tested are left out.
    """
    counts, correct, total = (np.asarray(x) for x in (counts, correct, total))
    order = np.argsort(-counts, kind="stable")
    accuracy = np.where(total > 0, 100 * correct / np.maximum(total, 1), np.nan)[order]
    figure = Figure(figsize=(8, 4), layout="constrained")
    left = figure.subplots()
    if len(counts) <= _MOST_BARS:
        left.plot(np.arange(len(counts)), accuracy, color="#0072B2", linewidth=1, marker="o",
                  markersize=3 if len(counts) > _MOST_NAMES else 5, label="accuracy")  # fmt: skip
    else:
        centres, means, low, high = hundredths(accuracy)
        left.fill_between(centres, low, high, color="tab:blue", alpha=0.25, linewidth=0, step="mid",
                          label="middle half")  # fmt: skip
        left.plot(centres, means, color="tab:blue", drawstyle="steps-mid",
                  label=f"mean of {len(counts) // 100} classes")  # fmt: skip
    left.set(xlabel=_CLASSES + drawing.shot_note(thresholds), ylabel=_ACCURACY)
    left.set_title(drawing.wrapped(title), pad=20)
    left.set_ylim(0, 100)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawing.shots(left, counts[order], thresholds)
    right = _sizes(left, counts[order])
    drawing.legend(figure, (left, right), "outside lower center")
    return drawing.save(figure, path)


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
    quartiles = np.array([np.percentile(part, [25, 75]) for _, part in known]).reshape(-1, 2)
    return np.array(centres), np.array(means), quartiles[:, 0], quartiles[:, 1]


def _sizes(axes: Axes, counts: np.ndarray) -> Axes:
    """Bars of the sizes of the classes, behind what is drawn; numbers on them where they fit."""
    right: Axes = axes.twinx()
    bars = right.bar(np.arange(len(counts)), counts, color="#dddddd", width=0.85, label=_SIZES)
    if (counts > 0).any():
        right.set_yscale("log")
        right.set_ylim(max(0.5, counts[counts > 0].min() / 2), counts.max() * 4)
    if len(counts) <= _MOST_NAMES:
        right.bar_label(bars, [f"{n}" for n in counts], fontsize="x-small", color="#555555")
    right.set_ylabel("training examples")
    # A second axis lies on the first: behind it, the first must let it through.
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    return right


def learning_curves(
    path: Path, title: str, lines: Sequence[Mapping[str, Any]], thresholds: Thresholds | None = None
) -> Figure:
    """Training loss and test accuracies by epoch, from metrics.jsonl."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([x["epoch"] for x in lines], [x["train_loss"] for x in lines], color="black",
              marker="." if len(lines) < 30 else "", label="_loss")  # fmt: skip
    left.set_ylabel("training loss, mean over examples")
    named = drawing.shot_names(thresholds)
    for name, look in _SPLITS.items():
        seen = [(x["epoch"], x[f"test_{name}"]) for x in lines if x.get(f"test_{name}") is not None]
        if seen:
            every = max(1, len(seen) // 12)
            right.plot(*zip(*seen, strict=True), label=named[name], markevery=every, **look)
    right.set_ylabel(_ACCURACY)
    right.set_ylim(-2, 100)  # a line at 0 is seen
    for axis in (left, right):
        drawing.whole_epochs(axis)
    figure.suptitle(drawing.wrapped(title), fontsize="medium")
    drawing.legend(figure, (right,))
    return drawing.save(figure, path)


# ---- of several methods ---------------------------------------------------------------------


def classes_by_rule(
    path: Path, counts: Any, panels: Mapping[str, Mapping[str, Any]],
    thresholds: Thresholds | None = None, seeds: int | None = None,
    errors: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:  # fmt: skip
    """Accuracy of each class under each rule over its size, a panel a loss or second stage.

    Args:
      path: the PNG.
      counts: int[C], training examples of each class.
      panels: by title (may be ""), float[C] in percent by name.
      thresholds: of Many and Few.
      seeds: the accuracies are means over so many.
      errors: standard errors over seeds, as panels has the means; drawn where they are known.
    """
    sizes = np.asarray(counts)
    order = np.argsort(-sizes, kind="stable")
    looks = drawing.styles(name for values in panels.values() for name in values)
    figure = Figure(figsize=(5 * len(panels) + 3, 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    beside = []
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        known = (errors or {}).get(title, {})
        for name, accuracy in values.items():
            axis.plot(np.arange(len(sizes)), np.asarray(accuracy)[order], label=name, **looks[name])
            if name in known:
                axis.errorbar(
                    np.arange(len(sizes)), np.asarray(accuracy)[order],
                    np.asarray(known[name])[order], fmt="none", capsize=2, linewidth=1,
                    ecolor=looks[name]["color"],
                )  # fmt: skip
        axis.set_title(title, pad=20, fontsize="medium")
        axis.set_xlabel(_CLASSES)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        right = _sizes(axis, sizes[order])
        drawing.shots(axis, sizes[order], thresholds)
        beside += [axis, right]
    bars = "; error bars: its standard error" if errors else ""
    axes[0].set_ylabel(_ACCURACY + _of_seeds(seeds) + bars, fontsize="small")
    drawing.legend(figure, beside, "outside lower center")
    return drawing.save(figure, path)


def _of_seeds(seeds: int | None) -> str:
    if seeds is None:
        return ", mean over seeds"
    return f", mean of {seeds} seeds" if seeds > 1 else ", one seed"


def curves_by_rule(
    path: Path, panels: Mapping[str, Mapping[str, tuple[Any, Mapping[str, Any]]]],
    seeds: int | None = None,
) -> Figure:  # fmt: skip
    """Mean test accuracy by epoch of each rule: a column a split, a row a loss or second stage.

    Args:
      path: the PNG.
      panels: by title (may be ""), by name, (epochs, float[E] in percent by split); a split's
        name with "_se" after it has its standard error over seeds, where that is known.
      seeds: the accuracies are means over so many.
    """
    given = next(iter(next(iter(panels.values())).values()))[1]
    splits = [split for split in given if not split.endswith("_se")]
    looks = drawing.styles(name for values in panels.values() for name in values)
    figure = Figure(figsize=(4 * len(splits) + 2.5, 3.4 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(splits), squeeze=False)
    for row, (title, values) in zip(grid, panels.items(), strict=True):
        for axis, split in zip(row, splits, strict=True):
            for name, (epochs, accuracies) in values.items():
                every = max(1, len(epochs) // 8)
                axis.plot(epochs, accuracies[split], label=name, markevery=every, **looks[name])
                if f"{split}_se" in accuracies:
                    mean, error = (np.asarray(accuracies[key]) for key in (split, f"{split}_se"))
                    axis.fill_between(epochs, mean - error, mean + error, alpha=0.2, linewidth=0,
                                      color=looks[name]["color"])  # fmt: skip
            axis.set_title(", ".join(filter(None, (split.capitalize(), title))), fontsize="medium")
            drawing.whole_epochs(axis)
        row[0].set_ylabel(_ACCURACY + _of_seeds(seeds), fontsize="small")
    if any(split.endswith("_se") for split in given):
        figure.suptitle("bands: standard error over seeds", fontsize="small")
    if len(panels) > 1 or not drawing.label_ends(grid[0, -1], grid[0, -1].lines):
        drawing.legend(figure, grid.flat)
    return drawing.save(figure, path)


def gains_by_rule(path: Path, panels: Mapping[str, Any], against: str, seeds: int) -> Figure:
    """Mean difference in accuracy ± standard error of each method, a panel a split.

    Args:
      path: the PNG.
      panels: by split, (mean, standard error or None) by name, in points.
      against: what the differences are to.
      seeds: over so many.
    """
    names = list(next(iter(panels.values())))
    size = (9, 0.32 * len(names) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (split, values) in zip(axes, panels.items(), strict=True):
        for place, name in enumerate(names):
            mean, error = values[name]
            at = [np.nan if mean is None else mean]
            axis.errorbar(at, [place], xerr=[error or 0], capsize=3, color="black", fmt="o")
        axis.axvline(0, color="grey", linewidth=0.8, linestyle="--")
        axis.set_title(split.capitalize(), fontsize="medium")
        axis.set_xlabel("difference (points)")
        axis.grid(axis="x", linewidth=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)  # the first on top
    bars = "; bars: standard error" if seeds > 1 else ""
    figure.suptitle(f"accuracy minus {against}{_of_seeds(seeds)}{bars}", fontsize="medium")
    return drawing.save(figure, path)


def gain_per_class(path: Path, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy gain of each class over SGD, largest class first, a panel a method.

    Args:
      path: the PNG.
      panels: each with "title", "counts" int[C], "gain" float[C] in points, NaN for a class that
        was not tested, and "eta": where the tail begins, or None; if known, "se" float[C], the
        standard error over seeds, and "thresholds" of Many and Few.
    """
    figure = Figure(figsize=(9, 3.0 * len(panels) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, sharey=True)[:, 0]
    beside: list[Axes] = []
    for left, panel in zip(axes, panels, strict=True):
        counts, gain = np.asarray(panel["counts"]), np.asarray(panel["gain"], float)
        order = np.argsort(-counts, kind="stable")
        counts, gain, places = counts[order], gain[order], np.arange(len(counts))
        error = panel.get("se")
        left.bar(places, gain, color="#0072B2", width=0.5, label="gain of a class")
        if error is not None:
            left.errorbar(places, gain, np.asarray(error, float)[order], color="black",
                          linestyle="none", linewidth=0.7,
                          label="± standard error over seeds")  # fmt: skip
        left.axhline(0, color="grey", linewidth=0.5)
        if len(counts) >= 30:
            window = len(counts) // 10
            left.plot(places, _running_mean(gain, window), color="#D55E00", linewidth=2,
                      label=f"mean of {window} classes")  # fmt: skip
        if panel["eta"] is not None:
            first = np.count_nonzero(counts > panel["eta"]) - 0.5
            left.axvline(first, color="black", linestyle="-.", label=f"η = {panel['eta']:g}")
        one = "" if error is not None else "; one seed: its error is not known"
        left.set_title(drawing.wrapped(panel["title"] + one), fontsize="medium", pad=20)
        left.set_ylabel("gain over SGD (points)")
        left.set_xlabel(_CLASSES + drawing.shot_note(panel.get("thresholds")))
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.shots(left, counts, panel.get("thresholds"))
        beside += [left, _sizes(left, counts)]
    drawing.legend(figure, beside, "outside lower center")
    return drawing.save(figure, path)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the values within window / 2 of each; fewer at the ends, NaN left out."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    sums = np.convolve(np.where(known, values, 0), kernel, "same")
    return sums / np.maximum(np.convolve(known.astype(float), kernel, "same"), 1)


def sweep(
    path: Path,
    label: str,
    lines: Mapping[str, Mapping[str, Any]],
    sgd: Mapping[str, float],
    sgd_chosen: bool = False,
) -> Figure:
    """Test accuracy over a hyper-parameter, a line a setting of the others, a panel a split.

    Args:
      path: the PNG.
      label: of the hyper-parameter.
      lines: by name, each with "x" and, by split, "mean" and "se" (of the difference to SGD);
        "chosen" is the place in x of what validation chose, or None.
      sgd: accuracy of SGD by split.
      sgd_chosen: SGD is what validation chose.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    looks = drawing.styles(lines)
    values = sorted({x for line in lines.values() for x in line["x"]})
    for axis, (split, level) in zip(axes.flat, sgd.items(), strict=True):
        for name, line in lines.items():
            mean, se = (np.asarray(line[key][split]) for key in ("mean", "se"))
            axis.errorbar(line["x"], mean, se, capsize=2, label=name, **looks[name])
            if line["chosen"] is not None:
                at = line["chosen"]
                axis.plot(line["x"][at], mean[at], "o", markersize=14, fillstyle="none",
                          color="black", label="chosen by validation")  # fmt: skip
        name = "SGD, chosen by validation" if sgd_chosen else "SGD"
        axis.axhline(level, color="grey", linewidth=2.5, alpha=0.6, zorder=0, label=name)
        if min(values) > 0 and max(values) >= 10 * min(values):
            axis.set_xlim(
                min(values) / 1.3, max(values) * 1.3
            )  # also where few points have figures
            axis.set_xscale("log")
            axis.set_xticks(values, [f"{x:g}" for x in values])
            axis.minorticks_off()
        axis.set(title=split.capitalize(), ylabel=_ACCURACY + ", mean over seeds")
    for axis in axes[1]:
        axis.set_xlabel(label)
    note = "bars: standard error over seeds of the difference to SGD"
    figure.suptitle(note, fontsize="medium")
    drawing.legend(figure, axes.flat)
    return drawing.save(figure, path)


# ---- a run folder ---------------------------------------------------------------------------


def run_folder(
    at: Path,
    title: str,
    lines: list[dict[str, Any]],
    counts: np.ndarray,
    hits: Any,
    shots: tuple[int, int],
) -> None:
    """The pictures of a run folder: accuracy by class, and by epoch."""
    per_class(at / "per_class.png", title, counts, hits.correct, hits.total, shots)
    learning_curves(at / "curves.png", title, lines, shots)
