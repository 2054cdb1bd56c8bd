"""What an accelerator does with this: its measured peak, step times, the papers' runs.

    python -m experiments.cifar_lt --export cache.npz                    # where TFDS is
    python -m benchmarks.accelerator --data cache.npz --out runs/gpu     # on the GPU

Three parts, in turn: `peak`, the machine's FLOP/s and bytes/s (peak.py); `steps`, times of a step
of every rule and their share of that peak (accelerator_steps.py); `runs` (accelerator_runs.py), 200
epochs of CIFAR100-LT, batch 64, lr 0.01: ResNet-32 and the ResNet-34 that the release trains, under
SGD, SAM and ImbSAM with tail_scale 1 and 2, each with weight decay 5e-3 and 1e-3; other rules,
losses and recipes by flags. One call stops by itself after --minutes; the next one goes on: what
stands in OUT/peak.json, OUT/steps.json and OUT/runs.json is not done again, a run cut short is
resumed from --work.

Where the accelerator is lent by the minute, spend none of it on what needs none: count FLOPs
before, on any machine (`--parts flops`), and compile in several processes side by side, a cell and
an --out for each, that are timed one after the other: a process waits for its --time-after FILE.

    export JAX_COMPILATION_CACHE_DIR=runs/xla XLA_PYTHON_CLIENT_PREALLOCATE=false
    A="python -m benchmarks.accelerator --parts steps --flops runs/gpu/flops.json"
    $A --cells "resnet32 b128" --rules imbsam --out runs/gpu/1 --time-after runs/gpu/go1 &
    $A --cells "resnet34_3x3 b64" --out runs/gpu/2 --time-after runs/gpu/go2 &
    # both say "compiled: waiting"
    touch runs/gpu/go1; wait %1; touch runs/gpu/go2; wait %2

The recipe of Luo et al. (NeurIPS 2024), three seeds one after the other:

    A="python -m benchmarks.accelerator --parts runs --data cache.npz --models resnet32"
    $A --batch-size 128 --lr 0.1 --schedule cosine --weight-decays 2e-4 --seeds 0 1 2 --out runs/gpu

--quick tries all of it in the small, on a CPU and without --data, in a minute or two. FLOPs are
counted on the host (Jit.lower_on_host): leave JAX_PLATFORMS unset, or "cuda,cpu".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import accelerator_runs, accelerator_steps, peak
from benchmarks.accelerator_runs import METHODS, USUAL
from benchmarks.owned import owning_out
from benchmarks.step_cost import RULES
from experiments.command.loss_flags import LOSSES
from experiments.host import cli
from experiments.host.errors import RunError
from experiments.host.needs import Needs, always, either, one_of
from experiments.models import MODELS
from experiments.step.optimizer import SCHEDULES

PARTS = ("flops", "peak", "steps", "runs")
# With --quick, where a flag is not given.
QUICK: dict[str, Any] = {
    "models": ["mlp"], "methods": ["imbsam"], "weight_decays": [5e-3], "epochs": 2,
    "batch_size": 20, "eta": 20, "rounds": 3,
}  # fmt: skip


_RUNS, _STEPS = one_of("parts", ["runs"]), one_of("parts", ["steps"])
_NEEDS: Needs = {
    **always("out", "parts", "quick"),
    **dict.fromkeys(("rounds", "flops", "time_after"), (_STEPS,)),
    **dict.fromkeys(("modes", "cells", "rules"), (either(_STEPS, one_of("parts", ["flops"])),)),
    **dict.fromkeys(("minutes", "steps_per_call"), (either(_STEPS, _RUNS),)),
    **dict.fromkeys(
        (
            "data", "work", "done", "models", "methods", "losses", "weight_decays", "seeds",
            "together", "epochs", "batch_size", "lr", "schedule", "precision", "eval_every",
            "no_cost", "quiet",
        ),
        (_RUNS,),
    ),
    "eta": (_RUNS, one_of("methods", [name for name, (_, has) in METHODS.items() if "eta" in has])),
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(
        "Measure an accelerator, and train the papers' settings on it, resumably.",
        _NEEDS,
    )
    parser.add_argument("--data", type=cli.text, help="file written by cifar_lt --export, for runs")
    parser.add_argument(
        "--out", type=cli.text, required=True, help="folder for peak, steps and runs .json"
    )
    parser.add_argument(
        "--parts", nargs="+", default=["peak", "steps", "runs"], choices=PARTS,
        help="peak, steps, runs, in this order; flops counts those of steps, on any machine",
    )  # fmt: skip
    parser.add_argument(
        "--modes", nargs="+", default=["dependent"], choices=["dependent", "independent"],
        help="of steps: independent adds models whose passes may leave rows out",
    )  # fmt: skip
    parser.add_argument(
        "--cells", type=cli.text, nargs="+",
        help="of steps: a network and its batch, as 'resnet32 b128'; default all",
    )  # fmt: skip
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=RULES,
        help="of each cell, beside sgd; default all of its own",
    )
    parser.add_argument(
        "--flops", type=cli.text, help="file of --parts flops; default OUT/flops.json, if there"
    )
    parser.add_argument(
        "--time-after",
        type=cli.text,
        help="compile the one cell of --cells, then run nothing before this file is there: so that "
        "processes may compile side by side, and be timed in turn",
    )
    parser.add_argument(
        "--rounds",
        type=cli.number(least=3, most=10**6, whole=True),
        default=12,
        help="of steps; the first is not counted",
    )
    parser.add_argument("--quick", action="store_true", help="all in the small, to try it")
    parser.add_argument(
        "--work", type=cli.text, default="runs/accelerator", help="run folders, checkpoints"
    )
    parser.add_argument(
        "--done", type=cli.text, nargs="*", default=[], help="runs.json files of earlier calls"
    )
    parser.add_argument(
        "--minutes", type=cli.number(over=0, most=10**6), default=9.0, help="stop after this long"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["resnet32", "resnet34_3x3"],
        choices=sorted(MODELS),
        help="of runs",
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(USUAL), choices=list(METHODS), help="of runs"
    )
    parser.add_argument(
        "--losses", nargs="+", default=["cross_entropy"], choices=sorted(LOSSES), help="of runs"
    )
    parser.add_argument(
        "--weight-decays", type=cli.number(least=0), nargs="+", default=[5e-3, 1e-3], help="of runs"
    )
    parser.add_argument("--seeds", type=cli.seed, nargs="+", default=[0], help="of runs")
    parser.add_argument(
        "--together", action="store_true", help="the seeds of a run are trained in one program"
    )
    parser.add_argument("--epochs", type=cli.counted(), default=200, help="of a run")
    parser.add_argument("--batch-size", type=cli.counted(), default=64, help="images")
    parser.add_argument("--lr", type=cli.number(over=0), default=0.01, help="initial learning rate")
    parser.add_argument("--schedule", default="cosine-prestep", choices=SCHEDULES, help="of lr")
    parser.add_argument(
        "--eval-every", type=cli.counted(), default=1, help="epochs from evaluation to evaluation"
    )
    parser.add_argument(
        "--no-cost", action="store_true", help="compile no lone step of a run to time and count it"
    )
    parser.add_argument(
        "--eta",
        type=cli.number(least=0),
        help="largest count of a tail class; default 100 (--quick: 20)",
    )
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of runs"
    )
    parser.add_argument(
        "--steps-per-call",
        type=cli.number(least=0, most=10**6, whole=True),
        default=0,
        help="0 is 1 on a CPU, else 50",
    )
    parser.add_argument("--quiet", action="store_true", help="no line an epoch")
    return parser


def parsed(flags: list[str] | None = None) -> argparse.Namespace:
    parser = arguments()
    args = parser.parse_args(flags)
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args(flags)
    return args


@owning_out
def main(args: argparse.Namespace) -> None:
    began = time.monotonic()
    cli.refuse_twice(
        args, "seeds", "models", "weight_decays", "losses", "methods", "parts", "modes", "cells",
        "rules",
    )  # fmt: skip
    if "runs" in args.parts and not (args.data or args.quick):
        raise RunError("--data is missing: a file written by cifar_lt --export; or leave out runs")
    cli.use_compilation_cache()
    out = Path(args.out)
    if "peak" in args.parts:
        peak.run(out, args.quick)
    cells = accelerator_steps.QUICK if args.quick else accelerator_steps.CELLS
    chosen = accelerator_steps.chosen(
        [cell for mode in args.modes for cell in cells[mode]], args.cells, args.rules
    )
    if args.time_after and len(chosen) != 1:
        raise RunError("--time-after is for one cell: name it by --cells")
    if "flops" in args.parts:
        accelerator_steps.count(out, chosen)
    if "steps" in args.parts:
        file = Path(args.flops) if args.flops else out / "flops.json"
        counted = accelerator_steps.counts_of(file) if args.flops or file.exists() else {}
        after = Path(args.time_after) if args.time_after else None
        timing = accelerator_steps.Timing(args.rounds, counted, after)
        try:
            accelerator_steps.run(out, chosen, args.steps_per_call, timing, args.minutes, began)
        finally:
            if (out / "steps.md").exists():
                print((out / "steps.md").read_text(), flush=True)
    if "runs" in args.parts:
        accelerator_runs.run(args, began + 60 * args.minutes)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    cli.run(main, parsed())
