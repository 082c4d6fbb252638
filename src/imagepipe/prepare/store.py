"""The images on disk: one PNG for each record, and an index that says what each was made from.

Only what is new, changed or damaged is decoded and encoded; what no record names is removed. The bytes are those of a
run from nothing. New PNGs wait in a staging folder until the split stands, so that a stage that fails changes nothing.
They get their place by rename without fsync, since the index, which is fsynced and written last, exposes damage.
"""

import glob
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.files import hash_bytes, hash_file, report_write_errors, write_csv, write_text
from imagepipe.core.manifest import hash_pixels
from imagepipe.core.parallel import Limits, Lost, map_chunks, map_contained
from imagepipe.core.slices import FileSlice
from imagepipe.core.tables import read_text_table
from imagepipe.prepare.images import (
    ImageFacts,
    UnusableImage,
    check_array,
    convert_array,
    decode_image,
    encode_png,
    measure_image,
    name_mode,
    name_recipe,
)
from imagepipe.prepare.params import ImageParams
from imagepipe.sources.records import Record

INDEX = "index.csv"
INDEX_HASH = "index.csv.sha256"  # what is read back from the index is believed only when its hash is this

CHUNK_IMAGES = 250
CHUNK_BYTES = 16 * 2**20  # of source files: few seconds of decoding, so that a worker is not ended for honest work
SECONDS = 60.0  # for a chunk, and again for an image alone
MEMORY = 512 * 2**20  # bytes that a worker may ask for, beside
MEMORY_PER_PIXEL = 32  # bytes for each pixel that split.image.max_pixels allows: decoded, converted, resized, encoded


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One row of the index: the key, where its PNG is below the image folder ('' where none is kept), the hash of what
    it was made from, the PNG's hash, the image's facts."""

    key: str
    path: str
    source_sha256: str
    png_sha256: str
    facts: ImageFacts


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of a record: its row, or why it cannot be used; and the file in staging that holds a new PNG."""

    row: StoredImage | None
    reason: str = ""
    staged: str = ""


Work = Sequence[tuple[Record, StoredImage | None]]  # records, each with what the index knew of it


class ImageStore:
    """An image folder while a split is made: `examine` the records, then `place` those that the split keeps."""

    def __init__(self, images_dir: Path, staging: Path, params: ImageParams, jobs: int) -> None:
        self.images_dir = images_dir
        self.staging = staging
        self.params = params
        self.jobs = jobs
        self.known = read_index(images_dir / INDEX, params)
        self.examined: dict[str, Examined] = {}

    def examine(self, records: Sequence[Record], encode: bool = True) -> dict[str, Examined]:
        """Check every image; key → what became of it. With `encode`, new and damaged PNGs are made in staging.

        Raises InputError for an array that is no image.
        """
        self._examine([(record, self.known.get(record.key)) for record in records], encode)
        return self.examined

    def place(self, records: Sequence[Record], paths: Mapping[str, str]) -> int:
        """Bring the folder to hold just the PNGs of `records`, at `paths` (by key) below it, and the index.

        The index keeps what is known of every image that was examined, so that another split decodes nothing. Returns
        how many images had to be encoded.
        """
        self._encode([record for record in records if not self._is_made(record.key)])
        encoded = sum(bool(self.examined[key].staged) for key in paths)
        with report_write_errors(self.images_dir):
            # Two steps, since the old place of one may be the new place of another.
            for key, path in paths.items():
                self._take_up(key, path)
            remove_strangers(self.images_dir, {INDEX, INDEX_HASH, *paths.values()})
            for folder in {(self.images_dir / path).parent for path in paths.values()}:
                folder.mkdir(parents=True, exist_ok=True)
            for key, path in paths.items():
                self._put_down(key, path)
        rows = [one.row for one in self.examined.values() if one.row]
        write_index(self.images_dir / INDEX, [settle(row, paths.get(row.key, "")) for row in rows], self.params)
        return encoded

    def _examine(self, work: Work, encode: bool) -> None:
        """As `examine`; a record whose row is None is decoded and encoded anew."""
        look = partial(
            examine_chunk, images_dir=self.images_dir, staging=self.staging, params=self.params, encode=encode
        )
        found: Iterable[Examined | Lost]
        if any(isinstance(record.image, FileSlice) for record, _ in work):
            limits = Limits(SECONDS, MEMORY + MEMORY_PER_PIXEL * self.params.max_pixels)
            found = map_contained(look, list(cut_chunks(work)), self.jobs, limits)
        else:
            found = chain.from_iterable(map_chunks(look, work, self.jobs))
        for (record, _), one in zip(work, found, strict=True):
            self.examined[record.key] = Examined(None, one.reason) if isinstance(one, Lost) else one

    def _encode(self, records: Sequence[Record]) -> None:
        """Make the PNGs of records that were examined before; raises InputError where a file has changed since."""
        before = {record.key: self.examined[record.key].row for record in records}
        self._examine([(record, None) for record in records], encode=True)
        changed = [record for record in records if not is_same(before[record.key], self.examined[record.key].row)]
        if changed:
            shown = [f"{record.source}: {self.examined[record.key].reason or 'other bytes'}" for record in changed]
            raise InputError(list_findings("files changed while the split was made", shown, "Run the stage again."))

    def _is_made(self, key: str) -> bool:
        """Whether the record's PNG is in staging or, intact, in the folder."""
        one = self.examined[key]
        return bool(one.staged or (one.row and one.row.path))

    def _take_up(self, key: str, path: str) -> None:
        """Bring a PNG that lies elsewhere in the folder into staging."""
        one = self.examined[key]
        if one.row and not one.staged and one.row.path != path:
            here, staged = self.images_dir / one.row.path, name_staged(key)
            if here.is_symlink():  # which may be relative, and DVC may have made it
                shutil.copyfile(here, self.staging / staged)
            else:
                here.replace(self.staging / staged)
            self.examined[key] = replace(one, staged=staged)

    def _put_down(self, key: str, path: str) -> None:
        """Bring a PNG out of staging to where it belongs."""
        staged = self.examined[key].staged
        if staged:
            (self.staging / staged).replace(self.images_dir / path)


@contextmanager
def open_store(images_dir: Path, params: ImageParams, jobs: int) -> Generator[ImageStore]:
    """The store over `images_dir`; its staging folder lies beside it and is removed at the end.

    So is what a run that was killed left there.
    """
    with report_write_errors(images_dir):
        images_dir.parent.mkdir(parents=True, exist_ok=True)
        for left in images_dir.parent.glob(f".{glob.escape(images_dir.name)}.*.part"):
            shutil.rmtree(left)
        staging = Path(tempfile.mkdtemp(prefix=f".{images_dir.name}.", suffix=".part", dir=images_dir.parent))
    try:
        yield ImageStore(images_dir, staging, params, jobs)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def name_staged(key: str) -> str:
    """What the PNG of a record is called in staging: short and safe whatever the key."""
    return f"{hash_bytes(key.encode())}.png"


def is_same(before: StoredImage | None, after: StoredImage | None) -> bool:
    """Whether a record was made from the same bytes both times."""
    return before is not None and after is not None and before.source_sha256 == after.source_sha256


def settle(row: StoredImage, path: str) -> StoredImage:
    """The row as the index keeps it: with its place, and with a PNG's hash only where there is one."""
    return replace(row, path=path, png_sha256=row.png_sha256 if path else "")


def cut_chunks(work: Work) -> Iterator[Work]:
    """The work in chunks of at most CHUNK_IMAGES records and, but for a single record, CHUNK_BYTES of source bytes."""
    first, size = 0, 0
    for position, (record, _) in enumerate(work):
        length = (record.image.length or 0) if isinstance(record.image, FileSlice) else record.image.nbytes
        if position > first and (position - first == CHUNK_IMAGES or size + length > CHUNK_BYTES):
            yield work[first:position]
            first, size = position, 0
        size += length
    if first < len(work):
        yield work[first:]


def examine_chunk(work: Work, images_dir: Path, staging: Path, params: ImageParams, encode: bool) -> list[Examined]:
    """What becomes of each of some records."""
    return [examine_record(record, before, images_dir, staging, params, encode) for record, before in work]


def examine_record(
    record: Record, before: StoredImage | None, images_dir: Path, staging: Path, params: ImageParams, encode: bool
) -> Examined:
    """Decode, check and (with `encode`) encode one record, unless the index knows what its source bytes give."""
    try:
        source = read_source(record)
        source_sha256 = hash_source(source)
        if before and before.source_sha256 == source_sha256:
            if before.path and is_intact(images_dir / before.path, before.png_sha256):
                return Examined(before)
            if not (before.path and encode):
                return Examined(replace(before, path=""))
        decoded = decode_image(source, params) if isinstance(source, bytes) else convert_array(source, params)
        facts = measure_image(decoded.pixels, decoded.remark, decoded.content_sha256)
        png = encode_png(decoded.pixels) if encode else b""
    except UnusableImage as error:
        return Examined(None, str(error))
    except MemoryError:
        return Examined(None, "needs more memory than its process may have")
    if not encode:
        return Examined(StoredImage(record.key, "", source_sha256, "", facts))
    staged = name_staged(record.key)
    with report_write_errors(images_dir):
        (staging / staged).write_bytes(png)
    return Examined(StoredImage(record.key, "", source_sha256, hash_bytes(png), facts), staged=staged)


def read_source(record: Record) -> bytes | NDArray[np.uint8]:
    """The bytes of the record's file, or its pixels; raises UnusableImage where the file cannot be read."""
    if not isinstance(record.image, FileSlice):
        check_array(record.image, record.source)
        return record.image
    try:
        return record.image.read()
    except OSError as error:
        raise UnusableImage(f"cannot be read: {error.strerror or error}") from error


def hash_source(source: bytes | NDArray[np.uint8]) -> str:
    """SHA-256 of a file's bytes, or of an array's pixels."""
    if isinstance(source, bytes):
        return hash_bytes(source)
    return hash_pixels(name_mode(source), source)


def is_intact(path: Path, sha256: str) -> bool:
    """Whether the file is there with the bytes that the index promises."""
    return path.is_file() and hash_bytes(path.read_bytes()) == sha256


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


def write_index(path: Path, stored: Iterable[StoredImage], params: ImageParams) -> None:
    """One row for each image, sorted by key; what made the PNGs is named, so that another way makes them anew."""
    recipe = name_recipe(params)
    rows = [
        {
            "key": row.key,
            "path": row.path,
            "source_sha256": row.source_sha256,
            "recipe": recipe,
            "png_sha256": row.png_sha256,
            "content_sha256": row.facts.content_sha256,
            "pixel_sha256": row.facts.pixel_sha256,
            "width": row.facts.width,
            "height": row.facts.height,
            "mode": row.facts.mode,
            "pixel_sums": " ".join(map(str, row.facts.pixel_sums)),
            "pixel_squares": " ".join(map(str, row.facts.pixel_squares)),
            "fingerprint": row.facts.fingerprint,
            "remark": row.facts.remark,
        }
        for row in sorted(stored, key=lambda row: row.key)
    ]
    write_csv(path, pd.DataFrame(rows))
    write_text(path.with_name(INDEX_HASH), hash_file(path) + "\n")


def read_index(path: Path, params: ImageParams) -> dict[str, StoredImage]:
    """The index by key; empty where there is none or it is damaged, and without rows that were made another way."""
    seal = path.with_name(INDEX_HASH)
    if not (path.is_file() and seal.is_file() and seal.read_bytes() == f"{hash_file(path)}\n".encode()):
        return {}
    recipe = name_recipe(params)
    return {
        row["key"]: StoredImage(
            row["key"],
            row["path"],
            row["source_sha256"],
            row["png_sha256"],
            ImageFacts(
                row["content_sha256"],
                row["pixel_sha256"],
                int(row["width"]),
                int(row["height"]),
                row["mode"],
                tuple(map(int, row["pixel_sums"].split())),
                tuple(map(int, row["pixel_squares"].split())),
                row["fingerprint"],
                row["remark"],
            ),
        )
        for row in read_text_table(path).to_dict("records")
        if row.get("recipe") == recipe  # which an index that an older version wrote may not have
    }
