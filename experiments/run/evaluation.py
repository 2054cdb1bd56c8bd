"""Evaluation in batches: every image counts once, also where the last batch is padded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import Dataset, filled
from experiments.data.encoded import EncodedDataset
from experiments.host.errors import RunError, flag
from experiments.host.stopping import StopRequest
from experiments.run.feeds import Feed
from experiments.step.execution import Jit
from experiments.step.state import TrainState
from experiments.step.step import Inputs, count_hits
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
      feed: where they come from.
      run_on: the devices, over which each batch is sharded.
      batch: images of a compiled call.
      max_corrupt: share of a part's images that may be unreadable; they are left out.
    """

    def __init__(
        self,
        dataset: Dataset | EncodedDataset,
        feed: Feed,
        run_on: Jit,
        batch: int,
        max_corrupt: float = 0.0,
    ):
        self._dataset, self._feed, self._run_on, self._batch = dataset, feed, run_on, batch
        self._counts, self._max_corrupt = dataset.class_counts(), max_corrupt
        self._splits = shot_splits(filled(self._counts), dataset.many_above, dataset.few_below)
        self._inputs: dict[str, Inputs | None] = {}

        def hits(state: TrainState, inputs: Inputs | None, placed: Any, flip: bool) -> Any:
            rows = jax.tree.map(lambda x: x[0], placed[0])
            return count_hits(state, feed.plain, inputs, rows, flip)

        self._hits = jax.jit(hits, static_argnums=3, out_shardings=run_on.replicated)

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
            self._inputs[part] = self._run_on.put_inputs(self._feed.inputs(part))
        count = len(getattr(self._dataset, f"{part}_labels"))
        devices = len(self._run_on.devices)
        size = -(-min(self._batch, count) // devices) * devices
        correct, total = (np.zeros(self._dataset.num_classes, np.int64) for _ in range(2))
        loss = 0.0
        with self._feed.evaluation(part, size) as batches:
            for rows in batches:
                if self._run_on.processes == 1:  # several would stop at different batches
                    stop.check()
                placed = self._run_on.place(rows)
                found = jax.device_get(self._hits(state, self._inputs[part], placed, flip))
                correct, total, loss = correct + found[0], total + found[1], loss + float(found[2])
        seen = int(total.sum())
        if count - seen > self._max_corrupt * count:
            raise RunError(
                f"{count - seen} of {count} images of the {part} set could not be read, more than "
                f"the share {flag('max_corrupt')} {self._max_corrupt:g} allows"
            )
        return Hits(correct, total, loss / max(seen, 1))

    def accuracies(self, hits: Hits) -> dict[str, float | None]:
        """all, many, medium, few in percent; None for a group without classes.

        A class without a training image is left out.
        """
        total = np.where(self._counts == 0, 0, hits.total)
        correct = np.where(self._counts == 0, 0, hits.correct)
        found = metrics.shot_accuracies(correct, total, self._splits)
        return {k: None if math.isnan(float(v)) else float(v) for k, v in found.items()}
