"""PNGs made by hand, chunk by chunk and filter by filter; Pillow says what is in them."""

import io
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagepipe.core.errors import InputError
from imagepipe.core.slices import PNG_SIGNATURE, ImageFiles
from imagepipe.data import images as images_module
from imagepipe.data.images import Chunk, decode_chunk, decode_pixels
from imagepipe.data.png import MOST_BYTES, Shape, inflate_png, unfilter_rows

COLOURS = {1: 0, 3: 2, 4: 6}  # colour types by channels
SOME = (3, 5, 3)


def make_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def make_header(
    shape: Shape, depth: int = 8, colour: int | None = None, rest: tuple[int, int, int] = (0, 0, 0)
) -> bytes:
    height, width, channels = shape
    colour = COLOURS[channels] if colour is None else colour
    return make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, *rest))


def make_rows(shape: Shape, filters: Sequence[int], seed: int = 0) -> bytes:
    """Noise as filtered rows: whatever the filters, it stands for some pixels."""
    rows = np.random.default_rng(seed).integers(0, 256, (shape[0], 1 + shape[1] * shape[2]), np.uint8)
    rows[:, 0] = filters
    return rows.tobytes()


def make_png(shape: Shape, rows: bytes) -> bytes:
    idat = make_chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + make_header(shape) + idat + make_chunk(b"IEND", b"")


def make_some(filters: Sequence[int] = (1, 3, 4)) -> bytes:
    """A plain PNG of shape SOME."""
    return make_png(SOME, make_rows(SOME, filters))


def ask_pillow(data: bytes) -> NDArray[np.uint8]:
    """uint8 (H, W, C)."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def unfilter_by_the_book(shape: Shape, rows: bytes) -> NDArray[np.uint8]:
    """uint8 (H, W, C), byte by byte as section 9 of the specification has it."""
    height, width, channels = shape
    stride = width * channels
    above = bytearray(stride)
    found = bytearray()
    for first in range(0, height * (1 + stride), 1 + stride):
        row = bytearray(rows[first + 1 : first + 1 + stride])
        for place in range(stride):
            a = row[place - channels] if place >= channels else 0
            b = above[place]
            c = above[place - channels] if place >= channels else 0
            nearest = min((a, b, c), key=lambda value: abs(a + b - c - value))  # of equals the first, as it is wanted
            row[place] = (row[place] + (0, a, b, (a + b) // 2, nearest)[rows[first]]) % 256
        found += row
        above = row
    return np.frombuffer(found, np.uint8).reshape(shape)


@st.composite
def draw_images(draw: st.DrawFn) -> tuple[Shape, list[bytes]]:
    """Some images of one shape, each as filtered rows."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from(sorted(COLOURS))))
    filters = st.lists(st.integers(0, 4), min_size=shape[0], max_size=shape[0])
    drawn = draw(st.lists(st.tuples(filters, st.integers(0, 2**32)), min_size=1, max_size=5))
    return shape, [make_rows(shape, *one) for one in drawn]


@given(draw_images())
def test_pixels_are_those_of_the_specification_and_of_pillow(images: tuple[Shape, list[bytes]]) -> None:
    shape, rows = images
    files = [make_png(shape, one) for one in rows]
    assert [inflate_png(data) for data in files] == [(shape, one) for one in rows]
    found = unfilter_rows(shape, rows)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((len(rows), *shape), np.uint8, True)
    for pixels, one, data in zip(found, rows, files, strict=True):
        assert np.array_equal(pixels, unfilter_by_the_book(shape, one))
        assert np.array_equal(pixels, ask_pillow(data))


@pytest.mark.parametrize("channels", COLOURS)
@pytest.mark.parametrize("filtering", range(5))
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (28, 28)])
def test_the_first_row_of_an_image_does_not_look_at_the_image_before(
    size: tuple[int, int], filtering: int, channels: int
) -> None:
    shape = (*size, channels)
    rows = [make_rows(shape, [filtering] * size[0], seed) for seed in range(3)]
    expected = [ask_pillow(make_png(shape, one)) for one in rows]
    assert np.array_equal(unfilter_rows(shape, rows), np.stack(expected))


@pytest.mark.parametrize("channels", COLOURS)
@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_what_pillow_writes_is_plain(channels: int, level: int) -> None:
    pixels = np.random.default_rng(level).integers(0, 256, (28, 28, channels), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(out, "PNG", compress_level=level)
    inflated = inflate_png(out.getvalue())
    assert inflated is not None
    assert np.array_equal(unfilter_rows(inflated[0], [inflated[1]])[0], pixels)


def assemble(*parts: bytes) -> bytes:
    return b"".join([PNG_SIGNATURE, *parts])


def list_others() -> dict[str, bytes]:
    """Files that are not plain, or not whole, each for one reason."""
    rows = make_rows(SOME, [1, 3, 4])
    packed = zlib.compress(rows)
    header, end = make_header(SOME), make_chunk(b"IEND", b"")
    idat = make_chunk(b"IDAT", packed)
    wide = (1, MOST_BYTES // 3 + 1, 3)
    bomb = zlib.compress(bytes(10**7))
    return {
        "empty": b"",
        "only a signature": PNG_SIGNATURE,
        "another signature": b"\x89PNG\n\r\x1a\n" + header + idat + end,
        "no IHDR": assemble(idat, end),
        "a wrong CRC of IHDR": assemble(header[:-1] + b"?", idat, end),
        "two IDATs": assemble(header, make_chunk(b"IDAT", packed[:9]), make_chunk(b"IDAT", packed[9:]), end),
        "a chunk before": assemble(header, make_chunk(b"gAMA", struct.pack(">I", 45455)), idat, end),
        "a chunk behind": assemble(header, idat, make_chunk(b"tEXt", b"a\0b"), end),
        "transparency": assemble(header, make_chunk(b"tRNS", bytes(6)), idat, end),
        "bytes behind the end": assemble(header, idat, end, b"more"),
        "no end": assemble(header, idat),
        "a length that is too long": assemble(header, b"\0\0\xff\xff" + idat[4:], end),
        "a stream that is cut": assemble(header, make_chunk(b"IDAT", packed[:-5]), end),
        "a stream with a wrong sum": assemble(header, make_chunk(b"IDAT", packed[:-1] + b"?"), end),
        "no stream": assemble(header, make_chunk(b"IDAT", b""), end),
        "noise": assemble(header, make_chunk(b"IDAT", rows), end),
        "a row too few": assemble(header, make_chunk(b"IDAT", zlib.compress(rows[:-16])), end),
        "a row too many": assemble(header, make_chunk(b"IDAT", zlib.compress(rows + rows[:16])), end),
        "a bomb": assemble(header, make_chunk(b"IDAT", bomb), end),
        "another filter": make_some([1, 5, 2]),
        "no pixels": assemble(make_header((0, 5, 3)), idat, end),
        "many pixels": make_png(wide, make_rows(wide, [0])),
        "16 bits": assemble(make_header((3, 5, 1), depth=16), make_chunk(b"IDAT", zlib.compress(bytes(33))), end),
        "1 bit": assemble(make_header((3, 5, 1), depth=1), make_chunk(b"IDAT", zlib.compress(bytes(6))), end),
        "grey with alpha": assemble(make_header(SOME, colour=4), idat, end),
        "a palette": assemble(
            make_header((3, 5, 1), colour=3),
            make_chunk(b"PLTE", bytes(range(48))),
            make_chunk(b"IDAT", zlib.compress(bytes(18))),
            end,
        ),
        "another compression": assemble(make_header(SOME, rest=(1, 0, 0)), idat, end),
        "another filtering": assemble(make_header(SOME, rest=(0, 1, 0)), idat, end),
        "interlaced": assemble(make_header(SOME, rest=(0, 0, 1)), make_chunk(b"IDAT", zlib.compress(bytes(60))), end),
    }


OTHERS = list_others()


def decode(folder: Path, data: bytes, one_by_one: bool) -> tuple[bytes, object]:
    """What a chunk of one file gives, or `one_by_one` what Pillow alone gives: pixels and shape, or the error."""
    (folder / "a.png").write_bytes(data)
    files = ImageFiles(folder, np.array(["a.png"], dtype=object))
    try:
        if one_by_one:
            pixels = decode_pixels(files, 0, data)
            return pixels.tobytes(), [list(pixels.shape)]
        decoded = decode_chunk(Chunk(files, None))
        return decoded.pixels, decoded.shapes.tolist()
    except InputError as error:
        return b"", re.sub(r"object at 0x\w+", "", f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_pillow_has_the_word_on_all_others(tmp_path: Path, data: bytes) -> None:
    assert inflate_png(data) is None
    assert decode(tmp_path, data, one_by_one=False) == decode(tmp_path, data, one_by_one=True)


def test_files_with_metadata_are_left_to_pillow() -> None:
    info = PngInfo()
    info.add_text("Author", "nobody")
    out = io.BytesIO()
    Image.new("L", (3, 2)).save(out, "PNG", pnginfo=info)
    assert inflate_png(out.getvalue()) is None


@pytest.mark.parametrize("flipped", [1, 255])
def test_no_damaged_byte_is_taken_for_anything_that_pillow_does_not_see(tmp_path: Path, flipped: int) -> None:
    """Each byte of a file changed in its turn, and the file cut before it."""
    data = make_some()
    for place in range(len(data)):
        for damaged in (data[:place] + bytes([data[place] ^ flipped]) + data[place + 1 :], data[:place]):
            found = decode(tmp_path, damaged, one_by_one=False)
            assert found == decode(tmp_path, damaged, one_by_one=True), place


def test_a_chunk_of_all_kinds_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain ones of two shapes, in runs of several lengths, and others between them; runs end at 100 bytes."""
    monkeypatch.setattr(images_module, "RUN_BYTES", 100)
    kinds = [
        *[make_png(SOME, make_rows(SOME, [1, 2, 3], seed)) for seed in range(6)],
        OTHERS["a chunk before"],
        make_png((2, 2, 1), make_rows((2, 2, 1), [4, 4])),
        OTHERS["two IDATs"],
        OTHERS["interlaced"],
        *[make_png((5, 3, 3), make_rows((5, 3, 3), [4, 3, 2, 1, 0], seed)) for seed in range(2)],
        make_some(),
    ]
    for number, data in enumerate(kinds):
        (tmp_path / f"{number}.png").write_bytes(data)
    files = ImageFiles(tmp_path, np.array([f"{number}.png" for number in range(len(kinds))], dtype=object))
    decoded = decode_chunk(Chunk(files, None))
    expected = [ask_pillow(data) for data in kinds]
    assert decoded.pixels == b"".join(image.tobytes() for image in expected)
    assert decoded.shapes.tolist() == [list(image.shape) for image in expected]


def test_the_first_image_that_gives_cause_is_named(tmp_path: Path) -> None:
    for name, data in {"0": make_some(), "1": OTHERS["another filter"], "2": b"", "3": make_some()}.items():
        (tmp_path / name).write_bytes(data)
    files = ImageFiles(tmp_path, np.array(["0", "1", "2", "3", "gone"], dtype=object))
    with pytest.raises(InputError, match=r"/1: cannot be decoded"):
        decode_chunk(Chunk(files, None))
    with pytest.raises(InputError, match=r"gone: no such image"):
        decode_chunk(Chunk(files.take([0, 3, 4, 2]), None))
