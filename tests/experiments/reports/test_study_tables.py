"""Cells of a study's tables, at both sides of where they are written otherwise."""

import pytest

from experiments.reports import figures, study_tables
from experiments.reports.compare_folder import BASELINE


@pytest.mark.parametrize(
    ("p", "cell"),
    [(None, "-"), (1.0, "1.000"), (0.0014, "0.001"), (0.001, "0.001"), (0.00099, "<0.001"),
     (0, "<0.001")],
)  # fmt: skip
def test_a_p(p, cell):
    assert figures.p_value(p) == cell
    families = {"gain": 1.0, "se": None, "median": 1.0, "win": 1, "tie": 0, "loss": 0, "p_holm": p}
    assert study_tables._gain(families, "auroc").endswith(f"; {cell}")


@pytest.mark.parametrize(
    ("term", "cell"),
    [
        (None, "-"), ({"coefficient": 2, "se": None, "p": None}, "+2"),
        ({"coefficient": -0.12345, "se": 0.5678, "p": 0.05}, "-0.123 ± 0.57*"),
        ({"coefficient": 1234.5, "se": 0.5, "p": 0.0501}, "+1.23e+03 ± 0.5"),
    ],
)  # fmt: skip
def test_a_term(term, cell):
    assert study_tables._term(term) == cell


GAIN = {"gain": 1.25, "se": 0.55, "median": -0.25, "win": 3, "tie": 2, "loss": 1, "p_holm": 0.0004}


@pytest.mark.parametrize(
    ("changes", "metric", "cell"),
    [
        ({}, "balanced_accuracy", "+1.2 ± 0.6 (-0.2); 3/2/1; <0.001"),
        ({}, "macro_f1", "+1.250 ± 0.550 (-0.250); 3/2/1; <0.001"),
        ({}, "auroc", "+1.250 ± 0.550 (-0.250); 3/2/1; <0.001"),
        ({}, "average_precision", "+1.250 ± 0.550 (-0.250); 3/2/1; <0.001"),
        ({"se": None}, "log_loss", "+1.250 (-0.250); 3/2/1; <0.001"),
        ({"gain": None}, "log_loss", "-"), (None, "log_loss", "-"),
    ],
)  # fmt: skip
def test_a_gain(changes, metric, cell):
    found = None if changes is None else {**GAIN, **changes}
    assert study_tables._gain(found, metric) == cell


@pytest.mark.parametrize(
    ("points", "cell"),
    [([None] * 3, "-"), ([1.25, None, None], "+1.2"), ([0.0, -1.5, 1.5], "+0.0 (-1.5, +1.5)")],
)
def test_an_interval(points, cell):
    assert study_tables._interval(points) == cell


def row(name, rule="sgd", loss="ce", reference=False, sampling="shuffled"):
    return {"row": name, "rule": rule, "loss": loss, "sampling": sampling, "reference": reference}


def study(*families):
    gains = {"balanced_accuracy": {"gain": 1.25, "se": 0.5, "p": 0.25},
             "auroc": {"gain": 0.0125, "se": None, "p": None},
             "average_precision": {"gain": None, "se": None, "p": None}}  # fmt: skip
    rows = [row(BASELINE), row("la", loss="la"), row("sam, la", "sam", "la"),
            row("trees", None, None, True)]  # fmt: skip
    against = [("la", BASELINE), ("sam, la", BASELINE), ("trees", BASELINE), ("sam, la", "la")]
    return {
        "sets": [{"name": f"s{k}", "family": family} for k, family in enumerate(families)],
        "rows": rows,
        "contrasts": [
            {"row": a, "against": b, "metrics": {m: {"families": of} for m, of in gains.items()}}
            for a, b in against
        ],
    }


def test_families_are_told_where_two_sets_are_of_one():
    assert study_tables._families(study("a", "b")) == "No two sets are of one family."
    note, table = study_tables._families(study("a", "b", "a", "c", "c", "c")).split("\n\n")
    assert note.startswith("Means over 3 families, each") and note.endswith(
        "Of one family are: s0, s2; s3, s4, s5."
    )
    cells = "+1.2 ± 0.5; 0.250 | +0.013; - | -; - |"
    assert table.splitlines()[2:] == [
        f"| la | {BASELINE} | {cells}", f"| sam, la | {BASELINE} | {cells}",
        f"| trees | {BASELINE} | {cells}", f"| sam, la | la | {cells}",
    ]  # fmt: skip


def test_a_rule_is_added_to_sgd_of_its_loss_and_sampling():
    found = study_tables.added(study("a"))
    assert [(each["row"], each["against"]) for each in found] == [("sam, la", "la")]


def test_what_is_left_out_in_a_sentence():
    found = study_tables.left_out({
        "dropped": [{"row": "sam", "lacks": ["a"]}, {"row": "gsa", "lacks": ["a", "b"]}],
        "lost": [{"row": "sam", "set": "c", "splits": [3]},
                 {"row": "gsa", "set": "c", "splits": [0, 4]}],
    })  # fmt: skip
    assert found == [
        "sam: a lacks the row", "gsa: a, b lack the row",
        "sam on c: it lacks a figure of 1 split (3), of which no row is ranked by that figure",
        "gsa on c: it lacks a figure of 2 splits (0, 4), of which no row is ranked by that figure",
    ]  # fmt: skip


def test_a_bar_within_a_cell_ends_none():
    assert study_tables._table(["a|b", 1], [[2, "c"]]) == "| a\\|b | 1 |\n| --- | --- |\n| 2 | c |"
