"""Where the steps of several seeds are made, in one program: each device has seeds of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.step.execution import AXIS, Jit
from experiments.step.methods import Method
from experiments.step.state import TrainState
from experiments.step.step import Inputs, Rows
from imbsam_jax.rules import Rule


class Seeds:
    """jit of steps of several seeds: states, rows and metrics have a leading axis of seeds.

    Every device has seeds of its own, as many as each other, and nothing to tell the others.

    Args:
      alone: where each seed's own steps would run; they differ in their randomness.
      in_turn: one device's seeds make their steps one after the other, not mapped over.
    """

    processes = 1

    def __init__(self, alone: list[Jit], in_turn: bool):
        self._alone, self._in_turn = alone, in_turn
        self._first, *_ = alone
        self.devices = self._first.devices
        self._mesh = self._first.replicated.mesh
        self._by_seed = NamedSharding(self._mesh, P(AXIS))

        def stack(states: list[TrainState]) -> TrainState:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        def unstack(states: TrainState) -> list[TrainState]:
            return [of_seed(states, k) for k in range(len(alone))]

        self._stack = jax.jit(stack, out_shardings=self._by_seed)
        self._unstack = jax.jit(unstack, out_shardings=self._first.replicated)

    def alone(self) -> Jit:
        """The first seed's own steps, on one device."""
        return self._first.on(self.devices[:1])

    def put_inputs(self, inputs: Inputs | None) -> Inputs | None:
        return self._first.put_inputs(inputs)

    def join(self, states: list[TrainState]) -> TrainState:
        put = [one.put_state(state) for one, state in zip(self._alone, states, strict=True)]
        return self._stack(put)

    def split(self, state: TrainState) -> list[TrainState]:
        return self._unstack(state)

    def join_rows(self, rows: tuple[Rows, ...]) -> Rows:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def split_seen(self, seen: Any) -> list[Any]:
        seen = jax.device_get(seen)
        return [of_seed(seen, k) for k in range(len(self._alone))]

    def place(self, rows: Rows, stop: int | None = None) -> Any:
        return jax.device_put(rows, self._by_seed)

    def compile_steps(
        self, method: Method | Rule, state: TrainState, inputs: Inputs | None, rows: Rows
    ) -> Any:
        keys = np.stack([one.key_data for one in self._alone])

        def of_device(states: TrainState, inputs: Inputs | None, placed: Rows, keys: Any) -> Any:
            seeds, _, count = jax.tree.leaves(placed)[0].shape  # of an index

            def many(one: tuple[TrainState, Rows, Any]) -> Any:
                state, rows, key = one
                steps = self._first.many(method, key)
                return steps(state, inputs, rows, jnp.arange(count), count)

            if seeds == 1:  # no batch dimension in any operation: a lone run's program
                found = many(jax.tree.map(lambda leaf: leaf.squeeze(0), (states, placed, keys)))
                return jax.tree.map(lambda leaf: leaf[None], found)
            mapped = partial(jax.lax.map, many) if self._in_turn else jax.vmap(many)
            return mapped((states, placed, keys))

        of_each = jax.shard_map(
            of_device, mesh=self._mesh, in_specs=(P(AXIS), P(), P(AXIS), P(AXIS)),
            out_specs=P(AXIS), check_vma=False,
        )  # fmt: skip

        def call(states: TrainState, inputs: Inputs | None, placed: Rows) -> Any:
            return of_each(states, inputs, placed, jnp.asarray(keys))

        jitted = jax.jit(call, donate_argnums=0, out_shardings=self._by_seed)
        return jitted.lower(state, inputs, self.place(rows)).compile()


def of_seed(tree: Any, k: int) -> Any:
    """What is seed k's of arrays with a leading axis of seeds."""
    return jax.tree.map(lambda leaf: leaf[k], tree)
