"""Means over a device axis, right in every mode: the only file that knows JAX versions.

Under `pmap`, `vmap(axis_name=...)` and `shard_map(check_vma=False)` the gradient of a loss on
this device's rows is local and has to be averaged. Under `shard_map`'s default `check_vma=True`
the gradient with respect to *replicated* parameters comes already summed over the devices, and
averaging it again gives, silently, a gradient as many times too large as there are devices.
Casting the parameters to device-varying first makes the gradient local in all of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from imbsam_jax.checks import at_least_float32

AxisName = Any  # str | tuple[str, ...] | None

# Whether XLA keeps barriers until it has decided which arrays are buffers, and their order.
_BARRIERS_LAST = jax.__version_info__ >= (0, 11)


def varying(tree: Any, axis_name: AxisName) -> Any:
    """The tree typed as device-varying over the axis; the same values, no communication."""
    if axis_name is None:
        return tree
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    # Not a vmapped axis (chex.fake_pmap): gradients are local there, and the cast raises.
    manual = [name for name in names if name in jax.sharding.get_abstract_mesh().manual_axes]
    return jax.tree.map(lambda leaf: _cast(leaf, manual), tree)


def varying_like(leaf: Any, other: Any) -> Any:
    """The leaf typed as device-varying over the axes that the other array varies over."""
    return _cast(leaf, sorted(_varying_axes(other)))


def _cast(leaf: Any, names: list[str]) -> Any:
    missing = tuple(name for name in names if name not in _varying_axes(leaf))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


def apart(pullback: Any, done: Any) -> tuple[Any, Any]:
    """(pullback, done), the same values; the pullback shares no computation with what made `done`,
    and, from JAX 0.11 on, begins after it.

    Up to JAX 0.10 XLA drops a barrier before it decides which arrays become buffers, so that one
    before the pullback costs nothing. Later versions keep it, and all that the pullback holds
    becomes a buffer, also what one pass alone would make anew on the fly: 1.76 times SGD's memory
    in a ResNet-20. There it is multiplied by a 1 that only XLA does not know: 1.07.
    """
    held, structure = jax.tree.flatten(pullback)
    after, tree = jax.tree.flatten(done)
    # A barrier for all leaves would, before JAX 0.12, make each vary over devices as any of them
    # does, and a pullback then refuses what a `pmean` in the loss (batch normalisation) left alike.
    for axes in dict.fromkeys(_varying_axes(leaf) for leaf in held):
        own = [place for place, leaf in enumerate(held) if _varying_axes(leaf) == axes]
        fused = [place for place in own if _BARRIERS_LAST and _may_be_fused(held[place])]
        plain = [place for place in own if place not in fused]
        same = [
            place
            for place, leaf in enumerate(after)
            if _BARRIERS_LAST and _varying_axes(leaf) == axes
        ]
        one, behind, ended = lax.optimization_barrier(
            (jnp.float32(1), [held[place] for place in plain], [after[place] for place in same])
        )
        for place in fused:
            held[place] = _times_one(held[place], one)
        for place, leaf in zip(plain, behind, strict=True):
            held[place] = leaf
        for place, leaf in zip(same, ended, strict=True):
            after[place] = leaf
    return jax.tree.unflatten(structure, held), jax.tree.unflatten(tree, after)


def _may_be_fused(leaf: Any) -> bool:
    return leaf.dtype == jnp.bool_ or jnp.issubdtype(leaf.dtype, jnp.floating)


def _times_one(leaf: Any, one: jax.Array) -> Any:
    return leaf & (one > 0) if leaf.dtype == jnp.bool_ else leaf * one.astype(leaf.dtype)


def _varying_axes(leaf: Any) -> frozenset[str]:
    kind = jax.typeof(leaf)
    manual = getattr(kind, "manual_axis_type", None)
    if manual is not None:
        return manual.varying
    return getattr(kind, "vma", frozenset())


def along(array: Any) -> Any:
    """The `out_sharding` of what is looked up by an array: as its own; None lets JAX choose.

    Of a mesh with explicit axes (`jax.set_mesh`) the type of an array says how it is spread, and
    JAX refuses to choose for what is indexed by one.
    """
    sharding = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def is_spread(array: Any) -> bool:
    """Whether explicit axes spread it over devices."""
    sharding = along(array)
    return sharding is not None and any(name is not None for name in sharding.spec)


def everywhere(array: Any) -> Any:
    """The `out_sharding` of a sum by index: whole on every device, for an array as in `along`."""
    sharding = along(array)
    return sharding and NamedSharding(sharding.mesh, PartitionSpec())


def gathered(tree: Any) -> Any:
    """The tree whole on every device where explicit axes spread it, to be sorted and the like."""

    def leaf(x: Any) -> Any:
        return jax.sharding.reshard(x, everywhere(x)) if is_spread(x) else x

    return jax.tree.map(leaf, tree)


def mean(tree: Any, axis_name: AxisName) -> Any:
    """Mean over the axis of every leaf, in one all-reduce; the tree itself where axis is None.

    Leaves narrower than float32 are summed in float32 and keep their type.
    """
    if axis_name is None:
        return tree

    wide = jax.tree.map(lambda leaf: leaf.astype(at_least_float32(leaf.dtype)), tree)
    means = lax.pmean(wide, axis_name)
    return jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), means, tree)
