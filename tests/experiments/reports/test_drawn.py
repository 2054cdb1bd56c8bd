"""Which numbers stand in a plot, and how far its axes reach; nothing is rendered here."""

import numpy as np
import pytest

from experiments.reports import plots
from unsaved import figures_of

COUNTS = np.array([5, 500, 30, 200, 10])
ORDER = [1, 3, 2, 4, 0]


@pytest.fixture(autouse=True)
def _unsaved(monkeypatch):
    yield from figures_of(plots, monkeypatch)


def data(line):
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def whole(axis):
    """Whether it has ticks at whole numbers alone."""
    return all(tick == round(tick) for tick in axis.get_xticks())


def heights(error_bars):
    """(middle, half height) of vertical bars."""
    segments = [np.asarray(segment)[:, 1] for segment in error_bars[2][0].get_segments()]
    return [(low + high) / 2 for low, high in segments], [
        (high - low) / 2 for low, high in segments
    ]


def test_accuracies_of_classes():
    correct, total = np.array([1, 2, 3, 4, 0]), np.array([4, 4, 4, 4, 0])
    figure = plots.per_class("x", "t", COUNTS, correct, total)
    front, behind = figure.axes
    (line,) = front.lines
    places, values = data(line)
    assert places == [0, 1, 2, 3, 4] and line.get_markersize() == 5
    np.testing.assert_array_equal(values, [50, 100, 75, np.nan, 25])
    assert front.get_ylim() == (0, 100) and whole(front)
    assert behind.get_ylim() == (2.5, 2000) and behind.get_yscale() == "log"
    assert {bar.get_width() for bar in behind.patches} == {0.85}


def test_sizes_without_examples():
    for counts, limits in (([4, 1, 0], (0.5, 16)), ([40, 8, 0], (4, 160)), ([1, 1], (0.5, 4))):
        none, one = [0] * len(counts), [1] * len(counts)
        figure = plots.per_class("x", "t", np.array(counts), none, one)
        assert figure.axes[1].get_ylim() == limits
    figure = plots.per_class("x", "t", np.zeros(2, int), [0, 0], [1, 1])
    assert figure.axes[1].get_yscale() == "linear"


@pytest.mark.parametrize(("classes", "marker", "named"), [(20, 5, 20), (21, 3, 0), (300, 3, 0)])
def test_up_to_twenty_classes_have_their_sizes_written(classes, marker, named):
    one = np.ones(classes, int)
    front, behind = plots.per_class("x", "t", one, one, one).axes
    assert front.lines[0].get_markersize() == marker and len(behind.texts) == named


def test_more_classes_than_300_are_drawn_by_hundredths():
    counts = np.arange(400, 0, -1)
    correct = np.arange(400) % 4
    front = plots.per_class("x", "t", counts, correct, np.full(400, 4)).axes[0]
    (line,) = front.lines
    assert data(line) == ([4 * k + 1.5 for k in range(100)], [37.5] * 100)
    assert line.get_label() == "mean of 4 classes"
    edges = front.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (18.75, 56.25)  # of 0, 25, 50 and 75


def test_hundredths_without_what_was_not_tested():
    values = np.repeat(np.arange(100.0), 5) + np.tile([0, 1, 2, 3, 4], 100)
    values[0:5] = np.nan
    values[5] = np.nan
    centres, means, low, high = plots.hundredths(values)
    assert centres.tolist() == [5 * k + 2.0 for k in range(1, 100)]
    np.testing.assert_allclose(means, [1 + 2.5, *(k + 2.0 for k in range(2, 100))])
    np.testing.assert_allclose(low, [1 + 1.75, *(k + 1.0 for k in range(2, 100))])
    np.testing.assert_allclose(high, [1 + 3.25, *(k + 3.0 for k in range(2, 100))])


@pytest.mark.parametrize(("epochs", "marker", "every"), [(3, ".", 1), (29, ".", 2), (30, "", 2)])
def test_learning_curves(epochs, marker, every):
    lines = [
        {"epoch": e, "train_loss": 3 / e, "test_all": 20.0 + e, "test_few": None, "test_many": 0.0}
        for e in range(1, epochs + 1)
    ]
    left, right = plots.learning_curves("x", "t", lines).axes
    assert data(left.lines[0]) == ([x["epoch"] for x in lines], [x["train_loss"] for x in lines])
    assert left.lines[0].get_marker() == marker
    assert [line.get_label() for line in right.lines] == ["Many", "All"]  # what there is
    assert data(right.lines[1]) == ([x["epoch"] for x in lines], [x["test_all"] for x in lines])
    assert right.lines[1].get_markevery() == every and right.get_ylim() == (-2, 100)


def test_classes_by_rule_are_those_of_each_class():
    accuracy = np.array([10.0, 50, 30, 40, 20])
    panels = {"a": {"sgd": accuracy, "sam": accuracy + 1}, "b": {"sam": accuracy + 2}}
    figure = plots.classes_by_rule("x", COUNTS, panels, seeds=3)
    found = [[data(line) for line in axis.lines] for axis in figure.axes[:2]]
    places = [0, 1, 2, 3, 4]
    assert found == [
        [(places, (accuracy[ORDER] + k).tolist()) for k in of] for of in ((0, 1), (2,))
    ]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["a", "b"]
    assert all(map(whole, figure.axes[:2]))
    assert figure.axes[0].get_ylabel() == "test accuracy (%), mean of 3 seeds"


@pytest.mark.parametrize(("epochs", "every"), [(7, 1), (15, 1), (16, 2)])
def test_curves_by_rule_are_those_of_each_split(epochs, every):
    at = np.arange(epochs)
    values = {"few": at * 1.0, "all": at + 5.0, "all_se": at / 10}
    figure = plots.curves_by_rule("x", {"": {"sgd": (at, values)}, "two": {"sam": (at, values)}})
    assert [axis.get_title() for axis in figure.axes] == ["Few", "All", "Few, two", "All, two"]
    for axis, key in zip(figure.axes, ("few", "all") * 2, strict=True):
        assert data(axis.lines[0]) == (at.tolist(), values[key].tolist())
        assert axis.lines[0].get_markevery() == every
        assert len(axis.collections) == (key == "all")
    assert len(figure.legends) == 1


@pytest.mark.parametrize(("seeds", "words"), [(1, ", one seed"), (2, ", mean of 2 seeds; bars: ")])
def test_gains_by_rule(seeds, words):
    panels = {
        "all": {"sam": (1.5, 0.25), "imbsam": (-2.0, None)},
        "few": {"sam": (None, None), "imbsam": (4.0, 0.5)},
    }
    figure = plots.gains_by_rule("x", panels, "SGD's", seeds)
    bars = [of for axis in figure.axes for of in axis.containers]
    middles = [(of[0].get_xdata()[0], of[0].get_ydata()[0]) for of in bars]
    np.testing.assert_array_equal(middles, [(1.5, 0), (-2, 1), (np.nan, 0), (4, 1)])
    segments = [np.reshape(x, (-1, 2)) for of in bars for x in of[2][0].get_segments()]
    assert [(x[-1] - x[0])[0] if len(x) else None for x in segments] == [0.5, 0, None, 1]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["sam", "imbsam"]
    assert figure.axes[0].get_ylim() == (1.5, -0.5)
    assert all(data(axis.lines[-1])[0] == [0, 0] for axis in figure.axes)  # no gain
    assert f"accuracy minus SGD's{words}" in figure.get_suptitle()
    assert ("bars" in figure.get_suptitle()) == (seeds > 1)


def test_gains_of_classes_and_their_errors():
    gain = np.array([1.0, -2, 3, 4, 0.5])
    panel = {"title": "t", "counts": COUNTS, "gain": gain, "eta": None, "se": gain**2}
    axis = plots.gain_per_class("x", [panel]).axes[0]
    assert [bar.get_height() for bar in axis.patches] == gain[ORDER].tolist()
    assert whole(axis) and axis.get_ylabel() == "gain over SGD (points)"
    assert any(data(line)[1] == [0, 0] for line in axis.lines)  # no gain
    middle, half = heights(axis.containers[1])
    np.testing.assert_allclose(middle, gain[ORDER])
    np.testing.assert_allclose(half, (gain**2)[ORDER])


@pytest.mark.parametrize(("classes", "window"), [(29, 0), (30, 3), (50, 5)])
def test_a_running_mean_from_thirty_classes_on(classes, window):
    gain = np.arange(classes) ** 2.0
    gain[classes // 2] = np.nan
    panel = {"title": "t", "counts": np.arange(classes, 0, -1), "gain": gain, "eta": None}
    lines = plots.gain_per_class("x", [panel]).axes[0].lines
    means = [line for line in lines if line.get_label() == f"mean of {window} classes"]
    assert len(means) == (window > 0) == len(lines) - 1
    if window:
        half = window // 2
        around = [gain[max(k - half, 0) : k + half + 1] for k in range(classes)]
        np.testing.assert_allclose(means[0].get_ydata(), [np.nanmean(x) for x in around])
