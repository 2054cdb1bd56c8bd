"""A network kept for use: what --save writes, and --predict applies.

`model/` holds pipeline.joblib (columns to numbers, a pickle: load none that you do not trust),
params.npz (of the network) and model.json (what they are).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from flax import traverse_util
from numpy.typing import NDArray

from experiments.bench.comparison import Engine, Part, Recipe, Row, softmax
from experiments.bench.lanes import Net
from experiments.data import columns
from experiments.data.table import Table, read_rows
from experiments.host import inputs, outputs
from experiments.host.errors import RunError

FOLDER = "model"


def all_rows(table: Table, number: int, seed: int) -> tuple[Part, columns.Fitted]:
    """Every row that is not of a test file as one part without test rows, and its pipeline."""
    train = np.arange(len(table.labels) if table.first_test_row is None else table.first_test_row)
    fitted = columns.fit(table, train, seed=seed)
    return Part(number, fitted(table.columns), train, train[:0]), fitted


def save(
    out: Path, table: Table, part: Part, fitted: columns.Fitted, recipe: Recipe, row: Row
) -> None:
    """Trains a row at its first point on all rows of a part, and keeps it."""
    engine = Engine(table.labels, table.weighed, recipe._replace(folds=0), [row], keep=True)
    (found,) = engine.run(part, [row])
    params = traverse_util.flatten_dict(found.params, sep="/")
    if not all(np.isfinite(leaf).all() for leaf in params.values()):
        raise RunError(f"{row.name} diverged on all rows together, and was not saved: lower --lr")
    with outputs.writing(out):
        (out / FOLDER).mkdir(exist_ok=True)
        joblib.dump(fitted, out / FOLDER / "pipeline.joblib")
        np.savez(out / FOLDER / "params.npz", **params)
    outputs.write_json(
        out / FOLDER / "model.json",
        {"net": recipe.net._asdict(), "class_names": list(table.class_names), "row": row.name,
         "settings": row.points[0]},
    )  # fmt: skip


def predict(out: Path, path: str) -> pd.DataFrame:
    """What the network kept in a folder says of a file's rows: a class, and how likely each is.

    Raises:
      RunError: the folder holds no network.
      DataError: the file lacks a column, or cannot be read.
    """
    kept = out / FOLDER
    if not (kept / "model.json").exists():
        raise RunError(f"{out} holds no network to predict with: run the comparison with --save")
    about = outputs.read_object(kept / "model.json")
    fitted: columns.Fitted = joblib.load(kept / "pipeline.joblib")
    frame = read_rows(path, fitted.schema)
    probabilities = apply(Net(**about["net"]), inputs.read_npz(kept / "params.npz"), fitted(frame))
    names = about["class_names"]
    found: dict[str, Any] = {"predicted": [names[k] for k in probabilities.argmax(axis=1)]}
    found |= {f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}
    return pd.DataFrame(found)


def apply(net: Net, params: dict[str, Any], features: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[n, C], probabilities of a network with flat parameters."""
    tree = traverse_util.unflatten_dict(params, sep="/")
    return softmax(np.asarray(net.module().apply({"params": tree}, features, train=False)))
