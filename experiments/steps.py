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
from flax import traverse_util
from flax.training import train_state

from experiments.methods import Halves, Method, as_method
from experiments.objectives import Objective
from imbsam_jax import classifiers, metrics
from imbsam_jax.losses import cross_entropy
from imbsam_jax.rules import Rule

# Which parameters are trained; the rest is frozen.
TRAINED = ("all", "head", "scales")


class TrainState(train_state.TrainState):
    """Flax's train state, with batch statistics and with parameters that are not trained.

    Attributes:
      batch_stats: running statistics of batch normalisation, {} without.
      frozen: the rest of the parameters, {} where all of them are trained.
    """

    batch_stats: Any
    frozen: Any

    def variables(self) -> dict[str, Any]:
        return {"params": merge(self.params, self.frozen), "batch_stats": self.batch_stats}


class Inputs(NamedTuple):
    """A data set on the device: uint8[N, H, W, C] and int32[N]."""

    images: Any
    labels: Any


class StepMetrics(NamedTuple):
    """Of one batch, at theta, over all devices: mean loss and share of correct predictions."""

    loss: jax.Array
    accuracy: jax.Array


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    images: jax.Array,
    key: jax.Array,
    trained: str = "all",
) -> TrainState:
    """Fresh parameters for images float[B, H, W, C] (their values do not matter)."""
    variables = model.init(key, images, train=False)
    return start_state(model, tx, variables, trained)


def start_state(
    model: nn.Module, tx: optax.GradientTransformation, variables: Any, trained: str = "all"
) -> TrainState:
    """A state that trains some of these variables from here, one of TRAINED."""
    params, frozen = split(variables["params"], trained)
    return TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=tx,
        batch_stats=variables.get("batch_stats", {}),
        frozen=frozen,
    )


def split(params: Any, trained: str) -> tuple[Any, Any]:
    """(trained, frozen): all, the classifier "head", or the "scales" of a scaled one alone."""
    if trained not in TRAINED:
        raise ValueError(f"unknown part {trained!r}; choose from {', '.join(TRAINED)}")
    if trained == "all":
        return params, {}
    flat = traverse_util.flatten_dict(params)
    chosen = {k: v for k, v in flat.items() if k[0] == "head" and trained in ("head", k[-1])}
    if not chosen:
        raise ValueError(f"this model has no {trained} to train")
    rest = {k: v for k, v in flat.items() if k not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(rest)


def merge(params: Any, frozen: Any) -> Any:
    """What `split` took apart."""
    if not frozen:
        return params
    flat = traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(flat)


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


def mix(
    soft_of: Callable[[jax.Array], jax.Array],
    images: tuple[jax.Array, jax.Array],
    labels: tuple[jax.Array, jax.Array],
    share: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixup: `share` of the first images and labels (made soft), the rest of the second."""
    mixed = share * images[0] + (1 - share) * images[1]
    return mixed, share * soft_of(labels[0]) + (1 - share) * soft_of(labels[1])


def make_step(
    method: Method | Rule,
    objective: Objective,
    prepare: Callable[[jax.Array, jax.Array, int, jax.Array], jax.Array],
    *,
    axis_name: str | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """`step(state, inputs, index, positions, batch_size, key) -> (state, StepMetrics)`.

    Args:
      method: how the gradient is taken; its step is state.step.
      objective: what is minimised.
      prepare: (raw images, positions, batch_size, key) -> what the model sees.

    The step's rows are `inputs[index]`, at `positions` of a batch of batch_size in all. Its
    randomness is `fold_in(key, state.step)`, so a resumed run draws what an unkilled one would.
    With mixup each row meets another of the whole batch, augmented as it is there; accuracy then
    counts a hit on either label by its share.
    """
    method = as_method(method)

    def soft_of(labels: jax.Array) -> jax.Array:
        return jax.nn.one_hot(labels, objective.num_classes)

    def batch(
        inputs: Inputs, index: jax.Array, positions: jax.Array, batch_size: int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        labels = inputs.labels[index]
        images = prepare(inputs.images[index], positions, batch_size, key)
        if not objective.mixup:
            return images, labels, None
        share_key, pair_key = jax.random.split(jax.random.fold_in(key, 2))
        share = jax.random.beta(share_key, objective.mixup, objective.mixup)
        others = jax.random.permutation(pair_key, batch_size)[positions]
        whole = index
        if axis_name is not None:  # every device holds all images, but only its rows of the index
            whole = jax.lax.all_gather(index, axis_name, tiled=True)
        partners = prepare(inputs.images[whole[others]], others, batch_size, key)
        both = (labels, inputs.labels[whole[others]])
        mixed, soft = mix(soft_of, (images, partners), both, share)
        return mixed, labels, soft

    def step(
        state: TrainState,
        inputs: Inputs,
        index: jax.Array,
        positions: jax.Array,
        batch_size: int,
        key: jax.Array,
    ) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(key, state.step)
        images, labels, soft = batch(inputs, index, positions, batch_size, key)
        halves = _halves(state, objective, images, labels, soft)
        (mean_loss, (stats, logits)), grads = method.gradient(
            halves, state.params, state.batch_stats, state.step, axis_name
        )
        shown = soft_of(labels) if soft is None else soft
        guess = jnp.argmax(logits, -1)
        accuracy = jnp.mean(jnp.take_along_axis(shown, guess[:, None], 1), dtype=jnp.float32)
        if axis_name is not None:
            accuracy = jax.lax.pmean(accuracy, axis_name)
        return state.apply_gradients(grads=grads, batch_stats=stats), StepMetrics(
            mean_loss, accuracy
        )

    return step


def _halves(
    state: TrainState, objective: Objective, images: Any, labels: jax.Array, soft: Any
) -> Halves:
    step, train = state.step, objective.train_statistics

    def features(params: Any, stats: Any) -> tuple[jax.Array, Any]:
        variables = {"params": merge(params, state.frozen), "batch_stats": stats}
        if not train:
            return state.apply_fn(variables, images, train=False, method="embed"), stats
        found, updated = state.apply_fn(
            variables, images, train=True, mutable=["batch_stats"], method="embed"
        )
        return found, updated.get("batch_stats", {})

    def losses_of(target: jax.Array) -> Callable[..., Any]:
        def plain(params: Any, features: jax.Array) -> tuple[jax.Array, jax.Array]:
            variables = {"params": merge(params, state.frozen)}
            logits = state.apply_fn(variables, features, method="classify")
            return objective.loss(logits, target, step), logits

        if objective.adversary is None:
            return lambda params, features, stats: plain(params, features)
        wrapped, share = objective.adversary.wrap(plain), objective.adversary.share(step)
        return lambda params, features, stats: wrapped(params, target, features, share=share)

    target = labels if soft is None else soft
    return Halves(features, losses_of(target), losses_of(labels), labels, soft)


def count_hits(
    state: TrainState,
    prepare: Callable[[jax.Array], jax.Array],
    inputs: Inputs,
    index: jax.Array,
    mask: jax.Array,
    flip: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(correct int32[C], total int32[C], summed cross-entropy) of the rows whose mask is True.

    With flip, logits are averaged over the image and its mirror image, as the ImbSAM and weight
    balancing releases do for their final figures.
    """
    images, labels = prepare(inputs.images[index]), inputs.labels[index]
    logits = state.apply_fn(state.variables(), images, train=False)
    if flip:
        logits = (logits + state.apply_fn(state.variables(), images[:, :, ::-1], train=False)) / 2
    correct, total = metrics.class_hits(logits, labels, mask)
    return correct, total, jnp.where(mask, cross_entropy(logits, labels), 0).sum()


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
      warmup-steps: CC-SAM's, `base * (1/3 + 2/3 (j + 1) / 5)` up to base, a tenth of it from the
        epoch that ends at 80% of them, a hundredth from 90%.
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
        if kind == "warmup-steps":
            rise = jnp.minimum(1 / 3 + 2 / 3 * (epoch + 1) / 5, 1)
            fall = 0.1 ** sum(epoch + 1 >= round(at * epochs) for at in (0.8, 0.9))
            return base * rise * fall
        passed = epoch + (kind == "cosine-prestep")
        return base / 2 * (1 + jnp.cos(jnp.pi * passed / epochs))

    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}; choose from {', '.join(SCHEDULES)}")
    return at


SCHEDULES = ("cosine", "cosine-prestep", "steps", "warmup-steps", "constant")


def optimizer(
    schedule: Callable[[Any], Any], momentum: float, weight_decay: float, *, max_norm_every: int = 0
) -> optax.GradientTransformation:
    """SGD as in PyTorch: `v = mu v + g + wd theta; theta -= lr v`, decay on every parameter.

    With max_norm_every the classifier is projected after every so many steps, with weight
    balancing's radius of the parameters given to `init`.
    """
    links = [optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=momentum)]
    if max_norm_every:
        links.append(
            classifiers.max_norm(
                lambda params: {name: name == "head" for name in params}, every=max_norm_every
            )
        )
    return optax.chain(*links)
