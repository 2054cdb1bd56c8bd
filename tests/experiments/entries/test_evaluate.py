"""What `evaluate` looks for, asks for and prints, of runs that are made up: nothing is trained."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import cifar_lt, evaluate, finetune, imagenet_lt, inaturalist
from experiments.data import save_npz
from experiments.host import cli
from experiments.host.errors import DataError, RunError
from experiments.host.sealed import class_counts_sha256
from experiments.run import checkpoints, parts
from experiments.run.settings import Note, Settings
from tiny import tiny_dataset

RUN = Path("run")


def args_of(*flags: str) -> argparse.Namespace:
    found: argparse.Namespace = evaluate.arguments().parse_args(["run", *flags])
    return found


# ---- the data of a run -----------------------------------------------------------------------

OF_CIFAR = {
    "experiment": "cifar_lt", "dataset": "cifar10", "imbalance_factor": 49.5, "subset": "shuffled",
    "requested_imbalance_factor": 50.0, "subset_seed": 3, "val_per_class": 2, "shrink": 4,
}  # fmt: skip
STREAMED = {"val_per_class": 2, "image_size": 64, "resize": 72}
LISTS = ["--train-list", "a", "--val-list", "b", "--test-list", "c"]


@pytest.mark.parametrize(
    ("module", "config", "flags", "asked"),
    [
        (cifar_lt, OF_CIFAR, ["--data-dir", "d"], {
            "dataset": "cifar10", "imbalance_factor": 50.0, "subset": "shuffled", "subset_seed": 3,
            "val_per_class": 2, "shrink": 4, "data_dir": "d", "data": None,
        }),
        # Begun before any of it was written down: what there was then.
        (cifar_lt, {"experiment": "cifar_lt", "dataset": "cifar100", "imbalance_factor": 100.0,
                    "val_per_class": 0}, [], {
            "dataset": "cifar100", "imbalance_factor": 100.0, "subset": "first", "subset_seed": 0,
            "val_per_class": 0, "shrink": 1, "data_dir": None,
        }),
        (imagenet_lt, {**STREAMED, "experiment": "imagenet_lt", "data_of": "places365_small"},
         ["--data-dir", "d", "--image-dir", "i", *LISTS], {
            "dataset": "places365_small", "image_size": 64, "resize": 72, "val_per_class": 2,
            "data_dir": "d", "image_dir": "i", "train_list": "a", "val_list": "b", "test_list": "c",
            "allow_empty_classes": True,
        }),
        (imagenet_lt, {**STREAMED, "experiment": "imagenet_lt"}, [], {
            "dataset": "imagenet_lt", "data_dir": None, "allow_empty_classes": True,
        }),
        (inaturalist, {**STREAMED, "experiment": "inaturalist"}, ["--max-corrupt", "0.5"], {
            "image_size": 64, "resize": 72, "val_per_class": 2, "allow_empty_classes": True,
        }),
        (finetune, {**STREAMED, "experiment": "finetune", "data_of": "inaturalist",
                    "model": "vit_b16"}, ["--image-dir", "i", *LISTS[:2], *LISTS[4:]], {
            "dataset": "inaturalist", "model": "vit_b16", "image_size": 64, "resize": 72,
            "image_dir": "i", "train_list": "a", "test_list": "c", "allow_empty_classes": True,
        }),
        (finetune, {**STREAMED, **OF_CIFAR, "experiment": "finetune", "data_of": "cifar100",
                    "model": "vit_b16"}, ["--data-dir", "d"], {
            "dataset": "cifar100", "model": "vit_b16", "image_size": 64, "resize": 72,
            "imbalance_factor": 50.0, "subset": "shuffled", "subset_seed": 3, "shrink": 4,
            "data_dir": "d", "allow_empty_classes": False,
        }),
    ],
)  # fmt: skip
def test_a_runs_data_is_asked_for_by_the_flags_of_its_entry(
    monkeypatch: pytest.MonkeyPatch, module: Any, config: Any, flags: list[str], asked: Any
) -> None:
    monkeypatch.setattr(module, "load", lambda args: args)
    found = vars(evaluate._load(args_of(*flags), config, RUN))
    assert {name: found[name] for name in asked} == asked


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        ({"experiment": "digits_lt"}, [], "run is a run of 'digits_lt', which has no images"),
        ({}, [], "run is a run of None, which has no images"),
        ({"experiment": "finetune", "features": True}, [], "was trained on kept features"),
        ({**OF_CIFAR, "experiment": "finetune", "data_of": "cifar10", **STREAMED, "model": "x"},
         ["--image-dir", "a", "--max-corrupt", "0.5"], "--image-dir, --max-corrupt would go unhee"),
        ({**STREAMED, "experiment": "finetune", "data_of": "places_lt", "model": "x"},
         ["--data", "a"], "run is a run of finetune: --data would go unheeded"),
        ({**OF_CIFAR, "subset": None}, [], "does not say what it was cut out of: give that file"),
        ({**OF_CIFAR, "requested_imbalance_factor": None}, [], "does not say what it was cut out"),
    ],
)  # fmt: skip
def test_data_that_a_run_cannot_have_had_is_refused(
    config: Any, flags: list[str], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        evaluate._load(args_of(*flags), config, RUN)


@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [
        ("images in pictures, by lists", [], "was trained on images in pictures, by lists: give"),
        ("images in pictures, by lists", ["--image-dir", "i"], "^no such data$"),
        ("TensorFlow Datasets imagenet_lt", [], "^no such data$"),
    ],
)
def test_a_run_of_files_asks_for_its_files(
    monkeypatch: pytest.MonkeyPatch, source: str, flags: list[str], said: str
) -> None:
    def load(args: argparse.Namespace) -> None:
        raise DataError("no such data")

    monkeypatch.setattr(imagenet_lt, "load", load)
    config = {**STREAMED, "experiment": "imagenet_lt", "data_of": "imagenet_lt", "source": source}
    with pytest.raises((RunError, DataError), match=said):
        evaluate._load(args_of(*flags), config, RUN)


@pytest.mark.parametrize("held_out", [False, True])
def test_an_exported_file_is_not_done_twice(tmp_path: Path, held_out: bool) -> None:
    """What it holds out is held out; else as much as the run held out of it."""
    whole, data = tiny_dataset(), tmp_path / "x.npz"
    own = dataclasses.replace(whole, val_images=whole.test_images, val_labels=whole.test_labels)
    save_npz(dataclasses.replace(own, val_per_class=11) if held_out else whole, data)
    config = {"experiment": "cifar_lt", "val_per_class": 2}
    found = evaluate._load(args_of("--data", str(data)), config, RUN)
    assert len(found.train_labels) == (78 if held_out else 78 - 2 * 5)
    assert len(found.val_labels) == (55 if held_out else 10)
    tuned = {**config, "experiment": "finetune", "model": "vit_b16", "data_of": "cifar10"}
    seen = evaluate._load(args_of("--data", str(data)), {**tuned, **STREAMED}, RUN)
    assert (seen.mean, found.mean) == ((0.5, 0.5, 0.5), whole.mean)


@pytest.mark.parametrize(
    ("of_run", "seen"), [(None, "as they are"), (3, None), (2, "of 2 x 2 pixels averaged")]
)
def test_a_file_that_was_shrunk_otherwise_is_refused(
    tmp_path: Path, of_run: int | None, seen: str | None
) -> None:
    data = tmp_path / "x.npz"
    save_npz(dataclasses.replace(tiny_dataset(), shrink=3), data)
    config = {"experiment": "cifar_lt", "val_per_class": 0}
    config |= {} if of_run is None else {"shrink": of_run}
    expected: Any = contextlib.nullcontext() if seen is None else pytest.raises(RunError)
    with expected as refused:
        assert evaluate._load(args_of("--data", str(data)), config, RUN).shrink == 3
    if seen:
        assert str(refused.value) == (
            f"{data} has every 3 x 3 pixels averaged, and the run saw images {seen}: give the file "
            "that it was trained from"
        )


# ---- folders ---------------------------------------------------------------------------------


def test_folders_of_runs_are_found_three_levels_down(tmp_path: Path) -> None:
    def begun(place: str) -> None:
        (tmp_path / place / "checkpoints").mkdir(parents=True)
        (tmp_path / place / "config.json").touch()

    begun("w/x/y/z")  # too far
    (tmp_path / "w" / "config.json").touch()  # of a sweep: no run
    assert evaluate.no_run(tmp_path).endswith("to evaluate: it holds no config.json")
    found = []
    for place in ("b", "a", "k/b", "k/a", "j", "m/n/o"):
        begun(place)
    found = [str(tmp_path / place) for place in ("a", "b", "j", "k/a", "k/b", "m/n/o")]
    said = f"{tmp_path} is no run folder, but holds some: name one of "
    assert evaluate.no_run(tmp_path) == said + ", ".join(found)
    for more in range(4):
        begun(f"q/{more}")
    ten = [*found[:5], *(str(tmp_path / "q" / str(more)) for more in range(4)), found[5]]
    assert evaluate.no_run(tmp_path) == said + ", ".join(ten)
    begun("z")
    eleven = [*found[:3], str(tmp_path / "z"), *ten[3:]]
    assert evaluate.no_run(tmp_path) == said + ", ".join(eleven[:10]) + ", ..."


def test_what_is_no_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").touch()
    for name, why in (
        ("file", "is no run folder: it is a file"), ("none", "is no run folder: it is not there"),
        ("begun", "is no run folder to evaluate: it holds no checkpoint"),
    ):  # fmt: skip
        for tell in (evaluate.no_run, lambda path: _refused(path)):
            assert tell(tmp_path / name) == f"{tmp_path / name} {why}"


def _refused(path: Path) -> str:
    with pytest.raises(RunError) as refused:
        evaluate.open_run(path, args_of())
    return str(refused.value)


# ---- a run that is opened --------------------------------------------------------------------

DATA = tiny_dataset()
CONFIG = {
    **dataclasses.asdict(Settings(lr=0.25, devices=4, parallel="pmap", accumulate=3, seed=9)),
    "examples": "independent", "max_corrupt": 0.25, "model": "mlp", "source": DATA.source,
    "class_counts_sha256": class_counts_sha256(DATA.class_counts()),
    **parts.about_images(DATA), "rows_sha256": parts.rows_of(DATA),
}  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a folder with a config.json so changed; what was made of it, and in what order."""
    told: dict[str, Any] = {"order": []}

    class Held:
        def __init__(self, path: Path, **options: Any):
            told.update(held=path, options=options)

        def check_config(self, path: Path, config: Any) -> None:
            told["order"].append("checked")
            told["checked"] = path, config

    def made(dataset: Any, model: str, loss: Any, settings: Settings) -> Any:
        told.update(model=model, settings=settings, dataset=dataset)
        return types.SimpleNamespace(steps_per_epoch=5)

    def load(args: Any, config: Any, run: Path) -> Any:
        told["order"].append("loaded")
        return DATA

    monkeypatch.setattr(checkpoints, "Checkpoints", Held)
    monkeypatch.setattr(parts, "Parts", made)
    monkeypatch.setattr(evaluate, "_load", load)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: told["order"].append("cache"))

    def open_it(*flags: str, devices: Any = (), **changes: Any) -> tuple[Any, dict[str, Any]]:
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        config = {k: v for k, v in {**CONFIG, **changes}.items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(config))
        told["order"].clear()
        return evaluate.open_run(tmp_path, args_of(*flags), *devices), told

    return open_it


def test_a_run_is_opened_on_this_machine_as_it_was_trained(
    opened: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But on one device, whole, and with the images that may be unreadable here."""
    run, told = opened()
    assert told["order"] == ["cache", "checked", "loaded"]
    assert (told["held"], told["options"]) == (
        tmp_path / "checkpoints", {"config": run.config, "reading": True}
    )  # fmt: skip
    assert told["checked"] == (tmp_path / "config.json", run.config)
    assert run.config == json.loads(json.dumps(CONFIG)) and run.dataset is DATA
    assert (told["model"], told["dataset"]) == ("mlp", DATA)
    assert told["settings"] == Settings(lr=0.25, seed=9, max_corrupt=0.001)
    assert opened("--max-corrupt", "0.5")[1]["settings"].max_corrupt == 0.5
    assert opened("--max-corrupt", "0")[1]["settings"].max_corrupt == 0
    assert opened(devices=(3,))[1]["settings"].devices == 3
    assert capsys.readouterr().out == ""


def test_data_of_other_images_is_refused_or_told(
    opened: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="other class counts than the run was trained with"):
        opened(class_counts_sha256="x")
    for name, what, has in (
        ("image_shape", "of height, width and channels", "[8, 8, 3]"),
        ("image_mean", "normalised by a mean of", "[0.5, 0.4, 0.5]"),
        ("image_std", "normalised by a deviation of", "[0.25, 0.3, 0.25]"),
    ):
        with pytest.raises(RunError) as refused:
            opened(**{name: [1, 2]})
        assert f"was trained on images {what} [1, 2], and this data has {has}: " in str(
            refused.value
        )
        opened(**{name: ...})  # of before it was written down
    rows = parts.rows_of(DATA)
    opened(rows_sha256=...)
    assert capsys.readouterr().out == ""
    for other, which in (
        ({"train": "x"}, "train"),
        ({"train": "x", "test": "y"}, "train and test"),
    ):
        opened(rows_sha256={**rows, **other})
        assert capsys.readouterr().out == f"note: the {which} images are others than the run's\n"
    opened(source="elsewhere")
    assert capsys.readouterr().out == (
        f"note: this data is: {DATA.source}\nthe run's was: elsewhere\n"
    )


def test_a_state_and_a_note_are_of_one_step(opened: Any) -> None:
    """Five steps an epoch: inside one there may be as many calls as there are steps."""
    run, _ = opened()

    def said(step: int, **note: int) -> Any:
        return run.contradiction(types.SimpleNamespace(step=step), vars(Note(**note)))

    for step, epoch in ((0, 0), (5, 1), (15, 3)):
        assert said(step, epoch=epoch) is None
        for other in (step - 1, step + 1, step + 5):
            assert said(other, epoch=epoch) == (
                f"its note is of epoch {epoch}, but its state of step {other}"
            )
        assert [said(step + k, epoch=epoch, calls=1) is None for k in (-1, 0, 3, 5, 6)] == [
            False, True, True, True, False
        ]  # fmt: skip


@pytest.mark.parametrize(("calls", "at"), [(0, "after epoch 2"), (3, "in epoch 3, at step 13")])
@pytest.mark.parametrize("ensemble", [None, False, True])
def test_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], calls: int, at: str,
    ensemble: bool | None,
) -> None:  # fmt: skip
    """A line for each way of looking at the test images."""
    closed, checked = [], []
    state = types.SimpleNamespace(step=np.int32(10 + calls))

    class Evaluator:
        def put_state(self, given: Any) -> Any:
            return "placed", given

        def hits(self, given: Any, part: str, stop: Any, **way: bool) -> Any:
            assert given == ("placed", state) and part == "test"
            return way

        def accuracies(self, way: Any) -> dict[str, float | None]:
            which = {(): 10.0, ("flip",): 20.0, ("crops",): 30.0}[tuple(k for k in way if way[k])]
            return {"many": which, "medium": None, "few": which + 1.256, "all": which + 2}

    def restore(like: Any, check: Any) -> Any:
        checked.append((like, check))
        return state, vars(Note(epoch=2, calls=calls))

    held = types.SimpleNamespace(restore=restore, close=lambda: closed.append(True))
    made = types.SimpleNamespace(initial="initial", evaluator=Evaluator())
    config = {} if ensemble is None else {"ensemble": ensemble}
    run = evaluate.Opened(config, None, made, held, "contradiction")
    monkeypatch.setattr(evaluate, "open_run", lambda path, args: run)
    monkeypatch.setenv("COLUMNS", "80")
    evaluate.main(args_of())
    assert closed == [True] and checked == [("initial", "contradiction")]
    title, *lines = (line.strip() for line in capsys.readouterr().out.splitlines() if line.strip())
    assert title == f"run {at}: accuracy (%)"
    words = [line.split() for line in lines if set(line) - {"─"}]
    assert words == [
        ["test", "set", "many", "medium", "few", "all"],
        ["as", "it", "is", "10.00", "-", "11.26", "12.00"],
        ["flip-averaged", "20.00", "-", "21.26", "22.00"],
        *[["five", "crops", "averaged", "30.00", "-", "31.26", "32.00"]] * bool(ensemble),
    ]
    ends = {len(line.rstrip()) for line in lines if set(line) - {"─"}}
    assert len(ends) == 1, "numbers are not right-aligned"
