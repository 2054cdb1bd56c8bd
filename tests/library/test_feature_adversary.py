"""The loss of CC-SAM's second stage, against a loop over classes in NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
import reference
from rule_table import CLASSES, COUNTS, HIDDEN, init_params, quick_jit, to_library

Params = reference.Params


def init(dtype: Any = None) -> Any:
    return to_library(init_params(), dtype)


def adversarial_by_hand(
    head: Params, z: Any, y: Any, share: float, variant: str, strength: float, real: Any
) -> tuple[Any, Any]:
    """(losses, features at which the adversarial part is taken), class by class in NumPy."""

    def losses_at(z: Any) -> Any:
        target = reference.soft_labels(y, CLASSES)
        return -(target * reference.log_softmax(z @ head["w2"] + head["b2"])).sum(axis=1)

    p = np.exp(reference.log_softmax(z @ head["w2"] + head["b2"]))
    d = (p - reference.soft_labels(y, CLASSES)) @ head["w2"].T * real[:, None]
    moved, u = z.copy(), np.ones(len(y))
    if variant == "paper":
        for i in np.flatnonzero(real):
            moved[i] += strength * d[i] / np.sqrt((d[i] ** 2).sum())
    else:
        u = np.log(COUNTS.max() / COUNTS + 0.01)[y] / 2
        for c in np.unique(y[real]):
            rows = (y == c) & real
            moved[rows] += strength * u[rows][0] * d[rows] / np.sqrt((d[rows] ** 2).sum())
    return (1 - share) * losses_at(z) + share * u * losses_at(moved), moved


def head_only(head: Any, z: Any, y: Any) -> tuple[jax.Array, Any]:
    logits = z @ head["kernel"] + head["bias"][None]
    return ij.losses.cross_entropy(logits, y), logits


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_feature_adversary_equals_the_formula(variant: Any) -> None:
    rng = np.random.default_rng(0)
    params = init_params()
    z, y = rng.normal(size=(9, HIDDEN)), rng.integers(CLASSES, size=9)
    real = np.arange(9) % 4 != 2
    expected, moved = adversarial_by_hand(params, z, y, 0.3, variant, 0.8, real)
    u = np.log(COUNTS.max() / COUNTS + 0.01)[y] / 2 if variant == "release" else np.ones(9)
    losses_fn = ij.losses.feature_adversary(head_only, COUNTS, variant=variant, strength=0.8)

    def mean_loss(head: Any, share: Any) -> Any:
        losses, logits = losses_fn(head, y, jnp.asarray(z), y, share=share, mask=real)
        return losses[real].sum(), (losses, logits)

    # The gradient takes the moved features as they are: nothing flows through the noise.
    def with_constant_noise(head: Any) -> Any:
        there = head_only(head, jnp.asarray(moved), y)[0]
        return (0.7 * head_only(head, jnp.asarray(z), y)[0] + 0.3 * u * there)[real].sum()

    def both(head: Any, share: Any) -> Any:
        return jax.grad(mean_loss, has_aux=True)(head, share), jax.grad(with_constant_noise)(head)

    (grads, (losses, logits)), constant = quick_jit(both)(to_library(params)["head"], 0.3)
    np.testing.assert_allclose(losses[real], expected[real], rtol=1e-12)
    np.testing.assert_allclose(logits, z @ params["w2"] + params["b2"], rtol=1e-12)
    chex.assert_trees_all_close(grads, constant, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_feature_adversary_goes_with_any_rule(variant: Any) -> None:
    z = np.random.default_rng(0).normal(size=(6, HIDDEN))
    y = np.array([0, 4, 1, 4, 2, 0])
    adversarial = ij.losses.feature_adversary(head_only, COUNTS, variant=variant)

    def losses_fn(head: Any, z: Any, y: Any, share: Any) -> Any:
        return adversarial(head, y, z, y, share=share)

    f = quick_jit(ij.value_and_grad(losses_fn, ij.rules.imbsam(COUNTS, rho=0.1, eta=9)))
    (loss, _), grads = f(init()["head"], y, z, y, 0.5)
    chex.assert_tree_all_finite((loss, grads))
    # Share 0 is the plain loss.
    params = init_params()
    by_hand, _ = adversarial_by_hand(params, z, y, 0.0, "paper", 1.0, np.ones(6, bool))
    np.testing.assert_allclose(f(init()["head"], y, z, y, 0.0)[0][0], by_hand.mean(), rtol=1e-12)


def test_feature_adversary_is_finite_at_zero_and_tiny_gradients() -> None:
    y = np.array([0, 1, 1])
    z = jnp.ones((3, HIDDEN), jnp.float32)
    head = {"kernel": jnp.zeros((HIDDEN, CLASSES)), "bias": jnp.zeros(CLASSES)}
    tiny = {"kernel": 1e-25 * init(jnp.float32)["head"]["kernel"], "bias": head["bias"]}
    for variant in ("paper", "release"):
        adversarial = ij.losses.feature_adversary(head_only, COUNTS, variant=variant)
        losses_fn = quick_jit(partial(adversarial, share=1.0))
        for params in (head, tiny):
            chex.assert_tree_all_finite(losses_fn(params, y, z, y)[0])

    # A gradient of 1e-25 is a direction like any other: the step has the length asked for.
    def features_seen(params: Any) -> Any:
        seen = []

        def record(params: Any, z: Any, y: Any) -> tuple[jax.Array, None]:
            seen.append(z)
            return head_only(params, z, y)[0], None

        ij.losses.feature_adversary(record, strength=0.5)(params, y, z, y, share=1.0)
        return seen[-1]

    steps = np.asarray(quick_jit(features_seen)(tiny) - z)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.5, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_feature_adversary_of_a_label_of_no_class_is_nan() -> None:
    """Of that row alone, whatever the loss makes of it: it is in no class's norm."""
    z = np.random.default_rng(0).normal(size=(4, HIDDEN))
    y, known = np.array([-1, 0, CLASSES, 0]), np.array([0, 0, 0, 0])
    adversarial = ij.losses.feature_adversary(head_only, COUNTS, variant="release")
    f = quick_jit(partial(adversarial, share=0.5))
    losses, _ = f(init()["head"], y, z, known)
    real = np.array([False, True, False, True])
    np.testing.assert_array_equal(np.isnan(losses), ~real)
    want, _ = adversarial_by_hand(init_params(), z, known, 0.5, "release", 1.0, real)
    np.testing.assert_allclose(losses[real], want[real], rtol=1e-12)


def test_feature_adversary_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="give class_counts"):
        ij.losses.feature_adversary(head_only, variant="release")
    with pytest.raises(ValueError, match="strength"):
        ij.losses.feature_adversary(head_only, strength=-1.0)
    with pytest.raises(ValueError, match="divisor"):
        ij.losses.feature_adversary(head_only, COUNTS, variant="release", divisor=0.0)
    release = ij.losses.feature_adversary(head_only, [3, 1], variant="release")
    with pytest.raises(ValueError, match="release groups rows by one class"):
        release({}, np.array([[0.5, 0.5]]), jnp.ones((1, 2)), share=0.5)
    adversarial = ij.losses.feature_adversary(head_only)
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        adversarial({}, np.array([0]), jnp.ones((1, 2)), share=1.1)


def test_a_row_without_a_class_that_is_masked_perturbs_no_feature() -> None:
    """Of the released variant, which looks the class up: whatever stands there."""
    head = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)}
    adversary = ij.losses.feature_adversary(
        lambda params, z: (jax.nn.logsumexp(z @ params["kernel"], axis=1), None),
        [10, 2],
        variant="release",
    )
    z = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
    mask = jnp.array([True, True, False])

    @jax.jit
    def found(labels: Any) -> Any:
        f = ij.value_and_grad(
            lambda p, z, y, m: adversary(p, y, z, share=0.5, mask=m), ij.rules.sgd(2)
        )
        return f(head, labels, z, labels, mask, mask=mask)

    want = found(np.array([0, 1, 0]))
    for last in (-1, 99):
        of_last = found(np.array([0, 1, last]))
        for got, leaf in zip(*map(jax.tree.leaves, (of_last, want)), strict=True):
            np.testing.assert_allclose(got, leaf, rtol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_nothing_of_an_infinite_loss_is_nothing(share: float, traced: bool) -> None:
    """As `losses.smoothed` has it: the loss is infinite beyond 1, to where the features move."""

    def walled(p: Any, z: Any) -> Any:
        return jnp.where(z[:, 0] > 1, jnp.inf, p * z[:, 0]), None

    def found(p: Any, share: Any) -> Any:
        f = ij.losses.feature_adversary(walled, strength=5.0)
        losses, _ = f(p, [0, 0], jnp.array([[0.5], [-9.0]]), share=share)
        return losses.sum(), losses

    both = jax.grad(found, has_aux=True)
    slope, losses = (jax.jit(both) if traced else both)(jnp.array(2.0), share)
    want = [1.0 if share == 0 else np.inf, (1 - share) * -18 + share * -8]
    np.testing.assert_allclose(losses, want)
    np.testing.assert_allclose(slope, (1 - share) * (0.5 - 9) + share * -4)


KINDS = {
    "float32": lambda z: jnp.asarray(z, jnp.float32),
    "NumPy's": lambda z: z,  # of 64 bits, which JAX warns of
    "whole": lambda z: jnp.asarray(z, jnp.int32),
    "a list": lambda z: z.tolist(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_any_real_type(kind: str) -> None:
    """z = (1, 0) and w = (2, 0): d = 2 <z, w> w is along (1, 0), at a distance of 1/2 9."""
    losses_fn = ij.losses.feature_adversary(lambda w, z: ((z @ w) ** 2, None), strength=0.5)
    z = KINDS[kind](np.array([[1.0, 0.0], [2.0, 7.0]]))
    found, _ = losses_fn(jnp.array([2.0, 0.0]), jnp.array([0, 1]), z, share=0.25)
    np.testing.assert_allclose(found, [0.75 * 4 + 0.25 * 9, 0.75 * 16 + 0.25 * 25], rtol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_features_are_a_row_for_each_label(variant: Any) -> None:
    losses_fn = ij.losses.feature_adversary(
        lambda w, z: ((z @ w) ** 2, None), [9, 1], variant=variant
    )
    none, _ = losses_fn(jnp.ones(2), jnp.zeros(0, int), jnp.ones((0, 2)), share=0.5)
    assert none.shape == (0,)
    for wrong in (jnp.ones((3, 2)), jnp.array(1.0)):
        with pytest.raises(ValueError, match=r"features must be float\[2, ...\], a row for each"):
            losses_fn(jnp.ones(2), jnp.array([0, 1]), wrong, share=0.5)
    with pytest.raises(ValueError, match="features must be real numbers"):
        losses_fn(jnp.ones(2), jnp.array([0, 1]), {"a": jnp.ones((2, 2))}, share=0.5)
