"""Tar shards: many images in few files, which any tar or WebDataset reader understands, and we read by offset.

A shard is a plain USTAR file of members without owner or time, in the order of their keys. Where one shard ends and the
next begins is decided by the images themselves, so that the bytes do not depend on what was there before, and an image
more or less changes the shards around it only (content-defined chunking: Muthitacharoen, Chen, Mazières, 'A
Low-bandwidth Network File System', 2001).
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SMALLEST = 32 * 2**20  # bytes of members below which no shard ends but the last
LARGEST = 128 * 2**20  # bytes of members that a shard of more than one image does not exceed
BLOCK = tarfile.BLOCKSIZE
COPY = 2**20

Segment = tuple[Path, int, int] | bytes  # a file with the offset and the length of some of its bytes; or bytes


def name_member(key: str) -> str:
    """What the image of a record is called in its shard.

    `<key>.png`, but for dots in the last part, which WebDataset would take for the beginning of the ending, and for
    names that USTAR has no room for, which are the SHA-256 of the key.
    """
    folder, slash, name = key.rpartition("/")
    member = f"{folder}{slash}{name.replace('.', '%2E')}.png"
    return member if fits_header(member) else f"{hashlib.sha256(key.encode()).hexdigest()}.png"


def fits_header(name: str) -> bool:
    """Whether USTAR can hold the name: 100 bytes, or 155 more for folders in front of a slash."""
    data = name.encode()
    if len(data) <= tarfile.LENGTH_NAME:
        return True
    cut = data.rfind(b"/", 0, tarfile.LENGTH_PREFIX + 1)
    return cut > 0 and len(data) - cut - 1 <= tarfile.LENGTH_NAME


def make_member(name: str, data: bytes) -> bytes:
    """Header, data and padding of one member; the data begin BLOCK bytes after the member."""
    return b"".join((make_header(name, len(data)), data, bytes(-len(data) % BLOCK)))


def make_header(name: str, length: int) -> bytes:
    """The USTAR header of a regular file of mode 0644 that nobody owns, of 1970.

    Filled into the form that tarfile makes, in a tenth of its time; names that need the field for folders, and files
    of 8 GiB, are left to it.
    """
    data = name.encode()
    if len(data) > tarfile.LENGTH_NAME or length >= 8**11:
        return make_tar_info(name, length)
    form, total = make_form()
    size = b"%011o" % length
    total += sum(data) + sum(size)
    name_field = data.ljust(tarfile.LENGTH_NAME, b"\0")
    return b"".join((name_field, form[100:124], size, form[135:148], b"%06o" % total, form[154:]))


@cache
def make_form() -> tuple[bytes, int]:
    """The header of an empty file without a name, and its checksum but for the eleven digits of the size."""
    form = make_tar_info("", 0)
    return form, int(form[148:154], 8) - 11 * ord("0")


def make_tar_info(name: str, length: int) -> bytes:
    """The header as tarfile makes it."""
    info = tarfile.TarInfo(name)
    info.size = length
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def measure_members(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that members with data of `lengths` take in a tar."""
    return BLOCK + (lengths + BLOCK - 1) // BLOCK * BLOCK


def cut_shards(lengths: NDArray[np.int64], hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """First and past-the-last place of each shard, for images in the order of their keys.

    `lengths` (N,) are the bytes of their files, `hashes` (N,) 64 bits of their contents' hashes. From SMALLEST on, a
    shard ends behind an image with the probability that its bytes have of SMALLEST, so that shards hold twice SMALLEST
    in the mean.
    """
    sizes = measure_members(lengths)
    ends = np.cumsum(sizes)
    closing = np.flatnonzero(hashes < (np.minimum(sizes / SMALLEST, 1.0) * (2.0**64 - 2**12)).astype(np.uint64))
    cuts: list[tuple[int, int]] = []
    first = 0
    while first < len(sizes):
        start = int(ends[first] - sizes[first])
        least = int(np.searchsorted(ends, start + SMALLEST))  # the image with which SMALLEST is reached
        most = int(np.searchsorted(ends, start + LARGEST, side="right"))  # past the last one that still fits
        place = int(np.searchsorted(closing, least))
        end = int(closing[place]) + 1 if place < len(closing) else len(sizes)
        end = max(min(end, most), first + 1)
        cuts.append((first, end))
        first = end
    return cuts


def write_shard(path: Path, segments: Iterable[Segment]) -> str:
    """Write the members that stand in the segments as a tar to the new file `path`; returns its SHA-256.

    Raises OSError, also where a segment ends too early.
    """
    digest = hashlib.sha256()
    with path.open("xb") as out:
        for segment in segments:
            for data in read_segment(segment):
                digest.update(data)
                out.write(data)
        end = bytes(2 * BLOCK + -(out.tell() + 2 * BLOCK) % tarfile.RECORDSIZE)
        digest.update(end)
        out.write(end)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def read_segment(segment: Segment) -> Iterator[bytes]:
    """The bytes of a segment in pieces; raises OSError where its file ends too early."""
    if isinstance(segment, bytes):
        yield segment
        return
    path, offset, length = segment
    with path.open("rb") as file:
        file.seek(offset)
        while length:
            data = file.read(min(length, COPY))
            if not data:
                raise OSError(f"{path.name} ends too early: it was cut while it was read")
            yield data
            length -= len(data)


def name_shard(sha256: str) -> str:
    """A shard is called by its content, so that an unchanged one keeps its name and a damaged one is known."""
    return f"{sha256[:32]}.tar"


def join_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The same bytes with few segments: those that follow on each other in one file are one."""
    last: Segment = b""
    for segment in segments:
        if isinstance(last, bytes) or isinstance(segment, bytes):
            yield last
            last = segment
        elif last[0] == segment[0] and last[1] + last[2] == segment[1]:
            last = (last[0], last[1], last[2] + segment[2])
        else:
            yield last
            last = segment
    yield last
