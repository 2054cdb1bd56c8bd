"""The networks of finished runs: `anomaly --save` keeps them, `experiments.analyse` reads them.

OUT/params/N.npz has parameters as `params/NAME` and running statistics as `state/NAME` of the run
in line N of runs.csv, from 0.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host import inputs, outputs

FOLDER = "params"


def save(out: Path, networks: Sequence[Any]) -> None:
    """(parameters, state) of each run, in the order of runs.csv."""
    (out / FOLDER).mkdir(exist_ok=True)
    for number, (params, state) in enumerate(networks):
        held = {f"params/{name}": leaf for name, leaf in params.items()}
        held |= {f"state/{name}": leaf for name, leaf in state.items()}
        whole = io.BytesIO()
        np.savez(whole, **held)
        outputs.replace_bytes(_path(out, number), whole.getvalue())


def read(out: Path, number: int) -> dict[str, dict[str, Any]]:
    """{"params", "state"} of a run.

    Raises:
      DataError: the file is not there, or damaged.
    """
    found: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for name, leaf in inputs.read_npz(_path(out, number)).items():
        kind, _, rest = name.partition("/")
        found[kind][rest] = leaf
    return found


def _path(out: Path, number: int) -> Path:
    return out / FOLDER / f"{number}.npz"
