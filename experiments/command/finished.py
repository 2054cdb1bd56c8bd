"""The method of a finished run, from what its config.json says of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.command import method_flags, radii
from experiments.step.methods import ClassConditional, Method, Tabled


def method_of_run(
    described: dict[str, Any], class_counts: np.ndarray, options: dict[str, Any], *,
    steps_per_epoch: int,
) -> Method | None:  # fmt: skip
    """The method that `build_method` described so; None for a radius it did not write down.

    Args:
      described: its fields "rule", "rule_args" and "ascent".
      options: "epochs" and "weight_decay" of the run.
    """
    name, arguments = described["rule"], dict(described["rule_args"] or {})
    ascent = described["ascent"] or {}
    if isinstance(arguments.get("rho"), str):
        schedule = radii.flags_of(arguments["rho"])
        if schedule["rho_schedule"] == "step" and schedule["rho_boundaries"] is None:
            return None  # of a run begun before they were written down
        arguments["rho"] = radii.radius_of({**options, **schedule}, steps_per_epoch)
    found = method_flags.build_rule(name, class_counts, arguments)
    if isinstance(found, ClassConditional):
        return found
    return Tabled(
        found, method_flags.ascent_of(ascent, options), ascent.get("running_statistics", "first")
    )
