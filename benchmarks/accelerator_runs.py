"""The papers' runs on an accelerator, each into one file as it ends: what stands there is done.

Reports are as those of an entry, with the hits of each class, since run folders may not outlast a
lease; the command is benchmarks/accelerator.py.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import time
from pathlib import Path
from typing import Any

from experiments.host import outputs
from experiments.host.errors import Diverged, RunError, Stopped

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


def run(args: argparse.Namespace, deadline: float) -> None:
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
