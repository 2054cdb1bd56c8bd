"""Which sets a study runs, in which order, and how it goes on; compare is played by a double."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from damage import Killed, Kills, damaged_json
from experiments import study
from experiments.command import study_plan
from experiments.data import files
from experiments.host.errors import DataError, RunError, Stopped
from made_comparisons import ROWS as MADE
from made_comparisons import folder_of

ROWS = MADE[:3]


class Compare:
    """Takes some of compare's flags, and writes the files that it would."""

    def __init__(self, made):
        self.made, self.called, self.fail, self.stop, self.equal = made, [], (), (), ()

    def arguments(self):
        parser = argparse.ArgumentParser()
        for flag in ("data", "label", "text", "cut", "splits", "seed", "out", "settings"):
            parser.add_argument(f"--{flag}", nargs="+" if flag == "text" else None)
        parser.add_argument("--no-tune", action="store_true")
        parser.add_argument("--resume", action="store_true")
        return parser

    def main(self, args):
        name = args.out.rpartition("/")[2]
        self.called.append((name, args))
        if name in self.fail:
            raise RunError(f"{name} diverged")
        if name in self.stop:
            raise Stopped("stopped", 143)
        shutil.copytree(self.made, args.out)
        Path(args.out, "report.html").touch()
        if name in self.equal:
            path = Path(args.out, "summary.json")
            summary = json.loads(path.read_text())
            summary["data"]["train_imbalance_factor"] = 1.0
            path.write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    folder_of(out, (60, 20), splits=2, rows=ROWS)
    return out


@pytest.fixture
def compare(monkeypatch, made):
    double = Compare(made)
    monkeypatch.setattr(study, "_compare", lambda: double)
    monkeypatch.setattr(study.study_figures, "draw", lambda out: [out / "gain_auroc.png"])
    return double


@pytest.fixture
def sets(tmp_path):
    """Three tables, of 30, 50 and 40 rows."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, rows in (("a", 30), ("b", 50), ("c", 40)):
        y = np.arange(rows) % 5 // 4
        np.savez(folder / f"{name}.npz", X=np.random.default_rng(0).normal(size=(rows, 2)), y=y)
    return folder


def ran(compare):
    return [name for name, _ in compare.called]


def start(*words):
    args, more = study.divided([str(word) for word in words])
    return study.main(args, more)


def test_a_folder_from_the_smallest_set_to_the_largest(sets, compare, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for stale in ("forest.png", "ranks_auroc.svg"):  # of an earlier study, of more sets
        (out / stale).touch()
    found = start(sets, "--out", out, "--splits", 4, "--seed", 7, "--", "--settings", 2)
    assert not [*out.glob("*.png"), *out.glob("*.svg")]
    assert ran(compare) == ["a", "c", "b"]
    args = compare.called[0][1]
    assert (args.data, args.splits, args.seed) == (str(sets / "a.npz"), "4", "7")
    assert args.settings == "2" and args.resume and not args.no_tune
    assert [one["name"] for one in found["sets"]] == ["a", "c", "b"]
    said = capsys.readouterr().out
    assert "[1/3] a: 30 rows, 2 columns, 2 classes\n" in said and "[3/3] b" in said
    assert " left\n" in said
    told = f"{study.TABLES}, study.json, sets.csv, gain_auroc.png"
    assert said.endswith(f"3 sets summed up in {out}: {told}\n")
    assert {path.name for path in out.iterdir()} >= {"study.json", "sets.csv", "tables.md"}


def test_a_set_of_equal_classes_is_not_summed_up(sets, compare, tmp_path):
    compare.equal = ("c",)
    found = start(sets, "--out", tmp_path / "out")
    assert [one["name"] for one in found["sets"]] == ["a", "b"]
    assert found["failed"] == [{"name": "c", "why": "its classes have equally many rows"}]


def test_it_goes_on_where_it_was_stopped(sets, compare, tmp_path, capsys):
    out = tmp_path / "out"
    compare.stop = ("c",)
    with pytest.raises(Stopped):
        start(sets, "--out", out)
    assert ran(compare) == ["a", "c"] and not (out / "study.json").exists()
    compare.stop = ()
    start(sets, "--out", out)
    assert ran(compare) == ["a", "c", "c", "b"]
    assert "kept as finished before: 1 set\n" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"begun with other flags \(--splits '10' -> '3'\): choose"):
        start(sets, "--out", out, "--splits", 3)
    told = r"\(--no-tune None -> '', --settings None -> '4'\): choose"
    with pytest.raises(RunError, match=told):
        start(sets, "--out", out, "--no-tune", "--", "--settings", 4)


def test_another_way_to_the_same_files_is_no_other_set(sets, compare, tmp_path, monkeypatch):
    start(sets, "--out", tmp_path / "out")
    (tmp_path / "link").symlink_to(sets)
    monkeypatch.chdir(tmp_path)
    for way in ("tables", "link"):
        start(way, "--out", tmp_path / "out")
    assert ran(compare) == ["a", "c", "b"]
    (tmp_path / "copy").mkdir()
    for name in "abc":
        (tmp_path / "copy" / f"{name}.npz").write_bytes((sets / f"{name}.npz").read_bytes())
    with pytest.raises(RunError, match=r"begun with other flags \(--data .* -> 'copy/a.npz'\)"):
        start("copy", "--out", tmp_path / "out")


def test_after_a_kill_at_any_write_it_ends_as_without(sets, compare, tmp_path, monkeypatch):
    """No set is run twice that was finished, and none is left out."""
    kills = Kills(monkeypatch)
    whole = start(sets, "--out", tmp_path / "whole")
    assert len(kills.names) == 6  # the flags of each set, and three files of the end
    for write in range(6):
        out, compare.called = tmp_path / str(write), []
        kills.at(write)
        with pytest.raises(Killed):
            start(sets, "--out", out)
        kills.at(None)
        found = start(sets, "--out", out)
        assert ran(compare) == ["a", "c", "b"]
        assert {**found, "about": None} == {**whole, "about": None}


def test_a_set_that_fails_is_left_out_and_told(sets, compare, tmp_path, capsys):
    compare.fail = ("c",)
    np.savez(sets / "bad.npz", X=np.ones((9, 1)), y=np.ones(9))
    found = start(sets, "--out", tmp_path / "out")
    assert [one["name"] for one in found["sets"]] == ["a", "b"]
    assert found["failed"] == [
        {
            "name": "bad",
            "why": "column 'y' (--label) has the one class '1': two or more are needed",
        },
        {"name": "c", "why": "c diverged"},
    ]
    assert "- c: c diverged" in (tmp_path / "out" / "tables.md").read_text()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"bad is left out: {found['failed'][0]['why']}"
    assert "c is left out: c diverged" in said


def test_a_row_that_one_set_lacks_is_told(sets, compare, tmp_path, capsys):
    out = tmp_path / "out"
    start(sets, "--out", out)
    path = out / "sets" / "b"
    shutil.rmtree(path)
    folder_of(path, (60, 20), splits=2, rows=ROWS[:-1])
    (path / "report.html").touch()
    found = start(sets, "--out", out)
    assert found["dropped"] == [{"row": ROWS[-1][0], "lacks": ["b"]}]
    assert f"\nleft out: {ROWS[-1][0]}: b lacks the row\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "summary.json", "report.json", "analysis.json"])
def test_the_folder_of_another_experiment_is_left_as_it_is(sets, compare, tmp_path, name):
    """A list and a page of its own may be there before the study."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(RunError, match=f"out holds {name}, which no study writes: choose another"):
        start(sets, "--out", out)
    assert [path.name for path in out.iterdir()] == [name] and not ran(compare)
    (out / name).rename(out / "sets.toml")
    assert start(sets, "--out", out)["sets"]


def test_what_makes_a_set_easier_is_told_at_the_end(sets, compare, tmp_path, capsys):
    """Of a set that is kept, too: what compare said of it is long gone."""
    out = tmp_path / "out"
    start(sets, "--out", out)
    assert "note: " not in capsys.readouterr().out
    path = out / "sets" / "b" / "summary.json"
    summary = json.loads(path.read_text())
    summary["about"]["easier"] = ["3 of 50 rows are copies"]
    path.write_text(json.dumps(summary))
    start(sets, "--out", out)
    assert "\nnote: b: 3 of 50 rows are copies\n" in capsys.readouterr().out
    assert "\n- b: 3 of 50 rows are copies\n" in (out / "tables.md").read_text()


def test_only_sum_up(sets, compare, tmp_path):
    out = tmp_path / "out"
    compare.stop = ("b",)
    with pytest.raises(Stopped):
        start(sets, "--out", out)
    found = start(sets, "--out", out, "--only-sum-up")
    assert ran(compare) == ["a", "c", "b"]
    assert [one["name"] for one in found["sets"]] == ["a", "c"]
    assert found["failed"] == [{"name": "b", "why": "not finished"}]


def test_cuts(sets, compare, tmp_path):
    # 24, 40 and 32 rows of the larger class, each four times the smaller one.
    start(sets, "--out", tmp_path / "out", "--cut", 2, 20, 26)
    assert ran(compare) == ["a", "c", "c_cut20", "b", "b_cut20", "b_cut26"]
    assert [args.cut for _, args in compare.called] == [None, None, "20", None, "20", "26"]


def test_a_list_in_toml(sets, compare, tmp_path, monkeypatch):
    (tmp_path / "said.csv").write_text(
        "said,kind\n" + "".join(f"word{k},{'ab'[k % 3 // 2]}\n" for k in range(60))
    )
    monkeypatch.setenv("PLACE", str(sets))
    (tmp_path / "list.toml").write_text("""
        [[set]]
        data = "said.csv"
        label = "kind"
        text = ["said"]
        cut = [0, 5]
        [[set]]
        data = "$PLACE/a.npz"
        name = "first"
        splits = 4
        [[set]]
        data = "tables"
        settings = 3
        [families]
        letters = ["first", "c"]
    """)
    found = start(tmp_path / "list.toml", "sklearn:wine", "--out", tmp_path / "out")
    assert ran(compare) == ["a", "first", "c", "b", "said", "said_cut5", "wine"]
    said = compare.called[5][1]
    assert (said.label, said.text, said.cut) == ("kind", ["said"], "5")
    assert compare.called[0][1].settings == "3" and compare.called[1][1].settings is None
    # Cuts of a set are of its family, whether named or not.
    assert {one["name"]: one["family"] for one in found["sets"]} == {
        "a": "a", "first": "letters", "c": "letters", "b": "b", "said": "said",
        "said_cut5": "said", "wine": "wine",
    }  # fmt: skip
    assert [args.splits for _, args in compare.called] == ["10", "4", "10", "10", "10", "10", "10"]


def test_a_list_of_lines(sets, compare, tmp_path):
    (tmp_path / "list.txt").write_text(
        "# two sets\ntables/a.npz --settings 3\n\ntables/b.npz --no-tune # as it is\n"
    )
    start(tmp_path / "list.txt", "--out", tmp_path / "out")
    (_, a), (_, b) = compare.called
    assert a.settings == "3" and not a.no_tune and b.no_tune


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("list.toml", "[[set]\n", "is no list of sets"),
        ("list.toml", "", r"needs a \[\[set\]\]"),
        ("list.toml", "set = 3", r"needs a \[\[set\]\]"),
        ("list.toml", "[[set]]\nlabel = 'x'\n", "has no data"),
        ("list.toml", "[[set]]\ndata = '$NOWHERE_AT_ALL/x.npz'\n", "variable NOWHERE_AT_ALL"),
        ("list.toml", "[[set]]\ndata = 'tables/a.npz'\ncut = 'x'\n", "no list of numbers"),
        ("list.toml", "[[set]]\ndata = 'tables/a.npz'\ncut = [0.5]\n", "from 1 to 1000"),
        ("list.toml", "families = 3\n[[set]]\ndata = 'tables/a.npz'\n", "list of names"),
        ("list.txt", "# none\n", "names no set"),
        ("list.txt", "tables/a.npz --cut\n", "no list of numbers"),
        ("list.txt", "tables/a.npz --name\n", "name = True of a set must be"),
        ("list.txt", "tables/a.npz --name ../x\n", "name = '../x' of a set must be"),
        ("list.txt", "tables/a.npz --out x\n", "out is said of the whole study"),
        ("list.toml", "[[set]]\ndata = ''\n", "has no data"),
        ("list.toml", "[[set]]\ndata = 'a$.npz'\n", "begins no variable"),
        *[
            ("list.toml", f"[[set]]\ndata = 'tables/a.npz'\n{line}\n", says)
            for line, says in {
                **{
                    f"name = {bad}": "of a set must be up to 100"
                    for bad in (
                        "'../evil'",
                        "'a/b'",
                        "''",
                        "'..'",
                        "'.'",
                        '"a\\nb"',
                        "3",
                        "true",
                        f"'{'a' * 101}'",
                    )
                },
                **{
                    f"{flag} = true": "said of the whole study"
                    for flag in ("out", "resume", "overwrite", "predict", "help")
                },
                "cut = true": "no list of numbers",
                "cut = [true]": "no list of numbers",
                "label = 2020-01-01": "is no word, number or list",
                "text = [['a']]": "is no word, number or list",
                "a.b = 3": "is no word, number or list",
                "name = 'a.json'": r"name = 'a.json' of a set must not end in \.json",
                "cut = []": r"list.toml: a: cut = \[\] is no list of numbers",
                "cut = [0, 20, 20]": r"list.toml: a: cut = \[0, 20, 20\] has one of them twice",
                "tune = false": "list.toml: tune = false is said as no_tune = true",
                "family = 3": "list.toml: a: family = 3 must be one word",
                "family = ''": "a: family = '' must be one word",
                "family = ['x', 'y']": "must be one word",
                "family = 'x'\n[families]\ny = ['a']": "of the family x, and in .families. of y",
                "[families]\nx = ['a', 'A']": "A of the family x is no set of this list",
                "cut = [0, 5]\n[families]\nx = ['a_cut5']": "a_cut5 of the family x is no set of",
                "[families]\n'' = ['a']": "a: family = '' must be one word",
                "[family]\nx = ['a']": "list.toml: family is no part of a list",
                "[[set]]\ndata = 'empty'": r"empty holds no \.npz file",
                "[[set]]\ndata = 'tables'\nname = 'x'": "name is said of a set, and .*tables is a",
            }.items()
        ],
        ("list.toml", "splits = 3\n[[set]]\ndata = 'tables/a.npz'\n", "splits is no part of a"),
        ("list.txt", "tables/a.npz --family\n", "a: family = True must be one word"),
        (
            "list.toml",
            "[[set]]\ndata = 'tables/a.npz'\n[families]\nx = ['a']\ny = ['a']\n",
            "a is in two .families., x and y",
        ),
        ("list.txt", "a.npz 'x\n", "No closing quotation"),
        ("list.txt", "a.npz x\n", "'x' in 'a.npz x' is the value of no flag"),
        ("list.txt", "nothing.npz\n", "no set is left"),
    ],
)
def test_lists_that_are_none(sets, compare, tmp_path, name, text, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        start(tmp_path / name, "--out", tmp_path / "out")
    assert not compare.called


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.toml", "[[set]]\ndata = 'tables/a.npz'\nfamily = ['x']\n"),
        ("l.txt", "tables/a.npz --family x\n"),
        ("l.toml", "[[set]]\ndata = 'tables/a.npz'\nno_tune = false\n[families]\nx = ['a']\n"),
    ],
)
def test_a_family_of_one_word(sets, compare, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = start(tmp_path / name, "--out", tmp_path / "out")
    assert found["sets"][0]["family"] == "x" and not compare.called[0][1].no_tune


def test_a_family_is_not_named_as_another_set(sets, compare, tmp_path):
    (tmp_path / "l.toml").write_text("[[set]]\ndata = 'tables'\n[families]\na = ['b', 'c']\n")
    with pytest.raises(RunError, match=r"^b is of the family a, and the set a is not"):
        start(tmp_path / "l.toml", "--out", tmp_path / "out")
    assert not compare.called
    (tmp_path / "l.toml").write_text("[[set]]\ndata = 'tables'\n[families]\na = ['b', 'a']\n")
    found = start(tmp_path / "l.toml", "--out", tmp_path / "out")
    assert [one["family"] for one in found["sets"]] == ["a", "c", "a"]


@pytest.mark.parametrize(
    "line", ["text = [3]", "text = 3", "label = 3", "label = ['a', 'b']", "group = []", "id = 1.5"]
)
def test_a_column_that_is_no_word_leaves_its_set_out(sets, compare, tmp_path, capsys, line):
    (tmp_path / "list.toml").write_text(
        f"[[set]]\ndata = 'tables/a.npz'\n{line}\n[[set]]\ndata = 'tables/b.npz'\n"
    )
    start(tmp_path / "list.toml", "--out", tmp_path / "out")
    assert ran(compare) == ["b"]
    assert f"a is left out: {line.partition(' ')[0]} = " in capsys.readouterr().out


def test_a_byte_order_mark_is_no_part_of_a_name(sets, compare, tmp_path):
    for name, text in (("l.txt", "tables/a.npz\n"), ("l.toml", "[[set]]\ndata = 'tables/b.npz'\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    start(tmp_path / "l.txt", tmp_path / "l.toml", "--out", tmp_path / "out")
    assert sorted(ran(compare)) == ["a", "b"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--data", "b.npz"), ("--data=b.npz",), ("--label", "x"), ("--text", "x"),
        ("--splits", "3"), ("--seed", "3"), ("--cut", "3"), ("--out", "x"), ("--resume",),
        ("--overwrite",), ("--predict", "x"), ("--help",), ("-h",), ("--no-tune",),
    ],
)  # fmt: skip
def test_what_is_not_handed_on_is_refused(sets, compare, tmp_path, flags):
    with pytest.raises(RunError, match=f"^{flags[0].partition('=')[0]} behind -- would be heeded"):
        start(sets, "--out", tmp_path / "out", "--", *flags)
    assert not compare.called and not (tmp_path / "out").exists()


def test_a_flag_that_compare_refuses_is_refused_before_anything_runs(
    sets, compare, tmp_path, capsys
):
    with pytest.raises(SystemExit):
        start(sets, "--out", tmp_path / "out", "--", "--nothing")
    assert not compare.called and not (tmp_path / "out").exists()
    assert capsys.readouterr().err.endswith("\nso compare refuses the flags of a\n")


def test_two_sets_of_one_name_and_an_empty_folder(sets, compare, tmp_path):
    """Also where one of them cannot be read."""
    for other in (sets / "a.npz", tmp_path / "nowhere" / "a.npz"):
        with pytest.raises(RunError, match="two sets are named a"):
            start(sets, other, "--out", tmp_path / "out")
    start(sets / "a.npz", "--cut", 9, 9, "--out", tmp_path / "out")
    assert ran(compare) == ["a", "a_cut9"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.npz file"):
        start(tmp_path / "empty", "--out", tmp_path / "out")


def test_what_a_list_says_of_a_set_holds_in_place_of_what_is_behind_the_dashes(
    sets, compare, tmp_path
):
    (tmp_path / "l.toml").write_text(
        "[[set]]\ndata = 'tables/a.npz'\nsettings = 3\ntune = true\n"
        "[[set]]\ndata = 'tables/b.npz'\n"
    )
    given = [str(tmp_path / "l.toml"), "--out", "x", "--no-tune"]
    planned, _ = study_plan.plan(
        study.arguments().parse_args(given), ["--settings", "5", "--width=8", "--loss", "a", "b"]
    )
    rest = ["--width=8", "--loss", "a", "b"]
    shared = ["--splits", "10", "--seed", "0"]
    assert list(planned[0].flags[2:]) == ["--settings", "3", "--tune", *shared, *rest]
    assert list(planned[1].flags[2:]) == [*shared, "--no-tune", "--settings", "5", *rest]


def test_flags_may_change_while_the_folder_of_a_set_holds_nothing(sets, compare, tmp_path):
    out, words = tmp_path / "out", (sets / "a.npz", "--out", tmp_path / "out", "--splits")
    compare.fail = ("a",)
    with pytest.raises(RunError, match="nothing to sum up"):
        start(*words, 3)
    compare.fail = ()
    start(*words, 4)
    with pytest.raises(RunError, match=r"sets/a was begun with other flags.*, or delete it$"):
        start(*words, 5)
    shutil.rmtree(out / "sets" / "a")
    start(*words, 5)
    assert [args.splits for _, args in compare.called] == ["3", "4", "5"]
    assert json.loads((out / "sets" / "a.json").read_text())[3] == "5"


@pytest.mark.parametrize("gone", [True, False])
def test_finished_sets_are_summed_up_without_their_rows(sets, compare, tmp_path, gone):
    out, words = tmp_path / "out", [sets / f"{name}.npz" for name in "abc"]
    start(*words[:2], "--out", out, "--cut", 20)
    for name in "bc":
        (sets / f"{name}.npz").unlink()
        if not gone:
            np.savez(sets / f"{name}.npz", X=np.ones((9, 1)), y=np.ones(9))
    found = start(*words, "--out", out, "--cut", 20, "--only-sum-up")
    assert {one["name"] for one in found["sets"]} == {"a", "b", "b_cut20"}
    assert [one["name"] for one in found["failed"]] == ["c"]
    assert found["failed"][0]["why"] != "not finished"
    assert len(compare.called) == 3


def test_a_finished_set_of_other_rows_is_not_kept(sets, compare, tmp_path):
    out = tmp_path / "out"
    start(sets / "a.npz", "--out", out)
    config = out / "sets" / "a" / "config.json"
    config.write_text(json.dumps({"data_sha256": files.digests(str(sets / "a.npz"), None)}))
    start(sets / "a.npz", "--out", out)
    assert len(compare.called) == 1
    config.write_text(json.dumps({"data_sha256": ["0" * 64, None]}))
    with pytest.raises(RunError, match="was begun with other rows than its file holds now"):
        start(sets / "a.npz", "--out", out)


@pytest.mark.parametrize(
    ("name", "so"),
    [
        ("a.json", "remove it, and the same command goes on"),
        ("a/summary.json", "remove it, and the study, without --only-sum-up, makes it anew"),
        ("a/runs.csv", "remove it, and the study, without --only-sum-up, makes it anew"),
    ],
)
def test_of_a_damaged_file_it_is_said_what_the_study_makes_of_it(sets, compare, tmp_path, name, so):
    """Not what compare would, which was never called by hand."""
    words = (sets / "a.npz", "--out", tmp_path / "out")
    start(*words)
    path = tmp_path / "out" / "sets" / name
    path.write_text(path.read_text()[:40])
    with pytest.raises(RunError, match=f"{path}.*{so}$"):
        start(*words, "--only-sum-up")


@pytest.mark.parametrize("name", ["a.json", "a/config.json"])
def test_a_damaged_file_of_a_finished_set_is_told_and_left(sets, compare, tmp_path, name):
    """Or does no harm; and nothing is run over it. (test_compare_folder.py has summary.json.)"""
    out = tmp_path / "out"
    words = (sets / "a.npz", "--out", out)
    start(*words)
    config = out / "sets" / "a" / "config.json"
    config.write_text(json.dumps({"data_sha256": files.digests(str(sets / "a.npz"), None)}))
    path = out / "sets" / name
    told = 0
    for what, data in damaged_json(path.read_text()):
        path.write_bytes(data)
        try:
            found = start(*words)
        except (DataError, RunError) as error:
            assert "\n" not in str(error) and str(out) in str(error), what
            told += 1
        else:
            assert [one["name"] for one in found["sets"]] == ["a"], what
        assert path.read_bytes() == data and len(compare.called) == 1, what
    assert told > 5


def test_flags_of_a_finished_set_are_kept_beside_it(sets, compare, tmp_path):
    start(sets / "a.npz", "--out", tmp_path / "out", "--no-tune")
    kept = json.loads((tmp_path / "out" / "sets" / "a.json").read_text())
    assert kept == ["--data", str(sets / "a.npz"), "--splits", "10", "--seed", "0", "--no-tune"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("test_share", 0.25, ["--test-share", "0.25"]), ("no_tune", True, ["--no-tune"]),
        ("rule", ["sgd", "sam"], ["--rule", "sgd", "sam"]), ("seed", 0, ["--seed", "0"]),
    ],
)  # fmt: skip
def test_what_a_list_says_as_a_flag(name, value, words):
    assert study_plan._flag(name, value) == words


def test_what_is_planned_of_each_set(sets, compare, tmp_path):
    """Rows and a share that any set has; of equal ones by name, whichever stands first."""
    (tmp_path / "list.txt").write_text(
        "tables/c.npz --splits 3 --seed 5 --settings 2\ntables/a.npz --name z\ntables/a.npz\n"
    )
    given = [str(tmp_path / "list.txt"), "--out", "x", "--seed", "7", "--cut", "9", "--no-tune"]
    planned, failed = study_plan.plan(study.arguments().parse_args(given), ["--width", "8"])
    assert not failed and [each.name for each in planned] == [
        "a", "a_cut9", "z", "z_cut9", "c", "c_cut9"
    ]  # fmt: skip
    assert [each.cost for each in planned] == [3030] * 4 + [3040] * 2
    assert [each.family for each in planned] == ["a", "a", "z", "z", "c", "c"]
    assert planned[0].about == "30 rows, 2 columns, 2 classes"
    shared = ["--no-tune", "--width", "8"]
    of_a, own = ["--data", str(sets / "a.npz")], ["--splits", "3", "--seed", "5", "--settings", "2"]
    assert list(planned[1].flags) == [
        *of_a, "--cut", "9", "--splits", "10", "--seed", "7", *shared
    ]  # fmt: skip
    assert list(planned[4].flags) == ["--data", str(sets / "c.npz"), *own, *shared]


def test_the_time_left_is_told_by_rows(sets, compare, tmp_path, monkeypatch, capsys):
    """A tenth of a second a row, and of what any set has: 3030, 3040 and 3050 of them."""
    now, main = [1000.0], compare.main

    def timed(args):
        now[0] += 303 + len(compare.called)
        main(args)

    monkeypatch.setattr(study.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(compare, "main", timed)
    found = start(sets, "--out", tmp_path / "out", "--seed", 7, "--splits", 4, "--no-tune")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert said == [
        "[1/3] a: 30 rows, 2 columns, 2 classes",
        "[2/3] c: 40 rows, 2 columns, 2 classes; 0:10:09 left",
        "[3/3] b: 50 rows, 2 columns, 2 classes; 0:05:05 left",
    ]
    about = found["about"]
    assert (about["splits"], about["seed"], about["tuned"]) == (4, 7, False)
    assert "versions" in about and about["command"].startswith("python -m")


def test_a_finished_set_has_its_flags_and_all_that_compare_writes(tmp_path):
    data = tmp_path / "a.npz"
    data.touch()
    one = study_plan.Planned(name="a", flags=("--data", str(data)), cost=1, about="", family="a")
    folder = tmp_path / "sets" / "a"
    folder.mkdir(parents=True)
    for name in ("a.json", "a/summary.json", "a/runs.csv", "a/report.html"):
        assert not study._finished(tmp_path, one)
        # Nothing but the figures is needed to sum up what a kill cut short while it drew.
        assert study._finished(tmp_path, one, whole=False) == (name == "a/report.html")
        (tmp_path / "sets" / name).write_text(json.dumps(one.flags))
    assert study._finished(tmp_path, one)
    (folder / "config.json").write_text("{}")  # of before there were digests
    assert study._finished(tmp_path, one)
    (folder / "summary.json").unlink()
    assert not study._finished(tmp_path, one)


def test_the_command_ends_with_a_sentence(refuse, sets, tmp_path):
    """And what is behind -- is compare's, of its own command line, too."""
    words = (sets / "a.npz", "--out", tmp_path / "out", "--", "--seed", 3)
    said = refuse("experiments.study", *words, code=1)
    assert said.startswith("error: --seed behind -- would be heeded")
    said = refuse("experiments.study", *words[:2], code=2)
    assert said.endswith("expected one argument")
