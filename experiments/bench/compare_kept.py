"""Networks kept: what --save writes, and --predict and `experiments.analyse` read.

`model/` holds pipeline.joblib (columns to numbers, a pickle: load none that you do not trust),
params.npz (of the network) and model.json (what they are, with the SHA-256 of all three), of the
row that is to be used, trained on all rows. `params/` has a file for each split and family of rows:
split_S_K.npz with the parameters of row k as `k/PATH`, and `about`, JSON: "rows", of each its name,
rule, loss, sampling and chosen settings, "config", of config.json, and "sha256" of what they were
trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import sklearn
from flax import traverse_util
from numpy.typing import NDArray

from experiments.bench.comparison import Engine, Found, Part, Recipe, Row, softmax
from experiments.bench.lanes import Net
from experiments.data import columns
from experiments.data.splits import training_rows
from experiments.data.table import Table, read_rows
from experiments.host import inputs, outputs, sealed
from experiments.host.errors import DataError, RunError

FOLDER = "model"
PIPELINE, PARAMS, ABOUT = "pipeline.joblib", "params.npz", "model.json"
_AGAIN = "compare --save --resume makes it anew"
# Of every split and row.
EACH = "params"


def all_rows(
    table: Table, number: int, seed: int, cut: float | None
) -> tuple[Part, columns.Fitted]:
    """Every row that is not of a test file, cut, as one part without test rows; its pipeline."""
    train = training_rows(table, cut=cut, seed=seed)
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
        joblib.dump(fitted, out / FOLDER / PIPELINE)
        np.savez(out / FOLDER / PARAMS, **params)
    about = {
        "net": recipe.net._asdict(), "class_names": list(table.class_names), "row": row.name,
        "settings": row.points[0], "versions": _versions(),
    }  # fmt: skip
    sums = {name: _sum((out / FOLDER / name).read_bytes()) for name in (PIPELINE, PARAMS)}
    outputs.write_json(
        out / FOLDER / ABOUT, {**about, "sha256": {**sums, ABOUT: _sum(_as_bytes(about))}}
    )


def _versions() -> dict[str, str]:
    """Of what pickles a pipeline, and may read an older one as another."""
    return {"scikit-learn": sklearn.__version__, "pandas": pd.__version__}


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _as_bytes(about: dict[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True).encode()


def _read(kept: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(model.json, the bytes of pipeline and parameters), each as it was written."""
    try:
        about = outputs.read_object(kept / ABOUT)
        data = {name: inputs.read_bytes(kept / name) for name in (PIPELINE, PARAMS)}
    except (RunError, DataError) as error:
        raise type(error)(f"{error}: remove it, and {_AGAIN}") from error
    sums = about.pop("sha256", None)
    for name, held in {ABOUT: _as_bytes(about), **data}.items():
        if not isinstance(sums, dict) or sums.get(name) != _sum(held):
            raise DataError(f"{kept / name} is not what --save wrote: remove it, and {_AGAIN}")
    if about["versions"] != _versions():
        told, now = (
            ", ".join(f"{name} {version}" for name, version in of.items())
            for of in (about["versions"], _versions())
        )
        raise DataError(
            f"{kept} was written by {told}, and this is {now}, which may read it as something "
            f"else: install those, or remove it, and {_AGAIN}"
        )
    return about, data


def _is_there(out: Path) -> bool:
    return all((out / FOLDER / name).exists() for name in (PIPELINE, PARAMS, ABOUT))


def check_there(out: Path) -> None:
    """RunError for a folder without a whole network in it."""
    if not _is_there(out):
        raise RunError(f"{out} holds no network to predict with, or a part of one: {_AGAIN}")


def predict(out: Path, path: str) -> pd.DataFrame:
    """What the network kept in a folder says of a file's rows: a class, and how likely each is.

    Raises:
      RunError: the folder holds no network.
      DataError: the file lacks a column, or cannot be read; the network is damaged, or of other
        versions.
    """
    check_there(out)
    about, data = _read(out / FOLDER)
    fitted = joblib.load(io.BytesIO(data[PIPELINE]))
    params = inputs.read_npz(out / FOLDER / PARAMS)
    frame = read_rows(path, fitted.schema, fitted.width)
    probabilities = apply(Net(**about["net"]), params, fitted(frame))
    names = about["class_names"]
    found: dict[str, Any] = {"predicted": [names[k] for k in probabilities.argmax(axis=1)]}
    found |= {f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}
    return pd.DataFrame(found)


def apply(net: Net, params: dict[str, Any], features: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[n, C], probabilities of a network with flat parameters."""
    tree = traverse_util.unflatten_dict(params, sep="/")
    return softmax(np.asarray(net.module().apply({"params": tree}, features, train=False)))


# ------------------------------------------------------------------------- of every split and row


KEPT_AGAIN = "remove it, and --save --resume makes it anew"


def params_path(out: Path, split: int, family: int) -> Path:
    return out / EACH / f"split_{split}_{family}.npz"


def is_whole(out: Path) -> bool:
    """Whether all that --save keeps is there, the networks of every finished job among it.

    Raises:
      RunError, DataError: what is there is damaged, or the network is of other versions.
    """
    jobs = [path.stem for path in out.glob("jobs/split_*.json")]
    each = [out / EACH / f"{name}.npz" for name in jobs if not name.endswith("_references")]
    if not (_is_there(out) and all(path.exists() for path in each)):
        return False
    _read(out / FOLDER)
    for path in each:
        read_params(path)
    return True


def save_params(
    path: Path,
    part: Part,
    labels: NDArray[np.int32],
    records: Sequence[Any],
    found: Sequence[Found],
    config: dict[str, Any],
) -> None:
    """Keeps the networks of a family on a split, those that diverged as they ended.

    Args:
      records: a `compare_folder.Record` of each, for what they are.
      config: of config.json, what decides them.
    """
    held: dict[str, Any] = {}
    for k, one in enumerate(found):
        flat = traverse_util.flatten_dict(one.params, sep="/")
        held |= {f"{k}/{name}": leaf for name, leaf in flat.items()}
    fields = ("row", "rule", "loss", "sampling", "chosen")
    rows = [{name: getattr(record, name) for name in fields} for record in records]
    with outputs.writing(path):
        path.parent.mkdir(exist_ok=True)
    sealed.write(path, held, {"rows": rows, "config": config, "sha256": digest(part, labels)})


def digest(part: Part, labels: NDArray[np.int32]) -> str:
    """Of the features and labels of a split's rows: what its networks were trained on."""
    found = hashlib.sha256()
    for array in (part.features, labels, part.train, part.test):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def read_params(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """(what `about` says, the parameters of each of its rows as a tree).

    Raises:
      RunError: the file is not there, or not what `save_params` wrote.
    """
    about, held = sealed.read(path, KEPT_AGAIN)
    flat: list[dict[str, Any]] = [{} for _ in about["rows"]]
    for name, leaf in held.items():
        number, _, rest = name.partition("/")
        flat[int(number)][rest] = leaf
    return about, [traverse_util.unflatten_dict(one, sep="/") for one in flat]
