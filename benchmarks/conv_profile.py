"""Where a CPU step of a CIFAR-type ResNet goes: its convolutions and normalisations, one by one.

    python -m benchmarks.conv_profile --out results/cpu_cores/profile

Each is jitted alone and timed on one device: the forward pass of a 3x3 convolution, its gradient by
the input and by the kernel, and of batch normalisation with ReLU the forward pass and the gradient.
The gradient by the kernel also by matrix products, of each of nine shifts and of all patches at
once; and both gradients as a side of a branch, as JAX writes them and as the models here do
(experiments/models/convolution.py).
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

# (channels, pixels of a side) of ResNet-32's three stages.
STAGES = ((16, 32), (32, 16), (64, 8))


_NEEDS: Needs = always("batch_size", "rounds", "out")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Time the parts of a step of a CIFAR-type ResNet on this device.", _NEEDS)
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images of noise")
    parser.add_argument("--rounds", type=cli.counted(), default=15, help="the first is not counted")
    parser.add_argument("--out", type=cli.text, required=True, help="folder for conv_profile.json")
    return parser


def parts() -> dict[str, Any]:
    """(images, kernel, gradient by the output) -> what a part of a step makes of them, by name."""
    import jax
    import jax.numpy as jnp

    from experiments.models.convolution import conv_general_dilated

    def conv(x: Any, kernel: Any, by: Any = jax.lax.conv_general_dilated) -> Any:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return by(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=dimensions)

    def shifts(x: Any) -> list[Any]:
        side, channels = x.shape[1], x.shape[3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return [
            padded[:, i : i + side, j : j + side].reshape(-1, channels)
            for i in range(3)
            for j in range(3)
        ]

    def nine(x: Any, kernel: Any, g: Any) -> Any:
        found = [one.T @ g.reshape(-1, g.shape[3]) for one in shifts(x)]
        return jnp.stack(found).reshape(kernel.shape)

    def patches(x: Any, kernel: Any, g: Any) -> Any:
        found = jnp.concatenate(shifts(x), axis=1).T @ g.reshape(-1, g.shape[3])
        return found.reshape(kernel.shape)

    def in_a_branch(by: Any) -> Any:
        def gradients(x: Any, kernel: Any, g: Any) -> Any:
            both = jax.vjp(lambda x, k: conv(x, k, by), x, kernel)[1]
            return jax.lax.cond(g[0, 0, 0, 0] < jnp.inf, both, lambda g: (x, kernel), g)

        return gradients

    def norm(x: Any, kernel: Any) -> Any:
        mean = x.mean((0, 1, 2))
        var = jnp.square(x).mean((0, 1, 2)) - jnp.square(mean)
        return jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5))

    return {
        "convolution": lambda x, k, g: conv(x, k),
        "by the input": lambda x, k, g: jax.vjp(lambda x: conv(x, k), x)[1](g),
        "by the kernel": lambda x, k, g: jax.vjp(lambda k: conv(x, k), k)[1](g),
        "nine products": nine,
        "one product": patches,
        "both": lambda x, k, g: jax.vjp(conv, x, k)[1](g),
        "branch, JAX's": in_a_branch(jax.lax.conv_general_dilated),
        "branch, ours": in_a_branch(conv_general_dilated),
        "normalisation": lambda x, k, g: norm(x, k),
        "its gradient": lambda x, k, g: jax.vjp(lambda x: norm(x, k), x)[1](g),
    }


@owning_out
def main(args: argparse.Namespace) -> None:
    import jax

    rows = []
    for channels, side in STAGES:
        keys = jax.random.split(jax.random.key(0), 3)
        shape = (args.batch_size, side, side, channels)
        x, g = (jax.random.normal(key, shape) for key in keys[:2])
        kernel = jax.random.normal(keys[2], (3, 3, channels, channels))
        flops = 2 * args.batch_size * side * side * 9 * channels * channels
        for name, part in parts().items():
            call, seconds = jax.jit(part), []
            for _ in range(args.rounds + 1):
                began = time.perf_counter()
                jax.block_until_ready(call(x, kernel, g))
                seconds.append(time.perf_counter() - began)
            ms = 1000 * float(np.median(seconds[1:]))
            two = name == "both" or "branch" in name
            rate = None if "norm" in name or "its" in name else (1 + two) * flops / ms / 1e6
            rows.append({"channels": channels, "side": side, "part": name, "ms": ms,
                         "gflops_per_second": rate})  # fmt: skip
            print(f"{channels} channels, {side} pixels: {name:14} {ms:6.2f} ms"
                  + ("" if rate is None else f"  {rate:5.1f} GFLOP/s"))  # fmt: skip
    out = Path(args.out)
    found = {"command": origin.command_line(), "batch_size": args.batch_size, "rows": rows}
    outputs.write_json(out / "conv_profile.json", found | origin.environment())


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
