"""The tables against closed forms, and every bad number by the message that refuses it."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imbsam_jax as ij
from imbsam_jax import rules
from rule_table import BY_ID, CLASSES, COUNTS, RULES, Row, row_id

# ----------------------------------------------------------------------------------- the tables


def assert_table(table: ij.ClassWeights, base: Any, groups: Any, radii: Any) -> None:
    if base is None:
        assert table.base is None
    else:
        np.testing.assert_allclose(table.base, base, rtol=1e-15)
    np.testing.assert_allclose(table.groups, groups, rtol=1e-15)
    np.testing.assert_allclose(table.radii, radii, rtol=1e-15)


def test_sgd() -> None:
    assert_table(rules.sgd(3)(None), [1, 1, 1], np.zeros((0, 3)), np.zeros(0))


def test_sam() -> None:
    assert_table(rules.sam(3, rho=0.1)(None), None, [[1, 1, 1]], [0.1])


def test_imbsam() -> None:
    counts = [500, 100, 99, 5]
    assert_table(rules.imbsam(counts, eta=100)(None), [1, 0, 0, 0], [[0, 1, 1, 1]], [0.05])
    assert_table(
        rules.imbsam(counts, eta=100, strict=True)(None), [1, 1, 0, 0], [[0, 0, 1, 1]], [0.05]
    )
    released = rules.imbsam(counts, rho=0.1, eta=99, tail_scale=2.0)
    assert_table(released(None), [1, 1, 0, 0], [[0, 0, 2, 2]], [0.1])


def test_focal_sam() -> None:
    share = [1.1 * (1 - n / 100) ** 2 for n in (80, 15, 5)]
    rule = rules.focal_sam([80, 15, 5], rho=0.1, gamma=2, strength=1.1)
    assert_table(rule(None), [1 - s for s in share], [share], [0.1])
    # Over 1, the plain weight of the rarest class is negative: 1 - 1.1 * 0.95^0.5.
    rule = rules.focal_sam([80, 15, 5], rho=0.1, gamma=0.5, strength=1.1)
    assert rule(None).base[2] == pytest.approx(1 - 1.1 * math.sqrt(0.95)) and rule(None).base[2] < 0


def test_sse_sam() -> None:
    rule = rules.sse_sam([500, 100, 5], head_rho=0.1, tail_rho=0.2, eta=100, switch_step=10)
    assert_table(rule(9), None, [[1, 0, 0], [0, 1, 1]], [0.1, 0.2])
    assert_table(rule(10), [1, 0, 0], [[0, 1, 1]], [0.2])


def test_reweighted_sam() -> None:
    counts = [500, 100, 99, 5]
    rule = rules.reweighted_sam(counts, rho=0.1, eta=100, tail_weight=3.0)
    assert_table(rule(None), None, [[1, 3, 3, 3]], [0.1])


RULES_OF_THE_LIBRARY = set(rules.__all__) - {"ClassWeights", "Rule"}


def test_every_rule_has_a_row_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its public function: a row made by hand is a test of other code."""
    called = set()
    # stagewise is a class, of which there is a row by its type.
    functions = RULES_OF_THE_LIBRARY - {"stagewise"}

    def spy(name: str, make: Any, *args: Any, **kwargs: Any) -> Any:
        called.add(name)
        return make(*args, **kwargs)

    for name in functions:
        monkeypatch.setattr(rules, name, partial(spy, name, getattr(rules, name)))
    made = [row.rule(0.1) for row in RULES]
    assert called == functions
    assert any(isinstance(rule, rules.stagewise) for rule in made)


TAIL_RULES = {
    "imbsam": {"rho": 0.1},
    "reweighted_sam": {"rho": 0.1, "tail_weight": 2.0},
    "sse_sam": {"head_rho": 0.1, "tail_rho": 0.2, "switch_step": 3},
}


def test_every_rule_with_a_tail_is_known() -> None:
    takes = {
        name
        for name in RULES_OF_THE_LIBRARY
        if "strict" in inspect.signature(getattr(rules, name)).parameters
    }
    assert takes == set(TAIL_RULES)


@pytest.mark.parametrize("name", TAIL_RULES)
@pytest.mark.parametrize("step", [0, 3])
def test_strict_is_heeded_and_eta_has_no_default(name: str, step: int) -> None:
    def table(eta: float, **options: Any) -> Any:
        return getattr(rules, name)([40, 9, 2], eta=eta, **TAIL_RULES[name], **options)(step)

    jax.tree.map(np.testing.assert_array_equal, table(9, strict=True), table(2))
    assert not np.array_equal(table(9).groups, table(2).groups)
    with pytest.raises(TypeError, match="eta"):
        getattr(rules, name)([40, 9, 2], **TAIL_RULES[name])


def test_stagewise_holds_its_stages_and_where_they_start() -> None:
    first, second = rules.sgd(2), rules.sam(2, rho=0.1)
    rule = rules.stagewise(first, second, switch_step=10)
    assert (rule.stages, rule.starts) == ((first, second), (0, 10))
    for step in (0, 9, np.int64(9), np.asarray(9)):
        assert rule(step).base is not None
    for step in (10, 10**6, np.int64(10), jnp.int32(10)):
        assert rule(step).base is None


def test_stages_may_be_staged() -> None:
    inner = rules.stagewise(rules.sam(2, rho=0.1), rules.sam(2, rho=0.2), switch_step=20)
    rule = rules.stagewise(rules.sgd(2), inner, switch_step=10)
    assert [rule(step).radii.tolist() for step in (0, 10, 19, 20)] == [[], [0.1], [0.1], [0.2]]


@pytest.mark.parametrize("row", RULES, ids=row_id)
def test_tables_have_their_shapes(row: Row) -> None:
    table = row.rule(0.25)(10 if row.needs_step else None)
    num_groups = table.groups.shape[0]
    assert table.groups.shape == (num_groups, CLASSES) and table.radii.shape == (num_groups,)
    assert (table.base is not None) == row.base
    if row.base:
        assert table.base.shape == (CLASSES,)
    if row.takes_rho:
        np.testing.assert_allclose(table.radii[-1], row.per_rho * 0.25, rtol=1e-15)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8, unique=True), st.integers(0, 6))
def test_head_and_tail_part_the_classes(counts: list[int], rank: int) -> None:
    eta = sorted(counts)[min(rank, len(counts) - 2)]  # any but the largest leaves a head
    table = rules.imbsam(counts, rho=0.1, eta=eta)(None)
    np.testing.assert_array_equal(table.base + table.groups[0], 1)
    staged = rules.sse_sam(counts, head_rho=0.1, tail_rho=0.1, eta=eta, switch_step=1)
    np.testing.assert_array_equal(staged(0).groups.sum(0), 1)


# ------------------------------------------------------------------------- numbers and schedules


@pytest.mark.parametrize("row", [row for row in RULES if row.takes_rho], ids=row_id)
def test_a_radius_may_be_a_number_an_array_or_a_schedule(row: Row) -> None:
    step = 10
    for rho in (0.5, 1, np.float32(0.5), np.asarray(0.5), jnp.asarray(0.5)):
        table = row.rule(rho)(step)
        np.testing.assert_allclose(table.radii[-1], row.per_rho * rho)
    np.testing.assert_allclose(row.rule(lambda step: 0.1 * step)(step).radii[-1], row.per_rho)
    if not row.needs_step:
        traced = jax.jit(lambda rho, step: row.rule(lambda s: rho * s)(step).radii[-1])
        np.testing.assert_allclose(traced(0.1, step), row.per_rho)
    traced = jax.jit(lambda rho: row.rule(rho)(step).radii[-1])
    np.testing.assert_allclose(traced(0.5), row.per_rho * 0.5)


@pytest.mark.parametrize("name", ["sam", "imbsam", "focal_sam", "sse_sam", "gsa"])
def test_a_schedule_needs_a_step(name: str) -> None:
    with pytest.raises(ValueError, match=r"depends on the step .* pass step="):
        BY_ID[name].rule(lambda step: 0.1)(None)


def test_a_scheduled_radius_is_checked_where_it_is_concrete() -> None:
    rule = rules.sam(2, rho=lambda step: 0.1 - step)
    assert rule(0).radii.tolist() == [0.1]
    with pytest.raises(ValueError, match=r"rho must be finite and at least 0, got -0\.9"):
        rule(1)


def test_a_staged_rule_has_no_table_at_a_missing_or_traced_step() -> None:
    rule = rules.stagewise(rules.sgd(2), rules.sam(2, rho=0.1), switch_step=10)
    with pytest.raises(ValueError, match=r"depends on the step .* pass step="):
        rule(None)
    with pytest.raises(TypeError, match=r"no table at a traced step: give it to value_and_grad"):
        jax.jit(lambda step: rule(step).groups)(3)
    late = jax.jit(lambda switch: rules.stagewise(*rule.stages, switch_step=switch)(3).groups)
    with pytest.raises(TypeError, match=r"no table at a traced step"):
        late(10)


# ------------------------------------------------------------------------------------ refusals

OF_RHO = {
    "sam": ("rho", lambda rho: rules.sam(2, rho=rho)),
    "imbsam": ("rho", lambda rho: rules.imbsam([9, 3], rho=rho, eta=4)),
    "focal_sam": ("rho", lambda rho: rules.focal_sam([9, 3], rho=rho, gamma=1, strength=1)),
    "sse_sam head": (
        "head_rho",
        lambda rho: rules.sse_sam([9, 3], head_rho=rho, tail_rho=0.1, eta=4, switch_step=1),
    ),
    "sse_sam tail": (
        "tail_rho",
        lambda rho: rules.sse_sam([9, 3], head_rho=0.1, tail_rho=rho, eta=4, switch_step=1),
    ),
    "gsa": ("scale", lambda scale: rules.gsa([9, 3], groups=[0, 1], scale=scale)),
}


@pytest.mark.parametrize(
    "rho", [-0.05, -math.inf, math.inf, math.nan, np.float32(-1), jnp.asarray(-1.0)]
)
@pytest.mark.parametrize(("name", "make"), OF_RHO.values(), ids=OF_RHO)
def test_bad_radii_are_refused_by_name(name: str, make: Any, rho: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be finite and at least 0, got {rho}"):
        make(rho)


@pytest.mark.parametrize(("name", "make"), OF_RHO.values(), ids=OF_RHO)
def test_a_radius_of_0_is_one(name: str, make: Any) -> None:
    assert 0 in make(0)(0).radii


def test_focal_sam_without_strength_or_focus() -> None:
    """Strength 0 is SGD, strength 1 with gamma 0 is SAM."""
    none = rules.focal_sam([9, 3], rho=0.1, gamma=1.0, strength=0)
    assert_table(none(None), [1, 1], [[0, 0]], [0.1])
    whole = rules.focal_sam([9, 3], rho=0.1, gamma=0, strength=1)
    assert_table(whole(None), [0, 0], [[1, 1]], [0.1])


@pytest.mark.parametrize(("name", "make"), OF_RHO.values(), ids=OF_RHO)
def test_a_radius_is_one_number(name: str, make: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a scalar, got shape \(2,\)"):
        make(np.array([0.1, 0.2]))


@pytest.mark.parametrize(("eta", "missing"), [(2, "tail"), (9, "head"), (-1, "tail"), (10, "head")])
def test_eta_must_leave_a_head_and_a_tail(eta: float, missing: str) -> None:
    message = rf"eta={eta} leaves no {missing} class: .* from 3 to 9, so choose eta between"
    with pytest.raises(ValueError, match=message):
        rules.imbsam([9, 5, 3], eta=eta)
    with pytest.raises(ValueError, match=message):
        rules.sse_sam([9, 5, 3], head_rho=0.1, tail_rho=0.1, eta=eta, switch_step=1)


# What a rule needs beside the counts; of a new one that takes `strict`, add what it needs.
NUMBERS = {"rho": 0.1, "head_rho": 0.1, "tail_rho": 0.2, "tail_weight": 3.0, "switch_step": 10}
OF_STRICT = [
    name
    for name, rule in inspect.getmembers(rules, inspect.isfunction)
    if name in rules.__all__ and "strict" in inspect.signature(rule).parameters
]


@pytest.mark.parametrize("name", OF_STRICT)
@pytest.mark.parametrize("strict", [False, True])
def test_each_rule_with_a_tail_says_whether_eta_is_in_it(name: str, strict: bool) -> None:
    """The table of counts with a class at eta is that of counts which leave no doubt."""
    make = getattr(rules, name)
    taken = inspect.signature(make).parameters
    numbers = {key: value for key, value in NUMBERS.items() if key in taken}
    at_eta = make([500, 20, 5], eta=20, strict=strict, **numbers)
    clear = make([500, 200 if strict else 6, 5], eta=20, **numbers)
    for step in (9, 10):
        want = clear(step)
        assert_table(at_eta(step), want.base, want.groups, want.radii)
        assert at_eta(step).groups[-1, 1] != (at_eta(step).groups[-1, 2] if strict else 0)


def test_reweighted_sam_perturbs_by_rho_and_heeds_strict() -> None:
    counts = [500, 100, 99, 5]
    rule = rules.reweighted_sam(counts, rho=0.1, eta=99, tail_weight=3.0)
    assert_table(rule(None), None, [[1, 1, 3, 3]], [0.1])


def test_strict_moves_the_edge_of_the_tail() -> None:
    with pytest.raises(ValueError, match=r"eta=3 leaves no tail class"):
        rules.imbsam([9, 5, 3], eta=3, strict=True)
    rules.imbsam([9, 5, 3], eta=9, strict=True)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_tail_scale_must_be_positive(value: float) -> None:
    with pytest.raises(ValueError, match=f"tail_scale must be finite and positive, got {value}"):
        rules.imbsam([9, 3], eta=4, tail_scale=value)


@pytest.mark.parametrize("name", ["gamma", "strength"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_focal_numbers_must_not_be_negative(name: str, value: float) -> None:
    numbers = {"gamma": 1.0, "strength": 1.0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0, got {value}"):
        rules.focal_sam([9, 3], rho=0.1, **numbers)


@pytest.mark.parametrize("value", [-1, math.nan, np.array([1, 2])])
def test_switch_step_must_be_a_step(value: Any) -> None:
    with pytest.raises(ValueError, match=r"switch_step must be a step number, at least 0, got"):
        rules.stagewise(rules.sgd(2), rules.sgd(2), switch_step=value)


@pytest.mark.parametrize("value", [0, -3, 2.0, True, None])
def test_num_classes_must_be_a_whole_number(value: Any) -> None:
    for make in (rules.sgd, lambda n: rules.sam(n, rho=0.1)):
        with pytest.raises(ValueError, match=rf"num_classes must be .*, got {value}"):
            make(value)


def test_rules_keep_nothing_of_the_counts_they_were_given() -> None:
    counts = COUNTS.copy()
    rule = rules.imbsam(counts, eta=9)
    counts[:] = 1
    assert rule(None).base.tolist() == [1, 1, 0, 0, 0]
