import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from imagepipe.core.hashes import hash_file
from imagepipe.prepare import lookalikes
from imagepipe.prepare.lookalikes import (
    GAP,
    LINE,
    THUMB,
    Lookalikes,
    draw_lookalikes,
    find_lookalikes,
    fingerprint_image,
    fit_caption,
    load_font,
    make_bands,
)

NAMES = ("train", "val", "test")


def find_by_brute_force(hashes: Sequence[int], splits: Sequence[str], distance: int) -> list[tuple[str, str, int]]:
    pairs = [
        (f"{one:04d}", f"{other:04d}", (hashes[one] ^ hashes[other]).bit_count())
        for one in range(len(hashes))
        for other in range(len(hashes))
        if NAMES.index(splits[one]) < NAMES.index(splits[other])
        and (hashes[one] ^ hashes[other]).bit_count() <= distance
    ]
    return sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))


def find(hashes: Sequence[int], splits: Sequence[str], distance: int) -> Lookalikes:
    fingerprints = {f"{place:04d}": f"{value:016x}" for place, value in enumerate(hashes)}
    return find_lookalikes(fingerprints, dict(zip(fingerprints, splits, strict=True)), distance)


def make_clusters(generator: np.random.Generator, centres: int, copies: int, flips: int) -> list[int]:
    """Hashes that lie around some centres, each up to `flips` bits away."""
    found: list[int] = []
    for _ in range(centres):
        centre = int(generator.integers(1, 2**63))
        for _ in range(copies):
            bits = generator.choice(64, int(generator.integers(0, flips + 1)), replace=False)
            found.append(centre ^ sum(1 << int(bit) for bit in bits))
    return found


# Finding


@pytest.mark.parametrize("distance", range(9))
def test_finds_what_comparing_all_with_all_finds(distance: int) -> None:
    generator = np.random.default_rng(distance)
    hashes = make_clusters(generator, 40, 8, max(1, distance))
    splits = [str(name) for name in generator.choice(NAMES, len(hashes))]
    expected = find_by_brute_force(hashes, splits, distance)
    assert len(expected) > 100
    assert find(hashes, splits, distance) == Lookalikes(expected, capped=False)


@pytest.mark.parametrize("distance", [1, 3, 8])
def test_large_buckets_are_divided_without_loss(monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    monkeypatch.setattr(lookalikes, "MOST_COMPARED", 40)
    generator = np.random.default_rng(distance)
    last_band = (1 << 64 // (distance + 1)) - 1
    hashes = [value & ~last_band for value in make_clusters(generator, 60, 4, 6)]  # all 240 agree in that band
    splits = [str(name) for name in generator.choice(NAMES, len(hashes))]
    assert find(hashes, splits, distance) == Lookalikes(find_by_brute_force(hashes, splits, distance), capped=False)


def test_pairs_within_a_split_are_none() -> None:
    assert find([5, 5, 7, 5], ["train"] * 4, 3) == Lookalikes([], capped=False)


def test_the_key_of_the_lesser_split_comes_first() -> None:
    pairs = find([5, 7, 4], ["test", "train", "val"], 3).pairs
    assert pairs == [("0001", "0000", 1), ("0002", "0000", 1), ("0001", "0002", 2)]


def test_flat_images_and_those_without_a_hash_are_left_out() -> None:
    fingerprints = {"a": "0" * 16, "b": "0" * 16, "c": "f" * 16, "d": "f" * 16, "e": "", "f": "", "g": "0" * 15 + "1"}
    splits = dict(zip(fingerprints, ["train", "test"] * 4, strict=False))
    assert find_lookalikes(fingerprints, splits, 8) == Lookalikes([], capped=False)
    assert find_lookalikes({}, {}, 3) == Lookalikes([], capped=False)


def test_equal_pixels_are_left_out() -> None:
    fingerprints = dict.fromkeys("abc", "0123456789abcdef")
    splits = {"a": "train", "b": "test", "c": "test"}
    found = find_lookalikes(fingerprints, splits, 0, {"a": "same", "b": "same", "c": "other"})
    assert found.pairs == [("a", "c", 0)]


def test_those_of_unknown_pixels_are_equal_to_none() -> None:
    fingerprints = dict.fromkeys("abcd", "0123456789abcdef")
    splits = {"a": "train", "b": "test", "c": "test", "d": "train"}
    found = find_lookalikes(fingerprints, splits, 0, {"c": 7, "d": 7})
    assert found.pairs == [("a", "b", 0), ("a", "c", 0), ("d", "b", 0)]


def test_very_many_equal_hashes_are_not_compared_all_with_all() -> None:
    found = find([9] * 150 + [9] * 2 + [9 ^ 1], ["train"] * 150 + ["test"] * 3, 3)
    assert found.capped
    assert len(found.pairs) == 100 * 3
    assert found.pairs[0] == ("0000", "0150", 0)


def test_very_many_equal_hashes_of_one_split_alone_hide_nothing_else() -> None:
    found = find([9] * 150 + [0xFFFF << 30, 0xFFFE << 30], ["train"] * 150 + ["val", "test"], 3)
    assert found.pairs == [("0150", "0151", 1)]


def test_a_bucket_that_stays_large_is_compared_in_part_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "MOST_COMPARED", 10)
    hashes = [2**40 + number for number in range(64)]
    splits = ["train", "test"] * 32
    found = find(hashes, splits, 3)
    assert found.capped
    everything = find_by_brute_force(hashes, splits, 3)
    assert set(found.pairs) < set(everything)
    assert len(found.pairs) > 100


def test_the_nearest_pairs_are_kept_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "MOST_PAIRS", 20)
    generator = np.random.default_rng(1)
    hashes = make_clusters(generator, 40, 40, 6)
    splits = [str(name) for name in generator.choice(NAMES, len(hashes))]
    expected = find_by_brute_force(hashes, splits, 4)
    assert len(expected) > 50 * 20  # so that it is cut while searching, too
    assert find(hashes, splits, 4) == Lookalikes(expected[:20], capped=True)


def test_a_hundred_thousand_random_hashes_have_no_lookalikes_but_the_planted() -> None:
    generator = np.random.default_rng(0)
    hashes = [int(value) for value in generator.integers(1, 2**63, 100_000)]
    hashes[70_000] = hashes[10] ^ (1 << 63 | 1 << 30 | 1)
    fingerprints = {f"{place:06d}": f"{value:016x}" for place, value in enumerate(hashes)}
    splits = {key: "train" if key < "070000" else "test" for key in fingerprints}
    assert find_lookalikes(fingerprints, splits, 3) == Lookalikes([("000010", "070000", 3)], capped=False)


@pytest.mark.parametrize("count", range(1, 10))
def test_bands_share_out_all_bits(count: int) -> None:
    bands = list(make_bands((1 << 64) - 1, count))
    assert sum(bands) == (1 << 64) - 1
    sizes = [band.bit_count() for band in bands]
    assert (len(sizes), sum(sizes)) == (count, 64)
    assert max(sizes) - min(sizes) <= 1


# Fingerprints


def make_scene(height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A smooth colour image with shapes of many sizes."""
    generator = np.random.default_rng(4)
    coarse = Image.fromarray(generator.integers(20, 200, (7, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def count_bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_gradients_give_all_ones_and_zeros() -> None:
    rising = np.tile(np.arange(0, 216, 3, dtype=np.uint8), (64, 1))
    assert fingerprint_image(rising) == "f" * 16
    assert fingerprint_image(rising[:, ::-1]) == "0" * 16
    assert fingerprint_image(np.full((64, 64), 7, np.uint8)) == "0" * 16
    assert fingerprint_image(np.repeat(rising[:, :, None], 3, axis=2)) == "f" * 16


def test_a_bit_for_each_cell_row_by_row() -> None:
    cells = np.full((8, 9), 100, np.uint8)
    cells[0, 1] = 101  # brighter than its left neighbour: bit 0 of row 0
    cells[7, 8] = 101  # bit 7 of row 7
    pixels = cells.repeat(8, axis=0).repeat(8, axis=1)
    assert fingerprint_image(pixels) == "8000000000000001"


@pytest.mark.parametrize("shape", [(63, 64), (64, 63), (1, 300, 3), (28, 28)])
def test_small_images_have_none(shape: tuple[int, ...]) -> None:
    assert fingerprint_image(np.zeros(shape, np.uint8)) == ""


def test_copies_of_a_scene_stay_within_three_bits() -> None:
    scene = make_scene()
    made_of = fingerprint_image(scene)
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, "JPEG", quality=40)
    recompressed = np.asarray(Image.open(buffer))
    resized = np.asarray(Image.fromarray(scene).resize((120, 90), Image.Resampling.BICUBIC))
    brighter = np.minimum(scene, 225) + np.uint8(30)
    for copy in (brighter, recompressed, resized, make_scene(960, 1280)):
        assert count_bits(fingerprint_image(copy), made_of) <= 3
    assert count_bits(fingerprint_image(scene[:, ::-1]), made_of) > 20


# The sheet


def encode_scene(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_sheet_repeats_its_bytes_and_holds_the_pictures(tmp_path: Path) -> None:
    red = encode_scene(np.full((64, 64, 3), (255, 0, 0), np.uint8))
    grey = encode_scene(np.full((64, 128), 90, np.uint8))
    pairs = [(red, "cats/red\ntrain", grey, "cats/grey\ntest, 2 bits")] * 4
    for name in ("one.png", "two.png"):
        draw_lookalikes(pairs, 4, tmp_path / name)
    assert hash_file(tmp_path / "one.png") == hash_file(tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as sheet:
        colours = {colour: count for count, colour in sheet.getcolors(1 << 24) or []}
    assert colours[255, 0, 0] == 4 * THUMB * THUMB
    assert colours[90, 90, 90] >= 4 * THUMB * THUMB // 2


def test_a_sheet_says_of_how_many_pairs_it_shows_the_first(tmp_path: Path) -> None:
    red = encode_scene(np.full((64, 64, 3), (255, 0, 0), np.uint8))
    for found in (1, 2):
        draw_lookalikes([(red, "a", red, "b")], found, tmp_path / f"{found}.png")
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "2.png") as two:
        different = ImageChops.difference(one, two).getbbox()
    assert different
    assert different[3] <= LINE + 2 * GAP  # the title alone


def test_a_sheet_without_pairs_says_so(tmp_path: Path) -> None:
    draw_lookalikes([], 0, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getextrema() != ((255, 255),) * 3


@pytest.mark.parametrize(
    "caption",
    ["", "$x_1$ <b>&", "猫/写真.jpg", "قط", "\udce4\0\r\t\u202e", "e\u0301 😀", "x" * 100_000, "W" * 300, "a\nb\nc\nd"],
)
def test_any_caption_is_drawn(tmp_path: Path, caption: str) -> None:
    red = encode_scene(np.full((65, 1000, 3), (255, 0, 0), np.uint8))
    draw_lookalikes([(red, caption, red, "plain")], 1, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_accents_are_drawn(tmp_path: Path) -> None:
    red = encode_scene(np.full((64, 64, 3), (255, 0, 0), np.uint8))

    def draw(caption: str) -> bytes:
        draw_lookalikes([(red, caption, red, caption)], 1, tmp_path / "sheet.png")
        return (tmp_path / "sheet.png").read_bytes()

    assert len({draw(caption) for caption in ("Bild a", "Bild ä", "Bild ö", "Bild 猫")}) == 4
    assert draw("Bild a\u0308") == draw("Bild ä")  # as macOS writes it
    assert draw("Bild 猫") == draw("Bild 犬")  # boxes; leaks.csv has the name


def test_captions_keep_their_ends_and_fit() -> None:
    font = load_font()
    assert fit_caption("cats/IMG_1.jpg $1 <b>", font, THUMB) == "cats/IMG_1.jpg $1 <b>"
    assert fit_caption("a\tb\x00\udce4", font, THUMB) == r"a\tb\x00\xe4"
    assert fit_caption("Kreise/Bild ä 04.png", font, THUMB) == "Kreise/Bild ä 04.png"
    assert fit_caption("Zo\u00eb e\u0301 ½", font, THUMB) == "Zo\u00eb \u00e9 ½"
    short = fit_caption("a/very/long/folder/with/many/parts/IMG_00017.jpg", font, THUMB)
    head, tail = short.split("…")
    assert "a/very/long/folder/with/many/parts/IMG_00017.jpg".startswith(head)
    assert tail.endswith("IMG_00017.jpg")
    canvas = ImageDraw.Draw(Image.new("L", (1, 1)))
    assert THUMB - 20 < canvas.textlength(short, font) <= THUMB
