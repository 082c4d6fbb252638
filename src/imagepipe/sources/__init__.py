"""Where labelled images come from. To add a source: one module with `fetch` and `read_records`, one line in SOURCES."""

from pathlib import Path
from types import ModuleType

from imagepipe.core.errors import InputError, list_findings, suggest_name
from imagepipe.core.files import hash_file
from imagepipe.core.run import RunParams
from imagepipe.sources import digits, torchvision_sets
from imagepipe.sources.params import NO_FOLDER, FetchParams
from imagepipe.sources.records import Record, SourceInfo, read_source_info, write_source_info

SOURCES: dict[str, ModuleType] = {
    "digits": digits,
    "torchvision": torchvision_sets,
}


def fetch_source(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Put the original files of the source that `params` names into the empty folder `raw_dir`, with `source.json`.

    Raises InputError where `fetch.path` names a folder that the source would not read, and whatever the source raises.
    """
    if params.path != NO_FOLDER:
        raise InputError(
            f"params.yaml: fetch.path: found {params.path}, but the source `{params.source}` reads no folder; "
            f"expected {NO_FOLDER}."
        )
    info: SourceInfo = find_source(params.source, "params.yaml: fetch.source").fetch(params, run, raw_dir)
    write_source_info(raw_dir, info)
    return info


def read_records(raw_dir: Path) -> tuple[list[Record], SourceInfo]:
    """Every labelled image in `raw_dir`, as the source named in its `source.json` reads them."""
    info = read_source_info(raw_dir)
    check_files(raw_dir, info)
    return find_source(info.source, f"{raw_dir}/source.json: source").read_records(raw_dir, info), info


def check_files(raw_dir: Path, info: SourceInfo) -> None:
    """Raise InputError where a file is not the one that was fetched."""
    changed: list[str] = []
    for name, expected in info.files.items():
        found = hash_file(raw_dir / name) if (raw_dir / name).is_file() else "absent"
        if found != expected:
            changed.append(f"{raw_dir / name}: SHA-256 is {found}, expected {expected}")
    if changed:
        raise InputError(list_findings("files changed since they were fetched", changed, "Run the fetch stage again."))


def find_source(name: str, where: str) -> ModuleType:
    """The module of the source `name`; raises InputError, naming `where`, with the known names."""
    if name not in SOURCES:
        raise InputError(f"{where}: unknown source `{name}`; {suggest_name(name, SOURCES)}.")
    return SOURCES[name]
