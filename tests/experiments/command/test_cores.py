"""Every core of a CPU by default: in processes of their own, since JAX counts devices once."""

import json

import jax
import pytest

from experiments.command import seeds
from experiments.command.seeds import devices_by_default, devices_for_seeds
from experiments.data import save_npz
from experiments.host.devices import cores
from tiny import tiny_dataset

LOADED = """
import jax
from experiments import cifar_lt
from experiments.command import launch
from experiments.data import save_npz
"""
DEVICES = f"""
import json, sys
{LOADED}
from experiments.command.seeds import devices_by_default
cases = json.loads(sys.argv[1])
print(json.dumps([devices_by_default(*case) for case in cases]))
"""


def test_convolutions_are_shared_among_the_cores(run_python) -> None:
    cases = [
        (1, "resnet32", 64, "dependent"),
        (0, "resnet50", 60, "dependent"),
        (1, "resnet32", 63, "dependent"),
        (1, "resnet32", 1, "dependent"),
        (0, "mlp", 64, "dependent"),
        (1, "vit_ti4", 64, "dependent"),
        (1, "resnet32_gn", 64, "independent"),
        (1, "resnet32", 64, "split_norm"),
    ]
    done = run_python(["-c", DEVICES, json.dumps(cases)], devices=None)
    most = min(cores(), 8)
    shared = [max(n for n in range(1, most + 1) if b % n == 0) for b in (64, 60, 63)]
    assert json.loads(done.stdout.splitlines()[-1]) == [*shared, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("given", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_number_of_devices_that_is_given_is_kept(run_python, given) -> None:
    """By XLA_FLAGS, before JAX runs."""
    code = DEVICES.replace(LOADED, "")
    done = run_python(["-c", code, json.dumps([(1, "resnet32", 9, "dependent")])], devices=given)
    assert json.loads(done.stdout.splitlines()[-1]) == [given]


def test_one_device_that_is_given_or_runs_already_is_kept(monkeypatch) -> None:
    assert devices_by_default(1, "mlp", 64, "dependent") == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("emulated"))
    monkeypatch.setattr(seeds, "cores", lambda: 3)
    assert devices_by_default(1, "resnet32", 9, "dependent") == 1


@pytest.mark.parametrize(
    ("backend", "devices", "number", "used"),
    [
        ("cpu", 16, 16, 8), ("cpu", 16, 9, 3), ("cpu", 16, 7, 7), ("cpu", 4, 6, 3),
        ("cpu", 1, 4, 1), ("gpu", 16, 16, 16), ("gpu", 16, 9, 9), ("gpu", 4, 9, 3),
    ],
)  # fmt: skip
def test_seeds_are_divided_among_eight_devices_of_a_cpu_and_all_of_an_accelerator(
    monkeypatch, backend, devices, number, used
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert devices_for_seeds(number) == used


@pytest.mark.parametrize(("devices", "used"), [(16, 8), (3, 3)])
def test_a_batch_is_shared_by_eight_devices_at_most(monkeypatch, devices, used) -> None:
    monkeypatch.setattr(seeds, "emulate", lambda number: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert devices_by_default(1, "resnet32", 48, "dependent") == used


@pytest.mark.slow
def test_a_run_uses_them(run_python, tmp_path) -> None:
    save_npz(tiny_dataset(), tmp_path / "tiny.npz")
    flags = ["--data", tmp_path / "tiny.npz", "--model", "resnet8", "--epochs", "2", "--eta", "10"]
    used = []
    for name, more in (("all", []), ("one", ["--devices", "1"])):
        rest = ["--batch-size", "16", "--quiet", "--out", tmp_path / name, *more]
        run_python(["-m", "experiments.cifar_lt", *flags, *rest], devices=None)
        report = json.loads((tmp_path / name / "report.json").read_text())
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        used.append((report["settings"]["devices"], line["train_loss"]))
    most = max(n for n in range(1, min(cores(), 8) + 1) if 16 % n == 0)
    assert [devices for devices, _ in used] == [most, 1]
    assert used[0][1] == pytest.approx(used[1][1], rel=1e-4)
