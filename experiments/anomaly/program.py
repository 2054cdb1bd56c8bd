"""The compiled program of a method under a rule: runs side by side, spread over the devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

RULES = ("sgd", "sam", "imbsam")
OPTIMIZERS = ("sgd", "adam", "rmsprop")


class Runs(NamedTuple):
    """What the compiled program takes: R runs side by side, rows padded to the longest.

    Attributes:
      params, fixed, state: as AnomalyNet.init makes them, each leaf [R, ...].
      train: float32[R, n, d], rows past a run's own are never drawn.
      labels: int32[R, n].
      order: int32[R, S, B], the rows of each step; steps past the last are never made.
      test: float32[R, m, d]; test_labels: int32[R, m]; test_real: bool[R, m], False for padding.
    """

    params: Any
    fixed: Any
    state: Any
    train: Any
    labels: Any
    order: Any
    test: Any
    test_labels: Any
    test_real: Any


def make_rule(name: str, rho: Any) -> Any:
    """The rule over the classes (no label, labelled anomaly); rho may be traced.

    For imbsam the class counts only say which class is the tail. It is the labelled anomalies,
    also where they outnumber the rest, and one table serves every data set of a program.
    """
    from imbsam_jax import rules

    if name == "sgd":
        return rules.sgd(2)
    if name == "sam":
        return rules.sam(2, rho=rho)
    return rules.imbsam([2, 1], rho=rho, eta=1)


def make_optimizer(name: str, lr: Any, decay: dict[str, float]) -> Any:
    """An Optax chain: weight decay at the unperturbed weights, clipping, then the optimizer."""
    import optax

    def add_decay(grads: Any, params: Any) -> Any:
        return {k: g + decay[k] * params[k] if k in decay else g for k, g in grads.items()}

    links = [optax.stateless(add_decay)]
    if name == "sgd":
        links += [optax.trace(decay=0.9)]
    elif name == "adam":
        links += [optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)]
    else:
        links += [
            optax.stateless(lambda grads, _: {k: _clipped(g) for k, g in grads.items()}),
            optax.scale_by_rms(decay=0.9, eps=1e-7, eps_in_sqrt=False),
        ]
    return optax.chain(*links, optax.scale_by_learning_rate(lr))


def _clipped(gradient: Any) -> Any:
    """At most norm 1; as it is below, so a zero gradient stays zero."""
    import jax.numpy as jnp

    return gradient / jnp.maximum(1, jnp.sqrt(jnp.sum(jnp.square(gradient))))


def make_step(net: Any, rule: Any, optimizer: Any) -> Callable[..., Any]:
    """`step(params, opt_state, state, x, labels, fixed) -> (params, opt_state, state, loss)`."""
    import optax

    import imbsam_jax as ij

    def losses_fn(params: Any, x: Any, labels: Any, fixed: Any, state: Any) -> Any:
        return net.losses(params, x, labels, fixed, state)

    gradient = ij.value_and_grad(losses_fn, rule)

    def step(params: Any, opt_state: Any, state: Any, x: Any, labels: Any, fixed: Any) -> Any:
        (loss, state), grads = gradient(params, labels, x, labels, fixed, state)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, loss

    return step


def make_program(net: Any, rule: str, optimizer: str, devices: Sequence[Any], *, keep: bool) -> Any:
    """The jitted `program(runs, steps, lr, rho) -> (scores float32[R, m], kept)`.

    What is kept is (parameters, state) at the end, [R, ...] each, or None without `keep`. R must be
    a multiple of the number of devices. `steps`, `lr` and `rho` are traced: one compilation serves
    data sets of different lengths, and every radius.
    """
    import jax
    from jax.sharding import PartitionSpec as P

    def one(run: Runs, steps: Any, lr: Any, rho: Any) -> Any:
        tx = make_optimizer(optimizer, lr, net.decay)
        step = make_step(net, make_rule(rule, rho), tx)

        def body(i: Any, carry: Any) -> Any:
            rows = run.order[i]
            *carry, _ = step(*carry, run.train[rows], run.labels[rows], run.fixed)
            return tuple(carry)

        carry = (run.params, tx.init(run.params), run.state)
        params, _, state = jax.lax.fori_loop(0, steps, body, carry)
        kept = (params, state) if keep else None
        return net.scores(params, run.test, run.fixed, state), kept

    # No run needs another's numbers: every device trains its own, and nothing is communicated.
    spread = jax.shard_map(
        jax.vmap(one, in_axes=(0, None, None, None)),
        mesh=mesh(devices),
        in_specs=(P("runs"), P(), P(), P()),
        out_specs=P("runs"),
        check_vma=False,
    )
    return jax.jit(spread)


def mesh(devices: Sequence[Any]) -> Any:
    import jax

    kind = jax.sharding.AxisType.Auto
    return jax.make_mesh((len(devices),), ("runs",), axis_types=(kind,), devices=devices)


def measure(scores: Any, labels: Any, real: Any) -> Any:
    """AUROC, average precision of anomalies and of normals, float32[R] each, of R runs.

    Args:
      scores: float[R, m], larger is more anomalous.
      labels: int[R, m], 1 for an anomaly.
      real: bool[R, m], False for padding.
    """
    import jax

    from imbsam_jax import metrics

    def one(s: Any, y: Any, real: Any) -> Any:
        return (
            metrics.auroc(y, s, real),
            metrics.average_precision(y, s, real),
            metrics.average_precision(1 - y, -s, real),
        )

    return jax.vmap(one)(scores, labels, real)
