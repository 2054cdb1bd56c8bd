"""What a training step of each rule costs: FLOPs, memory, compile time, and time in turn.

    python -m benchmarks.step_cost --model resnet20 --steps 170 --out results/step_cost
    python -m benchmarks.step_cost --model resnet50 --batch-size 256 --image-size 224 \
        --counts 1000 1280 256 --compile-only --out results/step_cost/resnet50

Modes: "dependent" examples, every pass over the whole batch; "uniform" and "stratified", passes
over the rows that carry weight, of batches drawn so (models without batch statistics, and rules
that leave rows out: of the others these would be the same program). "split_norm": passes of groups
over their own rows in models with batch statistics, of stratified batches; another gradient.
"shared_norm": head and tail side by side in one pass of these; a third one.

Every rule and mode trains its own copy of one model, a step of each in turn, in a new order each
round, so that what else a noisy machine does slows all alike; ratios to SGD are taken round by
round, and their median and quartiles are reported. optax.contrib.sam is among them beside SAM.
FLOPs and temporary memory are XLA's, of one compiled step; where passes choose among buffers of
several sizes, FLOPs are the mean over a thousand batches, every choice compiled alone, and memory
is that of the whole program. Batches are those of CIFAR100-LT: of an exported set with --data,
else of noise with its class counts, or others, which costs the same. Images of another size than
32 are noise made on the device, and are not augmented. With --compile-only nothing is run and no
batch exists.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import step_bench
from benchmarks.owned import owning_out
from benchmarks.step_bench import MODES, OF_BATCH_NORM
from experiments.command import method_flags
from experiments.host import cli, origin, outputs
from experiments.host.errors import RunError
from experiments.host.needs import Need, Needs, always, either, one_of, without
from experiments.models import WITHOUT_BATCH_NORM

RULES = ("sgd", "sam", "imbsam", "focal_sam", "sse_sam", "gsa", "cc_sam")
OPTAX = "optax.contrib.sam"
# Of the released code, in SGD's passes, a backward one as two forward: METHODS.md, 1.1 and 6.5.
RELEASED = {"sgd": 1, "sam": 2, "imbsam": 2.67, "focal_sam": 2.67, "sse_sam": 4, "cc_sam": 1}


# Of --counts: what is made of as many labels fits into any memory.
MOST_IMAGES = 10**7


def _of_models(args: argparse.Namespace) -> bool:
    """Whether each mode is one of some --model."""
    of_batch = {model not in WITHOUT_BATCH_NORM for model in args.model}
    return all((mode in OF_BATCH_NORM) in of_batch for mode in args.mode if mode != "dependent")


_WHOLE = Need(lambda args: {*args.mode} == {"dependent"}, "--mode dependent alone")
_NEEDS: Needs = {
    **method_flags.needs(),
    **always(
        "rule", "model", "batch_size", "data", "precision", "remat", "compile_only", "image_size",
        "out",
    ),
    "mode": (
        either(_WHOLE, one_of("rule", method_flags.leaving_rows_out())),
        Need(
            _of_models,
            f"a --model with batch normalisation for {' and '.join(OF_BATCH_NORM)}, and one "
            "without for uniform and stratified",
        ),
    ),
    "accumulate": (
        Need(lambda args: args.accumulate == 1 or args.mode == list(MODES) or _WHOLE.met(args),
             _WHOLE.words),
    ),
    "switch_fraction": (method_flags.NO_EPOCHS,),
    "steps": (without("compile-only"),),
    "counts": (without("data"),),
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    from experiments.models import MODELS

    parser = cli.parser("Measure the cost of a step of every rule against SGD's.", _NEEDS)
    parser.add_argument(
        "--rule", nargs="+", default=list(RULES), choices=method_flags.rule_names(), help="rules"
    )
    parser.add_argument(
        "--model", nargs="+", default=["resnet20"], choices=sorted(MODELS), help="networks"
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        default=list(MODES),
        choices=list(MODES),
        help="dependent: every pass over the whole batch; uniform, stratified: over the rows that "
        "carry weight, of batches drawn so; split_norm, shared_norm: other gradients, for batch "
        "normalisation",
    )
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images")
    parser.add_argument(
        "--steps",
        type=cli.number(least=2, most=10**6, whole=True),
        default=170,
        help="rounds; 170 are an epoch of 64",
    )
    parser.add_argument("--data", type=cli.text, help="file written by cifar_lt --export")
    parser.add_argument(
        "--counts", type=cli.counted(), nargs=3, default=[100, 500, 100],
        metavar=("CLASSES", "LARGEST", "FACTOR"), help="class counts of noise, without --data",
    )  # fmt: skip
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of what the layers compute",
    )
    parser.add_argument(
        "--accumulate", type=cli.counted(), default=1, help="micro-batches; dependent only"
    )
    parser.add_argument("--remat", action="store_true", help="compute activations again")
    parser.add_argument("--compile-only", action="store_true", help="count, and time nothing")
    parser.add_argument(
        "--image-size", type=cli.counted(4096), default=32, help="pixels; other than 32, of noise"
    )
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for step_cost.json and step_cost.md"
    )
    method_flags.add_arguments(parser.add_argument_group("method"), noise_ratio=1e-6)
    return parser


def planned(bench: step_bench.Bench) -> Iterator[tuple[dict[str, Any], Any]]:
    """(a row, its method) of each rule, stage of a staged one, and mode; SGD is first."""
    args = bench.args
    for name, method, described in _methods(args, bench.dataset.class_counts()):
        stages = method.stages()
        for mode in MODES:
            for number, (_, stage) in enumerate(stages, start=1):
                if mode not in args.mode and name != "sgd":
                    continue
                if mode != "dependent" and not bench.leaves_rows_out(stage, mode):
                    continue
                row = {
                    "model": bench.model, **described, "mode": mode,
                    "stage": number if len(stages) > 1 else None,
                    "batch_size": args.batch_size, "precision": args.precision,
                    "image_size": args.image_size, "accumulate": args.accumulate,
                    "remat": args.remat, "tail_share": bench.tail_share,
                }  # fmt: skip
                yield row, stage


def measure(model: str, args: argparse.Namespace, dataset: Any) -> list[dict[str, Any]]:
    """One row for each rule, stage of a staged one, and mode; SGD is first."""
    from experiments.run import cost

    bench = step_bench.Bench(model, args, dataset)
    rows: list[dict[str, Any]] = []
    calls = []
    for row, stage in planned(bench):
        began, mode = (time.perf_counter(), time.process_time()), row["mode"]
        seconds: list[tuple[float, float]] = []

        def compiled(room: Any, stage=stage, mode=mode, began=began, seconds=seconds) -> Any:
            found = bench.compiled(stage, room, mode)
            seconds.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            return found

        labels = bench.orders[mode].labels_of(1000)
        call, row["flops"] = cost.counted(compiled, bench.room(mode), labels)
        calls.append(call)
        # Of the step itself; the rest counts its choices.
        row["seconds_compile"], row["cpu_seconds_compile"] = seconds[0]
        row["temporary_bytes"] = step_bench.temporary_bytes(call)
        row["released"] = RELEASED.get(row["rule"])
        rows.append(row)
    times = None if args.compile_only else step_bench.timed(bench, rows, calls, args.steps)
    with_ratios(rows, times)
    return rows


def with_ratios(rows: list[dict[str, Any]], times: np.ndarray | None) -> None:
    """Adds times and what is over SGD's, the first row's.

    Args:
      times: float[rounds, rows], seconds of a step; None where nothing was timed.
    """
    ours = [k for k, row in enumerate(rows) if (row["rule"], row["mode"]) == ("sam", "dependent")]
    for k, row in enumerate(rows):
        memory, of_sgd = row["temporary_bytes"], rows[0]["temporary_bytes"]
        row["flops_ratio"] = row["flops"] / rows[0]["flops"]
        row["memory_ratio"] = memory / of_sgd if memory and of_sgd else None
        row |= dict.fromkeys(("step_ms", "time_ratio", "time_ratio_quartiles", "rounds"))
        if times is None:
            continue
        row["step_ms"] = 1000 * float(np.median(times[:, k]))
        row["time_ratio"], row["time_ratio_quartiles"] = _paired(times[:, k], times[:, 0])
        row["rounds"] = len(times)
        if row["rule"] == OPTAX and ours:
            row["our_sam_ratio"], row["our_sam_ratio_quartiles"] = _paired(
                times[:, ours[0]], times[:, k]
            )


def _methods(args: argparse.Namespace, counts: np.ndarray) -> Any:
    """(name, method, its description) of each; SGD first, optax.contrib.sam after SAM."""
    for name in ["sgd", *(rule for rule in args.rule if rule != "sgd")]:
        options = {**vars(args), "epochs": 200, "switch_fraction": 0.5, "weight_decay": 5e-4}
        method, described = method_flags.build_method(name, counts, options, steps_per_epoch=1)
        if name == "cc_sam" and args.accumulate > 1:
            continue
        yield name, method, described
        if name == "sam" and args.accumulate == 1 and not described["ascent"]:
            of_optax = {"rule": OPTAX, "rule_args": {"rho": args.rho}, "ascent": {}}
            yield OPTAX, step_bench.OptaxSAM(args.rho), of_optax


def _paired(mine: np.ndarray, other: np.ndarray) -> tuple[float, list[float]]:
    low, middle, high = np.percentile(mine / other, [25, 50, 75])
    return float(middle), [float(low), float(high)]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | rule | mode | ms/step | time / SGD | quartiles | FLOPs / SGD | released code | "
        "temporary MiB | memory / SGD | compile s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stage = "" if row["stage"] is None else f", stage {row['stage']}"
        quartiles = row["time_ratio_quartiles"] or (None, None)
        low, high = (_number(x, 2) for x in quartiles)
        memory = row["temporary_bytes"]
        lines.append(
            f"| {row['model']} | {row['rule']}{stage} | {row['mode']} | "
            f"{_number(row['step_ms'], 0 if (row['step_ms'] or 0) > 100 else 1)} | "
            f"{_number(row['time_ratio'], 2)} | {low} to {high} | {_number(row['flops_ratio'], 2)} "
            f"| {_number(row['released'], 2)} | {_number(memory and memory / 2**20, 0)} | "
            f"{_number(row['memory_ratio'], 2)} | {_number(row['seconds_compile'], 1)} |"
        )
    for row in rows:
        if "our_sam_ratio" in row:
            low, high = row["our_sam_ratio_quartiles"]
            lines.append(
                f"\n{row['model']}: our SAM takes {row['our_sam_ratio']:.3f} times the time of "
                f"{OPTAX}, round by round (quartiles {low:.3f} to {high:.3f})."
            )
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _counts(args: argparse.Namespace) -> np.ndarray:
    """Class counts of noise; those that cannot be, or of more images than fit, are refused."""
    from imbsam_jax import long_tail_counts

    words = f"--counts {' '.join(map(str, args.counts))}"
    try:
        counts = long_tail_counts(*args.counts)
    except ValueError as error:
        raise RunError(f"{words}: {error}") from error
    if counts.sum() > MOST_IMAGES:
        raise RunError(f"{words}: {counts.sum()} images, where {MOST_IMAGES} are the most")
    return counts


@owning_out
def main(args: argparse.Namespace) -> None:
    from experiments.data import load_npz

    cli.refuse_twice(args, "rule", "model", "mode")
    counts = _counts(args)
    if args.batch_size % args.accumulate:
        raise RunError(
            f"--batch-size {args.batch_size} cannot be divided into --accumulate {args.accumulate} "
            "micro-batches of one size"
        )
    if args.data and args.image_size != 32:
        raise RunError("--data has images of 32 pixels: give --image-size without it")
    dataset = load_npz(Path(args.data)) if args.data else step_bench.noise(counts, args.image_size)
    if args.batch_size > len(dataset.train_labels):
        raise RunError(
            f"--batch-size {args.batch_size} is more than the {len(dataset.train_labels)} images"
        )
    rows = [row for model in args.model for row in measure(model, args, dataset)]
    out = Path(args.out)
    found = {
        "command": origin.command_line(), "data": dataset.source, "rows": rows,
    }  # fmt: skip
    outputs.write_json(out / "step_cost.json", {**found, **origin.environment()})
    outputs.replace_text(out / "step_cost.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
