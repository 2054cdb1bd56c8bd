"""Names that the examples in docstrings use, beside the names of their own module."""

from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def names_in_doctests(doctest_namespace: dict[str, Any]) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import imbsam_jax as ij
    from imbsam_jax import rules

    doctest_namespace.update(jax=jax, jnp=jnp, optax=optax, rules=rules, ij=ij)
