"""Seeds trained in one program: each against its lone run; stops, resumes, what is refused."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from damage import Killed, Kills
from experiments import cifar_lt, imagenet_lt
from experiments.command import launch, presets
from experiments.command import seeds as command_seeds
from experiments.command.method_flags import build_method
from experiments.command.seeds import groups, seeds_of
from experiments.data import save_npz
from experiments.host.errors import RunError, Stopped
from experiments.models import MODELS
from experiments.run.compatible import Asked, check
from experiments.run.fit import fit, fit_together
from experiments.run.one import Run
from experiments.run.settings import Settings
from experiments.run.trainer import Trainer
from experiments.step.methods import Tabled
from imbsam_jax import rules
from imbsam_jax.losses import cross_entropy
from tiny import TinyNet, tiny_dataset

pytestmark = [
    pytest.mark.allow_rank_promotion,  # Flax adds a bias[C] to a batch[B, C]
    pytest.mark.usefixtures("lean"),
]

COUNTS = tiny_dataset().class_counts()
# Three steps an epoch, all of one size; of UNEVEN five, the last of 14 rows: a program of its own.
QUICK = Settings(epochs=2, batch_size=26, lr=0.05, eval_batch=55, checkpoint_every=1)
UNEVEN = dataclasses.replace(QUICK, batch_size=16)
IMBSAM = rules.imbsam(COUNTS, rho=0.1, eta=10)
ABOUT = {
    "experiment": "test",
    "rule": "imbsam",
    "rule_args": {},
    "loss": "cross_entropy",
    "imbalance_factor": 40 / 3,
}
SEEDS = (3, 0)


def drawn(folder, *_):
    """In place of the pictures."""
    (folder / "curves.png").touch()


# With the cost of a step, too.
IN_FULL = {"measure": True, "draw": drawn}


def together(out, rule=IMBSAM, settings=QUICK, model="mlp", seeds=SEEDS, **options):
    options = {"description": ABOUT, "quiet": True, **options}
    outs = {seed: out / f"seed_{seed}" for seed in seeds}
    dataset = options.pop("dataset", None) or tiny_dataset()
    return fit_together(dataset, model, rule, cross_entropy, settings, outs, **options)


def alone(out, seed, rule=IMBSAM, settings=QUICK, model="mlp", **options):
    settings = dataclasses.replace(settings, seed=seed)
    options = {"description": ABOUT, "quiet": True, **options}
    return fit(tiny_dataset(), model, rule, cross_entropy, settings, out, **options)


def lines(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def held(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def agree(mine, other):
    """Two folders' lines: losses to rounding, all that is counted exactly, times not."""
    assert len(lines(mine)) == len(lines(other)) > 0
    for found, expected in zip(lines(mine), lines(other), strict=True):
        assert found.keys() == expected.keys()
        for name in ("train_loss", "test_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4)
        for name in ("epoch", "step", "lr", "train_accuracy", "test_all", "test_few", "skipped"):
            assert found[name] == expected[name]


# ---- the same as lone runs -------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both seeds that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    return out, together(out, **IN_FULL)


def test_every_seed_has_the_run_folder_and_the_numbers_of_its_lone_run(whole, tmp_path):
    out, reports = whole
    for number, (seed, report) in enumerate(zip(SEEDS, reports, strict=True)):
        mine, other = out / f"seed_{seed}", tmp_path / f"seed_{seed}"
        # What a step costs is measured once for all, and every picture drawn by one function.
        expected = alone(other, seed, **({} if number else IN_FULL))
        agree(mine, other)
        pictures = {"curves.png"} if number else set()
        assert {p.name for p in mine.iterdir()} - pictures == {p.name for p in other.iterdir()}
        assert (mine / "curves.png").exists()
        assert held(mine) == held(other) == [3, 6]
        assert (mine / "per_class.csv").read_text() == (other / "per_class.csv").read_text()
        assert json.loads((mine / "report.json").read_text()) == report
        config, lone = (json.loads((x / "config.json").read_text()) for x in (mine, other))
        # A lone run's config.json is as it always was; the other's says what differs.
        assert config == {**lone, "together": list(SEEDS)}
        assert report.keys() == {*expected, "together"}
        assert report["seed"] == seed and report["together"] == list(SEEDS)
        if not number:
            assert report["flops_per_step"] == expected["flops_per_step"]
        for name in ("all", "many", "few", "best_epoch", "best_epoch_flip", "train_examples"):
            assert report[name] == pytest.approx(expected[name])
    first, second = reports
    assert first["seconds_train"] == second["seconds_train"]
    assert first["flops_per_step"] == second["flops_per_step"]
    assert first["params_sha256"] != second["params_sha256"]


@pytest.mark.parametrize(
    ("model", "rule", "change"),
    [
        pytest.param("tiny", "imbsam", {}, marks=pytest.mark.slow),
        pytest.param("mlp", "imbsam", {"steps_per_call": 3}, marks=pytest.mark.slow),
        pytest.param("tiny", "sse_sam", {"steps_per_call": 4}, marks=pytest.mark.slow),
        pytest.param("tiny", "cc_sam", {}, marks=pytest.mark.slow),
        pytest.param("tiny", "imbsam", {"mixup": 1.0, "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param(
            "mlp",
            "imbsam",
            {"examples": "independent", "sampling": "stratified", "eta": 10},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "tiny",
            "imbsam",
            {"examples": "split_norm", "sampling": "stratified", "eta": 10},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "tiny",
            "imbsam",
            {"examples": "shared_norm", "sampling": "stratified", "eta": 10},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_methods_and_settings_agree_with_lone_runs(model, rule, change, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TinyNet)
    options = {"rho": 0.1, "eta": 10, "epochs": 2, "switch_fraction": 0.7, "weight_decay": 5e-3}
    options |= {"head_rho": 0.05, "tail_rho": 0.1, "noise_ratio": 1e-3}
    method, _ = build_method(rule, COUNTS, options, steps_per_epoch=5)
    settings = dataclasses.replace(UNEVEN, **change)
    together(tmp_path / "both", method, settings, model)
    alone(tmp_path / "lone", 3, method, settings, model)
    agree(tmp_path / "both" / "seed_3", tmp_path / "lone")


ON_TWO_DEVICES = """
import dataclasses, json, os, signal, sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/experiments/run"]
import pytest
import test_together as t
from experiments.run import cost
from experiments.host.errors import Stopped

model, where, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
t.MODELS["tiny"] = t.TinyNet
seeds = (3, 0, 8, 5) if where == "in turn" else t.SEEDS
if where != "in turn":  # without what takes most of such a short run's time
    cost.lone_step = lambda *_: (1.0, 1.0)
accumulate = 2 if where == "in micro-batches" else 1
settings = dataclasses.replace(t.UNEVEN, devices=2, accumulate=accumulate)
if where == "over their own rows":
    settings = dataclasses.replace(
        settings, examples="independent" if model == "mlp" else "split_norm",
        sampling="stratified", eta=10,
    )
options = {"model": model, "settings": settings, "measure": True}
if where == "stopped":
    patch = pytest.MonkeyPatch()
    t.stop_at(patch, "_see", 8)
    with pytest.raises(Stopped, match="at step 9"):
        t.together(out / "both", **options, seeds=seeds)
    patch.undo()
found = t.together(out / "both", **options, seeds=seeds, resume=where == "stopped")
settings = dataclasses.replace(settings, devices=1)
lone = t.alone(out / "lone", 3, **{**options, "settings": settings})
print(json.dumps([found, lone]))
t.agree(out / "both" / "seed_3", out / "lone")
"""


@pytest.mark.parametrize(
    ("model", "where"),
    [
        pytest.param("mlp", "side by side", marks=pytest.mark.slow),
        pytest.param("tiny", "stopped", marks=pytest.mark.slow),
        pytest.param("tiny", "in micro-batches", marks=pytest.mark.slow),
        pytest.param("mlp", "over their own rows", marks=pytest.mark.slow),
        pytest.param("tiny", "over their own rows", marks=pytest.mark.slow),
        pytest.param("resnet8", "in turn", marks=pytest.mark.slow),
    ],
)
def test_seeds_on_devices_of_their_own(model, where, tmp_path, run_python):
    """Each has a whole device: alone on it, a lone run's very numbers (split_norm: to rounding)."""
    args = ["-c", ON_TWO_DEVICES, model, where, tmp_path]
    found, lone = json.loads(run_python(args, devices=2).stdout.splitlines()[-1])
    assert found[0]["seed"] == 3 and found[0]["settings"]["devices"] == 2
    assert found[0]["flops_per_step"] == lone["flops_per_step"]  # of one device, one seed
    if where != "in turn" and (model, where) != ("tiny", "over their own rows"):
        assert found[0]["params_sha256"] == lone["params_sha256"]
    assert len({report["params_sha256"] for report in found}) == len(found)


# ---- stopping and going on -------------------------------------------------------------------


def stop_at(monkeypatch, where, when):
    """A SIGTERM to this process as a method of the trainer is called for the when-th time."""
    plain, calls = getattr(Trainer, where), []

    def cut(self, *args):
        calls.append(args)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)

    monkeypatch.setattr(Trainer, where, cut)


def end_alike(out, whole):
    """The runs in `out` ended bitwise where those of `whole` did, each line written once."""
    before, _ = whole
    for seed in SEEDS:
        folders = out / f"seed_{seed}", before / f"seed_{seed}"
        reports = [json.loads((x / "report.json").read_text()) for x in folders]
        for name in ("params_sha256", "all", "few", "best_epoch", "best_epoch_flip"):
            assert reports[0][name] == reports[1][name]
        losses = [[x["train_loss"] for x in lines(folder)] for folder in folders]
        assert losses[0] == losses[1]
        assert [x["epoch"] for x in lines(folders[0])] == [1, 2]


@pytest.mark.parametrize(
    ("where", "when", "step"),
    [
        # Within the second epoch, and answered after the call that is under way.
        pytest.param("_see", 4, 5, marks=pytest.mark.slow),
        pytest.param("_close_epoch", 1, 3, marks=pytest.mark.slow),  # before any is evaluated
        pytest.param("_close_training", 1, 6, marks=pytest.mark.slow),
    ],
)
def test_stopped_runs_end_bitwise_where_unstopped_ones_do(
    where, when, step, whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, where, when)
        with pytest.raises(Stopped, match=f"at step {step}.*--resume") as stopped:
            together(tmp_path)
    assert stopped.value.exit_code == 143
    assert [held(tmp_path / f"seed_{seed}")[-1] for seed in SEEDS] == [step, step]
    together(tmp_path, resume=True)
    end_alike(tmp_path, whole)


@pytest.mark.slow
def test_a_stop_between_two_evaluations_closes_the_epoch_for_none(whole, tmp_path, monkeypatch):
    """The first seed's epoch is evaluated and written, the second's is not: both are left open."""
    plain = Run.close_epoch

    def close_epoch(self, *args):
        if self.settings.seed == SEEDS[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "close_epoch", close_epoch)
        with pytest.raises(Stopped, match="at step 3, epoch 1:"):
            together(tmp_path)
    assert len(lines(tmp_path / "seed_3")) == 1
    together(tmp_path, resume=True)
    end_alike(tmp_path, whole)


@pytest.mark.slow  # the kill before the first saves is quick
def test_after_a_kill_between_two_saves_the_newest_common_step_is_taken(whole, tmp_path, capsys):
    """As if killed once the first seed had saved step 6 and the second had not."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    for seed in SEEDS:
        (tmp_path / f"seed_{seed}" / "report.json").unlink()
    late = tmp_path / "seed_0" / "checkpoints" / "6"
    shutil.rmtree(late)
    together(tmp_path, resume=True, quiet=False)
    said = capsys.readouterr().out
    assert said.count("after epoch 1, call 0") == 2
    assert [held(tmp_path / f"seed_{seed}") for seed in SEEDS] == [[3, 6], [3, 6]]
    end_alike(tmp_path, whole)
    # Finished runs say the same again, and train nothing.
    before = (tmp_path / "seed_0" / "report.json").stat().st_mtime_ns
    assert together(tmp_path, resume=True)[1]["seed"] == 0
    assert (tmp_path / "seed_0" / "report.json").stat().st_mtime_ns == before
    # Without a common step nothing is guessed, and nothing removed.
    (tmp_path / "seed_3" / "report.json").unlink()
    shutil.rmtree(late)
    shutil.rmtree(tmp_path / "seed_3" / "checkpoints" / "3")
    with pytest.raises(RunError, match=r"no step .* in all folders .*--resume, or choose another"):
        together(tmp_path, resume=True)
    assert [held(tmp_path / f"seed_{seed}") for seed in SEEDS] == [[6], [3]]


def test_after_a_kill_between_the_first_saves_all_start_afresh(whole, tmp_path, capsys):
    """As if killed once the first seed had saved step 3, and the second nothing yet."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    for seed in SEEDS:
        (tmp_path / f"seed_{seed}" / "report.json").unlink()
    shutil.rmtree(tmp_path / "seed_3" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "seed_0" / "checkpoints")
    together(tmp_path, resume=True, quiet=False)
    said = capsys.readouterr().out
    assert "seed_0: all seeds start afresh" in said.replace("\n", "") and "resuming" not in said
    assert [held(tmp_path / f"seed_{seed}") for seed in SEEDS] == [[3, 6], [3, 6]]
    assert os.listdir(tmp_path / "seed_3" / "aside") == ["3"]  # nothing is removed
    end_alike(tmp_path, whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_one_seed_takes_all_back(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "seed_0" / "report.json").unlink()
    for file in (tmp_path / "seed_0" / "checkpoints" / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    together(tmp_path, resume=True, quiet=False)
    said = capsys.readouterr().out
    assert "checkpoint of step 6 is damaged" in said and said.count("after epoch 1") == 2
    end_alike(tmp_path, whole)


def test_a_deadline_stops_all(tmp_path):
    with pytest.raises(Stopped, match="at step 1,") as stopped:
        together(tmp_path, deadline=0.0)
    assert stopped.value.exit_code == 75
    assert [held(tmp_path / f"seed_{seed}") for seed in SEEDS] == [[1], [1]]


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "change", "message"),
    [
        ((4,), {}, r"one, \[4\]: use --seeds"),
        ((0, 1), {"parallel": "pmap"}, "--parallel jit"),
        ((0, 1), {"examples": "independent"}, "--sampling stratified"),
        ((0, 1), {"examples": "split_norm"}, "--sampling stratified"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(tmp_path, seeds, change, message):
    with pytest.raises(RunError, match=message):
        together(tmp_path / "runs", settings=dataclasses.replace(QUICK, **change), seeds=seeds)
    assert not (tmp_path / "runs").exists()


def test_devices_processes_and_streamed_images_are_refused():
    two = dataclasses.replace(QUICK, devices=2)
    asked = Asked(QUICK, Tabled(IMBSAM), together=[0, 1])
    with pytest.raises(RunError, match="3 seeds cannot be divided among 2: leave --devices out"):
        check(dataclasses.replace(asked, settings=two, together=[0, 1, 2]))
    check(dataclasses.replace(asked, settings=two, together=[0, 1, 2, 3]))
    with pytest.raises(RunError, match="streamed"):
        check(dataclasses.replace(asked, streamed=True))
    with pytest.raises(RunError, match="in one process"):
        check(dataclasses.replace(asked, processes=2))


def test_a_lone_run_and_one_together_are_not_one_another_resumed(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"together \[3, 0\] -> None"):
        fit(
            tiny_dataset(), "mlp", IMBSAM, cross_entropy, dataclasses.replace(QUICK, seed=3),
            tmp_path / "seed_3", description=ABOUT, quiet=True, resume=True,
        )  # fmt: skip
    with pytest.raises(RunError, match=r"together \[3, 0\] -> \[3, 0, 1\]"):
        together(tmp_path, seeds=(*SEEDS, 1), resume=True)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_seed(tmp_path):
    nan = rules.sgd(5)(None)._replace(base=np.full(5, np.nan))
    poisoned = rules.stagewise(rules.sgd(5), lambda step: nan, switch_step=4)
    with pytest.raises(RunError, match=r"seed 3: the loss is nan at step 5 .*checkpoint is step 3"):
        together(tmp_path, poisoned)


# ---- the command -----------------------------------------------------------------------------


def grouped(monkeypatch, out, flags, cores=2):
    """[(seeds, devices, together)] of a command line on so many cores."""
    monkeypatch.setattr(command_seeds, "cores", lambda: cores)
    monkeypatch.setattr(jax, "device_count", lambda: cores)  # JAX runs already, on one
    args = cifar_lt.arguments().parse_args([*flags, "--out", str(out), "--quiet"])
    args.preset = None
    launch.begin(args)
    return [tuple(group) for group in groups(args, seeds_of(args))]


@pytest.mark.parametrize(
    ("flags", "cores", "expected"),
    [
        (["--seeds", "4", "0"], 2, [([4, 0], 2, True)]),
        (["--num-seeds", "4"], 2, [([0, 1, 2, 3], 2, True)]),
        # Two would wait for the third, and each alone has both cores.
        (["--num-seeds", "3"], 2, [([0], 2, False), ([1], 2, False), ([2], 2, False)]),
        (["--num-seeds", "2"], 4, [([0], 4, False), ([1], 4, False)]),
        (["--num-seeds", "2", "--model", "mlp"], 4, [([0, 1], 2, True)]),
        (["--num-seeds", "2"], 1, [([0], 1, False), ([1], 1, False)]),
        (["--num-seeds", "2", "--no-together"], 2, [([0], 2, False), ([1], 2, False)]),
        (["--num-seeds", "2", "--devices", "2"], 2, [([0], 2, False), ([1], 2, False)]),
        (["--num-seeds", "2", "--devices", "1", "--together"], 2, [([0, 1], 1, True)]),
        (["--num-seeds", "3", "--together"], 2, [([0, 1, 2], 1, True)]),
        (["--num-seeds", "4", "--together"], 2, [([0, 1, 2, 3], 2, True)]),
        (["--num-seeds", "2", "--parallel", "pmap"], 2, [([0], 2, False), ([1], 2, False)]),
        (["--num-seeds", "2", "--batch-size", "63"], 2, [([0, 1], 2, True)]),
        (["--num-seeds", "2", "--examples", "independent"], 2, [([0], 1, False), ([1], 1, False)]),
        ([], 2, [([0], 2, False)]),
    ],
    ids=str,
)  # fmt: skip
def test_seeds_are_together_where_that_was_faster(flags, cores, expected, tmp_path, monkeypatch):
    assert grouped(monkeypatch, tmp_path, flags, cores) == expected


def test_on_processes_that_met_every_seed_is_a_lone_run(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    found = grouped(monkeypatch, tmp_path, ["--num-seeds", "2", "--model", "mlp"])
    assert found == [([0], 1, False), ([1], 1, False)]


def test_resumed_seeds_stay_as_they_were_begun(tmp_path, monkeypatch):
    def begun(seed, devices, **config):
        folder = tmp_path / f"seed_{seed}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"devices": devices, **config}))

    begun(3, 1, together=[3, 0])
    begun(0, 1, together=[3, 0])
    begun(7, 2)
    begun(8, 2, together=[8, 9])  # killed before 9 had its folder
    both = ["--resume", "--seeds", "0", "3"]
    assert grouped(monkeypatch, tmp_path, both) == [([3, 0], 1, True)]
    assert grouped(monkeypatch, tmp_path, [*both, "--together"]) == [([3, 0], 1, True)]
    assert grouped(monkeypatch, tmp_path, [*both, "--devices", "2"]) == [([3, 0], 2, True)]
    alone = [([0], 2, False), ([3], 2, False)]
    assert grouped(monkeypatch, tmp_path, [*both, "--no-together"]) == alone
    more = grouped(monkeypatch, tmp_path, [*both, "7", "5", "9", "8", "6"])
    assert more == [([3, 0], 1, True), ([7], 2, False), ([8, 9], 2, True), ([5, 6], 2, True)]
    with pytest.raises(RunError, match=r"seed_3 was trained together .* --seeds 3 0,"):
        grouped(monkeypatch, tmp_path, ["--resume", "--seeds", "3"])


def test_streamed_images_have_one_seed_after_the_other():
    assert imagenet_lt.arguments().parse_args([]).together is False


def test_nothing_is_written_where_one_folder_is_refused(tmp_path):
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "config.json").write_text("{}")
    for resume, message in ((True, "seed_0 holds a run with other"), (False, "already holds")):
        with pytest.raises(RunError, match=message):
            together(tmp_path, resume=resume)
        assert not (tmp_path / "seed_3").exists()


@pytest.mark.slow
def test_more_seeds_are_added_to_those_that_were_together(tmp_path, run_python):
    data, out = tmp_path / "tiny.npz", tmp_path / "runs"
    save_npz(tiny_dataset(), data)
    flags = ["--data", data, "--model", "mlp", "--batch-size", 16, "--eta", 10, "--epochs", 2]
    command = ["-m", "experiments.cifar_lt", *map(str, flags), "--out", str(out), "--seeds"]
    run_python([*command, "0", "1"], devices=2)
    before = (out / "seed_0" / "report.json").read_bytes()
    said = run_python([*command, "1", "0", "5", "--resume"], devices=2).stdout
    assert "seeds 0, 1, 5" in said.replace("\n", " ")
    reports = {s: json.loads((out / f"seed_{s}" / "report.json").read_text()) for s in (0, 1, 5)}
    assert {s: report.get("together") for s, report in reports.items()} == {
        0: [0, 1], 1: [0, 1], 5: None,
    }  # fmt: skip
    assert (out / "seed_0" / "report.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--together", "--no-together"])
def test_seeds_killed_at_any_write_end_as_without(way, tmp_path, monkeypatch):
    """Of two seeds, in one program or one after the other; a simulated kill, at the write."""
    data = tmp_path / "tiny.npz"
    save_npz(tiny_dataset(), data)
    flags = ["--data", str(data), "--model", "mlp", "--batch-size", "16", "--eta", "10"]
    flags += ["--epochs", "2", "--checkpoint-every", "1", "--devices", "1", "--seeds", "0", "3"]
    kills = Kills(monkeypatch)

    def start(out, killed_at=None):
        kills.at(killed_at)
        words = [*flags, way, "--resume", "--quiet", "--out", str(out)]
        cifar_lt.main(presets.parse(cifar_lt.arguments(), words))
        return [
            json.loads((out / f"seed_{seed}" / "report.json").read_text())["params_sha256"]
            for seed in (0, 3)
        ]

    want = start(tmp_path / "whole")
    names = kills.names
    assert names.count("report.json") == names.count("config.json") == 2
    for write in range(len(names)):
        out = tmp_path / str(write)
        with pytest.raises(Killed):
            start(out, write)
        assert not all((out / f"seed_{seed}" / "report.json").exists() for seed in (0, 3))
        assert start(out) == want, names[write]


@pytest.mark.slow
def test_the_command_line_with_second_stages(tmp_path, run_python):
    data, out = tmp_path / "tiny.npz", tmp_path / "runs"
    save_npz(tiny_dataset(), data)
    flags = ["--data", data, "--model", "mlp", "--batch-size", "16", "--eta", "10", "--epochs", "2"]
    command = ["-m", "experiments.cifar_lt", *map(str, flags), "--stage2", "crt", "--out", str(out)]
    command += ["--quiet", "--together"]
    done = run_python([*command, "--seeds", "0", "4"])
    assert "imbsam" in done.stdout
    for seed in (0, 4):
        report = json.loads((out / f"seed_{seed}" / "report.json").read_text())
        assert report["together"] == [0, 4] and report["seed"] == seed
        assert "--together" in report["command"]
        second = json.loads((out / f"seed_{seed}" / "stage2_crt" / "report.json").read_text())
        assert second["stage2"] == "crt" and "together" not in second
    run_python([*command, "--seeds", "0", "4", "--resume"])
    run_python(["-m", "experiments.evaluate", str(out / "seed_4"), "--data", str(data)])
    shown = run_python(["-m", "experiments.report", str(out)]).stdout
    assert "imbsam" in shown
    refused = run_python([*command[:-3], str(tmp_path / "one"), *command[-2:]], expect=2)
    assert "--together needs --seeds or --num-seeds" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_by_default_every_core_has_seeds_and_second_stages_are_lone_runs(tmp_path, run_python):
    data, out, cores = tmp_path / "tiny.npz", tmp_path / "runs", min(command_seeds.cores(), 8)
    save_npz(tiny_dataset(), data)
    flags = ["--data", data, "--model", "mlp", "--batch-size", 16, "--eta", 10, "--epochs", 2]
    seeds = list(range(cores))
    if cores == 1:
        pytest.skip("one core")
    command = ["-m", "experiments.cifar_lt", *flags, "--stage2", "crt", "--stage2-epochs", 2]
    command = [*map(str, [*command, "--seeds", *seeds, "--out", out])]
    said = run_python(command, devices=None).stdout
    assert f"{cores} seeds together on {cores} devices" in said
    for seed in seeds:
        report = json.loads((out / f"seed_{seed}" / "report.json").read_text())
        assert report["together"] == seeds
        assert report["settings"]["devices"] == cores
        second = json.loads((out / f"seed_{seed}" / "stage2_crt" / "report.json").read_text())
        assert "together" not in second and second["settings"]["devices"] == 1
    run_python([*command, "--resume"], devices=None)


@pytest.mark.slow
def test_the_benchmark_writes_what_it_measured_and_no_path(tmp_path, run_python):
    data, out = tmp_path / "tiny.npz", tmp_path / "timed"
    save_npz(tiny_dataset(), data)
    flags = ["--data", data, "--seeds", "2", "--rounds", "3", "--batch-size", "16", "--eta", "10"]
    command = ["-m", "benchmarks.seeds_together", *map(str, flags), "--out", str(out)]
    run_python([*command, "--devices", "2"], devices=2)
    (row,) = json.loads((out / "seeds_together.json").read_text())["rows"]
    assert row["ratio"].keys() == {"one_device", "shared_batches"} and row["devices"] == 2
    shown = run_python(command).stdout
    text = (out / "seeds_together.json").read_text()
    assert str(tmp_path) not in text
    (row,) = json.loads(text)["rows"]
    assert row["rounds"] == 2 and row["seeds"] == 2 and row["steps_per_call"] == 1
    low, high = row["ratio_quartiles"]["one_device"]
    assert low <= row["ratio"]["one_device"] <= high
    assert f"{row['ms']['together']:.2f}" in shown
    refused = run_python([*command, "--rounds", "1"], expect=2)
    assert "--rounds must be at least 2" in refused.stderr.splitlines()[-1]
