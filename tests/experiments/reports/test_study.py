"""What many comparisons add up to, against closed forms, scipy and scikit-posthocs."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from scipy import stats

import recorded
from damage import damaged_json
from experiments import redraw
from experiments.host.errors import RunError
from experiments.reports import drawing, study_figures, study_folder, study_tables
from experiments.reports.compare_folder import BASELINE
from experiments.reports.paired import holm, interval
from experiments.reports.study_statistics import ranks, regression, signed_rank
from made_comparisons import ROWS, folder_of


def test_ranks_by_hand():
    # Two sets under three methods: 1, 2, 3 and 1.5, 1.5, 3.
    found = ranks([[9, 5, 1], [4, 4, 2]])
    assert found["rank"] == [1.25, 1.75, 3] and found["sets"] == 2
    assert ranks([[9, 5, 1], [4, 4, 2]], falling=True)["rank"] == [2.75, 2.25, 1]
    # Nemenyi's q of three methods at 0.05 is 2.343 (Demsar, 2006, Table 5a).
    assert found["cd"] == pytest.approx(2.343 * math.sqrt(3 * 4 / 12), abs=1e-3)


def test_friedman_and_nemenyi_are_those_of_the_libraries():
    values = np.random.default_rng(0).normal(np.array([0, 0, 0.8, 1.6]), size=(9, 4))
    found = ranks(values)
    assert found["p"] == pytest.approx(stats.friedmanchisquare(*values.T).pvalue, rel=1e-12)
    p = scikit_posthocs.posthoc_nemenyi_friedman(values).to_numpy()
    far = np.abs(np.subtract.outer(found["rank"], found["rank"])) > found["cd"]
    np.testing.assert_array_equal(far, p < 0.05)
    assert far.any() and not far.all()


def test_ranks_of_what_cannot_be_tested():
    """Two methods, one set, or all equal; of three methods on two sets it can."""
    for values in ([[1, 2]], [[1, 2], [2, 1]], [[1, 2, 3]], [[3, 3, 3], [3, 3, 3]]):
        found = ranks(values)
        assert found["p"] is None and found["statistic"] is None
    assert ranks([[1, 2, 3], [1, 2, 3]])["p"] == pytest.approx(math.exp(-2))


@pytest.mark.parametrize("zeros", [0, 5, 20])
@pytest.mark.parametrize("gains", [[1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 1, 1, 1], [-2.5, -1, -1]])
def test_signed_ranks_by_hand(gains, zeros):
    """All of n differences on one side: 2 of the 2**n signs are as extreme, however many are 0."""
    assert signed_rank([0] * zeros + gains) == pytest.approx(2 / 2 ** len(gains))
    assert signed_rank([0] * zeros + [3, -3, 1, -1]) == 1
    assert signed_rank([0] * zeros) == (1 if zeros else None)


@pytest.mark.parametrize("gains", [[0] * 9 + [1, -1, 2, 2, 5, 0.5, 3], [3, -1, 2, -0.5, 4, 4, 4],
                                   [1, 2, -2, -4]])  # fmt: skip
def test_signed_ranks_are_over_every_sign(gains):
    gains = np.array(gains)
    held = (stats.rankdata(np.abs(gains)) * np.sign(gains))[gains != 0]
    sums = [abs(np.dot(held, signs)) for signs in itertools.product((-1, 1), repeat=len(held))]
    assert signed_rank(gains) == pytest.approx(np.mean(np.array(sums) >= abs(held.sum()) - 1e-9))


def test_signed_ranks_of_many_gains_are_scipy_s():
    gains = np.random.default_rng(0).normal(0.2, size=300)
    expected = stats.wilcoxon(gains, method="exact").pvalue
    assert signed_rank(gains) == pytest.approx(expected, rel=1e-9)


def test_the_last_places_break_no_ties():
    assert ranks([[0.1 + 0.2, 0.3, 0.1]])["rank"] == [1.5, 1.5, 3]
    # Nine of them count, and the ninth as it is rounded.
    assert ranks([[1 + 4e-10, 1, 0]])["rank"] == [1.5, 1.5, 3]
    assert ranks([[1 + 6e-10, 1, 0]])["rank"] == [1, 2, 3]
    gains = [0.1 + 0.2 - 0.3, 0.1 + 0.2, -0.3, 1]
    assert signed_rank(gains) == signed_rank([0, 3, -3, 10])


def test_regression_of_one_predictor():
    x = np.array([1.0, 2, 3, 5, 8])
    y = np.array([2.0, 1, 4, 4, 9])
    found = regression(y, {"x": x, "constant": np.ones(5)})
    line = stats.linregress(x, y)
    assert found["terms"].keys() == {"mean", "x"}
    assert found["terms"]["mean"]["coefficient"] == pytest.approx(y.mean())
    assert found["terms"]["x"]["coefficient"] == pytest.approx(line.slope)
    assert found["r2"] == pytest.approx(line.rvalue**2)
    # HC3 of a slope, by hand: sum (x - m)^2 (e / (1 - h))^2 over the square of sum (x - m)^2.
    centred = x - x.mean()
    error = y - line.intercept - line.slope * x
    leverage = 1 / 5 + centred**2 / (centred**2).sum()
    variance = (centred**2 * (error / (1 - leverage)) ** 2).sum() / (centred**2).sum() ** 2
    assert found["terms"]["x"]["se"] == pytest.approx(math.sqrt(variance))
    t = abs(line.slope) / math.sqrt(variance)
    assert found["terms"]["x"]["p"] == pytest.approx(2 * stats.t.sf(t, 3))


def test_a_term_of_one_set_alone_has_no_error():
    """The others are as they are without that set: it is fitted whatever its outcome is."""
    draw = np.random.default_rng(0)
    y, x, z = draw.normal(size=(3, 12))
    both = y, {"x": x, "z": z, "classes": np.where(np.arange(12) == 3, 1.0, 0.3)}
    found, rest = regression(*both), np.arange(12) != 3
    expected = regression(y[rest], {"x": x[rest], "z": z[rest]})
    for name in ("x", "z"):
        assert found["terms"][name] == pytest.approx(expected["terms"][name])
    for name in ("mean", "classes"):
        assert found["terms"][name]["se"] is None and found["terms"][name]["p"] is None
    assert found["terms"]["mean"]["coefficient"] == pytest.approx(y.mean())
    term = study_tables._term(found["terms"]["classes"])
    assert term == f"{found['terms']['classes']['coefficient']:+.3g}"


def test_regression_that_has_no_answer():
    assert regression([1, 2, 3], {"x": [1, 2, 3]}) is None
    assert regression([1, 3, 2, 5], {"x": [1, 2, 3, 4]})["sets"] == 4  # two more than terms
    x = np.arange(8.0)
    assert regression(x, {"a": x, "b": 2 * x}) is None


# ---- of finished folders --------------------------------------------------------------------

MADE = {
    "small": (60, 20), "wide": (200, 60, 12), "steep": (300, 30, 10, 6), "even": (40, 30),
    "two": (150, 20), "three": (90, 50, 30), "four": (80, 40, 20, 10), "more": (120, 30, 9),
}  # fmt: skip


FAMILY = dict.fromkeys(("two", "three", "four"), "counted")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    sets = []
    for seed, (name, counts) in enumerate(MADE.items()):
        folder_of(out / name, counts, name=name, splits=3, seed=seed)
        sets.append(study_folder.read_set(name, out / name, FAMILY.get(name)))
    failed = [{"name": "bad", "why": "one class | alone"}]
    return out, sets, study_folder.write(out, sets, failed=failed, about={"seed": 0})


def test_gains_are_those_of_the_lines(study):
    out, sets, found = study
    assert json.loads((out / "study.json").read_text()) == found
    pairs = [(each["row"], each["against"]) for each in found["contrasts"]]
    assert pairs == [
        *((name, BASELINE) for name, *_ in ROWS[1:]),
        ("imbsam, logit_adjusted", "sgd, logit_adjusted"),
    ]
    for each in found["contrasts"]:
        for metric, sign in (("auroc", 1), ("log_loss", -1)):
            got = each["metrics"][metric]
            wins = losses = 0
            means = []
            for k, one in enumerate(sets):
                mine, base = (
                    one.lines[one.lines["row"] == each[name]] for name in ("row", "against")
                )
                gains = sign * (mine[metric].to_numpy() - base[metric].to_numpy())
                expected = interval(gains, mine["train"] + mine["val"], mine["test"])
                assert got["by_set"][k] == pytest.approx(expected[:3])
                wins += expected.low > 0
                losses += expected.high < 0
                means.append(expected.mean)
            assert (got["win"], got["tie"], got["loss"]) == (wins, 8 - wins - losses, losses)
            assert got["gain"] == pytest.approx(np.mean(means))
            assert got["median"] == pytest.approx(np.median(means))
            assert got["se"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(8))
            assert got["p"] == pytest.approx(signed_rank(means))
    for metric in study_folder.METRICS:
        adjusted = holm([each["metrics"][metric]["p"] for each in found["contrasts"]])
        assert [each["metrics"][metric]["p_holm"] for each in found["contrasts"]] == adjusted


def test_intervals_of_a_set_with_a_test_file_are_of_training_noise_alone(study):
    """Of the one set that has one: narrower, and around the same means."""
    _, (one, other, *_), found = study
    splits, two = {**one.summary["splits"], "own_test": True}, one.summary["rows"][:2]
    same = one._replace(summary={**one.summary, "splits": splits, "rows": two})
    (each,) = study_folder.summarise([same, other])["contrasts"]
    mine, base = (
        one.lines[one.lines["row"] == each[name]]["auroc"].to_numpy() for name in ("row", "against")
    )
    new, old = (of["metrics"]["auroc"]["by_set"] for of in (each, found["contrasts"][0]))
    assert new[0] == pytest.approx(interval(mine - base, 1, 0)[:3]) and new[1] == old[1]
    assert new[0][2] < old[0][2]


def test_ranks_are_of_the_means_of_every_set(study):
    _, sets, found = study
    means = [[row["log_loss"] for row in one.summary["rows"]] for one in sets]
    expected = stats.rankdata(means, axis=1).mean(axis=0)
    assert list(found["ranks"]["log_loss"]["rank"].values()) == pytest.approx(expected)


def test_regressions_use_what_the_sets_are(study):
    _, sets, found = study
    one = found["regressions"][0]
    each = found["contrasts"][0]
    assert (one["row"], one["metric"], one["sets"]) == (each["row"], "balanced_accuracy", 8)
    counts = [one.summary["data"]["train_counts"] for one in sets]
    expected = regression(
        [mean for mean, *_ in each["metrics"]["balanced_accuracy"]["by_set"]],
        {
            "log10 imbalance factor": [np.log10(max(c) / min(c)) for c in counts],
            "log10 rows a class": [np.log10(np.mean(c)) for c in counts],
            "log10 classes": [np.log10(len(c)) for c in counts],
            "easy": [one.summary["rows"][0]["auroc"] for one in sets],
        },
    )
    got = [term["coefficient"] for term in one["terms"].values()]
    wanted = [term["coefficient"] for term in expected["terms"].values()]
    assert got == pytest.approx(wanted, rel=1e-2)  # the facts are rounded


def test_sets_of_a_family_count_as_one(study):
    """The mean over the six of "counted" (two, three, four) and the others."""
    _, sets, found = study
    names = list(MADE)
    assert [one["family"] for one in found["sets"]] == [FAMILY.get(n, n) for n in names]
    each = found["contrasts"][1]["metrics"]["auroc"]
    means = {name: mean for name, (mean, *_) in zip(names, each["by_set"], strict=True)}
    counted = np.mean([means.pop(name) for name in FAMILY])
    families = [*means.values(), counted]
    got = each["families"]
    assert got["gain"] == pytest.approx(np.mean(families)) and got["number"] == 6
    assert got["se"] == pytest.approx(np.std(families, ddof=1) / math.sqrt(6))
    assert got["p"] == pytest.approx(signed_rank(families))
    assert got["gain"] != pytest.approx(each["gain"], abs=1e-6)
    text = study_tables.markdown(found)
    assert "6 families" in text and "Of one family are: two, three, four." in text
    alone = study_folder.summarise([one._replace(family=one.name) for one in sets])
    assert "No two sets are of one family." in study_tables.markdown({**alone, "failed": []})


@pytest.mark.parametrize("places", [(0,), (1,), (2, 5)])
def test_rows_that_a_set_lacks_are_left_out_and_told(study, places):
    """Whichever set it is: the first, whose rows give the order, or others."""
    _, sets, whole = study
    fewer = [
        one._replace(summary={**one.summary, "rows": one.summary["rows"][:3]})
        if k in places else one
        for k, one in enumerate(sets)
    ]  # fmt: skip
    found = study_folder.summarise(fewer)
    assert [row["row"] for row in found["rows"]] == [name for name, *_ in ROWS[:3]]
    lacks = [list(MADE)[k] for k in places]
    assert found["dropped"] == [{"row": name, "lacks": lacks} for name, *_ in ROWS[3:]]
    verb = "lacks" if len(lacks) == 1 else "lack"
    text = study_tables.markdown({**found, "failed": []})
    assert f"\n- gradient boosting: {', '.join(lacks)} {verb} the row\n" in text
    assert whole["dropped"] == whole["lost"] == []


def test_a_split_that_a_row_lost_ranks_no_row(study):
    """Its gain is of the splits that both rows have, and their ranks of those that all have."""
    _, sets, _ = study
    (one, other, *_), sam = sets, "sam, cross_entropy"
    metrics = [name for name in study_folder.METRICS if name != "auroc"]
    lines = one.lines.copy()
    # By its own mean SAM would be the best in the first set; in the split that it has, the worst.
    lines["balanced_accuracy"] = 50.0 + 40.0 * (lines["split"] == 1)
    lines.loc[lines["row"] == sam, "balanced_accuracy"] = 85.0
    lines.loc[(lines["row"] == sam) & (lines["split"] != 1), metrics] = np.nan
    lines.loc[lines["split"] == 2, "auroc"] = np.nan  # of no row: none has lost it
    found = study_folder.summarise([one._replace(lines=lines), one._replace(lines=lines)])
    assert found["lost"] == [{"row": sam, "set": "small", "splits": [0, 2]}] * 2
    assert found["ranks"]["balanced_accuracy"]["rank"][sam] == len(ROWS)
    gain = found["contrasts"][1]["metrics"]["balanced_accuracy"]
    assert found["contrasts"][1]["row"] == sam and gain["gain"] == -5
    text = study_tables.markdown({**found, "failed": []})
    assert f"\n- {sam} on small: it lacks a figure of 2 splits (0, 2), of which no" in text
    lines.loc[lines["row"] == sam, "log_loss"] = np.nan
    found = study_folder.summarise([one._replace(lines=lines), other])
    assert found["ranks"]["log_loss"]["sets"] == 1 and found["ranks"]["auroc"]["sets"] == 2
    assert study_folder.summarise([one._replace(lines=lines)])["ranks"]["log_loss"] is None


def test_what_makes_a_set_easier_is_told_of_it(study):
    """Of folders of before it was written, and of sets without it, nothing."""
    _, sets, whole = study
    notes = ["1 column alone tells the label", "3 of 80 rows are copies"]
    about = {**sets[1].summary["about"], "easier": notes}
    changed = [*sets]
    changed[1] = sets[1]._replace(summary={**sets[1].summary, "about": about})
    changed[2] = sets[2]._replace(
        summary={**sets[2].summary, "about": {**sets[2].summary["about"], "easier": []}}
    )
    found = study_folder.summarise(changed)
    assert [one.get("easier") for one in found["sets"]] == [None, notes, *[None] * 6]
    told = "".join(f"- wide: {note}\n\n" for note in notes)
    text = study_tables.markdown({**found, "failed": whole["failed"]})
    assert f"\n\n## Easier here than it will be\n\n{told}## Left out\n" in text
    assert "Easier here" not in study_tables.markdown(whole)


def test_without_sets_there_is_nothing_to_sum_up():
    with pytest.raises(RunError, match="no set is finished"):
        study_folder.summarise([])


def test_tables(study):
    out, _, found = study
    text = study_tables.markdown(found)
    lines = text.splitlines()
    for one in found["sets"]:
        assert any(line.startswith(f"| {one['name']} |") for line in lines)
    widths = [line.count(" | ") for line in lines if line.startswith("| sam, cross_entropy |")]
    heads = [line.count(" | ") for line in lines if line.startswith("| row |")]
    assert widths == heads
    assert "- bad: one class | alone" in text
    table = pd.read_csv(out / "sets.csv")
    assert len(table) == len(MADE) * len(ROWS)
    base = table[table["row"] == BASELINE]
    assert base["gain_auroc"].isna().all() and not table["balanced_accuracy"].isna().any()


def test_the_tables_stay_as_they_were_read_once(study, tmp_path):
    """Of the sets above; and of their lines the first, in digits that rounding leaves alone."""
    *_, found = study
    kept = Path(__file__).with_name("printed")
    recorded.check(kept / "study.txt", study_tables.markdown(found), tmp_path)
    lines = study_folder.table(found).head(7).round(5)
    text = json.dumps(json.loads(lines.to_json(orient="records")), indent=1)
    recorded.check(kept / "study_lines.txt", text, tmp_path)


def _cells(text, heading):
    """The table under a heading, as lists of cells; of those that say it themselves, the text."""
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0].strip()
    rows = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return rows[:1] + rows[2:] if rows else part


def test_the_cells_of_the_tables(study):
    *_, found = study
    text = study_tables.markdown(found)
    heads, *rows = _cells(text, "Ranks and gains over " + BASELINE)
    assert heads[:3] == ["row", "rank, balanced accuracy",
                         "gain, balanced accuracy (points); W/T/L; p"]  # fmt: skip
    names = [name + " (reference)" * (rule is None) for name, rule, *_ in ROWS]
    assert [row[0] for row in rows] == names and rows[0][2::2] == ["-"] * 4
    of = {
        each["row"]: each["metrics"] for each in found["contrasts"] if each["against"] == BASELINE
    }
    for row, (name, *_) in zip(rows, ROWS, strict=True):
        assert row[1] == f"{found['ranks']['balanced_accuracy']['rank'][name]:.2f}"
        if name != BASELINE:
            got = of[name]["balanced_accuracy"]
            assert row[2] == (
                f"{got['gain']:+.1f} ± {got['se']:.1f} ({got['median']:+.1f}); "
                f"{got['win']}/{got['tie']}/{got['loss']}; {got['p_holm']:.3f}"
            )
    # Of a rule, beside what every row gains: SGD under the same loss.
    heads, *rows = _cells(text, "What a rule adds to SGD with the same loss")
    assert len(heads) == 2 + 5 and [row[:2] for row in rows] == [
        ["sam, cross_entropy", BASELINE], ["imbsam, cross_entropy", BASELINE],
        ["imbsam, logit_adjusted", "sgd, logit_adjusted"],
    ]  # fmt: skip
    heads, *rows = _cells(text, "By set")
    assert [float(row[3]) for row in rows] == sorted(float(row[3]) for row in rows)
    by_name = {one["name"]: one for one in found["sets"]}
    of = {(each["row"], each["against"]): each["metrics"] for each in found["contrasts"]}
    shown = [tuple(head.split(" − ")) for head in heads if " − " in head]
    assert shown == [(name, BASELINE) for name, *_ in ROWS[1:]] + [
        ("imbsam, logit_adjusted", "sgd, logit_adjusted")
    ]
    for row in rows:
        one, k = by_name[row[0]], list(by_name).index(row[0])
        base = one["values"][BASELINE]["balanced_accuracy"]
        assert row[1:6] == [str(one["rows"]), str(one["classes"]), f"{one['imbalance_factor']:.1f}",
                            str(one["rarest"]), f"{base:.1f}"]  # fmt: skip
        for cell, pair in zip(row[6:], shown, strict=False):
            mean, low, high = of[pair]["balanced_accuracy"]["by_set"][k]
            assert cell == f"{mean:+.1f} ({low:+.1f}, {high:+.1f})"
        assert row[-1] == (one["best"] or "-")
    heads, *rows = _cells(text, "What the gain goes with")
    fits = [each for each in found["regressions"] if each["row"].split(", ")[0] in ("sam", "imbsam")
            and (each["against"] == BASELINE) == each["row"].endswith("cross_entropy")]  # fmt: skip
    assert len(rows) == len(fits) > 0
    for row, fit in zip(rows, fits, strict=True):
        assert row[0] == f"{fit['row']} − {fit['against']}" and row[-1] == "8"
        assert row[-2] == f"{fit['r2']:.2f}"
        for cell, name in zip(row[2:-2], heads[2:-2], strict=True):
            term = fit["terms"][name]
            star = "*" * (term["p"] <= 0.05)
            assert cell == f"{term['coefficient']:+.3g} ± {term['se']:.2g}{star}"
    alone = {**found, "regressions": [], "contrasts": []}
    text = study_tables.markdown(alone)
    assert _cells(text, "What the gain goes with") == "Too few sets to tell."
    said = _cells(text, "What a rule adds to SGD with the same loss")
    assert said == "No rule beside SGD was compared."


def test_tables_without_ranks_or_an_interval(study):
    """Of one row there are no ranks; of one split no set is better, not told apart or worse."""
    _, sets, _ = study
    alone = [
        one._replace(
            summary={**one.summary, "rows": one.summary["rows"][:2],
                     "splits": {**one.summary["splits"], "count": 1}},
            lines=one.lines[one.lines["split"] == 0],
        )
        for one in sets
    ]  # fmt: skip
    found = study_folder.summarise(alone)
    text = study_tables.markdown({**found, "ranks": dict.fromkeys(found["ranks"]), "failed": []})
    assert "\n.\n" not in text and "; 0/0/0; " in text
    assert "a set without an interval, as of a single split" in text


def test_figures(study):
    out, _, _ = study
    made = redraw.redraw(out)
    assert [path.name for path in made] == [
        "ranks_balanced_accuracy.png", "ranks_auroc.png", "gain_balanced_accuracy.png",
        "gain_auroc.png", "forest.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    assert [path.stem for path in made] == list(study_figures.PLOTS)


def picture(figure):
    """All that stands in a figure: titles, labels, lines and points."""
    return [
        (
            [axis.get_title(), axis.get_xlim(), axis.get_ylim()],
            [text.get_text() for text in (*axis.texts, *axis.get_yticklabels())],
            [line.get_xydata().tolist() for line in axis.lines],
            [points.get_offsets().tolist() for points in axis.collections],
        )
        for axis in figure.axes
    ]


@pytest.mark.parametrize("every", [499, pytest.param(11, marks=pytest.mark.slow)])
def test_a_study_damaged_in_any_field_is_told_or_drawn_as_before(tmp_path, monkeypatch, every):
    """But for another value that the field may have: a name, or a metric that is not ranked."""
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.append(picture(figure)))
    sets = []
    for seed, name in enumerate("abc"):
        counts = (60 + 10 * seed, 20)
        folder_of(tmp_path / name, counts, name=name, splits=3, seed=seed, rows=ROWS[:4])
        sets.append(study_folder.read_set(name, tmp_path / name))
    study_folder.write(tmp_path, sets, failed=[], about={"seed": 0})
    study_figures.draw(tmp_path)
    expected, path, told, harmed = drawn.copy(), tmp_path / "study.json", 0, []
    good = path.read_text()
    for what, data in list(damaged_json(good))[7::every]:
        path.write_bytes(data)
        drawn.clear()
        try:
            redraw.redraw(tmp_path)
        except RunError as error:
            assert "\n" not in str(error) and "study.json" in str(error), what
            told += 1
        else:
            where, new = what
            named = isinstance(new, str) and where[-1] in ("name", "rule", "loss", "sampling")
            unranked = new is None and where[:-1] == ("ranks",)
            if drawn != expected and not named and not unranked:
                harmed.append(what)
    assert not harmed
    assert told > 5
    for k, value in enumerate((float("nan"), 1e308, "3", True, None)):
        study = json.loads(good)
        study["contrasts"][k % 3]["metrics"]["auroc"]["by_set"][k % 3][0] = value
        path.write_text(json.dumps(study))
        with pytest.raises(RunError, match=r"study.json is damaged: its contrasts.*is not what a"):
            redraw.redraw(tmp_path)


def test_the_diagram_of_ranks(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.append(figure))
    found = {"rank": {"a": 1.2, "b": 1.9, "c": 2.9}, "cd": 0.8, "p": 0.0123, "sets": 9}
    study_figures.ranks(tmp_path / "x.png", found, "AUROC")
    (axis,) = drawn[0].axes
    title = axis.get_title()
    assert title.startswith("average rank by AUROC over 9 sets") and "difference, 0.80" in title
    assert title.endswith("Friedman's p 0.012")
    assert {"a  1.20", "b  1.90", "2.90  c"} <= {text.get_text() for text in axis.texts}
    points = axis.collections
    assert sorted(points_.get_offsets()[0][0] for points_ in points) == [1.2, 1.9, 2.9]
    for one in points:
        assert one.get_sizes() == 18 and one.get_facecolor()[0].tolist() == [0, 0, 0, 1]
    # One bar: a and b are 0.7 apart, b and c a whole rank.
    bars = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 4]
    assert [(min(x), max(x)) for x in bars] == [(1.2, 1.9)]
    study_figures.ranks(tmp_path / "x.png", {**found, "p": None}, "AUROC")
    assert drawn[1].axes[0].get_title().endswith("0.80")


def test_the_panels(study):
    *_, found = study
    shown = [(each["row"], each["against"]) for each in study_figures.panels(found)]
    assert shown == [
        ("sgd, logit_adjusted", BASELINE),
        ("imbsam, cross_entropy", BASELINE),
        ("imbsam, logit_adjusted", "sgd, logit_adjusted"),
        ("sam, cross_entropy", BASELINE),
    ]
