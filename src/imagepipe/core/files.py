"""The one place that writes files: aside first, then renamed, so that a reader sees the old or the new, never a part.

What is written here is the same bytes for the same content: JSON with sorted keys and rounded numbers, CSV with LF.
"""

import csv
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from imagepipe.core.errors import EnvironmentFault


def hash_bytes(data: bytes) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """The file's digest in hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power loss (a no-op where folders cannot be opened, as on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def report_write_errors(path: Path) -> Generator[None]:
    """Turn an `OSError` while writing into a message that names the path and the system's reason."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be written: {error.strerror or error}. "
            "Make room or change the permissions, then run the stage again; nothing half-written was left."
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` at once: temporary in the same folder, fsync, rename, fsync of the folder.

    Raises EnvironmentFault where the system refuses (disk full, read-only, permission).
    """
    with report_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the line endings that `text` has."""
    write_bytes(path, text.encode("utf-8"))


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


def write_json(path: Path, value: Any, digits: int = 6) -> None:
    """Write `value` as JSON with sorted keys, floats rounded to `digits` decimals, no NaN, a final newline."""
    rounded = round_numbers(value, digits)
    write_text(path, json.dumps(rounded, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write the table as UTF-8 CSV with a header and LF, without the index."""
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which Python's csv module leaves unquoted when LF ends the lines
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(path, text)


@contextmanager
def replace_directory(path: Path) -> Generator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it takes the place of `path`, else it is removed.

    What stood at `path` before is gone only once the new folder is complete.
    """
    with report_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield staging
        with report_write_errors(path):
            staging.chmod(0o755)
            previous = staging.with_name(f"{staging.name}.old.part")
            if path.exists():
                path.rename(previous)
            try:
                staging.rename(path)
            except OSError:
                if previous.exists():
                    previous.rename(path)
                raise
            sync_directory(path.parent)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
