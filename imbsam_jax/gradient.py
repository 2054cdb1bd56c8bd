"""The primary front door: `value_and_grad`, shaped like `jax.value_and_grad(..., has_aux=True)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbsam_jax import checks, collectives, core
from imbsam_jax.ascent import Ascent, check_ascent, norm
from imbsam_jax.checks import at_least_float32
from imbsam_jax.passes import Passes, whole
from imbsam_jax.passes._batch import Rows, Seen
from imbsam_jax.rows import check_labels, check_mask, check_params, nan_where_no_class, row_weights
from imbsam_jax.table import ClassWeights, Rule, check_rule, check_step, stagewise, table_of

__all__ = ["SharpnessInfo", "value_and_grad"]


class SharpnessInfo(NamedTuple):
    """What a step did to each of G groups, for logging; over all devices.

    Attributes:
      ascent_norm: float[G], `||d_k||_2`.
      rows: float[G], rows of the batch with a non-zero weight in the group.
      loss: float[G], weighted mean loss of the group's rows at theta; NaN without such rows.
      perturbed_loss: float[G], the same at theta + e_k.

    Where a staged rule's stages differ in G, the shorter is padded with NaN. Under
    `jax_debug_nans`, which raises where a result is NaN, 0 stands for each of these.
    """

    ascent_norm: jax.Array
    rows: jax.Array
    loss: jax.Array
    perturbed_loss: jax.Array


def value_and_grad(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    rule: Rule,
    *,
    passes: Passes = whole(),
    ascent: Ascent = Ascent(),
    axis_name: Any = None,
    sync_ascent: bool = True,
    info: bool = False,
) -> Callable[..., Any]:
    """Mean loss and sharpness-aware gradient of per-example losses.

        g = grad L[base](theta) + sum_k grad L[group_k](theta + e_k),
        L[w](theta) = (1/B) sum_i w[y_i] loss_i(theta)          (for ImbSAM: Eq. 16 to 19)

    Args:
      losses_fn: `losses_fn(params, *args) -> (losses float[B], aux)`, one loss per example, not
        averaged. It is run once at theta and once per perturbed group, each time with the same
        args, so with the same random keys. Loss and aux reported are those of the run at theta
        (the aux of another one where the passes say so).
      rule: a row of the table, for example `rules.imbsam(class_counts, rho=0.05, eta=100)`.
      passes: how the passes over a batch are run: `passes.whole(...)`, exact for every model, in
        micro-batches for less memory; `passes.own_rows(...)`, exact where examples do not see each
        other and at 1 + f of SGD's cost; `passes.split_norm(...)`, for batch normalisation at
        1 + 2f, another gradient, and `passes.shared_norm(...)`, at 1 + f, a third.
      ascent: how the perturbation is taken.
      axis_name: the device axis, inside pmap, shard_map or vmap, where every device has all of the
        parameters: norms are over those that it has. Leave it None under plain jit, also with a
        batch or parameters sharded over devices.
      sync_ascent: average d_k over the devices before it is normalised. False gives every
        device its own perturbation from its own rows (m-sharpness); the result differs.
      info: also return a SharpnessInfo.

    Returns:
      `f(params, labels, *args, step=None, mask=None) -> ((mean_loss, aux), grads)`, or
      `((mean_loss, aux, SharpnessInfo), grads)` with info=True.
        params: a tree of real floating arrays. Norms, counts and sums are at least float32,
          whatever the type of parameters, losses and labels.
        labels: int[B] of any width, or float[B, C] for soft labels, at least 0 and of sum 1 in
          each row (to 0.005, or twice the precision of their type). A label outside [0, C) makes
          the gradient NaN, whatever the loss does with it, and so does a traced soft label that
          is no distribution; one that can be read is refused. (Without x64 JAX cuts int64
          arguments of a jitted function down to int32 before anything here sees them.)
        step: number of updates made so far; required where the rule depends on it. A Python int
          chooses a stage of a staged rule while tracing, a traced step under `lax.cond`.
        mask: bool[B], False for padding (anything whose derivative is finite, such as zeros). B
          is then the number of True rows, over all devices.
        mean_loss: scalar, `(1/B) sum_i loss_i(theta)`, unweighted, over all devices; at least
          float32.
        aux: what losses_fn returned beside the losses at theta, of this device; `passes` says
          where it is another.
        grads: like params, the same dtypes, averaged over the devices.

    Raises:
      ValueError: averaged losses, labels or a mask of another shape or type, soft labels that do
        not sum to 1, no parameters, a missing step, what `passes` refuses.
      TypeError: losses_fn returns no pair; losses or parameters that are not real and floating
        (complex ones have another gradient: give both parts).

    >>> def losses_fn(w, x, y):
    ...     return (x @ w - y) ** 2, None
    >>> rule = rules.imbsam([8, 2], rho=0.1, eta=4)
    >>> f = jax.jit(value_and_grad(losses_fn, rule))
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([0.0, 1.0])
    >>> (loss, _), grads = f(jnp.array([1.0]), jnp.array([0, 1]), x, y)
    >>> float(loss), round(float(grads[0]), 4)
    (1.0, 3.4)

    Source: ImbSAM, Alg. 1. Its release runs two full forward and three full backward passes,
    as this does; weight decay, like there, belongs outside, at theta (`Ascent.weight_decay` has
    it inside).
    """
    checks.function("losses_fn", losses_fn, "(params, *args) -> (losses float[B], aux)")
    check_rule(rule)
    ascent = check_ascent(ascent, rule)
    checks.truth("sync_ascent", sync_ascent)
    checks.truth("info", info)
    if isinstance(passes, type) or not hasattr(passes, "over"):
        raise TypeError(
            "passes must be passes.whole(...), own_rows(...), split_norm(...) or "
            f"shared_norm(...), got {checks.short(passes)}"
        )

    def loss_and_gradient(
        params: Any, labels: Any, *args: Any, step: Any = None, mask: Any = None
    ) -> Any:
        """((mean_loss, aux), grads) of one batch; see `imbsam_jax.value_and_grad`.

        Args:
          params: any tree of float arrays.
          labels: int[B], or float[B, C] for soft labels.
          *args: passed on to losses_fn, the same in every pass.
          step: number of updates made so far, where the rule depends on it.
          mask: bool[B], False for padding, or None.
        """
        check_step(step)
        labels = check_labels(labels)
        mask = check_mask(mask, labels.shape[0])
        local = collectives.varying(check_params(params), axis_name)
        rows = Rows(args, labels, mask, labels.shape[0])
        most_groups = _most_groups(rule, step) if info else None

        def of_table(table: ClassWeights, how: Ascent) -> Any:
            batch = passes.over(losses_fn, local, rows, table, axis_name)
            grads, groups = core.gradient(
                batch, local, table, ascent=how, axis_name=axis_name, sync=sync_ascent
            )
            some_weights = table.groups[0] if table.base is None else table.base
            grads = nan_where_no_class(grads, some_weights, labels, mask)
            seen = batch.losses if mask is None else jnp.where(mask, batch.losses, 0)
            mean_loss = seen.mean(dtype=at_least_float32(seen.dtype))
            mean_loss, grads = core.mean_over_rows((mean_loss, grads), batch, axis_name)
            if most_groups is None:
                return (mean_loss, batch.aux), grads
            details = _info(table, groups, batch, rows, axis_name, most_groups)
            return (mean_loss, batch.aux, details), grads

        return core.by_stage(rule, step, ascent, of_table)

    return loss_and_gradient


def _info(
    table: ClassWeights,
    groups: list[tuple[Any, jax.Array]],
    batch: Seen,
    rows: Rows,
    axis_name: Any,
    most_groups: int,
) -> SharpnessInfo:
    losses, labels, mask, real = batch.losses, rows.labels, rows.mask, batch.real
    share = jnp.ones(()) if real is None else collectives.mean(real, axis_name)
    share = jnp.where(share == 0, 1, share)  # of padding alone, the norm is 0
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    wide = at_least_float32(losses.dtype)
    # Under jax_debug_nans, which raises where a result is NaN, 0.
    config: Any = jax.config  # which has types from JAX 0.12 on
    absent = 0.0 if config.jax_debug_nans else np.nan
    columns = []
    for weights, (direction, there) in zip(table.groups, groups, strict=True):
        w = row_weights(weights, labels, mask, wide)
        here, there = (jnp.where(w == 0, 0, x.astype(wide)) for x in (losses, there))
        length = norm(direction)
        length = (length / share.astype(length.dtype)).astype(wide)
        touched = jnp.mean(w != 0, dtype=wide)
        sums = (w.mean(), (w * here).mean(), (w * there).mean(), touched, length)
        total, at, moved_to, touched, length = collectives.mean(sums, axis_name)
        count = jnp.round(touched * (losses.shape[0] * devices))  # a mean, back to a whole number
        some = jnp.where(total == 0, 1, total)
        means = (jnp.where(total == 0, np.array(absent, wide), x / some) for x in (at, moved_to))
        columns.append((length, count, *means))
    padding = [(np.array(absent, wide),) * 4] * (most_groups - len(columns))
    if not columns + padding:
        return SharpnessInfo(*[jnp.zeros(0, wide)] * 4)
    return SharpnessInfo(*[jnp.stack(c) for c in zip(*(columns + padding), strict=True)])


def _most_groups(rule: Rule, step: Any) -> int:
    if isinstance(rule, stagewise):
        return max(_most_groups(stage, step) for stage in rule.stages)
    return len(table_of(rule, step).groups)
