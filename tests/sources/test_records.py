import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagepipe.core.errors import InputError
from imagepipe.sources.records import (
    ArrayPart,
    Record,
    SourceInfo,
    make_array_records,
    read_source_info,
    write_source_info,
)

RAW = Path("raw")
INFO = SourceInfo(
    source="torchvision",
    name="EMNIST",
    options={"split": "letters"},
    licence="none",
    citation="Müller 😀",
    homepage="https://example.org",
    classes=["NA", "007"],
    files={"gzip.zip": "0" * 64},
    chosen=[("007", "seven"), ("NA", "none")],
    published=True,
    empty_classes=["no"],
    notes=["one\n  two"],
)


def get_pixels(record: Record) -> NDArray[np.uint8]:
    assert isinstance(record.image, np.ndarray)
    return record.image


def make_part(part: str, labels: list[int], images: int | None = None) -> ArrayPart:
    """Images of 1×2 pixels: each holds its own number, and 9."""
    pixels = np.array([[[number, 9]] for number in range(len(labels) if images is None else images)], np.uint8)
    return ArrayPart(part, f"{part}.bin", pixels.reshape(-1, 1, 2), np.array(labels, np.int64))


def test_keys_go_on_through_all_parts() -> None:
    records = make_array_records([make_part("train", [1, 0, 1]), make_part("test", [0, 1])], ["a", "b"], RAW)
    assert [record.key for record in records] == ["00000", "00001", "00002", "00003", "00004"]
    assert [record.part for record in records] == ["train", "train", "train", "test", "test"]
    assert [record.class_name for record in records] == ["b", "a", "b", "a", "b"]
    assert [record.source for record in records][1:4] == ["train.bin#1", "train.bin#2", "test.bin#0"]
    assert [get_pixels(record).tolist() for record in records[2:4]] == [[[2, 9]], [[0, 9]]]
    assert {record.group for record in records} == {""}


@pytest.mark.parametrize(("count", "last"), [(1, "00000"), (100_000, "99999"), (100_001, "100000")])
def test_keys_have_five_digits_or_as_many_as_are_needed(count: int, last: str) -> None:
    part = ArrayPart("", "x", np.zeros((count, 1, 1), np.uint8), np.zeros(count, np.uint8))
    records = make_array_records([part], ["a"], RAW)
    assert records[-1].key == last
    assert records[0].key == "0" * len(last)


def test_an_empty_part_gives_no_records() -> None:
    assert [r.key for r in make_array_records([make_part("train", []), make_part("test", [0])], ["a"], RAW)] == [
        "00000"
    ]


def test_labels_and_images_that_differ_in_number_are_counted() -> None:
    with pytest.raises(InputError, match=r"^raw[/\\]train\.bin: 3 images but 2 labels; fetch it again\.$"):
        make_array_records([make_part("train", [0, 0], images=3)], ["a"], RAW)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 1]])
def test_labels_without_a_class_name_are_shown(labels: list[int]) -> None:
    expected = rf"^raw[/\\]test\.bin: labels from {min(labels)} to {max(labels)}, expected 0 to 1\.$"
    with pytest.raises(InputError, match=expected):
        make_array_records([make_part("test", labels)], ["a", "b"], RAW)


def test_the_description_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_source_info(tmp_path, INFO)
    assert read_source_info(tmp_path) == INFO


def test_the_description_has_sorted_keys_and_plain_text(tmp_path: Path) -> None:
    write_source_info(tmp_path, INFO)
    text = (tmp_path / "source.json").read_text("utf-8")
    assert list(json.loads(text)) == sorted(INFO.model_dump())
    assert '\n  "citation": "Müller 😀",\n  "classes": [\n' in text
    assert text.endswith("}\n")


def test_an_absent_description_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source\.json: cannot be read: No such file.*Run the fetch stage first"):
        read_source_info(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "Field required"),
        (INFO.model_dump_json()[:-1] + ', "more": 1}', "Extra inputs"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "source.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=rf"source\.json: not a source description: {reason}.*Fetch it again"):
        read_source_info(tmp_path)


def test_classes_come_as_they_were_chosen_each_once() -> None:
    chosen = [("dog", "pet"), ("ant", "insect"), ("cat", "pet")]
    assert INFO.model_copy(update={"chosen": chosen}).list_classes() == ["pet", "insect"]


@pytest.mark.parametrize(
    ("classes", "order"),
    [(["b", "a", "B"], ["B", "a", "b"]), (["10", "9"], ["9", "10"]), (["10", "9", "x"], ["10", "9", "x"])],
)
def test_without_a_choice_classes_come_in_their_own_order(classes: list[str], order: list[str]) -> None:
    assert INFO.model_copy(update={"chosen": [], "classes": classes}).list_classes() == order
