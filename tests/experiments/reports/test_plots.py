"""Every plot: axes named with units, lines told apart in grey, legends beside, whole epochs."""

import itertools
import json
import os

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import redraw
from experiments.anomaly import curves
from experiments.bench.folder import SHOTS as SHOTS_OF_DIGITS
from experiments.data import digits
from experiments.host.errors import RunError
from experiments.reports import drawing, plots
from places import ROOT

RESULTS = ROOT / "results"
SHOTS = (100, 20)
COUNTS = np.array([5, 500, 30, 200, 10, 100, 20, 101, 19, 60])
RULES = ("sgd", "sam", "reweighted_sam", "imbsam", "focal_sam", "sse_sam", "cc_sam")


def epochs(number, few=0.0):
    return [
        {"epoch": e, "train_loss": 3.0 / e, "test_all": 20.0 + e, "test_many": 40.0 + e,
         "test_medium": few, "test_few": few}
        for e in range(1, number + 1)
    ]  # fmt: skip


def sweep_lines(values):
    by_split = {split: [50.0 + x for x in values] for split in ("all", "many", "medium", "few")}
    errors = {split: [0.5] * len(values) for split in by_split}
    line = {"x": values, "mean": by_split, "se": errors, "chosen": None}
    return {"eta 8": {**line, "chosen": 1}, "eta 20": line, "eta 40": line}


def anomaly_rows(ratios):
    level = dict.fromkeys(("auroc", "ap_anomaly", "ap_normal"), 80.0)
    spread = dict.fromkeys(("auroc_sd", "ap_anomaly_sd", "ap_normal_sd"), 1.0)
    return [
        {"protocol": "adbench", "label_ratio": ratio, "method": method, "rule": rule,
         "datasets": 14, "seeds": 3, **level, **spread}
        for ratio, method, rule in itertools.product(
            ratios, ("devnet", "deepsad"), ("sgd", "sam", "imbsam")
        )
    ]  # fmt: skip


GAIN = {"title": "imbsam", "counts": COUNTS, "gain": np.arange(10.0) - 4, "eta": 20}
CLASSES = {rule: np.linspace(90, 20, 10) + k for k, rule in enumerate(RULES)}
BY_EPOCH = {
    rule: ([1, 2, 3], {split: np.array([1.0, 2, 3]) + k for split in ("all", "few")})
    for k, rule in enumerate(RULES)
}
# Each by a call with its path left out, and how many panels it has.
PLOTS = {
    "per class": (lambda p: plots.per_class(p, "t", COUNTS, COUNTS % 3, COUNTS, SHOTS), 1),
    "many classes": (lambda p: plots.per_class(p, "t", np.arange(400, 0, -1), np.arange(400) % 2,
                                               np.ones(400), SHOTS), 1),
    "curves": (lambda p: plots.learning_curves(p, "t", epochs(9), SHOTS), 2),
    "one epoch": (lambda p: plots.learning_curves(p, "t", epochs(1), SHOTS), 2),
    "classes by rule": (lambda p: plots.classes_by_rule(p, COUNTS, {"ce": CLASSES, "la": CLASSES},
                                                        SHOTS, 20), 2),
    "curves by rule": (lambda p: plots.curves_by_rule(p, {"ce": BY_EPOCH, "la": BY_EPOCH}, 20), 4),
    "gains by rule": (lambda p: plots.gains_by_rule(
        p, {"all": {"sam": (1.0, 0.3), "imbsam": (None, None)}}, "SGD's", 20), 1),
    "gain per class": (lambda p: plots.gain_per_class(
        p, [{**GAIN, "se": np.ones(10), "thresholds": SHOTS}, GAIN]), 2),
    "sweep": (lambda p: plots.sweep(p, "rho", sweep_lines([0.02, 0.1, 0.8]),
                                    dict.fromkeys(("all", "many", "medium", "few"), 50.0)), 4),
    "label ratios": (lambda p: curves.draw(p, anomaly_rows([0.01, 0.25]), "adbench"), 3),
    "one label ratio": (lambda p: curves.draw(p, anomaly_rows([0.25]), "adbench"), 3),
}  # fmt: skip


def panels(figure):
    """The axes, without second ones for sizes."""
    return [axis for axis in figure.axes if axis.get_ylabel() != "training examples"]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


@pytest.fixture(scope="module", params=PLOTS)
def drawn(request, tmp_path_factory):
    """Each as a PNG alone, of few pixels: what is saved is the same for all plots."""
    draw, number = PLOTS[request.param]
    path = tmp_path_factory.mktemp("plot") / "x.png"

    def save(figure, path, dpi=0):
        figure.savefig(path, dpi=40)
        return figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save", save)
        return request.param, draw(path), number, path


@pytest.fixture
def unsaved(monkeypatch):
    """For what a figure holds, no file is needed: writing one takes most of its time."""
    monkeypatch.setattr(drawing, "save", lambda figure, path, dpi=0: figure)


def test_axes_have_names_and_units(drawn):
    kind, figure, number, path = drawn
    assert len(panels(figure)) == number and imread(path).std() > 0.01
    shared = ""  # rows share the name of their first panel's axis
    for axis in panels(figure):
        shared = axis.get_ylabel() or shared
        unit = ("(%)", "(points)", "loss, mean over examples")
        assert any(u in shared + axis.get_xlabel() for u in unit), (kind, shared)
        inner = kind == "sweep" and not axis.get_subplotspec().is_last_row()
        assert inner or axis.get_xlabel(), kind
        low, high = axis.get_ylim()
        assert np.isfinite([low, high]).all() and abs(high - low) > 0


def test_lines_are_told_apart_in_grey_and_named_once(drawn):
    kind, figure, _, _ = drawn
    for axis in panels(figure):
        assert axis.get_legend() is None, "a legend over the data"
        named = [line for line in axis.lines if not line.get_label().startswith("_")]
        looks = [(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in named]
        assert len(set(looks)) == len(looks), (kind, looks)
    names = legend(figure)
    assert len(set(names)) == len(names)
    named = {name for axis in figure.axes for name in axis.get_legend_handles_labels()[1]}
    assert set(names) == named, kind
    if figure.legends:  # beside the axes, not over them
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        for axis in figure.axes:
            assert not axis.get_window_extent().overlaps(box), kind


@pytest.mark.parametrize("drawn", ["curves", "one epoch", "curves by rule"], indirect=True)
def test_epochs_are_whole_numbers(drawn):
    _, figure, _, _ = drawn
    for axis in panels(figure):
        ticks = np.asarray(axis.get_xticks())
        assert (ticks == np.round(ticks)).all() and axis.get_xlabel() == "epoch"


def test_shot_groups_and_their_thresholds_are_named(unsaved, tmp_path):
    for figure in (
        plots.per_class(tmp_path / "a.png", "t", COUNTS, COUNTS % 3, COUNTS, SHOTS),
        plots.classes_by_rule(tmp_path / "b.png", COUNTS, {"": CLASSES}, SHOTS),
        plots.gain_per_class(tmp_path / "c.png", [{**GAIN, "thresholds": SHOTS}]),
    ):
        axis = figure.axes[0]
        at = {text.get_text(): text.get_position()[0] for text in axis.texts}
        # Sorted: 500 200 101 | 100 60 30 20 | 19 10 5.
        assert at == {"Many": 1, "Medium": 4.5, "Few": 8}
    names = ["Many (over 100)", "Medium (20 to 100)", "Few (under 20)", "All"]
    assert legend(plots.learning_curves(tmp_path / "d.png", "t", epochs(3), SHOTS)) == names
    assert drawing.shot_names((40, 41))["medium"] == "Medium (40)"
    assert drawing.shot_names(None)["few"] == "Few"


def test_a_line_on_another_does_not_hide_it(unsaved, tmp_path):
    """Few and Medium both at 0: the one drawn later is narrower, dashed and hollow."""
    figure = plots.learning_curves(tmp_path / "a.png", "t", epochs(5), SHOTS)
    _, medium, few, _ = figure.axes[1].lines
    np.testing.assert_array_equal(medium.get_ydata(), few.get_ydata())
    assert few.get_linewidth() < medium.get_linewidth() and few.get_linestyle() == "--"
    assert few.get_markerfacecolor() == "none" and figure.axes[1].get_ylim()[0] < 0


def test_rules_look_the_same_in_every_panel(unsaved, tmp_path):
    some = {name: CLASSES[name] for name in ("imbsam", "sgd")}
    figure = plots.classes_by_rule(tmp_path / "a.png", COUNTS, {"ce": CLASSES, "la": some}, SHOTS)
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axis.lines}
        for axis in figure.axes
    ]
    assert looks[1]["imbsam"] == looks[0]["imbsam"] and looks[1]["sgd"] == looks[0]["sgd"]
    assert legend(figure) == [*RULES, "training examples of the class (bars, right axis)"]


def sizes(figure):
    return [axis for axis in figure.axes if axis.get_ylabel() == "training examples"]


def test_sizes_are_bars_behind_the_accuracies(unsaved, tmp_path):
    for figure in (
        plots.per_class(tmp_path / "a.png", "t", COUNTS, COUNTS % 3, COUNTS, SHOTS),
        plots.classes_by_rule(tmp_path / "b.png", COUNTS, {"": CLASSES}, SHOTS),
        plots.gain_per_class(tmp_path / "c.png", [GAIN]),
    ):
        front, (behind,) = panels(figure)[0], sizes(figure)
        assert [bar.get_height() for bar in behind.patches] == sorted(COUNTS, reverse=True)
        assert [text.get_text() for text in behind.texts] == [f"{n}" for n in sorted(COUNTS)[::-1]]
        assert front.get_zorder() > behind.get_zorder() and not front.patch.get_visible()


def test_errors_over_seeds_are_drawn(unsaved, tmp_path):
    errors = {"": {"sgd": np.arange(10.0)}}
    some = {"sgd": CLASSES["sgd"], "sam": CLASSES["sam"]}
    figure = plots.classes_by_rule(tmp_path / "a.png", COUNTS, {"": some}, SHOTS, 20, errors)
    (bars,) = figure.axes[0].containers  # of the one whose errors are known
    order = np.argsort(-COUNTS, kind="stable")
    (segments,) = bars[2]
    halves = [(high - low) / 2 for (_, low), (_, high) in segments.get_segments()]
    np.testing.assert_allclose(halves, np.arange(10.0)[order])
    assert "standard error" in figure.axes[0].get_ylabel()
    splits = {"all": [1.0, 2.0], "all_se": [0.5, 0.25]}
    figure = plots.curves_by_rule(tmp_path / "b.png", {"": {"sgd": ([1, 2], splits)}}, 20)
    assert len(figure.axes) == 1 and "standard error" in figure.get_suptitle()
    (band,) = figure.axes[0].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (0.5, 2.25)


def test_the_tail_is_marked_where_it_is_known(unsaved, tmp_path):
    """Before the first class of at most eta images; GSA has none."""
    figure = plots.gain_per_class(tmp_path / "a.png", [GAIN, {**GAIN, "eta": None}])
    marked, plain = (
        [line for line in axis.lines if line.get_linestyle() == "-."] for axis in panels(figure)
    )
    assert plain == [] and len(marked) == 1
    assert set(marked[0].get_xdata()) == {np.count_nonzero(COUNTS > 20) - 0.5}
    assert marked[0].get_label() == "η = 20"


def test_few_lines_are_named_where_they_end(unsaved, tmp_path):
    def by_epoch(ends):
        values = {f"rule {k}": ([1, 2], {"all": np.array([0.0, y])}) for k, y in enumerate(ends)}
        return plots.curves_by_rule(tmp_path / "a.png", {"": values}, 20)

    figure = by_epoch([10, 10.1, 50])
    found = {text.get_text(): text for text in figure.axes[0].texts}
    assert list(found) == ["rule 0", "rule 1", "rule 2"] and not figure.legends
    heights = [text.get_position()[1] for text in found.values()]
    assert heights[1] - heights[0] >= 0.055 - 1e-9
    colours = [text.get_color() for text in found.values()]
    assert colours == [line.get_color() for line in figure.axes[0].lines]
    crowded = by_epoch([10, 10.1, 10.2, 10.3])
    assert not crowded.axes[0].texts and len(legend(crowded)) == 4


def test_every_plot_is_svg_too_and_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plots.gains_by_rule(tmp_path / name / "x.png", {"all": {"sam": (1.0, 0.3)}}, "SGD's", 20)
    made = [(tmp_path / name / "x.svg").read_bytes() for name in ("a", "b")]
    assert made[0] == made[1] and b">difference (points)</text>" in made[0]


@pytest.mark.slow  # drawn several times
def test_long_titles_are_not_cut_off(tmp_path):
    long = "imbsam rho 0.05 eta 100 tail_scale 1 logit_adjusted tau 1 examples split_norm " * 2
    for figure in (
        plots.per_class(tmp_path / "a.png", long, COUNTS, COUNTS % 3, COUNTS, SHOTS),
        plots.learning_curves(tmp_path / "b.png", long, epochs(3), SHOTS),
        plots.gain_per_class(tmp_path / "c.png", [{**GAIN, "title": long}]),
    ):
        figure.draw_without_rendering()
        for text in (figure.axes[0].title, *filter(None, [figure._suptitle])):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_as_many_styles_as_lines():
    looks = [drawing.style(k) for k in range(36)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 36


def test_one_seed_has_no_bars_and_says_so(unsaved, tmp_path):
    figure = plots.gain_per_class(tmp_path / "a.png", [GAIN])
    assert "one seed" in figure.axes[0].get_title() and "± standard error" not in legend(figure)
    one = [{**row, "seeds": 1, "datasets": 1} for row in anomaly_rows([0.25])]
    title = curves.draw(tmp_path / "b.png", one, "adbench").get_suptitle()
    assert "1 data set," in title and "1 seeds" not in title and "one seed" in title
    figure = plots.classes_by_rule(tmp_path / "c.png", COUNTS, {"": CLASSES}, SHOTS, 1)
    assert figure.axes[0].get_ylabel().endswith("one seed")


def test_the_headline_of_anomaly_detection_is_plotted(unsaved, tmp_path):
    figure = curves.draw(tmp_path / "a.png", anomaly_rows([0.01, 0.25]), "adbench")
    assert [axis.get_ylabel().split()[0] for axis in figure.axes] == ["AUROC", *["average"] * 2]
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["1", "25"]


@pytest.mark.parametrize("where", ["no folder", "a folder", "no space"])
def test_what_cannot_be_written_is_a_sentence_and_leaves_nothing(where, tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    if where == "no folder":
        path = tmp_path / "nowhere" / "x.png"
    elif where == "a folder":
        path.mkdir()
    else:

        def full(*_):
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match=rf"cannot write {path}: [A-Z]"):
        plots.learning_curves(path, "t", epochs(2), SHOTS)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"] * (where == "a folder")


@pytest.mark.slow
def test_the_plots_of_results_are_drawn_from_their_files(tmp_path, monkeypatch):
    """A picture that no committed file can make anew is none: each PNG is one that redraw makes."""
    monkeypatch.setattr(
        "experiments.reports.drawing.save", lambda figure, path, dpi=0: path.touch()
    )
    committed = {path.relative_to(RESULTS) for path in RESULTS.rglob("*.png")}
    assert {path.with_suffix(".png").relative_to(RESULTS) for path in RESULTS.rglob("*.svg")} <= (
        committed
    )
    kinds = {}
    for folder in sorted({path.parent for path in committed}):
        files = {file.name for file in (RESULTS / folder).iterdir()}
        kinds.setdefault(frozenset(files - {"README.md", "table.md"}), []).append(folder)
    assert committed and kinds
    for folders in kinds.values():  # one folder of each kind is drawn, the names of all compared
        copy = tmp_path / folders[0]
        copy.mkdir(parents=True, exist_ok=True)
        for file in (RESULTS / folders[0]).iterdir():
            if file.is_file() and file.suffix not in (".png", ".svg"):
                (copy / file.name).write_bytes(file.read_bytes())
        made = {path.relative_to(tmp_path) for path in redraw.redraw(copy)}
        assert made == {path for path in committed if path.parent == folders[0]}
        assert all((RESULTS / path).with_suffix(".svg").is_file() for path in made)


def run_redraw(*paths):
    redraw.main(redraw.arguments().parse_args([str(path) for path in paths]))


def test_redraw_refuses_in_a_sentence(tmp_path):
    for path, message in ((tmp_path / "nowhere", "is no folder"), (tmp_path, "nothing to draw")):
        with pytest.raises(RunError, match=message):
            run_redraw(path)
    for content in ("[]", "[{}]", "{", '[{"rule": 3, "loss": 1, "stage2": 2}]', '{"groups": 3}'):
        for table in ("per_class.csv", "sweep.csv", "runs.csv"):
            at = tmp_path / "x" / table
            at.mkdir(parents=True, exist_ok=True)
            (at / "summary.json").write_text(content)
            (at / "config.json").write_text(json.dumps({"rule": "imbsam"}))
            (at / table).write_text("a,b\n1,2\n")
            if (content, table) == ("[]", "runs.csv"):
                continue
            with pytest.raises(RunError, match=r"not fit together|nothing to draw|cannot|damaged"):
                run_redraw(at)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000])
@pytest.mark.parametrize(
    ("table", "damaged"),
    [
        ("report.json", "report.json"),
        ("runs.csv", "summary.json"),
        ("sweep.csv", "summary.json"),
        ("sweep.csv", "config.json"),
        ("per_class.csv", "summary.json"),
    ],
)
def test_redraw_names_the_damaged_file(tmp_path, table, damaged, content):
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "config.json").write_text(json.dumps({"rule": "imbsam"}))
    (tmp_path / table).write_text("a,b\n1,2\n")
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(RunError, match=f"cannot read .*{damaged}: it is not"):
        run_redraw(tmp_path)


def test_the_digits_thresholds_are_the_data_sets():
    data = digits.load_digits_lt(50.0, 0)
    assert (data.many_above, data.few_below) == SHOTS_OF_DIGITS


def test_classes_of_one_size_stay_in_their_order(unsaved, tmp_path):
    """Beyond the sixteen that any sort leaves in place."""
    counts = np.repeat([5, 9, 7], 20)
    order = [*range(20, 40), *range(40, 60), *range(20)]
    percent = np.arange(60) * 1.5
    figures = (
        plots.per_class(tmp_path / "a.png", "t", counts, np.arange(60) * 3, np.full(60, 200)),
        plots.classes_by_rule(tmp_path / "b.png", counts, {"": {"sgd": percent}}),
    )
    for figure in figures:
        drawn = figure.axes[0].lines[0].get_ydata()
        np.testing.assert_allclose(drawn, percent[order])
