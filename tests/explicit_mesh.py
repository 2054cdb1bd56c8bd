"""Losses, classifiers, metrics and doors where a mesh of explicit axes spreads the rows.

`CASES` are traced under such a mesh by tests/library/test_explicit_mesh.py; run as a script, on
eight emulated devices, this compares their numbers with those of one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import imbsam_jax as ij
from imbsam_jax import classifiers, losses, metrics, passes
from rule_table import BY_ID, COUNTS, RHO, head_losses_fn, init_params, losses_fn, to_library

ROWS, CLASSES = 16, len(COUNTS)
KINDS = (AxisType.Explicit,)


class Case(NamedTuple):
    """`of` a batch `(x, logits, labels, soft labels, mask)`, each with the rows in front."""

    of: Callable[..., Any]
    spread: bool  # whether what comes out has the rows in front, too


CE = losses.cross_entropy
LOSSES: dict[str, Any] = {
    "cross_entropy": CE,
    "ldam": losses.ldam(COUNTS),
    "logit_adjusted": losses.logit_adjusted(COUNTS),
    "vs": losses.vs(COUNTS),
    "softmax_binary": losses.softmax_binary(COUNTS),
    "class_balanced": losses.class_balanced(COUNTS),
    "weighted": losses.weighted(CE, [1.0, 0, 2, 1, 3], normalise="weights"),
    "focal": losses.focal(2.0),
    "smoothed": losses.smoothed(CE, 0.1),
    "deferred": losses.deferred(CE, losses.focal(2.0), switch_step=1),
}


def _of_loss(loss: Any) -> Callable[..., Any]:
    """Hard and soft labels, and the gradient by the logits, at a traced step."""

    def of(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
        step = jnp.ones((), int)
        hard = lambda z: loss(z, y, step, mask)  # noqa: E731
        return hard(z), loss(z, soft, step, mask), jax.grad(lambda z: hard(z).sum())(z)

    return of


def _adversary(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
    def loss(variant: Any) -> Any:
        of = losses.feature_adversary(lambda w, x: (CE(x @ w, y), None), COUNTS, variant=variant)
        return of(jnp.ones((x.shape[1], CLASSES)), y, x, share=0.3, mask=mask)[0]

    return loss("paper"), loss("release")


def _max_norm(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
    params = {"head": jnp.ones((3, CLASSES))}
    tx = classifiers.max_norm({"head": True})
    return tx.update(params, tx.init(params), params)[0]


def _kernel(of: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *batch: of(jnp.arange(3.0 * CLASSES).reshape(3, CLASSES) - 4)


OTHERS: dict[str, Case] = {
    "deviation_loss": Case(lambda x, z, y, s, m: losses.deviation_loss(z[:, 0], y % 2), True),
    "deep_sad_loss": Case(
        lambda x, z, y, s, m: losses.deep_sad_loss(z, y % 2, jnp.zeros(CLASSES)), True
    ),
    "feature_adversary": Case(_adversary, True),
    "class_hits": Case(lambda x, z, y, s, m: metrics.class_hits(z, y, m), False),
    "group_accuracy": Case(
        lambda x, z, y, s, m: metrics.group_accuracy(
            *metrics.class_hits(z, y, m), np.arange(CLASSES) > 1
        ),
        False,
    ),
    "shot_accuracies": Case(
        lambda x, z, y, s, m: metrics.shot_accuracies(
            *metrics.class_hits(z, y, m), ij.shot_splits(COUNTS)
        ),
        False,
    ),
    "auroc": Case(lambda x, z, y, s, m: metrics.auroc(y % 2, z[:, 0], m), False),
    "average_precision": Case(
        lambda x, z, y, s, m: metrics.average_precision(y % 2, z[:, 0], m), False
    ),
    "adjust_logits": Case(lambda x, z, *_: classifiers.adjust_logits(z, COUNTS), True),
    "lws_logits": Case(lambda x, z, *_: classifiers.lws_logits(z, jnp.ones(CLASSES)), True),
    "normalised_linear": Case(
        lambda x, *_: classifiers.normalised_linear(x, jnp.ones((x.shape[1], CLASSES))), True
    ),
    "fold_scales": Case(
        _kernel(lambda w: classifiers.fold_scales(w, jnp.ones(CLASSES), jnp.ones(CLASSES))), False
    ),
    "tau_normalise": Case(_kernel(classifiers.tau_normalise), False),
    "max_norm_radius": Case(_kernel(classifiers.max_norm_radius), False),
    "max_norm_project": Case(_kernel(lambda w: classifiers.max_norm_project(w, 1.0)), False),
    "max_norm": Case(_max_norm, False),
    "normalised_init": Case(
        lambda *batch: classifiers.normalised_init(jax.random.key(0), (3, CLASSES)), False
    ),
}


def _door(name: str, **options: Any) -> Callable[..., Any]:
    row = BY_ID[name]

    def of(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
        """Hard labels with a mask at a traced step, and soft ones at a known step."""
        params, informed = to_library(init_params(), jnp.float32), row.rule is not None
        more = {"info": True} if informed else {}
        f = row.value_and_grad(losses_fn, **options, **more)
        (loss, _, *info), grads = f(params, y, x, y, step=jnp.ones((), int), mask=mask)
        labels = y if name == "cc_sam_release" else soft  # which takes no soft ones
        return loss, info, grads, f(params, labels, x, y, step=1)[1]

    return of


def _link(name: str) -> Callable[..., Any]:
    def of(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
        params, tx = to_library(init_params(), jnp.float32), BY_ID[name].transform()
        fn = ij.class_weighted_grad(losses_fn, y, x, y, mask=mask)
        return tx.update(fn, tx.init(params), params)[0]

    return of


def _nnx(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
    from flax import nnx

    model = nnx.Linear(x.shape[1], CLASSES, rngs=nnx.Rngs(0))
    f = ij.nnx.value_and_grad(lambda m, x, y: (CE(m(x), y), None), BY_ID["imbsam"].rule(RHO))
    (loss, _), grads = f(model, y, x, y, mask=mask)
    return loss, nnx.to_pure_dict(grads)


def _batch_norm(x: Any, z: Any, y: Any, soft: Any, mask: Any) -> Any:
    def normed(params: Any, x: Any, y: Any) -> Any:
        hidden, *_ = ij.batch_norm(x @ params["hidden"]["kernel"])
        return head_losses_fn(params, jnp.tanh(hidden), x, y)[0], None

    params = to_library(init_params(), jnp.float32)
    return BY_ID["imbsam"].value_and_grad(normed)(params, y, x, y, mask=mask)


DOORS = ("sgd", "sam", "imbsam", "focal_sam", "sse_sam", "gsa", "cc_sam", "cc_sam_release")
CASES: dict[str, Case] = {
    **{name: Case(_of_loss(loss), True) for name, loss in LOSSES.items()},
    **OTHERS,
    **{f"value_and_grad, {name}": Case(_door(name), False) for name in DOORS},
    "value_and_grad, in parts": Case(_door("imbsam", passes=passes.whole(2)), False),
    "value_and_grad, batch_norm": Case(_batch_norm, False),
    **{f"sharpness_aware, {name}": Case(_link(name), False) for name in ("imbsam", "sse_sam")},
    "nnx.value_and_grad": Case(_nnx, False),
}


def make_batch() -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(0)
    y = (np.arange(ROWS) % CLASSES).astype(np.int32)
    soft = np.eye(CLASSES, dtype=np.float32)[y] * 0.9 + np.float32(0.1 / CLASSES)
    x, z = (draw.normal(size=(ROWS, n)).astype(np.float32) for n in (5, CLASSES))
    return x, z, y, soft, np.arange(ROWS) != 2


def compare() -> None:
    """Every case on eight devices, against one."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=KINDS)
    alone = jax.jit(lambda *batch: {name: case.of(*batch) for name, case in CASES.items()})
    expected = alone(*map(jnp.asarray, make_batch()))
    with jax.set_mesh(mesh):
        batch = jax.device_put(make_batch(), NamedSharding(mesh, P("rows")))
        for name, case in CASES.items():
            got = jax.block_until_ready(jax.jit(case.of)(*batch))
            jax.tree.map(
                lambda a, b, name=name: np.testing.assert_allclose(
                    a, b, rtol=1e-4, atol=1e-6, err_msg=name
                ),
                got,
                expected[name],
            )


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    compare()
