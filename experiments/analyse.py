r"""Curvature and sharpness of finished runs by group of classes: is the tail sharper than the head?

    python -m experiments.digits_lt --rule sgd sam imbsam --save --out runs/digits
    python -m experiments.analyse runs/digits --eta 20 --rho 0.2 --out runs/digits_sharpness

    python -m experiments.analyse runs/sgd runs/sam runs/imbsam --data-dir tfds --out runs/sharpness

Of run folders of cifar_lt, imagenet_lt and inaturalist the last checkpoint (or all that were kept,
--all-checkpoints), of folders of digits_lt what --save kept. The rows are training images as they
are; batch normalisation takes the running statistics; a group's loss is the mean over its rows,
cross-entropy unless --loss says otherwise, the same for all runs. What was measured is kept in
OUT/parts: the same command goes on where it was stopped, and measures nothing twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments import evaluate
from experiments.analysis import results
from experiments.analysis.subjects import Subject, of_checkpoint, of_digits, rows_of
from experiments.analysis.work import Work, digest, measured
from experiments.host import cli, locks
from experiments.host.devices import cores, use_devices
from experiments.host.errors import RunError, Stopped
from experiments.host.needs import always, beside
from experiments.host.outputs import read_json, read_object
from experiments.host.stopping import StopNow, StopRequest
from experiments.models import CONVOLUTIONAL

LOSSES = ("cross_entropy", "logit_adjusted")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Curvature, sharpness and loss surfaces of finished runs, by group of classes.",
        {
            **evaluate.data_needs(),
            **always(
                "out", "loss", "eta", "rho", "iterations", "probes", "directions", "steps",
                "density", "surface", "per_class", "images_per_class", "batch_size",
                "all_checkpoints", "devices",
            ),
            "reach": (beside("surface"),),
        },
    )  # fmt: skip
    parser.add_argument("run", nargs="+", type=cli.text, help="folders of finished runs")
    parser.add_argument("--out", type=cli.text, required=True, help="folder; one in use goes on")
    evaluate.add_data_arguments(parser.add_argument_group("data"))
    what = parser.add_argument_group("what is measured")
    what.add_argument("--loss", default="cross_entropy", choices=LOSSES, help="of every run")
    what.add_argument(
        "--eta",
        type=cli.number(least=1),
        help="largest count of a tail class; default the runs' own",
    )
    what.add_argument(
        "--rho", type=cli.number(over=0), default=0.05, help="length of the perturbations"
    )
    what.add_argument(
        "--iterations", type=cli.counted(1000), default=12,
        help="products with the Hessian for the ends of a spectrum",
    )  # fmt: skip
    what.add_argument(
        "--probes", type=cli.number(least=2, most=10**5, whole=True), default=12,
        help="products with the Hessian for the traces",
    )  # fmt: skip
    what.add_argument(
        "--directions", type=cli.number(least=2, most=10**4, whole=True), default=10,
        help="random directions for the average rise",
    )  # fmt: skip
    what.add_argument(
        "--steps", type=cli.number(least=0, most=1000, whole=True), default=3,
        help="of ascent for the worst rise; 0 leaves it out",
    )  # fmt: skip
    what.add_argument(
        "--density", type=cli.number(least=0, most=1000, whole=True), default=0,
        help="probes of the spectral densities of head and tail, each of --iterations products",
    )  # fmt: skip
    what.add_argument(
        "--surface", type=cli.number(least=0, most=501, whole=True), default=0,
        help="points of a side of the surfaces of head and tail",
    )  # fmt: skip
    what.add_argument(
        "--reach", type=cli.number(over=0), default=1.0,
        help="how far a surface reaches, in lengths of the model's filters",
    )  # fmt: skip
    what.add_argument("--per-class", action="store_true", help="each class is a group, too")
    what.add_argument(
        "--images-per-class", type=cli.counted(), help="at most so many of each class, the first"
    )
    what.add_argument(
        "--all-checkpoints", action="store_true", help="every checkpoint that was kept, over epochs"
    )
    what.add_argument(
        "--batch-size", type=cli.counted(), default=100, help="images of a micro-batch"
    )
    what.add_argument(
        "--devices", type=cli.devices, default=0,
        help="over which rows are spread; 0: all, emulated ones for convolutions on a CPU",
    )  # fmt: skip
    return parser


def main(args: argparse.Namespace) -> None:
    runs = [Path(run) for run in dict.fromkeys(args.run)]
    configs = [_config(run) for run in runs]
    how_many = args.devices or _emulated(configs)
    devices = use_devices(how_many)
    cli.use_compilation_cache()
    out = Path(args.out)
    with locks.Lock(out), StopRequest() as stop:
        (out / "parts").mkdir(exist_ok=True)
        subjects = [
            one
            for run, config in zip(runs, configs, strict=True)
            for one in _subjects(run, config, args, stop)
        ]
        subjects = _distinct(subjects)
        _check(subjects)
        eta = args.eta or _eta(subjects)
        work = [Work(one, args, eta, devices, out / "parts") for one in subjects]
        try:
            measured(work, args, stop, out)
        except StopNow:
            raise Stopped(
                "stopped: what is measured is kept; the same command goes on", stop.exit_code or 1
            ) from None


# ------------------------------------------------------------------------------- what is analysed


def _config(run: Path) -> dict[str, Any]:
    if (run / "summary.json").exists() and (run / "config.json").exists():
        config = read_object(run / "config.json")
        summary = read_json(run / "summary.json")
        lines = isinstance(summary, list) and all("seeds" in line for line in summary)
        if not lines or "grid" in config or "epochs" not in config:
            raise RunError(
                f"{run} is no folder of models: of tables, only those of digits_lt --save are"
            )
        return {**config, "experiment": "digits_lt"}
    if not (run / "config.json").exists() or not (run / "checkpoints").is_dir():
        raise RunError(evaluate.no_run(run))
    return read_object(run / "config.json")


def _emulated(configs: list[dict[str, Any]]) -> int:
    """On a CPU XLA runs a convolution on one core: as many devices as cores, where there is one."""
    return cores() if any(config.get("model") in CONVOLUTIONAL for config in configs) else 0


def _subjects(
    run: Path, config: dict[str, Any], args: argparse.Namespace, stop: StopRequest
) -> list[Subject]:
    if config["experiment"] == "digits_lt":
        return of_digits(run, config)
    opened = evaluate.open_run(run, args)
    rows = rows_of(opened.dataset, opened.parts.feed, args.images_per_class, stop)
    found = []
    for step in opened.checkpoints.steps():
        read = opened.checkpoints.read(step, opened.parts.initial, check=opened.contradiction)
        if read is None:
            continue
        state, note = read
        found.append(
            of_checkpoint(
                run, opened.config, opened.dataset, state.variables(), note["epoch"], rows
            )
        )
        if not args.all_checkpoints:
            break
    opened.checkpoints.close()
    if not found:
        raise RunError(f"none of the checkpoints of {run} can be read")
    return found


def _distinct(subjects: list[Subject]) -> list[Subject]:
    """Each model once: folders of several rho have the same SGD."""
    found: dict[Any, Subject] = {}
    for one in subjects:
        key = results.name_of(one.description), one.epoch, *one.seeds, digest(one)
        found.setdefault(key, one)
    return list(found.values())


def _check(subjects: list[Subject]) -> None:
    """Surfaces and scales are shared, so that all must be of the same classes."""
    first = subjects[0]
    for other in subjects[1:]:
        if not np.array_equal(other.counts, first.counts):
            raise RunError(
                f"{other.run} was trained with other class counts than {first.run}: what is "
                "compared must have the same groups of classes; analyse them one by one"
            )


def _eta(subjects: list[Subject]) -> float:
    every = [(one.description["rule_args"] or {}).get("eta") for one in subjects]
    found = {float(eta) for eta in every if eta is not None}
    if len(found) == 1:
        return found.pop()
    why = f"the runs have several: {sorted(found)}" if found else "no run has one"
    raise RunError(f"--eta says which classes are the tail: name it, since {why}")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
