"""Which rows of a batch belong to which class, and sums over the classes that are in it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from imbsam_jax import collectives
from imbsam_jax.rows import no_distribution


class ClassRows:
    """Which rows of this device belong to which class, and what a row counts."""

    def __init__(
        self, labels: jax.Array, mask: Any, num_classes: int, dtype: Any, axis: Any, sync: bool
    ) -> None:
        self.labels, self.num_classes, self.axis = labels, num_classes, axis
        batch = labels.shape[0]
        every = jnp.ones_like(labels if labels.ndim == 1 else labels[:, 0], dtype)
        self.real = every if mask is None else mask.astype(dtype)
        if labels.ndim == 2:
            self.valid = jnp.where(
                jnp.any(no_distribution(labels) & (self.real != 0)), np.float32(np.nan), 1.0
            )
            rows = jnp.where(self.real[:, None] == 0, 0, labels).astype(dtype).sum(axis=0)
        else:
            inside = (labels >= 0) & (labels < num_classes)
            self.valid = jnp.where(jnp.all(inside | (self.real == 0)), 1.0, np.float32(np.nan))
            at = jnp.where(inside, labels, num_classes)
            rows = (
                jnp.zeros((num_classes,), dtype)
                .at[at]
                .add(self.real, mode="drop", out_sharding=collectives.everywhere(at))
            )
        # Means over devices: what a device's part of a sum is multiplied by, so that the mean
        # over devices of such parts is the sum over all rows divided by B or by a class's rows.
        own = (rows, self.real.sum())
        rows, total = collectives.mean(own, axis)
        self.scale = _inverse(total)
        self.of_class: jax.Array = rows if sync else own[0]
        total = total if sync else own[1]
        self.scale_of_ascent = _inverse(total)
        devices = 1 if axis is None or not sync else lax.axis_size(axis)
        self.most = num_classes if labels.ndim == 2 else min(batch * devices, num_classes)

    def varying(self, tree: Any) -> Any:
        return collectives.varying(tree, self.axis)

    def weights(self, of_rows: jax.Array, losses: jax.Array) -> jax.Array:
        """What is wide, as cotangents of losses: in their dtype, of this device."""
        return self.varying(of_rows.astype(losses.dtype))

    def parts(self, classes: jax.Array) -> jax.Array:
        """float[K, B]: the part of each row that belongs to each class."""
        if self.labels.ndim == 2:
            labels = jnp.where(self.real[:, None] == 0, 0, self.labels).astype(self.real.dtype)
            return labels.T.at[classes].get(mode="fill", fill_value=0)
        same = self.labels[None, :] == classes[:, None].astype(self.labels.dtype)
        return same.astype(self.real.dtype) * self.real[None]

    def of_ascent(self, classes: jax.Array, parts: jax.Array, *, mean: bool) -> jax.Array:
        """float[K, B]: what a row counts in the loss of each class whose gradient is d_c.

        Args:
          parts: of the rows, of these classes.
          mean: over the rows of a class, in place of all rows of the batch.
        """
        scales = self.scale_of_ascent
        if mean:
            scales = _inverse(self.of_class.at[classes].get(mode="fill", fill_value=0))
        return jnp.broadcast_to(scales, classes.shape)[:, None] * parts


def over_classes(of_classes: Any, start: Any, rows: ClassRows, at_once: int) -> Any:
    """start + the sum of of_classes over the classes in the batch, at_once at a time."""
    at_once = min(at_once, rows.most)
    chunks = math.ceil(rows.most / at_once)
    present = rows.of_class != 0  # also where it is NaN
    size = chunks * at_once
    classes = jnp.nonzero(present, size=size, fill_value=rows.num_classes)[0]

    def add(index: Any, total: Any) -> Any:
        some = lax.dynamic_slice_in_dim(classes, index * at_once, at_once)
        return jax.tree.map(jnp.add, total, rows.varying(of_classes(some)))

    if chunks == 1:
        return add(0, start)
    # As many rounds as there are classes to visit, not as there is room for.
    return lax.fori_loop(0, (present.sum() + at_once - 1) // at_once, add, start)


def _inverse(total: jax.Array) -> jax.Array:
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
