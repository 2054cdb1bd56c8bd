"""What an accelerator does with this: its measured peak, step times, the papers' runs.

    python -m experiments.cifar_lt --export cache.npz                    # where TFDS is
    python -m benchmarks.accelerator --data cache.npz --out runs/gpu     # on the GPU

Three parts, in turn: `peak`, the machine's FLOP/s and bytes/s (peak.py); `steps`, times of a step
of every rule and their share of that peak (accelerator_steps.py); `runs`, 200 epochs of
CIFAR100-LT, batch 64, lr 0.01: ResNet-32 and the ResNet-34 that the release trains, under SGD, SAM
and ImbSAM with tail_scale 1 and 2, each with weight decay 5e-3 and 1e-3; other rules, losses and
recipes by flags. One call stops by itself after --minutes; the next one goes on: what stands in
OUT/peak.json, OUT/steps.json and OUT/runs.json is not done again, a run cut short is resumed from
--work.

Where the accelerator is lent by the minute, spend none of it on what needs none: count FLOPs
before, on any machine (`--parts flops`), and compile in several processes side by side, a cell and
an --out for each, that are timed one after the other: a process waits for its --time-after FILE.

    export JAX_COMPILATION_CACHE_DIR=runs/xla XLA_PYTHON_CLIENT_PREALLOCATE=false
    A="python -m benchmarks.accelerator --parts steps --flops runs/gpu/flops.json"
    $A --cells "resnet32 b128" --rules imbsam --out runs/gpu/1 --time-after runs/gpu/go1 &
    $A --cells "resnet34_3x3 b64" --out runs/gpu/2 --time-after runs/gpu/go2 &
    # both say "compiled: waiting"
    touch runs/gpu/go1; wait %1; touch runs/gpu/go2; wait %2

The recipe of Luo et al. (NeurIPS 2024), three seeds one after the other:

    A="python -m benchmarks.accelerator --parts runs --data cache.npz --models resnet32"
    $A --batch-size 128 --lr 0.1 --schedule cosine --weight-decays 2e-4 --seeds 0 1 2 --out runs/gpu

--quick tries all of it in the small, on a CPU and without --data, in a minute or two. FLOPs are
counted on the host (Jit.lower_on_host): leave JAX_PLATFORMS unset, or "cuda,cpu".
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import accelerator_steps, peak
from benchmarks.owned import owning_out
from benchmarks.step_cost import RULES
from experiments.command.loss_flags import LOSSES
from experiments.host import cli, outputs
from experiments.host.errors import Diverged, RunError, Stopped
from experiments.host.needs import Needs, always, either, one_of
from experiments.models import MODELS
from experiments.step.optimizer import SCHEDULES

# (rule, its options); the rest is the default of the other commands' flags, the radius too.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "sam": ("sam", {"rho": 0.05}),
    "imbsam": ("imbsam", {"rho": 0.05, "eta": 100, "tail_scale": 1.0}),
    "imbsam_x2": ("imbsam", {"rho": 0.05, "eta": 100, "tail_scale": 2.0}),
    "focal_sam": ("focal_sam", {}),
    "sse_sam": ("sse_sam", {"eta": 100}),
    "cc_sam": ("cc_sam", {"noise_ratio": 1e-6}),
    "gsa": ("gsa", {}),
}
# Of runs, where --methods does not say.
USUAL = ("sgd", "sam", "imbsam", "imbsam_x2")
PARTS = ("flops", "peak", "steps", "runs")
# With --quick, where a flag is not given.
QUICK: dict[str, Any] = {
    "models": ["mlp"], "methods": ["imbsam"], "weight_decays": [5e-3], "epochs": 2,
    "batch_size": 20, "eta": 20, "rounds": 3,
}  # fmt: skip


_RUNS, _STEPS = one_of("parts", ["runs"]), one_of("parts", ["steps"])
_NEEDS: Needs = {
    **always("out", "parts", "quick"),
    **dict.fromkeys(("rounds", "flops", "time_after"), (_STEPS,)),
    **dict.fromkeys(("modes", "cells", "rules"), (either(_STEPS, one_of("parts", ["flops"])),)),
    **dict.fromkeys(("minutes", "steps_per_call"), (either(_STEPS, _RUNS),)),
    **dict.fromkeys(
        (
            "data", "work", "done", "models", "methods", "losses", "weight_decays", "seeds",
            "together", "epochs", "batch_size", "lr", "schedule", "precision", "eval_every",
            "no_cost", "quiet",
        ),
        (_RUNS,),
    ),
    "eta": (_RUNS, one_of("methods", [name for name, (_, has) in METHODS.items() if "eta" in has])),
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Measure an accelerator, and train the papers' settings on it, resumably.",
        _NEEDS,
    )
    parser.add_argument("--data", type=cli.text, help="file written by cifar_lt --export, for runs")
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for peak, steps and runs .json"
    )
    parser.add_argument(
        "--parts", nargs="+", default=["peak", "steps", "runs"], choices=PARTS,
        help="peak, steps, runs, in this order; flops counts those of steps, on any machine",
    )  # fmt: skip
    parser.add_argument(
        "--modes", nargs="+", default=["dependent"], choices=["dependent", "independent"],
        help="of steps: independent adds models whose passes may leave rows out",
    )  # fmt: skip
    parser.add_argument(
        "--cells", type=cli.text, nargs="+",
        help="of steps: a network and its batch, as 'resnet32 b128'; default all",
    )  # fmt: skip
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=RULES,
        help="of each cell, beside sgd; default all of its own",
    )
    parser.add_argument(
        "--flops", type=cli.text, help="file of --parts flops; default OUT/flops.json, if there"
    )
    parser.add_argument(
        "--time-after",
        type=cli.text,
        help="compile the one cell of --cells, then run nothing before this file is there: so that "
        "processes may compile side by side, and be timed in turn",
    )
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
        "--methods", nargs="+", default=list(USUAL), choices=list(METHODS), help="of runs"
    )
    parser.add_argument(
        "--losses", nargs="+", default=["cross_entropy"], choices=sorted(LOSSES), help="of runs"
    )
    parser.add_argument(
        "--weight-decays", type=cli.number(least=0), nargs="+", default=[5e-3, 1e-3], help="of runs"
    )
    parser.add_argument("--seeds", type=cli.seed, nargs="+", default=[0], help="of runs")
    parser.add_argument(
        "--together", action="store_true", help="the seeds of a run are trained in one program"
    )
    parser.add_argument("--epochs", type=cli.counted(), default=200, help="of a run")
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images")
    parser.add_argument("--lr", type=cli.number(over=0), default=0.01, help="initial learning rate")
    parser.add_argument("--schedule", default="cosine-prestep", choices=SCHEDULES, help="of lr")
    parser.add_argument(
        "--eval-every", type=cli.counted(), default=1, help="epochs from evaluation to evaluation"
    )
    parser.add_argument(
        "--no-cost", action="store_true", help="compile no lone step of a run to time and count it"
    )
    parser.add_argument(
        "--eta",
        type=cli.number(least=0),
        help="largest count of a tail class; default 100 (--quick: 20)",
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
    """In the order of use: one seed of every method first, the cheap model before the dear one.

    "names" are those of its runs, one for each of its "seeds": of all that decides their numbers.
    """
    groups = [args.seeds] if args.together else [[seed] for seed in args.seeds]
    grid = itertools.product(groups, args.models, args.weight_decays, args.losses, args.methods)
    of_all = f"b{args.batch_size}_lr{args.lr:g}_{args.schedule}"
    eta = "" if args.eta is None else f"_eta{args.eta:g}"
    return [
        {
            "names": [
                f"{model}_{of_all}_wd{decay:g}_{loss}_{method}{eta}_{args.precision}"
                f"_e{args.epochs}_s{seed}"
                for seed in seeds
            ],
            "model": model,
            "method": method,
            "loss": loss,
            "weight_decay": decay,
            "seeds": seeds,
        }
        for seeds, model, decay, loss, method in grid
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


@owning_out
def main(args: argparse.Namespace) -> None:
    began = time.monotonic()
    cli.refuse_twice(
        args, "seeds", "models", "weight_decays", "losses", "methods", "parts", "modes", "cells",
        "rules",
    )  # fmt: skip
    if "runs" in args.parts and not (args.data or args.quick):
        raise RunError("--data is missing: a file written by cifar_lt --export; or leave out runs")
    cli.use_compilation_cache()
    out = Path(args.out)
    if "peak" in args.parts:
        peak.run(out, args.quick)
    cells = accelerator_steps.QUICK if args.quick else accelerator_steps.CELLS
    chosen = accelerator_steps.chosen(
        [cell for mode in args.modes for cell in cells[mode]], args.cells, args.rules
    )
    if args.time_after and len(chosen) != 1:
        raise RunError("--time-after is for one cell: name it by --cells")
    if "flops" in args.parts:
        accelerator_steps.count(out, chosen)
    if "steps" in args.parts:
        file = Path(args.flops) if args.flops else out / "flops.json"
        counted = accelerator_steps.counts_of(file) if args.flops or file.exists() else {}
        after = Path(args.time_after) if args.time_after else None
        timing = accelerator_steps.Timing(args.rounds, counted, after)
        try:
            accelerator_steps.run(out, chosen, args.steps_per_call, timing, args.minutes, began)
        finally:
            if (out / "steps.md").exists():
                print((out / "steps.md").read_text(), flush=True)
    if "runs" in args.parts:
        train(args, began + 60 * args.minutes)


def train(args: argparse.Namespace, deadline: float) -> None:
    """The runs that are not done, each into OUT/runs.json as it ends."""
    from benchmarks.step_bench import noise
    from experiments.data import load_npz
    from imbsam_jax import long_tail_counts

    dataset = load_npz(Path(args.data)) if args.data else noise(long_tail_counts(5, 60, 10))
    file = Path(args.out) / "runs.json"
    reports = finished([*map(Path, args.done), file])
    todo = [job for job in jobs(args) if not reports.keys() >= {*job["names"]}]
    made = [_method(args, dataset, job) for job in todo]  # what is wrong is said before any trains
    runs = sum(len(job["names"]) for job in todo)
    print(f"{len(reports)} runs are done, {runs} to do, {args.minutes:g} minutes")
    for job, how in zip(todo, made, strict=True):
        try:
            found = _trained(args, dataset, job, how, deadline)
        except Stopped as stopped:
            print(f"{', '.join(job['names'])}: {stopped}")
            raise Stopped(
                f"{len(reports)} runs are in {file}; the same command goes on from here",
                stopped.exit_code,
            ) from None
        reports |= {report["job"]: report for report in found}
        outputs.replace_text(file, json.dumps(list(reports.values()), indent=1) + "\n")
        for report in found:
            print(f"{report['job']}: {_summary(report)}", flush=True)
    print(f"all {len(reports)} runs are in {file}")


def _method(
    args: argparse.Namespace, dataset: Any, job: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any], str]:
    """(method, loss, the report's fields on them, kind of classifier)."""
    from experiments import cifar_lt
    from experiments.command import loss_flags, method_flags
    from imbsam_jax import imbalance_factor

    counts, (rule, options) = dataset.class_counts(), METHODS[job["method"]]
    flags = argparse.ArgumentParser()
    method_flags.add_arguments(flags)
    loss_flags.add_arguments(flags)
    options = {
        **vars(flags.parse_args([])), **options, "epochs": args.epochs,
        "weight_decay": job["weight_decay"], **({} if args.eta is None else {"eta": args.eta}),
    }  # fmt: skip
    per_epoch = -(-int(counts.sum()) // args.batch_size)
    method, described = method_flags.build_method(rule, counts, options, steps_per_epoch=per_epoch)
    loss, of_loss = loss_flags.build_loss(job["loss"], counts, options, steps_per_epoch=per_epoch)
    factor = imbalance_factor(counts)
    # A run on CIFAR is one of cifar_lt's, to be evaluated and analysed as those are.
    of = {"experiment": "accelerator"}
    if args.data:
        of = {"experiment": "cifar_lt", **cifar_lt.describe(args, dataset)}
    about = {**of, **described, **of_loss, "imbalance_factor": factor}
    return method, loss, about, loss_flags.classifier_for(job["loss"], options)


def _trained(
    args: argparse.Namespace, dataset: Any, job: dict[str, Any], made: Any, deadline: float
) -> list[dict[str, Any]]:
    """The reports of a job's runs, or of why they diverged."""
    from experiments.reports import plots
    from experiments.run.fit import fit, fit_together
    from experiments.run.settings import Settings

    method, loss, about, classifier = made
    settings = Settings(
        epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, schedule=args.schedule,
        weight_decay=job["weight_decay"], seed=job["seeds"][0], precision=args.precision,
        steps_per_call=args.steps_per_call, eval_every=args.eval_every, classifier=classifier,
    )  # fmt: skip
    how: Any = {
        "description": about, "resume": True, "deadline": deadline, "quiet": args.quiet,
        "measure": not args.no_cost, "draw": plots.run_folder,
    }  # fmt: skip
    outs = {s: Path(args.work) / n for s, n in zip(job["seeds"], job["names"], strict=True)}
    fresh = not any((folder / "config.json").exists() for folder in outs.values())
    rest, start = (dataset, job["model"], method, loss, settings), time.perf_counter()
    try:
        if len(outs) > 1:
            reports = fit_together(*rest, outs, **how)
        else:
            reports = [fit(*rest, *outs.values(), **how)]
    except Diverged as error:
        # A finding; the others still have their turn.
        return [{**about, "job": name, "failed": str(error)} for name in job["names"]]
    # Compiling, evaluation, checkpoints and plots included; None for runs cut short.
    passed = round(time.perf_counter() - start, 3) if fresh else None
    hits = _hits(dataset, job["model"], settings, outs)
    return [
        {**report, "job": name, "seconds_whole": passed, **hits[report["seed"]]}
        for name, report in zip(job["names"], reports, strict=True)
    ]


def _hits(
    dataset: Any, model: str, settings: Any, outs: dict[int, Path]
) -> dict[int, dict[str, list[int]]]:
    """{seed: correct training and test images of each class}, of the last checkpoints, if there.

    Training images as test images are seen, not augmented: what is fitted, beside what is right.
    Kept in the report, since the folders may not outlast a lease.
    """
    from experiments.host.stopping import StopRequest
    from experiments.run.checkpoints import Checkpoints
    from experiments.run.parts import Parts
    from imbsam_jax.losses import cross_entropy

    parts = Parts(dataset, model, cross_entropy, settings)
    found: dict[int, dict[str, list[int]]] = {}
    for seed, folder in outs.items():
        config = outputs.read_object(folder / "config.json")
        with contextlib.closing(
            Checkpoints(folder / "checkpoints", config=config, reading=True)
        ) as kept:
            last = kept.restore(parts.initial)
        found[seed] = {}
        if last is None:
            continue
        state = parts.evaluator.put_state(last[0])
        found[seed] = {
            f"{part}_correct": parts.evaluator.hits(state, part, StopRequest()).correct.tolist()
            for part in ("train", "test")
        }
    return found


def _summary(report: dict[str, Any]) -> str:
    return report.get("failed") or (
        f"many {_one(report['many'])} medium {_one(report['medium'])} few "
        f"{_one(report['few'])} all {_one(report['all'])}, {report['seconds_train']:.0f} s "
        f"and {report['seconds_compile']:.0f} s to compile, {_one(report['seconds_whole'])} s "
        "in all"
    )


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    cli.run(main, parsed())
