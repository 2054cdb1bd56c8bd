"""The primary front door: `value_and_grad`, shaped like `jax.value_and_grad(..., has_aux=True)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbsam_jax import collectives, core
from imbsam_jax.ascent import Ascent, norm
from imbsam_jax.independent import Buffers, over_chosen_rows
from imbsam_jax.passes import Rows, at_once, carried, in_micro_batches
from imbsam_jax.rows import (
    at_least_float32,
    check_labels,
    check_mask,
    check_params,
    nan_where_no_class,
    row_weights,
    share_of_rows,
)
from imbsam_jax.rules import ClassWeights, Rule, stagewise
from imbsam_jax.split_norm import SplitPasses

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
    axis_name: Any = None,
    sync_ascent: bool = True,
    ascent: Ascent = Ascent(),
    examples: str = "dependent",
    batched: tuple[bool, ...] | None = None,
    buffers: Buffers | None = None,
    micro_batches: int = 1,
    carry: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] | None = None,
    info: bool = False,
) -> Callable[..., Any]:
    """Mean loss and sharpness-aware gradient of per-example losses.

        g = grad L[base](theta) + sum_k grad L[group_k](theta + e_k),
        L[w](theta) = (1/B) sum_i w[y_i] loss_i(theta)          (for ImbSAM: Eq. 16 to 19)

    Args:
      losses_fn: `losses_fn(params, *args) -> (losses float[B], aux)`, one loss per example, not
        averaged. It is run once at theta and once per perturbed group, each time with the same
        args, so with the same random keys. Loss and aux reported are those of the run at theta
        (the aux of another one with `carry`).
      rule: a row of the table, for example `rules.imbsam(class_counts, rho=0.05, eta=100)`.
      axis_name: the device axis, inside pmap, shard_map or vmap; leave it None under plain jit,
        also with a batch sharded over devices.
      sync_ascent: average d_k over the devices before it is normalised. False gives every
        device its own perturbation from its own rows (m-sharpness); the result differs.
      ascent: how the perturbation is taken.
      examples: "dependent", every pass sees the whole batch, which is exact for every model,
        batch normalisation included. "independent", a pass sees the rows that have weight in it
        (and that at theta all rows in several parts): 1 + f times SGD's cost for ImbSAM with a
        share f of tail rows, instead of 8/3. It is exact to rounding where the loss of an example
        depends on no other one: layer and group normalisation, frozen batch normalisation.
        Randomness is then an arg with the batch axis, a key for each example. On several devices
        it belongs inside shard_map or pmap: every device chooses among its own rows.
        "split_norm", for batch normalisation: the pass at theta sees the whole batch and gives
        loss, aux and base; a group's two gradients, d_k too, are of passes over its own rows
        alone, which batch normalisation then normalises by themselves, or by what `carry` puts
        into the args (better, with `batch_renorm`). About 1 + 2f times SGD's cost. **Not the same
        gradient**: imbsam_jax/split_norm.py says what it costs in accuracy. A group with weight
        on every class is passed over exactly.
      batched: which of the args have the batch axis, `(True, False, ...)`, where rows are chosen
        or micro-batches cut; an arg that is a tree has it in all of its leaves or in none. None:
        all of them. An arg without it is given whole to every pass, a random key as well.
      buffers: how many rows "independent" and "split_norm" make room for: `buffers(classes
        bool[C]) -> sizes`, for a part of the table that weighs these classes. The least size that
        holds the part's rows is taken; let the last be the batch size, or no batch exceed it: the
        gradient is NaN otherwise. See `binomial_buffers` and `stratified_buffers`. The whole batch
        is always taken with soft labels, and where the weights of the rule are traced, no NumPy
        arrays.
      micro_batches: A, how many parts of B/A rows the batch is worked off in, one after the other,
        for less memory: row i in part i % A. The gradient is that of the whole batch, since d_k is
        normalised when all parts are in it. Models that look across rows (batch normalisation)
        look across those of a part; a loss that is divided by a sum over the batch is refused in
        such a part (`losses.weighted` says how to give it the whole batch's). The sum over devices
        is taken once per ascent and once for the result inside shard_map and pmap; under plain jit
        XLA may take it for every part.
      carry: None, or `carry(args, aux) -> args`, which makes of the args and the aux of one pass
        the args of the next: first the pass at theta, then that of each group in the rule's
        order. The aux reported is then that of the last pass. Running statistics updated by
        every pass, as in the released PyTorch code, need this: once a step with SGD, twice with
        SAM, ImbSAM and Focal-SAM, three times in SSE-SAM's first stage (its release makes four
        passes, one of them a second one at theta). Loss and gradient do not use the aux, so
        batch normalisation in batch mode trains the same either way. With "split_norm" it is
        called once, with the aux of the pass at theta, and what it returns are the args of every
        pass over a group's rows; the aux reported stays that of the pass at theta.
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
        aux: what losses_fn returned beside the losses at theta, of this device; with `carry`,
          beside those of the last pass. Several micro-batches: theirs in turn, stacked, each leaf
          with a new leading axis A; `carry` is given that, too. With "independent" examples it is
          None or has the batch as leading axis in every leaf; its rows where the mask is False
          mean nothing.
        grads: like params, the same dtypes, averaged over the devices.

    Raises:
      ValueError: averaged losses, labels or a mask of another shape or type, soft labels that do
        not sum to 1, no parameters, a missing step, B not divisible by A, options that do not go
        together.
      TypeError: losses_fn returns no pair, or carry no tuple of as many args; losses or parameters
        that are not real and floating (complex ones have another gradient: give both parts).

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
    if examples not in ("dependent", "independent", "split_norm"):
        raise ValueError(
            f"examples must be 'dependent', 'independent' or 'split_norm', got {examples!r}"
        )
    if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches < 1:
        raise ValueError(f"micro_batches must be a whole number from 1 on, got {micro_batches!r}")
    if (buffers is None) != (examples == "dependent"):
        raise ValueError(
            "buffers says how many rows to make room for with examples='independent' or "
            "'split_norm': give both, for example "
            "buffers=binomial_buffers(class_counts, batch_size), or neither"
        )
    if buffers is not None and micro_batches > 1:
        raise ValueError(
            f"examples={examples!r} leaves rows out and does not go with micro_batches, which "
            "takes all of them"
        )
    if examples == "independent" and carry is not None:
        raise ValueError(
            "examples='independent' leaves rows out and does not go with carry, which hands on "
            "what a pass over all of them made"
        )

    def run(
        point: Any, table: list[Any], rows: Rows, every_row: bool = True
    ) -> tuple[list[Any], jax.Array, Any]:
        if examples == "independent":
            assert buffers is not None
            return over_chosen_rows(
                losses_fn, point, table, rows, axis_name, batched, buffers, every_row
            )
        if micro_batches > 1:
            return in_micro_batches(
                losses_fn, point, table, rows, axis_name, batched, micro_batches
            )
        return at_once(losses_fn, point, table, rows, axis_name)

    def f(params: Any, labels: Any, *args: Any, step: Any = None, mask: Any = None) -> Any:
        labels = check_labels(labels, mask)
        mask = check_mask(mask, labels.shape[0])
        local = collectives.varying(check_params(params), axis_name)
        rows = Rows(args, labels, mask, labels.shape[0])
        most_groups = _most_groups(rule, step) if info else None

        def compute(table: ClassWeights) -> Any:
            passes: _Passes | SplitPasses = _Passes(run, local, rows, carry)
            if examples == "split_norm":
                assert buffers is not None
                passes = SplitPasses(
                    losses_fn, local, rows, table, axis_name, batched, buffers, carry
                )
            return _one_table(
                table, local, passes, rows, ascent, axis_name, sync_ascent, most_groups
            )

        return core.by_stage(rule, step, compute)

    return f


class _Passes:
    """The passes over a batch at one table's points; each branch of a staged rule has its own.

    Attributes:
      losses: float[B] at theta, once `clean` was called.
      aux: of the pass at theta, with `carry` of the last pass.
    """

    def __init__(
        self,
        run: Callable[..., tuple[list[Any], jax.Array, Any]],
        params: Any,
        rows: Rows,
        carry: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] | None,
    ):
        self._run, self._params, self._rows, self._carry = run, params, rows, carry
        self.losses, self.aux = jnp.zeros(0), None

    def clean(self, weights: list[Any]) -> list[Any]:
        grads, self.losses, self.aux = self._run(self._params, weights, self._rows)
        return grads

    def moved(self, point: Any, class_weights: Any) -> tuple[Any, jax.Array]:
        if self._carry is not None:
            self._rows = carried(self._carry, self._rows, self.aux)
        (grads,), there, seen = self._run(point, [class_weights], self._rows, every_row=False)
        self.aux = self.aux if self._carry is None else seen
        return grads, there


def _one_table(
    table: ClassWeights,
    params: Any,
    passes: _Passes | SplitPasses,
    rows: Rows,
    ascent: Ascent,
    axis_name: Any,
    sync: bool,
    most_groups: int | None,
) -> Any:
    labels, mask = rows.labels, rows.mask
    batch = core.Batch(
        passes.clean,
        passes.moved,
        lambda class_weights: share_of_rows(class_weights, labels, mask),
        None if mask is None else jnp.mean(mask, dtype=float),
    )
    grads, groups = core.gradient(
        batch, params, table, ascent=ascent, axis_name=axis_name, sync=sync
    )
    some_weights = table.groups[0] if table.base is None else table.base
    grads = nan_where_no_class(grads, some_weights, labels, mask)
    losses, aux = passes.losses, passes.aux
    seen = losses if mask is None else jnp.where(mask, losses, 0)
    mean_loss = seen.mean(dtype=at_least_float32(seen.dtype))
    mean_loss, grads = mean_over_rows((mean_loss, grads), batch.real, axis_name)
    if most_groups is None:
        return (mean_loss, aux), grads
    details = _info(table, groups, losses, labels, mask, batch.real, axis_name, most_groups)
    return (mean_loss, aux, details), grads


def mean_over_rows(tree: Any, real: Any, axis_name: Any) -> Any:
    """Mean over devices, then over real rows instead of all rows; one all-reduce."""
    if real is None:
        return collectives.mean(tree, axis_name)
    tree, real = collectives.mean((tree, real), axis_name)
    real = jnp.where(real == 0, 1, real)  # a batch of padding alone changes nothing

    def over_real(x: jax.Array) -> jax.Array:
        wide = at_least_float32(x.dtype)
        return (x.astype(wide) / real.astype(wide)).astype(x.dtype)

    return jax.tree.map(over_real, tree)


def _info(
    table: ClassWeights,
    groups: list[tuple[Any, jax.Array]],
    losses: jax.Array,
    labels: jax.Array,
    mask: Any,
    real: Any,
    axis_name: Any,
    most_groups: int,
) -> SharpnessInfo:
    share = jnp.ones(()) if real is None else collectives.mean(real, axis_name)
    share = jnp.where(share == 0, 1, share)  # of padding alone, the norm is 0
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    wide = at_least_float32(losses.dtype)
    # Under jax_debug_nans, which raises where a result is NaN, 0.
    absent = 0.0 if jax.config.jax_debug_nans else np.nan  # type: ignore[attr-defined]
    columns = []
    for weights, (direction, there) in zip(table.groups, groups, strict=True):
        w = row_weights(weights, labels, mask, wide)
        here, there = (jnp.where(w == 0, 0, x.astype(wide)) for x in (losses, there))
        length, touched = (norm(direction) / share).astype(wide), jnp.mean(w != 0, dtype=wide)
        sums = (w.mean(), (w * here).mean(), (w * there).mean(), touched, length)
        total, at, moved_to, touched, length = collectives.mean(sums, axis_name)
        rows = touched * (losses.shape[0] * devices)
        some = jnp.where(total == 0, 1, total)
        means = (jnp.where(total == 0, np.array(absent, wide), x / some) for x in (at, moved_to))
        columns.append((length, rows, *means))
    padding = [(np.array(absent, wide),) * 4] * (most_groups - len(columns))
    if not columns + padding:
        return SharpnessInfo(*[jnp.zeros(0, wide)] * 4)
    return SharpnessInfo(*[jnp.stack(c) for c in zip(*(columns + padding), strict=True)])


def _most_groups(rule: Rule, step: Any) -> int:
    if isinstance(rule, stagewise):
        return max(_most_groups(stage, step) for stage in rule.stages)
    return int(rule(step).groups.shape[0])
