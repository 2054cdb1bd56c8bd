"""What arrays of an .npz file may stand for, and that what NumPy warns of is refused."""

import os
import warnings
import zipfile

import numpy as np
import pytest

from experiments.host import inputs
from experiments.host.errors import DataError

VALUES = {
    "whole": np.int32(3), "real": np.float32(0.5), "line": np.array("a b"),
    "list": np.array([1, 2]), "reals": np.array([0.5, 2]), "lines": np.array(["a", "b"]),
    "flag": np.bool_(True), "table": np.ones((1, 2)), "words": np.array([["a"]]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("read", "taken", "message"),
    [
        (inputs.whole, {"whole": 3}, "must be one whole number"),
        (inputs.real, {"whole": 3.0, "real": 0.5}, "must be one real number"),
        (inputs.numbers, {"list": (1.0, 2.0), "reals": (0.5, 2.0)}, "must be a list of real"),
        (inputs.line, {"line": "a b"}, "must be"),
        (inputs.lines, {"lines": ("a", "b")}, "must be"),
    ],
)
def test_arrays_that_stand_for_something_else(read, taken, message) -> None:
    """Of each kind and number of dimensions one: taken as it is told, or refused."""
    for name, value in VALUES.items():
        if name in taken:
            found = read(np.asarray(value), "x.npz: it")
            assert found == taken[name] and type(found) is type(taken[name])
        else:
            with pytest.raises(DataError, match=f"x.npz: it {message}"):
                read(np.asarray(value), "x.npz: it")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32(0.5), "float32 0.5"), (np.bool_(True), "bool True"), (np.arange(3), "int64[3]"),
        (np.ones((1, 2), np.float32), "float32[1, 2]"), (np.array("ab"), "<U2"),
        (np.array(["a"]), "<U1[1]"), (np.datetime64("2020-01-01"), "datetime64[D]"),
    ],
)  # fmt: skip
def test_what_stands_in_the_place_of_a_number_is_shown(value, shown) -> None:
    with pytest.raises(DataError) as refused:
        inputs.whole(np.asarray(value), "x.npz: it")
    assert str(refused.value) == f"x.npz: it must be one whole number, not {shown}"


def test_a_line_of_text_can_be_printed_and_is_not_endless() -> None:
    for text in ("a" * 10_000, "é ü", ""):
        assert inputs.line(np.array(text), "it") == text
    for text in ("a" * 10_001, "a\nb", "a\x1b"):
        with pytest.raises(DataError) as refused:
            inputs.lines(np.array([text]), "it")
        assert str(refused.value) == (
            f"it must be one line of printable text, not {ascii(text)[:60]}"
        )


def test_an_error_is_said_in_a_line() -> None:
    """The system's words, or the library's, or at least its kind; 200 characters at most."""
    assert inputs.said_by(OSError(2, "No such\n file")) == "No such file"
    assert inputs.said_by(OSError("only words")) == "only words"
    assert inputs.said_by(ValueError()) == "ValueError"
    assert inputs.said_by(ValueError("a" * 200)) == "a" * 200
    assert inputs.said_by(ValueError("a" * 201)) == "a" * 197 + "..."


def test_what_cannot_be_printed_is_escaped() -> None:
    assert inputs.ascii_safe("é a") == "é a" and inputs.ascii_safe("é\n") == r"'\xe9\n'"


def test_of_what_is_no_file_nothing_stays_open(tmp_path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), (".", "a folder"), ("/dev/null", "a device")):
        with pytest.raises(DataError, match=f"is {kind}, not a file to read"):
            inputs.open_regular(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_arrays_are_read_by_key_and_no_more_than_the_memory_holds(tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.ones(2))
    with zipfile.ZipFile(path, "a") as file:  # a comment stands behind the numbers of entries
        file.comment = b"made by hand"
        size = {member.filename: member.file_size for member in file.infolist()}
    assert inputs.read_npz(path).keys() == {"a", "b"}
    monkeypatch.setattr(inputs, "_memory", lambda: size["a.npy"])
    assert inputs.read_npz(path, ["a", "c"])["a"].tolist() == [0, 1, 2]
    monkeypatch.setattr(inputs, "_memory", lambda: size["a.npy"] - 1)
    with pytest.raises(DataError, match="this machine has"):
        inputs.read_npz(path, ["a"])
    monkeypatch.setattr(inputs, "_memory", lambda: sum(size.values()) - 1)
    with pytest.raises(DataError, match="this machine has"):
        inputs.read_npz(path)


@pytest.mark.parametrize("told", [1, 2, 3, 2**16 - 2, 2**16 - 1])
def test_as_many_arrays_are_listed_as_are_told(tmp_path, told) -> None:
    """Where there is no room for their number, in 16 bits, it is told elsewhere."""
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.ones(2))
    data = bytearray(path.read_bytes())
    data[-12:-10] = told.to_bytes(2, "little")
    path.write_bytes(data)
    if told in (2, 2**16 - 1):
        assert inputs.read_npz(path).keys() == {"a", "b"}
    else:
        with pytest.raises(
            DataError, match=f"not an .npz file of whole arrays: it lists 2 of {told}"
        ):
            inputs.read_npz(path)


def test_nothing_is_unpickled(tmp_path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([1, "x"], object))
    with pytest.raises(DataError, match=r"a: Object arrays cannot be loaded"):
        inputs.read_npz(tmp_path / "x.npz")


def test_an_array_that_numpy_warns_of_is_refused(tmp_path) -> None:
    """As of Python 2, with a length of 2L: also where nobody looks at warnings."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2L,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr(
            "a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"ab"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=r"x\.npz is not an \.npz file of whole arrays: a: "):
            inputs.read_npz(tmp_path / "x.npz")
