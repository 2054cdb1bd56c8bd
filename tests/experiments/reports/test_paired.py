"""Intervals of paired differences and Holm's correction, against cases done by hand."""

import math

import numpy as np
import pytest

from experiments.reports.paired import holm, interval


def test_by_hand():
    # Mean 2, s^2 = 1, J = 3, n_test / n_train = 3/7: se^2 = 1/3 + 3/7 = 16/21.
    # Of two degrees of freedom the quantile q of t is (2q - 1) / sqrt(2 q (1 - q)).
    found = interval([1, 2, 3], 70, 30)
    se = math.sqrt(16 / 21)
    wide = 0.95 / math.sqrt(2 * 0.975 * 0.025) * se
    assert found.se == pytest.approx(se, rel=1e-14)
    assert found.high - found.mean == pytest.approx(wide, rel=1e-12)
    assert found.low == pytest.approx(2 - wide, rel=1e-12)
    # Two degrees of freedom have a closed form: p = 1 - t / sqrt(2 + t^2)
    t = 2 / se
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)
    assert (found.mean, found.n) == (2, 3)


def test_sizes_that_differ_enter_by_their_mean_ratio():
    same = interval([1, 2, 4], 1, [0.5, 0.5, 0.5])
    assert interval([1, 2, 4], [10, 20, 40], [2, 10, 32]) == pytest.approx(same)


def test_without_a_test_part_it_is_the_usual_one():
    found = interval([1.0, 4.0], 50, 0)
    # One degree of freedom: the Cauchy distribution.
    assert found.se == pytest.approx(1.5)
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2.5 / 1.5), rel=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_interval_holds_0_where_p_says_so(level):
    for shift in np.linspace(-3, 3, 13):
        found = interval(np.array([0.3, -1.0, 0.8, 0.1]) + shift, 7, 3, confidence=level)
        assert (found.low <= 0 <= found.high) == (found.p >= 1 - level)


def test_what_has_no_variance():
    assert interval([], 7, 3) == (None, None, None, None, None, 0)
    assert interval([2.0], 7, 3) == (2.0, None, None, None, None, 1)
    assert interval([0.0, 0.0], 7, 3) == (0, 0, 0, 1, 0, 2)
    assert interval([-1.5] * 3, 7, 3) == (-1.5, None, None, None, 0, 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_places_are_no_variance(sign):
    """One more of 30 rows is right in every split: from 80 and from 250 / 3 percent."""
    gains = sign * (np.array([250 / 3, 260 / 3, 270 / 3]) - [80, 250 / 3, 260 / 3])
    assert np.ptp(gains) > 0
    found = interval(gains, 7, 3)
    assert found == (pytest.approx(sign * 10 / 3), None, None, None, 0, 3)
    assert interval(gains - sign * 10 / 3, 7, 3) == (0, 0, 0, 1, 0, 3)
    assert interval(gains + np.array([0, 0, 1e-6]), 7, 3).p < 0.001


def test_undefined_differences_are_left_out_with_their_sizes():
    found = interval([1, np.nan, 2, 3], [70, 1, 70, 70], [30, 99, 30, 30])
    assert found == interval([1, 2, 3], 70, 30)


def test_holm_by_hand():
    # 4 x 0.01, 3 x 0.02, 2 x 0.022 = 0.044 but not below 0.06, 0.5
    assert holm([0.022, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, None, 0.9]) == [0.8, None, 0.9]
    assert holm([0.7, 0.7]) == [1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]
