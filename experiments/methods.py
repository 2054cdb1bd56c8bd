"""Rules by name: which flags a rule takes is read off its signature, so none is listed twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.errors import RunError
from imbsam_jax import rules

RULES: dict[str, Callable[..., rules.Rule]] = {
    "sgd": rules.sgd,
    "sam": rules.sam,
    "imbsam": rules.imbsam,
}


def rule_arguments(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this rule takes, None left out; the others do not concern it."""
    if name not in RULES:
        raise RunError(f"unknown rule {name!r}; choose from {', '.join(RULES)}")
    parameters = inspect.signature(RULES[name]).parameters.values()
    taken = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {k: v for k, v in options.items() if k in taken and v is not None}


def build_rule(name: str, class_counts: np.ndarray, options: dict[str, Any]) -> rules.Rule:
    """The rule of that name for these class counts; a bad hyper-parameter is a RunError."""
    arguments = rule_arguments(name, options)
    first = next(iter(inspect.signature(RULES[name]).parameters))
    counts = class_counts if first == "class_counts" else len(class_counts)
    try:
        return RULES[name](counts, **arguments)
    except (TypeError, ValueError) as error:
        raise RunError(f"--rule {name}: {error}") from error
