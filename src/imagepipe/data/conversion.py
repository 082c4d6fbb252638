"""Images of the user's that are in no manifest, brought to what a model was trained on by the code that split has.

Worker processes read and convert chunks of them, of which few are in memory at a time. Workers import this module, and
each starts anew: what is heavy does not belong here.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from imagepipe.core.errors import InputError
from imagepipe.core.manifest import ImageInfo
from imagepipe.core.parallel import LocalEngine, Lost
from imagepipe.core.slices import FileSlice
from imagepipe.data.png import END, HEAD, TAIL, inflate_png, unfilter_rows
from imagepipe.prepare.examination import NO_MEMORY, read_slice
from imagepipe.prepare.images import UnusableImage, convert_array, decode_image
from imagepipe.prepare.params import ImageParams
from imagepipe.prepare.store import CHUNK_BYTES, limit_decoding

CHUNK = 500  # images that a worker converts at once, at most
CHUNK_PIXELS = 8 * 2**20  # bytes of converted pixels: bounds what workers and the pipes between hold

Report = Callable[[str, str], None]


class Foreign(NamedTuple):
    """An image of the user's: the path by which it was named or found, and its file, or why there is none to read."""

    path: str
    file: FileSlice | str


@dataclass(frozen=True, slots=True)
class Conversion:
    """`params` are `split.image` as the split stage had it, `image` the mode and size that its images had in the end.

    They differ where split kept what the images were: then all had one mode and size, which others need not have.
    """

    params: ImageParams
    image: ImageInfo

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the model's images."""
        return self.image.height, self.image.width, self.image.channels

    @property
    def last_step(self) -> ImageParams:
        """What brings an image that split would have kept as it is to the model's mode and size."""
        height, width, _ = self.shape
        return self.params.model_copy(update={"mode": self.image.mode, "height": height, "width": width})


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of some images: the pixels (n, H, W, C) uint8 of those that can be used, in order, and by place why
    others cannot; and how often which remark was made on them."""

    pixels: NDArray[np.uint8]
    reasons: dict[int, str]
    remarks: Counter[str]


def read_conversion(described: Mapping[str, int | str], image: ImageInfo, model_path: str) -> Conversion:
    """What a model file says of it (`ModelInfo`); raises InputError where this version does not understand it."""
    try:
        return Conversion(ImageParams.model_validate(described), image)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("split.image", *first["loc"])))
        raise InputError(
            f"{model_path}: how its images were converted cannot be read: {where}: {first['msg']}; train it again."
        ) from error


def bring_batches(
    images: Iterable[Foreign],
    conversion: Conversion,
    engine: LocalEngine,
    batch_size: int,
    report: Report,
    remarks: Counter[str],
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """The paths and the pixels (B, H, W, C) uint8 of the images that can be used, in batches of `batch_size`.

    Of the others, `report` gets the path and the reason; what is remarkable is counted in `remarks`.
    """
    most = max(1, min(CHUNK, batch_size, CHUNK_PIXELS // int(np.prod(conversion.shape))))
    convert = partial(convert_files, conversion=conversion)
    found = engine.map_contained(convert, cut_chunks(images, most), limit_decoding(conversion.params))
    paths: list[str] = []
    parts: list[NDArray[np.uint8]] = []
    for chunk, converted in found:
        if isinstance(converted, Lost):
            report(chunk[0].path, converted.reason)
            continue
        for place, reason in converted.reasons.items():
            report(chunk[place].path, reason)
        remarks.update(converted.remarks)
        paths += [image.path for place, image in enumerate(chunk) if place not in converted.reasons]
        parts.append(converted.pixels)
        if len(paths) >= batch_size:
            pixels = np.concatenate(parts)
            yield paths[:batch_size], pixels[:batch_size]
            paths, parts = paths[batch_size:], [pixels[batch_size:]]
    if paths:
        yield paths, np.concatenate(parts)


def cut_chunks(found: Iterable[Foreign], most: int) -> Iterator[list[Foreign]]:
    """The images in chunks of at most `most` and, but for a single one, CHUNK_BYTES of files."""
    chunk: list[Foreign] = []
    size = 0
    for one in found:
        length = 0 if isinstance(one.file, str) else one.file.length or 0
        if chunk and (len(chunk) == most or size + length > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += length
    if chunk:
        yield chunk


def convert_files(images: Sequence[Foreign], conversion: Conversion) -> Converted:
    """Read and convert some images."""
    pixels = np.empty((len(images), *conversion.shape), np.uint8)
    plain: dict[int, bytes] = {}
    found = Converted(pixels, {}, Counter())
    for place, image in enumerate(images):
        try:
            data = read_foreign(image)
            rows = inflate_plain(data, conversion)
            if rows is None:
                pixels[place], remarks = convert_image(data, conversion)
                found.remarks.update(remarks)
            else:
                plain[place] = rows
        except UnusableImage as error:
            found.reasons[place] = str(error)
        except MemoryError:
            found.reasons[place] = NO_MEMORY
    if plain:
        pixels[list(plain)] = unfilter_rows(conversion.shape, list(plain.values()))
    usable = [place for place in range(len(images)) if place not in found.reasons]
    return Converted(pixels[usable], found.reasons, found.remarks) if found.reasons else found


def read_foreign(image: Foreign) -> bytes:
    """The bytes of the file; raises UnusableImage where there is none, or it cannot be read."""
    if isinstance(image.file, str):
        raise UnusableImage(image.file)
    return read_slice(image.file)


def inflate_plain(data: bytes, conversion: Conversion) -> bytes | None:
    """The rows of a small PNG in the model's very mode and size, of which nothing but the filters is to be undone.

    None for everything else, and where anything is wrong. What `inflate_png` does not look at, the checksum over the
    compressed rows, is looked at here, as split does with every file.
    """
    found = inflate_png(data)
    if found is None or found[0] != conversion.shape or "PNG" not in conversion.params.formats.split():
        return None
    height, width, _ = conversion.shape
    checksum = int.from_bytes(data[-TAIL : -len(END)])
    if height * width > conversion.params.max_pixels or zlib.crc32(data[HEAD + 4 : -TAIL]) != checksum:
        return None
    return found[1]


def convert_image(data: bytes, conversion: Conversion) -> tuple[NDArray[np.uint8], list[str]]:
    """The pixels (H, W, C) of any image, and what its owner may want to know; raises UnusableImage."""
    decoded = decode_image(data, conversion.params)
    fitted = convert_array(decoded.pixels, conversion.last_step)
    remarks = [decoded.remark] if decoded.remark else []
    if fitted.pixels is not decoded.pixels:
        height, width, _ = conversion.shape
        remarks.append(f"brought to {conversion.image.mode} {width}×{height}, as all were that the model was made from")
    return fitted.pixels.reshape(conversion.shape), remarks
