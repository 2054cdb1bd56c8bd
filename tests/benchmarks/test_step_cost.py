"""The benchmark of steps in the small: what its JSON says, and what stands in its table."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import step_cost
from experiments.host.errors import RunError
from imbsam_jax import long_tail_counts

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]

FIELDS = """model rule rule_args ascent mode stage batch_size precision image_size accumulate remat
tail_share flops flops_ratio seconds_compile cpu_seconds_compile temporary_bytes memory_ratio
released step_ms time_ratio time_ratio_quartiles rounds"""


def run(out, *flags):
    args = step_cost.arguments().parse_args(["--model", "mlp", "--out", str(out), *flags])
    step_cost.main(args)
    found = json.loads((out / "step_cost.json").read_text())
    return {(row["rule"], row["mode"]): row for row in found["rows"]}, found


def test_what_compiling_took_is_of_the_step_alone(tmp_path):
    """Seconds of the clock and of the process, less than all that the process has had."""
    before = time.process_time()
    flags = ["--rule", "sgd", "--mode", "dependent", "--compile-only", "--batch-size", "8"]
    rows, _ = run(tmp_path, *flags, "--image-size", "8", "--counts", "5", "60", "10")
    (row,) = rows.values()
    assert row["seconds_compile"] > 0 and row["step_ms"] is None and row["flops_ratio"] == 1
    assert 0 < row["cpu_seconds_compile"] < time.process_time() - before
    assert set(FIELDS.split()) <= set(row)


@pytest.mark.slow
def test_fields_and_ratios_of_three_rounds(tmp_path):
    flags = ["--rule", "sam", "imbsam", "--mode", "dependent", "stratified", "--steps", "3"]
    flags += ["--batch-size", "50", "--counts", "5", "60", "10", "--eta", "20"]
    rows, found = run(tmp_path, *flags)
    assert {"command", "data", "device", "versions"} <= set(found)
    assert set(rows) == {
        ("sgd", "dependent"), ("sam", "dependent"), ("optax.contrib.sam", "dependent"),
        ("imbsam", "dependent"), ("imbsam", "stratified"),
    }  # fmt: skip
    assert found["rows"][0]["rule"] == "sgd"
    for row in rows.values():
        assert set(FIELDS.split()) <= set(row)
        assert row["rounds"] == 2 and row["step_ms"] > 0 and row["seconds_compile"] > 0
        low, high = row["time_ratio_quartiles"]
        assert low <= row["time_ratio"] <= high
    ours, optax = rows["sam", "dependent"], rows["optax.contrib.sam", "dependent"]
    assert ours["flops"] == pytest.approx(optax["flops"], rel=0.01)
    assert optax["our_sam_ratio"] > 0
    table = (tmp_path / "step_cost.md").read_text()
    assert "| mlp | imbsam | stratified |" in table and "optax.contrib.sam, round by round" in table


class Clocked:
    """A bench whose step takes as long as its row says, and ten times that the first time."""

    run_on, initial, inputs, steps_per_call = SimpleNamespace(place=str, put_state=int), 0, None, 2

    def __init__(self, monkeypatch):
        self.now, self.asked = 0.0, []
        monkeypatch.setattr(step_cost.time, "perf_counter", lambda: self.now)

    def rows(self, mode, number):
        self.asked.append((mode, number))
        return number

    def step(self, seconds, loss=0.0):
        def call(state, inputs, rows):
            self.now += seconds * (10 if rows == "0" else 1) * self.steps_per_call
            return state + 1, SimpleNamespace(loss=np.float32(loss))

        return call


@pytest.mark.parametrize(
    ("rounds", "left", "timed"), [(5, 1e9, 4), (2, 1e9, 1), (5, -1.0, 2), (2, -1.0, 1)]
)
def test_rounds_are_timed_by_row_without_the_first(monkeypatch, rounds, left, timed):
    """In seconds a step; late, no round begins that is not one of the first three."""
    bench = Clocked(monkeypatch)
    rows = [{"mode": "dependent"}, {"mode": "uniform"}, {"mode": "dependent"}]
    calls = [bench.step(1.0), bench.step(3.0, np.nan), bench.step(2.0)]
    times = step_cost.timed(bench, rows, calls, rounds, time.monotonic() + left)
    np.testing.assert_allclose(times, [[1.0, 3.0, 2.0]] * timed)
    assert [row["finite"] for row in rows] == [True, False, True]
    assert bench.asked == [
        (mode, number) for number in range(timed + 1) for mode in ("dependent", "uniform")
    ]  # once a round, whatever the number of rows of a mode


@pytest.mark.slow
def test_images_of_another_size_are_brought_along(tmp_path):
    flags = ["--rule", "imbsam", "--batch-size", "8", "--image-size", "12"]
    flags += ["--counts", "5", "60", "10", "--eta", "20", "--mode", "dependent"]
    rows, _ = run(tmp_path, *flags, "--steps", "2")
    alone, _ = run(tmp_path, *flags, "--compile-only")
    for key, row in rows.items():
        assert row["step_ms"] > 0 and row["image_size"] == 12
        assert row["flops"] == pytest.approx(alone[key]["flops"], rel=0.02)


@pytest.mark.slow
def test_compiled_alone_it_runs_nothing(tmp_path):
    flags = ["--rule", "imbsam", "--compile-only", "--batch-size", "40", "--image-size", "8"]
    rows, _ = run(tmp_path, *flags, "--counts", "5", "60", "10", "--eta", "20")
    assert all(row["step_ms"] is None and row["rounds"] is None for row in rows.values())
    share = rows["sgd", "dependent"]["tail_share"]
    counts = np.array([60, 33, 18, 10, 6])
    assert share == pytest.approx(counts[counts <= 20].sum() / counts.sum())
    dependent, uniform, stratified = (
        rows["imbsam", mode]["flops_ratio"] for mode in ("dependent", "uniform", "stratified")
    )
    assert 1 + 0.8 * share < stratified < 1 + share + 0.1
    assert stratified < uniform < dependent
    assert "| mlp | imbsam | uniform | - | - | - to - |" in (tmp_path / "step_cost.md").read_text()


@pytest.mark.slow
def test_groups_over_their_own_rows(tmp_path):
    """1 + 2f and 1 + f with batch statistics, and no mode of models without."""
    flags = ["--model", "resnet8", "--rule", "sam", "imbsam", "--compile-only"]
    flags += ["--image-size", "8", "--batch-size", "40", "--counts", "5", "60", "10", "--eta", "20"]
    rows, _ = run(tmp_path, *flags)
    assert {mode for rule, mode in rows if rule == "imbsam"} == {
        "dependent", "split_norm", "shared_norm",
    }  # fmt: skip
    assert ("sam", "split_norm") not in rows
    share = rows["sgd", "dependent"]["tail_share"]
    ratio = rows["imbsam", "split_norm"]["flops_ratio"]
    assert ratio == pytest.approx(1 + 2 * share, abs=0.1)
    assert rows["imbsam", "shared_norm"]["flops_ratio"] == pytest.approx(1 + share, abs=0.06)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-size", "8", "--data", "cache.npz"], "give --image-size without it"),
        (["--batch-size", "900", "--counts", "5", "60", "10"], "900 is more than the 127 images"),
        (["--mode", "dependent", "--accumulate", "7"], "64 cannot be divided into --accumulate 7"),
        (["--counts", "100", "1", "100"], "--counts 100 1 100: .* without an example"),
        (["--counts", "1", "1", "1"], "--counts 1 1 1: .* at least 2 classes"),
        (["--counts", "1000000", "1000000", "1"], "1000000000000 images, where 10000000 are the"),
        (["--model", "mlp", "mlp"], "--model names mlp twice"),
        (["--rule", "sam", "sam"], "--rule names sam twice"),
        (["--mode", "uniform", "uniform"], "--mode names uniform twice"),
    ],
)
def test_what_is_refused(tmp_path, flags, message, monkeypatch):
    """Before anything is made."""
    monkeypatch.setattr(step_cost, "Bench", None)
    with pytest.raises(RunError, match=message):
        run(tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_mode_that_is_taken_is_measured():
    """What the needs of --mode say beforehand is what the steps themselves come to."""
    flags = ["--counts", "5", "60", "10", "--eta", "20", "--batch-size", "20", "--compile-only"]
    flags += ["--image-size", "8", "--noise-ratio", "1e-6", "--out", "x"]
    names = step_cost.method_flags.rule_names()
    args = step_cost.arguments().parse_known_args([*flags, "--rule", *names])[0]
    data = step_cost.noise(long_tail_counts(*args.counts), args.image_size)
    for model in ("mlp", "resnet8"):
        of_norm = model == "resnet8"
        found = [row for row, _ in step_cost.planned(step_cost.Bench(model, args, data))]
        apart = {(row["rule"], row["mode"]) for row in found if row["mode"] != "dependent"}
        assert apart == {
            (rule, mode)
            for rule in step_cost.method_flags.leaving_rows_out()
            for mode in step_cost.MODES
            if mode != "dependent" and (mode in step_cost.OF_BATCH_NORM) == of_norm
        }
