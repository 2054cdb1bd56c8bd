"""Of a grid, validation chooses, and SGD is among the candidates."""

import numpy as np

from experiments.bench.grid import Tried, summarise, table, verdict
from experiments.bench.tables import SPLITS


def made_up(*values):
    """Of two seeds: SGD at 50, then points with these (test, validation) accuracies."""

    def of(value):
        return dict.fromkeys(SPLITS, np.array([value - 1.0, value + 1.0]))

    points = [Tried({"rho": 0.1 * k}, of(test), of(val)) for k, (test, val) in enumerate(values)]
    return [Tried({}, of(50.0), of(50.0)), *points]


def test_the_choice_is_validations():
    summary = summarise(made_up((51, 57), (55, 52)), [0, 1])
    assert [row["best_val"] for row in summary] == [False, True, False]
    assert [row["best_test"] for row in summary] == [False, False, True]
    assert summary[2]["test_all_sgd"] == 5 and summary[2]["test_all_sgd_se"] == 0
    lines = table(summary, {"rho": [0.0, 0.1]}).splitlines()
    assert [line.startswith("| **") for line in lines] == [False, False, False, True, False]
    assert "rho 0, All - SGD +1.0" in verdict(summary).splitlines()[0]
    assert "no result" in verdict(summary).splitlines()[1]


def test_sgd_is_a_candidate():
    """Where every point loses to it on validation, and where the best is only as good."""
    for points in (((60, 49), (55, 48)), ((60, 50), (55, 48))):
        summary = summarise(made_up(*points), [0, 1])
        assert [row["best_val"] for row in summary] == [True, False, False]
        assert [row["best_test"] for row in summary] == [False, True, False]
        chosen, best = verdict(summary).splitlines()
        assert chosen.startswith("Chosen by validation: SGD (rho 0), as no point was better")
        assert "rho 0, All - SGD +10.0" in best
        bold = [line for line in table(summary, {"rho": []}).splitlines() if "**" in line]
        assert len(bold) == 1 and bold[0].startswith("| **SGD**")


def test_what_single_precision_rounds_decides_nothing():
    """The same images right, of classes in another order: SGD is taken, or the first point."""
    classes = np.float32([1.0, 0.9, 0.7, 0.1])
    low, high = sorted(
        100 * np.add.accumulate(classes[list(order)], dtype=np.float32)[-1] / np.float32(4)
        for order in ((0, 1, 2, 3), (3, 2, 1, 0))
    )
    assert 0 < high - low < 1e-4

    def of(value):
        return dict.fromkeys(SPLITS, np.array([value]))

    worse, better = of(low - np.float32(0.01)), of(high)
    for first, chosen in ((of(low), 0), (worse, 1)):
        tried = [Tried({}, first, first)]
        tried += [Tried({"rho": r}, seen, seen) for r, seen in ((0.1, of(low)), (0.2, better))]
        summary = summarise(tried, [0])
        for name in ("best_val", "best_test"):
            assert [line[name] for line in summary].index(True) == chosen


def test_a_point_that_diverged_is_marked_and_no_candidate():
    lost = dict.fromkeys(SPLITS, np.full(2, np.nan))
    points = made_up((51, 57), (55, 52))
    points[2] = Tried({"rho": 0.1}, lost, lost, "the loss is not finite")
    summary = summarise(points, [0, 1])
    assert [row["best_val"] for row in summary] == [False, True, False]
    cells = [line.count("diverged") for line in table(summary, {"rho": [0.0, 0.1]}).splitlines()]
    assert cells == [0, 0, 0, 0, 1]
    first, chosen, _ = verdict(summary).splitlines()
    assert first == "Diverged, and not among the choices: rho 0.1 (the loss is not finite)."
    assert chosen.startswith("Chosen by validation: rho 0,")


def test_means_of_single_precision_are_taken_in_double():
    base = np.array([33.3, 16.7, 50.1], np.float32)
    values = base + np.array([1.1, 2.3, -0.7], np.float32)
    tried = [Tried(point, *[dict.fromkeys(SPLITS, seen)] * 2)
             for point, seen in (({}, base), ({"rho": 0.1}, values))]  # fmt: skip
    line = summarise(tried, [0, 1, 2])[1]
    difference = values - base
    for name in ("test", "val"):
        for split in SPLITS:
            assert line[f"{name}_{split}"] == values.astype(float).mean() != float(values.mean())
            own = line[f"{name}_{split}_sgd"]
            assert own == difference.astype(float).mean() != float(difference.mean())
            error = difference.astype(float).std(ddof=1) / np.sqrt(3)
            np.testing.assert_allclose(line[f"{name}_{split}_sgd_se"], error, rtol=1e-5)
        assert line[f"{name}_all_by_seed"] == values.tolist()
