"""What the examples in docstrings need: one copy of each module, and names beside its own."""

import contextlib
import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent


def pytest_collect_file(file_path: Path) -> None:
    """Imports a package's file as the tests do, before pytest would run it a second time.

    Collecting its examples under importlib mode makes a module that `import` does not know, with
    classes of its own: isinstance would then depend on the order of the command line.
    """
    if file_path.suffix == ".py" and (file_path.parent / "__init__.py").exists():
        parts = file_path.resolve().relative_to(ROOT).with_suffix("").parts
        with contextlib.suppress(Exception):  # pytest says so itself
            importlib.import_module(".".join(parts))


@pytest.fixture(scope="session", autouse=True)
def names_in_doctests(doctest_namespace: dict[str, Any]) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import imbsam_jax as ij
    from imbsam_jax import rules

    doctest_namespace.update(jax=jax, jnp=jnp, optax=optax, rules=rules, ij=ij)
