"""Groups of runs, that differ in their seed or fold alone: is the difference between two more than their spread?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from imagepipe.core.errors import InputError, list_findings
from imagepipe.evaluation.pairs import check_same_test
from imagepipe.evaluation.runs import FOLD, SEED, ParamChange, Run, list_changes
from imagepipe.evaluation.significance import (
    MeanDifference,
    Verdict,
    compare_folds,
    compare_seeds,
    correct_holm,
    describe_difference,
    judge,
)

Kind = Literal["seeds", "folds"]

PRESENTATION = ("balance.", "evaluate.")  # sections of params that change no prediction


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that differ in their seed or fold alone; `deviation` is the sample standard deviation of their accuracy.

    Accuracies come in the order of the folds, those of seeds as the runs were named.
    """

    name: str
    accuracies: list[float]
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A group of runs against another; `p` is after Holm's correction, None where no run differs from the next."""

    base: str
    other: str
    difference: MeanDifference
    p: float | None
    verdict: Verdict
    params: list[ParamChange]


def compare_groups(
    groups: Sequence[Sequence[Run]], names: Sequence[str], confidence: float
) -> tuple[Kind, list[RunGroup], list[Spread]]:
    """The first group of runs against each other one, seed by seed or fold by fold; one alone is only summed up.

    Gives what the runs of a group differ in, what each group is, and what came of the comparisons.

    Raises InputError where the runs of a group differ in more than seed or fold, or test sets differ.
    """
    kinds: list[Kind] = [find_kind(group, name) for group, name in zip(groups, names, strict=True)]
    if len(set(kinds)) > 1:
        found = ", ".join(f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True))
        raise InputError(f"groups of one kind can be compared, seeds with seeds and folds with folds ({found}).")
    kind = kinds[0]
    if kind == "folds":
        groups = [sorted(group, key=lambda run: get_number(run, FOLD)) for group in groups]
        check_folds(groups, names)
    else:
        for run in (run for group in groups for run in group):
            check_same_test(groups[0][0], run)
    sums = [sum_up(group, name) for group, name in zip(groups, names, strict=True)]
    found = [
        compare_seeds(sums[0].accuracies, other.accuracies, confidence)
        if kind == "seeds"
        else compare_folds(subtract(groups[0], group), find_ratio(groups[0][0]), confidence)
        for group, other in zip(groups[1:], sums[1:], strict=True)
    ]
    corrected = iter(correct_holm([difference.p for difference in found if difference.p is not None]))
    spreads: list[Spread] = []
    for name, group, difference in zip(names[1:], groups[1:], found, strict=True):
        p = None if difference.p is None else next(corrected)
        changes = [change for change in list_changes(groups[0][0], group[0]) if change.name not in (SEED, FOLD)]
        spreads.append(Spread(names[0], name, difference, p, judge(difference.value, p, confidence), changes))
    return kind, sums, spreads


def find_kind(group: Sequence[Run], name: str) -> Kind:
    """What the runs of a group differ in; raises InputError where that is not the seed, or the fold, alone."""
    if len(group) == 1:
        raise InputError(f"{name}: one run, beside a group of several; give two seeds or folds of it, or more.")
    unknown = [run.name for run in group if run.params is None]
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: without params.yaml nobody can tell whether runs differ in their seed alone; put "
            "it beside predictions.csv."
        )
    names = {change.name for run in group[1:] for change in list_changes(group[0], run)}
    changed = sorted(name for name in names if not name.startswith(PRESENTATION))
    kinds: dict[str, Kind] = {SEED: "seeds", FOLD: "folds"}
    if len(changed) != 1 or changed[0] not in kinds:
        raise InputError(
            list_findings(
                f"{name}: the runs of a group differ in {SEED} alone, or in {FOLD} alone, but these differ in",
                changed or ["nothing"],
            )
        )
    values = [get_number(run, changed[0]) for run in group]
    if len(set(values)) < len(values):
        raise InputError(
            f"{name}: two runs have the same {changed[0]} ({', '.join(f'{value:g}' for value in values)})."
        )
    if changed == [FOLD] and (group[0].params or {}).get("split.strategy") != "kfold":
        raise InputError(
            f"{name}: the runs differ in {FOLD}, but split.strategy is not `kfold`: they are the same split."
        )
    return kinds[changed[0]]


def get_number(run: Run, name: str) -> float:
    """A number of the run's params; raises InputError where it has none of that name."""
    value: Any = (run.params or {}).get(name)
    if not isinstance(value, int | float):
        raise InputError(f"{run.name}: {name} in its params.yaml is {value}; expected a number.")
    return value


def check_folds(groups: Sequence[Sequence[Run]], names: Sequence[str]) -> None:
    """Raise InputError where groups have other folds than the first, or other images in a fold."""
    for group, name in zip(groups[1:], names[1:], strict=True):
        folds = [[f"{get_number(run, FOLD):g}" for run in one] for one in (groups[0], group)]
        if folds[0] != folds[1]:
            raise InputError(
                f"{names[0]} has the folds {', '.join(folds[0])}, and {name} has {', '.join(folds[1])}; expected the "
                "same."
            )
        for base, other in zip(groups[0], group, strict=True):
            check_same_test(base, other)


def sum_up(group: Sequence[Run], name: str) -> RunGroup:
    """Mean and sample standard deviation of the accuracy."""
    accuracies = [float(run.right.mean()) for run in group]
    return RunGroup(name, accuracies, float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)))


def subtract(base: Sequence[Run], other: Sequence[Run]) -> list[float]:
    """Accuracy of `other` less that of `base`, fold by fold; from whole numbers, so that equal ones are equal."""
    return [int(new.right.sum() - old.right.sum()) / len(new.test) for old, new in zip(base, other, strict=True)]


def find_ratio(run: Run) -> float:
    """Images of test over images of train, as split.folds and split.fractions have them.

    Raises InputError where split.limit_per_split leaves fewer, nobody knows of which.
    """
    limit = (run.params or {}).get("split.limit_per_split")
    if limit:
        raise InputError(
            f"{run.name}: split.limit_per_split is {limit}; folds are compared by the shares that split.fractions "
            "gives train and test, which it changes. Set it to 0 and run the folds again."
        )
    train, val = (get_number(run, f"split.fractions.{split}") for split in ("train", "val"))
    return (train + val) / (train * (get_number(run, "split.folds") - 1))


def describe_spread(
    spread: Spread, kind: Kind | None, groups: Sequence[RunGroup], confidence: float, comparisons: int
) -> str:
    """The verdict on two groups of runs in one sentence, and what it rests on in another."""
    sizes = {group.name: len(group.accuracies) for group in groups}
    counts = [sizes[name] for name in (spread.base, spread.other)]
    found = spread.difference
    if spread.p is None or found.low is None or found.high is None:
        varies = "no run of either group differs from the next" if kind == "seeds" else "all folds agree"
        return (
            f"no evidence of a difference between {spread.base} and {spread.other}: {100 * found.value:+.2f} points, "
            f"and {varies}, so that there is no spread to measure it by."
        )
    tested = (
        f"Welch's t test on {counts[1]} and {counts[0]} seeds; it says nothing of other test images."
        if kind == "seeds"
        else f"Corrected resampled t test on {counts[0]} folds."
    )
    names, bounds = (spread.base, spread.other), (found.low, found.high)
    sentence = describe_difference(names, found.value, bounds, spread.p, spread.verdict, confidence, comparisons)
    return f"{sentence} {tested}"
