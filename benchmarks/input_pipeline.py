"""Images a second and core: the bare Pillow loop against the grain stream, in turn.

    taskset -c 1 python -m benchmarks.input_pipeline --workers 1 --out results/input_pipeline

Both decode the same random crops. The bare loop is `decode_train` over files in memory, in one
thread of one process; the stream adds reading, batching, and carrying batches out of its workers.
Rounds alternate (bare, stream, bare, ...), so that what else a noisy machine does slows both alike;
ratios are taken round by round, and their median and quartiles are reported: per core, by the
clock, and per second of processor time (of all processes together, on Linux), which other
programs on the same cores disturb less. Then a device's steps are played, somewhat longer than the
decoding of a batch, to see whether they wait. Without --data-dir the images are made here, of
ImageNet's usual size: a gradient under noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.owned import owning_out
from experiments.data.decode import decode_train
from experiments.data.stream import StepRows, Stream, stream
from experiments.host import cli, origin, outputs
from experiments.host.needs import Needs, always

_NEEDS: Needs = always(
    "data_dir", "images", "size", "batch_size", "workers", "threads", "rounds", "seconds", "out"
)


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Measure the input pipeline against a bare decoding loop, per core.", _NEEDS
    )
    parser.add_argument(
        "--data-dir", type=cli.text, help="prepared TFDS folder that holds i_naturalist2018"
    )
    parser.add_argument(
        "--images", type=cli.counted(), default=512, help="images decoded, over and over"
    )
    parser.add_argument(
        "--size", type=cli.counted(4096), default=224, help="pixels of a side of a crop"
    )
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images")
    parser.add_argument(
        "--workers",
        type=cli.number(least=0, most=1024, whole=True),
        default=1,
        help="processes; 0 is this one alone",
    )
    parser.add_argument(
        "--threads",
        type=cli.number(least=0, most=1024, whole=True),
        default=1,
        help="in each process",
    )
    parser.add_argument("--rounds", type=cli.counted(), default=9, help="of each of the two")
    parser.add_argument(
        "--seconds", type=cli.number(over=0, most=10**6), default=3.0, help="of each measurement"
    )
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for input_pipeline.json and .md"
    )
    return parser


class InMemory(NamedTuple):
    """A split whose files are there already."""

    files: list[bytes]
    labels: np.ndarray

    def read(self, rows: Sequence[int]) -> list[bytes]:
        return [self.files[row] for row in rows]

    def name(self, row: int) -> str:
        return f"image {row}"


@dataclasses.dataclass
class Cyclic:
    """Steps that go round the images in order."""

    images: int
    batch: int

    def __call__(self, step: int) -> StepRows:
        positions = np.arange(self.batch)
        return StepRows((step * self.batch + positions) % self.images, positions)


def photographs(count: int) -> InMemory:
    """JPEGs of 500 x 375 pixels and quality 90, about 90 kB each, as ImageNet's are."""
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:375, 0:500]
    files = []
    for _ in range(min(count, 64)):
        slopes = rng.uniform(-0.4, 0.4, (2, 3))
        pixels = 128 + (x - 250)[..., None] * slopes[0] + (y - 188)[..., None] * slopes[1]
        pixels = pixels + rng.normal(0, 20, (375, 500, 1))
        file = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return InMemory([files[i % len(files)] for i in range(count)], np.zeros(count, np.int32))


def processor_seconds() -> float:
    """Used so far by this process and its children; NaN where /proc does not tell."""
    used = time.process_time()
    try:
        for child in multiprocessing.active_children():
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan")
    return used


def rate(decode_some: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Images a second, and a second of processor time, of calls that return how many they made."""
    began, used = time.perf_counter(), processor_seconds()
    done = 0
    while time.perf_counter() - began < seconds:
        done += decode_some()
    return done / (time.perf_counter() - began), done / (processor_seconds() - used)


def bare(files: Sequence[bytes], size: int) -> Callable[[], int]:
    numbers = itertools.count()

    def decode_some() -> int:
        for _ in range(16):
            number = next(numbers)
            decode_train(files[number % len(files)], size, np.random.default_rng((0, 0, number)))
        return 16

    return decode_some


def opened(split: Any, args: argparse.Namespace) -> Stream:
    return stream(
        split, Cyclic(len(split.labels), args.batch_size), 0, 10**9, size=args.size,
        resize=args.size, train=True, seed=0, workers=args.workers, threads=args.threads,
    )  # fmt: skip


def measure(split: Any, args: argparse.Namespace) -> dict[str, Any]:
    files = split.read(range(min(args.images, len(split.labels))))
    available = len(os.sched_getaffinity(0))
    cores = min(max(args.workers, 1) * max(args.threads, 1), available)
    alone = bare(files, args.size)
    rate(alone, min(args.seconds, 1.0))  # warms caches
    rates = []
    for _ in range(args.rounds):
        before = rate(alone, args.seconds)
        # Opened anew each round: left open, its workers would work on during the bare loop.
        with opened(split, args) as batches:
            for _ in range(max(args.workers, 1) * 3):
                next(batches)  # what was made while others of the workers still began
            rates.append((before, rate(lambda: int(next(batches).ok.sum()), args.seconds)))
    found = np.array(rates)  # [round, bare or stream, by the clock or by processor time]
    ratios = found[:, 1] / found[:, 0]
    ratios[:, 0] /= cores
    return {
        "bare_images_per_second": float(np.median(found[:, 0, 0])),
        "stream_images_per_second": float(np.median(found[:, 1, 0])),
        "cores_available": available,
        "cores_used": cores,
        "ratio_per_core": spread(ratios[:, 0]),
        "bare_images_per_processor_second": spread(found[:, 0, 1]),
        "ratio_per_processor_second": spread(ratios[:, 1]),
        "rounds": len(found),
        "mean_file_bytes": float(np.mean([len(data) for data in files])),
    }


def waiting(split: Any, args: argparse.Namespace, batch_seconds: float) -> dict[str, float]:
    """Whether a step of 1.25 times a batch's decoding would wait for it.

    The step is a sleep: a device that computes leaves the cores to the decoding. As in the trainer,
    the next batch is asked for once a step has been handed over.
    """
    step, waited = 1.25 * batch_seconds, []
    with opened(split, args) as batches:
        for _ in range(max(args.workers, 1) * 3):
            next(batches)
        for _ in range(20):
            ends = time.perf_counter() + step
            next(batches)
            late = time.perf_counter() - ends
            waited.append(max(late, 0.0))
            time.sleep(max(-late, 0.0))
    return {
        "step_seconds": step,
        "share_of_time_waited": sum(waited) / (sum(waited) + len(waited) * step),
        "steps_that_waited": float(np.count_nonzero(waited)),
        "steps": float(len(waited)),
    }


def spread(values: np.ndarray) -> dict[str, float] | None:
    """Median and quartiles."""
    if not np.isfinite(values).all():
        return None
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def markdown(row: dict[str, Any]) -> str:
    def shown(ratio: dict[str, float] | None) -> str:
        if ratio is None:
            return "-"
        return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"

    wait = row["waiting"]
    return (
        "| workers | threads | cores | bare loop, images/s | stream, images/s | stream / bare, per "
        "core (quartiles) | per processor second |\n|---|---|---|---|---|---|---|\n"
        f"| {row['workers']} | {row['threads']} | {row['cores_used']} | "
        f"{row['bare_images_per_second']:.0f} | {row['stream_images_per_second']:.0f} | "
        f"{shown(row['ratio_per_core'])} | {shown(row['ratio_per_processor_second'])} |\n\n"
        f"A device whose step takes {1000 * wait['step_seconds']:.0f} ms, 1.25 times a batch's "
        f"decoding, waited {100 * wait['share_of_time_waited']:.1f}% of the time, in "
        f"{wait['steps_that_waited']:.0f} of {wait['steps']:.0f} steps.\n"
    )


@owning_out
def main(args: argparse.Namespace) -> None:
    if args.data_dir:
        from experiments.data.image_sets import load_inaturalist

        data = load_inaturalist(args.data_dir)
        split, source = data.train, data.source
    else:
        split, source = photographs(args.images), "JPEGs of 500 x 375 made here, quality 90"
    row = {"workers": args.workers, "threads": args.threads, **measure(split, args)}
    batch_seconds = args.batch_size / row["stream_images_per_second"]
    row["waiting"] = waiting(split, args, batch_seconds)
    out = Path(args.out)
    found = {"command": origin.command_line(), "data": source, **row}
    outputs.write_json(out / "input_pipeline.json", {**found, **origin.environment()})
    outputs.replace_text(out / "input_pipeline.md", markdown(row))
    print(markdown(row))


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
