"""Trees of files that a user brings: a folder, read where it is, or an archive, whose members lie in `data/raw`."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.hashes import hash_file
from imagepipe.core.run import RunParams, find_cache_root
from imagepipe.core.slices import FileSlice, blame_machine
from imagepipe.sources.archive import list_members, repack_archive
from imagepipe.sources.download import obtain_archive
from imagepipe.sources.names import describe_litter, escape, is_litter, show_name
from imagepipe.sources.params import NO_FOLDER, FetchParams
from imagepipe.sources.records import SourceInfo

FILES = "files.tar"  # the members of the user's archive, in data/raw
ARCHIVE_ENDING = re.compile(r"(\.tar)?\.\w+$")
NOT_STATED = "not stated"
TABLES = (".csv", ".tsv", ".parquet")  # endings of files that a table is read from


@dataclass(frozen=True, slots=True)
class Tree:
    """Files by their POSIX path below the root; every folder's path; what a reader of the data should know; which of
    the files were read through links."""

    files: Mapping[str, FileSlice]
    folders: frozenset[str]
    notes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def list_tables(tree: Tree) -> list[str]:
    """The files that a table may be read from."""
    return [name for name in tree.files if name.lower().endswith(TABLES)]


def obtain_tree(params: FetchParams, run: RunParams, raw_dir: Path) -> Tree:
    """The tree that `fetch.path` or `fetch.url` names; an archive's members are put into `raw_dir`, a folder stays.

    Raises InputError where there is no such folder or archive, it is refused, or its SHA-256 is another; warns of a
    folder that other workspaces do not see, and of links that lead out of it.
    """
    if params.options:
        raise InputError(f"params.yaml: fetch.options: the source `{params.source}` has none; set it to ''.")
    most_bytes = params.max_gigabytes * 10**9
    if params.url:
        if params.path != NO_FOLDER:
            raise InputError(
                f"params.yaml: fetch.path is {params.path} and fetch.url is given too; with a url it is {NO_FOLDER}."
            )
        archive = obtain_archive(params.url, params.sha256, most_bytes, find_cache_root(run))
        return unpack(archive, raw_dir, most_bytes)
    path = Path(params.path)
    if path.is_dir():
        if params.sha256:
            raise InputError(
                f"params.yaml: fetch.sha256 is that of an archive, but {path} is a folder; set it to ''. "
                "DVC hashes the folder's files."
            )
        warn_untracked(path)
        tree = list_folder(path)
        warn_links(path, tree.links)
        return tree
    if path.is_file() and path.suffix.lower() in TABLES:
        raise InputError(
            f"params.yaml: fetch.path: {path} is a table; name its folder there, set fetch.source to `table` and "
            f"fetch.table.file to {path.name}."
        )
    if not path.is_file():
        found = "neither a folder nor a file" if path.exists() else "not there"
        raise InputError(f"params.yaml: fetch.path: {path} is {found}; name a folder or an archive.")
    found = hash_file(path) if params.sha256 else ""
    if found != params.sha256:
        raise InputError(
            f"{path}: SHA-256 is {found}, but fetch.sha256 in params.yaml is {params.sha256}; put the right archive "
            "there, or accept this one by changing fetch.sha256."
        )
    warn_untracked(path)
    return unpack(path, raw_dir, most_bytes)


def unpack(archive: Path, raw_dir: Path, most_bytes: int) -> Tree:
    """The members of the archive, in `raw_dir`."""
    notes = repack_archive(archive, raw_dir / FILES, most_bytes)
    return make_tree(list_members(raw_dir / FILES), notes)


def open_tree(source: Path, raw_dir: Path, info: SourceInfo) -> Tree:
    """The tree that was fetched: the members in `raw_dir`, or the folder `source`."""
    return make_tree(list_members(raw_dir / FILES)) if FILES in info.files else list_folder(source)


def describe_tree(params: FetchParams, raw_dir: Path, classes: Iterable[str], notes: Iterable[str]) -> SourceInfo:
    """What `source.json` says of a user's own data."""
    held = raw_dir / FILES
    name = PurePosixPath(show_place(params)).name
    if held.is_file():
        name = ARCHIVE_ENDING.sub("", name)
    return SourceInfo(
        source=params.source,
        name=params.name or name,
        options={},
        licence=NOT_STATED,
        citation=NOT_STATED,
        homepage=show_place(params) if params.url else NOT_STATED,
        classes=list(classes),
        files={FILES: hash_file(held)} if held.is_file() else {},
        notes=list(notes),
    )


def make_tree(files: Mapping[str, FileSlice], notes: Iterable[str] = ()) -> Tree:
    """The tree of an archive's members; its folders are those that hold something."""
    filled = {name.rpartition("/")[0] for name in files} - {""}
    folders = {folder for name in filled for folder in list_folders(name)}
    return Tree(sort_files(files), frozenset(folders), tuple(notes))


def list_folders(name: str) -> list[str]:
    """`a`, `a/b` and `a/b/c` of the folder `a/b/c`."""
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def sort_files(files: Mapping[str, FileSlice]) -> dict[str, FileSlice]:
    """The files in the order of their names."""
    return {name: files[name] for name in sorted(files)}


def list_folder(root: Path) -> Tree:
    """Every plain file below `root`, in sorted order; links to files are followed, links to folders are not.

    Raises InputError where a folder cannot be read.
    """
    files: dict[str, FileSlice] = {}
    folders: set[str] = set()
    left_out: Counter[str] = Counter()
    others: list[str] = []
    links: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        for entry in scan_folder(root / below):
            name = f"{below}/{entry.name}" if below else entry.name
            if is_litter(entry.name):
                left_out[entry.name] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.add(name)
                waiting.append(name)
            elif file := slice_file(entry.path):
                files[name] = file
                if file.length is not None and entry.is_symlink():
                    links.append(name)
            else:
                others.append(show_name(name))
    notes = describe_litter(left_out)
    if others:
        notes.append(
            list_findings("links to folders and what is no plain file are not followed or read", sorted(others))
        )
    return Tree(sort_files(files), frozenset(folders), tuple(notes), tuple(sorted(links)))


def scan_folder(folder: Path) -> Generator[os.DirEntry[str]]:
    """What lies in `folder`; raises InputError where the system does not say, EnvironmentFault where that is the
    machine's fault."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        blame_machine(error, escape(str(folder)))
        raise InputError(
            f"{escape(str(folder))}: cannot be read: {error.strerror}. Name a folder that can be read in fetch.path in "
            "params.yaml."
        ) from error


def slice_file(path: str) -> FileSlice | None:
    """All of a plain file; of a link that leads nowhere a slice that cannot be read, so that it is reported as missing.

    None for anything else: a link to a folder, a FIFO, a device. Raises EnvironmentFault where the machine is at fault.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 (for a million files, a Path for each takes as long as the system)
    except OSError as error:
        blame_machine(error, escape(path))
        return FileSlice(path, 0, None)
    return FileSlice(path, 0, status.st_size) if stat.S_ISREG(status.st_mode) else None


def warn_untracked(path: Path) -> None:
    """Warn of what neither Git nor DVC has: a queued experiment, which runs elsewhere, will not find it."""
    if is_dvc_tracked(path):
        return
    if not path.resolve().is_relative_to(Path.cwd().resolve()):
        warnings.warn(
            f"{path} lies outside the project: `dvc repro` works here, but other machines and clones will not find it "
            "(copy it into the project and `dvc add` it there, or set fetch.url to its address)",
            stacklevel=2,
        )
        return
    untracked = list_untracked(path)
    if untracked:
        what = f"{path} is" if untracked == [path] else f"{len(untracked)} entries in {path}, {untracked[0]} first, are"
        warnings.warn(
            f"{escape(what)} tracked neither by Git nor by DVC: `dvc repro` works, but queued experiments and other "
            f"clones will not see it all (`dvc add {shlex.quote(str(path))}` changes that)",
            stacklevel=2,
        )


def warn_links(folder: Path, links: Sequence[str]) -> None:
    """Warn of links in `folder` to files outside of it; where DVC has the folder, they are its own, into its cache."""
    if is_dvc_tracked(folder):
        return
    root = folder.resolve()
    outside = [show_name(name) for name in links if not (folder / name).resolve().is_relative_to(root)]
    if outside:
        shown = ", ".join(outside[:3]) + (", …" if len(outside) > 3 else "")
        warnings.warn(
            f"{escape(str(folder))}: links to files outside of it are followed ({len(outside)}): {shown}; other clones "
            "may not have those files: put copies in place of the links, unless they are meant",
            stacklevel=2,
        )


def is_dvc_tracked(path: Path) -> bool:
    """Whether a `.dvc` file stands for the path or for a folder above it."""
    return any(owner.with_name(f"{owner.name}.dvc").is_file() for owner in (path, *path.parents) if owner.name)


def list_untracked(path: Path) -> list[Path]:
    """What Git does not have of the path and no `.dvc` file stands for; the path itself where Git has nothing of it."""
    if not shutil.which("git"):
        return []
    command = ["git", "--literal-pathspecs", "ls-files", "-z", "--others", "--directory", "--no-empty-directory"]
    listed = subprocess.run([*command, "--", path], capture_output=True, check=False)  # noqa: S603
    if listed.returncode:
        return [path]  # no repository
    names = map(Path, filter(None, os.fsdecode(listed.stdout).split("\0")))
    return [name for name in names if not is_litter(name.name) and not is_dvc_tracked(name)]


def show_place(params: FetchParams) -> str:
    """Where the tree comes from, for messages and `source.json`: an address only without what may be secret in it."""
    if not params.url:
        return params.path
    address = urlsplit(params.url)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
