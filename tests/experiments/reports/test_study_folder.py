"""What sets add up to, by hand, and which field of a study.json is told as damaged."""

import copy
import json
import math

import pytest

from experiments.host.errors import RunError
from experiments.reports import study_folder
from experiments.reports.compare_folder import BASELINE

METRICS = ("balanced_accuracy", "macro_f1", "auroc", "average_precision", "log_loss")


def test_a_set_is_better_or_worse_where_0_is_outside_its_interval():
    """On its end is within; a set without an interval is none of the three."""
    found = study_folder._over_sets([
        [1, 0, 2], [-1, -2, 0], [1, 0.5, 1.5], [-1.5, -2, -1], [7, 0.25, 8], [None] * 3,
        [3, None, None],
    ])  # fmt: skip
    assert (found["win"], found["tie"], found["loss"]) == (2, 2, 1)
    means = [1, -1, 1, -1.5, 7, 3]
    assert found["gain"] == pytest.approx(sum(means) / 6) and found["median"] == 1
    variance = sum((x - sum(means) / 6) ** 2 for x in means) / 5
    assert found["se"] == pytest.approx(math.sqrt(variance / 6))
    alone = study_folder._over_sets([[2.0, 1.0, 3.0]])
    assert (alone["gain"], alone["median"], alone["se"], alone["p"]) == (2, 2, None, 1)
    none = study_folder._over_sets([[None] * 3])
    assert [none[name] for name in ("gain", "median", "se", "p")] == [None] * 4


def test_a_family_counts_once():
    points = [[1.0, 0, 2], [3.0, 2, 4], [8.0, 7, 9], [None] * 3, [5.0, None, None]]
    found = study_folder._of_families(points, ["a", "a", "b", "c", "c"])
    # 2, 8 and 5, of which two of eight signs are as far.
    assert found == {"gain": 5, "se": pytest.approx(3 / math.sqrt(3)), "p": 0.25, "number": 3}
    assert study_folder._of_families(points[:2], ["a", "a"]) == {
        "gain": 2, "se": None, "p": 1, "number": 1
    }  # fmt: skip
    two = study_folder._of_families(points[:2], ["a", "b"])
    assert (two["gain"], two["se"], two["number"]) == (2, pytest.approx(1), 2)
    assert study_folder._of_families(points[3:4], ["a"])["gain"] is None


def row(name, rule="sgd", loss="ce", reference=False, sampling="shuffled"):
    return {"row": name, "rule": rule, "loss": loss, "sampling": sampling, "reference": reference}


def test_each_row_beside_the_baseline_and_a_rule_beside_sgd_of_its_loss():
    rows = [
        row(BASELINE), row("la", loss="la"), row("sam", "sam"), row("sam, la", "sam", "la"),
        row("trees", None, None, True, ""), row("sam, b", "sam", sampling="balanced"),
        row("b", sampling="balanced"), row("x", "sam", "x"),
    ]  # fmt: skip
    against = [(one["row"], BASELINE) for one in rows[1:]]
    assert study_folder.pairs(rows) == [*against, ("sam, la", "la"), ("sam, b", "b")]


# Means 1 and 3: two of four signs are as far.
GAINS = {"by_set": [[1, 0.5, 1.5], [3, 2, 4]], "gain": 2, "median": 2, "se": 1, "p": 0.5,
         "win": 2, "tie": 0, "loss": 0}  # fmt: skip
LEVEL = {"by_set": [[1, 0.5, 1.5], [-1, -2, 0]], "gain": 0, "median": 0, "se": 1, "p": 1,
         "win": 1, "tie": 1, "loss": 0}  # fmt: skip
RANK = {"rank": {BASELINE: 2, "sam": 1.0}, "sets": 2, "cd": 0.5, "p": None, "statistic": None}
STUDY = {
    "sets": [{"name": "a", "classes": 2, "imbalance_factor": 1}, {"name": "b", "classes": 3,
             "imbalance_factor": 20.5}],
    "rows": [row(BASELINE), row("sam", "sam")], "ranks": dict.fromkeys(METRICS, RANK),
    "contrasts": [{"row": "sam", "against": BASELINE, "metrics": dict.fromkeys(METRICS, GAINS)}],
}  # fmt: skip
AT = "contrasts.0.metrics.auroc"


def said_of(out, changes):
    study = json.loads(json.dumps(STUDY))
    for place, value in changes.items():
        *path, last = (int(k) if k.isdecimal() else k for k in place.split("."))
        at = study
        for key in path:
            at = at[key]
        at[last] = copy.deepcopy(value)
    (out / "study.json").write_text(json.dumps(study))
    try:
        assert study_folder.read(out) == study
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"ranks.auroc": None}, {"rows.1": row("sam", None, None, True)},
        {"ranks.auroc.p": 1, "ranks.auroc.statistic": 3.5}, {AT: LEVEL},
        {f"{AT}.gain": 2 + 1.5e-9}, {AT: LEVEL | {"gain": 9e-10}}, {"ranks.auroc.rank.sam": 1},
        {"ranks.auroc.p": 0, "ranks.auroc.statistic": -1},
    ],
)  # fmt: skip
def test_a_study_that_may_be(changes, tmp_path):
    assert said_of(tmp_path, changes) == ""


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("rows.1.row", BASELINE, "rows"), ("rows.0.row", "sgd", "rows"), ("rows", [], "rows"),
        ("rows.1.reference", True, "rows.1"), ("rows.1.rule", None, "rows.1"),
        ("rows.1.loss", None, "rows.1"), ("rows.1.reference", 0, None),
        ("ranks.auroc.rank", {BASELINE: 1}, None), ("ranks.auroc.rank.x", 1, "ranks.auroc.rank"),
        ("ranks.auroc.rank.sam", 0.5, "ranks.auroc"), ("ranks.auroc.p", 0.5, "ranks.auroc"),
        ("ranks.auroc.statistic", 0.5, "ranks.auroc"), ("ranks.auroc.cd", 0, "ranks.auroc"),
        ("ranks.auroc.sets", 0, "ranks.auroc"), ("ranks.auroc.rank.sam", "x", "ranks.auroc"),
        ("ranks.auroc.rank", [], "ranks.auroc"), ("ranks.few", 3, ""),
        ("contrasts", [], None), ("contrasts.0.row", BASELINE, "contrasts"),
        (f"{AT}.by_set", [[1, 0.5, 1.5]], None), (f"{AT}.by_set.0", [1, 2, 0], None),
        (f"{AT}.gain", None, None), (f"{AT}.gain", 2 + 2.5e-9, None), (f"{AT}.median", 3, None),
        (f"{AT}.se", 1.1, None), (f"{AT}.p", 0.25, None), (f"{AT}.p", 1.5, None),
        (f"{AT}.p", -0.5, None), (f"{AT}.win", 1, None), (f"{AT}.tie", 1, None),
        (f"{AT}.loss", 2.0, None), (AT, LEVEL | {"gain": 1.5e-9}, f"{AT}.gain"),
        ("sets.0.classes", 0, None), ("sets.1.imbalance_factor", 0.5, None),
        ("sets.0.name", 3, None), (f"{AT}.gain", "x", None), (f"{AT}.se", True, None),
        (f"{AT}.p", "x", None), (f"{AT}.win", 2.0, None),
    ],
)  # fmt: skip
def test_a_field_of_a_study_that_is_damaged(place, value, told, tmp_path):
    said = said_of(tmp_path, {place: value})
    if told == "":
        assert said == ""
        return
    assert said.startswith(f"{tmp_path}/study.json is damaged: its {told or place} is not what a")


def test_a_set_is_alone_in_its_family_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        study_folder.compare_folder, "read", lambda folder, again: ({"of": folder}, "l")
    )
    for family, told in ((None, "a"), ("", "a"), ("x", "x")):
        found = study_folder.read_set("a", tmp_path, family)
        assert found == ("a", {"of": tmp_path}, "l", told)


def test_a_study_is_written_line_by_line_and_has_no_nan(tmp_path, monkeypatch):
    found = {"sets": [], "contrasts": []}
    monkeypatch.setattr(study_folder, "summarise", lambda sets: found)
    told = study_folder.write(tmp_path, [], failed=[{"name": "a"}], about={"seed": 3})
    assert told == {**found, "failed": [{"name": "a"}], "about": {"seed": 3}}
    assert (tmp_path / "study.json").read_text() == json.dumps(told, indent=1) + "\n"
    with pytest.raises(ValueError, match="JSON compliant"):
        study_folder.write(tmp_path, [], failed=[], about={"x": math.nan})
