"""Where the bytes of an image file are: a file of its own, or a part of a tar that holds many."""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imagepipe.core.errors import EnvironmentFault

if TYPE_CHECKING:
    import pandas as pd

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIECE = 2**16  # bytes read at once: all of a small file
MACHINE = {  # reasons of the system's with which the machine is at fault and not the file, and what helps
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`), or lower run.jobs",
    errno.ENFILE: "Raise the limit of open files of the whole system, or end what has so many open",
    errno.EIO: "Check the disk, and bring the file back from a copy",
    errno.ENOMEM: "Free memory, or lower run.jobs",
    errno.ESTALE: "Mount the network disk again",
}


@dataclass(frozen=True, slots=True)
class FileSlice:
    """The bytes of one image file: all of a file in a folder, or a member of a tar.

    `offset` and `length` are bytes; `length` is None where no such file was found. A text as `path` takes a third of
    the memory that a Path takes.
    """

    path: Path | str
    offset: int
    length: int | None

    def read(self) -> bytes:
        """The bytes; raises OSError where the file is gone or has not the length that it had."""
        if self.length is None:
            raise FileNotFoundError("there is no such file")
        with Path(self.path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b""
            if self.offset + self.length <= size:  # a manifest may say anything, and memory is taken before it is read
                file.seek(self.offset)
                data = file.read(self.length)
        if self.offset and len(data) != self.length:  # a member of a tar, which begins after its header
            raise OSError(f"{Path(self.path).name} ends inside this file: it was cut since it was written")
        if not self.offset and not size == len(data) == self.length:
            raise OSError(f"the file had {self.length} bytes and has {size} now: it changed while it was read")
        return data


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The image files that the rows of a table name, in their order, without a Python object for each.

    `names` (N,) are paths below `folder`. Where the images lie in shards, `shards` (N,) are the tars' names in
    `folder`, and `offsets` and `lengths` (N,) int64 say which bytes of them; else all three are None.
    """

    folder: Path
    names: NDArray[np.object_]
    shards: NDArray[np.object_] | None = None
    offsets: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, index: int) -> str:
        """Where an image is, for messages."""
        if self.shards is None:
            return str(self.folder / self.names[index])
        return f"{self.folder / self.shards[index]} ({self.names[index]})"

    def read(self, index: int) -> bytes:
        """The bytes of one image file; raises OSError where they are not there."""
        if self.shards is None or self.offsets is None or self.lengths is None:
            return read_whole(os.path.join(self.folder, self.names[index]))  # noqa: PTH118
        return FileSlice(self.folder / self.shards[index], int(self.offsets[index]), int(self.lengths[index])).read()

    def take(self, positions: slice | NDArray[np.int64] | Sequence[int]) -> "ImageFiles":
        """Those at `positions`, in that order."""
        if self.shards is None or self.offsets is None or self.lengths is None:
            return ImageFiles(self.folder, self.names[positions])
        return ImageFiles(
            self.folder,
            self.names[positions],
            self.shards[positions],
            self.offsets[positions],
            self.lengths[positions],
        )


def read_whole(path: str) -> bytes:
    """The bytes of a file; raises OSError where it cannot be read, or is a FIFO or a device, which may never end."""
    # For small files, Python's file object takes as long as opening, reading and closing, and so does a Path.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise OSError("is a FIFO or a device; expected a plain file")
        parts: list[bytes] = []
        while part := os.read(descriptor, PIECE):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def blame_machine(error: OSError, where: Path | str) -> None:
    """Raise EnvironmentFault where the machine is at fault that a file cannot be read, and not the file."""
    if error.errno in MACHINE:
        raise EnvironmentFault(
            f"{where}: cannot be read: {error.strerror}. {MACHINE[error.errno]}, then run it again."
        ) from error


def list_image_files(table: "pd.DataFrame", folder: Path, column: str = "path") -> ImageFiles:
    """The files of the rows: the paths in `column` below `folder`, or the slices of the shards that the table names."""
    names = table[column].to_numpy(dtype=object)
    if "shard" not in table.columns:
        return ImageFiles(folder, names)
    return ImageFiles(
        folder,
        names,
        table["shard"].to_numpy(dtype=object),
        table["offset"].to_numpy(dtype=np.int64),
        table["length"].to_numpy(dtype=np.int64),
    )
