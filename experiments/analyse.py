r"""Curvature and sharpness of finished runs by group of classes: is the tail sharper than the head?

    python -m experiments.digits_lt --rule sgd sam imbsam --save --out runs/digits
    python -m experiments.analyse runs/digits --eta 20 --rho 0.2 --out runs/digits_sharpness

    python -m experiments.analyse runs/sgd runs/sam runs/imbsam --data-dir tfds --plane 15 \
        --out runs/sharpness
    python -m experiments.compare --data mine.csv --label species --save --out runs/mine
    python -m experiments.analyse runs/mine --out runs/mine_sharpness

Of run folders of cifar_lt, imagenet_lt and inaturalist the last checkpoint (or all that were kept,
--all-checkpoints), of folders of digits_lt, compare and anomaly what --save kept. The rows are
training rows as they are; batch normalisation takes the running statistics; a group's loss is the
mean over its rows, cross-entropy unless --loss says otherwise, the same for all runs; of anomaly
detection it is the method's own, and labelled anomalies are the tail. What was measured is kept in
OUT/parts: the same command goes on where it was stopped, and measures nothing twice.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments import evaluate
from experiments.analysis import results
from experiments.analysis.anomalies import of_anomalies
from experiments.analysis.runs import of_checkpoint, of_digits, rows_of
from experiments.analysis.subjects import Subject
from experiments.analysis.tables import of_comparison
from experiments.analysis.work import Work, digest, measured
from experiments.host import cli, locks
from experiments.host.devices import cores, use_devices
from experiments.host.errors import UNFIT, RunError, Stopped
from experiments.host.needs import always, beside, either
from experiments.host.outputs import read_json, read_object
from experiments.host.stopping import StopNow, StopRequest
from experiments.models import CONVOLUTIONAL
from imbsam_jax import tail_threshold

GROUPS = ("all", "head", "tail", "many", "medium", "few")
LOSSES = ("cross_entropy", "logit_adjusted")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Curvature, sharpness and loss surfaces of finished runs, by group of classes.",
        {
            **evaluate.data_needs(),
            **always(
                "out", "loss", "eta", "rho", "iterations", "probes", "directions", "steps",
                "density", "surface", "plane", "line", "per_class", "images_per_class",
                "batch_size", "all_checkpoints", "devices", "ends",
            ),
            "reach": (beside("surface"),),
            "between": (either(beside("plane"), beside("line")),),
        },
    )  # fmt: skip
    parser.add_argument("run", nargs="+", type=cli.text, help="folders of finished runs")
    parser.add_argument("--out", type=cli.text, required=True, help="folder; one in use goes on")
    evaluate.add_data_arguments(parser.add_argument_group("data"))
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--loss", default="cross_entropy", choices=LOSSES,
        help="what is measured of every run, whatever it was trained with",
    )  # fmt: skip
    what.add_argument(
        "--eta",
        type=cli.number(least=1),
        help="largest count of a tail class; default the runs' own, of a comparison the classes "
        "beside the fewest that hold 80%% of the rows",
    )
    what.add_argument(
        "--rho", type=cli.number(over=0), default=0.05, help="length of the perturbations"
    )
    what.add_argument(
        "--iterations", type=cli.counted(1000), default=12,
        help="products with the Hessian for the ends of a spectrum",
    )  # fmt: skip
    what.add_argument(
        "--ends", nargs="+", choices=GROUPS,
        help="groups whose ends of the spectrum and worst rise are measured, which cost most; head "
        "and tail at least; default all, and every class with --per-class",
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
    what.add_argument(
        "--plane", type=cli.number(least=0, most=501, whole=True), default=0,
        help="points of a side of the plane through three models of one seed",
    )  # fmt: skip
    what.add_argument(
        "--line", type=cli.number(least=0, most=1001, whole=True), default=0,
        help="points of the lines from one model to others of its seed",
    )  # fmt: skip
    what.add_argument(
        "--between", type=cli.text, nargs="+", metavar="NAME",
        help="lines of the table whose models these are; default the first three for a plane, "
        "else all",
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
        if args.eta and all(one.tail is not None for one in subjects):
            raise RunError("the tail is the labelled anomalies, whatever --eta: leave it out")
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
        kinds = {
            "compare": isinstance(summary, dict) and {"rows", "verdict"} <= summary.keys(),
            "anomaly": isinstance(summary, dict) and "paper_table_4" in summary,
            "digits_lt": isinstance(summary, list)
            and all(isinstance(line, dict) and "seeds" in line for line in summary)
            and "grid" not in config
            and "epochs" in config,
        }
        found = [kind for kind, fits in kinds.items() if fits]
        if not found:
            raise RunError(
                f"{run} is no folder of models: of tables, those of digits_lt, compare and anomaly "
                "with --save are"
            )
        return {**config, "experiment": found[0]}
    if not (run / "config.json").exists() or not (run / "checkpoints").is_dir():
        raise RunError(evaluate.no_run(run))
    config = read_object(run / "config.json")
    if not isinstance(config.get("experiment"), str):
        raise RunError(f"{run / 'config.json'} is no whole one: it names no experiment")
    if config["experiment"] == "finetune":
        raise RunError(
            f"{run} is a run of finetune, which trains adapters beside a frozen tower: analyse is "
            "for networks whose every parameter is trained"
        )
    return config


def _emulated(configs: list[dict[str, Any]]) -> int:
    """On a CPU XLA runs a convolution on one core: as many devices as cores, where there is one."""
    return cores() if any(config.get("model") in CONVOLUTIONAL for config in configs) else 0


def _of_tables(run: Path, config: dict[str, Any], args: argparse.Namespace) -> list[Subject]:
    if config["experiment"] == "digits_lt":
        return of_digits(run, config)
    if config["experiment"] == "compare":
        return of_comparison(run, config, args.data)
    where = args.data_dir or os.environ.get("ADBENCH_DIR") or None
    return of_anomalies(run, config, where if config["data_dir"] else None)


def _subjects(
    run: Path, config: dict[str, Any], args: argparse.Namespace, stop: StopRequest
) -> list[Subject]:
    if config["experiment"] in ("digits_lt", "compare", "anomaly"):
        try:
            return _of_tables(run, config, args)
        except UNFIT as error:
            why = f"{type(error).__name__}: {error}"
            raise RunError(f"the files in {run} do not fit together ({why})") from error
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
        # Seeds of a table may differ by a row of a class; of anomalies there are two classes.
        same = _data_of(other) == _data_of(first) is not None
        if not same and not np.array_equal(other.counts, first.counts):
            raise RunError(
                f"{other.run} was trained with other class counts than {first.run}: what is "
                "compared must have the same groups of classes; analyse them one by one"
            )


def _data_of(one: Subject) -> str | None:
    """Of what has the same classes, whatever their counts."""
    setting = one.description["setting"]
    known = {"anomaly": "anomaly", "compare": setting.get("data")}
    return known.get(setting.get("experiment"))


def _eta(subjects: list[Subject]) -> float:
    every = [(one.description["rule_args"] or {}).get("eta") for one in subjects]
    found = {float(eta) for eta in every if eta is not None}
    if len(found) == 1:
        return found.pop()
    settings = [one.description["setting"] for one in subjects]
    if all(setting["experiment"] in ("compare", "anomaly") for setting in settings):
        return tail_threshold(np.maximum(subjects[0].counts, 1))
    why = f"the runs have several: {sorted(found)}" if found else "no run has one"
    raise RunError(f"--eta says which classes are the tail: name it, since {why}")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
