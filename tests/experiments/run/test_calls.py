"""Which calls an epoch has, written out by hand"""

import pytest

from experiments.run.calls import Call, Calls

# Seven steps an epoch, of which the last has fewer rows; a second stage from step 4, a third from
# step 16, in the middle of the third epoch.
CALLS = Calls(epochs=3, steps_per_epoch=7, full_steps=6, steps_per_call=3, starts=[0, 4, 16])
OF_EPOCH = [
    [Call(0, 3, 0), Call(3, 1, 0), Call(4, 2, 1), Call(6, 1, 1)],
    [Call(7, 3, 1), Call(10, 3, 1), Call(13, 1, 1)],
    [Call(14, 2, 1), Call(16, 3, 2), Call(19, 1, 2), Call(20, 1, 2)],
]


def test_no_call_straddles_two_stages_and_a_smaller_batch_is_its_own():
    assert [CALLS.of_epoch(epoch) for epoch in range(3)] == OF_EPOCH
    # Of whole batches alone, in one stage: the last call has what is left.
    whole = Calls(epochs=2, steps_per_epoch=5, full_steps=5, steps_per_call=4, starts=[0])
    assert whole.of_epoch(1) == [Call(5, 4, 0), Call(9, 1, 0)]


def test_after_the_last_epoch_there_are_no_calls():
    assert [CALLS.in_epoch(epoch) for epoch in (0, 1, 2, 3, 9)] == [4, 3, 4, 0, 0]


@pytest.mark.parametrize(
    ("epoch", "calls", "step"),
    [(0, 0, 0), (0, 1, 3), (0, 3, 6), (0, 4, 7), (1, 0, 7), (1, 2, 13), (2, 4, 21), (3, 0, 21)],
)
def test_where_a_training_stands_after_so_many_calls(epoch, calls, step):
    assert CALLS.step_after(epoch, calls) == step
    # And what is left begins there, and goes to the end without a gap.
    left = CALLS.left(epoch, calls)
    for first, steps in left:
        assert first == step
        step += steps
    assert step == 21
    ahead = [call for later in OF_EPOCH[epoch:] for call in later][calls:]
    assert left == [(call.first_step, call.steps) for call in ahead]
