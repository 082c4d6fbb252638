import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from imagepipe.evaluation.significance import (
    compare_folds,
    compare_seeds,
    compare_signs,
    correct_holm,
    measure_difference,
    resample_mean,
)


def make_pairs(both: int, lost: int, won: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images the first and the second run have right."""
    first = [True] * (both + lost) + [False] * (won + neither)
    second = [True] * both + [False] * lost + [True] * won + [False] * neither
    return np.array(first), np.array(second)


def make_signs(lost: int, won: int, same: int = 3) -> NDArray[np.int64]:
    return np.array([-1] * lost + [1] * won + [0] * same, np.int64)


# Fagerland, Lydersen and Laake (2013): airway hyper-responsiveness (Bentur 2009), and complete response before and
# after therapy (Cavo 2012).
@pytest.mark.parametrize(
    ("lost", "won", "exact", "mid"),
    [(1, 7, 0.070313, 0.039063), (6, 16, 0.052479, 0.034690), (16, 6, 0.052479, 0.034690)],
)
def test_mcnemar_of_published_examples(lost: int, won: int, exact: float, mid: float) -> None:
    found = compare_signs(make_signs(lost, won))
    assert (found.exact, found.mid) == pytest.approx((exact, mid), abs=1e-6)


def test_mcnemar_by_hand() -> None:
    """None lost and five won: all heads or all tails, 2 of 32; half of that is the chance of just this."""
    found = compare_signs(make_signs(0, 5))
    assert (found.exact, found.mid) == pytest.approx((2 / 32, 1 / 32))


def test_as_many_lost_as_won_is_no_difference() -> None:
    found = compare_signs(make_signs(3, 3))
    assert (found.exact, found.mid) == pytest.approx((1, 1 - math.comb(6, 3) / 64 / 2))


def test_nothing_that_differs_has_p_1() -> None:
    assert compare_signs(np.zeros(5, np.int64)).mid == 1
    assert compare_signs(np.zeros(0, np.int64)).exact == 1


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_exact_p_of_single_images_is_the_binomial_test(lost: int, won: int) -> None:
    found = compare_signs(make_signs(lost, won))
    expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert found.exact == pytest.approx(expected)
    assert found.mid <= found.exact


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_groups_are_flipped_in_every_way(differences: list[int]) -> None:
    sums = np.abs(np.array(list(product((-1, 1), repeat=len(differences)))) @ np.array(differences))
    found = compare_signs(np.array(differences, np.int64))
    beyond, equal = (sums > abs(sum(differences))).mean(), (sums == abs(sum(differences))).mean()
    assert found.exact == pytest.approx(beyond + equal)
    if any(differences):
        assert found.mid == pytest.approx(beyond + equal / 2)


def test_one_group_of_ten_images_is_less_than_ten_images() -> None:
    assert compare_signs(np.array([10])).exact == 1
    assert compare_signs(np.ones(10, np.int64)).exact == pytest.approx(2 / 1024)


def test_newcombes_interval_of_a_published_example() -> None:
    """Cavo 2012, as the R package contingencytables of Fagerland, Lydersen and Laake has it: -0.0621, -0.1186, -0.0046.

    The interval there is of the first less the second.
    """
    found = measure_difference(*make_pairs(59, 6, 16, 80), 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.0621, 0.0046, 0.1186), abs=5e-5)


def test_newcombes_interval_without_correlation_joins_wilsons_two() -> None:
    """All right in one run: a margin is 0, so that the intervals are joined as if they were independent."""
    found = measure_difference(*make_pairs(8, 0, 2, 0), 0.95)
    z2 = 1.959963984540054**2
    middle, half = (0.8 + z2 / 20) / (1 + z2 / 10), math.sqrt(z2 * (0.16 / 10 + z2 / 400)) / (1 + z2 / 10)
    above = math.hypot(1 - 1, 0.8 - (middle - half))
    below = math.hypot(1 - 10 / (10 + z2), middle + half - 0.8)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - below, 0.2 + above))


@given(*[st.integers(0, 40)] * 4)
def test_newcombes_interval_holds_the_difference_and_turns_with_it(
    both: int, lost: int, won: int, neither: int
) -> None:
    if both + lost + won + neither == 0:
        return
    first, second = make_pairs(both, lost, won, neither)
    found, turned = measure_difference(first, second, 0.95), measure_difference(second, first, 0.95)
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_the_bootstrap_is_wider_than_the_images_alone_would_be() -> None:
    """Ten groups of ten images each that change sides together."""
    differences = np.repeat([1] * 6 + [-1] * 4, 10)
    found = resample_mean(differences, np.repeat(np.arange(10), 10), 0.95, (-1, 1))
    right, better = make_pairs(0, 40, 60, 0)
    alone = measure_difference(right, better, 0.95)
    assert found.value == alone.value == 0.2
    assert found.high - found.low > 2.5 * (alone.high - alone.low)
    # The mean of ten signs with deviation sqrt(1 - 0.2²): 0.2 ± 1.96 · 0.98 / sqrt(10), in steps of 0.2.
    assert (found.low, found.high) == pytest.approx((-0.4, 0.8), abs=0.21)


def test_the_bootstrap_weighs_groups_by_their_images_and_repeats() -> None:
    differences, units = np.array([1, 1, 1, 0, 0, 0, 0, 0, -1, 0]), np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 3])
    assert resample_mean(differences, units, 0.9, (-1, 1)) == resample_mean(differences, units, 0.9, (-1, 1))
    assert resample_mean(differences, units, 0.9, (-1, 1)).value == 0.2


def test_one_group_alone_says_nothing() -> None:
    found = resample_mean(np.array([1, 1, 1, 0]), np.zeros(4, np.int64), 0.95, (-1, 1))
    assert (found.value, found.low, found.high) == (0.75, -1, 1)


def test_holm_by_hand() -> None:
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.04]) == [0.04]
    assert correct_holm([0.7, 0.8]) == [1, 1]
    assert correct_holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_is_never_below_p(p_values: list[float]) -> None:
    corrected = correct_holm(p_values)
    assert all(p <= new <= 1 for p, new in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert [corrected[place] for place in order] == sorted(corrected)


def test_welch_by_hand() -> None:
    """Means 0.9 and 0.94; variances 0.0001 and 0.0004 of three runs each."""
    base, other = [0.89, 0.90, 0.91], [0.92, 0.94, 0.96]
    found = compare_seeds(base, other, 0.95)
    one, two = 0.0001 / 3, 0.0004 / 3
    error, degrees = math.sqrt(one + two), (one + two) ** 2 / (one**2 / 2 + two**2 / 2)
    reach = error * float(t.ppf(0.975, degrees))
    assert found.p == pytest.approx(2 * float(t.sf(0.04 / error, degrees)))
    assert (found.value, found.low, found.high) == pytest.approx((0.04, 0.04 - reach, 0.04 + reach))


@pytest.mark.parametrize("other", [[0.9, 0.9], [0.8, 0.8, 0.8]])
def test_seeds_that_do_not_vary_are_not_tested(other: Sequence[float]) -> None:
    found = compare_seeds([0.9, 0.9], other, 0.95)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.value == pytest.approx(other[0] - 0.9)


def test_corrected_resampled_t_by_hand() -> None:
    """Five folds: the variance of the mean is (1/5 + 1/4) of a fold's, where the plain t test has 1/5."""
    differences = [0.01, 0.03, 0.02, 0.04, 0.0]
    found = compare_folds(differences, 0.25, 0.95)
    error = math.sqrt(0.45 * 0.00025)
    assert found.p == pytest.approx(2 * float(t.sf(0.02 / error, 4)))
    reach = 2.7764451051977987 * error
    assert (found.value, found.low, found.high) == pytest.approx((0.02, 0.02 - reach, 0.02 + reach))


def test_folds_that_agree_to_the_image_are_not_tested() -> None:
    assert compare_folds([0.25, 0.25], 1, 0.95).p is None
