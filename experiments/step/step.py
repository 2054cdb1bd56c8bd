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
from experiments.models import BATCH_NORM_MOMENTUM
from experiments.step.methods import Halves, Method, as_method
from experiments.step.objectives import Objective
from experiments.step.state import TrainState, merge
from imbsam_jax import batch_renorm, metrics
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
    micro_batches: int = 1,
    room: Callable[[int], Any] | None = None,
    tail_statistics: str | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """`step(state, inputs, rows, positions, batch_size, key) -> (state, StepMetrics)`.

    Args:
      method: how the gradient is taken; its step is state.step.
      objective: what is minimised.
      prepare: (raw images, positions, batch_size, key) -> what the model sees.
      axis_name: the device axis inside pmap.
      micro_batches: into how many parts the batch is cut, one after the other in memory.
      room: see Halves; None where each pass sees the whole batch.
      tail_statistics: see Halves.

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
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        raw, labels = take(inputs, rows)
        images = prepare(raw, positions, batch_size, key)
        if not objective.mixup:
            return images, labels, None
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
        images, labels, soft = batch(inputs, rows, positions, batch_size, key)
        halves = _halves(state, objective, images, labels, soft, rows.mask)
        halves = halves._replace(
            micro_batches=micro_batches, room=room, tail_statistics=tail_statistics
        )
        (mean_loss, (stats, logits)), grads = method.gradient(
            halves, state.params, state.batch_stats, state.step, axis_name
        )
        shown = soft_of(labels) if soft is None else soft
        guess = jnp.argmax(logits, -1)
        hits = jnp.take_along_axis(shown, guess[:, None], 1)[:, 0]
        real = jnp.ones_like(hits) if rows.mask is None else rows.mask.astype(hits.dtype)
        accuracy, share = jnp.mean(hits * real), jnp.mean(real)
        if axis_name is not None:
            accuracy, share = jax.lax.pmean((accuracy, share), axis_name)
        seen = StepMetrics(mean_loss, accuracy / jnp.where(share == 0, 1, share), share)
        return state.apply_gradients(grads=grads, batch_stats=stats), seen

    return step


def _halves(
    state: TrainState,
    objective: Objective,
    images: jax.Array,
    labels: jax.Array,
    soft: jax.Array | None,
    mask: jax.Array | None,
) -> Halves:
    step, train = state.step, objective.train_statistics

    def features(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": merge(params, state.frozen), "batch_stats": stats}
        if not train:
            return state.apply_fn(variables, images, train=False, method="embed"), stats
        found, updated = state.apply_fn(
            variables, images, train=True, mutable=["batch_stats"], method="embed"
        )
        return found, updated.get("batch_stats", {})

    def apart(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        # Of statistics that were zero, what is new is the batch's share.
        found, new = features(params, jax.tree.map(jnp.zeros_like, state.batch_stats), images)
        return found, jax.tree.map(lambda x: x / (1 - BATCH_NORM_MOMENTUM), new)

    def held(params: Any, statistics: Any, images: jax.Array) -> jax.Array:
        variables = {"params": merge(params, state.frozen), "batch_stats": statistics}
        found: jax.Array = state.apply_fn(variables, images, train=False, method="embed")
        return found

    def renormed(params: Any, statistics: Any, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(batch_renormalised):
            return held(params, statistics, images)

    def moved_on(stats: Any, statistics: Any) -> Any:
        keep = BATCH_NORM_MOMENTUM
        return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, stats, statistics)

    def losses_of(whole: jax.Array) -> Callable[..., Any]:
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

    target = labels if soft is None else soft
    return Halves(
        features, losses_of(target), losses_of(labels), images, labels, soft, mask,
        apart=apart, held=held, renormed=renormed, moved_on=moved_on,
    )  # fmt: skip


def batch_renormalised(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes `nn.BatchNorm` renormalise by its running statistics; for `nn.intercept_methods`.

    See imbsam_jax.batch_renorm.
    """
    layer = context.module
    if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
        return call(*args, **kwargs)
    (x,), given = args, layer.variables["batch_stats"]
    y = batch_renorm(
        x, given["mean"], given["var"], epsilon=layer.epsilon, axis_name=layer.axis_name
    )
    params = layer.variables.get("params", {})
    y = y * params.get("scale", 1) + params.get("bias", 0)
    return y.astype(layer.dtype or x.dtype)


def count_hits(
    state: TrainState,
    prepare: Callable[[jax.Array], jax.Array],
    inputs: Inputs | None,
    rows: Rows,
    flip: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(correct int32[C], total int32[C], summed cross-entropy) of the rows that are real.

    With flip, logits are averaged over the image and its mirror image, as the ImbSAM and weight
    balancing releases do for their final figures.
    """
    raw, labels = take(inputs, rows)
    images = prepare(raw)
    logits = state.apply_fn(state.variables(), images, train=False)
    if flip:
        logits = (logits + state.apply_fn(state.variables(), images[:, :, ::-1], train=False)) / 2
    correct, total = metrics.class_hits(logits, labels, rows.mask)
    losses = cross_entropy(logits, labels)
    losses = losses if rows.mask is None else jnp.where(rows.mask, losses, 0)
    return correct, total, losses.sum()
