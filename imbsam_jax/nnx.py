"""The door for Flax NNX: `value_and_grad` of a function of a module, as `nnx.value_and_grad` is.

    (loss, aux), grads = ij.nnx.value_and_grad(losses_fn, rule)(model, labels, images, labels)
    optimizer.update(model, grads)

The first labels are for the rule, what follows them is for losses_fn. A module is split into what
is differentiated and the rest of its state; each pass merges a copy of its own. What the pass at
theta left in the rest (running statistics, counts of random numbers drawn) is put back into the
module, once.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imbsam_jax import gradient
from imbsam_jax.ascent import Ascent
from imbsam_jax.checks import function, short
from imbsam_jax.passes import Passes, own_rows, shared_norm, whole
from imbsam_jax.passes._batch_norm import normalised
from imbsam_jax.rows import check_pair
from imbsam_jax.table import Rule

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("imbsam_jax.nnx needs Flax: pip install 'flax>=0.12'") from error

__all__ = ["BatchNorm", "carry_batch", "carry_statistics", "value_and_grad"]


def value_and_grad(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    rule: Rule,
    *,
    passes: Passes = whole(),
    ascent: Ascent = Ascent(),
    axis_name: Any = None,
    sync_ascent: bool = True,
    info: bool = False,
    wrt: Any = nnx.Param,
) -> Callable[..., Any]:
    """`imbsam_jax.value_and_grad` for a Flax NNX module.

        g = grad L[base](theta) + sum_k grad L[group_k](theta + e_k),
        theta = nnx.state(model, wrt)

    Running statistics become those of the pass at theta. Every pass draws the same random numbers,
    and the counts of the model's streams go on as after one pass.

    Args:
      losses_fn: `losses_fn(model, *args) -> (losses float[B], aux)`, one loss per example.
      rule, ascent, axis_name, sync_ascent, info: as in `imbsam_jax.value_and_grad`. With an
        axis_name statistics are this device's: give `nnx.BatchNorm` the name, too.
      passes: as there. Of micro-batches, which draw the same numbers, statistics are averaged (of
        floats; of others the last). A `carry` finds the state that wrt leaves out, an `nnx.State`,
        as the last of the args, and as aux a pair: that of losses_fn, and what a pass changed in
        the state: `carry_statistics`, `carry_batch`. `own_rows` is refused where losses_fn changes
        more than counts of random numbers, and `shared_norm` where a layer of normalisation is
        not this module's `BatchNorm`; their passes draw for rows by their place in a pass.
      wrt: which Variables are differentiated and perturbed, a filter of NNX; theta is all of them.

    Returns:
      `f(model, labels, *args, step=None, mask=None) -> ((mean_loss, aux), grads)`, with info
      `((mean_loss, aux, SharpnessInfo), grads)`; grads is an `nnx.State` like
      `nnx.state(model, wrt)`, for `optimizer.update(model, grads)`. step may be `optimizer.step`.
      Inside `nnx.jit` and `nnx.vmap`, and with sharded models, as any function that changes a
      module. What losses_fn does to the structure of the module is lost, but for new Variables.

    Raises:
      ValueError: wrt that selects nothing; and as `imbsam_jax.value_and_grad`.
      TypeError: a module or an `nnx.Rngs` among the args; and as there.

    >>> from flax import nnx
    >>> import optax
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    >>> def losses_fn(model, x, labels):
    ...     return ij.losses.cross_entropy(model(x), labels), None
    >>> f = ij.nnx.value_and_grad(losses_fn, rules.imbsam([80, 9, 2], rho=0.05, eta=9))
    >>> x, labels = jnp.zeros((2, 2)), jnp.array([0, 2])
    >>> (loss, _), grads = f(model, labels, x, labels)
    >>> updates = optimizer.update(model, grads)
    >>> round(float(loss), 4)
    1.0986
    """

    function("losses_fn", losses_fn, "(model, *args) -> (losses float[B], aux)")
    how: Any = {"axis_name": axis_name, "sync_ascent": sync_ascent, "info": info}
    gradient.value_and_grad(losses_fn, rule, passes=passes, ascent=ascent, **how)  # what it refuses

    def loss_and_gradient(
        model: Any, labels: Any, *args: Any, step: Any = None, mask: Any = None
    ) -> Any:
        """((mean_loss, aux), grads) of one batch; see `imbsam_jax.nnx.value_and_grad`."""
        _check_args(args)
        parts: Any = nnx.split(model, wrt, ...)
        graph, params, rest = parts
        if not jax.tree.leaves(params):
            raise ValueError(
                f"wrt={short(wrt)} selects no Variable of the {type(model).__name__}: give a "
                "filter of those that are trained, such as nnx.Param"
            )
        by_rows = isinstance(passes, own_rows)

        def losses_of(params: Any, *args: Any) -> tuple[jax.Array, Any]:
            before = args[-1]
            merged = nnx.merge(graph, params, before, copy=True)
            losses, aux = check_pair(losses_fn(merged, *args[:-1]))
            after: Any = nnx.split(merged, wrt, ...)
            changed = _changed(before, after[2])
            if isinstance(passes, shared_norm):
                _check_layers(changed)
            if by_rows:
                changed = _a_row_each(changed, jnp.shape(losses))
            return losses, (aux, changed)

        f = gradient.value_and_grad(
            losses_of, rule, passes=_beside_the_state(passes, len(args)), ascent=ascent, **how
        )
        step = step[...] if isinstance(step, nnx.Variable) else step
        (loss, (aux, changed), *details), grads = f(
            params, labels, *args, rest, step=step, mask=mask
        )
        changed = nnx.filter_state(changed, nnx.Not(OfBatch))  # of this step alone
        nnx.update(model, _of_any_row(changed, rest) if by_rows else _of_parts(changed, rest))
        return (loss, aux, *details), grads

    return loss_and_gradient


def carry_statistics(args: tuple[Any, ...], aux: Any) -> tuple[Any, ...]:
    """A `carry` of the passes: every pass updates running statistics, as in the released code.

    Of the state beside the parameters, the last of args, the Variables that are `nnx.BatchStat`
    come from the pass before. For `value_and_grad` of this module; `passes.whole` says more.

    Args:
      args: those of the pass before, the state last.
      aux: of the pass before, a pair: that of losses_fn, and what the pass changed in the state.

    Returns:
      The args of the next pass.

    >>> ij.passes.whole(carry=ij.nnx.carry_statistics).micro_batches
    1
    """
    return _handed_on(args, aux, nnx.BatchStat)


def carry_batch(args: tuple[Any, ...], aux: Any) -> tuple[Any, ...]:
    """A `carry` of `passes.split_norm`: every `BatchNorm` renormalises a group's rows.

    By the statistics that the whole batch had in the pass at theta. Only this module's
    `BatchNorm`, not Flax's own. (`passes.shared_norm` needs no carry.)

    Args:
      args, aux: as those of `carry_statistics`.

    Returns:
      The args of the next pass.

    >>> ij.passes.split_norm(lambda classes: (8, 64), carry=ij.nnx.carry_batch).carry.__name__
    'carry_batch'
    """
    *first, state = _handed_on(args, aux, OfBatch)
    held = nnx.filter_state(state, Held)
    return (*first, nnx.merge_state(state, _map(jnp.ones_like, held)))


def _handed_on(args: tuple[Any, ...], aux: Any, kind: Any) -> tuple[Any, ...]:
    *first, state = args
    changed = _of_parts(nnx.filter_state(aux[1], kind), state)
    return (*first, nnx.merge_state(state, changed))


class OfBatch(nnx.Variable[Any]):
    """What a batch had, noted by a pass for those after it."""


class Held(nnx.Variable[Any]):
    """bool[], whether to normalise by what was noted; True inside a step alone."""


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` that can normalise a part of a batch by the statistics of all of it.

    The same layer over a whole batch. Under `passes.shared_norm` it is `imbsam_jax.batch_norm`:
    all parts have the statistics of the batch in value, and their own in gradient. Under
    `split_norm(buffers, carry=carry_batch)` a pass over a group's rows has those that the pass
    at theta noted. The first axis is that of the rows, the last that of the features.

    Args:
      num_features: C.
      rngs: streams of random numbers, of which none is drawn.
      options: those of `nnx.BatchNorm` less `axis`, `axis_index_groups`, `promote_dtype` and
        `mask`; variances are fast ones.

    Raises:
      ValueError: an option that is left out; when called, a mask, an x of other features.

    >>> from flax import nnx
    >>> layer = ij.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0], [3.0]])).round(3).tolist(), layer.mean[...].round(3).tolist()
    ([[-1.0], [1.0]], [0.02])
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Any):
        left_out = {"axis", "axis_index_groups", "promote_dtype"} & options.keys()
        # The passes after the first know a batch by its sums and sums of squares.
        left_out |= {"use_fast_variance"} if not options.get("use_fast_variance", True) else set()
        if left_out:
            raise ValueError(f"{min(left_out)} is not for imbsam_jax.nnx.BatchNorm: leave it out")
        super().__init__(num_features, rngs=rngs, **options)
        self.batch_mean = OfBatch(jnp.zeros_like(self.mean[...]))
        self.batch_var = OfBatch(jnp.ones_like(self.var[...]))
        self.held = Held(jnp.zeros((), bool))

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None
    ) -> jax.Array:
        """Like x, normalised over all axes but the last."""
        if mask is not None:
            raise ValueError("imbsam_jax.nnx.BatchNorm takes no mask: it normalises every row")
        if x.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"x must be float[..., {self.num_features}], as the layer was made for so many "
                f"features, got shape {list(x.shape)}"
            )
        running = self.use_running_average if use_running_average is None else use_running_average
        if running:
            return super().__call__(x, use_running_average=True)
        y, mean, var = normalised(
            x if x.ndim > 1 else x[None],  # an example of a vmap over the rows
            None if self.scale is None else self.scale[...],
            None if self.bias is None else self.bias[...],
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            held=(self.held[...], self.batch_mean[...], self.batch_var[...]),
        )
        for moving, noted, new in (
            (self.mean, self.batch_mean, mean), (self.var, self.batch_var, var)
        ):  # fmt: skip
            new = new.astype(moving.dtype)
            noted[...] = new
            moving[...] = self.momentum * moving[...] + (1 - self.momentum) * new
        y = y.reshape(x.shape)
        return y if self.dtype is None else y.astype(self.dtype)


# ---------------------------------------------------------------------------- the rest of a state


def _check_args(args: tuple[Any, ...]) -> None:
    for number, arg in enumerate(args):
        found = [x for x in jax.tree.leaves(arg, is_leaf=_holds_state) if _holds_state(x)]
        if found:
            raise TypeError(
                f"args[{number}] is or holds a {type(found[0]).__name__}, whose state would go on "
                "in every pass: keep it in the model, which every pass copies, or give arrays, "
                "such as keys"
            )


def _holds_state(x: Any) -> bool:
    return isinstance(x, nnx.Module | nnx.Rngs | nnx.RngStream)


def _beside_the_state(passes: Any, number: int) -> Any:
    """The passes, told that the last arg is the state, which has no batch axis."""
    if isinstance(passes, type) or not hasattr(passes, "batched"):
        return passes  # refused later, or one that the user wrote
    batched = (True,) * number if passes.batched is None else tuple(passes.batched)
    if len(batched) != number:
        raise ValueError(f"batched has {len(batched)} entries for {number} args of losses_fn")
    return dataclasses.replace(passes, batched=(*batched, False))


def _changed(before: Any, after: Any) -> Any:
    """Of the state after a pass what has another array than before, and what is new.

    What is not trained, a frozen network under an adapter, is then no output of a pass.
    """
    was = {path: jax.tree.leaves(variable) for path, variable in nnx.to_flat_state(before)}

    def same(path: tuple[Any, ...], now: list[Any]) -> bool:
        old = was.get(path, [])
        return len(old) == len(now) > 0 and all(map(operator.is_, old, now))

    return nnx.from_flat_state(
        [
            (path, variable)
            for path, variable in nnx.to_flat_state(after)
            if not same(path, jax.tree.leaves(variable))
        ]
    )


def _map(of: Callable[..., Any], state: Any, *others: Any) -> Any:
    """The state with of(array, of the same Variable in the others) in its Variables."""
    flat = [dict(nnx.to_flat_state(other)) for other in others]
    return nnx.from_flat_state(
        [
            (path, jax.tree.map(of, variable, *(other[path] for other in flat)))
            for path, variable in nnx.to_flat_state(state)
        ]
    )


def _of_parts(changed: Any, before: Any) -> Any:
    """Of micro-batches, stacked on a leading axis, one state: floats averaged, else the last."""
    was: dict[Any, Any] = {p: jax.tree.structure(v) for p, v in nnx.to_flat_state(before)}
    flat = nnx.to_flat_state(changed)
    # What a pass made, or made longer, as `sow` does, has nothing to be compared with.
    known = {path for path, v in flat if path in was and was[path] == jax.tree.structure(v)}
    new = nnx.from_flat_state([(path, v) for path, v in flat if path not in known])
    old = nnx.from_flat_state([(path, v) for path, v in flat if path in known])

    def of(array: jax.Array, was: Any) -> jax.Array:
        if jnp.ndim(array) == jnp.ndim(was):
            return array
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        return array.mean(axis=0) if floating else array[-1]

    return nnx.merge_state(_map(of, old, before), new)


def _check_layers(changed: Any) -> None:
    """Refuses layers that would take a part's statistics for those of the batch."""
    flat = dict(nnx.to_flat_state(changed))
    ours = {path[:-1] for path, variable in flat.items() if isinstance(variable, OfBatch)}
    for path, variable in flat.items():
        if isinstance(variable, nnx.BatchStat) and path[:-1] not in ours:
            raise ValueError(
                f"shared_norm passes over a batch in parts, and {'.'.join(map(str, path))} would "
                "be that of a part: use imbsam_jax.nnx.BatchNorm in the place of nnx.BatchNorm"
            )


def _a_row_each(changed: Any, shape: tuple[int, ...]) -> Any:
    """Counts as own_rows takes what a pass returns, an entry for each row; nothing else changes."""
    for path, variable in nnx.to_flat_state(changed):
        if not isinstance(variable, nnx.RngCount):
            raise ValueError(
                f"own_rows is for models whose examples do not see each other, and losses_fn "
                f"changes {type(variable).__name__} {'.'.join(map(str, path))}: take "
                "whole(...) or split_norm(...), or use running statistics in training, too"
            )
    return _map(lambda count: jnp.broadcast_to(count, (*shape, *count.shape)), changed)


def _of_any_row(changed: Any, before: Any) -> Any:
    """The counts of those rows that a pass saw; 0 stands for the others."""
    return _map(lambda rows, was: jnp.maximum(rows.max(axis=0), was), changed, before)
