r"""CIFAR-100-LT and CIFAR-10-LT.

    python -m experiments.cifar_lt --rule imbsam --rho 0.05 --eta 100 --out runs/imbsam
    python -m experiments.cifar_lt --preset focal-sam-paper --out runs/focal
    python -m experiments.cifar_lt --rule sse_sam --loss vs --drw-epoch 160 --mixup 1 \
        --stage2 crt lws tau-norm --out runs/sse

The defaults are the ImbSAM paper's (200 epochs, batch 64, momentum 0.9, cross-entropy, rho 0.05,
eta 100, tail loss as it is). What the paper leaves open follows the code it builds on: lr 0.01,
cosine stepped before each epoch, weight decay 5e-3 (weight balancing's, the paper's "fine-tuned"
value not being printed; the ImbSAM release has 1e-3), and ResNet-34 with a 3x3 stem, which is
what the release trains under the name ResNet-32.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from experiments import cli, methods, objectives, presets, stage2
from experiments.errors import RunError
from experiments.models import MODELS
from experiments.settings import SAMPLING
from experiments.steps import SCHEDULES


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser("Train on long-tailed CIFAR with a sharpness-aware rule.")
    presets.add_argument(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="cifar100", choices=["cifar100", "cifar10"])
    data.add_argument(
        "--imbalance-factor", type=float, default=100.0, help="largest over smallest class, >= 1"
    )
    data.add_argument(
        "--subset", default="first", choices=["first", "shuffled"],
        help="images of a class: the first in file order (ImbSAM, SSE-SAM, weight balancing), or "
        "drawn as LDAM, Saddle and Focal-SAM do",
    )  # fmt: skip
    data.add_argument("--subset-seed", type=int, default=0, help="seed of --subset shuffled")
    data.add_argument(
        "--data-dir", help="folder of prepared TFDS data; default TFDS_DATA_DIR, then TFDS's own"
    )
    data.add_argument("--data", help="train from this file, written by --export; needs no TFDS")
    data.add_argument(
        "--export", metavar="FILE.npz", help="write the decoded long-tailed set there and stop"
    )
    data.add_argument(
        "--val-per-class", type=int, default=0,
        help="training images held out per class (each class keeps one), to tune rho and eta on",
    )  # fmt: skip

    method = parser.add_argument_group("method")
    method.add_argument("--rule", default="imbsam", choices=sorted(methods.RULES))
    methods.add_arguments(method)
    objectives.add_arguments(parser.add_argument_group("loss"))
    stage2.add_arguments(parser.add_argument_group("second stage"))

    training = parser.add_argument_group("training")
    training.add_argument("--model", default="resnet34_3x3", choices=sorted(MODELS))
    training.add_argument("--epochs", type=int, default=200)
    training.add_argument("--batch-size", type=int, default=64, help="images, over all devices")
    training.add_argument("--lr", type=float, default=0.01, help="initial learning rate")
    training.add_argument(
        "--schedule", default="cosine-prestep", choices=SCHEDULES,
        help="by epoch; cosine-prestep ends at 0, as the releases do",
    )  # fmt: skip
    training.add_argument("--momentum", type=float, default=0.9)
    training.add_argument(
        "--weight-decay", type=float, default=5e-3, help="coupled, on every parameter, at theta"
    )
    training.add_argument(
        "--sampling", default="natural", choices=SAMPLING,
        help="of the first stage: every image once an epoch, or every class alike",
    )  # fmt: skip
    training.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    seeds = training.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="one run, in --out itself")
    seeds.add_argument("--seeds", type=int, nargs="+", help="a run each, in OUT/seed_S")
    seeds.add_argument("--num-seeds", type=int, help="seeds 0 to N-1")

    running = parser.add_argument_group("running")
    running.add_argument("--out", help="run folder (needed unless --export)")
    running.add_argument(
        "--resume", action="store_true", help="continue the run in --out, or start one"
    )
    running.add_argument("--checkpoint-every", type=int, default=10, help="epochs")
    running.add_argument("--eval-every", type=int, default=1, help="epochs")
    running.add_argument("--eval-batch", type=int, default=500, help="images")
    running.add_argument("--parallel", default="jit", choices=["jit", "pmap"])
    running.add_argument("--devices", type=int, default=1, help="emulated ones on a CPU")
    running.add_argument(
        "--steps-per-call", type=int, default=0,
        help="steps of a compiled call; 0 is 1 on a CPU and 50 elsewhere",
    )  # fmt: skip
    running.add_argument("--quiet", action="store_true")
    return parser


def load(args: argparse.Namespace) -> Any:
    """The data set that the flags of group "data" describe."""
    from experiments.data import hold_out, load_npz
    from experiments.data.cifar import load_cifar_lt

    if args.data:
        dataset = load_npz(Path(args.data))
    else:
        dataset = load_cifar_lt(
            args.dataset,
            imbalance_factor=args.imbalance_factor,
            data_dir=args.data_dir,
            subset=args.subset,
            subset_seed=args.subset_seed,
        )
    return hold_out(dataset, args.val_per_class, seed=0) if args.val_per_class else dataset


class Plan(NamedTuple):
    """What the flags ask for, made for one data set; nothing trained or written yet."""

    settings: Any
    method: methods.Method
    loss: objectives.Loss
    description: dict[str, Any]
    second: dict[str, stage2.Stage]


def make_plan(args: argparse.Namespace, dataset: Any) -> Plan:
    """Everything that can be refused is refused here."""
    from experiments.execution import EXECUTIONS
    from experiments.settings import Settings
    from imbsam_jax import imbalance_factor

    options, counts = vars(args), dataset.class_counts()
    settings = Settings(
        **{name: options[name] for name in Settings.__dataclass_fields__ if name in options}
        | {"classifier": objectives.classifier_for(args.loss, options)}
    )
    settings.check()
    steps_per_epoch = -(-len(dataset.train_labels) // args.batch_size)
    method, of_method = methods.build_method(
        args.rule, counts, options, steps_per_epoch=steps_per_epoch
    )
    loss, of_loss = objectives.build_loss(
        args.loss, counts, options, steps_per_epoch=steps_per_epoch,
        axis_name=EXECUTIONS[args.parallel].axis_name,
    )  # fmt: skip
    description = {
        "experiment": "cifar_lt",
        **of_method,
        **of_loss,
        "imbalance_factor": imbalance_factor(counts),
        # What was asked for; an exported file says in its source what it holds.
        "requested_imbalance_factor": None if args.data else args.imbalance_factor,
        "subset": None if args.data else args.subset,
        "subset_seed": None if args.data else args.subset_seed,
        "val_per_class": args.val_per_class,
        "preset": args.preset,
        "stage2": None,
        "stage2_args": {},
    }
    second = {
        name: stage2.make(
            name, options, class_counts=counts, first=settings, steps_per_epoch=steps_per_epoch
        )
        for name in args.stage2
    }
    return Plan(settings, method, loss, description, second)


def main(args: argparse.Namespace) -> None:
    from experiments import report
    from experiments.data import save_npz
    from experiments.parts import last_variables
    from experiments.train import fit

    if not args.export and not args.out:
        raise RunError("--out is missing: name the folder this run is to be written to")
    if args.preset:
        print(presets.explain(args))
    cli.use_compilation_cache()
    dataset = load(args)
    if args.export:
        save_npz(dataset, Path(args.export))
        print(f"wrote {args.export}: {len(dataset.train_labels)} training images, {dataset.source}")
        return
    plan = make_plan(args, dataset)
    several = args.seeds is not None or args.num_seeds is not None
    if args.num_seeds is not None and args.num_seeds < 1:
        raise RunError(f"--num-seeds must be at least 1, got {args.num_seeds}")
    seeds = args.seeds or (list(range(args.num_seeds)) if args.num_seeds else [args.seed])
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise RunError(f"--seeds must be different numbers, at least 0; got {seeds}")
    more = {"resume": args.resume, "quiet": args.quiet}
    reports = []
    for seed in seeds:
        mine = dataclasses.replace(plan.settings, seed=seed)
        out = Path(args.out) / f"seed_{seed}" if several else Path(args.out)
        reports.append(
            fit(
                dataset,
                args.model,
                plan.method,
                plan.loss,
                mine,
                out,
                description=plan.description,
                **more,
            )
        )
        for name, stage in plan.second.items():
            folder = "_".join(filter(None, ["stage2", name, args.stage2_tag]))
            trained, fresh = last_variables(out, dataset, args.model, mine)
            start = {**trained, "params": stage.start(trained["params"], fresh["params"])}
            reports.append(
                fit(
                    dataset, args.model, stage.method, stage.loss,
                    dataclasses.replace(stage.settings, seed=seed), out / folder, start=start,
                    adversary=stage.adversary,
                    description=plan.description | stage.description, **more,
                )
            )  # fmt: skip
    report.show(reports)


if __name__ == "__main__":
    cli.run(main, presets.parse(arguments()))
