"""Which devices a process has, and the other processes of a run; asked before JAX is used."""

from __future__ import annotations

import contextlib
import os

import jax
from jaxlib import version

from experiments.host.errors import RunError


def join_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    devices: int,
    heartbeat_seconds: int,
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
