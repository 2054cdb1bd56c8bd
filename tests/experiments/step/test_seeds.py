"""Steps of several seeds in one program, of a step that only counts"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.step import execution
from experiments.step.execution import Jit, Pmap
from experiments.step.seeds import Seeds
from experiments.step.step import Inputs, Rows, StepMetrics

INDEX = np.arange(24, dtype=np.int32).reshape(2, 3, 4)  # of two seeds, three steps of four rows


class Counting(Jit):
    """Its steps add up their rows and the first number of the key."""

    def many(self, method, key=None):
        assert method == "method"

        def steps(state, inputs, rows, positions, whole):
            assert whole == 4 and positions.shape == (4,)
            seen = rows.index.sum(axis=1) + inputs.labels.sum()
            after = {"a": state["a"] + seen.sum() + key[-1], "b": state["b"] * 2}
            return after, StepMetrics(seen, seen, seen)

        return steps


def seeds(in_turn, number):
    devices = jax.local_devices()[:1]
    keys = [jax.random.key(k) for k in (5, 7)[:number]]
    return Seeds([Counting(devices, None, None, key) for key in keys], in_turn)


@pytest.mark.parametrize(("in_turn", "number"), [(False, 2), (True, 2), (True, 1)])
def test_every_seed_has_its_state_its_rows_and_its_key(in_turn, number):
    """Side by side, or one after the other, or alone; the state is given away, data are not."""
    run_on = seeds(in_turn, number)
    states = [{"a": jnp.int32(k), "b": jnp.ones(2) * k} for k in (1, 2)[:number]]
    inputs = run_on.put_inputs(Inputs(None, jnp.array([0, 1])))
    rows = run_on.join_rows([Rows(index=index) for index in INDEX[:number]])
    np.testing.assert_array_equal(rows.index, INDEX[:number])
    joined = run_on.join(states)
    call = run_on.compile_steps("method", joined, inputs, rows)
    assert ("while" in call.as_text()) == (in_turn and number > 1)
    after, seen = call(joined, inputs, run_on.place(rows))
    assert joined["b"].is_deleted() and not inputs.labels.is_deleted()
    for k, (state, mine) in enumerate(
        zip(run_on.split(after), run_on.split_seen(seen), strict=True)
    ):
        np.testing.assert_array_equal(mine.loss, INDEX[k].sum(axis=1) + 1)
        assert int(state["a"]) == k + 1 + INDEX[k].sum() + 3 + (5, 7)[k]
        np.testing.assert_array_equal(state["b"], [2 * (k + 1)] * 2)
    # What was joined are copies.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states))


def test_what_a_lone_step_costs_is_that_of_the_first_seed():
    """On one device, of however many."""
    asked = []
    first, second = (Jit(jax.local_devices()[:1], None, None, jax.random.key(k)) for k in (5, 7))
    for one in (first, second):
        one.devices = ["a", "b", "c"]
        one.on = lambda devices, one=one: asked.append((devices, one)) or "there"
    run_on = Seeds([first, second], False)
    assert run_on.alone() == "there" and asked == [(["a"], first)]
    assert (run_on.devices, run_on.processes) == (["a", "b", "c"], 1)


# ---- devices and processes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "devices", "processes", "local"),
    [(1, 1, 1, 1), (1, 4, 1, 4), (2, 1, 1, 1), (2, 2, 2, 1), (2, 4, 2, 2), (4, 8, 4, 2)],
)
def test_processes_have_equally_many_of_the_devices(there, devices, processes, local, monkeypatch):
    """But for a single device, which each process has for itself; this one is the last of them."""
    monkeypatch.setattr(jax, "process_count", lambda: there)
    monkeypatch.setattr(jax, "process_index", lambda: there - 1)
    monkeypatch.setattr(execution, "Mesh", lambda devices, names, axis_types: (
        devices.tolist(), names, axis_types,
    ))  # fmt: skip
    monkeypatch.setattr(execution, "NamedSharding", lambda mesh, spec: (mesh, spec))
    mesh = (list(range(devices)), ("batch",), (jax.sharding.AxisType.Auto,))
    for kind, apart in ((Jit, 1), (Pmap, devices)):
        made = kind([9], None, None, jax.random.key(0)).on(list(range(devices)))
        assert (made.processes, made._local, made.apart) == (processes, local, apart)
        assert made.part(24) == slice(24 - 24 // processes, 24)
        assert made.replicated == (mesh, jax.sharding.PartitionSpec())
        assert made._rows == (mesh, jax.sharding.PartitionSpec(None, "batch"))


def test_other_passes_and_devices_are_of_another_one():
    """The same but for that; a lone run joins and splits one state."""
    run_on = Jit(jax.local_devices()[:1], "objective", "prepare", jax.random.key(5))
    other = run_on.passing_by("passing")
    assert (other.passing, other._objective, run_on.passing.examples) == (
        "passing", "objective", "dependent",
    )  # fmt: skip
    assert run_on.alone() is run_on and run_on.split_seen("seen") == ["seen"]
    state = {"a": jnp.ones(2)}
    (again,) = run_on.split(run_on.join([state]))
    assert again["a"] is not state["a"] and again["a"].tolist() == [1, 1]
    assert run_on.join_rows(("rows",)) == "rows"


@pytest.mark.parametrize("raw", [True, False])
def test_a_step_lowered_on_the_host_is_that_of_all_rows(raw, monkeypatch):
    """Whatever the devices: nothing is placed, compiled or given away."""
    run_on = Counting(jax.local_devices()[:1], None, None, jax.random.key(5))
    monkeypatch.setattr(
        run_on, "many", lambda method: lambda state, inputs, rows, positions, whole: (
            state @ state.T, rows.index.sum() + positions.sum() + whole,
        ),
    )  # fmt: skip
    state = jnp.ones((8, 16))
    rows = INDEX[0] if raw else Rows(index=INDEX[0])
    lowered = run_on.lower_on_host("method", state, None, rows)
    assert lowered.cost_analysis()["flops"] == pytest.approx(2 * 8 * 8 * 16, rel=0.05)
    assert "tensor<3x4xi32>" in lowered.as_text() and not state.is_deleted()
