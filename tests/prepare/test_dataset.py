import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_file, hash_pixels
from imagepipe.core.manifest import COLUMNS, SPLITS, check_labels, read_dataset_info, read_manifest
from imagepipe.core.parallel import LocalEngine
from imagepipe.core.slices import FileSlice
from imagepipe.core.tables import read_text_table
from imagepipe.prepare.dataset import Prepared, are_constant, prepare_dataset
from imagepipe.prepare.images import encode_png
from imagepipe.prepare.index import ImageTable, put_facts
from imagepipe.prepare.params import SplitParams
from imagepipe.sources.records import Record, SourceInfo

MakeRecords = Callable[..., list[Record]]

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = load_section("split", SplitParams, ROOT / "recipes" / "base.yaml")


def make_source(classes: Sequence[str], **changes: object) -> SourceInfo:
    return SourceInfo(
        source="made",
        name="made",
        options={"kind": "small"},
        licence="CC0",
        citation="nobody",
        homepage="https://example.org",
        classes=list(classes),
        files={},
    ).model_copy(update=changes)


def make_params(
    train: float = 0.5,
    val: float = 0.25,
    test: float = 0.25,
    image: Mapping[str, object] | None = None,
    **changes: object,
) -> SplitParams:
    """The defaults with these shares, stratified, and further changes; those of `image` are a dictionary."""
    values = DEFAULTS.model_dump() | {"strategy": "stratified", "leaks": "keep"}
    values["fractions"] = {"train": train, "val": val, "test": test}
    values["image"] |= image or {}
    return SplitParams.model_validate(values | changes)


def prepare(
    records: Sequence[Record],
    folder: Path,
    params: SplitParams | None = None,
    classes: Sequence[str] | None = None,
    **source: object,
) -> Prepared:
    """`prepare_dataset` into `folder/images` and `folder/manifests`; the source lists the records' own classes."""
    names = classes if classes is not None else list(dict.fromkeys(record.class_name for record in records))
    info = make_source(names, **source)
    return prepare_dataset(
        records, info, params or make_params(), folder / "images", folder / "manifests", LocalEngine(1)
    )


def read_all(folder: Path) -> pd.DataFrame:
    """The three manifests in one table."""
    return pd.concat([read_manifest(folder / "manifests" / f"{split}.csv") for split in SPLITS], ignore_index=True)


def read_csv(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table among the manifests."""
    return read_text_table(folder / "manifests" / name).to_dict("records")  # pyright: ignore[reportReturnType]


def read_folder(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.is_file()}


# What is written


def test_the_files_of_the_contract(tmp_path: Path, make_records: MakeRecords) -> None:
    prepared = prepare(make_records({"cat": 8, "dog": 4}), tmp_path)
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == [
        "dataset.json",
        "leaks.csv",
        "rejected.csv",
        "test.csv",
        "train.csv",
        "val.csv",
    ]
    assert (tmp_path / "manifests" / "rejected.csv").read_bytes() == b"source,reason\n"
    assert read_dataset_info(tmp_path / "manifests" / "dataset.json").counts == prepared.info.counts
    assert (
        (tmp_path / "manifests" / "leaks.csv").read_bytes().startswith(b"kind,distance,action,split,key,class,source,")
    )
    assert (prepared.encoded, prepared.rejected, prepared.notes) == (12, 0, [])
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
    assert info["split"] == {**make_params().model_dump(), "official": {}}
    assert info["split"]["image"]["filter"] == "bilinear"
    assert info["image"] == {"mode": "L", "width": 5, "height": 4}


def test_the_description_names_the_sources_own_parts(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 8}, "train") + make_records({"cat": 2}, "test", first=8)
    prepare(records, tmp_path, make_params(strategy="official"))
    assert read_dataset_info(tmp_path / "manifests" / "dataset.json").split["official"] == {"test": "test"}


def test_no_path_of_the_machine_is_written(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"cat": 8}), tmp_path)
    for path in [*(tmp_path / "manifests").iterdir(), tmp_path / "images" / "index.arrow"]:
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


@pytest.mark.parametrize("name", ["a\rb", "a\r\nb", "\r"])
def test_control_characters_in_names_come_back(tmp_path: Path, make_records: MakeRecords, name: str) -> None:
    assert list_classes(tmp_path, make_records, [name, "plain"]) == sorted([name, "plain"])
    assert sorted(read_all(tmp_path)["class"]) == sorted([name, "plain"] * 4)


def test_strange_groups_and_sources_come_back(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 4})
    groups = ["NA", "null", "None", "007"]
    records = [replace(record, group=group, source='a,"b"\nc😀') for record, group in zip(records, groups, strict=True)]
    prepare(records, tmp_path)
    table = read_all(tmp_path)
    assert set(table["group"]) == set(groups)
    assert set(table["source"]) == {'a,"b"\nc😀'}


def test_a_class_missing_from_val_shifts_no_label(tmp_path: Path, make_records: MakeRecords) -> None:
    records = [
        *make_records({"a": 2, "b": 2, "c": 2}, "train"),
        *make_records({"a": 1, "c": 1}, "val", first=6),
        *make_records({"c": 1}, "test", first=8),
    ]
    prepare(records, tmp_path, make_params(strategy="official"))
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
    return [replace(record, image=np.array([pixels], np.uint8)) for record, pixels in zip(records, values, strict=True)]


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
    assert prepare(records, tmp_path, make_params(strategy="official")).info.mean == [0.1]


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_mean_and_deviation_are_numpys_over_every_train_pixel(
    tmp_path: Path, make_records: MakeRecords, shape: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(0)
    records = [
        replace(record, image=generator.integers(0, 256, shape, dtype=np.uint8))
        for record in make_records({"a": 40, "b": 12})
    ]
    info = prepare(records, tmp_path).info
    train = set(read_manifest(tmp_path / "manifests" / "train.csv")["path"])
    pixels = np.stack([record.image for record in records if f"{record.key}.png" in train]) / 255
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
    other = replace(records[number], image=np.zeros(shape, np.uint8))
    return [*records[:number], other, *records[number + 1 :]]


SEVERAL_SIZES = (
    r"^images of several modes or sizes \(2\):\n  6 of L 5×4, the first made#0\n  2 of L 4×5, the first made#2\n"
    r"A batch needs images of one kind: set split\.image\.height and split\.image\.width \(the images are "
    r"4 to 5 wide and 4 to 5 high\) in params\.yaml\.$"
)
SEVERAL_MODES = (
    r"^images of several modes or sizes \(2\):\n  3 of {} 5×4, the first made#\d\n  1 of {} 5×4, the first made#\d\n"
    r"A batch needs images of one kind: set split\.image\.mode \(L or RGB\) in params\.yaml\.$"
)


def test_several_sizes_are_counted(tmp_path: Path, make_records: MakeRecords) -> None:
    records = resize(resize(make_records({"a": 8}), 2, (5, 4)), 3, (5, 4))
    with pytest.raises(InputError, match=SEVERAL_SIZES):
        prepare(records, tmp_path)


@pytest.mark.parametrize("number", range(4))
def test_several_modes_are_counted(tmp_path: Path, make_records: MakeRecords, number: int) -> None:
    records = resize(make_records({"a": 4}, "train"), number, (4, 5, 3))
    with pytest.raises(InputError, match=SEVERAL_MODES.format("L", "RGB")):
        prepare(records, tmp_path, make_params(1.0, 0.0, 0.0))


@pytest.mark.parametrize("number", range(4))
def test_several_modes_of_colour_images_are_counted(tmp_path: Path, make_records: MakeRecords, number: int) -> None:
    records = make_records({"a": 4}, "train")
    for other in set(range(4)) - {number}:
        records = resize(records, other, (4, 5, 3))
    with pytest.raises(InputError, match=SEVERAL_MODES.format("RGB", "L")):
        prepare(records, tmp_path, make_params(1.0, 0.0, 0.0))


def test_several_modes_and_sizes_are_counted(tmp_path: Path, make_records: MakeRecords) -> None:
    records = resize(make_records({"a": 8}), 2, (5, 4, 3))
    with pytest.raises(InputError, match=r"set split\.image\.mode \(L or RGB\) and split\.image\.height and split\."):
        prepare(records, tmp_path)


def test_params_bring_them_to_one(tmp_path: Path, make_records: MakeRecords) -> None:
    records = resize(make_records({"a": 8}), 2, (5, 4, 3))
    params = make_params(image={"mode": "L", "height": 6, "width": 7})
    assert prepare(records, tmp_path, params).info.image.model_dump() == {"mode": "L", "width": 7, "height": 6}


def test_classes_that_the_source_does_not_list_are_named(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 4, "dog": 4, "NA": 4})
    with pytest.raises(
        InputError,
        match=r"^classes that the source's own list lacks: 'NA', 'dog'; the source has changed since",
    ):
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


# Files


def make_files(folder: Path, count: int, size: int = 8) -> list[Record]:
    """Records of noisy PNGs, half of them cats and half of them dogs."""
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    records: list[Record] = []
    for number in range(count):
        path = folder / f"{number:03d}.png"
        path.write_bytes(encode_png(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)))
        records.append(make_record(path, "cat" if number < count // 2 else "dog"))
    return records


def make_record(path: Path, class_name: str) -> Record:
    return Record(path.name, class_name, "", "", path.name, FileSlice(path, 0, path.stat().st_size))


def spoil(records: Sequence[Record], *numbers: int) -> list[Record]:
    """The records with these files emptied, and listed again."""
    spoilt = list(records)
    for number in numbers:
        image = records[number].image
        assert isinstance(image, FileSlice)
        image.path.write_bytes(b"")
        spoilt[number] = make_record(image.path, records[number].class_name)
    return spoilt


def test_rejected_images_are_listed_sorted(tmp_path: Path) -> None:
    records = spoil(make_files(tmp_path / "source", 20), 11, 3)
    (tmp_path / "source" / "005.png").write_bytes(b"<html></html>")
    records[5] = make_record(tmp_path / "source" / "005.png", "cat")
    prepared = prepare(records[::-1], tmp_path, make_params(max_rejected=3))
    assert prepared.rejected == 3
    assert (tmp_path / "manifests" / "rejected.csv").read_text("utf-8") == (
        "source,reason\n"
        "003.png,the file is empty\n"
        "005.png,is not an image of a known format: it begins with b'<html></html>'\n"
        "011.png,the file is empty\n"
    )
    assert len(read_all(tmp_path)) == 17
    assert "003.png" not in set(read_all(tmp_path)["source"])
    assert len(list((tmp_path / "images").glob("*.png"))) == 17


def test_too_many_rejected_images_change_nothing(tmp_path: Path) -> None:
    records = make_files(tmp_path / "source", 60)
    prepare(records, tmp_path, make_params(seed=1))
    before = read_folder(tmp_path / "images") | read_folder(tmp_path / "manifests")
    spoilt = spoil(records, *range(25))
    with pytest.raises(InputError) as caught:
        prepare(spoilt, tmp_path, make_params(seed=2, max_rejected=24, layout="folders"))
    lines = str(caught.value).split("\n")
    assert lines[0] == "25 of 60 images cannot be used, more than split.max_rejected (24) allows (25):"
    assert lines[1:21] == [f"  {number:03d}.png: the file is empty" for number in range(20)]
    assert lines[21:] == [
        "  … and 5 more",
        "Mend or remove them, or raise split.max_rejected in params.yaml to leave them out; "
        "rejected.csv then lists all of them.",
    ]
    assert read_folder(tmp_path / "images") | read_folder(tmp_path / "manifests") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "manifests", "source"]


def test_nothing_is_left_where_all_images_are_rejected(tmp_path: Path) -> None:
    records = spoil(make_files(tmp_path / "source", 4), *range(4))
    with pytest.raises(InputError, match=r"^none of the images can be used \(4\):\n  000\.png: the file is empty\n"):
        prepare(records, tmp_path, make_params(max_rejected=100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_files_and_arrays_of_the_same_pixels_give_the_same_dataset(tmp_path: Path) -> None:
    files = make_files(tmp_path / "source", 20)
    prepare(files, tmp_path / "files")
    arrays: list[Record] = []
    for record in files:
        with Image.open(tmp_path / "source" / record.source) as image:
            arrays.append(replace(record, image=np.array(image)))
    prepare(arrays, tmp_path / "arrays")
    assert read_folder(tmp_path / "files" / "manifests") == read_folder(tmp_path / "arrays" / "manifests")
    pngs = {name: hash for name, hash in read_folder(tmp_path / "files" / "images").items() if name.endswith("png")}
    assert pngs.items() <= read_folder(tmp_path / "arrays" / "images").items()


# Layouts


def test_folders_show_the_split(tmp_path: Path, make_records: MakeRecords) -> None:
    prepare(make_records({"a": 8, "b": 8}), tmp_path, make_params(layout="folders"))
    table = read_all(tmp_path)
    for row in table.to_dict("records"):
        assert row["path"].startswith(f"{row['split']}/")
        assert (tmp_path / "images" / row["path"]).is_file()
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "index.arrow",
        "index.arrow.sha256",
        "test",
        "train",
        "val",
    ]


def test_another_seed_moves_files_and_encodes_nothing(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"a": 20, "b": 20})
    prepare(records, tmp_path, make_params(layout="folders"))
    before = read_folder(tmp_path / "images")
    assert prepare(records, tmp_path, make_params(layout="folders", seed=2)).encoded == 0
    assert read_folder(tmp_path / "images") != before
    prepare(records, tmp_path / "fresh", make_params(layout="folders", seed=2))
    for name in ("images", "manifests"):
        assert read_folder(tmp_path / name) == read_folder(tmp_path / "fresh" / name)


@pytest.mark.parametrize(("one", "other"), [("single", "folders"), ("folders", "single")])
def test_another_layout_moves_files_and_encodes_nothing(
    tmp_path: Path, make_records: MakeRecords, one: str, other: str
) -> None:
    records = make_records({"a": 8, "b": 8})
    records = [replace(record, key=f"train/{record.key}") if record.key < "00004" else record for record in records]
    prepare(records, tmp_path, make_params(layout=one))
    assert prepare(records, tmp_path, make_params(layout=other)).encoded == 0
    prepare(records, tmp_path / "fresh", make_params(layout=other))
    for name in ("images", "manifests"):
        assert read_folder(tmp_path / name) == read_folder(tmp_path / "fresh" / name)


# Limits


def read_index(folder: Path) -> dict[str, str]:
    """Key → path of every image that the index knows."""
    with pa.memory_map(str(folder / "images" / "index.arrow")) as file:
        return {row["key"]: row["path"] for row in pa.ipc.open_file(file).read_all().to_pylist()}


def test_the_index_knows_what_a_limit_left_out(tmp_path: Path) -> None:
    records = make_files(tmp_path / "source", 40)
    params = make_params(limit_per_split=3)
    assert prepare(records, tmp_path, params).encoded == 9
    kept = set(read_all(tmp_path)["path"])
    assert {path.name for path in (tmp_path / "images").glob("*.png")} == kept
    known = read_index(tmp_path)
    assert len(known) == 40
    assert {path for path in known.values() if path} == kept


@pytest.mark.slow
def test_another_seed_under_a_limit_encodes_only_who_is_new(tmp_path: Path) -> None:
    records = make_files(tmp_path / "source", 40)
    prepare(records, tmp_path, make_params(limit_per_split=3))
    before = set(read_all(tmp_path)["path"])
    params = make_params(limit_per_split=3, seed=2)
    encoded = prepare(records, tmp_path, params).encoded
    assert encoded == len(set(read_all(tmp_path)["path"]) - before) > 0
    prepare(records, tmp_path / "fresh", params)
    for name in ("images", "manifests"):
        assert read_folder(tmp_path / name) == read_folder(tmp_path / "fresh" / name)


def test_a_limit_that_goes_leaves_a_run_from_nothing(tmp_path: Path) -> None:
    records = make_files(tmp_path / "source", 40)
    prepare(records, tmp_path, make_params(limit_per_split=3))
    assert prepare(records, tmp_path, make_params()).encoded == 31
    prepare(records, tmp_path / "fresh", make_params())
    for name in ("images", "manifests"):
        assert read_folder(tmp_path / name) == read_folder(tmp_path / "fresh" / name)


def test_only_the_first_images_are_looked_at(tmp_path: Path) -> None:
    records = spoil(make_files(tmp_path / "source", 40), *range(16, 40))
    records = [replace(record, class_name="cat") for record in records]
    assert prepare(records, tmp_path, make_params(first=16)).encoded == 16


# The user's own columns


def test_the_users_columns_arrive_in_the_manifests(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"a": 8})
    records = [replace(record, columns={"age": f"0{record.key[-1]}", "path": "NA"}) for record in records]
    records[3] = replace(records[3], columns={"weight": "1e5"})
    prepare(records, tmp_path)
    table = read_all(tmp_path)
    assert list(table.columns) == [*COLUMNS, "user:age", "user:path", "user:weight"]
    for row in table.to_dict("records"):
        own = (row["user:age"], row["user:path"], row["user:weight"])
        number = row["source"].removeprefix("made#")
        assert own == (("", "", "1e5") if number == "3" else (f"0{number}", "NA", ""))


# Classes that were chosen


def test_chosen_classes_keep_their_order(tmp_path: Path, make_records: MakeRecords) -> None:
    records = [
        *make_records({"a": 2, "b": 2, "c": 2}, "train"),
        *make_records({"a": 1, "b": 1}, "val", first=6),
        *make_records({"c": 1}, "test", first=8),
    ]
    chosen = [("1", "c"), ("2", "a"), ("3", "b")]
    prepare(records, tmp_path, make_params(strategy="official"), chosen=chosen, classes=["1", "2", "3"])
    info = read_dataset_info(tmp_path / "manifests" / "dataset.json")
    assert info.classes == ["c", "a", "b"]
    assert info.counts["val"] == {"c": 0, "a": 1, "b": 1}
    val = read_manifest(tmp_path / "manifests" / "val.csv")
    assert list(zip(val["class"], val["label"], strict=True)) == [("a", 1), ("b", 2)]


def test_classes_that_were_joined_are_one(tmp_path: Path, make_records: MakeRecords) -> None:
    chosen = [("cat", "pet"), ("ship", "thing"), ("dog", "pet")]
    prepare(make_records({"pet": 8, "thing": 4}), tmp_path, chosen=chosen, classes=["cat", "dog", "ship"])
    info = read_dataset_info(tmp_path / "manifests" / "dataset.json")
    assert info.classes == ["pet", "thing"]


# Remarks


@pytest.mark.parametrize(
    ("pixels", "constant"),
    [
        (np.full((3, 4), 7), True),
        (np.full((1, 1), 0), True),
        (np.array([[7, 7, 8]]), False),
        (np.tile([1, 2, 3], (4, 5, 1)), True),
        (np.array([[[1, 2, 3], [1, 3, 3]]]), False),
    ],
)
def test_an_image_of_one_colour_is_known(pixels: NDArray[np.uint8], constant: bool) -> None:
    table = ImageTable.of_size(1)
    put_facts(table.rows, [pixels.astype(np.uint8)])
    assert are_constant(table.rows).tolist() == [constant]


def test_images_of_one_colour_are_noted(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"a": 8})
    for number in (2, 5):
        records[number] = replace(records[number], image=np.full((4, 5), number, np.uint8))
    notes = prepare(records, tmp_path).notes
    assert notes == ["2 images have one colour all over, the first made#2; are they meant?"]
    del records[5]
    assert prepare(records, tmp_path).notes == ["1 image has one colour all over: made#2; is that meant?"]


def test_first_frames_are_noted(tmp_path: Path) -> None:
    records = make_files(tmp_path / "source", 8)
    for number in (1, 2):
        frames = [Image.new("RGB", (8, 8), (number, 2, frame)) for frame in range(3)]
        frames[0].putpixel((0, 0), (9, 9, 9))
        path = tmp_path / "source" / f"{number:03d}.png"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        records[number] = make_record(path, "cat")
    with pytest.raises(InputError, match=r"001\.png: has several frames, which split\.image\.animation refuses\n"):
        prepare(records, tmp_path)
    prepared = prepare(records, tmp_path, make_params(image={"animation": "first"}))
    assert prepared.notes == ["2 images: first of several frames"]
    again = prepare(records, tmp_path, make_params(image={"animation": "first"}, seed=2))
    assert (again.encoded, again.notes) == (0, prepared.notes)


# The leak gate


def make_leak(make_records: MakeRecords) -> list[Record]:
    """Of ten images in their own parts, the first of test is the third of train."""
    records = [*make_records({"a": 3, "b": 3}, "train"), *make_records({"a": 2, "b": 2}, "test", first=6)]
    records[6] = replace(records[6], image=records[2].image)
    return records


def set_leaks(policy: str) -> SplitParams:
    return make_params(0.7, 0.0, 0.3, strategy="official", leaks=policy)


@pytest.mark.parametrize("policy", ["error", "auto"])
def test_a_leak_stops_the_stage_and_changes_nothing(tmp_path: Path, make_records: MakeRecords, policy: str) -> None:
    records = make_leak(make_records)
    prepare(records[:6] + records[7:], tmp_path, set_leaks(policy))
    before = read_folder(tmp_path)
    with pytest.raises(
        InputError, match=r"the splits leak: .*\n.*made#2 \(train, class 'a'\) and made#6 \(test, class"
    ):
        prepare(records, tmp_path, set_leaks(policy))
    assert read_folder(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "manifests"]


def test_a_leak_is_dropped(tmp_path: Path, make_records: MakeRecords) -> None:
    prepared = prepare(make_leak(make_records), tmp_path, set_leaks("drop"))
    assert (prepared.encoded, prepared.info.leaks.dropped, prepared.info.leaks.policy) == (9, 1, "drop")
    assert sum(sum(counts.values()) for counts in prepared.info.counts.values()) == 9
    assert "00002.png" not in set(read_all(tmp_path)["path"])
    assert not (tmp_path / "images" / "00002.png").exists()
    assert [(row["kind"], row["action"], row["key"], row["other_key"]) for row in read_csv(tmp_path, "leaks.csv")] == [
        ("duplicate", "dropped", "00002", "00006")
    ]
    assert read_dataset_info(tmp_path / "manifests" / "dataset.json").leaks == prepared.info.leaks
    assert any("1 image left out" in note for note in prepared.notes)


def test_a_leak_is_kept(tmp_path: Path, make_records: MakeRecords) -> None:
    prepared = prepare(make_leak(make_records), tmp_path, set_leaks("keep"))
    assert (prepared.encoded, prepared.info.leaks.dropped, prepared.info.leaks.duplicates) == (10, 0, 1)
    assert [row["action"] for row in read_csv(tmp_path, "leaks.csv")] == ["kept"]
    assert any("made#" not in note and "very pixels" in note for note in prepared.notes)


def test_a_published_set_keeps_its_own_parts(tmp_path: Path, make_records: MakeRecords) -> None:
    prepared = prepare(make_leak(make_records), tmp_path, set_leaks("auto"), published=True)
    assert (prepared.info.leaks.policy, prepared.info.leaks.duplicates) == ("keep", 1)


# Look-alikes


def make_alike() -> list[Record]:
    """Large images in their own parts; the second of test is the first of train, a little darker."""
    generator = np.random.default_rng(0)
    images = [np.kron(generator.integers(0, 200, (9, 9), dtype=np.uint8), np.ones((8, 8), np.uint8)) for _ in range(6)]
    images.append(images[0] + 1)
    parts = ["train"] * 5 + ["test"] * 2
    return [
        Record(f"{number}.png", "a", part, "", f"{number}.png", image)
        for number, (part, image) in enumerate(zip(parts, images, strict=True))
    ]


def test_lookalikes_are_drawn(tmp_path: Path) -> None:
    prepared = prepare(make_alike(), tmp_path, set_leaks("error"))
    assert prepared.info.leaks.near == 1
    (row,) = read_csv(tmp_path, "leaks.csv")
    assert (row["kind"], row["key"], row["other_key"], row["action"]) == ("lookalike", "0.png", "6.png", "reported")
    with Image.open(tmp_path / "manifests" / "lookalikes.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 100
    assert any(note.startswith("look-alikes across splits: 1 ") for note in prepared.notes)
    before = read_folder(tmp_path)
    prepare(make_alike(), tmp_path, set_leaks("error"))
    assert read_folder(tmp_path) == before


def test_lookalikes_are_found_in_the_other_layout(tmp_path: Path) -> None:
    prepare(make_alike(), tmp_path, set_leaks("error").model_copy(update={"layout": "folders"}))
    assert (tmp_path / "manifests" / "lookalikes.png").is_file()


@pytest.mark.parametrize("kept", [slice(0, 6), slice(1, 7)])
def test_no_sheet_where_nothing_looks_alike(tmp_path: Path, kept: slice) -> None:
    prepared = prepare(make_alike()[kept], tmp_path, set_leaks("error"))
    assert prepared.info.leaks.near == 0
    assert not (tmp_path / "manifests" / "lookalikes.png").exists()


def test_lookalikes_need_not_be_looked_for(tmp_path: Path) -> None:
    prepared = prepare(make_alike(), tmp_path, set_leaks("error").model_copy(update={"near_distance": -1}))
    assert prepared.info.leaks.near is None
    assert not (tmp_path / "manifests" / "lookalikes.png").exists()


def test_another_size_moves_nobody_under_hash(tmp_path: Path, make_records: MakeRecords) -> None:
    records = make_records({"cat": 100})
    found: list[dict[str, str]] = []
    for side in (0, 3):
        folder = tmp_path / str(side)
        prepare(records, folder, make_params(strategy="hash", image={"height": side, "width": side}))
        table = read_all(folder)
        found.append(dict(zip(table["source"], table["split"], strict=True)))
    assert found[0] == found[1]
    assert set(found[0].values()) == set(SPLITS)
