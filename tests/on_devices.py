"""Checks on eight emulated devices; test_devices.py runs `python tests/on_devices.py CHECK`.

A process of its own, since the number of devices is fixed when JAX starts. Every step is waited
for: emulated devices abort the process when many steps with collectives are under way.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import imbsam_jax as ij
import reference
from imbsam_jax import collectives, curvature, landscape, sharpness
from imbsam_jax.experimental import remembered
from imbsam_jax.passes import own_rows, shared_norm, whole
from rule_table import (
    BY_ID,
    CLASSES,
    METHODS,
    RHO,
    SWITCH,
    Row,
    descent,
    head_losses_fn,
    init_params,
    losses_fn,
    quick_jit,
    to_library,
    to_reference,
)

DEVICES = 8
ROWS_EACH = 3
BATCH = DEVICES * ROWS_EACH
MESH = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))


def make_batch(seed: int) -> tuple[Any, Any, Any]:
    """(x, labels, mask) of the global batch; device k has a number of real rows of its own.

    Two devices have no tail row, one has no row at all.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, 5)).astype(np.float32)
    y = rng.integers(CLASSES, size=BATCH)
    y[: 2 * ROWS_EACH] %= 2
    real = np.array([3, 2, 0, 1, 3, 2, 3, 1])
    mask = np.arange(ROWS_EACH)[None] < real[:, None]
    return x, y, mask.reshape(-1)


# --------------------------------------------------------------- six ways to run one train step

# One train step is `step(carry, batch, count) -> (carry, report)`; report holds the same numbers
# on every device. `make_step(axis_name)` makes it.
Step = Callable[[Any, Any, Any], Any]


def _whole(make_step: Callable[[Any], Step]) -> Step:
    return quick_jit(make_step(None))


def _placed(step: Step) -> Step:
    """The state on every device and the batch over them before the call, as a trainer has them."""
    whole, rows = NamedSharding(MESH, P()), NamedSharding(MESH, P("batch"))

    def run(carry: Any, batch: Any, count: Any) -> Any:
        return step(jax.device_put(carry, whole), jax.device_put(batch, rows), count)

    return run


def _sharded(make_step: Callable[[Any], Step]) -> Step:
    whole, rows = NamedSharding(MESH, P()), NamedSharding(MESH, P("batch"))
    shardings = {"in_shardings": (whole, rows, whole), "out_shardings": whole}
    return _placed(quick_jit(make_step(None), **shardings))


def _shard_map(make_step: Callable[[Any], Step], check_vma: bool) -> Step:
    # With check_vma, out_specs P() also proves that the results are the same on every device.
    specs = {"mesh": MESH, "in_specs": (P(), P("batch"), P()), "out_specs": P()}
    return _placed(quick_jit(jax.shard_map(make_step("batch"), check_vma=check_vma, **specs)))


def on_leading_axis(batch: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(DEVICES, ROWS_EACH, *a.shape[1:]), batch)


def _stacked(mapped: Step) -> Step:
    """For maps over a leading axis: batches are split on it, results must agree along it."""

    def run(carry: Any, batch: Any, count: Any) -> Any:
        out = jax.tree.map(np.asarray, mapped(carry, on_leading_axis(batch), count))
        for leaf in jax.tree.leaves(out):
            np.testing.assert_array_equal(leaf, leaf[:1].repeat(DEVICES, 0))
        return jax.tree.map(lambda leaf: leaf[0], out)

    return run


def _pmap(make_step: Callable[[Any], Step]) -> Step:
    return _stacked(jax.pmap(make_step("batch"), axis_name="batch", in_axes=(None, 0, None)))


def _vmap(make_step: Callable[[Any], Step]) -> Step:
    return _stacked(
        quick_jit(jax.vmap(make_step("batch"), axis_name="batch", in_axes=(None, 0, None)))
    )


WITH_AXIS_NAME = {
    "pmap": _pmap,
    "shard_map": partial(_shard_map, check_vma=True),
    "shard_map without check_vma": partial(_shard_map, check_vma=False),
    "vmap": _vmap,
}
MODES = {"jit with a sharded batch": _sharded, **WITH_AXIS_NAME}


# -------------------------------------------------------------------------------------- the steps


def with_running_mean(params: Any, x: Any, y: Any, stats: Any) -> tuple[Any, Any]:
    """Statistics as batch normalisation has them: over the rows of a device."""
    losses, logits = losses_fn(params, x, y)
    return losses, 0.9 * stats + 0.1 * logits.mean(axis=0)


def by_value_and_grad(row: Row, axis_name: Any, **options: Any) -> Any:
    carried = getattr(options.get("passes"), "carry", None) is not None
    f = row.value_and_grad(
        with_running_mean if carried else losses_fn, axis_name=axis_name, **options
    )

    def gradient(params: Any, batch: Any, mask: Any, count: Any) -> Any:
        x, y, _ = batch
        args = (x, y, jnp.ones(CLASSES)) if carried else (x, y)
        (loss, aux, *info), grads = f(params, y, *args, step=count, mask=mask)
        return grads, (loss, info, collectives.mean(aux, axis_name) if carried else None)

    return gradient


def by_sharpness_aware(row: Row, axis_name: Any, **options: Any) -> Any:
    tx = row.transform(axis_name=axis_name, **options)

    def gradient(params: Any, batch: Any, mask: Any, count: Any) -> Any:
        x, y, _ = batch
        fn = ij.class_weighted_grad(losses_fn, y, x, y, mask=mask)
        state = ij.SharpnessAwareState(count)
        return tx.update(fn, state, params)[0], ()

    return gradient


DOORS = {"value_and_grad": by_value_and_grad, "sharpness_aware": by_sharpness_aware}


# One device tells that both doors agree for every rule: here it is enough to see how the Optax door
# reduces over devices, with one group and two, with and without a base, with means over groups.
BY_OPTAX = ("sam", "imbsam", "sse_sam", "gsa_groups", "imbsam_release-group_mean-decay")


Cases = dict[str, tuple[Row, str, bool]]


def cases_of(rows: list[Row]) -> Cases:
    """Every row through `value_and_grad` and some through `sharpness_aware`, half with the mask."""
    return {
        f"{row.id}, {door}": (row, door, (place + number) % 2 == 0)
        for place, row in enumerate(rows)
        for number, door in enumerate(DOORS)
        if door == "value_and_grad" or row.id in BY_OPTAX
    }


def train_steps(cases: Cases, axis_name: Any, **options: Any) -> Step:
    """One step of all cases at once; the report holds gradients, losses, info, running means."""

    def step(carry: Any, batch: Any, count: Any) -> Any:
        new, report = {}, {}
        for case, (row, door, masked) in cases.items():
            informed = row.id in ("imbsam", "sse_sam") and door == "value_and_grad"
            more = {"info": True, "passes": whole(carry=lambda args, stats: (*args[:2], stats))}
            gradient = DOORS[door](row, axis_name, **options, **(more if informed else {}))
            params, state = carry[case]
            report[case] = gradient(params, batch, batch[2] if masked else None, count)
            updates, state = descent().update(report[case][0], state, params)
            new[case] = optax.apply_updates(params, updates), state
        return new, report

    return step


def initial(cases: Cases) -> Any:
    params = to_library(init_params(), jnp.float32)
    return dict.fromkeys(cases, (params, descent().init(params)))


def check_modes() -> None:
    """One row of each structure, by one door; `check_every_method` takes all, by both.

    Also in the modes left out here: vmap, which test_across_devices.py maps with, and the one that
    differs from another in a check alone.
    """
    cases = (
        ("sse_sam", "value_and_grad", True),
        ("imbsam_release-group_mean-decay", "sharpness_aware", True),
        ("cc_sam-two_at_once", "value_and_grad", False),
    )
    modes = {name: MODES[name] for name in ("jit with a sharded batch", "pmap", "shard_map")}
    compare_modes({name: (BY_ID[name], door, masked) for name, door, masked in cases}, modes)


def check_every_method() -> None:
    """Every row of the shared table: no new one is left out."""
    compare_modes(cases_of(METHODS))


def compare_modes(cases: Cases, modes: dict[str, Any] = MODES) -> None:
    """Three steps, the second stage of staged rules from the third on: equal numbers everywhere."""
    make_step = partial(train_steps, cases)

    def run(mode: Any) -> Iterator[Any]:
        step, carry = mode(make_step), initial(cases)
        for count in range(SWITCH - 2, SWITCH + 1):
            carry, report = jax.block_until_ready(step(carry, make_batch(count), count))
            yield carry, report

    expected = list(run(_whole))
    for name, mode in modes.items():
        for number, (got, want) in enumerate(zip(run(mode), expected, strict=True)):
            compare(got, want, f"{name}, step {number}", atol=1e-6)


def check_micro_batches() -> None:
    """One row of each device at a time."""
    compare_passes(passes=whole(ROWS_EACH))


def check_independent() -> None:
    """Rows chosen on each device by itself: some take the buffer of one row, others the whole.

    Two devices have no tail row; under jit, of one device or several, the buffers are of all rows.
    """
    compare_passes(passes=own_rows(lambda classes: (1, ROWS_EACH, BATCH)))


def compare_passes(**options: Any) -> None:
    """In every mode, against passes over the whole batch on one device."""
    names = (
        "sgd",
        "sam",
        "imbsam",
        "sse_sam",
        "sgd_then_imbsam",
        "gsa",
        "gsa_groups",
        "imbsam_release-group_mean-decay",
    )

    def steps(axis_name: Any, **options: Any) -> Step:
        def step(carry: Any, batch: Any, count: Any) -> Any:
            x, y, mask = batch
            report = {}
            for place, name in enumerate(names):
                f = BY_ID[name].value_and_grad(
                    losses_fn, axis_name=axis_name, info=name == "sse_sam", **options
                )
                (loss, _, *info), grads = f(
                    carry, y, x, y, step=count, mask=mask if place % 2 == 0 else None
                )
                report[name] = loss, info, grads
            return carry, report

        return step

    params = to_library(init_params(), jnp.float32)
    at_once = _whole(steps)
    for name, mode in MODES.items():
        step = mode(partial(steps, **options))
        for count in (SWITCH - 1, SWITCH):
            batch = make_batch(count)
            got = jax.block_until_ready(step(params, batch, count))[1]
            compare(got, at_once(params, batch, count)[1], f"{name}, step {count}", atol=1e-6)


def check_shared_norm() -> None:
    """Batch normalisation over all devices, in every mode, against one device; and over each's own.

    Two devices have no tail row, one no row at all.
    """

    def steps(axis_name: Any, synced: bool = True) -> Step:
        how = shared_norm(lambda classes: (BATCH if axis_name is None else ROWS_EACH,))

        def normed(params: Any, x: Any, y: Any) -> Any:
            hidden, *statistics = ij.batch_norm(
                x @ params["hidden"]["kernel"],
                bias=params["hidden"]["bias"],
                axis_name=axis_name if synced else None,
            )
            return head_losses_fn(params, jnp.tanh(hidden), x, y)[0], statistics

        def step(carry: Any, batch: Any, count: Any) -> Any:
            # The first stage: two groups. Its number is concrete, so that no other is compiled.
            (x, y, mask), first = batch, np.int32(SWITCH - 1)
            f = BY_ID["sse_sam"].value_and_grad(normed, axis_name=axis_name, passes=how)
            (loss, aux), grads = f(carry, y, x, y, step=first, mask=mask)
            return carry, (loss, collectives.mean(aux, axis_name), grads)

        return step

    apart = partial(steps, synced=False)
    with jax.enable_x64(True):
        params, (x, *rest) = to_library(init_params()), make_batch(SWITCH - 1)
        batch = x.astype(np.float64), *rest

        def report(step: Step) -> Any:
            return jax.block_until_ready(step(params, batch, SWITCH - 1))[1]

        expected, alone = report(_whole(steps)), report(WITH_AXIS_NAME["vmap"](apart))
        for name, mode in MODES.items():
            compare(report(mode(steps)), expected, name, atol=1e-10)
            if name in WITH_AXIS_NAME and name != "vmap":
                compare(report(mode(apart)), alone, f"{name}, each by its own", atol=1e-10)


def check_remembered() -> None:
    """Three steps with the memory of the one before, in every mode; and one all-reduce a step."""
    rule = BY_ID["imbsam"].rule(RHO)

    def make_step(axis_name: Any, **options: Any) -> Step:
        f = remembered.value_and_grad(losses_fn, rule, decay=0.6, axis_name=axis_name, **options)

        def step(carry: Any, batch: Any, count: Any) -> Any:
            (params, memory), (x, y, mask) = carry, batch
            (loss, _), grads, memory = f(params, memory, y, x, y, step=count, mask=mask)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
            return (params, memory), (loss, grads, memory)

        return step

    ways: list[dict[str, Any]] = [
        {},
        {"passes": own_rows(lambda classes: (1, ROWS_EACH, BATCH))},
    ]
    params = to_library(init_params(), jnp.float32)
    for options in ways:
        at_once = _whole(partial(make_step, **options))
        for name, mode in MODES.items():
            step = mode(partial(make_step, **options))
            got = want = params, remembered.init(params, rule)
            for count in range(3):
                got, report = jax.block_until_ready(step(got, make_batch(count), count))
                want, expected = at_once(want, make_batch(count), count)
                compare(report, expected, f"{name}, step {count}", atol=1e-6)
    specs = {"mesh": MESH, "in_specs": (P(), P("batch"), P()), "out_specs": P()}
    mapped = quick_jit(jax.shard_map(make_step("batch"), **specs))
    state = params, remembered.init(params, rule)
    assert all_reduces(mapped.lower(state, make_batch(0), 0).compile()) == 1


def compare(got: Any, want: Any, where: str, **tolerance: float) -> None:
    def leaf(path: Any, a: Any, b: Any) -> None:
        message = f"{where}: {jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=message, **tolerance)

    jax.tree_util.tree_map_with_path(leaf, got, want)


def check_sync_ascent() -> None:
    """sync_ascent=False: each device perturbs by its own rows, here one by one in NumPy."""
    rows = [BY_ID[name] for name in ("sam", "imbsam", "gsa", "cc_sam", "cc_sam_release")]
    x, y, mask = make_batch(0)

    def device_by_device(row: Row, used: np.ndarray) -> reference.Params:
        total = reference.zeros(init_params())
        for device in range(DEVICES):
            own = np.flatnonzero(used & (np.arange(BATCH) // ROWS_EACH == device))
            if own.size:
                g = row.gradient(init_params(), x[own].astype(np.float64), y[own], 0, RHO)
                total = reference.add(total, reference.scale(own.size / used.sum(), g))
        return total

    cases = cases_of(rows)
    inputs = initial(cases), (x, y, mask), 0
    together = _whole(partial(train_steps, cases))(*inputs)[1]
    for name, mode in WITH_AXIS_NAME.items():
        step = mode(partial(train_steps, cases, sync_ascent=False))
        apart = jax.block_until_ready(step(*inputs))[1]
        for case, (row, _, masked) in cases.items():
            want = device_by_device(row, mask if masked else np.ones(BATCH, bool))
            got, synced = to_reference(apart[case][0]), to_reference(together[case][0])
            compare(got, want, f"{name}: {case}", atol=1e-6)
            differs = max(np.abs(got[key] - synced[key]).max() for key in got)
            assert differs > 1e-3, f"{name}: {case}: the same with sync_ascent"


def check_nnx() -> None:
    """A module of NNX whose parameters and batch are sharded, against one device."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs, axis_name: Any = None, norm: Any = nnx.BatchNorm):
            self.hidden = nnx.Linear(5, 16, rngs=rngs)
            self.norm = norm(16, axis_name=axis_name, rngs=rngs)
            self.head = nnx.Linear(16, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(jnp.tanh(self.norm(self.hidden(x))))

    def losses(model: Any, x: Any, y: Any) -> Any:
        return ij.losses.cross_entropy(model(x), y), None

    f = ij.nnx.value_and_grad(losses, BY_ID["sse_sam"].rule(RHO))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any, mask: Any) -> Any:
        (loss, _), grads = f(model, y, x, y, step=optimizer.step, mask=mask)
        optimizer.update(model, grads)
        return loss

    def placed(path: Any, leaf: Any) -> Any:
        over = P("batch") if leaf.shape[-1:] == (16,) and leaf.ndim == 1 else P()
        over = P(None, "batch") if leaf.shape == (5, 16) else over
        return jax.device_put(leaf, NamedSharding(MESH, over))

    def trained(sharded: bool) -> Any:
        model = Net(nnx.Rngs(0))
        if sharded:
            nnx.update(model, jax.tree_util.tree_map_with_path(placed, nnx.state(model)))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        report = []
        for count in range(SWITCH - 1, SWITCH + 1):
            batch = make_batch(count)
            if sharded:
                batch = jax.device_put(batch, NamedSharding(MESH, P("batch")))
            report.append(jax.block_until_ready(step(model, optimizer, *batch)))
        kernel = model.hidden.kernel[...].sharding
        assert kernel.is_fully_replicated != sharded, kernel
        return report, nnx.to_pure_dict(nnx.state(model))

    compare(trained(True), trained(False), "nnx", atol=1e-6)

    def mapped(axis_name: Any, norm: Any = nnx.BatchNorm) -> Any:
        """Inside shard_map, where the layer names the axis, too; state and gradient agree there."""
        graph, state = nnx.split(Net(nnx.Rngs(0), axis_name, norm))
        f = ij.nnx.value_and_grad(losses, BY_ID["imbsam"].rule(RHO), axis_name=axis_name)

        def gradient(state: Any, batch: Any) -> Any:
            model, (x, y, mask) = nnx.merge(graph, state), batch
            (loss, _), grads = f(model, y, x, y, mask=mask)
            left = model.norm.mean[...], model.norm.var[...]
            return loss, nnx.to_pure_dict(grads), left

        specs = {"mesh": MESH, "in_specs": (P(), P("batch")), "out_specs": P()}
        run = gradient if axis_name is None else jax.shard_map(gradient, **specs)
        return jax.block_until_ready(quick_jit(run)(state, make_batch(0)))

    for norm in (nnx.BatchNorm, ij.nnx.BatchNorm):
        compare(mapped("batch", norm), mapped(None), f"nnx, shard_map, {norm}", atol=1e-6)


def check_curvature() -> None:
    """Products, ends and rises over a data set that is spread over the devices."""
    weights = jnp.array([1.0, 0.5, 2.0, 0.0, 3.0])
    two = jnp.stack([weights, 3 - weights])

    def make_step(axis_name: Any, **options: Any) -> Step:
        def step(params: Any, batch: Any, count: Any) -> Any:
            x, y, mask = batch
            rows = {"mask": mask, "axis_name": axis_name, **options}
            of = (losses_fn, params, y, x, y)
            matvec = curvature.hvp(*of, class_weights=weights, **rows)
            key, like = jax.random.key(0), params
            line = landscape.line(params, jax.tree.map(lambda p: 2 * p, params))
            return params, {
                "product": matvec(like),
                "ends": curvature.extreme_eigenvalues(matvec, like, key=key, iterations=8),
                "rule": sharpness.of_rule(
                    losses_fn, BY_ID["imbsam"].rule(RHO), *of[1:], class_weights=two, **rows
                ),
                "worst": sharpness.worst(*of, radius=0.1, key=key, steps=2, **rows),
                "line": landscape.losses(
                    losses_fn, *line[:2], line.models, *of[2:], class_weights=two, **rows
                ),
            }

        return step

    params = to_library(init_params(), jnp.float32)
    expected = _whole(make_step)(params, make_batch(0), 0)[1]
    for options in ({}, {"batch_size": 2}):
        for name, mode in MODES.items():
            got = jax.block_until_ready(
                mode(partial(make_step, **options))(params, make_batch(0), 0)
            )
            compare(got[1], expected, f"{name}, {options}", atol=1e-5)


# --------------------------------------------------------------------------------- all-reduces


def all_reduces(compiled: Any) -> int:
    return len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text()))


def check_all_reduces() -> None:
    """One for the ascent steps of all groups together, one for loss and gradient: no more."""
    params, batch = to_library(init_params(), jnp.float32), make_batch(0)
    replicated, by_rows = NamedSharding(MESH, P()), NamedSharding(MESH, P("batch"))

    def count(
        door: str, mode: str, name: str, step: int, masked: bool = False, **options: Any
    ) -> int:
        gradient = DOORS[door](BY_ID[name], None if mode == "jit" else "batch", **options)

        def f(params: Any, batch: Any) -> Any:
            # A concrete step: one stage of a staged rule.
            return gradient(params, batch, batch[2] if masked else None, np.int32(step))

        if mode == "pmap":
            mapped = jax.pmap(f, axis_name="batch", in_axes=(None, 0))
            return all_reduces(mapped.lower(params, on_leading_axis(batch)).compile())
        if mode == "shard_map":
            specs = {"mesh": MESH, "in_specs": (P(), P("batch")), "out_specs": P()}
            mapped = quick_jit(jax.shard_map(f, **specs))
        else:
            mapped = quick_jit(f, in_shardings=(replicated, by_rows), out_shardings=replicated)
        return all_reduces(mapped.lower(params, batch).compile())

    # name, step: under shard_map and pmap; under jit, where XLA chooses, two ascents stay apart.
    expected = {
        ("sgd", 0): (1, 1),
        ("sam-decay", 0): (2, 2),
        ("imbsam", 0): (2, 2),
        ("imbsam_release-group_mean-decay", 0): (2, 2),
        ("sse_sam", SWITCH - 1): (2, 3),
        ("sse_sam", SWITCH): (2, 2),
        ("gsa", 0): (2, 2),  # each projection needs all of them
        ("gsa_groups", 0): (2, 2),
        ("cc_sam", 0): (3, 4),  # the rows of each class, too
    }
    for case, (mapped, plain) in expected.items():
        got = {
            "shard_map": count("value_and_grad", "shard_map", *case),
            "pmap": count("value_and_grad", "pmap", *case),
            "jit": count("value_and_grad", "jit", *case),
        }
        if BY_ID[case[0]].rule is not None:
            got["shard_map, sharpness_aware"] = count("sharpness_aware", "shard_map", *case)
        want = dict.fromkeys(got, mapped) | {"jit": plain}
        assert got == want, f"{case}: {got}, expected {want}"
    # Counting the real rows rides along with the result.
    for door in DOORS:
        assert count(door, "shard_map", "imbsam", 0, masked=True) == 2, door
    # Micro-batches are added up on their device first; chosen rows reduce between the branches.
    ways = (
        {"passes": whole(ROWS_EACH)},
        {"passes": own_rows(lambda classes: (1, ROWS_EACH))},
    )
    for mode in ("shard_map", "pmap"):
        for case in (("imbsam", 0), ("sse_sam", SWITCH - 1)):
            for options in ways:
                got = count("value_and_grad", mode, *case, **options)
                assert got == 2, f"{mode}, {case}, {options}: {got}"


if __name__ == "__main__":
    assert jax.device_count() == DEVICES, jax.devices()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    globals()[f"check_{sys.argv[1]}"]()
