"""One step of training and one of evaluation: pure functions of a state and a batch.

Nothing here knows a method or a data set by name. The same step is jitted, sharded, pmapped,
scanned over, or mapped over seeds by whoever calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.data.augment import mix
from experiments.step.methods import Gradient, Halves, Method, as_method
from experiments.step.objectives import Objective
from experiments.step.passing import Passing
from experiments.step.state import TrainState, merge
from experiments.step.statistics import OF_BATCH, Noted, noting_its_own, renormalised, shared
from imbsam_jax import metrics, passes
from imbsam_jax.losses import Loss, cross_entropy
from imbsam_jax.rules import Rule


class Inputs(NamedTuple):
    """A data set on the device: uint8[N, H, W, C] and int32[N]."""

    images: Any
    labels: Any


class Rows(NamedTuple):
    """Rows of a batch: an index int32[b] into Inputs, or images and labels brought along.

    `mask` is bool[b], False for padding and for images that could not be read; None where every
    row is real.
    """

    index: Any = None
    images: Any = None
    labels: Any = None
    mask: Any = None


class StepMetrics(NamedTuple):
    """Of one batch, at theta, over all devices.

    Attributes:
      loss: mean loss of the real rows.
      accuracy: share of correct predictions among them.
      real: real rows over all rows.
      stop: exit code of a stop that some process asks for, else 0; None where there is one process.
    """

    loss: jax.Array
    accuracy: jax.Array
    real: jax.Array
    stop: Any = None


def take(inputs: Inputs | None, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """(images, labels) of these rows: looked up, or brought along."""
    if rows.index is None:
        return rows.images, rows.labels
    assert inputs is not None
    return inputs.images[rows.index], inputs.labels[rows.index]


def make_step(
    method: Method | Rule,
    objective: Objective,
    prepare: Callable[[jax.Array, jax.Array, int, jax.Array], jax.Array],
    *,
    axis_name: str | None = None,
    passing: Passing = Passing(),
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """`step(state, inputs, rows, positions, batch_size, key) -> (state, StepMetrics)`.

    Args:
      method: how the gradient is taken; its step is state.step.
      objective: what is minimised.
      prepare: (raw images, positions, batch_size, key) -> what the model sees.
      axis_name: the device axis inside pmap.
      passing: how the passes over a batch are run.

    The step's rows are Rows, or int[b] as an index into inputs, at `positions` of a batch of
    batch_size in all. Its randomness is `fold_in(key, state.step)`, so a resumed run draws what an
    unkilled one would. With mixup each row meets another of the whole batch, augmented as it is
    there; accuracy then counts a hit on either label by its share.
    """
    method = as_method(method)

    def soft_of(labels: jax.Array) -> jax.Array:
        return jax.nn.one_hot(labels, objective.num_classes)

    def batch(
        inputs: Inputs | None, rows: Rows, positions: jax.Array, batch_size: int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(images, labels, target) of these rows."""
        raw, labels = take(inputs, rows)
        images = prepare(raw, positions, batch_size, key)
        if not objective.mixup:
            return images, labels, labels
        share_key, pair_key = jax.random.split(jax.random.fold_in(key, 2))
        share = jax.random.beta(share_key, objective.mixup, objective.mixup)
        others = jax.random.permutation(pair_key, batch_size)[positions]
        whole = rows
        if axis_name is not None:  # every device holds its rows of the batch only
            whole = jax.lax.all_gather(rows, axis_name, tiled=True)
        if whole.mask is not None:  # a row whose partner is none stays by itself
            others = jnp.where(whole.mask[others], others, positions)
        raw, their_labels = take(inputs, jax.tree.map(lambda x: x[others], whole))
        partners = prepare(raw, others, batch_size, key)
        mixed, soft = mix(soft_of, (images, partners), (labels, their_labels), share)
        return mixed, labels, soft

    def step(
        state: TrainState,
        inputs: Inputs | None,
        rows: Rows | jax.Array,
        positions: jax.Array,
        batch_size: int,
        key: jax.Array,
    ) -> tuple[TrainState, StepMetrics]:
        rows = rows if isinstance(rows, Rows) else Rows(index=rows)
        key = jax.random.fold_in(key, state.step)
        images, labels, target = batch(inputs, rows, positions, batch_size, key)
        how = passing.over(len(labels))
        halves = Halves(
            _features_fn(state, objective, how), _losses_fn(state, objective, rows.mask),
            images, labels, target, rows.mask, state.batch_stats, how,
        )  # fmt: skip
        found = method.gradient(halves, state.params, state.extra, state.step, axis_name)
        seen = _metrics(found, target if objective.mixup else soft_of(labels), rows.mask, axis_name)
        stats = _running(state.batch_stats, found.stats)
        after = state.apply_gradients(grads=found.grads, batch_stats=stats, extra=found.extra)
        return after, seen

    return step


def _features_fn(
    state: TrainState, objective: Objective, how: passes.Passes
) -> Callable[..., tuple[jax.Array, Any]]:
    """(params, stats, images) -> (features, stats after): see `_running` for these."""

    def embed(params: Any, stats: Any, images: jax.Array, **mode: Any) -> Any:
        variables = {"params": merge(params, state.frozen), "batch_stats": stats}
        return state.apply_fn(variables, images, method="embed", **mode)

    def trained(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        found, updated = embed(params, stats, images, train=True, mutable=["batch_stats"])
        return found, updated.get("batch_stats", {})

    def frozen(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        return embed(params, stats, images, train=False), stats

    def alone(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        found, after = (trained if objective.train_statistics else frozen)(params, stats, images)
        if objective.train_statistics and jax.tree.leaves(after):
            raise ValueError(
                "examples are not independent where a model normalises by the statistics of the "
                "whole batch: freeze them, or let passes see the whole batch"
            )
        return found, None

    def split(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        if isinstance(stats, Noted):
            with nn.intercept_methods(renormalised):
                return embed(params, stats.of_batch, images, train=False), stats
        with nn.intercept_methods(noting_its_own):
            found, updated = embed(
                params, stats, images, train=True, mutable=["batch_stats", OF_BATCH]
            )
        return found, Noted(updated["batch_stats"], updated[OF_BATCH])

    def in_parts(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        with nn.intercept_methods(shared):
            return trained(params, stats, images)

    kinds: dict[Any, Any] = {
        passes.whole: trained if objective.train_statistics else frozen,
        passes.own_rows: alone,
        passes.split_norm: split,
        passes.shared_norm: in_parts,
    }
    return kinds[type(how)]


def _running(before: Any, after: Any) -> Any:
    """The running statistics, of what `_features_fn` made of those before; None left them."""
    if after is None:
        return before
    return after.running if isinstance(after, Noted) else after


def _losses_fn(
    state: TrainState, objective: Objective, mask: jax.Array | None
) -> Callable[[jax.Array], Callable[..., Any]]:
    """See Halves.losses_for."""
    step = state.step

    def losses_for(whole: jax.Array) -> Callable[..., Any]:
        loss, factor = objective.loss, jnp.ones(())
        if isinstance(loss, Loss) and loss.factor is not None:
            # It averages over the whole batch, of which a micro-batch would see a part.
            factor, loss = loss.factor(whole, step, mask), Loss(loss.per_class)

        def losses(params: Any, features: jax.Array, target: jax.Array) -> Any:
            def plain(params: Any, features: jax.Array) -> tuple[jax.Array, jax.Array]:
                variables = {"params": merge(params, state.frozen)}
                logits = state.apply_fn(variables, features, method="classify")
                found = loss(logits, target, step)
                return found * factor.astype(found.dtype), logits

            if objective.adversary is None:
                return plain(params, features)
            wrapped, share = objective.adversary.wrap(plain), objective.adversary.share(step)
            return wrapped(params, target, features, share=share, mask=mask)

        return losses

    return losses_for


def _metrics(
    found: Gradient, target: jax.Array, mask: jax.Array | None, axis_name: str | None
) -> StepMetrics:
    guess = jnp.argmax(found.logits, -1)
    hits = jnp.take_along_axis(target, guess[:, None], 1)[:, 0]
    real = jnp.ones_like(hits) if mask is None else mask.astype(hits.dtype)
    accuracy, share = jnp.mean(hits * real), jnp.mean(real)
    if axis_name is not None:
        accuracy, share = jax.lax.pmean((accuracy, share), axis_name)
    return StepMetrics(found.loss, accuracy / jnp.where(share == 0, 1, share), share)


def count_hits(
    state: TrainState,
    prepare: Callable[[jax.Array], Any],
    inputs: Inputs | None,
    rows: Rows,
    flip: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(correct int32[C], total int32[C], summed cross-entropy) of the rows that are real.

    Of the views of an image that `prepare` makes in a list, logits are averaged. With flip they are
    over each and its mirror image, as the ImbSAM and weight balancing releases do for their final
    figures.
    """
    raw, labels = take(inputs, rows)
    found = prepare(raw)
    views = found if isinstance(found, list) else [found]
    if flip:
        views = [*views, *(images[:, :, ::-1] for images in views)]
    each = [state.apply_fn(state.variables(), images, train=False) for images in views]
    logits = sum(each[1:], each[0]) / len(each)
    correct, total = metrics.class_hits(logits, labels, rows.mask)
    losses = cross_entropy(logits, labels)
    losses = losses if rows.mask is None else jnp.where(rows.mask, losses, 0)
    return correct, total, losses.sum()
