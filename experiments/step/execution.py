"""Where a step runs: jit over a mesh, or pmap; `seeds.Seeds` has steps of several seeds.

What the trainer asks of each of them:

    put_state(state)       a state on the host -> what `compile_steps` takes and returns
    get_state(state)       back to a plain state, replicated over the mesh
    put_inputs(inputs)     a data set, whole on every device; None where rows bring their images
    place(rows, stop)      rows of K batches, leaves [K, b, ...] -> what the compiled call takes
    compile_steps(method, state, inputs, rows) -> call(state, inputs, placed) -> (state, metrics)

Rows with an index are the whole batch's on every process, rows with images this process's part.
On several processes `metrics.stop` is the largest of the stops that they gave with the call: they
all learn of a stop at the same call.

A call is K steps: a scan where K > 1, else a lone step. The state is donated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.step.many import many_steps
from experiments.step.methods import Method
from experiments.step.objectives import Objective
from experiments.step.passing import Passing
from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows, StepMetrics, make_step
from imbsam_jax.rules import Rule

AXIS = "batch"


class Jit:
    """Plain jit; the batch is sharded over a mesh of all devices, everything else replicated."""

    axis_name: str | None = None

    @property
    def apart(self) -> int:
        """Into how many parts a batch is split, each with passes of its own."""
        return 1

    def __init__(
        self,
        devices: list[jax.Device],
        objective: Objective,
        prepare: Any,
        key: jax.Array,
        passing: Passing = Passing(),
    ):
        self._objective, self._prepare, self.passing = objective, prepare, passing
        # As plain numbers: a constant of every compiled call, on any number of processes.
        self.key_data = np.asarray(jax.random.key_data(key))
        self._use(devices)

    def _use(self, devices: list[jax.Device]) -> None:
        self.devices = devices
        self.processes = jax.process_count() if len(devices) > 1 else 1
        self._local = len(devices) // self.processes
        mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, P())
        self._rows = NamedSharding(mesh, P(None, AXIS))

    def on(self, devices: list[jax.Device]) -> Jit:
        """The same steps on other devices."""
        there = copy.copy(self)
        there._use(devices)
        return there

    def passing_by(self, passing: Passing) -> Jit:
        """The same steps with passes run in another way."""
        there = copy.copy(self)
        there.passing = passing
        return there

    def put_state(self, state: TrainState) -> TrainState:
        # A copy: the caller's arrays must survive donation.
        return jax.tree.map(self._replicate, state)

    def get_state(self, state: TrainState) -> TrainState:
        return state

    # What the trainer asks for of one run or of several (see step/seeds.py).

    def alone(self) -> Jit:
        """Where a lone run's steps are made."""
        return self

    def join(self, states: list[TrainState]) -> TrainState:
        """The states of all runs as one."""
        (state,) = states
        return self.put_state(state)

    def split(self, state: TrainState) -> list[TrainState]:
        """The plain state of each run."""
        return [self.get_state(state)]

    def join_rows(self, rows: tuple[Rows, ...]) -> Rows:
        (mine,) = rows
        return mine

    def split_seen(self, seen: Any) -> list[Any]:
        return [seen]

    def put_inputs(self, inputs: Inputs | None) -> Inputs | None:
        return jax.tree.map(self._replicate, inputs)

    def part(self, count: int) -> slice:
        """Which of `count` rows, spread over all devices, are this process's."""
        each, me = count // self.processes, jax.process_index() if self.processes > 1 else 0
        return slice(me * each, (me + 1) * each)

    def place(self, rows: Rows | np.ndarray, stop: int | None = None) -> Any:
        rows, even = self._mine(rows)
        spread = self._rows if even else self.replicated
        placed = jax.tree.map(lambda x: self._put(x, spread), rows)
        return placed, self._put(self._flags(rows, stop), self._rows)

    def compile_steps(
        self,
        method: Method | Rule,
        state: TrainState,
        inputs: Inputs | None,
        rows: Rows | np.ndarray,
    ) -> Any:
        many = self.many(method)

        def call(state: TrainState, inputs: Inputs | None, placed: Any) -> Any:
            rows, stop = placed
            count = jax.tree.leaves(rows)[0].shape[1]
            state, seen = many(state, inputs, rows, jnp.arange(count), count)
            return state, seen if stop is None else seen._replace(stop=stop.max())

        jitted = jax.jit(call, donate_argnums=0, out_shardings=self.replicated)
        return jitted.lower(state, inputs, self.place(rows)).compile()

    def lower_on_host(
        self,
        method: Method | Rule,
        state: TrainState,
        inputs: Inputs | None,
        rows: Rows | np.ndarray,
    ) -> Any:
        """The call over all these rows, lowered for this machine's CPU and not compiled: to count.

        XLA cannot count what it compiled for a GPU, where the work is in calls of libraries, and
        counts nothing lowered for one.
        """
        many = self.many(method)
        rows = rows if isinstance(rows, Rows) else Rows(index=rows)

        def call(state: TrainState, inputs: Inputs | None, rows: Rows) -> Any:
            count = jax.tree.leaves(rows)[0].shape[1]
            return many(state, inputs, rows, jnp.arange(count), count)

        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, inputs, rows)
        )
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return jax.jit(call).lower(*shapes)

    def _mine(self, rows: Rows | np.ndarray) -> tuple[Rows, bool]:
        """(this process's part of the rows, are all devices to have equal parts)."""
        rows = rows if isinstance(rows, Rows) else Rows(index=rows)
        count = jax.tree.leaves(rows)[0].shape[1]
        if rows.index is None:
            if count % self._local:
                raise ValueError(f"{count} streamed rows for {self._local} devices: pad them")
            return rows, True
        # A last batch that cannot be divided is computed whole by every device: exact, and rare.
        if count % len(self.devices):
            return rows, False
        mine = self.part(count)
        return jax.tree.map(lambda x: x[:, mine], rows), True

    def _flags(self, rows: Rows, stop: int | None) -> np.ndarray | None:
        """int32[K, devices]: what each process knows of a stop, None where one is alone."""
        if self.processes == 1:
            return None
        steps = jax.tree.leaves(rows)[0].shape[0]
        return np.full((steps, self._local), stop or 0, np.int32)

    def many(
        self, method: Method | Rule, key: Any = None
    ) -> Callable[..., tuple[TrainState, StepMetrics]]:
        """K steps as one function of (state, inputs, Rows with [K, b], positions int32[b], B).

        Their randomness is of this key's data, or of the run's own.
        """
        step = make_step(
            method,
            self._objective,
            self._prepare,
            axis_name=self.axis_name,
            passing=self.passing,
        )
        key_data = self.key_data if key is None else key

        def many(state: TrainState, inputs: Any, rows: Rows, positions: Any, whole: int) -> Any:
            run_key = jax.random.wrap_key_data(jnp.asarray(key_data))
            return many_steps(step, state, inputs, rows, positions, whole, run_key)

        return many

    def _put(self, x: Any, sharding: NamedSharding) -> Any:
        if x is None:
            return None
        if self.processes == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, x)

    def _replicate(self, x: Any) -> jax.Array:
        if self.processes == 1:
            return jax.device_put(jnp.array(x), self.replicated)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, self.replicated, lambda part: host[part])


class Pmap(Jit):
    """pmap with an axis name: every device has its rows, gradients are averaged by the library."""

    axis_name: str | None = AXIS

    @property
    def apart(self) -> int:
        return len(self.devices)

    def put_state(self, state: TrainState) -> TrainState:
        return self._everywhere(state)

    def get_state(self, state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: self._replicate(_first(x)), state)

    def put_inputs(self, inputs: Inputs | None) -> Inputs | None:
        return None if inputs is None else self._everywhere(inputs)

    def place(self, rows: Rows | np.ndarray, stop: int | None = None) -> Any:
        rows, even = self._mine(rows)
        local, count = self._local, jax.tree.leaves(rows)[0].shape[1]
        flags = self._flags(rows, stop)
        if flags is not None:
            flags = flags.T
        if not even:
            positions = np.arange(count, dtype=np.int32)
            stacked = jax.tree.map(lambda x: np.stack([x] * local), rows)
            return stacked, np.stack([positions] * local), flags

        def split(x: np.ndarray) -> np.ndarray:
            return np.moveaxis(x.reshape(len(x), local, count // local, *x.shape[2:]), 1, 0)

        whole = count * self.processes
        positions = np.arange(whole, dtype=np.int32)[self.part(whole)]
        return jax.tree.map(split, rows), positions.reshape(local, -1), flags

    def compile_steps(
        self,
        method: Method | Rule,
        state: TrainState,
        inputs: Inputs | None,
        rows: Rows | np.ndarray,
    ) -> Any:
        many, placed = self.many(method), self.place(rows)
        mine, even = self._mine(rows)
        whole = jax.tree.leaves(mine)[0].shape[1] * (self.processes if even else 1)

        def call(state: TrainState, inputs: Inputs | None, placed: Any) -> Any:
            rows, positions, stop = placed
            state, seen = many(state, inputs, rows, positions, whole)
            return state, seen if stop is None else seen._replace(stop=jax.lax.pmax(stop, AXIS))

        mapped = jax.pmap(call, axis_name=AXIS, donate_argnums=0, devices=self.devices)
        compiled = mapped.lower(state, inputs, placed).compile()
        # On several processes, what is compiled ahead asks for the arrays of all of them.
        use = compiled if self.processes == 1 else mapped

        def run(state: TrainState, inputs: Inputs | None, placed: Any) -> Any:
            state, seen = use(state, inputs, placed)
            return state, jax.tree.map(_first, seen)

        run.cost_analysis, run.as_text = compiled.cost_analysis, compiled.as_text  # type: ignore[attr-defined]
        return run

    def _everywhere(self, tree: Any) -> Any:
        copy = jax.pmap(lambda _, x: x, in_axes=(0, None), devices=self.devices)
        return copy(np.arange(self._local), jax.device_get(tree))


def _first(x: jax.Array) -> jax.Array:
    """What this process's first device has of what pmap returned."""
    return x.addressable_shards[0].data.squeeze(0)


EXECUTIONS = {"jit": Jit, "pmap": Pmap}
