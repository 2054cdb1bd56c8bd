"""Fine-tuning by its command line: from a file's weights and texts to a report, and without."""

import itertools
import json
import os
import signal
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from experiments import evaluate, finetune
from experiments.command import finetuning, launch
from experiments.command.plan import Plan
from experiments.data import save_npz
from experiments.host.errors import DataError, RunError, Stopped
from experiments.models import create_model
from experiments.models.clip import SIZES, ImageTower, Text, TextTower
from experiments.models.clip_weights import load_clip
from experiments.models.tokenizer import Tokenizer
from experiments.run.checkpoints import Checkpoints
from experiments.run.evaluation import Evaluator
from experiments.run.one import Run
from experiments.run.parts import Parts
from experiments.run.settings import Settings
from imbsam_jax.losses import cross_entropy
from tiny import tiny_dataset

pytestmark = [
    pytest.mark.allow_rank_promotion,  # Flax adds a bias[C] to a batch[B, C]
    pytest.mark.usefixtures("lean"),
]

SHORT = ["--image-size=16", "--batch-size=39", "--epochs=1", "--devices=1", "--quiet"]
ADAPTED = ["--ensemble", "--epochs=2", "--batch-size=26"]
NAMES = ["apple", "aquarium_fish", "baby", "bear", "beaver"]


def with_one_block(patch):
    """The tiny towers with a block each: they compile in less."""
    for name, text in (("clip_vit_tiny", Text(516, 77, 8, 1, 1, 8)), ("vit_tiny", None)):
        patch.setitem(SIZES, name, SIZES[name]._replace(width=16, depth=1, text=text))


@pytest.fixture(scope="module", autouse=True)
def of_one_block():
    with pytest.MonkeyPatch.context() as patch:
        with_one_block(patch)
        yield


@pytest.fixture(scope="module")
def files(of_one_block, tmp_path_factory):
    return written(tmp_path_factory.mktemp("finetune"))


def written(folder):
    """A data set, weights of clip_vit_tiny under OpenAI's names, a vocabulary, class names."""
    save_npz(tiny_dataset(), folder / "tiny.npz")
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "vocabulary.txt").write_text("#version\na p\nap p\n")
    save_file(_openai(SIZES["clip_vit_tiny"]), folder / "clip.safetensors")
    return folder


def _openai(size):
    """Random weights of a size, as OpenAI names them."""
    text, w = size.text, size.width
    shapes = {
        "visual.conv1.weight": (w, 3, size.patch, size.patch), "visual.class_embedding": (w,),
        "visual.positional_embedding": (17, w), "visual.proj": (w, text.joint),
        "token_embedding.weight": (text.vocabulary, text.width),
        "positional_embedding": (text.length, text.width),
        "text_projection": (text.width, text.joint),
    }  # fmt: skip
    norms = {"visual.ln_pre": w, "visual.ln_post": w, "ln_final": text.width}
    for tower, width, depth in (("visual.", w, size.depth), ("", text.width, text.depth)):
        for k in range(depth):
            block = f"{tower}transformer.resblocks.{k}."
            for name, (out, into) in {
                "attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1),
                "mlp.c_proj.": (1, 4),
            }.items():  # fmt: skip
                shapes |= {f"{block}{name}weight": (out * width, into * width)}
                shapes |= {f"{block}{name}bias": (out * width,)}
            norms |= {f"{block}ln_1": width, f"{block}ln_2": width}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {
        name: np.random.RandomState(zlib.crc32(name.encode())).normal(0, 0.1, shape).astype("f")
        for name, shape in shapes.items()
    }


def start(files, *flags):
    line = ["--data", str(files / "tiny.npz"), *SHORT, *map(str, flags)]
    finetune.main(finetune.parse(finetune.arguments(), line))


def of_texts(files):
    return [
        "--init", files / "clip.safetensors", "--model", "clip_vit_tiny", "--vocabulary",
        files / "vocabulary.txt", "--class-names", files / "names.txt", "--rule", "sgd",
    ]  # fmt: skip


def _report(out):
    return json.loads((out / "report.json").read_text())


def _held(path):
    with np.load(path) as file:
        return dict(file)


def _last(out, dataset, settings):
    """The variables of a run's last checkpoint."""
    config = json.loads((out / "config.json").read_text())
    fields = {k: v for k, v in config.items() if k in Settings.__dataclass_fields__}
    parts = Parts(dataset, config["model"], cross_entropy, Settings(**{**fields, **settings}))
    checkpoints = Checkpoints(out / "checkpoints", config=config, reading=True)
    found = checkpoints.restore(parts.initial)[0]
    checkpoints.close()
    return found


def stopped(files, when, said, *flags):
    """The run until a SIGTERM as it sees its when-th call, answered after what is under way."""
    plain, calls = Run.see, itertools.count(1)

    def see(self, *args):
        if next(calls) == when:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as asked:
        patch.setattr(Run, "see", see)
        start(files, *flags)
    assert asked.value.exit_code == 143 and said in str(asked.value)


@pytest.fixture(scope="module")
def adapted(files, tmp_path_factory):
    """A run of adaptformer from a file, its classifier from texts; three steps an epoch."""
    out = tmp_path_factory.mktemp("runs") / "adapted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "in_full", dict)
        start(files, *of_texts(files), *ADAPTED, "--out", out)
    return out


def test_from_a_file_to_a_report(files, adapted):
    report = _report(adapted)
    assert report["init"].startswith("clip.safetensors (SHA-256 ")
    assert report["init"].endswith("; the classifier from 'a photo of a {}.'")
    model = create_model("clip_vit_tiny", 5, classifier="cosine", adapter="adaptformer")
    images = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(lambda k: model.init(k, images, train=False), jax.random.key(0))
    sizes = {k: x.size for k, x in traverse_util.flatten_dict(shapes["params"]).items()}
    trained = sum(n for k, n in sizes.items() if k[0] == "head" or "adapter" in k)
    assert report["parameters"] == {"trained": trained, "frozen": sum(sizes.values()) - trained}
    assert (report["settings"]["adapter"], report["classifier"]) == ("adaptformer", "cosine")
    assert (report["loss"], report["prompt"]) == ("logit_adjusted", "a photo of a {}.")
    assert len(report["texts_sha256"]) == 16
    assert 0 <= report["last_epoch_ensembled"]["all"] <= 100
    assert "last_epoch_ensembled" not in report["settings"] and report["settings"]["ensemble"]


def test_frozen_leaves_end_as_the_file_has_them(files, adapted):
    state = _last(adapted, tiny_dataset(), {})
    weights = load_clip(files / "clip.safetensors", SIZES["clip_vit_tiny"], 16)
    frozen = traverse_util.flatten_dict(state.frozen)
    jax.tree.map(np.testing.assert_array_equal, frozen, traverse_util.flatten_dict(weights.image))
    assert {path[0] for path in traverse_util.flatten_dict(state.params)} == {
        "head", "blocks_0",
    }  # fmt: skip


def test_evaluated_once_more_with_crops(files, adapted, capsys):
    flags = [str(adapted), "--data", str(files / "tiny.npz")]
    evaluate.main(evaluate.arguments().parse_args(flags))
    report = _report(adapted)
    rows = {
        line.split("  ")[1].strip(): [float(x) for x in line.split()[-4:] if x != "-"]
        for line in capsys.readouterr().out.splitlines() if "averaged" in line or "as it is" in line
    }  # fmt: skip
    for row, key in (("flip-averaged", "last_epoch_flip"),
                     ("five crops averaged", "last_epoch_ensembled")):  # fmt: skip
        assert any(round(report[key]["all"], 2) == x for x in rows[row]), (row, rows)


def test_the_classifier_starts_from_its_texts(files):
    """The kernel of each class, from the text tower by hand."""
    args = finetune.parse(
        finetune.arguments(),
        ["--data", str(files / "tiny.npz"), *SHORT, *map(str, of_texts(files)), "--out", "x"],
    )
    dataset = finetune.load(args)
    weights = finetuning.read_weights(args)
    assert dataset.class_names == tuple(NAMES)
    assert dataset.mean == finetuning.CLIP_PIXELS[0]
    plan = finetuning.started(args, dataset, weights, finetune.make_plan(args, dataset))
    variables = plan.start(plan.settings)
    text = "a photo of a aquarium fish."
    tokens = Tokenizer(files / "vocabulary.txt")([text])
    size = SIZES["clip_vit_tiny"]
    found = np.asarray(jax.jit(TextTower(size).apply)({"params": weights.text}, tokens))[0]
    back = weights.projection @ (found / np.linalg.norm(found))
    kernel = variables["params"]["head"]["kernel"]
    np.testing.assert_allclose(kernel[:, 1], back / np.linalg.norm(back), atol=1e-5)


def test_kept_features_are_the_towers_and_are_read_again(files, tmp_path):
    """Linear probes on features of a file; the same, by name, in a second run."""
    flags = [
        "--init", "random", "--model", "vit_tiny", "--adapter", "linear", "--classifier-start",
        "mean", "--cache-features", tmp_path / "kept.npz", "--rule", "sam", "--seed", "3",
        "--epochs", "2",
    ]  # fmt: skip
    start(files, *flags, "--out", tmp_path / "first")
    report = _report(tmp_path / "first")
    assert report["init"].startswith("random weights, no pretrained ones")
    assert report["parameters"] == {"trained": 5 * 16, "frozen": 0}
    kept = _held(tmp_path / "kept.npz")
    dataset = finetune.as_seen("vit_tiny", tiny_dataset())
    settings = Settings(
        seed=3, classifier="cosine", adapter="linear", trained="head", enlarged=16, devices=1
    )
    fresh = Parts(dataset, "vit_tiny", cross_entropy, settings).initial.variables()
    images = dataset.test_images[:4].astype(np.float32) / 255 * 2 - 1
    tower = ImageTower(5, SIZES["vit_tiny"], "linear", classifier="cosine")

    @jax.jit
    def embedded(seen):
        around = jax.image.resize(seen, (4, 18, 18, 3), "linear")[:, 1:17, 1:17]
        return tower.apply(fresh, around, train=False, method="embed")

    for k, seen in enumerate((images, images[:, :, ::-1])):
        np.testing.assert_allclose(kept["test"][:4, 0, k], embedded(seen), atol=1e-4)
    # The second is stopped after an epoch, and reads them once more when it is resumed.
    stopped(files, 2, "stopped at step 2, epoch 1", *flags, "--out", tmp_path / "second")
    start(files, *flags, "--out", tmp_path / "second", "--resume")
    assert _report(tmp_path / "second")["params_sha256"] == report["params_sha256"]
    with pytest.raises(DataError, match=r"image_size is 16, not 24"):
        start(files, *flags, "--out", tmp_path / "third", "--image-size", "24")
    with pytest.raises(RunError, match="trained on kept features"):
        evaluate.main(evaluate.arguments().parse_args([str(tmp_path / "first")]))


@pytest.mark.slow
def test_no_tower_is_asked_where_its_means_are_not_needed(files, tmp_path, monkeypatch):
    """Neither for a second stage, nor where the run is finished."""
    passes, plain = [], finetuning._features

    def features(*args):
        passes.append(args[-1])
        return plain(*args)

    monkeypatch.setattr(finetuning, "_features", features)
    monkeypatch.setattr(launch, "in_full", dict)
    flags = [
        *of_texts(files)[:4], "--rule", "sgd", "--adapter", "linear", "--classifier-start", "mean",
        "--stage2", "crt", "--stage2-epochs", "2", "--out", tmp_path / "run",
    ]  # fmt: skip
    start(files, *flags)
    assert passes == [["train"]]
    report = _report(tmp_path / "run")
    afresh = f"{report['init']}, in this stage afresh"
    assert _report(tmp_path / "run" / "stage2_crt")["init"] == afresh
    start(files, *flags, "--resume")
    assert passes == [["train"]] and _report(tmp_path / "run") == report


def test_a_stop_while_features_are_computed_is_answered(files, tmp_path, monkeypatch):
    """Also one that comes in the last batch, after which no batch looks for it."""

    def features(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Evaluator, "features", features)
    with pytest.raises(Stopped, match="none of these are kept") as asked:
        start(files, "--init", "random", "--model", "vit_tiny", "--rule", "sgd",
              "--classifier-start", "mean", "--out", tmp_path / "run")  # fmt: skip
    assert asked.value.exit_code == 130 and not (tmp_path / "run").exists()


@pytest.mark.slow  # the linear probe's is quick
def test_a_stopped_run_ends_bitwise_where_an_unstopped_one_does(files, adapted, tmp_path):
    flags = [*of_texts(files), *ADAPTED, "--out", tmp_path / "run"]
    stopped(files, 4, "stopped at step 5, epoch 2", *flags)
    start(files, *flags, "--resume")
    found, whole = _report(tmp_path / "run"), _report(adapted)
    for name in ("params_sha256", "all", "best_epoch", "last_epoch_flip", "last_epoch_ensembled"):
        assert found[name] == whole[name]
    assert found["init"] == whole["init"]


@pytest.mark.slow
def test_seeds_end_bitwise_where_lone_runs_do(files, adapted, tmp_path):
    flags = [*of_texts(files), *ADAPTED]
    start(files, *flags, "--seeds", "3", "0", "--out", tmp_path / "both")
    start(files, *flags, "--seed", "3", "--out", tmp_path / "lone")
    for seed, lone in ((3, tmp_path / "lone"), (0, adapted)):
        found = _report(tmp_path / "both" / f"seed_{seed}")
        assert found["seed"] == seed and "together" not in found
        assert found["params_sha256"] == _report(lone)["params_sha256"]


ON_TWO_DEVICES = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/experiments/entries"]
import pytest
import test_finetune as t
from experiments.command import launch

launch.in_full = dict
t.with_one_block(pytest.MonkeyPatch())
out = Path(sys.argv[1])
files = t.written(out)
of_texts = [*t.of_texts(files)[:-2], "--rule", "imbsam", "--eta", "10", *t.ADAPTED]
own = ["--examples", "independent", "--sampling", "stratified"]
probe = ["--init", "random", "--model", "vit_tiny", "--adapter", "linear", "--classifier-start",
         "mean", "--rule", "sam", *t.ADAPTED[1:]]
for number, name, flags in (
    (1, "one", of_texts), (2, "two", of_texts),
    (1, "one_own", [*of_texts, *own]), (2, "two_own", [*of_texts, *own, "--parallel", "pmap"]),
    (1, "one_probe", [*probe, "--cache-features", out / "one.npz"]),
    (2, "two_probe", [*probe, "--cache-features", out / "two.npz"]),
    (2, "together", [*of_texts, "--seeds", "3", "0", "--together"]),
):
    t.start(files, *flags, "--devices", number, "--out", out / name)
"""


@pytest.mark.slow
def test_devices_share_a_run_and_change_no_number(tmp_path, run_python):
    """By jit; by pmap over each device's own rows; of kept features; seeds, a device each."""
    run_python(["-c", ON_TWO_DEVICES, tmp_path], devices=2)

    def lines(name):
        text = (tmp_path / name / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    pairs = [("one", "two"), ("one_own", "two_own"), ("one_probe", "two_probe")]
    for other, mine in (*pairs, ("one", "together/seed_0")):
        assert _report(tmp_path / mine)["settings"]["devices"] == 2
        for one, two in zip(lines(other), lines(mine), strict=True):
            for name in ("train_loss", "test_loss"):
                assert two[name] == pytest.approx(one[name], rel=1e-4)
            assert two["train_accuracy"] == pytest.approx(one["train_accuracy"], abs=1e-3)
    kept = [_held(tmp_path / f"{name}.npz") for name in ("one", "two")]
    for part in ("train", "test"):
        np.testing.assert_allclose(kept[1][part], kept[0][part], rtol=1e-4, atol=1e-5)
    assert _report(tmp_path / "together/seed_0")["together"] == [3, 0]


# ---- what is asked for, of nothing that is trained -----------------------------------------------


def parsed(*flags):
    return finetune.parse(finetune.arguments(), [*flags, "--model", "vit_b16", "--out", "x"])


@pytest.mark.parametrize(
    ("flags", "module", "asked"),
    [
        (["--dataset", "cifar10"], "cifar_lt", "cifar10"),
        (["--dataset", "cifar100"], "cifar_lt", "cifar100"),
        (["--dataset", "inaturalist"], "inaturalist", "inaturalist"),
        (["--dataset", "places_lt"], "imagenet_lt", "places365_small"),
        (["--dataset", "places_lt", "--train-list", "a"], "imagenet_lt", "places365_small"),
        (["--dataset", "imagenet_lt"], "imagenet_lt", "imagenet_lt"),
        # Lists without a folder are of TFDS's whole set; with one, of its files.
        (["--dataset", "imagenet_lt", "--train-list", "a"], "imagenet_lt", "imagenet2012"),
        (["--dataset", "imagenet_lt", "--train-list", "a", "--image-dir", "b"], "imagenet_lt",
         "imagenet_lt"),
        (["--dataset", "imagenet_lt", "--image-dir", "b"], "imagenet_lt", "imagenet_lt"),
    ],
)  # fmt: skip
def test_each_data_set_is_loaded_by_its_entry(monkeypatch, tmp_path, flags, module, asked):
    seen = []

    def load(name):
        def loads(args):
            seen.append((name, args.dataset, args.image_size, args.resize))
            return tiny_dataset()

        return loads

    for name in ("cifar_lt", "inaturalist", "imagenet_lt"):
        monkeypatch.setattr(getattr(finetune, name), "load", load(name))
    args = parsed(*flags)
    dataset = finetune.load(args)
    assert seen == [(module, asked, 224, 256)] and args.dataset == flags[1]
    assert (dataset.mean, dataset.std) == ((0.5,) * 3, (0.5,) * 3)
    assert dataset.class_names == tiny_dataset().class_names
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    args.class_names = str(tmp_path / "names.txt")
    assert finetune.load(args).class_names == tuple(NAMES)


def test_all_devices_train_one_seed_after_the_other():
    args = parsed()
    assert (args.devices_by_default, args.together) == (0, False)


@pytest.mark.parametrize("dataset", ["cifar10", "places_lt"])
@pytest.mark.parametrize("kept", [None, "kept.npz"])
def test_how_a_run_is_described_and_its_images_resized(monkeypatch, dataset, kept):
    """On the device, where they are in memory and no features stand for them."""
    monkeypatch.setattr(finetune.plan, "make_plan", lambda *given: given)
    args = parsed("--dataset", dataset, "--init", "x.safetensors", "--image-size", "32")
    args.cache_features = kept
    asked, _, described = finetune.make_plan(args, tiny_dataset())
    own = {"requested_imbalance_factor": None, "subset": None, "subset_seed": None}
    own = {**own, "val_per_class": 0} if dataset == "cifar10" else {}
    assert described == {
        **own, "data_of": dataset, "image_size": 32, "resize": 36, "classifier_start": "mean",
        "features": kept is not None,
    }  # fmt: skip
    in_memory = dataset == "cifar10" and kept is None
    assert (asked.enlarged, asked.enlarged_eval) == ((32, 36) if in_memory else (0, 0))
    args.classifier_start = "text"
    assert finetune.describe(args, tiny_dataset())["prompt"] == "a photo of a {}."


@pytest.mark.parametrize("dataset", ["cifar10", "places_lt"])
@pytest.mark.parametrize("kept", [None, "kept.npz"])
def test_a_run_goes_from_its_flags_to_a_table(monkeypatch, dataset, kept):
    done = []

    def step(module, name, answer):
        def doing(*given):
            done.append(name)
            return answer(*given)

        monkeypatch.setattr(module, name, doing)

    step(launch, "begin", lambda args: None)
    step(finetuning, "read_weights", lambda args: "weights")
    step(finetune, "load", lambda args: "images")
    step(finetune, "make_plan", lambda args, data: Plan(Settings(lr=0.5), data, None, {}, {}))
    step(finetuning, "cached", lambda args, data, weights, settings: (data, weights, settings))
    step(finetuning, "started", lambda args, data, weights, plan: (data, weights, plan.method))
    step(launch, "train", lambda args, data, plan: (data, plan))
    step(launch, "show", done.append)
    args = parsed("--dataset", dataset, "--init", "x", "--seeds", "7", "3", "--image-size", "32")
    args.cache_features = kept
    finetune.main(args)
    seen = "images"
    if kept:  # of the first seed; the tower sees images of memory enlarged
        own = {"enlarged": 32 if dataset == "cifar10" else 0, "enlarged_eval": 36}
        seen = ("images", "weights", Settings(lr=0.5, seed=7, **own))
    order = ["begin", "read_weights", "load", "make_plan", *["cached"] * bool(kept), "started"]
    assert done == [*order, "train", "show", (seen, (seen, "weights", "images"))]


def _refused(files, said, *flags, error=RunError):
    with pytest.raises(error, match=said):
        start(files, "--out", "unwritten", "--rule", "sgd", *flags)


def test_what_is_refused(files, tmp_path):
    _refused(files, "--init is missing")
    _refused(files, "--image-size 20 .* patches of vit_tiny, 8", "--init", "random", "--model",
             "vit_tiny", "--image-size", "20")  # fmt: skip
    text = of_texts(files)
    _refused(files, "give --class-names", *text[:6])
    (tmp_path / "ids.txt").write_text("\n".join(f"n0144{k}" for k in range(5)))
    _refused(files, "has as 'n01440' and the like: give --class-names", *text[:6],
             "--class-names", tmp_path / "ids.txt")  # fmt: skip
    (tmp_path / "few.txt").write_text("a\nb")
    _refused(files, "few.txt has 2 class names", *text[:8], "--class-names", tmp_path / "few.txt",
             error=DataError)  # fmt: skip
    _refused(files, "has no {} for the name", *text[:8], "--prompt", "a photo")
    _refused(files, "needs a text tower", "--init", "random", "--model", "vit_tiny",
             "--classifier-start", "text")  # fmt: skip
    _refused(files, "scales cosines itself", "--init", "random", "--model", "vit_tiny", "--loss",
             "ldam")  # fmt: skip
