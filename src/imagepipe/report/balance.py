"""How evenly the classes are spread, how far the splits drift apart, and what to do about it: said, never done."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from imagepipe.core.class_counts import count_effective, find_majority, weigh_balanced, weigh_effective
from imagepipe.core.config import Params
from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.files import replace_directory, write_csv, write_json, write_text
from imagepipe.core.manifest import SPLITS, DatasetInfo, read_dataset_info, read_split
from imagepipe.report.plots import draw_balance, shorten

Counts = dict[str, dict[str, int]]  # split → class → images

CHANCE = 0.001  # a drift that equal proportions would bring less often is not put down to chance
LEAST_EXPECTED = 5  # images that a cell of the chi-square table should expect (Cochran, Biometrics 10, 1954)
# Rules of thumb of the recommendation: from this ratio on, weights in the loss get so large that single images rule
# whole batches, and images are better drawn more often; with fewer images, a class has too little to learn from.
SAMPLER_RATIO = 10
FEW_IMAGES = 20


class BalanceParams(Params):
    """`balance:` in params.yaml; each key is explained there."""

    on_violation: Literal["warn", "fail"]
    max_ratio: Annotated[float, Field(ge=1)]
    max_drift: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Balance:
    """One split's spread.

    `imbalance_ratio` is the largest class over the smallest, None where a class is empty. `majority_baseline` is the
    accuracy on this split of always answering train's most frequent class. `evenness` is Shannon's entropy over its
    largest possible value (Pielou, J. Theor. Biol. 13, 1966): 1 is even, 0 is one class alone, None where only one
    class exists. `missing` names the classes without images.
    """

    images: int
    imbalance_ratio: float | None
    majority_baseline: float
    evenness: float | None
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one split's proportions are from train's.

    `total_variation` is the share of the split, 0 to 1, that would have to change class to have train's proportions.
    `chi2`, `dof` and `p` are of the chi-square test of homogeneity (`measure_drift`); `low_expected` counts the cells
    of its table that expect fewer than 5 images: with any of them, p is rough.
    """

    total_variation: float
    chi2: float
    dof: int
    p: float
    low_expected: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the report comes to: a sentence for each violation, and what train could do about train's own spread."""

    violations: list[str]
    recommendation: str


def report_balance(manifests_dir: Path, reports_dir: Path, params: BalanceParams) -> Verdict:
    """Write `balance.json`, `splits.csv`, `classes.csv`, `counts.csv`, `recommendation.txt` and `balance.png`.

    Raises InputError, and leaves what stood in `reports_dir`, where there are violations and `on_violation` is `fail`.
    """
    info = read_dataset_info(manifests_dir / "dataset.json")
    counts = count_classes(manifests_dir, info)
    filled = {split: classes for split, classes in counts.items() if sum(classes.values())}
    majority = find_majority(counts["train"])
    balances = {split: measure_balance(classes, majority) for split, classes in filled.items()}
    drifts = {split: measure_drift(filled[split], counts["train"]) for split in filled if split != "train"}
    violations = list_violations(filled, drifts, params)
    if violations and params.on_violation == "fail":
        raise InputError(
            list_findings(
                f"{manifests_dir}: unbalanced, and balance.on_violation is fail",
                violations,
                "Mend the split, raise the limits under `balance:` in params.yaml, or set balance.on_violation: warn.",
            )
        )
    recommendation = recommend_measure(counts["train"], params.max_ratio)
    with replace_directory(reports_dir) as staging:
        write_json(staging / "balance.json", summarise(balances, drifts, len(violations)))
        write_csv(staging / "splits.csv", tabulate_splits(balances, drifts))
        write_csv(staging / "classes.csv", tabulate_classes(counts["train"]))
        write_csv(staging / "counts.csv", tabulate_counts(counts))
        write_text(staging / "recommendation.txt", recommendation + "\n")
        draw_balance(counts, staging / "balance.png")
    return Verdict(violations, recommendation)


def count_classes(manifests_dir: Path, info: DatasetInfo) -> Counts:
    """Images per split and class, counted in the manifests themselves; classes without images count 0."""
    counts: Counts = {}
    for split in SPLITS:
        found = read_split(manifests_dir, split, info)["class"].value_counts()
        counts[split] = {name: int(found.get(name, 0)) for name in info.classes}
    if not sum(counts["train"].values()):
        raise InputError(f"{manifests_dir}/train.csv: the train split is empty; raise split.fractions.train.")
    return counts


def find_minority(classes: dict[str, int]) -> str:
    """The least frequent of the classes that have images; the first in class order where several are."""
    return min((name for name, count in classes.items() if count), key=lambda name: classes[name])


def measure_balance(classes: dict[str, int], majority: str) -> Balance:
    """The spread of one split that is not empty."""
    total = sum(classes.values())
    smallest = min(classes.values())
    shares = [count / total for count in classes.values() if count]
    entropy = -sum(share * math.log(share) for share in shares)
    return Balance(
        images=total,
        imbalance_ratio=max(classes.values()) / smallest if smallest else None,
        majority_baseline=classes[majority] / total,
        evenness=entropy / math.log(len(classes)) if len(classes) > 1 else None,
        missing=[name for name, count in classes.items() if not count],
    )


def measure_drift(classes: dict[str, int], train: dict[str, int]) -> Drift:
    """How far `classes` are from `train`, which has the same names; neither may be empty.

    Total variation is half the sum of the absolute differences between the shares. The chi-square test (Pearson, no
    continuity correction) is one of homogeneity, on the table with train as one row and the split as the other: both
    are samples of the same unknown proportions. Goodness of fit would take train's shares for the truth, blame the
    split for train's own chance, and break on a class that train lacks. Classes that are empty in both rows are left
    out; one class alone cannot drift, and has chi-square 0 with 0 degrees of freedom and p 1.
    """
    from scipy.stats import chi2_contingency  # here, for it takes a second that the command line need not wait for

    table = np.array([list(train.values()), [classes[name] for name in train]], np.int64)
    table = table[:, table.any(axis=0)]
    shares = table / table.sum(axis=1, keepdims=True)
    test = chi2_contingency(table, correction=False)
    return Drift(
        total_variation=round(float(np.abs(shares[1] - shares[0]).sum() / 2), 6),  # so that 0.3 is not above 0.3
        chi2=float(test.statistic),
        dof=int(test.dof),
        p=float(test.pvalue),
        low_expected=int((test.expected_freq < LEAST_EXPECTED).sum()),
    )


def list_violations(filled: Counts, drifts: dict[str, Drift], params: BalanceParams) -> list[str]:
    """A sentence for each limit that a split breaks; `filled` holds the splits that have images."""
    train = filled["train"]
    violations: list[str] = []
    for split, classes in filled.items():
        if missing := [name for name in classes if not classes[name] and (split == "train" or train[name])]:
            violations.append(describe_missing(split, missing))
        if is_uneven(classes, params.max_ratio) and (split == "train" or is_uneven_of_itself(classes, train, params)):
            violations.append(describe_imbalance(split, classes, params.max_ratio))
        # Both, since a large split makes a tiny drift certain and a small one makes a large drift by chance.
        if split != "train" and drifts[split].total_variation > params.max_drift and drifts[split].p < CHANCE:
            violations.append(describe_drift(split, classes, train, drifts[split], params.max_drift))
    return violations


def is_uneven(classes: dict[str, int], max_ratio: float) -> bool:
    """Whether a split breaks `max_ratio`."""
    return find_ratio(classes) > max_ratio


def find_ratio(classes: dict[str, int]) -> float:
    """Images of the largest class for each one of the smallest that has images.

    A quotient of counts, rounded as `max_ratio` was when it was read: 115 / 100 is 1.15, but 1.15 * 100 is below 115.
    """
    return classes[find_majority(classes)] / classes[find_minority(classes)]


def is_uneven_of_itself(classes: dict[str, int], train: dict[str, int], params: BalanceParams) -> bool:
    """Whether a split is uneven where train is not, by more than the one image that rounding makes."""
    return not is_uneven(train, params.max_ratio) and (
        classes[find_majority(classes)] - classes[find_minority(classes)] > 1
    )


def describe_missing(split: str, missing: Sequence[str]) -> str:
    """The violation of classes without images: of the list in train, of train in val and test."""
    names = quote_names(missing)
    number = f"{len(missing)} class{'es' if len(missing) > 1 else ''}"
    if split == "train":
        return f"train: no image of {number} ({names}), which no model can learn; add images or leave them out."
    return (
        f"{split}: no image of {number} of train ({names}), of which {split} can say nothing; "
        f"add images or raise {split}'s share."
    )


def describe_imbalance(split: str, classes: dict[str, int], max_ratio: float) -> str:
    """The violation of `max_ratio`, with both ends of the split's spread."""
    most, least = find_majority(classes), find_minority(classes)
    return (
        f"{split}: {classes[most]} images of {quote_names([most])} against {classes[least]} of {quote_names([least])}, "
        f"more than balance.max_ratio ({max_ratio:g}) allows; accuracy alone will flatter."
    )


def describe_drift(split: str, classes: dict[str, int], train: dict[str, int], drift: Drift, max_drift: float) -> str:
    """The violation of `max_drift`, with the class whose share differs most."""
    shifts = shift_shares(classes, train)
    worst = max(shifts, key=lambda name: abs(shifts[name]))
    rough = f", roughly, for some cells of its table expect fewer than {LEAST_EXPECTED} images"
    return (
        f"{split}: {100 * drift.total_variation:.1f} % of the images would have to change class to have train's "
        f"proportions (chi-square {drift.chi2:.1f}, p {drift.p:.1g}{rough if drift.low_expected else ''}), more than "
        f"balance.max_drift ({max_drift:g}) allows; most of it {quote_names([worst])}, {shifts[worst]:+.1f} points. "
        "Deal the splits anew (split.strategy: stratified), or read accuracy class by class."
    )


def quote_names(names: Sequence[str], shown: int = 5) -> str:
    """Class names inside a sentence: quoted, shortened, the first `shown` of them."""
    quoted = ", ".join(repr(shorten(name, 40)) for name in names[:shown])
    return quoted + (f" and {len(names) - shown} more" if len(names) > shown else "")


def shift_shares(classes: dict[str, int], train: dict[str, int]) -> dict[str, float]:
    """Each class's share of a split less its share of train, in percentage points; neither may be empty."""
    total, trained = sum(classes.values()), sum(train.values())
    return {name: 100 * (count / total - train[name] / trained) for name, count in classes.items()}


def recommend_measure(train: dict[str, int], max_ratio: float) -> str:
    """What would help against train's spread, in a sentence or two; nothing obeys it but the reader.

    By the ratio of the largest class to the smallest that has images: up to `max_ratio` nothing, below SAMPLER_RATIO
    class weights, from there on a weighted sampler or focal loss. Where that smallest class has fewer than FEW_IMAGES
    images, a caution too, whatever the ratio.
    """
    least, ratio = find_minority(train), find_ratio(train)
    spread = (
        "train's classes are of one size" if ratio == 1 else f"train's largest class is {ratio:.3g} times its smallest"
    )
    empty = [name for name, count in train.items() if not count]
    if empty:
        spread = f"no weight helps {quote_names(empty)}, of which train has no image; of the others, {spread}"
    if ratio <= max_ratio:
        measure = f"{spread}: train as it is, without weights."
    elif ratio < SAMPLER_RATIO:
        measure = f"{spread}: weight the classes in the loss (classes.csv holds weights), and judge by macro F1."
    else:
        measure = (
            f"{spread}: draw rare classes more often with a weighted sampler, or use focal loss; judge by macro F1."
        )
    if few := [name for name, count in train.items() if 0 < count < FEW_IMAGES]:
        measure += (
            f" Caution: {len(few)} class{'es have' if len(few) > 1 else ' has'} fewer than {FEW_IMAGES} train images "
            f"(fewest: {train[least]} of {quote_names([least])}), which no weight can make up for; collect more."
        )
    return measure


def summarise(balances: dict[str, Balance], drifts: dict[str, Drift], violations: int) -> dict[str, object]:
    """`balance.json`: fifteen numbers at most, the rest stands in `splits.csv`."""
    summary: dict[str, object] = {"violations": violations}
    for split, balance in balances.items():
        figures: dict[str, int | float | None] = {
            "images": balance.images,
            "imbalance_ratio": balance.imbalance_ratio,
            "majority_baseline": balance.majority_baseline,
        }
        if split in drifts:
            figures |= {"total_variation": drifts[split].total_variation, "p": drifts[split].p}
        else:
            figures["evenness"] = balance.evenness
        summary[split] = figures
    return summary


def tabulate_splits(balances: dict[str, Balance], drifts: dict[str, Drift]) -> pd.DataFrame:
    """`splits.csv`: a row for each split that has images; train has no drift from itself (empty cells).

    `missing` is a JSON list of names, for these may hold any separator. p and chi2 have six significant digits, all
    other figures six decimals.
    """
    rows: list[dict[str, object]] = []
    for split, balance in balances.items():
        drift = drifts.get(split)
        rows.append(
            {
                "split": split,
                "images": balance.images,
                "classes_missing": len(balance.missing),
                "imbalance_ratio": round_figure(balance.imbalance_ratio),
                "evenness": round_figure(balance.evenness),
                "majority_baseline": round_figure(balance.majority_baseline),
                "chi2": drift and float(f"{drift.chi2:.6g}"),
                "dof": drift and drift.dof,
                "p": drift and float(f"{drift.p:.6g}"),
                "low_expected": drift and drift.low_expected,
                "total_variation": drift and drift.total_variation,
                "missing": json.dumps(balance.missing, ensure_ascii=False),
            }
        )
    return pd.DataFrame(rows, dtype=object)  # else an empty cell would turn whole numbers into floats


def tabulate_classes(train: dict[str, int]) -> pd.DataFrame:
    """`classes.csv`: class, its train images, their effective number, and weights; empty where there is no image."""
    total = sum(train.values())
    balanced, effective = weigh_balanced(train), weigh_effective(train)
    return pd.DataFrame(
        [
            {
                "class": name,
                "train_images": count,
                "effective_number": round_figure(count_effective(count, total)),
                "weight_balanced": round_figure(balanced.get(name)),
                "weight_effective": round_figure(effective.get(name)),
            }
            for name, count in train.items()
        ],
        dtype=object,
    )


def tabulate_counts(counts: Counts) -> pd.DataFrame:
    """`counts.csv`: split, class, count, percent of the split, and points: percent less train's percent.

    An empty split has 0 percent of everything, and no points (empty cells).
    """
    rows: list[dict[str, object]] = []
    for split, classes in counts.items():
        total = sum(classes.values())
        shifts = shift_shares(classes, counts["train"]) if total else {}
        for name, count in classes.items():
            percent = round(100 * count / total, 4) if total else 0.0
            points = round_figure(shifts.get(name), 4)
            rows.append({"split": split, "class": name, "count": count, "percent": percent, "points": points})
    return pd.DataFrame(rows)


def round_figure(value: float | None, digits: int = 6) -> float | None:
    """`value` rounded to `digits` decimals, never -0.0; None stays None."""
    return None if value is None else round(value, digits) + 0.0
