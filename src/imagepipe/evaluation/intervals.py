"""How far a figure may be off by the luck of which images stand in test: intervals for proportions and for the rest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

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


def resample(units: NDArray[np.int64], resamples: int) -> Iterator[NDArray[np.float64]]:
    """How often each image (N,) is in each of the bootstrap's resamples, which draw as many units as there are.

    Efron, Bootstrap methods, Annals of Statistics 7, 1979; over groups it is the cluster bootstrap (Field and Welsh,
    JRSS B 69, 2007), since the images of a group share what makes them easy or hard.
    """
    count = int(units.max()) + 1
    places = np.arange(count)
    for number in range(resamples):
        drawn = (draw_uniform(places, derive_seed(STREAM, "resample", number), 1)[:, 0] * count).astype(np.int64)
        yield np.bincount(drawn, minlength=count).astype(np.float64)[units]


def take_percentiles(draws: NDArray[np.float64], confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high bounds of each column of `draws` (resamples, columns); NaN where a column holds nothing else.

    What is not defined in a resample, as the recall of a class that is not in it, does not count.
    """
    bounds = np.full((2, draws.shape[1]), np.nan)
    defined = np.isfinite(draws).any(axis=0)
    tail = 50 * (1 - confidence)
    if defined.any():
        bounds[:, defined] = np.nanpercentile(draws[:, defined], [tail, 100 - tail], axis=0)
    return bounds[0], bounds[1]
