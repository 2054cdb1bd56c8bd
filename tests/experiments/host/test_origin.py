"""What is written beside a figure: the command, the machine, versions and the commit."""

import argparse
import json
import os
import platform
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import jax
import pytest

import imbsam_jax
from experiments.host import origin


def version(package):
    if package == "flax":
        raise metadata.PackageNotFoundError(package)
    return f"{package} 1"


CPUINFO = "processor\t: 0\nmodel name\t: Chip X: 2 GHz\nmodel name\t: another\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["/a/b/experiments/cifar_lt.py", "--seed", "1"], "experiments.cifar_lt --seed 1"),
        (["/a/experiments/anomaly/__main__.py"], "experiments.anomaly"),
        (["/a/bin/a.tool", "x"], "a.tool x"),
        (["/a/b/c.py", "--cells", "resnet32 b64", "*"], "b.c --cells 'resnet32 b64' '*'"),
    ],
)
def test_a_command_is_said_by_its_module(typed, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", typed)
    assert origin.command_line() == f"python -m {said}"


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine is; None: there is no /proc/cpuinfo, or no git; {}: no repository."""

    def set_to(platform_, cpuinfo, answers):
        first = types.SimpleNamespace(platform=platform_, device_kind="kind")
        monkeypatch.setattr(jax, "devices", lambda: [first, object()])
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
        monkeypatch.setattr(platform, "processor", lambda: "")
        monkeypatch.setattr(platform, "machine", lambda: "its machine")

        def read(path, **kwargs):
            if cpuinfo is None:
                raise FileNotFoundError(path)
            return cpuinfo

        monkeypatch.setattr(Path, "read_text", read)
        monkeypatch.setattr(metadata, "version", version)

        def run(command, *, cwd, capture_output, text, check, timeout):
            assert (cwd / "host").is_dir(), "asked elsewhere than where the code lies"
            assert capture_output and text and timeout == 10
            if answers is None:
                raise FileNotFoundError("git")
            if answers == {} and check:  # no repository
                raise subprocess.CalledProcessError(128, command)
            return types.SimpleNamespace(stdout=answers.get(command[1], ""))

        monkeypatch.setattr(subprocess, "run", run)

    return set_to


CLEAN = {"status": "\n", "rev-parse": "abc\n"}


@pytest.mark.parametrize(
    ("platform_", "cpuinfo", "device"),
    [
        ("cpu", CPUINFO, "2 x kind (Chip X: 2 GHz, 3 cores)"),
        ("cpu", "flags\t: none\n", "2 x kind (its machine, 3 cores)"),
        ("cpu", None, "2 x kind (its machine, 3 cores)"),
        ("gpu", CPUINFO, "2 x kind"),
    ],
)
def test_the_device(platform_, cpuinfo, device, machine):
    machine(platform_, cpuinfo, CLEAN)
    assert origin.environment()["device"] == device


@pytest.mark.parametrize(
    ("answers", "said"),
    [(CLEAN, "abc"), ({**CLEAN, "status": " M a.py\n"}, "abc+changes"), (None, None), ({}, None)],
)
def test_the_commit(answers, said, machine):
    machine("gpu", CPUINFO, answers)
    assert origin.environment()["git"] == said


def test_the_versions(machine):
    machine("gpu", CPUINFO, CLEAN)
    assert origin.environment()["versions"] == {
        "python": platform.python_version(), "jax": "jax 1", "jaxlib": "jaxlib 1",
        "flax": "not installed", "optax": "optax 1", "orbax-checkpoint": "orbax-checkpoint 1",
        "numpy": "numpy 1", "imbsam_jax": imbsam_jax.__version__,
    }  # fmt: skip


def test_the_variables_by_which_jax_makes_other_numbers(machine, monkeypatch):
    machine("gpu", CPUINFO, CLEAN)
    for name in [x for x in os.environ if x.startswith(("JAX_", "XLA_"))]:
        monkeypatch.delenv(name)
    assert origin.environment()["variables"] == {}
    there = {"XLA_FLAGS": "--xla_a=1", "JAX_ENABLE_X64": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    others = {"JAX_COMPILATION_CACHE_DIR": "/mine", "JAX_DEFAULT_PRNG_IMPL": "", "OTHER_JAX_": "1"}
    for name, value in {**others, **there}.items():
        monkeypatch.setenv(name, value)
    assert origin.environment()["variables"] == there


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"), ("jax_enable_x64", True),
    ],
)  # fmt: skip
def test_settings_by_which_jax_makes_other_numbers(setting, value):
    assert origin.jax_settings() == {}
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        assert origin.jax_settings() == {"jax": {setting: value}}
    finally:
        jax.config.update(setting, before)


def test_a_folder_keeps_the_flags_without_overwrite(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/study.py", "--overwrite"])
    machine("gpu", CPUINFO, CLEAN)
    origin.write_flags(tmp_path, argparse.Namespace(rho=0.5, overwrite=True))
    found = json.loads((tmp_path / "config.json").read_bytes())
    assert found == {
        "rho": 0.5, "command": "python -m experiments.study --overwrite", **origin.environment()
    }  # fmt: skip
