"""The gradient function in the place of gradients: what Optax and Flax put before, around, after.

Every wrapper of Optax either gives the updates that stand alone would have, or says that the link
comes first. A new wrapper is one more line of WRAPPERS.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from optax import contrib

import imbsam_jax as ij

PARAMS = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(0.5)}
X, Y = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([0.0, 1.0])
LABELS = jnp.array([0, 1])
RULE = ij.rules.imbsam([8, 2], rho=0.1, eta=4)
ONES = {"w": True, "b": True}
SOME = {"w": True, "b": False}
ALIKE = {"w": "a", "b": "a"}


def losses_fn(p: Any, x: Any, y: Any) -> Any:
    return (x @ p["w"] + p["b"] - y) ** 2, None


def fn_of(labels: Any = LABELS) -> Any:
    return ij.class_weighted_grad(losses_fn, labels, X, Y)


def link() -> Any:
    return optax.chain(ij.sharpness_aware(RULE), optax.sgd(0.1))


def gradient() -> Any:
    return ij.value_and_grad(losses_fn, RULE)(PARAMS, LABELS, X, Y)[1]


def assert_close(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def multi(tx: Any, steps: int = 2, **options: Any) -> Any:
    return optax.MultiSteps(tx, steps, **options).gradient_transformation()


WRAPPERS: dict[str, Any] = {
    "chain": optax.chain,
    "named_chain": lambda tx: optax.named_chain(("first", tx)),
    "with_extra_args_support": optax.with_extra_args_support,
    "masked": lambda tx: optax.masked(tx, ONES),
    "masked in part": lambda tx: optax.masked(tx, SOME),
    "masked, prefix": lambda tx: optax.masked(tx, True),
    "masked, function": lambda tx: optax.masked(tx, lambda p: jax.tree.map(lambda _: True, p)),
    "multi_transform": lambda tx: optax.multi_transform({"a": tx}, ALIKE),
    "partition, prefix": lambda tx: optax.partition({"a": tx}, "a"),
    "partition, function": lambda tx: optax.partition(
        {"a": tx}, lambda p: jax.tree.map(lambda _: "a", p)
    ),
    "selective_transform": lambda tx: optax.selective_transform(tx, freeze_mask=SOME),
    "MultiSteps": multi,
    "MultiSteps of one": lambda tx: multi(tx, 1),
    "MultiSteps, sum": lambda tx: multi(tx, use_grad_mean=False),
    "MultiSteps, skip_not_finite": lambda tx: multi(
        tx, should_skip_update_fn=optax.skip_not_finite
    ),
    "MultiSteps, skip_large_updates": lambda tx: multi(
        tx, should_skip_update_fn=lambda *args: optax.skip_large_updates(*args, 1.0)
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": optax.flatten,
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: step < 3, True),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step: step < 3, True
    ),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda scale: optax.chain(tx, optax.scale(scale))
    )(scale=1.0),
    "mechanize": contrib.mechanize,
    "sam": lambda tx: contrib.sam(tx, optax.sgd(0.1)),
    "sam's adversary": lambda tx: contrib.sam(optax.sgd(0.1), tx),
    "schedule_free": lambda tx: contrib.schedule_free(tx, 0.1),
    "split_real_and_imaginary": contrib.split_real_and_imaginary,
    "galore": lambda tx: contrib.galore(0.1, base_optimizer=tx),
}
# These hand on what they are given, and so are right; the others map over it, and are refused.
HAND_ON = {
    "chain", "named_chain", "with_extra_args_support", "inject_hyperparams", "schedule_free",
    "masked, prefix", "partition, prefix",
}  # fmt: skip

BEFORE: dict[str, Any] = {
    "clip": lambda: optax.clip(1.0),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(1.0),
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.1),
    "scale": lambda: optax.scale(1.0),
    "scale_by_schedule": lambda: optax.scale_by_schedule(lambda step: 1.0),
    "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.1),
    "scale_by_sign": optax.scale_by_sign,
    "scale_by_sm3": optax.scale_by_sm3,
    "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
    "add_noise": lambda: optax.add_noise(0.1, 0.1, jax.random.key(0)),
    "trace": lambda: optax.trace(0.9),
    "ema": lambda: optax.ema(0.9),
    "centralize": optax.centralize,
    "zero_nans": optax.zero_nans,
    "normalize_by_update_norm": optax.normalize_by_update_norm,
    "set_to_zero": optax.set_to_zero,
    "sgd": lambda: optax.sgd(0.1),
    "adam": lambda: optax.adam(0.1),
    "reduce_on_plateau": contrib.reduce_on_plateau,
    "another of its kind": lambda: ij.sharpness_aware(RULE),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_works_right_or_says_that_the_link_comes_first(name: str) -> None:
    tx = WRAPPERS[name](link())
    state = tx.init(PARAMS)
    if name in HAND_ON:
        want = jax.tree.map(lambda g: -0.1 * g, gradient())
        assert_close(tx.update(fn_of(), state, PARAMS)[0], want)
        return
    with pytest.raises((TypeError, ValueError), match=r"must come first .* go after it"):
        tx.update(fn_of(), state, PARAMS)


def test_every_wrapper_of_optax_is_tried() -> None:
    """Public functions of Optax that take a transformation, by the names of their parameters."""
    inner = {"inner", "tx", "opt", "optimizer", "base_optimizer", "fast_optimizer", "transforms"}
    tried = " ".join([*WRAPPERS, "lookahead", "inject_hyperparams"])
    others = {"scale_by_galore", "inject_stateful_hyperparams"}  # of one above; deprecated
    for module in (optax, contrib):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                takes = inner & set(inspect.signature(function).parameters)
                assert not takes or name in tried or name in others, name


def test_lookahead() -> None:
    """Its fast weights move by the link's updates: right, as it hands them on."""
    tx = optax.lookahead(link(), sync_period=6, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    updates, _ = tx.update(fn_of(), tx.init(params), params)
    assert_close(updates.fast, jax.tree.map(lambda g: -0.1 * g, gradient()))
    assert_close(updates.slow, jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize("name", BEFORE)
def test_a_link_before_it_fails_at_once(name: str) -> None:
    tx = optax.chain(BEFORE[name](), link())
    with pytest.raises((TypeError, ValueError), match=r"must come first in the chain"):
        tx.update(fn_of(), tx.init(PARAMS), PARAMS, value=1.0)


def test_what_hands_on_its_updates_may_come_first() -> None:
    tx = optax.chain(optax.identity(), link())
    assert_close(
        tx.update(fn_of(), tx.init(PARAMS), PARAMS)[0], jax.tree.map(lambda g: -0.1 * g, gradient())
    )


@pytest.mark.parametrize(
    "use",
    [
        jnp.asarray, np.asarray, jnp.square, jnp.isfinite, jax.jit(lambda fn: 0), optax.tree.norm,
        list, float, abs, lambda fn: 2 * fn, lambda fn: fn * 2, lambda fn: 1 - fn,
        lambda fn: fn["w"], lambda fn: fn.astype(float), lambda fn: fn.shape,
        lambda fn: jax.tree.map(jnp.zeros_like, fn), lambda fn: jax.tree.map(lambda _: 0, fn),
    ],
)  # fmt: skip
def test_it_is_no_array_and_says_what_it_is(use: Any) -> None:
    with pytest.raises(TypeError, match=r"class_weighted_grad .*must come first"):
        use(fn_of())
    fn = fn_of()
    assert jax.tree.map(lambda leaf: leaf, fn) is fn and "must come first" in repr(fn)


def test_the_keyword_is_for_frameworks_that_insist_on_trees() -> None:
    tx = link()
    want = tx.update(fn_of(), tx.init(PARAMS), PARAMS)[0]
    for nothing in (None, {}, [], nnx.State({})):
        got, _ = tx.update(nothing, tx.init(PARAMS), PARAMS, weighted_grad_fn=fn_of())
        assert_close(got, want)


# ------------------------------------------------------------------------------------------ Flax


def test_a_train_state_of_linen_takes_it_for_gradients() -> None:
    model = linen.Dense(3)
    x = jnp.ones((2, 2)) * jnp.array([[1.0], [2.0]])
    params = model.init(jax.random.key(0), x)["params"]
    tx = optax.chain(
        ij.sharpness_aware(RULE), optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)
    )
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def of_model(params: Any, x: Any, labels: Any) -> Any:
        return ij.losses.cross_entropy(model.apply({"params": params}, x), labels), None

    @jax.jit
    def step(state: Any, x: Any, labels: Any) -> Any:
        return state.apply_gradients(grads=ij.class_weighted_grad(of_model, labels, x, labels))

    after = step(state, x, LABELS)
    _, grads = ij.value_and_grad(of_model, RULE)(params, LABELS, x, LABELS)
    scale = jnp.minimum(1, 0.5 / optax.tree.norm(grads))
    assert_close(after.params, jax.tree.map(lambda p, g: p - 0.1 * scale * g, params, grads))
    assert after.step == 1 and "anything" not in fn_of()


def test_an_optimizer_of_nnx_takes_the_keyword() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    x = jnp.array([[1.0, -1.0], [2.0, 0.5]])

    def of_model(params: Any, x: Any, labels: Any) -> Any:
        logits = nnx.merge(graph, params)(x)
        return ij.losses.cross_entropy(logits, labels), None

    optimizer = nnx.Optimizer(model, link(), wrt=nnx.Param)
    fn = ij.class_weighted_grad(of_model, LABELS, x, LABELS)
    pure = nnx.to_pure_dict(params)
    _, grads = ij.value_and_grad(of_model, RULE)(params, LABELS, x, LABELS)
    optimizer.update(model, None, weighted_grad_fn=fn)
    moved = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(moved, jax.tree.map(lambda p, g: p - 0.1 * g, pure, nnx.to_pure_dict(grads)))
    # What becomes of a function in the place of gradients is a state without leaves.
    with pytest.raises(TypeError, match=r"an empty State, .*\(model, None, weighted_grad_fn=fn\)"):
        optimizer.update(model, fn)


# --------------------------------------------------------------------------------- injected rules


def test_an_injected_rule_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"got ClassWeights\. .* inject_hyperparams\(lambda rho: "):
        optax.inject_hyperparams(ij.sharpness_aware)(RULE).init(PARAMS)


@pytest.mark.parametrize("rule", [None, 0.05, "imbsam", RULE(0), {}, [RULE]])
def test_what_is_no_rule_is_refused(rule: Any) -> None:
    with pytest.raises(TypeError, match=r"the rule must be a function of the step"):
        ij.sharpness_aware(rule)
    with pytest.raises(TypeError, match=r"the rule must be a function of the step"):
        ij.rules.stagewise(RULE, rule, switch_step=1)
