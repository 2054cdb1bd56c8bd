"""Encoded data sets: TFDS records and their label cache, list files, folders."""

import io
import itertools
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_records
from damage import damaged_json
from experiments.data import DataError
from experiments.data.encoded import (
    EncodedDataset,
    check_no_empty_class,
)
from experiments.data.image_sets import load_imagenet_lt, load_inaturalist
from experiments.data.lists import folder_split, read_list, select
from experiments.data.records import TfdsSplit, _in_order

# --- TFDS ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imbsam_jax" / "labels"


@pytest.fixture(scope="module")
def inaturalist(tmp_path_factory: pytest.TempPathFactory) -> tiny_records.Tiny:
    return tiny_records.make(tmp_path_factory.mktemp("tfds"), corrupt=2)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny_records.Tiny]:
    folder = tmp_path_factory.mktemp("tfds")
    names = ("imagenet_lt", "imagenet2012", "places365_small")
    return {name: tiny_records.make(folder, name) for name in names}


def _seen_class(data: bytes, num_classes: int = 8) -> int:
    from PIL import Image

    return tiny_records.nearest_class(np.asarray(Image.open(io.BytesIO(data))), num_classes)


def test_inaturalist(inaturalist: tiny_records.Tiny) -> None:
    data = load_inaturalist(str(inaturalist.folder), size=16, resize=20)
    assert (
        data.class_counts().tolist() == inaturalist.counts.tolist() and inaturalist.counts[-1] == 2
    )
    assert (data.name, data.num_classes, data.val) == ("i_naturalist2018", 8, None)
    assert data.mean == (0.466, 0.471, 0.380) and data.std == (0.195, 0.194, 0.192)
    assert (data.many_above, data.few_below, data.size, data.resize) == (100, 20, 16, 20)
    assert data.class_names is not None and data.class_names[3] == "species 3"
    assert "i_naturalist2018/1.0.0, tested on its validation split" in data.source
    rows = [5, 0, 11, 5]
    for split in (data.train, pickle.loads(pickle.dumps(data.test))):
        files = split.read(rows)
        good = [f for f in files if len(f) > 0 and f.endswith(b"\xff\xd9")]
        assert len(good) >= 2 and files[0] == files[3]
        for row, file in zip(rows, files, strict=True):
            if file in good:
                assert _seen_class(file) == split.labels[row]


def test_rows_read_like_tfds(inaturalist: tiny_records.Tiny) -> None:
    import tensorflow_datasets as tfds

    data = load_inaturalist(str(inaturalist.folder))
    source = tfds.builder("i_naturalist2018", data_dir=str(inaturalist.folder)).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert data.train_labels.tolist() == [record["label"] for record in source]
    assert data.train.read(range(len(source))) == [record["image"] for record in source]
    by_name = [inaturalist.labels["train"][record["id"].decode()] for record in source]
    assert data.train_labels.tolist() == by_name


def test_labels_are_scanned_once(
    inaturalist: tiny_records.Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.data import records

    scans = []
    scan = records._scan

    def counted(builder: Any, split: str, path: Path) -> Any:
        scans.append(split)
        return scan(builder, split, path)

    monkeypatch.setattr(records, "_scan", counted)
    first = load_inaturalist(str(inaturalist.folder))
    assert scans == ["train", "validation"]
    again = load_inaturalist(str(inaturalist.folder))
    assert len(scans) == 2 and np.array_equal(first.train_labels, again.train_labels)
    kept = sorted(cache.iterdir())
    assert [path.name[:27] for path in kept] == [
        "i_naturalist2018-1.0.0-trai",
        "i_naturalist2018-1.0.0-vali",
    ]
    damages = [b"", b"junk", kept[0].read_bytes()[:300], kept[1].read_bytes()]
    for number, damage in enumerate(damages, start=1):
        kept[0].write_bytes(damage)
        labels = load_inaturalist(str(inaturalist.folder)).train_labels
        assert len(scans) == 2 + number and np.array_equal(labels, first.train_labels)
    shard = next((inaturalist.folder / "i_naturalist2018/1.0.0").glob("*-train.*"))
    os.utime(shard, (1, 1))
    load_inaturalist(str(inaturalist.folder))
    assert len(scans) == 7 and len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written(
    inaturalist: tiny_records.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_inaturalist(str(inaturalist.folder)).num_classes == 8


def test_a_long_scan_says_so(
    inaturalist: tiny_records.Tiny, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    right = load_inaturalist(str(inaturalist.folder)).train_labels
    assert capfd.readouterr() == ("", "")
    # Of 63 records, and not of the 16 of the other split; read ten by ten.
    monkeypatch.setattr("experiments.data.records._LONG_SCAN", 63)
    monkeypatch.setattr("experiments.data.records._CHUNK", 10)
    for terminal in (False, True):
        home = os.environ["XDG_CACHE_HOME"] + "2"
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        labels = load_inaturalist(str(inaturalist.folder)).train_labels
        np.testing.assert_array_equal(labels, right)
        out, err = capfd.readouterr()
        said = (
            "Reading the labels of i_naturalist2018/1.0.0 train once, 63 records; they are kept in "
            f"{home}/imbsam_jax/labels\n"
        )
        assert err.startswith(said) and out == ""
        if terminal:  # a bar that is full at last, and gone then
            assert "100%" in err and err.endswith("\x1b[2K")
        else:
            assert err.strip() == said.strip()


def test_the_cache_is_at_home_where_nothing_is_said(
    inaturalist: tiny_records.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    load_inaturalist(str(inaturalist.folder))
    cache = tmp_path / ".cache" / "imbsam_jax" / "labels"
    kept = sorted(cache.iterdir())
    assert len(kept) == 2 and {path.suffix for path in kept} == {".npz"}
    kept[0].unlink()
    kept[0].mkdir()  # what cannot be replaced leaves nothing beside it
    load_inaturalist(str(inaturalist.folder))
    assert sorted(cache.iterdir()) == kept


def test_what_has_not_begun_is_given_up_at_the_first_error() -> None:
    began, failed = [], threading.Event()

    def work(item: int) -> int:
        began.append(item)
        if item == 1:
            raise ValueError("no record")
        if item == 2:  # begun before the error is seen
            failed.wait(10)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = _in_order(pool, work, range(6))
        assert next(results) == 0
        threading.Timer(0.2, failed.set).start()
        with pytest.raises(ValueError, match="no record"):
            next(results)
    assert began in ([0, 1], [0, 1, 2])


@pytest.mark.parametrize("missing", ["label", "file_name"])
def test_an_empty_record_among_others_is_damage(
    imagenet: dict[str, tiny_records.Tiny], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some truncated shards array_record reads such."""
    import tensorflow_datasets as tfds

    read, count = tfds.features.FeaturesDict.deserialize_example_np, itertools.count()

    def emptied(features: Any, raw: Any) -> Any:
        found = read(features, raw)
        return {**found, missing: None} if next(count) == 5 else found

    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", emptied)
    folder = imagenet["imagenet2012"].folder / "imagenet2012/5.1.0"
    with pytest.raises(DataError, match=r"the train split in .*/5.1.0 holds empty records"):
        TfdsSplit(folder, "train")


def test_workers_are_not_sent_names(imagenet: dict[str, tiny_records.Tiny]) -> None:
    split = TfdsSplit(imagenet["imagenet_lt"].folder / "imagenet_lt/1.0.0", "train")
    assert split.names is not None and split.names.dtype.kind == "S"
    split.read([0])
    assert split.name(3) == f"record 3 of train ({split.names[3].decode()})"
    copy = pickle.loads(pickle.dumps(split))
    assert copy.name(3) == "record 3 of train"
    assert copy.names is None and copy.read([3, 4]) == split.read([3, 4])


def test_imagenet_lt_of_tfds(imagenet: dict[str, tiny_records.Tiny]) -> None:
    tiny = imagenet["imagenet_lt"]
    data = load_imagenet_lt(data_dir=str(tiny.folder))
    assert data.class_counts().tolist() == tiny.counts.tolist()
    assert data.source == "TensorFlow Datasets imagenet_lt/1.0.0" and data.size + data.resize == 480
    smaller = load_imagenet_lt(data_dir=str(tiny.folder), size=16, resize=20)
    assert (smaller.size, smaller.resize) == (16, 20)
    assert data.val_labels is not None and len(data.val_labels) == len(data.test_labels) == 16
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
    assert (data.name, data.num_classes) == ("imagenet_lt", 8)
    with pytest.raises(DataError, match="imagenet_lt is chosen already"):
        load_imagenet_lt(data_dir=str(tiny.folder), train_list="list.txt")


def _write_list(path: Path, lines: dict[str, int]) -> Path:
    path.write_text("".join(f"{name} {label}\n" for name, label in lines.items()))
    return path


def _lists(folder: Path, tiny: tiny_records.Tiny, prefix: Any, relabel: int = 0) -> dict[str, Any]:
    """Every third training image, the ones after them for validation, and all test images."""
    train = list(tiny.labels["train"].items())
    parts = {
        "train_list": dict([*train[::3], train[-1]]),
        "val_list": dict(train[1::3]),
        "test_list": tiny.labels["validation"],
    }
    return {
        key: _write_list(
            folder / f"{key}.txt",
            {prefix(name): (label + relabel) % 8 for name, label in part.items()},
        )
        for key, part in parts.items()
    }


@pytest.mark.parametrize("dataset", ["imagenet2012", "places365_small"])
@pytest.mark.parametrize("relabel", [0, 1])
def test_lists_choose_by_file_name(
    imagenet: dict[str, tiny_records.Tiny], tmp_path: Path, dataset: str, relabel: int
) -> None:
    tiny = imagenet[dataset]
    # In the lists ImageNet's names stand below folders; in the records there is the base name.
    places = dataset == "places365_small"
    lists = _lists(tmp_path, tiny, (lambda n: n) if places else (lambda n: f"x/y/{n}"), relabel)
    data = load_imagenet_lt(dataset, str(tiny.folder), **lists)
    assert data.name == ("places_lt" if places else "imagenet_lt")
    assert (data.class_names is None) == (relabel == 1)
    for split, path in (
        (data.train, "train_list"),
        (data.val, "val_list"),
        (data.test, "test_list"),
    ):
        assert split is not None
        names, labels = read_list(lists[path])
        assert split.labels.tolist() == labels.tolist()
        for file, label in zip(split.read(range(len(names))), labels, strict=True):
            assert (_seen_class(file) + relabel) % 8 == label
    without = load_imagenet_lt(
        dataset,
        str(tiny.folder),
        train_list=lists["train_list"],
        test_list=lists["test_list"],
    )
    assert without.val is None
    # Where one list alone numbers the classes otherwise, they have no names.
    numbered = zip(*read_list(lists["test_list"]), strict=True)
    other = _write_list(tmp_path / "o.txt", {name: (label + 1) % 8 for name, label in numbered})
    only = load_imagenet_lt(
        dataset, str(tiny.folder), train_list=lists["train_list"], test_list=other
    )
    assert only.class_names is None
    shared = r"the train and the val list share \d+ images \((.+)\): nothing may"
    with pytest.raises(DataError, match=shared) as refused:
        load_imagenet_lt(dataset, str(tiny.folder), **{**lists, "val_list": lists["train_list"]})
    found = re.search(shared, str(refused.value))
    listed, _ = read_list(lists["train_list"])
    assert found and any(name.endswith(found[1]) for name in listed)


def test_missing_and_ambiguous_names(
    imagenet: dict[str, tiny_records.Tiny], tmp_path: Path
) -> None:
    folder = imagenet["imagenet2012"].folder
    split = TfdsSplit(folder / "imagenet2012/5.1.0", "train")
    path = tmp_path / "list.txt"
    _write_list(path, {f"train/absent_{i}.JPEG": 0 for i in range(4)} | {"n10000000_0.JPEG": 0})
    expected = (
        r"lists 4 files \(train/absent_0.JPEG, train/absent_1.JPEG and 2 more\) that the train "
        "split in .* lacks; its names are like n1"
    )
    with pytest.raises(DataError, match=expected):
        select(split, path)
    _write_list(path, {"a/n10000000_0.JPEG": 0, "b/n10000000_0.JPEG": 0})
    with pytest.raises(DataError, match=r"2 files \(a/n.*, b/n.*\) that mean the same records"):
        select(split, path)
    places = TfdsSplit(folder / "places365_small/2.1.0", "train")
    _write_list(path, {"class0/00000001.jpg": 0})
    with pytest.raises(DataError, match=r"1 file \(class0/00000001.jpg\) that the train"):
        select(pickle_with_names(places, [b"a/x/1.jpg", b"b/x/1.jpg"]), path)
    with pytest.raises(DataError, match=r"has 1 file \(a/x/1.jpg\) more than once"):
        select(pickle_with_names(places, [b"a/x/1.jpg", b"a/x/1.jpg"]), path)
    with pytest.raises(DataError, match=r"no file names for .*list.txt to choose by"):
        select(pickle.loads(pickle.dumps(places)), path)


def pickle_with_names(split: TfdsSplit, names: list[bytes]) -> TfdsSplit:
    copy = pickle.loads(pickle.dumps(split))
    copy.names = np.array(names)
    return copy


def test_bad_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for text, message in (
        ("a.jpg 0\n\nb.jpg x\n", "line 3: expected a path and a label, not 'b.jpg x'"),
        ("a.jpg -1\n", "line 1: expected"),
        ("7\n", "line 1: expected"),
        ("a.jpg 0\nb.jpg 1\na.jpg 0\n", "line 3: a.jpg stands in line 1 already"),
        ("\n", "is empty"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_list(path)
    with pytest.raises(DataError, match=r"absent.txt does not exist"):
        read_list(tmp_path / "absent.txt")
    path.write_text("with a space.jpg   4\r\n")
    assert read_list(path)[0] == ["with a space.jpg"] and read_list(path)[1].tolist() == [4]


# What a list may not hold, and what is said of it; b.jpg and c/d.jpg are there.
LISTS: dict[str, tuple[bytes, str]] = {
    "above the folder": (b"b.jpg 0\n../x.jpg 0\n", "line 2: ../x.jpg leads out of the folder"),
    "above it further on": (b"c/../../x.jpg 0\n", "line 1: c/../../x.jpg leads out of the folder"),
    "an absolute path": (b"b.jpg 0\n/etc/passwd 1", "line 2: /etc/passwd leads out of the folder"),
    "two slashes": (b"//etc/passwd 1", "line 1: //etc/passwd leads out of the folder"),
    "another system's": (b"..\\x.jpg 1", "leads out of the folder"),
    "the folder": (b". 1", "line 1: . leads out of the folder"),
    "twice": (b"b.jpg 0\nb.jpg 0\n", "line 2: b.jpg stands in line 1 already"),
    "twice by a dot": (b"b.jpg 0\n./b.jpg 0\n", "line 2: ./b.jpg stands in line 1 already"),
    "twice by a slash": (b"c/d.jpg 0\nc//d.jpg 1", "line 2: c//d.jpg stands in line 1 already"),
    "twice through a folder": (b"b.jpg 0\nc/../b.jpg 1", "line 2: c/../b.jpg stands in line 1"),
    "a label too high": (b"b.jpg 0\nc/d.jpg 100000000\n", "line 2: label 100000000 with 2 images"),
    "a label beyond int32": (b"b.jpg 99999999999\n", "line 1: expected a path and a label"),
    "a label below 0": (b"b.jpg -1\n", "line 1: expected a path and a label"),
    "half a label": (b"b.jpg 1.5\n", "line 1: expected a path and a label"),
    "no label": (b"b.jpg\n", "line 1: expected a path and a label"),
    "a label with a sign": (b"b.jpg +1\n", "line 1: expected a path and a label"),
    "digits of another script": ("b.jpg ٣\n".encode(), "line 1: expected a path and a label"),
    "NaN": (b"b.jpg nan\n", "line 1: expected a path and a label"),
    "a comment": (b"# of 5\nb.jpg 1\n", "line 1: expected a path and a label"),
    "commas": (b"b.jpg,1\n", "line 1: expected a path and a label"),
    "three columns": (b"b.jpg\t1\t2\n", "line 1: 'b.jpg\\t1' has characters that are in no path"),
    "NUL": (b"b\0.jpg 1\n", "line 1: 'b\\x00.jpg' has characters"),
    "an escape": (b"\x1b[2Jb.jpg 1\n", "line 1: '\\x1b[2Jb.jpg' has characters"),
    "two byte-order marks": (b"\xef\xbb\xbf" * 2 + b"b.jpg 1", "line 1: '\\ufeffb.jpg' has"),
    "UTF-16": ("b.jpg 1\n".encode("utf-16"), "line 1: is not UTF-8"),
    "Latin-1": ("b.jpg 1\nä.jpg 1\n".encode("latin-1"), "line 2: is not UTF-8"),
    "nothing": (b"", "is empty"),
    "nothing but lines": (b"\n \n\t\r\n\xef\xbb\xbf", "characters|is empty|expected"),
    "a pipe": (b"b.jpg 0\npipe.jpg 0\n", "line 2: lists 1 file (pipe.jpg) that are not below"),
    "a folder": (b"b.jpg 0\nc 0\n", "line 2: lists 1 file (c) that are not below"),
    "a device": (b"zero.jpg 0\n", "line 1: lists 1 file (zero.jpg) that are not below"),
    "a broken link": (b"broken.jpg 0\n", "line 1: lists 1 file (broken.jpg) that are not below"),
    "a file that is not there": (b"b.jpg 0\n\nx.jpg 0", "line 3: lists 1 file (x.jpg) that are"),
    "a file as a folder": (b"b.jpg/x 0", "line 1: lists 1 file (b.jpg/x) that are not below"),
    "a name too long": (b"a" * 300 + b" 0", "line 1: lists 1 file (aaa"),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "c").mkdir(parents=True)
    for name in ("b.jpg", "c/d.jpg", "with  two spaces.jpg", "ä.jpg", "../x.jpg"):
        (folder / name).write_bytes(name.encode())
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "broken.jpg").symlink_to("absent")
    return folder


@pytest.mark.parametrize("what", LISTS)
@pytest.mark.parametrize("which", ["train", "test"])
def test_what_a_list_may_not_hold(
    images: Path, tmp_path: Path, what: str, which: str, capsys: Any
) -> None:
    """Through the entry, in the list of either split."""
    from experiments import inaturalist
    from experiments.host import cli

    content, said = LISTS[what]
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    for path in lists.values():
        path.write_bytes(b"b.jpg 0\nc/d.jpg 1\n")
    lists[which].write_bytes(content)
    flags = ["--image-dir", images, "--train-list", lists["train"], "--test-list", lists["test"]]
    flags += ["--out", tmp_path / "run", "--devices", "1"]
    args = inaturalist.arguments().parse_args(list(map(str, flags)))
    with pytest.raises(SystemExit) as stopped:
        cli.run(inaturalist.main, args)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert error.rstrip("\n").isprintable() and str(lists[which]) in error
    if which == "test":
        said = said.replace("with 2 images", "with 2 classes")
    assert any(part in error for part in said.split("|"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xef\xbb\xbfb.jpg 1\r\nc/d.jpg 0\r\n", ["b.jpg", "c/d.jpg"]),
        (b"./b.jpg\t1\n  c//d.jpg   0   \n\n", ["b.jpg", "c/d.jpg"]),
        (b"b.jpg 1\r\nc\\d.jpg 0\r\n", ["b.jpg", "c/d.jpg"]),
        ("with  two spaces.jpg 0\rä.jpg 1".encode(), ["with  two spaces.jpg", "ä.jpg"]),
    ],
)
def test_what_a_list_may_hold(
    images: Path, tmp_path: Path, content: bytes, names: list[str]
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    split = folder_split(images, path)
    assert split.read([0, 1]) == [name.encode() for name in names]
    assert sorted(split.labels.tolist()) == [0, 1]


def test_a_list_that_is_a_pipe(images: Path, tmp_path: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / "list.txt")
        with pytest.raises(DataError, match=r"list.txt is a (pipe|folder), not a file to read"):
            folder_split(images, tmp_path / "list.txt")
        (os.unlink if make is os.mkfifo else os.rmdir)(tmp_path / "list.txt")


def test_a_file_that_became_a_pipe(images: Path, tmp_path: Path) -> None:
    split = folder_split(images, _write_list(tmp_path / "list.txt", {"b.jpg": 0}))
    (images / "b.jpg").unlink()
    os.mkfifo(images / "b.jpg")
    with pytest.raises(DataError, match=r"b.jpg is a pipe, not a file to read"):
        split.read([0])


def test_arguments_that_contradict_each_other(
    imagenet: dict[str, tiny_records.Tiny], tmp_path: Path
) -> None:
    folder = str(imagenet["imagenet2012"].folder)
    with pytest.raises(ValueError, match="unknown data set 'imagenet'"):
        load_imagenet_lt("imagenet", folder)
    with pytest.raises(DataError, match="imagenet2012 is the whole set: give --train-list and"):
        load_imagenet_lt("imagenet2012", folder, train_list="x")
    with pytest.raises(DataError, match="give one"):
        load_imagenet_lt(data_dir=folder, image_dir=tmp_path)
    with pytest.raises(DataError, match="--image-dir needs --train-list and --test-list"):
        load_inaturalist(image_dir=tmp_path, train_list="x")
    with pytest.raises(DataError, match="lists choose among the images of --image-dir"):
        load_inaturalist(folder, train_list="x")


def test_folders_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
    for split, part in lines.items():
        for number in range(6):
            name = f"{split}/class {number % 3}/{number}.JPEG"
            part[name] = number % 3
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(tiny_records._jpeg(number % 3, (20, 30), rng))
    lists = {
        f"{split}_list": _write_list(tmp_path / f"{split}.txt", part)
        for split, part in lines.items()
    }
    data = load_imagenet_lt("places365_small", image_dir=tmp_path, **lists)
    assert (data.name, data.num_classes, data.mean[0]) == ("places_lt", 3, 0.485)
    assert data.val is not None and data.class_names is None
    for split in (data.train, data.val, pickle.loads(pickle.dumps(data.test))):
        seen = [_seen_class(file, 3) for file in split.read([4, 2, 3])]
        assert seen == split.labels[[4, 2, 3]].tolist() == [1, 2, 0]
    del lists["val_list"]
    species = load_inaturalist(image_dir=tmp_path, **lists)
    assert (species.name, species.mean[0], species.val) == ("i_naturalist2018", 0.466, None)
    (tmp_path / "test/class 1/1.JPEG").unlink()
    with pytest.raises(DataError, match=r"test/class 1/1.JPEG does not exist"):
        data.test.read([1])
    with pytest.raises(DataError, match=r"lists 1 file \(test/class 1/1.JPEG\) that are not below"):
        folder_split(tmp_path, lists["test_list"])
    with pytest.raises(DataError, match=r"elsewhere, of the images in .*: there is no such folder"):
        folder_split(tmp_path / "elsewhere", lists["train_list"])


def test_absent_data(tmp_path: Path) -> None:
    for load, name in ((load_inaturalist, "i_naturalist2018"), (load_imagenet_lt, "imagenet_lt")):
        with pytest.raises(DataError) as caught:
            load(data_dir=str(tmp_path))
        message = str(caught.value)
        assert f"{name} is not prepared in {tmp_path}/{name}/1.0.0 (from --data-dir)" in message
        assert f"tfds build {name} --file_format=array_record" in message and "\n" not in message


def _copy(tiny: tiny_records.Tiny, folder: Path, change: Any) -> str:
    copy = folder / "i_naturalist2018" / "1.0.0"
    copy.mkdir(parents=True)
    for file in (tiny.folder / "i_naturalist2018" / "1.0.0").iterdir():
        (copy / file.name).write_bytes(change(file.name, file.read_bytes()))
    return str(folder)


@pytest.mark.parametrize(
    ("kept", "message"), [(0.0, "is unreadable"), (0.5, "empty records|unreadable")]
)
def test_damaged_shard(
    inaturalist: tiny_records.Tiny, tmp_path: Path, kept: float, message: str
) -> None:
    def cut(name: str, content: bytes) -> bytes:
        return content[: int(kept * len(content))] if "-train." in name else content

    with pytest.raises(DataError, match=f"the train split in .* ({message})"):
        load_inaturalist(_copy(inaturalist, tmp_path, cut))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_records_of_something_else(
    inaturalist: tiny_records.Tiny, cache: Path, split: str, monkeypatch: Any
) -> None:
    """What their reader raises is told of the split, not of the program."""
    import tensorflow_datasets as tfds

    def refused(*_: Any) -> Any:
        raise ValueError("no example\nof ours")

    if split != "train":
        load_inaturalist(str(inaturalist.folder))  # keeps the labels
        for kept in cache.rglob(f"*-{split}-*.npz"):
            kept.unlink()
    monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", refused)
    with pytest.raises(
        DataError, match=f"^the {split} split in .*/1.0.0 is unreadable: no example "
    ):
        load_inaturalist(str(inaturalist.folder))


@pytest.mark.parametrize(
    "name", ["dataset_info.json", pytest.param("features.json", marks=pytest.mark.slow)]
)
def test_damaged_descriptions(inaturalist: tiny_records.Tiny, tmp_path: Path, name: str) -> None:
    """One sentence, or the very same data where nothing reads what was damaged."""

    def digest(data: EncodedDataset) -> tuple[Any, ...]:
        files = [data.train.read(range(9)), data.test.read(range(9))]
        return files, data.train_labels.tolist(), data.test_labels.tolist(), data.class_names

    folder = _copy(inaturalist, tmp_path, lambda _, content: content)
    right, file = digest(load_inaturalist(folder)), next(tmp_path.rglob(name))
    refused = 0
    for what, data in damaged_json(file.read_text()):
        file.write_bytes(data)
        try:
            found = digest(load_inaturalist(folder))
        except DataError as error:
            refused += 1
            assert str(error).isprintable() and str(tmp_path) in str(error), what
        else:
            assert found == right, what
    assert refused > 50


def test_a_damaged_cache_is_made_anew(inaturalist: tiny_records.Tiny, cache: Path) -> None:
    right = load_inaturalist(str(inaturalist.folder)).train_labels
    path = next(cache.glob("*train*"))
    with np.load(path) as file:
        good = dict(file)
    for key, value in (
        ("labels", right + 1), ("labels", right.astype(float)), ("labels", right - 5),
        ("labels", right[:-1]), ("labels", np.array([None])), ("names", np.arange(len(right))),
        ("names", np.zeros((len(right), 2), "S1")), ("names", None),
    ):  # fmt: skip
        np.savez(path, **{k: v for k, v in {**good, key: value}.items() if v is not None})
        assert np.array_equal(load_inaturalist(str(inaturalist.folder)).train_labels, right)
    path.unlink()
    os.mkfifo(path)
    assert np.array_equal(load_inaturalist(str(inaturalist.folder)).train_labels, right)
    assert path.is_file()


def test_absent_shard(inaturalist: tiny_records.Tiny, tmp_path: Path) -> None:
    folder = _copy(inaturalist, tmp_path, lambda _, content: content)
    next(tmp_path.rglob("*-validation.*")).unlink()
    with pytest.raises(DataError, match=r"the validation split in .* is unreadable"):
        load_inaturalist(folder)


def test_format_without_random_access(inaturalist: tiny_records.Tiny, tmp_path: Path) -> None:
    def rename(name: str, content: bytes) -> bytes:
        return content.replace(b'"array_record"', b'"tfrecord"')

    folder = _copy(inaturalist, tmp_path, rename)
    for file in tmp_path.rglob("*array_record*"):
        file.rename(file.with_name(file.name.replace("array_record", "tfrecord")))
    with pytest.raises(DataError, match="in tfrecord format"):
        load_inaturalist(folder)


def test_absent_split(inaturalist: tiny_records.Tiny) -> None:
    with pytest.raises(DataError, match="has no split public_test, only train, validation"):
        TfdsSplit(inaturalist.folder / "i_naturalist2018/1.0.0", "public_test")


@pytest.mark.slow
def test_every_species(tmp_path: Path) -> None:
    tiny = tiny_records.make(
        tmp_path, num_classes=8142, largest=2, smallest=1, per_class=1, sides=(16, 16), empty=[7]
    )
    data = load_inaturalist(str(tmp_path))
    assert data.num_classes == 8142 and len(data.test_labels) == 8142
    assert np.bincount(data.test_labels, minlength=8142).tolist() == [1] * 8142
    with pytest.raises(
        DataError, match=r"1 of 8142 classes have no training image: 7 \(species 7\)"
    ):
        check_no_empty_class(data, allow=False)
    assert data.class_counts().tolist() == tiny.counts.tolist()
