"""Which devices a process has and whom it meets: by a JAX that only notes what it is asked."""

import os
import types

import jax
import pytest

from experiments.host import devices
from experiments.host.errors import RunError


@pytest.fixture
def asked(monkeypatch):
    """What JAX is told, by name; "joined" says whether this is one process of several."""
    told = {"joined": False}
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: told["joined"])
    monkeypatch.setattr(jax.config, "update", told.__setitem__)

    def initialize(*given, **more):
        told["met"] = (given, more)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return told


def of_process(process, number, kind="kind"):
    return types.SimpleNamespace(process_index=process, id=number, device_kind=kind)


@pytest.mark.parametrize(
    ("given", "emulated"),
    [((None, None, None, 0), None), ((None, None, None, 3), None), (("h:1", 2, 0, 0), None),
     (("h:1", 2, 1, 6), 3), (("h:1", 1, 0, 1), 1)],
)  # fmt: skip
def test_processes_meet_and_each_emulates_its_share(asked, given, emulated):
    """The cluster's own too, of whose number nothing is known yet."""
    devices.join_processes(*given, 7)
    assert asked["met"] == (given[:3], {"heartbeat_timeout_seconds": 7})
    found = asked.get("jax_num_cpu_devices")
    assert found == emulated and type(found) is type(emulated)


@pytest.mark.parametrize("error", [RuntimeError("\nno answer\nat all"), ValueError("no answer")])
def test_processes_that_did_not_meet_are_told_in_a_line(monkeypatch, error):
    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(
        RunError, match=r"^the processes of this run did not .*together: no answer$"
    ):
        devices.join_processes("h:1", 2, 0, 0, 7)


@pytest.mark.parametrize("several", [False, True])
def test_devices_are_taken_in_the_order_of_their_processes(asked, monkeypatch, several):
    """Of one process the first so many; of several all or none are named."""
    there = [of_process(*place) for place in ((1, 2), (0, 1), (1, 3), (0, 0))]
    monkeypatch.setattr(jax, "devices", lambda: there)
    asked["joined"] = several
    in_order = [there[k] for k in (3, 1, 0, 2)]
    assert devices.use_devices(0) == devices.use_devices(4) == in_order
    with pytest.raises(RunError, match=r"^--devices 5, but JAX sees 4 \(kind\): ask for fewer$"):
        devices.use_devices(5)
    for count in (1, 3):
        if several:
            said = f"^--devices {count}, but the processes have 4, and each must take part: leave"
            with pytest.raises(RunError, match=said):
                devices.use_devices(count)
        else:
            assert devices.use_devices(count) == in_order[:count]


def test_as_many_devices_are_emulated_as_are_asked_for(asked, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "devices", lambda: [of_process(0, k) for k in range(3)])
    devices.use_devices(2)
    assert asked["jax_num_cpu_devices"] == 2


PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"


@pytest.mark.parametrize(
    ("count", "flags", "emulated", "after"),
    [
        (0, "--a", None, "--a"), (1, "--a", None, "--a"),
        (2, "--a", 2, f"--a {PATIENT}"), (2, "", 2, PATIENT), (64, "", 64, PATIENT),
        (65, "", 64, PATIENT), (2, PATIENT[:-3] + "40", 2, PATIENT[:-3] + "40"),
        (2, "--xla_force_host_platform_device_count=3", None,
         "--xla_force_host_platform_device_count=3"),
    ],
)  # fmt: skip
def test_devices_of_a_cpu_are_emulated(asked, monkeypatch, count, flags, emulated, after):
    """At most 64, and none where a flag of XLA's says how many; they wait for each other longer."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(devices.version, "__version_info__", (0, 12, 9))
    devices.emulate(count)
    assert (asked.get("jax_num_cpu_devices"), os.environ["XLA_FLAGS"]) == (emulated, after)


@pytest.mark.parametrize("version", [(0, 13), (0, 13, 0), (1, 0)])
def test_a_version_that_nobody_tried_gets_no_flag(asked, monkeypatch, version):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    monkeypatch.setattr(devices.version, "__version_info__", version)
    devices.emulate(2)
    assert (asked["jax_num_cpu_devices"], os.environ["XLA_FLAGS"]) == (2, "--a")


def test_devices_of_several_processes_are_emulated_as_they_meet(asked, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    asked["joined"] = True
    devices.emulate(2)
    assert "jax_num_cpu_devices" not in asked and os.environ["XLA_FLAGS"] == "--a"


@pytest.mark.parametrize(
    ("may_use", "there_are", "found"), [({3, 5}, 8, 2), (None, 8, 8), (None, None, 1)]
)
def test_the_cores_are_those_that_this_process_may_use(monkeypatch, may_use, there_are, found):
    """Of all, where the system does not tell; of one, where it does not know."""
    monkeypatch.setattr(os, "cpu_count", lambda: there_are)
    if may_use is None:
        monkeypatch.delattr(os, "sched_getaffinity")
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0: may_use}[pid])
    assert devices.cores() == found
