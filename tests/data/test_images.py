import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pytest
from PIL import Image

from imagepipe.core.errors import EnvironmentFault, InputError
from imagepipe.core.slices import ImageFiles, list_image_files
from imagepipe.data.images import (
    Chunk,
    FileReader,
    OtherMode,
    RowHashes,
    decode_chunk,
    hash_chunk,
    hash_content,
    make_image,
    measure_image,
    open_image,
    read_pixels,
)
from tests.data.made import hash_images, make_images, pack_shards, write_images

ORIENTATION = 0x0112  # the Exif tag


def name_file(path: Path) -> ImageFiles:
    """One file as ImageFiles."""
    return ImageFiles(path.parent, np.array([path.name], dtype=object))


def write_grey(path: Path, width: int = 3, height: int = 2) -> ImageFiles:
    """A PNG of one grey value."""
    Image.new("L", (width, height), 7).save(path)
    return name_file(path)


def test_an_opened_image_needs_its_file_no_longer(tmp_path: Path) -> None:
    image = open_image(write_grey(tmp_path / "a.png"), 0)
    (tmp_path / "a.png").unlink()
    assert image.convert("RGB").getpixel((2, 1)) == (7, 7, 7)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: no such image; is the image folder the right one\?"):
        open_image(name_file(tmp_path / "gone.png"), 0)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a\.png: cannot be read \(Is a directory\); run the split stage again"):
        open_image(name_file(tmp_path / "a.png"), 0)


def test_the_machine_is_named_where_it_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ImageFiles, __: int) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    files = write_grey(tmp_path / "a.png")
    monkeypatch.setattr(ImageFiles, "read", fail)
    with pytest.raises(EnvironmentFault, match=r"a\.png: cannot be read: Too many open files\. Raise the limit"):
        open_image(files, 0)


def test_half_a_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(InputError, match=r"half\.png: cannot be decoded .*run the split stage again"):
        open_image(name_file(path), 0)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\0IHDR\xa8\xa1\xae\n"]
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.png").write_bytes(content)
    for read in (open_image, read_pixels, measure_image):
        with pytest.raises(InputError, match=r"page\.png: cannot be decoded"):
            read(name_file(tmp_path / "page.png"), 0)


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_grey(tmp_path / "bomb.png", width=10, height=10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    with pytest.raises(InputError, match=r"bomb\.png: cannot be decoded .*100 pixels"):
        open_image(files, 0)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_pixels_are_height_width_channels(tmp_path: Path, mode: str, channels: int) -> None:
    expected = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
    Image.fromarray(expected[:, :, 0] if channels == 1 else expected, mode).save(tmp_path / "a.png")
    pixels = read_pixels(name_file(tmp_path / "a.png"), 0)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16"])
def test_other_modes_are_refused_as_pixels_and_opened_as_they_are(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    files = name_file(tmp_path / "a.png")
    with pytest.raises(OtherMode, match=rf"a\.png: mode {mode}; expected L, RGB or RGBA\. Give a transform"):
        read_pixels(files, 0)
    assert open_image(files, 0).mode == mode


def test_an_image_stands_upright_and_leaves_its_metadata_behind(tmp_path: Path) -> None:
    """Orientation 6: the first row of the scene is the first column of the file, read upwards."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif, dpi=(72, 72))
    files = name_file(tmp_path / "a.png")
    assert read_pixels(files, 0)[:, :, 0].tolist() == [[4, 1], [5, 2], [6, 3]]
    image = open_image(files, 0)
    assert np.asarray(image).tolist() == [[4, 1], [5, 2], [6, 3]]
    assert (image.info, dict(image.getexif())) == ({}, {})


def test_broken_metadata_turn_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1, 2, 3]], np.uint8)).save(tmp_path / "a.png", exif=b"Exif\0\0no such thing")
    assert read_pixels(name_file(tmp_path / "a.png"), 0)[:, :, 0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_painting_on_an_image_leaves_the_pixels_alone(channels: int) -> None:
    pixels = np.full((2, 3, channels), 9, np.uint8)
    image = make_image(pixels)
    image.putpixel((0, 0), 0 if channels == 1 else (0,) * channels)
    image.paste(0 if channels == 1 else (0,) * channels, (1, 0, 3, 2))
    assert (pixels == 9).all()


@pytest.mark.parametrize(("mode", "size"), [("L", 70), ("RGB", 210), ("RGBA", 280)])
def test_the_size_of_an_image_stands_in_its_header(tmp_path: Path, mode: str, size: int) -> None:
    Image.new(mode, (10, 7)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])  # signature, IHDR, and IDAT just begun
    assert measure_image(name_file(tmp_path / "a.png"), 0) == size


def test_files_are_known_by_their_bytes_and_who_decodes_them(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", make_images(2))
    known = [hashlib.sha256(f"Pillow {PIL.__version__}\n".encode() + files.read(index)).digest() for index in (0, 1)]
    assert hash_content(files.read(0)) == known[0]
    assert hash_chunk(Chunk(files, None)) == known[0] + known[1]


def test_a_chunk_gives_the_pixels_in_a_row_and_their_shapes(tmp_path: Path) -> None:
    images = make_images(5, [(2, 3, 1), (1, 1, 3), (2, 2, 4)])
    files = write_images(tmp_path / "images", images)
    for hashes in (None, RowHashes(hash_images(images))):
        decoded = decode_chunk(Chunk(files, hashes))
        assert decoded.pixels == b"".join(image.tobytes() for image in images)
        assert decoded.shapes.tolist() == [[2, 3, 1], [1, 1, 3], [2, 2, 4], [2, 3, 1], [1, 1, 3]]
        assert decoded.wrong == []


def test_a_chunk_names_the_images_that_are_not_what_their_hashes_promise(tmp_path: Path) -> None:
    images = make_images(4)
    files = write_images(tmp_path / "images", images)
    by_files = np.frombuffer(hash_chunk(Chunk(files, None)), np.uint8).reshape(-1, 32)
    for hashes in (RowHashes(hash_images(images)), RowHashes(by_files, of_files=True)):
        swapped = hashes.take(np.array([0, 2, 1, 3]))
        assert decode_chunk(Chunk(files, swapped)).wrong == [files.describe(1), files.describe(2)]


def pack(folder: Path, count: int) -> tuple[ImageFiles, ImageFiles]:
    """The same images as files and as slices of shards of three."""
    files = write_images(folder / "images", make_images(count))
    columns = pack_shards(list(files.names), folder / "images", folder / "shards", each=3)
    return files, list_image_files(pd.DataFrame({"path": files.names}).join(columns), folder / "shards")


def test_slices_of_shards_are_read_as_files_are(tmp_path: Path) -> None:
    files, slices = pack(tmp_path, 8)
    order = np.array([7, 0, 3, 4, 1, 1, 6, 5, 2])
    with FileReader(slices.take(order)) as reader:
        assert [reader.read(index) for index in range(9)] == [files.read(index) for index in order.tolist()]
    assert decode_chunk(Chunk(slices, None)).pixels == decode_chunk(Chunk(files, None)).pixels
    assert np.array_equal(np.asarray(open_image(slices, 4)), np.asarray(open_image(files, 4)))


def test_a_missing_or_cut_shard_is_named_with_the_image(tmp_path: Path) -> None:
    _, slices = pack(tmp_path, 8)
    (tmp_path / "shards" / "00000.tar").unlink()
    cut = tmp_path / "shards" / "00003.tar"
    cut.write_bytes(cut.read_bytes()[:540])
    for read in (
        lambda index: open_image(slices, index),
        lambda index: decode_chunk(Chunk(slices.take([index]), None)),
    ):
        with pytest.raises(InputError, match=r"00000\.tar \(0\.png\): no such image"):
            read(0)
        message = r"00003\.tar \(3\.png\): cannot be read \(00003\.tar ends inside this file: it was cut .* split stage"
        with pytest.raises(InputError, match=message):
            read(3)


def test_a_length_beyond_all_memory_is_not_believed(tmp_path: Path) -> None:
    _, slices = pack(tmp_path, 8)
    lengths = np.full(len(slices), 10**17)
    files = ImageFiles(slices.folder, slices.names, slices.shards, slices.offsets, lengths)
    with pytest.raises(InputError, match=r"00000\.tar \(0\.png\): cannot be read \(00000\.tar ends inside this file"):
        decode_chunk(Chunk(files, None))


def test_workers_need_not_wait_for_torch() -> None:
    code = "import imagepipe.data.pixels, sys; print([name for name in sys.modules if name.startswith('torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
