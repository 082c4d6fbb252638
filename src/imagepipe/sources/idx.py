"""IDX, the format of MNIST and its kin (http://yann.lecun.com/exdb/mnist/): a magic number, sizes, then the values."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagepipe.core.errors import InputError

# Third byte of the magic number → big-endian type of the values.
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> NDArray[Any]:
    """The array in a gzipped IDX file, in its own shape, in the machine's byte order.

    Raises InputError, naming the file, where it is cut, not gzip or not IDX.
    """
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); fetch it again.") from error
    return parse_idx(data, path)


def parse_idx(data: bytes, path: Path) -> NDArray[Any]:
    """The array in the bytes of an IDX file; `path` is for messages only."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in DTYPES:
        raise InputError(f"{path}: begins with {data[:4].hex(' ')}, which is not IDX; fetch it again.")
    dtype, rank = np.dtype(DTYPES[data[2]]), data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise InputError(f"{path}: ends inside its header; fetch it again.")
    shape = tuple(np.frombuffer(data, ">u4", rank, 4).tolist())
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - header != expected:
        raise InputError(f"{path}: holds {len(data) - header} bytes of values, expected {expected} for {shape}.")
    try:
        values = np.frombuffer(data, dtype, offset=header).reshape(shape)
    except ValueError as error:
        raise InputError(
            f"{path}: has the sizes {shape}, which no array can have ({error}); fetch it again."
        ) from error
    return values.astype(dtype.newbyteorder("="), copy=False)
