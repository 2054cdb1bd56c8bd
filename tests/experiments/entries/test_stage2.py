"""Second stages on a trained run, through the command line's own main."""

import json
from functools import partial

import jax
import numpy as np
import pytest

import tiny
from experiments import cifar_lt, digits_lt, evaluate
from experiments.command import presets, stage2
from experiments.data import save_npz
from experiments.host.errors import RunError
from experiments.models import MODELS, create_model
from experiments.run import compatible
from experiments.run.checkpoints import Checkpoints
from experiments.run.compatible import Asked, check
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from imbsam_jax import losses
from tiny import TinyNet, tiny_dataset

pytestmark = pytest.mark.allow_rank_promotion  # Flax's bias and batch normalisation

FLAGS = [
    "--model",
    "tiny",
    "--batch-size",
    "39",
    "--epochs",
    "2",
    "--rule",
    "imbsam",
    "--eta",
    "10",
]
FLAGS += ["--lr", "0.02", "--quiet", "--loss", "focal", "--mixup", "1"]
FLAGS += ["--stage2-epochs", "2", "--stage2-tau", "0.7", "--val-per-class", "1", "--seeds", "3"]
COUNTS = [n - 1 for n in tiny.COUNTS]  # one image of each class is held out
TRAINED = ["crt", "lws", "weight-balancing", "cc-sam"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A first stage, then, by --resume, every second stage on it: {name: (report, variables)}."""
    MODELS["tiny"] = TinyNet
    folder = tmp_path_factory.mktemp("stage2")
    save_npz(tiny_dataset(), folder / "tiny.npz")
    out = folder / "run"
    flags = [*FLAGS, "--data", str(folder / "tiny.npz"), "--out", str(out)]
    cifar_lt.main(cifar_lt.arguments().parse_known_args(flags)[0])
    out = out / "seed_3"
    before = (out / "report.json").read_bytes()
    cifar_lt.main(
        cifar_lt.arguments().parse_args([*flags, "--resume", "--stage2", *stage2.RECIPES])
    )
    assert (out / "report.json").read_bytes() == before
    found = {}
    for name in (None, *stage2.RECIPES):
        place = out if name is None else out / f"stage2_{name}"
        report = json.loads((place / "report.json").read_text())
        settings = Settings(**report["settings"])
        parts = Parts(tiny_dataset(), "tiny", losses.cross_entropy, settings)
        checkpoints = Checkpoints(place / "checkpoints")
        state, _ = checkpoints.restore(parts.initial)
        checkpoints.close()
        found[name] = (report, jax.device_get(state.variables()))
    yield out, folder / "tiny.npz", found
    del MODELS["tiny"]


@pytest.mark.slow
def test_reports_say_what_was_done(run):
    _, _, found = run
    first, _ = found[None]
    assert (first["stage2"], first["loss"], first["mixup"]) == (None, "focal", 1.0)
    for name in stage2.RECIPES:
        report, _ = found[name]
        assert report["stage2"] == name and report["rule"] == "imbsam"
        assert report["loss"] == "focal" and report["mixup"] == 0
        assert report["epochs"] == (2 if name in TRAINED else 0)
        assert 0 <= report["all"] <= 100
        assert (report["flops_ratio_to_sgd"] is None) == (name not in TRAINED)
        best = report["best_val_epoch"]  # what --stage2-tau would be chosen by
        assert best["epoch"] in ((1, 2) if name in TRAINED else (0,)) and best["val"]["all"] >= 0
    assert found["weight-balancing"][0]["stage2_args"]["weight_decay"] == 0.1
    assert found["weight-balancing"][0]["stage2_args"]["loss"] == "softmax_binary"
    assert found["cc-sam"][0]["stage2_args"]["lr"] == pytest.approx(0.002)
    assert found["lws"][0]["classifier"] == "scaled"


@pytest.mark.slow
@pytest.mark.parametrize("name", stage2.RECIPES)
def test_features_stay_bitwise(run, name):
    _, _, found = run
    (_, first), (_, second) = found[None], found[name]
    jax.tree.map(np.testing.assert_array_equal, second["batch_stats"], first["batch_stats"])
    assert set(second["params"]) == set(first["params"])
    for layer in set(first["params"]) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, second["params"][layer], first["params"][layer])
    changed = (
        jax.tree.leaves(second["params"]["head"])[0] != jax.tree.leaves(first["params"]["head"])[0]
    )
    # Scales come on top of a head that stays.
    assert changed.any() == (name != "lws")


@pytest.mark.slow
def test_heads_are_what_each_method_says(run):
    _, _, found = run
    head = found[None][1]["params"]["head"]
    norms = np.linalg.norm(head["kernel"], axis=0)

    tau = found["tau-norm"][1]["params"]["head"]
    np.testing.assert_allclose(tau["kernel"], head["kernel"] / norms**0.7, rtol=1e-5)
    assert not tau["bias"].any()

    adjusted = found["logit-adjustment"][1]["params"]["head"]
    prior = np.array(COUNTS) / sum(COUNTS)
    np.testing.assert_allclose(adjusted["bias"], head["bias"] - 0.7 * np.log(prior), rtol=1e-5)
    np.testing.assert_array_equal(adjusted["kernel"], head["kernel"])

    lws = found["lws"][1]["params"]["head"]
    np.testing.assert_array_equal(lws["kernel"], head["kernel"])
    assert (lws["scales"] != 1).all() and np.abs(lws["scales"] - 1).max() < 0.5

    balanced = found["weight-balancing"][1]["params"]["head"]["kernel"]
    radius = norms.min() + 0.1 * (norms.max() - norms.min())
    assert np.linalg.norm(balanced, axis=0).max() <= radius * (1 + 1e-5)
    assert norms.max() > radius

    # Retrained from another draw: far from the first stage's.
    crt = found["crt"][1]["params"]["head"]["kernel"]
    assert abs(np.corrcoef(crt.ravel(), head["kernel"].ravel())[0, 1]) < 0.5


@pytest.mark.slow
def test_accuracies_are_of_the_changed_model(run):
    """Post-hoc adjustment by hand: the first stage's logits less the log priors."""
    _, _, found = run
    dataset = tiny_dataset()
    images = (dataset.test_images.astype(np.float32) / 255 - dataset.mean) / dataset.std
    report, _ = found["logit-adjustment"]
    logits = create_model("tiny", 5).apply(found[None][1], images.astype(np.float32), train=False)
    guess = np.argmax(logits - 0.7 * np.log(np.array(COUNTS) / sum(COUNTS)), axis=-1)
    hits = [100 * (guess[dataset.test_labels == c] == c).mean() for c in range(5)]
    assert report["all"] == pytest.approx(np.mean(hits), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lws", "tau-norm"])
def test_evaluate_reads_a_second_stage(run, name, capsys):
    out, data, found = run
    flags = [str(out / f"stage2_{name}"), "--data", str(data)]
    evaluate.main(evaluate.arguments().parse_args(flags))
    assert f"{found[name][0]['all']:.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stage_of_other_settings_is_refused_before_anything_is_trained(run, monkeypatch):
    """Not after those that are named before it; a folder of its own is what helps."""
    out, data, _ = run
    monkeypatch.setattr("experiments.run.trainer.Trainer.train", lambda *_: pytest.fail("trained"))
    flags = [*FLAGS, "--data", str(data), "--out", str(out.parent), "--resume", "--stage2-tau", "3"]
    flags += ["--stage2-sampling", "natural", "--stage2", "weight-balancing", "tau-norm"]
    with pytest.raises(RunError, match=r"tau 0.7 -> 3.0\): --stage2-tag"):
        cifar_lt.main(cifar_lt.arguments().parse_args(flags))
    with pytest.raises(RunError, match=r"lr 0.02 -> 0.5\): choose another"):
        cifar_lt.main(cifar_lt.arguments().parse_args([*flags, "--lr", "0.5"]))


HEAD = {
    "kernel": np.array([[3.0, 0.0, 1.0, 0.5, 2.0], [4.0, 2.0, 0.0, 0.0, 0.0]], np.float32),
    "bias": np.array([0.5, -1.0, 0.0, 2.0, 1.0], np.float32),
}
NORMS = np.array([5.0, 2.0, 1.0, 0.5, 2.0])  # of the columns
PRIOR = np.array(COUNTS) / sum(COUNTS)


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("name", stage2.RECIPES)
def test_what_a_stage_starts_from(name, tau):
    """By the table in stage2.py: a head of its own, every other layer the first stage's."""
    first, fresh = {"conv": "first", "head": HEAD}, {"conv": "fresh", "head": "fresh"}
    stage = make(name, stage2_tau=tau)
    found = stage.start(first, fresh)
    expected = {
        "tau-norm": {"kernel": HEAD["kernel"] / NORMS**tau, "bias": np.zeros(5)},
        "logit-adjustment": {**HEAD, "bias": HEAD["bias"] - tau * np.log(PRIOR)},
        "crt": "fresh", "lws": {**HEAD, "scales": np.ones(5)},
    }.get(name, HEAD)  # fmt: skip
    assert found.keys() == first.keys() and found["conv"] == "first"
    assert stage.keeps_head == (name != "crt")
    if isinstance(expected, str):
        assert found["head"] == expected
        return
    assert found["head"].keys() == expected.keys()
    for leaf, value in expected.items():
        np.testing.assert_allclose(found["head"][leaf], value, rtol=1e-6)


@pytest.mark.parametrize("name", stage2.RECIPES)
def test_what_is_told_of_a_stage_and_asked_of_it(name):
    first = Settings(lr=0.2, weight_decay=3e-4, mixup=1.0, examples="independent", seed=3)
    flags = vars(cifar_lt.arguments().parse_args(["--eta", "10"]))
    stage = stage2.make(name, flags, class_counts=np.array(COUNTS), first=first, steps_per_epoch=5)
    own = stage.settings
    assert (own.mixup, own.examples, own.seed) == (0, "dependent", 3)
    told = stage.description["stage2_args"]
    taken = {
        "tau-norm": {"tau": 1.0}, "logit-adjustment": {"tau": 1.0},
        "cc-sam": {"variant": "paper", "limit": 1.0},
    }.get(name, {})  # fmt: skip
    if name not in TRAINED:
        assert (own.epochs, own.trained, told) == (0, "all", taken)
    else:
        loss = "softmax_binary" if name == "weight-balancing" else "cross_entropy"
        keys = ("lr", "weight_decay", "schedule", "sampling", "statistics", "max_norm", "epochs")
        assert told == {
            **taken, **{key: getattr(own, key) for key in keys}, "rule": "sgd", "loss": loss
        }  # fmt: skip
    assert stage.description["stage2"] == name
    before = Asked(first, "its method", "imbsam", steps_per_epoch=5)
    asked = stage2.asked(name, stage, before)
    assert (asked.settings, asked.method, asked.stage2) == (own, stage.method, name)
    assert asked.adversary is stage.adversary and (asked.adversary is None) == (name != "cc-sam")
    assert asked.first == (None if name == "crt" else first)


def test_the_adversary_is_of_its_variant():
    """The release's looks at the batch, the paper's at each row."""
    for variant in ("paper", "release"):
        stage = make("cc-sam", stage2_variant=variant)
        assert stage.adversary.over_the_batch == (variant == "release")
        seen = {}

        def features(fn, counts, *, variant, seen=seen):
            seen.update(counts=counts, variant=variant)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "feature_adversary", features)
            stage.adversary.wrap("fn")
        assert seen["variant"] == variant and seen["counts"].tolist() == COUNTS


def make(name, first=None, **options):
    """A stage that goes with its first one."""
    flags, first = vars(cifar_lt.arguments().parse_args(["--eta", "10"])), first or Settings()
    stage = stage2.make(
        name, {**flags, **options}, class_counts=np.array(COUNTS), first=first, steps_per_epoch=5
    )
    check(stage2.asked(name, stage, after=Asked(first, stage.method, steps_per_epoch=5)))
    return stage


def test_weight_decay_is_taken_once():
    first = Settings(weight_decay=0.01, weight_decay_inside=True)
    stage = make("crt", first, weight_decay_inside=True, rule="sam")
    assert stage.method.ascent.weight_decay == 0 and not stage.settings.weight_decay_inside
    same = make("crt", first, weight_decay_inside=True, rule="sam", stage2_rule="same")
    assert same.method.ascent.weight_decay == 0.01 and same.settings.weight_decay_inside
    own = make("weight-balancing", first, weight_decay_inside=True, rule="sam", stage2_rule="same")
    assert own.method.ascent.weight_decay == own.settings.weight_decay == 0.1  # not the first's


@pytest.mark.parametrize(
    "line",
    [
        "crt 10 0.2 3e-4 cosine-prestep balanced 4 head linear none",
        "lws 5 0.2 3e-4 cosine-prestep balanced 4 scales scaled none",
        "weight-balancing 10 0.01 0.1 cosine-prestep natural 1 head linear step",
        "cc-sam 30 0.02 3e-4 constant balanced 1 head linear none",
    ],
)
def test_a_stage_is_trained_as_its_source_says(line):
    """After a first one of --lr 0.2 and --weight-decay 3e-4, which most of them keep."""
    name, epochs, lr, decay, *words = line.split()
    found = make(name, Settings(lr=0.2, weight_decay=3e-4)).settings
    assert found.epochs == int(epochs)
    assert (found.lr, found.weight_decay) == pytest.approx((float(lr), float(decay)))
    names = ["schedule", "sampling", "per_visit", "trained", "classifier", "max_norm"]
    assert [str(getattr(found, of)) for of in names] == words
    assert found.statistics == "frozen"


def test_options_of_a_stage():
    stage = make("weight-balancing", stage2_max_norm="epoch", stage2_statistics="updated")
    assert (stage.settings.max_norm, stage.settings.statistics) == ("epoch", "updated")
    assert stage.settings.sampling == "natural" and stage.settings.trained == "head"
    same = make("crt", stage2_rule="same", rule="imbsam", stage2_sampling="natural")
    assert same.description["stage2_args"]["rule"] == "imbsam"
    assert same.method.rule(0).groups.shape == (1, 5)
    assert make("crt", rule="imbsam").method.rule(0).groups.shape == (0, 5)
    staged = make("cc-sam", rule="sse_sam", stage2_rule="same", stage2_epochs=1)
    assert [start for start, _ in staged.method.stages()] == [0, 5]  # of the one epoch's 0.7
    release = make("cc-sam", stage2_variant="release", stage2_limit=0.3, stage2_epochs=10)
    assert [release.adversary.share(step) for step in (0, 5, 49)] == pytest.approx([0.1, 0.2, 0.3])
    # Where nobody says anything: those of the papers.
    assert make("cc-sam").description["stage2_args"]["variant"] == "paper"
    whole = make("cc-sam", stage2_variant="release", stage2_epochs=10)
    assert float(whole.adversary.share(49)) == pytest.approx(1.0)
    for name in ("tau-norm", "logit-adjustment"):
        assert make(name).description["stage2_args"]["tau"] == 1.0


@pytest.mark.parametrize("name", ["tau-norm", "logit-adjustment"])
def test_how_others_are_trained_says_nothing_of_a_stage_without_training(name):
    """Else a finished one would be refused, and its seeds be two groups of a report."""
    options = {
        "stage2_lr": 0.5, "stage2_weight_decay": 0.3, "stage2_sampling": "stratified",
        "stage2_statistics": "updated", "stage2_rule": "same", "stage2_epochs": 3,
        "stage2_max_norm": "epoch", "rule": "sam",
    }  # fmt: skip
    plain, beside = make(name), make(name, **options)
    assert (beside.settings, beside.description) == (plain.settings, plain.description)
    assert make(name, stage2_tau=2.0).description != plain.description


def test_boundaries_of_a_radius_are_as_large_a_part_of_the_second_stage():
    radii = {"rho_schedule": "step", "rho_values": [0.1, 0.2, 0.4], "rho_boundaries": [50, 150]}
    first = Settings(epochs=200)
    stage = make("crt", first, rule="sam", stage2_rule="same", stage2_epochs=8, **radii)
    # Five steps an epoch: from epochs 2 and 6 of 8.
    found = [float(stage.method.rule(step).radii[0]) for step in (0, 9, 10, 29, 30, 39)]
    assert found == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.4, 0.4])
    # Its one epoch may be too few for all of them: they were given for the first stage.
    radii |= {"rho_values": [0.1, 0.2], "rho_boundaries": [199]}
    last = make("cc-sam", first, rule="sam", stage2_rule="same", stage2_epochs=1, **radii)
    assert float(last.method.rule(4).radii[0]) == pytest.approx(0.1)
    with pytest.raises(RunError, match="--rho-boundaries 199 is past the last of 199 epochs"):
        make("crt", Settings(epochs=199), rule="sam", stage2_rule="same", **radii)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tau-norm", {"first": Settings(classifier="normalised")}, "starts from a linear"),
        ("tau-norm", {"stage2_tau": float("nan")}, "--stage2-tau must be finite"),
        ("crt", {"stage2_lr": -1.0}, "--lr must be finite and positive"),
        ("crt", {"stage2_epochs": 1}, "one epoch would train nothing"),
        (
            "cc-sam",
            {"first": Settings(parallel="pmap", devices=2), "stage2_variant": "release"},
            "use --parallel jit",
        ),
        ("crt", {"stage2_epochs": 0}, "--stage2-epochs must be at least 1"),
        ("cc-sam", {"stage2_limit": 2.0}, "--stage2-limit: limit must be between 0 and 1"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(RunError, match=message):
        stage = make(name, **options)
        first = Asked(options.get("first", Settings()), stage.method)
        compatible.check(stage2.asked(name, stage, first))


def test_flags_of_a_second_stage_need_one(capsys):
    """They would change nothing, in silence; a preset's own flags may be left without a stage."""
    flags = ["--stage2-tau", "1.9", "--stage2-tag", "a", "--out", "runs"]
    for parse in (partial(presets.parse, cifar_lt.arguments()),
                  digits_lt.arguments().parse_args):  # fmt: skip
        with pytest.raises(SystemExit):
            parse(flags)
        assert "--stage2-tag needs --stage2 cc-sam or crt" in capsys.readouterr().err
        assert parse([*flags, "--stage2", "tau-norm"]).stage2_tau == 1.9
    args = presets.parse(cifar_lt.arguments(), ["--preset", "weight-balancing", "--stage2"])
    assert args.stage2 == [] and args.stage2_max_norm == "step"
    assert make("crt", first=Settings(classifier="normalised")).settings.classifier == "linear"


@pytest.mark.parametrize(
    "tag",
    [".", "..", "../../evil", "/etc", "a/b", "a\\b", "a\0b", "-x", "--out", "~", "a b", "a*",
     "a[1]", "a\n", "é" * 51, "x" * 101, "\udcff", ".hidden", "stage2_crt/../.."],
)  # fmt: skip
def test_a_tag_leads_nowhere_else(tag, capsys):
    flags = ["--stage2", "crt", f"--stage2-tag={tag}", "--out", "runs"]
    for parse in (presets.parse, cifar_lt.parse):
        with pytest.raises(SystemExit) as stopped:
            parse(cifar_lt.arguments(), flags)
        assert stopped.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "--stage2-tag" in said and "becomes part of a folder's name" in said


@pytest.mark.parametrize("tag", ["", "tau_1.9", "lr-0.1_wd-5e-4", "2", "x" * 100])
def test_a_plain_tag_stays(tag):
    flags = ["--stage2", "crt", f"--stage2-tag={tag}", "--out", "runs"]
    assert cifar_lt.parse(cifar_lt.arguments(), flags).stage2_tag == tag
