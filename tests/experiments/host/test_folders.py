"""A run's folder, file by file: what is read of one, and in what two configs differ."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.host import folders
from experiments.host.errors import RunError

CONFIG = {"seed": 0, "lr": 0.1}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, None), ({"together": None, "devices": 1}, None), ({"together": [3, 0]}, None),
        ({"devices": 2}, None),
        ({"together": []}, "together is [], no list of seeds"),
        ({"together": [0, "1"]}, "together is [0, '1'], no list of seeds"),
        ({"together": [True]}, "together is [True], no list of seeds"),
        ({"together": 3}, "together is 3, no list of seeds"),
        ({"devices": 0}, "devices is 0, no number of them"),
        ({"devices": 1.0}, "devices is 1.0, no number of them"),
        ({"devices": "2"}, "devices is '2', no number of them"),
        ({"devices": True}, "devices is True, no number of them"),
    ],
)  # fmt: skip
def test_how_a_run_that_was_begun_is_shared_out(config, said, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    if said is None:
        assert folders.begun(path) == config
        return
    with pytest.raises(RunError) as refused:
        folders.begun(path)
    assert str(refused.value) == f"cannot read {path}: {said}"


def test_a_folder_of_images_is_one_however_it_is_written(tmp_path, monkeypatch):
    """By a link, from here, from home; another folder or other rows of it are another source."""
    images, out = tmp_path / "images", tmp_path / "out"
    for path in (images, tmp_path / "more", out):
        path.mkdir()
    (tmp_path / "link").symlink_to(images)
    monkeypatch.chdir(out)
    monkeypatch.setenv("HOME", str(tmp_path))

    def source(folder, then=""):
        return {"source": f"images in {folder}, chosen and labelled by lists{then}"}

    (out / "config.json").write_text(json.dumps({"seed": 1} | source("../link/", "; 1 held out")))
    for same in (images, "../link", "~/images", f"{images}//.", "../link/"):
        found = folders.as_begun(out, CONFIG | source(same, "; 1 held out"))
        assert found == CONFIG | source("../link/", "; 1 held out")
    for other in (
        source(images), source(tmp_path / "more", "; 1 held out"), {"source": "made here"}, {}
    ):  # fmt: skip
        assert folders.as_begun(out, CONFIG | other) == CONFIG | other
    assert folders.as_begun(images, CONFIG | source("../link")) == CONFIG | source("../link")
    assert folders.same_source("made here", "made here")
    assert not folders.same_source("made here", "made there")
    with pytest.raises(RunError, match="cannot be kept"):
        folders.as_begun(tmp_path / "[1]", CONFIG)


# ---- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ({"lr": 0.1, "seed": 0}, {"seed": 1, "lr": 0.2}, "lr 0.1 -> 0.2, seed 0 -> 1"),
        ({"a": 1}, {"a": 1.0}, ""),
        ({"a": 1}, {"a": True}, "a 1 -> True"),
        ({"a": False}, {"a": 0}, "a False -> 0"),
        ({"a": None}, {}, ""), ({}, {"a": None}, ""),
        ({}, {"a": 0}, "a None -> 0"), ({"a": "x"}, {}, "a 'x' -> None"),
        ({"a": [1, [2]]}, {"a": (1, (2,))}, ""),  # as JSON has it
        ({"a": [1, 2]}, {"a": [1]}, "a [1, 2] -> [1]"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a [1, 2] -> [1, 3]"),
        ({"a": [1]}, {"a": [True]}, "a [1] -> [True]"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a {'b': 1} -> {'b': 2}"),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 1, "c": True}},
         "a {'b': 1, 'c': 1} -> {'b': 1, 'c': True}"),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 1}}, "a {'b': 1} -> {'b': 1, 'c': 1}"),
        ({"a": {}}, {"a": []}, "a {} -> []"),
        ({"a": {"b": 1}}, {"a": ["b"]}, "a {'b': 1} -> ['b']"),
        # A run begun before it was written down may be resumed; one with another may not.
        ({}, {"rows_sha256": {"train": "x"}}, ""),
        ({"rows_sha256": "y"}, {"rows_sha256": "x"}, "rows_sha256 'y' -> 'x'"),
        ({"rows_sha256": "y"}, {}, "rows_sha256 'y' -> None"),
    ],
)  # fmt: skip
def test_in_what_two_configs_differ(old, new, what):
    assert folders.different(old, new) == what


@pytest.mark.parametrize(("fields", "more"), [(7, ""), (8, ""), (9, " and 1 more")])
def test_eight_differences_are_named(fields, more):
    old = {f"k{k}": 0 for k in reversed(range(fields))}
    named = ", ".join(f"k{k} 0 -> 1" for k in range(min(fields, 8)))
    assert folders.different(old, dict.fromkeys(old, 1)) == named + more


def test_a_folder_is_begun_once_and_gone_on_with_as_it_was(tmp_path):
    path = tmp_path / "run"
    folders.RunFolder.check(path, CONFIG, resume=False)
    folders.RunFolder.check(path, CONFIG, resume=True)
    assert not path.exists()
    with contextlib.closing(folders.RunFolder(path, CONFIG, resume=False)) as folder:
        assert folder.owned
        other = folders.RunFolder(path, {**CONFIG, "lr": 1}, resume=False, owner=False)
        other.append_metrics({"epoch": 1})
        other.close()
        assert not other.owned and sorted(x.name for x in path.iterdir()) == [
            ".lock", "config.json"
        ]  # fmt: skip
    assert not folder.owned
    assert json.loads((path / "config.json").read_text()) == CONFIG
    with pytest.raises(RunError, match="already holds a run: continue it with --resume"):
        folders.RunFolder(path, CONFIG, resume=False)
    folders.RunFolder(path, CONFIG, resume=True).close()
    with pytest.raises(RunError, match=r"holds a run with other settings \(lr 0.1 -> 1\)"):
        folders.RunFolder(path, {**CONFIG, "lr": 1}, resume=True)
    (path / "config.json").unlink()
    (path / "mine").touch()
    for resume in (False, True):
        with pytest.raises(RunError, match="is not empty and holds no run"):
            folders.RunFolder(path, CONFIG, resume=resume)


def test_a_folder_whose_first_file_cannot_be_written_is_let_go(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("no JSON")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no JSON"):
        patch.setattr(folders, "write_json", fails)
        folders.RunFolder(tmp_path, CONFIG, resume=False)
    folders.RunFolder(tmp_path, CONFIG, resume=False).close()


REPORT = {
    **dict.fromkeys(("rule", "rule_args", "loss", "best_epoch_flip", "params_sha256")),
    **dict.fromkeys(("many", "medium", "few", "all"), 1.0), "seed": 0, "settings": {"lr": 0.1},
}  # fmt: skip


def test_a_report_is_of_this_run_and_whole(tmp_path):
    path = tmp_path / "report.json"
    with contextlib.closing(folders.RunFolder(tmp_path, CONFIG, resume=False)) as folder:
        assert folder.finished(CONFIG) is None
        path.write_text(json.dumps(REPORT))
        assert folder.finished(CONFIG) == REPORT
        for name in REPORT:
            path.write_text(json.dumps({k: v for k, v in REPORT.items() if k != name}))
            why = {
                "seed": r"is of a run with other settings \(seed None -> 0\)",
                "settings": r"is of a run with other settings \(lr None -> 0.1\)",
            }.get(name, "is no whole report")
            with pytest.raises(RunError, match=f"report.json {why}: remove it, and --resume"):
                folder.finished(CONFIG)
        path.write_text(json.dumps({**REPORT, "settings": 3, "lr": 0.1}))
        assert folder.finished(CONFIG)["settings"] == 3


# ---- metrics.jsonl ------------------------------------------------------------------------------

LINE = {"epoch": 2, "step": 10, "lr": 0.1, "train_loss": 1.5, "train_accuracy": 50.0}


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        (LINE, True), ({"epoch": 2}, True), ({"epoch": 1, "step": 0}, True),
        ({**LINE, "test_all": None}, True), ({**LINE, "test_loss": math.inf}, True),
        ({**LINE, "seconds": 3}, True), ({**LINE, "test_all": "x"}, False),
        ({**LINE, "test_all": "x", "test_few": 1.0}, False), ({**LINE, "test_all": True}, False),
        ({**LINE, "lr": math.inf}, False), ({**LINE, "lr": None}, False), ({"step": 2}, False),
        ({"epoch": 0, "step": 0}, False), ({"epoch": -1, "step": 1}, False),
        ({"epoch": 2.0}, False), ({"epoch": 1, "step": 3.0}, False),
        ({"epoch": 2, "step": 11}, False), ({"epoch": 2, "step": 13}, False),
        ([], False), (3, False), ("epoch", False),
    ],
)  # fmt: skip
def test_what_a_line_of_an_epoch_is(line, whole, tmp_path):
    """Of numbers, those of every epoch finite; and every epoch has as many steps."""
    path, said = tmp_path / "m.jsonl", []
    path.write_text(json.dumps(line) + "\n")
    assert folders.read_metrics(path, said.append) == [line] * whole
    assert said == ([] if whole else [f"note: {path} is damaged in line 1: left out"])


@pytest.mark.parametrize("name", folders.EVERY)
def test_a_line_has_what_is_needed_of_it(name, tmp_path):
    path, said = tmp_path / "m.jsonl", []
    path.write_text(json.dumps({k: v for k, v in LINE.items() if k != name}))
    assert folders.read_metrics(path, said.append, folders.EVERY) == [] and len(said) == 1
    assert len(folders.read_metrics(path, said.append, ("epoch",))) == (name != "epoch")


def test_lines_are_read_in_the_order_of_their_epochs(tmp_path):
    """The first of an epoch; blank lines are none, those that are damaged are counted from 1."""
    path, said = tmp_path / "m.jsonl", []
    assert folders.read_metrics(path, said.append) == []
    path.write_text('{"epoch": 2}\n\n  \n{"epoch": 1}\n{"epoch": 2, "a": 1}\nx\n')
    assert folders.read_metrics(path, said.append) == [{"epoch": 1}, {"epoch": 2}]
    assert said == [f"note: {path} is damaged in lines 5, 6: left out"]
    path.write_text("x\n" * 21)
    folders.read_metrics(path, said.append)
    assert said[1].endswith("in lines " + ", ".join(map(str, range(1, 21))) + ": left out")
    with pytest.raises(RunError, match="it is no file"):
        folders.read_metrics(tmp_path)


def test_metrics_are_a_line_an_epoch_and_those_of_after_a_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{**LINE, "epoch": epoch, "step": 5 * epoch} for epoch in (1, 2, 3)]
    with contextlib.closing(folders.RunFolder(tmp_path, CONFIG, resume=False)) as folder:
        assert folder.keep_metrics(3, pytest.fail) == [] and not path.exists()
        for line in lines:
            folder.append_metrics(line)
        whole = "".join(json.dumps(line) + "\n" for line in lines)
        assert path.read_text() == whole
        other = folders.RunFolder(tmp_path, CONFIG, resume=True, owner=False)
        assert other.keep_metrics(1, pytest.fail) == lines[:1] and path.read_text() == whole
        assert folder.keep_metrics(2, pytest.fail) == lines[:2]
        assert path.read_text() == "".join(json.dumps(line) + "\n" for line in lines[:2])
        path.write_text("{")  # cut short
        folder.append_metrics(lines[0])
        assert path.read_text() == "{\n" + json.dumps(lines[0]) + "\n"


@pytest.mark.parametrize("names", [None, ("a cat", "dog, or not", "bee")])
def test_the_accuracy_of_each_class(names, tmp_path):
    """None of a class without a test image."""
    with contextlib.closing(folders.RunFolder(tmp_path, CONFIG, resume=False)) as folder:
        correct, total = np.array([2, 1, 0]), np.array([3, 1, 0])
        folder.write_per_class(np.array([9, 4, 1]), correct, total, names)
        with pytest.raises(ValueError):
            folder.write_per_class(np.array([9, 4]), correct, total, names)
    first, second, third = ("a cat", '"dog, or not"', "bee") if names else ("", "", "")
    assert (tmp_path / "per_class.csv").read_bytes().decode().split("\r\n") == [
        "class,name,train_examples,test_examples,correct,accuracy",
        f"0,{first},9,3,2,66.6667", f"1,{second},4,1,1,100.0000", f"2,{third},1,0,0,", "",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a[b", "a]b", "a*b", "a?b", "a\\b"])
def test_a_path_that_is_a_pattern_to_orbax_is_refused(name, tmp_path):
    for check in (folders.check_run, lambda path: folders.RunFolder.check(path, CONFIG, False)):
        with pytest.raises(RunError) as refused:
            check(tmp_path / name)
        assert f"because of the {name[1]} in it: choose another --out" in str(refused.value)
    folders.check_run(tmp_path / name.replace(name[1], "{"))
    with pytest.raises(RunError, match="is no folder"):
        folders.check_run(Path(__file__))
