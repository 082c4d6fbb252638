"""The split stage from records to manifests: who is taken, who goes where, PNGs on disk, CSVs and `dataset.json`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

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
from imagepipe.core.parallel import Engine
from imagepipe.core.slices import ImageFiles, list_image_files
from imagepipe.prepare.index import MODES, Facts, Places, list_hashes
from imagepipe.prepare.leaks import count_images, gate_leaks
from imagepipe.prepare.lookalikes import draw_lookalikes
from imagepipe.prepare.params import SplitParams
from imagepipe.prepare.splits import Assignment, assign_splits, check_records, take_first
from imagepipe.prepare.store import open_store
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
    engine: Engine,
) -> Prepared:
    """Check the records' images, split them, store them and write the manifests.

    Raises InputError, before anything in the two folders changes, where too many images cannot be used, the split
    cannot be made, or the leak gate stays shut.
    """
    check_records(records)
    records = take_first(records, params.first)
    classes = source.list_classes()
    check_class_names(records, classes)
    with open_store(images_dir, params.image, engine, params.layout == "shards") as store:
        verdict = store.examine(records, encode=params.limit_per_split == 0)
        rejected = list_rejected(records, verdict.rejected, params)
        facts = verdict.facts
        usable = [record for record in records if record.key in facts]
        image = describe_images(usable, facts)
        pixels = facts.map_hashes("pixel_sha256")
        contents = facts.map_hashes("content_sha256") if params.strategy == "hash" else pixels
        assigned = assign_splits(usable, contents, params)
        dealt = [record for record in usable if record.key in assigned.splits]
        fingerprints = facts.map_fingerprints()
        gate = gate_leaks(dealt, assigned.splits, pixels, fingerprints, params, assigned.official, source.published)
        kept = [record for record in dealt if record.key not in gate.dropped]
        paths = [name_png(record.key, assigned.splits[record.key], params) for record in kept]
        encoded, places = store.place(kept, paths)
    rows = facts.take_rows([record.key for record in kept])
    info = describe_dataset(kept, assigned, classes, image, rows, gate.info, source, params)
    notes = [*assigned.notes, *note_empty(info), *remark_images(kept, rows, facts), *gate.notes]
    rows = repack_fields(rows[["pixel_sha256", "width", "height", "mode", "length"]])  # a fifth of them
    del facts, pixels, contents, fingerprints, verdict, store, usable, dealt  # for a million images, much memory
    manifest = make_manifest(kept, assigned.splits, classes, rows, paths, places)
    del rows, places
    with replace_directory(manifests_dir) as staging:
        write_manifests(staging, manifest, info)
        write_csv(staging / "rejected.csv", rejected)
        write_csv(staging / "leaks.csv", gate.findings)
        near = gate.findings[gate.findings["kind"] == "lookalike"]
        if len(near):
            draw_contact_sheet(near, kept, list_image_files(manifest, images_dir), staging / "lookalikes.png")
    return Prepared(info, encoded, len(rejected), notes)


def list_rejected(records: Sequence[Record], reasons: Mapping[str, str], params: SplitParams) -> pd.DataFrame:
    """`rejected.csv` (source, reason), sorted; raises InputError where there are more than `split.max_rejected`."""
    rejected = sorted((record.source, reasons[record.key]) for record in records if record.key in reasons)
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


def draw_contact_sheet(near: pd.DataFrame, records: Sequence[Record], files: ImageFiles, path: Path) -> None:
    """The first of the pairs across splits that look alike, as rows of `leaks.csv`; `files` are those of `records`."""
    place_of = {record.key: place for place, record in enumerate(records)}
    pairs = [
        (
            files.read(place_of[row["key"]]),
            f"{row['source']}\n{row['split']}",
            files.read(place_of[row["other_key"]]),
            f"{row['other_source']}\n{row['other_split']}, {row['distance']} of 64 bits differ",
        )
        for row in near.head(LOOKALIKES_SHOWN).to_dict("records")
    ]
    draw_lookalikes(pairs, len(near), path)


def note_empty(info: DatasetInfo) -> list[str]:
    """A note on classes that are in the list and in no split."""
    empty = [repr(name) for name in info.classes if not any(counts[name] for counts in info.counts.values())]
    return [list_findings("classes without any image", empty)] if empty else []


def remark_images(records: Sequence[Record], rows: NDArray[np.void], facts: Facts) -> list[str]:
    """What the user should hear of the images themselves."""
    notes: list[str] = []
    flat = np.flatnonzero(are_constant(rows))
    if len(flat) == 1:
        notes.append(f"1 image has one colour all over: {records[flat[0]].source}; is that meant?")
    elif len(flat):
        notes.append(
            f"{len(flat)} images have one colour all over, the first {records[flat[0]].source}; are they meant?"
        )
    if facts.table.remarks:
        remarks = Counter(filter(None, (facts[record.key].remark for record in records)))
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
    rows: NDArray[np.void],
    paths: Sequence[str],
    places: Places,
) -> pd.DataFrame:
    """The rows of all three manifests (see core/manifest.py); `rows` (N,) are the records' FACTS."""
    label_of = {name: label for label, name in enumerate(classes)}
    columns: dict[str, object] = {
        "path": paths,
        "label": [label_of[record.class_name] for record in records],
        "class": [record.class_name for record in records],
        "split": [splits[record.key] for record in records],
        "group": [record.group for record in records],
        "pixel_sha256": list_hashes(rows["pixel_sha256"]),
        "width": rows["width"],
        "height": rows["height"],
        "mode": np.array(MODES, object)[rows["mode"]],
        "source": [record.source for record in records],
    }
    if places.offsets.any():
        columns |= {"shard": places.files, "offset": places.offsets, "length": rows["length"]}
    return pd.DataFrame(columns | list_columns(records))


def list_columns(records: Sequence[Record]) -> dict[str, list[str]]:
    """The further columns of the user's own table, as a manifest has them; '' where a record lacks one."""
    names = dict.fromkeys(name for record in records for name in record.columns)
    return {f"{USER}{name}": [record.columns.get(name, "") for record in records] for name in names}


def describe_dataset(
    records: Sequence[Record],
    assigned: Assignment,
    classes: list[str],
    image: ImageInfo,
    rows: NDArray[np.void],
    leaks: LeakInfo,
    source: SourceInfo,
    params: SplitParams,
) -> DatasetInfo:
    """What `dataset.json` says; `rows` (N,) are the records' FACTS."""
    splits = assigned.splits
    counts: Counter[tuple[str, str]] = Counter((splits[record.key], record.class_name) for record in records)
    learnt = np.array([splits[record.key] == "train" for record in records])
    mean, std = measure_pixels(rows[learnt], image.channels)
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


def describe_images(records: Sequence[Record], facts: Facts) -> ImageInfo:
    """The one mode and size of all images; raises InputError, naming an image of each, where they have several."""
    rows = facts.take_rows([record.key for record in records])
    columns = np.stack([rows["mode"], rows["width"], rows["height"]], axis=1)
    found, firsts, counts = np.unique(columns, axis=0, return_index=True, return_counts=True)
    kinds = Counter[tuple[str, int, int]]()
    first: dict[tuple[str, int, int], str] = {}
    for (mode, width, height), place, count in sorted(
        zip(*map(np.ndarray.tolist, (found, firsts, counts)), strict=True), key=lambda kind: kind[1]
    ):
        kinds[MODES[mode], width, height] = count
        first[MODES[mode], width, height] = records[place].source
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


def measure_pixels(rows: NDArray[np.void], channels: int) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation per channel in [0, 1], from exact integer sums over every pixel."""
    mean: list[float] = []
    std: list[float] = []
    pixels = sum((rows["width"].astype(np.int64) * rows["height"]).tolist())
    for channel in range(channels):
        first = Fraction(sum(rows["pixel_sums"][:, channel].tolist()), pixels)
        second = Fraction(sum(rows["pixel_squares"][:, channel].tolist()), pixels)
        mean.append(float(first / 255))
        std.append(sqrt(second - first * first) / 255)
    return mean, std


def are_constant(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether each image has one colour all over: every value is the mean of its channel."""
    pixels = (rows["width"].astype(np.int64) * rows["height"])[:, None]
    value, rest = np.divmod(rows["pixel_sums"], pixels)
    return ((rest == 0) & (rows["pixel_squares"] == value * value * pixels)).all(axis=1)
