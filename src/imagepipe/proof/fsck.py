"""DVC's cache and the workspace, rehashed: what is corrupt, missing or edited, and what brings it back.

DVC believes every object in its cache that is read-only: it checks it out and pushes it. Here nothing is believed.
"""

import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_file
from imagepipe.core.progress import open_progress

if TYPE_CHECKING:
    from dvc.repo import Repo

FOLDER = ".dir"  # ends the name of an object that lists the files of a folder
LOCK = Path("dvc.lock")
RUNNING = Path(".dvc/tmp/rwlock")
QUARANTINE = Path(".dvc/tmp/quarantine")
UNCOUNTED = ["size", "nfiles"]  # what DVC leaves out of the hash by which it calls an entry of the run-cache
SHOWN = 3  # workspace paths that are named for one object


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
    where they are known. `cached` says that DVC's cache keeps it, not Git.
    """

    path: str
    md5: str
    size: int | None
    cached: bool


@dataclass(frozen=True, slots=True)
class Project:
    """What DVC says there is; `remote` says that lost objects may be had from elsewhere."""

    cache: Path
    runs: Path
    outputs: list[Output]
    remote: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """How many objects, entries of the run-cache and outputs were rehashed, and what was found."""

    objects: int
    runs: int
    outputs: int
    findings: list[Finding]


def check_project(quarantine: bool) -> Checked:
    """Rehash the cache and the workspace of the DVC project in the present folder.

    With `quarantine`, what is corrupt in the cache is moved to QUARANTINE, so that DVC knows that it lacks it. Raises
    InputError as `open_project` does.
    """
    project, findings = open_project()
    objects = list_objects(project.cache)
    with open_progress("fsck", len(objects)) as advance, ThreadPoolExecutor() as pool:  # hashing frees the interpreter
        sound: dict[str, bool] = {}
        for name, found in zip(objects, pool.map(hash_object, objects.values()), strict=True):
            sound[name] = name.removesuffix(FOLDER) == found
            advance(1)
    wanted = list(list_wanted(project, sound))
    concerned: dict[str, list[str]] = defaultdict(list)
    for name, path, _ in wanted:
        concerned[name].append(path)
    whole = [output for output in project.outputs if is_whole(output, project.cache, sound)]
    for name in sorted(name for name, good in sound.items() if not good):
        target = next((output for wanted_name, _, output in wanted if wanted_name == name), None)
        trouble = describe_damage(objects[name], target if target and target.md5 == name else None)
        if quarantine:
            trouble += f", moved to {move_away(objects[name])}"
        findings.append(Finding(objects[name], trouble, find_remedy(project, target, whole), tuple(concerned[name])))
    for name, path, output in wanted:
        if name not in sound:
            place = locate(project.cache, name)
            findings.append(Finding(place, "is not there", find_remedy(project, output, whole), (path,)))
    findings += [describe_change(project, output, sound) for output in project.outputs if output not in whole]
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
    sound = {name: hash_object(locate(project.cache, name)) == name.removesuffix(FOLDER) for name in folders}
    needed, lacking = set[str](), defaultdict[Output, list[str]](list)
    for name, path, output in list_wanted(project, sound):
        needed.add(name)
        if not sound.get(name, locate(project.cache, name).is_file()):
            lacking[output].append(path)
    for output, paths in lacking.items():
        whole = [output] if is_whole(output, project.cache, sound) else []
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
    return Project(shorten(cache), shorten(runs), outputs, bool(repo.config.get("remote"))), findings


def list_outputs(repo: "Repo") -> Iterator[Output]:
    """All outputs of stages and .dvc files that have been made."""
    for out in repo.index.outs:
        if out.hash_info and out.hash_info.value and out.is_in_repo:
            path = shorten(Path(str(out.fspath))).as_posix()
            yield Output(path, out.hash_info.value, out.meta.size if out.meta else None, bool(out.use_cache))


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


def list_objects(cache: Path) -> dict[str, Path]:
    """The objects of the cache by name (their MD5, for lists of folders with `.dir`)."""
    found = {path.parent.name + path.name: path for path in sorted(cache.glob("??/*")) if path.is_file()}
    return {name: path for name, path in found.items() if is_name(name)}


def is_name(name: str) -> bool:
    """Whether an object can be called that; all else is what a command that was killed left."""
    digits = name.removesuffix(FOLDER)
    return len(digits) == 32 and set(digits) <= set("0123456789abcdef")


def hash_object(path: Path) -> str:
    """The MD5 of a file; '' where it cannot be read."""
    try:
        return hash_file(path, "md5")
    except OSError:
        return ""


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


def is_whole(output: Output, cache: Path, sound: Mapping[str, bool]) -> bool:
    """Whether the workspace has the output as it was made, folders by the list in the cache."""
    path = Path(output.path)
    if not output.md5.endswith(FOLDER):
        return path.is_file() and hash_object(path) == output.md5
    if not sound.get(output.md5) or not path.is_dir():
        return path.is_dir() and hash_folder(path) == output.md5
    return not list_differences(path, read_folder(cache, output.md5))


def hash_folder(path: Path) -> str:
    """The name that DVC gives to the list of a folder's files: JSON of MD5 and path, by path, spaces and all."""
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listed = [{"md5": hash_object(path / file), "relpath": file} for file in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + FOLDER


def list_differences(folder: Path, entries: Iterable[tuple[str, str]]) -> list[str]:
    """The files of a folder that are not there, are others than its list says, or are not in it."""
    listed = dict(entries)
    there = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    with ThreadPoolExecutor() as pool:
        found = dict(zip(there, pool.map(hash_object, there.values()), strict=True))
    return sorted(path for path in listed.keys() | found.keys() if listed.get(path) != found.get(path))


def describe_change(project: Project, output: Output, sound: Mapping[str, bool]) -> Finding:
    """How an output in the workspace differs from what was made."""
    path = Path(output.path)
    cached = output.cached and bool(sound.get(output.md5))
    remedy = f"`dvc checkout --force {output.path}`" if cached else find_remedy(project, output, [])
    if not output.cached:
        remedy = f"`git checkout {output.path}`, or `dvc repro`"
    if not path.exists():
        return Finding(path, "is not in the workspace", remedy)
    trouble = "is not what was made: edited, or damaged"
    if output.md5.endswith(FOLDER) and cached:
        names = list_differences(path, read_folder(project.cache, output.md5))
        return Finding(path, trouble, remedy, tuple(f"{output.path}/{name}" for name in names))
    return Finding(path, trouble, remedy)


def describe_damage(path: Path, output: Output | None) -> str:
    """What is wrong with an object: cut off where its size is known and it is shorter."""
    size = path.stat().st_size
    if output and output.size is not None and size < output.size and not output.md5.endswith(FOLDER):
        return f"is cut off after {size:,} of {output.size:,} bytes"
    return "is cut off at once: it is empty" if not size else "is corrupt: its content has another hash"


def find_remedy(project: Project, output: Output | None, whole: Iterable[Output]) -> str:
    """The command that brings back what an output lacks in the cache."""
    if output is None:
        return (
            "nothing in this commit needs it: `dvc gc --workspace` forgets such objects, `dvc pull -A` brings them back"
        )
    if output in whole:
        return f"the workspace still has it: `dvc commit --force {output.path}`"
    pull = f"`dvc pull --force {output.path}`, or make it again: " if project.remote else "make it again: "
    return f"{pull}`dvc repro`"


def check_run(path: Path, quarantine: bool) -> Finding | None:
    """Whether an entry of the run-cache says what it said: it is called by the hash of its content."""
    from dvc.utils import dict_sha256
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

    try:
        entry: Any = load_yaml(str(path))
        if isinstance(entry, dict) and dict_sha256(entry, exclude=UNCOUNTED) == path.name:
            return None
    except (YAMLFileCorruptedError, UnicodeDecodeError):
        pass
    trouble = "is corrupt, and might bring outputs that no run made"
    if quarantine:
        trouble += f", moved to {move_away(path)}"
    return Finding(path, trouble, "nothing needs it; the next `dvc repro` of that stage writes it anew")


def move_away(path: Path) -> Path:
    """Move a file to QUARANTINE; returns where it lies now."""
    QUARANTINE.mkdir(parents=True, exist_ok=True)
    name = path.parent.name + path.name
    place, copies = QUARANTINE / name, 0
    while place.exists():
        copies += 1
        place = QUARANTINE / f"{name}.{copies}"
    path.replace(place)
    return place
