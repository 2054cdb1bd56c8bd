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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.owned import owning_out
from experiments.command import method_flags
from experiments.host import cli, origin, outputs
from experiments.host.errors import RunError
from experiments.host.needs import Need, Needs, always, either, one_of, without
from experiments.models import WITHOUT_BATCH_NORM
from experiments.step import methods

RULES = ("sgd", "sam", "imbsam", "focal_sam", "sse_sam", "gsa", "cc_sam")
# Which batches are drawn in each mode.
MODES = {
    "dependent": "natural", "uniform": "natural", "stratified": "stratified",
    "split_norm": "stratified", "shared_norm": "stratified",
}  # fmt: skip
# Of models with batch statistics; the other modes but "dependent" are of those without.
OF_BATCH_NORM = ("split_norm", "shared_norm")
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


def noise(counts: np.ndarray, size: int = 32) -> Any:
    """A data set of these class counts, without a picture in it; filled if it has CIFAR's shape."""
    from experiments.data import Dataset

    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    # Read where nothing was written: no memory, whatever the counts.
    images = np.broadcast_to(np.uint8(0), (len(labels), size, size, 3))
    if size == 32 and len(labels) < 100_000:
        images = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    return Dataset(
        name="noise", train_images=images, train_labels=labels, test_images=images[:1],
        test_labels=labels[:1], num_classes=len(counts), mean=(0.5,) * 3, std=(0.25,) * 3,
        many_above=100, few_below=20, source="noise",
    )  # fmt: skip


class OptaxSAM:
    """optax.contrib.sam's gradient, as a method: the same model, batch and optimizer around it."""

    def __init__(self, rho: float):
        import optax

        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
        self._tx = optax.contrib.sam(optax.identity(), ascent, sync_period=2, opaque_mode=True)

    def stages(self) -> list[tuple[int, Any]]:
        return [(0, self)]

    def initial_extra(self, params: Any) -> Any:
        return {}

    def gradient(self, halves: Any, params: Any, extra: Any, step: Any, axis: Any) -> Any:
        import jax

        losses_of = halves.losses_for(halves.target)

        def mean_loss(params: Any) -> Any:
            features, after = halves.features(params, halves.stats, halves.images)
            losses, logits = losses_of(params, features, halves.target)
            return losses.mean(), (after, logits)

        value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (after, logits)), grads = value_and_grad(params)
        grads, _ = self._tx.update(
            grads, self._tx.init(params), params, grad_fn=lambda p, _: value_and_grad(p)[1]
        )
        return methods.Gradient(loss, logits, after, grads, extra)


def abstract_state(model: Any, size: int, trained: str = "all") -> Any:
    """Shapes of a state under SGD as runs have it, of images of `size` pixels; no array anywhere.

    `trained` as in `experiments.step.state.create_state`.
    """
    import jax
    import jax.numpy as jnp

    from experiments.run.parts import optimizer_of
    from experiments.run.settings import Settings
    from experiments.step.state import create_state

    settings = Settings()
    tx = optimizer_of(lambda _: settings.lr, settings, steps_per_epoch=1)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda image, key: create_state(model, tx, image, key, trained), image, jax.random.key(0)
    )


class Bench:
    """One model and batch size: what compiles a call of some steps, and what runs it."""

    def __init__(self, model: str, args: argparse.Namespace, dataset: Any, steps_per_call: int = 1):
        import jax

        from experiments.data.sampling import Order
        from experiments.run.parts import Parts
        from experiments.run.settings import Settings
        from experiments.step.step import Inputs
        from imbsam_jax import tail_classes
        from imbsam_jax.losses import cross_entropy

        self.args, self.dataset, self.model = args, dataset, model
        self.steps_per_call = steps_per_call
        labels, batch = dataset.train_labels, args.batch_size
        tail = tail_classes(dataset.class_counts(), args.eta, strict=args.strict)
        self.tail_share = float(tail[labels].mean())
        self.orders = {
            mode: Order(kind, labels, 0, batch, tail=tail) for mode, kind in MODES.items()
        }
        if args.compile_only:
            self.initial = self._abstract_state()
        else:
            settings = Settings(
                batch_size=batch, precision=args.precision, accumulate=args.accumulate,
                remat=args.remat, augment=args.image_size == 32,
            )  # fmt: skip
            parts = Parts(dataset, model, cross_entropy, settings)
            self.run_on, self.initial, self.inputs = parts.run_on, parts.initial, None
            self._images = None
            if args.image_size == 32:
                self.inputs = self.run_on.put_inputs(Inputs(dataset.train_images, labels))
            else:
                shape = (steps_per_call, batch, args.image_size, args.image_size, 3)
                self._images = jax.random.bits(jax.random.key(0), shape, np.uint8)
        self.couples = bool(jax.tree.leaves(self.initial.batch_stats))

    def room(self, mode: str) -> Any:
        """See Passing."""
        if mode == "dependent":
            return None
        return partial(self.orders[mode].buffers, self.dataset.num_classes)

    def leaves_rows_out(self, method: Any, mode: str) -> bool:
        """Whether any pass of this method is over fewer rows than the batch."""
        import jax

        if isinstance(method, OptaxSAM | methods.ClassConditional) or self.args.accumulate > 1:
            return False
        if self.couples != (mode in OF_BATCH_NORM):
            return False
        room, least = self.room(mode), [self.args.batch_size]

        def noted(rows: int) -> Any:
            buffers = room(rows)

            def sizes(classes: Any) -> Any:
                least.append(min(buffers(classes)))
                return buffers(classes)

            return sizes

        jax.eval_shape(*self._abstract_step(method, noted, mode))
        return min(least) < self.args.batch_size

    def rows(self, mode: str, call: int) -> Any:
        """Rows of whole batches, as many as a call has steps; nothing to be placed yet."""
        from experiments.step.step import Rows

        order, steps = self.orders[mode], self.steps_per_call
        most = order.rows // self.args.batch_size  # of an epoch; the last one may be smaller
        at = [(call * steps + k) % most for k in range(steps)]
        index = np.stack([order.of_step(k) for k in at]).astype(np.int32)
        if self._images is None:
            return Rows(index=index)
        return Rows(images=self._images, labels=self.dataset.train_labels[index])

    def compiled(self, method: Any, room: Any, mode: str = "dependent") -> Any:
        import jax

        if self.args.compile_only:
            step, *shapes = self._abstract_step(method, room, mode)
            return jax.jit(step, donate_argnums=0).lower(*shapes).compile()
        there = self.run_on.passing_by(self._passing(mode, room))
        state = there.put_state(self.initial)
        return there.compile_steps(method, state, self.inputs, self.rows(mode, 0))

    def lowered(self, method: Any, mode: str, room: Any) -> Any:
        """One step alone, to count; whatever the device."""
        import jax

        there = self.run_on.passing_by(self._passing(mode, room))
        one = jax.tree.map(lambda x: x[:1], self.rows("dependent", 0))
        return there.lower_on_host(method, self.initial, self.inputs, one)

    def _passing(self, mode: str, room: Any) -> Any:
        from experiments.step.passing import EXAMPLES, Passing

        examples = mode if mode in EXAMPLES else "independent"
        return Passing(examples, self.args.accumulate, room)

    def _abstract_state(self) -> Any:
        import jax.numpy as jnp

        from experiments.models import create_model

        dtype, classes = jnp.dtype(self.args.precision), self.dataset.num_classes
        model = create_model(self.model, classes, dtype=dtype, remat=self.args.remat)
        return abstract_state(model, self.args.image_size)

    def _abstract_step(self, method: Any, room: Any, mode: str) -> tuple[Any, ...]:
        """(a step, shapes of its arguments): of images brought along, no array anywhere."""
        import jax
        import jax.numpy as jnp

        from experiments.data.augment import normalise
        from experiments.step.objectives import Objective
        from experiments.step.step import Rows, make_step
        from imbsam_jax.losses import cross_entropy

        batch, size = self.args.batch_size, self.args.image_size
        step = make_step(
            method,
            Objective(cross_entropy, self.dataset.num_classes),
            lambda images, *_: normalise(images, self.dataset.mean, self.dataset.std),
            passing=self._passing(mode, room),
        )

        def call(state: Any, rows: Any, key: Any) -> Any:
            return step(state, None, rows, jnp.arange(batch), batch, key)

        rows = Rows(
            images=jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            labels=jax.ShapeDtypeStruct((batch,), jnp.int32),
        )
        state, key = jax.eval_shape(lambda s: (s, jax.random.key(0)), self.initial)
        return call, state, rows, key


def planned(bench: Bench) -> Iterator[tuple[dict[str, Any], Any]]:
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

    bench = Bench(model, args, dataset)
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
        row["temporary_bytes"] = temporary_bytes(call)
        row["released"] = RELEASED.get(row["rule"])
        rows.append(row)
    times = None if args.compile_only else timed(bench, rows, calls, args.steps)
    with_ratios(rows, times)
    return rows


def temporary_bytes(call: Any) -> int | None:
    return getattr(call.memory_analysis(), "temp_size_in_bytes", None)


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
            arguments = {"rho": args.rho}
            yield OPTAX, OptaxSAM(args.rho), {"rule": OPTAX, "rule_args": arguments, "ascent": {}}


def timed(
    bench: Bench,
    rows: list[dict[str, Any]],
    calls: list[Any],
    rounds: int,
    deadline: float = np.inf,
) -> np.ndarray:
    """float[rounds - 1, rows]: seconds of a step of each; the first round warms caches.

    Args:
      deadline: time.monotonic() after which no round begins that is not one of the first three.
    """
    import jax

    states = [bench.run_on.put_state(bench.initial) for _ in rows]
    times: list[np.ndarray] = []
    while len(times) < rounds and (len(times) < 3 or time.monotonic() < deadline):
        number = len(times)
        placed = {
            mode: bench.run_on.place(bench.rows(mode, number))
            for mode in sorted({row["mode"] for row in rows})
        }
        jax.block_until_ready(placed)
        times.append(np.zeros(len(rows)))
        # In another order each round: no rule always follows the longest.
        for k in np.random.default_rng(number).permutation(len(rows)):
            began = time.perf_counter()
            states[k], seen = calls[k](states[k], bench.inputs, placed[rows[k]["mode"]])
            jax.block_until_ready((states[k], seen))
            times[number][k] = (time.perf_counter() - began) / bench.steps_per_call
            rows[k]["finite"] = bool(np.isfinite(seen.loss).all())
    return np.stack(times[1:])


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
    dataset = load_npz(Path(args.data)) if args.data else noise(counts, args.image_size)
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
