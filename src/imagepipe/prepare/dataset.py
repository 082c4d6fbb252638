"""The split stage from records to manifests: who is taken, who goes where, PNGs on disk, CSVs and `dataset.json`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from pathlib import Path

import pandas as pd

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.files import replace_directory, write_csv
from imagepipe.core.manifest import (
    FORMAT,
    SPLITS,
    USER,
    DatasetInfo,
    ImageInfo,
    LeakInfo,
    write_manifests,
)
from imagepipe.prepare.images import ImageFacts
from imagepipe.prepare.leaks import Gate, count_images, gate_leaks
from imagepipe.prepare.lookalikes import draw_lookalikes
from imagepipe.prepare.params import SplitParams
from imagepipe.prepare.splits import Assignment, assign_splits, check_records, take_first
from imagepipe.prepare.store import Examined, open_store
from imagepipe.sources.records import Record, SourceInfo

LOOKALIKES_SHOWN = 50  # pairs on the contact sheet


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the split stage made: the dataset's description, how many images were encoded and rejected, and what the
    user should hear of."""

    info: DatasetInfo
    encoded: int
    rejected: int
    notes: list[str]


def prepare_dataset(
    records: Sequence[Record],
    source: SourceInfo,
    params: SplitParams,
    images_dir: Path,
    manifests_dir: Path,
    jobs: int,
) -> Prepared:
    """Check the records' images, split them, store them and write the manifests.

    Raises InputError, before anything in the two folders changes, where too many images cannot be used, the split
    cannot be made, or the leak gate stays shut.
    """
    check_records(records)
    records = take_first(records, params.first)
    classes = source.list_classes()
    check_class_names(records, classes)
    with open_store(images_dir, params.image, jobs) as store:
        examined = store.examine(records, encode=params.limit_per_split == 0)
        rejected = list_rejected(records, examined, params)
        facts = {key: one.row.facts for key, one in examined.items() if one.row}
        usable = [record for record in records if record.key in facts]
        image = describe_images(usable, facts)
        contents = {
            key: fact.content_sha256 if params.strategy == "hash" else fact.pixel_sha256 for key, fact in facts.items()
        }
        assigned = assign_splits(usable, contents, params)
        dealt = [record for record in usable if record.key in assigned.splits]
        gate = gate_leaks(dealt, assigned.splits, facts, params, assigned.official, source.published)
        kept = [record for record in dealt if record.key not in gate.dropped]
        paths = {record.key: name_png(record.key, assigned.splits[record.key], params) for record in kept}
        encoded = store.place(kept, paths)
    info = describe_dataset(kept, assigned, classes, image, facts, gate.info, source, params)
    with replace_directory(manifests_dir) as staging:
        write_manifests(staging, make_manifest(kept, assigned.splits, classes, facts, paths), info)
        write_csv(staging / "rejected.csv", rejected)
        write_csv(staging / "leaks.csv", gate.findings)
        draw_contact_sheet(gate, paths, images_dir, staging)
    notes = [*assigned.notes, *note_empty(info), *remark_images(kept, facts), *gate.notes]
    return Prepared(info, encoded, len(rejected), notes)


def list_rejected(records: Sequence[Record], examined: Mapping[str, Examined], params: SplitParams) -> pd.DataFrame:
    """`rejected.csv` (source, reason), sorted; raises InputError where there are more than `split.max_rejected`."""
    rejected = sorted(
        (record.source, examined[record.key].reason) for record in records if not examined[record.key].row
    )
    shown = [f"{source}: {reason}" for source, reason in rejected]
    if len(rejected) == len(records):
        raise InputError(list_findings("none of the images can be used", shown, "Mend them, or see split.image."))
    if len(rejected) > params.max_rejected:
        raise InputError(
            list_findings(
                f"{len(rejected)} of {len(records)} images cannot be used, more than split.max_rejected "
                f"({params.max_rejected}) allows",
                shown,
                "Mend or remove them, or raise split.max_rejected in params.yaml to leave them out; rejected.csv then "
                "lists all of them.",
            )
        )
    return pd.DataFrame(rejected, columns=["source", "reason"])


def name_png(key: str, split: str, params: SplitParams) -> str:
    """Where the PNG of a record lies below the image folder."""
    return f"{split}/{key}.png" if params.layout == "folders" else f"{key}.png"


def draw_contact_sheet(gate: Gate, paths: Mapping[str, str], images_dir: Path, folder: Path) -> None:
    """`lookalikes.png`, where there are pairs across splits that look alike."""
    rows = gate.findings[gate.findings["kind"] == "lookalike"].to_dict("records")
    pairs = [
        (
            images_dir / paths[row["key"]],
            f"{row['source']}\n{row['split']}",
            images_dir / paths[row["other_key"]],
            f"{row['other_source']}\n{row['other_split']}, {row['distance']} of 64 bits differ",
        )
        for row in rows
    ]
    if pairs:
        draw_lookalikes(pairs, folder / "lookalikes.png", shown=LOOKALIKES_SHOWN)


def note_empty(info: DatasetInfo) -> list[str]:
    """A note on classes that are in the list and in no split."""
    empty = [repr(name) for name in info.classes if not any(counts[name] for counts in info.counts.values())]
    return [list_findings("classes without any image", empty)] if empty else []


def remark_images(records: Sequence[Record], facts: Mapping[str, ImageFacts]) -> list[str]:
    """What the user should hear of the images themselves."""
    notes: list[str] = []
    constant = [record.source for record in records if facts[record.key].is_constant()]
    if len(constant) == 1:
        notes.append(f"1 image has one colour all over: {constant[0]}; is that meant?")
    elif constant:
        notes.append(f"{len(constant)} images have one colour all over, the first {constant[0]}; are they meant?")
    remarks = Counter(facts[record.key].remark for record in records if facts[record.key].remark)
    notes += [f"{count_images(count)}: {remark}" for remark, count in sorted(remarks.items())]
    return notes


def check_class_names(records: Sequence[Record], classes: Sequence[str]) -> None:
    """Raise InputError where a record's class is not in the source's list."""
    unknown = sorted({record.class_name for record in records} - set(classes))
    if unknown:
        raise InputError(
            f"classes that the source's own list lacks: {', '.join(map(repr, unknown))}; the source has changed since "
            "it was fetched. Run the fetch stage again."
        )


def make_manifest(
    records: Sequence[Record],
    splits: Mapping[str, str],
    classes: Sequence[str],
    facts: Mapping[str, ImageFacts],
    paths: Mapping[str, str],
) -> pd.DataFrame:
    """The rows of all three manifests (see core/manifest.py)."""
    label_of = {name: label for label, name in enumerate(classes)}
    columns = list(dict.fromkeys(name for record in records for name in record.columns))
    return pd.DataFrame(
        [
            {
                "path": paths[record.key],
                "label": label_of[record.class_name],
                "class": record.class_name,
                "split": splits[record.key],
                "group": record.group,
                "pixel_sha256": facts[record.key].pixel_sha256,
                "width": facts[record.key].width,
                "height": facts[record.key].height,
                "mode": facts[record.key].mode,
                "source": record.source,
                **{f"{USER}{name}": record.columns.get(name, "") for name in columns},
            }
            for record in records
        ]
    )


def describe_dataset(
    records: Sequence[Record],
    assigned: Assignment,
    classes: list[str],
    image: ImageInfo,
    facts: Mapping[str, ImageFacts],
    leaks: LeakInfo,
    source: SourceInfo,
    params: SplitParams,
) -> DatasetInfo:
    """What `dataset.json` says."""
    splits = assigned.splits
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
        split={**params.model_dump(), "official": name_official(records, assigned)},
        leaks=leaks,
    )


def name_official(records: Sequence[Record], assigned: Assignment) -> dict[str, str]:
    """Split → the part of the source that it is: `test` may be the source's val."""
    part_of = {assigned.splits[record.key]: record.part for record in records if record.part}
    return {split: part_of[split] for split in assigned.official}


def describe_images(records: Sequence[Record], facts: Mapping[str, ImageFacts]) -> ImageInfo:
    """The one mode and size of all images; raises InputError, naming an image of each, where they have several."""
    kinds: Counter[tuple[str, int, int]] = Counter()
    first: dict[tuple[str, int, int], str] = {}
    for record in records:
        fact = facts[record.key]
        kind = (fact.mode, fact.width, fact.height)
        kinds[kind] += 1
        first.setdefault(kind, record.source)
    if len(kinds) > 1:
        shown = [
            f"{count} of {kind[0]} {kind[1]}×{kind[2]}, the first {first[kind]}" for kind, count in kinds.most_common()
        ]
        keys = ["split.image.mode (L or RGB)"] if len({mode for mode, _, _ in kinds}) > 1 else []
        widths, heights = {width for _, width, _ in kinds}, {height for _, _, height in kinds}
        if len(widths) > 1 or len(heights) > 1:
            keys.append(
                "split.image.height and split.image.width (the images are "
                f"{min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high)"
            )
        remedy = f"A batch needs images of one kind: set {' and '.join(keys)} in params.yaml."
        raise InputError(list_findings("images of several modes or sizes", shown, remedy))
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
