"""Decoded images: in memory, or once and for all in a cache on disk.

An entry of the cache is a folder for one list of images:

| file | holds |
|---|---|
| `pixels.bin` | the uint8 pixels, image after image |
| `hashes.bin` | what each image is known by, 32 bytes each (`RowHashes`); the folder's name is their hash |
| `shapes.bin` | (H, W, C) of each image as little-endian int32, where these differ |
| `entry.json` | count, shape, size, and the SHA-256 of `shapes.bin` and of every block of pixels |
| `entry.json.sha256` | the SHA-256 of `entry.json` |

Nothing of it is believed before its hash is checked, so that writing needs no fsync and damage is mended by decoding.
"""

import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.hashes import hash_bytes
from imagepipe.core.parallel import LocalEngine
from imagepipe.core.run import RunParams, find_cache_root
from imagepipe.core.slices import ImageFiles
from imagepipe.core.unfinished import make_unfinished, name_unfinished, read_time
from imagepipe.data.images import Chunk, Decoded, RowHashes, decode_chunk, hash_chunk, measure_image

FORMAT = 1  # of the entries, and of what decoding makes of a file; entries of another are left alone
PIXELS, HASHES, SHAPES = "pixels.bin", "hashes.bin", "shapes.bin"
DESCRIPTION, DESCRIPTION_HASH = "entry.json", "entry.json.sha256"
BLOCK = 16 * 2**20  # bytes of pixels that one hash covers, and one thread checks
PIECE = 2**20  # bytes read at once: they are hashed while the processor still has them at hand
CHUNK = 1000  # images that a worker decodes at once, at most
CHUNK_BYTES = 8 * 2**20  # of decoded pixels: bounds what workers and the pipes between hold
PROBES = 16  # images that are looked at to estimate the size of all

_ENTRY = re.compile(r"v[0-9]+-[0-9a-f]{64}")


class NotKept(Exception):
    """Why decoded images cannot be kept in the cache."""


class DamagedEntry(Exception):
    """What is wrong with an entry of the cache."""


class Pixels:
    """Decoded images in the order of their rows; `pixels[index]` is uint8 (H, W, C), a view that nobody may write to.

    `data` is flat uint8, image after image, and may be a file that is mapped into memory. `shapes` (N, 3) int32 are
    (H, W, C); `odd` is the first image that has another one than image 0, None where all have the same.
    """

    def __init__(self, data: NDArray[np.uint8], shapes: NDArray[np.int32]) -> None:
        self.data = data
        self.shapes = shapes
        self.odd = find_odd(shapes)
        self._flat = np.asarray(data)  # np.memmap is slow to take views of
        if self.odd is None:
            self._images = self._flat.reshape(len(shapes), *(shapes[0].tolist() if len(shapes) else (0, 0, 1)))
        else:
            self._starts = find_starts(shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if self.odd is None:
            return self._images[index]
        index = range(len(self))[index]
        return self._flat[self._starts[index] : self._starts[index + 1]].reshape(self.shapes[index])

    def __reduce__(self) -> tuple[Callable[..., "Pixels"], tuple[object, ...]]:
        """A map goes to another process by its file's name, not by its content."""
        if isinstance(self.data, np.memmap):
            return map_pixels, (self.data.filename, self.data.size, self.shapes)
        return Pixels, (self.data, self.shapes)

    @property
    def images(self) -> NDArray[np.uint8]:
        """All of them as uint8 (N, H, W, C), without copying; raises InputError where their shapes differ."""
        if self.odd is not None:
            raise InputError(f"image {self.odd}: {self.describe_odd(self.odd)}")
        return self._images

    def describe_odd(self, odd: int) -> str:
        """What to tell where the shape of image `odd` is not that of the first."""
        found, expected = (tuple(self.shapes[index].tolist()) for index in (odd, 0))
        return (
            f"shape (H, W, C) is {found}, but the first image has {expected}; a batch needs images of one size; give a "
            "transform that brings them to one."
        )


def find_odd(shapes: NDArray[np.int32]) -> int | None:
    """The first image whose shape is not that of image 0."""
    odd = np.flatnonzero((shapes != shapes[:1]).any(axis=1))
    return int(odd[0]) if len(odd) else None


def find_starts(shapes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each image of (H, W, C) begins in flat pixels, and where the last one ends: (N + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), shapes.prod(axis=1, dtype=np.int64).cumsum()])


def map_pixels(path: Path, size: int, shapes: NDArray[np.int32]) -> Pixels:
    """The `size` bytes of a file, mapped into memory.

    For reading only: a private map that may be written to counts against the machine's memory, and it can be larger.
    """
    return Pixels(np.memmap(path, np.uint8, "r", shape=(size,)), shapes)


@dataclass(frozen=True, slots=True)
class Held:
    """What other entries hold of some rows: row i is `sources[holders[i]][places[i]]`, unless `holders[i]` is -1."""

    sources: Sequence[Pixels]
    holders: NDArray[np.int64]
    places: NDArray[np.int64]


def decode_pixels(files: ImageFiles, hashes: NDArray[np.uint8] | None, jobs: int) -> Pixels:
    """All images (at least one) decoded into memory by `jobs` processes.

    `hashes` (N, 32) uint8 are the `pixel_sha256` of the manifest, where there is one.

    Raises InputError where an image cannot be decoded or is not what its hash promises.
    """
    return decode_into_memory(files, None if hashes is None else RowHashes(hashes), jobs)


def decode_into_memory(files: ImageFiles, hashes: RowHashes | None, jobs: int) -> Pixels:
    """As `decode_pixels`."""
    out = io.BytesIO()  # grows without a second copy
    shapes = write_images(files, hashes, hold_nothing(len(files)), jobs, out.write)
    return Pixels(np.frombuffer(out.getbuffer(), np.uint8), shapes)


def hold_nothing(count: int) -> Held:
    """No row is held by another entry."""
    return Held([], np.full(count, -1), np.zeros(count, np.int64))


def write_images(
    files: ImageFiles, hashes: RowHashes | None, held: Held, jobs: int, write: Callable[[bytes], object]
) -> NDArray[np.int32]:
    """Decode or copy every image, hand the pixels over in order, and return the shapes (N, 3).

    Raises InputError, listing them, where images are not what their hashes promise.
    """
    shapes = np.empty((len(files), 3), np.int32)
    wrong: list[str] = []
    first = 0
    for part in gather_images(files, hashes, held, jobs):
        write(part.pixels)
        shapes[first : first + len(part.shapes)] = part.shapes
        first += len(part.shapes)
        wrong += part.wrong
    if wrong and hashes is not None and hashes.of_files:
        raise InputError(list_findings("images changed while they were read", wrong, "Run it again."))
    if wrong:
        raise InputError(
            list_findings("images differ from their manifest's pixel_sha256", wrong, "Run the split stage again.")
        )
    return shapes


def gather_images(files: ImageFiles, hashes: RowHashes | None, held: Held, jobs: int) -> Iterator[Decoded]:
    """The images of all rows in chunks, in order; those that other entries hold are not decoded."""
    largest = max(measure_images(files, held), default=1)
    size = max(1, min(CHUNK, CHUNK_BYTES // largest))
    spans = [slice(first, first + size) for first in range(0, len(files), size)]
    chunks = [cut_chunk(files, hashes, held, span) for span in spans]
    decoded = LocalEngine(jobs).map_chunks(decode_chunk, [chunk for chunk in chunks if len(chunk)])
    for span, chunk in zip(spans, chunks, strict=True):
        part = next(decoded) if len(chunk) else Decoded(b"", np.empty((0, 3), np.int32), [])
        yield part if len(chunk) == len(held.holders[span]) else merge_images(part, held, span)


def measure_images(files: ImageFiles, held: Held) -> list[int]:
    """Decoded bytes of a few images, spread over all."""
    probed = np.unique(np.linspace(0, len(files) - 1, min(PROBES, len(files)), dtype=np.int64)).tolist()
    rows = [(index, int(held.holders[index]), int(held.places[index])) for index in probed]
    return [
        held.sources[holder][place].nbytes if holder >= 0 else measure_image(files, index)
        for index, holder, place in rows
    ]


def cut_chunk(files: ImageFiles, hashes: RowHashes | None, held: Held, span: slice) -> Chunk:
    """The images of `span` that no other entry holds."""
    lacking = np.flatnonzero(held.holders[span] < 0)
    chosen = span if len(lacking) == len(held.holders[span]) else lacking + span.start  # a slice copies nothing
    return Chunk(files.take(chosen), None if hashes is None else hashes.take(chosen))


def merge_images(decoded: Decoded, held: Held, span: slice) -> Decoded:
    """The images of `span`: those decoded, and between them those that other entries hold."""
    fresh = Pixels(np.frombuffer(decoded.pixels, np.uint8), decoded.shapes)
    images: list[memoryview] = []
    taken = 0
    for holder, place in zip(held.holders[span].tolist(), held.places[span].tolist(), strict=True):
        images.append((held.sources[holder][place] if holder >= 0 else fresh[taken]).data)
        taken += holder < 0
    return Decoded(b"".join(images), np.array([image.shape for image in images], np.int32), decoded.wrong)


def hash_files(files: ImageFiles, jobs: int) -> RowHashes:
    """What images are known by whose pixels' hashes nobody wrote down (`hash_content`)."""
    chunks = [Chunk(files.take(slice(first, first + CHUNK)), None) for first in range(0, len(files), CHUNK)]
    data = b"".join(LocalEngine(jobs).map_chunks(hash_chunk, chunks))
    return RowHashes(np.frombuffer(data, np.uint8).reshape(-1, 32), of_files=True)


class Description(BaseModel):
    """`entry.json`: `size` bytes of pixels, `blocks` their hashes; `shape` is null where the images differ in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    count: int
    shape: tuple[int, int, int] | None
    size: int
    blocks: list[str]
    shapes_sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry but for its pixels: what its images are known by (N, 32), and their shapes (N, 3)."""

    path: Path
    description: Description
    hashes: NDArray[np.uint8]
    shapes: NDArray[np.int32]


class PixelCache:
    """Decoded images on disk, below `root`: an entry for each list of images that was asked for.

    After a new entry, others are removed: those that this cache has opened stay, since another process may yet map
    them, and of the rest, the one used last first, each that fits into `most_bytes` beside what stays. What has at most
    `memory_bytes` is read into memory; what has more stays in its file, which is mapped.

    The cache only saves work: where it cannot keep images (a full disk, a folder or an entry that cannot be read or
    written, more than `most_bytes` in one list) it warns, and they are decoded into memory.
    """

    def __init__(self, root: Path, most_bytes: int, memory_bytes: int) -> None:
        self.root = root
        self.most_bytes = most_bytes
        self.memory_bytes = memory_bytes
        self._opened: set[str] = set()  # names of entries

    def load(self, files: ImageFiles, hashes: NDArray[np.uint8] | None, jobs: int) -> Pixels:
        """The decoded images (at least one), as `decode_pixels` gives them; only what no entry holds is decoded.

        Without `hashes` the files themselves are hashed, so that a changed one is decoded anew.
        """
        known = hash_files(files, jobs) if hashes is None else RowHashes(hashes)
        entry = self.root / name_entry(known.values)
        try:
            with report_unkept():
                pixels = self._open(entry, jobs)
                return self._build(entry, files, known, jobs) if pixels is None else pixels
        except NotKept as error:
            warnings.warn(f"decoded images are held in memory and not kept in {self.root}: {error}", stacklevel=2)
            return decode_into_memory(files, known, jobs)

    def _open(self, entry: Path, jobs: int) -> Pixels | None:
        """The pixels of an entry; None where there is none, or it is damaged, which removes it with a warning.

        Raises OSError where it cannot be read.
        """
        if not entry.is_dir():
            return None
        try:
            read = read_entry(entry)
            size, blocks = read.description.size, range(len(read.description.blocks))
            if size > self.memory_bytes:
                check_blocks(read, blocks, jobs)
                pixels = map_pixels(entry / PIXELS, size, read.shapes)
            else:
                data = np.empty(size, np.uint8)
                check_blocks(read, blocks, jobs, data.data)
                pixels = Pixels(data, read.shapes)
        except (FileNotFoundError, DamagedEntry) as error:
            discard_damaged(entry, error)
            return None
        with suppress(OSError):  # in a cache that may only be read, nobody counts what is used
            os.utime(entry / DESCRIPTION)
        self._opened.add(entry.name)
        return pixels

    def _build(self, entry: Path, files: ImageFiles, known: RowHashes, jobs: int) -> Pixels:
        """Write the entry aside and put it in its place, unless another process was quicker, and open it.

        Raises NotKept or OSError where that cannot be.
        """
        staging = make_unfinished(self.root)
        try:
            self._write(staging, files, known, self._find_held(entry, known, jobs), jobs)
            if not entry.is_dir():
                staging.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        pixels = self._open(entry, jobs)
        if pixels is None:
            raise NotKept("the new entry was gone or damaged at once")
        self._evict()
        return pixels

    def _write(self, entry: Path, files: ImageFiles, known: RowHashes, held: Held, jobs: int) -> None:
        """All files of an entry; raises NotKept where it would be larger than the whole cache may be."""
        sizes = measure_images(files, held)
        check_size(len(files) * sum(sizes) // len(sizes), self.most_bytes)
        with (entry / PIXELS).open("wb") as file:
            writer = BlockWriter(file, self.most_bytes)
            shapes = write_images(files, known, held, jobs, writer.write)
        known.values.tofile(entry / HASHES)
        uniform = find_odd(shapes) is None
        table = b"" if uniform else shapes.astype("<i4").tobytes()
        if not uniform:
            (entry / SHAPES).write_bytes(table)
        description = Description(
            format=FORMAT,
            count=len(shapes),
            shape=tuple(shapes[0].tolist()) if uniform else None,
            size=writer.size,
            blocks=writer.finish(),
            shapes_sha256=hash_bytes(table),
        )
        text = json.dumps(description.model_dump(), sort_keys=True).encode()
        (entry / DESCRIPTION).write_bytes(text)
        (entry / DESCRIPTION_HASH).write_text(hash_bytes(text) + "\n", "ascii")

    def _find_held(self, entry: Path, known: RowHashes, jobs: int) -> Held:
        """Which rows other entries hold that can be read; the blocks of pixels in which they lie are checked."""
        held = hold_nothing(len(known.values))
        sources: list[Pixels] = []
        for path in list_entries(self.root):
            lacking = np.flatnonzero(held.holders < 0)
            if path == entry or not path.name.startswith(f"v{FORMAT}-") or not len(lacking):
                continue
            try:
                other = read_entry(path)
                places = find_rows(known.values[lacking], other.hashes)
                found = places >= 0
                if not found.any():
                    continue
                check_blocks(other, find_blocks(other.shapes, places[found]), jobs)
                sources.append(map_pixels(path / PIXELS, other.description.size, other.shapes))
            except (FileNotFoundError, DamagedEntry) as error:
                discard_damaged(path, error)
                continue
            except OSError:  # somebody else's, who may find it intact
                continue
            held.holders[lacking[found]] = len(sources) - 1
            held.places[lacking[found]] = places[found]
        return Held(sources, held.holders, held.places)

    def _evict(self) -> None:
        """Remove each entry that does not fit beside those opened here and those that were used after it and stay."""
        total = sum(measure_entry(self.root / name) for name in self._opened)
        for entry in list_entries(self.root):
            if entry.name in self._opened:
                continue
            size = measure_entry(entry)
            if total + size <= self.most_bytes:
                total += size
            else:
                with suppress(OSError):  # somebody else's
                    remove_entry(entry)


def open_cache(run: RunParams) -> PixelCache | None:
    """The cache that the `run:` section asks for; None where it is off."""
    if run.cache == "off":
        return None
    return PixelCache(
        find_cache_root(run) / "pixels", int(run.cache_gigabytes * 10**9), int(run.memory_gigabytes * 10**9)
    )


@contextmanager
def report_unkept() -> Generator[None]:
    """Turn an OSError into NotKept; what cannot be decoded is an InputError and stays one."""
    try:
        yield
    except OSError as error:
        raise NotKept(f"{error.strerror or error}. Make room there, or name another folder in run.cache_dir") from error


def check_size(size: int, most_bytes: int) -> None:
    """Raise NotKept where one entry would be larger than the whole cache may be."""
    if size > most_bytes:
        raise NotKept(
            f"they take {size / 10**9:.3g} GB or more, and run.cache_gigabytes allows {most_bytes / 10**9:.3g} for all"
        )


class BlockWriter:
    """Writes pixels to a file and hashes each block of them on the way."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self.file = file
        self.most_bytes = most_bytes
        self.size = 0
        self._blocks: list[str] = []
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append `data`; raises NotKept before there are more than `most_bytes`."""
        check_size(self.size + len(data), self.most_bytes)
        self.file.write(data)
        view = memoryview(data)
        while len(view):
            part = view[: BLOCK - self.size % BLOCK]
            self._digest.update(part)
            self.size += len(part)
            view = view[len(part) :]
            if self.size % BLOCK == 0:
                self._end_block()

    def finish(self) -> list[str]:
        """The hashes of all blocks, the last of which may be short."""
        if self.size % BLOCK:
            self._end_block()
        return self._blocks

    def _end_block(self) -> None:
        self._blocks.append(self._digest.hexdigest())
        self._digest = hashlib.sha256()


def name_entry(hashes: NDArray[np.uint8]) -> str:
    """The folder of a list of images: the hash of what they are known by, in their order."""
    digest = hashlib.sha256(np.ascontiguousarray(hashes).data)
    return f"v{FORMAT}-{digest.hexdigest()}"


def read_entry(path: Path) -> Entry:
    """Raises DamagedEntry where one of its files, its pixels aside, is not what was written."""
    text, hashes = (path / DESCRIPTION).read_bytes(), np.fromfile(path / HASHES, np.uint8)
    if (path / DESCRIPTION_HASH).read_bytes() != f"{hash_bytes(text)}\n".encode():
        raise DamagedEntry(f"{DESCRIPTION} has another hash")
    if name_entry(hashes) != path.name:
        raise DamagedEntry(f"{HASHES} has another hash")
    description = Description.model_validate_json(text)
    if description.shape is not None:
        shapes = np.broadcast_to(np.array(description.shape, np.int32), (description.count, 3))
        return Entry(path, description, hashes.reshape(-1, 32), shapes)
    table = (path / SHAPES).read_bytes()
    if hash_bytes(table) != description.shapes_sha256:
        raise DamagedEntry(f"{SHAPES} has another hash")
    shapes = np.frombuffer(table, "<i4").astype(np.int32, copy=False).reshape(-1, 3)
    return Entry(path, description, hashes.reshape(-1, 32), shapes)


def check_blocks(entry: Entry, blocks: Sequence[int], jobs: int, into: memoryview | None = None) -> None:
    """Hash those blocks of the pixels, in `jobs` threads, and read them into `into` where that is given.

    Raises DamagedEntry where one is not what was written.
    """

    def is_intact(block: int) -> bool:
        first = block * BLOCK
        length = min(BLOCK, entry.description.size - first)
        target = None if into is None else into[first : first + length]
        return hash_range(entry.path / PIXELS, first, length, target) == entry.description.blocks[block]

    if (entry.path / PIXELS).stat().st_size < entry.description.size:
        raise DamagedEntry(f"{PIXELS} was cut")
    with ThreadPoolExecutor(jobs) as threads:  # hashing and reading leave Python's lock to the others
        for block, intact in zip(blocks, threads.map(is_intact, blocks), strict=True):
            if not intact:
                raise DamagedEntry(f"block {block} of {PIXELS} has another hash")


def hash_range(path: Path, first: int, length: int, into: memoryview | None) -> str:
    """SHA-256 of a part of a file, as far as the file goes; the bytes go `into` where that is given."""
    digest = hashlib.sha256()
    target = memoryview(bytearray(min(PIECE, length))) if into is None else into
    with path.open("rb", buffering=0) as file:
        file.seek(first)
        for start in range(0, length, PIECE):
            size = min(PIECE, length - start)
            piece = target[:size] if into is None else target[start : start + size]
            digest.update(piece[: file.readinto(piece)])
    return digest.hexdigest()


def find_rows(wanted: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each of the hashes `wanted` (N, 32) a row of `table` (M, 32) that is the same, -1 where there is none."""
    beginnings, sought = (np.ascontiguousarray(hashes).view("<u8")[:, 0] for hashes in (table, wanted))
    order = beginnings.argsort()
    rows = order[np.searchsorted(beginnings, sought, sorter=order).clip(max=len(table) - 1)]
    return np.where((table[rows] == wanted).all(axis=1), rows, -1)


def find_blocks(shapes: NDArray[np.int32], rows: NDArray[np.int64]) -> list[int]:
    """The blocks in which the pixels of `rows` lie."""
    starts = find_starts(shapes)
    touched = np.zeros(starts[-1] // BLOCK + 2, np.int64)
    np.add.at(touched, starts[rows] // BLOCK, 1)
    np.add.at(touched, (starts[rows + 1] - 1) // BLOCK + 1, -1)
    return np.flatnonzero(touched.cumsum()).tolist()


def list_entries(root: Path) -> list[Path]:
    """The entries, the one used last first; one without a description, which is damaged, comes last."""
    entries = [path for path in root.iterdir() if _ENTRY.fullmatch(path.name)]
    return sorted(entries, key=lambda path: (-read_time(path / DESCRIPTION), path.name))


def measure_entry(entry: Path) -> int:
    """Bytes of its files; 0 where another process removes it just now, or they cannot be looked at."""
    try:
        return sum(path.stat().st_size for path in entry.iterdir())
    except OSError:
        return 0


def discard_damaged(entry: Path, error: Exception) -> None:
    """Remove an entry with a warning, unless another process has just done so."""
    if entry.is_dir():
        warnings.warn(f"{entry}: damaged ({error}); its images are decoded again.", stacklevel=2)
        with suppress(OSError):  # somebody else's, which nobody believes all the same
            remove_entry(entry)


def remove_entry(entry: Path) -> None:
    """Take an entry out of its place at once, and then its files away."""
    aside = entry.with_name(name_unfinished())
    with suppress(FileNotFoundError):  # another process was quicker
        entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
