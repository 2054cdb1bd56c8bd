"""Where a step runs: jit over a mesh, or pmap. Two implementations of one small contract.

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

import contextlib
import copy
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxlib import version

from experiments.host.errors import RunError
from experiments.models import CONVOLUTIONAL
from experiments.step.many import many_steps
from experiments.step.methods import Method
from experiments.step.objectives import Objective
from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows, StepMetrics, make_step
from imbsam_jax.rules import Rule

AXIS = "batch"


def join_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    devices: int,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins the processes of a run; all None leaves it to the cluster (TPU pod, Slurm, Open MPI).

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      devices: over all processes, for emulated ones on a CPU; 0 takes what is there.
      heartbeat_seconds: a process that is silent for so long is taken for dead, and ends the run.
    """
    given = (coordinator, num_processes, process_id)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise RunError("--coordinator, --num-processes and --process-id belong together")
    if num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise RunError(
                f"--process-id must be between 0 and --num-processes - 1 = {num_processes - 1}, "
                f"got {process_id}"
            )
        if devices % num_processes:
            raise RunError(
                f"--devices {devices} is the number over all processes: it must be a multiple of "
                f"--num-processes {num_processes}"
            )
        if devices:
            jax.config.update("jax_num_cpu_devices", devices // num_processes)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"the processes of this run did not come together: {reason}") from error


def use_devices(count: int) -> list[jax.Device]:
    """The first `count` devices, 0 for all; emulated ones on a CPU. Call it before JAX is used."""
    if count < 0:
        raise RunError(f"--devices must be at least 0, got {count}")
    alone = not jax.distributed.is_initialized()
    emulate(count)
    # By process: the rows of a batch that a process reads lie side by side.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) < count:
        raise RunError(
            f"--devices {count}, but JAX sees {len(devices)} ({devices[0].device_kind}): ask for "
            "fewer"
        )
    if not alone and 0 < count < len(devices):
        raise RunError(
            f"--devices {count}, but the processes have {len(devices)}, and each must take part: "
            "leave --devices out"
        )
    return devices[: count or len(devices)]


def devices_by_default(otherwise: int, model: str, batch_size: int, examples: str) -> int:
    """How many devices to use where nobody said: on a CPU emulated ones, for every core.

    XLA hardly uses a second core for one device's convolutions: a step of ResNet-32 (batch 64) on
    two cores took a sixth to a quarter less time when shared by two devices, one of the MLP two to
    three times as long (results/cpu_cores). More than two have not been tried.

    Args:
      otherwise: the number on accelerators; on a CPU it matters for several processes alone.
      model: one of MODELS.
      batch_size: to be shared evenly.
      examples: rows are chosen on one device.
    """
    if jax.distributed.is_initialized():
        return otherwise
    emulate(min(cores(), 8))
    if jax.default_backend() != "cpu":
        return otherwise
    if model not in CONVOLUTIONAL or examples != "dependent":
        return 1
    return max(n for n in range(1, min(jax.device_count(), 8) + 1) if batch_size % n == 0)


def devices_for_seeds(seeds: int) -> int:
    """Among how many of the devices that JAX has, at most eight of a CPU's, they can be divided."""
    most = jax.device_count() if jax.default_backend() != "cpu" else min(jax.device_count(), 8)
    return max(n for n in range(1, most + 1) if seeds % n == 0)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def emulate(count: int) -> None:
    """So many devices where the backend is a CPU; before JAX is used, later it does nothing.

    For a process alone; of several, `join_processes` does it. At most 64: each costs threads.
    """
    if jax.distributed.is_initialized() or count < 2:
        return
    count = min(count, 64)
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" in flags:
        return
    with contextlib.suppress(RuntimeError):  # a backend runs already; there may be enough
        jax.config.update("jax_num_cpu_devices", count)
        if _PATIENT not in flags and version.__version_info__ < (0, 13):
            # On a busy machine devices meet late, and after 40 seconds XLA would abort. A flag
            # that XLA does not know would abort, too: not with versions nobody tried it with.
            os.environ["XLA_FLAGS"] = f"{flags} --{_PATIENT}=600".strip()


_PATIENT = "xla_cpu_collective_call_terminate_timeout_seconds"


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
        micro_batches: int = 1,
        room: Callable[[int], Any] | None = None,
        tail_statistics: str | None = None,
    ):
        self._objective, self._prepare = objective, prepare
        self.micro_batches, self.room, self.tail_statistics = micro_batches, room, tail_statistics
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
            micro_batches=self.micro_batches,
            room=self.room,
            tail_statistics=self.tail_statistics,
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
            return jax.device_put(jnp.array(x, copy=True), self.replicated)
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
        return jax.tree.map(lambda x: self._replicate(x.addressable_shards[0].data[0]), state)

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
            return state, jax.tree.map(lambda x: x.addressable_shards[0].data[0], seen)

        run.cost_analysis, run.as_text = compiled.cost_analysis, compiled.as_text  # type: ignore[attr-defined]
        return run

    def _everywhere(self, tree: Any) -> Any:
        copy = jax.pmap(lambda _, x: x, in_axes=(0, None), devices=self.devices)
        return copy(np.arange(self._local), jax.device_get(tree))


EXECUTIONS = {"jit": Jit, "pmap": Pmap}
