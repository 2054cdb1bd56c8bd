"""Figures of runs, and how they are written in tables."""

from __future__ import annotations

from typing import NamedTuple

# All classes, and those with many, some and few training examples, as the columns of tables.
COLUMNS = ("many", "medium", "few", "all")


class Figure(NamedTuple):
    """A mean over n seeds, and its sample deviation or standard error (None for one seed)."""

    mean: float
    spread: float | None
    n: int


def number(value: float | None, digits: int = 1) -> str:
    """'-' for a figure that does not exist, never 0."""
    return "-" if value is None else f"{value:.{digits}f}"


def p_value(value: float | None, under: str = "<") -> str:
    """Three digits, and never 0; in a sentence `under` is a word.

    >>> p_value(0.0123), p_value(0.0004), p_value(None), p_value(0.0004, "below ")
    ('0.012', '<0.001', '-', 'below 0.001')
    """
    return number(value, 3) if value is None or value >= 0.001 else f"{under}0.001"


def plus_minus(figure: Figure | None, sign: str = "") -> str:
    """With its spread where it has one.

    >>> plus_minus(Figure(1.25, 0.5, 3), "+"), plus_minus(Figure(1.25, None, 1)), plus_minus(None)
    ('+1.2±0.5', '1.2', '-')
    """
    if figure is None:
        return "-"
    return f"{figure.mean:{sign}.1f}" + ("" if figure.spread is None else f"±{figure.spread:.1f}")
