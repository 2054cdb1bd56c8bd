"""The page and the table of a comparison, cell by cell, of a summary made up."""

import html
import re

import pytest

from experiments.reports import compare_page, compare_table


def row(name, accuracy, log_loss, p, difference, **more):
    found = {
        "row": name, "reference": False, "balanced_accuracy": accuracy, "auroc": None,
        "macro_f1": 0.5, "average_precision": 0.25, "log_loss": log_loss, "p_holm": p,
        "seconds": 1.25, "recall": [accuracy, None], "group_accuracy": [12.5, None],
        "chosen": {}, "difference": {"balanced_accuracy": difference},
    }  # fmt: skip
    found |= dict.fromkeys(("calibration_error", "worst_recall", "many", "medium", "few"))
    return found | more


BASE = row("sgd", 61.25, 0.6125, None, None)
del BASE["difference"]
ROWS = [
    BASE,
    row("trees", 90.0, 0.5, None, [28.75, None, None], reference=True),
    row("lost", None, None, None, [None] * 3),
    row("sam", 65.0, 0.7, 0.0009, [3.75, -1.0, 8.5], auroc=0.75,
        chosen={"lr": [0.1, None], "width": [64, 32]}),
    row("gsa", 63.0, 0.8, 0.001, [1.75, 0.5, 3.0], auroc=0.7, seconds=10.0),
]  # fmt: skip


def summary(rows=ROWS, group=True, own_test=False, notes=()):
    counted = {"names": ["g", "h & i"], "counts": [12_000, 345]}
    return {
        "data": {"name": "set", "rows": 12_345, "features": 3, "classes": 2, "notes": list(notes),
                 "imbalance_factor": 4.0, "train_imbalance_factor": 3.5, "class_names": ["a", "b"],
                 "class_counts": [9876, 2469], "train_counts": [700, 200],
                 "group": counted if group else None},
        "splits": {"count": 2, "train": [1900, 2000], "val": [0, 0], "test": [300, 300],
                   "own_test": own_test},
        "thresholds": {"many_above": 500, "few_below": 250}, "best": "sam", "verdict": "Use sam.",
        "about": {"seed": 0, "net": {"width": 64, "rate": 0.1}, "sizes": [1, 0.5]}, "rows": rows,
    }  # fmt: skip


def tables(page):
    """Of each table its lines of cells."""
    return [
        [[html.unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", line)]
         for line in re.findall(r"<tr[^>]*>(.*?)</tr>", table)]
        for table in re.findall(r"<table>(.*?)</table>", page)
    ]  # fmt: skip


def test_the_tables_of_the_page():
    page = compare_page.page(summary(), 10, {})
    every, classes, groups, chosen, how = tables(page)
    # By balanced accuracy, references last; what no row has is no column.
    assert every == [
        ["", "balanced accuracy (%)", "macro F1", "AUROC", "average precision", "log-loss (nats)",
         "− sgd (points, 95% interval)", "Holm's p", "seconds"],
        ["sam", "65.0", "0.500", "0.750", "0.250", "0.700", "+3.8 (-1.0 to +8.5)", "<0.001",
         "1.2"],
        ["gsa", "63.0", "0.500", "0.700", "0.250", "0.800", "+1.8 (+0.5 to +3.0)", "0.001", "10.0"],
        ["sgd", "61.2", "0.500", "-", "0.250", "0.613", "-", "-", "1.2"],
        ["lost", "-", "0.500", "-", "0.250", "-", "-", "-", "1.2"],
        ["trees (reference)", "90.0", "0.500", "-", "0.250", "0.500", "+28.8", "-", "1.2"],
    ]  # fmt: skip
    names = [one["row"] for one in ROWS]
    assert classes == [
        ["class", "rows", "training rows", *names],
        ["a", "9876", "700", "61.2", "90.0", "-", "65.0", "63.0"],
        ["b", "2469", "200", *["-"] * 5],
    ]
    assert groups == [
        ["group", "rows", *names], ["g", "12000", *["12.5"] * 5], ["h & i", "345", *["-"] * 5],
    ]  # fmt: skip
    assert chosen == [
        ["row", "setting", "by split"], ["sam", "lr", "0.1, -"], ["sam", "width", "64, 32"],
    ]  # fmt: skip
    assert how == [
        ["", ""], ["seed", "0"], ["net", "width: 64, rate: 0.1"], ["sizes", "1, 0.5"],
    ]  # fmt: skip
    used = re.findall(r"<tr class=use><td>(.*?)</td>", page)
    assert used == ["sam"] and page.count("<tr class=") == 1
    assert "over 500, between, and under 250 training rows" in page
    assert "summary.json and the 10 lines of runs.csv" in page


@pytest.mark.parametrize("own_test", [False, True])
def test_what_the_page_says_of_the_data(own_test):
    page = compare_page.page(summary(own_test=own_test, notes=["a < b"]), 10, {})
    said = (
        "12,345 rows, 3 columns, 2 classes, largest over smallest 4 (3.5 in the rows trained on). "
        "2 splits of 1,900 to 2,000 to train on, 0 to choose by, 300 to test rows"
    )
    own = ", tested on a file of its own" if own_test else ""
    assert f"<p>{said}{own}.</p><ul><li>a &lt; b</li></ul>" in page
    assert "<ul>" not in compare_page.page(summary(), 10, {})


def test_what_there_is_not_has_no_part_of_the_page():
    page = compare_page.page(summary([BASE], group=False), 1, {"recall.png": b"abc"})
    assert [table[0][0] for table in tables(page)] == ["", "class", ""]
    assert page.count("<figure>") == 1 and "base64,YWJj" in page
    assert page.index("<h2>By class</h2>") < page.index("<figure>") < page.index("<details>")


def test_the_table_on_the_terminal(capsys):
    compare_table.show(summary())
    said = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    assert "set: 12345 rows, 2 classes, imbalance factor 3.5 in training" in said
    at = next(k for k, line in enumerate(lines) if line[0] == "row")
    assert [" ".join(line).split() for line in lines[at + 1 : at + 6]] == [
        ["sgd", "61.2", "-", "0.250", "0.613"] if k == 0 else words
        for k, words in enumerate([
            [], ["lost", "-", "-", "0.250", "-"],
            ["sam", "65.0", "+3.8", "-1.0", "to", "+8.5", "<0.001", "0.750", "0.250", "0.700"],
            ["gsa", "63.0", "+1.8", "+0.5", "to", "+3.0", "0.001", "0.700", "0.250", "0.800"],
            ["trees", "90.0", "+28.8", "-", "0.250", "0.500"],
        ])
    ]  # fmt: skip
    assert "2 splits; differences" in said and "Use sam." in said
    one = summary()
    one["splits"]["count"] = 1
    compare_table.show(one)
    assert "1 split; differences" in capsys.readouterr().out
    assert "1 split of 1,900" in compare_page.page(one, 10, {})


def test_a_name_in_brackets_is_shown_as_it_is(capsys):
    held = summary()
    held["data"]["name"] = "mine[old] [/] \\"
    compare_table.show(held)
    assert "mine[old] [/] \\: 12345 rows" in capsys.readouterr().out
