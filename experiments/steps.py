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
import optax
from flax.training import train_state

from imbsam_jax import Ascent, metrics, value_and_grad
from imbsam_jax.rules import Rule

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class TrainState(train_state.TrainState):
    """Flax's train state and the running statistics of batch normalisation ({} without)."""

    batch_stats: Any


class Inputs(NamedTuple):
    """A data set on the device: uint8[N, H, W, C] and int32[N]."""

    images: Any
    labels: Any


class StepMetrics(NamedTuple):
    """Of one batch, at theta, over all devices: mean loss and share of correct predictions."""

    loss: jax.Array
    accuracy: jax.Array


def create_state(
    model: nn.Module, tx: optax.GradientTransformation, images: jax.Array, key: jax.Array
) -> TrainState:
    """Fresh parameters for images float[B, H, W, C] (their values do not matter)."""
    variables = model.init(key, images, train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=tx,
    )


def normalise(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """uint8 to float32 `(x / 255 - mean) / std` per channel."""
    mean = jnp.asarray(mean, jnp.float32).reshape((1,) * (images.ndim - 1) + (-1,))
    std = jnp.asarray(std, jnp.float32).reshape(mean.shape)
    return (images.astype(jnp.float32) / 255 - mean) / std


def crop_and_flip(
    images: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array, pad: int = 4
) -> jax.Array:
    """Zero-pads raw pixels, crops the old size at random and flips half of the images.

    The draws are made for the whole batch and picked by position, so a row gets the same crop
    whichever device holds it.

    Args:
      images: uint8[b, H, W, C], the rows at `positions` (int[b]) of a batch of batch_size.
    """
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (batch_size, 2), 0, 2 * pad + 1)[positions]
    flips = jax.random.bernoulli(flip_key, 0.5, (batch_size,))[positions]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], jnp.zeros((), corner.dtype))
        cropped = jax.lax.dynamic_slice(image, start, images.shape[1:])
        return jnp.where(flip, cropped[:, ::-1], cropped)

    return jax.vmap(one)(padded, corners, flips)


def make_step(
    rule: Rule,
    loss: Loss,
    prepare: Callable[[jax.Array, jax.Array, int, jax.Array], jax.Array],
    *,
    axis_name: str | None = None,
    ascent: Ascent = Ascent(),
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """`step(state, inputs, index, positions, batch_size, key) -> (state, StepMetrics)`.

    Args:
      rule: how the gradient is taken; its step is state.step.
      loss: (logits float[b, C], labels int[b]) -> float[b].
      prepare: (raw images, positions, batch_size, key) -> what the model sees.

    The step's rows are `inputs[index]`, at `positions` of a batch of batch_size in all. Its
    randomness is `fold_in(key, state.step)`, so a resumed run draws what an unkilled one would.
    """

    def losses_fn(params: Any, stats: Any, apply: Any, images: Any, labels: Any) -> Any:
        variables = {"params": params, "batch_stats": stats}
        logits, updated = apply(variables, images, train=True, mutable=["batch_stats"])
        return loss(logits, labels), (logits, updated.get("batch_stats", {}))

    def step(
        state: TrainState,
        inputs: Inputs,
        index: jax.Array,
        positions: jax.Array,
        batch_size: int,
        key: jax.Array,
    ) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(key, state.step)
        images = prepare(inputs.images[index], positions, batch_size, key)
        labels = inputs.labels[index]

        def on_batch(params: Any, stats: Any, images: Any, labels: Any) -> Any:
            return losses_fn(params, stats, state.apply_fn, images, labels)

        gradient = value_and_grad(on_batch, rule, axis_name=axis_name, ascent=ascent)
        (mean_loss, (logits, stats)), grads = gradient(
            state.params, labels, state.batch_stats, images, labels, step=state.step
        )
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels, dtype=jnp.float32)
        if axis_name is not None:
            accuracy = jax.lax.pmean(accuracy, axis_name)
        return state.apply_gradients(grads=grads, batch_stats=stats), StepMetrics(
            mean_loss, accuracy
        )

    return step


def count_hits(
    state: TrainState,
    loss: Loss,
    prepare: Callable[[jax.Array], jax.Array],
    inputs: Inputs,
    index: jax.Array,
    mask: jax.Array,
    flip: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(correct int32[C], total int32[C], summed loss) of the rows at index whose mask is True.

    With flip, logits are averaged over the image and its mirror image, as the ImbSAM and weight
    balancing releases do for their final figures.
    """
    images, labels = prepare(inputs.images[index]), inputs.labels[index]
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, images, train=False)
    if flip:
        logits = (logits + state.apply_fn(variables, images[:, :, ::-1], train=False)) / 2
    correct, total = metrics.class_hits(logits, labels, mask)
    return correct, total, jnp.where(mask, loss(logits, labels), 0).sum()


def learning_rate(
    kind: str, base: float, epochs: int, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """Learning rate by step; constant within an epoch, as every released recipe has it.

    Epoch j counts from 0, T is the number of epochs:
      cosine: `base/2 (1 + cos(pi j / T))`, the scheduler stepped after each epoch.
      cosine-prestep: j + 1 in place of j, as the ImbSAM and weight balancing releases do; the
        last epoch then has learning rate 0.
      steps: LDAM's, `base * (j + 1) / 5` in the first five epochs, then base, a hundredth of it
        from 80% of the epochs, a ten-thousandth from 90%.
      constant: base.
    """

    def at(step: Any) -> Any:
        epoch = jnp.minimum(step // steps_per_epoch, epochs - 1)
        if kind == "constant":
            return jnp.full((), base, jnp.float32)
        if kind == "steps":
            late = jnp.where(epoch >= round(0.9 * epochs), 1e-4, 1e-2)
            decayed = base * jnp.where(epoch >= round(0.8 * epochs), late, 1.0)
            return jnp.where(epoch < 5, base * (epoch + 1) / 5, decayed)
        passed = epoch + (kind == "cosine-prestep")
        return base / 2 * (1 + jnp.cos(jnp.pi * passed / epochs))

    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}; choose from {', '.join(SCHEDULES)}")
    return at


SCHEDULES = ("cosine", "cosine-prestep", "steps", "constant")


def optimizer(
    schedule: Callable[[Any], Any], momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """SGD as in PyTorch: `v = mu v + g + wd theta; theta -= lr v`, decay on every parameter."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=momentum)
    )
