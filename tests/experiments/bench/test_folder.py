"""What is written of a table and a sweep, and drawn of their files: by hand."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from damage import Killed, Kills
from experiments import digits_lt, sweep
from experiments.bench import folder, grid, tables, written
from experiments.bench.jobs import Line
from experiments.bench.training import Curve
from experiments.host.errors import RunError
from experiments.reports import plots
from tiny import tiny_dataset


@pytest.mark.parametrize("losses", [("cross_entropy",), ("cross_entropy", "logit_adjusted")])
def test_one_loss_has_one_panel_without_a_name(losses, tmp_path, monkeypatch):
    of_split = {"": 50.0, "_by_seed": [50.0, 50.0]}
    lines = [
        {"rule": rule, "loss": loss, "stage2": None, "seeds": [0, 1],
         **{s + end: value for s in tables.SPLITS for end, value in of_split.items()},
         **{f"paired_{s}{end}": 0.0 for s in ("all", "few") for end in ("", "_se")}}
        for loss in losses for rule in ("sgd", "sam")
    ]  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(lines))
    from experiments.bench.tables import names

    text = ["rule,class,train_examples,accuracy", *(f"{n},0,9,50.0" for n in names(lines))]
    (tmp_path / "per_class.csv").write_text("\n".join(text) + "\n")
    drawn = []
    monkeypatch.setattr(plots, "classes_by_rule", lambda *args, **more: drawn.append(args[2]))
    monkeypatch.setattr(plots, "gains_by_rule", lambda *args, **more: None)
    assert folder.draw_table(tmp_path) == [tmp_path / "per_class.png", tmp_path / "gains.png"]
    assert list(drawn[0]) == ([""] if len(losses) == 1 else list(losses))
    assert all(list(panel) == ["sgd", "sam"] for panel in drawn[0].values())


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


COUNTS = np.array([40, 9, 3])
TOTAL = np.array([[40, 20, 10], [40, 20, 10]])  # [S, C] test rows
CORRECT = {"sgd": [[40, 10, 3], [20, 15, 7]], "sam": [[30, 13, 4], [30, 16, 4]]}
# Of two epochs, [K, S]: few of the rules differ, the others are the same.
FEW = {"sgd": [[1.0, 3.0], [10.0, 30.0]], "sam": [[2.0, 2.0], [40.0, 40.0]]}


def a_table(seeds):
    def line(rule, lost=None):
        described = {"rule": rule, "loss": "cross_entropy", "stage2": None}
        if lost:
            return Line(described, None, lost)
        splits = dict.fromkeys(tables.SPLITS, np.array([[50.0, 52.0], [60.0, 65.0]])[:, :seeds])
        splits["few"] = np.array(FEW[rule])[:, :seeds]
        correct = np.array(CORRECT[rule])[:seeds]
        curve = Curve([1, 2], None, splits, correct, TOTAL[:seeds], np.ones(2))
        params = {"head": {"bias": np.full((seeds, 2), 7.0)}}
        return Line(described, curve, params=params if rule == "sam" else None)

    return [line("sgd"), line("gsa", "the loss is nan"), line("sam")]


# Means of the seeds' percentages, and the difference of two over 2: their standard error.
CLASSES = {
    2: {"sgd": [(75, 25), (62.5, 12.5), (50, 20)], "sam": [(75, 0), (72.5, 7.5), (40, 0)]},
    1: {"sgd": [(100, None), (50, None), (30, None)], "sam": [(75, None), (65, None), (40, None)]},
}


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_table_is_written_and_drawn_by_hand(seeds, tmp_path, monkeypatch):
    """Curves of what diverged are in no file; one seed has no errors, and none are drawn."""

    def cell(value):
        return "" if value is None else f"{value:.4f}"

    drawn = {}
    for name in ("classes_by_rule", "curves_by_rule", "gains_by_rule"):
        monkeypatch.setattr(plots, name, lambda *args, name=name: drawn.update({name: args}))
    lines = a_table(seeds)
    summary = tables.summarise(lines, list(range(seeds)))
    folder.write_table(tmp_path, lines, summary, COUNTS)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    expected = CLASSES[seeds]
    assert rows_of(tmp_path / "per_class.csv") == [
        ["rule", "class", "train_examples", "accuracy", "accuracy_se"],
        *(
            [rule, str(c), str(COUNTS[c]), cell(mean), cell(error)]
            for rule, of in expected.items() for c, (mean, error) in enumerate(of)
        ),
    ]  # fmt: skip
    if seeds == 2:
        same = {1: ("51.0000", "1.0000"), 2: ("62.5000", "2.5000")}
        few = {
            "sgd": ("2.0000", "1.0000", "20.0000", "10.0000"),
            "sam": ("2.0000", "0.0000", "40.0000", "0.0000"),
        }
    else:
        same = {1: ("50.0000", ""), 2: ("60.0000", "")}
        few = {"sgd": ("1.0000", "", "10.0000", ""), "sam": ("2.0000", "", "40.0000", "")}
    heads, *curves = rows_of(tmp_path / "curves.csv")
    assert heads == ["rule", "epoch", *(f"{s}{e}" for s in tables.SPLITS for e in ("", "_se"))]
    assert curves == [
        [rule, str(k), *same[k] * 3, *few[rule][2 * k - 2 : 2 * k]]
        for rule in ("sgd", "sam") for k in (1, 2)
    ]  # fmt: skip

    path, counts, means, shots, of, errors = drawn["classes_by_rule"]
    assert (path, counts, shots, of) == (tmp_path / "per_class.png", [40, 9, 3], (40, 9), seeds)
    assert means == {"": {r: [mean for mean, _ in of] for r, of in expected.items()}}
    in_all = {"": {r: [error for _, error in of] for r, of in expected.items()}}
    assert errors == (in_all if seeds == 2 else {})
    path, found, of = drawn["curves_by_rule"]
    assert (path, of) == (tmp_path / "curves.png", seeds)
    epochs, values = found[""]["sgd"]
    last = {"all": 62.5, "all_se": 2.5, "few": 20.0, "few_se": 10.0}
    if seeds == 1:
        last = {"all": 60.0, "few": 10.0}
    assert epochs == [1, 2] and {key: value[-1] for key, value in values.items()} == last
    path, gains, base, of = drawn["gains_by_rule"]
    assert (path, base, of) == (tmp_path / "gains.png", "SGD's with cross_entropy", seeds)
    gained = (20.0, 10.0) if seeds == 2 else (30.0, None)
    assert gains["few"] == {"gsa": (None, None), "sam": gained}
    assert gains["all"] == {"gsa": (None, None), "sam": (0.0, 0.0 if seeds == 2 else None)}


def test_what_the_lines_ended_with_is_kept_by_number(tmp_path):
    lines, data, config = a_table(2), [tiny_dataset(), tiny_dataset()], {"lr": 0.1}
    folder.write_params(tmp_path, lines, seeds=[3, 5], datasets=data, config=config)
    (file,) = (tmp_path / "params").iterdir()
    with np.load(file) as opened:
        held = dict(opened)
    assert file.name == "2.npz" and held.keys() == {"head/bias", "about"}
    np.testing.assert_array_equal(held["head/bias"], np.full((2, 2), 7.0))
    lost = {"diverged": "the loss is nan"}
    summary = [lost, lost, {**lines[2].description, "seeds": [3, 5], "diverged": None}]
    again, trained_on = folder.read_params(tmp_path, summary, {**config, "out": "elsewhere"})
    np.testing.assert_array_equal(again[2]["head"]["bias"], held["head/bias"])
    other = dataclasses.replace(data[1], test_labels=data[1].test_labels[::-1])
    assert trained_on == folder.rows_sha256(data) != folder.rows_sha256([data[0], other])


def kept(out, **changes):
    """A folder of two lines with parameters; each file may be of others."""
    given = {"seeds": [3, 5], "datasets": [tiny_dataset()] * 2, "config": {"lr": 0.1}}
    lines = [of for of in a_table(2) if of.curve is not None]
    lines = [of._replace(params={"head": {"bias": np.full((2, 2), 7.0)}}) for of in lines]
    folder.write_params(out, lines, **{**given, **changes})
    summary = [of.description | {"seeds": [3, 5], "diverged": None} for of in lines]
    return summary, given["config"], out / "params"


def of_another_folder(**changes):
    def damage(at):
        (at.parent / "other").mkdir()
        *_, other = kept(at.parent / "other", **changes)
        (other / "1.npz").replace(at / "1.npz")

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda at: (at / "1.npz").unlink(), r"was trained to its end \(1.npz\): train again"),
        (lambda at: (at / "2.npz").write_bytes(b""), r"was trained to its end \(2.npz\): train"),
        (lambda at: [path.unlink() for path in at.iterdir()], r"end \(0.npz, 1.npz\): train again"),
        (lambda at: (at / "0.npz").replace(at / "1.npz"), r"end \(0.npz\): train again"),
        (lambda at: (at / "1.npz").write_bytes((at / "0.npz").read_bytes()), "1.npz is of"),
        (of_another_folder(config={"lr": 0.2}), r"1.npz is of .* config.json tells .lr"),
        (of_another_folder(seeds=[3, 6]), r"1.npz is of .* line 1 of summary.json tells .seeds"),
        (of_another_folder(datasets=[tiny_dataset()]), "are of different data: train again"),
    ],
)
def test_parameters_of_another_table_are_refused(damage, words, tmp_path):
    summary, config, params = kept(tmp_path)
    assert list(folder.read_params(tmp_path, summary, config)[0]) == [0, 1]
    damage(params)
    with pytest.raises(RunError, match=words):
        folder.read_params(tmp_path, summary, config)


def test_of_lines_that_all_diverged_no_parameters_are_kept(tmp_path):
    summary, config, params = kept(tmp_path)
    for path in params.iterdir():
        path.unlink()
    lost = [of | {"diverged": "nan"} for of in summary]
    with pytest.raises(RunError, match=r"was trained to its end \(there is none\): train again"):
        folder.read_params(tmp_path, lost, config)


@pytest.mark.parametrize(
    ("rules", "made"),
    [
        (["sgd"], ["per_class", "curves"]), (["sam", "imbsam"], ["per_class", "curves"]),
        (["sgd", "sam"], ["per_class", "curves", "gains"]),
    ],
)  # fmt: skip
def test_gains_are_drawn_where_there_is_sgd_and_another(rules, made, tmp_path, monkeypatch):
    drawn = []
    for name in ("classes_by_rule", "curves_by_rule", "gains_by_rule"):
        monkeypatch.setattr(plots, name, lambda path, *args: drawn.append(path.stem))
    lines = a_table(2)
    held = [lines[0]._replace(description=lines[0].description | {"rule": r}) for r in rules]
    folder.write_table(tmp_path, held, tables.summarise(held, [0, 1]), COUNTS)
    assert drawn == made
    assert [path.stem for path in folder.draw_table(tmp_path)] == made


def test_a_sweep_whose_sgd_has_no_figure_of_a_split(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "sweep", lambda *args, **more: drawn.append((*args, more)))
    seen = dict.fromkeys(tables.SPLITS, np.array([50.0, 52.0]))
    lacks = seen | {"few": np.full(2, np.nan)}
    tried = [grid.Tried({}, lacks, lacks), grid.Tried({"rho": 0.1}, seen, lacks)]
    summary = grid.summarise(tried, [0, 1])
    (tmp_path / "config.json").write_text("{}")
    folder.write_sweep(tmp_path, summary, {"rho": [0.1]}, "sam")
    ((_, last, curves, levels, more),) = drawn
    assert (last, list(curves), more) == ("rho", ["sam"], {"sgd_chosen": True})
    assert math.isnan(levels.pop("few")) and set(levels.values()) == {51.0}
    assert curves["sam"]["mean"]["few"] == [51.0] and math.isnan(curves["sam"]["se"]["few"][0])


GRID = {"eta": [5.0, 30.0], "rho": [0.1, 0.2]}


def a_sweep():
    def at(value):
        return dict.fromkeys(tables.SPLITS, np.array([value - 1.0, value + 1.0]))

    nothing = dict.fromkeys(tables.SPLITS, np.full(2, np.nan))
    tried = [grid.Tried({}, at(50.0), at(50.0))]
    for k, point in enumerate(grid.points_of(GRID)):
        seen = (nothing, nothing, "the loss is nan") if k == 1 else (at(51.0 + k), at(60.0 - k))
        tried.append(grid.Tried(point, *seen))
    return tried


def of_digits():
    """A table of ten classes."""
    ten = np.ones((2, 10))
    return [
        line if line.curve is None else line._replace(
            curve=line.curve._replace(correct=5 * ten, total=10 * ten)
        )
        for line in a_table(2)
    ]  # fmt: skip


ENTRIES = {
    "digits_lt": (digits_lt, lambda words: digits_lt.arguments().parse_args(words), of_digits()),
    "sweep": (sweep, sweep.parse, a_sweep()),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_kill_while_another_table_is_replaced_leaves_no_mixture(name, tmp_path, monkeypatch):
    """At each file that is written: nothing there is taken for a whole table."""
    entry, parse, found = ENTRIES[name]
    monkeypatch.setattr(entry, "train", lambda *_: found)
    monkeypatch.setattr(folder, "draw_table", lambda out: [])
    monkeypatch.setattr(folder, "draw_sweep", lambda out, rule: [])
    words = ["--out", str(tmp_path), "--num-seeds", "2", "--overwrite"]
    grids = ["--grid", "eta", "5", "30", "--grid", "rho", "0.1", "0.2"]
    words += ["--save"] if name == "digits_lt" else grids
    stale = ["params/0.npz", "params/2.npz", "sweep.csv", "per_class.csv", "runs.csv", "gains.png"]
    kills = Kills(monkeypatch)

    def start(killed_at=None):
        kills.at(killed_at)
        (tmp_path / "params").mkdir(exist_ok=True)
        for old in (*stale, "summary.json"):
            (tmp_path / old).write_text("of an earlier table")
        entry.main(parse(words))

    start()
    names = kills.names
    assert names[-1] == "summary.json" and len(names) > 3
    for write in range(len(names)):
        with pytest.raises(Killed):
            start(write)
        assert not (tmp_path / "summary.json").exists()
        left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
        assert all(path.read_bytes() != b"of an earlier table" for path in left), write
    if name == "digits_lt":  # parameters of before are not those of a table without any
        words.remove("--save")
        start()
        assert not list((tmp_path / "params").iterdir())


def test_a_sweep_of_one_point_names_its_flags(tmp_path, monkeypatch):
    seen = dict.fromkeys(tables.SPLITS, np.array([50.0, 52.0]))
    tried = [grid.Tried(point, seen, seen) for point in ({}, {"eta": 5.0, "rho": 0.1})]
    records = written.sweep_records(grid.summarise(tried, [0, 1]), "imbsam")
    assert [record[:3] for record in records] == [
        ["rule", "eta", "rho"], ["sgd", "", ""], ["imbsam", 5.0, 0.1]
    ]  # fmt: skip


def test_a_sweep_is_written_and_drawn_by_hand(tmp_path, monkeypatch):
    """A curve for each value of the first flags, over the last; what diverged is no number."""
    values = GRID
    summary, drawn = grid.summarise(a_sweep(), [0, 1]), []
    monkeypatch.setattr(plots, "sweep", lambda *args, **more: drawn.append((*args, more)))
    folder.write_sweep(tmp_path, summary, values, "imbsam")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    text = (tmp_path / "table.md").read_text()
    assert text == f"{grid.table(summary, values)}\n\n{grid.verdict(summary)}\n"
    heads, *rows = rows_of(tmp_path / "sweep.csv")
    assert heads[:4] == ["rule", "eta", "rho", "diverged"] and not {"point", "seeds"} & set(heads)
    assert [row[:4] for row in rows] == [
        ["sgd", "", "", ""],
        ["imbsam", "5.0", "0.1", ""], ["imbsam", "5.0", "0.2", "the loss is nan"],
        ["imbsam", "30.0", "0.1", ""], ["imbsam", "30.0", "0.2", ""],
    ]  # fmt: skip
    few = heads.index("test_few_sgd")
    assert [row[few] for row in rows] == ["0.0", "1.0", "", "3.0", "4.0"]
    ((path, last, curves, levels, more),) = drawn
    assert (path, last, more) == (tmp_path / "sweep.png", "rho", {"sgd_chosen": False})
    assert levels == dict.fromkeys(tables.SPLITS, 50.0)
    assert {name: curve["x"] for name, curve in curves.items()} == {
        "eta 5": [0.1, 0.2], "eta 30": [0.1, 0.2],
    }  # fmt: skip
    assert [curve["chosen"] for curve in curves.values()] == [0, None]
    for split in tables.SPLITS:
        five, thirty = curves.values()
        assert five["mean"][split][0] == 51 and math.isnan(five["mean"][split][1])
        assert five["se"][split][0] == 0 and math.isnan(five["se"][split][1])
        assert thirty["mean"][split] == [53, 54] and thirty["se"][split] == [0, 0]
