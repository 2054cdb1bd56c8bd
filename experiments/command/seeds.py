"""Which seeds are trained in one program, and on how many devices."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.host import cli, folders
from experiments.host.devices import cores, emulate
from experiments.host.errors import RunError, check_seed
from experiments.models import CONVOLUTIONAL


def seeds_of(args: argparse.Namespace) -> list[int]:
    """--seed, --seeds or --num-seeds, checked."""
    lone = [args.seed] if "seed" in args else []
    seeds = args.seeds or (list(range(args.num_seeds)) if args.num_seeds else lone)
    check_seed(*seeds)
    if len(set(seeds)) < len(seeds):
        raise RunError(f"--seeds must be different numbers; got {seeds}")
    return list(seeds)


class SeedGroup(NamedTuple):
    """Seeds that are trained in one program, or a lone one, and on how many devices."""

    seeds: list[int]
    devices: int
    together: bool


def groups(args: argparse.Namespace, seeds: list[int]) -> list[SeedGroup]:
    """Which seeds are trained together; seeds whose folders hold a run, as they were begun.

    Where nobody said, new ones on a CPU are if they then use no fewer devices than a lone run does:
    on two cores that was faster (results/seeds_together), on a GPU slower (results/accelerator).
    """
    held = _held(args, seeds)
    if args.together:
        return [_all_together(args, seeds, held)]
    if args.together is False:
        return _alone(args, seeds)
    found = _as_begun(args, seeds, held)
    # Of a group that was stopped as it began not every folder holds a run.
    begun = {*held, *(seed for group in found for seed in group.seeds)}
    return found + _new(args, [seed for seed in seeds if seed not in begun])


def _held(args: argparse.Namespace, seeds: list[int]) -> dict[int, dict[str, Any]]:
    """What each seed was begun with, of those that --resume finds begun."""
    configs = {seed: Path(args.out) / f"seed_{seed}" / "config.json" for seed in seeds}
    return {
        seed: folders.begun(config)
        for seed, config in configs.items()
        if args.resume and config.exists()
    }


def _all_together(
    args: argparse.Namespace, seeds: list[int], held: dict[int, dict[str, Any]]
) -> SeedGroup:
    """In the order that they were begun in."""
    begun = [config.get("together") or [] for config in held.values()]
    same = [others for others in begun if sorted(others) == sorted(seeds)]
    return SeedGroup(same[0] if same else seeds, _shared_by(args, seeds, held), True)


def _alone(args: argparse.Namespace, seeds: list[int]) -> list[SeedGroup]:
    return [SeedGroup([seed], devices_of(args), False) for seed in seeds]


def _as_begun(
    args: argparse.Namespace, seeds: list[int], held: dict[int, dict[str, Any]]
) -> list[SeedGroup]:
    """The held seeds, each alone or with those that it was begun with, which must be asked for."""
    found: list[SeedGroup] = []
    for seed, config in held.items():
        others = config.get("together")
        if not others:
            found += _alone(args, [seed])
        elif not set(others) <= set(seeds):
            raise RunError(
                f"{args.out}/seed_{seed} was trained together with others: name them all, --seeds "
                f"{' '.join(map(str, others))}, or choose another --out"
            )
        elif not any(seed in group.seeds for group in found):
            found.append(SeedGroup(others, _shared_by(args, others, held), True))
    return found


def _shared_by(args: argparse.Namespace, group: list[int], held: dict[int, dict[str, Any]]) -> int:
    """The devices of seeds that are trained together: as asked for, or as they were begun."""
    of_held = [held[seed].get("devices", 1) for seed in group if seed in held]
    if args.devices is not None:
        return int(args.devices)
    return int(of_held[0]) if of_held else devices_for_seeds(len(group))


def _new(args: argparse.Namespace, seeds: list[int]) -> list[SeedGroup]:
    number = _devices_of_new(args, len(seeds))
    if number == 1:
        return _alone(args, seeds)
    if not args.quiet:
        print(f"{cli.noun(len(seeds), 'seed')} together on {number} devices (not: --no-together)")
    return [SeedGroup(seeds, number, True)]


def _devices_of_new(args: argparse.Namespace, seeds: int) -> int:
    """For seeds to be trained together; 1 where they had better not be."""
    possible = args.parallel == "jit" and args.examples == "dependent" and args.devices is None
    on_cpu = not jax.distributed.is_initialized() and jax.default_backend() == "cpu"
    if seeds < 2 or not possible or not on_cpu:
        return 1
    number = devices_for_seeds(seeds)
    return number if number >= devices_of(args) else 1


def settle_devices(args: argparse.Namespace) -> None:
    """Emulates the devices of a CPU, before JAX is used; then `devices_of` knows how many."""
    if args.devices is None:
        share = args.batch_size // max(args.accumulate, 1)
        args.devices_by_default = devices_by_default(
            args.devices_by_default, args.model, share, args.examples
        )
    else:
        emulate(args.devices)


def devices_of(args: argparse.Namespace) -> int:
    """The devices of a lone run: --devices, or what is best where nobody said."""
    return int(args.devices_by_default if args.devices is None else args.devices)


def devices_by_default(otherwise: int, model: str, batch_size: int, examples: str) -> int:
    """How many devices to use where nobody said: on a CPU emulated ones, for every core.

    XLA hardly uses a second core for one device's convolutions: a step of ResNet-32 (batch 64) on
    two cores took a sixth to a quarter less time when shared by two devices, one of the MLP two to
    three times as long (results/cpu_cores). More than two have not been tried.

    Args:
      otherwise: the number on accelerators; on a CPU it matters for several processes alone.
      model: one of MODELS.
      batch_size: to be shared evenly.
      examples: rows are chosen on one device.
    """
    if jax.distributed.is_initialized():
        return otherwise
    emulate(min(cores(), 8))
    if jax.default_backend() != "cpu":
        return otherwise
    if model not in CONVOLUTIONAL or examples != "dependent":
        return 1
    return max(n for n in range(1, min(jax.device_count(), 8) + 1) if batch_size % n == 0)


def devices_for_seeds(seeds: int) -> int:
    """Among how many of the devices that JAX has, at most eight of a CPU's, they can be divided."""
    most = jax.device_count() if jax.default_backend() != "cpu" else min(jax.device_count(), 8)
    return max(n for n in range(1, most + 1) if seeds % n == 0)
