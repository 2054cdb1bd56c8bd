"""What is trained of a frozen transformer, and what a step of it costs: every adapter in a table.

    python -m benchmarks.adapters --out results/adapters

A step of SGD, one of SAM and one of ImbSAM, with logit adjustment and momentum, are counted by XLA
before it optimises, and once more compiled: what no perturbation reaches is then computed once.
ImbSAM's passes are over the rows that carry weight, of batches with a quarter of their rows in the
tail, as stratified sampling draws them. Nothing is run and no weights are needed. Memory, and what
XLA makes of a step, are those of this backend.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.owned import owning_out
from benchmarks.step_bench import abstract_state
from experiments.host import cli, origin, outputs
from experiments.host.needs import Needs, always
from experiments.models import ADAPTERS, PRETRAINED

_NEEDS: Needs = always("model", "classes", "batch_size", "out")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Count what a step of every adapter costs.", _NEEDS)
    parser.add_argument(
        "--model", default="clip_vit_b16", choices=sorted(PRETRAINED), help="the tower"
    )
    parser.add_argument(
        "--classes",
        type=cli.number(least=2, most=10**5, whole=True),
        default=100,
        help="of the classifier",
    )
    parser.add_argument(
        "--batch-size",
        type=cli.number(least=2, most=10**6, whole=True),
        default=16,
        help="images",
    )
    parser.add_argument("--out", type=cli.text, required=True, help="folder for adapters.json")
    return parser


@owning_out
def main(args: argparse.Namespace) -> None:
    rows = []
    for adapter in ADAPTERS:
        rows.append(row(args.model, adapter, args.classes, args.batch_size))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    out = Path(args.out)
    found = {
        "command": origin.command_line(), "model": args.model, "classes": args.classes,
        "batch_size": args.batch_size, "tail_rows": tail_rows(args.batch_size), "rows": rows,
    }  # fmt: skip
    outputs.write_json(out / "adapters.json", found | origin.environment())


def tail_rows(batch_size: int) -> int:
    """A quarter of a batch, which ImbSAM's passes see twice; one row at least."""
    return max(batch_size // 4, 1)


def megabytes(number: float) -> float:
    return round(number / 2**20, 1)


def row(name: str, adapter: str, classes: int, batch_size: int) -> dict[str, Any]:
    """Counts of one adapter.

    Returns:
      {"adapter", "trained", "frozen": parameters, the classifier's among the trained; "sgd",
      "sam", "imbsam": FLOPs of a step over those of a forward pass; "sam_compiled",
      "imbsam_compiled": of the compiled step over SGD's; "state_mb": parameters and momentum;
      "peak_mb": what SGD's step needs besides}.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.models import create_model
    from experiments.models.clip import SIZES
    from experiments.run.cost import flops
    from experiments.run.one import count
    from experiments.step.objectives import Objective
    from experiments.step.passing import Passing
    from experiments.step.step import Inputs, Rows, make_step
    from imbsam_jax import rules, stratified_buffers, tail_classes
    from imbsam_jax.losses import logit_adjusted

    model = create_model(name, classes, classifier="cosine", adapter=adapter)
    side = SIZES[name].image
    state = abstract_state(model, side, ADAPTERS[adapter].trained)
    images = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    counts, eta = np.arange(1, classes + 1), 1  # as good as any
    tail = tail_classes(counts, eta)
    objective = Objective(logit_adjusted(counts), classes)
    # Of every batch as many: the program has one buffer of each size, and no branch to count.
    buffers = stratified_buffers(tail, (batch_size - tail_rows(batch_size), tail_rows(batch_size)))
    own_rows = Passing("independent", room=lambda _: buffers)

    def lowered(rule: Any, passing: Passing = Passing()) -> Any:
        step = make_step(rule, objective, lambda images, *_: images, passing=passing)

        def whole(state: Any, images: Any, labels: Any) -> Any:
            positions = jnp.arange(batch_size)
            rows = Rows(images=images, labels=labels)
            return step(state, Inputs(None, None), rows, positions, batch_size, jax.random.key(0))

        return jax.jit(whole, donate_argnums=0).lower(state, images, labels)

    def forward(state: Any, images: Any) -> Any:
        return state.apply_fn(state.variables(), images, train=False)

    once = flops(jax.jit(forward).lower(state, images))
    steps = {
        "sgd": lowered(rules.sgd(classes)),
        "sam": lowered(rules.sam(classes, rho=0.05)),
        "imbsam": lowered(rules.imbsam(counts, rho=0.05, eta=eta), own_rows),
    }
    sgd = steps["sgd"].compile()
    compiled = {rule: flops(steps[rule].compile()) / flops(sgd) for rule in ("sam", "imbsam")}
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return {
        "adapter": adapter,
        "trained": count(state.params),
        "frozen": count(state.frozen),
        **{rule: round(flops(step) / once, 3) for rule, step in steps.items()},
        **{f"{rule}_compiled": round(ratio, 3) for rule, ratio in compiled.items()},
        "state_mb": megabytes(state_bytes),
        "peak_mb": megabytes(sgd.memory_analysis().temp_size_in_bytes),
    }


if __name__ == "__main__":
    cli.run(main, arguments().parse_args())
