"""What each of several processes gives to a call and learns by it, looked at in one."""

import jax
import numpy as np
import pytest

from experiments.run.parts import Parts
from experiments.run.settings import Settings
from experiments.step import execution
from experiments.step.execution import EXECUTIONS
from experiments.step.step import Rows
from imbsam_jax import rules
from imbsam_jax.losses import cross_entropy
from tiny import tiny_dataset

INDEX = np.arange(24, dtype=np.int32).reshape(3, 8)


@pytest.fixture(scope="module", params=["jit", "pmap"])
def parts(request):
    """Of a run by two processes, of which this is one, with a device each."""
    settings = Settings(
        epochs=1, batch_size=8, lr=0.05, eval_batch=15, devices=1, parallel=request.param
    )
    made = Parts(tiny_dataset(), "mlp", cross_entropy, settings)
    assert isinstance(made.run_on, EXECUTIONS[request.param])
    made.run_on.processes = 2
    return made


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_each_process_gives_its_part_of_the_rows_and_its_stop(kind, process, monkeypatch):
    """Two processes of two devices; a last batch that cannot be divided is given whole."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    run_on = EXECUTIONS[kind].__new__(EXECUTIONS[kind])
    run_on.devices, run_on.processes, run_on._local = [None] * 4, 2, 2
    run_on._rows, run_on.replicated = "shared", "whole"
    monkeypatch.setattr(EXECUTIONS[kind], "_put", lambda self, x, spread: (x, spread))
    mine = np.arange(8)[process * 4 : process * 4 + 4]
    placed = run_on.place(INDEX, 143)
    odd = run_on.place(INDEX[:, :7])
    streamed = run_on.place(Rows(images=INDEX[:, :4], labels=-INDEX[:, :4]))
    if kind == "jit":
        (rows, spread), (flags, of_flags) = placed[0].index, placed[1]
        np.testing.assert_array_equal(rows, INDEX[:, mine])
        np.testing.assert_array_equal(flags, np.full((3, 2), 143))
        assert spread == of_flags == "shared" and flags.dtype == np.int32
        (rows, spread), (flags, _) = odd[0].index, odd[1]
        np.testing.assert_array_equal(rows, INDEX[:, :7])
        assert spread == "whole" and not flags.any()
        np.testing.assert_array_equal(streamed[0].labels[0], -INDEX[:, :4])
        assert streamed[0].labels[1] == "shared"
        return
    rows, positions, flags = placed
    np.testing.assert_array_equal(rows.index, [INDEX[:, mine[:2]], INDEX[:, mine[2:]]])
    np.testing.assert_array_equal(positions, [mine[:2], mine[2:]])
    np.testing.assert_array_equal(flags, np.full((2, 3), 143))
    assert positions.dtype == odd[1].dtype == np.int32
    rows, positions, flags = odd
    np.testing.assert_array_equal(rows.index, [INDEX[:, :7]] * 2)
    np.testing.assert_array_equal(positions, [np.arange(7)] * 2)
    assert not flags.any() and flags.dtype == np.int32
    rows, positions, _ = streamed
    np.testing.assert_array_equal(rows.labels, [-INDEX[:, :2], -INDEX[:, 2:4]])
    np.testing.assert_array_equal(positions, [mine[:2], mine[2:]])


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_steps_draw_by_the_key_of_the_run_or_by_one_of_several(kind, monkeypatch):
    monkeypatch.setattr(execution, "make_step", lambda *of, **how: "step")
    monkeypatch.setattr(execution, "many_steps", lambda *given: given)
    own, other = jax.random.key_data(jax.random.split(jax.random.key(3)))
    run_on = EXECUTIONS[kind].__new__(EXECUTIONS[kind])
    run_on._objective = run_on._prepare = run_on.passing = None
    run_on.key_data = own
    for given, wanted in ((None, own), (other, other)):
        *rest, key = run_on.many("method", given)("state", "inputs", "rows", "positions", 8)
        assert rest == ["step", "state", "inputs", "rows", "positions", 8]
        np.testing.assert_array_equal(jax.random.key_data(key), wanted)


def test_streamed_rows_that_its_devices_cannot_share_are_refused():
    run_on = EXECUTIONS["jit"].__new__(EXECUTIONS["jit"])
    run_on.devices, run_on.processes, run_on._local = [None] * 4, 2, 2
    with pytest.raises(ValueError, match="3 streamed rows for 2 devices: pad them"):
        run_on._mine(Rows(images=INDEX[:, :3]))


@pytest.mark.allow_rank_promotion
def test_a_call_says_the_largest_stop_that_was_given_with_it(parts):
    run_on = parts.run_on
    inputs = run_on.put_inputs(parts.feed.inputs("train"))
    state = run_on.put_state(parts.initial)
    call = run_on.compile_steps(rules.sgd(5), state, inputs, INDEX)
    for stop, expected in ((None, 0), (143, 143), (75, 75)):
        state, seen = call(state, inputs, run_on.place(INDEX, stop))
        assert int(np.max(seen.stop)) == expected and np.shape(seen.loss) == (3,)
    assert int(np.ravel(jax.device_get(run_on.get_state(state).step))[0]) == 9
