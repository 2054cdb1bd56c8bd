"""The files of a report: which runs have gains by class, and what of them may be drawn again."""

import json
import math

import pytest

from experiments.host.errors import RunError
from experiments.reports import grouping, plots, reading, writing
from made_reports import make, save


@pytest.mark.parametrize("lacks", ["sgd", "sam"])
def test_a_seed_counts_where_both_runs_have_their_classes(lacks, tmp_path):
    """Those of the second seed lack one table; a report of another name has none."""
    for seed in (0, 1):
        for rule, accuracies in (("sgd", (90, 60, 30)), ("sam", (91 + seed, 60, 40))):
            save(tmp_path / f"{rule}{seed}", seed, rule, sum(accuracies) / 3, accuracies=accuracies)
    (tmp_path / f"{lacks}1" / "per_class.csv").unlink()
    (panel,), missing = writing.gains(grouping.grouped(reading.find([str(tmp_path)])))
    assert panel["gain"] == [1, 0, 10] and "se" not in panel and not missing
    (tmp_path / f"{lacks}0" / "report.json").rename(tmp_path / f"{lacks}0" / "mine.json")
    panels, (why,) = writing.gains(grouping.grouped(reading.find([str(tmp_path)])))
    assert (
        not panels and why == "no gain per class of 1. sam: no per_class.csv beside its reports"
        if lacks == "sgd"
        else why.endswith(". sam: no per_class.csv beside its reports")
    )


def test_of_sgd_alone_no_gain_is_missing(tmp_path):
    save(tmp_path / "sgd")
    assert writing.gains(grouping.grouped(reading.find([str(tmp_path)]))) == ([], [])
    save(tmp_path / "sam", 1, "sam")
    panels, missing = writing.gains(grouping.grouped(reading.find([str(tmp_path)])))
    assert not panels and [why.partition(": ")[2] for why in missing] == [
        "no SGD run of the same setting and seed"
    ]


@pytest.mark.parametrize(("eta", "told"), [(100, 100), (None, None), ("step(1, 2)", None)])
def test_where_the_tail_begins_is_told_where_it_is_a_number(eta, told, tmp_path):
    for rule, args in (("sgd", {}), ("imbsam", {"rho": 0.1, "eta": eta})):
        save(tmp_path / rule, 0, rule, rule_args=args)
    (panel,), _ = writing.gains(grouping.grouped(reading.find([str(tmp_path)])))
    assert panel["eta"] == told


PANEL = {"title": "x", "counts": [9, 3], "gain": [1.0, None], "eta": None}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None), ({"se": [0.5, None], "thresholds": [5, 4]}, None), ({"eta": 3.5}, None),
        ({"gain": [100.001, -100.001]}, None), ({"gain": [100.002, 0]}, "gain.0"),
        ({"gain": [0, -100.002]}, "gain.1"), ({"gain": [1.0]}, "gain"), ({"gain": 1.0}, "gain"),
        ({"se": [0.5]}, "se"), ({"se": [0, 100.001]}, None), ({"se": [0, 100.002]}, "se.1"),
        ({"se": [0, -0.1]}, "se.1"), ({"counts": [9, 3, 1]}, "gain"), ({"counts": [9, -1]},
        "counts.1"), ({"thresholds": [5]}, "thresholds"), ({"thresholds": [5, 4, 3]}, "thresholds"),
        ({"thresholds": [5, "x"]}, "thresholds"), ({"thresholds": {}}, "thresholds"),
        ({"title": None}, "title"), ({"eta": "x"}, "eta"),
        ({"se": "x", "gain": [1.0]}, "se"),
    ],
)  # fmt: skip
def test_gains_that_may_be_drawn(changes, wrong, tmp_path, monkeypatch):
    """The second of two panels."""
    drawn = []
    monkeypatch.setattr(plots, "gain_per_class", lambda *of: drawn.append(of))
    (tmp_path / "gains.json").write_text(json.dumps([PANEL, {**PANEL, **changes}]))
    if wrong is None:
        assert writing.draw_gains(tmp_path) == [tmp_path / "gain_per_class.png"]
        ((path, (first, second)),) = drawn
        assert path == tmp_path / "gain_per_class.png" and second.keys() == {*PANEL, *changes}
        assert first["gain"][0] == 1 and math.isnan(first["gain"][1])
        if changes.get("se") == [0.5, None]:
            assert second["se"][0] == 0.5 and math.isnan(second["se"][1])
        return
    with pytest.raises(RunError, match=rf"gains.json is damaged: its panels.1.{wrong} is not what"):
        writing.draw_gains(tmp_path)
    assert not drawn


@pytest.mark.parametrize("content", ["[]", "{}", "3", "null"])
def test_what_holds_no_panels(content, tmp_path):
    (tmp_path / "gains.json").write_text(content)
    with pytest.raises(RunError, match=r"gains.json is damaged: its panels is not what a report"):
        writing.draw_gains(tmp_path)


def test_gains_are_kept_as_they_are_drawn(tmp_path, monkeypatch):
    """Of a class that was not tested null, which JSON has and NaN is not."""
    drawn = []
    monkeypatch.setattr(plots, "gain_per_class", lambda path, panels: drawn.append(panels))
    panel = {"title": "x", "counts": [9, 3], "gain": [1.5, math.nan], "se": [0.5, math.nan],
             "eta": None, "thresholds": (5, 4)}  # fmt: skip
    writing.write(tmp_path, grouping.grouped([make(0)]), [panel])
    text = (tmp_path / "gains.json").read_text()
    assert text.endswith("}]\n") and json.loads(text) == [
        {"title": "x", "counts": [9, 3], "gain": [1.5, None], "se": [0.5, None], "eta": None,
         "thresholds": [5, 4]}
    ]  # fmt: skip
    (((held,),)) = drawn
    assert held["gain"][0] == 1.5 and math.isnan(held["se"][1])
    assert (
        "![accuracy gain of each class over SGD](gain_per_class.png)"
        in (tmp_path / "report.md").read_text()
    )


def test_what_is_written_of_runs_without_gains(tmp_path):
    """And what an earlier report has drawn is gone; columns are those of any record."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("gain_per_class.png", "gain_per_class.svg", "gains.json"):
        (out / name).touch()
    groups = grouping.grouped([make(0, dataset="digits"), make(0, "imbsam")])
    writing.write(out, groups, [])
    assert sorted(path.name for path in out.iterdir()) == ["report.csv", "report.md"]
    heads, first, *rest = (out / "report.csv").read_text().splitlines()
    assert heads.startswith("kind,run,dataset,") and heads.endswith(
        "chosen,source,note,run_differs"
    )
    assert first.startswith("run,1,digits,") and len(rest) > 1
    assert (out / "report.md").read_text() == writing.markdown(groups, False)
    writing.write(out, groups, [])  # nothing of before is needed
