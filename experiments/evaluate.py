"""Evaluates a finished (or stopped) run folder: `python -m experiments.evaluate RUN`.

The figures are of the last checkpoint. Data comes as it came to the run: from TFDS by the folder's
config.json, or from an exported file with --data.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from experiments import cifar_lt, finetune, imagenet_lt, inaturalist
from experiments.host import cli
from experiments.host.errors import DataError, RunError
from experiments.host.folders import same_source
from experiments.host.needs import Needs, always, without
from experiments.host.outputs import read_object, same_text
from experiments.host.sealed import class_counts_sha256
from experiments.imagenet_lt import LISTS
from experiments.reports.figures import COLUMNS, number
from experiments.reports.tables import console


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Evaluate the last checkpoint of a run folder on its test set.",
        data_needs(),
    )
    parser.add_argument("run", type=cli.text, help="a run folder")
    add_data_arguments(parser)
    return parser


def data_needs() -> Needs:
    """When each flag of `add_data_arguments` is heeded."""
    return {
        **always("data", "image_dir", "max_corrupt", *LISTS),
        "data_dir": (without("data"),),
    }


def add_data_arguments(parser: Any) -> None:
    """Where a run's data is now."""
    parser.add_argument(
        "--data-dir", type=cli.text, help="folder of prepared TFDS data; default TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--data", type=cli.text, help="an exported .npz, for a run that was trained from one"
    )
    parser.add_argument(
        "--image-dir", type=cli.text, help="folder of image files, for a run trained from one"
    )
    parser.add_argument(
        "--max-corrupt", type=cli.number(least=0, most=1),
        help="share of images that may be unreadable, of files and records; 0.001",
    )  # fmt: skip
    for name in LISTS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=cli.text, help="list file, for a run trained with one")


def _load(args: argparse.Namespace, config: dict[str, Any], run: Path) -> Any:
    """The run's data set, by the flags that its entry point would be given."""
    modules = (cifar_lt, imagenet_lt, inaturalist, finetune)
    module = {m.__name__.removeprefix("experiments."): m for m in modules}.get(
        config.get("experiment", "")
    )
    if module is None:
        raise RunError(f"{run} is a run of {config.get('experiment')!r}, which has no images")
    if config.get("features"):
        raise RunError(f"{run} was trained on kept features: its figures are in its report.json")
    of_cifar = module is cifar_lt or config.get("data_of") in finetune.CIFAR
    known = {"data", "data_dir"} if of_cifar else {"data_dir", "image_dir", "max_corrupt", *LISTS}
    flags = ("data", "data_dir", "image_dir", "max_corrupt", *LISTS)
    given = [name for name in flags if getattr(args, name) is not None]
    unheeded = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if unheeded:
        names = ", ".join(unheeded)
        raise RunError(f"{run} is a run of {config['experiment']}: {names} would go unheeded")
    wanted = {"val_per_class": config["val_per_class"]}
    given = []
    if module is not cifar_lt:
        wanted |= {key: config.get(key) for key in ("image_size", "resize")}
        wanted["dataset"] = config.get("data_of")
    if module is finetune:
        wanted["model"] = config["model"]
    if not of_cifar:
        wanted |= {key: getattr(args, key) for key in ("image_dir", *LISTS)}
        given = ["--allow-empty-classes"]
    elif args.data:
        found = _exported(args.data, config)
        return found if module is cifar_lt else finetune.as_seen(config["model"], found)
    else:
        wanted["shrink"] = config.get("shrink")
        wanted |= {key: config.get(key) for key in ("subset", "subset_seed")}
        wanted["dataset"] = config.get("data_of", config.get("dataset"))
        factor = config.get("requested_imbalance_factor", config["imbalance_factor"])
        wanted["imbalance_factor"] = factor
        if None in (config.get("subset", ""), factor):
            raise RunError(
                f"{run} was trained from a file that does not say what it was cut out of: give "
                "that file with --data"
            )
    wanted["data_dir"] = args.data_dir
    given += [f"--{k.replace('_', '-')}={v}" for k, v in wanted.items() if v is not None]
    try:
        # Known ones alone: what nobody typed is not refused as unheeded.
        return module.load(module.arguments().parse_known_args(given)[0])
    except DataError as error:
        # Without the flags of files prepared data is looked for, which such a run never had.
        if args.image_dir is not None or not config.get("source", "").startswith("images in "):
            raise
        raise RunError(
            f"{run} was trained on {config['source']}: give --image-dir and the lists that it was "
            "trained with"
        ) from error


def _exported(path: str, config: dict[str, Any]) -> Any:
    """The data set of an exported file, as the run had it: what the file has is not done twice."""
    dataset, shrink = cifar_lt.read(path), config.get("shrink", 1)
    if dataset.shrink > 1:
        if dataset.shrink != shrink:
            seen = f"of {shrink} x {shrink} pixels averaged" if shrink > 1 else "as they are"
            raise RunError(
                f"{path} has every {dataset.shrink} x {dataset.shrink} pixels averaged, and the "
                f"run saw images {seen}: give the file that it was trained from"
            )
        shrink = 1
    held_out = 0 if dataset.val_labels is not None else config["val_per_class"]
    return cifar_lt.finished(dataset, shrink, held_out)


def _refuse_other_images(found: dict[str, Any], config: dict[str, Any], run: Path) -> None:
    """RunError for images that the run was not trained to see, as far as its config says."""
    for name, what in _IMAGES.items():
        known = config.get(name)
        if known is not None and known != found[name]:
            raise RunError(
                f"{run} was trained on images {what} {same_text(known)}, and this data "
                f"has {same_text(found[name])}: give the data that it was trained from"
            )


_IMAGES = {
    "image_shape": "of height, width and channels",
    "image_mean": "normalised by a mean of",
    "image_std": "normalised by a deviation of",
}


def no_run(path: Path) -> str:
    """Why there is nothing to evaluate in a path, and which folders in it could be meant."""
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        return f"{path} is no run folder: it is {what}"
    below = ("*/" * depth for depth in range(1, 4))
    found = [
        config.parent
        for pattern in below
        for config in sorted(path.glob(f"{pattern}config.json"))
        if (config.parent / "checkpoints").is_dir()
    ]
    if found:
        names = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        return f"{path} is no run folder, but holds some: name one of {names}"
    lacks = "checkpoint" if (path / "config.json").exists() else "config.json"
    return f"{path} is no run folder to evaluate: it holds no {lacks}"


class Opened(NamedTuple):
    """A run folder whose checkpoints and data were found to be those of its config.json.

    Attributes:
      config: its config.json.
      dataset: as the run had it.
      parts: what the run is made of, on one device (or `devices`) of this machine.
      checkpoints: to be read and closed.
      contradiction: (state, note) -> why the two cannot be of one checkpoint, or None.
    """

    config: dict[str, Any]
    dataset: Any
    parts: Any
    checkpoints: Any
    contradiction: Any


def open_run(run: Path, args: argparse.Namespace, devices: int = 1) -> Opened:
    """The run folder, with its data; RunError for what is none, or was changed since."""
    from experiments.run.checkpoints import Checkpoints
    from experiments.run.parts import Parts, about_images, rows_of
    from experiments.run.settings import Note, Settings
    from imbsam_jax.losses import cross_entropy

    held = run / "checkpoints"
    if not (run / "config.json").exists() or not held.is_dir():
        raise RunError(no_run(run))
    config = read_object(run / "config.json")
    cli.use_compilation_cache()
    checkpoints = Checkpoints(held, config=config, reading=True)
    # What a run was trained with is what its checkpoints say: a config.json that was damaged or
    # changed since, in whatever field, stops here.
    checkpoints.check_config(run / "config.json", config)
    dataset = _load(args, config, run)
    if class_counts_sha256(dataset.class_counts()) != config["class_counts_sha256"]:
        raise RunError("this data has other class counts than the run was trained with")
    _refuse_other_images(about_images(dataset), config, run)
    now, then = rows_of(dataset), config.get("rows_sha256")
    others = [part for part in now if then is not None and now[part] != then.get(part)]
    if others:
        print(f"note: the {' and '.join(others)} images are others than the run's")
    if not same_source(dataset.source, config["source"]):
        print(f"note: this data is: {dataset.source}\nthe run's was: {config['source']}")
    fields = Settings.__dataclass_fields__
    trained = Settings(**{name: config[name] for name in fields if name in config})
    # On whatever machine this is, not on as many devices as it was trained.
    settings = dataclasses.replace(
        trained, devices=devices, parallel="jit", accumulate=1, examples="dependent",
        max_corrupt=0.001 if args.max_corrupt is None else args.max_corrupt,
    )  # fmt: skip
    parts = Parts(dataset, config["model"], cross_entropy, settings)

    def contradiction(state: Any, note: dict[str, Any]) -> str | None:
        read, step = Note.read(note), int(state.step)
        first = read.epoch * parts.steps_per_epoch
        if first <= step <= first + (parts.steps_per_epoch if read.calls else 0):
            return None
        return f"its note is of epoch {read.epoch}, but its state of step {step}"

    return Opened(config, dataset, parts, checkpoints, contradiction)


def main(args: argparse.Namespace) -> None:
    from experiments.host.stopping import StopRequest
    from experiments.run.settings import Note

    run = Path(args.run)
    config, _, parts, checkpoints, contradiction = open_run(run, args)
    found = checkpoints.restore(parts.initial, check=contradiction)
    assert found is not None  # check_config found one
    checkpoints.close()
    state, note = parts.evaluator.put_state(found[0]), Note.read(found[1])
    at = f"after epoch {note.epoch}"
    if note.calls:  # stopped inside the next one
        at = f"in epoch {note.epoch + 1}, at step {int(found[0].step)}"
    heading = Text(f"{run} {at}: accuracy (%)")
    table = Table(title=heading, box=box.SIMPLE_HEAD)
    table.add_column("test set")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    with StopRequest() as stop:
        ways: list[tuple[str, dict[str, bool]]] = [
            ("as it is", {}),
            ("flip-averaged", {"flip": True}),
        ]
        if config.get("ensemble"):
            ways.append(("five crops averaged", {"crops": True}))
        for title, way in ways:
            hits = parts.evaluator.hits(state, "test", stop, **way)
            accuracies = parts.evaluator.accuracies(hits)
            table.add_row(title, *(number(accuracies[name], 2) for name in COLUMNS))
    console().print(table)


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
