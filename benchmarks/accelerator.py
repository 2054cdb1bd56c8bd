"""What an accelerator does with this: its measured peak, step times, 200 epochs of the paper.

    python -m experiments.cifar_lt --export cache.npz                          # where TFDS is
    python -m benchmarks.accelerator --data cache.npz --out results/accelerator  # on the GPU

Three parts, in turn: `peak`, the machine's FLOP/s and bytes/s (peak.py); `steps`, times of a step
of every rule and their share of that peak (accelerator_steps.py); `runs`, CIFAR100-LT, imbalance
factor 100, batch 64, lr 0.01: ResNet-32 and the ResNet-34 that the release trains, under SGD, SAM
and ImbSAM with tail_scale 1 and 2, each with weight decay 5e-3 and 1e-3. One call stops by itself
after --minutes; the next one goes on: what stands in OUT/peak.json, OUT/steps.json and
OUT/runs.json is not done again, a run cut short is resumed from --work.

A GPU for 30 minutes, 10 a command: the first gives the ceiling and the goal, a whole run of ImbSAM
in under 90 s; the second step times, the third goes on with them, and then with runs.

    export JAX_COMPILATION_CACHE_DIR=runs/xla XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
    A="python -m benchmarks.accelerator --data cache.npz --out runs/gpu --steps-per-call 169"
    $A --parts peak runs --models resnet32 --weight-decays 5e-3 --methods imbsam sgd sam
    $A --parts steps
    $A --parts steps runs

(169 whole steps are an epoch: one program fewer to compile than by fifties.) Where a machine keeps
nothing between calls, put the JSON files back into OUT first. --quick tries all of it in the small,
on a CPU and without --data, in a minute or two.

FLOPs are counted on the host (Jit.lower_on_host): leave JAX_PLATFORMS unset, or "cuda,cpu".
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import accelerator_steps, peak
from experiments.host import cli, outputs
from experiments.host.errors import RunError, Stopped
from experiments.host.needs import Needs, always, either, one_of
from experiments.models import MODELS

# (rule, its options); the paper's rho and eta.
METHODS = {
    "sgd": ("sgd", {}),
    "sam": ("sam", {"rho": 0.05}),
    "imbsam": ("imbsam", {"rho": 0.05, "eta": 100, "tail_scale": 1.0}),
    "imbsam_x2": ("imbsam", {"rho": 0.05, "eta": 100, "tail_scale": 2.0}),
}
PARTS = ("peak", "steps", "runs")
# With --quick, where a flag is not given.
QUICK: dict[str, Any] = {
    "models": ["mlp"], "methods": ["imbsam"], "weight_decays": [5e-3], "epochs": 2,
    "batch_size": 20, "eta": 20, "rounds": 3,
}  # fmt: skip


_RUNS, _STEPS = one_of("parts", ["runs"]), one_of("parts", ["steps"])
_NEEDS: Needs = {
    **always("out", "parts", "quick"),
    **dict.fromkeys(("modes", "rounds"), (_STEPS,)),
    **dict.fromkeys(("minutes", "steps_per_call"), (either(_STEPS, _RUNS),)),
    **dict.fromkeys(
        (
            "data", "work", "done", "models", "methods", "weight_decays", "seeds", "epochs",
            "batch_size", "lr", "precision", "quiet",
        ),
        (_RUNS,),
    ),
    "eta": (_RUNS, one_of("methods", ["imbsam", "imbsam_x2"])),
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Measure an accelerator, and train the paper's setting on it, resumably.",
        _NEEDS,
    )
    parser.add_argument("--data", type=cli.text, help="file written by cifar_lt --export, for runs")
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for peak, steps and runs .json"
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="in turn")
    parser.add_argument(
        "--modes", nargs="+", default=["dependent"], choices=["dependent", "independent"],
        help="of steps: independent adds models whose passes may leave rows out",
    )  # fmt: skip
    parser.add_argument(
        "--rounds",
        type=cli.number(least=3, most=10**6, whole=True),
        default=12,
        help="of steps; the first is not counted",
    )
    parser.add_argument("--quick", action="store_true", help="all in the small, to try it")
    parser.add_argument(
        "--work", type=cli.text, default="runs/accelerator", help="run folders, checkpoints"
    )
    parser.add_argument(
        "--done", type=cli.text, nargs="*", default=[], help="runs.json files of earlier calls"
    )
    parser.add_argument(
        "--minutes", type=cli.number(over=0, most=10**6), default=9.0, help="stop after this long"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["resnet32", "resnet34_3x3"],
        choices=sorted(MODELS),
        help="of runs",
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="of runs"
    )
    parser.add_argument(
        "--weight-decays", type=cli.number(least=0), nargs="+", default=[5e-3, 1e-3], help="of runs"
    )
    parser.add_argument("--seeds", type=cli.seed, nargs="+", default=[0], help="of runs")
    parser.add_argument("--epochs", type=cli.counted(), default=200, help="of a run")
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images")
    parser.add_argument("--lr", type=cli.number(over=0), default=0.01, help="initial learning rate")
    parser.add_argument(
        "--eta", type=cli.number(least=0), help="largest count of a tail class; default 100"
    )
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of runs"
    )
    parser.add_argument(
        "--steps-per-call",
        type=cli.number(least=0, most=10**6, whole=True),
        default=0,
        help="0 is 1 on a CPU, else 50",
    )
    parser.add_argument("--quiet", action="store_true", help="no line an epoch")
    return parser


def parsed(flags: list[str] | None = None) -> argparse.Namespace:
    parser = arguments()
    args = parser.parse_args(flags)
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args(flags)
    return args


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
            reports = outputs.read_json(path)
            try:
                found |= {report["job"]: report for report in reports}
            except (TypeError, KeyError) as error:
                raise RunError(f"cannot read {path}: it is no list of jobs' reports") from error
    return found


def main(args: argparse.Namespace) -> None:
    began = time.monotonic()
    if "runs" in args.parts and not (args.data or args.quick):
        raise RunError("--data is missing: a file written by cifar_lt --export; or leave out runs")
    cli.use_compilation_cache()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if "peak" in args.parts:
        peak.run(out, args.quick)
    if "steps" in args.parts:
        cells = accelerator_steps.QUICK if args.quick else accelerator_steps.CELLS
        chosen = [cell for mode in args.modes for cell in cells[mode]]
        try:
            accelerator_steps.run(
                out, chosen, args.steps_per_call, args.rounds, args.minutes, began
            )
        finally:
            if (out / "steps.md").exists():
                print((out / "steps.md").read_text(), flush=True)
    if "runs" in args.parts:
        train(args, began + 60 * args.minutes)


def train(args: argparse.Namespace, deadline: float) -> None:
    """The runs that are not done, each into OUT/runs.json as it ends."""
    from benchmarks.step_cost import noise
    from experiments.command.method_flags import build_rule, rule_arguments
    from experiments.data import load_npz
    from experiments.reports import plots
    from experiments.run.fit import fit
    from experiments.run.settings import Settings
    from imbsam_jax import imbalance_factor, long_tail_counts
    from imbsam_jax.losses import cross_entropy

    dataset = load_npz(Path(args.data)) if args.data else noise(long_tail_counts(5, 60, 10))
    file = Path(args.out) / "runs.json"
    reports = finished([*map(Path, args.done), file])
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
        folder, start = Path(args.work) / job["name"], time.perf_counter()
        fresh = not (folder / "config.json").exists()
        try:
            report = fit(
                dataset, job["model"], rule, cross_entropy, settings,
                folder, description=description, resume=True,
                deadline=deadline, quiet=args.quiet, measure=True, draw=plots.run_folder,
            )  # fmt: skip
            # Compiling, evaluation, checkpoints and plots included; None for a run cut short.
            passed = time.perf_counter() - start
            report = {**report, "seconds_whole": round(passed, 3) if fresh else None}
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
        outputs.replace_text(file, json.dumps(list(reports.values()), indent=1) + "\n")
        summary = report.get("failed") or (
            f"many {_one(report['many'])} medium {_one(report['medium'])} few "
            f"{_one(report['few'])} all {_one(report['all'])}, {report['seconds_train']:.0f} s "
            f"and {report['seconds_compile']:.0f} s to compile, {_one(report['seconds_whole'])} s "
            "in all"
        )
        print(f"{job['name']}: {summary}", flush=True)
    print(f"all {len(reports)} runs are in {file}")


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    cli.run(main, parsed())
