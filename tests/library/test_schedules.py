"""Schedules by epoch against the published tables, concrete and traced, and inside a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imbsam_jax as ij
from imbsam_jax import schedules

STEPS = 7  # per epoch


def by_epoch(schedule: Callable[[Any], Any], epochs: int) -> list[float]:
    """The value of each epoch, which is that of its first, of its last and of a traced step."""
    values = [schedule(epoch * STEPS) for epoch in range(epochs)]
    assert all(isinstance(value, float) for value in values)
    assert values == [schedule(epoch * STEPS + STEPS - 1) for epoch in range(epochs)]
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(epochs, dtype=jnp.int32) * STEPS + 3)
    np.testing.assert_allclose(traced, values, rtol=1e-6)
    return values


def test_the_cifar_step_schedule_of_focal_sam() -> None:
    # Published by epochs from 1: up to 5, up to 160, up to 180, after.
    expected = [
        0.05 if e <= 5 else 0.6 if e > 180 else 0.5 if e > 160 else 0.1 for e in range(1, 201)
    ]
    assert by_epoch(schedules.step_radius(steps_per_epoch=STEPS), 200) == expected


def test_the_imagenet_schedule_of_saddle_longtail() -> None:
    expected = [0.05 if e <= 5 else 0.1 if e <= 60 else 0.5 for e in range(1, 91)]
    rho = schedules.step_radius((0.05, 0.1, 0.5, 0.5), (5, 60, 75), steps_per_epoch=STEPS)
    assert by_epoch(rho, 90) == expected


@pytest.mark.parametrize("epochs", [1, 5, 7, 90, 200])
def test_the_late_radius_of_focal_sam(epochs: int) -> None:
    expected = [0.1 if 10 * e < 8 * epochs else 0.2 for e in range(1, epochs + 1)]
    rho = schedules.late_radius(0.1, 0.2, epochs=epochs, steps_per_epoch=STEPS)
    assert by_epoch(rho, epochs) == expected


@pytest.mark.parametrize("epochs", [7, 90, 100, 200])
def test_the_late_radius_begins_where_whole_numbers_say(epochs: int) -> None:
    """In hundredths: 0.55 * 100 is 55.00000000000001, and still epoch 55 is the first."""
    for percent in range(101):
        rho = schedules.late_radius(
            0.1, 0.2, epochs=epochs, steps_per_epoch=1, fraction=percent / 100
        )
        late = [100 * epoch >= percent * epochs for epoch in range(1, epochs + 1)]
        assert [rho(step) == 0.2 for step in range(epochs)] == late, percent


def test_the_linear_schedule_of_focal_sam() -> None:
    expected = np.interp(np.arange(1, 201), [1, 200], [0.05, 0.8])
    rho = schedules.linear_radius(epochs=200, steps_per_epoch=STEPS)
    np.testing.assert_allclose(by_epoch(rho, 200), expected, rtol=1e-14)
    assert rho(10**6) == pytest.approx(0.8)  # nothing grows after the last epoch
    half = schedules.linear_radius(epochs=200, steps_per_epoch=STEPS, float16=True)
    np.testing.assert_array_equal(by_epoch(half, 200), np.float16(expected).astype(float))


@pytest.mark.parametrize("name", ["low", "high"])
def test_a_radius_beyond_float16_is_refused_where_it_would_be_rounded(name: str) -> None:
    radii = {"low": 1.0, "high": 2.0, name: 65505.0}
    with pytest.raises(ValueError, match=f"^{name} must be at most 65504 in float16, got 65505"):
        schedules.linear_radius(**radii, epochs=2, steps_per_epoch=1, float16=True)
    assert (
        schedules.linear_radius(**radii, epochs=2, steps_per_epoch=1)(int(name == "high")) == 65505
    )
    largest = schedules.linear_radius(65504, 65504, epochs=2, steps_per_epoch=1, float16=True)
    assert largest(1) == 65504


def test_the_ramp_of_cc_sam() -> None:
    expected = [min((t + 1) / 30, 0.3) for t in range(30)]
    share = schedules.ramp(epochs=30, steps_per_epoch=STEPS, limit=0.3)
    np.testing.assert_allclose(by_epoch(share, 30), expected, rtol=1e-14)
    assert schedules.ramp(epochs=30, steps_per_epoch=STEPS)(29 * STEPS) == 1.0


def test_in_a_rule() -> None:
    rho = schedules.step_radius((0.1, 0.3), (2,), steps_per_epoch=STEPS)
    rule = ij.rules.focal_sam([90, 10], rho=rho, gamma=1.0, strength=0.5)
    assert [rule(step).radii.tolist() for step in (2 * STEPS - 1, 2 * STEPS)] == [[0.1], [0.3]]
    np.testing.assert_allclose(jax.jit(lambda step: rule(step).radii)(2 * STEPS), [0.3], rtol=1e-6)
    with pytest.raises(ValueError, match="pass step="):
        rule(None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.step_radius(steps_per_epoch=0), "steps_per_epoch must be a whole"),
        (lambda: schedules.step_radius(steps_per_epoch=1.5), "steps_per_epoch must be a whole"),
        (lambda: schedules.step_radius((0.1,), (5,), steps_per_epoch=1), "1 values need 0"),
        (
            lambda: schedules.step_radius((0.1, 0.2, 0.3), (5, 5), steps_per_epoch=1),
            "increasing epochs",
        ),
        (lambda: schedules.step_radius((-0.1, 0.2), (5,), steps_per_epoch=1), "radius must be"),
        (lambda: schedules.linear_radius(epochs=1, steps_per_epoch=1), "epochs must be a whole"),
        (lambda: schedules.linear_radius(0.1, np.nan, epochs=2, steps_per_epoch=1), "radius"),
        (
            lambda: schedules.late_radius(0.1, 0.2, epochs=9, steps_per_epoch=1, fraction=2.0),
            "fraction must be between 0 and 1",
        ),
        (lambda: schedules.ramp(epochs=3, steps_per_epoch=1, limit=1.5), "limit must be between"),
    ],
)
def test_bad_numbers_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.step_radius(steps_per_epoch=1),
        schedules.late_radius(0.1, 0.2, epochs=5, steps_per_epoch=1),
        schedules.linear_radius(epochs=5, steps_per_epoch=1),
        schedules.ramp(epochs=5, steps_per_epoch=1),
        schedules.ramp(epochs=5, steps_per_epoch=1, limit=0.3),
    ],
)
def test_a_count_that_stopped_at_the_largest_int32_is_in_the_last_epoch(schedule: Any) -> None:
    """Optax's counts stop there. The ramp's share was -429496736 then, its epoch being one more."""
    last = 2**31 - 1
    assert float(jax.jit(schedule)(jnp.int32(last))) == pytest.approx(schedule(last), rel=1e-6)
