"""Which room may know which: read from the imports, so that the house stays as it is drawn."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each room of experiments/, and those that it may import beside itself and the library.
# "" is the entries, the files of experiments/ itself. Methods and losses are made of flags in
# command, which bench does not know: the entries over both make them and hand them on as jobs.
# command shows what it has run: the table and the plots are of reports. anomaly has its own table
# and curves, and draws them with what every plot is drawn with. analysis reads what all of them
# have trained, and builds again what it was trained by.
MAY = {
    "host": set(),
    "reports": {"host"},
    "models": {"host"},
    "data": {"host"},
    "step": {"host", "data", "models"},
    "run": {"host", "data", "models", "step"},
    "bench": {"host", "data", "models", "step", "reports"},
    "command": {"host", "data", "models", "step", "run", "reports"},
    "anomaly": {"host", "reports"},
    "analysis": {
        "host",
        "data",
        "models",
        "step",
        "bench",
        "command",
        "anomaly",
        "reports",
    },
    "": {
        "host",
        "data",
        "models",
        "step",
        "run",
        "bench",
        "command",
        "reports",
        "anomaly",
        "analysis",
    },
}
# In the library: what knows nothing of the gradient, and what each layer may not import.
NEVER = {
    "rules": {"core", "ascent", "passes", "gradient", "transform", "cc_sam", "nnx", "experimental"},
    "ascent": {"core", "rules", "passes", "gradient", "transform", "cc_sam", "nnx", "experimental"},
    "passes": {"core", "ascent", "gradient", "transform", "cc_sam", "nnx", "experimental"},
    "core": {"gradient", "transform", "cc_sam", "nnx", "experimental"},
    "gradient": {"transform", "cc_sam", "nnx", "experimental"},
    "transform": {"gradient", "cc_sam", "nnx", "experimental"},
    "cc_sam": {"core", "gradient", "transform", "nnx", "experimental"},
    "class_rows": {"core", "ascent", "passes", "gradient", "transform", "cc_sam", "nnx"},
    "model_parts": {"core", "ascent", "passes", "gradient", "transform", "cc_sam", "nnx"},
    "nnx": {"core", "transform", "cc_sam", "experimental"},
    # What looks at a model: on losses and rules alone, not on how one is trained.
    "totals": {"core", "ascent", "rules", "passes", "gradient", "transform", "cc_sam", "nnx"},
    "curvature": {"core", "ascent", "rules", "passes", "gradient", "transform", "cc_sam", "nnx"},
    "landscape": {"core", "rules", "passes", "gradient", "transform", "cc_sam", "nnx"},
    "sharpness": {"core", "passes", "gradient", "transform", "cc_sam", "nnx", "curvature"},
}
LEAVES = (
    "checks", "arrays", "collectives", "priors", "schedules", "losses", "metrics", "classifiers",
    "table",
)  # fmt: skip


@functools.cache
def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def of_the_library(part: str) -> list[Path]:
    """The file of that name, or the files of the package."""
    at = ROOT / "imbsam_jax" / part
    return sorted(at.glob("*.py")) if at.is_dir() else [at.with_suffix(".py")]


def second(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "experiments").parts
    return parts[0] if len(parts) > 1 else ""


def test_the_library_imports_no_experiment() -> None:
    for path in files("imbsam_jax"):
        for name in imports(path):
            assert name.split(".")[0] not in ("experiments", "benchmarks"), f"{path}: {name}"


def test_every_room_is_listed() -> None:
    rooms = {room_of(path) for path in files("experiments")}
    assert rooms == set(MAY)


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_those_below_it(room: str) -> None:
    entries = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    for path in files("experiments"):
        if room_of(path) != room:
            continue
        for name in imports(path):
            if name.split(".")[0] in ("benchmarks", "tests"):
                raise AssertionError(f"{path}: {name}")
            if name.split(".")[0] != "experiments":
                continue
            there = second(name)
            there = "" if there in entries else there
            assert there == room or there in MAY[room], f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("part", NEVER)
def test_layers_of_the_library(part: str) -> None:
    for path in of_the_library(part):
        for name in imports(path):
            if name.startswith("imbsam_jax."):
                assert second(name) not in NEVER[part], f"{path.relative_to(ROOT)}: {name}"


def test_nothing_in_the_library_knows_a_method() -> None:
    """What a rule is, all may know (table.py); which there are, only the front (`__init__`)."""
    for path in files("imbsam_jax"):
        known = [name for name in imports(path) if "rules" in name.split(".")]
        assert path.name == "__init__.py" or not known, f"{path.relative_to(ROOT)}: {known}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_stand_on_checks_arrays_and_rows_alone(leaf: str) -> None:
    allowed = {leaf, "checks", "arrays", "collectives", "norms", "priors", "rows"}
    for path in of_the_library(leaf):
        for name in imports(path):
            if name.startswith("imbsam_jax."):
                assert second(name) in allowed, f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("package", ["imbsam_jax", "experiments", "benchmarks"])
def test_private_names_stay_where_they_are(package: str) -> None:
    """A name `_name` is of its file; the library's `_file.py` is of the library."""
    for path in files(package):
        for name in imports(path):
            top, *within, last = name.split(".") if "." in name else (name, name)
            if top in ("imbsam_jax", "experiments", "benchmarks"):
                seen = [last] if top == package else [*within, last]
                hidden = [part for part in seen if part[0] == "_" and part[:2] != "__"]
                assert not hidden, f"{path.relative_to(ROOT)}: {name}"
