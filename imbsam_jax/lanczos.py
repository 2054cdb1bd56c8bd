"""Symmetric matrices that are given by their products: Lanczos, and trees as vectors.

The linear algebra of `curvature`: matfree's, which is an optional dependency.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from imbsam_jax import checks
from imbsam_jax.norms import power_of_2
from imbsam_jax.rows import check_leaves, check_like

MatVec = Callable[[Any], Any]


def ritz(product: Any, start: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """(Ritz values, rising, and the squared first components of their eigenvectors), [k] each."""
    decomp = matfree("decomp")
    # Lengths are roots of squares, which leave float32 where values are far from 1: these are
    # brought near it by a power of 2, which rounds nothing.
    scale = power_of_2(jnp.abs(product(start)).max())
    # Not tridiag_sym, which takes the mean of the entries above and below the diagonal: below are
    # the lengths, which say where the space ends; above, from there on, is anything.
    lanczos = decomp.hessenberg(iterations, reortho="full", custom_vjp=False)
    full = lanczos(lambda v: product(v) / scale, start).J_small
    diagonal, beside = jnp.diagonal(full), jnp.diagonal(full, -1)
    # A Krylov space that ends before (the rank may be small, or 0) leaves a vector of rounding, or
    # none: from there on the values repeat the first one, without weight. NaN of the matrix stays.
    sizes = jnp.maximum(jnp.abs(diagonal), jnp.pad(jnp.abs(beside), (0, 1)))
    largest = lax.cummax(jnp.where(jnp.isnan(sizes), 0, sizes))
    eps = jnp.finfo(diagonal.dtype).eps
    ended = jnp.cumsum(beside <= 32 * eps * largest[:-1]) > 0
    beside = jnp.where(ended, 0, beside)
    diagonal = jnp.where(jnp.pad(ended, (1, 0)), diagonal[0], diagonal)
    small = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    values, vectors = jnp.linalg.eigh(small)
    return values * scale, vectors[0] ** 2


def flat(matvec: MatVec, like: Any) -> tuple[Any, int, Any]:
    """(the product of vectors float[P], P, their dtype, at least float32)."""
    like = check_leaves(like)
    if not callable(matvec):
        raise TypeError(
            "matvec must be a function, tree -> tree, as hvp makes it; of a matrix A give "
            f"lambda v: A @ v. Got {checks.short(matvec)}"
        )
    if not any(leaf.size for leaf in jax.tree.leaves(like)):
        raise ValueError("like holds no numbers: a matrix without rows has no eigenvalues")
    with jax.numpy_dtype_promotion("standard"):
        flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, like))
    dtype = checks.at_least_float32(flat.dtype)

    def product(v: jax.Array) -> jax.Array:
        out = check_like("what matvec returns", matvec(unravel(v.astype(flat.dtype))), like)
        with jax.numpy_dtype_promotion("standard"):
            return ravel_pytree(out)[0].astype(dtype)

    return product, flat.size, dtype


def matfree(part: str) -> Any:
    """A module of matfree; a sentence where it is not installed."""
    try:
        return importlib.import_module(f"matfree.{part}")
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("matfree"):
            raise
        raise ModuleNotFoundError(
            "the linear algebra of curvature is matfree's, which is not installed: "
            "pip install 'matfree>=0.6.3'",
            name="matfree",
        ) from missing
