"""Tables of text as people write them: CSV and TSV, read strictly, and their columns found by their usual names."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from imagepipe.core.errors import InputError, list_findings

# Column names as people write them, compared in lower case without spaces, underscores and hyphens.
PATH_COLUMNS = ("path", "filepath", "file", "filename", "imagepath", "image", "img", "imagename", "imageid", "id")
LABEL_COLUMNS = ("label", "classlabel", "target", "class", "classname", "y")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_text_table(path: Path) -> pd.DataFrame:
    """Any CSV with a header as text: `NA`, `007` and `1e5` stay what they are, an empty cell is ''.

    A file whose name ends in `.tsv` is separated by tabs.

    Raises InputError, naming the file, where it is absent, empty, not UTF-8, ragged, or separated by something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Run the stage that writes it first.") from error
    return parse_text_table(data, path)


def parse_text_table(data: bytes, path: Path) -> pd.DataFrame:
    """As `read_text_table`, from the bytes of the file; `path` is for its ending and for messages only."""
    return parse_numbered_table(data, path)[0]


def parse_numbered_table(data: bytes, path: Path) -> tuple[pd.DataFrame, list[int]]:
    """As `parse_text_table`, and the line of the file on which each row begins, from 1."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        kind = ", but UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        raise InputError(f"{path}: byte {error.start} is not UTF-8{kind}; save the file as UTF-8.") from error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    check_text(path, text, delimiter)
    numbered = parse_rows(path, text, delimiter)
    (_, header), *rest = numbered
    check_header(path, header)
    columns = list(zip(*(row for _, row in rest), strict=True)) or [()] * len(header)
    return pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=str), [line for line, _ in rest]


def check_text(path: Path, text: str, delimiter: str) -> None:
    """Raise InputError for text that no table is made of: a NUL, line ends of CR alone, another delimiter."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: holds a NUL character; this is no text, or it was damaged.")
    if "\r" in text and "\n" not in text:
        raise InputError(f"{path}: its lines end in CR alone, as on old Macs; save it with LF or CR LF.")
    header = text.partition("\n")[0]
    other = max(DELIMITERS, key=header.count)
    if delimiter not in header and other in header:
        remedy = "save it with commas" + (", or let its name end in .tsv" if other == "\t" else "")
        if delimiter == "\t":
            remedy = "save it with tabs, or let its name end in .csv" if other == "," else "save it with tabs"
        raise InputError(
            f"{path}: its header is separated by {DELIMITERS[other]}, expected {DELIMITERS[delimiter]}; {remedy}."
        )


def parse_rows(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The header and the rows, without blank lines, each with the line on which it begins.

    Raises InputError where a row is longer or shorter than the header; pandas would fill it, or take its first cell for
    an index.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    begins = 1
    ragged: list[str] = []
    try:
        for row in reader:
            if row:
                rows.append((begins, row))
                if len(row) != len(rows[0][1]):
                    ragged.append(f"line {begins}: {len(row)} cells")
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a CSV ({error}).") from error
    if not rows:
        raise InputError(f"{path}: not a CSV with a header: there is nothing in it.")
    if ragged:
        raise InputError(list_findings(f"{path}: the header has {len(rows[0][1])} cells, but rows have others", ragged))
    return rows


def check_header(path: Path, names: Sequence[str]) -> None:
    """Raise InputError where two columns have one name."""
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise InputError(f"{path}: several columns are called {', '.join(map(repr, doubled))}; rename them.")


def simplify_name(name: str) -> str:
    """A column's name in lower case, letters and digits only."""
    return "".join(filter(str.isalnum, name)).lower()


def find_column(table: pd.DataFrame, names: Sequence[str], kind: str, path: Path) -> str:
    """The column that holds `kind`, by its usual names; raises InputError where there is none, or two of one name."""
    columns = list(map(str, table.columns))
    for name in names:
        found = [column for column in columns if simplify_name(column) == name]
        if len(found) > 1:
            raise InputError(f"{path}: the columns {', '.join(map(repr, found))} may both name {kind}; rename one.")
        if found:
            return found[0]
    raise InputError(
        f"{path}: no column names {kind}: found {', '.join(columns)}; "
        f"expected one called {', '.join(names)} (any case, spaces and underscores do not matter). "
        "Is the line with the names missing?"
    )
