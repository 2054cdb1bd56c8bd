"""Class-conditional SAM: what only its own door has.

Everything it shares with the other methods is tested with theirs: it is a row of rule_table.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
import reference
from imbsam_jax import cc_sam, schedules
from rule_table import (
    CLASSES,
    COUNTS,
    HIDDEN,
    features_fn,
    head_losses_fn,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    to_library,
    to_reference,
)

PHI = 0.3

Params = reference.Params


def logits_of(params: Any, features: Any) -> jax.Array:
    return features @ params["head"]["kernel"] + params["head"]["bias"][None]


def init(dtype: Any = None) -> Any:
    return to_library(init_params(), dtype)


def make(**options: Any) -> Callable[..., Any]:
    options = {"noise_ratio": 1.0, **options}
    return cc_sam.value_and_grad(features_fn, head_losses_fn, COUNTS, **options)


@quick_jit
def sgd_grads(params: Any, x: Any, y: Any) -> Any:
    return jax.grad(lambda p: losses_fn(p, x, y)[0].mean())(params)


# ------------------------------------------------------------------------- against the formula


@pytest.mark.usefixtures("x64")
def test_the_release_mixes_inputs_but_not_the_label_of_the_perturbed_loss() -> None:
    x, first = one_batch(size=8)
    second, lam = first[::-1].copy(), 0.7
    target = lam * reference.soft_labels(first, CLASSES)
    target += (1 - lam) * reference.soft_labels(second, CLASSES)
    params = init_params()

    # By hand: the mixed loss gives the class's direction and the plain part.
    norm_w = np.sqrt((params["w2"] ** 2).sum() + (params["b2"] ** 2).sum())
    k = params["w2"].size + params["b2"].size
    ones = np.ones(len(x)) / len(x)
    expected = reference.scale(1 - PHI, reference.weighted_gradient(params, x, target, ones))
    for c in np.unique(first):
        rows = first == c
        mean = np.ones(rows.sum()) / rows.sum()
        g = reference.weighted_gradient(params, x[rows], target[rows], mean)
        e = {}
        for name in ("w2", "b2"):
            length = np.sqrt((g[name] ** 2).sum())
            radius = np.sqrt(norm_w / (2 * length)) * (k / (COUNTS[c] - 1)) ** 0.25
            e[name] = radius * g[name] / length
        moved = reference.add(params, e)
        part = reference.weighted_gradient(moved, x[rows], first[rows], ones[rows])
        expected = reference.add(expected, reference.scale(PHI, part))

    def mixed_fn(p: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, None]:
        soft = jnp.asarray(target, features.dtype)
        return ij.losses.cross_entropy(logits_of(p, features), soft), None

    f = cc_sam.value_and_grad(
        features_fn, mixed_fn, COUNTS,
        variant="release", flat_ratio=PHI, noise_ratio=1.0, perturbed_losses_fn=head_losses_fn,
    )  # fmt: skip
    _, grads = quick_jit(f)(to_library(params), first, x, first)
    chex.assert_trees_all_close(to_reference(grads), expected, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------- limits


@pytest.mark.usefixtures("x64")
def test_no_perturbed_part_is_sgd() -> None:
    def with_aux(params: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
        return features_fn(params, x, y)[0], {"inputs": x}

    x, y = one_batch()
    f = cc_sam.value_and_grad(
        with_aux, head_losses_fn, COUNTS, variant="release", flat_ratio=0.0, noise_ratio=1.0
    )
    (loss, (of_features, logits)), grads = quick_jit(f)(init(), y, x, y)
    chex.assert_trees_all_close(grads, sgd_grads(init(), x, y), rtol=1e-12)
    losses = reference.per_example_losses(init_params(), x, y)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-12)
    np.testing.assert_array_equal(of_features["inputs"], x)
    np.testing.assert_allclose(logits, losses_fn(init(), x, y)[1], rtol=1e-12)


def test_a_tiny_gradient_stays_finite() -> None:
    def tiny(params: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, None]:
        return 1e-25 * head_losses_fn(params, features, x, y)[0], None

    x, y = one_batch()  # the squares of these gradients are 0 in float32
    f = cc_sam.value_and_grad(features_fn, tiny, COUNTS, noise_ratio=1.0)
    _, grads = quick_jit(f)(init(jnp.float32), y, np.float32(x), y)
    chex.assert_tree_all_finite(grads)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


# ---------------------------------------------------------------------------- the door's manners


def test_bfloat16_parameters_warn() -> None:
    x, y = one_batch()
    with pytest.warns(UserWarning, match="bfloat16"):
        jax.eval_shape(make(), init(jnp.bfloat16), y, jnp.asarray(x, jnp.bfloat16), y)


def program(**options: Any) -> str:
    x, y = one_batch()
    return str(jax.make_jaxpr(lambda p: make(**options)(p, y, x, y, step=10))(init()))


@pytest.mark.usefixtures("x64")
def test_a_noise_ratio_that_is_a_schedule_needs_a_step() -> None:
    schedule = schedules.step_radius((0.1, 0.4), (2,), steps_per_epoch=5)
    assert program(noise_ratio=schedule) == program(noise_ratio=0.4)
    x, y = one_batch()
    with pytest.raises(ValueError, match="pass step="):
        make(noise_ratio=schedule)(init(), y, x, y)


@pytest.mark.usefixtures("x64")
def test_what_is_perturbed_counts_in_full_in_the_paper_and_by_half_in_the_release() -> None:
    assert program() == program(flat_ratio=1.0) != program(flat_ratio=0.5)
    release = program(variant="release")
    assert (
        release
        == program(variant="release", flat_ratio=0.5)
        != program(variant="release", flat_ratio=0.3)
    )


@pytest.mark.usefixtures("x64")
def test_the_classifier_by_name_by_mask_or_by_function() -> None:
    mask = {"hidden": False, "head": {"kernel": True, "bias": True}}
    for classifier in (mask, {"hidden": False, "head": True}, lambda params: mask):
        assert program(classifier=classifier) == program()
    # The rest of the head, too, gets its gradient at the moved kernel.
    x, y = one_batch()
    part = {"hidden": False, "head": {"kernel": True, "bias": False}}
    bias = quick_jit(make(classifier=part))(init(), y, x, y)[1]["head"]["bias"]
    assert np.abs(bias - sgd_grads(init(), x, y)["head"]["bias"]).max() > 1e-6


# ------------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "papers"}, "'paper' or 'release'"),
        ({"perturb": "some"}, "'classifier' or 'all'"),
        ({"noise_ratio": -1.0}, "noise_ratio must be finite and at least 0"),
        ({"noise_ratio": np.nan}, "noise_ratio"),
        ({"noise_ratio": None}, "noise_ratio must be chosen: 1 is printed and 1e-6 released"),
        ({"flat_ratio": 1.5}, "flat_ratio must be between 0 and 1"),
        ({"classes_at_once": 0}, "classes_at_once"),
    ],
)
def test_bad_options_are_refused_when_built(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_class_of_one_example_is_named() -> None:
    with pytest.raises(ValueError, match="class 2 has 1 example"):
        cc_sam.value_and_grad(features_fn, head_losses_fn, [9, 2, 1, 1], noise_ratio=1.0)
    with pytest.raises(ValueError, match="class 1 has count 0"):
        cc_sam.value_and_grad(features_fn, head_losses_fn, [9, 0], noise_ratio=1.0)


def test_bad_calls_are_refused() -> None:
    x, y = one_batch()
    params, x = init(jnp.float32), jnp.asarray(x, jnp.float32)
    with pytest.raises(ValueError, match=r"no parameter lies under 'fc'.*head, hidden"):
        make(classifier="fc")(params, y, x, y)
    with pytest.raises(ValueError, match="marks no parameter"):
        make(classifier={"hidden": False, "head": False})(params, y, x, y)
    soft = np.full((len(y), CLASSES), 0.2, np.float32)
    with pytest.raises(ValueError, match="release groups rows by one class"):
        make(variant="release")(params, soft, x, soft)
    with pytest.raises(ValueError, match="soft labels have 4 classes"):
        make()(params, soft[:, :4], x, soft)
    with pytest.raises(TypeError, match="features_fn must return a pair"):
        of_features = lambda *a: features_fn(*a)[0]  # noqa: E731
        f = cc_sam.value_and_grad(of_features, head_losses_fn, COUNTS, noise_ratio=1.0)
        f(params, y, x, y)
    with pytest.raises(ValueError, match="already averaged"):
        averaged = lambda *a: (head_losses_fn(*a)[0].mean(), None)  # noqa: E731
        cc_sam.value_and_grad(features_fn, averaged, COUNTS, noise_ratio=1.0)(params, y, x, y)


# ------------------------------------------------------------------------------ the second stage


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
    losses_fn = cc_sam.feature_adversary(head_only, COUNTS, variant=variant, strength=0.8)

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
    adversarial = cc_sam.feature_adversary(head_only, COUNTS, variant=variant)

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
        adversarial = cc_sam.feature_adversary(head_only, COUNTS, variant=variant)
        losses_fn = quick_jit(partial(adversarial, share=1.0))
        for params in (head, tiny):
            chex.assert_tree_all_finite(losses_fn(params, y, z, y)[0])

    # A gradient of 1e-25 is a direction like any other: the step has the length asked for.
    def features_seen(params: Any) -> Any:
        seen = []

        def record(params: Any, z: Any, y: Any) -> tuple[jax.Array, None]:
            seen.append(z)
            return head_only(params, z, y)[0], None

        cc_sam.feature_adversary(record, strength=0.5)(params, y, z, y, share=1.0)
        return seen[-1]

    steps = np.asarray(quick_jit(features_seen)(tiny) - z)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.5, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_feature_adversary_of_a_label_of_no_class_is_nan() -> None:
    """Of that row alone, whatever the loss makes of it: it is in no class's norm."""
    z = np.random.default_rng(0).normal(size=(4, HIDDEN))
    y, known = np.array([-1, 0, CLASSES, 0]), np.array([0, 0, 0, 0])
    adversarial = cc_sam.feature_adversary(head_only, COUNTS, variant="release")
    f = quick_jit(partial(adversarial, share=0.5))
    losses, _ = f(init()["head"], y, z, known)
    real = np.array([False, True, False, True])
    np.testing.assert_array_equal(np.isnan(losses), ~real)
    want, _ = adversarial_by_hand(init_params(), z, known, 0.5, "release", 1.0, real)
    np.testing.assert_allclose(losses[real], want[real], rtol=1e-12)


def test_feature_adversary_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="give class_counts"):
        cc_sam.feature_adversary(head_only, variant="release")
    with pytest.raises(ValueError, match="strength"):
        cc_sam.feature_adversary(head_only, strength=-1.0)
    with pytest.raises(ValueError, match="divisor"):
        cc_sam.feature_adversary(head_only, COUNTS, variant="release", divisor=0.0)
    adversarial = cc_sam.feature_adversary(head_only)
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        adversarial({}, np.array([0]), jnp.ones((1, 2)), share=1.1)
