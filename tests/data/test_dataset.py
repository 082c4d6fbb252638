import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_pixels
from imagepipe.core.manifest import read_split
from imagepipe.data.batches import LoaderOptions, make_eval_loader
from imagepipe.data.dataset import ManifestDataset, find_room
from imagepipe.data.pixels import PixelCache
from tests.data.made import make_images, pack_shards
from tests.data.made import write_images as write_numbered
from tests.made import make_dataset


def write_images(folder: Path, count: int) -> None:
    """`0.png`, `1.png`, … of 3×2 pixels, each filled with its number."""
    for number in range(count):
        Image.new("L", (3, 2), number).save(folder / f"{number}.png")


def write_table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def open_table(folder: Path, text: str, **options: Any) -> ManifestDataset:
    return ManifestDataset(write_table(folder, text), folder, **options)


def read_value(image: Tensor) -> int:
    """The number that an image of `write_images` is filled with."""
    return int(image[0, 0, 0])


def test_our_manifests_give_their_images_and_labels(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 5, "val": 2, "test": 2})
    dataset = ManifestDataset(tmp_path / "train.csv", tmp_path / "images")
    table = pd.read_csv(tmp_path / "train.csv", keep_default_na=False)
    assert len(dataset) == 5
    assert [label for _, label in dataset] == table["label"].tolist()
    assert [hash_pixels("L", image[0].numpy()) for image, _ in dataset] == table["pixel_sha256"].tolist()


def test_a_manifest_takes_its_classes_from_the_dataset_json_beside_it(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 1, "test": 1})
    val = ManifestDataset(tmp_path / "val.csv", tmp_path / "images")
    assert val.classes == ["cat", "dog", "NA"]


def test_a_manifest_of_a_newer_imagepipe_is_refused_by_the_dataset_json_beside_it(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 1, "test": 1})
    (tmp_path / "dataset.json").write_text('{"format": 2}', "utf-8")
    with pytest.raises(InputError, match=r"dataset\.json: made by a newer imagepipe: format 2, this one reads up to 1"):
        ManifestDataset(tmp_path / "val.csv", tmp_path / "images")


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("Class Label,File Name", ["4,0.png", "1,1.png"]),
        ("filepath,label", ["0.png,4", "1.png,1"]),
        ("file,target", ["0.png,4", "1.png,1"]),
        ("Image_Path,class-name,width", ["0.png,4,3", "1.png,1,3"]),
    ],
)
@pytest.mark.parametrize("index_column", [False, True])
def test_tables_as_people_have_them(tmp_path: Path, header: str, rows: Sequence[str], index_column: bool) -> None:
    write_images(tmp_path, 2)
    lines = [f",{header}", *(f"{number},{row}" for number, row in enumerate(rows))] if index_column else [header, *rows]
    dataset = open_table(tmp_path, "\n".join(lines) + "\n")
    assert [(read_value(image), label) for image, label in dataset] == [(0, 4), (1, 1)]


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path: Path) -> None:
    assert open_table(tmp_path, "\ufefffile,target\n0.png,1\n").labels.tolist() == [1]


def test_without_a_transform_the_image_is_a_uint8_tensor(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "0.png")
    image, label = open_table(tmp_path, "path,label\n0.png,1\n")[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 2, 3)
    assert image[:, 1, 2].tolist() == [10, 20, 30]
    assert type(label) is int


def test_a_transform_gets_a_pil_image_and_its_result_comes_back(tmp_path: Path) -> None:
    write_images(tmp_path, 2)

    def describe(image: Image.Image) -> tuple[str, tuple[int, int], object]:
        assert isinstance(image, Image.Image)
        return image.mode, image.size, image.getpixel((2, 1))

    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n", transform=describe)
    assert dataset[1] == (("L", (3, 2), 1), 1)
    assert type(dataset[1][1]) is int


def test_split_selects_rows_of_one_table(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    text = "path,label,split\n0.png,0,train\n1.png,1,test\n2.png,2,train\n3.png,3,val\n"
    train = open_table(tmp_path, text, split="train")
    assert [(read_value(image), label) for image, label in train] == [(0, 0), (2, 2)]
    assert [label for _, label in open_table(tmp_path, text, split="val")] == [3]


def test_a_filtered_table_in_odd_order_keeps_each_label_with_its_image(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(20)], "label": range(20)})
    odd = table[table["label"] % 3 != 0].sample(frac=1, random_state=1)
    odd.to_csv(tmp_path / "odd.csv")
    dataset = ManifestDataset(tmp_path / "odd.csv", tmp_path)
    assert [read_value(image) for image, _ in dataset] == odd["label"].tolist()
    assert [label for _, label in dataset] == odd["label"].tolist()


def test_text_labels_are_numbered_by_code_point(tmp_path: Path) -> None:
    dataset = open_table(tmp_path, "path,label\na.png,dog\nb.png,cat\nc.png,dog\nd.png,Dog\n")
    assert dataset.classes == ["Dog", "cat", "dog"]
    assert dataset.labels.tolist() == [2, 1, 2, 0]


def test_a_class_that_the_second_table_lacks_shifts_no_number(tmp_path: Path) -> None:
    first = open_table(tmp_path, "path,label\na.png,bee\nb.png,cat\nc.png,dog\n")
    second = open_table(tmp_path, "path,label\na.png,dog\nb.png,bee\n", classes=first.classes)
    assert second.labels.tolist() == [2, 0]
    assert second.classes == first.classes


def test_classes_of_a_table_with_label_and_class_bind_a_second_one(tmp_path: Path) -> None:
    first = open_table(tmp_path, "path,label,class\na.png,0,cat\nb.png,1,dog\n")
    second = open_table(tmp_path, "path,label,class\na.png,1,dog\n", classes=first.classes)
    assert second.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "labels", "classes"),
    [
        (["0,0", "1,1", "2,0", "3,1"], [0, 1, 2, 3], ["0", "1", "2", "3"]),  # read from `class`: 0, 1, 0, 1
        (["cat,animal", "dog,animal"], [0, 1], ["cat", "dog"]),
        (["1,0", "0,1"], [1, 0], ["1", "0"]),  # they pair, and `class` names label 1 "0"
    ],
    ids=["numbers", "names", "one to one"],
)
def test_one_column_holds_the_labels_whether_or_not_classes_are_given(
    tmp_path: Path, rows: Sequence[str], labels: Sequence[int], classes: Sequence[str]
) -> None:
    text = "path,label,class\n" + "".join(f"{number}.png,{row}\n" for number, row in enumerate(rows))
    for dataset in (open_table(tmp_path, text), open_table(tmp_path, text, classes=classes)):
        assert dataset.labels.tolist() == labels
        assert dataset.classes == classes


def test_whole_numbers_stay_what_they_are_though_some_are_absent(tmp_path: Path) -> None:
    dataset = open_table(tmp_path, "path,label\na.png,3\nb.png,1\n")
    assert dataset.labels.tolist() == [3, 1]
    assert dataset.classes == ["0", "1", "2", "3"]


def test_labels_that_look_like_something_else_stay_text(tmp_path: Path) -> None:
    dataset = open_table(tmp_path, "path,label\na.png,007\nb.png,NA\nc.png,7\nd.png,1e5\ne.png,null\n")
    assert dataset.classes == ["007", "1e5", "7", "NA", "null"]
    assert dataset.labels.tolist() == [0, 3, 2, 1, 4]


def test_a_leading_zero_is_a_name_and_not_a_number(tmp_path: Path) -> None:
    assert open_table(tmp_path, "path,label\na.png,007\nb.png,12\n").classes == ["007", "12"]


def test_more_digits_than_make_a_number_are_a_name(tmp_path: Path) -> None:
    long = "9" * 5000
    assert open_table(tmp_path, f"path,label\na.png,{long}\nb.png,12\n").classes == ["12", long]
    assert open_table(tmp_path, f"path,label,class\na.png,{long},cat\nb.png,0,dog\n").classes == ["0", long]


def test_a_sample_opens_its_own_file_only(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 9).save(tmp_path / "1.png")
    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n2.png,2\n")
    image, label = dataset[1]
    assert (read_value(image), label) == (9, 1)


def test_positions_count_from_the_end_too_and_end_where_the_rows_end(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n")
    assert read_value(dataset[-1][0]) == 1
    with pytest.raises(IndexError):
        dataset[2]


def test_images_in_folders_below_the_image_folder(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    Image.new("L", (3, 2), 5).save(tmp_path / "cats" / "a.jpg.png")
    assert read_value(open_table(tmp_path, "path,label\ncats/a.jpg.png,cat\n")[0][0]) == 5


def test_loaded_pixels_give_the_same_samples(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n2.png,0\n3.png,2\n")
    before = [dataset[index] for index in range(4)]
    dataset.load_pixels()
    for file in tmp_path.glob("*.png"):
        file.unlink()
    for index in range(4):
        assert torch.equal(dataset[index][0], before[index][0])
        assert dataset[index][1] == before[index][1]
        assert type(dataset[index][1]) is int


@pytest.mark.parametrize("subset", [False, True])
def test_an_ordinary_loader_reads_the_dataset_before_and_after_pixels_are_loaded(tmp_path: Path, subset: bool) -> None:
    write_images(tmp_path, 4)
    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n2.png,0\n3.png,2\n")
    loader: DataLoader[Any] = DataLoader(Subset(dataset, [0, 1, 2, 3]) if subset else dataset, batch_size=3)
    before = list(loader)
    dataset.load_pixels()
    after = list(loader)
    assert [labels.tolist() for _, labels in after] == [[0, 1, 0], [2]]
    assert all(torch.equal(now[0], then[0]) for now, then in zip(after, before, strict=True))


def test_the_pixels_of_all_rows_are_one_tensor(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    pixels = open_table(tmp_path, "path,label\n2.png,0\n1.png,1\n").pixels
    assert pixels.shape == (2, 1, 2, 3)
    assert pixels[:, 0, 1, 2].tolist() == [2, 1]
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_pixels_are_decoded_once(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    dataset = open_table(tmp_path, "path,label\n0.png,0\n")
    dataset.load_pixels()
    (tmp_path / "0.png").unlink()
    dataset.load_pixels()
    assert read_value(dataset[0][0]) == 0


def test_writing_on_a_sample_leaves_the_loaded_pixels_alone(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    dataset = open_table(tmp_path, "path,label\n2.png,0\n1.png,1\n")
    dataset.load_pixels()
    dataset[0][0].fill_(99)
    assert read_value(dataset[0][0]) == 2


def test_a_transform_gets_the_same_image_before_and_after_pixels_are_loaded(tmp_path: Path) -> None:
    images = make_images(6, [(2, 3, 1), (4, 5, 3), (1, 2, 4)])
    write_numbered(tmp_path / "images", images)
    text = "path,label\n" + "".join(f"{number}.png,{number}\n" for number in range(6))
    dataset = ManifestDataset(write_table(tmp_path, text), tmp_path / "images", transform=describe_image)
    before = [dataset[index] for index in range(6)]
    dataset.load_pixels()
    shutil.rmtree(tmp_path / "images")
    assert [dataset[index] for index in range(6)] == before
    assert [seen[0] for seen, _ in before] == ["L", "RGB", "RGBA"] * 2


def describe_image(image: Image.Image) -> tuple[str, tuple[int, int], bytes, dict[object, object]]:
    return image.mode, image.size, image.tobytes(), dict(image.info)


def test_a_transform_of_other_modes_opens_each_file_and_says_so_once(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    Image.new("P", (3, 2)).save(tmp_path / "1.png")
    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n", transform=lambda image: image.mode)
    with pytest.warns(UserWarning, match=r"decoded anew, since only L, RGB and RGBA are kept: .*1\.png: mode P$"):
        dataset.load_pixels()
    dataset.load_pixels()
    assert [mode for mode, _ in dataset] == ["L", "P"]
    with pytest.raises(InputError, match=r"1\.png: mode P; expected"):
        _ = dataset.pixels


def test_other_modes_are_refused_without_a_transform(tmp_path: Path) -> None:
    Image.new("P", (3, 2)).save(tmp_path / "0.png")
    dataset = open_table(tmp_path, "path,label\n0.png,0\n")
    with pytest.raises(InputError, match=r"0\.png: mode P; expected L, RGB or RGBA\. Give a transform"):
        dataset.load_pixels()


def test_sizes_that_differ_are_no_batch_but_samples(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    dataset = open_table(tmp_path, "path,label\n0.png,0\n1.png,1\n")
    dataset.load_pixels()
    assert [image.shape for image, _ in dataset] == [(1, 2, 3), (1, 4, 4)]
    message = r"1\.png: shape \(H, W, C\) is \(4, 4, 1\), but the first image has \(2, 3, 1\); .* give a transform"
    with pytest.raises(InputError, match=message):
        _ = dataset.pixels


@pytest.mark.parametrize("memory_bytes", [10**9, 0], ids=["in memory", "mapped"])
def test_a_cache_gives_what_decoding_gives(tmp_path: Path, memory_bytes: int) -> None:
    make_dataset(tmp_path, {"train": 5, "val": 0, "test": 0})
    plain, cached, again = (ManifestDataset(tmp_path / "train.csv", tmp_path / "images") for _ in range(3))
    cache = PixelCache(tmp_path / "cache", 10**9, memory_bytes)
    plain.load_pixels()
    cached.load_pixels(cache)
    shutil.rmtree(tmp_path / "images")
    again.load_pixels(cache, jobs=2)
    for dataset in (cached, again):
        assert torch.equal(dataset.pixels, plain.pixels)
        assert dataset.pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(dataset[3][0], plain[3][0])
        assert dataset.pixels.data_ptr() == dataset.pixels.data_ptr()  # a view, not a copy each time


def test_a_table_without_pixel_hashes_has_a_cache_too(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    dataset = open_table(tmp_path, "path,label\n0.png,0\n2.png,1\n")
    dataset.load_pixels(PixelCache(tmp_path / "cache", 10**9, 10**9))
    assert [read_value(image) for image, _ in dataset] == [0, 2]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_image_that_is_not_the_one_of_the_manifest_is_listed(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 3, "val": 0, "test": 0})
    Image.new("L", (8, 8)).save(tmp_path / "images" / "00001.png")
    for cache in (None, PixelCache(tmp_path / "cache", 10**9, 10**9)):
        dataset = ManifestDataset(tmp_path / "train.csv", tmp_path / "images")
        with pytest.raises(InputError, match=r"images differ from their manifest's pixel_sha256 \(1\):\n .*00001\.png"):
            dataset.load_pixels(cache)


def test_a_pixel_hash_that_is_none_is_refused_with_its_row(tmp_path: Path) -> None:
    text = f"path,label,pixel_sha256\n0.png,0,{'0aF' * 21}0\n1.png,1,{'0' * 63}g\n2.png,1,\n"
    message = r"labels\.csv: expected 64 hexadecimal digits \(2\):\n  row 3: pixel_sha256 is '0+g'\n  row 4: .* is ''$"
    with pytest.raises(InputError, match=message):
        open_table(tmp_path, text)


def shard_table(folder: Path, count: int) -> str:
    """The images of `write_images` in shards of two, and the table that names their slices."""
    write_images(folder, count)
    names = [f"{number}.png" for number in range(count)]
    columns = pack_shards(names, folder, folder / "shards", each=2)
    table = pd.DataFrame({"path": names, "label": range(count)}).join(columns)
    return table.to_csv(index=False)


def test_images_in_shards_are_read_from_their_slices(tmp_path: Path) -> None:
    table = write_table(tmp_path, shard_table(tmp_path, 5))
    dataset = ManifestDataset(table, tmp_path / "shards")
    assert [(read_value(image), label) for image, label in dataset] == [(number, number) for number in range(5)]
    dataset.load_pixels()
    assert dataset.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_slice_that_is_no_number_is_refused_with_its_row(tmp_path: Path) -> None:
    text = "path,label,shard,offset,length\na.png,0,x.tar,512,70\nb.png,0,x.tar,-1,70\n"
    with pytest.raises(InputError, match=r"expected whole numbers from 0 \(1\):\n  row 3: offset is '-1'"):
        open_table(tmp_path, text)


def test_a_column_called_shard_makes_no_shards(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    assert read_value(open_table(tmp_path, "path,label,shard\n0.png,0,third\n")[0][0]) == 0


def test_a_table_that_was_read_before_is_not_read_again(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, {"train": 5, "val": 2, "test": 2})
    table = read_split(tmp_path, "train", info)
    again = ManifestDataset(tmp_path / "train.csv", tmp_path / "images")
    numbered = write_table(tmp_path, "path,label,class\na.png,1,dog\nb.png,0,cat\n", "numbered.csv")
    (tmp_path / "train.csv").unlink()
    dataset = ManifestDataset(tmp_path / "train.csv", tmp_path / "images", classes=info.classes, table=table)
    assert dataset.classes == again.classes
    assert dataset.labels.tolist() == again.labels.tolist()
    assert all(torch.equal(dataset[index][0], again[index][0]) for index in range(5))
    (tmp_path / "dataset.json").unlink()
    typed = pd.read_csv(numbered)
    assert ManifestDataset(numbered, tmp_path, table=typed).classes == ["cat", "dog"]
    with pytest.raises(InputError, match=r"train\.csv: no rows"):
        ManifestDataset(tmp_path / "train.csv", tmp_path, table=table.iloc[:0])


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.png: no such image"):
        open_table(tmp_path, "path,label\n0.png,0\n")[0]


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"0\.png: cannot be decoded"):
        open_table(tmp_path, "path,label\n0.png,0\n")[0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("picture,label", "no column names a file: found picture, label; expected one called path, filepath"),
        ("path,kind", "no column names a label: found path, kind; expected one called label, classlabel"),
    ],
)
def test_a_table_without_its_columns_says_what_it_has(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"labels\.csv: {message}"):
        open_table(tmp_path, f"{header}\n0.png,0\n")


@pytest.mark.parametrize(("text", "message"), [("path,label\n", "no rows"), ("", "not a CSV with a header")])
def test_an_empty_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"labels\.csv: {message}"):
        open_table(tmp_path, text)


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read"):
        ManifestDataset(tmp_path / "gone.csv", tmp_path)


def test_rows_with_more_cells_than_the_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.csv"):
        open_table(tmp_path, "path,label\n0.png,0,5\n1.png,1,6\n")


def test_a_blank_label_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 3"):
        open_table(tmp_path, "path,label\n0.png,cat\n1.png,\n")


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.csv: no rows of the split `val`"):
        open_table(tmp_path, "path,label,split\n0.png,0,train\n", split="val")


def test_a_split_asked_of_a_table_that_names_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column `split` \(columns: path, label\); leave split=None"):
        open_table(tmp_path, "path,label\n0.png,0\n", split="train")


def test_labels_that_are_not_among_the_classes_are_listed_with_their_rows(tmp_path: Path) -> None:
    text = "path,label\n0.png,cat\n1.png,cow\n2.png,emu\n"
    message = r"labels\.csv: labels that are not among the classes \(2\):\n  row 3: 'cow'\n  row 4: 'emu'"
    with pytest.raises(InputError, match=message):
        open_table(tmp_path, text, classes=["cat", "dog"])


def test_the_row_of_an_unknown_label_is_the_row_of_the_file_though_a_split_was_selected(tmp_path: Path) -> None:
    text = "path,label,split\n0.png,cat,train\n1.png,cat,val\n2.png,cow,val\n"
    with pytest.raises(InputError, match=re.escape("row 4: 'cow'")):
        open_table(tmp_path, text, split="val", classes=["cat", "dog"])


def test_class_names_of_digits_alone_in_their_column_are_no_numbers(tmp_path: Path) -> None:
    dataset = open_table(tmp_path, "path,class\na.png,009\nb.png,007\n")
    assert dataset.classes == ["007", "009"]
    assert dataset.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("room", "device"), [(2 * 4 * 6, "meta"), (2 * 4 * 6 - 2, "cpu")])
def test_images_move_to_a_gpu_where_half_of_its_free_memory_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, device: str
) -> None:
    """Four images of six bytes; the device `meta` has shapes and no memory, and every machine has it."""
    make_dataset_of(tmp_path, 4)
    monkeypatch.setattr("imagepipe.data.dataset.find_room", lambda _: room)
    dataset = ManifestDataset(tmp_path / "labels.csv", tmp_path)
    dataset.place_pixels(torch.device("meta"))
    assert dataset.pixels.device.type == device
    loader = make_eval_loader(dataset, 3, options=LoaderOptions(device="meta", workers=2, pin_memory=True))
    assert (loader.num_workers, loader.pin_memory) == ((0, False) if device == "meta" else (2, True))


def test_images_stay_where_the_processor_works(tmp_path: Path) -> None:
    make_dataset_of(tmp_path, 4)
    dataset = ManifestDataset(tmp_path / "labels.csv", tmp_path)
    dataset.place_pixels(torch.device("cpu"))
    assert dataset.pixels.device.type == "cpu"
    assert find_room(torch.device("cpu")) == 0


def make_dataset_of(folder: Path, count: int) -> None:
    """Images of `write_images`, and the table of them."""
    write_images(folder, count)
    write_table(folder, "file,label\n" + "".join(f"{number}.png,0\n" for number in range(count)))
