"""What a rule is: a function of the step that returns a table of class weights.

    rule(step) -> ClassWeights(base, groups, radii)

Which parts the table has is fixed when the rule is built; a rule whose parts change with the step
is `stagewise`. rules.py has the rules of the papers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imbsam_jax import arrays, checks

__all__ = ["ClassWeights", "Rule", "stagewise"]

Scalar = Any  # float, scalar array, tracer
Rule = Callable[[Any], "ClassWeights"]
"""`rule(step) -> ClassWeights`: what the functions of `rules` return, and the doors take."""
ScalarOrSchedule = Any  # Scalar | Callable[[step], Scalar]


class ClassWeights(NamedTuple):
    """One row of the table in rules.py, for C classes and G perturbed groups.

    Attributes:
      base: float[C], weights of the part taken at theta, or None where there is no such part.
      groups: float[G, C], weights of each perturbed part; G may be 0.
      radii: float[G], length of each perturbation, in parameter units, finite and at least 0.

    Weights may be negative (Focal-SAM's base above strength 1 is). Of a pandas Series or DataFrame
    each weight goes to the class that its index, or column, names. The doors refuse what is not
    real and a radius out of its range, which makes the gradient NaN where it is traced.
    """

    base: jax.Array | np.ndarray | None
    groups: jax.Array | np.ndarray
    radii: jax.Array | np.ndarray


class Bringing:
    """A rule that brings its own way to make a perturbation of a direction: fields of Ascent."""

    def __init__(self, rule: Rule, **ascent: Any):
        self._rule, self.ascent = rule, ascent

    def __call__(self, step: Any) -> ClassWeights:
        return self._rule(step)


class stagewise:
    """One rule before `switch_step`, another from it on.

    Args:
      first: rule for step < switch_step.
      second: rule for step >= switch_step; its table may have another structure.
      switch_step: first step of the second stage, at least 0.

    Attributes:
      stages: (first, second).
      starts: (0, switch_step), the first step of each stage.

    Raises:
      TypeError: a stage that is no function; called with a traced step.
      ValueError: a bad switch_step; called without a step.

    Called with a concrete step it returns that stage's table. With a traced step a table cannot
    be chosen, since the two differ in structure: the front doors put the whole gradient
    computation of each stage under `lax.cond` instead.

    >>> rule = stagewise(rules.sgd(2), rules.sam(2, rho=0.1), switch_step=10)
    >>> rule(9).groups.shape, rule(10).groups.shape
    ((0, 2), (1, 2))
    """

    def __init__(self, first: Rule, second: Rule, *, switch_step: Any):
        check_rule(first)
        check_rule(second)
        checks.steps("switch_step", switch_step)
        self.stages = (first, second)
        self.starts = (0, switch_step)

    def __call__(self, step: Any) -> ClassWeights:
        require_step(step)
        if not (checks.is_concrete(step) and checks.is_concrete(self.starts[1])):
            raise TypeError(
                "a staged rule has no table at a traced step: give it to value_and_grad or "
                "sharpness_aware, which branch over the whole gradient, or pass a Python int"
            )
        return self.stages[int(checks.reached(step, self.starts[1]))](step)


def require_step(step: Any) -> None:
    """Refuses a missing step, for rules that depend on it."""
    if step is None:
        raise ValueError(
            "this rule depends on the step (a schedule or a staged rule): pass step=, the number "
            "of updates made so far"
        )


def check_rule(rule: Any) -> Rule:
    """Refuses what is no rule, above all one row of numbers in the place of a function."""
    if not callable(rule):
        raise TypeError(
            f"the rule must be a function of the step, as imbsam_jax.rules makes them, got "
            f"{type(rule).__name__}. optax.inject_hyperparams takes a rule for a schedule and "
            "calls it: inject the radius into a function that makes the rule, inject_hyperparams("
            "lambda rho: sharpness_aware(rules.imbsam(class_counts, rho=rho, eta=eta)))(rho=0.05)"
        )
    if not _takes_a_step(rule):
        name, names = getattr(rule, "__name__", "it"), inspect.signature(rule).parameters
        raise TypeError(
            f"the rule must be a function of the step alone, and {name} takes "
            f"{', '.join(names) or 'nothing'}: {_MAKE_ONE}"
        )
    return rule


_MAKE_ONE = (
    "give what a function of imbsam_jax.rules returns, such as rules.sam(num_classes, rho=0.05), "
    "or a function of the step of your own that returns ClassWeights(base, groups, radii)"
)


def _takes_a_step(rule: Callable[..., Any]) -> bool:
    """Whether it can be called with one argument, which is not what rules are made of."""
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):  # of what is not written in Python
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return next(iter(signature.parameters)) not in ("num_classes", "class_counts")


def table_of(rule: Rule, step: Any) -> ClassWeights:
    """The rule's table at the step, looked at; a sentence where what is called is no rule."""
    try:
        table = rule(step)
    except jax.errors.JAXTypeError:
        raise
    except (TypeError, AttributeError, LookupError) as error:
        raise TypeError(
            f"what was given for the rule cannot be called with a step alone: {_MAKE_ONE}. It "
            f"raised {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    return check_table(table)


def check_step(step: Any) -> None:
    """Refuses what is no number of updates; None is for rules that do not depend on it."""
    if step is not None:
        checks.steps("step", step, wanted="the number of updates made so far, at least 0")


def check_table(table: Any) -> ClassWeights:
    """Refuses a table made by hand that is none, or weighs nothing."""
    if not isinstance(table, ClassWeights):
        raise TypeError(
            "a rule returns ClassWeights(base, groups, radii), as imbsam_jax.rules have it; this "
            f"one returned a {type(table).__name__}: {_MAKE_ONE}"
        )
    parts = {
        "base": table.base if table.base is None else arrays.in_class_order("base", table.base),
        "groups": arrays.in_class_order("groups", table.groups),
        "radii": table.radii,
    }
    made: dict[str, Any] = {
        name: None if part is None else _real(name, part) for name, part in parts.items()
    }
    base, groups, radii = (None if part is None else part.shape for part in made.values())
    if groups is None or len(groups) != 2 or radii != groups[:1] or base not in (None, groups[1:]):
        raise ValueError(
            "the rule's table must have base float[C] or None, groups float[G, C] and radii "
            f"float[G]; its shapes are {base}, {groups} and {radii}"
        )
    if base is None and groups[0] == 0:
        raise ValueError("the rule's table has neither a base nor a group: there is no loss in it")
    return ClassWeights(made["base"], made["groups"], _lengths(made["radii"]))


def _real(name: str, part: Any) -> Any:
    """A part of a table as an array: lists as NumPy's float64, arrays as they are."""
    array = arrays.as_array(f"the rule's {name}", "real numbers", part)
    if not (checks.is_real(array.dtype) or array.dtype == bool):
        raise ValueError(
            f"the rule's {name} must be real numbers, got {array.dtype}{list(array.shape)}"
        )
    is_array = isinstance(array, jax.Array) or isinstance(part, np.ndarray)
    return array if is_array else array.astype(np.float64)


def _lengths(radii: Any) -> Any:
    """The radii; refused, or where they are traced NaN, if they are negative or not finite."""
    if not checks.is_concrete(radii):
        floats = jnp.issubdtype(radii.dtype, jnp.floating)
        radii = radii if floats else radii.astype(float)
        return checks.nan_unless(jnp.isfinite(radii) & (radii >= 0), radii)
    if checks.can_be_read(radii):
        known = np.asarray(radii).astype(np.float64)
        if not np.all(np.isfinite(known) & (known >= 0)):
            raise ValueError(
                "the rule's radii must be finite and at least 0, got "
                f"{checks.short(known.tolist())}"
            )
    return radii


def checked_radius(name: str, value: ScalarOrSchedule) -> ScalarOrSchedule:
    """Refuses a concrete radius that is negative or not finite; schedules are checked later."""
    return value if callable(value) else checks.number(name, value, least=0)


def radii_at(step: Any, **radii: ScalarOrSchedule) -> jax.Array | np.ndarray:
    values = []
    for name, value in radii.items():
        if callable(value):
            require_step(step)
            value = checked_radius(name, value(step))
        values.append(value)
    if any(isinstance(value, jax.Array) for value in values):
        return jnp.stack([jnp.asarray(value) for value in values])
    return np.asarray(values, np.float64)
