import io
from collections.abc import Callable

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from imagepipe.core.errors import InputError
from imagepipe.prepare.images import encode_png, name_encoder, name_mode, sum_channels


def list_chunks(png: bytes) -> list[str]:
    """The names of a PNG's chunks, in order (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    names: list[str] = []
    place = 8
    while place < len(png):
        names.append(png[place + 4 : place + 8].decode("ascii"))
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return names


def decode(png: bytes) -> tuple[str, NDArray[np.uint8]]:
    with Image.open(io.BytesIO(png)) as image:
        return image.mode, np.asarray(image)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pixels_come_back_as_they_went_in(
    make_image: Callable[..., NDArray[np.uint8]], channels: int, mode: str
) -> None:
    pixels = make_image(77, 6, 5, channels)
    assert name_mode(pixels, "here") == mode
    found_mode, found = decode(encode_png(pixels))
    assert found_mode == mode
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (1, 1, 3), (64, 48, 3)])
def test_every_size_comes_back(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode(encode_png(pixels))[1], pixels)


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_nothing_but_the_pixels_goes_into_a_png(shape: tuple[int, ...]) -> None:
    assert list_chunks(encode_png(np.full(shape, 9, np.uint8))) == ["IHDR", "IDAT", "IEND"]


def test_bytes_do_not_depend_on_the_order_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    turned = np.asfortranarray(pixels)
    part = np.zeros((9, 11, 3), np.uint8)
    part[1:8, 1:10] = pixels
    assert encode_png(turned) == encode_png(pixels) == encode_png(part[1:8, 1:10])


def test_pixels_that_cannot_be_written_to_are_encoded() -> None:
    pixels = np.frombuffer(bytes(range(12)), np.uint8).reshape(3, 4)
    assert np.array_equal(decode(encode_png(pixels))[1], pixels)


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
def test_other_arrays_are_refused(pixels: NDArray[np.uint8], shown: str) -> None:
    with pytest.raises(InputError, match=rf"^here: {shown}; an image is uint8 of shape \(H, W\) or \(H, W, 3\)\.$"):
        name_mode(pixels, "here")


def test_sums_of_a_grey_image() -> None:
    assert sum_channels(np.array([[1, 2], [3, 255]], np.uint8)) == ((261,), (1 + 4 + 9 + 65025,))


def test_sums_of_an_rgb_image_are_per_channel() -> None:
    pixels = np.array([[[1, 10, 200], [2, 20, 100]]], np.uint8)
    assert sum_channels(pixels) == ((3, 30, 300), (5, 500, 50_000))


def test_sums_of_a_large_white_image_are_exact() -> None:
    sums, squares = sum_channels(np.full((1000, 1000), 255, np.uint8))
    assert (sums, squares) == ((255_000_000,), (65_025_000_000,))


def test_the_encoder_names_what_decides_the_bytes() -> None:
    assert name_encoder() == f"pillow {PIL.__version__}, zlib {features.version('zlib')}, level 6"
