"""Decoding images to arrays: one file when one is asked for, all of them in parallel when a loader wants them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imagepipe.core.errors import InputError
from imagepipe.core.parallel import map_chunks


def open_image(path: Path) -> Image.Image:
    """The decoded PIL image; raises InputError, naming the file, where it is absent or cannot be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image; is the image folder the right one?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}); run the split stage again.") from error


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """The image as uint8 (H, W, C); C is 1 for grey, 3 for RGB, 4 for RGBA; other modes are an InputError."""
    image = open_image(path)
    if image.mode not in ("L", "RGB", "RGBA"):
        raise InputError(f"{path}: mode {image.mode}; expected L, RGB or RGBA. Give a transform that converts it.")
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def read_all_pixels(paths: Sequence[Path], jobs: int) -> NDArray[np.uint8]:
    """All images as one uint8 array (N, H, W, C), decoded by `jobs` processes.

    Raises InputError where an image cannot be decoded or differs in size from the first.
    """
    pixels = np.empty((0,), np.uint8)
    filled = 0
    for part in map_chunks(read_chunk, paths, jobs):
        if not filled:
            pixels = np.empty((len(paths), *part.shape[1:]), np.uint8)
        if part.shape[1:] != pixels.shape[1:]:
            raise InputError(describe_mismatch(paths[filled], part.shape[1:], pixels.shape[1:]))
        pixels[filled : filled + len(part)] = part
        filled += len(part)
    return pixels


def read_chunk(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Images of one size as uint8 (n, H, W, C)."""
    images = [read_pixels(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(describe_mismatch(path, image.shape, images[0].shape))
    return np.stack(images)


def describe_mismatch(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The message for an image of another size (H, W, C) than the first."""
    return f"{path}: shape (H, W, C) is {found}, but the first image has {expected}; a batch needs images of one size."
