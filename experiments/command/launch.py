"""What the entry points of image classification share: flags, and from flags to finished runs.

An entry point is a module with `arguments()`, `load(args)` and `describe(args, dataset)`; it calls
`run`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command import presets, stage2
from experiments.host import cli, folders
from experiments.host.errors import RunError, check_seed
from experiments.models import MODELS
from experiments.run.settings import EXAMPLES, LOADERS, SAMPLING
from experiments.step import methods, objectives
from experiments.step.optimizer import SCHEDULES


class _LeftOut(int):
    """The number of a flag that nobody gave."""


def add_method(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Groups "method", "loss" and "second stage"; defaults by name replace those of methods.py."""
    method = parser.add_argument_group("method")
    method.add_argument(
        "--rule", default="imbsam", choices=sorted(methods.RULES), help="how the gradient is taken"
    )
    methods.add_arguments(method, **defaults)
    method.add_argument(
        "--memory", type=cli.number(least=0, below=1), metavar="DECAY",
        help="perturb along what earlier steps saw of the direction, of which each step keeps so "
        "much (ours, see imbsam_jax.remembered): with --examples independent for SGD's price",
    )  # fmt: skip
    objectives.add_arguments(parser.add_argument_group("loss"))
    stage2.add_arguments(parser.add_argument_group("second stage"))


def add_training(
    parser: argparse.ArgumentParser,
    *,
    model: str,
    batch_size: int,
    lr: float,
    weight_decay: float,
    devices: int,
    checkpoint_every: int,
    together: bool | None = None,
) -> None:
    """Groups "training" and "running", with an entry point's own defaults.

    Args:
      together: whether seeds are trained so; None where it is faster.
    """
    training = parser.add_argument_group("training")
    training.add_argument("--model", default=model, choices=sorted(MODELS), help="the network")
    training.add_argument(
        "--init", metavar="FILE", type=cli.text,
        help="start from these weights: .safetensors under torchvision's names, or .msgpack",
    )  # fmt: skip
    training.add_argument("--epochs", type=cli.counted(), default=200, help="of the first stage")
    training.add_argument(
        "--batch-size", type=cli.counted(), default=batch_size, help="images, over all devices"
    )
    training.add_argument("--lr", type=cli.number(over=0), default=lr, help="initial learning rate")
    training.add_argument(
        "--schedule", default="cosine-prestep", choices=SCHEDULES,
        help="by epoch; cosine-prestep ends at 0, as the releases do",
    )  # fmt: skip
    training.add_argument(
        "--momentum", type=cli.number(least=0, below=1), default=0.9, help="of SGD"
    )
    training.add_argument(
        "--weight-decay", type=cli.number(least=0), default=weight_decay,
        help="coupled, on every parameter, at theta",
    )  # fmt: skip
    training.add_argument(
        "--sampling", default="natural", choices=SAMPLING,
        help="of the first stage: every image once an epoch, every class alike, or every image "
        "once with the same share of the tail (by --eta) in every batch",
    )  # fmt: skip
    training.add_argument(
        "--examples", default="dependent", choices=EXAMPLES,
        help="independent: a pass leaves out rows that have no weight in it; the same step for "
        "less, in models without batch statistics; cheapest with --sampling stratified. "
        "split_norm: the same for models with batch normalisation, where it is another step",
    )  # fmt: skip
    training.add_argument(
        "--tail-statistics", default="renorm", choices=methods.TAIL_STATISTICS,
        help="--examples split_norm: what normalises a pass over the tail alone: the tail rows' "
        "own statistics; those of the whole batch before the perturbation, held fixed; or "
        "(renorm) the latter in value and the former in gradient, which alone lost nothing overall",
    )  # fmt: skip
    training.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"],
        help="of what the layers compute; parameters stay float32",
    )  # fmt: skip
    seeds = training.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=cli.seed, default=0, help="one run, in --out itself")
    seeds.add_argument("--seeds", type=cli.seed, nargs="+", help="a run each, in OUT/seed_S")
    seeds.add_argument("--num-seeds", type=cli.counted(10**4), help="seeds 0 to N-1")

    running = parser.add_argument_group("running")
    running.add_argument(
        "--out", type=cli.text, help="run folder; on several hosts, one that all of them see"
    )
    running.add_argument(
        "--resume", action="store_true", help="continue the run in --out, or start one"
    )
    running.add_argument(
        "--checkpoint-every", type=cli.counted(), default=checkpoint_every, help="epochs"
    )
    running.add_argument("--eval-every", type=cli.counted(), default=1, help="epochs")
    running.add_argument("--eval-batch", type=cli.counted(), default=500, help="images")
    running.add_argument(
        "--parallel", default="jit", choices=["jit", "pmap"], help="how devices share a batch"
    )
    running.add_argument(
        "--devices", type=cli.devices, default=_LeftOut(devices),
        help="over all processes; 0 is all there are; on a CPU emulated ones, by default for "
        "convolution networks one a core",
    )  # fmt: skip
    running.add_argument(
        "--accumulate", type=cli.counted(), default=1,
        help="cut each batch into so many micro-batches, one after the other: less memory, the "
        "same step (with batch normalisation each normalises itself)",
    )  # fmt: skip
    running.add_argument(
        "--remat", action="store_true",
        help="compute a block's activations again in the backward pass: more time, for less memory "
        "(not on a CPU)",
    )  # fmt: skip
    running.add_argument(
        "--steps-per-call", type=cli.number(least=0, most=10**6, whole=True), default=0,
        help="steps of a compiled call; 0 is 1 on a CPU and 50 elsewhere, images streamed always 1",
    )  # fmt: skip
    running.add_argument(
        "--together", action=argparse.BooleanOptionalAction, default=together,
        help="train all --seeds in one program, shared among the devices: by default on a CPU "
        "whose cores can share them out evenly, where that is faster",
    )  # fmt: skip
    running.add_argument("--quiet", action="store_true", help="no line an epoch")

    hosts = parser.add_argument_group("several processes")
    hosts.add_argument(
        "--coordinator", metavar="HOST:PORT", type=cli.address, help="where process 0 listens"
    )
    hosts.add_argument("--num-processes", type=cli.counted(10**4), help="how many there are")
    hosts.add_argument(
        "--process-id", type=cli.number(least=0, most=10**4, whole=True), help="0 to N-1"
    )
    hosts.add_argument(
        "--cluster", action="store_true", help="find the others by TPU pod, Slurm or Open MPI"
    )
    hosts.add_argument(
        "--heartbeat-seconds", type=cli.counted(), default=100,
        help="seconds: a process silent for so long is taken for dead and ends the run",
    )  # fmt: skip


def add_streaming(parser: argparse.ArgumentParser, *, jitter: float) -> None:
    """Group "images", of data sets that are read while training."""
    images = parser.add_argument_group("images")
    images.add_argument(
        "--image-size", type=cli.counted(4096), default=224, help="pixels the model sees"
    )
    images.add_argument(
        "--resize", type=cli.counted(8192), default=256,
        help="evaluation: shorter side in pixels before the centre is cut",
    )  # fmt: skip
    images.add_argument(
        "--jitter", type=cli.number(least=0, most=1), default=jitter,
        help="of brightness, contrast and saturation",
    )  # fmt: skip
    images.add_argument(
        "--loader", default="grain", choices=LOADERS, help="tf.data needs the `prepare` extra"
    )
    images.add_argument(
        "--workers", type=cli.number(least=0, most=1024, whole=True), default=0,
        help="processes that decode, each with three of a host's batches in shared memory "
        "(/dev/shm); 0: threads of this one",
    )  # fmt: skip
    images.add_argument(
        "--max-corrupt", type=cli.number(least=0, most=1), default=0.001,
        help="share of images that may be unreadable; they are left out and counted",
    )  # fmt: skip
    images.add_argument(
        "--allow-empty-classes", action="store_true",
        help="there may be classes without a training image, which count as tail, or without a "
        "test image; both are left out of the accuracies",
    )  # fmt: skip
    images.add_argument(
        "--val-per-class", type=cli.number(least=0, most=10**6, whole=True), default=0,
        help="training images held out per class (each class keeps one), to tune rho and eta on",
    )  # fmt: skip


def prepared(dataset: Any, args: argparse.Namespace) -> Any:
    """The data set, checked for empty classes and with images held out as the flags say."""
    from experiments.data.encoded import check_no_empty_class, hold_out_rows

    check_no_empty_class(dataset, args.allow_empty_classes)
    if not args.val_per_class:
        return dataset
    if dataset.val is not None:
        raise RunError(f"{dataset.name} has a validation set of its own: leave --val-per-class out")
    return hold_out_rows(dataset, args.val_per_class, seed=0)


class Plan(NamedTuple):
    """What the flags ask for, made for one data set; nothing trained or written yet."""

    settings: Any
    method: methods.Method
    loss: objectives.Loss
    description: dict[str, Any]
    second: dict[str, stage2.Stage]


def make_plan(args: argparse.Namespace, dataset: Any, about_data: dict[str, Any]) -> Plan:
    """Everything that can be refused is refused here.

    Args:
      about_data: the description's fields that say how the data was made.
    """
    from experiments.data import filled
    from experiments.run.parts import tail_of
    from experiments.run.settings import Settings
    from experiments.step.execution import EXECUTIONS
    from imbsam_jax import imbalance_factor

    options, counts = vars(args), filled(dataset.class_counts())
    settings = Settings(
        **{name: options[name] for name in Settings.__dataclass_fields__ if name in options}
        | {"classifier": objectives.classifier_for(args.loss, options)}
    )
    settings.check()
    steps_per_epoch = -(-len(dataset.train_labels) // args.batch_size)
    method, of_method = methods.build_method(
        args.rule, counts, options, steps_per_epoch=steps_per_epoch
    )
    if args.rule == "cc_sam" and settings.accumulate > 1:
        raise RunError("--rule cc_sam takes a batch whole: use --accumulate 1")
    if settings.examples != "dependent":
        if args.rule == "cc_sam":
            raise RunError("--rule cc_sam takes a batch whole: use --examples dependent")
        if "running_statistics" in of_method["ascent"]:
            raise RunError(methods.NOT_EVERY)
    if args.memory is not None:
        if settings.examples == "split_norm" or settings.accumulate > 1 or args.stage2:
            raise RunError(
                "--memory does not go with --examples split_norm, --accumulate or --stage2"
            )
        method = methods.remembering(method, args.memory)
        of_method["memory"] = args.memory
    loss, of_loss = objectives.build_loss(
        args.loss, counts, options, steps_per_epoch=steps_per_epoch,
        axis_name=EXECUTIONS[args.parallel].axis_name,
    )  # fmt: skip
    description = {
        "experiment": args.experiment,
        **of_method,
        **of_loss,
        "imbalance_factor": imbalance_factor(counts),
        "val_per_class": args.val_per_class,
        **about_data,
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
    for each in (settings, *(stage.settings for stage in second.values())):
        tail_of(dataset, each)  # refuses stratified sampling without one
        steps = each.epochs * steps_per_epoch
        if steps >= 2**31:
            raise RunError(
                f"{each.epochs} epochs of {steps_per_epoch} steps are more than steps are counted "
                "to, 2**31: use fewer"
            )
    return Plan(settings, method, loss, description, second)


def join(args: argparse.Namespace) -> None:
    """Meets the other processes of the run, where there are to be some; before JAX is used."""
    from experiments.step.execution import join_processes

    asked = (args.coordinator, args.num_processes, args.process_id)
    if args.cluster and any(x is not None for x in asked):
        raise RunError("--cluster finds the other processes by itself: leave --coordinator, "
                       "--num-processes and --process-id out")  # fmt: skip
    if args.cluster or any(x is not None for x in asked):
        join_processes(*asked, args.devices, args.heartbeat_seconds)


def run(
    args: argparse.Namespace,
    load: Callable[[argparse.Namespace], Any],
    describe: Callable[[argparse.Namespace, Any], dict[str, Any]],
) -> None:
    """Trains every seed, and every second stage of each, and shows the table."""
    import jax

    from experiments.reports import tables

    begin(args)
    dataset = load(args)
    reports = train(args, dataset, make_plan(args, dataset, describe(args, dataset)))
    if jax.process_index() == 0:
        tables.show(reports)


def begin(args: argparse.Namespace) -> None:
    """What comes before the data: refuses flags, meets other processes, settles the devices."""
    from experiments.step.execution import devices_by_default, emulate

    if not args.out:
        raise RunError("--out is missing: name the folder this run is to be written to")
    folders.check_run(Path(args.out))
    _seeds(args)
    if "resize" in args and args.image_size > args.resize:
        raise RunError(
            f"--image-size {args.image_size} cannot be cut from images resized to --resize "
            f"{args.resize}: give a --resize at least as large"
        )
    join(args)
    args.devices_left_out = isinstance(args.devices, _LeftOut)
    if not args.devices_left_out:
        emulate(args.devices)  # now: whatever loads data or makes a plan may start the backend
    else:
        share = args.batch_size // max(args.accumulate, 1)
        args.devices = devices_by_default(args.devices, args.model, share, args.examples)
    cli.use_compilation_cache()
    if args.preset and args.process_id in (None, 0):
        print(presets.explain(args))


class Group(NamedTuple):
    """Seeds that are trained in one program, or a lone one, and on how many devices."""

    seeds: list[int]
    devices: int
    together: bool


def groups(args: argparse.Namespace, seeds: list[int]) -> list[Group]:
    """Which seeds are trained together; seeds whose folders hold a run, as they were begun.

    Where nobody said, new ones on a CPU are if they then use no fewer devices than a lone run does:
    on two cores that was faster (results/seeds_together), elsewhere nobody has measured it.
    """
    from experiments.step.execution import devices_for_seeds

    held = {}
    for seed in seeds:
        config = Path(args.out) / f"seed_{seed}" / "config.json"
        if args.resume and config.exists():
            held[seed] = folders.begun(config)

    def devices_of(group: list[int]) -> int:
        of_held = [held[seed].get("devices", 1) for seed in group if seed in held]
        if not args.devices_left_out:
            return int(args.devices)
        return int(of_held[0]) if of_held else devices_for_seeds(len(group))

    if args.together:
        begun = [config.get("together") or [] for config in held.values()]
        same = [others for others in begun if sorted(others) == sorted(seeds)]
        return [Group(same[0] if same else seeds, devices_of(seeds), True)]
    found: list[Group] = []
    new = []
    for seed in seeds:
        others = held[seed].get("together") if seed in held else None
        if args.together is False or (seed in held and not others):
            found.append(Group([seed], args.devices, False))
        elif not others:
            new.append(seed)
        elif not set(others) <= set(seeds):
            raise RunError(
                f"{args.out}/seed_{seed} was trained together with others: name them all, --seeds "
                f"{' '.join(map(str, others))}, or choose another --out"
            )
        elif not any(seed in group.seeds for group in found):
            found.append(Group(others, devices_of(others), True))
    # Of a group that was stopped as it began not every folder holds a run.
    new = [seed for seed in new if not any(seed in group.seeds for group in found)]
    number = _devices_of_new(args, len(new))
    if number > 1:
        if not args.quiet:
            print(f"{cli.noun(len(new), 'seed')} together on {number} devices (not: --no-together)")
        return [*found, Group(new, number, True)]
    return [*found, *(Group([seed], args.devices, False) for seed in new)]


def _devices_of_new(args: argparse.Namespace, seeds: int) -> int:
    """For seeds to be trained together; 1 where they had better not be."""
    import jax

    from experiments.step.execution import devices_for_seeds

    possible = args.parallel == "jit" and args.examples == "dependent" and args.devices_left_out
    on_cpu = not jax.distributed.is_initialized() and jax.default_backend() == "cpu"
    if seeds < 2 or not possible or not on_cpu:
        return 1
    number = devices_for_seeds(seeds)
    return number if number >= args.devices else 1


def in_full() -> dict[str, Any]:
    """What a run of the command line has beside its training: pictures, and the cost of a step."""
    from experiments.reports import plots

    return {"measure": True, "draw": plots.run_folder}


def train(args: argparse.Namespace, dataset: Any, plan: Plan) -> list[dict[str, Any]]:
    """Trains every seed, and every second stage of each; their reports, in the order of the seeds.

    Of seeds that are trained together these are the first stages; the second ones follow one after
    the other.
    """
    from experiments.run.parts import initial_variables, last_variables
    from experiments.run.trainer import fit, fit_together

    seeds = _seeds(args)
    several = args.seeds is not None or args.num_seeds is not None
    more: dict[str, Any] = {"resume": args.resume, "quiet": args.quiet}
    more |= in_full()
    each = {seed: dataclasses.replace(plan.settings, seed=seed) for seed in seeds}
    outs = {seed: Path(args.out) / (f"seed_{seed}" if several else "") for seed in seeds}

    def start_of(mine: Any) -> tuple[Any, dict[str, Any]]:
        """(what a seed starts from, its description)."""
        start, init = None, None
        if args.init:
            start, init = initial_variables(args.init, dataset, args.model, mine)
        return start, {**plan.description, "init": init}

    def first_stages(group: Group) -> list[dict[str, Any]]:
        starts, described = zip(*(start_of(each[seed]) for seed in group.seeds), strict=True)
        if not group.together:
            (seed,), (start,), (description,) = group.seeds, starts, described
            return [
                fit(
                    dataset, args.model, plan.method, plan.loss, each[seed], outs[seed],
                    start=start, description=description, **more,
                )
            ]  # fmt: skip
        settings = dataclasses.replace(plan.settings, devices=group.devices)
        return fit_together(
            dataset, args.model, plan.method, plan.loss, settings,
            {seed: outs[seed] for seed in group.seeds},
            starts=dict(zip(group.seeds, starts, strict=True)), description=described[0], **more,
        )  # fmt: skip

    def second_stages(seed: int) -> Iterator[dict[str, Any]]:
        mine, out = each[seed], outs[seed]
        for name, stage in plan.second.items():
            folder = "_".join(filter(None, ["stage2", name, args.stage2_tag]))
            trained, fresh = last_variables(out, dataset, args.model, mine)
            start = {**trained, "params": stage.start(trained["params"], fresh["params"])}
            yield fit(
                dataset, args.model, stage.method, stage.loss,
                dataclasses.replace(stage.settings, seed=seed), out / folder, start=start,
                adversary=stage.adversary, description=start_of(mine)[1] | stage.description,
                **more,
            )  # fmt: skip

    reports: dict[int, list[dict[str, Any]]] = {}
    for group in groups(args, seeds):
        for seed, report in zip(group.seeds, first_stages(group), strict=True):
            reports[seed] = [report]
        for seed in group.seeds:
            reports[seed] += second_stages(seed)
    return [report for seed in seeds for report in reports[seed]]


def _seeds(args: argparse.Namespace) -> list[int]:
    seeds = args.seeds or (list(range(args.num_seeds)) if args.num_seeds else [args.seed])
    check_seed(*seeds)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"--seeds must be different numbers; got {seeds}")
    return list(seeds)
