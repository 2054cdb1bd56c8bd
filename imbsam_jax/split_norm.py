"""Passes of perturbed groups over their own rows, for models with batch normalisation.

    g(theta) = grad L[base](theta) + sum_k grad L'[group_k](theta + e_k)
    e_k = radius_k * d_k / ||d_k||_2,   d_k = grad L'[group_k](theta)

where L is the loss with the statistics of the whole batch, and L' that of a group's rows,
normalised in one of three ways:

    own      by their own statistics
    held     by those of the whole batch at theta, held fixed
    renorm   by those of the whole batch at theta in value, by their own in gradient: batch_renorm

The first needs nothing but `examples="split_norm"`; for the others `carry` puts the statistics of
the pass at theta into the args, by which the model then normalises. The pass at theta is over the
whole batch and gives loss, aux (so the running statistics) and the gradient of the base, as ever; a
group of a share f of the rows costs 2f more. With rho = 0 this is not SGD's gradient.

Measured (results/split_norm; ResNet-8 on CIFAR100-LT of 16 x 16 pixels, three seeds, against the
exact gradient): renorm loses nothing overall, own a point (two of the few-shot classes), and held
eight: without a gradient through the statistics nothing keeps the weights' scale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, NDArray

from imbsam_jax import collectives
from imbsam_jax.independent import Buffers, _by_size, _chosen, _plan, _touched
from imbsam_jax.passes import LossesFn, Rows, at_once, carried, check_batched
from imbsam_jax.rows import at_least_float32, check_pair, nan_where
from imbsam_jax.rules import ClassWeights

__all__ = ["batch_renorm"]

Carry = Callable[[tuple[Any, ...], Any], tuple[Any, ...]]


def batch_renorm(
    x: jax.Array, mean: ArrayLike, var: ArrayLike, *, epsilon: float = 1e-5, axis_name: Any = None
) -> jax.Array:
    """Normalises by given statistics in value, and by the batch's own in gradient.

        (x - m) / s * r + d,   r = s / sqrt(var + epsilon),  d = (m - mean) / sqrt(var + epsilon)

    with m and s = sqrt(v + epsilon) the batch's mean and deviation, r and d held fixed. So a pass
    over a group's rows alone sees the values that the whole batch would give it, while scale and
    shift of what is normalised still do not change the loss, as in batch normalisation.

    Args:
      x: float[..., C], a batch.
      mean, var: float[C], the statistics to normalise by; no gradient reaches them.
      epsilon: added to both variances.
      axis_name: the device axis over which m and v are taken, or None.

    Returns:
      Like x, at least float32; without a scale and a bias, which are the layer's.

    Source: Ioffe, Batch Renormalization, NIPS 2017, Algorithm 1, without its clipping of r and d,
    and with the whole batch's statistics where it has the running ones.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> batch_renorm(x, mean=jnp.array([0.0]), var=jnp.array([4.0]), epsilon=0.0).tolist()
    [[0.5], [1.5]]
    >>> jax.grad(lambda x: batch_renorm(x, jnp.zeros(1), jnp.ones(1)).sum())(x).round(5).tolist()
    [[0.0], [0.0]]
    """
    wide = x.astype(at_least_float32(x.dtype))
    axes = tuple(range(x.ndim - 1))
    m, square = collectives.mean((wide.mean(axes), jnp.square(wide).mean(axes)), axis_name)
    shape = (1,) * (x.ndim - 1) + (-1,)
    s = jnp.sqrt(jnp.maximum(square - jnp.square(m), 0) + epsilon).reshape(shape)
    m, mean, var = (jnp.asarray(each, wide.dtype).reshape(shape) for each in (m, mean, var))
    s_given = jnp.sqrt(var + epsilon)
    r, d = lax.stop_gradient((s / s_given, (m - mean) / s_given))
    return (wide - m) / s * r + d


class SplitPasses:
    """The passes over a batch at one table's points.

    Attributes:
      losses: float[B] at theta, once `clean` was called.
      aux: of the pass at theta.
    """

    def __init__(
        self,
        losses_fn: LossesFn,
        params: Any,
        rows: Rows,
        table: ClassWeights,
        axis_name: Any,
        batched: tuple[bool, ...] | None,
        buffers: Buffers,
        carry: Carry | None,
    ):
        self._losses_fn, self._params, self._axis_name = losses_fn, params, axis_name
        self._which = check_batched(batched, rows.args, rows.labels.shape[0])
        self._whole = self._groups = rows
        self._carry = carry
        # Of each group the classes and sizes, None where there is nothing to leave out.
        self._plans = [self._plan(w, rows, buffers) for w in table.groups]
        self._next = iter(self._plans)
        self.losses, self.aux = jnp.zeros(0), None

    def clean(self, weights: list[Any]) -> list[Any]:
        plans = [*self._plans, *[None] * (len(weights) - len(self._plans))]
        whole = [w for w, plan in zip(weights, plans, strict=True) if plan is None]
        found, self.losses, self.aux = at_once(
            self._losses_fn, self._params, whole, self._whole, self._axis_name
        )
        if self._carry is not None:
            self._groups = carried(self._carry, self._whole, self.aux)
        ready = iter(found)
        return [
            next(ready) if plan is None else self._own_rows(self._params, w, *plan)[0]
            for w, plan in zip(weights, plans, strict=True)
        ]

    def moved(self, point: Any, class_weights: Any) -> tuple[Any, jax.Array]:
        plan = next(self._next)
        if plan is not None:
            return self._own_rows(point, class_weights, *plan)
        (grads,), losses, _ = at_once(
            self._losses_fn, point, [class_weights], self._whole, self._axis_name
        )
        return grads, losses

    def _plan(
        self, class_weights: Any, rows: Rows, buffers: Buffers
    ) -> tuple[NDArray[np.bool_], tuple[int, ...]] | None:
        ((_, classes, sizes),) = _plan([class_weights], rows.labels, buffers, every_row=False)
        return None if sizes == (rows.labels.shape[0],) else (classes, sizes)

    def _own_rows(
        self, point: Any, class_weights: Any, classes: NDArray[np.bool_], sizes: tuple[int, ...]
    ) -> tuple[Any, jax.Array]:
        """(gradient, losses float[B]) of the rows of these classes; 0 for those of others."""
        touched = _touched(classes, self._groups)
        order, count = jnp.argsort(~touched, stable=True), touched.sum()
        grads, losses = _by_size(
            sizes, count, partial(self._in_buffer, point, class_weights, order, count)
        )
        if sizes[-1] < touched.shape[0]:
            grads, losses = nan_where(count > sizes[-1], (grads, losses))
        return grads, losses

    def _in_buffer(
        self, point: Any, class_weights: Any, order: jax.Array, count: jax.Array, number: int
    ) -> tuple[Any, jax.Array]:
        # Filled up with the group's own rows again: no other enters their statistics.
        place = jnp.arange(number)
        index, first = order[place % jnp.maximum(count, 1)], place < count
        part = _chosen(self._groups, self._which, index)
        part = part._replace(mask=first if part.mask is None else first & part.mask)

        def losses_alone(params: Any, *args: Any) -> tuple[jax.Array, None]:
            return check_pair(self._losses_fn(params, *args))[0], None

        (grads,), losses, _ = at_once(
            losses_alone, point, [class_weights], part, self._axis_name, "examples='split_norm'"
        )
        size = order.shape[0]
        losses = (
            jnp.zeros(size, losses.dtype).at[jnp.where(first, index, size)].set(losses, mode="drop")
        )
        # The sides of a branch must agree in what varies over devices.
        varying: tuple[Any, jax.Array] = collectives.varying((grads, losses), self._axis_name)
        return varying
