"""What plots share: styles, names of lines at their ends, lines between Many, Medium and Few."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments.host.errors import RunError
from experiments.reports import drawing


@pytest.fixture
def axis():
    return Figure().subplots()


def test_36_lines_are_told_apart_without_colours():
    looks = [drawing.style(k) for k in range(36)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 36
    assert [look["color"] for look in looks[:7]] == [look["color"] for look in looks[7:14]]
    assert drawing.styles(["b", "a", "b"]) == {"b": looks[0], "a": looks[1]}


def test_a_picture_has_its_size_and_no_date_and_a_dollar_is_no_formula(tmp_path):
    """But numbers on a logarithmic axis are, which matplotlib writes so."""
    figure = Figure(figsize=(2, 1.5))
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.set_title("$5_a$")
    drawing.save(figure, tmp_path / "x.png")
    assert imread(tmp_path / "x.png").shape[:2] == (180, 240)  # 120 dots an inch
    drawn = (tmp_path / "x.svg").read_text()
    assert ">$5_a$</text>" in drawn and "dc:date" not in drawn
    assert not axis.title.get_parse_math()
    assert all(label.get_parse_math() for label in axis.get_xticklabels())
    assert any("mathdefault" in label.get_text() for label in axis.get_xticklabels())
    drawing.save(figure, tmp_path / "y.png", dpi=60)
    assert imread(tmp_path / "y.png").shape[:2] == (90, 120)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "x.svg", "y.png", "y.svg"]


@pytest.mark.parametrize("file", ["x.png", "x.svg"])
def test_a_picture_that_cannot_be_written_leaves_no_half_of_it(file, tmp_path):
    (tmp_path / file).mkdir()  # no file takes its place
    figure = Figure(figsize=(1, 1))
    with pytest.raises(RunError, match=rf"^cannot write {tmp_path / file}: [A-Z]"):
        drawing.save(figure, tmp_path / "x.png")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("sizes", "names", "between"),
    [
        # Many is over 100, Few under 20; what is on a threshold is Medium.
        ([101, 100, 20, 19], {"Many": 0, "Medium": 1.5, "Few": 3}, [0.5, 2.5]),
        ([500, 300, 200, 5, 1], {"Many": 1, "Few": 3.5}, [2.5, 2.5]),
        ([100, 50], {"Medium": 0.5}, []),
        ([7], {"Few": 0}, []),
    ],
)
def test_the_shots(axis, sizes, names, between):
    drawing.shots(axis, np.array(sizes), (100, 20))
    assert {text.get_text(): text.get_position()[0] for text in axis.texts} == names
    assert [line.get_xdata()[0] for line in axis.lines] == between
    drawing.shots(axis, np.array(sizes), None)
    assert len(axis.texts) == len(names)


def test_the_shots_in_words():
    assert drawing.shot_names(None) == {
        "many": "Many", "medium": "Medium", "few": "Few", "all": "All"
    }  # fmt: skip
    assert drawing.shot_names((100, 20)) == {
        "many": "Many (over 100)", "medium": "Medium (20 to 100)", "few": "Few (under 20)",
        "all": "All",
    }  # fmt: skip
    assert drawing.shot_names((20, 20))["medium"] == "Medium (20)"
    assert drawing.shot_note((100, 20)) == "; Many: over 100 training examples, Few: under 20"
    assert drawing.shot_note(None) == ""


def test_names_at_the_ends_of_lines(axis):
    """Where lines end close to one another a name moves up, by less than the gap."""
    axis.set_ylim(0, 10)
    given = {"a": [9, 5.0], "b": [1, 5.2], "c": [3, 0.0], "d": [7, np.nan]}
    lines = [axis.plot([0, 1], values, label=name)[0] for name, values in given.items()]
    assert drawing.label_ends(axis, lines, gap=0.1)
    # Of d, which ends at once, the place of its last number: 0.7 of the height.
    found = {text.get_text(): (text.xy, round(text.get_position()[1], 9)) for text in axis.texts}
    assert found == {
        "c": ((1, 0), 0), "a": ((1, 5), 0.5), "b": ((1, 5.2), 0.6), "d": ((0, 7), 0.7)
    }  # fmt: skip
    assert [text.get_color() for text in axis.texts] == [lines[k].get_color() for k in (2, 0, 1, 3)]


@pytest.mark.parametrize("values", [[[5.0], [5.0], [5.0]], [[np.nan]]])
def test_names_that_do_not_fit(axis, values):
    axis.set_ylim(0, 10)
    lines = [axis.plot([1], of, label="x")[0] for of in values]
    assert not drawing.label_ends(axis, lines, gap=0.1) and not axis.texts


@pytest.mark.parametrize(
    ("place", "names", "name", "columns"),
    [
        ("outside right upper", 5, "line", 1),
        ("outside lower center", 5, "line", 4),
        ("outside lower center", 2, "line", 2),
        ("outside lower center", 5, "a line of many words", 3),
        ("outside lower center", 2, "word " * 40, 1),
    ],
)
def test_a_legend_has_each_name_once_and_fits(place, names, name, columns):
    figure = Figure()
    axes = figure.subplots(1, 2)
    for axis in axes:
        for k in range(names):
            axis.plot([0], [0], label=f"{name} {k}")
    drawing.legend(figure, axes, place)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{name} {k}" for k in range(names)]
    assert legend._ncols == columns
    empty = Figure()
    drawing.legend(empty, [empty.subplots()])
    assert not empty.legends


def test_titles_fit_and_epochs_are_whole(axis):
    assert max(map(len, drawing.wrapped("word " * 40).splitlines())) in range(80, 86)
    axis.plot([1, 2], [0, 1])
    drawing.whole_epochs(axis)
    assert all(tick == round(tick) for tick in axis.get_xticks())
    assert axis.get_xlabel() == "epoch"
