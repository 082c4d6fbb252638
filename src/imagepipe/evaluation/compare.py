"""Is one run better than another? In pairs, image by image; or in groups, seed by seed or fold by fold.

All of it follows from the predictions tables; no model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagepipe.core.errors import InputError
from imagepipe.evaluation.groups import Kind, RunGroup, Spread, compare_groups, describe_spread
from imagepipe.evaluation.intervals import Interval, is_grouped, measure_proportion, number_groups
from imagepipe.evaluation.pairs import Pair, compare_pairs, describe_pair
from imagepipe.evaluation.runs import Run, read_run
from imagepipe.evaluation.significance import resample_mean


@dataclass(frozen=True, slots=True)
class RunAccuracy:
    """One run by itself; the interval is Wilson's, or the bootstrap's over groups where images come in such."""

    run: str
    images: int
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first of several runs against each other one, or the first of several groups of runs."""

    confidence: float
    runs: list[RunAccuracy]
    pairs: list[Pair]
    kind: Kind | None
    groups: list[RunGroup]
    spreads: list[Spread]

    @property
    def is_worse(self) -> bool:
        """Whether any is significantly worse than the first."""
        return any(found.verdict == "worse" for found in [*self.pairs, *self.spreads])

    def list_verdicts(self) -> list[str]:
        """One plain sentence for each comparison."""
        corrected = sum(spread.p is not None for spread in self.spreads)
        return [
            *(describe_pair(pair, self.confidence, len(self.pairs)) for pair in self.pairs),
            *(describe_spread(spread, self.kind, self.groups, self.confidence, corrected) for spread in self.spreads),
        ]


def compare(names: Sequence[str], confidence: float) -> Comparison:
    """The first of some runs against each other one; a name of several, `a,b,c`, stands for a group of runs.

    One run alone is compared with the workspace. Significant is what has a p below 1 - `confidence`.

    Raises InputError where runs cannot be had, or cannot be compared.
    """
    members = [split_names(name) for name in names]
    if len(members) == 1 and len(members[0]) == 1:
        members.append(["."])
    groups = [[read_run(name) for name in group] for group in members]
    runs = [run for group in groups for run in group]
    measured = [measure_run(run, confidence) for run in runs]
    if len(runs) == len(groups):
        return Comparison(confidence, measured, compare_pairs(runs, confidence), None, [], [])
    shown = [",".join(run.name for run in group) for group in groups]
    return Comparison(confidence, measured, [], *compare_groups(groups, shown, confidence))


def split_names(name: str) -> list[str]:
    """The runs of one argument; raises InputError where one between commas is blank."""
    names = [part.strip() for part in name.split(",")]
    if not all(names):
        raise InputError(f"{name!r}: a name is blank; expected a run, or several with commas between them (a,b,c).")
    return names


def measure_run(run: Run, confidence: float) -> RunAccuracy:
    """The run's own accuracy on test."""
    units = number_groups(run.test["group"].tolist())
    if is_grouped(units):
        accuracy = resample_mean(run.right.astype(np.int64), units, confidence, (0.0, 1.0))
    else:
        accuracy = measure_proportion(int(run.right.sum()), len(run.test), confidence)
    return RunAccuracy(run.name, len(run.test), accuracy)
