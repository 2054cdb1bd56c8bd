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
from pathlib import Path
from typing import Any

from experiments import cli, heeded, launch, presets
from experiments.errors import RunError

_OF_AN_EXPORT = {"--dataset", "--imbalance-factor", "--subset", "--subset-seed", "--data-dir"}


def arguments() -> cli.Parser:
    parser = cli.parser("Train on long-tailed CIFAR with a sharpness-aware rule.", heeded.CIFAR)
    parser.set_defaults(experiment="cifar_lt")
    presets.add_argument(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", default="cifar100", choices=["cifar100", "cifar10"], help="of TFDS"
    )
    data.add_argument(
        "--imbalance-factor", type=cli.number(least=1), default=100.0,
        help="largest over smallest class",
    )  # fmt: skip
    data.add_argument(
        "--subset", default="first", choices=["first", "shuffled"],
        help="images of a class: the first in file order (ImbSAM, SSE-SAM, weight balancing), or "
        "drawn as LDAM, Saddle and Focal-SAM do",
    )  # fmt: skip
    data.add_argument("--subset-seed", type=cli.seed, default=0, help="seed of --subset shuffled")
    data.add_argument(
        "--data-dir", type=cli.text,
        help="folder of prepared TFDS data; default TFDS_DATA_DIR, then TFDS's own",
    )  # fmt: skip
    data.add_argument(
        "--data", type=cli.text, help="train from this file, written by --export; needs no TFDS"
    )
    data.add_argument(
        "--export", metavar="FILE.npz", type=cli.text,
        help="write the decoded long-tailed set there and stop",
    )  # fmt: skip
    data.add_argument(
        "--val-per-class", type=cli.number(least=0, most=10**6, whole=True), default=0,
        help="training images held out per class (each class keeps one), to tune rho and eta on",
    )  # fmt: skip
    data.add_argument(
        "--shrink", type=cli.counted(1024), default=1, metavar="N",
        help="average every N x N pixels: a quick look on a CPU, no figure to compare with others",
    )  # fmt: skip
    launch.add_method(parser)
    launch.add_training(
        parser, model="resnet34_3x3", batch_size=64, lr=0.01, weight_decay=5e-3, devices=1,
        checkpoint_every=10,
    )  # fmt: skip
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parses; flags that the file of --data has settled are refused: nothing would heed them."""
    args = presets.parse(parser, argv)
    settled = [flag for flag in cli.given(parser, argv) if flag in _OF_AN_EXPORT]
    if settled and args.data:
        parser.error(
            f"{', '.join(settled)} beside --data, whose file was exported with settings of its own"
        )
    return args


def load(args: argparse.Namespace) -> Any:
    """The data set that the flags of group "data" describe."""
    from experiments.data import hold_out, load_npz, shrunk
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
    if args.shrink < 1:
        raise RunError(f"--shrink must be at least 1, got {args.shrink}")
    dataset = shrunk(dataset, args.shrink)
    if not args.val_per_class:
        return dataset
    if dataset.val_labels is not None:
        raise RunError(f"{args.data} has a validation set of its own: leave --val-per-class out")
    return hold_out(dataset, args.val_per_class, seed=0)


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """How the data was made; an exported file says in its source what it holds."""
    # Left out at 1, so that runs begun before there was such a flag still resume.
    shrink = {"shrink": args.shrink} if args.shrink > 1 else {}
    return {
        **shrink,
        "requested_imbalance_factor": None if args.data else args.imbalance_factor,
        "subset": None if args.data else args.subset,
        "subset_seed": None if args.data else args.subset_seed,
    }


def make_plan(args: argparse.Namespace, dataset: Any) -> launch.Plan:
    """What the flags ask for, made for this data set; everything that can be refused is."""
    return launch.make_plan(args, dataset, describe(args))


def main(args: argparse.Namespace) -> None:
    from experiments.data import save_npz

    if not args.export and not args.out:
        raise RunError("--out is missing: name the folder this run is to be written to")
    if args.export:
        dataset = load(args)
        save_npz(dataset, Path(args.export))
        print(f"wrote {args.export}: {len(dataset.train_labels)} training images, {dataset.source}")
        return
    launch.run(args, load, describe)


if __name__ == "__main__":
    cli.run(main, parse(arguments()))
