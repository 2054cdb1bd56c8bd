"""What a step costs: XLA's count of one lone compiled step, and its time."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from experiments.data.sampling import Order
from experiments.step.execution import Jit
from experiments.step.methods import Method
from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows
from imbsam_jax.rules import Rule


def flops(step: Any) -> float:
    """XLA's count of what is compiled, or lowered on the host: see Jit.lower_on_host.

    It takes a loop's body once and the dearest branch: compile steps alone. Before optimisation it
    is a percent or two less, for the borders of convolutions.
    """
    analysis = step.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0]
    return float((analysis or {}).get("flops", float("nan")))


def lone_step(
    run_on: Jit,
    method: Method | Rule,
    state: TrainState,
    inputs: Inputs | None,
    rows: Rows,
    order: Order,
    seconds: float,
) -> tuple[float, float]:
    """(FLOPs, median milliseconds) of one compiled step; a time of NaN where seconds is 0.

    FLOPs are those of one device's part; on a GPU they are counted on the host, where pmap's
    cannot be.

    Args:
      state: plain; it is copied, not donated.
      rows: of one batch, leaves [1, b, ...].
      order: where passes leave out rows, a thousand of its batches say how many they have.
      seconds: how long to go on timing, at least three steps; several processes time three.
    """
    mine = run_on.put_state(state)
    on_host = run_on.devices[0].platform == "gpu" and run_on.axis_name is None and _host_is_there()

    passing = run_on.passing

    def compiled(room: Any) -> Any:
        # Micro-batches are a loop, of which XLA would count one.
        there = run_on.passing_by(dataclasses.replace(passing, room=room, micro_batches=1))
        if on_host:
            return there.lower_on_host(method, mine, inputs, rows)
        return there.compile_steps(method, mine, inputs, rows)

    call, mean_flops = counted(compiled, passing.room, order.labels_of(1000, run_on.apart))
    if on_host:
        mean_flops /= len(run_on.devices)
    if seconds and (on_host or passing.micro_batches > 1):
        call = run_on.compile_steps(method, mine, inputs, rows)
    times: list[float] = []
    most = 100 if run_on.processes == 1 else 4  # they must make equally many steps
    while seconds and (len(times) < 4 or (sum(times) < seconds and len(times) < most)):
        placed = run_on.place(rows)
        began = time.perf_counter()
        mine, seen = call(mine, inputs, placed)
        jax.block_until_ready((mine, seen))
        times.append(time.perf_counter() - began)
    return mean_flops, 1000 * float(np.median(times[1:])) if times else float("nan")


def _host_is_there() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:  # JAX_PLATFORMS names the GPU alone
        return False


def counted(
    compiled: Callable[[Any], Any], room: Any, batches: Iterable[np.ndarray]
) -> tuple[Any, float]:
    """(a compiled step, its FLOPs on average over batches).

    Where passes choose among buffers of several sizes, each choice is compiled alone and weighted
    by how often it is made. (Every part and pass chooses by itself.)

    Args:
      compiled: room -> the step, compiled; `room` as in Passing.
      room: of this step; None where each pass sees the whole batch.
      batches: labels int[b] of batches as they are drawn, b the rows of one device.
    """
    if room is None:
        call = compiled(None)
        return call, flops(call)
    asked: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def noted(rows: int) -> Any:
        buffers = room(rows)

        def sizes(classes: np.ndarray) -> Any:
            found = np.unique(np.clip(buffers(classes), 1, rows))
            asked[classes.tobytes()] = classes, found
            return found.tolist()

        return sizes

    call = compiled(noted)
    if all(len(sizes) == 1 for _, sizes in asked.values()):
        return call, flops(call)

    def chosen(labels: np.ndarray) -> tuple[int, ...]:
        return tuple(
            int(sizes[np.minimum(np.searchsorted(sizes, classes[labels].sum()), len(sizes) - 1)])
            for classes, sizes in asked.values()
        )

    choices = Counter(map(chosen, batches))
    total = 0.0
    for choice, times in choices.items():
        alone = {key: (size,) for key, size in zip(asked, choice, strict=True)}
        step = compiled(lambda _, alone=alone: lambda classes: alone[classes.tobytes()])
        total += times * flops(step)
    return call, total / choices.total()
