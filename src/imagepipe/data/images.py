"""Decoding image files, single ones or members of shards: one when it is asked for, a chunk of them in a worker.

Workers import this module, and each starts anew: what is heavy does not belong here.
"""

import hashlib
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import digest_pixels
from imagepipe.core.slices import PNG_SIGNATURE, ImageFiles, blame_machine
from imagepipe.data.png import MODES, Shape, inflate_png, unfilter_rows

# What Pillow raises on bytes that are no image, or a damaged one; ValueError of a PNG's chunks that are too short.
DECODER_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
RUN_BYTES = 2**18  # of plain PNGs whose filters are undone at once: fits a processor's cache


class OtherMode(InputError):
    """The image has a mode in which pixels alone do not say what is to be seen, or not in 8 bits."""


@dataclass(frozen=True, slots=True)
class RowHashes:
    """What rows are known by: `values` (N, 32) uint8.

    They are the SHA-256 of the pixels, as manifests have them (`hash_pixels`), or `of_files` (`hash_content`).
    """

    values: NDArray[np.uint8]
    of_files: bool = False

    def take(self, positions: slice | NDArray[np.int64]) -> "RowHashes":
        """Those at `positions`, in that order."""
        return RowHashes(self.values[positions], self.of_files)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images for one worker, and what they are known by where anything is."""

    files: ImageFiles
    hashes: RowHashes | None

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The uint8 pixels of some images one after the other, their shapes (N, 3) int32 as (H, W, C), and where those are
    that are not what their hashes promise."""

    pixels: bytes
    shapes: NDArray[np.int32]
    wrong: list[str]


def open_image(files: ImageFiles, index: int) -> Image.Image:
    """The decoded PIL image, upright; of L, RGB and RGBA nothing but the pixels, as `make_image` makes it of these.

    Raises InputError, naming the file, where it is absent or cannot be decoded.
    """
    image = decode_image(files, index, read_file(files, index, files))
    return make_image(get_pixels(image)) if image.mode in MODES.values() else image


def read_pixels(files: ImageFiles, index: int) -> NDArray[np.uint8]:
    """The image as uint8 (H, W, C), upright; C is 1 for grey, 3 for RGB, 4 for RGBA.

    Raises InputError as `open_image` does, and OtherMode (one of them) for other modes.
    """
    return decode_pixels(files, index, read_file(files, index, files))


def make_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """The PIL image of uint8 (H, W, C); Pillow copies the pixels before it changes one."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def measure_image(files: ImageFiles, index: int) -> int:
    """Bytes of the image once it is decoded, from its header."""
    try:
        with Image.open(io.BytesIO(read_file(files, index, files))) as image:
            return image.width * image.height * len(image.getbands())
    except DECODER_ERRORS as error:
        raise make_error(files, index, error) from error


def hash_content(data: bytes) -> bytes:
    """What a file is known by whose pixels' hash nobody wrote down: SHA-256 of Pillow's version and the bytes."""
    digest = hashlib.sha256(f"Pillow {PIL.__version__}\n".encode())
    digest.update(data)
    return digest.digest()


def hash_chunk(chunk: Chunk) -> bytes:
    """`hash_content` of each file, one after the other; raises InputError where one cannot be read."""
    with FileReader(chunk.files) as reader:
        return b"".join(hash_content(read_file(chunk.files, index, reader)) for index in range(len(chunk)))


def decode_chunk(chunk: Chunk) -> Decoded:
    """The pixels of a chunk; raises InputError as `read_pixels` does."""
    files, hashes = chunk.files, chunk.hashes
    runs: list[NDArray[np.uint8]] = []
    found: list[bytes] = []
    with FileReader(files) as reader:
        for images, contents in decode_runs(files, reader):
            runs.append(images)
            if hashes is not None and hashes.of_files:
                found += map(hash_content, contents)
            elif hashes is not None:
                found += [digest_pixels(MODES[image.shape[2]], image) for image in images]
    wrong: list[str] = []
    if hashes is not None:
        values = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)
        wrong = [files.describe(index) for index in np.flatnonzero((values != hashes.values).any(axis=1)).tolist()]
    shapes = np.repeat(np.array([run.shape[1:] for run in runs], np.int32), [len(run) for run in runs], axis=0)
    return Decoded(b"".join(run.data for run in runs), shapes, wrong)


def decode_runs(files: ImageFiles, reader: "FileReader") -> Iterator[tuple[NDArray[np.uint8], list[bytes]]]:
    """All images in order, as uint8 (n, H, W, C) with the bytes of their files.

    Plain PNGs of one shape that follow one another come together, all others alone. Raises InputError as `read_pixels`
    does, of the first image that gives cause.
    """
    shape: Shape = (0, 0, 0)
    rows: list[bytes] = []
    contents: list[bytes] = []
    for index in range(len(files)):
        data = read_file(files, index, reader)
        plain = inflate_png(data)
        if rows and (plain is None or plain[0] != shape or len(rows) * len(rows[0]) >= RUN_BYTES):
            yield unfilter_rows(shape, rows), contents
            rows, contents = [], []
        if plain is None:
            yield decode_pixels(files, index, data)[None], [data]
        else:
            shape = plain[0]
            rows.append(plain[1])
            contents.append(data)
    if rows:
        yield unfilter_rows(shape, rows), contents


class FileReader:
    """Reads image files in turn; the shard that was read last stays open, so that its images cost no opening each."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self._name = ""
        self._size = 0
        self._shard: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read(self, index: int) -> bytes:
        """As `ImageFiles.read`."""
        files = self.files
        if files.shards is None or files.offsets is None or files.lengths is None:
            return files.read(index)
        shard = self._open(files.shards[index])
        offset, length = int(files.offsets[index]), int(files.lengths[index])
        if offset + length > self._size:
            return files.read(index)  # which says what is wrong
        shard.seek(offset)
        data = shard.read(length)
        return data if len(data) == length else files.read(index)

    def _open(self, name: str) -> BinaryIO:
        if self._shard is None or self._name != name:
            self._close()
            self._name, self._shard = name, (self.files.folder / name).open("rb")
            self._size = os.fstat(self._shard.fileno()).st_size
        return self._shard

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def read_file(files: ImageFiles, index: int, reader: ImageFiles | FileReader) -> bytes:
    """The bytes of one file; raises InputError, naming it, where it cannot be read, EnvironmentFault where that is the
    machine's fault."""
    try:
        return reader.read(index)
    except FileNotFoundError as error:
        raise InputError(f"{files.describe(index)}: no such image; is the image folder the right one?") from error
    except OSError as error:
        blame_machine(error, files.describe(index))
        raise InputError(
            f"{files.describe(index)}: cannot be read ({error.strerror or error}); run the split stage again."
        ) from error


def decode_image(files: ImageFiles, index: int, data: bytes) -> Image.Image:
    """The PIL image that the bytes of a file hold, upright."""
    try:
        # Most are PNGs: for small ones, asking each of Pillow's formats takes an eighth of the time.
        formats = ["PNG"] if data.startswith(PNG_SIGNATURE) else None
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.load()
    except DECODER_ERRORS as error:
        raise make_error(files, index, error) from error
    if image.info:
        stand_upright(image)
    return image


def decode_pixels(files: ImageFiles, index: int, data: bytes) -> NDArray[np.uint8]:
    """As `read_pixels`, of the bytes of the file."""
    image = decode_image(files, index, data)
    if image.mode not in MODES.values():
        raise OtherMode(
            f"{files.describe(index)}: mode {image.mode}; expected L, RGB or RGBA. Give a transform that converts it."
        )
    return get_pixels(image)


def get_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, C) of an image of one of MODES."""
    # What np.asarray gives, in less time.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def stand_upright(image: Image.Image) -> None:
    """Turn the image as its Exif orientation says, as the split stage does; broken metadata say nothing."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return


def make_error(files: ImageFiles, index: int, error: Exception) -> InputError:
    """What to tell of a file that is no image, or a damaged one."""
    return InputError(f"{files.describe(index)}: cannot be decoded ({error}); run the split stage again.")
