"""Which numbers stand in the figures of a study, and in a sweep's; nothing is rendered here."""

import numpy as np
import pytest

from experiments.reports import drawing, plots, study_figures

SETS = [
    {"name": "small", "classes": 2, "imbalance_factor": 3.0},
    {"name": "large", "classes": 5, "imbalance_factor": 90.0},
    {"name": "one split", "classes": 3, "imbalance_factor": 10.0},
    {"name": "none", "classes": 4, "imbalance_factor": 20.0},
]


def contrast(name, points, gain=None, se=None):
    accuracy = {"by_set": points, "gain": gain, "se": se}
    scaled = [[None if x is None else x / 100 for x in of] for of in points]
    return {
        "row": name,
        "against": "sgd",
        "metrics": {"balanced_accuracy": accuracy, "auroc": {"by_set": scaled}},
    }


UP = [[2.0, 1.0, 3.0], [-4.0, -6.0, -1.0], [1.0, None, None], [None, None, None]]
LEVEL = [[0.5, -1.0, 2.0], [0.0, -0.5, 0.5], [0.0, None, None], [None, None, None]]
SHOWN = [contrast("sam", UP, 0.5, 0.75), contrast("imbsam", LEVEL)]


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(
        drawing, "save", lambda figure, path: figures.append((figure, path)) or figure
    )
    yield figures
    assert all(figure.get_layout_engine() for figure, _ in figures), "names over one another"


def lines(axis, points):
    """Those of so many points, without the ones across the whole axis, as ((x, y), ...)."""
    found = [of for of in axis.lines if len(of.get_xdata()) == points]
    found = [of for of in found if of.get_transform() == axis.transData]
    return [tuple(zip(of.get_xdata(), of.get_ydata(), strict=True)) for of in found]


@pytest.mark.parametrize(
    ("metric", "unit", "scale", "said"),
    [
        ("balanced_accuracy", "points", 1, "balanced accuracy (points)"),
        ("auroc", "0 to 1", 0.01, "AUROC (0 to 1)"),
    ],
)
def test_gains_by_imbalance_factor(metric, unit, scale, said, drawn):
    study_figures.gains("x", {"sets": SETS}, SHOWN, metric, unit)
    ((figure, path),) = drawn
    first, second = figure.axes
    assert path == "x" and figure.get_supylabel() == f"gain in {said}"
    at = [(3.0, 2.0), (90.0, -4.0), (10.0, 1.0)]
    np.testing.assert_allclose([of[0] for of in lines(first, 1)], [(x, scale * y) for x, y in at])
    spans = [[(3, 1), (3, 3)], [(90, -6), (90, -1)]]
    np.testing.assert_allclose(lines(first, 2), [[(x, scale * y) for x, y in of] for of in spans])
    # Open squares: two classes. Named: 0 is outside the interval.
    points = [of for of in first.lines if len(of.get_xdata()) == 1]
    assert [(of.get_marker(), of.get_markerfacecolor()) for of in points] == [
        ("s", "white"), ("o", "black"), ("o", "black")
    ]  # fmt: skip
    assert [text.get_text() for text in first.texts] == ["small", "large"]
    assert not second.texts and first.get_title() == "sam\n− sgd"
    assert first.get_xscale() == "log"
    for axis in (first, second):
        assert list(axis.lines[-1].get_ydata()) == [0, 0]


@pytest.mark.parametrize(("shown", "panels"), [(1, 1), (3, 3), (4, 4), (5, 6), (6, 6), (9, 6)])
def test_panels_stand_in_one_line_or_two(shown, panels, drawn):
    """And six of them: how many there are is said."""
    study_figures.gains("x", {"sets": SETS}, SHOWN[:1] * shown, "auroc", "0 to 1")
    study_figures.forest("x", {"sets": SETS}, SHOWN[:1] * shown)
    (figure, _), (forest, _) = drawn
    axes = figure.axes
    assert len(axes) == panels and sum(axis.axison for axis in axes) == min(shown, 6)
    assert axes[0].get_gridspec().nrows == (1 if shown < 4 else 2)
    assert len(forest.axes) == min(shown, 6)
    told = "; 6 of 9 comparisons, the others are in tables.md"
    for one in (figure, forest):
        assert one.get_supxlabel().endswith(told) == (shown == 9)
        assert ("comparisons" in one.get_supxlabel()) == (shown == 9)


def test_what_of_a_study_is_drawn(monkeypatch, tmp_path):
    """Ranks of three rows and more; gains where there is something to compare."""
    done = []
    for name in ("ranks", "gains", "forest"):
        monkeypatch.setattr(
            study_figures, name, lambda path, *of, name=name: done.append((path.name, name, *of))
        )
    of_two, of_three = ({"rank": dict.fromkeys(names, 1.0)} for names in ("ab", "abc"))
    ranks = {"balanced_accuracy": of_two, "auroc": of_three}
    study = {"ranks": ranks, "contrasts": [], "rows": []}
    monkeypatch.setattr(study_figures.study_folder, "read", lambda out: study)
    assert study_figures.draw(tmp_path) == [tmp_path / "ranks_auroc.png"]
    assert done == [("ranks_auroc.png", "ranks", of_three, "AUROC")]
    monkeypatch.setattr(study_figures, "panels", lambda study: SHOWN)
    ranks |= {"balanced_accuracy": None}
    done.clear()
    names = ["ranks_auroc.png", "gain_balanced_accuracy.png", "gain_auroc.png", "forest.png"]
    assert study_figures.draw(tmp_path) == [tmp_path / name for name in names]
    assert done[1:] == [
        (names[1], "gains", study, SHOWN, "balanced_accuracy", "points"),
        (names[2], "gains", study, SHOWN, "auroc", "0 to 1"), (names[3], "forest", study, SHOWN),
    ]  # fmt: skip


def test_the_comparisons_that_are_drawn_first():
    """Logit adjustment, then of every loss ImbSAM, SAM and the other rules."""

    def row(name, rule, loss="cross_entropy", sampling="shuffled"):
        return {"row": name, "rule": rule, "loss": loss, "sampling": sampling,
                "reference": rule is None}  # fmt: skip

    base = "sgd, cross_entropy"
    rows = [
        row(base, "sgd"), row("la", "sgd", "logit_adjusted"), row("cb", "sgd", "class_balanced"),
        row("la, balanced", "sgd", "logit_adjusted", "balanced"), row("gsa", "gsa"),
        row("sam", "sam"), row("imbsam", "imbsam"), row("imbsam, la", "imbsam", "logit_adjusted"),
        row("trees", None),
    ]  # fmt: skip
    contrasts = [{"row": one["row"], "against": base} for one in rows[1:]]
    contrasts.append({"row": "imbsam, la", "against": "la"})
    found = study_figures.panels({"rows": rows, "contrasts": contrasts})
    assert [(each["row"], each["against"]) for each in found] == [
        ("la", base), ("imbsam", base), ("imbsam, la", "la"), ("sam", base), ("gsa", base)
    ]  # fmt: skip


def test_a_forest_of_sets_by_their_imbalance(drawn):
    study_figures.forest("x", {"sets": SETS}, SHOWN)
    ((figure, path),) = drawn
    first, second = figure.axes
    names = [text.get_text() for text in first.get_yticklabels()]
    assert path == "x" and names == [
        "mean of the sets ± 2 se", "large (5 classes, 90)", "none (4 classes, 20)",
        "one split (3 classes, 10)", "small (2 classes, 3)",
    ]  # fmt: skip
    assert first.get_yticks().tolist() == [0, 1, 2, 3, 4] and first.get_ylim() == (-0.8, 4.8)
    assert lines(first, 1) == [((-4, 1),), ((1, 3),), ((2, 4),), ((0.5, 0),)]
    assert lines(first, 2) == [((-6, 1), (-1, 1)), ((1, 4), (3, 4)), ((-1, 0), (2, 0))]
    colours = [
        [of.get_markerfacecolor() for of in axis.lines if len(of.get_xdata()) == 1][:3]
        for axis in (first, second)
    ]
    assert colours == [["black", "white", "black"], ["white"] * 3]  # filled where 0 is outside
    assert lines(second, 1) == [((0, 1),), ((0, 3),), ((0.5, 4),)]  # no mean is known
    for axis in (first, second):
        assert list(axis.lines[-1].get_xdata()) == [0, 0]
    assert first.get_title() == "sam\n− sgd"
    # Ends 6, 1, 1 and 3 in size, of which nine tenths lie below 5.1; means up to 4.
    assert first.get_xlim() == pytest.approx((-5.1, 5.1))


@pytest.mark.parametrize(
    ("points", "limit"),
    [
        ([[4.0, 3.0, 4.5], [1.0, -1.0, 2.0]], 5.0),  # 1.25 of the largest mean
        ([[0.0, 0.0, 0.0]], 1.0),  # no width
        ([[1.0, None, None]], None), ([[None, None, None]], None),
    ],
)  # fmt: skip
def test_limits_of_a_forest(points, limit, drawn):
    sets = SETS[: len(points)]
    study_figures.forest("x", {"sets": sets}, [contrast("a", points)])
    found = drawn[0][0].axes[0].get_xlim()
    assert limit is None or found == (-limit, limit)
    assert limit is not None or found != (-1, 1)


def sweep_line(x, mean, chosen=None):
    return {
        "x": x, "mean": dict.fromkeys(("all", "many", "medium", "few"), mean),
        "se": dict.fromkeys(("all", "many", "medium", "few"), [0.5] * len(x)), "chosen": chosen,
    }  # fmt: skip


SGD = {"all": 50.0, "many": 60.0, "medium": 40.0, "few": 10.0}


@pytest.mark.parametrize(
    ("values", "log"), [([0.1, 0.2, 1.0], True), ([0.1, 0.2, 0.9], False), ([0.0, 1, 20], False)]
)
def test_a_sweep_over_its_values(values, log, drawn):
    found = {
        "eta 8": sweep_line(values, [51.0, 52, 53], 1), "eta 20": sweep_line(values[:2], [54.0, 55])
    }  # fmt: skip
    figure = plots.sweep("x", "rho", found, SGD)
    assert drawn == [(figure, "x")] and len(figure.axes) == 4
    for axis, (split, level) in zip(figure.axes, SGD.items(), strict=True):
        assert axis.get_title() == split.capitalize()
        first, second = axis.containers
        for bars, end, means in ((first, 3, [51, 52, 53]), (second, 2, [54, 55])):
            x, y = bars[0].get_data()
            assert (list(x), list(y)) == (values[:end], means)
        assert [np.ptp(x, axis=0)[1] for x in first[2][0].get_segments()] == [1, 1, 1]
        labels = {of.get_label(): of for of in axis.lines}
        chosen = labels["chosen by validation"]
        assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (values[1], 52)
        assert set(labels["SGD"].get_ydata()) == {level}
        assert axis.get_xscale() == ("log" if log else "linear")
        if log:
            assert axis.get_xlim() == pytest.approx((values[0] / 1.3, values[2] * 1.3))
            assert axis.get_xticks().tolist() == values
    if log:
        below = figure.axes[2]
        assert [text.get_text() for text in below.get_xticklabels()] == ["0.1", "0.2", "1"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "rho", "rho"]


def test_sgd_itself_may_be_what_validation_chose(drawn):
    figure = plots.sweep("x", "rho", {"a": sweep_line([1, 2], [1.0, 2])}, SGD, sgd_chosen=True)
    labels = [of.get_label() for of in figure.axes[0].lines]
    assert "SGD, chosen by validation" in labels and "chosen by validation" not in labels
