"""Curvature of a loss restricted to classes: products with its Hessian, and what they tell.

    L[w](theta) = (1/B) sum_i w[y_i] loss_i(theta),    H[w] = second derivative of L[w]

over a whole data set, exactly. A product with H is a function of a tree like the parameters; ends
of the spectrum, trace and density take such a function and nothing else, so that they serve any
symmetric matrix. Their linear algebra is matfree's, an optional dependency: the extra
`[curvature]`.

Batch normalisation is losses_fn's choice. By running statistics (evaluation mode, what is usual:
the rows stay independent) it closes over them; in batch mode each micro-batch is normalised by its
own rows, so that batch_size is then part of what is measured:

    def losses_fn(params, images, labels):
        logits = model.apply({"params": params, "batch_stats": stats}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), None
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr

from imbsam_jax import arrays, checks, lanczos
from imbsam_jax.lanczos import MatVec
from imbsam_jax.rows import check_leaves, check_like, nan_where
from imbsam_jax.totals import Part, data_of, scaled_sum, tables, unscaled, weights_of

__all__ = ["extreme_eigenvalues", "gnvp", "hvp", "spectral_density", "trace"]


def hvp(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    labels: Any,
    *args: Any,
    class_weights: Any = None,
    mask: Any = None,
    batch_size: int | None = None,
    axis_name: Any = None,
) -> MatVec:
    """Products with the Hessian of a class-weighted loss, exact over a data set.

        matvec(v) = H v,   H = d^2/dtheta^2 (1/B) sum_i w[y_i] loss_i(theta)

    forward over reverse: about twice the cost of a gradient.

    Args:
      losses_fn: `losses_fn(params, *args) -> (losses float[B], aux)`, as for `value_and_grad`; aux
        is dropped. See the module for batch normalisation.
      params: theta, a tree of real floating arrays.
      labels: int[B], or float[B, C] for soft labels.
      *args: of losses_fn; every leaf has the B rows in front. What has none (a random key,
        running statistics) losses_fn closes over.
      class_weights: w, float[C]: a row of a rule's table, or for the mean loss of a group of
        classes `in_group * B / rows_of_group`. None: ones.
      mask: bool[B], False for padding; B is then the number of True rows.
      batch_size: rows of a micro-batch, worked off one after the other for less memory; the
        product is that of the whole, where rows do not see each other. The last may be short.
      axis_name: the device axis, inside pmap, shard_map or vmap; None under plain jit, also with
        rows sharded over devices. The product is then the same on all of them.

    Returns:
      `matvec(tree) -> tree`, both like params. A closure over params and data: inside `jax.jit`
      hand both in as arguments, else the data become constants of the program.

    Raises:
      ValueError: averaged losses, rows that differ in number, labels or weights of another shape.
      TypeError: losses or parameters that are not real and floating.

    With class_weights a label that is no class makes the product NaN. Only derivatives are taken,
    so a loss with a kink (ReLU) has the curvature of its smooth pieces.

    >>> def losses_fn(w, x):
    ...     return (x * w) ** 2, None
    >>> x, y = jnp.array([1.0, 2.0]), jnp.array([0, 1])
    >>> float(hvp(losses_fn, jnp.array(3.0), y, x)(jnp.array(1.0)))
    5.0
    >>> float(hvp(losses_fn, jnp.array(3.0), y, x, class_weights=[0, 2])(jnp.array(1.0)))
    8.0

    Source: Pearlmutter, Neural Computation 1994. PyHessian, which the ImbSAM and SSE-SAM papers
    use, averages the products of batches weighted by their sizes, in evaluation mode, as here.
    """
    data = data_of(losses_fn, labels, args, mask, batch_size, axis_name)
    local = data.varying(check_leaves(params))
    table = _one_table(class_weights)

    def matvec(tree: Any) -> Any:
        v = data.varying(_like(tree, local))

        def of(part: Part) -> tuple[Any, jax.Array]:
            gradient = jax.grad(lambda p: scaled_sum(losses_fn, p, table, part))
            product = jax.jvp(gradient, (local,), (v,))[1]
            return unscaled(product, part), _no_class(table, part)

        return _product(data.mean(of), local)

    return matvec


def gnvp(
    outputs_fn: Callable[..., tuple[jax.Array, Any]],
    output_losses_fn: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    labels: Any,
    *args: Any,
    class_weights: Any = None,
    mask: Any = None,
    batch_size: int | None = None,
    axis_name: Any = None,
) -> MatVec:
    """Products with the Gauss-Newton matrix of a class-weighted loss, exact over a data set.

        matvec(v) = (1/B) sum_i w[y_i] J_i^T (d^2 loss_i / d outputs_i^2) J_i v

    the part of the Hessian that stays where the model is linearised. Losses alone do not say where
    the model ends, so it comes in two halves, as in `cc_sam.value_and_grad`. Positive semidefinite
    where the losses are convex in the outputs (cross-entropy of logits) and w is not negative; its
    trace is then the sharpness that does not come from errors of fit.

    Args:
      outputs_fn: `outputs_fn(params, *args) -> (outputs, aux)`, a tree of arrays such as logits.
      output_losses_fn: `output_losses_fn(outputs, *args) -> (losses float[B], aux)`. Parameters
        that it closes over are held fixed.
      params, labels, *args, class_weights, mask, batch_size, axis_name: as for `hvp`.

    Returns:
      `matvec(tree) -> tree`, both like params.

    Raises:
      ValueError, TypeError: as for `hvp`.

    >>> def outputs_fn(w, x):
    ...     return jnp.exp(x * w), None
    >>> def output_losses_fn(outputs, x):
    ...     return outputs**2, None
    >>> x, y = jnp.array([1.0]), jnp.array([0])
    >>> float(gnvp(outputs_fn, output_losses_fn, jnp.array(0.0), y, x)(jnp.array(1.0)))
    2.0

    Source: Schraudolph, Neural Computation 2002.
    """
    checks.function("outputs_fn", outputs_fn, "(params, *args) -> (outputs, aux)")
    checks.function(
        "output_losses_fn", output_losses_fn, "(outputs, *args) -> (losses float[B], aux)"
    )
    data = data_of(outputs_fn, labels, args, mask, batch_size, axis_name)
    local = data.varying(check_leaves(params))
    table = _one_table(class_weights)

    def matvec(tree: Any) -> Any:
        v = data.varying(_like(tree, local))

        def of(part: Part) -> tuple[Any, jax.Array]:
            def model(p: Any) -> Any:
                return outputs_fn(p, *part.args)[0]

            def loss(outputs: Any) -> jax.Array:
                return scaled_sum(output_losses_fn, outputs, table, part)

            outputs, pullback = jax.vjp(model, local)
            along = jax.jvp(model, (local,), (v,))[1]
            curved = jax.jvp(jax.grad(loss), (outputs,), (along,))[1]
            return unscaled(pullback(curved)[0], part), _no_class(table, part)

        return _product(data.mean(of), local)

    return matvec


def extreme_eigenvalues(
    matvec: MatVec, like: Any, *, key: jax.Array, iterations: int = 64
) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest eigenvalue, by Lanczos with full reorthogonalisation.

    The ends of the spectrum of the matrix restricted to a Krylov space: from inside, so that the
    smallest is never below the true one and the largest never above it, but for rounding. Ends that
    stand apart are exact to rounding after some tens of products; where eigenvalues crowd, ask for
    more iterations and see whether the answer moves.

    Args:
      matvec: of a symmetric matrix, `tree -> tree`.
      like: a tree of P numbers in all with the shapes of what matvec takes; values do not matter.
      key: of the normally distributed vector that Lanczos starts from.
      iterations: products with the matrix, at least 1; of fewer than P parameters no more than P.
        As many vectors are kept.

    Returns:
      (smallest, largest), scalars of at least float32; NaN where a product was not finite.

    Raises:
      ModuleNotFoundError: matfree is not installed.

    >>> ends = extreme_eigenvalues(
    ...     lambda v: jnp.array([-1.0, 2.0, 5.0]) * v, jnp.zeros(3), key=jax.random.key(0)
    ... )
    >>> [round(float(x), 4) for x in ends]
    [-1.0, 5.0]

    Source: `matfree.decomp`. The ratio of both is SSE-SAM's view of saddles.
    """
    product, size, dtype = lanczos.flat(matvec, like)
    start = jax.random.normal(checks.one_key("key", key), (size,), dtype)
    nodes, _ = lanczos.ritz(product, start, min(checks.whole("iterations", iterations, 1), size))
    return nodes[0], nodes[-1]


def trace(
    matvec: MatVec, like: Any, *, key: jax.Array, probes: int = 100
) -> tuple[jax.Array, jax.Array]:
    """The trace by Hutchinson's estimator, with its standard error.

        mean of v^T A v over random signs v,   E[v^T A v] = tr A

    Args:
      matvec, like: as for `extreme_eigenvalues`.
      key: of the random signs.
      probes: N products, at least 2: one probe is off by as much as the trace itself.

    Returns:
      (mean, standard error of the mean), scalars of at least float32. The error is the sample's
      own, with N - 1 degrees of freedom.

    Raises:
      ModuleNotFoundError: matfree is not installed.

    >>> mean, error = trace(
    ...     lambda v: jnp.array([1.0, 2.0]) * v, jnp.zeros(2), key=jax.random.key(0), probes=4
    ... )
    >>> float(mean), float(error)  # exact of a diagonal matrix
    (3.0, 0.0)

    Source: `matfree.stochtrace`, one probe after the other, for memory.
    """
    stochtrace = lanczos.matfree("stochtrace")
    product, size, dtype = lanczos.flat(matvec, like)
    one = stochtrace.estimator_monte_carlo(
        stochtrace.monte_carlo_trace(),
        stochtrace.sampler_signs(jnp.zeros(size, dtype), num=1),
    )
    probes = checks.whole("probes", probes, 2)
    keys = jax.random.split(checks.one_key("key", key), probes)
    found = lax.map(lambda k: one(product, k), keys)
    return found.mean(), found.std(ddof=1) / np.sqrt(probes).astype(found.dtype)


def spectral_density(
    matvec: MatVec,
    like: Any,
    grid: Any,
    *,
    key: jax.Array,
    iterations: int = 64,
    probes: int = 4,
    variance: float | None = None,
) -> jax.Array:
    """The density of eigenvalues by stochastic Lanczos quadrature, smoothed by a Gaussian.

        density(t) = (1/N) sum_v sum_k tau_vk^2 normal(t; theta_vk, variance)

    with Ritz values theta_vk of probe v and the squared first components tau_vk^2 of their
    eigenvectors as weights. Each point of the grid has the mean over its cell, which ends half-way
    to its neighbours: the sum of density times width is the share of eigenvalues inside the grid,
    1 where it reaches some standard deviations beyond both ends, however coarse it is.

    Args:
      matvec, like: as for `extreme_eigenvalues`, whose ends say where to put the grid.
      grid: float[M] at least 2, rising.
      key: of the random signs that Lanczos starts from.
      iterations: products for each probe, at least 1, no more than P.
      probes: N, at least 1.
      variance: of the Gaussian, positive; None: `1e-5 max(1, largest - smallest Ritz value)`.

    Returns:
      float[M], at least float32.

    Raises:
      ValueError: a grid that does not rise, or is not finite.
      ModuleNotFoundError: matfree is not installed.

    >>> grid = jnp.linspace(0.0, 4.0, 9)
    >>> density = spectral_density(
    ...     lambda v: jnp.array([1.0, 3.0]) * v, jnp.zeros(2), grid, key=jax.random.key(0)
    ... )
    >>> (density * 0.5).round(3).tolist()
    [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]

    Source: Ghorbani et al., ICML 2019; the variance is PyHessian's, which takes one probe of 100
    iterations and normalises what lies on its grid to 1.
    """
    product, size, dtype = lanczos.flat(matvec, like)
    grid = arrays.as_array("grid", "float[M]", grid)
    if grid.ndim != 1 or grid.size < 2 or not checks.is_real(grid.dtype):
        raise ValueError(
            f"grid must be float[M] with M at least 2, got {grid.dtype}{list(grid.shape)}"
        )
    if checks.is_concrete(grid):
        points = np.asarray(grid).astype(dtype)  # on the host: inside of jit JAX's are traced
        if not np.isfinite(points).all():
            raise ValueError("grid must be finite: end it some way beyond the eigenvalues")
        if not (points[1:] > points[:-1]).all():
            raise ValueError("grid must rise: sort it, and leave out points that are there twice")
    grid = jnp.asarray(grid, dtype)
    iterations = min(checks.whole("iterations", iterations, 1), size)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lanczos.ritz(product, jax.random.rademacher(key, (size,), dtype), iterations)

    probes = checks.whole("probes", probes, 1)
    keys = jax.random.split(checks.one_key("key", key), probes)
    nodes, weights = lax.map(one, keys)
    middles = (grid[1:] + grid[:-1]) / 2
    edges = jnp.concatenate([grid[:1], middles, grid[-1:]])
    edges = edges.at[0].add(grid[0] - middles[0]).at[-1].add(grid[-1] - middles[-1])
    z = (edges[:, None] - nodes.reshape(1, -1)) / jnp.sqrt(_variance(variance, nodes))
    # The difference is taken in the tail that is small, which keeps its digits.
    low, high = z[:-1], z[1:]
    below = ndtr(high) - ndtr(low)
    above = ndtr(-low) - ndtr(-high)
    mass = jnp.where(low > 0, above, below)
    width = edges[1:] - edges[:-1]
    return (mass * weights.reshape(1, -1)).sum(axis=1) / (probes * width)


# ---------------------------------------------------------------------------------- trees and rows


def _variance(variance: float | None, nodes: jax.Array) -> jax.Array:
    if variance is None:
        return 1e-5 * jnp.maximum(1, nodes.max() - nodes.min())
    return jnp.asarray(checks.number("variance", variance, above=0), nodes.dtype)


def _like(tree: Any, params: Any) -> Any:
    """The vector in the parameters' types; a sentence where it is of another shape."""
    tree = check_like("what matvec takes", tree, params)
    return jax.tree.map(lambda v, p: v.astype(p.dtype), tree, params)


def _no_class(table: Any, part: Part) -> jax.Array:
    """How many labels are no class: a loss that is constant there would lose a weight of NaN."""
    bad = jnp.zeros(()) if table is None else jnp.isnan(weights_of(table, part, float))
    return bad.sum(dtype=float)


def _product(found: tuple[Any, jax.Array], params: Any) -> Any:
    total, bad = found
    return nan_where(bad > 0, jax.tree.map(lambda x, p: x.astype(p.dtype), total, params))


def _one_table(class_weights: Any) -> Any:
    table = tables(class_weights)
    if table is not None and table.ndim != 1:
        raise ValueError(f"class_weights must be float[C], got shape {list(table.shape)}")
    return table
