"""The sweep: its points are the runs of digits_lt alone; nothing is chosen on the test set."""

import argparse
import csv
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from experiments import digits_lt, sweep
from experiments.bench.tables import SPLITS, names
from experiments.command import image_sweep, launch
from experiments.command.seeds import seeds_of
from experiments.data import save_npz
from experiments.data.digits import load_digits_lt
from experiments.host import locks
from experiments.host.errors import Diverged, RunError
from experiments.run import compatible
from imbsam_jax import losses
from tiny import tiny_dataset

SMALL = ["--num-seeds", "2", "--epochs", "2", "--batch-size", "92"]


def test_validation_images_are_neither_trained_on_nor_tested_on():
    sizes = set()
    for seed in range(3):
        data = load_digits_lt(50, seed)
        seen = {image.tobytes() for image in (*data.train_images, *data.test_images)}
        assert not seen & {image.tobytes() for image in data.val_images}
        sizes.add(tuple(np.bincount(data.val_labels)))
    assert sizes == {(4, *[40] * 9)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    grid = ["--grid", "eta", "20", "40", "--grid", "rho", "0.1", "0.4"]
    args = sweep.arguments().parse_args([*SMALL, *grid, "--out", str(out / "grid")])
    with pytest.MonkeyPatch.context() as patch:
        compiled = count_compilations(patch)
        sweep.main(args)
    return out, json.loads((out / "grid" / "summary.json").read_text()), compiled


def count_compilations(patch):
    from experiments.bench.training import Bench

    benches = []
    start = Bench.__init__

    def seen(self, *args):
        start(self, *args)
        benches.append(self)

    patch.setattr(Bench, "__init__", seen)
    return benches


@pytest.mark.allow_rank_promotion
def test_one_program_serves_every_point(swept):
    _, summary, (bench,) = swept
    assert len(summary) == 1 + 2 * 2
    assert len(bench.compiled) == 2  # SGD's and that of the grid


@pytest.mark.slow
@pytest.mark.allow_rank_promotion
def test_a_point_is_what_digits_lt_trains(swept, tmp_path):
    _, summary, _ = swept
    flags = ["--rule", "sgd", "imbsam", "--eta", "40", "--rho", "0.4"]
    flags += ["--out", str(tmp_path / "x")]
    digits_lt.main(digits_lt.arguments().parse_args([*SMALL, *flags]))
    rows = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert names(rows) == ["sgd", "imbsam"]
    sgd, imbsam = rows
    assert sgd["all"] != imbsam["all"]
    assert summary[-1]["point"] == {"eta": 40, "rho": 0.4}
    for split in SPLITS:
        # Rounding may move a prediction or two.
        assert summary[0][f"test_{split}"] == pytest.approx(sgd[split], abs=0.5)
        assert summary[-1][f"test_{split}"] == pytest.approx(imbsam[split], abs=0.5)
    for key, name in (("paired_all", "test_all_sgd"), ("paired_all_se", "test_all_sgd_se")):
        assert summary[-1][name] == pytest.approx(imbsam[key], abs=0.5)


@pytest.mark.allow_rank_promotion
def test_what_is_written(swept):
    out, summary, _ = swept
    assert (out / "grid" / "sweep.png").stat().st_size > 10000
    with open(out / "grid" / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["sgd"] + ["imbsam"] * 4
    assert float(rows[3]["test_few"]) == summary[3]["test_few"]
    assert "Chosen by validation" in (out / "grid" / "table.md").read_text()
    assert json.loads((out / "grid" / "config.json").read_text())["rule"] == "imbsam"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "rho", "a"], "--grid rho must be finite and at least 0, got a"),
        (["--grid", "rho"], "has no values"),
        (["--grid", "gamma", "1"], "gamma is no numeric flag of imbsam; it has eta, rho"),
        (["--grid", "lr", "1"], "lr is no numeric flag"),
        (["--grid", "rho", "1", "--grid", "rho", "2"], "is given twice"),
        (["--rho-schedule", "late"], "leave --rho-schedule out"),
        (["--rule", "gsa"], "--rule gsa takes neither eta nor rho, which have values of their own"),
        (["--grid", "eta", "0"], "leaves no tail class"),
        (["--grid", "rho", "0.1", "nan"], "--grid rho must be finite and at least 0, got nan"),
        (["--grid", "rho", "0.1", "--rho", "0.2"], "--rho beside --grid rho"),
    ],
)
def test_bad_grids_write_nothing(tmp_path, flags, message, capsys):
    with pytest.raises((RunError, SystemExit)) as refused:
        sweep.main(sweep.parse([*SMALL, *flags, "--out", str(tmp_path / "x")]))
    assert message in str(refused.value) + capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_grid_on_the_digits_asks_which_options_go_together(tmp_path, monkeypatch):
    """No flag of today's digits can be refused there, but the next one may."""
    asked = []

    def refuse(what):
        asked.append(what)
        raise RunError("they do not")

    monkeypatch.setattr(compatible, "check", refuse)
    with pytest.raises(RunError, match="they do not"):
        sweep.main(sweep.parse([*SMALL, "--rule", "sam", "--out", str(tmp_path / "x")]))
    assert [(one.rule, one.settings.epochs) for one in asked] == [("sam", 2)]
    assert asked[0].steps_per_epoch == 3 and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.allow_rank_promotion
@pytest.mark.parametrize(
    ("rule", "grid"),
    [
        ("sam", ["rho", "0", "0.9"]),
        ("focal_sam", ["strength", "0.2", "0.8"]),
        ("sse_sam", ["head-rho", "0", "0.2"]),
        ("reweighted_sam", ["tail-weight", "1", "3"]),
        ("gsa", ["gsa-scale", "0", "0.05"]),
    ],
)
def test_other_rules_and_flags_can_be_swept(tmp_path, rule, grid):
    flags = [*SMALL, "--epochs", "6", "--rule", rule, "--grid", *grid, "--out", str(tmp_path / "x")]
    sweep.main(sweep.arguments().parse_args(flags))
    _, first, second = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert first["val_all"] != second["val_all"]


def test_a_sweep_of_the_digits_goes_from_its_flags_to_a_table(tmp_path, monkeypatch, capsys):
    """Its folder is its own while it trains; an earlier table is there until it has trained."""
    done, out = [], tmp_path / "out"

    def step(module, name, answer=None):
        monkeypatch.setattr(module, name, lambda *given: done.append((name, *given)) or answer)

    def train(args, seeds, points):
        with pytest.raises(RunError, match="in use by another process"):
            locks.Lock(out)
        done.append(("train", args, seeds, points))
        return "tried"

    monkeypatch.setattr(sweep, "train", train)
    for module, name, answer in (
        (sweep.cli, "use_compilation_cache", None), (sweep.outputs, "clear_tables", None),
        (sweep.origin, "write_flags", None), (sweep, "summarise", "summary"),
        (sweep, "write_sweep", None), (sweep, "table", "the table"), (sweep, "verdict", "chosen"),
    ):  # fmt: skip
        step(module, name, answer)
    flags = ["--grid", "rho", "0.4", "0.1", "--grid", "eta", "20", "--num-seeds", "2"]
    args = sweep.parse([*flags, "--out", str(out)])
    sweep.main(args)
    grid = {"rho": [0.1, 0.4], "eta": [20.0]}
    points = [{"rho": 0.1, "eta": 20.0}, {"rho": 0.4, "eta": 20.0}]
    assert done == [
        ("use_compilation_cache",), ("train", args, [0, 1], points), ("clear_tables", out),
        ("write_flags", out, args), ("summarise", "tried", [0, 1]),
        ("write_sweep", out, "summary", grid, "imbsam"), ("table", "summary", grid),
        ("verdict", "summary"),
    ]  # fmt: skip
    assert capsys.readouterr().out == (
        f"the table\nchosen\n2 seeds; figure and tables are in {out}: sweep.png, sweep.csv, "
        "table.md\n"
    )
    locks.Lock(out).close()


def test_what_the_points_of_the_digits_train(monkeypatch):
    """One program for all, in which a point is its numbers; what is asked of a step is counted."""
    asked, benches = [], []

    class Made(sweep.Bench):
        def train(self, jobs, what=""):
            asked.extend(jobs)
            benches.append(self)
            return {job.name: Diverged("x") for job in jobs}

    monkeypatch.setattr(sweep, "Bench", Made)
    flags = ["--rule", "sse_sam", "--grid", "head-rho", "0.1", "0.4", "--drw-epoch", "1"]
    args = sweep.parse([*SMALL, *flags, "--switch-fraction", "0.5", "--mixup", "0.5", "--out", "x"])
    with pytest.raises(RunError, match="SGD, with which every point is compared: x"):
        sweep.train(args, [0, 1], sweep.points_of(sweep.grid_of(args)))
    first, second = np.asarray(benches[0].train_set.images)
    np.testing.assert_array_equal(second, load_digits_lt(args.imbalance_factor, 1).train_images)
    assert (first != second).any()
    sgd, one, other = asked
    assert [job.name for job in asked] == ["sgd", "head_rho 0.1", "head_rho 0.4"]
    assert sgd.numbers is None and one.method is other.method
    # Three steps of 92 rows an epoch: it switches, and weights are deferred, after one of two.
    assert [start for start, _ in one.method.stages()] == [0, 3]
    for job, rho in ((one, 0.1), (other, 0.4)):  # of head and tail, then of the tail alone
        first, second = (np.asarray(part.radii) for part in job.numbers)
        assert first.tolist() == pytest.approx([rho, 0.2]) and second.tolist() == [0.2]
    assert all(job.objective is sgd.objective and job.setup is sgd.setup for job in asked)
    assert sgd.objective.mixup == 0.5
    with pytest.raises(RunError, match="SGD, with which"):  # a grid may be a point
        sweep.train(args, [0], [{"head_rho": 0.3}])
    assert [job.name for job in asked[3:]] == ["sgd", "head_rho 0.3"]
    logits, labels = np.eye(10, dtype="f")[:9] * 2, np.arange(9)
    plain = losses.cross_entropy(logits, labels)
    for step, same in ((0, True), (2, True), (3, False)):
        assert (sgd.objective.loss(logits, labels, step) == plain).all() == same


# ---- of images -----------------------------------------------------------------------------------

POINTS = ("eta_5_rho_0.1", "eta_30_rho_0.1")


def image_flags(folder, *more):
    """A sweep of two points and two seeds that trains in a moment, into folder/out."""
    if not (folder / "tiny.npz").exists():
        save_npz(tiny_dataset(), folder / "tiny.npz")
    flags = ["--data", str(folder / "tiny.npz"), "--model", "mlp", "--epochs", "2", "--quiet"]
    flags += ["--batch-size", "16", "--lr", "0.1"]
    flags += ["--grid", "eta", "5", "30", "--grid", "rho", "0.1", "--val-per-class", "2"]
    asked = {"--num-seeds", "--seeds", "--seed"} & set(more)
    seeds = [] if asked else ["--num-seeds", "2"]
    return sweep.parse(["cifar_lt", *flags, *seeds, "--out", str(folder / "out"), *more])


def quick(patch):
    """Without the plots and the timing of each run, which take longer than the training."""
    patch.setattr("experiments.run.cost.lone_step", lambda *_: (1.0, 1.0))
    for name in ("per_class", "learning_curves"):
        patch.setattr(f"experiments.reports.plots.{name}", lambda *_: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        sweep.main(image_flags(folder))
    return folder, json.loads((folder / "out" / "summary.json").read_text())


def reports_of(out, name):
    return [json.loads((out / name / f"seed_{s}" / "report.json").read_text()) for s in (0, 1)]


@pytest.mark.slow
def test_an_image_sweeps_figures_are_those_of_its_run_folders(images):
    folder, summary = images
    assert [row["point"] for row in summary] == [{}, *({"eta": e, "rho": 0.1} for e in (5, 30))]
    sgd = reports_of(folder / "out", "sgd")
    assert [report["rule"] for report in sgd] == ["sgd"] * 2
    for name, row in zip(("sgd", *POINTS), summary, strict=True):
        found = reports_of(folder / "out", name)
        assert name == "sgd" or {r["rule_args"]["eta"] for r in found} == {row["point"]["eta"]}
        for split in SPLITS:
            differences = [a[split] - b[split] for a, b in zip(found, sgd, strict=True)]
            assert row[f"test_{split}"] == pytest.approx(np.mean([r[split] for r in found]))
            assert row[f"test_{split}_sgd"] == pytest.approx(np.mean(differences))
        val = []
        for seed in (0, 1):
            lines = (folder / "out" / name / f"seed_{seed}" / "metrics.jsonl").read_text()
            val.append(json.loads(lines.splitlines()[-1])["val_all"])
        assert row["val_all_by_seed"] == val and row["val_all"] == pytest.approx(np.mean(val))
        assert row["test_all_by_seed"] == [report["all"] for report in found]
    chosen = max(summary, key=lambda row: row["val_all"])  # of equal ones SGD, the first
    assert [row["best_val"] for row in summary] == [row is chosen for row in summary]
    assert (folder / "out" / "sweep.png").stat().st_size > 10000


@pytest.mark.slow
def test_a_resumed_image_sweep_trains_nothing_again(images, monkeypatch):
    folder, summary = images
    with pytest.raises(RunError, match="is not empty: go on with a sweep in it by --resume"):
        sweep.main(image_flags(folder))

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("experiments.run.trainer.Trainer.train", no_training)
    sweep.main(image_flags(folder, "--resume"))
    assert json.loads((folder / "out" / "summary.json").read_text()) == summary


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["--weight-decay", "0.1"], ["--rule", "reweighted_sam"], ["--lr", "0.2"]]
)
def test_a_sweep_that_is_refused_leaves_the_tables_of_the_one_that_is_there(images, more):
    out = images[0] / "out"
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    with pytest.raises(RunError, match="holds a run with other settings"):
        sweep.main(image_flags(images[0], "--resume", *more))
    after = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert after == before


@pytest.mark.slow
def test_an_image_sweep_that_was_stopped_goes_on_where_it_was(images, tmp_path, monkeypatch):
    """One whole run is missing, as after a stop between runs: it alone is trained."""
    folder, summary = images
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "out" / POINTS[1] / "seed_1")
    (tmp_path / "out" / "summary.json").unlink()
    trained, train = [], launch.train

    def seen(args, *rest):
        trained.append(args.out)
        return train(args, *rest)

    quick(monkeypatch)
    monkeypatch.setattr(launch, "train", seen)
    sweep.main(image_flags(tmp_path, "--resume"))
    again = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert again == summary and len(trained) == 3


def test_while_an_image_sweep_goes_on_its_folder_holds_no_table(tmp_path, monkeypatch):
    """That of before is of other flags than the config.json that stands beside it by then."""

    def train(args: argparse.Namespace, dataset, plan):
        raise RunError("stopped here")

    monkeypatch.setattr(launch, "train", train)
    out = tmp_path / "out"
    out.mkdir()
    old = {"experiment": "cifar_lt", "grid": []}
    (out / "config.json").write_text(json.dumps(old))
    (out / "summary.json").write_text("of before")
    with pytest.raises(RunError, match="stopped here"):
        sweep.main(image_flags(tmp_path, "--resume"))
    assert not (out / "summary.json").exists()
    assert json.loads((out / "config.json").read_text())["grid"]


def diverging(monkeypatch, *names):
    """The seeds of these points come to a loss that is not finite; the others are made up."""

    def train(args: argparse.Namespace, dataset, plan):
        name = args.out.rpartition("/")[2]
        if name in names:
            raise Diverged("the loss is nan at step 3")
        # Without a tail group, as where no class is that rare.
        figures = {
            "all": 50.0 + (0 if args.rule == "sgd" else args.eta),
            "many": 60.0,
            "medium": 40.0,
            "few": None,
        }
        line = {"epoch": args.epochs, **{f"val_{key}": value for key, value in figures.items()}}
        for seed in (0, 1):
            folder = Path(args.out) / f"seed_{seed}"
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return [{"seed": seed, **figures} for seed in (0, 1)]

    monkeypatch.setattr(launch, "train", train)


def test_a_diverged_point_is_told_and_never_chosen(tmp_path, monkeypatch, capsys):
    diverging(monkeypatch, POINTS[1])
    args = image_flags(tmp_path)
    args.quiet = False
    sweep.main(args)
    text = (tmp_path / "out" / "summary.json").read_text()
    sgd, good, bad = json.loads(text)
    assert "NaN" not in text and bad["diverged"] == "the loss is nan at step 3"
    assert bad["test_all"] is bad["val_all"] is bad["test_all_sgd"] is None
    assert good["best_val"] and good["best_test"] and not bad["best_val"]
    assert sgd["test_few"] is good["test_few"] is None
    shown = (tmp_path / "out" / "table.md").read_text()
    assert "| 30 | 0.1 | - | - | - | - | - | - | diverged |" in shown
    assert "Diverged, and not among the choices: eta 30, rho 0.1 (the loss is nan" in shown
    assert "Chosen by validation: eta 5, rho 0.1" in shown
    said = capsys.readouterr().out
    began, written, last = said.partition("| eta |")
    points = ("sgd", "eta 5, rho 0.1", "eta 30, rho 0.1")
    assert began.splitlines()[-4:] == [
        *(f"{k} of 3: {point}" for k, point in enumerate(points, start=1)),
        f"{points[-1]} diverged: the loss is nan at step 3",
    ]
    *text, last = (written + last).splitlines()
    assert text == [line for line in shown.splitlines() if line]
    out = tmp_path / "out"
    assert last == f"2 seeds; figure and tables are in {out}: sweep.png, sweep.csv, table.md"
    assert (tmp_path / "out" / "sweep.png").exists()


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [(["--seed", "3"], [3]), (["--seeds", "4", "2"], [4, 2]), (["--num-seeds", "2"], [0, 1])],
)
def test_every_seed_that_was_asked_for_is_trained(tmp_path, monkeypatch, flags, seeds):
    def seen(args, *_):
        raise Diverged(f"seeds {seeds_of(args)}")

    monkeypatch.setattr(launch, "train", seen)
    with pytest.raises(RunError) as ended:
        sweep.main(image_flags(tmp_path, *flags))
    assert f"every point is compared: seeds {seeds}" in str(ended.value)


def test_a_sweep_of_which_every_point_diverged_chooses_none(tmp_path, monkeypatch):
    diverging(monkeypatch, *POINTS)
    sweep.main(image_flags(tmp_path))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not any(row["best_val"] or row["best_test"] for row in summary)
    assert "none is chosen" in (tmp_path / "out" / "table.md").read_text()


def test_sgd_must_not_diverge(tmp_path, monkeypatch):
    diverging(monkeypatch, "sgd")
    with pytest.raises(RunError, match="SGD, with which every point is compared: the loss is nan"):
        sweep.main(image_flags(tmp_path))


@pytest.mark.parametrize("which", ["rho 0.4, eta 20", "sgd"])
def test_a_point_of_the_digits_that_diverges_keeps_its_place(monkeypatch, which):
    class Made(sweep.Bench):
        def train(self, jobs, what=""):
            curve = types.SimpleNamespace(
                splits={split: np.array([[0.0, 0], [5, 6], [1, 2]]) for split in SPLITS}
            )
            return {
                job.name: Diverged("too far") if job.name == which else (curve, job.name)
                for job in jobs
            }

        def validate(self, params, classifier):
            return {"of": params}

    monkeypatch.setattr(sweep, "Bench", Made)
    grid = ["--grid", "rho", "0.1", "0.4", "--grid", "eta", "20", "--out", "x"]
    args = sweep.parse([*SMALL, *grid])
    points = sweep.points_of(sweep.grid_of(args))
    if which == "sgd":
        with pytest.raises(RunError, match="SGD, with which every point is compared: too far"):
            sweep.train(args, [0, 1], points)
        return
    sgd, good, bad = sweep.train(args, [0, 1], points)
    assert [one.point for one in (sgd, good, bad)] == [{}, *points]
    assert [one.val for one in (sgd, good)] == [{"of": "sgd"}, {"of": "rho 0.1, eta 20"}]
    for split in SPLITS:
        assert sgd.test[split].tolist() == good.test[split].tolist() == [1, 2]
        assert np.isnan([bad.test[split], bad.val[split]]).all() and len(bad.test[split]) == 2
    assert (sgd.diverged, good.diverged, bad.diverged) == (None, None, "too far")


@pytest.mark.slow
def test_a_radius_that_ruins_training_leaves_the_others(tmp_path, monkeypatch):
    """By the trainer itself: a perturbation of 1e30 overflows, and again when it is resumed."""
    quick(monkeypatch)
    args = image_flags(tmp_path)
    args.eta, args.grid = 20.0, [["rho", "0.1", "1e30"]]
    sweep.main(args)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    sgd, good, bad = summary
    chosen = sgd if sgd["val_all"] >= good["val_all"] else good
    assert chosen["best_val"] and not bad["best_val"]
    assert "lower --lr or --rho" in bad["diverged"]
    args.resume = True
    sweep.main(args)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--val-per-class", "0"], "never on the test set, and none are held out: give --val-per"),
        (["--stage2", "crt"], "leave --stage2 out"),
        (["--preset", "weight-balancing", "--rule", "imbsam"], "write --stage2 alone"),
        (["--sampling", "stratified"], "--grid eta with --sampling stratified would change"),
        (["--rule", "sgd"], "--rule sgd has no grid"),
        (["--rule", "cc_sam"], "--rule cc_sam has no grid"),
        (["--rho-schedule", "late"], "leave --rho-schedule out"),
        (["--grid", "gamma", "1"], "gamma is no numeric flag of imbsam; it has eta, rho"),
        (["--grid", "lr", "1"], "lr is no numeric flag"),
        (["--grid", "tail-scale", "-1"], "tail_scale"),
        (["--num-seeds", "0"], "--num-seeds must be at least 1"),
        (["--process-id", "0"], "a sweep runs in one process"),
        (["--export", "x.npz"], "--export left out, which trains nothing"),
    ],
)
def test_bad_image_sweeps_write_nothing(tmp_path, flags, message, capsys):
    with pytest.raises((RunError, SystemExit)) as refused:
        sweep.main(image_flags(tmp_path, *flags))
    assert message in str(refused.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_a_sweep_is_gone_on_with(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(RunError, match="holds no sweep of cifar_lt"):
        sweep.main(image_flags(tmp_path, "--resume"))
    (tmp_path / "out" / "config.json").write_text(json.dumps({"experiment": "cifar_lt"}))
    with pytest.raises(RunError, match="holds no sweep of cifar_lt"):
        sweep.main(image_flags(tmp_path, "--resume"))


def test_a_sweep_that_was_killed_within_its_first_write_is_begun_again(tmp_path):
    (tmp_path / "out").mkdir()
    for name in (".lock", "config.json.partial"):
        (tmp_path / "out" / name).touch()
    args = image_flags(tmp_path, "--resume")
    assert image_sweep.checked(args) == tmp_path / "out"


def test_what_a_rules_parameter_is_made_of_can_be_swept_over_runs():
    """A run's method is its own; on the digits all points are one program."""
    flags = ["--rule", "sse_sam", "--grid", "switch-fraction", "0.5", "0.9", "--out", "x"]
    assert sweep.grid_of(sweep.parse(["cifar_lt", *flags])) == {"switch_fraction": [0.5, 0.9]}
    with pytest.raises(SystemExit):
        sweep.parse(flags)


def test_the_first_word_names_what_is_trained(capsys):
    assert sweep.parse(["--out", "x"]).experiment == "digits"
    assert sweep.parse(["digits", "--out", "x"]) == sweep.parse(["--out", "x"])
    args = sweep.parse(["cifar_lt", "--preset", "imbsam-release", "--out", "x"])
    assert (args.experiment, args.tail_scale) == ("cifar_lt", 2.0)
    assert sweep.grid_of(args) == sweep.GRIDS["cifar_lt"]
    with pytest.raises(SystemExit):
        sweep.parse(["--out", "x", "cifar_lt"])
    assert "cifar_lt must be the first word" in capsys.readouterr().err


@pytest.mark.slow  # tests/experiments/bench has what diverges
@pytest.mark.allow_rank_promotion
def test_what_diverges_on_the_digits_is_told_and_the_rest_goes_on(tmp_path, capsys):
    """A row of digits_lt and its second stage, and a point of a sweep."""
    flags = [*SMALL, "--num-seeds", "1", "--rule", "sgd", "imbsam", "--eta", "40", "--rho", "1e30"]
    flags += ["--stage2", "tau-norm", "--out", str(tmp_path / "rows")]
    digits_lt.main(digits_lt.arguments().parse_args(flags))
    shown = capsys.readouterr().out
    sgd, imbsam, second, lost = json.loads((tmp_path / "rows" / "summary.json").read_text())
    assert sgd["diverged"] is second["diverged"] is None and sgd["all"] > 0
    for row in (imbsam, lost):
        assert "the loss is not finite by epoch" in row["diverged"] and row["all"] is None
        assert row["paired_all"] is row["epoch_seconds"] is row["step_cost_ratio"] is None
    assert "imbsam diverged: imbsam, cross_entropy: the loss is not finite" in shown

    grid = ["--grid", "rho", "0.1", "1e30", "--eta", "40", "--out", str(tmp_path / "grid")]
    sweep.main(sweep.parse([*SMALL, "--num-seeds", "1", *grid]))
    rows = json.loads((tmp_path / "grid" / "summary.json").read_text())
    assert [row["diverged"] is None for row in rows] == [True, True, False]
    assert "1 seed; figure" in capsys.readouterr().out


def test_where_every_row_diverges_nothing_is_written(tmp_path):
    flags = [*SMALL, "--num-seeds", "1", "--rule", "sgd", "--lr", "1e30"]
    with pytest.raises(RunError, match="no row was trained to its end, and nothing was written"):
        digits_lt.main(digits_lt.arguments().parse_args([*flags, "--out", str(tmp_path / "x")]))
    assert not (tmp_path / "x").exists()
