"""iNaturalist and ImageNet-LT by their command lines, presets, and at eight thousand classes."""

import csv
import json
import shutil
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_records
from experiments import analyse, evaluate, imagenet_lt, inaturalist, redraw
from experiments.command import presets
from experiments.command.plan import make_plan
from experiments.data import DataError, encoded, filled, image_sets
from experiments.data.image_sets import load_inaturalist
from experiments.host.errors import RunError
from experiments.host.stopping import StopRequest
from experiments.models.pretrained import save_weights
from experiments.reports import grouping, matching, plots
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from imbsam_jax.losses import cross_entropy

pytestmark = [
    pytest.mark.allow_rank_promotion,  # Flax adds a bias[C] to a batch[B, C]
    pytest.mark.usefixtures("lean"),
]

MODULES = {"inaturalist": inaturalist, "imagenet_lt": imagenet_lt}
SMALL = ["--image-size", "16", "--resize", "18", "--model", "mlp", "--devices", "1", "--quiet"]
SHORT = ["--epochs", "2", "--batch-size", "16", "--lr", "0.05", "--eta", "10"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: str(
            tiny_records.make(tmp_path_factory.mktemp(name), name, largest=30, smallest=2).folder
        )
        for name in ("i_naturalist2018", "imagenet_lt")
    }


def start(name, *flags):
    module = MODULES[name]
    module.main(presets.parse(module.arguments(), list(flags)))


def subjects(run, *flags):
    args = analyse.arguments().parse_args([str(run), *flags, "--out", "unused"])
    with StopRequest() as stop:
        return analyse._subjects(run, analyse._config(run), args, stop)


def accuracy(one):
    """Mean over classes, of the test images that an analysis has."""
    variables = jax.tree.map(lambda x: x[0], one.variables)
    labels = one.test.labels[0]
    right = np.asarray(one.apply(variables, one.test.images[0])).argmax(axis=1) == labels
    return 100 * np.mean([right[labels == c].mean() for c in np.unique(labels)])


@pytest.mark.slow  # what is analysed, the two tests after this one show
@pytest.mark.parametrize("name", ["inaturalist", "imagenet_lt"])
def test_runs_are_analysed_over_epochs_and_between_models(name, folders, tmp_path):
    kind = {"inaturalist": "i_naturalist2018", "imagenet_lt": "imagenet_lt"}[name]
    data = ["--data-dir", folders[kind]]
    for rule in ("sgd", "sam", "imbsam"):
        eta = [] if rule != "imbsam" else ["--eta", "10"]
        start(
            name, *data, *SMALL, *SHORT[:-2], *eta, "--checkpoint-every", "1", "--rule", rule,
            "--out", str(tmp_path / rule),
        )  # fmt: skip
    flags = ["--iterations", "2", "--probes", "2", "--directions", "2", "--steps", "1"]
    flags += ["--all-checkpoints", "--plane", "2", "--line", "3", "--out", str(tmp_path / "out")]
    runs = [str(tmp_path / rule) for rule in ("sgd", "sam", "imbsam")]
    analyse.main(analyse.arguments().parse_args([*runs, *data, *flags]))
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [(line["rule"], line["epoch"]) for line in found["lines"]] == [
        (rule, epoch) for rule in ("sgd", "sam", "imbsam") for epoch in (2, 1)
    ]
    assert set(found["between"]["barriers"]) == {
        "sam rho=0.05, cross_entropy",
        "imbsam rho=0.05, cross_entropy",
    }
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"groups.png", "epochs.png", "plane.png", "line.png"} <= made
    before = {name: (tmp_path / "out" / name).read_bytes() for name in made if name.endswith("png")}
    redraw.main(redraw.arguments().parse_args([str(tmp_path / "out")]))
    for name, drawn in before.items():
        assert (tmp_path / "out" / name).read_bytes() == drawn, name


@pytest.mark.slow  # its parts are quick: a run of ImageNet-LT below, weights in test_pretrained.py
def test_inaturalist_from_weights_to_a_second_stage_and_evaluation(folders, tmp_path, capsys):
    data = ["--data-dir", folders["i_naturalist2018"]]
    dataset = load_inaturalist(data[1], size=16, resize=18)
    given = Parts(dataset, "mlp", cross_entropy, Settings(seed=5)).initial.variables()
    save_weights(tmp_path / "given.msgpack", given)
    flags = [*data, *SMALL, *SHORT, "--init", str(tmp_path / "given.msgpack")]
    flags += ["--preset", "imbsam-paper", "--stage2", "tau-norm", "crt", "--stage2-epochs", "2"]
    start("inaturalist", *flags, "--out", str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "not published" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["experiment"], report["dataset"]) == ("inaturalist", "i_naturalist2018")
    assert report["init"].startswith("given.msgpack (SHA-256 ")
    assert report["init"].endswith("classifier included")
    assert report["rule_args"]["eta"] == 10 and report["image_size"] == 16
    for stage in ("stage2_tau-norm", "stage2_crt"):
        assert (tmp_path / "run" / stage / "report.json").exists()
    evaluate.main(evaluate.arguments().parse_args([str(tmp_path / "run"), *data]))
    assert f"{report['all']:.2f}" in capsys.readouterr().out
    (one,) = subjects(tmp_path / "run", *data)
    assert accuracy(one) == pytest.approx(report["all"], abs=1e-3)
    assert one.train.labels.shape[1] == report["train_examples"]
    assert one.own.radii.tolist() == [[pytest.approx(0.05)]]
    assert one.own.groups[0, 0].tolist() == (one.counts <= 10).tolist()
    (few,) = subjects(tmp_path / "run", *data, "--images-per-class", "2")
    assert np.bincount(few.train.labels[0]).tolist() == [2] * len(one.counts)
    with pytest.raises(RunError, match="other settings"):
        start("inaturalist", *flags, "--resume", "--jitter", "0.4", "--out", str(tmp_path / "run"))


def test_imagenet_lt_has_its_own_validation_set(folders, tmp_path):
    data = ["--data-dir", folders["imagenet_lt"], *SMALL, *SHORT, "--checkpoint-every", "1"]
    start("imagenet_lt", *data, "--rho", "0", "--out", str(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    last, first = subjects(tmp_path / "run", *data[:2], "--all-checkpoints")
    assert (last.epoch, first.epoch) == (2, 1)
    assert accuracy(last) == pytest.approx(report["all"], abs=1e-3)
    assert report["best_val_epoch"]["val"]["all"] is not None
    assert report["settings"]["jitter"] == 0.4
    with pytest.raises(RunError, match="leave --val-per-class out"):
        start("imagenet_lt", *data, "--val-per-class", "1", "--out", str(tmp_path / "held"))


# ---- presets: METHODS 3.4 and 3.5, written down apart from presets.py -------------------------

FIELDS = ("model", "epochs", "batch_size", "lr", "weight_decay", "schedule", "rule", "loss")
POST, PRE = "cosine", "cosine-prestep"
PUBLISHED = {
    ("imagenet_lt", "decoupling"): (
        "resnext50_32x4d", 90, 512, 0.2, 5e-4, PRE, "sgd", "cross_entropy",
    ),
    ("imagenet_lt", "saddle"): ("resnet50", 90, 256, 0.2, 2e-4, POST, "sam", "ldam"),
    ("imagenet_lt", "focal-sam-paper"): (
        "resnet50", 200, 256, 0.1, 5e-4, POST, "focal_sam", "logit_adjusted",
    ),
    ("inaturalist", "decoupling"): ("resnet50", 90, 512, 0.2, 1e-4, PRE, "sgd", "cross_entropy"),
    ("inaturalist", "saddle"): ("resnet50", 90, 256, 0.1, 2e-4, POST, "sam", "cross_entropy"),
    ("inaturalist", "saddle-ldam"): ("resnet50", 90, 256, 0.1, 1e-4, POST, "sam", "ldam"),
    ("inaturalist", "focal-sam-paper"): (
        "resnet50", 200, 512, 0.2, 2e-4, POST, "focal_sam", "logit_adjusted",
    ),
}  # fmt: skip
# What the paper prints itself; the rest of these two presets is marked as not published.
PAPER = {"imagenet_lt": ("resnext50_32x4d", 64), "inaturalist": ("resnet50", 512)}
RADII = {
    ("imagenet_lt", "saddle"): [0.05, 0.1, 0.5, 0.5],
    ("imagenet_lt", "focal-sam-paper"): [0.1, 0.2],
    ("inaturalist", "saddle"): [0.05, 0.1, 0.1, 0.2],
    ("inaturalist", "saddle-ldam"): [0.05, 0.1, 0.5, 0.5],
    ("inaturalist", "focal-sam-paper"): [0.2, 0.2],
}
NAMES = [(name, preset) for name in MODULES for preset in presets.TABLES[name]]


def test_presets_have_the_published_numbers():
    assert set(NAMES) == set(PUBLISHED) | {(name, "imbsam-paper") for name in MODULES}
    for (name, preset), expected in PUBLISHED.items():
        args = presets.parse(MODULES[name].arguments(), ["--preset", preset])
        assert tuple(getattr(args, field) for field in FIELDS) == expected, (name, preset)
        assert args.rho_values == RADII.get((name, preset))
        assert args.jitter == (0.4 if name == "imagenet_lt" or "saddle" in preset else 0.0)
        if "saddle" in preset:
            assert (args.rho_boundaries, args.drw_epoch) == ([5, 60, 75], 60)
        if args.loss == "ldam":  # Saddle's release, of both sets
            assert (args.max_margin, args.scale) == (0.3, 30)
        if args.loss == "logit_adjusted":
            assert args.tau == 1
        if preset == "focal-sam-paper":
            scale = {"imagenet_lt": (0.8, 0.8), "inaturalist": (2.0, 1.1)}[name]
            assert (args.gamma, args.strength) == scale
    for name, expected in PAPER.items():
        args = presets.parse(MODULES[name].arguments(), ["--preset", "imbsam-paper"])
        assert (args.model, args.batch_size) == expected
        assert (args.epochs, args.rho, args.eta, args.tail_scale) == (200, 0.05, 100, 1)
        assert args.strict is False  # the paper's n_c <= eta
        # What it does not print is decoupling's, the learning rate an image: it has batches of 512.
        other = presets.parse(MODULES[name].arguments(), ["--preset", "decoupling"])
        assert args.lr == pytest.approx(other.lr * args.batch_size / 512)
        assert (args.weight_decay, args.jitter) == (other.weight_decay, other.jitter)


@pytest.mark.parametrize(("name", "preset"), NAMES)
def test_presets_build_what_they_name(name, preset, folders):
    module = MODULES[name]
    kind = {"inaturalist": "i_naturalist2018", "imagenet_lt": "imagenet_lt"}[name]
    args = presets.parse(module.arguments(), ["--preset", preset, "--data-dir", folders[kind]])
    args.eta = 10.0
    assert set(presets.TABLES[name][preset].flags) <= set(vars(args))
    dataset = module.load(args)
    plan = make_plan(args, dataset, module.describe(args, dataset))
    assert list(plan.second) == args.stage2
    assert presets.explain(args).startswith(f"preset {preset}: ")
    # The last radius of a schedule is the last value that was published.
    if args.rho_values:
        steps = plan.settings.epochs * -(-len(dataset.train_labels) // args.batch_size)
        rule = plan.method.stages()[-1][1].rule
        assert float(rule(steps - 1).radii[0]) == pytest.approx(args.rho_values[-1])


@pytest.mark.parametrize("name", MODULES)
def test_a_run_goes_from_its_flags_to_a_table(name, monkeypatch):
    """What is loaded is what the flags say of images; it is described by what is not in them."""
    module, done = MODULES[name], []
    loader = {"imagenet_lt": "load_imagenet_lt", "inaturalist": "load_inaturalist"}[name]
    monkeypatch.setattr(image_sets, loader, lambda *given, **more: (given, more))
    monkeypatch.setattr(encoded, "finished", lambda *given: given)
    monkeypatch.setattr(module.launch, "begin", lambda args: done.append("begun"))
    monkeypatch.setattr(module.launch, "run", lambda args, *given: done.append(given))
    lists = {kind: f"{kind}.txt" for kind in module.LISTS}
    flags = ["--data-dir", "d", "--image-dir", "i", "--image-size", "64", "--resize", "72"]
    flags += ["--val-per-class", "3", "--allow-empty-classes", "--out", "x"]
    flags += [
        word for kind, file in lists.items() for word in (f"--{kind.replace('_', '-')}", file)
    ]
    of = ["--dataset", "places365_small"] if name == "imagenet_lt" else []
    start(name, *flags, *of)
    asked = {"image_dir": "i", "size": 64, "resize": 72, **lists}
    seen = (((*of[1:], "d"), asked), 3, True)
    described = {"image_size": 64, "resize": 72, **({"data_of": of[1]} if of else {})}
    assert done == ["begun", (seen, described)]


@pytest.mark.parametrize(("name", "devices"), [("imagenet_lt", 0), ("inaturalist", 0)])
def test_all_devices_train_one_seed_after_the_other(name, devices):
    args = presets.parse(MODULES[name].arguments(), [])
    assert (args.devices_by_default, args.together) == (devices, False)


def test_published_figures_of_these_sets_are_found():
    facts = {"rule": "imbsam", "loss": "cross_entropy", "stage2": None, "ascent": {}}
    for dataset, factor, expected in (
        ("i_naturalist2018", 500.0, 69.1),
        ("imagenet_lt", 256.0, 52.2),
    ):
        rows = matching.beside({**facts, "dataset": dataset, "imbalance_factor": factor})
        assert expected in [row.all for row in rows if row.source == "P"]


# ---- eight thousand classes -----------------------------------------------------------------


@pytest.mark.slow
def test_evaluation_at_8142_classes_brings_home_counts_alone(tmp_path):
    """No logits leave the device: what a batch returns is two counts a class and a sum."""
    made = tiny_records.make(
        tmp_path / "data", num_classes=8142, largest=3, smallest=1, per_class=1, sides=(8, 10)
    )
    dataset = load_inaturalist(str(made.folder), size=8, resize=8)
    settings = Settings(batch_size=64, eval_batch=2048, augment=False)
    parts = Parts(dataset, "mlp", cross_entropy, settings)
    shapes = []
    plain = parts.evaluator._hits
    parts.evaluator._hits = lambda *args: shapes.append(jax.eval_shape(
        lambda *traced: plain(*traced, *args[3:]), *args[:3]
    )) or plain(*args)  # fmt: skip
    hits = parts.evaluator.hits(parts.initial, "test", StopRequest())
    assert {tuple(leaf.shape for leaf in shape) for shape in shapes} == {((8142,), (8142,), ())}
    # The same predictions, counted by hand.
    seen = []
    with parts.feed.evaluation("test", 2048) as batches:
        for rows in batches:
            logits = parts.initial.apply_fn(
                parts.initial.variables(), parts.feed.plain(rows.images[0]), train=False
            )
            guess = np.asarray(logits).argmax(1)
            seen += [
                (y, g) for y, g, ok in zip(rows.labels[0], guess, rows.mask[0], strict=True) if ok
            ]
    labels, guesses = np.array(seen).T
    np.testing.assert_array_equal(hits.total, np.bincount(labels, minlength=8142))
    right = np.bincount(labels[labels == guesses], minlength=8142)
    np.testing.assert_array_equal(hits.correct, right)
    assert parts.evaluator.accuracies(hits)["all"] == pytest.approx(100 * right.mean(), rel=1e-4)


@pytest.mark.slow  # the plots of fewer classes are in tests/experiments/reports
def test_the_plot_of_8142_classes_shows_hundredths(tmp_path):
    values = np.where(np.arange(8142) % 7 == 0, np.nan, np.arange(8142) / 81.42)
    centres, means, low, high = plots.hundredths(values)
    assert len(centres) == 100 and np.all(np.diff(centres) > 0)
    part = values[:82]  # 8142 = 42 parts of 82 and 58 of 81
    assert means[0] == pytest.approx(np.nanmean(part))
    assert (low[0], high[0]) == tuple(np.nanpercentile(part, [25, 75]))
    sizes = np.maximum(1000 // (1 + np.arange(8142)), 2)
    total = np.full(8142, 3)
    plots.per_class(tmp_path / "a.png", "t", sizes, total * (np.arange(8142) % 2), total)
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_per_class_csv_has_a_line_a_class(tmp_path):
    from experiments.host.folders import RunFolder

    folder = RunFolder(tmp_path / "run", {}, resume=False)
    counts = np.arange(8142)
    folder.write_per_class(counts, counts % 4, np.full(8142, 3), None)
    folder.close()
    with open(tmp_path / "run" / "per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8142
    assert [int(row["train_examples"]) for row in rows] == counts.tolist()


def test_an_empty_class_is_given_the_size_of_the_smallest():
    np.testing.assert_array_equal(filled(np.array([9, 0, 4, 0])), [9, 4, 4, 4])


# ---- lists of images in a folder ----------------------------------------------------------------

COUNTS = (12, 6, 3)


@pytest.fixture
def listed(tmp_path):
    """Flags of a run on images in a folder, 12, 6 and 3 of a class and 2 to test on."""
    draw, lines = np.random.default_rng(0), {"train": [], "test": []}
    for part, counts in (("train", COUNTS), ("test", (2, 2, 2))):
        for label, count in enumerate(counts):
            for k in range(count):
                name = f"{part}_{label}_{k}.png"
                Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / name)
                lines[part].append(f"{name} {label}")
    for part, of_part in lines.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(of_part))
        (tmp_path / f"{part}_turned.txt").write_text("\n".join(of_part[::-1]))
    (tmp_path / "one.txt").write_text("\n".join(lines["test"][:2]))
    (tmp_path / "leak.txt").write_text("\n".join([*lines["test"], lines["train"][0]]))
    # 21 images: every batch is of one size, and a program less is compiled.
    flags = ["--image-dir", str(tmp_path), *SMALL, "--epochs", "2", "--batch-size", "7", "--rule"]
    flags += ["sgd", "--schedule", "cosine", "--out", str(tmp_path / "out")]

    def run(*more, train="train.txt", test="test.txt", out="out"):
        lists = ["--train-list", str(tmp_path / train), "--test-list", str(tmp_path / test)]
        start("imagenet_lt", *flags[:-1], str(tmp_path / out), *lists, *more)
        return json.loads((tmp_path / out / "report.json").read_text())

    return run, tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("lists", [{"test": "test_turned.txt"}, {"train": "train_turned.txt"}])
def test_other_lists_are_another_run(listed, lists, capsys):
    """Of the same counts and folder: nothing else of a run says which images it saw."""
    run, folder = listed
    report = run()
    with pytest.raises(RunError, match=r"other settings \(rows_sha256"):
        run("--resume", **lists)
    other = run(out="other", **lists) | {"seed": 1}
    assert report["source"] == other["source"] and report["rows_sha256"] != other["rows_sha256"]
    assert len(grouping.grouped([report, other])) == 2
    (part,) = lists
    flags = [
        "--image-dir",
        str(folder),
        "--train-list",
        str(folder / lists.get("train", "train.txt")),
    ]
    flags += ["--test-list", str(folder / lists.get("test", "test.txt"))]
    capsys.readouterr()
    for out, note in (("out", True), ("other", False)):
        evaluate.main(evaluate.arguments().parse_args([str(folder / out), *flags]))
        assert (f"note: the {part} images are others" in capsys.readouterr().out) is note


@pytest.mark.slow
def test_a_run_goes_on_by_another_way_to_its_images(listed, capsys):
    """Nothing of it is written anew in the other spelling, so that it is evaluated from anywhere"""
    run, folder = listed
    link = folder.with_name(f"{folder.name}_link")
    link.symlink_to(folder)
    report = run()
    (folder / "out" / "report.json").unlink()
    again = run("--resume", "--image-dir", str(link), "--stage2", "tau-norm")
    last = run("--resume", "--image-dir", f"{folder}/../{folder.name}", "--stage2", "tau-norm")
    for one in (again, last):
        assert one["params_sha256"] == report["params_sha256"]
        assert one["source"] == report["source"]
    flags = ["--image-dir", str(link), "--train-list", str(folder / "train.txt")]
    flags += ["--test-list", str(folder / "test.txt")]
    capsys.readouterr()
    evaluate.main(evaluate.arguments().parse_args([str(folder / "out"), *flags]))
    assert "note: " not in capsys.readouterr().out
    elsewhere = folder / "elsewhere"
    shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("out", "elsewhere"))
    with pytest.raises(RunError, match=r"other settings \(source"):
        run("--resume", "--image-dir", str(elsewhere))


@pytest.mark.parametrize(
    ("lists", "more", "said"),
    [
        ({"test": "leak.txt"}, [], r"the train and the test list share 1 image \(train_0_0"),
        ({"test": "train.txt"}, [], "the train and the test list share 21 images"),
        ({}, ["--val-list", "test.txt"], "the val and the test list share 6 images"),
    ],
)
def test_nothing_is_in_two_lists(listed, lists, more, said):
    run, folder = listed
    more = [str(folder / word) if word.endswith(".txt") else word for word in more]
    with pytest.raises(DataError, match=said):
        run(*more, **lists)
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_a_class_that_cannot_be_read_is_not_left_out_of_the_mean(listed):
    run, folder = listed
    for k in range(2):
        (folder / f"test_2_{k}.png").write_bytes(b"none")
    with pytest.raises(RunError, match=r"no test image of 1 class \(the first is 2\) could be"):
        run("--max-corrupt", "0.5")


@pytest.mark.slow
def test_a_class_that_nobody_learns_may_be_all_that_is_tested(listed):
    """No accuracy is no number to compare epochs by, and no traceback."""
    run, folder = listed
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "two.txt").write_text("\n".join(x for x in lines if not x.endswith(" 0")))
    report = run("--allow-empty-classes", train="two.txt", test="one.txt")
    assert report["all"] is None and report["best_epoch"]["epoch"] == 1


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="it is installed")
def test_a_loader_that_is_not_installed_leaves_nothing(listed):
    run, folder = listed
    with pytest.raises(DataError, match=r"tf\.data needs TensorFlow"):
        run("--loader", "tf.data")
    assert not (folder / "out").exists()
