"""A setting means the same wherever it has a default: of a run, of the bench, of a flag."""

import dataclasses

import pytest

from experiments import cifar_lt, finetune, imagenet_lt
from experiments.bench.training import Setup
from experiments.host.errors import RunError
from experiments.run.settings import Note, Settings

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


def test_settings_that_nobody_gives():
    """Plain training, that looks at the test set each epoch: SGD as the ImbSAM release has it."""
    told = {
        "epochs": 200, "batch_size": 64, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.005,
        "parallel": "jit", "accumulate": 1, "eval_every": 1, "eval_batch": 500,
        "checkpoint_every": 10, "keep_checkpoints": 2, "mixup": 0.0,
        "remat": False, "augment": True, "max_corrupt": 0.001, "loader": "grain", "workers": 0,
        "jitter": 0.0, "weight_decay_inside": False, "per_visit": 1, "strict": False,
        "trained": "all", "statistics": "updated", "max_norm": "none", "adapter": "full",
        "adapter_size": 0, "enlarged": 0, "enlarged_eval": 0, "ensemble": False, "eta": 100.0,
        "examples": "dependent", "sampling": "natural", "classifier": "linear", "devices": 1,
        "schedule": "cosine", "seed": 0, "steps_per_call": 0, "precision": "float32",
    }  # fmt: skip
    assert told == PLAIN
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().lr = 1.0


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


# The ends of each range, and what lies just outside.
COUNTED = ("epochs", "batch_size", "eval_every", "eval_batch", "checkpoint_every",
           "keep_checkpoints", "per_visit", "accumulate")  # fmt: skip
FROM_0 = ("steps_per_call", "devices", "workers", "adapter_size", "enlarged", "enlarged_eval")
BOUNDS = [
    *((name, [1], [0]) for name in COUNTED), *((name, [0], [-1]) for name in FROM_0),
    ("lr", [1e-30, 0.5, 7.0], [0, -1e-30]), ("momentum", [0, 0.5, 0.999], [-0.001, 1]),
    *((name, [0, 0.5, 7.0], [-1e-30]) for name in ("weight_decay", "mixup", "eta")),
    ("eta", [None], []), ("seed", [0, 2**32 - 1], [-1, 2**32]),
    *((name, [0, 0.5, 1], [-0.001, 1.001]) for name in ("jitter", "max_corrupt")),
    ("sampling", ["natural", "balanced", "stratified"], ["all"]),
    ("statistics", ["updated", "frozen"], ["none"]), ("max_norm", ["none", "step", "epoch"], [""]),
    ("loader", ["grain", "tf.data"], ["torch"]), ("parallel", ["jit", "pmap"], ["vmap"]),
    ("precision", ["float32", "bfloat16"], ["float16"]),
    ("examples", ["dependent", "independent", "split_norm", "shared_norm"], ["own"]),
    ("trained", ["all", "head", "scales", "adapter", "bias", "norm"], ["body"]),
    ("schedule", ["cosine", "cosine-prestep", "steps", "warmup-steps", "constant"], ["linear"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inside", "outside"), BOUNDS)
def test_each_range_has_its_ends(name, inside, outside):
    for value in inside:
        dataclasses.replace(Settings(), **{name: value}).check()
    for value in outside:
        with pytest.raises(RunError, match=rf"{name.replace('_', '[-_]')}\b.*{value}"):
            dataclasses.replace(Settings(), **{name: value}).check()


def test_what_starts_from_weights_may_have_no_epoch():
    dataclasses.replace(Settings(), epochs=0).check(least_epochs=0)
    with pytest.raises(RunError, match=r"--epochs must be at least 0, got -1$"):
        dataclasses.replace(Settings(), epochs=-1).check(least_epochs=0)
    with pytest.raises(RunError, match=r"--batch-size must be at least 1, got 0$"):
        dataclasses.replace(Settings(), batch_size=0).check(least_epochs=0)


def test_what_decides_the_result_is_kept_in_config():
    """Not when it is saved; of a tail only where one is asked for, of weights only what is asked"""
    free = {"checkpoint_every", "keep_checkpoints", "eval_batch", "workers", "max_corrupt"}
    of_tail = {"eta", "strict"}
    of_weights = {"adapter", "adapter_size", "enlarged", "enlarged_eval", "ensemble"}
    plain = Settings(checkpoint_every=7, eta=3.0, strict=True)
    assert plain.decisive() == {
        name: value for name, value in PLAIN.items() if name not in free | of_tail | of_weights
    }
    stratified = dataclasses.replace(plain, sampling="stratified", enlarged=224, ensemble=True)
    more = {"sampling": "stratified", "eta": 3.0, "strict": True, "enlarged": 224, "ensemble": True}
    assert stratified.decisive() == plain.decisive() | more


def test_a_note_begins_with_nothing_and_counts_as_far_as_steps_are_counted():
    note = Note()
    assert {name for name, value in vars(note).items() if value != 0} == {"best", "best_val"}
    assert note.best is None and note.best_val is None
    whole = vars(note)
    for name in ("epoch", "calls", "rows", "skipped"):
        assert vars(Note.read({**whole, name: 2**63 - 1}))[name] == 2**63 - 1
        with pytest.raises(RunError, match=f"^{name} of its note is 9223372036854775808$"):
            Note.read({**whole, name: 2**63})
    with pytest.raises(RunError) as told:
        Note.read({"b": 1, "a": 2})
    names = sorted([*whole, "a", "b"])
    assert str(told.value) == f"its note has too much or too little: {', '.join(names)}"
