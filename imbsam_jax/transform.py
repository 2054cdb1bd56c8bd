"""The Optax front door: `sharpness_aware`, first in a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imbsam_jax import checks, collectives, core
from imbsam_jax.ascent import Ascent, check_ascent
from imbsam_jax.rows import (
    check_floats_like,
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
from imbsam_jax.table import ClassWeights, Rule, check_rule

__all__ = ["SharpnessAwareState", "class_weighted_grad", "sharpness_aware"]


class SharpnessAwareState(NamedTuple):
    """int32[] updates made so far; it is the step given to the rule."""

    count: jax.Array  # type: ignore[assignment]  # optax's name, and also a method of tuples


def sharpness_aware(
    rule: Rule, *, axis_name: Any = None, sync_ascent: bool = True, ascent: Ascent = Ascent()
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation that computes the gradient itself; the first link of a chain.

        g = grad L[base](theta) + sum_k grad L[group_k](theta + e_k)

    `update(fn, state, params)` takes the gradient function in the place of the gradients and
    returns g, which the next link treats as any gradient: weight decay, clipping and momentum act
    on it at theta. Leave the weight decay out of the chain where `ascent` has one.

    Args:
      rule: a row of the table, for example `rules.imbsam(class_counts, rho=0.05, eta=100)`.
      axis_name: the device axis, inside pmap, shard_map or vmap, where every device has all of the
        parameters; None under plain jit, where they may be sharded.
      sync_ascent: False gives every device its own perturbation (m-sharpness).
      ascent: how the perturbation is taken.

    Returns:
      A transformation whose update takes
        updates: `fn(params, class_weights float[C]) -> grads`, the gradient of
          `(1/B) sum_i w[y_i] loss_i` over this device's rows, not averaged over devices. Make it
          with `class_weighted_grad`, which fails with a sentence where another link is given it
          first: links before this one would act on nothing, and a wrapper such as
          `optax.MultiSteps` around it would use the last micro-batch only. Both go after it.
          With Flax: `state.apply_gradients(grads=fn)`.
        weighted_grad_fn: fn, for frameworks that insist on trees and call update with None or a
          tree without leaves: `optimizer.update(model, None, weighted_grad_fn=fn)` of
          `nnx.Optimizer`. A link before this one cannot be noticed then.
      Other extra arguments are ignored.

    Raises:
      ValueError: gradients in the place of fn, params missing.
      TypeError: a rule that is no function, fn missing or given twice.

    >>> def losses_fn(w, x, y):
    ...     return (x @ w - y) ** 2, None
    >>> tx = optax.chain(sharpness_aware(rules.imbsam([8, 2], rho=0.1, eta=4)), optax.sgd(0.1))
    >>> w = jnp.array([1.0])
    >>> x, y, labels = jnp.array([[1.0], [2.0]]), jnp.array([0.0, 1.0]), jnp.array([0, 1])
    >>> fn = class_weighted_grad(losses_fn, labels, x, y)
    >>> updates, state = tx.update(fn, tx.init(w), w)
    >>> round(float(updates[0]), 4)
    -0.34
    """
    check_rule(rule)
    ascent = check_ascent(ascent, rule)
    checks.truth("sync_ascent", sync_ascent)

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
        fn = _gradient_function(updates, weighted_grad_fn)
        if params is None:
            raise ValueError("sharpness_aware needs params: call update(fn, state, params)")
        count = _count_of(state)
        local = collectives.varying(check_params(params), axis_name)
        batch = _Given(fn, local)

        def compute(table: ClassWeights, how: Ascent) -> Any:
            grads, _ = core.gradient(
                batch, local, table, ascent=how, axis_name=axis_name, sync=sync_ascent
            )
            return core.mean_over_rows(grads, batch, axis_name)

        grads = core.by_stage(rule, count, ascent, compute)
        return grads, SharpnessAwareState(optax.safe_increment(count))

    return optax.GradientTransformationExtraArgs(init, update)


class _Given:
    """The passes of a gradient function that the caller made: one for each weighted gradient."""

    def __init__(self, fn: Callable[[Any, Any], Any], params: Any):
        self._fn, self._params = fn, params

    def clean(self, table: list[Any]) -> list[Any]:
        return [self._at(self._params, class_weights) for class_weights in table]

    def moved(self, group: int, point: Any, class_weights: Any) -> tuple[Any, None]:
        return self._at(point, class_weights), None

    def _at(self, point: Any, class_weights: Any) -> Any:
        name = "what the gradient function returns"
        return check_floats_like(name, self._fn(point, class_weights), point)

    def share(self, class_weights: Any) -> Any:
        if not hasattr(self._fn, "share"):
            raise ValueError("group_mean needs to count rows: build fn with class_weighted_grad")
        return self._fn.share(class_weights)

    @property
    def real(self) -> Any:
        return getattr(self._fn, "real", None)


def _count_of(state: Any) -> Any:
    """The updates made so far; a tuple's own `count` is a method."""
    count = getattr(state, "count", None)
    if count is None or callable(count):
        raise TypeError(
            "sharpness_aware needs its own state, update(fn, state, params) with the state that "
            "init or the last update returned: of a chain that of the whole chain. Got "
            f"{_kind(state)}"
        )
    return count


_FIRST = (
    "sharpness_aware computes the gradient itself and must come first in the chain: call "
    "update(fn, state, params) with fn = class_weighted_grad(losses_fn, labels, *args) in the "
    "place of the gradients. Links such as clip_by_global_norm and wrappers such as "
    "optax.MultiSteps, masked or apply_if_finite go after it, not before or around it"
)

_NO_TREE = (
    f"class_weighted_grad makes a function and no gradients: {_FIRST}. Under jit make fn inside "
    "the function that is compiled"
)


def _gradient_function(updates: Any, keyword: Any) -> Callable[[Any, Any], Any]:
    """fn, of the updates or of the keyword. A tree may be callable (a module): a leaf is not."""
    given = isinstance(updates, class_weighted_grad)
    leaves = [] if given else jax.tree.leaves(updates)
    given = given or (len(leaves) == 1 and leaves[0] is updates and callable(updates))
    if leaves and not given:
        raise ValueError(f"{_FIRST}. Got {_kind(updates)} where fn belongs")
    if given and keyword is not None:
        raise TypeError(
            "sharpness_aware was given a gradient function twice, as updates and as "
            "weighted_grad_fn: the keyword is for frameworks that insist on a tree of updates"
        )
    fn = updates if given else keyword
    if not callable(fn):
        raise TypeError(
            "sharpness_aware needs the gradient function, update(fn, state, params) or the "
            "keyword argument weighted_grad_fn: make it with class_weighted_grad(losses_fn, "
            f"labels, *args); got {_given_instead(updates, keyword)}"
        )
    return fn


def _given_instead(updates: Any, keyword: Any) -> str:
    if keyword is None and updates is not None:  # a leafless tree
        return (
            f"an empty {type(updates).__name__}, as nnx.Optimizer makes of a function: there, "
            "optimizer.update(model, None, weighted_grad_fn=fn)"
        )
    return _kind(keyword)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


class _SaysWhatItIs(type):
    """Errors of JAX about trees of different structure name types: they are the reason, too."""

    def __repr__(cls) -> str:
        return f"<{_NO_TREE}>"


class _NoGradients(metaclass=_SaysWhatItIs):
    """A leaf that only `fn` comes out of; whoever computes with it is told what belongs here."""

    def __init__(self, fn: Any):
        self.fn = fn

    def __getattr__(self, name: str) -> Any:
        # JAX asks for protocols that begin so; other names are those of arrays: dtype, shape, real.
        if name.startswith("_"):
            raise AttributeError(name)
        self._refuse()

    def __repr__(self) -> str:
        return f"<{_NO_TREE}>"

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(_NO_TREE)

    __array__ = __iter__ = __getitem__ = __len__ = __float__ = _refuse
    __neg__ = __abs__ = __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = _refuse


class class_weighted_grad(_NoGradients):
    """The weighted gradient of per-example losses over one batch, as `sharpness_aware` takes it.

        fn(params, w) = grad (1/B) sum_i w[y_i] loss_i(params)

    Args:
      losses_fn: `losses_fn(params, *args) -> (losses float[B], aux)`, one loss per example; the
        aux is not used here.
      labels: int[B], or float[B, C] for soft labels. A label outside [0, C) gives NaN.
      *args: passed on to losses_fn, the same for every pass.
      mask: bool[B], False for padding. On its own `fn` then still divides by all B rows;
        `sharpness_aware` divides by the real ones of all devices.

    It is no array and no tree of them: what a link before `sharpness_aware` or a wrapper around it
    would do with gradients is a TypeError that says so. Under jit make it inside the function.

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
        checks.function("losses_fn", losses_fn, "(params, *args) -> (losses float[B], aux)")
        self._losses_fn, self._args = losses_fn, args
        self._labels = check_labels(labels)
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

    def __contains__(self, key: Any) -> bool:
        # Flax looks here for parameters that are to be overwritten, not updated.
        return False


def _leaf_of(fn: class_weighted_grad) -> tuple[tuple[_NoGradients], None]:
    return (_NoGradients(fn),), None


def _fn_of(_: None, leaves: Any) -> class_weighted_grad:
    if not isinstance(leaves[0], _NoGradients):
        raise TypeError(_NO_TREE)
    return leaves[0].fn


# A tree of one leaf that refuses to be an array, so that frameworks can hand it on.
jax.tree_util.register_pytree_node(class_weighted_grad, _leaf_of, _fn_of)
