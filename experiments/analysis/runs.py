"""The models of run folders, and of folders of `digits_lt --save`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analysis import own
from experiments.analysis.subjects import DESCRIBED, Rows, Subject
from experiments.bench.folder import PARAMS, read_params, rows_sha256
from experiments.command import finished
from experiments.data import Dataset, filled
from experiments.data.augment import normalise
from experiments.data.digits import load_digits_lt
from experiments.data.encoded import EncodedDataset
from experiments.host.errors import RunError
from experiments.host.outputs import read_json
from experiments.host.stopping import StopRequest
from experiments.models import WITHOUT_BATCH_NORM, create_model
from experiments.models.resnet import BATCH_NORM_MOMENTUM
from experiments.reports import grouping


def of_digits(path: Path, config: dict[str, Any]) -> list[Subject]:
    """The first stages of a folder of `digits_lt --save`, all seeds of each at once.

    Raises:
      RunError: it was written without --save, is damaged, or its files are of different runs.
    """
    lines = read_json(path / "summary.json")
    if not (path / PARAMS).is_dir():
        raise RunError(f"{path} holds no parameters: train it again with --save, which keeps them")
    kept, trained_on = read_params(path, lines, config)
    seeds = lines[0]["seeds"]
    factor = config["imbalance_factor"]
    datasets = [load_digits_lt(factor, seed) for seed in seeds]
    if rows_sha256(datasets) != trained_on:
        raise RunError(f"{path} was trained on other digits than there are now: train it again")
    first = datasets[0]
    train, test = (
        Rows(*(np.stack([getattr(d, f"{part}_{f}") for d in datasets]) for f in Rows._fields))
        for part in ("train", "test")
    )
    settings = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "imbalance_factor")
    setting = {"experiment": "digits_lt", **{name: config[name] for name in settings}}
    more = ("mixup", "weight_decay_inside", "classifier")  # where they ask for something
    setting |= {name: config[name] for name in more if config.get(name) not in (None, 0, "auto")}
    found = []
    for number, line in enumerate(lines):
        if line["stage2"] is not None or line["diverged"] is not None:
            continue
        params = kept[number]
        description = {name: line.get(name) for name in DESCRIBED} | {"setting": setting}
        moved = _own(description, config, first, config["epochs"])
        found.append(
            Subject(
                str(path), description, seeds, config["epochs"], {"params": params},
                _applied("mlp", first.num_classes, _kind(params), *_normalised_by(first)),
                train, test, first.class_counts(), (first.many_above, first.few_below),
                own=moved and moved.of_seeds(len(seeds)),
            )
        )  # fmt: skip
    return found


def _own(description: dict[str, Any], config: dict[str, Any], dataset: Any, epoch: int) -> Any:
    """The perturbations of a run's rule in the last step of an epoch, of one seed."""
    if description["stage2"] is not None:
        return None
    steps = -(-len(_labels(dataset, "train")) // config["batch_size"])
    method = finished.method_of_run(
        description, filled(dataset.class_counts()), config, steps_per_epoch=steps
    )
    about = {name: description[name] for name in ("rule", "rule_args", "ascent")}
    counts, seen = filled(dataset.class_counts()), None
    if config.get("sampling") == "balanced":
        seen = counts.sum() / (len(counts) * counts)
        about["sampling"] = "balanced"
    return own.of_method(method, max(epoch * steps - 1, 0), about, seen=seen)


def _labels(dataset: Dataset | EncodedDataset, part: str) -> np.ndarray:
    if isinstance(dataset, Dataset):
        return getattr(dataset, f"{part}_labels")
    return getattr(dataset, part).labels


def _kind(params: Any) -> str:
    """Which classifier has these parameters; see `experiments.models`."""
    names = set(params["head"])
    return "scaled" if "scales" in names else "linear" if "bias" in names else "normalised"


def of_checkpoint(
    path: Path, config: dict[str, Any], dataset: Any, variables: Any, epoch: int, rows: Any
) -> Subject:
    """A run folder's model after an epoch; `rows` are (train, test) as `rows_of` has them."""
    # SGD is the same whatever the others perturb, and however their passes see the rows.
    free = [*DESCRIBED, *grouping.DECIDES_NOTHING, *grouping.METHOD]
    free += ["preset", "together"]
    free += [] if config.get("sampling") == "stratified" else ["eta", "strict"]
    setting = {name: value for name, value in config.items() if name not in free}
    description = {name: config.get(name) for name in DESCRIBED} | {"setting": setting}
    passes = set(grouping.METHOD) - set(DESCRIBED)
    description["passes"] = {name: config[name] for name in sorted(passes) if config.get(name)}
    kind = config.get("classifier", "linear")
    held = {k: v for k, v in variables.items() if v}
    of_model = config["model"], dataset.num_classes, kind, *_normalised_by(dataset)
    has_statistics = config["model"] not in WITHOUT_BATCH_NORM
    return Subject(
        str(path), description, [config["seed"]], epoch, _with_axis(held), _applied(*of_model),
        rows[0], rows[1], dataset.class_counts(), (dataset.many_above, dataset.few_below),
        own=_own(description, config, dataset, epoch),
        statistics=_statistics(*of_model) if has_statistics else None,
    )  # fmt: skip


def rows_of(
    dataset: Dataset | EncodedDataset, feed: Any, per_class: int | None, stop: StopRequest
) -> tuple[Rows, Rows]:
    """(train, test) rows of a data set: of each class at most so many, the first that are read.

    Test images that are in memory are all taken: they are only counted.
    """
    of_test = None if isinstance(dataset, Dataset) else per_class
    train = _rows(dataset, feed, "train", per_class, stop)
    return train, _rows(dataset, feed, "test", of_test, stop)


_MOST_BYTES = 8 * 2**30


def _rows(dataset: Any, feed: Any, part: str, per_class: int | None, stop: StopRequest) -> Rows:
    if isinstance(dataset, Dataset):
        images, labels = getattr(dataset, f"{part}_images"), _labels(dataset, part)
        kept = _first(labels, per_class)
        return Rows(images[kept][None], labels[kept][None])
    labels = _labels(dataset, part)
    kept = _first(labels, per_class)
    if len(kept) * dataset.size**2 * 3 > _MOST_BYTES:
        raise RunError(
            f"{len(kept)} {part} images of {dataset.size} x {dataset.size} pixels do not fit into "
            "memory: say by --images-per-class how many of each class are looked at"
        )
    wanted = np.zeros(len(labels), bool)
    wanted[kept] = True
    images, found, seen = [], [], 0
    with feed.evaluation(part, 256) as batches:
        for rows in batches:
            stop.check()
            real = np.asarray(rows.mask[0])
            here = np.pad(
                wanted[seen : seen + len(real)], (0, max(0, seen + len(real) - len(wanted)))
            )
            seen += len(real)
            images.append(np.asarray(rows.images[0])[real & here])
            found.append(np.asarray(rows.labels[0])[real & here])
            if not wanted[seen:].any():
                break
    return Rows(np.concatenate(images)[None], np.concatenate(found)[None])


def _first(labels: np.ndarray, per_class: int | None) -> np.ndarray:
    """The first rows of each class, in their order."""
    if per_class is None:
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    of_class = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(of_class, of_class)
    return np.sort(order[rank < per_class])


def _with_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)


def _normalised_by(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(dataset.mean), tuple(dataset.std)


@functools.cache
def _applied(model: str, num_classes: int, classifier: str, mean: Any, std: Any) -> Any:
    """One function for all subjects of one model: what is compiled for it is compiled once."""
    net = create_model(model, num_classes, classifier=classifier)

    def apply(variables: Any, images: Any) -> Any:
        return net.apply(variables, normalise(images, mean, std), train=False)

    return apply


@functools.cache
def _statistics(model: str, num_classes: int, classifier: str, mean: Any, std: Any) -> Any:
    net = create_model(model, num_classes, classifier=classifier)

    def statistics(variables: Any, images: Any) -> Any:
        """{"batch_stats"} of these rows: what is left of nothing after one step of the average."""
        nothing = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        variables = {**variables, "batch_stats": nothing}
        images = normalise(images, mean, std)
        _, after = net.apply(variables, images, train=True, mutable=["batch_stats"])
        return jax.tree.map(lambda x: x / (1 - BATCH_NORM_MOMENTUM), after)

    return statistics
