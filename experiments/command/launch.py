"""From flags to finished runs, for the entry points of image classification.

An entry point is a module with `arguments()`, `load(args)` and `describe(args, dataset)`; it calls
`begin`, loads its data set, and hands it to `run`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.command import presets
from experiments.command.plan import Plan, make_plan
from experiments.command.seeds import SeedGroup, devices_of, groups, seeds_of, settle_devices
from experiments.host import cli, folders
from experiments.host.devices import join_processes
from experiments.host.errors import RunError


def begin(args: argparse.Namespace) -> None:
    """What comes before the data: refuses flags, meets other processes, settles the devices."""
    if not args.out:
        raise RunError("--out is missing: name the folder this run is to be written to")
    folders.check_run(Path(args.out))
    seeds_of(args)
    if "resize" in args and args.image_size > args.resize:
        raise RunError(
            f"--image-size {args.image_size} cannot be cut from images resized to --resize "
            f"{args.resize}: give a --resize at least as large"
        )
    join(args)
    settle_devices(args)  # now: whatever loads data or makes a plan may start the backend
    cli.use_compilation_cache()
    if args.preset and args.process_id in (None, 0):
        print(presets.explain(args))


def join(args: argparse.Namespace) -> None:
    """Meets the other processes of the run, where there are to be some; before JAX is used."""
    asked = (args.coordinator, args.num_processes, args.process_id)
    if args.cluster and any(x is not None for x in asked):
        raise RunError("--cluster finds the other processes by itself: leave --coordinator, "
                       "--num-processes and --process-id out")  # fmt: skip
    if args.cluster or any(x is not None for x in asked):
        join_processes(*asked, devices_of(args), args.heartbeat_seconds)


def run(args: argparse.Namespace, dataset: Any, about_data: dict[str, Any]) -> None:
    """Trains every seed, and every second stage of each, and shows the table.

    Args:
      args: the flags, of which `begin` made what it could.
      dataset: what the flags describe.
      about_data: see `make_plan`.
    """
    import jax

    from experiments.reports import tables

    reports = train(args, dataset, make_plan(args, dataset, about_data))
    if jax.process_index() == 0:
        tables.show(reports)


def in_full() -> dict[str, Any]:
    """What a run of the command line has beside its training: pictures, and the cost of a step."""
    from experiments.reports import plots

    return {"measure": True, "draw": plots.run_folder}


def train(args: argparse.Namespace, dataset: Any, plan: Plan) -> list[dict[str, Any]]:
    """Trains every seed, and every second stage of each; their reports, in the order of the seeds.

    Of seeds that are trained together these are the first stages; the second ones follow one after
    the other.
    """
    from experiments.run.fit import fit, fit_together
    from experiments.run.parts import initial_variables, last_variables

    seeds = seeds_of(args)
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

    def first_stages(group: SeedGroup) -> list[dict[str, Any]]:
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
