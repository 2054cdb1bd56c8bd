"""Files that people give, damaged in every way we know: one sentence that names the file.

Generated: each field of each kind of file with each of a list of bad values, through the `main` of
an entry that reads it. A new field of `Dataset` is covered without a word here.
"""

import argparse
import dataclasses
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import cifar_lt
from experiments.anomaly import command as anomaly
from experiments.data import DataError, Dataset, load_npz, save_npz
from experiments.host import cli
from tiny import tiny_dataset

# What none of the fields can hold, but those named beside it.
BAD: dict[str, tuple[Any, set[str]]] = {
    "NaN": (np.nan, set()),
    "infinite": (np.inf, set()),
    "a vector of NaN": (np.full(3, np.nan), set()),
    "negative": (-1, set()),
    "a negative real": (-0.5, set()),
    "a vector below 0": (np.full(3, -1.0), set()),
    "not whole": (10.7, {"imbalance_factor"}),
    "a whole number of another type": (10.0, {"imbalance_factor"}),
    "beyond int64": (np.uint64(2**63), set()),
    "true": (True, set()),
    "complex": (1j, set()),
    "a vector": (np.arange(3), set()),
    "nothing": (np.zeros(0), set()),
    "without classes": (np.zeros(0, "<U3"), set()),
    "a cube": (np.zeros((2, 2, 2)), set()),
    "whole images of no pixel": (np.zeros((78, 0, 8, 3), np.uint8), set()),
    "images as floats": (np.zeros((78, 8, 8, 3)), set()),
    "images of another size": (np.zeros((78, 9, 8, 3), np.uint8), {"train_images"}),
    "labels of another length": (np.zeros(4, np.int32), set()),
    "labels of another type": (np.zeros(78), set()),
    "labels out of range": (np.full(78, 5, np.int32), set()),
    "labels below 0": (np.full(55, -1, np.int32), set()),
    "text": ("x", {"name", "source"}),
    "no text": ("", {"name", "source"}),
    "text with a line end": ("a\nb", set()),
    "text with an escape": ("\x1b[2J", set()),
    "bytes": (b"x", set()),
    "one name for all": (np.array(["a"]), set()),
    "pickled": (np.array({"a": 1}, object), set()),
    "pickled numbers": (np.array([1, 2], object), set()),
    "a date": (np.datetime64("2020-01-01"), set()),
    "a record": (np.zeros(2, [("a", "i4"), ("b", "f4")]), set()),
    "big-endian": (np.zeros(78, ">i4"), set()),
}


def _message(entry: Callable[..., Any], args: argparse.Namespace, capsys: Any) -> str:
    """The one line that the entry ends with, on an exit with code 1."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(entry, args)
    shown = capsys.readouterr()
    assert stopped.value.code == 1, shown
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
    assert shown.err.rstrip("\n").isprintable() and len(shown.err) < 800, shown.err
    return str(shown.err)


@dataclasses.dataclass
class Kind:
    """One kind of .npz file: a good one's arrays, and how an entry is made to read `path`."""

    arrays: dict[str, Any]
    path: Path
    read: Callable[[], str]
    needed: tuple[str, ...]

    def write(self, **changes: Any) -> str:
        """What is said of a file with these changes; None takes a key away."""
        arrays = {k: v for k, v in {**self.arrays, **changes}.items() if v is not None}
        np.savez(self.path, **arrays)
        return self.read()


def _whole() -> dict[str, Any]:
    """Every field of a Dataset, as save_npz would write it."""
    data = tiny_dataset()
    every = dataclasses.replace(
        data, val_images=data.test_images, val_labels=data.test_labels, class_names=tuple("abcde"),
        imbalance_factor=13.0, subset="shuffled", subset_seed=1, shrink=2, val_per_class=11,
    )  # fmt: skip
    return {field.name: getattr(every, field.name) for field in dataclasses.fields(Dataset)}


@pytest.fixture(params=["dataset", "anomaly"])
def kind(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> Kind:
    out = tmp_path / "out"
    for name in (
        "command.launch.train",
        "anomaly.command.train",
    ):  # what is not refused is to fail at once
        monkeypatch.setattr(f"experiments.{name}", None)
    if request.param == "dataset":
        path = tmp_path / "data.npz"
        flags = ["--data", str(path), "--out", str(out), "--model", "mlp", "--rule", "sgd"]
        args = cifar_lt.parse(cifar_lt.arguments(), flags)
        entry: Any = cifar_lt.main
        arrays = _whole()
        fields = dataclasses.fields(Dataset)
        needed = tuple(f.name for f in fields if f.default is dataclasses.MISSING)
    else:
        path = tmp_path / "data" / "features.npz"
        path.parent.mkdir()
        args = anomaly.arguments().parse_args(["--data-dir", str(path.parent), "--out", str(out)])
        entry = anomaly.main
        draw = np.random.default_rng(0)
        arrays = {"X": draw.normal(size=(60, 3)), "y": (np.arange(60) % 3 == 0).astype(int)}
        needed = ("X", "y")

    def read() -> str:
        message = _message(entry, args, capsys)
        assert str(path) in message and not out.exists()
        return message

    return Kind(arrays, path, read, needed)


def test_the_good_files_are_good(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **_whole())
    assert load_npz(tmp_path / "a.npz").subset_seed == 1


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Dataset)])
@pytest.mark.parametrize("kind", ["dataset"], indirect=True)
def test_each_field_of_a_data_set(kind: Kind, field: str) -> None:
    for what, (value, allowed) in BAD.items():
        if field not in allowed:
            assert field in kind.write(**{field: np.asarray(value)}), what


@pytest.mark.parametrize("kind", ["dataset"], indirect=True)
def test_numbers_that_only_some_fields_can_hold(kind: Kind) -> None:
    for changes, said in (
        ({"num_classes": 10**9}, "num_classes is 1000000000, but there are only 78"),
        ({"num_classes": 1}, "num_classes must be 2 or more"),
        ({"num_classes": 4}, r"outside [0, 4)"),
        ({"num_classes": 6, "class_names": None}, "1 of 6 classes have no training image: 5."),
        ({"std": np.zeros(3)}, "std must lie in"),
        ({"std": np.full(3, 1e-40)}, "std must lie in"),
        ({"std": np.full(3, 58.0)}, "std must lie in"),
        ({"mean": np.full(3, 125.0)}, "mean must lie in [0, 1]"),
        ({"mean": np.zeros(1)}, "mean and std have lengths 1 and 3"),
        ({"many_above": 2, "few_below": 9}, "both many and few"),
        ({"imbalance_factor": 0.5}, "imbalance_factor must be in [1, 1e9]"),
        ({"subset": "last"}, "subset must be first or shuffled"),
        ({"shrink": 0}, "shrink must be in [1, 2**31)"),
        ({"subset_seed": 2**32}, "subset_seed must be in"),
        ({"val_images": None}, "val_images and val_labels must come together"),
        ({"val_images": None, "val_labels": None}, "val_per_class must be 0 without val_images"),
        ({"class_names": np.array(["a", "b\n", "c", "d", "e"])}, "class_names must be one line of"),
        ({"class_names": np.array([*"abcd", "\ud800"])}, "class_names"),
    ):
        assert said in kind.write(**changes), changes


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["dataset"], indirect=True)
def test_a_class_without_an_image(kind: Kind, split: str) -> None:
    labels = kind.arrays[f"{split}_labels"].copy()
    labels[labels == 3] = 1
    said = "training" if split == "train" else "test"
    message = kind.write(**{f"{split}_labels": labels})
    assert f"1 of 5 classes have no {said} image: 3 (d). Check the data\n" in message


def test_a_class_without_a_validation_image_is_told(tmp_path: Path, capsys: Any) -> None:
    arrays = _whole()
    labels = arrays["val_labels"].copy()
    labels[labels == 3] = 1
    np.savez(tmp_path / "a.npz", **{**arrays, "val_labels": labels})
    cifar_lt.read(str(tmp_path / "a.npz"))
    assert "1 of 5 classes have no validation image" in capsys.readouterr().err


FEATURES: dict[str, tuple[Any, str]] = {
    "NaN": (np.full((60, 3), np.nan), "X[0, 0] is nan"),
    "infinite": (np.full((60, 3), np.inf), "X[0, 0] is inf"),
    "beyond float32": (np.full((60, 3), 1e300), "X[0, 0] is inf in float32"),
    "a span beyond float32": (np.outer((-1.0) ** np.arange(60), [3e38] * 3), "X[:, 0] spans more"),
    "text": (np.full((60, 3), "x"), "X must be a matrix of real numbers"),
    "complex": (np.zeros((60, 3), complex), "X must be a matrix of real numbers"),
    "dates": (np.zeros((60, 3), "M8[s]"), "X must be a matrix of real numbers"),
    "a vector": (np.zeros(60), "X must be a matrix"),
    "a scalar": (np.float64(1), "X must be a matrix"),
    "no feature": (np.zeros((60, 0)), "X must be a matrix"),
    "no row": (np.zeros((0, 3)), "X must be a matrix"),
    "other rows": (np.zeros((59, 3)), "one label for each of the 59 rows"),
    "pickled": (np.full((60, 3), None), "X: Object arrays cannot be loaded"),
}
LABELS: dict[str, tuple[Any, str]] = {
    "other values": (np.arange(60), "y must be 0 (normal) or 1 (anomaly), but holds 2"),
    "negative": (-(np.arange(60) % 2), "y must be 0 (normal) or 1 (anomaly), but holds -1"),
    "NaN": (np.full(60, np.nan), "y must be 0 (normal) or 1 (anomaly), but holds nan"),
    "halves": (np.full(60, 0.5), "but holds 0.5"),
    "text": (np.full(60, "0"), "y must be 0 (normal)"),
    "complex": (np.zeros(60, complex), "y must be 0 (normal)"),
    "other length": (np.zeros(61, int), "y must hold one label"),
    "a column": (np.zeros((60, 1), int), "y must hold one label"),
    "a scalar": (np.int64(1), "y must hold one label"),
    "one class": (np.ones(60, int), "0 normal examples"),
    "no anomaly": (np.zeros(60, int), "0 anomalies"),
    "pickled": (np.full(60, None), "y: Object arrays cannot be loaded"),
}


@pytest.mark.parametrize("kind", ["anomaly"], indirect=True)
@pytest.mark.parametrize("field", ["X", "y"])
def test_each_field_of_features(kind: Kind, field: str) -> None:
    for what, (value, said) in {"X": FEATURES, "y": LABELS}[field].items():
        assert said in kind.write(**{field: value}), what


# ---- the file itself ------------------------------------------------------------------------


def test_keys_that_are_missing_unknown_or_there_twice(kind: Kind) -> None:
    for key in kind.needed:
        assert f" {key}" in kind.write(**{key: None})
    if "name" in kind.arrays:
        assert "unknown key colour" in kind.write(colour=np.zeros(3))
    key = kind.needed[-1]
    np.savez(kind.path, **kind.arrays)
    with zipfile.ZipFile(kind.path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{key}.npy", b"x")
    assert f"{key} more than once" in kind.read()


def test_no_regular_file(kind: Kind) -> None:
    for make, said in ((Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe")):
        make(kind.path)
        assert said in kind.read()
        (os.rmdir if kind.path.is_dir() else os.unlink)(kind.path)
    kind.path.symlink_to(kind.path.parent / "absent.npz")
    assert "does not exist" in kind.read()
    kind.path.unlink()
    kind.path.symlink_to(kind.path)
    assert "is unreadable: Too many levels of symbolic links" in kind.read()
    kind.path.unlink()
    kind.path.symlink_to("/dev/zero")
    assert "is a device" in kind.read()


def test_bytes_that_are_no_archive(kind: Kind) -> None:
    np.savez(kind.path, **kind.arrays)
    whole = kind.path.read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    cut = [whole[:size] for size in range(0, len(whole), len(whole) // 10)]
    for data in (*cut, b"\xff" * 99, b"hello", single.getvalue(), b"PK\x05\x06", whole[1000:]):
        kind.path.write_bytes(data)
        assert "is not an .npz file" in kind.read()


def _members(kind: Kind) -> Iterator[tuple[str, bytes]]:
    np.savez(kind.path, **kind.arrays)
    with zipfile.ZipFile(kind.path) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def test_a_bit_flipped_in_each_member(kind: Kind) -> None:
    """In its data: only the checksum tells, and NumPy does not look at it."""
    members = dict(_members(kind))
    whole = kind.path.read_bytes()
    for name in members:
        with zipfile.ZipFile(kind.path) as archive:
            info = archive.getinfo(name)
        length = info.compress_size
        start = info.header_offset + 30 + len(info.filename)
        start += int.from_bytes(whole[info.header_offset + 28 : info.header_offset + 30], "little")
        for at in (start + length - 1, start + length // 2, start):
            data = bytearray(whole)
            data[at] ^= 1
            kind.path.write_bytes(data)
            if name.removesuffix(".npy") in kind.arrays:
                assert f"{name.removesuffix('.npy')}: " in kind.read()
        kind.path.write_bytes(whole)


def test_an_entry_that_swallows_others(kind: Kind) -> None:
    """The list of members with another length of one's comment or extra field."""
    np.savez(kind.path, **kind.arrays)
    whole = kind.path.read_bytes()
    starts = [at for at in range(len(whole)) if whole[at : at + 4] == b"PK\x01\x02"]
    assert len(starts) == len(kind.arrays)
    for start, following in itertools.pairwise(starts):
        for field in (start + 30, start + 32):
            data = bytearray(whole)
            data[field] += following - start
            kind.path.write_bytes(data)
            assert "is not an .npz file" in kind.read()


def test_members_that_are_no_arrays(kind: Kind) -> None:
    """A header whose shape is absurd, or does not fit the bytes, with a right checksum."""
    members = dict(_members(kind))

    def header(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    for name in (f"{key}.npy" for key in kind.needed):
        good = members[name]
        for data in (
            b"", b"junk", good[:-1], good + b"\0", good[:20], b"\x93NUMPY\x09\x00" + good[8:],
            *(
                header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n")
                + b"\0" * 64
                for dtype, shape in (
                    ("<f8", (10**15,)), ("<f8", (-1,)), ("<f8", (2**32, 2**32)),
                    ("<i4", (2**62, 9)),
                    ("|u1", (10**10, 32, 32, 3)), ("<f8", "'a'"), ("|O", (8,)), ("wrong", (8,)),
                    ("<U1000000000", ()), ("<f8", (9,)), ("<f8", (7,)),
                )
            ),
            header("{'descr': '<f8'}"), header("[" * 400), header("__import__('os').abort()"),
        ):  # fmt: skip
            with zipfile.ZipFile(kind.path, "w") as archive:
                for other, content in members.items():
                    archive.writestr(other, data if other == name else content)
            assert f"{name.removesuffix('.npy')}: " in kind.read(), data[:120]


def test_more_than_the_memory(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.host.inputs._memory", lambda: 1000)
    assert "GiB of memory" in kind.write()


# ---- shrunk, exported, and read again -------------------------------------------------------


def test_an_export_is_not_shrunk_twice(tmp_path: Path, capsys: Any) -> None:
    whole = tmp_path / "whole.npz"
    save_npz(dataclasses.replace(tiny_dataset(), imbalance_factor=13.0, subset="first"), whole)
    small = tmp_path / "small.npz"
    parser = cifar_lt.arguments()

    def args(*flags: str) -> argparse.Namespace:
        return cifar_lt.parse(parser, [*flags, "--out", str(tmp_path / "run")])

    args_of_export = args("--data", str(whole), "--shrink", "2", "--val-per-class", "1")
    args_of_export.export, args_of_export.out = str(small), None
    cifar_lt.main(args_of_export)
    said = capsys.readouterr().out
    again = args("--data", str(small), "--shrink", "2")
    assert "every 2 x 2 pixels averaged already" in _message(cifar_lt.main, again, capsys)
    plain = args("--data", str(small))
    data = cifar_lt.load(plain)
    assert data.train_images.shape[1:] == (4, 4, 3)
    assert said == f"wrote {small}: 73 training images, {data.source}\n"
    assert cifar_lt.describe(plain, data) == {
        "shrink": 2, "requested_imbalance_factor": 13.0, "subset": "first", "subset_seed": None,
        "val_per_class": 1,
    }  # fmt: skip
    described = cifar_lt.make_plan(args("--data", str(small), "--eta", "10"), data).description
    assert (described["shrink"], described["val_per_class"]) == (2, 1)
    held = args("--data", str(small), "--val-per-class", "1")
    with pytest.raises(Exception, match="has a validation set of its own"):
        cifar_lt.load(held)


def test_an_export_that_cannot_be_written(tmp_path: Path, capsys: Any) -> None:
    save_npz(tiny_dataset(), tmp_path / "whole.npz")
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "a.npz"):
        flags = ["--data", str(tmp_path / "whole.npz"), "--export", str(target)]
        args = cifar_lt.parse(cifar_lt.arguments(), flags)
        assert f"cannot write {target}: " in _message(cifar_lt.main, args, capsys)


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_read(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_lt, "load", None)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    line = ["--data", "any.npz", "--export", str(tmp_path / "new" / "out.npz")]
    args = cifar_lt.parse(cifar_lt.arguments(), line)
    assert f"{tmp_path} may not be written" in _message(cifar_lt.main, args, capsys)


@pytest.mark.parametrize(
    ("there", "flags", "said"),
    [
        (Path.touch, [], "is there already: pass --overwrite, or choose another --export"),
        (lambda path: path.symlink_to("whole.npz"), [], "is the file of --data"),
        (lambda path: path.symlink_to("whole.npz"), ["--overwrite"], "is the file of --data"),
        (lambda path: path.hardlink_to(path.parent / "whole.npz"), ["--overwrite"], "of --data"),
        (lambda path: path.symlink_to("other.npz"), [], "is there already"),
        (lambda path: path.symlink_to("absent.npz"), [], "is there already"),
        (lambda path: None, ["--overwrite"], None),
        (Path.touch, ["--overwrite"], None),
    ],
)
def test_what_an_export_replaces(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, there: Any, flags: list[str],
    said: str | None,
) -> None:  # fmt: skip
    """Before anything is read; its own --data never."""
    whole, target = tmp_path / "whole.npz", tmp_path / "out.npz"
    save_npz(tiny_dataset(), whole)
    (tmp_path / "other.npz").write_text("precious")
    there(target)
    held = whole.read_bytes()
    line = ["--data", str(whole), "--export", str(target), "--val-per-class", "1", *flags]
    args = cifar_lt.parse(cifar_lt.arguments(), line)
    if said is None:
        cifar_lt.main(args)
        assert load_npz(target).val_per_class == 1
    else:
        before = os.readlink(target) if target.is_symlink() else target.read_bytes()
        monkeypatch.setattr(cifar_lt, "load", None)
        assert said in _message(cifar_lt.main, args, capsys)
        assert before == (os.readlink(target) if target.is_symlink() else target.read_bytes())
    assert whole.read_bytes() == held and (tmp_path / "other.npz").read_text() == "precious"


def test_a_file_is_not_exported_onto_itself(tmp_path: Path, capsys: Any) -> None:
    save_npz(tiny_dataset(), tmp_path / "own.npz")
    own = str(tmp_path / "own.npz")
    flags = ["--data", own, "--export", own, "--val-per-class", "1", "--overwrite"]
    args = cifar_lt.parse(cifar_lt.arguments(), flags)
    assert "is the file of --data: choose another one" in _message(cifar_lt.main, args, capsys)


@pytest.mark.parametrize(
    ("shrink_of_run", "shrink_of_file", "seen"),
    [(1, 1, 8), (2, 1, 4), (2, 2, 8), (1, 2, None), (4, 2, None)],
)
def test_evaluate_shrinks_what_the_run_shrank(
    tmp_path: Path, shrink_of_run: int, shrink_of_file: int, seen: int | None
) -> None:
    from experiments import evaluate
    from experiments.host.errors import RunError

    save_npz(dataclasses.replace(tiny_dataset(), shrink=shrink_of_file), tmp_path / "data.npz")
    config = {"val_per_class": 0, "experiment": "cifar_lt"}
    if shrink_of_run > 1:
        config["shrink"] = shrink_of_run
    args = evaluate.arguments().parse_args(["run", "--data", str(tmp_path / "data.npz")])
    if seen is None:
        with pytest.raises(RunError, match="give the file that it was trained from"):
            evaluate._load(args, config, Path("run"))
    else:
        data = evaluate._load(args, config, Path("run"))
        assert data.test_images.shape[1] == seen


def test_evaluate_does_not_guess_what_a_file_held() -> None:
    from experiments import evaluate
    from experiments.host.errors import RunError

    args = evaluate.arguments().parse_args(["run", "--data-dir", "absent"])
    config = {
        "val_per_class": 0, "experiment": "cifar_lt", "dataset": "cifar100", "subset": None,
        "requested_imbalance_factor": None, "imbalance_factor": 100.0,
    }  # fmt: skip
    with pytest.raises(RunError, match="give that file with --data"):
        evaluate._load(args, config, Path("run"))


@pytest.mark.parametrize(
    ("experiment", "flags", "unheeded"),
    [
        ("cifar_lt", ["--image-dir", "a", "--train-list", "b"], "--image-dir, --train-list"),
        ("cifar_lt", ["--max-corrupt", "0"], "--max-corrupt"),
        ("inaturalist", ["--data", "a"], "--data"),
    ],
)
def test_evaluate_heeds_its_flags(experiment: str, flags: list[str], unheeded: str) -> None:
    from experiments import evaluate
    from experiments.host.errors import RunError

    args = evaluate.arguments().parse_args(["run", *flags])
    config = {"val_per_class": 0, "experiment": experiment, "image_size": 8, "resize": 8}
    with pytest.raises(RunError, match=f"{experiment}: {unheeded} would go unheeded"):
        evaluate._load(args, config, Path("run"))


def test_a_preset_beside_a_file_shows_what_it_does(tmp_path: Path) -> None:
    from experiments.command import presets

    flags = ["--preset", "focal-sam-paper", "--data", "a.npz", "--out", "run"]
    said = presets.explain(cifar_lt.parse(cifar_lt.arguments(), flags))
    assert "  not --subset shuffled: a.npz decides that" in said and "\n  --subset" not in said
    assert "\n  --model resnet32" in said


def test_data_errors_have_one_class() -> None:
    from experiments.host import errors

    assert errors.DataError is DataError
