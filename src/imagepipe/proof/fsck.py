"""DVC's cache and the workspace, rehashed: what is corrupt, missing or edited, and what brings it back.

DVC believes every object in its cache that is read-only: it checks it out and pushes it. Here nothing is believed.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_file
from imagepipe.core.progress import open_progress

if TYPE_CHECKING:
    from dvc.ignore import DvcIgnoreFilter
    from dvc.repo import Repo

FOLDER = ".dir"  # ends the name of an object that lists the files of a folder
LOCK = Path("dvc.lock")
RUNNING = Path(".dvc/tmp/rwlock")
QUARANTINE = Path(".dvc/tmp/quarantine")
UNCOUNTED = ["size", "nfiles"]  # what DVC leaves out of the hash by which it calls an entry of the run-cache
SHOWN = 3  # workspace paths that are named for one object
MEND = "mend its permissions or its disk"  # what cannot be read


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is not what it was: what is the matter, which paths of the workspace it is for, what to do."""

    path: Path
    trouble: str
    remedy: str
    concerned: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" and {len(self.concerned) - SHOWN} more" if len(self.concerned) > SHOWN else ""
        concerned = f" (for {', '.join(self.concerned[:SHOWN])}{more})" if self.concerned else ""
        return f"{self.path}{concerned}: {self.trouble}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Output:
    """An output as `dvc.lock` or a .dvc file has it.

    `path` is its place in the workspace and `md5` its hash, which ends in `.dir` for a folder; `size` are its bytes,
    where they are known. `cached` says that DVC's cache keeps it, not Git, and `added` that no stage makes it: its user
    has added it, and changes it.
    """

    path: str
    md5: str
    size: int | None
    cached: bool
    added: bool


@dataclass(frozen=True, slots=True)
class Content:
    """What reading a file gave: its MD5, or the system's reason why it cannot be read; neither where it is absent."""

    md5: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Project:
    """What DVC says there is.

    `remote` says that lost objects may be had from elsewhere, and `ignore` leaves out what .dvcignore names.
    """

    cache: Path
    runs: Path
    outputs: list[Output]
    remote: bool
    ignore: "DvcIgnoreFilter"


@dataclass(frozen=True, slots=True)
class Checked:
    """How many objects, entries of the run-cache and outputs were rehashed, and what was found."""

    objects: int
    runs: int
    outputs: int
    findings: list[Finding]


def check_project(quarantine: bool) -> Checked:
    """Rehash the cache and the workspace of the DVC project in the present folder.

    With `quarantine`, what is corrupt in the cache is moved to QUARANTINE, so that DVC knows that it lacks it; what
    cannot be read stays, since nobody knows what it holds. Raises InputError as `open_project` does.
    """
    project, findings = open_project()
    objects, hidden = list_objects(project.cache)
    contents: dict[str, Content] = {}
    with open_progress("fsck", len(objects)) as advance, ThreadPoolExecutor() as pool:  # hashing frees the interpreter
        for name, content in zip(objects, pool.map(hash_object, objects.values()), strict=True):
            if content != Content():  # another command may delete it meanwhile
                contents[name] = content
            advance(1)
    sound = {name: content.md5 == name.removesuffix(FOLDER) for name, content in contents.items()}
    wanted = list(list_wanted(project, sound))
    concerned: dict[str, list[str]] = defaultdict(list)
    for name, path, _ in wanted:
        concerned[name].append(path)
    whole = [output for output in project.outputs if is_whole(project, output, sound)]
    findings += [Finding(path, f"cannot be read: {reason}", MEND) for path, reason in hidden.items()]
    for name in sorted(name for name, good in sound.items() if not good):
        target = next((output for wanted_name, _, output in wanted if wanted_name == name), None)
        remedy, paths = find_remedy(project, target, whole), tuple(concerned[name])
        if contents[name].reason:
            findings.append(describe_unreadable(objects[name], contents[name], remedy, paths))
            continue
        trouble = describe_damage(objects[name], target if target and target.md5 == name else None)
        if quarantine:
            trouble, remedy = move_away(objects[name], trouble, remedy)
        findings.append(Finding(objects[name], trouble, remedy, paths))
    for name, path, output in wanted:
        if name not in sound:
            place, remedy = locate(project.cache, name), find_remedy(project, output, whole)
            content = hash_object(place)  # a folder of the cache that cannot be listed hides what it holds
            if content.reason:
                findings.append(describe_unreadable(place, content, remedy, (path,)))
            elif not content.md5:
                findings.append(Finding(place, "is not there", remedy, (path,)))
    for output in project.outputs:
        if output not in whole:
            findings += describe_change(project, output, sound)
    runs = sorted(project.runs.glob("??/*/*"))
    findings += [found for path in runs if (found := check_run(path, quarantine))]
    return Checked(len(objects), len(runs), len(project.outputs), findings)


def find_gaps() -> tuple[int, list[Finding]]:
    """What DVC's cache lacks of what the outputs need, rehashing no more than that; and how many objects they need.

    Where the cache's disk is full, `dvc repro` says so in passing, exits with 0 and writes a lock that points to
    objects that are not there. Raises InputError as `open_project` does.
    """
    project, findings = open_project()
    folders = [output.md5 for output in project.outputs if output.cached and output.md5.endswith(FOLDER)]
    sound = {name: hash_object(locate(project.cache, name)).md5 == name.removesuffix(FOLDER) for name in folders}
    needed, lacking = set[str](), defaultdict[Output, list[str]](list)
    for name, path, output in list_wanted(project, sound):
        needed.add(name)
        place = locate(project.cache, name)
        if sound.get(name, is_file(place)):
            continue
        content = hash_object(place)
        if content.reason:
            remedy = find_remedy(project, output, [output] if is_whole(project, output, sound) else [])
            findings.append(describe_unreadable(place, content, remedy, (path,)))
        else:
            lacking[output].append(path)
    for output, paths in lacking.items():
        whole = [output] if is_whole(project, output, sound) else []
        trouble = f"DVC's cache lacks {len(paths):,} of its objects (was its disk full?)"
        findings.append(Finding(Path(output.path), trouble, find_remedy(project, output, whole), tuple(paths)))
    return len(needed), findings


def locate(cache: Path, name: str) -> Path:
    """Where the cache has an object."""
    return cache / name[:2] / name[2:]


def open_project() -> tuple[Project, list[Finding]]:
    """The DVC project of the present folder, and what is wrong with its own files.

    Where `dvc.lock` cannot be read, nothing is known of outputs; the cache can be checked all the same. Raises
    InputError where there is no DVC project, where DVC cannot open it, and in a folder inside it.
    """
    # DVC takes a second to import, and the other commands do without it.
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        repo = Repo()
    except NotDvcRepoError as error:
        raise InputError(
            "fsck: there is no DVC project here; run it in the folder that holds dvc.yaml and .dvc."
        ) from error
    except DvcException as error:
        raise InputError(
            f"fsck: DVC cannot open the project: {' '.join(str(error).split())}; mend .dvc/config (take either side of "
            "a conflict, or `git checkout .dvc/config`) and .dvc/config.local."
        ) from error
    root = Path(str(repo.root_dir))
    if not root.samefile(Path()):
        raise InputError(
            f"fsck: this folder is inside the DVC project {root}; run it there: `cd {shlex.quote(str(root))}`."
        )
    findings = check_running()
    try:
        outputs = list(list_outputs(repo))
    except DvcException as error:
        said = " ".join(str(error).split())
        remedy = "take either side of a conflict, or `git checkout dvc.lock`, then `dvc repro`"
        outputs = []
        findings.append(Finding(LOCK, f"cannot be read ({said}), so that nothing is known of the outputs", remedy))
    else:
        findings += check_entries(repo)
    cache = Path(str(repo.cache.local.path))
    runs = Path(str(repo.cache.legacy.path)) / "runs"
    remote = bool(repo.config.get("remote"))
    return Project(shorten(cache), shorten(runs), outputs, remote, repo.dvcignore), findings


def list_outputs(repo: "Repo") -> Iterator[Output]:
    """All outputs of stages and .dvc files that have been made."""
    for out in repo.index.outs:
        if out.hash_info and out.hash_info.value and out.is_in_repo:
            path = shorten(Path(str(out.fspath))).as_posix()
            size = out.meta.size if out.meta else None
            yield Output(path, out.hash_info.value, size, bool(out.use_cache), bool(out.stage.is_data_source))


def check_entries(repo: "Repo") -> list[Finding]:
    """Whether `dvc.lock` has an entry for each stage: one that is cut off may still be YAML."""
    lacking = {str(out.stage.addressing): None for out in repo.index.outs if not out.hash_info}
    if not lacking:
        return []
    trouble = f"has no entry for {', '.join(lacking)}: it is cut off, or they have never run"
    return [Finding(LOCK, trouble, "`git checkout dvc.lock`, or `dvc repro`")]


def shorten(path: Path) -> Path:
    """The path from the present folder on, where it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def check_running() -> list[Finding]:
    """Whether DVC can read the file in which its running commands note what they use."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        SCHEMA(json.loads(RUNNING.read_bytes()))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [describe_running(str(error.strerror))]
    except (ValueError, Invalid) as error:
        return [describe_running(str(error))]
    return []


def describe_running(reason: str) -> Finding:
    """What is the matter with the file of running commands."""
    remedy = "if no DVC command runs here, delete it"
    return Finding(RUNNING, f"cannot be read ({reason}), which stops every DVC command", remedy)


def list_objects(cache: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """The objects of the cache by name (their MD5, for lists of folders with `.dir`), and its folders that cannot be
    listed, each with the reason."""
    files, hidden = list_files(cache)
    places = [Path(file) for file in files if file.count("/") == 1]
    found = {place.parent.name + place.name: cache / place for place in places if len(place.parent.name) == 2}
    named = {name: path for name, path in found.items() if is_name(name)}
    return named, {cache / folder: reason for folder, reason in hidden.items()}


def list_files(folder: Path, ignore: "DvcIgnoreFilter | None" = None) -> tuple[list[str], dict[str, str]]:
    """The paths of all files below a folder, sorted, and its folders that cannot be listed, each with the reason.

    What DVC ignores is left out where `ignore` is given.
    """
    errors: list[OSError] = []
    found: list[str] = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        if ignore:
            folders[:], names[:] = ignore(str(Path.cwd() / place), folders, names)
        files = (Path(place) / name for name in names)
        found += [file.relative_to(folder).as_posix() for file in files if is_file(file, unknown=True)]
    hidden = {
        Path(str(error.filename)).relative_to(folder).as_posix(): str(error.strerror)
        for error in errors
        if not isinstance(error, FileNotFoundError | NotADirectoryError)
    }
    return sorted(found), hidden


def is_file(path: Path, unknown: bool = False) -> bool:
    """Whether a path is a file; `unknown` where the system does not say."""
    try:
        return path.is_file()
    except OSError:
        return unknown


def is_name(name: str) -> bool:
    """Whether an object can be called that; all else is what a command that was killed left."""
    digits = name.removesuffix(FOLDER)
    return len(digits) == 32 and set(digits) <= set("0123456789abcdef")


def hash_object(path: Path) -> Content:
    """What reading a file gives."""
    try:
        return Content(md5=hash_file(path, "md5"))
    except (FileNotFoundError, NotADirectoryError):
        return Content()
    except OSError as error:
        return Content(reason=error.strerror or str(error))


def list_wanted(project: Project, sound: Mapping[str, bool]) -> Iterator[tuple[str, str, Output]]:
    """Each object that the outputs need: its name, the path in the workspace that it is for, and the output."""
    for output in project.outputs:
        if not output.cached:
            continue
        yield output.md5, output.path, output
        if output.md5.endswith(FOLDER) and sound.get(output.md5):
            for path, md5 in read_folder(project.cache, output.md5):
                yield md5, f"{output.path}/{path}", output


def read_folder(cache: Path, name: str) -> list[tuple[str, str]]:
    """Path and MD5 of each file that a list in the cache names."""
    entries = cast("list[dict[str, str]]", json.loads(locate(cache, name).read_bytes()))
    return [(entry["relpath"], entry["md5"]) for entry in entries]


def is_whole(project: Project, output: Output, sound: Mapping[str, bool]) -> bool:
    """Whether the workspace has the output as it was made, folders by the list in the cache."""
    path = Path(output.path)
    if not output.md5.endswith(FOLDER):
        return hash_object(path).md5 == output.md5
    contents = hash_files(path, project.ignore)
    if not contents and not path.is_dir():
        return False
    if not sound.get(output.md5):
        return name_folder(contents) == output.md5
    return not list_differences(contents, read_folder(project.cache, output.md5))


def hash_files(folder: Path, ignore: "DvcIgnoreFilter") -> dict[str, Content]:
    """What reading each file below a folder gives that DVC does not ignore, by path; folders that cannot be listed are
    among them."""
    files, hidden = list_files(folder, ignore)
    with ThreadPoolExecutor() as pool:
        contents = dict(zip(files, pool.map(hash_object, (folder / file for file in files)), strict=True))
    return contents | {name: Content(reason=reason) for name, reason in hidden.items()}


def name_folder(contents: Mapping[str, Content]) -> str:
    """The name that DVC gives to the list of a folder's files: JSON of MD5 and path, by path, spaces and all."""
    listed = [{"md5": content.md5, "relpath": path} for path, content in sorted(contents.items())]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + FOLDER


def list_differences(contents: Mapping[str, Content], entries: Iterable[tuple[str, str]]) -> list[str]:
    """The files of a folder that are not there, are others than its list says, or are not in it."""
    listed, found = dict(entries), {path: content.md5 for path, content in contents.items()}
    return sorted(path for path in listed.keys() | found.keys() if listed.get(path) != found.get(path))


def describe_change(project: Project, output: Output, sound: Mapping[str, bool]) -> Iterator[Finding]:
    """How an output in the workspace differs from what was made; what of it cannot be read comes first."""
    path, listed = Path(output.path), output.md5.endswith(FOLDER)
    remedy = find_way_back(project, output, sound)
    contents = hash_files(path, project.ignore) if listed else {"": hash_object(path)}
    unreadable = {name: content for name, content in contents.items() if content.reason}
    for name, content in unreadable.items():
        yield describe_unreadable(path / name, content, remedy)
    if contents == {"": Content()} or (listed and not contents and not path.exists()):
        yield Finding(path, "is not in the workspace", remedy)
        return
    trouble = "is not what was made: edited, or damaged"
    if output.added:
        trouble = "is not what was added: changed since, or damaged"
        remedy = f"`dvc add {shlex.quote(output.path)}` keeps what is there now; to undo the change instead: {remedy}"
    if listed and output.cached and sound.get(output.md5):
        names = list_differences(contents, read_folder(project.cache, output.md5))
        changed = tuple(f"{output.path}/{name}" for name in names if name not in unreadable)
        if changed:
            yield Finding(path, trouble, remedy, changed)
    elif not unreadable:
        yield Finding(path, trouble, remedy)


def find_way_back(project: Project, output: Output, sound: Mapping[str, bool]) -> str:
    """The command that makes an output in the workspace what it was: a checkout where all that it needs is sound."""
    if not output.cached:
        return f"`git checkout {shlex.quote(output.path)}`, or `dvc repro`"
    needed = list_wanted(replace(project, outputs=[output]), sound)
    if all(sound.get(name) for name, _, _ in needed):
        return f"`dvc checkout --force {shlex.quote(output.path)}`"
    return find_remedy(project, output, [])


def describe_unreadable(path: Path, content: Content, remedy: str, concerned: tuple[str, ...] = ()) -> Finding:
    """A file that is there and cannot be read; `remedy` is for one that cannot be mended."""
    return Finding(path, f"cannot be read: {content.reason}", f"{MEND}, or else delete it; {remedy}", concerned)


def describe_damage(path: Path, output: Output | None) -> str:
    """What is wrong with an object: cut off where its size is known and it is shorter."""
    size = path.stat().st_size
    if output and output.size is not None and size < output.size and not output.md5.endswith(FOLDER):
        return f"is cut off after {size:,} of {output.size:,} bytes"
    return "is cut off at once: it is empty" if not size else "is corrupt: its content has another hash"


def find_remedy(project: Project, output: Output | None, whole: Iterable[Output]) -> str:
    """The command that brings back what an output lacks in the cache."""
    if output is None:
        return "nothing in this commit needs it; for other commits `dvc pull -A` brings it back, if a remote has it"
    path = shlex.quote(output.path)
    if output in whole:
        return f"the workspace still has it: `dvc {'add' if output.added else 'commit --force'} {path}`"
    again = f"bring it from elsewhere, then `dvc add {path}`" if output.added else "make it again: `dvc repro`"
    return f"`dvc pull --force {path}`, or {again}" if project.remote else again


def check_run(path: Path, quarantine: bool) -> Finding | None:
    """Whether an entry of the run-cache says what it said: it is called by the hash of its content."""
    from dvc.utils import dict_sha256
    from dvc.utils.serialize import ParseError, load_yaml

    trouble = "is corrupt, and might bring outputs that no run made"
    remedy = "nothing needs it; the next `dvc repro` of that stage writes it anew"
    try:
        entry: Any = load_yaml(str(path))
        if isinstance(entry, dict) and dict_sha256(entry, exclude=UNCOUNTED) == path.name:
            return None
    except FileNotFoundError:  # another command may delete it meanwhile
        return None
    except OSError as error:
        return describe_unreadable(path, Content(reason=error.strerror or str(error)), remedy)
    except (ParseError, ValueError, TypeError):  # no YAML, a date that is none, or one that no entry holds
        pass
    if quarantine:
        trouble, remedy = move_away(path, trouble, remedy)
    return Finding(path, trouble, remedy)


def move_away(path: Path, trouble: str, remedy: str) -> tuple[str, str]:
    """Move a file to QUARANTINE; returns `trouble` and `remedy` with what became of that."""
    try:
        place = move_file(path)
    except OSError as error:
        reason = error.strerror or str(error)
        return f"{trouble}, could not be moved away: {reason}", f"delete it, since DVC may believe it; {remedy}"
    return f"{trouble}, moved to {place}", remedy


def move_file(path: Path) -> Path:
    """Move a file to QUARANTINE, from another disk, too; returns where it lies now. Raises OSError, and then it lies
    where it lay, and only there."""
    QUARANTINE.mkdir(parents=True, exist_ok=True)
    name = path.parent.name + path.name
    place, copies = QUARANTINE / name, 0
    while place.exists():
        copies += 1
        place = QUARANTINE / f"{name}.{copies}"
    try:
        shutil.move(path, place)
    except OSError:
        if path.exists():
            place.unlink(missing_ok=True)
        raise
    return place
