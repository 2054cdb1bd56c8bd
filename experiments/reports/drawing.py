"""What every plot is drawn with: styles that differ in grey too, legends, saving."""

from __future__ import annotations

import contextlib
import io
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from experiments.host.errors import RunError

# (a class is Many above this many training examples, Few below this many)
Thresholds = tuple[int, int]
Place = Literal["outside right upper", "outside lower center"]

# Okabe and Ito's colours for all kinds of sight, without yellow, which is too light for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
_DASHES = ("-", "--", "-.", ":")


def style(number: int) -> dict[str, Any]:
    """Of line 0, 1, ...: no two of 36 have the same dashes and marker."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 5,
        "linewidth": 1.3,
    }


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A style for each name, the same in every panel."""
    return {name: style(number) for number, name in enumerate(dict.fromkeys(names))}


def save(figure: Figure, path: Path, dpi: int = 120) -> Figure:
    """Writes the PNG and, beside it, the same as SVG, each whole or not at all.

    What the disk refuses is a sentence. The same figure gives the same bytes. A dollar in a name
    is no formula.
    """
    for text in figure.findobj(Text):
        if "$" in text.get_text() and "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)
    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        for file, kind, more in (
            (path, "png", {"dpi": dpi}),
            (path.with_suffix(".svg"), "svg", {"metadata": {"Date": None}}),
        ):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, **more)
            _write(file, drawn.getvalue())
    return figure


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what is told is why it could not be written
            partial.unlink()
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def label_ends(axis: Axes, lines: Iterable[Line2D], gap: float = 0.055) -> bool:
    """Names lines at their right ends, in place of a legend; False where the names do not fit.

    Args:
      gap: least distance between two names, and most of a name from its line, as shares of the
        axis' height.
    """
    low, high = axis.get_ylim()
    ends = []
    for line in lines:
        known = np.isfinite(np.asarray(line.get_ydata(), float))
        if not known.any():
            return False
        x, y = (np.asarray(of, float)[known][-1] for of in (line.get_xdata(), line.get_ydata()))
        ends.append((float((y - low) / (high - low)), float(x), float(y), line))
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for height, *_ in ends:
        places.append(max(height, places[-1] + gap) if places else height)
    if any(place - height > gap for place, (height, *_) in zip(places, ends, strict=True)):
        return False
    for place, (_, x, y, line) in zip(places, ends, strict=True):
        axis.annotate(
            str(line.get_label()), (x, y), (1.02, place),
            textcoords="axes fraction", va="center", fontsize="small", color=line.get_color(),
            annotation_clip=False,
        )  # fmt: skip
    return True


def wrapped(title: str) -> str:
    """In lines that fit the width of a plot."""
    return textwrap.fill(title, 85)


def legend(figure: Figure, axes: Iterable[Axes], place: Place = "outside right upper") -> None:
    """One legend for all axes, beside them; a line that several of them have stands once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    most = 1 if "right" in place else 4
    for columns in range(min(most, len(found)), 0, -1):
        made = figure.legend(
            list(found.values()), list(found), loc=place, fontsize="small", handlelength=3.5,
            ncols=columns,
        )  # fmt: skip
        if columns == 1 or made.get_window_extent().width <= figure.bbox.width:
            return
        made.remove()  # its ends would be cut off


def whole_epochs(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")


def shots(axis: Axes, sizes: np.ndarray, thresholds: Thresholds | None) -> None:
    """Lines between Many, Medium and Few, and their names; `sizes` of the classes, falling."""
    if thresholds is None:
        return
    many, few = int((sizes > thresholds[0]).sum()), int((sizes >= thresholds[1]).sum())
    places = {"Many": (0, many), "Medium": (many, few), "Few": (few, len(sizes))}
    for name, (start, end) in places.items():
        if start < end:
            axis.text((start + end - 1) / 2, 1.01, name, transform=axis.get_xaxis_transform(),
                      ha="center", va="bottom", fontsize="small")  # fmt: skip
        if 0 < end < len(sizes):
            axis.axvline(end - 0.5, color="grey", linewidth=0.8, linestyle=(0, (1, 1)))


def shot_names(thresholds: Thresholds | None) -> dict[str, str]:
    """The names of the splits in full."""
    if thresholds is None:
        return {name: name.capitalize() for name in ("many", "medium", "few", "all")}
    above, below = thresholds
    medium = f"{below} to {above}" if below < above else f"{above}"
    return {"many": f"Many (over {above})", "medium": f"Medium ({medium})",
            "few": f"Few (under {below})", "all": "All"}  # fmt: skip


def shot_note(thresholds: Thresholds | None) -> str:
    if thresholds is None:
        return ""
    return f"; Many: over {thresholds[0]} training examples, Few: under {thresholds[1]}"
