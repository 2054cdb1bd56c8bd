"""200 epochs of the ImbSAM paper's setting on an accelerator, as far as the time goes.

    python -m experiments.cifar_lt --export cache.npz                          # where TFDS is
    python -m benchmarks.accelerator --data cache.npz --out results/accelerator  # on the GPU

CIFAR100-LT, imbalance factor 100, batch 64, lr 0.01: ResNet-32 and the ResNet-34 that the release
trains, under SGD, SAM and ImbSAM with tail_scale 1 and 2, each with weight decay 5e-3 and 1e-3.
One call stops by itself after --minutes; the next one goes on: finished runs stand in
OUT/runs.json and are skipped, a run cut short is resumed from --work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from experiments import cli, folders
from experiments.errors import RunError, Stopped

# (rule, its options); the paper's rho and eta.
METHODS = {
    "sgd": ("sgd", {}),
    "sam": ("sam", {"rho": 0.05}),
    "imbsam": ("imbsam", {"rho": 0.05, "eta": 100, "tail_scale": 1.0}),
    "imbsam_x2": ("imbsam", {"rho": 0.05, "eta": 100, "tail_scale": 2.0}),
}


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Train the paper's setting on an accelerator, resumably.")
    parser.add_argument("--data", required=True, help="file written by cifar_lt --export")
    parser.add_argument("--out", required=True, help="folder for runs.json, one report a run")
    parser.add_argument("--work", default="runs/accelerator", help="run folders, checkpoints")
    parser.add_argument("--done", nargs="*", default=[], help="runs.json files of earlier calls")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this long")
    parser.add_argument("--models", nargs="+", default=["resnet32", "resnet34_3x3"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--weight-decays", type=float, nargs="+", default=[5e-3, 1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64, help="images")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--eta", type=float, help="largest count of a tail class; default 100")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps-per-call", type=int, default=0, help="0 is 1 on a CPU, else 50")
    parser.add_argument("--quiet", action="store_true")
    return parser


def jobs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """In the order of use: one seed of every method first, the cheap model before the dear one."""
    grid = itertools.product(args.seeds, args.models, args.weight_decays, args.methods)
    return [
        {
            "name": f"{model}_wd{decay:g}_{method}_{args.precision}_e{args.epochs}_s{seed}",
            "model": model,
            "method": method,
            "weight_decay": decay,
            "seed": seed,
        }
        for seed, model, decay, method in grid
    ]


def finished(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Reports by job name, of all files that are there."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.exists():
            found |= {report["job"]: report for report in folders.read_json(path)}
    return found


def main(args: argparse.Namespace) -> None:
    from experiments.data import load_npz
    from experiments.methods import build_rule, rule_arguments
    from experiments.settings import Settings
    from experiments.train import fit
    from imbsam_jax import imbalance_factor
    from imbsam_jax.losses import cross_entropy

    deadline = time.monotonic() + 60 * args.minutes
    cli.use_compilation_cache()
    dataset = load_npz(Path(args.data))
    file = Path(args.out) / "runs.json"
    reports = finished([*map(Path, args.done), file])
    file.parent.mkdir(parents=True, exist_ok=True)
    todo = [job for job in jobs(args) if job["name"] not in reports]
    print(f"{len(reports)} runs are done, {len(todo)} to do, {args.minutes:g} minutes")
    for job in todo:
        name, options = METHODS[job["method"]]
        options = {k: args.eta if k == "eta" and args.eta else v for k, v in options.items()}
        settings = Settings(
            epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, schedule="cosine-prestep",
            weight_decay=job["weight_decay"], seed=job["seed"], precision=args.precision,
            steps_per_call=args.steps_per_call,
        )  # fmt: skip
        description = {
            "experiment": "accelerator",
            "job": job["name"],
            "rule": name,
            "rule_args": rule_arguments(name, options),
            "loss": "cross_entropy",
            "imbalance_factor": imbalance_factor(dataset.class_counts()),
        }
        rule = build_rule(name, dataset.class_counts(), options)
        try:
            report = fit(
                dataset, job["model"], rule, cross_entropy, settings,
                Path(args.work) / job["name"], description=description, resume=True,
                deadline=deadline, quiet=args.quiet,
            )  # fmt: skip
        except RunError as error:
            # A method that diverges is a finding; the others still have their turn.
            report = {**description, "job": job["name"], "failed": str(error)}
        except Stopped as stopped:
            print(f"{job['name']}: {stopped}")
            raise Stopped(
                f"{len(reports)} runs are in {file}; the same command goes on from here",
                stopped.exit_code,
            ) from None
        reports[job["name"]] = report
        folders.replace_text(file, json.dumps(list(reports.values()), indent=1) + "\n")
        summary = report.get("failed") or (
            f"many {_one(report['many'])} medium {_one(report['medium'])} few "
            f"{_one(report['few'])} all {_one(report['all'])}, {report['seconds_train']:.0f} s"
        )
        print(f"{job['name']}: {summary}", flush=True)
    print(f"all {len(reports)} runs are in {file}")


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    cli.run(main, arguments().parse_args())
