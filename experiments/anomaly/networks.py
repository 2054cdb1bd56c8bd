"""The networks of finished runs: `anomaly --save` keeps them, `experiments.analyse` reads them.

OUT/params/N.npz has parameters as `params/NAME` and running statistics as `state/NAME` of the run
in line N of runs.csv, from 0, and says which run that is, of which config.json and which rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.anomaly.report import run_of
from experiments.anomaly.training import RUN, Case, Result
from experiments.host import sealed
from experiments.host.errors import RunError

FOLDER = "params"
_AGAIN = "train again with --save"


def save(
    out: Path,
    results: Sequence[Result],
    networks: Mapping[tuple[Any, ...], Any],
    cases: Sequence[Case],
    config: Mapping[str, Any],
) -> None:
    """The networks of runs, in the order of runs.csv.

    Args:
      results: of the runs.
      networks: (parameters, state) by the first RUN fields of a result.
      cases: what they were trained on.
      config: of config.json, what decides them.
    """
    (out / FOLDER).mkdir(exist_ok=True)
    digests = {
        (case.table.name, case.seed, case.label_ratio, case.protocol): _rows_sha256(case)
        for case in cases
    }
    for number, result in enumerate(results):
        params, state = networks[result[:RUN]]
        held = {f"params/{name}": leaf for name, leaf in params.items()}
        held |= {f"state/{name}": leaf for name, leaf in state.items()}
        case = result.dataset, result.seed, result.label_ratio, result.protocol
        about = {"run": run_of(result), "config": dict(config), "sha256": digests[case]}
        sealed.write(_path(out, number), held, about)


def check(out: Path, number: int) -> None:
    """Refuses a folder that has not one network for each of so many runs."""
    there = {path.name for path in (out / FOLDER).glob("*.npz")}
    odd = there ^ {f"{k}.npz" for k in range(number)}
    if odd:
        raise RunError(
            f"{out / FOLDER} has not one file for each line of runs.csv "
            f"({', '.join(sorted(odd)[:8])}): {_AGAIN}"
        )


def read(
    out: Path, number: int, run: Result, config: Mapping[str, Any], case: Case
) -> dict[str, dict[str, Any]]:
    """{"params", "state"} of a line of runs.csv.

    Raises:
      RunError: the file is not there, damaged, or of another run, setting or rows than these.
    """
    path = _path(out, number)
    about, held = sealed.read(path, _AGAIN)
    sealed.refuse_others(path, about["run"], run_of(run), f"line {number} of runs.csv", _AGAIN)
    sealed.refuse_others(path, about["config"], config, "config.json", _AGAIN)
    if about["sha256"] != _rows_sha256(case):
        raise RunError(
            f"{path} was trained on other rows than {case.table.source} has: name the folder of "
            "its data by --data-dir"
        )
    found: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for name, leaf in held.items():
        kind, _, rest = name.partition("/")
        found[kind][rest] = leaf
    return found


def _path(out: Path, number: int) -> Path:
    return out / FOLDER / f"{number}.npz"


def _rows_sha256(case: Case) -> str:
    features, drawn = case.table.features, case.drawn
    return sealed.digest(
        (features[drawn.train_rows], drawn.train_labels, features[drawn.test_rows],
         drawn.test_labels)
    )  # fmt: skip
