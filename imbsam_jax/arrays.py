"""Checks of the arrays that a caller passes: class counts and other tables, labels, masks.

As `checks` does with single numbers: what is concrete is looked at and refused by its name; of what
is traced, or lies with other processes, only shape and type are seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from imbsam_jax.checks import (
    is_concrete,
    is_finite,
    is_real,
    items_of,
    nan_unless,
    none_masked,
    short,
)

_MOST = 2**53  # above it float64, in which averages are taken, leaves whole numbers out


# ------------------------------------------------------------------------------ real numbers


def on_host(name: str, values: Any) -> NDArray[Any]:
    """As a NumPy array, or a ValueError for what is traced or ragged."""
    if not is_concrete(values) or any(not is_concrete(x) for x in items_of(values)):
        raise ValueError(f"{name} must be known before training, not traced under jit")
    none_masked(name, values)
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a vector of numbers, got {short(values)}") from None


def listed(name: str, values: Any) -> list[Any]:
    """Refuses what is no list of numbers, each of which is still to be looked at."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray | jax.Array):
        raise ValueError(f"{name} must be a list of numbers, got {short(values)}")
    if isinstance(values, Sequence):  # element by element, so that each is looked at as it is
        return list(values)
    array = on_host(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {array.shape}")
    return array.tolist()


def real(name: str, array: Any) -> jax.Array:
    """As a JAX array of real numbers, or a ValueError for strings, complex numbers and the like."""
    return as_jax(real_as_given(name, array))


def real_as_given(name: str, array: Any) -> Any:
    """As `real`, but NumPy's where it is not JAX's yet: in all of its digits."""
    if not isinstance(array, jax.Array):
        array = on_host(name, array)
    if not (is_real(array.dtype) or array.dtype == bool):
        raise ValueError(f"{name} must be real numbers, got {array.dtype}{list(array.shape)}")
    return array


def as_jax(array: Any) -> jax.Array:
    """An array as JAX's; whole numbers of which JAX would keep the lowest bits become floats."""
    kept = array.dtype == jax.dtypes.canonicalize_dtype(array.dtype)
    whole = jnp.issubdtype(array.dtype, jnp.integer)
    return jnp.asarray(array.astype(np.float64) if whole and not kept else array)


def as_array(name: str, wanted: str, value: Any) -> Any:
    """A NumPy or JAX array, of NumPy's types where it is not JAX's yet."""
    if isinstance(value, jax.Array):
        return value
    none_masked(name, value)
    try:
        return np.asarray(value)
    except TypeError:  # a list of traced values
        return jnp.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{name} must be {wanted}: {error}") from None


def floating(name: str, array: Any) -> jax.Array:
    """As `real`, with whole numbers as float32: a result in their type would be cut off."""
    array = real(name, array)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(np.float32)


def of_features(name: str, array: Any, features: int) -> jax.Array:
    """float[C], a number for each feature; any other shape would be spread over them."""
    array = floating(name, array)
    if array.shape != (features,):
        raise ValueError(f"{name} must be float[{features}], got shape {list(array.shape)}")
    return array


# --------------------------------------------------------------------------- tables of classes


def counts(class_counts: Any) -> NDArray[np.int64]:
    """The counts as int64[C], or a ValueError that says which class cannot be used.

    With an index or keys (a pandas Series, a Counter) each count goes to the class it is named by.
    """
    array = per_class("class_counts", class_counts)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"class_counts must be a vector with one count per class, got shape {array.shape}"
        )
    values = array.tolist()
    # Integers beyond 64 bits make an array of objects: their sum is refused below.
    numbers = is_real(array.dtype) or all(type(count) is int for count in values)
    if not numbers or not all(map(is_finite, values)):
        raise ValueError(f"class_counts must be finite numbers, got {short(values)}")
    bad = [c for c, count in enumerate(values) if count <= 0]
    if bad:
        raise ValueError(
            f"class {bad[0]} has count {values[bad[0]]} ({len(bad)} such classes): every class "
            "needs at least one training example; drop the class or merge it with another"
            + _are_these_labels(values)
        )
    if any(count != math.floor(count) for count in values):
        raise ValueError(f"class_counts must be whole numbers, got {short(values)}")
    total = sum(int(count) for count in values)
    if total > _MOST:
        raise ValueError(f"class_counts add up to {total}, more than 2**53: are these examples?")
    return np.asarray([int(count) for count in values], np.int64)


def weights(name: str, class_weights: Any) -> Any:
    """The weights as a NumPy array [C] of finite numbers that are at least 0, or a tracer."""
    table = class_weights
    if is_concrete(class_weights):
        table = per_class(name, class_weights)
    if table.ndim != 1 or table.size == 0 or not is_real(table.dtype):
        raise ValueError(f"{name} must be float[C], got {table.dtype}{list(table.shape)}")
    if not is_concrete(table):
        table = table.astype(jnp.result_type(table.dtype, float))
        return nan_unless(jnp.isfinite(table) & (table >= 0), table)
    if not (np.all(np.isfinite(table)) and np.all(table >= 0)):
        raise ValueError(f"{name} must be finite and at least 0, got {table}")
    return table


def per_class(name: str, table: Any) -> NDArray[Any]:
    """Numbers of classes as a NumPy array [C], or [K, C], in the order of the classes."""
    return on_host(name, in_class_order(name, table))


def in_class_order(name: str, table: Any) -> Any:
    """The values of a mapping or a Series in the order of its classes; else the table as it is.

    Each goes to the class it is named by: `value_counts` sorts by count. Of rows of them, a
    DataFrame, the columns are named so.
    """
    names: list[Any]
    values: Any
    if isinstance(table, Mapping):
        names, values = list(table.keys()), list(table.values())
    elif not hasattr(table, "index") or callable(table.index):  # lists and strings have a method
        return table
    else:
        values = np.asarray(table)
        if values.ndim > 1 and not hasattr(table, "columns"):
            return values
        names = np.asarray(table.index if values.ndim == 1 else table.columns).tolist()
    order = {c: place for place, c in enumerate(names) if _is_class(c)}
    if sorted(order) != list(range(len(names))):
        raise ValueError(
            f"{name} has the index {short(names)}, which is not the classes 0 to "
            f"{max(len(names) - 1, 0)}, each once: pass a plain list in the order of the labels, "
            "one entry for every class"
        )
    places = [order[c] for c in range(len(names))]
    if np.ndim(values) == 1:
        return [values[place] for place in places]
    return values[:, places]


def _is_class(name: Any) -> bool:
    return isinstance(name, int | np.integer) and not isinstance(name, bool)


def _are_these_labels(values: list[Any]) -> str:
    """More classes than the largest count, some of them 0: a label for each example looks so."""
    zeros = values.count(0)
    if not zeros or max(values) >= len(values):
        return ""
    return (
        f". {zeros} classes of count 0: are these labels? class_counts(labels, num_classes) "
        "counts them"
    )


# ---------------------------------------------------------------------------- labels and masks


def as_labels(labels: Any) -> jax.Array:
    """int[B] as JAX can index with it, or float[B, C] of soft labels.

    Narrow types are widened, since a number of classes need not fit into theirs; a label that
    fits into no int32 becomes -1, which is no class either, instead of its lowest bits.
    """
    if not isinstance(labels, jax.Array):
        labels = on_host("labels", labels)
    dtype = labels.dtype
    fits = labels.ndim == 2 or (labels.ndim == 1 and jnp.issubdtype(dtype, jnp.integer))
    if not (fits and is_real(dtype)):
        raise ValueError(
            f"labels must be int[B], or float[B, C] for soft labels; got {dtype}"
            f"{list(labels.shape)}"
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(labels)
    xp = jnp if isinstance(labels, jax.Array) else np
    narrow = labels.astype(np.int32)
    if dtype.itemsize > 4 or dtype == np.uint32:
        narrow = xp.where((labels < 0) | (labels > 2**31 - 1), np.int32(-1), narrow)
    return jnp.asarray(narrow)


def as_marks(labels: Any) -> jax.Array:
    """[B] of 1 for an anomaly and 0 for a normal example; a host's other numbers become -1."""
    if not isinstance(labels, jax.Array):
        labels = on_host("labels", labels)
    if not (is_real(labels.dtype) or labels.dtype == bool):
        raise ValueError(f"labels must be 1 for an anomaly and 0 else, got {labels.dtype}")
    if isinstance(labels, jax.Array):
        return labels
    return jnp.asarray(np.where(labels == 1, 1, np.where(labels == 0, 0, -1)).astype(np.int32))


def as_mask(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Any:
    """bool[B], NumPy's where it was not JAX's; others would scale what they should leave out."""
    array = as_array(name, f"bool{list(shape)}", mask)
    if array.dtype != bool:
        raise ValueError(
            f"{name} must be bool{list(shape)}, True for what counts; got {array.dtype}"
            f"{list(array.shape)}: give a comparison such as {name} > 0, and put weights of rows "
            "into the losses"
        )
    if array.shape != shape:
        raise ValueError(f"{name} must be bool{list(shape)}, got shape {array.shape}")
    return array
