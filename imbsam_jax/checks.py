"""Checks of what a caller passes: numbers, class counts, labels and masks of the public functions.

What is concrete is looked at and refused by its name, in one sentence. Of what is traced, inside
jit, only shape and type can be seen: a number that is out of its range then becomes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

_MOST = 2**53  # above it float64, in which averages are taken, leaves whole numbers out


def is_concrete(value: Any) -> bool:
    """False for a traced value, of which nothing can be checked before the step runs."""
    return not isinstance(value, jax.core.Tracer)


def can_be_read(array: Any) -> bool:
    """Whether its numbers are known here: traced ones are not, nor those of other processes."""
    return is_concrete(array) and getattr(array, "is_fully_addressable", True)


# ------------------------------------------------------------------------------------- numbers


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    wanted: str = "",
    hint: str = "",
    concrete: bool = False,
) -> Any:
    """Refuses what is not one real, finite number in the range; of a tracer its shape and type.

    concrete: refuse tracers, too, of a number that decides something on the host.

    Returns a Python number, or the tracer as JAX's default float, which goes with NumPy's tables
    under strict type promotion, and NaN where it is out of the range.
    """
    wanted = wanted or _range(least, above, most, below)
    if not _is_real_scalar(name, value, wanted):
        if concrete:
            raise ValueError(f"{name} must be known when it is given, not traced under jit")
        value = jnp.asarray(value, float)
        good = jnp.isfinite(value)
        for kept in _bounds(value, least, above, most, below):
            good &= kept
        return nan_unless(good, value)
    value = plain(value)
    if not (_is_finite(value) and all(_bounds(value, least, above, most, below))):
        raise ValueError(f"{name} must be {wanted}, got {short(value, str)}{hint}")
    return value


def plain(value: Any) -> Any:
    """A concrete number as Python's: inside of jit a comparison of JAX's would be traced."""
    if not (is_concrete(value) and hasattr(value, "item")):
        return value
    value = value.item()
    return float(value) if isinstance(value, np.longdouble) else value


def _bounds(
    value: Any, least: float | None, above: float | None, most: float | None, below: float | None
) -> list[Any]:
    """Of each bound that there is, whether the value keeps it."""
    kept = []
    if least is not None:
        kept.append(value >= least)
    if above is not None:
        kept.append(value > above)
    if most is not None:
        kept.append(value <= most)
    if below is not None:
        kept.append(value < below)
    return kept


def like(value: Any, array: jax.Array) -> Any:
    """What `number` returns, a tracer in the type of the array; Python's adapt themselves."""
    return value if is_concrete(value) else value.astype(array.dtype)


def whole(name: str, value: Any, least: int, wanted: str = "", most: int = 2**31 - 1) -> int:
    """Refuses what is not a whole number of Python or NumPy in the range.

    Returns Python's: arithmetic with one of int8 would be cut to its width.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least:
        full = f"a whole number, at least {least}"
        wanted = wanted if is_whole and wanted else full
        raise ValueError(f"{name} must be {wanted}, got {short(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {short(value)}")
    return int(value)


def steps(name: str, value: Any, least: int = 0, wanted: str = "a step number, at least 0") -> Any:
    """Refuses what is no number of updates: it may be an array of one number, or traced.

    Returns None, or of a tracer whether it is such a number: for `nan_unless`.
    """
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be {wanted}, got {short(value, str)}")
    if not _is_real_scalar(name, value, wanted):
        good = value >= least
        if jnp.issubdtype(value.dtype, jnp.floating):
            good &= jnp.isfinite(value) & (value == jnp.floor(value))
        return good
    value = plain(value)
    if not (_is_finite(value) and value >= least and value == math.floor(value)):
        raise ValueError(f"{name} must be {wanted}, got {short(value, str)}")
    return None


def as_step(value: Any) -> Any:
    """What `steps` let pass, to compute with: traced at least an int32, known no more than it."""
    if is_concrete(value):
        return int(min(plain(value), 2**31 - 1))
    narrow = jnp.issubdtype(value.dtype, jnp.integer) and value.dtype.itemsize < 4
    return value.astype(jnp.int32) if narrow else value


def as_steps(*values: Any) -> list[Any]:
    """Each as `as_step`, and those that are traced in one type."""
    steps = [as_step(value) for value in values]
    traced = iter(alike(*(step for step in steps if not isinstance(step, int))))
    return [step if isinstance(step, int) else next(traced) for step in steps]


def reached(step: Any, start: Any) -> Any:
    """step >= start: Python's truth of two known numbers, else traced. "Never" is any start."""
    if is_concrete(step) and is_concrete(start):
        return plain(step) >= plain(start)
    step, start = as_steps(step, start)
    return step >= start


def nan_with(value: Any, tree: Any) -> Any:
    """The tree, NaN where what `number` returned is: arithmetic may lose that, as 1 ** NaN is 1."""
    return nan_unless(None if is_concrete(value) else ~jnp.isnan(value), tree)


def nan_unless(good: Any, tree: Any) -> Any:
    """The tree, its floating numbers NaN unless `good`, a traced truth; None is true.

    The constant is one of NumPy's: made by JAX, it alone would raise under `jax_debug_nans`.
    """
    if good is None:
        return tree

    def leaf(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(good, x, np.array(np.nan, x.dtype))

    return jax.tree.map(leaf, tree)


def _range(
    least: float | None, above: float | None, most: float | None, below: float | None
) -> str:
    if least is not None and most is not None:
        return f"between {least} and {most}"
    if least is not None and below is not None:
        return f"at least {least} and below {below}"
    if least is not None:
        return f"finite and at least {least}"
    return "finite" if above is None else "finite and positive"


def _is_real_scalar(name: str, value: Any, wanted: str) -> bool:
    """Refuses what is not one real number; False for a traced one, whose value is not known."""
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be {wanted}, got the truth value {value}")
    if isinstance(value, int | float):
        return True
    if not isinstance(value, np.generic | np.ndarray | jax.Array):
        raise ValueError(f"{name} must be {wanted}, got {short(value)}: give one number")
    none_masked(name, value)
    if value.ndim != 0:
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
    if not is_real(value.dtype):
        raise ValueError(f"{name} must be {wanted}, got a value of type {value.dtype}")
    return is_concrete(value)


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


def function(name: str, value: Any, example: str) -> None:
    """Refuses what cannot be called, before JAX does it with less to say."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, {example}; got {short(value)}")


def truth(name: str, value: Any) -> None:
    """Refuses what is no truth value: "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {short(value)}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def at_least_float32(dtype: Any) -> Any:
    """The type of norms, counts and sums: float64 for itself, else float32.

    Also where JAX is told to promote nothing by itself.
    """
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def short(value: Any, show: Callable[[Any], str] = repr) -> str:
    try:
        text = " ".join(show(value).split())
    except ValueError:  # Python prints no integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


# -------------------------------------------------------------------------------------- counts


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
    if not numbers or not all(map(_is_finite, values)):
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


def one_key(name: str, key: Any) -> Any:
    """A random key, or a ValueError for a seed and the like."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (shape == () if typed else dtype == np.uint32 and len(shape or ()) == 1):
        raise ValueError(
            f"{name} must be one random key, such as jax.random.key(0); got {short(key)}"
        )
    return key


def alike(*arrays: jax.Array) -> list[jax.Array]:
    """In one dtype, as JAX promotes where it is not told to promote nothing by itself."""
    if len({array.dtype for array in arrays}) < 2:
        return list(arrays)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


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


def on_host(name: str, values: Any) -> NDArray[Any]:
    """As a NumPy array, or a ValueError for what is traced or ragged."""
    if not is_concrete(values) or any(not is_concrete(x) for x in _items(values)):
        raise ValueError(f"{name} must be known before training, not traced under jit")
    none_masked(name, values)
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a vector of numbers, got {short(values)}") from None


def none_masked(name: str, values: Any) -> None:
    """Refuses entries that NumPy's masks hide: an array of JAX would show what lies under them."""
    for each in (values, *_items(values)):
        if isinstance(each, np.ma.MaskedArray) and np.ma.is_masked(each):
            raise ValueError(f"{name} must have no masked entries: leave them out, or fill them")


def _items(values: Any) -> Any:
    return values if isinstance(values, list | tuple) else ()


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
