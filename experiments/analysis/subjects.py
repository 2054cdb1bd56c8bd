"""What is analysed: models of finished runs, with the rows and groups they are seen on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from experiments.data import Dataset
from experiments.data.augment import normalise
from experiments.data.digits import load_digits_lt
from experiments.data.encoded import EncodedDataset
from experiments.host.errors import RunError, reason
from experiments.host.outputs import read_json
from experiments.host.stopping import StopRequest
from experiments.models import create_model
from imbsam_jax import shot_splits, tail_classes

# What a run is called by, and what its difference to SGD is taken over.
DESCRIBED = ("rule", "rule_args", "ascent", "loss", "loss_args", "stage2", "stage2_args")


class Rows(NamedTuple):
    """Rows of S seeds: images [S, N, ...], as stored, and labels int[S, N]."""

    images: np.ndarray
    labels: np.ndarray


class Subject(NamedTuple):
    """The models of S seeds, trained alike; S is 1 for a run folder of one seed.

    Attributes:
      run: its folder, as named on the command line.
      description: the fields DESCRIBED, and under "setting" what must agree to be compared.
      seeds: S of them.
      epoch: after which the parameters are.
      variables: {"params", "batch_stats"}, [S, ...] each.
      apply: (variables, images as stored) -> logits; one object for all subjects of one model.
      train, test: their rows; the labels are the same for every seed.
      counts: int[C], training examples of each class.
      thresholds: (Many above, Few below).
    """

    run: str
    description: dict[str, Any]
    seeds: list[int]
    epoch: int
    variables: Any
    apply: Callable[[Any, Any], Any]
    train: Rows
    test: Rows
    counts: np.ndarray
    thresholds: tuple[int, int]


def groups_of(subject: Subject, eta: float, per_class: bool) -> dict[str, np.ndarray]:
    """bool[C] by name: all, head, tail, many, medium, few, and each class; without empty ones."""
    counts = subject.counts
    tail = tail_classes(counts, eta)
    found = {"all": np.ones(len(counts), bool), "head": ~tail, "tail": tail}
    found |= {k: np.asarray(v) for k, v in shot_splits(counts, *subject.thresholds).items()}
    if per_class:
        found |= {f"class {c}": np.arange(len(counts)) == c for c in range(len(counts))}
    present = np.bincount(subject.train.labels[0], minlength=len(counts)) > 0
    return {name: group for name, group in found.items() if (group & present).any()}


# ------------------------------------------------------------------------------------------ digits


def of_digits(path: Path, config: dict[str, Any]) -> list[Subject]:
    """The first stages of a folder of `digits_lt --save`, all seeds of each at once.

    Raises:
      RunError: it was written without --save, or is damaged.
    """
    lines = read_json(path / "summary.json")
    if not (path / "params").is_dir():
        raise RunError(f"{path} holds no parameters: train it again with --save, which keeps them")
    seeds = lines[0]["seeds"]
    factor = config["imbalance_factor"]
    datasets = [load_digits_lt(factor, seed) for seed in seeds]
    train, test = (
        Rows(*(np.stack([getattr(d, f"{part}_{f}") for d in datasets]) for f in Rows._fields))
        for part in ("train", "test")
    )
    settings = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "imbalance_factor")
    setting = {"experiment": "digits_lt", **{name: config[name] for name in settings}}
    found = []
    for number, line in enumerate(lines):
        if line["stage2"] is not None or line["diverged"] is not None:
            continue
        params = _arrays(path / "params" / f"{number}.npz")
        description = {name: line.get(name) for name in DESCRIBED} | {"setting": setting}
        found.append(
            Subject(
                str(path), description, seeds, config["epochs"], {"params": params},
                _applied("mlp", datasets[0].num_classes, _kind(params), datasets[0]),
                train, test, datasets[0].class_counts(),
                (datasets[0].many_above, datasets[0].few_below),
            )
        )  # fmt: skip
    return found


def _arrays(path: Path) -> Any:
    try:
        with np.load(path) as held:
            return unflatten_dict({name: held[name] for name in held.files}, sep="/")
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error


def _kind(params: Any) -> str:
    """Which classifier has these parameters; see `experiments.models`."""
    names = set(params["head"])
    return "scaled" if "scales" in names else "linear" if "bias" in names else "normalised"


# ------------------------------------------------------------------------------------ run folders


def of_checkpoint(
    path: Path, config: dict[str, Any], dataset: Any, variables: Any, epoch: int, rows: Any
) -> Subject:
    """A run folder's model after an epoch; `rows` are (train, test) as `rows_of` has them."""
    setting = {
        name: value
        for name, value in config.items()
        if name not in (*DESCRIBED, "seed", "devices", "parallel", "steps_per_call", "preset")
    }
    description = {name: config.get(name) for name in DESCRIBED} | {"setting": setting}
    kind = config.get("classifier", "linear")
    held = {k: v for k, v in variables.items() if v}
    return Subject(
        str(path), description, [config["seed"]], epoch, _with_axis(held),
        _applied(config["model"], dataset.num_classes, kind, dataset), rows[0], rows[1],
        dataset.class_counts(), (dataset.many_above, dataset.few_below),
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
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        kept = _first(labels, per_class)
        return Rows(images[kept][None], labels[kept][None])
    labels = getattr(dataset, part).labels
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
    import jax

    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)


def _applied(model: str, num_classes: int, classifier: str, dataset: Any) -> Any:
    return _cached(model, num_classes, classifier, tuple(dataset.mean), tuple(dataset.std))


@functools.cache
def _cached(model: str, num_classes: int, classifier: str, mean: Any, std: Any) -> Any:
    """One function for all subjects of one model: what is compiled for it is compiled once."""
    net = create_model(model, num_classes, classifier=classifier)

    def apply(variables: Any, images: Any) -> Any:
        return net.apply(variables, normalise(images, mean, std), train=False)

    return apply
