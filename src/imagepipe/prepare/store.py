"""The images on disk: one PNG for each record, as files or in tar shards, and an index that says what each was made of.

Only what is new, changed or damaged is decoded and encoded; what no record names is removed. The bytes are those of a
run from nothing. New PNGs wait in a staging folder until the split stands, so that a stage that fails changes nothing.
They get their place by rename without fsync, since the index, which is fsynced and written last, exposes damage.
"""

import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.files import report_write_errors
from imagepipe.core.hashes import hash_file
from imagepipe.core.parallel import FEW, Engine, Limits, Lost
from imagepipe.core.progress import open_progress
from imagepipe.core.shards import (
    BLOCK,
    Segment,
    cut_shards,
    join_segments,
    make_member,
    measure_members,
    name_member,
    name_shard,
    write_shard,
)
from imagepipe.core.slices import FileSlice
from imagepipe.core.unfinished import make_unfinished
from imagepipe.prepare.examination import (
    Examined,
    Known,
    Staging,
    State,
    Work,
    examine_images,
    load_work,
    stage_pngs,
)
from imagepipe.prepare.images import name_recipe
from imagepipe.prepare.index import INDEX, SEAL, Facts, ImageTable, Index, Places, read_index, write_index
from imagepipe.prepare.params import ImageParams
from imagepipe.sources.records import Record

CHUNK_IMAGES = 1000
# Of sources. Time and memory follow the pixels, whose number nobody knows before a file is opened: where a byte holds
# 40, as in a well compressed WebP, these are 40 million, seconds of work, so that no worker is ended for it.
CHUNK_BYTES = 2**20
FILE_BYTES = 2**12  # what a file counts at least, since plain surfaces take hardly any bytes
SECONDS = 60.0  # for a chunk, and again for an image alone
MEMORY = 512 * 2**20  # bytes that a worker may ask for, beside
THREADS = 16  # that copy members into shards; a cluster has more jobs than this machine has processors
MEMORY_PER_PIXEL = 32  # bytes for each pixel that split.image.max_pixels allows: decoded, converted, resized, encoded


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the records: the facts of those that can be used, by key, and by key why others cannot."""

    facts: Facts
    rejected: dict[str, str]


class ImageStore:
    """An image folder while a split is made: `examine` the records, then `place` those that the split keeps."""

    def __init__(self, images_dir: Path, staging: Path, params: ImageParams, engine: Engine, shards: bool) -> None:
        self.images_dir = images_dir
        self.staging = staging
        self.params = params
        self.engine = engine
        self.shards = shards
        self.index = read_index(images_dir, name_recipe(params))
        self.records: Sequence[Record] = []
        self.row_of: dict[str, int] = {}
        self.table = ImageTable.of_size(0)
        self.states = np.zeros(0, np.int8)
        self.known_rows = np.zeros(0, np.int64)  # each record's row in the index, or -1
        self.rejected: dict[int, str] = {}
        self.staged: list[Path] = []  # files or folders in staging, one for each chunk
        self.staged_in = np.zeros(0, np.int32)  # each record's place in `staged`, or -1
        self.offsets = np.zeros(0, np.int64)  # of each PNG in its file in staging

    def examine(self, records: Sequence[Record], encode: bool = True) -> Verdict:
        """Check every image. With `encode`, new and damaged PNGs are made in staging.

        Raises InputError for an array that is no image.
        """
        self.records = sorted(records, key=lambda record: record.key)
        count = len(self.records)
        self.row_of = {record.key: row for row, record in enumerate(self.records)}
        self.table = ImageTable.of_size(count)
        self.states = np.zeros(count, np.int8)
        self.staged_in = np.full(count, -1, np.int32)
        self.offsets = np.zeros(count, np.int64)
        self.known_rows = self.index.find_rows(list(self.row_of)) if self.index else np.full(count, -1)
        self._examine(np.arange(count), self.index, encode)
        rejected = {self.records[row].key: reason for row, reason in self.rejected.items()}
        return Verdict(Facts(self.table, self.row_of, self.states != State.REJECTED), rejected)

    def place(self, records: Sequence[Record], paths: Sequence[str]) -> tuple[int, Places]:
        """Bring the folder to hold just the PNGs of `records`, at `paths` below it or in shards, and the index.

        The index keeps what is known of every image that was examined, so that another split decodes nothing. Returns
        how many images had to be encoded, and where those of `records` are.
        """
        rows = np.fromiter((self.row_of[record.key] for record in records), np.int64, len(records))
        self._encode(rows[self.states[rows] <= State.KNOWN])
        with report_write_errors(self.images_dir):
            self.images_dir.mkdir(parents=True, exist_ok=True)
            places = self._place_shards(rows) if self.shards else self._place_files(rows, paths)
            self._write_index(rows, places)
            if self.shards:  # the old ones go last: whoever is stopped before leaves a folder that can be read
                remove_strangers(self.images_dir, {INDEX, SEAL, *places.files.tolist()})
        return int(np.count_nonzero(self.states[rows] == State.ENCODED)), places

    # Examining

    def _examine(self, rows: NDArray[np.int64], index: Index | None, encode: bool) -> None:
        """Look at the records of some rows; without `index`, nothing counts as known."""
        work = WorkChunks(self.records, rows, index, self.known_rows)
        turn = len(self.staged)
        staging = Staging(self.staging / str(turn), self.shards, self.images_dir)
        look = partial(look_at, staging=staging, params=self.params, encode=encode)
        limits = limit_decoding(self.params)
        trusted = all(not isinstance(record.image, FileSlice) for record in self.records)
        results: Iterable[tuple[Sequence[Work], Examined | Lost]]
        if trusted and len(rows) <= FEW:
            results = ((chunk, look(chunk)) for chunk in work)
        else:
            results = self.engine.map_contained(look, work, limits, partial(load_work, images_dir=self.images_dir))
        with open_progress("split", len(rows)) as advance:
            for chunk, found in results:
                if isinstance(found, Lost):
                    self._reject(chunk[0].row, found.reason)
                else:
                    self._take_in(chunk, found, staging.name_chunk(chunk), index)
                advance(len(chunk))

    def _reject(self, row: int, reason: str) -> None:
        """Note why an image cannot be used."""
        self.states[row] = State.REJECTED
        self.rejected[row] = reason

    def _take_in(self, chunk: Sequence[Work], found: Examined, staging: Staging, index: Index | None) -> None:
        """Note what became of a chunk."""
        rows = np.array([work.row for work in chunk])
        states = found.states
        self.states[rows] = states
        for place, reason in found.reasons.items():
            self._reject(chunk[place].row, reason)
        made = (states == State.MEASURED) | (states == State.ENCODED)
        self.table.rows[rows[made]] = found.rows[made]
        self.table.remarks.update({chunk[place].row: remark for place, remark in found.remarks.items()})
        if index:
            known = rows[~made & (states != State.REJECTED)]
            before = self.known_rows[known]
            self.table.rows[known] = index.table.rows[before]
            remarks = index.table.remarks
            if remarks:
                pairs = zip(known.tolist(), before.tolist(), strict=True)
                self.table.remarks.update({row: remarks[old] for row, old in pairs if old in remarks})
        offsets = found.offsets or stage_pngs(chunk, found.pngs, staging)
        staged = rows[list(offsets)]
        self.staged_in[staged] = len(self.staged)
        self.offsets[staged] = list(offsets.values())
        self.staged.append(staging.folder)

    def _encode(self, rows: NDArray[np.int64]) -> None:
        """Make the PNGs of rows that were examined before; raises InputError where a file has changed since."""
        before = self.table.rows["source_sha256"][rows]
        self._examine(rows, None, encode=True)
        same = (self.states[rows] == State.ENCODED) & (self.table.rows["source_sha256"][rows] == before)
        if not same.all():
            changed = rows[~same].tolist()
            shown = [f"{self.records[row].source}: {self.rejected.get(row, 'other bytes')}" for row in changed]
            raise InputError(list_findings("files changed while the split was made", shown, "Run the stage again."))

    # Placing

    def _place_files(self, rows: NDArray[np.int64], paths: Sequence[str]) -> Places:
        """Give each PNG its own file at its path."""
        # Texts, since Paths take as long as the system takes to rename a file.
        staging = list(map(str, self.staged))
        places = zip(rows.tolist(), self.staged_in[rows].tolist(), paths, strict=True)
        staged = [
            (f"{staging[place]}/{row}.png", f"{self.images_dir}/{path}") for row, place, path in places if place >= 0
        ]
        # Two steps, since the old place of one may be the new place of another.
        staged += self._take_up(rows, paths)
        remove_strangers(self.images_dir, {INDEX, SEAL, *paths})
        for folder in {target.rpartition("/")[0] for _, target in staged}:
            Path(folder).mkdir(parents=True, exist_ok=True)
        for source, target in staged:
            os.replace(source, target)  # noqa: PTH105
        return Places(np.array([*paths, None], object)[:-1], np.zeros(len(rows), np.int64))

    def _take_up(self, rows: NDArray[np.int64], paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Bring PNGs that lie elsewhere in the folder into staging; where they are then, and where they belong."""
        if not self.index:
            return
        for row, path in zip(rows.tolist(), paths, strict=True):
            if self.states[row] == State.KEPT and (old := self.index.places.files[self.known_rows[row]]) != path:
                here, staged = self.images_dir / old, self.staging / f"{row}.png"
                if here.is_symlink():  # which may be relative, and DVC may have made it
                    shutil.copyfile(here, staged)
                else:
                    here.replace(staged)
                yield str(staged), f"{self.images_dir}/{path}"

    def _place_shards(self, rows: NDArray[np.int64]) -> Places:
        """Write the shards that are not there yet; those that have no place any more are left for the end."""
        order = np.argsort(rows)  # that of the keys
        rows = rows[order]
        lengths = self.table.rows["length"][rows]
        hashes = np.frombuffer(np.ascontiguousarray(self.table.rows["png_sha256"][rows]).tobytes(), "<u8")[::4]
        cuts = cut_shards(lengths, hashes)
        with ThreadPoolExecutor(min(self.engine.jobs, THREADS)) as pool:  # copying leaves the interpreter free
            each = pool.map if self.engine.jobs > 1 else map  # one job is this thread
            whole = set(filter(None, each(self._check_shard, self._list_shards(rows))))
            names = list(each(lambda cut: self._make_shard(rows[slice(*cut)], whole), cuts))
        places = Places(np.empty(len(rows), object), np.zeros(len(rows), np.int64))
        for name, (first, end) in zip(names, cuts, strict=True):
            places.files[order[first:end]] = name
            places.offsets[order[first:end]] = locate_members(lengths[first:end])
        return places

    def _list_shards(self, rows: NDArray[np.int64]) -> set[str]:
        """The shards that hold PNGs of rows now."""
        kept = self.known_rows[rows[self.states[rows] == State.KEPT]]
        return set(self.index.places.files[kept].tolist()) if self.index else set()

    def _check_shard(self, name: str) -> str:
        """The name of a shard that is whole, else ''."""
        return name if name_shard(hash_file(self.images_dir / name)) == name else ""

    def _make_shard(self, rows: NDArray[np.int64], whole: set[str]) -> str:
        """The name of the shard that holds just these rows, which is in the folder then."""
        old = self._find_shard(rows)
        if old in whole:
            return old
        sizes = measure_members(self.table.rows["length"][rows])
        members = (
            self._locate_member(row, size, whole) for row, size in zip(rows.tolist(), sizes.tolist(), strict=True)
        )
        written = self.staging / f"{rows[0]}.tar"
        name = name_shard(write_shard(written, join_segments(members)))
        written.chmod(0o644)
        written.replace(self.images_dir / name)
        return name

    def _find_shard(self, rows: NDArray[np.int64]) -> str:
        """The shard of the index that has just these rows, unchanged; '' where there is none."""
        if not self.index or (self.states[rows] != State.KEPT).any():
            return ""
        places, known = self.index.places, self.known_rows[rows]
        files, offsets = places.files[known], places.offsets[known]
        whole = np.count_nonzero(places.files == files[0]) == len(rows)
        same = (files == files[0]).all() and (offsets == locate_members(self.table.rows["length"][rows])).all()
        return str(files[0]) if whole and same else ""

    def _locate_member(self, row: int, size: int, whole: set[str]) -> Segment:
        """The member of a row, header and padding included: where it is, or made anew where its shard is damaged."""
        if self.staged_in[row] >= 0:
            return self.staged[self.staged_in[row]], int(self.offsets[row]) - BLOCK, size
        if not self.index:
            raise ValueError(f"row {row} has no PNG")
        places, known = self.index.places, self.known_rows[row]
        path, offset = self.images_dir / places.files[known], int(places.offsets[known])
        if places.files[known] in whole:
            return path, offset - BLOCK, size
        png = FileSlice(path, offset, int(self.table.rows["length"][row])).read()
        return make_member(name_member(self.records[row].key), png)

    def _write_index(self, rows: NDArray[np.int64], places: Places) -> None:
        """Write what is known of every image that can be used, and where those of `rows` are."""
        files, offsets = np.full(len(self.records), "", object), np.zeros(len(self.records), np.int64)
        files[rows], offsets[rows] = places.files, places.offsets
        unplaced = files == ""
        self.table.rows["png_sha256"][unplaced] = np.zeros((), "V32")
        self.table.rows["length"][unplaced] = 0
        usable = np.flatnonzero(self.states != State.REJECTED)
        keys = list(self.row_of)
        write_index(self.images_dir, name_recipe(self.params), keys, self.table, Places(files, offsets), usable)


@contextmanager
def open_store(images_dir: Path, params: ImageParams, engine: Engine, shards: bool) -> Generator[ImageStore]:
    """The store over `images_dir`; its staging folder is removed at the end.

    It lies beside the folder itself, not beside a link to it, which may be on another disk: files get there by rename.
    """
    with report_write_errors(images_dir):
        staging = make_unfinished(Path(os.path.realpath(images_dir)).parent)
    try:
        yield ImageStore(images_dir, staging, params, engine, shards)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class WorkChunks(Sequence[Sequence[Work]]):
    """The work in chunks of at most CHUNK_IMAGES images and, but for a single one, CHUNK_BYTES of source bytes.

    A chunk is made when it is asked for, so that few of them take memory at a time.
    """

    def __init__(
        self,
        records: Sequence[Record],
        rows: NDArray[np.int64],
        known: Index | None,
        known_rows: NDArray[np.int64],
    ) -> None:
        self.records = records
        self.rows = rows
        self.known = known
        self.known_rows = known_rows
        self.cuts = list(cut_chunks([measure_source(records[row]) for row in rows.tolist()]))

    def __len__(self) -> int:
        return len(self.cuts)

    @overload
    def __getitem__(self, index: int) -> list[Work]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[list[Work]]: ...
    def __getitem__(self, index: int | slice) -> list[Work] | Sequence[list[Work]]:
        if isinstance(index, slice):
            raise TypeError("chunks are asked for one by one")
        first, end = self.cuts[index]
        rows = self.rows[first:end]
        works = zip(rows.tolist(), self._recall(self.known_rows[rows]), strict=True)
        return [
            Work(row, (record := self.records[row]).key, record.source, record.image, known) for row, known in works
        ]

    def _recall(self, places: NDArray[np.int64]) -> Iterator[Known | None]:
        """What the index knows of some images, by their places there; None where that is -1."""
        if self.known is None:
            yield from [None] * len(places)
            return
        rows = self.known.table.rows[places]
        sources, pngs = (np.ascontiguousarray(rows[name]).tobytes() for name in ("source_sha256", "png_sha256"))
        files, offsets = self.known.places.files[places], self.known.places.offsets[places].tolist()
        pieces = zip(places.tolist(), files.tolist(), offsets, rows["length"].tolist(), strict=True)
        for start, (place, file, offset, length) in zip(range(0, len(sources), 32), pieces, strict=True):
            png = (file, offset, length) if file else None
            known = Known(sources[start : start + 32], pngs[start : start + 32], png, offset > 0)
            yield known if place >= 0 else None


def measure_source(record: Record) -> int:
    """Bytes of the record's array or file, which counts FILE_BYTES at least."""
    if isinstance(record.image, FileSlice):
        return max(record.image.length or 0, FILE_BYTES)
    return record.image.nbytes


def cut_chunks(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and past-the-last place of each chunk."""
    first, total = 0, 0
    for place, size in enumerate(sizes):
        if place > first and (place - first == CHUNK_IMAGES or total + size > CHUNK_BYTES):
            yield first, place
            first, total = place, 0
        total += size
    if sizes:
        yield first, len(sizes)


def limit_decoding(params: ImageParams) -> Limits:
    """What a process that decodes images of anybody's may use."""
    return Limits(SECONDS, MEMORY + MEMORY_PER_PIXEL * params.max_pixels)


def look_at(works: Sequence[Work], staging: Staging, params: ImageParams, encode: bool) -> Examined:
    """`examine_images` with a place in staging that is this chunk's own."""
    return examine_images(works, staging.name_chunk(works), params, encode)


def locate_members(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in a shard the data of each member begin."""
    sizes = measure_members(lengths)
    return np.cumsum(sizes) - sizes + BLOCK


def remove_strangers(images_dir: Path, wanted: set[str]) -> None:
    """Remove every file whose path below `images_dir` is not `wanted`, every linked folder, and those left empty."""
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
