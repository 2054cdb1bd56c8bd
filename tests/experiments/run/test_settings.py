"""A setting means the same wherever it has a default: of a run, of the bench, of a flag."""

import dataclasses

import pytest

from experiments import cifar_lt, finetune, imagenet_lt
from experiments.bench.training import Setup
from experiments.host.errors import RunError
from experiments.run.settings import Settings

PLAIN = dataclasses.asdict(Settings())
# What a command has otherwise, or as None, to be found out, stands in tests/flag_table.py.
OTHERWISE = {
    cifar_lt: {"schedule", "classifier"},
    imagenet_lt: {
        "schedule", "classifier", "lr", "weight_decay", "checkpoint_every", "jitter", "batch_size",
    },
    finetune: {
        "batch_size", "checkpoint_every", "classifier", "epochs", "eval_batch", "weight_decay",
        "adapter",
    },
}  # fmt: skip


@pytest.mark.parametrize("entry", OTHERWISE)
def test_what_no_flag_says_is_what_settings_have(entry):
    flags = vars(entry.arguments().parse_args(["--out", "x"]))
    shared = {name for name in PLAIN.keys() & flags.keys() if flags[name] not in (None, "")}
    assert {name for name in shared if flags[name] != PLAIN[name]} <= OTHERWISE[entry]
    assert {"momentum", "keep_checkpoints", "eval_every", "accumulate", "mixup"} <= shared


def test_what_has_no_flag_or_none_of_its_own():
    """Plain training, that looks at the test set each epoch."""
    told = {
        "remat": False, "augment": True, "max_corrupt": 0.001, "loader": "grain", "workers": 0,
        "jitter": 0.0, "weight_decay_inside": False, "per_visit": 1, "strict": False,
        "trained": "all", "statistics": "updated", "max_norm": "none", "adapter": "full",
        "adapter_size": 0, "enlarged": 0, "enlarged_eval": 0, "ensemble": False, "eta": 100.0,
        "examples": "dependent", "sampling": "natural", "classifier": "linear", "devices": 1,
        "schedule": "cosine", "seed": 0, "steps_per_call": 0, "precision": "float32",
    }  # fmt: skip
    assert {name: PLAIN[name] for name in told} == told


def test_the_bench_has_the_defaults_of_a_run():
    told = {"weight_decay": 0.0, "tail": ()}
    for name, value in Setup._field_defaults.items():
        assert value == told.get(name, PLAIN.get(name)), name


# Of numbers, by type; every field is tried, so that a new one needs its line in `check`.
WRONG = {int: [-1, 2**40], float: [-1.0, float("nan"), float("inf")], str: ["nonsense"]}


@pytest.mark.parametrize("name", [name for name, value in PLAIN.items() if type(value) in WRONG])
def test_every_setting_has_a_range(name):
    Settings().check()
    # Counts may be as large as anybody likes.
    for value in [v for v in WRONG[type(PLAIN[name])] if v != 2**40 or name == "seed"]:
        with pytest.raises(RunError, match=name.replace("_", "[-_]")):
            dataclasses.replace(Settings(), **{name: value}).check()
