"""Class-conditional SAM: what only its own door has.

Everything it shares with the other methods is tested with theirs: it is a row of rule_table.py.
"""

from __future__ import annotations

from collections.abc import Callable
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
        (
            {"noise_ratio": None},
            "noise_ratio must be chosen: the printed formula has 1, the release 1e-6",
        ),
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
