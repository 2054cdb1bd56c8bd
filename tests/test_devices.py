"""The same step on one device and on eight, in every way JAX has to spread a batch."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    "check",
    [
        "modes",
        *(
            pytest.param(check, marks=pytest.mark.slow)
            for check in (
                "nnx",
                "all_reduces",
                "micro_batches",
                "independent",
                "curvature",
                "shared_norm",
                "sync_ascent",
                "every_method",
            )
        ),
    ],
)
def test_on_eight_devices(check: str, run_python: Any) -> None:
    run_python(["-W", "error", "tests/on_devices.py", check], devices=8, timeout=900)
