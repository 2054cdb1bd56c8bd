"""Checks of what a caller passes: the numbers of the public functions; `arrays` has the rest.

What is concrete is looked at and refused by its name, in one sentence. Of what is traced, inside
jit, only shape and type can be seen: a number that is out of its range then becomes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(value: Any) -> bool:
    """False for a traced value, of which nothing can be checked before the step runs."""
    return not isinstance(value, jax.core.Tracer)


def can_be_read(array: Any) -> bool:
    """Whether its numbers are known here: traced ones are not, nor those of other processes."""
    return is_concrete(array) and getattr(array, "is_fully_addressable", True)


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
    if not (is_finite(value) and all(_bounds(value, least, above, most, below))):
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
    if not (is_finite(value) and value >= least and value == math.floor(value)):
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


def function(name: str, value: Any, example: str) -> None:
    """Refuses what cannot be called, before JAX does it with less to say."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, {example}; got {short(value)}")


def truth(name: str, value: Any) -> None:
    """Refuses what is no truth value: "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {short(value)}")


def is_finite(value: Any) -> bool:
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


def none_masked(name: str, values: Any) -> None:
    """Refuses entries that NumPy's masks hide: an array of JAX would show what lies under them."""
    for each in (values, *items_of(values)):
        if isinstance(each, np.ma.MaskedArray) and np.ma.is_masked(each):
            raise ValueError(f"{name} must have no masked entries: leave them out, or fill them")


def items_of(values: Any) -> Any:
    return values if isinstance(values, list | tuple) else ()
