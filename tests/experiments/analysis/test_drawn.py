"""Which numbers stand in the pictures of an analysis; nothing is rendered here."""

import json

import numpy as np
import pytest

from experiments.analysis import figures
from unsaved import figures_of, legend

LEVELS = 13


@pytest.fixture(autouse=True)
def _unsaved(monkeypatch):
    yield from figures_of(figures, monkeypatch)


def line(name, epoch, head, tail, error=0.5):
    groups = {
        group: {"trace": {"mean": x, "error": error}, "largest": {"mean": 2 * x, "error": None}}
        for group, x in (("head", head), ("tail", tail))
    }
    return {"name": name, "epoch": epoch, "groups": groups}


LINES = [line("sgd", 9, 1.0, 5.0), line("sam", 3, 2.0, 4.0, None), line("sam", 1, 3.0, 6.0)]


def test_bars_are_of_the_last_line_of_each_name():
    figure = figures.bars("x", LINES, ("trace", "largest"))
    trace, largest = figure.axes
    found = [
        (bar.get_width(), round(bar.get_y() + bar.get_height() / 2, 9)) for bar in trace.patches
    ]
    # The first on top, the head above the tail.
    assert found == [(1, 1.18), (3, 0.18), (5, 0.82), (6, -0.18)]
    assert [bar.get_width() for bar in largest.patches] == [2, 6, 10, 12]
    bars = [of[2][0].get_segments() for of in (c.errorbar for c in trace.containers[1::2])]
    spans = [[(np.asarray(x)[0, 0], np.asarray(x)[1, 0]) for x in of] for of in bars]
    assert spans == [[(0, 2), (2, 4)], [(4, 6), (5, 7)]]  # two standard errors
    assert [text.get_text() for text in trace.get_yticklabels()] == ["sgd", "sam"]
    assert [axis.get_title() for axis in figure.axes] == ["trace", "largest"]
    assert legend(figure) == ["head", "tail"]


def test_a_measure_over_epochs():
    figure = figures.over_epochs("x", LINES)
    head, tail = figure.axes
    assert legend(figure) == ["sgd", "sam"]
    for axis, sam, sgd in ((head, [3, 2], 1), (tail, [6, 4], 5)):
        first, second = (of[0] for of in axis.containers)
        assert (first.get_xdata().tolist(), first.get_ydata().tolist()) == ([9], [sgd])
        assert (second.get_xdata().tolist(), second.get_ydata().tolist()) == ([1, 3], sam)
        widths = [np.ptp(x, axis=0)[1] for x in axis.containers[1][2][0].get_segments()]
        assert widths == [1, 0]
    assert head.get_ylabel() == "trace of the Hessian"
    shown = figures.over_epochs("x", LINES, "largest").axes[1]
    assert shown.containers[0][0].get_ydata().tolist() == [10]


def test_densities_by_line_and_group():
    grid = np.array([-1.0, 0, 2])
    found = {
        name: {"head": (grid, k + np.array([0, 1, 0.5])), "tail": (2 * grid, k + np.zeros(3))}
        for k, name in enumerate(("sgd", "sam"))
    }
    axes = figures.densities("x", found).axes
    assert [axis.texts[0].get_text() for axis in axes] == ["sgd", "sgd", "sam", "sam"]
    for axis, top, right in zip(axes, (1, 0, 2, 1), (2, 4, 2, 4), strict=True):
        vertices = axis.collections[0].get_paths()[0].vertices
        assert vertices[:, 1].max() == pytest.approx(top + 1e-6)
        assert vertices[:, 1].min() == pytest.approx(1e-6)
        assert (vertices[:, 0].min(), vertices[:, 0].max()) == (-right / 2, right)
        assert axis.get_yscale() == "log"
    assert [axis.get_xlabel() for axis in axes] == ["", "", "eigenvalue", "eigenvalue"]
    assert ["head's" in axes[0].get_title(), "tail's" in axes[1].get_title()] == [True, True]


def contoured(monkeypatch):
    """What `contourf` is given: (x, y, values, levels)."""
    from matplotlib.axes import Axes

    given, contourf = [], Axes.contourf

    def noted(self, x, y, values, **more):
        given.append((np.asarray(x).tolist(), np.asarray(y).tolist(), values, more["levels"]))
        return contourf(self, x, y, values, **more)

    monkeypatch.setattr(Axes, "contourf", noted)
    return given


def test_surfaces_have_one_scale(monkeypatch):
    given = contoured(monkeypatch)
    one = np.arange(1.0, 19).reshape(3, 3, 2)
    axis = np.array([-1.0, 0, 1])
    figure = figures.surfaces("x", axis, {"sgd, ce": one, "sam rho=1, ce": 10 * one})
    top = np.quantile([one, 10 * one], 0.9)
    levels = np.geomspace(1, top, LEVELS)
    expected = [one[..., 0], one[..., 1], 10 * one[..., 0], 10 * one[..., 1]]
    for (x, y, values, at), want in zip(given, expected, strict=True):
        assert x == y == axis.tolist()
        np.testing.assert_allclose(at, levels)
        np.testing.assert_allclose(values, np.minimum(want, top).T)
    assert [a.get_title() for a in figure.axes[:4]] == ["sgd\nce", "sam\nrho=1\nce", "", ""]
    names = [a.get_ylabel() for a in figure.axes[:4]]
    assert names == ["loss of the head", "", "loss of the tail", ""]
    given.clear()  # losses of 0 have no logarithm
    figures.surfaces("x", axis, {"a": np.zeros((3, 3, 2))})
    np.testing.assert_allclose(given[0][3], np.geomspace(1e-12, 2e-12, LEVELS))


def test_a_plane_marks_its_models(monkeypatch):
    given = contoured(monkeypatch)
    losses = np.arange(1.0, 13).reshape(2, 3, 2)
    found = {"losses": losses.tolist(), "axes": [[0, 1], [0, 1, 2]], "models": [[0, 0], [1, 2]]}
    figure = figures.plane("x", ["sgd, ce", "sam, ce"], found)
    top = np.quantile(losses, 0.9)
    for side, (x, y, values, at) in enumerate(given):
        assert (x, y) == ([0, 1], [0, 1, 2])
        np.testing.assert_allclose(at, np.geomspace(1, top, LEVELS))
        np.testing.assert_allclose(values, np.minimum(losses[..., side], top).T)
    for axis, group in zip(figure.axes, ("head", "tail"), strict=False):
        points = [(of.get_xdata()[0], of.get_ydata()[0]) for of in axis.lines]
        assert points == [(0, 0), (1, 2)] and axis.get_title() == f"loss of the {group}"
        assert [text.get_text() for text in axis.texts] == ["sgd", "sam"]


def test_ways_from_the_first_model():
    found = {"t": [0, 0.5, 1], "to": {"b": [[1, 4], [2, 5], [3, 6]], "c": [[7, 1], [8, 2], [9, 3]]}}
    figure = figures.line_between("x", ["a", "b", "c"], found)
    assert legend(figure) == ["to b", "to c"]
    for axis, values in zip(
        figure.axes, ([[1, 2, 3], [7, 8, 9]], [[4, 5, 6], [1, 2, 3]]), strict=True
    ):
        assert [of.get_ydata().tolist() for of in axis.lines] == values
        assert [list(of.get_xdata()) for of in axis.lines] == [[0, 0.5, 1]] * 2
        assert axis.get_yscale() == "log"


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ({}, []),
        ({"densities": {}, "grids": {}}, ["densities"]),
        ({"surfaces": {}, "axis": []}, ["surfaces"]),
        ({"between": {"names": [], "plane": {}}}, ["plane"]),
        ({"between": {"names": [], "line": {}}}, ["line"]),
        (
            {
                "densities": {},
                "grids": {},
                "surfaces": {},
                "axis": [],
                "between": {"names": [], "plane": {}, "line": {}},
            },
            ["densities", "surfaces", "plane", "line"],
        ),
    ],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_each_picture_that_there_are_figures_for(shown, names, epochs, tmp_path, monkeypatch):
    drawn = {}
    for name in ("bars", "densities", "surfaces", "over_epochs", "plane", "line_between"):
        monkeypatch.setattr(figures, name, lambda path, *args: drawn.setdefault(path, args))
    lines = LINES[: 1 + (epochs == 2)]
    (tmp_path / "analysis.json").write_text(json.dumps({"lines": lines}))
    (tmp_path / figures.SHOWN).write_text(json.dumps({"rise": "sam", **shown}))
    made = figures.draw(tmp_path)
    order = ["groups", "densities", "surfaces", *["epochs"] * (epochs == 2), "plane", "line"]
    wanted = ["groups", *names, *["epochs"] * (epochs == 2)]
    # Each at its own path.
    assert made == list(drawn) == [tmp_path / f"{of}.png" for of in order if of in wanted]
    assert {path.stem for path in made} <= set(figures.PLOTS)
    assert drawn[tmp_path / "groups.png"] == (lines, ("trace", "largest", "sam", "train_loss"))


# ---- how they look ------------------------------------------------------------------------------


def joined(figure, along):
    """Of which panels the scales are one: as many sets of them as there are scales."""
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    groups = {frozenset(getattr(axis, f"get_shared_{along}_axes")().get_siblings(axis))
              for axis in panels}  # fmt: skip
    return len(panels), len(groups)


@pytest.fixture
def dots(monkeypatch):
    """The dots an inch that are asked of each file; 120 where none are."""
    from experiments.reports import drawing

    asked, save = [], drawing.save

    def noted(figure, path, dpi=120):
        asked.append(dpi)
        return save(figure, path)

    monkeypatch.setattr(drawing, "save", noted)
    return asked


ONE = np.arange(1.0, 19).reshape(3, 3, 2)
THREE = np.array([-1.0, 0, 1])


def test_surfaces_are_smaller_where_there_are_many(dots):
    """Panels of 2.6 inches, of 1.7 from seven lines on; a file of them takes 80 dots an inch."""
    for lines, width in ((1, 2.6), (6, 2.6), (7, 1.7)):
        figure = figures.surfaces("x", THREE, {f"rule {k} a, b": ONE for k in range(lines)})
        size = (lines * width + 1.2, 2 * width + 0.6)
        np.testing.assert_allclose(figure.get_size_inches(), size)
        assert joined(figure, "x") == joined(figure, "y") == (2 * lines, 1)
        first, *_, scale = figure.axes
        assert scale.get_ylabel() == "mean loss" and first.lines[0].get_color() == "red"
        assert first.lines[0].get_xydata().tolist() == [[0, 0]]
        assert first.collections[0].norm.__class__.__name__ == "LogNorm"
        assert first.title.get_fontsize() == pytest.approx(10 * 0.694)  # x-small
        assert first.get_title() == "rule\n0 a\nb"  # what comes behind the rule is one line
    assert dots == [80] * 3


def test_surfaces_reach_down_to_a_ten_thousandth(monkeypatch):
    given = contoured(monkeypatch)
    wide = 10.0 ** np.linspace(-9, 1, 18).reshape(3, 3, 2)
    figures.surfaces("x", THREE, {"a": wide})
    top = np.quantile(wide, 0.9)
    np.testing.assert_allclose(given[0][3], np.geomspace(top * 1e-4, top, LEVELS))
    np.testing.assert_allclose(given[0][2], np.clip(wide[..., 0], top * 1e-4, top).T)
    given.clear()
    figures.surfaces("x", THREE, {"a": np.full((3, 3, 2), 3.0)})  # of one height
    np.testing.assert_allclose(given[0][3], np.geomspace(3, 6, LEVELS))


def test_a_plane_is_of_one_scale(dots, monkeypatch):
    given = contoured(monkeypatch)
    found = {"losses": ONE.tolist(), "axes": [THREE, THREE], "models": [[0, 0], [1, 0], [0, 1]]}
    names = ["sgd", "sam rho=1, ce", "gsa, ce"]
    figure = figures.plane("x", names, found)
    assert figure.get_size_inches().tolist() == [10, 4.2] and dots == [80]
    assert joined(figure, "x") == joined(figure, "y") == (2, 1)
    head, _, scale = figure.axes
    assert scale.get_ylabel() == "mean loss"
    assert head.collections[0].norm.__class__.__name__ == "LogNorm"
    for mark, colour in zip(head.lines, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        assert (mark.get_color(), mark.get_linestyle()) == (colour, "None")
        assert mark.get_markeredgecolor() == "white"
    assert [(text.xyann, text.anncoords) for text in head.texts] == [((6, 6), "offset points")] * 3
    given.clear()
    flat = {**found, "losses": np.full((3, 3, 2), 3.0).tolist()}
    figures.plane("x", names, flat)
    np.testing.assert_allclose(given[0][3], np.geomspace(3, 6, LEVELS))
    given.clear()
    figures.plane("x", names, {**found, "losses": np.zeros((3, 3, 2)).tolist()})
    np.testing.assert_allclose(given[0][3], np.geomspace(1e-6, 2e-6, LEVELS))


def test_ways_are_named_by_their_ends(dots):
    found = {"t": [0, 1], "to": {"b": [[1, 4], [2, 5]], "c": [[7, 1], [8, 2]]}}
    figure = figures.line_between("x", ["a", "b", "c"], found)
    assert figure.get_size_inches().tolist() == [9, 3.8] and dots == [120]
    assert [axis.get_title() for axis in figure.axes] == ["head", "tail"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["mean loss", ""]
    assert {axis.get_xlabel() for axis in figure.axes} == {"from a (0) to another (1)"}
    # The first style is of the first line that is drawn.
    assert [of.get_color() for of in figure.axes[0].lines] == ["#0072B2", "#D55E00"]


def test_densities_are_a_row_a_line(dots):
    grid = np.array([-1.0, 2])
    for lines in (1, 3):
        found = {f"line {k}": {"head": (grid, grid + 2), "tail": (grid, grid + 2)}
                 for k in range(lines)}  # fmt: skip
        figure = figures.densities("x", found)
        np.testing.assert_allclose(figure.get_size_inches(), (10, 0.8 * lines + 1))
        assert joined(figure, "y") == (2 * lines, 1) and joined(figure, "x") == (2 * lines, 2)
        first = figure.axes[0]
        (name,), (area,) = first.texts, first.collections
        assert name.get_position() == (0.98, 0.8) and name.get_transform() == first.transAxes
        assert name.get_horizontalalignment() == "right"
        assert name.get_fontsize() == pytest.approx(10 * 0.694)  # x-small
        assert first.title.get_fontsize() == pytest.approx(10 * 0.833)  # small
        assert area.get_linewidth() == 0
        np.testing.assert_allclose(area.get_facecolor()[0][:3], (0, 0x72 / 255, 0xB2 / 255))
    assert dots == [80] * 2
    titles = [axis.get_title() for axis in figure.axes]
    assert [bool(title) for title in titles] == [True] * 2 + [False] * 4
    assert [axis.get_xlabel() for axis in figure.axes] == [""] * 4 + ["eigenvalue"] * 2


def test_epochs_and_groups_have_their_names_and_sizes(dots):
    figure = figures.over_epochs("x", LINES)
    assert figure.get_size_inches().tolist() == [9, 3.8] and joined(figure, "y") == (2, 1)
    assert [axis.get_title() for axis in figure.axes] == ["head", "tail"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["trace of the Hessian", ""]
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}
    figure = figures.bars("x", LINES, ("trace", "largest"))  # two lines
    np.testing.assert_allclose(figure.get_size_inches(), (2 * 4.2, 2 * 0.34 + 2))
    assert joined(figure, "y") == (2, 1) and dots == [120, 120]
    trace, _ = figure.axes
    assert {round(bar.get_height(), 9) for bar in trace.patches} == {0.34}
    colours = [bar.get_facecolor()[:3] for bar in trace.patches[::2]]
    np.testing.assert_allclose(np.array(colours) * 255, [[0x56, 0xB4, 0xE9], [0xD5, 0x5E, 0]])
    assert trace.get_yticklabels()[0].get_fontsize() == pytest.approx(10 * 0.833)  # small
    assert trace.get_yticks().tolist() == [1, 0]
