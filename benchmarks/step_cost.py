"""What a training step of each rule costs: FLOPs, memory, compile time, and time in turn.

    python -m benchmarks.step_cost --model resnet20 --steps 170 --out results/step_cost

Every rule trains its own copy of one model, a step of each in turn (A B C A B C ...), so that what
else a noisy machine does slows all alike; ratios to SGD are taken round by round, and their median
and quartiles are reported. FLOPs and temporary memory are XLA's, of one compiled step. Batches are
those of an epoch of CIFAR100-LT: of an exported set with --data, else of noise with its class
counts, which costs the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli, folders, methods
from experiments.errors import RunError

RULES = ("sgd", "sam", "imbsam", "focal_sam", "sse_sam", "cc_sam")


def arguments() -> argparse.ArgumentParser:
    from experiments.models import MODELS

    parser = cli.parser("Measure the cost of a step of every rule against SGD's.")
    parser.add_argument("--rule", nargs="+", default=list(RULES), choices=sorted(methods.RULES))
    parser.add_argument("--model", nargs="+", default=["resnet20"], choices=sorted(MODELS))
    parser.add_argument("--batch-size", type=int, default=64, help="images")
    parser.add_argument("--steps", type=int, default=170, help="rounds; 170 are an epoch of 64")
    parser.add_argument("--data", help="file written by cifar_lt --export")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", required=True, help="folder for step_cost.json and step_cost.md")
    methods.add_arguments(parser.add_argument_group("method"))
    return parser


def noise(counts: np.ndarray) -> Any:
    """A data set of CIFAR's shape and these class counts, without a picture in it."""
    from experiments.data import Dataset

    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    return Dataset(
        name="noise", train_images=images, train_labels=labels, test_images=images[:1],
        test_labels=labels[:1], num_classes=len(counts), mean=(0.5,) * 3, std=(0.25,) * 3,
        many_above=100, few_below=20, source="noise",
    )  # fmt: skip


def measure(model: str, args: argparse.Namespace, dataset: Any) -> list[dict[str, Any]]:
    """One row for each rule, and stage of a staged one; SGD is first."""
    import jax

    from experiments import cost
    from experiments.parts import Parts
    from experiments.sampling import epoch_order
    from experiments.settings import Settings
    from experiments.steps import Inputs
    from imbsam_jax.losses import cross_entropy

    counts, batch = dataset.class_counts(), args.batch_size
    settings = Settings(epochs=1, batch_size=batch, lr=0.1, precision=args.precision)
    parts = Parts(dataset, model, cross_entropy, settings)
    run_on = parts.run_on
    inputs = run_on.put_inputs(Inputs(dataset.train_images, dataset.train_labels))
    rows: list[dict[str, Any]] = []
    calls, states = [], []
    for name in ["sgd", *(rule for rule in args.rule if rule != "sgd")]:
        options = {**vars(args), "epochs": 2, "switch_fraction": 0.5, "weight_decay": 5e-4}
        method, described = methods.build_method(name, counts, options, steps_per_epoch=1)
        stages = method.stages()
        for number, (_, stage) in enumerate(stages, start=1):
            began = time.perf_counter()
            state = run_on.put_state(parts.initial)
            call = run_on.compile_steps(
                stage, state, inputs, np.arange(batch, dtype=np.int32)[None]
            )
            seconds = time.perf_counter() - began
            memory = call.memory_analysis()
            calls.append(call)
            states.append(state)
            rows.append(
                {
                    "model": model, **described, "stage": number if len(stages) > 1 else None,
                    "flops": cost.flops(call), "seconds_compile": seconds,
                    "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
                }
            )  # fmt: skip
    full = max(len(dataset.train_labels) // batch, 1)
    times = np.zeros((args.steps, len(rows)))
    for step in range(args.steps):
        order = epoch_order("natural", dataset.train_labels, 0, step // full)
        at = (step % full) * batch
        placed = run_on.place(order[at : at + batch][None])
        # In another order each round: no rule always follows the longest.
        for k in np.random.default_rng(step).permutation(len(rows)):
            began = time.perf_counter()
            states[k], seen = calls[k](states[k], inputs, placed)
            jax.block_until_ready((states[k], seen))
            times[step, k] = time.perf_counter() - began
    times = times[1:]  # the first round warms caches
    for k, row in enumerate(rows):
        low, middle, high = np.percentile(times[:, k] / times[:, 0], [25, 50, 75])
        row |= {
            "step_ms": 1000 * float(np.median(times[:, k])),
            "time_ratio": float(middle),
            "time_ratio_quartiles": [float(low), float(high)],
            "flops_ratio": row["flops"] / rows[0]["flops"],
            "rounds": len(times),
        }
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | rule | ms/step | time / SGD | quartiles | FLOPs / SGD | temporary MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stage = "" if row["stage"] is None else f", stage {row['stage']}"
        low, high = row["time_ratio_quartiles"]
        memory = row["temporary_bytes"]
        lines.append(
            f"| {row['model']} | {row['rule']}{stage} | {row['step_ms']:.0f} | "
            f"{row['time_ratio']:.2f} | {low:.2f} to {high:.2f} | {row['flops_ratio']:.2f} | "
            f"{'-' if memory is None else f'{memory / 2**20:.0f}'} |"
        )
    return "\n".join(lines) + "\n"


def main(args: argparse.Namespace) -> None:
    from experiments.data import load_npz
    from imbsam_jax import long_tail_counts

    if args.steps < 2 or args.batch_size < 1:
        raise RunError("--steps must be at least 2 and --batch-size at least 1")
    dataset = load_npz(Path(args.data)) if args.data else noise(long_tail_counts(100, 500, 100))
    rows = [row for model in args.model for row in measure(model, args, dataset)]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {"command": folders.command_line(), "data": dataset.source, "rows": rows}
    folders.write_json(out / "step_cost.json", {**found, **folders.environment()})
    folders.replace_text(out / "step_cost.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
