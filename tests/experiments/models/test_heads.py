"""The classifiers of `classifier=`, each in NumPy, and what they compute in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.models.heads import CLASSIFIERS, make_head

pytestmark = pytest.mark.allow_rank_promotion  # Flax adds a bias[C] to a batch[B, C]
FEATURES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def cosines(x, p):
    length = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(p["kernel"], axis=0)[None]
    return x @ p["kernel"] / length


# LIFT's code multiplies the cosines by 25 (Shi et al., ICML 2024).
BY_HAND = {
    "linear": linear, "normalised": cosines, "cosine": lambda x, p: 25 * cosines(x, p),
    "scaled": lambda x, p: linear(x, p) * p["scales"],
}  # fmt: skip


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_those_by_hand(classifier, dtype):
    """Of other numbers than the initial ones; never below float32."""
    normal = nn.initializers.normal(0.02)
    head = make_head(classifier, 4, normal, nn.initializers.ones, dtype)
    params = head.init(jax.random.key(0), FEATURES)["params"]
    assert params["kernel"].shape == (5, 4)
    if "bias" in params:
        assert (np.asarray(params["bias"]) == 1).all() and params["bias"].shape == (4,)
    if classifier == "scaled":  # by 1 at first
        assert (np.asarray(params["scales"]) == 1).all() and params["scales"].shape == (4,)
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), params)
    given = jnp.asarray(FEATURES, dtype)
    logits = head.apply({"params": params}, given)
    assert logits.dtype == jnp.float32
    expected = BY_HAND[classifier](np.asarray(given, np.float32), params)
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=1e-5)


def test_an_unknown_classifier():
    with pytest.raises(ValueError, match="'tied': choose from linear, normalised, scaled, cosine"):
        make_head("tied", 4, nn.initializers.ones, nn.initializers.ones, jnp.float32)
