import math
from dataclasses import astuple

import numpy as np
import pytest

from imagepipe.evaluation.intervals import (
    bound_groups,
    find_tail,
    measure_proportion,
    number_groups,
    resample,
    take_percentiles,
)


def test_wilson_interval_by_its_formula() -> None:
    z, n, p = 1.959963984540054, 10, 0.9
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = measure_proportion(9, 10, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.9, middle - half, middle + half))


def test_all_right_has_an_interval_below_one() -> None:
    found = measure_proportion(10, 10, 0.95)
    assert found.high == 1
    assert found.low == pytest.approx(10 / (10 + 1.959963984540054**2))


def test_a_wider_confidence_has_a_wider_interval() -> None:
    assert measure_proportion(9, 10, 0.99).low < measure_proportion(9, 10, 0.9).low


def test_images_of_one_group_are_one_unit_and_others_their_own() -> None:
    assert number_groups(["", "b", "", "b", "a"]).tolist() == [0, 1, 2, 1, 3]


def test_a_group_is_drawn_whole_and_as_many_units_as_there_are() -> None:
    units = number_groups(["a", "a", "a", "b", "", ""])
    for weights in resample(units, 50):
        assert weights[0] == weights[1] == weights[2]
        assert weights[[0, 3, 4, 5]].sum() == 4


def test_resamples_repeat_and_differ() -> None:
    units = np.arange(20)
    first, again = (np.array(list(resample(units, 5))) for _ in range(2))
    assert (first == again).all()
    assert len({row.tobytes() for row in first}) == 5


def test_the_bootstrap_of_a_mean_has_the_spread_of_theory() -> None:
    """400 zeros and ones, half of each: the mean's standard error is 0.5 / 20."""
    values = np.arange(400) % 2
    means = [float(weights @ values / 400) for weights in resample(np.arange(400), 2000)]
    assert np.std(means) == pytest.approx(0.025, rel=0.1)
    assert np.mean(means) == pytest.approx(0.5, abs=0.002)


def test_percentiles_leave_out_what_is_not_defined() -> None:
    draws = np.array([[1.0, np.nan, np.nan], [3.0, np.nan, 5.0], [2.0, np.nan, 6.0]])
    low, high = take_percentiles(draws, np.arange(4), 0.5)
    assert low.tolist() == pytest.approx([1.5, np.nan, 5.25], nan_ok=True)
    assert high.tolist() == pytest.approx([2.5, np.nan, 5.75], nan_ok=True)


def test_resamples_that_agree_give_no_interval() -> None:
    low, high = take_percentiles(np.array([[1.0, 2.0], [1.0, 4.0], [np.nan, 6.0]]), np.arange(3), 0.5)
    assert low.tolist() == pytest.approx([np.nan, 3.0], nan_ok=True)
    assert high.tolist() == pytest.approx([np.nan, 5.0], nan_ok=True)


def test_groups_that_agree_leave_room_for_as_many_as_may_differ() -> None:
    """Wilson's upper bound for none of n is z² / (n + z²), with z = 1.96 for 95 %: of four 0.49, of one everything."""
    four, one = np.repeat(np.arange(4), 3), np.zeros(12, np.int64)
    reach = 1.959964**2 / (4 + 1.959964**2)
    assert astuple(bound_groups(1.0, four, 0.95)) == pytest.approx((1.0, 1 - reach, 1.0))
    assert astuple(bound_groups(0.25, four, 0.95)) == pytest.approx((0.25, 0.0, 0.25 + reach))
    assert astuple(bound_groups(0.0, four, 0.95, (-1, 1))) == pytest.approx((0.0, -reach, reach))
    assert astuple(bound_groups(0.25, one, 0.95)) == (0.25, 0.0, 1.0)
    assert astuple(bound_groups(0.25, one, 0.95, (-1, 1))) == (0.25, -1.0, 1.0)


def test_few_groups_reach_further() -> None:
    """Two groups: t of one degree of freedom leaves 2.5 % beyond 12.7062, and √2 · 12.7 leaves nothing; of 30 groups:
    √(30/29) · 2.04523 = 2.08020 leaves 1.8753 % of the normal distribution."""
    assert find_tail(np.arange(7), 0.95) == pytest.approx(0.025)
    assert find_tail(np.repeat(np.arange(30), 2), 0.95) == pytest.approx(0.018753, abs=1e-6)
    assert find_tail(np.array([0, 0, 1]), 0.95) < 1e-9


def test_one_unit_has_no_interval() -> None:
    assert np.isnan(take_percentiles(np.ones((5, 2)), np.zeros(9, np.int64), 0.95)).all()
