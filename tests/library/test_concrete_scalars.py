"""Numbers that are known while a program is traced, JAX's and NumPy's, of any width."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import (
    cc_sam,
    classifiers,
    curvature,
    landscape,
    passes,
    rules,
    schedules,
    sharpness,
)
from imbsam_jax.experimental import remembered

COUNTS = [60, 30, 9, 2]
PARAMS = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
Y = jnp.array([0, 1, 2, 3, 0, 1])
KEY = jax.random.key(0)


def losses_fn(params: Any, x: Any, y: Any) -> Any:
    return ij.losses.cross_entropy(x @ params["a"], y), None


def grads(rule: Any, step: Any = None, **options: Any) -> Any:
    f = ij.value_and_grad(losses_fn, rule, **options)
    return lambda p: f(p, Y, X, Y, step=step)[1]


def deviation(number: Any) -> Any:
    def f(p: Any) -> Any:
        scores = (X @ p["a"])[:, 0]
        return ij.losses.deviation_loss(
            scores, Y % 2, reference_mean=number(0.1), reference_std=number(1.2)
        )

    return f


def density(number: Any) -> Any:
    grid = np.linspace(-1, 9, 5) if number is float else jnp.linspace(-1, 9, 5)

    def f(p: Any) -> Any:
        like = p["a"][0]
        return ij.curvature.spectral_density(
            lambda v: 2 * v, like, grid, key=KEY, iterations=2, probes=2
        )

    return f


def staged(number: Any, step: Any) -> Any:
    rule = rules.sse_sam(COUNTS, head_rho=0.1, tail_rho=0.2, eta=10, switch_step=number(3))
    return grads(rule, step=number(step))


# By name, of what makes a number: a function of the parameters.
USES: dict[str, Any] = {
    "rho": lambda n: grads(rules.imbsam(COUNTS, rho=n(0.1), eta=n(10))),
    "rho of a schedule": lambda n: grads(rules.sam(4, rho=lambda step: n(0.1)), step=2),
    "strength": lambda n: grads(rules.focal_sam(COUNTS, rho=0.1, gamma=n(2.0), strength=n(0.5))),
    "weight_decay": lambda n: grads(rules.sam(4, rho=0.1), ascent=ij.Ascent(weight_decay=n(0.01))),
    "step before": lambda n: staged(n, 1),
    "step after": lambda n: staged(n, 5),
    "reference": deviation,
    "grid": density,
    "sharpness": lambda n: lambda p: sharpness.average(
        losses_fn, p, Y, X, Y, key=KEY, radius=n(0.3), directions=2
    ),
    "max_norm_project": lambda n: lambda p: classifiers.max_norm_project(p["a"], n(0.5)),
    "step of a schedule": lambda n: lambda p: ij.schedules.linear_radius(
        0.1, 0.2, epochs=5, steps_per_epoch=2
    )(n(3)),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_a_number_of_jax_inside_of_jit_is_a_number(use: str) -> None:
    """Closed over, inside of jit; as Python's outside of it."""
    held: dict[float, jax.Array] = {}

    def number(value: float) -> jax.Array:
        return held.setdefault(value, jnp.asarray(value))

    want = USES[use](float)(PARAMS)
    eager = USES[use](number)
    within = jax.jit(lambda p: {"jit": eager(p), "made inside": USES[use](number)(p)})
    for name, found in {"eager": eager(PARAMS), **within(PARAMS)}.items():
        for got, leaf in zip(*map(jax.tree.leaves, (found, want)), strict=True):
            np.testing.assert_allclose(got, leaf, rtol=5e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("counts, eta", [([2**33, 2**32 + 5, 5], 10.0), ([2**24 + 1, 5], 2.0**24)])
def test_an_eta_of_jax_cuts_no_count_to_its_width(counts: list[int], eta: float) -> None:
    want = [False] * (len(counts) - 1) + [True]
    for given in (eta, np.float64(eta), np.float32(eta), jnp.asarray(eta, jnp.float32)):
        assert ij.tail_classes(counts, given).tolist() == want
    known = jnp.asarray(eta)
    assert jax.jit(lambda x: x + ij.tail_classes(counts, known))(0).tolist() == want


@pytest.mark.parametrize("of", [np.float16, np.float32, np.float64, jnp.float32, np.int8])
def test_a_factor_of_any_type_gives_the_list_of_its_value(of: Any) -> None:
    for classes, most, factor in ((10, 5000, 100), (365, 5872, 7)):
        want = ij.long_tail_counts(classes, most, float(factor))
        np.testing.assert_array_equal(ij.long_tail_counts(classes, most, of(factor)), want)


# Parameters of float32, and of both types, where JAX's default is float64.
MIXED = {**PARAMS, "b": jnp.zeros(4)}
HEADS = [2, 60, 30, 9]


def biased(p: Any, x: Any, y: Any) -> Any:
    logits = x @ p["a"]
    if "b" in p:
        logits = logits.astype(p["b"].dtype) + p["b"][None]
    return ij.losses.cross_entropy(logits, y), None


def outputs(p: Any, x: Any, y: Any) -> Any:
    return biased(p, x, y)[0][:, None], None


def on_top(p: Any, z: Any, x: Any, y: Any) -> Any:
    return biased(p, z, y)


def of_link(p: Any) -> Any:
    tx = ij.sharpness_aware(rules.focal_sam(COUNTS, rho=0.1, gamma=1.0, strength=0.5))
    return tx.update(ij.class_weighted_grad(biased, Y, X, Y), tx.init(p), p)[0]


def of_memory(p: Any, decay: Any) -> Any:
    rule = rules.imbsam(COUNTS, rho=0.1, eta=10)
    f = remembered.value_and_grad(biased, rule, decay=decay)
    return f(p, remembered.init(p, rule), Y, X, Y)


def of_class(variant: Any) -> Any:
    def f(p: Any, ratio: Any) -> Any:
        door = cc_sam.value_and_grad(
            lambda p, x, y: (x, None), on_top, COUNTS, variant=variant, perturb="all",
            noise_ratio=ratio, flat_ratio=ratio, classes_at_once=3,
        )  # fmt: skip
        return door(p, Y, X, Y)

    return f


def of_step(rule: Any, **options: Any) -> Any:
    mask = jnp.array([True] * 5 + [False])
    return lambda p, rho, step: ij.value_and_grad(biased, rule(rho), **options)(
        p, Y, X, Y, step=step, mask=mask
    )


def staged_by(rho: Any) -> Any:
    first = rules.sam(4, rho=schedules.step_radius(steps_per_epoch=2))
    return rules.stagewise(first, rules.sam(4, rho=rho), switch_step=3)


def of_normed(x: Any) -> Any:
    scale = np.ones(3)
    return ij.batch_norm(x, scale, scale), ij.batch_renorm(x, scale, scale)


def with_normed(p: Any, x: Any, y: Any) -> Any:
    normed, mean, var = ij.batch_norm(x)
    return biased(p, normed, y)[0], (mean, var)


# By name: a function, and what it is given, traced: "p" for parameters of both kinds.
STRICT: dict[str, tuple[Any, ...]] = {
    "sgd": (of_step(lambda rho: rules.sgd(4), info=True), "p", 0.1, 3),
    "sam": (of_step(lambda rho: rules.sam(4, rho=rho), info=True), "p", 0.1, 3),
    "imbsam": (of_step(lambda rho: rules.imbsam(COUNTS, rho=rho, eta=10), info=True), "p", 0.1, 3),
    "group_mean": (
        of_step(
            lambda rho: rules.reweighted_sam(COUNTS, rho=rho, eta=10, tail_weight=2.0),
            ascent=ij.Ascent(group_mean=True, weight_decay=0.1),
        ),
        "p", 0.1, 3,
    ),
    "p of 3": (
        of_step(
            lambda rho: rules.sse_sam(COUNTS, head_rho=rho, tail_rho=0.1, eta=10, switch_step=5),
            ascent=ij.Ascent(p=3, adaptive=ij.asam_scale()),
        ),
        "p", 0.1, 3,
    ),
    "gsa": (of_step(lambda rho: rules.gsa(COUNTS, groups=[0, 0, 1, 1], scale=rho)), "p", 0.1, 3),
    "stagewise": (of_step(staged_by), "p", 0.1, 3),
    "micro_batches": (
        of_step(lambda rho: rules.sam(4, rho=rho), passes=passes.whole(2)), "p", 0.1, 3
    ),
    **{
        name: (
            of_step(
                lambda rho: rules.imbsam(COUNTS, rho=0.1, eta=10), passes=how(lambda classes: (5,))
            ),
            "p", 0.1, 3,
        )
        for name, how in {"own_rows": passes.own_rows, "split_norm": passes.split_norm}.items()
    },
    "shared_norm": (
        lambda p: ij.value_and_grad(
            with_normed, rules.imbsam(COUNTS, rho=0.1, eta=10),
            passes=passes.shared_norm(lambda classes: (5,)),
        )(p, Y, X, Y),
        "p",
    ),
    "sharpness_aware": (of_link, "p"),
    "remembered": (of_memory, "p", 0.5),
    "cc_sam": (of_class("paper"), "p", 0.5),
    "cc_sam of the release": (of_class("release"), "p", 0.5),
    "hvp": (lambda p: curvature.hvp(biased, p, Y, X, Y, class_weights=HEADS, batch_size=4)(p), "p"),
    "gnvp": (
        lambda p: curvature.gnvp(outputs, lambda z, x, y: (z[:, 0] ** 2, None), p, Y, X, Y)(p), "p"
    ),
    "extreme_eigenvalues": (
        lambda p: curvature.extreme_eigenvalues(lambda v: v, p, key=KEY, iterations=3), "p"
    ),
    "trace": (lambda p: curvature.trace(lambda v: v, p, key=KEY, probes=3), "p"),
    "spectral_density": (
        lambda p, v: curvature.spectral_density(
            lambda v: v, p, [0.0, 2.0], key=KEY, probes=2, iterations=3, variance=v
        ),
        "p", 0.1,
    ),
    "of_rule": (
        lambda p, rho: sharpness.of_rule(
            biased, rules.imbsam(COUNTS, rho=rho, eta=10), p, Y, X, Y, class_weights=HEADS
        ),
        "p", 0.1,
    ),
    "average": (
        lambda p, r: sharpness.average(biased, p, Y, X, Y, radius=r, key=KEY, directions=2),
        "p", 0.1,
    ),
    "worst": (
        lambda p, r: sharpness.worst(biased, p, Y, X, Y, radius=r, key=KEY, steps=2), "p", 0.1
    ),
    "random_direction": (lambda p: landscape.random_direction(p, key=KEY), "p"),
    "filter_normalised": (lambda p: landscape.filter_normalised(p, p), "p"),
    "line": (lambda p: landscape.line(p, jax.tree.map(jnp.cos, p)), "p"),
    "plane": (
        lambda p: landscape.plane(p, jax.tree.map(jnp.cos, p), jax.tree.map(jnp.sin, p)), "p"
    ),
    "grid": (lambda t: landscape.grid(t, np.arange(3), jnp.float32([1])), jnp.ones(2, jnp.float16)),
    "losses": (
        lambda p: landscape.losses(biased, p, [p], [[1]], Y, X, Y, class_weights=HEADS), "p"
    ),
    "step_radius": (schedules.step_radius(steps_per_epoch=2), 3),
    "late_radius": (schedules.late_radius(0.1, 0.2, epochs=9, steps_per_epoch=2), 3),
    "linear_radius": (schedules.linear_radius(epochs=9, steps_per_epoch=2), 3),
    "ramp": (schedules.ramp(epochs=9, steps_per_epoch=2), 3),
    "batch_norm and batch_renorm": (of_normed, X),
    "max_norm": (
        lambda p, radius, every: (tx := classifiers.max_norm({"a": True}, radius, every=every))
        .update(p, tx.init(p), p),
        PARAMS, 0.1, 3,
    ),
    "deferred": (
        lambda z, step: ij.losses.deferred(
            ij.losses.cross_entropy, ij.losses.focal(), switch_step=jnp.uint8(3)
        )(z, Y, step),
        X @ PARAMS["a"], 3,
    ),
    "feature_adversary": (
        lambda p, share: ij.losses.feature_adversary(
            lambda p, z: biased(p, z, Y), COUNTS, variant="release", strength=share
        )(p, Y, X, share=share),
        "p", 0.1,
    ),
    "metrics": (
        lambda total: ij.metrics.shot_accuracies(np.array([1, 2]), total, {"few": [True, False]}),
        jnp.array([2, 3]),
    ),
}  # fmt: skip


def given_as(value: Any, number: Any, step: Any) -> list[Any]:
    if isinstance(value, str):
        return [PARAMS, {**MIXED, "b": jnp.zeros(4, jnp.result_type(float))}]
    if isinstance(value, float):
        return [jnp.asarray(value, number)]
    return [jnp.asarray(value, step)] if isinstance(value, int) else [value]


def traced(name: str, like: bool | None = None) -> None:
    """With numbers of every width; where JAX refuses to promote one it does so in tracing.

    Beside parameters of every type: those of float32 with numbers that are `like` them or not.
    """
    f, *given = STRICT[name]
    widths = [(jnp.float32, jnp.int32), (float, jnp.uint32)]
    numbers = any(isinstance(value, int | float) for value in given)
    for wide, (number, step) in enumerate(widths if numbers else widths[:1]):
        several = itertools.product(*(given_as(value, number, step) for value in given))
        for mixed, args in enumerate(several):
            if like is None or not numbers or "p" not in given or like == (mixed == wide):
                jax.eval_shape(f, *args)


@pytest.mark.parametrize("like", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STRICT)
def test_strict_types_with_numbers_of_64_bits(name: str, like: bool, x64: None) -> None:
    """float32 parameters, and some of float64 beside them, where JAX's default is float64."""
    with jax.numpy_dtype_promotion("strict"):
        traced(name, like)


@pytest.mark.parametrize("name", [name for name in STRICT if "radius" in name or name == "ramp"])
def test_strict_types_with_numbers_of_32_bits(name: str) -> None:
    with jax.numpy_dtype_promotion("strict"):
        traced(name)


def test_numbers_of_64_bits_change_no_step_in_float32(x64: None) -> None:
    made = {
        "sam": rules.sam(4, rho=0.1), "imbsam": rules.imbsam(COUNTS, rho=0.1, eta=10),
        "gsa": rules.gsa(COUNTS, groups=[0, 0, 1, 1]),
    }  # fmt: skip
    mask = jnp.array([True] * 5 + [False])

    def steps(params: Any) -> Any:
        ascent = ij.Ascent(weight_decay=0.01)
        return {
            name: ij.value_and_grad(losses_fn, rule, ascent=ascent, info=True)(
                params, Y, X, Y, mask=mask
            )
            for name, rule in made.items()
        }

    want = jax.jit(steps)(PARAMS)
    with jax.numpy_dtype_promotion("strict"):
        found = jax.jit(lambda params: steps(params))(PARAMS)
    for name, got in found.items():
        assert got[1]["a"].dtype == jnp.float32, name
        for mine, leaf in zip(*map(jax.tree.leaves, (got, want[name])), strict=True):
            np.testing.assert_allclose(mine, leaf, rtol=1e-6, err_msg=name)


def test_never_is_any_number_of_steps() -> None:
    """Also where the step is traced, an int32."""
    rule = rules.sse_sam(COUNTS, head_rho=0.1, tail_rho=0.2, eta=10, switch_step=10**10)
    f = ij.value_and_grad(losses_fn, rule)
    want = jax.jit(lambda: f(PARAMS, Y, X, Y, step=0)[1])()
    of_step = jax.jit(lambda step: f(PARAMS, Y, X, Y, step=step)[1])
    np.testing.assert_allclose(of_step(7)["a"], want["a"], rtol=1e-6)
    plain = ij.losses.cross_entropy
    late = ij.losses.deferred(plain, ij.losses.weighted(plain, [2.0] * 4), switch_step=10**10)
    logits = X @ PARAMS["a"]
    np.testing.assert_allclose(
        jax.jit(lambda step: late(logits, Y, step))(7), plain(logits, Y), rtol=1e-6
    )
    for dtype in (jnp.int8, jnp.int16, jnp.uint8):  # wraps no number it is held against
        step = jnp.asarray(5, dtype)
        found = jax.jit(lambda step: late(logits, Y, step))(step)
        np.testing.assert_allclose(found, plain(logits, Y), rtol=1e-6)
        np.testing.assert_allclose(of_step(step)["a"], want["a"], rtol=1e-6)
        ramp = ij.schedules.ramp(epochs=4, steps_per_epoch=50000)
        np.testing.assert_allclose(jax.jit(ramp)(step), ramp(5))
    narrow = ij.schedules.linear_radius(0.1, 0.2, epochs=5, steps_per_epoch=np.int8(100))
    assert narrow(450) == 0.2
    tx = classifiers.max_norm(True, 0.1, every=10**10)
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    np.testing.assert_array_equal(tx.update(still, tx.init(PARAMS), PARAMS)[0]["a"], still["a"])
    with pytest.raises(ValueError, match="step must be a step number"):
        late(logits, Y, "5")


# ------------------------------------------------------------- whole numbers of narrow types

ROWS, ONE = jnp.ones(101), jnp.array(1.0)
ZEROS = jnp.zeros(101, int)


def half_squares(w: Any, x: Any) -> Any:
    """Of ones at 1: 1/2, a slope of 1 and a curvature of 1."""
    return (x * w) ** 2 / 2, None


def of_data(function: Any, *given: Any, **options: Any) -> Any:
    """101 rows in two parts of 50 and a third: 3 * 50 is no int8."""
    return lambda n: function(half_squares, *given, ZEROS, ROWS, batch_size=n(50), **options)


def by_class(n: Any) -> Any:
    """CC-SAM over 300 classes, 7 of them at once."""
    f = cc_sam.value_and_grad(
        lambda p, x: (x, None), lambda p, z, x: half_squares(p["head"], z), [5] * 300,
        noise_ratio=0.0, classes_at_once=n(7),
    )  # fmt: skip
    return f({"head": ONE}, jnp.arange(300), jnp.ones(300))[1]["head"]


def in_micro_batches(n: Any) -> Any:
    f = ij.value_and_grad(half_squares, rules.sgd(2), passes=passes.whole(n(4)))
    return f(ONE, jnp.zeros(300, int), jnp.ones(300))[1]


def of_schedule(make: Any, step: int) -> Any:
    """Of a known step and of a traced one; make takes what makes a whole number."""
    return lambda n: (make(n)(step), jax.jit(make(n))(step))


def in_buffers(buffers: Any) -> Any:
    return buffers(np.array([True, True]))


def doubled(v: Any) -> Any:
    return jnp.array([[1.0, 2.0], [2.0, 3.0]]) @ v


# By name, of what makes a whole number: what comes of it, and the closed form.
WHOLE: dict[str, tuple[Any, Any]] = {
    "batch_size of hvp": (lambda n: of_data(curvature.hvp, ONE)(n)(ONE), 1.0),
    "batch_size of losses": (of_data(landscape.losses, ONE, [ONE], [[0.0]]), [0.5]),
    "batch_size of of_rule": (of_data(sharpness.of_rule, rules.sam(1, rho=1.0), ONE), [1.5]),
    "batch_size of average": (
        of_data(sharpness.average, ONE, radius=0, key=KEY, directions=2), (0, 0)
    ),
    "batch_size of worst": (of_data(sharpness.worst, ONE, radius=1.0, key=KEY, steps=2), 1.5),
    "directions": (
        lambda n: sharpness.average(
            half_squares, ONE, ZEROS, ROWS, radius=1.0, key=KEY, directions=n(20)
        ),
        None,
    ),
    "steps": (
        lambda n: sharpness.worst(half_squares, ONE, ZEROS, ROWS, radius=1.0, key=KEY, steps=n(3)),
        1.5,
    ),
    "probes": (lambda n: curvature.trace(doubled, jnp.ones(2), key=KEY, probes=n(20)), None),
    "iterations": (
        lambda n: curvature.extreme_eigenvalues(doubled, jnp.ones(2), key=KEY, iterations=n(9)),
        (2 - 5**0.5, 2 + 5**0.5),
    ),
    "probes of a density": (
        lambda n: curvature.spectral_density(
            doubled, jnp.ones(2), [-2.0, 5.0], key=KEY, probes=n(3), iterations=n(9)
        ),
        None,
    ),
    "classes_at_once": (by_class, 1.0),
    "micro_batches": (in_micro_batches, 1.0),
    "step_radius": (
        of_schedule(
            lambda n: schedules.step_radius((0.1, 0.2), (n(100),), steps_per_epoch=n(3)), 300
        ),
        (0.2, 0.2),
    ),
    "late_radius": (
        of_schedule(
            lambda n: schedules.late_radius(0.1, 0.2, epochs=n(100), steps_per_epoch=n(3)), 238
        ),
        (0.2, 0.2),
    ),
    "linear_radius": (
        of_schedule(lambda n: schedules.linear_radius(epochs=n(100), steps_per_epoch=n(1)), 300),
        (0.8, 0.8),
    ),
    "ramp": (
        of_schedule(lambda n: schedules.ramp(epochs=n(100), steps_per_epoch=n(3)), 299), (1, 1)
    ),
    "stratified_buffers": (
        lambda n: in_buffers(ij.stratified_buffers([0, 1], rows=[n(100), n(100)])), (200,)
    ),
    "binomial_buffers": (
        lambda n: in_buffers(ij.binomial_buffers([9, 1], n(100), deviations=[2])), (100, 100)
    ),
    "sgd": (lambda n: rules.sgd(n(100))(0).base, np.ones(100)),
    "class_counts": (lambda n: ij.class_counts([99], n(100))[99], 1),
    "long_tail_counts": (lambda n: ij.long_tail_counts(n(4), n(120), 8), [120, 60, 30, 15]),
    "every": (
        lambda n: jax.jit(
            lambda step: (tx := classifiers.max_norm(True, 0.5, every=n(100))).update(
                jnp.zeros((1, 1)), classifiers.MaxNormState(step, tx.init(ONE[None, None]).radii),
                ONE[None, None],
            )[0]
        )(jnp.array(299)),
        [[-0.5]],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("narrow", "exactly"),
    [
        (np.int8, False),  # Python's own is run beside it where there is no closed form
        pytest.param(np.int8, True, marks=pytest.mark.slow),
        pytest.param(np.uint8, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("use", WHOLE)
def test_a_whole_number_of_a_narrow_type_is_that_number(
    use: str, narrow: Any, exactly: bool
) -> None:
    """Nothing is computed in its width: 3 times 50, or the root of 20, in eight bits."""
    of, closed = WHOLE[use]
    found = of(narrow)
    if closed is not None:
        np.testing.assert_allclose(found, closed, rtol=1e-5, atol=1e-6)
    if closed is None or exactly:
        jax.tree.map(np.testing.assert_array_equal, found, of(int))


def test_a_number_wider_than_pythons_is_one_of_pythons() -> None:
    np.testing.assert_array_equal(deviation(np.longdouble)(PARAMS), deviation(float)(PARAMS))
