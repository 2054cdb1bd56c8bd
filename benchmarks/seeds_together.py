"""A step of several seeds in one program against the same steps one after the other.

    python -m benchmarks.seeds_together --data cache.npz --model mlp resnet8 --shrink 2 --out DIR

Both ways do the same work: one step of every seed, from the same states on the same rows. They are
timed in turn, in a new order each round, so that what else a noisy machine does slows both alike;
the ratio is taken round by round, and its median and quartiles are reported. As in a run, a call
is one step on a CPU and a scan of 50 elsewhere; milliseconds are of one step of all seeds.
Without --data the batches are of noise with the class counts of CIFAR100-LT, which costs the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli, folders, methods
from experiments.errors import RunError


def arguments() -> argparse.ArgumentParser:
    from experiments.models import MODELS

    parser = cli.parser("Measure a step of several seeds, together and one after the other.")
    parser.add_argument("--data", help="file written by cifar_lt --export")
    parser.add_argument("--shrink", type=int, default=1, help="each side of an image, divided")
    parser.add_argument("--model", nargs="+", default=["mlp"], choices=sorted(MODELS))
    parser.add_argument("--rule", default="imbsam", choices=sorted(methods.RULES))
    parser.add_argument("--batch-size", type=int, default=64, help="images of a seed's step")
    parser.add_argument("--seeds", type=int, default=4, help="how many")
    parser.add_argument(
        "--rounds", type=int, default=30, help="calls of each; the first is left out"
    )
    parser.add_argument(
        "--steps-per-call", type=int, default=0, help="0 is 1 on a CPU and 50 elsewhere"
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", required=True, help="folder for seeds_together.json")
    methods.add_arguments(parser.add_argument_group("method"))
    return parser


def measure(model: str, args: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """Milliseconds of a step of all seeds of one model, both ways; a staged rule's first stage."""
    import jax

    from experiments.parts import Parts, resolved
    from experiments.settings import Settings
    from experiments.together import Group
    from imbsam_jax.losses import cross_entropy

    per_epoch = -(-len(dataset.train_labels) // args.batch_size)
    options = {**vars(args), "epochs": 2, "switch_fraction": 0.5, "weight_decay": 5e-3}
    method, described = methods.build_method(
        args.rule, dataset.class_counts(), options, steps_per_epoch=per_epoch
    )
    settings = resolved(
        Settings(
            batch_size=args.batch_size, precision=args.precision,
            steps_per_call=args.steps_per_call,
        )
    )  # fmt: skip
    settings.check()
    each = [dataclasses.replace(settings, seed=seed) for seed in range(args.seeds)]
    group = Group(
        dataset, [Parts(dataset, model, cross_entropy, one) for one in each], method, each
    )
    members, steps = group.members, settings.steps_per_call
    inputs = group.run_on.put_inputs(group.feed.inputs("train"))
    lone_states = [member.run_on.put_state(member.initial) for member in members]
    states = group.run_on.stack([member.initial for member in members])
    # The calls of an epoch, of whole batches alone, over and over.
    whole = len(dataset.train_labels) // args.batch_size // steps
    if not whole:
        raise RunError(
            f"{len(dataset.train_labels)} images are no {steps} batches of {args.batch_size}"
        )
    calls = [(k % whole * steps, steps) for k in range(args.rounds)]
    stage = method.stages()[0][1]
    seconds: dict[str, list[float]] = {"one after the other": [], "together": []}
    compile_seconds: dict[str, float] = {}
    with group.batches(calls) as batches:
        for number, rows in enumerate(batches):
            lone_rows = [jax.tree.map(lambda x, k=k: x[k], rows) for k in range(args.seeds)]
            if number == 0:
                began = time.perf_counter()
                # One lone program serves all seeds: theirs differ in a constant, the random key.
                lone = members[0].run_on.compile_steps(stage, lone_states[0], inputs, lone_rows[0])
                between = time.perf_counter()
                mapped = group.run_on.compile_steps(stage, states, inputs, rows)
                compile_seconds = dict(
                    zip(seconds, (between - began, time.perf_counter() - between), strict=True)
                )
            # In another order each round: neither always follows the longer.
            for way in np.random.default_rng(number).permutation(list(seconds)):
                began = time.perf_counter()
                if way == "together":
                    states, seen = mapped(states, inputs, group.run_on.place(rows))
                    jax.block_until_ready((states, seen))
                else:
                    for k, member in enumerate(members):
                        placed = member.run_on.place(lone_rows[k])
                        lone_states[k], seen = lone(lone_states[k], inputs, placed)
                        jax.block_until_ready((lone_states[k], seen))
                seconds[way].append(time.perf_counter() - began)
    # The first round warms caches.
    times = {way: np.asarray(found[1:]) / steps for way, found in seconds.items()}
    ratio = times["together"] / times["one after the other"]
    return {
        "model": model,
        **described,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "image_shape": list(group.feed.image_shape),
        "seeds": args.seeds,
        "steps_per_call": steps,
        "rounds": len(ratio),
        "ms_one_after_another": 1000 * float(np.median(times["one after the other"])),
        "ms_together": 1000 * float(np.median(times["together"])),
        "ratio": float(np.median(ratio)),
        "ratio_quartiles": [float(x) for x in np.percentile(ratio, [25, 75])],
        "seconds_compile": compile_seconds,  # of a lone step once
    }


def markdown(rows: list[dict[str, Any]], device: str) -> str:
    lines = [
        "| model | rule | images | batch | seeds | one after the other, ms | together, ms | "
        "together / one after the other | quartiles |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['model']} | {row['rule']} | {'x'.join(map(str, row['image_shape']))} | "
            f"{row['batch_size']} | {row['seeds']} | {row['ms_one_after_another']:.2f} | "
            f"{row['ms_together']:.2f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join([*lines, "", f"Milliseconds of one step of all seeds, median; {device}."])


def main(args: argparse.Namespace) -> None:
    from benchmarks.step_cost import noise
    from experiments.data import load_npz, shrunk
    from imbsam_jax import long_tail_counts

    for name, least in (("rounds", 2), ("seeds", 2), ("batch_size", 1), ("shrink", 1)):
        if getattr(args, name) < least:
            raise RunError(f"--{name.replace('_', '-')} must be at least {least}")
    dataset = load_npz(Path(args.data)) if args.data else noise(long_tail_counts(100, 500, 100))
    dataset = shrunk(dataset, args.shrink)
    rows = [measure(model, args, dataset) for model in args.model]
    command = folders.command_line()
    for path in filter(None, (args.data, args.out)):  # where files lay here says nothing elsewhere
        command = command.replace(path, Path(path).name)
    environment = folders.environment()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {"command": command, "data": dataset.source, "rows": rows, **environment}
    folders.write_json(out / "seeds_together.json", found)
    print(markdown(rows, environment["device"]))


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
