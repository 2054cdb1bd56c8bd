"""From class weights to rows: one weight per example, and checks of what a user gave or returned.

What can be looked at is refused with a sentence; of a traced value only type and shape can be, so
that bad ones make the gradient NaN, as a label does that is no class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from imbsam_jax import collectives
from imbsam_jax.arrays import as_array, as_jax, as_mask
from imbsam_jax.checks import at_least_float32, can_be_read, is_concrete, is_real

# Which kind of pass shows a loss a part of the batch only; None in a pass over all of it. It enters
# the key of JAX's caches: a loss under a jit of its own is traced again in such a pass.
part_of_batch = jax.make_user_context(None)


def row_weights(class_weights: Any, labels: jax.Array, mask: Any, dtype: Any) -> jax.Array:
    """float[B]: `table[labels]`, or `soft @ table` for soft labels; 0 where the mask is False.

    A label outside [0, C), or a soft one that is no distribution, gets NaN, never another weight.
    """
    table = jnp.asarray(class_weights, dtype)
    mask = check_mask(mask, labels.shape[0])
    if labels.ndim == 2:
        if labels.shape[1] != table.shape[0]:
            raise ValueError(
                f"soft labels have {labels.shape[1]} classes, the rule has {table.shape[0]}"
            )
        check_distributions(labels, mask)
        weights = jnp.matmul(labels.astype(dtype), table, precision=lax.Precision.HIGHEST)
        weights = nan_where(no_distribution(labels), weights)
    else:
        labels = class_index(labels)
        weights = table.at[labels].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False,
            out_sharding=collectives.along(labels),
        )  # fmt: skip
    return weights if mask is None else jnp.where(mask, weights, 0)


def weighted_mean(losses: jax.Array, class_weights: Any, labels: jax.Array, mask: Any) -> jax.Array:
    """`(1/B) sum_i w[y_i] loss_i`, at least float32."""
    wide = at_least_float32(losses.dtype)
    weights = row_weights(class_weights, labels, mask, wide)
    return (weights / losses.shape[0] * losses.astype(wide)).sum()


def nan_where(bad: jax.Array, tree: Any) -> Any:
    """The tree, NaN where `bad`, a scalar or of each leaf's shape.

    The constant is one of NumPy's: made by JAX, it alone would raise under `jax_debug_nans`.
    """
    return jax.tree.map(lambda x: jnp.where(bad, np.array(np.nan, x.dtype), x), tree)


def nan_where_no_class(tree: Any, class_weights: Any, labels: jax.Array, mask: Any) -> Any:
    """The gradients, made NaN by a label outside [0, C).

    A weight of NaN alone may get lost: a loss that is constant there has no gradient to multiply.
    """
    # A sum, not any(): over a sharded batch it rides along with the gradient's all-reduce.
    bad = jnp.isnan(row_weights(class_weights, labels, mask, float)).sum(dtype=float)
    return nan_where(bad > 0, tree)


def share_of_rows(class_weights: Any, labels: jax.Array, mask: Any) -> jax.Array:
    """Rows with a non-zero weight, over all rows of this device (padding included)."""
    touched = jnp.asarray(class_weights) != 0
    return row_weights(touched, labels, mask, float).mean()


@partial(jax.jit, inline=True)  # under jax_debug_nans its result is looked at, not what leads to it
def no_distribution(labels: jax.Array) -> jax.Array:
    """bool[B], which rows of soft labels are negative somewhere or do not sum to 1."""
    wide, slack = labels.astype(at_least_float32(labels.dtype)), _slack(labels.dtype)
    off = jnp.abs(wide.sum(axis=-1) - 1)
    return ~(off <= slack) | (wide.min(axis=-1, initial=0) < -slack)


def _slack(dtype: Any) -> float:
    """How far from 1 a row may sum: of bfloat16 mixtures, made in bfloat16, 0.01 is rounding."""
    return max(5e-3, 2 * float(jnp.finfo(dtype).eps))


def class_index(labels: Any) -> jax.Array:
    """Labels of any integer type as int32 (int64 stays, under x64), -1 where that cannot hold them.

    Narrower ones cannot be compared with C, nor wider ones be cut: 2^32 would be class 0.
    """
    given, widest = jnp.iinfo(labels.dtype), jnp.iinfo(jnp.result_type(int))
    if given.max > widest.max:
        outside = labels > widest.max
        if given.min < 0:  # an unsigned type has no number to compare with
            outside |= labels < widest.min
        return jnp.where(outside, -1, jnp.asarray(labels, widest.dtype))
    labels = jnp.asarray(labels)
    return labels if labels.dtype in (jnp.int32, jnp.int64) else labels.astype(jnp.int32)


def check_mask(mask: Any, size: int) -> Any:
    """bool[size], NumPy's where it was not JAX's, or None where there is none."""
    return None if mask is None else as_mask(mask, (size,))


def check_labels(labels: Any) -> Any:
    """Labels as int32[B] or int64[B], or float[B, C].

    Soft labels stay NumPy's where they are: what a jitted step closes over can be read by then.
    """
    labels = as_array("labels", "int[B], or float[B, C] for soft labels", labels)
    kind = jnp.integer if labels.ndim == 1 else jnp.floating
    if labels.ndim not in (1, 2) or not jnp.issubdtype(labels.dtype, kind):
        raise ValueError(
            f"labels must be int[B], or float[B, C] for soft labels; got {_described(labels)}"
        )
    return class_index(labels) if labels.ndim == 1 else labels


def _described(array: Any) -> str:
    numbers = jnp.issubdtype(array.dtype, jnp.number)
    kind = jax.dtypes.canonicalize_dtype(array.dtype) if numbers else array.dtype
    return f"{kind}{list(array.shape)}"


def check_distributions(labels: Any, mask: Any) -> None:
    """Refuses soft labels that can be read and are none, in a row that is not masked."""
    if labels.ndim != 2 or not (can_be_read(labels) and can_be_read(mask)):
        return
    slack, rows = _slack(labels.dtype), np.asarray(labels).astype(np.float64)
    sums, least = rows.sum(axis=1), rows.min(axis=1, initial=0)
    bad = ~(np.abs(sums - 1) <= slack) | (least < -slack)
    bad &= True if mask is None else np.asarray(mask)
    if bad.any():
        row = int(np.argmax(bad))
        what = f"sums to {sums[row]:.4g}" if least[row] >= -slack else f"holds {least[row]:.4g}"
        raise ValueError(
            "soft labels must be at least 0 and sum to 1 in each row, else a row weighs as many "
            f"times as it has labels; row {row} {what} ({bad.sum()} such rows): divide each row by "
            "its sum, and mask rows without a label"
        )


def check_losses(losses: Any, labels: jax.Array) -> jax.Array:
    try:
        array = jnp.asarray(losses)
    except (TypeError, ValueError):
        raise TypeError(
            f"losses_fn returned a {type(losses).__name__} for its losses: return one loss per "
            f"example, float[{labels.shape[0]}]"
        ) from None
    shape = array.shape
    if shape == ():
        raise ValueError(
            "losses_fn returned a scalar: the losses are already averaged, so no class can be "
            f"weighted; return one loss per example, float[{labels.shape[0]}], without .mean()"
        )
    if shape != labels.shape[:1]:
        raise ValueError(
            f"losses_fn returned shape {list(shape)} for {labels.shape[0]} labels: return one "
            "loss per example"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"losses_fn returned {array.dtype} losses, which have no gradient that descends: "
            f"return real numbers, float[{labels.shape[0]}]"
        )
    return array


def check_pair(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "losses_fn must return a pair (losses float[B], aux); return (losses, None) where "
            f"there is nothing else to return. Got {type(result).__name__}"
        )
    return result


def check_whole_batch(what: str, way_out: str, *, but: tuple[str, ...] = ()) -> None:
    """Refuses what averages over the batch in a pass that shows it a part of that."""
    kind = part_of_batch.value
    if kind is not None and kind not in but:
        raise ValueError(f"{what}, and with {kind} a pass sees a part of them: {way_out}")


def check_params(params: Any) -> Any:
    """The parameters as JAX arrays, after a warning where they are too coarse to be perturbed."""
    params = check_leaves(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.finfo(leaf.dtype).bits < 32:
            warnings.warn(
                f"parameter {jax.tree_util.keystr(path) or 'params'} is {leaf.dtype}: at usual "
                "radii most of its coordinates do not move, so the realised perturbation is "
                "shorter than rho; keep parameters in float32 and compute in a lower precision",
                stacklevel=3,
            )
            break
    return params


def check_leaves(params: Any) -> Any:
    """The parameters as JAX arrays, each of them of real numbers."""
    _check_no_module(params)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    if not leaves:
        raise ValueError(
            f"there are no parameters in {type(params).__name__} {params!r:.60}: give a tree of "
            "float arrays, the first argument of losses_fn"
        )
    return jax.tree.unflatten(structure, [_real(path, leaf) for path, leaf in leaves])


def check_like(name: str, tree: Any, params: Any) -> Any:
    """The tree as real JAX arrays; refused where it is not of the parameters' shapes.

    Anything else would be spread over them: a bias of one number over all of a layer's.
    """
    return _like(name, tree, params, is_real, "real")


def check_floats_like(name: str, tree: Any, params: Any) -> Any:
    """As `check_like`, of floats alone: what is added to whole numbers would be cut off."""
    return _like(name, tree, params, _is_floating, "real and floating")


def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _like(name: str, tree: Any, params: Any, fits: Callable[[Any], bool], wanted: str) -> Any:
    structure: Any = jax.tree.structure(params)
    same = structure == jax.tree.structure(tree) and all(
        np.shape(a) == np.shape(b)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    )
    if not same:
        raise ValueError(f"{name} must be a tree with the structure and shapes of the parameters")

    def checked(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        where = f"{name}{jax.tree_util.keystr(path)}"
        array = as_array(where, wanted, leaf)
        if not fits(array.dtype):
            raise TypeError(f"{where} must be {wanted}, got {array.dtype}")
        return as_jax(array)

    return jax.tree_util.tree_map_with_path(checked, tree)


# A module of NNX is a tree, but of running statistics, too, which nobody means to perturb.
_OF_MODULES = {
    "flax.nnx": (
        "imbsam_jax.nnx.value_and_grad takes it; elsewhere give its parameters alone, the second "
        "of nnx.split(model, nnx.Param, ...), and merge it in losses_fn"
    ),
    "flax.linen": (
        'give its parameters, model.init(key, x)["params"], and call model.apply in losses_fn'
    ),
}


def _check_no_module(params: Any) -> None:
    """Refuses the modules of Flax, known by their names alone: it need not be installed."""
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: bool(_package_of(x)))
    for path, node in nodes:
        if package := _package_of(node):
            raise TypeError(
                f"parameter {jax.tree_util.keystr(path) or 'params'} is a {type(node).__name__}, a "
                f"module of {package}, and only what is trained of it can be perturbed: "
                f"{_OF_MODULES[package]}"
            )


def _package_of(node: Any) -> str:
    """Of which package a module is; empty for anything else."""
    for kind in type(node).__mro__:
        for package in _OF_MODULES:
            if kind.__name__ == "Module" and kind.__module__.startswith(f"{package}."):
                return package
    return ""


def _real(path: tuple[Any, ...], leaf: Any) -> jax.Array:
    try:
        array = jnp.asarray(leaf)
        given = str(array.dtype)
    except (TypeError, ValueError, OverflowError):
        array, given = None, f"a {type(leaf).__name__}"
    if array is not None and jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if array is not None and jnp.issubdtype(array.dtype, jnp.complexfloating):
        way_out = "give its real and imaginary part as two parameters and join them in losses_fn"
    else:
        way_out = (
            "keep what is not trained out of params, as one of the args of losses_fn or by a "
            "closure (nnx.split(model, nnx.Param, ...), eqx.partition(model, eqx.is_inexact_array))"
        )
    raise TypeError(
        f"parameter {jax.tree_util.keystr(path) or 'params'} is {given}, and only real arrays, "
        f"float[...], can be perturbed: {way_out}"
    )


def marked(mask: Any, params: Any, name: str) -> list[bool]:
    """Of each leaf of params, in their order, whether a mask, or a function that makes one, has it.

    Only bools count: of the labels of `optax.multi_transform` every one would be True.
    """
    marks = mask(params) if callable(mask) else mask
    for path, mark in jax.tree_util.tree_leaves_with_path(marks):
        if not _is_bool(mark):
            given = repr(mark) if not hasattr(mark, "shape") else f"{mark.dtype}{list(mark.shape)}"
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {given:.60}: give True or False for each "
                "parameter, in a tree like the parameters or a prefix of it"
            )
    try:
        spread = jax.tree.broadcast(marks, params)
    except (ValueError, TypeError):
        raise ValueError(
            f"{name} must be a tree of bools like the parameters or a prefix of it: it has "
            f"{_paths(marks)}, the parameters have {_paths(params)}"
        ) from None
    return [bool(mark) for mark in jax.tree.leaves(spread)]


def _paths(tree: Any) -> str:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ", ".join(paths[:6]) + ", ..." * (len(paths) > 6) or "nothing"


def _is_bool(mark: Any) -> bool:
    if isinstance(mark, bool | np.bool_):
        return True
    array = isinstance(mark, np.ndarray | jax.Array) and is_concrete(mark)
    return array and mark.shape == () and mark.dtype == np.bool_
