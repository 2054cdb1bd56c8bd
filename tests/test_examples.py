"""Every script of examples/ runs as it stands, and ends where the one in plain JAX does."""

from __future__ import annotations

import runpy
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

import reference
from places import ROOT

FOLDER = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "digits")
STEPS = 6


@cache
def weights(script: str) -> list[Any]:
    """What `python examples/SCRIPT.py STEPS` ends at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "digits", raising=False)
        patch.setenv("KERAS_BACKEND", "jax")  # set by the script itself, and put back here
        patch.setenv("KERAS_HOME", str(ROOT / ".cache" / "keras"))
        patch.syspath_prepend(FOLDER)  # as Python does for a script
        patch.setattr(sys, "argv", [f"{script}.py", str(STEPS)])
        ended = runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    return [np.asarray(array) for array in ended["weights"]]


@pytest.mark.allow_rank_promotion
@pytest.mark.parametrize(
    "script",
    [
        # Keras takes seconds to import; `plain_jax` takes the same step.
        pytest.param(script, marks=[pytest.mark.slow] if script == "keras_jax" else [])
        for script in SCRIPTS
    ],
)
def test_every_framework_ends_at_the_same_weights(script: str, capsys: Any) -> None:
    if script == "keras_jax":
        pytest.importorskip("keras", reason="the extra [test] brings it")
    for got, want in zip(weights(script), weights("plain_jax"), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    if script != "plain_jax":
        assert "balanced accuracy: " in capsys.readouterr().out


@pytest.mark.allow_rank_promotion
def test_these_are_those_of_the_transcription() -> None:
    """ImbSAM in float64 NumPy, and momentum as in torch.optim.SGD."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "digits", raising=False)
        patch.syspath_prepend(FOLDER)
        patch.setattr(sys, "argv", ["plain_jax.py", str(STEPS)])
        import digits

        names = ("w1", "b1", "w2", "b2")
        params = {n: w.astype(float) for n, w in zip(names, digits.first_weights(), strict=True)}
        momentum = reference.zeros(params)
        for x, y in digits.batches():
            g = reference.imbsam_gradient(
                params, x.astype(float), y, class_counts=digits.counts, rho=0.05, eta=30
            )
            momentum = reference.add(g, reference.scale(0.9, momentum))
            params = reference.add(params, reference.scale(-0.1, momentum))
    for got, name in zip(weights("plain_jax"), names, strict=True):
        np.testing.assert_allclose(got, params[name], atol=1e-5)
