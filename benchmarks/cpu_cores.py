"""A step on one and on several emulated devices of a CPU, and in PyTorch, in turn.

    python -m benchmarks.cpu_cores --model resnet32 mlp vit_ti4 --out results/cpu_cores
    python -m benchmarks.cpu_cores --model resnet32 --torch --out results/cpu_cores    # needs torch

XLA runs one device's convolutions on little more than one core. Sharing the batch among emulated
devices, one a core, uses the others; `experiments` does so by default where it helps. All ways are
timed in one process, a step of each in turn, in a new order each round, so that a noisy machine
slows all alike. PyTorch (--torch) trains the same CIFAR-type network by the passes of the ImbSAM
release, without augmentation, with a thread for every core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.owned import owning_out
from experiments.host import cli, origin, outputs
from experiments.host.needs import Needs, always

RULES = ("sgd", "imbsam")
# Blocks of a stage, of the models that PyTorch can be asked for.
BLOCKS = {"resnet8": 1, "resnet20": 3, "resnet32": 5}


_NEEDS: Needs = always("model", "batch_size", "devices", "parallel", "rounds", "torch", "out")


def arguments() -> argparse.ArgumentParser:
    from experiments.models import MODELS

    parser = cli.parser("Time a step on one and on several devices of a CPU.", _NEEDS)
    parser.add_argument(
        "--model", nargs="+", default=["resnet32"], choices=sorted(MODELS), help="networks"
    )
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images of noise")
    parser.add_argument(
        "--devices", type=cli.counted(64), nargs="+", default=[1, 2], help="how many, each"
    )
    parser.add_argument(
        "--parallel",
        nargs="+",
        default=["jit"],
        choices=["jit", "pmap"],
        help="how devices share a batch",
    )
    parser.add_argument("--rounds", type=cli.counted(), default=20, help="the first is not counted")
    parser.add_argument("--torch", action="store_true", help="PyTorch, too, where it has the model")
    parser.add_argument("--out", type=cli.text, required=True, help="folder for cpu_cores.json")
    return parser


def torch_steps(blocks: int, batch: int, rho: float = 0.05) -> dict[str, Any]:
    """A step of each rule by PyTorch, of a CIFAR-type ResNet on noise."""
    import torch
    from torch import nn
    from torch.nn import functional

    from experiments.host.devices import cores

    torch.set_num_threads(cores())

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.stride, self.missing = stride, width - before

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
            if self.missing:
                sides = self.missing // 2, self.missing - self.missing // 2
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *sides))
            return functional.relu(x + y)

    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100))
    params = list(net.parameters())
    tx = torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-3)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 100, (batch,))
    tail = torch.arange(batch) >= batch - round(0.19 * batch)

    def losses() -> Any:
        return functional.cross_entropy(net(x), y, reduction="none")

    def gradients(loss: Any, again: bool = False) -> Any:
        return torch.autograd.grad(loss, params, retain_graph=again)

    def move(by: Any) -> None:
        with torch.no_grad():
            for p, e in zip(params, by, strict=True):
                p.add_(e)

    def descend(grads: Any) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        tx.step()

    def sgd() -> None:
        descend(gradients(losses().mean()))

    def imbsam() -> None:
        found = losses()
        head = gradients(found[~tail].sum() / batch, again=True)
        d = gradients(found[tail].sum() / batch)
        scale = rho / torch.sqrt(sum((g**2).sum() for g in d))
        move([scale * g for g in d])
        moved = gradients(losses()[tail].sum() / batch)
        move([-scale * g for g in d])
        descend([a + b for a, b in zip(head, moved, strict=True)])

    return {"sgd": sgd, "imbsam": imbsam}


def our_steps(model: str, args: argparse.Namespace) -> dict[tuple[str, str], Any]:
    """(rule, way) -> one step of its own state each."""
    import jax

    from benchmarks.step_bench import noise
    from experiments.run.parts import Parts
    from experiments.run.settings import Settings
    from experiments.step.step import Inputs
    from imbsam_jax import long_tail_counts, rules
    from imbsam_jax.losses import cross_entropy

    dataset = noise(long_tail_counts(100, 500, 100))
    chosen = {"sgd": rules.sgd(100), "imbsam": rules.imbsam(dataset.class_counts(), eta=100)}
    found: dict[tuple[str, str], Any] = {}
    for count in sorted({1, *args.devices}):
        for parallel in args.parallel if count > 1 else ["jit"]:
            settings = Settings(batch_size=args.batch_size, devices=count, parallel=parallel)
            parts = Parts(dataset, model, cross_entropy, settings)
            run_on = parts.run_on
            inputs = run_on.put_inputs(Inputs(dataset.train_images, dataset.train_labels))
            rows = parts.order.of_step(0).astype(np.int32)[None]
            for name in RULES:
                state = run_on.put_state(parts.initial)
                call = run_on.compile_steps(chosen[name], state, inputs, rows)

                def step(
                    held: Any = [state], call: Any = call, inputs: Any = inputs,  # noqa: B006
                    rows: Any = rows, run_on: Any = run_on,
                ) -> None:  # fmt: skip
                    held[0], seen = call(held[0], inputs, run_on.place(rows))
                    jax.block_until_ready((held[0], seen))

                way = "1 device" if count == 1 else f"{count} devices, {parallel}"
                found[name, way] = step
    return found


def measure(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    steps = our_steps(model, args)
    if args.torch and model in BLOCKS:
        by_torch = torch_steps(BLOCKS[model], args.batch_size)
        steps |= {(name, "PyTorch"): step for name, step in by_torch.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for number in range(args.rounds + 1):
        for k in np.random.default_rng(number).permutation(len(steps)):
            key = list(steps)[k]
            began = time.perf_counter()
            steps[key]()
            times[key].append(time.perf_counter() - began)
    rows = []
    for (name, way), seconds in times.items():
        mine, alone = (np.array(times[name, of][1:]) for of in (way, "1 device"))
        low, middle, high = np.percentile(mine / alone, [25, 50, 75])
        rows.append({
            "model": model, "rule": name, "way": way, "batch_size": args.batch_size,
            "rounds": len(seconds) - 1, "step_ms": 1000 * float(np.median(mine)),
            "over_one_device": float(middle), "quartiles": [float(low), float(high)],
        })  # fmt: skip
    return rows


@owning_out
def main(args: argparse.Namespace) -> None:
    from experiments.host.devices import cores, use_devices

    cli.refuse_twice(args, "model", "devices", "parallel")
    use_devices(max(args.devices))
    cli.use_compilation_cache()
    rows = [row for model in args.model for row in measure(model, args)]
    versions: dict[str, Any] = {}
    if args.torch:
        import torch

        versions["torch"] = torch.__version__
    found = {"command": origin.command_line(), "cores": cores(), "rows": rows, **versions}
    out = Path(args.out)
    outputs.write_json(out / "cpu_cores.json", found | origin.environment())
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"{row['model']:9} {row['rule']:7} {row['way']:16} {row['step_ms']:7.1f} ms  "
            f"{row['over_one_device']:.2f} of one device's ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
