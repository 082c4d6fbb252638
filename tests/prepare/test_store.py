import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.files import hash_file
from imagepipe.core.manifest import hash_pixels
from imagepipe.core.parallel import FEW
from imagepipe.prepare import store
from imagepipe.prepare.store import Stored, store_images
from imagepipe.sources.records import Record

Damage = Callable[[Path], object]


def read_folder(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file, and '' for every folder."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path) if path.is_file() else "" for path in folder.rglob("*")
    }


def store_anew(records: list[Record], tmp_path: Path) -> dict[str, str]:
    """What a run from nothing leaves."""
    store_images(records, tmp_path / "fresh", 1)
    return read_folder(tmp_path / "fresh")


@pytest.fixture
def records(make_records: Callable[..., list[Record]]) -> list[Record]:
    return make_records({"cat": 6, "dog": 4})


def test_each_record_has_its_png_and_its_row(tmp_path: Path, records: list[Record]) -> None:
    stored = store_images(records, tmp_path / "images", 1)
    assert stored.encoded == 10
    names = [f"{number:05d}.png" for number in range(10)]
    assert sorted(read_folder(tmp_path / "images")) == [*names, "index.csv", "index.csv.sha256"]
    index = pd.read_csv(tmp_path / "images" / "index.csv", dtype=str)
    assert index["key"].tolist() == [f"{number:05d}" for number in range(10)]
    for row in index.to_dict("records"):
        assert row["png_sha256"] == hash_file(tmp_path / "images" / f"{row['key']}.png")


def test_decoded_pixels_are_the_records(tmp_path: Path, make_records: Callable[..., list[Record]]) -> None:
    grey = make_records({"cat": 3})
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    records = [*grey, replace(grey[0], key="colour/00003", pixels=pixels)]
    store_images(records, tmp_path, 1)
    for record in records:
        png = (tmp_path / f"{record.key}.png").read_bytes()
        with Image.open(io.BytesIO(png)) as image:
            assert np.array_equal(np.asarray(image), record.pixels)


def test_facts_by_hand(tmp_path: Path, make_records: Callable[..., list[Record]]) -> None:
    record = replace(make_records({"cat": 1})[0], pixels=np.array([[1, 2, 3], [0, 0, 255]], np.uint8))
    facts = store_images([record], tmp_path, 1).facts["00000"]
    assert (facts.width, facts.height, facts.mode) == (3, 2, "L")
    assert facts.pixel_sums == (261,)
    assert facts.pixel_squares == (1 + 4 + 9 + 65025,)
    assert facts.pixel_sha256 == hash_pixels("L", record.pixels)


def test_nothing_is_encoded_twice(tmp_path: Path, records: list[Record]) -> None:
    first = store_images(records, tmp_path, 1)
    before = read_folder(tmp_path)
    again = store_images(records, tmp_path, 1)
    assert again == Stored(first.facts, 0)
    assert read_folder(tmp_path) == before


def test_the_order_of_the_records_changes_no_byte(tmp_path: Path, records: list[Record]) -> None:
    store_images(records[::-1], tmp_path / "images", 1)
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


def test_two_runs_give_the_same_bytes(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path / "images", 1)
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


# What happened to the folder since


def truncate(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "00003.png").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "00003.png").write_bytes(bytes(data))


def save_again(folder: Path) -> None:
    """The same pixels by another encoder's settings: a valid PNG, other bytes."""
    with Image.open(folder / "00003.png") as image:
        pixels = np.asarray(image)
    Image.fromarray(pixels).save(folder / "00003.png", compress_level=0)


def paint_over(folder: Path) -> None:
    Image.fromarray(np.full((4, 5), 99, np.uint8)).save(folder / "00003.png")


def empty_it(folder: Path) -> None:
    (folder / "00003.png").write_bytes(b"")


def delete_it(folder: Path) -> None:
    (folder / "00003.png").unlink()


def swap_two(folder: Path) -> None:
    one, other = (folder / "00003.png").read_bytes(), (folder / "00004.png").read_bytes()
    (folder / "00003.png").write_bytes(other)
    (folder / "00004.png").write_bytes(one)


def add_a_file(folder: Path) -> None:
    (folder / "stranger.png").write_bytes(b"x")
    (folder / ".hidden.part").write_bytes(b"x")


def add_folders(folder: Path) -> None:
    (folder / "empty" / "deeper").mkdir(parents=True)
    (folder / "cats").mkdir()
    (folder / "cats" / "00003.png").write_bytes((folder / "00003.png").read_bytes())


def add_a_link(folder: Path) -> None:
    (folder / "link").symlink_to(folder)
    (folder / "dangling").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("damage", "encoded"),
    [
        (truncate("00003.png"), 1),
        (flip_a_bit, 1),
        (save_again, 1),
        (paint_over, 1),
        (empty_it, 1),
        (delete_it, 1),
        (swap_two, 2),
        (add_a_file, 0),
        (add_folders, 0),
        (add_a_link, 0),
    ],
)
def test_only_what_was_damaged_is_encoded(tmp_path: Path, records: list[Record], damage: Damage, encoded: int) -> None:
    folder = tmp_path / "images"
    store_images(records, folder, 1)
    expected = read_folder(folder)
    damage(folder)
    assert read_folder(folder) != expected
    stored = store_images(records, folder, 1)
    assert stored.encoded == encoded
    assert read_folder(folder) == expected == store_anew(records, tmp_path)


# What happened to the index since


def edit_index(edit: Callable[[str], str]) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / "index.csv").read_text("utf-8")
        changed = edit(text)
        assert changed != text
        (folder / "index.csv").write_text(changed, "utf-8")

    return damage


def change_cell(column: str, value: str) -> Damage:
    def damage(folder: Path) -> None:
        index = pd.read_csv(folder / "index.csv", dtype=str)
        index.loc[3, column] = value
        index.to_csv(folder / "index.csv", index=False, lineterminator="\n")

    return damage


INDEX_DAMAGE: dict[str, tuple[Damage, int]] = {
    "absent": (lambda folder: (folder / "index.csv").unlink(), 10),
    "empty": (lambda folder: (folder / "index.csv").write_bytes(b""), 10),
    "binary": (lambda folder: (folder / "index.csv").write_bytes(b"\xff\x00\xfe" * 50), 10),
    "header only": (edit_index(lambda text: text.splitlines(keepends=True)[0]), 10),
    "no header": (edit_index(lambda text: text.split("\n", 1)[1]), 10),
    "a column lost": (edit_index(lambda text: text.replace("png_sha256", "sha", 1)), 10),
    "a row lost": (edit_index(lambda text: "".join(text.splitlines(keepends=True)[:-1])), 10),
    "another encoder": (edit_index(lambda text: text.replace("pillow ", "pillow 0.")), 10),
    "not a number": (change_cell("width", "wide"), 10),
    "another key": (change_cell("key", "99999"), 10),
    "another source": (change_cell("source_sha256", "0" * 64), 10),
    "another PNG": (change_cell("png_sha256", "0" * 64), 10),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
def test_a_damaged_index_is_made_anew(tmp_path: Path, records: list[Record], damage: str) -> None:
    folder = tmp_path / "images"
    stored = store_images(records, folder, 1)
    expected = read_folder(folder)
    do_damage, encoded = INDEX_DAMAGE[damage]
    do_damage(folder)
    again = store_images(records, folder, 1)
    assert again == Stored(stored.facts, encoded)
    assert read_folder(folder) == expected


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("pixel_sha256", "0" * 64),
        ("width", "50"),
        ("height", "40"),
        ("mode", "RGB"),
        ("pixel_sums", "7"),
        ("pixel_squares", "7"),
    ],
)
def test_a_wrong_fact_in_the_index_is_not_believed(
    tmp_path: Path, records: list[Record], column: str, value: str
) -> None:
    folder = tmp_path / "images"
    stored = store_images(records, folder, 1)
    expected = read_folder(folder)
    change_cell(column, value)(folder)
    again = store_images(records, folder, 1)
    assert again.facts == stored.facts
    assert read_folder(folder) == expected


@pytest.mark.parametrize("lost", [1, 2, 4, 9, 20, 100])
def test_a_cut_index_is_not_believed(tmp_path: Path, records: list[Record], lost: int) -> None:
    folder = tmp_path / "images"
    stored = store_images(records, folder, 1)
    expected = read_folder(folder)
    edit_index(lambda text: text[:-lost])(folder)
    again = store_images(records, folder, 1)
    assert again.facts == stored.facts
    assert read_folder(folder) == expected


# What happened to the records since


def test_a_changed_record_alone_is_encoded(tmp_path: Path, records: list[Record]) -> None:
    folder = tmp_path / "images"
    store_images(records, folder, 1)
    records[3] = replace(records[3], pixels=np.full((4, 5), 200, np.uint8))
    stored = store_images(records, folder, 1)
    assert stored.encoded == 1
    assert stored.facts["00003"].pixel_sums == (4000,)
    assert read_folder(folder) == store_anew(records, tmp_path)


def test_the_same_bytes_in_another_shape_are_another_image(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path / "images", 1)
    records[3] = replace(records[3], pixels=records[3].pixels.reshape(5, 4))
    assert store_images(records, tmp_path / "images", 1).encoded == 1
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


def test_another_class_part_or_source_encodes_nothing(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path, 1)
    before = read_folder(tmp_path)
    changed = [replace(record, class_name="bird", part="test", source="elsewhere") for record in records]
    assert store_images(changed, tmp_path, 1).encoded == 0
    assert read_folder(tmp_path) == before


def test_a_removed_record_leaves_no_trace(tmp_path: Path, records: list[Record]) -> None:
    deep = replace(records[0], key="cats/left/00010")
    store_images([*records, deep], tmp_path / "images", 1)
    assert (tmp_path / "images" / "cats" / "left" / "00010.png").is_file()
    stored = store_images(records[1:], tmp_path / "images", 1)
    assert stored.encoded == 0
    assert "00000" not in stored.facts
    assert read_folder(tmp_path / "images") == store_anew(records[1:], tmp_path)


def test_an_added_record_alone_is_encoded(tmp_path: Path, records: list[Record]) -> None:
    store_images(records[:7], tmp_path / "images", 1)
    assert store_images(records, tmp_path / "images", 1).encoded == 3
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


def test_a_run_that_was_interrupted_is_completed(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, rows: object) -> None:
        raise KeyboardInterrupt

    store_images(records[:5], tmp_path / "images", 1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store_images(records, tmp_path / "images", 1)
    store_images(records, tmp_path / "images", 1)
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


# Processes


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(tmp_path: Path, make_records: Callable[..., list[Record]]) -> None:
    records = make_records({"cat": FEW + 1})
    one = store_images(records, tmp_path / "one", 1)
    two = store_images(records, tmp_path / "two", 2)
    assert one == two
    assert one.encoded == FEW + 1
    assert read_folder(tmp_path / "one") == read_folder(tmp_path / "two")
    (tmp_path / "two" / "04000.png").unlink()
    assert store_images(records, tmp_path / "two", 2) == Stored(one.facts, 1)
    assert read_folder(tmp_path / "one") == read_folder(tmp_path / "two")


# What is refused


def test_an_image_that_cannot_be_stored_is_named(tmp_path: Path, records: list[Record]) -> None:
    records[3] = replace(records[3], pixels=np.zeros((4, 5, 4), np.uint8))
    with pytest.raises(InputError, match=r"shape \(4, 5, 4\) and type uint8; an image is uint8") as caught:
        store_images(records, tmp_path, 1)
    assert "00003" in str(caught.value) or "made#3" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "images").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"images: cannot be written: File exists"):
        store_images(records, tmp_path / "images", 1)


def test_a_png_that_cannot_be_written_is_named(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "00003.png" / "inside").mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match=r"00003\.png: cannot be written: Is a directory"):
        store_images(records, tmp_path, 1)
    assert not list(tmp_path.glob(".*.part"))
