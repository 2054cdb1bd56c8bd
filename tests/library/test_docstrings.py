"""What the library's functions say of themselves: arguments, results, errors, an example.

The examples are run where they stand (`--doctest-modules`).
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from functools import cache
from typing import Any

import pytest

import imbsam_jax as ij

MODULES = [found.name for found in pkgutil.walk_packages(ij.__path__, "imbsam_jax.")]
FUNCTIONS = {
    f"{thing.__module__.removeprefix('imbsam_jax.')}.{name}": thing
    for module in map(importlib.import_module, MODULES)
    for name in getattr(module, "__all__", ())
    if inspect.isfunction(thing := getattr(module, name))
}


def section(function: Any, name: str) -> str:
    """The lines under `name:`, or ''."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^{name}:\n((?:  .*\n?|\n)+)", text, re.MULTILINE)
    return found[1] if found else ""


@cache
def refuses(function: Any) -> bool:
    """Whether it raises, or calls what does of the library."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if any(isinstance(node, ast.Raise) for node in ast.walk(tree)):
        return True
    called = [_meant(node.func, function) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(map(refuses, dict.fromkeys(f for f in called if inspect.isfunction(f))))


def _meant(node: ast.AST, function: Any) -> Any:
    """The function of the library that `name` or `module.name` means there, or None."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        found = getattr(function.__globals__.get(node.value.id), node.attr, None)
    else:
        found = function.__globals__.get(getattr(node, "id", None))
    ours = getattr(found, "__module__", None) or ""
    return found if ours.startswith("imbsam_jax") and found is not function else None


def test_the_functions_are_found() -> None:
    for name in ("rules.gsa", "losses._wrappers.focal", "metrics.auroc", "gradient.value_and_grad"):
        assert name in FUNCTIONS
    assert len(FUNCTIONS) > 55


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_takes_returns_and_refuses_is_said(name: str) -> None:
    function = FUNCTIONS[name]
    said = section(function, "Args")
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^  [\w*, ]*\b{parameter}\b[\w*, ]*: ", said, re.MULTILINE), parameter
    assert section(function, "Returns")
    assert bool(section(function, "Raises(?:, when called)?")) == refuses(function)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name)
    assert any(example.want for example in found.examples)
