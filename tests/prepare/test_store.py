import io
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagepipe.core import shards
from imagepipe.core.config import load_section
from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.hashes import hash_file, hash_pixels
from imagepipe.core.parallel import FEW, LocalEngine
from imagepipe.core.slices import FileSlice
from imagepipe.prepare import store
from imagepipe.prepare.examination import Examined, Work
from imagepipe.prepare.images import ImageFacts, encode_png
from imagepipe.prepare.params import ImageParams, SplitParams
from imagepipe.prepare.store import ImageStore, cut_chunks, look_at, measure_source, open_store
from imagepipe.sources.records import Record
from tests.core.made import name_abandoned

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = load_section("split", SplitParams, ROOT / "recipes" / "base.yaml").image

Pixels = NDArray[np.uint8]
Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Stored:
    """What a run left: the facts by key, how many images it encoded, and why others were not taken."""

    facts: dict[str, ImageFacts]
    encoded: int
    rejected: dict[str, str]


def set_params(**changes: object) -> ImageParams:
    return ImageParams.model_validate(DEFAULTS.model_dump() | changes)


def open_images(
    folder: Path, params: ImageParams = DEFAULTS, jobs: int = 1, shards: bool = False
) -> AbstractContextManager[ImageStore]:
    return open_store(folder, params, LocalEngine(jobs), shards)


def store_images(
    records: Sequence[Record],
    folder: Path,
    jobs: int = 1,
    params: ImageParams = DEFAULTS,
    layout: str = "",
    shards: bool = False,
) -> Stored:
    """Examine all records and place those that can be used, below `layout` or in shards."""
    with open_images(folder, params, jobs, shards) as images:
        verdict = images.examine(records)
        usable = [record for record in records if record.key in verdict.facts]
        encoded, _ = images.place(usable, [f"{layout}{record.key}.png" for record in usable])
    return Stored(dict(verdict.facts), encoded, verdict.rejected)


def read_folder(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file, and '' for every folder."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path) if path.is_file() else "" for path in folder.rglob("*")
    }


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the index."""
    with pa.memory_map(str(folder / "index.arrow")) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def store_anew(records: Sequence[Record], tmp_path: Path, params: ImageParams = DEFAULTS) -> dict[str, str]:
    """What a run from nothing leaves."""
    store_images(records, tmp_path / "fresh", params=params)
    return read_folder(tmp_path / "fresh")


def find_parts(folder: Path) -> list[Path]:
    """What a run should not leave behind."""
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def make_file(path: Path, data: bytes) -> FileSlice:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return FileSlice(path, 0, len(data))


def make_file_record(path: Path, data: bytes) -> Record:
    return Record(path.name, "cat", "", "", path.name, make_file(path, data))


@pytest.fixture
def records(make_records: Callable[..., list[Record]]) -> list[Record]:
    return make_records({"cat": 6, "dog": 4})


@pytest.fixture
def files(tmp_path: Path, make_image: Callable[..., Pixels]) -> list[Record]:
    """Ten PNGs of the user's, `0.png` to `9.png`."""
    return [
        make_file_record(tmp_path / "source" / f"{number}.png", encode_png(make_image(number))) for number in range(10)
    ]


def rewrite(record: Record, data: bytes) -> Record:
    """The record whose file was changed and then listed again."""
    assert isinstance(record.image, FileSlice)
    return replace(record, image=make_file(record.image.path, data))


def test_each_record_has_its_png_and_its_row(tmp_path: Path, records: list[Record]) -> None:
    stored = store_images(records, tmp_path / "images")
    assert stored.encoded == 10
    names = [f"{number:05d}.png" for number in range(10)]
    assert sorted(read_folder(tmp_path / "images")) == [*names, "index.arrow", "index.arrow.sha256"]
    index = read_rows(tmp_path / "images")
    assert [row["key"] for row in index] == [f"{number:05d}" for number in range(10)]
    for row in index:
        assert row["path"] == f"{row['key']}.png"
        assert row["png_sha256"].hex() == hash_file(tmp_path / "images" / row["path"])
        assert row["length"] == (tmp_path / "images" / row["path"]).stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_decoded_pixels_are_the_records(tmp_path: Path, make_records: Callable[..., list[Record]]) -> None:
    grey = make_records({"cat": 3})
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    records = [*grey, replace(grey[0], key="colour/00003", image=pixels)]
    store_images(records, tmp_path / "images")
    for record in records:
        png = (tmp_path / "images" / f"{record.key}.png").read_bytes()
        with Image.open(io.BytesIO(png)) as image:
            assert isinstance(record.image, np.ndarray)
            assert np.array_equal(np.asarray(image), record.image)


def test_facts_by_hand(tmp_path: Path, make_records: Callable[..., list[Record]]) -> None:
    pixels = np.array([[1, 2, 3], [0, 0, 255]], np.uint8)
    record = replace(make_records({"cat": 1})[0], image=pixels)
    facts = store_images([record], tmp_path / "images").facts["00000"]
    assert (facts.width, facts.height, facts.mode) == (3, 2, "L")
    assert facts.pixel_sums == (261,)
    assert facts.pixel_squares == (1 + 4 + 9 + 65025,)
    assert facts.pixel_sha256 == hash_pixels("L", pixels)


def test_the_index_knows_the_facts(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 65, 3), dtype=np.uint8)
    record = Record("a", "cat", "", "", "a", pixels)
    first = store_images([record], tmp_path / "images")
    assert store_images([record], tmp_path / "images") == replace(first, encoded=0)
    assert len(first.facts["a"].fingerprint) == 16


def test_nothing_is_encoded_twice(tmp_path: Path, records: list[Record]) -> None:
    first = store_images(records, tmp_path / "images")
    before = read_folder(tmp_path)
    again = store_images(records, tmp_path / "images")
    assert again == replace(first, encoded=0)
    assert read_folder(tmp_path) == before


def test_the_order_of_the_records_changes_no_byte(tmp_path: Path, records: list[Record]) -> None:
    store_images(records[::-1], tmp_path / "images")
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


def test_two_runs_give_the_same_bytes(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path / "images")
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


def block_it(folder: Path) -> None:
    (folder / "00003.png").unlink()
    (folder / "00003.png" / "inside").mkdir(parents=True)
    (folder / "00003.png" / "file").write_bytes(b"x")


def link_it_elsewhere(folder: Path) -> None:
    (folder / "00003.png").unlink()
    (folder / "00003.png").symlink_to("00004.png")


def dangle_it(folder: Path) -> None:
    (folder / "00003.png").unlink()
    (folder / "00003.png").symlink_to("nowhere")


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
        (block_it, 1),
        (link_it_elsewhere, 1),
        (dangle_it, 1),
        (add_a_file, 0),
        (add_folders, 0),
        (add_a_link, 0),
    ],
)
def test_only_what_was_damaged_is_encoded(tmp_path: Path, records: list[Record], damage: Damage, encoded: int) -> None:
    folder = tmp_path / "images"
    store_images(records, folder)
    expected = read_folder(folder)
    damage(folder)
    assert read_folder(folder) != expected
    stored = store_images(records, folder)
    assert stored.encoded == encoded
    assert read_folder(folder) == expected == store_anew(records, tmp_path)


# What happened to the index since


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]], recipe: bytes | None = None) -> None:
    """The index with other rows, or another recipe, and its seal as it was."""
    with pa.memory_map(str(folder / "index.arrow")) as file:
        schema = pa.ipc.open_file(file).schema
    if recipe is not None:
        schema = schema.with_metadata({b"recipe": recipe})
    table = pa.Table.from_pylist([dict(row) for row in rows], schema)
    with pa.OSFile(str(folder / "index.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def seal_index(folder: Path) -> None:
    """The seal that goes with the index as it is now."""
    (folder / "index.arrow.sha256").write_text(hash_file(folder / "index.arrow") + "\n", "utf-8")


def change_cell(column: str, value: object) -> Damage:
    def damage(folder: Path) -> None:
        rows = read_rows(folder)
        rows[3][column] = value
        write_rows(folder, rows)

    return damage


INDEX_DAMAGE: dict[str, Damage] = {
    "absent": lambda folder: (folder / "index.arrow").unlink(),
    "empty": lambda folder: (folder / "index.arrow").write_bytes(b""),
    "binary": lambda folder: (folder / "index.arrow").write_bytes(b"\xff\x00\xfe" * 50),
    "no rows": lambda folder: write_rows(folder, []),
    "a row lost": lambda folder: write_rows(folder, read_rows(folder)[:-1]),
    "another encoder": lambda folder: write_rows(folder, read_rows(folder), b"pillow 0"),
    "another key": change_cell("key", "99999"),
    "another source": change_cell("source_sha256", bytes(32)),
    "another PNG": change_cell("png_sha256", bytes(32)),
    "no seal": lambda folder: (folder / "index.arrow.sha256").unlink(),
    "another seal": lambda folder: (folder / "index.arrow.sha256").write_text("0" * 64 + "\n"),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
def test_a_damaged_index_is_made_anew(tmp_path: Path, records: list[Record], damage: str) -> None:
    folder = tmp_path / "images"
    stored = store_images(records, folder)
    expected = read_folder(folder)
    INDEX_DAMAGE[damage](folder)
    assert store_images(records, folder) == stored
    assert read_folder(folder) == expected


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("pixel_sha256", bytes(32)),
        ("width", 50),
        ("height", 40),
        ("mode", 1),
        ("pixel_sums", [7, 0, 0]),
        ("pixel_squares", [7, 0, 0]),
    ],
)
def test_a_wrong_fact_in_the_index_is_not_believed(
    tmp_path: Path, records: list[Record], column: str, value: object
) -> None:
    folder = tmp_path / "images"
    stored = store_images(records, folder)
    expected = read_folder(folder)
    change_cell(column, value)(folder)
    again = store_images(records, folder)
    assert again.facts == stored.facts
    assert read_folder(folder) == expected


@pytest.mark.parametrize("lost", [1, 2, 4, 9, 20, 100])
def test_a_cut_index_is_not_believed(tmp_path: Path, records: list[Record], lost: int) -> None:
    folder = tmp_path / "images"
    stored = store_images(records, folder)
    expected = read_folder(folder)
    (folder / "index.arrow").write_bytes((folder / "index.arrow").read_bytes()[:-lost])
    again = store_images(records, folder)
    assert again.facts == stored.facts
    assert read_folder(folder) == expected


# What happened to the records since


def test_a_changed_record_alone_is_encoded(tmp_path: Path, records: list[Record]) -> None:
    folder = tmp_path / "images"
    store_images(records, folder)
    records[3] = replace(records[3], image=np.full((4, 5), 200, np.uint8))
    stored = store_images(records, folder)
    assert stored.encoded == 1
    assert stored.facts["00003"].pixel_sums == (4000,)
    assert read_folder(folder) == store_anew(records, tmp_path)


def test_the_same_bytes_in_another_shape_are_another_image(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path / "images")
    pixels = records[3].image
    assert isinstance(pixels, np.ndarray)
    records[3] = replace(records[3], image=pixels.reshape(5, 4))
    assert store_images(records, tmp_path / "images").encoded == 1
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


def test_another_class_part_or_source_encodes_nothing(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path / "images")
    before = read_folder(tmp_path)
    changed = [replace(record, class_name="bird", part="test", source="elsewhere") for record in records]
    assert store_images(changed, tmp_path / "images").encoded == 0
    assert read_folder(tmp_path) == before


def test_a_removed_record_leaves_no_trace(tmp_path: Path, records: list[Record]) -> None:
    deep = replace(records[0], key="cats/left/00010")
    store_images([*records, deep], tmp_path / "images")
    assert (tmp_path / "images" / "cats" / "left" / "00010.png").is_file()
    stored = store_images(records[1:], tmp_path / "images")
    assert stored.encoded == 0
    assert "00000" not in stored.facts
    assert read_folder(tmp_path / "images") == store_anew(records[1:], tmp_path)


def test_an_added_record_alone_is_encoded(tmp_path: Path, records: list[Record]) -> None:
    store_images(records[:7], tmp_path / "images")
    assert store_images(records, tmp_path / "images").encoded == 3
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


def test_a_run_that_was_interrupted_is_completed(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    store_images(records[:5], tmp_path / "images")
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store_images(records, tmp_path / "images")
    store_images(records, tmp_path / "images")
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path)


# Another index, another encoder, other params


def test_an_index_of_another_version_is_made_anew(tmp_path: Path, records: list[Record]) -> None:
    folder = tmp_path / "images"
    store_images(records, folder)
    expected = read_folder(folder)
    (folder / "index.arrow").write_text("key,encoder,png_sha256\n00000,pillow 1,ab\n", "utf-8")
    seal_index(folder)
    assert store_images(records, folder).encoded == 10
    assert read_folder(folder) == expected


def test_a_sealed_index_of_another_encoder_is_not_believed(tmp_path: Path, records: list[Record]) -> None:
    folder = tmp_path / "images"
    store_images(records, folder)
    expected = read_folder(folder)
    write_rows(folder, read_rows(folder), b"code 0")
    seal_index(folder)
    assert store_images(records, folder).encoded == 10
    assert read_folder(folder) == expected


def test_a_sealed_index_of_links_is_kept(tmp_path: Path, records: list[Record]) -> None:
    """As DVC leaves the folder where its cache links."""
    folder, cache = tmp_path / "images", tmp_path / "cache"
    store_images(records, folder)
    expected = read_folder(folder)
    cache.mkdir()
    for path in list(folder.glob("*.png")):
        path.rename(cache / path.name)
        path.symlink_to(Path("..") / "cache" / path.name)
    before = read_folder(cache)
    assert store_images(records, folder).encoded == 0
    assert read_folder(folder) == expected
    records[3] = replace(records[3], image=np.zeros((4, 5), np.uint8))
    assert store_images(records, folder).encoded == 1
    assert store_images(records, folder, layout="deep/er/").encoded == 0
    assert all(not path.is_symlink() for path in folder.rglob("*.png"))
    assert read_folder(cache) == before


@pytest.mark.parametrize("linked", ["deep", "deep/er"])
@pytest.mark.parametrize("layout", ["deep/er/", "flat/"])
def test_images_below_a_linked_folder_are_made_anew(
    tmp_path: Path, records: list[Record], linked: str, layout: str
) -> None:
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    store_images(records, folder, layout="deep/er/")
    (folder / linked).rename(elsewhere)
    (folder / linked).symlink_to(elsewhere)
    before = read_folder(elsewhere)
    assert store_images(records, folder, layout=layout).encoded == 10
    assert [path.parent for path in folder.rglob("*.png")] == [folder / layout] * 10
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert store_images(records, folder, layout=layout).encoded == 0
    assert read_folder(elsewhere) == before


def test_other_params_make_the_images_anew(tmp_path: Path, records: list[Record]) -> None:
    larger = set_params(height=8, width=8)
    store_images(records, tmp_path / "images")
    assert store_images(records, tmp_path / "images", params=larger).encoded == 10
    assert read_folder(tmp_path / "images") == store_anew(records, tmp_path, larger)


def test_a_format_that_is_taken_no_more_is_rejected(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("L", (4, 4), 9).save(data, "GIF")
    record = make_file_record(tmp_path / "a.gif", data.getvalue())
    assert store_images([record], tmp_path / "images", params=set_params(formats="GIF")).encoded == 1
    again = store_images([record], tmp_path / "images", params=set_params(formats="PNG"))
    assert again.rejected == {"a.gif": "is a GIF, which split.image.formats does not name"}


def test_a_lower_limit_of_pixels_rejects_what_was_stored(tmp_path: Path, files: list[Record]) -> None:
    store_images(files[:1], tmp_path / "images")
    again = store_images(files[:1], tmp_path / "images", params=set_params(max_pixels=19))
    assert again.rejected == {"0.png": "5×4 pixels, more than split.image.max_pixels (19) allows"}


# Places


@pytest.mark.parametrize("first", ["", "train/"])
def test_images_move_and_are_not_encoded(tmp_path: Path, records: list[Record], first: str) -> None:
    folder = tmp_path / "images"
    store_images(records, folder, layout=first)
    assert store_images(records, folder, layout="val/").encoded == 0
    moved = read_folder(folder)
    assert sorted(moved) == [
        "index.arrow",
        "index.arrow.sha256",
        "val",
        *(f"val/{number:05d}.png" for number in range(10)),
    ]
    store_images(records, tmp_path / "fresh", layout="val/")
    assert moved == read_folder(tmp_path / "fresh")


def test_the_old_place_of_one_may_be_the_new_place_of_another(tmp_path: Path, records: list[Record]) -> None:
    """`train/x` lies at train/x.png, where `x` comes to lie in the other layout."""
    folder = tmp_path / "images"
    pair = [replace(records[0], key="x"), replace(records[1], key="train/x")]
    for layout in ("", "train/", ""):
        store_images(pair, folder, layout=layout)
        store_images(pair, tmp_path / f"fresh{layout}", layout=layout)
        assert read_folder(folder) == read_folder(tmp_path / f"fresh{layout}")
    with open_images(folder) as images:
        images.examine(pair)
        assert images.place(pair, ["train/x.png", "x.png"])[0] == 0
    assert (folder / "train" / "x.png").read_bytes() == encode_png(pair[0].image)  # pyright: ignore[reportArgumentType]
    assert (folder / "x.png").read_bytes() == encode_png(pair[1].image)  # pyright: ignore[reportArgumentType]


def test_what_is_not_placed_stays_known(tmp_path: Path, files: list[Record]) -> None:
    folder = tmp_path / "images"

    def place(kept: list[Record]) -> int:
        with open_images(folder) as images:
            images.examine(files, encode=False)
            return images.place(kept, [f"{record.key}.png" for record in kept])[0]

    assert place(files[:3]) == 3
    assert sorted(path.name for path in folder.glob("*.png")) == ["0.png.png", "1.png.png", "2.png.png"]
    index = read_rows(folder)
    assert [row["path"] for row in index] == ["0.png.png", "1.png.png", "2.png.png", *[""] * 7]
    assert [any(row["png_sha256"]) for row in index] == [True] * 3 + [False] * 7
    assert all(any(row["pixel_sha256"]) for row in index)
    assert place(files[2:5]) == 2
    expected = read_folder(folder)
    (folder / "index.arrow").unlink()
    assert place(files[2:5]) == 3
    assert read_folder(folder) == expected


def test_what_is_known_is_not_decoded_again(tmp_path: Path, files: list[Record]) -> None:
    """The index is given a fact that no decoder would find; who finds it has not decoded."""
    folder = tmp_path / "images"
    with open_images(folder) as images:
        images.examine(files, encode=False)
        images.place(files[:3], [f"{record.key}.png" for record in files[:3]])
    change_cell("pixel_sums", [77, 0, 0])(folder)
    seal_index(folder)
    with open_images(folder) as images:
        facts = images.examine(files, encode=False).facts
    assert [key for key, fact in facts.items() if fact.pixel_sums == (77,)] == ["3.png"]


# Files


def test_files_and_their_arrays_give_the_same_pngs(tmp_path: Path, files: list[Record]) -> None:
    stored = store_images(files, tmp_path / "images", 2)
    assert (stored.encoded, stored.rejected) == (10, {})
    for record in files:
        assert isinstance(record.image, FileSlice)
        assert (tmp_path / "images" / f"{record.key}.png").read_bytes() == record.image.path.read_bytes()
    assert store_images(files[::-1], tmp_path / "images", 1) == replace(stored, encoded=0)


def test_files_and_arrays_may_stand_together(tmp_path: Path, files: list[Record], records: list[Record]) -> None:
    assert store_images([*files, *records], tmp_path / "images", 2).encoded == 20
    assert store_images([*files, *records], tmp_path / "images", 2).encoded == 0


def test_a_file_is_read_from_inside_another(tmp_path: Path, make_image: Callable[..., Pixels]) -> None:
    one, other = encode_png(make_image(1)), encode_png(make_image(2))
    (tmp_path / "all.tar").write_bytes(b"x" * 512 + one + b"y" * 100 + other)
    records = [
        Record("a", "cat", "", "", "a", FileSlice(tmp_path / "all.tar", 512, len(one))),
        Record("b", "cat", "", "", "b", FileSlice(tmp_path / "all.tar", 612 + len(one), len(other))),
    ]
    store_images(records, tmp_path / "images")
    assert (tmp_path / "images" / "a.png").read_bytes() == one
    assert (tmp_path / "images" / "b.png").read_bytes() == other


def test_a_changed_file_alone_is_encoded(
    tmp_path: Path, files: list[Record], make_image: Callable[..., Pixels]
) -> None:
    store_images(files, tmp_path / "images")
    files[3] = rewrite(files[3], encode_png(make_image(200)))
    stored = store_images(files, tmp_path / "images")
    assert stored.encoded == 1
    assert read_folder(tmp_path / "images") == store_anew(files, tmp_path)


def test_a_file_that_was_touched_is_not_encoded(tmp_path: Path, files: list[Record]) -> None:
    store_images(files, tmp_path / "images")
    assert isinstance(files[3].image, FileSlice)
    os.utime(files[3].image.path, (0, 0))
    assert store_images(files, tmp_path / "images").encoded == 0


def remove(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove, "cannot be read: No such file or directory"),
        (grow, "cannot be read: the file had {0} bytes and has {1} now: it changed while it was read"),
        (shrink, "cannot be read: the file had {0} bytes and has {2} now: it changed while it was read"),
        (become_a_folder, "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_changed_since_it_was_listed_is_rejected(
    tmp_path: Path, files: list[Record], change: Damage, reason: str
) -> None:
    assert isinstance(files[3].image, FileSlice)
    length = files[3].image.length or 0
    change(files[3].image.path)
    stored = store_images(files, tmp_path / "images")
    assert stored.rejected == {"3.png": reason.format(length, length + 4, length - 4)}
    assert stored.encoded == 9


def test_a_file_that_was_never_there_is_rejected(tmp_path: Path, files: list[Record]) -> None:
    files[3] = replace(files[3], image=FileSlice(tmp_path / "absent.png", 0, None))
    assert store_images(files, tmp_path / "images").rejected == {"3.png": "cannot be read: there is no such file"}


def test_a_file_that_is_mended_is_taken(tmp_path: Path, files: list[Record], make_image: Callable[..., Pixels]) -> None:
    files[3] = rewrite(files[3], b"<html>")
    stored = store_images(files, tmp_path / "images")
    assert stored.rejected == {"3.png": "is not an image of a known format: it begins with b'<html>'"}
    assert "3.png.png" not in read_folder(tmp_path / "images")
    assert store_images(files, tmp_path / "images") == replace(stored, encoded=0)
    files[3] = rewrite(files[3], encode_png(make_image(3)))
    assert store_images(files, tmp_path / "images").encoded == 1
    assert read_folder(tmp_path / "images") == store_anew(files, tmp_path)


def test_a_file_that_spoils_loses_its_png(tmp_path: Path, files: list[Record]) -> None:
    store_images(files, tmp_path / "images")
    files[3] = rewrite(files[3], b"")
    assert store_images(files, tmp_path / "images").rejected == {"3.png": "the file is empty"}
    assert read_folder(tmp_path / "images") == store_anew(files, tmp_path)


@pytest.mark.parametrize("change", [remove, shrink])
def test_a_file_that_changes_between_examining_and_placing_changes_nothing(
    tmp_path: Path, files: list[Record], change: Damage
) -> None:
    folder = tmp_path / "images"
    store_images(files[:5], folder)
    before = read_folder(folder)
    paths = [f"elsewhere/{record.key}.png" for record in files]
    assert isinstance(files[7].image, FileSlice)
    with open_images(folder) as images:
        images.examine(files, encode=False)
        change(files[7].image.path)
        with pytest.raises(
            InputError, match=r"^files changed while the split was made \(1\):\n  7\.png: cannot be read"
        ):
            images.place(files, paths)
    assert read_folder(folder) == before
    assert find_parts(tmp_path) == []


def test_other_bytes_between_examining_and_placing_are_noticed(
    tmp_path: Path, files: list[Record], make_image: Callable[..., Pixels]
) -> None:
    assert isinstance(files[7].image, FileSlice)
    with open_images(tmp_path / "images") as images:
        images.examine(files, encode=False)
        other = bytearray(files[7].image.path.read_bytes())
        other[:] = encode_png(make_image(9))
        assert len(other) == files[7].image.length
        files[7].image.path.write_bytes(other)
        with pytest.raises(InputError, match=r"7\.png: other bytes\nRun the stage again\.$"):
            images.place(files, [f"{record.key}.png" for record in files])


# Images that take too much


def make_bomb(pixels: int) -> bytes:
    """A small PNG that asks for much memory."""
    data = io.BytesIO()
    Image.new("1", (1000, pixels // 1000)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_an_image_that_takes_too_much_memory_is_rejected(
    tmp_path: Path, files: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MEMORY", 2**26)
    monkeypatch.setattr(store, "MEMORY_PER_PIXEL", 0)
    files[3] = rewrite(files[3], make_bomb(100_000_000))
    stored = store_images(files, tmp_path / "images", params=set_params(max_pixels=200_000_000))
    assert stored.rejected == {"3.png": "needs more memory than its process may have"}
    assert stored.encoded == 9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
def test_an_image_of_the_most_pixels_has_memory_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Without the fixed part, so that what each pixel takes must suffice."""
    monkeypatch.setattr(store, "MEMORY", 2**26)
    data = io.BytesIO()
    Image.new(mode, (4000, 4000)).save(data, "PNG", compress_level=1)
    record = make_file_record(tmp_path / "a.png", data.getvalue())
    for params in (set_params(max_pixels=16_000_000), set_params(max_pixels=16_000_000, mode="RGB", height=8, width=8)):
        assert store_images([record], tmp_path / "images", params=params).rejected == {}


def crash_on_poison(works: Sequence[Work], **more: Any) -> Examined:
    """`look_at` with a decoder that crashes on one file and hangs on another."""
    for work in works:
        if work.key == "3.png":
            os.kill(os.getpid(), signal.SIGSEGV)
        if work.key == "5.png":
            time.sleep(1000)
    return look_at(works, **more)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGSEGV to send")
def test_a_decoder_that_crashes_or_hangs_takes_no_other_image_with_it(
    tmp_path: Path, files: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "look_at", crash_on_poison)
        patch.setattr(store, "SECONDS", 2.0)
        stored = store_images(files, tmp_path / "images", 2)
    assert stored.rejected == {
        "3.png": "its process ended with SIGSEGV",
        "5.png": "took longer than 2 s and was ended",
    }
    assert stored.encoded == 8
    assert read_folder(tmp_path / "images") == store_anew([*files[:3], files[4], *files[6:]], tmp_path)


# Chunks


def test_chunks_hold_a_bounded_number_of_images_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_IMAGES", 3)
    monkeypatch.setattr(store, "CHUNK_BYTES", 100)

    def cut(*lengths: int) -> list[list[int]]:
        return [list(lengths[first:end]) for first, end in cut_chunks(lengths)]

    assert cut() == []
    assert cut(1, 1, 1, 1, 1, 1, 1) == [[1, 1, 1], [1, 1, 1], [1]]
    assert cut(50, 50, 1) == [[50, 50], [1]]
    assert cut(500, 1, 99, 1) == [[500], [1, 99], [1]]
    assert cut(1, 500, 500) == [[1], [500], [500]]
    assert cut(0, 0) == [[0, 0]]


@pytest.mark.parametrize(
    ("image", "images"),
    [
        (np.zeros((28, 28), np.uint8), 1000),
        (np.zeros((512, 1024), np.uint8), 2),
        (FileSlice(Path("plain.png"), 0, 300), 256),  # a file counts 4 KiB at least, and a chunk holds 1 MiB
        (FileSlice(Path("million.webp"), 0, 2**15), 32),
        (FileSlice(Path("photograph.jpg"), 0, 3 * 2**20), 1),
    ],
    ids=["digits", "large arrays", "small files", "well compressed", "photographs"],
)
def test_no_chunk_takes_long(image: FileSlice | Pixels, images: int) -> None:
    record = Record("a", "cat", "", "", "a", image)
    assert next(cut_chunks([measure_source(record)] * 1001)) == (0, images)


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
    assert store_images(records, tmp_path / "two", 2) == replace(one, encoded=1)
    assert read_folder(tmp_path / "one") == read_folder(tmp_path / "two")


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes_for_files(tmp_path: Path, make_image: Callable[..., Pixels]) -> None:
    generator = np.random.default_rng(0)
    files = [
        make_file_record(
            tmp_path / "source" / f"{number:03d}.png",
            encode_png(generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)) if number % 7 else b"spoilt",
        )
        for number in range(600)
    ]
    one = store_images(files, tmp_path / "one", 1)
    two = store_images(files, tmp_path / "two", 2)
    assert one == two
    assert len(one.rejected) == 86
    assert read_folder(tmp_path / "one") == read_folder(tmp_path / "two")


# What is refused


@pytest.mark.parametrize("before", [False, True])
def test_an_array_that_is_no_image_changes_nothing(tmp_path: Path, records: list[Record], before: bool) -> None:
    if before:
        store_images(records, tmp_path / "images")
    there = read_folder(tmp_path)
    records[3] = replace(records[3], image=np.zeros((4, 5, 4), np.uint8))
    with pytest.raises(InputError, match=r"^made#3: shape \(4, 5, 4\) and type uint8; an image is uint8"):
        store_images(records, tmp_path / "images")
    assert read_folder(tmp_path) == there


def test_what_is_examined_and_not_placed_changes_nothing(tmp_path: Path, records: list[Record]) -> None:
    with open_images(tmp_path / "deep" / "images") as images:
        assert len(images.examine(records).facts) == 10
        assert len(find_parts(tmp_path)) == 1
    assert read_folder(tmp_path) == {"deep": ""}


@pytest.mark.parametrize("size", [1, 10])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, records: list[Record], size: int) -> None:
    (tmp_path / "images").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"images: cannot be written: (File exists|Not a directory)"):
        store_images(records[:size], tmp_path / "images")
    assert find_parts(tmp_path) == []


def test_a_parent_that_cannot_be_made_is_named(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"file/images: cannot be written: (File exists|Not a directory)"):
        store_images(records, tmp_path / "file" / "images")


def test_a_png_that_cannot_be_written_is_told_with_the_folder(tmp_path: Path, files: list[Record]) -> None:
    """The staging folder goes while the workers fill it."""
    folder = tmp_path / "images"
    with open_images(folder) as images:
        images.staging.rmdir()
        with pytest.raises(EnvironmentFault, match=r"images: cannot be written: No such file or directory"):
            images.examine(files)
    assert not folder.exists()


@pytest.mark.parametrize("shards", [False, True])
def test_an_image_folder_that_is_a_link_is_filled_where_it_lies(
    tmp_path: Path, records: list[Record], shards: bool
) -> None:
    """Which may be another disk, so what waits to be renamed has to wait there."""
    disk, project = tmp_path / "disk", tmp_path / "project"
    (disk / "images").mkdir(parents=True)
    project.mkdir()
    (project / "images").symlink_to(disk / "images")
    with open_images(project / "images", shards=shards) as images:
        assert images.staging.parent == disk
    assert store_images(records, project / "images", shards=shards).encoded == 10
    assert [path.is_symlink() for path in project.iterdir()] == [True]
    assert [path.name for path in disk.iterdir()] == ["images"]
    store_images(records, tmp_path / "fresh", shards=shards)
    assert read_folder(disk / "images") == read_folder(tmp_path / "fresh")


def test_a_link_to_itself_is_told(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "images").symlink_to("images")
    with pytest.raises(EnvironmentFault, match="images: cannot be written: "):
        store_images(records, tmp_path / "images")


def test_a_long_key_is_no_trouble_in_staging(tmp_path: Path, records: list[Record]) -> None:
    key = "/".join(["ä" * 100] * 5)
    assert store_images([replace(records[0], key=key)], tmp_path / "images").encoded == 1
    assert (tmp_path / "images" / f"{key}.png").is_file()


def test_what_a_killed_run_left_beside_the_folder_is_removed(tmp_path: Path, records: list[Record]) -> None:
    left = tmp_path / name_abandoned()
    left.mkdir()
    (left / "half.png").write_bytes(b"half")
    store_images(records, tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


# Shards


def list_tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def read_members(folder: Path) -> dict[str, bytes]:
    """Member → bytes of all shards, as Python's tarfile reads them."""
    found: dict[str, bytes] = {}
    for path in list_tars(folder):
        with tarfile.open(path) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}  # pyright: ignore[reportOptionalMemberAccess]
    return found


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 3 to 12 members of 1,024 bytes."""
    monkeypatch.setattr(shards, "SMALLEST", 3 * 1024)
    monkeypatch.setattr(shards, "LARGEST", 12 * 1024)


def test_shards_hold_the_pngs_in_the_order_of_the_keys(tmp_path: Path, records: list[Record]) -> None:
    assert store_images(records[::-1], tmp_path / "images", shards=True).encoded == 10
    (tar,) = list_tars(tmp_path / "images")
    assert tar.name == f"{hash_file(tar)[:32]}.tar"
    assert sorted(read_folder(tmp_path / "images")) == [tar.name, "index.arrow", "index.arrow.sha256"]
    members = read_members(tmp_path / "images")
    assert list(members) == [f"{number:05d}.png" for number in range(10)]
    assert list(members.values()) == [encode_png(record.image) for record in records]  # pyright: ignore
    for row, png in zip(read_rows(tmp_path / "images"), members.values(), strict=True):
        assert FileSlice(tmp_path / "images" / row["path"], row["offset"], row["length"]).read() == png
    assert find_parts(tmp_path) == []


def test_an_unchanged_shard_stays_and_nothing_is_encoded(tmp_path: Path, records: list[Record]) -> None:
    store_images(records, tmp_path / "images", shards=True)
    (tar,) = list_tars(tmp_path / "images")
    before = tar.stat()
    assert store_images(records, tmp_path / "images", shards=True).encoded == 0
    assert (tar.stat().st_ino, tar.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.usefixtures("small_shards")
def test_a_local_addition_rewrites_few_shards_and_gives_the_bytes_of_a_run_from_nothing(
    tmp_path: Path, make_records: Callable[..., list[Record]]
) -> None:
    records = make_records({"cat": 200})
    folder = tmp_path / "images"
    store_images([*records[:100], *records[101:]], folder, shards=True)
    before = set(list_tars(folder))
    assert len(before) > 20
    assert store_images(records, folder, shards=True).encoded == 1
    after = set(list_tars(folder))
    assert len(after - before) <= 3
    store_images(records, tmp_path / "fresh", shards=True)
    assert read_folder(folder) == read_folder(tmp_path / "fresh")


def damage_header(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[0] ^= 1
    tar.write_bytes(data)


def damage_png(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[3 * 1024 + 520] ^= 1
    tar.write_bytes(data)


def damage_end(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:-1])


def swap_for_a_link(tar: Path) -> None:
    tar.unlink()
    tar.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("damage", "encoded"),
    [(damage_header, 0), (damage_png, 1), (damage_end, 0), (Path.unlink, 10), (swap_for_a_link, 10)],
)
def test_a_damaged_shard_is_written_again(tmp_path: Path, records: list[Record], damage: Damage, encoded: int) -> None:
    folder = tmp_path / "images"
    store_images(records, folder, shards=True)
    expected = read_folder(folder)
    damage(list_tars(folder)[0])
    assert store_images(records, folder, shards=True).encoded == encoded
    assert read_folder(folder) == expected


def test_another_layout_encodes_nothing(tmp_path: Path, records: list[Record]) -> None:
    folder = tmp_path / "images"
    store_images(records, folder)
    files = read_folder(folder)
    assert store_images(records, folder, shards=True).encoded == 0
    store_images(records, tmp_path / "fresh", shards=True)
    assert read_folder(folder) == read_folder(tmp_path / "fresh")
    assert store_images(records, folder).encoded == 0
    assert read_folder(folder) == files


@pytest.mark.usefixtures("small_shards")
def test_a_removed_record_leaves_no_trace_in_shards(tmp_path: Path, make_records: Callable[..., list[Record]]) -> None:
    records = make_records({"cat": 60})
    store_images(records, tmp_path / "images", shards=True)
    assert store_images(records[:-7], tmp_path / "images", shards=True).encoded == 0
    store_images(records[:-7], tmp_path / "fresh", shards=True)
    assert read_folder(tmp_path / "images") == read_folder(tmp_path / "fresh")


def test_shards_come_from_files_too(tmp_path: Path, files: list[Record]) -> None:
    files[3] = rewrite(files[3], b"")
    stored = store_images(files, tmp_path / "images", 2, shards=True)
    assert (stored.encoded, stored.rejected) == (9, {"3.png": "the file is empty"})
    assert list(read_members(tmp_path / "images")) == [f"{n}%2Epng.png" for n in range(10) if n != 3]


@pytest.mark.usefixtures("small_shards")
def test_a_run_that_was_interrupted_between_shards_and_index_leaves_what_can_be_read(
    tmp_path: Path, make_records: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    records, folder = make_records({"cat": 60}), tmp_path / "images"
    store_images(records[::2], folder, shards=True)
    before = read_folder(folder)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store_images(records, folder, shards=True)
    assert before.items() <= read_folder(folder).items()
    assert store_images(records, folder, shards=True).encoded == 30
    store_images(records, tmp_path / "fresh", shards=True)
    assert read_folder(folder) == read_folder(tmp_path / "fresh")


def test_a_record_that_is_gone_when_its_shard_is_written_is_an_error(tmp_path: Path, records: list[Record]) -> None:
    """The shard is cut between examining and placing."""
    folder = tmp_path / "images"
    store_images(records, folder, shards=True)
    with open_images(folder, shards=True) as images:
        images.examine(records[1:])
        list_tars(folder)[0].write_bytes(b"")
        with pytest.raises(EnvironmentFault, match=r"images: cannot be written: .*ends inside this file"):
            images.place(records[1:], [f"{record.key}.png" for record in records[1:]])
