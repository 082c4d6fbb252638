"""The split stage from records to manifests: who goes where, PNGs on disk, three CSVs and `dataset.json`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from pathlib import Path

import pandas as pd

from imagepipe.core.errors import InputError
from imagepipe.core.files import replace_directory, write_csv
from imagepipe.core.manifest import FORMAT, SPLITS, DatasetInfo, ImageInfo, order_classes, write_manifests
from imagepipe.prepare.images import ImageFacts, name_mode
from imagepipe.prepare.params import SplitParams
from imagepipe.prepare.splits import assign_splits
from imagepipe.prepare.store import store_images
from imagepipe.sources.records import Record, SourceInfo


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the split stage made: the dataset's description, and how many images had to be encoded."""

    info: DatasetInfo
    encoded: int


def prepare_dataset(
    records: Sequence[Record],
    source: SourceInfo,
    params: SplitParams,
    images_dir: Path,
    manifests_dir: Path,
    jobs: int,
) -> Prepared:
    """Split the records, store their images and write the manifests; raises InputError before anything is written
    where the split cannot be made."""
    splits = assign_splits(records, params)
    kept = [record for record in records if record.key in splits]
    classes = order_classes(source.classes)
    check_class_names(kept, classes)
    image = describe_images(kept)
    stored = store_images(kept, images_dir, jobs)
    info = describe_dataset(kept, splits, classes, image, stored.facts, source, params)
    table = make_manifest(kept, splits, classes, stored.facts)
    with replace_directory(manifests_dir) as staging:
        write_manifests(staging, table, info)
        write_csv(staging / "rejected.csv", pd.DataFrame(columns=["source", "reason"]))
    return Prepared(info, stored.encoded)


def check_class_names(records: Sequence[Record], classes: Sequence[str]) -> None:
    """Raise InputError where a record's class is not in the source's list."""
    unknown = sorted({record.class_name for record in records} - set(classes))
    if unknown:
        raise InputError(f"classes that the source's own list lacks: {', '.join(map(repr, unknown))}.")


def make_manifest(
    records: Sequence[Record], splits: dict[str, str], classes: Sequence[str], facts: dict[str, ImageFacts]
) -> pd.DataFrame:
    """The rows of all three manifests (see core/manifest.py)."""
    label_of = {name: label for label, name in enumerate(classes)}
    return pd.DataFrame(
        [
            {
                "path": f"{record.key}.png",
                "label": label_of[record.class_name],
                "class": record.class_name,
                "split": splits[record.key],
                "group": record.group,
                "pixel_sha256": facts[record.key].pixel_sha256,
                "width": facts[record.key].width,
                "height": facts[record.key].height,
                "mode": facts[record.key].mode,
                "source": record.source,
            }
            for record in records
        ]
    )


def describe_dataset(
    records: Sequence[Record],
    splits: dict[str, str],
    classes: list[str],
    image: ImageInfo,
    facts: dict[str, ImageFacts],
    source: SourceInfo,
    params: SplitParams,
) -> DatasetInfo:
    """What `dataset.json` says."""
    counts: Counter[tuple[str, str]] = Counter((splits[record.key], record.class_name) for record in records)
    mean, std = measure_pixels([facts[record.key] for record in records if splits[record.key] == "train"])
    return DatasetInfo(
        format=FORMAT,
        classes=classes,
        image=image,
        mean=mean,
        std=std,
        counts={split: {name: counts[split, name] for name in classes} for split in SPLITS},
        source=source.model_dump(),
        split={
            **params.model_dump(),
            "official": sorted({record.part for record in records if record.part == splits[record.key] != "train"}),
        },
    )


def describe_images(records: Sequence[Record]) -> ImageInfo:
    """The one mode and size of all images; raises InputError where they have several."""
    kinds = Counter(
        (name_mode(record.pixels, record.source), record.pixels.shape[1], record.pixels.shape[0]) for record in records
    )
    if len(kinds) > 1:
        found = ", ".join(f"{count} of {mode} {width}×{height}" for (mode, width, height), count in kinds.most_common())
        raise InputError(f"images of several modes or sizes: {found}; expected one.")
    ((mode, width, height),) = kinds
    return ImageInfo.model_validate({"mode": mode, "width": width, "height": height})


def measure_pixels(facts: Sequence[ImageFacts]) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation per channel in [0, 1], from exact integer sums over every pixel."""
    mean: list[float] = []
    std: list[float] = []
    pixels = sum(image.width * image.height for image in facts)
    for channel in range(len(facts[0].pixel_sums)):
        first = Fraction(sum(image.pixel_sums[channel] for image in facts), pixels)
        second = Fraction(sum(image.pixel_squares[channel] for image in facts), pixels)
        mean.append(float(first / 255))
        std.append(sqrt(second - first * first) / 255)
    return mean, std
