"""Balanced classifiers against NumPy: norms, scales, projections, cosines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imbsam_jax import classifiers, landscape

FEATURES, CLASSES = 5, 4
KERNEL = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)) * np.array([3.0, 2.0, 1.0, 0.5])
NORMS = np.sqrt((KERNEL**2).sum(axis=0))
RADIUS = NORMS.min() + 0.1 * (NORMS.max() - NORMS.min())

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.usefixtures("x64")
def test_functions_equal_their_formulas() -> None:
    rng = np.random.default_rng(1)
    x, bias, scales = rng.normal(size=(6, FEATURES)), rng.normal(size=CLASSES), np.arange(1.0, 5.0)
    counts = np.array([50, 20, 9, 1])

    def run(kernel: Any) -> Any:
        logits = x @ kernel + bias[None]
        folded, folded_bias = classifiers.fold_scales(kernel, bias, scales)
        return {
            "tau": classifiers.tau_normalise(kernel, 1.9),
            "tau 0": classifiers.tau_normalise(kernel, 0.0),
            "lws": classifiers.lws_logits(logits, scales),
            "folded": x @ folded + folded_bias[None],
            "radius": classifiers.max_norm_radius(kernel),
            "projected": classifiers.max_norm_project(kernel, RADIUS),
            "cosine": classifiers.normalised_linear(x, kernel),
            "adjusted": classifiers.adjust_logits(logits, counts, tau=0.7),
        }

    logits = x @ KERNEL + bias
    columns = [c * min(1.0, RADIUS / np.sqrt((c**2).sum())) for c in KERNEL.T]
    expected = {
        "tau": np.stack([c / np.linalg.norm(c) ** 1.9 for c in KERNEL.T], axis=1),
        "tau 0": KERNEL,
        "lws": logits * scales,
        "folded": logits * scales,  # the bias is scaled, too
        "radius": RADIUS,
        "projected": np.stack(columns, axis=1),
        "cosine": (x / np.linalg.norm(x, axis=1)[:, None]) @ (KERNEL / NORMS),
        "adjusted": logits - 0.7 * np.log(counts / counts.sum()),
    }
    found = quick(run)(KERNEL)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    # What lies inside the ball is not touched, not even by rounding.
    inside = NORMS < RADIUS
    assert inside.any()
    np.testing.assert_array_equal(found["projected"][:, inside], KERNEL[:, inside])


def test_dtypes_are_kept_and_norms_taken_in_float32() -> None:
    kernel = jnp.full((4096, 2), 0.1, jnp.bfloat16)
    projected = quick(classifiers.max_norm_project)(kernel, 1.0)
    assert projected.dtype == jnp.bfloat16
    # In bfloat16 a sum of 4096 squares stops growing at 256 of them.
    np.testing.assert_allclose(np.linalg.norm(np.float32(projected), axis=0), 1.0, rtol=1e-2)
    assert jax.eval_shape(classifiers.tau_normalise, kernel).dtype == jnp.bfloat16
    assert jax.eval_shape(classifiers.max_norm_radius, kernel).dtype == jnp.float32
    cosines = jax.eval_shape(classifiers.normalised_linear, kernel.T, kernel)
    assert (cosines.shape, cosines.dtype) == ((2, 2), jnp.float32)


def test_zero_columns_and_rows_are_safe() -> None:
    kernel, x = np.float32(KERNEL), np.ones((3, FEATURES), np.float32)
    kernel[:, 1] = x[2] = 0

    def total(x: Any, kernel: Any) -> Any:
        cosines = classifiers.normalised_linear(x, kernel)
        tau = classifiers.tau_normalise(kernel, 1.9)
        inside = classifiers.max_norm_project(kernel, 0.1)
        return (cosines**2).sum() + tau.sum() + inside.sum(), (cosines, tau, inside)

    (of_x, of_kernel), (cosines, tau, inside) = quick(
        jax.grad(total, argnums=(0, 1), has_aux=True)
    )(x, kernel)
    chex.assert_tree_all_finite((of_x, of_kernel))
    np.testing.assert_array_equal(cosines[2], 0)
    np.testing.assert_array_equal(cosines[:, 1], 0)
    np.testing.assert_array_equal(of_x[2], 0)
    np.testing.assert_array_equal(tau[:, 1], 0)
    np.testing.assert_array_equal(inside[:, 1], 0)


NEAR = np.float32(np.random.default_rng(3).normal(size=(FEATURES, CLASSES)))
# By name: the function of a kernel, how its result goes with the kernel's size, what it is at 1.
OF_SIZE: dict[str, tuple[Callable[[Any], Any], int, Any]] = {
    "tau_normalise": (classifiers.tau_normalise, 0, NEAR / np.linalg.norm(NEAR, axis=0)),
    "max_norm_radius": (
        lambda k: classifiers.max_norm_radius(k, 0.0), 1, np.linalg.norm(NEAR, axis=0).min()
    ),
    "max_norm_project": (
        lambda k: classifiers.max_norm_project(k, classifiers.max_norm_radius(k, 0.0)), 1,
        np.linalg.norm(NEAR, axis=0).min() * NEAR / np.linalg.norm(NEAR, axis=0),
    ),
    "normalised_linear": (
        lambda k: classifiers.normalised_linear(k.T, k), 0,
        (NEAR / np.linalg.norm(NEAR, axis=0)).T @ (NEAR / np.linalg.norm(NEAR, axis=0)),
    ),
    "filter_normalised": (
        lambda k: landscape.filter_normalised(k[::-1], k), 1, NEAR[::-1],
    ),
    "a direction of that size": (
        lambda k: landscape.filter_normalised(k, NEAR), 0, NEAR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [1e-28, 1e-23, 1e20, 1e37])
@pytest.mark.parametrize("name", OF_SIZE)
def test_norms_whose_squares_leave_float32(name: str, size: float) -> None:
    of, power, at_one = OF_SIZE[name]
    size = np.float32(size)
    np.testing.assert_allclose(of(jnp.asarray(NEAR * size)) / size**power, at_one, rtol=2e-6)


@pytest.mark.parametrize("size", [1e-21, 1e21])
def test_the_slope_of_a_cosine_far_from_1(size: float) -> None:
    """d cos / dx = (W / ||W|| - cos x / ||x||) / ||x||, which goes as 1 / size."""
    x, w = np.float32(size) * np.array([3.0, 4.0], np.float32), np.array([[1.0], [0.0]], np.float32)
    slope = quick(jax.grad(lambda x, w: classifiers.normalised_linear(x[None], w)[0, 0]))(x, w)
    np.testing.assert_allclose(slope * np.float32(size), [16 / 125, -12 / 125], rtol=1e-5)


def test_normalised_init() -> None:
    init = classifiers.normalised_init
    kernel = quick(init, static_argnums=1)(jax.random.key(0), (64, 100))
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)
    # As many signs of one kind as of the other, and no entry larger than uniform ones are.
    assert abs(np.sign(kernel).mean()) < 5 / np.sqrt(kernel.size)
    assert np.abs(kernel).max() < 1.3 * np.sqrt(3 / 64)
    assert kernel.dtype == jnp.float32
    low = jax.eval_shape(lambda key: init(key, (4, 2), jnp.bfloat16), jax.random.key(0))
    assert (low.shape, low.dtype) == ((4, 2), jnp.bfloat16)


# -------------------------------------------------------------------------------- the projection

PARAMS = {
    "hidden": {"kernel": 9 * np.ones((2, FEATURES))},
    "head": {"kernel": KERNEL, "bias": 9 * np.ones(CLASSES)},
}
HEAD = {"hidden": False, "head": True}


def projected(kernel: Any, radius: float) -> Any:
    norms = np.sqrt((kernel**2).sum(axis=0))
    return kernel * np.minimum(1.0, radius / norms)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("radius", [None, 0.9])
def test_max_norm_projects_after_the_update(radius: Any, every: int) -> None:
    tx = optax.chain(
        optax.sgd(0.1, momentum=0.9),
        classifiers.max_norm(HEAD, radius, every=every),
    )
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)

    traces = []

    @quick
    def step(grads: Any, state: Any, params: Any) -> Any:
        traces.append(every)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(2)
    expected, velocity = jax.tree.map(np.array, PARAMS), jax.tree.map(np.zeros_like, PARAMS)
    ball = RADIUS if radius is None else radius  # None: of the parameters given to init
    for count in range(1, 7):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape), PARAMS)
        params, state = step(grads, state, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        expected = jax.tree.map(lambda p, v: p - 0.1 * v, expected, velocity)
        if count % every == 0:
            expected["head"]["kernel"] = projected(expected["head"]["kernel"], ball)
        chex.assert_trees_all_close(params, expected, rtol=1e-12, atol=1e-14)
    assert len(traces) == 1


def test_max_norm_takes_masks_as_trees_prefixes_and_functions() -> None:
    params = jax.tree.map(jnp.float32, PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    full = {"hidden": {"kernel": False}, "head": {"kernel": True, "bias": False}}
    results = []
    for mask in (HEAD, full, lambda params: full):
        tx = classifiers.max_norm(mask, 1.0)
        updates, _ = tx.update(zeros, tx.init(params), params, value=0.0)  # extra args: ignored
        results.append(updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal(*results)
    np.testing.assert_array_equal(updates["hidden"]["kernel"], 0)
    np.testing.assert_array_equal(updates["head"]["bias"], 0)
    assert float(jnp.abs(updates["head"]["kernel"]).max()) > 0


# ------------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: classifiers.tau_normalise(k[0]), r"kernel must be float\[F, C\]"),
        (lambda k: classifiers.tau_normalise(k, np.inf), "tau must be finite"),
        (lambda k: classifiers.lws_logits(k, jnp.ones(3)), r"scales must be float\[4\]"),
        (lambda k: classifiers.max_norm_radius(k, 1.5), "fraction must be between 0 and 1"),
        (lambda k: classifiers.max_norm_project(k, 0.0), "radius must be positive"),
        (lambda k: classifiers.max_norm_project(k, np.ones(4)), "radius must be a scalar"),
        (lambda k: classifiers.max_norm(HEAD, -1.0), "radius must be positive"),
        (lambda k: classifiers.max_norm(HEAD, every=0), "every must be at least 1"),
        (lambda k: classifiers.max_norm({"b": True}).init({"b": k[0]}), "marks no kernel"),
        (lambda k: classifiers.max_norm(True).update(k, None), "needs params"),
        (lambda k: classifiers.normalised_linear(k, k[0]), "kernel must be"),
        (lambda k: classifiers.adjust_logits(k, [1, 2]), "2 class counts but 4 logits"),
        (lambda k: classifiers.adjust_logits(k, [1, 2, 0, 3]), "class 2 has count 0"),
    ],
)
def test_bad_inputs_are_refused(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(KERNEL, jnp.float32))


def test_a_kernel_of_more_axes_is_no_matrix() -> None:
    """Of a 1x1 convolution, say: with a radius of one's own, too."""
    tx = classifiers.max_norm(True, 2.0)
    with pytest.raises(ValueError, match=r"one is float\[1, 1, 16, 2\]"):
        tx.init({"head": jnp.ones((1, 1, 16, 2))})

    @quick
    def after(params: Any) -> Any:
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return optax.apply_updates(params, updates)["head"]

    norms = np.linalg.norm(after({"head": 3 * np.ones((16, 2), np.float32)}), axis=0)
    np.testing.assert_allclose(norms, 2.0, rtol=1e-6)


def test_an_initialiser_of_whole_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype must be a floating one, got int32"):
        classifiers.normalised_init(jax.random.key(0), (3, 2), jnp.int32)


@pytest.mark.parametrize("tau", [2.0, 1.5, 1.0, 0.0, -0.5])
def test_powers_of_norms_that_leave_the_range_do_no_harm(tau: float) -> None:
    """1e25^2 is no float32, and 1e25 / 1e25^2 is one: the column was 0, and 1e-25's infinite."""
    kernel = np.array([[3e25, 3e-25, 0.0, 3.0], [4e25, 4e-25, 0.0, 4.0]])
    norms = np.where(kernel.any(axis=0), np.sqrt((kernel**2).sum(axis=0)), 1)
    found = classifiers.tau_normalise(jnp.asarray(kernel, jnp.float32), tau)
    np.testing.assert_allclose(found, kernel / norms**tau, rtol=1e-5)
    if tau == 0:
        assert found.tolist() == jnp.asarray(kernel, jnp.float32).tolist()


@pytest.mark.parametrize(
    "shape", [3, (3,), (3, 2, 1), (-3, 2), (3.0, 2), "32", None], ids=lambda shape: str(shape)
)
def test_an_initialiser_says_which_shape_it_takes(shape: Any) -> None:
    with pytest.raises(ValueError, match="shape must be"):
        classifiers.normalised_init(jax.random.key(0), shape)


@pytest.mark.parametrize("dtype", ["flot", None, int, "complex64"])
def test_an_initialiser_says_which_types_it_takes(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be a floating one"):
        classifiers.normalised_init(jax.random.key(0), (3, 2), dtype)


def test_a_lone_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must be float\[B, C\], got shape \[\]"):
        classifiers.adjust_logits(jnp.array(1.0), [9])
    with pytest.raises(ValueError, match=r"logits must be float\[B, C\], got shape \[\]"):
        classifiers.lws_logits(jnp.array(1.0), jnp.array(1.0))


def test_max_norm_says_what_does_not_fit() -> None:
    params = {"head": jnp.array([[1.0, 3.0]]), "bias": jnp.ones(2)}
    tx = classifiers.max_norm({"head": True, "bias": False}, 2.0)
    state = tx.init(params)
    for head, bias in ((np.zeros((1, 2)), None), (np.zeros(2), np.zeros(2))):
        with pytest.raises(ValueError, match="max_norm needs an update for each parameter"):
            tx.update({"head": head, "bias": bias}, state, params)
    with pytest.raises(TypeError, match="max_norm needs its own state"):
        tx.update(params, optax.EmptyState(), params)  # type: ignore[arg-type]
    found, _ = tx.update({"head": np.zeros((1, 2)), "bias": np.zeros(2)}, state, params)
    assert found["head"].tolist() == [[0.0, -1.0]]  # of NumPy's 64 bits without a warning
