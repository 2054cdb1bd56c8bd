"""Several seeds in one compiled program, shared among the devices.

Every seed keeps what a lone run has: its folder, its initial parameters, its order of rows, its
randomness. Alone on its device it ends bitwise where a lone run on one device ends (split_norm: to
rounding); else numbers agree to rounding, so config.json says which seeds were together. They make
the same steps and are saved one after the other: a stop leaves all folders at one step, and after a
kill the newest step that all of them hold is gone on from.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import folders
from experiments.data import Dataset
from experiments.errors import RunError, Stopped
from experiments.execution import AXIS, Jit
from experiments.methods import Method
from experiments.models import CONVOLUTIONAL
from experiments.objectives import Loss
from experiments.parts import Parts, resolved, run_config
from experiments.progress import Progress
from experiments.settings import Settings
from experiments.steps import Inputs, Rows, TrainState
from experiments.stopping import StopNow, StopRequest
from experiments.train import _Trainer
from imbsam_jax.rules import Rule

# Of a note: what is one for all seeds.
_SHARED = ("calls", "seconds_train", "seconds_waiting", "seconds_compile")


def fit_together(
    dataset: Dataset,
    model_name: str,
    method: Method | Rule,
    loss: Loss,
    settings: Settings,
    outs: Mapping[int, Path],
    *,
    description: dict[str, Any],
    starts: Mapping[int, Any] | None = None,
    resume: bool = False,
    deadline: float | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Trains one run of each seed, and returns their reports.

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
    _check(dataset, settings, seeds)
    each = {seed: dataclasses.replace(settings, seed=seed) for seed in seeds}
    parts = [
        Parts(dataset, model_name, loss, mine, (starts or {}).get(seed), whole_batches=True)
        for seed, mine in each.items()
    ]
    group = Group(
        dataset, parts, method, list(each.values()), convolutional=model_name in CONVOLUTIONAL
    )
    configs = [run_config(dataset, model_name, mine, description) for mine in each.values()]
    for seed, (config, _) in zip(seeds, configs, strict=True):
        config["together"] = seeds
        folders.RunFolder.check(outs[seed], config, resume)  # all, before any is written
    with contextlib.ExitStack() as opened:
        for member, seed, (config, preset) in zip(group.members, seeds, configs, strict=True):
            folder = folders.RunFolder(outs[seed], config, resume)
            opened.callback(folder.close)
            member.open(folder, config, preset)
            opened.callback(member.close)
        finished = [
            member.folder.finished(config)
            for member, (config, _) in zip(group.members, configs, strict=True)
        ]
        whole = [report for report in finished if report is not None]
        if len(whole) == len(finished):
            return whole
        stop = opened.enter_context(StopRequest(deadline))
        progress = opened.enter_context(Progress(settings.epochs, quiet))
        group.run(stop, progress)
        reports = group.reports()
        if stop.signalled:  # too late to stop these runs, but not what may follow
            raise Stopped("all seeds are finished; stopped before anything else", stop.signalled)
        return reports


def _check(dataset: Any, settings: Settings, seeds: list[int]) -> None:
    """Refuses what cannot be trained together, before anything is written."""
    refused = {
        f"--together trains several seeds, and there is one, {seeds}: use --seeds or "
        "--num-seeds, or leave it out": len(seeds) < 2,
        "--together maps plain jit over seeds: use --parallel jit": settings.parallel != "jit",
        f"--together gives each device the same number of seeds, but {len(seeds)} seeds cannot be "
        f"divided among {settings.devices}: leave --devices out": len(seeds) % settings.devices,
        "--together trains in one process: leave it out": jax.process_count() > 1,
        "--together needs the data set on the device, but this one is streamed: leave it "
        "out": not isinstance(dataset, Dataset),
        f"--together with --examples {settings.examples} would compute all sizes of buffers for "
        "every batch: use --sampling stratified, which has one, or leave --together "
        "out": settings.examples != "dependent" and settings.sampling != "stratified",
    }
    for message, cannot in refused.items():
        if cannot:
            raise RunError(message)


def of_seed(tree: Any, k: int) -> Any:
    """What is seed k's of arrays with a leading axis of seeds."""
    return jax.tree.map(lambda leaf: leaf[k], tree)


class Seeds(Jit):
    """jit of steps of several seeds: states, rows and metrics have a leading axis of seeds.

    Every device has seeds of its own, as many as each other, and nothing to tell the others.

    Args:
      alone: where each seed's own steps would run; they differ in their randomness.
      in_turn: one device's seeds make their steps one after the other, not mapped over.
    """

    def __init__(self, alone: list[Jit], in_turn: bool):
        vars(self).update(vars(alone[0]))
        self._keys, self._in_turn = np.stack([one._key for one in alone]), in_turn
        self._mesh = self.replicated.mesh
        self._by_seed = NamedSharding(self._mesh, P(AXIS))

        def stack(states: list[TrainState]) -> TrainState:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def unstack(states: TrainState) -> list[TrainState]:
            return [of_seed(states, k) for k in range(len(alone))]

        self.stack = jax.jit(stack, out_shardings=self._by_seed)
        self.unstack = jax.jit(unstack, out_shardings=self.replicated)

    def place(self, rows: Rows | np.ndarray, stop: int | None = None) -> Any:
        return jax.device_put(rows, self._by_seed)

    def compile_steps(
        self,
        method: Method | Rule,
        state: TrainState,
        inputs: Inputs | None,
        rows: Rows | np.ndarray,
    ) -> Any:
        def of_device(states: TrainState, inputs: Inputs | None, placed: Rows, keys: Any) -> Any:
            seeds, _, count = jax.tree.leaves(placed)[0].shape[:3]

            def many(one: tuple[TrainState, Rows, Any]) -> Any:
                state, rows, key = one
                return self._many(method, key)(state, inputs, rows, jnp.arange(count), count)

            if seeds == 1:  # no batch dimension in any operation: a lone run's program
                found = many(of_seed((states, placed, keys), 0))
                return jax.tree.map(lambda leaf: leaf[None], found)
            mapped = partial(jax.lax.map, many) if self._in_turn else jax.vmap(many)
            return mapped((states, placed, keys))

        of_each = jax.shard_map(
            of_device, mesh=self._mesh, in_specs=(P(AXIS), P(), P(AXIS), P(AXIS)),
            out_specs=P(AXIS), check_vma=False,
        )  # fmt: skip

        def call(states: TrainState, inputs: Inputs | None, placed: Rows) -> Any:
            return of_each(states, inputs, placed, jnp.asarray(self._keys))

        jitted = jax.jit(call, donate_argnums=0, out_shardings=self._by_seed)
        return jitted.lower(state, inputs, self.place(rows)).compile()


class Group(_Trainer):
    """The trainer of several runs that make the same calls: `open` its members, then `run`.

    Its state is that of all members, its note the first one's: what it shows while an epoch goes
    on is the first seed's.

    Args:
      parts: of each seed; but for what seeds differ in, those of the first serve all.
      settings: of each seed.
      convolutional: what the model mostly consists of.
    """

    run_on: Seeds

    def __init__(
        self,
        dataset: Dataset,
        parts: list[Parts],
        method: Method | Rule,
        settings: list[Settings],
        *,
        convolutional: bool,
    ):
        first = parts[0]
        # Model and optimizer are part of a state's structure: by one, all states are one program's.
        structure = jax.tree.structure(first.initial)
        self.members = []
        for mine, part in zip(settings, parts, strict=True):
            part.initial = jax.tree.unflatten(structure, jax.tree.leaves(part.initial))
            part.feed, part.evaluator = first.feed, first.evaluator
            self.members.append(_Trainer(dataset, part, method, mine, f"seed {mine.seed}: "))
        super().__init__(dataset, first, method, settings[0])
        alone = [part.run_on for part in parts]
        # Of several seeds at once convolutions would be grouped ones, which XLA:CPU runs slowly.
        in_turn = convolutional and alone[0].devices[0].platform == "cpu"
        self.run_on = Seeds(alone, in_turn)

    def restore(self, progress: Progress) -> None:
        for member, found in zip(self.members, self._found(progress.warn), strict=True):
            member.begin(found, progress)
        self.note = self.members[0].note
        self.inputs = self.run_on.put_inputs(self.feed.inputs("train"))
        self.state = self.run_on.stack([member.state for member in self.members])

    def _found(self, say: Any) -> list[Any]:
        """Of each member, its checkpoint of the newest step that all of them can read, or None."""
        held = {member.folder.path: member.checkpoints.steps() for member in self.members}
        for step in sorted(set.intersection(*map(set, held.values())), reverse=True):
            found = [
                member.checkpoints.read(step, member.initial, say, member.contradiction)
                for member in self.members
            ]
            if all(one is not None for one in found):
                return found
        without = [str(path) for path, of_it in held.items() if not of_it]
        if without and any(held.values()):  # a kill between their first saves
            say(f"no checkpoint in {', '.join(without)}: all seeds start afresh")
        elif any(held.values()):
            steps = ", ".join(f"{path}: {of_it or 'none'}" for path, of_it in held.items())
            raise RunError(
                f"no step has a checkpoint that can be read in all folders ({steps}): remove their "
                "checkpoints/ to start again with --resume, or choose another --out"
            )
        return [None] * len(self.members)

    @contextlib.contextmanager
    def batches(self, calls: list[tuple[int, int]]) -> Iterator[Iterator[Rows]]:
        with contextlib.ExitStack() as opened:
            each = [opened.enter_context(member.batches(calls)) for member in self.members]
            yield (
                jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
                for rows in zip(*each, strict=True)
            )

    def _see(self, first_step: int, steps: int, seen: Any) -> None:
        seen = jax.device_get(seen)
        for k, member in enumerate(self.members):
            member._see(first_step, steps, of_seed(seen, k))

    def _hand_out(self) -> None:
        """Gives the members what is theirs of the states, and what all share of the note."""
        states = self.run_on.unstack(self.state)
        for member, state in zip(self.members, states, strict=True):
            member.state = state
            for name in _SHARED:
                setattr(member.note, name, getattr(self.note, name))

    def after_epoch(self, stop: StopRequest, progress: Progress) -> None:
        self._hand_out()
        before = [vars(member.note).copy() for member in self.members]
        try:
            for member in self.members:
                member.after_epoch(stop, progress)
        except StopNow:
            # Closed for all or for none; lines written already go when the runs are resumed.
            for member, note in zip(self.members, before, strict=True):
                vars(member.note).update(note)
            raise

    def save(self) -> int:
        self._hand_out()
        # No save begins before all seeds' last is whole: the steps that two folders keep overlap.
        for member in self.members:
            member.checkpoints.latest_step()
        steps = [member.save() for member in self.members]
        return steps[0]

    def after_training(self, stop: StopRequest) -> None:
        self._hand_out()
        for member in self.members:
            member.after_training(stop)

    def close(self) -> None:
        for member in self.members:
            member.close()

    def reports(self) -> list[dict[str, Any]]:
        """Of each seed, with the cost of one's step."""
        first = self.members[0]
        first.run_on = first.run_on.on_one_device()
        first.inputs = first.run_on.put_inputs(self.feed.inputs("train"))
        cost = first.step_cost()
        return [member.report(cost) for member in self.members]
