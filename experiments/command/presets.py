"""Settings of the papers and their released code, by name; a flag given beside one wins.

Where a value was not published the preset says so, and what stands in for it.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.command import clip_recipes
from experiments.command.image_recipes import CIFAR_LT, IMAGENET_LT, INATURALIST, Preset

# What a file written by --export has settled.
OF_AN_EXPORT = ("dataset", "imbalance_factor", "subset", "subset_seed", "data_dir")

# By entry point.
TABLES: dict[str, dict[str, Preset]] = {
    "cifar_lt": CIFAR_LT,
    "imagenet_lt": IMAGENET_LT,
    "inaturalist": INATURALIST,
    "finetune": {name: Preset(*row) for name, row in clip_recipes.ROWS.items()},
}


def add_argument(parser: argparse.ArgumentParser) -> None:
    """--preset, of the table of the parser's experiment."""
    parser.add_argument(
        "--preset",
        choices=sorted(_table(parser)),
        help="settings of a paper or its code; flags win",
    )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parses with the preset's flags as defaults."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", nargs="?")
    name = first.parse_known_args(argv)[0].preset
    presets = _table(parser)
    if name in presets:  # any other name is the real parser's to refuse
        parser.set_defaults(**presets[name].flags)
    found: argparse.Namespace = parser.parse_args(argv)
    return found


def _table(parser: argparse.ArgumentParser) -> dict[str, Preset]:
    return TABLES[parser.get_default("experiment")]


def explain(args: argparse.Namespace) -> str:
    """What --preset expands to, flag by flag, where it comes from and what was not published."""
    preset = TABLES[args.experiment][args.preset]
    words = []
    file = getattr(args, "data", None)
    for key, value in preset.flags.items():
        if file and key in OF_AN_EXPORT:
            words.append(f"  not --{key.replace('_', '-')} {_shown(value)}: {file} decides that")
            continue
        now, flag = getattr(args, key), f"--{key.replace('_', '-')}"
        note = "" if now == value else f"  (preset: {_shown(value)})"
        spelled = _switch(flag, now) if isinstance(now, bool) else f"{flag} {_shown(now)}"
        words.append(f"  {spelled}{note}")
    lines = [f"preset {args.preset}: {preset.source}", *words]
    lines += [f"  not published: {text}" for text in preset.unpublished]
    return "\n".join(lines)


def _switch(flag: str, on: bool) -> str:
    return flag if on else f"--no-{flag.removeprefix('--')}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
