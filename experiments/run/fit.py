"""From a data set, a method and settings to trained run folders: `fit`, and `fit_together`.

Either makes the parts of its runs (parts.py), asks whether these go together (compatible.py), and
trains into the folders by one `Trainer` (trainer.py).

Of several seeds in one program every one keeps what a lone run has: its folder, its initial
parameters, its order of rows, its randomness. Alone on its device it ends bitwise where a lone run
on one device ends (to rounding: split_norm, a transformer, a classifier of cosines, which
XLA compiles otherwise there); else numbers agree to rounding, so config.json says which
seeds were together.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from experiments.data import Dataset
from experiments.data.encoded import EncodedDataset
from experiments.host import folders
from experiments.host.errors import RunError, Stopped, flag
from experiments.host.progress import Progress
from experiments.host.stopping import StopRequest
from experiments.models import CONVOLUTIONAL
from experiments.run.compatible import Asked, check
from experiments.run.one import Draw
from experiments.run.parts import Parts, resolved, run_config
from experiments.run.settings import Settings
from experiments.run.trainer import Trainer
from experiments.step.methods import Method, as_method
from experiments.step.objectives import Adversary, LossFn
from experiments.step.seeds import Seeds
from imbsam_jax.rules import Rule


def fit(
    dataset: Dataset | EncodedDataset,
    model_name: str,
    method: Method | Rule,
    loss: LossFn,
    settings: Settings,
    out: str | Path,
    *,
    description: dict[str, Any],
    start: Any = None,
    adversary: Adversary | None = None,
    resume: bool = False,
    deadline: float | None = None,
    quiet: bool = False,
    measure: bool = False,
    draw: Draw | None = None,
) -> dict[str, Any]:
    """Trains one run into its folder and returns its report.

    Args:
      dataset: training and test images, and perhaps held-out ones.
      model_name: a name that `create_model` knows.
      method: how the gradient is taken.
      loss: (logits, labels, step) -> float[B].
      settings: how to train.
      out: the run folder.
      description: the report's fields "experiment", "rule", "rule_args", "loss",
        "imbalance_factor" and whatever else names the run; also kept in config.json.
      start: {"params", "batch_stats"} to start from instead of fresh ones; epochs may then be 0.
      adversary: see Objective.
      resume: continue the run in `out` where there is one.
      deadline: time.monotonic() after which to stop as if by SIGTERM, with exit code 75.
      measure: compile a step and SGD's alone, for the report's FLOPs and milliseconds; else None.
      draw: makes the folder's pictures, None none.

    Raises:
      RunError: bad settings, a folder in use; Diverged: a loss that is not finite.
      Stopped: asked to stop; the state is saved.
    """
    settings.check(least_epochs=1 if start is None else 0)
    settings = resolved(settings)
    parts = Parts(dataset, model_name, loss, settings, start, adversary)
    check(_asked(dataset, method, [parts], settings, description, adversary=adversary))
    trainer = Trainer(dataset, method, [parts], [settings], parts.run_on)
    configs = [run_config(dataset, model_name, settings, description)]
    with _naming_lost_processes():
        (report,) = _into_folders(
            trainer, [Path(out)], configs, resume, deadline, quiet, measure, draw
        )
    return report


def fit_together(
    dataset: Dataset,
    model_name: str,
    method: Method | Rule,
    loss: LossFn,
    settings: Settings,
    outs: Mapping[int, Path],
    *,
    description: dict[str, Any],
    starts: Mapping[int, Any] | None = None,
    resume: bool = False,
    deadline: float | None = None,
    quiet: bool = False,
    measure: bool = False,
    draw: Draw | None = None,
) -> list[dict[str, Any]]:
    """Trains one run of each seed in one program, shared among the devices; their reports.

    In the reports "together" lists the seeds, and seconds_train, seconds_waiting and
    seconds_compile are those of all of them; what a step costs is that of a lone one of one seed.

    Args:
      settings: of all; their seed is not used.
      outs: the run folder of each seed.
      starts: of each seed, as `start` of `fit`.

    The rest is as in `fit`.

    Raises:
      RunError: as `fit`; what cannot be trained together; folders that do not go on from one step.
      Stopped: asked to stop; the states of all seeds are saved, at one step.
    """
    settings.check()
    settings, seeds = resolved(settings), list(outs)
    each = [dataclasses.replace(settings, seed=seed) for seed in seeds]
    starts = starts or {}
    parts = [
        Parts(dataset, model_name, loss, mine, starts.get(mine.seed), own_batches=True)
        for mine in each
    ]
    check(_asked(dataset, method, parts, settings, description, together=seeds))
    trainer = several(dataset, model_name, method, parts, each)
    configs = [run_config(dataset, model_name, mine, description) for mine in each]
    for config, _ in configs:
        config["together"] = seeds
    return _into_folders(
        trainer, list(outs.values()), configs, resume, deadline, quiet, measure, draw
    )


def several(
    dataset: Dataset | EncodedDataset,
    model_name: str,
    method: Method | Rule,
    parts: list[Parts],
    settings: list[Settings],
) -> Trainer:
    """The trainer of runs that differ in their seed alone, in one program."""
    # Model and optimizer are part of a state's structure: by one, all states are one program's.
    structure = jax.tree.structure(parts[0].initial)
    for part in parts:
        part.initial = jax.tree.unflatten(structure, jax.tree.leaves(part.initial))
        part.feed, part.evaluator = parts[0].feed, parts[0].evaluator
    # Of several seeds at once convolutions would be grouped ones, which XLA:CPU runs slowly.
    on_cpu = parts[0].run_on.devices[0].platform == "cpu"
    run_on = Seeds([part.run_on for part in parts], model_name in CONVOLUTIONAL and on_cpu)
    return Trainer(dataset, method, parts, settings, run_on)


def _asked(
    dataset: Any,
    method: Method | Rule,
    parts: list[Parts],
    settings: Settings,
    description: dict[str, Any],
    **more: Any,
) -> Asked:
    return Asked(
        settings,
        as_method(method),
        description.get("rule", ""),
        steps_per_epoch=parts[0].steps_per_epoch,
        multiple=parts[0].feed.multiple,
        batch_norm=parts[0].batch_norm,
        streamed=not isinstance(dataset, Dataset),
        processes=jax.process_count(),
        **more,
    )


def _into_folders(
    trainer: Trainer,
    outs: list[Path],
    configs: list[tuple[dict[str, Any], Any]],
    resume: bool,
    deadline: float | None,
    quiet: bool,
    measure: bool,
    draw: Draw | None,
) -> list[dict[str, Any]]:
    """Trains each run into its folder; the reports, old ones where all runs were finished."""
    first = jax.process_index() == 0
    if resume:
        configs = [
            (folders.as_begun(out, config), preset)
            for out, (config, preset) in zip(outs, configs, strict=True)
        ]
    if len(outs) > 1:  # all, before any is written
        for out, (config, _) in zip(outs, configs, strict=True):
            folders.RunFolder.check(out, config, resume)
    with contextlib.ExitStack() as opened:
        held = []
        for out, (config, _) in zip(outs, configs, strict=True):
            held.append(folders.RunFolder(out, config, resume, owner=first))
            opened.callback(held[-1].close)
        if jax.process_count() > 1:  # the others begin once the first owns the folder
            multihost_utils.sync_global_devices("run folder")
        found = [folder.finished(config) for folder, (config, _) in zip(held, configs, strict=True)]
        finished = [report for report in found if report is not None]
        if len(finished) == len(found):
            return finished
        stop = opened.enter_context(StopRequest(deadline))
        progress = opened.enter_context(Progress(trainer.settings.epochs, quiet or not first))
        for run, folder, (config, preset) in zip(trainer.runs, held, configs, strict=True):
            run.open(folder, config, preset)
            opened.callback(run.close)
        trainer.train(stop, progress)
        reports = trainer.reports(measure, draw)
        # It came too late to stop these runs, but not what may follow.
        if code := stop.signalled_anywhere():
            what = f"{outs[0]} is" if len(outs) == 1 else "all seeds are"
            raise Stopped(f"{what} finished; stopped before anything else", code)
        return reports


@contextlib.contextmanager
def _naming_lost_processes() -> Iterator[None]:
    """Where one of several processes has ended, a step of the others fails: says so."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"a step across processes failed, as it does where one of them has ended ({reason}): "
            f"start all of them again with {flag('resume')}"
        ) from error
