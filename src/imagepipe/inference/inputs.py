"""What the arguments of `imagepipe predict` name: files, folders, glob patterns, and lists on standard input.

Images come one by one, in the order of the arguments; those in a folder, or that fit a pattern, in the order of their
names. Nothing is held but the names in the folders that are being read, and what one pattern found.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from imagepipe.core.errors import list_findings
from imagepipe.core.slices import FileSlice
from imagepipe.core.unfinished import is_unfinished
from imagepipe.data.conversion import Foreign
from imagepipe.prepare.index import INDEX, SEAL
from imagepipe.sources.names import describe_litter, is_litter, show_name
from imagepipe.sources.trees import slice_file

LIST = "-"  # the argument that stands for a list of paths on standard input
ANY_DEPTH = "**"


@dataclass(slots=True)
class Inputs:
    """The images that `arguments` name; `lines` are the paths, one a line, that `-` stands for.

    To be iterated once. Then `files` says how many plain files there were, and `notes` what was left out.
    """

    arguments: Sequence[str]
    lines: Iterable[bytes] = ()
    files: int = 0
    _left_out: Counter[str] = field(default_factory=Counter[str])
    _others: list[str] = field(default_factory=list[str])

    def __iter__(self) -> Iterator[Foreign]:
        for argument in self.arguments:
            if argument != LIST:
                yield from self._find(argument)
                continue
            for line in self.lines:
                path = os.fsdecode(line.removesuffix(b"\n").removesuffix(b"\r"))
                if path:
                    yield from self._find(path)

    @property
    def notes(self) -> list[str]:
        """What in the folders was no image to begin with, in the words of the source `folder`."""
        notes = describe_litter(self._left_out)
        if self._others:
            notes.append(list_findings("links to folders and what is no plain file are not followed", self._others))
        return notes

    def _find(self, path: str) -> Iterator[Foreign]:
        """The images that one argument, or one line of a list, names."""
        if "\0" in path:
            yield Foreign(path, "a path holds no NUL; a list has one path on each line")
            return
        file = slice_file(path)
        if file is None and Path(path).is_dir():
            yield from expect(self._walk(path), path, "no file lies in this folder")
        elif file is None:
            yield Foreign(path, "is no plain file")
        elif file.length is None and glob.has_magic(path) and not Path(path).is_symlink():
            yield from expect(self._match(path), path, "no file fits this pattern")
        else:
            yield self._take(path, file)

    def _take(self, path: str, file: FileSlice) -> Foreign:
        self.files += file.length is not None
        return Foreign(path, file)

    def _walk(self, folder: str) -> Iterator[Foreign]:
        """Every plain file below a folder; links to files are followed, links to folders are not."""
        open_folders = [list_folder(folder)]  # no recursion: folders may be nested deeper than Python calls
        while open_folders:
            found = next(open_folders[-1], None)
            if found is None:
                open_folders.pop()
            elif isinstance(found, Foreign):
                yield found
            elif is_litter(found.name) or found.name in (INDEX, SEAL):  # of the folder that split wrote
                if not is_unfinished(Path(found.name)):  # the predictions themselves may be written there
                    self._left_out[found.name] += 1
            elif found.is_folder:
                open_folders.append(list_folder(found.path))
            elif file := slice_file(found.path):
                yield self._take(found.path, file)
            else:
                self._others.append(show_name(found.path))

    def _match(self, pattern: str) -> Iterator[Foreign]:
        """What fits a pattern; folders count as all that is in them, unless `**` has gone into them already."""
        if ANY_DEPTH in Path(pattern).parts:
            yield from self._match_any_depth(pattern)
            return
        for path in sorted(glob.glob(pattern)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            yield from self._find(path)

    def _match_any_depth(self, pattern: str) -> Iterator[Foreign]:
        """The files that fit a pattern with `**`.

        Python's glob would follow links to folders, which may lead round in circles.
        """
        parts = Path(pattern).parts
        fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:fixed])
        for found in self._walk(str(root)):
            if isinstance(found.file, str) or fits(Path(found.path).relative_to(root).parts, parts[fixed:]):
                yield found
            else:
                self.files -= 1


class Entry(NamedTuple):
    """What lies in a folder."""

    name: str
    path: str
    is_folder: bool


def expect(found: Iterable[Foreign], path: str, otherwise: str) -> Iterator[Foreign]:
    """What was found; where that is nothing, the `path` that was to have something, and what to say of it."""
    nothing = True
    for one in found:
        nothing = False
        yield one
    if nothing:
        yield Foreign(path, otherwise)


def list_folder(folder: str) -> Iterator[Entry | Foreign]:
    """What lies in a folder, by name; why it cannot be read, where it cannot."""
    names: list[str] = []
    folders: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
    except OSError as error:
        yield Foreign(folder, f"cannot be read: {error.strerror}")
        return
    names.sort()
    for name in names:  # nothing else is kept: there may be a million of them
        yield Entry(name, os.path.join(folder, name), name in folders)  # noqa: PTH118


def fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern, in which `**` stands for any number of folders, or none."""
    if not pattern:
        return not parts
    if pattern[0] == ANY_DEPTH:
        return not pattern[1:] or any(fits(parts[depth:], pattern[1:]) for depth in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and fits(parts[1:], pattern[1:])
