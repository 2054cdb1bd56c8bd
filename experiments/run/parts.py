"""What a run is made of, before anything is trained or written: feed, model, state, devices."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset, filled
from experiments.data.encoded import EncodedDataset
from experiments.data.identity import rows_sha256
from experiments.data.sampling import Order
from experiments.host import outputs
from experiments.host.devices import use_devices
from experiments.host.errors import RunError, check_seed, flag
from experiments.host.origin import jax_settings
from experiments.host.sealed import class_counts_sha256
from experiments.models import create_model
from experiments.models.pretrained import load_weights
from experiments.run.checkpoints import Checkpoints
from experiments.run.evaluation import Evaluator
from experiments.run.feeds import Place, make_feed
from experiments.run.settings import Settings
from experiments.step.execution import EXECUTIONS, Jit
from experiments.step.objectives import Adversary, LossFn, Objective
from experiments.step.optimizer import learning_rate, optimizer
from experiments.step.passing import Passing
from experiments.step.state import TrainState, create_state, start_state
from imbsam_jax import tail_classes
from imbsam_jax.losses import cross_entropy


class Parts:
    """What a run is made of, from its data set, model, loss and settings; nothing written yet.

    Whether they go together, `compatible.check` says.

    Attributes:
      feed: where the rows come from.
      order: which rows each step has.
      run_on: where training steps run.
      initial: the state before the first step, decided by the seed; replicated over the devices.
      evaluator: how states are evaluated, always under jit over the same devices.
      schedule: learning rate by step.
      steps_per_epoch: the partial last batch included.
      batch_norm: whether the model has statistics of a batch to normalise by.
      began: time.perf_counter() before the first of them.

    Args:
      start: {"params", "batch_stats"} to start from; None draws them.
      own_batches: each device has batches of its own, and none is shared.
    """

    def __init__(
        self,
        dataset: Dataset | EncodedDataset,
        model_name: str,
        loss: LossFn,
        settings: Settings,
        start: Any = None,
        adversary: Adversary | None = None,
        own_batches: bool = False,
    ):
        self.began = time.perf_counter()
        check_seed(settings.seed)
        init_key, step_key = jax.random.split(jax.random.key(settings.seed))
        devices = use_devices(settings.devices)
        sharing = 1 if own_batches else len(devices)
        place = Place(sharing, jax.process_count(), jax.process_index())
        self.feed = make_feed(dataset, settings, place)
        self.order = order_of(dataset, settings, self.feed.multiple)
        self.steps_per_epoch = self.order.steps_per_epoch

        objective = Objective(
            loss,
            dataset.num_classes,
            settings.mixup,
            train_statistics=settings.statistics == "updated",
            adversary=adversary,
        )
        passing = passing_of(settings, self.order, dataset.num_classes)
        self.run_on = EXECUTIONS[settings.parallel](
            devices, objective, self.feed.prepare, step_key, passing
        )
        try:
            model = model_of(model_name, dataset.num_classes, settings, self.run_on.axis_name)
            self.schedule = learning_rate(
                settings.schedule, settings.lr, settings.epochs, self.steps_per_epoch
            )
        except ValueError as error:
            raise RunError(str(error)) from error
        tx = optimizer_of(self.schedule, settings, self.steps_per_epoch)
        if start is None:
            example = jnp.zeros((1, *self.feed.image_shape), jnp.float32)
            initial = jax.jit(lambda key: create_state(model, tx, example, key, settings.trained))(
                init_key
            )
        else:
            initial = start_state(model, tx, start, settings.trained)
        self.batch_norm = bool(jax.tree.leaves(initial.batch_stats))

        evaluate_on = Jit(devices, objective, self.feed.prepare, step_key)
        # Replicated, as checkpoints hold it: each process alone could not read one.
        self.initial: TrainState = evaluate_on.put_state(initial)
        self.evaluator = Evaluator(
            dataset, self.feed, evaluate_on, settings.eval_batch, settings.max_corrupt
        )


def order_of(dataset: Dataset | EncodedDataset, settings: Settings, multiple: int) -> Order:
    """Which rows each step has; batches are padded to a multiple of this."""
    return Order(
        settings.sampling,
        dataset.train_labels,
        settings.seed,
        settings.batch_size,
        per_visit=settings.per_visit,
        tail=tail_of(dataset, settings),
        multiple=multiple,
    )


def passing_of(settings: Settings, order: Order, num_classes: int) -> Passing:
    """How the passes over a batch are run; buffers are of what this order draws."""
    leaves_rows_out = settings.examples != "dependent"
    room = partial(order.buffers, num_classes) if leaves_rows_out else None
    return Passing(settings.examples, settings.accumulate, room)


def model_of(name: str, num_classes: int, settings: Settings, axis_name: str | None) -> Any:
    """The model of that name, as the settings have it."""
    return create_model(
        name,
        num_classes,
        dtype={"float32": jnp.float32, "bfloat16": jnp.bfloat16}[settings.precision],
        axis_name=axis_name,
        classifier=settings.classifier,
        remat=settings.remat,
        adapter=settings.adapter,
        adapter_size=settings.adapter_size,
    )


def optimizer_of(schedule: Any, settings: Settings, steps_per_epoch: int) -> Any:
    """SGD as the settings have it; a method whose weight decay is inside does its own."""
    return optimizer(
        schedule,
        settings.momentum,
        0.0 if settings.weight_decay_inside else settings.weight_decay,
        max_norm_every={"none": 0, "step": 1, "epoch": steps_per_epoch}[settings.max_norm],
    )


def tail_of(dataset: Dataset | EncodedDataset, settings: Settings) -> np.ndarray | None:
    """bool[C]: the tail of stratified sampling; None where rows are drawn otherwise."""
    if settings.sampling != "stratified":
        return None
    counts = filled(dataset.class_counts())
    try:
        tail = tail_classes(counts, settings.eta, strict=settings.strict)
    except ValueError as error:
        raise RunError(f"{flag('sampling')} stratified: {error}") from error
    if tail.all() or not tail.any():
        raise RunError(
            f"{flag('sampling')} stratified shares the tail out among the batches, but "
            f"{flag('eta')} {settings.eta:g} leaves no {'head' if tail.all() else 'tail'} class: "
            f"the counts range from {counts.min()} to {counts.max()}, so choose it between them"
        )
    return tail


def another_seed(seed: int) -> int:
    """A seed far from this one: half of all that there are further on."""
    return (seed + 2**31) % 2**32


def last_variables(
    run: Path, dataset: Dataset, model_name: str, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({"params", "batch_stats"} of a run's last checkpoint, the same freshly drawn anew).

    The fresh ones are another draw than those the run started from.
    """
    parts = Parts(dataset, model_name, cross_entropy, settings)
    config = outputs.read_object(run / "config.json")
    checkpoints = Checkpoints(run / "checkpoints", config=config, reading=True)
    try:
        found = checkpoints.restore(parts.initial)
    finally:
        checkpoints.close()
    # Not the note's epoch: a stop in the last evaluation is saved before that epoch is closed.
    if found is None or int(found[0].step) != settings.epochs * parts.steps_per_epoch:
        raise RunError(
            f"{run} holds no whole checkpoint of its last epoch to start a second stage from: "
            f"remove its report.json, and {flag('resume')} trains what is missing again"
        )
    again = dataclasses.replace(settings, seed=another_seed(settings.seed), classifier="linear")
    fresh = Parts(dataset, model_name, cross_entropy, again).initial
    return found[0].variables(), fresh.variables()


def initial_variables(
    path: str, dataset: Dataset | EncodedDataset, model_name: str, settings: Settings
) -> tuple[dict[str, Any], str]:
    """({"params", "batch_stats"} with a file's weights, a line that says what was taken)."""
    fresh = Parts(dataset, model_name, cross_entropy, settings).initial
    return load_weights(path, fresh.variables(), model_name)


def resolved(settings: Settings) -> Settings:
    """The settings with the number of devices, and of steps of a call, that 0 stands for."""
    devices = use_devices(settings.devices)
    settings = dataclasses.replace(settings, devices=len(devices))
    if settings.steps_per_call:
        return settings
    return dataclasses.replace(settings, steps_per_call=1 if devices[0].platform == "cpu" else 50)


def run_config(
    dataset: Dataset | EncodedDataset,
    model_name: str,
    settings: Settings,
    description: dict[str, Any],
) -> tuple[dict[str, Any], Any]:
    """(config.json of a run, its preset): the same flags spelled out are the same run."""
    config = {
        **description,
        "dataset": dataset.name,
        "source": dataset.source,
        "model": model_name,
        **settings.decisive(),
        "class_counts_sha256": class_counts_sha256(dataset.class_counts()),
        **about_images(dataset),
        "rows_sha256": rows_of(dataset),
        **jax_settings(),
    }
    return config, config.pop("preset", None)


def rows_of(dataset: Dataset | EncodedDataset) -> dict[str, str]:
    """Which images it has; of features, which they were made of: their rounding tells nothing."""
    kept: dict[str, str] | None = getattr(dataset, "rows_sha256", None)
    return rows_sha256(dataset) if kept is None else kept


def about_images(dataset: Dataset | EncodedDataset) -> dict[str, list[Any]]:
    """What decides how a model sees an image: its shape, and by what it is normalised."""
    return {
        "image_shape": list(dataset.image_shape),
        "image_mean": list(dataset.mean),
        "image_std": list(dataset.std),
    }
