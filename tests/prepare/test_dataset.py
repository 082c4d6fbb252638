import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imagepipe.core.errors import InputError
from imagepipe.core.files import hash_file
from imagepipe.core.manifest import COLUMNS, SPLITS, check_labels, hash_pixels, read_dataset_info, read_manifest
from imagepipe.prepare.dataset import Prepared, prepare_dataset
from imagepipe.prepare.params import Fractions, SplitParams
from imagepipe.sources.records import Record, SourceInfo

MakeRecords = Callable[..., list[Record]]


def make_source(classes: Sequence[str]) -> SourceInfo:
    return SourceInfo(
        source="made",
        name="made",
        options={"kind": "small"},
        licence="CC0",
        citation="nobody",
        homepage="https://example.org",
        classes=list(classes),
        files={},
    )


def make_params(train: float = 0.5, val: float = 0.25, test: float = 0.25, seed: int = 1) -> SplitParams:
    return SplitParams(
        first=0,
        strategy="stratified",
        fractions=Fractions(train=train, val=val, test=test),
        seed=seed,
        limit_per_split=0,
        limit_choice="balanced",
        layout="single",
    )


def prepare(
    records: Sequence[Record],
    folder: Path,
    params: SplitParams | None = None,
    classes: Sequence[str] | None = None,
) -> Prepared:
    """`prepare_dataset` into `folder/images` and `folder/manifests`; the source lists the records' own classes."""
    names = classes if classes is not None else list(dict.fromkeys(record.class_name for record in records))
    source = make_source(names)
    return prepare_dataset(records, source, params or make_params(), folder / "images", folder / "manifests", 1)


def read_all(folder: Path) -> pd.DataFrame:
    """The three manifests in one table."""
    return pd.concat([read_manifest(folder / "manifests" / f"{split}.csv") for split in SPLITS], ignore_index=True)


def read_folder(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.is_file()}


# What is written


def test_the_files_of_the_contract(tmp_path: Path, make_records: MakeRecords) -> None:
    prepared = prepare(make_records({"cat": 8, "dog": 4}), tmp_path)
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == [
        "dataset.json",
        "rejected.csv",
        "test.csv",
        "train.csv",
        "val.csv",
    ]
    assert (tmp_path / "manifests" / "rejected.csv").read_bytes() == b"source,reason\n"
    assert read_dataset_info(tmp_path / "manifests" / "dataset.json").counts == prepared.info.counts
    assert prepared.encoded == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "manifests"]


def test_manifests_have_the_columns_of_the_contract_in_order(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8, "dog": 4}), tmp_path)
    for split in SPLITS:
        data = (tmp_path / "manifests" / f"{split}.csv").read_bytes()
        assert data.startswith(b"path,label,class,split,group,pixel_sha256,width,height,mode,source\n")
        assert b"\r" not in data
        assert list(read_manifest(tmp_path / "manifests" / f"{split}.csv").columns) == list(COLUMNS)


def test_rows_are_sorted_by_path_whatever_the_order_of_the_records(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 8, "dog": 4})
    records[0] = replace(records[0], key="zebra/1")
    records[5] = replace(records[5], key="Zebra/1")
    prepare(records, tmp_path / "a")
    prepare(records[::-1], tmp_path / "b", classes=["dog", "cat"])
    for split in SPLITS:
        paths = read_manifest(tmp_path / "a" / "manifests" / f"{split}.csv")["path"].tolist()
        assert paths == sorted(paths)
        name = f"manifests/{split}.csv"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_each_row_says_what_is_true_of_its_image(tmp_path: Path, make_records: MakeRecords) -> None:
    records = [replace(record, group=f"g{record.key}") for record in make_records({"cat": 4, "dog": 4})]
    prepare(records, tmp_path)
    table = read_all(tmp_path)
    assert sorted(table["path"]) == [f"{number:05d}.png" for number in range(8)]
    by_path = {row["path"]: row for row in table.to_dict("records")}
    for number, record in enumerate(records):
        row = by_path[f"{record.key}.png"]
        assert (row["class"], row["label"]) == (("cat", 0) if number < 4 else ("dog", 1))
        assert (row["width"], row["height"], row["mode"]) == (5, 4, "L")
        assert (row["source"], row["group"]) == (f"made#{number}", f"g{record.key}")
        with Image.open(tmp_path / "images" / row["path"]) as image:
            assert hash_pixels(image.mode, np.asarray(image)) == row["pixel_sha256"]


def test_each_row_stands_in_the_file_of_its_split(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8}), tmp_path)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        assert read_manifest(tmp_path / "manifests" / f"{split}.csv")["split"].tolist() == [split] * count


def test_a_split_that_nobody_asked_for_is_a_header(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8}), tmp_path, make_params(0.5, 0.0, 0.5))
    assert len(read_manifest(tmp_path / "manifests" / "val.csv")) == 0
    assert list(read_manifest(tmp_path / "manifests" / "val.csv").columns) == list(COLUMNS)


def test_the_description_counts_what_the_manifests_hold(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8, "dog": 4, "NA": 11}), tmp_path)
    info = read_dataset_info(tmp_path / "manifests" / "dataset.json")
    table = read_all(tmp_path)
    assert info.counts == {
        split: {name: int(((table["split"] == split) & (table["class"] == name)).sum()) for name in info.classes}
        for split in SPLITS
    }
    assert sum(sum(counts.values()) for counts in info.counts.values()) == 23
    assert info.counts["train"] == {"NA": 5, "cat": 4, "dog": 2}


def test_the_description_repeats_source_and_params(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8}, "train") + make_records({"cat": 2}, "test", first=8), tmp_path)
    info = json.loads((tmp_path / "manifests" / "dataset.json").read_text("utf-8"))
    assert info["format"] == 1
    assert info["source"]["licence"] == "CC0"
    assert info["source"]["citation"] == "nobody"
    assert info["source"]["options"] == {"kind": "small"}
    assert info["split"] == {
        "first": 0,
        "strategy": "stratified",
        "fractions": {"train": 0.5, "val": 0.25, "test": 0.25},
        "seed": 1,
        "limit_per_split": 0,
        "limit_choice": "balanced",
        "layout": "single",
        "official": ["test"],
    }
    assert info["image"] == {"mode": "L", "width": 5, "height": 4}


def test_no_path_of_the_machine_is_written(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8}), tmp_path)
    for path in [*(tmp_path / "manifests").iterdir(), tmp_path / "images" / "index.csv"]:
        assert str(tmp_path).encode() not in path.read_bytes()


# Classes


def list_classes(tmp_path: Path, make_records: MakeRecords, names: list[str]) -> list[str]:
    prepare(make_records(dict.fromkeys(names, 4)), tmp_path)
    info = read_dataset_info(tmp_path / "manifests" / "dataset.json")
    table = read_all(tmp_path)
    for split in SPLITS:
        path = tmp_path / "manifests" / f"{split}.csv"
        check_labels(path, read_manifest(path), info)
    assert sorted(set(table["label"])) == list(range(len(names)))
    return info.classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "-1", "0"], ["-1", "0", "9", "10"]),
        (["10", "9", "-1", "x"], ["-1", "10", "9", "x"]),
        (["b", "B", "ä", "a"], ["B", "a", "b", "ä"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
        (["7", "007", "8"], ["007", "7", "8"]),
    ],
)
def test_the_order_of_the_classes(
    tmp_path: Path, make_records: MakeRecords, names: list[str], expected: list[str]
) -> None:
    assert list_classes(tmp_path, make_records, names) == expected


STRANGE = [
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1e5",
    "no",
    "true",
    "12:30",
    '"quoted"',
    "'",
    "a,b",
    "two\nlines",
    " spaces ",
    "tab\t",
    "😀",
    "é",
    "e\u0301",
    "=cmd()",
    "#",
    "\ufeffmark",
    "..",
    "a/b",
]


def test_strange_names_come_back_from_the_manifests(tmp_path: Path, make_records: MakeRecords) -> None:
    assert list_classes(tmp_path, make_records, STRANGE) == sorted(STRANGE)
    table = read_all(tmp_path)
    assert sorted(table["class"]) == sorted(STRANGE * 4)


@pytest.mark.parametrize("name", ["a\rb", "a\r\nb", "\r", "a\0b"])
def test_control_characters_in_names_come_back(tmp_path: Path, make_records: MakeRecords, name: str) -> None:
    assert list_classes(tmp_path, make_records, [name, "plain"]) == sorted([name, "plain"])
    assert sorted(read_all(tmp_path)["class"]) == sorted([name, "plain"] * 4)


def test_strange_groups_and_sources_come_back(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 4})
    records = [replace(record, group="NA", source='a,"b"\nc😀') for record in records]
    prepare(records, tmp_path)
    table = read_all(tmp_path)
    assert set(table["group"]) == {"NA"}
    assert set(table["source"]) == {'a,"b"\nc😀'}


def test_a_class_missing_from_val_shifts_no_label(tmp_path: Path, make_records: MakeRecords) -> None:
    records = [
        *make_records({"a": 2, "b": 2, "c": 2}, "train"),
        *make_records({"a": 1, "c": 1}, "val", first=6),
        *make_records({"c": 1}, "test", first=8),
    ]
    prepare(records, tmp_path)
    val, test = (read_manifest(tmp_path / "manifests" / f"{split}.csv") for split in ("val", "test"))
    assert list(zip(val["class"], val["label"], strict=True)) == [("a", 0), ("c", 2)]
    assert list(zip(test["class"], test["label"], strict=True)) == [("c", 2)]
    assert read_dataset_info(tmp_path / "manifests" / "dataset.json").counts["val"] == {"a": 1, "b": 0, "c": 1}


def test_a_class_without_images_keeps_its_label(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"a": 4, "c": 4}), tmp_path, classes=["c", "b", "a"])
    info = read_dataset_info(tmp_path / "manifests" / "dataset.json")
    assert info.classes == ["a", "b", "c"]
    assert info.counts["train"] == {"a": 2, "b": 0, "c": 2}
    assert set(read_all(tmp_path)["label"]) == {0, 2}


# Mean and deviation


def fill(records: list[Record], values: list[list[int]]) -> list[Record]:
    """The records with images of 1×2 pixels of these values."""
    return [
        replace(record, pixels=np.array([pixels], np.uint8)) for record, pixels in zip(records, values, strict=True)
    ]


def test_mean_and_deviation_by_hand(tmp_path: Path, make_records: MakeRecords) -> None:
    records = fill(make_records({"a": 2}, "train"), [[0, 255], [0, 255]])
    info = prepare(records, tmp_path, make_params(1.0, 0.0, 0.0)).info
    assert (info.mean, info.std) == ([0.5], [0.5])


def test_constant_images_have_no_deviation(tmp_path: Path, make_records: MakeRecords) -> None:
    records = fill(make_records({"a": 2}, "train"), [[51, 51], [51, 51]])
    info = prepare(records, tmp_path, make_params(1.0, 0.0, 0.0)).info
    assert (info.mean, info.std) == ([0.2], [0.0])


def test_val_and_test_do_not_count(tmp_path: Path, make_records: MakeRecords) -> None:
    records = [
        *fill(make_records({"a": 1}, "train"), [[0, 51]]),
        *fill(make_records({"a": 1}, "val", first=1), [[255, 255]]),
        *fill(make_records({"a": 1}, "test", first=2), [[255, 255]]),
    ]
    assert prepare(records, tmp_path).info.mean == [0.1]


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_mean_and_deviation_are_numpys_over_every_train_pixel(
    tmp_path: Path, make_records: MakeRecords, shape: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(0)
    records = [
        replace(record, pixels=generator.integers(0, 256, shape, dtype=np.uint8))
        for record in make_records({"a": 40, "b": 12})
    ]
    info = prepare(records, tmp_path).info
    train = set(read_manifest(tmp_path / "manifests" / "train.csv")["path"])
    pixels = np.stack([record.pixels for record in records if f"{record.key}.png" in train]) / 255
    channels = pixels.reshape(-1, 1 if len(shape) == 2 else 3)
    assert len(train) == 26
    assert info.mean == pytest.approx(channels.mean(axis=0).tolist(), rel=1e-12)
    assert info.std == pytest.approx(channels.std(axis=0).tolist(), rel=1e-12)
    written = read_dataset_info(tmp_path / "manifests" / "dataset.json")
    assert written.mean == [round(value, 8) for value in info.mean]
    assert written.image.channels == channels.shape[1]


# Another run


def test_another_seed_rewrites_manifests_and_no_image(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"a": 20, "b": 20})
    prepare(records, tmp_path)
    images, manifests = read_folder(tmp_path / "images"), read_folder(tmp_path / "manifests")
    assert prepare(records, tmp_path, make_params(seed=2)).encoded == 0
    assert read_folder(tmp_path / "images") == images
    assert read_folder(tmp_path / "manifests") != manifests
    prepare(records, tmp_path)
    assert read_folder(tmp_path / "manifests") == manifests


def test_a_limit_stores_only_what_is_kept(tmp_path: Path, make_records: MakeRecords) -> None:
    params = make_params().model_copy(update={"limit_per_split": 2})
    assert prepare(make_records({"a": 20, "b": 20}), tmp_path, params).encoded == 6
    assert len(list((tmp_path / "images").glob("*.png"))) == 6
    assert read_all(tmp_path)["class"].value_counts().to_dict() == {"a": 3, "b": 3}


def test_a_stranger_among_the_manifests_goes(tmp_path: Path, make_records: MakeRecords) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "old.csv").write_text("old")
    prepare(make_records({"a": 8}), tmp_path)
    assert not (tmp_path / "manifests" / "old.csv").exists()


# What is refused


def resize(records: list[Record], number: int, shape: tuple[int, ...]) -> list[Record]:
    """The records with one image of another shape."""
    other = replace(records[number], pixels=np.zeros(shape, np.uint8))
    return [*records[:number], other, *records[number + 1 :]]


def test_several_sizes_are_counted(tmp_path: Path, make_records: MakeRecords) -> None:
    records = resize(resize(make_records({"a": 8}), 2, (5, 4)), 3, (5, 4))
    with pytest.raises(InputError, match=r"images of several modes or sizes: 6 of L 5×4, 2 of L 4×5; expected one\.$"):
        prepare(records, tmp_path)


@pytest.mark.parametrize("number", range(4))
def test_several_modes_are_counted(tmp_path: Path, make_records: MakeRecords, number: int) -> None:
    records = resize(make_records({"a": 4}, "train"), number, (4, 5, 3))
    with pytest.raises(InputError, match=r"several modes or sizes: 3 of L 5×4, 1 of RGB 5×4; expected one\.$"):
        prepare(records, tmp_path, make_params(1.0, 0.0, 0.0))


@pytest.mark.parametrize("number", range(4))
def test_several_modes_of_colour_images_are_counted(tmp_path: Path, make_records: MakeRecords, number: int) -> None:
    records = make_records({"a": 4}, "train")
    for other in set(range(4)) - {number}:
        records = resize(records, other, (4, 5, 3))
    with pytest.raises(InputError, match=r"several modes or sizes: 3 of RGB 5×4, 1 of L 5×4; expected one\.$"):
        prepare(records, tmp_path, make_params(1.0, 0.0, 0.0))


def test_classes_that_the_source_does_not_list_are_named(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 4, "dog": 4, "NA": 4})
    with pytest.raises(InputError, match=r"^classes that the source's own list lacks: 'NA', 'dog'\.$"):
        prepare(records, tmp_path, classes=["cat"])
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "class too small": lambda records: records[:5],
    "no images": lambda records: [],
    "doubled keys": lambda records: [*records, records[0]],
    "unknown class": lambda records: [replace(record, class_name="bird") for record in records],
    "several sizes": lambda records: resize(records, 2, (5, 4)),
    "no image": lambda records: resize(records, 2, (5, 4, 2)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_nothing_is_written_where_the_split_cannot_be_made(
    tmp_path: Path, make_records: MakeRecords, reason: str
) -> None:
    refused = REFUSED[reason](make_records({"a": 4, "b": 4}))
    with pytest.raises(InputError):
        prepare(refused, tmp_path, classes=["a", "b"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", REFUSED)
def test_what_was_there_stays_where_the_split_cannot_be_made(
    tmp_path: Path, make_records: MakeRecords, reason: str
) -> None:
    records = make_records({"a": 4, "b": 4})
    prepare(records, tmp_path)
    before = read_folder(tmp_path)
    with pytest.raises(InputError):
        prepare(REFUSED[reason](records), tmp_path, classes=["a", "b"])
    assert read_folder(tmp_path) == before
