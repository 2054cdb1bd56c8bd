"""The trainer on several devices, in a process of its own with emulated ones."""

import json

import pytest

SCRIPT = """
import dataclasses, json, sys, tempfile
from pathlib import Path
sys.path.insert(0, "tests")
import jax, numpy as np
from tiny import TinyNet, tiny_dataset
from experiments import cost, train
from experiments.models import MODELS
from experiments.settings import Settings
from experiments.train import fit
from imbsam_jax import rules
from experiments.execution import EXECUTIONS
from imbsam_jax import losses

MODELS["tiny"] = TinyNet
dataset = tiny_dataset()
rule = rules.imbsam(dataset.class_counts(), rho=0.1, eta=10)
base = Settings(epochs=2, batch_size=16, lr=0.05, eval_batch=15, steps_per_call=2)
weights = losses.class_balanced_weights(dataset.class_counts())
found = {}
with tempfile.TemporaryDirectory() as folder:
    # "mixed": partners from the whole batch, divided by the weights of the whole batch.
    for model in ("mlp", "tiny", "mixed"):
        for devices, parallel in ((1, "jit"), (2, "jit"), (2, "pmap")):
            settings = dataclasses.replace(base, devices=devices, parallel=parallel)
            loss = losses.cross_entropy
            if model != "mlp":
                settings = dataclasses.replace(settings, epochs=1, steps_per_call=1)
            if model == "mixed":
                settings = dataclasses.replace(settings, mixup=1.0)
                axis = EXECUTIONS[parallel].axis_name
                loss = losses.weighted(loss, weights, normalise="weights", axis_name=axis)
            name = f"{model}_{parallel}_{devices}"
            network = "mlp" if model == "mixed" else model
            out = Path(folder) / name
            description = dict(rule="imbsam", rule_args={})
            parts = (dataset, network, rule, loss, settings, out)
            fit(*parts, description=description, quiet=True)
            lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
            per_class = (out / "per_class.csv").read_text().splitlines()[1:]
            found[name] = dict(
                losses=[x["train_loss"] for x in lines],
                accuracies=[x["train_accuracy"] for x in lines],
                test=[x["test_loss"] for x in lines],
                tested=sum(int(row.split(",")[3]) for row in per_class),
            )
            trainer = train._Trainer(
                dataset, train.Parts(dataset, network, loss, settings), rule, settings
            )
            inputs = train.Inputs(dataset.train_images, dataset.train_labels)
            inputs = trainer.run_on.put_inputs(inputs)
            state = trainer.run_on.put_state(trainer.initial)
            index = np.arange(32, dtype=np.int32).reshape(2, 16)
            if model == "mlp":
                call = trainer.run_on.compile_steps(rule, state, inputs, index)
                lone = trainer.run_on.compile_steps(rule, state, inputs, index[:1])
                found[name]["all_reduce"] = "all-reduce" in call.as_text()
                found[name]["flops"] = cost.flops(lone)
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(request):
    # A module-scoped use of the function-scoped runner: one process for all tests below.
    import os
    import subprocess
    import sys
    from pathlib import Path

    flags = "--xla_force_host_platform_device_count=2 "
    flags += "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.split("FOUND")[1])


@pytest.mark.parametrize("model", ["mlp", "tiny", "mixed"])
@pytest.mark.parametrize("way", ["jit_2", "pmap_2"])
def test_devices_share_a_batch_and_change_no_number(found, model, way):
    """Also the last batch of 14, and batch normalisation over the whole batch."""
    one, other = found[f"{model}_jit_1"], found[f"{model}_{way}"]
    tolerance = 1e-4 if model == "tiny" else 1e-5
    for name in ("losses", "test"):
        assert other[name] == pytest.approx(one[name], rel=tolerance)
    assert other["accuracies"] == pytest.approx(one["accuracies"], abs=1e-3)


@pytest.mark.parametrize("way", ["jit_2", "pmap_2"])
def test_the_compiled_epoch_holds_an_all_reduce_and_half_the_work(found, way):
    one, other = found["mlp_jit_1"], found[f"mlp_{way}"]
    assert other["all_reduce"] and not one["all_reduce"]
    assert other["flops"] < 0.75 * one["flops"]


def test_every_test_image_counts_once(found):
    assert {run["tested"] for run in found.values()} == {55}
