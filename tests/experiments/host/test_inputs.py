"""What arrays of an .npz file may stand for, and that what NumPy warns of is refused."""

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
