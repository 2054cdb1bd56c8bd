"""What was tried to make ImbSAM's exact step cheaper with batch normalisation, and what it costs.

    python -m benchmarks.exact_batch_norm --model resnet20 --out results/exact_batch_norm

A step of ImbSAM is two forward and three backward passes over the whole batch, since batch
normalisation shows every row to every other. As one function of (params, statistics, images,
labels), without optimizer, each way is compiled, counted by XLA and timed in turn:

- sgd: one pass, to compare with.
- exact: what the library does. One forward pass at theta, a backward pass each for head and tail,
  one pass at theta + e.
- batched: both backward passes at theta as one, of two stacked cotangents.
- stopped: at theta + e the head's rows go forward only, for the statistics, which are then held
  fixed; the tail's rows alone are differentiated. This is another gradient.
- remat: exact, with the activations of the pass at theta computed again in each backward pass.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.owned import owning_out
from experiments.host import cli, origin, outputs
from experiments.host.errors import RunError
from experiments.host.needs import Needs, always, without

_NEEDS: Needs = {
    **always("model", "batch_size", "tail_rows", "image_size", "compile_only", "out"),
    "rounds": (without("compile-only"),),
}


def arguments() -> argparse.ArgumentParser:
    from experiments.models import MODELS, WITHOUT_BATCH_NORM

    models = [name for name in MODELS if name not in WITHOUT_BATCH_NORM]
    parser = cli.parser(
        "Count and time ways to take ImbSAM's step with batch normalisation.", _NEEDS
    )
    parser.add_argument("--model", default="resnet20", choices=models, help="the network")
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images of noise")
    parser.add_argument(
        "--tail-rows", type=cli.counted(), default=12, help="of a batch: 0.19 of CIFAR100-LT"
    )
    parser.add_argument("--image-size", type=cli.counted(4096), default=32, help="pixels")
    parser.add_argument(
        "--rounds", type=cli.counted(), default=15, help="each way once, in another order"
    )
    parser.add_argument("--compile-only", action="store_true", help="count, and time nothing")
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for exact_batch_norm.json"
    )
    return parser


def ways(model: Any, tail_rows: int, rho: float = 0.05) -> dict[str, Any]:
    """f(params, stats, images, labels) -> (gradient, new statistics); the tail's rows come last."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from experiments.models import BATCH_NORM_MOMENTUM
    from imbsam_jax.ascent import Ascent, perturbed
    from imbsam_jax.losses import cross_entropy

    def losses(params: Any, stats: Any, x: Any, y: Any, train: bool = True) -> Any:
        variables = {"params": params, "batch_stats": stats}
        if not train:
            return cross_entropy(model.apply(variables, x, train=False), y), stats
        logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, y), new["batch_stats"]

    def masks(y: Any) -> Any:
        tail = jnp.arange(len(y)) >= len(y) - tail_rows
        return (~tail) / len(y), tail / len(y)

    def add(a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)

    def moved(params: Any, d: Any) -> Any:
        return perturbed(params, d, rho, Ascent())

    def tail_at(point: Any, stats: Any, x: Any, y: Any) -> Any:
        return jax.grad(lambda p: masks(y)[1] @ losses(p, stats, x, y)[0])(point)

    def sgd(params: Any, stats: Any, x: Any, y: Any) -> Any:
        return jax.grad(lambda p: (lambda found: (found[0].mean(), found[1]))(
            losses(p, stats, x, y)), has_aux=True)(params)  # fmt: skip

    def with_pullback(back: Any, again: bool = False) -> Any:
        def f(params: Any, stats: Any, x: Any, y: Any) -> Any:
            def of(p: Any) -> Any:
                return losses(p, stats, x, y)

            _, pullback, new = jax.vjp(jax.checkpoint(of) if again else of, params, has_aux=True)
            head, d = back(pullback, *masks(y))
            point, head = lax.optimization_barrier((moved(params, d), head))
            return add(head, tail_at(point, stats, x, y)), new

        return f

    def one_by_one(pullback: Any, head: Any, tail: Any) -> Any:
        return pullback(head)[0], lax.optimization_barrier(pullback)(tail)[0]

    def at_once(pullback: Any, head: Any, tail: Any) -> Any:
        both = jax.vmap(lambda w: pullback(w)[0])(jnp.stack([head, tail]))
        return tuple(jax.tree.map(lambda g, k=k: g[k], both) for k in (0, 1))

    def stopped(params: Any, stats: Any, x: Any, y: Any) -> Any:
        _, pullback, new = jax.vjp(lambda p: losses(p, stats, x, y), params, has_aux=True)
        head, d = one_by_one(pullback, *masks(y))
        point = moved(params, d)
        zeros = jax.tree.map(jnp.zeros_like, stats)
        _, seen = losses(point, zeros, x, y)
        held = jax.tree.map(lambda s: s / (1 - BATCH_NORM_MOMENTUM), seen)
        rows = slice(len(y) - tail_rows, None)
        own = jax.grad(lambda p: losses(p, held, x[rows], y[rows], False)[0].sum() / len(y))(point)
        return add(head, own), new

    return {
        "sgd": sgd, "exact": with_pullback(one_by_one),
        "batched": with_pullback(at_once), "stopped": stopped,
        "remat": with_pullback(one_by_one, again=True),
    }  # fmt: skip


@owning_out
def main(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from experiments.models import create_model
    from experiments.run import cost

    if args.tail_rows > args.batch_size:
        raise RunError(
            f"--tail-rows {args.tail_rows} are more than the --batch-size {args.batch_size}"
        )
    cli.use_compilation_cache()
    model = create_model(args.model, 100)
    draw = np.random.default_rng(0)
    shape = (args.batch_size, args.image_size, args.image_size, 3)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    y = jax.ShapeDtypeStruct((args.batch_size,), jnp.int32)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *shape[1:])), train=False))
    key = jax.random.key(0)
    variables = jax.eval_shape(init, key)
    calls, rows = {}, list[dict[str, Any]]()
    for name, way in ways(model, args.tail_rows).items():
        began = time.perf_counter()
        given = (variables["params"], variables["batch_stats"], x, y)
        calls[name] = call = jax.jit(way).lower(*given).compile()
        memory = call.memory_analysis()
        rows.append({
            "way": name, "flops": cost.flops(call),
            "seconds_compile": round(time.perf_counter() - began, 2),
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        })  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in calls}
    if not args.compile_only:
        variables = init(key)
        images = jnp.asarray(draw.normal(size=shape), jnp.float32)
        labels = jnp.asarray(draw.integers(0, 100, args.batch_size), jnp.int32)
        values = (variables["params"], variables["batch_stats"], images, labels)
        exact = calls["exact"](*values)
        for name in ("batched", "remat"):  # the same gradient
            for a, b in zip(*map(jax.tree.leaves, (exact, calls[name](*values))), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4, err_msg=name)
        for number in range(args.rounds + 1):
            for name in np.random.default_rng(number).permutation(list(calls)):
                began = time.perf_counter()
                jax.block_until_ready(calls[name](*values))
                times[name].append(time.perf_counter() - began)
    base = rows[0]
    for row in rows:
        row["flops_ratio"] = row["flops"] / base["flops"]
        if row["temporary_bytes"] and base["temporary_bytes"]:
            row["memory_ratio"] = row["temporary_bytes"] / base["temporary_bytes"]
        if times[row["way"]]:
            mine, of_sgd = (np.array(times[name][1:]) for name in (row["way"], "sgd"))
            row["ms"] = 1000 * float(np.median(mine))
            low, middle, high = np.percentile(mine / of_sgd, [25, 50, 75])
            row["time_ratio"], row["time_ratio_quartiles"] = (
                float(middle),
                [float(low), float(high)],
            )
    out = Path(args.out)
    about = {
        "model": args.model, "batch_size": args.batch_size, "tail_rows": args.tail_rows,
        "image_size": args.image_size, "rounds": args.rounds, "command": origin.command_line(),
        **origin.environment(),
    }  # fmt: skip
    found = {**about, "rows": rows}
    outputs.replace_text(out / "exact_batch_norm.json", json.dumps(found, indent=1) + "\n")
    for row in rows:
        times_of = row.get("time_ratio", float("nan")), row.get("time_ratio_quartiles", "")
        memory = row.get("memory_ratio", float("nan"))
        print(
            f"{row['way']:8} FLOPs {row['flops_ratio']:.2f}  memory {memory:.2f}  "
            "time {:.2f} {}".format(*times_of)
        )


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
