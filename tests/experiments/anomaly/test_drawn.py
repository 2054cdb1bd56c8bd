"""Which numbers stand in the curves of the anomaly runs; nothing is rendered here."""

import matplotlib
import numpy as np
import pytest

from experiments.anomaly import curves
from experiments.reports import drawing
from unsaved import legend

METRICS = ("auroc", "ap_anomaly", "ap_normal")


@pytest.fixture(autouse=True)
def saved(monkeypatch):
    figures = []
    monkeypatch.setattr(
        drawing, "save", lambda figure, path: figures.append((figure, path)) or figure
    )
    yield
    ((figure, path),) = figures
    assert path == "x" and figure.get_layout_engine() is not None


def row(method, rule, ratio, level, spread=2.0, protocol="adbench", **more):
    values = {metric: level + k for k, metric in enumerate(METRICS)}
    spreads = {f"{metric}_sd": spread for metric in METRICS}
    about = {"protocol": protocol, "method": method, "rule": rule, "label_ratio": ratio}
    return {**about, "datasets": 14, "seeds": 3, **values, **spreads, **more}


def found(axis):
    """(x, y, half the bar) of each point, line by line."""
    return [
        [
            (x, y, (np.ptp(bar, axis=0)[1] if len(bar) else 0) / 2)
            for x, y, bar in zip(*line[0].get_data(), line[2][0].get_segments(), strict=True)
        ]
        for line in axis.containers
    ]


def test_levels_over_the_label_ratio():
    rows = [
        row("devnet", "sgd", 0.25, 80.0), row("devnet", "sgd", 0.01, 60.0, None),
        row("devnet", "sam", 0.25, 81.0, auroc=None), row("devnet", "sam", 0.01, 61.0),
        row("devnet", "sam", 0.5, 0.0, protocol="full"),
    ]  # fmt: skip
    figure = curves.draw("x", rows, "adbench")
    for k, axis in enumerate(figure.axes):
        low, high = 1.03**-0.5, 1.03**0.5  # side by side
        sgd, sam = found(axis)
        np.testing.assert_allclose(sgd, [(low, 60 + k, 0), (25 * low, 80 + k, 2)])
        assert sam[0] == pytest.approx((high, 61 + k, 2))
        assert sam[1][1] == (pytest.approx(81 + k) if k else pytest.approx(np.nan, nan_ok=True))
        assert axis.get_xscale() == "log" and axis.get_xticks().tolist() == [1, 25]
        assert axis.get_xlim() == pytest.approx((1 / 1.3, 25 * 1.3))
        assert axis.get_xlabel() == "labelled part of the training anomalies (%)"
        assert {of[0].get_linestyle() for of in axis.containers} == {"-", "--"}
        # Caps of six points; lines across, at the levels alone, and no marks between the ratios.
        assert {cap.get_markersize() for of in axis.containers for cap in of[1]} == {6}
        assert not len(axis.xaxis.get_minorticklocs())
        assert not any(line.get_visible() for line in axis.xaxis.get_gridlines())
        across = {(line.get_visible(), line.get_linewidth()) for line in axis.yaxis.get_gridlines()}
        assert across == {(True, 0.3)}
    words = [axis.get_ylabel() for axis in figure.axes]
    assert words == [
        "AUROC (%)",
        *(f"average precision of {x} (%)" for x in ("anomalies", "normals")),
    ]
    assert figure.get_size_inches().tolist() == [13, 4.2]
    assert figure._suptitle.get_fontsize() == matplotlib.rcParams["font.size"]
    said = "adbench protocol, mean over 14 data sets; bars: standard deviation over 3 seeds"
    assert figure.get_suptitle() == said and legend(figure) == ["devnet sgd", "devnet sam"]


def test_at_one_label_ratio_methods_stand_side_by_side():
    rows = [
        row(method, rule, 0.25, 10.0 * m + r, seeds=1, datasets=1)
        for m, method in enumerate(("devnet", "deepsad"))
        for r, rule in enumerate(("sgd", "sam", "imbsam"))
    ]
    figure = curves.draw("x", rows, "adbench")
    for k, axis in enumerate(figure.axes):
        points = [point for line in found(axis) for point in line]
        places = [m + r for m in (0, 1) for r in (-0.2, 0, 0.2)]
        levels = [10 * m + r + k for m in (0, 1) for r in (0, 1, 2)]
        expected = [(x, y, 2) for x, y in zip(places, levels, strict=True)]
        np.testing.assert_allclose(points, expected, atol=1e-12)
        assert {of[0].get_linestyle() for of in axis.containers} == {"None"}
        assert [text.get_text() for text in axis.get_xticklabels()] == ["devnet", "deepsad"]
        assert axis.get_xlim() == (-0.6, 1.6) and axis.get_xlabel().startswith("method; 25% of")
    assert figure.get_suptitle() == "adbench protocol, mean over 1 data set, one seed"
    assert legend(figure) == [
        f"{method} {rule}" for method in ("devnet", "deepsad") for rule in ("sgd", "sam", "imbsam")
    ]


def test_two_seeds_are_several():
    figure = curves.draw("x", [row("devnet", "sgd", 0.25, 80.0, seeds=2)], "adbench")
    assert figure.get_suptitle().endswith("bars: standard deviation over 2 seeds")
    assert found(figure.axes[0]) == [[pytest.approx((0, 80, 2))]]
