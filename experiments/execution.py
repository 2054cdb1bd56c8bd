"""Where a step runs: jit over a mesh, or pmap. Two implementations of one small contract.

    put_state(state)       a state on the host -> what `compile_steps` takes and returns
    get_state(state)       back to a plain state, replicated over the mesh
    put_inputs(inputs)     a data set, whole on every device
    place(index)           int32[K, B], rows of K batches -> what the compiled call takes
    compile_steps(method, state, inputs, index) -> call(state, inputs, placed) -> (state, metrics)

A call is K steps: a scan where K > 1, else a lone step (on XLA:CPU a convolution is many times
slower to train inside a scan). The state is donated.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.errors import RunError
from experiments.methods import Method
from experiments.objectives import Objective
from experiments.steps import Inputs, StepMetrics, TrainState, make_step
from imbsam_jax.rules import Rule

AXIS = "batch"


def use_devices(count: int) -> list[jax.Device]:
    """The first `count` devices, emulated ones on a CPU; call it before JAX is otherwise used."""
    if count < 1:
        raise RunError(f"--devices must be at least 1, got {count}")
    if count > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # a backend runs already; there may be enough
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        raise RunError(
            f"--devices {count}, but JAX sees {len(devices)} ({devices[0].device_kind}): ask for "
            "fewer"
        )
    return devices[:count]


class Jit:
    """Plain jit; the batch is sharded over a mesh of all devices, everything else replicated."""

    axis_name: str | None = None

    def __init__(
        self, devices: list[jax.Device], objective: Objective, prepare: Any, key: jax.Array
    ):
        self.devices, self._objective, self._prepare = devices, objective, prepare
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self.replicated = NamedSharding(mesh, P())
        self._rows = NamedSharding(mesh, P(None, AXIS))
        self._key = jax.device_put(key, self.replicated)

    def put_state(self, state: TrainState) -> TrainState:
        # A copy: the caller's arrays must survive donation.
        return jax.tree.map(
            lambda x: jax.device_put(jnp.array(x, copy=True), self.replicated), state
        )

    def get_state(self, state: TrainState) -> TrainState:
        return state

    def put_inputs(self, inputs: Inputs) -> Inputs:
        return jax.device_put(inputs, self.replicated)

    def place(self, index: np.ndarray) -> jax.Array:
        # A last batch that cannot be divided is computed whole by every device: exact, and rare.
        even = index.shape[1] % len(self.devices) == 0
        return jax.device_put(index, self._rows if even else self.replicated)

    def compile_steps(
        self, method: Method | Rule, state: TrainState, inputs: Inputs, index: np.ndarray
    ) -> Any:
        step = make_step(method, self._objective, self._prepare, axis_name=self.axis_name)
        many = _repeat(step, index.shape[0], index.shape[1], self._key)

        def call(state: TrainState, inputs: Inputs, index: jax.Array) -> Any:
            return many(state, inputs, index, jnp.arange(index.shape[1]))

        jitted = jax.jit(call, donate_argnums=0, out_shardings=self.replicated)
        return jitted.lower(state, inputs, self.place(index)).compile()


class Pmap(Jit):
    """pmap with an axis name: every device has its rows, gradients are averaged by the library."""

    axis_name: str | None = AXIS

    def put_state(self, state: TrainState) -> TrainState:
        return self._everywhere(state)

    def get_state(self, state: TrainState) -> TrainState:
        return jax.tree.map(
            lambda x: jax.device_put(x.addressable_shards[0].data[0], self.replicated), state
        )

    def put_inputs(self, inputs: Inputs) -> Inputs:
        return self._everywhere(inputs)

    def place(self, index: np.ndarray) -> Any:
        count, (steps, rows) = len(self.devices), index.shape
        positions = np.arange(rows, dtype=np.int32)
        if rows % count:
            return np.stack([index] * count), np.stack([positions] * count)
        split = index.reshape(steps, count, rows // count)
        return split.transpose(1, 0, 2), positions.reshape(count, -1)

    def compile_steps(
        self, method: Method | Rule, state: TrainState, inputs: Inputs, index: np.ndarray
    ) -> Any:
        step = make_step(method, self._objective, self._prepare, axis_name=self.axis_name)
        many = _repeat(step, index.shape[0], index.shape[1], self._key)

        def call(state: TrainState, inputs: Inputs, placed: Any) -> Any:
            return many(state, inputs, *placed)

        mapped = jax.pmap(call, axis_name=AXIS, donate_argnums=0, devices=self.devices)
        compiled = mapped.lower(state, inputs, self.place(index)).compile()

        def run(state: TrainState, inputs: Inputs, placed: Any) -> Any:
            state, metrics = compiled(state, inputs, placed)
            return state, jax.tree.map(lambda x: x[0], metrics)

        run.cost_analysis, run.as_text = compiled.cost_analysis, compiled.as_text  # type: ignore[attr-defined]
        return run

    def _everywhere(self, tree: Any) -> Any:
        copy = jax.pmap(lambda _, x: x, in_axes=(0, None), devices=self.devices)
        return copy(np.arange(len(self.devices)), tree)


EXECUTIONS = {"jit": Jit, "pmap": Pmap}


def _repeat(
    step: Callable[..., tuple[TrainState, StepMetrics]], steps: int, rows: int, key: jax.Array
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """K steps as one function of (state, inputs, index int32[K, b], positions int32[b])."""

    def lone(state: TrainState, inputs: Inputs, index: jax.Array, positions: jax.Array) -> Any:
        state, metrics = step(state, inputs, index[0], positions, rows, key)
        return state, jax.tree.map(lambda x: x[None], metrics)

    def scanned(state: TrainState, inputs: Inputs, index: jax.Array, positions: jax.Array) -> Any:
        def body(state: TrainState, rows_of_step: jax.Array) -> Any:
            return step(state, inputs, rows_of_step, positions, rows, key)

        return jax.lax.scan(body, state, index)

    return lone if steps == 1 else scanned
