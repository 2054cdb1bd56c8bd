"""Evaluation in batches: every image counts once, also where the last batch is padded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import Dataset
from experiments.execution import Jit
from experiments.steps import Inputs, TrainState, count_hits, normalise
from experiments.stopping import StopRequest
from imbsam_jax import metrics, shot_splits


class Hits(NamedTuple):
    """int64[C] correct predictions and examples of each class; their mean cross-entropy."""

    correct: np.ndarray
    total: np.ndarray
    loss: float


class Evaluator:
    """Evaluates states on the parts ("test", "val", "train") of a data set.

    Args:
      dataset: whose images are evaluated, without augmentation.
      run_on: the devices, over which each batch is sharded.
      batch: images of a compiled call.
    """

    def __init__(self, dataset: Dataset, run_on: Jit, batch: int):
        self._dataset, self._run_on, self._batch = dataset, run_on, batch
        self._splits = shot_splits(dataset.class_counts(), dataset.many_above, dataset.few_below)
        self._inputs: dict[str, Inputs] = {}

        def hits(state: TrainState, inputs: Inputs, index: Any, mask: Any, flip: bool) -> Any:
            def prepare(images: jax.Array) -> jax.Array:
                return normalise(images, dataset.mean, dataset.std)

            return count_hits(state, prepare, inputs, index[0], mask[0], flip)

        self._hits = jax.jit(hits, static_argnums=4)

    def put_state(self, state: TrainState) -> TrainState:
        """A plain state, as `hits` takes it."""
        return self._run_on.put_state(state)

    def hits(self, state: TrainState, part: str, stop: StopRequest, *, flip: bool = False) -> Hits:
        """Counts over the whole part; a requested stop is answered between batches.

        Args:
          state: replicated over the mesh of run_on.
          flip: average the logits over each image and its mirror image.
        """
        if part not in self._inputs:
            arrays = (getattr(self._dataset, f"{part}_{what}") for what in ("images", "labels"))
            self._inputs[part] = self._run_on.put_inputs(Inputs(*arrays))
        inputs = self._inputs[part]
        count, devices = len(inputs.labels), len(self._run_on.devices)
        size = -(-min(self._batch, count) // devices) * devices
        correct, total = (np.zeros(self._dataset.num_classes, np.int64) for _ in range(2))
        loss = 0.0
        for start in range(0, count, size):
            stop.check()
            index = np.arange(start, start + size, dtype=np.int32)[None]
            rows = self._run_on.place(np.minimum(index, count - 1))
            found = self._hits(state, inputs, rows, self._run_on.place(index < count), flip)
            found = jax.device_get(found)
            correct, total, loss = correct + found[0], total + found[1], loss + float(found[2])
        return Hits(correct, total, loss / count)

    def accuracies(self, hits: Hits) -> dict[str, float | None]:
        """all, many, medium, few in percent; None for a group without classes."""
        found = metrics.shot_accuracies(hits.correct, hits.total, self._splits)
        return {k: None if math.isnan(float(v)) else float(v) for k, v in found.items()}
