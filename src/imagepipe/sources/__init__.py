"""Where labelled images come from. To add a source: one module with `fetch` and `read_records`, one line in SOURCES."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from imagepipe.core.errors import InputError, list_findings, suggest_name
from imagepipe.core.hashes import hash_file
from imagepipe.core.run import RunParams
from imagepipe.sources import digits, folder, table, torchvision_sets
from imagepipe.sources.classes import check_chosen, check_twins, read_chosen
from imagepipe.sources.params import NO_FOLDER, FetchParams
from imagepipe.sources.records import Record, SourceInfo, read_source_info, write_source_info

SOURCES: dict[str, ModuleType] = {
    "digits": digits,
    "torchvision": torchvision_sets,
    "folder": folder,
    "table": table,
}


def fetch_source(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Put the original files of the source that `params` names into the empty folder `raw_dir`, with `source.json`.

    Raises InputError where params name a place that the source would not read, or classes that it lacks, and whatever
    the source raises.
    """
    source = find_source(params.source, "params.yaml: fetch.source")
    reads_disk = getattr(source, "READS_DISK", False)
    if not reads_disk:
        check_no_place(params)
    chosen = read_chosen(Path(params.classes))
    info: SourceInfo = source.fetch(params, run, raw_dir)
    if reads_disk:
        check_twins(info.classes, chosen)
    check_chosen(Path(params.classes), chosen, [*info.classes, *info.empty_classes])
    info = info.model_copy(update={"chosen": chosen})
    write_source_info(raw_dir, info)
    return info


def check_no_place(params: FetchParams) -> None:
    """Raise InputError where a source that reads no folder is given one, or an address."""
    if params.path != NO_FOLDER:
        raise InputError(
            f"params.yaml: fetch.path: found {params.path}, but the source `{params.source}` reads no folder; "
            f"expected {NO_FOLDER}."
        )
    if params.url or params.sha256:
        raise InputError(
            f"params.yaml: fetch.url and fetch.sha256: the source `{params.source}` has its own addresses; set both "
            "to ''."
        )


def read_records(source: Path, raw_dir: Path) -> tuple[list[Record], SourceInfo]:
    """Every labelled image of the classes that were chosen, under the names that they have here.

    `source` is the folder that `fetch.path` names, `raw_dir` what fetch made.
    """
    info = read_source_info(raw_dir)
    check_files(raw_dir, info)
    module = find_source(info.source, f"{raw_dir}/source.json: source")
    records: list[Record] = module.read_records(source, raw_dir, info)
    if not info.chosen:
        return records, info
    names = dict(info.chosen)
    kept = [replace(record, class_name=names[record.class_name]) for record in records if record.class_name in names]
    return kept, info


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
