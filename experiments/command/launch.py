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
from experiments.host import cli, folders, outputs
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
    show(train(args, dataset, make_plan(args, dataset, about_data)))


def show(reports: list[dict[str, Any]]) -> None:
    """The table of finished runs, by the first process."""
    import jax

    from experiments.reports import tables

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
    seeds = seeds_of(args)
    refuse_others(args, dataset, plan)
    reports: dict[int, list[dict[str, Any]]] = {}
    for group in groups(args, seeds):
        for seed, report in zip(
            group.seeds, _first_stages(args, dataset, plan, group), strict=True
        ):
            reports[seed] = [report]
        for seed in group.seeds:
            reports[seed] += _second_stages(args, dataset, plan, seed)
    return [report for seed in seeds for report in reports[seed]]


def _first_stages(
    args: argparse.Namespace, dataset: Any, plan: Plan, group: SeedGroup
) -> list[dict[str, Any]]:
    from experiments.run.fit import fit, fit_together

    settings = {seed: dataclasses.replace(plan.settings, seed=seed) for seed in group.seeds}
    outs = {seed: _folder(args, seed) for seed in group.seeds}
    finished = args.resume and all((out / "report.json").exists() for out in outs.values())
    starts: dict[int, Any] = {}
    description: dict[str, Any] = {}  # the same of each
    for seed in group.seeds:
        starts[seed], description = _start(args, dataset, plan, settings[seed], not finished)
    if group.together:
        shared = dataclasses.replace(plan.settings, devices=group.devices)
        return fit_together(
            dataset, args.model, plan.method, plan.loss, shared, outs,
            starts=starts, description=description, **_manner(args),
        )  # fmt: skip
    (seed,) = group.seeds
    return [
        fit(
            dataset, args.model, plan.method, plan.loss, settings[seed], outs[seed],
            start=starts[seed], description=description, **_manner(args),
        )
    ]  # fmt: skip


def _second_stages(
    args: argparse.Namespace, dataset: Any, plan: Plan, seed: int
) -> Iterator[dict[str, Any]]:
    from experiments.run.fit import fit
    from experiments.run.parts import last_variables

    first, out = dataclasses.replace(plan.settings, seed=seed), _folder(args, seed)
    for name, stage in plan.second.items():
        trained, fresh = last_variables(out, dataset, args.model, first)
        start = {**trained, "params": stage.start(trained["params"], fresh["params"])}
        description = _start(args, dataset, plan, first, False)[1] | stage.description
        yield fit(
            dataset, args.model, stage.method, stage.loss,
            dataclasses.replace(stage.settings, seed=seed),
            out / _of_stage(args, name),
            start=start, adversary=stage.adversary, description=description, **_manner(args),
        )  # fmt: skip


def refuse_others(args: argparse.Namespace, dataset: Any, plan: Plan) -> None:
    """RunError for a folder of a seed that holds another run, before anything is written.

    What a run is started from, and on how many devices, is left to the run itself.
    """
    from experiments.run.parts import run_config

    if not args.resume:
        return
    seeds = seeds_of(args)
    groups(argparse.Namespace(**{**vars(args), "quiet": True}), seeds)
    for seed in seeds:
        settings = dataclasses.replace(plan.settings, seed=seed)
        config, _ = run_config(dataset, args.model, settings, plan.description)
        wanted = {k: v for k, v in config.items() if k not in ("init", "devices", "steps_per_call")}
        out = _folder(args, seed)
        wanted = folders.as_begun(out, wanted)
        _refuse_other(out, wanted, "a run with other settings", "choose another --out")
        for name, stage in plan.second.items():
            _refuse_other(
                out / _of_stage(args, name), {"stage2": name, **stage.description["stage2_args"]},
                "a second stage of other settings", "--stage2-tag NAME gives them their own folder",
            )  # fmt: skip


def _refuse_other(folder: Path, wanted: dict[str, Any], holds: str, so: str) -> None:
    path = folder / "config.json"
    if path.exists():
        old = outputs.read_object(path)
        old |= old["stage2_args"] if isinstance(old.get("stage2_args"), dict) else {}
        if what := folders.different({key: old.get(key) for key in wanted}, wanted):
            raise RunError(f"{folder} holds {holds} ({what}): {so}")


def _of_stage(args: argparse.Namespace, name: str) -> str:
    return "_".join(filter(None, ["stage2", name, args.stage2_tag]))


def _folder(args: argparse.Namespace, seed: int) -> Path:
    several = args.seeds is not None or args.num_seeds is not None
    return Path(args.out) / (f"seed_{seed}" if several else "")


def _start(
    args: argparse.Namespace, dataset: Any, plan: Plan, settings: Any, needed: bool
) -> tuple[Any, dict[str, Any]]:
    """(what a seed starts from, None for fresh parameters; its description).

    Where it is not needed, as of a finished run, a plan's own start is None, too: it may be long.
    """
    from experiments.run.parts import initial_variables

    start, init = None, None
    if plan.start is not None:
        start, init = plan.start(settings) if needed else None, plan.init
    elif args.init:
        start, init = initial_variables(args.init, dataset, args.model, settings)
    return start, {**plan.description, "init": init}


def _manner(args: argparse.Namespace) -> dict[str, Any]:
    return {"resume": args.resume, "quiet": args.quiet, **in_full()}
