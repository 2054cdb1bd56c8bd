"""What fine-tuning starts from: weights of a file or random ones, and the classifier's start."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from numpy.typing import NDArray

from experiments.command.plan import Plan
from experiments.data import features
from experiments.data.identity import images_sha256
from experiments.host.errors import DataError, RunError, Stopped
from experiments.host.inputs import read_bytes
from experiments.host.stopping import StopNow, StopRequest
from experiments.models.adapters import ADAPTERS
from experiments.models.clip import SIZES
from experiments.models.clip_weights import Weights, classifier_start, load_clip
from experiments.models.tokenizer import Tokenizer, find_vocabulary

# (mean, std) of images, of CLIP and of ViTs from ImageNet-21k.
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
VIT_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STARTS = ("auto", "text", "mean", "random")
RANDOM = "random"
# What data sets have for names: numbers, WordNet's ids, folders.
_NO_WORDS = re.compile(r"n?\d+|/.*")


def settle(args: argparse.Namespace) -> None:
    """Fills in what follows from other flags; a second time it changes nothing.

    The image size is what the model was trained on, evaluation cuts it out of 8/7 of it, as LIFT
    does, and images in memory are resized on the device.
    """
    if args.image_size is None:
        args.image_size = SIZES[args.model].image
    if args.resize is None:
        args.resize = args.image_size * 8 // 7
    patch = SIZES[args.model].patch
    if args.image_size % patch:
        raise RunError(
            f"--image-size {args.image_size} cannot be cut into the patches of {args.model}, "
            f"{patch} pixels a side: use a multiple of {patch}"
        )
    args.trained = ADAPTERS[args.adapter].trained
    if args.cache_features:
        args.ensemble = False  # a preset's: features have no crops
    args.classifier_start = start_kind(args)


def start_kind(args: argparse.Namespace) -> str:
    """How the classifier starts: as LIFT's does for these weights, where nobody says."""
    if args.classifier_start != "auto":
        return str(args.classifier_start)
    if args.init in (None, RANDOM):
        return "random"
    return "mean" if SIZES[args.model].text is None else "text"


def class_names(path: str, num_classes: int) -> tuple[str, ...]:
    """A name a line, in the order of the labels; UTF-8, with or without a byte-order mark.

    Raises:
      DataError: it cannot be read, has a blank line before the last name, or another number of
        names.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text") from error
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if "" in names:
        raise DataError(
            f"{path}, line {names.index('') + 1}: is blank, and the names after it would be those "
            "of other classes: remove it, or give the class a name"
        )
    if len(names) != num_classes:
        raise DataError(
            f"{path} has {len(names)} class names, one a line, for {num_classes} classes"
        )
    return names


def read_weights(args: argparse.Namespace) -> Weights | None:
    """What --init names, None for random weights."""
    if args.init is None:
        raise RunError(
            "--init is missing: name a .safetensors file of the model's weights, or random to try "
            "the way without"
        )
    if args.init == RANDOM:
        return None
    return load_clip(args.init, SIZES[args.model], args.image_size)


def started(args: argparse.Namespace, dataset: Any, weights: Weights | None, plan: Plan) -> Plan:
    """The plan with what its seeds start from, and what reports say of it."""
    note = "random weights, no pretrained ones" if weights is None else weights.note
    of = {
        "random": "at random",
        "text": f"from {args.prompt!r}",
        "mean": "from the means of each class",
    }
    init = f"{note}; the classifier {of[start_kind(args)]}"
    anew = {"init": f"{init}, in this stage afresh"}
    second = {
        name: stage if stage.keeps_head else stage._replace(description=stage.description | anew)
        for name, stage in plan.second.items()
    }
    texts = _texts(args, dataset.class_names) if start_kind(args) == "text" else None
    if texts is not None:  # names, prompt and vocabulary decide these tokens
        sha256 = hashlib.sha256(np.ascontiguousarray(texts, "<i4").tobytes()).hexdigest()[:16]
        plan = plan._replace(description={**plan.description, "texts_sha256": sha256})
    start = _starting(args, dataset, weights, texts)
    return plan._replace(start=start, init=init, second=second)


def _starting(
    args: argparse.Namespace, dataset: Any, weights: Weights | None, texts: Any
) -> Callable[[Any], Any]:
    """Plan.start: settings of a seed -> the variables it starts from."""
    kernels: dict[int | None, NDArray[Any]] = {}

    def start(settings: Any) -> Any:
        variables = _variables(args.model, dataset, settings, weights)
        if start_kind(args) == "random":
            return variables
        seed = settings.seed if weights is None else None  # a file's weights are those of all
        if seed not in kernels:
            kernels[seed] = (
                _class_means(args.model, dataset, settings, weights)
                if texts is None
                else _of_texts(args, texts, weights, settings.seed)
            )
        head = {**variables["params"]["head"], "kernel": kernels[seed]}
        return {**variables, "params": {**variables["params"], "head": head}}

    return start


def cached(args: argparse.Namespace, dataset: Any, weights: Weights | None, settings: Any) -> Any:
    """The features of a data set's images, kept in --cache-features or computed into it.

    The tower of random weights is that of the first seed.
    """
    if jax.process_count() > 1:
        raise RunError("--cache-features computes them in one process: leave it out, or use one")
    path = Path(args.cache_features)
    made = {
        "model": args.model,
        "weights": f"random, seed {settings.seed}" if weights is None else weights.note,
        "source": dataset.source,
        "labels": _labels_sha256(dataset),
        "images": images_sha256(dataset)[:16],
        "image_size": args.image_size,
        "resize": args.resize,
        "precision": args.precision,
    }
    if os.path.exists(path):  # Path's raises where a name is too long
        return features.load(path, made, dataset)
    features.check_writable(path)
    parts = [x for x in ("train", "test", "val") if getattr(dataset, f"{x}_labels") is not None]
    found = _features(args.model, dataset, settings, weights, parts)
    seen = features.of(dataset, found)  # what it refuses is not kept either
    features.save(path, found, made)
    return seen


def _labels_sha256(dataset: Any) -> str:
    digest = hashlib.sha256()
    for part in ("train", "test", "val"):
        labels = getattr(dataset, f"{part}_labels")
        digest.update(b"-" if labels is None else np.ascontiguousarray(labels, "<i4").tobytes())
    return digest.hexdigest()[:16]


def _variables(model: str, dataset: Any, settings: Any, weights: Weights | None) -> dict[str, Any]:
    """Fresh ones of that seed, with the file's tower; head and adapters stay fresh."""
    from experiments.run.parts import Parts
    from imbsam_jax.losses import cross_entropy

    fresh = Parts(dataset, model, cross_entropy, settings).initial.variables()
    if weights is None:
        return fresh
    flat = traverse_util.flatten_dict(fresh["params"])
    tower = traverse_util.flatten_dict(weights.image)
    flat |= {path: tower[path] for path in flat if path in tower}
    return {**fresh, "params": traverse_util.unflatten_dict(flat)}


def _features(
    model: str, dataset: Any, settings: Any, weights: Weights | None, parts: list[str]
) -> dict[str, NDArray[Any]]:
    """ "PART_images" -> float32[N, 1, 2, D], by the tower without an adapter."""
    from experiments.run.parts import Parts
    from imbsam_jax.losses import cross_entropy

    plain = dataclasses.replace(settings, adapter="linear", adapter_size=0, trained="head")
    start = _variables(model, dataset, plain, weights)
    made = Parts(dataset, model, cross_entropy, plain, start)
    with StopRequest() as stop:
        try:
            found = {part: made.evaluator.features(made.initial, part, stop) for part in parts}
            code = stop.signalled_anywhere()  # in the last batch, or where several do not look
        except StopNow as asked:
            code = asked.exit_code
    if code:
        raise Stopped(
            "stopped while the frozen tower's features were computed: none of these are kept", code
        )
    return found


def _class_means(
    model: str, dataset: Any, settings: Any, weights: Weights | None
) -> NDArray[np.float32]:
    """float32[D, C]: the mean of each class's features, of length 1; 0 without an image."""
    if isinstance(dataset, features.Features):
        images = dataset.train_images
    else:
        images = _features(model, dataset, settings, weights, ["train"])["train"]
    sums = np.zeros((dataset.num_classes, images.shape[-1]))
    np.add.at(sums, dataset.train_labels, images[:, 0, 0])
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    # A class without an image has sums of 0.
    return np.asarray((sums / np.maximum(norms, np.finfo(float).tiny)).T, np.float32)


def _texts(args: argparse.Namespace, names: Any) -> NDArray[np.int32]:
    """A text of each class, as tokens."""
    size = SIZES[args.model]
    if size.text is None:
        raise RunError(f"--classifier-start text needs a text tower, which {args.model} has not")
    if names is None or all(map(_NO_WORDS.fullmatch, names)):
        told = "does not tell" if names is None else f"has as {names[0]!r} and the like"
        raise RunError(
            "--classifier-start text needs the names of the classes in words, which this data set "
            f"{told}: give --class-names"
        )
    if "{}" not in args.prompt:
        raise RunError(f"--prompt {args.prompt!r} has no {{}} for the name of the class")
    tokenizer = Tokenizer(Path(args.vocabulary) if args.vocabulary else find_vocabulary())
    if tokenizer.end != size.text.vocabulary - 1:
        raise RunError(
            f"the vocabulary has {tokenizer.end + 1} tokens, {args.model} {size.text.vocabulary}: "
            "it is cut short, or of another model"
        )
    texts = [args.prompt.replace("{}", name.replace("_", " ")) for name in names]
    return tokenizer(texts, size.text.length)


def _of_texts(
    args: argparse.Namespace, texts: NDArray[np.int32], weights: Weights | None, seed: int
) -> NDArray[Any]:
    size = SIZES[args.model]
    if weights is not None:
        return classifier_start(size, weights.text, weights.projection, texts)
    from experiments.models.clip import TextTower

    assert size.text is not None
    text_key, joint_key = jax.random.split(jax.random.key(seed))
    text = jax.jit(TextTower(size).init)(text_key, texts[:1])["params"]
    projection = jax.random.normal(joint_key, (size.width, size.text.joint))
    return classifier_start(size, text, projection, texts)
