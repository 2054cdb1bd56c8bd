"""ImbSAM at SGD's price: the tail is perturbed along what earlier steps saw of its gradient.

    g(theta_t) = grad L[base](theta_t) + sum_k grad L[group_k](theta_t + e_k)
    e_k        = radius_k * m_k / ||m_k||_2
    m_k       <- decay * m_k + (1 - decay) * grad L[group_k](theta_t + e_k),   m_k = 0 at first

It is core.py's gradient with d_k = m_k, a memory, in place of `d_k = grad L[group_k](theta)`. No
group is differentiated at theta, so every row is taken once: rows of the base at theta, those of a
group at theta + e_k. With the whole batch in each pass that makes 2 forward and 2 backward passes
where ImbSAM has 2 and 3; with `passes.own_rows` it is SGD's price.

This is ours: no paper proposes it. Nearest is Momentum-SAM (Becker et al., 2024, arXiv 2401.12033),
which moves all parameters against the optimizer's momentum, for all classes alike.
Measured on long-tailed digits (results/digits_lt/README.md): at a radius of its own, larger than
the exact gradient's, it keeps nine tenths of ImbSAM's gain over SGD. Per unit of compute it is no
better than ImbSAM there; SAM with such a memory broke training at the radius that ImbSAM took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imbsam_jax import checks, collectives, core
from imbsam_jax.ascent import Ascent, check_ascent
from imbsam_jax.checks import at_least_float32, is_concrete
from imbsam_jax.passes import own_rows, whole
from imbsam_jax.passes._batch import LossesFn, OverRows, Rows, at_once
from imbsam_jax.passes._chosen_rows import over_chosen_rows, rows_of_either
from imbsam_jax.rows import (
    check_floats_like,
    check_labels,
    check_leaves,
    check_mask,
    check_params,
    nan_where_no_class,
    row_weights,
)
from imbsam_jax.table import ClassWeights, Rule, check_rule, check_step, stagewise, table_of

__all__ = ["init", "value_and_grad"]


def init(params: Any, rule: Rule) -> tuple[Any, ...]:
    """A memory of nothing: one tree of zeros like params for each group the rule perturbs.

    Args:
      params: any tree of arrays.
      rule: as given to `value_and_grad`.

    Returns:
      A tuple of G trees, in float32 or, where params are, in float64.

    Raises:
      ValueError: a staged rule, params without leaves.
      TypeError: params that are not real and floating.

    >>> [m.tolist() for m in init(jnp.ones(2), rules.imbsam([8, 2], rho=0.1, eta=4))]
    [[0.0, 0.0]]
    """
    _refuse_stages(check_rule(rule))

    def zeros(leaf: Any) -> jax.Array:
        return jnp.zeros(leaf.shape, at_least_float32(leaf.dtype))

    params = check_leaves(params)
    return tuple(jax.tree.map(zeros, params) for _ in range(table_of(rule, 0).groups.shape[0]))


def value_and_grad(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    rule: Rule,
    *,
    decay: Any,
    axis_name: Any = None,
    ascent: Ascent = Ascent(),
    passes: whole | own_rows = whole(),
) -> Callable[..., Any]:
    """`imbsam_jax.value_and_grad` with a remembered ascent direction, which goes in and comes out.

        e_k = radius_k * m_k / ||m_k||_2,   m_k <- decay * m_k + (1 - decay) * g_k

    with g_k the group's own gradient at theta + e_k, over all devices.

    Args:
      losses_fn, rule, axis_name, ascent: as there. The rule has no stages; `ascent.weight_decay`
        enters the direction at theta and is not remembered.
      passes: `whole()`, at once and with nothing carried, or `own_rows(...)`.
      decay: how much of the memory a step keeps, at least 0 and below 1; may be traced. 0
        remembers the last batch that had a row of the group.

    Returns:
      `f(params, memory, labels, *args, step=None, mask=None) ->
      ((mean_loss, aux), grads, new_memory)`.
        memory: of the last step; `init(params, rule)` before the first, which perturbs nothing.
          The same on every device, and so is the new one: it holds averages over all devices. A
          group without a row in the batch keeps its memory as it is. What is not finite stays.
        mean_loss, aux: those at theta with `whole`. With `own_rows` a row is
          seen once: it has its loss and aux at theta where the base weighs it, else at theta +
          e_k of the first group that does. A rule without a base (SAM) has no pass at theta: its
          losses are always such, and with `whole` aux is that of the first group.
        grads: like params, averaged over the devices.

    Inside shard_map and pmap a step has one all-reduce, which carries loss, gradient and the part
    of each group; the exact gradient has two, of one gradient each (and of one direction a group).

    Raises:
      ValueError: as there; a staged rule, a memory of another number of groups or of trees unlike
        params, a bad decay, a class that neither base nor a group weighs with `own_rows`.
      TypeError: as there; a memory that is no tuple, or not of floats.

    >>> def losses_fn(w, x, y):
    ...     return (x @ w - y) ** 2, None
    >>> rule = rules.imbsam([8, 2], rho=0.1, eta=4)
    >>> f = jax.jit(value_and_grad(losses_fn, rule, decay=0.5))
    >>> w, x, y = jnp.array([1.0]), jnp.array([[1.0], [2.0]]), jnp.array([0.0, 1.0])
    >>> _, grads, memory = f(w, init(w, rule), jnp.array([0, 1]), x, y)
    >>> float(grads[0]), float(memory[0][0])  # nothing is remembered, so nothing perturbed
    (3.0, 1.0)
    >>> _, grads, memory = f(w, memory, jnp.array([0, 1]), x, y)
    >>> round(float(grads[0]), 4)  # as the exact gradient: in one dimension there is one direction
    3.4
    """
    checks.function("losses_fn", losses_fn, "(params, *args) -> (losses float[B], aux)")
    check_rule(rule)
    _refuse_stages(rule)
    how = check_ascent(ascent, rule).of(rule)
    if how.bound or how.direction != "plain":
        raise ValueError(
            "a memory keeps no length of the gradient and no sum of one batch, which rules.gsa "
            "takes its radius and direction from: remember the directions of another rule"
        )
    plain = isinstance(passes, whole) and passes.micro_batches == 1 and passes.carry is None
    if not (plain or isinstance(passes, own_rows)):
        raise ValueError(
            "a remembered direction takes passes.whole() without micro-batches and carry, or "
            f"passes.own_rows(...); got {passes}"
        )
    decay = checks.number("decay", decay, least=0, below=1)

    def f(
        params: Any, memory: Any, labels: Any, *args: Any, step: Any = None, mask: Any = None
    ) -> Any:
        check_step(step)
        labels = check_labels(labels)
        mask = check_mask(mask, labels.shape[0])
        local = collectives.varying(check_params(params), axis_name)
        rows = Rows(args, labels, mask, labels.shape[0])
        table = table_of(rule, step)
        if not isinstance(memory, tuple | list):
            raise TypeError(
                "the memory must be a tuple of one tree for each group, got "
                f"{type(memory).__name__}: begin with init(params, rule)"
            )
        if len(memory) != table.groups.shape[0]:
            raise ValueError(
                f"the memory is of {len(memory)} groups and the rule has {table.groups.shape[0]}: "
                "begin with init(params, rule)"
            )
        memory = tuple(
            check_floats_like(f"memory[{k}]", tree, local) for k, tree in enumerate(memory)
        )
        if isinstance(passes, own_rows):
            _refuse_unseen_classes(table)
        batch = _Remembering(passes, losses_fn, local, rows, axis_name, memory, table)
        grads, _ = core.gradient(batch, local, table, ascent=how, axis_name=axis_name, sync=False)
        some_weights = table.groups[0] if table.base is None else table.base
        grads, own = nan_where_no_class((grads, batch.own), some_weights, labels, mask)
        losses = batch.losses if mask is None else jnp.where(mask, batch.losses, 0)
        shares = [batch.share(weights) for weights in table.groups]
        mean_loss = losses.mean(dtype=at_least_float32(losses.dtype))
        mean_loss, grads, own, shares = core.mean_over_rows(
            (mean_loss, grads, own, shares), batch, axis_name
        )
        new_memory = tuple(
            _kept(share, decay, old, new)
            for share, old, new in zip(shares, memory, own, strict=True)
        )
        return (mean_loss, batch.aux), grads, new_memory

    return f


class _Remembering(OverRows):
    """The passes of core's gradient with the memory in place of the groups' gradients at theta.

    Attributes:
      losses, aux: of each row's first pass; aux of the first pass where passes are whole.
      own: the gradient of each group at its theta + e.
    """

    def __init__(
        self,
        passes: whole | own_rows,
        losses_fn: LossesFn,
        params: Any,
        rows: Rows,
        axis_name: Any,
        memory: Any,
        table: ClassWeights,
    ):
        super().__init__(losses_fn, params, rows, axis_name)
        self._passes, self._memory, self._has_base = passes, memory, table.base is not None
        self._seen: Any = None
        self._taken = jnp.zeros(rows.labels.shape[0], bool)
        self.own: list[Any] = []

    def clean(self, table: list[Any]) -> list[Any]:
        base = table[len(self._memory) :]
        return [*self._memory, *(self._pass(self._params, weights) for weights in base)]

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, None]:
        self.own.append(self._pass(point, class_weights))
        return self.own[-1], None

    def _pass(self, point: Any, class_weights: Any) -> Any:
        given = (self._losses_fn, point, [class_weights], self._rows, self._axis_name)
        alone = isinstance(self._passes, own_rows)
        if isinstance(self._passes, own_rows):
            (grads,), *found = over_chosen_rows(
                *given, self._passes.batched, self._passes.buffers, every_row=False
            )
        else:
            (grads,), *found = at_once(*given)
        if self._seen is None:
            self._seen = found
        elif alone:
            self._seen = rows_of_either(self._taken, self._seen, found)
        elif not self._has_base:
            self._seen = rows_of_either(self._taken, self._seen[0], found[0]), self._seen[1]
        touched = jnp.asarray(class_weights) != 0
        self._taken |= row_weights(touched, self._rows.labels, self._rows.mask, float) != 0
        self.losses, self.aux = self._seen
        return grads


def _kept(share: jax.Array, decay: Any, old: Any, new: Any) -> Any:
    def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        rate = jnp.asarray(decay, old.dtype)
        return jnp.where(share == 0, old, rate * old + (1 - rate) * new.astype(old.dtype))

    return jax.tree.map(leaf, old, new)


def _refuse_stages(rule: Rule) -> None:
    if isinstance(rule, stagewise):
        raise ValueError(
            "a staged rule perturbs other groups in each stage, so that no memory fits them all: "
            "make a value_and_grad and a memory for each of rule.stages"
        )


def _refuse_unseen_classes(table: ClassWeights) -> None:
    parts = [*([] if table.base is None else [table.base]), *table.groups]
    if not all(map(is_concrete, parts)):
        return
    unseen = np.flatnonzero(~np.any([np.asarray(part) != 0 for part in parts], axis=0))
    if unseen.size:
        raise ValueError(
            f"own_rows takes no pass over classes {unseen.tolist()}, which neither the base nor a "
            "group weighs: their loss would be unknown; use passes.whole()"
        )
