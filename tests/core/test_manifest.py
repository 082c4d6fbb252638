from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagepipe.core.errors import InputError
from imagepipe.core.files import write_csv
from imagepipe.core.manifest import (
    COLUMNS,
    DatasetInfo,
    ImageInfo,
    LeakInfo,
    check_labels,
    list_user_columns,
    order_classes,
    read_dataset_info,
    read_manifest,
    read_split,
    write_manifests,
)
from imagepipe.core.tables import read_text_table

HEADER = "path,label,class,split,group,pixel_sha256,width,height,mode,source\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes | str], Path]:
    def write_file(content: bytes | str) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def make_info(classes: list[str]) -> DatasetInfo:
    return DatasetInfo(
        format=1,
        classes=classes,
        image=ImageInfo(mode="L", width=2, height=1),
        mean=[1 / 3],
        std=[0.25],
        counts={"train": {name: 1 for name in classes}},
        source={"name": "made"},
        split={"seed": 1},
        leaks=LeakInfo(policy="drop", duplicates=1, groups=2, labels=3, dropped=4, repeated=5, near=None),
    )


def make_leaks(policy: str, near: int | None) -> dict[str, object]:
    counts = {"duplicates": 1, "groups": 2, "labels": 3, "dropped": 4, "repeated": 5}
    return {"policy": policy, "near": near, **counts}


def make_row(path: str, split: str, label: int = 0, name: str = "NA") -> dict[str, object]:
    return dict(zip(COLUMNS, [path, label, name, split, "", "ab", 2, 1, "L", "made"], strict=True))


def refuse(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["7", "007", "8"], ["007", "7", "8"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["b", "a", "B", "é", "NA"], ["B", "NA", "a", "b", "é"]),
        (["1.5", "1"], ["1", "1.5"]),
        (["9" * 5000, "10", "9"], ["10", "9", "9" * 5000]),
        ([], []),
    ],
)
def test_orders_classes(names: list[str], ordered: list[str]) -> None:
    assert order_classes(names) == ordered


@given(st.lists(st.text(max_size=5)))
def test_the_order_of_classes_does_not_depend_on_that_of_the_rows(names: list[str]) -> None:
    assert order_classes(names) == order_classes(reversed(names))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_knows_the_channels_of_a_mode(mode: str, channels: int) -> None:
    assert ImageInfo(mode=mode, width=1, height=1).channels == channels


def test_writes_one_sorted_csv_for_each_split(tmp_path: Path) -> None:
    rows = [make_row("b.png", "train"), make_row("c.png", "val"), make_row("a.png", "train", 1, "007")]
    write_manifests(tmp_path, pd.DataFrame(rows), make_info(["NA", "007"]))
    train = HEADER + "a.png,1,007,train,,ab,2,1,L,made\nb.png,0,NA,train,,ab,2,1,L,made\n"
    assert (tmp_path / "train.csv").read_bytes().decode() == train
    assert (tmp_path / "val.csv").read_bytes().decode() == HEADER + "c.png,0,NA,val,,ab,2,1,L,made\n"
    assert (tmp_path / "test.csv").read_bytes().decode() == HEADER


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    table = pd.DataFrame([make_row("a.png", "train"), make_row("b.png", "train", 1, "1e5")])
    write_manifests(tmp_path, table, make_info(["NA", "1e5"]))
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "train.csv"), table, check_dtype=False)
    assert read_dataset_info(tmp_path / "dataset.json") == make_info(["NA", "1e5"]).model_copy(
        update={"mean": [0.33333333]}
    )


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    expected = f"{tmp_path / 'train.csv'}: cannot be read: No such file or directory. Run the stage that writes it"
    assert refuse(read_manifest, tmp_path / "train.csv").startswith(expected)


def test_the_users_own_columns_come_last_in_their_order(tmp_path: Path) -> None:
    rows = [make_row("a.png", "train") | {"user:weight": "007", "user:age": "NA"}]
    rows.append(make_row("b.png", "val") | {"user:weight": "", "user:age": 'a,"b"\nc'})
    write_manifests(tmp_path, pd.DataFrame(rows), make_info(["NA"]))
    header = HEADER.rstrip() + ",user:weight,user:age\n"
    assert (tmp_path / "train.csv").read_text("utf-8") == header + "a.png,0,NA,train,,ab,2,1,L,made,007,NA\n"
    assert (tmp_path / "test.csv").read_text("utf-8") == header
    table = read_manifest(tmp_path / "val.csv")
    assert list_user_columns(table) == ["user:weight", "user:age"]
    assert table[["user:weight", "user:age"]].values.tolist() == [["", 'a,"b"\nc']]


def test_columns_of_the_contract_are_nobodys_own() -> None:
    assert list_user_columns(pd.DataFrame(columns=[*COLUMNS, "more", "user:path"])) == ["user:path"]


def test_a_column_that_is_not_the_users_is_left_out(tmp_path: Path) -> None:
    write_manifests(tmp_path, pd.DataFrame([make_row("a.png", "train") | {"more": "1"}]), make_info(["NA"]))
    assert (tmp_path / "train.csv").read_text("utf-8").startswith(HEADER)


@pytest.mark.parametrize("policy", ["error", "drop", "keep"])
@pytest.mark.parametrize("near", [None, 0, 7])
def test_what_the_leak_gate_found_comes_back(tmp_path: Path, policy: str, near: int | None) -> None:
    info = make_info(["NA"]).model_copy(update={"leaks": LeakInfo.model_validate(make_leaks(policy, near))})
    write_manifests(tmp_path, pd.DataFrame([make_row("a.png", "train")]), info)
    assert read_dataset_info(tmp_path / "dataset.json").leaks.model_dump() == make_leaks(policy, near)


def test_a_split_is_read_and_its_labels_are_checked(tmp_path: Path) -> None:
    info = make_info(["NA"])
    write_manifests(tmp_path, pd.DataFrame([make_row("a.png", "train")]), info)
    assert read_split(tmp_path, "train", info)["path"].tolist() == ["a.png"]
    with pytest.raises(InputError, match=r"train\.csv: label and class disagree with dataset\.json \(1\)"):
        read_split(tmp_path, "train", make_info(["other"]))


def test_numbers_are_whole_and_all_else_is_text(write: Callable[[str], Path]) -> None:
    table = read_manifest(write(HEADER + "1.png,3,4,5,6,7,8,9,1,2\n"))
    assert table.to_dict("records") == [
        dict(zip(COLUMNS, ["1.png", 3, "4", "5", "6", "7", 8, 9, "1", "2"], strict=True))
    ]
    assert [table[name].dtype for name in ("label", "width", "height")] == ["int64"] * 3


def test_names_the_columns_that_a_manifest_lacks(write: Callable[[str], Path]) -> None:
    path = write("path,label,class,split,group,pixel_sha256,width,source\n")
    expected = f"{path}: the columns height, mode are missing; write it anew with the split stage."
    assert refuse(read_manifest, path) == expected


@pytest.mark.parametrize("label", ["-1", "1.0", "", "x", "1e3", " 1", "99999999999999999999"])
def test_names_the_row_of_a_label_that_is_no_number(write: Callable[[str], Path], label: str) -> None:
    path = write(HEADER + f"a.png,0,a,train,,x,1,1,L,s\nb.png,{label},b,train,,x,1,1,L,s\n")
    message = refuse(read_manifest, path)
    assert message.startswith(f"{path}: expected whole numbers from 0")
    assert f"(1):\n  row 3: label is {label!r}" in message


def test_a_line_end_in_a_label_is_no_part_of_a_number(write: Callable[[str], Path]) -> None:
    message = refuse(read_manifest, write(HEADER + 'a.png,0,a,train,,x,1,1,L,s\nb.png,"1\n",b,train,,x,1,1,L,s\n'))
    assert "(1):\n  row 3: label is '1\\n'" in message


@pytest.mark.parametrize(("text", "number"), [("007", 7), ("9" * 18, 10**18 - 1), ("0" * 18, 0)])
def test_numbers_are_read_whole(write: Callable[[str], Path], text: str, number: int) -> None:
    assert read_manifest(write(HEADER + f"a.png,{text},a,train,,x,1,1,L,s\n"))["label"].tolist() == [number]


@pytest.mark.parametrize(("column", "values"), [("width", "x,1"), ("height", "1,x")])
def test_names_the_row_of_a_size_that_is_no_number(write: Callable[[str], Path], column: str, values: str) -> None:
    message = refuse(read_manifest, write(HEADER + f"a.png,0,a,train,,x,{values},L,s\n"))
    assert f"row 2: {column} is 'x'" in message


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb", "a\r\nb", "a\rb", " a ", "#a", "=cmd()", "NA", "é", "'"])
def test_any_class_name_survives_the_file(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "x.csv", pd.DataFrame({"path": ["1", "2"], "class": [name, "plain"]}))
    assert read_text_table(tmp_path / "x.csv")["class"].tolist() == [name, "plain"]


def test_says_which_stage_writes_the_description(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    assert refuse(read_dataset_info, path) == (
        f"{path}: cannot be read: No such file or directory. Run the split stage first."
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"format":1', '"format":"1"', "format: Input should be 1"),
        ('"classes":["a"]', '"classes":[]', "classes: List should have at least 1 item"),
        ('"width":2', '"width":"x"', "image.width: Input should be a valid integer"),
        ('"std":[0.25]', '"sd":[0.25]', "std: Field required"),
        ('"format":1', '"format":1,"more":1', "more: Extra inputs are not permitted"),
        ('"policy":"drop"', '"policy":"auto"', "leaks.policy: Input should be 'error', 'drop' or 'keep'"),
        ('"near":null', '"far":null', "leaks.near: Field required"),
    ],
)
def test_names_what_is_wrong_in_the_description(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "dataset.json"
    text = make_info(["a"]).model_dump_json()
    assert old in text
    path.write_text(text.replace(old, new))
    message = refuse(read_dataset_info, path)
    assert message.startswith(f"{path}: {problem}")
    assert message.endswith("; run the split stage again.")


def test_a_newer_description_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """Whatever else a newer version has in it."""
    path = tmp_path / "dataset.json"
    path.write_text(make_info(["a"]).model_dump_json().replace('"format":1', '"format":2,"more":1'))
    assert refuse(read_dataset_info, path) == (
        f"{path}: made by a newer imagepipe: format 2, this one reads up to 1; update imagepipe, or run the split "
        "stage again."
    )


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "Invalid JSON"), (b'{"format', "Invalid JSON"), (b"[]", "Input")]
)
def test_refuses_a_damaged_description(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    assert refuse(read_dataset_info, path).startswith(f"{path}: {problem}")


def test_accepts_labels_that_agree_with_the_class_names() -> None:
    check_labels(Path("train.csv"), pd.DataFrame({"label": [1, 0], "class": ["b", "a"]}), make_info(["a", "b"]))


def test_names_the_rows_whose_label_and_class_disagree() -> None:
    table = pd.DataFrame({"label": [0, 0, 2], "class": ["a", "b", "b"]}, index=[5, 5, 5])
    with pytest.raises(InputError) as caught:
        check_labels(Path("train.csv"), table, make_info(["a", "b"]))
    assert str(caught.value) == (
        "train.csv: label and class disagree with dataset.json (2):\n"
        "  row 3: label 0 with class 'b'\n"
        "  row 4: label 2 with class 'b'\n"
        "Run the split stage again."
    )
