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
import hashlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import evaluate
from experiments.analysis import results
from experiments.analysis.measure import How, Item, Measure
from experiments.analysis.subjects import Subject, groups_of, of_checkpoint, of_digits, rows_of
from experiments.host import cli, folders
from experiments.host.devices import cores, use_devices
from experiments.host.errors import RunError, Stopped
from experiments.host.folders import read_json, read_object
from experiments.host.needs import always, beside
from experiments.host.progress import Counted
from experiments.host.stopping import StopNow, StopRequest
from experiments.models import CONVOLUTIONAL
from imbsam_jax import losses

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
    with folders.Lock(out), StopRequest() as stop:
        (out / "parts").mkdir(exist_ok=True)
        subjects = [
            one
            for run, config in zip(runs, configs, strict=True)
            for one in _subjects(run, config, args, stop)
        ]
        _check(subjects)
        eta = args.eta or _eta(subjects)
        work = [_Work(one, args, eta, devices, out / "parts") for one in subjects]
        try:
            _measured(work, args, stop, out)
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


# -------------------------------------------------------------------------------- what is measured


class _Work:
    """The items of one subject, those that are in their files already among them."""

    def __init__(
        self,
        subject: Subject,
        args: argparse.Namespace,
        eta: float,
        devices: list[Any],
        parts: Path,
    ):
        loss = _plain if args.loss == "cross_entropy" else _adjusted(tuple(subject.counts.tolist()))
        self.subject, self._parts = subject, parts
        self.groups = groups_of(subject, eta, args.per_class)
        if not {"head", "tail"} <= self.groups.keys():
            counts = subject.counts
            raise RunError(
                f"--eta {eta:g} leaves no {'tail' if 'head' in self.groups else 'head'}: choose it "
                f"between the counts, from {counts.min()} to {counts.max()}"
            )
        how = How(
            loss, eta, args.rho, args.iterations, args.probes, args.directions, args.steps,
            args.density, args.surface, args.batch_size,
        )  # fmt: skip
        self.measure = Measure(subject, self.groups, how, devices)
        self.items = list(self.measure.items())
        decided = {**{k: v for k, v in how._asdict().items() if k != "loss"}, "loss": args.loss}
        del decided["density"], decided["surface"], decided["batch_size"]
        self._key = _digest(subject) + json.dumps([decided, sorted(self.groups)], sort_keys=True)
        self.found: dict[str, Any] = {}

    def file(self, item: Item, more: Any = None) -> Path:
        text = json.dumps([self._key, item.name, more])
        return self._parts / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def take(self, item: Item, more: Any = None) -> float | None:
        """Seconds that it took, None where it was there."""
        path = self.file(item, more)
        if path.exists():
            self.found[item.name] = read_json(path)
            return None
        began = time.perf_counter()
        self.found[item.name] = item.call()
        folders.replace_text(path, json.dumps(self.found[item.name]))
        return time.perf_counter() - began


def _digest(subject: Subject) -> str:
    import jax

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((subject.variables, subject.train, subject.test.labels)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _plain(logits: Any, labels: Any) -> Any:
    return losses.cross_entropy(logits, labels)


_ADJUSTED: dict[Any, Any] = {}


def _adjusted(counts: tuple[int, ...]) -> Any:
    """One function for equal counts: programs are kept by it."""
    return _ADJUSTED.setdefault(counts, losses.logit_adjusted(np.array(counts)))


def _measured(work: list[_Work], args: argparse.Namespace, stop: StopRequest, out: Path) -> None:
    later = [one for one in work for _ in range(2 * bool(args.density) + bool(args.surface))]
    todo = [(one, item) for one in work for item in one.items]
    passes = sum(item.passes for _, item in todo)
    extra = len(later) * (args.iterations * args.density + 0.2 * args.surface**2) / 2
    with Counted(round(10 * (passes + extra)), "tenths of a pass", "measuring") as shown:
        products, seconds = 0, 0.0
        for one, item in todo:
            stop.check()
            took = one.take(item)
            shown.advance(round(10 * item.passes), took or 0.0)
            if took is not None and item.products:
                products, seconds = products + item.products, seconds + took
        grids = _grids(work) if args.density else {}
        axis = np.linspace(-args.reach, args.reach, args.surface) if args.surface else None
        for one in work:
            for group, grid in grids.items():
                stop.check()
                item = Item(
                    f"density of {group}", 0.0, args.iterations * args.density,
                    partial(one.measure.density, one.groups[group], grid),
                )  # fmt: skip
                took = one.take(item, [grid.tolist()[:2], len(grid), args.density])
                shown.advance(round(5 * args.iterations * args.density), took or 0.0)
            if axis is not None:
                stop.check()
                item = Item("surface", 0.0, 0, partial(one.measure.surface, axis))
                took = one.take(item, axis.tolist())
                shown.advance(round(2 * args.surface**2), took or 0.0)
    _write(work, out, args, grids, axis)
    if products:
        each = seconds / products
        print(f"{products} products with a Hessian, {each:.2g} s each on average, with compilation")


_GRID = 1000


def _grids(work: list[_Work]) -> dict[str, np.ndarray]:
    """A grid for head and tail that holds every subject's spectrum, and a little more."""
    grids = {}
    for group in ("head", "tail"):
        ends = [one.found[f"ends of {group}"] for one in work]
        low = min(min(end["smallest"]) for end in ends)
        high = max(max(end["largest"]) for end in ends)
        room = 0.05 * (high - low)
        grids[group] = np.linspace(low - room, high + room, _GRID)
    return grids


def _write(
    work: list[_Work], out: Path, args: argparse.Namespace, grids: dict[str, Any], axis: Any
) -> None:
    from experiments.analysis import figures

    records = [
        results.record(one.subject, seed, results.figures(one.subject, one.groups, one.found, seed))
        for one in work
        for seed in range(len(one.subject.seeds))
    ]
    summary = results.summarise(records)
    explained = results.explained(records)
    folders.write_flags(out, args)
    folders.write_json(out / "records.json", records)
    folders.write_json(out / "analysis.json", {"lines": summary, "explained": explained})
    texts = [results.table(summary), results.differences(summary)]
    folders.replace_text(out / "table.md", "\n\n".join(filter(None, texts)) + "\n")
    last = _last(work)
    figures.bars(out / "groups.png", summary, ("trace", "largest", "sam", "random"))
    if grids:
        found = {
            name: {
                group: (grid, np.mean(one.found[f"density of {group}"]["density"], axis=0))
                for group, grid in grids.items()
            }
            for name, one in last.items()
        }
        figures.densities(out / "densities.png", found)
    if axis is not None:
        surfaces = {name: np.array(one.found["surface"]["losses"]) for name, one in last.items()}
        figures.surfaces(out / "surfaces.png", axis, surfaces)
    if len({line["epoch"] for line in summary}) > 1:
        figures.over_epochs(out / "epochs.png", summary)
    print((out / "table.md").read_text())
    print(f"analysis.json, records.json, table.md and figures are in {out}")


def _last(work: list[_Work]) -> dict[str, _Work]:
    """The last epoch of each line, and its first run."""
    found: dict[str, _Work] = {}
    for one in sorted(work, key=lambda one: -one.subject.epoch):
        found.setdefault(results.name_of(one.subject.description), one)
    order = [results.name_of(one.subject.description) for one in work]
    return {name: found[name] for name in dict.fromkeys(order)}


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
