"""What a comparison reads of its flags, and the network that they mean."""

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.bench import compare_read
from experiments.bench.lanes import Net

FLAGS: dict[str, Any] = {
    "data": "x.csv", "label": "k", "text": ["t"], "group": "g", "id": "i", "test": "y.csv",
    "cut": None, "splits": 7, "seed": 3, "test_share": 0.25,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "data", "cut"),
    [
        ({}, "x.csv", None), ({"cut": 20.0}, "x.csv", 20.0),
        # scikit-learn's digits are cut to an imbalance of 50, unless it is said.
        ({"data": None}, "sklearn:digits", 50.0),
        ({"data": None, "cut": 20.0}, "sklearn:digits", 20),
    ],
)  # fmt: skip
def test_a_table_and_its_splits_are_those_of_the_flags(
    changes: Any, data: str, cut: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        compare_read.tables, "read", lambda *of, **more: seen.append((of, more)) or "table"
    )
    monkeypatch.setattr(
        compare_read.data_splits, "splits", lambda *of, **more: seen.append((of, more)) or "splits"
    )
    assert compare_read.read({**FLAGS, **changes}) == ("table", "splits", cut)
    assert seen == [
        ((data, "k"), {"text": ["t"], "group": "g", "id": "i", "test": "y.csv"}),
        (("table", 7), {"seed": 3, "test_share": 0.25, "cut": cut}),
    ]


def test_a_linear_model_has_no_hidden_layer() -> None:
    table: Any = SimpleNamespace(num_classes=4)
    for model, depth in (("mlp", 3), ("linear", 0)):
        found = compare_read.net({"model": model, "depth": 3, "width": 8}, table)
        assert found == Net(width=8, depth=depth, classes=4)
