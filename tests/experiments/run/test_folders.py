"""What lies in a run folder, damaged in every way: named, left or refused, never believed."""

import contextlib
import copy
import errno
import functools
import json
import os
import random
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import analyse, cifar_lt, compare, digits_lt, evaluate, study, sweep
from experiments.anomaly import command as anomaly
from experiments.command import launch, presets
from experiments.command.seeds import groups
from experiments.data import save_npz
from experiments.host import folders, locks, outputs
from experiments.host.errors import RunError, Stopped
from experiments.host.progress import Progress
from experiments.host.stopping import StopNow
from experiments.run.checkpoints import Checkpoints
from experiments.run.parts import Parts
from experiments.run.settings import Note, Settings
from experiments.run.trainer import Trainer
from imbsam_jax.losses import cross_entropy
from tiny import tiny_dataset

pytestmark = [
    pytest.mark.allow_rank_promotion,  # Flax adds a bias[C] to a batch[B, C]
    pytest.mark.usefixtures("lean"),
]

CONFIG = {"experiment": "test", "seed": 0, "lr": 0.1}
# What no field of any file is.
BAD = [None, "x", "", -1, 10**400, 0.5, float("nan"), float("inf"), True, [], [[]], {}, {"a": [1]}]


def damages(raw):
    """A whole file of JSON, damaged: by what was done to it."""
    return {
        "empty": b"",
        "cut short": raw[: len(raw) // 2],
        "no JSON": b"epochs: 3\n",
        "not UTF-8": b'{"a": "\xff"}',
        "zeros": bytes(len(raw)),
        "a list": b"[]",
        "a number": b"NaN",
        "nothing": b"null",
        "text": b'"x"',
        "too deep": b"[" * 100000,
        "a number of 5000 digits": b'{"epochs": ' + b"9" * 5000 + b"}",
        "another object": b"{}",
    }


def changes(value):
    """(what was changed, the object) for each field: each bad value, missing; and unknown keys."""
    for name in value:
        for bad in BAD:
            if not folders._same(value[name], bad):
                yield f"{name} {bad!r:.20}", {**value, name: bad}
        yield f"{name} missing", {k: v for k, v in value.items() if k != name}
    yield "unknown key", {**value, "unknown": 1}


# ---- checkpoints -----------------------------------------------------------------------------


def state_of(step):
    return {"a": jnp.arange(1000.0) + step, "b": {"c": jnp.full((3, 4), 1.5 * step)}}


def note_of(step):
    return {"epoch": step // 5, "loss_sum": 12.3 * step}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    held = Checkpoints(path / "checkpoints", config=CONFIG)
    for step in (5, 10):
        held.save(step, state_of(step), note_of(step))
    held.close()
    return path


def newest(path):
    files = [p for p in sorted((path / "checkpoints" / "10").rglob("*")) if p.is_file()]
    return [file for file in files if file.stat().st_size]


def read(path, config=CONFIG, **options):
    """(step whose state and note were read, what was said); None if none could be."""
    said = []
    held = Checkpoints(path / "checkpoints", config=config, reading=True)
    try:
        found = held.restore(state_of(0), said.append, **options)
    finally:
        held.close()
    if found is None:
        return None, said
    state, note = found
    (step,) = [step for step in (5, 10) if note == note_of(step)]
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    return step, said


@pytest.mark.parametrize(
    "damage",
    ["flip", *(pytest.param(x, marks=pytest.mark.slow) for x in ("half", "empty", "gone"))],
)
def test_a_checkpoint_damaged_in_any_file_is_read_right_or_named(saved, tmp_path, damage):
    """Some of orbax's files serve nothing; whatever is read, is what was saved."""
    draw, steps = random.Random(damage), []
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for file in newest(tmp_path):
        raw = file.read_bytes()
        changed = bytearray(raw)
        changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes({"flip": changed, "half": raw[: len(raw) // 2], "empty": b""}[damage])
        step, said = read(tmp_path)
        steps.append(step)
        if step == 5:
            assert "checkpoint of step 10 is damaged" in said[0] and len(said) == 1
        else:
            assert said == []
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "5"]
        file.write_bytes(raw)
    assert steps.count(5) >= 4


def test_bytes_that_orbax_reads_without_a_murmur_are_noticed(saved, tmp_path):
    """The state of another run, whole and of the same shapes, in place of this one's."""
    other = Checkpoints(tmp_path / "other" / "checkpoints", config=CONFIG)
    other.save(10, state_of(11), note_of(10))
    other.close()
    shutil.copytree(saved, tmp_path / "run")
    mine = tmp_path / "run" / "checkpoints" / "10" / "state"
    shutil.rmtree(mine)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "10" / "state", mine)
    step, said = read(tmp_path / "run")
    assert step == 5 and "its bytes are not those that were saved" in said[0]


def _written(path, raw):
    path.write_bytes(raw)


OTHERS = {
    "emptied": lambda at: (shutil.rmtree(at / "10"), (at / "10").mkdir()),
    "a file": lambda at: (shutil.rmtree(at / "10"), (at / "10").write_text("x")),
    "no state": lambda at: shutil.rmtree(at / "10" / "state"),
    "no note": lambda at: shutil.rmtree(at / "10" / "note"),
    "renamed": lambda at: os.rename(at / "10", at / "60"),
    "copied": lambda at: shutil.copytree(at / "5", at / "60"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_that_is_not_whole_or_not_in_its_place_is_named(saved, tmp_path, what):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    OTHERS[what](tmp_path / "checkpoints")
    step, said = read(tmp_path)
    assert step == (10 if what == "copied" else 5)
    number = "60" if what in ("renamed", "copied") else "10"
    assert len(said) == 1 and f"checkpoint of step {number} is damaged" in said[0]


def test_a_note_damaged_in_any_field_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "checkpoints" / "10" / "note" / "metadata"
    raw = file.read_bytes()
    whole = json.loads(raw)
    assert whole.keys() == {"note", "config", "sha256"}
    note, cases = whole["note"], damages(raw)
    changed = [{**whole, name: "x"} for name in whole]
    changed += [{k: whole[k] for k in whole if k != name} for name in whole]
    changed += [whole | {"note": note | {name: 7}} for name in note]
    changed += [whole | {"config": CONFIG | {name: 7}} for name in CONFIG]
    cases |= {str(other): json.dumps(other).encode() for other in changed}
    held, said = Checkpoints(tmp_path / "checkpoints", config=CONFIG, reading=True), []
    told = {}
    for what, content in cases.items():
        file.write_bytes(content)
        assert held.read(10, state_of(0), said.append) is None, what
        damaged, _, rest = said.pop().partition(" (")
        told[what] = rest.partition("), in ")[0]
        assert damaged == "checkpoint of step 10 is damaged"
    held.close()
    for what in ("a list", "nothing", "text", "another object"):
        assert told[what] == "its note has no digest to verify it by", what
    for name in whole:
        without = {key: value for key, value in whole.items() if key != name}
        assert told[str(without)] == "its note has no digest to verify it by"
        said = told[str({**whole, name: "x"})]
        assert said.startswith("its bytes" if name == "sha256" else f"{name} of its note is")


def test_all_damaged_is_an_error_and_nothing_is_removed(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"none of the 2 checkpoints in .*can be read"):
        read(tmp_path, config={**CONFIG, "seed": 1})
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert read(tmp_path / "nowhere")[0] is None


def test_a_note_is_read_whatever_became_of_its_state(saved, tmp_path):
    """What a run was trained with is told by the newest note."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "checkpoints" / "10" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    held = Checkpoints(tmp_path / "checkpoints", reading=True)
    held.check_config(tmp_path / "config.json", CONFIG, pytest.fail)
    held.close()


def test_numbers_of_another_width_are_no_damage(saved, tmp_path):
    """The state of 64 bits read in 32, and the other way about, had bytes that nobody saved."""
    with jax.enable_x64(True):
        held = Checkpoints(tmp_path / "checkpoints", config=CONFIG)
        held.save(5, {"step": jnp.int64(5)}, note_of(5))
        held.close()
        with pytest.raises(RunError, match=r"was written without JAX_ENABLE_X64=1.*: unset it"):
            read(saved)
    held = Checkpoints(tmp_path / "checkpoints", config=CONFIG, reading=True)
    for read_it in (
        lambda: held.restore({"step": jnp.int32(0)}),
        lambda: held.check_config(tmp_path / "config.json", CONFIG),
    ):
        with pytest.raises(RunError, match=r"was written with JAX_ENABLE_X64=1.*: set it"):
            read_it()
    held.close()


def test_what_a_resumed_run_does_not_go_on_from_is_set_aside(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for _ in range(2):  # the second finds a place beside the first
        held = Checkpoints(tmp_path / "checkpoints", config=CONFIG)
        held.set_aside_after(5)
        assert held.steps() == [5]
        held.save(10, state_of(10), note_of(10))
        held.close()
    assert sorted(p.name for p in (tmp_path / "aside").iterdir()) == ["10", "10_"]
    assert read(tmp_path) == (10, [])


def test_a_first_checkpoint_that_cannot_be_read_back_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.run.checkpoints._sha256", lambda *_: os.urandom(8).hex())
    held = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(RunError, match=r"cannot be read back .*choose another --out"):
        held.save(5, state_of(5), note_of(5))
    held.close()


# ---- paths -----------------------------------------------------------------------------------

REFUSED = {
    "a[b]": "because of the \\[ and \\] in it",
    "a[": "because of the \\[ in it",
    "a*": "because of the \\* in it",
    "a?": "because of the \\? in it",
    "a\\b": r"because of the \\ in it",
    "in[side/run": "because of the \\[ in it",
    os.fsdecode(b"a\xff"): "is not UTF-8",
    "a\0b": "is not UTF-8",
    "x" * 300: "File name too long",
}


def test_the_first_checkpoint_alone_is_read_back(tmp_path, monkeypatch):
    """What is read each time is paid for each time."""
    read = []
    held = Checkpoints(tmp_path / "checkpoints")
    verified = held._verified

    def counted(step, *given):
        read.append(step)
        return verified(step, *given)

    monkeypatch.setattr(held, "_verified", counted)
    for step in (5, 10):
        held.save(step, state_of(step), note_of(step))
    held.close()
    assert read == [5]


@pytest.mark.parametrize("name", REFUSED)
def test_a_path_that_could_not_be_read_back_is_refused_at_the_start(tmp_path, name):
    """By whatever begins a run, and before anything is made."""
    out = tmp_path / name
    flags = ["--data", "not there.npz", "--out", str(out)]
    grid = [*flags, "--grid", "rho", "0.1", "--num-seeds", "1"]
    for call in (
        lambda: folders.RunFolder(out, CONFIG, resume=False),
        lambda: Checkpoints(out / "checkpoints"),
    ):
        with pytest.raises(RunError, match=REFUSED[name]):
            call()
    # What is no text the parser refuses.
    refusal = SystemExit if "UTF-8" in REFUSED[name] else RunError
    for call in (
        lambda: launch.begin(presets.parse(cifar_lt.arguments(), flags)),
        lambda: sweep.main(sweep.parse(["cifar_lt", *grid])),
    ):
        with pytest.raises(refusal, match="2" if refusal is SystemExit else REFUSED[name]):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a{b,c}", "~a", "a%20b", "a\nb", " a b ", "é", "a:b", "x" * 250])
def test_a_path_that_is_only_odd_works(tmp_path, name):
    held = Checkpoints(tmp_path / name / "checkpoints", config=CONFIG)  # reads back what it saves
    held.save(10, state_of(10), note_of(10))
    held.close()
    assert read(tmp_path / name) == (10, [])


def test_files_links_and_addresses_in_place_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("keep")
    (tmp_path / "dangling").symlink_to("nowhere")
    for out, message in (
        ("file", "is no folder"),
        ("file/run", "Not a directory"),
        ("dangling", "cannot write to dangling"),
        ("gs://bucket/run", "is a URL"),
        ("/proc/nothing/run", "cannot write to /proc/nothing/run"),
    ):
        path = folders.Path(out) if "://" not in out else out
        with pytest.raises(RunError, match=message):
            folders.RunFolder(path, CONFIG, resume=True)
    assert (tmp_path / "file").read_text() == "keep"
    (tmp_path / "real[1]").mkdir()
    (tmp_path / "link").symlink_to("real[1]")  # what the refusal of a bracket advises
    held = Checkpoints(folders.Path("link") / "checkpoints", config=CONFIG)
    held.save(10, state_of(10), note_of(10))
    held.close()
    assert read(tmp_path / "link") == (10, [])


# ---- one process a folder --------------------------------------------------------------------


def test_a_lock_is_not_taken_through_a_link_nor_waited_for(tmp_path):
    target = tmp_path / "thesis.txt"
    target.write_text("keep")
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    lock.symlink_to(target)
    with pytest.raises(RunError, match=r"\.lock is a symbolic link: remove it"):
        folders.RunFolder(lock.parent, CONFIG, resume=False)
    assert target.read_text() == "keep" and os.listdir(lock.parent) == [".lock"]
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(RunError, match=r"\.lock is no file"):
        folders.RunFolder(lock.parent, CONFIG, resume=False)
    lock.unlink()
    lock.mkdir()
    with pytest.raises(RunError, match=r"cannot write to .*Is a directory"):
        folders.RunFolder(lock.parent, CONFIG, resume=False)


def test_what_is_replaced_is_not_written_through_a_link(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep")
    for name in ("config.json.partial", "config.json"):
        (tmp_path / name).symlink_to("thesis.txt")
    outputs.write_json(tmp_path / "config.json", CONFIG)
    assert (tmp_path / "thesis.txt").read_text() == "keep"
    assert outputs.read_json(tmp_path / "config.json") == CONFIG


def started(entry, *words):
    return entry.main(entry.arguments().parse_args(list(words)))


WRITERS = {
    "digits_lt": lambda out, _: started(digits_lt, "--out", out, "--num-seeds", "1"),
    "sweep": lambda out, _: sweep.main(sweep.parse(["--out", out, "--num-seeds", "1"])),
    "anomaly": lambda out, _: started(anomaly, "--out", out),
    "compare": lambda out, _: started(compare, "--out", out),
    "study": lambda out, _: study.main(*study.divided(["sklearn:wine", "--out", out])),
    "analyse": lambda out, run: started(analyse, str(run), "--devices", "1", "--out", out),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_two_processes_write_one_folder(finished, tmp_path, name, monkeypatch):
    """Whoever holds it, the others are told before they train."""
    for module, work in ((compare, "_compare"), (study, "run"), (analyse, "measured")):
        monkeypatch.setattr(module, work, lambda *_, **__: pytest.fail("trained"))
    for module in (digits_lt, sweep, anomaly):
        monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(anomaly, "load_tables", lambda *_: [])
    monkeypatch.setattr(anomaly, "draw_cases", lambda *_, **__: [])
    with (
        locks.Lock(tmp_path / "out"),
        pytest.raises(RunError, match="in use by another process"),
    ):
        WRITERS[name](str(tmp_path / "out"), finished)
    assert os.listdir(tmp_path / "out") == [".lock"]
    # And what came to nothing leaves nothing.
    with pytest.raises(RunError), locks.Lock(tmp_path / "fresh"):
        raise RunError("refused")
    assert not (tmp_path / "fresh").exists()


# ---- metrics.jsonl ---------------------------------------------------------------------------


def line_of(epoch):
    return {
        "epoch": epoch, "step": 5 * epoch, "lr": 0.1, "train_loss": 1.5, "train_accuracy": 50.0,
        "seconds_train": 1.0, "skipped": 0, "test_loss": float("inf"), "test_few": None,
    }  # fmt: skip


def test_intact_lines_around_damaged_ones_are_kept(tmp_path):
    with contextlib.closing(folders.RunFolder(tmp_path, CONFIG, resume=False)) as folder:
        lines = [line_of(epoch) for epoch in (1, 2, 3)]
        for line in lines:
            folder.append_metrics(line)
        path = tmp_path / "metrics.jsonl"
        whole = path.read_bytes()
        assert folder.keep_metrics(3, pytest.fail) == lines
        good = whole.splitlines(True)
        bad = [text + b"\n" for text in damages(good[1].strip()).values()]
        for name in ("epoch", "step", "lr", "train_loss", "train_accuracy"):
            others = (x for x in (*BAD, 7) if not folders._same(x, lines[1][name]))
            bad += [json.dumps({**lines[1], name: x}).encode() + b"\n" for x in others if name]
        bad += [json.dumps({**lines[1], "test_all": x}).encode() + b"\n" for x in ("x", [], True)]
        for text in bad:
            if not text.strip():
                continue
            path.write_bytes(good[0] + text + good[2])
            said = []
            kept = folder.keep_metrics(3, said.append)
            by_epoch = {line["epoch"]: line for line in kept}
            assert by_epoch[1] == lines[0] and by_epoch[3] == lines[2], text
            if len(kept) == 2:
                assert said == [f"note: {path} is damaged in line 2: left out"]
            assert folder.keep_metrics(3, pytest.fail) == kept
        # A line cut short by a kill does not swallow the next one.
        path.write_bytes(good[0] + good[1][:20])
        folder.append_metrics(lines[2])
        assert [line["epoch"] for line in folder.keep_metrics(3, lambda _: None)] == [1, 3]
        path.write_bytes(whole)
        assert folder.keep_metrics(2) == lines[:2]


# ---- a run's files, through the commands -----------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    save_npz(tiny_dataset(), path)
    return str(path)


def train(data, out, *more):
    """Of three steps an epoch."""
    flags = ["--data", data, "--model", "mlp", "--batch-size", "26", "--eta", "10", "--epochs", "2"]
    flags += ["--checkpoint-every", "1", "--quiet", "--out", str(out), *more]
    cifar_lt.main(presets.parse(cifar_lt.arguments(), flags))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "in_full", dict)
        with jax.numpy_rank_promotion("allow"):
            train(data, out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def evaluated(data, path):
    evaluate.main(evaluate.arguments().parse_args([str(path), "--data", data]))


def opened(data, path):
    """What `evaluate` does first, and says then."""
    args = evaluate.arguments().parse_args([str(path), "--data", data])
    evaluate.open_run(path, args).checkpoints.close()


@pytest.mark.allow_rank_promotion
def test_evaluate_says_where_a_stopped_run_stands(data, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "in_full", lambda: {"deadline": 0.0})
    monkeypatch.setenv("COLUMNS", "20")  # of a terminal; a file is as wide as a table
    with pytest.raises(Stopped, match="at step 1, epoch 1"):
        train(data, tmp_path / "run")
    for path, at in ((tmp_path / "run", "in epoch 1, at step 1:"), (finished, "after epoch 2:")):
        evaluated(data, path)
        out = " ".join(capsys.readouterr().out.split())
        assert at in out and "as it is" in out


@pytest.mark.slow
@pytest.mark.allow_rank_promotion
def test_a_run_whose_output_has_gone_away_goes_on_from_there(data, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "in_full", dict)

    def gone(*_):
        raise StopNow(1)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="epoch 1: saved"):
        patch.setattr(Progress, "epoch_done", gone)
        train(data, tmp_path)
    train(data, tmp_path, "--resume")
    ends = [json.loads((path / "report.json").read_text()) for path in (tmp_path, finished)]
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"]
    assert ends[0]["best_epoch"] == ends[1]["best_epoch"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("entry", ["resume", "evaluate", "stage2"])
def test_a_damaged_config_is_named(finished, run, data, entry):
    path = run / "config.json"
    command = {
        "resume": lambda: train(data, run, "--resume"),
        "evaluate": lambda: evaluated(data, run),
        "stage2": lambda: train(data, run, "--resume", "--stage2", "tau-norm"),
    }[entry]
    for content in list(damages(path.read_bytes()).values())[:: 1 if entry == "evaluate" else 4]:
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"config\.json|other settings"):
            command()
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match=r"config\.json"):
        command()


def test_a_config_damaged_in_any_field_is_refused(finished, run, data):
    """To a resumed run, to `evaluate`, to who asks which seeds were together."""
    config = json.loads((finished / "config.json").read_text())
    args = presets.parse(
        cifar_lt.arguments(), ["--out", str(run.parent), "--resume", "--seeds", "0"]
    )
    os.rename(run, run.parent / "seed_0")
    path = run.parent / "seed_0" / "config.json"
    held = Checkpoints(path.parent / "checkpoints", reading=True)
    for what, changed in changes(config):
        if not folders.different(changed, config):
            continue  # None, where nothing stood
        path.write_text(json.dumps(changed))
        with pytest.raises(RunError, match="holds a run with other settings"):
            folders.RunFolder.check(path.parent, config, resume=True)
        with contextlib.suppress(RunError):
            groups(args, [0])
        if "'x'" in what or "missing" in what or "unknown" in what:
            with pytest.raises(RunError, match=r"config\.json is not as the run was trained"):
                held.check_config(path, outputs.read_object(path), pytest.fail)
    held.close()


def test_the_report_of_another_run_or_a_damaged_one_is_not_returned(finished, run, data):
    config = json.loads((run / "config.json").read_text())
    path = run / "report.json"
    raw = path.read_bytes()
    report = json.loads(raw)
    with contextlib.closing(folders.RunFolder(run, config, resume=True)) as folder:
        assert folder.finished(config) == report
        for what, content in damages(raw).items():
            path.write_bytes(content)
            with pytest.raises(RunError, match=r"report\.json"):
                folder.finished(config)
            assert path.read_bytes() == content, what
        shared = [name for name in config if name in report]
        assert len(shared) > 20
        for name in config:
            other = copy.deepcopy(report)
            (other if name in other else other["settings"])[name] = "another"
            path.write_text(json.dumps(other))
            with pytest.raises(RunError, match=rf"report.json is of a run .*{name} .*remove it"):
                folder.finished(config)
    with pytest.raises(RunError, match=r"report.json is of a run with other settings"):
        train(data, run, "--resume")
    path.unlink()
    train(data, run, "--resume")
    again = json.loads(path.read_text())
    assert again["params_sha256"] == report["params_sha256"] and again["all"] == report["all"]


# Files that are as the run's but in one thing that it was trained to see.
IMAGES = {
    "image_shape": ([8, 8, 3], [12, 12, 3], tiny_dataset(size=12)),
    "image_mean": ([0.5, 0.4, 0.5], [0.5] * 3, replace(tiny_dataset(), mean=(0.5,) * 3)),
    "image_std": ([0.25, 0.3, 0.25], [0.25] * 3, replace(tiny_dataset(), std=(0.25,) * 3)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_another_kind_are_refused(finished, tmp_path, name):
    """By `evaluate`, and by a run that is to be resumed."""
    known, given, dataset = IMAGES[name]
    path = str(tmp_path / "other.npz")
    save_npz(dataset, path)
    with pytest.raises(RunError) as error:
        evaluated(path, finished)
    assert f" {known}, and this data has {given}: give the data that" in str(error.value)
    with pytest.raises(RunError, match="holds a run with other settings") as error:
        train(path, finished, "--resume")
    assert f"({name} {known} -> {given}" in str(error.value)


def test_a_run_goes_on_by_the_numbers_that_it_was_begun_with(finished, data):
    """Its images are augmented by what JAX draws: of another generator they are others."""
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        with pytest.raises(RunError, match=r"other settings \(jax None -> \{'jax_default_prng_imp"):
            train(data, finished, "--resume")
    finally:
        jax.config.update("jax_default_prng_impl", before)


def others():
    """Data sets of the same counts, shapes and pixel statistics, with other images."""
    ours, rng = tiny_dataset(), np.random.default_rng(3)
    train, labels = ours.train_images, ours.train_labels
    noise = rng.integers(0, 256, train.shape, dtype=np.uint8)
    return {
        "another order": ("train", replace(ours, train_images=train[::-1].copy(),
                                           train_labels=labels[::-1].copy())),
        "other pixels": ("train", replace(ours, train_images=noise)),
        "other test labels": (
            "test", replace(ours, test_labels=(ours.test_labels + 1) % ours.num_classes),
        ),
        "tested on what it learns": ("test", replace(ours, test_images=train, test_labels=labels)),
    }  # fmt: skip


@pytest.mark.parametrize("what", others())
def test_other_images_of_the_same_counts_are_noticed(finished, tmp_path, capsys, what):
    """Told by `evaluate`; a run that is to be resumed, finished or not, is another one."""
    part, dataset = others()[what]
    path = str(tmp_path / "other.npz")
    save_npz(dataset, path)
    opened(path, finished)
    assert f"note: the {part} images are others than the run's" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"holds a run with other settings \(rows_sha256 "):
        train(path, finished, "--resume")
    again = "images are among the training images, pixel by pixel"
    assert (again in capsys.readouterr().err) == (what == "tested on what it learns")


def test_images_of_another_source_are_noted(finished, data, tmp_path, capsys):
    """By `evaluate`, which cannot know whether they are the same."""
    path = str(tmp_path / "other.npz")
    save_npz(replace(tiny_dataset(), source="a copy"), path)
    evaluated(path, finished)
    said = f"note: this data is: a copy\nthe run's was: {tiny_dataset().source}\n"
    assert said in capsys.readouterr().out
    evaluated(data, finished)
    said = capsys.readouterr().out
    assert "note: this data" not in said and "images are others" not in said


@pytest.mark.slow
def test_a_run_begun_before_its_images_were_recorded_goes_on(run, finished, data, capsys):
    for name in ("config.json", "report.json"):
        whole = json.loads((run / name).read_text())
        known = {*IMAGES, "rows_sha256"}  # texts are of other runs
        assert known == folders.SINCE & whole.keys() == folders.SINCE - {"texts_sha256"}
        less = {key: value for key, value in whole.items() if key not in folders.SINCE}
        (run / name).write_text(json.dumps(less))
    saved_again(run, {3: {}, 6: {}})
    evaluated(data, run)
    train(data, run, "--resume")
    assert json.loads((run / "report.json").read_text()) == less  # it was finished
    (run / "report.json").unlink()
    shutil.rmtree(run / "checkpoints" / "6")
    train(data, run, "--resume")
    said = capsys.readouterr()
    assert "damaged" not in said.out + said.err
    for name in ("config.json", "report.json"):
        found, whole = (json.loads((path / name).read_text()) for path in (run, finished))
        assert all(found[key] == whole[key] == IMAGES[key][0] for key in IMAGES)
    assert found["params_sha256"] == whole["params_sha256"]
    evaluated(data, run)


@functools.cache
def like():
    settings = Settings(epochs=2, batch_size=26)
    return Parts(tiny_dataset(), "mlp", cross_entropy, settings).initial


def saved_again(run, notes):
    """The checkpoints of these steps, with its config.json and with their notes changed so."""
    config = json.loads((run / "config.json").read_text())
    old = Checkpoints(run / "checkpoints", reading=True)
    found = {step: old.read(step, like()) for step in notes}
    old.close()
    for step in notes:
        shutil.rmtree(run / "checkpoints" / str(step))
    new = Checkpoints(run / "checkpoints", config=config)
    for step, (state, note) in found.items():
        new.save(step, state, note | notes[step])
    new.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": 7}, {"epoch": 1}, {"calls": 2}, {"rows": "x"},
        # Which fields are refused alone, is quick where a note is read field by field.
        pytest.param({"epoch": -2}, marks=pytest.mark.slow),
        pytest.param({"odd": 1}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_note_that_contradicts_its_state_is_named(run, data, capsys, fields):
    (run / "report.json").unlink()
    saved_again(run, {6: fields})
    whole = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    if fields == {"epoch": 7}:
        evaluated(data, run)
        assert "checkpoint of step 6 is damaged (its note is of epoch 7" in capsys.readouterr().out
        assert {p.name for p in (run / "checkpoints").iterdir()} == {"3", "6"}
    trainer = _trainer_of(run, data)
    capsys.readouterr()
    trainer.begin(Progress(2, quiet=True))
    trainer.close()
    said = capsys.readouterr().err  # even of a quiet run
    assert re.search(r"checkpoint of step 6 is damaged \((its|\w+ of its) note ", said), said
    assert trainer.runs[0].note.epoch == 1 and whole["epoch"] == 2
    assert os.listdir(run / "aside") == ["6"]


def _trainer_of(run, data):
    """The trainer of a run as `fit` makes it, its folder opened."""
    opened = {}

    def stop(self, *_):
        opened["trainer"] = self
        raise RunError("opened")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        with pytest.raises(RunError, match="opened"):
            train(data, run, "--resume")
    return opened["trainer"]


def test_a_note_is_read_field_by_field():
    good = vars(Note(epoch=3, best={"all": 1.0}))
    assert Note.read(dict(good)) == Note(**good)
    for what, changed in changes(good):
        name = what.split()[0]
        value = changed.get(name)
        fits = {"best": isinstance(value, dict) or value is None}
        fits["best_val"] = fits["best"]
        if name in changed and (
            fits.get(name) or (isinstance(good.get(name), float) and value == 0.5)
        ):
            continue
        with pytest.raises(RunError, match="its note"):
            Note.read(changed)


def test_evaluate_of_a_folder_of_runs_says_which_to_name(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "seed_0")
    with pytest.raises(RunError, match=r"holds some: name one of .*runs/seed_0"):
        evaluated(data, tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "holds no config.json"),
        (tmp_path / "nothing", "it is not there"),
        (run / "report.json", "it is a file"),
    ):
        with pytest.raises(RunError, match=message):
            evaluated(data, path)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="holds no checkpoint"):
        evaluated(data, run)


def test_what_a_kill_left_before_the_first_checkpoint_blocks_nothing(tmp_path):
    """The lock alone, or half of a config.json."""
    (tmp_path / ".lock").touch()
    (tmp_path / "config.json.partial").write_text('{"se')
    folders.RunFolder(tmp_path, CONFIG, resume=True).close()
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]


def test_the_config_of_a_sweep_damaged_is_named(tmp_path):
    flags = ["cifar_lt", "--out", str(tmp_path), "--resume", "--val-per-class", "1"]
    path = tmp_path / "config.json"
    raw = json.dumps({"grid": None, "experiment": "cifar_lt"}).encode()
    for content in damages(raw).values():
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"config\.json|holds no sweep"):
            sweep.main(sweep.parse(flags))


@pytest.mark.parametrize("where", ["draw", "replace_text", "append_metrics"])
def test_a_full_disk_is_one_sentence_wherever_it_is_met(data, run, tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "draw":
        monkeypatch.setattr(launch, "in_full", lambda: {"draw": full})
    else:
        plain = open

        def opened(path, mode="r", *args, **options):
            name = os.path.basename(path) if isinstance(path, str | os.PathLike) else ""
            parts = {"replace_text": "per_class.csv.partial", "append_metrics": "metrics.jsonl"}
            return full() if name == parts[where] else plain(path, mode, *args, **options)

        monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(RunError, match=r"cannot write to .*: No space left on device; make room"):
        if where == "append_metrics":
            train(data, tmp_path / "new")
        else:  # what was trained already is drawn and told again
            (run / "report.json").unlink()
            train(data, run, "--resume")
