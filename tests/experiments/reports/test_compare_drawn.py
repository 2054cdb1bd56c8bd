"""Which numbers stand in the figures of a comparison; nothing is rendered here."""

import numpy as np
import pytest

from experiments.reports import compare_figures, drawing
from unsaved import legend


def row(name, accuracy, rule=None, loss=None, **more):
    found = {
        "row": name, "balanced_accuracy": accuracy, "rule": rule, "loss": loss,
        "reference": rule is None, "p_holm": None, "recall": [90.0, accuracy, None], "chosen": {},
        "calibration": {"count": [5, 0, 15], "confidence": [0.3, None, 0.9],
                        "accuracy": [0.2, None, 0.8]},
        "calibration_error": 0.125, "difference": {
            "balanced_accuracy": [accuracy - 60, accuracy - 61, accuracy - 58],
            "auroc": [0.01, None, None],
        },
    }  # fmt: skip
    return found | more


BASE = row("sgd", 60.0, "sgd", "ce")
del BASE["difference"]
LOSSES = [row(f"sgd, {loss}", x, "sgd", loss) for loss, x in (("la", 64.0), ("cb", 63.0))]
RULES = [row("sam", 62.0, "sam", "ce"), row("imbsam", 65.0, "imbsam", "ce", p_holm=0.05)]
BOTH = row("imbsam, la", 66.0, "imbsam", "la", p_holm=0.051)
OTHERS = [row("trees", 61.0), row("logistic", 0.0) | {"balanced_accuracy": None}]
ROWS = [BASE, *LOSSES, *RULES, BOTH, *OTHERS]


def summary(rows=ROWS, best=None, counts=(50, 21, 4), tuned=True):
    names = ["a", "a name of 16 long", "a name of 17 lon"][: len(counts)]
    return {
        "rows": rows, "best": best, "splits": {"count": 7}, "about": {"tuned": tuned},
        "data": {"name": "set", "classes": len(counts), "train_counts": list(counts),
                 "class_names": [*names, *["more"] * (len(counts) - len(names))]},
        "thresholds": {"many_above": 40, "few_below": 10},
    }  # fmt: skip


@pytest.fixture
def draw(monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.append(figure))

    def one(plot, *args, **kwargs):
        plot("x", summary(*args, **kwargs))
        assert drawn[-1].get_layout_engine() is not None, "names may lie over one another"
        return drawn[-1]

    return one


@pytest.mark.parametrize(
    ("rows", "best", "shown"),
    [
        (ROWS, "imbsam, la", ["sgd", "imbsam, la", "sgd, la", "imbsam", "trees"]),
        (ROWS, None, ["sgd", "sgd, la", "imbsam", "trees", "imbsam, la"]),
        (ROWS, "sgd, la", ["sgd", "sgd, la", "sgd, cb", "imbsam", "trees"]),
        ([BASE], None, ["sgd"]),
        ([BASE, OTHERS[1]], None, ["sgd"]),
        ([OTHERS[0], BASE], None, ["sgd", "trees"]),
    ],
)
def test_the_rows_that_are_shown(rows, best, shown):
    assert [x["row"] for x in compare_figures.shown_rows(summary(rows, best))] == shown


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_differences_and_their_intervals(draw):
    unknown = row("none", 60.0, "x", "ce", difference={"balanced_accuracy": [None] * 3,
                                                       "auroc": [-0.0004, None, None]})  # fmt: skip
    left, right = draw(compare_figures.differences, [BASE, BOTH, RULES[1], OTHERS[0], unknown]).axes
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == ["none", "trees", "imbsam *", "imbsam, la"]  # the first on top
    assert texts(left) == [" undefined", "+1.0", "+5.0", "+6.0"]
    assert texts(right) == ["+0.000", "+0.010", "+0.010", "+0.010"]
    intervals = [line for line in left.lines if len(line.get_xdata()) == 2][:-1]
    assert [tuple(line.get_xdata()) for line in intervals] == [(0, 3), (4, 7), (5, 8)]
    assert [tuple(line.get_ydata()) for line in intervals] == [(1, 1), (2, 2), (3, 3)]
    points = [line for line in left.lines if len(line.get_xdata()) == 1]
    looks = [(line.get_marker(), line.get_markerfacecolor()) for line in points]
    assert looks == [("s", "white"), ("o", "black"), ("o", "black")]
    assert left.get_ylim() == (-0.7, 3.7)
    assert [axis.get_xlabel() for axis in (left, right)] == [
        "balanced accuracy (points)", "AUROC (0 to 1)"
    ]  # fmt: skip
    assert set(left.lines[-1].get_xdata()) == {0}


def test_recall_by_class(draw):
    figure = draw(compare_figures.recall, [BASE, *LOSSES])
    (axis,) = figure.axes
    assert legend(figure) == ["sgd", "sgd, la", "sgd, cb"]
    for number, (line, one) in enumerate(zip(axis.lines, (60.0, 64.0, 63.0), strict=False)):
        np.testing.assert_allclose(line.get_xdata(), np.arange(3) + 0.06 * (number - 1))
        np.testing.assert_array_equal(line.get_ydata(), [90, one, np.nan])
    assert [line.get_linewidth() for line in axis.lines[:3]] == [0.9] * 3
    names = [text.get_text() for text in axis.get_xticklabels()]
    assert names == ["a (50)", "a name of 16 l… (21)", "a name of 17 lon (4)"]
    assert texts(axis) == ["Many", "Medium", "Few"] and axis.get_ylim() == (-3, 103)
    assert axis.get_xlabel() == "class (training rows), rarest last"


@pytest.mark.parametrize(("classes", "step"), [(30, 1), (31, 2), (60, 2), (61, 3)])
def test_of_many_classes_some_have_a_number(draw, classes, step):
    one = BASE | {"recall": [50.0] * classes}
    (axis,) = draw(compare_figures.recall, [one], counts=range(100, 100 - classes, -1)).axes
    assert axis.get_xticks().tolist() == [*range(0, classes, step)]
    last = axis.get_xticklabels()[-1].get_text()
    at = (classes - 1) // step * step
    assert last == (f"more ({100 - at})" if step == 1 else f"{at} ({100 - at})")


def test_reliability_of_the_bins_with_rows(draw):
    figure = draw(compare_figures.reliability, [BASE, LOSSES[0] | {"calibration_error": None}])
    above, below = figure.axes
    level = above.lines[0]
    assert list(level.get_xdata()) == list(level.get_ydata()) == [0, 1]
    for line in above.lines[1:]:
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0.3, 0.9], [0.2, 0.8])
    assert legend(figure) == ["sgd\n(error 0.125)", "sgd, la"]
    assert [line.get_ydata().tolist() for line in below.lines] == [[25, 75]] * 2
    assert (above.get_ylim(), below.get_yscale()) == ((-0.02, 1.02), "log")


@pytest.mark.parametrize(("tuned", "how"), [(True, "chosen on validation rows"), (False, "given")])
def test_settings_by_how_often_they_were_chosen(draw, tuned, how):
    chosen = [
        BASE | {"chosen": {"lr": [0.1, 0.1, 0.03]}},
        RULES[0] | {"chosen": {"lr": [0.3, 0.1, 0.1], "rho": [0.2, 0.1, 0.2], "eta": [None] * 3}},
        OTHERS[0],
    ]
    figure = draw(compare_figures.chosen, chosen, tuned=tuned)
    rho, lr = figure.axes  # the eta of none is left out
    assert [axis.get_xlabel() for axis in (rho, lr)] == ["rho", "lr (learning rate)"]
    assert [text.get_text() for text in rho.get_yticklabels()] == ["sam", "sgd"]
    assert [text.get_text() for text in lr.get_xticklabels()] == ["0.03", "0.1", "0.3"]
    found = [(*dot.get_offsets()[0], dot.get_sizes()[0]) for dot in lr.collections]
    third, most = 80 + 60, 80 + 120
    assert found == [(1, 0, most), (2, 0, third), (0, 1, third), (1, 1, most)]
    assert texts(lr) == ["2", "1", "1", "2"] and texts(rho) == ["1", "2"]
    assert lr.get_xlim() == (-0.6, 2.6) and rho.get_ylim() == (-0.7, 2 - 0.3)
    assert how in figure.get_suptitle()


def test_without_settings_there_is_no_figure():
    assert compare_figures.chosen("x", summary([BASE, OTHERS[0]])) is False
