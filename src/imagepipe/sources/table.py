"""A CSV, TSV or Parquet file that names image files and their labels, beside the images; a folder or an archive.

Tables as people publish them are recognised by their columns' usual names (`Class Label,File Name`; `filepath,label`;
`file,target`), and several of them, one for each part (`mnist_train.csv`, `mnist_valid.csv`, `mnist_test.csv`), are one
data set.
"""

import fnmatch
import io
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from pydantic import ValidationError

from imagepipe.core.errors import InputError, list_findings
from imagepipe.core.run import RunParams
from imagepipe.core.slices import FileSlice
from imagepipe.core.tables import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    check_header,
    find_column,
    parse_numbered_table,
    share_cells,
    simplify_name,
)
from imagepipe.sources.keys import find_equal, make_keys
from imagepipe.sources.names import escape, name_part, show_name
from imagepipe.sources.params import FetchParams, TableParams
from imagepipe.sources.records import NO_COLUMNS, Record, SourceInfo
from imagepipe.sources.trees import TABLES, Tree, describe_tree, list_tables, obtain_tree, open_tree, show_place

READS_DISK = True
# The name before the number, where a table has both.
NAME_COLUMNS = tuple(dict.fromkeys(("classname", "class", *LABEL_COLUMNS)))
SPLIT_COLUMNS = ("split", "part", "subset", "partition")
GROUP_COLUMNS = ("group", "groupid")
NONE = "-"  # in place of a column's name: there is none, whatever the columns are called
NO_TEXT = ("binary", "large_binary", "fixed_size_binary", "struct", "list", "large_list", "fixed_size_list", "map")
DRIVE = re.compile(r"[A-Za-z]:")
PART_AT_END = re.compile(r"(?:^|[^a-z])([a-z]+)$")


@dataclass(frozen=True, slots=True, eq=False)
class ReadTable:
    """The rows of a table, column by column, and a note on what its columns were taken for.

    `paths` are below the tree's root, `below` the same paths below the folder of the images. `lines` say where in the
    table each row stands. `further` are the columns that nothing else was made of.
    """

    name: str
    lines: Sequence[int]
    further: Mapping[str, "pd.Series[str]"]
    note: str
    paths: list[str] = field(default_factory=list[str])
    below: list[str] = field(default_factory=list[str])
    labels: list[str] = field(default_factory=list[str])
    parts: list[str] = field(default_factory=list[str])
    groups: list[str] = field(default_factory=list[str])

    def locate(self, row: int) -> str:
        """The table and line of a row, for messages."""
        return f"{self.name}, line {self.lines[row]}"

    def describe(self, row: int) -> str:
        """The same, and the path."""
        return f"{self.locate(row)}: {show_name(self.paths[row])}"


class Cells(Mapping[str, str]):
    """The further cells of one row, fetched from their columns when they are asked for.

    So a row costs 56 bytes beside the table's text; another process gets a plain dict.
    """

    __slots__ = ("columns", "row")

    def __init__(self, columns: Mapping[str, "pd.Series[str]"], row: int) -> None:
        self.columns = columns
        self.row = row

    def __getitem__(self, name: str) -> str:
        return str(self.columns[name].iat[self.row])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        return dict, (dict(self),)


def fetch(params: FetchParams, run: RunParams, raw_dir: Path) -> SourceInfo:
    """Read the tables of the folder or archive and compare them with its files; says what was left out.

    Raises InputError, naming table and line, for whatever is wrong with a row.
    """
    tree = obtain_tree(params, run, raw_dir)
    where = show_place(params)
    tables = read_tables(tree, params.table, where)
    check_rows(tables)
    check_parts(tables, where)
    missing = list_missing(tables, tree)
    check_files(missing, tables, where)
    notes = [*tree.notes, *(table.note for table in tables)]
    if missing:
        notes.append(list_findings("rows whose file is missing", missing))
    notes += describe_strangers(tables, tree)
    info = describe_tree(params, raw_dir, sorted({label for table in tables for label in table.labels}), notes)
    return info.model_copy(update={"table": params.table.model_dump()})


def read_records(source: Path, raw_dir: Path, info: SourceInfo) -> list[Record]:
    """One record for each row, undecoded; a row whose file is missing has a record that cannot be read."""
    try:
        params = TableParams.model_validate(info.table)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{raw_dir / 'source.json'}: table.{'.'.join(map(str, first['loc']))}: {first['msg']}; run the fetch stage "
            "again."
        ) from error
    tree = open_tree(source, raw_dir, info)
    tables = read_tables(tree, params, str(source))
    parts, below, paths = ([], [], [])
    for table in tables:
        parts += table.parts
        below += table.below
        paths += table.paths
    keys = iter(make_keys(parts, below, paths))
    missing = FileSlice(source, 0, None)
    return [
        Record(
            next(keys),
            label,
            part,
            group,
            escape(path),
            tree.files.get(path, missing),
            Cells(table.further, row) if table.further else NO_COLUMNS,
        )
        for table in tables
        for row, (path, label, part, group) in enumerate(
            zip(table.paths, table.labels, table.parts, table.groups, strict=True)
        )
    ]


def read_tables(tree: Tree, params: TableParams, where: str) -> list[ReadTable]:
    """Every table; raises InputError, naming `where`, where there is none or it is unclear which counts."""
    names = find_tables(tree, params, where)
    parts = {name: name_part_of(name) for name in names} if len(names) > 1 else dict.fromkeys(names, "")
    doubled = [name for name in names if len(names) > 1 and list(parts.values()).count(parts[name]) > 1]
    if doubled or (len(names) > 1 and "" in parts.values()):
        unclear = doubled or [name for name in names if not parts[name]]
        raise InputError(
            f"{where}: has the tables {', '.join(map(show_name, names))}, and {', '.join(map(show_name, unclear))} "
            "cannot be told to be one of train, val and test by name; name the one to read (or a pattern) in "
            "fetch.table.file in params.yaml."
        )
    finder = Finder(tree)
    return [read_table(finder, name, parts[name], params) for name in names]


def find_tables(tree: Tree, params: TableParams, where: str) -> list[str]:
    """The tables that `fetch.table.file` names, or else those nearest to the root."""
    if params.file in tree.files:
        return [params.file]
    if params.file:
        found = sorted(fnmatch.filter(tree.files, params.file))
        if not found:
            tables = list_tables(tree)
            raise InputError(
                f"params.yaml: fetch.table.file: {where} has no {params.file}; the tables in it are: "
                f"{', '.join(map(show_name, tables[:20])) or 'none'}."
            )
        return found
    tables = list_tables(tree)
    if not tables:
        raise InputError(f"{where}: holds no table (.csv, .tsv or .parquet) that names files and labels; add one.")
    depth = min(name.count("/") for name in tables)
    return sorted(name for name in tables if name.count("/") == depth)


def name_part_of(table: str) -> str:
    """The part in the last word of a table's name (`mnist_valid.csv` is val); '' where it is none."""
    found = PART_AT_END.search(PurePosixPath(table).stem.lower())
    return name_part(found.group(1)) if found else ""


def read_table(finder: "Finder", name: str, part: str, params: TableParams) -> ReadTable:
    """The rows of one table, in its order; `part` is where those go that say nothing."""
    shown = show_name(name)
    try:
        table, lines = parse_table(finder.tree.files[name].read(), shown)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror or error}.") from error
    path_column = choose_column(table, params.path, PATH_COLUMNS, "a file", "path", shown)
    label_column = choose_column(table, params.label, NAME_COLUMNS, "a label", "label", shown)
    split_column = choose_optional(table, params.split, SPLIT_COLUMNS, "split", shown)
    group_column = choose_optional(table, params.group, GROUP_COLUMNS, "group", shown)
    used = {path_column, label_column, split_column, group_column}
    if not params.label:
        check_other_labels(table, label_column, used, shown)
    texts: list[str] = table[path_column].tolist()
    prefix = choose_image_folder(finder, name, texts, params)
    if not texts:
        raise InputError(f"{shown}: has no rows; expected one for each image.")
    rows = ReadTable(
        shown,
        lines,
        {column: table[column] for column in map(str, table.columns) if column not in used and column.strip()},
        describe_columns(shown, path_column, label_column, split_column, group_column),
        labels=share_cells(table[label_column]),
        groups=[text.strip() for text in share_cells(table[group_column])] if group_column else [""] * len(texts),
    )
    said = share_cells(table[split_column]) if split_column else [""] * len(texts)
    known = {"": part}
    for row, text in enumerate(texts):
        where = rows.locate(row)
        path, below = finder.find(prefix, text, where)
        if said[row] not in known:
            known[said[row]] = read_part(said[row], split_column, where) or part
        rows.paths.append(path)
        rows.below.append(below)
        rows.parts.append(known[said[row]])
    return rows


def describe_columns(name: str, path: str, label: str, split: str, group: str) -> str:
    """What each column was taken for, since nobody may have said it."""
    columns = {"files": path, "labels": label, "split": split, "group": group}
    return f"{name}: " + ", ".join(f"{kind} from `{show_name(column)}`" for kind, column in columns.items() if column)


def check_other_labels(table: pd.DataFrame, chosen: str, used: Container[str], name: str) -> None:
    """Raise InputError where another column that may name labels says something else than the one that was chosen.

    A column that is used for something else names none.
    """
    for other in map(str, table.columns):
        if other not in used and simplify_name(other) in NAME_COLUMNS:
            pairs = table[[chosen, other]].drop_duplicates()
            if not len(pairs) == table[chosen].nunique() == table[other].nunique():
                raise InputError(
                    f"{name}: the columns {chosen!r} and {other!r} may both hold the labels, and they differ; name the "
                    "right one in fetch.table.label in params.yaml."
                )


def read_part(text: str, column: str, where: str) -> str:
    """The part that a cell names; raises InputError, naming `where`, for what is none and not blank."""
    part = name_part(text)
    if text.strip() and not part:
        raise InputError(
            f"{where}: {show_name(column)} is {text!r}; expected train, val or test, or blank. If this column "
            f"means something else, set fetch.table.split to {NONE!r} in params.yaml."
        )
    return part


def parse_table(data: bytes, name: str) -> tuple[pd.DataFrame, Sequence[int]]:
    """The table as text in every cell, '' where a cell is empty, and where each row stands: its line, or its number."""
    if not name.lower().endswith(".parquet"):
        return parse_numbered_table(data, Path(name))
    table = parse_parquet(data, name)
    return table, range(1, len(table) + 1)


def parse_parquet(data: bytes, name: str) -> pd.DataFrame:
    """Numbers become text as they are: whole ones stay whole where cells between them are empty.

    What pandas stored as an index with a name is a column. Raises InputError where it is no Parquet file, or holds what
    is no text, such as the images themselves.
    """
    try:
        table = pd.read_parquet(io.BytesIO(data), dtype_backend="pyarrow")
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{name}: not a Parquet file that can be read ({error}).") from error
    index = [level for level in table.index.names if level is not None]
    doubled = [str(level) for level in index if str(level) in map(str, table.columns)]
    if doubled:
        raise InputError(
            f"{name}: the index and a column are both called {', '.join(map(repr, doubled))}; rename one, or leave the "
            "index out with reset_index(drop=True)."
        )
    check_header(Path(name), [*map(str, index), *map(str, table.columns)])
    table = table.reset_index(level=index)
    kinds = {str(column): str(kind).removesuffix("[pyarrow]") for column, kind in table.dtypes.items()}
    other = [f"{column} ({kind})" for column, kind in kinds.items() if kind.startswith(NO_TEXT)]
    if other:
        raise InputError(
            f"{name}: the columns {', '.join(other)} hold neither text nor numbers; leave them out, and write images "
            "as files that the table names."
        )
    texts = {str(column): make_texts(values, name) for column, values in table.items()}
    damaged = [column for column, cells in texts.items() if cells.str.contains("\0", regex=False).any()]
    if damaged:
        raise InputError(f"{name}: the columns {', '.join(damaged)} hold NUL characters, which no CSV can; mend them.")
    return pd.DataFrame(texts, dtype=str)


def make_texts(values: "pd.Series[Any]", name: str) -> "pd.Series[str]":
    """Each cell as text, '' where it is empty, or NaN, by which pandas says so.

    Raises InputError where one is no UTF-8, or no date that there is.
    """
    try:
        cells = ["" if cell is pd.NA or cell != cell else str(cell) for cell in values]  # NaN is not itself
        return pd.Series(cells, dtype=str)
    except (ValueError, OverflowError, LookupError) as error:
        raise InputError(
            f"{name}: the column {values.name} holds what cannot be written as text ({error}); mend it or leave it out."
        ) from error


def choose_column(table: pd.DataFrame, wanted: str, names: Sequence[str], kind: str, key: str, name: str) -> str:
    """The column that params name, else the one with a usual name; raises InputError where there is neither."""
    if not wanted:
        try:
            return find_column(table, names, kind, Path(name))
        except InputError as error:
            raise InputError(f"{error} Else name the column in fetch.table.{key} in params.yaml.") from error
    if wanted not in table.columns:
        raise InputError(
            f"params.yaml: fetch.table.{key}: {name} has no column {wanted!r}; its columns are: "
            f"{', '.join(map(str, table.columns))}."
        )
    return wanted


def choose_optional(table: pd.DataFrame, wanted: str, names: Sequence[str], key: str, name: str) -> str:
    """As `choose_column`, but '' where no column has a usual name or params say that there is none."""
    known = {simplify_name(str(column)) for column in table.columns}
    if wanted == NONE or (not wanted and not known.intersection(names)):
        return ""
    return choose_column(table, wanted, names, f"a {key}", key, name)


def choose_image_folder(finder: "Finder", name: str, texts: Sequence[str], params: TableParams) -> str:
    """The prefix ('' or ending in `/`) below which most of the table's paths are files; the table's own where none is.

    Raises InputError where `fetch.table.images` names a folder that is not there.
    """
    folders = finder.tree.folders
    if params.images:
        folder = posixpath.normpath(params.images.strip("/") or ".")
        if folder != "." and folder not in folders:
            there = ", ".join(map(show_name, sorted(folders)[:20])) or "none"
            raise InputError(
                f"params.yaml: fetch.table.images: there is no folder {params.images}; the folders beside the table "
                f"{show_name(name)} are: {there}. Name one of them, or '' for the table's own."
            )
        return "" if folder == "." else f"{folder}/"
    own = f"{posixpath.dirname(name)}/" if "/" in name else ""
    named = f"{own}{PurePosixPath(name).stem}"
    if named not in folders:
        return own
    return max((own, f"{named}/"), key=lambda prefix: sum(finder.holds(prefix, text) for text in texts))


class Finder:
    """Finds the files of a tree by what a table calls them."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names = {name: name for name in tree.files}  # one string for a file, however many rows and records name it

    @cached_property
    def composed(self) -> dict[str, str]:
        """Names with accents, by their composed form."""
        return {unicodedata.normalize("NFC", name): name for name in self.tree.files if not name.isascii()}

    @cached_property
    def without_ending(self) -> dict[str, str]:
        """Names by what they are without their ending; '' where several are the same."""
        names: dict[str, str] = {}
        for name in self.tree.files:
            stem = posixpath.splitext(name)[0]
            names[stem] = "" if stem in names else name
        return names

    def locate(self, path: str) -> str:
        """The file of this path, of the same accents in another form, or the only one that has an ending more.

        '' where there is none.
        """
        if path in self.tree.files:
            return path
        composed = unicodedata.normalize("NFC", path)
        found = self.composed.get(composed) or (composed if composed in self.tree.files else "")
        return found or self.without_ending.get(path, "")

    def holds(self, prefix: str, text: str) -> bool:
        """Whether `text` names a file below `prefix`."""
        return bool(self.locate(prefix + text) or self.locate(posixpath.normpath(prefix + text.replace("\\", "/"))))

    def find(self, prefix: str, text: str, where: str) -> tuple[str, str]:
        """Path below the tree's root and below `prefix`; a backslash stands for `/` where no file has it in its name.

        Raises InputError, naming `where`, for a blank path and one that leads out of the tree.
        """
        if found := self.names.get(prefix + text):
            return found, found.removeprefix(prefix)
        if not text.strip():
            raise InputError(f"{where}: the path is blank; expected a file.")
        for below in (text, text.replace("\\", "/")):
            path = posixpath.normpath(prefix + below)
            if below.startswith("/") or DRIVE.match(below) or path.split("/")[0] == "..":
                raise InputError(f"{where}: {text!r} leads out of the folder; expected a path below it.")
            found = self.locate(path)
            if found:
                return found, found.removeprefix(prefix)
        return path, path.removeprefix(prefix)


def check_rows(tables: Sequence[ReadTable]) -> None:
    """Raise InputError for blank labels, and for files that several rows name."""
    blank = [table.describe(row) for table in tables for row, label in enumerate(table.labels) if not label.strip()]
    if blank:
        raise InputError(list_findings("rows without a label", blank, "Give each a label, or leave the rows out."))
    paths = [path for table in tables for path in table.paths]
    repeated = {paths[position] for position in find_equal(paths)}
    first: dict[str, tuple[ReadTable, int]] = {}
    twice: list[str] = []
    for table in tables:
        for row in (row for row, path in enumerate(table.paths) if path in repeated):
            other, before = first.setdefault(table.paths[row], (table, row))
            if (other, before) != (table, row):
                one, two = other.labels[before], table.labels[row]
                labels = "the same label" if one == two else f"labels {one!r} and {two!r}"
                twice.append(f"{show_name(table.paths[row])}: {other.locate(before)} and {table.locate(row)}, {labels}")
    if twice:
        raise InputError(list_findings("files that several rows name", twice, "Leave one row for each file."))


def check_parts(tables: Sequence[ReadTable], where: str) -> None:
    """Raise InputError, naming `where`, where rows have parts that make no sense: no train, or nothing but it."""
    counts = Counter(part for table in tables for part in table.parts)
    said = ", ".join(f"{count} {part or 'blank'}" for part, count in sorted(counts.items()))
    if (counts["val"] or counts["test"]) and not counts["train"] and not counts[""]:
        raise InputError(f"{where}: no row is marked as train ({said}); mark those to learn from.")
    if counts["train"] and counts[""] and not counts["val"] and not counts["test"]:
        raise InputError(
            f"{where}: rows are marked as train or not at all ({said}); mark val and test too, or set "
            f"fetch.table.split to {NONE!r} in params.yaml, which deals all rows."
        )


def list_missing(tables: Sequence[ReadTable], tree: Tree) -> list[str]:
    """The rows whose file is not there."""
    return [table.describe(row) for table in tables for row, path in enumerate(table.paths) if path not in tree.files]


def check_files(missing: Sequence[str], tables: Sequence[ReadTable], where: str) -> None:
    """Raise InputError where no row's file is there; single ones are rejected when the images are checked."""
    if len(missing) == sum(len(table.paths) for table in tables):
        raise InputError(
            list_findings(
                f"{where}: none of the files that the table names is there",
                missing,
                "Name the folder that its paths start from in fetch.table.images in params.yaml.",
            )
        )


def describe_strangers(tables: Sequence[ReadTable], tree: Tree) -> list[str]:
    """Files beside the images that no row names."""
    named = {path for table in tables for path in table.paths}
    homes = {path.removesuffix(below) for table in tables for path, below in zip(table.paths, table.below, strict=True)}
    unnamed = [
        show_name(name)
        for name in tree.files
        if name not in named and not name.lower().endswith(TABLES) and name.startswith(tuple(homes))
    ]
    return [list_findings("files that no row names were left out", unnamed)] if unnamed else []
