"""The main job for someone with no data and no GPU: long-tailed digits, under two minutes.

    python -m experiments.digits_lt --out runs/digits

scikit-learn's 8x8 digits are made long-tailed (which digit is rare is drawn by the seed) and a
small MLP is trained under each rule, all seeds in one compiled program. Seed s of one rule has
the same data, initial weights and batches as seed s of another, so differences are paired.
"""

from __future__ import annotations

import argparse
import csv
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.errors import RunError
from experiments.methods import RULES, build_rule, rule_arguments
from experiments.report import number

EPOCHS_PER_CALL = 5


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Train an MLP on long-tailed 8x8 digits under several rules.")
    parser.add_argument(
        "--rule", nargs="+", default=["sgd", "sam", "imbsam"], choices=sorted(RULES)
    )
    parser.add_argument("--rho", type=float, default=0.2, help="radius, in parameter units, >= 0")
    parser.add_argument("--eta", type=float, default=20, help="largest count of a tail class")
    parser.add_argument("--tail-scale", type=float, default=1.0, help="factor on the tail loss")
    parser.add_argument(
        "--imbalance-factor", type=float, default=50.0, help="largest over smallest class, 1 to 100"
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32, help="images")
    parser.add_argument("--lr", type=float, default=0.1, help="initial learning rate; cosine")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--num-seeds", type=int, default=20, help="seeds 0 to N-1")
    seeds.add_argument("--seeds", type=int, nargs="+", help="these seeds instead")
    parser.add_argument("--out", required=True, help="folder for summary.json, tables and plots")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    return parser


class Curve(NamedTuple):
    """What one rule did, for S seeds: accuracies in percent at E epochs, and seconds a call."""

    epochs: list[int]
    loss: np.ndarray  # [E, S]
    splits: dict[str, np.ndarray]  # all, many, medium, few: [E, S]
    correct: np.ndarray  # [S, C], at the last epoch
    total: np.ndarray  # [S, C]
    seconds: np.ndarray  # [E]


def train(args: argparse.Namespace, datasets: list[Any], seeds: list[int]) -> dict[str, Curve]:
    """Trains every rule, a few epochs of each in turn, so that a noisy machine slows all alike."""
    import jax
    import jax.numpy as jnp

    from experiments.models import create_model
    from experiments.steps import (
        Inputs,
        count_hits,
        create_state,
        learning_rate,
        make_step,
        normalise,
        optimizer,
    )
    from imbsam_jax import metrics, shot_splits
    from imbsam_jax.losses import cross_entropy

    first = datasets[0]
    counts, rows, batch = first.class_counts(), len(first.train_labels), args.batch_size
    full, rest = divmod(rows, batch)
    steps_per_epoch = full + (rest > 0)
    splits = shot_splits(counts, first.many_above, first.few_below)
    train_set, test_set = (
        Inputs(*(np.stack([getattr(d, f"{part}_{f}") for d in datasets]) for f in Inputs._fields))
        for part in ("train", "test")
    )
    train_set, test_set = jax.device_put((train_set, test_set))
    tx = optimizer(
        learning_rate("cosine", args.lr, args.epochs, steps_per_epoch),
        args.momentum,
        args.weight_decay,
    )
    model = create_model("mlp", first.num_classes)
    example = normalise(train_set.images[0, :1], first.mean, first.std)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])

    def prepare(images: jax.Array, *_: Any) -> jax.Array:
        return normalise(images, first.mean, first.std)

    def some_epochs(
        step: Any, state: Any, inputs: Inputs, test: Inputs, order: Any, key: Any
    ) -> Any:
        """E epochs of one seed; order is int32[E, rows]."""

        def epoch(state: Any, order: jax.Array) -> Any:
            def body(state: Any, index: jax.Array) -> Any:
                return step(state, inputs, index, jnp.arange(batch), batch, key)

            state, seen = jax.lax.scan(body, state, order[: full * batch].reshape(full, batch))
            loss = batch * seen.loss.sum()
            if rest:
                last = order[full * batch :]
                state, seen = step(state, inputs, last, jnp.arange(rest), rest, key)
                loss += rest * seen.loss
            return state, loss / rows

        state, losses = jax.lax.scan(epoch, state, order)
        everyone = jnp.arange(test.labels.shape[0])
        correct, total, _ = count_hits(
            state, cross_entropy, prepare, test, everyone, everyone >= 0, flip=False
        )
        return state, (losses[-1], correct, total)

    initial = jax.jit(jax.vmap(lambda key: create_state(model, tx, example, key)))(keys)
    ends = [*range(EPOCHS_PER_CALL, args.epochs, EPOCHS_PER_CALL), args.epochs]
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    calls, states = {}, {}
    for name in args.rule:
        step = make_step(build_rule(name, counts, vars(args)), cross_entropy, prepare)
        mapped = jax.jit(jax.vmap(partial(some_epochs, step)), donate_argnums=0)
        states[name] = jax.tree.map(jnp.copy, initial)
        for length in {end - start for start, end in spans}:
            order = jnp.zeros((len(seeds), length, rows), jnp.int32)
            lowered = mapped.lower(states[name], train_set, test_set, order, keys)
            calls[name, length] = lowered.compile()

    seen: dict[str, list[Any]] = {name: [] for name in args.rule}
    for start, end in spans:
        order = jnp.asarray(_orders(seeds, start, end, rows))
        for name in args.rule:
            began = time.perf_counter()
            states[name], found = calls[name, end - start](
                states[name], train_set, test_set, order, keys
            )
            found = jax.device_get(found)
            took = (time.perf_counter() - began) / (end - start)
            if not np.isfinite(found[0]).all():
                bad = seeds[int(np.flatnonzero(~np.isfinite(found[0]))[0])]
                raise RunError(
                    f"{name}: the loss is not finite by epoch {end} (step {end * steps_per_epoch}, "
                    f"seed {bad}); nothing was written; lower --lr or --rho"
                )
            seen[name].append((*found, took))

    curves = {}
    of_splits = jax.vmap(lambda c, t: metrics.shot_accuracies(c, t, splits))
    for name, parts in seen.items():
        losses, correct, total, seconds = (np.stack(part) for part in zip(*parts, strict=True))
        found = [jax.device_get(of_splits(c, t)) for c, t in zip(correct, total, strict=True)]
        by_split = {split: np.stack([f[split] for f in found]) for split in found[0]}
        curves[name] = Curve(ends, losses, by_split, correct[-1], total[-1], seconds)
    return curves


def _orders(seeds: list[int], start: int, end: int, rows: int) -> np.ndarray:
    """int32[S, E, rows]: the same order for every rule; epoch and seed decide it."""
    orders = [
        [np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(start, end)]
        for seed in seeds
    ]
    return np.asarray(orders, np.int32)


def summarise(curves: dict[str, Curve], seeds: list[int], args: argparse.Namespace) -> list[dict]:
    """One object a rule; figures are of the last epoch, means over seeds, in percent."""
    sgd = curves.get("sgd")
    result = []
    for name, curve in curves.items():
        last = {split: values[-1] for split, values in curve.splits.items()}
        row: dict[str, Any] = {
            "rule": name,
            "rule_args": rule_arguments(name, vars(args)),
            "seeds": seeds,
        }
        for split, values in last.items():
            row[split], row[f"{split}_sd"] = _mean(values), _deviation(values)
        for split in ("all", "few"):
            paired = None if sgd is None else last[split] - sgd.splits[split][-1]
            row[f"paired_{split}"] = _mean(paired)
            deviation = _deviation(paired)
            row[f"paired_{split}_se"] = (
                None if deviation is None else deviation / float(np.sqrt(len(seeds)))
            )
        row["step_cost_ratio"] = (
            None if sgd is None else float(np.median(curve.seconds / sgd.seconds))
        )
        result.append(row)
    return result


def _mean(values: np.ndarray | None) -> float | None:
    if values is None or np.isnan(values).any():
        return None
    return float(np.mean(values, dtype=np.float64))


def _deviation(values: np.ndarray | None) -> float | None:
    """Sample standard deviation over seeds; none for a single seed."""
    if values is None or len(values) < 2 or np.isnan(values).any():
        return None
    return float(np.std(values, ddof=1, dtype=np.float64))


def show(summary: list[dict[str, Any]], args: argparse.Namespace) -> None:
    title = f"accuracy (%), long-tailed digits, imbalance factor {args.imbalance_factor:g}"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))  # fits in 80 columns
    table.add_column("rule", no_wrap=True)
    for name in ("Many", "Medium", "Few", "All", "All-SGD", "Few-SGD", "cost"):
        table.add_column(name, justify="right", no_wrap=True)

    def pm(value: float | None, spread: float | None, sign: str = "") -> str:
        if value is None:
            return "-"
        return f"{value:{sign}.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    for row in summary:
        splits = [pm(row[s], row[f"{s}_sd"]) for s in ("many", "medium", "few", "all")]
        paired = [
            "" if row["rule"] == "sgd" else pm(row[f"paired_{s}"], row[f"paired_{s}_se"], "+")
            for s in ("all", "few")
        ]
        table.add_row(row["rule"], *splits, *paired, number(row["step_cost_ratio"], 2))
    console = Console()
    console.print(table)
    console.print(
        f"{len(summary[0]['seeds'])} seeds, last epoch; mean ± standard deviation over seeds.\n"
        "Differences to SGD are paired by seed, mean ± standard error.\n"
        "Cost: time of a step over SGD's, median of interleaved calls.",
        style="dim",
    )


def write(
    out: Path, curves: dict[str, Curve], summary: list[dict[str, Any]], counts: np.ndarray,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    from experiments import folders, plots

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}") from error
    settings = {key: value for key, value in vars(args).items() if key != "overwrite"}
    run = {"command": folders.command_line(), **folders.environment()}
    folders.write_json(out / "config.json", {**settings, **run})
    with open(out / "per_class.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rule", "class", "train_examples", "accuracy"])
        for name, curve in curves.items():
            accuracy = 100 * (curve.correct / curve.total).mean(axis=0)
            for c, n in enumerate(counts):
                writer.writerow([name, c, int(n), f"{accuracy[c]:.4f}"])
    per_class = {n: 100 * (c.correct / c.total).mean(axis=0) for n, c in curves.items()}
    plots.classes_by_rule(out / "per_class.png", counts, per_class)
    by_epoch = {
        name: (curve.epochs, {s: curve.splits[s].mean(axis=1) for s in ("all", "few")})
        for name, curve in curves.items()
    }
    plots.curves_by_rule(out / "curves.png", by_epoch)
    folders.write_json(out / "summary.json", summary)


def main(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.exists() and any(out.iterdir()) and not args.overwrite:
        raise RunError(f"{out} is not empty: pass --overwrite, or choose another --out")
    for name in ("epochs", "batch_size", "num_seeds"):
        if getattr(args, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} must be at least 1")
    seeds = args.seeds or list(range(args.num_seeds))
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise RunError(f"--seeds must be different numbers, at least 0; got {seeds}")
    args.rule = list(dict.fromkeys(args.rule))
    cli.use_compilation_cache()
    from experiments.data.digits import load_digits_lt

    datasets = [load_digits_lt(args.imbalance_factor, seed) for seed in seeds]
    curves = train(args, datasets, seeds)
    summary = summarise(curves, seeds, args)
    write(out, curves, summary, datasets[0].class_counts(), args)
    show(summary, args)
    print(f"summary, tables and plots are in {out}: per_class.png, curves.png, summary.json")


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
