"""Trees of small files as folders and archives, and the params of a fetch."""

import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagepipe.core.slices import FileSlice
from imagepipe.sources import fetch_source, read_records
from imagepipe.sources.params import FetchParams, TableParams
from imagepipe.sources.records import Record, SourceInfo
from tests.core.made import make_run

RUN = make_run()
NO_TABLE = TableParams(file="", images="", path="", label="", split="", group="")


def make_params(source: str = "digits", path: Path | str = "data/source", **changes: Any) -> FetchParams:
    values: dict[str, Any] = {"name": "", "options": "", "url": "", "sha256": "", "max_gigabytes": 1}
    values |= {"classes": "data/classes/all.csv", "table": NO_TABLE}
    return FetchParams(source=source, path=str(path), **(values | changes))


def make_table_params(**changes: str) -> TableParams:
    return NO_TABLE.model_copy(update=changes)


def write_files(folder: Path, *names: str) -> Path:
    """Files that each hold their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return folder


def pack(folder: Path, target: Path) -> Path:
    """The files of `folder` in an archive whose kind its name says, in an order that is not sorted."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name[::-1])
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(folder))
        return target
    kind = target.suffix.removeprefix(".").removeprefix("tar")
    with tarfile.open(target, f"w:{kind}") as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for path in files:
            archive.add(path, path.relative_to(folder))
    return target


def fetch_and_read(params: FetchParams, raw_dir: Path) -> tuple[list[Record], SourceInfo]:
    """What both stages do, one after the other, with `raw_dir` made anew."""
    raw_dir.mkdir(parents=True)
    fetch_source(params, RUN, raw_dir)
    return read_records(Path(params.path), raw_dir)


def write_chosen(path: Path, pairs: Mapping[str, str]) -> str:
    """A file for `fetch.classes`."""
    path.write_text("class,as\n" + "".join(f"{name},{new}\n" for name, new in pairs.items()), "utf-8")
    return str(path)


def read_bytes(record: Record) -> bytes:
    assert isinstance(record.image, FileSlice)
    return record.image.read()
