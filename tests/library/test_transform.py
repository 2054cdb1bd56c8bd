"""What must stay true of the Optax door: first in a chain, state of one counter, clear refusals.

Links and wrappers around it are in test_wrappers.py.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imbsam_jax as ij
from imbsam_jax import rules
from imbsam_jax.rows import check_params
from rule_table import (
    BY_ID,
    CLASSES,
    RULES,
    SWITCH,
    Row,
    descent,
    init_params,
    losses_fn,
    one_batch,
    quick_jit,
    row_id,
    to_library,
    to_reference,
)

IMBSAM = BY_ID["imbsam"]
# Of another's kind with other numbers.
LIKE_ANOTHER = ("imbsam_release", "focal_sam_1.1", "reweighted_sam", "gsa_groups")


def assert_trees(got: Any, want: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def fn_of(x: Any, y: Any, mask: Any = None) -> Any:
    return ij.class_weighted_grad(losses_fn, y, x, y, mask=mask)


def start(tx: Any) -> tuple[Any, Any]:
    params = to_library(init_params())
    return params, tx.init(params)


def make_step(tx: Any) -> Any:
    def step(params: Any, state: Any, x: Any, y: Any, **extra: Any) -> Any:
        updates, state = tx.update(fn_of(x, y), state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


# -------------------------------------------------------------------------------- the gradient


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "names",
    [
        ("sse_sam", "imbsam_release-group_mean-decay", "gsa_groups"),
        # Each by itself is in test_trajectory.py, by both doors.
        pytest.param(
            ("imbsam_release", "imbsam-perturb", "gsa-plain", "gsa-projection"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=", ".join,
)
def test_both_doors_agree(names: tuple[str, ...]) -> None:
    x, y = one_batch()
    mask = np.arange(7) > 1
    params = to_library(init_params())
    rows = [BY_ID[name] for name in names]

    @quick_jit
    def both(count: Any) -> Any:
        pairs = {}
        for row in rows:
            state = ij.SharpnessAwareState(count)
            by_optax = row.transform().update(fn_of(x, y, mask), state, params)[0]
            direct = row.value_and_grad(losses_fn)(params, y, x, y, step=count, mask=mask)[1]
            pairs[row.id] = by_optax, direct
        return pairs

    for by_optax, direct in both(0).values():
        assert_trees(by_optax, direct, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_any_weighted_gradient_will_do() -> None:
    """A function written by hand, on the transcription's own gradient."""
    import reference

    x, y = one_batch()
    params = init_params()

    def by_hand(params: Any, class_weights: Any) -> Any:
        weights = np.asarray(class_weights)[y] / len(y)
        return reference.weighted_gradient(to_reference_flat(params), x, y, weights)

    def to_reference_flat(params: Any) -> Any:
        return {name: np.asarray(value) for name, value in params.items()}

    tx = IMBSAM.transform()
    tree = jax.tree.map(jnp.asarray, params)
    grads, _ = tx.update(by_hand, tx.init(tree), tree)
    assert_trees(grads, IMBSAM.gradient(params, x, y, 0, 0.3), atol=1e-13)
    with pytest.raises(ValueError, match=r"group_mean needs to count rows: .* class_weighted_grad"):
        ij.sharpness_aware(IMBSAM.rule(0.1), ascent=ij.Ascent(group_mean=True)).update(
            by_hand, tx.init(tree), tree
        )


def test_weighted_gradient_with_a_mask_divides_by_all_rows() -> None:
    x, y = one_batch()
    params = to_library(init_params())
    weights = np.arange(1.0, 1 + CLASSES)
    mask = np.arange(7) > 2
    got = quick_jit(fn_of(x, y, mask))(params, weights)
    of_real = quick_jit(fn_of(x[mask], y[mask]))(params, weights)
    assert_trees(got, jax.tree.map(lambda g: g * 4 / 7, of_real), atol=1e-6)


# --------------------------------------------------------------------------- state and the count


def test_the_state_is_a_counter_of_updates() -> None:
    tx = IMBSAM.transform()
    params, state = start(tx)
    assert jax.tree.leaves(state) == [0] and state.count.dtype == jnp.int32
    x, y = one_batch()
    after = quick_jit(lambda state: tx.update(fn_of(x, y), state, params)[1])
    for count in (1, 2):
        state = after(state)
        assert state.count == count and state.count.dtype == jnp.int32
    state = after(ij.SharpnessAwareState(jnp.asarray(2**31 - 1, jnp.int32)))
    assert state.count == 2**31 - 1


@pytest.mark.usefixtures("x64")
def test_the_count_is_the_step_of_schedules_and_stages() -> None:
    x, y = one_batch()
    rows = [BY_ID["sam"], BY_ID["sse_sam"]]
    txs = {row.id: row.transform(lambda step: 0.1 * (step + 1)) for row in rows}
    params = to_library(init_params())
    states = {name: tx.init(params) for name, tx in txs.items()}

    @quick_jit
    def update(states: Any) -> Any:
        return {name: tx.update(fn_of(x, y), states[name], params) for name, tx in txs.items()}

    for step in range(SWITCH + 1):
        results = update(states)
        states = {name: state for name, (_, state) in results.items()}
        for row in rows:
            want = row.gradient(init_params(), x, y, step, 0.1 * (step + 1))
            assert_trees(to_reference(results[row.id][0]), want, atol=1e-12)


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=[pytest.mark.slow] * (r.id in LIKE_ANOTHER)) for r in RULES],
    ids=[row_id(r) for r in RULES],
)
def test_state_is_stable_and_steps_trace_once(row: Row) -> None:
    """Under scan (one type of state), under cond (both branches alike), and again from outside."""
    chex.clear_trace_counter()
    tx = optax.chain(row.transform(), descent())
    carry = start(tx)
    x, y = one_batch()
    step = make_step(tx)

    @quick_jit
    @chex.assert_max_traces(n=1)
    def steps(carry: Any, skip: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            carry = jax.lax.cond(skip, lambda *c: c, lambda *c: step(*c, x, y), *carry)
            return carry, None

        return jax.lax.scan(body, carry, length=2)[0]

    for skip in (False, True, False):
        before, carry = carry, steps(carry, skip)
        chex.assert_trees_all_equal_shapes_and_dtypes(before, carry)
    assert carry[1][0].count == 4


def test_params_and_state_may_be_donated() -> None:
    tx = optax.chain(BY_ID["sse_sam"].transform(), descent())
    x, y = one_batch()
    kept, donated = quick_jit(make_step(tx)), quick_jit(make_step(tx), donate_argnums=(0, 1))
    a, b = start(tx), start(tx)
    for _ in range(SWITCH + 1):
        previous = b
        a, b = kept(*a, x, y), donated(*b, x, y)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(previous))
    assert_trees(a, b, rtol=0)


# ------------------------------------------------------------------------------ beside other links


def test_unknown_extra_arguments_are_ignored() -> None:
    tx = optax.chain(IMBSAM.transform(), optax.sgd(0.1))
    x, y = one_batch()
    params, state = start(tx)
    step = make_step(tx)
    more = {"value": 1.0, "grad": None, "nonsense": "?"}
    assert_trees(
        *quick_jit(lambda: (step(params, state, x, y, **more), step(params, state, x, y)))(), rtol=0
    )


def test_a_reduced_learning_rate_reads_its_own_argument() -> None:
    """Extra arguments reach the other links of the chain."""
    tx = optax.chain(
        IMBSAM.transform(), optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=0)
    )
    x, y = one_batch()
    params, state = start(tx)
    step = quick_jit(make_step(tx))
    for value in (1.0, 1.0, 1.0):
        params, state = step(params, state, x, y, value=value)
    assert state[-1].scale < 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", ["sam", "imbsam", "focal_sam", "sse_sam", "sam_tail_weight", "gsa"]
)
def test_the_radius_may_be_injected(name: str) -> None:
    row = BY_ID[name]
    tx = optax.inject_hyperparams(lambda rho: row.transform(rho))(rho=0.3)
    x, y = one_batch()
    params, state = start(tx)
    update = quick_jit(lambda state: tx.update(fn_of(x, y), state, params))
    for step, rho in enumerate((0.3, 0.05, 0.0)):
        state.hyperparams["rho"] = jnp.asarray(rho)
        grads, state = update(state)
        assert_trees(to_reference(grads), row.gradient(init_params(), x, y, step, rho), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_weight_decay_in_the_loss_may_be_injected() -> None:
    rule = BY_ID["sam"].rule(0.3)
    tx = optax.inject_hyperparams(
        lambda weight_decay: ij.sharpness_aware(rule, ascent=ij.Ascent(weight_decay=weight_decay))
    )(weight_decay=0.0)
    x, y = one_batch()
    params, state = start(tx)
    update = quick_jit(lambda state: tx.update(fn_of(x, y), state, params))
    for decay in (0.0, 0.05):
        state.hyperparams["weight_decay"] = jnp.asarray(decay)
        grads, state = update(state)
        want = BY_ID["sam"].gradient(init_params(), x, y, 0, 0.3, weight_decay_in_ascent=decay)
        assert_trees(to_reference(grads), want, atol=1e-12)


def test_injected_radii_follow_schedules() -> None:
    tx = optax.inject_hyperparams(lambda rho: IMBSAM.transform(rho))(
        rho=optax.linear_schedule(0.0, 0.2, 2)
    )
    x, y = one_batch()
    params, state = start(tx)
    after = quick_jit(lambda state: tx.update(fn_of(x, y), state, params)[1])
    for want in (0.0, 0.1, 0.2):
        state = after(state)
        assert float(state.hyperparams["rho"]) == pytest.approx(want)


def test_gradients_may_be_accumulated_after_it() -> None:
    tx = optax.chain(
        IMBSAM.transform(), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    )
    params, state = start(tx)
    step = quick_jit(make_step(tx))
    grads = []
    first = params
    for seed in (1, 2):
        x, y = one_batch(seed)
        grads.append(IMBSAM.gradient(init_params(), x, y, 0, 0.3))
        assert_trees(params, first, rtol=0)
        params, state = step(params, state, x, y)
    want = {
        name: init_params()[name] - 0.05 * (grads[0][name] + grads[1][name]) for name in grads[0]
    }
    assert_trees(to_reference(params), want, atol=1e-5)


def test_masks_and_finite_checks_go_after_it() -> None:
    mask = {"hidden": True, "head": {"kernel": True, "bias": False}}
    tx = optax.chain(
        IMBSAM.transform(),
        optax.masked(optax.add_decayed_weights(0.5), mask),
        optax.apply_if_finite(optax.sgd(0.1), 3),
    )
    params, state = start(tx)
    step = quick_jit(make_step(tx))
    x, y = one_batch()
    grads = IMBSAM.gradient(init_params(), x, y, 0, 0.3)
    want = {
        name: value - 0.1 * (grads[name] + (0 if name == "b2" else 0.5 * value))
        for name, value in init_params().items()
    }
    moved, state = step(params, state, x, y)
    assert_trees(to_reference(moved), want, atol=1e-5)
    # A NaN batch changes nothing, and is counted.
    stayed, state = step(moved, state, np.full_like(x, np.nan), y)
    assert_trees(stayed, moved, rtol=0)
    assert state[-1].notfinite_count == 1


# --------------------------------------------------------------------------------- what is refused


def test_updates_from_elsewhere_are_refused() -> None:
    tx = IMBSAM.transform()
    params, state = start(tx)
    x, y = one_batch()
    for updates in (params, {"callable": fn_of}, 1.0, np.ones(2)):
        with pytest.raises(ValueError, match=r"first in the chain: .*update\(fn, .* go after it"):
            tx.update(updates, state, params, weighted_grad_fn=fn_of(x, y))
    with pytest.raises(TypeError, match=r"a gradient function twice, as updates and as"):
        tx.update(fn_of(x, y), state, params, weighted_grad_fn=fn_of(x, y))
    with pytest.raises(TypeError, match=r"make it with class_weighted_grad.*; got a dict"):
        tx.update(None, state, params, weighted_grad_fn={})


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(optax.clip(1.0), tx),
    ],
    ids=["MultiSteps in a chain", "MultiSteps", "masked", "apply_if_finite", "second"],
)
def test_wrappers_around_it_are_refused(around: Any) -> None:
    """MultiSteps would silently train on the last micro-batch only."""
    tx = around(optax.chain(IMBSAM.transform(), optax.sgd(0.1)))
    params, state = start(tx)
    x, y = one_batch()
    grads = jax.tree.map(jnp.ones_like, params)
    with pytest.raises((ValueError, TypeError), match=r"first in the chain|weighted_grad_fn"):
        tx.update(grads, state, params, weighted_grad_fn=fn_of(x, y))


def test_missing_arguments_are_named() -> None:
    tx = optax.chain(IMBSAM.transform(), optax.sgd(0.1))
    params, state = start(tx)
    x, y = one_batch()
    with pytest.raises(TypeError, match=r"weighted_grad_fn: make it with class_weighted_grad"):
        tx.update(None, state, params)
    with pytest.raises(TypeError, match="weighted_grad_fn"):
        tx.update(None, state, params, gradient_fn=fn_of(x, y))
    with pytest.raises(ValueError, match=r"needs params: call update\(fn, state, params"):
        tx.update(fn_of(x, y), state)


@pytest.mark.parametrize("dtype", [int, np.uint8, np.int8])
def test_a_gradient_function_that_returns_whole_numbers_is_refused(dtype: Any) -> None:
    """They would be taken for the gradient, whatever was cut off them."""
    params = {"w": jnp.ones(2)}
    tx = IMBSAM.transform()
    with pytest.raises(TypeError, match=r"returns\['w'\] must be real and floating, got "):
        tx.update(lambda theta, w: {"w": np.ones(2, dtype)}, tx.init(params), params)


def test_coarse_parameters_warn() -> None:
    tx = ij.sharpness_aware(rules.sam(CLASSES, rho=0.1))
    params = to_library(init_params(), jnp.bfloat16)
    x, y = one_batch()
    with pytest.warns(UserWarning, match="is bfloat16"):
        grads, _ = jax.eval_shape(
            lambda params: tx.update(fn_of(x, y), tx.init(params), params), params
        )
    chex.assert_trees_all_equal_dtypes(grads, params)


def test_coarse_parameters_that_are_one_array_are_named_in_the_warning() -> None:
    with pytest.warns(UserWarning, match="^parameter params is float16: at usual radii"):
        check_params(np.ones(2, np.float16))
