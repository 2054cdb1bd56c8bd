"""The package from outside: what it imports, what it exports, what it touches."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import imbsam_jax as ij

PROMISED = {
    "Ascent",
    "ClassWeights",
    "class_counts",
    "class_weighted_grad",
    "imbalance_factor",
    "long_tail_counts",
    "rules",
    "sharpness_aware",
    "shot_splits",
    "tail_classes",
    "value_and_grad",
}
PROMISED_RULES = {"sgd", "sam", "imbsam", "focal_sam", "sse_sam", "stagewise"}
MODULES = sorted(module.name for module in pkgutil.walk_packages(ij.__path__, "imbsam_jax."))
# What needs more than the library does, and is imported when it is asked for.
NEEDS = {"imbsam_jax.nnx": "flax"}

# Imports the library after everything it may import, watching the environment meanwhile.
IMPORT = """
import importlib, os, sys
import jax, jax.ad_checkpoint, jax.extend.core, jax.numpy, numpy.typing, optax
from jax._src import xla_bridge

class Watched(type(os.environ)):
    reads = []
    def __init__(self, environ):
        self.__dict__.update(environ.__dict__)
    def __getitem__(self, key):
        self.reads.append(key)
        return super().__getitem__(key)

os.environ = Watched(os.environ)
os.getenv("WITNESS")
before = set(sys.modules)
for name in MODULES:
    importlib.import_module(name)
assert Watched.reads == ["WITNESS"], Watched.reads
assert not xla_bridge._backends, xla_bridge._backends
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new == {"imbsam_jax"}, new
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"flax", "tensorflow", "haiku", "torch"}, loaded
sys.modules["flax"] = None  # as where it is not installed
try:
    imbsam_jax = importlib.import_module("imbsam_jax")
    imbsam_jax.nnx
except ModuleNotFoundError as error:
    assert "imbsam_jax.nnx needs Flax: pip install" in str(error), error
else:
    raise AssertionError("imbsam_jax.nnx without Flax")
assert not hasattr(imbsam_jax, "neural")
"""


def test_importing_starts_nothing_reads_nothing_and_prints_nothing(run_python: Any) -> None:
    modules = ["imbsam_jax", *(name for name in MODULES if name not in NEEDS)]
    result = run_python(f"MODULES = {modules}\n{IMPORT}")
    assert (result.stdout, result.stderr) == ("", "")


def test_library_imports_only_what_it_may() -> None:
    for path in Path(ij.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            roots = {name.split(".")[0] for name in names}
            standard = {
                "__future__",
                "collections",
                "dataclasses",
                "functools",
                "importlib",
                "inspect",
                "math",
                "operator",
                "typing",
                "warnings",
            }
            own = {NEEDS.get(f"imbsam_jax.{path.stem}", "jax")}
            assert roots <= standard | own | {"imbsam_jax", "jax", "numpy", "optax"}, path.name


def test_names_at_the_top() -> None:
    assert set(ij.__all__) >= PROMISED
    assert len(set(ij.__all__)) == len(ij.__all__)
    for name in ij.__all__:
        assert hasattr(ij, name), name
    public = {name for name in vars(ij) if not name.startswith("_")}
    modules = {name.removeprefix("imbsam_jax.") for name in MODULES}
    assert public - modules <= set(ij.__all__)
    assert set(ij.rules.__all__) >= PROMISED_RULES
    assert re.fullmatch(r"\d+\.\d+\.\d+", ij.__version__)


# Other special methods are a dataclass's.
WRITTEN = ("__init__", "__call__", "__post_init__")


def _public() -> Iterator[tuple[str, Any]]:
    for module_name in MODULES:
        module: ModuleType = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{module_name}.{name}", value
            elif inspect.isclass(value) and value.__module__ == module_name:
                yield f"{module_name}.{name}", value
                for method_name, method in vars(value).items():
                    written = not method_name.startswith("__") or method_name in WRITTEN
                    if written and inspect.isfunction(method) and method.__module__ == module_name:
                        yield f"{module_name}.{name}.{method_name}", method


PUBLIC = dict(_public())


def test_there_is_a_public_api_to_check() -> None:
    assert len(PUBLIC) > 20


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if callable(value)])
def test_public_functions_are_typed(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    for parameter in signature.parameters.values():
        assert parameter.name == "self" or parameter.annotation is not inspect.Parameter.empty
    is_init = name.endswith("__init__")
    assert is_init or signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", [name for name in PUBLIC if "__" not in name])
def test_public_names_are_documented(name: str) -> None:
    documentation = PUBLIC[name].__doc__ or ""
    assert re.match(r"\S.*[.:](\n|$)", documentation), f"{name}: first line {documentation[:70]!r}"


@pytest.mark.parametrize(
    "function", ["value_and_grad", "sharpness_aware", "class_weighted_grad", "shot_splits"]
)
def test_public_functions_have_an_example(function: str) -> None:
    assert ">>>" in getattr(ij, function).__doc__


@pytest.mark.slow
def test_examples_before_tests_import_no_second_copy(run_python: Any) -> None:
    """isinstance would miss: collected first, a module was run twice under importlib mode."""
    files = ["imbsam_jax/rules.py", "imbsam_jax/transform.py", "tests/library/test_transform.py"]
    chosen = ["-k", "test_the_count_is_the_step or class_weighted_grad"]
    done = run_python(["-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *chosen])
    assert "2 passed" in done.stdout


def test_typed_marker_is_there() -> None:
    folder = Path(ij.__file__).parent
    assert (folder / "py.typed").exists()
