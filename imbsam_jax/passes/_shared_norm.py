"""`shared_norm`: one pass at theta, in parts that share the statistics of batch normalisation.

    g(theta) = grad L[base](theta) + sum_k grad L[group_k](theta + e_k)
    e_k = radius_k * d_k / ||d_k||_2,   d_k = grad L[group_k](theta)
    grad L[w](theta) = sum_p (1/B) sum_{i in p} w[y_i] grad_p loss_i(theta)

where a part p is the rows that the same rows of the table weigh (ImbSAM: head and tail), and grad_p
is the gradient of a loss whose layers are normalised by the statistics of the whole batch at theta
in value, and through those of the rows of p in gradient: batch renormalisation (`batch_norm`). So
d_k and the base's gradient come out of one forward pass, and a group costs what its own rows do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from imbsam_jax import collectives
from imbsam_jax.checks import at_least_float32, is_concrete
from imbsam_jax.passes._batch import LossesFn, OverRows, Rows, at_once, check_batched, check_options
from imbsam_jax.passes._buffers import Buffers, sizes_of
from imbsam_jax.passes._chosen_rows import check_buffers, chosen, touched_rows
from imbsam_jax.passes._lockstep import Traced, together, traced
from imbsam_jax.rows import check_losses, check_pair, nan_where, part_of_batch
from imbsam_jax.table import ClassWeights

__all__ = ["shared_norm"]


@dataclass(frozen=True)
class shared_norm:
    """Every part of a table over its own rows, normalised by the statistics of the whole batch.

    For models whose layers normalise by `imbsam_jax.batch_norm`, as `imbsam_jax.nnx.BatchNorm`
    does. About 1 + f times SGD's cost for ImbSAM with a share f of tail rows, 2 for SSE-SAM's
    first stage and GSA. **Not the same gradient**: exactly, the tail's loss reaches the head's rows
    through the statistics, and the head's loss the tail's rows; here each part's reaches its own
    rows alone, so that with rho = 0 this is not SGD's gradient. (`split_norm` has the base's
    gradient through the whole batch.) Of a part of one row, without pixels, nothing but rounding
    comes through a layer: it is its own mean.

    Where all classes are one part (SGD, SAM, Focal-SAM; soft labels) passes are over the whole
    batch and exact, as `whole` has them. Weights that are traced weigh every class.

    Args:
      buffers: how many rows there is room for in a part, as `own_rows` has it, but one size each:
        `stratified_buffers`. Rows that do not fit make the gradient NaN.
      batched: which of the args of losses_fn have the batch axis; see `whole`.

    Of the aux, leaves whose leading axis follows the number of rows are put back in the order of
    the batch; of other floats the mean over the parts is taken, by their rows. Of what they share,
    the statistics of `batch_norm`, that is these; of a mean over rows it is that of the whole batch
    where no buffer is filled up (which is done with rows of the part again). Rows that are masked
    are in no part and no statistic; their loss and aux are 0.

    Against the exact gradient it loses 0.7 to 1.5 points of the medium classes on a small
    CIFAR100-LT, and up to 8 over all on CIFAR10-LT (results/cheaper_passes), so that it is not
    recommended; its cost is in results/step_cost.

    Raises, when called:
      ValueError: buffers of several sizes; a losses_fn without a layer of `batch_norm`, or with one
        inside a loop, a branch or `jax.checkpoint`.

    >>> def losses_fn(w, x):
    ...     y, mean, var = ij.batch_norm(w * x)
    ...     return y[:, 0] ** 3, (mean, var)
    >>> rule = rules.imbsam([9, 1], rho=0.1, eta=1)
    >>> passes = shared_norm(ij.stratified_buffers([0, 1], rows=(2, 2)))
    >>> f = ij.value_and_grad(losses_fn, rule, passes=passes)
    >>> x, labels = jnp.array([[0.0], [2.0], [5.0], [6.0]]), jnp.array([0, 1, 1, 0])
    >>> (loss, (mean, _)), _ = f(jnp.array(2.0), labels, x)
    >>> mean.tolist()
    [6.5]
    """

    buffers: Buffers
    batched: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        check_buffers(self.buffers)
        check_options(self.batched)

    def over(
        self, losses_fn: LossesFn, params: Any, rows: Rows, table: ClassWeights, axis_name: Any
    ) -> _SharedNorm:
        """See `Passes.over`."""
        return _SharedNorm(self, losses_fn, params, rows, axis_name)


class _Part(NamedTuple):
    """Rows of a batch that the same rows of the table weigh.

    Attributes:
      weighed_by: numbers of these.
      rows: in a buffer, filled up with the part's own again; masked where they are no row of it.
      place: int[b], where they are in the batch; B for what is no row of the part.
      full: whether there were more.
      losses_fn: params -> (losses float[b], aux), of these rows.
    """

    weighed_by: tuple[int, ...]
    rows: Rows
    place: jax.Array
    full: jax.Array | None
    losses_fn: Traced


class _SharedNorm(OverRows):
    """Attributes: losses and aux, of the pass at theta."""

    def __init__(
        self, how: shared_norm, losses_fn: LossesFn, params: Any, rows: Rows, axis_name: Any
    ):
        super().__init__(losses_fn, params, rows, axis_name)
        self._buffers = how.buffers
        self._which = check_batched(how.batched, rows.args, rows.labels.shape[0])
        self._parts: list[_Part] = []

    def clean(self, table: list[Any]) -> list[Any]:
        kinds = _kinds(table, self._rows.labels)
        if len(kinds) == 1:
            whole, self.losses, self.aux = at_once(
                self._losses_fn, self._params, table, self._rows, self._axis_name
            )
            return whole
        self._parts = parts = [self._part(*kind) for kind in kinds]

        def run(points: list[Any]) -> Any:
            pairs, given = together([part.losses_fn for part in parts], points)
            return [losses for losses, _ in pairs], ([aux for _, aux in pairs], given)

        points = [self._params] * len(parts)
        losses, pullback, (aux, self._given) = jax.vjp(run, points, has_aux=True)
        self.losses = self._back(parts, losses)
        self.aux = self._aux_of_all(aux)

        found: list[list[Any]] = [[] for _ in table]
        for turn in range(max(len(part.weighed_by) for part in parts)):
            # See `at_once`. A part that has had its last turn has it again, and nobody looks.
            back, found = (pullback, found) if turn == 0 else collectives.apart(pullback, found)
            number = [part.weighed_by[min(turn, len(part.weighed_by) - 1)] for part in parts]
            pairs = zip(parts, losses, number, strict=True)
            (grads,) = back([self._weights(part, table[k], of.dtype) for part, of, k in pairs])
            for part, k, grad in zip(parts, number, grads, strict=True):
                if turn < len(part.weighed_by):
                    found[k].append(grad)
        full = [part.full for part in parts if part.full is not None]
        sums = [self._sum(each) for each in found]
        if full:
            sums, self.losses = nan_where(reduce(jnp.logical_or, full), (sums, self.losses))
        return sums

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, jax.Array]:
        if not self._parts:
            (grads,), losses, _ = at_once(
                self._losses_fn, point, [class_weights], self._rows, self._axis_name
            )
            return grads, losses
        parts = [part for part in self._parts if group in part.weighed_by]

        def run(point: Any) -> Any:
            pairs, _ = together(
                [part.losses_fn for part in parts], [point] * len(parts), self._given
            )
            return [losses for losses, _ in pairs]

        there: Any
        there, pullback = jax.vjp(run, point)
        pairs = zip(parts, there, strict=True)
        (grads,) = pullback([self._weights(part, class_weights, of.dtype) for part, of in pairs])
        return grads, self._back(parts, there)

    def _sum(self, grads: list[Any]) -> Any:
        """Of gradients over parts; of none, of a row of the table that weighs nothing."""
        if not grads:
            return jax.tree.map(jnp.zeros_like, self._params)
        return jax.tree.map(lambda *leaves: sum(leaves), *grads)

    def _part(self, weighed_by: tuple[int, ...], classes: NDArray[np.bool_]) -> _Part:
        """The rows of these classes, and the losses_fn traced over them."""
        size = self._rows.labels.shape[0]
        sizes = sizes_of(self._buffers, classes, size)
        if len(sizes) > 1:
            raise ValueError(
                "shared_norm passes over all parts of a batch side by side, with one size of "
                f"buffer for each: buffers gave {list(sizes)}; draw batches with the same number "
                "of rows of each part, and use stratified_buffers"
            )
        touched = touched_rows(classes, self._rows)
        order, count = jnp.argsort(~touched, stable=True), touched.sum()
        slot = jnp.arange(sizes[0])
        index, first = order[slot % jnp.maximum(count, 1)], slot < count
        rows = chosen(self._rows, self._which, index)
        rows = rows._replace(mask=first if rows.mask is None else first & rows.mask)

        def losses_fn(params: Any) -> tuple[jax.Array, Any]:
            with part_of_batch("shared_norm"):
                losses, aux = check_pair(self._losses_fn(params, *rows.args))
            return check_losses(losses, rows.labels), aux

        full = None if sizes[0] == size else count > sizes[0]
        program = traced(losses_fn, self._params, rows.mask.astype(float))
        return _Part(weighed_by, rows, jnp.where(first, index, size), full, program)

    def _weights(self, part: _Part, class_weights: Any, dtype: Any) -> jax.Array:
        weights: jax.Array = collectives.varying(
            part.rows.weights(class_weights, dtype), self._axis_name
        )
        return weights

    def _back(self, parts: list[_Part], leaves: list[Any]) -> Any:
        """[B, ...] of the rows of these parts in the order of the batch; 0 for others."""
        size = self._rows.labels.shape[0]
        whole = jnp.zeros((size, *leaves[0].shape[1:]), leaves[0].dtype)
        for part, leaf in zip(parts, leaves, strict=True):
            whole = whole.at[part.place].set(leaf, mode="drop")
        return whole

    def _aux_of_all(self, aux: list[Any]) -> Any:
        """Of rows in the order of the batch, of others the mean over the parts."""
        shapes = [jax.tree.leaves(part.losses_fn.shapes[1]) for part in self._parts]
        sizes = {part.rows.labels.shape[0] for part in self._parts}
        if len(sizes) == 1:
            shapes.append(jax.tree.leaves(self._shapes_of(sizes.pop() + 1)))
        of_rows = iter(
            [len({leaf.shape for leaf in each}) > 1 for each in zip(*shapes, strict=True)]
        )
        rows = [part.rows.mask.sum() for part in self._parts]

        def leaf(*of_parts: Any) -> Any:
            if next(of_rows):
                return self._back(self._parts, list(of_parts))
            return _mean(of_parts, rows)

        return jax.tree.map(leaf, *aux)

    def _shapes_of(self, size: int) -> Any:
        """The aux of so many rows, of which there are none."""

        def resized(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct((size, *jnp.shape(leaf)[1:]), jnp.result_type(leaf))

        pairs = zip(self._rows.args, self._which, strict=True)
        args = [jax.tree.map(resized, arg) if has_rows else arg for arg, has_rows in pairs]
        with part_of_batch("shared_norm"):
            return jax.eval_shape(self._losses_fn, self._params, *args)[1]


def _mean(of_parts: Any, rows: list[jax.Array]) -> Any:
    """By their rows, or alike where none has any; of what is no float, the first part's."""
    if not jnp.issubdtype(jnp.result_type(of_parts[0]), jnp.floating):
        return of_parts[0]
    wide = at_least_float32(of_parts[0].dtype)
    number = jnp.stack(rows).astype(wide)
    share = jnp.where(number.sum() == 0, 1 / len(rows), number / jnp.maximum(number.sum(), 1))
    mean = sum(leaf.astype(wide) * share[k] for k, leaf in enumerate(of_parts))
    return mean.astype(of_parts[0].dtype)


def _kinds(table: list[Any], labels: jax.Array) -> list[tuple[tuple[int, ...], NDArray[np.bool_]]]:
    """(numbers of the rows of the table, the classes that just these weigh) of each part."""
    of_rows = np.stack(
        [
            np.asarray(w) != 0 if is_concrete(w) and labels.ndim == 1 else np.ones(len(w), bool)
            for w in table
        ]
    )
    found: dict[tuple[int, ...], NDArray[np.bool_]] = {}
    columns, which = np.unique(of_rows, axis=1, return_inverse=True)
    for number, column in enumerate(columns.T):
        found[tuple(np.flatnonzero(column).tolist())] = which.reshape(-1) == number
    # A class that nothing weighs is in the statistics and in the loss reported, all the same.
    nothing = found.pop((), None)
    if nothing is not None and found:
        most = max(found, key=lambda rows: found[rows].sum())
        found[most] = found[most] | nothing
    return list(found.items()) or [((), np.ones(of_rows.shape[1], bool))]
