"""Pictures: surfaces of head and tail, densities, a curve over epochs, ways between models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.host import outputs
from experiments.reports import drawing

# What is drawn beside the figures of analysis.json.
SHOWN = "figures.json"
PLOTS = ("groups", "densities", "surfaces", "epochs", "plane", "line")
# Head and tail side by side, in inches; and dots an inch of what has many panels, or a fine one.
_PAIR, _COARSE = (9, 3.8), 80


def draw(out: Path) -> list[Path]:
    """Every picture of a finished analysis, of its files alone; which were made."""
    summary = outputs.read_object(out / "analysis.json")["lines"]
    shown = outputs.read_object(out / SHOWN)
    made = [out / "groups.png"]
    bars(made[-1], summary, ("trace", "largest", shown["rise"], "train_loss"))
    if "densities" in shown:
        grids = {group: np.array(grid) for group, grid in shown["grids"].items()}
        made.append(out / "densities.png")
        densities(
            made[-1],
            {
                name: {group: (grids[group], np.array(values)) for group, values in of.items()}
                for name, of in shown["densities"].items()
            },
        )
    if "surfaces" in shown:
        made.append(out / "surfaces.png")
        surfaces(
            made[-1],
            np.array(shown["axis"]),
            {n: np.array(x) for n, x in shown["surfaces"].items()},
        )
    if len({line["epoch"] for line in summary}) > 1:
        made.append(out / "epochs.png")
        over_epochs(made[-1], summary)
    way = shown.get("between", {})
    if "plane" in way:
        made.append(out / "plane.png")
        plane(made[-1], way["names"], way["plane"])
    if "line" in way:
        made.append(out / "line.png")
        line_between(made[-1], way["names"], way["line"])
    return made


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
    return drawing.save(figure, path, dpi=_COARSE)


def plane(path: Path, names: list[str], found: dict[str, Any]) -> Figure:
    """Losses of head and tail on the plane through three models, which are marked."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    values = np.array(found["losses"])
    low = max(float(np.nanmin(values)), 1e-6)
    top = max(float(np.nanquantile(values, 0.9)), 2 * low)
    levels = np.geomspace(low, top, 13)
    for side, (ax, title) in enumerate(zip(axes, ("head", "tail"), strict=True)):
        clipped = np.clip(values[..., side], low, top)
        drawn = ax.contourf(*found["axes"], clipped.T, levels=levels, norm="log", cmap="viridis")
        for number, ((x, y), name) in enumerate(zip(found["models"], names, strict=True)):
            ax.plot(x, y, **drawing.style(number) | {"linestyle": "", "markeredgecolor": "white"})
            ax.annotate(name.split(",")[0], (x, y), (6, 6), textcoords="offset points")
        ax.set_title(f"loss of the {title}")
    figure.colorbar(drawn, ax=axes, label="mean loss", format="%.2g")
    return drawing.save(figure, path, dpi=_COARSE)


def line_between(path: Path, names: list[str], found: dict[str, Any]) -> Figure:
    """Losses of head and tail on the lines from the first model to each of the others."""
    figure = Figure(figsize=_PAIR, layout="constrained")
    axes = figure.subplots(1, 2)
    styles = drawing.styles(names[1:])
    for side, (ax, title) in enumerate(zip(axes, ("head", "tail"), strict=True)):
        for name, values in found["to"].items():
            ax.plot(found["t"], np.array(values)[:, side], label=f"to {name}", **styles[name])
        ax.set_title(title)
        ax.set_xlabel(f"from {names[0]} (0) to another (1)")
        ax.set_yscale("log")
    axes[0].set_ylabel("mean loss")
    drawing.legend(figure, axes, "outside lower center")
    return drawing.save(figure, path)


def densities(path: Path, found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """(grid, density) of each line for each group: a row of panels a line, one scale for all."""
    groups = list(dict.fromkeys(group for of in found.values() for group in of))
    size = 5 * len(groups), 0.8 * len(found) + 1
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(found), len(groups), squeeze=False, sharey=True, sharex="col")
    for row, (name, of) in zip(axes, found.items(), strict=True):
        for ax, group in zip(row, groups, strict=True):
            grid, density = of[group]
            ax.fill_between(grid, 1e-6, density + 1e-6, color="#0072B2", linewidth=0)
            ax.set_yscale("log")
            ax.text(0.98, 0.8, name, transform=ax.transAxes, ha="right", fontsize="x-small")
    for ax, group in zip(axes[0], groups, strict=True):
        ax.set_title(f"density of the Hessian of the {group}'s mean loss", fontsize="small")
    for ax in axes[-1]:
        ax.set_xlabel("eigenvalue")
    return drawing.save(figure, path, dpi=_COARSE)


def over_epochs(path: Path, summary: list[dict[str, Any]], measure: str = "trace") -> Figure:
    """A measure of head and tail over the epochs whose checkpoints were kept."""
    figure = Figure(figsize=_PAIR, layout="constrained")
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
    axes = figure.subplots(1, len(measures), sharey=True)
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
