"""Figures that are begun and saved, without a file: for tests of what stands in a picture."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.reports import drawing


def figures_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a fixture: each figure that the module begins is saved once, at the path "x"."""
    begun: list[Any] = []
    saved: list[Any] = []

    class Begun(Figure):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            begun.append((self, "x"))

    def save(figure: Any, path: Any, dpi: int = 0) -> Any:
        saved.append((figure, path))
        return figure

    monkeypatch.setattr(module, "Figure", Begun)
    monkeypatch.setattr(drawing, "save", save)
    yield
    assert saved == begun
    assert all(figure.get_layout_engine() for figure, _ in begun), "names over one another"


def legend(figure):
    """The names in a figure's one legend."""
    (one,) = figure.legends
    return [text.get_text() for text in one.get_texts()]
