"""The images on disk: one PNG for each record, and an index that says what each was made from.

Only what is new, changed or damaged is encoded; what no record names is removed. The bytes are those of a run from
nothing. PNGs are written by rename without fsync, since the index, which is fsynced and written last, exposes damage.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from imagepipe.core.files import hash_bytes, hash_file, report_write_errors, write_csv, write_text
from imagepipe.core.manifest import hash_pixels, read_text_table
from imagepipe.core.parallel import map_chunks
from imagepipe.prepare.images import ImageFacts, encode_png, name_encoder, name_mode, sum_channels
from imagepipe.sources.records import Record

INDEX = "index.csv"
INDEX_HASH = "index.csv.sha256"  # what is read back from the index is believed only when its hash is this


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One row of the index: the record's key, the hash of what it was made from, the PNG's hash, the image's facts."""

    key: str
    source_sha256: str
    png_sha256: str
    facts: ImageFacts


@dataclass(frozen=True, slots=True)
class Stored:
    """What `store_images` did: the facts of every image by key, and how many had to be encoded."""

    facts: dict[str, ImageFacts]
    encoded: int


def store_images(records: Sequence[Record], images_dir: Path, jobs: int) -> Stored:
    """Bring `images_dir` to hold just the PNGs of `records` (`<key>.png`) and their index, with `jobs` processes."""
    known = read_index(images_dir / INDEX)
    with report_write_errors(images_dir):
        images_dir.mkdir(parents=True, exist_ok=True)
        for folder in {record.key.rpartition("/")[0] for record in records}:
            (images_dir / folder).mkdir(parents=True, exist_ok=True)
    store = partial(store_chunk, images_dir=images_dir)
    work = [(record, known.get(record.key)) for record in records]
    stored: list[StoredImage] = []
    encoded = 0
    for rows, count in map_chunks(store, work, jobs):
        stored += rows
        encoded += count
    with report_write_errors(images_dir):
        remove_strangers(images_dir, {INDEX, INDEX_HASH, *(f"{record.key}.png" for record in records)})
    write_index(images_dir / INDEX, stored)
    return Stored({row.key: row.facts for row in stored}, encoded)


def store_chunk(work: Sequence[tuple[Record, StoredImage | None]], images_dir: Path) -> tuple[list[StoredImage], int]:
    """Index rows for some records, each with what the index knew of it, and how many had to be encoded."""
    rows: list[StoredImage] = []
    encoded = 0
    for record, before in work:
        mode = name_mode(record.pixels, record.source)
        source_sha256 = hash_pixels(mode, record.pixels)
        path = images_dir / f"{record.key}.png"
        if before and before.source_sha256 == source_sha256 and is_intact(path, before.png_sha256):
            rows.append(before)
            continue
        png = encode_png(record.pixels)
        place_png(path, png)
        sums, squares = sum_channels(record.pixels)
        height, width = record.pixels.shape[:2]
        facts = ImageFacts(source_sha256, width, height, mode, sums, squares)
        rows.append(StoredImage(record.key, source_sha256, hash_bytes(png), facts))
        encoded += 1
    return rows, encoded


def is_intact(path: Path, sha256: str) -> bool:
    """Whether the file is there with the bytes that the index promises."""
    return path.is_file() and hash_bytes(path.read_bytes()) == sha256


def place_png(path: Path, png: bytes) -> None:
    """Write by rename, so that a reader never sees half an image."""
    temporary = path.with_name(f".{path.name}.part")
    with report_write_errors(path):
        try:
            temporary.write_bytes(png)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_strangers(images_dir: Path, wanted: set[str]) -> None:
    """Remove every file whose path below `images_dir` is not `wanted`, every link, and the folders left empty."""
    for name, folders, files in os.walk(images_dir, topdown=False):
        folder = Path(name)
        below = folder.relative_to(images_dir).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for file in files:
            if prefix + file not in wanted:
                (folder / file).unlink()
        for child in map(folder.joinpath, folders):
            if child.is_symlink():
                child.unlink()
            elif not any(child.iterdir()):
                child.rmdir()


def write_index(path: Path, stored: Iterable[StoredImage]) -> None:
    """One row for each image, sorted by key; the encoder is named so that another one's PNGs are made anew."""
    encoder = name_encoder()
    rows = [
        {
            "key": row.key,
            "source_sha256": row.source_sha256,
            "encoder": encoder,
            "png_sha256": row.png_sha256,
            "pixel_sha256": row.facts.pixel_sha256,
            "width": row.facts.width,
            "height": row.facts.height,
            "mode": row.facts.mode,
            "pixel_sums": " ".join(map(str, row.facts.pixel_sums)),
            "pixel_squares": " ".join(map(str, row.facts.pixel_squares)),
        }
        for row in sorted(stored, key=lambda row: row.key)
    ]
    write_csv(path, pd.DataFrame(rows))
    write_text(path.with_name(INDEX_HASH), hash_file(path) + "\n")


def read_index(path: Path) -> dict[str, StoredImage]:
    """The index by key; empty where there is none, it is damaged, or another encoder made the PNGs."""
    seal = path.with_name(INDEX_HASH)
    if not (path.is_file() and seal.is_file() and seal.read_bytes() == f"{hash_file(path)}\n".encode()):
        return {}
    encoder = name_encoder()
    return {
        row["key"]: StoredImage(
            row["key"],
            row["source_sha256"],
            row["png_sha256"],
            ImageFacts(
                row["pixel_sha256"],
                int(row["width"]),
                int(row["height"]),
                row["mode"],
                tuple(map(int, row["pixel_sums"].split())),
                tuple(map(int, row["pixel_squares"].split())),
            ),
        )
        for row in read_text_table(path).to_dict("records")
        if row["encoder"] == encoder
    }
