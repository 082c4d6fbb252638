"""What becomes of an image, found out in a worker process: checked, decoded, encoded, or known from the run before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagepipe.core.files import report_write_errors
from imagepipe.core.hashes import digest_pixels, hash_bytes
from imagepipe.core.shards import BLOCK, COPY, make_member, name_member
from imagepipe.core.slices import FileSlice, blame_machine
from imagepipe.prepare.images import (
    Decoded,
    UnusableImage,
    check_array,
    convert_array,
    decode_image,
    encode_png,
    name_mode,
)
from imagepipe.prepare.index import FACTS, pack_hashes, put_facts
from imagepipe.prepare.params import ImageParams

NO_MEMORY = "needs more memory than its process may have"
RUN_BYTES = 2**20  # of pixels that wait to be encoded: small images by the hundred, a photograph alone


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

    def reject(self, place: int, reason: str) -> None:
        """Note why an image cannot be used."""
        self.states[place] = State.REJECTED
        self.reasons[place] = reason


class New(NamedTuple):
    """An image that is not known, and its place among those of its chunk; the hashes are of 32 bytes."""

    place: int
    source_sha256: bytes
    pixel_sha256: bytes
    decoded: Decoded


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
    """What becomes of each of some images; with `encode`, those that lack a PNG get one.

    What is new is held until it makes a run, whose images are measured and encoded together: with other work in
    between, the encoder takes a quarter more time for a digit.
    """
    found = Examined(np.zeros(len(works), FACTS), np.zeros(len(works), np.int8), {}, {}, {}, {})
    run: list[New] = []
    held = 0
    for place, work in enumerate(works):
        try:
            held += examine_image(work, place, run, found, staging, params, encode)
        except UnusableImage as error:
            found.reject(place, str(error))
        except MemoryError:
            found.reject(place, NO_MEMORY)
        if held >= RUN_BYTES:
            settle_run(run, found, encode)
            run, held = [], 0
    settle_run(run, found, encode)
    pngs = dict(sorted(found.pngs.items()))
    if works[0].away:
        return replace(found, pngs=pngs)
    return replace(found, pngs={}, offsets=stage_pngs(works, pngs, staging))


def examine_image(
    work: Work, place: int, run: list[New], found: Examined, staging: Staging, params: ImageParams, encode: bool
) -> int:
    """Note in `found` what becomes of an image that is known, and add a new one, decoded, to `run`.

    Returns the bytes that `run` holds of it. Raises UnusableImage.
    """
    source = read_source(work)
    source_sha256 = hash_source(source)
    known = work.known
    if known and known.source_sha256 == source_sha256:
        png = read_intact(known, staging.images_dir)
        if png is not None and known.sharded != staging.shards:
            found.states[place], found.pngs[place] = State.CARRIED, png
            return 0
        if png is not None or known.png is None or not encode:
            found.states[place] = State.KNOWN if png is None else State.KEPT
            return 0
    decoded = decode_image(source, params) if isinstance(source, bytes) else convert_array(source, params)
    pixels = decoded.pixels
    if decoded.remark:
        found.remarks[place] = decoded.remark
    run.append(New(place, source_sha256, source_sha256 if pixels is source else hash_source(pixels), decoded))
    return pixels.nbytes + len(decoded.png)


def settle_run(run: Sequence[New], found: Examined, encode: bool) -> None:
    """Note the facts of a run's images in `found`, and with `encode` their PNGs.

    Where memory does not suffice, they are taken one by one, and that for which it does not is rejected.
    """
    try:
        settle_images(run, found, encode)
        return
    except MemoryError:
        if len(run) == 1:
            found.reject(run[0].place, NO_MEMORY)
            return
    for new in run:
        settle_run([new], found, encode)


def settle_images(run: Sequence[New], found: Examined, encode: bool) -> None:
    """As `settle_run`, at once or not at all."""
    places = [new.place for new in run]
    rows = np.zeros(len(run), FACTS)
    put_facts(rows, [new.decoded.pixels for new in run])
    rows["source_sha256"] = pack_hashes([new.source_sha256 for new in run])
    rows["pixel_sha256"] = pack_hashes([new.pixel_sha256 for new in run])
    contents = [bytes.fromhex(new.decoded.content_sha256) or new.pixel_sha256 for new in run]
    rows["content_sha256"] = pack_hashes(contents)
    if encode:
        pngs = [new.decoded.png or encode_png(new.decoded.pixels) for new in run]
        rows["png_sha256"] = pack_hashes([bytes.fromhex(hash_bytes(png)) for png in pngs])
        rows["length"] = [len(png) for png in pngs]
        found.pngs.update(zip(places, pngs, strict=True))
    found.rows[places] = rows
    found.states[places] = State.ENCODED if encode else State.MEASURED


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
    """The bytes of an image's file; raises UnusableImage where they cannot be read, EnvironmentFault where that is the
    machine's fault."""
    try:
        return file.read()
    except OSError as error:
        blame_machine(error, file.path)
        raise UnusableImage(f"cannot be read: {error.strerror or error}") from error


def hash_source(source: bytes | NDArray[np.uint8]) -> bytes:
    """SHA-256 of a file's bytes, or of an array's pixels: 32 bytes."""
    if isinstance(source, bytes):
        return bytes.fromhex(hash_bytes(source))
    return digest_pixels(name_mode(source), source)


def read_intact(known: Known, images_dir: Path) -> bytes | None:
    """The PNG with the bytes that the index promises; None where it has others, is gone, or is below a linked folder.

    Such a folder has no place among the images: its link is removed, and what it shows goes with it.
    """
    png = known.png
    if isinstance(png, tuple):
        path, offset, length = png
        if is_below_link(images_dir, path):
            return None
        try:
            png = FileSlice(images_dir / path, offset, length).read()
        except OSError:
            return None
    return png if png is not None and bytes.fromhex(hash_bytes(png)) == known.png_sha256 else None


def is_below_link(images_dir: Path, path: str) -> bool:
    """Whether a folder between the image folder and the file at `path` below it is a link."""
    folders = accumulate(path.split("/")[:-1], "{}/{}".format)
    return any((images_dir / folder).is_symlink() for folder in folders)


def stage_pngs(works: Sequence[Work], pngs: dict[int, bytes], staging: Staging) -> dict[int, int]:
    """Write PNGs (by place among `works`) to staging; returns where in the staging file each of them begins, or 0.

    A file that is there is written anew: a process that was lost may have left a part of it. Raises EnvironmentFault
    where it cannot be written.
    """
    if not pngs:
        return {}
    with report_write_errors(staging.images_dir) as need:
        need.bytes = sum(map(len, pngs.values()))
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
    end = 0
    with path.open("wb", buffering=COPY) as file:
        for place, png in pngs.items():
            offsets[place] = end + BLOCK
            end += file.write(make_member(name_member(works[place].key), png))
    return offsets
