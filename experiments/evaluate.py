"""Evaluates a finished (or stopped) run folder: `python -m experiments.evaluate RUN`.

The figures are of the last checkpoint. Data comes as it came to the run: from TFDS by the folder's
config.json, or from an exported file with --data.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments import cifar_lt, cli, heeded, imagenet_lt, inaturalist
from experiments.errors import RunError
from experiments.folders import read_json
from experiments.imagenet_lt import LISTS
from experiments.report import COLUMNS, number


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Evaluate the last checkpoint of a run folder on its test set.", heeded.EVALUATE
    )
    parser.add_argument("run", type=cli.text, help="a run folder")
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
        "--max-corrupt", type=cli.number(least=0, most=1), default=0.001,
        help="share of images that may be unreadable",
    )  # fmt: skip
    for name in LISTS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=cli.text, help="list file, for a run trained with one")
    return parser


def _load(args: argparse.Namespace, config: dict[str, Any], run: Path) -> Any:
    """The run's data set, by the flags that its entry point would be given."""
    module = {m.__name__.split(".")[-1]: m for m in (cifar_lt, imagenet_lt, inaturalist)}.get(
        config.get("experiment", "")
    )
    if module is None:
        raise RunError(f"{run} is a run of {config.get('experiment')!r}, which has no images")
    for name in ("image_dir", *LISTS) if module is cifar_lt else ("data",):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise RunError(f"{run} is a run of {config['experiment']}: nothing would heed {flag}")
    wanted = {"val_per_class": config["val_per_class"]}
    if module is not cifar_lt:
        wanted |= {key: config[key] for key in ("image_size", "resize")}
        wanted |= {key: getattr(args, key) for key in ("image_dir", *LISTS)}
        wanted["dataset"] = config.get("data_of")
        given = ["--allow-empty-classes"]
    else:
        given = []
        wanted["shrink"] = config.get("shrink")
        if args.data:
            wanted["data"] = args.data
        else:
            wanted |= {key: config.get(key) for key in ("dataset", "subset", "subset_seed")}
            factor = config.get("requested_imbalance_factor", config["imbalance_factor"])
            wanted["imbalance_factor"] = factor
    wanted["data_dir"] = args.data_dir
    given += [f"--{k.replace('_', '-')}={v}" for k, v in wanted.items() if v is not None]
    # Known ones alone: what nobody typed is not refused as unheeded.
    return module.load(module.arguments().parse_known_args(given)[0])


def main(args: argparse.Namespace) -> None:
    from experiments import methods
    from experiments.checkpoints import Checkpoints
    from experiments.parts import Parts, class_counts_sha256
    from experiments.settings import Note, Settings
    from experiments.stopping import StopRequest
    from imbsam_jax import rules
    from imbsam_jax.losses import cross_entropy

    run = Path(args.run)
    if not (run / "config.json").exists():
        raise RunError(f"{run} is no run folder: it has no config.json")
    config = read_json(run / "config.json")
    cli.use_compilation_cache()
    dataset = _load(args, config, run)
    if class_counts_sha256(dataset.class_counts()) != config["class_counts_sha256"]:
        raise RunError("this data has other class counts than the run was trained with")
    if dataset.source != config["source"]:
        print(f"note: this data is: {dataset.source}\nthe run's was: {config['source']}")
    fields = Settings.__dataclass_fields__
    trained = Settings(**{name: config[name] for name in fields if name in config})
    # On whatever machine this is, not on as many devices as it was trained.
    settings = dataclasses.replace(
        trained, devices=1, parallel="jit", accumulate=1, examples="dependent",
        max_corrupt=args.max_corrupt,
    )  # fmt: skip
    parts = Parts(dataset, config["model"], cross_entropy, settings)
    if not (run / "checkpoints").is_dir():
        raise RunError(f"{run} holds no checkpoint")
    initial = parts.initial
    if config.get("memory") is not None:  # every rule that can have one has one group
        method = methods.Remembered(rules.sam(dataset.num_classes, rho=0.0), config["memory"])
        stats = method.with_memory(initial.params, initial.batch_stats)
        initial = parts.evaluator.put_state(initial.replace(batch_stats=stats))
    checkpoints = Checkpoints(run / "checkpoints")
    try:
        found = checkpoints.restore(initial)
    finally:
        checkpoints.close()
    if found is None:
        raise RunError(f"{run} holds no checkpoint")
    state, note = parts.evaluator.put_state(found[0]), Note(**found[1])
    table = Table(title=f"{run} after epoch {note.epoch}: accuracy (%)", box=box.SIMPLE_HEAD)
    table.add_column("test set")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    with StopRequest() as stop:
        for title, flip in (("as it is", False), ("flip-averaged", True)):
            hits = parts.evaluator.hits(state, "test", stop, flip=flip)
            accuracies = parts.evaluator.accuracies(hits)
            table.add_row(title, *(number(accuracies[name], 2) for name in COLUMNS))
    Console().print(table)


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
