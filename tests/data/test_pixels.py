import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagepipe.core import parallel
from imagepipe.core.errors import InputError
from imagepipe.data.pixels import open_image, read_all_pixels, read_pixels


def write_grey(path: Path, value: int = 7, width: int = 3, height: int = 2) -> Path:
    """A PNG of one grey value."""
    Image.new("L", (width, height), value).save(path)
    return path


def write_greys(folder: Path, count: int) -> list[Path]:
    """`0.png`, `1.png`, …, each filled with its number."""
    return [write_grey(folder / f"{number}.png", number) for number in range(count)]


def test_an_opened_image_needs_its_file_no_longer(tmp_path: Path) -> None:
    image = open_image(write_grey(tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    assert image.convert("RGB").getpixel((2, 1)) == (7, 7, 7)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: no such image; is the image folder the right one\?"):
        open_image(tmp_path / "gone.png")


def test_half_a_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(InputError, match=r"half\.png: cannot be decoded .*run the split stage again"):
        open_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(InputError, match=r"page\.png: cannot be decoded"):
        open_image(tmp_path / "page.png")


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_grey(tmp_path / "bomb.png", width=10, height=10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    with pytest.raises(InputError, match=r"bomb\.png: cannot be decoded .*100 pixels"):
        open_image(path)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_pixels_have_height_width_and_channels(tmp_path: Path, mode: str, channels: int) -> None:
    expected = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
    Image.fromarray(expected[:, :, 0] if channels == 1 else expected, mode).save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16"])
def test_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=rf"a\.png: mode {mode}; expected L, RGB or RGBA\. Give a transform"):
        read_pixels(tmp_path / "a.png")


def test_all_pixels_stand_in_the_order_of_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 2)
    paths = write_greys(tmp_path, 5)
    pixels = read_all_pixels([paths[3], paths[0], paths[4], paths[2], paths[2]], jobs=1)
    assert pixels.shape == (5, 2, 3, 1)
    assert pixels[:, 1, 2, 0].tolist() == [3, 0, 4, 2, 2]


def test_two_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "FEW", 3)
    monkeypatch.setattr(parallel, "CHUNK", 2)
    paths = write_greys(tmp_path, 7)
    assert np.array_equal(read_all_pixels(paths, jobs=2), read_all_pixels(paths, jobs=1))


def expect_mismatch(paths: list[Path], name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    message = re.escape(f"{name}: shape (H, W, C) is {found}, but the first image has {expected};")
    with pytest.raises(InputError, match=message):
        read_all_pixels(paths, jobs=1)


@pytest.mark.parametrize("odd", [1, 2, 3, 4])
def test_an_image_of_another_size_is_named_with_both_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: int
) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 2)
    paths = write_greys(tmp_path, 6)
    write_grey(paths[odd], width=5)
    expect_mismatch(paths, f"{odd}.png", (2, 5, 1), (2, 3, 1))


def test_grey_and_colour_do_not_mix(tmp_path: Path) -> None:
    paths = write_greys(tmp_path, 2)
    Image.new("RGB", (3, 2)).save(paths[1])
    expect_mismatch(paths, "1.png", (2, 3, 3), (2, 3, 1))
