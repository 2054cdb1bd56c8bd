"""The benchmark of steps in the small: what its JSON says, and what stands in its table."""

import json
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import step_bench, step_cost
from experiments.data import save_npz
from experiments.host.errors import RunError
from imbsam_jax import long_tail_counts
from tiny import tiny_dataset

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]

FIELDS = """model rule rule_args ascent mode stage batch_size precision image_size accumulate remat
tail_share flops flops_ratio seconds_compile cpu_seconds_compile temporary_bytes memory_ratio
released step_ms time_ratio time_ratio_quartiles rounds"""


def run(out, *flags):
    args = step_cost.arguments().parse_args(["--model", "mlp", "--out", str(out), *flags])
    step_cost.main(args)
    found = json.loads((out / "step_cost.json").read_text())
    return {(row["rule"], row["mode"]): row for row in found["rows"]}, found


def test_what_compiling_took_is_of_the_step_alone(tmp_path, monkeypatch):
    """Seconds of the clock and of the process, less than all that the process has had.

    Its parameters and momentum, of layers of 128, 128 and 5, are given back where they lay.
    """
    lain, noted = [], step_bench.temporary_bytes

    def seen(call):
        lain.append(call.memory_analysis().alias_size_in_bytes)
        return noted(call)

    monkeypatch.setattr(step_bench, "temporary_bytes", seen)
    before = time.process_time()
    flags = ["--rule", "sgd", "--mode", "dependent", "--compile-only", "--batch-size", "8"]
    rows, _ = run(tmp_path, *flags, "--image-size", "8", "--counts", "5", "60", "10")
    (row,) = rows.values()
    assert row["seconds_compile"] > 0 and row["step_ms"] is None and row["flops_ratio"] == 1
    assert 0 < row["cpu_seconds_compile"] < time.process_time() - before
    assert set(FIELDS.split()) <= set(row)
    held = 4 * 2 * ((192 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 5)
    assert held <= lain[0] < held + 100  # and counters


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
        monkeypatch.setattr(step_bench.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(step_bench.time, "monotonic", lambda: 50.0)
        self.awaited = []
        monkeypatch.setattr(jax, "block_until_ready", self.awaited.append)

    def rows(self, mode, number):
        self.asked.append((mode, number))
        return number

    def step(self, seconds, loss=0.0):
        def call(state, inputs, rows):
            self.now += seconds * (10 if rows == "0" else 1) * self.steps_per_call
            return state + 1, SimpleNamespace(loss=np.float32(loss))

        return call


@pytest.mark.parametrize(
    ("rounds", "left", "timed"), [(5, 1e9, 4), (2, 1e9, 1), (5, 0.0, 2), (2, 0.0, 1)]
)
def test_rounds_are_timed_by_row_without_the_first(monkeypatch, rounds, left, timed):
    """In seconds a step; late, no round begins that is not one of the first three.

    A step is over when all that it gives is there, and begins when its rows are.
    """
    bench = Clocked(monkeypatch)
    modes = ("dependent", "uniform", "dependent", "stratified", "split_norm")
    rows = [{"mode": mode} for mode in modes]
    losses = [0.0, [np.nan, 0.0], 0.0, 0.0, np.inf]
    seconds = [1.0, 3.0, 2.0, 5.0, 4.0]
    calls = [bench.step(*of) for of in zip(seconds, losses, strict=True)]
    times = step_bench.timed(bench, rows, calls, rounds, 50.0 + left)
    np.testing.assert_allclose(times, [seconds] * timed)
    assert [row["finite"] for row in rows] == [True, False, True, True, False]
    assert bench.asked == [
        (mode, number) for number in range(timed + 1) for mode in sorted({*modes})
    ]  # once a round, whatever the number of rows of a mode
    placed = [what for what in bench.awaited if isinstance(what, dict)]
    assert placed == [dict.fromkeys(modes, str(number)) for number in range(timed + 1)]
    assert len(bench.awaited) == 6 * (timed + 1)


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
        (["--counts", "1000", "1000000", "1"], "1000000000 images, where 10000000 are the"),
        (["--model", "mlp", "mlp"], "--model names mlp twice"),
        (["--rule", "sam", "sam"], "--rule names sam twice"),
        (["--mode", "uniform", "uniform"], "--mode names uniform twice"),
    ],
)
def test_what_is_refused(tmp_path, flags, message, monkeypatch):
    """Before anything is made."""
    monkeypatch.setattr(step_bench, "Bench", None)
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
    data = step_bench.noise(long_tail_counts(*args.counts), args.image_size)
    for model in ("mlp", "resnet8"):
        of_norm = model == "resnet8"
        found = [row for row, _ in step_cost.planned(step_bench.Bench(model, args, data))]
        apart = {(row["rule"], row["mode"]) for row in found if row["mode"] != "dependent"}
        assert apart == {
            (rule, mode)
            for rule in step_cost.method_flags.leaving_rows_out()
            for mode in step_bench.MODES
            if mode != "dependent" and (mode in step_bench.OF_BATCH_NORM) == of_norm
        }


# ---- its parts, by hand --------------------------------------------------------------------------


def test_passes_of_the_released_code():
    """(forward passes + 2 backward ones) / 3, SGD's. ImbSAM and Focal-SAM: 2 and 3; SSE-SAM of
    the whole: four steps' worth in its first stage; CC-SAM: of the classifier alone.
    """
    of_both = round((2 + 2 * 3) / 3, 2)
    assert {
        "sgd": 1, "sam": 2, "imbsam": of_both, "focal_sam": of_both, "sse_sam": 4, "cc_sam": 1,
    } == step_cost.RELEASED  # fmt: skip


def test_noise_has_the_counts_and_the_shape_of_a_data_set():
    """Images that are only compiled for, or of more than fit, hold nothing in memory."""
    counts = np.array([3, 2])
    made = step_bench.noise(counts)
    assert made.train_labels.tolist() == [0, 0, 0, 1, 1] and made.train_labels.dtype == np.int32
    drawn = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(made.train_images, drawn)
    assert made.test_images.shape == (1, 32, 32, 3) and made.test_labels.tolist() == [0]
    assert (made.num_classes, made.mean, made.std) == (2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (made.many_above, made.few_below) == (100, 20)  # as of CIFAR100-LT
    for empty in (step_bench.noise(counts, 8), step_bench.noise(np.array([60_000, 40_000]))):
        assert not any(empty.train_images.strides) and not empty.train_images[0].any()
        assert empty.train_images.shape[0] == len(empty.train_labels)
    assert step_bench.noise(counts, 8).train_images.shape == (5, 8, 8, 3)


def test_optax_takes_the_gradient_at_theta_and_rho():
    """Of |theta - x|^2 / 2, mean over x: theta + rho g / |g| less their mean."""
    x, theta = jnp.array([[1.0, 2.0], [3.0, -2.0]]), jnp.array([5.0, 3.0])
    halves = SimpleNamespace(
        target="labels", stats="before", images=x,
        features=lambda p, stats, images: (p[None] - images, 0.0),
        losses_for=lambda target: lambda p, z, again: ((z**2).sum(axis=1) / 2, z),
    )  # fmt: skip
    method = step_bench.OptaxSAM(0.5)
    assert method.stages() == [(0, method)] and method.initial_extra(theta) == {}
    found = jax.jit(lambda at: method.gradient(halves, at, {"own": 1}, 0, None)._replace(
        logits=None, stats=None))(theta)  # fmt: skip
    np.testing.assert_allclose(found.grads, np.array([3.0, 3.0]) * (1 + 0.5 / 18**0.5), rtol=1e-6)
    assert found.loss == (17 / 2 + 29 / 2) / 2 and found.extra == {"own": 1}


SMALL = ["--batch-size", "4", "--image-size", "8", "--counts", "3", "6", "2", "--model", "mlp"]


def bench_of(*flags, steps=1, model="mlp"):
    args = step_cost.arguments().parse_args([*SMALL, "--out", "x", *flags])
    args.eta = 4.0
    data = step_bench.noise(long_tail_counts(*args.counts), args.image_size)
    bench = step_bench.Bench(model, args, data, *([] if steps == 1 else [steps]))
    assert bench.steps_per_call == steps  # a lone one where nobody asks for more
    return bench


class Asked:
    """In place of devices: what is to be compiled, lowered or placed."""

    def __init__(self):
        self.passings, self.given = [], []

    def passing_by(self, passing):
        self.passings.append((passing.examples, passing.micro_batches, passing.room))
        return self

    def put_state(self, state):
        return state

    def compile_steps(self, *given):
        self.given.append(given)
        return "compiled"

    def lower_on_host(self, *given):
        self.given.append(given)
        return "lowered"


@pytest.fixture
def parts(monkeypatch):
    """What is asked of the parts of a run, and what lies on the devices; nothing is made."""
    from experiments.run import parts

    given = []

    def put_inputs(inputs):
        given.append((inputs.images, inputs.labels))
        return "placed"

    def made(dataset, model, loss, settings):
        given.append((model, settings))
        run_on = SimpleNamespace(put_inputs=put_inputs)
        return SimpleNamespace(run_on=run_on, initial=SimpleNamespace(batch_stats={"a": 1.0}))

    monkeypatch.setattr(parts, "Parts", made)
    return given


def test_a_call_goes_on_where_the_last_one_ended(parts):
    """Of 13 images (6, 4, 3) three batches of four: the smaller one of an epoch is left out."""
    bench = bench_of("--accumulate", "2", "--mode", "dependent", steps=2)
    assert bench.tail_share == 7 / 13
    assert bench_of("--rule", "imbsam", "--strict").tail_share == 3 / 13  # under four, not of it
    order = bench.orders["dependent"]
    assert order.of_step(0).tolist() == [10, 2, 7, 4]  # recorded, as in every benchmark before
    labels = bench.dataset.train_labels
    for call, steps in enumerate(([0, 1], [2, 0], [1, 2])):
        rows = bench.rows("dependent", call)
        wanted = np.stack([order.of_step(k) for k in steps])
        np.testing.assert_array_equal(rows.labels, labels[wanted])
        assert rows.index is None and rows.images.shape == (2, 4, 8, 8, 3)
    assert rows.images.dtype == np.uint8
    assert rows.images[0, 0, 0, :2].tolist() == [[167, 146, 40], [53, 183, 67]]  # recorded
    bench.run_on = Asked()
    assert bench.compiled("method", "room") == "compiled"
    assert bench.lowered("method", "split_norm", "room") == "lowered"
    assert bench.run_on.passings == [("dependent", 2, "room"), ("split_norm", 2, "room")]
    assert bench._passing("uniform", None).examples == "independent"
    (method, state, inputs, rows), (_, _, _, one) = bench.run_on.given
    assert (method, state, inputs) == ("method", bench.initial, None)
    np.testing.assert_array_equal(rows.labels, bench.rows("dependent", 0).labels)
    np.testing.assert_array_equal(one.labels, rows.labels[:1])
    assert one.images.shape == (1, 4, 8, 8, 3)


def test_images_of_32_pixels_lie_on_the_devices(parts):
    """Every mode draws its batches as it says, an epoch from seed 0."""
    bench = bench_of("--image-size", "32", "--remat", "--precision", "bfloat16", steps=3)
    assert bench.inputs == "placed" and bench.couples
    (model, settings), (images, labels) = parts
    assert images is bench.dataset.train_images and labels is bench.dataset.train_labels
    assert (model, settings.batch_size, settings.precision) == ("mlp", 4, "bfloat16")
    assert settings.remat and settings.augment and settings.accumulate == 1
    rows = bench.rows("uniform", 0)
    assert rows.images is None and rows.index.shape == (3, 4) and rows.index.dtype == np.int32
    rates = {mode: np.stack([order.of_step(k) for k in range(3)])
             for mode, order in bench.orders.items()}  # fmt: skip
    np.testing.assert_array_equal(rates["uniform"], rates["dependent"])
    # Of 7 rows of the tail in 13, two or three in each stratified batch of four.
    assert {int(x) for x in (labels[rates["stratified"]] > 0).sum(axis=1)} <= {2, 3}
    bench_of("--image-size", "8", steps=3)
    assert not parts[2][1].augment


def test_which_steps_are_measured():
    """SGD first, in every mode in which passes leave rows out; optax's SAM after SAM as it is."""
    flags = ["--compile-only", "--rule", "cc_sam", "sam", "sgd", "imbsam"]
    flags += ["--mode", "uniform", "dependent"]
    bench = bench_of(*flags)
    found = list(step_cost.planned(bench))
    assert [(row["rule"], row["mode"], row["stage"]) for row, _ in found] == [
        ("sgd", "dependent", None), ("cc_sam", "dependent", None), ("sam", "dependent", None),
        (step_cost.OPTAX, "dependent", None), ("imbsam", "dependent", None),
        ("imbsam", "uniform", None),
    ]  # fmt: skip
    imbsam = found[-1][1]
    assert not bench.leaves_rows_out(imbsam, "split_norm")
    bench.couples = True  # a model with batch statistics
    assert not bench.leaves_rows_out(imbsam, "uniform")
    more = bench_of("--compile-only", "--accumulate", "2", "--mode", "dependent", "--rule",
                    "sam", "cc_sam")  # fmt: skip
    assert not more.leaves_rows_out(imbsam, "uniform")
    # In micro-batches neither CC-SAM, which sees one class at a time, nor optax's.
    assert [row["rule"] for row, _ in step_cost.planned(more)] == ["sgd", "sam"]
    with pytest.raises(ValueError, match="has no blocks to compute again"):
        bench_of("--compile-only", "--remat")
    moved = bench_of("--compile-only", "--rule", "sam", "--adaptive", "asam", "--mode", "dependent")
    assert [row["rule"] for row, _ in step_cost.planned(moved)] == ["sgd", "sam"]


def test_stages_are_numbered_and_change_after_half_of_the_run(monkeypatch):
    monkeypatch.setattr(step_bench.Bench, "leaves_rows_out", lambda self, stage, mode: False)
    bench = bench_of("--compile-only", "--rule", "sse_sam", "--mode", "uniform", "dependent")
    rows = [row for row, _ in step_cost.planned(bench)]
    assert [(row["rule"], row["stage"]) for row in rows] == [
        ("sgd", None), ("sse_sam", 1), ("sse_sam", 2)
    ]  # fmt: skip
    bench.args.mode = ["uniform"]  # in which no pass leaves a row out: SGD's is there in any case
    assert [row["rule"] for row, _ in step_cost.planned(bench)] == ["sgd"]
    assert rows[1]["rule_args"]["switch_step"] == 100  # of 200 epochs of a step
    assert rows[2] == {**rows[1], "stage": 2}
    assert {name: rows[0][name] for name in (
        "model", "batch_size", "precision", "image_size", "accumulate", "remat", "tail_share"
    )} == {
        "model": "mlp", "batch_size": 4, "precision": "float32", "image_size": 8, "accumulate": 1,
        "remat": False, "tail_share": 7 / 13,
    }  # fmt: skip


def test_ratios_are_taken_round_by_round():
    rows = [
        {"rule": rule, "mode": mode, "flops": flops, "temporary_bytes": held}
        for rule, mode, flops, held in (
            ("sgd", "dependent", 10.0, 100), ("sam", "dependent", 20.0, 150),
            ("sam", "uniform", 15.0, None), (step_cost.OPTAX, "dependent", 20.0, 0),
        )
    ]  # fmt: skip
    times = np.array([[1.0, 2, 1, 4], [2, 6, 1, 4], [4, 4, 1, 4]])
    step_cost.with_ratios(rows, times)
    sgd, sam, uniform, optax = rows
    assert [row["flops_ratio"] for row in rows] == [1, 2, 1.5, 2]
    assert [row["memory_ratio"] for row in rows] == [1, 1.5, None, None]
    assert [row["step_ms"] for row in rows] == [2000, 4000, 1000, 4000]
    assert {row["rounds"] for row in rows} == {3}
    assert (sam["time_ratio"], sam["time_ratio_quartiles"]) == (2, [1.5, 2.5])  # of 2, 3 and 1
    assert (uniform["time_ratio"], uniform["time_ratio_quartiles"]) == (0.5, [0.375, 0.75])
    assert sgd["time_ratio_quartiles"] == [1, 1]
    assert (optax["our_sam_ratio"], optax["our_sam_ratio_quartiles"]) == (1, [0.75, 1.25])
    assert all("our_sam_ratio" not in row for row in rows[:3])
    alone = [rows[0], rows[3]]
    optax.pop("our_sam_ratio")
    step_cost.with_ratios(alone, times[:, :2])
    assert "our_sam_ratio" not in optax
    step_cost.with_ratios(alone, None)
    names = ("step_ms", "time_ratio", "time_ratio_quartiles", "rounds")
    assert all(row[name] is None for row in alone for name in names) and sgd["flops_ratio"] == 1


def test_each_step_is_compiled_counted_and_timed(monkeypatch):
    """What its choices take is not its own: the first compiling is of the step."""
    clock = SimpleNamespace(wall=100.0, cpu=40.0, asked=[])

    class Bench:
        def __init__(self, model, args, dataset):
            assert (model, dataset) == ("mlp", "data")
            self.orders = {mode: SimpleNamespace(labels_of=lambda n, mode=mode: (mode, n))
                           for mode in step_bench.MODES}  # fmt: skip

        def room(self, mode):
            return f"room of {mode}"

        def compiled(self, stage, room, mode):
            clock.asked.append((stage, room, mode))
            clock.wall, clock.cpu = clock.wall + 3.0, clock.cpu + 0.5
            analysed = SimpleNamespace(temp_size_in_bytes=8)
            return SimpleNamespace(stage=stage, memory_analysis=lambda: analysed)

    def counted(compiled, room, labels):
        clock.asked.append((room, labels))
        call, _ = compiled("first"), compiled("a choice")
        return call, 4.0 if call.stage == "one" else 8.0

    def timed(bench, rows, calls, rounds):
        assert [call.stage for call in calls] == ["one", "two"] and rounds == 7
        return np.array([[1.0, 2.0]] * 6)

    from experiments.run import cost

    rows = [
        {"rule": rule, "mode": mode} for rule, mode in (("sgd", "dependent"), ("gsa", "uniform"))
    ]
    monkeypatch.setattr(step_bench, "Bench", Bench)
    monkeypatch.setattr(step_cost, "planned", lambda bench: zip(map(dict, rows), ("one", "two"),
                                                                strict=True))  # fmt: skip
    monkeypatch.setattr(step_bench, "timed", timed)
    monkeypatch.setattr(cost, "counted", counted)
    monkeypatch.setattr(step_cost, "time", SimpleNamespace(
        perf_counter=lambda: clock.wall, process_time=lambda: clock.cpu))  # fmt: skip
    args = SimpleNamespace(compile_only=False, steps=7)
    first, second = step_cost.measure("mlp", args, "data")
    assert clock.asked[3:] == [("room of uniform", ("uniform", 1000)), ("two", "first", "uniform"),
                               ("two", "a choice", "uniform")]  # fmt: skip
    told = {"rule": "gsa", "mode": "uniform", "flops": 8, "flops_ratio": 2, "released": None,
            "seconds_compile": 3, "cpu_seconds_compile": 0.5, "temporary_bytes": 8,
            "memory_ratio": 1, "step_ms": 2000, "time_ratio": 2, "time_ratio_quartiles": [2, 2],
            "rounds": 6}  # fmt: skip
    assert second == told and (first["released"], first["flops_ratio"]) == (1, 1)
    args.compile_only = True
    assert [row["step_ms"] for row in step_cost.measure("mlp", args, "data")] == [None] * 2


def test_what_is_measured_is_written_and_printed(tmp_path, monkeypatch, capsys):
    row = {
        "model": "mlp", "rule": "sam", "mode": "dependent", "stage": 2, "released": 2,
        "step_ms": 12.345, "time_ratio": 2.345, "time_ratio_quartiles": [2.25, 2.5],
        "flops_ratio": 2.656, "memory_ratio": 1.5, "temporary_bytes": 3 * 2**20,
        "seconds_compile": 30.04,
    }  # fmt: skip
    nothing = dict.fromkeys(("released", "step_ms", "time_ratio", "time_ratio_quartiles",
                             "memory_ratio", "temporary_bytes"))  # fmt: skip
    ours = {"our_sam_ratio": 1.0625, "our_sam_ratio_quartiles": [0.75, 1.25]}
    made = []

    def measure(model, args, dataset):
        made.append((model, dataset.source, len(dataset.train_labels)))
        return [row | ours, {**row, **nothing, "stage": None}]

    monkeypatch.setattr(step_cost, "measure", measure)
    _, found = run(tmp_path / "a", "--counts", "5", "60", "10", "--batch-size", "127")
    assert made == [("mlp", "noise", 127)]
    assert found["data"] == "noise" and {"command", "device", "versions"} <= set(found)
    assert found["rows"][1]["rule"] == "sam"
    text = (tmp_path / "a" / "step_cost.md").read_text()
    assert text.splitlines()[2:] == [
        "| mlp | sam, stage 2 | dependent | 12.3 | 2.35 | 2.25 to 2.50 | 2.66 | 2.00 | 3 | 1.50 | "
        "30.0 |",
        "| mlp | sam | dependent | - | - | - to - | 2.66 | - | - | - | 30.0 |",
        "",
        "mlp: our SAM takes 1.062 times the time of optax.contrib.sam, round by round (quartiles "
        "0.750 to 1.250).",
    ]
    assert text.endswith("\n") and capsys.readouterr().out == text + "\n"
    file = tmp_path / "cache.npz"
    save_npz(tiny_dataset(32), file)
    run(tmp_path / "b", "--data", str(file), "--batch-size", "78")
    with pytest.raises(RunError, match="79 is more than the 78 images"):
        run(tmp_path / "b", "--data", str(file), "--batch-size", "79")
    assert made[1][0] == "mlp" and made[1][2] == 78


def test_ten_million_images_are_the_most(tmp_path):
    made = step_cost._counts(SimpleNamespace(counts=[10, 10**6, 1]))
    assert made.tolist() == [10**6] * 10
    with pytest.raises(RunError, match="10000010 images, where 10000000 are the most"):
        step_cost._counts(SimpleNamespace(counts=[10, 10**6 + 1, 1]))


@pytest.mark.parametrize(
    ("flags", "fits"),
    [
        ("--accumulate 1 --mode stratified --model mlp", True), ("--accumulate 2", True),
        ("--accumulate 2 --mode dependent", True),
        ("--accumulate 2 --mode stratified --model mlp", False),
        ("--accumulate 2 --mode dependent stratified --model mlp", False),
    ],
)  # fmt: skip
def test_micro_batches_are_of_whole_batches(flags, fits, capsys):
    """Where no mode is named those that there are without are left out."""
    if fits:
        args = step_cost.arguments().parse_args([*flags.split(), "--out", "x"])
        assert args.noise_ratio == 1e-6  # else CC-SAM could not be among the rules
        return
    with pytest.raises(SystemExit):
        step_cost.arguments().parse_args([*flags.split(), "--out", "x"])
    assert "--accumulate needs --mode dependent alone" in capsys.readouterr().err
