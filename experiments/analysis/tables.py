"""The networks of a comparison, `compare --save`: one of every row and split."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.analysis import own
from experiments.analysis.subjects import Subject, alike, rows_by_class
from experiments.bench import compare_kept, compare_read
from experiments.bench.compare_jobs import Parts, scale_of
from experiments.bench.comparison import Part
from experiments.bench.lanes import Net
from experiments.command.candidates import method_of
from experiments.host import sealed
from experiments.host.errors import RunError
from experiments.reports import compare_folder


def of_comparison(path: Path, config: dict[str, Any], data: str | None) -> list[Subject]:
    """The rows of a folder of `compare --save`, their splits as seeds.

    Splits are read together where every class has equally many rows in each of them.

    Args:
      data: where its table is now; None: where it was.

    Raises:
      RunError: it was written without --save, weighs rows by another column, is damaged, or the
        table is not the one that was compared.
      DataError: the table cannot be read.
    """
    files = sorted((path / compare_kept.EACH).glob("split_*.npz"), key=_numbers)
    if not files:
        raise RunError(f"{path} holds no parameters: compare again with --save, which keeps them")
    if config["group"] is not None:
        raise RunError(
            f"{path} weighs rows by {config['group']!r}: an analysis by class would not see them"
        )
    held = {file: compare_kept.read_params(file) for file in files}
    for file, (about, _) in held.items():
        sealed.refuse_others(file, about["config"], config, "config.json", _AGAIN)
    summary, _ = compare_folder.read(path)
    _check_whole(held, summary)
    table, splits, _ = compare_read.read({**config, "data": data or config["data"]})
    parts, net = Parts(table, splits), compare_read.net(config, table)
    thresholds = scale_of(table, splits[0]).thresholds
    compared = summary["about"]
    setting = {
        "experiment": "compare", "data": table.name, "tuned": compared["tuned"],
        "perturb": config.get("perturb", "all"), "cut": config.get("cut"), "seed": config["seed"],
        **{name: config[name] for name in ("model", "width", "depth", "epochs", "batch_size")},
    }  # fmt: skip
    found: dict[str, list[Subject]] = {}
    for file, (about, networks) in held.items():
        number, _ = _numbers(file)
        part = parts[number]
        if about["sha256"] != compare_kept.digest(part, table.labels):
            raise RunError(
                f"{file} was trained on other rows than this table has: name it by --data"
            )
        for row, params in zip(about["rows"], networks, strict=True):
            if all(np.isfinite(leaf).all() for leaf in _leaves(params)):
                one = _subject(str(path), row, setting, params, part, table.labels, net)
                one = one._replace(thresholds=thresholds, epoch=compared["steps"])
                found.setdefault(row["row"], []).append(one)
    return [subject for ones in found.values() for subject in alike(ones)]


_AGAIN = "compare again with --save"


def _check_whole(
    held: dict[Path, tuple[dict[str, Any], list[Any]]], summary: dict[str, Any]
) -> None:
    """Refuses networks that are not one of each row and split of summary.json, trained so."""
    rows = {row["row"]: row for row in summary["rows"] if not row["reference"]}
    lacking = {(name, split) for name in rows for split in range(summary["splits"]["count"])}
    for file, (about, _) in held.items():
        number, _ = _numbers(file)
        for told in about["rows"]:
            if (told["row"], number) not in lacking:
                raise RunError(
                    f"{file} is of {told['row']!r}, which has no place in split {number} of "
                    f"summary.json, or another already: {_AGAIN}"
                )
            lacking.remove((told["row"], number))
            row = rows[told["row"]]
            chosen = _known({name: of[number] for name, of in row["chosen"].items()})
            told = {**told, "chosen": _known(told["chosen"])}
            sealed.refuse_others(file, told, {**row, "chosen": chosen}, "summary.json", _AGAIN)
    if lacking:
        name, split = min(lacking)
        raise RunError(
            f"{next(iter(held)).parent} lacks the network of {name!r} in split {split}: "
            "--save --resume makes it anew"
        )


def _known(chosen: dict[str, Any]) -> dict[str, Any]:
    """What a row has of the settings of all."""
    return {name: value for name, value in chosen.items() if value is not None}


def _numbers(file: Path) -> tuple[int, int]:
    """(split, family) of a file's name."""
    _, split, family = file.stem.split("_")
    return int(split), int(family)


def _leaves(tree: Any) -> list[Any]:
    return [x for v in tree.values() for x in (_leaves(v) if isinstance(v, dict) else [v])]


def _subject(
    path: str,
    row: dict[str, Any],
    setting: dict[str, Any],
    params: Any,
    part: Part,
    labels: NDArray[np.int32],
    net: Net,
) -> Subject:
    """A network of one split; epoch and thresholds are the comparison's."""
    counts = np.bincount(labels[part.train], minlength=net.classes)
    chosen = row["chosen"]
    of_rule = {k: v for k, v in chosen.items() if k not in ("lr", "weight_decay")}
    balanced = row["sampling"] != "shuffled"
    description = {
        "rule": row["rule"],
        # What was chosen inside each split differs between them.
        "rule_args": {} if setting["tuned"] else of_rule,
        "ascent": {}, "loss": row["loss"], "loss_args": {}, "stage2": None, "stage2_args": {},
        "on": f"{row['sampling']} sampling" if balanced else None,
        "setting": {**setting, "sampling": row["sampling"]},
    }  # fmt: skip
    about = {"rule": row["rule"], "rule_args": of_rule, "perturb": setting["perturb"]}
    method = method_of(row["rule"], np.maximum(counts, 1), chosen, setting["perturb"])
    moved = own.of_method(method, 0, about)
    train, test = (rows_by_class(part.features[x], labels[x]) for x in (part.train, part.test))
    return Subject(
        path, description, [part.number], 0, {"params": _with_axis(params)}, _applied(net), train,
        test, counts, None, own=moved,
    )  # fmt: skip


def _with_axis(tree: Any) -> Any:
    return {k: _with_axis(v) if isinstance(v, dict) else v[None] for k, v in tree.items()}


@functools.cache
def _applied(net: Net) -> Any:
    module = net.module()

    def apply(variables: Any, features: Any) -> Any:
        return module.apply(variables, features, train=False)

    return apply
