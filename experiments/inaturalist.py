r"""iNaturalist 2018: 8,142 species, 437,513 training images, 1000 to 2 of a species.

    python -m experiments.inaturalist --rule imbsam --rho 0.05 --eta 100 --precision bfloat16 \
        --workers 16 --out runs/imbsam
    python -m experiments.inaturalist --preset focal-sam-paper --precision bfloat16 --out runs/focal
    python -m experiments.inaturalist --preset imbsam-paper --stage2 lws crt tau-norm --out runs/lws

Images come from TFDS `i_naturalist2018`, prepared as array_record, or from a folder of files with
list files. The defaults are the ImbSAM paper's (ResNet-50, 200 epochs, batch 512, momentum 0.9, rho
0.05, eta 100); its learning rate and weight decay are not printed: those of decoupling stand here.
Tested on the labelled validation images, as in the papers.

On several hosts the same command runs on each, with --cluster where the cluster knows its members
(TPU pod, Slurm, Open MPI), else with --coordinator HOST:PORT --num-processes N --process-id I.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.command import flags, launch, presets
from experiments.host import cli
from experiments.host.needs import always

LISTS = ("train_list", "test_list")


def arguments() -> argparse.ArgumentParser:
    own = always("data_dir", "image_dir", *LISTS)
    parser = cli.parser(
        "Train on iNaturalist 2018 with a sharpness-aware rule.",
        {**flags.streaming_needs(), **own},
    )
    parser.set_defaults(experiment="inaturalist")
    presets.add_argument(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir", type=cli.text,
        help="folder of prepared TFDS data; default TFDS_DATA_DIR, then TFDS's own",
    )  # fmt: skip
    data.add_argument(
        "--image-dir", type=cli.text, help="in its place, a folder of image files, with both lists"
    )
    data.add_argument(
        "--train-list", type=cli.text, help="lines of path and label, iNaturalist18_train.txt"
    )
    data.add_argument("--test-list", type=cli.text, help="iNaturalist18_val.txt")
    flags.add_streaming(parser, jitter=0.0)
    flags.add_method(parser)
    flags.add_training(
        parser, model="resnet50", batch_size=512, lr=0.2, weight_decay=1e-4, devices=0,
        checkpoint_every=1, together=False,
    )  # fmt: skip
    return parser


def load(args: argparse.Namespace) -> Any:
    """The data set that the flags of group "data" describe."""
    from experiments.data.encoded import finished
    from experiments.data.image_sets import load_inaturalist

    lists = {name: getattr(args, name) for name in LISTS}
    dataset = load_inaturalist(
        args.data_dir, image_dir=args.image_dir, size=args.image_size, resize=args.resize, **lists
    )
    return finished(dataset, args.val_per_class, args.allow_empty_classes)


def describe(args: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """How the data was made, as far as its source does not say it."""
    return {"image_size": args.image_size, "resize": args.resize}


def main(args: argparse.Namespace) -> None:
    launch.begin(args)
    dataset = load(args)
    launch.run(args, dataset, describe(args, dataset))


if __name__ == "__main__":
    cli.run(main, presets.parse(arguments()))
