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
import os
import sys
from pathlib import Path
from typing import Any

from experiments.command import flags, launch, plan, presets
from experiments.data import Dataset, hold_out, load_npz, save_npz, shrunk
from experiments.data.encoded import check_no_empty_class, empty_classes
from experiments.data.identity import repeated
from experiments.host import cli
from experiments.host.errors import DataError, RunError
from experiments.host.inputs import said_by
from experiments.host.needs import Need, Needs, always, beside, one_of

_OF_AN_EXPORT = {f"--{name.replace('_', '-')}" for name in presets.OF_AN_EXPORT}


def arguments() -> cli.Parser:
    parser = cli.parser("Train on long-tailed CIFAR with a sharpness-aware rule.", _needs())
    parser.set_defaults(experiment="cifar_lt")
    presets.add_argument(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", default="cifar100", choices=["cifar100", "cifar10"], help="of TFDS"
    )
    add_cut(data)
    data.add_argument(
        "--export", metavar="FILE.npz", type=cli.text,
        help="write the decoded long-tailed set there and stop",
    )  # fmt: skip
    data.add_argument(
        "--overwrite", action="store_true", help="replace the file that --export names"
    )
    data.add_argument(
        "--val-per-class", type=cli.number(least=0, most=10**6, whole=True), default=0,
        help="training images held out per class (each class keeps one), to tune rho and eta on",
    )  # fmt: skip
    flags.add_method(parser)
    flags.add_training(
        parser, model="resnet34_3x3", batch_size=64, lr=0.01, weight_decay=5e-3, devices=1,
        checkpoint_every=10,
    )  # fmt: skip
    return parser


def add_cut(data: Any) -> None:
    """How CIFAR is cut out, and where it is read."""
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
        "--shrink", type=cli.counted(1024), default=1, metavar="N",
        help="average every N x N pixels: a quick look on a CPU, no figure to compare with others",
    )  # fmt: skip


def _needs() -> Needs:
    trains = Need(lambda args: not args.export, "--export left out, which trains nothing")
    return {
        **{name: (trains, *needs) for name, needs in flags.training_needs().items()},
        **always(
            "dataset", "imbalance_factor", "subset", "data_dir", "data", "export", "shrink",
            "val_per_class",
        ),
        "overwrite": (beside("export"),),
        "subset_seed": (one_of("subset", ["shuffled"]),),
    }  # fmt: skip


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parses; flags that the file of --data has settled are refused: nothing would heed them."""
    argv = sys.argv[1:] if argv is None else argv
    args = presets.parse(parser, argv)
    settled = [flag for flag in cli.given(parser, argv) if flag in _OF_AN_EXPORT]
    if settled and args.data:
        parser.error(
            f"{', '.join(settled)} beside --data, whose file was exported with settings of its own"
        )
    return args


def load(args: argparse.Namespace) -> Any:
    """The data set that the flags of group "data" describe."""
    from experiments.data.cifar import load_cifar_lt

    if args.data:
        return finished(read(args.data), args.shrink, args.val_per_class)
    dataset = load_cifar_lt(
        args.dataset,
        imbalance_factor=args.imbalance_factor,
        data_dir=args.data_dir,
        subset=args.subset,
        subset_seed=args.subset_seed,
    )
    check_no_empty_class(dataset, allow=None)
    return finished(dataset, args.shrink, args.val_per_class)


def read(path: str) -> Dataset:
    """The data set of an exported file, whose every class can be learnt and tested."""
    dataset = load_npz(Path(path))
    try:
        check_no_empty_class(dataset, allow=None)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    empty = None if dataset.val_labels is None else empty_classes(dataset, dataset.val_labels)
    if empty:
        print(
            f"note: {path}: {empty[0]} of {dataset.num_classes} classes have no validation image "
            f"and do not count in validation accuracies: {empty[1]}",
            file=sys.stderr,
        )
    for part in ("test", "val"):
        if (labels := getattr(dataset, f"{part}_labels")) is None:
            continue
        if again := repeated(dataset, part):
            print(
                f"note: {path}: {again} of {len(labels)} {part} images are among the training "
                "images, pixel by pixel",
                file=sys.stderr,
            )
    return dataset


def finished(dataset: Dataset, shrink: int, val_per_class: int) -> Dataset:
    """The data set shrunk, and with so many images of a class held out."""
    dataset = shrunk(dataset, shrink)
    if not val_per_class:
        return dataset
    if dataset.val_labels is not None:
        raise RunError(f"{dataset.name} has a validation set of its own: leave --val-per-class out")
    return hold_out(dataset, val_per_class, seed=0)


def describe(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """How the data was made, whether now or when the file of --data was exported."""
    # Left out at 1, so that runs begun before there was such a flag still resume.
    shrink = {"shrink": dataset.shrink} if dataset.shrink > 1 else {}
    return {
        **shrink,
        "requested_imbalance_factor": dataset.imbalance_factor,
        "subset": dataset.subset,
        "subset_seed": dataset.subset_seed,
        "val_per_class": dataset.val_per_class,
    }


def make_plan(args: argparse.Namespace, dataset: Any) -> plan.Plan:
    """What the flags ask for, of a point of a sweep; `main` leaves that to `launch.run`."""
    return plan.make_plan(args, dataset, describe(args, dataset))


def check_export(path: Path, data: str | None, overwrite: bool) -> None:
    """RunError for a file that is not to be replaced; nothing is read yet."""
    try:
        if data and os.path.exists(data) and path.exists() and path.samefile(data):
            raise RunError(f"--export {path} is the file of --data: choose another one")
        if path.is_dir():
            raise RunError(f"cannot write {path}: it is a folder")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not os.access(above, os.W_OK):
            raise RunError(f"cannot write {path}: {above} may not be written")
        path.lstat()  # of a link itself, which would be replaced, too
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot write {path}: {said_by(error)}") from error
    if not overwrite:
        raise RunError(f"{path} is there already: pass --overwrite, or choose another --export")


def main(args: argparse.Namespace) -> None:
    if args.export:
        check_export(Path(args.export), args.data, args.overwrite)
        dataset = load(args)
        try:
            save_npz(dataset, Path(args.export))
        except OSError as error:
            raise RunError(f"cannot write {args.export}: {said_by(error)}") from error
        print(f"wrote {args.export}: {len(dataset.train_labels)} training images, {dataset.source}")
        return
    launch.begin(args)
    dataset = load(args)
    launch.run(args, dataset, describe(args, dataset))


if __name__ == "__main__":
    cli.run(main, parse(arguments()))
