"""Where the time of a step goes on an accelerator: its kernels, by what they are for.

    python -m benchmarks.kernels --model resnet32 --batch-size 128 --rule sgd --out runs/gpu

One call of --steps-per-call steps is traced by JAX's profiler after one that warms up, and the
device time of everything that stands for an operation of the program is summed by its name, over
the steps. Where the sum is near the step's wall time, the device is never idle, and the number of
launches is no bound. OUT/kernels.json holds every kernel, OUT/kernels.md what they are for.
Convolutions are told apart by the names that cuDNN gives its kernels.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import step_cost
from benchmarks.accelerator_steps import Cell, bench_of
from benchmarks.owned import owning_out
from experiments.host import cli, origin, outputs
from experiments.host.errors import RunError
from experiments.host.needs import Needs, always
from experiments.models import MODELS

# The first that is found in a kernel's name; without one it is elementwise.
KINDS = (
    ("convolution, by its kernel", "wgrad"),
    ("convolution, by its input", "dgrad"),
    ("convolution, forward or not told", "fprop|convolve|Convolution|SplitK"),
    ("layouts for a convolution", "convertTensor|Nhwc|transpose"),
    ("matrix product", "gemm|dot"),
    ("sums", "reduce"),
    ("clearing and copying", "[Mm]em(set|cpy)|init_device|copy"),
)

_HOLD_OTHERS = ("while", "call", "conditional")

_NEEDS: Needs = always("model", "batch_size", "precision", "rule", "steps_per_call", "out")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Sum the device time of a step's kernels, by what they are for.", _NEEDS)
    parser.add_argument("--model", default="resnet32", choices=sorted(MODELS), help="of images")
    parser.add_argument("--batch-size", type=cli.counted(), default=128, help="images of noise")
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of the layers"
    )
    parser.add_argument("--rule", default="sgd", choices=step_cost.RULES, help="of the step")
    parser.add_argument(
        "--steps-per-call", type=cli.counted(), default=50, help="of one scan, which is traced"
    )
    parser.add_argument("--out", type=cli.text, required=True, help="folder for kernels .json, .md")
    return parser


@owning_out
def main(args: argparse.Namespace) -> None:
    import jax

    cli.use_compilation_cache()
    cell = Cell(args.model, args.batch_size, args.precision, rules=(args.rule,))
    bench = bench_of(cell, args.steps_per_call)
    row, method = next(each for each in step_cost.planned(bench) if each[0]["rule"] == args.rule)
    call = bench.compiled(method, bench.room(row["mode"]), row["mode"])
    state = bench.run_on.put_state(bench.initial)
    placed = jax.block_until_ready(bench.run_on.place(bench.rows(row["mode"], 0)))
    state, _ = jax.block_until_ready(call(state, bench.inputs, placed))
    began = time.perf_counter()
    state, _ = jax.block_until_ready(call(state, bench.inputs, placed))
    step_ms = 1000 * (time.perf_counter() - began) / args.steps_per_call
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call(state, bench.inputs, placed))
        kernels = summed(events(Path(folder)), args.steps_per_call)
    if not kernels:
        raise RunError("the profiler saw no kernel of this device")
    found = {
        "command": origin.command_line(), "cell": cell.name, "rule": args.rule,
        "step_ms": step_ms, "kernels": kernels, **origin.environment(),
    }  # fmt: skip
    out = Path(args.out)
    outputs.write_json(out / "kernels.json", found)
    outputs.replace_text(out / "kernels.md", markdown(found))
    print(markdown(found))


def events(folder: Path) -> list[tuple[str, float]]:
    """(name, nanoseconds) of what a trace in the folder saw of the program's own operations.

    A GPU has a line for each of its streams, and others that repeat them; a CPU's operations are on
    the lines of its threads, and a loop is there beside what it holds.
    """
    from jax.profiler import ProfileData

    found = []
    with warnings.catch_warnings():
        # Of how JAX binds these types: where warnings are errors, this one ends the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for file in folder.glob("**/*.xplane.pb"):
            planes = list(ProfileData.from_file(str(file)).planes)
            of_gpu = any(plane.name.startswith("/device:GPU") for plane in planes)
            at = ("/device:GPU", "Stream") if of_gpu else ("", "")
            for plane in (each for each in planes if each.name.startswith(at[0])):
                for line in (each for each in plane.lines if each.name.startswith(at[1])):
                    found += [
                        (event.name, event.duration_ns)
                        for event in line.events
                        if any(name == "hlo_op" for name, _ in event.stats)
                    ]
    return found


def summed(found: Iterable[tuple[str, float]], steps: int) -> list[dict[str, Any]]:
    """{"kernel", "kind", "launches", "microseconds"} of one step, the longest first.

    Kernels that differ by a number at their ends are one: XLA numbers its fusions.
    """
    kernels: dict[str, list[float]] = {}
    for name, nanoseconds in found:
        name = re.sub(r"[._\s\d]+$", "", name)
        if name not in _HOLD_OTHERS:
            kernels.setdefault(name, []).append(nanoseconds)
    rows = [
        {
            "kernel": name,
            "kind": kind_of(name),
            "launches": len(times) / steps,
            "microseconds": sum(times) / steps / 1000,
        }
        for name, times in kernels.items()
    ]
    return sorted(rows, key=lambda row: -row["microseconds"])


def kind_of(kernel: str) -> str:
    return next((kind for kind, names in KINDS if re.search(names, kernel)), "elementwise")


def markdown(found: dict[str, Any]) -> str:
    rows = found["kernels"]
    busy = sum(row["microseconds"] for row in rows)
    lines = [
        f"{found['device']}, JAX {found['versions']['jax']}; `{found['command']}`",
        "",
        f"{found['cell']}, {found['rule']}: {1000 * found['step_ms']:.0f} microseconds a step, of "
        f"which {busy:.0f} in {sum(row['launches'] for row in rows):.0f} launches",
        "",
        "| what for | launches | microseconds | of all |",
        "|---|---:|---:|---:|",
    ]
    kinds = {row["kind"]: [0.0, 0.0] for row in rows}
    for row in rows:
        kinds[row["kind"]][0] += row["launches"]
        kinds[row["kind"]][1] += row["microseconds"]
    for kind, (launches, time_) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        lines.append(f"| {kind} | {launches:.0f} | {time_:.0f} | {time_ / busy:.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
