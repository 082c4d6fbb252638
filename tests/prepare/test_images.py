import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, features

from imagepipe.core.config import load_section
from imagepipe.core.errors import InputError
from imagepipe.prepare.images import (
    UnusableImage,
    check_array,
    convert_array,
    convert_image,
    decode_image,
    encode_png,
    name_recipe,
    sum_channels,
)
from imagepipe.prepare.params import ImageParams, SplitParams

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = load_section("split", SplitParams, ROOT / "recipes" / "base.yaml").image
ALL_FORMATS = "JPEG PNG BMP GIF PPM TIFF WEBP"

Pixels = NDArray[np.uint8]


def set_params(**changes: object) -> ImageParams:
    """The defaults with these changes, checked."""
    return ImageParams.model_validate(DEFAULTS.model_dump() | changes)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def decode(data: bytes, **changes: object) -> Pixels:
    return decode_image(data, set_params(**changes)).pixels


def refuse(data: bytes, **changes: object) -> str:
    """Why the bytes are no usable image."""
    with pytest.raises(UnusableImage) as caught:
        decode(data, **changes)
    return str(caught.value)


def draw_noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def cut_png(png: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, (name, content), in order (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        chunks.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]], wrong: bytes = b"") -> bytes:
    """A PNG of these chunks, with a wrong checksum in the one called `wrong`."""
    png = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        checksum = zlib.crc32(name + content) ^ (name == wrong)
        png += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return png


def make_png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand; each of `rows` begins with its filter byte, `more` stands before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return join_png([(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


# What is written


def open_png(png: bytes) -> tuple[str, Pixels]:
    with Image.open(io.BytesIO(png)) as image:
        return image.mode, np.asarray(image)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pixels_come_back_as_they_went_in(make_image: Callable[..., Pixels], channels: int, mode: str) -> None:
    pixels = make_image(77, 6, 5, channels)
    found_mode, found = open_png(encode_png(pixels))
    assert found_mode == mode
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (1, 1, 3), (64, 48, 3)])
def test_every_size_comes_back(shape: tuple[int, ...]) -> None:
    pixels = draw_noise(*shape)
    assert np.array_equal(open_png(encode_png(pixels))[1], pixels)
    assert np.array_equal(decode(encode_png(pixels)), pixels)


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_nothing_but_the_pixels_goes_into_a_png(shape: tuple[int, ...]) -> None:
    png = encode_png(np.full(shape, 9, np.uint8))
    assert [name for name, _ in cut_png(png)] == [b"IHDR", b"IDAT", b"IEND"]


def test_bytes_do_not_depend_on_the_order_in_memory() -> None:
    pixels = draw_noise(7, 9, 3)
    turned = np.asfortranarray(pixels)
    part = np.zeros((9, 11, 3), np.uint8)
    part[1:8, 1:10] = pixels
    assert encode_png(turned) == encode_png(pixels) == encode_png(part[1:8, 1:10])


def test_pixels_that_cannot_be_written_to_are_encoded() -> None:
    pixels = np.frombuffer(bytes(range(12)), np.uint8).reshape(3, 4)
    assert np.array_equal(open_png(encode_png(pixels))[1], pixels)


# Arrays


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        (np.zeros((4, 5), np.float32), r"shape \(4, 5\) and type float32"),
        (np.zeros((4, 5), np.uint16), r"shape \(4, 5\) and type uint16"),
        (np.zeros((4, 5), np.bool_), r"shape \(4, 5\) and type bool"),
        (np.zeros((4, 5, 1), np.uint8), r"shape \(4, 5, 1\) and type uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\) and type uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\) and type uint8"),
        (np.zeros(20, np.uint8), r"shape \(20,\) and type uint8"),
        (np.zeros((0, 5), np.uint8), r"shape \(0, 5\) and type uint8"),
    ],
)
def test_other_arrays_are_refused(pixels: Pixels, shown: str) -> None:
    with pytest.raises(InputError, match=rf"^here: {shown}; an image is uint8 of shape \(H, W\) or \(H, W, 3\)\.$"):
        check_array(pixels, "here")


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_images_are_accepted(shape: tuple[int, ...]) -> None:
    check_array(np.zeros(shape, np.uint8), "here")


@pytest.mark.parametrize(("shape", "mode"), [((4, 5), "L"), ((4, 5, 3), "RGB")])
def test_an_array_that_is_right_stays_what_it_is(shape: tuple[int, ...], mode: str) -> None:
    pixels = draw_noise(*shape)
    for changes in ({}, {"mode": mode}, {"height": 4, "width": 5}):
        assert convert_array(pixels, set_params(**changes)).pixels is pixels


def test_an_array_changes_its_mode_and_size() -> None:
    grey = np.array([[10, 200]], np.uint8)
    rgb = convert_array(grey, set_params(mode="RGB")).pixels
    assert rgb.tolist() == [[[10] * 3, [200] * 3]]
    assert convert_array(rgb, set_params(mode="L")).pixels.tolist() == grey.tolist()
    doubled = convert_array(grey, set_params(height=2, width=4, filter="nearest")).pixels
    assert doubled.tolist() == [[10, 10, 200, 200]] * 2


# Facts


def test_sums_of_grey_images() -> None:
    sums, squares = sum_channels(np.array([[[1, 2], [3, 255]], [[0, 0], [0, 7]]], np.uint8))
    assert (sums.tolist(), squares.tolist()) == ([[261], [7]], [[1 + 4 + 9 + 65025], [49]])


def test_sums_of_rgb_images_are_per_channel() -> None:
    pixels = np.array([[[1, 10, 200], [2, 20, 100]]], np.uint8)
    sums, squares = sum_channels(np.stack([pixels, pixels[:, ::-1]]))
    assert (sums.tolist(), squares.tolist()) == ([[3, 30, 300]] * 2, [[5, 500, 50_000]] * 2)


def test_sums_of_a_large_white_image_are_exact() -> None:
    sums, squares = sum_channels(np.full((1, 1000, 1000), 255, np.uint8))
    assert (sums.tolist(), squares.tolist()) == ([[255_000_000]], [[65_025_000_000]])
    assert sums.dtype == squares.dtype == np.int64


def test_the_recipe_names_what_decides_the_bytes() -> None:
    assert re.fullmatch(
        f"pillow {PIL.__version__}, zlib {features.version('zlib')}, code [0-9a-f]{{16}}, formats JPEG PNG BMP PPM "
        "TIFF WEBP, max_pixels 100000000, mode keep, height 0, width 0, fit resize, filter bilinear, background 255, "
        "animation refuse",
        name_recipe(DEFAULTS),
    )


@pytest.mark.parametrize("module", ["images", "lookalikes"])
def test_other_code_is_another_recipe(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = tmp_path / "edited.py"
    edited.write_text("# another way", "utf-8")
    before = name_recipe(DEFAULTS)
    monkeypatch.setattr(f"imagepipe.prepare.{module}.__file__", str(edited))
    assert name_recipe(DEFAULTS) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"formats": ALL_FORMATS},
        {"max_pixels": 1},
        {"mode": "L"},
        {"height": 8, "width": 9},
        {"fit": "pad"},
        {"filter": "box"},
        {"background": 0},
        {"animation": "first"},
    ],
)
def test_every_param_is_part_of_the_recipe(changes: dict[str, object]) -> None:
    assert name_recipe(set_params(**changes)) != name_recipe(DEFAULTS)


# What is no image


def test_an_empty_file() -> None:
    assert refuse(b"") == "the file is empty"


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><html><body>404</body></html>", b"\0" * 500, b"\xff", b"BM", b"P5"])
def test_what_is_no_image_shows_how_it_begins(data: bytes) -> None:
    assert refuse(data).startswith(("is not an image of a known format: it begins with b'", "cannot be decoded: "))
    assert "object at 0x" not in refuse(data)


def test_a_web_page_is_quoted() -> None:
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    assert refuse(page) == "is not an image of a known format: it begins with b'<!DOCTYPE html><'"


def test_a_gif_among_photographs_is_refused_and_can_be_allowed() -> None:
    gif = save(Image.new("L", (3, 2), 7), "GIF")
    assert refuse(gif) == "is a GIF, which split.image.formats does not name"
    assert decode(gif, formats="GIF", mode="L").tolist() == [[7] * 3] * 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_each_format_can_be_left_out(kind: str) -> None:
    data = save(Image.new("RGB", (3, 2), "red"), kind)
    others = " ".join(name for name in ALL_FORMATS.split() if name != kind)
    assert refuse(data, formats=others) == f"is a {kind}, which split.image.formats does not name"


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("GIF", "P"), ("BMP", "L")])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
def test_a_cut_file_is_refused(kind: str, mode: str, share: float) -> None:
    image = Image.fromarray(draw_noise(40, 30, 3)).convert(mode)
    data = save(image, kind)
    decode(data, formats=ALL_FORMATS)
    reason = refuse(data[: int(len(data) * share)], formats=ALL_FORMATS)
    assert reason.startswith(("cannot be decoded: ", "is not an image of a known format: "))


@pytest.mark.parametrize("lost", [1, 2, 3, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_refused(lost: int, progressive: bool) -> None:
    data = save(Image.fromarray(draw_noise(40, 30)), "JPEG", progressive=progressive)
    assert refuse(data[:-lost]).startswith("cannot be decoded: image file is truncated")


@pytest.mark.parametrize("cut", range(0, 800, 9))
def test_a_png_is_refused_wherever_it_is_cut(cut: int) -> None:
    png = encode_png(draw_noise(28, 28))
    assert 800 < len(png) < 900
    assert refuse(png[:cut])


@pytest.mark.parametrize("wrong", [b"IDAT", b"tEXt"])
def test_a_wrong_checksum_in_a_png_is_found(wrong: bytes) -> None:
    chunks = cut_png(encode_png(draw_noise(8, 8)))
    chunks.insert(-1, (b"tEXt", b"Title\0hello"))
    assert decode(join_png(chunks)).shape == (8, 8)
    assert refuse(join_png(chunks, wrong)).startswith("cannot be decoded: broken PNG file")


def test_a_wrong_checksum_in_one_of_several_data_chunks_is_found() -> None:
    (header, (_, data), end) = cut_png(encode_png(draw_noise(8, 8)))
    halves = [(b"IDAT", data[:20]), (b"IDAT", data[20:])]
    assert np.array_equal(decode(join_png([header, *halves, end])), draw_noise(8, 8))
    assert refuse(join_png([header, *halves, end], b"IDAT")).startswith("cannot be decoded: broken PNG file")


def test_every_byte_of_a_png_counts() -> None:
    """Whichever bit flips, the pixels are the same or the image is refused."""
    pixels = draw_noise(4, 4)
    png = encode_png(pixels)
    for place in range(len(png)):
        damaged = bytearray(png)
        damaged[place] ^= 16
        try:
            found = decode(bytes(damaged))
        except UnusableImage:
            continue
        assert np.array_equal(found, pixels), place


SAMPLES = {
    kind: save(Image.fromarray(draw_noise(9, 7, 3)), kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF")
}


@settings(max_examples=300)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=5))
def test_damage_gives_pixels_or_a_reason(kind: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLES[kind])
    for place, value in damage:
        data[place % len(data)] = value
    try:
        pixels = decode(bytes(data), formats=ALL_FORMATS, max_pixels=100_000)
    except UnusableImage:
        return
    check_array(pixels, kind)


# Bombs


def test_a_png_that_claims_to_be_huge() -> None:
    png = make_png(60_000, 60_000, 8, 0, b"")
    assert refuse(png) == "more pixels than split.image.max_pixels (100000000) allows"


@pytest.mark.parametrize(("width", "height"), [(101, 1), (11, 10), (14, 14)])
def test_a_few_pixels_too_many(width: int, height: int) -> None:
    png = encode_png(np.zeros((height, width), np.uint8))
    expected = f"{width}×{height} pixels, more than split.image.max_pixels (100) allows"
    assert refuse(png, max_pixels=100) == expected
    assert decode(png, max_pixels=width * height).shape == (height, width)


def test_what_we_allow_pillow_allows() -> None:
    """Pillow's own limit, 89 million pixels, warns; twice that is an error."""
    png = make_png(13_600, 13_600, 1, 0, bytes(13_600 * 1701))
    small = decode(png, max_pixels=200_000_000, height=2, width=2, filter="nearest")
    assert small.tolist() == [[0, 0], [0, 0]]


def test_pillows_own_limit_comes_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode(encode_png(np.zeros((2, 2), np.uint8)), max_pixels=10)
    refuse(b"nothing", max_pixels=10)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_text_that_unpacks_to_gigabytes_is_refused() -> None:
    chunks = cut_png(encode_png(draw_noise(4, 4)))
    chunks.insert(1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))))
    assert refuse(join_png(chunks)).startswith("cannot be decoded: ")


# Formats


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
)
@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 30)])
def test_lossless_formats_give_the_same_pixels(kind: str, options: dict[str, object], shape: tuple[int, ...]) -> None:
    pixels = draw_noise(*shape)
    image = Image.fromarray(pixels)
    mode = "L" if len(shape) == 2 else "RGB"
    found = decode(save(image.convert("RGB") if kind == "WEBP" else image, kind, **options), mode=mode)
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_come_near(kind: str, options: dict[str, object]) -> None:
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = decode(save(Image.fromarray(pixels), kind, **options))
    assert np.abs(found.astype(int) - pixels).max() <= 3


def test_pgm_pbm_and_plain_text_ppm() -> None:
    assert decode(b"P2\n2 1\n255\n7 200\n").tolist() == [[7, 200]]
    assert decode(b"P5\n2 1\n255\n\x07\xc8").tolist() == [[7, 200]]
    assert decode(b"P1\n2 1\n0 1\n").tolist() == [[255, 0]]
    assert decode(b"P3\n1 1\n255\n1 2 3\n").tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_an_image_one_pixel_wide_or_high(kind: str, size: tuple[int, int]) -> None:
    assert decode(save(Image.new("RGB", size, "white"), kind), mode="L").tolist() == [[255] * size[0]] * size[1]


# Orientation. The upright image is 2 high and 3 wide: 1 2 3 / 4 5 6. What a camera stores for each value, by Exif 2.32:
STORED = {
    1: [[1, 2, 3], [4, 5, 6]],  # first row is the top, first column the left
    2: [[3, 2, 1], [6, 5, 4]],  # top, right
    3: [[6, 5, 4], [3, 2, 1]],  # bottom, right
    4: [[4, 5, 6], [1, 2, 3]],  # bottom, left
    5: [[1, 4], [2, 5], [3, 6]],  # left, top
    6: [[3, 6], [2, 5], [1, 4]],  # right, top
    7: [[6, 3], [5, 2], [4, 1]],  # right, bottom
    8: [[4, 1], [5, 2], [6, 3]],  # left, bottom
}
UPRIGHT = [[1, 2, 3], [4, 5, 6]]


def make_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_once(kind: str, options: dict[str, object], orientation: int) -> None:
    image = Image.fromarray(np.array(STORED[orientation], np.uint8)).convert("RGB")
    data = save(image, kind, exif=make_exif(orientation), **options)
    assert decode(data, mode="L").tolist() == UPRIGHT


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_of_a_jpeg(orientation: int) -> None:
    blocks = np.kron(np.array(STORED[orientation], np.uint8) * 40, np.ones((16, 16), np.uint8))
    found = decode(save(Image.fromarray(blocks), "JPEG", quality=95, exif=make_exif(orientation)))
    assert found.shape == (32, 48)
    assert np.round(found[8::16, 8::16] / 40).astype(int).tolist() == UPRIGHT


def test_orientation_comes_before_the_size() -> None:
    image = Image.fromarray(np.array(STORED[6], np.uint8))
    data = save(image, "PNG", exif=make_exif(6))
    found = decode(data, height=4, width=6, filter="nearest")
    assert found.tolist() == np.repeat(np.repeat(UPRIGHT, 2, axis=0), 2, axis=1).tolist()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    data = save(Image.fromarray(np.array(UPRIGHT, np.uint8)), "PNG", exif=make_exif(orientation))
    assert decode(data).tolist() == UPRIGHT


# Broken metadata


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_dropped(kind: str, exif: bytes) -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    assert decode(save(image, kind, exif=exif), mode="L").tolist() == [[255] * 16] * 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_broken_colour_profile_is_dropped(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    found = decode(save(image, kind, icc_profile=b"no profile at all"))
    assert found.tolist() == [[[255] * 3] * 16] * 16
    assert [name for name, _ in cut_png(encode_png(found))] == [b"IHDR", b"IDAT", b"IEND"]


def test_a_broken_profile_chunk_is_dropped() -> None:
    chunks = cut_png(encode_png(draw_noise(4, 4)))
    chunks.insert(1, (b"iCCP", b"name\0\0not compressed"))
    assert np.array_equal(decode(join_png(chunks)), draw_noise(4, 4))


# Modes


def test_cmyk() -> None:
    cmyk = np.zeros((16, 48, 4), np.uint8)
    cmyk[:, :16] = (0, 0, 0, 0)  # no ink: white
    cmyk[:, 16:32] = (0, 255, 255, 0)  # magenta and yellow: red
    cmyk[:, 32:] = (0, 0, 0, 255)  # black
    found = decode(save(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95))
    assert np.abs(found[8, 8::16].astype(int) - [[255, 255, 255], [255, 0, 0], [0, 0, 0]]).max() <= 4


def make_palette() -> Image.Image:
    """Two pixels out of three colours."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    image.putdata([0, 1])
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_a_palette_becomes_its_colours(kind: str) -> None:
    assert decode(save(make_palette(), kind), formats=ALL_FORMATS).tolist() == [[[255, 0, 0], [0, 0, 255]]]


BACKGROUNDS = [0, 128, 255]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette(kind: str, background: int) -> None:
    data = save(make_palette(), kind, transparency=1)
    found = decode(data, formats=ALL_FORMATS, background=background)
    assert found.tolist() == [[[255, 0, 0], [background] * 3]]


@pytest.mark.parametrize(("background", "expected"), [(0, 51), (128, 128 + 51 - 26), (255, 255)])
def test_a_half_transparent_colour_of_a_palette(background: int, expected: int) -> None:
    """Alpha 51 is a fifth: 255 · 1/5 + background · 4/5."""
    data = save(make_palette(), "PNG", transparency=bytes([51, 255]))
    found = decode(data, background=background)
    assert found[0, 0, 0] == pytest.approx(expected, abs=1)
    assert found[0, 1].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("background", "fifth"), [(0, 20), (128, 122), (255, 224)])
@pytest.mark.parametrize("mode", ["keep", "L"])
def test_grey_with_alpha_stays_grey(background: int, fifth: int, mode: str) -> None:
    """100 at alpha 255, 51 (a fifth) and 0: 100 · 1/5 + background · 4/5."""
    pixels = np.array([[[100, 255], [100, 51], [100, 0]]], np.uint8)
    found = decode(save(Image.fromarray(pixels, "LA"), "PNG"), background=background, mode=mode)
    assert found.shape == (1, 3)
    assert found[0, [0, 2]].tolist() == [100, background]
    assert found[0, 1] == pytest.approx(fifth, abs=1)


@pytest.mark.parametrize(("background", "fifth"), [(0, [51, 0, 20]), (128, [153, 102, 122]), (255, [255, 204, 224])])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_with_alpha(kind: str, background: int, fifth: list[int]) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = np.array([[[255, 0, 100, 255], [255, 0, 100, 51], [255, 0, 100, 0]]], np.uint8)
    found = decode(save(Image.fromarray(pixels), kind, **options), background=background)
    assert found[0, [0, 2]].tolist() == [[255, 0, 100], [background] * 3]
    assert found[0, 1].tolist() == pytest.approx(fifth, abs=1)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_one_transparent_grey(background: int) -> None:
    png = make_png(3, 1, 8, 0, b"\0\x07\x08\x09", (b"tRNS", b"\0\x08"))
    assert decode(png, background=background).tolist() == [[7, background, 9]]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_one_transparent_grey_of_16_bits(background: int) -> None:
    """257 and 258 are both 1 of 255; only 258 is transparent."""
    png = make_png(3, 1, 16, 0, b"\0\x01\x01\x01\x02\xff\xff", (b"tRNS", b"\x01\x02"))
    assert decode(png, background=background).tolist() == [[1, background, 255]]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_one_transparent_colour(background: int) -> None:
    png = make_png(2, 1, 8, 2, b"\0\x01\x02\x03\x01\x02\x04", (b"tRNS", b"\0\x01\0\x02\0\x04"))
    assert decode(png, background=background).tolist() == [[[1, 2, 3], [background] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert decode(save(image, kind), mode="L").tolist() == [[255, 0, 255]]


def test_one_bit_stays_grey() -> None:
    assert decode(save(Image.new("1", (2, 2), 1), "PNG")).tolist() == [[255, 255], [255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 256, 257, 65535], [0, 1, 1, 255]),
        ([128, 129, 385, 386], [0, 1, 1, 2]),  # 257 is one step: halves lie at 128.5 and 385.5
        ([300, 1000, 30000, 60000], [1, 4, 117, 233]),  # as numbers of 8 bits all of them would be 255
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_never_cut_off(kind: str, values: list[int], expected: list[int]) -> None:
    data = save(Image.fromarray(np.array([values], np.uint16)), kind)
    assert decode(data).tolist() == [expected]
    assert decode(data, mode="RGB")[..., 1].tolist() == [expected]


def test_16_bits_of_a_pgm_are_scaled() -> None:
    assert decode(b"P5\n3 1\n65535\n\0\0\x01\x01\xff\xff").tolist() == [[0, 1, 255]]


def test_16_bits_in_either_byte_order() -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    for mode in ("I;16", "I;16B"):
        image = Image.frombytes(mode, (3, 1), values.astype("<u2" if mode == "I;16" else ">u2").tobytes())
        assert convert_image(image, DEFAULTS).pixels.tolist() == [[0, 1, 255]]


def test_16_bit_colours_are_scaled() -> None:
    """Pillow keeps the upper byte."""
    png = make_png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 257, 65535, 30000, 60000, 1000))
    assert decode(png).tolist() == [[[0, 1, 255], [117, 234, 3]]]


@pytest.mark.parametrize("values", [[0, 65536], [-1, 7], [0, 255]])
def test_whole_numbers_of_32_bits_are_refused(values: list[int]) -> None:
    data = save(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert refuse(data) == "has values of 32 bits, whose range is not known; save it with 8 or 16 bits"


@pytest.mark.parametrize(
    ("brightest", "remark"),
    [
        (65535, "16 bits scaled to 8"),
        (4096, "16 bits scaled to 8"),
        (4095, "16 bits scaled to 8, though only 12 are used: it comes out dark"),
        (255, "16 bits scaled to 8, though only 8 are used: it comes out dark"),
    ],
)
def test_sixteen_bits_are_remarked_and_a_narrow_range_too(brightest: int, remark: str) -> None:
    data = save(Image.fromarray(np.array([[0, brightest]], np.uint16)), "PNG")
    assert decode_image(data, DEFAULTS).remark == remark


@pytest.mark.parametrize(
    ("colour", "values", "pixels", "remark"),
    [
        (2, (0, 257, 65535), [0, 1, 255], "16 bits scaled to 8"),
        (2, (4096, 0, 0), [16, 0, 0], "16 bits scaled to 8"),
        (2, (4095, 2000, 300), [15, 7, 1], "16 bits scaled to 8, though only 12 are used: it comes out dark"),
        (2, (255, 0, 0), [0, 0, 0], "16 bits scaled to 8, though only 8 are used: it comes out dark"),
        (6, (1023, 0, 0, 65535), [3, 0, 0], "16 bits scaled to 8, though only 10 are used: it comes out dark"),
        (4, (1023, 65535), [3, 3, 3], "16 bits scaled to 8, though only 10 are used: it comes out dark"),
        (4, (65535, 65535), [255, 255, 255], "16 bits scaled to 8"),
    ],
    ids=["full", "13 bits", "12 bits", "8 bits", "RGBA", "LA", "full LA"],
)
def test_sixteen_bits_of_colours_and_transparency_are_remarked(
    colour: int, values: tuple[int, ...], pixels: list[int], remark: str
) -> None:
    found = decode_image(make_png(1, 1, 16, colour, b"\0" + struct.pack(f">{len(values)}H", *values)), DEFAULTS)
    assert found.pixels.tolist() == [[pixels]]
    assert found.remark == remark


def make_tiff(photometric: int, values: tuple[int, ...]) -> bytes:
    """A TIFF of one pixel whose values have 16 bits, uncompressed."""
    count = len(values)
    tags = [  # number, type (3 is 2 bytes, 4 is 4), how many, value or where it lies
        (256, 3, 1, 1),
        (257, 3, 1, 1),
        (258, 3, count, 8),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8 + 2 * count),
        (277, 3, 1, count),
        (278, 3, 1, 1),
        (279, 4, 1, 2 * count),
    ]
    body = struct.pack(f"<{2 * count}H", *[16] * count, *values)
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize(
    ("photometric", "values", "remark"),
    [
        (2, (0, 257, 65535), "16 bits scaled to 8"),
        (2, (4095, 2000, 300), "16 bits scaled to 8, though only 12 are used: it comes out dark"),
        (5, (0, 0, 0, 0), "16 bits scaled to 8"),
    ],
    ids=["full", "12 bits", "no ink"],
)
def test_sixteen_bits_of_colours_in_a_tiff_are_remarked(photometric: int, values: tuple[int, ...], remark: str) -> None:
    assert decode_image(make_tiff(photometric, values), DEFAULTS).remark == remark


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_dark_colours_of_8_bits_are_not_remarked(kind: str) -> None:
    assert decode_image(save(Image.new("RGB", (2, 2), (15, 7, 1)), kind), DEFAULTS).remark == ""


def test_floats_are_refused() -> None:
    data = save(Image.fromarray(np.array([[0.0, 0.5]], np.float32)), "TIFF")
    assert refuse(data) == "mode F with values from 0 to 0.5; expected whole numbers of at most 16 bits"


@pytest.mark.parametrize(
    ("mode", "grey", "colour"),
    [
        ("keep", [[10, 200]], [[[255, 0, 0]]]),
        ("L", [[10, 200]], [[76]]),  # 0.299 · 255
        ("RGB", [[[10] * 3, [200] * 3]], [[[255, 0, 0]]]),
    ],
)
def test_the_mode_of_files(mode: str, grey: list[object], colour: list[object]) -> None:
    assert decode(encode_png(np.array([[10, 200]], np.uint8)), mode=mode).tolist() == grey
    assert decode(encode_png(np.array([[[255, 0, 0]]], np.uint8)), mode=mode).tolist() == colour


# Several frames


def save_frames(kind: str, **options: object) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    return save(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_several_frames_are_refused_or_the_first_is_taken(kind: str, options: dict[str, object]) -> None:
    data = save_frames(kind, **options)
    assert refuse(data, formats=ALL_FORMATS) == "has several frames, which split.image.animation refuses"
    decoded = decode_image(data, set_params(formats=ALL_FORMATS, animation="first"))
    pixels, remark = decoded.pixels, decoded.remark
    assert remark == "first of several frames"
    assert pixels.tolist() == [[[255, 0, 0]] * 8] * 8


def test_one_frame_is_nothing_to_remark() -> None:
    assert decode_image(encode_png(draw_noise(4, 4)), set_params(animation="first")).remark == ""


def test_a_second_view_behind_a_jpeg_is_no_animation() -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = save(red, "MPO", save_all=True, append_images=[blue])
    decoded = decode_image(data, DEFAULTS)
    pixels, remark = decoded.pixels, decoded.remark
    assert remark == ""
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 4


# Sizes. The image is 2 high and 4 wide, or the other way round.
WIDE = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)


@pytest.mark.parametrize(
    ("fit", "wide", "tall"),
    [
        ("resize", [[20, 40], [60, 80]], [[30, 70], [40, 80]]),
        ("crop", [[20, 30], [60, 70]], [[20, 60], [30, 70]]),
    ],
)
def test_a_square_by_hand(fit: str, wide: list[list[int]], tall: list[list[int]]) -> None:
    params = set_params(height=2, width=2, fit=fit, filter="nearest")
    assert convert_array(WIDE, params).pixels.tolist() == wide
    if fit == "resize":
        assert convert_array(WIDE.T.copy(), params).pixels.tolist() == np.array(wide).T.tolist()
    else:
        assert convert_array(WIDE.T.copy(), params).pixels.tolist() == tall


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_padding_by_hand(background: int) -> None:
    params = set_params(height=4, width=4, fit="pad", filter="nearest", background=background)
    edge = [background] * 4
    assert convert_array(WIDE, params).pixels.tolist() == [edge, *WIDE.tolist(), edge]
    assert convert_array(WIDE.T.copy(), params).pixels.T.tolist() == [edge, *WIDE.tolist(), edge]


def test_padding_of_colours() -> None:
    params = set_params(height=2, width=4, fit="pad", filter="nearest", background=7, mode="RGB")
    found = convert_array(np.full((2, 2), 200, np.uint8), params).pixels
    assert found[..., 0].tolist() == [[7, 200, 200, 7]] * 2
    assert (found == found[..., :1]).all()


def test_crop_takes_the_largest_middle_part() -> None:
    """Of 4 × 8 the middle 4 × 4, doubled."""
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 100
    assert (convert_array(pixels, set_params(height=8, width=8, fit="crop", filter="nearest")).pixels == 100).all()


@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (1, 50), (50, 1), (7, 5), (5, 7, 3), (300, 200, 3)])
def test_every_size_becomes_the_one(fit: str, shape: tuple[int, ...]) -> None:
    found = convert_array(draw_noise(*shape), set_params(height=5, width=7, fit=fit)).pixels
    assert found.shape == (5, 7, *shape[2:])


def test_box_averages() -> None:
    assert convert_array(WIDE, set_params(height=1, width=2, filter="box")).pixels.tolist() == [[35, 55]]


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_each_filter_is_pillows(name: str) -> None:
    pixels = draw_noise(9, 11)
    found = convert_array(pixels, set_params(height=5, width=4, filter=name)).pixels
    expected = Image.fromarray(pixels).resize((4, 5), Image.Resampling[name.upper()])
    assert np.array_equal(found, np.asarray(expected))


def test_metadata_of_the_source_do_not_reach_the_png() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "somebody")
    data = save(Image.new("L", (4, 4), 9), "PNG", pnginfo=info, dpi=(300, 300), exif=make_exif(1))
    assert encode_png(decode(data)) == encode_png(np.full((4, 4), 9, np.uint8))


# PNGs that stay as they are


def save_png(pixels: Pixels, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_a_png_of_the_right_mode_and_size_stays_as_it_was_compressed(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = save_png(pixels, compress_level=0)
    decoded = decode_image(data, set_params(height=6, width=7))
    assert decoded.png == data
    assert np.array_equal(decoded.pixels, pixels)


def test_what_is_beside_the_pixels_is_left_out() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Author", "somebody")
    noted = save_png(
        np.zeros((4, 4), np.uint8), pnginfo=notes, dpi=(72, 72), icc_profile=b"x" * 200, exif=b"Exif\0\0MM\0*"
    )
    assert decode_image(noted + b"trailing", DEFAULTS).png == save_png(np.zeros((4, 4), np.uint8))


def draw_mode(mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def turn(data: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(io.BytesIO(data)) as image:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (draw_mode("P"), {}),
        (draw_mode("1"), {}),
        (draw_mode("I;16"), {}),
        (draw_mode("RGBA"), {}),
        (draw_mode("LA"), {}),
        (draw_mode("L", transparency=0), {}),
        (draw_mode("L", bits=4), {}),
        (draw_mode("L"), {"mode": "RGB"}),
        (draw_mode("RGB"), {"mode": "L"}),
        (draw_mode("L"), {"height": 3, "width": 4}),
        (turn(draw_mode("L")), {}),
        (draw_mode("L", save_all=True, append_images=[Image.new("L", (4, 4), 9)]), {"animation": "first"}),
    ],
    ids=["palette", "bits", "16 bits", "alpha", "grey alpha", "key", "4 bits", "rgb", "grey", "size", "turn", "frames"],
)
def test_any_other_png_is_encoded_anew(data: bytes, changes: dict[str, object]) -> None:
    assert decode_image(data, set_params(**changes)).png == b""


def test_only_a_png_stays() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "JPEG")
    assert decode_image(buffer.getvalue(), DEFAULTS).png == b""
