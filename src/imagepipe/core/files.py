"""The one place that writes files: aside first, then renamed, so that a reader sees the old or the new, never a part.

What is written here is the same bytes for the same content: JSON with sorted keys and rounded numbers, CSV with LF.
"""

import csv
import errno
import json
import math
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from imagepipe.core.errors import DiskFault, EnvironmentFault
from imagepipe.core.unfinished import is_unfinished, make_unfinished, name_unfinished, remove_abandoned

PIECES = 10  # of rows of a table that are written at once; a piece is what pandas itself formats at once


def sync_path(path: Path) -> None:
    """Make what a file holds, or renames inside a folder, survive a power loss (a no-op on Windows, where folders
    cannot be opened).

    As in PostgreSQL's `fsync_fname`, a file system that syncs no folders, and says EBADF or EINVAL, is let off.
    """
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder`, and itself, survive a power loss."""
    for name, _, files in os.walk(folder, topdown=False):
        for file in files:
            sync_path(Path(name, file))
        sync_path(Path(name))


@dataclass(slots=True)
class Need:
    """How many bytes a write needs at least, as far as is known."""

    bytes: int = 0


@contextmanager
def report_write_errors(path: Path) -> Generator[Need]:
    """Turn an `OSError` while writing into a message that names the path and the system's reason.

    For a full disk it says the bytes that are free, too, and those needed where the block has told what it yields; or
    that there are too many files.
    """
    need = Need()
    try:
        yield need
    except OSError as error:
        room = f" ({describe_room(path, need.bytes)})" if error.errno == errno.ENOSPC else ""
        raise DiskFault(
            f"{path}: cannot be written: {error.strerror or error}{room}. "
            "Make room or change the permissions, then run the stage again; nothing half-written was left."
        ) from error


def describe_room(path: Path, needed: int) -> str:
    """The bytes that are free on the disk that `path` lies on, or would lie on, beside those `needed`; or that
    it can hold no further file."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if os.name == "posix":
        disk = os.statvfs(folder)
        if disk.f_files and not disk.f_favail:
            return "no inodes are left: there are too many files; delete some, or set split.layout to shards"
    free = shutil.disk_usage(folder).free
    return f"at least {needed:,} bytes are needed, {free:,} are free" if needed else f"{free:,} bytes are free"


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write `data` to `path` at once: temporary in the same folder, fsync, rename, fsync of the folder.

    Without `durable` nothing is fsynced: for what is written anew soon, or whose damage after a power loss would be
    noticed. Nor is it in a folder that is written aside, since all of that is before it takes its place. Raises
    EnvironmentFault where the system refuses (disk full, read-only, permission).
    """
    write_blocks(path, [data], durable)


def write_blocks(path: Path, blocks: Iterable[bytes], durable: bool = True) -> None:
    """As `write_bytes`, for what is made piece by piece, so that it need not be in memory at once."""
    durable = durable and not is_unfinished(path.parent)
    with report_write_errors(path) as need:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        temporary = path.with_name(name_unfinished())
        try:
            with temporary.open("xb") as file:
                for block in blocks:
                    need.bytes += len(block)
                    file.write(block)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_path(path.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file into a folder that is written aside.

    Raises EnvironmentFault, naming that one of the two at which the system refuses.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise EnvironmentFault(
            f"{source}: cannot be read: {error.strerror or error}. Change its permissions, then run the stage again."
        ) from error
    with file, report_write_errors(target) as need, target.open("wb") as out:
        need.bytes = os.fstat(file.fileno()).st_size
        shutil.copyfileobj(file, out)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write UTF-8 with the line endings that `text` has."""
    write_bytes(path, text.encode("utf-8"), durable)


def round_numbers(value: Any, digits: int) -> Any:
    """`value` with every float in it rounded to `digits` decimals; a NaN or infinity is a ValueError."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in a JSON file")
        return round(value, digits)
    if isinstance(value, Mapping):
        return {key: round_numbers(item, digits) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [round_numbers(item, digits) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def write_json(path: Path, value: Any, digits: int = 6, durable: bool = True) -> None:
    """Write `value` as JSON with sorted keys, floats rounded to `digits` decimals, no NaN, a final newline."""
    text = json.dumps(round_numbers(value, digits), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n", durable)


def write_csv(path: Path, table: pd.DataFrame, rows: NDArray[np.int64] | None = None, durable: bool = True) -> None:
    """Write the table as UTF-8 CSV with a header and LF, without the index; or its rows at the positions `rows`."""
    write_blocks(path, format_csv(table, np.arange(len(table)) if rows is None else rows), durable)


def format_csv(table: pd.DataFrame, rows: NDArray[np.int64]) -> Generator[bytes]:
    """The header, then the rows, some at a time: whole pieces of what pandas would take at once."""
    some = PIECES * max(1, 100_000 // max(1, table.shape[1]))
    # CR is what Python's csv module leaves unquoted when LF ends the lines.
    quoting = csv.QUOTE_NONNUMERIC if holds_cr(table, rows) else csv.QUOTE_MINIMAL
    yield table.iloc[:0].to_csv(index=False, lineterminator="\n", quoting=quoting).encode("utf-8")
    for first in range(0, len(rows), some):
        part = table.iloc[rows[first : first + some]]
        plain = format_plain(part) if quoting == csv.QUOTE_MINIMAL else None
        if plain is None:
            text = part.to_csv(index=False, header=False, lineterminator="\n", quoting=quoting)
            plain = text.encode("utf-8")
        yield plain


def holds_cr(table: pd.DataFrame, rows: NDArray[np.int64]) -> bool:
    """Whether a column's name, or a cell of the `rows`, holds a CR."""
    if any("\r" in str(name) for name in table.columns):
        return True
    for column in list_columns(table):
        if isinstance(column.dtype, pd.StringDtype):
            found = column.str.contains("\r", regex=False, na=False).to_numpy(bool)
        elif column.dtype.kind in "biuf":
            continue
        else:
            found = np.array(["\r" in str(value) for value in column], bool)
        if found[rows].any():
            return True
    return False


def list_columns(table: pd.DataFrame) -> list[pd.Series]:
    """The columns in order, whatever they are called."""
    return [table.iloc[:, position] for position in range(table.shape[1])]


def format_plain(table: pd.DataFrame) -> bytes | None:
    """The rows as Arrow writes them, many times faster, where that is the same: text that needs no quotes, and whole
    numbers; else None. A column alone is not plain, for its empty cells have quotes."""
    is_text = [isinstance(kind, pd.StringDtype) for kind in table.dtypes]
    if len(is_text) < 2 or not all(text or kind.kind in "iu" for text, kind in zip(is_text, table.dtypes, strict=True)):
        return None
    columns = list(map(pa.array, list_columns(table)))
    out = pa.BufferOutputStream()
    options = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
    try:
        arrow_csv.write_csv(pa.table(columns, list(map(str, range(len(columns))))), out, options)
    except pa.ArrowInvalid:  # a cell holds a quote, a comma or a line end
        return None
    return out.getvalue().to_pybytes()


@contextmanager
def replace_directory(path: Path) -> Generator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it takes the place of `path`, else it is removed.

    What stood at `path` before is gone only once the new folder is complete.
    """
    with report_write_errors(path):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        staging = make_unfinished(path.parent)
    previous = path.with_name(name_unfinished())
    try:
        yield staging
        with report_write_errors(path):
            staging.chmod(0o755)
            sync_tree(staging)
            if path.exists():
                path.rename(previous)
            staging.rename(path)
            sync_path(path.parent)
    except BaseException:
        if previous.exists() and not path.exists():
            previous.rename(path)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
