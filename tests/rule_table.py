"""The rules under test, one row each, beside the slow transcription of the same update.

A new rule is one more `Row` in `RULES`; every test that takes a row then runs over it: twelve steps
against the transcription, both front doors, masks, soft labels, six ways to spread a batch over
devices, schedules, limits. CC-SAM does not fit the table (one group per class in the batch): its
rows, `CC_SAM`, have a door of their own and no rule, and every test of `METHODS` or `ROWS` goes
through that; what only this door has is in test_cc_sam.py.

The model is the one of `reference.py`, a tanh layer and a softmax, in nested dictionaries as Flax
names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import imbsam_jax as ij
import reference
from imbsam_jax import cc_sam

# Class 2 lies exactly at eta: tail by Eq. 15, head by the released code (strict).
COUNTS = np.array([40, 25, 9, 4, 2])
ETA = 9
FEATURES, HIDDEN, CLASSES = 5, 7, len(COUNTS)
RHO = 0.3
SWITCH = 4  # first step of the second stage of every staged row
TAIL_WEIGHT = 2.5
# A partition in no order, of which a batch without tail and one of tail alone have two each.
GROUPS = np.array([4, 0, 1, 1, 0])


# ------------------------------------------------------------------------------------ the model


def features_fn(params: Any, x: Any, y: Any) -> tuple[jax.Array, None]:
    del y
    return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]), None


def head_losses_fn(params: Any, features: Any, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """Per-example cross-entropies, and the logits as aux; 0 for a label that is no class."""
    del x
    logits = features @ params["head"]["kernel"] + params["head"]["bias"][None]
    target = y if y.ndim == 2 else jax.nn.one_hot(y, CLASSES, dtype=logits.dtype)
    return -(target * jax.nn.log_softmax(logits)).sum(axis=-1), logits


def losses_fn(params: Any, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    return head_losses_fn(params, features_fn(params, x, y)[0], x, y)


def split(losses: Any) -> tuple[Any, Any]:
    """(features_fn, head_losses_fn) of losses of parameters with a "head".

    The shared model is split at its hidden layer. Of any other loss the features are the rest of
    the parameters: its gradient reaches them through the features just the same.
    """
    if losses is losses_fn:
        return features_fn, head_losses_fn

    def rest(params: Any, *args: Any) -> Any:
        return {name: part for name, part in params.items() if name != "head"}, None

    def with_head(params: Any, features: Any, *args: Any) -> Any:
        return losses({**features, "head": params["head"]}, *args)

    return rest, with_head


def to_library(params: reference.Params, dtype: Any = None) -> Any:
    def leaf(name: str) -> jax.Array:
        return jnp.asarray(params[name], dtype)

    return {
        "hidden": {"kernel": leaf("w1"), "bias": leaf("b1")},
        "head": {"kernel": leaf("w2"), "bias": leaf("b2")},
    }


def to_reference(tree: Any) -> reference.Params:
    return {
        "w1": np.asarray(tree["hidden"]["kernel"], np.float64),
        "b1": np.asarray(tree["hidden"]["bias"], np.float64),
        "w2": np.asarray(tree["head"]["kernel"], np.float64),
        "b2": np.asarray(tree["head"]["bias"], np.float64),
    }


def init_params(seed: int = 0) -> reference.Params:
    return reference.init_params(seed, FEATURES, HIDDEN, CLASSES)


def one_batch(seed: int = 1, size: int = 7, kind: reference.Kind = "mixed") -> tuple[Any, Any]:
    """(x float64[B, features], y int64[B])."""
    return reference.make_batches(seed, COUNTS, [size], [kind], eta=ETA, features=FEATURES)[0]


# A hundred small programs: what LLVM would gain at run time is less than it takes.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# ------------------------------------------------------------------------------------- the rows


class Row(NamedTuple):
    id: str
    # rho (number, array or schedule) -> rule of COUNTS; None for a row with a door of its own
    rule: Callable[[Any], Any] | None
    gradient: Callable[..., reference.Params]  # (params, x, y, step, rho): the same in NumPy
    takes_rho: bool = True
    needs_step: bool = False
    base: bool = False  # has a part taken at theta (in its last stage)
    ascent: ij.Ascent = ij.Ascent()
    door: Callable[..., Any] | None = None  # (losses_fn, rho, **options) -> f, its own
    soft: bool = True  # takes soft labels
    per_rho: float = 1.0  # the last radius of the table is this times rho
    bound: bool = False  # falls with the root of the gradient's length, as CC-SAM's radius

    def value_and_grad(self, losses_fn: Any, rho: Any = RHO, **options: Any) -> Any:
        if self.door is not None:
            return self.door(losses_fn, rho, **options)
        return ij.value_and_grad(losses_fn, self.rule(rho), ascent=self.ascent, **options)

    def transform(self, rho: Any = RHO, **options: Any) -> Any:
        return ij.sharpness_aware(self.rule(rho), ascent=self.ascent, **options)


def _sgd(params: Any, x: Any, y: Any, step: int, rho: float) -> reference.Params:
    return reference.sgd_gradient(params, x, y)


def _sam(params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any) -> reference.Params:
    return reference.sam_gradient(params, x, y, rho=rho, **kwargs)


def _imbsam(params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any) -> reference.Params:
    return reference.imbsam_gradient(params, x, y, class_counts=COUNTS, rho=rho, eta=ETA, **kwargs)


def _focal_sam(
    params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any
) -> reference.Params:
    return reference.focal_sam_gradient(params, x, y, class_counts=COUNTS, rho=rho, **kwargs)


def _sse_sam(params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any) -> reference.Params:
    return reference.sse_sam_gradient(
        params, x, y, class_counts=COUNTS, head_rho=0.2, tail_rho=rho, eta=ETA,
        switch_step=SWITCH, step=step, **kwargs,
    )  # fmt: skip


def _sgd_then_imbsam(params: Any, x: Any, y: Any, step: int, rho: float) -> reference.Params:
    return (_sgd if step < SWITCH else _imbsam)(params, x, y, step, rho)


def _sam_tail_weight(
    params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any
) -> reference.Params:
    return reference.sam_tail_weight_gradient(
        params, x, y, class_counts=COUNTS, rho=rho, eta=ETA, tail_weight=TAIL_WEIGHT, **kwargs
    )


def _imbsam_of_classifier(
    params: Any, x: Any, y: Any, step: int, rho: float, *, weight_decay_in_ascent: float = 0.0
) -> reference.Params:
    """ImbSAM whose perturbation, and its norm, take in w2 and b2 alone: masked by hand."""
    tail_part = reference.part_in(y, COUNTS <= ETA)

    def tail_at(point: reference.Params) -> reference.Params:
        of_rows = reference.weighted_gradient(point, x, y, tail_part / len(x))
        return reference.add(of_rows, reference.scale(weight_decay_in_ascent, point))

    d = tail_at(params)
    length = math.sqrt((d["w2"] ** 2).sum() + (d["b2"] ** 2).sum())
    moved = dict(params)
    if length > 0:
        moved["w2"] = params["w2"] + rho * d["w2"] / length
        moved["b2"] = params["b2"] + rho * d["b2"] / length
    head = reference.weighted_gradient(params, x, y, (1 - tail_part) / len(x))
    return reference.add(tail_at(moved), head)


def _cc_sam(params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any) -> reference.Params:
    return reference.cc_sam_gradient(params, x, y, class_counts=COUNTS, noise_ratio=rho, **kwargs)


def _cc_sam_release(
    params: Any, x: Any, y: Any, step: int, rho: float, **kwargs: Any
) -> reference.Params:
    return reference.cc_sam_release_gradient(
        params, x, y, class_counts=COUNTS, noise_ratio=rho, **kwargs
    )


def _gsa(
    params: Any, x: Any, y: Any, step: int, rho: float, groups: Any, **kwargs: Any
) -> reference.Params:
    return reference.gsa_gradient(params, x, y, class_counts=COUNTS, groups=groups, z=rho, **kwargs)


def sam_tail_weight_rule(rho: Any) -> Any:
    """A rule made by hand: any function of the step that returns ClassWeights."""
    weights = np.where(COUNTS <= ETA, TAIL_WEIGHT, 1.0)[None]
    return lambda step: ij.ClassWeights(
        None, weights, jnp.reshape(rho(step) if callable(rho) else rho, (1,))
    )


def _by_cc_sam(losses_fn: Any, rho: Any, class_counts: Any = COUNTS, **options: Any) -> Any:
    """CC-SAM's own door, as the other one is called: rho is its noise_ratio, aux the losses'."""
    f = cc_sam.value_and_grad(*split(losses_fn), class_counts, noise_ratio=rho, **options)

    def like_the_others(params: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
        (loss, (_, aux)), grads = f(params, labels, *args, **kwargs)
        return (loss, aux), grads

    return like_the_others


def _reweighted_rule(rho: Any) -> Any:
    return ij.rules.reweighted_sam(COUNTS, rho=rho, eta=ETA, tail_weight=TAIL_WEIGHT, strict=True)


def _sgd_rule(rho: Any) -> Any:
    return ij.rules.sgd(CLASSES)


def _sam_rule(rho: Any) -> Any:
    return ij.rules.sam(CLASSES, rho=rho)


def _imbsam_rule(rho: Any, **kwargs: Any) -> Any:
    return ij.rules.imbsam(COUNTS, rho=rho, eta=ETA, **kwargs)


def _focal_rule(rho: Any, **kwargs: Any) -> Any:
    return ij.rules.focal_sam(COUNTS, rho=rho, **kwargs)


def _sse_sam_rule(rho: Any) -> Any:
    return ij.rules.sse_sam(COUNTS, head_rho=0.2, tail_rho=rho, eta=ETA, switch_step=SWITCH)


def _sgd_then_imbsam_rule(rho: Any) -> Any:
    return ij.rules.stagewise(_sgd_rule(rho), _imbsam_rule(rho), switch_step=SWITCH)


def _gsa_rule(rho: Any, **kwargs: Any) -> Any:
    return ij.rules.gsa(COUNTS, scale=rho, **kwargs)


def _focal(name: str, **kwargs: float) -> Row:
    return Row(name, partial(_focal_rule, **kwargs), partial(_focal_sam, **kwargs), base=True)


# Many, medium and few: none of COUNTS is over 100, two are from 20 on.
_MEDIUM_AND_FEW = np.array([0, 0, 1, 1, 1])


def _grouped(name: str, groups: Any = None, **direction: Any) -> Row:
    """GSA; without groups by its own, medium and few."""
    of_class = _MEDIUM_AND_FEW if groups is None else groups
    size = COUNTS[of_class == of_class.max()].sum()
    return Row(
        name,
        partial(_gsa_rule, **({} if groups is None else {"groups": groups}), **direction),
        partial(_gsa, groups=of_class, **direction),
        per_rho=(size - 1.0) ** -0.25,
        bound=True,
    )


RULES = [
    Row("sgd", _sgd_rule, _sgd, takes_rho=False, base=True),
    Row("sam", _sam_rule, _sam),
    Row("imbsam", _imbsam_rule, _imbsam, base=True),
    Row(
        "imbsam_release",
        partial(_imbsam_rule, tail_scale=2.0, strict=True),
        partial(_imbsam, tail_scale=2.0, strict=True),
        base=True,
    ),
    _focal("focal_sam", gamma=1.3, strength=0.8),
    _focal("focal_sam_1.1", gamma=0.7, strength=1.1),
    Row("sse_sam", _sse_sam_rule, _sse_sam, needs_step=True, base=True),
    Row("sgd_then_imbsam", _sgd_then_imbsam_rule, _sgd_then_imbsam, needs_step=True, base=True),
    Row("sam_tail_weight", sam_tail_weight_rule, _sam_tail_weight),
    Row("reweighted_sam", _reweighted_rule, partial(_sam_tail_weight, strict=True)),
    _grouped("gsa"),
    _grouped("gsa_groups", GROUPS),
]


def _paper(name: str, perturb: str = "classifier", **options: Any) -> Row:
    door = partial(_by_cc_sam, perturb=perturb, **options)
    return Row(name, None, partial(_cc_sam, perturb=perturb), door=door, bound=True)


def _release(
    name: str, perturb: str = "classifier", flat_ratio: float = 0.3, **options: Any
) -> Row:
    same = {"perturb": perturb, "flat_ratio": flat_ratio}
    door = partial(_by_cc_sam, variant="release", **same, **options)
    gradient = partial(_cc_sam_release, **same)
    return Row(name, None, gradient, base=True, door=door, soft=False, bound=True)


CC_SAM = [_paper("cc_sam"), _paper("cc_sam-all", "all"), _release("cc_sam_release")]

METHODS = RULES + CC_SAM
BY_ID = {row.id: row for row in METHODS}


def _variant(of: str, name: str, ascent: ij.Ascent, gradient: Any) -> Row:
    return BY_ID[of]._replace(id=f"{of}-{name}", ascent=ascent, gradient=gradient)


# The second axis: how the perturbation is taken.
_CLASSIFIER_ONLY = {"hidden": False, "head": True}
ASCENTS = [
    _variant("imbsam", "p1.5", ij.Ascent(p=1.5), partial(_imbsam, p=1.5)),
    _variant("imbsam", "p3", ij.Ascent(p=3), partial(_imbsam, p=3.0)),
    _variant("imbsam", "pinf", ij.Ascent(p=math.inf), partial(_imbsam, p=math.inf)),
    _variant("sam", "pinf", ij.Ascent(p=math.inf), partial(_sam, p=math.inf)),
    _variant(
        "imbsam",
        "asam",
        ij.Ascent(adaptive=ij.asam_scale(0.05)),
        partial(_imbsam, adaptive="asam", eta_a=0.05),
    ),
    _variant(
        "sam",
        "asam-p3",
        ij.Ascent(p=3.0, adaptive=ij.asam_scale(0.05)),
        partial(_sam, p=3.0, adaptive="asam", eta_a=0.05),
    ),
    _variant(
        "imbsam",
        "davda54",
        ij.Ascent(adaptive=ij.magnitude_scale),
        partial(_imbsam, adaptive="davda54"),
    ),
    _variant(
        "imbsam_release",
        "group_mean",
        ij.Ascent(group_mean=True),
        partial(_imbsam, tail_scale=2.0, strict=True, group_mean=True),
    ),
    _variant("imbsam", "perturb", ij.Ascent(perturb=_CLASSIFIER_ONLY), _imbsam_of_classifier),
]

# The same with weight decay inside the perturbed loss; with SAM this is the official JAX SAM.
DECAY = 0.05


def decaying(row: Row) -> Row:
    gradient = partial(row.gradient, weight_decay_in_ascent=DECAY)
    ascent = row.ascent._replace(weight_decay=DECAY)
    return row._replace(id=f"{row.id}-decay", ascent=ascent, gradient=gradient)


ASCENTS += [
    decaying(row)
    for row in [
        *(BY_ID[name] for name in ("sam", "imbsam_release", "sse_sam")),
        *(row for row in ASCENTS if row.ascent.group_mean),
    ]
]

# The second axis of CC-SAM: how many classes are visited side by side, and all parameters moved.
CLASSES_AT_ONCE = [
    _paper("cc_sam-two_at_once", classes_at_once=2),
    _paper("cc_sam-all-five_at_once", "all", classes_at_once=5),
    _release("cc_sam_release-all-one_at_once", "all", 0.5, classes_at_once=1),
]

# The second axis of GSA: the controls of its direction.
DIRECTIONS = [
    _grouped("gsa-plain", GROUPS, direction="plain"),
    _grouped("gsa-projection", GROUPS, direction="projection"),
]

ROWS = METHODS + ASCENTS + CLASSES_AT_ONCE + DIRECTIONS
BY_ID |= {row.id: row for row in ROWS}


def row_id(row: Row) -> str:
    return row.id


# ----------------------------------------------------------------------------------- the doors

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-3


def descent(weight_decay: float = WEIGHT_DECAY) -> Any:
    """torch.optim.SGD with momentum, weight decay at theta: what follows the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    )
