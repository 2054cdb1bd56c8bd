r"""CLIP or a ViT of ImageNet-21k, frozen, with an adapter, on long-tailed images.

    python -m experiments.finetune --init clip.safetensors --dataset cifar100 \
        --adapter adaptformer --rule focal_sam --out runs/focal
    python -m experiments.finetune --preset lift-imagenet --init clip.safetensors \
        --precision bfloat16 --workers 16 --out runs/lift
    python -m experiments.finetune --init random --model vit_tiny --dataset cifar100 --epochs 1 \
        --out runs/try

The defaults are LIFT's (Shi et al., ICML 2024): ten epochs, batch 128, lr 0.01 with a cosine by
epoch, weight decay 5e-4, logit adjustment, cosines times 25 with a start from texts. With --init
random everything runs without weights, and the report says so; it tells nothing of CLIP.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from typing import Any

from experiments import cifar_lt, imagenet_lt, inaturalist
from experiments.command import finetuning, flags, launch, plan, presets
from experiments.command.seeds import seeds_of
from experiments.host import cli
from experiments.host.needs import Need, Needs, always, one_of, without
from experiments.models.adapters import ADAPTERS
from experiments.models.clip import SIZES

CIFAR = ("cifar100", "cifar10")
DATASETS = (*CIFAR, "imagenet_lt", "places_lt", "inaturalist")


def arguments() -> cli.Parser:
    parser = cli.parser("Fine-tune CLIP or a ViT with a sharpness-aware rule.", _needs())
    parser.set_defaults(experiment="finetune")
    presets.add_argument(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="cifar100", choices=DATASETS, help="long-tailed")
    cifar_lt.add_cut(data)
    data.add_argument(
        "--image-dir", type=cli.text, help="folder of image files, with the lists, in place of TFDS"
    )
    for name in imagenet_lt.LISTS:
        data.add_argument(
            f"--{name.replace('_', '-')}", type=cli.text,
            help="lines of path and label; Places-LT needs lists, ImageNet-LT takes them",
        )  # fmt: skip
    flags.add_streaming(parser, jitter=0.0)
    _add_adapter(parser.add_argument_group("adapter and classifier"))
    flags.add_method(parser)
    flags.add_training(
        parser, model="clip_vit_b16", batch_size=128, lr=0.01, weight_decay=5e-4, devices=0,
        checkpoint_every=1, together=False, pretrained=True,
    )  # fmt: skip
    parser.set_defaults(
        epochs=10, schedule="cosine", loss="logit_adjusted", classifier="cosine", eval_batch=128,
        image_size=None, resize=None,
    )  # fmt: skip
    return parser


def _add_adapter(group: Any) -> None:
    group.add_argument(
        "--adapter", default="adaptformer", choices=list(ADAPTERS),
        help="what is trained beside the classifier",
    )  # fmt: skip
    group.add_argument(
        "--adapter-size", type=cli.number(least=0, most=10**4, whole=True), default=0,
        help="channels of adaptformer, rank of lora, tokens of vpt-deep; 0 is LIFT's",
    )  # fmt: skip
    group.add_argument(
        "--classifier-start", default="auto", choices=finetuning.STARTS,
        help="from the texts of the classes, from the means of their features, or at random; auto "
        "is text for weights of CLIP, mean for a ViT's, random without",
    )  # fmt: skip
    group.add_argument(
        "--prompt", type=cli.text, default="a photo of a {}.", help="text of a class, {} its name"
    )
    group.add_argument(
        "--class-names", type=cli.text, help="file of a name a line, in place of the data set's"
    )
    group.add_argument(
        "--vocabulary", type=cli.text,
        help="CLIP's bpe_simple_vocab_16e6.txt.gz, where no installed package has it",
    )  # fmt: skip
    group.add_argument(
        "--ensemble", action=argparse.BooleanOptionalAction, default=False,
        help="evaluate the last epoch on five crops of each image, too",
    )  # fmt: skip
    group.add_argument(
        "--cache-features", metavar="FILE.npz", type=cli.text,
        help="keep the frozen tower's features there, computed once, of images not augmented but "
        "mirrored",
    )  # fmt: skip


def _needs() -> Needs:
    cifar = one_of("dataset", CIFAR)
    large = one_of("dataset", [name for name in DATASETS if name not in CIFAR])
    text = Need(
        lambda args: finetuning.start_kind(args) == "text", "a classifier started from text"
    )
    streaming = flags.streaming_needs()
    return {
        **streaming,
        **always(
            "dataset", "data_dir", "adapter", "classifier_start", "class_names", "image_size",
            "resize",
        ),
        **{name: (cifar,) for name in ("imbalance_factor", "subset", "data", "shrink")},
        "subset_seed": (cifar, one_of("subset", ["shuffled"])),
        **{
            name: (large, *streaming.get(name, ()))
            for name in (
                "image_dir", "train_list", "test_list", "loader", "workers", "max_corrupt",
                "allow_empty_classes",
            )
        },
        "val_list": (one_of("dataset", ["imagenet_lt", "places_lt"]),),
        "jitter": (large, without("cache-features")),
        "steps_per_call": (
            Need(
                lambda args: args.steps_per_call < 2 or args.dataset in CIFAR,
                "images in memory: streamed ones have 1 step",
            ),
        ),
        "adapter_size": (one_of("adapter", [k for k, v in ADAPTERS.items() if v.sized]),),
        "prompt": (text,),
        "vocabulary": (text,),
        "ensemble": (without("cache-features"),),
        "cache_features": (one_of("adapter", ["linear"]),),
    }  # fmt: skip


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    return cifar_lt.parse(parser, argv)


def load(args: argparse.Namespace) -> Any:
    """The data set that the flags of group "data" describe, as the model is to see it."""
    finetuning.settle(args)
    theirs = copy.copy(args)
    if args.dataset in CIFAR:
        dataset = cifar_lt.load(args)
    elif args.dataset == "inaturalist":
        dataset = inaturalist.load(args)
    else:
        places = args.dataset == "places_lt"
        listed = args.train_list and not args.image_dir
        theirs.dataset = "places365_small" if places else "imagenet_lt"
        if listed and not places:
            theirs.dataset = "imagenet2012"
        dataset = imagenet_lt.load(theirs)
    dataset = as_seen(args.model, dataset)
    if not args.class_names:
        return dataset
    names = finetuning.class_names(args.class_names, dataset.num_classes)
    return dataclasses.replace(dataset, class_names=names)


def as_seen(model: str, dataset: Any) -> Any:
    """The data set normalised as the model's weights were trained."""
    clip = SIZES[model].text is not None
    mean, std = finetuning.CLIP_PIXELS if clip else finetuning.VIT_PIXELS
    return dataclasses.replace(dataset, mean=mean, std=std)


def describe(args: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """How the data was made, and what its run starts from."""
    of_data = cifar_lt.describe(args, dataset) if args.dataset in CIFAR else {}
    text = {"prompt": args.prompt} if args.classifier_start == "text" else {}
    return {
        **of_data,
        "data_of": args.dataset,
        "image_size": args.image_size,
        "resize": args.resize,
        "classifier_start": args.classifier_start,
        "features": bool(args.cache_features),
        **text,
    }


def make_plan(args: argparse.Namespace, dataset: Any) -> plan.Plan:
    """What the flags ask for, made for this data set."""
    finetuning.settle(args)
    in_memory = args.dataset in CIFAR and not args.cache_features
    args.enlarged, args.enlarged_eval = (args.image_size, args.resize) if in_memory else (0, 0)
    return plan.make_plan(args, dataset, describe(args, dataset))


def main(args: argparse.Namespace) -> None:
    finetuning.settle(args)
    launch.begin(args)
    weights = finetuning.read_weights(args)
    dataset = load(args)
    asked = make_plan(args, dataset)
    if args.cache_features:
        settings = dataclasses.replace(
            asked.settings, seed=seeds_of(args)[0],
            enlarged=args.image_size if args.dataset in CIFAR else 0, enlarged_eval=args.resize,
        )  # fmt: skip
        dataset = finetuning.cached(args, dataset, weights, settings)
    launch.show(launch.train(args, dataset, finetuning.started(args, dataset, weights, asked)))


if __name__ == "__main__":
    cli.run(main, parse(arguments()))
