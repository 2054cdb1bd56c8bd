"""What an engine counts and keeps, with programs that train nothing."""

from __future__ import annotations

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import comparison
from experiments.bench.choosing import folds
from experiments.bench.comparison import Engine, Part, Recipe, softmax
from experiments.bench.lanes import Net
from experiments.command.candidates import Candidate

# Rows of three classes: 12, 6 and 2 are trained on, of ten rows that are tested.
LABELS = np.tile(np.repeat([0, 1, 2], [6, 3, 1]), 3).astype(np.int32)
PART = Part(3, np.ones((30, 2), np.float32), np.arange(20), np.arange(20, 30))
POINT = {
    "lr": 0.1, "weight_decay": 0.01, "rho": 0.3, "head_share": 0.8, "strength": 0.7, "gamma": 2.0,
    "gsa_scale": 0.05, "tau": 1.2, "beta": 0.9, "focal_gamma": 1.5,
}  # fmt: skip
ROWS = [
    Candidate(f"{rule}, {loss}, {sampling}", rule, loss, sampling, [POINT, dict(POINT)])
    for rule, loss, sampling in (
        ("sgd", "cross_entropy", "shuffled"), ("sgd", "focal", "shuffled"),
        ("sgd", "class_balanced", "shuffled"), ("sgd", "cross_entropy", "balanced"),
        ("sam", "cross_entropy", "shuffled"), ("imbsam", "cross_entropy", "shuffled"),
        ("focal_sam", "cross_entropy", "shuffled"), ("gsa", "cross_entropy", "shuffled"),
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that find every class alike."""

    def program(net: Any, structure: Any, label_of: Any, keep: bool) -> Any:
        def run(lanes: Any, batches: Any) -> Any:
            lanes_, held = len(lanes.lr), len(batches.held)
            kept = {"w": jnp.arange(lanes_) + 7.0} if keep else None
            return jnp.zeros((lanes_, held, net.classes)), kept

        return run

    monkeypatch.setattr(comparison, "program", program)


def engine(folds: int = 2) -> Engine:
    return Engine(LABELS, LABELS, Recipe(Net(5, 1, 3), 6, 16, folds, 7), ROWS)


# Passes of a family: the base is one, each group that is perturbed two.
PASSES = {"sgd": 1, "sam": 2, "imbsam": 3, "gsa": 6}
# Rows, and calls with two folds and two lanes: for each row and fold one, and at last by twos.
FAMILIES = [("sgd", 3, 3 * 2 + 2), ("sgd", 1, 3), ("sam", 1, 3), ("imbsam", 2, 5), ("gsa", 1, 3)]


def test_the_work_of_a_family_is_what_it_reports() -> None:
    """Lanes times passes, padding too: counted beforehand, and again call by call."""
    made, done, compiled, began = engine(), [], [], time.perf_counter()
    made.advance = lambda units, seconds: done.append((units, seconds))
    made.compiling = compiled.append
    families = made.families(PART)
    assert [(f[0].rule, len(f)) for f in families] == [x[:2] for x in FAMILIES]
    for family, (rule, rows, calls) in zip(families, FAMILIES, strict=True):
        done.clear()
        before = made.seconds
        assert made.units(family, PART) == calls * 2 * PASSES[rule]
        found = made.run(PART, family)
        assert [one.row for one in found] == [row.name for row in family] and len(found) == rows
        assert [units for units, _ in done] == [2 * PASSES[rule]] * calls
        assert made.seconds - before == pytest.approx(sum(seconds for _, seconds in done))
        assert all(seconds > 0 for _, seconds in done)
    assert made.seconds < time.perf_counter() - began
    assert compiled == [*range(1, len(compiled) + 1)] and len(compiled) >= len(made.programs(PART))


def test_without_folds_the_rows_of_a_family_are_one_call() -> None:
    made, done = engine(folds=0), []
    made.advance = lambda units, seconds: done.append(units)
    for family, (rule, rows, _) in zip(made.families(PART), FAMILIES, strict=True):
        done.clear()
        assert made.units(family, PART) == rows * PASSES[rule]
        found = made.run(PART, family)
        assert done == [rows * PASSES[rule]]
        for one in found:
            assert one.validated == [] and one.chosen is POINT and one.params is None
            np.testing.assert_allclose(one.probabilities, np.full((10, 3), 1 / 3))


def test_the_numbers_of_a_lane() -> None:
    """Of each loss: offsets, weights of mean 1 over the rows, the exponent; 0 or 1 elsewhere."""
    made = engine()
    counts = np.array([12, 6, 2])
    effective = 0.1 / (1 - 0.9**counts)
    balanced = effective * 20 / (counts * effective).sum()
    for loss, offsets, weights, gamma in (
        ("cross_entropy", np.zeros(3), np.ones(3), 0),
        ("logit_adjusted", 1.2 * np.log(counts / 20), np.ones(3), 0),
        ("class_balanced", np.zeros(3), balanced, 0),
        ("focal", np.zeros(3), np.ones(3), 1.5),
    ):
        lane = made.lane(ROWS[0]._replace(loss=loss), POINT, PART)
        np.testing.assert_allclose(lane.offsets, offsets, err_msg=loss)
        np.testing.assert_allclose(lane.weights, weights, err_msg=loss)
        assert (lane.focal_gamma, lane.lr, lane.weight_decay) == (gamma, 0.1, 0.01)


def test_a_class_that_is_not_trained_on_counts_as_one_row() -> None:
    part = PART._replace(train=np.flatnonzero(LABELS[:20] != 2))
    assert engine().weighed_counts(PART).tolist() == [12, 6, 2]
    assert engine().weighed_counts(part).tolist() == [12, 6, 1]
    lane = engine().lane(ROWS[0]._replace(loss="logit_adjusted"), POINT, part)
    np.testing.assert_allclose(lane.offsets, 1.2 * np.log(np.array([12, 6, 1]) / 18))


def test_the_rows_of_a_split_go_to_the_device_once() -> None:
    made = engine()
    first, cells = made._on_device(PART)
    assert made._on_device(PART)[0] is first
    np.testing.assert_array_equal(cells, LABELS)
    other = PART._replace(number=4, features=2 * PART.features)
    np.testing.assert_array_equal(made._on_device(other)[0], other.features)


@pytest.mark.parametrize(("folds", "test", "size"), [
    (0, 10, 10), (2, 10, 13), (3, 5, 10), (1, 10, 23), (0, 2, 2), (0, 0, 0), (7, 10, 10),
])  # fmt: skip
def test_held_rows_have_one_size(folds: int, test: int, size: int) -> None:
    """At most a fold, 20 rows by folds rounded up, with a row more of each class."""
    made = engine(folds)
    part = PART._replace(test=PART.test[:test])
    assert made._most_held(part) == size
    if folds:
        assert max(map(len, made.folds(part))) <= size


def test_seeds_splits_and_purposes_draw_apart() -> None:
    draws = [
        Engine(LABELS, LABELS, Recipe(Net(5, 1, 3), 6, 16, 2, seed), ROWS)
        ._draw(PART._replace(number=number), what)
        .random()
        for seed, number, what in ((7, 3, 0), (8, 3, 0), (7, 4, 0), (7, 3, 1))
    ]
    assert len(set(draws)) == 4
    assert draws[0] == np.random.default_rng([7, 3, 0]).random()


def test_softmax_in_double_precision() -> None:
    found = softmax(np.array([[1e4, 1e4 - 1], [np.inf, 0]], np.float32))
    assert found.dtype == np.float64
    assert comparison._finite_softmax(np.array([[0.0, 1.0], [np.nan, 0.0]])) is None
    np.testing.assert_allclose(found[0], [1 / (1 + np.exp(-1)), 1 / (1 + np.e)], rtol=1e-12)
    several = softmax(np.log([[[1.0, 3.0], [2.0, 6.0]], [[9.0, 1.0], [1.0, 1.0]]]))
    np.testing.assert_allclose(several, [[[0.25, 0.75]] * 2, [[0.9, 0.1], [0.5, 0.5]]])
    assert np.isnan(found[1]).any() and comparison._finite_softmax(np.full((1, 2), np.nan)) is None


def test_an_engine_begins_with_nothing_spent_and_keeps_what_it_is_asked_to() -> None:
    assert engine().seconds == 0 and engine().groups == 3
    assert engine().label_of == engine().group_of == (0, 1, 2)
    recipe = Recipe(Net(5, 1, 3), 6, 16, 0, 7)
    keeping = Engine(LABELS, LABELS.copy(), recipe, ROWS[:3], keep=True)
    assert keeping.label_of == (0, 1, 2)  # the same labels, if not the same array
    found = keeping.run(PART, ROWS[:3])
    assert [one.params["w"].tolist() for one in found] == [7, 8, 9]


def test_pairs_of_class_and_group_are_numbered_by_class() -> None:
    labels, weighed = np.array([0, 1, 1, 0], np.int32), np.array([2, 0, 1, 0], np.int32)
    made = Engine(labels, weighed, Recipe(Net(5, 1, 2), 6, 16, 0, 7), [])
    assert made.groups == 3 and made.cells.tolist() == [2, 3, 4, 0]
    assert made.label_of == (0, 0, 0, 1, 1, 1) and made.group_of == (0, 1, 2, 0, 1, 2)


def test_the_best_point_is_that_of_the_folds_and_of_equals_the_one_of_less_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = [[(50.0, -0.1), (60.0, -2.0)], [(60.0, -1.0), (60.0, -3.0)], [(9.0, -1), (9.0, -1)]]
    monkeypatch.setattr(Engine, "_validated", lambda self, part, family: tried)
    chosen, validated = engine().choose(PART, ROWS[:3])
    for point, row, best in zip(chosen, ROWS, (1, 0, 0), strict=False):
        assert point is row.points[best]
    assert validated == [[50, 60], [60, 60], [9, 9]]


def test_a_stop_is_asked_for_before_every_program() -> None:
    def stop() -> None:
        asked.append(len(done))

    asked: list[int] = []
    done: list[int] = []
    recipe = Recipe(Net(5, 1, 3), 6, 16, 2, 7)
    made = Engine(LABELS, LABELS, recipe, ROWS, stop=stop)
    made.advance = lambda units, seconds: done.append(units)
    made.run(PART, ROWS[:1])
    assert asked == [0, 1, 2]


def test_folds_orders_and_weights_are_drawn_each_by_a_number_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0 for what is trained at last, 1 for the folds, and 2, 3, ... for each of them."""
    drawn, draw = [], Engine._draw

    def noted(self: Engine, part: Part, what: int) -> Any:
        drawn.append((part.number, what))
        return draw(self, part, what)

    monkeypatch.setattr(Engine, "_draw", noted)
    made = engine(folds=3)
    made.run(PART, ROWS[:1])
    assert drawn == [(3, k) for k in (1, 2, 3, 4, 0)]
    held = folds(PART.train, LABELS, 3, np.random.default_rng([7, 3, 1]))
    for one, other in zip(made.folds(PART), held, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_held_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each fold the others are; at last all of them are, for the rows that are tested."""
    seen, call = [], Engine._call

    def noted(self: Engine, part: Part, row: Any, lanes: Any, size: int, *rows: Any) -> Any:
        seen.append([set(of.ravel().tolist()) for of in rows])
        return call(self, part, row, lanes, size, *rows)

    monkeypatch.setattr(Engine, "_call", noted)
    made, train = engine(folds=3), set(range(20))
    made.run(PART, ROWS[:1])
    folds_, last = seen[:-1], seen[-1]
    assert [trained for trained, _ in folds_] == [train - held for _, held in folds_]
    assert sorted(row for _, held in folds_ for row in held) == [*range(20)]
    assert last == [train, set(range(20, 30))]


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [
        (64, 64, None, 400), (27 * 64, 64, None, 405), (26 * 64 + 1, 64, None, 405),
        (26 * 64, 64, None, 400), (67 * 64, 64, None, 1000), (66 * 64, 64, None, 990),
        (10, 64, 7, 7), (65, 64, 7, 14), (128, 64, 7, 14),
    ],
)  # fmt: skip
def test_steps_are_of_15_epochs_from_400_to_1000(
    rows: int, batch: int, epochs: int | None, steps: int
) -> None:
    assert comparison.steps_for(rows, batch, epochs) == steps


def test_calls_of_a_family_have_equally_many_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings of each of three rows on two folds; at last the three rows, two and one."""
    made, lanes, stacked = engine(), [], comparison.stacked
    monkeypatch.setattr(comparison, "stacked", lambda of: lanes.append(len(of)) or stacked(of))
    made.run(PART, ROWS[:3])
    assert lanes == [2] * 8
