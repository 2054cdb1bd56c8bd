r"""ImageNet-LT (1,000 classes, 115,846 training images, 1280 to 5) and Places-LT (365 classes).

    python -m experiments.imagenet_lt --rule imbsam --rho 0.05 --eta 100 --precision bfloat16 \
        --workers 16 --out runs/imbsam
    python -m experiments.imagenet_lt --preset decoupling --precision bfloat16 --out runs/decoupling
    python -m experiments.imagenet_lt --dataset imagenet2012 --train-list ImageNet_LT_train.txt \
        --test-list ImageNet_LT_test.txt --preset saddle --out runs/saddle
    python -m experiments.imagenet_lt --dataset places365_small --train-list Places_LT_train.txt \
        --test-list Places_LT_test.txt --model resnet152 --init resnet152.safetensors \
        --epochs 30 --batch-size 128 --lr 0.01 --out runs/places

Images come from TFDS (`imagenet_lt`; `imagenet2012` or `places365_small` with the list files of
OLTR), prepared as array_record, or from a folder of files with the list files. The defaults are the
ImbSAM paper's (ResNeXt-50 32x4d, 200 epochs, batch 64, rho 0.05, eta 100); its learning rate and
weight decay are not printed: those of decoupling stand here, the rate in proportion to the batch.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.command import flags, launch, presets
from experiments.host import cli
from experiments.host.needs import always

DATASETS = ("imagenet_lt", "imagenet2012", "places365_small")
LISTS = ("train_list", "val_list", "test_list")


def arguments() -> argparse.ArgumentParser:
    own = always("dataset", "data_dir", "image_dir", *LISTS)
    parser = cli.parser(
        "Train on ImageNet-LT or Places-LT with a sharpness-aware rule.",
        {**flags.streaming_needs(), **own},
    )
    parser.set_defaults(experiment="imagenet_lt")
    presets.add_argument(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="imagenet_lt", choices=DATASETS, help="of TFDS")
    data.add_argument(
        "--data-dir", type=cli.text,
        help="folder of prepared TFDS data; default TFDS_DATA_DIR, then TFDS's own",
    )  # fmt: skip
    data.add_argument(
        "--image-dir", type=cli.text, help="in its place, a folder of image files, with the lists"
    )
    data.add_argument(
        "--train-list", type=cli.text, help="lines of path and label, as OLTR publishes them"
    )
    data.add_argument(
        "--val-list", type=cli.text, help="held-out images, where there are to be some"
    )
    data.add_argument("--test-list", type=cli.text, help="images to test on")
    flags.add_streaming(parser, jitter=0.4)
    flags.add_method(parser)
    flags.add_training(
        parser, model="resnext50_32x4d", batch_size=64, lr=0.025, weight_decay=5e-4, devices=0,
        checkpoint_every=1, together=False,
    )  # fmt: skip
    return parser


def load(args: argparse.Namespace) -> Any:
    """The data set that the flags of group "data" describe."""
    from experiments.data.encoded import finished
    from experiments.data.image_sets import load_imagenet_lt

    lists = {name: getattr(args, name) for name in LISTS}
    dataset = load_imagenet_lt(
        args.dataset, args.data_dir, image_dir=args.image_dir, size=args.image_size,
        resize=args.resize, **lists,
    )  # fmt: skip
    return finished(dataset, args.val_per_class, args.allow_empty_classes)


def describe(args: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """How the data was made, as far as its source does not say it."""
    return {"data_of": args.dataset, "image_size": args.image_size, "resize": args.resize}


def main(args: argparse.Namespace) -> None:
    launch.begin(args)
    dataset = load(args)
    launch.run(args, dataset, describe(args, dataset))


if __name__ == "__main__":
    cli.run(main, presets.parse(arguments()))
