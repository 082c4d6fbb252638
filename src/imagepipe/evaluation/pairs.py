"""Runs in pairs, `other` against `base`: image by image, on the same test set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.manifest import order_classes
from imagepipe.evaluation.intervals import Interval, count_units, is_grouped, number_groups
from imagepipe.evaluation.runs import SEED, ParamChange, Run, list_changes
from imagepipe.evaluation.significance import (
    Verdict,
    compare_signs,
    correct_holm,
    describe_difference,
    judge,
    measure_difference,
    resample_mean,
)


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
class Pair:
    """`other` against `base` on the same images.

    `difference` is accuracy of `other` less that of `base`. `lost` and `won` are the discordant images: right in `base`
    alone, in `other` alone. `groups` is the number of groups where images come in such, which then count as one each,
    else None. `exact` and `mid` are the p values of `test`, and `p` is mid-p after Holm's correction over all pairs, by
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

    @property
    def test(self) -> str:
        """The test's name (see `compare_signs`)."""
        return "McNemar" if self.groups is None else "Randomisation test over groups"


def compare_pairs(runs: Sequence[Run], confidence: float) -> list[Pair]:
    """The first run against each other one, image by image; raises InputError where test sets differ."""
    base, *others = runs
    for other in others:
        check_same_test(base, other)
    pairs = [compare_pair(base, other, confidence) for other in others]
    corrected = correct_holm([pair.mid for pair in pairs])
    return [
        replace(pair, p=p, verdict=judge(pair.difference.value, p, confidence))
        for pair, p in zip(pairs, corrected, strict=True)
    ]


def check_same_test(base: Run, other: Run) -> None:
    """Raise InputError, saying how, where two runs were not measured on the same images, labels and classes."""
    findings = [*compare_classes(base, other), *compare_keys(base, other)]
    if not findings:
        shared = base.test.index
        for column, what in (("pixel_sha256", "other pixels"), ("class", "another class")):
            differs = base.test[column].ne(other.test.loc[shared, column])
            if differs.any():
                findings.append(list_findings(f"the same key with {what}", shared[differs].tolist()))
        groups = base.test["group"], other.test.loc[shared, "group"]
        differs = groups[0].ne(groups[1])
        if all(map(any, groups)) and differs.any():
            findings.append(list_findings("the same key in another group", shared[differs].tolist()))
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
    old, new = base.test, other.test  # the same keys, each in their order
    right, better = base.right, other.right
    differences = better.astype(np.int64) - right
    groups = old["group"].tolist()
    units = number_groups(groups if any(groups) else new["group"].tolist())  # either may know of them
    grouped = is_grouped(units)
    if grouped:
        difference = resample_mean(differences, units, confidence, (-1.0, 1.0))
    else:
        difference = measure_difference(right, better, confidence)
    found = compare_signs(sum_units(differences, units))
    return Pair(
        base.name,
        other.name,
        difference,
        count_units(units) if grouped else None,
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
