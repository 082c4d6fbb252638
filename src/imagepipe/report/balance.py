"""How evenly the classes are spread: counts and shares per split, and what an uninformed guess would reach."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from imagepipe.core.config import Params
from imagepipe.core.errors import InputError
from imagepipe.core.files import replace_directory, write_csv, write_json
from imagepipe.core.manifest import SPLITS, DatasetInfo, read_dataset_info, read_split
from imagepipe.report.plots import draw_balance

Counts = dict[str, dict[str, int]]  # split → class → images


class BalanceParams(Params):
    """`balance:` in params.yaml; each key is explained there."""

    max_ratio: Annotated[float, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Balance:
    """One split's spread.

    `imbalance_ratio` is the largest class over the smallest, None where a class is empty. `majority_baseline` is the
    accuracy on this split of always answering train's most frequent class. `evenness` is Shannon's entropy over its
    largest possible value (Pielou, J. Theor. Biol. 13, 1966): 1 is even, 0 is one class alone, None where only one
    class exists.
    """

    images: int
    imbalance_ratio: float | None
    majority_baseline: float
    evenness: float | None


def report_balance(manifests_dir: Path, reports_dir: Path, params: BalanceParams) -> list[str]:
    """Write `balance.json`, `counts.csv` and `balance.png`; returns a warning for each split above `max_ratio`."""
    info = read_dataset_info(manifests_dir / "dataset.json")
    counts = count_classes(manifests_dir, info)
    majority = find_majority(counts["train"])
    balances = {split: measure_balance(classes, majority) for split, classes in counts.items() if sum(classes.values())}
    warnings = [
        describe_imbalance(split, counts[split], params.max_ratio)
        for split, balance in balances.items()
        if balance.imbalance_ratio is None or balance.imbalance_ratio > params.max_ratio
    ]
    with replace_directory(reports_dir) as staging:
        write_json(staging / "balance.json", summarise(balances, len(warnings)))
        write_csv(staging / "counts.csv", tabulate_counts(counts))
        draw_balance(counts, staging / "balance.png")
    return warnings


def count_classes(manifests_dir: Path, info: DatasetInfo) -> Counts:
    """Images per split and class, counted in the manifests themselves; classes without images count 0."""
    counts: Counts = {}
    for split in SPLITS:
        found = read_split(manifests_dir, split, info)["class"].value_counts()
        counts[split] = {name: int(found.get(name, 0)) for name in info.classes}
    if not sum(counts["train"].values()):
        raise InputError(f"{manifests_dir}/train.csv: the train split is empty; raise split.fractions.train.")
    return counts


def find_majority(classes: dict[str, int]) -> str:
    """The most frequent class; the first in class order where several are."""
    return max(classes, key=lambda name: classes[name])


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
    )


def describe_imbalance(split: str, classes: dict[str, int], max_ratio: float) -> str:
    """The warning for one split, with both ends of its spread."""
    most, least = find_majority(classes), min(classes, key=lambda name: classes[name])
    return (
        f"{split}: {classes[most]} images of {most!r} against {classes[least]} of {least!r}, "
        f"more than balance.max_ratio ({max_ratio:g}) allows; accuracy alone will flatter."
    )


def summarise(balances: dict[str, Balance], imbalanced: int) -> dict[str, object]:
    """`balance.json`."""
    return {
        "imbalanced_splits": imbalanced,
        **{
            split: {
                "images": balance.images,
                "imbalance_ratio": balance.imbalance_ratio,
                "majority_baseline": balance.majority_baseline,
                "evenness": balance.evenness,
            }
            for split, balance in balances.items()
        },
    }


def tabulate_counts(counts: Counts) -> pd.DataFrame:
    """`counts.csv`: split, class, count, percent of the split."""
    return pd.DataFrame(
        [
            {
                "split": split,
                "class": name,
                "count": count,
                "percent": round(100 * count / total, 4) if (total := sum(classes.values())) else 0.0,
            }
            for split, classes in counts.items()
            for name, count in classes.items()
        ]
    )
