"""Long-tailed CIFAR by its flags: what is loaded, held out, described; nothing is trained."""

import dataclasses
import sys

import numpy as np
import pytest

from experiments import cifar_lt, sweep
from experiments.command import launch
from experiments.data import DataError, cifar, hold_out, load_npz, save_npz
from experiments.host.errors import RunError
from tiny import tiny_dataset


def parsed(*flags):
    return cifar_lt.parse(cifar_lt.arguments(), [*flags, "--out", "x"])


def test_what_is_cut_out_of_cifar(monkeypatch):
    """As the flags say; a class without an image can nobody ask to be allowed."""
    asked, data = [], tiny_dataset()
    monkeypatch.setattr(
        cifar, "load_cifar_lt", lambda *given, **more: asked.append((given, more)) or data
    )
    flags = ["--dataset", "cifar10", "--imbalance-factor", "50", "--data-dir", "d"]
    found = cifar_lt.load(parsed(*flags, "--subset", "shuffled", "--subset-seed", "7"))
    named = {"imbalance_factor": 50.0, "data_dir": "d", "subset": "shuffled", "subset_seed": 7}
    assert asked == [(("cifar10",), named)] and found.train_images.shape == data.train_images.shape
    smaller = cifar_lt.load(parsed(*flags, "--shrink", "2", "--val-per-class", "1"))
    assert smaller.train_images.shape == (73, 4, 4, 3) and smaller.val_per_class == 1
    labels = np.where(data.test_labels == 3, 1, data.test_labels)
    data = dataclasses.replace(data, test_labels=labels)
    with pytest.raises(DataError, match=r"1 of 5 classes have no test image: 3. Check the data"):
        cifar_lt.load(parsed(*flags))


def test_every_seed_holds_the_same_images_out():
    """Drawn with seed 0: seeds of a run are compared on the same ones."""
    data = tiny_dataset()
    assert cifar_lt.finished(data, 1, 0) is data
    found, wanted = cifar_lt.finished(data, 1, 2), hold_out(data, 2, seed=0)
    np.testing.assert_array_equal(found.val_images, wanted.val_images)
    np.testing.assert_array_equal(found.train_labels, wanted.train_labels)
    with pytest.raises(RunError, match="tiny has a validation set of its own: leave --val-per"):
        cifar_lt.finished(found, 1, 2)
    assert cifar_lt.finished(found, 1, 0) is found


@pytest.mark.parametrize("shrink", [1, 2, 3])
def test_how_the_data_was_made_is_told(shrink):
    """A run begun before there was a flag to shrink, and one without, are the same."""
    data = dataclasses.replace(
        hold_out(tiny_dataset(), 3, seed=0), shrink=shrink, subset="first"
    )  # fmt: skip
    assert cifar_lt.describe(parsed(), data) == {
        **({} if shrink == 1 else {"shrink": shrink}), "requested_imbalance_factor": None,
        "subset": "first", "subset_seed": None, "val_per_class": 3,
    }  # fmt: skip


def test_images_that_are_trained_on_are_told(tmp_path, capsys):
    """And classes that no validation image is of; of each part its own."""
    data, path = tiny_dataset(), tmp_path / "x.npz"
    again = np.concatenate([data.test_images[:-2], data.train_images[:2]])
    for changes, said in (
        ({}, ""),
        ({"test_images": again}, "2 of 55 test images are among the training images"),
        ({"val_images": again, "val_labels": data.test_labels},
         "2 of 55 val images are among the training images"),
        ({"val_images": data.test_images[:11], "val_labels": data.test_labels[:11]},
         "4 of 5 classes have no validation image and do not count in validation accuracies: 1, 2"),
    ):  # fmt: skip
        changes = {**changes, **({"val_per_class": 1} if "val_images" in changes else {})}
        save_npz(dataclasses.replace(data, **changes), path)
        cifar_lt.read(str(path))
        err = capsys.readouterr().err
        assert err.count("\n") == bool(said)
        assert err.startswith(f"note: {path}: {said}" if said else "")
    labels = np.where(data.train_labels == 4, 1, data.train_labels)
    save_npz(dataclasses.replace(data, train_labels=labels), path)
    with pytest.raises(DataError, match=r"x\.npz: tiny: 1 of 5 classes have no training image: 4"):
        cifar_lt.read(str(path))


def test_a_run_goes_from_its_flags_to_a_table(monkeypatch, tmp_path, capsys):
    """An export does not begin a run."""
    done, data = [], tiny_dataset()
    for name in ("begin", "run"):
        monkeypatch.setattr(launch, name, lambda *given, name=name: done.append((name, *given)))
    save_npz(data, tmp_path / "x.npz")
    args = parsed("--data", str(tmp_path / "x.npz"), "--val-per-class", "1")
    cifar_lt.main(args)
    (begun, same), (run, also, seen, described) = done
    assert (begun, run) == ("begin", "run") and same is also is args
    assert len(seen.val_labels) == 5 and described == cifar_lt.describe(args, seen)
    args.export, args.out = str(tmp_path / "y.npz"), None
    cifar_lt.main(args)
    assert len(done) == 2 and load_npz(tmp_path / "y.npz").val_per_class == 1
    assert capsys.readouterr().out.startswith(f"wrote {args.export}: 73 training images, made by")
    with pytest.raises(RunError, match="is there already"):
        cifar_lt.main(args)


def test_a_file_may_be_exported_beside_others(tmp_path):
    """Into folders that are not there yet, over what is only a folder's name above."""
    cifar_lt.check_export(tmp_path / "new" / "x.npz", None, overwrite=False)
    cifar_lt.check_export(tmp_path / "x.npz", "absent.npz", overwrite=False)
    (tmp_path / "x.npz").touch()
    (tmp_path / "data.npz").touch()
    data = str(tmp_path / "data.npz")
    cifar_lt.check_export(tmp_path / "x.npz", data, overwrite=True)
    cifar_lt.check_export(tmp_path / "z.npz", data, overwrite=False)
    for path, given, overwrite, said in (
        ("x.npz", data, False, "x.npz is there already: pass --overwrite"),
        ("data.npz", data, True, "data.npz is the file of --data: choose another one"),
        (".", None, True, "it is a folder"), ("x.npz/y.npz", None, False, "Not a directory"),
    ):  # fmt: skip
        with pytest.raises(RunError, match=said):
            cifar_lt.check_export(tmp_path / path, given, overwrite)


def test_flags_that_a_file_has_settled_are_refused(capsys, monkeypatch):
    """However they were typed; a preset's are not."""
    for flag in ("--dataset cifar10", "--imbalance-factor 10", "--subset first", "--data-dir d"):
        assert parsed(*flag.split())  # without a file they are heeded
        with pytest.raises(SystemExit):
            parsed("--data", "x.npz", *flag.split())
        assert f"{flag.split()[0]} beside --data, whose file was" in capsys.readouterr().err
    assert parsed("--data", "x.npz", "--preset", "saddle").subset == "shuffled"
    monkeypatch.setattr(sys, "argv", ["--data", "--subset", "first", "--data", "x.npz"])
    with pytest.raises(SystemExit):
        cifar_lt.parse(cifar_lt.arguments())
    assert "--subset beside --data" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["--subset", "--data", "x.npz", "--out", "y"])
    assert cifar_lt.parse(cifar_lt.arguments()).data == "x.npz"


def test_one_device_trains_where_nobody_said_and_seeds_as_is_faster():
    args = parsed()
    assert (args.devices_by_default, args.together) == (1, None)


# ---- the grids of a sweep ------------------------------------------------------------------------


def test_the_grids_of_a_sweep_are_those_of_the_papers_figure():
    """Few, half of Medium and all of it in the tail, by the bounds of each set's groups."""
    digits, images = sweep.GRIDS["digits"], sweep.GRIDS["cifar_lt"]
    assert digits == {"eta": [8, 20, 40], "rho": [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]}
    assert images == {"eta": [20, 60, 100], "rho": [0.01, 0.05, 0.1]}


def test_a_sweep_is_asked_for_by_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["digits", "cifar_lt", "--out", "x"])
    assert sweep.parse().experiment == "cifar_lt"
    monkeypatch.setattr(sys, "argv", ["cifar_lt", "--out", "x", "--num-seeds", "3"])
    assert (sweep.parse().experiment, sweep.parse().num_seeds) == ("digits", 3)
    with pytest.raises(SystemExit):
        sweep.parse([])
