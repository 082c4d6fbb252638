"""What becomes of an image, found out in a worker process: checked, decoded, encoded, or known from the run before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagepipe.core.files import report_write_errors
from imagepipe.core.hashes import hash_bytes, hash_pixels
from imagepipe.core.shards import BLOCK, make_member, name_member
from imagepipe.core.slices import FileSlice
from imagepipe.prepare.images import (
    UnusableImage,
    check_array,
    convert_array,
    decode_image,
    encode_png,
    measure_image,
    name_mode,
)
from imagepipe.prepare.index import FACTS, put_facts
from imagepipe.prepare.params import ImageParams

NO_MEMORY = "needs more memory than its process may have"


class State(IntEnum):
    """What became of an image. What comes after KNOWN has a PNG, in the folder or in staging."""

    REJECTED = 0
    MEASURED = 1  # its facts are new, and nobody has asked for its PNG
    KNOWN = 2  # its facts are those of the index, and it has no PNG
    KEPT = 3  # its facts are those of the index, and its PNG lies in the folder as it should
    CARRIED = 4  # the same, and the PNG was copied to staging, since the folder is to be laid out differently
    ENCODED = 5  # facts and PNG are new


class Known(NamedTuple):
    """What the index says of an image: hashes of 32 bytes, and its PNG, which need not be there any more.

    `png` is its path below the image folder, its offset there, and its length in bytes; or its bytes; or None where the
    folder was to hold none.
    """

    source_sha256: bytes
    png_sha256: bytes
    png: tuple[str, int, int] | bytes | None
    sharded: bool


class Work(NamedTuple):
    """One image to look at.

    `image` is the file, its bytes, uint8 pixels (H, W) or (H, W, 3), or the reason why it could not be read. `away` is
    true where the process that looks at it may not see the disk of this machine.
    """

    row: int
    key: str
    source: str
    image: "FileSlice | bytes | NDArray[np.uint8] | UnusableImage"
    known: Known | None
    away: bool = False


@dataclass(frozen=True, slots=True)
class Staging:
    """Where new PNGs wait: in the files `<folder>/<row>.png`, or with `shards` as members of a tar in one file.

    `images_dir` is the folder that they wait for.
    """

    folder: Path
    shards: bool
    images_dir: Path

    def name_chunk(self, works: Sequence[Work]) -> "Staging":
        """A place for some images that no others have: it is called by the row of the first."""
        return replace(self, folder=self.folder.with_name(f"{self.folder.name}-{works[0].row}"))


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of some images, by their place among them.

    `rows` is FACTS (n,), filled where the facts are new; `states` is State (n,). `reasons` say why an image is
    rejected, `remarks` are the images' own. `offsets` say where in the staging file a PNG begins; `pngs` are those that
    were not written, since the process was away.
    """

    rows: NDArray[np.void]
    states: NDArray[np.int8]
    reasons: dict[int, str]
    remarks: dict[int, str]
    offsets: dict[int, int]
    pngs: dict[int, bytes]


def load_work(work: Work, images_dir: Path) -> Work:
    """The work with the bytes of its files, for a process that does not see this machine's disk."""
    known = work.known
    if known and known.png is not None:
        known = known._replace(png=read_intact(known, images_dir) or b"")
    if not isinstance(work.image, FileSlice):
        return work._replace(known=known, away=True)
    try:
        return work._replace(image=read_source(work), known=known, away=True)
    except UnusableImage as error:
        return work._replace(image=error, known=known, away=True)


def examine_images(works: Sequence[Work], staging: Staging, params: ImageParams, encode: bool) -> Examined:
    """What becomes of each of some images; with `encode`, those that lack a PNG get one."""
    found = Examined(np.zeros(len(works), FACTS), np.zeros(len(works), np.int8), {}, {}, {}, {})
    for place, work in enumerate(works):
        try:
            state, png = examine_image(work, found, place, staging, params, encode)
        except UnusableImage as error:
            state, png, found.reasons[place] = State.REJECTED, b"", str(error)
        except MemoryError:
            state, png, found.reasons[place] = State.REJECTED, b"", NO_MEMORY
        found.states[place] = state
        if png:
            found.pngs[place] = png
    if works[0].away:
        return found
    found.offsets.update(stage_pngs(works, found.pngs, staging))
    found.pngs.clear()
    return found


def examine_image(
    work: Work, found: Examined, place: int, staging: Staging, params: ImageParams, encode: bool
) -> tuple[State, bytes]:
    """The state of one image, and its PNG where that is to be staged; new facts and remarks go to `found`.

    Raises UnusableImage.
    """
    source = read_source(work)
    source_sha256 = hash_source(source)
    known = work.known
    if known and known.source_sha256 == source_sha256:
        png = read_intact(known, staging.images_dir)
        if png is not None:
            return (State.KEPT, b"") if known.sharded == staging.shards else (State.CARRIED, png)
        if known.png is None or not encode:
            return State.KNOWN, b""
    decoded = decode_image(source, params) if isinstance(source, bytes) else convert_array(source, params)
    pixel_sha256 = source_sha256.hex() if decoded.pixels is source else ""
    facts = measure_image(decoded.pixels, decoded.remark, decoded.content_sha256, pixel_sha256)
    if decoded.remark:
        found.remarks[place] = decoded.remark
    if not encode:
        put_facts(found.rows, place, facts, source_sha256)
        return State.MEASURED, b""
    png = decoded.png or encode_png(decoded.pixels)
    put_facts(found.rows, place, facts, source_sha256, bytes.fromhex(hash_bytes(png)), len(png))
    return State.ENCODED, png


def read_source(work: Work) -> bytes | NDArray[np.uint8]:
    """The bytes of the image's file, or its pixels; raises UnusableImage where the file cannot be read."""
    image = work.image
    if isinstance(image, UnusableImage):
        raise image
    if isinstance(image, bytes):
        return image
    if not isinstance(image, FileSlice):
        check_array(image, work.source)
        return image
    return read_slice(image)


def read_slice(file: FileSlice) -> bytes:
    """The bytes of an image's file; raises UnusableImage where they cannot be read."""
    try:
        return file.read()
    except OSError as error:
        raise UnusableImage(f"cannot be read: {error.strerror or error}") from error


def hash_source(source: bytes | NDArray[np.uint8]) -> bytes:
    """SHA-256 of a file's bytes, or of an array's pixels: 32 bytes."""
    if isinstance(source, bytes):
        return bytes.fromhex(hash_bytes(source))
    return bytes.fromhex(hash_pixels(name_mode(source), source))


def read_intact(known: Known, images_dir: Path) -> bytes | None:
    """The PNG with the bytes that the index promises; None where it is not there or has others."""
    png = known.png
    if isinstance(png, tuple):
        path, offset, length = png
        try:
            png = FileSlice(images_dir / path, offset, length).read()
        except OSError:
            return None
    return png if png is not None and bytes.fromhex(hash_bytes(png)) == known.png_sha256 else None


def stage_pngs(works: Sequence[Work], pngs: dict[int, bytes], staging: Staging) -> dict[int, int]:
    """Write PNGs (by place among `works`) to staging; returns where in the staging file each of them begins, or 0.

    A file that is there is written anew: a process that was lost may have left a part of it. Raises EnvironmentFault
    where it cannot be written.
    """
    if not pngs:
        return {}
    with report_write_errors(staging.images_dir):
        return (
            write_members(works, pngs, staging.folder) if staging.shards else write_files(works, pngs, staging.folder)
        )


def write_files(works: Sequence[Work], pngs: dict[int, bytes], folder: Path) -> dict[int, int]:
    """Each PNG in a file of its own, called by its row."""
    folder.mkdir(exist_ok=True)
    for place, png in pngs.items():
        (folder / f"{works[place].row}.png").write_bytes(png)
    return dict.fromkeys(pngs, 0)


def write_members(works: Sequence[Work], pngs: dict[int, bytes], path: Path) -> dict[int, int]:
    """All PNGs as members of a tar, one after the other, in one file."""
    offsets: dict[int, int] = {}
    with path.open("wb") as file:
        for place, png in pngs.items():
            offsets[place] = file.tell() + BLOCK
            file.write(make_member(name_member(works[place].key), png))
    return offsets
