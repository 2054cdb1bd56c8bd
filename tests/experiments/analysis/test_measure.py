"""What is measured of subjects: against dense Hessians, of one seed and several, on any devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from experiments.analysis import measure as measuring
from experiments.analysis import results
from experiments.analysis.measure import Measure, _atoms
from experiments.analysis.subjects import Own, Rows, Subject, groups_of
from made_subjects import COUNTS, ETA, SEEDS, how, mean_loss, subject


@functools.cache
def measured(seeds: int) -> tuple[Subject, dict[str, Any], dict[str, Any]]:
    one = subject(seeds)
    groups = groups_of(one, ETA, per_class=True)
    measure = Measure(one, groups, how(), jax.devices()[:1])
    return one, groups, {item.name: item.call() for item in measure.items()}


@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), SEEDS])
def test_figures_are_those_of_dense_hessians(seeds: int) -> None:
    one, groups, found = measured(seeds)
    assert list(groups)[:6] == ["all", "head", "tail", "many", "medium", "few"]
    for seed in range(seeds):
        lines = results.figures(one, groups, found, seed)
        for name in ("all", "tail", "class 3"):
            flat, f = mean_loss(one, seed, groups[name])
            h = f.hessian(flat)
            values, line = np.linalg.eigvalsh(h), lines[name]
            np.testing.assert_allclose(line["largest"], values[-1], rtol=1e-4)
            np.testing.assert_allclose(line["smallest"], values[0], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(line["ratio"], -values[0] / values[-1], rtol=2e-3)
            assert abs(line["trace"] - np.trace(h)) < 4 * line["trace_error"]
            np.testing.assert_allclose(line["train_loss"], f(flat), rtol=1e-5)
            d = mean_loss(one, seed, groups["all"])[1].gradient(flat)
            rise = f(flat + 0.1 * d / np.linalg.norm(d)) - f(flat)
            np.testing.assert_allclose(line["sam"], rise, rtol=1e-3, atol=1e-6)
            d = mean_loss(one, seed, groups["tail"])[1].gradient(flat)
            rise = f(flat + 0.1 * d / np.linalg.norm(d)) - f(flat)
            np.testing.assert_allclose(line["imbsam"], rise, rtol=1e-3, atol=1e-6)
            assert line["worst"] is not None and line["worst"] >= line["random"]
        assert lines["all"]["examples"] == COUNTS.sum()


def test_traces_add_up_over_classes_probe_by_probe() -> None:
    _, _, found = measured(SEEDS)
    parts = [np.array(found["traces"][f"class {c}"]) * n for c, n in enumerate(COUNTS)]
    np.testing.assert_allclose(sum(parts) / COUNTS.sum(), found["traces"]["all"], rtol=1e-4)
    assert np.array(found["traces"]["all"]).shape == (SEEDS, 60)


def test_atoms_are_the_classes_in_the_same_groups() -> None:
    groups = [np.array(g, bool) for g in ([1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0])]
    atoms = _atoms(np.array([0, 0, 1, 2, 3]), groups)
    assert sorted(a.astype(int).tolist() for a in atoms) == [
        [0, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0],
    ]  # fmt: skip
    assert len(_atoms(np.array([0, 1]), groups)) == 2  # no atom without a row


def test_densities_and_surfaces() -> None:
    one, groups, _ = measured(SEEDS)
    measure = Measure(one, groups, how(), jax.devices()[:1])
    grid = np.linspace(-20, 20, 50)
    density = np.array(measure.density(groups["tail"], grid)["density"])
    np.testing.assert_allclose(density.sum(axis=1) * (grid[1] - grid[0]), 1, rtol=1e-4)
    surface = np.array(measure.surface(np.linspace(-1, 1, 3))["losses"])
    for k, name in enumerate(("head", "tail")):
        flat, f = mean_loss(one, 0, groups[name])
        np.testing.assert_allclose(surface[1, 1, k], f(flat), rtol=1e-5)


def record_of(rule: str, seed: int, tail: float, gain: float) -> dict[str, Any]:
    one = subject(SEEDS, rule)
    names = (*results.MEASURES, *results.LEVELS)
    line = dict.fromkeys(names, 2.0)
    lines = {g: {**line, "examples": 1} for g in ("all", "head", "tail")}
    lines["tail"] |= {"trace": tail, "test_accuracy": 50 + gain}
    return results.record(one, seed, lines)


def test_differences_are_paired_and_what_flattening_explains() -> None:
    records = [
        *(record_of("sgd", s, 4.0 + s, s) for s in range(SEEDS)),
        *(record_of("sam", s, (4.0 + s) / 2, s + 1.0 + s) for s in range(SEEDS)),
        *(record_of("imbsam", s, (4.0 + s) / 4, s + 3.0) for s in range(SEEDS)),
        *(record_of("focal_sam", s, (4.0 + s) / 8, s + 5.0) for s in range(SEEDS)),
    ]
    lines = {line["rule"]: line for line in results.summarise(records)}
    assert lines["sgd"]["groups"]["tail"]["to_sgd"] is None
    to_sgd = lines["imbsam"]["groups"]["tail"]["to_sgd"]
    assert to_sgd["trace"]["mean"] == pytest.approx(-0.75 * 4.5)
    assert to_sgd["test_accuracy"] == {"mean": 3.0, "error": 0.0, "n": 2}
    ratio = lines["sam"]["tail_to_head"]["trace"]
    assert ratio["ratio"] == pytest.approx(np.sqrt(2.0 * 2.5) / 2)
    found = results.explained(records)["trace"]
    assert found["lines"]["rho"] == pytest.approx(-1.0) and found["lines"]["n"] == 3
    assert found["seeds"] is None  # the same flattening in every seed explains nothing
    table, less = results.table(list(lines.values())), results.differences(list(lines.values()))
    assert table.count("\n") == 1 + 4 * 3 and less.count("\n") == 1 + 3 * 3
    assert "| imbsam rho=0.5, cross_entropy | 3 | tail |" in less


def test_differences_are_to_the_same_epoch() -> None:
    """Of several checkpoints each has its own SGD."""
    records = [
        {**record_of(rule, 0, tail, 0.0), "epoch": epoch}
        for epoch, sgd, sam in ((1, 8.0, 4.0), (2, 6.0, 1.0))
        for rule, tail in (("sgd", sgd), ("sam", sam))
    ]
    for records_in in (records, records[::-1]):
        lines = results.summarise(records_in)
        found = {
            line["epoch"]: line["groups"]["tail"]["to_sgd"]["trace"]["mean"]
            for line in lines
            if line["rule"] == "sam"
        }
        assert found == {1: -4.0, 2: -5.0}


def test_groups_of_the_same_classes_are_measured_once() -> None:
    one = subject()._replace(thresholds=(5, 2))  # medium is the tail, many the head, few nothing
    groups = groups_of(one, ETA, per_class=False)
    measure = Measure(one, groups, how(), jax.devices()[:1])
    names = [item.name for item in measure.items()]
    assert names == [
        "levels", "ends of all", "ends of head", "ends of tail", "traces", "rises", "worst",
    ]  # fmt: skip
    products = sum(item.products for item in measure.items())
    assert products == 3 * how().iterations + how().probes


def test_ends_are_measured_of_the_groups_that_were_asked_for() -> None:
    one = subject()
    groups = groups_of(one, ETA, per_class=False)
    measure = Measure(one, groups, how(ends=("few",)), jax.devices()[:1])
    names = [item.name for item in measure.items() if item.name.startswith("ends")]
    assert names == ["ends of head", "ends of tail", "ends of few"]
    _, _, found = measured(SEEDS)
    fewer = {name: x for name, x in found.items() if not name.startswith("ends") or name in names}
    fewer["worst"] = {name: found["worst"][name] for name in ("head", "tail", "few")}
    lines = results.figures(one, groups, fewer, 0)
    assert lines["all"]["largest"] is None and lines["all"]["worst"] is None
    assert lines["all"]["trace"] is not None and lines["few"]["largest"] is not None
    summary = results.summarise([results.record(one, 0, lines)])
    assert "| all | - | - | - | " in results.table(summary)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_seed_of_several_has_its_own_parameters_and_rows(seed: int) -> None:
    both = subject(2)
    groups = groups_of(both, ETA, per_class=False)
    alone = Measure(both, groups, how(), jax.devices()[:1]).alone(seed).subject
    assert alone.seeds == [both.seeds[seed]]
    for cut, whole in ((alone.variables, both.variables), (alone.train, both.train)):
        jax.tree.map(np.testing.assert_array_equal, cut, jax.tree.map(lambda x: x[[seed]], whole))


def test_seeds_of_one_subject_have_the_same_labels() -> None:
    both = subject(2)
    labels = both.train.labels.copy()
    labels[1, 0] = 1
    other = both._replace(train=both.train._replace(labels=labels))
    groups = groups_of(both, ETA, per_class=False)
    with pytest.raises(ValueError, match="must have the same labels"):
        Measure(other, groups, how(), jax.devices()[:1])


def test_a_loss_of_its_own_is_of_no_logits() -> None:
    one = subject()
    groups = groups_of(one, ETA, per_class=False)
    for own in (None, lambda outputs, labels: labels):
        measure = Measure(one._replace(loss=own), groups, how(), jax.devices()[:1])
        settings = measure._settings()
        assert settings.counted == (own is None) and settings.loss is (own or how().loss)
        assert settings.tail == (False, False, True, True) and settings.each == 10
        told = (settings.rho, settings.iterations, settings.probes, settings.directions)
        assert (*told, settings.steps, settings.density) == (0.1, 24, 60, 3, 2, 2)


def test_what_the_rises_of_an_own_rule_cost() -> None:
    """A gradient and a forward pass for each group, of classes together for all; and the levels."""
    moved = {
        by_class: Own(np.ones((2, 3, 4)), np.ones((2, 3)), None, by_class=by_class)
        for by_class in (False, True)
    }
    for by_class, passes in ((False, 3 * 0.8 + 0.2), (True, 0.8 + 0.2)):
        one = subject()._replace(own=moved[by_class])
        groups = groups_of(one, ETA, per_class=False)
        items = {x.name: x for x in Measure(one, groups, how(), jax.devices()[:1]).items()}
        assert items["own"].passes == pytest.approx(passes) and items["own"].products == 0
        assert items["own"].more == moved[by_class].key()


def test_a_class_without_rows_has_no_part_in_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the last one, of which no image was looked at; of the third there is one row."""
    one = subject(1)
    rows = Rows(one.train.images[:, :16], one.train.labels[:, :16])
    one = one._replace(train=rows)
    groups = groups_of(one, ETA, per_class=False)
    assert "few" not in groups and groups["medium"].tolist() == [False, False, True, False]
    measure = Measure(one, groups, how(), jax.devices()[:1])
    tables = dict(zip(groups, measure._tables(), strict=True))
    np.testing.assert_allclose(tables["tail"], [0, 0, 16, 16])
    atoms = _atoms(rows.labels[0], list(groups.values()))
    assert sorted(atom.tolist() for atom in atoms)[0] == [False, False, True, False]

    def program(of: Any, given: Any, alone: bool) -> Any:
        return lambda moved, placed, tables: np.full(len(tables), float(moved[2][0]))

    monkeypatch.setattr(measuring, "program", program)
    radii = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = measure.own(Own(np.eye(4)[None], radii, None, by_class=True))["own"][0]
    # By class its radius, weighed by the rows: 9, 6 and 1 of 16.
    want = {"all": (9 + 12 + 3) / 16, "head": 21 / 15, "tail": 3}
    assert {name: dict(zip(groups, found, strict=True))[name] for name in want} == pytest.approx(
        want
    )
