"""What a comparison is made on, from its config.json or the flags that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.bench.lanes import Net
from experiments.data import splits as data_splits
from experiments.data import table as tables

BUNDLED, BUNDLED_CUT = "sklearn:digits", 50.0


def read(config: Mapping[str, Any]) -> tuple[tables.Table, list[data_splits.Split], float | None]:
    """(the table, its splits, the imbalance factor that they were cut to or None).

    Raises:
      DataError: the file cannot be read, or nothing can be learned of it.
    """
    table = tables.read(
        config["data"] or BUNDLED, config["label"], text=config["text"], group=config["group"],
        id=config["id"], test=config["test"],
    )  # fmt: skip
    cut = config["cut"] if config["data"] or config["cut"] else BUNDLED_CUT
    splits = data_splits.splits(
        table, config["splits"], seed=config["seed"], test_share=config["test_share"],
        cut=cut,
    )  # fmt: skip
    return table, splits, cut


def net(config: Mapping[str, Any], table: tables.Table) -> Net:
    depth = config["depth"] if config["model"] == "mlp" else 0
    return Net(config["width"], depth, table.num_classes)
