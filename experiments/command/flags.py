"""The flags that the entry points of image classification share."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.command import loss_flags, method_flags, stage2
from experiments.host import cli
from experiments.host.needs import Need, Needs, always, beside, one_of
from experiments.models import MODELS, PRETRAINED
from experiments.run.settings import LOADERS, PRECISIONS, SAMPLING
from experiments.step.optimizer import SCHEDULES
from experiments.step.passing import EXAMPLES


def add_method(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Groups "method", "loss" and "second stage"; defaults by name replace those of the tables."""
    method = parser.add_argument_group("method")
    method.add_argument(
        "--rule",
        default="imbsam",
        choices=method_flags.rule_names(),
        help="how the gradient is taken",
    )
    method_flags.add_arguments(method, **defaults)
    loss_flags.add_arguments(parser.add_argument_group("loss"))
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
    pretrained: bool = False,
) -> None:
    """Groups "training" and "running", with an entry point's own defaults.

    Args:
      pretrained: whether its models are those that start from weights.
      devices: how many there are where nobody says, but on a CPU.
      together: whether seeds are trained so; None where it is faster.
    """
    training = parser.add_argument_group("training")
    models = sorted(PRETRAINED if pretrained else MODELS)
    training.add_argument("--model", default=model, choices=models, help="the network")
    training.add_argument(
        "--init", metavar="FILE", type=cli.text,
        help="start from these weights: .safetensors under the names of OpenAI, open_clip, timm or "
        "Hugging Face; or random, to try the way" if pretrained else
        "start from these weights: .safetensors under torchvision's names, or .msgpack",
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
        "split_norm: the same for models with batch normalisation, where it is another step; "
        "shared_norm: less still, by a third step; both lose accuracy, most of a small tail",
    )  # fmt: skip
    training.add_argument(
        "--precision", default="float32", choices=PRECISIONS,
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
    running.add_argument(
        "--keep-checkpoints", type=cli.number(least=2, most=10**6, whole=True), default=2,
        help="the last so many are kept; `experiments.analyse` shows all of them over epochs",
    )  # fmt: skip
    running.add_argument("--eval-every", type=cli.counted(), default=1, help="epochs")
    running.add_argument("--eval-batch", type=cli.counted(), default=500, help="images")
    running.add_argument(
        "--parallel", default="jit", choices=["jit", "pmap"], help="how devices share a batch"
    )
    running.add_argument(
        "--devices", type=cli.devices,
        help="over all processes; 0 is all there are; on a CPU emulated ones, by default for "
        f"convolution networks one a core; elsewhere by default {devices}",
    )  # fmt: skip
    parser.set_defaults(devices_by_default=devices)  # see `seeds.devices_of`
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
        help="train all --seeds in one program, shared among the devices" + (
            ": by default on a CPU whose cores can share them out evenly, where that is faster"
            if together is None else ""
        ),
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
        help="share of images (of balanced batches: of draws) that may be unreadable; they are "
        "left out and counted",
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


def training_needs() -> Needs:
    """When each flag of `add_method` and `add_training` is heeded.

    What those for several processes need is said by `devices.join_processes`.
    """
    return {
        **always(
            "preset", "model", "init", "epochs", "batch_size", "lr", "schedule", "momentum",
            "weight_decay", "sampling", "examples", "precision", "seed", "seeds", "num_seeds",
            "out", "resume", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_batch",
            "parallel", "devices", "accumulate", "remat", "steps_per_call", "quiet", "coordinator",
            "num_processes", "process_id", "cluster", "rule",
        ),
        "together": (beside("seeds", "num-seeds"),),
        "heartbeat_seconds": (beside("cluster", "coordinator"),),
        **method_flags.needs(),
        **loss_flags.needs(),
        **stage2.needs(),
    }  # fmt: skip


def streaming_needs() -> Needs:
    """The same, and of `add_streaming`."""
    return {
        **training_needs(),
        **always(
            "image_size", "resize", "jitter", "loader", "max_corrupt", "allow_empty_classes",
            "val_per_class",
        ),
        "workers": (one_of("loader", ["grain"]),),
        "steps_per_call": (
            Need(
                lambda args: args.steps_per_call < 2,
                "images in memory: streamed ones have 1 step",
            ),
        ),
    }  # fmt: skip
