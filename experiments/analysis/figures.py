"""Pictures: surfaces of head and tail side by side, spectral densities, a curve over epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.reports import drawing


def surfaces(path: Path, axis: np.ndarray, found: dict[str, np.ndarray]) -> Figure:
    """Losses of head and tail [n, n, 2] of each line: one row of panels each, one scale for all.

    The level of a minimum is what training left; what is compared is how fast the rings follow.
    """
    width = 2.6 if len(found) <= 6 else 1.7
    figure = Figure(figsize=(width * len(found) + 1.2, 2 * width + 0.6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharex=True, sharey=True)
    values = np.stack(list(found.values()))
    top = float(np.nanquantile(values, 0.9))
    low = max(float(np.nanmin(values)), top * 1e-4, 1e-12)
    levels = np.geomspace(low, max(top, 2 * low), 13)
    drawn: Any = None
    for column, (name, losses) in enumerate(found.items()):
        for row, group in enumerate(("head", "tail")):
            ax = axes[row, column]
            clipped = np.clip(losses[..., row], levels[0], levels[-1])
            drawn = ax.contourf(axis, axis, clipped.T, levels=levels, norm="log", cmap="viridis")
            ax.plot(0, 0, "+", color="red")
            if row == 0:
                ax.set_title(name.replace(", ", "\n").replace(" ", "\n", 1), fontsize="x-small")
            if column == 0:
                ax.set_ylabel(f"loss of the {group}")
    figure.colorbar(drawn, ax=axes, label="mean loss", format="%.2g")
    return drawing.save(figure, path, dpi=80)


def densities(path: Path, found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """(grid, density) of each line for each group, on a logarithmic axis: a panel a group."""
    groups = list(dict.fromkeys(group for of in found.values() for group in of))
    figure = Figure(figsize=(5.5 * len(groups), 3.8), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    styles = drawing.styles(found)
    for ax, group in zip(axes, groups, strict=True):
        for name, of in found.items():
            if group in of:
                grid, density = of[group]
                style = {**styles[name], "marker": "", "linewidth": 1.0}
                ax.semilogy(grid, density + 1e-7, label=name, **style)
        ax.set_title(f"Hessian of the {group}'s mean loss")
        ax.set_xlabel("eigenvalue")
    axes[0].set_ylabel("density + 1e-7")
    drawing.legend(figure, axes, "outside lower center")
    return drawing.save(figure, path)


def over_epochs(path: Path, summary: list[dict[str, Any]], measure: str = "trace") -> Figure:
    """A measure of head and tail over the epochs whose checkpoints were kept."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(line["name"] for line in summary))
    styles = drawing.styles(names)
    for ax, group in zip(axes, ("head", "tail"), strict=True):
        for name in names:
            lines = sorted(
                (one for one in summary if one["name"] == name), key=lambda x: x["epoch"]
            )
            values = [one["groups"][group][measure] for one in lines]
            ax.errorbar(
                [one["epoch"] for one in lines], [v["mean"] for v in values],
                [v["error"] or 0 for v in values], label=name, **styles[name],
            )  # fmt: skip
        ax.set_title(group)
        drawing.whole_epochs(ax)
    axes[0].set_ylabel(f"{measure} of the Hessian")
    drawing.legend(figure, axes, "outside lower center")
    return drawing.save(figure, path)


def bars(path: Path, summary: list[dict[str, Any]], measures: tuple[str, ...]) -> Figure:
    """Head and tail of each line side by side, mean and two standard errors over seeds."""
    last = {line["name"]: line for line in summary}
    figure = Figure(figsize=(4.2 * len(measures), 0.34 * len(last) + 2), layout="constrained")
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    places = np.arange(len(last))[::-1]
    for ax, measure in zip(axes, measures, strict=True):
        for group, shift, colour in (("head", 0.18, "#56B4E9"), ("tail", -0.18, "#D55E00")):
            of = [line["groups"][group][measure] for line in last.values()]
            ax.barh(
                places + shift, [v["mean"] for v in of], 0.34, color=colour, label=group,
                xerr=[2 * (v["error"] or 0) for v in of],
            )  # fmt: skip
        ax.set_title(measure)
    axes[0].set_yticks(places, list(last), fontsize="small")
    drawing.legend(figure, axes)
    return drawing.save(figure, path)
