"""What is drawn in a figure, as text: every line, word, bar and axis with its look, unrendered."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import AutoLocator, FixedFormatter, FuncFormatter

# Of a list of more numbers than these the ends and two sums are told.
_MOST = 12


def _number(x: Any) -> str:
    return f"{float(x) + 0.0:.5g}"


def _numbers(values: Any) -> str:
    flat = np.ravel(np.asarray(values, float))
    if len(flat) <= _MOST:
        return " ".join(map(_number, flat))
    known = np.nan_to_num(flat)
    sums = known.sum(), (known * np.arange(len(flat))).sum()
    ends = f"{_numbers(flat[:3])} .. {_numbers(flat[-2:])}"
    return f"{ends} ({len(flat)}: {_numbers(sums)})"


def _colour(value: Any) -> str:
    """As hex, each of several once."""
    if isinstance(value, str) and value == "none":
        return value
    rows = np.atleast_1d(np.asarray(value, object))
    each = value if rows.ndim == 2 else [value]
    return ",".join(dict.fromkeys(_hex(one) for one in each)) or "none"


def _hex(colour: Any) -> str:
    found = to_hex(colour, keep_alpha=True)
    return found[:7] if found.endswith("ff") else found


def _where(artist: Artist) -> str:
    """What its numbers are of: data, the axes, or another thing."""
    axes = artist.axes
    if axes is None:
        return "figure"
    known = {
        "data": axes.transData,
        "axes": axes.transAxes,
        "x data": axes.get_xaxis_transform(),
        "y data": axes.get_yaxis_transform(),
    }
    return next((name for name, of in known.items() if artist.get_transform() == of), "own")


def _said(words: Any) -> str:
    """As in quotes; what matplotlib names by itself is nothing."""
    return repr("" if str(words).startswith("_") else str(words))


def _unusual(**pairs: tuple[Any, Any]) -> str:
    """Names and values of what is not as it mostly is."""
    return "".join(f"; {name} {value}" for name, (value, usual) in pairs.items() if value != usual)


def _line(line: Line2D) -> str:
    dashes = line._unscaled_dash_pattern if line.get_linestyle() == "--" else None
    marker = (
        f"; marker {line.get_marker()!r} {_number(line.get_markersize())} "
        f"{_colour(line.get_markerfacecolor())} {_colour(line.get_markeredgecolor())}"
    )
    points = np.stack([np.asarray(of, float) for of in line.get_data()], axis=1)
    if len(points) == 2:  # the same from either end
        points = np.array(sorted(points.tolist()))
    return (
        f"line {_said(line.get_label())} x {_numbers(points[:, 0])}; "
        f"y {_numbers(points[:, 1])}; {_colour(line.get_color())} {line.get_linestyle()!r} "
        f"{_number(line.get_linewidth())}"
        + marker * (line.get_marker() != "None")
        + _unusual(
            of=(_where(line), "data"), dashes=(dashes, None), alpha=(line.get_alpha(), None),
            z=(_number(line.get_zorder()), "2"), every=(line.get_markevery(), None),
            drawn=(line.get_drawstyle(), "default"), ends=(line.get_solid_capstyle(), "projecting"),
            fill=(line.get_fillstyle(), "full"),
        )
    )  # fmt: skip


def _text(text: Text) -> str:
    of = clip = None
    if isinstance(text, Annotation):
        of = f"{_numbers(text.xy)} {text.xycoords}, {text.anncoords}"
        clip = text.get_annotation_clip()
    return (
        f"text {_said(text.get_text())} at {_numbers(text.get_position())}; {text.get_ha()} "
        f"{text.get_va()}, size {_number(text.get_fontsize())}"
        + _unusual(
            of=(_where(text), "own"), turned=(_number(text.get_rotation()), "0"),
            colour=(_colour(text.get_color()), "#000000"), beside=(of, None), clip=(clip, None),
        )
    )  # fmt: skip


def _bars(bars: Iterable[Rectangle]) -> str:
    bars = list(bars)
    return (
        f"{len(bars)} bars x {_numbers([bar.get_x() for bar in bars])}; "
        f"y {_numbers([bar.get_y() for bar in bars])}; "
        f"width {' '.join(sorted({_number(bar.get_width()) for bar in bars}))}; "
        f"height {_numbers([bar.get_height() for bar in bars])}; "
        f"{_colour([bar.get_facecolor() for bar in bars])}"
    )


def _collection(found: Collection) -> str:
    paths = [path.vertices for path in found.get_paths()]
    kinds = {LineCollection: "lines", PathCollection: "points", PolyCollection: "band"}
    kind = next(name for of, name in kinds.items() if isinstance(found, of))
    return (
        f"{kind} {_said(found.get_label())} at {_numbers(found.get_offsets())}; "
        f"sizes {_numbers(getattr(found, 'get_sizes', list)())}; paths "
        f"{_numbers(np.concatenate(paths))}; {_colour(found.get_facecolor())} "
        f"{_colour(found.get_edgecolor())}; width {_numbers(found.get_linewidth())}"
        + _unusual(alpha=(found.get_alpha(), None), z=(_number(found.get_zorder()), "2"))
    )


def _axis(name: str, axis: Any, limits: Any) -> Iterator[str]:
    """Scale, limits and name; where its ticks were chosen, those, too."""
    grid = [line for line in axis.get_gridlines()[:1] if line.get_visible()]
    shown = "".join(f"; grid {_number(line.get_linewidth())}" for line in grid)
    locator = axis.get_major_locator()
    yield f"{name} {axis.get_scale()}, {_numbers(limits)}; {type(locator).__name__}{shown}"
    if axis.get_label().get_text():
        yield f"  {_text(axis.get_label())}"
    if not isinstance(locator, AutoLocator):
        low, high = sorted(limits)
        at = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        yield f"  ticks {_numbers(at)}; minor {len(axis.get_minorticklocs())}"
    if isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
        labels = [label for label in axis.get_ticklabels() if label.get_text()]
        yield f"  {[label.get_text() for label in labels]}"
        looks = {
            f"{label.get_ha()} {_number(label.get_rotation())} size {_number(label.get_fontsize())}"
            for label in labels
        }
        yield f"  {', '.join(sorted(looks)) or '-'}"


def _axes(axes: Any) -> Iterator[str]:
    rows, columns, first, last = map(int, axes.get_subplotspec().get_geometry())
    heights = axes.get_subplotspec().get_gridspec().get_height_ratios()
    pad = _number(axes.titleOffsetTrans.transform((0, 0))[1])
    yield f"axes {first} to {last} of {rows} x {columns}" + _unusual(
        heights=(heights, [1] * rows), on=(axes.axison, True), z=(_number(axes.get_zorder()), "0"),
        patch=(axes.patch.get_visible(), True), pad=(pad, "8.3333"),
        margins=(axes.margins(), (0.05, 0.05)),
    )  # fmt: skip
    if axes.get_title():
        yield _text(axes.title)
    yield from _axis("x", axes.xaxis, axes.get_xlim())
    yield from _axis("y", axes.yaxis, axes.get_ylim())
    yield from map(_line, axes.lines)
    yield from map(_collection, axes.collections)
    if axes.patches:
        yield _bars(axes.patches)
    yield from map(_text, axes.texts[:_MOST])
    if len(axes.texts) > _MOST:
        yield f"and {len(axes.texts) - _MOST} more texts"


def _legend(found: Legend) -> str:
    looks = [
        (handle.get_linestyle(), handle.get_marker())
        for handle in found.legend_handles
        if isinstance(handle, Line2D)
    ]
    return (
        f"legend {[text.get_text() for text in found.get_texts()]} {looks}; in {found._ncols} "
        f"columns, size {_number(found.get_texts()[0].get_fontsize())}, length "
        f"{_number(found.handlelength)}, {found._outside_loc} {found._loc}"
    )


def _figure(figure: Figure) -> Iterator[str]:
    yield f"figure {_numbers(figure.get_size_inches())} {type(figure.get_layout_engine()).__name__}"
    for text in (figure._suptitle, figure._supxlabel, figure._supylabel):
        if text is not None:
            yield _text(text)
    for axes in figure.axes:
        yield ""
        yield from _axes(axes)
    yield from map(_legend, figure.legends)


def told(figure: Figure) -> str:
    """A line for each thing that is drawn."""
    return "\n".join(_figure(figure)) + "\n"
