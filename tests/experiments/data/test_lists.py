"""List files: in which line what is wrong stands, bounds, and names compared from their end."""

import types

import numpy as np
import pytest

from experiments.data.lists import folder_split, read_list, select
from experiments.host.errors import DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "list.txt"


def listed(path, *lines):
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"\xff 0", 1), (b"\n\xff 0", 2), (b"a 0\nb 1\n\xff 0", 3)],
)
def test_the_line_that_is_no_text_is_named(path, content, line):
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"list.txt, line {line}: is not UTF-8"):
        read_list(path)


def test_labels_number_the_classes(path):
    """Of a training list as many as images, or 100,000; of another as many as that has."""
    for highest, classes in ((99_999, None), (1, 2), (0, 1)):
        names, labels = read_list(listed(path, "a.jpg 0", f"b.jpg {highest}"), classes)
        assert names == ["a.jpg", "b.jpg"] and labels.tolist() == [0, highest]
        assert labels.dtype == np.int32
    for highest, classes, said in (
        (100_000, None, "100000 with 2 images"), (2, 2, "2 with 2 classes"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"line 3: label {said}: labels number the classes"):
            read_list(listed(path, "a.jpg 0", "", f"b.jpg {highest}"), classes)


def test_of_a_line_a_hundred_characters_are_shown(path):
    with pytest.raises(DataError) as refused:
        read_list(listed(path, "  " + "a" * 99 + "bcd"))
    assert str(refused.value).endswith(f"line 1: expected a path and a label, not '{'a' * 99}b'")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["x"], "lists 1 file (x) that are"), (["x", "y"], "lists 2 files (x, y) that are"),
        (["x", "y", "z"], "lists 3 files (x, y and 1 more) that are"),
        (["x", "y", "z", "w"], "lists 4 files (x, y and 2 more) that are"),
    ],
)  # fmt: skip
def test_two_of_the_names_that_are_not_there_are_told(tmp_path, path, missing, said):
    (tmp_path / "a").touch()
    with pytest.raises(DataError) as refused:
        folder_split(tmp_path, listed(path, "a 0", *(f"{name} 0" for name in missing)))
    assert f"list.txt, line 2: {said}" in str(refused.value)


def split_of(*names):
    return types.SimpleNamespace(names=np.array(names), split="train", directory="/tfds")


@pytest.mark.parametrize(
    ("names", "lines", "rows"),
    [
        # By the base name, whatever folders are before it on either side.
        ((b"a.jpg", b"b.jpg"), ("x/y/b.jpg 1", "a.jpg 0"), [1, 0]),
        ((b"p/a.jpg", b"q/b.jpg"), ("x/b.jpg 1",), [1]),
        # By as many parts as it takes: two, three.
        ((b"p/1.jpg", b"q/1.jpg", b"q/2.jpg"), ("z/q/1.jpg 0", "p/1.jpg 0"), [1, 0]),
        ((b"a/x/1.jpg", b"b/x/1.jpg", b"c.jpg"), ("b/x/1.jpg 0", "c.jpg 1"), [1, 2]),
        ((b"1.jpg", b"a/1.jpg"), ("a/1.jpg 0", "1.jpg 0"), [1, 0]),
        ((b"a/1.jpg", b"b/1.jpg"), (r"b\1.jpg 0",), [1]),
    ],
)
def test_names_are_compared_from_their_end(path, names, lines, rows):
    found = select(split_of(*names), listed(path, *lines))
    assert found.rows.tolist() == rows and found.rows.dtype == np.int64
    assert found.labels.tolist() == [int(line[-1]) for line in lines]


@pytest.mark.parametrize(
    ("names", "lines", "says"),
    [
        ((b"a.jpg", b"a.jpg", b"b.jpg"), ("b.jpg 0",), "split in /tfds has 1 file .a.jpg. more th"),
        ((b"q/1.jpg", b"p/1.jpg"), ("1.jpg 0",), "lists 1 file .1.jpg. that .* are like q/1.jpg$"),
        (
            (b"a.jpg", b"b.jpg"),
            ("x/b.jpg 0", "x/a.jpg 0", "y/a.jpg 0"),
            "line 2: lists 2 files .x/a.jpg, y/a.jpg. that mean the same records$",
        ),
    ],
)
def test_names_that_mean_no_one_record(path, names, lines, says):
    with pytest.raises(DataError, match=says):
        select(split_of(*names), listed(path, *lines))
