"""Whether a difference is more than chance: paired images, groups of them, seeds, folds, several questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, t

from imagepipe.evaluation.intervals import Interval, bound_groups, measure_proportion, resample, take_percentiles

Verdict = Literal["better", "worse", "no evidence"]

RESAMPLES = 2000  # of the bootstrap over groups


@dataclass(frozen=True, slots=True)
class PValues:
    """Two-sided p values of one test: the exact one, which is cautious, and mid-p, which is right on average."""

    exact: float
    mid: float


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """A difference of mean accuracies with its interval; without bounds and p where the runs do not vary at all."""

    value: float
    low: float | None
    high: float | None
    p: float | None


def compare_signs(differences: NDArray[np.int64]) -> PValues:
    """How likely a sum as far from 0 as that of `differences` (N,) is, if each of them had its sign by a fair coin.

    With differences of -1, 0 and 1 (one image: lost, the same, won) this is McNemar's test, exact and as mid-p, which
    keeps its level and loses no power where few images differ (Fagerland, Lydersen and Laake, The McNemar test for
    binary matched-pairs data: mid-p and asymptotic are better than exact conditional, BMC Medical Research Methodology
    13, 2013). With sums over groups of images it is Fisher's randomisation test, in which a group counts as one. The
    distribution is computed, not drawn. Both p are 1 where nothing differs.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return PValues(1.0, 1.0)
    chances = np.ones(1)  # of the sums from -reach to reach
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
    sums = np.abs(np.arange(len(chances)) - len(chances) // 2)
    found = abs(int(differences.sum()))
    beyond, equal = float(chances[sums > found].sum()), float(chances[sums == found].sum())
    return PValues(min(1.0, beyond + equal), min(1.0, beyond + equal / 2))


def measure_difference(right: NDArray[np.bool_], other: NDArray[np.bool_], confidence: float) -> Interval:
    """Accuracy of `other` less that of `right`, (N,) each of the same images, with Newcombe's square-and-add interval.

    Wilson's intervals of both, joined with the correlation of the pairs, which is corrected for continuity (R. G.
    Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17, 1998, method 10).
    """
    count = len(right)
    both, neither = int((right & other).sum()), int((~right & ~other).sum())
    won, lost = int((other & ~right).sum()), int((right & ~other).sum())
    new = measure_proportion(both + won, count, confidence)
    old = measure_proportion(both + lost, count, confidence)
    margins = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    product = both * neither - won * lost
    shared = max(product - count / 2, 0) if product > 0 else product
    correlation = shared / math.sqrt(margins) if margins else 0.0

    def add(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * two + two * two))

    value = (won - lost) / count
    below = add(new.value - new.low, old.high - old.value)
    above = add(new.high - new.value, old.value - old.low)
    return Interval(value, value - below, value + above)


def resample_mean(
    values: NDArray[np.int64], units: NDArray[np.int64], confidence: float, most: tuple[float, float]
) -> Interval:
    """The mean of `values` (N,), with the percentile interval of the cluster bootstrap over groups, `units` (N,).

    The draws are the same each time. Where they all agree, the interval is that of `bound_groups`, within `most`.
    """
    value = float(values.mean())
    draws = np.array([values @ weights / weights.sum() for weights in resample(units, RESAMPLES)])
    low, high = (float(bound[0]) for bound in take_percentiles(draws[:, None], units, confidence))
    return bound_groups(value, units, confidence, most) if math.isnan(low) else Interval(value, low, high)


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """p values, in their order, such that one below α among them is wrong with a chance of α at most.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def compare_seeds(base: Sequence[float], other: Sequence[float], confidence: float) -> MeanDifference:
    """Mean accuracy of `other` less that of `base`, two or more runs each, by Welch's t test.

    B. L. Welch, The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 34, 1947.
    """
    value = float(np.mean(other) - np.mean(base))
    if np.ptp(base) == 0 and np.ptp(other) == 0:
        return MeanDifference(value, None, None, None)
    parts = [float(np.var(group, ddof=1)) / len(group) for group in (base, other)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, (base, other), strict=True)
    )
    return divide_by_error(value, math.sqrt(sum(parts)), freedom, confidence)


def compare_folds(differences: Sequence[float], ratio: float, confidence: float) -> MeanDifference:
    """The mean of a difference of accuracies over two or more folds, by the corrected resampled t test.

    `ratio` is images of test over images of train in a fold: folds share train images, so that they vary less than new
    data would, and the variance of the mean is taken to be (1/k + ratio) times that of a fold (Nadeau and Bengio,
    Inference for the generalization error, Machine Learning 52, 2003).
    """
    count = len(differences)
    value = float(np.mean(differences))
    if np.ptp(differences) == 0:
        return MeanDifference(value, None, None, None)
    error = math.sqrt((1 / count + ratio) * float(np.var(differences, ddof=1)))
    return divide_by_error(value, error, count - 1, confidence)


def divide_by_error(value: float, error: float, freedom: float, confidence: float) -> MeanDifference:
    """The difference with interval and two-sided p of Student's t, from its standard error and degrees of freedom."""
    reach = error * float(t.ppf((1 + confidence) / 2, freedom))
    return MeanDifference(value, value - reach, value + reach, 2 * float(t.sf(abs(value) / error, freedom)))


def judge(difference: float, p: float | None, confidence: float) -> Verdict:
    """The verdict on a difference; without p there is no evidence."""
    if p is None or p >= 1 - confidence:
        return "no evidence"
    return "better" if difference > 0 else "worse"


def describe_difference(
    names: tuple[str, str],
    value: float,
    bounds: tuple[float, float],
    p: float,
    verdict: Verdict,
    confidence: float,
    comparisons: int,
) -> str:
    """`B is better than A by 1.20 points (95 % interval 0.40 to 2.00), p = 0.004.`; accuracies are in [0, 1]."""
    base, other = names
    chance = f"p {'< 0.0001' if p < 0.0001 else f'= {p:.3g}'}"
    if comparisons > 1:
        chance += f" (corrected for {comparisons} comparisons)"
    if verdict == "no evidence":
        low, high = bounds
        reach = f"{100 * confidence:g} % interval {100 * low:+.2f} to {100 * high:+.2f}"
        return f"no evidence of a difference between {base} and {other}: {100 * value:+.2f} points ({reach}), {chance}."
    low, high = sorted(bounds if verdict == "better" else (-bounds[0], -bounds[1]))
    reach = f"{100 * confidence:g} % interval {100 * low:.2f} to {100 * high:.2f}"
    return f"{other} is {verdict} than {base} by {100 * abs(value):.2f} points ({reach}), {chance}."
