"""What fine-tuning starts from, piece by piece; nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import finetune
from experiments.command import finetuning, presets
from experiments.command.plan import Plan
from experiments.command.stage2 import Stage
from experiments.data import features, identity
from experiments.data.encoded import Subset
from experiments.data.lists import FolderSplit
from experiments.data.records import TfdsSplit
from experiments.host import folders
from experiments.host.errors import DataError, RunError
from experiments.models.clip_weights import Weights
from experiments.run.settings import Settings
from tiny import tiny_dataset


def asked(**changes: Any) -> Namespace:
    given = {
        "model": "clip_vit_b16", "image_size": None, "resize": None, "adapter": "lora",
        "classifier_start": "auto", "init": "a.safetensors", "prompt": "a {}.", "vocabulary": None,
        "cache_features": None, "ensemble": False,
    }  # fmt: skip
    return Namespace(**{**given, **changes})


PLAN = Plan(None, None, None, {"rule": "sgd"}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sizes", "trained", "start"),
    [
        ({}, (224, 256), "adapter", "text"),
        ({"model": "vit_b16", "adapter": "layernorm"}, (224, 256), "norm", "mean"),
        ({"image_size": 112}, (112, 128), "adapter", "text"),
        ({"image_size": 112, "resize": 112, "init": "random"}, (112, 112), "adapter", "random"),
        ({"init": None, "classifier_start": "mean"}, (224, 256), "adapter", "mean"),
        ({"init": None}, (224, 256), "adapter", "random"),
        ({"image_size": 32}, (32, 36), "adapter", "text"),  # 8/7 of it, in whole pixels
    ],
)
def test_what_follows_from_other_flags(changes: Any, sizes: Any, trained: str, start: str) -> None:
    args = asked(**changes)
    for _ in range(2):  # a second time it changes nothing
        finetuning.settle(args)
        assert (args.image_size, args.resize) == sizes
        assert (args.trained, args.classifier_start) == (trained, start)


def test_five_crops_of_a_preset_are_not_of_kept_features() -> None:
    line = ["--preset", "lift-cifar100", "--adapter", "linear"]
    for more, ensemble in (([], True), (["--cache-features", "kept.npz"], False)):
        args = finetune.parse(finetune.arguments(), [*line, *more])
        finetuning.settle(args)
        assert args.ensemble == ensemble
        assert ("--no-ensemble  (preset: True)" in presets.explain(args)) == (not ensemble)


# LIFT's and Focal-SAM's official scripts, written down apart from clip_recipes.py.
PUBLISHED = {
    "lift-cifar100": "clip_vit_b16 cifar100 10 256",
    "lift-imagenet": "clip_vit_b16 imagenet_lt 10 256",
    "lift-places": "clip_vit_b16 places_lt 10 256",
    "lift-inaturalist": "clip_vit_b16 inaturalist 20 256",
    "lift-vit-cifar100": "vit_b16 cifar100 10 256",
    "focal-sam-cifar10": "clip_vit_b16 cifar10 20 224 0.05 1.5 0.7",
    "focal-sam-cifar100": "clip_vit_b16 cifar100 20 224 0.05 5.5 0.8",
    "focal-sam-imagenet": "clip_vit_b16 imagenet_lt 20 224 0.05 0.5 0.8",
    "focal-sam-inaturalist": "clip_vit_b16 inaturalist 20 256 0.02 0.2 1.0",
}


def test_presets_have_the_published_numbers() -> None:
    assert set(PUBLISHED) == set(presets.TABLES["finetune"])
    for name, line in PUBLISHED.items():
        args = finetune.parse(finetune.arguments(), ["--preset", name])
        finetuning.settle(args)
        model, dataset, epochs, resize, *of_rule = line.split()
        assert (args.model, args.dataset, args.adapter) == (model, dataset, "adaptformer"), name
        assert (args.epochs, args.resize, args.image_size) == (int(epochs), int(resize), 224), name
        assert (args.batch_size, args.lr, args.weight_decay) == (128, 0.01, 5e-4), name
        assert (args.schedule, args.loss, args.tau) == ("cosine", "logit_adjusted", 1), name
        assert args.rule == ("focal_sam" if of_rule else "sgd"), name
        assert args.classifier == "cosine" and args.ensemble == (not of_rule), name
        if of_rule:
            found = [args.rho, args.gamma, args.strength]
            assert found == [float(value) for value in of_rule], name
        if "cifar" in dataset:
            assert args.subset == "shuffled", name
        if not of_rule:  # of CIFAR nobody tells which images are left
            gaps = presets.TABLES["finetune"][name].unpublished
            assert ["drawn as LDAM does" in gap for gap in gaps] == [True] * ("cifar" in dataset)


def test_pixels_are_normalised_as_the_weights_were_trained() -> None:
    """`Normalize` in clip/clip.py of OpenAI's release; timm's of vit_*_augreg_in21k: 0.5 each."""
    clip = "0.48145466 0.4578275 0.40821073 0.26862954 0.26130258 0.27577711"
    for model, numbers in (("clip_vit_b16", clip), ("vit_b16", " ".join(["0.5"] * 6))):
        seen = finetune.as_seen(model, tiny_dataset())
        assert [*seen.mean, *seen.std] == [float(x) for x in numbers.split()]


def test_the_weights_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "load_clip", lambda *given: given)
    file = ("a.safetensors", finetuning.SIZES["clip_vit_b16"], 48)
    for init, found in (("random", None), ("a.safetensors", file)):
        assert finetuning.read_weights(asked(init=init, image_size=48)) == found
    with pytest.raises(RunError, match=r"--init is missing: name a \.safetensors file"):
        finetuning.read_weights(asked(init=None))


def test_a_files_tower_takes_the_place_of_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and adapters stay fresh, and what only the file has is left out."""
    fresh = {"params": {"blocks": {"w": 1, "adapter": 2}, "head": {"kernel": 3}}, "frozen": 4}

    def made(dataset: Any, model: str, loss: Any, settings: Settings) -> Any:
        assert (dataset, model, settings) == (TINY, "clip_vit_b16", Settings(seed=3))
        return types.SimpleNamespace(initial=types.SimpleNamespace(variables=lambda: fresh))

    monkeypatch.setattr("experiments.run.parts.Parts", made)
    given: Any = ("clip_vit_b16", TINY, Settings(seed=3))
    assert finetuning._variables(*given, None) == fresh
    weights = Weights({"blocks": {"w": 10}, "proj": 5}, None, None, "a file")
    assert finetuning._variables(*given, weights) == {
        "params": {"blocks": {"w": 10, "adapter": 2}, "head": {"kernel": 3}}, "frozen": 4
    }  # fmt: skip


def test_features_are_those_of_the_tower_without_an_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is trained on them."""

    def variables(model: str, dataset: Any, settings: Settings, weights: Any) -> None:
        assert settings == Settings(lr=0.5, adapter="linear", trained="head")
        raise RunError("seen")

    monkeypatch.setattr(finetuning, "_variables", variables)
    given = Settings(lr=0.5, adapter="lora", adapter_size=3, trained="adapter")
    with pytest.raises(RunError, match="seen"):
        finetuning._features("clip_vit_b16", TINY, given, None, ["train"])


def test_a_start_from_texts_is_the_files_or_of_random_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tower:
        def __init__(self, size: Any):
            assert size == finetuning.SIZES["clip_vit_tiny"]

        def init(self, key: Any, texts: Any) -> Any:
            return {"params": (jax.random.key_data(key), np.asarray(texts.shape))}

    monkeypatch.setattr("experiments.models.clip.TextTower", Tower)
    monkeypatch.setattr(finetuning, "classifier_start", lambda *given: given)
    args, texts = asked(model="clip_vit_tiny"), np.zeros((3, 7), np.int32)
    size = finetuning.SIZES[args.model]
    weights = Weights({}, "text", "projection", "a file")  # type: ignore[arg-type]
    assert finetuning._of_texts(args, texts, weights, 0) == (size, "text", "projection", texts)
    made = [finetuning._of_texts(args, texts, None, seed) for seed in (0, 0, 1)]
    assert size.text is not None
    for of, (_, shape), projection, same in made:
        assert (of, projection.shape) == (size, (size.width, size.text.joint)) and same is texts
        assert shape.tolist() == [1, 7]  # one is enough to make parameters for
    for k, alike in ((1, True), (2, False)):
        assert (made[k][1][0] == made[0][1][0]).all() == alike
        assert (made[k][2] == made[0][2]).all() == alike


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + b"a cat \r\n dog\n\n \n")
        assert finetuning.class_names(str(path), 2) == ("a cat", "dog")
    with pytest.raises(DataError, match="has 2 class names, one a line, for 3 classes"):
        finetuning.class_names(str(path), 3)
    for text, line in ((b"a\n \nb\n", 2), (b"\na\nb\n", 1), (b"\xef\xbb\xbf\na\nb", 1)):
        path.write_bytes(text)
        with pytest.raises(DataError, match=f"line {line}: is blank, and the names after it"):
            finetuning.class_names(str(path), 2)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="is no UTF-8 text"):
        finetuning.class_names(str(path), 1)


def _with_vocabulary(patch: pytest.MonkeyPatch, tokens: int) -> None:
    small = finetuning.SIZES["clip_vit_tiny"]
    text = small.text._replace(vocabulary=tokens)  # type: ignore[union-attr]
    patch.setitem(finetuning.SIZES, "clip_vit_tiny", small._replace(text=text))


def test_the_texts_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no word is refused, an underscore is a space; tokens are bytes here, and marks."""
    path = tmp_path / "vocabulary.txt"
    path.write_text("#\nq q\n")
    _with_vocabulary(monkeypatch, 515)
    args = asked(prompt="{} or {}", vocabulary=str(path), model="clip_vit_tiny")
    (row,) = finetuning._texts(args, ["a_b"])
    byte = {letter: ord(letter) - ord("!") for letter in "abor"}
    a, b, end = byte["a"] + 256, byte["b"] + 256, 514
    words = [a, b, byte["o"], byte["r"] + 256, a, b]
    assert row.tolist() == [513, *words, end, *[0] * (77 - 8)]
    for names in (None, ["12", "7"], ["n01440764", "n1"], ["/m/01", "3"]):
        with pytest.raises(RunError, match="needs the names of the classes in words"):
            finetuning._texts(args, names)
    for name in ("n", "x12", "a/b"):  # one word is enough
        assert len(finetuning._texts(args, ["12", name])) == 2
    for vocabulary in (514, 516, 49408):
        _with_vocabulary(monkeypatch, vocabulary)
        with pytest.raises(RunError, match=f"has 515 tokens, clip_vit_tiny {vocabulary}: it is cu"):
            finetuning._texts(args, ["a"])


def test_texts_decide_what_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, prompt and vocabulary; a run begun before they were written down may be resumed."""
    _with_vocabulary(monkeypatch, 515)
    for name, merge in (("one", "a t"), ("other", "c a")):
        (tmp_path / name).write_text(f"#\n{merge}\n")

    def described(
        names: Any = ("cat", "dog"), vocabulary: str = "one", **changes: Any
    ) -> dict[str, Any]:
        args = asked(vocabulary=str(tmp_path / vocabulary), model="clip_vit_tiny", **changes)
        dataset = types.SimpleNamespace(class_names=names)
        return finetuning.started(args, dataset, None, PLAN).description

    text: Any = {"classifier_start": "text"}
    one = described(**text)
    assert described(**text) == one and len(one["texts_sha256"]) == 16
    for other in (
        described(("dog", "cat"), **text), described(("cats", "dog"), **text),
        described(vocabulary="other", **text), described(prompt="{}.", **text),
    ):  # fmt: skip
        assert "texts_sha256" in folders.different(one, other)
    assert folders.different({"rule": "sgd"}, one) == ""
    assert described(classifier_start="mean") == PLAN.description


# ---- features in the place of images ------------------------------------------------------------

TINY = tiny_dataset(counts=(3, 1, 2))


def found(width: int = 2) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {part: draw.normal(size=(len(getattr(TINY, f"{part}_labels")), 1, 2, width)).astype("f")
            for part in ("train", "test")}  # fmt: skip


def test_the_mean_of_each_classes_features() -> None:
    """Of the images alone, not of their mirrors; one class has none."""
    given = found(3)
    labels = np.array([2, 2, 0, 0, 0, 2], np.int32)
    seen = types.SimpleNamespace(train_labels=labels, num_classes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_features", lambda *args: {args[-1][0]: given["train"]})
        kernel = finetuning._class_means("m", seen, None, None)
    assert kernel.shape == (3, 3) and kernel.dtype == np.float32
    for c in (0, 2):
        mean = given["train"][labels == c, 0, 0].mean(axis=0)
        np.testing.assert_allclose(kernel[:, c], mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_array_equal(kernel[:, 1], 0)
    kept = features.of(TINY, given)
    first = given["train"][TINY.train_labels == 0, 0, 0].mean(axis=0)
    made = finetuning._class_means("m", kept, None, None)  # of kept ones no tower is asked
    np.testing.assert_allclose(made[:, 0], first / np.linalg.norm(first), rtol=1e-5)


def test_texts_are_read_by_the_random_tower_of_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"params": {"head": {"kernel": None}}}
    monkeypatch.setattr(finetuning, "_variables", lambda *_: head)
    monkeypatch.setattr(finetuning, "_of_texts", lambda args, texts, weights, seed: 10 + seed)
    start = finetuning._starting(asked(classifier_start="text"), TINY, None, "texts")
    for seed in (0, 1):
        kernel = start(types.SimpleNamespace(seed=seed))["params"]["head"]["kernel"]
        assert kernel == 10 + seed


@pytest.mark.parametrize(
    ("weights", "passes"),
    [(None, [0, 1]), (Weights({}, None, None, "a.safetensors (SHA-256 01234567)"), [0])],
)
def test_a_files_means_are_those_of_every_seed(
    weights: Any, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second stage whose classifier is fresh says so."""
    seen, head = [], {"kernel": None, "bias": 0}

    def means(model: str, dataset: Any, settings: Any, weights: Any) -> int:
        seen.append(settings.seed)
        return 10 + settings.seed

    monkeypatch.setattr(finetuning, "_variables", lambda *_: {"params": {"head": head, "x": 1}})
    monkeypatch.setattr(finetuning, "_class_means", means)
    stages: Any = {
        name: Stage(None, None, None, None, None, keeps, {"stage2": name})  # type: ignore[arg-type]
        for name, keeps in (("lws", True), ("crt", False))
    }
    plan = PLAN._replace(second=stages)
    plan = finetuning.started(asked(classifier_start="mean"), TINY, weights, plan)
    assert plan.start is not None
    for seed in (0, 1, 0):
        kernel = plan.start(types.SimpleNamespace(seed=seed))["params"]["head"]["kernel"]
        assert kernel == 10 + (seed if weights is None else 0)
    assert seen == passes
    note = weights.note if weights else "random weights, no pretrained ones"
    assert plan.init == f"{note}; the classifier from the means of each class"
    assert plan.second["lws"].description == {"stage2": "lws"}
    assert plan.second["crt"].description == {
        "stage2": "crt", "init": f"{plan.init}, in this stage afresh",
    }  # fmt: skip


def test_labels_are_told_apart_by_part() -> None:
    def sha(**labels: Any) -> str:
        given = {f"{part}_labels": labels.get(part) for part in ("train", "test", "val")}
        return finetuning._labels_sha256(types.SimpleNamespace(**given))

    one, two = np.array([0, 1]), np.array([1, 0])
    assert sha(train=one) == sha(train=one.astype(np.int8)) and len(sha(train=one)) == 16
    alike = [
        {"train": one},
        {"test": one},
        {"val": one},
        {"train": two},
        {"train": one, "val": one},
    ]
    assert len({sha(**each) for each in alike}) == 5


def _of_files(*names: bytes) -> FolderSplit:
    return FolderSplit("images", np.array(names), np.zeros(len(names), np.int32))


def _of_records(split: str, *names: bytes) -> TfdsSplit:
    made = TfdsSplit.__new__(TfdsSplit)
    made.split, made.names = split, np.array(names) if names else None
    return made


def test_images_are_told_apart() -> None:
    """In memory by their pixels, in files by which are chosen, in what order and for what part."""
    files, rows = _of_files(b"a", b"bc"), np.array([0, 1])
    labels = np.zeros(2, np.int32)
    one = tiny_dataset()
    changed = one.test_images.copy()
    changed[-1, -1, -1, -1] ^= 1
    told = [
        one,
        tiny_dataset(seed=1),
        dataclasses.replace(one, test_images=changed),
        *(
            types.SimpleNamespace(**parts)
            for parts in (
                {"train": files, "test": files}, {"train": files, "val": files}, {"train": files},
                {"train": _of_files(b"bc", b"a")}, {"train": _of_files(b"ab", b"c")},
                {"train": Subset(files, rows, labels)},
                {"train": Subset(files, rows[::-1], labels)},
                {"train": Subset(_of_files(b"a", b"d"), rows, labels)},
                {"train": _of_records("train")}, {"train": _of_records("test")},
                {"train": _of_records("train", b"a", b"b")},
                {"train": _of_records("train", b"b", b"a")},
            )
        ),
    ]  # fmt: skip
    assert len({identity.images_sha256(each) for each in told}) == len(told)
    again = (tiny_dataset(), types.SimpleNamespace(train=_of_files(b"a", b"bc")))
    assert [identity.images_sha256(x) for x in again] == [
        identity.images_sha256(x) for x in (one, told[5])
    ]


def test_features_are_kept_of_these_images(tmp_path: Path, monkeypatch: Any) -> None:
    """Not of others with the same labels; a path that takes none is refused before them."""
    given = found()
    monkeypatch.setattr(
        finetuning, "_features", lambda *asked: {part: given[part] for part in asked[-1]}
    )
    path = tmp_path / "kept.npz"
    args = asked(cache_features=str(path), precision="float32")
    settings = types.SimpleNamespace(seed=0)
    for _ in range(2):
        finetuning.cached(args, TINY, None, settings)
    with np.load(path) as kept:
        assert sorted(kept) == ["made", "test", "train"]
        assert json.loads(str(kept["made"])) == {
            "model": "clip_vit_b16", "weights": "random, seed 0", "source": TINY.source,
            "labels": finetuning._labels_sha256(TINY), "image_size": None, "resize": None,
            "images": identity.images_sha256(TINY)[:16], "precision": "float32",
        }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(RunError, match="--cache-features computes them in one process"):
            finetuning.cached(args, TINY, None, settings)
    others = dataclasses.replace(TINY, train_images=TINY.train_images ^ 1)
    with pytest.raises(DataError, match="holds other features: images is "):
        finetuning.cached(args, others, None, settings)
    monkeypatch.setattr(finetuning, "_features", lambda *_: pytest.fail("it computed them"))
    for place in (path / "a.npz", tmp_path / ("n" * 300)):
        args.cache_features = str(place)
        with pytest.raises(RunError, match=r"cannot keep features in .*: "):
            finetuning.cached(args, TINY, None, settings)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.npz"]


def test_features_stand_for_the_images_of_their_part() -> None:
    given = found()
    kept = features.of(TINY, given)
    assert (kept.mean, kept.std, kept.name) == ((), (), TINY.name)
    assert kept.many_above == TINY.many_above and kept.val_images is None
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(kept, f"{part}_images"), given[part])
        np.testing.assert_array_equal(
            getattr(kept, f"{part}_labels"), getattr(TINY, f"{part}_labels")
        )
    with pytest.raises(DataError, match="test lacks features or labels"):
        features.of(TINY, {"train": given["train"]})


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float64), lambda x: x[:-1], lambda x: x[..., 0],
        lambda x: np.concatenate([x, x], axis=1), lambda x: x[:, :, :1],
    ],
)  # fmt: skip
def test_what_are_no_features_is_refused(change: Any) -> None:
    given = found() | {"train": change(found()["train"])}
    with pytest.raises(DataError, match=r"tiny: features of train are .*, not float32\[6, 1, 2, D"):
        features.of(TINY, given)


def test_kept_features_are_those_of_what_made_them(tmp_path: Path) -> None:
    path, made, given = tmp_path / "a" / "kept.npz", {"model": "x", "size": 3}, found()
    features.save(path, given, made)
    again = features.load(path, made, TINY)
    assert again.val_images is None
    for part in given:
        np.testing.assert_array_equal(getattr(again, f"{part}_images"), given[part])
    features.load(path, {"model": "x"}, TINY)
    for other, said in (({"size": 4}, "size is 3, not 4"), ({"new": "y"}, "new is None, not 'y'")):
        with pytest.raises(DataError, match=f"holds other features: {said}; name another file"):
            features.load(path, made | other, TINY)
    whole = np.array(json.dumps(made))
    for text in (None, "{", "", "3", "null", '"x"', "[1]", "[" * 5000, 3, np.nan, [b"{}"]):
        np.savez(path, **given, **({} if text is None else {"made": np.array(text)}))
        with pytest.raises(DataError, match="holds no features: nothing in it says how they were"):
            features.load(path, made, TINY)
    for part in given:
        good = given[part]
        for bad in (
            None, np.float32(np.nan), good * np.nan, np.where(good == good.max(), np.inf, good),
            good.astype(np.float64), good.astype(complex), good.astype(str), good[1:], good[0],
            good[..., :1], good[..., :0], good.ravel(), np.zeros((0, 1, 2, 2), np.float32),
        ):  # fmt: skip
            arrays = {k: v for k, v in {**given, part: bad}.items() if v is not None}
            np.savez(path, made=whole, **arrays)
            with pytest.raises(DataError, match=r"kept\.npz is damaged: tiny: "):
                features.load(path, made, TINY)
    with pytest.raises(TypeError):
        features.save(path, given, {"model": object()})
    assert [file.name for file in path.parent.iterdir()] == ["kept.npz"]
