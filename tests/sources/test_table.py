import io
import math
import pickle
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagepipe.core.errors import InputError
from imagepipe.core.slices import FileSlice
from imagepipe.sources import read_records
from imagepipe.sources.records import Record, SourceInfo
from tests.sources.made import (
    fetch_and_read,
    make_params,
    make_table_params,
    pack,
    read_bytes,
    write_chosen,
    write_files,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* lies outside the project")
NFC, NFD = "é.png", unicodedata.normalize("NFD", "é.png")
only_posix = pytest.mark.skipif(sys.platform == "win32", reason="such names are not to be had on Windows")


def write(folder: Path, text: str | bytes, *files: str, name: str = "labels.csv") -> Path:
    """A folder with a table and files that hold their own names."""
    write_files(folder, name, *files)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def read(folder: Path, classes: str = "data/classes/all.csv", **table: str) -> tuple[list[Record], SourceInfo]:
    """The records of a folder or archive, and its description; `data/raw` lies beside it."""
    params = make_params("table", folder, classes=classes, table=make_table_params(**table))
    return fetch_and_read(params, folder.with_name(f"raw of {folder.name}"))


def fail(folder: Path, message: str, **table: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder, **table)


def list_rows(records: list[Record]) -> list[tuple[str, str, str]]:
    return [(record.key, record.class_name, record.part) for record in records]


def test_a_description_without_the_columns_says_to_fetch_again(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw of in"
    read(write(tmp_path / "in", "path,label\na.png,cat\n", "a.png"))
    text = (raw_dir / "source.json").read_text("utf-8")
    (raw_dir / "source.json").write_text(text.replace('"file": "",', ""), "utf-8")
    with pytest.raises(InputError) as caught:
        read_records(tmp_path / "in", raw_dir)
    assert str(caught.value) == f"{raw_dir / 'source.json'}: table.file: Field required; run the fetch stage again."


# Tables as people publish them


@pytest.mark.parametrize("header", ["File Name,Class Label", "filepath,label", "file,target", "IMAGE_PATH,Class-Name"])
@pytest.mark.parametrize("index", [False, True])
def test_the_usual_headers(tmp_path: Path, header: str, index: bool) -> None:
    lines = [header, "b.png,7", "a.png,dog"]
    if index:
        lines = [f",{header}", *(f"{number},{line}" for number, line in enumerate(lines[1:]))]
    records, info = read(write(tmp_path / "x", "\n".join(lines), "a.png", "b.png"))
    assert list_rows(records) == [("b.png", "7", ""), ("a.png", "dog", "")]
    assert [read_bytes(record) for record in records] == [b"b.png", b"a.png"]
    assert [record.source for record in records] == ["b.png", "a.png"]
    assert {(record.group, len(record.columns)) for record in records} == {("", 0)}
    assert (info.source, info.name, info.classes, info.files) == ("table", "x", ["7", "dog"], {})
    file, label = header.split(",")
    assert info.notes == [f"labels.csv: files from `{file}`, labels from `{label}`"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", b"file,label\na.png,007\n"),
        ("x.csv", b"\xef\xbb\xbffile,label\r\na.png,007\r\n"),
        ("x.tsv", b"file\tlabel\na.png\t007\n"),
        ("X.TSV", b"label\tfile\n007\ta.png"),
    ],
)
def test_kinds_of_text_tables(tmp_path: Path, name: str, text: bytes) -> None:
    assert list_rows(read(write(tmp_path / "x", text, "a.png", name=name))[0]) == [("a.png", "007", "")]


def test_a_parquet_table(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a", "b", "c"], "label": [1, 2, 1], "split": ["train", None, "test"]})
    table["age"] = pd.array([7, None, 2**53 + 1], dtype="Int64")
    table["score"] = [0.5, None, 1.0]
    table.to_parquet(write_files(tmp_path / "x", "a", "b", "c") / "x.parquet")
    records, info = read(tmp_path / "x")
    assert list_rows(records) == [("a", "1", "train"), ("b", "2", ""), ("c", "1", "test")]
    assert [record.columns for record in records] == [
        {"age": "7", "score": "0.5"},
        {"age": "", "score": ""},
        {"age": "9007199254740993", "score": "1.0"},
    ]
    assert info.classes == ["1", "2"]


def test_the_index_of_a_parquet_table_is_no_matter(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a", "b"], "label": ["x", "y"], "age": [7, 8]}, index=[5, 5])
    table.to_parquet(write_files(tmp_path / "x", "a", "b") / "x.parquet")
    records, _ = read(tmp_path / "x")
    assert list_rows(records) == [("a", "x", ""), ("b", "y", "")]
    assert [record.columns for record in records] == [{"age": "7"}, {"age": "8"}]


def test_a_named_index_of_a_parquet_table_is_a_column(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a", "b"], "label": ["x", "y"], "age": pd.array([7, None], dtype="Int64")})
    levels = pd.MultiIndex.from_arrays([["g1", "g2"], [5, 6], [1, 2]], names=["group", None, "visit"])
    table.set_index(levels).to_parquet(write_files(tmp_path / "x", "a", "b") / "x.parquet")
    records, _ = read(tmp_path / "x")
    assert [(record.source, record.class_name, record.group) for record in records] == [
        ("a", "x", "g1"),
        ("b", "y", "g2"),
    ]
    assert [record.columns for record in records] == [{"visit": "1", "age": "7"}, {"visit": "2", "age": ""}]
    table.set_index("age").to_parquet(write_files(tmp_path / "y", "a", "b") / "y.parquet")
    assert [record.columns for record in read(tmp_path / "y")[0]] == [{"age": "7"}, {"age": ""}]


def test_a_parquet_table_whose_index_is_called_as_a_column(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a"], "label": ["x"]}).set_index("file", drop=False)
    table.to_parquet(write_files(tmp_path / "x", "a") / "x.parquet")
    fail(
        tmp_path / "x",
        r"^x\.parquet: the index and a column are both called 'file'; rename one, or leave the index out with "
        r"reset_index\(drop=True\)\.$",
    )


def test_a_parquet_table_with_two_index_levels_of_one_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a"], "label": ["x"]})
    levels = pd.MultiIndex.from_arrays([[1], [2]], names=["site", "site"])
    table.set_index(levels).to_parquet(write_files(tmp_path / "x", "a") / "x.parquet")
    fail(tmp_path / "x", r"^x\.parquet: several columns are called 'site'; rename them\.$")


def test_whole_labels_of_a_parquet_table_stay_whole_beside_empty_ones(tmp_path: Path) -> None:
    write_files(tmp_path / "x", "a", "b")
    pq.write_table(pa.table({"file": ["a", "b"], "label": [3, None]}), tmp_path / "x" / "x.parquet")
    fail(tmp_path / "x", r"rows without a label \(1\):\n  x\.parquet, line 2: b\n")


def test_nan_in_a_parquet_table_is_an_empty_cell(tmp_path: Path) -> None:
    write_files(tmp_path / "x", "a", "b", "c")
    pq.write_table(pa.table({"file": ["a", "b", "c"], "label": [0.5, math.nan, None]}), tmp_path / "x" / "x.parquet")
    fail(tmp_path / "x", r"rows without a label \(2\):\n  x\.parquet, line 2: b\n  x\.parquet, line 3: c\n")


@pytest.mark.parametrize(
    ("column", "kind"), [([b"\x89PNG"], "binary"), ([{"bytes": b"1"}], r"struct<.*>"), ([[1, 2]], r"list<.*>")]
)
def test_a_parquet_table_that_holds_the_images_is_refused(tmp_path: Path, column: list[Any], kind: str) -> None:
    write_files(tmp_path / "x", "a")
    pq.write_table(pa.table({"file": ["a"], "label": ["x"], "image": column}), tmp_path / "x" / "x.parquet")
    fail(tmp_path / "x", rf"x\.parquet: the columns image \({kind}\) hold neither text nor numbers; leave them out")


def test_a_nul_in_a_parquet_table_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "x", "a")
    pq.write_table(pa.table({"file": ["a"], "label": ["x\0y"]}), tmp_path / "x" / "x.parquet")
    fail(tmp_path / "x", r"x\.parquet: the columns label hold NUL characters")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.duration("s")),
        pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
        pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")),
    ],
    ids=["duration", "date", "no UTF-8"],
)
def test_cells_of_a_parquet_table_that_are_no_text_are_refused(tmp_path: Path, column: pa.Array) -> None:
    write_files(tmp_path / "x", "a")
    pq.write_table(pa.table({"file": ["a"], "label": ["x"], "when": column}), tmp_path / "x" / "x.parquet")
    fail(
        tmp_path / "x",
        r"x\.parquet: the column when holds what cannot be written as text \(.*\); mend it or leave it out",
    )


def test_a_damaged_parquet_table_is_named(tmp_path: Path) -> None:
    out = io.BytesIO()
    pd.DataFrame({"file": ["a"], "label": ["x"]}).to_parquet(out)
    for number, data in enumerate([b"", b"file,label\n", out.getvalue()[:-20]]):
        folder = write(tmp_path / str(number), data, "a", name="x.parquet")
        fail(folder, r"x\.parquet: not a Parquet file that can be read")


def test_a_parquet_table_with_two_columns_of_one_name(tmp_path: Path) -> None:
    write_files(tmp_path / "x", "a")
    columns = [pa.array(["a"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, ["file", "label", "label"]), tmp_path / "x" / "x.parquet")
    fail(tmp_path / "x", r"x\.parquet: .*label")


# Several tables


MNIST = {"mnist_train": ["0", "1"], "mnist_valid": ["0"], "mnist_test": ["0", "1", "2"]}


def write_mnist(folder: Path) -> Path:
    """Three tables, and three folders of their names in which the same file names return."""
    for name, numbers in MNIST.items():
        rows = [f"{number}.png,{number}" for number in numbers]
        write(folder, "\n".join(["filepath,label", *rows]), *(f"{name}/{n}.png" for n in numbers), name=f"{name}.csv")
    return folder


def test_one_table_and_one_folder_for_each_part(tmp_path: Path) -> None:
    records, info = read(write_mnist(tmp_path / "x"))
    assert sorted(list_rows(records)) == [
        ("2.png", "2", "test"),
        ("test/0.png", "0", "test"),
        ("test/1.png", "1", "test"),
        ("train/0.png", "0", "train"),
        ("train/1.png", "1", "train"),
        ("val/0.png", "0", "val"),
    ]
    assert [read_bytes(record).decode() for record in records] == [record.source for record in records]
    assert {record.source.split("/")[0] for record in records} == set(MNIST)
    assert info.notes == [f"{name}.csv: files from `filepath`, labels from `label`" for name in sorted(MNIST)]


def test_a_pattern_chooses_tables(tmp_path: Path) -> None:
    records, _ = read(write_mnist(tmp_path / "x"), file="mnist_t*.csv")
    assert {record.part for record in records} == {"train", "test"}


def test_one_of_several_tables_has_no_part_of_its_own(tmp_path: Path) -> None:
    records, _ = read(write_mnist(tmp_path / "x"), file="mnist_test.csv")
    assert list_rows(records) == [("0.png", "0", ""), ("1.png", "1", ""), ("2.png", "2", "")]


@pytest.mark.parametrize("name", ["labels[1].csv", "deep/er/labels.csv", "labels.txt"])
def test_a_table_by_its_name(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "x", "file,label\na.png,1\n", str(Path(name).parent / "a.png"), "other.csv", name=name)
    assert [read_bytes(record) for record in read(folder, file=name)[0]] == [str(Path(name).parent / "a.png").encode()]


@pytest.mark.parametrize(
    ("names", "unclear"),
    [
        (["a.csv", "b.csv"], "a.csv, b.csv"),
        (["sample.csv", "test.csv", "train.csv"], "sample.csv"),
        (["old_train.csv", "test.csv", "train.csv"], "old_train.csv, train.csv"),
    ],
)
def test_tables_whose_part_is_unclear_are_refused(tmp_path: Path, names: list[str], unclear: str) -> None:
    for name in names:
        write(tmp_path / "x", "file,label\na.png,1\n", "a.png", name=name)
    message = (
        rf"x: has the tables {', '.join(names)}, and {unclear} cannot be told to be one of train, val and test by "
    )
    fail(tmp_path / "x", message + r"name; name the one to read \(or a pattern\) in fetch\.table\.file")


def test_tables_deeper_down_do_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label\na.png,1\n", "a.png", "a/b.csv", "c.csv/d.png")
    assert len(read(folder)[0]) == 1


def test_a_table_that_is_not_there_gives_those_that_are(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label\na.png,1\n", "a.png")
    fail(folder, r"fetch\.table\.file: .*x has no lables\.csv; the tables in it are: labels\.csv", file="lables.csv")


def test_a_folder_without_a_table(tmp_path: Path) -> None:
    fail(write_files(tmp_path / "x", "cat/1.jpg"), r"x: holds no table \(\.csv, \.tsv or \.parquet\) that names files")


# Columns


def test_further_cells_are_a_mapping_and_travel_as_a_plain_one(tmp_path: Path) -> None:
    records, _ = read(write(tmp_path / "x", "file,label,age,eyes\na,cat,7,green\nb,dog,,blue\n", "a", "b"))
    cells = records[1].columns
    assert (list(cells), len(cells), cells["eyes"], cells.get("age"), cells.get("tail")) == (
        ["age", "eyes"],
        2,
        "blue",
        "",
        None,
    )
    with pytest.raises(KeyError):
        cells["tail"]
    assert type(pickle.loads(pickle.dumps(records))[1].columns) is dict
    assert pickle.loads(pickle.dumps(records)) == records


def test_a_file_is_found_by_the_plain_form_of_its_letters(tmp_path: Path) -> None:
    kelvin = "\u212a.png"  # whose composed form is the letter K
    records, _ = read(write(tmp_path / "x", "file,label\nK.png,cat\n", kelvin))
    assert [record.source for record in records] == [kelvin]


def test_what_records_share_is_one_string(tmp_path: Path) -> None:
    text = "file,label,group,split\nimg/a,cat,g1,train\nimg/b,cat,g1,train\n"
    first, second = read(write(tmp_path / "x", text, "img/a", "img/b"))[0]
    assert (first.class_name, first.group, first.part) == ("cat", "g1", "train")
    assert first.class_name is second.class_name
    assert first.group is second.group
    assert first.source is first.key
    assert first.columns is second.columns


def test_split_group_and_further_columns(tmp_path: Path) -> None:
    header = "id,file,class,label,split,group_id,taken at"
    rows = ["1,a,cat,0,Train,g1,2019", "2,b,dog,1,validation,,", "3,c,cat,0,,g1,x"]
    records, info = read(write(tmp_path / "x", "\n".join([header, *rows]), "a", "b", "c"))
    assert list_rows(records) == [("a", "cat", "train"), ("b", "dog", "val"), ("c", "cat", "")]
    assert [record.group for record in records] == ["g1", "", "g1"]
    assert [record.columns for record in records] == [
        {"id": "1", "label": "0", "taken at": "2019"},
        {"id": "2", "label": "1", "taken at": ""},
        {"id": "3", "label": "0", "taken at": "x"},
    ]
    assert info.classes == ["cat", "dog"]
    assert info.notes == [
        "labels.csv: files from `file`, labels from `class`, split from `split`, group from `group_id`"
    ]


def test_params_name_the_columns(tmp_path: Path) -> None:
    text = "file,label,where,what,when,who,split\nz,9,a,cat,test,me,x\ny,9,b,dog,train,you,x\n"
    folder = write(tmp_path / "x", text, "a", "b")
    records, info = read(folder, path="where", label="what", split="when", group="who")
    assert list_rows(records) == [("a", "cat", "test"), ("b", "dog", "train")]
    assert [record.group for record in records] == ["me", "you"]
    assert [record.columns for record in records] == [
        {"file": "z", "label": "9", "split": "x"},
        {"file": "y", "label": "9", "split": "x"},
    ]
    assert info.notes == ["labels.csv: files from `where`, labels from `what`, split from `when`, group from `who`"]


def test_a_hyphen_says_that_there_is_no_such_column(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label,part,group\na,1,left arm,g\n", "a")
    fail(
        folder,
        r"labels\.csv, line 2: part is 'left arm'; expected train, val or test, or blank\. .*"
        r"fetch\.table\.split to '-'",
    )
    (tmp_path / "raw of x").rmdir()
    (record,) = read(folder, split="-", group="-")[0]
    assert (record.part, record.group, record.columns) == ("", "", {"part": "left arm", "group": "g"})


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    text = 'file,label,note\r\n\r\na,1,"two\r\nlines"\r\n\r\nb,,"two\r\nlines"\r\nc,,\r\n'
    fail(
        write(tmp_path / "x", text, "a", "b", "c"),
        r"rows without a label \(2\):\n  labels\.csv, line 6: b\n  labels\.csv, line 8: c\nGive each a label",
    )


@pytest.mark.parametrize(("group", "expected"), [("", ""), (" ", ""), ("\t ", ""), ("g1", "g1"), (" g1 ", "g1")])
def test_spaces_around_a_group_do_not_count(tmp_path: Path, group: str, expected: str) -> None:
    (record,) = read(write(tmp_path / "x", f"file,label,group\na,1,{group}\n", "a"))[0]
    assert record.group == expected


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("class,label", ["cat,0", "dog,0", "dog,1"]),
        ("class,label", ["cat,0", "dog,1", "dog,"]),
        ("label,Class Name", ["0,cat", "1,cat", "0,cat"]),
        ("target,y", ["0,1", "1,1", "0,0"]),
    ],
)
def test_two_columns_of_labels_that_differ_are_refused(tmp_path: Path, header: str, rows: list[str]) -> None:
    lines = [f"file,{header}", *(f"{name},{row}" for name, row in zip("abc", rows, strict=True))]
    folder = write(tmp_path / "x", "\n".join(lines), "a", "b", "c")
    first, second = header.split(",")
    message = (
        rf"labels\.csv: the columns '({first}' and '{second}|{second}' and '{first})' may both hold the labels, and "
    )
    fail(folder, message + r"they differ; name the right one in fetch\.table\.label in params\.yaml\.")
    (tmp_path / "raw of x").rmdir()
    records, _ = read(folder, label=first)
    assert [record.class_name for record in records] == [row.split(",")[0] for row in rows]


def test_two_columns_of_labels_that_say_the_same_are_one(tmp_path: Path) -> None:
    lines = ["file,label,class,target", "a,0,cat,7", "b,1,dog,8", "c,0,cat,7"]
    records, info = read(write(tmp_path / "x", "\n".join(lines), "a", "b", "c"))
    assert [record.class_name for record in records] == ["cat", "dog", "cat"]
    assert info.notes == ["labels.csv: files from `file`, labels from `class`"]


def test_a_column_that_is_used_for_something_else_holds_no_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label,class\na,0,7b\nb,1,7b\n", "a", "b")
    records, _ = read(folder, group="class", label="label")
    assert [(record.class_name, record.group) for record in records] == [("0", "7b"), ("1", "7b")]
    folder = write(tmp_path / "y", "file,class,y\na,0,7b\nb,1,7b\n", "a", "b")
    assert [record.group for record in read(folder, group="y")[0]] == ["7b", "7b"]


# Parts that rows are marked with


def write_marked(folder: Path, *marks: str) -> Path:
    """A row and file for each mark."""
    rows = [f"{number},1,{mark}" for number, mark in enumerate(marks)]
    return write(folder, "\n".join(["file,label,split", *rows]), *map(str, range(len(marks))))


@pytest.mark.parametrize(
    "marks",
    [
        ["", " "],
        ["train", "train"],
        ["train", "val"],
        ["train", "test"],
        ["train", "", "val"],
        ["train", "", "test"],
        ["", "val"],
        ["", "test"],
    ],
)
def test_parts_that_make_sense(tmp_path: Path, marks: list[str]) -> None:
    records, _ = read(write_marked(tmp_path / "x", *marks))
    assert [record.part for record in records] == [mark.strip() for mark in marks]


@pytest.mark.parametrize(
    ("marks", "said"),
    [(["val"], "1 val"), (["test", "test"], "2 test"), (["val", "test", "val"], "1 test, 2 val")],
)
def test_rows_marked_val_or_test_alone_are_refused(tmp_path: Path, marks: list[str], said: str) -> None:
    fail(write_marked(tmp_path / "x", *marks), rf"x: no row is marked as train \({said}\); mark those to learn from\.")


def test_rows_marked_train_or_blank_alone_are_refused(tmp_path: Path) -> None:
    folder = write_marked(tmp_path / "x", "train", "", "", "train", " ")
    fail(
        folder,
        r"x: rows are marked as train or not at all \(3 blank, 2 train\); mark val and test too, or set "
        r"fetch\.table\.split to '-' in params\.yaml, which deals all rows\.",
    )
    (tmp_path / "raw of x").rmdir()
    assert {record.part for record in read(folder, split="-")[0]} == {""}


def test_a_blank_mark_leaves_the_row_to_the_name_of_its_table(tmp_path: Path) -> None:
    write(tmp_path / "x", "file,label,split\na,1,\nb,1,val\nc,1, \n", "a", "b", "c", name="m_train.csv")
    write(tmp_path / "x", "file,label,split\nd,1,test\ne,1,\n", "d", "e", name="m_test.csv")
    parts = {record.key: record.part for record in read(tmp_path / "x")[0]}
    assert parts == {"a": "train", "b": "val", "c": "train", "d": "test", "e": "test"}


def test_tables_of_val_and_test_alone_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", "file,label\na,1\n", "a", name="val.csv")
    write(tmp_path / "x", "file,label\nb,1\n", "b", name="test.csv")
    fail(tmp_path / "x", r"x: no row is marked as train \(1 test, 1 val\)")


# Columns that are missing or doubled


@pytest.mark.parametrize("key", ["path", "label", "split", "group"])
def test_a_column_that_the_table_lacks(tmp_path: Path, key: str) -> None:
    folder = write(tmp_path / "x", "file,label\na,1\n", "a")
    fail(
        folder,
        rf"fetch\.table\.{key}: labels\.csv has no column 'klass'; its columns are: file, label",
        **{key: "klass"},
    )


FILES = "path, filepath, file, filename, imagepath, image, img, imagename, imageid, id"
LABELS = "classname, class, label, classlabel, target, y"
ANY = "(any case, spaces and underscores do not matter)"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "file,kind",
            f"labels.csv: no column names a label: found file, kind; expected one called {LABELS} {ANY}. Is the line "
            "with the names missing? Else name the column in fetch.table.label in params.yaml.",
        ),
        (
            "a.png,1",
            f"labels.csv: no column names a file: found a.png, 1; expected one called {FILES} {ANY}. Is the line with "
            "the names missing? Else name the column in fetch.table.path in params.yaml.",
        ),
        ("file,label,label", "labels.csv: several columns are called 'label'; rename them."),
        (
            "file,label,Label",
            "labels.csv: the columns 'label', 'Label' may both name a label; rename one. Else name the column in "
            "fetch.table.label in params.yaml.",
        ),
        (
            "file,label,File",
            "labels.csv: the columns 'file', 'File' may both name a file; rename one. Else name the column in "
            "fetch.table.path in params.yaml.",
        ),
        (
            "file,label,split,Split",
            "labels.csv: the columns 'split', 'Split' may both name a split; rename one. Else name the column in "
            "fetch.table.split in params.yaml.",
        ),
    ],
)
def test_a_header_that_is_missing_or_doubled(tmp_path: Path, header: str, message: str) -> None:
    row = ",".join(["a.png", "1", "", ""][: header.count(",") + 1])
    fail(write(tmp_path / "x", f"{header}\n{row}\n", "a.png"), f"^{re.escape(message)}$")


def test_no_line_with_the_names_is_missing_in_a_parquet_table(tmp_path: Path) -> None:
    pd.DataFrame({"file": ["a"], "kind": ["x"]}).to_parquet(write_files(tmp_path / "x", "a") / "x.parquet")
    message = (
        f"x.parquet: no column names a label: found file, kind; expected one called {LABELS} {ANY}. Else name the "
        "column in fetch.table.label in params.yaml."
    )
    fail(tmp_path / "x", f"^{re.escape(message)}$")


# Where the images are


@pytest.mark.parametrize(
    ("table", "images", "text", "file"),
    [
        ("labels.csv", "", "a.png", "a.png"),
        ("labels.csv", "", "img/a.png", "img/a.png"),
        ("labels.csv", "", "./img//a.png", "img/a.png"),
        ("labels.csv", "", "a.png", "labels/a.png"),
        ("set/labels.csv", "", "a.png", "set/a.png"),
        ("set/labels.csv", "", "a.png", "set/labels/a.png"),
        ("set/labels.csv", "", "../img/a.png", "img/a.png"),
        ("set/labels.csv", ".", "a.png", "a.png"),
        ("labels.csv", "img/large", "a.png", "img/large/a.png"),
        ("labels.csv", "./img/", "large/a.png", "img/large/a.png"),
        ("labels.csv", "", "img\\large\\a.png", "img/large/a.png"),
        ("labels.csv", "img", ".\\large\\a.png", "img/large/a.png"),
        ("labels.csv", "", NFC, NFD),
        ("labels.csv", "", NFD, NFC),
        ("labels.csv", "", NFC, f"labels/{NFD}"),
        pytest.param("labels.csv", "", "a\\b.png", "a\\b.png", marks=only_posix),
        pytest.param("labels.csv", "", "a:b.png", "a:b.png", marks=only_posix),
    ],
)
def test_paths_as_tables_write_them(tmp_path: Path, table: str, images: str, text: str, file: str) -> None:
    folder = write(tmp_path / "x", f"file,label\n{text},1\n", file, name=table)
    (record,) = read(folder, file=table, images=images)[0]
    assert read_bytes(record).decode() == file
    assert record.source == file


@only_posix
def test_of_two_forms_of_one_name_each_row_gets_its_own(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("other disks do not tell them apart")
    records, _ = read(write(tmp_path / "x", f"file,label\n{NFC},1\n{NFD},2\n", NFC, NFD))
    assert [read_bytes(record).decode() for record in records] == [NFC, NFD]
    assert len({unicodedata.normalize("NFC", record.key).casefold() for record in records}) == 2


@pytest.mark.parametrize("header", ["id,breed", "image_id,breed", "image name,breed", "Image ID,breed"])
@pytest.mark.parametrize("home", ["", "labels/", "v1.0/"])
def test_a_path_without_its_ending(tmp_path: Path, header: str, home: str) -> None:
    folder = write(tmp_path / "x", f"{header}\n07a.1,pug\ndeep/07b,husky\n", f"{home}07a.1.jpg", f"{home}deep/07b.PNG")
    records, info = read(folder, label="breed", images=home if home == "v1.0/" else "")
    assert list_rows(records) == [("07a.1.jpg", "pug", ""), ("deep/07b.PNG", "husky", "")]
    assert [read_bytes(record).decode() for record in records] == [f"{home}07a.1.jpg", f"{home}deep/07b.PNG"]
    assert info.notes == [f"labels.csv: files from `{header.split(',')[0]}`, labels from `breed`"]


def test_of_two_files_that_differ_in_their_ending_none_is_guessed(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "id,label\na,1\nb,1\n", "a.jpg", "a.png", "b.jpg")
    records, info = read(folder)
    assert [record.source for record in records] == ["a", "b.jpg"]
    assert info.notes[1] == "rows whose file is missing (1):\n  labels.csv, line 2: a"
    with pytest.raises(FileNotFoundError):
        read_bytes(records[0])


def test_a_file_of_the_very_name_comes_before_one_with_an_ending(tmp_path: Path) -> None:
    records, _ = read(write(tmp_path / "x", "file,label\na,1\na.jpg,2\n", "a", "a.jpg"))
    assert [(read_bytes(record), record.class_name) for record in records] == [(b"a", "1"), (b"a.jpg", "2")]


def test_a_name_with_and_without_its_ending_is_one_file(tmp_path: Path) -> None:
    fail(
        write(tmp_path / "x", "file,label\na,1\na.jpg,2\n", "a.jpg"),
        r"files that several rows name \(1\):\n"
        r"  a\.jpg: labels\.csv, line 2 and labels\.csv, line 3, labels '1' and '2'\n",
    )


def test_the_dot_of_a_folder_begins_no_ending(tmp_path: Path) -> None:
    records, info = read(write(tmp_path / "x", "file,label\nset,1\nset.v1/a,2\n", "set.v1/a"))
    assert [record.source for record in records] == ["set", "set.v1/a"]
    assert info.notes[1] == "rows whose file is missing (1):\n  labels.csv, line 2: set"


def test_an_image_folder_that_is_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label\na,1\n", "imgs/a", "more/b/c")
    message = (
        r"fetch\.table\.images: there is no folder img; the folders beside the table labels\.csv are: imgs, more, "
        r"more/b\. Name one of them, or '' for the table's own\.$"
    )
    fail(folder, message, images="img")


@pytest.mark.parametrize(
    ("images", "text"),
    [
        *(
            ("", text)
            for text in ["../a", "..\\a", "/etc/passwd", "C:\\a", "c:/a", "img/../../a", "\\\\server\\a", "\\a"]
        ),
        *(("img", text) for text in ["../../a", "..\\..\\a", "/b", "C:\\b", "../img/../../a", "\\b"]),
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, images: str, text: str) -> None:
    folder = write(tmp_path / "x", f"file,label\nb,1\n{text},1\n", "img/b", "b", "etc/passwd")
    write_files(tmp_path, "a")
    with pytest.raises(InputError) as caught:
        read(folder, images=images)
    assert str(caught.value) == f"labels.csv, line 3: {text!r} leads out of the folder; expected a path below it."


def test_a_blank_path_is_refused(tmp_path: Path) -> None:
    fail(
        write(tmp_path / "x", "file,label\na,1\n ,2\n", "a"), r"labels\.csv, line 3: the path is blank; expected a file"
    )


# Rows and files that do not go together


def test_a_row_without_a_file_is_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    records, info = read(write(tmp_path / "x", "file,label\na,1\ngone,2\n", "a"))
    assert list_rows(records) == [("a", "1", ""), ("gone", "2", "")]
    assert info.notes[1:] == ["rows whose file is missing (1):\n  labels.csv, line 3: gone"]
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_bytes(records[1])


def test_where_every_file_is_missing_the_folder_is_the_wrong_one(tmp_path: Path) -> None:
    rows = "".join(f"{number},1\n" for number in range(25))
    with pytest.raises(InputError) as caught:
        read(write(tmp_path / "x", f"file,label\n{rows}", "img/0"))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("x: none of the files that the table names is there (25):")
    assert lines[1] == "  labels.csv, line 2: 0"
    assert lines[-2:] == [
        "  … and 5 more",
        "Name the folder that its paths start from in fetch.table.images in params.yaml.",
    ]


def test_files_that_no_row_names_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    names = [f"img/{number:02d}" for number in range(25)]
    _, info = read(write(tmp_path / "x", "file,label\n00,1\n", *names, "elsewhere/x"), images="img")
    (_, note) = info.notes
    lines = note.splitlines()
    assert lines[:2] == ["files that no row names were left out (24):", "  img/01"]
    assert lines[-2:] == ["  img/20", "  … and 4 more"]


def test_litter_and_tables_are_no_files_that_a_row_should_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label\na,1\n", "a", ".DS_Store", "deep/more.csv")
    (litter, columns) = read(folder)[1].notes
    assert litter == "left out 1 file that no dataset needs: .DS_Store"
    assert columns == "labels.csv: files from `file`, labels from `label`"


def test_a_file_that_two_rows_name(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(write(tmp_path / "x", "file,label\na,cat\nb,dog\n./a,dog\nb,dog\n", "a", "b"))
    assert str(caught.value).splitlines() == [
        "files that several rows name (2):",
        "  a: labels.csv, line 2 and labels.csv, line 4, labels 'cat' and 'dog'",
        "  b: labels.csv, line 3 and labels.csv, line 5, the same label",
        "Leave one row for each file.",
    ]


# Labels


@pytest.mark.parametrize(
    "label", ["NA", "null", "None", "nan", "007", "1e5", "no", "1.0", "=cmd()", "a/b", "CON", "../x"]
)
def test_labels_stay_the_text_that_they_are(tmp_path: Path, label: str) -> None:
    records, info = read(write(tmp_path / "x", f"file,label\na.png,{label}\nb.png,7\n", "a.png", "b.png"))
    assert [record.class_name for record in records] == [label, "7"]
    assert set(info.classes) == {label, "7"}
    assert [record.key for record in records] == ["a.png", "b.png"]


@pytest.mark.parametrize("label", ["", " ", "\t"])
def test_blank_labels_are_listed(tmp_path: Path, label: str) -> None:
    rows = "".join(f"f{number:02d},{label}\n" for number in range(25))
    folder = write(tmp_path / "x", f"file,label\na,1\n{rows}", "a")
    fail(folder, r"rows without a label \(25\):\n  labels\.csv, line 3: f00\n(?s:.*)… and 5 more\nGive each a label")


@pytest.mark.parametrize("labels", [["cat", "Cat"], ["cat", " cat"], ["é", unicodedata.normalize("NFD", "é")]])
def test_labels_that_are_almost_the_same_have_to_be_listed(tmp_path: Path, labels: list[str]) -> None:
    folder = write(tmp_path / "x", f"file,label\na,{labels[0]}\nb,{labels[1]}\nc,dog\n", "a", "b", "c")
    fail(folder, r"classes that differ only in case, spaces or the form of their accents \(1\):\n  ")
    (tmp_path / "raw of x").rmdir()
    records, info = read(folder, classes=write_chosen(tmp_path / "c.csv", dict.fromkeys(labels, "cat")))
    assert [(record.key, record.class_name) for record in records] == [("a", "cat"), ("b", "cat")]
    assert info.list_classes() == ["cat"]


# Tables that are none


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,1\n".encode("utf-16"), r"labels\.csv: byte 0 is not UTF-8, but UTF-16; save the file as UTF-8"),
        ("file,label\né,1\n".encode("latin-1"), r"labels\.csv: byte 11 is not UTF-8; save the file as UTF-8"),
        (
            b"file;label\na;1\n",
            r"labels\.csv: its header is separated by semicolons, expected commas; save it with comm",
        ),
        (b"file\tlabel\na\t1\n", r"labels\.csv: its header is separated by tabs, expected commas; .*end in \.tsv"),
        (
            b"file,label\na,1,2\n",
            r"labels\.csv: the header has 2 cells, but rows have others \(1\):\n  line 2: 3 cells",
        ),
        (b'file,label\na,"1\n', r"labels\.csv:2: not a CSV \(unexpected end of data\)"),
        (b"file,label\na,\x001\n", r"labels\.csv:2: holds a NUL character"),
        (b"file,label\na," + b"x" * 200_000, r"labels\.csv:2: not a CSV \(field larger than field limit"),
        (b"file,label\ra,1\r", r"labels\.csv: its lines end in CR alone"),
        (b"file,label\n", r"labels\.csv: has no rows; expected one for each image"),
        (b"", r"labels\.csv: not a CSV with a header: there is nothing in it"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    fail(write(tmp_path / "x", text, "a"), message)


@only_posix
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "x", "a")
    (folder / "labels.csv").symlink_to("gone.csv")
    fail(folder, r"labels\.csv: cannot be read: there is no such file")


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "file,label\na,1\nb\x1b[2J,\n", "a", "c")
    fail(folder, r"rows without a label \(1\):\n  labels\.csv, line 3: b\\x1b\[2J\n")


def test_control_characters_of_columns_do_not_reach_the_terminal(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", "fi\x1ble,la\x07bel,sp\x1blit\na,1,\n", "a")
    (note,) = read(folder)[1].notes
    assert note == r"labels.csv: files from `fi\x1ble`, labels from `la\x07bel`, split from `sp\x1blit`"
    folder = write(tmp_path / "y", "file,label,sp\x1blit\na,1,left\n", "a")
    fail(folder, r"labels\.csv, line 2: sp\\x1blit is 'left'; expected train")


# Keys, and archives


def test_names_that_a_disk_may_refuse_get_safe_keys(tmp_path: Path) -> None:
    names = ["CON", "a/b?.png", "Cat.png", "cat.png"]
    rows = "".join(f"{name},1\n" for name in names)
    records, _ = read(write(tmp_path / "x", f"file,label\nreal,1\n{rows}", "real"))
    keys = [record.key for record in records]
    assert keys[:3] == ["real", "%43ON", "a/b%3F.png"]
    assert keys[3].startswith("Cat.png~")
    assert keys[4].startswith("cat.png~")
    assert [record.source for record in records] == ["real", *names]


def test_one_path_of_two_tables_gives_two_keys(tmp_path: Path) -> None:
    for name in ("m_train", "m_test"):
        write(tmp_path / "x", "file,label,split\n1.png,a,\n", f"{name}/1.png", name=f"{name}.csv")
    records, _ = read(tmp_path / "x")
    assert {record.key: read_bytes(record) for record in records} == {
        "train/1.png": b"m_train/1.png",
        "test/1.png": b"m_test/1.png",
    }
    for name in ("m_train", "m_test"):
        write(tmp_path / "y", "file,label,split\n1.png,a,train\n", f"{name}/1.png", name=f"{name}.csv")
    records, _ = read(tmp_path / "y")
    assert [read_bytes(record) for record in records] == [b"m_test/1.png", b"m_train/1.png"]
    keys = [record.key for record in records]
    assert all(re.fullmatch(r"train/1\.png~[0-9a-f]{8}", key) for key in keys)
    assert len(set(keys)) == 2


def test_the_order_of_the_rows_does_not_change_a_key(tmp_path: Path) -> None:
    rows = ["a,1", "A,1", "b,2", "é,1", "x/y,2"]
    forth, _ = read(write(tmp_path / "1" / "x", "\n".join(["file,label", *rows]), "a"))
    back, _ = read(write(tmp_path / "2" / "x", "\n".join(["file,label", *rows[::-1]]), "a"))
    assert sorted(list_rows(forth)) == sorted(list_rows(back))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_an_archive_gives_the_records_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = write_mnist(tmp_path / "plain" / "mnist")
    expected, described = read(folder)
    records, info = read(pack(folder, tmp_path / name))
    assert list_rows(records) == list_rows(expected)
    assert [record.source for record in records] == [record.source for record in expected]
    assert [read_bytes(record) for record in records] == [read_bytes(record) for record in expected]
    assert (info.classes, info.notes, info.name) == (described.classes, described.notes, "a")
    assert all(isinstance(record.image, FileSlice) for record in records)


def test_a_table_in_the_folder_that_wraps_an_archive(tmp_path: Path) -> None:
    write_mnist(tmp_path / "plain" / "mnist")
    records, _ = read(pack(tmp_path / "plain", tmp_path / "a.zip"))
    assert {record.source.split("/")[0] for record in records} == {"mnist"}
    assert sorted(record.key for record in records)[:2] == ["2.png", "test/0.png"]
