"""Batches spread over devices that are mapped over, with one process, and what only some rows have.

Every expected value is that of the NumPy transcription, of the real rows alone: both sides of
`on_devices.compare_modes` run the library, so what all of its modes have in common passes there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
import reference
from imbsam_jax import passes
from imbsam_jax.experimental import remembered
from rule_table import (
    BY_ID,
    CLASSES,
    RHO,
    SWITCH,
    Row,
    init_params,
    losses_fn,
    quick_jit,
    to_library,
    to_reference,
)

DEVICES, ROWS_EACH = 2, 4
STEP = SWITCH - 1  # the first stage of staged rules, which perturbs two groups
NAMES = (
    "sgd", "sam", "imbsam", "focal_sam_1.1", "sse_sam", "gsa", "gsa_groups", "cc_sam",
    "cc_sam_release",
)  # fmt: skip
ROWS = [BY_ID[name] for name in NAMES]


def batch() -> tuple[Any, Any, Any]:
    """(x, y, mask), [D, B, ...]: three real rows and two, of class 4 one each; one has no head.

    Rows of padding are of classes that no real row has, with losses that are not small, or of no
    class at all.
    """
    rng = np.random.default_rng(7)
    x = rng.normal(size=(DEVICES, ROWS_EACH, 5))
    y = np.array([[0, 4, 0, 1], [4, 2, 3, -1]])
    mask = np.array([[True, True, True, False], [True, True, False, False]])
    x[~mask] *= 5
    return x, y, mask


def by_door(door: str, row: Row, sync: bool, params: Any, x: Any, y: Any, mask: Any) -> Any:
    """(mean loss, or None where the door reports none; gradient) on a device of the axis."""
    options = {"axis_name": "devices", "sync_ascent": sync}
    if door == "value_and_grad":
        f = row.value_and_grad(losses_fn, **options)
        (loss, _), grads = f(params, y, x, y, step=STEP, mask=mask)
        return loss, grads
    fn = ij.class_weighted_grad(losses_fn, y, x, y, mask=mask)
    state = ij.SharpnessAwareState(np.int32(STEP))
    return None, row.transform(**options).update(None, state, params, weighted_grad_fn=fn)[0]


CASES = [
    (row.id, door)
    for row in ROWS
    for door in ("value_and_grad", "sharpness_aware")
    if row.rule is not None or door == "value_and_grad"
]
# Others have the structure of one of these: of imbsam, of gsa_groups, or of neither group.
SLOW = {
    *((name, door) for name in ("focal_sam_1.1", "gsa") for _, door in CASES),
    *((name, "sharpness_aware") for name in ("sgd", "sam", "gsa_groups")),
}


@cache
def found(sync: bool, slow: bool) -> Any:
    """(loss, gradient) of each case and device: one program for all of them."""
    with jax.enable_x64(True):
        x, y, mask = batch()
        params = to_library(init_params())

        def on_device(x: Any, y: Any, mask: Any) -> Any:
            return {
                (name, door): by_door(door, BY_ID[name], sync, params, x, y, mask)
                for name, door in CASES
                if ((name, door) in SLOW) == slow
            }

        return jax.device_get(quick_jit(jax.vmap(on_device, axis_name="devices"))(x, y, mask))


@cache
def by_hand(name: str, sync: bool) -> reference.Params:
    """Of all real rows together, or of each device's alone, weighted by how many it has."""
    x, y, mask = batch()
    whose = [mask] if sync else [mask & (np.arange(DEVICES) == k)[:, None] for k in range(DEVICES)]
    total = reference.zeros(init_params())
    for own in whose:
        g = BY_ID[name].gradient(init_params(), x[own], y[own], STEP, RHO)
        total = reference.add(total, reference.scale(own.sum() / mask.sum(), g))
    return total


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(
    ("name", "door"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES],
)
def test_devices_ascend_together_or_each_by_its_own_rows(name: str, door: str, sync: bool) -> None:
    _, grads = found(sync, (name, door) in SLOW)[name, door]
    want = by_hand(name, sync)
    for device in range(DEVICES):
        got = to_reference(jax.tree.map(lambda leaf, k=device: leaf[k], grads))
        for key, value in want.items():
            np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-12, err_msg=key)
    other = by_hand(name, not sync)
    differs = max(np.abs(want[key] - other[key]).max() for key in want)
    assert (differs < 1e-12) if name == "sgd" else (differs > 1e-3)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row.id, marks=[pytest.mark.slow] * ((row.id, "value_and_grad") in SLOW)
        )
        for row in ROWS
    ],
)
def test_the_mean_loss_is_that_of_the_real_rows_of_all_devices(row: Row, sync: bool) -> None:
    x, y, mask = batch()
    want = reference.per_example_losses(init_params(), x[mask], y[mask]).mean()
    case = row.id, "value_and_grad"
    loss, _ = found(sync, case in SLOW)[case]
    np.testing.assert_allclose(loss, [want] * DEVICES, rtol=1e-12)


# How passes are run: each device takes its rows in parts, or chooses among its own.
PASSES = {
    "micro_batches": {"passes": passes.whole(2)},
    "own_rows": {"passes": passes.own_rows(lambda classes: (2, ROWS_EACH))},
    "split_norm": {"passes": passes.split_norm(lambda classes: (2, ROWS_EACH))},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("passes", "name"),
    [
        ("micro_batches", "imbsam"),
        ("own_rows", "sse_sam"),
        ("split_norm", "imbsam"),
        pytest.param("micro_batches", "sse_sam", marks=pytest.mark.slow),
        pytest.param("split_norm", "sse_sam", marks=pytest.mark.slow),
    ],
)
def test_how_passes_are_run_does_not_show_on_several_devices(passes: str, name: str) -> None:
    x, y, mask = batch()
    row = BY_ID[name]
    f = row.value_and_grad(losses_fn, axis_name="devices", **PASSES[passes])
    params = to_library(init_params())
    mapped = jax.vmap(lambda x, y, m: f(params, y, x, y, step=STEP, mask=m), axis_name="devices")
    (loss, _), grads = quick_jit(mapped)(x, y, mask)
    want = reference.per_example_losses(init_params(), x[mask], y[mask]).mean()
    np.testing.assert_allclose(loss, [want] * DEVICES, rtol=1e-12)
    for device in range(DEVICES):
        got = to_reference(jax.tree.map(lambda leaf, k=device: leaf[k], grads))
        for key, value in by_hand(row.id, True).items():
            np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.usefixtures("x64")
def test_devices_remember_one_direction() -> None:
    """With it the second step on a batch is ImbSAM's, whatever part of it is kept."""
    x, y, mask = batch()
    row, decay = BY_ID["imbsam"], 0.6
    rule = row.rule(RHO)
    f = remembered.value_and_grad(losses_fn, rule, decay=decay, axis_name="devices")
    params = to_library(init_params())

    def two_steps(x: Any, y: Any, m: Any) -> Any:
        _, _, memory = f(params, remembered.init(params, rule), y, x, y, mask=m)
        return f(params, memory, y, x, y, mask=m)

    (loss, _), grads, (memory,) = quick_jit(jax.vmap(two_steps, axis_name="devices"))(x, y, mask)
    want = reference.per_example_losses(init_params(), x[mask], y[mask]).mean()
    np.testing.assert_allclose(loss, [want] * DEVICES, rtol=1e-12)
    x, y = x[mask], y[mask]
    head = rule(0).base[y] / len(y)
    base = reference.weighted_gradient(init_params(), x, y, head)
    at_theta = reference.weighted_gradient(init_params(), x, y, rule(0).groups[0][y] / len(y))
    whole = by_hand(row.id, True)
    for device in range(DEVICES):
        got, kept = (
            to_reference(jax.tree.map(lambda leaf, k=device: leaf[k], tree))
            for tree in (grads, memory)
        )
        for key, value in whole.items():
            np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-12, err_msg=key)
            moved = value - base[key]
            remembers = (1 - decay) * (decay * at_theta[key] + moved)
            np.testing.assert_allclose(kept[key], remembers, rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.usefixtures("x64")
def test_renormalised_batches_have_the_statistics_of_all_devices() -> None:
    """Values do not show them, gradients do: batch normalisation's by the whole batch."""
    rng = np.random.default_rng(3)
    x, pull = rng.normal(size=(2, DEVICES, 3, 4))
    x = x + np.arange(DEVICES)[:, None, None]  # of which no device has the mean
    mean, var = rng.normal(size=4), rng.uniform(0.5, 2, size=4)

    def renormed(x: Any) -> Any:
        own = lambda x: ij.batch_renorm(x, mean, var, axis_name="devices")  # noqa: E731
        return jax.vmap(own, axis_name="devices")(x)

    def batch_norm(x: Any) -> Any:
        m, v = x.mean((0, 1)), x.var((0, 1))
        return (x - m[None, None]) / jnp.sqrt(v + 1e-5)[None, None]

    def pulled(f: Any, pull: Any) -> Any:
        value, pull_back = jax.vjp(f, x)
        return value, *pull_back(pull)

    r = np.sqrt((x.var((0, 1)) + 1e-5) / (var + 1e-5))
    (value, got), (_, want) = quick_jit(
        lambda: (pulled(renormed, pull), pulled(batch_norm, pull * r))
    )()
    np.testing.assert_allclose(value, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sync", [True, False])
def test_a_wider_axis_than_classes(sync: bool) -> None:
    """One row a device and more devices than classes: every class is visited, by CC-SAM too."""
    devices = CLASSES + 2
    x, y = np.random.default_rng(1).normal(size=(devices, 1, 5)), np.arange(devices) % CLASSES
    params = to_library(init_params())
    names = ("imbsam", "cc_sam_release")

    def on_device(x: Any, y: Any) -> Any:
        options = {"axis_name": "devices", "sync_ascent": sync}
        return [
            BY_ID[name].value_and_grad(losses_fn, **options)(params, y, x, y)[1] for name in names
        ]

    found = quick_jit(jax.vmap(on_device, axis_name="devices"))(x, y[:, None])
    for name, grads in zip(names, found, strict=True):
        row = BY_ID[name]
        got = to_reference(jax.tree.map(lambda g: g[0], grads))
        groups = [np.arange(devices)] if sync else np.arange(devices)[:, None]
        want = reference.zeros(init_params())
        for own in groups:
            g = row.gradient(init_params(), x[own, 0], y[own], 0, RHO)
            want = reference.add(want, reference.scale(len(own) / devices, g))
        for key, value in want.items():
            np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-12)
