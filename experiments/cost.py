"""What a step costs: XLA's count of one lone compiled step, and its time."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from experiments.execution import Jit
from experiments.methods import Method
from experiments.steps import Inputs, Rows, TrainState
from imbsam_jax.rules import Rule


def flops(compiled: Any) -> float:
    """XLA's count. It takes a loop's body once and the dearest branch: compile steps alone."""
    analysis = compiled.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0]
    return float((analysis or {}).get("flops", float("nan")))


def lone_step(
    run_on: Jit,
    method: Method | Rule,
    state: TrainState,
    inputs: Inputs | None,
    rows: Rows,
    seconds: float,
) -> tuple[float, float]:
    """(FLOPs, median milliseconds) of one compiled step; a time of NaN where seconds is 0.

    Args:
      state: plain; it is copied, not donated.
      rows: of one batch, leaves [1, b, ...].
      seconds: how long to go on timing, at least three steps; several processes time three.
    """
    mine = run_on.put_state(state)
    call = run_on.compile_steps(method, mine, inputs, rows)
    times: list[float] = []
    most = 100 if run_on.processes == 1 else 4  # they must make equally many steps
    while seconds and (len(times) < 4 or (sum(times) < seconds and len(times) < most)):
        placed = run_on.place(rows)
        began = time.perf_counter()
        mine, seen = call(mine, inputs, placed)
        jax.block_until_ready((mine, seen))
        times.append(time.perf_counter() - began)
    return flops(call), 1000 * float(np.median(times[1:])) if times else float("nan")
