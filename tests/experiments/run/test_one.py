"""One run by itself: what it counts, evaluates, keeps and reports, of steps that nobody makes"""

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.host.errors import Diverged, RunError
from experiments.run import one
from experiments.run.calls import Calls
from experiments.run.evaluation import Hits
from experiments.run.one import Run
from experiments.run.settings import Note, Settings

SETTINGS = Settings(epochs=4, batch_size=16, eval_every=2, max_corrupt=0.1, seed=3)
# 78 rows: four steps of 16 and one of 14, padded to a multiple of 8.
ORDER = SimpleNamespace(
    rows=78, rows_of=lambda step: 14 if step % 5 == 4 else 16, padded=lambda rows: -(-rows // 8) * 8
)
CALLS = Calls(epochs=4, steps_per_epoch=5, full_steps=4, steps_per_call=2, starts=[0])
STATE = SimpleNamespace(step=np.int32(10))


class Recorder:
    """Notes what is called of it, and with what."""

    def __init__(self, done, name, **given):
        self._done, self._name = done, name
        vars(self).update(given)

    def __getattr__(self, what):
        return lambda *args, **more: self._done.append(
            (f"{self._name}.{what}", *args, *more.items())
        )


class Evaluator:
    """Hits are (part, how); their accuracies by the list of each part, in turn."""

    def __init__(self, done, **levels):
        self._done, self._levels = done, {part: iter(found) for part, found in levels.items()}

    def hits(self, state, part, stop, **how):
        assert (state, stop) == ("state", "stop")
        self._done.append((part, how))
        loss = SimpleNamespace(part=part, how=how, loss=0.25)
        return loss

    def accuracies(self, hits):
        flag = "flip" if hits.how.get("flip") else hits.part
        level = next(self._levels[flag])
        return {"all": level, "few": None}


def made(done, settings=SETTINGS, held_out=False, name="", **levels):
    run = Run.__new__(Run)
    run.settings, run.order, run.name, run._calls, run.note = settings, ORDER, name, CALLS, Note()
    run.dataset = SimpleNamespace(
        val_labels=[] if held_out else None, many_above=15, few_below=6, test_labels=[0] * 55,
        class_counts=lambda: "counts", class_names="names",
    )  # fmt: skip
    run._evaluator, run._schedule = Evaluator(done, **levels), lambda step: 0.5 / (1 + step)
    run.folder = Recorder(done, "folder", path=SimpleNamespace())
    run.checkpoints = Recorder(done, "checkpoints")
    return run


# ---- what it sees -----------------------------------------------------------------------------


def seen(losses, accuracies, real):
    return SimpleNamespace(loss=np.float32(losses), accuracy=np.float32(accuracies), real=real)


def test_what_a_call_saw_is_summed_by_real_rows():
    """Two whole batches, of which the second lacks four; then the last, of 14 rows of 16."""
    run = made([])
    run.see(0, 2, seen([2.0, 3.0], [0.5, 0.25], [1.0, 12 / 16]))
    note = run.note
    assert (note.loss_sum, note.hit_sum) == (16 * 2 + 12 * 3, 16 * 0.5 + 12 * 0.25)
    assert (note.rows, note.skipped) == (28, 4)
    run.see(4, 1, seen([1.0], [1.0], [13 / 16]))
    assert (note.loss_sum, note.hit_sum, note.rows, note.skipped) == (81, 24, 41, 5)


@pytest.mark.parametrize(
    ("sampling", "of"),
    [("natural", "training images"), ("balanced", "draws"), ("stratified", "training images")],
)
def test_more_unreadable_rows_than_a_share_end_the_run(sampling, of):
    """A tenth of 78 is 7.8."""
    run = made([], dataclasses.replace(SETTINGS, sampling=sampling))
    run.see(0, 1, seen([2.0], [0.5], [9 / 16]))
    assert run.note.skipped == 7
    with pytest.raises(
        RunError, match=rf"^8 {of}.* of epoch 1 could .* --max-corrupt 0.1 of 78 al"
    ):
        run.see(1, 1, seen([2.0], [0.5], [15 / 16]))
    exact = made([], dataclasses.replace(SETTINGS, max_corrupt=8 / 78))
    exact.see(0, 1, seen([2.0], [0.5], [8 / 16]))


@pytest.mark.parametrize(
    ("last", "words"),
    [(None, "no checkpoint was saved yet"), (5, "the last good checkpoint is st")],
)
def test_the_first_loss_that_is_not_finite_is_named(last, words):
    run = made([], name="seed 3: ")
    run.note.epoch = 2
    run.checkpoints = SimpleNamespace(latest_step=lambda: last)
    with pytest.raises(Diverged) as told:
        run.see(11, 3, seen([1.0, np.inf, np.nan], [0, 0, 0], [1, 1, 1]))
    assert str(told.value).startswith(f"seed 3: the loss is inf at step 12 (epoch 3): {words}")
    assert str(told.value).endswith("; lower --lr or --rho") and run.note.rows == 0


# ---- where it begins --------------------------------------------------------------------------


def test_a_run_begins_from_its_checkpoint_or_from_the_first_step():
    done = []
    run, progress = made(done), Recorder(done, "progress", warn="warn")
    run.initial, run.folder.path = "initial", "here"
    assert run.begin(None, progress) == "initial" and run.note == Note() and run.step == 0
    assert done == [("checkpoints.set_aside_after", None), ("folder.keep_metrics", 0, "warn")]
    done.clear()
    note = dataclasses.asdict(Note(epoch=2, calls=1))
    assert run.begin((STATE, note), progress) is STATE
    assert run.note == Note(epoch=2, calls=1) and run.step == 12
    assert done == [
        ("checkpoints.set_aside_after", 10),
        ("progress.say", "resuming here after epoch 2, call 1"),
        ("folder.keep_metrics", 2, "warn"),
    ]


@pytest.mark.parametrize(
    ("epoch", "calls", "step", "fits"),
    [
        (0, 0, 0, True), (2, 0, 10, True), (2, 1, 12, True), (2, 3, 15, True), (3, 0, 15, True),
        (4, 0, 20, True), (2, 1, 11, False), (2, 4, 15, False), (4, 1, 20, False),
        (5, 0, 25, False), (5, 0, 20, False),
    ],
)  # fmt: skip
def test_a_note_fits_its_state_where_it_tells_that_step(epoch, calls, step, fits):
    """Of four epochs with three calls each; all calls of an epoch may be made, and it be open."""
    note = dataclasses.asdict(Note(epoch=epoch, calls=calls))
    found = made([]).contradiction(SimpleNamespace(step=np.int32(step)), note)
    words = f"its note is of epoch {epoch}, call {calls}, but its state of step {step}"
    assert found == (None if fits else words)
    assert "too much or too little" in made([]).contradiction(STATE, {})


# ---- its epochs -------------------------------------------------------------------------------


def close_epoch(run, done):
    done.clear()
    run.close_epoch("state", "stop", Recorder(done, "progress"))
    (line,) = [args[0] for name, *args in done if name == "folder.append_metrics"]
    assert ("progress.epoch_done", line, run.name) in done
    return line, [what for what in done if not what[0].startswith(("folder", "progress"))]


def test_lines_of_epochs_and_the_best_of_them():
    """Every second is evaluated, and the last; ties leave the first, None is under every other."""
    done = []
    levels = {"test": [None, 40.0, 40.0], "flip": [None, 50.0], "val": [7.0, 9.0, 8.0]}
    run = made(done, dataclasses.replace(SETTINGS, epochs=5), held_out=True, **levels)
    run.note = Note(loss_sum=39.0, hit_sum=19.5, rows=78, skipped=2, seconds_train=3.0,
                    seconds_waiting=1.5, calls=3)  # fmt: skip
    first, evaluated = close_epoch(run, done)
    assert first == {
        "epoch": 1, "step": 5, "lr": 0.1, "train_loss": 0.5, "train_accuracy": 25.0,
        "seconds_train": 3.0, "seconds_waiting": 1.5, "skipped": 2,
    }  # fmt: skip
    assert evaluated == [] and not hasattr(run, "hits")
    assert run.note == Note(epoch=1, seconds_train=3.0, seconds_waiting=1.5)

    second, evaluated = close_epoch(run, done)
    assert evaluated == [("test", {}), ("test", {"flip": True}), ("val", {})]
    # Of no row: all of them could not be read.
    assert {**second, "lr": None} == {
        "epoch": 2, "step": 10, "lr": None, "train_loss": 0, "train_accuracy": 0, "skipped": 0,
        "seconds_train": 3.0, "seconds_waiting": 1.5, "test_loss": 0.25, "test_all": None,
        "test_few": None, "val_all": 7.0, "val_few": None,
    }  # fmt: skip
    none = {"all": None, "few": None}
    assert run.note.best == {**none, "epoch": 2, "flip": none} and run.hits.part == "test"
    assert run.note.best_val == {**none, "epoch": 2, "val": {"all": 7.0, "few": None}}
    close_epoch(run, done)
    _, evaluated = close_epoch(run, done)
    assert evaluated == [("test", {}), ("test", {"flip": True}), ("val", {})]
    of_4 = {"all": 40.0, "few": None, "epoch": 4}
    assert run.note.best == {**of_4, "flip": {"all": 50.0, "few": None}}
    assert run.note.best_val == {**of_4, "val": {"all": 9.0, "few": None}}
    before = dataclasses.replace(run.note)
    last, evaluated = close_epoch(run, done)  # the fifth is odd, and the last
    assert evaluated == [("test", {}), ("val", {})] and last["test_all"] == 40.0
    assert (run.note.best, run.note.best_val) == (before.best, before.best_val)
    assert run.note.epoch == 5


def test_the_epoch_of_validation_is_chosen_by_held_out_images_alone():
    """In the second the test set is better and they are worse, in the third it is the reverse."""
    done, chosen = [], []
    levels = {"test": [50.0, 60.0, 40.0], "flip": [51.0, 61.0], "val": [7.0, 6.0, 8.0]}
    run = made(done, dataclasses.replace(SETTINGS, epochs=3, eval_every=1), True, **levels)
    for _ in range(3):
        close_epoch(run, done)
        chosen.append((run.note.best["epoch"], run.note.best_val["epoch"]))
    assert chosen == [(1, 1), (2, 1), (2, 3)]
    assert run.note.best_val["all"] == 40.0 and run.note.best_val["val"]["all"] == 8.0


def test_the_mean_of_one_row_is_that_row():
    done = []
    run = made(done)
    run.note = Note(loss_sum=0.5, hit_sum=1.0, rows=1)
    line, _ = close_epoch(run, done)
    assert (line["train_loss"], line["train_accuracy"]) == (0.5, 100)


def test_without_held_out_images_none_are_evaluated():
    done = []
    run = made(done, dataclasses.replace(SETTINGS, eval_every=1), test=[1.0], flip=[2.0])
    line, evaluated = close_epoch(run, done)
    assert evaluated == [("test", {}), ("test", {"flip": True})]
    assert run.note.best_val is None and not [name for name in line if name.startswith("val")]


@pytest.mark.parametrize(
    ("epochs", "held_out", "expected"), [(0, True, True), (0, False, False), (1, True, False)]
)
def test_what_no_step_changed_is_its_own_best_epoch(epochs, held_out, expected):
    settings = dataclasses.replace(SETTINGS, epochs=epochs)
    run = made([], settings, held_out, test=[8.0], val=[9.0])
    run.close_training("state", "stop")
    best = {"all": 8.0, "few": None, "epoch": 0, "val": {"all": 9.0, "few": None}}
    assert run.note.best_val == (best if expected else None)


# ---- what it writes ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, "params", "batch_stats", "extra"])
def test_only_finite_numbers_are_saved(where):
    done, parts = [], {"params": jnp.ones(3), "batch_stats": {}, "extra": {"x": jnp.ones(2)}}
    if where is not None:
        parts[where] = {"x": jnp.array([1.0, np.nan]), "y": jnp.ones(2)}
    run, state = made(done, name="seed 3: "), SimpleNamespace(**parts)
    run.note = Note(epoch=2, calls=1)
    if where is None:
        run.save(state)
        assert done == [("checkpoints.save", 12, state, dataclasses.asdict(run.note))]
        return
    run.checkpoints = SimpleNamespace(latest_step=lambda: 10)
    with pytest.raises(Diverged) as told:
        run.save(state)
    assert str(told.value) == (
        "seed 3: the parameters are not finite at step 12: not saved; the last good checkpoint is "
        "step 10; lower --lr or --rho"
    )


PARAMS = {"b": jnp.arange(3.0), "a": {"w": jnp.ones((2, 2))}}


def report(settings=SETTINGS, note=None, cost=(None, None, None), owned=True, draw=None, **levels):
    done = []
    run = made(done, settings)
    by_hits = {"last": 70.0, "flipped": 71.0, "crops": 72.0}
    run._evaluator = SimpleNamespace(accuracies=lambda hits: {"all": by_hits[hits.loss]})
    total = np.array([20, 33])
    run.hits = Hits(np.array([10, 30]), total, "last")
    run.flipped, run.ensembled = (Hits(None, total, name) for name in ("flipped", "crops"))
    run.note = note or Note(seconds_train=1.23456, seconds_waiting=0.98765, seconds_compile=7.7777)
    run.config = {"rule": "sgd", "dataset": "tiny", "model": "mlp", "lr": 0.01, "preset": None}
    run.folder = Recorder(done, "folder", owned=owned, path=owned)
    state = SimpleNamespace(
        params=PARAMS, frozen={"c": jnp.ones(5)}, variables=lambda: {"params": PARAMS, "more": 1}
    )
    return run.report(state, cost, 4.5, draw), done


@pytest.fixture
def written(monkeypatch):
    files = []
    monkeypatch.setattr(one.outputs, "write_json", lambda *what: files.append(what))
    return files


FOLDER = Path("run")


def test_a_report_of_one_run(monkeypatch):
    monkeypatch.setattr(one.origin, "command_line", lambda: "python -m x")
    monkeypatch.setattr(one.origin, "environment", lambda: {"git": "abc"})
    best = {"all": 75.0, "epoch": 3, "flip": {"all": 76.0}}
    note = Note(best=best, best_val={"all": 74.0, "epoch": 2}, seconds_train=1.23456,
                seconds_waiting=0.98765, seconds_compile=7.7777)  # fmt: skip
    found, done = report(note=note, cost=(30.0, 12.0, 1.23456), owned=False)
    assert done == []
    digest = hashlib.sha256(np.ones((2, 2), np.float32).tobytes())
    digest.update(np.arange(3, dtype=np.float32).tobytes())
    assert found == {
        "rule": "sgd", "dataset": "tiny", "model": "mlp", "preset": None, "epochs": 4,
        "batch_size": 16, "seed": 3, "all": 70.0, "last_epoch_flip": {"all": 71.0},
        "best_epoch": {"all": 75.0, "epoch": 3}, "best_epoch_flip": {"all": 76.0, "epoch": 3},
        "best_val_epoch": {"all": 74.0, "epoch": 2},
        "thresholds": {"many_above": 15, "few_below": 6}, "classifier": "linear", "mixup": 0.0,
        "examples": "dependent", "settings": dataclasses.asdict(SETTINGS), "train_examples": 78,
        "parameters": {"trained": 7, "frozen": 5}, "params_sha256": digest.hexdigest(),
        "skipped_test_images": 2, "seconds_train": 1.235, "seconds_waiting": 0.988,
        "seconds_compile": 7.778, "seconds_to_first_step": 4.5, "step_ms": 1.235,
        "flops_per_step": 30.0, "flops_ratio_to_sgd": 2.5, "command": "python -m x", "git": "abc",
    }  # fmt: skip


def test_a_report_without_an_epoch_and_a_cost():
    """What it ends with is its best, of epoch 0; by crops where that was asked for."""
    found, _ = report(dataclasses.replace(SETTINGS, ensemble=True), owned=False)
    assert found["best_epoch"] == {"all": 70.0, "epoch": 0}
    assert found["best_epoch_flip"] == {"all": 71.0, "epoch": 0}
    assert found["last_epoch_ensembled"] == {"all": 72.0} and found["best_val_epoch"] is None
    assert found["step_ms"] is found["flops_per_step"] is found["flops_ratio_to_sgd"] is None
    found, _ = report(owned=False, cost=(30.0, None, None))
    assert found["flops_per_step"] == 30 and found["flops_ratio_to_sgd"] is None


@pytest.mark.parametrize("drawn", [False, True])
def test_what_is_left_of_a_folder_is_written_and_the_report_last(written, drawn, monkeypatch):
    monkeypatch.setattr(one.outputs, "writing", contextlib.nullcontext)
    pictures = []

    def draw(*what):
        pictures.append((what, len(written)))

    found, done = report(owned=FOLDER, draw=draw if drawn else None)
    (name, counts, correct, total, names), kept = done
    assert (name, counts, names) == ("folder.write_per_class", "counts", "names")
    assert (correct.tolist(), total.tolist()) == ([10, 30], [20, 33])
    assert kept == ("folder.keep_metrics", 4) and written == [(FOLDER / "report.json", found)]
    if not drawn:
        assert pictures == []
        return
    (((path, title, _, counts, hits, shots), before),) = pictures
    assert (path, title, counts) == (FOLDER, "sgd on tiny, mlp", "counts") and before == 0
    assert hits.loss == "last" and shots == (15, 6)


def test_a_run_has_its_config_in_its_checkpoints(monkeypatch):
    made_of = []
    monkeypatch.setattr(one, "Checkpoints", lambda *what, **more: made_of.append((what, more)))
    run = Run.__new__(Run)
    run.settings = dataclasses.replace(SETTINGS, keep_checkpoints=7)
    run.open(SimpleNamespace(path=FOLDER), {"a": 1}, "quick")
    assert made_of == [((FOLDER / "checkpoints", 7), {"config": {"a": 1}})]
    assert run.config == {"a": 1, "preset": "quick"}
    done = []
    run.checkpoints = Recorder(done, "checkpoints")
    run.close()
    assert done == [("checkpoints.close",)]


def test_numbers_that_are_not_finite_are_found_wherever_they_are():
    assert one.all_finite(({}, jnp.ones(3), [jnp.zeros(2)]))
    for bad in (np.nan, np.inf, -np.inf):
        assert not one.all_finite((jnp.ones(3), jnp.array([1.0, bad])))
    assert one.count(PARAMS) == 7 and one.count({}) == 0


@pytest.mark.parametrize(
    ("one_all", "other", "over"),
    [(2.0, 1.0, True), (1.0, 1.0, False), (1.0, 2.0, False), (0.0, None, True),
     (None, 0.0, False), (None, None, False), (78.75, 78.74999237060547, False),
     (78.76, 78.75, True)],
)  # fmt: skip
def test_no_accuracy_is_under_every_other(one_all, other, over):
    assert one._over({"all": one_all}, {"all": other}) is over
