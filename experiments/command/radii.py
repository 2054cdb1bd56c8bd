"""The radius by epoch: from flags to a schedule, to what a report calls it, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.host.errors import RunError
from imbsam_jax import schedules

_PUBLISHED = (5, 160, 180)  # of 200 epochs


def radius_of(options: dict[str, Any], steps_per_epoch: int) -> Any:
    """--rho, or the schedule that --rho-schedule makes of --rho-values."""
    kind, values = options.get("rho_schedule", "constant"), options.get("rho_values")
    if kind == "constant":
        if values:
            raise RunError("--rho-values belong to a --rho-schedule: name one")
        return options.get("rho")
    try:
        if kind == "step":
            given = {} if values is None else {"values": values}
            return schedules.step_radius(
                **given, boundaries=_boundaries(options), steps_per_epoch=steps_per_epoch
            )
        low, high = _pair(kind, values)
        make: Any = {"linear": schedules.linear_radius, "late": schedules.late_radius}[kind]
        return make(low, high, epochs=options["epochs"], steps_per_epoch=steps_per_epoch)
    except ValueError as error:
        raise RunError(f"--rho-schedule {kind}: {error}") from error


def _boundaries(options: dict[str, Any]) -> list[int]:
    """First epochs of the later radii: --rho-boundaries, or the published ones of 200 epochs.

    Of a second stage they are as large a part of its epochs as of the first one's, for which they
    were given. Of three or four epochs the last of the published ones is past them all.
    """
    epochs, given = options["epochs"], options.get("rho_boundaries")
    whole = options.get("first_epochs", epochs) if given else 200
    published = [round(each * epochs / 200) for each in _PUBLISHED]
    for boundary in given or ():
        if boundary >= whole and given != published:
            raise RunError(
                f"--rho-boundaries {boundary} is past the last of {whole} epochs (from 0): a "
                "radius would never be used"
            )
    return [round(each * epochs / whole) for each in given or _PUBLISHED]


def _pair(kind: str, values: Sequence[float] | None) -> Sequence[float]:
    if values is None:
        return {"linear": (0.05, 0.8), "late": (0.1, 0.2)}[kind]
    if len(values) != 2:
        raise RunError(f"--rho-schedule {kind} takes two --rho-values, got {len(values)}")
    return values


def name_of(options: dict[str, Any]) -> str:
    """As "late(0.1, 0.2)"; of a step also from which epochs, "step(0.1, 0.2 from 9)"."""
    kind, values = options["rho_schedule"], options.get("rho_values")
    told = [] if values is None else [", ".join(map(_exact, values))]
    if kind == "step":
        told.append("from " + ", ".join(map(str, _boundaries(options))))
    return f"{kind}({' '.join(told)})" if told else str(kind)


def _exact(value: float) -> str:
    """In all its digits: of two radii that read the same, a resumed run would take one for both."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def flags_of(name: str) -> dict[str, Any]:
    """The flags that a name of `name_of` stands for."""
    kind, _, told = name.partition("(")
    values, _, boundaries = told.rstrip(")").partition("from ")
    return {
        "rho_schedule": kind,
        "rho_values": [float(v) for v in values.split(",")] if values.strip() else None,
        "rho_boundaries": [int(v) for v in boundaries.split(",")] if boundaries else None,
    }
