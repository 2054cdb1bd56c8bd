"""The trainer on a tiny set: its path, its stops, what it writes and what it refuses."""

import contextlib
import csv
import dataclasses
import json
import math
import re
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cifar_lt, evaluate
from experiments.command import presets
from experiments.command.method_flags import build_rule
from experiments.data import save_npz
from experiments.host.errors import RunError, Stopped
from experiments.host.progress import Progress
from experiments.host.stopping import StopNow
from experiments.models import MODELS
from experiments.run.calls import Call
from experiments.run.fit import _naming_lost_processes, fit, fit_together
from experiments.run.parts import Parts
from experiments.run.settings import Note, Settings
from experiments.run.trainer import Trainer
from experiments.step.methods import Gradient, rule_stages
from imbsam_jax import rules
from imbsam_jax.losses import cross_entropy
from tiny import TinyNet, tiny_dataset

pytestmark = [
    pytest.mark.allow_rank_promotion,  # Flax adds a bias[C] to a batch[B, C]
    pytest.mark.usefixtures("lean"),
]

COUNTS = tiny_dataset().class_counts()
# Three steps an epoch, all of one size; of UNEVEN five, the last of 14 rows: a program of its own.
QUICK = Settings(epochs=3, batch_size=26, lr=0.05, eval_batch=20, checkpoint_every=1)
UNEVEN = dataclasses.replace(QUICK, batch_size=16)


def run(out, rule=None, settings=QUICK, model="mlp", dataset=None, **options):
    description = {
        "experiment": "test",
        "rule": "imbsam",
        "rule_args": {},
        "loss": "cross_entropy",
        "imbalance_factor": 40 / 3,
    }
    rule = rule or rules.imbsam(COUNTS, rho=0.1, eta=10)
    dataset = dataset or tiny_dataset()
    options = {"description": description, "quiet": True, **options}
    return fit(dataset, model, rule, cross_entropy, settings, out, **options)


LONG = ["--epochs", "5", "--checkpoint-every", "2", "--eval-every", "3", "--lr", "0.05"]


def command(data, out, *more):
    flags = ["--data", data, "--model", "mlp", "--batch-size", "26", "--eta", "10"]
    return [*flags, "--out", out, *map(str, more)]


def here(*args):
    """The run in this process."""
    cifar_lt.main(cifar_lt.parse(cifar_lt.arguments(), [*command(*args), "--quiet"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    save_npz(tiny_dataset(), path)
    return str(path)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """(folder, report, seconds) of a run by LONG, with what its step costs and its pictures."""
    out, began = tmp_path_factory.mktemp("finished") / "run", time.perf_counter()
    with jax.numpy_rank_promotion("allow"):
        here(data, str(out), *LONG)
    return out, json.loads((out / "report.json").read_text()), time.perf_counter() - began


def test_a_run_folder_and_its_report(finished):
    out, report, took = finished
    promised = """experiment dataset rule rule_args model loss imbalance_factor epochs batch_size
    seed all many medium few best_epoch class_counts_sha256 train_examples seconds_train
    seconds_compile seconds_to_first_step step_ms flops_per_step flops_ratio_to_sgd device versions
    git"""
    assert set(promised.split()) <= set(report)
    assert report["thresholds"] == {"many_above": 15, "few_below": 6}
    assert report["train_examples"] == 78
    assert 0 < report["seconds_to_first_step"] < took and 0 < report["step_ms"] < 1000 * took
    assert 0 < report["seconds_train"] + report["seconds_compile"] < took
    assert 0 <= report["seconds_waiting"] <= report["seconds_train"]
    assert {"all", "many", "medium", "few", "epoch"} == set(report["best_epoch"])
    # Two forward and three backward passes over SGD's one and one, the optimizer aside.
    assert 2 < report["flops_ratio_to_sgd"] < 3
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    tested = [line for line in lines if "test_all" in line]
    assert [line["epoch"] for line in tested] == [3, 5]
    assert lines[-1]["test_all"] == report["all"]
    best = max(tested, key=lambda line: line["test_all"])
    assert report["best_epoch"]["all"] == best["test_all"]
    with open(out / "per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["train_examples"]) for row in rows] == [40, 20, 10, 5, 3]
    assert sum(int(row["test_examples"]) for row in rows) == 55
    assert np.mean([float(row["accuracy"]) for row in rows]) == pytest.approx(report["all"], 1e-4)
    for plot in ("per_class.png", "curves.png"):
        assert (out / plot).stat().st_size > 5000


@pytest.mark.slow
def test_a_group_without_classes_is_null(tmp_path):
    dataset = dataclasses.replace(tiny_dataset(), few_below=2)
    report = run(tmp_path / "run", dataset=dataset, settings=dataclasses.replace(QUICK, epochs=1))
    assert report["few"] is None and report["best_epoch"]["few"] is None
    assert report["all"] is not None


def test_the_path_is_that_of_a_plain_loop(tmp_path):
    """SGD by hand over the trainer's order: full batches, then the last one at its true size."""
    settings = dataclasses.replace(UNEVEN, augment=False, epochs=2, schedule="constant")
    dataset = tiny_dataset()
    parts = Parts(dataset, "mlp", cross_entropy, settings)
    params = jax.device_get(parts.initial.params)
    apply = parts.initial.apply_fn
    images = (dataset.train_images.astype(np.float32) / 255 - dataset.mean) / dataset.std
    images = images.astype(np.float32)

    def loss(params, x, y):
        logits = apply({"params": params}, x, train=True)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

    gradient = jax.jit(jax.grad(loss))
    velocity = jax.tree.map(np.zeros_like, params)
    sizes = []
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(78)
        for start in range(0, 78, 16):
            rows = order[start : start + 16]
            sizes.append(len(rows))
            g = gradient(params, images[rows], dataset.train_labels[rows])
            velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-3 * p, velocity, g, params)
            params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
    assert sizes == [16, 16, 16, 16, 14] * 2
    run(tmp_path / "run", rules.sgd(5), settings)
    for found, expected in zip(
        jax.tree.leaves(final_state(tmp_path / "run", parts).params),
        jax.tree.leaves(params),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def final_state(folder, parts):
    from experiments.run.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    state, _ = checkpoints.restore(parts.initial)
    checkpoints.close()
    return state


@pytest.mark.slow
def test_longer_calls_go_the_same_way(tmp_path):
    """A scan of three steps and lone steps agree to rounding; equal calls agree bitwise."""
    reports = {}
    for steps_per_call, name in ((1, "one"), (3, "three"), (3, "again")):
        settings = dataclasses.replace(UNEVEN, steps_per_call=steps_per_call)
        reports[name] = run(tmp_path / name, settings=settings)
    assert reports["three"]["params_sha256"] == reports["again"]["params_sha256"]
    lines = {
        name: [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "three")
    }
    for one, three in zip(lines["one"], lines["three"], strict=True):
        assert one["train_loss"] == pytest.approx(three["train_loss"], rel=1e-4)


@pytest.mark.slow
def test_a_staged_rule_switches_inside_an_epoch(tmp_path):
    """sgd -> sam after 7 steps, 5 an epoch: calls end at the switch, stages cost their own."""
    switch = rules.stagewise(rules.sgd(5), rules.sam(5, rho=0.3), switch_step=7)
    settings = dataclasses.replace(UNEVEN, steps_per_call=4, epochs=2)
    dataset = tiny_dataset()
    parts = Parts(dataset, "mlp", cross_entropy, settings)
    calls = Trainer(dataset, switch, [parts], [settings], parts.run_on).calls
    assert calls.of_epoch(0) == [(0, 4, 0), (4, 1, 0)]
    assert calls.of_epoch(1) == [(5, 2, 0), (7, 2, 1), (9, 1, 1)]
    staged = run(tmp_path / "staged", switch, settings, measure=True)
    # Cost: 7 of 10 steps are SGD's, the others have twice its passes.
    assert staged["flops_ratio_to_sgd"] == pytest.approx(0.7 + 0.3 * 2, rel=0.05)
    nested = rules.stagewise(rules.sgd(5), switch, switch_step=2)
    assert [start for start, _ in rule_stages(nested)] == [0, 2, 7]
    late = rules.stagewise(switch, rules.sgd(5), switch_step=5)
    assert [start for start, _ in rule_stages(late)] == [0, 5]


def test_held_out_images_choose_an_epoch_and_are_not_trained_on(tmp_path):
    from experiments.data import hold_out

    dataset = hold_out(tiny_dataset(), 2, seed=0)
    settings = dataclasses.replace(QUICK, batch_size=34)
    report = run(tmp_path / "run", rules.sgd(5), settings, dataset=dataset)
    assert report["train_examples"] == 78 - 10
    assert report["best_val_epoch"]["val"]["all"] >= 0
    assert 1 <= report["best_val_epoch"]["epoch"] <= 3


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_high(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TinyNet)
    settings = dataclasses.replace(QUICK, precision="bfloat16", epochs=1)
    parts = Parts(tiny_dataset(), "tiny", cross_entropy, settings)
    leaves = jax.tree.leaves((parts.initial.params, parts.initial.batch_stats))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    report = run(tmp_path / "run", settings=settings, model="tiny")
    assert math.isfinite(report["all"])


# ---- stopping and going on -----------------------------------------------------------------


# The command in a process that has a signal as it sees its 11th step, in the fourth epoch of three
# each: two epochs after a checkpoint, one after an evaluation.
CUT = """
import itertools, os, runpy, sys
from experiments.run.one import Run

plain, calls, number = Run.see, itertools.count(1), int(sys.argv.pop(1))

def see(self, *args):
    if next(calls) == 11:
        os.kill(os.getpid(), number)
    plain(self, *args)

Run.see = see
runpy.run_module("experiments.cifar_lt", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_stopped_run_ends_bitwise_where_an_unstopped_one_does(
    data, finished, tmp_path, run_python, number, code
):
    out = tmp_path / "run"
    args = ["-c", CUT, str(int(number)), *command(data, str(out), *LONG), "--quiet"]
    errors = run_python(args, expect=code).stderr
    assert not (out / "report.json").exists()
    if number != signal.SIGKILL:
        assert "--resume" in errors.splitlines()[-1] and "Traceback" not in errors
    here(data, str(out), *LONG, "--resume")
    report = json.loads((out / "report.json").read_text())
    for name in ("params_sha256", "all", "many", "medium", "few", "best_epoch"):
        assert report[name] == finished[1][name]
    epochs = [json.loads(x)["epoch"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 6))
    # A finished run resumed again says the same and trains nothing.
    before = (out / "report.json").stat().st_mtime_ns
    here(data, str(out), *LONG, "--resume")
    assert (out / "report.json").stat().st_mtime_ns == before


@pytest.mark.slow  # test_together stops all by a deadline
def test_a_deadline_stops_like_a_signal(tmp_path):
    settings = dataclasses.replace(QUICK, epochs=4000)
    with pytest.raises(Stopped, match="--resume") as stopped:
        run(tmp_path / "run", settings=settings, deadline=time.monotonic() + 3)
    assert stopped.value.exit_code == 75


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(data, finished, tmp_path, capsys):
    whole = finished[1]
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    newest = max(
        (p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()),
        key=lambda p: int(p.name),
    )
    assert newest.name == "15"
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    loud = command(data, str(tmp_path / "run"), *LONG, "--resume")
    cifar_lt.main(cifar_lt.parse(cifar_lt.arguments(), loud))
    said = capsys.readouterr().out
    assert "checkpoint of step 15 is damaged" in said and "after epoch 4" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["params_sha256"] == whole["params_sha256"]


class Averaging:
    """A made-up method with a state of its own: along an average of the gradients so far."""

    whole_batches, hands_on = True, False

    def stages(self):
        return [(0, self)]

    def initial_extra(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def gradient(self, halves, params, extra, step, axis):
        def loss(params):
            features, after = halves.features(params, halves.stats, halves.images)
            losses, logits = halves.losses_for(halves.target)(params, features, halves.target)
            return losses.mean(), (after, logits)

        (mean, (after, logits)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        average = jax.tree.map(lambda old, new: (old + new) / 2, extra, grads)
        return Gradient(mean, logits, after, average, average)


@pytest.mark.slow
def test_a_method_keeps_a_state_of_its_own(tmp_path):
    """Saved and gone on from; trained alone and together with another seed."""
    once = dataclasses.replace(QUICK, epochs=1)
    whole = run(tmp_path / "whole", Averaging(), once)
    with pytest.raises(Stopped, match="at step 1,"):
        run(tmp_path / "stopped", Averaging(), once, deadline=0.0)
    resumed = run(tmp_path / "stopped", Averaging(), once, resume=True)
    assert resumed["params_sha256"] == whole["params_sha256"]
    outs = {seed: tmp_path / "both" / f"seed_{seed}" for seed in (0, 1)}
    first, _ = fit_together(
        tiny_dataset(), "mlp", Averaging(), cross_entropy, once, outs,
        description={"rule": "averaging", "rule_args": {}}, quiet=True,
    )  # fmt: skip
    assert first["all"] == pytest.approx(whole["all"])


# ---- bad input: one clear last line, nothing written ----------------------------------------


@pytest.mark.slow  # before a checkpoint is quick in test_one.py
def test_a_loss_that_is_not_finite_at_once_names_the_step(tmp_path):
    settings = dataclasses.replace(QUICK, lr=1e30, weight_decay=0.0)
    with pytest.raises(RunError, match=r"loss is (nan|inf) at step \d+ .*no checkpoint"):
        run(tmp_path / "run", settings=settings)


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_checkpoint(tmp_path):
    nan = rules.sgd(5)(None)._replace(base=np.full(5, np.nan))
    poisoned = rules.stagewise(rules.sgd(5), lambda step: nan, switch_step=4)
    with pytest.raises(RunError, match=r"at step 5 .*last good checkpoint is step 3"):
        run(tmp_path / "later", poisoned)


def test_a_folder_in_use_is_refused(data, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(RunError, match=r"already holds a run.*--resume"):
        here(data, str(tmp_path / "run"), *LONG)
    with pytest.raises(RunError, match=r"other settings \(lr 0.05 -> 0.01\)"):
        here(data, str(tmp_path / "run"), *LONG, "--lr", "0.01", "--resume")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(RunError, match="not empty"):
        run(tmp_path / "mine", resume=True)
    from experiments.host.folders import RunFolder

    held = RunFolder(tmp_path / "held", {"a": 1}, resume=False)
    with pytest.raises(RunError, match="in use by another process"):
        RunFolder(tmp_path / "held", {"a": 1}, resume=True)
    held.close()
    RunFolder(tmp_path / "held", {"a": 1}, resume=True).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size"),
        ({"lr": float("nan")}, "--lr"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"momentum": 1.0}, "--momentum"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"devices": 64}, "--devices 64, but JAX sees"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    tmp_path, change, message
):
    with pytest.raises(RunError, match=message):
        run(tmp_path / "run", settings=dataclasses.replace(QUICK, **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--rule", "sgdd"], 2, "invalid choice: 'sgdd'"),
        (["--rhoo", "0.1"], 2, "unrecognized arguments: --rhoo"),
        (["--imbalance-factor", "100"], 2, "--imbalance-factor beside --data, whose file was exp"),
        (["--eta", "10", "--rho", "-0.1"], 2, "rho must be finite and at least 0, got -0.1"),
        (["--eta", "1"], 1, "eta=1.0 leaves no tail class: the counts range from 3 to 40"),
        (["--eta", "1000"], 1, "leaves no head class"),
        (["--eta", "10", "--tail-scale", "0"], 2, "tail-scale must be finite and over 0, got 0"),
    ],
)
def test_the_command_line_says_what_is_wrong(data, tmp_path, refuse, flags, code, message):
    out = tmp_path / "run"
    said = refuse("experiments.cifar_lt", "--data", data, "--out", out, *flags, code=code)
    assert message in said
    assert not out.exists()


def test_a_folder_without_the_data_is_named(tmp_path, refuse, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    flags = ["--data-dir", tmp_path, "--out", tmp_path / "r"]
    assert str(tmp_path) in refuse("experiments.cifar_lt", *flags, code=1)
    assert not (tmp_path / "r").exists()


# ---- the commands around a run --------------------------------------------------------------


@pytest.mark.slow
def test_seeds_report_and_evaluate(data, tmp_path, run_python):
    out = tmp_path / "runs"
    flags = ["--data", data, "--model", "mlp", "--batch-size", "16", "--eta", "10", "--epochs", "2"]
    done = run_python(
        ["-m", "experiments.cifar_lt", *flags, "--seeds", "0", "4", "--out", str(out)]
    )
    assert "imbsam" in done.stdout
    reports = [json.loads((out / f"seed_{s}" / "report.json").read_text()) for s in (0, 4)]
    assert [report["seed"] for report in reports] == [0, 4]
    assert reports[0]["params_sha256"] != reports[1]["params_sha256"]
    shown = run_python(["-m", "experiments.report", str(out)]).stdout
    for report in reports:
        assert f"{report['all']:.1f}" in shown
    shown = run_python(["-m", "experiments.evaluate", str(out / "seed_4"), "--data", data]).stdout
    assert f"{reports[1]['all']:.2f}" in shown
    assert f"{reports[1]['last_epoch_flip']['all']:.2f}" in shown
    (tmp_path / "empty").mkdir()
    done = run_python(["-m", "experiments.report", str(tmp_path / "empty")], expect=1)
    assert "no finished run" in done.stderr


def test_evaluate_shrinks_as_the_run_did(data, tmp_path, capsys):
    """The multilayer perceptron refuses images of another size; a convolution would not."""
    out = str(tmp_path / "run")
    flags = ["--data", data, "--model", "mlp", "--shrink", "2", "--epochs", "2", "--rule", "sgd"]
    flags += ["--batch-size", "26"]
    cifar_lt.main(presets.parse(cifar_lt.arguments(), [*flags, "--out", out, "--quiet"]))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    evaluate.main(evaluate.arguments().parse_args([out, "--data", data]))
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert ["test", "set", "many", "medium", "few", "all"] in rows
    for title, of in (("is", report), ("flip-averaged", report["last_epoch_flip"])):
        (found,) = (row for row in rows if title in row[:3])
        assert found[-4:] == [f"{of[name]:.2f}" for name in ("many", "medium", "few", "all")]
    assert report["all"] != report["last_epoch_flip"]["all"]


@pytest.mark.slow
def test_the_accelerator_script_goes_on_where_it_was_cut_short(data, tmp_path, run_python):
    out = tmp_path / "out"
    flags = ["-m", "benchmarks.accelerator", "--data", data, "--models", "mlp", "--epochs", "2"]
    flags += ["--parts", "runs"]
    flags += ["--methods", "sgd", "imbsam_x2", "--weight-decays", "5e-3", "--eta", "10"]
    flags += ["--out", str(out), "--work", str(tmp_path / "work"), "--quiet"]
    done = run_python([*flags, "--minutes", "1e-9"], expect=75)
    assert "the same command goes on" in done.stderr
    run_python(flags)
    reports = json.loads((out / "runs.json").read_text())
    assert [report["rule"] for report in reports] == ["sgd", "imbsam"]
    told = {"rho": 0.05, "eta": 10, "tail_scale": 2.0, "strict": False}
    assert reports[1]["rule_args"] == told
    assert reports[0]["seconds_whole"] is None  # cut short, and resumed
    assert reports[1]["seconds_whole"] >= reports[1]["seconds_train"]
    again = run_python(flags).stdout
    assert "2 runs are done, 0 to do" in again


def test_rules_take_the_flags_of_their_signature():
    options = {"rho": 0.3, "eta": 10, "tail_scale": 2.0, "epochs": 3}
    table = build_rule("imbsam", COUNTS, options)(None)
    np.testing.assert_array_equal(table.groups, [[0, 0, 2, 2, 2]])
    assert build_rule("sgd", COUNTS, options)(None).groups.shape == (0, 5)
    with pytest.raises(RunError, match=r"unknown rule 'adam'.*imbsam"):
        build_rule("adam", COUNTS, options)


@pytest.mark.parametrize(
    ("platform", "stopped", "expected"),
    [
        ("cpu", False, "make 0, see 0, make 1, see 1, make 2, see 2"),
        ("gpu", False, "make 0, make 1, see 0, make 2, see 1, see 2"),
        ("gpu", True, "make 0, make 1, see 0, see 1"),
    ],
)
def test_what_a_call_saw_is_counted_before_an_epoch_or_a_run_ends(platform, stopped, expected):
    """On an accelerator while the next call runs; a stop is asked for in the second call."""
    done = []
    note, stop = Note(), types.SimpleNamespace(exit_code=None)
    trainer = Trainer.__new__(Trainer)
    trainer.runs = [types.SimpleNamespace(note=note)]
    trainer.calls = types.SimpleNamespace(of_epoch=lambda epoch: [0, 1, 2])
    trainer.order = types.SimpleNamespace(rows=3)
    devices = [types.SimpleNamespace(platform=platform)]
    trainer.run_on = types.SimpleNamespace(processes=1, devices=devices)
    trainer._agreed_stop, trainer._spend = 0, lambda what, seconds: None

    def make(call, rows, placed):
        done.append(f"make {call}")
        note.calls += 1
        stop.exit_code = 143 if stopped and call == 1 else None
        return call

    trainer._make = make
    trainer._see = lambda call, seen: done.append(f"see {seen}")
    ending = pytest.raises(StopNow) if stopped else contextlib.nullcontext()
    with ending:
        trainer._epoch(iter([(None, None)] * 3), stop, Progress(1, quiet=True))
    assert ", ".join(done) == expected


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("given", [[(0, 0), (0, 143), (75, 75)], [(143, 143), (0, 0), (0, 0)]])
def test_of_several_processes_all_stop_by_what_a_call_says(platform, given):
    """A process answers its own stop, too, only by a call that told all of it."""
    note, seen = Note(), []
    stop = types.SimpleNamespace(exit_code=130)
    trainer = Trainer.__new__(Trainer)
    trainer.runs = [types.SimpleNamespace(note=note, see=lambda *what: seen.append(what))]
    trainer.calls = types.SimpleNamespace(of_epoch=lambda epoch: [Call(k, 1, 0) for k in range(3)])
    trainer.order = types.SimpleNamespace(rows=3)
    devices = [types.SimpleNamespace(platform=platform)]
    trainer.run_on = types.SimpleNamespace(
        processes=2, devices=devices, split_seen=lambda said: [said]
    )
    trainer._agreed_stop, trainer._began, trainer._seconds_to_first_step = 0, 0.0, None

    def make(call, rows, placed):
        note.calls += 1
        return types.SimpleNamespace(stop=np.array(given[call.first_step]))

    trainer._make = make
    with pytest.raises(StopNow):
        trainer._epoch(iter([(None, None)] * 3), stop, Progress(1, quiet=True))
    asked = next(k for k, stops in enumerate(given) if any(stops))
    # On an accelerator one more call is under way by then, and is counted, too.
    made = asked + 1 if platform == "cpu" else asked + 2
    assert note.calls == len(seen) == made and trainer._agreed_stop == 143
    assert [first for first, _, _ in seen] == list(range(made))


@pytest.mark.parametrize("together", [False, True])
def test_a_staged_rules_step_costs_the_mean_of_its_stages(together, monkeypatch):
    """Over the run's steps, a stage that it never reaches not among them; of one run alone."""
    flops, asked = {"sgd": 10.0, "sam": 20.0, "never": 1e9}, []
    trainer = Trainer.__new__(Trainer)
    trainer.settings = types.SimpleNamespace(epochs=2)
    trainer.calls = types.SimpleNamespace(steps_per_epoch=5)
    trainer.stages = [(0, "sgd"), (4, "sam"), (50, "never")]
    trainer.dataset = tiny_dataset()
    trainer.runs = [types.SimpleNamespace(order=f"order {k}") for k in range(1 + together)]
    trainer._state, trainer._inputs = None, "inputs of all"
    alone = types.SimpleNamespace(put_inputs=lambda inputs: f"{inputs} of one")
    trainer.run_on = types.SimpleNamespace(
        alone=lambda: alone if together else trainer.run_on,
        split=lambda _: [f"state {k}" for k in range(1 + together)],
    )
    first = contextlib.nullcontext(iter(["rows"]))
    trainer.feed = types.SimpleNamespace(
        inputs=lambda part: part, training=lambda order, calls: asked.append(calls) or first
    )

    def lone_step(run_on, method, state, inputs, rows, order, seconds):
        assert (state, rows, order) == ("state 0", "rows", "order 0")
        assert run_on is trainer.run_on.alone()
        assert inputs == ("train of one" if together else "inputs of all")
        asked.append(seconds)
        of = flops.get(method, 7.0)  # SGD's own is a rule of the library
        return of, of / 100

    monkeypatch.setattr("experiments.run.cost.lone_step", lone_step)
    found = trainer._cost()
    assert found == pytest.approx((0.4 * 10 + 0.6 * 20, 7.0, 0.4 * 0.1 + 0.6 * 0.2))
    assert asked == [[(0, 1)], 3.0, 3.0, 3.0, 0.0]
    trainer.settings.epochs = 0
    assert trainer._cost() == (None, None, None)


@pytest.mark.parametrize("processes", [1, 2])
def test_where_a_process_may_be_lost_the_first_line_of_the_reason_is_told(monkeypatch, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    error = jax.errors.JaxRuntimeError("\nUNAVAILABLE: gone\nand its trace\n")
    told = "has ended (UNAVAILABLE: gone): start all of them again with --resume"
    kind, words = (type(error), "and its trace") if processes == 1 else (RunError, told)
    with pytest.raises(kind, match=re.escape(words)), _naming_lost_processes():
        raise error
