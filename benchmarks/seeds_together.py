"""A step of several seeds in one program against the same steps one after the other.

    python -m benchmarks.seeds_together --data cache.npz --model mlp resnet8 --shrink 2 --out DIR

All ways do the same work: one step of every seed, from the same states on the same rows: one after
the other on one device; one after the other with every batch shared by all devices; together, with
the seeds shared among the devices. They are timed in turn, in a new order each round, so that what
else a noisy machine does slows all alike; ratios are taken round by round, and their medians and
quartiles reported. As in a run, a call is one step on a CPU and a scan of 50 elsewhere;
milliseconds are of one step of all seeds.
Without --data the batches are of noise with the class counts of CIFAR100-LT, which costs the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.accelerator_steps import wait_for
from benchmarks.owned import owning_out
from experiments.command import method_flags
from experiments.host import cli, origin, outputs
from experiments.host.errors import RunError
from experiments.host.needs import Needs, always

_NEEDS: Needs = {
    **method_flags.needs(),
    "switch_fraction": (method_flags.NO_EPOCHS,),
    **always(
        "data", "shrink", "model", "rule", "batch_size", "seeds", "rounds", "devices",
        "steps_per_call", "precision", "time_after", "out",
    ),
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    from experiments.models import MODELS

    parser = cli.parser(
        "Measure a step of several seeds, together and one after the other.", _NEEDS
    )
    parser.add_argument("--data", type=cli.text, help="file written by cifar_lt --export")
    parser.add_argument(
        "--shrink", type=cli.counted(1024), default=1, help="each side of an image, divided"
    )
    parser.add_argument(
        "--model", nargs="+", default=["mlp"], choices=sorted(MODELS), help="networks"
    )
    parser.add_argument(
        "--rule", default="imbsam", choices=method_flags.rule_names(), help="of every seed"
    )
    parser.add_argument(
        "--batch-size", type=cli.counted(), default=64, help="images of a seed's step"
    )
    parser.add_argument(
        "--seeds", type=cli.number(least=2, most=10000, whole=True), default=4, help="how many"
    )
    parser.add_argument(
        "--rounds",
        type=cli.number(least=2, most=10**6, whole=True),
        default=30,
        help="calls of each; the first is left out",
    )
    parser.add_argument(
        "--devices", type=cli.devices, default=1, help="0 is all; emulated ones on a CPU"
    )
    parser.add_argument(
        "--steps-per-call",
        type=cli.number(least=0, most=10**6, whole=True),
        default=0,
        help="0 is 1 on a CPU and 50 elsewhere",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of what the layers compute",
    )
    parser.add_argument(
        "--time-after", type=cli.text, help="compile, then time nothing before this file is there"
    )
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for seeds_together.json"
    )
    method_flags.add_arguments(parser.add_argument_group("method"), noise_ratio=1e-6)
    return parser


def measure(model: str, args: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """Milliseconds of a step of all seeds of one model, every way; a staged rule's first stage."""
    from experiments.run.fit import several
    from experiments.run.parts import Parts, resolved
    from experiments.run.settings import Settings
    from imbsam_jax.losses import cross_entropy

    per_epoch = -(-len(dataset.train_labels) // args.batch_size)
    options = {**vars(args), "epochs": 200, "switch_fraction": 0.5, "weight_decay": 5e-3}
    method, described = method_flags.build_method(
        args.rule, dataset.class_counts(), options, steps_per_epoch=per_epoch
    )
    settings = resolved(
        Settings(
            batch_size=args.batch_size, precision=args.precision, devices=args.devices,
            steps_per_call=args.steps_per_call,
        )
    )  # fmt: skip
    devices = settings.devices
    if args.seeds % devices:
        raise RunError(f"{args.seeds} seeds cannot be divided among {devices} devices")
    each = [dataclasses.replace(settings, seed=seed) for seed in range(args.seeds)]
    parts = [Parts(dataset, model, cross_entropy, mine, own_batches=True) for mine in each]
    trainer = several(dataset, model, method, parts, each)
    steps = settings.steps_per_call
    # The calls of an epoch, of whole batches alone, over and over.
    whole = len(dataset.train_labels) // args.batch_size // steps
    if not whole:
        raise RunError(
            f"{len(dataset.train_labels)} images are no {steps} batches of {args.batch_size}"
        )
    calls = [(k % whole * steps, steps) for k in range(args.rounds)]
    stage = method.stages()[0][1]
    # One lone program serves all seeds: theirs differ in a constant, the random key.
    ways: dict[str, Any] = {"one_device": _InTurn(trainer, trainer.run_on.alone(), stage)}
    if devices > 1:
        ways["shared_batches"] = _InTurn(
            trainer, trainer.run_on.alone().on(trainer.run_on.devices), stage
        )
    ways["together"] = _Together(trainer, stage)
    with trainer.batches(calls) as batches:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number, rows in enumerate(batches):
            if number == 1:
                wait_for(Path(args.time_after) if args.time_after else None)
            # In another order each round: none always follows the longest.
            for name in np.random.default_rng(number).permutation(list(ways)):
                seconds[name].append(ways[name].step(rows))
    # The first round warms caches.
    times = {name: np.asarray(found[1:]) / steps for name, found in seconds.items()}
    ratios = {name: times["together"] / times[name] for name in ways if name != "together"}
    return {
        "model": model,
        **described,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "image_shape": list(trainer.feed.image_shape),
        "seeds": args.seeds,
        "devices": devices,
        "steps_per_call": steps,
        "rounds": len(times["together"]),
        "ms": {name: 1000 * float(np.median(found)) for name, found in times.items()},
        # Of together over each other way.
        "ratio": {name: float(np.median(found)) for name, found in ratios.items()},
        "ratio_quartiles": {
            name: [float(x) for x in np.percentile(found, [25, 75])]
            for name, found in ratios.items()
        },
        "seconds_compile": {name: way.seconds_compile for name, way in ways.items()},
    }


class _InTurn:
    """A step of one seed after the other."""

    def __init__(self, trainer: Any, run_on: Any, stage: Any):
        self._run_on, self._stage, self._call = run_on, stage, cast(Any, None)
        self._inputs = run_on.put_inputs(trainer.feed.inputs("train"))
        self._states = [run_on.put_state(run.initial) for run in trainer.runs]

    def step(self, rows: Any) -> float:
        """Seconds."""
        import jax

        of_seeds = [jax.tree.map(lambda x, k=k: x[k], rows) for k in range(len(self._states))]
        began = time.perf_counter()
        if self._call is None:
            self._call = self._run_on.compile_steps(
                self._stage, self._states[0], self._inputs, of_seeds[0]
            )
            self.seconds_compile = time.perf_counter() - began
        for k, mine in enumerate(of_seeds):
            placed = self._run_on.place(mine)
            self._states[k], seen = self._call(self._states[k], self._inputs, placed)
            jax.block_until_ready((self._states[k], seen))
        return time.perf_counter() - began


class _Together:
    """A step of all seeds in one program."""

    def __init__(self, trainer: Any, stage: Any):
        self._run_on, self._stage, self._call = trainer.run_on, stage, cast(Any, None)
        self._inputs = trainer.run_on.put_inputs(trainer.feed.inputs("train"))
        self._states = trainer.run_on.join([run.initial for run in trainer.runs])

    def step(self, rows: Any) -> float:
        """Seconds."""
        import jax

        began = time.perf_counter()
        if self._call is None:
            self._call = self._run_on.compile_steps(self._stage, self._states, self._inputs, rows)
            self.seconds_compile = time.perf_counter() - began
        self._states, seen = self._call(self._states, self._inputs, self._run_on.place(rows))
        jax.block_until_ready((self._states, seen))
        return time.perf_counter() - began


def markdown(rows: list[dict[str, Any]], device: str) -> str:
    lines = [
        "| model | rule | images | batch | seeds | devices | one device, ms | shared batches, ms | "
        "together, ms | together / one device | together / shared batches |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:

        def ms(name: str, row: Any = row) -> str:
            return f"{row['ms'][name]:.2f}" if name in row["ms"] else "-"

        def ratio(name: str, row: Any = row) -> str:
            if name not in row["ratio"]:
                return "-"
            low, high = row["ratio_quartiles"][name]
            return f"{row['ratio'][name]:.2f} ({low:.2f} to {high:.2f})"

        lines.append(
            f"| {row['model']} | {row['rule']} | {'x'.join(map(str, row['image_shape']))} | "
            f"{row['batch_size']} | {row['seeds']} | {row['devices']} | {ms('one_device')} | "
            f"{ms('shared_batches')} | {ms('together')} | {ratio('one_device')} | "
            f"{ratio('shared_batches')} |"
        )
    lines += ["", f"Milliseconds of one step of all seeds, median; {device}."]
    return "\n".join(lines)


@owning_out
def main(args: argparse.Namespace) -> None:
    from benchmarks.step_bench import noise
    from experiments.data import load_npz, shrunk
    from experiments.host.devices import emulate
    from imbsam_jax import long_tail_counts

    cli.refuse_twice(args, "model")
    emulate(args.devices)  # before anything starts the backend
    dataset = load_npz(Path(args.data)) if args.data else noise(long_tail_counts(100, 500, 100))
    dataset = shrunk(dataset, args.shrink)
    rows = [measure(model, args, dataset) for model in args.model]
    command = origin.command_line()
    for path in filter(None, (args.data, args.out)):  # where files lay here says nothing elsewhere
        command = command.replace(path, Path(path).name)
    environment = origin.environment()
    out = Path(args.out)
    found = {"command": command, "data": dataset.source, "rows": rows, **environment}
    outputs.write_json(out / "seeds_together.json", found)
    print(markdown(rows, environment["device"]))


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
