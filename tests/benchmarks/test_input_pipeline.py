"""What the input pipeline is measured by."""

import contextlib
import io
import json
import math
import os
import types

import numpy as np
import pytest
from PIL import Image

from benchmarks import input_pipeline


@pytest.mark.parametrize("gone", [False, True])
def test_processor_seconds_are_of_this_process_and_its_children(monkeypatch, gone):
    """Of a child those of the 14th and 15th word of /proc, whose second may have spaces."""
    ticks = os.sysconf("SC_CLK_TCK")
    words = [7, "(a (b) c)", "S", *range(4, 14), 3 * ticks, ticks // 2, 99, 99]

    class Told:
        def __init__(self, path):
            assert path in ("/proc/7/stat", "/proc/8/stat")

        def read_text(self):
            if gone:
                raise FileNotFoundError
            return " ".join(map(str, words))

    monkeypatch.setattr(input_pipeline, "Path", Told)
    monkeypatch.setattr(input_pipeline.time, "process_time", lambda: 1.25)
    children = [types.SimpleNamespace(pid=pid) for pid in (7, 8)]
    monkeypatch.setattr(input_pipeline.multiprocessing, "active_children", lambda: children)
    seconds = pytest.approx(1.25 + 2 * 3.5)
    assert input_pipeline.processor_seconds() == (
        pytest.approx(float("nan"), nan_ok=True) if gone else seconds
    )


def pictures(found):
    return np.asarray(Image.open(io.BytesIO(found.files[0])))


def test_photographs_are_the_same_gradients_under_noise_everywhere():
    """Of ImageNet's usual size; a hundred are 64 over and over, from one draw."""
    two = input_pipeline.photographs(2)
    assert two.labels.tolist() == [0, 0] and two.labels.dtype == np.int32
    shown = pictures(two)
    assert shown.shape == (375, 500, 3) and two.read([1, 0, 1]) == [two.files[k] for k in (1, 0, 1)]
    draw = np.random.Generator(np.random.PCG64(0))
    across, down = draw.uniform(-0.4, 0.4, (2, 3))
    rows, columns = np.indices((375, 500))
    want = 128 + np.multiply.outer(columns - 250, across) + np.multiply.outer(rows - 188, down)
    want += draw.normal(0, 20, (375, 500, 1))
    file = io.BytesIO()
    clipped = np.minimum(np.maximum(want, 0), 255).astype(np.uint8)
    Image.fromarray(clipped).save(file, "JPEG", quality=90)
    assert two.files[0] == file.getvalue() and len(set(two.files)) == 2


def test_more_photographs_than_64_are_those_again(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Image, "fromarray", lambda pixels: drawn.append(1) or types.SimpleNamespace(
            save=lambda file, kind, quality: file.write(bytes([len(drawn)]))
        )
    )  # fmt: skip

    class Small:
        def __getitem__(self, of):
            return np.zeros((2, 1, 1))

    monkeypatch.setattr(input_pipeline.np, "mgrid", Small())
    rng = types.SimpleNamespace(
        uniform=lambda low, high, shape: np.zeros(shape), normal=lambda *_: 0.0
    )
    monkeypatch.setattr(input_pipeline.np.random, "default_rng", lambda seed: rng)
    found = input_pipeline.photographs(66)
    assert [data[0] for data in found.files] == [*range(1, 65), 1, 2] and len(found.labels) == 66


def test_steps_go_round_the_images():
    rows, positions = input_pipeline.Cyclic(5, 3)(4)
    assert rows.tolist() == [2, 3, 4] and positions.tolist() == [0, 1, 2]
    assert input_pipeline.Cyclic(5, 3)(3).rows.tolist() == [4, 0, 1]


class Spent:
    """A clock of what was done: seconds by the clock, and of processors."""

    def __init__(self, monkeypatch):
        self.now, self.used, self.slept = 100.0, 40.0, []
        monkeypatch.setattr(input_pipeline, "time", self)
        monkeypatch.setattr(input_pipeline, "processor_seconds", lambda: self.used)

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def takes(self, seconds, used, made):
        self.now, self.used = self.now + seconds, self.used + used
        return made


def test_images_a_second_of_the_clock_and_of_processors(monkeypatch):
    """Three calls of 4 images, each of two seconds and half a second of a processor."""
    spent = Spent(monkeypatch)
    found = input_pipeline.rate(lambda: spent.takes(2.0, 0.5, 4), 6.0)
    assert found == (12 / 6, 12 / 1.5)


def test_the_bare_loop_decodes_what_the_stream_does(monkeypatch):
    """16 a call, one file after the other, each by the draw of its number."""
    seen = []
    monkeypatch.setattr(
        input_pipeline, "decode_train",
        lambda file, size, draw: seen.append((file, size, draw.integers(10**9))),
    )  # fmt: skip
    some = input_pipeline.bare([b"a", b"b", b"c"], 32)
    assert (some(), some()) == (16, 16) and len(seen) == 32
    assert [file for file, _, _ in seen[:4]] == [b"a", b"b", b"c", b"a"]
    for number in (0, 17, 31):  # the stream's: seed 0 and epoch 0
        draw = np.random.default_rng((0, 0, number)).integers(10**9)
        assert seen[number][1:] == (32, draw)


class Opened:
    """A stream whose batches of 4 take a second, and two of them of a processor."""

    def __init__(self, spent, batch=4, seconds=1.0):
        self.spent, self.batch, self.seconds, self.given = spent, batch, seconds, []

    def __call__(self, *given, **more):
        self.given.append((given, more))
        return contextlib.nullcontext(self)

    def __next__(self):
        self.spent.takes(self.seconds, 2.0, None)
        self.given.append("next")
        return types.SimpleNamespace(ok=np.arange(self.batch) > 0)


def args_of(*flags):
    return input_pipeline.arguments().parse_args([*flags, "--out", "x"])


@pytest.mark.parametrize(
    ("workers", "threads", "first", "cores"), [(2, 3, 6, 6), (0, 0, 3, 1), (9, 9, 27, 7)]
)
def test_the_two_loops_in_turn(monkeypatch, workers, threads, first, cores):
    """Bare: 16 images in 0.5 s, and 1 of a processor; the stream: 3 of 4 images in 1 s, 2 of it.

    Each worker's first three batches are not counted; per core, of as many as are used.
    """
    spent = Spent(monkeypatch)
    sizes = []

    def bare(files, size):
        sizes.append((files, size))
        return lambda: spent.takes(0.5, 1.0, 16)

    asked, rate = [], input_pipeline.rate
    monkeypatch.setattr(input_pipeline, "bare", bare)
    monkeypatch.setattr(
        input_pipeline,
        "rate",
        lambda some, seconds: (asked.append(seconds), rate(some, seconds))[1],
    )
    opened = Opened(spent)
    monkeypatch.setattr(input_pipeline, "stream", opened)
    monkeypatch.setattr(
        input_pipeline.os, "sched_getaffinity", lambda process: set(range(7 if not process else 3))
    )
    split = input_pipeline.InMemory([b"a", b"bcd"], np.zeros(2, np.int32))
    flags = ["--workers", workers, "--threads", threads, "--rounds", 2, "--seconds", 2]
    flags += ["--batch-size", 4, "--size", 32]
    found = input_pipeline.measure(split, args_of(*map(str, flags)))
    assert sizes == [([b"a", b"bcd"], 32)] and asked == [1.0, 2, 2, 2, 2]
    each = [x for x in opened.given if x != "next"]
    assert len(each) == 2 and len(opened.given) == 2 + 2 * (first + 2)
    given, more = each[0]
    assert given == (split, input_pipeline.Cyclic(2, 4), 0, 10**9)
    assert more == {"size": 32, "resize": 32, "train": True, "seed": 0, "workers": workers,
                    "threads": threads}  # fmt: skip
    assert (found["bare_images_per_second"], found["stream_images_per_second"]) == (32, 3)
    assert (found["cores_available"], found["cores_used"]) == (7, cores)
    for name, value in (
        ("ratio_per_core", 3 / 32 / cores), ("bare_images_per_processor_second", 16),
        ("ratio_per_processor_second", 1.5 / 16),
    ):  # fmt: skip
        assert found[name] == pytest.approx(dict.fromkeys(("median", "low", "high"), value)), name
    assert found["mean_file_bytes"] == 2
    alone = [*map(str, flags), "--images", "1"]
    alone[alone.index("--seconds") + 1] = "0.5"
    asked.clear()
    assert input_pipeline.measure(split, args_of(*alone))["mean_file_bytes"] == 1
    assert asked == [0.5] * 5  # what warms caches takes no longer, either


def test_how_long_a_device_waits(monkeypatch):
    """A step of 1.25 times a batch's decoding; here every third batch takes twice as long."""
    spent = Spent(monkeypatch)
    opened = Opened(spent)
    monkeypatch.setattr(input_pipeline, "stream", opened)
    split = input_pipeline.InMemory([b"a"], np.zeros(1, np.int32))
    args = args_of("--workers", "2")
    kept = type(opened).__next__

    def nexts(self):
        number = len(self.given) - 1  # 6 of them before the device begins
        self.seconds = 2.0 if number >= 6 and number % 3 == 0 else 1.0
        return kept(self)

    monkeypatch.setattr(type(opened), "__next__", nexts)
    found = input_pipeline.waiting(split, args, 1.0)
    late = 7 * 0.75  # of 20 steps the 1st, 4th, ..., 19th
    assert found == {
        "step_seconds": 1.25, "share_of_time_waited": pytest.approx(late / (late + 20 * 1.25)),
        "steps_that_waited": 7, "steps": 20,
    }  # fmt: skip
    assert len(opened.given) == 1 + 6 + 20 and opened.given[0][0][0] is split
    assert spent.slept == [0.0 if k % 3 == 0 else 0.25 for k in range(20)]


def test_median_and_quartiles_where_all_are_told():
    found = input_pipeline.spread(np.array([1.0, 5.0, 2.0, 4.0, 3.0]))
    assert found == {"median": 3, "low": 2, "high": 4}
    assert input_pipeline.spread(np.array([1.0, math.nan])) is None


def test_what_is_measured_is_written(tmp_path, monkeypatch, capsys):
    row = {"cores_used": 2, "bare_images_per_second": 80.4, "stream_images_per_second": 16.0,
           "ratio_per_core": {"median": 0.5, "low": 0.25, "high": 0.755},
           "ratio_per_processor_second": None}  # fmt: skip
    given = []
    monkeypatch.setattr(
        input_pipeline, "measure", lambda split, args: (given.append(split), dict(row))[1]
    )
    wait = {"step_seconds": 5.0, "share_of_time_waited": 0.0625, "steps_that_waited": 7.0,
            "steps": 20.0}  # fmt: skip
    monkeypatch.setattr(
        input_pipeline, "waiting", lambda split, args, seconds: (given.append(seconds), wait)[1]
    )
    monkeypatch.setattr(input_pipeline, "photographs", lambda count: f"{count} made")
    from experiments.data import image_sets

    sets = types.SimpleNamespace(train="species", source="of a folder")
    monkeypatch.setattr(image_sets, "load_inaturalist", lambda folder: sets)
    for flags, split, source in (
        (["--images", "9"], "9 made", "JPEGs of 500 x 375 made here, quality 90"),
        (["--data-dir", "d"], "species", "of a folder"),
    ):
        words = [*flags, "--batch-size", "64", "--out", str(tmp_path)]
        input_pipeline.main(input_pipeline.arguments().parse_args(words))
        assert given == [split, 4.0]  # 64 images at 16 a second
        given.clear()
        found = json.loads((tmp_path / "input_pipeline.json").read_text())
        assert (found["data"], found["workers"], found["threads"]) == (source, 1, 1)
        assert found["waiting"] == wait and "device" in found and "command" in found
        page = (tmp_path / "input_pipeline.md").read_text()
        assert capsys.readouterr().out == page + "\n"
    assert page.splitlines()[2:] == [
        "| 1 | 1 | 2 | 80 | 16 | 0.50 (0.25 to 0.76) | - |", "",
        "A device whose step takes 5000 ms, 1.25 times a batch's decoding, waited 6.2% of the "
        "time, in 7 of 20 steps.",
    ]  # fmt: skip
