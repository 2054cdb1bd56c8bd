"""`imbsam_jax.nnx`: the same numbers as the first door on the same function, written without Flax.

The model has a layer of batch normalisation and one of dropout; its transcription takes parameters,
running statistics and the key of the mask, and returns what the layers would leave behind.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import imbsam_jax as ij
from imbsam_jax.passes import own_rows, shared_norm, split_norm, whole
from rule_table import (
    BY_ID,
    CLASSES,
    COUNTS,
    FEATURES,
    RULES,
    SWITCH,
    Row,
    quick_jit,
)

HIDDEN, ROWS, KEEP, MOMENTUM = 6, 8, 0.75, 0.9


class Net(nnx.Module):
    """tanh of a normalised layer, dropout, a classifier."""

    def __init__(self, rngs: nnx.Rngs, norm: Any = nnx.BatchNorm, dtype: Any = float):
        self.hidden = nnx.Linear(FEATURES, HIDDEN, rngs=rngs, param_dtype=dtype)
        self.norm = norm(HIDDEN, momentum=MOMENTUM, rngs=rngs, param_dtype=dtype) if norm else None
        self.dropout = nnx.Dropout(1 - KEEP, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs, param_dtype=dtype)

    def __call__(self, x: Any) -> Any:
        x = self.hidden(x)
        x = jnp.tanh(x if self.norm is None else self.norm(x))
        return self.head(self.dropout(x))


def losses_fn(model: Any, x: Any, y: Any) -> Any:
    logits = model(x)
    return ij.losses.cross_entropy(logits, y), logits


def plain_fn(
    params: Any, x: Any, y: Any, stats: Any, held: Any, key: Any, *, in_parts: bool = False
) -> Any:
    """The same in jax.numpy; (losses, (logits, new statistics, the batch's own))."""
    x = x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]
    own = None
    if stats is not None:
        mean, var = own = x.mean(0), (x**2).mean(0) - x.mean(0) ** 2
        if in_parts:
            x, *own = ij.batch_norm(x)
        elif held is not None:
            # Given values, own gradients: the batch's deviations are held fixed in what corrects.
            s, given = jnp.sqrt(var + 1e-5), jnp.sqrt(held[1] + 1e-5)
            r, d = jax.lax.stop_gradient((s / given, (mean - held[0]) / given))
            x = (x - mean[None]) / s[None] * r[None] + d[None]
        else:
            x = (x - mean[None]) / jnp.sqrt(var[None] + 1e-5)
        x = x * params["norm"]["scale"][None] + params["norm"]["bias"][None]
        stats = tuple(
            MOMENTUM * s + (1 - MOMENTUM) * new for s, new in zip(stats, own, strict=True)
        )
    x = jnp.tanh(x)
    keep = jax.random.bernoulli(key, KEEP, x.shape)
    x = jnp.where(keep, x / KEEP, 0)
    logits = x @ params["head"]["kernel"] + params["head"]["bias"][None]
    return ij.losses.cross_entropy(logits, y), (logits, stats, own)


@cache
def batch() -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(4)
    y = np.array([0, 3, 1, 4, 0, 1, 2, 0])
    return draw.normal(size=(ROWS, FEATURES)), y, np.arange(ROWS) != 2


def pure(state: Any) -> Any:
    return nnx.to_pure_dict(state)


def close(got: Any, want: Any, atol: float = 1e-13, rtol: float = 1e-11) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


# ---- rules x passes -----------------------------------------------------------------------------


def SIZES(classes: Any) -> tuple[int, ...]:
    """A choice of two, but none for the two classes in the tail of imbsam_release."""
    return (5,) if classes.sum() == 2 else (5, ROWS)


SIZES_OF_PARTS = lambda classes: (7,)  # noqa: E731


def _next_statistics(args: Any, aux: Any) -> Any:
    x, y, _, held, key = args
    stats = aux[1]
    if stats[0].ndim == 2:
        stats = tuple(s.mean(0) for s in stats)
    return x, y, stats, held, key


def _next_batch(args: Any, aux: Any) -> Any:
    return (*args[:3], aux[2], args[4])


_PLAIN = (True, True, False, False, False)
# name -> (layer, passes of the module, passes of the transcription)
PASSES: dict[str, Any] = {
    "whole": (nnx.BatchNorm, whole(), whole()),
    "micro_batches": (nnx.BatchNorm, whole(2), whole(2, _PLAIN)),
    "carry": (
        nnx.BatchNorm,
        whole(carry=ij.nnx.carry_statistics),
        whole(carry=_next_statistics),
    ),
    "carry, micro_batches": (
        nnx.BatchNorm,
        whole(2, carry=ij.nnx.carry_statistics),
        whole(2, _PLAIN, carry=_next_statistics),
    ),
    "own_rows": (None, own_rows(SIZES), own_rows(SIZES, _PLAIN)),
    "split_norm": (
        ij.nnx.BatchNorm,
        split_norm(SIZES, carry=ij.nnx.carry_batch),
        split_norm(SIZES, _PLAIN, carry=_next_batch),
    ),
    "split_norm, own": (nnx.BatchNorm, split_norm(SIZES), split_norm(SIZES, _PLAIN)),
    "shared_norm": (
        ij.nnx.BatchNorm,
        shared_norm(SIZES_OF_PARTS),
        shared_norm(SIZES_OF_PARTS, _PLAIN),
    ),
    "own layer": (ij.nnx.BatchNorm, whole(), whole()),
}


def compare(rows: list[Row], kind: str) -> None:
    """Loss, aux, gradients, statistics and counts of one step, of each row."""
    norm, passes, plain_passes = PASSES[kind]
    x, y, mask = batch()
    graph, state = nnx.split(Net(nnx.Rngs(3), norm))
    # Not at their start, where much is zero; Flax keeps statistics in float32.
    start = np.random.default_rng(5)
    state = jax.tree.map(
        lambda v: (
            v.astype(float) + start.uniform(0.1, 0.5, v.shape)
            if jnp.issubdtype(v.dtype, jnp.floating) else v
        ),
        state,
    )  # fmt: skip

    def by_module(row: Row, state: Any, step: Any) -> Any:
        model = nnx.merge(graph, state, copy=True)
        f = ij.nnx.value_and_grad(
            losses_fn, row.rule(0.3), ascent=row.ascent, passes=passes, info=True
        )
        (loss, aux, info), grads = f(model, y, x, y, step=step, mask=mask)
        return loss, aux, info, pure(grads), pure(nnx.state(model))

    def by_hand(row: Row, state: Any, step: Any) -> Any:
        everything = pure(state)
        names = ("hidden", "head") + (("norm",) if norm else ())
        params = {
            name: {k: v for k, v in everything[name].items() if k in ("kernel", "bias", "scale")}
            for name in names
        }
        stats = (everything["norm"]["mean"], everything["norm"]["var"]) if norm else None
        stream = everything["dropout"]["rngs"]
        key = jax.random.fold_in(stream["key"], stream["count"])

        def without_state(params: Any, *args: Any) -> Any:
            in_parts = isinstance(plain_passes, shared_norm)
            losses, (logits, *left) = plain_fn(params, *args, in_parts=in_parts)
            return losses, (logits, *left) if norm else (logits,)

        f = row.value_and_grad(without_state, passes=plain_passes, info=True)
        (loss, (logits, *left), info), grads = f(
            params, y, x, y, stats, None, key, step=step, mask=mask
        )
        if norm:
            new = [s.mean(0) if s.ndim == 2 else s for s in left[0]]
            everything["norm"] |= {"mean": new[0], "var": new[1]}  # the rest as it was
        stream["count"] = stream["count"] + 1
        return loss, logits, info, grads, everything

    programs = [
        quick_jit(lambda state, step, of=of: {row.id: of(row, state, step) for row in rows})
        for of in (by_module, by_hand)
    ]
    for step in (SWITCH - 1, SWITCH) if any(row.needs_step for row in rows) else (0,):
        got, want = (program(state, step) for program in programs)
        for one in (*got.values(), *want.values()):
            stream = one[-1]["dropout"]["rngs"]
            assert stream["count"] == 1
            stream["key"] = jax.random.key_data(stream["key"])
        close(got, want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "kind",
    [
        "whole",
        pytest.param("carry, micro_batches", marks=pytest.mark.slow),
        pytest.param("own_rows", marks=pytest.mark.slow),
        "split_norm",
        "shared_norm",
    ],
)
def test_it_is_the_first_door_on_the_same_function(kind: str) -> None:
    compare([BY_ID["imbsam_release"]], kind)


# Those that look at names, at rows, at a sum over groups: the tree is another than the table's.
_MORE = ("imbsam-asam", "imbsam_release-group_mean-decay", "gsa-projection")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", PASSES)
def test_every_rule_is_the_first_door_on_the_same_function(kind: str) -> None:
    compare([*RULES, *(BY_ID[name] for name in _MORE)], kind)


# ---- training -----------------------------------------------------------------------------------

IMBSAM = ij.rules.imbsam(COUNTS, rho=0.05, eta=9)


def mean_loss(model: Any, x: Any, y: Any) -> Any:
    losses, logits = losses_fn(model, x, y)
    return losses.mean(), logits


def trained(door: Any, model: Any, steps: int = 3) -> Any:
    """(losses, what the model then holds) of some steps under nnx.jit."""
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        (loss, logits), grads = door(model, x, y, optimizer)
        optimizer.update(model, grads)
        return loss, logits

    x, y, _ = batch()
    x = x.astype(np.float32)
    reports = [step(model, optimizer, x + number, y) for number in range(steps)]
    return reports, held_by(model)


def held_by(model: Any) -> Any:
    state = nnx.state(model)
    return pure(jax.tree.map(lambda v: v if _is_number(v) else jax.random.key_data(v), state))


def _is_number(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool)


def sharp(rule: Any, **options: Any) -> Any:
    f = ij.nnx.value_and_grad(losses_fn, rule, **options)
    return lambda model, x, y, optimizer: f(model, y, x, y, step=optimizer.step)


def test_with_sgd_it_is_the_door_of_flax() -> None:
    """Loss, aux, parameters, statistics, counts; the layer that may renormalise is Flax's, too."""
    f = nnx.value_and_grad(mean_loss, has_aux=True)
    want = trained(lambda model, x, y, _: f(model, x, y), Net(nnx.Rngs(0), dtype=jnp.float32))
    ours = Net(nnx.Rngs(0), ij.nnx.BatchNorm, dtype=jnp.float32)
    got = trained(sharp(ij.rules.sgd(CLASSES)), ours)
    for extra in ("batch_mean", "batch_var", "held"):
        del got[1]["norm"][extra]
    close(got, want, atol=1e-6, rtol=1e-6)
    assert got[1]["dropout"]["rngs"]["count"] == 3


def test_seeds_train_side_by_side_under_nnx_vmap() -> None:
    """As one by one; each has streams and statistics of its own."""
    make = partial(Net, dtype=jnp.float32)
    door = sharp(IMBSAM)
    x, y, _ = batch()
    x = x.astype(np.float32)

    @nnx.vmap(in_axes=(0, None, None))
    def step(model: Any, x: Any, y: Any) -> Any:
        (loss, _), grads = door(model, x, y, _NoOptimizer)
        return loss, pure(grads)

    models = nnx.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(jax.random.key(1), 2))
    graph, state = nnx.split(models)
    alone, by_itself = [], nnx.jit(lambda model: door(model, x, y, _NoOptimizer))
    for seed in range(2):
        model = nnx.merge(graph, jax.tree.map(lambda v, seed=seed: v[seed], state), copy=True)
        (loss, _), grads = by_itself(model)
        alone.append((loss, pure(grads), held_by(model)))
    loss, grads = nnx.jit(step)(models, x, y)
    together = loss, grads, held_by(models)
    for seed in range(2):
        one = jax.tree.map(lambda v, seed=seed: v[seed], together)
        close(one, alone[seed], atol=1e-6, rtol=1e-5)


class _NoOptimizer:
    step = 0


def test_wrt_says_what_moves() -> None:
    """Of the head alone gradient and radius are; the layer below is part of the function."""
    head = nnx.All(nnx.Param, nnx.PathContains("head"))
    model = Net(nnx.Rngs(0), None, dtype=jnp.float32)
    x, y, _ = batch()
    x = x.astype(np.float32)
    seen = jax.nn.tanh(model.hidden(x))
    model.dropout.deterministic = True
    f = ij.nnx.value_and_grad(losses_fn, IMBSAM, wrt=head, info=True)
    (_, _, info), grads = nnx.jit(lambda model: f(model, y, x, y))(model)

    def of_head(params: Any, seen: Any) -> Any:
        return ij.losses.cross_entropy(seen @ params["kernel"] + params["bias"][None], y), None

    params = pure(nnx.state(model.head))
    plain = quick_jit(ij.value_and_grad(of_head, IMBSAM, info=True))
    (_, _, want_info), want = plain(params, y, seen)
    close((pure(grads), info), ({"head": want}, want_info), atol=1e-6, rtol=1e-5)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=head)
    optimizer.update(model, grads)
    close(pure(nnx.state(model.head)), jax.tree.map(lambda p, g: p - 0.1 * g, params, want), 1e-6)


def test_asam_knows_a_bias() -> None:
    params = nnx.state(Net(nnx.Rngs(0), dtype=jnp.float32), nnx.Param)
    scale = pure(ij.asam_scale(0.5)(params))
    for name in ("hidden", "norm", "head"):
        assert (scale[name]["bias"] == 1).all()
    close(scale["head"]["kernel"], jnp.abs(params["head"]["kernel"][...]) + 0.5)
    assert (scale["norm"]["scale"] == 1.5).all()


# ---- the rest of the state ----------------------------------------------------------------------


class Adapted(nnx.Module):
    """A frozen layer with running statistics, a new Variable, and a count that each call raises."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(FEATURES, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(FEATURES, CLASSES, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), int))

    def __call__(self, x: Any) -> Any:
        self.calls[...] += 1
        x = self.norm(x)
        self.seen = nnx.Intermediate(x)
        return self.head(x)


def test_what_a_call_adds_or_counts_is_that_of_one_pass() -> None:
    x, y, _ = batch()
    x = x.astype(np.float32)
    model, once = Adapted(nnx.Rngs(0)), Adapted(nnx.Rngs(0))
    once(x)
    nnx.jit(lambda m: ij.nnx.value_and_grad(losses_fn, IMBSAM)(m, y, x, y))(model)
    close(held_by(model), held_by(once), atol=1e-6)
    model = Adapted(nnx.Rngs(0))
    nnx.jit(lambda m: ij.nnx.value_and_grad(losses_fn, IMBSAM, passes=whole(2))(m, y, x, y))(model)
    assert model.calls[...] == 1


def test_what_a_pass_leaves_alone_is_no_output_of_it() -> None:
    """Else micro-batches would stack a frozen network."""
    x, y, _ = batch()
    x = x.astype(np.float32)
    found = []

    def carry(args: Any, aux: Any) -> Any:
        found.append([path for path, _ in nnx.to_flat_state(aux[1])])
        return args

    f = ij.nnx.value_and_grad(losses_fn, IMBSAM, passes=whole(carry=carry))
    jax.make_jaxpr(lambda: f(Net(nnx.Rngs(0), dtype=jnp.float32), y, x, y)[0][0])()
    assert found == [[("dropout", "rngs", "count"), ("norm", "mean"), ("norm", "var")]]


# ---- what is refused ----------------------------------------------------------------------------


def refused(kind: Any, says: str, model: Any = None, *more: Any, **options: Any) -> None:
    x, y, _ = batch()
    model = Net(nnx.Rngs(0), dtype=jnp.float32) if model is None else model
    with pytest.raises(kind, match=says):
        f = ij.nnx.value_and_grad(lambda m, x, y, *_: losses_fn(m, x, y), IMBSAM, **options)
        f(model, y, x.astype(np.float32), y, *more)


def test_examples_that_see_each_other_have_no_own_rows() -> None:
    refused(ValueError, r"losses_fn changes BatchStat norm\.mean: take", passes=own_rows(SIZES))


def test_layers_that_know_nothing_of_the_other_parts_have_no_shared_norm() -> None:
    """Not even one beside another that does."""
    how = shared_norm(SIZES_OF_PARTS)
    refused(
        ValueError, r"norm\.(mean|var) would be that of a part: use .*nnx\.BatchNorm", passes=how
    )
    model = Net(nnx.Rngs(0), ij.nnx.BatchNorm, dtype=jnp.float32)
    model.head = nnx.Sequential(model.head, nnx.BatchNorm(CLASSES, rngs=nnx.Rngs(0)))
    refused(ValueError, r"head\.layers\.1\.(mean|var) would be that of a part", model, passes=how)
    without = Net(nnx.Rngs(0), None, dtype=jnp.float32)
    refused(ValueError, "no layer of losses_fn asks for them: .*nnx.BatchNorm", without, passes=how)


def test_a_stream_among_the_args_is_refused() -> None:
    refused(TypeError, r"args\[2\] is or holds a Rngs, .* keep it in the model", None, nnx.Rngs(0))
    holds = {"teacher": nnx.Linear(2, 2, rngs=nnx.Rngs(0))}
    refused(TypeError, r"args\[2\] is or holds a Linear", None, holds)


def test_parameters_that_nothing_selects_are_refused() -> None:
    refused(ValueError, r"wrt=.*LoRAParam.* selects no Variable of the Net", wrt=nnx.LoRAParam)
    refused(ValueError, r"selects no Variable of the Rngs", nnx.Rngs(0))


def test_what_is_no_rule_or_no_passes_is_refused() -> None:
    with pytest.raises(TypeError, match="the rule must be a function of the step"):
        ij.nnx.value_and_grad(losses_fn, 0.05)
    refused(TypeError, r"passes must be passes\.whole\(", passes=whole)


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
def test_the_layer_has_the_types_of_flaxs(dtype: Any) -> None:
    x = jnp.ones((2, 3), jnp.bfloat16)
    ours, theirs = (
        norm(3, dtype=dtype, rngs=nnx.Rngs(0)) for norm in (ij.nnx.BatchNorm, nnx.BatchNorm)
    )
    assert ours(x).dtype == theirs(x).dtype
    assert ours.mean[...].dtype == theirs.mean[...].dtype


def test_batched_is_of_the_args_alone() -> None:
    refused(ValueError, r"batched has 3 entries for 2 args", passes=whole(2, (True, True, False)))


@pytest.mark.parametrize(
    "options",
    [
        {"axis": 0},
        {"axis_index_groups": [[0]]},
        {"use_fast_variance": False},
        {"promote_dtype": None},
    ],
)
def test_the_layer_says_what_it_leaves_out(options: Any) -> None:
    with pytest.raises(ValueError, match=r"is not for imbsam_jax\.nnx\.BatchNorm"):
        ij.nnx.BatchNorm(2, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match="takes no mask"):
        ij.nnx.BatchNorm(2, rngs=nnx.Rngs(0))(jnp.ones((2, 2)), mask=jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"x must be float\[\.\.\., 1\]"):
        ij.nnx.BatchNorm(1, rngs=nnx.Rngs(0))(jnp.ones((2, 3)))


def test_running_statistics_of_micro_batches_are_averaged() -> None:
    model, (x, y, _) = Net(nnx.Rngs(0)), batch()
    seen = model.hidden(x)
    ij.nnx.value_and_grad(losses_fn, ij.rules.sgd(CLASSES), passes=whole(2))(model, y, x, y)
    assert model.norm is not None
    np.testing.assert_allclose(model.norm.mean[...], (1 - MOMENTUM) * seen.mean(0), rtol=1e-5)


class Noting(nnx.Module):
    """w x, and the sum of the x that it saw last."""

    def __init__(self) -> None:
        self.w, self.last = nnx.Param(jnp.ones(())), nnx.Variable(jnp.zeros((), int))

    def __call__(self, x: Any) -> Any:
        self.last[...] = x.astype(int).sum()
        return self.w * x


def test_whole_numbers_are_those_of_the_last_micro_batch() -> None:
    model, x = Noting(), jnp.array([1.0, 2.0, 3.0, 4.0])
    f = ij.nnx.value_and_grad(lambda m, x: (m(x), None), ij.rules.sgd(2), passes=whole(2))
    f(model, np.zeros(4, int), x)
    assert model.last[...] == 2 + 4


class Dropping(nnx.Module):
    """w x, or nothing."""

    def __init__(self) -> None:
        self.w, self.dropout = nnx.Param(jnp.ones(())), nnx.Dropout(1 - KEEP, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.w * x)


def test_a_stream_goes_on_by_one_where_a_pass_sees_some_rows() -> None:
    """A row of padding is in no buffer, and its count is none."""
    model, x = Dropping(), jnp.ones(3)
    rule, how = ij.rules.sgd(2), own_rows(lambda classes: (2,))
    f = ij.nnx.value_and_grad(lambda m, x: (m(x), None), rule, passes=how)
    nnx.jit(lambda model: f(model, np.zeros(3, int), x, mask=x.cumsum() < 3)[1])(model)
    assert model.dropout.rngs.count[...] == 1


@pytest.mark.parametrize("shape", [(5, 2), (3, 4, 2), (2, 3, 4, 2)])
def test_the_layer_takes_any_axes_before_the_features(shape: tuple[int, ...]) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    y = ij.nnx.BatchNorm(2, rngs=nnx.Rngs(0))(x)
    rows = np.asarray(x, np.float64).reshape(-1, 2)
    wanted = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(y, wanted.reshape(shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("door", ["value_and_grad", "sharpness_aware", "class_weighted_grad"])
def test_a_module_is_no_tree_of_parameters(door: str) -> None:
    """Its running statistics are floats, too, and would be perturbed."""
    model, (x, y, _) = Net(nnx.Rngs(0)), batch()
    fn = ij.class_weighted_grad(losses_fn, y, x, y)
    calls = {
        "value_and_grad": lambda: ij.value_and_grad(losses_fn, IMBSAM)(model, y, x, y),
        "class_weighted_grad": lambda: fn(model, np.ones(CLASSES)),
        "sharpness_aware": lambda: ij.sharpness_aware(IMBSAM).update(
            fn, ij.SharpnessAwareState(jnp.zeros((), int)), {"net": model}
        ),
    }
    says = (
        r"is a Net, a module of flax\.nnx, .* imbsam_jax\.nnx\.value_and_grad takes it; elsewhere"
    )
    with pytest.raises(TypeError, match=says):
        calls[door]()


class Sowing(nnx.Module):
    """What it sows becomes one longer in every pass."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        before = jax.tree.leaves(self.seen) if hasattr(self, "seen") else []
        self.seen = nnx.Intermediate((*before, x.mean()))
        return self.head(x)


@pytest.mark.parametrize("passes", [whole(), whole(2), split_norm(lambda classes: (4,))])
def test_what_a_pass_makes_longer_is_taken_as_it_is(passes: Any) -> None:
    """`Module.sow` does so: a second step raised what JAX says of trees that differ."""
    x, labels = jnp.arange(8.0 * FEATURES).reshape(8, FEATURES), jnp.arange(8) % CLASSES
    model = Sowing(nnx.Rngs(0))
    f = ij.nnx.value_and_grad(losses_fn, ij.rules.imbsam(COUNTS, rho=0.1, eta=20), passes=passes)
    for step in range(1, 3):
        f(model, labels, x, labels)
        parts = [x[k :: getattr(passes, "micro_batches", 1)].mean() for k in range(2)]
        parts = parts[: getattr(passes, "micro_batches", 1)]
        assert len(jax.tree.leaves(model.seen)) == step
        np.testing.assert_allclose(np.ravel(jax.tree.leaves(model.seen)[-1]), parts, rtol=1e-6)
