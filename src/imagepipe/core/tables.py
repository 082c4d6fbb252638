"""Tables of text as people write them: CSV and TSV, read strictly, and their columns found by their usual names."""

import csv
import io
import re
from array import array
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from imagepipe.core.errors import InputError, list_findings

# Column names as people write them, compared in lower case without spaces, underscores and hyphens.
PATH_COLUMNS = ("path", "filepath", "file", "filename", "imagepath", "image", "img", "imagename", "imageid", "id")
LABEL_COLUMNS = ("label", "classlabel", "target", "class", "classname", "y")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
BLOCK = 2**22  # bytes that Arrow reads at once
BATCH = 10_000  # rows that the strict reader turns into columns at once


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


def parse_numbered_table(data: bytes, path: Path) -> tuple[pd.DataFrame, Sequence[int]]:
    """As `parse_text_table`, and the line of the file on which each row begins, from 1."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    table = parse_plain(data.removeprefix(BOM_UTF8), delimiter)
    if table is not None:
        return table, range(2, 2 + len(table))
    check_text(path, data, delimiter)
    return parse_strictly(path, data.removeprefix(BOM_UTF8), delimiter)


def parse_plain(data: bytes, delimiter: str) -> pd.DataFrame | None:
    """The table where its text is so plain that no two readers of CSV can differ on it; None leaves it to the strict
    one, which also says what is wrong.

    Arrow reads a million rows in a fraction of a second, and without a Python object for each cell.
    """
    end = data.find(b"\n")
    if end < 0 or not is_plain(data, delimiter.encode()):
        return None
    try:
        header = data[:end].decode("utf-8")
        names = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        if not names or len(set(names)) < len(names) or find_other_delimiter(header, delimiter):
            return None
        reader = arrow_csv.open_csv(
            pa.py_buffer(data),
            arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK, skip_rows=1, column_names=names),
            arrow_csv.ParseOptions(delimiter=delimiter),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string())),
        )
        table: pd.DataFrame = reader.read_all().to_pandas()
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid):
        return None
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    longest = max(table[name].str.len().max() for name in names)
    return table if len(table) + 1 == lines and longest <= csv.field_size_limit() else None


def is_plain(data: bytes, delimiter: bytes) -> bool:
    """Whether lines end in LF or CR LF and nowhere inside a cell, and quotes stand only around whole cells."""
    if b"\0" in data or data.count(b"\r") != data.count(b"\r\n"):
        return False
    if b'"' not in data:
        return True
    quoted_cell = rb'"(?<![^%b\n]")[^"\n]*+(?:""[^"\n]*+)*+"(?![^%b\r\n])' % (delimiter, delimiter)
    return b'"' not in re.sub(quoted_cell, b"", data)


def check_text(path: Path, data: bytes, delimiter: str) -> None:
    """Raise InputError for what no table is made of: no UTF-8, a NUL, line ends of CR alone, another delimiter."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = ", but UTF-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else ""
        raise InputError(f"{path}: byte {error.start} is not UTF-8{kind}; save the file as UTF-8.") from error
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise InputError(f"{path}:{line}: holds a NUL character; this is no text, or it was damaged.")
    if b"\r" in data and b"\n" not in data:
        raise InputError(f"{path}: its lines end in CR alone, as on old Macs; save it with LF or CR LF.")
    other = find_other_delimiter(data[: data.find(b"\n") % (len(data) + 1)].decode("utf-8"), delimiter)
    if other:
        remedy = "save it with commas" + (", or let its name end in .tsv" if other == "\t" else "")
        if delimiter == "\t":
            remedy = "save it with tabs, or let its name end in .csv" if other == "," else "save it with tabs"
        raise InputError(
            f"{path}: its header is separated by {DELIMITERS[other]}, expected {DELIMITERS[delimiter]}; {remedy}."
        )


def find_other_delimiter(header: str, delimiter: str) -> str:
    """What separates the header's cells instead of `delimiter`; '' where nothing does."""
    other = max(DELIMITERS, key=header.count)
    return other if delimiter not in header and other in header else ""


def parse_strictly(path: Path, data: bytes, delimiter: str) -> tuple[pd.DataFrame, Sequence[int]]:
    """The rows, without blank lines, and the line on which each begins, in bounded memory but for what is returned.

    Raises InputError where a row is longer or shorter than the header; pandas would fill it, or take its first cell for
    an index.
    """
    numbered = read_rows(path, data, delimiter)
    _, header = next(numbered, (0, list[str]()))
    if not header:
        raise InputError(f"{path}: not a CSV with a header: there is nothing in it.")
    lines = array("q")
    ragged: list[str] = []
    batches: list[pd.DataFrame] = []
    while some := list(islice(numbered, BATCH)):
        ragged += [f"line {line}: {len(row)} cells" for line, row in some if len(row) != len(header)]
        if not ragged:
            lines.extend(line for line, _ in some)
            batches.append(make_frame(header, [row for _, row in some]))
    if ragged:
        raise InputError(list_findings(f"{path}: the header has {len(header)} cells, but rows have others", ragged))
    check_header(path, header)
    return pd.concat(batches, ignore_index=True) if batches else make_frame(header, []), lines


def make_frame(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Columns of text, whose cells are no Python objects any more."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    return pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=str)


def read_rows(path: Path, data: bytes, delimiter: str) -> Generator[tuple[int, list[str]]]:
    """The header and the rows, without blank lines, each with the line on which it begins."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    begins = 1
    try:
        for row in reader:
            if row:
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a CSV ({error}).") from error


def share_cells(column: "pd.Series[str]") -> list[str]:
    """The cells, of which equal ones are one string."""
    codes, texts = pd.factorize(column)
    shared: list[str] = texts.tolist()
    return [shared[code] for code in codes.tolist()]


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
    question = "" if path.suffix.lower() == ".parquet" else " Is the line with the names missing?"
    raise InputError(
        f"{path}: no column names {kind}: found {', '.join(columns)}; "
        f"expected one called {', '.join(names)} (any case, spaces and underscores do not matter).{question}"
    )
