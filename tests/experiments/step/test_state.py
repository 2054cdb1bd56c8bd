"""Which parameters are trained, of a tree with one of every kind"""

import jax
import numpy as np
import pytest
from flax import traverse_util

from experiments.step import state
from experiments.step.objectives import Adversary, Objective
from experiments.step.state import merge, split

HEAD = {("head", "kernel"), ("head", "bias"), ("head", "scales", "scales")}
BLOCK = "blocks_3"
NORMS = {(BLOCK, "norm1", "scale"), (BLOCK, "norm2", "bias")}
# Whatever lies outside of the blocks has a bias and a LayerNorm, too.
OUTSIDE = {("stem", "kernel"), ("stem", "bias"), ("norm", "scale"), ("norm", "bias")}
PATHS = [*HEAD, *NORMS, *OUTSIDE, (BLOCK, "mlp", "kernel"), (BLOCK, "mlp", "bias"),
         (BLOCK, "adapter_down", "kernel"), (BLOCK, "mlp", "adapter_up")]  # fmt: skip
PARAMS = traverse_util.unflatten_dict({path: np.float32(k) for k, path in enumerate(PATHS)})
TRAINED = {
    "all": set(PATHS),
    "head": HEAD,
    "scales": {("head", "scales", "scales")},
    "adapter": HEAD | {(BLOCK, "adapter_down", "kernel"), (BLOCK, "mlp", "adapter_up")},
    "bias": HEAD | {(BLOCK, "mlp", "bias"), (BLOCK, "norm2", "bias")},
    "norm": HEAD | NORMS,
}


@pytest.mark.parametrize("trained", TRAINED)
def test_a_part_is_trained_and_the_rest_is_frozen(trained):
    """The classifier always is, but for its scales alone."""
    assert {path for path in PATHS if state.TRAINED[trained](path)} == TRAINED[trained]
    part, rest = split(PARAMS, trained)
    flat, frozen = traverse_util.flatten_dict(part), traverse_util.flatten_dict(rest)
    assert set(flat) == TRAINED[trained] and set(frozen) == set(PATHS) - TRAINED[trained]
    jax.tree.map(np.testing.assert_array_equal, merge(part, rest), PARAMS)


def test_a_part_that_a_model_has_not_is_refused():
    """A classifier without scales, a model without blocks; the classifier alone is a part."""
    plain = {"stem": {"kernel": 0.0, "bias": 0.0}, "norm": {"bias": 0.0}, "head": {"kernel": 1.0}}
    for trained in ("scales", "adapter", "bias", "norm"):
        with pytest.raises(ValueError, match=f"^this model has no {trained} to train$"):
            split(plain, trained)
    assert split(plain, "head")[0] == {"head": {"kernel": 1.0}}
    with pytest.raises(ValueError, match="unknown part 'body'; choose from all, head, scales, ada"):
        split(plain, "body")


def test_plain_training_has_no_mixup_no_adversary_and_its_own_statistics():
    assert Objective(lambda *_: 0.0, 5)[2:] == (0.0, True, None)
    assert Adversary(lambda fn: fn, lambda step: 1.0).over_the_batch is False
