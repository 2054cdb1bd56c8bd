"""Grids on long-tailed images, for experiments.sweep: each point and seed is a run folder."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import launch
from experiments.command.plan import Plan
from experiments.host import folders, locks, origin, outputs
from experiments.host.errors import Diverged, RunError

_WANTED = {"val_all", "val_many", "val_medium", "val_few"}


def checked(args: argparse.Namespace) -> Path:
    """Where to write; refuses what a sweep of images cannot do."""
    if not args.out:
        raise RunError("--out is missing: name the folder this sweep is to be written to")
    if args.stage2:
        whose = f", of --preset {args.preset}: write --stage2 alone" if args.preset else ""
        raise RunError("a sweep has no second stage: leave --stage2 out, and give it to the run "
                       f"with the chosen point{whose}")  # fmt: skip
    if args.export:
        raise RunError("--export trains nothing: use it with experiments.cifar_lt")
    hosts = (args.coordinator, args.num_processes, args.process_id)
    if args.cluster or any(flag is not None for flag in hosts):
        raise RunError("a sweep runs in one process: leave --cluster, --coordinator, "
                       "--num-processes and --process-id out")  # fmt: skip
    out = Path(args.out)
    if locks.holds_something(out):
        if not args.resume:
            raise RunError(
                f"{out} is not empty: go on with a sweep in it by --resume, or choose another --out"
            )
        config = out / "config.json"
        old = outputs.read_object(config) if config.exists() else {}
        if "grid" not in old or old.get("experiment") != args.experiment:
            raise RunError(
                f"{out} holds no sweep of {args.experiment} to go on with: choose another --out"
            )
    return out


def train(
    args: argparse.Namespace,
    points: dict[str, dict[str, float]],
    splits: tuple[str, ...],
    opened: contextlib.ExitStack,
    *,
    load: Callable[[argparse.Namespace], Any],
    make_plan: Callable[[argparse.Namespace, Any], Plan],
) -> tuple[list[Any], list[int]]:
    """Trains every seed of SGD and of every point that is not finished yet.

    Args:
      args: the flags, `checked`.
      points: values by flag of each point, by its name.
      splits: which accuracies are wanted.
      opened: owns --out from here on, once nothing is left to refuse.
      load, make_plan: the entry's, of a run: flags -> data set, and of both -> a plan.

    Returns:
      The fields of a Row of SGD, then of each point; and the seeds.
    """
    launch.begin(args)
    if args.seeds is None and args.num_seeds is None:
        args.seeds = [args.seed]
    dataset = load(args)
    if dataset.val_labels is None:
        raise RunError(
            "a point is chosen by validation images, never on the test set, and none are held "
            "out: give --val-per-class 5, for one"
        )
    out, runs = Path(args.out), []
    for name, point in {"sgd": {}, **points}.items():
        changed: dict[str, Any] = dict(point) or {"rule": "sgd"}
        folder = name.replace(", ", "_").replace(" ", "_")
        mine = argparse.Namespace(**{**vars(args), **changed, "out": str(out / folder)})
        runs.append((name, point, mine, make_plan(mine, dataset)))
    for _, _, mine, plan in runs:
        launch.refuse_others(mine, dataset, plan)
    opened.enter_context(locks.Lock(out))
    outputs.clear_tables(out)
    origin.write_flags(out, args)
    rows: list[Any] = []
    seeds: list[int] = []
    for k, (name, point, mine, plan) in enumerate(runs, start=1):
        if not args.quiet:
            print(f"{k} of {len(runs)}: {name}", flush=True)
        try:
            reports = launch.train(mine, dataset, plan)
        except Diverged as error:
            if not point:
                raise RunError(f"SGD, with which every point is compared: {error}") from error
            print(f"{name} diverged: {error}", flush=True)
            nothing = {split: np.full(len(seeds), np.nan) for split in splits}
            rows.append((point, nothing, nothing, str(error)))
            continue
        seeds = [report["seed"] for report in reports]
        val = [_last_validation(Path(mine.out) / f"seed_{seed}", args.epochs) for seed in seeds]
        rows.append((point, _by_split(reports, splits), _by_split(val, splits), None))
    return rows, seeds


def _last_validation(folder: Path, epochs: int) -> dict[str, float | None]:
    """Accuracies by split on the held-out images after the last epoch, from metrics.jsonl."""
    for line in folders.read_metrics(folder / folders.METRICS):
        if line["epoch"] == epochs and line.keys() >= _WANTED:
            return {key.removeprefix("val_"): line[key] for key in line if key.startswith("val_")}
    raise RunError(f"{folder}/metrics.jsonl has no validation accuracy of epoch {epochs}")


def _by_split(found: list[dict[str, Any]], splits: tuple[str, ...]) -> dict[str, np.ndarray]:
    """float[S] each; NaN for None, a shot group without classes."""
    return {split: np.array([each[split] for each in found], np.float64) for split in splits}
