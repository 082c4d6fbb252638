from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from imagepipe.core.hashes import hash_file
from imagepipe.prepare.images import ImageFacts
from imagepipe.prepare.index import (
    FACTS,
    Facts,
    ImageTable,
    Places,
    list_hashes,
    pack_hashes,
    put_facts,
    read_index,
    write_index,
)

KEYS = ["a", "b/1.jpg", "ä"]

Pixels = NDArray[np.uint8]


def draw_images() -> list[Pixels]:
    """Grey and RGB, the second large enough for a fingerprint."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in [(4, 5), (64, 65, 3), (1, 1)]]


def make_table() -> ImageTable:
    """The facts of those images; that of row 0 has hashes of zeros, that of row 1 of ones, and so on."""
    table = ImageTable.of_size(3)
    put_facts(table.rows, draw_images())
    for name in ("source_sha256", "content_sha256", "pixel_sha256", "png_sha256"):
        table.rows[name] = pack_hashes([bytes([row]) * 32 for row in range(3)])
    return table


def make_places() -> Places:
    return Places(np.array(["x.tar", "x.tar", ""], object), np.array([512, 1536, 0]))


def test_facts_by_hand() -> None:
    """Grey and RGB, of several shapes and mixed, each in the row of its own."""
    grey, other = np.array([[1, 2, 3], [0, 0, 255]], np.uint8), np.array([[4, 0, 0], [0, 0, 0]], np.uint8)
    rgb = np.array([[[1, 10, 200], [2, 20, 100]]], np.uint8)
    table = ImageTable.of_size(4)
    put_facts(table.rows, [grey, rgb, grey.T, other])
    table.remarks[2] = "odd"
    zeros = "00" * 32
    assert [table.get(row) for row in range(4)] == [
        ImageFacts(zeros, zeros, 3, 2, "L", (261,), (1 + 4 + 9 + 65025,), "", ""),
        ImageFacts(zeros, zeros, 2, 1, "RGB", (3, 30, 300), (5, 500, 50_000), "", ""),
        ImageFacts(zeros, zeros, 2, 3, "L", (261,), (1 + 4 + 9 + 65025,), "", "odd"),
        ImageFacts(zeros, zeros, 3, 2, "L", (4,), (16,), "", ""),
    ]


def test_only_large_images_have_a_fingerprint() -> None:
    falling = np.tile(np.arange(64, dtype=np.uint8)[::-1], (64, 1))
    rising = falling[:, ::-1]  # each cell is brighter than its left neighbour
    table = ImageTable.of_size(3)
    put_facts(table.rows, [rising[1:], rising, falling])
    assert [table.get(row).fingerprint for row in range(3)] == ["", "f" * 16, "0" * 16]


def test_a_row_takes_two_hundred_bytes() -> None:
    assert FACTS.itemsize <= 208


def test_facts_are_those_of_images_that_can_be_used() -> None:
    table = make_table()
    facts = [table.get(row) for row in range(3)]
    view = Facts(table, {key: row for row, key in enumerate(KEYS)}, np.array([True, False, True]))
    assert dict(view) == {"a": facts[0], "ä": facts[2]}
    assert len(view) == 2
    assert "b/1.jpg" not in view
    assert "c" not in view
    with pytest.raises(KeyError):
        view["b/1.jpg"]
    assert dict(view.map_hashes("pixel_sha256")) == {"a": facts[0].pixel_sha256, "ä": facts[2].pixel_sha256}
    assert len(view.map_hashes("content_sha256")) == 2
    assert view.map_fingerprints() == {"b/1.jpg": facts[1].fingerprint}
    assert list_hashes(view.take_rows(["ä", "a"])["pixel_sha256"]) == [facts[2].pixel_sha256, facts[0].pixel_sha256]


def test_an_index_comes_back(tmp_path: Path) -> None:
    table = make_table()
    table.remarks[1] = "first of several frames"
    write_index(tmp_path, "this way", KEYS, table, make_places(), np.arange(3))
    index = read_index(tmp_path, "this way")
    assert index is not None
    assert np.array_equal(index.table.rows, table.rows)
    assert index.table.remarks == {1: "first of several frames"}
    assert index.places.files.tolist() == ["x.tar", "x.tar", ""]
    assert index.places.offsets.tolist() == [512, 1536, 0]
    assert index.places.files[0] is index.places.files[1]
    assert index.find_rows(["ä", "c", "a", "b/1.jpg"]).tolist() == [2, -1, 0, 1]
    assert index.find_rows([]).tolist() == []


def test_an_index_is_packed_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagepipe.prepare.index.BATCH", 2)
    table = make_table()
    table.remarks[2] = "first of several frames"
    write_index(tmp_path, "this way", KEYS, table, make_places(), np.arange(3))
    index = read_index(tmp_path, "this way")
    assert index is not None
    assert np.array_equal(index.table.rows, table.rows)
    assert index.table.remarks == table.remarks
    assert index.find_rows(["ä", "c", "a", "b/1.jpg"]).tolist() == [2, -1, 0, 1]


def test_an_index_holds_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    table = make_table()
    write_index(tmp_path, "this way", KEYS, table, make_places(), np.array([0, 2]))
    index = read_index(tmp_path, "this way")
    assert index is not None
    assert index.find_rows(KEYS).tolist() == [0, -1, 1]
    assert np.array_equal(index.table.rows, table.rows[[0, 2]])


def test_an_empty_index_comes_back(tmp_path: Path) -> None:
    write_index(
        tmp_path,
        "this way",
        [],
        ImageTable.of_size(0),
        Places(np.empty(0, object), np.zeros(0, np.int64)),
        np.arange(0),
    )
    index = read_index(tmp_path, "this way")
    assert index is not None
    assert index.find_rows(["a"]).tolist() == [-1]


def test_the_same_index_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_index(tmp_path / name, "this way", KEYS, make_table(), make_places(), np.arange(3))
    assert hash_file(tmp_path / "one" / "index.arrow") == hash_file(tmp_path / "two" / "index.arrow")


def test_an_index_made_in_another_way_is_not_read(tmp_path: Path) -> None:
    write_index(tmp_path, "that way", KEYS, make_table(), make_places(), np.arange(3))
    assert read_index(tmp_path, "this way") is None


def test_no_index_is_none(tmp_path: Path) -> None:
    assert read_index(tmp_path, "this way") is None


@pytest.mark.parametrize("data", [b"", b"key,path\n", b"ARROW1\0\0" + b"\0" * 100])
def test_what_is_sealed_and_no_index_is_not_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index.arrow").write_bytes(data)
    (tmp_path / "index.arrow.sha256").write_text(hash_file(tmp_path / "index.arrow") + "\n")
    assert read_index(tmp_path, "this way") is None


def test_an_arrow_file_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    table = pa.table({"x": [1]})
    with pa.OSFile(str(tmp_path / "index.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "index.arrow.sha256").write_text(hash_file(tmp_path / "index.arrow") + "\n")
    assert read_index(tmp_path, "this way") is None
