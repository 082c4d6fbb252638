"""Is one run better than another? Paired, image by image, on the same test set; or seed by seed, fold by fold.

All of it follows from the predictions tables; no model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.manifest import order_classes
from imagepipe.evaluation.intervals import Interval, measure_proportion, number_groups
from imagepipe.evaluation.runs import Run, read_run
from imagepipe.evaluation.significance import (
    MeanDifference,
    compare_folds,
    compare_seeds,
    compare_signs,
    correct_holm,
    measure_difference,
    resample_difference,
)

Verdict = Literal["better", "worse", "no evidence"]
Kind = Literal["seeds", "folds"]
SEED, FOLD = "train.seed", "split.fold"
ABSENT = "(absent)"  # in place of a param that one of two runs lacks


@dataclass(frozen=True, slots=True)
class RunAccuracy:
    """One run by itself; the interval is Wilson's."""

    run: str
    images: int
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class ClassChange:
    """Recall of one class in both runs, how many of its images were lost and won, and mid-p.

    `corrected` is p after Holm's correction over all classes that have test images.
    """

    name: str
    images: int
    base: float
    other: float
    lost: int
    won: int
    p: float
    corrected: float


@dataclass(frozen=True, slots=True)
class ChangedImage:
    """An image that one run has right and the other has not; `loss_change` is in nats, above 0 where it got worse."""

    key: str
    pixel_sha256: str
    true: str
    base: str
    other: str
    won: bool
    loss_change: float


@dataclass(frozen=True, slots=True)
class ParamChange:
    """A value of params.yaml that differs."""

    name: str
    base: str
    other: str


@dataclass(frozen=True, slots=True)
class Pair:
    """`other` against `base` on the same images.

    `difference` is accuracy of `other` less that of `base`. `lost` and `won` are the discordant images: right in `base`
    alone, in `other` alone. `groups` is the number of groups where images come in such, which then count as one each,
    else None. `exact` and `mid` are McNemar's p values, and `p` is mid-p after Holm's correction over all pairs, by
    which the verdict goes. `changed` are the images that changed sides, those whose loss changed most first.
    """

    base: str
    other: str
    difference: Interval
    groups: int | None
    both_right: int
    lost: int
    won: int
    both_wrong: int
    exact: float
    mid: float
    p: float
    verdict: Verdict
    classes: list[ClassChange]
    changed: list[ChangedImage]
    params: list[ParamChange]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that differ in their seed or fold alone; `deviation` is the sample standard deviation of their accuracy."""

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
        return [
            *(describe_pair(pair, self.confidence, len(self.pairs)) for pair in self.pairs),
            *(describe_spread(spread, self) for spread in self.spreads),
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
    if all(len(group) == 1 for group in groups):
        return compare_runs([group[0] for group in groups], confidence)
    return compare_groups(groups, [",".join(run.name for run in group) for group in groups], confidence)


def split_names(name: str) -> list[str]:
    """The runs of one argument; raises InputError where one between commas is blank."""
    names = [part.strip() for part in name.split(",")]
    if not all(names):
        raise InputError(f"{name!r}: a name is blank; expected a run, or several with commas between them (a,b,c).")
    return names


# Runs


def compare_runs(runs: Sequence[Run], confidence: float) -> Comparison:
    """The first run against each other one, image by image; raises InputError where test sets differ."""
    base, *others = runs
    for other in others:
        check_same_test(base, other)
    pairs = [compare_pair(base, other, confidence) for other in others]
    corrected = correct_holm([pair.mid for pair in pairs])
    pairs = [
        replace(pair, p=p, verdict=judge(pair.difference.value, p, confidence))
        for pair, p in zip(pairs, corrected, strict=True)
    ]
    return Comparison(confidence, [measure_run(run, confidence) for run in runs], pairs, None, [], [])


def measure_run(run: Run, confidence: float) -> RunAccuracy:
    """The run's own accuracy on test."""
    right = int((run.test["class"] == run.test["predicted"]).sum())
    return RunAccuracy(run.name, len(run.test), measure_proportion(right, len(run.test), confidence))


def judge(difference: float, p: float | None, confidence: float) -> Verdict:
    """The verdict on a difference; without p there is no evidence."""
    if p is None or p >= 1 - confidence:
        return "no evidence"
    return "better" if difference > 0 else "worse"


def check_same_test(base: Run, other: Run) -> None:
    """Raise InputError, saying how, where two runs were not measured on the same images, labels and classes."""
    findings = [*compare_classes(base, other), *compare_keys(base, other)]
    if not findings:
        shared = base.test.index
        for column, what in (("pixel_sha256", "other pixels"), ("class", "another class")):
            differs = base.test[column].ne(other.test.loc[shared, column])
            if differs.any():
                findings.append(list_findings(f"the same key with {what}", shared[differs].tolist()))
    if findings:
        changed = [
            f"{change.name} is {change.base} and {change.other}"
            for change in list_changes(base, other)
            if change.name.startswith(("fetch.", "split."))
        ]
        if changed:
            findings.append(list_findings("params of the data that differ", changed))
        raise InputError(
            "\n".join(
                [
                    f"{base.name} and {other.name} have different test sets: their accuracies cannot be compared.",
                    *findings,
                    "Compare runs of the same images, classes and split.",
                ]
            )
        )


def compare_classes(base: Run, other: Run) -> list[str]:
    """What differs between the class lists, by name; their order does not matter."""
    return [
        list_findings(f"classes only in {one.name}", list(map(repr, order_classes(only))))
        for one, two in ((base, other), (other, base))
        if (only := set(one.classes) - set(two.classes))
    ]


def compare_keys(base: Run, other: Run) -> list[str]:
    """Which images only one of the two has."""
    return [
        list_findings(f"test images only in {one.name}", only.tolist())
        for one, two in ((base, other), (other, base))
        if len(only := one.test.index.difference(two.test.index))
    ]


def compare_pair(base: Run, other: Run, confidence: float) -> Pair:
    """One run against another on the same test set; p is not corrected, and no verdict given yet."""
    old, new = base.test, other.test.loc[base.test.index]
    right = np.asarray(old["class"] == old["predicted"], np.bool_)
    better = np.asarray(new["class"] == new["predicted"], np.bool_)
    differences = better.astype(np.int64) - right
    units = number_groups(old["group"].tolist())
    count = int(units.max()) + 1
    grouped = count < len(units)
    if grouped:
        difference = resample_difference(differences, units, confidence)
    else:
        difference = measure_difference(right, better, confidence)
    found = compare_signs(sum_units(differences, units))
    return Pair(
        base.name,
        other.name,
        difference,
        count if grouped else None,
        both_right=int((right & better).sum()),
        lost=int((differences < 0).sum()),
        won=int((differences > 0).sum()),
        both_wrong=int((~right & ~better).sum()),
        exact=found.exact,
        mid=found.mid,
        p=found.mid,
        verdict="no evidence",
        classes=compare_recalls(old["class"], right, better, units),
        changed=list_changed(old, new, differences),
        params=list_changes(base, other),
        notes=list_notes(base, other, bool((old["predicted"] == new["predicted"]).all())),
    )


def sum_units(differences: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum over the images of each unit."""
    return np.rint(np.bincount(units, weights=differences)).astype(np.int64)


def compare_recalls(
    classes: "pd.Series[str]", right: NDArray[np.bool_], better: NDArray[np.bool_], units: NDArray[np.int64]
) -> list[ClassChange]:
    """The change of each class that has test images, the least p first, then in class order."""
    changes: list[ClassChange] = []
    for name in order_classes(classes):
        own = np.asarray(classes == name, np.bool_)
        differences = better[own].astype(np.int64) - right[own]
        p = compare_signs(sum_units(differences, units[own])).mid
        lost, won = int((differences < 0).sum()), int((differences > 0).sum())
        recalls = float(right[own].mean()), float(better[own].mean())
        changes.append(ClassChange(name, int(own.sum()), *recalls, lost, won, p, 1.0))
    corrected = correct_holm([change.p for change in changes])
    changes = [replace(change, corrected=p) for change, p in zip(changes, corrected, strict=True)]
    return sorted(changes, key=lambda change: change.p)


def list_changed(old: pd.DataFrame, new: pd.DataFrame, differences: NDArray[np.int64]) -> list[ChangedImage]:
    """The images that changed sides, those whose loss changed most first; equal ones by key."""
    places = np.flatnonzero(differences)
    old, new = old.iloc[places], new.iloc[places]
    rows = zip(
        old["key"].tolist(),
        old["pixel_sha256"].tolist(),
        old["class"].tolist(),
        old["predicted"].tolist(),
        new["predicted"].tolist(),
        (differences[places] > 0).tolist(),
        (new["loss"] - old["loss"]).round(6).tolist(),
        strict=True,
    )
    return sorted((ChangedImage(*row) for row in rows), key=lambda image: (-abs(image.loss_change), image.key))


def list_changes(base: Run, other: Run) -> list[ParamChange]:
    """The params that differ, in the order of the first run's file; none where one run has no params.yaml."""
    if base.params is None or other.params is None:
        return []
    names = dict.fromkeys([*base.params, *other.params])
    pairs = [(name, base.params.get(name, ABSENT), other.params.get(name, ABSENT)) for name in names]
    return [
        ParamChange(name, str(old), str(new)) for name, old, new in pairs if old != new or type(old) is not type(new)
    ]


def list_notes(base: Run, other: Run, same: bool) -> list[str]:
    """What a reader of the verdict should know; `same` says that all predictions are."""
    notes: list[str] = []
    if same:
        notes.append("The predictions are the same on every image.")
    if base.params is None or other.params is None:
        return notes
    changed = [change.name for change in list_changes(base, other)]
    if not changed:
        notes.append("The params of both runs are the same.")
    elif changed == [SEED]:
        notes.append("The runs differ in their seed alone: what lies between them is the spread between seeds.")
    else:
        notes.append(
            "This judges two models. Whether one way of training is better than the other is for several seeds of each "
            "to say (imagepipe compare A1,A2,A3 B1,B2,B3)."
        )
    return notes


# Groups of runs


def compare_groups(groups: Sequence[Sequence[Run]], names: Sequence[str], confidence: float) -> Comparison:
    """The first group of runs against each other one, seed by seed or fold by fold; one alone is only summed up.

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
        else compare_folds(subtract(sums[0], other), find_ratio(groups[0][0]), confidence)
        for other in sums[1:]
    ]
    corrected = iter(correct_holm([difference.p for difference in found if difference.p is not None]))
    spreads: list[Spread] = []
    for name, group, difference in zip(names[1:], groups[1:], found, strict=True):
        p = None if difference.p is None else next(corrected)
        changes = [change for change in list_changes(groups[0][0], group[0]) if change.name not in (SEED, FOLD)]
        spreads.append(Spread(names[0], name, difference, p, judge(difference.value, p, confidence), changes))
    runs = [measure_run(run, confidence) for group in groups for run in group]
    return Comparison(confidence, runs, [], kind, sums, spreads)


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
    changed = sorted({change.name for run in group[1:] for change in list_changes(group[0], run)})
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
    accuracies = [float((run.test["class"] == run.test["predicted"]).mean()) for run in group]
    return RunGroup(name, accuracies, float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)))


def subtract(base: RunGroup, other: RunGroup) -> list[float]:
    """Accuracy of `other` less that of `base`, fold by fold."""
    return [new - old for old, new in zip(base.accuracies, other.accuracies, strict=True)]


def find_ratio(run: Run) -> float:
    """Images of test over images of train, as split.folds and split.fractions have them."""
    train, val = (get_number(run, f"split.fractions.{split}") for split in ("train", "val"))
    return (train + val) / (train * (get_number(run, "split.folds") - 1))


# Sentences


def describe_pair(pair: Pair, confidence: float, comparisons: int) -> str:
    """The verdict on a pair in one sentence, and one more where groups count as one."""
    bounds = pair.difference.low, pair.difference.high
    sentence = describe_difference(
        (pair.base, pair.other), pair.difference.value, bounds, pair.p, pair.verdict, confidence, comparisons
    )
    if pair.groups is None:
        return sentence
    images = pair.both_right + pair.both_wrong + pair.lost + pair.won
    return (
        f"{sentence} The {images:,} images come in {pair.groups:,} groups, each of which counts as one: the interval "
        "is a bootstrap over groups."
    )


def describe_spread(spread: Spread, comparison: Comparison) -> str:
    """The verdict on two groups of runs in one sentence, and what it rests on in another."""
    groups = {group.name: group for group in comparison.groups}
    counts = [len(groups[name].accuracies) for name in (spread.base, spread.other)]
    found = spread.difference
    if spread.p is None or found.low is None or found.high is None:
        varies = "no run of either group differs from the next" if comparison.kind == "seeds" else "all folds agree"
        return (
            f"no evidence of a difference between {spread.base} and {spread.other}: {100 * found.value:+.2f} points, "
            f"and {varies}, so that there is no spread to measure it by."
        )
    tested = (
        f"Welch's t test on {counts[1]} and {counts[0]} seeds; it says nothing of other test images."
        if comparison.kind == "seeds"
        else f"Corrected resampled t test on {counts[0]} folds."
    )
    names, bounds = (spread.base, spread.other), (found.low, found.high)
    sentence = describe_difference(
        names, found.value, bounds, spread.p, spread.verdict, comparison.confidence, len(comparison.spreads)
    )
    return f"{sentence} {tested}"


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
