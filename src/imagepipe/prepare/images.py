"""One image on its way to disk: pixels to PNG bytes, and what is known of them."""

import io
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from imagepipe.core.errors import InputError

PNG_LEVEL = 6  # zlib's own default; level 1 saves a fifth of the time and costs a tenth more bytes


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the manifests and the train statistics need of a stored image.

    `pixel_sums` and `pixel_squares` are exact integers per channel: the sum of the uint8 values, and of their squares.
    """

    pixel_sha256: str
    width: int
    height: int
    mode: str
    pixel_sums: tuple[int, ...]
    pixel_squares: tuple[int, ...]


def name_encoder() -> str:
    """What decides the bytes of a PNG besides its pixels: Pillow, its zlib, the level."""
    return f"pillow {PIL.__version__}, zlib {features.version('zlib')}, level {PNG_LEVEL}"


def name_mode(pixels: NDArray[np.uint8], source: str) -> str:
    """Pillow's mode for uint8 pixels of shape (H, W) or (H, W, 3); any other array is an InputError naming `source`."""
    if pixels.dtype == np.uint8 and pixels.size:
        if pixels.ndim == 2:
            return "L"
        if pixels.ndim == 3 and pixels.shape[2] == 3:
            return "RGB"
    raise InputError(
        f"{source}: shape {pixels.shape} and type {pixels.dtype}; an image is uint8 of shape (H, W) or (H, W, 3)."
    )


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of a grey (H, W) or RGB (H, W, 3) image; nothing but the pixels goes in."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def sum_channels(pixels: NDArray[np.uint8]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Per channel the sum of the values and of their squares, exact."""
    values = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1).astype(np.int64)
    return tuple(values.sum(axis=0).tolist()), tuple((values * values).sum(axis=0).tolist())
