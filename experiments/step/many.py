"""Many steps in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows, StepMetrics


def many_steps(
    step: Callable[..., tuple[TrainState, StepMetrics]],
    state: TrainState,
    inputs: Inputs | None,
    rows: Rows | jax.Array,
    positions: jax.Array,
    batch_size: int,
    key: jax.Array,
) -> tuple[TrainState, StepMetrics]:
    """(the state after K steps, StepMetrics with leaves [K]), traced: a scan, K = 1 a lone step.

    Args:
      step: of `make_step`.
      rows: leaves [K, b, ...], of each step.
      positions, batch_size, key: of every step, as it takes them.
    """

    def body(state: TrainState, rows_of_step: Any) -> tuple[TrainState, StepMetrics]:
        return step(state, inputs, rows_of_step, positions, batch_size, key)

    if jax.tree.leaves(rows)[0].shape[0] != 1:
        return jax.lax.scan(body, state, rows)
    state, seen = body(state, jax.tree.map(lambda x: x.squeeze(0), rows))
    return state, jax.tree.map(lambda x: x[None], seen)
