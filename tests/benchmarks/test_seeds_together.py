"""Steps of several seeds: what is timed of which ways, by stand-ins for devices and steps."""

import contextlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import seeds_together
from experiments.data import save_npz
from experiments.host import devices
from experiments.host.errors import RunError
from experiments.run import fit, parts
from imbsam_jax import long_tail_counts
from tiny import COUNTS, tiny_dataset


class Device:
    """Places rows, and compiles a step that takes as long as it is said to."""

    def __init__(self, made, name, seconds):
        self.made, self.name, self.seconds, self.devices = made, name, seconds, ["a", "b"]

    def alone(self):
        return Device(self.made, "alone", 2.0)

    def on(self, those):
        assert (self.name, those) == ("alone", ["a", "b"])
        return Device(self.made, "shared", 4.0)

    def put_inputs(self, inputs):
        assert inputs == "images of train"
        return f"{inputs} on {self.name}"

    def put_state(self, state):
        return state

    def join(self, states):
        return tuple(states)

    def place(self, rows):
        return rows

    def compile_steps(self, stage, state, inputs, rows):
        self.made["compiled"].append((self.name, stage, state, np.shape(rows)))
        self.made["now"] += 16.0

        def call(state, given, rows):
            assert given == inputs
            self.made["steps"].append((self.name, state, np.asarray(rows).tolist()))
            self.made["now"] += self.seconds
            return (tuple(x + 10 for x in state) if isinstance(state, tuple) else state + 10), 0.0

        return call


@pytest.fixture
def made(monkeypatch):
    """What is made of flags: parts, a trainer of calls, and a clock that steps move."""
    made = {"compiled": [], "steps": [], "parts": [], "now": 100.0, "waited": [], "awaited": []}

    def of(dataset, model, loss, settings, own_batches):
        made["parts"].append((model, settings, own_batches))

    def several(dataset, model, method, all_of, settings):
        made["method"], made["seeds"] = method, [one.seed for one in settings]
        feed = SimpleNamespace(inputs=lambda part: f"images of {part}", image_shape=(8, 8, 3))
        runs = [SimpleNamespace(initial=seed) for seed in made["seeds"]]
        count = settings[0].devices

        def batches(calls):
            made["calls"] = calls
            of_seeds = [np.array([[1, k], [2, k], [3, k], [4, k]][: len(runs)]) for k in range(99)]
            return contextlib.nullcontext(of_seeds[: len(calls)])

        run_on = Device(made, "together", 1.0 if count == 1 else 3.0)
        return SimpleNamespace(run_on=run_on, feed=feed, runs=runs, batches=batches)

    monkeypatch.setattr(jax, "block_until_ready", made["awaited"].append)
    monkeypatch.setattr(parts, "Parts", of)
    monkeypatch.setattr(fit, "several", several)
    monkeypatch.setattr(seeds_together, "wait_for", made["waited"].append)
    monkeypatch.setattr(parts, "resolved", lambda settings: settings)
    monkeypatch.setattr(seeds_together, "time", SimpleNamespace(perf_counter=lambda: made["now"]))
    return made


def measured(*flags):
    words = ["--batch-size", "13", "--steps-per-call", "2", "--eta", "10", "--out", "x", *flags]
    args = seeds_together.arguments().parse_args(words)
    return seeds_together.measure("mlp", args, tiny_dataset())


def test_ways_are_timed_in_turn_without_the_first_round(made):
    """Of 78 images three calls of two batches an epoch. On one device two seeds take 2 s each, on
    both 4, together 3; per step half of it. The first round compiles, 16 s.
    """
    row = measured("--devices", "2", "--seeds", "2", "--rounds", "5",
                   "--precision", "bfloat16")  # fmt: skip
    assert [(model, one.seed, own) for model, one, own in made["parts"]] == [
        ("mlp", 0, True), ("mlp", 1, True)
    ]  # fmt: skip
    _, one, _ = made["parts"][0]
    assert (one.batch_size, one.precision, one.devices, one.steps_per_call) == (
        13, "bfloat16", 2, 2
    )  # fmt: skip
    assert made["calls"] == [(0, 2), (2, 2), (4, 2), (0, 2), (2, 2)]
    (_, stage, *_), *_ = made["compiled"]
    compiled = {name: given for name, *given in made["compiled"]}
    assert compiled == {
        "alone": [stage, 0, (2,)], "shared": [stage, 0, (2,)], "together": [stage, (0, 1), (2, 2)],
    }  # fmt: skip
    for name, states in (("alone", 2), ("together", 1)):
        seen = [of for way, *of in made["steps"] if way == name]
        assert len(seen) == 5 * states
    alone = [of for way, *of in made["steps"] if way == "alone"]
    assert alone[:3] == [[0, [1, 0]], [1, [2, 0]], [10, [1, 1]]]  # each seed goes on from its last
    assert [state for way, state, _ in made["steps"] if way == "together"][:2] == [(0, 1), (10, 11)]
    assert row["ms"] == {"one_device": 2000, "shared_batches": 4000, "together": 1500}
    assert row["ratio"] == {"one_device": 0.75, "shared_batches": 0.375}
    assert row["ratio_quartiles"] == {"one_device": [0.75] * 2, "shared_batches": [0.375] * 2}
    assert set(row["seconds_compile"].values()) == {16}
    told = {name: row[name] for name in (
        "model", "rule", "batch_size", "precision", "image_shape", "seeds", "devices",
        "steps_per_call", "rounds",
    )}  # fmt: skip
    assert told == {
        "model": "mlp", "rule": "imbsam", "batch_size": 13, "precision": "bfloat16",
        "image_shape": [8, 8, 3], "seeds": 2, "devices": 2, "steps_per_call": 2, "rounds": 4,
    }  # fmt: skip
    assert made["waited"] == [None]
    assert len(made["awaited"]) == 5 * (2 + 2 + 1)  # a step is over when what it gives is there


def test_quartiles_are_of_the_rounds(made, monkeypatch):
    """Together 3, 1, 2, 4 and 5 s beside 4: of a round each."""
    took = iter([9.0, 3.0, 1.0, 2.0, 4.0, 5.0])
    step = seeds_together._Together.step
    monkeypatch.setattr(
        seeds_together._Together, "step", lambda self, rows: (step(self, rows), next(took))[1]
    )
    row = measured("--seeds", "2", "--rounds", "6", "--time-after", "go")
    assert row["ratio"] == {"one_device": 0.75} and row["ms"]["together"] == 1500
    assert row["ratio_quartiles"] == {"one_device": [0.5, 1.0]}
    assert [str(path) for path in made["waited"]] == ["go"]  # once, when all is compiled
    assert len(made["steps"]) == 6 * 3


def test_a_staged_rule_is_in_its_first_half(made):
    row = measured("--rule", "sse_sam", "--seeds", "3", "--batch-size", "20")
    assert row["rule_args"]["switch_step"] == 100 * 4  # of 78 images in batches of 20
    (_, stage, *_), *_ = made["compiled"]
    assert len(stage.rule(0).groups) == 2  # head and tail, each with its perturbation
    assert made["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--seeds", "3", "--devices", "2"), "3 seeds cannot be divided among 2 devices"),
        (("--batch-size", "40"), "78 images are no 2 batches of 40"),
    ],
)
def test_what_is_refused(made, flags, said):
    with pytest.raises(RunError, match=said):
        measured(*flags)
    assert measured("--batch-size", "39")["steps_per_call"] == 2  # just so many


def test_cc_sam_has_the_noise_of_the_other_benchmarks():
    assert seeds_together.arguments().parse_args(["--out", "x"]).noise_ratio == 1e-6


def test_what_is_measured_is_written(tmp_path, monkeypatch, capsys):
    """Where files lay is not said."""
    row = {"rule": "sam", "image_shape": [8, 8, 3], "batch_size": 13, "seeds": 2, "devices": 2,
           "ms": {"one_device": 4.0, "together": 1.5}, "ratio": {"one_device": 0.375},
           "ratio_quartiles": {"one_device": [0.25, 0.5]}}  # fmt: skip
    seen = []
    monkeypatch.setattr(devices, "emulate", lambda count: seen.append(count))
    monkeypatch.setattr(
        seeds_together, "measure",
        lambda model, args, data: (seen.append((data.class_counts().tolist(),
                                                data.train_images.shape[1])),
                                   {**row, "model": model})[1],
    )  # fmt: skip
    file, out = tmp_path / "cache.npz", tmp_path / "timed"
    save_npz(tiny_dataset(32), file)
    words = ["--data", str(file), "--shrink", "2", "--devices", "2", "--model", "mlp", "resnet8"]
    words += ["--out", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmarks/seeds_together.py", *words])
    seeds_together.main(seeds_together.arguments().parse_args(words))
    assert seen == [2, *[([*COUNTS], 16)] * 2]
    text = (out / "seeds_together.json").read_text()
    found = json.loads(text)
    assert str(tmp_path) not in text and "--data cache.npz" in found["command"]
    assert [one["model"] for one in found["rows"]] == ["mlp", "resnet8"] and "versions" in found
    said = capsys.readouterr().out.splitlines()
    assert said[2] == (
        "| mlp | sam | 8x8x3 | 13 | 2 | 2 | 4.00 | - | 1.50 | 0.38 (0.25 to 0.50) | - |"
    )
    assert said[-2:] == [
        "", f"Milliseconds of one step of all seeds, median; {found['device']}."
    ]  # fmt: skip
    seen.clear()
    seeds_together.main(seeds_together.arguments().parse_args(["--out", str(out)]))
    assert seen == [1, (long_tail_counts(100, 500, 100).tolist(), 32)]
