"""Plain PNGs of few pixels, many at once: for such an image Pillow's Python side takes longer than decoding it.

PNG specification (W3C, third edition): section 5 for the chunks, section 9 ('Filtering') for the rows.
"""

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagepipe.core.slices import PNG_SIGNATURE

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by values per pixel
CHANNELS = {0: 1, 2: 3, 6: 4}  # by colour type: grey, RGB, RGBA
FILTERS = bytes(range(5))  # None, Sub, Up, Average, Paeth
END = b"\0\0\0\0IEND\xae\x42\x60\x82"
HEAD = 33  # bytes of the signature and IHDR
IDAT = HEAD + 8  # where the compressed rows begin in a file that has nothing before them
TAIL = 4 + len(END)  # bytes behind them
# Of pixels. Beside Pillow's way, 28×28 grey ones take 0.38 of the time, 32×32 RGB ones 0.55; from here on there is
# nothing to gain, since what Pillow adds to the decoding is lost in it.
MOST_BYTES = 2**15

Shape = tuple[int, int, int]


def inflate_png(data: bytes) -> tuple[Shape, bytes] | None:
    """The shape (H, W, C) of a plain PNG, and its H rows, each a filter's number and W * C filtered bytes.

    Plain is one of at most MOST_BYTES in 8 bits, grey, RGB or RGBA, not interlaced, that consists of IHDR, one IDAT and
    IEND. None for all others, and where anything is wrong: it is Pillow that knows them, and what to say of them.
    """
    shape = read_header(data[:HEAD])
    length = int.from_bytes(data[HEAD : HEAD + 4])  # of all that is between, where there is nothing else
    if shape is None or length != len(data) - IDAT - TAIL or data[HEAD + 4 : IDAT] != b"IDAT" or data[-12:] != END:
        return None
    height, width, channels = shape
    row = 1 + width * channels
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(data[IDAT:-TAIL], height * row + 1)  # no more: it may be a bomb
    except zlib.error:
        return None
    # Pillow does not look at the CRC of IDAT; `eof` says that the sum of what was inflated is right.
    if not inflater.eof or len(rows) != height * row or rows[::row].translate(None, FILTERS):
        return None
    return shape, rows


@lru_cache(maxsize=256)  # the images of a set have few sizes
def read_header(head: bytes) -> Shape | None:
    """The shape (H, W, C) that the signature and IHDR promise; None where it is not plain or has another CRC."""
    if len(head) < HEAD or not head.startswith(PNG_SIGNATURE + b"\0\0\0\rIHDR"):
        return None
    width, height, depth, colour, compression, filtering, interlace, crc = struct.unpack_from(">IIBBBBBI", head, 16)
    if (depth, compression, filtering, interlace) != (8, 0, 0, 0) or crc != zlib.crc32(head[12:29]):
        return None
    shape = (height, width, CHANNELS.get(colour, 0))
    return shape if 0 < height * width * shape[2] <= MOST_BYTES else None


def unfilter_rows(shape: Shape, images: Sequence[bytes]) -> NDArray[np.uint8]:
    """The uint8 pixels (N, H, W, C) of N images of one shape (H, W, C), from their rows as `inflate_png` gives them.

    A filter looks at the row above, and above the first there are zeros (section 9.2). So the images can stand below
    one another, a row of zeros before each, and Pillow's decoder, which wants them deflated, undoes all at once.
    """
    height, width, channels = shape
    zeros = bytes(1 + width * channels)
    tall = zlib.compress(b"".join([part for rows in images for part in (zeros, rows)]), level=0)
    mode = MODES[channels]
    image = Image.frombytes(mode, (width, len(images) * (1 + height)), tall, "zip", mode)
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(len(images), 1 + height, width, channels)
    return np.ascontiguousarray(pixels[:, 1:])
