"""Class folders (`cat/…`, `dog/…`), as they are or below `train/`, `val/` and `test/`; a folder or an archive.

The class is the first folder below the root, or below the part; folders inside it are only part of the path.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.run import RunParams
from imagepipe.sources.keys import make_keys
from imagepipe.sources.names import escape, is_text, name_part, shorten, show_name
from imagepipe.sources.params import FetchParams
from imagepipe.sources.records import Record, SourceInfo
from imagepipe.sources.trees import Tree, describe_tree, list_tables, obtain_tree, open_tree, show_place

READS_DISK = True
WORDS = re.compile("[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in a tree: `root` is '' or ends with `/`; `parts` maps each part to its folder's name."""

    root: str
    parts: dict[str, str]


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """The files of class folders, in columns: path in the tree, part, class and path below the part.

    Where a path below the part is the whole path, it is that very string.
    """

    paths: list[str] = field(default_factory=list[str])
    parts: list[str] = field(default_factory=list[str])
    classes: list[str] = field(default_factory=list[str])
    below: list[str] = field(default_factory=list[str])

    def add(self, path: str, part: str, class_name: str, below: str) -> None:
        """Add one file."""
        self.paths.append(path)
        self.parts.append(part)
        self.classes.append(sys.intern(class_name))  # one string for all files of a class
        self.below.append(below)


def fetch(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Look at the folder, or put the archive's members into `raw_dir`; says what was found and left out.

    Raises InputError where there are no class folders, or parts and classes cannot be told apart.
    """
    tree = obtain_tree(params, run, raw_dir)
    where = show_place(params)
    layout = find_layout(tree, where)
    labelled, unlabelled = label_files(tree, layout)
    if not labelled.paths:
        found = ", ".join(map(show_name, sorted(tree.files)[:5])) or "nothing"
        raise InputError(
            f"{where}: holds no class folders with files; expected `cat/…`, `dog/…`, or those below `train/`, `val/` "
            f"and `test/`. Found: {found}. {advise_table(tree)}"
        )
    nested = check_nesting(tree, layout, where)
    classes = sorted(set(labelled.classes))
    unwritable = [show_name(name) for name in classes if not is_text(name)]
    if unwritable:
        raise InputError(list_findings("class folders whose names are not UTF-8", unwritable, "Rename them."))
    empty = sorted(list_empty(tree, layout, classes))
    notes = [*tree.notes, *describe_layout(tree, layout, labelled), *nested]
    if unlabelled:
        notes.append(list_findings("files in no class folder were left out", list(map(show_name, unlabelled))))
    if empty:
        notes.append(list_findings("class folders that are empty", list(map(show_name, empty))))
    return describe_tree(params, raw_dir, classes, notes).model_copy(update={"empty_classes": empty})


def advise_table(tree: Tree) -> str:
    """The other way to label files, with the tables that the tree holds."""
    tables = [show_name(name) for name in sorted(list_tables(tree))]
    if not tables:
        return "The other way is a table of files and labels, with fetch.source `table` in params.yaml."
    return (
        f"It holds {shorten(tables, shown=5)}: if that names files and labels, set fetch.source to `table` in "
        "params.yaml (`imagepipe evaluate` is given the table itself)."
    )


def read_records(source: Path, raw_dir: Path, info: SourceInfo) -> list[Record]:
    """One record for each file in a class folder, undecoded."""
    tree = open_tree(source, raw_dir, info)
    labelled, _ = label_files(tree, find_layout(tree, str(source)))
    keys = make_keys(labelled.parts, labelled.below, labelled.paths)
    return [
        Record(key, class_name, part, "", escape(path), tree.files[path])
        for key, class_name, part, path in zip(keys, labelled.classes, labelled.parts, labelled.paths, strict=True)
    ]


def find_layout(tree: Tree, where: str) -> Layout:
    """Where the parts and classes begin; a folder that wraps everything else, as archives have, is passed through.

    Raises InputError, naming `where`, for folders of which some are parts and some are not, or two are the same part.
    """
    root = find_root(tree)
    tops = list_tops(tree, root)
    named = [(name_part(top), top) for top in tops if name_part(top)]
    if len(named) < len(tops) and not any(list_tops(tree, f"{root}{top}/") for _, top in named):
        return Layout(root, {})  # a class may be called like a part, but a part among classes holds folders
    others = [show_name(top) for top in tops if not name_part(top)]
    if others:
        raise InputError(
            f"{where}: the folders {', '.join(top for _, top in named)} look like parts, but beside them lie "
            f"{', '.join(others[:5])}; expected either parts or classes. Move the others away."
        )
    doubled = sorted(part for part, count in Counter(part for part, _ in named).items() if count > 1)
    if doubled:
        tops = [top for part, top in named if part in doubled]
        raise InputError(f"{where}: the folders {' and '.join(tops)} are the same part; make them one.")
    if named and "train" not in dict(named):
        raise InputError(f"{where}: has the parts {', '.join(top for _, top in named)}, but no train; add it.")
    return Layout(root, dict(named))


def check_nesting(tree: Tree, layout: Layout, where: str) -> list[str]:
    """A note where what are the classes hold folders of the same names, which may be what was meant.

    Raises InputError where some of them are called like parts, so that `training_set/cat`, `training_set/dog`,
    `test_set/cat`, `test_set/dog` do not become two classes of sets.
    """
    tops = list_tops(tree, layout.root)
    inner = {top: set[str]() for top in tops}
    for folder in tree.folders:  # one pass, for there may be thousands of classes
        top, _, name = folder.removeprefix(layout.root).partition("/")
        if folder.startswith(layout.root) and name and "/" not in name:
            inner[top].add(name)
    shared = set[str].intersection(*inner.values()) if len(inner) > 1 else set[str]()
    if layout.parts or len(shared) < 2:
        return []
    found = f"{', '.join(map(show_name, tops[:5]))}, and each of them holds the folders " + ", ".join(
        map(show_name, sorted(shared)[:5])
    )
    if any(name_part(word) for top in tops for word in WORDS.findall(top)):
        raise InputError(f"{where}: the classes would be {found}. If they are parts, call them train, val and test.")
    return [f"the classes are {found}; if those are meant, name one of the outer folders in fetch.path"]


def find_root(tree: Tree) -> str:
    """The prefix of the one folder that holds every other, as long as that holds folders itself and is not a part.

    Files beside it, such as a README, do not matter: one class alone would be no data set to learn from.
    """
    root = ""
    while True:
        tops = list_tops(tree, root)
        if len(tops) != 1 or name_part(tops[0]) or not list_tops(tree, f"{root}{tops[0]}/"):
            return root
        root = f"{root}{tops[0]}/"


def list_tops(tree: Tree, root: str) -> list[str]:
    """Names of the folders directly below `root`, sorted."""
    below = (folder[len(root) :] for folder in tree.folders if folder.startswith(root))
    return sorted(name for name in below if name and "/" not in name)


def label_files(tree: Tree, layout: Layout) -> tuple[LabelledFiles, list[str]]:
    """The files in class folders, and the paths of those in none."""
    part_of = {folder: part for part, folder in layout.parts.items()}
    labelled = LabelledFiles()
    unlabelled: list[str] = []
    for path in tree.files:
        below = path.removeprefix(layout.root) if path.startswith(layout.root) else ""
        part = ""
        if part_of and below:
            folder, _, below = below.partition("/")
            part = part_of.get(folder, "")
        class_name, slash, _ = below.partition("/")
        if slash and (part or not part_of):
            labelled.add(path, part, class_name, below)
        else:
            unlabelled.append(path)
    return labelled, unlabelled


def list_empty(tree: Tree, layout: Layout, classes: Sequence[str]) -> set[str]:
    """Class folders without a file in any part."""
    roots = [f"{layout.root}{folder}/" for folder in layout.parts.values()] or [layout.root]
    return {escape(name) for root in roots for name in list_tops(tree, root)}.difference(classes)


def describe_layout(tree: Tree, layout: Layout, labelled: LabelledFiles) -> list[str]:
    """What each folder was taken for, where that is not plain."""
    notes = [f"classes and parts were looked for in `{show_name(layout.root)}`"] if layout.root else []
    counts = Counter(labelled.parts)
    parts = ", ".join(f"{folder} ({counts[part]} files)" for part, folder in layout.parts.items())
    like_parts = [top for top in list_tops(tree, layout.root) if name_part(top)]
    if parts:
        notes.append(f"parts of the source: {parts}")
    elif like_parts:
        notes.append(f"taken for classes, since classes lie beside them: {', '.join(like_parts)}")
    return notes
