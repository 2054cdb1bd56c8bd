"""Folders of `compare --save` as subjects: of eleven splits by hand, whose networks are numbers."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.analysis import tables
from experiments.bench import compare_kept
from experiments.bench.comparison import Part
from experiments.bench.lanes import Net
from experiments.command.candidates import SETTINGS
from experiments.host.errors import RunError

LABELS = np.array([0, 1, 0, 0, 1, 0], np.int32)
FEATURES = np.arange(12, dtype=np.float32).reshape(6, 2)
CHOSEN = {name: of.default for name, of in SETTINGS.items()} | {"rho": 0.25}
CONFIG = {"group": None, "data": "then.csv", "seed": 5, "model": "mlp", "width": 3, "depth": 1,
          "epochs": 7, "batch_size": 2, "perturb": "last-bias", "cut": 9.0}  # fmt: skip


def row(name: str = "sam", **more: Any) -> dict[str, Any]:
    return {"row": name, "rule": "sam", "loss": "focal", "sampling": "shuffled",
            "chosen": CHOSEN, **more}  # fmt: skip


def summary(*names: str, splits: int = 11) -> dict[str, Any]:
    """As summary.json has them: what was chosen by split, and a row that is no network."""
    chosen = {name: [value] * splits for name, value in CHOSEN.items()} | {
        "unheard": [None] * splits
    }
    rows = [{**row(name), "reference": False, "chosen": chosen} for name in names]
    rows.append({"row": "trees", "reference": True, "chosen": {}})
    return {"rows": rows, "splits": {"count": splits}, "about": {"tuned": False, "steps": 42}}


def network(value: float) -> dict[str, Any]:
    return {"head": {"kernel": np.full((2, 2), value), "bias": np.full(2, value)}}


def test_splits_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 to 10, by number; a network that diverged, in part too, is left out."""
    asked: list[Any] = []
    for split in range(11):
        path = compare_kept.params_path(tmp_path, split, 0)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def read(file: Path) -> Any:
        split, _ = tables._numbers(file)
        net = network(float(split))
        if split == 3:
            net["head"]["bias"][1] = np.nan
        return {"config": CONFIG, "sha256": f"of {split}", "rows": [row()]}, [net]

    def parts(table: Any, splits: Any) -> Any:
        return {k: Part(k, FEATURES, np.arange(4), np.arange(4, 6)) for k in range(11)}

    table = types.SimpleNamespace(name="glass", labels=LABELS)
    monkeypatch.setattr(compare_kept, "read_params", read)
    monkeypatch.setattr(compare_kept, "digest", lambda part, labels: f"of {part.number}")
    monkeypatch.setattr(tables.compare_folder, "read", lambda path: (summary("sam"), None))
    monkeypatch.setattr(
        tables.compare_read, "read",
        lambda config: (asked.append(config["data"]), (table, ["first", "second"], None))[1],
    )  # fmt: skip
    monkeypatch.setattr(tables.compare_read, "net", lambda config, table: Net(1, 0, 2))
    monkeypatch.setattr(tables, "Parts", parts)
    monkeypatch.setattr(
        tables, "scale_of", lambda table, split: types.SimpleNamespace(thresholds=f"of {split}")
    )
    (one,) = tables.of_comparison(tmp_path, CONFIG, None)
    tables.of_comparison(tmp_path, CONFIG, "now.csv")
    assert asked == ["then.csv", "now.csv"]
    assert one.seeds == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert one.variables["params"]["head"]["kernel"][:, 0, 0].tolist() == one.seeds
    assert (one.run, one.epoch, one.thresholds) == (str(tmp_path), 42, "of first")
    assert one.description["setting"] == {
        "experiment": "compare", "data": "glass", "tuned": False, "perturb": "last-bias",
        "cut": 9.0, "seed": 5, "model": "mlp", "width": 3, "depth": 1, "epochs": 7,
        "batch_size": 2, "sampling": "shuffled",
    }  # fmt: skip
    other = {**CONFIG, "width": 4}
    with pytest.raises(RunError, match=r"width 3 -> 4"):
        tables.of_comparison(tmp_path, other, None)
    monkeypatch.setattr(compare_kept, "digest", lambda part, labels: "another")
    with pytest.raises(RunError, match=r"split_0_0\.npz was trained on other rows than this table"):
        tables.of_comparison(tmp_path, CONFIG, None)


def held(*names: tuple[int, str], **more: Any) -> Any:
    return {Path(f"parts/split_{split}_{k}.npz"): ({"rows": [row(name, **more)]}, [])
            for k, (split, name) in enumerate(names)}  # fmt: skip


def test_networks_are_one_of_each_row_and_split() -> None:
    every = [(split, name) for split in (0, 1) for name in ("sam", "imb")]
    told = summary("sam", "imb", splits=2)
    tables._check_whole(held(*every), told)
    for names, words in (
        ([*every, (1, "imb")], "'imb', which has no place in split 1"),
        ([*every[:3], (2, "imb")], "'imb', which has no place in split 2"),
        ([*every, (0, "trees")], "'trees', which has no place in split 0"),
        (every[:2], "parts lacks the network of 'imb' in split 1: --save --resume"),
        (every[::3], "parts lacks the network of 'imb' in split 0"),
    ):
        with pytest.raises(RunError, match=words):
            tables._check_whole(held(*names), told)
    with pytest.raises(RunError, match=r"summary.json tells \(loss 'ce' -> 'focal'\)"):
        tables._check_whole(held(*every, loss="ce"), told)
    with pytest.raises(RunError, match=r"summary.json tells \(chosen "):
        tables._check_whole(held(*every, chosen={**CHOSEN, "rho": 0.5}), told)


def test_a_class_that_a_split_lacks_counts_as_one() -> None:
    """So that ImbSAM's tail is known; a network sees rows as in testing."""
    part = Part(4, FEATURES, np.array([0, 2, 3]), np.arange(4, 6))
    setting = {"tuned": False, "perturb": "all"}
    one = tables._subject("run", row(rule="imbsam", chosen={**CHOSEN, "eta": 1}), setting,
                          network(1.0), part, LABELS, Net(1, 0, 2))  # fmt: skip
    assert one.counts.tolist() == [3, 0] and (one.epoch, one.thresholds) == (0, None)
    assert one.own is not None and one.own.groups.tolist() == [[[0, 1]]]
