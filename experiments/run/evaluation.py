"""Evaluation in batches: every image counts once, also where the last batch is padded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset, filled
from experiments.data.encoded import EncodedDataset, told_unreadable
from experiments.host.cli import noun
from experiments.host.errors import RunError, flag
from experiments.host.stopping import StopRequest
from experiments.run.feeds import Feed
from experiments.step.execution import Jit
from experiments.step.state import TrainState
from experiments.step.step import Inputs, count_hits, take
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

        def hits(
            state: TrainState, inputs: Inputs | None, placed: Any, flip: bool, crops: bool
        ) -> Any:
            rows = jax.tree.map(lambda x: x[0], placed[0])
            return count_hits(state, feed.crops if crops else feed.plain, inputs, rows, flip)

        def features(state: TrainState, inputs: Inputs | None, placed: Any) -> Any:
            rows = jax.tree.map(lambda x: x[0], placed[0])
            images = feed.plain(take(inputs, rows)[0])
            both = jnp.stack([images, images[:, :, ::-1]])
            found = jax.lax.map(
                lambda x: state.apply_fn(state.variables(), x, train=False, method="embed"), both
            )
            return jnp.moveaxis(found, 0, 1)[:, None], rows.mask

        self._hits = jax.jit(hits, static_argnums=(3, 4), out_shardings=run_on.replicated)
        self._features = jax.jit(features, out_shardings=run_on.replicated)

    def put_state(self, state: TrainState) -> TrainState:
        """A plain state, as `hits` takes it."""
        return self._run_on.put_state(state)

    def hits(
        self,
        state: TrainState,
        part: str,
        stop: StopRequest,
        *,
        flip: bool = False,
        crops: bool = False,
    ) -> Hits:
        """Counts over the whole part; a requested stop is answered between batches.

        Args:
          state: replicated over the mesh of run_on.
          flip: average the logits over each image and its mirror image.
          crops: average them over five parts of each image.
        """
        count = len(getattr(self._dataset, f"{part}_labels"))
        correct, total = (np.zeros(self._dataset.num_classes, np.int64) for _ in range(2))
        loss = 0.0
        for inputs, placed in self._batches(part, stop, crops):
            found = jax.device_get(self._hits(state, inputs, placed, flip, crops))
            correct, total, loss = correct + found[0], total + found[1], loss + float(found[2])
        seen = int(total.sum())
        if count - seen > self._max_corrupt * count:
            raise RunError(
                f"{count - seen} of {count} images of the {part} set could not be read"
                f"{told_unreadable(self._dataset, part)}, more than the share "
                f"{flag('max_corrupt')} {self._max_corrupt:g} allows"
            )
        had = np.bincount(
            getattr(self._dataset, f"{part}_labels"), minlength=self._dataset.num_classes
        )
        gone = np.flatnonzero((had > 0) & (total == 0))
        if len(gone):
            raise RunError(
                f"no {part} image of {noun(len(gone), 'class', 'classes')} (the first is "
                f"{gone[0]}) could be read, and a mean over classes would leave it out"
            )
        return Hits(correct, total, loss / seen)

    def features(self, state: TrainState, part: str, stop: StopRequest) -> np.ndarray:
        """float32[N, 1, 2, D] of a part, of each image and of its mirror image.

        Raises:
          RunError: an image could not be read.
        """
        found = []
        for inputs, placed in self._batches(part, stop):
            values, real = jax.device_get(self._features(state, inputs, placed))
            found.append(values[real])
        whole, count = np.concatenate(found), len(getattr(self._dataset, f"{part}_labels"))
        if len(whole) < count:
            raise RunError(
                f"{count - len(whole)} of {count} images of the {part} set could not be read"
                f"{told_unreadable(self._dataset, part)}, and features are kept of all or of none"
            )
        return whole

    def _batches(
        self, part: str, stop: StopRequest, crops: bool = False
    ) -> Iterator[tuple[Inputs | None, Any]]:
        """(what every call gets, the rows of this one) of each batch of a part."""
        if part not in self._inputs:
            self._inputs[part] = self._run_on.put_inputs(self._feed.inputs(part))
        count = len(getattr(self._dataset, f"{part}_labels"))
        devices = len(self._run_on.devices)
        size = -(-min(self._batch, count) // devices) * devices
        with self._feed.evaluation(part, size, crops) as batches:
            for rows in batches:
                if self._run_on.processes == 1:  # several would stop at different batches
                    stop.check()
                yield self._inputs[part], self._run_on.place(rows)

    def accuracies(self, hits: Hits) -> dict[str, float | None]:
        """all, many, medium, few in percent; None for a group without classes.

        A class without a training image is left out.
        """
        total = np.where(self._counts == 0, 0, hits.total)
        correct = np.where(self._counts == 0, 0, hits.correct)
        with jax.debug_nans(False):  # NaN is what a group without classes has
            found = metrics.shot_accuracies(correct, total, self._splits)
        return {k: None if math.isnan(float(v)) else float(v) for k, v in found.items()}
