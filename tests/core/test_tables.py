import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagepipe.core import tables as module
from imagepipe.core.errors import InputError
from imagepipe.core.tables import (
    PATH_COLUMNS,
    check_text,
    find_column,
    parse_numbered_table,
    parse_plain,
    parse_strictly,
    parse_text_table,
    read_text_table,
    share_cells,
    simplify_name,
)


def parse(data: bytes | str, name: str = "labels.csv") -> pd.DataFrame:
    return parse_text_table(data.encode() if isinstance(data, str) else data, Path(name))


def fail(data: bytes | str, message: str, name: str = "labels.csv") -> None:
    with pytest.raises(InputError, match=message):
        parse(data, name)


def test_every_cell_is_the_text_that_stands_there() -> None:
    table = parse("file,label\na,NA\nb,null\nc,None\nd,007\ne,1e5\nf,no\ng,\nh, x \ni,=cmd()\n")
    assert table["label"].tolist() == ["NA", "null", "None", "007", "1e5", "no", "", " x ", "=cmd()"]
    assert all(type(cell) is str for cell in table["label"].tolist())


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"a,b\n1,2\n", "x.csv"),
        (b"a,b\r\n1,2\r\n", "x.csv"),
        (b"\xef\xbb\xbfa,b\n1,2", "x.csv"),
        (b"a,b\n\n1,2\n\n", "x.csv"),
        (b"a\tb\n1\t2\n", "x.tsv"),
        (b"a\tb\n1\t2\n", "x.TSV"),
        (b'"a","b"\n"1","2"\n', "x.csv"),
    ],
)
def test_files_as_programs_write_them(data: bytes, name: str) -> None:
    table = parse(data, name)
    assert {str(column): table[column].tolist() for column in table.columns} == {"a": ["1"], "b": ["2"]}


def test_cells_may_hold_commas_quotes_and_line_ends() -> None:
    assert parse('a,b\n"x,y","say ""hi""\nthere"\n').iloc[0].tolist() == ["x,y", 'say "hi"\nthere']


def test_a_header_alone_is_a_table_without_rows() -> None:
    table = parse("a,b\n")
    assert (list(table.columns), len(table)) == (["a", "b"], 0)


def test_a_column_without_a_name_stays_without_one() -> None:
    assert list(parse(",a\n0,x\n").columns) == ["", "a"]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_nothing_is_no_table(data: bytes) -> None:
    fail(data, r"^labels\.csv: not a CSV with a header: there is nothing in it\.$")


def test_bytes_that_are_not_utf8_give_their_offset() -> None:
    fail("file,label\na,café\n".encode("latin-1"), r"labels\.csv: byte 16 is not UTF-8; save the file as UTF-8")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_recognised(encoding: str) -> None:
    fail(
        "\ufefffile,label\na,b\n".encode(encoding), r"labels\.csv: byte 0 is not UTF-8, but UTF-16; save the file as U"
    )
    fail("file,label\na,b\n".encode(encoding), r"labels\.csv:1: holds a NUL character")


def test_a_nul_gives_its_line() -> None:
    fail("a,b\n1,2\n3,\0\n", r"labels\.csv:3: holds a NUL character; this is no text, or it was damaged")


def test_lines_that_end_in_cr_alone() -> None:
    fail("a,b\r1,2\r", r"labels\.csv: its lines end in CR alone, as on old Macs; save it with LF or CR LF")


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        ("a;b\n1;2\n", "x.csv", r"separated by semicolons, expected commas; save it with commas\."),
        ("a|b\n1|2\n", "x.csv", r"separated by vertical bars, expected commas; save it with commas\."),
        (
            "a\tb\n1\t2\n",
            "x.csv",
            r"separated by tabs, expected commas; save it with commas, or let its name end in \.tsv\.",
        ),
        (
            "a,b\n1,2\n",
            "x.tsv",
            r"separated by commas, expected tabs; save it with tabs, or let its name end in \.csv\.",
        ),
        ("a;b\n1;2\n", "x.tsv", r"separated by semicolons, expected tabs; save it with tabs\."),
    ],
)
def test_another_delimiter_is_named(data: str, name: str, message: str) -> None:
    fail(data, rf"^{name}: its header is {message}$", name)


def test_a_table_of_one_column_has_no_delimiter() -> None:
    assert parse("a\n1;2\n")["a"].tolist() == ["1;2"]


def test_columns_of_one_name_are_refused() -> None:
    fail("a,b,a,b,c\n1,2,3,4,5\n", r"several columns are called 'a', 'b'; rename them")


def test_ragged_rows_are_listed_by_line() -> None:
    rows = "1,2\n" * 3 + "1\n" + "1,2,3\n" * 25
    with pytest.raises(InputError) as caught:
        parse("a,b\n" + rows)
    lines = str(caught.value).splitlines()
    assert lines[0] == "labels.csv: the header has 2 cells, but rows have others (26):"
    assert lines[1:3] == ["  line 5: 1 cells", "  line 6: 3 cells"]
    assert lines[-1] == "  … and 6 more"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_know_the_line_on_which_they_begin(end: str, mark: str) -> None:
    text = mark + end.join(["", "a,b", "1,2", "", "", '3,"x', "", 'y"', "4,5", '"6', '",7'])
    table, lines = parse_numbered_table(text.encode(), Path("x.csv"))
    assert table["a"].tolist() == ["1", "3", "4", f"6{end}"]
    assert list(lines) == [3, 6, 9, 10]


def test_a_header_of_two_lines_counts_as_two() -> None:
    table, lines = parse_numbered_table(b'a,"b\nc"\n1,2\n', Path("x.csv"))
    assert (list(table.columns), list(lines)) == (["a", "b\nc"], [3])
    assert list(parse_numbered_table(b"a,b\n", Path("x.csv"))[1]) == []


def test_a_ragged_row_is_named_by_the_line_on_which_it_begins() -> None:
    fail('a,b\n\n1,"x\ny",3\n1,2\n1\n', r"\(2\):\n  line 3: 3 cells\n  line 6: 1 cells$")


def test_an_open_quote_gives_its_line() -> None:
    fail('a,b\n1,"2\n3,4\n', r"labels\.csv:3: not a CSV \(unexpected end of data\)")


def test_an_enormous_field_gives_its_line() -> None:
    fail(f"a,b\n1,{'x' * 200_000}\n", r"labels\.csv:2: not a CSV \(field larger than field limit")


# Text of the kinds on which readers of CSV differ, in bytes that need not be UTF-8.
PIECES = st.sampled_from(
    [
        "a",
        "b",
        "NA",
        "7",
        "é",
        "\u2028",
        "\x0b",
        "\ufeff",
        "\0",
        " ",
        ",",
        ",",
        ";",
        "\t",
        '"',
        '""',
        "\n",
        "\r\n",
        "\r",
    ]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)
CELLS = st.one_of(st.sampled_from(["a", "", "NA", "é", " x", "'", "b c"]), TEXTS)


@st.composite
def make_tables(draw: st.DrawFn) -> str:
    """A table as programs write it: some cells or all in quotes, one kind of line ends, perhaps blank lines."""
    width, end = draw(st.integers(1, 3)), draw(st.sampled_from(["\n", "\r\n"]))
    cells = draw(st.sampled_from([CELLS, st.sampled_from(["a", "", "NA", "é"])]))
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), max_size=8))
    out = io.StringIO(newline="")
    quoted = draw(st.booleans())
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow(draw(st.permutations(["file", "label", "é"]))[:width])
    writer.writerows(rows)
    return out.getvalue() + draw(st.sampled_from(["", end, "a"]))


def describe(table: pd.DataFrame, lines: Sequence[int]) -> tuple[object, ...]:
    kinds = [(str(name), str(kind)) for name, kind in table.dtypes.items()]
    return kinds, table.to_numpy().tolist(), str(table.index), list(lines)


def read(data: bytes, name: str) -> tuple[object, ...] | str:
    try:
        return describe(*parse_numbered_table(data, Path(name)))
    except InputError as error:
        return str(error)


def read_strictly(data: bytes, name: str) -> tuple[object, ...] | str:
    """The same without Arrow."""
    delimiter = "\t" if name.endswith(".tsv") else ","
    try:
        check_text(Path(name), data, delimiter)
        return describe(*parse_strictly(Path(name), data.removeprefix(b"\xef\xbb\xbf"), delimiter))
    except InputError as error:
        return str(error)


def read_with_csv(data: bytes, name: str) -> list[list[str]]:
    """The rows as Python's own module has them."""
    text = data.decode("utf-8").removeprefix("\ufeff")
    delimiter = "\t" if name.endswith(".tsv") else ","
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]


@given(
    st.one_of(TEXTS, make_tables()),
    st.sampled_from(["x.csv", "x.tsv"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from([b"", b"", b"\xe9", b"\xed\xa0\x80", b"\xc0\x80"]),
    st.integers(0, 40),
    st.sampled_from([8, 16, 2**20]),
)
@example("a,b\r\n1,2\r\n", "x.csv", b"", b"", 0, 8)
@example('a\n"x', "x.csv", b"", b"", 0, 8)
@example('a,b\n1,"x\ny"\n', "x.csv", b"", b"", 0, 8)
@example('a,b\n"1"2,3\n', "x.csv", b"", b"", 0, 8)
def test_arrow_reads_what_the_strict_reader_reads(
    text: str, name: str, mark: bytes, damage: bytes, at: int, block: int
) -> None:
    data = text.encode()
    data = mark + data[:at] + damage + data[at:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)  # so that rows and line ends lie across its edges
        patch.setattr(module, "BATCH", 2)
        found = read(data, name)
        assert found == read_strictly(data, name)
    if not isinstance(found, str):
        kinds, cells, _, lines = found
        header, *rows = read_with_csv(data, name)
        assert (kinds, cells) == ([(column, "str") for column in header], rows)
        assert len(lines) == len(rows)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n,\n",
        "a,b\r\n1,NA\r\n",
        "a\n1\n2",
        '"a","b"\n"x,y","say ""hi"""\n1,""\n',
        "é,b\n" + "x" * 131_072 + ",2\n",
    ],
)
def test_plain_text_is_left_to_arrow(text: str) -> None:
    assert parse_plain(text.encode(), ",") is not None


@pytest.mark.parametrize(
    "text",
    ["a,b\n", "a,b\n\n1,2\n", "a,b\n1\n", 'a,b\n1,"x\ny"\n', 'a,b\n1,"x"y\n', "a,b\r1,2\n", "a,a\n1,2\n", "\n1\n"],
)
def test_all_else_is_left_to_the_strict_reader(text: str) -> None:
    assert parse_plain(text.encode(), ",") is None


def test_a_file_is_read_as_its_bytes_are(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n")
    assert read_text_table(tmp_path / "x.csv").equals(parse("a,b\n1,2\n"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read: No such file or directory\. Run the stage that"):
        read_text_table(tmp_path / "gone.csv")


def test_cells_that_are_equal_are_shared() -> None:
    cells = share_cells(parse("a\nx y\nNA\nx y\n")["a"])
    assert cells == ["x y", "NA", "x y"]
    assert cells[0] is cells[2]
    assert share_cells(parse("a\n")["a"]) == []


@pytest.mark.parametrize("name", ["File Name", "file_name", "FILE-NAME", " filename ", "FileName"])
def test_columns_are_found_by_their_usual_names(name: str) -> None:
    assert simplify_name(name) == "filename"
    assert find_column(pd.DataFrame({"x": ["1"], name: ["2"]}), PATH_COLUMNS, "a file", Path("x.csv")) == name


def test_the_first_of_the_usual_names_counts() -> None:
    assert find_column(pd.DataFrame(columns=["image", "file"]), PATH_COLUMNS, "a file", Path("x.csv")) == "file"


@pytest.mark.parametrize("name", ["id", "image_id", "Image Name", "ImageID"])
def test_an_id_names_a_file_where_nothing_else_does(name: str) -> None:
    assert find_column(pd.DataFrame(columns=["breed", name]), PATH_COLUMNS, "a file", Path("x.csv")) == name
    assert find_column(pd.DataFrame(columns=[name, "file"]), PATH_COLUMNS, "a file", Path("x.csv")) == "file"
    assert find_column(pd.DataFrame(columns=["id", "image_id"]), PATH_COLUMNS, "a file", Path("x.csv")) == "image_id"


def test_a_column_that_is_missing_gives_those_that_there_are() -> None:
    message = (
        r"^x\.csv: no column names a file: found cat\.jpg, cat; expected one called path, filepath, .*Is the line wi"
    )
    with pytest.raises(InputError, match=message):
        find_column(pd.DataFrame(columns=["cat.jpg", "cat"]), PATH_COLUMNS, "a file", Path("x.csv"))


def test_two_columns_that_may_both_be_meant_are_refused() -> None:
    with pytest.raises(InputError, match=r"^x\.csv: the columns 'File', 'file' may both name a file; rename one\.$"):
        find_column(pd.DataFrame(columns=["File", "file"]), PATH_COLUMNS, "a file", Path("x.csv"))
