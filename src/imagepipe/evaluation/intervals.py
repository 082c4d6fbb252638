"""How far a figure may be off by the luck of which images stand in test: intervals for proportions and for the rest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

from imagepipe.core.seeds import derive_seed, draw_uniform

STREAM = derive_seed(0, "bootstrap")  # the same draws for the same number of images: nothing to choose


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the bounds of its interval."""

    value: float
    low: float
    high: float


def measure_proportion(right: int, count: int, confidence: float) -> Interval:
    """A proportion in [0, 1] with Wilson's score interval (E. B. Wilson, JASA 22, 1927); `count` is 1 or more."""
    bounds = binomtest(right, count).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(right / count, float(bounds.low), float(bounds.high))


def number_groups(groups: Sequence[str]) -> NDArray[np.int64]:
    """Which unit each image belongs to, (N,) from 0: images of one group are one unit, each other image is its own."""
    names = pd.Series(list(groups), dtype=object)
    alone = names == ""
    names[alone] = np.flatnonzero(alone)
    return np.asarray(pd.factorize(names)[0], np.int64)


def count_units(units: NDArray[np.int64]) -> int:
    """How many units there are; fewer than images where images come in groups."""
    return int(units.max()) + 1


def is_grouped(units: NDArray[np.int64]) -> bool:
    """Whether any images are drawn together."""
    return count_units(units) < len(units)


def bound_groups(
    value: float, units: NDArray[np.int64], confidence: float, most: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """A mean over images with an interval that has width, where all resamples over groups, `units` (N,), agree.

    That no group is seen to differ leaves room for as many as the upper bound of Wilson's interval for none of so many
    groups. One group alone says nothing of others: the interval is all that there is, `most`.
    """
    count = count_units(units)
    reach = measure_proportion(0, count, confidence).high if count > 1 else most[1] - most[0]
    return Interval(value, max(most[0], value - reach), min(most[1], value + reach))


def resample(units: NDArray[np.int64], resamples: int) -> Iterator[NDArray[np.float64]]:
    """How often each image (N,) is in each of the bootstrap's resamples, which draw as many units as there are.

    Efron, Bootstrap methods, Annals of Statistics 7, 1979; over groups it is the cluster bootstrap (Field and Welsh,
    JRSS B 69, 2007), since the images of a group share what makes them easy or hard.
    """
    count = count_units(units)
    places = np.arange(count)
    for number in range(resamples):
        drawn = (draw_uniform(places, derive_seed(STREAM, "resample", number), 1)[:, 0] * count).astype(np.int64)
        yield np.bincount(drawn, minlength=count).astype(np.float64)[units]


def take_percentiles(
    draws: NDArray[np.float64], units: NDArray[np.int64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high bounds of each column of `draws` (resamples, columns), which `resample` of `units` has given.

    What is not defined in a resample, as the recall of a class that is not in it, does not count. NaN where a column
    holds nothing else, where there is but one unit, which says nothing of others, and where all resamples agree, as on
    the F1 of a class without a mistake: that they do does not make it certain.
    """
    bounds = np.full((2, draws.shape[1]), np.nan)
    varied = np.nanmin(draws, axis=0, initial=np.inf) < np.nanmax(draws, axis=0, initial=-np.inf)
    if count_units(units) > 1 and varied.any():
        tail = 100 * find_tail(units, confidence)
        bounds[:, varied] = np.nanpercentile(draws[:, varied], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]


def find_tail(units: NDArray[np.int64], confidence: float) -> float:
    """The share of resamples that lie beyond each bound of an interval; there are two units or more.

    Over groups it is that of the expanded percentile interval, which reaches further the fewer there are, since
    resamples of few vary too little (T. C. Hesterberg, What teachers should know about the bootstrap, The American
    Statistician 69, 2015).
    """
    if not is_grouped(units):
        return (1 - confidence) / 2
    count = count_units(units)
    return float(norm.sf(math.sqrt(count / (count - 1)) * t.ppf((1 + confidence) / 2, count - 1)))
