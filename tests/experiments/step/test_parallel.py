"""The trainer on several devices, in a process of its own with emulated ones."""

import json

import pytest

from places import ROOT

SETUP = """
import dataclasses, json, sys, tempfile
from pathlib import Path
sys.path.insert(0, "tests")
import jax, numpy as np
from tiny import TinyNet, tiny_dataset
from experiments.run import cost
from experiments.models import MODELS
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from experiments.step.step import Inputs
from experiments.run.fit import fit
from imbsam_jax import rules
from experiments.host.errors import RunError
from experiments.step.execution import EXECUTIONS
from imbsam_jax import losses

MODELS["tiny"] = TinyNet
dataset = tiny_dataset()
rule = rules.imbsam(dataset.class_counts(), rho=0.1, eta=10)
base = Settings(epochs=2, batch_size=16, lr=0.05, eval_batch=15, steps_per_call=2)
weights = losses.class_balanced_weights(dataset.class_counts())
WAYS = ((1, "jit"), (2, "jit"), (2, "pmap"))
found = {}
"""

RUNS = """
with tempfile.TemporaryDirectory() as folder:
    for devices, parallel in WAYS:
        settings = dataclasses.replace(base, devices=devices, parallel=parallel)
        name = f"tiny_{parallel}_{devices}"
        out = Path(folder) / name
        description = dict(rule="imbsam", rule_args={})
        parts = (dataset, "tiny", rule, losses.cross_entropy, settings, out)
        fit(*parts, description=description, quiet=True)
        lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
        per_class = (out / "per_class.csv").read_text().splitlines()[1:]
        found[name] = dict(
            losses=[x["train_loss"] for x in lines],
            accuracies=[x["train_accuracy"] for x in lines],
            test=[x["test_loss"] for x in lines],
            tested=sum(int(row.split(",")[3]) for row in per_class),
        )
"""

LONE = """
# Lone steps: mixup meets the whole batch, weights are summed over it. Beta(1, 1) is drawn evenly,
# which compiles in less time.
def even(key, a, b):
    assert a == b == 1
    return jax.random.uniform(key)

jax.random.beta = even
index = np.arange(32, dtype=np.int32).reshape(2, 16)
for devices, parallel in WAYS:
    settings = dataclasses.replace(base, devices=devices, parallel=parallel, mixup=1.0)
    axis = EXECUTIONS[parallel].axis_name
    loss = losses.weighted(
        losses.cross_entropy, weights, normalise="weights", axis_name=axis
    )
    run_on = (parts := Parts(dataset, "mlp", loss, settings)).run_on
    inputs = run_on.put_inputs(Inputs(dataset.train_images, dataset.train_labels))
    state = run_on.put_state(parts.initial)
    call = run_on.compile_steps(rule, state, inputs, index[:1])
    steps = []
    for rows in (index[:1], index[1:]):
        state, seen = jax.block_until_ready(call(state, inputs, run_on.place(rows)))
        steps.append(seen)
    found[f"mixed_{parallel}_{devices}"] = dict(
        losses=[float(np.ravel(seen.loss)[0]) for seen in steps],
        accuracies=[100 * float(np.ravel(seen.accuracy)[0]) for seen in steps],
        all_reduce="all-reduce" in call.as_text(),
        flops=cost.flops(call),
    )
"""

CHOSEN = """
# Rows chosen on each device: by pmap alone, and what jit gives on one device.
ways = [
    ("mlp", dict(examples="independent", sampling="natural")),
    ("mlp", dict(examples="independent", sampling="stratified")),
    ("tiny", dict(examples="split_norm", sampling="stratified")),
    ("tiny", dict(examples="shared_norm", sampling="stratified")),
]
for number, (model, changes) in enumerate(ways):
    for devices, parallel in ((1, "jit"), (2, "pmap")):
        settings = dataclasses.replace(
            base, devices=devices, parallel=parallel, steps_per_call=1, eta=10, **changes
        )
        parts = Parts(dataset, model, losses.cross_entropy, settings)
        run_on = parts.run_on
        inputs = run_on.put_inputs(parts.feed.inputs("train"))
        state = run_on.put_state(parts.initial)
        seen = []
        with parts.feed.training(parts.order, [(k, 1) for k in range(4)]) as batches:
            for rows in batches:
                call = run_on.compile_steps(rule, state, inputs, rows)
                state, got = call(state, inputs, run_on.place(rows))
                jax.block_until_ready(state)
                seen.append(float(np.asarray(got.loss)[0]))
        found[f"chosen_{number}_{devices}"] = dict(losses=seen)
"""

END = """
print("FOUND" + json.dumps(found))
"""


def in_a_process(*scripts):
    """What a process with two devices found: one for several tests."""
    import os
    import subprocess
    import sys

    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    done = subprocess.run(
        [sys.executable, "-c", "".join([SETUP, *scripts, END])],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.split("FOUND")[1])


@pytest.fixture(scope="module")
def lone():
    """Of lone steps alone, which is quick."""
    return in_a_process(LONE)


@pytest.fixture(scope="module")
def found():
    return in_a_process(RUNS, CHOSEN)


@pytest.mark.parametrize("way", ["jit_2", "pmap_2"])
def test_devices_share_a_step_and_change_no_number(lone, way):
    """Mixup that meets the whole batch, and weights summed over it."""
    one, other = lone["mixed_jit_1"], lone[f"mixed_{way}"]
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert other["accuracies"] == pytest.approx(one["accuracies"], abs=1e-3)


@pytest.mark.parametrize("way", ["jit_2", "pmap_2"])
def test_the_compiled_step_holds_an_all_reduce_and_half_the_work(lone, way):
    one, other = lone["mixed_jit_1"], lone[f"mixed_{way}"]
    assert other["all_reduce"] and not one["all_reduce"]
    assert other["flops"] < 0.75 * one["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["jit_2", "pmap_2"])
def test_devices_share_a_run_and_change_no_number(found, way):
    """Also the last batch of 14, and batch normalisation over the whole batch."""
    one, other = found["tiny_jit_1"], found[f"tiny_{way}"]
    for name in ("losses", "test"):
        assert other[name] == pytest.approx(one[name], rel=1e-4)
    assert other["accuracies"] == pytest.approx(one["accuracies"], abs=1e-3)


@pytest.mark.slow
def test_every_test_image_counts_once(found):
    assert {run["tested"] for run in found.values() if "tested" in run} == {55}


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 3])
def test_devices_choose_among_their_own_rows_and_change_no_number(found, number):
    one, two = (found[f"chosen_{number}_{devices}"]["losses"] for devices in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_statistics_of_the_tail_are_over_all_devices(found):
    """Where a device has a row less, one of its own counts twice: the first loss is the same."""
    one, two = (found[f"chosen_2_{devices}"]["losses"] for devices in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two == pytest.approx(one, rel=0.02)
