"""Products, ends, trace and density against dense Hessians in float64; the same over devices."""

from __future__ import annotations

import functools
import math
import sys
import tomllib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from imbsam_jax import classifiers, curvature, landscape, rules, sharpness
from places import ROOT
from rule_table import CLASSES, features_fn, head_losses_fn, init_params, losses_fn, to_library

B = 23
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 3.0])
MASK = np.arange(B) % 4 != 1


def data(dtype: Any = np.float64) -> tuple[Any, Any, Any]:
    """(params, x, y) of the shared network: 82 parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, 5)).astype(dtype)
    return to_library(init_params(), dtype), x, rng.integers(CLASSES, size=B)


def of_masked(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[MASK], tree)


def dense(weights: Any, mask: Any, gauss_newton: bool = False) -> np.ndarray:
    """The Hessian by jax.hessian of the mean over the rows that count; or J^T H J, row by row."""
    params, x, y = data()
    rows = np.ones(B, bool) if mask is None else mask
    x, y = jnp.asarray(x[rows]), jnp.asarray(y[rows])
    w = jnp.ones(len(y)) if weights is None else jnp.asarray(weights)[y]
    flat, unravel = ravel_pytree(params)

    def mean(v: Any) -> Any:
        return (w * losses_fn(unravel(v), x, y)[0]).sum() / len(y)

    if not gauss_newton:
        return np.asarray(jax.jit(jax.hessian(mean))(flat))

    def logits(v: Any) -> Any:
        return losses_fn(unravel(v), x, y)[1]

    @jax.jit
    def product(flat: Any) -> Any:
        jacobian, p = jax.jacobian(logits)(flat), jax.nn.softmax(logits(flat))
        inner = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]  # of cross-entropy by logits
        return jnp.einsum("b,bcp,bcd,bdq->pq", w / len(y), jacobian, inner, jacobian)

    return np.asarray(product(flat))


def product(kind: str, params: Any, y: Any, x: Any, **options: Any) -> Any:
    if kind == "hvp":
        return curvature.hvp(losses_fn, params, y, x, y, **options)
    head = params["head"]

    def outputs_fn(p: Any, x: Any, y: Any) -> Any:
        features = features_fn(p, x, y)[0]
        return features @ p["head"]["kernel"] + p["head"]["bias"][None], None

    def output_losses_fn(outputs: Any, x: Any, y: Any) -> Any:
        identity = {"kernel": jnp.eye(CLASSES), "bias": jnp.zeros(CLASSES)}
        return head_losses_fn({"head": identity}, outputs, x, y)

    assert head is not None
    return curvature.gnvp(outputs_fn, output_losses_fn, params, y, x, y, **options)


def matrix(matvec: Any, like: Any) -> np.ndarray:
    flat, unravel = ravel_pytree(like)

    def column(v: Any) -> Any:
        return ravel_pytree(matvec(unravel(v)))[0]

    return np.asarray(jax.jit(jax.vmap(column))(jnp.eye(flat.size, dtype=flat.dtype)))


@pytest.mark.parametrize("kind", ["hvp", "gnvp"])
@pytest.mark.parametrize(
    ("weights", "masked", "batch_size"),
    [
        pytest.param(None, False, None, marks=pytest.mark.slow),
        (WEIGHTS, True, None),
        pytest.param(None, False, 5, marks=pytest.mark.slow),
        (WEIGHTS, True, 5),
    ],
    ids=["plain", "weighted-masked", "batches", "weighted-masked-batches"],
)
def test_products_are_those_of_the_dense_matrix(
    kind: str, weights: Any, masked: bool, batch_size: Any, x64: None
) -> None:
    params, x, y = data()
    mask = MASK if masked else None
    if masked:  # whatever a padded row holds
        x, y = np.where(MASK[:, None], x, 7.0), np.where(MASK, y, -3)
    matvec = product(kind, params, y, x, class_weights=weights, mask=mask, batch_size=batch_size)
    expected = dense_of(kind, weights is None, masked)
    np.testing.assert_allclose(matrix(matvec, params), expected, atol=1e-13)


@functools.cache
def dense_of(kind: str, plain: bool, masked: bool) -> np.ndarray:
    return dense(None if plain else WEIGHTS, MASK if masked else None, kind == "gnvp")


@functools.cache
def whole() -> tuple[Any, Any, np.ndarray]:
    """(a jitted matvec, like, the dense matrix) that the estimates are taken of."""
    params, x, y = data()
    matvec = jax.jit(curvature.hvp(losses_fn, params, y, x, y, class_weights=WEIGHTS))
    return matvec, params, dense_of("hvp", False, False)


def test_ends_of_the_spectrum(x64: None) -> None:
    matvec, like, h = whole()
    expected = np.linalg.eigvalsh(h)[[0, -1]]
    assert expected[0] < -1e-3  # a saddle: both ends are there to be found

    @jax.jit
    def found(key: Any) -> Any:
        return [curvature.extreme_eigenvalues(matvec, like, key=key, iterations=n) for n in (60, 5)]

    ends, few = found(jax.random.key(0))
    np.testing.assert_allclose(ends, expected, rtol=1e-6)
    assert expected[0] < few[0] and few[1] < expected[1]  # from inside


def test_trace_is_within_its_errors(x64: None) -> None:
    matvec, like, h = whole()

    def one(key: Any) -> Any:
        return curvature.trace(matvec, like, key=key, probes=20)

    means, errors = jax.jit(lambda keys: jax.lax.map(one, keys))(
        jax.random.split(jax.random.key(1), 50)
    )
    truth = np.trace(h)
    assert abs(means.mean() - truth) < 3 * np.sqrt((errors**2).sum()) / 50
    # Each error is that of its mean: standardised, the 50 have about unit spread.
    assert 0.7 < np.std((means - truth) / errors) < 1.4
    # The variance of v^T A v over signs is twice the squares off the diagonal.
    variance = 2 * ((h**2).sum() - (np.diag(h) ** 2).sum())
    np.testing.assert_allclose((errors**2).mean(), variance / 20, rtol=0.15)


@pytest.mark.parametrize("points", [40, 4000])
def test_density_is_a_density_with_the_moments(points: int, x64: None) -> None:
    matvec, like, h = whole()
    values = np.linalg.eigvalsh(h)
    grid = np.linspace(values[0] - 0.1, values[-1] + 0.1, points)
    how: dict[str, Any] = {"iterations": 30, "probes": 16, "variance": 1e-6}
    density = np.asarray(
        jax.jit(lambda key: curvature.spectral_density(matvec, like, grid, key=key, **how))(
            jax.random.key(0)
        )
    )
    width = float(grid[1] - grid[0])
    assert abs(density.sum() * width - 1) < 1e-6
    assert density.min() >= 0
    n = len(values)
    mean = (density * np.asarray(grid)).sum() * width
    error = np.sqrt(2 * ((h**2).sum() - (np.diag(h) ** 2).sum()) / 16) / n
    assert abs(mean - values.mean()) < 3 * error + width
    second = (density * np.asarray(grid) ** 2).sum() * width
    np.testing.assert_allclose(second, (values**2).mean(), rtol=0.3)


def test_density_counts_eigenvalues(x64: None) -> None:
    """Of a matrix with three eigenvalues each probe has them exactly, and shares by its signs."""
    diagonal = np.repeat(np.array([-1.0, 0.0, 4.0]), np.array([2, 5, 3]))
    grid = np.array([-2.0, -1.0, 0.0, 4.0, 8.0])
    found = jax.jit(lambda key: curvature.spectral_density(
        lambda v: diagonal * v, jnp.zeros(10), grid, key=key, iterations=10, probes=1
    ))(jax.random.key(0))  # fmt: skip
    widths = np.diff([-2.5, -1.5, -0.5, 2.0, 6.0, 10.0])
    np.testing.assert_allclose(found * widths, [0, 0.2, 0.5, 0.3, 0], atol=1e-9)


@jax.jit
def of_six(d: Any, key: Any) -> Any:
    """Ends and density of a diagonal matrix."""
    like, grid = jnp.zeros(6), np.linspace(-1, 4, 6)
    return (
        curvature.extreme_eigenvalues(lambda v: d * v, like, key=key),
        curvature.spectral_density(lambda v: d * v, like, grid, key=key),
    )


@pytest.mark.parametrize(
    ("diagonal", "ends"), [([0.0] * 6, (0, 0)), ([2.0] * 6, (2, 2)), ([3.0] + [0.0] * 5, (0, 3))]
)
def test_a_space_that_ends_early(diagonal: list[float], ends: Any) -> None:
    found, density = of_six(np.float32(diagonal), jax.random.key(0))
    np.testing.assert_allclose(found, ends, atol=1e-6)
    np.testing.assert_allclose(density.sum(), 1, rtol=1e-5)


def test_the_default_variance_of_a_density_is_of_the_range_of_its_nodes() -> None:
    """1e-5 (lambda_max - lambda_min), 1e-5 at least: a Gaussian of it around each of two nodes."""
    density = jax.jit(
        lambda d, grid, key: curvature.spectral_density(lambda v: d * v, d, grid, key=key)
    )
    for top, step in ((400.0, 0.05), (0.5, 0.01)):
        d, grid = np.float32([0.0, top]), step * np.arange(-2.0, 3)
        found = density(d, grid, jax.random.key(0))
        deviation, edges = (1e-5 * max(1, top)) ** 0.5, step * np.arange(-2.5, 3)
        below = np.array([0.5 * (1 + math.erf(z / deviation / 2**0.5)) for z in edges])
        np.testing.assert_allclose(found, 0.5 * np.diff(below) / step, rtol=1e-4)


@jax.jit
def of_three(d: Any, key: Any) -> Any:
    """Ends and trace of a diagonal matrix."""
    like = jnp.zeros(3)
    return (
        curvature.extreme_eigenvalues(lambda v: d * v, like, key=key),
        curvature.trace(lambda v: d * v, like, key=key)[0],
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_whose_squares_leave_float32(scale: float) -> None:
    ends, _ = of_three(np.float32([1.0, 2.0, 3.0]) * np.float32(scale), jax.random.key(0))
    np.testing.assert_allclose(ends, [scale, 3 * scale], rtol=1e-5)


def test_what_is_not_finite_is_not_hidden() -> None:
    ends, trace = of_three(np.float32([1.0, np.nan, 2.0]), jax.random.key(0))
    assert np.isnan([*ends, trace]).all()
    params, x, y = data(np.float32)
    y = y.copy()
    y[2] = CLASSES
    matvec = curvature.hvp(losses_fn, params, y, x, y, class_weights=np.ones(CLASSES))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(jax.jit(matvec)(params)))


@pytest.mark.parametrize(("other", "hidden"), [(1, False), (2, True), (-1, True)])
def test_a_label_of_no_class_is_not_hidden_by_a_constant_loss(other: int, hidden: bool) -> None:
    """The second of two rows has no derivative, and would lose a weight of NaN."""
    labels, x, ones = jnp.array([0, other]), jnp.array([2.0, -1.0]), jnp.ones(3)

    def own(found: Any, x: Any) -> Any:
        return jnp.where(x > 0, found, 1.0), None

    products = (
        # x |w|^2 has 2 x I, and (x sum(w))^2 / 2 has x^2 of ones; the mean is over two rows.
        (curvature.hvp(lambda w, x: own(x * (w**2).sum(), x), ones, labels, x,
                       class_weights=np.ones(2)), 2.0),
        (curvature.gnvp(lambda w, x: (w.sum() * x, None), lambda z, x: own(z**2 / 2, x), ones,
                        labels, x, class_weights=np.ones(2)), 6.0),
    )  # fmt: skip
    for matvec, value in products:
        np.testing.assert_allclose(matvec(ones), np.full(3, np.nan if hidden else value))


def test_over_a_mapped_axis(x64: None) -> None:
    """Four parts of the rows as one; in all modes: on_devices.py."""
    params, x, y = data()
    x, y, mask = x[:20], y[:20], MASK[:20] & (np.arange(20) > 2)
    parts = jax.tree.map(lambda a: a.reshape(4, 5, *a.shape[1:]), (x, y, mask))

    def over(axis_name: Any, x: Any, y: Any, mask: Any) -> Any:
        options = {"class_weights": WEIGHTS, "mask": mask, "batch_size": 2, "axis_name": axis_name}
        return curvature.hvp(losses_fn, params, y, x, y, **options)(params)

    got = jax.jit(jax.vmap(lambda *part: over("rows", *part), axis_name="rows"))(*parts)
    want = jax.jit(lambda *rows: over(None, *rows))(x, y, mask)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w[None].repeat(4, 0), atol=1e-14), got, want
    )


def test_types_are_kept_and_sums_are_wide() -> None:
    """bfloat16 losses of 300 equal rows: a sum in bfloat16 would stop at 256."""

    def losses(w: Any, x: Any) -> Any:
        return (x * w.astype(jnp.float32) ** 2 / 2).astype(jnp.bfloat16), None

    x, y = jnp.ones(300), jnp.zeros(300, int)
    product = curvature.hvp(losses, jnp.ones((), jnp.bfloat16), y, x)(jnp.ones((), jnp.bfloat16))
    assert product.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(product), 1, rtol=0.01)


def halves(w: Any, x: Any) -> Any:
    return (x * w) ** 2 / 2, None


def in_half(w: Any, x: Any) -> Any:
    """Computed in float16, whatever is given and whatever comes out of it."""
    losses, _ = halves(w.astype(jnp.float16), x.astype(jnp.float16))
    return losses.astype(jnp.float32), None


def outputs_in_half(w: Any, x: Any) -> Any:
    return (x.astype(jnp.float16) * w.astype(jnp.float16)).astype(x.dtype), None


OF_ROWS: dict[str, Any] = {
    "hvp": (lambda f, w, *rows, **n: curvature.hvp(f, w, *rows, **n)(w), 1.0),
    "gnvp": (
        lambda f, w, *rows, **n: curvature.gnvp(
            outputs_in_half, lambda z, x: f(z, jnp.ones_like(x)), w, *rows, **n
        )(w),
        1.0,
    ),
    "of_rule": (
        lambda f, w, *rows, **n: sharpness.of_rule(f, rules.sam(1, rho=0.5), w, *rows, **n)[0],
        0.625,
    ),
    "worst": (
        lambda f, w, *rows, **n: sharpness.worst(
            f, w, *rows, radius=0.5, key=jax.random.key(0), steps=2, **n
        ),
        0.625,
    ),
}  # fmt: skip


@pytest.mark.parametrize("of", OF_ROWS)
@pytest.mark.parametrize(
    ("losses", "dtype", "batch_size"),
    [
        (halves, jnp.float16, None),
        (halves, jnp.float16, 70_000),
        (in_half, jnp.float32, None),
        pytest.param(in_half, jnp.float32, 70_000, marks=pytest.mark.slow),
    ],
    ids=["float16", "float16-batches", "computed in float16", "computed in float16-batches"],
)
def test_derivatives_of_many_narrow_rows_are_finite(
    losses: Any, dtype: Any, of: str, batch_size: Any
) -> None:
    """In float16 the sum of their derivatives is infinite, and only their mean is 1."""
    x, labels = jnp.ones(140_000, dtype), jnp.zeros(140_000, int)
    call, closed = OF_ROWS[of]
    found = call(losses, jnp.ones((), dtype), labels, x, batch_size=batch_size)
    np.testing.assert_allclose(np.float32(found), closed, rtol=3e-3)


BAD_KEYS = [0, None, np.zeros(2), jax.random.split(jax.random.key(0)), "key"]
OF_KEYS: dict[str, Any] = {
    "extreme_eigenvalues": lambda key: curvature.extreme_eigenvalues(same, jnp.ones(2), key=key),
    "trace": lambda key: curvature.trace(same, jnp.ones(2), key=key),
    "spectral_density": lambda key: curvature.spectral_density(
        same, jnp.ones(2), [0.0, 2.0], key=key
    ),
    "average": lambda key: sharpness.average(
        lambda p, x: (x * p.sum(), None), jnp.ones(2), [0], jnp.ones(1), radius=1.0, key=key
    ),
    "worst": lambda key: sharpness.worst(
        lambda p, x: (x * p.sum(), None), jnp.ones(2), [0], jnp.ones(1), radius=1.0, key=key
    ),
    "random_direction": lambda key: landscape.random_direction(jnp.ones(2), key=key),
    "normalised_init": lambda key: classifiers.normalised_init(key, (2, 2)),
}


def same(v: Any) -> Any:
    return v


@pytest.mark.parametrize("call", OF_KEYS)
def test_what_is_no_key_is_refused(call: str) -> None:
    for bad in BAD_KEYS:
        with pytest.raises(ValueError, match=r"key must be one random key, such as jax\.random"):
            OF_KEYS[call](bad)


def test_keys_of_both_kinds_are_taken() -> None:
    for key in (jax.random.key(0), jax.random.PRNGKey(0), np.zeros(2, np.uint32)):
        OF_KEYS["random_direction"](key)


def test_a_matrix_in_the_place_of_a_product_is_refused() -> None:
    with pytest.raises(TypeError, match=r"matvec must be a function.*give lambda v: A @ v"):
        curvature.trace(np.eye(2), jnp.ones(2), key=jax.random.key(0))
    with pytest.raises(ValueError, match="like holds no numbers"):
        curvature.trace(same, jnp.ones(0), key=jax.random.key(0))


BAD: dict[str, tuple[Any, str]] = {
    "averaged": (
        lambda p, x, y: curvature.hvp(lambda p, x: (x.mean(), None), p, y, x)(p),
        "returned a scalar",
    ),
    "rows": (lambda p, x, y: curvature.hvp(losses_fn, p, y[:4], x, y), "has a leaf of shape"),
    "weights": (
        lambda p, x, y: curvature.hvp(losses_fn, p, y, x, y, class_weights=np.ones((2, 5))),
        r"must be float\[C\]",
    ),
    "batch": (lambda p, x, y: curvature.hvp(losses_fn, p, y, x, y, batch_size=0), "batch_size"),
    "vector": (lambda p, x, y: curvature.hvp(losses_fn, p, y, x, y)(p["head"]), "structure"),
    "probes": (
        lambda p, x, y: curvature.trace(lambda v: v, p, key=jax.random.key(0), probes=1),
        "probes must be .*at least 2",
    ),
    "grid": (
        lambda p, x, y: curvature.spectral_density(
            lambda v: v, p, jnp.array([1.0, 0.0]), key=jax.random.key(0)
        ),
        "must rise",
    ),
    **{
        f"grid {bad}": (
            lambda p, x, y, bad=bad: curvature.spectral_density(
                lambda v: v, p, bad, key=jax.random.key(0)
            ),
            "grid must",
        )
        for bad in ([0.0, np.nan, 2.0], [0.0, np.inf], ["a", "b"], [0, 1j], 3.0, [[0.0, 1.0]])
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals(case: str) -> None:
    call, words = BAD[case]
    params, x, y = data(np.float32)
    with pytest.raises(ValueError, match=words):
        call(params, x, y)


def test_without_matfree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matfree", None)
    monkeypatch.setitem(sys.modules, "matfree.decomp", None)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = extras["optional-dependencies"]["curvature"]
    # By its own name: a package that is not released cannot be asked for by its extra.
    with pytest.raises(ModuleNotFoundError, match=f"pip install '{wanted}'$"):
        curvature.extreme_eigenvalues(lambda v: v, jnp.zeros(2), key=jax.random.key(0))


def test_one_file_imports_matfree() -> None:
    from test_rooms import files, imports

    for path in [*files("imbsam_jax"), *files("experiments")]:
        if any(name.split(".")[0] == "matfree" for name in imports(path)):
            assert path.name == "lanczos.py", path
