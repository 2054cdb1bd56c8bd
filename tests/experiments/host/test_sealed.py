"""Networks that are kept with what they are of: read as they were written, or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.host import sealed
from experiments.host.errors import RunError

ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4)}
ABOUT = {"rule": "sam", "config": {"rho": 0.1, "seeds": [0, 1], "note": "é"}}


def again(path: Path, **changes: np.ndarray) -> None:
    """The same file with other arrays, and what it said of them."""
    with np.load(path) as held:
        arrays = {**held, **changes}
    np.savez(path, **arrays)


def told(path: Path, **changes: object) -> None:
    with np.load(path) as held:
        about = json.loads(str(held["about"]))
    again(path, about=np.array(json.dumps({**about, **changes})))


def renamed(path: Path) -> None:
    """An array under another name, in its place."""
    with np.load(path) as held:
        np.savez(path, **{"c" if name == "b" else name: held[name] for name in held})


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"NUMPY") + 130] ^= 1
    path.write_bytes(data)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    sealed.write(path, ARRAYS, ABOUT)
    about, arrays = sealed.read(path, "do it again")
    assert about == ABOUT and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    sealed.refuse_others(path, about, {**ABOUT, "other": 1}, "a file", "do it again")
    with pytest.raises(RunError, match=r"else than a file tells \(rule 'sam' -> 'sgd'\): do it"):
        sealed.refuse_others(path, about, {**ABOUT, "rule": "sgd"}, "a file", "do it again")


def test_the_order_of_arrays_and_keys_is_no_part_of_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    arrays = {"b": np.ones(4), "a/kernel": ARRAYS["a/kernel"]}  # not as they are sorted
    sealed.write(path, arrays, ABOUT)
    with np.load(path) as held:
        about = json.loads(str(held["about"]))
    turned = np.array(json.dumps(dict(reversed(about.items()))))
    np.savez(path, **dict(reversed(arrays.items())), about=turned)
    told, found = sealed.read(path, "do it again")
    assert told == ABOUT and [*found] == ["a/kernel", "b"]


def test_a_digest_is_of_types_and_shapes_too() -> None:
    """As SHA-256 of "TYPE SHAPE" and the bytes in C order, array by array."""
    bits = np.arange(4, dtype=np.uint32)
    alike = [bits, bits.view(np.int32), bits.reshape(2, 2), bits.reshape(4, 1), bits[::-1]]
    assert len({sealed.digest([each]) for each in alike}) == len(alike)
    assert sealed.digest([bits.reshape(2, 2).T]) == sealed.digest([bits.reshape(2, 2).T.copy()])
    whole = b"uint32 (4,)" + bits.tobytes() + b"float64 ()" + np.float64(0.5).tobytes()
    assert sealed.digest([bits, 0.5]) == hashlib.sha256(whole).hexdigest()
    counts = np.array([3, 1], "<i8").tobytes()
    assert sealed.class_counts_sha256([3, 1]) == hashlib.sha256(counts).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no archive"),
        lambda path: path.unlink(),
        lambda path: again(path, b=np.full(4, np.nan)),
        lambda path: again(path, b=np.ones(5)),
        lambda path: again(path, b=np.ones(4, np.float32)),
        lambda path: again(path, c=np.ones(1)),
        renamed,
        lambda path: again(path, about=np.array("{")),
        lambda path: again(path, about=np.array("[]")),
        lambda path: told(path, rule="sgd"),
        lambda path: told(path, seal=None),
        lambda path: np.savez(path, **ARRAYS),
    ],
)
def test_anything_else_is_refused_in_a_sentence(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "x.npz"
    sealed.write(path, ARRAYS, ABOUT)
    damage(path)
    with pytest.raises(RunError, match=r"x\.npz .*: do it again$") as refused:
        sealed.read(path, "do it again")
    assert "\n" not in str(refused.value)
