"""The Optax front door: `sharpness_aware`, first in a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imbsam_jax import collectives, core
from imbsam_jax.ascent import Ascent
from imbsam_jax.gradient import mean_over_rows
from imbsam_jax.rows import (
    check_labels,
    check_leaves,
    check_losses,
    check_mask,
    check_pair,
    check_params,
    nan_where_no_class,
    share_of_rows,
    weighted_mean,
)
from imbsam_jax.rules import ClassWeights, Rule

__all__ = ["SharpnessAwareState", "class_weighted_grad", "sharpness_aware"]


class SharpnessAwareState(NamedTuple):
    """int32[] updates made so far; it is the step given to the rule."""

    count: jax.Array  # type: ignore[assignment]  # optax's name, and also a method of tuples


def sharpness_aware(
    rule: Rule, *, axis_name: Any = None, sync_ascent: bool = True, ascent: Ascent = Ascent()
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation that computes the gradient itself; the first link of a chain.

        g = grad L[base](theta) + sum_k grad L[group_k](theta + e_k)

    `update(None, state, params, weighted_grad_fn=fn)` returns g, which the next link treats as
    any gradient: weight decay, clipping and momentum act on it at theta. Leave the weight decay
    out of the chain where `ascent` has one.

    Args:
      rule: a row of the table, for example `rules.imbsam(class_counts, rho=0.05, eta=100)`.
      axis_name: the device axis, inside pmap, shard_map or vmap; None under plain jit.
      sync_ascent: False gives every device its own perturbation (m-sharpness).
      ascent: how the perturbation is taken.

    Returns:
      A transformation whose update takes
        updates: None. Anything else is refused: a wrapper such as `optax.MultiSteps` around this
          transformation would silently use the last micro-batch only. Wrappers go after it.
        weighted_grad_fn: `fn(params, class_weights float[C]) -> grads`, the gradient of
          `(1/B) sum_i w[y_i] loss_i` over this device's rows, not averaged over devices. Make
          it with `class_weighted_grad`.
      Other extra arguments are ignored.

    Raises:
      ValueError: updates that are not None, params missing.
      TypeError: weighted_grad_fn missing.

    >>> def losses_fn(w, x, y):
    ...     return (x @ w - y) ** 2, None
    >>> tx = optax.chain(sharpness_aware(rules.imbsam([8, 2], rho=0.1, eta=4)), optax.sgd(0.1))
    >>> w = jnp.array([1.0])
    >>> x, y, labels = jnp.array([[1.0], [2.0]]), jnp.array([0.0, 1.0]), jnp.array([0, 1])
    >>> fn = class_weighted_grad(losses_fn, labels, x, y)
    >>> updates, state = tx.update(None, tx.init(w), w, weighted_grad_fn=fn)
    >>> round(float(updates[0]), 4)
    -0.34
    """

    def init(params: Any) -> SharpnessAwareState:
        del params
        return SharpnessAwareState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: SharpnessAwareState,
        params: Any = None,
        *,
        weighted_grad_fn: Callable[[Any, Any], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Any, SharpnessAwareState]:
        del extra_args
        if updates is not None:
            raise ValueError(
                "sharpness_aware computes the gradient itself and must come first in the chain: "
                "call update(None, state, params, weighted_grad_fn=...). Put wrappers such as "
                "optax.MultiSteps, masked or apply_if_finite after it, not around it"
            )
        if params is None:
            raise ValueError("sharpness_aware needs params: update(None, state, params, ...)")
        if weighted_grad_fn is None:
            raise TypeError(
                "sharpness_aware needs the keyword argument weighted_grad_fn: make it with "
                "class_weighted_grad(losses_fn, labels, *args)"
            )
        fn = weighted_grad_fn
        local = collectives.varying(check_params(params), axis_name)
        batch = core.Batch(
            clean=lambda table: [fn(local, weights) for weights in table],
            moved=lambda point, weights: (fn(point, weights), None),
            share=getattr(fn, "share", _no_share),
            real=getattr(fn, "real", None),
        )

        def compute(table: ClassWeights) -> Any:
            grads, _ = core.gradient(
                batch, local, table, ascent=ascent, axis_name=axis_name, sync=sync_ascent
            )
            return mean_over_rows(grads, batch.real, axis_name)

        grads = core.by_stage(rule, state.count, compute)
        return grads, SharpnessAwareState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _no_share(class_weights: Any) -> Any:
    raise ValueError("group_mean needs to count rows: build fn with class_weighted_grad")


class class_weighted_grad:
    """The weighted gradient of per-example losses over one batch, as `sharpness_aware` takes it.

        fn(params, w) = grad (1/B) sum_i w[y_i] loss_i(params)

    Args:
      losses_fn: `losses_fn(params, *args) -> (losses float[B], aux)`, one loss per example; the
        aux is not used here.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.
      *args: passed on to losses_fn, the same for every pass.
      mask: bool[B], False for padding. On its own `fn` then still divides by all B rows;
        `sharpness_aware` divides by the real ones of all devices.

    >>> fn = class_weighted_grad(lambda w, x: (w * x, None), jnp.array([0, 1]), jnp.arange(2.0))
    >>> float(fn(jnp.array(1.0), jnp.array([1.0, 3.0])))
    1.5
    """

    def __init__(
        self,
        losses_fn: Callable[..., tuple[jax.Array, Any]],
        labels: Any,
        *args: Any,
        mask: Any = None,
    ):
        self._losses_fn, self._args = losses_fn, args
        self._labels = check_labels(labels, mask)
        self._mask = check_mask(mask, self._labels.shape[0])
        self.real = None if mask is None else jnp.mean(self._mask, dtype=float)

    def __call__(self, params: Any, class_weights: Any) -> Any:
        def weighted(p: Any) -> jax.Array:
            losses, _ = check_pair(self._losses_fn(p, *self._args))
            losses = check_losses(losses, self._labels)
            return weighted_mean(losses, class_weights, self._labels, self._mask)

        grads = jax.grad(weighted)(check_leaves(params))
        return nan_where_no_class(grads, class_weights, self._labels, self._mask)

    def share(self, class_weights: Any) -> jax.Array:
        """Rows with a non-zero weight, over all rows of this device."""
        return share_of_rows(class_weights, self._labels, self._mask)
